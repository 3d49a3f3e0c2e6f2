"""Planning a submission: its runs, their needs, and all problems before anything is sent."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pelagos import plugins
from pelagos.infra.clusters import (
    Cluster,
    Code,
    Needs,
    Submission,
    open_cluster,
)
from pelagos.infra.storage.local import ObjectStore, open_store
from pelagos.jobs.submission.handing_over import (
    environment_of,
)
from pelagos.jobs.submission.kinds import kind_of
from pelagos.jobs.submission.placing import default_overrides, prepare
from pelagos.jobs.submission.records.record import RunRecord
from pelagos.jobs.submission.shipping.package import FILES, WHEEL, build_archives, names_in
from pelagos.jobs.submission.shipping.shipped_plugins import require_shipped
from pelagos.jobs.submission.sweeps import expand, needs_of_all
from pelagos.platform.config.clusters import find_cluster
from pelagos.platform.config.kinds import Job, as_kind
from pelagos.platform.config.load import (
    ConfigError,
    Problem,
    load_job,
    parse_yaml,
    read_yaml_text,
    resolve_yaml,
)
from pelagos.platform.config.locating import errors_of
from pelagos.platform.config.overrides import override
from pelagos.platform.config.sweep import SweepJob


@dataclass(frozen=True)
class Options:
    """Options of `submit` other than the job files."""

    after: tuple[str, ...] = ()
    priority: int = 0
    retries: int = 3
    include: tuple[str, ...] = ()
    name: str | None = None


@dataclass(frozen=True)
class Array:
    """Runs that are handed over together: the trials of a sweep."""

    name: str
    at_once: int


@dataclass(frozen=True)
class PlannedRun:
    """A run that is ready to be handed over."""

    name: str
    job: Job
    submission: Submission
    notes: tuple[str, ...] = ()
    array: Array | None = None


@dataclass(frozen=True)
class SubmissionPlan:
    """All runs of one submission, the cluster, and the code that goes with them."""

    cluster: Cluster
    store: ObjectStore
    runs: tuple[PlannedRun, ...]
    archives: dict[str, bytes]
    options: Options

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the user's own files that are shipped."""
        return names_in(self.archives)

    def describe(self) -> dict[str, Any]:
        """Return the submission as planned: the back end's rendering, resources, cost per hour."""
        return {
            "cluster": self.cluster.name,
            "kind": self.cluster.config.kind,
            "storage": self.store.uri,
            "code": {key: len(content) for key, content in self.archives.items()},
            "files": list(self.files),
            "runs": [
                self._describe(run, self._rendered(group) if number == 0 else {})
                for group in self.groups()
                for number, run in enumerate(group)
            ],
        }

    def groups(self) -> list[tuple[PlannedRun, ...]]:
        """Return the runs in order, those that are handed over together in one tuple."""
        by_array = itertools.groupby(self.runs, key=lambda run: run.array or run.name)
        return [tuple(group) for _, group in by_array]

    def _rendered(self, group: Sequence[PlannedRun]) -> dict[str, str]:
        if group[0].array is None:
            return self.cluster.render(group[0].submission)
        return self.cluster.render_array([run.submission for run in group])

    def _describe(self, run: PlannedRun, sent: dict[str, str]) -> dict[str, Any]:
        needs = run.submission.needs
        price = self.cluster.price_per_hour(needs)
        return {
            "run": run.name,
            "after": list(run.submission.after),
            "after_ended": list(run.submission.after_ended),
            "priority": run.submission.priority,
            "resources": {
                "workers": needs.num_workers,
                "cpus": needs.cpus,
                "gpus": needs.gpus,
                "nodes": self.cluster.num_nodes(needs),
            },
            "cost_per_hour": (
                None if price is None else f"{price:.2f} {self.cluster.config.currency}"
            ),
            "environment": run.submission.environment,
            "sent": sent,
            "job": resolve_yaml(run.job),
            "notes": list(run.notes),
        }


