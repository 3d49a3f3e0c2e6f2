"""Runs in directories of other users.

Their jobs name the places of data and records, and so where a reader would send credentials.
Only places that the reader already uses are trusted.
"""

import functools
import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from pelagos.infra.storage.files import read_regular
from pelagos.platform.config.clusters import load_clusters
from pelagos.platform.config.schema import TrainingJob
from pelagos.platform.records.run_files import read_mapping

logger = logging.getLogger(__name__)

TRACKING, ENDPOINT = "tracking.uri", "storage.endpoint_url"
ENDPOINT_VARIABLES = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "PELAGOS_STORAGE_ENDPOINT")
_LOCAL_SCHEMES = ("sqlite:///", "file:", "./")
LOCAL_TRACKING = ("sqlite:", "file:", "/", ".")


# Next to the files of a copy: whence it is, and the digest of the job that this user submitted.
COPY_MARK = ".copy.json"


def is_own_file(path: Path) -> bool:
    """Whether a file is this user's, or root's: who is root here can read all there is.

    A copy from a bucket is whoever's can write there, unless it is the job that this user submitted.
    """
    if path.lstat().st_uid not in (os.geteuid(), 0):
        return False
    if not (path.parent / COPY_MARK).exists():
        return True
    own = read_mapping(path.parent / COPY_MARK).get("own")
    return own == hashlib.sha256(read_regular(path)).hexdigest()


def believed(job: TrainingJob, path: Path, given: tuple[str, ...] = ()) -> TrainingJob:
    """Return the job of the file at `path`, without addresses that only another user names.

    Args:
        given: keys that the reader sets, as overrides.
    """
    if is_own_file(path):
        return job
    owner = _owner(path)
    tracking, endpoint = job.tracking.uri, job.storage.endpoint_url
    if _is_unknown_tracking(tracking) and not is_given(TRACKING, given):
        _warn(str(path), owner, TRACKING, str(tracking), "MLFLOW_TRACKING_URI")
        job = job.model_copy(update={"tracking": job.tracking.model_copy(update={"uri": None})})
    if endpoint is not None and endpoint not in _endpoints() and not is_given(ENDPOINT, given):
        _warn(str(path), owner, ENDPOINT, endpoint, "AWS_ENDPOINT_URL")
        storage = job.storage.model_copy(update={"endpoint_url": None})
        job = job.model_copy(update={"storage": storage})
    return job


def unbelieved(written: TrainingJob, job: TrainingJob) -> list[str]:
    """Return the addresses that a run's file names and that are not used, as `key=value`."""
    pairs = (
        (TRACKING, written.tracking.uri, job.tracking.uri),
        (ENDPOINT, written.storage.endpoint_url, job.storage.endpoint_url),
    )
    return [f"{key}={told}" for key, told, used in pairs if told is not None and used is None]


def _is_unknown_tracking(uri: str | None) -> bool:
    known = {os.environ.get("MLFLOW_TRACKING_URI"), *(c.tracking for c in load_clusters().values())}
    return uri is not None and not _is_below_here(uri) and uri not in known


def _is_below_here(uri: str) -> bool:
    """Whether a store is a file below the directory that the reader is in.

    A path of another user's choice would have MLflow make tables in whatever file of the reader's
    is there.

    >>> [_is_below_here(f"sqlite:///{path}") for path in ("mlflow.db", "/home/me/a.db", "a/../../b.db")]
    [True, False, False]
    """
    path = next((uri.removeprefix(s) for s in _LOCAL_SCHEMES if uri.startswith(s)), None)
    return path is not None and not path.startswith("/") and ".." not in path.split("/")


def _endpoints() -> set[str | None]:
    configured = {config.endpoint_url for config in load_clusters().values()}
    return configured | {os.environ.get(name) for name in ENDPOINT_VARIABLES}


def is_given(key: str, given: Sequence[str]) -> bool:
    """Whether a key, or a section above it, is among those that the reader sets."""
    return any(key == name or key.startswith(f"{name}.") for name in given)


def _owner(path: Path) -> str:
    copied_from = read_mapping(path.parent / COPY_MARK).get("of")
    if copied_from is not None:
        return f"whoever can write to {copied_from}"
    return f"user {path.lstat().st_uid}"


@functools.cache
def _warn(path: str, owner: str, key: str, value: str, variable: str) -> None:
    """Say it once."""
    logger.warning(
        "%s belongs to %s. Its %s %s is ignored, because credentials would be sent or files "
        "written there. Set %s to it if you trust it",
        *(path, owner, key, value, variable),
    )
