"""`pelagos export`: a run's trained model as a directory in the Hugging Face layout."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pelagos.infra.storage.files import below
from pelagos.jobs.training.run_plugins import import_plugins_of
from pelagos.jobs.weights.adapters import as_peft
from pelagos.jobs.weights.card import CARD_FILE, Training, adapter_card, model_card
from pelagos.jobs.weights.described_parts import described_network
from pelagos.jobs.weights.forecaster import Forecaster
from pelagos.jobs.weights.model_directory import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_FILE,
    ModelDirectory,
    check_free,
    contents,
    staged_directory,
    write_json,
    write_model_directory,
)
from pelagos.jobs.weights.programs import KINDS, Kind, write_programs
from pelagos.jobs.weights.run_weights import trained_weights
from pelagos.models.low_rank import is_update
from pelagos.models.pretrained import check_weights, write_weights
from pelagos.platform.mlflow_records.description import code_version
from pelagos.platform.records.run_files import read_mapping
from pelagos.platform.records.runs import RunDirectory

WEIGHTS = ("auto", "model", "ema", "base")


def run(
    name: str,
    directory: str | Path,
    *,
    checkpoint: str = "last",
    weights: str = "auto",
    max_shard_size: str = "5GB",
    runs_dir: str = "runs",
    overwrite: bool = False,
    also: Sequence[str] = (),
    licence: str | None = None,
    adapter: bool = False,
) -> ModelDirectory:
    """Write a run's model: weights, configuration, fields and normalisation, and a model card.

    Only the weights are read of the checkpoint (`last`, `best` or a step), not the optimizer.
    `load_pretrained(directory)` reads the network back, and `Forecaster.load(directory)` the network
    with fields and normalisation.

    Args:
        weights: `model`; `ema` for the averaged ones; `auto`, the averaged ones where the run keeps
            them; or `base`, the network of a low-rank fine-tuning without its updates.
        also: programs that run without Pelagos: `torch-export`, `onnx`.
        licence: of the weights, for the card, such as `apache-2.0`.
        adapter: write the low-rank updates alone, in PEFT's layout.

    Raises:
        ValueError: no such run, checkpoint or weights; `directory` exists; or the network cannot be
            such a program or adapter. Nothing was written.
    """
    if weights not in WEIGHTS:
        raise ValueError(f"weights={weights!r}: expected auto, model, ema or base")
    kinds = [kind for kind in KINDS if kind in also]
    if strangers := sorted(set(also) - set(KINDS)):
        raise ValueError(f"--also {strangers[0]}: expected {' or '.join(KINDS)}")
    if adapter and (kinds or weights == "base"):
        raise ValueError("--adapter writes the updates alone: leave out --also and --weights base")
    target = Path(directory)
    check_free(target, overwrite)
    run = RunDirectory.open(runs_dir, name)
    import_plugins_of(run)
    if adapter:
        return _write_adapter(run, target, checkpoint, weights, licence, overwrite)
    description, tensors, step = _weights_of(run, checkpoint, weights)
    with torch.device("meta"):
        model = described_network(description, tensors)
    check_weights(model, tensors, f"run {name}")
    training = _training_of(run, step, description)
    parameters = sum(parameter.numel() for parameter in model.parameters())

    def add(staging: Path) -> None:
        programs = _programs(description, tensors, kinds, staging)
        card = model_card(
            description, training, parameters=parameters, licence=licence, programs=programs
        )
        (staging / CARD_FILE).write_text(card, encoding="utf-8")

    return write_model_directory(
        target,
        model,
        tensors,
        name=description["model"]["name"],
        description=description,
        max_shard_size=max_shard_size,
        overwrite=overwrite,
        add=add,
    )


def _weights_of(
    run: RunDirectory, checkpoint: str, weights: str
) -> tuple[dict[str, Any], dict[str, Tensor], int]:
    if weights != "base":
        return trained_weights(run, checkpoint, weights)
    description, tensors, step = trained_weights(run, checkpoint, "auto", merge=False)
    if not any(map(is_update, tensors)):
        raise ValueError(
            f"run {run.name} has no low-rank updates, so there is no base: leave out --weights base"
        )
    return description, {n: t for n, t in tensors.items() if not is_update(n)}, step


def _programs(
    description: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    kinds: Sequence[Kind],
    staging: Path,
) -> dict[str, str]:
    if not kinds:
        return {}
    return write_programs(Forecaster(description, tensors), kinds, staging)


def _write_adapter(
    run: RunDirectory,
    target: Path,
    checkpoint: str,
    weights: str,
    licence: str | None,
    overwrite: bool,
) -> ModelDirectory:
    description, tensors, step = trained_weights(run, checkpoint, weights, merge=False)
    with torch.device("meta"):
        network = described_network(description)
    source = next((e for e in run.events() if e.get("kind") == "source"), {})
    base = str(source.get("uri") or source.get("name") or "the network that the run started from")
    config, factors = as_peft(network, tensors, description.get("lora") or {}, base)
    training = _training_of(run, step, description)
    with staged_directory(target, overwrite) as staging:
        write_json(staging / ADAPTER_CONFIG_FILE, config)
        write_weights(factors, staging / ADAPTER_FILE)
        count = sum(tensor.numel() for tensor in factors.values())
        card = adapter_card(description, training, base=base, parameters=count, licence=licence)
        (staging / CARD_FILE).write_text(card, encoding="utf-8")
        files, num_bytes = contents(staging)
    model = description["model"]["name"]
    return ModelDirectory(str(target), model, count, num_bytes, files, description.get("weights"))


def _training_of(run: RunDirectory, step: int, description: Mapping[str, Any]) -> Training:
    """Return the run's settings and what was measured of these weights, for the card."""
    job = run.job()
    facts = {
        "optimizer": f"{job.optimizer.name}, learning rate {job.optimizer.lr:g}",
        "schedule": f"{job.schedule.name}, warm-up of {job.schedule.warmup_steps} steps",
        "samples per step": str(job.data.global_batch_size),
        "precision": str(job.parallel.precision),
        "seed": str(job.seed),
    }
    for event in run.events():
        if event.get("kind") == "source":
            facts["started from"] = str(event.get("name"))
        if event.get("kind") == "validation" and event.get("step") == step:
            facts["validation loss"] = f"{event.get('validation_loss')}"
    return Training(
        run.name,
        step,
        job.schedule.total_steps,
        facts,
        _evaluation_of(run, step, str(description.get("weights", "model"))),
        code_version(),
    )


def _evaluation_of(run: RunDirectory, step: int, weights: str) -> Mapping[str, Any] | None:
    """Return the numbers of an evaluation of exactly these weights, of the test split if it has one."""
    for split in ("test", "validation"):
        path = below(run.path, f"evaluation/{split}/metrics.json")
        found = read_mapping(path) if path.is_file() else {}
        origin = found.get("provenance", {})
        if (origin.get("checkpoint_step"), origin.get("weights")) == (step, weights):
            return found
    return None
