"""The durable record of a submitted run: events in order, from which its state follows.

STORAGE/records/RUN/events/00000000.json   submitted: by whom, to which cluster, the whole job
                    events/00000001.json   … one object per event, never changed, never removed

Event n exists only if event n-1 does, and is written with a create that two writers cannot both
win: so the sequence is one order that everyone sees, and the first event is the claim of the name.
"""

import contextlib
import getpass
import json
import re
import socket
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pelagos.infra.signatures import Sign, digest_of, signed_text, unsigned
from pelagos.infra.storage.local import ObjectStore
from pelagos.infra.storage.remote import StorageError
from pelagos.jobs.submission.records.events import MOST_BYTES, MOST_TEXT, SUBMITTING, parse_event
from pelagos.jobs.submission.records.summary import Progress, Summary, encoded, parse_summary
from pelagos.platform.records.known_runs import known_runs
from pelagos.platform.records.states import State

RECORDS = "records"
NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
# The state after each kind of event; other kinds leave it unchanged.
STATE_AFTER = {
    "submitted": State.SUBMITTED,
    "queued": State.QUEUED,
    "started": State.STARTING,
    "running": State.RUNNING,
    "preempted": State.PREEMPTED,
    "retried": State.QUEUED,
    "resubmitted": State.SUBMITTED,
    "failed": State.FAILED,
    "stopped": State.STOPPED,
    "cancelled": State.CANCELLED,
    "finished": State.FINISHED,
}


class RecordError(ValueError):
    """A submitted run that does not exist, whose name is taken, or whose record is none.

    Gives the remedy.
    """


@dataclass(frozen=True)
class RunState:
    """The state that follows from a record's events.

    The run waits for those of `after` to finish, and for those of `after_ended` to end in any way.
    """

    run: str
    state: State
    cluster: str
    attempt: int
    restarts: int
    priority: int
    after: tuple[str, ...]
    retries: int
    after_ended: tuple[str, ...] = ()
    handle: dict[str, Any] = field(default_factory=dict)
    where: str = ""
    cause_kind: str = ""
    cause: str = ""
    stop: str = ""
    micro_batch_size: int | None = None
    """What the run has shrunk its micro-batches to, as they did not fit."""
    submitted_by: str = ""
    submitted_at: float = 0.0
    updated_at: float = 0.0
    reason: str = ""

    @property
    def has_ended(self) -> bool:
        """Whether the run goes no further by itself."""
        return self.state.has_ended


