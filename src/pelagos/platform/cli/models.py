"""`pelagos models`: the registry as a table, one model as a summary of its modules."""

from dataclasses import asdict

import torch
from rich.markup import escape
from rich.table import Table

from pelagos.platform.cli.common import console, print_json


def show_models(as_json: bool) -> None:
    """Print every model of the registry."""
    from pelagos.models.registry import list_models, model_info

    infos = [model_info(name) for name in list_models()]
    if as_json:
        print_json([asdict(i) for i in infos])
        return
    table = Table("model", "family", "size", "parameters", "paper", "licence of weights")
    for info in infos:
        table.add_row(
            info.name,
            info.family,
            info.size,
            f"{info.parameters:,}",
            info.paper,
            info.weights_license or "none published",
        )
    console.print(table)


def show_model(name: str, as_json: bool) -> None:
    """Print one model: its record, and its parts with their parameters."""
    from pelagos.models.registry import create_model, model_info

    info = model_info(name)
    with torch.device("meta"):
        model = create_model(name)
    parts = {
        child_name: sum(p.numel() for p in child.parameters())
        for child_name, child in model.named_children()
    }
    if as_json:
        print_json({**asdict(info), "parts": parts})
        return
    table = Table(title=f"{info.name}: {info.parameters:,} parameters", show_header=False)
    for key, value in asdict(info).items():
        table.add_row(key.replace("_", " "), escape(str(value if value is not None else "-")))
    console.print(table)
    modules = Table("part", "parameters", "share")
    for part, count in parts.items():
        modules.add_row(part, f"{count:,}", f"{count / info.parameters:.1%}")
    console.print(modules)
