"""Weights of RadGraph and CheXbert: where they lie, where they are from, and whether they are the expected ones.

Jobs never download. ``dive fetch-assets`` says what it would download, ``dive fetch-assets --download`` does it:
files of the pinned revisions in ``resources/assets.json``, checked by size and hash, below ``assets/``.
"""

import shutil
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from dive.files import WeightsError, atomic_path, read_json, sha256, write_json
from dive.packaged import packaged

MANIFEST = packaged("assets.json")
FOLDER = "assets"
HUB = "hub"
"""``path: hub`` of a model in the configuration means the files that :func:`fetch` put below FOLDER."""
MODELS = {"radgraph": "RadGraph", "chexbert": "CheXbert"}
"""Module of this package and class of the scores that need weights, in the order of the table."""


def module_of_model(name: str) -> ModuleType:
    """The module of one of MODELS, loaded by name: without its weights no score depends on its code."""
    return import_module(f"dive.scores.{name}")


def located(models: Mapping[str, Any], folder: str = FOLDER) -> dict[str, dict[str, Any] | None]:
    """The settings of every model with ``hub`` replaced by its place; None for one without a path."""
    places = {"radgraph": f"{folder}/radgraph", "chexbert": f"{folder}/chexbert/chexbert.pth"}
    return {
        name: {**settings, "path": places[name] if settings["path"] == HUB else settings["path"]}
        if settings["path"]
        else None
        for name, settings in models.items()
        if name in places
    }


def weight_files(settings: Mapping[str, Mapping[str, Any] | None]) -> dict[str, str]:
    """Model -> the file that holds its weights, for the models that :func:`located` has settings of."""
    files = {}
    if radgraph := settings.get("radgraph"):
        files["radgraph"] = f"{radgraph['path']}/{radgraph['archive']}/weights.th"
    if chexbert := settings.get("chexbert"):
        files["chexbert"] = chexbert["path"]
    return files


def model_files(name: str, settings: Mapping[str, Any]) -> list[str]:
    """All files that a model is read from, its encoder's aside: an archive's configuration, vocabulary and weights."""
    if name != "radgraph":
        return list(weight_files({name: settings}).values())
    archive = Path(settings["path"]) / settings["archive"]
    words = sorted((archive / "vocabulary").glob("*.txt"))
    return [str(file) for file in (archive / "config.json", archive / "weights.th", *words)]


def encoder_of(name: str, settings: Mapping[str, Any]) -> str | None:
    """Folder or hub name of the BERT whose configuration and vocabulary a model reads; None where nothing says it."""
    if name != "radgraph":
        return settings.get("encoder")
    try:
        archive = read_json(Path(settings["path"]) / settings["archive"] / "config.json")
        return archive["dataset_reader"]["token_indexers"]["bert"]["model_name"]
    except (OSError, ValueError, KeyError, TypeError):  # absent or no archive, which the job says
        return None


def absent_weights(
    models: Mapping[str, Any], section: str = "scores", otherwise: str = "null leaves the score out"
) -> list[str]:
    """A message for every model that a section of the configuration asks for and whose weights are not there."""
    return [
        f"{section}.{name}.path: no weights at {file}; `dive fetch-assets` says what it would download, {otherwise}"
        for name, file in weight_files(located(models)).items()
        if not Path(file).is_file()
    ]


def absent_graphs(radgraph: Mapping[str, Any], datasets: Sequence[str]) -> list[str]:
    """A message for every file that the annotator ``radgraph`` needs for these datasets and that is not there.

    Args:
        radgraph: ``annotation.radgraph`` of the configuration.
        datasets: names of datasets; of one without published annotations the model reads the reports.
    """
    published = radgraph["annotations"]
    told = [
        f"annotation.radgraph.annotations.{name}: no file {published[name]}; without the entry the weights of "
        "annotation.radgraph.path read the reports"
        for name in datasets
        if name in published and not Path(published[name]).is_file()
    ]
    if any(name not in published for name in datasets):
        otherwise = "or give annotation.radgraph.annotations a file of published graphs"
        told += absent_weights({"radgraph": radgraph}, "annotation", otherwise)
    return told


