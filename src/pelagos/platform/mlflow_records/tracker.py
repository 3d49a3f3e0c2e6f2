"""Sending a run's records to MLflow, without ever stopping the job.

The run's own files are the buffer: `sync` reads the records of metrics.jsonl and events.jsonl that
MLflow lacks, and sends them. If the store is away, the next call tries again; nothing is lost
while the files exist. One MLflow run serves all launches of a run.
"""

import json
import logging
import math
import os
import time
from pathlib import Path
from typing import Any

from pelagos.infra.storage.files import read_regular
from pelagos.platform.config.schema import TrainingJob
from pelagos.platform.mlflow_records.artifacts import log_own_files, tracking_client
from pelagos.platform.mlflow_records.description import (
    NOTE_TAG,
    description_with_report,
    given_parameters,
    origin_tags,
)
from pelagos.platform.mlflow_records.events import (
    changed_settings,
    not_undone,
    source_tags,
    take_over_tag,
)
from pelagos.platform.mlflow_records.groups import evaluation_metric, event_metric, step_metric
from pelagos.platform.mlflow_records.names import (
    MAX_PARAMETER_LENGTH,
    MAX_TAG_LENGTH,
    NAME_TAG,
    accepted_name,
)
from pelagos.platform.mlflow_records.store import (
    RecordedRun,
    create_run_once,
    earlier_runs,
    experiment_id,
    record_run,
    recorded_run,
    request_key,
    tracking_uri,
)
from pelagos.platform.records.record_tail import Mark
from pelagos.platform.records.run_records import WORKER_FAILED
from pelagos.platform.records.runs import BRANCHED, RunDirectory
from pelagos.platform.records.states import MLFLOW_STATUS, State

