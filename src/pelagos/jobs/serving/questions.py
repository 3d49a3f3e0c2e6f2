"""From a request's body to a question, and from an answer to the body of the same type."""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from pelagos.jobs.serving.answering import Answer, Question
from pelagos.jobs.serving.bodies import (
    JSON,
    NPY,
    NPZ,
    Array,
    array_of_lists,
    as_lists,
    read_json,
    read_npy,
    read_npz,
    write_json,
    write_npy,
    write_npz,
)
from pelagos.jobs.serving.interface import PredictRequest, RolloutRequest, checked
from pelagos.jobs.serving.limits import Limits, Refused

Kind = type[PredictRequest] | type[RolloutRequest]
WARNINGS_HEADER = "Pelagos-Warnings"
_LONGEST_HEADER = 4000
_TEXTS, _NUMBERS = ("absent", "names"), ("lead_time", "steps")


@dataclass(frozen=True)
class Facts:
    """What must be known of the model to read a request."""

    fields: tuple[str, ...]
    grid_axes: int
    time_unit: str


@dataclass(frozen=True)
class Asked:
    """A question, and how its answer is written.

    Attributes:
        by_name: whether each field is an array of its own.
    """

    question: Question
    content_type: str
    by_name: bool
    channels: tuple[str, ...]


def read_question(
    kind: Kind, content_type: str, body: bytes, query: dict[str, Any], limits: Limits, facts: Facts
) -> Asked:
    """Return what a request asks for.

    Raises:
        Refused: 413, 415 or 422.
    """
    try:
        values = _values(content_type, body, query, limits, facts)
        asked = checked(kind, values)
        fields = asked.fields
        by_name = isinstance(fields, dict)
        names = asked.names
        if by_name:
            if names is not None:
                raise ValueError("names: the fields have names already")
            names = list(fields)
            fields = _stacked(fields, facts)
        elif not isinstance(fields, np.ndarray):
            fields = array_of_lists(fields, "fields")
    except ValueError as error:
        raise Refused(422, str(error)) from None
    lead = tuple(asked.lead_time) if isinstance(asked.lead_time, list) else asked.lead_time
    chosen = None if names is None else tuple(names)
    steps = asked.steps if isinstance(asked, RolloutRequest) else None
    question = Question(fields, lead, tuple(asked.absent), chosen, steps)
    return Asked(question, content_type, by_name, chosen or facts.fields)


def _values(
    content_type: str, body: bytes, query: dict[str, Any], limits: Limits, facts: Facts
) -> dict[str, Any]:
    if content_type not in (JSON, NPY, NPZ):
        raise Refused(415, f"Content-Type {content_type[:100]!r}: expected {JSON}, {NPZ} or {NPY}")
    if content_type != NPY and query:
        raise ValueError(
            f"the query has {', '.join(query)}; of {content_type} all belongs into the body"
        )
    if content_type == JSON:
        return read_json(body)
    if content_type == NPY:
        return {"fields": read_npy(body), **query}
    return _of_archive(read_npz(body, limits), facts)


def _of_archive(arrays: dict[str, Array], facts: Facts) -> dict[str, Any]:
    """Return the values of a request: fields as arrays, all else as Python's own."""
    values: dict[str, Any] = {}
    by_name = {}
    for name, array in arrays.items():
        if name in facts.fields:
            by_name[name] = array
        elif name == "fields":
            values[name] = array
        elif name in (*_TEXTS, *_NUMBERS):
            values[name] = np.atleast_1d(array).tolist() if name in _TEXTS else array.tolist()
        else:
            raise ValueError(
                f"the body has an array {name}; expected fields, or one each of "
                f"{', '.join(facts.fields)}, and {', '.join((*_NUMBERS, *_TEXTS))}"
            )
    if by_name and "fields" in values:
        raise ValueError(
            f"the body has fields and also {', '.join(by_name)}: give one or the other"
        )
    return {"fields": by_name, **values} if by_name else values


def _stacked(fields: dict[str, Any], facts: Facts) -> Array:
    """Return one array of fields that were given by name. Raises ValueError: their shapes differ."""
    if not fields:
        raise ValueError(f"fields is empty; the model's are {', '.join(facts.fields)}")
    arrays = [
        value if isinstance(value, np.ndarray) else array_of_lists(value, name)
        for name, value in fields.items()
    ]
    shapes = {array.shape for array in arrays}
    if len(shapes) > 1:
        told = ", ".join(f"{n} {a.shape}" for n, a in zip(fields, arrays, strict=True))
        raise ValueError(f"the fields have different shapes: {told}")
    (shape,) = shapes
    if len(shape) < facts.grid_axes:
        raise ValueError(f"the fields have shape {shape}; the grid has {facts.grid_axes} axes")
    return np.stack(arrays, axis=len(shape) - facts.grid_axes)


def query_values(kind: Kind, items: list[tuple[str, str]]) -> dict[str, Any]:
    """Return what a query says, with the types that `kind` wants.

    Raises:
        Refused: 422, a number is none.
    """
    values: dict[str, Any] = {}
    for key, text in items:
        value: Any = text
        if key in _NUMBERS:
            try:
                value = float(text) if key == "lead_time" else int(text)
            except ValueError:
                raise Refused(
                    422, f"{key}={text[:100]!r} in the query: expected a number"
                ) from None
        values.setdefault(key, []).append(value)
    return {
        key: found[0] if key in _NUMBERS and len(found) == 1 else found
        for key, found in values.items()
    }


def write_answer(asked: Asked, answer: Answer, facts: Facts) -> tuple[bytes, dict[str, str]]:
    """Return the body, in the request's type, and more headers."""
    assert answer.forecast is not None
    forecast, channels = answer.forecast, asked.channels
    axis = forecast.ndim - facts.grid_axes - 1
    parts = (
        {name: forecast.take(n, axis) for n, name in enumerate(channels)} if asked.by_name else {}
    )
    if asked.content_type == JSON:
        said = {
            "forecast": {n: as_lists(a) for n, a in parts.items()} or as_lists(forecast),
            "fields": list(channels),
            "lead_time": list(answer.lead_times),
            "time_unit": facts.time_unit,
            "warnings": list(answer.warnings),
        }
        return write_json(said), {}
    headers = {}
    if answer.warnings:
        told = json.dumps(answer.warnings)  # ASCII, as headers must be
        short = told if len(told) <= _LONGEST_HEADER else '["the request gave long warnings"]'
        headers[WARNINGS_HEADER] = short
    if asked.content_type == NPY:
        return write_npy(forecast), headers
    more = {
        "lead_time": np.asarray(answer.lead_times),
        "warnings": np.asarray(answer.warnings, dtype=np.str_),
    }
    whole = parts or {"forecast": forecast, "fields": np.asarray(channels)}
    return write_npz({**whole, **more}), headers
