"""Types of the configuration's values with their limits, and how an error says them.

A limit is where a value stops being a choice and starts being a slip of the keyboard, since memory, file names and
float32 end there. No job imports this module.
"""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError


def no_truth(value: Any) -> Any:
    """Refuse true and false, which pydantic would take for 1 and 0."""
    if isinstance(value, bool):
        raise PydanticCustomError("truth", "must be a number")
    return value


PATTERNS: dict[str, str] = {}
"""Pattern of a text -> what an error says that it must be."""


def text(pattern: str, longest: int, said: str) -> Any:
    """The type of a text that must match a pattern."""
    PATTERNS[pattern] = said
    return Annotated[str, Field(pattern=pattern, max_length=longest)]


def _said(rule: str) -> str:
    return (
        f"{rule}, without any of {{ }} $ \\; letters are Latin or Greek, "
        f"other symbols those of a keyboard and {' '.join(_SYMBOLS)}"
    )


# A name is a folder and a part of file names, of which a file system takes 255 bytes.
Name = text(r"^[A-Za-z0-9][A-Za-z0-9._-]*$", 60, "must be letters, digits, and . _ - after the first")
# Titles go into figures, where $ and \ begin formulas and a leading _ hides a legend's entry; braces are Snakemake's.
# They also go into LaTeX, which typesets these characters (reporting/latex.py), and into CSV, where a spreadsheet takes
# a cell that begins with = + - or @ for a formula.
_LETTERS = r"À-ĥĨ-ķĹ-ľŁ-ňŊ-ťŨ-žΑ-ΡΣ-Ωα-ω"
_SYMBOLS = "×±≥≤→†·–—µ"  # noqa: RUF001
_BEGINS = rf"[!-#%-*,.-<>?A-Z\[\]^`-z|~{_LETTERS}{_SYMBOLS}]"
_GOES_ON = rf"[ !-#%-Z\[\]^-z|~{_LETTERS}{_SYMBOLS}]*"
Title = text(
    rf"^{_BEGINS}{_GOES_ON}$", 80, _said("must be one line that does not begin with a blank or one of _ = + - @")
)
Note = text(rf"^{_GOES_ON}$", 300, _said("must be one line"))
# Paths are inputs of rules, where braces would be wildcards.
Place = text(r"^[^{}\n\t]+$", 1000, "must be a path or name without { } and line breaks, and not empty")


def whole(low: int, high: int, **more: int) -> Any:
    """The type of whole numbers from ``low`` to ``high``."""
    return Annotated[int, Field(ge=low, le=high, **more), BeforeValidator(no_truth)]


def real(**limits: float) -> Any:
    """The type of real numbers within limits; at most a million in size, which float32 takes without overflow."""
    bounds = {**({} if "gt" in limits else {"ge": -1e6}), **({} if "lt" in limits else {"le": 1e6}), **limits}
    return Annotated[float, Field(**bounds), BeforeValidator(no_truth)]


Seed = whole(0, 2**32 - 1)
Natural = whole(0, 10_000_000)
Positive = whole(1, 10_000_000)
# Of what memory grows with: more is a slip of the keyboard.
Size = whole(1, 65_536)
Few = whole(1, 1000)
Share = real(ge=0, le=1)
Weight = real(ge=0)
Rate = real(gt=0)
Part = real(gt=0, lt=1)
Device = text(r"^(auto|cpu|cuda(:\d{1,3})?)$", 1000, "must be auto, cpu, cuda or cuda:<n>")
SemanticType = text(r"^T\d{3}$", 1000, "must be T and three digits, as in T047")
