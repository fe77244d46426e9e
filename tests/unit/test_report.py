"""Figures, costs and the page: equal bytes, honest numbers, nothing from elsewhere, no text of a patient."""

import csv
import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from dive.command import main
from dive.reporting.claims import write_claims
from dive.reporting.costs import summarise_costs
from dive.reporting.figures import plot_overview, plot_results, read_curve
from dive.reporting.html import write_report
from dive.reporting.index import write_index
from dive.reporting.summary import summarise_run
from dive.reporting.tables import METRICS, write_tables
from tests.unit.comparisons import LAYOUT as CLAIMED
from tests.unit.comparisons import comparison, write

METHODS = {
    "constant": ("Constant <report>", "control"),
    "zero_shot": ("Zero-shot", "reference"),
    "icl": ("4-shot", "reference"),
    "live": ("LIVE", "published"),
    "dive": ("DIVE", "ours"),
}
LAYOUT = {
    "datasets": {"set": {"title": "A & B"}},
    "backbones": {"tiny": {"title": "Tiny"}},
    "methods": {name: {"title": title, "group": group} for name, (title, group) in METHODS.items()},
    "shots": 4,
}
SECRET = "Small left pleural effusion of Mr Smith."


@pytest.fixture
def scores(tmp_path):
    folders = {}
    for index, method in enumerate(METHODS):
        folder = tmp_path / "scores" / method
        folder.mkdir(parents=True)
        seeds = {str(seed): 10.0 * index + seed for seed in range(1 if index < 2 else 3)}
        value = {"mean": 10.0 * index, "sd": 1.0 if len(seeds) > 1 else None, "seeds": seeds, "n": 8}
        metrics = {metric.name: value for metric in METRICS}
        metrics["radgraph_f1"] = metrics["chexbert_f1"] = {"mean": None, "sd": None, "seeds": {}, "n": 0}
        (folder / "summary.json").write_text(json.dumps({"metrics": metrics}))
        folders["set", "tiny", method] = str(folder)
    return folders


@pytest.fixture
def adapters(tmp_path):
    folders = {}
    for method in ("live", "dive"):
        for seed in (0, 1):
            folder = tmp_path / "adapters" / method / str(seed)
            folder.mkdir(parents=True)
            (folder / "training.csv").write_text("step,loss,extra\n1,2.5,a\n2,1.5,\n")
            (folder / "validation.csv").write_text("epoch,cross_entropy\n0,2.0\n1,1.0\n2,1.5\n")
            folders["set", "tiny", method, seed] = str(folder)
    return folders


def test_figures_are_complete_and_equal_bytes(scores, adapters, tmp_path):
    outputs = []
    for turn in ("first", "second"):
        paths = {
            kind: [str(tmp_path / turn / f"{kind}.{ext}") for ext in ("pdf", "svg")] for kind in ("results", "curves")
        }
        plot_results(scores, adapters, LAYOUT, **paths)
        outputs.append([Path(path).read_bytes() for kind in paths.values() for path in kind])
    assert outputs[0] == outputs[1]
    text = outputs[0][1].decode()
    ET.fromstring(text)
    for title, _ in METHODS.values():
        assert title.replace("<", "&lt;").replace(">", "&gt;") in text
    assert "BLEU-4" in text
    assert "RadGraph" not in text  # not measured, so not drawn
    assert b"dc:date" not in outputs[0][1]
    assert b"CreationDate" not in outputs[0][0]
    assert "validation cross-entropy" in outputs[0][3].decode()


def test_curves_without_any_trained_method_say_so(scores, tmp_path):
    plot_results(scores, {}, LAYOUT, [], [str(tmp_path / "curves.svg")])
    assert "No method of this experiment is trained." in (tmp_path / "curves.svg").read_text()


def test_a_curve_without_its_column_is_named(tmp_path):
    (tmp_path / "training.csv").write_text("step,value\n1,2\n")
    with pytest.raises(ValueError, match=r"training.csv has no column loss"):
        read_curve(tmp_path / "training.csv", "step", "loss")


