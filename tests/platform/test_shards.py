"""A flat range of a tensor, as boxes: what every rank writes and reads of a checkpoint."""

import math
import random
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.debug import CommDebugMode
from torch.testing._internal.distributed.fake_pg import FakeStore

from pelagos.platform.tensor_layout import (
    flat_range_boxes,
    local_part,
    share,
    with_local_part,
    written_part,
)


def test_boxes_cover_the_range_once_and_in_order() -> None:
    draw = random.Random(0)
    for _ in range(500):
        shape = tuple(draw.randint(1, 4) for _ in range(draw.randint(0, 4)))
        count = math.prod(shape)
        start, stop = sorted((draw.randint(0, count), draw.randint(0, count)))
        elements = torch.arange(count).reshape(shape)
        covered: list[int] = []
        for offsets, sizes in flat_range_boxes(shape, start, stop):
            assert min(sizes, default=1) > 0
            box = tuple(slice(o, o + s) for o, s in zip(offsets, sizes, strict=True))
            covered += elements[box].reshape(-1).tolist()
        assert covered == list(range(start, stop))


@pytest.mark.parametrize("world_size", [1, 2, 5])
def test_any_number_of_ranks_reads_what_one_wrote(tmp_path: Path, world_size: int) -> None:
    tensors = {
        "matrix": torch.randn(5, 7, 3),
        "vector": torch.randn(3),
        "scalar": torch.tensor(4.0),
    }
    whole = {name: share(t, 0, 1) for name, t in tensors.items()}
    dcp.save(whole, checkpoint_id=tmp_path, no_dist=True)
    for name, tensor in tensors.items():
        parts = []
        for rank in range(world_size):
            part = share(torch.zeros_like(tensor), rank, world_size)
            dcp.load({name: part}, checkpoint_id=tmp_path, no_dist=True)
            parts.append(part.local)
        assert torch.equal(torch.cat(parts).reshape(tensor.shape), tensor)


@pytest.mark.parametrize(
    ("mesh_shape", "placements"),
    [
        ((4,), (Shard(0),)),
        ((2, 3), (Replicate(), Shard(0))),  # HSDP
        ((3, 2), (Shard(0), Replicate())),
        ((2, 3), (Replicate(), Replicate())),
        ((2, 2, 2), (Replicate(), Shard(0), Replicate())),
    ],
)
@pytest.mark.parametrize("shape", [(5, 3), (7,), (2, 3, 2), (1, 4)])
def test_ranks_together_write_each_element_once_in_its_place(
    mesh_shape: tuple[int, ...], placements: tuple[Replicate | Shard, ...], shape: tuple[int, ...]
) -> None:
    """Torch's fake process groups stand for the other ranks: nothing here is sent."""
    whole = torch.arange(1.0, math.prod(shape) + 1).reshape(shape)
    sharded = next((axis for axis, p in enumerate(placements) if isinstance(p, Shard)), None)
    written = torch.zeros(whole.numel())
    world_size = math.prod(mesh_shape)
    for rank in range(world_size):
        dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)
        try:
            mesh = init_device_mesh("cpu", mesh_shape)
            local = whole
            if sharded is not None:  # chunks of ceil(rows / ranks), the last ones shorter or empty
                number, ranks = mesh.get_coordinate()[sharded], mesh_shape[sharded]
                rows = -(-shape[0] // ranks)
                local = whole[number * rows : (number + 1) * rows]
            tensor = DTensor.from_local(
                local, mesh, placements, run_check=False, shape=whole.shape, stride=whole.stride()
            )
            part = written_part(tensor, rank, world_size)
        finally:
            dist.destroy_process_group()
        assert tuple(part.shape) == shape
        written[part.start : part.start + part.local.numel()] += part.local
    assert torch.equal(written.reshape(shape), whole)


def test_a_shard_is_no_operand() -> None:
    with pytest.raises(TypeError, match="compute on its .local"):
        torch.add(share(torch.ones(4), 0, 2), 1)


def test_a_part_is_put_in_place_without_asking_other_ranks() -> None:
    """Ranks write their checkpoint parts in a thread of their own, where nothing else may be sent."""
    dist.init_process_group("fake", store=FakeStore(), rank=1, world_size=4)
    try:
        mesh = init_device_mesh("cpu", (2, 2))
        whole = torch.arange(12.0).reshape(4, 3)
        tensor = DTensor.from_local(
            whole[2:], mesh, (Replicate(), Shard(0)), shape=whole.shape, stride=whole.stride()
        )
        with CommDebugMode() as sent:
            other = with_local_part(tensor, whole[:2])
        assert sent.get_total_counts() == 0
        assert torch.equal(local_part(other), whole[:2])
    finally:
        dist.destroy_process_group()
