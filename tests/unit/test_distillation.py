"""Training from caches equals training with a live teacher and full forward passes."""

import csv
import itertools
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from dive.backbones.loading import load_backbone
from dive.backbones.vision import VisionFeatures
from dive.distillation import run as run_module
from dive.distillation.cache import cache_teacher, render_supervised
from dive.distillation.recorded import RecordedGradient
from dive.distillation.relevance import relevance_of
from dive.distillation.run import Run, batches_of_epoch, learning_rate_factor
from dive.distillation.student import Student
from dive.distillation.supervision import mark_decisive, spans_of, supervise
from dive.distillation.training import distill
from dive.generation import decode_batch
from dive.shards import Shards
from dive.steering.adapters import load_adapter
from dive.steering.attach import Steering
from dive.steering.base import build_intervention
from tests.unit.tiny_models import FAMILIES
from tests.unit.tiny_study import DIVE, TRAINING, write_study

LIVE = {
    **DIVE,
    "module": "live",
    "alpha": 0.1,
    "weights": {"pathology": 1, "eos": 1},
    "optimiser": {**DIVE["optimiser"], "lr_a": 1e-2},
}


class World:
    """A backbone, its study files, its teacher's cache, and prompts of queries and validation studies."""

    def __init__(self, settings, folder, training=TRAINING):
        self.settings, self.folder, self.training = settings, folder, training
        self.backbone = load_backbone(settings)
        self.study = write_study(folder, self.backbone)
        self.teacher = str(folder / "teacher")
        self.features = VisionFeatures(self.study.vision)
        self.uids = [*self.study.members["queries"], *self.study.members["validation"]]
        self.prompts = self.render(self.uids)
        cache_teacher(
            settings, self.study.studies, self.study.demonstrations, self.study.vision, training, self.teacher
        )

    def render(self, uids, demonstrations=None):
        limit = self.training["max_report_tokens"]
        return render_supervised(self.backbone, uids, self.study.targets, self.features.n_tokens, limit, demonstrations)

    def run(self, method, micro_batch=4, limit_bytes=1e9, teacher=True, seed=0, intervention=None):
        """A ``Run`` on this world's own backbone; the caller detaches its steering."""
        layers = self.backbone.layers
        intervention = intervention or build_intervention(method, len(layers), self.backbone.width, seed)
        student = Student(
            self.backbone, Steering(layers, intervention), self.prompts, self.features, micro_batch, limit_bytes
        )
        spans = list(spans_of(self.study.spans, self.uids))
        supervision = [
            supervise(
                mark_decisive(prompt, of_study, self.study.targets[uid], method["weights"]),
                prompt.complete,
                method["weights"],
            )
            for uid, prompt, of_study in zip(self.uids, self.prompts, spans, strict=True)
        ]
        loss = {key: method["loss"][key] for key in ("kd", "ce", "temperature")}
        states = Shards(self.teacher) if teacher else None
        return Run(student, supervision, self.study.members["queries"], states, method, loss, micro_batch, seed)

    def distill(self, name, method, training=None, seed=0, **changes):
        out = self.folder / name
        arguments = {
            "backbone": self.settings,
            "method": method,
            "studies": self.study.studies,
            "pool": self.study.pool,
            "spans": self.study.spans,
            "vision": self.study.vision,
            "teacher": self.teacher,
            "training": training or self.training,
            "seed": seed,
            "out": str(out),
            "checkpoint": str(self.folder / f"{name}.checkpoint"),
        }
        distill(**{**arguments, **changes})
        return out


@pytest.fixture(scope="module", params=FAMILIES)
def world(request, tiny_settings, tmp_path_factory):
    return World(tiny_settings(request.param), tmp_path_factory.mktemp("world"))


def rows_of(path):
    with Path(path).open() as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def awake(method, world, seed=0):
    """An intervention away from zero-shot, so that every parameter has a gradient."""
    intervention = build_intervention(method, 3, world.backbone.width, seed)
    draw = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in intervention.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw))
    return intervention


def plain_hidden(world, prompt):
    """Final states of one unpadded full prompt, without any cache."""
    batch = world.backbone.collate([prompt], world.features, part="full")
    return world.backbone.prefill(batch)[0]


