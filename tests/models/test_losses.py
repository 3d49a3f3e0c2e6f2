"""Losses of fields: closed forms, weights, and what does not count."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pelagos.models.losses import (
    LOSSES,
    VRMSE,
    Loss,
    RelativeL1,
    RelativeL2,
    Spectral,
    find_loss,
    group_mean,
)
from pelagos.models.objectives import NextStep, Steady, create_objective, ratio_loss

GROUPS = ((0,), (1, 2))
PRESENT = torch.ones(2, 3, dtype=torch.bool)


def fields(seed: int) -> Tensor:
    return torch.randn(2, 3, 8, 6, generator=torch.Generator().manual_seed(seed))


def loss_of(loss: Loss, prediction: Tensor, label: Tensor, present: Tensor = PRESENT) -> Tensor:
    errors = loss.errors(prediction - label, label, present, GROUPS)
    return errors / loss.magnitudes(label, present, GROUPS)


def test_relative_errors_are_those_of_their_definition():
    label, prediction = fields(0), fields(1)
    difference = prediction - label
    for loss, p in ((RelativeL1(), 1), (RelativeL2(), 2)):
        norm = torch.linalg.vector_norm
        expected = torch.stack(
            [
                norm(difference[:, list(g)], ord=p, dim=(1, 2, 3))
                / norm(label[:, list(g)], ord=p, dim=(1, 2, 3))
                if p == 2
                else difference[:, list(g)].abs().sum((1, 2, 3))
                / label[:, list(g)].abs().sum((1, 2, 3))
                for g in GROUPS
            ],
            dim=-1,
        )
        torch.testing.assert_close(loss_of(loss, prediction, label), expected)


def test_vrmse_of_the_mean_is_one_and_ignores_a_common_shift():
    label = fields(0)
    mean = label.mean(dim=(2, 3), keepdim=True).expand_as(label)
    torch.testing.assert_close(loss_of(VRMSE(), mean, label), torch.ones(2, 2))
    prediction = fields(1)
    shifted = loss_of(VRMSE(), prediction + 100, label + 100)
    # adding 100 rounds values of size 1 at 4e-6
    torch.testing.assert_close(shifted, loss_of(VRMSE(), prediction, label), rtol=1e-4, atol=0)
    assert not torch.allclose(
        loss_of(RelativeL2(), prediction + 100, label + 100),
        loss_of(RelativeL2(), prediction, label),
        rtol=0.5,
    )


def test_spectral_errors_weigh_a_mode_by_its_wave_number():
    _, x = torch.meshgrid(torch.arange(8) / 8, torch.arange(8) / 8, indexing="ij")
    waves = [torch.cos(2 * torch.pi * k * x) for k in (1, 3)]
    label = waves[0][None, None]
    present = torch.ones(1, 1, dtype=torch.bool)
    errors = []
    for wave in waves:
        part = Spectral().errors(0.1 * wave[None, None], label, present, ((0,),))
        errors.append(float(part / Spectral().magnitudes(label, present, ((0,),))))
    # mode 1 against itself: 0.1; mode 3: sqrt((1 + 9) / (1 + 1)) times as much
    assert errors == pytest.approx([0.1, 0.1 * 5**0.5], rel=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_absent_fields_and_vanishing_labels_do_not_reach_the_gradient(name: str):
    label, present = fields(0), PRESENT.clone()
    present[0, 0] = False
    label[1, 1:] = 0.0
    prediction = fields(1).requires_grad_()
    loss = find_loss(name)
    errors = loss.errors(prediction - label, label, present, GROUPS)
    ratio_loss(errors, loss.magnitudes(label, present, GROUPS)).backward()
    assert prediction.grad is not None
    assert prediction.grad.isfinite().all()
    assert torch.equal(prediction.grad[0, 0], torch.zeros(8, 6))
    assert prediction.grad[0, 1:].abs().sum() > 0


def test_an_unknown_loss_names_the_closest():
    with pytest.raises(ValueError, match="unknown loss 'vmse'; closest: vrmse"):
        create_objective("all2all", ["a"], loss="vmse")


@dataclass
class Windows:
    frames: Tensor
    times: Tensor
    present: Tensor


class Zero(nn.Module):
    @dataclass
    class Answer:
        output: Tensor

    def forward(self, frame: Tensor, time: Tensor) -> Answer:
        return self.Answer(0.5 * frame)


def test_field_weights_make_a_weighted_mean_of_the_groups():
    batch = Windows(
        fields(0)[:, None].expand(-1, 2, -1, -1, -1).clone(), torch.zeros(2, 2), PRESENT
    )
    batch.frames[:, 0, 0] *= 4  # group a is wrong by all of itself, b and c by half

    def loss(**options: object) -> float:
        groups = {"a": ["a"], "bc": ["b", "c"]}
        objective = NextStep(("a", "b", "c"), groups, **options)  # type: ignore[arg-type]
        errors = objective.errors(Zero(), batch)
        return float(ratio_loss(errors, objective.magnitudes(batch)))

    only_a, only_bc = loss(field_weights={"bc": 0.0}), loss(field_weights={"a": 0.0})
    assert only_a != pytest.approx(only_bc)
    assert loss() == pytest.approx((only_a + only_bc) / 2)
    weighted = loss(field_weights={"a": 3.0})
    assert weighted == pytest.approx((3 * only_a + only_bc) / 4)
    with pytest.raises(ValueError, match="field_weights names c; the field groups are a, bc"):
        loss(field_weights={"c": 1.0})


def test_a_steady_problem_is_its_first_and_its_last_frame():
    objective = Steady(("source", "solution"), {"solution": ["solution"]})
    assert objective.frame_windows(2) == ((0, 1),)
    assert objective.group_names == ("solution",)
    with pytest.raises(ValueError, match=r"num_frames\(1\) must be 2"):
        objective.frame_windows(1)


def plain_mean(loss: str, prediction: Tensor, label: Tensor, channels: list[int]) -> float:
    """Of one group, by numpy, from the definitions."""
    p, q = (v.double().numpy()[:, channels].reshape(len(v), -1) for v in (prediction, label))
    if loss == "ratio":
        return float(np.abs(p - q).sum() / np.abs(q).sum())
    if loss == "relative_l1":
        return float(np.mean(np.abs(p - q).sum(1) / np.abs(q).sum(1)))
    return float(np.mean(np.linalg.norm(p - q, axis=1) / np.linalg.norm(q, axis=1)))


@pytest.mark.parametrize("name", ["ratio", "relative_l1", "relative_l2"])
def test_a_group_without_samples_is_left_out_of_loss_and_gradient(name: str):
    """Not counted as a perfect forecast, which would halve the loss of the other group."""
    label, present = fields(0), PRESENT.clone()
    present[:, 1:] = False
    label[:, 1:] = 0.0
    prediction = fields(1).requires_grad_()
    loss = find_loss(name)
    magnitudes = loss.magnitudes(label, present, GROUPS)
    assert magnitudes[:, 1].tolist() == [0.0, 0.0]
    value = ratio_loss(loss.errors(prediction - label, label, present, GROUPS), magnitudes)
    assert float(value.detach()) == pytest.approx(
        plain_mean(name, prediction.detach(), label, [0]), rel=1e-6
    )
    value.backward()
    assert prediction.grad is not None
    assert prediction.grad[:, 1:].abs().max() == 0
    assert prediction.grad[:, 0].abs().min() > 0


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("constant", [0.0, 1e-9, 0.1])
def test_a_field_of_one_value_does_not_outweigh_the_others(name: str, constant: float):
    """0.1 is no sum of powers of two: its mean over 48 points is not 0.1 in float32."""
    label = fields(0)
    label[:, 1:] = constant
    prediction = label + 0.01 * fields(1)
    loss = find_loss(name)
    errors = loss.errors(prediction - label, label, PRESENT, GROUPS).sum(dim=0)
    magnitudes = loss.magnitudes(label, PRESENT, GROUPS).sum(dim=0)
    value = float(ratio_loss(errors[None], magnitudes[None]))
    assert 0.001 < value < 0.2
    is_relative_to_itself = constant == 0.1 and name != "vrmse"
    assert (magnitudes > 0).tolist() == [True, is_relative_to_itself]


def test_raw_fields_vanish_only_where_they_are_zero():
    """Without normalisation 1e-9 may be the size of everything."""
    label = 1e-9 * fields(0)
    for name in ("ratio", "relative_l1", "relative_l2", "vrmse"):
        magnitudes = find_loss(name, smallest_label=0.0).magnitudes(label, PRESENT, GROUPS)
        assert (magnitudes > 0).all()
        assert (find_loss(name).magnitudes(label, PRESENT, GROUPS) == 0).all()


def test_weights_are_of_the_groups_that_count():
    errors, magnitudes = torch.tensor([2.0, 9.0, 4.0]), torch.tensor([4.0, 0.0, 2.0])
    assert float(group_mean(errors, magnitudes)) == (0.5 + 2.0) / 2
    weights = torch.tensor([3.0, 5.0, 1.0])
    weighted = group_mean(errors * weights, magnitudes, weights)
    assert float(weighted) == (3 * 0.5 + 1 * 2.0) / 4
    assert float(group_mean(errors, torch.zeros(3))) == 0.0


@pytest.mark.parametrize("name", LOSSES)
def test_a_perfect_forecast_of_one_group_has_a_gradient_of_zero(name: str):
    """A norm has an infinite slope at 0, which must reach no weight."""
    label = fields(0)
    prediction = fields(1)
    prediction[0, 0] = label[0, 0]
    prediction.requires_grad_()
    loss = find_loss(name)
    errors = loss.errors(prediction - label, label, PRESENT, GROUPS)
    assert float(errors.detach()[0, 0]) == 0.0
    ratio_loss(errors, loss.magnitudes(label, PRESENT, GROUPS)).backward()
    assert prediction.grad is not None
    assert torch.equal(prediction.grad[0, 0], torch.zeros(8, 6))
    assert prediction.grad[1, 0].abs().min() > 0


@pytest.mark.parametrize("name", LOSSES)
def test_only_spectral_errors_need_a_whole_grid(name: str):
    assert find_loss(name).needs_whole_grid == (name == "spectral")


def test_powers_of_the_ratio():
    """Σ|e|^p / (Σ|u|^p + 1e-10 count), by numpy."""
    label, difference = fields(0), 0.1 * fields(1)
    for p in (1, 2):
        loss = find_loss("ratio", p)
        e, u = (np.abs(v.double().numpy()) ** p for v in (difference, label))
        for g, channels in enumerate(GROUPS):
            size = u[:, list(channels)].sum((1, 2, 3)) + 1e-10 * len(channels) * 48
            found = loss.magnitudes(label, PRESENT, GROUPS)[:, g]
            np.testing.assert_allclose(found.numpy(), size, rtol=1e-6)
            found = loss.errors(difference, label, PRESENT, GROUPS)[:, g]
            np.testing.assert_allclose(
                found.numpy(), e[:, list(channels)].sum((1, 2, 3)), rtol=1e-5
            )
