"""An exponential moving average of the weights, and computing with it in their place."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

from pelagos.platform.strategies import Strategy
from pelagos.platform.tensor_layout import local_part, with_local_part


class WeightAverage:
    """Exponential moving average of the trainable weights, in fp32, laid out as they are.

    average <- decay * average + (1 - decay) * weight, with the decay raised from small values
    over the first steps, (1 + n) / (10 + n), so that the initial weights are forgotten.
    """

    def __init__(self, weights: Mapping[str, Tensor], decay: float) -> None:
        self.decay = decay
        self.tensors = {
            name: with_local_part(weight, local_part(weight).detach().clone().float())
            for name, weight in weights.items()
        }

    @torch.no_grad()
    def update(self, weights: Mapping[str, Tensor], step: int) -> None:
        """Take in the weights after optimizer step `step` (counted from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, average in self.tensors.items():
            local_part(average).lerp_(local_part(weights[name]).float(), 1.0 - decay)

    @torch.no_grad()
    def begin_with(self, weights: Mapping[str, Tensor], names: Iterable[str]) -> None:
        """Let the average of some parameters begin with their present values.

        Those that no average was kept of, because they were frozen or absent.
        """
        for name in names:
            local_part(self.tensors[name]).copy_(local_part(weights[name]))

    @contextlib.contextmanager
    def in_place_of_weights(self, strategy: Strategy) -> Iterator[None]:
        """Let the model compute with the average; afterwards its weights are restored to the bit.

        Every rank does this together.
        """
        state = strategy.state()
        weights = {name: local_part(state[f"model.{name}"]) for name in self.tensors}
        kept = {name: weight.clone() for name, weight in weights.items()}
        try:
            self._load(strategy, state, self.tensors)
            yield
        finally:
            self._load(strategy, state, kept)

    @staticmethod
    @torch.no_grad()
    def _load(strategy: Strategy, state: dict[str, Tensor], values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            local_part(state[f"model.{name}"]).copy_(local_part(value))
        strategy.load_state(state)
