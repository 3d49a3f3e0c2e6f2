"""Model directories: `config.json` next to safetensors, whole or in shards with an index.

The layout of the Hugging Face hub, read with safetensors alone. Weights are compared with the
network by name and shape before anything is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from pelagos.models.described import buildable

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_LISTED = 10  # names in an error
LONGEST_JSON_BYTES = 2**28  # indexes of the largest models have some megabytes


def write_weights(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write a safetensors file that may be read by whom a new file of this process may be.

    As safetensors writes it, it would be its owner's alone.
    """
    path.touch()
    mode = path.stat().st_mode
    save_file(dict(tensors), path, metadata={"format": "pt"})
    path.chmod(mode & 0o7777)


class BlockList(nn.ModuleList):
    """Blocks under the official name `blocks`; called, the list that strategies wrap."""

    def __call__(self) -> list[nn.Module]:
        return list(self)


def is_norm(module: nn.Module) -> bool:
    """Whether a module normalises: one of torch's, or one that says so in its name."""
    return type(module).__name__.rstrip("123d").endswith("Norm")


class Pretrained(nn.Module):
    """A network of the registry: how it is initialised, listed, written and read.

    `model_types` are the values of `model_type` in `config.json` that name the family, its
    own first. A subclass builds its modules under `torch.device("meta")` and then calls
    `materialize`; parameters of its own, and of modules without `reset_parameters()`, it
    initialises in `init_weights`. It also has `blocks()`, the repeated modules to wrap, compile
    or checkpoint.
    """

    model_types: ClassVar[tuple[str, ...]]
    config_class: ClassVar[Any]
    config: Any

    @property
    def draws_per_sample(self) -> bool:
        """Whether `forward` takes the samples' seeds `[B]` as last argument in training."""
        return False

    def materialize(self, device: torch.device) -> None:
        """Allocate and initialise the network on a device; on the meta device do nothing."""
        if device.type != "meta":
            self.to_empty(device=device)
            self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise every parameter and buffer, from torch's global generator."""
        for module in self.modules():
            self.init_weights(module)

    @torch.no_grad()
    def init_weights(self, module: nn.Module) -> None:
        """Initialise the direct parameters and buffers of one of `modules()`, not its children's.

        Here: torch's own way. Once over all modules is `reset_parameters`; one at a time lets a
        sharded model be filled without ever being whole.
        """
        if module is not self and (module._parameters or module._buffers):
            cast(Any, module).reset_parameters()

    def no_weight_decay(self) -> set[str]:
        """Names of parameters without weight decay.

        Here vectors, and all parameters of norms, whatever their shape. A model's answer is
        the whole rule.
        """
        norms = tuple(f"{name}." for name, module in self.named_modules() if is_norm(module))
        return {
            name
            for name, parameter in self.named_parameters()
            if parameter.ndim < 2 or name.startswith(norms)
        }

    def resized_parameter(self, name: str, source: Tensor) -> Tensor | None:
        """A source's parameter interpolated to this network's grid, None where none fits."""
        return None

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> Self:
        """Return the network of a model directory, in fp32 on the CPU.

        Raises ValueError for a directory that is none, of another family, with a file missing, or
        whose tensors do not fit.
        """
        config = read_config(directory)
        kind = config.get("model_type")
        if kind not in cls.model_types:
            raise ValueError(
                f"{directory} holds a model of type {kind!r}, but {cls.__name__} reads "
                f"{', '.join(cls.model_types)}: use pelagos.models.registry.load_pretrained"
            )
        weights = read_weights(directory)
        with buildable(f"the model of {directory}", weights), torch.device("meta"):
            model = cls(cls.config_class.from_official(with_earlier_defaults(cls, config)))
        check_weights(model, weights, str(directory))
        model.to_empty(device="cpu")
        fill_buffers(model)
        model.load_state_dict(weights, strict=True)
        return model

    def save_pretrained(self, directory: str | Path) -> None:
        """Write `config.json` and `model.safetensors` into a directory, new or empty."""
        path = Path(directory)
        if path.exists() and any(path.iterdir()):
            raise ValueError(f"{path} exists and is not empty; Pelagos wrote nothing")
        path.mkdir(parents=True, exist_ok=True)
        tensors = {name: t.detach().cpu().contiguous() for name, t in self.state_dict().items()}
        write_weights(tensors, path / WEIGHTS_FILE)
        text = json.dumps(describe(self, tensors), indent=2) + "\n"
        (path / CONFIG_FILE).write_text(text)


