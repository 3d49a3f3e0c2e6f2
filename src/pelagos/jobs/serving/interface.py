"""What requests and answers hold, stated once: it checks them and is in the OpenAPI document."""

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pelagos.infra.json_text import first_problem
from pelagos.jobs.serving.bodies import JSON, NPY, NPZ
from pelagos.jobs.serving.limits import Refused

_BINARY = {"type": "string", "format": "binary"}
_NESTED: dict[str, Any] = {"type": "array", "items": {}}
_BY_NAME: dict[str, Any] = {"type": "object", "additionalProperties": _NESTED}
_NUMBERS = "Nested lists of numbers [sample, channel, *grid] in physical units, or [channel, *grid]"
_SHAPES = (
    f"{_NUMBERS}; with several frames [sample, frame, channel, *grid]. Or an object with one list "
    "[sample, *grid] per field. null is NaN."
)


class _Asked(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    fields: Annotated[
        Any, Field(description=_SHAPES, json_schema_extra={"anyOf": [_NESTED, _BY_NAME]})
    ]
    absent: list[str] = Field([], description="Fields of the model that the data lack.")
    names: list[str] | None = Field(
        None, description="Names of the channels, in order; default: the model's order."
    )


class PredictRequest(_Asked):
    """Fields, and the lead times to forecast them by."""

    lead_time: float | list[float] | None = Field(
        None,
        description="In the data's unit of time; default: the shortest of the training. Several are "
        "paired with as many samples, or one sample goes with all.",
    )


class RolloutRequest(_Asked):
    """Fields, and how many steps to forecast them by, each from the one before."""

    steps: int = Field(description="Forecasts in a row, at least 1.")
    lead_time: float | None = Field(
        None, description="Of one step; default: the shortest of the training."
    )


class ForecastAnswer(BaseModel):
    """Forecasts in physical units."""

    forecast: Any = Field(
        description="As the request's fields: predict gives [sample, channel, *grid], or "
        "[lead, channel, *grid] of one sample; rollout gives [sample, step, channel, *grid]. null where "
        "there is no forecast.",
        json_schema_extra={"anyOf": [_NESTED, _BY_NAME]},
    )
    fields: list[str] = Field(description="Names of the channels.")
    lead_time: list[float] = Field(description="Of the forecasts.")
    time_unit: str = Field(description="Of the lead times; 1 if none is known.")
    warnings: list[str] = Field(description="Doubts about the request.")


class Problem(BaseModel):
    """Why there is no answer."""

    detail: str


class Health(BaseModel):
    """Whether the model answers."""

    status: str = Field(description="ready, or starting, or not answering.")


class Model(BaseModel):
    """The model, and the limits of this server."""

    name: str
    fields: list[str]
    units: dict[str, str] = Field(description="Of each field, where the training recorded it.")
    grids: list[list[int]] = Field(description="Points of the grids of the training.")
    lead_times: list[float] = Field(description="Of the training, ascending.")
    time_unit: str
    input_frames: int = Field(description="Frames that a forecast starts from.")
    weights: str = Field(description="model, or ema: averaged.")
    limits: dict[str, float]


Asked = TypeVar("Asked", bound=BaseModel)


def checked(kind: type[Asked], values: dict[str, Any]) -> Asked:
    """Return a request. Raises Refused (422) naming the key that is wrong."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        known = ", ".join(kind.model_fields)
        text = f"{first_problem(error, 'the request')}. A request has the keys {known}"
        raise Refused(422, text) from None


_PROBLEMS = {
    401: "The token is missing or wrong.",
    408: "The request did not arrive in time.",
    413: "The request has too many bytes.",
    415: "Another type of content.",
    422: "The request is wrong, or asks for too much; the text says what.",
    503: "The server is starting, or has too many requests in work.",
    504: "The answer took too long.",
}
PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": text} for status, text in _PROBLEMS.items()
}


def request_body(kind: type[BaseModel]) -> dict[str, Any]:
    """Return the part of an OpenAPI document that says what a request holds."""
    name = kind.__name__
    return {
        "requestBody": {
            "required": True,
            "description": f"JSON ({name}); .npz with arrays of the same names, or one per field; or "
            ".npy of the fields, with the rest in the query. The answer has the same type.",
            "content": {
                JSON: {"schema": {"$ref": f"#/components/schemas/{name}"}},
                NPY: {"schema": _BINARY},
                NPZ: {"schema": _BINARY},
            },
        },
        "parameters": [
            {
                "name": key,
                "in": "query",
                "required": False,
                "description": "With .npy only. May be repeated.",
                "schema": {"type": "array", "items": {"type": kind_of}},
            }
            for key, kind_of in _in_query(kind).items()
        ],
    }


def _in_query(kind: type[BaseModel]) -> dict[str, str]:
    types = {"lead_time": "number", "steps": "integer", "absent": "string", "names": "string"}
    return {key: type_ for key, type_ in types.items() if key in kind.model_fields}


ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "model": ForecastAnswer,
        "description": "The forecasts.",
        "content": {NPY: {"schema": _BINARY}, NPZ: {"schema": _BINARY}},
    },
    **PROBLEMS,
}
