"""A checkpoint fills its model exactly, with finite numbers, or is refused by the names of its weights."""

import json
import logging
import random
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from dive.backbones.finite import not_finite
from dive.backbones.loading import load_backbone
from dive.job import logged
from tests.unit import tiny_models

FAMILIES = [*tiny_models.FAMILIES, "llava"]
PROJECTION = {
    "gemma3": "multi_modal_projector.mm_input_projection_weight",
    "qwen2_5_vl": "visual.merger.mlp.2.weight",
    "llava": "multi_modal_projector.linear_2.weight",
}
NORM = {
    "gemma3": "language_model.model.layers.1.input_layernorm.weight",
    "qwen2_5_vl": "model.layers.1.input_layernorm.weight",
    "llava": "language_model.model.layers.1.input_layernorm.weight",
}


@pytest.fixture(params=FAMILIES)
def checkpoint(request, tiny_settings, tmp_path):
    return Checkpoint(request.param, tiny_settings(request.param)["path"], tmp_path / "model")


class Checkpoint:
    """A copy of a tiny backbone whose files a test damages."""

    def __init__(self, family, whole, folder):
        self.family, self.folder = family, folder
        shutil.copytree(whole, folder)
        self.weights = load_file(folder / "model.safetensors")

    def write(self, **changes):
        """Write the weights, the changed among them; None leaves one out."""
        changed = self.weights | {name: value for name, value in changes.items() if value is not None}
        kept = {name: value for name, value in changed.items() if changes.get(name, value) is not None}
        save_file(kept, self.folder / "model.safetensors", {"format": "pt"})

    def configure(self, **values):
        """Set values of config.json, in the text configuration as well."""
        path = self.folder / "config.json"
        config = json.loads(path.read_text())
        config |= values
        config["text_config"] |= values
        path.write_text(json.dumps(config))

    def named(self, *parts):
        """Name of the first weight that has one of ``parts`` in its name."""
        return next(name for name in sorted(self.weights) if any(part in name for part in parts))

    def shard(self):
        """Write the weights as several shards with an index; the first shard."""
        model = load_backbone(tiny_models.settings(self.folder)).model
        (self.folder / "model.safetensors").unlink()
        model.save_pretrained(self.folder, max_shard_size="60KB")
        shards = sorted(self.folder.glob("model-*.safetensors"))
        assert len(shards) > 2
        return shards[0]

    def load(self, **changes):
        return load_backbone({**tiny_models.settings(self.folder), **changes})

    def refused(self, match, error=ValueError, **changes):
        with pytest.raises(error, match=match) as caught:
            self.load(**changes)
        assert str(self.folder) in str(caught.value)
        return str(caught.value)


def last_part(name):
    return name.rpartition(".layers.")[2]


def test_missing_weights_are_named(checkpoint):
    tower = [name for name in sorted(checkpoint.weights) if "vis" in name][:21]
    checkpoint.write(**dict.fromkeys(tower))
    said = checkpoint.refused(r"missing 21 weights \(")
    assert "and 16 more" in said
    checkpoint.write(**{PROJECTION[checkpoint.family]: None})
    # Its name in the model, which is longer than in the file of some families.
    assert PROJECTION[checkpoint.family] in checkpoint.refused(r"missing 1 weight \(")


def test_unexpected_weights_are_named(checkpoint):
    checkpoint.write(**{"score.weight": torch.zeros(2), "model.layers.0.self_attn.q_proj.lora_A.weight": torch.ones(2)})
    said = checkpoint.refused(r"unexpected 2 weights \(")
    assert "score.weight" in said
    assert "lora_A" in said


def test_weights_of_another_shape_are_named(checkpoint):
    norm = NORM[checkpoint.family]
    checkpoint.write(**{norm: torch.zeros(16)})
    assert last_part(norm) in checkpoint.refused(r"with another shape 1 weight \(")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_are_named(checkpoint, value):
    norm = NORM[checkpoint.family]
    broken = checkpoint.weights[norm].clone()
    broken[3] = value
    checkpoint.write(**{norm: broken})
    said = checkpoint.refused(r"1 weight \(\S+\) with values that are not finite; download or build")
    assert last_part(norm) in said
    assert "dtype" not in said


