"""What ``dive show`` and the end of a run print: tables, claims, whether the synthetic world is useful, and places."""

from collections.abc import Sequence
from pathlib import Path

from dive.files import read_json
from dive.reporting.changes import describe_changes
from dive.reporting.tables import format_table

PLACES = {
    "tables/{experiment}-claims.csv": "the abstract's claims with estimate, interval and verdict; also as .tex",
    "tables/{experiment}.tex": "the table in LaTeX (booktabs); the numbers are in the .csv beside it",
    "tables/{experiment}-significance.tex": "our method compared with each published method; beside it other tables",
    "figures/{experiment}.pdf": "the figure of the results; {experiment}-training.pdf shows the training",
    "report/{experiment}/index.html": "the page about the run",
    "report/index.html": "the list of the pages of all grids, also of earlier runs",
    "world/acceptance.md": "the acceptance of the synthetic world, on validation",
    "world/lexicon.md": "the agreement of the lexicon scores with the synthetic truth",
    "costs/rules.md": "the measured wall time of every rule",
    "scores": "scores of every method, seed and study",
    "generations": "the reports that every method wrote",
    "adapters": "the trained adapters, each with its model card",
}
"""Below the folder of results, in the order of interest."""


def summarise_run(results: str, experiments: Sequence[str]) -> str:
    """The text for a terminal; parts that do not exist (yet) are left out.

    Args:
        results: folder of the results.
        experiments: names of the tables to show.
    """
    folder = Path(results)
    parts = []
    for name in experiments:
        if (table := folder / f"tables/{name}.csv").is_file():
            parts += [f"Grid {name}:"] if len(experiments) > 1 else []
            parts.append(format_table(str(table)))
            if changes := describe_changes(results, name):
                parts += [
                    "The effect of each change of our method: difference to our method [interval], and p after Holm's "
                    "correction. * marks a resolved difference: p and the interval agree.\n",
                    changes,
                ]
        if (claims := folder / f"tables/{name}-claims.md").is_file():
            parts.append(claims.read_text(encoding="utf-8"))
    if (judged := folder / "world/acceptance.json").is_file():
        parts.append(f"{acceptance(judged)}\n")
    places = {
        place.format(experiment=name): what.format(experiment=name)
        for place, what in PLACES.items()
        for name in experiments
    }
    lines = [f"  {folder / place}: {what}" for place, what in places.items() if (folder / place).exists()]
    if stale := left_over(folder / "tables", experiments):
        lines.append(
            f"Tables of other grids from earlier runs, which `make pdf` also includes until they are removed: {stale}"
        )
    return "\n".join(["", *parts, "Where everything is:", *lines, ""])


def acceptance(path: Path) -> str:
    """How many criteria the synthetic world meets, and which it does not, from ``acceptance.json``."""
    judged = read_json(path)
    missed = [
        f"- not met: {row['criterion']} with {row['dataset']} and {row['backbone']}: {row['value']:.2f}, "
        f"required {row['threshold']}"
        for row in judged["rows"]
        if not row["met"]
    ]
    settings = len({(row["dataset"], row["backbone"]) for row in judged["rows"]})
    met = f"The synthetic world meets {judged['met']} of {judged['criteria']} criteria"
    where = f"measured in {settings} setting{'s' * (settings != 1)} by the last run"
    return "\n".join([f"{met}, {where}.", *missed])


def left_over(tables: Path, experiments: Sequence[str]) -> str:
    """Names of the tables that earlier configurations left, of none of these experiments."""
    names = sorted(path.stem for path in tables.glob("*.tex"))
    return ", ".join(name for name in names if not any(f"{name}-".startswith(f"{one}-") for one in experiments))
