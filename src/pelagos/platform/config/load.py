"""Reading a job file: YAML with line numbers, dotted overrides, every error of the file at once."""

import difflib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, TypeAdapter, ValidationError

from pelagos.infra.permanent_error import PermanentError
from pelagos.infra.storage.addresses import without_credentials
from pelagos.infra.storage.files import expanded_path
from pelagos.infra.yaml_text import (
    TRUTH_WORDS_OF_YAML_1_1,
    YamlTextError,
    parse_yaml_text,
    parse_yaml_value,
    read_utf8,
    yaml_text,
)
from pelagos.infra.yaml_text import (
    KeyPath as KeyPath,
)
from pelagos.platform.config.checks import check_arithmetic
from pelagos.platform.config.description import DescriptionConfig
from pelagos.platform.config.kinds import JOB_KINDS, Job
from pelagos.platform.config.old_options import (
    OLD_OPTIONS,
    SECTION,
    is_default,
    is_old,
    move_keys,
    move_options,
    new_path,
)
from pelagos.platform.config.old_options import warn as warn_of_old_options
from pelagos.platform.config.run_at_checkpoint import split_checkpoints
from pelagos.platform.config.schema import OptimizerConfig, TrainingJob
from pelagos.platform.config.sweep import SweepJob

Model = TypeVar("Model", bound=BaseModel)


GIVEN_AS_OVERRIDE = 0
"""The line of a key whose value is no line of the file, but an override."""


@dataclass(frozen=True)
class Problem:
    """One problem of a job file: its place and how to fix it."""

    key: KeyPath
    message: str
    line: int | None = None

    def __str__(self) -> str:
        where = f"line {self.line}: " if self.line else ""
        if self.line == GIVEN_AS_OVERRIDE:
            where = "override: "
        key = ".".join(str(part) for part in self.key) or "(whole file)"
        return f"{where}{key}: {self.message}"


class ConfigError(PermanentError, ValueError):
    """A job that cannot run as written. Lists every problem found, each with line and key."""

    def __init__(self, source: str, problems: Sequence[Problem]) -> None:
        self.source = source
        self.problems = tuple(problems)
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__(f"{source}: {count}\n" + "\n".join(f"  {p}" for p in problems))

    def __reduce__(self) -> tuple[type["ConfigError"], tuple[str, tuple[Problem, ...]]]:
        return type(self), (self.source, self.problems)


