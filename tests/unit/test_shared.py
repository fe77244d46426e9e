"""Demonstrations that prompts share are run once, and everything comes out as if each prompt had been run whole."""

import json
from pathlib import Path

import pytest
import torch

from dive.backbones.loading import load_backbone
from dive.backbones.vision import VisionFeatures
from dive.distillation.cache import cache_teacher, predicting_mask, render_supervised, teacher_states
from dive.distillation.examples import Examples
from dive.distillation.layers import cache_layers
from dive.generation import decode
from dive.shards import Shards
from dive.steering.recording import Recording
from tests.unit import tiny_models
from tests.unit.tiny_study import TRAINING, write_study

FAMILIES = [*tiny_models.FAMILIES, "llava"]
ATOL = 1e-5
LIMIT = 40
"""Tokens written: more than Gemma's window of 24, so that windows come to begin in what a row has written."""


@pytest.fixture(scope="module", params=FAMILIES)
def backbone(request, tmp_path_factory):
    folder = tiny_models.write_tiny(tmp_path_factory.mktemp("backbone"), request.param, seed=3)
    return load_backbone(tiny_models.settings(folder))


class World:
    """Seven images of several sizes (Qwen's prompts differ in length) and prompts with the last two demonstrated."""

    def __init__(self, backbone):
        sizes = [48, 36, 24, 48, 24, 48, 36]
        self.images = {f"s{i}": tiny_models.image(i, size).convert("RGB") for i, size in enumerate(sizes)}
        self.features = {key: backbone.embed_images([image])[0] for key, image in self.images.items()}
        self.counts = {key: len(feature.tokens) for key, feature in self.features.items()}
        self.backbone = backbone

    def prompts(self, shown=("s5", "s6"), reports=True):
        texts = tiny_models.REPORTS
        demonstrations = [(uid, texts[int(uid[1:]) % 5]) for uid in shown]
        return [
            self.backbone.prompts.render(
                f"s{i}", self.counts, demonstrations, report=" ".join(texts[: i + 1]) if reports else None
            )
            for i in range(5)
        ]

    def plain(self, prompt):
        """Final hidden states of one prompt from pixel values, by the model's own forward."""
        inputs = tiny_models.plain_inputs(self.backbone, prompt, self.images)
        with torch.no_grad():
            return self.backbone.model.model(**inputs).last_hidden_state[0]


@pytest.fixture(scope="module")
def world(backbone):
    return World(backbone)


def test_shared_demonstrations_continued_equal_the_full_forward(backbone, world):
    prompts = world.prompts()
    shared = backbone.share(prompts, world.features)
    window = getattr(backbone.model.config.get_text_config(), "sliding_window", None)
    own = [len(prompt.ids) - shared.length for prompt in prompts]
    assert len(set(own)) > 1, "padding must lie between the demonstrations and the shorter prompts"
    if window:
        assert shared.length > window
        assert {keys.shape[-2] for keys in shared.keys} == {shared.length, window - 1}
    batch = backbone.collate(prompts, world.features, part="full", shared=shared)
    cache = shared.new_cache()
    hidden = backbone.prefill(batch, cache)
    for row, prompt in enumerate(prompts):
        expected = world.plain(prompt)[shared.length :]
        torch.testing.assert_close(hidden[row, batch.mask[row]], expected, atol=ATOL, rtol=0)
    # Memory holds the demonstrations once, whatever the batch.
    assert all(len(layer.shared_keys) == 1 and len(layer.keys) == len(prompts) for layer in cache.layers)
    assert all(layer.keys.shape[-2] == max(own) for layer in cache.layers)
    if backbone.family.token_types:  # without its image read in both directions this would not hold
        batch.token_types = torch.zeros_like(batch.token_types)
        assert (backbone.prefill(batch, shared.new_cache()) - hidden)[batch.mask].abs().max() > 0.1


def test_windows_from_one_image_to_everything(tmp_path):
    folder = tiny_models.write_tiny(tmp_path / "model", "gemma3", seed=3)
    settings = json.loads((folder / "config.json").read_text())
    for window in (3, 4, 5, 9, 1000):
        settings["text_config"]["sliding_window"] = window
        (folder / "config.json").write_text(json.dumps(settings))
        other = World(load_backbone(tiny_models.settings(folder)))
        assert other.backbone.model.config.get_text_config().sliding_window == window
        prompts = other.prompts()
        shared = other.backbone.share(prompts, other.features)
        if window < other.counts["s0"]:  # transformers 4 and 5 read such an image differently
            assert shared is None
        states = teacher_states(other.backbone, prompts, other.features, shared)
        for prompt, found in zip(prompts, states, strict=True):
            torch.testing.assert_close(found, other.plain(prompt)[prompt.prompt_length - 1 :], atol=ATOL, rtol=0)


