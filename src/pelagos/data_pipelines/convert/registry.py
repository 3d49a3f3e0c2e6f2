"""The formats, in the order in which a source is compared with them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from glob import glob
from pathlib import Path

from pelagos.data_pipelines.convert import (
    cfdbench,
    dpot,
    foreign_zarr,
    image_folder,
    mapped_arrays,
    named_dimensions,
    nifti,
    ome_zarr,
    pdebench,
    poseidon,
    the_well,
)
from pelagos.data_pipelines.convert.containers import unreadable_kind, unreadable_member
from pelagos.data_pipelines.convert.damaged import named_if_damaged
from pelagos.data_pipelines.convert.endless_files import reject_endless
from pelagos.data_pipelines.convert.formats import Format
from pelagos.data_pipelines.convert.hdf5 import ClassicFile, is_classic, open_hdf5
from pelagos.data_pipelines.convert.options import ConvertOptions
from pelagos.data_pipelines.convert.readers import close_files
from pelagos.data_pipelines.convert.source import Source, SourceError, finished
from pelagos.data_pipelines.store import DatasetError, open_dataset
from pelagos.data_pipelines.store.zarr_view import METADATA_NAMES
from pelagos.infra.storage.addresses import (
    reject_credentials,
    reject_empty_parts,
    reject_references,
)
from pelagos.infra.storage.failures import summary
from pelagos.infra.storage.remote import is_remote, storage_options
from pelagos.infra.suggestions import nearest
from pelagos.registry import Registry

ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".zip", ".7z")
_LOOKED_AT_BYTES = 2**16
HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"

FORMATS: Registry[Format] = Registry(
    "format",
    {
        found.name: found
        for found in (
            the_well.FORMAT,
            poseidon.FORMAT,
            pdebench.FORMAT,
            dpot.FORMAT,
            cfdbench.FORMAT,
            ome_zarr.FORMAT,
            nifti.FORMAT,
            image_folder.FORMAT,
            foreign_zarr.FORMAT,
            named_dimensions.FORMAT,
            mapped_arrays.FORMAT,
        )
    },
)


def open_source(path: str, options: ConvertOptions) -> Source:
    """Look at a source: its contents and their places, without reading its data.

    Raises:
        SourceError: nothing is there, its format is unknown or not the one given, or it
            breaks the format's rules: the file, the key and what was expected are named.
    """
    reject_references(path, SourceError)
    reject_credentials(path, SourceError)
    reject_empty_parts(path, SourceError)
    reject_endless(path)
    if options.format is not None and options.format not in FORMATS:
        raise SourceError(
            f"--format: got {options.format!r}{nearest(options.format, FORMATS)}; known formats: "
            f"{FORMATS.listed()}"
        )
    name = options.format or (mapped_arrays.FORMAT.name if options.mapping else None)
    with _said_of_stores(path):
        name = name or recognised(path, options)
    if name is None:
        if not is_remote(path) and not Path(path).exists() and not glob(f"{path}*"):
            raise SourceError(f"{path} does not exist")
        if _is_own(path):
            raise SourceError(
                f"{path} is already a Pelagos dataset: pelagos data copy {path} NEW.zarr copies it"
            )
        if not is_remote(path) and Path(path).is_file():
            _refuse_file(Path(path))
        if _holds_references(path):
            reject_references(f"reference://{path}", SourceError)
        _require_whole(path)
        if not is_remote(path) and (known := _known_kind(Path(path))):
            raise SourceError(known)
        raise SourceError(
            f"{path} resembles none of the formats {', '.join(FORMATS)}. Name one with --format, or "
            "describe its arrays in a file for --mapping (docs/converting.md): `pelagos convert "
            f"{path} --draft-mapping` proposes one"
        )
    try:
        with _said_of_stores(path):
            return finished(FORMATS[name].read(path, options), options)
    except SourceError as error:
        if options.format is None:
            raise
        with _said_of_stores(path):
            seen = recognised(path, options)
        if seen in (None, name):
            raise
        raise SourceError(f"{error}\n{path} looks like {seen}: try --format {seen}") from error
    finally:
        close_files()


@contextlib.contextmanager
def _said_of_stores(path: str) -> Iterator[None]:
    """Raise SourceError for errors of an object store's client: no credentials, no such host."""
    try:
        yield
    except (ValueError, OSError, ImportError):
        raise
    except Exception as error:  # each client has its own, which share no base
        if not is_remote(path):
            with named_if_damaged(path):
                raise
        raise SourceError(f"cannot reach {path}: {summary(error)}") from error


def _refuse_file(file: Path) -> None:
    """Raises SourceError for a file that no format could read, saying why."""
    if file.name.lower().endswith(ARCHIVE_SUFFIXES):
        raise SourceError(f"{file} is an archive: unpack it, and convert the folder")
    if file.stat().st_size == 0:
        raise SourceError(f"{file} is empty (0 bytes): was it downloaded or copied whole?")
    if not os.access(file, os.R_OK):
        raise SourceError(f"this user may not read {file}: change its permissions")


def _require_whole(path: str) -> None:
    """Raise SourceError for an HDF5 or netCDF file that nothing recognised as it cannot be opened."""
    if is_remote(path) or not Path(path).is_file():
        return
    if is_classic(path):
        ClassicFile(path)
        return
    with Path(path).open("rb") as stream:
        is_hdf5 = stream.read(len(HDF5_MAGIC)) == HDF5_MAGIC
    if is_hdf5:
        open_hdf5(path).close()


def _known_kind(place: Path) -> str:
    """The kind of a file, or a folder's file, that nothing here reads; empty if unknown."""
    if place.is_file():
        return unreadable_kind(place)
    is_zarr = any((place / name).exists() for name in METADATA_NAMES)
    return unreadable_member(place) if place.is_dir() and not is_zarr else ""


def _holds_references(path: str) -> bool:
    """Whether a file is kerchunk's JSON of references to parts of other files."""
    if not path.endswith(".json") or not Path(path).is_file():
        return False
    with Path(path).open("rb") as stream:
        start = stream.read(_LOOKED_AT_BYTES)
    return b'"refs"' in start or b'"version": 1' in start or b".zgroup" in start


def _is_own(path: str) -> bool:
    try:
        open_dataset(path, storage_options(path) or None).close()
    except (DatasetError, OSError):
        return False
    return True


def recognised(path: str, options: ConvertOptions) -> str | None:
    """The first format that a source looks like.

    Raises:
        SourceError: it looks like none, and one format gives the reason.
    """
    reason: SourceError | None = None
    for name, found in FORMATS.items():
        try:
            if found.matches(path, options):
                return name
        except SourceError as error:
            if isinstance(error.__cause__, ModuleNotFoundError):
                raise
            reason = reason or error
    if reason is not None:
        raise reason
    return None
