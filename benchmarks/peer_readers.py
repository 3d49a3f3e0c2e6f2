"""Readers of other libraries, each run in an environment of its own; nothing here imports Pelagos.

    python benchmarks/peer_readers.py NAME prepare|windows|batches SETTING

is started by benchmarks/data_peers.py; the protocol is that of peer_protocol.py. Each library reads the
layout that suits it best: MDS and LitData windows cut beforehand, which store each frame as often as
windows hold it; tensorstore and zarr-python the shards that Pelagos wrote, which are plain Zarr; The
Well its own HDF5.
"""

from __future__ import annotations

import functools
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from loopback_origin import BUCKET
from peer_protocol import BATCH, Batches, FloatArray, Reader, Setting, Window, in_flight, run_worker

SHARD_BYTES = 1 << 26  # the default of MDS and of LitData


class TensorStore(Reader):
    """tensorstore's zarr3 driver; remote by its HTTP key-value store."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        import tensorstore

        if setting.endpoint is None:
            store: Any = {"driver": "file", "path": f"{setting.copy}/data/"}
            limits: dict[str, Any] = {
                "data_copy_concurrency": {"limit": 1},
                "file_io_concurrency": {"limit": 1},
            }
        else:
            url = f"{setting.endpoint}/{BUCKET}/{setting.path}/data/"
            store, limits = {"driver": "http", "base_url": url}, {}
        # Room for the indices of shards, which are otherwise fetched for every window.
        limits["cache_pool"] = {"total_bytes_limit": 1 << 21}
        self.tensorstore = tensorstore
        self.array = tensorstore.open(
            {"driver": "zarr3", "kvstore": store, "recheck_cached_data": "open"},
            context=tensorstore.Context(limits),
            read=True,
        ).result()

    def _begin(self, window: Window, out: FloatArray) -> Any:
        trajectory, start = window
        source = self.array[trajectory, start : start + self.setting.length]
        target = self.tensorstore.array(out, copy=False)[self.tensorstore.d[0].translate_to[start]]
        return target.write(source)

    def read(self, window: Window, out: FloatArray) -> None:
        self._begin(window, out).result()

    def batches(self, seed: int) -> Batches:
        yield from in_flight(self.setting, seed, self._begin)


class ZarrS3fs(Reader):
    """zarr-python; remote by s3fs, in as many threads as windows are in flight."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        import zarr
        from zarr.storage import FsspecStore

        store: Any = setting.copy
        if setting.endpoint is not None:
            options = {
                "endpoint_url": setting.endpoint,
                "anon": True,
                "config_kwargs": {"max_pool_connections": 64},
            }
            store = FsspecStore.from_url(
                f"s3://{BUCKET}/{setting.path}", storage_options=options, read_only=True
            )
        self.array: Any = zarr.open_group(store, mode="r")["data"]

    def read(self, window: Window, out: FloatArray) -> None:
        trajectory, start = window
        np.copyto(out, self.array[trajectory, start : start + self.setting.length])


class LoaderReader(Reader):
    """A library that is read through torch's DataLoader; samples have a number and frames."""

    def dataset(self, seed: int, cache: str) -> Any:
        """In the library's shuffled order; `cache` is an empty folder for what comes from a store."""
        raise NotImplementedError

    def batches(self, seed: int) -> Batches:
        import torch.utils.data

        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        with tempfile.TemporaryDirectory(
            dir=Path(self.setting.raw).parent, ignore_cleanup_errors=True
        ) as cache:
            loader: Any = torch.utils.data.DataLoader(
                self.dataset(seed, cache),
                batch_size=BATCH,
                num_workers=self.setting.workers,
                drop_last=True,
            )
            rows = iter(loader)
            for row in rows:
                yield [self.setting.window(int(n)) for n in row["number"]], row["frames"].numpy()
            del rows  # ends the worker processes


def import_streaming() -> Any:
    """MosaicML Streaming, whose vision part imports torchvision. Wheels of that made for CUDA cannot
    load their operators beside a torch for the CPU: those asked for are declared, never called."""
    import torch.library

    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        DECLARED.append(library)
    import streaming

    return streaming


DECLARED: list[Any] = []  # a declaration lives as long as its library


class Mds(LoaderReader):
    """MosaicML Streaming, windows cut beforehand; remote with a new, empty cache each time."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.streaming = import_streaming()
        self.streaming.base.util.clean_stale_shared_memory()
        if setting.endpoint is None:
            self.local: Any = self._open(local=setting.copy, shuffle=False)
            shape = (setting.length, *setting.frame_shape)
            assert self.local[0]["frames"].shape == shape
        else:
            os.environ["S3_ENDPOINT_URL"] = setting.endpoint

    @classmethod
    def prepare(cls, setting: Setting) -> None:
        shape = ",".join(map(str, (setting.length, *setting.frame_shape)))
        columns = {"number": "int", "frames": f"ndarray:float32:{shape}"}
        streaming = import_streaming()
        with streaming.MDSWriter(
            out=setting.copy, columns=columns, size_limit=SHARD_BYTES
        ) as writer:
            for number, frames in cut_windows(setting):
                writer.write({"number": number, "frames": frames})

    def _open(self, **options: Any) -> Any:
        return self.streaming.StreamingDataset(batch_size=BATCH, **options)

    def dataset(self, seed: int, cache: str) -> Any:
        options = {"shuffle": True, "shuffle_seed": seed}
        if self.setting.endpoint is None:
            return self._open(local=self.setting.copy, **options)
        remote = f"s3://{BUCKET}/{self.setting.path}"
        return self._open(remote=remote, local=cache, **options)

    def read(self, window: Window, out: FloatArray) -> None:
        number = window[0] * self.setting.windows_per_trajectory + window[1]
        np.copyto(out, self.local[number]["frames"])


class LitData(LoaderReader):
    """LitData's StreamingDataset over local chunks of windows cut beforehand."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        from litdata import StreamingDataset

        self.local: Any = StreamingDataset(setting.copy)

    @classmethod
    def prepare(cls, setting: Setting) -> None:
        from litdata import optimize

        optimize(
            fn=functools.partial(lit_sample, setting),
            inputs=list(range(setting.shape[0] * setting.windows_per_trajectory)),
            output_dir=setting.copy,
            chunk_bytes=SHARD_BYTES,
            num_workers=1,
        )

    def dataset(self, seed: int, cache: str) -> Any:
        from litdata import StreamingDataset

        return StreamingDataset(self.setting.copy, shuffle=True, seed=seed)

    def read(self, window: Window, out: FloatArray) -> None:
        sample = self.local[window[0] * self.setting.windows_per_trajectory + window[1]]
        np.copyto(out, sample["frames"])


