"""Demonstrations that many prompts begin with: their keys and values are computed once, and kept once for any batch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

from dive.backbones.prompts import Prompt


@dataclass(frozen=True)
class Shared:
    """What all prompts have in common, up to the query's image.

    Attributes:
        length: P, number of tokens.
        images: number of demonstrations.
        keys, values: of each layer (1, heads, P, h); of a sliding layer only the last window - 1 positions, which
            are all that later positions see.
        sliding: whether each layer is a sliding one.
    """

    length: int
    images: int
    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    sliding: list[bool]

    def new_cache(self) -> "SharedCache":
        """A cache that begins with these tokens in every row, for a batch of any size."""
        return SharedCache(self)


class SharedCache(Cache):
    """A cache whose rows begin with the same tokens.

    What follows them in the rows is left-padded, so that padding lies between the two; nothing of it is dropped in
    sliding layers, whose masks count real tokens (`Backbone.prefill`, `Backbone.extend`).
    """

    def __init__(self, shared: Shared) -> None:
        parts = zip(shared.keys, shared.values, shared.sliding, strict=True)
        super().__init__(layers=[SharedLayer(shared.length, *part) for part in parts])
        self.shared_length = shared.length
        self.dropped = shared.length - min(keys.shape[-2] for keys in shared.keys)  # by sliding layers


class SharedLayer(DynamicLayer):
    """One layer of a `SharedCache`: ``keys`` and ``values`` are the rows' own, (B, heads, S, h).

    The shared ones are only repeated for the batch while their layer runs, so that memory holds them once. Decoding,
    whose steps are to move nothing, puts them in every row (``dive.backbones.steps.Reserved``).
    """

    def __init__(self, length: int, keys: torch.Tensor, values: torch.Tensor, sliding: bool) -> None:
        super().__init__()
        self.length, self.shared_keys, self.shared_values, self.is_sliding = length, keys, values, sliding
        self.dtype, self.device = keys.dtype, keys.device

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append (B, heads, new, h) to the rows; all keys and values, the shared ones first."""
        if self.is_initialized:
            key_states = torch.cat([self.keys, key_states], dim=-2)
            value_states = torch.cat([self.values, value_states], dim=-2)
        self.keys, self.values, self.is_initialized = key_states, value_states, True
        return self.whole

    @property
    def whole(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of all rows, the shared ones first."""
        rows = (len(self.keys), -1, -1, -1)
        return (
            torch.cat([self.shared_keys.expand(rows), self.keys], dim=-2),
            torch.cat([self.shared_values.expand(rows), self.values], dim=-2),
        )

    def get_seq_length(self, *_: Any) -> int:
        """Positions so far, the shared ones and those that a sliding layer has dropped of them included."""
        return self.length + (self.keys.shape[-2] if self.is_initialized else 0)


def common_length(prompts: Sequence[Prompt], image_token_id: int, n_query: int) -> int:
    """Number of tokens before the query's image, where all prompts begin with the same demonstrations; else 0.

    Args:
        prompts: any number of them.
        image_token_id: of the model.
        n_query: image tokens of the first prompt's query.
    """
    first = prompts[0]
    shown = first.images[:-1]
    if not shown or any(prompt.images[:-1] != shown for prompt in prompts):
        return 0
    last = len(first.ids) - 1 - first.ids[::-1].index(image_token_id)
    length = last + 1 - n_query
    # With the same demonstrations, equal tokens hold all of their image tokens, and so none of any query's.
    return length if all(prompt.ids[:length] == first.ids[:length] for prompt in prompts) else 0
