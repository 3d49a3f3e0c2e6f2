"""The directory of a run: the one place that holds its history, readable with any text tool.

runs/NAME/job.yaml        the resolved job
          job-1.yaml      … as it was before the first `resume` that changed it
          status.json     state of the last launch, and the process that drives it
          output.log      what the launches printed; output-before.log holds what came before that
          metrics.jsonl   one line per step (rewritten up to the checkpoint on resume)
          metrics-redone.jsonl  lines that resumes took out of it, before the steps were redone
          events.jsonl    launches, resumes, checkpoints, validations, the end
          identity.json   the mark of its checkpoints, so that another run's are never taken for its own
          take-overs.json other runs' checkpoints from which this one continued (members of a population)
          checkpoints/    unless the job names another place; after a take-over those in take-over-N/
          failures/       tracebacks of workers that failed: 1-rank-0.txt
          evaluation/     reports
"""

import contextlib
import fcntl
import json
import os
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pelagos.infra.permanent_error import PermanentError
from pelagos.infra.storage.files import open_lock_file, replace_durably
from pelagos.platform.config.differences import changed_keys, is_among
from pelagos.platform.config.kinds import as_kind
from pelagos.platform.config.load import load_job, resolve_yaml
from pelagos.platform.config.marks import Trait
from pelagos.platform.config.meanings import has, may_resume, names_of
from pelagos.platform.config.schema import TrainingJob
from pelagos.platform.records.driver_process import DriverProcess, this_process
from pelagos.platform.records.goodput import FollowedTimes
from pelagos.platform.records.known_runs import known_runs
from pelagos.platform.records.others_runs import believed, is_given, unbelieved
from pelagos.platform.records.record_tail import RecordTail
from pelagos.platform.records.run_files import (
    append_line,
    is_continuation,
    is_event,
    is_step,
    read_events,
    read_json,
    read_last_metrics,
    read_mapping,
    read_metrics,
)
from pelagos.platform.records.run_records import WORKER_FAILED
from pelagos.platform.records.run_records import Outcome as Outcome
from pelagos.platform.records.run_records import RunRecords as RunRecords
from pelagos.platform.records.states import State, state_of
from pelagos.platform.records.steady_clock import SteadyClock

# Keys that a resume may change: how and where the next steps are computed, not which they are.
CHANGEABLE = names_of(may_resume)
# Keys that a branch may also change, from its step on: how weights move, and for how long.
CHANGEABLE_IN_A_BRANCH = names_of(has(Trait.UPDATES))

BRANCHED = "branched"
TAKE_OVERS = "take-overs.json"
IDENTITY = "identity.json"


class RunError(PermanentError, ValueError):
    """A run that does not exist, exists already, or is busy; says how to proceed."""


