"""`predict` and `rollout` over files: values by the plain network, files read by their own libraries."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import nibabel
import numpy as np
import pytest
import torch
import xarray as xr
import zarr
from typer.testing import CliRunner

from pelagos.cli.main import app
from pelagos.jobs import predict, rollout
from pelagos.jobs.forecasting.files import Options
from pelagos.jobs.forecasting.sinks import AtomicTarget
from pelagos.jobs.forecasting.sources import ArraySource
from pelagos.jobs.forecasting.streaming import stream
from pelagos.jobs.weights.forecaster import Forecaster
from pelagos.jobs.weights.labelled import Labelled
from pelagos.models.registry import create_model
from pelagos.platform.records.runs import RunDirectory

ByHand = Callable[[np.ndarray, float], np.ndarray]
FIELDS = ("density", "velocity-x", "velocity-y", "pressure")
CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5}  # batches of another size round otherwise
SMALL = Options(batch_size=2, workers=2)


@pytest.fixture(scope="module")
def fields() -> np.ndarray:
    """Seven samples of three frames, `[sample, time, channel, y, x]`."""
    x = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    waves = [np.sin(x[None, :] + 0.3 * k) * np.cos(x[:, None]) for k in range(7 * 3 * 4)]
    return (1.5 + 0.7 * np.stack(waves).reshape(7, 3, 4, 16, 16)).astype(np.float32)


@pytest.fixture(scope="module")
def named(fields: np.ndarray) -> xr.Dataset:
    dims = ("member", "time", "y", "x")
    parts = {n: (dims, fields[:, :, c], {"long_name": n}) for c, n in enumerate(FIELDS)}
    coords = {
        "member": ("member", list("abcdefg")),
        "time": ("time", np.array(["2020-01-01", "2020-01-02", "2020-01-03"], "M8[ns]")),
        "x": ("x", np.arange(16) / 16, {"units": "m"}),
        "region": ((), "north"),
    }
    return xr.Dataset({**parts, "notes": ("member", np.arange(7))}, coords, {"title": "starts"})


def leftovers(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("suffix", ["nc", "zarr"])
def test_named_files_keep_names_axes_and_coordinates(
    suffix: str,
    exported: Path,
    named: xr.Dataset,
    fields: np.ndarray,
    by_hand: ByHand,
    tmp_path: Path,
) -> None:
    source, output = tmp_path / f"in.{suffix}", tmp_path / f"out.{suffix}"
    if suffix == "nc":
        named.to_netcdf(source, engine="h5netcdf")
    else:
        named.to_zarr(source, consolidated=False)
    written = predict.run(str(exported), str(source), str(output), [0.1, 0.2], SMALL)
    assert (written.samples, written.lead_times) == (7, (0.1, 0.2))
    found = xr.open_dataset(output, engine="h5netcdf" if suffix == "nc" else "zarr")
    assert set(found.data_vars) == set(FIELDS)
    assert found["density"].dims == ("member", "lead_time", "y", "x")
    for step, lead in enumerate((0.1, 0.2)):
        expected = by_hand(fields[:, -1], lead)  # from the last frame
        for channel, name in enumerate(FIELDS):
            np.testing.assert_allclose(
                found[name].isel(lead_time=step), expected[:, channel], **CLOSE
            )
    assert list(found["member"].values) == list("abcdefg")
    assert found["time"].values == np.datetime64("2020-01-03")
    assert (found["x"].attrs["units"], str(found["region"].values)) == ("m", "north")
    assert found["pressure"].attrs["long_name"] == "pressure"
    assert found.attrs["title"] == "starts"
    found.close()
    if suffix == "nc":
        with h5py.File(output) as file:
            assert file["velocity-x"].shape == (7, 2, 16, 16)
            np.testing.assert_allclose(
                file["velocity-x"][:, 0], by_hand(fields[:, -1], 0.1)[:, 1], **CLOSE
            )
            np.testing.assert_allclose(file["lead_time"], [0.1, 0.2])
    else:
        array = zarr.open_group(output, mode="r")["density"]
        assert array.metadata.dimension_names == ("member", "lead_time", "y", "x")
    assert leftovers(tmp_path) == []


def test_the_frame_to_start_from_is_chosen(
    exported: Path, named: xr.Dataset, fields: np.ndarray, by_hand: ByHand, tmp_path: Path
) -> None:
    named.to_netcdf(tmp_path / "in.nc", engine="h5netcdf")
    for start, frame in (("first", 0), ("1", 1), ("-1", 2)):
        output = tmp_path / f"{start}.npy"
        predict.run(str(exported), str(tmp_path / "in.nc"), str(output), [0.1], Options(start))
        np.testing.assert_allclose(np.load(output), by_hand(fields[:, frame], 0.1), **CLOSE)
    predict.run(
        str(exported), str(tmp_path / "in.nc"), str(tmp_path / "all.npy"), [0.1], Options("all")
    )
    every = by_hand(fields.reshape(21, 4, 16, 16), 0.1).reshape(fields.shape)
    np.testing.assert_allclose(np.load(tmp_path / "all.npy"), every, **CLOSE)
    with pytest.raises(ValueError, match="frames 0 to 2"):
        predict.run(
            str(exported), str(tmp_path / "in.nc"), str(tmp_path / "no.npy"), [0.1], Options("3")
        )


def test_arrays_go_in_and_come_out_alike_for_any_number_of_workers(
    exported: Path, fields: np.ndarray, by_hand: ByHand, tmp_path: Path
) -> None:
    np.save(tmp_path / "in.npy", fields[:, 0])
    contents = []
    for workers in (1, 4):
        output = tmp_path / f"{workers}.npy"
        options = Options(batch_size=2, workers=workers)
        rollout.run(str(exported), str(tmp_path / "in.npy"), str(output), 3, 0.1, options)
        contents.append(output.read_bytes())
    assert contents[0] == contents[1]
    found, state = np.load(tmp_path / "1.npy"), fields[:, 0]
    for step in range(3):
        state = by_hand(state, 0.1)
        np.testing.assert_allclose(found[:, step], state, **CLOSE)
    rollout.run(str(exported), str(tmp_path / "in.npy"), str(tmp_path / "out.zarr"), 3, 0.1, SMALL)
    again = xr.open_zarr(tmp_path / "out.zarr")["forecast"]
    assert list(again["channel"].values) == list(FIELDS)
    np.testing.assert_allclose(again["lead_time"], [0.1, 0.2, 0.3])
    np.testing.assert_array_equal(again, found)
    # few files: a block of rows is a chunk
    chunks = (tmp_path / "out.zarr" / "forecast" / "c").rglob("*")
    assert sum(path.is_file() for path in chunks) == 4


def test_a_pelagos_dataset_is_read_with_its_constants(
    exported: Path, datasets: tuple[str, str], by_hand: ByHand, tmp_path: Path
) -> None:
    """The dataset stores velocities, knows the density, and lacks the pressure, as in training."""
    options = Options("first", split="test", batch_size=1)
    rollout.run(str(exported), datasets[0], str(tmp_path / "out.nc"), 2, None, options)
    found = xr.open_dataset(tmp_path / "out.nc", engine="h5netcdf")
    assert set(found.data_vars) == set(FIELDS) - {"pressure"}
    assert list(found["trajectory"].values) == [10, 11]
    np.testing.assert_allclose(found["lead_time"], [0.05, 0.1])
    mean = json.loads((exported / "forecaster.json").read_text())["normalization"]["mean"][3]
    velocity = xr.open_zarr(datasets[0])["data"].isel(trajectory=slice(10, 12), time=0)
    state = np.ones((2, 4, 16, 16), np.float32)
    state[:, 1:3], state[:, 3] = velocity, mean
    for step in range(2):
        state = by_hand(state, 0.05)
        for channel, name in enumerate(FIELDS[:3]):
            np.testing.assert_allclose(found[name].isel(lead_time=step), state[:, channel], **CLOSE)
        state[:, 3] = mean
    np.testing.assert_array_equal(found["x"], velocity["x"])


class Counted(ArraySource):
    """Counts the rows that were read, and keeps the largest number at a time."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.taken = self.written = self.most = self.largest = 0

    def read(self, rows: range) -> Labelled:
        self.taken += len(rows)
        self.most = max(self.most, self.taken - self.written)
        self.largest = max(self.largest, len(rows))
        return super().read(rows)


