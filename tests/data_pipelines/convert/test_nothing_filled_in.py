"""Parts of a source that nobody wrote are errors with file, array and index, never zeros."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray
import zarr

from pelagos.data_pipelines.convert import ConvertOptions, SourceError, open_source
from pelagos.data_pipelines.convert.formats import child
from pelagos.data_pipelines.convert.hdf5.gaps import find_gaps
from pelagos.data_pipelines.convert.reading import blocks
from pelagos.data_pipelines.foreign import open_foreign
from pelagos.data_pipelines.store import DatasetError, open_dataset
from pelagos.jobs import convert

SHAPE = (6, 4, 8, 10)
TRUTH = np.random.default_rng(0).normal(3, 1, SHAPE).astype("f4")


def mapped(folder: Path, file: str, **options: Any) -> ConvertOptions:
    mapping = folder / "map.yaml"
    mapping.write_text(f"fields: [{{file: {file}, key: u, axes: [n, t, y, x], names: [u]}}]")
    return ConvertOptions(mapping=str(mapping), **options)


def rejected(folder: Path, file: str, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        convert.run(str(folder), str(folder / f"{file}.out"), mapped(folder, file), num_workers=1)
    with pytest.raises(DatasetError):
        open_dataset(folder / f"{file}.out")


def test_chunks_that_a_dead_simulation_never_wrote(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        data = file.create_dataset("u", SHAPE, "f4", chunks=(1, 2, 8, 10), maxshape=(None,) * 4)
        data[:4], data[4, :2] = TRUTH[:4], TRUTH[4, :2]
    rejected(tmp_path, "a.h5", r"a\.h5: u holds nothing at index \(4, 2, 0, 0\).* 3 of 12 chunks")
    # what is there can be had
    options = mapped(tmp_path, "a.h5", splits={"train": 3, "test": 1})
    convert.run(str(tmp_path), str(tmp_path / "part.zarr"), options, verify=True)
    np.testing.assert_array_equal(
        open_dataset(tmp_path / "part.zarr").window(3, 0, 4)[:, 0], TRUTH[3]
    )


def test_a_gap_left_by_growing(tmp_path: Path) -> None:
    """An unlimited dimension that was extended past where writing went on."""
    with h5py.File(tmp_path / "a.h5", "w") as file:
        data = file.create_dataset("u", (2, *SHAPE[1:]), maxshape=(None, *SHAPE[1:]), dtype="f4",
                                   chunks=(1, 4, 8, 10))  # fmt: skip
        data[:] = TRUTH[:2]
        data.resize(6, axis=0)
        data[4:] = TRUTH[4:]
    rejected(tmp_path, "a.h5", r"index \(2, 0, 0, 0\).* 2 of 6 chunks")


def test_an_array_that_was_only_declared(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("u", SHAPE, "f4")
    rejected(tmp_path, "a.h5", r"index \(0, 0, 0, 0\): it was declared and never written")


def test_raw_files_that_are_gone_or_short(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        data = file.create_dataset(
            "u", SHAPE, "f4", external=[(str(tmp_path / "raw"), 0, TRUTH.nbytes)]
        )
        data[:] = TRUTH
    with h5py.File(tmp_path / "a.h5") as file:
        assert not find_gaps(file["u"])
        np.testing.assert_array_equal(file["u"][5], TRUTH[5])
    (tmp_path / "raw").write_bytes((tmp_path / "raw").read_bytes()[:-4])
    told = (
        rf"raw, which has {TRUTH.nbytes - 4} bytes but needs {TRUTH.nbytes}\. HDF5 would read zeros"
    )
    rejected(tmp_path, "a.h5", told)
    (tmp_path / "raw").unlink()
    rejected(tmp_path, "a.h5", "raw, which does not exist")


def write_virtual(folder: Path, rows: int = 6) -> None:
    """`virtual.h5` over `rows` files of one trajectory each."""
    layout = h5py.VirtualLayout(shape=SHAPE, dtype="f4")
    for row in range(rows):
        with h5py.File(folder / f"part{row}.h5", "w") as file:
            file["u"] = TRUTH[row]
        layout[row] = h5py.VirtualSource(f"part{row}.h5", "u", shape=SHAPE[1:])
    with h5py.File(folder / "virtual.h5", "w") as file:
        file.create_virtual_dataset("u", layout)


def test_virtual_arrays_with_all_their_sources(tmp_path: Path) -> None:
    write_virtual(tmp_path)
    source = open_source(str(tmp_path), mapped(tmp_path, "virtual.h5"))
    frames = np.concatenate([block.frames for block in blocks(source, range(6))])
    np.testing.assert_array_equal(frames[:, 0], TRUTH.reshape(-1, 8, 10))


def test_virtual_arrays_whose_source_is_gone(tmp_path: Path) -> None:
    write_virtual(tmp_path)
    (tmp_path / "part3.h5").unlink()
    rejected(
        tmp_path, "virtual.h5", r"index \(3, 0, 0, 0\).* source part3\.h5 \(u\) does not exist"
    )


def test_virtual_arrays_whose_source_lost_its_array(tmp_path: Path) -> None:
    write_virtual(tmp_path)
    with h5py.File(tmp_path / "part2.h5", "w") as file:
        file["v"] = TRUTH[2]
    rejected(tmp_path, "virtual.h5", r"index \(2, 0, 0, 0\).*part2\.h5 has no array u")


def test_virtual_arrays_whose_source_has_a_gap(tmp_path: Path) -> None:
    write_virtual(tmp_path)
    with h5py.File(tmp_path / "part5.h5", "w") as file:
        file.create_dataset("u", SHAPE[1:], "f4", chunks=(1, 8, 10))[:2] = TRUTH[5, :2]
    rejected(tmp_path, "virtual.h5", r"index \(5, 0, 0, 0\).*part5\.h5: u has 2 of 4 chunks")


def test_virtual_arrays_whose_source_shrank(tmp_path: Path) -> None:
    write_virtual(tmp_path)
    with h5py.File(tmp_path / "part1.h5", "w") as file:
        file["u"] = TRUTH[1, :3]
    rejected(tmp_path, "virtual.h5", r"index \(1, 0, 0, 0\).*part1\.h5: u has shape \(3, 8, 10\)")


def test_virtual_arrays_that_no_source_covers(tmp_path: Path) -> None:
    write_virtual(tmp_path, rows=5)
    rejected(tmp_path, "virtual.h5", r"index \(5, 0, 0, 0\): .*no source covers")


def test_interleaved_virtual_arrays_are_whole(tmp_path: Path) -> None:
    layout = h5py.VirtualLayout(shape=SHAPE, dtype="f4")
    with h5py.File(tmp_path / "parts.h5", "w") as file:
        file["even"], file["odd"] = TRUTH[::2], TRUTH[1::2]
    for first, key in enumerate(("even", "odd")):
        layout[first::2] = h5py.VirtualSource("parts.h5", key, shape=(3, *SHAPE[1:]))
    with h5py.File(tmp_path / "virtual.h5", "w") as file:
        file.create_virtual_dataset("u", layout)
    with h5py.File(tmp_path / "virtual.h5") as file:
        assert not find_gaps(file["u"])
        np.testing.assert_array_equal(file["u"][...], TRUTH)


def test_links_that_lead_nowhere(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["u"] = h5py.ExternalLink("gone.h5", "/v")
    options = mapped(tmp_path, "a.h5")
    with pytest.raises(
        SourceError, match=r"a\.h5: u is a link to gone\.h5: /v, which does not exist"
    ):
        open_source(str(tmp_path), options)
    with h5py.File(tmp_path / "gone.h5", "w") as file:
        file["v"] = TRUTH
    assert open_source(str(tmp_path), options).num_trajectories == 6


def test_every_format_of_hdf5_looks_for_gaps(tmp_path: Path) -> None:
    """Data of PDEgym, and a coordinate of The Well that was declared and never written."""
    with h5py.File(tmp_path / "CE-RP.nc", "w") as file:
        file.create_dataset("data", (4, 2, 5, 8, 8), "f4", chunks=(1, 2, 5, 8, 8))[:3] = 1
    with pytest.raises(
        SourceError, match=r"CE-RP\.nc: data holds nothing at index \(3, 0, 0, 0, 0\)"
    ):
        convert.run(str(tmp_path / "CE-RP.nc"), str(tmp_path / "out.zarr"))
    with h5py.File(tmp_path / "times.h5", "w") as file:
        file.create_dataset("time", (3,), "f8")
        with pytest.raises(
            SourceError, match=r"/time holds nothing at index \(0\): it was declared"
        ):
            child(file, "time", "times")


# -- Zarr -----------------------------------------------------------------------------------------


def grown(folder: Path, version: int) -> Path:
    """Four trajectories with consolidated metadata, and two more that it does not know."""
    axes = ("sample", "time", "y", "x")
    data = xarray.Dataset({"u": (axes, TRUTH)})
    path = folder / f"v{version}.zarr"
    options: dict[str, Any] = {"zarr_format": version, "consolidated": True}
    data.isel(sample=slice(4)).to_zarr(path, encoding={"u": {"chunks": (1, 4, 8, 10)}}, **options)
    options["consolidated"] = False
    data.isel(sample=slice(4, 6)).to_zarr(path, append_dim="sample", **options)
    return path


@pytest.mark.parametrize("version", [2, 3])
def test_consolidated_metadata_that_is_out_of_date(tmp_path: Path, version: int) -> None:
    path = grown(tmp_path, version)
    if version == 3:  # appending wrote the root's metadata without its copy
        content = zarr.open_group(path, use_consolidated=False)
        zarr.consolidate_metadata(path)
        content["u"].resize((7, *SHAPE[1:]))
    message = (
        r"array 'u': its consolidated metadata gives shape \([46], .* from index [46] of axis 0"
    )
    with pytest.raises(DatasetError, match=message):
        open_foreign(path)
    with pytest.raises(SourceError, match=message):
        open_source(str(path), ConvertOptions())
    with pytest.raises(SourceError, match=message):
        open_source(str(tmp_path), mapped(tmp_path, path.name))
    if version == 2:
        zarr.consolidate_metadata(path)
        np.testing.assert_array_equal(open_foreign(path).read_frames(5, range(4))[:, 0], TRUTH[5])


def test_consolidated_metadata_that_lacks_an_array_or_an_attribute(tmp_path: Path) -> None:
    axes = ("sample", "time", "y", "x")
    path = tmp_path / "a.zarr"
    xarray.Dataset({"u": (axes, TRUTH)}).to_zarr(path, zarr_format=2, consolidated=True)
    group = zarr.open_group(path, use_consolidated=False)
    group["u"].attrs["scale_factor"] = 2.0
    with pytest.raises(DatasetError, match="array 'u': its consolidated metadata gives attributes"):
        open_foreign(path)
    zarr.consolidate_metadata(path)
    assert open_foreign(path).read_frames(0, [0])[0, 0, 0, 0] == 2 * TRUTH[0, 0, 0, 0]
    group.create_array("v", data=TRUTH, attributes={"_ARRAY_DIMENSIONS": list(axes)})
    with pytest.raises(DatasetError, match="consolidated metadata leaves out v"):
        open_foreign(path)
