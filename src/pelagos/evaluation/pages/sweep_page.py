"""The result of a sweep: every trial, error against training trajectories, gains, as JSON and HTML."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator, ScalarFormatter

from pelagos.evaluation.conclusions.sample_efficiency import (
    CONFIDENCE,
    Errors,
    Gain,
    GainRow,
    gain_rows,
)
from pelagos.evaluation.conclusions.verdicts import rule
from pelagos.evaluation.pages.figures.curves_figure import Curve
from pelagos.evaluation.pages.figures.rates_figure import RateTrial, rates_figure
from pelagos.evaluation.pages.forecast_page import Picture, page_environment
from pelagos.evaluation.pages.plots import COLOURS, figure_png
from pelagos.evaluation.pages.population_page import (
    schedule_figure,
    take_over_rows,
    taking_over,
)
from pelagos.evaluation.pages.summary import Error
from pelagos.infra.storage.files import replace_durably

NUMBERS_NAME = "sweep.json"
REPORT_NAME = "report.html"
FIGURE_NAME = "sweep.png"
SCHEDULES_NAME = "schedules.png"
RATES_NAME = "rates.png"
RATE = "optimizer.lr"
VALIDATION_LOSS = "validation_loss"
RELATIVE_L1, VRMSE = Error._fields
_NAMED = 5
METHOD_TITLES = {
    "direct": "direct forecast",
    "autoregressive": "autoregressive forecast",
    VALIDATION_LOSS: "validation loss",
}


@dataclass(frozen=True)
class SweepRow:
    """One trial: its settings, how it ended, its measurements."""

    name: str
    label: str
    overrides: dict[str, Any]
    seed: int
    trajectories: int | None
    state: str
    steps: int
    validation_loss: float | None
    errors: dict[str, float] = field(default_factory=dict)
    cause: str = ""
    take_overs: list[dict[str, Any]] = field(default_factory=list)
    """In a population: step, source and `settings` (key: [before, after]) of each take-over."""
    vrmse: dict[str, float] = field(default_factory=dict)
    baselines: dict[str, dict[str, float]] = field(default_factory=dict)
    """`persistence` and `mean`: `relative_l1` and `vrmse`, where these were measured."""
    beats: str = ""
    is_worse_than_constant: bool = False
    weights: str = ""
    unscored: list[str] = field(default_factory=list)
    """Sentences on fields that change where the trial was measured and are in no error."""

    @property
    def setting(self) -> str:
        """The overrides in words."""
        return " ".join(f"{key}={value}" for key, value in self.overrides.items())

    @property
    def series(self) -> str:
        """The settings shared by all seeds and numbers of trajectories."""
        return f"{self.label} {self.setting}".strip()

    def both_errors(self, method: str) -> Error:
        """Return relative L1 error and VRMSE of a forecast method or a baseline."""
        if method in self.baselines:
            values = self.baselines[method]
            return Error(values.get("relative_l1", math.nan), values.get("vrmse", math.nan))
        return Error(self.errors.get(method, math.nan), self.vrmse.get(method, math.nan))

    def measured(self, method: str, metric: str = RELATIVE_L1) -> float | None:
        """Return an error of a forecast method, or the validation loss; None if not measured."""
        if self.state != "finished":
            return None
        if method == VALIDATION_LOSS:
            return self.validation_loss
        return (self.vrmse if metric == VRMSE else self.errors).get(method)


@dataclass(frozen=True)
class GainTable:
    """Gains against the baseline with the same overrides, by one way of measuring.

    `vrmse`: the model's and the baseline's in each row, means over seeds; NaN where there is none.
    """

    method: str
    baseline: str
    rows: list[GainRow]
    vrmse: list[tuple[float, float]]

    def cells(self) -> list[list[str]]:
        """Return the table's cells, without its heading."""
        return [gain_cells(*row, self.method) for row in zip(self.rows, self.vrmse, strict=True)]


