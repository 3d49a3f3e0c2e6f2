"""Sources that cannot be read, or only in one way, say so at once and say what to do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import fsspec
import h5py
import hdf5plugin
import numpy as np
import pytest
import xarray

from pelagos.data_pipelines.convert import ConvertOptions, SourceError, open_source
from pelagos.data_pipelines.convert import npz as npz_module
from pelagos.data_pipelines.convert.readers import close_files, stored_array
from pelagos.data_pipelines.convert.source import StoredArray
from pelagos.data_pipelines.foreign import open_foreign, open_readable
from pelagos.data_pipelines.store import DatasetError, open_dataset
from pelagos.infra.storage.obstore_remote import ObstoreStore
from pelagos.infra.storage.remote import StorageError
from pelagos.jobs import convert

SHAPE = (4, 3, 8, 8)
TRUTH = np.random.default_rng(0).normal(size=SHAPE).astype("f4")


def mapped(folder: Path, file: str) -> ConvertOptions:
    mapping = folder / "map.yaml"
    mapping.write_text(f"fields: [{{file: {file}, key: u, axes: [n, t, y, x], names: [u]}}]")
    return ConvertOptions(mapping=str(mapping))


# -- filters of HDF5 ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["Zstd", "Blosc", "Bitshuffle"])
def test_filters_of_hdf5plugin_are_read(tmp_path: Path, kind: str) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("u", data=TRUTH, chunks=(1, 1, 8, 8), **getattr(hdf5plugin, kind)())
    convert.run(str(tmp_path), str(tmp_path / "out.zarr"), mapped(tmp_path, "a.h5"))
    np.testing.assert_array_equal(
        open_dataset(tmp_path / "out.zarr").window(3, 0, 3)[:, 0], TRUTH[3]
    )


def write_filtered(file: Path, number: int) -> None:
    """An array whose chunks went through a filter that is not installed, or so they say."""
    with h5py.File(file, "w") as opened:
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_chunk((1, 1, 8, 8))
        plist.set_filter(number, h5py.h5z.FLAG_OPTIONAL, (3,))
        space = h5py.h5s.create_simple(SHAPE)
        found = h5py.h5d.create(opened.id, b"u", h5py.h5t.IEEE_F32LE, space, plist)
        for row in np.ndindex(4, 3):
            found.write_direct_chunk((*row, 0, 0), b"damaged" + bytes(40))


def test_a_filter_that_is_absent_is_named(tmp_path: Path) -> None:
    write_filtered(tmp_path / "b.h5", 300)
    options = mapped(tmp_path, "b.h5")
    with pytest.raises(
        SourceError, match=r"b\.h5: u is .* filter 300 \(unknown\).*pip install hdf5pl"
    ):
        open_source(str(tmp_path), options)


def test_a_damaged_chunk_names_its_filter(tmp_path: Path) -> None:
    write_filtered(tmp_path / "a.h5", 32015)
    with pytest.raises(SourceError, match=r"filter 32015 \(Zstandard\)"):
        convert.run(str(tmp_path), str(tmp_path / "out.zarr"), mapped(tmp_path, "a.h5"))


# -- classic netCDF -------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["NETCDF3_CLASSIC", "NETCDF3_64BIT"])
@pytest.mark.parametrize("unlimited", [(), ("n",)])
def test_classic_netcdf(tmp_path: Path, version: Any, unlimited: tuple[str, ...]) -> None:
    data = xarray.Dataset({"u": (("n", "t", "y", "x"), TRUTH), "nu": ("n", np.arange(4.0))})
    data.to_netcdf(tmp_path / "a.nc", engine="scipy", format=version, unlimited_dims=unlimited)
    convert.run(str(tmp_path), str(tmp_path / "out.zarr"), mapped(tmp_path, "a.nc"), verify=True)
    np.testing.assert_array_equal(
        open_dataset(tmp_path / "out.zarr").window(3, 0, 3)[:, 0], TRUTH[3]
    )
    content = (tmp_path / "a.nc").read_bytes()
    (tmp_path / "a.nc").write_bytes(content[:-100])
    with pytest.raises(SourceError, match=r"cannot read .*a\.nc"):
        open_source(str(tmp_path), mapped(tmp_path, "a.nc"))
    (tmp_path / "a.nc").write_bytes(b"CDF\x05" + content[4:])
    with pytest.raises(SourceError, match=r"CDF-5.*nccopy -k nc4"):
        open_source(str(tmp_path), mapped(tmp_path, "a.nc"))


def test_classic_netcdf_of_a_store_says_what_to_do(tmp_path: Path) -> None:
    data = xarray.Dataset({"u": (("n", "t", "y", "x"), TRUTH)})
    data.to_netcdf(tmp_path / "a.nc", engine="scipy")
    fsspec.filesystem("memory").pipe("/classic/a.nc", (tmp_path / "a.nc").read_bytes())
    options = mapped(tmp_path, "memory://classic/a.nc")
    with pytest.raises(
        SourceError, match=r"memory://classic/a\.nc is classic netCDF.*copy it here"
    ):
        open_source(str(tmp_path), options)
    data.to_netcdf(tmp_path / "b.nc", engine="h5netcdf")
    fsspec.filesystem("memory").pipe("/classic/a.nc", (tmp_path / "b.nc").read_bytes())
    assert open_source(str(tmp_path), options).num_trajectories == 4


def test_a_misspelt_format_is_answered_with_the_nearest() -> None:
    with pytest.raises(SourceError, match="did you mean 'pdebench'"):
        open_source("a.h5", ConvertOptions(format="pdbench"))


# -- archives -------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_large_compressed_array_is_unpacked_once_and_mapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: Any
) -> None:
    np.savez_compressed(tmp_path / "a.npz", u=np.asarray(TRUTH, order=order), v=np.ones(3))
    monkeypatch.setattr(npz_module, "MOST_BYTES_IN_MEMORY", TRUTH.nbytes - 1)
    copies: list[int] = []

    true = npz_module._copy

    def copy(source: Any, target: Any, num_bytes: int) -> None:
        copies.append(num_bytes)
        true(source, target, num_bytes)

    monkeypatch.setattr(npz_module, "_copy", copy)
    wanted = StoredArray("npz", str(tmp_path / "a.npz"), "u", "ntyx", 0)
    first = stored_array(wanted)
    assert isinstance(first, np.memmap)
    np.testing.assert_array_equal(first, TRUTH)
    close_files()
    np.testing.assert_array_equal(stored_array(wanted), TRUTH)
    assert copies == [TRUTH.nbytes]
    small = stored_array(StoredArray("npz", str(tmp_path / "a.npz"), "v", "n", 0))
    assert not isinstance(small, np.memmap)
    close_files()


def test_an_array_too_large_to_unpack_is_refused_with_its_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez_compressed(tmp_path / "a.npz", u=TRUTH)
    monkeypatch.setattr(npz_module, "MOST_BYTES_IN_MEMORY", 0)
    usage = type(shutil.disk_usage("/"))(1000, 900, 100)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(
        SourceError, match=rf"a\.npz: u .* {TRUTH.nbytes} bytes.* 100 bytes are free"
    ):
        open_source(str(tmp_path), mapped(tmp_path, "a.npz"))


# -- addresses ------------------------------------------------------------------------------------


def test_references_are_rejected_by_name(tmp_path: Path) -> None:
    for opening in (open_foreign, open_readable, open_dataset):
        with pytest.raises(DatasetError, match="does not read kerchunk references.*to_zarr"):
            opening("reference://refs.json")
    (tmp_path / "refs.json").write_text(json.dumps({"version": 1, "refs": {".zgroup": "{}"}}))
    for source in ("reference://refs.json", str(tmp_path / "refs.json")):
        with pytest.raises(SourceError, match="does not read kerchunk references"):
            open_source(source, ConvertOptions())


@pytest.mark.parametrize("uri", ["s3://bucket//a.zarr", "s3://bucket/a//b.zarr", "gs://b//c"])
def test_an_empty_part_of_an_address_is_rejected_before_any_request(uri: str) -> None:
    with pytest.raises(DatasetError, match="empty part between two slashes"):
        open_dataset(uri)


def test_a_malformed_key_is_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    store = ObstoreStore("s3://bucket/a.zarr")
    with pytest.raises(StorageError, match="is not a readable key"):
        store.read("x//y")
    with pytest.raises(StorageError, match="is not a readable key"):
        store.read_ranges("x//y", [(0, 1)])
    assert (store.counters.requests, store.counters.retries) == (2, 0)


@pytest.mark.parametrize("options", [ConvertOptions(), ConvertOptions(format="zarr")])
def test_a_store_without_credentials_is_said_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: ConvertOptions
) -> None:
    """botocore's exceptions are neither ValueError nor OSError, and became tracebacks."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "absent"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    with pytest.raises(ValueError, match=r"s3://nowhere/u.zarr.*[Uu]nable to locate credentials"):
        open_source("s3://nowhere/u.zarr", options)
