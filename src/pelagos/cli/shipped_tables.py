"""Tables of what Pelagos brings, written ahead: listing models and families then needs no torch.

    python -m pelagos.cli.shipped_tables

writes them; a test compares them with the registries.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

Rows = list[dict[str, Any]]
_FOLDER = Path(__file__).parent / "tables"


def model_rows() -> Rows:
    """Return what `pelagos models` shows of each model."""
    return _rows("models", "pelagos.models.registry", registered_models)


def problem_family_rows() -> Rows:
    """Return what `pelagos generate --list` shows of each family of problems."""
    module = "pelagos.data_pipelines.generate.families"
    return _rows("problem_families", module, registered_problem_families)


def registered_models() -> Rows:
    """Return the models of the registry, those of plugins included."""
    from pelagos.models.registry import list_models, model_info

    return [asdict(model_info(name)) for name in list_models()]


def registered_problem_families() -> Rows:
    """Return the families of problems of the registry, those of plugins included."""
    from pelagos.data_pipelines.generate.families import FAMILIES

    return [
        {
            "name": family.name,
            "description": family.description,
            "equation": family.equation,
            "fields": list(family.fields),
            "parameters": list(family.parameter_names),
            "boundary_conditions": dict(family.boundary_conditions),
            "origin": FAMILIES.origin(name),
        }
        for name, family in FAMILIES.items()
    ]


def _rows(name: str, module: str, registered: Callable[[], Rows]) -> Rows:
    # a plugin that added one has imported the registry
    if module in sys.modules:
        return registered()
    rows: Rows = json.loads((_FOLDER / f"{name}.json").read_text())
    return rows


def write() -> None:
    """Write the tables anew."""
    for name, registered in TABLES.items():
        (_FOLDER / f"{name}.json").write_text(json.dumps(registered(), indent=1) + "\n")


TABLES = {"models": registered_models, "problem_families": registered_problem_families}

if __name__ == "__main__":
    write()