@dataclass(frozen=True)
class SweepReport:
    """A sweep's trials, best first, and the conclusions from them."""

    name: str
    rows: list[SweepRow]
    baseline: str | None
    lead_steps: int | None = None
    """The lead that errors are of, in used frames; None: the last."""

    @property
    def lead(self) -> str:
        """The lead of the errors in words."""
        if self.lead_steps is None:
            return "the last lead"
        return f"lead {self.lead_steps} of the used frames"

    @property
    def methods(self) -> list[str]:
        """How errors were measured: the evaluation's ways, else the validation loss."""
        found = dict.fromkeys(m for row in self.rows for m in row.errors)
        return list(found) or [VALIDATION_LOSS]

    @property
    def failures(self) -> list[SweepRow]:
        """Trials that did not come to an end."""
        return [row for row in self.rows if row.state not in ("finished", "stopped early")]

    @property
    def warnings(self) -> list[str]:
        """Warnings above the errors: about the trials, and about fields in no error."""
        unscored = dict.fromkeys(sentence for row in self.rows for sentence in row.unscored)
        return [*([self.warning] if self.warning else []), *unscored]

    @property
    def warning(self) -> str:
        """Which trials are no better than a constant; empty if none is."""
        worse = [row.name for row in self.rows if row.is_worse_than_constant]
        if not worse:
            return ""
        names = ", ".join(worse[:_NAMED]) + (", …" if len(worse) > _NAMED else "")
        return (
            f"{len(worse)} of {len(self.rows)} trials are no better than a constant at {self.lead}: "
            f"VRMSE is above 1, or the dataset's mean has a smaller error ({names})"
        )

    def baseline_lines(self) -> list[str]:
        """Sentences with the errors of persistence and the mean.

        One for all labels if they are measured on the same data.
        """
        by_errors: dict[tuple[tuple[str, Error], ...], dict[str, None]] = {}
        for row in self.rows:
            if row.baselines:
                errors = tuple((name, row.both_errors(name)) for name in row.baselines)
                by_errors.setdefault(errors, {})[row.label] = None
        return [
            ", ".join(f"{name} {error}" for name, error in errors)
            + (f" ({', '.join(labels)})" if len(by_errors) > 1 else "")
            for errors, labels in by_errors.items()
        ]

    def weights_line(self) -> str:
        """A sentence on which weights were measured; empty where all trials keep only one kind."""
        averaged = sum(row.weights == "ema" for row in self.rows)
        if not averaged:
            return ""
        every = all(row.weights == "ema" for row in self.rows if row.weights)
        which = "all trials" if every else f"{averaged} of {len(self.rows)} trials"
        return f"errors of {which} are of averaged weights (ema_decay)"

    def curves(self, method: str, metric: str = RELATIVE_L1) -> dict[str, Errors]:
        """Return series: number of trajectories: seed: error, of finished trials."""
        curves: dict[str, dict[int, dict[int, float]]] = {}
        for row in self.rows:
            value = row.measured(method, metric)
            if row.trajectories is not None and value is not None:
                by_size = curves.setdefault(row.series, {})
                by_size.setdefault(row.trajectories, {})[row.seed] = value
        return {name: dict(sorted(curves[name].items())) for name in sorted(curves)}

    def gains(self) -> list[GainTable]:
        """Return the tables of gains: none without a baseline or numbers of trajectories."""
        settings = dict.fromkeys(row.setting for row in self.rows)
        tables = [self._gains(m, setting) for m in self.methods for setting in settings]
        return [table for table in tables if table is not None and table.rows]

    def _gains(self, method: str, setting: str) -> GainTable | None:
        curves = self.curves(method)
        name = f"{self.baseline} {setting}".strip()
        if self.baseline is None or name not in curves:
            return None
        same = {row.series for row in self.rows if row.setting == setting and row.series != name}
        models = {series: curve for series, curve in curves.items() if series in same}
        rows = gain_rows(curves[name], models)
        vrmse = self.curves(method, VRMSE) if method != VALIDATION_LOSS else {}
        both = [
            (_mean(vrmse, r.model, r.num_trajectories), _mean(vrmse, name, r.num_trajectories))
            for r in rows
        ]
        return GainTable(method, name, rows, both)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as strict JSON; values that are not finite become None."""
        plain: dict[str, Any] = _strict(
            {
                "name": self.name,
                "baseline": self.baseline,
                "lead_steps": self.lead_steps,
                "trials": [{"rank": i + 1, **asdict(row)} for i, row in enumerate(self.rows)],
                "gains": [asdict(table) for table in self.gains()],
            }
        )
        return plain


def ranked(rows: Sequence[SweepRow]) -> list[SweepRow]:
    """Return the trials by validation loss, the best first; those without one at the end."""

    def order(row: SweepRow) -> tuple[bool, float, str]:
        loss = row.validation_loss
        known = loss is not None and math.isfinite(loss)
        return row.state != "finished", loss if known and loss is not None else math.inf, row.name

    return sorted(rows, key=order)


def write_sweep_report(
    report: SweepReport, directory: Path, curves: Mapping[str, Curve] | None = None
) -> Path:
    """Write sweep.json, sweep.png and report.html; return the last one's path.

    Of a population also schedules.png, the settings of its members over steps; of a sweep of the
    learning rate rates.png. `curves`: the validation losses of each trial, by its name.
    """
    directory.mkdir(parents=True, exist_ok=True)
    image = figure_png(sweep_figure(report))
    numbers = json.dumps(report.to_dict(), indent=1, allow_nan=False)
    replace_durably(directory / NUMBERS_NAME, numbers.encode() + b"\n")
    replace_durably(directory / FIGURE_NAME, image)
    schedules = None
    if members := taking_over(report.rows):
        schedules = figure_png(schedule_figure(members))
        replace_durably(directory / SCHEDULES_NAME, schedules)
    rates = None
    if trials := rate_trials(report.rows, curves or {}):
        rates = figure_png(rates_figure(trials))
        replace_durably(directory / RATES_NAME, rates)
    replace_durably(directory / REPORT_NAME, render(report, image, schedules, rates).encode())
    return directory / REPORT_NAME


def rate_trials(rows: Sequence[SweepRow], curves: Mapping[str, Curve]) -> list[RateTrial]:
    """Return the trials of a sweep of the learning rate; none where it takes fewer than two values."""
    trials = []
    for row in rows:
        rate = row.overrides.get(RATE)
        if isinstance(rate, int | float) and rate > 0:
            others = {k: v for k, v in row.overrides.items() if k != RATE}
            sizes = {} if row.trajectories is None else {"trajectories": row.trajectories}
            shared = " ".join(f"{k}={v}" for k, v in {**others, **sizes}.items())
            curve = curves.get(row.name, ([], []))
            series = f"{row.label} {shared}".strip()
            trials.append(RateTrial(series, float(rate), row.validation_loss, curve))
    return trials if len({trial.rate for trial in trials}) > 1 else []


def render(
    report: SweepReport,
    image: bytes,
    schedules: bytes | None = None,
    rates: bytes | None = None,
) -> str:
    """Return the page, which needs no other file.

    `schedules` is the figure of a population, `rates` that of a sweep of the learning rate.
    """
    environment = page_environment()
    environment.filters["number"] = _number
    tables = [
        {
            "title": f"{METHOD_TITLES.get(t.method, t.method)}, against {t.baseline}",
            "rows": t.cells(),
            "errors": "" if t.method == VALIDATION_LOSS else ", relative L1 / VRMSE",
        }
        for t in report.gains()
    ]
    return environment.get_template("sweep.html.j2").render(
        report=report,
        tables=tables,
        picture=Picture("", FIGURE_NAME, image).data_uri,
        schedules=Picture("", SCHEDULES_NAME, schedules).data_uri if schedules else None,
        rates=Picture("", RATES_NAME, rates).data_uri if rates else None,
        take_overs=take_over_rows(report.rows),
        confidence=f"{CONFIDENCE:.0%}",
        titles=METHOD_TITLES,
        rule=rule(),
    )


def gain_cells(row: GainRow, vrmse: tuple[float, float], method: str) -> list[str]:
    """Return the cells of a row of the table of gains."""
    errors = row.error, row.baseline_error
    return [
        row.model,
        str(row.num_trajectories),
        *(
            _number(error) if method == VALIDATION_LOSS else str(Error(error, deviation))
            for error, deviation in zip(errors, vrmse, strict=True)
        ),
        _accuracy(row.accuracy_gain) + _interval(row.accuracy_interval),
        str(row.efficiency_gain) + _interval(row.efficiency_interval),
    ]


def _mean(curves: dict[str, Errors], series: str, size: int) -> float:
    by_seed = curves.get(series, {}).get(size, {})
    return math.fsum(by_seed.values()) / len(by_seed) if by_seed else math.nan


def _interval(ends: tuple[float, float] | tuple[Gain, Gain] | None) -> str:
    if ends is None:
        return ""
    low, high = (_accuracy(end) if isinstance(end, float) else str(end) for end in ends)
    return f" ({low} to {high})"


def sweep_figure(report: SweepReport) -> Figure:
    """Errors against trajectories, a column of panels per way of measuring, relative L1 above VRMSE.

    Without numbers of trajectories, losses by series.
    """
    methods = [m for m in report.methods if report.curves(m)]
    is_loss = report.methods == [VALIDATION_LOSS]
    labels = {RELATIVE_L1: "loss" if is_loss else f"relative L1 error at {report.lead}"}
    if not is_loss and any(report.curves(method, VRMSE) for method in methods):
        labels[VRMSE] = f"VRMSE at {report.lead}"
    num_columns = max(len(methods), 1)
    figure = Figure(figsize=(5.4 * num_columns + 1.6, 4.2 * len(labels)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(labels), num_columns, squeeze=False)
    if not methods:
        _losses(axes[0, 0], report)
        return figure
    for row, (metric, label) in zip(axes, labels.items(), strict=True):
        for axis, method in zip(row, methods, strict=True):
            _curves(axis, report.curves(method, metric))
            axis.set_title(METHOD_TITLES.get(method, method), fontsize=10)
        row[0].set_ylabel(label)
    handles, labels_of_series = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels_of_series, loc="outside right upper", fontsize=8, frameon=False)
    return figure


def _curves(axis: Axes, curves: dict[str, Errors]) -> None:
    """Mean over seeds as a line, their range as a band, each seed as a dot."""
    sizes = sorted({size for curve in curves.values() for size in curve})
    for number, (name, curve) in enumerate(curves.items()):
        colour = COLOURS[number % len(COLOURS)]
        values = {n: [v for v in s.values() if math.isfinite(v)] for n, s in curve.items()}
        known = [n for n in curve if values[n]]
        mean = [math.fsum(values[n]) / len(values[n]) for n in known]
        axis.plot(known, mean, color=colour, label=name, linewidth=1.6)
        low, high = [min(values[n]) for n in known], [max(values[n]) for n in known]
        axis.fill_between(known, low, high, color=colour, alpha=0.18, linewidth=0)
        dots = [(n, v) for n in known for v in values[n]]
        axis.plot([n for n, _ in dots], [v for _, v in dots], "o", color=colour, markersize=3.5)
    axis.set(xscale="log", yscale="log", xlabel="training trajectories")
    axis.set_xticks(sizes)
    axis.xaxis.set_major_formatter(ScalarFormatter())
    axis.xaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter("{x:g}")  # 0.4, not 4 x 10^-1
    bottom, top = axis.get_ylim()
    # below a decade the major ticks alone could be none at all
    axis.yaxis.set_minor_formatter("{x:g}" if top < 10 * bottom else NullFormatter())
    axis.grid(alpha=0.25, linewidth=0.5)
    axis.spines[["top", "right"]].set_visible(False)


def _losses(axis: Axes, report: SweepReport) -> None:
    """Validation loss of each trial, a line of dots per series, the best series at the top."""
    names = list(dict.fromkeys(row.series for row in report.rows))
    found = [
        (r.validation_loss, names.index(r.series))
        for r in report.rows
        if r.validation_loss is not None and math.isfinite(r.validation_loss)
    ]
    axis.plot([x for x, _ in found], [y for _, y in found], "o", color=COLOURS[4], markersize=5)
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel("validation loss")
    axis.grid(alpha=0.25, linewidth=0.5)
    axis.spines[["top", "right"]].set_visible(False)


def _accuracy(gain: float) -> str:
    """Return an accuracy gain, which is infinite where the baseline alone diverged."""
    return "diverged" if math.isnan(gain) else f"{gain:.3g}"


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if math.isfinite(value) else "diverged"


def _strict(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _strict(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
