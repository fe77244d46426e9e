"""Decoding one token after another: room for the tokens to come, and on a GPU steps that are recorded and replayed."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from typing import Any

import torch
from torch.nn import functional as F
from transformers.cache_utils import DynamicLayer

from dive.backbones.loading import Backbone
from dive.backbones.shared import SharedLayer
from dive.replay import Replay

WORTH_RECORDING = 8
"""Steps from which on recording one pays: it takes about as long as three."""


class Reserved(DynamicLayer):
    """Keys and values of one layer with room for all tokens to come, so that a step writes one of them and moves none.

    transformers' own layers join old and new in every step, which at K demonstrations costs more than the model.

    Args:
        layer: what the prompts left, of a full or sliding layer; what they share is from now on in every row.
        room: tokens that may follow.
    """

    def __init__(self, layer: Any, room: int) -> None:
        super().__init__()
        # A shared layer drops nothing: padding in its rows would take places in the window.
        self.window = getattr(layer, "sliding_window", None)
        self.is_sliding = layer.is_sliding
        self.seen = layer.get_seq_length()
        whole = layer.whole if isinstance(layer, SharedLayer) else (layer.keys, layer.values)
        self.n = whole[0].shape[-2]
        self.buffers = [F.pad(states, (0, 0, 0, room)) for states in whole]
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keep the new states (B, H, n, h); keys and values that they may look at, as views."""
        begin = 0 if self.window is None else max(0, self.n - self.window + 1)
        n_new = key_states.shape[-2]
        for buffer, states in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[:, :, self.n : self.n + n_new] = states
        self.n, self.seen = self.n + n_new, self.seen + n_new
        keys, values = (buffer[:, :, begin : self.n] for buffer in self.buffers)
        return keys, values

    def get_seq_length(self) -> int:
        return self.seen

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        self.buffers = [buffer[indices] for buffer in self.buffers]


class _Fixed(DynamicLayer):
    """The buffers of a `Reserved` layer at shapes that never change: returned whole, while a mask hides the rest.

    Args:
        layer: whose buffers are written.
        place: (1,) int64, on the device: where the next token goes.
    """

    def __init__(self, layer: Reserved, place: torch.Tensor) -> None:
        super().__init__()
        self.buffers, self.place, self.seen = layer.buffers, place, layer.seen
        self.is_sliding, self.is_initialized = layer.is_sliding, True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        for buffer, states in zip(self.buffers, (key_states, value_states), strict=True):
            buffer.index_copy_(2, self.place, states)
        keys, values = self.buffers
        return keys, values

    def get_seq_length(self) -> int:
        return self.seen


class Steps:
    """A batch of prompts in their cache, continued by one token a call.

    Args:
        backbone: steered where a handle of ``dive.steering.attach`` is active on it.
        cache: filled by the prompts.
        mask: (B, T) bool over the cached positions, True at real tokens.
        position: (B,) of the first new token.
        room: tokens that may follow.
    """

    few = 7 / 8
    """Finished reports should leave the batch when no more than this share still runs: leaving copies the cache."""

    ahead = False
    """Whether to take a step before the tokens of the last one are read, so that a GPU does not wait for a CPU to read
    them. The last step of a batch may then be one too many."""

    def __init__(self, backbone: Backbone, cache: Any, mask: torch.Tensor, position: torch.Tensor, room: int) -> None:
        cache.layers = [Reserved(layer, room) for layer in cache.layers]
        self.backbone, self.cache, self.position = backbone, cache, position
        self.n = cache.get_seq_length()
        # Shared tokens come before the rows' own, and are real.
        self.mask = F.pad(F.pad(mask, (self.n - mask.shape[1], 0), value=True), (0, room), value=True)

    def __call__(self, token: torch.Tensor) -> torch.Tensor:
        """Final normed states (B, width) after one more token (B,), which predict the next one."""
        self.n += 1
        mask = self.mask[:, : self.n]
        hidden = self.backbone.extend(token[:, None], mask, self.position, self.cache)
        self.position = self.position + 1
        return hidden[:, -1]

    def keep(self, rows: torch.Tensor) -> None:
        """Go on with some rows of the batch alone."""
        self.cache.batch_select_indices(rows)
        self.mask, self.position = self.mask[rows], self.position[rows]


