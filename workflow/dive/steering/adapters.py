"""Adapter folders: a trained intervention with everything that is needed to check and use it."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from dive.files import CHECKSUMS, check_digests, read_json, sha256, write_json
from dive.progress import log
from dive.sealed import REMEDY, DamageError
from dive.steering.attention import look_inside
from dive.steering.base import Intervention, build_intervention
from dive.steering.card import write_card

FORMAT = "dive-adapter/1"
WEIGHTS = "adapter.safetensors"

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
TRAINING = ("training.csv", "validation.csv", CHECKSUMS)
"""The course of training, if the folder was written by training."""


def weights_digest(layers: Sequence[nn.Module]) -> str:
    """Fingerprint of a backbone's weights: a hash over the first 64 numbers of each parameter of each decoder layer.

    They are rounded to bfloat16 first, so that a model has one fingerprint in float32 and in bfloat16.
    """
    digest = hashlib.sha256()
    for layer in layers:
        heads = [p.flatten()[:64] for p in _parameters(layer) if p.is_floating_point()]
        digest.update(torch.cat([head.to("cpu", torch.bfloat16) for head in heads]).view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]


def _parameters(layer: nn.Module) -> Iterator[torch.Tensor]:
    """Parameters of a layer, each once; of offloaded ones the numbers that accelerate keeps elsewhere."""
    seen: set[nn.Parameter] = set()
    for module in layer.modules():
        kept = getattr(getattr(module, "_hf_hook", None), "weights_map", None)
        for name, parameter in module.named_parameters(recurse=False):
            if parameter in seen:
                continue
            seen.add(parameter)
            if parameter.device.type == "meta" and kept is None:
                raise ValueError(f"{type(module).__name__}.{name} holds no numbers (it is on the device meta)")
            yield (kept[name] if parameter.device.type == "meta" else parameter).detach()


def describe_backbone(
    model: Any, layers: Sequence[nn.Module], source: str, revision: str | None = None
) -> dict[str, Any]:
    """The description of a backbone that an adapter stores: id, revision, model_type, layers, width, weights."""
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
    scores: Mapping[str, float] | None = None,
) -> None:
    """Write adapter.safetensors, config.json and the card README.md into the existing ``folder``.

    config.json contains the checksum of the weights and its own checksum. Loading therefore refuses damaged files, and
    weights of another dataset, backbone, method or seed.

    Args:
        folder: where to; the caller writes it under a temporary name.
        intervention: the trained state.
        method: ``methods.<name>``: rebuilds the module on loading.
        backbone: from ``describe_backbone``.
        data: name of the ``dataset``, whether it is ``credentialed`` (what does not say so is taken for it), number of
            ``queries`` it was trained on, of ``draws`` where there are several.
        epoch: after how many epochs the kept state was reached.
        record: provenance (code and package versions, settings).
        scores: what it reached, by name, for the card.
    """
    import transformers

    config = {
        "format": FORMAT,
        "method": dict(method),
        "sites": intervention.sites,
        "positions": intervention.positions,
        "rank": method.get("rank"),
        "parameters": intervention.n_parameters,
        "epoch": epoch,
        "backbone": dict(backbone),
        "data": dict(data),
        "scores": dict(scores or {}),
        "transformers": transformers.__version__,
        "record": dict(record),
    }
    _write(Path(folder), intervention, config)


def resave_adapter(
    folder: str | Path,
    intervention: Intervention,
    scores: Mapping[str, float] | None = None,
    license: str | None = None,
) -> None:
    """Write an intervention that was read from an adapter folder into another folder, with its description.

    Args:
        folder: it is created if it does not exist.
        intervention: from ``load_adapter``.
        scores: further ones, by name.
        license: identifier of a licence for the card.

    Raises:
        ValueError: the intervention was built, not read, so that nothing says what it is of; or a file is in the way.
    """
    if intervention.config is None:
        raise ValueError(
            "attach was given an intervention and not an adapter folder, so its training data are unknown; "
            "write it with dive.steering.adapters.save_adapter"
        )
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; an adapter is a folder: give the name of one")
    if not _is_free(folder):
        raise ValueError(
            f"{folder} holds a model or something else with a config.json, which the adapter's would replace: "
            "give a folder of its own"
        )
    folder.mkdir(parents=True, exist_ok=True)
    known = intervention.config.get("scores")
    scores = {**(known if isinstance(known, dict) else {}), **(scores or {})}
    _write(folder, intervention, {**intervention.config, "scores": scores}, license)
    for name in TRAINING:
        source = Path(intervention.folder) / name
        if source.is_file() and source.resolve() != (folder / name).resolve():
            shutil.copyfile(source, folder / name)


def _is_free(folder: Path) -> bool:
    """Whether an adapter may be written there: nothing that another program reads is replaced, or lies beside it."""
    if any(folder.glob("model*.safetensors")):
        return False
    try:
        config = read_json(folder / "config.json")
    except FileNotFoundError:
        return True
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("format") == FORMAT


def _write(folder: Path, intervention: Intervention, config: Mapping[str, Any], license: str | None = None) -> None:
    save_file({name: t.detach().cpu().contiguous() for name, t in intervention.state_dict().items()}, folder / WEIGHTS)
    write_json(folder / "config.json", {**config, "sha256": {WEIGHTS: sha256(folder / WEIGHTS)}})
    write_card(folder / "README.md", intervention, config, license)


def is_credentialed(config: Mapping[str, Any]) -> bool:
    """Whether an adapter was trained on data for credentialed users only, or does not say on what it was trained.

    Args:
        config: ``config.json`` of the adapter folder.
    """
    data = config.get("data")
    return not (isinstance(data, Mapping) and data.get("credentialed") is False)


def fetch_adapter(adapter: str | Path, revision: str | None = None) -> Path:
    """The adapter's folder on this machine. A repository on the hub is downloaded first, without code and pickles.

    Args:
        adapter: a folder, or ``user/repository``.
        revision: branch, tag or commit on the hub.

    Raises:
        ValueError: the hub cannot be reached, or has nothing of this name.
    """
    if Path(adapter).exists() or not HUB_NAME.fullmatch(str(adapter)):
        return Path(adapter)
    from huggingface_hub import snapshot_download

    wanted = ["config.json", WEIGHTS, "README.md", *TRAINING]
    try:
        return Path(snapshot_download(str(adapter), revision=revision, allow_patterns=wanted))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{adapter}: no folder of this name is here, and the Hugging Face hub gives none "
            f"({type(error).__name__}); check the name and the network, and set HF_HUB_OFFLINE=0 for a first download"
        ) from error


def check_origin(folder: str | Path, method: Mapping[str, Any], dataset: str, seed: int) -> None:
    """Refuse an adapter folder that is whole and of this backbone, but was made by another job.

    Args:
        folder: written by ``save_adapter``.
        method: ``methods.<name>``, with which it must have been trained.
        dataset: name of the dataset, and
        seed: seed on which it must have been trained.

    Raises:
        DamageError: it was trained otherwise; the message says how.
    """
    config = read_json(Path(folder) / "config.json")
    settings = config.get("record", {}).get("settings", {})
    found = {"dataset": config.get("data", {}).get("dataset"), "seed": settings.get("seed")}
    different = [
        f"{key} {found[key]}, not {value}"
        for key, value in (("dataset", dataset), ("seed", seed))
        if found[key] != value
    ]
    wanted, trained = (json.loads(json.dumps(said)) for said in (dict(method), config.get("method", {})))
    wanted.pop("trained_on", None)
    different += [
        f"{key} {trained.get(key)}, not {wanted.get(key)}"
        for key in sorted(wanted.keys() | trained.keys())
        if wanted.get(key) != trained.get(key)
    ]
    if different:
        raise DamageError(f"{folder}: the adapter of another job, trained with {'; '.join(different[:3])}; {REMEDY}")


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
    intervention.folder, intervention.config = folder, config
    return intervention.requires_grad_(False)
