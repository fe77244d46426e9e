"""Files of the configuration, read so that nothing is guessed or lost, and what a configuration may hold at all.

They are YAML or JSON, as Snakemake takes them, but a key that a mapping has twice, another encoding than UTF-8 and an
anchor that contains itself are errors that name the file, the line and the remedy. Snakemake reads overlays before it
reads the Snakefile, so profiles/default calls `read_strictly` at the start. No job imports this module.
"""

import argparse
import codecs
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

DEFAULT = "config.yaml"
"""The file that overlays change, in the folder of the workflow."""

DEEPEST = 20
"""Levels of mappings and lists; config.yaml has six."""

MOST = 100_000
"""Values of a configuration, where an alias counts as often as it is used; config.yaml has under a thousand."""

LARGEST = 4 * 2**20
"""Bytes of a file."""

LONGEST = 10_000
"""Characters of a text."""

HUGE = 10**30
"""Beyond every number that a configuration needs, and still quick to print."""

SYNTAX = "; correct the YAML: lines are indented by spaces, and texts with special characters stand in quotes"

Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
Errors = list[tuple[str, str]]


class ConfigError(ValueError):
    """The configuration cannot be run; the message lists everything that is wrong with it."""


class _Refused(yaml.MarkedYAMLError):
    """What YAML allows and a configuration does not."""


def read_file(path: str | Path) -> dict[str, Any]:
    """Read one file of the configuration; an empty one changes nothing.

    Raises:
        ConfigError: it is absent, not UTF-8, neither YAML nor JSON, no mapping, or has a key twice; with file, line and
            remedy.
    """
    try:
        text = decode(Path(path).read_bytes())
        parsed = parse(text)
    except OSError as error:
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else error.strerror
        raise ConfigError(f"{path}: {reason}; correct the path of the configuration file") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}" if mark else ""
        advice = "" if isinstance(error, _Refused) else SYNTAX
        raise ConfigError(f"{path}{where}: {error.problem or error.context}{advice}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: {' '.join(str(error).split())}{SYNTAX}") from error
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error
    if parsed is None:
        return {}
    if not isinstance(parsed, dict):
        raise ConfigError(f"{path}: must have keys at its top level, like `seeds: [0]`, not {kind_of(parsed)}")
    return parsed


def overlay(base: Any, top: Any) -> Any:
    """``top`` over ``base``: mappings key by key, anything else replaces, as Snakemake merges its files."""
    if isinstance(base, Mapping) and isinstance(top, Mapping):
        return {**base, **{key: overlay(base[key], top[key]) if key in base else top[key] for key in top}}
    return top


def read_files(files: Sequence[str | Path]) -> dict[str, Any]:
    """Read config.yaml and its overlays, in the order in which each covers those before.

    Raises:
        ConfigError: see `read_file`.
    """
    config: dict[str, Any] = {}
    for file in files:
        if file == DEFAULT and not Path(file).is_file():
            raise ConfigError(f"there is no {file} in this folder; run the command in the folder of the workflow")
        config = overlay(config, read_file(file))
    return config