def plain_objective(world, intervention, method, rows):
    """The objective with a live teacher, full forward passes of single examples, and all logits: no cache at all."""
    head = world.backbone.head
    terms = []
    for row in rows:
        uid, prompt = world.uids[row], world.prompts[row]
        p, report = prompt.prompt_length, world.study.targets[uid]
        (taught,) = world.render([uid], world.study.drawn)
        with torch.no_grad():
            teacher = head(plain_hidden(world, taught)[taught.prompt_length - 1 :])
        steered = torch.arange(len(prompt.ids))[None] >= (0 if intervention.positions == "all" else p - 1)
        with Steering(world.backbone.layers, intervention) as steering, steering.at(steered):
            student = head(plain_hidden(world, prompt)[p - 1 :])
        labels = torch.tensor([*prompt.ids[p:], world.backbone.term_id])
        weights = [1.0] * len(labels)
        for start, end in next(spans_of(world.study.spans, [uid])):
            for t, (a, b) in enumerate(prompt.offsets):
                if report[max(a, start) : min(b, end)].strip():
                    weights[t] = float(method["weights"]["pathology"])
        weights[-1] = float(method["weights"]["eos"])
        terms.append((torch.tensor(weights), F.cross_entropy(student, labels, reduction="none"), teacher, student))
    weights = torch.cat([term[0] for term in terms])
    cross_entropy = (weights * torch.cat([term[1] for term in terms])).sum() / weights.sum()
    divergence = torch.cat([F.kl_div(s.log_softmax(-1), t.softmax(-1), reduction="none").sum(-1) for *_, t, s in terms])
    loss = method["loss"]
    return loss["kd"] * divergence.mean() + loss["ce"] * cross_entropy


@pytest.mark.parametrize("limit_bytes", [0, 1e9], ids=["recomputed", "kept"])
@pytest.mark.parametrize(
    ("rows", "micro_batch"),
    [([0, 3, 1, 4], 4), ([0, 3, 1, 4], 2), ([5, 2, 0], 2), ([5], 4)],
    ids=["one", "accumulated", "uneven", "last"],
)
@pytest.mark.parametrize("method", [DIVE, LIVE, {**DIVE, "positions": "all"}], ids=["dive", "live", "dive_all"])
def test_loss_and_gradient_from_caches_equal_the_plain_implementation(world, method, rows, micro_batch, limit_bytes):
    intervention = awake(method, world)
    expected = plain_objective(world, intervention, method, rows)
    gradients = torch.autograd.grad(expected, list(intervention.parameters()))
    run = world.run(method, micro_batch, limit_bytes, intervention=intervention)
    total, *_ = run.accumulate_gradient(rows)
    run.student.steering.detach()
    assert total == pytest.approx(float(expected.detach()), abs=1e-5)
    for (name, parameter), gradient in zip(intervention.named_parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-5, rtol=0, msg=lambda m, n=name: f"{n}: {m}")
        assert gradient.abs().max() > 0


