"""What decoder layers and their parts put out in a forward pass, recorded as it runs."""

from collections.abc import Sequence
from types import TracebackType
from typing import Any

import torch
from torch import nn

from dive.backbones.layers import hidden_of, states_at
from dive.steering.attention import Inside, Listening

SITES = ("layer", "attention", "mlp", "heads")


class Recording:
    """Outputs of the last forward pass, by site, while a ``with`` block lasts.

    Begun after a ``Steering``, it records what the steering made of the outputs. Gradients are kept.

    Args:
        layers: decoder layers.
        sites: of ``layer`` (the layer's output), ``attention``, ``mlp`` (of that sub-module) and ``heads`` (the heads
            before the output projection, one after another; not while heads are steered).
        inside: parts of the layers, from ``look_inside``; not needed for ``layer`` alone.
    """

    def __init__(
        self, layers: Sequence[nn.Module], sites: Sequence[str] = ("layer",), inside: Sequence[Inside] | None = None
    ) -> None:
        if unknown := set(sites) - set(SITES):
            raise ValueError(f"nothing to record at {min(unknown)!r}; sites are {', '.join(SITES)}")
        self._layers, self._sites, self._inside = layers, tuple(sites), inside
        self._states: dict[tuple[str, int], torch.Tensor] = {}

    def __enter__(self) -> "Recording":
        self._handles: list[Any] = []
        for index, layer in enumerate(self._layers):
            for site in self._sites:
                if site == "heads":
                    self._handles.append(Listening(self._inside[index].attention, self._keep_heads(index)))
                else:
                    module = layer if site == "layer" else getattr(self._inside[index], site)
                    self._handles.append(module.register_forward_hook(self._keep(site, index)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._states = {}

    def _keep(self, site: str, index: int) -> Any:
        def hook(module: nn.Module, args: tuple, output: Any) -> None:
            self._states[site, index] = hidden_of(output)

        return hook

    def _keep_heads(self, index: int) -> Any:
        def change(output: torch.Tensor, *_: Any) -> torch.Tensor:
            self._states["heads", index] = output.flatten(2)
            return output

        return change

    def at(self, mask: torch.Tensor, site: str = "layer") -> torch.Tensor:
        """States of all layers where ``mask`` (B, T) is True: (L, N, width), for ``heads`` (L, N, H h)."""
        return torch.stack([states_at(self._states[site, index], mask) for index in range(len(self._layers))])
