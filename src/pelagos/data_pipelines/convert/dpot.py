"""DPOT's training data: HDF5 files with `data` `[x, y, t, c]`, one per trajectory or one for all.

Facts of the format: `utils/griddataset.py` and `utils/make_master_file.py` of
https://github.com/HaoZhongkai/DPOT (arXiv 2403.03542): `DIR/data_0.hdf5, data_1.hdf5, …`, or one
file with `data` `[n, x, y, t(, c)]`; in folders `train` and `test`, or files `…_train.hdf5` and
`…_test.hdf5`. A single channel may have no axis. Neither names of fields nor times are stored.
"""

from __future__ import annotations

import re
from pathlib import Path

from pelagos.data_pipelines.convert.agreement import (
    Agreement,
    common_length,
    require_equal_descriptions,
)
from pelagos.data_pipelines.convert.formats import (
    Format,
    child,
    files_of,
    hdf5_looks,
    looking_into,
    named,
    split_folders,
    stored_bytes,
)
from pelagos.data_pipelines.convert.options import ConvertOptions
from pelagos.data_pipelines.convert.source import Part, Source, SourceError, StoredArray
from pelagos.data_pipelines.store import Field

# Of `utils/make_master_file.py`: the channels of its data sets by their folders' names.
KNOWN_FIELDS = {
    "ns2d_pdb": ("density", "pressure", "velocity-x", "velocity-y"),
    "ns2d_fno": ("vorticity",),
    "ns2d_1e-": ("vorticity",),
    "swe_pdb": ("height",),
    "dr_pdb": ("activator", "inhibitor"),
    "cfdbench": ("velocity-x", "velocity-y", "mask"),
}
# Far more than any of its data sets has (4): so that arrays with channels elsewhere are recognised.
MAX_CHANNELS = 32
_SCATTERED = re.compile(r"data_\d+\.(hdf5|h5)$")


def _matches(path: str, options: ConvertOptions) -> bool:
    files = next(iter(_files(path).values()), [])
    if not files or (len(files) > 1 and not _SCATTERED.search(files[0])):
        return False
    scattered = bool(_SCATTERED.search(files[0]))
    shapes = (3, 4) if scattered else (4, 5)
    return hdf5_looks(
        files[0],
        lambda f: list(f) == ["data"] and len(f["data"].shape) in shapes,
    )


def _files(path: str) -> dict[str, list[str]]:
    """Files by split; `all` where they do not come in splits."""
    folders = split_folders(path)
    if folders:
        return {name: files_of(str(folder)) for name, folder in folders.items()}
    if _is_stem_of_splits(path):
        return {name: files_of(f"{path}_{name}.hdf5") for name in ("train", "test")}
    found = files_of(path)
    return {"all": found} if found else {}


def _is_stem_of_splits(path: str) -> bool:
    return all(Path(f"{path}_{name}.hdf5").is_file() for name in ("train", "test"))


def _read(path: str, options: ConvertOptions) -> Source:
    by_split = {name: files for name, files in _files(path).items() if files}
    if not by_split:
        raise SourceError(
            f"{path}: expected a folder with data_0.hdf5, data_1.hdf5, …, a folder with train and "
            "test, or one HDF5 file with 'data'"
        )
    splits: dict[str, tuple[Part, ...]] = {}
    lengths: list[tuple[str, int]] = []
    agreement = Agreement()
    for name, files in by_split.items():
        parts = []
        for file in files:
            part, shape = _part(file, agreement)
            agreement.require("the grid [x, y]", file, shape[:2])
            agreement.require("the number of channels", file, shape[3])
            lengths.append((file, shape[2]))
            parts.append(part)
        splits[name] = tuple(parts)
    num_frames, cut = common_length(lengths, options.num_frames)
    files = [file for found in by_split.values() for file in found]
    fields = _fields(path, shape[3])
    return Source(
        format="dpot",
        name=named(path),
        equation="not stored in the files",
        fields=tuple(Field(f, f) for f in fields),
        splits=splits,
        num_frames=num_frames,
        grid_shape=(shape[1], shape[0]),
        notes=(
            "the files hold no times, so the frame interval is set to 1",
            *agreement.notes,
            *cut,
        ),
        details={"num_files": len(files), "source_bytes": stored_bytes(files)},
    )


def _part(file: str, agreement: Agreement) -> tuple[Part, tuple[int, ...]]:
    """A file's trajectories and their shape `[x, y, t, c]`."""
    with looking_into(file) as opened:
        stored = child(opened, "data", "[x, y, t, c], or [n, x, y, t(, c)] for many trajectories")
        shape = tuple(map(int, stored.shape))
        require_equal_descriptions(agreement, file, opened, ["data"])
    axes = "xyt" if _SCATTERED.search(file) else "nxyt"
    if len(shape) - len(axes) not in (0, 1):
        raise SourceError(f"{file}: data has shape {shape}, expected the axes {axes} or {axes}c")
    axes += "c" * (len(shape) - len(axes))
    sizes = dict(zip(axes, shape, strict=True))
    channels = sizes.get("c", 1)
    if channels > MAX_CHANNELS:
        raise SourceError(
            f"{file}: data has shape {shape}, expected the axes {axes}, and {channels} channels are "
            f"more than {MAX_CHANNELS}. The axes have another order, or this is another format"
        )
    array = StoredArray("hdf5", file, "data", axes, 0, channels)
    return Part((array,), sizes.get("n", 1)), (sizes["x"], sizes["y"], sizes["t"], channels)


def _fields(path: str, channels: int) -> tuple[str, ...]:
    for stem, fields in KNOWN_FIELDS.items():
        if stem in path and len(fields) == channels:
            return fields
    return tuple(f"channel-{i}" for i in range(channels))


FORMAT = Format(
    "dpot",
    "DPOT's training data: HDF5 with data [x, y, t, c]",
    "a folder of data_N.hdf5, one with train and test, or one file with data [n, x, y, t(, c)]",
    _matches,
    _read,
)
