"""Shared code of strategies that keep torch's parameters and step a plain torch optimizer."""

import math
from abc import abstractmethod

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pelagos.platform.strategies.base import Strategy, TensorState
from pelagos.platform.strategies.gradients import clip_factor, global_norm
from pelagos.platform.tensor_layout import local_part


class TorchOptimizerStrategy(Strategy):
    """A strategy whose optimizer holds the module's parameters themselves."""

    module: nn.Module
    _optimizer: torch.optim.Optimizer | None = None

    @property
    @abstractmethod
    def shard_group(self) -> dist.ProcessGroup | None:
        """The ranks among which a gradient is cut up; None: each rank has all of it."""

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        assert self._optimizer is not None, "prepare() comes first"
        return self._optimizer

    def scaled(self, loss: Tensor) -> Tensor:
        """Return the loss times the loss scale, where there is one."""
        return loss if self.loss_scale is None else loss * self.loss_scale.scale

    def step(self) -> float:
        gradients = [local_part(p.grad) for p in self.module.parameters() if p.grad is not None]
        scale = 1.0 if self.loss_scale is None else self.loss_scale.scale
        scaled_norm = global_norm(gradients, self.shard_group, self.device)
        norm = float(scaled_norm) / scale
        if math.isfinite(norm):
            factor = clip_factor(scaled_norm, self.options.clip_norm, scale)
            if factor is not None:
                for gradient in gradients:
                    gradient.mul_(factor.to(gradient.device))
            self.optimizer.step()
        if self.loss_scale is not None:
            self.loss_scale.update(math.isfinite(norm))
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def weights(self) -> TensorState:
        return {n: p.detach() for n, p in self.module.named_parameters() if p.requires_grad}

    def state(self) -> TensorState:
        state = {f"model.{k}": v for k, v in self.module.state_dict().items()}
        for name, parameter in self.module.named_parameters():
            if parameter.requires_grad:
                for key, value in self.optimizer.state[parameter].items():
                    state[f"optimizer.{name}.{key}"] = value
        return state

    def load_state(self, state: TensorState) -> None:
        """Nothing to do: the module and the optimizer use the result of `state` itself."""

    def make_moments(self) -> None:
        """Make the optimizer's state, as its first step would, so that it can be loaded into."""
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                self.optimizer.state[parameter] = self.options.optimizer.fresh_state(parameter)
