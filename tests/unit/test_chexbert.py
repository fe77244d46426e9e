"""CheXbert against the unmodified f1chexbert, on a tiny checkpoint in its format; what a wrong checkpoint is told."""

import json
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from dive.data.studies import LABELS
from dive.files import WeightsError, read_json
from dive.scores import chexbert
from dive.scores.chexbert import COLUMNS, CONDITIONS, CheXbert, clean, token_ids
from dive.scores.labels import BLANK, POSITIVE
from dive.scores.score import score_method
from tests.unit.reference import ask
from tests.unit.tiny_scorers import write_chexbert, write_encoder, write_reports


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """(checkpoint, encoder)."""
    folder = tmp_path_factory.mktemp("chexbert")
    encoder = write_encoder(folder / "bert")
    return str(write_chexbert(folder / "cache/chexbert/chexbert.pth", encoder)), str(encoder)


@pytest.fixture(scope="module")
def scorer(weights):
    return CheXbert(*weights, device="cpu", batch=8)


@pytest.fixture(scope="module")
def texts():
    """(hypotheses, references): repeated, empty, of white space, with line breaks, and of more than 512 tokens."""
    hypotheses, references = write_reports(60, 0), write_reports(60, 1)
    hypotheses[3], hypotheses[4], references[5] = "", " \n\t ", ""
    hypotheses[6] = "Small effusion.\n\n  No   pneumothorax.\n"
    hypotheses[7] = " ".join(write_reports(80, 2))
    references[8] = "qwertz yxcvbn 12.5"
    return hypotheses, references


@pytest.fixture(scope="module")
def reference(weights, texts, tmp_path_factory):
    """What f1chexbert says; it finds the tiny BERT under the real one's name in a cache made by hand."""
    checkpoint, encoder = weights
    home = tmp_path_factory.mktemp("hub")
    model = home / "hub/models--bert-base-uncased"
    (model / "refs").mkdir(parents=True)
    (model / "refs/main").write_text("0" * 40)
    (model / "snapshots").mkdir()
    (model / "snapshots" / ("0" * 40)).symlink_to(encoder)
    cache = checkpoint.removesuffix("/chexbert/chexbert.pth")
    environment = {"HF_HOME": str(home), "XDG_CACHE_HOME": cache, "HF_HUB_OFFLINE": "1"}
    return ask("f1chexbert", environment=environment, hyps=texts[0], refs=texts[1])


def test_classes_equal_those_of_one_report_at_a_time(scorer, texts, reference):
    ours = scorer.classes(texts[0])
    expected = np.array(reference["classes"])[:, [CONDITIONS.index(label) for label in LABELS]]
    assert (ours == expected).all()
    assert len(np.unique(ours)) == 4
    assert len(token_ids(clean(texts[0][7]), scorer._tokenizer)) == 512


def test_f1chexbert_itself_can_be_chosen(weights, texts, scorer):
    pytest.importorskip("f1chexbert", reason="the package comes with requirements.lock")
    itself = CheXbert(*weights, device="cpu", implementation="f1chexbert")
    assert (itself.classes(texts[0]) == scorer.classes(texts[0])).all()
    assert itself.identity["implementation"] == "f1chexbert 0.0.2"
    assert "implementation" not in scorer.identity  # what was remembered before stays valid


def test_without_the_package_the_error_names_the_setting(weights, monkeypatch):
    def absent(name):
        raise chexbert.PackageNotFoundError(name)

    monkeypatch.setattr(chexbert, "version", absent)
    with pytest.raises(WeightsError, match=r"scores\.chexbert\.implementation: .* or choose batched"):
        CheXbert(*weights, device="cpu", implementation="f1chexbert")


def test_every_number_of_its_report_is_equal(scorer, texts, reference):
    accuracy, each, over14, over5 = scorer.report(*texts)
    assert accuracy == pytest.approx(reference["accuracy"])
    assert each.tolist() == reference["each"]
    for ours, theirs in ((over14, reference["over14"]), (over5, reference["over5"])):
        assert list(ours) == list(theirs)
        for name in theirs:
            assert ours[name] == pytest.approx(theirs[name], abs=1e-12), name


