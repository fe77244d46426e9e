"""Steer a model from outside: hooks on decoder layers or inside them, and nothing left behind when they are removed."""

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
from dive.steering.adapters import load_adapter
from dive.steering.attention import Heads, Inside, Listening, look_inside
from dive.steering.base import Intervention

# Layers that a Steering is on. Two at once would feed one the states that the other made, which no training saw.
_STEERED: WeakSet[nn.Module] = WeakSet()


class Steering:
    """An intervention at work on decoder layers, until ``detach`` (or the end of a ``with`` block).

    Which positions are steered:

    - in ``with steering.at(mask)``: those of the mask;
    - in ``with steering.paused()``: none;
    - otherwise by the rule of generation, which plain ``generate`` calls need, since they pass no mask to layers: of
      several new positions on an empty cache (a prompt, padded on the left) only the last one, which predicts y_1; on
      a filled cache, all new ones. An intervention with ``positions: all`` steers every position.

    Args:
        layers: decoder layers of the model, in order.
        intervention: moved to the devices of the layers that it steers.
        inside: parts of all layers, from ``look_inside``; needed where the intervention acts inside them.

    Raises:
        ValueError: a layer is steered already, or its parts are needed and not given.
    """

    def __init__(
        self, layers: Sequence[nn.Module], intervention: Intervention, inside: Sequence[Inside] | None = None
    ) -> None:
        self.intervention = intervention
        self._active = True
        self._mask: torch.Tensor | None = None
        self._rows: torch.Tensor | None = None
        self._cached: dict[int, bool | None] = {}
        self._handles: list[Any] = []
        self._layers = [layers[index] for index in intervention.sites]
        self._device: torch.device | None = None
        _refuse_steered(self._layers)
        if intervention.acts_inside and inside is None:
            raise ValueError(
                "this intervention acts inside the layers: give their parts, from look_inside(model, layers)"
            )
        for index, layer in zip(intervention.sites, self._layers, strict=True):
            _STEERED.add(layer)
            if (parameter := next(layer.parameters(), None)) is not None:
                intervention.layers[str(index)].to(parameter.device)
                self._device = parameter.device
            self._handles.append(layer.register_forward_pre_hook(self._before(index), with_kwargs=True))
            for site, module in intervention.at(index).items():
                parts = None if inside is None else inside[index]
                self._handles += self._hooks(index, site, module, layer, parts)

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
        """Steer exactly the positions where ``mask`` (B, T), bool, is True in forward passes over (B, T) positions.

        Give the mask on the CPU: one on a GPU has to be waited for.
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
        """Steer nothing: prompt prefixes, the teacher."""
        before, self._active = self._active, False
        try:
            yield
        finally:
            self._active = before

    def _before(self, index: int) -> Any:
        def hook(layer: nn.Module, args: tuple, kwargs: Mapping[str, Any]) -> None:
            if self._mask is not None or self.intervention.positions == "all":
                return  # `_rows_of` does not ask
            # Found by what it can do: the argument's name and place differ between families and versions.
            caches = [value for value in (*kwargs.values(), *args) if hasattr(value, "get_seq_length")]
            # Only whether, not how much: torch.compile would make a graph for every length.
            self._cached[index] = bool(caches[0].get_seq_length(index)) if caches else None

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
            rows = self._rows_of(index, *output.shape[:2], output.device)
            steered = module(Heads(output, *attention, rows))
            flat = output.reshape(-1, *output.shape[2:])
            return (steered if rows is None else flat.index_copy(0, rows, steered)).view_as(output)

        return change

    def _steer(self, index: int, function: Any, target: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        """``target`` (B, T, d) after ``function`` of the steered positions' rows of it and of ``others``."""
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
            return self._rows
        if self.intervention.positions == "all" or length == 1:
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
    inside = look_inside(model, layers) if intervention.acts_inside else None
    return SteeredModel(model, Steering(layers, intervention.eval(), inside))
