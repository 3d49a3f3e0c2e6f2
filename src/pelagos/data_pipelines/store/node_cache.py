"""Pieces of remote objects on a disk of the node, shared by its processes.

    <directory>/pelagos-cache-1/users.lock, usage.lock
    <directory>/pelagos-cache-1/<fingerprint>/users.lock
    <directory>/pelagos-cache-1/<fingerprint>/<object>@<offset>+<length>.block

A block file is the bytes, a CRC-32C of each 64 KiB of them, and a trailer that says the length. It is
written under another name, with a lock held, and renamed: a process that is killed leaves a name that
nothing reads, and the next that wants the block takes it over. Existing blocks stay until the cache
is given to another dataset: dropping old blocks for new ones would only help if the order of reading
were not a permutation of everything. Nothing that the cache did not write is ever removed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pelagos.data_pipelines.store.errors import DatasetError
from pelagos.data_pipelines.store.shards import crc32c
from pelagos.infra.storage.files import open_lock_file, open_regular
from pelagos.infra.storage.read_policy import ReadCounters
from pelagos.infra.storage.remote import Bytes, Range

ROOT = "pelagos-cache-1"
USERS, USAGE = "users.lock", "usage.lock"
BLOCK, PARTIAL = ".block", ".block-partial"
PAGE_BYTES = 64 * 2**10
TRAILER = struct.Struct("<8sQI")  # magic, length of the content, CRC-32C of the page checksums
MAGIC = b"PELBLK01"
MAX_OPEN_FILES = 256
DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CacheSettings:
    """Where a node keeps fetched blocks, and how many.

    Attributes:
        directory: on a disk of the node, not on a network file system; made if it is missing.
        max_bytes: for all datasets together.
    """

    directory: str
    max_bytes: int

    def __post_init__(self) -> None:
        if self.max_bytes <= 0:
            raise ValueError(f"max_bytes of a cache must be positive, got {self.max_bytes}")


class DamagedBlockError(Exception):
    """A block on disk differs from the written one."""


@dataclass(frozen=True)
class OpenBlock:
    """A finished block: its file and the checksums of its pages."""

    descriptor: int
    length: int
    checksums: npt.NDArray[np.uint32]

    @classmethod
    def open(cls, path: Path, length: int) -> OpenBlock:
        """Raises FileNotFoundError, or DamagedBlockError where the trailer is not right."""
        descriptor = open_regular(path)
        try:
            size = 4 * num_pages(length)
            tail = os.pread(descriptor, size + TRAILER.size + 1, length)
            if len(tail) != size + TRAILER.size:
                raise DamagedBlockError(f"{path} has the wrong length")
            if tail[size:] != TRAILER.pack(MAGIC, length, crc32c(tail[:size])):
                raise DamagedBlockError(f"the trailer of {path} is damaged")
            return cls(descriptor, length, np.frombuffer(tail[:size], "<u4"))
        except BaseException:
            os.close(descriptor)
            raise

    def read(self, offset: int, buffer: Bytes, verify: bool) -> None:
        """Fill the buffer from `offset` of the block. Raises DamagedBlockError, OSError."""
        if not verify:
            self._read_exactly(offset, buffer)
            return
        first = offset // PAGE_BYTES
        last = -(-(offset + len(buffer)) // PAGE_BYTES)
        start, stop = first * PAGE_BYTES, min(last * PAGE_BYTES, self.length)
        pages = np.empty(stop - start, np.uint8)
        self._read_exactly(start, pages)
        if not np.array_equal(page_checksums(pages), self.checksums[first:last]):
            raise DamagedBlockError(f"bytes {start}..{stop - 1} of a cached block are damaged")
        buffer[:] = pages[offset - start : offset - start + len(buffer)]

    def _read_exactly(self, offset: int, buffer: Bytes) -> None:
        done = 0
        while done < len(buffer):
            count = os.preadv(self.descriptor, [buffer.data[done:]], offset + done)
            if count == 0:
                raise DamagedBlockError("a cached block is cut short")
            done += count


class NodeCache:
    """The blocks of one dataset. Any number of threads and processes may share the directory.

    Args:
        settings: directory and budget.
        fingerprint: of the dataset; another one never sees these blocks.
        num_bytes: stored size of the dataset.
        counters: of the store that is read through the cache.

    Raises:
        DatasetError: the directory cannot be used.
    """

    def __init__(
        self, settings: CacheSettings, fingerprint: str, num_bytes: int, counters: ReadCounters
    ) -> None:
        self.settings = settings
        self.root = Path(settings.directory).expanduser().absolute() / ROOT
        self.folder = self.root / fingerprint[:32]
        self.counters = counters
        self.is_filling = True
        self._open: dict[str, OpenBlock] = {}
        self._lock = threading.Lock()
        self._held: list[int] = []
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for place in (self.root, self.folder):
                if place.is_symlink():  # of somebody else, in a directory where all can write
                    raise OSError(errno.ELOOP, "is a link, which could lead anywhere", str(place))
            self._join()
            self._make_room(num_bytes)
        except OSError as error:
            if error.errno not in DISK_IS_FULL:
                raise DatasetError(
                    f"cannot use the cache {settings.directory} ({error}): give a directory that "
                    "this user may write to, or no cache"
                ) from error
            self._stop_filling(error)

    def read(
        self, name: str, length: int, ranges: Sequence[Range], out: list[Bytes], verify: bool
    ) -> bool:
        """Fill `out` with ranges within a block; return whether the block was there, and whole."""
        try:
            block, is_kept = self._opened(name, length)
        except FileNotFoundError:
            return False
        except (DamagedBlockError, OSError) as error:
            self.drop(name, length, error)
            return False
        try:
            for (offset, _), buffer in zip(ranges, out, strict=True):
                block.read(offset, buffer, verify)
        except (DamagedBlockError, OSError) as error:
            self.drop(name, length, error)
            return False
        finally:
            if not is_kept:
                os.close(block.descriptor)
        return True

    def fill(self, name: str, length: int, fetch: Callable[[], Bytes]) -> Bytes | None:
        """Fetch a block and keep it; return its bytes, or None if it is there (or cannot be).

        One process at a time fetches a block; the others wait for it. `fetch` may raise.
        """
        path = self.folder / (name + BLOCK)
        partial = self.folder / (name + PARTIAL)
        try:
            with self._locked_partial(path, partial) as file:
                if file is None:
                    return None
                if not self._reserve(file_bytes(length)):
                    self.is_filling = False
                    logger.info(
                        "the cache %s is full at %d bytes; other data is read from the store",
                        self.settings.directory,
                        self.settings.max_bytes,
                    )
                    return None
                content: Bytes | None = None
                try:
                    content = fetch()
                    _write_block(file, content)
                    partial.rename(path)
                except BaseException as error:
                    self._release(file_bytes(length))
                    if content is None or not isinstance(error, OSError):
                        raise
                    self._stop_filling(error)
                return content
        except OSError as error:
            self._stop_filling(error)
            return None

    def drop(self, name: str, length: int, reason: object) -> None:
        """Remove a block that is not as it was written."""
        with self._lock:
            known = self._open.pop(name, None)
        # An open file is left to the end of the process: another thread may be reading from it.
        if known is not None:
            self._held.append(known.descriptor)
        try:
            (self.folder / (name + BLOCK)).unlink()
        except FileNotFoundError:
            return  # another process was faster
        self._release(file_bytes(length))
        self.counters.add(cache_drops=1)
        logger.warning("dropped %s from the cache %s: %s", name, self.settings.directory, reason)

    def close(self) -> None:
        """Close files. The locks that say this dataset is in use go with them."""
        with self._lock:
            descriptors = [block.descriptor for block in self._open.values()] + self._held
            self._open, self._held = {}, []
        for descriptor in descriptors:
            os.close(descriptor)

    def __del__(self) -> None:
        self.close()

    def _opened(self, name: str, length: int) -> tuple[OpenBlock, bool]:
        """A finished block, and whether it stays open."""
        known = self._open.get(name)
        if known is not None:
            return known, True
        block = OpenBlock.open(self.folder / (name + BLOCK), length)
        with self._lock:
            if name in self._open or len(self._open) >= MAX_OPEN_FILES:
                return block, False
            self._open[name] = block
            return block, True

    @contextlib.contextmanager
    def _locked_partial(self, path: Path, partial: Path) -> Iterator[int | None]:
        """The file to write a block into, locked; None if the block has come to be meanwhile."""
        started = time.perf_counter()
        while True:
            file = open_lock_file(partial)
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
                is_mine = _is_same_file(file, partial)
                is_there = path.exists()
                if is_mine or is_there:
                    self.counters.add(cache_wait_seconds=time.perf_counter() - started)
                    try:
                        yield None if is_there else file
                    finally:
                        if is_mine and _is_same_file(file, partial):
                            partial.unlink()
                    return
            finally:
                os.close(file)

    def _stop_filling(self, error: OSError) -> None:
        if self.is_filling:
            self.is_filling = False
            logger.warning(
                "the cache %s takes no more data (%s); other data is read from the store",
                self.settings.directory,
                error,
            )

    # -- the budget, shared by all processes and datasets of the directory -------------------------

    def _join(self) -> None:
        """Say that the directory and this dataset are in use; count it anew if no other process does."""
        root_users = self._hold(self.root / USERS)
        try:
            fcntl.flock(root_users, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pass
        else:
            for orphan in self.root.glob(f"*/*{PARTIAL}"):
                orphan.unlink(missing_ok=True)
            total = sum(p.stat().st_size for p in self.root.glob(f"*/*{BLOCK}"))
            with self._usage() as usage:
                usage.write(total)
        fcntl.flock(root_users, fcntl.LOCK_SH)
        users = self._hold(self.folder / USERS)
        fcntl.flock(users, fcntl.LOCK_SH)
        os.utime(self.folder / USERS)

    def _hold(self, path: Path) -> int:
        descriptor = open_lock_file(path)
        self._held.append(descriptor)
        return descriptor

    def _make_room(self, num_bytes: int) -> None:
        """Remove blocks of datasets that no process reads now, the longest unused first."""
        own = sum(p.stat().st_size for p in self.folder.glob(f"*{BLOCK}"))
        others = [p.parent for p in self.root.glob(f"*/{USERS}") if p.parent != self.folder]
        for folder in sorted(others, key=lambda p: (p / USERS).stat().st_mtime):
            with self._usage() as usage:
                if usage.read() + num_bytes - own <= self.settings.max_bytes:
                    return
                usage.write(max(0, usage.read() - _remove_unused(folder)))

    def _reserve(self, num_bytes: int) -> bool:
        with self._usage() as usage:
            used = usage.read()
            if used + num_bytes > self.settings.max_bytes:
                return False
            usage.write(used + num_bytes)
            return True

    def _release(self, num_bytes: int) -> None:
        with contextlib.suppress(OSError), self._usage() as usage:
            usage.write(max(0, usage.read() - num_bytes))

    @contextlib.contextmanager
    def _usage(self) -> Iterator[_Usage]:
        descriptor = open_lock_file(self.root / USAGE)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield _Usage(descriptor)
        finally:
            os.close(descriptor)


@dataclass(frozen=True)
class _Usage:
    """The number of bytes that all blocks of a directory take."""

    descriptor: int

    def read(self) -> int:
        found = os.pread(self.descriptor, 8, 0)
        return int.from_bytes(found, "little") if len(found) == 8 else 0

    def write(self, num_bytes: int) -> None:
        os.pwrite(self.descriptor, num_bytes.to_bytes(8, "little"), 0)


def num_pages(length: int) -> int:
    """Return the number of pages of a block of `length` bytes."""
    return -(-length // PAGE_BYTES)


def file_bytes(length: int) -> int:
    """Size of the file of a block."""
    return length + 4 * num_pages(length) + TRAILER.size


def page_checksums(content: Bytes) -> npt.NDArray[np.uint32]:
    """Return the CRC-32C of each page."""
    pages = range(0, len(content), PAGE_BYTES)
    values = [crc32c(content[p : p + PAGE_BYTES].data) for p in pages]
    return np.array(values, "<u4")


def _write_block(file: int, content: Bytes) -> None:
    checksums = page_checksums(content).tobytes()
    trailer = TRAILER.pack(MAGIC, len(content), crc32c(checksums))
    os.ftruncate(file, 0)  # left by a killed process
    position = 0
    for part in (content.data, memoryview(checksums), memoryview(trailer)):
        done = 0
        while done < len(part):
            done += os.pwrite(file, part[done:], position + done)
        position += done


def _is_same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _remove_unused(folder: Path) -> int:
    """Remove the blocks of a dataset unless it is in use; return their size."""
    descriptor = os.open(folder / USERS, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        removed = 0
        for path in folder.glob(f"*{BLOCK}"):
            removed += path.stat().st_size
            path.unlink()
        for path in (*folder.glob(f"*{PARTIAL}"), folder / USERS):
            path.unlink()
        with contextlib.suppress(OSError):  # something in it is not the cache's
            folder.rmdir()
        return removed
    except BlockingIOError:
        return 0
    finally:
        os.close(descriptor)
