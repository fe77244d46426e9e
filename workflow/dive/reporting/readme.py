"""Put what a run gave into README.md, between markers, so that no number or graph in it is typed by hand.

Run by ``make readme``: ``snakemake --rulegraph mermaid-js | python -m dive.reporting.readme README.md results main``.
"""

import re
import sys
from pathlib import Path

from dive.files import atomic_path, read_json
from dive.reporting.tables import format_table


def fill(text: str, blocks: dict[str, str]) -> str:
    """Replace what stands between ``<!-- name -->`` and ``<!-- /name -->`` by ``blocks[name]``.

    Raises:
        ValueError: a block has no such pair of markers.
    """
    for name, block in blocks.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        text, n_filled = pattern.subn(lambda match, block=block: f"{match[1]}{block.rstrip()}\n{match[2]}", text)
        if n_filled != 1:
            raise ValueError(f"README.md has {n_filled} pairs of markers <!-- {name} -->, not one")
    return text


def rule_graph(mermaid: str) -> str:
    """Snakemake's mermaid graph as a Markdown block, without title and colours."""
    lines = [line for line in mermaid.splitlines() if line.startswith("\t") and not line.startswith("\tstyle")]
    return "\n".join(["```mermaid", "flowchart LR", *lines, "```"])


def acceptance(path: Path) -> str:
    """How many criteria the synthetic world meets, and which it does not."""
    judged = read_json(path)
    missed = [
        f"- not met: {row['criterion']} with {row['dataset']} and {row['backbone']}: {row['value']:.2f}, "
        f"wanted {row['threshold']}"
        for row in judged["rows"]
        if not row["met"]
    ]
    return "\n".join([f"The world of this run meets {judged['met']} of its {judged['criteria']} criteria.", *missed])


def claims(path: Path) -> str:
    """The verdicts on the claims, without the sentences below them."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return "\n".join(["", *(line for line in lines if line.startswith("|")), ""])


def main(readme: str, results: str, experiment: str, mermaid: str) -> None:
    """Fill the blocks rules, table, claims, acceptance and costs of a README from a folder of results."""
    folder = Path(results)
    blocks = {
        "rules": rule_graph(mermaid),
        "table": f"```\n{format_table(str(folder / 'tables' / f'{experiment}.csv')).strip()}\n```",
        "claims": claims(folder / "tables/claims.md"),
        "acceptance": acceptance(folder / "world/acceptance.json"),
        "costs": (folder / "costs/rules.md").read_text(encoding="utf-8"),
    }
    text = fill(Path(readme).read_text(encoding="utf-8"), blocks)
    with atomic_path(readme) as temporary:
        temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit("usage: snakemake --rulegraph mermaid-js | python -m dive.reporting.readme README.md results main")
    main(*sys.argv[1:], mermaid=sys.stdin.read())
