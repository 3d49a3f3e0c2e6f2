"""A tensor of which each rank holds a flat range.

How ZeRO cuts parameters, and how ranks share a replicated tensor's bytes when they write a
checkpoint together.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
)
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

Box = tuple[tuple[int, ...], tuple[int, ...]]


class FlatShard(Tensor):
    """Elements `start` to `start + local.numel()` of a tensor flattened in row-major order.

    It has the whole tensor's shape and this rank's elements in `local [element]`, which may be
    none. It is no operand of computations: `torch.distributed.checkpoint` writes and reads `local`
    through it, in boxes, because checkpoints know n-dimensional boxes only.
    """

    local: Tensor
    start: int

    @staticmethod
    def __new__(cls, local: Tensor, shape: torch.Size, start: int) -> FlatShard:
        assert local.ndim == 1
        assert 0 <= start <= start + local.numel() <= math.prod(shape)
        shard: FlatShard = Tensor._make_wrapper_subclass(
            cls, shape, dtype=local.dtype, device=local.device, requires_grad=False
        )
        shard.local = local
        shard.start = start
        return shard

    def boxes(self) -> list[Box]:
        """Return offsets and sizes of the boxes that this rank's elements fill, in order."""
        return list(flat_range_boxes(tuple(self.shape), self.start, self.start + len(self.local)))

    def box(self, offsets: tuple[int, ...]) -> Tensor:
        """Return the view of `local` that is the box at `offsets`."""
        position = 0
        for found, sizes in self.boxes():
            count = math.prod(sizes)
            if found == offsets:
                return self.local[position : position + count].view(sizes)
            position += count
        raise ValueError(f"{self!r} has no box at {offsets}")

    def __repr__(self) -> str:  # type: ignore[override]
        stop = self.start + len(self.local)
        return f"FlatShard({tuple(self.shape)}, elements {self.start} to {stop})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is torch.ops.aten.detach.default:  # called by torch.distributed.checkpoint
            return args[0]
        raise TypeError(f"{func}: a FlatShard holds one rank's elements; compute on its .local")

    # torch.distributed._checkpointable: the names that torch.distributed.checkpoint looks for
    def __create_write_items__(self, fqn: str, _: object) -> list[WriteItem]:
        return [
            WriteItem(
                index=MetadataIndex(fqn, chunk.offsets),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(
                    chunk=chunk,
                    properties=TensorProperties.create_from_tensor(self.local),
                    size=self.shape,
                ),
            )
            for chunk in self.__create_chunk_list__()
        ]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return [
            ChunkStorageMetadata(offsets=torch.Size(offsets), sizes=torch.Size(sizes))
            for offsets, sizes in self.boxes()
        ]

    def __get_tensor_shard__(self, index: MetadataIndex) -> Tensor:
        assert index.offset is not None
        return self.box(tuple(index.offset))


def flat_range_boxes(shape: tuple[int, ...], start: int, stop: int) -> Iterator[Box]:
    """Yield (offsets, sizes) of boxes that cover elements `start` to `stop` in row-major order.

    >>> list(flat_range_boxes((3, 4), 2, 9))
    [((0, 2), (1, 2)), ((1, 0), (1, 4)), ((2, 0), (1, 1))]
    """
    if start >= stop:
        return
    if not shape:
        yield (), ()
        return
    row = math.prod(shape[1:])
    first, head = divmod(start, row)
    last, tail = divmod(stop, row)
    if head:  # a part of the first row
        end = min(row, stop - first * row)
        for offsets, sizes in flat_range_boxes(shape[1:], head, end):
            yield (first, *offsets), (1, *sizes)
        first += 1
    if last > first:
        yield (first, *(0 for _ in shape[1:])), (last - first, *shape[1:])
    if tail and last >= first:  # a part of the last row
        for offsets, sizes in flat_range_boxes(shape[1:], 0, tail):
            yield (last, *offsets), (1, *sizes)


def share(tensor: Tensor, rank: int, world_size: int) -> FlatShard:
    """Return this rank's share of a tensor that every rank holds whole; a view where it can be."""
    count = tensor.numel()
    start, stop = count * rank // world_size, count * (rank + 1) // world_size
    return FlatShard(tensor.detach().reshape(-1)[start:stop], tensor.shape, start)


def written_part(tensor: Tensor, rank: int, world_size: int) -> FlatShard:
    """Return this rank's written part of a tensor: over all ranks, each element exactly once.

    Of a tensor that every rank holds whole, its share; of one that is sharded, its own part; of one
    that is sharded and replicated (HSDP), its share of that part.
    """
    if isinstance(tensor, FlatShard):
        return tensor
    if not isinstance(tensor, DTensor):
        return share(tensor, rank, world_size)
    shape, offset = compute_local_shape_and_global_offset(
        tensor.shape, tensor.device_mesh, tensor.placements
    )
    local = tensor.to_local().detach().reshape(-1)
    assert tuple(shape[1:]) == tuple(tensor.shape[1:]), "sharded along an axis other than the first"
    start = offset[0] * math.prod(tensor.shape[1:]) if local.numel() else 0
    replica, replicas = 0, 1
    for axis, placement in enumerate(tensor.placements):
        if placement.is_replicate():
            replica = replica * tensor.device_mesh.size(axis) + _coordinate(tensor, axis)
            replicas *= tensor.device_mesh.size(axis)
    first, last = (local.numel() * (replica + i) // replicas for i in (0, 1))
    return FlatShard(local[first:last], tensor.shape, start + first)


def _coordinate(tensor: DTensor, axis: int) -> int:
    coordinate = tensor.device_mesh.get_coordinate()
    assert coordinate is not None
    return int(coordinate[axis])


def local_part(tensor: Tensor) -> Tensor:
    """Return the elements that this rank holds: of a sharded tensor its part, else all."""
    if isinstance(tensor, FlatShard):
        return tensor.local
    if isinstance(tensor, DTensor):
        local: Tensor = tensor.to_local()
        return local
    return tensor


def with_local_part(tensor: Tensor, local: Tensor) -> Tensor:
    """Return a tensor laid out over ranks like `tensor`, whose elements here are `local`."""
    if isinstance(tensor, FlatShard):
        return FlatShard(local, tensor.shape, tensor.start)
    if isinstance(tensor, DTensor):
        return DTensor.from_local(
            local,
            tensor.device_mesh,
            tensor.placements,
            run_check=False,
            shape=tensor.shape,
            stride=tensor.stride(),
        )
    return local
