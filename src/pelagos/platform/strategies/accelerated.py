"""Single process and DDP on Hugging Face Accelerate: placement and gradient synchronisation."""

import contextlib
from collections.abc import Iterator
from datetime import timedelta

import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
from torch import Tensor, nn

from pelagos.platform.optimization.optimizer import OptimizerFactory
from pelagos.platform.strategies.base import StrategyOptions
from pelagos.platform.strategies.initialize import draw_missing
from pelagos.platform.strategies.torch_optimizer import TorchOptimizerStrategy
from pelagos.platform.strategies.transforms import apply_transforms


class AcceleratedStrategy(TorchOptimizerStrategy):
    """One whole model per rank; gradients are averaged over ranks in the last micro-step.

    DDP looks for unused parameters for one reason: it then keeps the gradient buckets of
    the first step, so a resumed run reduces in the same order as one that never stopped. (By
    default DDP regroups buckets after the first backward pass, which reorders ring reductions.)
    """

    shard_group: dist.ProcessGroup | None = None

    def __init__(self, options: StrategyOptions) -> None:
        super().__init__(options)
        timeout = timedelta(seconds=options.collective_timeout_seconds)
        self.accelerator = Accelerator(
            cpu=not options.use_gpu,
            mixed_precision="no",  # precision is applied from outside, alike for every strategy
            kwargs_handlers=[
                DistributedDataParallelKwargs(find_unused_parameters=True),
                InitProcessGroupKwargs(timeout=timeout),
            ],
        )
        self.rank = self.accelerator.process_index
        self.world_size = self.accelerator.num_processes
        self.device = self.accelerator.device

    def static_bytes_per_parameter(self) -> float:
        buckets = 4 if self.world_size > 1 else 0  # DDP's copy of the gradients
        return 4 + 4 + self.options.optimizer.bytes_per_parameter + buckets

    def prepare(self, model: nn.Module, make_optimizer: OptimizerFactory) -> nn.Module:
        apply_transforms(model, self.options, self.static_bytes(model))
        draw_missing(model, self.options.seed)
        self.module = model.to(self.device)
        self._optimizer = make_optimizer(self.module)
        self.make_moments()
        wrapped: nn.Module = self.accelerator.prepare_model(self.module)
        self._wrapped = wrapped
        return wrapped

    @contextlib.contextmanager
    def micro_step(self, is_last: bool) -> Iterator[None]:
        hold = contextlib.nullcontext() if is_last else self.accelerator.no_sync(self._wrapped)
        with hold:
            yield

    def backward(self, loss: Tensor) -> None:
        self.accelerator.backward(self.scaled(loss))

    def close(self) -> None:
        self.accelerator.free_memory()
        # Accelerate keeps its state per process; the next job in this process starts afresh.
        AcceleratorState._reset_state(reset_partial_state=True)
