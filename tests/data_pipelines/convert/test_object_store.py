"""From an object store, and to one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fsspec
import h5py
import numpy as np
import pytest

from pelagos.data_pipelines.convert import ConvertOptions, SourceError, open_source
from pelagos.data_pipelines.management.inspection import verify
from pelagos.data_pipelines.store import open_dataset
from pelagos.jobs import convert

pytestmark = pytest.mark.s3


def test_from_a_bucket_to_a_bucket(
    tmp_path: Path, s3_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    data = np.random.default_rng(3).normal(size=(5, 3, 5, 16, 16)).astype(np.float32)
    with h5py.File(tmp_path / "CE-RP.nc", "w") as f:
        f["data"] = data
    bucket = f"s3://{s3_server.bucket}"
    fsspec.filesystem("s3", **s3_server.storage_options).put_file(
        str(tmp_path / "CE-RP.nc"), f"{bucket}/published/CE-RP.nc"
    )
    options = ConvertOptions(trajectories_per_shard=2)
    source, uri = f"{bucket}/published/CE-RP.nc", f"{bucket}/converted/ce-rp.zarr"
    result = convert.run(
        source, uri, options, verify=True, storage_options=s3_server.storage_options
    )
    assert (result.spec.num_shards, result.differences) == (3, ())
    dataset = open_dataset(uri, s3_server.storage_options)
    assert (dataset.window(4, 0, 3) == data[4, :, :4]).all()
    assert verify(uri, s3_server.storage_options).is_whole
    with pytest.raises(SourceError, match="resembles none of the formats"):
        open_source(f"{bucket}/published/NS-BB.nc", ConvertOptions())
