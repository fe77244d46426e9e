"""Steer a model from outside: forward hooks on its decoder layers, and nothing left behind when they are removed."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any
from weakref import WeakSet

import torch
from torch import nn

from dive.backbones.layers import find_decoder_layers, hidden_of
from dive.steering.adapters import load_adapter
from dive.steering.base import Intervention

# Layers that a Steering is on. Two at once would feed one the states that the other made, which no training saw.
_STEERED: WeakSet[nn.Module] = WeakSet()


class Steering:
    """An intervention at work on the outputs of decoder layers, until ``detach`` (or the end of a ``with`` block).

    Which positions are steered:

    - in ``with steering.at(mask)``: those of the mask;
    - in ``with steering.paused()``: none;
    - otherwise by the rule of generation, which plain ``generate`` calls need, since they pass no mask to layers: of
      several new positions on an empty cache (a prompt, padded on the left) only the last one, which predicts y_1; on
      a filled cache, all new ones. An intervention with ``positions: all`` steers every position.

    Args:
        layers: decoder layers of the model, in order.
        intervention: moved to the devices of the layers that it steers.

    Raises:
        ValueError: a layer is steered already.
    """

    def __init__(self, layers: Sequence[nn.Module], intervention: Intervention) -> None:
        self.intervention = intervention
        self._active = True
        self._mask: torch.Tensor | None = None
        self._rows: torch.Tensor | None = None
        self._cached: dict[int, int | None] = {}
        self._handles = []
        self._layers = [layers[index] for index in intervention.sites]
        _refuse_steered(self._layers)
        for index, layer in zip(intervention.sites, self._layers, strict=True):
            _STEERED.add(layer)
            if (parameter := next(layer.parameters(), None)) is not None:
                intervention.layers[str(index)].to(parameter.device)
            self._handles += [
                layer.register_forward_pre_hook(self._before(index), with_kwargs=True),
                layer.register_forward_hook(self._after(index)),
            ]

    def detach(self) -> None:
        """Remove the hooks: the model is what it was."""
        for handle in self._handles:
            handle.remove()
        _STEERED.difference_update(self._layers)
        self._handles, self._layers = [], []

    def __enter__(self) -> "Steering":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()

    @contextmanager
    def at(self, mask: torch.Tensor) -> Iterator[None]:
        """Steer exactly the positions where ``mask`` (B, T), bool, is True in forward passes over (B, T) positions."""
        before = self._mask, self._rows, self._active
        # The rows are looked up once for all layers; no rows means all of them.
        rows = None if bool(mask.all()) else mask.flatten().nonzero()[:, 0]
        self._mask, self._rows, self._active = mask, rows, True
        try:
            yield
        finally:
            self._mask, self._rows, self._active = before

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Steer nothing: prompt prefixes, the teacher."""
        before, self._active = self._active, False
        try:
            yield
        finally:
            self._active = before

    def _before(self, index: int) -> Any:
        def hook(layer: nn.Module, args: tuple, kwargs: Mapping[str, Any]) -> None:
            # Found by what it can do: the argument's name and place differ between families and versions.
            caches = [value for value in (*kwargs.values(), *args) if hasattr(value, "get_seq_length")]
            self._cached[index] = int(caches[0].get_seq_length(index)) if caches else None

        return hook

    def _after(self, index: int) -> Any:
        def hook(layer: nn.Module, args: tuple, output: Any) -> Any:
            if not self._active:
                return None
            hidden = self._steer(index, hidden_of(output))
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        return hook

    def _steer(self, index: int, hidden: torch.Tensor) -> torch.Tensor:
        flat = hidden.reshape(-1, hidden.shape[-1])
        if self._mask is not None:
            if self._mask.shape != hidden.shape[:2]:
                raise ValueError(
                    f"the mask of steered positions is {tuple(self._mask.shape)}, the states {tuple(hidden.shape[:2])}"
                )
            if self._rows is None:
                return self.intervention(index, flat).view_as(hidden)
            steered = self.intervention(index, flat[self._rows])
            return flat.index_copy(0, self._rows, steered).view_as(hidden)
        if self.intervention.positions == "all" or hidden.shape[1] == 1:
            return self.intervention(index, flat).view_as(hidden)
        if self._cached[index] is None:
            raise RuntimeError(
                "without a key-value cache it is not known which positions belong to the prompt: "
                "call the model with use_cache=True, or name the positions with Steering.at(mask)"
            )
        if self._cached[index]:
            return self.intervention(index, flat).view_as(hidden)
        return torch.cat([hidden[:, :-1], self.intervention(index, hidden[:, -1])[:, None]], dim=1)


def _refuse_steered(modules: Iterable[nn.Module]) -> None:
    if any(module in _STEERED for module in modules):
        raise ValueError("the model is steered already; call detach() on what attach returned first")


class SteeredModel:
    """A model and the steering on it; every attribute but ``detach`` and ``steering`` is the model's own."""

    def __init__(self, model: Any, steering: Steering) -> None:
        self.__dict__.update(model=model, steering=steering)

    def detach(self) -> Any:
        """Remove the steering and return the model, exactly as it was."""
        self.steering.detach()
        return self.model

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["model"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.model, name, value)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs)


def attach(
    model: Any,
    adapter: str | Path | Intervention,
    layers: Sequence[nn.Module] | None = None,
    strict: bool = True,
) -> SteeredModel:
    """Steer ``model`` with a trained adapter, in ``generate`` as in a plain call.

    Example::

        model = attach(AutoModelForImageTextToText.from_pretrained(...), "results/adapters/.../seed0")
        model.generate(**inputs)  # steered: greedy, sampled or beam search, left padding, continued chats
        model = model.detach()  # the model as it was

    Args:
        model: an image-text-to-text model of transformers.
        adapter: an adapter folder, or an intervention.
        layers: the model's decoder layers where they are known; found by running two tokens otherwise.
        strict: refuse an adapter that was trained on other weights; False for a quantised copy of the same backbone.

    Raises:
        ValueError: the folder is no adapter, or not one for this model (the message says what differs), or the model is
            steered already.
    """
    _refuse_steered(model.modules())
    layers = find_decoder_layers(model) if layers is None else layers
    intervention = adapter if isinstance(adapter, Intervention) else load_adapter(adapter, model, layers, strict)
    if intervention.sites and max(intervention.sites) >= len(layers):
        raise ValueError(f"the adapter steers layer {max(intervention.sites)}; the model has {len(layers)}")
    return SteeredModel(model, Steering(layers, intervention.eval()))
