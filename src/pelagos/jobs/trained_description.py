"""What a training says of its network, beside the weights: data of whoever shared them."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from pelagos import plugins
from pelagos.infra.json_text import first_problem
from pelagos.platform.run_files import read_json


class _Part(BaseModel):
    """The keys that are read in every use; others are checked where they are used."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class _Network(_Part):
    name: str
    config: dict[str, Any]


class _Objective(_Part):
    name: str


class _Normalization(_Part):
    fields: list[str]
    mean: list[float]
    std: list[float]


class _Dataset(_Part):
    name: str
    fingerprint: str


class _Description(_Part):
    model: _Network
    objective: _Objective
    fields: list[str]
    normalization: _Normalization | None = None
    datasets: list[_Dataset] = []
    plugins: list[str] = []


def checked_description(values: Any, where: str) -> dict[str, Any]:
    """Return a description as it is, once it is one.

    Raises:
        ValueError: it is none; names `where`, the key and what was expected. Or it needs a plugin,
            which nothing but the user's word imports.
    """
    try:
        _Description.model_validate(values)
    except ValidationError as error:
        problem = first_problem(error, "the whole")
        raise ValueError(
            f"{where} does not describe a trained network: {problem}. Training, `pelagos export` and "
            f"the registry write such descriptions"
        ) from error
    plugins.require_loaded(values.get("plugins", ()), where)
    return dict(values)


def read_trained_description(path: Path) -> dict[str, Any]:
    """Return the description in a directory of weights.

    Raises:
        ValueError: it is none.
        OSError: it cannot be read, or is no regular file.
    """
    return checked_description(read_json(path), str(path))