class Noted(AtomicTarget):
    source: Counted

    def write(self, rows: range, block: Labelled, coordinates: Any) -> None:
        super().write(rows, block, coordinates)
        self.source.written += len(rows)


@pytest.mark.parametrize("workers", [1, 3])
def test_rows_in_memory_do_not_grow_with_the_file(
    workers: int, exported: Path, fields: np.ndarray, tmp_path: Path
) -> None:
    forecaster = Forecaster.load(exported)
    np.save(tmp_path / "in.npy", np.concatenate([fields[:, 0]] * 8))
    source = Counted(str(tmp_path / "in.npy"), forecaster, FIELDS, "last")
    target = Noted(tmp_path / "out.npy", "sample", 56, 2)
    target.source = source
    stream(source, forecaster.predict, target, block_rows=2, workers=workers)
    assert (source.taken, source.written, source.largest) == (56, 56, 2)
    assert source.most <= 2 * (workers + 1)


def test_output_is_whole_or_absent_and_never_lost(
    exported: Path, fields: np.ndarray, tmp_path: Path
) -> None:
    broken = fields[:, 0].copy()
    broken[5, 2, 3, 4] = np.nan
    np.save(tmp_path / "in.npy", broken)
    np.save(tmp_path / "kept.npy", np.arange(3))
    for name in ("out.nc", "out.zarr", "out.npy"):
        with pytest.raises(ValueError, match="velocity-y has 1 values that are NaN"):
            predict.run(str(exported), str(tmp_path / "in.npy"), str(tmp_path / name), (), SMALL)
    with pytest.raises(
        ValueError, match=r"kept.npy exists; choose another name or give --overwrite"
    ):
        predict.run(str(exported), str(tmp_path / "in.npy"), str(tmp_path / "kept.npy"))
    overwrite = Options(batch_size=2, overwrite=True)
    with pytest.raises(ValueError, match="NaN"):
        predict.run(
            str(exported), str(tmp_path / "in.npy"), str(tmp_path / "kept.npy"), (), overwrite
        )
    assert np.load(tmp_path / "kept.npy").tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="is the file that is read"):
        predict.run(
            str(exported), str(tmp_path / "in.npy"), str(tmp_path / "in.npy"), (), overwrite
        )
    (tmp_path / "home.zarr").mkdir()
    (tmp_path / "home.zarr" / "thesis.txt").write_text("years")
    with pytest.raises(ValueError, match="is a directory and not Zarr"):
        predict.run(
            str(exported), str(tmp_path / "in.npy"), str(tmp_path / "home.zarr"), (), overwrite
        )
    assert {p.name for p in tmp_path.iterdir()} == {"in.npy", "kept.npy", "home.zarr"}
    np.save(tmp_path / "in.npy", fields[:, 0])
    for name in ("kept.npy", "out.zarr", "out.zarr"):
        predict.run(str(exported), str(tmp_path / "in.npy"), str(tmp_path / name), (), overwrite)
    assert np.load(tmp_path / "kept.npy").shape == (7, 4, 16, 16)
    assert leftovers(tmp_path) == []


