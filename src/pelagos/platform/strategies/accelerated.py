"""Single process and DDP on Hugging Face Accelerate: placement, precision, gradient synchronisation."""

import contextlib
import math
from collections.abc import Iterator

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, nn

from pelagos.platform.optimizer import OptimizerFactory
from pelagos.platform.strategies.base import Strategy, StrategyOptions, TensorState
from pelagos.platform.strategies.transforms import apply_transforms

MOMENTS = ("exp_avg", "exp_avg_sq")


class AcceleratedStrategy(Strategy):
    """One whole model per rank; gradients are averaged over ranks in the last micro-step.

    DDP is told to look for unused parameters for one reason: it then keeps the gradient buckets of
    the first step, so a resumed run reduces in the same order as one that never stopped. (By
    default DDP regroups buckets after the first backward pass, which reorders ring reductions.)
    """

    def __init__(self, options: StrategyOptions) -> None:
        self.options = options
        self.accelerator = Accelerator(
            cpu=not options.use_gpu,
            mixed_precision="bf16" if options.precision == "bf16" else "no",
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
        self.rank = self.accelerator.process_index
        self.world_size = self.accelerator.num_processes
        self.device = self.accelerator.device
        self._optimizer: torch.optim.Optimizer | None = None

    def prepare(self, model: nn.Module, make_optimizer: OptimizerFactory) -> nn.Module:
        apply_transforms(model, self.options)
        self.module = model.to(self.device)
        self._optimizer = make_optimizer(self.module)
        wrapped: nn.Module = self.accelerator.prepare_model(self.module)
        self._wrapped = wrapped
        return wrapped

    @contextlib.contextmanager
    def micro_step(self, is_last: bool) -> Iterator[None]:
        hold = contextlib.nullcontext() if is_last else self.accelerator.no_sync(self._wrapped)
        with hold:
            yield

    def backward(self, loss: Tensor) -> None:
        self.accelerator.backward(loss)

    def step(self, clip_norm: float | None) -> float:
        parameters = [p for p in self.module.parameters() if p.grad is not None]
        limit = float("inf") if clip_norm is None else clip_norm
        norm = float(self.accelerator.clip_grad_norm_(parameters, limit) or 0.0)
        if math.isfinite(norm):
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        assert self._optimizer is not None, "prepare() comes first"
        return self._optimizer

    def state(self) -> TensorState:
        state = {f"model.{k}": v for k, v in self.module.state_dict().items()}
        for name, parameter in self.module.named_parameters():
            if not parameter.requires_grad:
                continue
            moments = self.optimizer.state.get(parameter, {})
            for moment in MOMENTS:
                state[f"optimizer.{name}.{moment}"] = moments.get(
                    moment, torch.zeros_like(parameter)
                )
            state[f"optimizer.{name}.step"] = moments.get("step", torch.zeros(()))
        return state

    def load_state(self, state: TensorState) -> None:
        weights = {k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")}
        self.module.load_state_dict(weights, strict=True)
        for name, parameter in self.module.named_parameters():
            if parameter.requires_grad:
                self.optimizer.state[parameter] = {
                    moment: state[f"optimizer.{name}.{moment}"].clone()
                    for moment in (*MOMENTS, "step")
                }

    def close(self) -> None:
        self.accelerator.free_memory()
        # Accelerate keeps its state per process; the next job in this process starts afresh.
        AcceleratorState._reset_state(reset_partial_state=True)
