"""Time and memory of everything upstream of a backbone, on synthetic trees of the real datasets' sizes, with growth.

    python -m tests.benchmarks.data [--shares 0.25 0.5 1] [--layouts mimic_cxr chexpert_plus] [--folder FOLDER]
                                    [--out BENCHMARKS.md]

A tree of each share of the official size is written, and each stage runs on it in a process of its own. Wall and CPU
seconds and peak resident memory are printed as they are found, and put into a table with a column a share.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from dive.data.synthetic.fullsize import write_full_size
from tests.benchmarks.tables import made_by, processor, put

HEADER = """
import json, logging, sys
logging.basicConfig(level=logging.WARNING)
root, out, selection = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
"""

FOOTER = """
from dive.job import peak_memory
print(peak_memory())
"""

STAGES = {
    "read": """
from dive.data.{layout} import read
print(len(read(root, selection).studies), "studies")
""",
    "split": """
from dive.data.splits import split_dataset
split_dataset("d", "{layout}", root, selection, *(f"{{out}}/{{name}}" for name in ("studies", "excluded", "counts")))
""",
    "annotate": """
from dive.annotation.annotate import annotate_studies
from dive.packaged import VOCABULARY
settings = {{"annotator": "vocabulary", "include_cues": False, "classes": ["observation", "pathology"]}}
annotate_studies(f"{{out}}/studies", settings, {{"vocabulary": VOCABULARY}}, f"{{out}}/spans")
""",
    "select": """
from dive.data.pools import select_pool
sizes = {{"queries": 30, "demonstrations": 30, "validation": 2, "test": None}}
select_pool(f"{{out}}/studies", sizes, f"{{out}}/pool")
""",
    "demonstrate": """
from dive.data.pools import draw_demonstrations
draw_demonstrations(f"{{out}}/pool", f"{{out}}/studies", 4, 0, f"{{out}}/demonstrations")
""",
    "check": """
from dive.data.check import inspect
found = inspect("d", {{"reader": "{layout}", "root": root, "selection": selection}})
print(*found.problems, sep="; ")
""",
}


def measure(code: str, *arguments: str) -> tuple[float, float, float]:
    """Run Python code in a process of its own: wall seconds, CPU seconds, peak resident memory in GiB."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", HEADER + code + FOOTER, *arguments], stdout=subprocess.PIPE)
    printed = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"a stage failed with status {status}")
    return time.perf_counter() - start, usage.ru_utime + usage.ru_stime, float(printed.splitlines()[-1]) / 2**10


def run(layout: str, share: float, reports: str, folder: Path) -> Iterator[tuple[str, float, float, float]]:
    """Write one tree, yield stage, wall and CPU seconds and GiB of each, and remove it."""
    root, out = folder / "tree", folder / "out"
    out.mkdir(exist_ok=True)
    start = time.perf_counter()
    write_full_size(layout, root, share, reports)
    print(f"{layout}, {share:g}, reports in a {reports}: written in {time.perf_counter() - start:.1f} s", flush=True)
    convention = "official" if layout == "mimic_cxr" else "own_split"
    selection = f'{{"convention": "{convention}", "section": "findings", "max_unreadable": 0.05}}'
    for stage, code in STAGES.items():
        wall, cpu, peak = measure(code.format(layout=layout), str(root), str(out), selection)
        print(f"  {stage}: {wall:.1f} s, {cpu:.1f} s of CPU, {peak:.2f} GiB", flush=True)
        yield stage, wall, cpu, peak
    shutil.rmtree(root)


def table(cells: Mapping[tuple[str, str], Mapping[float, str]], shares: Sequence[float]) -> str:
    """Cells by (dataset, stage) and share as Markdown."""
    lines = [f"| dataset | stage | {' | '.join(f'{share:g}' for share in shares)} |", "|---" * (2 + len(shares)) + "|"]
    lines += [f"| {' | '.join([*key, *(row[share] for share in shares)])} |" for key, row in cells.items()]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Measure readers and selection on trees of the datasets' sizes.")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.25, 0.5, 1.0])
    parser.add_argument("--layouts", nargs="+", default=["mimic_cxr", "chexpert_plus"])
    parser.add_argument("--reports", nargs="+", default=["zip", "folder"], help="where MIMIC-CXR's reports lie")
    parser.add_argument("--folder", help="where trees are written for the time being; a temporary one by default")
    parser.add_argument("--out", help="a Markdown file with the markers <!-- data --> that the table is put between")
    given = parser.parse_args(arguments)
    cells: dict[tuple[str, str], dict[float, str]] = {}
    for layout in given.layouts:
        for reports in given.reports if layout == "mimic_cxr" else ["table"]:
            for share in given.shares:
                with tempfile.TemporaryDirectory(dir=given.folder) as folder:
                    for stage, wall, cpu, peak in run(layout, share, reports, Path(folder)):
                        row = cells.setdefault((f"{layout}, reports in a {reports}", stage), {})
                        row[share] = f"{cpu:.1f} ({wall:.1f}), {peak:.2f} GiB"
    block = "\n\n".join([made_by("python -m tests.benchmarks.data", processor()), table(cells, given.shares)])
    print(block)
    if given.out:
        put(given.out, "data", block)


if __name__ == "__main__":
    main()
