"""The page and the table of a sweep, made of trials that are given."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from pelagos.evaluation.pages.figures.rates_figure import rates_figure
from pelagos.evaluation.pages.sweep_page import (
    SweepReport,
    SweepRow,
    rate_trials,
    render,
    sweep_figure,
    write_sweep_report,
)
from pelagos.jobs.sweeping import report_text


def sweep_rows() -> list[SweepRow]:
    """A trial that beats both baselines, one that is worse than a constant, one measured long ago."""
    baselines = {
        "persistence": {"relative_l1": 0.02, "vrmse": 0.8},
        "mean": {"relative_l1": 0.0155},
    }
    finished = ("x", {}, 0, None, "finished", 6, 0.4)
    return [
        SweepRow(
            "good",
            *finished,
            {"direct": 0.01},
            vrmse={"direct": 0.5},
            baselines=baselines,
            beats="both",
            weights="ema",
        ),
        SweepRow(
            "idle",
            *finished,
            {"direct": 0.016},
            vrmse={"direct": 1.04},
            baselines=baselines,
            beats="neither",
            is_worse_than_constant=True,
            weights="model",
            unscored=["waves: p [Pa] is 1 everywhere, but changes"],
        ),
        SweepRow("old", *finished, {"direct": 0.5}),
    ]


def test_a_sweep_tells_which_trials_beat_the_baselines_and_warns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    report = SweepReport("sweep", sweep_rows(), None)
    monkeypatch.setattr(report_text.console, "width", 160)
    report_text.show_report(report, tmp_path)
    shown = capsys.readouterr().out
    warning = "1 of 3 trials are no better than a constant at the last lead"
    assert shown.index(warning) < shown.index("relative L1 / VRMSE")
    baselines = "persistence 2.00% / 0.80, mean 1.55% / -"
    weights = "errors of 1 of 3 trials are of averaged weights"
    assert "waves: p [Pa] is 1 everywhere, but changes" in shown
    for text in ("1.00% / 0.50", "1.60% / 1.04", "50.00% / -", "neither", baselines, weights):
        assert text in shown
    page = render(report, b"")
    assert page.index(warning) < page.index("<table>")
    assert page.count('class="warning"') == 2
    for text in ('<td class="n bad">1.60% / 1.04</td>', '<td class="bad">neither</td>', baselines):
        assert text in page
    assert "averaged weights" in page


@pytest.mark.parametrize("width", [80, 200])
def test_gains_have_both_errors_and_fit(
    width: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two seeds of a model and of the baseline, with one and four trajectories."""
    rows = [
        SweepRow(
            f"sweep-with-a-long-name-{label}-{size}-s{seed}",
            *(label, {}, seed, size, "finished", 6, 0.4),
            {"direct": (scale + 0.1 * seed) / size},
            vrmse={"direct": (2 * scale + 0.2 * seed) / size},
            beats="persistence only",
        )
        for label, scale in (("model", 0.2), ("fno", 0.4))
        for size in (1, 4)
        for seed in (0, 1)
    ]
    report = SweepReport("sweep", rows, "fno")
    monkeypatch.setattr(report_text.console, "width", width)
    report_text.show_report(report, tmp_path)
    shown = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    tables = [line for line in shown if line[:1] in "┏┃┡│└"]
    assert max(map(len, tables)) <= width
    gains = next(i for i, line in enumerate(shown) if "gains, direct forecast" in line)
    found = re.findall(r"\d+\.\d+%?", " ".join(shown[gains:]))
    # means over seeds: 0.25 / 0.50 of the model with one trajectory, 0.45 / 0.90 of the baseline
    for number in ("25.00%", "0.50", "45.00%", "0.90", "6.25%", "0.12", "11.25%", "0.23"):
        assert number in found
    assert "…" not in "".join(shown)
    (table,) = report.to_dict()["gains"]
    assert table["vrmse"][0] == pytest.approx([0.5, 0.9])
    page = render(report, b"")
    assert "25.00% / 0.50" in page
    figure = sweep_figure(report)
    assert [axis.get_ylabel() for axis in figure.axes] == [
        "relative L1 error at the last lead",
        "VRMSE at the last lead",
    ]
    model = next(line for line in figure.axes[1].lines if line.get_label() == "model")
    assert list(model.get_ydata()) == pytest.approx([0.5, 0.125])


def rate_rows() -> tuple[list[SweepRow], dict[str, tuple[list[int], list[float]]]]:
    """Three rates with two seeds each; one trial diverged. And a validation curve of each."""
    losses: dict[tuple[float, int], float | None]
    losses = {(1e-3, 0): 0.4, (1e-3, 1): 0.6, (1e-2, 0): 0.2, (1e-2, 1): 0.3, (1e-1, 0): None}
    losses[1e-1, 1] = 0.9
    rows, curves = [], {}
    for (rate, seed), loss in losses.items():
        name = f"x-{rate:g}-{seed}"
        state = "failed" if loss is None else "finished"
        rows.append(SweepRow(name, "x", {"optimizer.lr": rate}, seed, None, state, 6, loss))
        curves[name] = ([3, 6], [1.0, loss or 2.0])
    return rows, curves


def test_a_sweep_of_the_rate_is_loss_against_rate_with_every_curve_behind(tmp_path: Path) -> None:
    rows, curves = rate_rows()
    figure = rates_figure(rate_trials(rows, curves))
    left, right = figure.axes[:2]
    assert left.get_xscale() == "log"
    assert left.get_xlabel() == "learning rate"
    means = left.lines[0]
    np.testing.assert_allclose(means.get_xdata(), [1e-3, 1e-2, 1e-1])
    np.testing.assert_allclose(means.get_ydata(), [0.5, 0.25, 0.9])
    crosses = next(line for line in left.lines if line.get_marker() == "x")
    assert list(crosses.get_xdata()) == [1e-1]  # the one without a loss is not left out
    drawn = sorted(tuple(line.get_ydata()) for line in right.lines)
    assert drawn == sorted(tuple(losses) for _, losses in curves.values())
    path = write_sweep_report(SweepReport("sweep", rows, None), tmp_path, curves)
    assert (tmp_path / "rates.png").stat().st_size > 10_000
    assert "Loss against learning rate" in path.read_text()


def test_other_sweeps_have_no_picture_of_rates(tmp_path: Path) -> None:
    rows, curves = rate_rows()
    assert rate_trials([row for row in rows if row.overrides["optimizer.lr"] == 1e-2], curves) == []
    path = write_sweep_report(SweepReport("sweep", sweep_rows(), None), tmp_path)
    assert not (tmp_path / "rates.png").exists()
    assert "Loss against learning rate" not in path.read_text()
