"""Which sample is at which position of training: a pure function, with nothing to remember.

The sample at (step, slot) of the global batch is a function of the seed, the mixture and
`step * global_batch_size + slot` alone. World size, threads and restarts cannot change it, and
resuming costs nothing.

Where datasets have grids of several shapes, every step takes one shape: steps are shared among the
shapes as samples are among datasets, in the order of `mixture_order`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pelagos.data_pipelines.store.readable import Region
from pelagos.data_pipelines.streaming.mixtures.mixture import Mixture
from pelagos.data_pipelines.streaming.mixtures.mixture_order import ORDER_VERSION, MixtureOrder
from pelagos.data_pipelines.streaming.permutation import IntArray, derive_key, keyed_hash

# Purposes of keys in addition to those of `mixture_order`.
_SAMPLE_SEED, _SHAPE_ORDER = 3, 4


@dataclass(frozen=True)
class SampleIndex:
    """One sample: frames `window` of a trajectory of the mixture's dataset number `dataset`.

    `sample_seed` is a non-negative 63-bit number for whatever is drawn per sample; `region` is the
    part of the grid that is read, None being all of it.
    """

    dataset: int
    trajectory: int
    window: tuple[int, ...]
    sample_seed: int
    region: Region | None = None


class Sampler:
    """The order of samples of one mixture under one seed.

    Args:
        mixture, seed: the data to draw from, and the seed of the order.
        samples_per_step: the global batch size; it matters for grids of several shapes and for
            weights that change with the step.
        run_length: how many consecutive samples come from one dataset. It divides
            `samples_per_step`.
        version: of the order of samples (`mixture_order`).

    Raises:
        ValueError: it does not divide.
    """

    def __init__(
        self,
        mixture: Mixture,
        seed: int,
        samples_per_step: int = 1,
        run_length: int = 1,
        version: int = ORDER_VERSION,
    ) -> None:
        if run_length != 1 and samples_per_step % run_length:
            raise ValueError(
                f"run_length {run_length} must divide the {samples_per_step} samples of a step"
            )
        self.mixture = mixture
        self.seed = seed
        self.samples_per_step = samples_per_step
        self.run_length = run_length
        self.version = version
        self._sample_key = derive_key(seed, _SAMPLE_SEED)
        self._members = [
            np.array([d for d, s in enumerate(mixture.grid_shapes) if s == shape], dtype=np.int64)
            for shape in mixture.distinct_shapes
        ]
        (_, weights), *later = mixture.weights_by_step
        shares = [sum(weights[d] for d in members) for members in self._members]
        later_shares = [(s, [sum(w[d] for d in m) for m in self._members]) for s, w in later]
        self._shapes = MixtureOrder(
            derive_key(seed, _SHAPE_ORDER), [1] * len(shares), shares, 1, later_shares, version
        )
        self._orders = [
            MixtureOrder(
                seed if len(self._members) == 1 else derive_key(seed, _SHAPE_ORDER, 1 + number),
                [mixture.num_windows[d] for d in members],
                _among(weights, members),
                run_length,
                [(self._runs_before(step, number), _among(row, members)) for step, row in later],
                version,
            )
            for number, members in enumerate(self._members)
        ]

    def _runs_before(self, step: int, shape: int) -> int:
        """Runs of datasets of a shape in the steps before `step`."""
        steps = int(self._shapes.counts_before(step)[shape])
        return steps * self.samples_per_step // self.run_length

    def draw(self, indices: IntArray) -> tuple[IntArray, IntArray]:
        """Dataset of the mixture and item at each global sample index."""
        if len(self._members) == 1:
            return self._orders[0].draw(indices)
        steps, slots = np.divmod(indices, self.samples_per_step)
        shapes, turns = self._shapes.choose(steps)
        datasets, items = np.empty_like(indices), np.empty_like(indices)
        for number, members in enumerate(self._members):
            chosen = shapes == number
            own = turns[chosen] * self.samples_per_step + slots[chosen]
            among, items[chosen] = self._orders[number].draw(own)
            datasets[chosen] = members[among]
        return datasets, items

    def samples(self, start: int, stop: int) -> list[SampleIndex]:
        """The samples at global indices `start .. stop - 1` (`step * global_batch_size + slot`)."""
        return self.samples_at(np.arange(start, stop, dtype=np.int64))

    def samples_at(self, indices: IntArray) -> list[SampleIndex]:
        """The samples at global indices; many at once cost a tenth of as many one by one."""
        datasets, items = self.draw(indices)
        seeds = keyed_hash(self._sample_key, indices)
        return [
            SampleIndex(
                int(d),
                *self.mixture.window_of(int(d), int(item)),
                int(seed),
                self.mixture.region_of(int(d), int(seed)),
            )
            for d, item, seed in zip(datasets, items, seeds, strict=True)
        ]

    def state_dict(self) -> dict[str, Any]:
        """The state for a checkpoint, as JSON: below 1 KB for any number of datasets."""
        state = {"seed": self.seed, "mixture": self.mixture.state_dict(), "order": self.version}
        return state if self.run_length == 1 else {**state, "run_length": self.run_length}

    def check_state(self, state: dict[str, Any]) -> None:
        """Raises ValueError if this sampler would not continue the order of `state`."""
        self.mixture.check_state(state["mixture"])
        if state["seed"] != self.seed:
            raise ValueError(
                f"the checkpoint was made with data seed {state['seed']}, but this run has "
                f"{self.seed}: the order of samples would change. Use seed {state['seed']}"
            )
        version = state.get("order", 1)
        if version != self.version:
            raise ValueError(
                f"the checkpoint was made with version {version} of the order of samples, but this "
                f"run has {self.version}: windows would be repeated or left out. Continue it with "
                f"data.order_version={version}"
            )
        before = state.get("run_length", 1)
        if before != self.run_length:
            raise ValueError(
                f"the checkpoint was made with runs of {before} samples from one dataset, but this "
                f"run has {self.run_length}: the order of samples would change"
            )


def _among(weights: list[float], members: IntArray) -> list[float]:
    """The weights of some datasets; any, where all are 0 and none is drawn."""
    found = [weights[d] for d in members]
    return found if any(found) else [1.0] * len(found)
