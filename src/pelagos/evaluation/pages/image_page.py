"""The report of a classifier or a segmentation network: its page, its figures, its numbers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from pelagos.evaluation.forecasting.images import ImageEvaluation
from pelagos.evaluation.pages import plots
from pelagos.evaluation.pages.forecast_page import (
    NUMBERS_NAME,
    REPORT_NAME,
    Picture,
    Provenance,
    page_environment,
    strict,
)
from pelagos.infra.figures import new_figure
from pelagos.infra.storage.files import replace_durably


def numbers(evaluations: Sequence[ImageEvaluation], provenance: Provenance) -> dict[str, Any]:
    """Every number as plain JSON values; one that is not finite is None."""
    plain: dict[str, Any] = strict(
        {
            "provenance": asdict(provenance),
            "datasets": [
                {
                    "name": e.name,
                    "uri": e.uri,
                    "fingerprint": e.fingerprint,
                    "images": list(e.images),
                    "notes": e.notes(),
                    "summary": e.summary(),
                    "classes": e.class_rows(),
                    "confusion": e.counts.tolist(),
                    "per_image": {
                        "dice": e.dice.tolist(),
                        "mean_distance": e.mean_distance.tolist(),
                        "hausdorff_95": e.hausdorff_95.tolist(),
                    },
                }
                for e in evaluations
            ],
        }
    )
    return plain


def write_image_report(
    evaluations: Sequence[ImageEvaluation], provenance: Provenance, directory: Path
) -> tuple[Path, dict[str, Any]]:
    """Write report.html, which needs no other file, and metrics.json; return path and numbers."""
    directory.mkdir(parents=True, exist_ok=True)
    values = numbers(evaluations, provenance)
    text = json.dumps(values, indent=1, allow_nan=False)
    replace_durably(directory / NUMBERS_NAME, text.encode() + b"\n")
    page = (
        page_environment()
        .get_template("images.html.j2")
        .render(
            provenance=provenance,
            config=json.dumps(strict(dict(provenance.config)), indent=2, default=str),
            sections=[
                {"evaluation": e, "figures": [(p.caption, p.data_uri) for p in _figures(e)]}
                for e in evaluations
            ],
        )
    )
    replace_durably(directory / REPORT_NAME, page.encode())
    return directory / REPORT_NAME, values


def _figures(evaluation: ImageEvaluation) -> list[Picture]:
    drawn = plots.figure_png(confusion_figure(evaluation))
    pictures = [
        Picture("Confusion matrix; each row is normalised to shares.", "confusion.png", drawn)
    ]
    if evaluation.examples:
        caption = "The first images: input, truth and prediction."
        shown = plots.figure_png(examples_figure(evaluation))
        pictures.append(Picture(caption, "examples.png", shown))
    return pictures


def confusion_figure(evaluation: ImageEvaluation) -> Figure:
    """Rows: true classes, columns: given ones; colour and number: share of the row."""
    counts = evaluation.counts
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = 1.6 + 0.45 * len(counts)
    figure = new_figure(size + 0.8, size)
    axis = figure.subplots()
    axis.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0)
    for row, column in np.ndindex(*shares.shape):
        colour = "white" if shares[row, column] > 0.5 else "black"
        text = f"{shares[row, column]:.2f}".lstrip("0") if counts[row, column] else ""
        axis.text(column, row, text, ha="center", va="center", color=colour, fontsize=7)
    axis.set(xlabel="given", ylabel="true", xticks=range(len(counts)), yticks=range(len(counts)))
    return figure


def examples_figure(evaluation: ImageEvaluation) -> Figure:
    """Images, a column each, first row at the top; of segmentations truth and answer below.

    Volumes: the middle slice.
    """
    examples, num_rows = evaluation.examples, 3 if evaluation.is_segmentation else 1
    figure = new_figure(1.5 * len(examples) + 0.4, 1.6 * num_rows + 0.3)
    axes = figure.subplots(num_rows, len(examples), squeeze=False)
    top = len(evaluation.counts) - 1
    for column, example in enumerate(examples):
        axes[0, column].imshow(_slice(example.image), cmap="gray")
        if evaluation.is_segmentation:
            axes[0, column].set_title(f"image {example.number}", fontsize=8)
            for row, values in ((1, example.truth), (2, example.predicted)):
                shown = _slice(values)
                axes[row, column].imshow(shown, cmap="tab10", vmin=0, vmax=max(9, top))
        else:
            title = f"true {int(example.truth)}, predicted {int(example.predicted)}"
            axes[0, column].set_title(title, fontsize=8)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    for row, label in enumerate(("image", "truth", "answer")[:num_rows]):
        axes[row, 0].set_ylabel(label, fontsize=8)
    return figure


def _slice(values: Any) -> Any:
    return values if values.ndim == 2 else values[len(values) // 2]