@dataclass(frozen=True)
class Entry:
    """One run of a submission before it is read: its file, its predecessors, its overrides."""

    path: str
    after: tuple[str, ...]
    overrides: tuple[str, ...]


def plan(
    files: Sequence[str], cluster_name: str, overrides: Sequence[str], options: Options
) -> SubmissionPlan:
    """Read and check everything; nothing is sent.

    Several job files form a chain, each after the one before. A file with a key `runs` lists runs
    and the predecessors of each.

    Raises:
        ConfigError: with the problems of a job or of clusters.yaml.
        ClusterError: the cluster can never hold a job.
    """
    config = find_cluster(cluster_name)
    cluster = open_cluster(cluster_name, config)
    store = open_store(config.storage, config.endpoint_url, config.region)
    code, contents = own_code(store, options.include)
    common = Submission(
        run="",
        storage=store.uri,
        attempt=1,
        needs=Needs(),
        code=code,
        priority=options.priority,
        environment=environment_of(config),
    )
    runs: list[PlannedRun] = []
    for entry in read_entries(files, overrides):
        given = (*default_overrides(entry.path, config), *entry.overrides)
        job = plugins.with_named(load_job(entry.path, given))
        plugins.load_for(job)
        require_shipped(plugins.wanted_by(job), names_in(contents))
        after = (*options.after, *(entry.after if entry.after != ("",) else (runs[-1].name,)))
        earlier = {run.name: run.job for run in runs}
        common = replace(common, after=after)
        kind = kind_of(job)
        if kind.reports_on_trials:
            runs += _plan_sweep(as_kind(SweepJob, job), cluster, common, earlier, store)
        else:
            job = prepare(job, config)
            with errors_of(entry.path, given):
                notes = _check_job(job, earlier, after, store)
            submission = replace(
                common, run=options.name or kind.run_name(job), needs=kind.needs(job)
            )
            runs.append(PlannedRun(submission.run, job, submission, tuple(notes)))
    for run in runs:
        cluster.check_needs(run.submission.needs)
    _check_names(runs, store)
    return SubmissionPlan(cluster, store, tuple(runs), contents, options)


def own_code(store: ObjectStore, include: Sequence[str]) -> tuple[Code, dict[str, bytes]]:
    """Return this Pelagos and the user's files as code in a storage, and the archives by key."""
    archive, contents = build_archives(include)
    code = Code(
        f"{store.uri}/{archive.key(WHEEL)}",
        archive.wheel_sha256,
        f"{store.uri}/{archive.key(FILES)}",
        archive.files_sha256,
    )
    return code, contents


def _plan_sweep(
    sweep: SweepJob,
    cluster: Cluster,
    common: Submission,
    earlier: dict[str, Job],
    store: ObjectStore,
) -> list[PlannedRun]:
    """Return the trials, handed over together, and the report on them once they have ended."""
    sweep, trials = expand(sweep, cluster)
    array = Array(sweep.name, sweep.max_concurrent)
    common = replace(common, needs=needs_of_all(trials), uses_ray=cluster.trains_through_ray)
    runs: list[PlannedRun] = []
    seen, checked = set(), {}
    for trial in trials:
        # the trials of a label differ in values that no data set or network rejects
        is_new = trial.label not in seen
        notes = _check_job(trial.job, earlier, common.after, store) if is_new else []
        if is_new and not notes:
            checked[trial.label] = trial.job
        seen.add(trial.label)
        submission = replace(common, run=trial.name)
        runs.append(PlannedRun(trial.name, trial.job, submission, tuple(notes), array))
    if checked:
        from pelagos.jobs.sweeping.checks import check_measurement

        check_measurement(sweep, checked)
    names = tuple(trial.name for trial in trials)
    report = replace(common, run=sweep.name, after=(), after_ended=names)
    return [*runs, PlannedRun(sweep.name, sweep, report)]


