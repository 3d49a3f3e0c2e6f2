"""Object stores through fsspec: S3 through s3fs first, and whatever else fsspec has a file system for.

The one client of Pelagos: datasets and checkpoints go through `RemoteStore`. Failures are told
apart by whether trying again can help. A missing object or a refused credential is reported at
once, with the bucket, the key, the endpoint and where the credentials came from. Everything else
(5xx, 429, resets, time-outs) is tried again with exponential back-off and full jitter until a
deadline. Secrets never stand in a message, and of a key id only its first four characters.
"""

from __future__ import annotations

import functools
import os
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import fsspec
import numpy as np
import numpy.typing as npt

CONNECT_TIMEOUT_SECONDS = 3.0
READ_TIMEOUT_SECONDS = 10.0
# Until a first answer came, the endpoint may not exist: give up sooner than after.
FIRST_ANSWER_DEADLINE_SECONDS = 10.0
DEADLINE_SECONDS = 60.0
# One attempt at a large file may outlast the deadline; it is still worth these many.
LEAST_ATTEMPTS = 3
FIRST_BACKOFF_SECONDS = 0.1
MAX_BACKOFF_SECONDS = 5.0
S3_SCHEMES = ("s3", "s3a")

Bytes = npt.NDArray[np.uint8]
Range = tuple[int, int]  # offset, length
T = TypeVar("T")


class StorageError(ValueError):
    """An object store that cannot be reached or refuses; says which, and what to check."""


class StorageMissingError(StorageError):
    """An object that should exist does not."""


def is_remote(uri: str) -> bool:
    """Return whether `uri` names an object store rather than a local path."""
    return "://" in uri and not uri.startswith("file://")


def storage_options(
    uri: str, endpoint_url: str | None = None, region: str | None = None, anonymous: bool = False
) -> dict[str, Any]:
    """Return fsspec options for `uri`; credentials stay in the environment."""
    if uri.partition("://")[0] not in S3_SCHEMES:
        return {}
    options: dict[str, Any] = {"anon": anonymous, "client_kwargs": {}}
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
            `AWS_SECRET_ACCESS_KEY`, `AWS_PROFILE`, …), and what is given here wins.
        error: raised when the store is out of reach, refuses, or gives less than asked for.
        missing: raised when an object does not exist.
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
        self.uri = uri.rstrip("/")
        self.scheme, _, rest = self.uri.partition("://")
        self.prefix = rest if self.scheme in ("s3", "s3a", "gs", "gcs", "az", "abfs") else self.uri
        self.options = dict(storage_options or {})
        self._error, self._missing = error, missing
        self._has_answered = False
        self.filesystem = open_filesystem(self.scheme, self.options)

    @property
    def is_s3(self) -> bool:
        return self.scheme in S3_SCHEMES

    def address(self, key: str) -> str:
        return f"{self.uri}/{key}"

    def read(self, key: str) -> bytes:
        # More than one connection makes s3fs ask for the size first: a second request per read.
        options = {"max_concurrency": 1} if self.is_s3 else {}
        path = self._path(key)
        return bytes(self._attempt(key, lambda: self.filesystem.cat_file(path, **options)))

    def read_ranges(
        self, key: str, ranges: Sequence[Range], scratch: Bytes | None = None
    ) -> list[Bytes]:
        path = self._path(key)

        def fetch() -> list[bytes]:
            if len(ranges) == 1:
                ((start, length),) = ranges
                return [self.filesystem.cat_file(path, start=start, end=start + length)]
            starts = [start for start, _ in ranges]
            ends = [start + length for start, length in ranges]
            found = self.filesystem.cat_ranges([path] * len(ranges), starts, ends, on_error="raise")
            return list(found)

        parts = self._attempt(key, fetch)
        for (offset, length), part in zip(ranges, parts, strict=True):
            if len(part) != length:
                raise self._error(
                    f"{self.address(key)} gave {len(part)} bytes from byte {offset} where "
                    f"{length} are needed: the object is cut short"
                )
        return [np.frombuffer(part, np.uint8) for part in parts]

    def write(self, key: str, content: bytes) -> None:
        # One put, or one multi-part upload for large objects: both appear whole or not at all.
        self._attempt(key, lambda: self.filesystem.pipe_file(self._path(key), content))

    def create(self, key: str, content: bytes) -> bool:
        """Write an object unless one of that key exists; return whether this call wrote it.

        The store decides between two callers (a put with `If-None-Match: *`). Where an answer was
        lost and the request sent again, the object found is this call's own: contents must differ
        between callers for that to be told.
        """

        def put() -> bool:
            try:
                self.filesystem.pipe_file(self._path(key), content, mode="create")
            except FileExistsError:
                return False
            except OSError as error:
                if http_status(error) not in (409, 412):
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

    def sizes(self, prefix: str = "") -> dict[str, int]:
        def list_objects() -> dict[str, int]:
            found = self.filesystem.find(self._path(prefix).rstrip("/"), detail=True)
            start = len(self._stripped(self.prefix)) + 1
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

    def _stripped(self, path: str) -> str:
        return str(self.filesystem._strip_protocol(path))

    def _attempt(self, key: str, operation: Callable[[], T]) -> T:
        """Run `operation`, trying again while that can help and the deadline allows."""
        started = time.monotonic()
        attempt = 0
        while True:
            try:
                result = operation()
                self._has_answered = True
                return result
            except Exception as error:
                if is_missing(error):
                    raise self._missing(f"{self._where(key)} does not exist") from error
                if is_refused(error):
                    raise self._error(
                        f"{self._where(key)}: access refused ({summary(error)}); credentials came "
                        f"from {credential_source(self.options)}. Check that they are right and may use "
                        f"this bucket"
                    ) from error
                attempt += 1
                limit = DEADLINE_SECONDS if self._has_answered else FIRST_ANSWER_DEADLINE_SECONDS
                ceiling = min(FIRST_BACKOFF_SECONDS * 2 ** (attempt - 1), MAX_BACKOFF_SECONDS)
                pause = random.uniform(0, ceiling)
                spent = time.monotonic() - started
                is_late = spent + pause + CONNECT_TIMEOUT_SECONDS > limit
                if is_late and not (self._has_answered and attempt < LEAST_ATTEMPTS):
                    raise self._error(
                        f"{self._where(key)}: no success in {attempt} attempts over {spent:.1f} s, "
                        f"last: {summary(error)}. Check that the endpoint is right and reachable"
                    ) from error
                time.sleep(pause)

    def _where(self, key: str) -> str:
        if not self.is_s3:
            return self.address(key)
        bucket, _, inner = self.prefix.partition("/")
        endpoint = s3_endpoint(self.options) or "AWS (no endpoint given)"
        return f"bucket {bucket!r}, key '{inner}/{key}', endpoint {endpoint}"


