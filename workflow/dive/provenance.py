"""Which code made a result: a version by content, and the record that every result carries.

Snakemake would rerun a rule when its script's modification time changes (a ``touch`` would cost hours) and would not
see a changed module that the script imports. A rule therefore has ``code_version("scripts/<rule>.py")`` among its
``params``: it changes with what the interpreter would run differently, and with nothing else.
"""

import ast
import hashlib
import io
import json
import os
import platform
import sys
import tokenize
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from dive.files import sha256
from dive.software import COMPUTING, installed

PACKAGE = Path(__file__).resolve().parent
PROJECT = PACKAGE.parent.parent
FRAME = ("dive.progress", "dive.software", "dive.warm")  # dive.runs and dive.told come in through these alone
"""Modules around a job's work: what it says, what it costs, in which process it runs. They hand on what they are given
and never change it, so a code version leaves them out, and what only they import. An edit of them reruns nothing."""
ROUNDED = ("bfloat16", "float16")
"""Types in which the size of a batch can change a word of a greedy report."""


def code_version(*files: str) -> str:
    """Hash of scripts and modules and of every module of this project that they import, transitively.

    Imports are found in the syntax tree, those inside functions included; ``if TYPE_CHECKING:`` blocks and the modules
    of ``FRAME`` are skipped.
    The hash is over the source text without comments, docstrings and blank lines, which is the same text under every
    version of Python (a dump of the syntax tree is not).

    Args:
        files: scripts, relative to the project's folder (``scripts/split.py``), or modules (``dive.steering.live``).

    Returns:
        16 hexadecimal digits.

    Raises:
        FileNotFoundError: a script or module does not exist.
    """
    seen = _reached(files)
    digest = hashlib.sha256()
    for name in sorted(seen):
        if text := _essence(seen[name]):
            digest.update(f"{name}\0{text}\0".encode())
    return digest.hexdigest()[:16]


def code_alone(*modules: str) -> str:
    """Hash of some modules without what they import, and without what they only say: messages of logs and errors.

    For a result that is kept with the project and must not become invalid when a message is reworded or a module is
    changed that does not decide the result.

    Args:
        modules: names (``dive.data.draws``).

    Returns:
        16 hexadecimal digits.

    Raises:
        FileNotFoundError: a module does not exist.
    """
    digest = hashlib.sha256()
    for name in sorted(modules):
        digest.update(f"{name}\0{_essence(_locate(name), messages=False)}\0".encode())
    return digest.hexdigest()[:16]


def _reached(files: Iterable[str]) -> dict[str, Path]:
    """Name -> path of some scripts and modules, and of all that they import, ``FRAME`` aside."""
    frame = {_module_file(module) for module in FRAME}
    seen: dict[str, Path] = {}
    waiting = [_locate(file) for file in files]
    while waiting:
        path = waiting.pop()
        name = path.relative_to(PROJECT).as_posix() if path.is_relative_to(PROJECT) else path.name
        if name not in seen and path not in frame:
            seen[name] = path
            waiting.extend(_imports(path))
    return seen


@cache
def packages_of(*files: str) -> frozenset[str]:
    """Packages that can change a number and that some scripts and modules import, see ``code_version``."""
    names = {name.partition(".")[0] for path in _reached(files).values() for name in _imported_names(path)}
    return frozenset(package for name in names for package in COMPUTING.get(name, ()))


def module_of(method: Mapping[str, Any]) -> tuple[str, ...]:
    """The module that a method's settings name: ``{"module": "live"}`` gives ``("dive.steering.live",)``.

    Such a module is loaded by name, so no import leads to it; methods without one (prompts) give an empty tuple.
    """
    return (f"dive.steering.{method['module']}",) if method.get("module") else ()


def decisive(backbone: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a backbone that decide a result: in float32 without ``batch``.

    A batch size is a matter of memory. It changes how sums are rounded: in float32 in the last digits, in bfloat16 and
    float16 enough to change a word now and then. So in these it counts, and in float32 it reruns nothing.
    """
    if backbone.get("dtype", "float32") in ROUNDED:
        return dict(backbone)
    return {key: value for key, value in backbone.items() if key != "batch"}


def record(**settings: Any) -> dict[str, Any]:
    """What made a result: the code's version, the versions of the packages, the slice of the configuration.

    Nothing in it depends on the machine or the hour, so that equal runs leave equal files: of an absolute path only
    the last part is kept. The code's version is that of the module which calls this.

    Args:
        settings: the slices of the configuration that the result depends on, each under its name.

    Returns:
        ``{"code": ..., "packages": {name: version}, "settings": ...}``, ready for JSON.
    """
    packages = {**installed(), "python": platform.python_version()}
    maker = sys._getframe(1).f_globals["__name__"]
    code = code_version(maker) if maker.startswith(f"{PACKAGE.name}.") else None
    return {"code": code, "packages": packages, "settings": _portable(settings)}


def fingerprint(settings: Iterable[Any], inputs: Iterable[str | os.PathLike[str] | None]) -> str:
    """Hash of all that determines a result, so that what an interrupted run left of another one is never continued.

    Args:
        settings: slices of the configuration, code versions; JSON values.
        inputs: files, and folders that describe themselves: of a cache its manifest counts, which holds checksums of
            the rest; of an adapter its JSON files and weights. None is left out.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256(json.dumps(list(settings), sort_keys=True).encode())
    for path in inputs:
        if path is None:
            continue
        path = Path(path)
        files = [path] if path.is_file() else [path / "manifest.json"]
        if not files[0].is_file():
            files = sorted([*path.glob("*.json"), *path.glob("adapter.*")])
        for file in files:
            digest.update(f"\n{sha256(file)}".encode())
    return digest.hexdigest()


def _portable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _portable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_portable(item) for item in value]
    if isinstance(value, os.PathLike) or (isinstance(value, str) and os.path.isabs(value)):
        return os.path.basename(value)
    return value


