"""Which project files this user has looked at and trusts: by path and content.

XDG_STATE_HOME/pelagos/trusted.json   (~/.local/state by default; mode 0600)
"""

import hashlib
import json
from pathlib import Path

from pelagos.infra.private_directory import state_directory
from pelagos.infra.storage.files import replace_durably


def trust(path: Path) -> None:
    """Note that a file, as it is now, is trusted."""
    known = _known() | {str(path.resolve()): _digest(path)}
    place = _place()
    place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    replace_durably(place, json.dumps(known, indent=1).encode(), mode=0o600)


def is_trusted(path: Path) -> bool:
    """Whether a file is trusted and has not changed since."""
    return _known().get(str(path.resolve())) == _digest(path)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _place() -> Path:
    return state_directory() / "trusted.json"


def _known() -> dict[str, str]:
    try:
        found = json.loads(_place().read_bytes())
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
    return found if isinstance(found, dict) else {}
