"""Requests and answers as bytes: JSON, and numpy's .npy and .npz. Nothing is ever unpickled.

Sizes that a file claims are compared with the bytes that are there before memory is taken.
"""

import io
import json
import math
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

from pelagos.infra.json_text import parse_json
from pelagos.jobs.serving.limits import Limits

JSON, NPY, NPZ = "application/json", "application/x-npy", "application/x-npz"
Array = npt.NDArray[Any]
_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
_HEADER_CHARACTERS = 10_000
_MOST_ENTRIES = 64
# numbers, and text for names
_KINDS = "fiuU"


def read_npy(content: bytes, what: str = "the body") -> Array:
    """Return the array of a .npy file.

    Raises:
        ValueError: it is none, holds objects, or has more or fewer values than it claims.
    """
    stream = io.BytesIO(content)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            version = npy.read_magic(stream)
            shape, is_fortran, dtype = _HEADERS[version](stream, _HEADER_CHARACTERS)
    except Exception as error:  # numpy parses the header as Python text, which fails in many ways
        raise ValueError(f"{what} is no .npy file (version 1 or 2): {error}") from None
    if dtype.hasobject or dtype.kind not in _KINDS or not dtype.itemsize:
        raise ValueError(f"{what} holds {dtype}; expected real numbers. Objects are never read")
    values = bytearray(memoryview(content)[stream.tell() :])  # that can be written, as torch likes
    if any(n < 1 for n in shape) or math.prod(shape) * dtype.itemsize != len(values):
        raise ValueError(
            f"{what} has shape {shape} of {dtype} in its header, but {len(values)} bytes behind it"
        )
    return np.frombuffer(values, dtype).reshape(shape, order="F" if is_fortran else "C")


def read_npz(content: bytes, limits: Limits) -> dict[str, Array]:
    """Return the arrays of a .npz file by name.

    Raises:
        ValueError: it is none, or one of its arrays is none.
        Refused: it holds more than a request may, unpacked.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = archive.infolist()
            limits.check_body(sum(entry.file_size for entry in entries))
            if len(entries) > _MOST_ENTRIES:
                raise ValueError(f"{len(entries)} entries, expected at most {_MOST_ENTRIES}")
            parts = {e.filename: archive.read(e) for e in entries}  # no more than it claims
    except (ValueError, zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError) as error:
        raise ValueError(f"the body is no .npz file: {error}") from None
    except (RuntimeError, OSError) as error:  # encrypted, or of lzma and bz2
        raise ValueError(f"the body is no .npz file that can be read: {error}") from None
    return {
        name.removesuffix(".npy"): read_npy(data, f"{name} of the body")
        for name, data in parts.items()
    }


def read_json(content: bytes) -> dict[str, Any]:
    """Return the object of a JSON body.

    Raises:
        ValueError: it is none.
    """
    try:
        found = parse_json(content)
    except ValueError as error:
        raise ValueError(f"the body is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"the body is a JSON {type(found).__name__}; expected an object")
    return found


def array_of_lists(value: Any, what: str) -> Array:
    """Return nested lists of numbers as float32; null is NaN.

    Raises:
        ValueError: they have unequal lengths, or hold something other than numbers.
    """
    try:
        array = np.asarray(value)
    except ValueError:
        raise ValueError(f"{what}: expected nested lists of equal lengths") from None
    if array.dtype == object:
        if not all(v is None or type(v) in (int, float) for v in array.flat):
            raise ValueError(f"{what}: expected nested lists of equal lengths, of numbers or null")
    elif array.dtype.kind not in "fiu":
        raise ValueError(f"{what} holds {array.dtype}; expected real numbers")
    try:
        with np.errstate(over="ignore"):  # infinite then, and rejected as that
            return array.astype(np.float32)
    except OverflowError:
        raise ValueError(f"{what} holds a number too large for float32") from None


def write_npy(array: Array) -> bytes:
    """Return a .npy file."""
    stream = io.BytesIO()
    npy.write_array(stream, array, allow_pickle=False)
    return stream.getvalue()


def write_npz(arrays: Mapping[str, Array]) -> bytes:
    """Return a .npz file, not compressed."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, array in arrays.items():
            archive.writestr(f"{name}.npy", write_npy(array))
    return stream.getvalue()


def as_lists(array: Array) -> Any:
    """Return nested lists; NaN and infinity, which JSON does not have, are None."""
    if np.isfinite(array).all():
        return array.tolist()
    values = array.astype(object)
    values[~np.isfinite(array)] = None
    return values.tolist()


def write_json(value: Any) -> bytes:
    """Return JSON as the standard has it."""
    return json.dumps(value, allow_nan=False).encode()
