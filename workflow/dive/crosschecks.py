"""What no single key of the configuration can tell: names that refer to nothing, sizes that do not fit each other.

Every check runs beside the model on whatever was given, so it passes over what has another shape than it should. No job
imports this module.
"""

import difflib
from collections.abc import Mapping
from typing import Any

from dive.backbones.requirements import image_errors, method_errors
from dive.configfiles import Errors, shortened

NAMED = ("datasets", "backbones", "methods")
"""Mappings whose entries are named by the user and may inherit from each other with ``like``."""

CONVENTIONS = {"mimic_cxr": ("official", "own_split"), "chexpert_plus": ("official_valid", "own_split")}
"""What the splits can be: MIMIC-CXR has an official test split, CheXpert Plus has none."""

LABELS = {
    "mimic_cxr": ("auto", "chexpert", "negbio", "test_set_labeled"),
    "chexpert_plus": ("auto", "findings", "impression", "report"),
}
"""Label tables that a synthetic dataset has."""

RESERVED = ("claims", "index", "index.html", "sparsity", "tokens")
"""Names that results/tables, results/figures and results/report have beside those of grids."""

WORLD = ("acceptance.json", "acceptance.md", "lexicon.json", "lexicon.md")
"""Names that results/world has beside those of datasets."""

ENDINGS = ("-claims", "-training", "-termination", "-significance", "-factorial", "-mechanisms")
"""What follows a grid's name in the names of its further tables and figures."""

PATCH = 12
"""Side of a tiny backbone's patches, in pixels."""

TINY_PARAMETERS = 200_000_000
"""A tiny backbone is trained from nothing on a CPU; the default ones have under a million."""

TINY_PIXELS = 300_000_000
"""Pixels of the images that its tower is trained on, which lie in memory."""


def cross_check(config: Mapping[str, Any]) -> Errors:
    """All of it, for a configuration without ``like``."""
    named = {kind: mapping(config.get(kind)) for kind in (*NAMED, "grids")}
    errors = check_grids(config, named)
    errors += check_annotators(config, named["methods"])
    for name, dataset in named["datasets"].items():
        errors += check_dataset(config, name, mapping(dataset))
    for name, backbone in named["backbones"].items():
        errors += check_backbone(name, mapping(backbone))
    errors += check_methods(named)
    return errors


def check_grids(config: Mapping[str, Any], named: Mapping[str, Mapping[str, Any]]) -> Errors:
    """Names that refer to nothing or are there twice, grids without a row, and names of grids that files have."""
    errors: Errors = []

    def refer(path: str, given: Any, kind: str) -> None:
        seen: list[Any] = []
        for index, name in enumerate(items(given)):
            if not isinstance(name, str | int):
                continue
            if name in seen:
                errors.append((f"{path}.{index}", f"{shortened(name)} is there twice; once is enough"))
            elif kind == "methods" and "@" in str(name):
                refer_transfer(f"{path}.{index}", *str(name).split("@", 1))
            elif kind and name not in named[kind]:
                errors.append((f"{path}.{index}", f"{shortened(name)} is not among {kind}{nearest(name, named[kind])}"))
            seen.append(name)

    def refer_transfer(path: str, method: str, dataset: str) -> None:
        for name, kind in ((method, "methods"), (dataset, "datasets")):
            if name not in named[kind]:
                errors.append((path, f"{shortened(name)} is not among {kind}{nearest(name, named[kind])}"))
        if mapping(named["methods"].get(method)).get("kind", "steering") != "steering":
            errors.append((path, f"{shortened(method)} is not a trained method, so it has no adapter to transfer"))

    refer("experiments", config.get("experiments"), "grids")
    refer("seeds", config.get("seeds"), "")
    for grid, lists in named["grids"].items():
        for kind in NAMED:
            refer(f"grids.{grid}.{kind}", mapping(lists).get(kind), kind)
        if grid in RESERVED or grid.endswith(ENDINGS):
            taken = grid if grid in RESERVED else next(ending for ending in ENDINGS if grid.endswith(ending))
            errors.append((f"grids.{grid}", f"files of the results are named {taken}; give the grid another name"))
        datasets, methods = ([x for x in items(mapping(lists).get(k)) if isinstance(x, str)] for k in NAMED[::2])
        if datasets and methods and all(method.partition("@")[2] == name for method in methods for name in datasets):
            message = "no method is left: method@dataset is for the other datasets; add one, or a method without @"
            errors.append((f"grids.{grid}.methods", message))
    return errors


