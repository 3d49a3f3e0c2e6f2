"""The description of a dataset before its numbers exist: `DatasetSpec` and its JSON form.

Axes are written slowest first, as in the arrays: `data[trajectory, time, channel, y, x]`. Every
tuple with one entry per spatial axis (`grid_shape`, `domain_extent`) has that order too: `(y, x)`
in two dimensions, `(z, y, x)` in three, `(x,)` in one.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

FORMAT_NAME = "pelagos-dataset"
FORMAT_VERSION = 2  # the latest; a dataset has the lowest that can hold it

# Raw bytes aimed at per shard: large enough for few objects, small enough that one shard is a
# reasonable unit of work, of retry and of memory.
TARGET_SHARD_BYTES = 128 * 2**20

# A frame of more raw bytes is cut into chunks of at most the second number, so that a crop reads
# a part of it: a request much smaller than that costs a store as much as one of that size.
LARGEST_WHOLE_FRAME_BYTES = 4 * 2**20
LARGEST_PART_BYTES = 2 * 2**20

AXIS_NAMES = {1: ("x",), 2: ("y", "x"), 3: ("z", "y", "x")}
# The kind of a field whose values are numbers of classes or objects: they are stored exactly or
# refused, as two ids that a type rounds to one number would become one.
LABEL_KIND = "label"
LABEL_PARAMETER = "label"  # the per-trajectory parameter that holds an image's class
DTYPES = ("float32", "float16", "bfloat16")
COMPRESSIONS = ("none", "lz4", "zstd")


@dataclass(frozen=True)
class Field:
    """One channel: its name, its physical kind (`density`, `velocity-x`, …) and its unit."""

    name: str
    kind: str
    unit: str = "1"


@dataclass(frozen=True)
class DatasetSpec:
    """Everything known about a dataset before its data is written.

    Args:
        name: a short name for people.
        equation: the equation solved, for people: `incompressible Navier-Stokes, nu = 4e-4`.
        fields: the channels, in the order of the channel axis.
        num_trajectories: how many trajectories (solutions, samples).
        num_frames: frames per trajectory; frame `t` is at time `t * frame_interval`.
        grid_shape: points per spatial axis, `(y, x)`.
        frame_interval: time between two frames.
        domain_extent: length of the domain per spatial axis, `(y, x)`.
        boundary_conditions: per axis (`{"x": "periodic"}`) or per side (`{"x-low": "inflow",
            "x-high": "outflow"}`; `low` is the side of the smaller coordinate).
        splits: `{"train": (start, stop), …}` half-open ranges of trajectories; must not overlap.
        parameter_names: per-trajectory float64 scalars (viscosity, Mach number, …).
        constant_fields: fields that are not stored because they have one known value everywhere
            (`{"density": 1.0}` for an incompressible flow).
        given_fields: stored fields that are the same in every frame of a trajectory, because they
            are its input: a force, a speed of sound, the source of a steady problem. They are not
            scored, and a rollout keeps them as they are.
        masks: which stored field says where another holds values: `{"temperature": "mask"}`. A
            mask is 1 where there is a value and 0 where there is none; the values of the masked field
            there have no meaning, and neither statistics nor errors count them.
        generator: how the data came to be: configuration and code version (JSON).
        published_normalization: constants that a paper fixes for this data (JSON).
        dtype: how numbers are stored: `float32`, `float16` or `bfloat16`.
        compression: `none`, `lz4` or `zstd` (both through Blosc with byte shuffle); lossless.
        trajectories_per_shard: None chooses so that a shard holds about 128 MiB of raw data.
        grid_location: where the points are: `cell` centres, `(j + 1/2) L/N`, or `node`s, `j L/N`.
        physics: the equation solved, for programs: `{"equation": "burgers", "coefficients":
            {"viscosity": 0.01}}`, a name of `pelagos.data_pipelines.physics.EQUATIONS` and its
            numbers, or the names of `parameter_names` that hold them; empty: not known.
        chunk_shape: grid points per chunk, `(y, x)`. None keeps frames whole up to 4 MiB of raw
            data, and halves the axes of larger ones until a chunk has at most 2 MiB.

    Raises:
        ValueError: naming every entry that is wrong.
    """

    name: str
    equation: str
    fields: tuple[Field, ...]
    num_trajectories: int
    num_frames: int
    grid_shape: tuple[int, ...]
    frame_interval: float
    domain_extent: tuple[float, ...]
    boundary_conditions: dict[str, str]
    splits: dict[str, tuple[int, int]]
    parameter_names: tuple[str, ...] = ()
    constant_fields: dict[str, float] = field(default_factory=dict)
    generator: dict[str, Any] = field(default_factory=dict)
    published_normalization: dict[str, Any] = field(default_factory=dict)
    dtype: str = "float32"
    compression: Literal["none", "lz4", "zstd"] = "lz4"
    trajectories_per_shard: int | None = None
    grid_location: Literal["cell", "node"] = "cell"
    chunk_shape: tuple[int, ...] | None = None
    physics: dict[str, Any] = field(default_factory=dict)
    given_fields: tuple[str, ...] = ()
    masks: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        problems = _problems(self)
        if problems:
            raise ValueError(f"dataset spec {self.name!r}:\n  " + "\n  ".join(problems))

    @property
    def field_names(self) -> tuple[str, ...]:
        return tuple(f.name for f in self.fields)

    @property
    def mask_channels(self) -> dict[int, int]:
        """The channel of the mask of each masked channel."""
        at = {name: channel for channel, name in enumerate(self.field_names)}
        return {at[name]: at[mask] for name, mask in self.masks.items()}

    @property
    def axis_names(self) -> tuple[str, ...]:
        """Names of the spatial axes, slowest first: `("y", "x")`."""
        return AXIS_NAMES[len(self.grid_shape)]

    @property
    def frame_shape(self) -> tuple[int, ...]:
        """`(channel, y, x)`."""
        return (len(self.fields), *self.grid_shape)

    @property
    def shape(self) -> tuple[int, ...]:
        """`(trajectory, time, channel, y, x)`."""
        return (self.num_trajectories, self.num_frames, *self.frame_shape)

    @property
    def stored_dtype(self) -> np.dtype[Any]:
        """The type of the stored numbers; those of bfloat16, which numpy lacks, are uint16."""
        return np.dtype("uint16" if self.dtype == "bfloat16" else self.dtype)

    @property
    def value_dtype(self) -> np.dtype[Any]:
        """The type that numbers are read as: that of the stored ones, float32 for bfloat16."""
        return np.dtype("float32" if self.dtype == "bfloat16" else self.dtype)

    @property
    def frame_bytes(self) -> int:
        """Raw bytes of one frame with all its channels."""
        return math.prod(self.frame_shape) * self.stored_dtype.itemsize

    @property
    def frame_chunk_shape(self) -> tuple[int, ...]:
        """Grid points per chunk, chosen or given, `(y, x)`; the grid's shape if frames are whole."""
        if self.chunk_shape is not None:
            return self.chunk_shape
        if self.frame_bytes <= LARGEST_WHOLE_FRAME_BYTES:
            return self.grid_shape
        sizes = list(self.grid_shape)
        point_bytes = len(self.fields) * self.stored_dtype.itemsize
        while math.prod(sizes) * point_bytes > LARGEST_PART_BYTES and max(sizes) > 1:
            longest = sizes.index(max(sizes))
            sizes[longest] = -(-sizes[longest] // 2)
        return tuple(sizes)

    @property
    def chunk_counts(self) -> tuple[int, ...]:
        """Chunks of a frame along each spatial axis."""
        pairs = zip(self.grid_shape, self.frame_chunk_shape, strict=True)
        return tuple(-(-points // size) for points, size in pairs)

    @property
    def chunks_per_frame(self) -> int:
        return math.prod(self.chunk_counts)

    @property
    def format_version(self) -> int:
        """The lowest version of the format that can hold the dataset."""
        return 2 if self.dtype == "bfloat16" or self.chunks_per_frame > 1 else 1

    @property
    def shard_trajectories(self) -> int:
        """Trajectories per shard, chosen or given (the last shard may hold fewer)."""
        if self.trajectories_per_shard is not None:
            return self.trajectories_per_shard
        per_shard = round(TARGET_SHARD_BYTES / (self.frame_bytes * self.num_frames))
        return min(max(per_shard, 1), self.num_trajectories)

    @property
    def num_shards(self) -> int:
        return -(-self.num_trajectories // self.shard_trajectories)

    @property
    def is_last_shard_partial(self) -> bool:
        """Whether the last shard has room for more trajectories."""
        return self.num_trajectories % self.shard_trajectories > 0

    def trajectories_of_shard(self, shard: int) -> range:
        """The trajectories that shard number `shard` holds."""
        if not 0 <= shard < self.num_shards:
            raise ValueError(f"shard {shard} does not exist: there are {self.num_shards}, from 0")
        start = shard * self.shard_trajectories
        return range(start, min(start + self.shard_trajectories, self.num_trajectories))

    def coordinates(self) -> dict[str, npt.NDArray[np.float64]]:
        """`time` and each spatial axis as float64 positions."""
        shift = 0.5 if self.grid_location == "cell" else 0.0
        points: dict[str, npt.NDArray[np.float64]] = {
            "time": np.arange(self.num_frames, dtype=np.float64) * self.frame_interval
        }
        for axis, size, length in zip(
            self.axis_names, self.grid_shape, self.domain_extent, strict=True
        ):
            points[axis] = (np.arange(size, dtype=np.float64) + shift) * (length / size)
        return points

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `from_json` is its inverse."""
        values = dataclasses.asdict(self)
        values["fields"] = [dataclasses.asdict(f) for f in self.fields]
        values["splits"] = {name: list(bounds) for name, bounds in self.splits.items()}
        for key in ("grid_shape", "domain_extent", "parameter_names"):
            values[key] = list(values[key])
        values["trajectories_per_shard"] = self.shard_trajectories
        del values["chunk_shape"]  # left out where frames are whole, as in version 1
        if self.chunks_per_frame > 1:
            values["chunk_shape"] = list(self.frame_chunk_shape)
        if not self.physics:
            del values["physics"]
        values["given_fields"] = list(self.given_fields)
        if not self.given_fields:
            del values["given_fields"]
        if not self.masks:
            del values["masks"]
        return values

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> DatasetSpec:
        """The spec whose `to_json` this is. Unknown keys (of a later version) are ignored."""
        known = {f.name for f in dataclasses.fields(cls)}
        kept = {key: value for key, value in values.items() if key in known}
        kept["fields"] = tuple(Field(**f) for f in values["fields"])
        kept["splits"] = {name: (int(a), int(b)) for name, (a, b) in values["splits"].items()}
        for key in ("grid_shape", "domain_extent", "parameter_names"):
            kept[key] = tuple(kept[key])
        kept["given_fields"] = tuple(values.get("given_fields", ()))
        kept["chunk_shape"] = tuple(values.get("chunk_shape", values["grid_shape"]))
        return cls(**kept)

    def differences(self, other: DatasetSpec) -> list[str]:
        """One line per entry in which two specs differ: `num_frames: 21 here, 11 there`.

        `given_fields` that only one specification names are no difference: older datasets name none.
        """
        mine, theirs = self.to_json(), other.to_json()
        if not (self.given_fields and other.given_fields):
            mine.pop("given_fields", None)
            theirs.pop("given_fields", None)
        return [
            f"{key}: {mine.get(key)!r} here, {theirs.get(key)!r} there"
            for key in {**mine, **theirs}
            if mine.get(key) != theirs.get(key)
        ]


def _problems(spec: DatasetSpec) -> list[str]:
    """Every rule that the spec breaks."""
    problems: list[str] = []
    names = [f.name for f in spec.fields]
    if not names or len(set(names)) != len(names):
        problems.append(f"fields must be non-empty and distinct, got {names}")
    for key in ("num_trajectories", "num_frames"):
        if getattr(spec, key) < 1:
            problems.append(f"{key} must be at least 1, got {getattr(spec, key)}")
    if len(spec.grid_shape) not in AXIS_NAMES or min(spec.grid_shape, default=0) < 1:
        problems.append(f"grid_shape must be 1 to 3 positive sizes, got {spec.grid_shape}")
    if len(spec.domain_extent) != len(spec.grid_shape):
        problems.append(
            f"domain_extent {spec.domain_extent} must have one length per axis of grid_shape "
            f"{spec.grid_shape}"
        )
    if not all(math.isfinite(length) and length > 0 for length in spec.domain_extent):
        problems.append(f"domain_extent must be positive lengths, got {spec.domain_extent}")
    if len(set(spec.parameter_names)) != len(spec.parameter_names):
        problems.append(f"parameter_names must be distinct, got {list(spec.parameter_names)}")
    if not (math.isfinite(spec.frame_interval) and spec.frame_interval > 0):
        problems.append(f"frame_interval must be positive, got {spec.frame_interval}")
    if spec.dtype not in DTYPES:
        problems.append(f"dtype must be one of {DTYPES}, got {spec.dtype!r}")
    if spec.compression not in COMPRESSIONS:
        problems.append(f"compression must be one of {COMPRESSIONS}, got {spec.compression!r}")
    if spec.grid_location not in ("cell", "node"):
        problems.append(f"grid_location must be 'cell' or 'node', got {spec.grid_location!r}")
    if spec.trajectories_per_shard is not None and spec.trajectories_per_shard < 1:
        problems.append(
            f"trajectories_per_shard must be at least 1, got {spec.trajectories_per_shard}"
        )
    chunk = spec.chunk_shape
    if chunk is not None and (len(chunk) != len(spec.grid_shape) or min(chunk, default=0) < 1):
        problems.append(
            f"chunk_shape {chunk} must have one positive size per axis of grid_shape "
            f"{spec.grid_shape}"
        )
    if spec.physics and not isinstance(spec.physics.get("equation"), str):
        problems.append(f"physics must name its equation, got {spec.physics!r}")
    both = sorted(set(names) & set(spec.constant_fields))
    if both:
        problems.append(f"{both} are both stored and constant: a field is one or the other")
    strangers = sorted(set(spec.given_fields) - set(names))
    if strangers or (spec.given_fields and set(spec.given_fields) == set(names)):
        problems.append(
            f"given_fields must be some of the stored {names}, and not all, got "
            f"{list(spec.given_fields)}"
        )
    strange = {k: v for k, v in spec.masks.items() if k not in names or v not in names}
    if strange or set(spec.masks) & set(spec.masks.values()):
        problems.append(
            f"masks must name stored fields of {names}, and no mask may be masked, got {spec.masks}"
        )
    for name in spec.parameter_names:
        if not name or "/" in name or name.startswith("."):
            problems.append(
                f"parameter name {name!r} must be non-empty, without '/' or leading '.'"
            )
    return problems + _split_problems(spec) + _boundary_problems(spec)


def _split_problems(spec: DatasetSpec) -> list[str]:
    problems: list[str] = []
    ordered = sorted(spec.splits.items(), key=lambda item: item[1])
    for name, (start, stop) in ordered:
        if not 0 <= start < stop <= spec.num_trajectories:
            problems.append(
                f"split {name!r} is [{start}, {stop}), which is empty or outside "
                f"[0, {spec.num_trajectories})"
            )
    everything = (0, spec.num_trajectories)
    if tuple(spec.splits.get("all", everything)) != everything:
        problems.append("split 'all' means every trajectory: give another name to a part of them")
    for (name, (_, stop)), (following, (start, _)) in itertools.pairwise(ordered):
        if start < stop:
            problems.append(f"splits {name!r} and {following!r} share trajectory {start}")
    return problems


def _boundary_problems(spec: DatasetSpec) -> list[str]:
    axes = AXIS_NAMES.get(len(spec.grid_shape), ())
    known = {*axes, *(f"{axis}-{side}" for axis in axes for side in ("low", "high"))}
    unknown = sorted(set(spec.boundary_conditions) - known)
    if unknown:
        return [f"boundary_conditions name {unknown}; known are {sorted(known)}"]
    return []
