"""Runs of one job under several strategies, side by side: do they agree, what do they cost?

All figures are read from the runs' own records and last checkpoints.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from pelagos.evaluation.pages.plots import COLOURS
from pelagos.platform.checkpoint import CheckpointStore
from pelagos.platform.records.runs import RunDirectory

# Steps in which kernels are chosen, buffers are made and caches fill: not timed.
WARM_UP_STEPS = 3
GIBIBYTE = 2**30


@dataclass(frozen=True)
class LayoutResult:
    """One strategy at one world size, against the reference."""

    name: str
    failure: str = ""
    final_loss: float = math.nan
    max_loss_difference: float = math.nan
    """Largest relative difference of a step's loss."""
    worst_step: int = 0
    max_norm_difference: float = math.nan
    """Largest relative difference of a step's gradient norm."""
    is_bit_equal: bool = False
    """Every loss, gradient norm, weight and moment has the reference's bits."""
    max_weight_difference: float = math.nan
    """Largest difference of a final weight, relative to the largest weight of its tensor."""
    median_step_seconds: float = math.nan
    peak_memory_bytes: float = math.nan


@dataclass(frozen=True)
class Comparison:
    """All layouts of one job; the first is the reference."""

    results: tuple[LayoutResult, ...]
    losses: dict[str, list[float]]
    tolerance: float

    @property
    def disagreements(self) -> list[str]:
        """Sentences about failures, and differences above the tolerance."""
        found = []
        for result in self.results:
            if result.failure:
                found.append(f"{result.name} failed: {result.failure}")
            elif not result.max_loss_difference <= self.tolerance:
                found.append(
                    f"{result.name}: the loss of step {result.worst_step} differs from "
                    f"{self.results[0].name} by {result.max_loss_difference:.2g} relative; the "
                    f"tolerance is {self.tolerance:.2g}"
                )
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON."""
        rows = [{k: _finite(v) for k, v in asdict(r).items()} for r in self.results]
        return {"tolerance": self.tolerance, "layouts": rows, "losses": self.losses}


def compare_runs(layouts: Sequence[tuple[str, RunDirectory, str]], tolerance: float) -> Comparison:
    """Compare finished runs with the first one; (name, run, why it failed or "")."""
    reference, results, losses = None, [], {}
    for name, run, failure in layouts:
        if failure:
            results.append(LayoutResult(name, failure))
            continue
        records, tensors = run.metrics(), _final_tensors(run)
        if reference is None:
            reference = (records, tensors)
        results.append(_against(name, records, tensors, *reference))
        losses[name] = [r["loss"] for r in records]
    return Comparison(tuple(results), losses, tolerance)


def _against(
    name: str,
    records: list[dict[str, Any]],
    tensors: dict[str, Tensor],
    expected_records: list[dict[str, Any]],
    expected: dict[str, Tensor],
) -> LayoutResult:
    differences = [
        _relative(a["loss"], b["loss"]) for a, b in zip(records, expected_records, strict=True)
    ]
    norms = [
        _relative(a["gradient_norm"], b["gradient_norm"])
        for a, b in zip(records, expected_records, strict=True)
        if "gradient_norm" in a and "gradient_norm" in b
    ]
    timed = [r["step_seconds"] for r in records[WARM_UP_STEPS:]] or [records[-1]["step_seconds"]]
    has_equal_tensors = tensors.keys() == expected.keys() and all(
        torch.equal(tensors[n], expected[n]) for n in expected
    )
    return LayoutResult(
        name,
        final_loss=records[-1]["loss"],
        max_loss_difference=max(differences),
        worst_step=1 + differences.index(max(differences)),
        max_norm_difference=max(norms, default=math.nan),
        is_bit_equal=has_equal_tensors and max(differences) == 0 == max(norms, default=0),
        max_weight_difference=_weight_difference(tensors, expected),
        median_step_seconds=statistics.median(timed),
        peak_memory_bytes=max(r["memory_bytes"] for r in records),
    )


def _final_tensors(run: RunDirectory) -> dict[str, Tensor]:
    store = CheckpointStore(run.checkpoint_uri)
    step = store.latest_step()
    assert step is not None, "a finished run has a checkpoint"
    return store.load_named(step, "")


def _weight_difference(tensors: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    return max(
        float((tensors[n] - t).abs().max() / t.abs().max().clamp(min=1e-30))
        for n, t in expected.items()
        if n.startswith("model.") and t.numel()
    )


def _relative(value: float, expected: float) -> float:
    return abs(value - expected) / max(abs(expected), 1e-30)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def comparison_markdown(comparison: Comparison) -> str:
    """Return the table as Markdown."""
    lines = [
        "| layout | final loss | loss, max. relative difference | gradient norm, the same "
        "| weights, the same | bits | step, median s | ratio | peak memory, GiB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += ["| " + " | ".join(row) + " |" for row in comparison_rows(comparison)]
    return "\n".join(lines) + "\n"


def comparison_rows(comparison: Comparison) -> list[list[str]]:
    """Return the cells of the table, a row per layout."""
    reference = comparison.results[0].median_step_seconds
    rows = []
    for r in comparison.results:
        if r.failure:
            rows.append([r.name, "failed", *[""] * 7])
            continue
        rows.append(
            [
                r.name,
                f"{r.final_loss:.6g}",
                _difference(r.max_loss_difference),
                _difference(r.max_norm_difference),
                _difference(r.max_weight_difference),
                "same" if r.is_bit_equal else "other",
                f"{r.median_step_seconds:.4f}",
                f"{r.median_step_seconds / reference:.2f}",
                f"{r.peak_memory_bytes / GIBIBYTE:.2f}",
            ]
        )
    return rows


def _difference(value: float) -> str:
    return "0" if value == 0 else f"{value:.1e}"


def comparison_figure(comparison: Comparison) -> Figure:
    """Loss curves, their difference to the reference, step time and peak memory."""
    figure = Figure(figsize=(11, 7), layout="constrained")
    FigureCanvasAgg(figure)
    loss_axes, difference_axes, time_axes, memory_axes = figure.subplots(2, 2).flat
    done = [r for r in comparison.results if not r.failure]
    reference = comparison.losses.get(done[0].name, []) if done else []
    for index, result in enumerate(done):
        colour = COLOURS[index % len(COLOURS)]
        style = {"color": colour, "linestyle": ("-", "--", ":", "-.")[index % 4], "linewidth": 1.6}
        losses = comparison.losses[result.name]
        steps = range(1, len(losses) + 1)
        loss_axes.plot(steps, losses, label=result.name, **style)
        if index:
            floor = [max(_relative(a, b), 1e-9) for a, b in zip(losses, reference, strict=True)]
            difference_axes.plot(steps, floor, label=result.name, **style)
        time_axes.barh(result.name, result.median_step_seconds, color=colour)
        memory_axes.barh(result.name, result.peak_memory_bytes / GIBIBYTE, color=colour)
    loss_axes.set(title="loss", xlabel="step")
    loss_axes.legend(fontsize=8)
    difference_axes.axhline(comparison.tolerance, color="#888888", linewidth=1)
    difference_axes.set(
        title=f"relative difference to {done[0].name if done else ''} (equal bits at the bottom)",
        xlabel="step",
        yscale="log",
        ylim=(5e-10, max(1e-5, 10 * comparison.tolerance)),
    )
    difference_axes.annotate(
        "tolerance", (1, comparison.tolerance), fontsize=8, color="#555555", va="bottom"
    )
    time_axes.set(title="median step time", xlabel="s")
    memory_axes.set(title="peak memory of rank 0", xlabel="GiB")
    for axes in (time_axes, memory_axes):
        axes.invert_yaxis()
    return figure