def test_a_doubt_is_told_once_and_not_for_every_block(
    exported: Path, fields: np.ndarray, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    np.save(tmp_path / "in.npy", fields[:, 0])
    for name in ("one.npy", "two.npy"):
        caplog.clear()
        predict.run(str(exported), str(tmp_path / "in.npy"), str(tmp_path / name), [7.0], SMALL)
        told = [r.getMessage() for r in caplog.records if "never trained" in r.getMessage()]
        assert len(told) == 1
        assert told[0].startswith("the model was never trained for the lead time 7")


def test_files_that_cannot_be_meant_are_rejected(
    exported: Path, fields: np.ndarray, tmp_path: Path
) -> None:
    def refused(source: Path, match: str) -> None:
        with pytest.raises(ValueError, match=match):
            predict.run(str(exported), str(source), str(tmp_path / "out.npy"))

    np.save(tmp_path / "few.npy", fields[:, 0, :3])
    refused(tmp_path / "few.npy", r"expected \[sample, channel, y, x\] with 4 channels: density")
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}], object))
    refused(tmp_path / "objects.npy", "is no array of numbers")
    (tmp_path / "text.csv").write_text("1")
    refused(tmp_path / "text.csv", "expected a name that ends in .nc, .zarr")
    with pytest.raises(FileNotFoundError):
        predict.run(str(exported), str(tmp_path / "none.nc"), str(tmp_path / "out.npy"))
    old = zarr.open_group(tmp_path / "old.zarr", mode="w", zarr_format=2)
    old.create_array("density", shape=(2, 16, 16), chunks=(1, 16, 16), dtype="f4")
    path = tmp_path / "old.zarr" / "density" / ".zarray"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"filters": [{"id": "pickle"}]}))
    (tmp_path / "old.zarr" / "density" / "0.0.0").write_bytes(pickle.dumps(1))
    refused(tmp_path / "old.zarr", "asks for the codec pickle, which runs code")
    with pytest.raises(
        ValueError, match="no model nothing: it is no directory here, and .*Expected a run"
    ):
        predict.run("nothing", str(tmp_path / "few.npy"), str(tmp_path / "out.npy"))


