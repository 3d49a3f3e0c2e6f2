"""Arrays of .npy files and of .npz archives, in bounded memory.

An array that an archive stores as it is gets mapped like an .npy. A compressed one can only be read from
its beginning: a small one is read whole, a large one is unpacked once, in pieces, into a temporary file
that is mapped and has no name, so that it is gone when the process is.
"""

from __future__ import annotations

import io
import math
import shutil
import tempfile
import threading
import zipfile
import zlib
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from pelagos.data_pipelines.convert.source import SourceError
from pelagos.infra.storage.files import CappedReader

MOST_BYTES_IN_MEMORY = 64 * 2**20  # of one compressed array
UNPACKED_ARRAYS_KEPT = 4  # per process: threads and shards share them
_COPY_BYTES = 2**20

_lock = threading.Lock()
_unpacked: OrderedDict[tuple[str, str, int], npt.NDArray[Any]] = OrderedDict()
_intact: set[tuple[str, str, int]] = set()  # members of which the checksum was compared


@dataclass(frozen=True)
class _Header:
    shape: tuple[int, ...]
    is_fortran: bool
    dtype: np.dtype[Any]
    header_bytes: int

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def mapped_npy(file: str | Path) -> npt.NDArray[Any]:
    """The array of an .npy, mapped.

    `numpy.load` allocates as many bytes as the file claims for its header: up to four gigabytes.

    Raises:
        SourceError: it holds objects, or is of a version that is not read.
        ValueError, OSError: it is no .npy, is cut short, or is absent.
    """
    with CappedReader(io.FileIO(file)) as stream:
        header = _header(stream, str(file))
    order: Any = "F" if header.is_fortran else "C"
    return np.memmap(file, header.dtype, "r", header.header_bytes, header.shape, order)


class NpzFile:
    """An open archive."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.stream = CappedReader(io.FileIO(file))
        self.archive = zipfile.ZipFile(self.stream)

    def array(self, key: str) -> npt.NDArray[Any] | StoredMember:
        """The array at `key`.

        Raises:
            KeyError: there is none.
            SourceError: it is damaged, or compressed and there is no room to unpack it.
        """
        info = self.archive.getinfo(f"{key}.npy")
        try:
            return self._array(info, key)
        except SourceError:
            raise
        except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, OSError) as error:
            raise SourceError(
                f"{self.file}: cannot read {key}: {error}. The archive is damaged or cut short: "
                "copy or write it again"
            ) from error

    def _array(self, info: zipfile.ZipInfo, key: str) -> npt.NDArray[Any] | StoredMember:
        with self.archive.open(info) as stream:
            header = _header(stream, f"{self.file}: {key}")
        if info.compress_type == zipfile.ZIP_STORED:
            return StoredMember(self.file, key, info, header)
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
        """The arrays of the file."""
        return [name.removesuffix(".npy") for name in self.archive.namelist()]

    def close(self) -> None:
        self.archive.close()
        self.stream.close()

    def _unpack(self, info: zipfile.ZipInfo, header: _Header, key: str) -> npt.NDArray[Any]:
        order: Any = "F" if header.is_fortran else "C"
        held = info.file_size - header.header_bytes  # as the archive's directory says
        if held != header.num_bytes:
            raise SourceError(
                f"{self.file}: {key} has {held:,} bytes in the archive, but its header states "
                f"{header.num_bytes:,}: it is damaged, or made to exhaust memory"
            )
        if header.num_bytes <= MOST_BYTES_IN_MEMORY:
            with self.archive.open(info) as stream:
                stream.read(header.header_bytes)
                content = stream.read(header.num_bytes)
                stream.read(1)  # past the end, where the checksum is compared
            return np.frombuffer(content, header.dtype).reshape(header.shape, order=order)
        free = shutil.disk_usage(tempfile.gettempdir()).free
        if header.num_bytes > free:
            raise SourceError(
                f"{self.file}: {key} is compressed and has {header.num_bytes} bytes, "
                f"{header.num_bytes / 2**30:.1f} GiB. Reading it in pieces unpacks it into "
                f"{tempfile.gettempdir()}, where only {free} bytes are free. Set TMPDIR to a larger "
                "disk, or save it with numpy.savez or numpy.save"
            )
        with tempfile.TemporaryFile() as file, self.archive.open(info) as stream:
            stream.read(header.header_bytes)
            _copy(stream, file, header.num_bytes)
            file.flush()
            return np.memmap(file, header.dtype, "r", 0, header.shape, order)


def _copy(source: IO[bytes], target: IO[bytes], num_bytes: int) -> None:
    """Copy the given number of bytes, and read past them, where the checksum is compared."""
    while num_bytes > 0:
        piece = source.read(min(_COPY_BYTES, num_bytes))
        if not piece:
            raise EOFError("it ends too early")
        target.write(piece)
        num_bytes -= len(piece)
    source.read(1)


def _header(stream: IO[bytes], where: str) -> _Header:
    version = np.lib.format.read_magic(stream)
    readers: dict[tuple[int, int], Any] = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in readers:
        raise SourceError(f"{where} is of .npy version {version}; Pelagos reads 1.0 and 2.0")
    shape, is_fortran, dtype = readers[version](stream)
    if dtype.hasobject:
        raise SourceError(f"{where} holds pickled objects, expected real numbers")
    return _Header(shape, is_fortran, dtype, stream.tell())


class StoredMember:
    """A member that is stored as it is, mapped.

    Its checksum is compared once in each process, before the first number is read: unlike a
    compressed one it would not fail by itself.
    """

    def __init__(self, file: str, key: str, info: zipfile.ZipInfo, header: _Header) -> None:
        self.file, self.key, self.info = file, key, info
        with Path(file).open("rb") as stream:
            stream.seek(
                info.header_offset + 26
            )  # the local header's lengths of name and extra field
            lengths = np.frombuffer(stream.read(4), "<u2")
        self.start = info.header_offset + 30 + int(lengths.sum())
        self.values: npt.NDArray[Any] = np.memmap(
            file,
            header.dtype,
            "r",
            self.start + header.header_bytes,
            header.shape,
            "F" if header.is_fortran else "C",
        )

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.values.dtype

    def __getitem__(self, selection: Any) -> npt.NDArray[Any]:
        """Numbers. Raises SourceError: the member's checksum differs."""
        self._require_intact()
        found: npt.NDArray[Any] = self.values[selection]
        return found

    def _require_intact(self) -> None:
        identity = (self.file, self.key, Path(self.file).stat().st_mtime_ns)
        if identity in _intact:
            return
        with _lock:
            if identity in _intact:  # another thread was faster
                return
            checksum, left = 0, self.info.file_size
            with Path(self.file).open("rb") as stream:
                stream.seek(self.start)
                while left and (piece := stream.read(min(left, _COPY_BYTES))):
                    checksum, left = zlib.crc32(piece, checksum), left - len(piece)
            if left or checksum != self.info.CRC:
                raise SourceError(
                    f"{self.file}: {self.key} is damaged: its checksum is {checksum:#010x}, the "
                    f"archive states {self.info.CRC:#010x}. Copy or write it again"
                )
            _intact.add(identity)