def load_job(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Job:
    """Return the validated, frozen job of a YAML file.

    Descriptions of datasets in files of their own become part of it, so that it can be resumed and
    submitted from anywhere.

    Args:
        path: the job file.
        overrides: `dotted.key=value` strings, applied on top of the file in order.

    Raises:
        ConfigError: with every problem of the file (unknown keys, wrong types, broken arithmetic).
    """
    job = parse_job(read_yaml_text(path), str(path), overrides)
    return _with_descriptions(job, str(path)) if isinstance(job, TrainingJob) else job


def located(error: ConfigError, path: str, overrides: Sequence[str] = ()) -> ConfigError:
    """Return an error that was found in the parts of a job with its file and the lines of its keys."""
    tree, lines = parse_yaml(read_yaml_text(path), path)
    move_options(tree, lines)
    _apply_overrides(tree, lines, _job_kind(tree, lines, path), overrides, [])
    problems = [
        p if p.line is not None else replace(p, line=_line_of(p.key, lines)) for p in error.problems
    ]
    return ConfigError(path, sorted(problems, key=lambda p: p.line or 0))


def _with_descriptions(job: TrainingJob, source: str) -> Job:
    """Return the job with the descriptions that its mixture names by file."""
    entries, problems = [], []
    for index, entry in enumerate(job.data.mixture):
        if isinstance(entry.description, str):
            try:
                update = {"description": read_description(entry.description)}
                entry = entry.model_copy(update=update)
            except ConfigError as error:
                key = ("data", "mixture", index, "description")
                problems.append(Problem(key, str(error)))
        entries.append(entry)
    if problems:
        raise ConfigError(source, problems)
    data = job.data.model_copy(update={"mixture": tuple(entries)})
    described: Job = job.model_copy(update={"data": data})
    return described


def read_description(path: str | os.PathLike[str]) -> DescriptionConfig:
    """Return the description of a dataset in a YAML file.

    Its statistics are kept next to it, in `NAME.statistics.json`, unless it names another file.

    Raises:
        ConfigError: with every problem of the file.
    """
    tree, lines = parse_yaml(read_yaml_text(path), str(path))
    found, problems = validate_section(DescriptionConfig, tree, lines, ())
    if found is None:
        raise ConfigError(str(path), problems)
    beside = str(Path(path).with_suffix(".statistics.json"))
    return found.model_copy(update={"statistics": found.statistics or beside})


def read_yaml_text(path: str | os.PathLike[str]) -> str:
    """Return the text of a job file, or raise `ConfigError` naming why it cannot be read."""
    try:
        return read_utf8(expanded_path(str(path)))
    except OSError as error:
        raise ConfigError(
            str(path), [Problem((), f"cannot be read: {error.strerror}. Check the path.")]
        ) from error
    except YamlTextError as error:
        raise ConfigError(str(path), _problems_of(error)) from error


def parse_job(text: str, source: str, overrides: Sequence[str] = ()) -> Job:
    """Return the job that `text` describes; `source` names it in errors. Raises `ConfigError`."""
    tree, lines = parse_yaml(text, source)
    kind = _job_kind(tree, lines, source)
    old = move_keys(tree, lines) if kind is SweepJob else move_options(tree, lines)
    problems = _apply_overrides(tree, lines, kind, overrides, old)
    warn_of_old_options(source, old)
    problems += [Problem(k, m, _line_of(k, lines)) for k, m in split_checkpoints(tree)]
    problems += _unknown_names(tree, lines)
    job: Job | None = None
    try:
        job = _validated(kind, tree)
    except ValidationError as error:
        problems += _without_echoes([_explain(detail, kind, lines) for detail in error.errors()])
    if job is not None:
        problems += [
            Problem(key, message, _line_of(key, lines)) for key, message in check_arithmetic(job)
        ]
    if problems or job is None:
        raise ConfigError(source, sorted(problems, key=lambda p: p.line or 0))
    return job


def _unknown_names(tree: dict[str, Any], lines: dict[KeyPath, int]) -> Iterator[Problem]:
    """Yield names of optimizer and schedule that nothing has registered.

    A file that names plugins, which are imported later, is checked when its parts are built.
    """
    if tree.get("plugins"):
        return
    for section, find in (("schedule", _schedule), ("optimizer", _optimizer)):
        part = tree.get(section)
        name = part.get("name") if isinstance(part, dict) else None
        if isinstance(name, str):
            try:
                find(name)
            except ValueError as error:
                key = (section, "name")
                yield Problem(key, str(error), _line_of(key, lines))


def _schedule(name: str) -> None:
    from pelagos.platform.optimization.schedules import SCHEDULES

    SCHEDULES[name]


def _optimizer(name: str) -> None:
    if name != OptimizerConfig().name:  # its table needs torch
        from pelagos.platform.optimization.optimizer_kinds import OPTIMIZERS

        OPTIMIZERS[name]


def resolve_yaml(job: Job) -> str:
    """Return the whole resolved job as YAML: reading it back gives an equal job."""
    return yaml_text(job.model_dump(mode="json"), sort_keys=False, width=100)


def validate_section(
    kind: type[Model], tree: Any, lines: dict[KeyPath, int], prefix: KeyPath
) -> tuple[Model | None, list[Problem]]:
    """Return the model of a part of a file, or its problems; `prefix` is its place in the file."""
    try:
        return _validated(kind, tree), []
    except ValidationError as error:
        size = len(prefix)
        own = {key[size:]: line for key, line in lines.items() if key[:size] == prefix}
        found = _without_echoes([_explain(detail, kind, own) for detail in error.errors()])
        start = lines.get(prefix)
        return None, [Problem((*prefix, *p.key), p.message, p.line or start) for p in found]


def parse_yaml(text: str, source: str) -> tuple[dict[str, Any], dict[KeyPath, int]]:
    """Return a YAML mapping and the line of each of its keys. Raises `ConfigError`."""
    try:
        tree, lines = parse_yaml_text(text)
    except YamlTextError as error:
        raise ConfigError(source, _problems_of(error)) from error
    if not isinstance(tree, dict):
        raise ConfigError(
            source, [Problem((), f"expected a mapping of keys, got {type(tree).__name__}", 1)]
        )
    return tree, lines


def _problems_of(error: YamlTextError) -> list[Problem]:
    return [Problem(key, message, line) for key, message, line in error.problems]


def _validated(kind: type[Model], tree: Any) -> Model:
    """Return the model of plain values, without changing the type of any: `"1"` is no number.

    Raises:
        ValidationError: from pydantic.
    """
    # pydantic's strict mode takes a list for a tuple from JSON only
    return kind.model_validate_json(json.dumps(tree), strict=True)


def _job_kind(tree: dict[str, Any], lines: dict[KeyPath, int], source: str) -> type[Job]:
    kind = tree.get("job")
    if isinstance(kind, str) and kind in JOB_KINDS:
        return JOB_KINDS[kind]
    allowed = ", ".join(JOB_KINDS)
    message = f"got {kind!r}, allowed: {allowed}{nearest(str(kind), JOB_KINDS)}"
    if kind is None:
        message = f"missing; add `job: pretrain` (allowed: {allowed})"
    raise ConfigError(source, [Problem(("job",), message, lines.get(("job",)))])


def _apply_overrides(
    tree: dict[str, Any],
    lines: dict[KeyPath, int],
    kind: Any,
    overrides: Sequence[str],
    old: list[str],
) -> list[Problem]:
    """Apply overrides; add to `old` the options of the objective in their old spelling."""
    problems = []
    for override in overrides:
        dotted, separator, raw = override.partition("=")
        if not separator or not dotted:
            problems.append(
                Problem((override,), "expected dotted.key=value, e.g. optimizer.lr=1e-4")
            )
            continue
        given: KeyPath = tuple(int(p) if p.isdecimal() else p for p in dotted.split("."))
        path = new_path(given) if kind is not SweepJob else given
        try:
            value = _parse_value(raw, _annotation_at(kind, path))
            _set(tree, path, value)
            if path == (SECTION,):
                old += move_options(tree, {})
            elif path != given:
                old.append(".".join(map(str, given[1:])))
                if is_default(given, value):
                    del tree[SECTION]["config"][path[-1]]
        except YamlTextError as error:
            problems += [Problem(path, message) for _, message, _ in error.problems]
        except (KeyError, IndexError, TypeError):
            problems.append(Problem(path, f"override {override!r} does not lead to a value"))
        for key in [key for key in lines if key[: len(path)] == path]:
            del lines[key]  # this value no longer comes from that line of the file
        lines[path] = GIVEN_AS_OVERRIDE
    return problems


def _set(tree: Any, path: KeyPath, value: Any) -> None:
    for part in path[:-1]:
        if isinstance(tree, dict):
            if not isinstance(tree.get(part), dict | list):
                tree[part] = {}
            tree = tree[part]
        else:
            tree = tree[part]
    tree[path[-1]] = value


def _parse_value(raw: str, annotation: Any) -> Any:
    """Read an override's text as the field's type, else as YAML (lists, mappings, unknown keys)."""
    accepts_none = annotation is not None and type(None) in get_args(annotation)
    if accepts_none and raw.lower() in ("null", "none", "~", ""):
        return None
    if annotation not in (None, Any):
        try:
            TypeAdapter(annotation).validate_json(json.dumps(raw), strict=True)
            return raw
        except ValidationError:
            pass
    return parse_yaml_value(raw)


def _annotation_at(kind: Any, path: KeyPath) -> Any:
    """Return the type annotation of a dotted path in the schema, or None where there is none."""
    annotation: Any = kind
    for part in path:
        model = next(iter(_models_in(annotation)), None)
        if isinstance(part, int) or model is None:
            arguments = [a for a in get_args(annotation) if a is not Ellipsis]
            annotation = arguments[-1] if arguments else None
        elif part in model.model_fields:
            field = model.model_fields[part]
            annotation = field.annotation
        else:
            return None
    return annotation


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (Union, UnionType):
        return [m for a in get_args(annotation) for m in _models_in(a)]
    return []


def _section_at(kind: Any, path: KeyPath) -> type[BaseModel] | None:
    for length in range(len(path), -1, -1):
        models = _models_in(_annotation_at(kind, path[:length]))
        if models:
            return models[0]
    return None


def _explain(detail: Any, kind: Any, lines: dict[KeyPath, int]) -> Problem:
    """Turn one pydantic error into a sentence: the value, the permitted ones, the nearest key."""
    # pydantic names the member of a union it tried ("ConstantsConfig"); users never wrote that
    *above, last = detail["loc"] or ("",)
    is_own = detail["type"] == "extra_forbidden"  # the last is the user's own key, whatever it is
    key: KeyPath = tuple(
        p
        for p in (*above, last)
        if isinstance(p, int) or (is_own and p is last) or not _is_union_member(str(p))
    )
    line = _line_of(key, lines)
    if detail["type"] == "extra_forbidden" and is_old(key):
        new = ".".join(map(str, new_path(key)))
        return Problem(key, f"is also given as {new}, its present name: keep that one", line)
    if detail["type"] == "extra_forbidden":
        section = _section_at(kind, key[:-1])
        known = list(section.model_fields) if section else []
        close = nearest(str(key[-1]), known)
        if not close and key[:-1] == (SECTION,):
            options = [f"config.{name}" for name in OLD_OPTIONS]
            close = nearest(f"config.{key[-1]}", options)
        message = f"unknown key{close}; known keys here: {', '.join(known)}"
        return Problem(key, message, line)
    if detail["type"] == "missing":
        section = _section_at(kind, key)
        field = section.model_fields.get(str(key[-1])) if section else None
        hint = f" ({field.description})" if field and field.description else ""
        return Problem(key, f"missing, and it has no default{hint}", line)
    allowed = str(detail["msg"]).removeprefix("Input should be ").removeprefix("Value error, ")
    got = detail["input"]
    close = ""
    if detail["type"] == "bool_type" and str(got).lower() in TRUTH_WORDS_OF_YAML_1_1:
        close = "; write true or false"
    if detail["type"] == "literal_error" and isinstance(got, str):
        choices = [str(a) for a in get_args(_annotation_at(kind, key))]
        close = nearest(got, choices)
    shown = without_credentials(got) if isinstance(got, str) else got
    return Problem(key, f"got {shown!r} ({type(got).__name__}), allowed: {allowed}{close}", line)


def _without_echoes(problems: list[Problem]) -> list[Problem]:
    """Drop errors about a whole that pydantic reports only because of a listed error in a part."""
    return [
        p
        for p in problems
        if not any(q.key[: len(p.key)] == p.key and len(q.key) > len(p.key) for q in problems)
    ]


def _is_union_member(part: str) -> bool:
    return part.endswith("Config") or part.startswith(("literal[", "constrained-", "tuple["))


def _line_of(key: KeyPath, lines: dict[KeyPath, int]) -> int | None:
    for length in range(len(key), 0, -1):
        if key[:length] in lines:
            return lines[key[:length]]
    return None


def nearest(name: str, known: Any) -> str:
    """Return "; did you mean …?" if a known name is close, else nothing."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""
