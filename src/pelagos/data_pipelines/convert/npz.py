"""Arrays of an .npz archive, in bounded memory.

An array that is stored as it is gets mapped like an .npy. A compressed one can only be read from its
beginning: a small one is read whole, a large one is unpacked once, in pieces, into a temporary file
that is mapped and has no name, so that it is gone when the process is.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
import zipfile
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from pelagos.data_pipelines.convert.source import SourceError

MOST_BYTES_IN_MEMORY = 64 * 2**20  # of one compressed array
UNPACKED_ARRAYS_KEPT = 4  # per process: threads and shards share them
_COPY_BYTES = 2**20

_lock = threading.Lock()
_unpacked: OrderedDict[tuple[str, str, int], npt.NDArray[Any]] = OrderedDict()


@dataclass(frozen=True)
class _Header:
    shape: tuple[int, ...]
    is_fortran: bool
    dtype: np.dtype[Any]
    header_bytes: int

    @property
    def num_bytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


class NpzFile:
    """An open archive."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.archive = zipfile.ZipFile(file)

    def array(self, key: str) -> npt.NDArray[Any]:
        """The array at `key`.

        Raises:
            KeyError: there is none.
            SourceError: it is compressed, and there is no room to unpack it.
        """
        info = self.archive.getinfo(f"{key}.npy")
        with self.archive.open(info) as stream:
            header = _header(stream, f"{self.file}: {key}")
        if info.compress_type == zipfile.ZIP_STORED:
            return _mapped(self.file, info, header)
        identity = (self.file, key, Path(self.file).stat().st_mtime_ns)
        with _lock:
            if identity not in _unpacked:
                _unpacked[identity] = self._unpack(info, header, key)
            _unpacked.move_to_end(identity)
            while len(_unpacked) > UNPACKED_ARRAYS_KEPT:
                _unpacked.popitem(last=False)
            return _unpacked[identity]

    def shape(self, key: str) -> tuple[int, ...]:
        """The shape of an array, from its header alone."""
        with self.archive.open(f"{key}.npy") as stream:
            return _header(stream, f"{self.file}: {key}").shape

    def names(self) -> list[str]:
        """The arrays that there are."""
        return [name.removesuffix(".npy") for name in self.archive.namelist()]

    def close(self) -> None:
        self.archive.close()

    def _unpack(self, info: zipfile.ZipInfo, header: _Header, key: str) -> npt.NDArray[Any]:
        order: Any = "F" if header.is_fortran else "C"
        if header.num_bytes <= MOST_BYTES_IN_MEMORY:
            with self.archive.open(info) as stream:
                stream.read(header.header_bytes)
                content = stream.read()
            return np.frombuffer(content, header.dtype).reshape(header.shape, order=order)
        free = shutil.disk_usage(tempfile.gettempdir()).free
        if header.num_bytes > free:
            raise SourceError(
                f"{self.file}: {key} is compressed and has {header.num_bytes} bytes, "
                f"{header.num_bytes / 2**30:.1f} GiB; to be read in pieces it is unpacked into "
                f"{tempfile.gettempdir()}, where {free} bytes are free. Set TMPDIR to a larger disk, "
                f"or save it with numpy.savez or numpy.save"
            )
        with tempfile.TemporaryFile() as file, self.archive.open(info) as stream:
            stream.read(header.header_bytes)
            shutil.copyfileobj(stream, file, _COPY_BYTES)
            file.flush()
            return np.memmap(file, header.dtype, "r", 0, header.shape, order)


def _header(stream: IO[bytes], where: str) -> _Header:
    version = np.lib.format.read_magic(stream)
    readers: dict[tuple[int, int], Any] = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in readers:
        raise SourceError(f"{where} is of .npy version {version}, read are 1.0 and 2.0")
    shape, is_fortran, dtype = readers[version](stream)
    if dtype.hasobject:
        raise SourceError(f"{where} holds pickled objects, required are real numbers")
    return _Header(shape, is_fortran, dtype, stream.tell())


def _mapped(file: str, info: zipfile.ZipInfo, header: _Header) -> npt.NDArray[Any]:
    """A member that is stored as it is."""
    with Path(file).open("rb") as stream:
        stream.seek(info.header_offset + 26)  # the local header's lengths of name and extra field
        lengths = np.frombuffer(stream.read(4), "<u2")
    offset = info.header_offset + 30 + int(lengths.sum()) + header.header_bytes
    return np.memmap(
        file, header.dtype, "r", offset, header.shape, "F" if header.is_fortran else "C"
    )
