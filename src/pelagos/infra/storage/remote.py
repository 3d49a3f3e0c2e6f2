"""Object stores through fsspec: S3 through s3fs first, and whatever else fsspec has a file system for.

The one client of Pelagos: datasets and checkpoints go through `RemoteStore`. Failures are sorted
by whether trying again can help. A missing object or a refused credential is reported at
once, with the bucket, the key, the endpoint and where the credentials came from. Everything else
(5xx, 429, resets, time-outs) is tried again with exponential back-off and full jitter until a
deadline. A message never contains a secret, and only the first four characters of a key id.
"""

from __future__ import annotations

import functools
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import fsspec
import numpy as np
import numpy.typing as npt

from pelagos.infra.permanent_error import PermanentError
from pelagos.infra.storage import failures
from pelagos.infra.storage.addresses import BUCKET_SCHEMES, reject_credentials, reject_references
from pelagos.infra.storage.read_policy import (
    OPTION,
    Backend,
    ReadCounters,
    ReadPolicy,
    split_options,
)
from pelagos.infra.storage.s3_credentials import Frozen, current_credentials

logger = logging.getLogger(__name__)

# One attempt at a large file may outlast the deadline; it is still worth these many.
LEAST_ATTEMPTS = 3
FIRST_BACKOFF_SECONDS = 0.1
MAX_BACKOFF_SECONDS = 5.0
# s3fs writes with the same client, and a store may think for long about a finished upload.
WRITING_FACTOR = 1.8
# Longer retries are logged, at most once per store within SECONDS_BETWEEN_WARNINGS.
TOLD_RETRY_SECONDS = 1.0
SECONDS_BETWEEN_WARNINGS = 30.0
S3_SCHEMES = ("s3", "s3a")

Bytes = npt.NDArray[np.uint8]
Range = tuple[int, int]  # offset, length
T = TypeVar("T")


class StorageError(PermanentError, ValueError):
    """An object store that cannot be reached or refuses; names it, and says how to check it."""


class StorageMissingError(StorageError):
    """An object that should exist does not."""


def is_remote(uri: str) -> bool:
    """Return whether `uri` names an object store rather than a local path."""
    return "://" in uri and not uri.startswith("file://")


def storage_options(
    uri: str,
    endpoint_url: str | None = None,
    region: str | None = None,
    anonymous: bool = False,
    backend: Backend = "auto",
) -> dict[str, Any]:
    """Return fsspec options for `uri`; credentials stay in the environment."""
    chosen = {} if backend == "auto" or not is_remote(uri) else {OPTION: {"backend": backend}}
    if uri.partition("://")[0] not in S3_SCHEMES:
        return chosen
    options: dict[str, Any] = {"anon": anonymous, "client_kwargs": {}, **chosen}
    region = region or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if region:
        options["client_kwargs"]["region_name"] = region
    endpoint = endpoint_url or s3_endpoint({})
    if endpoint:
        options["endpoint_url"] = endpoint
    return options


