"""Where a fine-tuning starts from: a run, a directory, a file or a registered model, as one thing."""

import hashlib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pelagos.infra.storage.files import below
from pelagos.infra.storage.remote import RemoteStore, is_remote
from pelagos.jobs.training.run_plugins import import_plugins_of
from pelagos.jobs.weights.described_parts import described_network
from pelagos.jobs.weights.foreign_files import owning_run, read_source
from pelagos.jobs.weights.locations import registered_directory
from pelagos.jobs.weights.model_directory import DESCRIPTION_FILE
from pelagos.jobs.weights.recognising import MARKERS, find_network
from pelagos.jobs.weights.run_weights import store_weights, trained_weights
from pelagos.jobs.weights.trained_description import read_trained_description
from pelagos.models.pretrained import read_weights
from pelagos.models.registry import stored_config
from pelagos.platform.checkpoint import CheckpointStore
from pelagos.platform.checkpoint.manifest import MANIFEST, step_of
from pelagos.platform.config.finetune import REGISTRY_SCHEME, SOURCE_MODEL, SourceConfig
from pelagos.platform.config.schema import ModelConfig, StorageConfig
from pelagos.platform.mlflow_records.artifacts import StrangeArtifactsError
from pelagos.platform.records.run_files import read_mapping
from pelagos.platform.records.runs import RunDirectory, RunError
from pelagos.platform.storage_choice import options_for