def read_entries(files: Sequence[str], overrides: Sequence[str]) -> list[Entry]:
    """Return the runs of job files (a chain if several) or of one file that lists `runs`.

    Raises:
        ValueError: overrides were given with a graph or with several files.
    """
    if len(files) == 1 and _is_graph(files[0]):
        if overrides:
            raise ValueError("overrides belong to single jobs; use the `set` of a run in the file")
        return _graph_entries(files[0])
    if len(files) > 1 and overrides:
        raise ValueError("overrides with several job files are ambiguous; put them into the files")
    return [
        Entry(path, ("",) if index else (), tuple(overrides)) for index, path in enumerate(files)
    ]


def _is_graph(path: str) -> bool:
    tree, _ = parse_yaml(read_yaml_text(path), path)
    return "runs" in tree and "job" not in tree


def _graph_entries(path: str) -> list[Entry]:
    """Read a file of runs: `runs: [{job: FILE, after: [NAME…], set: {key: value}}]`."""
    tree, lines = parse_yaml(read_yaml_text(path), path)
    runs = tree["runs"]
    if not isinstance(runs, list) or not runs or set(tree) != {"runs"}:
        message = "expected one key `runs` with a list of {job: FILE, after: [NAME, …], set: {…}}"
        raise ConfigError(path, [Problem(("runs",), message, 1)])
    problems, entries = [], []
    for index, run in enumerate(runs):
        entry, wrong = _graph_entry(run, path)
        if entry is None:
            key = ("runs", index)
            problems.append(Problem(key, wrong, lines.get(key)))
        else:
            entries.append(entry)
    if problems:
        raise ConfigError(path, problems)
    return entries


def _graph_entry(run: Any, path: str) -> tuple[Entry | None, str]:
    """One run of a graph, or its problem."""
    if not isinstance(run, dict) or set(run) - {"job", "after", "set"} or "job" not in run:
        return None, "expected {job: FILE, after: [NAME, …], set: {key: value}}"
    job, after, given = run["job"], run.get("after", []), run.get("set", {})
    after = [after] if isinstance(after, str) else after
    if not isinstance(job, str) or not job or "\0" in job:
        return None, f"job: got {job!r}, expected the path of a job file"
    if not isinstance(after, list) or not all(isinstance(name, str) and name for name in after):
        return None, f"after: got {after!r}, expected the name of a run, or a list of names"
    if not isinstance(given, dict) or not all(isinstance(key, str) and key for key in given):
        return None, f"set: got {given!r}, expected {{dotted.key: value}}"
    settings = tuple(override(key, value) for key, value in given.items())
    return Entry(str(Path(path).parent / job), tuple(after), settings), ""


def _check_job(
    job: Job, earlier: dict[str, Job], after: tuple[str, ...], store: ObjectStore
) -> list[str]:
    """Make the checks that are possible from here; return notes on the others."""
    kind = kind_of(job)
    for key, needed in kind.runs_needed(job).items():
        if needed not in earlier and not RunRecord(store, needed).exists():
            message = f"no run {needed!r} in {store.uri}, nor earlier in this submission"
            raise ConfigError(f"job {kind.run_name(job)}", [Problem(key, message)])
    for name in after:
        if name not in earlier and not RunRecord(store, name).exists():
            message = f"no submitted run of that name in {store.uri}"
            raise ConfigError("--after", [Problem((name,), message)])
    made = {uri for other in earlier.values() for uri in kind_of(other).datasets_made(other)}
    return kind.check(job, made, earlier)


def _check_names(runs: Sequence[PlannedRun], store: ObjectStore) -> None:
    names = [run.name for run in runs]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ValueError(f"two runs of this submission are called {', '.join(sorted(twice))}")
    for run in runs:
        record = RunRecord(store, run.name)
        if record.exists():
            state = record.state()
            raise ValueError(
                f"run {run.name!r} exists already in {store.uri} ({state.state}, submitted by "
                f"{state.submitted_by}): `pelagos resume {run.name}` continues it; a new run needs "
                "another name (name=OTHER)"
            )
