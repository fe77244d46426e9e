"""Which studies are used: rules in a fixed order, each of which says what it left out and why."""

import re
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dive.data.draws import uniforms
from dive.data.images import image_problem
from dive.data.roots import DataError
from dive.data.studies import SPLITS, Reading
from dive.progress import log, progress

# Frontal projections from the most to the least preferred; a name outside is frontal when it begins with PA
# or AP and has no LAT in it.
FRONTAL_ORDER = ("PA", "AP", "FRONTAL")
UNKNOWN_VIEW = ""

CONVENTIONS = {
    "official": "the official split",
    "official_valid": "the official validation set as test set; validation is carved from the training patients",
    "own_split": "an own patient-level split of all studies that have the target text",
}
OFFERED = {"mimic_cxr": ("official", "own_split"), "chexpert_plus": ("official_valid", "own_split")}
SMALL_TEST = 200


@dataclass(frozen=True)
class Selection:
    """``datasets.<name>.selection`` of the config.

    Attributes:
        section: findings, impression, or both (findings, then impression, where a study has either).
        unit: study, or image (every selected image is a row of its own, with the study's text).
        views: frontal, or all.
        unknown_views: keep images without a view position (as unknown, last), or drop them.
        min_words, max_words: limits of the target, counted by white space; longer targets are left out, never cut.
        deidentified: what to do with ``___``: keep it, remove it, or exclude the study.
        duplicates: keep exact copies of a text across splits (counted), or exclude them from train and validate.
        convention: what the splits are; see CONVENTIONS.
        fractions: shares of patients for validate and test, where the convention draws them.
        split_seed: seed of that draw.
        max_unreadable: share of unusable images, or of reports that cannot be read or decoded, above which the run
            stops.
        labels: the label table, see `dive.data.roots.labels_of`; None for none.
        reports: where MIMIC-CXR's reports lie when not under the root.
    """

    section: str = "findings"
    unit: str = "study"
    views: str = "frontal"
    unknown_views: str = "keep"
    min_words: int = 5
    max_words: int = 300
    deidentified: str = "keep"
    duplicates: str = "keep"
    convention: str = "official"
    fractions: dict[str, float] = field(default_factory=lambda: {"validate": 0.1, "test": 0.2})
    split_seed: int = 0
    max_unreadable: float = 0.05
    labels: str | None = "auto"
    reports: str | None = None

    @classmethod
    def from_config(cls, settings: dict[str, Any]) -> "Selection":
        """Selection of a config slice; unknown keys and values raise a `DataError` that names them."""
        unknown = sorted(set(settings) - {item.name for item in fields(cls)})
        if unknown:
            raise DataError(f"selection has no key {', '.join(unknown)}")
        selection = cls(**settings)
        choices = {
            "section": ("findings", "impression", "both"),
            "unit": ("study", "image"),
            "views": ("frontal", "all"),
            "unknown_views": ("keep", "drop"),
            "deidentified": ("keep", "remove", "exclude"),
            "duplicates": ("keep", "exclude"),
            "convention": tuple(CONVENTIONS),
        }
        for key, allowed in choices.items():
            if getattr(selection, key) not in allowed:
                raise DataError(f"selection.{key} is {getattr(selection, key)!r}; choose {', '.join(allowed)}")
        return selection


class Flow:
    """The studies still in, and the record of those left out, rule by rule, for the flow diagram."""

    def __init__(self, reading: Reading) -> None:
        self.studies = reading.studies
        self.excluded = list(reading.excluded)
        before = len(reading.studies) + len({uid for uid, _, _ in reading.excluded})
        self.steps = []
        for rule, count in Counter(rule for _, rule, _ in reading.excluded).items():
            before -= count
            self.steps.append({"rule": rule, "left_out": count, "remaining": before})

    def exclude(self, out: np.ndarray, rule: str, detail: Callable[[pd.Series], str] | str) -> None:
        """Leave out the rows where the boolean array ``out`` is true; ``detail`` is a text or makes one from a row."""
        if isinstance(detail, str):
            self.excluded += [(uid, rule, detail) for uid in self.studies["study_uid"][out]]
        else:
            self.excluded += [(row["study_uid"], rule, detail(row)) for _, row in self.studies[out].iterrows()]
        self.studies = self.studies[~out].reset_index(drop=True)
        self.steps.append({"rule": rule, "left_out": int(out.sum()), "remaining": len(self.studies)})


