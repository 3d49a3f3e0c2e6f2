"""Sending a run's records to MLflow, without ever stopping the job.

The run's own files are the buffer: `sync` reads what metrics.jsonl and events.jsonl hold beyond
what MLflow has, and sends it. If the store is away, the next call tries again; nothing is lost
while the files stand. One MLflow run serves all launches of a run.
"""

import json
import logging
import os
import subprocess
import time
from pathlib import Path
from typing import Any

from pelagos import __version__
from pelagos.platform.config.schema import TrainingJob
from pelagos.platform.config.sweep import SweepJob
from pelagos.platform.goodput import goodput, step_time_percentiles
from pelagos.platform.runs import RunDirectory

logger = logging.getLogger(__name__)
RETRY_SECONDS = 15.0
BATCH_METRICS = 900  # MLflow takes at most 1000 metrics in one call
SYNC_SECONDS = 3.0
LAST_STEP_TAG = "pelagos.last_step"
SOURCE_TAG = "pelagos.source."
TAKE_OVER_TAG = "pelagos.take_over."
LAST_EVENT_TAG = "pelagos.last_event"
NOT_METRICS = {"step", "time", "kind", "uri", "launch", "cause"}


def tracking_uri(job: TrainingJob | SweepJob) -> str:
    """Return the job's MLflow uri with a relative SQLite path made absolute; empty if not tracked."""
    prefix = "sqlite:///"
    uri = job.tracking.uri or ""
    if uri.startswith(prefix) and not uri.startswith(prefix + "/"):
        return prefix + str(Path(uri.removeprefix(prefix)).absolute())
    return uri


def artifact_location(job: TrainingJob | SweepJob) -> str | None:
    """Return where artifacts of a new experiment go: beside a SQLite store, else as it decides."""
    uri = tracking_uri(job)
    if not uri.startswith("sqlite:///"):
        return None
    return (Path(uri.removeprefix("sqlite:///")).parent / "mlartifacts").as_uri()


def experiment_id(client: Any, job: TrainingJob | SweepJob) -> str:
    """Return the id of the job's experiment, which is made if there is none."""
    from mlflow.exceptions import MlflowException

    name = job.tracking.experiment
    experiment = client.get_experiment_by_name(name)
    if experiment is not None:
        return str(experiment.experiment_id)
    try:
        return str(client.create_experiment(name, artifact_location=artifact_location(job)))
    except MlflowException:  # another run created it in the meantime
        return str(client.get_experiment_by_name(name).experiment_id)


