"""Objects read through obstore (the Rust crate object_store): a quarter of s3fs's CPU per range.

`ObstoreStore` is a `RemoteStore` whose reads go through obstore: ranges and whole objects of `s3`,
`gs`, `az` and `http(s)`. Writing, and listing where fsspec does it as well, stay with fsspec. Retries,
deadlines and error words are `RemoteStore`'s; obstore's own retries are off, so that every attempt
is counted and none takes longer than the policy says.

obstore's threads do not survive a fork, and a client made anew in the child hangs like the
inherited one. `open_remote` takes fsspec there instead.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from pelagos.infra.storage.addresses import reject_credentials, reject_empty_parts
from pelagos.infra.storage.hedging import Hedger
from pelagos.infra.storage.read_policy import split_options
from pelagos.infra.storage.remote import (
    S3_SCHEMES,
    Bytes,
    Range,
    RemoteStore,
    StorageError,
    StorageMissingError,
    s3_endpoint,
)
from pelagos.infra.storage.s3_credentials import (
    CredentialProvider,
    Frozen,
    is_virtual_hosted,
    s3_region,
)

HTTP_SCHEMES = ("http", "https")
GOOGLE_SCHEMES = ("gs", "gcs")
AZURE_SCHEMES = ("az", "abfs")
SCHEMES = (*S3_SCHEMES, *GOOGLE_SCHEMES, *AZURE_SCHEMES, *HTTP_SCHEMES)
REQUESTS_AT_ONCE = 16

logger = logging.getLogger(__name__)


class _Process:
    """Whether obstore has run in this process, and whether this is a fork of one where it had."""

    has_run = False
    is_broken = False

    @classmethod
    def forked(cls) -> None:
        cls.is_broken = cls.is_broken or cls.has_run


os.register_at_fork(after_in_child=_Process.forked)


def open_remote(
    uri: str,
    storage_options: dict[str, Any] | None = None,
    *,
    error: type[ValueError] = StorageError,
    missing: type[ValueError] = StorageMissingError,
) -> RemoteStore:
    """A store for a URI by the back end that its options, its scheme and this process allow.

    Raises:
        ValueError: obstore is asked for and does not know the scheme.
    """
    scheme = uri.partition("://")[0]
    backend = split_options(storage_options)[0].backend
    reject_credentials(uri, error)
    reject_empty_parts(uri, error, backend)
    if backend == "obstore" and scheme not in SCHEMES:
        raise ValueError(
            f"{uri}: obstore does not support {scheme}://, only {', '.join(SCHEMES)}; leave the "
            "back end at auto, or use fsspec"
        )
    if backend == "fsspec" or scheme not in SCHEMES:
        return RemoteStore(uri, storage_options, error=error, missing=missing)
    if _Process.is_broken:
        logger.warning(
            "%s: process %d was forked after obstore had run, which obstore does not survive, so "
            "Pelagos reads through fsspec. Start processes by spawn or forkserver",
            uri,
            os.getpid(),
        )
        return RemoteStore(uri, storage_options, error=error, missing=missing)
    return ObstoreStore(uri, storage_options, error=error, missing=missing)


class ObstoreStore(RemoteStore):
    """A `RemoteStore` that reads through obstore. Arguments and errors are the same."""

    def __init__(
        self,
        uri: str,
        storage_options: dict[str, Any] | None = None,
        *,
        error: type[ValueError] = StorageError,
        missing: type[ValueError] = StorageMissingError,
    ) -> None:
        super().__init__(uri, storage_options, error=error, missing=missing)
        reject_empty_parts(uri, error)
        self._client: tuple[Frozen | None, Any] | None = None
        self._hedger = Hedger() if self.policy.hedge else None

    def read(self, key: str) -> bytes:
        import obstore

        def fetch() -> bytes:
            self.counters.add(requests=1)
            return bytes(obstore.get(self._opened(), key).bytes())

        found = self._attempt(key, fetch)
        self.counters.add(bytes_fetched=len(found))
        return found

    def read_ranges(
        self, key: str, ranges: Sequence[Range], scratch: Bytes | None = None
    ) -> list[Bytes]:
        def read() -> list[Bytes]:
            if len(ranges) == 1:
                return [self._read_range(key, *ranges[0])]
            with ThreadPoolExecutor(min(len(ranges), REQUESTS_AT_ONCE)) as pool:
                return list(pool.map(lambda r: self._read_range(key, *r), ranges))

        return self._whole(key, ranges, read)

    def sizes(self, prefix: str = "", expected: Sequence[str] = ()) -> dict[str, int]:
        if self.scheme in HTTP_SCHEMES:
            with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
                found = pool.map(self._size, expected)
                return {
                    k: size for k, size in zip(expected, found, strict=True) if size is not None
                }
        if self.is_s3:
            return super().sizes(prefix)
        return self._attempt(prefix, lambda: self._list(prefix))

    def _read_range(self, key: str, start: int, length: int) -> Bytes:
        import obstore

        def request() -> Any:
            self.counters.add(requests=1)
            return obstore.get_range(self._opened(), key, start=start, length=length)

        def fetch() -> Any:
            if self._hedger is None:
                return request()
            try:
                return self._hedger.call(request, length)
            finally:
                self.counters.hedges = self._hedger.num_hedges

        return np.frombuffer(self._attempt(key, fetch), np.uint8)

    def _size(self, key: str) -> int | None:
        """The size of an object of a server that cannot list, None if there is none."""
        import obstore

        try:
            return self._attempt(key, lambda: int(obstore.head(self._opened(), key)["size"]))
        except self._missing:
            return None

    def _list(self, prefix: str) -> dict[str, int]:
        import obstore

        return {
            str(found["path"]): int(found["size"])
            for page in obstore.list(self._opened(), prefix or None)
            for found in page
        }

    def _opened(self) -> Any:
        """Obstore's client for the credentials now in force.

        Two threads may each make one at first, and one is kept.
        """
        wanted = self._credentials
        known = self._client
        if known is None or known[0] != wanted:
            _Process.has_run = True
            known = self._client = (wanted, self._make_client())
        return known[1]

    def _make_client(self) -> Any:
        from obstore import store

        common: dict[str, Any] = {"retry_config": {"max_retries": 0}}
        if self.scheme in HTTP_SCHEMES:
            return store.HTTPStore(
                self.uri, client_options=self._client_options(self.uri), **common
            )
        bucket, _, prefix = self.prefix.partition("/")
        common["prefix"] = prefix or None
        endpoint = s3_endpoint(self.options) if self.is_s3 else self.options.get("endpoint")
        common["client_options"] = self._client_options(endpoint or "https://")
        if self.is_s3:
            return store.S3Store(bucket, **common, **self._s3_config(bucket, endpoint))
        given = {k: v for k, v in self.options.items() if k not in ("anon", "client_kwargs")}
        if self.scheme in GOOGLE_SCHEMES:
            if "service_account_key" in given:  # it may name an endpoint of its own
                common["client_options"]["allow_http"] = "http://" in str(
                    given["service_account_key"]
                )
            return store.GCSStore(bucket, **common, **given)
        return store.AzureStore(bucket, **common, **given)

    def _client_options(self, endpoint: str) -> Any:
        policy = self.policy
        return {
            # Plain http only where the address itself says so.
            "allow_http": urlsplit(endpoint).scheme == "http",
            "connect_timeout": timedelta(seconds=policy.connect_seconds),
            "read_timeout": timedelta(seconds=policy.attempt_seconds),
            "timeout": timedelta(seconds=policy.deadline_seconds),
        }

    def _s3_config(self, bucket: str, endpoint: str | None) -> dict[str, Any]:
        options = self.options
        config: dict[str, Any] = {
            "region": s3_region(options) or self._region_of(bucket, endpoint),
            "virtual_hosted_style_request": is_virtual_hosted(options),
        }
        if endpoint:
            at = urlsplit(endpoint)
            if config["virtual_hosted_style_request"]:
                endpoint = f"{at.scheme}://{bucket}.{at.netloc}"  # obstore wants it spelled out
            config["endpoint"] = endpoint
        if options.get("anon"):
            return {**config, "skip_signature": True}
        return {**config, "credential_provider": CredentialProvider(options)}

    def _region_of(self, bucket: str, endpoint: str | None) -> str:
        """Where Amazon keeps a bucket: botocore follows a redirect there, obstore does not."""
        if endpoint:
            return "us-east-1"  # servers of one's own rarely care
        try:
            answer = self.filesystem.call_s3("head_bucket", Bucket=bucket)
        except Exception as error:
            answer = getattr(error.__cause__, "response", None) or {}
        headers = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
        return str(headers.get("x-amz-bucket-region", "us-east-1"))
