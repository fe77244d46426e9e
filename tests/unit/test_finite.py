"""States that are not finite stop every stage that reads them, with the key of the configuration to change."""

import json
import re
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from dive.backbones.loading import ImageFeatures, load_backbone
from dive.backbones.vision import VisionFeatures, cache_vision
from dive.data.studies import LABELS, write_studies
from dive.distillation.cache import cache_teacher, render_supervised
from dive.distillation.examples import Examples
from dive.distillation.layers import cache_layers
from dive.distillation.training import distill
from dive.generation import decode, render_queries
from tests.unit import tiny_models
from tests.unit.tiny_study import DIVE, TRAINING, write_study

LIMIT = 12
LARGE = 8.0
"""Standard deviation of the weights at which activations are as large as real ones: beyond 65504, float16's largest."""


@pytest.fixture(scope="module", params=tiny_models.FAMILIES)
def large(request, tmp_path_factory):
    """Settings of a backbone with large activations, and a study made with it in float32."""
    folder = tmp_path_factory.mktemp("large")
    settings = tiny_models.settings(tiny_models.write_tiny(folder / "model", request.param, scale=LARGE))
    return settings, write_study(folder / "study", load_backbone(settings))


def expected(dtype, study=r"q\d"):
    """A context that asks for the error in float16, and for none in other dtypes."""
    if dtype != "float16":
        return nullcontext()
    told = rf"{study}\b.*: states that are not finite .* in float16; set backbones\.\*\.dtype to bfloat16 or float32$"
    return pytest.raises(RuntimeError, match=told)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_float16_of_large_activations_stops_caches_generation_and_training(large, tmp_path, dtype):
    settings, study = large
    settings = {**settings, "dtype": dtype}
    arguments = (settings, study.studies, study.demonstrations, study.vision, TRAINING)
    for name, cache in (("teacher", cache_teacher), ("layers", cache_layers)):
        with expected(dtype):
            cache(*arguments, str(tmp_path / name))
        assert (tmp_path / name / "manifest.json").exists() == (dtype != "float16")
    backbone, features = load_backbone(settings), VisionFeatures(study.vision)
    uids = study.members["queries"]
    prompts = render_queries(backbone, uids, features.n_tokens, {})
    with expected(dtype):
        assert any(report.ids for report in decode(backbone, prompts, features, LIMIT, 4))
    supervised = render_supervised(backbone, uids, study.targets, features.n_tokens, 64)
    with expected(dtype):
        assert len(list(Examples(backbone, uids, supervised, features, 4, 0).zero_shot())) == len(uids)
    method = {**DIVE, "loss": {"kd": 0.0, "ce": 1.0}, "epochs": 1}
    told = r"validation cross-entropy nan after epoch 0; .*set backbones\.\*\.dtype to float32"
    with pytest.raises(RuntimeError, match=told) if dtype == "float16" else nullcontext():
        distill(
            settings, method, study.studies, study.pool, study.spans, study.vision, None, TRAINING, 0,
            str(tmp_path / "adapter"), str(tmp_path / "checkpoint"),
        )  # fmt: skip


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_float16_of_large_activations_stops_the_vision_cache(tmp_path, dtype):
    settings = tiny_models.settings(tiny_models.write_tiny(tmp_path / "model", "qwen2_5_vl", scale=LARGE))
    tiny_models.image(0).save(tmp_path / "x.png")
    table = pd.DataFrame({"study_uid": ["q0"], "patient_uid": "p", "split": "train", "image_paths": [["x.png"]]})
    table = table.assign(views=table["image_paths"], findings=None, impression=None, indication=None)
    table = table.assign(target="text", n_words=1)
    table[list(LABELS)] = np.nan
    write_studies(table, tmp_path / "studies.parquet", {})
    (tmp_path / "pool.json").write_text(json.dumps({"queries": ["q0"]}))
    paths = [str(tmp_path / name) for name in ("studies.parquet", "pool.json", "", "vision")]
    with expected(dtype, "the blank image"):
        cache_vision({**settings, "dtype": dtype}, *paths)
    assert Path(paths[-1]).exists() == (dtype != "float16")


