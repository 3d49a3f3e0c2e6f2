"""The options of a job's objective: their values and their problems."""

from collections.abc import Iterator, Mapping
from dataclasses import MISSING
from typing import Any, get_type_hints

from pydantic import Field, create_model
from pydantic.errors import PydanticSchemaGenerationError

from pelagos.models.objectives import OBJECTIVES, options_of
from pelagos.platform.config.load import KeyPath, Problem, validate_section
from pelagos.platform.config.schema import TrainingJob
from pelagos.platform.config.section import Section

CONFIG: KeyPath = ("objective", "config")


def given_options(job: TrainingJob) -> dict[str, Any]:
    """Return the options that a job gives its objective; null means the objective's own default."""
    return {name: value for name, value in job.objective.config.items() if value is not None}


def option_of(job: TrainingJob, name: str, otherwise: Any = None) -> Any:
    """Return the value of an option: the job's, else the objective's default.

    It is `otherwise` if the objective has no such option.
    """
    given = given_options(job)
    if name in given:
        return given[name]
    own = options_of(job.objective.name).get(name)
    return otherwise if own is None or own.default is MISSING else own.default


def option_problems(job: TrainingJob, lines: Mapping[KeyPath, int] | None = None) -> list[Problem]:
    """Return the problems of names and types of a job's options, and of those that name fields.

    An unknown option is answered with the nearest there is. Ranges are the objective's own to check,
    when it is built. Of an unknown objective nothing is said.

    Args:
        job: the job.
        lines: the line of each key in its file.
    """
    if job.objective.name not in OBJECTIVES:
        return []
    known = _section_of(job.objective.name)
    problems: list[Problem] = []
    if known is not None:
        _, problems = validate_section(known, given_options(job), dict(lines or {}), CONFIG)
    return problems or list(_misfits(job))


def _misfits(job: TrainingJob) -> Iterator[Problem]:
    if job.data.absent_fields == "ones" and option_of(job, "normalize_samples"):
        yield Problem(
            ("data", "absent_fields"),
            "got ones, but objective.config.normalize_samples would turn them into zeros again; "
            "use masked, or set normalize_samples to false",
        )
    groups = option_of(job, "field_groups") or {}
    grouped = [f for group in groups.values() for f in group]
    strangers = [str(f) for f in grouped if f not in job.data.fields]
    if strangers:
        yield Problem(
            (*CONFIG, "field_groups"),
            f"names {', '.join(strangers)}, which data.fields does not have "
            f"({', '.join(job.data.fields)})",
        )


def _section_of(name: str) -> type[Section] | None:
    """Return the options of an objective as a section of a job file, by the types of its dataclass.

    It is None if these are not known at run time, or no file can hold them.
    """
    fields: dict[str, Any] = {}
    try:
        types = get_type_hints(OBJECTIVES[name], include_extras=True)
        for option in options_of(name).values():
            default = Field() if option.default is MISSING else Field(option.default)
            if option.default_factory is not MISSING:
                default = Field(default_factory=option.default_factory)
            fields[option.name] = (types[option.name], default)
        return create_model(f"{name}-options", __base__=Section, **fields)
    except (NameError, PydanticSchemaGenerationError):
        return None
