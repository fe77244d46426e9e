"""Time and memory of everything upstream of a backbone, on synthetic trees of the real datasets' sizes, with growth.

    python -m tests.benchmarks.data [--shares 0.25 0.5 1] [--layouts mimic_cxr chexpert_plus] [--folder FOLDER]

A tree of each share of the official size is written, and each stage runs on it in a process of its own. Wall and CPU
seconds and peak resident memory are printed as a table; the table of the last run is in BENCHMARKS.md.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from dive.data.synthetic.fullsize import write_full_size

HEADER = """
import json, logging, sys
logging.basicConfig(level=logging.WARNING)
root, out, selection = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
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
settings = {{"annotator": "vocabulary", "include_cues": False, "classes": ["observation", "pathology"]}}
annotate_studies(f"{{out}}/studies", settings, {{"vocabulary": "workflow/resources/vocabulary.csv"}}, f"{{out}}/spans")
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
    process = subprocess.Popen([sys.executable, "-c", HEADER + code, *arguments], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"a stage failed with status {status}")
    return time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 2**20


def run(layout: str, share: float, reports: str, folder: Path) -> None:
    """Write one tree, measure its stages, print a row each, and remove it."""
    root, out = folder / "tree", folder / "out"
    out.mkdir(exist_ok=True)
    start = time.perf_counter()
    write_full_size(layout, root, share, reports)
    size = f"{share:g}" if layout != "mimic_cxr" else f"{share:g}, reports in a {reports}"
    print(f"| {layout} | {size} | (writing the tree) | {time.perf_counter() - start:.1f} | | |", flush=True)
    convention = "official" if layout == "mimic_cxr" else "own_split"
    selection = f'{{"convention": "{convention}", "section": "findings", "max_unreadable": 0.05}}'
    for stage, code in STAGES.items():
        wall, cpu, peak = measure(code.format(layout=layout), str(root), str(out), selection)
        print(f"| {layout} | {size} | {stage} | {wall:.1f} | {cpu:.1f} | {peak:.2f} |", flush=True)
    shutil.rmtree(root)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Measure readers and selection on trees of the datasets' sizes.")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.25, 0.5, 1.0])
    parser.add_argument("--layouts", nargs="+", default=["mimic_cxr", "chexpert_plus"])
    parser.add_argument("--reports", nargs="+", default=["zip", "folder"], help="where MIMIC-CXR's reports lie")
    parser.add_argument("--folder", help="where trees are written for the time being; a temporary one by default")
    given = parser.parse_args(arguments)
    print("| layout | share of the official size | stage | wall s | CPU s | peak GiB |\n|---|---|---|---|---|---|")
    for layout in given.layouts:
        for reports in given.reports if layout == "mimic_cxr" else ["table"]:
            for share in given.shares:
                with tempfile.TemporaryDirectory(dir=given.folder) as folder:
                    run(layout, share, reports, Path(folder))


if __name__ == "__main__":
    main()
