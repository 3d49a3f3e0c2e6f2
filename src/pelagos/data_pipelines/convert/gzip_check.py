"""Comparing the checksum at the end of a gzip file, which readers of a part of it never reach."""

from __future__ import annotations

import gzip
import threading
import zlib
from pathlib import Path

from pelagos.data_pipelines.convert.source import SourceError

_PIECE_BYTES = 2**20

_lock = threading.Lock()
_intact: set[tuple[str, int]] = set()


def require_intact_gzip(file: str, most_bytes: int) -> None:
    """Unpack a gzip file once in each process, in pieces, and compare its checksum and length.

    Args:
        most_bytes: the most it may hold, by a header inside it.

    Raises:
        SourceError: they differ, or the file is cut short, or holds more.
    """
    identity = (file, Path(file).stat().st_mtime_ns)
    with _lock:
        if identity in _intact:
            return
    try:
        with gzip.open(file, "rb") as stream:
            while stream.read(_PIECE_BYTES):
                if stream.tell() > most_bytes:
                    raise SourceError(
                        f"{file} unpacks to more than the {most_bytes:,} bytes that its header "
                        "states: it is damaged, or made to exhaust time and memory"
                    )
    except (OSError, EOFError, zlib.error) as error:
        raise SourceError(
            f"{file} is damaged or cut short: {error}. Copy or download it again"
        ) from error
    with _lock:
        _intact.add(identity)
