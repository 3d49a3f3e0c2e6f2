"""A flat range of a tensor, as boxes: what every rank writes and reads of a checkpoint."""

import math
import random
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp

from pelagos.platform.tensor_layout import flat_range_boxes, share


def test_boxes_cover_the_range_once_and_in_order() -> None:
    draw = random.Random(0)
    for _ in range(500):
        shape = tuple(draw.randint(1, 4) for _ in range(draw.randint(0, 4)))
        count = math.prod(shape)
        start, stop = sorted((draw.randint(0, count), draw.randint(0, count)))
        elements = torch.arange(count).reshape(shape)
        covered: list[int] = []
        for offsets, sizes in flat_range_boxes(shape, start, stop):
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


def test_a_shard_is_no_operand() -> None:
    with pytest.raises(TypeError, match="compute on its .local"):
        torch.add(share(torch.ones(4), 0, 2), 1)
