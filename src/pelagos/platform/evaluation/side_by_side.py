"""Several runs on the same trajectories: one report of tables, plots and an animation."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from pelagos.infra.files import replace_durably
from pelagos.platform.evaluation import line_plots, plots
from pelagos.platform.evaluation.comparison import COLOURS
from pelagos.platform.evaluation.evaluate import DatasetEvaluation
from pelagos.platform.evaluation.metrics import METRICS
from pelagos.platform.evaluation.report import (
    NUMBERS_NAME,
    REPORT_NAME,
    Picture,
    page_environment,
    strict,
)

RANKED_BY = "relative_l1"
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Contender:
    """One run's way of forecasting one dataset: the best of its methods at the longest lead."""

    run: str
    method: str
    evaluation: DatasetEvaluation


@dataclass(frozen=True)
class SharedDataset:
    """A dataset that several runs forecast, at the same leads from the same frames.

    ``groups`` are the scored fields that all of them know; the contenders are ranked, the best
    first.
    """

    name: str
    groups: tuple[str, ...]
    contenders: tuple[Contender, ...]

    @property
    def first(self) -> DatasetEvaluation:
        """The best run's evaluation: trajectories and lead times are everyone's."""
        return self.contenders[0].evaluation

    def error(self, contender: Contender, metric: str = RANKED_BY) -> FloatArray:
        """Mean over the shared fields of the median over trajectories, ``[lead]``."""
        return _error(contender.evaluation, contender.method, metric, self.groups)

    def persistence(self, metric: str = RANKED_BY) -> FloatArray:
        """The same of the forecast that nothing changes."""
        return _error(self.first, "persistence", metric, self.groups)

    def wins(self, contender: Contender) -> float:
        """Share of trajectories on which it has the least error at the longest lead."""
        scores = [self._last(other) for other in self.contenders]
        own = scores[self.contenders.index(contender)]
        return float((own <= np.min(scores, axis=0)).mean())

    def _last(self, contender: Contender) -> FloatArray:
        scores = contender.evaluation.scores[contender.method][RANKED_BY][:, -1]
        chosen = scores[:, _columns(contender.evaluation, self.groups)].mean(-1)
        return np.where(np.isfinite(chosen), chosen, np.inf)


def shared_datasets(
    evaluations: Mapping[str, Sequence[DatasetEvaluation]],
) -> list[SharedDataset]:
    """Return the datasets that at least two runs forecast, by run name.

    Raises:
        ValueError: no two runs share a dataset, or its leads or fields; what each has is listed.
    """
    by_data: dict[str, list[tuple[str, DatasetEvaluation]]] = {}
    for run, of_run in evaluations.items():
        for evaluation in of_run:
            by_data.setdefault(evaluation.data.fingerprint, []).append((run, evaluation))
    shared = [_shared(found) for found in by_data.values() if len(found) > 1]
    if not shared:
        listed = "; ".join(
            f"{run}: {', '.join(e.data.name for e in of_run)}"
            for run, of_run in evaluations.items()
        )
        raise ValueError(f"these runs have no dataset in common ({listed}): compare others")
    return shared


def _shared(found: Sequence[tuple[str, DatasetEvaluation]]) -> SharedDataset:
    name = found[0][1].data.name
    leads = set.intersection(*(set(e.lead_steps) for _, e in found))
    different = {run: e.lead_steps for run, e in found if set(e.lead_steps) != leads}
    if different:
        told = ", ".join(f"{run} {list(steps)}" for run, steps in different.items())
        raise ValueError(
            f"{name}: the runs forecast other leads (in frames: {told}); choose common ones with "
            f"lead_steps, in frames that each run uses"
        )
    groups = [g for g in found[0][1].group_names if all(g in e.group_names for _, e in found)]
    if not groups:
        told = "; ".join(f"{run}: {', '.join(e.group_names)}" for run, e in found)
        raise ValueError(f"{name}: the runs score no field in common ({told})")
    contenders = [Contender(run, _best_method(e, groups), e) for run, e in found]
    ranked = sorted(contenders, key=lambda c: _error(c.evaluation, c.method, RANKED_BY, groups)[-1])
    return SharedDataset(name, tuple(groups), tuple(ranked))


def _best_method(evaluation: DatasetEvaluation, groups: Sequence[str]) -> str:
    last = {m: _error(evaluation, m, RANKED_BY, groups)[-1] for m in evaluation.forecast_methods}
    return min(last, key=lambda method: last[method])


def _error(
    evaluation: DatasetEvaluation, method: str, metric: str, groups: Sequence[str]
) -> FloatArray:
    values = evaluation.quantile(method, metric)[:, _columns(evaluation, groups)]
    return np.asarray(values.mean(axis=-1))


def _columns(evaluation: DatasetEvaluation, groups: Sequence[str]) -> list[int]:
    return [evaluation.group_names.index(group) for group in groups]