class RemoteStore:
    """Objects under `scheme://bucket/prefix`.

    Args:
        uri: for example `s3://bucket/path/name.zarr`.
        storage_options: passed to the fsspec file system. For S3 the standard environment
            variables count too (`AWS_ENDPOINT_URL_S3`, `AWS_ENDPOINT_URL`, `AWS_ACCESS_KEY_ID`,
            `AWS_SECRET_ACCESS_KEY`, `AWS_PROFILE`, …), and values given here win. The key
            `pelagos` holds a `ReadPolicy`: time-outs, and which client reads.
        error: raised when the store is out of reach, refuses, or gives less than asked for.
        missing: raised when an object does not exist.

    Attributes:
        counters: the cost of reading so far.
    """

    coalesce_gap_bytes = 2**20

    def __init__(
        self,
        uri: str,
        storage_options: dict[str, Any] | None = None,
        *,
        error: type[ValueError] = StorageError,
        missing: type[ValueError] = StorageMissingError,
    ) -> None:
        reject_references(uri, error)
        reject_credentials(uri, error)
        scheme, _, place = uri.partition("://")
        if scheme in BUCKET_SCHEMES and not place.partition("/")[0]:
            raise error(f"{uri} names no bucket: expected {scheme}://BUCKET/PATH")
        self.uri = uri.rstrip("/")
        self.scheme, _, rest = self.uri.partition("://")
        self.prefix = rest if self.scheme in BUCKET_SCHEMES else self.uri
        self.policy, self.options = split_options(storage_options)
        self.counters = ReadCounters()
        self._error, self._missing = error, missing
        self._has_answered = False
        self._last_warning = -SECONDS_BETWEEN_WARNINGS
        self._renewal = threading.Lock()
        self._credentials = current_credentials(self.options) if self._may_renew else None

    @property
    def filesystem(self) -> Any:
        """The fsspec file system for the credentials now in force; made at first use."""
        return open_filesystem(self.scheme, self.options, self.policy, self._credentials)

    @property
    def _may_renew(self) -> bool:
        """Whether credentials come from outside, and may be renewed there."""
        return self.is_s3 and not self.options.get("anon") and not self.options.get("key")

    @property
    def is_s3(self) -> bool:
        return self.scheme in S3_SCHEMES

    def address(self, key: str) -> str:
        return f"{self.uri}/{key}"

    def read(self, key: str) -> bytes:
        # More than one connection makes s3fs ask for the size first: a second request per read.
        options = {"max_concurrency": 1} if self.is_s3 else {}
        path = self._path(key)

        def fetch() -> bytes:
            self.counters.add(requests=1)
            return bytes(self.filesystem.cat_file(path, **options))

        found = self._attempt(key, fetch)
        self.counters.add(bytes_fetched=len(found))
        return found

    def read_ranges(
        self, key: str, ranges: Sequence[Range], scratch: Bytes | None = None
    ) -> list[Bytes]:
        path = self._path(key)

        def fetch() -> list[bytes]:
            self.counters.add(requests=len(ranges))
            if len(ranges) == 1:
                ((start, length),) = ranges
                return [self.filesystem.cat_file(path, start=start, end=start + length)]
            starts = [start for start, _ in ranges]
            ends = [start + length for start, length in ranges]
            paths = [path] * len(ranges)
            return list(self.filesystem.cat_ranges(paths, starts, ends, on_error="raise"))

        def read() -> list[Bytes]:
            return [np.frombuffer(part, np.uint8) for part in self._attempt(key, fetch)]

        return self._whole(key, ranges, read)

    def write(self, key: str, content: bytes) -> None:
        # One put, or one multi-part upload for large objects: both appear whole or not at all.
        self._attempt(key, lambda: self.filesystem.pipe_file(self._path(key), content))

    def create(self, key: str, content: bytes) -> bool:
        """Write an object unless one of that key exists; return whether this call wrote it.

        The store decides between two callers (a put with `If-None-Match: *`). Where an answer was
        lost and the request sent again, the object found is this call's own: contents must differ
        between callers for that to be visible.
        """

        def put() -> bool:
            try:
                self.filesystem.pipe_file(self._path(key), content, mode="create")
            except FileExistsError:
                return False
            except OSError as error:
                if failures.http_status(error) not in (409, 412):
                    raise
                return False
            return True

        return self._attempt(key, put) or self.read(key) == content

    def upload(self, key: str, path: Path) -> None:
        """Send a file from disk: a large one in parts, never whole in memory."""
        self._attempt(key, lambda: self.filesystem.put_file(str(path), self._path(key)))

    def download(self, key: str, path: Path) -> None:
        """Bring an object to disk, in pieces. A failure may leave a part of the file."""
        self._attempt(key, lambda: self.filesystem.get_file(self._path(key), str(path)))

    def copy(self, key: str, new_key: str) -> None:
        """Copy an object within the store."""
        self._attempt(key, lambda: self.filesystem.cp_file(self._path(key), self._path(new_key)))

    def sizes(self, prefix: str = "", expected: Sequence[str] = ()) -> dict[str, int]:
        def list_objects() -> dict[str, int]:
            found = self.filesystem.find(self._path(prefix).rstrip("/"), detail=True)
            start = len(str(self.filesystem._strip_protocol(self.prefix))) + 1
            return {
                name[start:]: int(info["size"])
                for name, info in found.items()
                if info["type"] == "file"
            }

        try:
            return self._attempt(prefix, list_objects)
        except self._missing:
            return {}

    def delete(self, keys: Sequence[str]) -> None:
        def remove(batch: list[str]) -> None:
            try:
                self.filesystem.rm(batch)
            except FileNotFoundError:
                return

        for start in range(0, len(keys), 1000):
            batch = [self._path(key) for key in keys[start : start + 1000]]
            self._attempt(keys[start], lambda batch=batch: remove(batch))  # type: ignore[misc]

    def close(self) -> None:
        """Nothing to close: connections belong to fsspec's event loop."""

    def _path(self, key: str) -> str:
        return f"{self.prefix}/{key}"

    def _whole(
        self, key: str, ranges: Sequence[Range], read: Callable[[], list[Bytes]]
    ) -> list[Bytes]:
        """The parts, each as long as was asked for; a short one is asked for once more.

        Raises the store's error where it is short again.
        """
        parts = read()
        if any(len(part) != length for (_, length), part in zip(ranges, parts, strict=True)):
            self._tell_short(key, ranges, parts)
            self.counters.add(retries=1)
            parts = read()
        for (offset, length), part in zip(ranges, parts, strict=True):
            if len(part) != length:
                raise self._error(
                    f"{self._where(key)} gave {len(part)} bytes from byte {offset}, but {length} "
                    "are needed: the object is cut short"
                )
        self.counters.add(bytes_fetched=sum(length for _, length in ranges))
        return parts

    def _tell_short(self, key: str, ranges: Sequence[Range], parts: list[Bytes]) -> None:
        short = [(r, len(p)) for r, p in zip(ranges, parts, strict=True) if len(p) != r[1]]
        (offset, length), found = short[0]
        logger.warning(
            "%s gave %d bytes from byte %d, but %d are needed: asking once more",
            *(self._where(key), found, offset, length),
        )

    def _attempt(self, key: str, operation: Callable[[], T]) -> T:
        """Run `operation`, trying again while that can help and the deadline allows."""
        started = time.monotonic()
        attempt, is_renewed = 0, False
        while True:
            used = self._credentials
            try:
                result = operation()
            except Exception as error:
                failure = error
            else:
                self._has_answered = True
                self._tell_retries(key, attempt, time.monotonic() - started)
                return result
            if failures.is_refused(failure) and not is_renewed and self._renew_credentials(used):
                is_renewed = True  # and at once again
                continue
            self._raise_if_final(key, failure)
            attempt += 1
            longest = min(FIRST_BACKOFF_SECONDS * 2 ** (attempt - 1), MAX_BACKOFF_SECONDS)
            pause = random.uniform(0, longest)
            self._raise_if_late(key, attempt, time.monotonic() - started, pause, failure)
            self.counters.add(retries=1)
            time.sleep(pause)

    def _raise_if_final(self, key: str, error: Exception) -> None:
        """Raise errors that a retry cannot fix: a missing object, a refusal, a range outside."""
        if failures.is_missing(error):
            raise self._missing(f"{self._where(key)} does not exist") from error
        if failures.is_refused(error):
            raise self._error(
                f"{self._where(key)}: access refused ({failures.summary(error)}); credentials came "
                f"from {credential_source(self.options)}. Check that they are right and may use "
                f"this bucket"
            ) from error
        if isinstance(error, ImportError) or "Protocol not known" in str(error):
            raise self._error(
                f"{self._where(key)}: cannot open {self.scheme}:// here ({error}). Check the "
                "address, or install fsspec's package for it"
            ) from error
        if failures.is_malformed(error):
            raise self._error(f"{self._where(key)} is not a readable key: {error}") from error
        if failures.http_status(error) == 416:
            told = f"{self._where(key)} is cut short: it ends before the bytes that are needed"
            raise self._error(told) from error

    def _raise_if_late(
        self, key: str, attempt: int, spent: float, pause: float, error: Exception
    ) -> None:
        policy = self.policy
        first, later = policy.first_answer_deadline_seconds, policy.deadline_seconds
        limit = later if self._has_answered else first
        is_late = spent + pause + min(policy.connect_seconds, limit / 2) > limit
        if is_late and not (self._has_answered and attempt < LEAST_ATTEMPTS):
            raise self._error(
                f"{self._where(key)}: no success in {attempt} attempts over {spent:.1f} s, "
                f"last: {failures.summary(error)}. Check that the endpoint is right and reachable"
            ) from error

    def _renew_credentials(self, used: Frozen | None) -> bool:
        """Look credentials up anew (temporary ones may have expired).

        Return whether the credentials now differ from those that a request `used`. Of threads refused
        together, one looks.
        """
        if not self._may_renew:
            return False
        with self._renewal:
            if self._credentials != used:  # another thread was here
                return True
            found = current_credentials(self.options)
            if found is None or found == used:
                return False
            logger.info("%s: the credentials changed and are read again", self.uri)
            self._credentials = found
            return True

    def _tell_retries(self, key: str, retries: int, seconds: float) -> None:
        if retries == 0:
            return
        self.counters.add(retry_seconds=seconds)
        now = time.monotonic()
        if seconds > TOLD_RETRY_SECONDS and now - self._last_warning > SECONDS_BETWEEN_WARNINGS:
            self._last_warning = now
            logger.warning(
                "%s: %d retries over %.1f s until an answer (%d retries so far)",
                self._where(key),
                retries,
                seconds,
                self.counters.retries,
            )

    def _where(self, key: str) -> str:
        if not self.is_s3:
            return self.address(key)
        bucket, _, inner = self.prefix.partition("/")
        endpoint = s3_endpoint(self.options) or "AWS (no endpoint given)"
        return f"bucket {bucket!r}, key '{inner}/{key}', endpoint {endpoint}"