class RunRecord:
    """Reads and appends to one run's record.

    Raises:
        RecordError: from the constructor, if `run` is not a legal name: one path component.
    """

    def __init__(self, store: ObjectStore, run: str) -> None:
        if not NAME_PATTERN.fullmatch(run):
            raise RecordError(
                f"{run!r} is not a valid run name. Use at most 100 letters, digits, '.', '_' and "
                "'-', and begin with a letter or digit"
            )
        self.store, self.run = store, run
        self._known: dict[str, dict[str, Any]] = {}
        self._seen: list[dict[str, Any]] = []
        self._progress: Progress | None = None

    def claim(self, job_yaml: str, sign: Sign = unsigned, **details: Any) -> dict[str, Any]:
        """Begin the record and return its first event: of several who claim a name, one succeeds.

        Raises:
            RecordError: the name is taken; says by whom and since when.
        """
        event = self._submitting("submitted", job_yaml, sign, details)
        if not self.store.create(self._key(0), _encoded(event)):
            first = self.events()[0]
            when = time.strftime("%Y-%m-%d %H:%M", time.localtime(first["time"]))
            raise RecordError(
                f"run {self.run!r} already exists: submitted by {first['by']} from {first['host']} "
                f"at {when}. `pelagos resume {self.run}` continues it; a new run needs another name "
                "(name=OTHER)"
            )
        self._known[self._key(0)] = event
        self._summarise(1)
        return event

    def submit_again(self, job_yaml: str, sign: Sign = unsigned, **details: Any) -> dict[str, Any]:
        """Add the event that submits the run once more, with all that it is started with; return it."""
        return self._add(self._submitting("resubmitted", job_yaml, sign, details))

    def submitting_event(
        self, digest: str | None = None, events: Sequence[dict[str, Any]] | None = None
    ) -> dict[str, Any]:
        """Return the newest event that submits the run, or the one of this digest.

        A second copy of one does not count: copying an event does not submit the run
        again. `events` are those of the record, where they were read already.

        Raises:
            RecordError: there is none of that digest: somebody has exchanged it.
        """
        found: dict[str, dict[str, Any]] = {}
        for event in self._require() if events is None else events:
            if event["kind"] in SUBMITTING:
                found.setdefault(digest_of(event), event)
        if digest is None:
            return list(found.values())[-1]
        if digest not in found:
            raise RecordError(
                f"the record of run {self.run!r} in {self.store.uri} does not match the submission "
                f"that started this process (sha256 {digest}): somebody exchanged it. Submit the "
                "run under another name"
            )
        return found[digest]

    def job_yaml(self) -> str:
        """Return the resolved job as it was submitted last."""
        return str(self.submitting_event()["job"])

    def append(self, kind: str, **details: Any) -> dict[str, Any]:
        """Add an event at the end, after whatever others add at the same time."""
        return self._add(_event(kind, details))

    def _add(self, event: dict[str, Any]) -> dict[str, Any]:
        number = len(self.events())
        while not self.store.create(self._key(number), _encoded(event)):
            number += 1
        self._known[self._key(number)] = event
        self._summarise(number + 1)
        return event

    def _submitting(
        self, kind: str, job_yaml: str, sign: Sign, details: dict[str, Any]
    ) -> dict[str, Any]:
        """Return an event that submits the run, signed, as it will be read."""
        told = {"by": _user(), "host": socket.gethostname(), **details}
        event = parse_event(_encoded({**_event(kind, told), "job": job_yaml}), 1, f"run {self.run}")
        signature = sign(signed_text(self.store.uri, self.run, event))
        return {**event, "signature": signature} if signature else event

    def append_if(self, expected_events: int, kind: str, **details: Any) -> bool:
        """Add an event only if the record has exactly `expected_events`; return whether it did.

        This lets exactly one of several watchers act on an event that all saw.
        """
        event = _event(kind, details)
        if not self.store.create(self._key(expected_events), _encoded(event)):
            return False
        self._known[self._key(expected_events)] = event
        self._summarise(expected_events + 1)
        return True

    def note_progress(self, progress: Progress) -> None:
        """Let lists show how far the run is; a gap in a list is no reason to fail."""
        if progress != self._progress:
            self._progress = progress
            self._summarise(len(self._seen))

    def summary(self) -> Summary | None:
        """Return the run's entry in a list, None where it has none."""
        try:
            return parse_summary(self.store.read(self._summary_key()))
        except StorageError:
            return None

    def _summarise(self, num_events: int) -> None:
        """Write the summary of the events, if all were read."""
        known = [self._known.get(self._key(number)) for number in range(num_events)]
        events = [event for event in known if event is not None]
        if not events or len(events) < num_events:
            return
        with contextlib.suppress(StorageError, ValueError):
            state = replay(self.run, events)
            keys = ("state", "cluster", "submitted_by", "submitted_at", "updated_at")
            summary = Summary(
                num_events=num_events,
                **{key: getattr(state, key) for key in keys},
                reason=state.reason,
                cause=state.cause,
                progress=self._progress or self._progress_before(),
            )
            self.store.write(self._summary_key(), encoded(summary))

    def _progress_before(self) -> Progress:
        before = self.summary()
        return before.progress if before is not None else Progress()

    def _summary_key(self) -> str:
        return f"{RECORDS}/{self.run}/summary.json"

    def events(self) -> list[dict[str, Any]]:
        """Return every event in order. Those read before are not read again: events never change.

        Raises:
            RecordError: one is none.
        """
        prefix = f"{RECORDS}/{self.run}/events"
        return self.events_among(self.store.sizes(prefix))

    def events_among(self, sizes: Mapping[str, int]) -> list[dict[str, Any]]:
        """Return this run's events among a listing's keys, as far as they follow each other."""
        found: list[dict[str, Any]] = []
        while (key := self._key(len(found))) in sizes:
            if key not in self._known:
                self._known[key] = self._read(key, len(found), sizes[key])
            found.append(self._known[key])
        self._seen = found
        return found

    def seen(self) -> list[dict[str, Any]]:
        """Return the events as they were last listed, without asking the storage.

        Raises:
            RecordError: there were none.
        """
        return self._seen or self._require()

    def _read(self, key: str, number: int, size: int) -> dict[str, Any]:
        where = f"{self.store.uri}/{key}"
        if size > MOST_BYTES:
            raise RecordError(f"{where} has {size:,} bytes; an event has at most {MOST_BYTES:,}")
        try:
            return parse_event(self.store.read(key), number, where)
        except ValueError as error:
            raise RecordError(str(error)) from error

    def state(self) -> RunState:
        """Return the state after all events. Raises `RecordError` where there is no such run."""
        return replay(self.run, self._require())

    def seen_state(self) -> RunState:
        """Return the state after the events that were last listed."""
        return replay(self.run, self.seen())

    def exists(self) -> bool:
        """Return whether the name is claimed, from one listing."""
        return self._key(0) in self.store.sizes(f"{RECORDS}/{self.run}/events")

    def _require(self) -> list[dict[str, Any]]:
        events = self.events()
        if not events:
            known = known_runs(self.run, num_events_by_run(self.store.sizes(RECORDS)))
            raise RecordError(f"no submitted run {self.run!r} in {self.store.uri}; {known}")
        return events

    def _key(self, number: int) -> str:
        return f"{RECORDS}/{self.run}/events/{number:08d}.json"


