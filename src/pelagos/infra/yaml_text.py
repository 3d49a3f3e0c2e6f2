"""YAML as people mean it: version 1.2's core schema, with the line of every key.

PyYAML follows YAML 1.1, in which `yes` is true, `010` is 8 and `1:30` is 90. Here `yes` and `1:30`
are text, as in YAML 1.2 (https://yaml.org/spec/1.2.2/#103-core-schema), and a number with leading
zeros, which the two versions read differently, is rejected. So are keys that come twice, anchors
that contain themselves, aliases that multiply, tags, numbers that are not finite, and files in
another encoding than UTF-8. Every reader of YAML in Pelagos goes through `parse_yaml_text`.
"""

from __future__ import annotations

import codecs
import json
import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

KeyPath = tuple[str | int, ...]

MAX_NODES = 100_000  # with every alias written out; a job file has some hundred
MAX_DEPTH = 100
MOST_BYTES = 2**24  # a job file has some kilobytes; a device never ends
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)

_NULL, _BOOL, _INT, _FLOAT = (
    f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float")
)
_MERGE, _STR = "tag:yaml.org,2002:merge", "tag:yaml.org,2002:str"
_RESOLVERS: tuple[tuple[str, str, str], ...] = (
    (_NULL, r"^(?:~|null|Null|NULL|)$", "~nN\0"),
    (_BOOL, r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    (_INT, r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$", "-+0123456789"),
    (
        _FLOAT,
        r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
        "-+0123456789.",
    ),
    (_MERGE, r"^(?:<<)$", "<"),
)
_FORMS = {tag: re.compile(form) for tag, form, _ in _RESOLVERS if tag != _MERGE}
_LEADING_ZERO = re.compile(r"[-+]?0[0-9]+")
# Words that YAML 1.1 reads as booleans; with strict types they are rejected where a truth value is
# expected, and this says why.
TRUTH_WORDS_OF_YAML_1_1 = frozenset({"yes", "no", "on", "off", "y", "n"})


class YamlTextError(ValueError):
    """Text that is not YAML as Pelagos reads it.

    Attributes:
        problems: `(key, message, line)` of each; the line counts from 1, or is None.
    """

    def __init__(self, problems: list[tuple[KeyPath, str, int | None]]) -> None:
        self.problems = problems
        shown = (f"line {line}: {message}" if line else message for _, message, line in problems)
        super().__init__("; ".join(shown))


class _CoreLoader(yaml.SafeLoader):
    """Composes nodes with the tags of YAML 1.2's core schema."""


class _CoreDumper(yaml.SafeDumper):
    """Quotes text that the core schema would not read back as text."""


def _install_resolvers() -> None:
    for kind in (_CoreLoader, _CoreDumper):
        kind.yaml_implicit_resolvers = {}
        for tag, pattern, first in _RESOLVERS:
            kind.add_implicit_resolver(tag, re.compile(pattern), list(first.replace("\0", "")))
        kind.yaml_implicit_resolvers.setdefault("", []).append((_NULL, re.compile(r"^$")))


_install_resolvers()


def read_utf8(path: str | os.PathLike[str]) -> str:
    """Return the text of a file in UTF-8, with or without a byte order mark.

    Raises:
        OSError: it cannot be read.
        YamlTextError: it is in another encoding, which is named where it can be recognised.
    """
    with Path(path).open("rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise YamlTextError([((), f"has more than {MOST_BYTES:,} bytes", None)])
    for mark, encoding in _BYTE_ORDER_MARKS:
        if content.startswith(mark):
            raise YamlTextError([((), f"is in {encoding}; save it as UTF-8", None)])
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        byte = content[error.start]
        message = f"is not UTF-8 (byte 0x{byte:02x}); save it as UTF-8"
        raise YamlTextError([((), message, line)]) from error


def parse_yaml_text(text: str) -> tuple[Any, dict[KeyPath, int]]:
    """Return the value of `text`, and the line of each key and list entry.

    Raises:
        YamlTextError: with every problem found.
    """
    try:
        root = yaml.compose(text, Loader=_CoreLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        reason = getattr(error, "problem", None) or str(error)
        line = mark.line + 1 if mark else None
        raise YamlTextError([((), f"not valid YAML: {reason}", line)]) from error
    except RecursionError as error:
        message = f"is nested more than {MAX_DEPTH} levels deep"
        raise YamlTextError([((), message, None)]) from error
    construction = _Construction()
    value = construction.value(root, ()) if root is not None else None
    if construction.problems:
        raise YamlTextError(construction.problems)
    return value, construction.lines


def parse_yaml_value(text: str) -> Any:
    """Return the value of a piece of YAML, such as the text of an override.

    Raises:
        YamlTextError: it is not YAML, or a value that Pelagos rejects.
    """
    return parse_yaml_text(text)[0]


def yaml_text(value: Any, **options: Any) -> str:
    """Return `value` as YAML that `parse_yaml_text` reads back as it is."""
    text: str = yaml.dump(value, Dumper=_CoreDumper, **options)
    return text


@dataclass
class _Construction:
    """Turns composed nodes into values; collects problems instead of raising the first."""

    lines: dict[KeyPath, int] = field(default_factory=dict)
    problems: list[tuple[KeyPath, str, int | None]] = field(default_factory=list)
    num_nodes: int = 0
    open_nodes: list[int] = field(default_factory=list)

    def value(self, node: yaml.Node, path: KeyPath) -> Any:
        """The value of a node; None where it has a problem."""
        line = node.start_mark.line + 1
        self.num_nodes += 1
        if self.num_nodes > MAX_NODES:
            if self.num_nodes == MAX_NODES + 1:
                self._problem(path, f"its aliases expand to more than {MAX_NODES} values", line)
            return None
        if id(node) in self.open_nodes:
            self._problem(path, "an anchor contains itself", line)
            return None
        if len(self.open_nodes) > MAX_DEPTH:
            self._problem(path, f"is nested more than {MAX_DEPTH} levels deep", line)
            return None
        self.open_nodes.append(id(node))
        try:
            if isinstance(node, yaml.MappingNode) and node.tag.endswith(":map"):
                return self._mapping(node, path)
            if isinstance(node, yaml.SequenceNode) and node.tag.endswith(":seq"):
                return self._sequence(node, path)
            if isinstance(node, yaml.ScalarNode):
                return self._scalar(node, path, line)
            return self._problem(path, f"the tag {node.tag} is not allowed here", line)
        finally:
            self.open_nodes.pop()

    def _sequence(self, node: yaml.SequenceNode, path: KeyPath) -> list[Any]:
        values = []
        for index, item in enumerate(node.value):
            self.lines[(*path, index)] = item.start_mark.line + 1
            values.append(self.value(item, (*path, index)))
        return values

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[Any, Any]:
        values: dict[Any, Any] = {}
        merged: dict[Any, Any] = {}
        own: dict[str, int] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if key_node.tag == _MERGE:
                merged = {**self._merged(value_node, path), **merged}
                continue
            if not isinstance(key_node, yaml.ScalarNode):
                self._problem(path, "a key must be a single word or number", line)
                continue
            name = self._scalar(key_node, path, line)
            key = (*path, str(key_node.value))
            # 1 and "1" are one key once the values are JSON, as they are for validation and records
            if (plain := _key_text(name)) in own:
                self._problem(key, f"given twice, first in line {own[plain]}; keep one", line)
            own[plain] = line
            self.lines[key] = line
            values[name] = self.value(value_node, key)
        return {**merged, **values}

    def _merged(self, node: yaml.Node, path: KeyPath) -> dict[Any, Any]:
        """The mappings that `<<` merges: a mapping, or several, of which the first has precedence."""
        parts = node.value if isinstance(node, yaml.SequenceNode) else [node]
        found: dict[Any, Any] = {}
        for part in parts:
            value = self.value(part, path)
            if not isinstance(value, dict):
                self._problem(path, "<< needs a mapping", part.start_mark.line + 1)
                continue
            found = {**value, **found}
        return found

    def _scalar(self, node: yaml.ScalarNode, path: KeyPath, line: int) -> Any:
        text: str = node.value
        # a tag that is written out, such as `!!bool yes`, does not make its text one
        if node.tag in _FORMS and not _FORMS[node.tag].match(text):
            kind = node.tag.rpartition(":")[2]
            return self._problem(path, f"{text!r} is not valid as {kind} in YAML 1.2", line)
        if node.tag == _NULL:
            return None
        if node.tag == _BOOL:
            return text.lower() == "true"
        if node.tag == _INT:
            if _LEADING_ZERO.fullmatch(text):
                told = f"{text} is {int(text)} in YAML 1.2 and octal in YAML 1.1"
                return self._problem(path, f"{told}; write it without leading zeros", line)
            try:
                return _integer(text)
            except ValueError:  # Python reads 4300 digits at most
                return self._problem(path, f"got a number of {len(text)} digits", line)
        if node.tag == _FLOAT:
            return self._float(text, path, line)
        if node.tag in (_STR, _MERGE, "!"):
            return text
        return self._problem(path, f"the tag {node.tag} is not allowed here", line)

    def _float(self, text: str, path: KeyPath, line: int) -> Any:
        bare = text.lower().lstrip("+-")
        value = float(bare.removeprefix(".")) if bare in (".inf", ".nan") else float(text)
        if not math.isfinite(value):
            return self._problem(path, f"got {text}; numbers must be finite", line)
        # 1e5 is a whole number, and may be used where one is expected
        return int(value) if value.is_integer() and "." not in text else value

    def _problem(self, path: KeyPath, message: str, line: int | None) -> None:
        self.problems.append((path, message, line))


def _key_text(name: Any) -> str:
    return name if isinstance(name, str) else json.dumps(name)


def _integer(text: str) -> int:
    for prefix, base in (("0o", 8), ("0x", 16)):
        if text.startswith(prefix):
            return int(text[2:], base)
    return int(text)
