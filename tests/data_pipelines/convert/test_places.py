"""Files of one dataset lie in one region, also where no axis has positions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray

from pelagos.data_pipelines.convert import ConvertOptions, SourceError, open_source

RNG = np.random.default_rng(5)


def netcdf4(data: xarray.Dataset, path: Path) -> None:
    data.to_netcdf(path, engine="h5netcdf")


def curvilinear(shift: float = 0.0, dtype: str = "f8", offset_of_ground: float = 0.0) -> Any:
    """A grid whose latitude and longitude are arrays, as ocean and weather models have."""
    y, x = np.mgrid[:4, :6] / 10
    return xarray.Dataset(
        {"u": (("time", "y", "x"), RNG.normal(size=(3, 4, 6)))},
        {
            "time": ("time", np.arange(3.0)),
            "XLAT": (
                ("y", "x"),
                (50 + y + 0.3 * x + shift).astype(dtype),
                {"units": "degrees_north"},
            ),
            "XLONG": (("y", "x"), (x - 0.2 * y).astype(dtype), {"units": "degrees_east"}),
            "ground": (("y", "x"), y + offset_of_ground),
            "valid_time": ("time", np.arange(3.0) + shift),
        },
    )


@pytest.mark.parametrize("kind", ["one", "two"])
def test_files_of_other_regions_are_rejected(tmp_path: Path, kind: str) -> None:
    """The axes have no positions, and where the grid lies stands in arrays beside the fields."""

    def made(**changes: Any) -> Any:
        data = curvilinear(**changes)
        if kind == "two":
            return data
        places = {"lat": ("y", data["XLAT"].values[:, 0], {"standard_name": "latitude"})}
        return data.drop_vars(["XLAT", "XLONG"]).assign_coords(places)

    netcdf4(made(), tmp_path / "a.nc")
    netcdf4(made(dtype="f4", offset_of_ground=3.0), tmp_path / "b.nc")
    assert open_source(str(tmp_path), ConvertOptions()).num_trajectories == 2
    netcdf4(made(shift=0.05), tmp_path / "b.nc")
    name = "XLAT" if kind == "two" else "lat"
    with pytest.raises(
        SourceError,
        match=rf"b\.nc: {name} gives {name} as 50.05 to .*, but .*a\.nc: {name} as 50 to",
    ):
        open_source(str(tmp_path), ConvertOptions())
    mapping = tmp_path.parent / f"{tmp_path.name}.yaml"
    mapping.write_text(
        "fields: [{file: '*.nc', key: u, axes: [t, y, x], names: [u]}]\n"
        "domain_extent: {y: 1.0, x: 1.0}\n"
    )
    options = ConvertOptions(mapping=str(mapping))
    assert open_source(str(tmp_path), options).num_trajectories == 2
