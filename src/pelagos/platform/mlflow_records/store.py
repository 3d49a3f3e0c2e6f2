"""Which MLflow store and run a job's records go to; checked before anything is trained.

`tracking.json` in a run's directory says which MLflow run is its own. Another one is made where the
job names another store, where the run was deleted, and for a branch; earlier ones stay listed.

Creating an MLflow run is safe to repeat: a key is kept before the first attempt and travels as a tag in
the creating call, so a run whose answer was lost is found by it.
"""

import contextlib
import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pelagos.platform.config.load import ConfigError, Problem
from pelagos.platform.config.schema import TrainingJob
from pelagos.platform.config.sweep import SweepJob
from pelagos.platform.records.run_files import read_mapping
from pelagos.platform.records.runs import RunDirectory

TRACKING_RECORD = "tracking.json"
REQUEST_TAG = "pelagos.request"
KIND_TAG, MODEL_TRAINING = "mlflow.experimentKind", "custom_model_development"  # opens on runs
_SQLITE = "sqlite:///"


@dataclass(frozen=True)
class RecordedRun:
    """The MLflow run of a run; `uri` is the store's, absolute."""

    uri: str
    run_id: str


def tracking_uri(job: TrainingJob | SweepJob) -> str:
    """Return the job's MLflow uri with a relative SQLite path made absolute; empty if not tracked."""
    uri = job.tracking.uri or ""
    if uri.startswith(_SQLITE) and not uri.startswith(_SQLITE + "/"):
        return _SQLITE + str(Path(uri.removeprefix(_SQLITE)).absolute())
    return uri


def artifact_location(uri: str) -> str | None:
    """Return where artifacts of a new experiment go: next to a SQLite store, else as it decides."""
    if not uri.startswith(_SQLITE):
        return None
    return (Path(uri.removeprefix(_SQLITE)).parent / "mlartifacts").as_uri()


def experiment_id(client: Any, job: TrainingJob | SweepJob) -> str:
    """Return the id of the job's experiment, which is made if there is none."""
    from mlflow.exceptions import MlflowException

    name = job.tracking.experiment
    experiment = client.get_experiment_by_name(name)
    if experiment is not None:
        if KIND_TAG not in experiment.tags:
            client.set_experiment_tag(experiment.experiment_id, KIND_TAG, MODEL_TRAINING)
        return str(experiment.experiment_id)
    location = artifact_location(tracking_uri(job))
    try:
        tags = {KIND_TAG: MODEL_TRAINING}
        return str(client.create_experiment(name, artifact_location=location, tags=tags))
    except MlflowException:  # another run created it in the meantime
        return str(client.get_experiment_by_name(name).experiment_id)


def create_run_once(
    client: Any, experiment: str, name: str, key: str, tags: Mapping[str, str]
) -> str:
    """Return the id of the MLflow run that was created with `key`, creating it if there is none.

    An answer can be lost after the store has acted, and MLflow's client repeats a request by itself:
    of several runs with the key the first is kept, and the others, which no process knows, are deleted.
    """
    wanted = f"tags.`{REQUEST_TAG}` = '{key}'"
    in_order = ["attributes.start_time ASC"]
    found = client.search_runs([experiment], wanted, order_by=in_order)
    if not found:
        created = client.create_run(experiment, run_name=name, tags={**tags, REQUEST_TAG: key})
        found = client.search_runs([experiment], wanted, order_by=in_order) or [created]
    first, *others = found
    for other in others:
        client.delete_run(other.info.run_id)
    return str(first.info.run_id)


def request_key(run: RunDirectory) -> str:
    """Return the key of the next MLflow run of `run`: the same until that is recorded."""
    known = _record(run)
    if "request" not in known:
        known["request"] = uuid.uuid4().hex
        run.replace(TRACKING_RECORD, json.dumps(known))
    return str(known["request"])


def recorded_run(job: TrainingJob, run: RunDirectory) -> RecordedRun | None:
    """Return the MLflow run that the records of `run` go to, or None where a new one is needed.

    Others may have written the record: it names no server that the job does not.
    """
    known = _record(run)
    if "run_id" not in known:
        return None
    wanted = tracking_uri(job)
    uri = str(known.get("uri", wanted))
    # a relative path means the store it meant when the run began, from whatever directory since
    is_same = known.get("given", job.tracking.uri) == job.tracking.uri and (
        uri == wanted or (wanted != (job.tracking.uri or "") and uri.startswith(_SQLITE))
    )
    if uri == wanted or is_same:
        return RecordedRun(uri, str(known["run_id"]))
    return None


def record_run(job: TrainingJob, run: RunDirectory, recorded: RecordedRun) -> None:
    """Make an MLflow run the one of `run`; the one before stays listed as `earlier`."""
    earlier = _all_runs(run)
    content = {"uri": recorded.uri, "given": job.tracking.uri, "run_id": recorded.run_id}
    run.replace(
        TRACKING_RECORD, json.dumps({**content, **({"earlier": earlier} if earlier else {})})
    )


def part_with_run(run: RunDirectory) -> None:
    """Let the next records of `run` go to a new MLflow run; the one before stays listed."""
    if _record(run):
        run.replace(TRACKING_RECORD, json.dumps({"earlier": _all_runs(run)}))


def earlier_runs(run: RunDirectory) -> list[dict[str, Any]]:
    """Return the MLflow runs that were the run's before its present one: uri and run_id of each."""
    return _earlier(_record(run))


def check_tracking(job: TrainingJob) -> None:
    """Reject settings that would keep every record from a reachable MLflow store.

    A store that does not answer is no reason: records are kept and sent later.

    Raises:
        ConfigError: the experiment was deleted.
    """
    uri = tracking_uri(job)
    is_absent = uri.startswith(_SQLITE) and not Path(uri.removeprefix(_SQLITE)).exists()
    if not uri or is_absent:
        return
    from mlflow import MlflowClient

    experiment = None
    with contextlib.suppress(Exception):  # the tracker says so, and tries again
        experiment = MlflowClient(tracking_uri=uri).get_experiment_by_name(job.tracking.experiment)
    if experiment is not None and experiment.lifecycle_stage == "deleted":
        message = (
            f"experiment {job.tracking.experiment!r} was deleted in {uri}: restore it (`mlflow "
            f"experiments restore --experiment-id {experiment.experiment_id}`, with "
            f"MLFLOW_TRACKING_URI={uri}) or choose another (tracking.experiment=OTHER)"
        )
        raise ConfigError(f"job {job.name}", [Problem(("tracking", "experiment"), message)])


def _all_runs(run: RunDirectory) -> list[dict[str, Any]]:
    """Return every MLflow run of `run`, the present one last."""
    known = _record(run)
    earlier = _earlier(known)
    known.pop("earlier", None)
    known.pop("request", None)
    return [*earlier, known] if "run_id" in known else earlier


def _earlier(known: Mapping[str, Any]) -> list[dict[str, Any]]:
    told = known.get("earlier")
    entries = told if isinstance(told, list) else []
    return [entry for entry in entries if isinstance(entry, dict) and "run_id" in entry]


def _record(run: RunDirectory) -> dict[str, Any]:
    return read_mapping(run.path / TRACKING_RECORD)
