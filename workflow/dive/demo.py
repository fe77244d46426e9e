"""``dive demo``: the workflow on one dataset, one backbone and one seed, and what came of it in a screenful."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from dive.configfiles import files_of
from dive.data.check import read_config
from dive.data.roots import DataError
from dive.reporting.examples import Request, show_reports
from dive.reporting.tables import format_table

OVERLAY = "config/demo.yaml"
GRID = "demo"
COMPARED = ("dive", "zero_shot")
"""Methods whose reports are shown; the first one's scores say which studies are its best, median and worst."""


def run_demo(cores: str) -> str:
    """Run the demo in the folder of the workflow.

    Args:
        cores: how many jobs run at a time; ``all`` is as many as there are processors.

    Returns:
        The table, three test reports beside the references, and where the page is; ready to print.

    Raises:
        DataError: this is not the folder of the workflow, Snakemake is not installed, or the run failed.
    """
    if not Path("Snakefile").is_file() or not Path(OVERLAY).is_file():
        raise DataError(f"here is no Snakefile with {OVERLAY}; run `dive demo` in the folder of the workflow")
    command = [*snakemake(), "--cores", cores, "--no-hooks", "--logger", "dive", "--configfile", OVERLAY]
    if subprocess.run(command, check=False).returncode:
        raise DataError("the demo stopped; the message above says why, and the same command continues it")
    config = read_config(files_of(["--configfile", OVERLAY])[0])
    dataset = config["grids"][GRID]["datasets"][0]
    return "\n".join(
        [
            "",
            format_table(f"results/tables/{GRID}.csv"),
            "What DIVE and the zero-shot model wrote on three test studies, with ROUGE-L of each report:",
            "",
            show_reports(config, COMPARED, Request(dataset=dataset)),
            f"The page about this run: {Path('results/report', GRID, 'index.html').absolute()}",
            "`dive reports --help` shows more reports; `make reproduce` runs the whole main table.",
            "",
        ]
    )


def snakemake() -> list[str]:
    """The command that starts Snakemake in the environment of this process.

    Raises:
        DataError: Snakemake is not installed.
    """
    if not find_spec("snakemake"):
        raise DataError("Snakemake is not installed in this environment; `make install` sets one up that has it")
    return [sys.executable, "-m", "snakemake"]
