"""Whole evaluations of known forecasters, and the report made of them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from pelagos.data_pipelines.streaming.channels import Channels
from pelagos.data_pipelines.streaming.normalization import Normalization
from pelagos.evaluation import (
    DatasetEvaluation,
    EvaluationData,
    Provenance,
    evaluate_dataset,
    write_report,
)
from pelagos.evaluation.conclusions.rollout_windows import window_scores
from pelagos.evaluation.conclusions.verdicts import judge
from pelagos.evaluation.forecasting.batches import measure_here
from pelagos.evaluation.forecasting.forecasts import ForecastMeasurement
from pelagos.evaluation.pages.forecast_page import numbers

MODEL_FIELDS = ("density", "velocity-x", "velocity-y", "pressure")
MEAN, STD = (0.8, 0.0, 0.1, 0.0), (0.31, 0.4, 0.5, 0.2)
LEADS = (1, 2, 4)
INTERVAL = 0.1
GRID = 16


@dataclass
class Spec:
    name: str = "decaying-waves"
    frame_interval: float = INTERVAL
    grid_shape: tuple[int, ...] = (GRID, GRID)
    constant_fields: dict[str, float] = field(default_factory=lambda: {"density": 1.0})


@dataclass
class DecayingWaves:
    """u(x, t) = e^(-t) u(x, 0) for both velocities, another amplitude for each trajectory."""

    spec: Spec = field(default_factory=Spec)
    uri: str = "memory://decaying-waves"
    fingerprint: str = "f00d"
    num_frames: int = 5
    field_names: tuple[str, ...] = ("velocity-x", "velocity-y")
    largest_read: int = 0

    def read_frames(self, trajectory: int, frames: Sequence[int]) -> npt.NDArray[np.float32]:
        self.largest_read = max(self.largest_read, len(frames))
        node = 2 * np.pi * np.arange(GRID) / GRID
        initial = np.stack(
            [np.sin(node)[None, :] + 0 * node[:, None], np.cos(2 * node)[:, None] + 0 * node]
        )
        time = np.exp(-INTERVAL * np.array(frames))[:, None, None, None]
        return ((1.0 + trajectory) * time * initial).astype(np.float32)


def view(dataset: Any = None, **options: Any) -> EvaluationData:
    dataset = dataset or DecayingWaves()
    channels = Channels.of(
        dataset,
        Normalization(MODEL_FIELDS, MEAN, STD),
        offset=options.pop("offset", {}),
        masks=set(options.get("masks", {}).values()),
    )
    return EvaluationData.from_dataset(dataset, channels, **options)


def exact(frames: Tensor, lead_time: Tensor) -> Tensor:
    """The flow map of the decay, on normalised values."""
    mean, std = (torch.tensor(v)[:, None, None] for v in (MEAN, STD))
    return ((frames * std + mean) * torch.exp(-lead_time)[:, None, None, None] - mean) / std


def evaluate(predict: Any, count: int = 5, **options: Any) -> DatasetEvaluation:
    return evaluate_dataset(predict, view(), range(count), LEADS, batch_size=2, **options)


def test_the_view_normalises_and_marks_fields():
    data = view(offset={"velocity-x": 0.25})
    assert data.present == (True, True, True, False)
    assert data.groups == {"velocity-x": (1,), "velocity-y": (2,)}
    frames = data.read(3, [0, 2])
    raw = torch.from_numpy(DecayingWaves().read_frames(3, [0, 2]))
    assert frames.shape == (2, 4, GRID, GRID)
    torch.testing.assert_close(frames[:, 1], (raw[:, 0] - 0.25) / 0.4)
    torch.testing.assert_close(frames[:, 0], torch.full_like(raw[:, 0], (1.0 - 0.8) / 0.31))
    assert float(frames[:, 3].abs().max()) == 0.0
    torch.testing.assert_close(data.to_physical(frames)[:, 1:3], raw, rtol=0, atol=1e-6)


def test_a_dataset_without_any_scored_field_is_refused():
    with pytest.raises(ValueError, match="none of the scored fields"):
        view(groups={"pressure": ("pressure",)})


def test_an_exact_model_scores_zero_to_rounding():
    evaluation = evaluate(exact)
    for method in ("autoregressive", "direct", "one_step"):
        # fp32 normalisation and back: a few roundings of 6e-8 a step, relative to the mean |u|.
        assert evaluation.scores[method]["relative_l1"].max() < 4e-6, method


@pytest.mark.parametrize(
    ("method", "steps"), [("persistence", LEADS), ("previous_frame", (1, 1, 1))]
)
def test_persistence_error_is_the_decay_it_misses(method: str, steps: tuple[int, ...]):
    scores = evaluate(exact).scores[method]["relative_l1"]
    for lead, step in enumerate(steps):
        # |e^0 - e^-t| / e^-t for every trajectory and field
        np.testing.assert_allclose(scores[:, lead], math.expm1(INTERVAL * step), rtol=2e-6)


def test_batch_size_changes_nothing():
    torch.manual_seed(0)

    def predict(frames: Tensor, lead_time: Tensor) -> Tensor:
        return torch.tanh(frames) * (1 - lead_time[:, None, None, None])

    whole = evaluate_dataset(predict, view(), range(5), LEADS, batch_size=5)
    split = evaluate_dataset(predict, view(), range(5), LEADS, batch_size=2)
    for method, by_metric in whole.scores.items():
        for metric, scores in by_metric.items():
            np.testing.assert_allclose(split.scores[method][metric], scores, rtol=1e-6, atol=1e-12)
    for method, spectrum in whole.spectra.items():
        np.testing.assert_allclose(split.spectra[method], spectrum, rtol=1e-6, atol=1e-12)


def test_vector_groups_are_scored_together():
    data = view(groups={"velocity": ("velocity-x", "velocity-y")})
    evaluation = evaluate_dataset(lambda x, t: x, data, [0], LEADS)
    assert evaluation.scores["direct"]["vrmse"].shape == (1, 3, 1)
    # Kinetic energy at the last lead: ½ e^(-2t) (½ at k = 1 from u, ½ at k = 2 from v).
    spectrum = evaluation.spectra["truth"][-1, 0]
    np.testing.assert_allclose(spectrum[1:3], 0.25 * math.exp(-0.8), rtol=1e-5)


def test_windows_average_the_steps_that_were_evaluated():
    """The error of persistence after n steps of h is e^(n h) - 1 of the truth's deviation."""
    evaluation = evaluate(exact)
    early, late = window_scores(evaluation, [(1, 2), (3, 4), (5, 9)])
    assert [(w.name, w.num_steps) for w in (early, late)] == [("1-2", 2), ("3-4", 1)]
    expected = [math.expm1(INTERVAL * step) for step in LEADS]  # the fields' mean is zero
    assert early.vrmse["persistence"] == pytest.approx(sum(expected[:2]) / 2, rel=1e-3)
    assert late.vrmse["persistence"] == pytest.approx(expected[2], rel=1e-3)
    assert early.vrmse["direct"] < 1e-5
    every_other = evaluate_dataset(exact, view(), range(5), (2, 4), rollout_step=2)
    assert [w.num_steps for w in window_scores(every_other, [(1, 2), (3, 4)])] == [2]
    evaluation.scores["direct"]["vrmse"][:3, 0] = math.nan  # three of five trajectories diverge
    assert window_scores(evaluation, [(1, 2)])[0].vrmse["direct"] == math.inf
    evaluation.scores["direct"]["vrmse"][2, 0] = 0.0
    assert math.isfinite(window_scores(evaluation, [(1, 2)])[0].vrmse["direct"])


