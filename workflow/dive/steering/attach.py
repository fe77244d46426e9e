"""Steer a model by hooks on its decoder layers or inside them. Removing the hooks restores the model."""

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any
from weakref import WeakSet

import torch
from torch import nn

from dive.backbones.layers import find_decoder_layers, hidden_of
from dive.devices import upload
from dive.steering.adapters import fetch_adapter, load_adapter
from dive.steering.attention import Heads, Inside, Listening, look_inside
from dive.steering.base import Intervention
from dive.steering.generating import Overrides, note_call, refuse_padded_call
from dive.steering.steered import SteeredModel

# Layers that a Steering is on. Two at once would feed one the states that the other made, which no training saw.
_STEERED: WeakSet[nn.Module] = WeakSet()


class Steering:
    """An intervention that is active on decoder layers, until ``detach`` or the end of a ``with`` block.

    Which positions are steered:

    - in ``with steering.at(mask)``: the positions of the mask;
    - in ``with steering.paused()``: none;
    - in ``with steering.generating(first)``: all positions from column ``first`` of the sequence on, no matter how the
      sequence is divided into forward passes. In ``generate`` of a steered model ``first`` is the prompt's last token;
    - in a plain call on an empty cache (a prompt, padded on the left): the last position, which predicts y_1;
    - in a plain call on a filled cache: all new positions.

    An intervention with ``positions: all`` steers every position, unless it is paused.

    Args:
        layers: decoder layers of the model, in order.
        intervention: it is moved to the devices of the layers that it steers, and again if the layers move.
        inside: parts of all layers, from ``look_inside``; required if the intervention acts inside layers.
        model: the model of these layers; required to steer its ``generate``.

    Attributes:
        turn: a lock that is held while the model generates, so that several threads take turns.

    Raises:
        ValueError: a layer is steered already, or ``inside`` is required and missing.
    """

    def __init__(
        self,
        layers: Sequence[nn.Module],
        intervention: Intervention,
        inside: Sequence[Inside] | None = None,
        model: Any = None,
    ) -> None:
        self.intervention = intervention
        self.turn = threading.RLock()
        self._active = True
        self._mask: torch.Tensor | None = None
        self._rows: torch.Tensor | None = None
        self._cached: dict[int, bool | None] = {}
        self._first: int | None = None
        self._in_chunks = False
        self._ahead: dict[int, int] = {}  # positions of a pass that lie before ``_first``
        self._devices: dict[int, torch.device] = {}
        self._handles: list[Any] = []
        self._all, self._inside, self._model = list(layers), inside, model
        self._layers = [layers[index] for index in intervention.sites]
        self._device: torch.device | None = None
        _refuse_steered(self._layers)
        if intervention.acts_inside and inside is None:
            raise ValueError("this intervention acts inside the layers; pass inside=look_inside(model, layers)")
        _STEERED.update(self._layers)
        self._hook()

    @property
    def active(self) -> bool:
        """False in ``paused``."""
        return self._active

    @property
    def by_rule(self) -> bool:
        """Whether the rule of plain calls decides what is steered; never while torch.compile looks on."""
        named = self._mask is not None or self._first is not None or self.intervention.positions == "all"
        return self._active and not named and not torch.compiler.is_compiling()

    def _hook(self) -> None:
        try:
            for index, layer in zip(self.intervention.sites, self._layers, strict=True):
                self._handles.append(layer.register_forward_pre_hook(self._before(index), with_kwargs=True))
                parts = None if self._inside is None else self._inside[index]
                for site, module in self.intervention.at(index).items():
                    self._handles += self._hooks(index, site, module, layer, parts)
            self.follow()
            if self._model is not None:
                padded = refuse_padded_call(self)
                self._handles.append(self._model.register_forward_pre_hook(padded, with_kwargs=True))
                self._handles.append(Overrides(self._model, self))
        except BaseException:
            self.detach()
            raise

    def _unhook(self) -> None:
        while self._handles:
            self._handles.pop().remove()

    @contextmanager
    def lifted(self) -> Iterator[list[nn.Module]]:
        """Take everything off the model for a while, in which it can be copied; yields all decoder layers."""
        self._unhook()
        try:
            yield self._all
        finally:
            if self._layers:
                self._hook()

    def follow(self) -> None:
        """Move the intervention to its layers' devices; where parameters are offloaded, it moves with the states."""
        for index, layer in zip(self.intervention.sites, self._layers, strict=False):  # no layers once it is detached
            parameter = next(layer.parameters(), None)
            if parameter is not None and parameter.device.type != "meta":
                self._move(index, parameter.device)
                self._device = parameter.device

    def _meet(self, index: int, device: torch.device) -> None:
        """Have a layer's modules where its states are: the layer was moved, or its parameters are offloaded."""
        if self._devices.get(index) != device:
            self._move(index, device)

    def _move(self, index: int, device: torch.device) -> None:
        self.intervention.layers[str(index)].to(device)
        self._devices[index] = device

    def detach(self) -> None:
        """Remove the hooks. The model is then as it was before."""
        self._unhook()
        _STEERED.difference_update(self._layers)
        self._layers = []

    def __enter__(self) -> "Steering":
        if not self._layers:
            raise ValueError("the adapter is detached, so nothing would be steered; call attach() again")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()

    @contextmanager
    def at(self, mask: torch.Tensor) -> Iterator[None]:
        """Steer exactly the positions where ``mask`` (B, T), bool, is True in forward passes over (B, T) positions.

        Pass a mask on the CPU: reading one on a GPU makes the program wait for the GPU.
        """
        before = self._mask, self._rows, self._active
        # The rows are looked up once for all layers; no rows means all of them.
        rows = None if bool(mask.all()) else upload(mask.flatten().nonzero()[:, 0], self._device or mask.device)
        self._mask, self._rows, self._active = mask, rows, True
        try:
            yield
        finally:
            self._mask, self._rows, self._active = before

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Steer nothing, for example while a cache of a prompt prefix is filled or the teacher runs."""
        before, self._active = self._active, False
        try:
            yield
        finally:
            self._active = before

    @contextmanager
    def generating(self, first: int, in_chunks: bool = False) -> Iterator[None]:
        """Steer column ``first`` of the sequence and all later columns, whichever part of it a forward pass contains.

        Args:
            first: counted from 0, padding and cached tokens included.
            in_chunks: the prompt may come in several passes, so that one of a single token may lie before ``first``.
        """
        before, self._first, self._in_chunks = (self._first, self._in_chunks), first, in_chunks
        try:
            yield
        finally:
            self._first, self._in_chunks = before

    def _before(self, index: int) -> Any:
        leads, answer = index == min(self.intervention.sites), self.intervention.positions == "answer"

        def hook(layer: nn.Module, args: tuple, kwargs: Mapping[str, Any]) -> None:
            if self._mask is not None:
                return  # `_rows_of` does not ask
            # Found by what it can do: the argument's name and place differ between families and versions.
            caches = [value for value in (*kwargs.values(), *args) if hasattr(value, "get_seq_length")]
            cache = caches[0] if caches else None
            length = (args[0] if args else kwargs["hidden_states"]).shape[1]
            if self._first is None:
                if leads and cache is not None and not torch.compiler.is_compiling():
                    note_call(cache, index, length, answer, self._active)
                if answer:
                    # Only whether, not how much: torch.compile would make a graph for every length.
                    self._cached[index] = None if cache is None else length == 1 or bool(cache.get_seq_length(index))
            elif answer and (length > 1 or self._in_chunks):
                cached = 0 if cache is None else int(cache.get_seq_length(index))
                self._ahead[index] = min(length, max(0, self._first - cached))
            else:
                self._ahead[index] = 0

        return hook

    def _hooks(self, index: int, site: str, module: nn.Module, layer: nn.Module, inside: Inside | None) -> list[Any]:
        """Put one site module of a layer to work; ``SITES`` of ``dive.steering.base`` says what each is given."""
        if site == "layer":
            return [layer.register_forward_hook(self._after(index, module))]
        if site == "heads":
            return [Listening(inside.attention, self._change(index, module))]
        if site == "projections":
            return [
                inside.projections[name].register_forward_hook(self._beside(index, projection))
                for name, projection in module.items()
            ]
        if site in ("attention", "mlp"):
            return [getattr(inside, site).register_forward_hook(self._after(index, module))]
        raise ValueError(f"{type(module).__name__} acts on {site!r}, which is no site of a decoder layer")

    def _after(self, index: int, module: nn.Module) -> Any:
        def hook(_: nn.Module, args: tuple, output: Any) -> Any:
            if not self._active:
                return None
            hidden = self._steer(index, module, hidden_of(output))
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        return hook

    def _beside(self, index: int, module: nn.Module) -> Any:
        def hook(_: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor | None:
            if not self._active:
                return None
            return self._steer(index, lambda out, given: module(given, out), output, args[0])

        return hook

    def _change(self, index: int, module: nn.Module) -> Any:
        def change(output: torch.Tensor, *attention: Any) -> torch.Tensor:
            if not self._active:
                return output
            self._meet(index, output.device)
            rows = self._rows_of(index, *output.shape[:2], output.device)
            steered = module(Heads(output, *attention, rows))
            flat = output.reshape(-1, *output.shape[2:])
            return (steered if rows is None else flat.index_copy(0, rows, steered)).view_as(output)

        return change

    def _steer(self, index: int, function: Any, target: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        """``target`` (B, T, d) after ``function`` of the steered positions' rows of it and of ``others``."""
        self._meet(index, target.device)
        rows = self._rows_of(index, *target.shape[:2], target.device)
        flat = [tensor.reshape(-1, tensor.shape[-1]) for tensor in (target, *others)]
        if rows is None:
            return function(*flat).view_as(target)
        return flat[0].index_copy(0, rows, function(*[tensor[rows] for tensor in flat])).view_as(target)

    def _rows_of(self, index: int, n_batch: int, length: int, device: torch.device) -> torch.Tensor | None:
        """Which of the B * T positions of a forward pass are steered; None for all of them."""
        if self._mask is not None:
            if self._mask.shape != (n_batch, length):
                raise ValueError(
                    f"the mask of steered positions is {tuple(self._mask.shape)}, the states {(n_batch, length)}"
                )
            return None if self._rows is None else self._rows.to(device)
        if self.intervention.positions == "all":
            return None
        if self._first is not None:
            if (ahead := self._ahead[index]) == 0:
                return None
            columns = torch.arange(ahead, length, device=device)
            return (torch.arange(0, n_batch * length, length, device=device)[:, None] + columns).flatten()
        if length == 1:
            return None
        if self._cached[index] is None:
            raise RuntimeError(
                "without a key-value cache it is not known which positions belong to the prompt: "
                "call the model with use_cache=True, or name the positions with Steering.at(mask)"
            )
        if self._cached[index]:
            return None
        return torch.arange(length - 1, n_batch * length, length, device=device)


