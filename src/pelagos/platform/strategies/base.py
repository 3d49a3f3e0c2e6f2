"""The interface between a parallel strategy and the training loop."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pelagos.platform.config.schema import (
    EveryNConfig,
    FullyShardConfig,
    MemoryBudgetConfig,
    ZeroConfig,
)
from pelagos.platform.optimization.optimizer import OptimizerFactory
from pelagos.platform.optimization.optimizer_kinds import OPTIMIZERS, OptimizerKind
from pelagos.platform.strategies.gradients import LossScale

TensorState = dict[str, Tensor]
"""Flat name -> tensor: `model.<name>`, `optimizer.<name>.<moment>`, `ema.<name>`. Names are the
module's own, never an engine's, a rank's or a flat index. A value is a tensor that every rank holds
whole, a DTensor, or a `FlatShard`."""

Recompute = Literal["none", "full", "selective"] | EveryNConfig | MemoryBudgetConfig
Precision = Literal["fp32", "tf32", "bf16", "fp16"]


@dataclass(frozen=True)
class StrategyOptions:
    """Transformations applied to the model from outside."""

    precision: Precision = "fp32"
    activation_checkpointing: Recompute = "none"
    compile: bool = False
    use_gpu: bool = False
    seed: int = 0
    """Seed of the initial weights."""
    clip_norm: float | None = None
    micro_batch_size: int = 1
    num_micro_batches: int = 1
    collective_timeout_seconds: int = 600
    fsdp: FullyShardConfig = field(default_factory=FullyShardConfig)
    zero: ZeroConfig = field(default_factory=ZeroConfig)
    optimizer: OptimizerKind = field(default_factory=lambda: OPTIMIZERS["adamw"])
    """What the optimizer keeps for each parameter."""
    example_loss: Callable[[nn.Module], Tensor] | None = None
    """Runs one micro-batch forward, for what a memory budget has to measure."""


class Strategy(ABC):
    """Spreads one training step over the process group. `model` is the bare module throughout.

    Numerics are the same under every strategy: fp32 weights, moments and reductions, autocast in
    the forward pass, one definition of the global gradient norm and of loss scaling.
    """

    rank: int
    world_size: int
    device: torch.device
    data_group: dist.ProcessGroup | None = None
    """The ranks that together hold each sample of a batch once; None: all of them."""

    def __init__(self, options: StrategyOptions) -> None:
        self.options = options
        self.loss_scale = LossScale() if options.precision == "fp16" else None

    @property
    def data_rank(self) -> int:
        """Which share of each batch this rank computes; ranks that share their samples have the same."""
        return self.rank

    @property
    def data_world_size(self) -> int:
        """Number of shares that a batch is cut into: the world size unless ranks share samples."""
        return self.world_size

    @abstractmethod
    def static_bytes_per_parameter(self) -> float:
        """Return the bytes of weight, gradient and moments that one rank holds per parameter."""

    def static_bytes(self, model: nn.Module) -> int:
        """Return the bytes of weights, gradients and moments that one rank holds."""
        count = sum(p.numel() for p in model.parameters())
        return int(count * self.static_bytes_per_parameter())

    @abstractmethod
    def prepare(self, model: nn.Module, make_optimizer: OptimizerFactory) -> nn.Module:
        """Place, wrap and shard the model, build its optimizer; return the module to call forward on.

        Parameters on the meta device are drawn here, from `options.seed` and their module's name
        alone; parameters with values keep them.
        """

    @abstractmethod
    def micro_step(self, is_last: bool) -> AbstractContextManager[None]:
        """Return the context of one forward and backward; gradients are reduced in the last."""

    @abstractmethod
    def backward(self, loss: Tensor) -> None:
        """Accumulate gradients of `loss`; over the shares of the batch they are averaged."""

    @abstractmethod
    def step(self) -> float:
        """Clip by the global norm, take the optimizer step, clear gradients.

        Return the norm before clipping. A norm that is not finite changes no weight.
        """

    @property
    @abstractmethod
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer whose groups carry `lr` and `base_lr`."""

    @abstractmethod
    def weights(self) -> TensorState:
        """Return the trainable weights by parameter name, in fp32, as this rank holds them."""

    @abstractmethod
    def state(self) -> TensorState:
        """Return weights and optimizer state by parameter name, in fp32, ready to be loaded into."""

    @abstractmethod
    def load_state(self, state: TensorState) -> None:
        """Take over the values that were loaded into the result of `state`."""

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """Return the sum of `tensor` over ranks, the same bits on each."""
        if self.world_size > 1:
            tensor = tensor.clone()
            dist.all_reduce(tensor)
        return tensor

    def sum_over_data(self, tensor: Tensor) -> Tensor:
        """Return the sum of `tensor` over the shares of a batch, each counted once."""
        if self.data_group is None:
            return self.all_reduce_sum(tensor)
        tensor = tensor.clone()
        dist.all_reduce(tensor, group=self.data_group)
        return tensor

    def barrier(self) -> None:
        """Wait for every rank."""
        if self.world_size > 1:
            dist.barrier()

    def close(self) -> None:  # noqa: B027 - most strategies hold nothing
        """Release the strategy's resources."""
