"""A small run of the stages that use a backbone, by the functions that the workflow's jobs call, on a random model."""

import gc
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from dive.backbones.vision import cache_vision
from dive.distillation.cache import cache_teacher
from dive.distillation.run import device_peak_memory
from dive.distillation.training import distill
from dive.files import write_json
from dive.generation import generate_reports
from tests.benchmarks.models import METHOD, Shape, draw_study, image_processor, random_backbone

SHOTS = 4
PICTURES = 8  # as many differ; every study shows one of them


class Stage(NamedTuple):
    """What one job took, the loading of the backbone included.

    Attributes:
        name: of the rule.
        what: its work in words.
        seconds: of the job.
        memory: peak GiB of the GPU, or of the process where there is none.
    """

    name: str
    what: str
    seconds: float
    memory: float


def write_inputs(
    folder: Path, shape: Shape, dtype: torch.dtype, device: str, sizes: dict[str, int], length: int
) -> None:
    """A saved model and all files that the stages read: pictures, studies, spans, pool and demonstrations."""
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    from dive.data.studies import LABELS, write_studies

    backbone = random_backbone(shape, device, dtype)
    backbone.model.save_pretrained(folder / "model")
    backbone.tokenizer.save_pretrained(folder / "model")
    image_processor(shape).save_pretrained(folder / "model")
    draw = np.random.default_rng(0)
    for index in range(PICTURES):
        coarse = Image.fromarray(draw.integers(0, 256, (16, 16, 3), np.uint8))
        coarse.resize((shape.pixels, shape.pixels)).save(folder / f"{index}.jpg")
    study = draw_study(shape, sum(sizes.values()), length)
    uids, groups, begin = study.queries, {}, 0
    for group, n in sizes.items():
        groups[group] = uids[begin : begin + n]
        begin += n
    texts = [study.reports[uid] for uid in uids]
    columns: dict[str, Any] = {
        "study_uid": uids,
        "patient_uid": uids,
        "split": ["test" if uid in groups["test"] else "train" for uid in uids],
        "image_paths": [[f"{index % PICTURES}.jpg"] for index in range(len(uids))],
        "views": [["PA"]] * len(uids),
        "findings": texts,
        "impression": None,
        "target": texts,
        "indication": None,
        "n_words": [len(text.split()) for text in texts],
        **dict.fromkeys(LABELS, np.nan),
    }
    write_studies(pd.DataFrame(columns), folder / "studies.parquet", {"dataset": "random"})
    spans = [
        {"study_uid": uid, "start": match.start(), "end": match.end()}
        for uid in uids
        for match in re.finditer(r"\bw1\d*", study.reports[uid])
    ]
    pq.write_table(pa.Table.from_pylist(spans), folder / "spans.parquet")
    write_json(folder / "pool.json", groups)
    shown = groups["demonstrations"]
    drawn = {uid: [shown[(row + k) % len(shown)] for k in range(SHOTS)] for row, uid in enumerate(groups["queries"])}
    write_json(folder / "demonstrations.json", {"queries": drawn, "test": {}})


def run_stages(
    folder: Path, shape: Shape, dtype: torch.dtype, device: str, batch: int, length: int, new_tokens: int
) -> Iterator[Stage]:
    """Write the inputs and run cache_vision, cache_teacher, distill and generate on them, one after another.

    Args:
        folder: an empty one, with room for the model.
        shape: of the backbone.
        dtype: of its weights.
        device: cuda or cpu.
        batch: of every stage; there are four times as many queries, and as many test studies.
        length: tokens of a report.
        new_tokens: limit of the reports that are written.
    """
    sizes = {"queries": 4 * batch, "validation": batch, "demonstrations": 2 * SHOTS, "test": 4 * batch}
    write_inputs(folder, shape, dtype, device, sizes, length)
    gc.collect()
    backbone = {
        "path": str(folder / "model"), "revision": None, "dtype": str(dtype).removeprefix("torch."), "device": device,
        "instruction": "Describe the findings.", "image": {}, "compile": False,
        "batch": dict.fromkeys(("vision", "teacher", "training", "generation"), batch),
    }  # fmt: skip
    method = {**METHOD, "batch_size": batch, "epochs": 3}
    training = {"max_report_tokens": None, "validation_studies": batch, "prefix_cache_gb": 64}
    paths = {
        name: str(folder / name) for name in ("studies.parquet", "pool.json", "spans.parquet", "vision", "teacher")
    }
    studies, pool, spans, vision, teacher = paths.values()
    demonstrations, adapter, checkpoint = (str(folder / name) for name in ("demonstrations.json", "adapter", "state"))
    jobs: dict[str, tuple[str, Callable[[], None]]] = {
        "cache_vision": (
            f"{sum(sizes.values())} images",
            lambda: cache_vision(backbone, studies, pool, str(folder), vision),
        ),
        "cache_teacher": (
            f"{sizes['queries']} queries, {SHOTS} demonstrations",
            lambda: cache_teacher(backbone, studies, demonstrations, vision, training, teacher),
        ),
        "distill": (
            f"{sizes['queries']} queries, 3 epochs, 4 times {batch} validation studies",
            lambda: distill(
                backbone, method, studies, pool, spans, vision, teacher, training, 0, adapter, checkpoint
            ),
        ),
        "generate": (
            f"{sizes['test']} reports of up to {new_tokens} tokens",
            lambda: generate_reports(
                backbone, method, studies, pool, None, vision, adapter, {"max_new_tokens": new_tokens},
                str(folder / "reports.parquet"), str(folder / "partial"),
            ),
        ),
    }  # fmt: skip
    for name, (what, job) in jobs.items():
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        begin = time.perf_counter()
        job()
        yield Stage(name, what, time.perf_counter() - begin, device_peak_memory() / 1024)
        gc.collect()
