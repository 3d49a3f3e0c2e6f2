"""Linear layers whose products on a CPU are oneDNN's.

torch multiplies fp32 matrices on x86 with MKL, which runs AVX2 code on a processor of AMD: about 95
GFLOP/s a core where oneDNN, the other library that torch brings, reaches 215 by AVX-512. Without
AVX-512 both take as long. Everything else, accelerators too, goes the way of `F.linear`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import flop_registry, register_flop_formula

_HAS_ONEDNN = hasattr(torch.ops.mkldnn, "_linear_pointwise")
_HAS_AVX512 = torch.backends.cpu.get_cpu_capability() == "AVX512"


class Linear(nn.Linear):
    """`nn.Linear` with products by `linear`."""

    def forward(self, input: Tensor) -> Tensor:
        """`[..., in_features]` to `[..., out_features]`."""
        return linear(input, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x weightᵀ + bias` for `[..., in]`, `[out, in]` and `[out]`, as `F.linear`."""
    if not _is_worth_onednn(x, weight):
        return F.linear(x, weight, bias)
    product: Tensor = _Linear.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    return product


def _is_worth_onednn(x: Tensor, weight: Tensor) -> bool:
    return (
        _HAS_ONEDNN
        and _HAS_AVX512
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _times_transposed(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        rows, gradients = (t.reshape(-1, t.shape[-1]) for t in (x, gradient))
        of_x = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            of_x = _times_transposed(gradient, weight.T)
        if ctx.needs_input_grad[1]:
            # oneDNN gains more with more columns; turning the result back is a copy
            if len(rows) > weight.shape[0] > weight.shape[1]:
                of_weight = _times_transposed(rows.T, gradients.T).T
            else:
                of_weight = _times_transposed(gradients.T, rows.T)
        if ctx.needs_input_grad[2]:
            of_bias = gradients.sum(0)
        return of_x, of_weight, of_bias


def _times_transposed(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x weightᵀ + bias`."""
    if torch.is_grad_enabled():  # a gradient of gradients is wanted, which oneDNN's has not
        return F.linear(x, weight, bias)
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product


if _HAS_ONEDNN and torch.ops.mkldnn._linear_pointwise not in flop_registry:

    @register_flop_formula(torch.ops.mkldnn._linear_pointwise)
    def _count_flops(x: torch.Size, weight: torch.Size, *_: Any, **__: Any) -> int:
        """As of any product of matrices: two for each multiplication."""
        return 2 * x.numel() * weight[0]
