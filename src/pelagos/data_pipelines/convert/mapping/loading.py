"""Reading a mapping file: every problem at once, with line, key and the nearest known one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from pelagos.data_pipelines.convert.mapping.schema import ArrayMapping, Mapping, ParameterMapping
from pelagos.data_pipelines.convert.source import SourceError
from pelagos.infra.storage.files import expanded_path
from pelagos.infra.suggestions import nearest
from pelagos.infra.yaml_text import KeyPath, YamlTextError, parse_yaml_text, read_utf8

# Parts of pydantic's path of a key other than keys: members of unions, keys of mappings.
_UNION_MEMBERS = ("float", "int", "ParameterMapping", "literal[", "constrained-", "none", "[key]")


def load_mapping(file: str) -> Mapping:
    """The mapping in a YAML file.

    Raises:
        SourceError: with every problem of the file, each with its line and key.
    """
    try:
        tree, lines = parse_yaml_text(read_utf8(expanded_path(file)))
    except OSError as error:
        raise SourceError(f"cannot read --mapping {file}: {error.strerror}") from error
    except YamlTextError as error:
        raise _failed(file, [_sentence(*problem) for problem in error.problems]) from error
    if not isinstance(tree, dict):
        raise _failed(file, ["the file must be a mapping that begins with `fields:`"])
    try:
        return Mapping.model_validate(tree)
    except ValidationError as error:
        problems = [_explained(detail, lines) for detail in error.errors()]
        raise _failed(file, list(dict.fromkeys(problems))) from error


def _failed(file: str, problems: Sequence[str]) -> SourceError:
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return SourceError(f"--mapping {file}: {count}\n  " + "\n  ".join(problems))


def _sentence(key: KeyPath, message: str, line: int | None) -> str:
    where = f"line {line}: " if line else ""
    name = ".".join(map(str, key))
    return f"{where}{name}: {message}" if name else f"{where}{message}"


def _explained(detail: Any, lines: dict[KeyPath, int]) -> str:
    """One of pydantic's errors as a sentence."""
    key: KeyPath = tuple(
        part
        for part in detail["loc"]
        if isinstance(part, int) or not str(part).startswith(_UNION_MEMBERS)
    )
    line = next((lines[key[:n]] for n in range(len(key), 0, -1) if key[:n] in lines), None)
    section = _section(key)
    if detail["type"] == "extra_forbidden":
        known = list(section.model_fields)
        key = key or (str(detail["loc"][-1]),)  # called as a member of a union is
        hint = nearest(str(key[-1]), known)
        return _sentence(key, f"unknown key{hint}; known keys here: {', '.join(known)}", line)
    if detail["type"] == "missing":
        field = section.model_fields.get(str(key[-1]))
        what = f" ({field.description})" if field and field.description else ""
        return _sentence(key, f"missing, and it has no default{what}", line)
    got = detail["input"]
    allowed = str(detail["msg"]).removeprefix("Input should be ").removeprefix("Value error, ")
    close = ""
    if detail["type"] == "literal_error" and isinstance(got, str):
        close = nearest(got, re.findall(r"'([^']+)'", str(detail["ctx"]["expected"])))
    return _sentence(key, f"got {got!r}, allowed: {allowed}{close}", line)


def _section(key: KeyPath) -> type[BaseModel]:
    """The section that contains the last part of a key."""
    if len(key) > 2 and key[0] == "fields":
        return ArrayMapping
    is_array = len(key) > 2 and key[0] in ("parameters", "domain_extent")
    if is_array or (len(key) > 1 and key[0] == "frame_interval"):
        return ParameterMapping
    return Mapping