def leave_cost(path, seconds, cpu, memory):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"s\tcpu_time\tmax_rss\n{seconds}\t{cpu}\t{memory}\n")


@pytest.fixture
def costs(tmp_path):
    folder = tmp_path / "benchmarks"
    leave_cost(folder / "distill/set/tiny/dive/seed0.tsv", 10.0, 9.0, 500.5)
    leave_cost(folder / "distill/set/tiny/dive/seed1.tsv", 30.0, 28.0, 700.5)
    leave_cost(folder / "plot.tsv", 60.0, 0.04, 30.0)
    out = tmp_path / "costs.csv"
    summarise_costs(str(folder), str(out), str(tmp_path / "costs.md"))
    return out


def test_costs_are_summed_by_rule(costs, tmp_path):
    with costs.open() as handle:
        rows = list(csv.DictReader(handle))
    assert [row["rule"] for row in rows] == ["plot", "distill"]
    assert rows[1] == {
        "rule": "distill",
        "jobs": "2",
        "total_s": "40.0",
        "share": "0.400",
        "median_s": "20.0",
        "max_s": "30.0",
        "cpu_s": "37.0",
        "max_rss_mb": "700",
    }
    assert (rows[0]["cpu_s"], rows[0]["max_rss_mb"]) == ("0.0", "30")
    text = (tmp_path / "costs.md").read_text()
    assert "3 jobs, 100 s" in text
    assert "| `distill` | 2 | 40.0 | 40.0 % |" in text


def test_costs_refuse_what_no_job_left(tmp_path):
    outputs = str(tmp_path / "c.csv"), str(tmp_path / "c.md")
    with pytest.raises(ValueError, match="run the workflow first"):
        summarise_costs(str(tmp_path / "none"), *outputs)
    (tmp_path / "b").mkdir()
    for text in ("a\tb\n1\t2\n", "s\tcpu_time\tmax_rss\n1.0\tNA\tNA\n"):  # the second is of Snakemake's benchmarks
        (tmp_path / "b/x.tsv").write_text(text)
        with pytest.raises(ValueError, match=r"x\.tsv is not a cost file of a job; remove it"):
            summarise_costs(str(tmp_path / "b"), *outputs)


def test_the_overview_shows_every_method_and_stays_small(scores, tmp_path):
    table = str(tmp_path / "main.csv")
    write_tables(scores, LAYOUT, str(tmp_path / "main.tex"), table)
    drawn = []
    for name in ("a.svg", "b.svg"):
        plot_overview(table, str(tmp_path / name))
        drawn.append((tmp_path / name).read_text(encoding="utf-8"))
    assert drawn[0] == drawn[1]
    assert len(drawn[0]) < 50_000
    texts = {text.text for text in ET.fromstring(drawn[0]).iter("{http://www.w3.org/2000/svg}text")}
    assert {title for title, _ in METHODS.values()} | {"BLEU-4", "A & B"} <= texts