class Tracker:
    """The MLflow side of one run."""

    def __init__(self, job: TrainingJob, run: RunDirectory, datasets: list[dict[str, Any]]) -> None:
        """`datasets`: name, uri, fingerprint and statistics of each dataset of the mixture."""
        self.job = job
        self.run = run
        self.datasets = datasets
        self.next_try = 0.0
        self.warned = False
        self._client: Any = None
        self._monitor: Any = None
        self.run_id: str | None = None
        # a store that is away must not hold the job up: fail soon, try again later
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")

    def sync(self, force: bool = False) -> bool:
        """Send what is new; return whether the store has everything. Never raises."""
        if self.job.tracking.uri is None:
            return False
        if not force and time.monotonic() < self.next_try:
            return False
        try:
            self._connect()
            self._send_metrics()
            self._send_events()
            self.next_try = time.monotonic() + SYNC_SECONDS
            return True
        except Exception as error:
            self.next_try = time.monotonic() + RETRY_SECONDS
            if not self.warned:
                self.warned = True
                logger.warning(
                    "MLflow at %s does not answer (%s: %s); training goes on, records are kept in "
                    "%s and sent when it does",
                    self.job.tracking.uri,
                    type(error).__name__,
                    str(error).splitlines()[0] if str(error) else "",
                    self.run.path,
                )
            return False

    def finish(self, kind: str) -> None:
        """Send the rest and close the MLflow run: finished, stopped or failed."""
        if self._monitor is not None:
            self._monitor.finish()
        if not self.sync(force=True):
            return
        try:
            summary = step_time_percentiles(self.run.metrics())
            share = goodput(self.run.events(), self.run.metrics())
            if share is not None:
                summary["goodput"] = share
            for name, value in summary.items():
                self._client.log_metric(self.run_id, name, value)
            for name in ("job.yaml", "metrics.jsonl", "events.jsonl"):
                if (self.run.path / name).exists():
                    self._client.log_artifact(self.run_id, str(self.run.path / name), "run")
            status = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}[kind]
            self._client.set_terminated(self.run_id, status)
        except Exception as error:
            logger.warning("MLflow: the end of the run could not be recorded: %s", error)

    def _connect(self) -> None:
        if self.run_id is not None:
            return
        from mlflow import MlflowClient

        uri = tracking_uri(self.job)
        self._client = MlflowClient(tracking_uri=uri)
        known = self.run.path / "tracking.json"
        if known.exists():
            run_id = str(json.loads(known.read_text())["run_id"])
            self._client.update_run(run_id, status="RUNNING")
        else:
            run_id = self._create_run()
            self.run.replace("tracking.json", json.dumps({"uri": uri, "run_id": run_id}))
        tags = self._client.get_run(run_id).data.tags
        self.last_step = int(tags.get(LAST_STEP_TAG, 0))
        self.last_event = int(tags.get(LAST_EVENT_TAG, 0))
        self.run_id = run_id
        self._start_system_metrics(uri, run_id)

    def _start_system_metrics(self, uri: str, run_id: str) -> None:
        """Sample CPU, memory, disk, network and GPU of the driver's machine into the run."""
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        logging.getLogger("mlflow.system_metrics").setLevel(logging.ERROR)
        self._monitor = SystemMetricsMonitor(run_id, resume_logging=True, tracking_uri=uri)
        self._monitor.start()

    def _create_run(self) -> str:
        from mlflow.entities import Param

        experiment = experiment_id(self._client, self.job)
        tags = {"pelagos.version": __version__, "pelagos.code": code_version()}
        tags |= self.job.tracking.tags
        created = self._client.create_run(experiment, run_name=self.run.name, tags=tags)
        run_id = str(created.info.run_id)
        flat = _flatten(self.job.model_dump(mode="json"))
        params = [Param(k, v[:6000]) for k, v in flat.items()]
        for start in range(0, len(params), 100):
            self._client.log_batch(run_id, params=params[start : start + 100])
        self._client.log_text(run_id, (self.run.path / "job.yaml").read_text(), "run/job.yaml")
        self._client.log_inputs(run_id, datasets=[_dataset_input(d) for d in self.datasets])
        return run_id

    def _send_metrics(self) -> None:
        from mlflow.entities import Metric, RunTag

        # a resumed run redoes steps with the same bits, so what was sent once stays right
        new = [r for r in self.run.metrics() if r["step"] > self.last_step]
        every = self.job.tracking.log_every_steps
        metrics = [
            Metric(name, float(value), int(r["time"] * 1000), r["step"])
            for r in new
            if r["step"] % every == 0
            for name, value in r.items()
            if name not in NOT_METRICS
        ]
        for start in range(0, len(metrics), BATCH_METRICS):
            self._client.log_batch(self.run_id, metrics=metrics[start : start + BATCH_METRICS])
        if new:
            self.last_step = new[-1]["step"]
            tag = RunTag(LAST_STEP_TAG, str(self.last_step))
            self._client.log_batch(self.run_id, tags=[tag])

    def _send_events(self) -> None:
        from mlflow.entities import Metric, RunTag

        events = self.run.events()
        new = events[self.last_event :]
        if not new:
            return
        counts = [e["kind"] for e in events]
        metrics = [
            Metric(_event_metric(e["kind"], name), float(value), int(e["time"] * 1000), e["step"])
            for e in new
            for name, value in e.items()
            if name not in NOT_METRICS and isinstance(value, int | float) and "step" in e
        ]
        tags = [RunTag(LAST_EVENT_TAG, str(len(events)))]
        tags += [RunTag(f"pelagos.count.{k}", str(counts.count(k))) for k in sorted(set(counts))]
        tags += [tag for e in new if e["kind"] == "source" for tag in _source_tags(e)]
        taken_over = [e for e in new if e["kind"] == "taken_over"]
        tags += [_take_over_tag(e) for e in taken_over]
        metrics += [m for e in taken_over for m in _changed_settings(e)]
        checkpoints = [e for e in events if e["kind"] == "checkpoint"]
        if checkpoints:
            last = checkpoints[-1]
            tags.append(RunTag("pelagos.checkpoint", f"{last['uri']} step {last['step']}"))
        self._client.log_batch(self.run_id, metrics=metrics, tags=tags)
        self.last_event = len(events)


