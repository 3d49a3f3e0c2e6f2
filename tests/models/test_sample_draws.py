"""Random numbers of a sample are torch's of its own seed, whatever lies beside it in the batch."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pelagos.models.sample_draws import draws_per_sample, normal_like, uniform

SEEDS = (7, 2**40 + 1, 0)
CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_numbers_are_those_of_a_generator_per_sample(dtype: torch.dtype) -> None:
    values = torch.zeros(3, 2, 4, 5, dtype=dtype)
    normal = normal_like(values, torch.tensor(SEEDS))
    plain = uniform((6,), torch.tensor(SEEDS), CPU)
    assert (normal.shape, normal.dtype, plain.shape) == (values.shape, dtype, (3, 6))
    for row, seed in enumerate(SEEDS):
        own = torch.randn(2, 4, 5, dtype=dtype, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(normal[row], own)
        own = torch.rand(6, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(plain[row], own)


def test_each_sample_has_a_seed() -> None:
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        normal_like(torch.zeros(3, 2), torch.tensor(SEEDS[:2]))


def test_without_values_there_are_shapes() -> None:
    seeds = torch.tensor(SEEDS, device="meta")
    meta = torch.device("meta")
    assert normal_like(torch.zeros(3, 2, device="meta"), seeds).shape == (3, 2)
    found = uniform((6, 2), seeds, meta)
    assert (found.shape, found.device) == ((3, 6, 2), meta)


def test_a_network_that_draws_takes_seeds_in_training_alone() -> None:
    class Draws(nn.Module):
        draws_per_sample = True

    class Wrapped(nn.Module):
        """As data parallel wrappers are."""

        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

    for model in (Draws(), Wrapped(Draws())):
        assert draws_per_sample(model.train())
        assert not draws_per_sample(model.eval())
    for model in (nn.Linear(2, 2), Wrapped(nn.Linear(2, 2))):
        assert not draws_per_sample(model.train())
