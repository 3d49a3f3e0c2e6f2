"""`pelagos plot`: the learning curves of runs, next to each other; those of one run in its directory."""

from __future__ import annotations

import io
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from pelagos.evaluation.pages.figures.curves_figure import Curve, Panel, write_curves
from pelagos.infra.storage.files import below, replace_durably
from pelagos.platform.records.runs import RunDirectory

logger = logging.getLogger(__name__)
CURVES_NAME = "curves.png"
PANELS = {
    "loss": "training loss",
    "validation_loss": "validation loss",
    "lr": "learning rate",
    "gradient_norm": "gradient norm",
    "samples_per_second": "samples per second",
}
DATASET_LOSS = "loss/"
MOST_POINTS = 1000  # of a curve; of a longer run, each is the mean over neighbouring steps


@dataclass
class Averaged:
    """A curve of at most `2 * MOST_POINTS` points, read once, whatever its length."""

    steps_each: int = 1
    """Values that go into one point; doubled whenever there are too many points."""
    points: list[tuple[int, float, int]] = field(default_factory=list)
    """Last step, sum and number of the values of each point."""

    def add(self, step: int, value: float) -> None:
        """Take the value of the next step."""
        if self.points and self.points[-1][2] < self.steps_each:
            _, total, count = self.points.pop()
            self.points.append((step, total + value, count + 1))
        else:
            self.points.append((step, value, 1))
        if len(self.points) > 2 * MOST_POINTS:
            self.steps_each *= 2
            whole = len(self.points) // 2 * 2
            pairs = zip(self.points[:whole:2], self.points[1:whole:2], strict=True)
            merged = [(b[0], a[1] + b[1], a[2] + b[2]) for a, b in pairs]
            self.points = merged + self.points[whole:]

    @property
    def curve(self) -> Curve:
        """Steps and means."""
        steps = [step for step, _, _ in self.points]
        return steps, [total / count for _, total, count in self.points]


def curves_of(run: RunDirectory) -> dict[str, Curve]:
    """Return the curves of a run by the names of their values: steps and values of each."""
    found: dict[str, Averaged] = {}
    for record in chain.from_iterable(run.tail_of_metrics().pieces()):
        for name, value in record.items():
            if name in PANELS or name.startswith(DATASET_LOSS):
                _add(found, name, record, value)
    for event in chain.from_iterable(run.tail_of_events().pieces()):
        if event.get("kind") == "validation":
            _add(found, "validation_loss", event, event.get("validation_loss"))
    return {name: averaged.curve for name, averaged in found.items()}


def run(runs: Mapping[str, RunDirectory], output: Path) -> dict[str, dict[str, Curve]]:
    """Draw the curves of runs, by the name that each is shown with, into a PNG file.

    Returns the curves by run and name.

    Raises:
        ValueError: no run has taken a step.
    """
    found = {name: curves_of(directory) for name, directory in runs.items()}
    if not any(found.values()):
        raise ValueError(f"nothing to draw: {', '.join(runs)} took no step yet")
    write_curves(panels_of(found), output)
    return found


def draw_run(run: RunDirectory) -> Path | None:
    """Draw the learning curves of a run into its directory; None if it took no step.

    A picture that cannot be drawn undoes no training: it is a warning.
    """
    try:
        found = curves_of(run)
        if not found:
            return None
        picture = io.BytesIO()
        write_curves(panels_of({run.name: found}), picture)
        path = below(run.path, CURVES_NAME)
        replace_durably(path, picture.getvalue())
        return path
    except Exception as error:
        logger.warning("could not draw the learning curves of %s: %s", run.name, error)
        return None


def panels_of(found: Mapping[str, Mapping[str, Curve]]) -> list[Panel]:
    """Return the panels of the curves of runs, by run and name of the value."""
    panels = [
        Panel(title, {name: curves[key] for name, curves in found.items() if key in curves})
        for key, title in PANELS.items()
    ]
    per_dataset = {
        key.removeprefix(DATASET_LOSS)
        if len(found) == 1
        else f"{name} {key[len(DATASET_LOSS) :]}": curve
        for name, curves in found.items()
        for key, curve in curves.items()
        if key.startswith(DATASET_LOSS)
    }
    panels.append(Panel("training loss of each dataset", per_dataset))
    return [panel for panel in panels if panel.curves]


def _add(found: dict[str, Averaged], name: str, record: dict[str, Any], value: Any) -> None:
    """Add a value if it is a finite number at a step; others may have written there."""
    step = record.get("step")
    if isinstance(step, int) and isinstance(value, int | float) and abs(value) < math.inf:
        found.setdefault(name, Averaged()).add(step, float(value))
