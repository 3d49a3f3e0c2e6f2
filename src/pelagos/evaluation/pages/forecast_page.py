"""The report of an evaluation: one HTML file that needs no other, and a JSON of every number."""

from __future__ import annotations

import base64
import io
import json
import math
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import jinja2

from pelagos.evaluation.conclusions.verdicts import judge, rule
from pelagos.evaluation.forecasting.scores import DatasetEvaluation, ExampleForecast
from pelagos.evaluation.forecasting.stability import Stability
from pelagos.evaluation.measures.metrics import METRICS
from pelagos.evaluation.pages import line_plots, plots
from pelagos.evaluation.pages.figures.curves_figure import write_curves
from pelagos.evaluation.pages.figures.physics_figure import physics_figure
from pelagos.evaluation.pages.figures.stability_figure import stability_figure
from pelagos.evaluation.pages.sections import Story
from pelagos.evaluation.pages.summary import shown_methods, summary_rows
from pelagos.infra.storage.files import below, replace_durably

REPORT_NAME = "report.html"
NUMBERS_NAME = "metrics.json"
SUMMARY, ERRORS, FORECASTS = "summary", "errors", "forecasts"
ANIMATIONS, PHYSICS, STABILITY = "animations", "physics", "stability"
_RANKS = {
    "median": "the one with the median VRMSE at the longest lead",
    "worst": "the one with the largest VRMSE",
    "best": "the one with the smallest VRMSE",
}
_QUANTILES = {"lower_quartile": 0.25, "median": 0.5, "upper_quartile": 0.75}


@dataclass(frozen=True)
class Provenance:
    """Where the evaluated model came from.

    `weights` are the model's own, or `ema` for their moving average; `config` is the resolved
    job as plain JSON values; `links` name to address (a tracking
    server's run page), shown as text when the address is not http(s).
    """

    run_name: str
    checkpoint_step: int
    model: str
    config: Mapping[str, Any] = field(default_factory=dict)
    code_version: str = ""
    links: Mapping[str, str] = field(default_factory=dict)
    weights: str = "model"


def numbers(
    evaluations: Sequence[DatasetEvaluation],
    provenance: Provenance,
    stabilities: Sequence[Stability] = (),
) -> dict[str, Any]:
    """Every number as plain JSON values; a number that is not finite is None."""
    datasets = []
    for evaluation in evaluations:
        verdict = judge(evaluation)
        datasets.append(
            {
                "name": evaluation.data.name,
                "uri": evaluation.data.uri,
                "fingerprint": evaluation.data.fingerprint,
                "trajectories": list(evaluation.trajectories),
                "start_frame": evaluation.start_frame,
                "lead_steps": list(evaluation.lead_steps),
                "lead_times": list(evaluation.lead_times),
                "rollout_step": evaluation.rollout_step,
                "groups": list(evaluation.group_names),
                "weights": evaluation.weights,
                "notes": evaluation.notes(),
                "warnings": evaluation.warnings(),
                "given_fields": [field.to_dict() for field in evaluation.given],
                "verdict": verdict.to_dict(),
                "summary": [row.to_dict() for row in summary_rows(evaluation, verdict)],
                "scores": {
                    method: {
                        metric: _score_numbers(evaluation, method, metric) for metric in METRICS
                    }
                    for method in evaluation.methods
                },
                "rollout_windows": [asdict(window) for window in evaluation.windows],
                "spectra": {m: v.tolist() for m, v in evaluation.spectra.items()},
                "physics": (
                    {"note": evaluation.physics_note}
                    if evaluation.physics is None
                    else evaluation.physics.to_dict()
                ),
            }
        )
    told = {"provenance": asdict(provenance), "datasets": datasets}
    if stabilities:
        told["stability"] = [stability.to_dict() for stability in stabilities]
    plain: dict[str, Any] = strict(told)
    return plain


