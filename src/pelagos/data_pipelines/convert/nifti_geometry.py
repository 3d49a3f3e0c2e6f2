"""Where the voxels of a NIfTI file are, and how to read them in one canonical orientation.

The affine matrix of a header maps voxel indices to positions. Volumes are read so that x runs to the
patient's right, y to the front and z up ("RAS"), by exchanging and reversing axes alone, as
`nibabel.as_closest_canonical` does; nothing is resampled. A header with neither an s-form nor a q-form
gives no orientation: its volume stays as it is stored.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pelagos.data_pipelines.convert.source import SourceError

# Two grids are the same if no corner lies further apart than this part of a voxel: far more than
# headers round, too little to shift a voxel.
SAME_GRID_VOXELS = 0.1

Matrix = npt.NDArray[np.float64]  # [4, 4]


@dataclass(frozen=True)
class Volume:
    """One file, as it is read in canonical orientation.

    Attributes:
        shape: voxels `(x, y, z)`.
        num_channels: length of a fourth axis; 1 without one.
        axes: letters of the stored axes, in the order of the file.
        flipped: those that run backwards in the file.
        affine: from `(x, y, z)` indices to positions.
        has_orientation: whether the header says where the voxels are.
        unit: of positions, as the header names it.
        is_ambiguous: s-form and q-form are both given and lie apart; the s-form holds.
    """

    file: Path
    shape: tuple[int, int, int]
    num_channels: int
    axes: str
    flipped: str
    affine: Matrix
    has_orientation: bool
    unit: str
    is_ambiguous: bool

    @property
    def is_turned(self) -> bool:
        return bool(self.flipped) or self.axes[:3] != "xyz"

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Lengths of a voxel's edges `(x, y, z)`, to the digits that headers hold."""
        x, y, z = np.sqrt((self.affine[:3, :3] ** 2).sum(axis=0))
        return _rounded(x), _rounded(y), _rounded(z)


def _rounded(length: float) -> float:
    return float(f"{length:.6g}")


def look(nibabel: Any, file: Path) -> Volume:
    """The contents of a file's header; its voxels are not read.

    Raises:
        SourceError: it is no volume, or its affine matrix cannot be one.
    """
    try:
        image = nibabel.load(file)
    except (nibabel.filebasedimages.ImageFileError, OSError) as error:
        raise SourceError(f"cannot read {file} as NIfTI: {error}") from error
    stored = tuple(map(int, image.shape))
    if len(stored) not in (3, 4):
        raise SourceError(f"{file} has shape {stored}, expected [x, y, z] or [x, y, z, modality]")
    affine = np.asarray(image.affine, np.float64)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) == 0:
        raise SourceError(f"{file}: the affine matrix {affine.tolist()} maps no volume")
    sform, qform = (image.header.get_sform(coded=True), image.header.get_qform(coded=True))
    codes = int(sform[1]), int(qform[1])
    shape = (stored[0], stored[1], stored[2])
    axes, flipped = "xyz", ""
    if any(codes):
        found = nibabel.io_orientation(affine)
        axes = "".join("xyz"[int(axis)] for axis, _ in found)
        flipped = "".join(letter for letter, (_, way) in zip(axes, found, strict=True) if way < 0)
        affine = affine @ nibabel.orientations.inv_ornt_aff(found, shape)
        sizes = dict(zip(axes, shape, strict=True))
        shape = (sizes["x"], sizes["y"], sizes["z"])
    return Volume(
        file,
        shape,
        stored[3] if len(stored) == 4 else 1,
        axes + "c" * (len(stored) - 3),
        flipped,
        affine,
        any(codes),
        str(image.header.get_xyzt_units()[0]),
        all(codes) and displacement(sform[0], qform[0], stored[:3]) > SAME_GRID_VOXELS,
    )


def displacement(first: Matrix, second: Matrix, shape: tuple[int, ...]) -> float:
    """How far apart two affine matrices put a corner of a volume at most, in edges of a voxel.

    >>> displacement(np.eye(4), np.diag([1.0, 1.0, 1.5, 1.0]), (4, 4, 3))
    1.0
    """
    ends = [(0, size - 1) for size in shape]
    corners = np.array([(*corner, 1) for corner in itertools.product(*ends)], np.float64)
    apart = np.linalg.norm(((second - first) @ corners.T)[:3], axis=0).max()
    edge = np.sqrt((first[:3, :3] ** 2).sum(axis=0)).min()
    return float(apart / edge)


def require_same_grid(first: Volume, second: Volume) -> None:
    """Two volumes of one case have one grid, in one place.

    Raises:
        SourceError: they do not; names both files.
    """
    if first.shape != second.shape:
        raise SourceError(
            f"{second.file} has {second.shape} voxels (x, y, z), but {first.file} has "
            f"{first.shape}. Images and labels of a case must have one grid; resample one to the "
            "other first"
        )
    if first.has_orientation != second.has_orientation:
        known, unknown = (first, second) if first.has_orientation else (second, first)
        raise SourceError(
            f"{unknown.file} does not record its orientation (sform_code and qform_code are 0), but "
            f"{known.file} does, so one might be mirrored. Write the affine matrix into its header"
        )
    apart = displacement(first.affine, second.affine, first.shape)
    if apart > SAME_GRID_VOXELS:
        raise SourceError(
            f"{second.file} and {first.file} lie in different places: their affine matrices put a "
            f"corner {apart:.3g} voxels apart ({_text(second.affine)} and {_text(first.affine)}, in "
            "canonical orientation). Resample one to the other, or correct the header"
        )


def _text(affine: Matrix) -> str:
    return "[" + "; ".join(" ".join(f"{v:.4g}" for v in row) for row in affine[:3]) + "]"
