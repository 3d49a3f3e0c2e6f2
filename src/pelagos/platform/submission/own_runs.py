"""Which submitted runs are this user's: a list of one's own, beside the records that all can write.

XDG_STATE_HOME/pelagos/submitted/STORAGE/RUN.json   (~/.local/state by default; mode 0600)

A record says who submitted it, which anybody can write. Starting a run again executes the code that
its record names, with the secrets of whoever starts it: only what is listed here is started.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pelagos.infra.files import replace_durably
from pelagos.infra.private_directory import state_directory
from pelagos.platform.submission.record import RunRecord

DIGESTS = ("wheel_sha256", "files_sha256")


def remember(record: RunRecord, first_event: Mapping[str, Any], code: Mapping[str, str]) -> None:
    """Note that a run is this user's, with the code that may be started for it."""
    path = _path(record)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    known = _read(path)
    codes = [] if known is None else known["codes"]
    entry = {
        "storage": record.store.uri,
        "run": record.run,
        "first_event": _digest(first_event),
        "codes": [*codes, [code[key] for key in DIGESTS]],
    }
    replace_durably(path, json.dumps(entry, indent=1).encode(), mode=0o600)


def is_own(record: RunRecord) -> bool:
    """Whether this user submitted the run from here, and its first event is still that one."""
    known = _read(_path(record))
    return known is not None and known["first_event"] == _digest(record.first_event())


def is_own_code(record: RunRecord, code: Mapping[str, str]) -> bool:
    """Whether this user shipped that code for the run."""
    known = _read(_path(record))
    return known is not None and [code[key] for key in DIGESTS] in known["codes"]


def _path(record: RunRecord) -> Path:
    place = hashlib.sha256(record.store.uri.encode()).hexdigest()[:16]
    return state_directory() / "submitted" / place / f"{record.run}.json"


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_bytes())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return found if isinstance(found, dict) and {"first_event", "codes"} <= set(found) else None


def _digest(event: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(event, sort_keys=True).encode()).hexdigest()