def _locate(file: str) -> Path:
    path = PROJECT / file if file.endswith(".py") else _module_file(file)
    if path is None or not path.is_file():
        raise FileNotFoundError(f"code_version: no script or module {file!r} in this project")
    return path


@cache
def _module_file(module: str) -> Path | None:
    """The source of a module of this project; None for a name that is none (a function, another package)."""
    first, *rest = module.split(".")
    if first != PACKAGE.name:
        return None
    base = PACKAGE.joinpath(*rest)
    for path in (base / "__init__.py", base.parent / f"{base.name}.py"):
        if path.is_file():
            return path
    return None


@cache
def _imports(path: Path) -> tuple[Path, ...]:
    """Files of this project that ``path`` imports directly, the packages on the way to them included."""
    parts = [name.split(".") for name in _imported_names(path)]
    prefixes = {".".join(part[:end]) for part in parts for end in range(1, len(part) + 1)}
    return tuple(file for name in sorted(prefixes) if (file := _module_file(name)) is not None)


@cache
def _imported_names(path: Path) -> tuple[str, ...]:
    """Dotted names that ``path`` imports: of modules, and of what it takes from them."""
    names: list[str] = []
    for node in _statements(_tree(path), for_checkers=False):
        if isinstance(node, ast.Import):
            names.extend(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = path.relative_to(PACKAGE.parent).with_suffix("").parts[: -node.level]
                base = ".".join([*package, *([node.module] if node.module else [])])
            names.append(base)
            # `from dive.data import splits` names a module, `from dive.data.splits import check_root` a function.
            names.extend(f"{base}.{alias.name}" for alias in node.names)
    return tuple(names)


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_bytes(), filename=str(path))


def _statements(node: ast.AST, for_checkers: bool = True) -> Iterator[ast.AST]:
    """Every statement below ``node``; ``for_checkers``: also those that only a type checker reads.

    Expressions, most of a tree, hold none. What else has statements (``except``, ``case``) comes along.
    """
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.expr):
            continue
        if not for_checkers and isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            for other in child.orelse:
                yield other
                yield from _statements(other, for_checkers)
            continue
        yield child
        yield from _statements(child, for_checkers)


@cache
def _essence(path: Path, messages: bool = True) -> str:
    """Source text without comments, docstrings, trailing blanks and blank lines; long strings stay as they are.

    ``messages``: also with ``raise`` and ``log`` statements.
    """
    source = path.read_bytes()
    lines = source.splitlines(keepends=True)
    tree = _tree(path)
    literal: set[int] = set()  # lines whose end lies inside a string: blanks there are content
    for node in ast.walk(tree):
        is_text = isinstance(node, ast.JoinedStr) or (
            isinstance(node, ast.Constant) and isinstance(node.value, str | bytes)
        )
        if is_text and node.end_lineno > node.lineno:
            literal.update(range(node.lineno, node.end_lineno))
    cuts = [*_docstrings(tree), *_comments(source, lines), *([] if messages else _messages(tree))]
    # From the last to the first, so that earlier positions stay valid.
    for line, start, end_line, end in sorted(cuts, reverse=True):
        literal.difference_update(range(line, end_line))
        for between in range(line, end_line - 1):
            lines[between] = b"\n"
        if line == end_line:
            lines[line - 1] = lines[line - 1][:start] + lines[line - 1][end:]
        else:
            lines[line - 1] = lines[line - 1][:start] + b"\n"
            lines[end_line - 1] = b" " * start + lines[end_line - 1][end:]
    kept = [
        text if number in literal else text.rstrip() + b"\n"
        for number, text in enumerate(lines, start=1)
        if number in literal or text.strip()
    ]
    return b"".join(kept).decode("utf-8")


def _docstrings(tree: ast.AST) -> Iterator[tuple[int, int, int, int]]:
    """Line (from 1) and byte column of start and end of every docstring."""
    for node in [tree, *_statements(tree)]:
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or not node.body:
            continue
        first = node.body[0]
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
            yield first.lineno, first.col_offset, first.end_lineno, first.end_col_offset


def _messages(tree: ast.AST) -> Iterator[tuple[int, int, int, int]]:
    """The same of every ``raise`` statement and every call of ``log``."""
    for node in _statements(tree):
        logs = isinstance(node, ast.Expr) and ast.unparse(node.value).startswith("log.")
        if logs or isinstance(node, ast.Raise):
            yield node.lineno, node.col_offset, node.end_lineno, node.end_col_offset


def _comments(source: bytes, lines: list[bytes]) -> Iterator[tuple[int, int, int, int]]:
    """The same of every comment; the tokenizer counts characters, so its columns are turned into bytes."""
    for token in tokenize.tokenize(io.BytesIO(source).readline):
        if token.type == tokenize.COMMENT:
            line, column = token.start
            text = lines[line - 1].decode("utf-8")
            start = len(text[:column].encode())
            yield line, start, line, start + len(token.string.encode())
