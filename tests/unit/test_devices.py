"""Jobs side by side get a GPU each, a killed one gives its own back, and a full memory names the setting to change.

No GPU is needed: what torch says of them is replaced, in other processes too.
"""

import json
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dive import devices
from dive.backbones.loading import Backbone, load_backbone
from dive.devices import claim_device, explained_memory
from dive.distillation import training
from tests.unit.tiny_study import TRAINING, write_study

JOB = """
import sys, time
from pathlib import Path
from types import SimpleNamespace
shown = sys.argv[2].split(",")
cuda = SimpleNamespace(is_available=lambda: True, device_count=lambda: len(shown), set_device=lambda index: None)
cuda.get_device_properties = lambda index: SimpleNamespace(uuid=shown[index])
sys.modules["torch"] = SimpleNamespace(cuda=cuda)
from dive import devices
devices.LOCKS, devices.WAIT_SECONDS = Path(sys.argv[1]), 0.05
device = devices.claim_device("auto")
assert devices.claim_device("cuda") == device  # a second model of the same job
print(shown[int(device.removeprefix("cuda:"))], flush=True)
time.sleep(60)
"""


@pytest.fixture
def gpus(monkeypatch, tmp_path):
    """``gpus(n)``: torch sees so many, and records which is made current."""
    current = []

    def see(count):
        monkeypatch.setattr(devices, "LOCKS", tmp_path / "locks")
        monkeypatch.setattr(devices, "_claim", None)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid=f"gpu-{index}"))
        monkeypatch.setattr(torch.cuda, "set_device", current.append)
        return current

    return see