def lit_sample(setting: Setting, number: int) -> dict[str, Any]:
    trajectory, start = setting.window(number)
    raw = np.load(setting.raw, mmap_mode="r")
    return {"number": number, "frames": np.array(raw[trajectory, start : start + setting.length])}


class TheWell(LoaderReader):
    """The Well's WellDataset over local HDF5, a dataset for each field; frames end with channels."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        from the_well.data import WellDataset

        self.local: Any = WellDataset(
            path=setting.copy,
            n_steps_input=1,
            n_steps_output=setting.length - 1,
            use_normalization=False,
        )

    @classmethod
    def prepare(cls, setting: Setting) -> None:
        import h5py

        raw = np.load(setting.raw, mmap_mode="r")
        trajectories, frames, channels, *grid = setting.shape
        with h5py.File(Path(setting.copy) / "data.hdf5", "w") as file:
            file.attrs.update(dataset_name="benchmark", grid_type="cartesian", n_spatial_dims=2)
            file.attrs["n_trajectories"] = trajectories
            file.attrs["simulation_parameters"] = []
            dimensions = file.create_group("dimensions")
            dimensions.attrs["spatial_dims"] = ["x", "y"]
            for name, size in zip(("time", "x", "y"), (frames, *grid), strict=True):
                dimensions[name] = np.linspace(0, 1, size, dtype=np.float32)
                dimensions[name].attrs.update(sample_varying=False, time_varying=False)
            for name in ("t0_fields", "t1_fields", "t2_fields", "scalars"):
                file.create_group(name).attrs["field_names"] = []
            names = [f"field_{channel}" for channel in range(channels)]
            file["t0_fields"].attrs["field_names"] = names
            for channel, name in enumerate(names):
                field = file["t0_fields"].create_dataset(name, data=raw[:, :, channel])
                field.attrs.update(dim_varying=[True, True], sample_varying=True, time_varying=True)
            for name in ("x", "y"):
                boundary = file.create_group(f"boundary_conditions/{name}_periodic")
                boundary.attrs.update(bc_type="PERIODIC", associated_dims=[name])
                boundary.attrs.update(sample_varying=False, time_varying=False)
                mask = np.zeros(grid[0], bool)
                mask[[0, -1]] = True
                boundary["mask"] = mask

    def buffer(self) -> FloatArray:
        channels, *grid = self.setting.frame_shape
        return np.empty((self.setting.length, *grid, channels), np.float32)

    def standard(self, frames: FloatArray) -> FloatArray:
        return np.moveaxis(frames, -1, -3)

    def frames(self, number: int) -> npt.NDArray[np.float32]:
        sample = self.local[number]
        return np.concatenate([sample["input_fields"].numpy(), sample["output_fields"].numpy()])

    def read(self, window: Window, out: FloatArray) -> None:
        number = window[0] * self.setting.windows_per_trajectory + window[1]
        sample = self.local[number]
        np.copyto(out[:1], sample["input_fields"].numpy())
        np.copyto(out[1:], sample["output_fields"].numpy())

    def dataset(self, seed: int, cache: str) -> Any:
        return WellSamples(self, seed)


class WellSamples:
    """Random windows of The Well, as the DataLoader's processes ask for them."""

    def __init__(self, reader: TheWell, seed: int) -> None:
        self.reader = reader
        total = reader.setting.shape[0] * reader.setting.windows_per_trajectory
        self.numbers = np.random.default_rng(seed).permutation(total)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> dict[str, Any]:
        number = int(self.numbers[index])
        return {"number": number, "frames": self.reader.frames(number)}


def cut_windows(setting: Setting) -> Iterator[tuple[int, FloatArray]]:
    """Every window with its number."""
    raw = np.load(setting.raw, mmap_mode="r")
    for number in range(setting.shape[0] * setting.windows_per_trajectory):
        trajectory, start = setting.window(number)
        yield number, np.array(raw[trajectory, start : start + setting.length])


READERS: dict[str, type[Reader]] = {
    "tensorstore": TensorStore,
    "zarr": ZarrS3fs,
    "mds": Mds,
    "litdata": LitData,
    "the_well": TheWell,
}

if __name__ == "__main__":
    run_worker(READERS)
