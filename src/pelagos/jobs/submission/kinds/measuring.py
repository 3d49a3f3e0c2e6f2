"""Jobs that measure: evaluations, reports of sweeps, and looks at a cluster's nodes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pelagos.infra.clusters import Needs
from pelagos.jobs.submission.kinds.base import Attempt, JobKind, Key, Place
from pelagos.jobs.submission.kinds.places import on_this_ray, place_tracking
from pelagos.jobs.submission.records.record import RunRecord
from pelagos.jobs.sweeping.trials import trials_of
from pelagos.platform.config.kinds import Job
from pelagos.platform.config.measure import EvaluateJob, ProbeJob
from pelagos.platform.config.sweep import SweepJob
from pelagos.platform.console import HarmlessConsole
from pelagos.platform.records.runs import Outcome
from pelagos.platform.records.states import State


class EvaluateKind(JobKind[EvaluateJob]):
    """A trained run on held-out trajectories."""

    def run_name(self, job: EvaluateJob) -> str:
        return f"{job.run}-evaluation"

    def runs_needed(self, job: EvaluateJob) -> dict[Key, str]:
        return {("run",): job.run}

    def on_cluster(self, job: EvaluateJob, storage: str, runs_dir: Path) -> EvaluateJob:
        resources = on_this_ray(job.resources)
        # a GPU that was not asked for is another job's
        given = {"gpus_per_worker": resources.gpus_per_worker or 0}
        resources = resources.model_copy(update=given)
        return job.model_copy(update={"runs_dir": str(runs_dir), "resources": resources})

    def run(self, job: EvaluateJob, attempt: Attempt, console: HarmlessConsole) -> Outcome:
        from pelagos.jobs import evaluate

        evaluated = attempt.mirror_of(job.run)
        if attempt.mirrors:
            evaluated.pull()
        evaluate.run(job, console)
        if attempt.mirrors:
            evaluated.push()
        return Outcome(State.FINISHED, 0)


class SweepKind(JobKind[SweepJob]):
    """The report on a sweep, whose trials are runs of their own."""

    reports_on_trials = True

    def needs(self, job: SweepJob) -> Needs:
        return Needs()

    def place(self, tree: dict[str, Any], place: Place) -> None:
        place_tracking(tree["tracking"], place)

    def jobs_within(self, job: SweepJob) -> Iterator[Job]:
        yield job
        for trial in trials_of(job):
            yield trial.job

    def on_cluster(self, job: SweepJob, storage: str, runs_dir: Path) -> SweepJob:
        return job.model_copy(update={"runs_dir": str(runs_dir)})

    def run(self, job: SweepJob, attempt: Attempt, console: HarmlessConsole) -> Outcome:
        from pelagos.jobs.submission import sweep_reports
        from pelagos.jobs.sweeping.report_text import show_report

        ends = {}
        if attempt.mirrors:  # an earlier report names the sweep's MLflow run
            attempt.mirrors[0].pull()
        for trial in trials_of(job):
            ends[trial.name] = RunRecord(attempt.store, trial.name).state()
            if attempt.mirrors:
                attempt.mirror_of(trial.name).pull()
        result = sweep_reports.run(job, ends)
        show_report(result.report, result.path)
        for mirror in attempt.mirrors and [attempt.mirror_of(name) for name in ends]:
            mirror.push()
        return Outcome(State.FINISHED, 0)


class ProbeKind(JobKind[ProbeJob]):
    """A look at the nodes of a cluster."""

    def needs(self, job: ProbeJob) -> Needs:
        return Needs(job.num_nodes, job.cpus_per_node, job.gpus_per_node)

    def run(self, job: ProbeJob, attempt: Attempt, console: HarmlessConsole) -> Outcome:
        from pelagos.jobs.submission import node_probe

        node_probe.run(job, attempt.store.uri, attempt.runs_dir)
        return Outcome(State.FINISHED, 0)
