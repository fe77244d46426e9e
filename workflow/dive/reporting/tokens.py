"""Reports token by token on one page: weight, polarity, who calls it decisive, loss, divergence from the teacher.

The page holds the text of reports. The workflow writes it for synthetic data, for real data only where the settings
allow it; nothing on it is loaded from elsewhere.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from dive.files import atomic_path
from dive.packaged import packaged
from dive.parquet import read_table

LAYERS = {"loss": "Loss (nats)", "kl": "KL from the teacher (nats)", "weight": "Weight"}
"""Numbers that a report is coloured by, one copy each."""


def choose(chosen: int | Sequence[str], analysed: Sequence[str]) -> list[str]:
    """The studies to show: the first so many of the analysed, or those named.

    Raises:
        ValueError: a named study was not analysed.
    """
    if isinstance(chosen, int):
        return list(analysed[:chosen])
    unknown = [uid for uid in chosen if uid not in set(analysed)]
    if unknown:
        raise ValueError(
            f"analysis.view.studies: {', '.join(unknown)} not among the {len(analysed)} validation studies that are "
            "analysed (analysis.studies)"
        )
    return list(chosen)


def pieces_of(
    text: str, tokens: Sequence[Mapping[str, Any]], spans: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """A report cut into its tokens, ready for the template.

    Several tokens that share a character (bytes of one letter) show it once; what the token limit cut off comes last,
    without numbers.

    Args:
        text: the report.
        tokens: its rows of the table of tokens, in order.
        spans: its spans by all annotators.
    """
    pieces, shown = [], 0
    for token in tokens:
        if token["term"]:
            piece = {"text": "⏎", "said": ["end of turn"], "polarity": "", "before": ""}
        else:
            start, end = max(token["start"], shown), max(token["end"], shown)
            over = [
                span
                for span in spans
                if text[max(token["start"], span["start"]) : min(token["end"], span["end"])].strip()
            ]
            piece = {
                "before": text[shown:start],
                "text": text[start:end],
                "said": [f"{span['source']}: {span['observation']}, {span['polarity']}" for span in over],
                "polarity": over[0]["polarity"] if over else "",
            }
            # The blank before a word belongs to its token in many tokenizers; it is not coloured.
            blank = len(piece["text"]) - len(piece["text"].lstrip())
            piece["before"], piece["text"] = piece["before"] + piece["text"][:blank], piece["text"][blank:]
            shown = end
        piece |= {name: float(token[name]) for name in ("loss", "teacher_loss", "kl", "weight")}
        piece["decisive"] = [name for name in token if name.startswith("decisive_") and token[name]]
        piece["decisive"] = [name.removeprefix("decisive_") for name in piece["decisive"]]
        pieces.append(piece)
    if text[shown:].strip():
        pieces.insert(
            len(pieces) - (1 if tokens and tokens[-1]["term"] else 0),
            {"before": text[shown:], "text": "", "said": [], "polarity": "", "decisive": [], "cut": True},
        )
    return pieces


def write_view(
    studies: str,
    analyses: Sequence[str],
    backbones: Sequence[str],
    spans: Sequence[str],
    title: str,
    chosen: int | Sequence[str],
    out: str,
) -> None:
    """Write the page.

    Args:
        studies: path of ``studies.parquet``.
        analyses: table of tokens of each backbone (`dive.analyses.tokens.analyse_tokens`).
        backbones: titles of the backbones, in the same order.
        spans: spans of each annotator.
        title: of the dataset.
        chosen: see `choose`.
        out: the HTML file.
    """
    import jinja2

    tables = [read_table(path).to_pylist() for path in analyses]
    uids = choose(chosen, list(dict.fromkeys(row["study_uid"] for row in tables[0])))
    texts = read_texts(studies, uids)
    marked: dict[str, list[dict[str, Any]]] = {uid: [] for uid in uids}
    for path in spans:
        for span in read_table(path, filters=[("study_uid", "in", uids)]).to_pylist():
            marked[span["study_uid"]].append(span)
    scale = {}
    for name in LAYERS:
        values = sorted(row[name] for table in tables for row in table if not row["term"])
        # A few tokens lose far more than the rest: the deepest colour begins at the 98th percentile.
        scale[name] = (values[int(0.98 * (len(values) - 1))] if values else 0.0) or 1.0
    reports = [
        {
            "uid": uid,
            "backbones": [
                {
                    "title": backbone,
                    "pieces": pieces_of(texts[uid], [row for row in table if row["study_uid"] == uid], marked[uid]),
                }
                for backbone, table in zip(backbones, tables, strict=True)
            ],
        }
        for uid in uids
    ]
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.from_string(packaged("templates/tokens.html.j2").read_text(encoding="utf-8"))
    with atomic_path(out) as temporary:
        temporary.write_text(page.render(title=title, reports=reports, layers=LAYERS, scale=scale), encoding="utf-8")


def read_texts(studies: str, uids: Sequence[str]) -> dict[str, str]:
    """Target of some studies."""
    table = read_table(studies, columns=["study_uid", "target"], filters=[("study_uid", "in", list(uids))])
    return dict(zip(table["study_uid"].to_pylist(), table["target"].to_pylist(), strict=True))
