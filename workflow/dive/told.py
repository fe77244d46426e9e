"""Which errors a user can mend, and the sentence that says how; faults of the program keep their stack.

What this package raises on purpose is a sentence already. What the operating system and readers of files raise becomes
one here, with the file's name, which most readers leave out.
"""

import csv
import json
import linecache
import re
import traceback
import zipfile
import zlib
from pathlib import Path

PACKAGE = str(Path(__file__).parent)

DAMAGE: tuple[type[Exception], ...] = (
    EOFError,
    UnicodeDecodeError,
    csv.Error,
    json.JSONDecodeError,
    zipfile.BadZipFile,
    zlib.error,
)
DAMAGE_BY_NAME = ("ArrowInvalid", "EmptyDataError", "ParserError", "SafetensorError", "UnidentifiedImageError")
"""Those of libraries that are not imported here."""


def sentence_of(error: BaseException) -> str | None:
    """What to tell a user of an error, on its own; None where only the stack says where the program went wrong."""
    if not isinstance(error, Exception):
        return None
    if is_raised_here(error):
        return str(error)
    if is_damage(error):
        file = file_of(error)
        return f"{file} is damaged or incomplete ({type(error).__name__}): {remedy(file)}" if file else None
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else f"{error.strerror} ({type(error).__name__})"
    if isinstance(error, MemoryError):
        return "there is not enough main memory for this job; close other programs, or run fewer jobs at a time"
    return None


def remedy(file: Path) -> str:
    """How to get a file back."""
    if file.parts[0] in ("results", "models"):
        return "remove it, and the next run makes it again"
    return "copy or download it again"


def is_damage(error: Exception) -> bool:
    """Whether a reader raises this of a file whose content is not what it should be."""
    if isinstance(error, OSError) and error.errno is None:  # of a library, not of the operating system
        return True
    return isinstance(error, DAMAGE) or type(error).__name__ in DAMAGE_BY_NAME


def is_raised_here(error: Exception) -> bool:
    """Whether a ``raise`` statement of this package made the error: then somebody wrote its message for a reader."""
    frames = traceback.extract_tb(error.__traceback__)
    if not frames or not frames[-1].filename.startswith(PACKAGE):
        return False
    return (frames[-1].line or "").startswith("raise ") and bool(str(error))


def file_of(error: Exception) -> Path | None:
    """The file that was read when an error came: one that its message names, or else the first that a statement of the
    stack names, from the inside out. Other files that a function knows are not suspected."""
    for quoted, word in re.findall(r"'([^']+)'|([^\s'\"`,;:()]+)", str(error)[:10_000]):
        if found := _file_at(quoted or word):
            return found
    frames = zip(traceback.walk_tb(error.__traceback__), traceback.extract_tb(error.__traceback__), strict=True)
    for (frame, _), where in reversed(list(frames)):
        if not where.filename.startswith(PACKAGE):
            continue
        first, last = where.lineno or 0, where.end_lineno or where.lineno or 0
        statement = " ".join(linecache.getline(where.filename, number) for number in range(first, last + 1))
        for name in re.findall(r"[A-Za-z_]\w*", statement):
            value = frame.f_locals.get(name)
            if found := _file_at(getattr(value, "name", value) if hasattr(value, "read") else value):
                return found
    return None


def _file_at(value: object) -> Path | None:
    if not isinstance(value, str | Path) or len(str(value)) > 1000 or not str(value):
        return None
    try:
        return Path(value) if Path(value).is_file() else None
    except (OSError, ValueError):
        return None
