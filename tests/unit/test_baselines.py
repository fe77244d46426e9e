"""Fitted methods and hidden alignment against plain implementations without caches, and every baseline end to end."""

import json

import pytest
import torch

from dive.distillation.examples import Examples
from dive.distillation.layers import cache_layers
from dive.distillation.run import Run
from dive.distillation.student import Student
from dive.shards import Shards
from dive.steering.adapters import load_adapter
from dive.steering.attach import Steering
from dive.steering.attention import look_inside
from dive.steering.base import build_intervention, fit_of
from dive.steering.dive import BANK, drawn_by
from dive.steering.icv import direction
from tests.unit.test_distillation import World, awake, plain_hidden, rows_of
from tests.unit.tiny_models import FAMILIES
from tests.unit.tiny_study import DIVE

TASK_VECTOR = {"module": "task_vector", "layers": "all", "positions": "answer", "scales": [0.5, 1.0]}
ICV = {"module": "icv", "layers": "all", "positions": "answer", "scales": [0.1]}
HIDDEN = {"kd": 0.0, "ce": 0.5, "hidden": 1.0, "temperature": 1.0}
MIMIC = {**DIVE, "module": "mimic", "positions": "all", "weights": {"pathology": 1, "eos": 1}, "loss": HIDDEN}
LORA = {**MIMIC, "module": "lora", "rank": 4, "like_dive": 0, "alpha": 8, "dropout": 0.05}
MIMIC |= {"batch_size": 6, "epochs": 6}  # all queries a step, so that steps compare
LORA |= {"batch_size": 6, "epochs": 6}
LORA["loss"] = {"kd": 0.0, "ce": 1.0, "hidden": 0.0, "temperature": 1.0}
SHUFFLED = {**DIVE, "state": "shuffled"}


@pytest.fixture(scope="module", params=FAMILIES)
def world(request, tiny_settings, tmp_path_factory):
    world = World(tiny_settings(request.param), tmp_path_factory.mktemp("world"))
    world.layers = str(world.folder / "layers")
    study = world.study
    cache_layers(world.settings, study.studies, study.demonstrations, study.vision, world.training, world.layers)
    return world


def layer_outputs(world, prompt):
    """Outputs of all decoder layers (L, n, d) at the predicting positions of one unpadded prompt, by plain hooks."""
    kept = []
    handles = [
        layer.register_forward_hook(lambda *a: kept.append(a[2][0] if isinstance(a[2], tuple) else a[2]))
        for layer in world.backbone.layers
    ]
    world.backbone.prefill(world.backbone.collate([prompt], world.features, part="full"))
    for handle in handles:
        handle.remove()
    return torch.stack([states[0, prompt.prompt_length - 1 :] for states in kept])


def plain_pairs(world):
    """(without, with demonstrations) of every query."""
    queries = world.study.members["queries"]
    with torch.no_grad():
        return [
            (layer_outputs(world, world.prompts[i]), layer_outputs(world, world.render([uid], world.study.drawn)[0]))
            for i, uid in enumerate(queries)
        ]


def examples_of(world):
    queries = world.study.members["queries"]
    prompts = world.prompts[: len(queries)]
    return Examples(world.backbone, queries, prompts, world.features, 4, 0, Shards(world.layers))


def test_cached_layers_are_the_teachers_at_the_predicting_positions(world):
    """Defect 1 for hidden states too."""
    cached = Shards(world.layers)
    for uid, (_, taught) in zip(world.study.members["queries"], plain_pairs(world), strict=True):
        torch.testing.assert_close(cached[uid], taught, atol=1e-5, rtol=1e-5)
        assert cached[uid].shape[1] == Shards(world.teacher)[uid].shape[0]


def test_a_full_disk_is_told_before_the_model_runs(world, monkeypatch, tmp_path):
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 0))
    study = world.study
    with pytest.raises(RuntimeError, match=r"needs 0\.00 GB and the disk of.*pool\.queries"):
        cache_layers(
            world.settings, study.studies, study.demonstrations, study.vision, world.training, str(tmp_path / "out")
        )


def test_task_vector_is_the_mean_shift(world):
    intervention = build_intervention(TASK_VECTOR, 3, world.backbone.width, 0)
    fit_of(TASK_VECTOR)(intervention, examples_of(world))
    shifts = torch.cat([taught - own for own, taught in plain_pairs(world)], dim=1)
    for index in range(3):
        site = intervention.layers[str(index)]
        torch.testing.assert_close(site.v, shifts[index].mean(0), atol=1e-5, rtol=0)
        h = torch.randn(4, world.backbone.width)
        site.scale.fill_(0.5)
        torch.testing.assert_close(site(h), h + 0.5 * site.v)
        site.scale.fill_(0)
        assert torch.equal(site(h), h)


