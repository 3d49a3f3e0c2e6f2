"""One event of a run's record, as anybody with access to the storage may have written it.

Events are read as data: of the right types and sizes, or an error. Nothing in an event says where a
cluster is, what is run there or which secret is used; see `submission.following`.
"""

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pelagos.infra.json_text import first_problem

# A whole job with its overrides takes some kilobytes.
MOST_BYTES = 2**20

MOST_TEXT = 20_000
# Of lists and mappings in each other; a cluster's configuration has three.
MOST_DEPTH = 50

# Kinds of events that submit a run: one such event holds everything needed to start it.
SUBMITTING = ("submitted", "resubmitted")

Text = Annotated[str, Field(max_length=MOST_TEXT)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
Count = Annotated[int, Field(ge=0, le=10**9)]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class _Needs(_Part):
    num_workers: Annotated[int, Field(ge=1, le=10**6)] = 1
    cpus_per_worker: Annotated[int, Field(ge=1, le=10**4)] = 1
    gpus_per_worker: Annotated[int, Field(ge=0, le=10**3)] = 0


class _Code(_Part):
    wheel_uri: Text
    wheel_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    files_uri: Text
    files_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Event(BaseModel):
    """The keys that Pelagos reads; an event may hold others, which nothing uses."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    id: Text = ""
    time: Annotated[float, Field(ge=0, le=1e11)]
    kind: Annotated[str, Field(pattern=r"^[a-z_]{1,40}$")]
    by: Text = ""
    host: Text = ""
    job: Annotated[str, Field(max_length=MOST_BYTES)] = ""
    cluster: Name = "-"
    cluster_config: dict[str, Any] = {}
    needs: _Needs = _Needs()
    code: _Code | None = None
    priority: Annotated[int, Field(ge=-1000, le=1000)] = 0
    retries: Count = 0
    attempt: Count = 0
    step: Count | None = None
    after: Annotated[list[Name], Field(max_length=10_000)] = []
    after_ended: Annotated[list[Name], Field(max_length=10_000)] = []
    uses_ray: bool = True
    handle: Annotated[dict[str, str | int | bool | None], Field(max_length=20)] = {}
    where: Text = ""
    cause: Text = ""
    cause_kind: Text = ""
    reason: Text = ""
    overrides: Annotated[list[Text], Field(max_length=1000)] = []
    from_step: Text = ""
    micro_batch_size: Annotated[int, Field(ge=1, le=10**6)] | None = None
    now: bool = False
    signature: Annotated[str, Field(max_length=64)] = ""


class _Submitting(_Event):
    """An event that submits a run, which has all that the run needs."""

    kind: Literal["submitted", "resubmitted"]
    by: Text
    host: Text
    job: Annotated[str, Field(max_length=MOST_BYTES)]
    cluster: Name
    priority: Annotated[int, Field(ge=-1000, le=1000)]
    retries: Count
    after: Annotated[list[Name], Field(max_length=10_000)]


class _First(_Submitting):
    """The event that a record begins with."""

    kind: Literal["submitted"]


def parse_event(content: bytes, number: int, where: str) -> dict[str, Any]:
    """Return an event; `number` 0 is the first one of a record.

    Raises:
        ValueError: it is no event of Pelagos; names its address, the key and what was expected.
    """
    if len(content) > MOST_BYTES:
        raise ValueError(f"{where} has {len(content):,} bytes; an event has at most {MOST_BYTES:,}")
    try:
        tree = json.loads(content, parse_constant=_refuse_constant)
        if not isinstance(tree, dict):
            raise ValueError(f"expected a JSON object, found {type(tree).__name__}")
        printable: dict[str, Any] = _printable(tree, MOST_DEPTH)
        _model_of(printable, number).model_validate(printable)
    except ValidationError as error:
        raise ValueError(
            f"{where} is not an event of a record: {first_problem(error, 'the event')}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not an event of a record: {error}") from error
    return printable


def _model_of(event: dict[str, Any], number: int) -> type[_Event]:
    if number == 0:
        return _First
    return _Submitting if event.get("kind") in SUBMITTING else _Event


def printable(value: Any) -> Any:
    """Return JSON's values without control characters. Raises `ValueError`: too deeply nested."""
    return _printable(value, MOST_DEPTH)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _printable(value: Any, depth: int) -> Any:
    """Text without control characters, which a terminal would obey. A job keeps its lines.

    Raises:
        ValueError: it is nested deeper than `depth`.
    """
    if depth < 0:
        raise ValueError(f"nested more than {MOST_DEPTH} levels deep")
    if isinstance(value, str):
        is_clean = value.isprintable()
        return (
            value
            if is_clean
            else "".join(c if c.isprintable() or c in "\n\t" else "�" for c in value)
        )
    if isinstance(value, list):
        return [_printable(part, depth - 1) for part in value]
    if isinstance(value, dict):
        return {_printable(k, 0): _printable(part, depth - 1) for k, part in value.items()}
    return value
