"""The page that leads to the pages of all grids: results/report/index.html."""

import html
from collections.abc import Sequence
from pathlib import Path

from dive.files import atomic_path

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>DIVE: what was run</title>
<style>
body {{ margin: 2rem auto; width: min(50rem, 100% - 2.4rem); font: 15px/1.55 system-ui, sans-serif; color: #1d2733; }}
td, th {{ padding: .3rem 1.2rem .3rem 0; text-align: left; border-bottom: 1px solid #dde3e9; }}
</style>
</head>
<body>
<h1>What was run</h1>
<p>Each grid of the configuration has a page of its own. A run writes the pages of its grids and leaves the others.</p>
<table>
<thead><tr><th>grid</th><th>claims</th></tr></thead>
<tbody>
{rows}
</tbody>
</table>
</body>
</html>
"""


def write_index(out: str, grids: Sequence[str]) -> None:
    """List the grids that have a page beside the index, those of earlier runs included.

    Args:
        out: ``index.html`` of the folder that has a folder with ``index.html`` for every grid.
        grids: names of the configured grids, in their order; other folders, of grids that were removed, come last.
    """
    folder = Path(out).parent
    there = sorted(page.parent.name for page in folder.glob("*/index.html"))
    names = [*(name for name in grids if name in there), *(name for name in there if name not in grids)]
    rows = [row_of(name, folder.parent / "tables" / f"{name}-claims.csv") for name in names]
    with atomic_path(out) as temporary:
        temporary.write_text(PAGE.format(rows="\n".join(rows)), encoding="utf-8")


def row_of(name: str, claims: Path) -> str:
    """The row of one grid: its page, and the table of its claims."""
    name = html.escape(name)
    link = f'<a href="../tables/{name}-claims.csv">{name}-claims.csv</a>' if claims.is_file() else ""
    return f'<tr><td><a href="{name}/index.html">{name}</a></td><td>{link}</td></tr>'
