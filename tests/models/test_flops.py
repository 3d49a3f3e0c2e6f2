"""Counted operations: a gradient costs as many as the product that it is of, whatever the groups."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pelagos.models.flops import flop_counter


@pytest.mark.parametrize("groups", [1, 4, 8])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_a_training_step_costs_three_times_the_forward_pass(
    kind: type[nn.Conv2d] | type[nn.ConvTranspose2d], stride: int, groups: int
) -> None:
    layer = kind(8, 16, kernel_size=4, stride=stride, padding=1, groups=groups, device="meta")
    x = torch.ones(3, 8, 12, 12, device="meta", requires_grad=True)
    with flop_counter() as forward:
        y = layer(x)
    pixels = (x if isinstance(layer, nn.ConvTranspose2d) else y)[0, 0].numel()
    assert forward.get_total_flops() == 2 * 3 * pixels * 16 * 8 // groups * 4 * 4
    with flop_counter() as backward:
        torch.autograd.backward(y.sum())
    assert backward.get_total_flops() == 2 * forward.get_total_flops()


def test_a_gradient_that_nobody_wants_is_not_counted() -> None:
    layer = nn.Conv2d(4, 4, 3, groups=4, device="meta")
    with flop_counter() as first:
        torch.autograd.backward(layer(torch.ones(1, 4, 8, 8, device="meta")).sum())
    layer.requires_grad_(False)
    with flop_counter() as frozen:
        layer(torch.ones(1, 4, 8, 8, device="meta"))
    assert first.get_total_flops() == 2 * frozen.get_total_flops()
