"""Adapter folders: a trained intervention with all that is needed to check and to use it."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from dive.files import check_digests, read_json, sha256, write_json
from dive.progress import log
from dive.steering.attention import look_inside
from dive.steering.base import Intervention, build_intervention

FORMAT = "dive-adapter/1"
WEIGHTS = "adapter.safetensors"

PARTS = {
    "layer": "the outputs",
    "heads": "the attention heads",
    "attention": "the attention outputs",
    "mlp": "the MLP outputs",
    "projections": "the attention projections",
}

CARD = """---
library_name: dive
pipeline_tag: image-text-to-text
tags: [steering, in-context-vector-distillation, radiology-report-generation]
{base_model}---

# {title} on {backbone}

Steering of the frozen backbone `{backbone}` for writing radiology reports: method `{module}`, {parameters:,} parameters
on {parts} of decoder layers {sites}, steered positions: {positions}. The backbone itself is unchanged.
Trained on {queries} studies of {dataset}.

```python
from dive.steering import attach

model = attach(AutoModelForImageTextToText.from_pretrained("{backbone}"), "<this folder>")
model.generate(**inputs)
model = model.detach()
```

- `adapter.safetensors`: the parameters, float32.
- `config.json`: method, steered layers, backbone (checked when the folder is loaded), versions, training data by name.
- `training.csv`, `validation.csv`: the course of training; the kept state has the least cross-entropy of report and
  terminator on validation studies (epoch {epoch}).

