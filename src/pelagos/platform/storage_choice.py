"""How a job reaches its object stores: its `storage` section as options, decided once for all verbs."""

from typing import Any

from pelagos.infra.storage.remote import storage_options
from pelagos.platform.config.schema import StorageConfig


def options_for(uri: str, storage: StorageConfig) -> dict[str, Any]:
    """Return fsspec options of `uri` under the job's `storage` section."""
    return storage_options(
        uri, storage.endpoint_url, storage.region, storage.anonymous, storage.backend
    )