def load_scorers(settings: Mapping[str, Mapping[str, Any] | None], folder: str | None) -> list[Any]:
    """The scorers that have weights, in the order of the table.

    Args:
        settings: of :func:`located`.
        folder: where they remember what they read; None is nowhere.
    """
    return [
        getattr(module_of_model(name), model)(**settings[name], folder=folder)
        for name, model in MODELS.items()
        if settings.get(name)
    ]


def plan(names: Sequence[str], folder: str) -> Iterator[str]:
    """Lines that say what a download would fetch, from where, how large, with which hash, and what is there.

    Args:
        names: of the manifest's assets; without any those that the default settings of the scores need.
        folder: where the assets lie.
    """
    manifest, total = read_json(MANIFEST), 0
    for name in names or manifest["default"]:
        asset = manifest["assets"][name]
        target = Path(folder) / asset["target"]
        there = target.is_file() or (target / "weights.th").is_file()
        total += 0 if there else asset["bytes"]
        yield f"{name}: {'is there, ' if there else ''}{target}"
        yield f"  from    huggingface.co/{asset['repository']} at {asset['revision']}, file {asset['file']}"
        yield f"  size    {asset['bytes'] / 1e6:,.0f} MB"
        yield f"  sha256  {asset['sha256'] or 'not known to this project: it is printed after the download'}"
        yield f"  used by {asset['used_by']}"
        yield f"  needs   {asset['needs']}"
    yield f"To download: {total / 1e6:,.0f} MB. {manifest['note']}"
    yield "Nothing was downloaded; `dive fetch-assets --download` does it."


def fetch_all(names: Sequence[str], folder: str) -> Iterator[str]:
    """Download assets, and yield a line for each; arguments are those of :func:`plan`.

    Raises:
        WeightsError: size or hash of a file are not the expected ones.
    """
    manifest = read_json(MANIFEST)
    for name in names or manifest["default"]:
        yield fetch(name, manifest["assets"][name], folder)
    yield "Now `scores.radgraph.path: hub` and `scores.chexbert.path: hub` in config.yaml measure with them."


def fetch(name: str, asset: Mapping[str, Any], folder: str) -> str:
    """Download one asset, check it, put it in its place; say what was done.

    Raises:
        WeightsError: size or hash are not the expected ones; nothing is left in place then.
    """
    from huggingface_hub import hf_hub_download

    target = Path(folder) / asset["target"]
    record = target.with_name(f"{target.name}.json")
    if record.is_file():
        return f"{name}: is there, {target}"
    source = hf_hub_download(asset["repository"], asset["file"], revision=asset["revision"])
    found = check(source, asset)
    if asset["file"].endswith(".tar.gz"):
        unpack(source, target)
        fetch_encoder(read_json(target / "config.json")["dataset_reader"]["token_indexers"]["bert"]["model_name"])
    else:
        with atomic_path(target) as temporary:
            shutil.copyfile(source, temporary)
        fetch_encoder(asset["encoder"])
    write_json(record, {**asset, "sha256": found})
    return f"{name}: {target}, sha256 {found}" + ("" if asset["sha256"] else "; no hash was known to compare it with")


def check(path: str | Path, asset: Mapping[str, Any]) -> str:
    """Hash of a file, which must have the asset's size and hash where these are known.

    Raises:
        WeightsError: it has others.
    """
    size, found = Path(path).stat().st_size, sha256(path)
    if asset["sha256"] and (size, found) != (asset["bytes"], asset["sha256"]):
        raise WeightsError(
            f"{asset['file']}: {size} bytes with sha256 {found}, expected {asset['bytes']} bytes with "
            f"{asset['sha256']}. It is not used; remove it from the Hugging Face cache and fetch it again."
        )
    return found


def unpack(archive: str | Path, target: str | Path) -> None:
    """Unpack a tar archive; entries that would leave the folder, links to elsewhere and devices are refused."""
    with atomic_path(target) as temporary, tarfile.open(archive, "r:gz") as files:
        temporary.mkdir()
        files.extractall(temporary, filter="data")
        if not (temporary / "config.json").is_file():
            raise WeightsError(f"{archive}: has no config.json at its top, so it is no RadGraph archive")


def fetch_encoder(name: str) -> None:
    """Put configuration and vocabulary of an encoder into the Hugging Face cache; its weights are in the archive."""
    from huggingface_hub import snapshot_download

    snapshot_download(name, allow_patterns=["config.json", "vocab.txt", "tokenizer*", "special_tokens_map.json"])