def test_examples_are_physical_and_as_many_as_asked():
    evaluation = evaluate(exact, num_examples=3)
    assert [example.trajectory for example in evaluation.examples] == [0, 1, 2]
    example = evaluation.examples[2]
    raw = DecayingWaves().read_frames(2, list(LEADS))
    np.testing.assert_allclose(example.truth[:, 1:3], raw, atol=1e-6)
    np.testing.assert_allclose(example.forecasts["direct"][:, 1:3], raw, atol=1e-5)


# Trajectory n is forecast with an error of ERRORS[n] of its deviation, the same in both fields.
ERRORS = {3: 0.5, 7: 0.1, 4: 0.3, 1: 0.9, 6: 0.2, 2: math.nan}


@pytest.mark.parametrize(
    ("trajectories", "expected"),
    [
        ((3, 7, 4, 1, 6), {"median": 4, "worst": 1, "best": 7}),
        ((3, 2, 4, 1, 6), {"median": 3, "worst": 2, "best": 6}),  # diverging is worst
        ((3, 7, 1, 6), {"median": 6, "worst": 1, "best": 7}),
        ((3, 7), {"median": 7, "worst": 3}),
        ((3,), {"median": 3}),
    ],
)
def test_typical_examples_are_the_median_the_worst_and_the_best(
    trajectories: tuple[int, ...], expected: dict[str, int]
):
    def wrong(frames: Tensor, lead_time: Tensor) -> Tensor:
        truth = exact(frames, lead_time)
        mean = torch.tensor(MEAN)[:, None, None]
        std = torch.tensor(STD)[:, None, None]
        physical = truth * std + mean
        # (1 + n) e^-t is the field's largest value: it names the trajectory, whatever the lead
        size = physical[:, 1].abs().amax((1, 2)) * torch.exp(lead_time)
        number = [round(float(v)) - 1 for v in size]
        share = torch.tensor([ERRORS[n] for n in number])[:, None, None, None]
        return (physical * (1 + share) - mean) / std

    measured = ForecastMeasurement(
        wrong, view(), trajectories, (1,), batch_size=2, typical_examples=True
    )
    (evaluation,) = measure_here([measured])
    assert {e.rank: e.trajectory for e in evaluation.examples} == expected
    for example in evaluation.examples:
        raw = DecayingWaves().read_frames(example.trajectory, [1])
        np.testing.assert_allclose(example.truth[:, 1:3], raw, atol=1e-6)
        told = raw * (1 + ERRORS[example.trajectory])
        np.testing.assert_allclose(example.forecasts["autoregressive"][:, 1:3], told, atol=1e-4)