def select(
    reading: Reading, root: str | Path, reader: str, selection: Selection
) -> tuple[pd.DataFrame, list[tuple[str, str, str]], dict[str, Any]]:
    """Apply the rules in order.

    Returns:
        the selected studies (columns of ``studies.parquet``, labels unpacked), the excluded as (study_uid,
        rule, detail), and the counts of the flow from raw to used.

    Raises:
        DataError: nothing is left, a share of unreadable files is above its limit, or the convention is not
        this reader's.
    """
    raw = {
        "studies": len(reading.studies) + len({uid for uid, _, _ in reading.excluded}),
        "patients": reading.notes["patients"],
        "images": reading.notes["images"],
    }
    bad = [item for item in reading.excluded if item[1] in ("undecodable_report", "unreadable_report")]
    stop_above(selection.max_unreadable, len(bad), raw["studies"], "reports cannot be read or decoded", bad)
    flow = Flow(reading)
    notes = {name: n for name, n in reading.notes.items() if name not in raw}
    assign_splits(flow, reader, selection)
    notes["images_of_other_views"] = choose_views(flow, selection)
    choose_text(flow, selection)
    if selection.unit == "image":
        flow.studies = one_row_an_image(flow.studies)
        flow.steps.append({"rule": "one_row_an_image", "left_out": 0, "remaining": len(flow.studies)})
    left_out = check_images(flow, reading, Path(root), selection)
    notes["unreadable_images"] = len(left_out)
    shared = shared_texts(flow.studies)
    notes["texts_in_several_splits"] = len(shared)
    copies = flow.studies["target"].isin(shared).to_numpy()
    notes["studies_whose_text_is_in_several_splits"] = int(copies.sum())
    if selection.duplicates == "exclude":
        later = copies & (flow.studies["split"] != "test").to_numpy()
        in_validate = set(flow.studies["target"][flow.studies["split"] == "validate"])
        in_test = set(flow.studies["target"][flow.studies["split"] == "test"])
        in_train = (flow.studies["split"] == "train").to_numpy()
        later &= (in_train & flow.studies["target"].isin(in_validate | in_test).to_numpy()) | (
            ~in_train & flow.studies["target"].isin(in_test).to_numpy()
        )
        flow.exclude(later, "duplicate_text", "the same text stands in an evaluation split")
    if flow.studies.empty:
        steps = ", ".join(f"{step['rule']} {step['left_out']}" for step in flow.steps)
        raise DataError(f"the selection leaves no study of {raw['studies']}; left out: {steps}")
    counts = {
        "reader": reader,
        "convention": selection.convention,
        "convention_note": CONVENTIONS[selection.convention],
        "unit": selection.unit,
        "raw": raw,
        "flow": flow.steps,
        "used": count_splits(flow.studies),
        "notes": notes,
        "images_left_out": left_out,
    }
    return flow.studies, flow.excluded, counts


def assign_splits(flow: Flow, reader: str, selection: Selection) -> None:
    """Replace the dataset's own split names by train, validate and test, as the convention says."""
    if selection.convention not in OFFERED[reader]:
        offered = " or ".join(OFFERED[reader])
        raise DataError(f"selection.convention {selection.convention!r} is not for {reader}; choose {offered}")
    known = {"mimic_cxr": ("train", "validate", "test"), "chexpert_plus": ("train", "valid")}[reader]
    strange = ~flow.studies["split"].isin(known).to_numpy()
    flow.exclude(strange, "unknown_split", f"its split is none of {', '.join(known)}")
    own = flow.studies["split"]
    draw = uniforms(selection.split_seed, "split", flow.studies["patient_uid"])
    if selection.convention == "own_split":
        test, validate = selection.fractions["test"], selection.fractions["validate"]
        names = np.where(draw < test, "test", np.where(draw < test + validate, "validate", "train"))
    elif selection.convention == "official_valid":
        carved = np.where(draw < selection.fractions["validate"], "validate", "train")
        names = np.where(own == "valid", "test", carved)
    else:
        names = own.to_numpy()
    flow.studies = flow.studies.assign(split=names)


