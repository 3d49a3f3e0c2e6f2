"""Starting the workers of a training job: Ray Train by default, or this process.

The flow, for either launcher:
    1. the driver holds the run's lock and records the launch
    2. workers train; rank 0 appends to metrics.jsonl; restarts reuse the newest checkpoint
    3. the driver watches those files: progress on the terminal, records to MLflow
    4. Ctrl-C, SIGTERM or SIGHUP asks the workers to save and return; before the first step, with
       nothing to save, or a second time, it ends the launch at once
    5. the outcome is a value, read from the run's directory
"""

import functools
import itertools
import logging
import os
import signal
import threading
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from pelagos.infra.clusters.bootstrap import read_secrets
from pelagos.infra.ray_cluster import node_here, ray_cluster, require_gpus, torch_trainer
from pelagos.infra.ray_recovery import controller_callback
from pelagos.infra.signals import Interrupted, handling
from pelagos.platform.config.schema import ResourcesConfig, TrainingJob
from pelagos.platform.records.driver_process import this_process
from pelagos.platform.records.remote_run import share
from pelagos.platform.records.runs import Outcome, RunDirectory, RunRecords
from pelagos.platform.records.states import State
from pelagos.platform.recovery.failures import (
    as_details,
    failure_of,
    whole_traceback,
    with_known_causes,
)
from pelagos.platform.recovery.judging import RunJudge
from pelagos.platform.strategies.processes import destroy_process_group, launched_by_torchrun
from pelagos.platform.trainer import (
    FIRST_STEP,
    BuildParts,
    StepObserver,
    train,
)

logger = logging.getLogger(__name__)
POLL_SECONDS = 0.5
LAUNCHED = "launched"  # the event that begins a launch

Watcher = Callable[[], None]


def launch(
    job: TrainingJob,
    run: RunDirectory,
    build: BuildParts,
    storage_options: dict[str, Any],
    watcher: Watcher,
    until_step: int | None = None,
) -> Outcome:
    """Run the job's workers to their end and return how it ended; `watcher` is called regularly.

    With `until_step` they stop, with a checkpoint, after that many steps.
    """
    identity = uuid.uuid4().hex
    work = functools.partial(
        _work,
        job,
        build=build,
        storage_options=storage_options,
        identity=identity,
        until_step=until_step,
    )
    with run.lock(), handling(functools.partial(_stop, run, identity)):
        try:
            run.clear_stop()
            run.begin_launch()
            run.set_status(
                State.RUNNING,
                launch=identity,
                launcher=job.resources.launcher,
                driver=this_process(),
                cause="",
                is_tracked=False,  # an earlier launch's record does not count for this one
            )
            run.append_event(LAUNCHED, launch=identity, num_workers=job.resources.num_workers)
            if job.resources.launcher == "ray":
                judge = RunJudge(run, identity, job.health.max_failures)
                failure = _run_in_ray(job, run, work, watcher, judge)
            else:
                failure = _run_here(functools.partial(work, run), watcher)
            outcome = run.outcome(identity)
        except Interrupted as interrupted:
            outcome, failure = _interrupted(run, identity, interrupted), ""
        except Exception as error:  # nothing was launched: the run is not running
            cause = f"{type(error).__name__}: {error}"
            run.append_event("failed", step=run.last_step(), cause=cause)
            run.set_status(State.FAILED, cause=cause)
            raise
        if outcome is None:
            outcome = Outcome(
                State.FAILED, run.last_step(), failure or "the workers ended without a word"
            )
        run.append_event(outcome.kind, step=outcome.step, cause=outcome.cause)
        run.set_status(outcome.kind, cause=outcome.cause)
    watcher()
    return outcome


def check_gpus(resources: ResourcesConfig) -> None:
    """Raise ValueError if this machine lacks GPUs that workers need; a joined cluster has its own."""
    is_ray = resources.launcher == "ray"
    if not (is_ray and resources.ray_address):
        require_gpus(resources.gpus_per_worker * (resources.num_workers if is_ray else 1))


def join_as_rank(
    job: TrainingJob, run: RunDirectory, build: BuildParts, storage_options: dict[str, Any]
) -> None:
    """Take part as a torchrun rank other than 0, whose driver is rank 0's process."""
    _work(job, run, build, storage_options, "")


def _work(
    job: TrainingJob,
    run: RunRecords,
    build: BuildParts,
    storage_options: dict[str, Any],
    identity: str,
    make_observer: Callable[[], StepObserver] | None = None,
    until_step: int | None = None,
) -> None:
    """Train in this process. An error is recorded, and a permanent one becomes the outcome."""
    read_secrets(os.environ.get("PELAGOS_SECRETS_FILE"))  # on this node; see docs/clusters
    if identity and run.outcome(identity) is not None:
        return  # a restart after a permanent error: do not repeat it
    try:
        observer = None if make_observer is None else make_observer()
        with with_known_causes():
            train(job, run, build, storage_options, identity, observer, until_step)
    except Exception as error:
        if identity:
            try:
                _record_failure(error, job, run, identity)
            except Exception:  # a full disk must not hide what happened
                logger.exception("the failure could not be recorded")
        raise
    finally:
        if launched_by_torchrun():
            destroy_process_group()