def test_a_value_beyond_float16_names_the_dtype(checkpoint):
    norm = NORM[checkpoint.family]
    large = checkpoint.weights[norm].clone()
    large[3] = 1e5
    checkpoint.write(**{norm: large})
    assert checkpoint.load(dtype="bfloat16").dtype == torch.bfloat16
    assert "backbones.*.dtype to bfloat16 or float32" in checkpoint.refused("not finite", dtype="float16")


def test_one_value_among_many_is_found_wherever_it_is():
    draw = random.Random(0)
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        for value in (float("nan"), float("inf"), float("-inf")):
            tensors = {str(size): torch.randn(size).to(dtype) for size in (1, 31, 4099)}
            tensors |= {"none": torch.zeros(0, dtype=dtype), "whole": torch.arange(3)}
            assert not_finite(tensors) == []
            for name in ("1", "31", "4099"):
                one = tensors[name].clone()
                one[draw.choice([0, len(one) - 1, draw.randrange(len(one))])] = value
                assert not_finite(tensors | {name: one}) == [name]
    assert not_finite({}) == []


def test_tied_embeddings_may_be_there_once_or_twice(checkpoint):
    """As Gemma 3 and small Qwen 2.5-VL are saved, and as copies of them are."""
    embedding = checkpoint.named("embed_tokens")
    head = next((name for name in checkpoint.weights if "lm_head" in name), "lm_head.weight")
    checkpoint.configure(tie_word_embeddings=True)
    checkpoint.write(**{head: None})
    model = checkpoint.load().model
    assert torch.equal(model.get_output_embeddings().weight, checkpoint.weights[embedding])
    checkpoint.write(**{head: checkpoint.weights[embedding].clone()})
    assert torch.equal(checkpoint.load().model.get_output_embeddings().weight, checkpoint.weights[embedding])
    # Without either there is nothing to tie.
    checkpoint.write(**{embedding: None, head: None})
    checkpoint.refused("embed_tokens.weight")
    # And a head of its own is missing if it is not there.
    checkpoint.configure(tie_word_embeddings=False)
    checkpoint.write(**{head: None})
    checkpoint.refused(r"missing 1 weight \(lm_head.weight\)")


def test_tied_embeddings_that_differ_are_not_overwritten_by_one_another(checkpoint):
    embedding = checkpoint.named("embed_tokens")
    head = next((name for name in checkpoint.weights if "lm_head" in name), "lm_head.weight")
    other = torch.randn_like(checkpoint.weights[embedding])
    checkpoint.configure(tie_word_embeddings=True)
    checkpoint.write(**{head: other})
    if transformers.__version__.startswith("4."):  # it would take one for both
        checkpoint.refused("set tie_word_embeddings to false")
        checkpoint.configure(tie_word_embeddings=False)
    model = checkpoint.load().model
    assert torch.equal(model.get_output_embeddings().weight, other)
    assert torch.equal(model.get_input_embeddings().weight, checkpoint.weights[embedding])


def test_a_pooling_head_that_nothing_reads_may_be_there_or_not(tiny_settings, tmp_path):
    checkpoint = Checkpoint("gemma3", tiny_settings("gemma3")["path"], tmp_path / "model")
    checkpoint.write(**{"vision_tower.vision_model.head.probe": torch.zeros(1, 1, 24)})
    checkpoint.load()
    path = checkpoint.folder / "config.json"
    config = json.loads(path.read_text())
    config["vision_config"]["vision_use_head"] = True
    path.write_text(json.dumps(config))
    checkpoint.write()
    picture = tiny_models.image(0).convert("RGB")
    features = [load_backbone(tiny_settings("gemma3")), checkpoint.load()]
    features = [backbone.embed_images([picture])[0].tokens for backbone in features]
    assert torch.equal(*features)


