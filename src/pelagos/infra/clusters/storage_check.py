"""Whether a storage can be written and read from where this runs."""

import uuid

from pelagos.infra.clusters.schema import ClusterConfig
from pelagos.infra.doctor import Check
from pelagos.infra.storage.local import ObjectStore, open_store
from pelagos.infra.storage.remote import StorageError


def check_storage(config: ClusterConfig) -> Check:
    """Return whether this machine can use a cluster's storage."""
    return check_store(open_store(config.storage, config.endpoint_url, config.region))


def check_store(store: ObjectStore) -> Check:
    """Write, read and remove a small object; also see that a name is given out once only."""
    key = f"checks/{uuid.uuid4().hex}"
    try:
        first = store.create(key, b"first")
        second = store.create(key, b"second")
        content = store.read(key)
        store.delete([key])
    except StorageError as error:
        return Check("storage", False, str(error), "see the message")
    if not first or second or content != b"first":
        return Check(
            "storage",
            False,
            f"{store.uri} lets two writers create the same object",
            "use a store with conditional writes (If-None-Match), such as Amazon S3",
        )
    return Check("storage", True, f"{store.uri}: written, read, removed")
