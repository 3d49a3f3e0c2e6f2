"""`pelagos data inspect|verify|plot`: what is shown, exit statuses, and files that stay as they were."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from pelagos.cli.main import app
from pelagos.data_pipelines.store import DatasetSpec, Field, create_dataset, open_dataset

DAMAGED, BAD_INPUT = 1, 2


def data(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["data", *map(str, arguments)])


def picture(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def test_inspect_shows_what_the_dataset_is(datasets: tuple[str, str]) -> None:
    result = data("inspect", datasets[0])
    assert result.exit_code == 0, result.output
    for part in ("trajectory 12, time 5, channel 2, y 16, x 16", "density = 1", "train 8 (0 to 7)"):
        assert part in result.output
    described = json.loads(data("inspect", datasets[0], "--json").stdout)
    assert described["shape"] == [12, 5, 2, 16, 16]
    assert described["fingerprint"] == open_dataset(datasets[0]).fingerprint
    assert described["spec"]["constant_fields"] == {"density": 1.0}


def test_pictures_of_one_frame_are_inspected(tmp_path: Path) -> None:
    spec = DatasetSpec(
        name="pictures",
        equation="none",
        fields=(Field("red", "red"),),
        num_trajectories=2,
        num_frames=1,
        grid_shape=(8, 8),
        frame_interval=1.0,
        domain_extent=(1.0, 1.0),
        boundary_conditions={},
        splits={},
    )
    writer = create_dataset(tmp_path / "pictures.zarr", spec)
    writer.write_shard(0, np.arange(128, dtype=np.float32).reshape(spec.shape))
    writer.finalize()
    result = data("inspect", tmp_path / "pictures.zarr")
    assert result.exit_code == 0, result.output
    assert "63.5" in result.output
    assert "delta_std" not in result.output


def test_verify_says_whole_or_names_the_damage(datasets: tuple[str, str], tmp_path: Path) -> None:
    whole = data("verify", datasets[1])
    assert whole.exit_code == 0, whole.output
    assert "2 shards, 60 chunks" in whole.output
    copy = tmp_path / "damaged.zarr"
    shutil.copytree(datasets[1], copy)
    shard = copy / "data/c/1/0/0/0/0"
    content = bytearray(shard.read_bytes())
    content[0] ^= 1  # the first frame of the second shard, whose first trajectory is 6
    shard.write_bytes(content)
    result = data("verify", copy)
    assert result.exit_code == DAMAGED, result.output
    assert "1 place" in result.output
    assert "data/c/1/0/0/0/0, trajectory 6, frame 0: " in result.output
    as_json = data("verify", copy, "--json")
    assert as_json.exit_code == DAMAGED
    report = json.loads(as_json.stdout)
    assert [(d["trajectory"], d["frame"]) for d in report["damage"]] == [(6, 0)]
    assert shard.read_bytes() == content


def test_plot_draws_what_was_chosen(datasets: tuple[str, str], tmp_path: Path) -> None:
    first, same, other = tmp_path / "first.png", tmp_path / "same.png", tmp_path / "other.png"
    shown = data("plot", datasets[0], "-o", first, "--split", "test", "--trajectories", "1")
    assert shown.exit_code == 0, shown.output
    assert "trajectories 11" in shown.output  # the second of 10 to 11
    assert data("plot", datasets[0], "-o", same, "--trajectories", "11").exit_code == 0
    assert data("plot", datasets[0], "-o", other, "--trajectories", "10").exit_code == 0
    np.testing.assert_array_equal(picture(first), picture(same))
    assert (picture(first) != picture(other)).any()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["first.png", "other.png", "same.png"]


def test_plot_replaces_a_file_only_when_told(datasets: tuple[str, str], tmp_path: Path) -> None:
    output = tmp_path / "kept.png"
    output.write_text("mine")
    refused = data("plot", datasets[0], "--output", output)
    assert refused.exit_code == BAD_INPUT
    assert "--overwrite" in refused.output
    assert output.read_text() == "mine"
    assert data("plot", datasets[0], "--output", output, "--overwrite").exit_code == 0
    assert picture(output).shape[2] == 3


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--trajectories", "0,12"], ["has 12, numbered 0 to 11", "it has no 12"]),
        (["--trajectories", "2", "--split", "test"], ["split 'test'", "numbered 0 to 1"]),
        (["--trajectories", "one"], ["'one'", "numbers with commas"]),
        (["--split", "tost"], ["no split 'tost'", "validation"]),
        (["--output", "HERE"], ["is a directory"]),
        (["--output", "HERE/nowhere/a.png"], ["nowhere", "is not a directory"]),
    ],
)
def test_plot_refuses_what_it_cannot_draw(
    datasets: tuple[str, str], tmp_path: Path, options: list[str], parts: list[str]
) -> None:
    given = [o.replace("HERE", str(tmp_path)) for o in options]
    defaults = [] if "--output" in given else ["--output", tmp_path / "none.png"]
    result = data("plot", datasets[0], *given, *defaults)
    assert result.exit_code == BAD_INPUT, result.output
    for part in parts:
        assert part in result.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("verb", ["inspect", "verify", "plot"])
def test_a_wrong_uri_is_refused(verb: str, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "notes.txt").write_text("not a dataset")
    for uri in (tmp_path / "nowhere.zarr", plain, "gopher://host/a.zarr"):
        options = ["--output", tmp_path / "none.png"] if verb == "plot" else []
        result = data(verb, uri, *options)
        assert result.exit_code == BAD_INPUT, result.output
        assert str(uri).partition("://")[0] in result.output
        assert "Traceback" not in result.output
    assert list(tmp_path.iterdir()) == [plain]
