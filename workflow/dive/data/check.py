"""Before anything starts: are the data what they should be, and what will the configured experiments take?

    dive check-data --configfile config/paper.yaml

Tables are read whole and compared with the official sizes; of reports and images a sample of studies goes through the
reader and the selection that the run will use. Seconds at full size. Nothing is written, no text of a report is shown.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

from dive.backbones.check import check_backbones
from dive.config import resolve
from dive.configfiles import read_files
from dive.data.estimates import Counts, Machine, estimate, missing_shape, shape_of
from dive.data.images import image_size
from dive.data.roots import CHEXPERT_PLUS_SIZES, MIMIC_CXR_SIZES, DataError, check_root
from dive.data.selection import Selection, select
from dive.data.splits import reader_of

OFFICIAL = {"mimic_cxr": MIMIC_CXR_SIZES, "chexpert_plus": CHEXPERT_PLUS_SIZES}
EXACT = {"mimic_cxr": ("patients", "studies", "images"), "chexpert_plus": ("images",)}
"""What is published of every split; of CheXpert Plus' patients and studies only the sums are."""

OF_REPORTS = ("no_report", "unreadable_report", "undecodable_report", "sectioned_by_hand")
"""Rules by which a reader leaves out a study after it has looked for its report, so of the sample only."""

SAMPLE = 2000
"""Studies whose reports and images are looked at: a share is then known to about two points."""

MEASURED = 200
"""Images whose size in pixels is read."""

SYNTHETIC_WORDS = 40
"""Mean words of a synthetic report, for a synthetic dataset that is yet to be written."""

USUAL = {"mimic_cxr": 0.6, "chexpert_plus": 0.25}
"""Share of studies that have a frontal image and findings, and mean words of these, for data that are not there yet."""
USUAL_WORDS = 55


@dataclass
class Inspection:
    """What is known of a dataset.

    Attributes:
        lines: what to print.
        problems: what stands in the way of a run.
        usable: estimated studies of train, validate and test after the selection; None before the data are there.
        guessed: the same from official sizes and usual shares, where the data cannot be read.
        words, pixels: mean words of a target; pixels of an image in the middle, None where no image was read.
    """

    lines: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    usable: dict[str, int] | None = None
    guessed: dict[str, int] = field(default_factory=dict)
    words: float = 0.0
    pixels: float | None = None


def inspect(name: str, dataset: Mapping[str, Any], sample: int = SAMPLE) -> Inspection:
    """Look at one dataset of the configuration.

    Args:
        name: its name there.
        dataset: ``datasets.<name>``, resolved.
        sample: studies whose reports and images are read.
    """
    found, root, reader = Inspection(), dataset["root"], dataset["reader"]
    if dataset.get("synthetic") and not Path(root).exists():
        found.lines.append("synthetic: the workflow writes it")
        found.words = SYNTHETIC_WORDS
        return found
    rules = replace(Selection.from_config(dataset["selection"]), max_unreadable=1.0)
    found.problems += check_root(reader, root, name, dataset["selection"])
    if found.problems:
        found.words = USUAL_WORDS
        found.guessed = split_sizes(OFFICIAL[reader], USUAL[reader], rules)
        return found
    try:
        reading = reader_of(reader)(root, dataset["selection"], sample)
        unread = [rule for _, rule, _ in reading.excluded if rule in OF_REPORTS]
        sampled = len(reading.studies) + len(unread)
        looked_at = replace(reading, excluded=[])
        studies, _, counts = select(looked_at, root, reader, rules)
    except DataError as error:
        found.problems.append(f"datasets.{name}: {error}")
        return found
    found.lines += compare_sizes(reading.sizes, {} if dataset.get("synthetic") else OFFICIAL[reader], EXACT[reader])
    in_tables = sum(size["studies"] for size in reading.sizes.values())
    if "reports" in reading.notes:
        found.lines.append(f"reports on disk: {reading.notes['reports']:,} of {in_tables:,} studies")
        absent = in_tables - reading.notes["reports"]
        if absent > dataset["selection"]["max_unreadable"] * in_tables:
            found.problems.append(f"datasets.{name}: {absent:,} of {in_tables:,} studies have no report on disk")
    left_out = {step["rule"]: step["left_out"] for step in counts["flow"] if step["left_out"]}
    left_out |= {rule: unread.count(rule) for rule in dict.fromkeys(unread)}
    told = ", ".join(f"{rule.replace('_', ' ')} {100 * n / sampled:.1f} %" for rule, n in left_out.items())
    share = studies["study_uid"].str.rsplit("/", n=1).str[0].nunique() if rules.unit == "image" else len(studies)
    share /= max(1, sampled)
    found.lines.append(f"a sample of {sampled:,} studies: {100 * share:.1f} % usable; left out: {told or 'none'}")
    found.lines += [f"{what.replace('_', ' ')}: {n:,}" for what, n in reading.notes.items() if n and what not in SHOWN]
    bad, images = counts["images_left_out"], int(studies["image_paths"].str.len().sum())
    if len(bad) > dataset["selection"]["max_unreadable"] * (images + len(bad)):
        examples = "\n".join(f"    {item['path']}: {item['problem']}" for item in bad[:3])
        found.problems.append(
            f"datasets.{name}: {len(bad)} of {images + len(bad)} sampled images are missing or broken, more than "
            f"selection.max_unreadable allows. The first:\n{examples}"
        )
    found.usable = split_sizes(reading.sizes, share, rules)
    found.words = float(studies["n_words"].mean())
    found.pixels = middle_size([Path(root) / paths[0] for paths in studies["image_paths"][:MEASURED]])
    usable = ", ".join(f"{split} {number:,}" for split, number in found.usable.items())
    found.lines.append(f"usable, about: {usable}; {found.words:.0f} words a report")
    return found