def test_scores_from_summed_statistics_are_those_of_its_report(scorer, texts, reference):
    scores = scorer.scores(scorer.statistics(*texts).sum(axis=0), len(texts[0]))
    names = {"": "f1", "_macro": "f1_macro", "_weighted": "f1_weighted", "_samples": "f1_samples"}
    for suffix, name in names.items():
        average = f"{suffix.removeprefix('_') or 'micro'} avg"
        assert scores[f"chexbert_{name}"] == pytest.approx(100 * reference["over14"][average]["f1-score"])
        name5 = "f1_micro5" if not suffix else f"{name}5"
        assert scores[f"chexbert_{name5}"] == pytest.approx(100 * reference["over5"][average]["f1-score"])
    assert scores["chexbert_exact5"] == pytest.approx(reference["accuracy"])
    for label in LABELS:
        found = scores[f"chexbert_f1/{label}"]
        assert (found or 0) == pytest.approx(100 * reference["over14"][label]["f1-score"]), label
    assert len(COLUMNS) == 14 * 3 + 3


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_batches_do_not_change_a_class(weights, texts, batch, scorer):
    other = CheXbert(*weights, device="cpu", batch=batch)
    assert (other.classes(texts[0]) == scorer.classes(texts[0])).all()


def test_missing_texts_and_none_at_all(scorer):
    assert (scorer.classes([None]) == scorer.classes([""])).all()
    assert scorer.classes([]).shape == (0, 14)
    assert scorer.statistics([], []).shape == (0, len(COLUMNS))


def test_what_was_read_once_is_not_read_again(weights, texts, tmp_path, monkeypatch):
    first = CheXbert(*weights, device="cpu", folder=str(tmp_path))
    expected = first.classes(texts[0])
    other = CheXbert(*weights, device="cpu", folder=str(tmp_path))
    monkeypatch.setattr("dive.scores.chexbert.load_labeler", lambda *_: pytest.fail("the model was loaded"))
    assert (other.classes(texts[0]) == expected).all()
    identity = read_json(next(tmp_path.glob("chexbert-*/identity.json")))
    assert identity == first.identity
    assert identity["checkpoint"] == "chexbert.pth"
    assert len(identity["sha256"]) == 64


def test_another_checkpoint_shares_nothing(weights, tmp_path):
    CheXbert(*weights, device="cpu", folder=str(tmp_path)).classes(["Effusion."])
    other = write_chexbert(tmp_path / "other/chexbert.pth", weights[1], seed=1)
    CheXbert(str(other), weights[1], device="cpu", folder=str(tmp_path)).classes(["Effusion."])
    assert len(list(tmp_path.glob("chexbert-*/*.tsv"))) == 2


def test_wrong_checkpoints_are_errors(weights, tmp_path):
    """What f1chexbert's strict=False hides, and what it would unpickle."""
    import torch

    stored = torch.load(weights[0], weights_only=True)
    path = tmp_path / "chexbert.pth"

    def told(content) -> str:
        torch.save(content, path)
        with pytest.raises(WeightsError) as caught:
            CheXbert(str(path), weights[1], device="cpu").classes(["Effusion."])
        return str(caught.value)

    state = dict(stored["model_state_dict"])
    lacking = {key: value for key, value in state.items() if key != "module.linear_heads.13.bias"}
    assert "1 absent (first: linear_heads.13.bias)" in told({"model_state_dict": lacking})
    assert "1 unknown (first: head)" in told({"model_state_dict": {**state, "head": torch.zeros(1)}})
    misshapen = {**state, "module.linear_heads.0.weight": torch.zeros(5, 32)}
    assert "1 of another shape (first: linear_heads.0.weight)" in told({"model_state_dict": misshapen})
    assert "no model_state_dict" in told(state)
    assert "not a file of plain tensors" in told({**stored, "payload": pickle.Unpickler})
    damaged = {
        key: torch.full_like(value, float("nan")) if "heads.0.b" in key else value for key, value in state.items()
    }
    assert "no tensors of finite numbers" in told({"model_state_dict": damaged})
    assert "no tensors of finite numbers" in told({"model_state_dict": {**state, "module.linear_heads.0.bias": 5}})
    for content in (b"no checkpoint", b"", b"hello world\n" * 99, b"hypothesis,reference\na,b\n"):
        path.write_bytes(content)
        with pytest.raises(WeightsError, match="not a file of plain tensors") as caught:
            CheXbert(str(path), weights[1], device="cpu").classes(["Effusion."])
        assert "weights_only" not in str(caught.value)  # torch's advice to trust the file
    with pytest.raises(WeightsError, match=r"scores.chexbert.encoder: .*bert-absent gives no BERT .*name a folder"):
        CheXbert(weights[0], f"{weights[1]}-absent", device="cpu").classes(["Effusion."])
    with pytest.raises(WeightsError, match="dive fetch-assets"):
        CheXbert(str(tmp_path / "absent.pth"))


