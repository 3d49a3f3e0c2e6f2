"""Several runs on the same trajectories: one report of tables, plots and an animation."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from pelagos.evaluation.conclusions.verdicts import (
    CONFIDENCE,
    JUDGED_BY,
    LEAST_TRAJECTORIES,
    NUM_RESAMPLES,
    Comparison,
    Wins,
    best_method,
    compare,
    count_wins,
    judge,
    mean_ranks,
    trajectory_scores,
)
from pelagos.evaluation.forecasting.scores import BASELINES, DatasetEvaluation, mean_of_known
from pelagos.evaluation.measures.metrics import METRICS
from pelagos.evaluation.pages import line_plots, plots
from pelagos.evaluation.pages.forecast_page import (
    NUMBERS_NAME,
    REPORT_NAME,
    Picture,
    page_environment,
    strict,
)
from pelagos.evaluation.pages.plots import COLOURS
from pelagos.evaluation.pages.summary import Error
from pelagos.infra.figures import new_figure
from pelagos.infra.storage.files import replace_durably

RULE = (
    "Runs are ordered by mean rank: at each lead and in each field they are ranked by their median "
    "VRMSE, and equal ones share a rank. A run is marked as the best at a lead only if it is "
    f"better than every other run: the {CONFIDENCE:.0%} interval of the median over trajectories of "
    f"its VRMSE (mean over fields) over the other's is below 1 (paired bootstrap, {NUM_RESAMPLES} "
    "resamples of the trajectories)."
)
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Contender:
    """One run's way of forecasting one dataset: the best of its methods by mean rank.

    `rank` is the run's mean rank among all, over leads and fields.
    """

    run: str
    method: str
    evaluation: DatasetEvaluation
    rank: float = 1.0


@dataclass(frozen=True)
class SharedDataset:
    """A dataset that several runs forecast, at the same leads from the same frames.

    `groups` are the scored fields that all runs have. The contenders are ordered by their mean
    rank: at each lead and in each field runs are ranked by median VRMSE, equal ones share a rank.
    """

    name: str
    groups: tuple[str, ...]
    contenders: tuple[Contender, ...]

    @property
    def first(self) -> DatasetEvaluation:
        """The best run's evaluation: trajectories and lead times are everyone's."""
        return self.contenders[0].evaluation

    def error(self, contender: Contender, metric: str = "relative_l1") -> FloatArray:
        """Mean over the shared fields of the median over trajectories, `[lead]`."""
        return _error(contender.evaluation, contender.method, metric, self.groups)

    def baseline(self, name: str, metric: str = "relative_l1") -> FloatArray:
        """The same of persistence or the dataset's mean."""
        return _error(self.first, name, metric, self.groups)

    def rows(self) -> list[Row]:
        """Return the table: errors of every run and baseline by lead, and the run that is best."""
        errors = {c.run: self._pairs(c.evaluation, c.method) for c in self.contenders}
        baselines = {name: self._pairs(self.first, name) for name in BASELINES}
        return [
            Row(
                lead_time=time,
                errors={run: pairs[lead] for run, pairs in errors.items()},
                baselines={name: pairs[lead] for name, pairs in baselines.items()},
                best=best,
            )
            for lead, (time, best) in enumerate(
                zip(self.first.lead_times, self.best(), strict=True)
            )
        ]

    def _pairs(self, evaluation: DatasetEvaluation, method: str) -> list[Error]:
        columns = (_error(evaluation, method, metric, self.groups) for metric in Error._fields)
        return [Error(float(l1), float(v)) for l1, v in zip(*columns, strict=True)]

    def best(self) -> list[str | None]:
        """Return, by lead, the run that is better than every other; None where none is.

        Better by the paired bootstrap over trajectories, as against a baseline (`verdicts`).
        """
        found: list[str | None] = [None] * len(self.first.lead_steps)
        for contender in self.contenders:
            others = [self.against(contender, c) for c in self.contenders if c is not contender]
            for lead in range(len(found)):
                if all(comparisons[lead].outcome == "better" for comparisons in others):
                    found[lead] = contender.run
        return found

    def against(self, contender: Contender, other: Contender) -> list[Comparison]:
        """Compare two runs on the same trajectories, lead by lead."""
        return compare(self._scores(contender), self._scores(other))

    def wins(self, contender: Contender) -> Wins:
        """On how many trajectories it has the least VRMSE, the mean over fields and leads."""
        scores = np.array([mean_of_known(self._scores(other)) for other in self.contenders])
        return count_wins(scores, self.contenders.index(contender))

    def warnings(self) -> list[str]:
        """Warnings above the errors, of any run: fields that change and are in no error."""
        return list(dict.fromkeys(w for c in self.contenders for w in c.evaluation.warnings()))

    def _scores(self, contender: Contender) -> FloatArray:
        return trajectory_scores(contender.evaluation, contender.method, self.groups)


