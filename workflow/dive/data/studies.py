"""The studies table that everything downstream of the readers shares: a row a study."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from dive.files import DataError, atomic_path
from dive.parquet import read_schema, read_table, write_table

LABELS = (
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)
"""CheXpert's fourteen observations; 1.0 present, 0.0 absent, -1.0 uncertain, null not mentioned."""

SPLITS = ("train", "validate", "test")

SCHEMA = pa.schema(
    [
        pa.field("study_uid", pa.string(), nullable=False),  # unique, e.g. s50414267 or patient42142/study5
        pa.field("patient_uid", pa.string(), nullable=False),  # e.g. p10000032 or patient42142
        pa.field("split", pa.string(), nullable=False),  # one of SPLITS
        pa.field("image_paths", pa.list_(pa.string()), nullable=False),  # relative to the root, best view first
        pa.field("views", pa.list_(pa.string()), nullable=False),  # of the same images; "" where it is unknown
        pa.field("findings", pa.string()),  # white space collapsed; null when absent
        pa.field("impression", pa.string()),
        pa.field("target", pa.string(), nullable=False),  # what the model is to write
        pa.field("indication", pa.string()),
        pa.field("n_words", pa.int32(), nullable=False),  # of the target, by white space
        pa.field("labels", pa.struct([pa.field(label, pa.float64()) for label in LABELS])),  # null: unlabeled
    ]
)


def write_studies(studies: pd.DataFrame, path: str | Path, notes: Mapping[str, str]) -> None:
    """Write ``studies.parquet`` after checking what everything downstream relies on.

    Args:
        studies: a row a study with the columns of `SCHEMA`, but a column for each label instead of the struct; a
            study without any label is written as null.
        path: the file to write, atomically.
        notes: strings kept in the file's metadata, ``dataset``, ``reader`` and ``convention`` among them.

    Raises:
        DataError: study_uids repeat, a split name is unknown, or a patient lies in two splits.
    """
    check_studies(studies)
    plain = pa.schema([field for field in SCHEMA if field.name != "labels"])
    table = pa.Table.from_pandas(studies[plain.names], schema=plain, preserve_index=False)
    values = studies[list(LABELS)].to_numpy(dtype=float)
    missing = np.isnan(values)
    labels = pa.StructArray.from_arrays(
        [pa.array(values[:, i], mask=missing[:, i]) for i in range(len(LABELS))],
        fields=list(SCHEMA.field("labels").type),
        mask=pa.array(missing.all(axis=1)),
    )
    table = table.append_column(SCHEMA.field("labels"), labels)
    metadata = {f"dive.{key}": value for key, value in notes.items()}
    with atomic_path(path) as temporary:
        write_table(table.replace_schema_metadata(metadata), temporary, compression="zstd")


def check_studies(studies: pd.DataFrame) -> None:
    """Raise `DataError` unless studies are unique, splits known and patients in one split only."""
    repeated = studies["study_uid"][studies["study_uid"].duplicated()]
    if len(repeated):
        raise DataError(f"{len(repeated)} studies appear twice, the first is {repeated.iloc[0]}")
    strange = sorted(set(studies["split"]) - set(SPLITS))
    if strange:
        raise DataError(f"splits are {', '.join(SPLITS)}, not {', '.join(map(str, strange))}")
    splits = studies.groupby("patient_uid")["split"].nunique()
    shared = splits.index[splits > 1]
    if len(shared):
        raise DataError(
            f"{len(shared)} patients have studies in more than one split, the first is {shared[0]}: "
            "scores on such a split are not valid"
        )


def read_studies(path: str | Path, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """Read ``studies.parquet``; ``labels`` become dicts, lists become arrays.

    Raises:
        DataError: the file lacks a column or was not written by `write_studies`.
    """
    present = read_schema(path).names
    lacking = [name for name in columns or SCHEMA.names if name not in present]
    if lacking:
        raise DataError(f"{path} has no column {', '.join(lacking)}; remove it and let rule split make it again")
    return read_table(path, columns=list(columns) if columns else None).to_pandas()


def read_notes(path: str | Path) -> dict[str, str]:
    """The strings that `write_studies` kept beside the table: dataset, reader, convention."""
    metadata = read_schema(path).metadata or {}
    return {
        key.decode().removeprefix("dive."): value.decode()
        for key, value in metadata.items()
        if key.startswith(b"dive.")
    }


@dataclass
class Reading:
    """What a dataset's reader hands to the selection.

    Attributes:
        studies: a row a study: study_uid, patient_uid, split (the dataset's own name for it), image_paths and views
            (lists of equal length), findings, impression, indication (collapsed text or None), and a float column for
            each of LABELS.
        excluded: (study_uid, rule, detail) of studies that could not even be read.
        notes: ``images`` and ``patients`` in all, and counts of what was odd without costing a study.
        sizes: the dataset's own split -> patients, studies and images in its tables, before anything is left out.
        locate: path of the table -> (path under the root, paths that were tried); the path is None when there is no
            such file.
    """

    studies: pd.DataFrame
    excluded: list[tuple[str, str, str]]
    notes: dict[str, int]
    sizes: dict[str, dict[str, int]]
    locate: Callable[[str], tuple[str | None, list[str]]]


def count_tables(images: pd.DataFrame) -> dict[str, dict[str, int]]:
    """Patients, studies and images of every split of a table of images: split, subject_id, study_id."""
    groups = images.groupby("split")
    counts = pd.DataFrame(
        {
            "patients": groups["subject_id"].nunique(),
            "studies": groups["study_id"].nunique(),
            "images": groups.size(),
        }
    )
    return {str(split): {name: int(n) for name, n in row.items()} for split, row in counts.iterrows()}


def sample_studies(studies: pd.DataFrame, size: int | None) -> pd.DataFrame:
    """``size`` of the studies, drawn by hash and kept in their order; all of them for None."""
    if size is None or len(studies) <= size:
        return studies
    from dive.data.draws import hashes

    rank = hashes(0, "sample", map(str, studies.index)).argsort().argsort()
    return studies[rank < size]


def collapse(text: str | None) -> str | None:
    """Text with every run of white space as one blank; None when nothing is left."""
    return (" ".join(text.split()) or None) if isinstance(text, str) else None