@pytest.fixture(scope="module", params=tiny_models.FAMILIES)
def backbone(request, tmp_path_factory):
    folder = tiny_models.write_tiny(tmp_path_factory.mktemp("backbone"), request.param, seed=3)
    return load_backbone(tiny_models.settings(folder))


@pytest.fixture(scope="module")
def world(backbone):
    pictures = [tiny_models.image(i, size).convert("RGB") for i, size in enumerate([48, 24, 48, 36])]
    features = {f"s{i}": feature for i, feature in enumerate(backbone.embed_images(pictures))}
    counts = {uid: len(feature.tokens) for uid, feature in features.items()}
    return features, [backbone.prompts.render(uid, counts) for uid in features]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_one_report_of_a_batch_is_named_and_the_others_are_not_blamed(backbone, world, value):
    features, prompts = world
    broken = features["s2"].tokens.clone()
    broken[1, 5] = value
    changed = features | {"s2": ImageFeatures(broken, features["s2"].grid)}
    whole = decode(backbone, prompts, features, LIMIT, 4)
    with pytest.raises(RuntimeError, match=r"^the report of s2, token 1: states that are not finite"):
        decode(backbone, prompts, changed, LIMIT, 4)
    # Neither the other rows nor the padding between them are touched.
    others = [0, 1, 3]
    sound = decode(backbone, [prompts[i] for i in others], changed, LIMIT, 3)
    assert [report.ids for report in sound] == [whole[i].ids for i in others]


def test_what_follows_the_end_of_a_report_stops_nothing(backbone, world, monkeypatch):
    """Until an eighth of a batch has ended, finished reports are read on with the others; nobody needs those states."""
    features, prompts = world
    prompts = prompts[:1] * 9 + prompts[1:]
    monkeypatch.setattr(backbone.model.generation_config, "eos_token_id", 10**6)
    free = decode(backbone, prompts, features, LIMIT, len(prompts))
    last = free[-1].ids
    stop = next(token for token in last if all(token not in report.ids for report in free[:-1]))
    monkeypatch.setattr(backbone.model.generation_config, "eos_token_id", stop)
    extend, steps = type(backbone).extend, []

    def overflowing(self, ids, *arguments):
        hidden = extend(self, ids, *arguments)
        steps.append(len(ids))
        if len(steps) > last.index(stop):
            order = [i for i, prompt in enumerate(ordered) if prompt is prompts[-1]]
            hidden = hidden.index_fill(0, torch.tensor(order), float("nan"))
        return hidden

    monkeypatch.setattr(type(backbone), "extend", overflowing)
    ordered = sorted(prompts, key=lambda prompt: len(prompt.ids))  # as decode batches them
    written = decode(backbone, prompts, features, LIMIT, len(prompts))
    assert set(steps) == {len(prompts)}, "the finished report must have stayed in the batch"
    assert [report.ids for report in written] == [*(report.ids for report in free[:-1]), last[: last.index(stop)]]


def test_padding_that_is_not_finite_is_no_error_where_nothing_reads_it(backbone, world, monkeypatch):
    """Kernels may put anything at positions that see nothing; only states that predict are asked for."""
    features, prompts = world
    whole = decode(backbone, prompts, features, LIMIT, 4)
    prefill = type(backbone).prefill

    def padded(self, batch, cache=None):
        return prefill(self, batch, cache).masked_fill(~batch.mask[..., None], float("nan"))

    monkeypatch.setattr(type(backbone), "prefill", padded)
    assert len({len(prompt.ids) for prompt in prompts}) > 1 or backbone.family.token_types
    assert [report.ids for report in decode(backbone, prompts, features, LIMIT, 4)] == [r.ids for r in whole]


def test_states_that_no_dtype_mends_say_so(backbone, world):
    features, prompts = world
    nothing = {uid: ImageFeatures(f.tokens * float("nan"), f.grid) for uid, f in features.items()}
    told = re.escape("in float32; no backbones.*.dtype is wider: check the weights in backbones.*.path")
    with pytest.raises(RuntimeError, match=told):
        decode(backbone, prompts, nothing, LIMIT, 4)
