"""Attention within windows: each way that it is computed against its formula."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pelagos.models.layers.blocked_attention import is_worth_blocking
from pelagos.models.layers.scot_layers import _attend


def attention_input(num_heads: int, tokens: int) -> list[Tensor]:
    """Query, key, value ``[2, heads, tokens, 8]``, scale and bias, of which one head is masked."""
    torch.manual_seed(0)
    parts = [torch.randn(2, num_heads, tokens, 8) for _ in range(3)]
    bias = torch.randn(num_heads, tokens, tokens)
    bias[0, :, tokens // 2 :] -= 100.0
    return [part.requires_grad_() for part in (*parts, 0.5 + torch.rand(num_heads, 1, 1), bias)]


def test_written_out_attention_equals_the_fused_form():
    query, key, value, scale, bias = attention_input(6, 16)
    normalized = nn.functional.normalize(query, dim=-1) * scale
    fused = nn.functional.scaled_dot_product_attention(
        normalized, nn.functional.normalize(key, dim=-1), value, bias.expand(2, -1, -1, -1), scale=1
    )
    torch.testing.assert_close(_attend(query, key, value, scale, bias), fused, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("num_heads", "tokens"), [(9, 256), (13, 289), (5, 576)])
def test_attention_in_blocks_is_attention(num_heads: int, tokens: int):
    """Blocks of several heads, the last of fewer; and of one head."""
    inputs = attention_input(num_heads, tokens)
    query, key, value, scale, bias = inputs
    assert is_worth_blocking(query, value)
    normalized = nn.functional.normalize(query, dim=-1) * scale
    scores = normalized @ nn.functional.normalize(key, dim=-1).transpose(-2, -1) + bias
    expected = torch.softmax(scores, dim=-1) @ value
    got = _attend(query, key, value, scale, bias)
    torch.testing.assert_close(got, expected, rtol=0.0, atol=0.0)
    weight = torch.randn_like(value)
    for mine, reference in zip(
        torch.autograd.grad((got * weight).sum(), inputs),
        torch.autograd.grad((expected * weight).sum(), inputs),
        strict=True,
    ):
        assert (mine - reference).abs().max() < 2e-6 * reference.abs().max()
