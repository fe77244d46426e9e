"""RadGraph against the unmodified package, on a tiny archive in its format."""

import numpy as np
import pytest
import torch

from dive.files import WeightsError, read_json
from dive.scores.radgraph import COLUMNS, RadGraph, cap_words
from tests.unit.tiny_scorers import SENTENCES, write_encoder, write_radgraph, write_reports

radgraph = pytest.importorskip("radgraph", reason='the package comes with "dive[metrics]"')


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Holds the archives radgraph and radgraph-xl; they differ in how they split words."""
    place = tmp_path_factory.mktemp("radgraph")
    encoder = write_encoder(place / "bert")
    write_radgraph(place, encoder, "radgraph")
    write_radgraph(place, encoder, "radgraph-xl")
    return str(place)


@pytest.fixture(scope="module")
def texts():
    hypotheses, references = write_reports(30, 0), write_reports(30, 1)
    hypotheses[3], references[4], hypotheses[5], references[6] = "", "", "Edema", "No edema/effusion, 2.5 cm (left)."
    hypotheses[7] = hypotheses[8] = references[8] = " ".join(SENTENCES)
    return hypotheses, references


@pytest.mark.parametrize("archive", ["radgraph", "radgraph-xl"])
def test_all_three_levels_equal_f1radgraph(folder, texts, archive):
    package = radgraph.F1RadGraph(reward_level="all", model_type=archive, model_cache_dir=folder, cuda=-1)
    mean, each, _, _ = package(hyps=texts[0], refs=texts[1])
    scorer = RadGraph(folder, archive, device="cpu")
    statistics = scorer.statistics(*texts)
    assert statistics[:, :3] / 100 == pytest.approx(np.array(each).T, abs=1e-12)
    scores = scorer.scores(statistics.sum(axis=0), len(statistics))
    assert [scores[f"radgraph_{level}"] for level in ("simple", "partial", "complete")] == pytest.approx(
        [100 * value for value in mean]
    )
    assert scores["radgraph_f1"] == scores["radgraph_partial"]
    # The case is one where the levels differ, and neither nothing nor everything agrees.
    assert 0 < mean[2] < mean[1] < mean[0] < 1
    assert statistics[8, :3].tolist() == [100, 100, 100]


def test_texts_without_words_score_0(folder):
    scorer = RadGraph(folder, device="cpu", archive="radgraph-xl")
    bare = ["", " ", " \n\t ", None, "\\n", "\u00a0"]  # the package's split leaves nothing of a written \n
    for hypotheses, references in ((bare, ["Small effusion."] * 6), (["Small effusion."] * 6, bare), (bare, bare)):
        assert scorer.statistics(hypotheses, references).sum() == 0
    assert scorer.statistics([], []).shape == (0, len(COLUMNS))


def test_a_distinct_text_is_read_once_ever(folder, tmp_path, monkeypatch):
    reports = ["Small effusion.", "No effusion."] * 3
    first = RadGraph(folder, "radgraph", device="cpu", folder=str(tmp_path))
    seen = []
    read = first.reader._read
    monkeypatch.setattr(first.reader, "_read", lambda texts: (seen.extend(texts), read(texts))[1])
    expected = first.statistics(reports, reports[::-1])
    assert sorted(seen) == ["No effusion.", "Small effusion."]
    other = RadGraph(folder, "radgraph", device="cpu", folder=str(tmp_path))
    monkeypatch.setattr("dive.radgraph.load_archive", lambda *_: pytest.fail("the model was loaded"))
    assert (other.statistics(reports, reports[::-1]) == expected).all()
    # Another archive is another identity.
    identity = read_json(next(tmp_path.glob("radgraph-*/identity.json")))
    assert (identity["archive"], identity["package"]) == ("radgraph", "radgraph 0.1.18")
    assert set(identity["sha256"]) >= {"config.json", "weights.th"}
    assert RadGraph(folder, "radgraph-xl", device="cpu").identity != identity


def test_long_hypotheses_are_cut_and_counted(folder):
    report = "No effusion. " * 200
    scorer = RadGraph(folder, "radgraph", device="cpu", max_words=10)
    statistics = scorer.statistics([report, "No effusion."], ["No effusion. " * 5, report[:60]])
    assert statistics[:, 3].tolist() == [1, 0]
    assert statistics[0, :3].tolist() == [100, 100, 100]
    assert scorer.scores(statistics.sum(axis=0), 2)["radgraph_capped"] == 1
    assert "radgraph 0.1.18, archive radgraph (sha256 " in scorer.conventions["radgraph_f1"]
    assert "cut after 10 words" in scorer.conventions["radgraph_f1"]


def test_cap_keeps_what_it_keeps_as_written():
    assert cap_words("  a\n b  c ", 2) == ("  a\n b", True)
    assert cap_words("  a\n b  c ", 3) == ("  a\n b  c ", False)
    assert cap_words("a b", None) == ("a b", False)


def test_lower_case_is_of_both_sides(folder):
    scorer = RadGraph(folder, "radgraph", device="cpu", lower=True)
    text = " ".join(SENTENCES)
    assert scorer.statistics([text.upper()], [text])[0, :3].tolist() == [100, 100, 100]
    assert RadGraph(folder, "radgraph", device="cpu").statistics([text.upper()], [text])[0, 0] == 0


def test_wrong_archives_are_errors(folder, tmp_path):
    import torch

    with pytest.raises(WeightsError, match=r"modern-radgraph-xl has no config.json, weights.th, .*dive fetch-assets"):
        RadGraph(folder, "modern-radgraph-xl")
    with pytest.raises(WeightsError, match="none of radgraph"):
        RadGraph(folder, "echograph")
    spoilt = write_radgraph(tmp_path, write_encoder(tmp_path / "bert"), "radgraph")
    state = torch.load(spoilt / "radgraph/weights.th", weights_only=True)
    state.popitem()
    torch.save(state, spoilt / "radgraph/weights.th")
    with pytest.raises(WeightsError, match=r"not the weights of radgraph .*Missing key"):
        RadGraph(str(spoilt), "radgraph", device="cpu").graphs(["Effusion."])
    name, values = state.popitem()
    whole = torch.load(f"{folder}/radgraph/weights.th", weights_only=True)
    torch.save({**whole, name: torch.full_like(values, float("nan"))}, spoilt / "radgraph/weights.th")
    with pytest.raises(WeightsError, match="holds values that are not finite"):
        RadGraph(str(spoilt), "radgraph", device="cpu").graphs(["Effusion."])
    for content in (b"", b"no weights of anything\n" * 99):
        (spoilt / "radgraph/weights.th").write_bytes(content)
        with pytest.raises(WeightsError, match="not the weights of radgraph"):
            RadGraph(str(spoilt), "radgraph", device="cpu").graphs(["Effusion."])
    torch.save({"payload": RadGraph}, spoilt / "radgraph/weights.th")
    with pytest.raises(WeightsError, match="not the weights of radgraph"):
        RadGraph(str(spoilt), "radgraph", device="cpu").graphs(["Effusion."])


def test_a_full_memory_names_the_setting(folder, monkeypatch):
    scorer = RadGraph(folder, "radgraph", device="cpu")
    scorer.graphs(["Edema."])  # so that its model is there

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(scorer.reader, "_model", full)
    with pytest.raises(RuntimeError, match=r"^out of device memory; lower scores\.radgraph\.max_words"):
        scorer.graphs(["Another effusion."])