def test_greedy_decoding_after_shared_demonstrations_equals_generate(backbone, world, monkeypatch):
    prompts = world.prompts(reports=False)
    expected = []
    for prompt in prompts:
        inputs = tiny_models.plain_inputs(backbone, prompt, world.images)
        out = backbone.model.generate(**inputs, max_new_tokens=LIMIT, do_sample=False)[0, len(prompt.ids) :].tolist()
        expected.append(out[:-1] if out[-1] in backbone.stop_ids else out)
    assert len({tuple(ids) for ids in expected}) > 1, "the fixture must not answer the same to every prompt"
    seen = []
    collate = type(backbone).collate

    def watched(self, *arguments, **options):
        batch = collate(self, *arguments, **options)
        seen.append(batch.mask.sum().item())
        return batch

    monkeypatch.setattr(type(backbone), "collate", watched)
    for size in (2, 5):
        seen.clear()
        assert [report.ids for report in decode(backbone, prompts, world.features, LIMIT, size)] == expected
        shared = backbone.share(prompts, world.features)
        seen.pop()
        assert sum(seen) == shared.length + sum(len(prompt.ids) - shared.length for prompt in prompts)
    # A report that ends early leaves the batch, and the others go on from their own rows.
    term = expected[0][3]
    monkeypatch.setattr(backbone.model.generation_config, "eos_token_id", [*backbone.stop_ids, term])
    ended = decode(backbone, prompts, world.features, LIMIT, 5)
    for report, whole in zip(ended, expected, strict=True):
        assert report.ids == (whole[: whole.index(term)] if term in whole else whole)
    assert len({len(report.ids) for report in ended}) > 1


def test_nothing_is_shared_where_demonstrations_differ(backbone, world):
    same = world.prompts()
    assert backbone.share(same[:1], world.features) is None
    assert backbone.share(world.prompts(shown=()), world.features) is None
    for other in (("s6", "s5"), ("s5",), ("s5", "s3")):
        assert backbone.share([*same, *world.prompts(shown=other)], world.features) is None
    # The same images under other reports
    changed = [
        backbone.prompts.render("s0", world.counts, [("s5", tiny_models.REPORTS[2]), ("s6", tiny_models.REPORTS[2])])
    ]
    assert backbone.share([*same, *changed], world.features) is None


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_caches_of_teacher_and_layers_equal_those_without_sharing(tiny_settings, tmp_path, family, monkeypatch):
    settings = tiny_settings(family)
    backbone = load_backbone(settings)
    study = write_study(tmp_path, backbone, n_queries=5)
    drawn = {"queries": {uid: ["d1", "d3"] for uid in study.members["queries"]}, "spare": ["d0"]}
    Path(study.demonstrations).write_text(json.dumps(drawn))
    folders = {name: str(tmp_path / name) for name in ("teacher", "layers", "plain-teacher", "plain-layers")}
    arguments = (settings, study.studies, study.demonstrations, study.vision, TRAINING)
    cache_teacher(*arguments, folders["teacher"])
    cache_layers(*arguments, folders["layers"])
    monkeypatch.setattr(type(backbone), "share", lambda *_: None)
    cache_teacher(*arguments, folders["plain-teacher"])
    cache_layers(*arguments, folders["plain-layers"])
    for name in ("teacher", "layers"):
        found, expected = Shards(folders[name]), Shards(folders[f"plain-{name}"])
        assert list(found) == list(expected)
        for uid in expected:
            scale = expected[uid].abs().max()  # of layers' outputs, which no norm has scaled
            torch.testing.assert_close(found[uid], expected[uid], atol=ATOL * float(scale), rtol=0)
    # And those are the plain model's.
    features = VisionFeatures(study.vision)
    prompts = render_supervised(
        backbone, study.members["queries"], study.targets, features.n_tokens, 64, drawn["queries"]
    )
    fitted, fitted_heads = {}, {}
    for uid, prompt in zip(study.members["queries"], prompts, strict=True):
        with Recording(backbone.layers) as recording:
            batch = backbone.collate([prompt], features, part="full")
            backbone.prefill(batch)
            states = recording.at(predicting_mask([prompt], batch.mask.shape[1]))
        scale = float(states.abs().max())
        fitted[uid] = states, scale
        torch.testing.assert_close(Shards(folders["layers"])[uid], states, atol=ATOL * scale, rtol=0)
    # So are those that a method is fitted on which runs the queries with demonstrations itself, heads included.
    for sharing in (False, True):
        if sharing:
            monkeypatch.undo()
        examples = Examples(backbone, study.members["queries"], prompts, features, 2, 0, shown=prompts)
        found = dict(examples.in_context(("layer", "heads"), len(prompts)))
        for uid, (states, scale) in fitted.items():
            torch.testing.assert_close(found[uid]["layer"], states, atol=ATOL * scale, rtol=0)
            heads = found[uid]["heads"]
            expected = fitted_heads.setdefault(uid, heads)
            torch.testing.assert_close(heads, expected, atol=ATOL * float(expected.abs().max()), rtol=0)