SHOWN = ("images", "patients", "reports")
"""Counts of a reading that are told otherwise."""


def compare_sizes(
    sizes: Mapping[str, Mapping[str, int]], official: Mapping[str, Mapping[str, int]], exact: tuple[str, ...]
) -> list[str]:
    """Lines with patients, studies and images of every split, and how they differ from the official ones."""
    lines = []
    for split in dict.fromkeys([*official, *sizes]):
        counted = sizes.get(split, {"patients": 0, "studies": 0, "images": 0})
        told = ", ".join(f"{n:,} {what}" for what, n in counted.items())
        wanted = official.get(split, {})
        differing = [
            f"{what} {counted[what] - wanted[what]:+,}" for what in exact if wanted and counted[what] != wanted[what]
        ]
        compared = "" if len(exact) == len(counted) else f"{' and '.join(exact)} "
        verdict = f"differs from the release: {', '.join(differing)}" if differing else f"{compared}as released"
        lines.append(f"{split}: {told}" + (f" ({verdict})" if wanted else ""))
    return lines


def split_sizes(sizes: Mapping[str, Mapping[str, int]], share: float, rules: Selection) -> dict[str, int]:
    """Estimated studies of train, validate and test under the selection's convention."""
    own = {split: share * size["studies"] for split, size in sizes.items()}
    validate, test = rules.fractions["validate"], rules.fractions["test"]
    if rules.convention == "own_split":
        total = sum(own.values())
        own = {"train": (1 - validate - test) * total, "validate": validate * total, "test": test * total}
    elif rules.convention == "official_valid":
        train = own.get("train", 0)
        own = {"train": (1 - validate) * train, "validate": validate * train, "test": own.get("valid", 0)}
    return {split: round(own.get(split, 0)) for split in ("train", "validate", "test")}


