"""Who submitted a run: the digest of an event, and its signature with a secret that others lack.

Everyone with access to a storage can write events there. A run's process receives the digest of the
event that submits it from its starter; a Ray cluster's queue, which finds runs by their records
alone, asks for a signature with the cluster's token, so that it starts for those who could start it
there themselves.
"""

import hashlib
import hmac
import json
from collections.abc import Callable, Mapping
from typing import Any

SIGNATURE = "signature"
Sign = Callable[[bytes], str]


def unsigned(text: bytes) -> str:
    """Sign nothing: the run's process is started by its submitter, or receives the digest."""
    return ""


def digest_of(event: Mapping[str, Any]) -> str:
    """Return the sha256 of an event, signature and all."""
    return hashlib.sha256(_canonical(event)).hexdigest()


def signed_text(storage: str, run: str, event: Mapping[str, Any]) -> bytes:
    """Return the signed bytes: the event and its place, so that a copy elsewhere does not count."""
    told = {key: value for key, value in event.items() if key != SIGNATURE}
    return _canonical({"storage": storage, "run": run, "event": told})


def signature_with(token: str, text: bytes) -> str:
    """Return the HMAC-SHA256 (RFC 2104) of a text with a key that is derived from a token."""
    key = hashlib.sha256(b"pelagos records\0" + token.encode()).digest()
    return hmac.new(key, text, hashlib.sha256).hexdigest()


def is_signed(token: str, storage: str, run: str, event: Mapping[str, Any]) -> bool:
    """Whether an event was signed by somebody who holds the token."""
    expected = signature_with(token, signed_text(storage, run, event))
    return hmac.compare_digest(expected, str(event.get(SIGNATURE, "")))


def _canonical(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True).encode()