def files_of(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The files of the configuration that a command line of snakemake names, and what else is on it.

    Raises:
        ConfigError: a profile cannot be read.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--configfile", "--configfiles", nargs="*", action="extend", default=[])
    parser.add_argument("--profile", nargs="*", action="extend", default=[])
    given, rest = parser.parse_known_args(list(arguments))
    overlays: list[str] = []
    for folder in given.profile:
        named = read_file(Path(folder) / "config.yaml").get("configfile", [])
        overlays += [named] if isinstance(named, str) else named
    return [DEFAULT, *overlays, *given.configfile], rest


def decode(data: bytes) -> str:
    """The text of a file.

    Raises:
        ValueError: it is not UTF-8, or too large.
    """
    if len(data) > LARGEST:
        raise ValueError(f"{len(data) / 2**20:.0f} MiB are too much for a configuration; is it another file?")
    if b"\0" in data or data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)):
        raise ValueError("the file is binary, or a text in UTF-16 or UTF-32; save it as a text in UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"line {line} is not UTF-8 (perhaps Latin-1); save the file as UTF-8") from error


def parse(text: str) -> Any:
    """What a text in YAML or JSON says.

    Raises:
        yaml.YAMLError: it is neither, or `check_node` refuses it.
        ValueError: a value that has the form of a number or date is none.
    """
    if text.lstrip().startswith("{"):
        try:  # tabs, which YAML does not take between tokens
            json.loads(text)
            text = text.replace("\t", " ")
        except (ValueError, RecursionError):
            pass
    depth = 0
    # By events first: the composer follows nested values by recursion, and C's ends the process when it is too deep.
    for event in yaml.parse(text, Loader=Loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise _Refused(
                problem=f"values are nested more than {DEEPEST} levels deep; config.yaml needs six",
                problem_mark=event.start_mark,
            )
    node = yaml.compose(text, Loader=Loader)
    if node is None:
        return None
    loader = Loader("")
    check_node(node, "", (), [0], loader)
    return loader.construct_document(node)


def check_node(node: yaml.Node, path: str, above: tuple[int, ...], count: list[int], loader: Any) -> None:
    """Refuse what would be lost or never end.

    Args:
        node: a node of the composed document.
        path: its dotted path.
        above: identities of the nodes that contain it.
        count: one number, of the nodes that were looked at so far.
        loader: makes the values of nodes.

    Raises:
        yaml.MarkedYAMLError: a mapping has a key twice, a key is no name, a value has the form of a date or number and
            is none, an alias contains itself, or aliases multiply to too many values.
    """
    count[0] += 1

    def refuse(problem: str, at: yaml.Node) -> None:
        raise _Refused(problem=f"{path or 'the file'}: {problem}", problem_mark=at.start_mark)

    def check_value(scalar: yaml.Node) -> None:
        try:
            loader.construct_object(scalar)
        except (ValueError, yaml.YAMLError):
            tag = scalar.tag.removeprefix("tag:yaml.org,2002:")
            refuse(f"{shortened(scalar.value)} cannot be read as {tag}; if it is a text, put it in quotes", scalar)

    if id(node) in above:
        refuse("the anchor contains itself; write the value out instead of the alias", node)
    if count[0] > MOST:
        refuse(f"more than {MOST:,} values, aliases counted as often as they are used; use fewer", node)
    if isinstance(node, yaml.ScalarNode):
        check_value(node)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            check_node(item, joined(path, index), (*above, id(node)), count, loader)
    elif isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                refuse("a mapping or list cannot be a key; write a name", key)
            line = key.start_mark.line + 1
            if key.value in lines:
                first = f"first in line {lines[key.value]}"
                refuse(f"the key {shortened(key.value)} is there twice, {first}; keep one of them", key)
            lines[key.value] = line
            if key.tag != "tag:yaml.org,2002:merge":
                check_value(key)
            check_node(value, joined(path, key.value), (*above, id(node)), count, loader)


def plain_errors(config: Any) -> Errors:
    """What no configuration may hold, whatever the key: (dotted path, message) of each.

    Keys that are no texts, values that JSON does not have, numbers that are not finite or absurdly large, texts with
    control characters, and values that contain themselves. What passes can be walked, compared and printed safely.
    """
    errors: Errors = []
    for index, (path, message) in enumerate(_plain(config, "", 0)):
        if index >= MOST:
            errors.append(("the configuration", f"has more than {MOST:,} values; use fewer"))
            break
        if message:
            errors.append((path or "the configuration", message))
            if len(errors) == 100:
                break
    return errors


def _plain(value: Any, path: str, depth: int) -> Iterator[tuple[str, str]]:
    """(path, message) of every value, with an empty message for a good one."""
    message = ""
    if depth > DEEPEST:
        message = f"is nested more than {DEEPEST} levels deep or contains itself; write the value out"
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                yield joined(path, key), f"the key {shortened(key)} is not a text; put it in quotes or remove it"
            elif problem := _text(key, 300):
                yield joined(path, key), f"the key {problem}"
            else:
                yield from _plain(item, joined(path, key), depth + 1)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _plain(item, joined(path, index), depth + 1)
    elif isinstance(value, str):
        message = _text(value, LONGEST)
    elif isinstance(value, float):
        message = "" if math.isfinite(value) else f"must be a finite number, not {value}"
    elif isinstance(value, int):
        message = "" if abs(value) < HUGE else "is a number of more than 30 digits; choose a smaller one"
    elif value is not None:
        message = f"is {kind_of(value)}; write a text in quotes, a number, true, false or null"
    yield path, message


def _text(text: str, longest: int) -> str:
    """What is wrong with a text, or an empty string."""
    if len(text) > longest:
        return f"has {len(text):,} characters; at most {longest:,} are allowed"
    strange = next((c for c in text if (ord(c) < 32 and c not in "\n\t") or 0x7F <= ord(c) < 0xA0), None)
    if strange is not None:
        return f"holds the control character {strange!r}; remove it"
    if any("\ud800" <= c <= "\udfff" for c in text):
        return "holds half of a character pair (a lone surrogate); remove it"
    return ""


def joined(path: str, key: Any) -> str:
    """A dotted path and one more key."""
    key = shortened(key, "")
    return f"{path}.{key}" if path else key


def shortened(value: Any, quote: str = "'") -> str:
    """A key as an error shows it: on one line, and not longer than one."""
    if isinstance(value, str):
        text = value if value.isprintable() else ascii(value)[1:-1]
    else:
        text, quote = "null" if value is None else str(value) if _printable(value) else kind_of(value), ""
    return f"{quote}{text if len(text) <= 60 else f'{text[:57]}...'}{quote}"


def _printable(value: Any) -> bool:
    return isinstance(value, bool | float) or (isinstance(value, int) and abs(value) < HUGE)


def kind_of(value: Any) -> str:
    """A value's kind in the words of somebody who writes YAML."""
    kinds = {
        bool: "true or false", int: "a number", float: "a number", str: "a text", list: "a list", tuple: "a list",
        bytes: "binary data", set: "a set", type(None): "null",
    }  # fmt: skip
    if isinstance(value, Mapping):
        return "a mapping"
    return kinds.get(type(value), f"a {type(value).__name__}")


def read_strictly() -> None:
    """Have Snakemake read its configuration files by `read_file`; one that cannot be read ends it with the sentence."""
    from snakemake.common import configfile

    def read(path: str | Path, filetype: str = "Config") -> dict[str, Any]:
        try:
            config = read_file(path)
        except ConfigError as error:
            sys.exit(str(error))
        if "pathvars" in config:  # which Snakemake would take for its own before anything is checked
            sys.exit(f"{path}: pathvars: unknown key; remove it")
        return config

    configfile._load_configfile = read
