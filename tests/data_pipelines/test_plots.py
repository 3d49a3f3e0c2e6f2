"""Contact sheets: every frame asked for is drawn, with colours that mean the same along a row."""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from pelagos.data_pipelines import plots
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
    assert (density_colours, velocity_colours) == (plots.SEQUENTIAL, plots.DIVERGING)


def test_other_dimensions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="two dimensions"):
        plots.contact_sheet(make(tmp_path, (16,)), io.BytesIO())