def write_report(
    evaluations: Sequence[DatasetEvaluation],
    provenance: Provenance,
    directory: Path,
    stabilities: Sequence[Stability] = (),
    story: Story | None = None,
) -> tuple[Path, dict[str, Any]]:
    """Write `report.html` and `metrics.json`; return the page's path, and the numbers.

    Each is written under a temporary name and renamed into place. `stabilities` are of the same
    datasets, or none. `story` is shown on the page alone: its times differ from machine to machine.

    Raises:
        ValueError: a link in the directory leads elsewhere.
    """
    directory.mkdir(parents=True, exist_ok=True)
    values = numbers(evaluations, provenance, stabilities)
    pictures = {e.data.name: _figures(e) for e in evaluations}
    for stability in stabilities:
        pictures[stability.dataset].append(_stability_picture(stability))
    for stem, figures in zip(_file_names(list(pictures)), pictures.values(), strict=True):
        for figure in figures:
            _write(directory, f"figures/{stem}-{figure.file_name}", figure.content)
    _write(directory, NUMBERS_NAME, json.dumps(values, indent=1, allow_nan=False).encode() + b"\n")
    page = render(evaluations, provenance, pictures, stabilities, story)
    _write(directory, REPORT_NAME, page.encode())
    return directory / REPORT_NAME, values


@dataclass(frozen=True)
class Picture:
    """One figure of the report: a PNG, or a GIF if it moves; `section`: the heading it is under."""

    caption: str
    file_name: str
    content: bytes
    section: str = ERRORS

    @property
    def data_uri(self) -> str:
        """The picture as an address that needs no file next to the report."""
        kind = "gif" if self.file_name.endswith(".gif") else "png"
        return f"data:image/{kind};base64,{base64.b64encode(self.content).decode('ascii')}"


def page_environment() -> jinja2.Environment:
    """Return the environment that renders this package's pages."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pelagos.evaluation.pages"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = _percent
    environment.filters["number"] = _number
    environment.filters["digits"] = _digits
    return environment


def render(
    evaluations: Sequence[DatasetEvaluation],
    provenance: Provenance,
    pictures: Mapping[str, Sequence[Picture]],
    stabilities: Sequence[Stability] = (),
    story: Story | None = None,
) -> str:
    """The HTML report; `pictures` of each dataset, by its name, are inlined."""
    environment, story = page_environment(), story or Story()
    stable = {stability.dataset: stability for stability in stabilities}
    sections = []
    for number, evaluation in enumerate(evaluations, start=1):
        verdict, name = judge(evaluation), evaluation.data.name
        rows = summary_rows(evaluation, verdict)
        sections.append(
            {
                "anchor": f"dataset-{number}",
                "evaluation": evaluation,
                "methods": shown_methods(evaluation),
                "rows": rows,
                "last": rows[-1],
                "verdict": verdict,
                "fields": _field_rows(evaluation),
                "stability": stable.get(name),
                "facts": story.data.get(name, {}),
                "figures": {
                    section: [p for p in pictures[name] if p.section == section]
                    for section in (SUMMARY, ERRORS, FORECASTS, ANIMATIONS, PHYSICS, STABILITY)
                },
            }
        )
    return environment.get_template("report.html.j2").render(
        provenance=provenance,
        config=json.dumps(strict(dict(provenance.config)), indent=2, default=str),
        sections=sections,
        metrics=list(METRICS),
        rule=rule(),
        story=story,
        curves=_curves_picture(story),
    )


def _curves_picture(story: Story) -> Picture | None:
    if not story.curves:
        return None
    drawn = io.BytesIO()
    write_curves(story.curves, drawn)
    caption = "Learning curves: each step pale, the mean of neighbouring steps in full colour."
    return Picture(caption, "curves.png", drawn.getvalue())


def _figures(evaluation: DatasetEvaluation) -> list[Picture]:
    """Every picture of one dataset."""
    last = len(evaluation.lead_steps) - 1
    pictures = [
        Picture(
            "VRMSE against lead time: mean over fields of medians over trajectories.",
            "errors.png",
            plots.figure_png(plots.error_growth_of_all(evaluation)),
            SUMMARY,
        ),
        Picture(
            "VRMSE against lead time: median and quartiles over trajectories. At 1 a forecast is no "
            "better than the truth's spatial mean.",
            "error-growth.png",
            plots.figure_png(plots.error_growth(evaluation)),
        ),
        Picture(
            f"Energy spectra at lead time {evaluation.lead_times[last]:g}, mean over trajectories.",
            "spectra.png",
            plots.figure_png(plots.spectra(evaluation, last)),
        ),
    ]
    if evaluation.physics is not None:
        caption = (
            "Residual of the equation, as a share of a norm of the data, against lead time: median "
            "and quartiles over trajectories. Truth is the data itself."
        )
        drawn = plots.figure_png(physics_figure(evaluation))
        pictures.append(Picture(caption, "physics.png", drawn, PHYSICS))
    for number, example in enumerate(evaluation.examples):
        pictures += _example_pictures(evaluation, example, is_first=number == 0)
    return pictures


def _example_pictures(
    evaluation: DatasetEvaluation, example: ExampleForecast, *, is_first: bool
) -> Iterator[Picture]:
    """Yield the pictures of a trajectory: of the first all, of others the judged forecast alone."""
    drawing = line_plots if evaluation.data.num_dimensions == 1 else plots
    last = len(evaluation.lead_steps) - 1
    name, stem = f"trajectory {example.trajectory}", f"trajectory-{example.trajectory}"
    if example.rank in _RANKS:
        name += f", {_RANKS[example.rank]}"
    judged = judge(evaluation).method
    methods = evaluation.forecast_methods if is_first else (judged,)
    for method in methods:
        panels = plots.figure_png(drawing.forecast_panels(evaluation, example, last, method))
        caption = f"All fields at the longest lead time, {method}, {name}."
        yield Picture(caption, f"{stem}-{method}.png", panels, FORECASTS)
    if not is_first:
        return
    channel = next(iter(evaluation.data.groups.values()))[0]
    strip = drawing.rollout_strip(evaluation, example, channel, "autoregressive")
    caption = f"Autoregressive rollout, {name}."
    yield Picture(caption, f"{stem}-rollout.png", plots.figure_png(strip), FORECASTS)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rollout.gif"
        drawing.rollout_animation(path, evaluation, example, channel, "autoregressive")
        caption = f"The same rollout, animated, {name}."
        yield Picture(caption, f"{stem}-rollout.gif", path.read_bytes(), ANIMATIONS)


def _stability_picture(stability: Stability) -> Picture:
    caption = (
        f"Rollout of {len(stability.times)} steps: mean square and spectral distance to the initial "
        "frame; median and quartiles over trajectories."
    )
    drawn = plots.figure_png(stability_figure(stability))
    return Picture(caption, "stability.png", drawn, STABILITY)


def _file_names(datasets: Sequence[str]) -> list[str]:
    """Return the prefix of each dataset's files; a number keeps prefixes distinct."""
    plain = [re.sub(r"[^A-Za-z0-9.-]+", "-", dataset).lower()[:80] for dataset in datasets]
    return [f"{name}-{i}" if plain.count(name) > 1 else name for i, name in enumerate(plain, 1)]


