"""Fill the results of a run into README.md and docs/, between markers, so that no number or graph is typed by hand.

Run by ``make readme``, which pipes ``snakemake --rulegraph mermaid-js`` into it. It also draws the
picture of the README, ``docs/results.svg``.
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from dive.files import atomic_path
from dive.reporting.claims import UNMEASURED
from dive.reporting.summary import acceptance
from dive.reporting.tables import format_table

FIGURE = "docs/results.svg"
"""The picture of the results, as seen from the README."""


def fill(text: str, blocks: dict[str, str]) -> str:
    """Replace the text between every ``<!-- name -->`` and ``<!-- /name -->`` by ``blocks[name]``, if that exists.

    Raises:
        ValueError: a marker has no partner.
    """
    opened, closed = (sorted(re.findall(rf"<!-- {slash}(\w+) -->", text)) for slash in ("", "/"))
    if opened != closed:
        raise ValueError(f"markers come in pairs, but they are {opened} and {closed}")
    return re.sub(
        r"(<!-- (\w+) -->\n)(.*?)(<!-- /\2 -->)",
        lambda match: f"{match[1]}{blocks[match[2]].rstrip()}\n{match[4]}" if match[2] in blocks else match[0],
        text,
        flags=re.DOTALL,
    )


def rule_graph(mermaid: str) -> str:
    """Snakemake's mermaid graph as a Markdown block, without title and colours, with its edges in a fixed order.

    Every job is a target, so every rule has an edge to ``all``. The graph keeps it only for rules that no rule follows.
    """
    lines = [line.strip() for line in mermaid.splitlines() if line.startswith("\t")]
    nodes = [line for line in lines if line.startswith("id") and "-->" not in line]
    edges = sorted(line for line in lines if "-->" in line)
    last = {node.partition("[")[0] for node in nodes if node.endswith("[all]")}
    begins = [edge.split()[0] for edge in edges]
    shown = [edge for edge in edges if edge.split()[-1] not in last or begins.count(edge.split()[0]) == 1]
    return "\n".join(["```mermaid", "flowchart LR", *(f"\t{line}" for line in [*nodes, *shown]), "```"])


def claims(path: Path) -> str:
    """The verdicts on the claims and on the ablations, without the notes below them."""
    lines = path.read_text(encoding="utf-8").splitlines()
    table = [line for line in lines if line.startswith("|")]
    return "\n".join(["", *table, "", *better(lines), ""])


def better(lines: Sequence[str]) -> list[str]:
    """The lines of the list of ablations that score above ours; long items go on in indented lines."""
    return [line for line in lines if line.startswith(("- On ", "  "))]


def verdicts(path: Path) -> str:
    """The claims without their settings, one line each; then the ablations that score above ours, likewise.

    If no claim was measured, as in a grid without published methods, only the ablations remain.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.split("|")] for line in lines]
    judged = [f"- {row[1]}: {row[-2]}" for row in rows[4:] if len(row) > 2 and not row[1].startswith("- ")]
    judged = [] if all(line.endswith(f": {UNMEASURED}") for line in judged) else judged
    above = [item.partition(": ")[0] for item in re.sub(r"\n  +", " ", "\n".join(better(lines))).splitlines()]
    return "\n".join(["", *judged, *above, ""])


def blocks_of(folder: Path, experiment: str, mermaid: str) -> dict[str, str]:
    """The blocks that a folder of results gives: all of the main experiment, or ``<experiment>`` and its verdicts."""
    table = str(folder / "tables" / f"{experiment}.csv")
    judged = folder / f"tables/{experiment}-claims.md"
    whole = f"```\n{format_table(table).strip()}\n```"
    if experiment != "main":
        return {experiment: whole, f"{experiment}_verdicts": verdicts(judged)}
    return {
        "rules": rule_graph(mermaid),
        "table": whole,
        "figure": f"![BLEU-4 of every method in every setting, with its interval]({FIGURE})",
        "verdicts": verdicts(judged),
        "claims": claims(judged),
        "acceptance": acceptance(folder / "world/acceptance.json"),
        "costs": (folder / "costs/rules.md").read_text(encoding="utf-8"),
    }


def main(results: str, experiments: str, documents: Sequence[str], mermaid: str) -> None:
    """Fill the blocks that a run of some experiments (``main,baselines``) gives; other blocks stay as they are."""
    names = [name for name in experiments.split(",") if name]
    blocks = {key: text for name in names for key, text in blocks_of(Path(results), name, mermaid).items()}
    if "figure" in blocks:
        from dive.reporting.figures import plot_overview  # matplotlib takes seconds to import

        plot_overview(f"{results}/tables/main.csv", FIGURE)
    for document in documents:
        text = fill(Path(document).read_text(encoding="utf-8"), blocks)
        with atomic_path(document) as temporary:
            temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit("usage: snakemake --rulegraph mermaid-js | python -m dive.reporting.readme results main README.md ...")
    main(sys.argv[1], sys.argv[2], sys.argv[3:], mermaid=sys.stdin.read())
