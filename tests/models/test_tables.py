"""Tables are made once per device, never leak out of tracing or inference, and are bounded."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from pelagos.models.layers.tables import _KEPT, kept


@pytest.fixture(autouse=True)
def nothing_kept() -> Iterator[None]:
    _KEPT.clear()
    yield
    _KEPT.clear()


def squares(length: int, device: torch.device) -> Tensor:
    return torch.arange(float(length), device=device).square()


def test_a_table_is_made_once_per_arguments():
    like = torch.zeros(1)
    assert kept(squares, 3, like=like) is kept(squares, 3, like=like)
    assert kept(squares, 4, like=like).tolist() == [0, 1, 4, 9]
    assert len(_KEPT) == 2


def test_a_table_made_in_inference_serves_training():
    with torch.inference_mode():
        table = kept(squares, 3, like=torch.zeros(1))
    weight = torch.ones(3, requires_grad=True)
    (kept(squares, 3, like=weight.detach()) * weight).sum().backward()
    assert torch.equal(weight.grad, table)


def test_tables_without_values_are_not_kept():
    assert kept(squares, 3, like=torch.zeros(1, device="meta")).is_meta
    with FakeTensorMode():
        assert kept(squares, 3, like=torch.zeros(1)).shape == (3,)
    assert not _KEPT


def test_the_oldest_tables_go():
    for length in range(100):
        kept(squares, length, like=torch.zeros(1))
    assert len(_KEPT) == 64
    assert (squares, (99,), torch.device("cpu")) in _KEPT
