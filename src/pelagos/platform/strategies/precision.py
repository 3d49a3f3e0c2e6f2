"""Precision, applied to a model from outside: the same recipe under every strategy.

Weights, gradients, moments and reductions are fp32. Half precision is autocast in the forward pass
alone, without its cache of cast weights: the cache would keep a half-precision copy of weights that
a sharded strategy has freed, and would sum the gradients of a weight used twice in half precision.
"""

import functools
from typing import Any

import torch
from torch import nn

from pelagos.platform.config.parallel import TF32_NEEDS_A_GPU
from pelagos.platform.strategies.base import Precision

AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
TF32_CAPABILITY = (8, 0)


def apply_precision(model: nn.Module, precision: Precision, device_type: str) -> None:
    """Make `model.forward` run in `precision`; set the permitted rounding of fp32 products on a GPU."""
    if device_type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        torch.backends.cudnn.allow_tf32 = precision == "tf32"
    dtype = AUTOCAST_DTYPES.get(precision)
    if dtype is None:
        return
    forward = model.forward

    @functools.wraps(forward)
    def in_autocast(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast(device_type, dtype=dtype, cache_enabled=False):
            return forward(*args, **kwargs)

    model.forward = in_autocast


def check_precision(precision: Precision, use_gpu: bool) -> None:
    """Refuse a precision that this rank's device lacks.

    Raises:
        ValueError: names the device and its precisions.
    """
    if not use_gpu:
        if precision == "tf32":
            raise ValueError(f"parallel.precision: {TF32_NEEDS_A_GPU}")
        return
    name, capability = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
    if precision in ("bf16", "tf32") and capability < TF32_CAPABILITY:
        raise ValueError(
            f"parallel.precision: {name} has compute capability {capability[0]}.{capability[1]}, "
            f"but {precision} needs {TF32_CAPABILITY[0]}.{TF32_CAPABILITY[1]}; use fp16 or fp32"
        )
