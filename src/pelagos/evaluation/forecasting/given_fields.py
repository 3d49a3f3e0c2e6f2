"""Fields that a model is given and does not forecast, and whether the evaluated data agree.

A field that never changes in the training split is given to the model and is in no error. Where it
does change in the evaluated split, forecasts hold it still, and no figure would show that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

# As a share of the field's size: a change of less than some float32 roundings (6e-8) is no change, and
# statistics, summed in another order, agree with a constant to a little less.
CHANGE_SHARE = 1e-6
VALUE_SHARE = 1e-5


@dataclass(frozen=True)
class GivenField:
    """A stored field that is in no error.

    `why` follows its name; `value` is that of the whole training split, None where it has
    several. `num_changing` counts evaluated trajectories in which it changes from frame to frame,
    `num_different` those in which it has another value than in training.
    """

    name: str
    why: str
    value: float | None = None
    num_changing: int = 0
    num_different: int = 0
    num_trajectories: int = 0

    @property
    def is_as_trained(self) -> bool:
        return self.num_changing == self.num_different == 0

    @property
    def sentence(self) -> str:
        """Fields left out of the errors, and the effects that this hides."""
        if self.is_as_trained:
            return f"{self.name} {self.why}: the model takes it as an input, and no error counts it"
        found = []
        if self.num_changing:
            found.append(f"changes from frame to frame in {self.num_changing}")
        if self.num_different:
            found.append(f"has other values in {self.num_different}")
        consequence = (
            "no error counts it, and a model that takes it as an input keeps it constant. Train on "
            "data in which it changes"
            if self.num_changing
            else "the model has not seen these values"
        )
        return (
            f"{self.name} {self.why}, but {' and '.join(found)} of {self.num_trajectories} evaluated "
            f"trajectories: {consequence}"
        )

    def seen(self, frames: Tensor) -> GivenField:
        """Add evaluated trajectories, physical `[B, T, *grid]`."""
        flat = frames.double().flatten(2)
        size = flat.abs().amax(dim=(1, 2))
        change = (flat - flat[:, :1]).abs().amax(dim=(1, 2))
        different = 0
        if self.value is not None:
            away = (flat - self.value).abs().amax(dim=(1, 2))
            different = int((away > VALUE_SHARE * size.clamp_min(abs(self.value))).sum())
        return replace(
            self,
            num_changing=self.num_changing + int((change > CHANGE_SHARE * size).sum()),
            num_different=self.num_different + different,
            num_trajectories=self.num_trajectories + len(frames),
        )

    def and_of(self, other: GivenField) -> GivenField:
        """Add the findings on this field in other trajectories."""
        return replace(
            self,
            num_changing=self.num_changing + other.num_changing,
            num_different=self.num_different + other.num_different,
            num_trajectories=self.num_trajectories + other.num_trajectories,
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "why": self.why,
            "num_changing": self.num_changing,
            "num_different": self.num_different,
            "num_trajectories": self.num_trajectories,
        }


def warnings_of_given(fields: Sequence[GivenField]) -> list[str]:
    """Return changes in the evaluated data that the model does not receive."""
    return [field.sentence for field in fields if not field.is_as_trained]
