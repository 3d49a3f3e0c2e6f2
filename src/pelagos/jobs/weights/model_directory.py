"""Writing a model directory: in the Hugging Face layout, in shards, whole or not at all."""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import split_torch_state_dict_into_shards
from torch import Tensor

from pelagos.infra.storage.files import sync_directory
from pelagos.models.pretrained import CONFIG_FILE, INDEX_FILE, Pretrained, describe, write_weights

DESCRIPTION_FILE = "forecaster.json"
ADAPTER_CONFIG_FILE = "adapter_config.json"  # PEFT's names
ADAPTER_FILE = "adapter_model.safetensors"


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
    if not any((directory / name).is_file() for name in (CONFIG_FILE, ADAPTER_CONFIG_FILE)) and (
        not directory.is_dir() or any(directory.iterdir())
    ):
        raise ValueError(
            f"{directory} exists and is not a model directory (it has no {CONFIG_FILE}), so it is "
            "not overwritten; choose another directory"
        )


@contextlib.contextmanager
def staged_directory(directory: Path, overwrite: bool) -> Iterator[Path]:
    """Give a temporary directory next to `directory`, renamed to it at the end; whole or absent.

    Raises:
        ValueError: `directory` must not be written.
    """
    check_free(directory, overwrite)
    directory.parent.mkdir(parents=True, exist_ok=True)
    staging = directory.with_name(f".{directory.name}.{os.getpid()}.tmp")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    try:
        yield staging
        _move(staging, directory)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def write_model_directory(
    directory: Path,
    model: Pretrained,
    tensors: Mapping[str, Tensor],
    *,
    name: str | None,
    description: Mapping[str, Any] | None = None,
    max_shard_size: str = "5GB",
    overwrite: bool = False,
    add: Callable[[Path], None] = lambda _: None,
) -> ModelDirectory:
    """Write configuration, weights and, if given, the forecaster's description.

    `directory` is whole or absent. `model` gives the configuration and may be on the meta device. `add`
    writes further files, before the directory has its name.

    Raises:
        ValueError: `directory` must not be written, or `max_shard_size` is no size.
    """
    check_free(directory, overwrite)
    split = _split(tensors, max_shard_size)
    with staged_directory(directory, overwrite) as staging:
        for file, names in split.filename_to_tensors.items():
            part = {n: tensors[n].detach().cpu().contiguous() for n in names}
            write_weights(part, staging / file)
        if split.is_sharded:
            index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
            write_json(staging / INDEX_FILE, index)
        write_json(staging / CONFIG_FILE, describe(model, tensors, name))
        if description is not None:
            write_json(staging / DESCRIPTION_FILE, description)
        add(staging)
        files, num_bytes = contents(staging)
    count = sum(tensor.numel() for tensor in tensors.values())
    weights = (description or {}).get("weights")
    return ModelDirectory(str(directory), name, count, num_bytes, files, weights)


def contents(directory: Path) -> tuple[tuple[str, ...], int]:
    """Return the files in a directory, and their size in bytes."""
    files = sorted(directory.iterdir())
    return tuple(file.name for file in files), sum(file.stat().st_size for file in files)


def _split(tensors: Mapping[str, Tensor], max_shard_size: str) -> Any:
    try:
        return split_torch_state_dict_into_shards(dict(tensors), max_shard_size=max_shard_size)
    except ValueError as error:
        raise ValueError(
            f"max_shard_size={max_shard_size!r}: expected a size such as 5GB or 500MB ({error})"
        ) from error


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON."""
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
