"""`pelagos models`: the registry as a table, one model as a summary of its modules."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from pelagos.cli.common import console, print_json
from pelagos.cli.shipped_tables import model_rows

if TYPE_CHECKING:
    from torch import Tensor, nn

DEPTH = 2


@dataclass(frozen=True)
class Part:
    """A module by its dotted name: its class, the shapes of its outputs, its parameters."""

    name: str
    kind: str
    gives: tuple[tuple[int, ...], ...]
    parameters: int


def show_models(as_json: bool) -> None:
    """Print every model of the registry."""
    rows = model_rows()
    if as_json:
        print_json(rows)
        return
    table = Table("family", "takes", "size: parameters", "paper", box=SIMPLE_HEAD)
    for column in (0, 1):
        table.columns[column].no_wrap = True
    licences: dict[str, list[str]] = {}
    for family, found in itertools.groupby(rows, key=lambda row: row["family"]):
        members = list(found)
        for row in members:
            if row["weights_license"]:
                licences.setdefault(row["weights_license"], []).append(row["name"])
        sizes = ", ".join(_size(family, row) for row in members)
        table.add_row(family, members[0]["call"], sizes, members[0]["paper"])
    console.print(table)
    console.print(
        "A model's name is FAMILY-SIZE, e.g. poseidon-nano; `pelagos models NAME` shows one."
    )
    for licence, names in licences.items():
        console.print(f"* weights published under {licence}: {', '.join(names)}", highlight=False)


def _size(family: str, row: Mapping[str, Any]) -> str:
    """Return a size as `nano: 0.8M`, with a star if weights are published."""
    name = row["name"].removeprefix(f"{family}-") if row["name"] != family else row["name"]
    millions = row["parameters"] / 1e6
    digits = 0 if millions >= 100 else 1 if millions >= 1 else 2
    return f"{name}: {millions:,.{digits}f}M{'*' if row['weights_license'] else ''}"


def show_model(name: str, as_json: bool) -> None:
    """Print one model: its record, and its parts with their parameters."""
    import torch

    from pelagos.models.registry import FAMILIES, create_model, model_info

    info = model_info(name)
    with torch.device("meta"):
        model = create_model(name)
        given = FAMILIES[info.family].example(model.config, 1)
        parts = parts_of(model, given)
    if as_json:
        print_json(
            {
                **asdict(info),
                "inputs": [list(tensor.shape) for tensor in given],
                "parts": {part.name: part.parameters for part in parts if "." not in part.name},
                "structure": [asdict(part) for part in parts],
            }
        )
        return
    table = Table(title=f"{info.name}: {info.parameters:,} parameters", show_header=False)
    for key, value in asdict(info).items():
        table.add_row(key.replace("_", " "), str(value if value is not None else "-"))
    console.print(table)
    shown = " and ".join(_shape(tuple(tensor.shape)) for tensor in given)
    modules = Table("part", "kind", "gives", "parameters", "share", title=f"one sample: {shown}")
    for part in parts:
        depth = part.name.count(".")
        modules.add_row(
            "  " * depth + part.name.rpartition(".")[2],
            part.kind,
            " and ".join(map(_shape, part.gives)) or "-",
            f"{part.parameters:,}",
            f"{part.parameters / info.parameters:.1%}",
        )
    console.print(modules)


def parts_of(model: nn.Module, given: tuple[Tensor, ...]) -> list[Part]:
    """Return the parts of a network, two levels deep, with the shapes of their outputs for an input."""
    names = {
        module: name for name, module in model.named_modules() if name and name.count(".") < DEPTH
    }
    gives: dict[str, tuple[tuple[int, ...], ...]] = {}

    def record(module: nn.Module, _: Any, output: Any) -> None:
        gives.setdefault(names[module], tuple(_shapes_in(output)))

    handles = [module.register_forward_hook(record) for module in names]
    try:
        model(*given)
    finally:
        for handle in handles:
            handle.remove()
    return [
        Part(
            name,
            type(module).__name__,
            gives.get(name, ()),
            sum(parameter.numel() for parameter in module.parameters()),
        )
        for module, name in names.items()
    ]


def _shapes_in(output: Any) -> Iterator[tuple[int, ...]]:
    from torch import Tensor

    if isinstance(output, Tensor):
        yield tuple(output.shape)
    elif isinstance(output, tuple | list):
        for entry in output:
            yield from _shapes_in(entry)
    elif hasattr(output, "output"):
        yield from _shapes_in(output.output)


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
