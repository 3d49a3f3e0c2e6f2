"""ZeRO-1, -2 and -3 on DeepSpeed (Rajbhandari et al., ZeRO, SC 2020), with a plain torch optimizer.

DeepSpeed cuts up the moments (stage 1), the gradients (2) and the parameters (3). The fp32 weights
and moments lie in flat buffers; checkpoints see them as `FlatShard`s by parameter name.
"""

import contextlib
import math
import os
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pelagos.platform.optimization.optimizer import OptimizerFactory
from pelagos.platform.strategies.base import Strategy, StrategyOptions, TensorState
from pelagos.platform.strategies.gradients import global_norm
from pelagos.platform.strategies.initialize import draw, draw_missing, is_on_meta, modules_to_draw
from pelagos.platform.strategies.processes import ensure_process_group, rank_device
from pelagos.platform.strategies.transforms import apply_transforms
from pelagos.platform.strategies.zero_config import zero_config
from pelagos.platform.tensor_layout import FlatShard


class ZeroStrategy(Strategy):
    """Stages 1 and 2: every rank has all parameters, and a part of moments (and gradients)."""

    stage = 1

    def __init__(self, options: StrategyOptions) -> None:
        super().__init__(options)
        self._made_group = ensure_process_group(options.use_gpu, options.collective_timeout_seconds)
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.device = rank_device(options.use_gpu)
        self.config = zero_config(self.stage, options, self.world_size)
        self.deepspeed = _import_deepspeed(options.use_gpu)
        self.engine: Any = None

    def static_bytes_per_parameter(self) -> float:
        moments = (
            0
            if self.options.zero.offload_optimizer != "none"
            else 4 + self.options.optimizer.bytes_per_parameter
        )
        whole = {1: 4 + 4, 2: 4, 3: 0}[self.stage]  # weights and gradients of every rank
        cut_up = {1: 0, 2: 4, 3: 4}[self.stage]
        return whole + (cut_up + moments) / self.world_size

    def prepare(self, model: nn.Module, make_optimizer: OptimizerFactory) -> nn.Module:
        apply_transforms(model, self.options, self.static_bytes(model))
        self._place(model)
        self.module = model
        self.engine, *_ = self.deepspeed.initialize(
            model=model,
            optimizer=make_optimizer(model),
            config=self.config,
            dist_init_required=False,
        )
        self._share_meaning_of_norm()
        self._make_moments()
        wrapped: nn.Module = self.engine
        return wrapped

    def _place(self, model: nn.Module) -> None:
        draw_missing(model, self.options.seed)

    @property
    def zero(self) -> Any:
        """DeepSpeed's optimizer, around the plain one."""
        return self.engine.optimizer

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        plain: torch.optim.Optimizer = self.zero.optimizer
        return plain

    @contextlib.contextmanager
    def micro_step(self, is_last: bool) -> Iterator[None]:
        self.engine.set_gradient_accumulation_boundary(is_last)
        if self.loss_scale is not None:
            self.zero.override_loss_scale(self.loss_scale.scale)
        yield

    def backward(self, loss: Tensor) -> None:
        self.engine.backward(loss, scale_wrt_gas=False)

    def step(self) -> float:
        self.engine.step()
        norm = float(self._scaled_norm)
        if self.loss_scale is not None:
            norm /= self.loss_scale.scale
            self.loss_scale.update(math.isfinite(norm))
        return norm

    def weights(self) -> TensorState:
        return {name: self._shard(p) for name, p in self._trainable()}

    def state(self) -> TensorState:
        state = {f"model.{name}": self._weight(p) for name, p in self.module.named_parameters()}
        persistent = self.module.state_dict().keys()
        state |= {f"model.{n}": b for n, b in self.module.named_buffers() if n in persistent}
        for name, parameter in self._trainable():
            for moment in self.options.optimizer.moments:
                state[f"optimizer.{name}.{moment}"] = self._shard(parameter, moment)
            for key in self.options.optimizer.scalars:
                state[f"optimizer.{name}.{key}"] = self._flat_state(parameter)[key].clone()
        return state

    def load_state(self, state: TensorState) -> None:
        self._load_steps(state)
        self.zero.update_lp_params()

    def close(self) -> None:
        if self.engine is not None:
            self.engine.destroy()
        # DeepSpeed keeps groups per process; the next job in this process starts afresh
        self.deepspeed.utils.groups._release_process_group_references(group=None)
        self.deepspeed.comm.comm.cdb = None
        if self._made_group and "RANK" not in os.environ:
            dist.destroy_process_group()

    # -- how stages 1 and 2 lay out a parameter ---------------------------------------------------

    def _trainable(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((n, p) for n, p in self.module.named_parameters() if p.requires_grad)

    def _weight(self, parameter: nn.Parameter) -> Tensor:
        """Return a weight as this rank holds its fp32 original."""
        return self._shard(parameter) if parameter.requires_grad else parameter.detach()

    def _shard(self, parameter: nn.Parameter, moment: str | None = None) -> FlatShard:
        """Return this rank's part of the fp32 weight, or of a moment, as a view."""
        mapping = parameter._hp_mapping  # type: ignore[attr-defined]
        if mapping is None:  # no element of it lies in this rank's partition
            return FlatShard(torch.empty(0, device=self._home), parameter.shape, 0)
        local = mapping.hp_fragment
        if moment is not None:
            address = mapping.hp_fragment_address
            moments = self._flat_state(parameter)[moment]
            local = moments.narrow(0, address.start, address.numel)
        return FlatShard(local.detach(), parameter.shape, mapping.lp_fragment_address.start)

    def _flat_state(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """Return the plain optimizer's state of the flat buffer that a parameter lies in."""
        for flat, members in zip(
            self.zero.single_partition_of_fp32_groups, self.zero.bit16_groups, strict=True
        ):
            if any(member is parameter for member in members):
                state: dict[str, Tensor] = self.optimizer.state[flat]
                return state
        raise AssertionError("a trainable parameter belongs to no optimizer group")

    def _flat_buffers(self) -> list[Tensor]:
        return list(self.zero.single_partition_of_fp32_groups)

    @property
    def _home(self) -> torch.device:
        """Where fp32 weights and moments live."""
        return self._flat_buffers()[0].device

    def _make_moments(self) -> None:
        for flat in self._flat_buffers():
            self.optimizer.state[flat] = self.options.optimizer.fresh_state(flat)

    def _load_steps(self, state: TensorState) -> None:
        """Set the single numbers of each flat buffer, which has one for all its parameters.

        Of AdamW the step count.

        Raises:
            ValueError: the parameters of one optimizer group have made different numbers of steps.
        """
        for key in self.options.optimizer.scalars:
            self._load_scalar(key, state)

    def _load_scalar(self, key: str, state: TensorState) -> None:
        counts: dict[int, tuple[str, float]] = {}
        for name, parameter in self._trainable():
            flat, count = self._flat_state(parameter), float(state[f"optimizer.{name}.{key}"])
            first = counts.setdefault(id(flat), (name, count))
            if first[1] != count:
                raise ValueError(
                    f"{name} has taken {count:.0f} optimizer steps and {first[0]} {first[1]:.0f}, "
                    f"but zero{self.stage} counts steps per optimizer group. Give the newer "
                    "parameters their own group in optimizer.groups, or use parallel.strategy: "
                    "fsdp"
                )
            flat[key].fill_(count)

    # -- one meaning of the norm ------------------------------------------------------------------

    def _share_meaning_of_norm(self) -> None:
        """Let DeepSpeed clip by the norm that every other strategy uses."""
        self.zero.scaled_global_norm = self._global_norm

    def _global_norm(self, norm_type: float = 2) -> Tensor:
        assert norm_type == 2
        parts = self._gradient_parts()
        self._scaled_norm = global_norm(parts, dist.group.WORLD, self.device)
        return self._scaled_norm

    def _gradient_parts(self) -> list[Tensor]:
        if self.zero.cpu_offload:
            return [flat.grad for flat in self._flat_buffers() if flat.grad is not None]
        return [part for parts in self.zero.averaged_gradients.values() for part in parts or ()]


class Zero2Strategy(ZeroStrategy):
    """Stage 2: gradients are cut up too, and reduced in every micro-step."""

    stage = 2


class Zero3Strategy(ZeroStrategy):
    """Stage 3: parameters are cut up too, and gathered when their module is used."""

    stage = 3

    def __init__(self, options: StrategyOptions) -> None:
        super().__init__(options)
        self._indices: dict[int, dict[int, int]] = {}

    def _place(self, model: nn.Module) -> None:
        """Draw one module at a time and cut it up at once."""
        self.deepspeed.comm.init_distributed(dist_init_required=False, verbose=False)
        for name, module in modules_to_draw(model):
            if is_on_meta(module):
                module.to_empty(device="cpu", recurse=False)
                draw(model, name, module, self.options.seed)
            if module._parameters:
                self.deepspeed.zero.Init(
                    module=module, config_dict_or_path=self.config, dtype=torch.float32
                )
        for module in model.modules():
            for key, buffer in module._buffers.items():
                module._buffers[key] = None if buffer is None else buffer.to(self.device)

    def load_state(self, state: TensorState) -> None:
        self._load_steps(state)
        for name, parameter in self._trainable():
            if self._is_swapped(parameter):
                self._write_back(name, parameter, state)
        # gathered copies are of the old weights: cut all up, then take over the fp32 originals
        self.zero._partition_all_parameters()
        for index in range(len(self.zero.fp16_groups)):
            self.zero._reassign_or_swap_out_partitioned_parameters(index)
        self.zero.invalidate_secondary_tensor()
        if self.zero.persistent_parameters:
            self.zero.persistent_parameters[0].all_gather(self.zero.persistent_parameters)

    # -- how stage 3 lays out a parameter ---------------------------------------------------------

    def _weight(self, parameter: nn.Parameter) -> Tensor:
        if parameter.requires_grad:
            return self._shard(parameter)
        return self._without_padding(parameter.ds_tensor, parameter)  # type: ignore[attr-defined]

    def _shard(self, parameter: nn.Parameter, moment: str | None = None) -> FlatShard:
        return self._without_padding(self._partition(parameter, moment), parameter)

    def _partition(self, parameter: nn.Parameter, moment: str | None) -> Tensor:
        """Return this rank's padded partition: a view, or a copy of the one on NVMe."""
        partition, group = self.zero._get_fp32_opt_state_partition(
            parameter, release_swap_buffers=False, optim_state_key=moment
        )
        if self._is_swapped(parameter):
            partition = partition.clone()
            self.zero._release_swap_buffers(group)
        local: Tensor = partition.detach()
        return local

    def _without_padding(self, partition: Tensor, parameter: nn.Parameter) -> FlatShard:
        """DeepSpeed cuts each parameter into equal flat parts, the last ones filled up."""
        shape: torch.Size = parameter.ds_shape  # type: ignore[attr-defined]
        size, count = partition.numel(), math.prod(shape)
        start = min(self.rank * size, count)
        held = partition.detach().reshape(-1)[: min(size, count - start)]
        return FlatShard(held, shape, start)

    def _is_swapped(self, parameter: nn.Parameter) -> bool:
        group, *_ = self.zero.grad_position[self.zero.get_param_id(parameter)]
        return bool(self.zero._swappable_optimizer_subgroup(group))

    def _write_back(self, name: str, parameter: nn.Parameter, state: TensorState) -> None:
        """Store the loaded values of a parameter whose fp32 state lies on NVMe."""
        for moment, key in (
            (None, f"model.{name}"),
            *((m, f"optimizer.{name}.{m}") for m in self.options.optimizer.moments),
        ):
            shard = state[key]
            assert isinstance(shard, FlatShard)
            partition = self._partition(parameter, moment)
            partition[: shard.local.numel()].copy_(shard.local)
            self.zero.set_local_hp_param(partition, parameter, moment)

    def _flat_state(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        group, *_ = self.zero.grad_position[self.zero.get_param_id(parameter)]
        state: dict[str, Tensor] = self.optimizer.state[self._flat_buffers()[group]]
        return state

    def _flat_buffers(self) -> list[Tensor]:
        return list(self.zero.fp32_partitioned_groups_flat)

    def _share_meaning_of_norm(self) -> None:
        self.zero._get_norm_groups = lambda: [self._global_norm()]

    def _gradient_parts(self) -> list[Tensor]:
        parts = []
        for _, parameter in self._trainable():
            group, offset, count = self.zero.grad_position[self.zero.get_param_id(parameter)]
            if self.zero.offload_optimizer:
                part = self._flat_buffers()[group].grad
                part = None if part is None else part.narrow(0, offset, count)
            else:
                part = self.zero.averaged_gradients[group][self._index_in_group(group, parameter)]
            if part is not None:
                parts.append(self._without_padding(part, parameter).local)
        return parts

    def _index_in_group(self, group: int, parameter: nn.Parameter) -> int:
        indices = self._indices.setdefault(
            group, {id(p): i for i, p in enumerate(self.zero.fp16_groups[group])}
        )
        return indices[id(parameter)]


def _import_deepspeed(use_gpu: bool) -> Any:
    """Import DeepSpeed for this device.

    Raises:
        ValueError: it is not installed.
    """
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed asks for it even of a process alone
    if not use_gpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        with contextlib.redirect_stdout(None):
            import deepspeed
    except ImportError as error:
        raise ValueError(
            f"parallel.strategy: ZeRO needs DeepSpeed, whose import failed ({error}); `pip install "
            "deepspeed`, or use parallel.strategy: fsdp"
        ) from error
    deepspeed.utils.logging.logger.setLevel("WARNING")
    if not use_gpu:
        # Shared-memory collectives on CPUs would be compiled for a minute first, and would sum in
        # another order than gloo does for the other strategies.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed
