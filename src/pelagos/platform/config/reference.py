"""The reference of job files as Markdown, written from the schema itself.

`python -m pelagos.platform.config.reference > docs/job-file.md`
"""

import inspect
import re
import sys
from collections.abc import Iterator
from typing import Any

import yaml
from pydantic import BaseModel

from pelagos.platform.config.differences import is_among
from pelagos.platform.config.kinds import JOB_KINDS
from pelagos.platform.config.marks import Meaning, Trait
from pelagos.platform.config.meanings import TRAINING_KINDS, Key, may_resume, training_keys

INTRODUCTION = """\
# Job files

A job is one YAML file of differences from the defaults below. Every key has one place, a type and a
default, and most names contain the unit (`_seconds`, `_steps`, `num_`). An unknown key is an error that
names the file's line and the nearest known key. All errors of a file are reported at once, before
anything starts.

Any key can also be given on the command line, after the file: its path, and its value in YAML. Numbers
address the items of a list:

    pelagos pretrain job.yaml optimizer.lr=1e-4 data.mixture.0.weight=2 tracking.uri=null

Editors complete and check job files by a JSON Schema: `pelagos schema` writes it, and the first line of
a file names it (`# yaml-language-server: $schema=schemas/job.json`), as in all files of `configs/`.

The column *on resume* gives the meaning of a key of a training, and whether
`pelagos resume RUN KEY=VALUE` may change it:

| word | the key decides | another value |
|---|---|---|
| `steps` | the steps, or their measurement | is another training: a new run |
| `how` | the way in which the same steps are computed | gives the same losses, up to rounding |
| `place` | the place of data or files | gives the same losses |
| `record` | records, their frequency, callbacks | gives the same losses |

For `steps`, *with `--from`* means that a branch may change the key from a checkpoint on. *Yes* means
that the value is checked against the checkpoint: a dataset that has moved is the same data.

A sweep names its trials by the keys that decide their steps (and by precision). A finished trial is not
trained again because another key has changed.

`--dry-run` prints the whole resolved job and its cost, and starts nothing. A run keeps
its resolved job in `job.yaml`, which is again a job file.

This page is written from the schema by `make docs`.
"""
JOB_KEY_DESCRIPTION = "Kind of the job."
ONLY_CHOICE_DESCRIPTION = "The only choice."

JsonSchema = dict[str, Any]


def reference_markdown() -> str:
    """Return the reference page: each kind of job, each of its sections, each key."""
    lines = [INTRODUCTION]
    seen: dict[str, str] = {}  # schema definition -> its heading
    for kind, model in JOB_KINDS.items():
        schema = model.model_json_schema()
        lines += [f"## {kind}\n", f"{_docstring(model)}\n"]
        lines += _section(kind, "", schema, schema.get("$defs", {}), seen)
    return "\n".join(lines).rstrip() + "\n"


def _section(
    kind: str, path: str, schema: JsonSchema, definitions: JsonSchema, seen: dict[str, str]
) -> list[str]:
    """Return the table of a section's keys, then the sections below it that are new."""
    is_training = JOB_KINDS[kind] in TRAINING_KINDS
    columns = ("key", "type", "default", *(["on resume"] if is_training else []), "description")
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    below: list[tuple[str, str]] = []
    for key, field in schema["properties"].items():
        for name, place in _sections_in(field):
            child = f"{path}{key}{place}"
            if name not in seen:
                seen[name] = f"{kind}: {child}"
                below.append((name, child))
        cells = (
            f"`{key}`",
            _type(field, seen),
            _default(key, field, schema),
            *([_on_resume(f"{path}{key}")] if is_training else []),
            _description(key, field, definitions),
        )
        lines.append("| " + " | ".join(cells) + " |")
    lines.append("")
    for name, child in below:
        section = definitions[name]
        lines += [f"### {kind}: {child}\n", f"{_one_line(section['description'])}\n"]
        lines += _section(kind, f"{child}.", section, definitions, seen)
    return lines