def check_dataset(config: Mapping[str, Any], name: str, dataset: Mapping[str, Any]) -> Errors:
    """Places that rules rely on, shares and sizes that exceed what they are of."""
    errors: Errors = []
    path = f"datasets.{name}"
    if name == "truth":
        errors.append((path, "data/truth holds the truth of synthetic datasets; choose another name"))
    if name in WORLD:
        errors.append((path, f"results/world/{name} is what is said of the synthetic world; choose another name"))
    if dataset.get("synthetic") and dataset.get("root") != f"data/{name}":
        errors.append((f"{path}.root", f"must be data/{name}, where the synthetic dataset is written"))
    selection, pool = mapping(dataset.get("selection")), mapping(dataset.get("pool"))
    reader = dataset.get("reader")
    offered = CONVENTIONS.get(reader, ()) if isinstance(reader, str) else ()
    if offered and selection.get("convention") not in offered:
        errors.append((f"{path}.selection.convention", f"{reader} offers {' and '.join(offered)}"))
    if dataset.get("synthetic"):
        labels, known = selection.get("labels"), LABELS.get(reader, ()) if isinstance(reader, str) else ()
        if known and isinstance(labels, str) and labels not in known:
            message = f"{shortened(labels)} is no table of a synthetic dataset{nearest(labels, known)}"
            errors.append((f"{path}.selection.labels", message))
        if isinstance(selection.get("reports"), str):
            errors.append(
                (f"{path}.selection.reports", "must be null: a synthetic dataset has its reports under its root")
            )
    if exceeds(selection.get("min_words"), selection.get("max_words")):
        errors.append((f"{path}.selection.min_words", "must not exceed max_words"))
    fractions = mapping(selection.get("fractions"))
    shares = [fractions.get(key) for key in ("validate", "test")]
    if all(isinstance(share, int | float) for share in shares) and sum(shares) >= 1:
        message = f"validate and test are {sum(shares):g} of the patients together, so none train; lower them"
        errors.append((f"{path}.selection.fractions", message))
    if exceeds(config.get("shots"), pool.get("demonstrations")):
        errors.append((f"{path}.pool.demonstrations", f"must be at least shots, which is {config['shots']}"))
    validation = mapping(config.get("training")).get("validation_studies")
    if exceeds(validation, pool.get("validation")):
        errors.append((f"{path}.pool.validation", f"must be at least training.validation_studies, {validation}"))
    return errors


def check_backbone(name: str, backbone: Mapping[str, Any]) -> Errors:
    """The place of a tiny backbone, sizes of it that do not fit each other, and settings of its image processor."""
    errors: Errors = []
    tiny = mapping(backbone.get("tiny"))
    if not tiny:
        return errors
    path = f"backbones.{name}"
    if backbone.get("path") != f"models/{name}":
        errors.append((f"{path}.path", f"must be models/{name}, where the tiny backbone is built"))
    family = tiny.get("family")
    if isinstance(family, str):
        given = image_errors(family, mapping(backbone.get("image")))
        errors += [(f"{path}.image.{key}", message) for key, message in given]
    sizes = (
        "width",
        "heads",
        "vision_width",
        "pixels",
        "merge",
        "layers",
        "mlp",
        "vision_layers",
        "vocabulary",
        "images",
    )
    found = [tiny.get(key) for key in sizes]
    if not all(isinstance(size, int) and size > 0 for size in found):
        return errors
    width, heads, vision_width, pixels, merge, layers, mlp, vision_layers, vocabulary, images = found
    # Rotary positions turn pairs of a head's dimensions; Qwen's are of three kinds, in parts of sixteen.
    each = 16 if family == "qwen2_5_vl" else 2
    if width % (heads * each):
        errors.append(
            (f"{path}.tiny.width", f"must be a multiple of {each} * heads, which is {each * heads}, not {width}")
        )
    each = 16 if family == "qwen2_5_vl" else 4
    if vision_width % each:
        errors.append((f"{path}.tiny.vision_width", f"must be a multiple of {each}, not {vision_width}"))
    if pixels % (PATCH * merge):
        message = f"must be a multiple of {PATCH} * merge, which is {PATCH * merge}, not {pixels}"
        errors.append((f"{path}.tiny.pixels", message))
    parameters = layers * (4 * width**2 + 3 * width * mlp) + vision_layers * 16 * vision_width**2 + vocabulary * width
    if parameters > TINY_PARAMETERS:
        message = f"would have {parameters / 1e6:,.0f} million parameters; at most {TINY_PARAMETERS / 1e6:.0f} million"
        errors.append((f"{path}.tiny", f"{message} are tiny: lower width, mlp, layers or vocabulary"))
    if images * pixels**2 > TINY_PIXELS:
        message = f"{images:,} images of {pixels} pixels a side do not fit into memory; at most"
        errors.append((f"{path}.tiny.images", f"{message} {TINY_PIXELS // pixels**2:,} of them"))
    return errors


