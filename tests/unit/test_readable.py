"""Images that only decoding shows to be broken: found by cache_vision, and left out of everything after it alike."""

import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from dive.backbones.vision import BLANK, VisionFeatures, cache_vision
from dive.data.generations import read_generations, write_generations
from dive.data.images import image_problem
from dive.data.readable import UNREADABLE, count_readable, readable_demonstrations, readable_pool
from dive.data.roots import DataError
from dive.data.studies import LABELS, write_studies
from dive.distillation.cache import cache_teacher
from dive.distillation.training import distill
from dive.files import write_json
from dive.generation import generate_reports
from dive.scores.score import align_generations
from dive.shards import Shards

POOL = {"queries": ["a", "b", "c"], "demonstrations": ["d", "e", "f"], "validation": ["g"], "test": ["h", "i"]}


def encoded(kind: str, mode: str = "L", shade: int = 100) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (48, 48), shade).save(buffer, kind)
    return buffer.getvalue()


def picture(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (width, height), 100).save(buffer, "PNG")
    return buffer.getvalue()


def damaged(kind: str) -> bytes:
    """An image with whole ends and nothing sound between them: no look at the ends finds it."""
    whole = encoded(kind)
    cut = whole.index(b"IDAT") + 8 if kind == "PNG" else 33
    return whole[:cut] + bytes(len(whole) - cut - 20) + whole[-20:]


class Pool:
    """A pool of nine studies with an image each; ``images`` replaces contents, or gives a study several."""

    def __init__(self, folder: Path, images: dict[str, list[bytes]]) -> None:
        self.root, self.studies, self.pool = folder, folder / "studies.parquet", folder / "pool.json"
        rows = []
        for index, uid in enumerate(uid for group in POOL.values() for uid in group):
            paths = []
            for view, content in enumerate(images.get(uid, [encoded("JPEG", shade=20 * index)])):
                paths.append(f"{uid}{view}.jpg")
                (folder / paths[-1]).write_bytes(content)
            rows.append((uid, f"p{uid}", "train", paths))
        table = pd.DataFrame(rows, columns=["study_uid", "patient_uid", "split", "image_paths"])
        table = table.assign(views=table["image_paths"], findings=None, impression=None, indication=None)
        table = table.assign(target="text", n_words=1)
        table[list(LABELS)] = np.nan
        write_studies(table, self.studies, {})
        write_json(self.pool, POOL)

    def cache(self, settings: dict, limit: float) -> Path:
        out = self.root / "vision"
        cache_vision(settings, str(self.studies), str(self.pool), str(self.root), str(out), limit)
        return out


@pytest.fixture
def settings(tiny_settings):
    return tiny_settings("gemma3", batch={"vision": 4})


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_damage_between_whole_ends_passes_the_first_look(tmp_path, kind):
    path = tmp_path / "x"
    path.write_bytes(damaged(kind))
    assert image_problem(path) is None


def test_broken_images_are_listed_and_their_studies_left_out_of_everything(tmp_path, settings, caplog):
    broken = {
        "a": [damaged("JPEG")],  # the very first of the pool: the blank image takes its size from the next
        "e": [b""],
        "h": [damaged("PNG"), b"no image"],
        "i": [damaged("JPEG"), encoded("JPEG")],  # its second image is sound
    }
    pool = Pool(tmp_path, broken)
    out = pool.cache(settings, 0.6)
    account = json.loads((out / UNREADABLE).read_text())
    assert account["studies"] == ["a", "e", "h"]
    assert [bad["path"] for bad in account["images"]] == ["a0.jpg", "e0.jpg", "h0.jpg", "h1.jpg", "i0.jpg"]
    assert all(bad["problem"] for bad in account["images"])
    assert account["decoded"] == 11
    assert "3 studies are left out" in caplog.text
    assert set(VisionFeatures(out)) == {"b", "c", "d", "f", "g", "i", BLANK}
    assert readable_pool(pool.pool, out) == {
        "queries": ["b", "c"],
        "demonstrations": ["d", "f"],
        "validation": ["g"],
        "test": ["i"],
    }
    assert count_readable(pool.pool, out)["test"] == (2, 1)


