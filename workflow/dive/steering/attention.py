"""Inside decoder layers: where attention, MLP and projections are, and what attention computes, found by watching.

Methods that act inside a layer need three things that no family names alike: the modules, the heads before they are
projected, and the queries and keys (after rotation and normalisation) under the layer's own mask. All families of
transformers compute attention by one exchangeable function, which is given the module and just these tensors. While
somebody listens, that function is wrapped; other attention modules (vision towers, other models) pass through it
unchanged, and when nobody listens any more it is the library's own again.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import nn

from dive.backbones.layers import input_device

IMPLEMENTATION = "sdpa"


@dataclass(frozen=True)
class AttentionShape:
    """Sizes of one layer's attention, as measured (``heads * head_dim`` is not the width in Gemma 3).

    Attributes:
        heads: H, query heads.
        kv_heads: heads of keys and values; each serves H / kv_heads query heads.
        head_dim: h.
        projections: linear modules of the attention, name -> (width in, width out): q, k, v and o in every family.
    """

    heads: int
    kv_heads: int
    head_dim: int
    projections: Mapping[str, tuple[int, int]]


class Inside(NamedTuple):
    """What one decoder layer consists of.

    Attributes:
        attention: the module that calls the attention function; its output is (B, T, width).
        mlp: the feed-forward module, from (B, T, width) to (B, T, width).
        projections: linear modules of the attention by name.
        shape: sizes of the attention.
    """

    attention: nn.Module
    mlp: nn.Module
    projections: dict[str, nn.Module]
    shape: AttentionShape


class Heads:
    """What attention computed at N positions, before the output projection.

    Attributes:
        output: (N, H, h), the heads' outputs sum_j p_j v_j.
        query: (N, H, h), rotated and normalised as the layer does it.
        scaling: factor on q k_j; 1 / sqrt(h) in most families, but what the layer itself uses.
    """

    def __init__(
        self,
        output: torch.Tensor,
        query: torch.Tensor,
        key: torch.Tensor,
        mask: torch.Tensor | None,
        scaling: float,
        rows: torch.Tensor | None = None,
    ) -> None:
        """Args: output (B, T, H, h), query (B, H, T, h), key (B, kv, S, h), mask (B or 1, 1 or H, T, S) bool (True =
        attended) or additive, None = every key; rows: which of the B * T positions, None = all."""
        self._query, self._key, self._mask, self._rows = query, key, mask, rows
        self.scaling = scaling
        self.output = self._flat(output)
        self.query = self._flat(query.transpose(1, 2))

    def _flat(self, tensor: torch.Tensor) -> torch.Tensor:
        flat = tensor.reshape(-1, *tensor.shape[2:])
        return flat if self._rows is None else flat[self._rows]

    @property
    def log_partition(self) -> torch.Tensor:
        """z = logsumexp_j(scaling q k_j) over the keys that the position attends to, (N, H), at least float32.

        The layer's own mask decides: no future, no padding, no key outside the sliding window. So the value is the
        same in a full forward pass and in decoding from a cache.
        """
        n_batch, n_heads, n_query, size = self._query.shape
        kv = self._key.shape[1]
        kind = torch.promote_types(self._query.dtype, torch.float32)
        query = self._query.to(kind).view(n_batch, kv, n_heads // kv, n_query, size)
        scores = self.scaling * torch.einsum("bkgth,bksh->bkgts", query, self._key.to(kind)).flatten(1, 2)
        if self._mask is not None:
            if self._mask.dtype == torch.bool:
                # Not -inf: a padded row attends to nothing and would make its gradient NaN.
                scores = scores.masked_fill(~self._mask, torch.finfo(kind).min)
            else:
                scores = scores + self._mask.to(kind)
        return self._flat(scores.logsumexp(-1).transpose(1, 2))


def causal_mask(n_query: int, n_key: int, device: torch.device) -> torch.Tensor:
    """What the attention function means by no mask and several queries: query t attends to keys 0 .. t."""
    return torch.ones(n_query, n_key, dtype=torch.bool, device=device).tril()[None, None]


Change = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None, float], torch.Tensor]
"""(output (B, T, H, h), query, key, mask, scaling) -> output; see ``Heads``."""

_CHANGES: WeakKeyDictionary[nn.Module, Change] = WeakKeyDictionary()
_EVERYWHERE: list[Callable[..., None]] = []


def _listening(original: Callable[..., Any]) -> Callable[..., Any]:
    """The attention function, with what listens to it."""

    def attention(
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        output, *rest = original(module, query, key, value, attention_mask, *args, **kwargs)
        for watch in _EVERYWHERE:
            watch(module, query, key)
        if (change := _CHANGES.get(module)) is not None:
            mask, n_query, n_key = attention_mask, query.shape[2], key.shape[2]
            if mask is not None:
                mask = mask[..., :n_key]
            else:
                causal = kwargs.get("is_causal")
                causal = getattr(module, "is_causal", True) if causal is None else causal
                mask = causal_mask(n_query, n_key, query.device) if causal and n_query > 1 else None
            scaling = kwargs.get("scaling")
            output = change(output, query, key, mask, query.shape[-1] ** -0.5 if scaling is None else float(scaling))
        return output, *rest

    attention.original = original
    return attention


def _install() -> None:
    """Wrap the attention function while somebody listens; put the library's own back when nobody does."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS as functions

    current = functions[IMPLEMENTATION]
    wanted = bool(_CHANGES or _EVERYWHERE)
    if wanted and not hasattr(current, "original"):
        functions.register(IMPLEMENTATION, _listening(current))
    elif not wanted and hasattr(current, "original"):
        functions.register(IMPLEMENTATION, current.original)


