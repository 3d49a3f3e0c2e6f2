"""`pelagos finetune`: take the weights of a source over to a downstream task, then train."""

import re
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from pelagos.data_pipelines.streaming.mixtures.mixture import Mixture
from pelagos.data_pipelines.streaming.normalization import Normalization
from pelagos.jobs import pretrain
from pelagos.jobs.pretrain import PretrainResult
from pelagos.jobs.training.blueprint import INITIAL_WEIGHTS, Blueprint, left_trainable
from pelagos.jobs.training.checking import checked
from pelagos.jobs.training.networks import build_network, build_objective
from pelagos.jobs.weights.sources import Source, open_source
from pelagos.models.adaptation import Adaptation, adapt
from pelagos.models.low_rank import initial_updates
from pelagos.platform.checkpoint import CheckpointStore
from pelagos.platform.config.finetune import SOURCE_MODEL, FinetuneJob
from pelagos.platform.config.kinds import as_kind
from pelagos.platform.config.load import ConfigError, Problem
from pelagos.platform.config.schema import ConstantsConfig, ModelConfig
from pelagos.platform.console import HarmlessConsole
from pelagos.platform.launch import Watcher
from pelagos.platform.mlflow_records.store import tracking_uri
from pelagos.platform.optimization.optimizer import freeze
from pelagos.platform.records.runs import RunDirectory
from pelagos.platform.storage_choice import options_for

_COLOURS = {
    "matched": "green",
    "interpolated": "cyan",
    "re-initialised": "yellow",
    "dropped": "red",
}
_LISTED = 40


@dataclass(frozen=True)
class PreparedFinetune:
    """A fine-tuning that can start: the job with all that the source decides filled in."""

    job: FinetuneJob
    blueprint: Blueprint
    source: Source
    adaptation: Adaptation
    notes: tuple[str, ...]

    @property
    def mixture(self) -> Mixture:
        """The training data."""
        return self.blueprint.mixture


def run(
    job: FinetuneJob,
    console: Console | None = None,
    watcher: Watcher | None = None,
    until_step: int | None = None,
    identity: str | None = None,
) -> PretrainResult:
    """Fine-tune as a new run, to its end; `watcher` is called several times a second meanwhile.

    With `until_step` it stops, with a checkpoint, after that many steps.

    Raises:
        ConfigError: the job cannot run as written; nothing was made.
        RunError: the run's name is taken.
    """
    console = console or HarmlessConsole()
    prepared = prepare(job)
    show_adaptation(prepared, console)
    return pretrain.start(
        prepared.blueprint,
        console,
        watcher,
        lambda directory: write_initial_weights(prepared, directory),
        until_step,
        identity,
    )


def make_ready_again(directory: RunDirectory) -> None:
    """Write the initial weights of a run that was killed before it had any.

    Raises:
        ConfigError: the source is no longer there.
    """
    job = as_kind(FinetuneJob, directory.job())
    uris = (
        directory.checkpoint_uri_of(job),
        f"{directory.checkpoint_uri_of(job)}/{INITIAL_WEIGHTS}",
    )
    if any(CheckpointStore(u, options_for(u, job.storage)).complete() for u in uris):
        return
    write_initial_weights(prepare(job), directory)


def prepare(job: FinetuneJob) -> PreparedFinetune:
    """Open the source and decide the treatment of each parameter; nothing is written.

    Raises:
        ConfigError: with every reason why the job cannot run.
    """
    try:
        source = open_source(job.source, job.model, job.runs_dir, job.storage, tracking_uri(job))
    except (ValueError, OSError) as error:
        raise ConfigError(f"job {job.name}", [Problem(("source",), str(error))]) from error
    job = _with_model(job, source)
    job = _with_normalization(job, source)
    try:
        with torch.device("meta"):
            network = build_network(job, build_objective(job))
        adaptation = adapt(network, source.tensors, source.name, job.reinitialize)
    except (ValueError, TypeError) as error:
        message = f"{error}{_other_fields(job, source)}"
        raise ConfigError(f"job {job.name}", [Problem(("source",), message)]) from error
    job = _training_fresh_parameters(job, adaptation)
    blueprint = checked(job)
    notes = tuple(_notes(job, source, blueprint.mixture))
    return PreparedFinetune(job, blueprint, source, adaptation, notes)


def write_initial_weights(prepared: PreparedFinetune, directory: RunDirectory) -> None:
    """Write the workers' starting weights next to the run's checkpoints, unless they exist."""
    job = prepared.job
    uri = f"{directory.checkpoint_uri_of(job)}/{INITIAL_WEIGHTS}"
    store = CheckpointStore(uri, options_for(uri, job.storage))
    lineage = _lineage(prepared)
    directory.append_event("source", **lineage)
    if store.latest_step() is not None:
        return
    model = prepared.blueprint.model
    tensors: dict[str, Tensor] = {n: t.float() for n, t in prepared.adaptation.tensors.items()}
    tensors |= initial_updates(model, job.seed)
    state = {
        "fresh": [name for name in model.state_dict() if name not in tensors],
        "source": lineage,
        "adaptation": [vars(parameter) for parameter in prepared.adaptation.parameters],
    }
    store.save(0, {f"model.{name}": tensor for name, tensor in tensors.items()}, state)