def test_page_holds_everything_and_loads_nothing(scores, adapters, costs, tmp_path):
    figures = [str(tmp_path / "results.svg"), str(tmp_path / "curves.svg")]
    plot_results(scores, adapters, LAYOUT, figures[:1], figures[1:])
    table = str(tmp_path / "main.csv")
    write_tables(scores, LAYOUT, str(tmp_path / "main.tex"), table)
    flow = tmp_path / "counts.json"
    flow.write_text(
        json.dumps(
            {
                "convention_note": "the official split",
                "raw": {"studies": 1000, "images": 1400, "patients": 800},
                "flow": [{"rule": "no_findings", "left_out": 250, "remaining": 750}],
                "used": {split: {"studies": 250, "patients": 99} for split in ("train", "validate", "test")},
                "notes": {"stray_reports": 3, "images_without_view": 0},
                "images_left_out": [{"study_uid": "s1", "path": SECRET, "problem": "truncated"}],
            }
        )
    )
    accepted = tmp_path / "acceptance.json"
    row = {"dataset": "set", "backbone": "tiny", "threshold": ">= 15", "interval": [9.0, 12.0]}
    rows = [
        {**row, "criterion": "1. gain", "value": 10.4, "met": False},
        {**row, "criterion": "3. lowest AUROC of a finding (left nodule)", "value": 0.61, "met": True},
        {**row, "criterion": "4. limit", "value": 2.5, "met": True, "interval": None},
    ]
    accepted.write_text(json.dumps({"met": 2, "criteria": 3, "rows": rows, "numbers": {}}))
    arguments = {
        "title": "DIVE <here>",
        "tables": {"main": table},
        "layouts": {"main": LAYOUT},
        "figures": {"main": figures},
        "flows": {"set": str(flow)},
    }
    paths = [str(tmp_path / f"claims.{suffix}") for suffix in ("tex", "csv", "md")]
    compared = comparison({("dive_static", "bleu4"): -2.0})
    write_claims([(*pair, path) for pair, path in write(tmp_path, a=compared).items()], CLAIMED, *paths)
    out = tmp_path / "index.html"
    write_report(
        str(out),
        **arguments,
        acceptance=str(accepted),
        costs=str(costs),
        settings={"seeds": [0, 1], "a": {"b": 2}},
        version="v1",
        claims=(paths[1], CLAIMED),
    )
    page = out.read_text()
    assert "DIVE &lt;here&gt;" in page
    assert "Constant &lt;report&gt;" in page
    assert "A &amp; B, Tiny" in page
    assert '<span class="best">40.0</span>' in page
    assert "2 of 3" in page
    # Two of the abstract's four claims need weights that were not given: these neither hold nor fail.
    assert "<b>2 of 2</b><span>measured claims of the abstract hold, 2 not measured</span>" in page
    assert "<b>On BLEU-4, the static ablation scores above DIVE</b>" in page
    assert "competitive CheXbert F1" in page
    # What was not measured has no column, and a note says so.
    assert "RadGraph" not in page[page.index("<thead>") : page.index("<tbody>")]
    assert "were not measured, because the weights of their models were not given" in page
    assert re.search(r'class="no">✗ not met: 10.40<', page)
    assert "left nodule" in page
    assert re.search(r"no findings</td><td class=\"number\">250</td><td class=\"number\">750", page)
    assert "width:75.0%" in page
    assert "stray reports: 3." in page
    assert "images without view" not in page
    assert '<svg class="consort"' in page
    assert "<code>a.b</code>" in page
    assert SECRET not in page
    sources = re.findall(r"(?:src|href)=\"([^\"]*)\"", page)
    assert all(source.startswith(("data:image/svg+xml;base64,", "#")) for source in sources)
    assert "http" not in re.sub(r"base64,[^\"]*", "", page)
    assert "@import" not in page
    write_report(str(tmp_path / "small.html"), **{**arguments, "figures": {}, "flows": {}})
    small = (tmp_path / "small.html").read_text()
    assert 'id="acceptance"' not in small
    assert 'id="claims"' not in small


def test_what_the_page_says_of_spreads_and_intervals_is_what_it_shows(scores, tmp_path):
    """Beside a number stands the standard deviation, as the note says; the interval is what one sees on pointing."""
    settings = {"alpha": 0.1, "resamples": 700}
    layout = {**LAYOUT, "seeds": [0, 1, 2], "significance": settings}
    metrics = {"bleu4": {"value": 40.0, "low": 38.2, "high": 41.9}}
    compared = {"patients": 5, "methods": {name: {"metrics": metrics} for name in METHODS}, "comparisons": []}
    (tmp_path / "compared.json").write_text(json.dumps(compared))
    files = [str(tmp_path / name) for name in ("main.tex", "main.csv")]
    write_tables(scores, layout, *files, {("set", "tiny"): str(tmp_path / "compared.json")})
    arguments = {"title": "t", "figures": {}, "flows": {}}
    write_report(str(tmp_path / "p.html"), tables={"main": files[1]}, layouts={"main": layout}, **arguments)
    page = (tmp_path / "p.html").read_text()
    cell = re.search(r'<td class="number"><span class="best"([^>]*)>40.0</span>(.*?)</td>', page)
    assert cell[1] == ' title="interval 38.2 to 41.9"'
    assert cell[2] == '<span class="spread">±1.0</span>'
    assert "<li>The number after ± is the standard deviation over seeds.</li>" in page
    assert "<li>Point at a number to see its 90 % interval: a paired bootstrap over patients and seeds with 700" in page
    assert "is followed by its 90" not in page
    tex = Path(files[0]).read_text()
    assert r"Each score, except stop rate and length ratio, is followed by its 90 \% interval" in tex
    assert "standard deviation" not in tex