class Listening:
    """A ``Change`` at work on one attention module until ``remove``."""

    def __init__(self, attention: nn.Module, change: Change) -> None:
        self.attention = attention
        _CHANGES[attention] = change
        _install()

    def remove(self) -> None:
        _CHANGES.pop(self.attention, None)
        _install()


@contextmanager
def _watching(watch: Callable[..., None]) -> Iterator[None]:
    _EVERYWHERE.append(watch)
    _install()
    try:
        yield
    finally:
        _EVERYWHERE.remove(watch)
        _install()


def look_inside(model: nn.Module, layers: Sequence[nn.Module]) -> list[Inside]:
    """Find attention, MLP and projections of every decoder layer by running two tokens of text, without names.

    The attention is the module that calls the attention function while its layer runs; the projections are the linear
    modules in it that are called; the MLP is the one child of the layer that has linear modules and runs after it.

    Args:
        model: a ``transformers`` model with ``get_input_embeddings``.
        layers: its decoder layers.

    Raises:
        ValueError: a layer is built otherwise, or its attention is not computed by transformers' ``sdpa`` function.
    """
    order: list[nn.Module] = []  # direct children of layers, as they begin
    calls: list[tuple[nn.Module, int, int, int]] = []
    linear: dict[nn.Module, tuple[int, int]] = {}

    def begin(child: nn.Module, args: tuple) -> None:
        order.append(child)

    def watch(module: nn.Module, query: torch.Tensor, key: torch.Tensor) -> None:
        calls.append((module, query.shape[1], key.shape[1], query.shape[3]))

    def project(module: nn.Module, args: tuple, output: torch.Tensor) -> None:
        linear[module] = (args[0].shape[-1], output.shape[-1])

    ids = torch.ones(1, 2, dtype=torch.long, device=input_device(model))
    handles = []
    for layer in layers:
        handles += [child.register_forward_pre_hook(begin) for child in layer.children()]
        linears = [module for module in layer.modules() if isinstance(module, nn.Linear)]
        handles += [module.register_forward_hook(project) for module in linears]
    try:
        with torch.no_grad(), _watching(watch):
            model(input_ids=ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()

    found = []
    for index, layer in enumerate(layers):
        within = set(layer.modules())
        called = [call for call in calls if call[0] in within]
        if len(called) != 1:
            raise ValueError(
                f"layer {index} of {type(model).__name__} calls transformers' attention function {len(called)} times; "
                f"methods that act inside attention need it once: load the model with "
                f"attn_implementation={IMPLEMENTATION!r}"
            )
        attention, heads, kv_heads, head_dim = called[0]
        projections = {name: module for name, module in attention.named_modules() if module in linear}
        begun = [child for child in order if child in within]
        start = next(i for i, child in enumerate(begun) if attention in set(child.modules()))
        after = [child for child in begun[start + 1 :] if any(module in linear for module in child.modules())]
        if len(after) != 1 or not projections:
            raise ValueError(
                f"layer {index} of {type(model).__name__} has {len(projections)} projections in its attention and "
                f"{len(after)} feed-forward modules behind it; methods that act there need some and exactly one"
            )
        sizes = {name: linear[module] for name, module in projections.items()}
        shape = AttentionShape(heads, kv_heads, head_dim, sizes)
        found.append(Inside(attention, after[0], projections, shape))
    if any(inside.shape != found[0].shape for inside in found):
        raise ValueError(f"{type(model).__name__}: the attention has another shape in some of the decoder layers")
    return found