def test_icv_is_its_equation_and_its_direction_that_of_plain_power_iteration(world):
    intervention = build_intervention(ICV, 3, world.backbone.width, 0)
    fit_of(ICV)(intervention, examples_of(world))
    rows = [(own[:, -1] - own[:, 0]).flatten().double().tolist() for own, _ in plain_pairs(world)]
    n, m = len(rows), len(rows[0])
    mean = [sum(row[j] for row in rows) / n for j in range(m)]
    centred = [[row[j] - mean[j] for j in range(m)] for row in rows]
    component = list(centred[0])
    for _ in range(3000):
        scores = [sum(a * b for a, b in zip(row, component, strict=True)) for row in centred]
        component = [sum(score * row[j] for score, row in zip(scores, centred, strict=True)) for j in range(m)]
        length = sum(c * c for c in component) ** 0.5
        component = [c / length for c in component]
    scores = [sum(a * b for a, b in zip(row, component, strict=True)) for row in centred]
    sign = 1 if max(scores, key=abs) > 0 else -1
    expected = torch.tensor([sign * c + mu for c, mu in zip(component, mean, strict=True)]).view(3, -1)
    for index in range(3):
        torch.testing.assert_close(intervention.layers[str(index)].v, expected[index], atol=1e-4, rtol=0)

    site = intervention.layers["1"].double()
    lam, v = float(site.scale), site.v.tolist()
    for x in torch.randn(3, world.backbone.width, dtype=torch.float64):
        norm_x, norm_v = float(x.norm()), sum(a * a for a in v) ** 0.5
        cosine = -sum(a * b for a, b in zip(x.tolist(), v, strict=True)) / norm_x / norm_v
        moved = [a / norm_x + lam * (1 + max(0.0, cosine)) * b / norm_v for a, b in zip(x.tolist(), v, strict=True)]
        length = sum(a * a for a in moved) ** 0.5
        expected = torch.tensor([a / length * norm_x for a in moved], dtype=torch.float64)
        torch.testing.assert_close(site(x[None])[0], expected, atol=1e-9, rtol=0)


def test_a_single_difference_is_its_own_direction():
    row = torch.randn(1, 5)
    torch.testing.assert_close(direction(row), row[0].double())


def test_hidden_alignment_trains_on_the_relative_error_of_every_layer(world):
    """Defect 9; loss and gradient against single full passes with plain hooks and a live teacher."""
    method = {**DIVE, "loss": {**HIDDEN, "ce": 0.0}}
    rows = [0, 3, 1]
    intervention = awake(method, world)
    terms = []
    for row in rows:
        prompt, uid = world.prompts[row], world.uids[row]
        mask = torch.arange(len(prompt.ids))[None] >= prompt.prompt_length - 1
        with Steering(world.backbone.layers, intervention) as steering, steering.at(mask):
            student = layer_outputs(world, prompt)
        with torch.no_grad():
            taught = layer_outputs(world, world.render([uid], world.study.drawn)[0])
        terms.append((student - taught).square().sum(-1) / taught.square().sum(-1))
    expected = torch.cat(terms, dim=1).mean()
    gradients = torch.autograd.grad(expected, list(intervention.parameters()))
    for positions in (1e9, 0):
        run = world.run(method, 2, positions, teacher=False, intervention=intervention)
        run = Run(run.student, run.supervision, run.queries, None, method, method["loss"], 2, 0, Shards(world.layers))
        total, _, kd, hidden = run.accumulate_gradient(rows)
        run.student.steering.detach()
        assert kd == 0
        assert total == pytest.approx(expected.item(), abs=1e-5)
        assert hidden == pytest.approx(expected.item(), abs=1e-5)
        for parameter, gradient in zip(intervention.parameters(), gradients, strict=True):
            torch.testing.assert_close(parameter.grad, gradient, atol=1e-5, rtol=0)
            parameter.grad = None


