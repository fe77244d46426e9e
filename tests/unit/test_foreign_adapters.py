"""Whatever lies in a folder, attach either steers with it or refuses it in one sentence; nothing of it is run."""

import json
import pickle
import random
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from dive.backbones.loading import load_backbone
from dive.files import read_json, write_json
from dive.steering import attach
from dive.steering.adapters import describe_backbone, load_adapter, save_adapter
from dive.steering.base import build_intervention

REFT = {"module": "reft", "rank": 3, "layers": "all", "positions": "answer"}


@pytest.fixture(scope="module")
def backbone(tiny_settings):
    return load_backbone(tiny_settings("llava"))


@pytest.fixture
def adapter(backbone, tmp_path):
    folder = tmp_path / "adapter"
    folder.mkdir()
    described = describe_backbone(backbone.model, backbone.layers, backbone.source)
    data = {"dataset": "mimic-cxr", "queries": 100}
    save_adapter(folder, build_intervention(REFT, 3, 32, 0), REFT, described, data, epoch=1, record={})
    return folder


def config_of(folder):
    return read_json(folder / "config.json")


def refused(backbone, folder) -> str:
    hooks = [len(layer._forward_hooks) for layer in backbone.layers]
    with pytest.raises(ValueError, match=str(folder)) as raised:
        attach(backbone.model, folder, layers=backbone.layers)
    assert [len(layer._forward_hooks) for layer in backbone.layers] == hooks
    return str(raised.value)


def test_what_is_no_adapter_folder(backbone, adapter, tmp_path):
    assert "FileNotFoundError" in refused(backbone, tmp_path / "nowhere")
    (tmp_path / "file").write_text("{}")
    assert "not a readable adapter folder" in refused(backbone, tmp_path / "file")
    other = tmp_path / "peft"  # another library's adapter
    other.mkdir()
    (other / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    shutil.copy(adapter / "adapter.safetensors", other / "adapter_model.safetensors")
    assert "not a readable adapter folder" in refused(backbone, other)


@pytest.mark.parametrize(
    "text", ["", "[]", "null", '{"format": "dive-adapter/1"}', '{"format": 1}', "\x00\x01", "[" * 100_000]
)
def test_a_config_that_says_nothing_usable(backbone, adapter, text):
    (adapter / "config.json").write_text(text)
    assert "not a readable adapter folder" in refused(backbone, adapter)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rank", 10**9),  # would take 256 GB
        ("rank", "three"),
        ("rank", None),
        ("rank", -1),
        ("rank", 2),
        ("layers", "some"),
        ("layers", [0]),
        ("positions", "everywhere"),
        ("module", "os.path"),
        ("module", "attach"),
        ("module", 7),
    ],
)
def test_a_method_that_the_tensors_do_not_belong_to(backbone, adapter, key, value):
    config = config_of(adapter)
    config["method"][key] = value
    (adapter / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"adapter|methods\.\*"):
        attach(backbone.model, adapter, layers=backbone.layers)
    attach(backbone.model, build_intervention(REFT, 3, 32, 0)).detach()  # not left half steered


def test_a_method_that_misses_a_setting(backbone, adapter):
    config = config_of(adapter)
    del config["method"]["rank"]
    (adapter / "config.json").write_text(json.dumps(config))
    assert "no method that can be built" in refused(backbone, adapter)


def test_numbers_that_are_none(backbone, adapter):
    tensors = load_file(adapter / "adapter.safetensors")
    tensors["layers.0.b"][0] = float("nan")
    save_file(tensors, adapter / "adapter.safetensors")
    assert "differs from the checksum recorded beside it" in refused(backbone, adapter)
    write_json(adapter / "config.json", {key: value for key, value in config_of(adapter).items() if key != "sha256"})
    assert "not finite" in refused(backbone, adapter)


class Trap:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_pickle_is_not_run(backbone, adapter, tmp_path):
    trap = tmp_path / "sprung"
    (adapter / "adapter.safetensors").write_bytes(pickle.dumps(Trap(trap)))
    refused(backbone, adapter)
    torch.save({"layers.0.b": torch.zeros(3), "trap": Trap(trap)}, adapter / "adapter.safetensors")
    refused(backbone, adapter)
    assert not trap.exists()


@pytest.mark.parametrize("name", ["adapter.safetensors", "config.json"])
def test_a_single_flipped_bit_is_told(backbone, adapter, name):
    path = adapter / name
    good = path.read_bytes()
    draw = random.Random(0)
    for _ in range(300):
        place = draw.randrange(8 * len(good))
        path.write_bytes(good[: place // 8] + bytes([good[place // 8] ^ (1 << place % 8)]) + good[place // 8 + 1 :])
        with pytest.raises(ValueError, match="not a readable adapter folder"):
            load_adapter(adapter, backbone.model, backbone.layers)
    path.write_bytes(good)
    load_adapter(adapter, backbone.model, backbone.layers)


def test_weights_of_another_run_under_this_config_are_told(backbone, adapter, tmp_path):
    """The same method, layers and shapes: nothing but the checksum tells them apart."""
    other = tmp_path / "other"
    other.mkdir()
    described = describe_backbone(backbone.model, backbone.layers, backbone.source)
    data = {"dataset": "chexpert-plus", "queries": 100}
    save_adapter(other, build_intervention(REFT, 3, 32, 1), REFT, described, data, epoch=1, record={})
    shutil.copy(other / "adapter.safetensors", adapter / "adapter.safetensors")
    assert "adapter.safetensors: absent, damaged or of another folder" in refused(backbone, adapter)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(where=st.floats(0, 1), byte=st.integers(0, 255), cut=st.booleans(), name=st.sampled_from(["w", "c"]))
def test_a_damaged_file_is_loaded_right_or_refused(backbone, adapter, where, byte, cut, name):
    """One byte changed, or the end missing: never another exception than the one that names the folder."""
    path = Path(adapter / {"w": "adapter.safetensors", "c": "config.json"}[name])
    good = path.read_bytes()
    index = min(int(where * len(good)), len(good) - 1)
    path.write_bytes(good[:index] if cut else good[:index] + bytes([byte]) + good[index + 1 :])
    try:
        loaded = load_adapter(adapter, backbone.model, backbone.layers)
        assert all(bool(p.isfinite().all()) for p in loaded.parameters())
    except ValueError:
        pass
    finally:
        path.write_bytes(good)