def test_too_many_broken_images_stop_the_run_and_leave_nothing(tmp_path, settings):
    pool = Pool(tmp_path, {"a": [damaged("JPEG")], "b": [damaged("PNG")]})
    with pytest.raises(DataError, match=r"(?s)2 images of a pool of 9 .*max_unreadable = 0\.2 .*a: a0\.jpg"):
        pool.cache(settings, 0.2)
    assert not (tmp_path / "vision").exists()


def test_an_image_that_no_processor_takes_costs_its_study_and_no_job(tmp_path, tiny_settings):
    """Selection finds such images first; a file may be replaced between selection and decoding."""
    thin = {uid: [picture(*size)] for uid, size in {"a": (300, 1), "d": (1, 300), "f": (3, 90), "g": (1, 1)}.items()}
    pool = Pool(tmp_path, {**thin, "b": [encoded("JPEG") + b"exported\n"], "c": [encoded("PNG", "I;16", 1000)]})
    for family in ("gemma3", "qwen2_5_vl"):
        out = pool.cache(tiny_settings(family, batch={"vision": 4}), 0.5)
        account = json.loads((out / UNREADABLE).read_text())
        assert account["studies"] == ["a", "d", "f", "g"]
        assert account["images"][0]["problem"] == "too small: 300 x 1 pixels, and a side needs at least 8"
        assert {"b", "c"} < set(VisionFeatures(out))


def test_a_raised_limit_goes_on_from_what_was_computed(tmp_path, settings, caplog):
    """And another batch size with it, in float32: neither decides a feature."""
    caplog.set_level("INFO", "dive")
    pool = Pool(tmp_path, {"i": [damaged("JPEG")]})
    whole = pool.cache(settings, 0.6)
    expected = VisionFeatures(whole)
    given = (str(pool.studies), str(pool.pool), str(pool.root), str(tmp_path / "again"))
    with pytest.raises(DataError, match="1 images of a pool of 9"):
        cache_vision(settings, *given, 0.1, str(tmp_path / "partial"))
    cache_vision({**settings, "batch": {"vision": 2}}, *given, 0.2, str(tmp_path / "partial"))
    assert "continuing: the features of 9 images are already cached" in caplog.text
    found = VisionFeatures(tmp_path / "again")
    assert set(found) == set(expected)
    assert all(torch.equal(found[uid].tokens, expected[uid].tokens) for uid in found)


def test_sound_images_leave_an_empty_account(tmp_path, settings):
    pool = Pool(tmp_path, {})
    out = pool.cache(settings, 0.0)
    account = json.loads((out / UNREADABLE).read_text())
    assert (account["decoded"], account["images"], account["studies"]) == (9, [], [])
    assert readable_pool(pool.pool, out) == POOL


def vision_without(folder: Path, *studies: str) -> str:
    write_json(folder / "vision" / UNREADABLE, {"studies": list(studies)})
    return str(folder / "vision")


def test_a_broken_demonstration_is_replaced_for_everybody_alike(tmp_path):
    pool = Pool(tmp_path, {})
    drawn = {"queries": {"a": ["d", "e"], "b": ["f", "d"], "c": ["e", "f"]}, "test": {"h": ["e", "d"]}}
    path = tmp_path / "drawn.json"
    write_json(path, drawn)
    vision = vision_without(tmp_path, "e", "c")
    replaced = readable_demonstrations(path, pool.studies, vision)
    assert replaced == {"queries": {"a": ["d", "f"], "b": ["f", "d"]}, "test": {"h": ["f", "d"]}}
    assert readable_demonstrations(path, pool.studies, tmp_path / "nothing") == drawn
    with pytest.raises(DataError, match="no other patient is left"):
        readable_demonstrations(path, pool.studies, vision_without(tmp_path, "e", "f"))