@pytest.mark.parametrize("positions", ["answer", "all"])
@pytest.mark.parametrize("method", [MIMIC, LORA], ids=["mimic", "lora"])
def test_training_sees_what_single_full_passes_see_inside_attention(world, method, positions):
    """Defects 2 and 5: padded batches and, for answer positions, cached prefixes change nothing."""
    backbone, rows = world.backbone, [0, 3, 1]
    inside = look_inside(backbone.model, backbone.layers)
    method = {**method, "positions": positions}
    intervention = build_intervention(method, 3, backbone.width, 0, lambda: inside[0].shape).eval()
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in intervention.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=draw))
    with Steering(backbone.layers, intervention, inside) as steering:
        found = Student(backbone, steering, world.prompts, world.features, 4, 1e9)(rows)
        singly = []
        for row in rows:
            prompt = world.prompts[row]
            begin = prompt.prompt_length - 1
            mask = torch.arange(len(prompt.ids))[None] >= (begin if positions == "answer" else 0)
            with steering.at(mask):
                singly.append(plain_hidden(world, prompt)[begin:])
    torch.testing.assert_close(found.states, torch.cat(singly), atol=1e-4, rtol=0)
    gradients = [
        torch.autograd.grad(states.square().sum(), list(intervention.parameters()))
        for states in (found.states, torch.cat(singly))
    ]
    for ours, plain in zip(*gradients, strict=True):
        assert ours.isfinite().all()
        torch.testing.assert_close(ours, plain, atol=1e-3 * float(plain.abs().max()), rtol=1e-3)


def test_a_shuffled_adapter_sees_states_of_others(world):
    intervention = build_intervention(SHUFFLED, 3, world.backbone.width, 0)
    plain = build_intervention(DIVE, 3, world.backbone.width, 0)
    assert intervention.n_parameters == plain.n_parameters
    fit_of(SHUFFLED)(intervention, examples_of(world))
    own = torch.cat([without for without, _ in plain_pairs(world)], dim=1)
    site = intervention.layers["2"]
    x = own[2] / own[2].square().mean(-1, keepdim=True).sqrt()
    assert torch.cdist(site.bank, x).amin(1).max() < 1e-2
    h = own[2][:7]
    assert torch.equal(site(h), h)  # step 0
    torch.nn.init.normal_(site.U)
    rms = h.square().mean(-1, keepdim=True).sqrt()
    fed = site.bank[drawn_by(h, BANK)]
    expected = h + rms * (torch.nn.functional.gelu(fed @ site.D.T) @ site.U.T)
    torch.testing.assert_close(site(h), expected, atol=1e-4, rtol=1e-4)
    # The draw is the state's own: neither the order nor the batch decides, and it is spread over the bank.
    assert torch.equal(drawn_by(h.flip(0), BANK), drawn_by(h, BANK).flip(0))
    draws = drawn_by(torch.randn(20000, 32, generator=torch.Generator().manual_seed(0)), BANK).bincount(minlength=BANK)
    assert (draws.min(), draws.max()) > (40, 0)
    assert draws.max() < 120


@pytest.mark.parametrize("method", [TASK_VECTOR, ICV, MIMIC, LORA, SHUFFLED], ids=lambda m: m["module"])
def test_every_method_runs_to_an_adapter(world, method):
    layers = world.layers if method["module"] in ("task_vector", "mimic") else None
    teacher = world.teacher if method.get("loss", {}).get("kd") else None
    out = world.distill(f"{method['module']}-all", method, layers=layers, teacher=teacher)
    rows, steps = rows_of(out / "validation.csv"), rows_of(out / "training.csv")
    assert sum(row["best"] for row in rows) == 1
    adapter = load_adapter(out, world.backbone.model, world.backbone.layers)
    trained = "epochs" in method
    assert (adapter.n_parameters > 0) == trained == bool(steps)
    if trained:
        assert len(rows) == method["epochs"] + 1
        first, last = ([row for row in steps if row["epoch"] == epoch] for epoch in (1, method["epochs"]))
        assert sum(row["loss"] for row in last) < sum(row["loss"] for row in first)
    else:
        assert len(rows) == len(method["scales"])
        kept = method["scales"][json.loads((out / "config.json").read_text())["epoch"]]
        assert all(float(site.scale) == pytest.approx(kept) for site in adapter.layers.values())
    if method.get("loss", {}).get("hidden"):
        assert sum(row["hidden"] for row in last) < sum(row["hidden"] for row in first)
        assert steps[0]["loss"] == pytest.approx(0.5 * steps[0]["cross_entropy"] + steps[0]["hidden"], rel=1e-4)


def test_layers_that_are_needed_and_not_given_are_asked_for(world):
    with pytest.raises(ValueError, match="teacher's layers"):
        world.distill("orphan", MIMIC, teacher=None)
    with pytest.raises(ValueError, match="teacher's layer states"):
        world.distill("orphan", TASK_VECTOR, teacher=None)
