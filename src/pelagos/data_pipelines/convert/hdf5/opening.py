"""Opening an HDF5 file, here or far away."""

from __future__ import annotations

from typing import Any

import fsspec

from pelagos.data_pipelines.convert.containers import unreadable_kind
from pelagos.data_pipelines.convert.extras import require
from pelagos.data_pipelines.convert.hdf5.first_look import require_answering
from pelagos.data_pipelines.convert.source import SourceError
from pelagos.infra.storage.addresses import (
    reject_credentials,
    reject_empty_parts,
    reject_references,
)
from pelagos.infra.storage.remote import is_remote, storage_options

HDF5_CACHE_BYTES = 16 * 2**20  # per array: a compressed chunk is then decoded once, not per slice
REMOTE_BLOCK_BYTES = 8 * 2**20
CLASSIC_MAGIC = b"CDF"


def open_hdf5(file: str) -> Any:
    """An HDF5 or netCDF-4 file, from a path or any address that fsspec knows.

    A local file is looked at first (`first_look.py`).

    Raises:
        SourceError: it is absent, or not HDF5.
        DamagedFileError: the HDF5 library would hang or crash in it.
    """
    reject_references(file, SourceError)
    reject_credentials(file, SourceError)
    reject_empty_parts(file, SourceError)
    h5py = require("h5py", f"reading {file}")
    try:
        if is_remote(file):
            stream = _remote_stream(file)
            if stream.read(len(CLASSIC_MAGIC)) == CLASSIC_MAGIC:
                raise SourceError(
                    f"{file} is classic netCDF, which Pelagos reads only from this machine: copy it "
                    "here, or write it as netCDF-4 (`nccopy -k nc4 OLD NEW`)"
                )
            stream.seek(0)
            return h5py.File(stream, "r", rdcc_nbytes=HDF5_CACHE_BYTES)
        require_answering(file)
        return h5py.File(file, "r", rdcc_nbytes=HDF5_CACHE_BYTES)
    except FileNotFoundError as error:
        raise SourceError(f"{file} does not exist") from error
    except OSError as error:
        if known := unreadable_kind(file, may_be_misnamed=False):
            raise SourceError(known) from error
        raise SourceError(
            f"cannot read {file} as HDF5: {error}. Expected an HDF5 or netCDF file"
        ) from error


def _remote_stream(file: str) -> Any:
    try:
        filesystem, path = fsspec.url_to_fs(file, **storage_options(file))
        return filesystem.open(path, "rb", block_size=REMOTE_BLOCK_BYTES)
    except FileNotFoundError:
        raise
    except Exception as error:  # each file system has its own: no credentials, no such host, …
        raise SourceError(f"cannot reach {file}: {type(error).__name__}: {error}") from error