def _record_failure(error: Exception, job: TrainingJob, run: RunRecords, identity: str) -> None:
    """Record what a worker raised; without restarts, and if it is permanent, also as the outcome."""
    failure = failure_of(error, int(os.environ.get("RANK", "0")), node_here())
    kept = run.append_failure(as_details(failure), whole_traceback(error))
    failure = replace(failure, traceback=kept)
    has_restarts = job.resources.launcher == "ray"
    if not failure.is_permanent and (has_restarts or failure.is_of_a_peer):
        return
    cause = f"{failure.error}: {failure.text}"
    if has_restarts or not failure.is_permanent:  # alone, Pelagos's own errors say enough
        cause = f"{cause} ({failure.where()})"
    if run.outcome(identity) is None:
        run.write_outcome(Outcome(State.FAILED, run.last_step(), cause), identity)


def _run_here(worker: Callable[[], None], watcher: Watcher) -> str:
    """Train in this thread, watch from another. Returns the reason if it failed."""
    done = threading.Event()

    def watch() -> None:
        while not done.wait(POLL_SECONDS):
            watcher()

    thread = threading.Thread(target=watch, name="pelagos-watcher", daemon=True)
    thread.start()
    try:
        worker()
    except Exception as error:
        logger.debug("training failed", exc_info=True)
        return f"{type(error).__name__}: {error}"
    finally:
        done.set()
        thread.join()
    return ""


def _run_in_ray(
    job: TrainingJob,
    run: RunDirectory,
    work: Callable[..., None],
    watcher: Watcher,
    judge: RunJudge,
) -> str:
    """Train in Ray Train workers, watch from this thread. Returns the reason if it failed."""
    workers, cpus = job.resources.num_workers, job.resources.cpus_per_worker
    gpus = workers * job.resources.gpus_per_worker
    failure: list[str] = []

    def fit() -> None:
        try:
            # in a cluster of its own every worker is on this machine; in another, on any
            records = share(run) if job.resources.ray_address else run
            worker = functools.partial(
                work, records, make_observer=functools.partial(RankMetrics, run.name)
            )
            _torch_trainer(job, run, worker, judge).fit()
        except Exception as error:
            logger.debug("Ray Train failed", exc_info=True)
            failure.append(f"{type(error).__name__}: {str(error).strip().splitlines()[-1]}")

    with ray_cluster(job.resources.ray_address, num_cpus=workers * cpus, num_gpus=gpus):
        from pelagos.platform.records.ray_metrics import RankMetrics, RunMetrics

        metrics = RunMetrics(run)
        thread = threading.Thread(target=fit, name="pelagos-ray-train", daemon=True)
        thread.start()
        while thread.is_alive():
            thread.join(POLL_SECONDS)
            watcher()
            metrics.update()
    return "; ".join(failure)


def _torch_trainer(
    job: TrainingJob, run: RunDirectory, worker: Callable[[], None], judge: RunJudge
) -> Any:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig

    resources = job.resources
    return torch_trainer(resources.ray_address is None)(
        train_loop_per_worker=worker,
        torch_config=TorchConfig(
            backend="nccl" if resources.gpus_per_worker else "gloo",
            timeout_s=job.health.collective_timeout_seconds,
        ),
        scaling_config=ScalingConfig(
            num_workers=resources.num_workers,
            use_gpu=resources.gpus_per_worker > 0,
            resources_per_worker={
                "CPU": resources.cpus_per_worker,
                **({"GPU": resources.gpus_per_worker} if resources.gpus_per_worker else {}),
            },
        ),
        run_config=RunConfig(
            # Ray's own records of one launch; a resume is a new launch from our checkpoints.
            name=f"{run.name}-{uuid.uuid4().hex[:8]}",
            storage_path=str(Path(run.path) / "ray"),
            failure_config=FailureConfig(max_failures=job.health.max_failures),
            callbacks=[controller_callback(judge)],
        ),
    )


def _stop(run: RunDirectory, identity: str, number: int) -> None:
    """Ask for a stop after the current step; end at once with nothing to save, or if asked again."""
    if run.stop_requested() or not _has_stepped(run, identity):
        raise Interrupted(number)
    run.request_stop()
    logger.warning("%s: saving after this step, then stopping", signal.Signals(number).name)


def _has_stepped(run: RunDirectory, identity: str) -> bool:
    """Whether this launch has taken a step, of which there is something to save."""
    events = reversed(run.events())
    since = itertools.takewhile(lambda event: event.get("launch") != identity, events)
    return any(event["kind"] == FIRST_STEP for event in since)


def _interrupted(run: RunDirectory, identity: str, error: Interrupted) -> Outcome:
    """Return the end of a launch that a signal ended at once."""
    if outcome := run.outcome(identity):  # the workers had just ended by themselves
        return outcome
    why = (
        "again: ended at once, without the steps since the last checkpoint"
        if _has_stepped(run, identity)
        else "before the first step: there was nothing to save"
    )
    return Outcome(State.STOPPED, run.last_step(), f"{error} {why}", is_saved=False)
