"""`pelagos data bench`: what it measures is there, and follows the storage."""

from __future__ import annotations

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from pelagos.cli.main import app
from pelagos.data_pipelines.store import DatasetError
from pelagos.data_pipelines.streaming.bench import bench


def test_a_report_of_a_dataset_on_s3(s3_server: Any, write_waves: Any, monkeypatch: Any) -> None:
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    uri = s3_server.new_uri("/waves.zarr")
    write_waves(uri, ("density", "pressure"), 0)
    arguments = ["--step-time", "0.05", "--batch", "4", "--seconds", "0.1", "--json"]
    result = CliRunner().invoke(app, ["data", "bench", uri, *arguments])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["store"] == "ObstoreStore"
    assert [r["num_threads"] for r in report["reader"]] == [1, 4, 16, 32]
    for reading in [*report["raw"], *report["reader"]]:
        assert 1.0 <= reading["requests_per_window"] < 2.0  # a few are hedged where it is busy
        assert reading["p99_seconds"] >= reading["median_seconds"] > 0
    found = report["recommendation"]
    assert found["needed_windows_per_second"] == 80
    assert 0 <= found["stall_fraction"] <= 1


def test_storage_that_is_too_slow_gets_a_cache(datasets: tuple[str, str]) -> None:
    fast = bench(datasets[0], step_seconds=0.1, batch_size=1, seconds=0.05, concurrencies=(1, 2))
    assert fast.recommendation.is_enough
    assert fast.recommendation.num_threads in (1, 2)  # one is enough, unless it was kept waiting
    assert fast.recommendation.cache_bytes is None
    slow = bench(datasets[0], step_seconds=1e-7, batch_size=4, seconds=0.05, concurrencies=(1, 2))
    assert not slow.recommendation.is_enough
    assert slow.recommendation.cache_bytes is not None
    assert slow.recommendation.cache_bytes >= slow.dataset_bytes


def test_frames_in_chunks_count_whole(make_dataset: Any) -> None:
    dataset, _ = make_dataset(chunk_shape=(5, 8), compression="none")
    quick: dict[str, Any] = {"seconds": 0.05, "concurrencies": (1,)}
    found = bench(dataset.uri, step_seconds=0.01, batch_size=1, num_frames=2, **quick)
    # two frames of 3 x 2 chunks of two fields of 5 x 8 numbers, each chunk with its checksum
    assert found.window_bytes == 2 * 6 * (2 * 5 * 8 * 4 + 4)
    for reading in (*found.raw, *found.reader):
        num_bytes = reading.windows_per_second * found.window_bytes
        assert reading.megabytes_per_second * 1e6 == pytest.approx(num_bytes)


def test_shown_for_people_and_refused_where_it_makes_no_sense(datasets: tuple[str, str]) -> None:
    quick = ["--seconds", "0.05", "--step-time", "0.02"]
    shown = CliRunner().invoke(app, ["data", "bench", datasets[0], *quick])
    assert shown.exit_code == 0, shown.output
    assert "data.num_threads=" in shown.output
    refused = CliRunner().invoke(app, ["data", "bench", datasets[0], "--batch", "0"])
    assert refused.exit_code == 2
    with pytest.raises(DatasetError, match="5 frames per trajectory, but windows of 9"):
        bench(datasets[0], step_seconds=1, batch_size=1, num_frames=9)
