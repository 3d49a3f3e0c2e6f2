"""The MLflow side of a sweep: one parent run, whose children are the trials. Never stops a sweep."""

import json
import logging
import uuid
from pathlib import Path
from typing import Any

from pelagos.infra.storage.files import replace_durably
from pelagos.platform.config.load import resolve_yaml
from pelagos.platform.config.sweep import SweepJob
from pelagos.platform.mlflow_records.artifacts import log_own_files, tracking_client
from pelagos.platform.mlflow_records.description import origin_tags
from pelagos.platform.mlflow_records.names import accepted_name
from pelagos.platform.mlflow_records.store import create_run_once, experiment_id, tracking_uri
from pelagos.platform.records.run_files import read_mapping

logger = logging.getLogger(__name__)
PARENT_TAG = "mlflow.parentRunId"
SWEEP_TAG = "pelagos.sweep"
SWEEP_GROUP = "sweep/"
RECORD_NAME = "tracking.json"


def open_parent(sweep: SweepJob, directory: Path) -> str | None:
    """Return the id of the sweep's MLflow run, a new one or an earlier launch's; None without."""
    if sweep.tracking.uri is None:
        return None
    try:
        client = _client(sweep)
        record = directory / RECORD_NAME
        known = read_mapping(record)
        if "run_id" in known:
            client.update_run(str(known["run_id"]), status="RUNNING")
            return str(known["run_id"])
        if "request" not in known:
            known = {"request": uuid.uuid4().hex}
            replace_durably(record, json.dumps(known).encode())
        tags = origin_tags(sweep, directory)
        tags |= {accepted_name(k): v for k, v in sweep.tracking.tags.items()}
        tags[SWEEP_TAG] = sweep.name
        experiment = experiment_id(client, sweep)
        run_id = create_run_once(client, experiment, sweep.name, known["request"], tags)
        # kept before anything else can fail: an unrecorded run has no children
        text = json.dumps({"uri": tracking_uri(sweep), "run_id": run_id})
        replace_durably(record, text.encode())
        _log_job(client, run_id, sweep)
        return run_id
    except Exception as error:
        logger.warning("MLflow: could not record the sweep: %s", error)
        return None


def _log_job(client: Any, run_id: str, sweep: SweepJob) -> None:
    try:
        client.log_text(run_id, resolve_yaml(sweep), "sweep.yaml")
    except Exception as error:  # the place of artifacts is another than that of the runs
        logger.warning("MLflow: could not record the sweep's job file: %s", error)


def adopt_children(sweep: SweepJob, run_id: str | None) -> None:
    """Make the trials' MLflow runs, which began before the sweep's own, its children."""
    if run_id is None:
        return
    try:
        client = _client(sweep)
        wanted = f"tags.`{SWEEP_TAG}` = '{sweep.name}'"
        for run in client.search_runs([experiment_id(client, sweep)], wanted):
            if run.info.run_id != run_id:
                client.set_tag(run.info.run_id, PARENT_TAG, run_id)
    except Exception as error:
        logger.warning("MLflow: could not put the trials under their sweep: %s", error)


def close_parent(
    sweep: SweepJob, run_id: str | None, directory: Path, metrics: dict[str, float], ok: bool
) -> None:
    """Log the report and the best trial's values; close the sweep's MLflow run."""
    if run_id is None:
        return
    try:
        client = _client(sweep)
        for name, value in metrics.items():
            client.log_metric(run_id, accepted_name(f"{SWEEP_GROUP}{name}"), value)
        names = ("sweep.json", "sweep.png", "schedules.png", "rates.png", "report.html")
        log_own_files(client, run_id, directory, "sweep", names)
        client.set_terminated(run_id, "FINISHED" if ok else "FAILED")
    except Exception as error:
        logger.warning("MLflow: could not record the end of the sweep: %s", error)


def child_tags(sweep: SweepJob, run_id: str | None) -> dict[str, str]:
    """Return the tags that make a trial's MLflow run a child of the sweep's."""
    return {SWEEP_TAG: sweep.name, **({PARENT_TAG: run_id} if run_id is not None else {})}


def _client(sweep: SweepJob) -> Any:
    return tracking_client(tracking_uri(sweep))