def _source_tags(event: dict[str, Any]) -> list[Any]:
    """Return where a fine-tuning's weights come from: the parent's run, step and digests."""
    from mlflow.entities import RunTag

    told = {k: v for k, v in event.items() if k not in ("time", "kind")}
    return [
        RunTag(f"{SOURCE_TAG}{key}", value if isinstance(value, str) else json.dumps(value))
        for key, value in told.items()
    ]


def _take_over_tag(event: dict[str, Any]) -> Any:
    """Return where a member of a population goes on from since a step, and with which settings."""
    from mlflow.entities import RunTag

    told = {key: event[key] for key in ("source", "checkpoint", "settings")}
    return RunTag(f"{TAKE_OVER_TAG}{event['step']}", json.dumps(told))


def _changed_settings(event: dict[str, Any]) -> list[Any]:
    """Return the settings that a take-over changed, as metrics at its step."""
    from mlflow.entities import Metric

    return [
        Metric(f"setting.{key}", float(after), int(event["time"] * 1000), event["step"])
        for key, (_, after) in event["settings"].items()
        if isinstance(after, int | float)
    ]


def code_version() -> str:
    """Return the git commit of the code that runs, with `+changes` if edited; else the version."""
    try:
        changed = _git("status", "--porcelain", "--untracked-files=no", ".")
        commit = _git("rev-parse", "HEAD")
    except (OSError, subprocess.SubprocessError):
        return __version__
    return f"{commit}+changes" if changed else commit


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=10,
        check=True,
    ).stdout.strip()


def _event_metric(kind: str, name: str) -> str:
    return name if name.startswith(kind) else f"{kind}_{name}"


def _dataset_input(dataset: dict[str, Any]) -> Any:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    entity = Dataset(
        name=dataset["name"],
        digest=dataset["fingerprint"][:32],
        source_type="zarr",
        source=json.dumps({"uri": dataset["uri"]}),
        profile=json.dumps(dataset["statistics"]),
    )
    return DatasetInput(entity, [InputTag("mlflow.data.context", "training")])


def _flatten(tree: Any, prefix: str = "") -> dict[str, str]:
    if isinstance(tree, dict) and tree:
        items = [(str(k), v) for k, v in tree.items()]
    elif isinstance(tree, list) and any(isinstance(v, dict | list) for v in tree):
        items = [(str(i), v) for i, v in enumerate(tree)]
    else:
        return {prefix.rstrip("."): str(tree)}
    return {k: v for key, value in items for k, v in _flatten(value, f"{prefix}{key}.").items()}


def log_evaluation(
    job: TrainingJob, run: RunDirectory, output: Path, metrics: list[tuple[str, int, float]]
) -> None:
    """Log a report's files and (name, step, value) metrics to the run; a store away is a warning."""
    known = run.path / "tracking.json"
    if job.tracking.uri is None or not known.exists():
        return
    try:
        from mlflow import MlflowClient
        from mlflow.entities import Metric

        client = MlflowClient(tracking_uri=tracking_uri(job))
        run_id = str(json.loads(known.read_text())["run_id"])
        now = int(time.time() * 1000)
        records = [Metric(name, value, now, step) for name, step, value in metrics]
        for start in range(0, len(records), BATCH_METRICS):
            client.log_batch(run_id, metrics=records[start : start + BATCH_METRICS])
        client.log_artifacts(run_id, str(output), f"evaluation/{output.name}")
    except Exception as error:
        logger.warning("MLflow: the evaluation could not be logged: %s", error)