def test_an_epoch_equals_a_plain_training_loop(world):
    """Order, schedule, decay, clipping and the last, smaller batch included; 6 queries in batches of 4."""
    method = {**DIVE, "optimiser": {"lr": 3e-3, "weight_decay": 0.1, "warmup": 0.0, "clip": 0.2}, "epochs": 1}
    plain, own = awake(method, world), awake(method, world)
    groups = {True: [], False: []}
    for name, parameter in plain.named_parameters():
        groups[name.endswith(("U", "D"))].append(parameter)
    optimiser = torch.optim.AdamW(
        [{"params": groups[True], "weight_decay": 0.1}, {"params": groups[False], "weight_decay": 0.0}], lr=3e-3
    )
    batches = batches_of_epoch([prompt.n_labels for prompt in world.prompts[:6]], 4, 0, 0)
    assert sorted(map(len, batches)) == [2, 4]
    expected = []
    for rows, factor in zip(batches, (1.0, 0.5), strict=True):  # cosine over two steps
        for group in optimiser.param_groups:
            group["lr"] = 3e-3 * factor
        optimiser.zero_grad()
        loss = plain_objective(world, plain, method, rows)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.2)
        assert norm > 0.2, "nothing would be clipped"
        optimiser.step()
        expected.append((float(loss.detach()), float(norm)))
    run = world.run(method, 3, intervention=own)
    found = [run.step(rows, step) for step, rows in enumerate(batches)]
    run.student.steering.detach()
    names = run_module.TRAINING_COLUMNS[2:]
    for row, (loss, norm) in zip(found, expected, strict=True):
        row = dict(zip(names, row, strict=True))
        assert row["loss"] == pytest.approx(loss, abs=1e-4)
        assert row["gradient_norm"] == pytest.approx(norm, rel=1e-3)
    for (name, parameter), target in zip(own.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(parameter, target, atol=1e-4, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


def test_steering_every_position_equals_single_full_passes(world):
    intervention = awake(DIVE, world)
    intervention.positions = "all"
    run = world.run(DIVE, intervention=intervention)
    rows, singly = [0, 3, 1], []
    for row in rows:
        prompt = world.prompts[row]
        with run.student.steering.at(torch.ones(1, len(prompt.ids), dtype=torch.bool)):
            singly.append(plain_hidden(world, prompt)[prompt.prompt_length - 1 :])
    batched = run.student(rows)
    run.student.steering.detach()
    torch.testing.assert_close(batched.states, torch.cat(singly), atol=1e-5, rtol=0)
    assert batched.labels.tolist() == [label for row in rows for label in world.prompts[row].labels]


def test_the_first_answer_token_is_distilled_and_nothing_after_the_terminator(world):
    """Defects 1 and 6: positions p-1 .. p+T-1, TERM from the chat template."""
    states = Shards(world.teacher)
    for uid in world.study.members["queries"]:
        (taught,) = world.render([uid], world.study.drawn)
        own = world.prompts[world.uids.index(uid)]
        hidden = plain_hidden(world, taught)
        n_report = len(taught.ids) - taught.prompt_length
        assert states[uid].shape == (n_report + 1, world.backbone.width)
        torch.testing.assert_close(states[uid], hidden[taught.prompt_length - 1 :], atol=1e-5, rtol=0)
        # The state at the last prompt token predicts y_1; the one at y_T predicts TERM, and TERM is never an input.
        report = world.backbone.tokenizer.decode(taught.ids[taught.prompt_length :])
        assert report == world.study.targets[uid]
        chat = world.backbone.tokenizer.apply_chat_template(
            [{"role": "user", "content": "x"}, {"role": "assistant", "content": "Report."}], tokenize=False
        )
        term = "<end_of_turn>" if "<end_of_turn>" in chat else "<|im_end|>"
        assert world.backbone.term_id == world.backbone.tokenizer.convert_tokens_to_ids(term)
        assert own.labels == [*taught.ids[taught.prompt_length :], world.backbone.term_id]
    run = world.run(DIVE)
    predictions = run.student([0])
    run.student.steering.detach()
    torch.testing.assert_close(
        predictions.states.detach(), plain_hidden(world, world.prompts[0])[world.prompts[0].prompt_length - 1 :]
    )
    assert predictions.labels.tolist() == world.prompts[0].labels  # defect 5: the report and TERM, nothing else


def test_only_the_answer_moves_the_loss(world):
    """Each predicting position has a gradient, no other one has: no label lies in the prompt or after TERM."""
    run = world.run({**DIVE, "loss": {**DIVE["loss"], "kd": 0.0}}, teacher=False)
    captured = {}
    original = run.student.backbone.extend

    def watched(ids, mask, next_position, cache):
        hidden = original(ids, mask, next_position, cache)
        hidden.retain_grad()
        captured.update(hidden=hidden, mask=mask)
        return hidden

    run.student.backbone.extend = watched
    try:
        run.accumulate_gradient([0, 1, 2])
    finally:
        del run.student.backbone.extend
        run.student.steering.detach()
    touched = captured["hidden"].grad.abs().amax(-1) > 0
    lengths = sorted(world.prompts[row].n_labels for row in (0, 1, 2))
    assert touched.sum(-1).tolist() == lengths
    assert torch.equal(touched, captured["mask"][:, -touched.shape[1] :])


def test_padding_that_equals_the_terminator_hides_nothing(world):
    """Defect 4: masks come from lengths, never from ids != pad."""
    run = world.run(DIVE)
    expected = run.accumulate_gradient([0, 1, 4])
    pad = world.backbone.tokenizer.pad_token_id
    try:
        world.backbone.tokenizer.pad_token_id = world.backbone.term_id
        run.optimiser.zero_grad()
        assert torch.equal(run.accumulate_gradient([0, 1, 4]), expected)
        assert (run.student([0, 1]).labels == world.backbone.term_id).sum() == 2
    finally:
        world.backbone.tokenizer.pad_token_id = pad
        run.student.steering.detach()


def test_a_cut_report_has_no_terminator(tiny_settings, tmp_path):
    world = World(tiny_settings("gemma3"), tmp_path, {**TRAINING, "max_report_tokens": 5})
    states = Shards(world.teacher)
    for uid, prompt in zip(world.uids, world.prompts, strict=True):
        assert prompt.n_labels == 5
        assert world.backbone.term_id not in prompt.labels
        assert uid not in states or states[uid].shape[0] == 5
    out = world.distill("cut", {**DIVE, "epochs": 1})
    assert {row["share_term"] for row in rows_of(out / "training.csv")} == {0.0}
    assert all(row["term_cross_entropy"] != row["term_cross_entropy"] for row in rows_of(out / "validation.csv"))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_bfloat16_backbone_trains_a_float32_adapter(tiny_settings, tmp_path, family):
    exact = World(tiny_settings(family), tmp_path / "exact")
    world = World(tiny_settings(family, dtype="bfloat16"), tmp_path)
    states = Shards(world.teacher)
    assert {states[uid].dtype for uid in states} == {torch.bfloat16}
    rows, losses = [0, 3, 1, 4], []
    for one in (exact, world):
        run = one.run(DIVE, 2, intervention=awake(DIVE, one))
        losses.append(float(run.accumulate_gradient(rows)[0]))
        run.student.steering.detach()
    assert losses[1] == pytest.approx(losses[0], rel=0.03)
    # Master weights: a step far below bfloat16's resolution of a parameter is not lost, nor is the optimiser's state.
    before = {name: parameter.detach().clone() for name, parameter in run.intervention.named_parameters()}
    run = world.run({**DIVE, "optimiser": {"lr": 1e-6, "weight_decay": 0.0}}, 2, intervention=run.intervention)
    run.step(rows, 0)
    run.student.steering.detach()
    for name, parameter in run.intervention.named_parameters():
        assert parameter.dtype == torch.float32
        assert {state.dtype for state in run.optimiser.state[parameter].values()} == {torch.float32}
        moved = (parameter.detach() != before[name]).float().mean()
        assert moved > 0.9, f"{name}: {moved}"
    out = world.distill("low", DIVE)
    assert {tensor.dtype for tensor in load_file(out / "adapter.safetensors").values()} == {torch.float32}
    rows = rows_of(out / "validation.csv")
    assert rows[-1]["cross_entropy"] < rows[0]["cross_entropy"]
    assert next(world.backbone.model.parameters()).dtype == torch.bfloat16


def test_a_compiled_decoder_steers_alike(tiny_settings, tmp_path):
    """By the backend that runs graphs as they are traced: kernels are torch's matter, what is in the graphs is ours.

    One family, since tracing takes ten seconds.
    """
    world = World(tiny_settings("gemma3"), tmp_path)
    intervention = awake(DIVE, world)
    prompts = [world.backbone.prompts.render(uid, world.features.n_tokens) for uid in world.uids[:4]]

    def outcome():
        def decoded(n_tokens):
            return [report.ids for report in decode_batch(world.backbone, prompts, world.features, n_tokens)]

        before = decoded(1)
        with Steering(world.backbone.layers, intervention):
            steered = decoded(4)
        run = world.run(DIVE, 2, intervention=intervention)
        intervention.zero_grad()
        losses = run.accumulate_gradient([0, 3, 1, 4]).tolist()
        run.student.steering.detach()
        return (
            [before, steered, decoded(1)],
            losses,
            [parameter.grad.clone() for parameter in intervention.parameters()],
        )

    expected = outcome()
    assert expected[0][0] == expected[0][2] != [ids[:1] for ids in expected[0][1]]
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    world.backbone.compile("eager")
    # Graphs are made before anything steers, while something does, and for each again once it is gone.
    found = outcome()
    assert found[0] == expected[0]
    assert found[1] == pytest.approx(expected[1], abs=1e-5)
    for gradient, plain in zip(found[2], expected[2], strict=True):
        torch.testing.assert_close(gradient, plain, atol=1e-5, rtol=0)
    counters = torch._dynamo.utils.counters
    assert counters["frames"]["ok"] == counters["frames"]["total"] > 3
    assert not counters["graph_break"]
    torch._dynamo.reset()


def test_the_teachers_batch_size_does_not_matter(world, tmp_path):
    settings = {**world.settings, "batch": {"teacher": 1}}
    study = world.study
    out = str(tmp_path / "one")
    cache_teacher(settings, study.studies, study.demonstrations, study.vision, TRAINING, out)
    one, three = Shards(out), Shards(world.teacher)
    assert set(one) == set(three) == set(study.members["queries"])
    for uid in one:
        torch.testing.assert_close(one[uid], three[uid], atol=1e-5, rtol=0)


def test_training_starts_at_zero_shot_and_improves_validation(world):
    out = world.distill("dive", DIVE)
    validation, steps = rows_of(out / "validation.csv"), rows_of(out / "training.csv")
    assert [row["epoch"] for row in validation] == [0, 1, 2, 3]
    assert [row["step"] for row in steps] == [1, 2, 3, 4, 5, 6]
    zero_shot = torch.cat(
        [
            F.cross_entropy(
                world.backbone.head(plain_hidden(world, prompt)[prompt.prompt_length - 1 :]),
                torch.tensor(prompt.labels),
                reduction="none",
            )
            for prompt in world.prompts[-3:]
        ]
    )
    assert validation[0]["cross_entropy"] == pytest.approx(float(zero_shot.mean()), abs=1e-4)
    assert validation[-1]["cross_entropy"] < validation[0]["cross_entropy"]
    for row in steps:
        assert row["share_other"] + row["share_pathology"] + row["share_term"] == pytest.approx(1, abs=1e-5)
        assert row["loss"] == pytest.approx(row["distillation"] + 0.5 * row["cross_entropy"], rel=1e-4)
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md",
        "adapter.safetensors",
        "checksums.json",
        "config.json",
        "training.csv",
        "validation.csv",
    ]
    assert not (world.folder / "dive.checkpoint").exists()
    config = json.loads((out / "config.json").read_text())
    assert config["data"]["credentialed"] is True  # unless the workflow says otherwise
    best = min(row["cross_entropy"] for row in validation)
    assert config["scores"] == {"validation cross-entropy": pytest.approx(best, rel=1e-5)}
    known = world.distill("known", {**DIVE, "epochs": 1}, credentialed=False)
    assert json.loads((known / "config.json").read_text())["data"]["credentialed"] is False


def test_the_state_that_is_best_on_validation_is_kept(world):
    """Defect 10; an objective that only harms must give the initial state back."""
    harmful = {**DIVE, "loss": {**DIVE["loss"], "kd": 0.0, "ce": -0.5}}
    out = world.distill("harmed", harmful)
    rows = rows_of(out / "validation.csv")
    best = min(rows, key=lambda row: row["cross_entropy"])
    assert [row["best"] for row in rows] == [float(row is best) for row in rows]
    assert best["epoch"] == 0
    assert json.loads((out / "config.json").read_text())["epoch"] == best["epoch"]
    run = world.run(DIVE, intervention=load_adapter(out, world.backbone.model, world.backbone.layers))
    done = run_module.Progress(0, [], [], float("inf"), 0, {})
    run._validate(done)
    run.student.steering.detach()
    assert done.best == pytest.approx(best["cross_entropy"], abs=1e-4)


@pytest.mark.parametrize("method", [LIVE, {**DIVE, "rank": 0}, {**DIVE, "positions": "all"}], ids=lambda m: m["module"])
def test_every_method_trains(world, method):
    rows = rows_of(world.distill("other", method) / "validation.csv")
    assert rows[-1]["cross_entropy"] < rows[0]["cross_entropy"]


SOURCES = {
    "random": {"pathology": 3, "eos": 10, "source": "random"},
    "power_law": {"pathology": 1, "eos": 10, "source": "power_law", "exponent": 1.0, "level": 0.1},
    "surprisal": {"pathology": 1, "eos": 10, "source": "surprisal", "exponent": 1.0, "level": 0.1},
    "value_at_risk": {"pathology": 1, "eos": 10, "source": "value_at_risk", "exponent": 1.0, "level": 0.5},
}


@pytest.mark.parametrize("source", SOURCES)
def test_every_source_of_weights_trains(world, source):
    out = world.distill(f"by_{source}", {**DIVE, "weights": SOURCES[source]})
    rows = rows_of(out / "validation.csv")
    assert rows[-1]["cross_entropy"] < rows[0]["cross_entropy"]
    for row in rows_of(out / "training.csv"):
        assert row["share_other"] + row["share_pathology"] + row["share_term"] == pytest.approx(1, abs=1e-5)


def test_spans_are_those_of_each_study_in_their_order(tmp_path):
    rows = {"study_uid": ["b", "a", "b", "c"], "start": [5, 1, 0, 2], "end": [7, 3, 2, 4]}
    pq.write_table(pa.table(rows), tmp_path / "spans")
    pq.write_table(pa.table(rows).slice(0, 0), tmp_path / "none")
    assert list(spans_of(tmp_path / "spans", ["a", "x", "b"])) == [[(1, 3)], [], [(5, 7), (0, 2)]]
    assert list(spans_of(tmp_path / "spans", ["x"])) == [[]]
    assert list(spans_of(tmp_path / "none", ["a", "b"])) == [[], []]


def test_random_tokens_are_as_many_as_decisive_ones(world):
    rows = zip(world.uids, world.prompts, spans_of(world.study.spans, world.uids), strict=True)
    differ = 0
    for uid, prompt, spans in rows:
        own, control = (
            supervise(mark_decisive(prompt, spans, world.study.targets[uid], weights, seed=1), True, weights)
            for weights in ({"pathology": 3, "eos": 10, "source": source} for source in (None, "random"))
        )
        assert own.sums == control.sums
        assert own.marked.sum() == control.marked.sum() > 0
        assert control.weights[-1] == 10
        differ += not torch.equal(own.weights, control.weights)
    assert differ > len(world.uids) // 2


def test_the_value_at_risk_is_that_of_the_effective_batch(world):
    """Exact under accumulation: the threshold is over all reports of the batch, TERM is always kept."""
    method = {**DIVE, "weights": SOURCES["value_at_risk"]}
    rows = [0, 3, 1, 4]
    outcomes = []
    for micro_batch in (2, 4):
        run = world.run(method, micro_batch, intervention=awake(DIVE, world))
        chosen = run.supervision_of(rows)
        predictions = run.student(rows)
        losses = F.cross_entropy(world.backbone.head(predictions.states), predictions.labels, reduction="none")
        losses = losses.detach().split([run.lengths[row] for row in rows])
        threshold = torch.cat([of_one[:-1] for of_one in losses]).quantile(0.5, interpolation="lower")
        for of_one, supervision in zip(losses, chosen, strict=True):
            assert supervision.weights[-1] == 10
            assert supervision.weights[:-1].tolist() == (of_one[:-1] >= threshold - 1e-5).float().tolist()
            assert sum(supervision.sums) == pytest.approx(float(supervision.weights.sum()))
        outcomes.append(run.accumulate_gradient(rows).tolist())
        run.student.steering.detach()
    assert outcomes[0] == pytest.approx(outcomes[1], abs=1e-5)


def test_surprisal_is_the_zero_shot_loss(world):
    weights = {**SOURCES["surprisal"], "exponent": 2.0}
    queries = world.prompts[: len(world.study.members["queries"])]
    relevance = relevance_of(weights, queries, world.backbone, world.features, batch_size=4)
    losses = []
    for prompt in queries:
        logits = world.backbone.head(plain_hidden(world, prompt)[prompt.prompt_length - 1 :])
        losses.append(F.cross_entropy(logits, torch.tensor(prompt.labels), reduction="none")[:-1].square())
    mean = float(torch.cat(losses).mean())
    for found, expected in zip(relevance, losses, strict=True):
        assert found.tolist() == pytest.approx((expected / mean).tolist(), abs=1e-4)


def test_without_distillation_no_teacher_is_needed(world):
    method = {**DIVE, "loss": {**DIVE["loss"], "kd": 0.0}}
    rows = rows_of(world.distill("alone", method, teacher=None) / "training.csv")
    assert {row["distillation"] for row in rows} == {0.0}
    with pytest.raises(ValueError, match="no teacher states"):
        world.distill("orphan", DIVE, teacher=None)


def test_a_teacher_of_other_settings_is_refused(world):
    with pytest.raises(ValueError, match=r"the teacher has \d+ states, the student 6"):
        world.distill("foreign", DIVE, training={**TRAINING, "max_report_tokens": 6})


def test_the_vision_tower_never_runs(world, monkeypatch):
    def forbidden(*args, **kwargs):
        raise AssertionError("the vision tower ran")

    monkeypatch.setattr(type(world.backbone.model), "get_image_features", forbidden)
    monkeypatch.setattr(type(world.backbone.model.model), "get_image_features", forbidden)
    world.distill("blind", {**DIVE, "epochs": 1})


def mean_divergence(world, teacher):
    """KL(teacher || zero-shot) over all predicting positions of the queries, by plain forward passes."""
    states, parts = Shards(teacher), []
    for uid, prompt in zip(world.study.members["queries"], world.prompts, strict=False):
        own = plain_hidden(world, prompt)[prompt.prompt_length - 1 :]
        p, q = (F.log_softmax(world.backbone.head(hidden).float(), -1) for hidden in (states[uid], own))
        parts.append((p.exp() * (p - q)).sum(-1))
    return float(torch.cat(parts).mean())


def test_epochs_alternate_between_the_draws_of_demonstrations(world, tmp_path, monkeypatch):
    redrawn, second = tmp_path / "redrawn.json", str(tmp_path / "teacher-draw1")
    # Of another number, so that the two teachers are surely far apart.
    redrawn.write_text(json.dumps({"queries": {uid: shown[:1] for uid, shown in world.study.drawn.items()}}))
    cache_teacher(world.settings, world.study.studies, str(redrawn), world.study.vision, world.training, second)
    # At rate 0 the student stays zero-shot, so that a step's divergence tells its teacher.
    still = {**DIVE, "optimiser": {"lr": 0.0, "weight_decay": 0.0}, "epochs": 5, "batch_size": 3}
    rows = rows_of(world.distill("still", still, teacher=[world.teacher, second]) / "training.csv")
    lengths = [prompt.n_labels for prompt in world.prompts[: len(world.study.members["queries"])]]
    expected = [mean_divergence(world, world.teacher), mean_divergence(world, second)]
    assert abs(expected[0] - expected[1]) > 0.1 * expected[0]
    for epoch in range(5):
        of_epoch = [row for row in rows if row["epoch"] == epoch + 1]
        assert sum(row["tokens"] for row in of_epoch) == sum(lengths)
        found = sum(row["distillation"] * row["tokens"] for row in of_epoch) / sum(lengths)
        assert found == pytest.approx(expected[epoch % 2], rel=1e-4)
    # A run that is killed in the second draw's epoch goes on with it.
    training, teachers = {**TRAINING, "checkpoint_seconds": 0}, [world.teacher, second]
    whole = world.distill("whole-draws", DIVE, training, teacher=teachers)
    step = Run.step

    def killed(self, batch, number, upcoming):
        if number == 3:
            raise KeyboardInterrupt
        return step(self, batch, number, upcoming)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Run, "step", killed)
        world.distill("killed-draws", DIVE, training, teacher=teachers)
    found = world.distill("killed-draws", DIVE, training, teacher=teachers)
    assert (found / "adapter.safetensors").read_bytes() == (whole / "adapter.safetensors").read_bytes()
    assert json.loads((found / "config.json").read_text())["data"]["draws"] == 2
    alone = world.distill("one-draw", DIVE, training)
    assert (alone / "adapter.safetensors").read_bytes() != (whole / "adapter.safetensors").read_bytes()
    assert "draws" not in json.loads((alone / "config.json").read_text())["data"]


