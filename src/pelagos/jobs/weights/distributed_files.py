"""Reading `torch.distributed.checkpoint` directories of others, without running their code."""

import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load as load_tensors

from pelagos.platform.checkpoint.safe_metadata import SafeReader


def read_distributed(directory: Path, prefix_of: Callable[[list[str]], str]) -> dict[str, Tensor]:
    """Return the tensors under a prefix, without it, read whole in this one process.

    `prefix_of` chooses the prefix from the names of all tensors.

    Raises:
        ValueError: `.metadata` is damaged or asks for more than records, or a file is missing.
    """
    reader = SafeReader(directory)
    stored = {
        name: entry
        for name, entry in reader.metadata.state_dict_metadata.items()
        if isinstance(entry, TensorStorageMetadata)
    }
    start = prefix_of(list(stored))
    tensors = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in stored.items()
        if name.startswith(start)
    }
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", category=UserWarning)  # one process is what we want
            load_tensors(dict(tensors), storage_reader=reader, no_dist=True)
    except CheckpointException as error:
        cause = next(iter(error.failures.values()))[0]
        raise ValueError(f"{directory} is incomplete: {cause}") from error
    return {name.removeprefix(start): tensor for name, tensor in tensors.items()}
