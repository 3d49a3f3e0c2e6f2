"""A training's description of its network, next to the weights: untrusted data."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pelagos import plugins
from pelagos.infra.json_text import first_problem
from pelagos.platform.records.run_files import read_json

Name = Annotated[str, Field(max_length=10_000)]


class _Part(BaseModel):
    """The keys that are read; options of networks and objectives are checked where these are built."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class _Network(_Part):
    name: Name
    config: dict[str, Any]


class _Objective(_Part):
    name: Name


class _Normalization(_Part):
    fields: list[Name]
    mean: list[float]
    std: list[float]


class _Dataset(_Part):
    name: Name
    fingerprint: Name
    uri: Name = ""
    offset: dict[Name, float] = {}
    equation: Name = ""
    units: dict[Name, Name] = {}
    time_unit: Name = "1"
    frame_interval: float | None = None
    grid_shape: Annotated[list[Annotated[int, Field(ge=1)]], Field(max_length=3)] = []
    domain_extent: Annotated[list[float], Field(max_length=3)] = []
    boundary_conditions: dict[Name, Name] = {}
    licence: Name | None = None
    trajectories: int | None = None
    lead_times: list[Annotated[float, Field(ge=0)]] = []


class _LowRank(_Part):
    alpha: float


class _Description(_Part):
    model: _Network
    objective: _Objective
    fields: Annotated[list[Name], Field(min_length=1, max_length=100_000)]
    normalization: _Normalization | None = None
    datasets: list[_Dataset] = []
    absent_value: float = 0.0
    masks: dict[Name, Name] = {}
    patch: Annotated[list[Annotated[int, Field(ge=1)]], Field(max_length=3)] = []
    weights: Name = "model"
    lora: _LowRank | None = None
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
