"""The notebooks of examples/: what they compute, what is committed of them, and how to run them anew."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from typing import Any

import h5py
import nbformat
import numpy as np
import pytest
import xarray as xr
import yaml

from pelagos.infra.json_text import parse_json

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "notebooks"
NAMES = ("finetune_and_compare", "own_data", "read_and_plot")
MOST_BYTES = 600_000
MACHINES = re.compile(r"/(?:tmp|work|home|root|Users|var)/|[A-Z]:\\\\")


def executed(name: str, directory: Path) -> nbformat.NotebookNode:
    run = runpy.run_path(str(FOLDER / "execute.py"))["executed"]
    notebook: nbformat.NotebookNode = run(FOLDER / f"{name}.ipynb", directory)
    return notebook


def texts(notebook: nbformat.NotebookNode) -> str:
    """Everything that its cells printed or returned as text."""
    found = [
        output.get("text") or output.get("data", {}).get("text/plain", "")
        for output in outputs(notebook)
    ]
    return "\n".join(found)


def outputs(notebook: nbformat.NotebookNode) -> list[Any]:
    return [o for cell in notebook.cells if cell.cell_type == "code" for o in cell.outputs]


def summary(run: Path) -> list[dict[str, Any]]:
    """Medians by lead, from an evaluation's metrics.json."""
    found = parse_json((run / "evaluation" / "test" / "metrics.json").read_bytes())
    (dataset,) = found["datasets"]
    return list(dataset["summary"])


def test_every_notebook_is_here() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == list(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_committed_is_small_whole_and_of_no_machine(name: str) -> None:
    path = FOLDER / f"{name}.ipynb"
    assert path.stat().st_size < MOST_BYTES
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    found = outputs(notebook)
    assert [output for output in found if output.output_type == "error"] == []
    assert sum("image/png" in output.get("data", {}) for output in found) >= 2
    assert MACHINES.findall(json.dumps(found)) == []
    assert "\x1b" not in texts(notebook)  # no moving bars
    assert "Warning" not in texts(notebook)


@pytest.mark.slow
def test_own_data_becomes_a_forecast_that_beats_persistence(tmp_path: Path) -> None:
    notebook = executed("own_data", tmp_path)
    files = sorted((tmp_path / "simulations").glob("*.h5"))
    stored = []
    viscosities = []
    for path in files:
        with h5py.File(path) as file:
            stored.append(file["u"][()])
            viscosities.append(file["nu"][()])
    truth = np.array(stored)  # [trajectory, time, y, x]
    converted = xr.open_zarr(tmp_path / "burgers.zarr")
    np.testing.assert_array_equal(converted["data"].isel(channel=0).values, truth)
    parameters = xr.open_zarr(tmp_path / "burgers.zarr", group="parameters")
    np.testing.assert_array_equal(parameters["nu"].values, viscosities)
    assert "the same as the source: burgers.zarr" in texts(notebook)

    held_out = truth[144:]
    rows = summary(tmp_path / "runs" / "burgers")
    assert [row["lead_time"] for row in rows] == pytest.approx([0.05, 0.1, 0.15, 0.2, 0.25])
    for lead, row in enumerate(rows, 1):
        later, first = held_out[:, lead].astype(np.float64), held_out[:, 0].astype(np.float64)
        error = np.sqrt(((first - later) ** 2).mean((1, 2))) / later.std((1, 2))
        assert row["vrmse"]["persistence"] == pytest.approx(np.median(error), rel=1e-4)
        assert row["vrmse"]["autoregressive"] < 0.5 * row["vrmse"]["persistence"]
    assert rows[-1]["vrmse"]["autoregressive"] < 0.25
    # the table that a reader sees
    assert f"{rows[-1]['vrmse']['autoregressive']:.3f}" in texts(notebook)


@pytest.mark.slow
def test_a_fine_tuning_beats_scratch_and_persistence_on_few_trajectories(tmp_path: Path) -> None:
    executed("finetune_and_compare", tmp_path)
    assert xr.open_zarr(tmp_path / "data" / "ns-sl.zarr").sizes["trajectory"] == 24
    tuned, scratch = (summary(tmp_path / "runs" / name) for name in ("finetuned", "scratch"))
    for of_tuned, of_scratch in zip(tuned, scratch, strict=True):
        error = of_tuned["vrmse"]["autoregressive"]
        assert error < of_scratch["vrmse"]["autoregressive"]
        assert error < of_tuned["vrmse"]["persistence"]
        persistence = [rows["vrmse"]["persistence"] for rows in (of_tuned, of_scratch)]
        assert persistence[0] == pytest.approx(persistence[1], rel=1e-5)
    last = [rows[-1]["vrmse"]["autoregressive"] for rows in (tuned, scratch)]
    assert last[0] < 0.9 * last[1]
    # the constants are those of the data that the weights have seen: whole dataset, by numpy
    job = yaml.safe_load((tmp_path / "runs" / "finetuned" / "job.yaml").read_text())
    seen = xr.open_zarr(tmp_path / "data" / "ns-gauss.zarr")["data"].values.astype(np.float64)
    std = list(job["data"]["normalization"]["std"].values())
    np.testing.assert_allclose(std, seen.std(axis=(0, 1, 3, 4)), rtol=0.02)


@pytest.mark.slow
def test_reading_shows_the_same_numbers_as_xarray_and_numpy(tmp_path: Path) -> None:
    notebook = executed("read_and_plot", tmp_path)
    told = texts(notebook)
    assert "equal to what Pelagos reads: True" in told
    data = xr.open_zarr(tmp_path / "data" / "shear-layers.zarr")["data"].values.astype(np.float64)
    assert data.shape == (12, 9, 2, 48, 48)
    train = data[:8]
    for name, channel in (("velocity-x", 0), ("velocity-y", 1)):
        line = next(line for line in told.splitlines() if re.match(rf"{name}\s", line))
        shown = [float(number) for number in line.split()[1:]]
        values = train[:, :, channel]
        correct = [values.mean(), values.std(), values.min(), values.max()]
        assert shown[:4] == pytest.approx(correct, abs=6e-5)
    energy = (data**2).sum(2).mean((2, 3)) / 2
    assert (np.diff(energy, axis=1) < 0).all()  # as the text says of viscosity
    (first, last) = re.findall(r"loss ([\d.]+) -> ([\d.]+)", told)[0]
    assert float(last) < 0.5 * float(first)