def check_methods(named: Mapping[str, Mapping[str, Any]]) -> Errors:
    """Losses without a term, layers and ranks that a tiny backbone does not have, files of other systems."""
    errors: Errors = []
    for name, method in named["methods"].items():
        method = mapping(method)
        path = f"methods.{name}"
        loss = mapping(method.get("loss"))
        if loss and all(loss.get(term) == 0 for term in ("kd", "ce", "hidden")):
            errors.append((f"{path}.loss", "kd, ce and hidden are all 0: nothing would be learned"))
        layers = items(method.get("layers"))
        if any(layer in layers[:index] for index, layer in enumerate(layers[:1000])):
            errors.append((f"{path}.layers", "has a layer twice; once is enough"))
        files = mapping(method.get("files"))
        for dataset in files:
            if dataset not in named["datasets"]:
                message = f"{shortened(dataset)} is not among datasets{nearest(dataset, named['datasets'])}"
                errors.append((f"{path}.files.{dataset}", message))
        for grid, lists in named["grids"].items():
            lists = mapping(lists)
            used = [entry.partition("@")[0] for entry in items(lists.get("methods")) if isinstance(entry, str)]
            if name not in used:
                continue
            if method.get("kind") == "external":
                for dataset in items(lists.get("datasets")):
                    if isinstance(dataset, str) and dataset not in files:
                        message = f"is missing: grid {grid} has this method on that dataset"
                        errors.append((f"{path}.files.{dataset}", message))
            for backbone in items(lists.get("backbones")):
                entry = named["backbones"].get(backbone) if isinstance(backbone, str) else None
                tiny = mapping(mapping(entry).get("tiny"))
                if isinstance(tiny.get("layers"), int) and isinstance(tiny.get("width"), int):
                    found = method_errors(method, backbone, tiny["layers"], tiny["width"])
                    errors += [(f"{path}.{key}", message) for key, message in found]
    return errors


def check_annotators(config: Mapping[str, Any], methods: Mapping[str, Any]) -> Errors:
    """Annotators that something uses but that lack what they read, and an analysis of a method without weights."""
    errors = []
    annotation, analysis = mapping(config.get("annotation")), mapping(config.get("analysis"))
    used, datasets = annotators_used(config), mapping(config.get("datasets"))
    if "union" in items(annotation.get("union")):
        errors.append(("annotation.union", "cannot hold itself; list other annotators"))
    scispacy = mapping(annotation.get("scispacy"))
    if "scispacy" in used and not scispacy.get("path"):
        errors.append(("annotation.scispacy.path", f"must be the folder of a pipeline, as {used['scispacy']} uses it"))
    if "scispacy" in used and scispacy.get("types") and not scispacy.get("linker"):
        errors.append(("annotation.scispacy.linker", "must be the folder of a linker, as types are asked for"))
    radgraph = mapping(annotation.get("radgraph"))
    published = mapping(radgraph.get("annotations"))
    errors += [
        (f"annotation.radgraph.annotations.{name}", f"{shortened(name)} is not among datasets{nearest(name, datasets)}")
        for name in published
        if name not in datasets
    ]
    without = [name for name in listed_by_grids(config, "datasets") if name in datasets and name not in published]
    if "radgraph" in used and without and not radgraph.get("path"):
        message = f"must be hub or the folder of RadGraph's archives, as {used['radgraph']} uses it and annotations has"
        errors.append(("annotation.radgraph.path", f"{message} no file of {', '.join(without)}"))
    chosen = analysis.get("method")
    if methods and isinstance(chosen, str) and "weights" not in mapping(methods.get(chosen)):
        weighted = [name for name, method in methods.items() if "weights" in mapping(method)]
        errors.append(("analysis.method", f"{shortened(chosen)} has no weights{nearest(chosen, weighted)}"))
    return errors


def annotators_used(config: Mapping[str, Any]) -> dict[str, str]:
    """Annotator -> the key that asks for it, of all that the configured experiments use."""
    annotation, analysis = mapping(config.get("annotation")), mapping(config.get("analysis"))
    methods = mapping(config.get("methods"))
    weighted = [*(entry.partition("@")[0] for entry in listed_by_grids(config, "methods")), analysis.get("method")]
    asked = [(annotation.get("annotator"), "annotation.annotator")]
    asked += [(name, "analysis.annotators") for name in items(analysis.get("annotators"))]
    asked += [
        (mapping(mapping(methods.get(name)).get("weights")).get("source"), f"methods.{name}.weights.source")
        for name in weighted
        if isinstance(name, str)
    ]
    if any(name == "random" for name, _ in asked):
        asked.append((mapping(annotation.get("random")).get("like"), "annotation.random.like"))
    if any(name == "union" for name, _ in asked):
        asked += [(name, "annotation.union") for name in items(annotation.get("union"))]
    return {name: key for name, key in reversed(asked) if isinstance(name, str)}


def listed_by_grids(config: Mapping[str, Any], kind: str) -> list[str]:
    """Entries of ``kind`` in the grids of the configured experiments."""
    grids = mapping(config.get("grids"))
    chosen = [mapping(grids.get(name)) for name in items(config.get("experiments")) if isinstance(name, str)]
    entries = [entry for grid in chosen for entry in items(grid.get(kind))]
    return list(dict.fromkeys(entry for entry in entries if isinstance(entry, str)))


def mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def exceeds(value: Any, limit: Any) -> bool:
    return isinstance(value, int) and isinstance(limit, int) and value > limit


def nearest(name: Any, known: Any) -> str:
    """ "; did you mean X?", or what there is."""
    names = [str(one) for one in known]
    close = difflib.get_close_matches(str(name)[:100], names, n=1)
    if close:
        return f"; did you mean {close[0]}?"
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return f"; there are: {', '.join(names[:20]) or 'none'}{more}"