def with_earlier_defaults(kind: type[Pretrained], config: Mapping[str, Any]) -> dict[str, Any]:
    """A stored configuration, completed with the meaning of options that did not exist yet."""
    return {**getattr(kind.config_class, "earlier_defaults", {}), **config}


def describe(
    model: Pretrained, tensors: Mapping[str, Tensor], name: str | None = None
) -> dict[str, Any]:
    """Return the contents of `config.json`: family, registry name, dtype, every option."""
    dtypes = {str(t.dtype).removeprefix("torch.") for t in tensors.values()}
    return {
        "model_type": model.model_types[0],
        "architectures": [type(model).__name__],
        "model_name": name,
        "dtype": dtypes.pop() if len(dtypes) == 1 else "mixed",
        **asdict(model.config),
    }


def fill_buffers(model: nn.Module) -> None:
    """Fill the tables that state dicts do not carry, where a network has any."""
    getattr(model, "reset_buffers", lambda: None)()


def read_config(directory: str | Path) -> dict[str, Any]:
    """Return `config.json` of a model directory. Raises ValueError if there is none."""
    path = Path(directory) / CONFIG_FILE
    if not path.is_file():
        raise ValueError(
            f"{directory} is not a model directory: it has no {CONFIG_FILE}; "
            f"`pelagos export` and `pelagos import` make one"
        )
    try:
        config = json.loads(_short_text(path))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(config).__name__}")
    return config


def _short_text(path: Path) -> str:
    """The text of a file. Raises ValueError: it is longer than any that describes weights."""
    if path.stat().st_size > LONGEST_JSON_BYTES:
        raise ValueError(f"it has {path.stat().st_size:,} bytes")
    return path.read_text(encoding="utf-8")


def read_weights(directory: str | Path) -> dict[str, Tensor]:
    """Return the tensors of a model directory, of one file or of all its shards.

    Raises ValueError for missing or damaged files, and for shards that lack tensors of the index.
    """
    folder = Path(directory)
    if not (folder / INDEX_FILE).is_file():
        if not (folder / WEIGHTS_FILE).is_file():
            raise ValueError(f"{folder} has neither {WEIGHTS_FILE} nor {INDEX_FILE}")
        return _read_file(folder / WEIGHTS_FILE)
    try:
        index = json.loads(_short_text(folder / INDEX_FILE))["weight_map"]
        if not isinstance(index, dict) or not index:
            raise TypeError("weight_map is not an object with names")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{folder / INDEX_FILE} is damaged: it has no weight_map of names and files"
        ) from error
    files = sorted({str(name) for name in index.values()})
    elsewhere = [name for name in files if Path(name).name != name]
    if elsewhere:
        raise ValueError(
            f"{folder / INDEX_FILE} lists files outside its directory: {_first(elsewhere)}. The "
            "index may come from somebody else, so Pelagos reads none of these files"
        )
    absent = [name for name in files if not (folder / name).is_file()]
    if absent:
        raise ValueError(
            f"{folder} lacks {len(absent)} of the {len(files)} files that {INDEX_FILE} lists: "
            f"{_first(absent)}"
        )
    tensors: dict[str, Tensor] = {}
    for name in files:
        tensors |= _read_file(folder / name)
    lost = sorted(index.keys() - tensors.keys())
    if lost:
        raise ValueError(
            f"the files of {folder} lack tensors that {INDEX_FILE} lists: {_first(lost)}"
        )
    return tensors


def check_weights(model: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Raise ValueError with the first ten names or shapes that do not fit the network."""
    problems = mismatches(model, weights)
    if problems:
        raise ValueError(
            f"the weights of {source} do not fit {type(model).__name__}: {len(problems)} "
            f"mismatches: {_first(problems, '; ')}"
        )


def mismatches(model: nn.Module, weights: Mapping[str, Tensor]) -> list[str]:
    """Return the obstacles to loading weights strictly, one line per name."""
    own = model.state_dict()
    return [
        *(f"{name} is missing" for name in own if name not in weights),
        *(f"{name} is unknown to the network" for name in weights if name not in own),
        *(
            f"{name} has shape {list(weights[name].shape)}, but {list(t.shape)} in the network"
            for name, t in own.items()
            if name in weights and weights[name].shape != t.shape
        ),
    ]


def _read_file(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or not a safetensors file: {error}") from error


def _first(names: list[str], separator: str = ", ") -> str:
    more = len(names) - _LISTED
    return separator.join(names[:_LISTED]) + (f" and {more} more" if more > 0 else "")
