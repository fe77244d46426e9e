"""Real backbones are asked before any job whether they can be used: by their config.json, or by what is published."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dive.backbones.check import check_backbones
from dive.backbones.families import family_of
from dive.backbones.loading import load_backbone
from dive.backbones.requirements import FAMILIES, PROCESSORS, image_errors, unsupported

GEMMA = {"model_type": "gemma3", "text_config": {"num_hidden_layers": 4, "hidden_size": 32}}
QWEN = {"model_type": "qwen2_5_vl", "num_hidden_layers": 4, "hidden_size": 32}
STEERING = {"kind": "steering", "module": "dive", "rank": 8, "layers": "all"}


def told(path: str, methods: dict[str, Any] | None = None, **settings: Any) -> list[str]:
    backbone = {"path": path, "revision": None, "tiny": None, "image": {}, **settings}
    methods = methods or {"dive": STEERING}
    return check_backbones({"backbones": {"mine": backbone}, "methods": methods}, [("d", "mine", m) for m in methods])


def folder(tmp_path: Path, config: Any) -> str:
    (tmp_path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return str(tmp_path)


@pytest.mark.parametrize("config", [GEMMA, QWEN, {"model_type": "llava"}])
def test_a_supported_model_is_no_message(tmp_path, config):
    assert told(folder(tmp_path, config)) == []


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text", "qwen2_vl", None, 3, ["gemma3"], {}])
def test_an_unsupported_model_is_refused_with_those_that_are(tmp_path, model_type):
    (message,) = told(folder(tmp_path, {"model_type": model_type}))
    assert message == (
        f"backbones.mine.path: model_type {model_type!r} is not supported; choose a model whose type is gemma3, "
        "qwen2_5_vl, llava"
    )


@pytest.mark.parametrize("config", ["", "{", "[]", "3", "caf\xe9", json.dumps({**GEMMA, "text_config": []})])
def test_a_config_json_that_is_none_is_named(tmp_path, config):
    (tmp_path / "config.json").write_bytes(config.encode("latin-1"))
    (message,) = told(str(tmp_path))
    assert message.startswith("backbones.mine.path: config.json of ")
    assert message.endswith("fetch the model again")


def test_folders_that_hold_no_model_are_named(tmp_path):
    assert told(str(tmp_path)) == [
        f"backbones.mine.path: {tmp_path} has no config.json; give a folder that save_pretrained wrote"
    ]
    (message,) = told("models/absent")
    assert message.startswith("backbones.mine.path: there is no folder models/absent; correct the path")
    assert told("somebody/unknown") == []  # not here yet: nothing is known of it


@pytest.mark.parametrize(
    ("path", "image", "messages"),
    [
        ("google/medgemma-4b-it", {"max_pixels": 401408}, ["image.max_pixels: cannot be set for"]),
        ("google/medgemma-4b-it", {"do_pan_and_scan": True}, ["image.do_pan_and_scan: cannot be set"]),
        ("lingshu-medical-mllm/Lingshu-7B", {"max_pixels": 401408}, []),
        ("lingshu-medical-mllm/Lingshu-7B", {"max_pixel": 401408}, ["image.max_pixel: cannot be set for"]),
        ("lingshu-medical-mllm/Lingshu-7B", {"size": {}, "crop_size": 3}, ["image.size: ca", "image.crop_size: ca"]),
        ("lingshu-medical-mllm/Lingshu-7B", {"max_pixels": "401408"}, ["image.max_pixels: must be a whole number"]),
    ],
)  # fmt: skip
def test_settings_that_a_processor_does_not_have_are_refused_before_it_is_here(path, image, messages, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", "/nowhere")
    found = told(path, image=image)
    assert len(found) == len(messages)
    for message, begin in zip(found, messages, strict=True):
        assert message.startswith(f"backbones.mine.{begin}")


def test_layers_and_ranks_that_a_model_does_not_have_are_refused(tmp_path):
    methods = {
        "dive": {**STEERING, "rank": 33},
        "live": {**STEERING, "layers": [3, 4]},
        "live@other": {**STEERING, "layers": [3, 4]},
        "lora": {**STEERING, "layers": [0, 3], "rank": 32},
    }
    assert told(folder(tmp_path, GEMMA), methods) == [
        "methods.dive.rank: must be at most 32, the width of mine, not 33",
        "methods.live.layers: 4 is no layer of mine, whose layers are 0 to 3",
    ]


def test_the_families_are_those_whose_conventions_are_known():
    class Tokenizer:
        boi_token, image_token, eoi_token = "<a>", "<b>", "<c>"

    for name in FAMILIES:
        family_of(name, Tokenizer())
        assert unsupported(name) == ""
    assert set(PROCESSORS) == set(FAMILIES)
    with pytest.raises(ValueError, match="model_type 'other' is not supported"):
        family_of("other", Tokenizer())


@pytest.mark.parametrize("family", ["gemma3", "qwen2_5_vl"])
def test_every_setting_that_is_offered_is_one_of_the_processor(tiny_settings, family):
    """It is set, and the number of image tokens fits the model."""
    from PIL import Image

    values = {
        "do_normalize": False, "do_rescale": False, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7],
        "rescale_factor": 0.01, "resample": 3, "min_pixels": 2304, "max_pixels": 2304,
    }  # fmt: skip
    for name in PROCESSORS[family]:
        image = {name: values[name]}
        assert image_errors(family, image) == []
        backbone = load_backbone(tiny_settings(family, image=image))
        assert getattr(backbone.image_processor, name) == values[name]
        (features,) = backbone.embed_images([Image.new("RGB", (96, 96))])
        assert torch.isfinite(features.tokens).all()


def test_a_job_refuses_them_too(tiny_settings):
    with pytest.raises(
        ValueError, match=r"backbones\.\*\.image\.max_pixels: cannot be set for the image processor of g"
    ):
        load_backbone(tiny_settings("gemma3", image={"max_pixels": 3}))