def test_older_files_are_read(weights, tmp_path, scorer):
    """Checkpoints of old versions: another container, a constant buffer, no prefix."""
    import torch

    state = torch.load(weights[0], weights_only=True)["model_state_dict"]
    state = {key.removeprefix("module."): value for key, value in state.items()}
    state["bert.embeddings.position_ids"] = torch.arange(512)[None]
    path = tmp_path / "chexbert.pth"
    torch.save({"model_state_dict": state}, path, _use_new_zipfile_serialization=False)
    texts = write_reports(5, 3)
    assert (CheXbert(str(path), weights[1], device="cpu").classes(texts) == scorer.classes(texts)).all()


def test_a_method_s_scores_name_the_checkpoint(weights, tmp_path):
    from tests.unit import test_score

    uids = ["t1", "t2", "t3"]
    owners = ["pt1", "pt2", "pt3"]  # as generate() has them
    table = {"study_uid": uids, "patient_uid": owners, "target": [test_score.TARGETS[uid] for uid in uids]}
    pq.write_table(pa.table(table), tmp_path / "studies.parquet")
    (tmp_path / "pool.json").write_text(json.dumps({"test": uids}))
    generations = {seed: test_score.generate(tmp_path, seed, [(uid, "Effusion.") for uid in uids]) for seed in (0, 1)}
    settings = {"path": weights[0], "encoder": weights[1], "batch": 2, "device": "cpu"}
    score_method(
        str(tmp_path / "studies.parquet"),
        str(tmp_path / "pool.json"),
        generations,
        test_score.VOCABULARY,
        str(tmp_path / "scores"),
        scorers={"radgraph": None, "chexbert": settings},
        remembered=str(tmp_path / "remembered"),
    )
    summary = json.loads((tmp_path / "scores/summary.json").read_text())
    scorer = CheXbert(*weights, device="cpu")
    rows = scorer.statistics(["Effusion."] * 3, table["target"])
    expected = scorer.scores(rows.sum(axis=0), 3)
    assert summary["metrics"]["chexbert_f1"]["seeds"] == pytest.approx(dict.fromkeys("01", expected["chexbert_f1"]))
    assert summary["metrics"]["radgraph_f1"]["mean"] is None
    assert summary["provenance"]["scorers"] == {"chexbert": scorer.identity}
    assert f"chexbert.pth (sha256 {scorer.identity['sha256'][:12]})" in summary["conventions"]["chexbert_f1"]
    assert str(tmp_path) not in json.dumps(summary)
    reports = pq.read_table(tmp_path / "scores/reports.parquet").to_pandas()
    assert (reports[list(COLUMNS)].to_numpy()[:3] == rows).all()
    assert (np.stack(reports["chexbert_classes_reference"][:3]) == scorer.classes(table["target"])).all()


def test_classes_are_in_the_order_of_labels(scorer, monkeypatch):
    row = [POSITIVE if label == "Fracture" else BLANK for label in CONDITIONS]
    monkeypatch.setitem(scorer._classes, "fractured", row)
    assert dict(zip(LABELS, scorer.classes(["fractured"])[0], strict=True))["Fracture"] == POSITIVE


def test_a_full_memory_names_the_setting(scorer, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    scorer.classes(["Edema."])  # so that its model is there
    monkeypatch.setattr(type(scorer._model), "forward", full)
    with pytest.raises(RuntimeError, match=r"^out of device memory; lower scores\.chexbert\.batch"):
        scorer.classes(["A text that was not read before."])
