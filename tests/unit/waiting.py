"""How often training and decoding wait for a pretend GPU; a script, since the device must exist before anything else.

It prints a JSON object: for each case the lines that waited and the lines that uploaded, with counts.
"""

import json
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from dive.distillation.cache import teacher_states
from dive.distillation.layers import layer_states
from dive.distillation.run import Run
from dive.distillation.student import Student
from dive.generation import decode_batch
from dive.shards import Shards, ShardWriter
from dive.steering.attach import Steering
from dive.steering.base import build_intervention
from tests.benchmarks.models import (
    LINGSHU_7B,
    MEDGEMMA_4B,
    METHOD,
    draw_features,
    draw_study,
    random_backbone,
    shrunk,
    supervision_of,
)
from tests.unit.pretend_gpu import counted, pretend, put

METHODS = {"dive": METHOD, "static": {**METHOD, "rank": 0}, "all": {**METHOD, "positions": "all"}}
TOKENS = 6


def training(backbone, shape, study, features, folder, method, kept):
    """A training step, after one that is not counted."""
    prompts = study.render(backbone)
    with ShardWriter(folder, {}) as writer:
        for uid, prompt in zip(study.queries, prompts, strict=True):
            writer.add(uid, torch.randn(prompt.n_labels, shape.width))
    with Steering(backbone.layers, build_intervention(method, shape.layers, shape.width, seed=0)) as steering:
        student = Student(backbone, steering, prompts, features, 5, kept)
        run = Run(
            student, supervision_of(prompts, METHOD["weights"]), study.queries, Shards(folder),
            {**method, "batch_size": 5}, METHOD["loss"], 5, 0,
        )  # fmt: skip
        assert run.step(range(5), 0)[0] > 0
        with counted() as counts:
            run.step(range(5), 1)
    return counts


def decoding(backbone, shape, study, features, method):
    """A batch of TOKENS tokens, one of which ends a report, less what the prompts alone take."""
    prompts = study.render(backbone, report=False)
    found = []
    with Steering(backbone.layers, build_intervention(method, shape.layers, shape.width, seed=0)):
        for n in (1, 1 + TOKENS):
            with counted() as counts:
                decode_batch(backbone, prompts, features, n)
            found.append(counts)
    more = found[1]
    more.waits.subtract(found[0].waits)
    return more


def reading(backbone, study, features, states_of):
    """The teacher's states of a batch of prompts."""
    prompts = study.render(backbone)
    with counted() as counts:
        assert len(states_of(backbone, prompts, features)) == len(prompts)
    return counts


def main():
    """All cases."""
    mode, found = pretend(), {}
    for published in (MEDGEMMA_4B, LINGSHU_7B):
        shape = replace(shrunk(published), layers=published.layers)  # at full depth: what waits waits in every layer
        backbone = random_backbone(shape)
        study = draw_study(shape, 5, 8)
        features = draw_features(shape, backbone, study.queries)
        with mode, tempfile.TemporaryDirectory() as folder:
            put(backbone.model)
            for name, method in METHODS.items():
                for way, kept in {"kept": 1e9, "recomputed": 0}.items():
                    states = Path(folder) / f"{name}-{way}"
                    counts = training(backbone, shape, study, features, states, method, kept)
                    found[f"training {shape.family} {name} {way}"] = counts
                found[f"decoding {shape.family} {name}"] = decoding(backbone, shape, study, features, method)
            for states_of in (teacher_states, layer_states):
                found[f"{states_of.__name__} {shape.family}"] = reading(backbone, study, features, states_of)
    print(json.dumps({case: [dict(counts.waits), dict(counts.uploads)] for case, counts in found.items()}))


if __name__ == "__main__":
    main()
