"""Reaching object stores: options from a job's `storage` section, errors that name the remedy."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import fsspec

CONNECT_TIMEOUT_SECONDS = 5
READ_TIMEOUT_SECONDS = 30
MAX_ATTEMPTS = 3


class StorageError(OSError):
    """An object store that cannot be reached or refuses; says which, and what to check."""


def is_remote(uri: str) -> bool:
    """Return whether `uri` names an object store rather than a local path."""
    return "://" in uri and not uri.startswith("file://")


def storage_options(
    uri: str, endpoint_url: str | None = None, region: str | None = None, anonymous: bool = False
) -> dict[str, Any]:
    """Return fsspec options for `uri`; credentials stay in the environment."""
    if not uri.startswith("s3://"):
        return {}
    endpoint = endpoint_url or os.environ.get("AWS_ENDPOINT_URL_S3")
    endpoint = endpoint or os.environ.get("AWS_ENDPOINT_URL")
    client: dict[str, Any] = {}
    region = region or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if region:
        client["region_name"] = region
    options: dict[str, Any] = {
        "anon": anonymous,
        "client_kwargs": client,
        "config_kwargs": {
            "connect_timeout": CONNECT_TIMEOUT_SECONDS,
            "read_timeout": READ_TIMEOUT_SECONDS,
            "retries": {"max_attempts": MAX_ATTEMPTS, "mode": "standard"},
        },
    }
    if endpoint:
        options["endpoint_url"] = endpoint
    return options


def open_filesystem(uri: str, options: dict[str, Any]) -> tuple[Any, str]:
    """Return the fsspec filesystem of `uri` and the path in it; nothing is contacted yet."""
    filesystem, path = fsspec.core.url_to_fs(uri, **options)
    return filesystem, path


@contextmanager
def explained(uri: str, options: dict[str, Any]) -> Iterator[None]:
    """Turn a client library's errors into `StorageError`s that say what to check."""
    try:
        yield
    except FileNotFoundError:
        raise
    except PermissionError as error:
        raise StorageError(
            f"{uri}: access denied by {_endpoint(options)}, with credentials from "
            f"{credential_source()}. Check them and the bucket's policy."
        ) from error
    except Exception as error:
        name = type(error).__name__
        if any(
            word in name for word in ("EndpointConnection", "ConnectTimeout", "ClientConnector")
        ):
            raise StorageError(
                f"{uri}: {_endpoint(options)} cannot be reached ({name}). Check "
                "storage.endpoint_url or AWS_ENDPOINT_URL, and the network."
            ) from error
        if "NoCredentials" in name:
            raise StorageError(
                f"{uri}: no credentials found. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
                "or storage.anonymous: true for a public bucket."
            ) from error
        raise


def credential_source() -> str:
    """Return where the standard lookup finds S3 credentials, without showing them."""
    if os.environ.get("AWS_ACCESS_KEY_ID"):
        return "AWS_ACCESS_KEY_ID in the environment"
    if os.environ.get("AWS_PROFILE"):
        return f"profile {os.environ['AWS_PROFILE']!r} (AWS_PROFILE)"
    return "the default profile or the instance's role"


def _endpoint(options: dict[str, Any]) -> str:
    return str(options.get("endpoint_url") or "the default S3 endpoint")
