"""Counting the floating-point operations of a network's training step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count


def flop_counter() -> FlopCounterMode:
    """Torch's counter of operations, with the gradients of grouped convolutions counted right.

    torch takes the gradient of a grouped convolution's weight for that of a full one: a step of
    Poseidon-T is overstated by a sixth, one of SimVP sixfold. Not counted are Fourier transforms and
    operations on single elements.
    """
    formulas = {torch.ops.aten.convolution_backward: _convolution_backward}
    return FlopCounterMode(display=False, custom_mapping=formulas)


def _convolution_backward(
    gradient: Sequence[int],
    x: Sequence[int],
    weight: Sequence[int],
    *options: Any,
    out_shape: object = None,
) -> int:
    """As many as forward for the gradient of the input, and again for the weight's."""
    _bias, _stride, _padding, _dilation, transposed, _output_padding, _groups, wanted = options
    forward: int = conv_flop_count(list(x), list(weight), list(gradient), transposed)
    return int(wanted[0] + wanted[1]) * forward
