"""Figures as PNG that show names chosen by others literally."""

from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import LogFormatter

# Of a name in a figure; the page next to it shows the whole name.
MOST_CHARACTERS = 200


def new_figure(width: float, height: float) -> Figure:
    """Return a figure of the given size in inches on its own canvas."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def write_png(figure: Figure, target: str | Path | IO[bytes], **options: Any) -> None:
    """Save a figure with its texts shown literally."""
    keep_texts(figure)
    figure.savefig(target, format="png", **options)


def lay_out(figure: Figure) -> None:
    """Lay out a figure with its texts shown literally."""
    keep_texts(figure)
    figure.draw_without_rendering()


def keep_texts(figure: Figure) -> None:
    """Let a `$` in the texts of a figure begin no formula, and cut long texts.

    Matplotlib would read the text between two dollar signs as a formula, and fail where it is none.
    """
    formulas = set(_formulas(figure))
    for text in figure.findobj(Text):
        if id(text) not in formulas:
            text.set_parse_math(False)
        if len(text.get_text()) > MOST_CHARACTERS:
            text.set_text(f"{text.get_text()[: MOST_CHARACTERS - 1]}\N{HORIZONTAL ELLIPSIS}")


def _formulas(figure: Figure) -> Iterator[int]:
    """The labels that matplotlib itself writes as formulas: powers of ten on logarithmic axes."""
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            for formatter, ticks in (
                (axis.get_major_formatter(), axis.get_major_ticks()),
                (axis.get_minor_formatter(), axis.get_minor_ticks()),
            ):
                if isinstance(formatter, LogFormatter):
                    yield from (id(label) for tick in ticks for label in (tick.label1, tick.label2))