def test_shards_are_checked_like_one_file(checkpoint):
    first = checkpoint.shard()
    whole = checkpoint.load()
    assert not_finite(dict(whole.model.named_parameters())) == []
    weights = load_file(first)
    # What the index promises and its shard lacks
    name = next(iter(weights))
    save_file({key: value for key, value in weights.items() if key != name}, first, {"format": "pt"})
    assert ".".join(name.split(".")[-2:]) in checkpoint.refused(r"missing \d weight")
    content = first.read_bytes()
    for damage in (b"", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 2\n", content[:-100]):
        first.write_bytes(damage)
        checkpoint.refused(rf"{first.name}: cut off, damaged, or no safetensors file")
    first.unlink()
    checkpoint.refused(rf"{first.name} is absent, though its index names it")
    index = checkpoint.folder / "model.safetensors.index.json"
    index.write_text(index.read_text()[:100])
    checkpoint.refused("index.json: cut off, damaged, or no JSON object")


def test_a_single_file_that_is_cut_off_names_itself(checkpoint):
    path = checkpoint.folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    checkpoint.refused(r"model\.safetensors: cut off, damaged, or no safetensors file")
    path.unlink()
    checkpoint.refused(r"model\.safetensors", error=OSError)


def test_shards_of_two_checkpoints_are_not_mixed(checkpoint):
    first = checkpoint.shard()
    last = sorted(checkpoint.folder.glob("model-*.safetensors"))[-1]
    (name, tensor), *_ = load_file(first).items()
    kept = load_file(last)
    save_file(kept | {name: tensor}, last, {"format": "pt"})
    checkpoint.load()  # twice the same
    save_file(kept | {name: tensor + 1}, last, {"format": "pt"})
    told = checkpoint.refused("differ in")
    assert name in told
    assert first.name in told
    assert last.name in told


def test_a_file_whose_end_never_came_is_told_from_zeros(checkpoint):
    """Some programs write a file's full size at once, and its bytes as they come."""
    path = checkpoint.folder / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: 2 * len(content) // 3] + bytes(len(content) - 2 * len(content) // 3))
    checkpoint.refused("with zeros alone, as in a file that was downloaded in part")


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_quantised_weights_without_their_configuration_are_named(checkpoint, dtype):
    name = checkpoint.named(".q_proj.weight")
    checkpoint.write(**{name: checkpoint.weights[name].to(dtype)})
    assert name in checkpoint.refused("that are no floating-point numbers of 16 or more bits")


@pytest.mark.parametrize("tokens", ["1", [[1]], 1.0, True])
def test_end_tokens_that_are_no_numbers_name_the_key(checkpoint, tokens):
    path = checkpoint.folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": tokens}))
    with pytest.raises(ValueError, match=r"eos_token_id of the backbone's generation_config\.json is neither"):
        checkpoint.load()


def test_an_adapter_beside_the_weights_is_not_left_out_silently(checkpoint):
    (checkpoint.folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    checkpoint.refused("PEFT adapter, which would not be applied")


def test_an_unknown_family_is_refused_before_its_weights_are_read(tmp_path):
    folder = tiny_models.write_tiny(tmp_path / "model", "idefics3")
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="model_type 'idefics3' is not supported"):
        load_backbone(tiny_models.settings(folder))


def test_what_the_loader_warns_of_is_in_the_log(checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    missing = PROJECTION[checkpoint.family]
    checkpoint.write(**{missing: None})
    handlers = list(logging.getLogger("transformers").handlers)
    with pytest.raises(SystemExit, match="missing 1 weight"), logged("logs/job.log"):
        checkpoint.load()
    warned, _, _ = (tmp_path / "logs" / "job.log").read_text().partition("Traceback")
    assert missing in warned
    assert logging.getLogger("transformers").handlers == handlers