@dataclass(frozen=True)
class Source:
    """Weights under the network's own names, and their known origin.

    `model` is the network's name in the registry and `options` its configuration except channels.
    `description` is the one that a Pelagos training left (fields,
    normalisation, datasets), None for foreign weights.
    """

    name: str
    tensors: dict[str, Tensor]
    model: str
    options: dict[str, Any]
    description: dict[str, Any] | None = None
    lineage: dict[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """SHA-256 of every tensor with its name, in the order of names."""
        sha = hashlib.sha256()
        for name, tensor in sorted(self.tensors.items()):
            sha.update(f"{name}{list(tensor.shape)}{tensor.dtype}".encode())
            values = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
            sha.update(values.numpy().tobytes())
        return sha.hexdigest()


def open_source(
    config: SourceConfig,
    model: ModelConfig,
    runs_dir: str,
    storage: StorageConfig,
    tracking_uri: str,
) -> Source:
    """Return the weights that a job starts from; `model` is the network it names.

    Raises:
        ValueError: both or neither of `run` and `uri`, nothing there, no weights in it, or a file
            that is not readable without running its code.
    """
    if (config.run is None) == (config.uri is None):
        given = "both" if config.run else "neither"
        raise ValueError(
            f"source: expected one of run and uri, got {given}: `source: {{run: NAME}}` for a run "
            f"of Pelagos, `source: {{uri: PATH}}` for files"
        )
    if config.cluster is not None:
        raise ValueError(
            f"source.cluster={config.cluster}: only `pelagos finetune` looks for the run there. Give "
            "the directory instead: source.runs_dir=DIR (pelagos status RUN shows it)"
        )
    if config.run is not None:
        return _from_run(config, config.runs_dir or runs_dir)
    uri = config.uri or ""
    if uri.startswith(REGISTRY_SCHEME):
        return _from_registry(uri, tracking_uri)
    options = options_for(uri, storage)
    if _holds_checkpoints(uri, options):
        return _from_checkpoints(uri, config.checkpoint, config.weights, options)
    if is_remote(uri):
        return _downloaded(uri, config.prefix, model, options)
    return _from_files(Path(uri).expanduser(), uri, config.prefix, model)


def _from_run(config: SourceConfig, runs_dir: str) -> Source:
    run = RunDirectory.open(runs_dir, config.run or "")
    import_plugins_of(run)
    try:
        description, tensors, step = trained_weights(run, config.checkpoint, config.weights)
    except RunError as error:
        raise ValueError(f"source: {error}") from error
    lineage = {"run": run.name, "step": step, "checkpoint": run.checkpoint_uri}
    lineage["weights"] = description["weights"]
    if "run_id" in (tracked := read_mapping(run.path / "tracking.json")):
        lineage["mlflow_run_id"] = str(tracked["run_id"])
    name = f"run {run.name} step {step}{_averaged(description)}"
    return _described(name, tensors, description, lineage)


def _averaged(description: Mapping[str, Any]) -> str:
    return " (averaged weights)" if description.get("weights") == "ema" else ""


def _holds_checkpoints(uri: str, options: dict[str, Any]) -> bool:
    """Return whether this is a directory of Pelagos checkpoints, or one checkpoint."""
    if step_of(_parent(uri)[1]) is not None:
        return True
    if not is_remote(uri):
        return any(Path(uri).expanduser().glob(f"step-*/{MANIFEST}"))
    return bool(CheckpointStore(uri, options).complete())


def _from_checkpoints(uri: str, checkpoint: str, weights: str, options: dict[str, Any]) -> Source:
    root, name = _parent(uri)
    step = step_of(name)
    if step is not None:
        uri, checkpoint = root, str(step)
    store = CheckpointStore(uri, options)
    description, tensors, found = store_weights(store, checkpoint, weights)
    lineage = {"checkpoint": uri, "step": found, "weights": description["weights"]}
    return _described(f"{uri} step {found}{_averaged(description)}", tensors, description, lineage)


def _parent(uri: str) -> tuple[str, str]:
    root, _, name = uri.rstrip("/").rpartition("/")
    return root or ".", name


def _from_registry(uri: str, tracking_uri: str) -> Source:
    """Return a version of a model that Pelagos registered in MLflow."""
    with tempfile.TemporaryDirectory(prefix="pelagos-source-") as scratch:
        try:
            found = registered_directory(uri, tracking_uri, Path(scratch))
        except StrangeArtifactsError:
            raise
        except ValueError as error:
            raise ValueError(f"source.uri: {error}") from error
        return _from_files(found, uri)


def _downloaded(
    uri: str, prefix: str | None, model: ModelConfig, options: dict[str, Any]
) -> Source:
    """Return the objects at a remote uri: all objects below it, or the one of that name."""
    store = RemoteStore(uri, options)
    keys = [key for key in store.sizes() if key]
    root, name = _parent(uri)
    with tempfile.TemporaryDirectory(prefix="pelagos-source-") as scratch:
        target = below(Path(scratch), name or "weights")
        for key in keys:
            place = below(target, key)  # a key may be any text, such as ../x
            place.parent.mkdir(parents=True, exist_ok=True)
            store.download(key, place)
        if not keys:
            RemoteStore(root, options).download(name, target)
        return _from_files(target, uri, prefix, model)


def _from_files(
    path: Path, uri: str, prefix: str | None = None, model: ModelConfig | None = None
) -> Source:
    """Return the contents of a model directory or a file of weights."""
    if (path / DESCRIPTION_FILE).is_file():
        description = read_trained_description(path / DESCRIPTION_FILE)
        lineage = {"uri": uri} | {k: description[k] for k in ("weights",) if k in description}
        name = f"{uri}{_averaged(description)}"
        return _described(name, read_weights(path), description, lineage)
    run = owning_run(path) if path.is_dir() else None
    if run is not None:
        raise ValueError(
            f"source.uri: {uri} belongs to the run {run.name}. Name it as `source: {{run: "
            f"{run.name}, runs_dir: {run.parent}}}`, which also keeps fields and normalisation"
        )
    try:
        found = read_source(path, prefix, MARKERS)
        if model is None or model.name == SOURCE_MODEL:
            name, options = find_network(found)
        else:
            name, options = model.name, model.config
    except ValueError as error:
        raise ValueError(_with_keys(str(error))) from error
    return Source(uri, found.tensors, name, options, None, {"uri": uri})


def _with_keys(message: str) -> str:
    """Return an error of `pelagos import` with keys of the job for the options of that."""
    keys = {"--model": "model.name", "--prefix": "source.prefix", ", key=value": " in model.config"}
    for option, key in keys.items():
        message = message.replace(option, key)
    return message


def _described(
    name: str,
    tensors: dict[str, Tensor],
    description: Mapping[str, Any],
    lineage: dict[str, Any],
) -> Source:
    if not tensors:
        raise ValueError(f"source: {name} holds no weights")
    with torch.device("meta"):
        described_network(description, tensors)  # or says why not: a job takes over its options
    model = description["model"]
    datasets = {d["name"]: d["fingerprint"] for d in description.get("datasets", ())}
    return Source(
        name,
        tensors,
        model["name"],
        stored_config(model["name"], model["config"]),
        dict(description),
        {**lineage, "datasets": datasets},
    )
