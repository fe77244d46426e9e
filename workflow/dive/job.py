"""The frame of a job: what it says while it works, to the terminal and to the rule's log, and what it cost."""

import gc
import logging
import os
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dive.progress import log
from dive.runs import end_with_run
from dive.software import note
from dive.told import sentence_of
from dive.warm import hand_over

QUIET = "DIVE_QUIET"
"""Environment variable with which a job tells the terminal of warnings and errors alone; its log has everything."""


@contextmanager
def logged(path: str | Path) -> Iterator[None]:
    """The frame of a job: send messages of the block to ``path`` and to standard error, and start and end quickly.

    Python warnings, and what transformers warns of (it prints that itself), join the log, so that a library's complaint
    is never lost. An exception is recorded there with its stack; the terminal shows the stack of a program's fault, and
    of an error that a user can mend only the sentence that says how (`dive.told`). The job ends with its run
    (`dive.runs`). A block that ends well leaves what it cost, see `cost_file`, and with which packages it ran
    (`dive.software`). Where there is a warm process (`dive.warm`) this call does not return: a fork of it runs the
    script from its beginning.

    Raises:
        SystemExit: with that sentence.

    A job imports what it needs within the block: torch and transformers leave a million objects that live as long as
    the process, and looking for garbage among them again and again, and once more at the end, took a third of the
    processor time of a short job. So garbage is looked for seldom, and at the end not among what is there then.
    """
    end_with_run()
    hand_over()
    began = time.monotonic()
    gc.set_threshold(50_000, 20, 50)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    file = logging.FileHandler(path, mode="w", encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    terminal = logging.StreamHandler(sys.stderr)
    terminal.setLevel(logging.WARNING if os.environ.get(QUIET) else logging.INFO)
    terminal.setFormatter(logging.Formatter("%(message)s"))
    logging.captureWarnings(True)
    loggers = [log, logging.getLogger("py.warnings")]
    log.setLevel(logging.INFO)
    for logger in loggers:
        logger.addHandler(file)
        logger.addHandler(terminal)
    library = logging.getLogger("transformers")
    library.addHandler(file)
    try:
        yield
    except BaseException as error:
        told = "interrupted" if isinstance(error, KeyboardInterrupt) else sentence_of(error)
        # The file has the traceback in any case; the terminal gets it through the interpreter where it is all there is.
        file.emit(log.makeRecord(log.name, logging.ERROR, "", 0, told or "failed", (), sys.exc_info()))
        if told is None:
            raise
        sys.exit(told)
    else:
        _write_cost(cost_file(path), time.monotonic() - began)
        note(path)
    finally:
        for logger in loggers:
            logger.removeHandler(file)
            logger.removeHandler(terminal)
        library.removeHandler(file)
        file.close()
        logging.captureWarnings(False)
        gc.freeze()


def cost_file(path: str | Path) -> Path:
    """Where a job leaves what it cost: ``benchmarks/<rule>/....tsv`` if its log is ``logs/<rule>/....log``."""
    return Path("benchmarks", *Path(path).parts[1:]).with_suffix(".tsv")


def peak_memory() -> float:
    """The largest resident memory of this process so far, in MiB.

    Linux knows that of the program which the process runs now; `getrusage` also counts the one that started it.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return int(status.partition("VmHWM:")[2].split()[0]) / 2**10


def _write_cost(file: Path, seconds: float) -> None:
    """Wall and processor seconds and the largest memory in MiB, under the names that Snakemake's benchmarks have.

    The kernel knows them exactly. Snakemake looks at a process now and then, and not at a fork of the warm process.
    """
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    processor = sum(usage.ru_utime + usage.ru_stime for usage in usages)
    file.parent.mkdir(parents=True, exist_ok=True)
    row = f"{seconds:.3f}\t{processor:.3f}\t{peak_memory():.1f}"
    file.write_text(f"s\tcpu_time\tmax_rss\n{row}\n", encoding="utf-8")
