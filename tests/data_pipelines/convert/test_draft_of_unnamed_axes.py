"""A folder of one HDF5 file per trajectory, as a simulation leaves it: the proposed mapping converts."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from pelagos.cli.main import app
from pelagos.data_pipelines.store import open_dataset

FRAMES, ROWS, COLUMNS, FILES = 5, 6, 8, 10
TIMES = 0.25 * np.arange(FRAMES)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    folder = tmp_path / "runs"
    folder.mkdir()
    for number in range(FILES):
        with h5py.File(folder / f"run_{number}.h5", "w") as file:
            file["concentration"] = rng.normal(size=(FRAMES, ROWS, COLUMNS)).astype("f4")
            file["time"], file["nu"] = TIMES, 0.1 * number
            file["y"] = np.linspace(0, 3, ROWS)
    return folder


def draft(folder: Path) -> str:
    done = CliRunner().invoke(app, ["convert", str(folder), "--draft-mapping"])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_times_and_places_are_found_by_name_and_length_and_said_to_be_guessed(folder: Path) -> None:
    text = draft(folder)
    tree = yaml.safe_load(text)
    assert tree["frame_interval"] == {"file": "*.h5", "key": "time"}
    assert tree["domain_extent"] == {"y": {"file": "*.h5", "key": "y"}}
    assert "# guessed: *.h5: time (5,) holds the positions along t" in text
    mapping = folder.parent / "mapping.yaml"
    mapping.write_text(text)
    uri = folder.parent / "runs.zarr"
    done = CliRunner().invoke(app, ["convert", str(folder), str(uri), f"--mapping={mapping}"])
    assert done.exit_code == 0, done.output
    dataset = open_dataset(str(uri))
    assert dataset.spec.frame_interval == pytest.approx(0.25, rel=1e-12)
    assert dataset.spec.domain_extent[0] == pytest.approx(ROWS * 0.6, rel=1e-12)  # as many spacings
    with h5py.File(folder / "run_7.h5") as file:
        np.testing.assert_array_equal(
            dataset.read_frames(7, range(FRAMES))[:, 0], np.asarray(file["concentration"])
        )


def test_a_vector_of_another_length_or_name_is_no_coordinate(folder: Path) -> None:
    for path in folder.iterdir():
        with h5py.File(path, "a") as file:
            del file["time"], file["y"]
            file["time"] = np.arange(FRAMES + 1.0)
            file["probe"] = np.arange(float(ROWS))
    tree = yaml.safe_load(draft(folder))
    assert "frame_interval" not in tree
    assert "domain_extent" not in tree