def open_filesystem(
    scheme: str,
    options: dict[str, Any],
    policy: ReadPolicy | None = None,
    credentials: Hashable = None,
) -> Any:
    """Return the fsspec file system for the options and the credentials now in the environment.

    fsspec keeps instances by their options alone, so that one made under other credentials in the
    environment would be found again; here the environment is part of the key, and so are the
    credentials found by their owner and the process, for an instance does not survive a fork.
    """
    policy = policy or ReadPolicy()
    environment = tuple(sorted(item for item in os.environ.items() if item[0].startswith("AWS_")))
    frozen = fsspec.utils.tokenize(options)
    known = _known_filesystem(scheme, frozen, environment, policy, credentials, os.getpid())
    if not known:
        prepared = s3_options(options, policy) if scheme in S3_SCHEMES else options
        filesystem = fsspec.filesystem(scheme, **prepared, skip_instance_cache=True)
        if scheme in S3_SCHEMES:
            filesystem.retries = 1  # retrying is done here, with a deadline
        known.append(filesystem)
    return known[0]


@functools.lru_cache(maxsize=16)
def _known_filesystem(*key: Any) -> list[Any]:
    """The place where the file system of this key is kept, empty at first."""
    return []


def credential_source(options: dict[str, Any] | None = None) -> str:
    """Return where the lookup of S3 credentials finds them, without showing them."""
    options = options or {}
    if options.get("anon"):
        return "nowhere (the job asks for anonymous access)"
    if options.get("key"):
        return f"storage_options (key {str(options['key'])[:4]}…)"
    if os.environ.get("AWS_ACCESS_KEY_ID"):
        return f"the environment (AWS_ACCESS_KEY_ID={os.environ['AWS_ACCESS_KEY_ID'][:4]}…)"
    if os.environ.get("AWS_PROFILE"):
        return f"the profile AWS_PROFILE={os.environ['AWS_PROFILE']}"
    return "the default chain (~/.aws, container or instance role): no AWS_ACCESS_KEY_ID is set"


def s3_endpoint(options: dict[str, Any]) -> str | None:
    """The endpoint in force: storage options first, then the standard environment variables."""
    given = options.get("endpoint_url") or options.get("client_kwargs", {}).get("endpoint_url")
    environment = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return given or environment or None


def s3_options(options: dict[str, Any], policy: ReadPolicy | None = None) -> dict[str, Any]:
    """Options for `s3fs.S3FileSystem`: those given, the endpoint, time-outs, no stale listings."""
    policy = policy or ReadPolicy()
    config = {
        "connect_timeout": policy.connect_seconds,
        "read_timeout": WRITING_FACTOR * policy.attempt_seconds,
        "max_pool_connections": 64,
        "retries": {"mode": "standard", "total_max_attempts": 1},
        **options.get("config_kwargs", {}),
    }
    merged: dict[str, Any] = {"use_listings_cache": False, **options}
    merged["config_kwargs"] = config
    endpoint = s3_endpoint(options)
    if endpoint:
        merged["endpoint_url"] = endpoint
    return merged