def test_tables_of_grids_that_are_not_run_now_are_named(tmp_path):
    (tmp_path / "tables").mkdir()
    for name in ("main", "main-significance", "main-claims", "ablations", "ablations-factorial", "mainly"):
        (tmp_path / f"tables/{name}.tex").touch()
    text = summarise_run(str(tmp_path), ["main"])
    assert text.splitlines()[-1].endswith("until they are removed: ablations, ablations-factorial, mainly")
    assert "from earlier runs, which" not in summarise_run(str(tmp_path), ["main", "ablations", "mainly"])


def test_every_grid_that_was_run_has_its_table_and_claims_in_the_summary(tmp_path, monkeypatch):
    monkeypatch.setattr("dive.reporting.summary.format_table", lambda path: f"table of {path.rpartition('/')[2]}\n")
    (tmp_path / "tables").mkdir()
    for name in ("main", "own", "other"):
        (tmp_path / f"tables/{name}.csv").touch()
        (tmp_path / f"tables/{name}-claims.md").write_text(f"claims of {name}\n")
        (tmp_path / f"report/{name}").mkdir(parents=True)
        (tmp_path / f"report/{name}/index.html").touch()
    (tmp_path / "report/index.html").touch()
    text = summarise_run(str(tmp_path), ["main", "own"])
    order = ["Grid main:", "table of main.csv", "claims of main", "Grid own:", "table of own.csv", "claims of own"]
    assert [line for line in text.splitlines() if line in order] == order
    assert "other" not in text.replace("another", "")
    for place in ("report/main/index.html", "report/own/index.html", "report/index.html"):
        assert f"{tmp_path}/{place}: " in text
    assert "Grid" not in summarise_run(str(tmp_path), ["main"])


def test_a_command_shows_the_grids_that_it_names_or_those_of_the_configuration(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr("dive.reporting.summary.summarise_run", lambda results, names: shown.append(names) or "")
    (tmp_path / "results/tables").mkdir(parents=True)
    for name in ("a", "b", "c"):
        (tmp_path / f"results/tables/{name}.csv").touch()
    (tmp_path / "config.yaml").write_text("experiments: [a]\n")
    (tmp_path / "over.yaml").write_text("experiments: [b, c]\n")
    monkeypatch.chdir(tmp_path)
    for arguments in (["a,b"], ["c", "a", "c"], [], ["--configfile", "over.yaml"], ["--options", "--cores 2"]):
        assert main(["show", *arguments]) == 0
    assert shown == [["a", "b"], ["c", "a"], ["a"], ["b", "c"], ["a"]]


def test_the_index_leads_to_the_pages_of_all_grids(tmp_path):
    for name in ("removed", "own", "main"):
        (tmp_path / f"report/{name}").mkdir(parents=True)
        (tmp_path / f"report/{name}/index.html").touch()
    (tmp_path / "report/tokens").mkdir()  # pages of reports, and no grid
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables/own-claims.csv").touch()
    write_index(str(tmp_path / "report/index.html"), ["main", "baselines", "own"])
    text = (tmp_path / "report/index.html").read_text()
    assert re.findall('href="([^"]+)"', text) == [
        "main/index.html", "own/index.html", "../tables/own-claims.csv", "removed/index.html",
    ]  # fmt: skip
