"""FSDP2 and HSDP: parameters, gradients and moments cut up over ranks by `fully_shard`.

Zhao et al., PyTorch FSDP, VLDB 2023; the per-parameter design is torch's FSDP2. HSDP shards within
groups of ranks and replicates over the groups (Zhang et al., MiCS, VLDB 2022).
"""

import contextlib
import math
import os
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)
from torch.distributed.tensor import DTensor, distribute_tensor

from pelagos.platform.optimization.optimizer import OptimizerFactory
from pelagos.platform.strategies.base import StrategyOptions, TensorState
from pelagos.platform.strategies.initialize import drawn_copy, is_on_meta, modules_to_draw
from pelagos.platform.strategies.processes import ensure_process_group, rank_device
from pelagos.platform.strategies.torch_optimizer import TorchOptimizerStrategy
from pelagos.platform.strategies.transforms import apply_transforms, blocks_of

DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class FullyShardStrategy(TorchOptimizerStrategy):
    """Each rank holds a part of every parameter; blocks are gathered when they are used."""

    def __init__(self, options: StrategyOptions) -> None:
        super().__init__(options)
        self._made_group = ensure_process_group(options.use_gpu, options.collective_timeout_seconds)
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.device = rank_device(options.use_gpu)
        self.mesh = self._make_mesh()

    def _make_mesh(self) -> DeviceMesh:
        return init_device_mesh(self.device.type, (self.world_size,), mesh_dim_names=("shard",))

    @property
    def shard_group(self) -> dist.ProcessGroup | None:
        return self.mesh.get_group("shard")

    def static_bytes_per_parameter(self) -> float:
        each = 4 + 4 + self.options.optimizer.bytes_per_parameter
        return 0.0 if self.options.fsdp.cpu_offload else each / self.mesh["shard"].size()

    def prepare(self, model: nn.Module, make_optimizer: OptimizerFactory) -> nn.Module:
        apply_transforms(model, self.options, self.static_bytes(model))
        has_values = not any(is_on_meta(module) for module in model.modules())
        self._shard(model)
        if not has_values:
            self._draw(model)
        self.module = model
        self._optimizer = make_optimizer(model)
        self.make_moments()
        return model

    def _shard(self, model: nn.Module) -> None:
        options = self.options.fsdp
        offload: OffloadPolicy = OffloadPolicy()
        if options.cpu_offload:
            offload = CPUOffloadPolicy(pin_memory=self.options.use_gpu)
        policy = MixedPrecisionPolicy(
            param_dtype=DTYPES[options.param_dtype], reduce_dtype=DTYPES[options.reduce_dtype]
        )
        for module in (*blocks_of(model), model):
            # the root's own parameters are needed again at once: gathering them twice gains nothing
            fully_shard(
                module,
                mesh=self.mesh,
                reshard_after_forward=options.reshard_after_forward and module is not model,
                mp_policy=policy,
                offload_policy=offload,
            )

    def _draw(self, model: nn.Module) -> None:
        """Draw one module at a time and keep this rank's part of it."""
        model.to_empty(device="cpu" if self.options.fsdp.cpu_offload else self.device)
        for name, module in modules_to_draw(model):
            parameters, buffers = drawn_copy(model, name, module, self.options.seed)
            for key, parameter in parameters.items():
                _copy_part(parameter, module._parameters[key])
            for key, buffer in buffers.items():
                module._buffers[key] = buffer.to(self.device)

    @contextlib.contextmanager
    def micro_step(self, is_last: bool) -> Iterator[None]:
        assert isinstance(self.module, FSDPModule)
        self.module.set_requires_gradient_sync(is_last)
        yield

    def backward(self, loss: Tensor) -> None:
        torch.autograd.backward(self.scaled(loss))

    def load_state(self, state: TensorState) -> None:
        """Drop gathered copies, which are of the weights before.

        The root keeps its own after a forward pass without a backward pass.
        """
        for module in self.module.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    def close(self) -> None:
        if self._made_group and "RANK" not in os.environ:
            dist.destroy_process_group()


class HybridShardStrategy(FullyShardStrategy):
    """HSDP: sharded within groups of ranks, gradients averaged over the groups."""

    def _make_mesh(self) -> DeviceMesh:
        size = shard_group_size(self.options.fsdp.shard_group_size, self.world_size)
        return init_device_mesh(
            self.device.type,
            (self.world_size // size, size),
            mesh_dim_names=("replicate", "shard"),
        )


def shard_group_size(configured: int | None, world_size: int) -> int:
    """Return the ranks that share one copy: as configured, or the ranks of one node.

    Raises:
        ValueError: it does not divide the world size.
    """
    local = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
    size = configured or math.gcd(local, world_size)
    if world_size % size:
        legal = [n for n in range(1, world_size + 1) if world_size % n == 0]
        raise ValueError(
            f"parallel.fsdp.shard_group_size: got {size}, which does not divide the world size: "
            f"{world_size} = {world_size // size} x {size} + {world_size % size}. Use one of {legal}."
        )
    return size


def _copy_part(whole: Tensor, part: Tensor | None) -> None:
    """Copy this rank's elements of `whole` into a sharded parameter, without communication."""
    assert isinstance(part, DTensor)
    mine = distribute_tensor(whole, part.device_mesh, part.placements, src_data_rank=None)
    with torch.no_grad():
        part.to_local().copy_(mine.to_local())
