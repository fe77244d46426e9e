"""Reports that methods wrote, beside the references: of chosen studies, or of the best, median and worst ones."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from dive.data.generations import read_generations
from dive.data.roots import DataError
from dive.parquet import read_table

COLUMNS = {"rouge_l": "rouge_l", "lexicon_graph_f1": "graph_partial", "radgraph_f1": "radgraph_partial"}
"""Scores that a single report has -> their columns in ``reports.parquet``."""

NAMES = {"rouge_l": "ROUGE-L", "lexicon_graph_f1": "lexicon graph F1", "radgraph_f1": "RadGraph F1"}
"""Scores -> what a reader calls them."""

WIDTH = 120
"""Columns of a terminal; texts stand side by side in them."""


@dataclass(frozen=True)
class Request:
    """Which reports to show.

    Attributes:
        dataset, backbone: names in the configuration; None is the first that is run.
        seed: of the run; None is the first that a method has.
        studies: identifiers; without any, ``number`` of the best, of the median and of the worst studies are taken.
        by: a key of COLUMNS, which ranks the studies of the first method.
        results: folder of the results.
    """

    dataset: str | None = None
    backbone: str | None = None
    seed: int | None = None
    studies: Sequence[str] = ()
    number: int = 1
    by: str = "rouge_l"
    results: str = "results"


class Written(NamedTuple):
    """What a method wrote with one seed: study -> text, whether it ended by itself, and study -> score."""

    texts: dict[str, str]
    stopped: dict[str, bool | None]
    scores: dict[str, float]


def show_reports(config: Mapping[str, Any], methods: Sequence[str], request: Request) -> str:
    """Reports of one dataset and backbone as text for a terminal, side by side with the references.

    Args:
        config: the resolved configuration.
        methods: names in the configuration; the first one's scores rank the studies.
        request: see Request.

    Raises:
        DataError: a name is unknown, the reports may not be shown, or they were not generated and scored yet.
    """
    grid = config["grids"][config["experiments"][0]]
    dataset, backbone = request.dataset or grid["datasets"][0], request.backbone or grid["backbones"][0]
    for kind, names in (("datasets", [dataset]), ("backbones", [backbone]), ("methods", methods)):
        if unknown := [name for name in names if name not in config[kind]]:
            raise DataError(f"{kind}: there is no {unknown[0]}; the configuration has {', '.join(config[kind])}")
    check_shown(config, dataset)
    studies = Path(request.results) / "splits" / dataset / "studies.parquet"
    if not studies.is_file():
        raise DataError(f"there is no {studies}; run the workflow first (make reproduce)")
    table = read_table(studies, columns=["study_uid", "target"]).to_pydict()
    references = dict(zip(table["study_uid"], table["target"], strict=True))
    written = {method: read_method(request, dataset, backbone, method) for method in methods}
    chosen = choose(written[methods[0]].scores, request)
    titles = config["presentation"]
    parts = [f"{titles['datasets'][dataset]['title']}, {titles['backbones'][backbone]['title']}"]
    for uid, rank in chosen.items():
        lacking = [name for name, own in written.items() if uid not in own.texts]
        if uid not in references or lacking:
            raise DataError(f"there is no report of study {uid} by {', '.join(lacking or methods)} on {dataset}")
        heads = [f"{titles['methods'][name]['title']} ({describe(own, uid)})" for name, own in written.items()]
        texts = [own.texts[uid] or "(empty)" for own in written.values()]
        columns = side_by_side(["Reference", *heads], [references[uid], *texts])
        parts.append(f"{uid}{f': {rank}' if rank else ''}\n{columns}")
    return "\n\n".join(parts) + "\n"


def check_shown(config: Mapping[str, Any], dataset: str) -> None:
    """Refuse to show reports of patients, unless the settings allow it.

    Raises:
        DataError: they do not.
    """
    if not config["datasets"][dataset].get("synthetic") and not config["analysis"]["view"]["credentialed"]:
        raise DataError(
            f"{dataset} holds reports of patients. Only if all who see this terminal may read them, set "
            "analysis.view.credentialed: true in the configuration."
        )


def read_method(request: Request, dataset: str, backbone: str, method: str) -> Written:
    """What a method wrote and how it was scored.

    Raises:
        DataError: it was not run, or not with this seed, or the score was not measured.
    """
    results, column = Path(request.results), COLUMNS[request.by]
    scores = results / "scores" / dataset / backbone / method / "reports.parquet"
    if not scores.is_file():
        raise DataError(f"{method} has no scores on {dataset} with {backbone}: there is no {scores}; run it first")
    found = read_table(scores)
    if column not in found.column_names:
        raise DataError(f"{request.by} was not measured: {scores} lacks it; choose another score by --by")
    rows = found.select(["seed", "study_uid", column]).to_pylist()
    seeds = sorted({row["seed"] for row in rows})
    # A method that draws nothing at random has a single run, which stands beside every seed of the others.
    seed = seeds[0] if request.seed is None or len(seeds) == 1 else request.seed
    if seed not in seeds:
        has = ", ".join(map(str, seeds))
        raise DataError(f"{method} has no seed {seed} on {dataset} with {backbone}; it has {has}")
    # What reads no image and no backbone is written once for all backbones.
    places = [
        results / "generations" / dataset / part / f"seed{seed}.parquet" for part in (f"{backbone}/{method}", method)
    ]
    there = [place for place in places if place.is_file()]
    if not there:
        raise DataError(f"there is no {places[0]}; run the workflow again")
    texts = read_generations(there[0])
    return Written(
        dict(zip(texts["study_uid"], (text or "" for text in texts["report"]), strict=True)),
        dict(zip(texts["study_uid"], texts["stopped"], strict=True)),
        {row["study_uid"]: row[column] for row in rows if row["seed"] == seed},
    )


def choose(scores: Mapping[str, float], request: Request) -> dict[str, str]:
    """Study -> its rank in words: those asked for, or the best, the median and the worst ones."""
    if request.studies:
        return dict.fromkeys(request.studies, "")
    ordered = sorted(scores, key=lambda uid: (-scores[uid], uid))
    number, middle = request.number, max(0, (len(ordered) - request.number) // 2)
    ranked = {"best": ordered[:number], "median": ordered[middle:][:number], "worst": ordered[-number:]}
    chosen: dict[str, str] = {}
    for rank, uids in ranked.items():
        for uid in uids:
            chosen.setdefault(uid, f"{rank} of {len(ordered)} by {NAMES[request.by]}")
    return chosen


def describe(own: Written, uid: str) -> str:
    """Score of a report, and whether it was cut."""
    score = f"{own.scores[uid]:.1f}" if uid in own.scores else "not scored"
    return f"{score}, cut" if own.stopped[uid] is False else score


def side_by_side(heads: Sequence[str], texts: Sequence[str]) -> str:
    """Texts in columns of equal width, each under its heading."""
    room = (WIDTH - 3 * (len(texts) - 1)) // len(texts)
    columns = [
        [*textwrap.wrap(head, room), "-" * room, *(textwrap.wrap(" ".join(plain(text).split()), room) or [""])]
        for head, text in zip(heads, texts, strict=True)
    ]
    tallest = max(len(textwrap.wrap(head, room)) for head in heads)
    columns = [[""] * (tallest - column.index("-" * room)) + column for column in columns]
    lines = zip_longest(*columns, fillvalue="")
    return "\n".join("   ".join(cell.ljust(room) for cell in line).rstrip() for line in lines)


def plain(text: str) -> str:
    """The text without what a terminal would obey: a model may write any character."""
    return "".join(character if character.isprintable() or character.isspace() else "\ufffd" for character in text)