def test_a_checkpoint_of_other_settings_is_not_continued(world, monkeypatch):
    training = {**TRAINING, "checkpoint_seconds": 0}
    expected = (world.distill("fresh", DIVE, training) / "adapter.safetensors").read_bytes()
    step = Run.step

    def killed(self, batch, number, upcoming):
        if number == 4:
            raise KeyboardInterrupt
        return step(self, batch, number, upcoming)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Run, "step", killed)
        world.distill("stale", {**DIVE, "optimiser": {**DIVE["optimiser"], "lr": 0.5}}, training)
    assert (world.folder / "stale.checkpoint").exists()
    assert (world.distill("stale", DIVE, training) / "adapter.safetensors").read_bytes() == expected


def test_a_loss_that_is_not_finite_stops_the_run(world):
    run = world.run(DIVE)
    with torch.no_grad():
        run.intervention.layers["0"].v.fill_(float("nan"))
    with pytest.raises(RuntimeError, match=r"step 1; lower methods\.\*\.optimiser\.lr"):
        run.step([0, 1], 0)
    run.student.steering.detach()


def test_every_example_is_seen_once_an_epoch_in_an_order_of_its_own():
    lengths = [30 + i % 7 for i in range(101)]
    epochs = [batches_of_epoch(lengths, 16, seed=0, epoch=epoch) for epoch in range(3)]
    for batches in epochs:
        assert sorted(row for batch in batches for row in batch) == list(range(101))
        assert [len(batch) for batch in batches if len(batch) != 16] == [5]
    assert epochs[0] != epochs[1]
    assert epochs[0] == batches_of_epoch(lengths, 16, seed=0, epoch=0)
    assert epochs[0] != batches_of_epoch(lengths, 16, seed=1, epoch=0)