def view_rank(view: str) -> int | None:
    """Place of a view in the order of preference; None when it is not frontal."""
    if view in FRONTAL_ORDER:
        return FRONTAL_ORDER.index(view)
    if view == UNKNOWN_VIEW:
        return len(FRONTAL_ORDER) + 1
    return len(FRONTAL_ORDER) if re.match(r"(PA|AP|FRONTAL)\b(?!.*\bLAT)", view) else None


def choose_views(flow: Flow, selection: Selection) -> int:
    """Keep and order each study's images: frontal ones, PA, AP, the rest, unknown last; returns how many go."""
    last = len(FRONTAL_ORDER) + 2
    paths, views, dropped = [], [], 0
    for study_paths, study_views in zip(flow.studies["image_paths"], flow.studies["views"], strict=True):
        ranked = []
        for path, view in zip(study_paths, study_views, strict=True):
            rank = view_rank(view)
            unwanted = view == UNKNOWN_VIEW and selection.unknown_views == "drop"
            if unwanted or (rank is None and selection.views == "frontal"):
                dropped += 1
            else:
                ranked.append((last if rank is None else rank, path, view))
        ranked.sort(key=lambda item: item[0])  # stable: the reader's order stays within a rank
        paths.append([path for _, path, _ in ranked])
        views.append([view for _, _, view in ranked])
    seen = flow.studies["views"]
    flow.studies = flow.studies.assign(image_paths=paths, views=views, seen=seen)
    none_left = np.array([not kept for kept in paths], dtype=bool)
    rule = "no_frontal_image" if selection.views == "frontal" else "no_image"
    flow.exclude(none_left, rule, lambda row: "views: " + ", ".join(view or "unknown" for view in row["seen"]))
    flow.studies = flow.studies.drop(columns="seen")
    return dropped


def choose_text(flow: Flow, selection: Selection) -> None:
    """Make ``target`` and ``n_words`` from the sections; case and punctuation stay as written."""
    findings, impression = flow.studies["findings"], flow.studies["impression"]
    if selection.section == "both":
        target = [
            " ".join(part for part in pair if isinstance(part, str)) or None
            for pair in zip(findings, impression, strict=True)
        ]
    else:
        target = [text if isinstance(text, str) else None for text in flow.studies[selection.section]]
    if selection.deidentified == "remove":
        target = [text and (" ".join(text.replace("___", " ").split()) or None) for text in target]
    n_words = [len(text.split()) if text else 0 for text in target]
    flow.studies = flow.studies.assign(target=target, n_words=np.array(n_words, dtype="int32"))
    missing = np.array([not isinstance(text, str) for text in target], dtype=bool)
    name = "text" if selection.section == "both" else selection.section
    flow.exclude(missing, f"no_{name}", "the report has no such section, or an empty one")
    if selection.deidentified == "exclude":
        hidden = flow.studies["target"].str.contains("___", regex=False).to_numpy(dtype=bool)
        flow.exclude(hidden, "deidentified", "the text has ___")
    words = flow.studies["n_words"].to_numpy()
    flow.exclude(words < selection.min_words, "too_short", lambda row: f"{row['n_words']} words")
    words = flow.studies["n_words"].to_numpy()
    flow.exclude(words > selection.max_words, "too_long", lambda row: f"{row['n_words']} words")


