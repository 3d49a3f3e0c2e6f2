"""The parts of a report that come from a run's records: training, learning curves, data, costs."""

from collections.abc import Mapping, Sequence
from typing import Any

from pelagos.data_pipelines.store.readable import ReadableDataset
from pelagos.evaluation.pages.sections import Facts, Story
from pelagos.jobs.measuring.trained import TrainedRun
from pelagos.jobs.plot_runs import curves_of, panels_of
from pelagos.jobs.training.datasets import open_recorded
from pelagos.jobs.weights.described_parts import recorded_datasets
from pelagos.platform.config.schema import TrainingJob
from pelagos.platform.records.description import RunDescription, description_of


def story_of(trained: TrainedRun, names: Sequence[str], seconds: float, forecasts: int) -> Story:
    """Return the story of a run.

    Args:
        names: the datasets' names in the report, in the order in which the run records them.
        seconds: how long its forecasts took to be made and measured.
        forecasts: the number of trajectories forecast.
    """
    run, training = trained.directory, trained.training
    found = curves_of(run)
    described = description_of(run)
    datasets = [
        open_recorded(record["uri"], training)
        for record in recorded_datasets(trained.forecaster.description)
    ]
    return Story(
        training=_training_facts(trained, described),
        curves=panels_of({run.name: found}) if found else (),
        data={name: dataset_facts(dataset) for name, dataset in zip(names, datasets, strict=True)},
        cost=_cost_facts(training, described, seconds, forecasts),
    )


def dataset_facts(dataset: ReadableDataset) -> Facts:
    """Return what identifies a dataset, for people; nothing that it does not say itself."""
    spec = dataset.spec
    units = {field.name: field.unit for field in spec.fields}
    grid = " x ".join(map(str, spec.grid_shape))
    time_unit = spec.generator.get("time_unit", "")
    facts = {
        "equation": spec.equation,
        "fields": ", ".join(n if u == "1" else f"{n} ({u})" for n, u in units.items()),
        "grid": f"{grid} points, domain {' x '.join(f'{e:g}' for e in spec.domain_extent)}",
        "boundaries": ", ".join(f"{k}: {v}" for k, v in spec.boundary_conditions.items()),
        "frames": f"{spec.num_frames}, {spec.frame_interval:g} {time_unit}".rstrip() + " apart",
        "trajectories": ", ".join(
            f"{name} {stop - start}" for name, (start, stop) in spec.splits.items()
        )
        or str(spec.num_trajectories),
        "constant fields": ", ".join(f"{k} = {v:g}" for k, v in spec.constant_fields.items()),
        "given fields": ", ".join(spec.given_fields),
        "licence": str(spec.generator.get("license") or "not stated"),
    }
    return {name: value for name, value in facts.items() if value}


def _training_facts(trained: TrainedRun, found: RunDescription) -> dict[str, str]:
    job, step = trained.training, trained.step
    batch = job.data.global_batch_size
    parameters = sum(p.numel() for p in trained.forecaster.model.parameters())
    facts = {
        "model": f"{job.model.name}, {parameters:,} parameters",
        "objective": job.objective.name,
        "steps": f"{step:,} of {job.schedule.total_steps:,}, {batch} samples each",
        "optimizer": f"{job.optimizer.name}, peak rate {job.optimizer.lr:g}, "
        f"{job.schedule.name} schedule, {job.schedule.warmup_steps} steps of warm-up",
        "precision, strategy": f"{job.parallel.precision}, {job.parallel.strategy}",
        "weights at the start": _start(job),
        "ended": found.cause or "",
    }
    if found.best_validation is not None:
        best = found.best_validation
        facts["best validation loss"] = f"{best.loss:.4g} at step {best.step:,}"
    if found.last_validation is not None:
        last = found.last_validation
        facts["last validation loss"] = f"{last.loss:.4g} at step {last.step:,}"
    return {name: value for name, value in facts.items() if value}


def _start(job: TrainingJob) -> str:
    source = job.starts_from
    if source is None:
        return "random"
    if source.run is not None:
        return f"run {source.run}@{source.checkpoint}"
    return str(source.uri)


def _cost_facts(
    job: TrainingJob, found: RunDescription, seconds: float, forecasts: int
) -> dict[str, str]:
    values: Mapping[str, Any] = found.metrics
    workers = job.resources.num_workers
    facts = {"workers": f"{workers}, {job.resources.gpus_per_worker or 'no'} GPU each"}
    if "step_seconds_p50" in values:
        total = values["step_seconds_p50"] * (found.step or 0)
        facts["training"] = (
            f"about {total:,.0f} s in steps ({values['step_seconds_p50']:.3g} s each)"
        )
    if "samples_per_second" in values:
        facts["throughput"] = f"{values['samples_per_second']:,.1f} samples/s in the last step"
    if "memory_bytes" in values:
        facts["peak memory"] = f"{values['memory_bytes'] / 2**30:.2f} GiB for each worker"
    if found.goodput is not None:
        facts["goodput"] = f"{found.goodput:.1%} of the time was spent in steps that count"
    facts["this evaluation"] = f"{seconds:,.1f} s for {forecasts} trajectories"
    return facts