def show_adaptation(prepared: PreparedFinetune, console: Console) -> None:
    """Print the treatment of parameters: every one that is not plainly matched, and the counts."""
    parameters = prepared.adaptation.parameters
    others = [p for p in parameters if p.action != "matched"]
    if others:
        table = Table("parameter", "", "source", "network", title=f"from {prepared.source.name}")
        for p in others[:_LISTED]:
            colour = _COLOURS[p.action]
            table.add_row(
                p.name, Text(p.action, style=colour), _shape(p.source_shape), _shape(p.shape)
            )
        console.print(table)
        if len(others) > _LISTED:
            console.print(f"  and {len(others) - _LISTED} more")
    counts = ", ".join(f"{n} {action}" for action, n in prepared.adaptation.counts().items())
    console.print(f"{prepared.job.name} from {prepared.source.name}: {counts} parameters")
    console.print(f"  {training_memory(prepared.blueprint)}", soft_wrap=True)
    for note in prepared.notes:
        console.print(Text("note", style="yellow"), note, soft_wrap=True)


def training_memory(blueprint: Blueprint) -> str:
    """Return the number of trained parameters, and their memory before sharding, in fp32.

    A weight takes 4 bytes; a trained one 4 more for its gradient and 8 for AdamW's moments.
    """
    model = blueprint.model
    with left_trainable(model):
        freeze(model, blueprint.job.optimizer.frozen)
        sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    total, trained = sum(n for n, _ in sizes), sum(n for n, is_trained in sizes if is_trained)
    megabytes = (4 * total + 12 * trained) / 1e6
    return (
        f"{trained:,} of {total:,} values are trained: {megabytes:,.1f} MB of weights, gradients and "
        f"moments ({16 * total / 1e6:,.1f} MB if all were)"
    )


def _shape(shape: tuple[int, ...] | None) -> str:
    return "-" if shape is None else " x ".join(map(str, shape))


def _with_model(job: FinetuneJob, source: Source) -> FinetuneJob:
    """Return the job with the source's network, its own options on top."""
    if job.model.name != SOURCE_MODEL:
        return job
    model = ModelConfig(name=source.model, config={**source.options, **job.model.config})
    return job.model_copy(update={"model": model})


def _with_normalization(job: FinetuneJob, source: Source) -> FinetuneJob:
    """Return the job with the source's constants, where it asks for them."""
    if job.data.normalization != "source":
        return job
    described = (source.description or {}).get("normalization")
    known = Normalization.from_dict(described) if described else Normalization.identity(())
    missing = [name for name in job.data.fields if name not in known.fields]
    if missing:
        message = (
            f"source: {source.name} has no constants for {', '.join(missing)}, as it was trained on "
            f"{', '.join(known.fields)}. Name those fields alone in data.fields, use statistics, or "
            "give the constants: {mean: {...}, std: {...}}"
        )
        raise ConfigError(f"job {job.name}", [Problem(("data", "normalization"), message)])
    constants = ConstantsConfig(
        mean=dict(zip(known.fields, known.mean, strict=True)),
        std=dict(zip(known.fields, known.std, strict=True)),
    )
    data = job.data.model_copy(update={"normalization": constants})
    return job.model_copy(update={"data": data})


def _training_fresh_parameters(job: FinetuneJob, adaptation: Adaptation) -> FinetuneJob:
    """Return the job with re-initialised parameters among those that are trained themselves."""
    if job.lora is None:
        return job
    fresh = tuple(f"^{re.escape(name)}$" for name in adaptation.names("re-initialised"))
    new = tuple(pattern for pattern in fresh if pattern not in job.lora.also_train)
    lora = job.lora.model_copy(update={"also_train": (*job.lora.also_train, *new)})
    return job.model_copy(update={"lora": lora})


def _lineage(prepared: PreparedFinetune) -> dict[str, Any]:
    counts = prepared.adaptation.counts()
    return {
        "name": prepared.source.name,
        "digest": prepared.source.digest,
        **prepared.source.lineage,
        "adaptation": counts,
    }


def _other_fields(job: FinetuneJob, source: Source) -> str:
    """Return a hint for a source with another number of fields, else an empty text."""
    fields = (source.description or {}).get("fields")
    if fields is None or len(fields) == len(job.data.fields):
        return ""
    return (
        f". The source has the fields {', '.join(fields)}, this job {', '.join(job.data.fields)}: "
        "data.fields chooses them"
    )


def _notes(job: FinetuneJob, source: Source, mixture: Mixture) -> list[str]:
    """Return notes for the user before the first step."""
    notes = []
    trained_on = source.lineage.get("datasets", {}).values()
    shared = [
        entry.dataset.spec.name
        for entry in mixture.entries
        if entry.dataset.fingerprint in trained_on
    ]
    if shared:
        notes.append(
            f"{', '.join(shared)}: {source.name} was already trained on this data (same digest), so "
            "errors measured on it say nothing about transfer"
        )
    fields = tuple((source.description or {}).get("fields", job.data.fields))
    if fields != tuple(job.data.fields) and len(fields) == len(job.data.fields):
        notes.append(
            f"channels are matched by position: {', '.join(fields)} in the source, "
            f"{', '.join(job.data.fields)} here; `reinitialize` starts the outer layers afresh"
        )
    return notes
