"""`pelagos export`: a run's trained model as a directory in the Hugging Face layout."""

from pathlib import Path

import torch

from pelagos.jobs.training.run_plugins import import_plugins_of
from pelagos.jobs.weights.described_parts import described_network
from pelagos.jobs.weights.model_directory import ModelDirectory, check_free, write_model_directory
from pelagos.jobs.weights.run_weights import trained_weights
from pelagos.models.pretrained import check_weights
from pelagos.platform.records.runs import RunDirectory


def run(
    name: str,
    directory: str | Path,
    *,
    checkpoint: str = "last",
    weights: str = "auto",
    max_shard_size: str = "5GB",
    runs_dir: str = "runs",
    overwrite: bool = False,
) -> ModelDirectory:
    """Write a run's model: weights, configuration, fields and normalisation.

    Only the weights are read of the checkpoint (`last`, `best` or a step), not the optimizer.
    `weights` is `model`, `ema` for the averaged ones, or `auto`: the averaged ones where the run
    keeps them. `load_pretrained(directory)` reads the network back, and `Forecaster.load(directory)`
    the network with fields and normalisation.

    Raises:
        ValueError: no such run, checkpoint or weights, or `directory` exists; nothing was written.
    """
    if weights not in ("auto", "model", "ema"):
        raise ValueError(f"weights={weights!r}: expected auto, model or ema")
    target = Path(directory)
    check_free(target, overwrite)
    directory_of_run = RunDirectory.open(runs_dir, name)
    import_plugins_of(directory_of_run)
    description, tensors, _ = trained_weights(directory_of_run, checkpoint, weights)
    with torch.device("meta"):
        model = described_network(description, tensors)
    check_weights(model, tensors, f"run {name}")
    return write_model_directory(
        target,
        model,
        tensors,
        name=description["model"]["name"],
        description=description,
        max_shard_size=max_shard_size,
        overwrite=overwrite,
    )
