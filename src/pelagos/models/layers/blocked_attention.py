"""Cosine attention on CPUs, a few heads at a time, so that their scores stay in the cache.

Arithmetic does not limit windowed attention on a CPU; the scores of all windows and heads do,
because every operation on them moves them from memory and back, forward and backward. torch's own
blocked kernel does not differentiate a bias.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_SCORES_IN_CACHE = 2**18  # of one block: 1 MiB in fp32
_SCORES_WORTH_IT = 2**20  # fewer are in the cache anyway
_EPS = 1e-12  # that of F.normalize


def is_worth_blocking(query: Tensor, value: Tensor) -> bool:
    """Whether `blocked_cosine_attention` takes `[B, G, tokens, d]` like these, and pays off."""
    num_scores = query.shape[0] * query.shape[1] * query.shape[2] ** 2
    return (
        query.device.type == "cpu"
        and query.dtype == value.dtype == torch.float32
        and num_scores >= _SCORES_WORTH_IT
        and not torch.compiler.is_compiling()
    )


def blocked_cosine_attention(
    query: Tensor, key: Tensor, value: Tensor, scale: Tensor, bias: Tensor
) -> Tensor:
    """`softmax(scale q̂ k̂ᵀ + bias) v`, q̂ and k̂ of length 1, for `[B, G, tokens, d]` in fp32.

    `scale [G, 1, 1]`, `bias [G, tokens, tokens]`; G counts windows and heads. Differentiable
    once, to everything. Rounded like the formula, operation by operation.
    """
    attended: Tensor = _BlockedCosineAttention.apply(query, key, value, scale, bias)  # type: ignore[no-untyped-call]
    return attended


class _BlockedCosineAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: Tensor, bias: Tensor
    ) -> Tensor:
        query_length, key_length = (
            torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min_(_EPS) for x in (query, key)
        )
        query, key = query / query_length, key / key_length
        scaled = query * scale
        weights = value.new_empty(*value.shape[:2], value.shape[2], value.shape[2])
        attended = torch.empty_like(value)
        scores = _scratch(weights)
        for b, heads in _blocks(weights):
            block = scores[: heads.stop - heads.start]
            keys = key[b, heads].transpose(1, 2)
            torch.baddbmm(bias[heads], scaled[b, heads], keys, out=block)
            torch.softmax(block, -1, out=weights[b, heads])
            torch.bmm(weights[b, heads], value[b, heads], out=attended[b, heads])
        ctx.save_for_backward(query, key, value, scaled, scale, weights, query_length, key_length)
        return attended

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        query, key, value, scaled, scale, weights, query_length, key_length = ctx.saved_tensors
        gradient = gradient.contiguous()
        of_query, of_key, of_value = (torch.empty_like(x) for x in (query, key, value))
        of_bias = torch.zeros_like(weights[0])
        of_weights, of_scores = _scratch(weights), _scratch(weights)
        for b, heads in _blocks(weights):
            size = heads.stop - heads.start
            above, below = of_weights[:size], of_scores[:size]
            block, incoming = weights[b, heads], gradient[b, heads]
            torch.bmm(incoming, value[b, heads].transpose(1, 2), out=above)
            torch.bmm(block.transpose(1, 2), incoming, out=of_value[b, heads])
            torch.ops.aten._softmax_backward_data.out(
                above, block, -1, block.dtype, grad_input=below
            )
            torch.bmm(below, key[b, heads], out=of_query[b, heads])
            torch.bmm(below.transpose(1, 2), scaled[b, heads], out=of_key[b, heads])
            of_bias[heads] += below
        along = (of_query * query).sum(-1, keepdim=True)
        of_scale = along.sum(dim=(0, 2)).unsqueeze(-1)
        of_query = of_query.addcmul_(query, along, value=-1).mul_(scale).div_(query_length)
        along = (of_key * key).sum(-1, keepdim=True)
        of_key = of_key.addcmul_(key, along, value=-1).div_(key_length)
        return of_query, of_key, of_value, of_scale, of_bias


def _blocks(weights: Tensor) -> list[tuple[int, slice]]:
    """Image and heads of each block; those of one head follow one another, for its bias."""
    num_images, num_heads, tokens = weights.shape[:3]
    size = max(1, _SCORES_IN_CACHE // tokens**2)
    return [
        (b, slice(first, min(first + size, num_heads)))
        for first in range(0, num_heads, size)
        for b in range(num_images)
    ]


def _scratch(weights: Tensor) -> Tensor:
    """Room for one block of scores, used again for each."""
    size = max(1, _SCORES_IN_CACHE // weights.shape[2] ** 2)
    return weights.new_empty(min(size, weights.shape[1]), *weights.shape[2:])