def _field_rows(evaluation: DatasetEvaluation) -> list[dict[str, Any]]:
    """Per field at the longest lead time: every metric of every method, medians."""
    return [
        {
            "field": group,
            "method": method,
            "values": [float(evaluation.quantile(method, metric)[-1, index]) for metric in METRICS],
        }
        for index, group in enumerate(evaluation.group_names)
        for method in evaluation.methods
    ]


def _score_numbers(evaluation: DatasetEvaluation, method: str, metric: str) -> dict[str, Any]:
    """Quantiles `[lead][group]` and each trajectory's score `[trajectory][lead][group]`."""
    quantiles = {k: evaluation.quantile(method, metric, q).tolist() for k, q in _QUANTILES.items()}
    return {**quantiles, "per_trajectory": evaluation.scores[method][metric].tolist()}


def strict(value: Any) -> Any:
    """Return plain JSON values: mappings, lists, and None for numbers that are not finite."""
    if isinstance(value, Mapping):
        return {str(key): strict(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [strict(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _number(value: float) -> str:
    """A score: infinite where a forecast diverged, NaN where there is none."""
    if math.isnan(value):
        return "-"
    return f"{value:.3g}" if math.isfinite(value) else "diverged"


def _digits(value: float) -> str:
    """Like `_number`, with the zeros that say how exact it is: 1.00."""
    return f"{value:#.3g}" if abs(value) < 100 else _number(value)


def _percent(value: float) -> str:
    return f"{100 * value:.3g} %" if math.isfinite(value) else _number(value)


def _write(directory: Path, name: str, content: bytes) -> None:
    path = below(directory, name)  # a link there may be somebody else's
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_durably(path, content)