@dataclass(frozen=True)
class Row:
    """One lead: errors by run and by baseline; `best` is the run better than all, if one is."""

    lead_time: float
    errors: dict[str, Error]
    baselines: dict[str, Error]
    best: str | None


def shared_datasets(
    evaluations: Mapping[str, Sequence[DatasetEvaluation]],
) -> list[SharedDataset]:
    """Return the datasets that at least two runs forecast, by run name.

    Raises:
        ValueError: no two runs share a dataset, or its leads or fields; those of each are listed.
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
        raise ValueError(f"these runs have no common dataset ({listed}): compare others")
    return shared


def _shared(found: Sequence[tuple[str, DatasetEvaluation]]) -> SharedDataset:
    name = found[0][1].data.name
    leads = set.intersection(*(set(e.lead_steps) for _, e in found))
    different = {run: e.lead_steps for run, e in found if set(e.lead_steps) != leads}
    if different:
        told = ", ".join(f"{run} {list(steps)}" for run, steps in different.items())
        raise ValueError(
            f"{name}: the runs forecast different leads (in frames: {told}); choose common ones "
            "with lead_steps, in frames that each run uses"
        )
    initial = {run: e.initial_frame for run, e in found}
    if len(set(initial.values())) > 1:
        raise ValueError(f"{name}: the runs forecast from different frames {initial}")
    scored = [_scored_fields(e) for _, e in found]
    groups = [g for g, fields in scored[0].items() if all(s.get(g) == fields for s in scored)]
    if not groups:
        told = "; ".join(
            f"{run}: {', '.join(_told(group, names) for group, names in fields.items())}"
            for (run, _), fields in zip(found, scored, strict=True)
        )
        raise ValueError(f"{name}: the runs score no common field ({told})")
    methods = [best_method(e, groups) for _, e in found]
    ranks = mean_ranks(
        np.array([_medians(e, m, groups) for m, (_, e) in zip(methods, found, strict=True)])
    )
    contenders = [
        Contender(run, method, evaluation, float(rank))
        for (run, evaluation), method, rank in zip(found, methods, ranks, strict=True)
    ]
    return SharedDataset(name, tuple(groups), tuple(sorted(contenders, key=lambda c: c.rank)))


def _scored_fields(evaluation: DatasetEvaluation) -> dict[str, tuple[str, ...]]:
    """Fields by group, sorted: one component of a vector is not the same as all, under one name."""
    names = evaluation.data.fields
    return {g: tuple(sorted(names[c] for c in cs)) for g, cs in evaluation.data.groups.items()}


def _told(group: str, fields: Sequence[str]) -> str:
    return group if fields == (group,) else f"{group} of {'+'.join(fields)}"


def _medians(evaluation: DatasetEvaluation, method: str, groups: Sequence[str]) -> FloatArray:
    """Median VRMSE in every cell, `[lead * field]`."""
    return evaluation.quantile(method, JUDGED_BY)[:, _columns(evaluation, groups)].ravel()


def _error(
    evaluation: DatasetEvaluation, method: str, metric: str, groups: Sequence[str]
) -> FloatArray:
    return mean_of_known(evaluation.quantile(method, metric)[:, _columns(evaluation, groups)])


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
                            "weights": c.evaluation.weights,
                            "mean_rank": c.rank,
                            "share_won": data.wins(c).share,
                            "trajectories_won": asdict(data.wins(c)),
                            "verdict": judge(c.evaluation, data.groups).to_dict(),
                            "errors": {m: data.error(c, m).tolist() for m in METRICS},
                        }
                        for c in data.contenders
                    ],
                    "best": data.best(),
                    "comparisons": [
                        {
                            "run": c.run,
                            "against": other.run,
                            "leads": [found.to_dict() for found in data.against(c, other)],
                        }
                        for c, other in itertools.permutations(data.contenders, 2)
                    ],
                    "notes": data.first.notes(),
                    "warnings": data.warnings(),
                    **{
                        name: {m: data.baseline(name, m).tolist() for m in METRICS}
                        for name in BASELINES
                    },
                }
                for data in shared
            ]
        }
    )
    return plain


def write_side_by_side(
    shared: Sequence[SharedDataset], runs: Mapping[str, Mapping[str, Any]], directory: Path
) -> tuple[Path, dict[str, Any]]:
    """Write report.html, which needs no other file, and metrics.json; return path and numbers.

    `runs` gives the page's facts about each run: its model and the checkpoint's step.
    """
    directory.mkdir(parents=True, exist_ok=True)
    values = numbers(shared)
    text = json.dumps(values, indent=1, allow_nan=False)
    replace_durably(directory / NUMBERS_NAME, text.encode() + b"\n")
    page = (
        page_environment()
        .get_template("side_by_side.html.j2")
        .render(
            runs=runs,
            metrics=list(METRICS),
            baselines=BASELINES,
            rule=RULE,
            sections=[
                {
                    "data": d,
                    "rows": d.rows(),
                    "sentence": best_sentence(d),
                    "verdicts": {c.run: judge(c.evaluation, d.groups) for c in d.contenders},
                    "figures": [(p.caption, p.data_uri) for p in _figures(d)],
                }
                for d in shared
            ],
        )
    )
    replace_durably(directory / REPORT_NAME, page.encode())
    return directory / REPORT_NAME, values


def _figures(data: SharedDataset) -> list[Picture]:
    pictures = [
        Picture(
            "VRMSE against lead time: medians over trajectories; the band is from lower to upper "
            "quartile.",
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
    figure = new_figure(2.6 * len(data.groups) + 2.6, 2.9)
    axes = figure.subplots(1, len(data.groups), squeeze=False)[0]
    times = np.array(data.first.lead_times)
    for axis, group in zip(axes, data.groups, strict=True):
        for number, contender in enumerate(data.contenders):
            colour = COLOURS[(number + 1) % len(COLOURS)]
            column = contender.evaluation.group_names.index(group)
            low, middle, high = (
                contender.evaluation.quantile(contender.method, JUDGED_BY, q)[:, column]
                for q in (0.25, 0.5, 0.75)
            )
            label = f"{contender.run}, {contender.method}"
            axis.fill_between(times, low, high, color=colour, alpha=0.12, linewidth=0)
            axis.plot(times, middle, color=colour, label=label, marker="o", markersize=2.5)
        column = data.first.group_names.index(group)
        finite = 0.0
        for name in BASELINES:
            label, colour, line = plots.style(name)
            baseline = data.first.quantile(name, JUDGED_BY)[:, column]
            axis.plot(times, baseline, line, color=colour, label=label)
            finite = max(finite, baseline[np.isfinite(baseline)].max(initial=0.0))
        plots.plain(axis)
        axis.set_title(group, fontsize=10)
        axis.set_xlabel("lead time", fontsize=9)
        axis.set_ylim(0.0, 2.0 * finite if finite > 0 else None)
    axes[0].set_ylabel("VRMSE", fontsize=9)
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
    """One sentence: which run ranks first, and at how many leads.

    It counts the leads at which trajectories show that it is better than each of the others.
    """
    best, *others = data.contenders
    num_cells = len(data.first.lead_steps) * len(data.groups)
    cells = f"over {num_cells} pairs of lead and field"
    if others[0].rank == best.rank:
        equal = [c.run for c in data.contenders if c.rank == best.rank]
        return f"{' and '.join(equal)} have the same mean rank {best.rank:.3g} {cells}"
    parts = []
    for other in others:
        found = data.against(best, other)
        counts = {o: sum(c.outcome == o for c in found) for o in ("better", "worse", "too few")}
        told = f"better than {other.run} at {counts['better']} of {len(found)} leads"
        if counts["worse"]:
            told += f", worse at {counts['worse']}"
        if counts["too few"]:
            number = found[0].num_trajectories
            counted = f"{number} {'trajectory' if number == 1 else 'trajectories'}"
            told = (
                f"not distinguishable from {other.run} with {counted} "
                f"(at least {LEAST_TRAJECTORIES} are needed)"
            )
        parts.append(told)
    return (
        f"{best.run} ({best.method}) has the best mean rank, {best.rank:.3g} {cells}; "
        f"it is {'; '.join(parts)}"
    )
