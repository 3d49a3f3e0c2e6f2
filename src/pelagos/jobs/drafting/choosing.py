"""Objective, network and schedule of a draft: what the data allow, small enough to try at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pelagos.jobs.drafting.looking import SeenData, SeenMachine
from pelagos.models.registry import model_info

MOST_LEADS = 20  # frames ahead that a draft trains on at most
NANO_MODES = 6  # of fno-nano and tfno-nano, which need twice as many points per axis
SMALL_PATCHES = 64  # grids up to this side get patches of 2 x 2 points, larger ones of 4 x 4


@dataclass(frozen=True)
class Choice:
    """Parts of a training that a draft chooses, with the reason as a comment."""

    objective: str
    model: str
    lr: float
    steps: int
    fields: tuple[str, ...]
    why: str
    objective_config: dict[str, Any] = field(default_factory=dict)
    model_config: dict[str, Any] = field(default_factory=dict)


def choose(data: Sequence[SeenData], model: str | None = None, steps: int | None = None) -> Choice:
    """Return what trains on datasets of one kind (`looking.require_alike`).

    Frames in time are forecast; pictures with a class each are classified, those with a field of
    classes segmented, others completed where they are hidden.

    Raises:
        ValueError: an unknown model.
    """
    first = data[0]
    fields = tuple(dict.fromkeys(name for one in data for name in one.fields))
    if first.num_frames > 1:
        return _forecast(data, fields, model, steps or 1500)
    if first.num_classes:
        config = {"image_size": list(first.grid), "patch_size": [_patch(n) for n in first.grid]}
        return Choice(
            objective="classification",
            model=model or "vit-nano",
            lr=1e-3,
            steps=steps or 1000,
            fields=fields,
            why=f"each picture has one of {first.num_classes} classes",
            objective_config={"num_classes": first.num_classes},
            model_config=config if (model or "vit-nano").startswith("vit") else {},
        )
    if first.labels:
        label = first.labels[0]
        if not first.num_label_classes:
            raise ValueError(
                f"{first.uri}: the highest class of the field {label} is not known. `pelagos data stats "
                f"{first.uri}` computes it; then try again"
            )
        return Choice(
            objective="segmentation",
            model=model or "nnunet-nano",
            lr=3e-3,
            steps=steps or 1000,
            fields=fields,
            why=f"the field {label} has the class of each point",
            objective_config={"label_field": label, "num_classes": first.num_label_classes},
            model_config={"num_dimensions": len(first.grid)},
        )
    patch = _patch(min(first.grid))
    return Choice(
        objective="masked",
        model=model or "mae-nano",
        lr=2e-3,
        steps=steps or 1500,
        fields=fields,
        why="pictures without classes: hidden patches are completed",
        objective_config={"patch_size": patch, "mask_ratio": 0.5},
        model_config={"image_size": list(first.grid), "patch_size": [patch] * len(first.grid)},
    )


def workers(machine: SeenMachine) -> dict[str, Any]:
    """Return `resources` for a first training on this machine."""
    if machine.gpus:
        return {"num_workers": machine.gpus, "gpus_per_worker": 1}
    return {"num_workers": min(2, machine.cores)}


def _forecast(
    data: Sequence[SeenData], fields: tuple[str, ...], model: str | None, steps: int
) -> Choice:
    longest = max(one.num_frames for one in data)
    leads = min(longest - 1, MOST_LEADS)
    scale = max(one.final_time * min(1.0, leads / (one.num_frames - 1)) for one in data)
    config: dict[str, Any] = {"time_scale": round(scale, 6)} if scale > 0 else {}
    why = "any later frame is forecast from any earlier one"
    if longest - 1 > MOST_LEADS:
        config = {"max_lead_steps": MOST_LEADS, **config}
        why += f", up to {MOST_LEADS} frames ahead"
    grids = {one.grid for one in data}
    name = model or ("poseidon-nano" if _fits_poseidon(grids) else "fno-nano")
    family = model_info(name).family
    model_config: dict[str, Any] = {}
    if family == "poseidon":
        side = max(max(grid) for grid in grids)
        model_config = {"image_size": side, "patch_size": 2 if side <= SMALL_PATCHES else 4}
    elif family in ("fno", "tfno", "gnot"):
        model_config = {} if len(data[0].grid) == 2 else {"num_dimensions": len(data[0].grid)}
        smallest = min(min(grid) for grid in grids)
        if family != "gnot" and name.endswith("nano") and smallest < 2 * NANO_MODES:
            model_config["modes"] = smallest // 2
    lr = 5e-3 if family in ("fno", "tfno") else 2e-3 if name.endswith("nano") else 5e-4
    return Choice("all2all", name, lr, steps, fields, why, config, model_config)


def _fits_poseidon(grids: set[tuple[int, ...]]) -> bool:
    """Whether all grids are square, of one size, and whole windows of 8 x 8 tokens cover them."""
    if len(grids) != 1:
        return False
    (grid,) = grids
    return len(grid) == 2 and grid[0] == grid[1] and grid[0] in (32, 64, 128, 256)


def _patch(side: int) -> int:
    """Return the largest patch of which at least four make up a side."""
    return max(n for n in range(1, max(side // 4, 1) + 1) if side % n == 0)