class RecordedSteps(Steps):
    """`Steps` whose kernels are recorded once, as a CUDA graph, and replayed.

    A step of decoding is some thousand small kernels, and a CPU needs many times as long to launch them as a GPU to run
    them. A replay launches them all at once. It repeats the same addresses and shapes, so that every step reads the
    whole buffers, under a mask. On a device without graphs the same step at fixed shapes runs as it is.
    """

    few = 1 / 2  # a smaller batch is recorded anew
    ahead = True

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._ids: torch.Tensor | None = None
        self._replay: Replay | None = None

    def __call__(self, token: torch.Tensor) -> torch.Tensor:
        if self._ids is None:
            self._record(token)
        self._ids.copy_(token[:, None])
        hidden = self._replay()
        self.n, self.position = self.n + 1, self.position + 1
        for layer in self.cache.layers:
            layer.n, layer.seen = layer.n + 1, layer.seen + 1
        return hidden

    def keep(self, rows: torch.Tensor) -> None:
        super().keep(rows)
        self._ids = None

    def _record(self, token: torch.Tensor) -> None:
        """Fix the shapes of a step, from where the batch is now."""
        backbone, ids = self.backbone, token[:, None].clone()
        position, seen = self.position.clone(), self.mask.clone()
        seen[:, self.n :] = False
        # A sliding layer has dropped the first positions, so that its next place is another one.
        drops = [layer.seen - layer.n for layer in self.cache.layers]
        places = {drop: torch.tensor([self.n - drop], device=seen.device) for drop in {0, *drops}}
        cache = copy(self.cache)
        cache.layers = [_Fixed(layer, places[drop]) for layer, drop in zip(self.cache.layers, drops, strict=True)]
        cache.dropped = max(drops)

        def step() -> torch.Tensor:
            seen.index_fill_(1, places[0], True)
            with grouped_queries():
                hidden = backbone.extend(ids, seen, position, cache)[:, -1]
            for number in (position, *places.values()):
                number.add_(1)
            return hidden

        self._ids = ids
        self._replay = Replay(step, [seen, position, *places.values()], seen.device, self._replay)


@contextmanager
def grouped_queries() -> Iterator[None]:
    """While it lasts, attention of one new position reads keys and values as they are.

    Several query heads share a head of keys and values. Under a mask transformers copies keys and values for each of
    them, which at one query costs as much as all weights. Here the query heads of a group are the positions of one
    head. Where a method listens to attention (`dive.steering.attention`), its own function is left alone.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    def attend(
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        **settings: Any,
    ) -> tuple[torch.Tensor, None]:
        n_batch, heads, length, size = query.shape
        if length != 1 or heads == key.shape[1] or (mask is not None and mask.shape[1] != 1):
            return sdpa_attention_forward(module, query, key, value, mask, **settings)
        grouped = query.reshape(n_batch, key.shape[1], -1, size)
        out = F.scaled_dot_product_attention(grouped, key, value, attn_mask=mask, scale=settings.get("scaling"))
        return out.reshape(n_batch, 1, heads, size), None

    if ALL_ATTENTION_FUNCTIONS["sdpa"] is not sdpa_attention_forward:
        yield
        return
    ALL_ATTENTION_FUNCTIONS.register("sdpa", attend)
    try:
        yield
    finally:
        ALL_ATTENTION_FUNCTIONS.register("sdpa", sdpa_attention_forward)


def steps_for(backbone: Backbone, cache: Any, mask: torch.Tensor, position: torch.Tensor, room: int) -> Steps:
    """`RecordedSteps` on a CUDA device, where more than a few steps are to come; plain `Steps` elsewhere."""
    recorded = backbone.device.type == "cuda" and room >= WORTH_RECORDING
    return (RecordedSteps if recorded else Steps)(backbone, cache, mask, position, room)