def numbers(shared: Sequence[SharedDataset]) -> dict[str, Any]:
    """Every number of the report as plain JSON values; one that is not finite is None."""
    plain: dict[str, Any] = strict(
        {
            "datasets": [
                {
                    "name": data.name,
                    "uri": data.first.data.uri,
                    "fingerprint": data.first.data.fingerprint,
                    "trajectories": list(data.first.trajectories),
                    "groups": list(data.groups),
                    "lead_times": list(data.first.lead_times),
                    "runs": [
                        {
                            "run": c.run,
                            "method": c.method,
                            "share_won": data.wins(c),
                            "errors": {m: data.error(c, m).tolist() for m in METRICS},
                        }
                        for c in data.contenders
                    ],
                    "persistence": {m: data.persistence(m).tolist() for m in METRICS},
                }
                for data in shared
            ]
        }
    )
    return plain


def write_side_by_side(
    shared: Sequence[SharedDataset], runs: Mapping[str, Mapping[str, Any]], directory: Path
) -> Path:
    """Write report.html, which needs no other file, and metrics.json; return the former's path.

    ``runs`` says of each run what the page tells of it: its model and the checkpoint's step.
    """
    directory.mkdir(parents=True, exist_ok=True)
    text = json.dumps(numbers(shared), indent=1, allow_nan=False)
    replace_durably(directory / NUMBERS_NAME, text.encode() + b"\n")
    page = (
        page_environment()
        .get_template("side_by_side.html.j2")
        .render(
            runs=runs,
            metrics=list(METRICS),
            sentence={d.name: best_sentence(d) for d in shared},
            sections=[
                {"data": d, "figures": [(p.caption, p.data_uri) for p in _figures(d)]}
                for d in shared
            ],
        )
    )
    replace_durably(directory / REPORT_NAME, page.encode())
    return directory / REPORT_NAME


def _figures(data: SharedDataset) -> list[Picture]:
    pictures = [
        Picture(
            "Relative L1 error against lead time: medians over trajectories; the band is from lower "
            "to upper quartile.",
            "error-growth.png",
            plots.figure_png(error_growth(data)),
        )
    ]
    if all(c.evaluation.examples for c in data.contenders):
        trajectory = data.first.examples[0].trajectory
        caption = f"Forecasts of trajectory {trajectory} through the lead times, animated."
        pictures.append(Picture(caption, "forecasts.gif", animation(data)))
    return pictures


def error_growth(data: SharedDataset) -> Figure:
    """Error against lead time, a panel per shared field, a line per run."""
    figure = plots.new_figure(2.6 * len(data.groups) + 2.6, 2.9)
    axes = figure.subplots(1, len(data.groups), squeeze=False)[0]
    times = np.array(data.first.lead_times)
    for axis, group in zip(axes, data.groups, strict=True):
        for number, contender in enumerate(data.contenders):
            colour = COLOURS[(number + 1) % len(COLOURS)]
            column = contender.evaluation.group_names.index(group)
            low, middle, high = (
                contender.evaluation.quantile(contender.method, RANKED_BY, q)[:, column]
                for q in (0.25, 0.5, 0.75)
            )
            label = f"{contender.run}, {contender.method}"
            axis.fill_between(times, low, high, color=colour, alpha=0.12, linewidth=0)
            axis.plot(times, middle, color=colour, label=label, marker="o", markersize=2.5)
        column = data.first.group_names.index(group)
        baseline = data.first.quantile("persistence", RANKED_BY)[:, column]
        axis.plot(times, baseline, "--", color="#7d7d7d", label="persistence")
        plots.plain(axis)
        axis.set_title(group, fontsize=10)
        axis.set_xlabel("lead time", fontsize=9)
        finite = baseline[np.isfinite(baseline)].max(initial=0.0)
        axis.set_ylim(0.0, 2.0 * finite if finite > 0 else None)
    axes[0].set_ylabel("relative L1 error", fontsize=9)
    plots.legend(figure, axes[0])
    return figure


def animation(data: SharedDataset) -> bytes:
    """A GIF of one shared field: truth and every run's forecast through the lead times."""
    channel_of = {c.run: c.evaluation.data.groups[data.groups[0]][0] for c in data.contenders}
    first = data.contenders[0]
    field = first.evaluation.data.fields[channel_of[first.run]]
    images = {"truth": first.evaluation.examples[0].truth[:, channel_of[first.run]]}
    for contender in data.contenders:
        forecasts = contender.evaluation.examples[0].forecasts[contender.method]
        images[contender.run] = forecasts[:, channel_of[contender.run]]
    buffer = io.BytesIO()
    drawing = line_plots if first.evaluation.data.num_dimensions == 1 else plots
    drawing.animate(buffer, images, field, data.first.lead_times, reference="truth")
    return buffer.getvalue()


def best_sentence(data: SharedDataset) -> str:
    """One sentence: which run is best at the longest lead, by how much, on how many trajectories."""
    best, *others = data.contenders
    own = float(data.error(best)[-1])
    ratio = float(data.error(others[0])[-1]) / own if own > 0 else math.inf
    return (
        f"{best.run} is best at lead time {data.first.lead_times[-1]:g} ({own:.2%}, {best.method}): "
        f"{ratio:.2f} times less error than {others[0].run}, and the least of all on "
        f"{data.wins(best):.0%} of {len(data.first.trajectories)} trajectories"
    )