class RunDirectory:
    """Reads and writes one run's directory. Whole files are replaced by renaming."""

    def __init__(self, path: str | os.PathLike[str], clock: SteadyClock | None = None) -> None:
        self.path = Path(path).absolute()
        self.name = self.path.name
        self.metrics_path = self.path / "metrics.jsonl"
        self.events_path = self.path / "events.jsonl"
        self.redone_path = self.path / "metrics-redone.jsonl"
        self.clock = clock or SteadyClock()

    @classmethod
    def create(cls, job: TrainingJob, identity: str | None = None) -> "RunDirectory":
        """Make the directory of a new run; its identity is drawn unless it is given.

        Raises:
            RunError: the name is taken, or the directory cannot be written.
        """
        run = cls(Path(job.runs_dir) / job.name)
        try:
            run.path.parent.mkdir(parents=True, exist_ok=True)
            if run.path.exists():
                raise RunError(
                    f"run {job.name!r} already exists in {run.path.parent}. `pelagos resume "
                    f"{job.name}` continues it; a new run needs another name (name=OTHER)"
                )
            run.path.mkdir()
        except OSError as error:
            raise RunError(
                f"runs_dir {job.runs_dir}: {error.strerror}: {error.filename}. Make it writable or "
                "choose another (--runs-dir DIR)"
            ) from error
        run.replace(IDENTITY, json.dumps({"run": identity or uuid.uuid4().hex}))
        run.replace("job.yaml", resolve_yaml(job))
        run.set_status(State.CREATED, driver=this_process())
        return run

    @classmethod
    def open(cls, runs_dir: str, name: str) -> "RunDirectory":
        """Return an existing run. Raises `RunError`, listing the existing runs."""
        run = cls(Path(runs_dir) / name)
        if not (run.path / "job.yaml").exists():
            known = known_runs(name, (r.name for r in list_runs(runs_dir)))
            raise RunError(f"no run {name!r} in {run.path.parent}; {known}")
        return run

    def job(self) -> TrainingJob:
        """Return the run's resolved job; of another user's, without addresses that only it names.

        Raises:
            ConfigError, RunError: it is no training job, or no regular file.
        """
        return believed(self.job_as_written(), self.path / "job.yaml")

    def job_as_written(self) -> TrainingJob:
        """Return the run's resolved job, to be shown. Raises as `job`."""
        self._require_regular_job()
        job = load_job(self.path / "job.yaml")
        other = RunError(
            f"{self.path / 'job.yaml'} is not a training job; only training jobs make runs"
        )
        return as_kind(TrainingJob, job, other)

    def _require_regular_job(self) -> None:
        path = self.path / "job.yaml"
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise RunError(f"{path} is a link or not a regular file, so it is not read")

    def revised_job(
        self, overrides: Sequence[str], also_changeable: Sequence[str] = ()
    ) -> TrainingJob:
        """Return the run's job with changes to how the steps to come are computed.

        Raises:
            RunError: an override changes what the run is.
            ConfigError: the changed job is not valid.
        """
        before = self.job()
        after = as_kind(TrainingJob, load_job(self.path / "job.yaml", overrides))
        given = tuple(text.partition("=")[0].strip() for text in overrides)
        after = believed(after, self.path / "job.yaml", given)
        changeable = (*CHANGEABLE, *also_changeable)
        refused = [k for k in _changed_keys(before, after) if not is_among(k, changeable)]
        if not refused:
            return after
        if all(is_among(key, CHANGEABLE_IN_A_BRANCH) for key in refused):
            raise RunError(
                f"run {self.name!r}: {', '.join(refused)} can change only in a branch of the run, "
                "which begins at a checkpoint: add --from STEP (or --from last)"
            )
        raise RunError(
            f"run {self.name!r}: a resume cannot change {', '.join(refused)}, because the next "
            f"steps would not continue the last ones. It can change {', '.join(CHANGEABLE)}, and "
            f"with --from STEP {' and '.join(CHANGEABLE_IN_A_BRANCH)}. For anything else start a "
            "new run"
        )

    def require_believed(
        self, job: TrainingJob, overrides: Sequence[str] = (), written: TrainingJob | None = None
    ) -> None:
        """Raise unless a run that continues as `job` keeps its addresses, or the user drops them.

        Args:
            written: the contents of its files; default: job.yaml alone.

        Raises:
            RunError: they are of another user's file alone; names each, and the remedy.
        """
        given = [text.partition("=")[0].strip() for text in overrides]
        told = unbelieved(self.job_as_written() if written is None else written, job)
        dropped = [text for text in told if not is_given(text.partition("=")[0], given)]
        if dropped:
            raise RunError(
                f"run {self.name!r} belongs to another user. Its files in {self.path} set "
                f"{' and '.join(dropped)}, and your credentials would be sent there. If you trust "
                "the address, give KEY=VALUE yourself; KEY=null continues without"
            )

    def replace_job(self, job: TrainingJob) -> None:
        """Keep `job` as the run's; the previous job stays next to it, as job-1.yaml, job-2.yaml, …."""
        before = self.job()
        changed = _changed_keys(before, job)
        if changed:
            number = 1 + len(list(self.path.glob("job-*.yaml")))
            self.replace(f"job-{number}.yaml", resolve_yaml(before))
            self.replace("job.yaml", resolve_yaml(job))
            self.append_event("job_changed", keys=changed, before=f"job-{number}.yaml")

    @property
    def checkpoint_uri(self) -> str:
        """The place of the run's checkpoints: since its last take-over, if it has had one."""
        return self.checkpoint_uri_after(len(self.take_overs()))

    def checkpoint_uri_after(self, num_take_overs: int) -> str:
        """The place of checkpoints between this take-over and the next; 0: before the first."""
        uri = self.checkpoint_uri_of(self.job())
        return f"{uri}/take-over-{num_take_overs}" if num_take_overs else uri

    def take_overs(self) -> list[dict[str, Any]]:
        """Return the take-overs of other runs' checkpoints: step, source, changed settings.

        Raises:
            RunError: the file holds something else.
        """
        with contextlib.suppress(FileNotFoundError):
            told = read_json(self.path / TAKE_OVERS)
            if not (isinstance(told, list) and all(map(is_continuation, told))):
                raise RunError(
                    f"{self.path / TAKE_OVERS} is not a list of take-overs: expected [{{step: "
                    "NUMBER, source: RUN, checkpoint: PLACE, settings: {KEY: [BEFORE, AFTER]}}, "
                    "…]"
                )
            return told
        return []

    @property
    def identities(self) -> tuple[str, ...]:
        """The run's own identity, then those of runs whose checkpoints it took over.

        Empty for runs made before there were identities.
        """
        own = ""
        with contextlib.suppress(FileNotFoundError):
            told = read_json(self.path / IDENTITY)
            if not (isinstance(told, dict) and isinstance(told.get("run"), str)):
                raise RunError(f"{self.path / IDENTITY} does not name a run")
            own = told["run"]
        others = (i for record in self.take_overs() for i in record.get("identities", [""]))
        return (own, *map(str, others))

    def checkpoint_uri_of(self, job: TrainingJob) -> str:
        """Where a run of this job keeps its checkpoints, whether or not it was made yet."""
        uri = job.checkpoint.uri
        return f"{uri.rstrip('/')}/{self.name}" if uri else str(self.path / "checkpoints")

    def replace(self, name: str, text: str) -> None:
        """Write a small file whole: temporary name, flush, rename."""
        replace_durably(self.path / name, text.encode())

    # -- state ------------------------------------------------------------------------------------

    def set_status(self, state: State, **details: Any) -> None:
        """Record the state of the launch, keeping details recorded before."""
        status = {**self.status_file(), **details, "state": state, "updated": self.clock.now()}
        self.replace("status.json", json.dumps(status, indent=1))

    def status(self) -> dict[str, Any]:
        """Return the run's state; a launch that died without saying so is `lost`."""
        status = self.status_file()
        if status.get("state") == State.RUNNING and not self.is_locked():
            status = self.status_file()  # it may have ended since that was read
            if status.get("state") == State.RUNNING:
                status["state"] = State.LOST
        elif status.get("state") == State.CREATED:
            driver = DriverProcess.of(status)
            if driver is not None and driver.is_alive is False:
                status["state"] = State.LOST
        last = next(iter(self.last_metrics(1)), None)
        if not isinstance(status.get("updated"), int | float):
            status.pop("updated", None)
        status["state"] = state_of(status.get("state"))
        status["step"] = last["step"] if last else 0
        status["metrics"] = last or {}
        return status

    def status_file(self) -> dict[str, Any]:
        """Return the status as it was last written."""
        return read_mapping(self.path / "status.json")

    def write_outcome(self, outcome: Outcome, launch: str) -> None:
        """Record how a launch ended (written by rank 0 of the workers, or the one that failed)."""
        self.replace("outcome.json", json.dumps({"launch": launch, **asdict(outcome)}))

    def outcome(self, launch: str) -> Outcome | None:
        """Return how this launch ended, or None if it did not say."""
        content = read_mapping(self.path / "outcome.json")
        if content.pop("launch", None) == launch:
            with contextlib.suppress(TypeError):
                return Outcome(**{**content, "kind": state_of(content.get("kind"))})
        return None

    @contextlib.contextmanager
    def lock(self, purpose: str = "driver", wait_seconds: float = 0.0) -> Iterator[None]:
        """Hold the run exclusively. The kernel frees it when the process dies, however it dies.

        Raises:
            RunError: another process holds it, or the run is another user's.
        """
        path = self.path / f".{purpose}.lock"
        try:
            descriptor = open_lock_file(path)
        except PermissionError as error:
            raise RunError(
                f"run {self.name!r} belongs to another user: {path} cannot be opened for writing"
            ) from error
        with os.fdopen(descriptor, "r+b") as file:
            deadline = time.monotonic() + wait_seconds
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= deadline:
                        raise RunError(
                            f"run {self.name!r} is in use by another process. Wait for it, or stop "
                            f"it (see `pelagos status {self.name}`)"
                        ) from None
                    time.sleep(0.1)
            yield

    @property
    def lock_path(self) -> Path:
        """The file that the process which drives the run holds open."""
        return self.path / ".driver.lock"

    def is_locked(self) -> bool:
        """Return whether a live process drives the run."""
        try:
            with self.lock():
                return False
        except (RunError, OSError):
            return True

    def request_stop(self) -> None:
        """Ask the workers to save and return after their current step."""
        (self.path / "stop").touch()

    def stop_requested(self) -> bool:
        """Return whether a stop was asked for."""
        return (self.path / "stop").exists()

    def clear_stop(self) -> None:
        """Forget an earlier stop request."""
        (self.path / "stop").unlink(missing_ok=True)

    # -- records ----------------------------------------------------------------------------------

    def append_metrics(self, record: dict[str, Any]) -> None:
        """Append one step's values and the time, unless that step is there already.

        A group of workers that was given up may still be running for a moment next to the one that
        replaced it: its records of such a step come late.
        """
        if record["step"] > self.last_step():
            append_line(self.metrics_path, {"time": self.clock.now(), **record})

    def append_event(self, kind: str, **details: Any) -> None:
        """Append one event."""
        append_line(self.events_path, {"time": self.clock.now(), "kind": kind, **details})

    def append_failure(self, details: dict[str, Any], traceback: str) -> str:
        """Record a worker's failure as an event; return the file of its traceback."""
        folder, rank = self.path / "failures", details["rank"]
        folder.mkdir(exist_ok=True)
        number = 1 + len(list(folder.glob(f"*-rank-{rank}.txt")))
        path = folder / f"{number}-rank-{rank}.txt"
        replace_durably(path, traceback.encode())
        self.append_event(WORKER_FAILED, **{**details, "traceback": str(path)})
        return str(path)

    def metrics(self) -> list[dict[str, Any]]:
        """Return every step's values, in order."""
        return read_metrics(self.metrics_path)

    def redone_metrics(self) -> list[dict[str, Any]]:
        """Return the values that steps had before they were redone, in the order of dropping."""
        return read_metrics(self.redone_path)

    def tail_of_metrics(self) -> RecordTail:
        """Return a follower of the steps' values."""
        return RecordTail(self.metrics_path, is_step)

    def tail_of_redone(self) -> RecordTail:
        """Return a follower of the values that steps had before they were redone."""
        return RecordTail(self.redone_path, is_step)

    def tail_of_events(self) -> RecordTail:
        """Return a follower of the events."""
        return RecordTail(self.events_path, is_event)

    def followed_times(self) -> FollowedTimes:
        """Return the sums of time as the records grow."""
        return FollowedTimes(self.tail_of_events(), self.tail_of_metrics())

    def begin_launch(self) -> None:
        """Let the records' time go on from that of earlier launches, also if the clock was set back."""
        last = [*self.last_metrics(1), *self.events()[-1:]]
        times = [r["time"] for r in last if isinstance(r.get("time"), int | float)]
        self.clock = SteadyClock.after(max(times, default=0.0))

    def events(self) -> list[dict[str, Any]]:
        """Return every event, in order."""
        return read_events(self.events_path)

    def last_metrics(self, count: int) -> list[dict[str, Any]]:
        """Return the last steps' values, reading only the end of the file."""
        return read_last_metrics(self.metrics_path, count)

    def last_step(self) -> int:
        """Return the number of steps that have been logged."""
        return int(next((r["step"] for r in self.last_metrics(1)), 0))

    def keep_metrics_until(self, step: int) -> int:
        """Drop the values of steps after `step` (they are about to be redone); return how many."""
        records = self.metrics()
        kept = [r for r in records if r["step"] <= step]
        for record in records[len(kept) :]:
            append_line(self.redone_path, record)
        self.replace("metrics.jsonl", "".join(json.dumps(r) + "\n" for r in kept))
        return len(records) - len(kept)


def check_identity(run: RunRecords, uri: str, step: int, trainer_state: Mapping[str, Any]) -> None:
    """Raise `RunError` if a checkpoint's state is of another run."""
    if trainer_state.get("run", "") not in run.identities:
        raise RunError(
            f"{uri}: the checkpoint of step {step} belongs to another run with the same name and "
            "checkpoint.uri. Nothing was loaded. Give this run another name or checkpoint.uri, or "
            f"start from those weights with `pelagos finetune` and source.uri: {uri}"
        )


def list_runs(runs_dir: str) -> list[RunDirectory]:
    """Return the runs of a directory, by name."""
    return [RunDirectory(p.parent) for p in sorted(Path(runs_dir).glob("*/job.yaml"))]


def _changed_keys(before: TrainingJob, after: TrainingJob) -> list[str]:
    return changed_keys(before.model_dump(mode="json"), after.model_dump(mode="json"))