def one_row_an_image(studies: pd.DataFrame) -> pd.DataFrame:
    """Unit ``image``: a row for every image, named ``<study_uid>/<image's stem>``, with the study's text."""
    rows = studies.explode(["image_paths", "views"], ignore_index=True)
    stems = [Path(path).stem for path in rows["image_paths"]]
    return rows.assign(
        study_uid=[f"{uid}/{stem}" for uid, stem in zip(rows["study_uid"], stems, strict=True)],
        image_paths=[[path] for path in rows["image_paths"]],
        views=[[view] for view in rows["views"]],
    )


def examine(path: str, locate: Callable[[str], tuple[str | None, list[str]]], root: Path) -> tuple[str, str | None]:
    """Path on disk of an image of the table, and what is wrong with it (None: nothing)."""
    try:
        found, tried = locate(path)
    except (OSError, ValueError) as error:  # a name that the file system refuses
        return path, f"cannot be opened ({getattr(error, 'strerror', None) or error})"
    if found is None:
        return path, f"missing; tried {', '.join(tried)}"
    return found, image_problem(root / found)


def check_images(flow: Flow, reading: Reading, root: Path, selection: Selection) -> list[dict[str, str]]:
    """Resolve every selected image and look at both its ends; a study without any readable image is left out.

    Returns the images that are missing, empty or truncated, those of kept studies included.
    """
    listed = [path for paths in flow.studies["image_paths"] for path in paths]
    with ThreadPoolExecutor(max_workers=8) as threads:  # waiting for a disk, not computing
        results = threads.map(partial(examine, locate=reading.locate, root=root), listed, chunksize=64)
        checked = iter(list(progress(results, "image files checked", len(listed))))
    paths, views, problems, left_out = [], [], [], []
    columns = zip(*(flow.studies[name] for name in ("study_uid", "image_paths", "views")), strict=True)
    for uid, study_paths, study_views in columns:
        outcome = [(*next(checked), view) for view in study_views[: len(study_paths)]]
        bad = [(path, problem) for path, problem, _ in outcome if problem]
        left_out += [{"study_uid": uid, "path": path, "problem": problem} for path, problem in bad]
        paths.append([path for path, problem, _ in outcome if not problem])
        views.append([view for _, problem, view in outcome if not problem])
        problems.append("; ".join(f"{path}: {problem}" for path, problem in bad))
    details = [(item["study_uid"], "unreadable_image", f"{item['path']}: {item['problem']}") for item in left_out]
    stop_above(selection.max_unreadable, len(left_out), len(listed), "selected images are unreadable", details)
    flow.studies = flow.studies.assign(image_paths=paths, views=views, problems=problems)
    none_left = np.array([not kept for kept in paths], dtype=bool)
    flow.exclude(none_left, "unreadable_image", lambda row: row["problems"])
    flow.studies = flow.studies.drop(columns="problems")
    return left_out


def stop_above(limit: float, bad: int, total: int, what: str, details: list[tuple[str, str, str]]) -> None:
    """Raise a `DataError` when ``bad`` of ``total`` is a share above ``limit``; otherwise log it when there is any."""
    if not bad:
        return
    if bad > limit * total:
        examples = "\n".join(f"  {uid}: {detail}" for uid, _, detail in details[:5])
        raise DataError(
            f"{bad} of {total} {what}, more than selection.max_unreadable = {limit:g} allows. The first:\n{examples}\n"
            "Get them again, or raise the limit if they are to be left out."
        )
    log.warning("%d of %d %s: left out and listed", bad, total, what)


def shared_texts(studies: pd.DataFrame) -> set[str]:
    """Exact texts that stand in more than one split."""
    splits = studies.groupby("target")["split"].nunique()
    return set(splits.index[splits > 1])


def count_splits(studies: pd.DataFrame) -> dict[str, dict[str, int]]:
    """Studies, patients and images of every split."""
    return {
        split: {
            "studies": len(part),
            "patients": int(part["patient_uid"].nunique()),
            "images": int(part["image_paths"].str.len().sum()),
        }
        for split in SPLITS
        for part in [studies[studies["split"] == split]]
    }