def middle_size(paths: list[Path]) -> float | None:
    """Median of the images' sizes in pixels, by their headers."""
    sizes = []
    for path in paths:
        size = image_size(path)
        if size is not None:
            sizes.append(size[0] * size[1])
    return float(sorted(sizes)[len(sizes) // 2]) if sizes else None


def count_pool(name: str, pool: Mapping[str, int | None], found: Inspection) -> Counts:
    """Studies of a dataset's pool; asks for too many are added to the problems."""
    usable = found.usable or found.guessed
    half = usable.get("train", 0) // 2
    all_there_are = {
        "queries": half if pool["demonstrations"] is None else usable.get("train", 0) - (pool["demonstrations"] or 0),
        "demonstrations": half if pool["queries"] is None else usable.get("train", 0) - (pool["queries"] or 0),
        "validation": usable.get("validate", 0),
        "test": usable.get("test", 0),
    }
    counts = {group: all_there_are[group] if size is None else size for group, size in pool.items()}
    if found.usable is not None:
        for group, size in counts.items():
            # A sample knows the share to about two points, so only what is clearly too much is said.
            if size > 1.1 * all_there_are[group]:
                found.problems.append(
                    f"datasets.{name}.pool.{group} asks for {size:,} studies, but about {all_there_are[group]:,} are "
                    f"usable: lower it, or relax datasets.{name}.selection"
                )
    return Counts(**{group: max(0, size) for group, size in counts.items()}, words=found.words, pixels=found.pixels)


def read_config(files: Sequence[str]) -> dict[str, Any]:
    """config.yaml with its overlays, checked and complete."""
    return resolve(read_files(files))


def check_data(config: dict[str, Any], machine: Machine, sample: int = SAMPLE, tokens_a_word: float = 1.5) -> bool:
    """Print what is found of every dataset that the experiments use, and the estimates.

    Returns:
        True when nothing is in the way of a run.
    """
    grids = [config["grids"][experiment] for experiment in config["experiments"]]
    counts, sound = {}, True
    used = [name for grid in grids for name in grid["datasets"]]
    used += [method.partition("@")[2] for grid in grids for method in grid["methods"] if "@" in method]
    for name in dict.fromkeys(used):
        dataset = config["datasets"][name]
        print(f"{name} ({dataset['reader']}) at {dataset['root']}")
        found = inspect(name, dataset, sample)
        counts[name] = count_pool(name, dataset["pool"], found)
        for line in found.lines:
            print(f"  {line}")
        for problem in found.problems:
            print(f"  PROBLEM: {problem}")
        sound &= not found.problems
        print()
    rows = [row for grid in grids for row in product(grid["datasets"], grid["backbones"], grid["methods"])]
    for problem in check_backbones(config, rows):
        print(f"PROBLEM: {problem}")
        sound = False
    print_estimates(config, grids, counts, machine, tokens_a_word)
    return sound


def print_estimates(
    config: dict[str, Any],
    grids: list[dict[str, Any]],
    counts: dict[str, Counts],
    machine: Machine,
    tokens_a_word: float,
) -> None:
    """Print a line for each dataset and backbone, and the sums."""
    print("Estimates: GPU hours by stage, and disk in GB; `at most`: if every report ran to decoding.max_new_tokens")
    print(
        f"assumed: {machine.tflops:g} TFLOP/s, {machine.bandwidth:g} GB/s, {machine.layer_ms:g} ms a layer's call, "
        f"{tokens_a_word:g} tokens a word"
    )
    hours = most = disk = 0.0
    methods: dict[tuple[str, str], dict[str, None]] = {}
    for grid in grids:
        for dataset, backbone, method in product(grid["datasets"], grid["backbones"], grid["methods"]):
            name, _, other = method.partition("@")
            if other != dataset:
                methods.setdefault((dataset, backbone), {})[method] = None
            if other:  # its adapter is trained on the other dataset, a row there or not
                methods.setdefault((other, backbone), {})[name] = None
    loaded, unknown = set(), 0
    for (dataset, backbone), names in methods.items():
        settings = config["backbones"][backbone]
        shape = shape_of(settings)
        if shape is None:
            print(f"  {dataset}, {backbone}: no estimate: {missing_shape(settings, backbone)}")
            unknown += 1
            continue
        spent = estimate(counts[dataset], settings, shape, config, list(names), machine, tokens_a_word)
        stored = dict(spent.bytes)
        if backbone in loaded:
            del stored["backbone"]
        loaded.add(backbone)
        disk += sum(stored.values())
        size = ", ".join(f"{what} {value / 1e9:.3g}" for what, value in stored.items())
        if settings["device"] == "cpu":
            print(f"  {dataset}, {backbone}: runs on the CPU, so no GPU hours; GB: {size}")
            continue
        time = ", ".join(f"{stage} {seconds / 3600:.2f}" for stage, seconds in spent.seconds.items())
        hours += sum(spent.seconds.values()) / 3600
        most += spent.longest / 3600
        print(f"  {dataset}, {backbone}: h: {time} (at most {spent.longest / 3600:.1f} in all); GB: {size}")
    beside = f" without the {unknown} that have no estimate" if unknown else ""
    print(f"  all{beside}: {hours:.1f} GPU hours (at most {most:.1f}), {disk / 1e9:.3g} GB on disk beside the data")