For research on report generation. Reports of this model are not checked by a radiologist and must not guide care; they
inherit the limits of the backbone and of the reports it was distilled on. The training data may forbid redistribution.
"""


def weights_digest(layers: Sequence[nn.Module]) -> str:
    """Fingerprint of a backbone's weights: a hash over the first 64 numbers of each parameter of each decoder layer.

    They are rounded to bfloat16 first, so that a model has one fingerprint in float32 and in bfloat16.
    """
    digest = hashlib.sha256()
    for layer in layers:
        heads = [p.detach().flatten()[:64] for p in layer.parameters() if p.is_floating_point()]
        digest.update(torch.cat([head.to("cpu", torch.bfloat16) for head in heads]).view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]


def describe_backbone(
    model: Any, layers: Sequence[nn.Module], source: str, revision: str | None = None
) -> dict[str, Any]:
    """What an adapter records of its backbone: id, revision, model_type, layers, width, weights."""
    return {
        # Of a folder on this machine only the name is worth keeping.
        "id": os.path.basename(source) if os.path.isabs(source) else source,
        "revision": revision,
        "model_type": model.config.model_type,
        "layers": len(layers),
        "width": model.config.get_text_config().hidden_size,
        "weights": weights_digest(layers),
    }


def save_adapter(
    folder: str | Path,
    intervention: Intervention,
    method: Mapping[str, Any],
    backbone: Mapping[str, Any],
    data: Mapping[str, Any],
    epoch: int,
    record: Mapping[str, Any],
) -> None:
    """Write adapter.safetensors, config.json and README.md into the existing ``folder``.

    config.json records the checksum of the weights and carries one of its own: loading refuses damaged files, and the
    weights of another dataset, backbone, method or seed.

    Args:
        folder: where to; the caller writes it under a temporary name.
        intervention: the trained state.
        method: ``methods.<name>``: rebuilds the module on loading.
        backbone: from ``describe_backbone``.
        data: name of the ``dataset``, number of ``queries`` it was trained on, of ``draws`` where there are several.
        epoch: after how many epochs the kept state was reached.
        record: provenance (code and package versions, settings).
    """
    import transformers

    folder = Path(folder)
    save_file({name: t.detach().cpu().contiguous() for name, t in intervention.state_dict().items()}, folder / WEIGHTS)
    write_json(
        folder / "config.json",
        {
            "format": FORMAT,
            "method": dict(method),
            "sites": intervention.sites,
            "positions": intervention.positions,
            "rank": method.get("rank"),
            "parameters": intervention.n_parameters,
            "epoch": epoch,
            "backbone": dict(backbone),
            "data": dict(data),
            "transformers": transformers.__version__,
            "sha256": {WEIGHTS: sha256(folder / WEIGHTS)},
            "record": dict(record),
        },
    )
    is_on_hub = backbone["id"].count("/") == 1 and not os.path.isdir(backbone["id"])
    sites = intervention.sites
    consecutive = sites == list(range(sites[0], sites[-1] + 1))
    (folder / "README.md").write_text(
        CARD.format(
            base_model=f"base_model: {backbone['id']}\n" if is_on_hub else "",
            title=method.get("title", method["module"]),
            backbone=backbone["id"],
            module=method["module"],
            parameters=intervention.n_parameters,
            parts=" and ".join(PARTS[site] for site in intervention.at(sites[0])),
            sites=f"{sites[0]} to {sites[-1]}" if consecutive else ", ".join(map(str, sites)),
            positions=intervention.positions,
            queries=data["queries"],
            dataset=data["dataset"],
            epoch=epoch,
        ),
        encoding="utf-8",
    )


def load_adapter(folder: str | Path, model: Any, layers: Sequence[nn.Module], strict: bool = True) -> Intervention:
    """Read an adapter folder and check that it belongs to ``model``.

    Args:
        folder: written by ``save_adapter``.
        model: the backbone.
        layers: its decoder layers.
        strict: see ``attach``.

    Raises:
        ValueError: no adapter, a corrupt one, or one for another backbone.
    """
    import transformers

    folder = Path(folder)
    try:
        config = read_json(folder / "config.json")
        if not isinstance(config, dict) or config.get("format") != FORMAT:
            raise ValueError(f"config.json has no format {FORMAT}")
        method, trained_on, sites = config["method"], config["backbone"], config["sites"]
        expected = {key: trained_on[key] for key in ("model_type", "layers", "width", "weights")}
        check_digests(folder, config.get("sha256", {}), WEIGHTS)
        tensors = load_file(folder / WEIGHTS)
        if not all(tensor.is_floating_point() and bool(tensor.isfinite().all()) for tensor in tensors.values()):
            raise ValueError(f"{WEIGHTS} holds numbers that are not finite")
        # Nothing much larger than the file is built from what a foreign file says.
        sizes = [value for key, value in method.items() if type(value) is int and key not in ("epochs", "batch_size")]
        if max(sizes, default=0) > max(4096, sum(tensor.numel() for tensor in tensors.values())):
            raise ValueError(f"config.json describes a larger method than {WEIGHTS} holds")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
        raise ValueError(f"{folder}: not a readable adapter folder ({type(error).__name__}: {error})") from error

    here = describe_backbone(model, layers, str(getattr(model, "name_or_path", "")))
    different = [key for key in ("model_type", "layers", "width") if here[key] != expected[key]]
    if strict and not different and here["weights"] != expected["weights"]:
        different = ["weights"]
    if different:
        name = f"{trained_on.get('id')}" + (f" at {trained_on['revision']}" if trained_on.get("revision") else "")
        raise ValueError(
            f"{folder}: trained on {name}, which is not this model: "
            + ", ".join(f"{key} {expected[key]} there, {here[key]} here" for key in different)
        )
    if transformers.__version__.split(".")[0] != str(config.get("transformers")).split(".")[0]:
        log.info("%s was trained with transformers %s", folder, config.get("transformers"))

    try:
        intervention = build_intervention(
            method, here["layers"], here["width"], 0, lambda: look_inside(model, layers)[0].shape
        )
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(
            f"{folder}: config.json describes no method that can be built ({type(error).__name__}: {error})"
        ) from error
    state = {name: tuple(tensor.shape) for name, tensor in intervention.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if intervention.sites != sites or state != found:
        odd = sorted(name for name in state.keys() | found.keys() if state.get(name) != found.get(name))
        raise ValueError(f"{folder}: {WEIGHTS} does not fit its config.json (sites, or {', '.join(odd[:3])})")
    intervention.load_state_dict(tensors)
    return intervention.requires_grad_(False)
