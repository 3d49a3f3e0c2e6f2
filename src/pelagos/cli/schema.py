"""`pelagos schema`: JSON Schemas of job files, mappings and clusters.yaml, for editors."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from pelagos.cli.common import console, exit_on_error
from pelagos.infra.clusters.schema import CLUSTER_KINDS
from pelagos.platform.config.kinds import JOB_KINDS

DIALECT = "https://json-schema.org/draft/2020-12/schema"
RUNS = {
    "type": "array",
    "minItems": 1,
    "description": "Runs of one submission: `pelagos submit FILE`.",
    "items": {
        "type": "object",
        "required": ["job"],
        "additionalProperties": False,
        "properties": {
            "job": {"type": "string", "description": "A job file, seen from this one."},
            "after": {
                "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
                "description": "Runs that must have finished before.",
            },
            "set": {"type": "object", "description": "Dotted key: value."},
        },
    },
}


def schema_command(
    directory: Annotated[
        str, typer.Argument(help="Directory for job.json, mapping.json and clusters.json.")
    ] = "schemas",
) -> None:
    """Write JSON Schemas, with which editors complete and check job files.

    Name one in the first line of a file: `# yaml-language-server: $schema=schemas/job.json`.

    Example: pelagos schema schemas
    """
    with exit_on_error():
        place = Path(directory)
        place.mkdir(parents=True, exist_ok=True)
        for name, schema in schemas().items():
            text = json.dumps(schema, indent=1, ensure_ascii=False)
            (place / f"{name}.json").write_text(f"{text}\n", encoding="utf-8")
            console.print(f"wrote {place / name}.json")


def schemas() -> dict[str, dict[str, Any]]:
    """Return the schemas of job files, mappings and clusters files."""
    from pelagos.data_pipelines.convert.mapping.schema import Mapping as MappingFile

    return {
        "job": _jobs(),
        "mapping": {
            "$schema": DIALECT,
            "title": "Mapping of arrays to a dataset's fields",
            **MappingFile.model_json_schema(mode="validation"),
        },
        "clusters": _clusters(),
    }


def _jobs() -> dict[str, Any]:
    """Return the schema of every kind of job: by the value of `job`, that kind's."""
    refs, definitions = _definitions(JOB_KINDS)
    return {
        "$schema": DIALECT,
        "title": "Pelagos job",
        "type": "object",
        "properties": {
            "job": {"description": "Kind of job.", "type": ["string"], "enum": [*JOB_KINDS]},
        },
        # a file of runs has no `job`
        "if": {"required": ["runs"], "not": {"required": ["job"]}},
        "then": {"properties": {"runs": RUNS}, "maxProperties": 1},
        "else": {
            "required": ["job"],
            "allOf": [
                {"if": {"properties": {"job": {"const": kind}}, "required": ["job"]}, "then": ref}
                for kind, ref in refs.items()
            ],
        },
        "$defs": definitions,
    }


def _clusters() -> dict[str, Any]:
    refs, definitions = _definitions(CLUSTER_KINDS)
    kinds = {"description": "Kind of cluster.", "enum": [*CLUSTER_KINDS]}
    return {
        "$schema": DIALECT,
        "title": "Pelagos clusters",
        "type": "object",
        "required": ["clusters"],
        "additionalProperties": False,
        "properties": {
            "clusters": {
                "type": "object",
                "description": "Clusters by name.",
                "additionalProperties": {
                    "type": "object",
                    "required": ["kind"],
                    "properties": {"kind": kinds},
                    "allOf": [
                        {"if": {"properties": {"kind": {"const": kind}}}, "then": ref}
                        for kind, ref in refs.items()
                    ],
                },
            }
        },
        "$defs": definitions,
    }


def _definitions(
    kinds: Mapping[str, type[BaseModel]],
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Return a reference to each model's schema, and the schemas."""
    models: list[Any] = [(model, "validation") for model in kinds.values()]
    refs, schema = models_json_schema(models, ref_template="#/$defs/{model}")
    return {name: refs[model, "validation"] for name, model in kinds.items()}, schema["$defs"]
