"""Addresses that can never be read or written down, rejected before the first request."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, urlsplit

REFERENCE_SCHEME = "reference"
# Azure's container@account, which names a place.
CONTAINER_SCHEMES = ("abfs", "abfss", "az", "adl", "wasb", "wasbs")
BUCKET_SCHEMES = ("s3", "s3a", "gs", "gcs", "az", "abfs")


def reject_references(uri: str, error: type[ValueError]) -> None:
    """Raise `error` for kerchunk's references, which are a view of other files.

    Reading through them would have none of the checks that the files themselves get: a reference to
    bytes that are gone reads as the fill value.
    """
    if uri.partition("://")[0] == REFERENCE_SCHEME:
        raise error(
            f"{uri}: Pelagos does not read kerchunk references. Name the files that they refer to, "
            "or write their arrays as one Zarr first: xarray.open_dataset(REFERENCES, "
            "engine='kerchunk').to_zarr('NEW.zarr')"
        )


def reject_empty_parts(uri: str, error: type[ValueError], backend: str = "auto") -> None:
    """Raise `error` for `s3://bucket//name` and `s3://bucket/a//b`.

    S3 keeps such keys apart from those with one slash. obstore reads the object of the other name
    for the first, and rejects the second whenever it is asked. Only with fsspec as the chosen back
    end are they passed.
    """
    scheme, _, place = uri.partition("://")
    if scheme not in BUCKET_SCHEMES or backend == "fsspec" or "//" not in place.rstrip("/"):
        return
    raise error(
        f"{uri} has an empty part between two slashes. That key differs from the one with a single "
        "slash, and obstore cannot read it. Write one slash. If the object really has this name, "
        "read it through fsspec where the storage allows it (storage: backend: fsspec), or copy it "
        "to another key"
    )


# Names of credentials in the query of an address of a store or server.
_SECRET_NAMES = re.compile(
    r"token|secret|sig(nature)?$|passw|pwd|credential|auth|api.?key|access.?key|^key$|^sas$|^s[ev]$",
    re.IGNORECASE,
)
_LONGEST_PLAIN_VALUE = 24  # longer ones look like secrets, whatever they are called
_REMEDY = (
    "job files, records and logs keep addresses. Put credentials into the environment instead "
    "(MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_PASSWORD, PGUSER, PGPASSWORD, AWS_…), or into the "
    "cluster's secrets_file"
)


def reject_credentials(uri: str, error: type[ValueError] = ValueError) -> str:
    """Return an address; raise `error` where it holds a user's name, a password or a token."""
    what = _credentials_in(uri)
    if what:
        raise error(f"{without_credentials(uri)} holds {what}, and {_REMEDY}")
    return uri


def without_credentials(uri: str) -> str:
    """An address for messages, with `…` in place of credentials.

    >>> without_credentials("https://me:pass@host/path?token=abc&part=1")
    'https://…@host/path?token=…&part=1'
    """
    head, separator, rest = uri.partition("://")
    if not separator:
        return uri
    place, slash, path = rest.partition("/")
    if "@" in place and head not in CONTAINER_SCHEMES:
        place = "…@" + place.rpartition("@")[2]
    path, mark, query = path.partition("?")
    parts = [_shown_part(part) for part in query.split("&")] if mark else []
    return f"{head}://{place}{slash}{path}{mark}{'&'.join(parts)}"


def _credentials_in(uri: str) -> str:
    """The credential in an address; empty: none."""
    if "://" not in uri:
        return ""
    try:
        parts = urlsplit(uri)
    except ValueError:  # no address: said elsewhere
        return ""
    if "@" in parts.netloc and parts.scheme not in CONTAINER_SCHEMES:
        return "a password" if ":" in parts.netloc.rpartition("@")[0] else "a user's name"
    for name, value in parse_qsl(parts.query):
        if _is_secret(name, value):
            return f"a secret ({name})"
    return ""


def _is_secret(name: str, value: str) -> bool:
    return bool(value) and (
        _SECRET_NAMES.search(name) is not None or len(value) > _LONGEST_PLAIN_VALUE
    )


def _shown_part(part: str) -> str:
    name, equals, value = part.partition("=")
    return f"{name}{equals}{'…' if _is_secret(name, value) else value}"