def list_records(
    store: ObjectStore, known: Mapping[str, RunRecord] | None = None
) -> list[RunRecord]:
    """Return every record of a storage, by name, with one listing.

    Those of `known` are returned themselves, so that events they have read are not read again. One
    that cannot be read raises when its state is asked for, not here.
    """
    keys = store.sizes(RECORDS)
    records = []
    for run in sorted({key.split("/")[1] for key in keys if key.count("/") >= 3}):
        if NAME_PATTERN.fullmatch(run):
            record = (known or {}).get(run) or RunRecord(store, run)
            with contextlib.suppress(RecordError):
                record.events_among(keys)
            records.append(record)
    return records


def num_events_by_run(keys: Mapping[str, int]) -> dict[str, int]:
    """Return how many events each run of a listing of the records has."""
    counts: dict[str, int] = {}
    for key in keys:
        run = key.split("/")[1]
        if key.count("/") >= 3 and NAME_PATTERN.fullmatch(run):
            counts[run] = counts.get(run, 0) + 1
    return counts


def replay(run: str, events: list[dict[str, Any]]) -> RunState:
    """Return the state that a sequence of events leads to. Pure."""
    first = events[0]
    values: dict[str, Any] = {
        "run": run,
        "state": "submitted",
        "attempt": 0,
        "restarts": 0,
        "handle": {},
        "submitted_by": first["by"],
        "submitted_at": first["time"],
    }
    begun = started = -1  # the attempt that has said it runs, and the last that was started
    for event in events:
        kind = event["kind"]
        if kind == "queued" and event.get("attempt") == started:
            continue  # the queue had started it before its submitter could record that it waits
        if kind == "started":
            started = event.get("attempt", started)
        # a run may be quicker than the one who started it is at saying so
        is_late = kind in ("started", "queued") and event.get("attempt") == begun
        if not is_late:
            values["state"] = STATE_AFTER.get(kind, values["state"])
        values["updated_at"] = event["time"]
        for key in ("handle", "where", "cause", "cause_kind", "reason", "attempt"):
            if key in event:
                values[key] = event[key]
        if kind in SUBMITTING:
            values |= {key: event[key] for key in ("cluster", "priority", "retries")}
            values |= {key: tuple(event.get(key, ())) for key in ("after", "after_ended")}
            values |= {"micro_batch_size": None}
        if kind in ("retried", *SUBMITTING):
            values |= {"cause": "", "cause_kind": "", "stop": ""}
        if kind == "retried":
            values["restarts"] += 1
            values["micro_batch_size"] = event.get("micro_batch_size", values["micro_batch_size"])
        if kind == "stop_requested":
            values["stop"] = "now" if event.get("now") else "save"
        if kind == "running":
            values["reason"] = ""
            begun = event.get("attempt", begun)
    return RunState(**values)


def _event(kind: str, details: dict[str, Any]) -> dict[str, Any]:
    # an error's text may be of any length, and an unreadable one is of no use
    short = {k: v[:MOST_TEXT] if isinstance(v, str) else v for k, v in details.items()}
    return {"id": uuid.uuid4().hex, "time": time.time(), "kind": kind, **short}


def _encoded(event: dict[str, Any]) -> bytes:
    return json.dumps(event, indent=1).encode()


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"
