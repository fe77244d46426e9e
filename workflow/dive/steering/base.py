"""What every steering method is: a small module per decoder layer that maps the layer's output to another one."""

import importlib
import re
from collections.abc import Mapping, Sequence
from typing import Any
from zlib import crc32

import numpy as np
import torch
from torch import nn

POSITIONS = ("answer", "all")


class Intervention(nn.Module):
    """Steering modules of the steered layers, by layer index.

    A method is one module of this package (``dive/steering/<module>.py``) with a function
    ``build(n_layers, width, method, seed) -> Intervention`` and a literal ``SETTINGS`` that says which settings of
    its own it reads (``dive.config``); it is found by name, so no registry imports it. See docs/adding-a-method.md.

    Args:
        sites: layer index -> module that maps hidden states (N, width) to (N, width) of the same dtype.
        positions: ``answer`` (from the last prompt token on, which predicts y_1) or ``all``.
        decayed: names of the parameters that weight decay applies to, as the site modules call them.

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

    @property
    def sites(self) -> list[int]:
        """Indices of the steered layers."""
        return [int(index) for index in self.layers]

    @property
    def n_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())

    def forward(self, layer: int, hidden: torch.Tensor) -> torch.Tensor:
        """Steered hidden states of ``layer``: (N, width) -> (N, width), same dtype."""
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


def build_intervention(method: Mapping[str, Any], n_layers: int, width: int, seed: int) -> Intervention:
    """Build the untrained intervention that ``methods.<name>`` describes, by the module it names.

    Args:
        method: ``module`` (a file of this package) and whatever that module reads.
        n_layers: decoder layers of the backbone.
        width: d, width of their hidden states.
        seed: fixes the initial values.

    Raises:
        ValueError: the module does not exist or is no steering method.
    """
    name = str(method.get("module"))
    try:
        # Only a plain name, so that a foreign adapter folder cannot lead to another package's code.
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
            raise ModuleNotFoundError(name)
        build = importlib.import_module(f"dive.steering.{name}").build
    except (ModuleNotFoundError, AttributeError) as error:
        raise ValueError(f"methods.*.module is {name!r}, which is no steering method of dive/steering/") from error
    return build(n_layers, width, method, seed)


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


def stream(seed: int, *names: str | int) -> np.random.Generator:
    """Random numbers of one purpose: ``stream(seed, "order", epoch)`` shares nothing with ``stream(seed, "init")``."""
    return np.random.default_rng([seed, *(crc32(str(name).encode()) for name in names)])


def torch_stream(seed: int, *names: str | int) -> torch.Generator:
    """``stream`` for torch: a CPU generator."""
    return torch.Generator().manual_seed(int(stream(seed, *names).integers(2**63)))