def _refuse_steered(modules: Iterable[nn.Module]) -> None:
    if any(module in _STEERED for module in modules):
        raise ValueError("the model is steered already; call detach() on what attach returned first")


def attach(
    model: Any,
    adapter: str | Path | Intervention,
    layers: Sequence[nn.Module] | None = None,
    strict: bool = True,
    revision: str | None = None,
) -> SteeredModel:
    """Steer ``model`` with a trained adapter, in ``generate`` and in plain calls.

    Example::

        model = attach(AutoModelForImageTextToText.from_pretrained(...), "results/adapters/.../seed0")
        model.generate(**inputs, do_sample=False)  # steered
        model = model.detach()  # the model as it was before

        with attach(model, "user/repository") as steered:  # an adapter on the Hugging Face hub
            steered.generate(**inputs, do_sample=False)

    ``generate`` steers the positions from the prompt's last token on. The result equals one pass over the whole
    sequence for greedy, sampled and beam search, prompt lookup, assistant models, chunked prefill, caches of a prefix,
    static caches, no cache, left padding, and multi-turn chats. Other ways of decoding are refused with an error.

    Args:
        model: an image-text-to-text model of transformers.
        adapter: an adapter folder, the name of a repository on the Hugging Face hub, or an intervention. Only JSON and
            safetensors files of a folder are read, and no code in it is run.
        layers: the model's decoder layers; by default they are found by running the model on two tokens.
        strict: refuse an adapter that was trained on other weights. False allows a quantised copy of the backbone.
        revision: branch, tag or commit of the repository on the hub.

    Raises:
        ValueError: the folder is not an adapter or belongs to another model (the message says what differs), the model
            is steered already, or its weights are not loaded.
    """
    if type(model) is SteeredModel:  # of a steering that has ended, or it is refused
        model = model.model
    _refuse_steered(model.modules())
    layers = find_decoder_layers(model) if layers is None else layers
    if isinstance(adapter, Intervention):
        intervention = adapter
    else:
        intervention = load_adapter(fetch_adapter(adapter, revision), model, layers, strict)
    if intervention.sites and max(intervention.sites) >= len(layers):
        raise ValueError(f"the adapter steers layer {max(intervention.sites)}; the model has {len(layers)}")
    inside = look_inside(model, layers) if intervention.acts_inside else None
    return SteeredModel(model, Steering(layers, intervention.eval(), inside, model))
