"""LaTeX of the tables: escaping, cells, the float that all share, and compiling them with a real LaTeX.

``python -m dive.reporting.latex results/tables`` compiles every table of a folder into one PDF.
"""

import shutil
import subprocess
import sys
import tempfile
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

from dive.files import atomic_path

PACKAGES = "apt-get install --no-install-recommends texlive-latex-base texlive-latex-recommended"
"""What has pdflatex, booktabs and graphicx on Debian and Ubuntu."""

ROWS = 50
"""Rows that a page takes in a readable size."""


def _greek(letter: str) -> str:
    """A Greek letter in math mode, or the Latin one that looks like it, for which LaTeX has no name."""
    size, _, name = unicodedata.name(letter).removeprefix("GREEK ").partition(" LETTER ")
    name = {"LAMDA": "LAMBDA", "FINAL SIGMA": "VARSIGMA"}.get(name, name)  # Unicode's names for them
    if name == "OMICRON":
        return "O" if size == "CAPITAL" else "o"
    if size == "CAPITAL" and name in _LATIN_CAPITALS:
        return _LATIN_CAPITALS[name]
    return rf"$\{name.lower() if size == 'SMALL' else name.capitalize()}$"


_LATIN_CAPITALS = {
    **{name: name[0] for name in ("ALPHA", "BETA", "EPSILON", "ZETA", "IOTA", "KAPPA", "MU", "NU", "TAU")},
    **{"ETA": "H", "RHO": "P", "CHI": "X"},
}
# The letters of the alphabet without accents; between them Unicode has accented ones.
_ALPHABET = [chr(code) for code in (*range(0x391, 0x3A2), *range(0x3A3, 0x3AA), *range(0x3B1, 0x3CA))]

_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "×": r"$\times$",  # noqa: RUF001
    "±": r"$\pm$",
    "≥": r"$\ge$",
    "≤": r"$\le$",
    "→": r"$\to$",
    "†": r"$\dagger$",
    "–": "--",  # noqa: RUF001
    "—": "---",
    "·": r"$\cdot$",
    "µ": r"$\mu$",
    **dict(zip("ΑΒΕΖΗΙΚΜΝΟΡΤΧο", "ABEZHIKMNOPTXo", strict=True)),  # noqa: RUF001
    **{letter: _greek(letter) for letter in _ALPHABET},
}


def escape_latex(text: str) -> str:
    """Escape plain text for LaTeX, character by character; a hyphen between blanks is a minus."""
    return "".join(_LATEX.get(character, character) for character in str(text)).replace(" - ", " $-$ ")


def printed(value: float, decimals: int, signed: bool = False) -> str:
    """A number in math mode's characters; what rounds to zero has no sign."""
    rounded = round(value, decimals)
    if rounded == 0:
        return f"{0:.{decimals}f}"
    return f"{rounded:+.{decimals}f}" if signed else f"{rounded:.{decimals}f}"


def stacked(low: float, high: float, decimals: int, signed: bool = False) -> str:
    """An interval beside its number: the upper end above the lower end."""
    return rf"$\,^{{{printed(high, decimals, signed)}}}_{{{printed(low, decimals, signed)}}}$"


def shortstack(lines: Sequence[str]) -> str:
    """A heading over two columns (a number and what stands beside it); struts keep lines of headings level."""
    text = r"\strut\\".join(map(escape_latex, lines))
    return rf"\multicolumn{{2}}{{c}}{{\shortstack{{{text}\strut}}}}"


