"""A mixture: which datasets are trained on together, and how their fields become channels.

The model's channels are named. Each dataset gives those it stores, by name; those it declares
constant (density 1 of an incompressible flow) have that value; the rest are absent: zero after
normalisation and marked so that the loss can leave them out, unless the mixture says otherwise.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pelagos.data_pipelines.store import DatasetError
from pelagos.data_pipelines.store.readable import ReadableDataset, Region
from pelagos.data_pipelines.store.schema import LABEL_PARAMETER
from pelagos.data_pipelines.streaming.channels import Channels
from pelagos.data_pipelines.streaming.crops import crop_region
from pelagos.data_pipelines.streaming.given_fields import given_fields
from pelagos.data_pipelines.streaming.mixtures.curriculum import (
    WeightsFrom,
    in_state,
    weight_at,
    weights_by_step,
)
from pelagos.data_pipelines.streaming.mixtures.mixture_checks import check_masks, mixture_problems
from pelagos.data_pipelines.streaming.mixtures.mixture_entry import MixtureEntry
from pelagos.data_pipelines.streaming.mixtures.mixture_state import (
    LONGEST_STATE,
    changes_of_datasets,
    changes_of_digests,
    digests,
)
from pelagos.data_pipelines.streaming.normalization import Normalization

Windows = tuple[tuple[int, ...], ...]


class Mixture:
    """Datasets, the model's channels, and the windows that an objective asks for.

    Args:
        entries: at least one; all with as many grid axes.
        fields: names of the model's channels, in order.
        frame_windows: frame indices of each window of a trajectory of that many frames, all of the
            same length: `objective.frame_windows`.
        normalization: None pools the statistics of the datasets.
        absent_value: the value of absent channels, after normalisation.
        absent_counts: whether absent channels are marked as present.

    Raises:
        ValueError: datasets and channels do not fit; every reason is listed.
    """

    def __init__(
        self,
        entries: Sequence[MixtureEntry],
        fields: Sequence[str],
        frame_windows: Callable[[int], Windows],
        normalization: Normalization | None = None,
        *,
        absent_value: float = 0.0,
        absent_counts: bool = False,
    ) -> None:
        self.absent_value, self.absent_counts = absent_value, absent_counts
        self.entries = tuple(entries)
        self.fields = tuple(fields)
        problems = mixture_problems(self.entries, self.fields)
        if problems:
            raise ValueError("the mixture does not fit together:\n  " + "\n  ".join(problems))
        self.windows = tuple(frame_windows(e.dataset.num_frames) for e in self.entries)
        self.window_length = _window_length(self.entries, self.windows)
        self.trajectories = tuple(
            e.dataset.split(e.split)[: e.max_trajectories] for e in self.entries
        )
        self.normalization = normalization or Normalization.from_statistics(
            [e.dataset for e in self.entries], self.fields, [e.offset for e in self.entries]
        )
        if self.normalization.fields != self.fields:
            raise ValueError(
                f"normalisation is for {self.normalization.fields}, but the model has {self.fields}"
            )
        # a dataset without a mask has values everywhere
        self._masks = frozenset(m for e in self.entries for m in e.dataset.spec.masks.values())
        check_masks(self.normalization, self._masks)
        self._scratch = threading.local()
        self._labels = tuple(_labels(e.dataset) for e in self.entries)
        self.channels = tuple(
            Channels.of(
                entry.dataset,
                self.normalization,
                offset=entry.offset,
                masks=self._masks,
                absent_value=absent_value,
            )
            for entry in self.entries
        )

    @property
    def num_windows(self) -> tuple[int, ...]:
        """Windows of each dataset's split: trajectories times windows per trajectory."""
        return tuple(
            len(rows) * len(windows)
            for rows, windows in zip(self.trajectories, self.windows, strict=True)
        )

    @property
    def num_samples(self) -> int:
        """Windows of all datasets: an epoch if samples are shared by number of windows."""
        return sum(self.num_windows)

    @property
    def weights(self) -> list[float] | None:
        """Relative share of each dataset at step 0; None shares by number of windows."""
        if any(e.repeat != 1 for e in self.entries):
            sizes = zip(self.entries, self.num_windows, strict=True)
            return [float(entry.repeat * windows) for entry, windows in sizes]
        given = [weight_at(e.weight, 0) for e in self.entries if e.weight is not None]
        return given or None

    @property
    def weights_by_step(self) -> list[WeightsFrom]:
        """The share of each dataset from each step on at which one changes; first step 0."""
        if self.has_schedule:
            return weights_by_step([e.weight for e in self.entries if e.weight is not None])
        return [(0, self.weights or [float(windows) for windows in self.num_windows])]

    @property
    def has_schedule(self) -> bool:
        """Whether weights change with the step."""
        return any(isinstance(e.weight, Mapping) for e in self.entries)

    @property
    def grid_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Grid of each dataset's samples."""
        return tuple(entry.sample_grid for entry in self.entries)

    @property
    def distinct_shapes(self) -> tuple[tuple[int, ...], ...]:
        """The distinct grids, in the order in which datasets first have them."""
        return tuple(dict.fromkeys(self.grid_shapes))

    @property
    def grid_shape(self) -> tuple[int, ...]:
        """The largest grid."""
        return max(self.distinct_shapes, key=math.prod)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of the frames of a sample on the largest grid: `[F, C, y, x]`."""
        return self.shape_on(self.grid_shape)

    def shape_on(self, grid_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the frames of a sample on a grid: `[F, C, y, x]`."""
        return (self.window_length, len(self.fields), *grid_shape)

    def window_of(self, dataset: int, item: int) -> tuple[int, tuple[int, ...]]:
        """Trajectory and frames of window number `item` of a dataset's split."""
        row, window = divmod(item, len(self.windows[dataset]))
        return self.trajectories[dataset][row], self.windows[dataset][window]

    def region_of(self, dataset: int, sample_seed: int) -> Region | None:
        """The part of the grid that a sample reads; None is all of it."""
        entry = self.entries[dataset]
        if entry.crop is None:
            return None
        return crop_region(sample_seed, entry.dataset.grid_shape, entry.crop)

    def times(self, dataset: int, window: tuple[int, ...]) -> list[float]:
        """Physical time of each frame."""
        interval = self.entries[dataset].dataset.spec.frame_interval
        return [frame * interval for frame in window]

    def present(self, dataset: int) -> npt.NDArray[np.bool_]:
        """Which channels of a dataset count: those that it has, stored or constant, `[C]`."""
        return np.array([self.absent_counts or has for has in self.channels[dataset].present])

    @property
    def masks(self) -> dict[str, str]:
        """The channels that have points without a value, each with its mask.

        A mask is 1 where there is a value and 0 elsewhere. It need not be a channel.
        """
        specs = [entry.dataset.spec for entry in self.entries]
        found = {name: mask for spec in specs for name, mask in spec.masks.items()}
        return {name: found[name] for name in self.fields if name in found}

    @property
    def given_fields(self) -> frozenset[str]:
        """Channels of which nothing has to be forecast.

        They are constant, given (`DatasetSpec`), or found never to change (`unchanging_fields`), in
        every dataset that has them, and in at least one.
        """
        datasets = [entry.dataset for entry in self.entries]
        specs = [dataset.spec for dataset in datasets]
        given = [given_fields(dataset) for dataset in datasets]
        known = {
            n for s, names in zip(specs, given, strict=True) for n in (*s.constant_fields, *names)
        }
        changing = {
            n
            for s, names in zip(specs, given, strict=True)
            for n in s.field_names
            if n not in names
        }
        if self.absent_counts:  # a field that a dataset lacks is learnt like any other
            changing |= {name for channels in self.channels for name in channels.absent}
        return frozenset(known - changing) & frozenset(self.fields)

    @property
    def is_complete(self) -> bool:
        """Whether no dataset lacks a channel."""
        return not any(channels.absent for channels in self.channels)

    def label(self, dataset: int, trajectory: int) -> int:
        """A trajectory's class, the parameter `label`; -1 where the dataset has none."""
        labels = self._labels[dataset]
        return -1 if labels is None else int(labels[trajectory])

    def read(
        self,
        dataset: int,
        trajectory: int,
        window: tuple[int, ...],
        out: npt.NDArray[np.float32],
        region: Region | None = None,
    ) -> None:
        """Read one sample, or a region of it, normalised into `out`, `[F, C, y, x]` float32.

        Raises:
            DatasetError: naming the dataset, the trajectory and the frames.
        """
        channels = self.channels[dataset]
        spec = self.entries[dataset].dataset.spec
        # Same channels and type: read into the batch and normalise in place, which spares a copy.
        is_in_place = channels.are_as_stored and spec.dtype == "float32"
        target = out if is_in_place else self._thread_scratch(dataset, out.shape[2:])
        try:
            raw = self.entries[dataset].dataset.read_frames(trajectory, window, target, region)
        except DatasetError as error:
            raise DatasetError(
                f"{error} (while reading trajectory {trajectory}, frames {list(window)} of "
                f"{self.entries[dataset].dataset.uri})"
            ) from error
        channels.write(raw, out)

    def state_dict(self) -> dict[str, Any]:
        """The settings that determine the order of samples and must not change, as short JSON.

        Many datasets are kept as digests, so that the state stays below 1 KB.
        """
        state = self._listed_state()
        if len(json.dumps(state)) <= LONGEST_STATE:
            return state
        return {"fields": state["fields"], "digests": digests(state["datasets"])}

    def _listed_state(self) -> dict[str, Any]:
        return {
            "fields": list(self.fields),
            "datasets": [
                {
                    "uri": entry.dataset.uri[-60:],
                    "fingerprint": entry.dataset.fingerprint[:16],
                    "windows": windows,
                    "weight": in_state(entry.weight),
                    **entry.unusual(),
                }
                for entry, windows in zip(self.entries, self.num_windows, strict=True)
            ],
        }

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Raises ValueError, listing the changes since `state_dict` made `state`."""
        mine = self._listed_state()
        changes = []
        if list(state["fields"]) != mine["fields"]:
            changes.append(f"fields were {list(state['fields'])}, now {mine['fields']}")
        if "digests" in state:
            changes += changes_of_digests(state["digests"], mine["datasets"])
        else:
            changes += changes_of_datasets(state.get("datasets", []), mine["datasets"])
        if changes:
            raise ValueError(
                "the data changed since the checkpoint was written, so the order of samples would "
                "change:\n  " + "\n  ".join(changes) + "\n"
                "restore the data, or begin a new run from the checkpoint's weights"
            )

    def _thread_scratch(self, dataset: int, grid: tuple[int, ...]) -> npt.NDArray[Any]:
        """Memory for one window as it is read, kept per thread."""
        spec = self.entries[dataset].dataset.spec
        shape = (self.window_length, len(spec.fields), *grid)
        num_bytes = math.prod(shape) * spec.value_dtype.itemsize
        buffer: npt.NDArray[np.uint8] | None = getattr(self._scratch, "buffer", None)
        if buffer is None or len(buffer) < num_bytes:
            buffer = self._scratch.buffer = np.empty(num_bytes, np.uint8)
        return buffer[:num_bytes].view(spec.value_dtype).reshape(shape)


def _labels(dataset: ReadableDataset) -> npt.NDArray[np.float64] | None:
    has = LABEL_PARAMETER in dataset.spec.parameter_names
    return dataset.parameters[LABEL_PARAMETER] if has else None


def _window_length(entries: Sequence[MixtureEntry], windows: Sequence[Windows]) -> int:
    """The one number of frames that every window has."""
    for entry, choices in zip(entries, windows, strict=True):
        if not choices:
            raise ValueError(
                f"{entry.dataset.uri} has {entry.dataset.num_frames} frames per trajectory, too "
                f"few for any window of the objective"
            )
    lengths = {len(window) for choices in windows for window in choices}
    if len(lengths) != 1:
        raise ValueError(f"windows must all have the same number of frames, got {sorted(lengths)}")
    return lengths.pop()
