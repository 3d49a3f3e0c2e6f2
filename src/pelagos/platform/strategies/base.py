"""What a parallel strategy does for the training loop."""

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pelagos.platform.optimizer import OptimizerFactory

TensorState = dict[str, Tensor]
"""Flat name -> tensor: `model.<name>`, `optimizer.<name>.<moment>`, `ema.<name>`. Names are the
module's own, never an engine's, a rank's or a flat index."""


@dataclass(frozen=True)
class StrategyOptions:
    """What is applied to the model from outside."""

    precision: Literal["fp32", "bf16"] = "fp32"
    activation_checkpointing: Literal["none", "full"] = "none"
    compile: bool = False
    use_gpu: bool = False


class Strategy(ABC):
    """Spreads one training step over the process group. `model` is the bare module throughout."""

    rank: int
    world_size: int
    device: torch.device

    @abstractmethod
    def prepare(self, model: nn.Module, make_optimizer: OptimizerFactory) -> nn.Module:
        """Place, wrap and shard the model, build its optimizer; return what forward is called on."""

    @abstractmethod
    def micro_step(self, is_last: bool) -> AbstractContextManager[None]:
        """Return the context of one forward and backward; gradients are reduced in the last."""

    @abstractmethod
    def backward(self, loss: Tensor) -> None:
        """Accumulate gradients of `loss`; over ranks the gradients are averaged."""

    @abstractmethod
    def step(self, clip_norm: float | None) -> float:
        """Clip by the global norm, take the optimizer step, clear gradients; return the norm.

        A norm that is not finite changes no weight.
        """

    @property
    @abstractmethod
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer whose groups carry `lr` and `base_lr`."""

    @abstractmethod
    def state(self) -> TensorState:
        """Return weights and optimizer state by parameter name, in fp32, ready to be loaded into."""

    @abstractmethod
    def load_state(self, state: TensorState) -> None:
        """Take over weights and optimizer state of the form that `state` returns."""

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """Return the sum of `tensor` over ranks, the same bits on each."""
        if self.world_size > 1:
            tensor = tensor.clone()
            dist.all_reduce(tensor)
        return tensor

    def barrier(self) -> None:
        """Wait for every rank."""
        if self.world_size > 1:
            dist.barrier()

    def close(self) -> None:  # noqa: B027 - most strategies hold nothing
        """Release what the strategy holds."""
