"""Reading weights that others wrote: files and directories, recognised by their contents.

Pickles are read by PyTorch's restricted unpickler: plain containers and tensors, and of classes
only those listed here. Whatever else a file names is refused before it is imported or called.
"""

import argparse
import pickle
import re
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pelagos.jobs.weights.distributed_files import read_distributed
from pelagos.models.pretrained import (
    CONFIG_FILE,
    INDEX_FILE,
    WEIGHTS_FILE,
    read_config,
    read_weights,
)
from pelagos.platform.checkpoint.safe_metadata import METADATA_FILE

ALLOWED_CLASSES = (argparse.Namespace,)  # DPOT's files carry their command line
PICKLED_WEIGHTS = "pytorch_model.bin"
_STATE_KEYS = ("model", "state_dict", "model_state_dict", "model_state", "module")
_LISTED = 10


@dataclass(frozen=True)
class ForeignWeights:
    """Tensors under the network's own names, and the `config.json` next to them if there is one."""

    source: str
    tensors: dict[str, Tensor]
    config: dict[str, Any] | None


def read_source(source: Path, prefix: str | None, markers: Collection[str]) -> ForeignWeights:
    """Return the contents of a source.

    `markers` are names of parameters by which a network is recognised: the text before one is
    the prefix, unless it is given.

    Raises:
        ValueError: there is nothing, nothing known, or nothing that may be read without running
            its code, each with the alternative.
    """
    if not source.exists():
        raise ValueError(f"{source} does not exist")
    if not source.is_dir():
        tensors = _rename(_read_file(source), prefix, markers, source)
        config = _config_beside(source.parent)
        return ForeignWeights(str(source), tensors, config)
    _refuse_deepspeed(source)
    _refuse_pelagos(source)
    if (source / METADATA_FILE).is_file():
        tensors = read_distributed(source, lambda names: _prefix(names, prefix, markers, source))
        return ForeignWeights(str(source), tensors, None)
    if (source / WEIGHTS_FILE).is_file() or (source / INDEX_FILE).is_file():
        tensors = read_weights(source)
    elif (source / PICKLED_WEIGHTS).is_file():
        tensors = _read_pickle(source / PICKLED_WEIGHTS)
    else:
        raise ValueError(
            f"{source} holds none of {WEIGHTS_FILE}, {INDEX_FILE}, {PICKLED_WEIGHTS} and "
            f"{METADATA_FILE}: give a file of weights, or a directory with one of these"
        )
    return ForeignWeights(
        str(source), _rename(tensors, prefix, markers, source), _config_beside(source)
    )


def _config_beside(directory: Path) -> dict[str, Any] | None:
    return read_config(directory) if (directory / CONFIG_FILE).is_file() else None


def _refuse_deepspeed(source: Path) -> None:
    parts = ("global_step*", "zero_pp_rank_*", "*_model_states.pt", "bf16_zero_pp_rank_*")
    if any(next(source.glob(part), None) for part in parts):
        root = source if next(source.glob("global_step*"), None) else source.parent
        raise ValueError(
            f"{source} is a DeepSpeed checkpoint, split into pieces by rank. Join them with the "
            "script that DeepSpeed put there, then import the result: python "
            f"{root}/zero_to_fp32.py {root} JOINED --safe_serialization; pelagos import JOINED DIR"
        )


def owning_run(path: Path) -> Path | None:
    """Return the directory of the Pelagos run that a directory is of, or lies in."""
    path = path.absolute()
    for run in (path, path.parent, path.parent.parent):
        if (run / "job.yaml").is_file() and (run / "status.json").is_file():
            return run
    return None


def _refuse_pelagos(source: Path) -> None:
    run = owning_run(source)
    if run is not None:
        raise ValueError(
            f"{source} belongs to the Pelagos run {run.name}. Use `pelagos export {run.name} DIR "
            f"--runs-dir {run.parent}`, which also keeps fields and normalisation"
        )


def _read_file(path: Path) -> dict[str, Tensor]:
    if path.suffix != ".safetensors":
        return _read_pickle(path)
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or not a safetensors file: {error}") from error


def _read_pickle(path: Path) -> dict[str, Tensor]:
    """Return the state dict of a PyTorch file, refusing all but the allowed classes."""
    try:
        with torch.serialization.safe_globals(list(ALLOWED_CLASSES)):
            # mapped, so an optimizer stored next to the weights is never read
            mapped = zipfile.is_zipfile(path)
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        raise ValueError(_refusal(path, str(error))) from error
    except OSError:
        raise
    except Exception as error:  # an unpickler that meets other bytes stumbles in many ways
        raise ValueError(_damaged(path, str(error))) from error
    return _state_dict(content, path)


def _refusal(path: Path, message: str) -> str:
    named = re.search(r"GLOBAL ([\w.]+)", message)
    if named is None:
        return _damaged(path, message)
    allowed = ", ".join(f"{c.__module__}.{c.__name__}" for c in ALLOWED_CLASSES)
    return (
        f"{path} asks to load {named[1]}, which could run code; nothing was run. Pelagos reads only "
        f"tensors, plain containers and {allowed}. If you trust the file, save its state dict alone "
        "where it was made: torch.save(model.state_dict(), ...)"
    )


def _damaged(path: Path, message: str) -> str:
    # torch's own first sentence advises to let the file run its code
    detail = re.search(r"WeightsUnpickler error:\s*(.+)", message)
    lines = [line for line in message.splitlines() if line and "weights_only" not in line]
    reason = detail[1] if detail else lines[0] if lines else "it ends too early, or is not a pickle"
    return f"{path} is damaged or not a PyTorch file: {reason}"


def _state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    for key in _STATE_KEYS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected a state dict")
    others = [str(k) for k, v in content.items() if not isinstance(v, Tensor)]
    if others or not content:
        raise ValueError(
            f"{path}: expected a state dict of tensors, alone or under {', '.join(_STATE_KEYS)}; "
            f"{'it is empty' if not content else 'not tensors: ' + ', '.join(others[:_LISTED])}"
        )
    return {str(name): tensor for name, tensor in content.items()}


def _rename(
    tensors: Mapping[str, Tensor], prefix: str | None, markers: Collection[str], source: Path
) -> dict[str, Tensor]:
    start = _prefix(tensors, prefix, markers, source)
    return {
        name.removeprefix(start): tensor
        for name, tensor in tensors.items()
        # a prefix that was not asked for must not leave anything behind
        if prefix is None or name.startswith(start)
    }


def _prefix(
    names: Collection[str], prefix: str | None, markers: Collection[str], source: Path
) -> str:
    if prefix is not None:
        if not any(name.startswith(prefix) for name in names):
            listed = ", ".join(sorted(names)[:_LISTED])
            raise ValueError(f"{source}: no name begins with {prefix!r}; the first are {listed}")
        return prefix
    found = {
        name.removesuffix(marker)
        for name in names
        for marker in markers
        if name == marker or name.endswith(f".{marker}")
    }
    if len(found) > 1:
        raise ValueError(
            f"{source} holds several networks, under {', '.join(sorted(map(repr, found)))}: "
            f"choose one with --prefix"
        )
    return found.pop() if found else ""