class Jobs:
    """Processes that claim one of the GPUs that they are shown and live on."""

    def __init__(self, locks):
        self.locks, self.running = locks, []

    def start(self, shown="a,b"):
        job = subprocess.Popen(
            [sys.executable, "-c", JOB, str(self.locks), shown],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.running.append(job)
        return job


@pytest.fixture
def jobs(tmp_path):
    jobs = Jobs(tmp_path / "locks")
    yield jobs
    for job in jobs.running:
        job.kill()
        job.communicate()


def test_without_a_gpu_and_with_one(gpus):
    current = gpus(0)
    assert [claim_device(name) for name in ("auto", "cpu", "mps")] == ["cpu", "cpu", "mps"]
    with pytest.raises(ValueError, match=r"scores\.chexbert\.device is cuda, but torch sees 0 GPUs"):
        claim_device("cuda", "scores.chexbert.device")
    gpus(1)
    # The only one that SLURM or CUDA_VISIBLE_DEVICES shows is taken as it is, whoever else has it.
    assert [claim_device(name) for name in ("auto", "cuda", "cuda:0", "cpu")] == ["cuda:0", "cuda:0", "cuda:0", "cpu"]
    assert not devices.LOCKS.exists()
    assert current == [0, 0, 0]
    with pytest.raises(ValueError, match=r"backbones\.\*\.device is cuda:1, but torch sees 1 GPUs"):
        claim_device("cuda:1")


def test_a_named_gpu_is_taken_as_it_is(gpus):
    current = gpus(3)
    assert claim_device("cuda:2") == "cuda:2"
    assert current == [2]
    assert not devices.LOCKS.exists()


def test_jobs_side_by_side_get_a_gpu_each_and_a_killed_one_gives_it_back(jobs):
    first, second = jobs.start(), jobs.start()
    taken = [first.stdout.readline().strip(), second.stdout.readline().strip()]
    assert sorted(taken) == ["a", "b"]
    third = jobs.start()
    assert "all 2 GPUs are taken by other jobs: waiting for one" in third.stderr.readline()
    os.kill(second.pid, signal.SIGKILL)
    assert third.stdout.readline().strip() == taken[1]


def test_a_gpu_is_known_by_its_own_number_whatever_each_job_is_shown(jobs):
    """CUDA_VISIBLE_DEVICES gives every process indices of its own."""
    assert jobs.start("b,c").stdout.readline().strip() == "b"
    assert jobs.start("a,b").stdout.readline().strip() == "a"
    assert jobs.start("b,a,c").stdout.readline().strip() == "c"


def no_memory(*_, **__):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def test_only_full_memory_is_explained():
    told = r"^out of device memory; lower shots \(CUDA out of memory\. Tried"
    with pytest.raises(RuntimeError, match=told), explained_memory("shots"):
        no_memory()
    with pytest.raises(RuntimeError, match=r"^something else$"), explained_memory("shots"):
        raise RuntimeError("something else")


@pytest.fixture
def study(tiny_settings, tmp_path):
    settings = tiny_settings("gemma3")
    return settings, write_study(tmp_path / "study", load_backbone(settings))


METHOD = {
    "module": "dive",
    "rank": 2,
    "layers": "all",
    "positions": "answer",
    "weights": {"pathology": 3, "eos": 10},
    "loss": {"kd": 0.0, "ce": 1.0, "hidden": 0.0, "temperature": 1.0},
    "optimiser": {"lr": 1e-3, "weight_decay": 0.0},
    "epochs": 1,
    "batch_size": 2,
}


def train(settings, study, out, method=METHOD, **options):
    training.distill(
        settings, method, study.studies, study.pool, study.spans, study.vision, None,
        {**TRAINING, **options}, 0, str(out / "adapter"), str(out / "checkpoint"),
    )  # fmt: skip


def test_every_stage_with_a_model_names_its_setting(study, tmp_path, monkeypatch):
    """Whatever of the model runs out of memory, in the job that ran it."""
    import pandas as pd

    from dive.analyses.tokens import measure
    from dive.backbones.vision import VisionFeatures, cache_vision
    from dive.data.studies import LABELS, write_studies
    from dive.distillation.cache import cache_teacher, render_supervised
    from dive.distillation.layers import cache_layers
    from dive.generation import decode
    from tests.unit.tiny_models import image

    settings, study = study
    arguments = (settings, study.studies, study.demonstrations, study.vision, TRAINING, str(tmp_path / "out"))
    backbone, features = load_backbone(settings), VisionFeatures(study.vision)
    prompts = render_supervised(backbone, ["q0", "q1"], study.targets, features.n_tokens, 64)
    shown = render_supervised(backbone, ["q0", "q1"], study.targets, features.n_tokens, 64, study.drawn)
    same = {uid: ["d0"] for uid in ("q0", "q1")}
    together = render_supervised(backbone, ["q0", "q1"], study.targets, features.n_tokens, 64, same)

    image(0).save(tmp_path / "x.png")
    table = pd.DataFrame({"study_uid": ["a"], "patient_uid": "p", "split": "train", "image_paths": [["x.png"]]})
    table = table.assign(views=table["image_paths"], findings=None, impression=None, indication=None)
    table = table.assign(target="text", n_words=1)
    table[list(LABELS)] = np.nan
    write_studies(table, tmp_path / "studies.parquet", {})
    (tmp_path / "pool.json").write_text(json.dumps({"queries": ["a"]}))

    stages = {
        r"backbones\.\*\.batch\.teacher": [
            lambda: cache_teacher(*arguments),
            lambda: cache_layers(*arguments),
            lambda: measure(backbone, prompts, shown, features, 2),
        ],
        r"backbones\.\*\.batch\.generation": [lambda: decode(backbone, prompts, features, 4, 2)],
        r"backbones\.\*\.batch\.training": [
            lambda: train(settings, study, tmp_path, prefix_cache_gb=0),
            lambda: train(settings, study, tmp_path, {**METHOD, "positions": "all"}),
            lambda: train(settings, study, tmp_path, {**METHOD, "weights": {"source": "surprisal", "exponent": 1.0}}),
        ],
        r"training\.prefix_cache_gb": [lambda: train(settings, study, tmp_path)],
        "shots": [lambda: backbone.share(together, features)],
    }
    with monkeypatch.context() as patch:
        patch.setattr(Backbone, "prefill", no_memory)
        for setting, calls in stages.items():
            for call in calls:
                with pytest.raises(RuntimeError, match=rf"^out of device memory; lower {setting}\b"):
                    call()
    with monkeypatch.context() as patch:
        patch.setattr(Backbone, "embed_images", no_memory)
        with pytest.raises(RuntimeError, match=r"^out of device memory; lower backbones\.\*\.batch\.vision"):
            cache_vision(settings, *(str(tmp_path / name) for name in ("studies.parquet", "pool.json", "", "vision")))
    with monkeypatch.context() as patch:
        patch.setattr(Backbone, "extend", no_memory)
        with pytest.raises(RuntimeError, match=r"^out of device memory; lower backbones\.\*\.batch\.training"):
            train(settings, study, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.Module, "to", no_memory)
        with pytest.raises(RuntimeError, match=r"^out of device memory; lower backbones\.\*\.dtype"):
            load_backbone(settings)
