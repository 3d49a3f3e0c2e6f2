"""Volumes in NIfTI files: read in the orientation of the training, written in that of the file.

As conversion does (`convert.nifti_geometry`), volumes are read with x to the right, y to the front and z
up by exchanging and reversing axes alone.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from pelagos.data_pipelines.convert.extras import require
from pelagos.data_pipelines.convert.nifti_geometry import look

GEOMETRY = "nifti"  # attribute of the array: affine matrix and orientation of the file


def read_volume(path: Path, fields: Sequence[str]) -> xr.DataArray:
    """Return a volume `[channel, z, y, x]` float32.

    Raises:
        ValueError: it is no volume, or has another number of channels than `fields`.
    """
    nibabel = require("nibabel", f"reading {path}")
    volume = look(nibabel, path)
    if volume.num_channels != len(fields):
        raise ValueError(
            f"{path} has {volume.num_channels} channels, expected {len(fields)}: {', '.join(fields)}"
        )
    image = nibabel.load(path)
    stored = nibabel.io_orientation(image.affine) if volume.has_orientation else None
    turned = nibabel.as_closest_canonical(image) if volume.has_orientation else image
    values = np.asarray(turned.dataobj, np.float32)
    values = values[..., None] if values.ndim == 3 else values
    geometry = {
        "affine": np.asarray(turned.affine).tolist(),
        "stored": None if stored is None else stored.tolist(),
        "unit": volume.unit,
    }
    coordinates = {"channel": list(fields)}
    attributes = {GEOMETRY: geometry}
    return xr.DataArray(
        values.transpose(3, 2, 1, 0), coordinates, ("channel", "z", "y", "x"), "volume", attributes
    )


def write_volume(path: Path, values: npt.NDArray[Any], geometry: dict[str, Any] | None) -> None:
    """Write `[*others, z, y, x]` as a volume `[x, y, z, *others]`, where the file read from has it.

    Args:
        geometry: of the volume that was read (`GEOMETRY`); None: there is none, so voxels are 1 apart.
    """
    nibabel = require("nibabel", f"writing {path}")
    count = values.ndim - 3
    order = (*range(values.ndim - 1, count - 1, -1), *range(count))
    data = values.transpose(order)
    affine = np.eye(4) if geometry is None else np.asarray(geometry["affine"])
    image = nibabel.Nifti1Image(data, affine)
    if geometry is not None and geometry["unit"] != "unknown":
        image.header.set_xyzt_units(xyz=geometry["unit"])
    if geometry is not None and geometry["stored"] is not None:
        straight = nibabel.orientations.axcodes2ornt("RAS")
        back = nibabel.orientations.ornt_transform(straight, np.asarray(geometry["stored"]))
        image = image.as_reoriented(back)
    nibabel.save(image, path)
