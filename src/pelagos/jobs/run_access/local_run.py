"""A run of a directory here, which a process on this or another machine drives, or none."""

import contextlib
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from pelagos.infra.processes import has_open
from pelagos.infra.yaml_text import yaml_text
from pelagos.jobs.run_access.any_run import POLL_SECONDS, AnyRun, Standing, Stopping
from pelagos.platform.config.clusters import find_cluster
from pelagos.platform.config.kinds import as_kind
from pelagos.platform.config.load import parse_job, resolve_yaml
from pelagos.platform.config.overrides import override
from pelagos.platform.config.schema import TrainingJob
from pelagos.platform.kept_output import KeptOutput
from pelagos.platform.progress import EVENTS_SHOWN, describe_event
from pelagos.platform.records.description import FollowedRun, RunDescription, description_of
from pelagos.platform.records.driver_process import DriverProcess
from pelagos.platform.records.others_runs import is_own_file
from pelagos.platform.records.runs import RunDirectory, RunError
from pelagos.platform.records.states import UNDER_WAY, State

RUNS_DIR = "runs"
# Time for a process to end by itself before it is killed (`--now`).
END_SECONDS = 15.0


class LocalRun(AnyRun):
    """A run of a directory of this machine, or of a disk that it shares."""

    def __init__(self, runs_dir: str, run: RunDirectory) -> None:
        self.name, self.address = run.name, address_of(runs_dir, run.name)
        self.run = run
        self._runs_dir = runs_dir
        self._said = self.name if Path(runs_dir) == Path(RUNS_DIR) else self.address
        self._followed = FollowedRun(run)

    def standing(self) -> Standing:
        """Return how it is now. One that was never launched, and that no process drives, is over."""
        status = self.run.status()
        state, cause = status["state"], status.get("cause") or ""
        if state == State.LOST:
            reason = f"its process ended without a word; `pelagos resume {self._said}` continues it"
            return Standing(state, True, cause, reason)
        if state == State.CREATED and DriverProcess.of(status) is None:
            reason = f"no process drives it; `pelagos resume {self._said}` starts it"
            return Standing(state, True, cause, reason)
        return Standing(state, state not in (*UNDER_WAY, State.CREATED), cause)

    def describe(self) -> RunDescription:
        return description_of(self.run, self._followed)

    def output(self, follow: bool) -> Iterator[str]:
        """Yield what its launches printed, or its events where that was not kept."""
        kept, anything = KeptOutput(self.run), False
        while True:
            is_over = self.standing().is_over
            text = kept.news()
            anything = anything or bool(text)
            if text:
                yield text.decode(errors="replace")
            if is_over or not follow:
                break
            time.sleep(POLL_SECONDS)
        if not anything:
            yield from self._told_events()

    def _told_events(self) -> Iterator[str]:
        """Yield a line for each event: all that is left of a run of an earlier version."""
        for event in self.run.events():
            when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event["time"]))
            told = describe_event(event) if event["kind"] in EVENTS_SHOWN else f"  {event['kind']}"
            yield f"{when}{told}\n"

    def stop(self, now: bool) -> Stopping:
        """Ask the process that drives it to save and stop; or end it at once.

        A process on this machine gets a signal, once it is known to be this run's. Others see the
        request in the run's directory.
        """
        standing = self.standing()
        if standing.is_over:
            return Stopping(standing.state, "", standing.reason)
        status = self.run.status_file()
        driver = DriverProcess.of(status)
        asked = "now" if now else "save"
        if driver is not None and self._may_signal(driver, standing.state):
            if now:
                self._end(driver)
            else:
                os.kill(driver.pid, signal.SIGTERM)
            return Stopping(self.standing().state, asked)
        elsewhere = "another process" if driver is None else str(driver)
        if now or standing.state == State.CREATED:
            raise RunError(
                f"run {self.name!r} is driven by {elsewhere}, which cannot be ended from here"
                f"{_why(driver)}. Without --now it is asked to save and stop, through the run's "
                "directory, once it has begun"
            )
        try:
            self.run.request_stop()
        except OSError as error:
            raise RunError(
                f"run {self.name!r} is driven by {elsewhere}, and the request to stop cannot be "
                f"written: {error.filename}: {error.strerror}"
            ) from error
        return Stopping(standing.state, asked, f"{elsewhere} sees the request after its next step")

    def _may_signal(self, driver: DriverProcess, state: State) -> bool:
        """Whether that is a process of this machine, and certainly the one that drives this run.

        The file that names it is this user's, the process started when it says, and once it has
        begun it holds the run's lock.
        """
        return (
            driver.is_here
            and driver.takes_signals
            and driver.is_alive is True
            and is_own_file(self.run.path / "status.json")
            and (state == State.CREATED or has_open(driver.pid, self.run.lock_path))
        )

    def _end(self, driver: DriverProcess) -> None:
        """End the process: a second signal ends it unsaved, and what ignores that is killed."""

        def has_ended() -> bool:
            return driver.is_alive is not True

        os.kill(driver.pid, signal.SIGTERM)
        _until(lambda: has_ended() or self.run.stop_requested())
        if not has_ended():
            os.kill(driver.pid, signal.SIGTERM)
            _until(has_ended)
        if not has_ended():
            os.kill(driver.pid, signal.SIGKILL)
            _until(has_ended)
            # its threads hold the lock for a moment longer
            with contextlib.suppress(RunError), self.run.lock(wait_seconds=END_SECONDS):
                cause = "killed: it did not end by itself"
                self.run.append_event(State.STOPPED, step=self.run.last_step(), cause=cause)
                self.run.set_status(State.STOPPED, cause=cause)

    def job(self) -> TrainingJob:
        return self.run.job_as_written()

    def directory(self) -> RunDirectory:
        return self.run

    @property
    def runs_dir(self) -> str:
        return self._runs_dir

    def send_back(self, folder: str) -> None:
        """Nothing: the directory is the run's own."""

    def cloned(self, name: str, overrides: Sequence[str]) -> TrainingJob:
        """Return the job that the run has now, as a new run's with changes, to be trained here."""
        places = [override("name", name), override("runs_dir", self._runs_dir)]
        job = parse_job(
            resolve_yaml(self.run.job()), str(self.run.path / "job.yaml"), [*places, *overrides]
        )
        return as_kind(TrainingJob, job)

    @contextlib.contextmanager
    def job_to_submit(self, cluster: str, overrides: Sequence[str]) -> Iterator[str]:
        """Return a file of the run's job without the default values, which the cluster may set.

        Raises:
            RunError: it is another user's, and would have files of this machine read, or secrets sent.
        """
        from pelagos.jobs.submission.others_jobs import require_own_places

        job, path = self.run.job(), self.run.path / "job.yaml"
        if not is_own_file(path):
            changed = parse_job(resolve_yaml(job), str(path), overrides)
            require_own_places(changed, self.name, overrides, find_cluster(cluster))
        tree = job.model_dump(mode="json", exclude_defaults=True)
        tree.pop("runs_dir", None)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "job.yaml"
            file.write_text(yaml_text({"job": job.job, **tree}))
            yield str(file)


def address_of(runs_dir: str, name: str) -> str:
    """Return DIR/RUN, so that it is not taken for CLUSTER/RUN.

    >>> address_of("runs", "a"), address_of("/data/runs/", "a")
    ('./runs/a', '/data/runs/a')
    """
    place = runs_dir.rstrip("/") or "/"
    begins = place.startswith(("/", "./", "../", "~"))
    return f"{place if begins else f'./{place}'}/{name}"


def _why(driver: DriverProcess | None) -> str:
    if driver is None or not driver.is_here:
        return ""
    if not driver.takes_signals:
        return ": it trains in a thread, as in a notebook"
    return ": it is not certain that this process is the run's"


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + END_SECONDS
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