def float_table(label: str, caption: str, columns: str, lines: Sequence[str], notes: Iterable[str]) -> str:
    """A table as ``table`` floats: one, or where it has more than ``ROWS`` rows several, cut where a block starts.

    A float shrinks to the text width, and to most of the text height, where it is larger.

    Args:
        label: after ``tab:``.
        caption: plain text.
        columns: the column specification of the tabular.
        lines: the tabular from the heading to the last row, in LaTeX; blocks start with ``\\midrule``.
        notes: plain sentences, below the last float.
    """
    starts = [index for index, line in enumerate(lines) if line == r"\midrule"]
    head, blocks = lines[: starts[0]], [lines[i:j] for i, j in zip(starts, [*starts[1:], len(lines)], strict=True)]
    parts: list[list[str]] = [[]]
    for block in blocks:
        if parts[-1] and sum(line.endswith(r"\\") for line in [*parts[-1], *block]) > ROWS:
            parts.append([])
        parts[-1] += block
    below = " ".join(escape_latex(note) for note in notes)
    text = r"% Needs \usepackage{booktabs} and \usepackage{graphicx}. Made by the workflow; the CSV has the numbers."
    for index, part in enumerate(parts):
        last = index == len(parts) - 1
        text += "\n" + _float(
            label if not index else f"{label}-{index + 1}",
            caption if not index else f"{caption.rstrip('.')} (continued).",
            columns,
            [*head, *part],
            below if last else rf"Notes: below Table~\ref{{tab:{label}-{len(parts)}}}.",
        )
    return text + "\n"


def _float(label: str, caption: str, columns: str, lines: Iterable[str], notes: str) -> str:
    return "\n".join(
        [
            r"\begin{table}[tp]",
            r"\centering",
            rf"\caption{{{escape_latex(caption)}}}",
            rf"\label{{tab:{label}}}",
            r"\smallskip\small",
            r"\setlength{\tabcolsep}{4pt}\renewcommand{\arraystretch}{1.18}",
            r"\sbox0{%",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}}",
            r"\ifdim\wd0>\textwidth\sbox0{\resizebox{\textwidth}{!}{\usebox0}}\fi",
            r"\ifdim\dimexpr\ht0+\dp0\relax>.75\textheight\sbox0{\resizebox*{!}{.75\textheight}{\usebox0}}\fi",
            r"\usebox0",
            r"\par\smallskip",
            rf"\begin{{minipage}}{{\textwidth}}\scriptsize {notes}\end{{minipage}}",
            r"\end{table}",
        ]
    )


def document(tables: Iterable[str]) -> str:
    """A document that has every table on a page of its own."""
    pages = [rf"\input{{{table}}}\clearpage" for table in tables]
    return "\n".join(
        [
            r"\documentclass{article}",
            r"\usepackage[T1]{fontenc}",
            r"\usepackage[utf8]{inputenc}",
            r"\usepackage[a4paper,margin=2.2cm]{geometry}",
            r"\usepackage{booktabs}",
            r"\usepackage{graphicx}",
            r"\begin{document}",
            *pages,
            r"\end{document}",
            "",
        ]
    )


def compile_tables(folder: str, out: str) -> None:
    """Compile all ``*.tex`` of a folder into one PDF.

    Raises:
        RuntimeError: if there is no pdflatex (the message says what to install), no table, or LaTeX finds an error or
            a line that is too wide; with the end of its log.
    """
    tables = sorted(Path(folder).glob("*.tex"), key=lambda path: path.stem)
    if not tables:
        raise RuntimeError(f"{folder} has no *.tex; run the workflow first")
    if shutil.which("pdflatex") is None:
        raise RuntimeError(f"pdflatex is not on the PATH. On Debian and Ubuntu: {PACKAGES}")
    with tempfile.TemporaryDirectory() as place:
        for table in tables:
            shutil.copy(table, place)
        Path(place, "tables.tex").write_text(document(table.stem for table in tables), encoding="utf-8")
        for _ in range(2):  # a second time where a table refers to its continuation
            done = subprocess.run(
                ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "tables.tex"],
                cwd=place,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                check=False,
            )
            if done.returncode or "Rerun to get" not in done.stdout:
                break
        wide = [line for line in done.stdout.splitlines() if line.startswith(("Overfull", "LaTeX Warning: Float too"))]
        if done.returncode or wide:
            told = "\n".join(wide) if wide and not done.returncode else done.stdout[-2000:]
            raise RuntimeError(f"LaTeX does not accept the tables of {folder}:\n{told}")
        with atomic_path(out) as temporary:
            shutil.copy(Path(place, "tables.pdf"), temporary)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m dive.reporting.latex results/tables")
    try:
        # Beside the folder and not in it: what is in it is made by rules.
        compile_tables(sys.argv[1], out := f"{Path(sys.argv[1])}.pdf")
    except RuntimeError as error:
        sys.exit(str(error))
    print(out)