def open_filesystem(scheme: str, options: dict[str, Any]) -> Any:
    """Return the fsspec file system for the options and the credentials now in the environment.

    fsspec keeps instances by their options alone, so that one made under other credentials in the
    environment would be found again; here the environment is part of the key, and so is the
    process, for an instance does not survive a fork.
    """
    environment = tuple(sorted(item for item in os.environ.items() if item[0].startswith("AWS_")))
    frozen = fsspec.utils.tokenize(options)
    known = _known_filesystem(scheme, frozen, environment, os.getpid())
    if not known:
        prepared = s3_options(options) if scheme in S3_SCHEMES else options
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
        return "nowhere (anonymous access asked for)"
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


def s3_options(options: dict[str, Any]) -> dict[str, Any]:
    """Options for `s3fs.S3FileSystem`: those given, the endpoint, time-outs, no stale listings."""
    config = {
        "connect_timeout": CONNECT_TIMEOUT_SECONDS,
        "read_timeout": READ_TIMEOUT_SECONDS,
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


def is_missing(error: BaseException) -> bool:
    return isinstance(error, FileNotFoundError) or http_status(error) == 404


def is_refused(error: BaseException) -> bool:
    """Whether the credentials are at fault, so that trying again cannot help."""
    if isinstance(error, PermissionError) or http_status(error) in (401, 403):
        return True
    return type(error).__name__ in (
        "NoCredentialsError",
        "PartialCredentialsError",
        "ProfileNotFound",
    )


def http_status(error: BaseException) -> int | None:
    """The status code that botocore recorded in an exception or in its cause."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        code = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return None if code is None else int(code)
    return None if error.__cause__ is None else http_status(error.__cause__)


def summary(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".strip().splitlines()[0][:300]