def test_batches_are_drawn_once_an_epoch(world, monkeypatch, tmp_path):
    drawn = []

    def counted(*args, **kwargs):
        drawn.append(args[3])
        return batches_of_epoch(*args, **kwargs)

    monkeypatch.setattr(run_module, "batches_of_epoch", counted)
    run = world.run(DIVE)
    run.train(tmp_path / "checkpoint", "")
    run.student.steering.detach()
    assert drawn == [0, 1, 2]


def test_the_rate_warms_up_and_falls_to_zero():
    factors = [learning_rate_factor(step, 100, 0.1) for step in range(100)]
    assert factors[:10] == pytest.approx([0.1 * (step + 1) for step in range(10)])
    assert factors[10] == 1.0
    assert factors[55] == pytest.approx(0.5)
    assert 0 < factors[-1] < 1e-3
    assert all(a >= b for a, b in itertools.pairwise(factors[10:]))
    assert learning_rate_factor(0, 1, 0.0) == 1.0


@pytest.mark.parametrize("kd", [1.0, 0.0])
def test_gradients_at_fixed_shapes_equal_the_plain_ones(world, kd):
    """As a GPU replays them, in two micro-batches of which the second is smaller; the graph itself needs a GPU."""
    method = {**DIVE, "loss": {**DIVE["loss"], "kd": kd, "temperature": 1.5}}
    outcomes = []
    for recorded in (False, True):
        run = world.run(method, 3, intervention=awake(DIVE, world))
        if recorded:
            run.recorded = RecordedGradient(run.student, run.loss)
        losses = run.accumulate_gradient([0, 3, 1, 4, 2])
        gradients = [parameter.grad.clone() for parameter in run.intervention.parameters()]
        assert all(gradient.any() for gradient in gradients)
        outcomes.append((losses, *gradients))
        run.student.steering.detach()
    for ours, plain in zip(*reversed(outcomes), strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-6, rtol=1e-5)


def test_batches_prepared_ahead_train_alike(world):
    """What is filled while a GPU computes is what would be filled afterwards."""
    outcomes = []
    for ahead in (True, False):
        run = world.run(DIVE, 2, intervention=awake(DIVE, world))
        run.recorded = RecordedGradient(run.student, run.loss)
        batches = [[0, 3, 1, 4], [2, 5, 0, 1], [4, 2, 3, 5]]
        losses = [
            run.step(batch, step, batches[step + 1] if ahead and step < 2 else None)[0]
            for step, batch in enumerate(batches)
        ]
        outcomes.append((losses, [parameter.detach().clone() for parameter in run.intervention.parameters()]))
        run.student.steering.detach()
    assert outcomes[0][0] == outcomes[1][0]
    assert all(torch.equal(a, b) for a, b in zip(outcomes[0][1], outcomes[1][1], strict=True))
