"""Which submitted runs are this user's: a private list, apart from the records that all can write.

XDG_STATE_HOME/pelagos/submitted/STORAGE/RUN.json   (~/.local/state by default; mode 0600)

A record says who submitted it, which anybody can write. Starting a run again executes the code that
its record names, with the starter's secrets: only runs listed here are started.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pelagos.infra.private_directory import state_directory
from pelagos.infra.signatures import digest_of
from pelagos.infra.storage.files import replace_durably
from pelagos.jobs.submission.records.events import SUBMITTING
from pelagos.jobs.submission.records.record import RunRecord


def remember(record: RunRecord, event: Mapping[str, Any]) -> None:
    """Note that this user has submitted a run, or has submitted it again, with this event."""
    path = _path(record)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    entry = {
        "storage": record.store.uri,
        "run": record.run,
        "events": [*_digests(path), digest_of(event)],
    }
    replace_durably(path, json.dumps(entry, indent=1).encode(), mode=0o600)


def own_events(record: RunRecord) -> list[dict[str, Any]]:
    """Return the events of this user's that submit the run, in the order in which they were written.

    Those that the record holds; empty unless the newest of the record is this user's newest.

    Otherwise, removing or exchanging events could cause an earlier submission to start again.
    """
    found: dict[str, dict[str, Any]] = {}
    for event in record.events():
        if event["kind"] in SUBMITTING:
            found.setdefault(digest_of(event), event)  # a second copy of one submits nothing
    own = _digests(_path(record))
    if list(found)[-1:] != own[-1:]:
        return []
    return [event for digest, event in found.items() if digest in own]


def was_submitted(record: RunRecord) -> bool:
    """Whether this user has submitted a run of this name to this storage from here, ever."""
    return bool(_digests(_path(record)))


def is_own(record: RunRecord) -> bool:
    """Whether this user was the last to submit the run, from here."""
    return bool(own_events(record))


def _path(record: RunRecord) -> Path:
    place = hashlib.sha256(record.store.uri.encode()).hexdigest()[:16]
    return state_directory() / "submitted" / place / f"{record.run}.json"


def _digests(path: Path) -> list[str]:
    try:
        found = json.loads(path.read_bytes())
    except (FileNotFoundError, json.JSONDecodeError):
        return []
    events = found.get("events") if isinstance(found, dict) else None
    return events if isinstance(events, list) else []
