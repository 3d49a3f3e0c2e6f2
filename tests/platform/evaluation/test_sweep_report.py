"""The page and the table of a sweep, made of trials that are given."""

from __future__ import annotations

from pathlib import Path

import pytest

from pelagos.platform.cli import sweep as sweep_cli
from pelagos.platform.evaluation.sweep_report import SweepReport, SweepRow, render


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
        ),
        SweepRow("old", *finished, {"direct": 0.5}),
    ]


def test_a_sweep_tells_which_trials_beat_the_baselines_and_warns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    report = SweepReport("sweep", sweep_rows(), None)
    monkeypatch.setattr(sweep_cli.console, "width", 160)
    sweep_cli.show_report(report, tmp_path)
    shown = capsys.readouterr().out
    warning = "1 of 3 trials are no better than a constant at the last lead"
    assert shown.index(warning) < shown.index("relative L1 / VRMSE")
    baselines = "persistence 2.00% / 0.80, mean 1.55% / -"
    weights = "errors of 1 of 3 trials are of averaged weights"
    for text in ("1.00% / 0.50", "1.60% / 1.04", "50.00% / -", "neither", baselines, weights):
        assert text in shown
    page = render(report, b"")
    assert page.index(warning) < page.index("<table>")
    for text in ('<td class="n bad">1.60% / 1.04</td>', '<td class="bad">neither</td>', baselines):
        assert text in page
    assert "averaged weights" in page
