"""Reading the small files of a run's directory, which on a shared disk anybody may have written.

A pipe or a device there would never end, and a link would lead elsewhere: only regular files are
read. A file that is not JSON of the expected kind counts as absent, like a line torn when its
process was killed: one bad file of one run must not hide the others.
"""

import json
import math
import os
from pathlib import Path
from typing import Any

from pelagos.infra.json_text import parse_json
from pelagos.infra.storage.files import read_regular

CONTINUATIONS = ("branched", "taken_over")
# Code that shows or sums these reads every one as a number.
_NUMBERS = (
    *("time", "step", "step_seconds", "samples_per_second", "data_stall_fraction"),
    *("num_bytes", "stall_seconds", "background_seconds", "steps_redone"),
)


def read_json(path: Path) -> Any:
    """Return the content of a file of a run.

    Raises:
        FileNotFoundError: it is absent.
        OSError: it is no regular file, or cannot be read.
        ValueError: it is no JSON.
    """
    content = read_regular(path)
    try:
        return parse_json(content)
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from error


def read_mapping(path: Path) -> dict[str, Any]:
    """Return the mapping that a file of a run holds; an empty one where it holds none."""
    try:
        found = read_json(path)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def append_line(path: Path, record: dict[str, Any]) -> None:
    """Append a record in one write of one line.

    A killed process leaves at most one torn last line, which reading skips.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
    with os.fdopen(os.open(path, flags, 0o666), "a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the steps' values in a file of lines, in order."""
    return [record for record in _records(path, 0) if is_step(record)]


def read_last_metrics(path: Path, count: int) -> list[dict[str, Any]]:
    """Return the last steps' values, reading only the end of the file."""
    try:
        start = max(0, path.lstat().st_size - 4096 * (count + 1))
    except OSError:
        return []
    return [record for record in _records(path, start) if is_step(record)][-count:]


def read_events(path: Path) -> list[dict[str, Any]]:
    """Return the events in a file of lines, in order."""
    return [record for record in _records(path, 0) if is_event(record)]


def _records(path: Path, start: int) -> list[dict[str, Any]]:
    try:
        lines = read_regular(path, start).splitlines()
    except OSError:
        return []
    return [record for line in lines if (record := parsed_record(line)) is not None]


def parsed_record(line: bytes) -> dict[str, Any] | None:
    """Return the record in a line; None where it holds none."""
    try:
        record = parse_json(line)
    except ValueError:
        return None
    if not isinstance(record, dict):
        return None
    are_numbers = all(_is_number(record, key) for key in _NUMBERS if key in record)
    return record if are_numbers else None


def is_step(record: dict[str, Any]) -> bool:
    """Whether a record is of a step."""
    return isinstance(record.get("step"), int)


def is_event(record: dict[str, Any]) -> bool:
    """Whether a record is an event with the keys that its kind needs."""
    kind = record.get("kind")
    if not isinstance(kind, str) or not _is_number(record, "time"):
        return False
    if kind in ("validation", "checkpoint") and not is_step(record):
        return False
    if kind == "validation":  # no number where the run diverged
        return isinstance(record.get("validation_loss"), int | float)
    if kind == "checkpoint":
        return isinstance(record.get("uri"), str)
    return kind not in CONTINUATIONS or is_continuation(record)


def is_continuation(record: Any) -> bool:
    """Whether a record names the source from which a run continues at a step, and the settings."""
    if not isinstance(record, dict):
        return False
    settings = record.get("settings")
    return (
        isinstance(record.get("step"), int)
        and isinstance(record.get("source"), str)
        and isinstance(record.get("checkpoint"), str)
        and isinstance(record.get("identities", []), list)
        and isinstance(settings, dict)
        and all(isinstance(change, list) and len(change) == 2 for change in settings.values())
    )


def _is_number(record: dict[str, Any], key: str) -> bool:
    value = record.get(key)
    if value is None or isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < 2**63 if isinstance(value, int) else math.isfinite(value)
