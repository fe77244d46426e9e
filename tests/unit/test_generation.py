"""Greedy decoding equals ``model.generate`` on pixel values, batch size one, and goes on after a kill."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dive.backbones.loading import load_backbone
from dive.backbones.steps import RecordedSteps, Steps
from dive.backbones.vision import VisionFeatures
from dive.data.generations import read_generations
from dive.files import Journal
from dive.generation import GREEDY, decode, generate_reports, name_of, render_queries, unused_settings
from dive.provenance import fingerprint
from tests.unit import tiny_models
from tests.unit.tiny_study import write_study

LIMIT = 24


@pytest.fixture(scope="module", params=tiny_models.FAMILIES)
def backbone(request, tmp_path_factory):
    folder = tiny_models.write_tiny(tmp_path_factory.mktemp("backbone"), request.param, seed=3)
    return load_backbone(tiny_models.settings(folder))


@pytest.fixture(scope="module")
def world(backbone):
    images = {f"s{i}": tiny_models.image(i, size).convert("RGB") for i, size in enumerate([48, 36, 48, 24, 48, 48])}
    features = {key: backbone.embed_images([image])[0] for key, image in images.items()}
    counts = {key: len(feature.tokens) for key, feature in features.items()}
    prompts = [
        backbone.prompts.render(
            f"s{i}", counts, [("s1", tiny_models.REPORTS[0]), ("s4", tiny_models.REPORTS[3])][: i % 3]
        )
        for i in range(6)
    ]
    return images, features, prompts


def plain_generate(backbone, prompt, images, **options):
    """Tokens that ``model.generate`` writes, without the one that ended them, and that one or None."""
    inputs = tiny_models.plain_inputs(backbone, prompt, images)
    out = backbone.model.generate(**inputs, max_new_tokens=LIMIT, **{"do_sample": False, **options})
    *new, last = out[0, len(prompt.ids) :].tolist()
    return (new, last) if last in backbone.stop_ids else ([*new, last], None)


def as_generated(reports):
    return [(report.ids, report.ended_by) for report in reports]


@pytest.mark.parametrize("kind", [Steps, RecordedSteps])
def test_greedy_decoding_equals_generate_and_batch_size_one(backbone, world, monkeypatch, kind):
    monkeypatch.setattr("dive.generation.steps_for", kind)
    images, features, prompts = world
    expected = [plain_generate(backbone, prompt, images) for prompt in prompts]
    assert len({tuple(ids) for ids, _ in expected}) > 1, "the fixture must not answer the same to every prompt"
    for size in (1, 4, 6):
        assert as_generated(decode(backbone, prompts, features, LIMIT, batch_size=size)) == expected


@pytest.mark.parametrize("kind", [Steps, RecordedSteps])
def test_reports_end_at_every_token_at_which_generate_stops(backbone, world, monkeypatch, kind):
    monkeypatch.setattr("dive.generation.steps_for", kind)
    images, features, prompts = world
    settings = backbone.model.generation_config
    monkeypatch.setattr(settings, "eos_token_id", 10**6)  # no token has this number
    free = decode(backbone, prompts, features, LIMIT, batch_size=6)
    assert all(len(report.ids) == LIMIT and not report.stopped for report in free)
    first, second = free[0].ids[5], free[1].ids[9]
    for ends in (first, [second, 10**6, backbone.term_id, first]):
        monkeypatch.setattr(settings, "eos_token_id", ends)
        expected = [plain_generate(backbone, prompt, images) for prompt in prompts]
        assert first in {end for _, end in expected}
        assert as_generated(decode(backbone, prompts, features, LIMIT, batch_size=6)) == expected
    assert len({end for _, end in expected}) > 1
    for before, after in zip(free, decode(backbone, prompts, features, LIMIT, batch_size=6), strict=True):
        stop = next((i for i, token in enumerate(before.ids) if token in backbone.stop_ids), LIMIT)
        assert after.ids == before.ids[:stop]
        assert after.stopped == (stop < LIMIT)


def test_generate_writes_the_same_with_the_settings_that_the_log_names(backbone, world, monkeypatch):
    """Qwen 2.5-VL's generation_config.json, for example, samples and has a penalty for repetition."""
    images, features, prompts = world
    settings = backbone.model.generation_config
    assert unused_settings(settings) == {}
    with monkeypatch.context() as patch:
        patch.setattr(settings, "guidance_scale", 1.5)
        patch.setattr(settings, "stop_strings", ["."])
        assert unused_settings(settings) == {"guidance_scale": 1.5, "stop_strings": ["."]}
    for name, value in {"do_sample": True, "temperature": 1e-6, "repetition_penalty": 1.5}.items():
        monkeypatch.setattr(settings, name, value)
    unused = unused_settings(settings)
    assert unused == {"do_sample": True, "repetition_penalty": 1.5}
    decoded = as_generated(decode(backbone, prompts, features, LIMIT, batch_size=6))
    assert decoded != [plain_generate(backbone, prompt, images) for prompt in prompts]
    neutral = {name: GREEDY[name] for name in unused}
    assert decoded == [plain_generate(backbone, prompt, images, **neutral) for prompt in prompts]


