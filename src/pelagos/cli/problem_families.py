"""`pelagos generate --list`: the families of problems that can be simulated."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from pelagos.cli.common import console, print_json

if TYPE_CHECKING:
    from pelagos.data_pipelines.generate.family import Family

_INDENT = (0, 0, 0, 2)


def show_problem_families(as_json: bool) -> None:
    """Print each family with its equation, fields, parameters and boundary conditions."""
    from pelagos.data_pipelines.generate.families import FAMILIES

    if as_json:
        rows = [
            {
                "name": family.name,
                "description": family.description,
                "equation": family.equation,
                "fields": list(family.fields),
                "parameters": list(family.parameter_names),
                "boundary_conditions": family.boundary_conditions,
                "origin": FAMILIES.origin(name),
            }
            for name, family in FAMILIES.items()
        ]
        print_json(rows)
        return
    alike: dict[tuple[str, ...], list[Family]] = {}
    for family in FAMILIES.values():
        edges = ", ".join(dict.fromkeys(family.boundary_conditions.values()))
        names = (", ".join(family.fields), ", ".join(family.parameter_names))
        alike.setdefault((family.equation, *names, edges), []).append(family)
    for (equation, fields, parameters, edges), members in alike.items():
        console.print(Text(equation, style="bold"), soft_wrap=False)
        console.print(
            Padding(f"fields {fields}; parameters {parameters}; boundaries {edges}", _INDENT)
        )
        table = Table(show_header=False, box=None, pad_edge=False, padding=(0, 2))
        table.add_column(no_wrap=True, style="cyan")
        table.add_column(overflow="fold")
        for family in members:
            table.add_row(f"  {family.name.lower()}", Text(family.description))
        console.print(table)
        console.print()
    console.print("Use one as `family` of a `generate` job: configs/quickstart/generate.yaml.")