def _sections_in(field: JsonSchema, place: str = "") -> Iterator[tuple[str, str]]:
    """Yield the definitions that a field's value can be, and where: itself, item, mapped value."""
    if "$ref" in field:
        yield field["$ref"].rpartition("/")[2], place
    for option in field.get("anyOf", []):
        yield from _sections_in(option, place)
    if "items" in field:
        yield from _sections_in(field["items"], "[]")
    values = _values_of(field)
    if values is not None:
        yield from _sections_in(values, ".KEY")


def _values_of(field: JsonSchema) -> JsonSchema | None:
    """Return the schema of a mapping's values, or None where they can be anything."""
    by_pattern = field.get("patternProperties", {})
    values = next(iter(by_pattern.values()), field.get("additionalProperties"))
    return values if isinstance(values, dict) else None


def _type(field: JsonSchema, seen: dict[str, str]) -> str:
    """Return a field's type in words."""
    if "$ref" in field:
        heading = seen[field["$ref"].rpartition("/")[2]]
        return f"[section]({_anchor(heading)})"
    if "anyOf" in field:
        return " or ".join(_type(option, seen) for option in field["anyOf"])
    if "const" in field or "enum" in field:
        return " or ".join(f"`{v}`" for v in field.get("enum", [field.get("const")]))
    match field.get("type"):
        case "null":
            return "`null`"
        case "boolean":
            return "`true` or `false`"
        case "integer" | "number" as name:
            return f"{name}{_bounds(field)}"
        case "string":
            return f"string like `{field['pattern']}`" if "pattern" in field else "string"
        case "array" if "prefixItems" in field:
            return "[" + ", ".join(_type(item, seen) for item in field["prefixItems"]) + "]"
        case "array":
            return f"list of {_type(field['items'], seen)}"
        case "object":
            return f"mapping to {_mapping_values(field, seen)}"
    return "any value"


def _mapping_values(field: JsonSchema, seen: dict[str, str]) -> str:
    values = _values_of(field)
    keys = field.get("propertyNames", {}).get("enum")
    of_keys = f" (keys: {', '.join(f'`{k}`' for k in keys)})" if keys else ""
    shown = "any value" if values is None else _type(values, seen)
    return shown + of_keys


def _bounds(field: JsonSchema) -> str:
    if "minimum" in field and "maximum" in field:
        return f" from {field['minimum']:g} to {field['maximum']:g}"
    signs = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}
    bounds = [f"{sign} {field[name]:g}" for name, sign in signs.items() if name in field]
    return " " + ", ".join(bounds) if bounds else ""


def _default(key: str, field: JsonSchema, schema: JsonSchema) -> str:
    if key in schema.get("required", []) or key == "job":
        return "required"
    if "$ref" in field:
        return "its own"
    if field["default"] == {}:
        return "`{}`"
    shown = yaml.safe_dump(field["default"], default_flow_style=True, width=1000)
    return f"`{shown.removesuffix('...' + chr(10)).strip()}`"


def _on_resume(path: str) -> str:
    """Return the meaning of a training's key and whether a resume may change it, if one word can."""
    name = path.replace("[]", ".*").replace(".KEY", ".*")
    words = {_word(key) for key in training_keys().values() if is_among(key.name, [name])}
    return words.pop() if len(words) == 1 else "see its keys"


def _word(key: Key) -> str:
    if may_resume(key):
        return f"`{key.meaning.value}`: yes"
    if key.meaning is Meaning.STEPS and Trait.UPDATES in key.traits:
        return "`steps`: with `--from`"
    return f"`{key.meaning.value}`: no"


def _description(key: str, field: JsonSchema, definitions: JsonSchema) -> str:
    text = field.get("description", "")
    if not text and "$ref" in field:
        text = definitions[field["$ref"].rpartition("/")[2]]["description"]
    if not text and key == "job":
        text = JOB_KEY_DESCRIPTION
    if not text and "const" in field:
        text = ONLY_CHOICE_DESCRIPTION
    return _one_line(text).replace("|", "\\|")


def _docstring(model: type[BaseModel]) -> str:
    return _one_line(inspect.getdoc(model) or "")


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _anchor(heading: str) -> str:
    """Return the link to a heading, as GitHub and MkDocs derive it."""
    return "#" + re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


if __name__ == "__main__":
    sys.stdout.write(reference_markdown())
