"""Names that MLflow accepts, for names that users chose, and the way back.

MLflow takes letters, digits and `/ _ - . :` and spaces, at most 250 characters, and no name that reads
as another path (`a//b`, `../a`). A dataset called `nu=0.001,seed=3` or a field with `(` is none of
that. Each such name becomes one that is accepted, ending in a digest so that no two become the same,
and a tag of the MLflow run holds the original name.
"""

import hashlib
import posixpath
import re

NAME_TAG = "pelagos.name."  # + accepted name: the original name
MAX_LENGTH = 250
MAX_PARAMETER_LENGTH, MAX_TAG_LENGTH = 6000, 5000
_DIGEST_LENGTH = 6
_NOT_ACCEPTED = re.compile(r"[^/\w.\- :]")


def accepted_name(name: str, max_length: int = MAX_LENGTH) -> str:
    """Return `name` if MLflow accepts it as the key of a metric, parameter or tag, else another.

    >>> accepted_name("loss/ns-sines"), accepted_name("loss/nu=0.001")
    ('loss/ns-sines', 'loss/nu_0.001-15ddae')
    """
    if _is_accepted(name) and len(name) <= max_length:
        return name
    readable = "/".join(
        segment.replace(".", "_") if segment in ("", ".", "..") else segment
        for segment in _NOT_ACCEPTED.sub("_", name).split("/")
    )
    digest = hashlib.sha256(name.encode()).hexdigest()[:_DIGEST_LENGTH]
    kept = readable[: max_length - _DIGEST_LENGTH - 1].strip("/") or "_"
    return f"{posixpath.normpath(kept)}-{digest}"


def _is_accepted(name: str) -> bool:
    normal = posixpath.normpath(name)
    is_path = normal == name and normal != "." and not normal.startswith(("..", "/"))
    return bool(name) and is_path and not _NOT_ACCEPTED.search(name)
