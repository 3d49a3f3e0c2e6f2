"""Contact sheets: every frame asked for is drawn, with colours that mean the same along a row."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from typer.testing import CliRunner

from pelagos.cli.main import app
from pelagos.data_pipelines.pictures import plots
from pelagos.data_pipelines.pictures.animation import animate
from pelagos.data_pipelines.pictures.plot_parts import DIVERGING, SEQUENTIAL
from pelagos.data_pipelines.store import Dataset, DatasetSpec, Field, create_dataset, open_dataset


def make(folder: Path, grid: tuple[int, ...] = (8, 16)) -> Dataset:
    """Two trajectories: density 1 + t, velocity that grows from 0 and is signed."""
    spec = DatasetSpec(
        name="sheet",
        equation="none",
        fields=(Field("density", "density"), Field("velocity-x", "velocity-x")),
        num_trajectories=2,
        num_frames=5,
        grid_shape=grid,
        frame_interval=0.25,
        domain_extent=tuple(size / 16 for size in grid),
        boundary_conditions={},
        splits={"train": (0, 2)},
    )
    shape = (2, 5, 2, *grid)
    data = np.zeros(shape, np.float32)
    time = np.arange(5).reshape(1, 5, *[1] * len(grid))
    data[:, :, 0] = 1 + time
    data[:, :, 1] = time * np.sign(np.linspace(-1, 1, grid[-1]))
    writer = create_dataset(str(folder / "sheet.zarr"), spec)
    for shard in writer.missing_shards():
        writer.write_shard(shard, data[list(writer.shard_trajectories(shard))])
    writer.finalize()
    return open_dataset(str(folder / "sheet.zarr"))


def test_a_sheet_is_a_png_whose_size_grows_with_what_it_shows(tmp_path: Path) -> None:
    dataset = make(tmp_path)
    sizes = []
    for trajectories, frames in (([0], [0, 4]), ([0, 1], [0, 4]), ([0, 1], [0, 1, 2, 4])):
        plots.contact_sheet(dataset, tmp_path / "sheet.png", trajectories, frames)
        image = matplotlib.image.imread(tmp_path / "sheet.png")
        sizes.append(image.shape[:2])
        assert (image[..., :3] < 0.9).any(axis=-1).mean() > 0.05
    assert sizes[1][0] > sizes[0][0]
    assert sizes[1][1] == sizes[0][1]
    assert sizes[2][1] > sizes[1][1]


def test_the_same_dataset_gives_the_same_bytes(tmp_path: Path) -> None:
    dataset = make(tmp_path)
    first, second = io.BytesIO(), io.BytesIO()
    plots.contact_sheet(dataset, first)
    plots.contact_sheet(dataset, second)
    assert first.getvalue() == second.getvalue()


def test_rows_share_limits_signed_fields_are_symmetric_and_y_points_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    original = plots._draw_row

    def spy(axes, images, signed, extent):  # type: ignore[no-untyped-def]
        image = original(axes, images, signed, extent)
        drawn.append([(a.images[0].get_clim(), a.images[0].get_cmap().name) for a in axes])
        assert all(a.images[0].origin == "lower" for a in axes)
        return image

    monkeypatch.setattr(plots, "_draw_row", spy)
    plots.contact_sheet(make(tmp_path), io.BytesIO(), [0, 1], [0, 2, 4])
    assert len(drawn) == 4
    for row in drawn:
        assert len(set(row)) == 1
    (density, density_colours), (velocity, velocity_colours) = drawn[0][0], drawn[1][0]
    assert density == pytest.approx((1.0, 5.0))
    assert velocity == pytest.approx((-4.0, 4.0))
    assert (density_colours, velocity_colours) == (SEQUENTIAL, DIVERGING)


def drawn(dataset: Dataset, monkeypatch: pytest.MonkeyPatch, *arguments: Any) -> Figure:
    """The figure that a sheet was saved from."""
    figures: list[Figure] = []
    save = Figure.savefig
    with monkeypatch.context() as patch:
        patch.setattr(
            Figure, "savefig", lambda self, *a, **k: (figures.append(self), save(self, *a, **k))
        )
        plots.contact_sheet(dataset, io.BytesIO(), *arguments)
    return figures[0]


def test_one_dimension_is_a_space_time_diagram_and_profiles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = make(tmp_path, (16,))
    figure = drawn(dataset, monkeypatch, [1], [0, 2, 4])
    diagrams = [axis for axis in figure.axes if axis.images]
    profiles = [axis for axis in figure.axes if axis.lines]
    assert (len(diagrams), len(profiles)) == (2, 2)  # of density and velocity
    whole = dataset.read_frames(1, range(5))
    for channel in range(2):
        image = diagrams[channel].images[0]
        np.testing.assert_array_equal(image.get_array(), whole[:, channel])
        assert (image.origin, image.get_extent()[2:]) == ("lower", [0.0, 1.0])
        lines = [line.get_ydata() for line in profiles[channel].lines]
        np.testing.assert_array_equal(lines, whole[[0, 2, 4], channel])
    with pytest.raises(ValueError, match="two or three dimensions"):
        animate(dataset, io.BytesIO())


def test_three_dimensions_are_middle_planes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = make(tmp_path, (4, 6, 8))
    figure = drawn(dataset, monkeypatch, [0], [1, 3])
    images = [axis.images[0] for axis in figure.axes if axis.images]
    assert len(images) == 2 * 2 * 3  # fields, times, planes
    volume = dataset.read_frames(0, [3])[0, 1]  # velocity, second time
    found = [np.asarray(image.get_array()) for image in images[9:]]
    for image, expected in zip(found, (volume[2], volume[:, 3], volume[:, :, 4]), strict=True):
        np.testing.assert_array_equal(image, expected)
    assert len({image.get_clim() for image in images[6:]}) == 1
    animate(dataset, tmp_path / "a.gif")
    with Image.open(tmp_path / "a.gif") as picture:
        assert picture.n_frames == 5


@pytest.mark.parametrize(
    "arguments", [["-o", "a.jpg"], ["-o", "a"], ["-o", "a.gif"], ["--animation", "-o", "a.png"]]
)
def test_a_name_that_promises_another_kind_of_picture_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    dataset = make(tmp_path)
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["data", "plot", dataset.uri, *arguments])
    assert result.exit_code == 2
    assert "allowed: .png, and .gif with --animation" in " ".join(result.output.split())
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.zarr"]
