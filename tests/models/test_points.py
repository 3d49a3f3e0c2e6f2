"""GNOT: what is given at points, in any order and padded, and answered at any others."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pelagos.models.gnot import GNOT, GNOTConfig, NormalizedAttention, grid_points
from pelagos.models.objectives import AllToAll

SIZES = {"embed_dim": 16, "depth": 2, "num_heads": 2, "num_experts": 2, "num_frequencies": 2}
TIME = torch.tensor([0.3, 0.7])


@pytest.fixture(name="model")
def make_model() -> GNOT:
    torch.manual_seed(0)
    return GNOT(GNOTConfig(**SIZES, in_channels=3, out_channels=2, image_size=8))


def cloud(points: int = 9, queries: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (
        torch.rand(2, points, 2, generator=generator),
        torch.randn(2, points, 3, generator=generator),
        torch.rand(2, queries, 2, generator=generator),
    )


def same(got: Tensor, expected: Tensor) -> None:
    # sums of nine terms in another order: a few times 6e-8 of values around 1
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


def test_normalised_attention_is_its_formula():
    attention = NormalizedAttention(8, num_heads=2)
    x, source = torch.randn(1, 5, 8), torch.randn(1, 6, 8)
    heads = []
    for head in (slice(0, 4), slice(4, 8)):
        query = attention.query(x)[0, :, head].softmax(dim=-1)
        key = attention.key(source)[0, :, head].softmax(dim=-1)
        weights = query @ key.T  # every pair, which the layer never forms
        heads.append(
            weights / weights.sum(dim=1, keepdim=True) @ attention.value(source)[0, :, head]
        )
    same(attention(x, source, None)[0], attention.projection(torch.cat(heads, dim=-1)))


def test_the_order_of_the_input_points_does_not_matter(model: GNOT):
    points, values, queries = cloud()
    order = torch.randperm(9, generator=torch.Generator().manual_seed(2))
    expected = model.forward_points(points, values, queries, TIME)
    same(model.forward_points(points[:, order], values[:, order], queries, TIME), expected)
    # but which value stands where does
    shuffled = model.forward_points(points[:, order], values, queries, TIME)
    assert (shuffled - expected).abs().max() > 1e-3


def test_answers_follow_their_queries(model: GNOT):
    points, values, queries = cloud()
    order = torch.randperm(7, generator=torch.Generator().manual_seed(2))
    expected = model.forward_points(points, values, queries, TIME)
    same(model.forward_points(points, values, queries[:, order], TIME), expected[:, order])
    assert (expected[:, order] - expected).abs().max() > 1e-3


@pytest.mark.parametrize("filler", [0.0, 5.0, float("nan")])
def test_padding_changes_nothing(model: GNOT, filler: float):
    points, values, queries = cloud()

    def padded(x: Tensor) -> Tensor:
        return torch.cat((x, x.new_full((2, 4, x.shape[-1]), filler)), dim=1)

    valid, valid_queries = torch.arange(13).expand(2, -1) < 9, torch.arange(11).expand(2, -1) < 7
    expected = model.forward_points(points, values, queries, TIME)
    inputs = (padded(points), padded(values), padded(queries), TIME, valid, valid_queries)
    got = model.forward_points(*inputs)[:, :7]
    same(got, expected)
    got.square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    # and a point that is not padding does change the answer
    with_more = model.forward_points(*(x.nan_to_num(5.0) for x in inputs[:4]), valid | True)[:, :7]
    assert (with_more - expected).abs().max() > 1e-3


def test_a_grid_is_points(model: GNOT):
    frame = torch.randn(2, 3, 4, 6)
    output = model(frame, TIME).output
    assert output.shape == (2, 2, 4, 6)
    points = grid_points((4, 6), frame).expand(2, -1, -1)
    values = frame.flatten(2).transpose(1, 2)
    one = model.forward_points(points, values, points, TIME)
    same(output[:, :, 1, 2], one[:, 1 * 6 + 2])
    assert torch.equal(points[0, 1 * 6 + 2], torch.tensor([1 / 3, 2 / 5]))


def test_time_place_and_all_values_matter(model: GNOT):
    frame = torch.randn(2, 3, 4, 4, requires_grad=True)
    early, late = model(frame, TIME).output, model(frame, TIME + 0.5).output
    assert (early - late).abs().max() > 1e-4
    early.square().sum().backward()
    assert (frame.grad.abs() > 0).all()
    assert early.std(dim=(2, 3)).min() > 1e-4


def test_it_trains_on_gridded_frames_with_all2all(model: GNOT):
    frames = torch.randn(2, 1, 3, 4, 4)
    prediction = AllToAll(("a", "b", "c"), time_scale=2.0).predict(model, frames, TIME * 2)
    same(prediction, model(frames[:, 0], TIME).output)


def test_shapes_that_do_not_fit_are_all_named(model: GNOT):
    points, values, queries = cloud()
    with pytest.raises(
        ValueError, match=r"values of shape \(2, 9, 2\), needs \(2, 9, 3\); time of"
    ):
        model.forward_points(points, values[..., :2], queries, TIME[:1])
    with pytest.raises(ValueError, match=r"valid of shape \(2, 8\), needs \(2, 9\)"):
        model.forward_points(points, values, queries, TIME, torch.ones(2, 8, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"needs \[batch, 3, \*grid\] with 2 axes"):
        model(torch.zeros(2, 3, 4), TIME)
    with pytest.raises(
        ValueError, match="embed_dim=16 must be a multiple of num_heads=5: 15 or 20"
    ):
        GNOTConfig(embed_dim=16, num_heads=5)
