"""`pelagos generate --list`: the families of problems that can be simulated."""

from __future__ import annotations

from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from pelagos.cli.common import console, print_json
from pelagos.cli.shipped_tables import Rows, problem_family_rows

_INDENT = (0, 0, 0, 2)


def show_problem_families(as_json: bool) -> None:
    """Print each family with its equation, fields, parameters and boundary conditions."""
    rows = problem_family_rows()
    if as_json:
        print_json(rows)
        return
    alike: dict[tuple[str, ...], Rows] = {}
    for row in rows:
        edges = ", ".join(dict.fromkeys(row["boundary_conditions"].values()))
        names = (", ".join(row["fields"]), ", ".join(row["parameters"]))
        alike.setdefault((row["equation"], *names, edges), []).append(row)
    for (equation, fields, parameters, edges), members in alike.items():
        console.print(Text(equation, style="bold"), soft_wrap=False)
        console.print(
            Padding(f"fields {fields}; parameters {parameters}; boundaries {edges}", _INDENT)
        )
        table = Table(show_header=False, box=None, pad_edge=False, padding=(0, 2))
        table.add_column(no_wrap=True, style="cyan")
        table.add_column(overflow="fold")
        for family in members:
            table.add_row(f"  {family['name'].lower()}", Text(family["description"]))
        console.print(table)
        console.print()
    console.print("Use one as `family` of a `generate` job: configs/quickstart/generate.yaml.")
