"""Small sound sources of each format, to be damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
import xarray as xr
import zarr

RNG = np.random.default_rng(0)
SHAPE = (3, 2, 4, 5)
MAPPING = "fields: [{{{file}{key}axes: [n, t, y, x], names: [u]}}]\n"


def numbers(*shape: int) -> Any:
    return RNG.normal(size=shape).astype("f4")


def mapped(folder: Path, file: str, key: str = "u") -> str:
    place = folder.parent / "mapping.yaml"
    file = f"file: '{file}', "
    place.write_text(MAPPING.format(file=file, key=f"key: {key}, " if key else ""))
    return str(place)


def netcdf(folder: Path, engine: str) -> None:
    data = xr.Dataset(
        {
            "u": (
                ("member", "time", "lat", "lon"),
                numbers(*SHAPE),
                {"units": "K", "_FillValue": 9e9},
            )
        },
        {"time": ("time", [0.0, 6.0], {"units": "hours since 2000-01-01"}), "lat": np.arange(4.0)},
    )
    data.to_netcdf(folder / "a.nc", engine=engine)  # type: ignore[call-overload]


def hdf5(folder: Path) -> str:
    with h5py.File(folder / "a.h5", "w") as file:
        file.create_dataset("u", data=numbers(*SHAPE), chunks=(1, 2, 4, 5), compression="gzip")
        file["u"].attrs["scale_factor"] = 2.0
    return mapped(folder, "a.h5")


def npz(folder: Path) -> str:
    np.savez_compressed(folder / "a.npz", u=numbers(*SHAPE))
    return mapped(folder, "a.npz")


def npy(folder: Path) -> str:
    np.save(folder / "a.npy", numbers(*SHAPE))
    return mapped(folder, "a.npy", "")


def zarrs(folder: Path, version: int) -> None:
    data = xr.Dataset(
        {"u": (("member", "time", "y", "x"), numbers(*SHAPE))},
        {"time": ("time", [0.0, 0.5]), "y": ("y", np.arange(4.0))},
    )
    data.to_zarr(folder / "a.zarr", zarr_format=version, consolidated=False)  # type: ignore[call-overload]


def nifti(folder: Path) -> None:
    import nibabel

    for i in range(2):
        for kind in ("imagesTr", "labelsTr"):
            (folder / kind).mkdir(exist_ok=True)
        image = nibabel.Nifti1Image(numbers(3, 4, 5), np.eye(4))
        nibabel.save(image, folder / f"imagesTr/case_{i}_0000.nii.gz")
        label = nibabel.Nifti1Image(RNG.integers(0, 3, (3, 4, 5)).astype("u1"), np.eye(4))
        nibabel.save(label, folder / f"labelsTr/case_{i}.nii.gz")


def pictures(folder: Path) -> None:
    from PIL import Image

    for split in ("train", "test"):
        for label in ("cat", "dog"):
            (folder / split / label).mkdir(parents=True)
            for i, suffix in enumerate(("png", "jpg", "tif")):
                values = RNG.integers(0, 255, (8, 8, 3)).astype("u1")
                Image.fromarray(values).save(folder / split / label / f"{i}.{suffix}")


def ome(folder: Path) -> None:
    group = zarr.open_group(folder / "a.zarr", mode="w", zarr_format=2)
    group.create_array("0", shape=(2, 8, 8), dtype="u2", chunks=(1, 8, 8))[...] = 7
    axes = [{"name": n, "type": "channel" if n == "c" else "space"} for n in "cyx"]
    scale = [{"type": "scale", "scale": [1.0, 0.5, 0.5]}]
    dataset = {"path": "0", "coordinateTransformations": scale}
    group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": [dataset]}]


def well(folder: Path) -> None:
    with h5py.File(folder / "a.hdf5", "w") as f:
        f.attrs.update({"dataset_name": "tiny", "grid_type": "cartesian", "n_spatial_dims": 2})
        f.attrs.update({"n_trajectories": 2, "simulation_parameters": ["nu"], "nu": 0.1})
        dims = f.create_group("dimensions")
        dims.attrs["spatial_dims"] = ["x", "y"]
        for name, size in (("time", 3), ("x", 6), ("y", 5)):
            dims[name] = np.arange(size, dtype="f4")
            dims[name].attrs.update({"sample_varying": False, "time_varying": False})
        scalars = f.create_group("scalars")
        scalars.attrs["field_names"] = ["nu"]
        scalars["nu"] = 0.1
        for order, (name, tail) in enumerate((("rho", ()), ("u", (2,)))):
            group = f.create_group(f"t{order}_fields")
            group.attrs["field_names"] = [name]
            group[name] = numbers(2, 3, 6, 5, *tail)
            group[name].attrs.update(
                {"dim_varying": [True, True], "sample_varying": True, "time_varying": True}
            )


def pdebench(folder: Path) -> None:
    with h5py.File(folder / "2D_CFD.hdf5", "w") as f:
        for name in ("density", "pressure", "Vx", "Vy"):
            f[name] = numbers(2, 3, 6, 5)
        f["t-coordinate"] = np.arange(3.0)
        f["x-coordinate"], f["y-coordinate"] = np.arange(6.0), np.arange(5.0)


def poseidon(folder: Path) -> None:
    with h5py.File(folder / "CE-RP.nc", "w") as f:
        f["data"] = numbers(400, 2, 5, 4, 4)


def dpot(folder: Path) -> None:
    for i in range(4):
        place = folder / "swe_pdb" / ("train" if i < 3 else "test")
        place.mkdir(parents=True, exist_ok=True)
        with h5py.File(place / f"data_{i % 3}.hdf5", "w") as f:
            f["data"] = numbers(6, 5, 4, 1)


def cfdbench(folder: Path) -> None:
    for subset in ("prop", "bc"):
        for i in range(4):
            case = folder / "cavity" / subset / f"case{i:04d}"
            case.mkdir(parents=True)
            for name in "uv":
                np.save(case / f"{name}.npy", numbers(4, 6, 5))
            told = {"vel_top": i, "density": 1.5, "height": 0.1, "width": 0.2}
            (case / "case.json").write_text(json.dumps(told))


def weights(folder: Path) -> None:
    from safetensors.torch import save_file

    tensors = {"a.weight": torch.ones(3, 4), "b.bias": torch.zeros(4)}
    save_file(tensors, folder / "a.safetensors")
    torch.save({"model": tensors, "epoch": 3}, folder / "a.pt")


SOURCES: dict[str, Any] = {
    "netcdf-4": lambda folder: netcdf(folder, "h5netcdf"),
    "netcdf-3": lambda folder: netcdf(folder, "scipy"),
    "hdf5": hdf5,
    "npz": npz,
    "npy": npy,
    "zarr-2": lambda folder: zarrs(folder, 2),
    "zarr-3": lambda folder: zarrs(folder, 3),
    "nifti": nifti,
    "pictures": pictures,
    "ome-zarr": ome,
    "well": well,
    "pdebench": pdebench,
    "poseidon": poseidon,
    "dpot": dpot,
    "cfdbench": cfdbench,
    "weights": weights,
}
