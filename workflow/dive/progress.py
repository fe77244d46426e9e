"""What a long job says while it works: one line every few seconds, to the terminal and to the rule's log."""

import gc
import logging
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

log = logging.getLogger("dive")
T = TypeVar("T")


@contextmanager
def logged(path: str | Path) -> Iterator[None]:
    """The frame of a job: send messages of the block to ``path`` and to standard error, and start and end quickly.

    Python warnings join the same log, so that a library's complaint is never lost; an exception is recorded there.
    A job imports what it needs within the block: torch and transformers leave a million objects that live as long as
    the process, and looking for garbage among them again and again, and once more at the end, took a third of the
    processor time of a short job. So garbage is looked for seldom, and at the end not among what is there then.
    """
    gc.set_threshold(50_000, 20, 50)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    file = logging.FileHandler(path, mode="w", encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    terminal = logging.StreamHandler(sys.stderr)
    terminal.setFormatter(logging.Formatter("%(message)s"))
    logging.captureWarnings(True)
    loggers = [log, logging.getLogger("py.warnings")]
    log.setLevel(logging.INFO)
    for logger in loggers:
        logger.addHandler(file)
        logger.addHandler(terminal)
    try:
        yield
    except BaseException:
        # The traceback reaches the terminal through the interpreter; the file needs it written.
        file.emit(log.makeRecord(log.name, logging.ERROR, "", 0, "failed", (), sys.exc_info()))
        raise
    finally:
        for logger in loggers:
            logger.removeHandler(file)
            logger.removeHandler(terminal)
        file.close()
        logging.captureWarnings(False)
        gc.freeze()


def progress(items: Iterable[T], label: str, total: int | None = None, every: float = 10.0) -> Iterator[T]:
    """Yield ``items``, logging ``label done/total (seconds left)`` at most once in ``every`` seconds.

    Args:
        items: what is worked through.
        label: what the line begins with.
        total: number of items; ``len(items)`` when None.
        every: seconds between two lines; nothing is printed for work that ends sooner.
    """
    total = len(items) if total is None else total  # type: ignore[arg-type]
    start = last = time.monotonic()
    for done, item in enumerate(items):
        now = time.monotonic()
        if now - last >= every and done:
            last = now
            log.info("%s %d/%d, %.0f s left", label, done, total, (now - start) / done * (total - done))
        yield item