def test_the_table_says_which_token_ended_each_report(tiny_settings, tmp_path, caplog):
    caplog.set_level("INFO")
    settings = tiny_settings("gemma3")
    folder = tmp_path / "model"
    shutil.copytree(settings["path"], folder)
    settings = {**settings, "path": str(folder)}
    study = write_study(tmp_path / "study", load_backbone(settings))
    uids = [uid for group in study.members.values() for uid in group]
    pq.write_table(
        pa.table({"study_uid": uids, "patient_uid": uids, "target": list(study.targets.values())}), study.studies
    )
    test = study.members["queries"]
    Path(study.pool).write_text(json.dumps({"test": test}))

    def generate():
        out = tmp_path / "out.parquet"
        arguments = (study.studies, study.pool, None, study.vision, None, {"max_new_tokens": LIMIT})
        generate_reports(settings, {"image": "own"}, *arguments, str(out), str(tmp_path / "partial"))
        return read_generations(out)

    free = generate()
    assert set(free["ended_by"]) <= {None, "<end_of_turn>", "<eos>"}
    assert free["stopped"] == [token is not None for token in free["ended_by"]]
    backbone, features = load_backbone(settings), VisionFeatures(study.vision)
    written = decode(backbone, render_queries(backbone, test, features.n_tokens, {}), features, LIMIT, 6)
    token = max(written, key=lambda report: len(report.ids)).ids[3]
    generation = json.loads((folder / "generation_config.json").read_text())
    generation["eos_token_id"].append(token)
    (folder / "generation_config.json").write_text(json.dumps(generation))
    ended = generate()
    name = backbone.tokenizer.convert_ids_to_tokens(token)
    for report, length, end in zip(written, ended["n_tokens"], ended["ended_by"], strict=True):
        if token in report.ids:
            assert (length, end) == (report.ids.index(token), name)
        else:
            assert (length, end) == (len(report.ids), name_of(backbone.tokenizer, report.ended_by))
    assert f"{name} ({ended['ended_by'].count(name)})" in caplog.text
    assert name_of(backbone.tokenizer, 10**6) == "1000000"


def test_a_partial_file_is_continued_only_by_the_run_that_began_it(tmp_path):
    pool = tmp_path / "pool.json"
    pool.write_text("{}")
    mine = fingerprint([{"max_new_tokens": 5}], [str(pool), None])
    other = fingerprint([{"max_new_tokens": 6}], [str(pool), None])
    partial = tmp_path / "partial.jsonl"
    Journal(partial, mine).begin([["s1", "Text.", 3, True]])
    with partial.open("a") as file:
        file.write('["s2", "cut of')
    assert Journal(partial, mine).read() == [["s1", "Text.", 3, True]]
    assert Journal(partial, other).read() == []
    pool.write_text("{ }")
    assert fingerprint([{"max_new_tokens": 5}], [str(pool), None]) != mine
