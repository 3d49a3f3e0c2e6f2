"""A sweep on its way to a cluster: its trials as runs of their own, and the run that reports on them."""

from dataclasses import replace

from pelagos import plugins
from pelagos.infra.clusters import Cluster, Needs
from pelagos.jobs.submission.kinds import kind_of
from pelagos.jobs.submission.placing import cluster_defaults, prepare
from pelagos.jobs.sweeping.mlflow_parent import child_tags
from pelagos.jobs.sweeping.trials import Trial, tracked, trials_of
from pelagos.platform.config.kinds import as_kind
from pelagos.platform.config.load import ConfigError, Problem, parse_yaml, read_yaml_text
from pelagos.platform.config.sweep import COMPARES_RUNNING_TRIALS, SweepJob


def expand(sweep: SweepJob, cluster: Cluster) -> tuple[SweepJob, list[Trial]]:
    """Return the sweep, with its job files taken into it, and its trials, ready to be submitted.

    Raises:
        ConfigError: `trials_of` or `prepare` rejects it, or only `pelagos sweep` runs it.
    """
    if problem := _unfit(sweep, cluster):
        raise ConfigError(f"sweep {sweep.name}", [problem])
    sweep = _self_contained(sweep, cluster)
    prepared = as_kind(SweepJob, prepare(sweep, cluster.config))
    for trial in trials_of(prepared):
        plugins.load_for(trial.job)
    trials = [tracked(prepared, t, child_tags(sweep, None)) for t in trials_of(prepared)]
    return prepared, [_placed(trial, cluster) for trial in trials]


def needs_of_all(trials: list[Trial]) -> Needs:
    """Return resources that suffice for each trial: the tasks of an array ask for the same."""
    each = [kind_of(trial.job).needs(trial.job) for trial in trials]
    return Needs(1, max(n.cpus_per_worker for n in each), max(n.gpus_per_worker for n in each))


def _unfit(sweep: SweepJob, cluster: Cluster) -> Problem | None:
    if sweep.search.name in COMPARES_RUNNING_TRIALS:
        message = (
            "compares trials while they run, which submitted trials cannot do, because each is a "
            "run of its own. Use grid or random, or run `pelagos sweep` on the cluster, with "
            "ray_address"
        )
        return Problem(("search", "name"), message)
    if not cluster.makes_runs_wait:
        message = (
            f"{cluster.name} is this machine, where all trials of {sweep.name} would start at once. "
            "Run `pelagos sweep`, which obeys max_concurrent"
        )
        return Problem(("job",), message)
    return None


def _self_contained(sweep: SweepJob, cluster: Cluster) -> SweepJob:
    """Return the sweep with each job itself in place of its file, and the cluster's defaults set."""
    jobs = {}
    for label, entry in sweep.jobs.items():
        if entry.file is None:
            jobs[label] = entry
            continue
        tree, _ = parse_yaml(read_yaml_text(entry.file), entry.file)
        defaults = cluster_defaults(entry.file, cluster.config)
        # the sweep's own tracking counts
        changed = {k: v for k, v in defaults.items() if not k.startswith("tracking.")}
        changes = {"file": None, "job": tree, "set": {**changed, **entry.set}}
        jobs[label] = entry.model_copy(update=changes)
    return sweep.model_copy(update={"jobs": jobs})


def _placed(trial: Trial, cluster: Cluster) -> Trial:
    """Return the trial with its paths absolute, launched in the way of the cluster."""
    job = prepare(trial.job, cluster.config)
    resources = {"launcher": "ray" if cluster.trains_through_ray else "none"}
    changes = {"resources": job.resources.model_copy(update=resources)}  # type: ignore[union-attr]
    return replace(trial, job=job.model_copy(update=changes))  # type: ignore[arg-type]
