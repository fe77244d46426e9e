"""``dive demo``: the workflow on one dataset, one backbone and one seed, and what came of it in a screenful."""

import re
import subprocess
import sys
from collections.abc import Sequence
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
        DataError: this is not the folder of the workflow, the number of cores is none, Snakemake is not installed, or
            the run failed or was interrupted.
    """
    if not Path("Snakefile").is_file() or not Path(OVERLAY).is_file():
        raise DataError(
            f"there is no Snakefile with {OVERLAY} in this folder; run `dive demo` in the folder of the workflow"
        )
    if not re.fullmatch(r"all|[1-9][0-9]{0,5}", cores):
        raise DataError(f"--cores {cores}: must be a number from 1 on, or all")
    command = [*snakemake(), "--cores", cores, "--no-hooks", "--logger", "dive", "--configfile", OVERLAY]
    if run_to_end(command):
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


def run_to_end(command: Sequence[str]) -> int:
    """Run a command and return its exit status. Ctrl-C also reaches the command, which gets the time to clean up.

    Raises:
        DataError: it was interrupted.
    """
    with subprocess.Popen(command) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.wait()
            raise DataError("the demo was interrupted; the same command continues it") from None


def snakemake() -> list[str]:
    """The command that starts Snakemake in the environment of this process.

    Raises:
        DataError: Snakemake is not installed.
    """
    if not find_spec("snakemake"):
        raise DataError("Snakemake is not installed in this environment; `make install` sets one up that has it")
    return [sys.executable, "-m", "snakemake"]