def test_diverged_trajectories_count_as_infinitely_bad():
    def blow_up(frames: Tensor, lead_time: Tensor) -> Tensor:
        return torch.where(frames.abs().amax((1, 2, 3), keepdim=True) > 8, math.nan, frames)

    evaluation = evaluate(blow_up)  # the largest of five trajectories reaches 5 / 0.4 = 12.5
    scores = evaluation.scores["direct"]["relative_l1"]
    assert 0 < np.isnan(scores[:, 0, 0]).sum() < 3
    assert np.isfinite(evaluation.quantile("direct", "relative_l1")).all()
    assert np.isinf(evaluation.quantile("direct", "relative_l1", 1.0)).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lead_steps": (1, 5)}, r"start_frame\(0\) \+ longest lead\(5\) = 5 must be below the 5"),
        ({"lead_steps": ()}, "at least one lead step"),
        (
            {"lead_steps": (1,), "rollout_step": 2},
            "multiples of rollout_step=2 frames .*, got \\[1\\]",
        ),
        ({"trajectories": ()}, "needs trajectories"),
    ],
)
def test_impossible_requests_are_refused(options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        evaluate_dataset(exact, view(), **{"trajectories": [0], "lead_steps": LEADS, **options})


class _References(HTMLParser):
    """Collects what a browser would fetch, and the tags left open."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.links: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("img", "meta", "link", "br"):
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "srcset", "data", "poster") or (tag == "link" and name == "href"):
                self.fetched.append(value or "")
            elif name == "href":
                self.links.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any], Any]:
    folder: Path = tmp_path_factory.mktemp("report")
    evaluation = evaluate(lambda x, t: x * (1 - t[:, None, None, None]), count=8)
    provenance = Provenance(
        "nano <&> run",
        1200,
        "poseidon-nano",
        {"seed": 0, "lr": math.nan},
        links={"run": "http://t/1"},
    )
    report, told = write_report([evaluation], provenance, folder)
    assert sorted(p.name for p in folder.iterdir()) == ["figures", "metrics.json", "report.html"]
    kinds = {p.suffix for p in (folder / "figures").iterdir()}
    assert kinds == {".png", ".gif"}

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not strict JSON")

    values = json.loads((folder / "metrics.json").read_text(), parse_constant=refuse)
    assert values == json.loads(json.dumps(told))
    return report.read_text(), values, evaluation


def test_the_report_needs_no_other_file(written: tuple[str, dict[str, Any], Any]):
    parser = _References()
    parser.feed(written[0])
    assert parser.open == []
    assert len(parser.fetched) >= 6
    assert all(re.match(r"data:image/(png|gif);base64,", address) for address in parser.fetched)
    assert [a for a in parser.links if not a.startswith("#")] == ["http://t/1"]
    assert not re.search(r"<script|@import|url\(", written[0])


def test_the_report_opens_with_the_verdict_and_names_its_origins(
    written: tuple[str, dict[str, Any], Any],
):
    html = written[0]
    assert html.index("beats persistence") < html.index("<figure>")
    for origin in (
        "nano &lt;&amp;&gt; run",
        "1200",
        "memory://decaying-waves",
        "f00d",
        "&#34;seed&#34;",
    ):
        assert origin in html


def test_json_numbers_are_those_recomputed(written: tuple[str, dict[str, Any], Any]):
    _, values, evaluation = written
    dataset = values["datasets"][0]
    scores = dataset["scores"]["direct"]["relative_l1"]
    recomputed = np.array(scores["per_trajectory"])
    np.testing.assert_array_equal(recomputed, evaluation.scores["direct"]["relative_l1"])
    np.testing.assert_array_equal(scores["median"], np.median(recomputed, axis=0))
    row = dataset["summary"][-1]
    assert row["direct"] == np.median(recomputed, axis=0)[-1].mean()
    assert row["lead_time"] == 4 * INTERVAL
    by_trajectory = np.array(dataset["scores"]["mean"]["vrmse"]["per_trajectory"])
    assert row["vrmse"]["mean"] == np.median(by_trajectory, axis=0)[-1].mean()
    assert row["beats_persistence"] is row["beats_mean"] is True
    (told,) = [lead for lead in dataset["verdict"]["leads"] if lead["lead_time"] == 4 * INTERVAL]
    assert told["against"]["persistence"]["num_trajectories"] == 8
    assert dataset["fingerprint"] == "f00d"
    assert values["provenance"]["config"] == {"seed": 0, "lr": None}


def test_numbers_that_are_not_finite_become_null():
    evaluation = evaluate(lambda x, t: x * math.inf)
    values = numbers([evaluation], Provenance("r", 0, "m"))
    assert values["datasets"][0]["scores"]["direct"]["vrmse"]["median"][0][0] is None
    json.dumps(values, allow_nan=False)


def test_the_mean_is_a_baseline_from_the_training_split():
    statistics = {"velocity-x": {"mean": 0.75, "std": 2.0}, "velocity-y": {"mean": 0.0, "std": 3.0}}
    data = view(statistics=statistics)
    assert data.size[1:3] == (math.hypot(0.75, 2.0), 3.0)
    evaluation = evaluate_dataset(exact, data, range(5), LEADS)
    raw = np.stack([DecayingWaves().read_frames(i, LEADS) for i in range(5)]).astype(np.float64)
    for channel, mean in enumerate((0.75, 0.0)):
        error = np.abs(raw[:, :, channel] - mean).sum((-2, -1))
        expected = error / np.abs(raw[:, :, channel]).sum((-2, -1))
        got = evaluation.scores["mean"]["relative_l1"][:, :, channel]
        np.testing.assert_allclose(got, expected, rtol=1e-5)
        rmse = np.sqrt(((raw[:, :, channel] - mean) ** 2).mean((-2, -1)))
        expected = rmse / raw[:, :, channel].std((-2, -1))
        got = evaluation.scores["mean"]["vrmse"][:, :, channel]
        np.testing.assert_allclose(got, expected, rtol=1e-5)
    # without statistics, the normalisation's: what a model forecasts that forecasts zeros
    silent = evaluate(lambda x, t: torch.zeros_like(x))
    np.testing.assert_allclose(
        silent.scores["mean"]["rmse"], silent.scores["direct"]["rmse"], rtol=1e-5
    )


@dataclass
class PartlyStill(DecayingWaves):
    """velocity-x is 0.1 everywhere in the even trajectories, and in none of the odd ones."""

    def read_frames(self, trajectory: int, frames: Sequence[int]) -> npt.NDArray[np.float32]:
        values = super().read_frames(trajectory, frames)
        if trajectory % 2 == 0:
            values[:, 0] = 0.1
        return values


def test_a_constant_field_is_left_out_with_a_note_and_not_counted():
    def off(frames: Tensor, lead_time: Tensor) -> Tensor:
        return frames + 0.25  # of 0.4, the standard deviation that velocity-x is divided by

    evaluation = evaluate_dataset(off, view(PartlyStill()), range(6), LEADS)
    direct = evaluation.scores["direct"]["vrmse"][:, 0, 0]
    # an error of 0.1 and what persistence misses, over the deviation of a sine of amplitude a e^-t
    amplitudes = np.array([2.0, 4.0, 6.0]) * math.exp(-INTERVAL)
    missed = 0.01 + (math.expm1(INTERVAL) * amplitudes) ** 2 / 2
    expected = np.sqrt(missed / (amplitudes**2 / 2))
    np.testing.assert_allclose(direct[1::2], expected, rtol=1e-4)
    assert evaluation.undefined["vrmse"][:, 0, 0].tolist() == [True, False] * 3
    assert not evaluation.undefined["relative_l1"].any()
    assert evaluation.quantile("direct", "vrmse")[0, 0] == pytest.approx(np.median(expected), 1e-4)
    assert evaluation.notes() == [
        "velocity-x: VRMSE leaves out 9 of 18 frames, in which the truth does not vary over space "
        "(to a millionth of its size)"
    ]
    still = evaluate_dataset(off, view(PartlyStill()), [0, 2, 4], LEADS)
    assert np.isnan(still.quantile("direct", "vrmse")[:, 0]).all()
    of_other_field = still.quantile("direct", "vrmse")[:, 1]
    np.testing.assert_array_equal(still.mean_over_groups("direct", "vrmse"), of_other_field)
    (window,) = window_scores(still, [(1, 9)])
    assert math.isfinite(window.vrmse["direct"])
    numbers_of = numbers([still], Provenance("r", 0, "m"))["datasets"][0]
    assert numbers_of["scores"]["direct"]["vrmse"]["median"][0][0] is None
    assert "leaves out 9 of 9 frames" in numbers_of["notes"][0]


def test_a_diverged_forecast_of_a_constant_field_is_left_out_too():
    evaluation = evaluate_dataset(lambda x, t: x * math.inf, view(PartlyStill()), [0, 2], LEADS)
    assert np.isnan(evaluation.quantile("direct", "vrmse")[:, 0]).all()
    assert np.isinf(evaluation.quantile("direct", "vrmse")[:, 1]).all()
    assert judge(evaluation).leads[0].vrmse == math.inf
