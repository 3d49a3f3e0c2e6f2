"""Writing a model directory: in the Hugging Face layout, in shards, whole or not at all."""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import split_torch_state_dict_into_shards
from torch import Tensor

from pelagos.infra.storage.files import sync_directory
from pelagos.models.pretrained import CONFIG_FILE, INDEX_FILE, Pretrained, describe, write_weights

DESCRIPTION_FILE = "forecaster.json"


@dataclass(frozen=True)
class ModelDirectory:
    """A written model directory: its place, its registered model, and its size.

    `weights` is `ema` where these are averaged ones, `model` where they are not; None: not said.
    """

    directory: str
    model: str | None
    parameters: int
    num_bytes: int
    files: tuple[str, ...]
    weights: str | None = None


def check_free(directory: Path, overwrite: bool) -> None:
    """Raise ValueError if a directory must not be written: it exists, or is no model directory."""
    if not directory.exists():
        return
    if not overwrite:
        raise ValueError(f"{directory} exists; choose another directory or give --overwrite")
    if not (directory / CONFIG_FILE).is_file() and (
        not directory.is_dir() or any(directory.iterdir())
    ):
        raise ValueError(
            f"{directory} exists and is not a model directory (it has no {CONFIG_FILE}), so it is "
            "not overwritten; choose another directory"
        )


def write_model_directory(
    directory: Path,
    model: Pretrained,
    tensors: Mapping[str, Tensor],
    *,
    name: str | None,
    description: Mapping[str, Any] | None = None,
    max_shard_size: str = "5GB",
    overwrite: bool = False,
) -> ModelDirectory:
    """Write configuration, weights and, if given, the forecaster's description.

    Everything goes to a temporary directory next to it, which is then renamed: `directory` is whole or
    absent. `model` gives the configuration and may be on the meta device.

    Raises:
        ValueError: `directory` must not be written, or `max_shard_size` is no size.
    """
    check_free(directory, overwrite)
    split = _split(tensors, max_shard_size)
    directory.parent.mkdir(parents=True, exist_ok=True)
    staging = directory.with_name(f".{directory.name}.{os.getpid()}.tmp")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    try:
        for file, names in split.filename_to_tensors.items():
            part = {n: tensors[n].detach().cpu().contiguous() for n in names}
            write_weights(part, staging / file)
        if split.is_sharded:
            index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
            _write_json(staging / INDEX_FILE, index)
        _write_json(staging / CONFIG_FILE, describe(model, tensors, name))
        if description is not None:
            _write_json(staging / DESCRIPTION_FILE, description)
        files = tuple(sorted(file.name for file in staging.iterdir()))
        num_bytes = sum(file.stat().st_size for file in staging.iterdir())
        _move(staging, directory)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    count = sum(tensor.numel() for tensor in tensors.values())
    weights = (description or {}).get("weights")
    return ModelDirectory(str(directory), name, count, num_bytes, files, weights)


def _split(tensors: Mapping[str, Tensor], max_shard_size: str) -> Any:
    try:
        return split_torch_state_dict_into_shards(dict(tensors), max_shard_size=max_shard_size)
    except ValueError as error:
        raise ValueError(
            f"max_shard_size={max_shard_size!r}: expected a size such as 5GB or 500MB ({error})"
        ) from error


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


def _move(staging: Path, directory: Path) -> None:
    """Flush and rename; an earlier directory is set aside until the new one is in place."""
    for file in staging.iterdir():
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
    sync_directory(staging)
    earlier = directory.with_name(f".{directory.name}.{os.getpid()}.old")
    replaced = directory.exists()
    if replaced:
        directory.rename(earlier)
    staging.rename(directory)
    sync_directory(directory.parent)
    if replaced:
        shutil.rmtree(earlier)
