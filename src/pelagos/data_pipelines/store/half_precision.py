"""bfloat16 without a type for it: the upper 16 bits of a float32, kept as uint16."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pelagos.data_pipelines.store.schema import DatasetSpec


def to_bfloat16(values: npt.NDArray[Any]) -> npt.NDArray[np.uint16]:
    """The nearest bfloat16 of each value, ties to even, as uint16. NaN is not kept apart.

    >>> hex(to_bfloat16(np.array([1.0]))[0])
    '0x3f80'
    """
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bfloat16(
    bits: npt.NDArray[np.uint16], out: npt.NDArray[np.float32] | None = None
) -> npt.NDArray[np.float32]:
    """The float32 of each bfloat16: exact. `out` must be of the same shape.

    >>> float(from_bfloat16(np.array([0x3F80], np.uint16))[0])
    1.0
    """
    if out is None:
        out = np.empty(bits.shape, np.float32)
    np.left_shift(bits, 16, out=out.view(np.uint32), dtype=np.uint32)
    return out


def as_read(spec: DatasetSpec, stored: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Stored numbers of a dataset in the type that they are read as."""
    return from_bfloat16(stored) if spec.dtype == "bfloat16" else stored