logger = logging.getLogger(__name__)
RETRY_SECONDS = 15.0
BATCH_METRICS = 900  # MLflow takes at most 1000 metrics in one call
SYNC_SECONDS = 3.0
LAST_STEP_TAG = "pelagos.last_step"
LAST_EVENT_TAG = "pelagos.last_event"
LAST_DROPPED_TAG = "pelagos.last_dropped"
EARLIER_TAG = "pelagos.earlier_run"
NOT_METRICS = {"step", "time", "kind", "uri", "launch", "cause"}


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
        self.recorded: RecordedRun | None = None
        self._metrics, self._redone = run.tail_of_metrics(), run.tail_of_redone()
        self._events_tail = run.tail_of_events()
        self._events: list[dict[str, Any]] = []
        self._dropped: dict[int, dict[str, Any]] = {}
        """Values of steps that were dropped, not yet compared with those made anew (`_remade`)."""
        self._remade: dict[int, dict[str, Any]] = {}
        self._num_pending = self._to_skip = 0
        self._renamed: dict[str, str] = {}
        self._untold_names = False
        # a store that is away must not hold the job up: fail soon, try again later
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")

    @property
    def run_id(self) -> str | None:
        """The MLflow run's id, once the store has answered."""
        return None if self.recorded is None else self.recorded.run_id

    def sync(self, force: bool = False) -> bool:
        """Send new records; return whether the store has everything. Never raises."""
        if self.job.tracking.uri is None:
            return False
        if not force and time.monotonic() < self.next_try:
            return False
        try:
            self._connect()
            self._send_metrics()
            self._send_events()
            self._send_names()
            self.next_try = time.monotonic() + SYNC_SECONDS
            return True
        except Exception as error:
            self.next_try = time.monotonic() + RETRY_SECONDS
            if not self.warned:
                self.warned = True
                logger.warning(
                    "MLflow at %s does not answer (%s: %s). Training continues; records are kept "
                    "in %s and sent once it answers",
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
            times = self.run.followed_times().now()
            summary, share = times.percentiles(), times.goodput()
            if share is not None:
                summary["goodput"] = share
            for name, value in summary.items():
                self._client.log_metric(self.run_id, step_metric(name), value)
            names = ("job.yaml", "metrics.jsonl", "events.jsonl", "curves.png")
            log_own_files(self._client, str(self.run_id), self.run.path, "run", names)
            self._client.set_terminated(self.run_id, MLFLOW_STATUS[State(kind)])
        except Exception as error:
            logger.warning("MLflow: could not record the end of the run: %s", error)

    def _connect(self) -> None:
        if self.recorded is not None:
            return
        recorded = recorded_run(self.job, self.run)
        if recorded is not None and not self._continue(recorded):
            recorded = None
        if recorded is None:
            recorded = RecordedRun(tracking_uri(self.job), "")
            self._client = tracking_client(recorded.uri)
            recorded = RecordedRun(recorded.uri, self._create_run())
            self._describe(recorded.run_id)  # may fail: then the same run is found and described
            record_run(self.job, self.run, recorded)
        tags = self._client.get_run(recorded.run_id).data.tags
        self.last_step = int(tags.get(LAST_STEP_TAG, 0))
        self.last_event = int(tags.get(LAST_EVENT_TAG, 0))
        # an MLflow run that is new holds nothing of the steps that were redone before it
        dropped = len(self.run.redone_metrics()) if LAST_STEP_TAG not in tags else 0
        self.last_dropped = int(tags.get(LAST_DROPPED_TAG, dropped))
        self._to_skip = self.last_dropped
        self.recorded = recorded
        self._start_system_metrics(recorded.uri, recorded.run_id)

    def _continue(self, recorded: RecordedRun) -> bool:
        """Open the run's own MLflow run again; return whether it is still there."""
        from mlflow.exceptions import MlflowException

        self._client = tracking_client(recorded.uri)
        try:
            found = self._client.get_run(recorded.run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            found = None
        if found is None or found.info.lifecycle_stage == "deleted":
            logger.warning(
                "the MLflow run %s of %s was deleted in %s: a new one receives all its records",
                recorded.run_id,
                self.run.name,
                recorded.uri,
            )
            return False
        self._client.update_run(recorded.run_id, status="RUNNING")
        return True

    def _start_system_metrics(self, uri: str, run_id: str) -> None:
        """Sample CPU, memory, disk, network and GPU of the driver's machine into the run."""
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        logging.getLogger("mlflow.system_metrics").setLevel(logging.ERROR)
        self._monitor = SystemMetricsMonitor(run_id, resume_logging=True, tracking_uri=uri)
        self._monitor.start()

    def _create_run(self) -> str:
        experiment = experiment_id(self._client, self.job)
        tags = origin_tags(self.job, self.run.path)
        tags |= {self._name(k): v[:MAX_TAG_LENGTH] for k, v in self.job.tracking.tags.items()}
        earlier = earlier_runs(self.run)
        tags |= {EARLIER_TAG: earlier[-1]["run_id"]} if earlier else {}
        key = request_key(self.run)
        return create_run_once(self._client, experiment, self.run.name, key, tags)

    def _describe(self, run_id: str) -> None:
        """Record the run's parts; records of an earlier attempt stay."""
        from mlflow.entities import Param

        known = self._client.get_run(run_id).data.params
        flat = given_parameters(self.job.model_dump(mode="json"))
        named = {self._name(k): v[:MAX_PARAMETER_LENGTH] for k, v in flat.items()}
        params = [Param(k, v) for k, v in named.items() if k not in known]
        for start in range(0, len(params), 100):
            self._client.log_batch(run_id, params=params[start : start + 100])
        text = read_regular(self.run.path / "job.yaml").decode()
        self._client.log_text(run_id, text, "run/job.yaml")
        self._client.log_inputs(run_id, datasets=[_dataset_input(d) for d in self.datasets])

    def _name(self, name: str) -> str:
        """Return the name under which MLflow takes something, noting where it is another one."""
        accepted = accepted_name(name)
        if accepted != name and accepted not in self._renamed:
            self._renamed[accepted] = name
            self._untold_names = True
        return accepted

    def _send_names(self) -> None:
        """Tag each changed name with its original, once."""
        from mlflow.entities import RunTag

        if not self._untold_names:
            return
        tags = [
            RunTag(accepted_name(NAME_TAG + accepted), name[:MAX_TAG_LENGTH])
            for accepted, name in self._renamed.items()
        ]
        for start in range(0, len(tags), 100):
            self._client.log_batch(self.run_id, tags=tags[start : start + 100])
        self._untold_names = False

    def _send_metrics(self) -> None:
        """Send the steps that have come, piece by piece; a piece that fails is read again."""
        self._read_redone()
        self._send_new_steps()
        if self._must_send_again():
            self._send_new_steps()

    def _send_new_steps(self) -> None:
        while True:
            mark, restarts = self._metrics.mark, self._metrics.restarts
            new = self._metrics.read()
            if self._metrics.restarts != restarts:
                self._remade.clear()
            if not new:
                return
            try:
                self._send_piece([r for r in new if r["step"] > self.last_step])
            except Exception:
                self._metrics.mark = mark
                raise
            self._remade |= {r["step"]: r for r in new if r["step"] in self._dropped}

    def _send_piece(self, new: list[dict[str, Any]]) -> None:
        from mlflow.entities import Metric, RunTag

        every, total = self._steps_between_points(), self.job.schedule.total_steps
        metrics = [
            Metric(
                self._name(step_metric(name)),
                float(value),
                int(r.get("time", 0) * 1000),
                r["step"],
            )
            for r in new
            if r["step"] % every == 0 or r["step"] == total
            for name, value in r.items()
            if name not in NOT_METRICS and isinstance(value, int | float)
        ]
        for start in range(0, len(metrics), BATCH_METRICS):
            self._client.log_batch(self.run_id, metrics=metrics[start : start + BATCH_METRICS])
        if new:
            tags = [RunTag(LAST_STEP_TAG, str(new[-1]["step"]))]
            tags.append(RunTag(LAST_DROPPED_TAG, str(self.last_dropped)))
            self._client.log_batch(self.run_id, tags=tags)
            self.last_step = new[-1]["step"]

    def _steps_between_points(self) -> int:
        """Return every how many steps values are sent: MLflow's pages get slow with many points."""
        tracking = self.job.tracking
        spacing = math.ceil(self.job.schedule.total_steps / tracking.max_points)
        return max(tracking.log_every_steps, spacing)

    def _read_redone(self) -> None:
        for piece in self._redone.pieces():
            skipped = min(self._to_skip, len(piece))
            self._to_skip -= skipped
            self._num_pending += len(piece) - skipped
            self._dropped |= {r["step"]: r for r in piece[skipped:]}

    def _must_send_again(self) -> bool:
        """Go back to the first step that was sent and then redone with another result, if there is one.

        A resume redoes the steps since its checkpoint, usually with the same bits: what was sent
        stays right. Under another layout or other settings it is not, and is sent again; MLflow
        shows the later value.
        """
        before, now = self._dropped, self._remade
        differing = [s for s in before if s in now and _result(before[s]) != _result(now[s])]
        if not before or not (differing or max(before) in now):
            return False
        self.last_dropped += self._num_pending
        self._num_pending, self._dropped, self._remade = 0, {}, {}
        if not differing or min(differing) > self.last_step:
            return False
        self.last_step = min(differing) - 1
        self._metrics.mark = Mark()  # all is read again, and sent from there
        return True

    def _send_events(self) -> None:
        from mlflow.entities import Metric, RunTag

        for piece in self._events_tail.pieces():
            self._events += piece
        events = self._events
        new = events[self.last_event :]
        if not new:
            return
        counts = [e["kind"] for e in events]
        metrics = [
            Metric(
                self._name(event_metric(e["kind"], name)),
                float(value),
                int(e["time"] * 1000),
                e["step"],
            )
            for e in not_undone(events)[len(events) - len(new) :]
            for name, value in e.items()
            if name not in NOT_METRICS and isinstance(value, int | float)
            if "step" in e and e["kind"] != WORKER_FAILED
        ]
        tags = [RunTag(LAST_EVENT_TAG, str(len(events)))]
        tags += [RunTag(f"pelagos.count.{k}", str(counts.count(k))) for k in sorted(set(counts))]
        tags += [tag for e in new if e["kind"] == "source" for tag in source_tags(e)]
        taken_over = [e for e in new if e["kind"] in ("taken_over", BRANCHED)]
        tags += [take_over_tag(e) for e in taken_over]
        metrics += [m for e in taken_over for m in changed_settings(e)]
        checkpoints = [e for e in events if e["kind"] == "checkpoint"]
        if checkpoints:
            last = checkpoints[-1]
            tags.append(RunTag("pelagos.checkpoint", f"{last['uri']} step {last['step']}"))
        self._client.log_batch(self.run_id, metrics=metrics, tags=tags)
        self.last_event = len(events)


def _result(record: dict[str, Any]) -> dict[str, Any]:
    """Return the results of a step, without its costs."""
    return {k: v for k, v in record.items() if k.startswith(("loss", "gradient_norm", "lr"))}


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


def log_evaluation(
    job: TrainingJob, run: RunDirectory, output: Path, metrics: list[tuple[str, int, float]]
) -> None:
    """Log a report's files and (name, step, value) metrics to the run; a store away is a warning."""
    recorded = recorded_run(job, run)
    if job.tracking.uri is None or recorded is None:
        return
    try:
        from mlflow.entities import Metric, RunTag

        client, run_id = tracking_client(recorded.uri), recorded.run_id
        now = int(time.time() * 1000)
        metrics = [(evaluation_metric(name), step, value) for name, step, value in metrics]
        records = [Metric(accepted_name(name), value, now, step) for name, step, value in metrics]
        changed = {name for name, _, _ in metrics if accepted_name(name) != name}
        tags = [RunTag(accepted_name(NAME_TAG + accepted_name(name)), name) for name in changed]
        for start in range(0, len(tags), 100):
            client.log_batch(run_id, tags=tags[start : start + 100])
        for start in range(0, len(records), BATCH_METRICS):
            client.log_batch(run_id, metrics=records[start : start + BATCH_METRICS])
        place = f"evaluation/{output.name}"
        log_own_files(client, run_id, output, place)
        note = description_with_report(client.get_run(run_id).data.tags, place)
        client.set_tag(run_id, NOTE_TAG, note[:MAX_TAG_LENGTH])
    except Exception as error:
        logger.warning("MLflow: could not log the evaluation: %s", error)
