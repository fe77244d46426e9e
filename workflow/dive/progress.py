"""What the package says while it works: messages under the name ``dive``, which a program may send where it likes."""

import logging
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

log = logging.getLogger("dive")
T = TypeVar("T")


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