def test_shared_demonstrations_stay_shared_without_broken_ones(tmp_path):
    pool = Pool(tmp_path, {})
    path = tmp_path / "drawn.json"
    write_json(path, {"queries": {"a": ["d", "e"], "b": ["d", "e"]}, "test": {"h": ["d", "e"]}, "spare": ["f"]})
    whole = readable_demonstrations(path, pool.studies, tmp_path / "nothing")
    assert whole == {"queries": {"a": ["d", "e"], "b": ["d", "e"]}, "test": {"h": ["d", "e"]}}
    vision = vision_without(tmp_path, "d", "b")
    assert readable_demonstrations(path, pool.studies, vision) == {
        "queries": {"a": ["e", "f"]},
        "test": {"h": ["e", "f"]},
    }
    with pytest.raises(DataError, match="only 1 of the 3 candidates"):
        readable_demonstrations(path, pool.studies, vision_without(tmp_path, "d", "e"))


def test_rows_that_read_no_image_are_scored_on_the_same_studies(tmp_path):
    path = tmp_path / "constant.parquet"
    write_generations(path, [(uid, f"p{uid}", "text", 1, True) for uid in POOL["test"]])
    assert align_generations(str(path), ["i"], {"h"})["study_uid"] == ["i"]
    with pytest.raises(ValueError, match="not in the test set"):
        align_generations(str(path), ["i"])


def test_teacher_training_and_generation_go_on_without_broken_studies(tmp_path, tiny_settings):
    settings = tiny_settings("gemma3", batch={"vision": 4, "teacher": 2, "training": 2, "generation": 2})
    pool = Pool(tmp_path, {uid: [damaged("PNG")] for uid in "aeh"})
    vision = str(pool.cache(settings, 0.5))
    drawn = {group: {uid: ["e", "d"] for uid in POOL[group]} for group in ("queries", "validation", "test")}
    demonstrations, spans = str(tmp_path / "drawn.json"), str(tmp_path / "spans.parquet")
    drawn["queries"]["b"] = ["d", "f"]
    write_json(demonstrations, drawn)
    pq.write_table(pa.table({"study_uid": ["b"], "start": [0], "end": [4]}), spans)
    studies, members = str(pool.studies), str(pool.pool)
    teacher, adapter = str(tmp_path / "teacher"), str(tmp_path / "adapter")
    cache_teacher(settings, studies, demonstrations, vision, {"max_report_tokens": 16}, teacher)
    assert set(Shards(teacher)) == {"b", "c"}
    method = {
        "module": "dive",
        "rank": 2,
        "layers": "all",
        "positions": "answer",
        "weights": {"pathology": 3, "eos": 10},
        "loss": {"kd": 1.0, "ce": 0.5, "hidden": 0.0, "temperature": 1.0},
        "optimiser": {"lr": 1e-3, "weight_decay": 0.0, "warmup": 0.1, "clip": 1.0},
        "epochs": 1,
        "batch_size": 2,
    }
    training = {"max_report_tokens": 16, "validation_studies": 1}
    distill(
        backbone=settings,
        method=method,
        studies=studies,
        pool=members,
        spans=spans,
        vision=vision,
        teacher=teacher,
        training=training,
        seed=0,
        out=adapter,
        checkpoint=str(tmp_path / "checkpoint"),
    )
    for name, arguments in {
        "icl": ({"demonstrations": True, "image": "own"}, demonstrations, None),
        "dive": (method, None, adapter),
    }.items():
        settled, shown, trained = arguments
        out = tmp_path / f"{name}.parquet"
        generate_reports(
            settings, settled, studies, members, shown, vision, trained, {"max_new_tokens": 3}, str(out), f"{out}.part"
        )
        assert read_generations(out)["study_uid"] == ["i"]
