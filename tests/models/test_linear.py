"""Linear layers by oneDNN: values and gradients are those of torch's own, and are counted."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from pelagos.models.layers import linear as module
from pelagos.models.layers.linear import Linear, linear

pytestmark = pytest.mark.skipif(not module._HAS_ONEDNN, reason="torch is built without oneDNN")


@pytest.fixture(autouse=True)
def on_any_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN is right without AVX-512 too, only not faster."""
    monkeypatch.setattr(module, "_HAS_AVX512", True)


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


# few rows; more rows than columns, which come out the other way round; one row without an axis
@pytest.mark.parametrize(
    ("shape", "out"),
    [((4, 3, 8), 24), ((5, 40, 8), 24), ((5, 40, 24), 8), ((961, 2), 64), ((6,), 4)],
)
@pytest.mark.parametrize("has_bias", [True, False])
def test_values_and_gradients_are_those_of_torch(
    shape: tuple[int, ...], out: int, has_bias: bool
) -> None:
    exact = [draw(*shape), draw(out, shape[-1]), *([draw(out)] if has_bias else [])]
    given = [t.float().requires_grad_() for t in exact]
    product = linear(*given)
    assert product.grad_fn is not None
    assert "_Linear" in type(product.grad_fn).__name__
    towards = draw(*product.shape)
    expected = [F.linear(*(t.requires_grad_() for t in exact))]
    expected += torch.autograd.grad(expected[0], exact, towards)
    actual = [product, *torch.autograd.grad(product, given, towards.float())]
    for ours, reference in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, reference.float(), rtol=1e-5, atol=1e-5)


def test_strides_of_any_kind_are_taken() -> None:
    x, weight = draw(3, 8, 5).float().transpose(1, 2), draw(8, 6).float().T
    torch.testing.assert_close(linear(x, weight), F.linear(x, weight))
    spread = draw(6).float().requires_grad_()
    total = linear(x, weight, spread).sum()  # a gradient whose strides are 0
    total.backward()  # type: ignore[no-untyped-call]
    assert spread.grad is not None
    torch.testing.assert_close(spread.grad, torch.full((6,), 15.0))


def test_gradients_of_frozen_weights_are_not_made() -> None:
    layer = Linear(4, 3).requires_grad_(False)
    x = draw(2, 4).float().requires_grad_()
    layer(x).sum().backward()
    assert x.grad is not None
    assert layer.weight.grad is None


def test_gradients_have_gradients() -> None:
    x, weight = draw(2, 4).float().requires_grad_(), draw(3, 4).float().requires_grad_()

    def curvature(product: Tensor) -> Tensor:
        (first,) = torch.autograd.grad(product.square().sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), weight)[0]

    torch.testing.assert_close(curvature(linear(x, weight)), curvature(F.linear(x, weight)))


def test_autocast_and_other_precisions_take_torchs_way() -> None:
    layer = Linear(4, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.ones(2, 4)).dtype == torch.bfloat16
    assert layer.double()(torch.ones(2, 4, dtype=torch.float64)).dtype == torch.float64
    assert Linear(4, 3, device="meta")(torch.ones(2, 4, device="meta")).is_meta


def test_its_operations_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def count() -> int:
        x, layer = torch.ones(5, 7, 8, requires_grad=True), Linear(8, 24)
        with FlopCounterMode(display=False) as counter:
            layer(x).sum().backward()
        return int(counter.get_total_flops())

    ours = count()
    monkeypatch.setattr(module, "_HAS_AVX512", False)
    assert ours == count() == 3 * 2 * 35 * 8 * 24