def test_the_verbs_take_runs_and_directories_and_say_what_they_wrote(
    trained: RunDirectory, exported: Path, fields: np.ndarray, tmp_path: Path
) -> None:
    np.save(tmp_path / "in.npy", fields[:, 0])
    of_run, of_directory = tmp_path / "run.npy", tmp_path / "directory.npy"
    start = ["predict", "waves@last", str(tmp_path / "in.npy"), str(of_run)]
    options = ["--lead", "0.1", "--runs-dir", str(trained.path.parent)]
    result = CliRunner().invoke(app, [*start, *options, "--json"])
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told == {
        "output": str(of_run),
        "samples": 7,
        "fields": list(FIELDS),
        "lead_times": [0.1],
    }
    assert CliRunner().invoke(app, [*start, *options]).exit_code == 2  # exists
    verb = ["rollout", str(exported), str(tmp_path / "in.npy"), str(of_directory), "--steps", "1"]
    result = CliRunner().invoke(app, [*verb, "--lead", "0.1", "--workers", "2"])
    assert result.exit_code == 0, result.output
    assert "directory.npy: 7/7" in result.output  # progress
    np.testing.assert_allclose(np.load(of_directory)[:, 0], np.load(of_run), **CLOSE)
    # the run by its place, as in every verb
    named = ["predict", f"{trained.path}@last", *start[2:], "--lead", "0.1", "--overwrite"]
    result = CliRunner().invoke(app, named)
    assert result.exit_code == 0, result.output
    np.testing.assert_allclose(np.load(of_directory)[:, 0], np.load(of_run), **CLOSE)
    result = CliRunner().invoke(app, [*verb[:4], "--steps", "1", "--lead", "-1", "--overwrite"])
    assert result.exit_code == 2
    assert "expected a time ahead" in result.output


@pytest.fixture(scope="module")
def segmentation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that marks the points of a volume, with weights that are drawn."""
    torch.manual_seed(3)
    network = create_model("nnunet-nano", in_channels=1, out_channels=3, num_dimensions=3)
    description = {
        "model": {"name": "nnunet-nano", "config": {"num_dimensions": 3}},
        "objective": {"name": "segmentation", "num_classes": 3},
        "fields": ["intensity", "label"],
        "normalization": {
            "fields": ["intensity", "label"],
            "mean": [0.5, 0.0],
            "std": [2.0, 1.0],
        },
        "datasets": [{"name": "d", "fingerprint": "f", "grid_shape": [8, 16, 16]}],
    }
    directory = tmp_path_factory.mktemp("segmentation") / "model"
    Forecaster(description, network.state_dict()).save(directory)
    return directory


def test_volumes_get_labels_where_they_lie(segmentation: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    canonical = rng.normal(size=(16, 16, 8)).astype(np.float32)  # x, y, z to the right, front, up
    # stored with y first and reversed
    stored = canonical.transpose(1, 0, 2)[::-1]
    affine = np.array([[0, 2.0, 0, -5], [-3.0, 0, 0, 9], [0, 0, 4.0, 1], [0, 0, 0, 1]])
    image = nibabel.Nifti1Image(stored, affine)
    nibabel.save(image, tmp_path / "in.nii.gz")
    written = predict.run(
        str(segmentation), str(tmp_path / "in.nii.gz"), str(tmp_path / "out.nii.gz")
    )
    assert written.fields == ("label",)
    found = nibabel.load(tmp_path / "out.nii.gz")
    np.testing.assert_allclose(found.affine, affine)
    network = create_model("nnunet-nano", in_channels=1, out_channels=3, num_dimensions=3)
    network.load_state_dict(Forecaster.load(segmentation).model.state_dict())
    network.eval()
    seen = (torch.tensor(canonical.transpose(2, 1, 0).copy()) - 0.5) / 2.0
    with torch.no_grad():
        answer = network(seen[None, None])
    logits = answer[0] if isinstance(answer, tuple) else answer
    labels = logits.argmax(1)[0].numpy().transpose(2, 1, 0)
    assert len(np.unique(labels)) > 1
    np.testing.assert_array_equal(np.asarray(found.dataobj), labels.transpose(1, 0, 2)[::-1])
    with pytest.raises(ValueError, match="gives classes of images: --lead"):
        predict.run(str(segmentation), str(tmp_path / "in.nii.gz"), str(tmp_path / "no.nii"), [0.1])
