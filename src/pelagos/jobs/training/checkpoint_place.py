"""Whose a place of checkpoints is: a run claims the one it names, and finds another's claim there.

OWNER next to the checkpoints says which run writes there. It is created conditionally, so of two runs
that begin at the same time one wins.
"""

import json
import os
import socket
from typing import Any

from pelagos.infra.json_text import parse_json
from pelagos.infra.storage.local import DirectoryStore, ObjectStore
from pelagos.infra.storage.remote import RemoteStore, StorageError, StorageMissingError, is_remote
from pelagos.jobs.training.datasets import options_for
from pelagos.platform.checkpoint import CheckpointStore
from pelagos.platform.config.load import ConfigError, Problem
from pelagos.platform.config.schema import TrainingJob
from pelagos.platform.records.runs import RunDirectory, RunError

OWNER = "owner.json"


def check_free(job: TrainingJob, identity: str | None) -> None:
    """Reject an object store that cannot be reached, and a place that is another run's.

    Raises:
        ConfigError: before anything is made.
    """
    if job.checkpoint.uri is None:
        return
    uri = RunDirectory(os.path.join(job.runs_dir, job.name)).checkpoint_uri_of(job)
    problem = ""
    try:
        owner = _owner(_store(uri, job))
        found = CheckpointStore(uri, options_for(uri, job.storage)).complete()
        if owner is not None and owner.get("run") == identity:
            return
        if owner is not None:
            problem = f"{uri} is where {_described(owner)} keeps its checkpoints"
        elif found:
            steps = ", ".join(str(info.step) for info in found)
            problem = f"{uri} holds checkpoints of another run (steps {steps})"
    except StorageError as error:
        raise _refused(job, str(error)) from error
    if problem:
        raise _refused(job, f"{problem}; choose another name")


def claim(job: TrainingJob, run: RunDirectory) -> None:
    """Make the run's checkpoint place its own, unless it is already.

    Raises:
        RunError: it is another run's.
        StorageError: the place cannot be reached.
    """
    identity = run.identities[0]
    if job.checkpoint.uri is None or not identity:
        return
    uri = run.checkpoint_uri_of(job)
    store = _store(uri, job)
    where = f"{socket.gethostname()}:{run.path}"
    content = json.dumps({"run": identity, "name": run.name, "directory": where})
    if store.create(OWNER, content.encode()):
        return
    owner = _owner(store)
    if owner is not None and owner.get("run") != identity:
        raise RunError(
            f"{uri} is where {_described(owner)} keeps its checkpoints: two runs cannot share it. "
            f"Give this run another name or checkpoint.uri"
        )


def _refused(job: TrainingJob, problem: str) -> ConfigError:
    return ConfigError(f"job {job.name}", [Problem(("checkpoint", "uri"), problem)])


def _described(owner: dict[str, Any]) -> str:
    return f"another run, {owner.get('name')} in {owner.get('directory')},"


def _store(uri: str, job: TrainingJob) -> ObjectStore:
    return (
        RemoteStore(uri, options_for(uri, job.storage)) if is_remote(uri) else DirectoryStore(uri)
    )


def _owner(store: ObjectStore) -> dict[str, Any] | None:
    try:
        found = parse_json(store.read(OWNER))
    except StorageMissingError:
        return None
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
