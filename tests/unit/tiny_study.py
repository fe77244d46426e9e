"""The files that a training job reads, for the tiny models: a handful of studies, written without any other stage."""

import json
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from tests.unit.tiny_models import REPORTS, image

PATHOLOGY = ("enlarged", "effusion", "consolidation", "pneumonia", "edema", "cardiomegaly", "chest tube")
DIVE = {
    "module": "dive",
    "rank": 4,
    "layers": "all",
    "positions": "answer",
    "weights": {"pathology": 3, "eos": 10},
    "loss": {"kd": 1.0, "ce": 0.5, "hidden": 0.0, "temperature": 1.0},
    "optimiser": {"lr": 1e-2, "weight_decay": 1e-3, "warmup": 0.1, "clip": 1.0},
    "epochs": 3,
    "batch_size": 4,
}
TRAINING = {"max_report_tokens": 64, "validation_studies": 3}


class TinyStudy(NamedTuple):
    """Paths of a training job's inputs, and what is in them."""

    studies: str
    pool: str
    demonstrations: str
    spans: str
    vision: str
    targets: dict[str, str]
    members: dict[str, list[str]]
    drawn: dict[str, list[str]]


def write_study(folder: Path, backbone, n_queries: int = 6, shots: int = 2) -> TinyStudy:
    """``n_queries`` queries, 3 validation studies, 4 demonstrations, their spans and their vision features."""
    from dive.shards import ShardWriter

    folder.mkdir(parents=True, exist_ok=True)
    names = {"queries": n_queries, "validation": 3, "demonstrations": 4}
    members = {group: [f"{group[0]}{i}" for i in range(n)] for group, n in names.items()}
    uids = [uid for group in members.values() for uid in group]
    targets = {uid: " ".join(REPORTS[(i + j) % 5] for j in range(1 + i % 2)) for i, uid in enumerate(uids)}
    drawn = {uid: [f"d{(i + j) % 4}" for j in range(shots)] for i, uid in enumerate(members["queries"])}
    rows = [
        {"study_uid": uid, "start": text.find(word), "end": text.find(word) + len(word)}
        for uid, text in targets.items()
        for word in PATHOLOGY
        if word in text
    ]
    paths = {name: str(folder / name) for name in ("studies.parquet", "pool.json", "drawn.json", "spans.parquet")}
    pq.write_table(pa.table({"study_uid": uids, "target": list(targets.values())}), paths["studies.parquet"])
    pq.write_table(pa.Table.from_pylist(rows), paths["spans.parquet"])
    Path(paths["pool.json"]).write_text(json.dumps({**members, "test": []}))
    Path(paths["drawn.json"]).write_text(json.dumps({"queries": drawn}))
    # Qwen's number of image tokens depends on the picture, so that prompts differ in length.
    features = backbone.embed_images([image(i, 48 if i % 3 else 24).convert("RGB") for i in range(len(uids))])
    with ShardWriter(folder / "vision", {}) as writer:
        for uid, feature in zip(uids, features, strict=True):
            writer.add(uid, feature.tokens, grid=feature.grid)
    return TinyStudy(*paths.values(), str(folder / "vision"), targets=targets, members=members, drawn=drawn)
