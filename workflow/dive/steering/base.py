"""What every steering method is: a small module per decoder layer that maps the layer's output to another one."""

import importlib
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dive.data.draws import stream
from dive.steering.attention import AttentionShape

POSITIONS = ("answer", "all")

SITES = ("layer", "heads", "attention", "mlp", "projections")
"""Where in a decoder layer a site module acts; what it is given and returns (N steered positions, width d):

- ``layer``: the layer's output, (N, d) -> (N, d);
- ``attention``, ``mlp``: the output of that sub-module, (N, d) -> (N, d);
- ``heads``: the heads before the output projection, ``dive.steering.attention.Heads`` -> (N, H, h);
- ``projections``: the attention's linear modules; a mapping from their names to modules (input (N, d_in), output
  (N, d_out)) -> (N, d_out).
"""


class Intervention(nn.Module):
    """Steering modules of the steered layers, by layer index.

    A method is one module of this package (``dive/steering/<module>.py``) with a function
    ``build(n_layers, width, method, seed) -> Intervention`` and a literal ``OPTIONS`` that says which settings of its
    own it reads (``dive.settings``); it is found by name, so no registry imports it. One that acts inside attention has
    ``build(n_layers, width, method, seed, shape)`` with the attention's shape. See docs/adding-a-method.md.

    Args:
        sites: layer index -> module that maps hidden states (N, width) to (N, width) of the same dtype. A module that
            acts elsewhere says where in its attribute ``site`` (see ``SITES``); several of one layer are an
            ``nn.ModuleDict`` from site to module.
        positions: ``answer`` (from the last prompt token on, which predicts y_1) or ``all``.
        decayed: names of the parameters that weight decay applies to, as the site modules call them.

    Attributes:
        folder: the adapter folder that it was read from; None where it was built.
        config: that folder's ``config.json``.

    Raises:
        ValueError: unknown kind of positions.
    """

    def __init__(
        self, sites: Mapping[int, nn.Module], positions: str = "answer", decayed: frozenset[str] = frozenset()
    ) -> None:
        super().__init__()
        if positions not in POSITIONS:
            raise ValueError(f"methods.*.positions is {positions!r}; it must be one of {', '.join(POSITIONS)}")
        self.layers = nn.ModuleDict({str(index): module for index, module in sites.items()})
        self.positions = positions
        self.decayed = decayed
        self.folder: Path | None = None
        self.config: dict[str, Any] | None = None

    @property
    def sites(self) -> list[int]:
        """Indices of the steered layers."""
        return [int(index) for index in self.layers]

    def at(self, layer: int) -> dict[str, nn.Module]:
        """The site modules of a layer, by where they act (``SITES``)."""
        module = self.layers[str(layer)]
        if isinstance(module, nn.ModuleDict):
            return dict(module.items())
        return {getattr(module, "site", "layer"): module}

    @property
    def acts_inside(self) -> bool:
        """Whether it acts elsewhere than on the layers' outputs, so that the parts of the layers must be known."""
        return any(site != "layer" for index in self.sites for site in self.at(index))

    @property
    def n_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())

    def forward(self, layer: int, hidden: torch.Tensor) -> torch.Tensor:
        """Steered outputs of ``layer`` (N, width) -> (N, width), where the site is the layer's output."""
        return self.layers[str(layer)](hidden)

    def parameter_groups(self, optimiser: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Groups for ``torch.optim.AdamW``: weight decay only where the method has it, an own rate where it is given.

        Args:
            optimiser: ``methods.<name>.optimiser``: lr, weight_decay, and optionally ``lr_<parameter>`` (LIVE's
                ``lr_a``).

        Raises:
            ValueError: ``lr_<parameter>`` names no parameter of this method.
        """
        own = {key.removeprefix("lr_"): rate for key, rate in optimiser.items() if key.startswith("lr_")}
        groups: dict[str, dict[str, Any]] = {}
        for name, parameter in self.named_parameters():
            leaf = name.rpartition(".")[2]
            group = groups.setdefault(
                leaf,
                {
                    "params": [],
                    "name": leaf,
                    "lr": float(own.get(leaf, optimiser["lr"])),
                    "weight_decay": float(optimiser.get("weight_decay", 0.0)) if leaf in self.decayed else 0.0,
                },
            )
            group["params"].append(parameter)
        if unknown := set(own) - set(groups):
            raise ValueError(
                f"methods.*.optimiser has lr_{min(unknown)}, but the method's parameters are {', '.join(groups)}"
            )
        return list(groups.values())


def build_intervention(
    method: Mapping[str, Any], n_layers: int, width: int, seed: int, shape: Callable[[], AttentionShape] | None = None
) -> Intervention:
    """Build the untrained intervention that ``methods.<name>`` describes, by the module it names.

    Args:
        method: ``module`` (a file of this package) and whatever that module reads.
        n_layers: decoder layers of the backbone.
        width: d, width of their hidden states.
        seed: fixes the initial values.
        shape: gives the attention's shape; called only for a method that acts inside attention.

    Raises:
        ValueError: the module does not exist or is no steering method, or it needs a shape that is not given.
    """
    module = _module_of(method)
    build = getattr(module, "build", None)
    if build is None:
        raise ValueError(f"methods.*.module is {method['module']!r}, which is no steering method of dive/steering/")
    if "shape" not in inspect.signature(build).parameters:
        return build(n_layers, width, method, seed)
    if shape is None:
        raise ValueError(f"{method['module']} acts inside attention: give the attention's shape")
    return build(n_layers, width, method, seed, shape())


def fit_of(method: Mapping[str, Any]) -> Callable[[Intervention, Any], None] | None:
    """``fit(intervention, examples)`` of the module that a method names, where it has one.

    It sets the intervention's values from states of the training queries, before any training.
    """
    return getattr(_module_of(method), "fit", None)


def _module_of(method: Mapping[str, Any]) -> Any:
    name = str(method.get("module"))
    try:
        # Only a plain name, so that a foreign adapter folder cannot lead to another package's code.
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
            raise ModuleNotFoundError(name)
        return importlib.import_module(f"dive.steering.{name}")
    except ModuleNotFoundError as error:
        raise ValueError(f"methods.*.module is {name!r}, which is no steering method of dive/steering/") from error


def steered_layers(layers: str | Sequence[int], n_layers: int) -> list[int]:
    """Indices of the layers to steer: ``all`` or a list, counted from 0.

    Raises:
        ValueError: an index is given twice or does not exist.
    """
    if layers == "all":
        return list(range(n_layers))
    if isinstance(layers, str) or not layers or len(set(layers)) != len(layers):
        raise ValueError(f"methods.*.layers is {layers!r}; give 'all' or a list of different layer indices")
    if not all(isinstance(index, int) and 0 <= index < n_layers for index in layers):
        raise ValueError(f"methods.*.layers is {layers!r}, but the backbone's layers are 0 to {n_layers - 1}")
    return sorted(layers)


def torch_stream(seed: int, *names: str | int) -> torch.Generator:
    """``stream`` for torch: a CPU generator."""
    return torch.Generator().manual_seed(int(stream(seed, *names).integers(2**63)))
