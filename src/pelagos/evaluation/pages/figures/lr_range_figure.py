"""The picture of a range test: loss against learning rate."""

from collections.abc import Sequence
from pathlib import Path

from pelagos.infra.figures import new_figure


def write_figure(
    rates: Sequence[float],
    losses: Sequence[float],
    smoothed: Sequence[float],
    suggested: float,
    lowest: float,
    path: Path,
) -> None:
    """Write the losses `[step]` against the rates `[step]` as PNG, with both marks."""
    figure = new_figure(7, 4)
    axes = figure.subplots()
    axes.semilogx(rates, losses, color="0.75", linewidth=1, label="loss of each step")
    axes.semilogx(rates, smoothed, color="tab:blue", linewidth=2, label="smoothed")
    axes.axvline(suggested, color="tab:green", label=f"falls fastest: {suggested:.2g} (suggested)")
    axes.axvline(lowest, color="tab:red", linestyle="--", label=f"lowest: {lowest:.2g}")
    axes.set_xlabel("learning rate")
    axes.set_ylabel("training loss")
    axes.legend()
    figure.savefig(path, dpi=120)
