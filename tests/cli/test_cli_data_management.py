"""`pelagos data stats|append|copy|split|merge`: what is written, exit statuses, refusals."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
import zarr
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from pelagos.cli.main import app
from pelagos.data_pipelines.store import open_dataset

BAD_INPUT = 2


def data(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["data", *map(str, arguments)])


@pytest.fixture
def own(datasets: tuple[str, str], tmp_path: Path) -> Path:
    return Path(shutil.copytree(datasets[0], tmp_path / "own.zarr"))


def test_append_split_copy_merge(datasets: tuple[str, str], own: Path, tmp_path: Path) -> None:
    result = data("append", own, datasets[0], "--split", "test")
    assert result.exit_code == 0, result.output
    assert "now has 24 trajectories, 12 of them new" in result.output
    result = data("split", own, "train=0:20", "test=20:24")
    assert result.exit_code == 0, result.output
    assert open_dataset(own).spec.splits == {"train": (0, 20), "test": (20, 24)}
    result = data("copy", own, tmp_path / "copy.zarr")
    assert result.exit_code == 0, result.output
    assert open_dataset(tmp_path / "copy.zarr").fingerprint == open_dataset(own).fingerprint
    result = data("merge", tmp_path / "all.zarr", own, datasets[0], "--name", "all")
    assert result.exit_code == 0, result.output
    assert open_dataset(tmp_path / "all.zarr").spec.splits["train"] == (0, 28)
    for wrong in (
        ("append", own, datasets[1]),
        ("split", own, "train=0-8"),
        ("split", own, "train=0:9", "test=8:10"),
        ("split", own, "train=0:3", "train=3:9"),
        ("split", own, "all=0:3"),
        ("split", own, "train=0:3", "vaild=3:4"),
        ("copy", datasets[1], own),
        ("merge", own, datasets[0]),
        ("stats", own, "--output", tmp_path),
        ("stats", own, "--output", tmp_path / "nowhere" / "ns"),
    ):
        refused = data(*wrong)
        assert refused.exit_code == BAD_INPUT, refused.output
        assert "Traceback" not in refused.output
    assert open_dataset(own).spec.splits == {"train": (0, 20), "test": (20, 24)}
    assert "already holds a finished dataset" in data("merge", own, datasets[0]).output


def test_stats_of_a_dataset(own: Path, tmp_path: Path) -> None:
    result = data("stats", own, "--output", tmp_path / "ns")
    assert result.exit_code == 0, result.output
    dotted = data("stats", own, "--output", tmp_path / "nu1.5")
    assert dotted.exit_code == 0, dotted.output
    assert (tmp_path / "nu1.5.png").exists()
    assert (tmp_path / "nu1.5.json").exists()
    assert (tmp_path / "ns.png").stat().st_size > 10_000
    found = json.loads((tmp_path / "ns.json").read_text())
    assert found["differences"] == []
    assert set(found["spectra"]["velocity-x"]) == {"0", "2", "4"}
    refused = data("stats", own, "--output", tmp_path / "ns")
    assert refused.exit_code == BAD_INPUT
    assert "exists" in refused.output


def test_stats_of_a_foreign_array_are_kept_beside_its_description(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(3, 4, 1, 6, 8)).astype("f4")
    zarr.create_array(tmp_path / "a.zarr", data=values, chunks=(1, 4, 1, 6, 8))
    description = tmp_path / "a.yaml"
    description.write_text(yaml.safe_dump({"fields": [{"name": "vorticity"}]}))
    result = data("stats", tmp_path / "a.zarr", "--description", description)
    assert result.exit_code == 0, result.output
    kept = json.loads((tmp_path / "a.statistics.json").read_text())
    mean = kept["statistics"]["all"]["vorticity"]["mean"]
    assert mean == pytest.approx(values.astype("f8").mean(), rel=1e-12)


def test_an_animation_shows_every_frame(own: Path, tmp_path: Path) -> None:
    output = tmp_path / "waves.gif"
    result = data("plot", own, "--animation", "--trajectories", "3", "-o", output)
    assert result.exit_code == 0, result.output
    picture = Image.open(output)
    assert (picture.n_frames, picture.size) == (5, (192 + 4 + 192, 192))
    pixels = []
    for frame in range(5):
        picture.seek(frame)
        pixels.append(np.asarray(picture.convert("RGB"))[:, :192])
    # a wave that moves half a domain per unit of time: frame 4 is frame 0 moved by a tenth of it
    assert all((a != b).any() for a, b in itertools.pairwise(pixels))
    images = open_dataset(own).read_frames(3, [0])[0, 0, ::-1]
    brightest = np.unravel_index(images.argmax(), images.shape)
    colour = pixels[0][brightest[0] * 12 + 6, brightest[1] * 12 + 6].astype(int)
    assert colour[0] > colour[2]  # the largest velocity is red
