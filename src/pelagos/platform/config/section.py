"""The base of every section of a job file, and the types its keys share."""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from pelagos.infra.storage.addresses import reject_credentials
from pelagos.infra.storage.files import expanded_path

PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
# What torch and numpy take, with room for the numbers that are added to it.
Seed = Annotated[int, Field(ge=0, lt=2**62)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
# One path component: a run name becomes a directory and an object-store prefix.
RunName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]


# Of a run that keeps an average of its weights (`ema_decay`), auto is that; of others, the weights.
WeightsChoice = Literal["auto", "model", "ema"]
WEIGHTS_DESCRIPTION = (
    "auto: the averaged weights where the run keeps them (ema_decay), else the weights; model; ema."
)


def _that_compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"a regular expression; this one has a mistake: {error}") from error
    return pattern


def _as_text(name: Any) -> Any:
    return str(name) if isinstance(name, int) and not isinstance(name, bool) else name


RegularExpression = Annotated[str, AfterValidator(_that_compiles)]
# A path or address; `~` and `${VAR}` are replaced when the file is read, so records show the result.
# None holds a password or token: they are kept in records and shown in logs.
AddressText = Annotated[str, AfterValidator(reject_credentials)]
PathText = Annotated[str, AfterValidator(expanded_path), AfterValidator(reject_credentials)]
# YAML reads a step as a number, and `last` as text.
CheckpointName = Annotated[
    str, BeforeValidator(_as_text), WithJsonSchema({"type": ["string", "integer"]})
]
# RUN@WHICH is split before the values are checked (`run_at_checkpoint`).
RunOfFile = Annotated[
    RunName,
    WithJsonSchema(
        {"type": "string", "pattern": r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}(@(last|best|[0-9]+))?$"}
    ),
]


class Section(BaseModel):
    """A part of a job file: frozen, and unknown keys are errors."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False
    )
