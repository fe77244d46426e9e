"""Greedy decoding equals ``model.generate`` on pixel values, batch size one, and goes on after a kill."""

import json

import pytest

from dive.backbones.loading import load_backbone
from dive.files import Journal
from dive.generation import decode
from dive.provenance import fingerprint
from tests.unit import tiny_models

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


def plain_generate(backbone, prompt, images):
    inputs = tiny_models.plain_inputs(backbone, prompt, images)
    out = backbone.model.generate(**inputs, max_new_tokens=LIMIT, do_sample=False, eos_token_id=backbone.term_id)
    new = out[0, len(prompt.ids) :].tolist()
    return new[:-1] if new[-1] == backbone.term_id else new


def test_greedy_decoding_equals_generate_and_batch_size_one(backbone, world):
    images, features, prompts = world
    expected = [plain_generate(backbone, prompt, images) for prompt in prompts]
    assert len({tuple(ids) for ids in expected}) > 1, "the fixture must not answer the same to every prompt"
    for size in (1, 4, 6):
        decoded = decode(backbone, prompts, features, LIMIT, batch_size=size)
        assert [d.ids for d in decoded] == expected


def test_term_stops_and_the_limit_does_not_count_as_a_stop(backbone, world):
    _, features, prompts = world
    free = decode(backbone, prompts, features, LIMIT, batch_size=6)
    chosen = next(d for d in free if not d.stopped)
    # Make a token that the model is known to emit its terminator: generation must end there, and only there.
    term, backbone.term_id = backbone.term_id, chosen.ids[5]
    try:
        for before, after in zip(free, decode(backbone, prompts, features, LIMIT, batch_size=6), strict=True):
            if backbone.term_id in before.ids:
                assert after.stopped
                assert after.ids == before.ids[: before.ids.index(backbone.term_id)]
    finally:
        backbone.term_id = term
    assert not chosen.stopped
    assert len(chosen.ids) == LIMIT


def test_a_partial_file_is_continued_only_by_the_run_that_began_it(tmp_path):
    pool = tmp_path / "pool.json"
    pool.write_text("{}")
    mine = fingerprint([{"max_new_tokens": 5}], [str(pool), None])
    other = fingerprint([{"max_new_tokens": 6}], [str(pool), None])
    partial = tmp_path / "partial.jsonl"
    partial.write_text(json.dumps(mine) + "\n" + json.dumps(["s1", "Text.", 3, True]) + "\n" + '["s2", "cut of')
    assert Journal(partial, mine).read() == [["s1", "Text.", 3, True]]
    assert Journal(partial, other).read() == []
    pool.write_text("{ }")
    assert fingerprint([{"max_new_tokens": 5}], [str(pool), None]) != mine
