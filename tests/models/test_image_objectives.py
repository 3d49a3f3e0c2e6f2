"""Denoising, unrolled training, masked autoencoding, classification and segmentation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pelagos.models.objectives import Autoregressive, Classification, Masked, Segmentation
from pelagos.models.objectives.base import ratio_loss
from pelagos.models.registry import create_model


@dataclass
class Windows:
    frames: Tensor
    times: Tensor = field(default_factory=lambda: torch.zeros(0))
    present: Tensor = field(default_factory=lambda: torch.ones(0))
    sample_seed: Tensor = field(default_factory=lambda: torch.zeros(0))
    label: Tensor = field(default_factory=lambda: torch.zeros(0))


def windows(batch: int, frames: int, channels: int, side: int, seed: int = 0) -> Windows:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(batch, frames, channels, side, side, generator=generator)
    present = torch.ones(batch, channels, dtype=torch.bool)
    return Windows(values, torch.zeros(batch, frames), present, torch.arange(batch) + 10)


def loss_of(objective: Any, model: nn.Module, batch: Windows) -> Tensor:
    return ratio_loss(objective.errors(model, batch), objective.magnitudes(batch))


class Scale(nn.Module):
    """The last frame times a weight; writes down what it was given."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(value))
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> tuple[Tensor]:
        self.seen.append(x)
        return (self.weight * x[..., -1:, :],)


def test_noise_has_the_published_size_and_belongs_to_the_sample():
    batch = windows(2, 11, 1, 128)
    objective = Autoregressive(("a",), num_input_frames=10, noise_scale=5e-4)
    model = Scale(1.0)
    objective.errors(model, batch)
    inputs = batch.frames[:, :10].permute(0, 4, 3, 1, 2)
    noise = model.seen[0] - inputs
    # 5e-4 of the norm over 10 x 128 x 128 values is 5e-4 sqrt(163840) = 0.202 of their root mean
    # square; the deviation of that many draws is known to 0.2 %
    for sample in (0, 1):
        ratio = noise[sample].std() / inputs[sample].square().mean().sqrt()
        assert float(ratio) == pytest.approx(0.2024, rel=0.01)
    swapped = Windows(batch.frames.flip(0), batch.times, batch.present, batch.sample_seed.flip(0))
    objective.errors(model, swapped)
    assert torch.equal(model.seen[1].flip(0), model.seen[0])
    objective.errors(model.eval(), batch)
    assert torch.equal(model.seen[2], inputs)


@pytest.mark.parametrize("backpropagate", ["all", "last"])
def test_unrolled_steps_feed_the_models_own_frames_back(backpropagate: str):
    batch = windows(1, 4, 1, 4)
    for step in (2, 3):  # the truth doubles each step
        batch.frames[:, step] = 2 * batch.frames[:, step - 1]
    objective = Autoregressive(
        ("a",), num_input_frames=2, num_unrolled_steps=2, backpropagate=backpropagate
    )
    assert objective.frame_windows(5) == ((0, 1, 2, 3), (1, 2, 3, 4))
    exact = loss_of(objective, Scale(2.0), batch)
    assert exact.item() == pytest.approx(0.0, abs=1e-6)
    model = Scale(3.0)
    loss = loss_of(objective, model, batch)
    loss.backward()
    # first step: 3 for 2, error 1/2; second: 9 for 4, error 5/4
    assert loss.item() == pytest.approx(5 / 4 if backpropagate == "last" else (1 / 2 + 5 / 4) / 2)
    # d/dw of w²/4 is w/2; push-forward holds the first step's frame fixed: 3 w / 4
    slope = 3 / 4 if backpropagate == "last" else (1 / 2 + 3 / 2) / 2
    assert model.weight.grad is not None
    assert float(model.weight.grad) == pytest.approx(slope)
    assert torch.equal(model.seen[1][..., -1, :], 3 * model.seen[0][..., -1, :])


def mae(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    return create_model(
        "mae-nano", in_channels=2, out_channels=2, image_size=(16, 16), patch_size=(4, 4), **options
    )


def test_only_hidden_patches_count_and_each_sample_has_its_own():
    batch = windows(3, 1, 2, 16)
    objective = Masked(("a", "b"), mask_ratio=0.75, patch_size=4)
    kept = objective.draw_kept(batch)
    assert kept.sum(dim=1).tolist() == [4, 4, 4]
    assert not torch.equal(kept[0], kept[1])
    alone = Windows(batch.frames[1:2], sample_seed=batch.sample_seed[1:2])
    assert torch.equal(objective.draw_kept(alone)[0], kept[1])
    model = mae()
    errors = objective.errors(model, batch)
    torch.testing.assert_close(objective.errors(model, alone), errors[1:2])
    patches = batch.frames[:, 0].unfold(2, 4, 4).unfold(3, 4, 4)  # [B, C, 4, 4, 4, 4]
    hidden = ~kept.view(3, 1, 4, 4, 1, 1)
    raw = Masked(("a", "b"), mask_ratio=0.75, patch_size=4, normalize_patches=False)
    output = model(batch.frames[:, 0], kept)
    prediction = model.unpatchify(output.prediction).unfold(2, 4, 4).unfold(3, 4, 4)
    squares = ((prediction - patches) ** 2 * hidden).sum((1, 2, 3, 4, 5)) / (12 * 32)
    torch.testing.assert_close(raw.errors(model, batch)[:, 0], squares)


def test_local_predictions_are_trained_too():
    objective = Masked(("a", "b"), patch_size=4)
    model = mae(local_reconstruction=True, depth=3)
    loss_of(objective, model, windows(2, 1, 2, 16)).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


class Constant(nn.Module):
    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, image: Tensor) -> Any:
        return self.answer


def test_classification_is_cross_entropy_of_the_labels():
    batch = windows(3, 1, 2, 8)
    batch.label = torch.tensor([0, 2, 1])
    logits = torch.randn(3, 4)
    objective = Classification(("a", "b"), num_classes=4)
    assert objective.model_channels == (2, 4)
    loss = loss_of(objective, Constant(logits), batch)
    torch.testing.assert_close(loss, F.cross_entropy(logits, batch.label))
    batch.label = torch.tensor([0, 4, -1])
    with pytest.raises(ValueError, match=r"not all in 0 to num_classes\(4\) - 1"):
        objective.errors(Constant(logits), batch)


def test_segmentation_adds_dice_and_takes_maps_of_several_resolutions():
    batch = windows(2, 1, 2, 8)
    truth = torch.zeros(2, 8, 8, dtype=torch.long)
    truth[:, 2:6, 2:6] = 1
    batch.frames[:, 0, 1] = truth
    objective = Segmentation(("image", "label"), num_classes=2)
    assert objective.model_channels == (1, 2)
    sure = 50.0 * F.one_hot(truth, 2).permute(0, 3, 1, 2).float()
    assert float(loss_of(objective, Constant(sure), batch)) == pytest.approx(0.0, abs=1e-4)
    # all background: the foreground is certainly wrong: Dice 0, and 50 in a quarter of the points
    nothing = 50.0 * F.one_hot(torch.zeros_like(truth), 2).permute(0, 3, 1, 2).float()
    expected = 50.0 * 16 / 64 + 1.0
    assert float(loss_of(objective, Constant(nothing), batch)) == pytest.approx(expected, rel=1e-3)
    coarse = nothing[..., ::2, ::2]
    both = loss_of(objective, Constant((sure, coarse)), batch)
    assert float(both) == pytest.approx(expected * 0.5 / 1.5, rel=1e-3)
    batch.frames[0, 0, 1, 0, 0] = 7
    with pytest.raises(ValueError, match="label has classes from 0 to 7"):
        objective.errors(Constant(sure), batch)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Masked(("a",), mask_ratio=1.0), "mask_ratio=1.0 must be between 0 and 1"),
        (lambda: Segmentation(("a", "b")), "label_field='label' must be one of the fields"),
        (lambda: Autoregressive(("a",), num_unrolled_steps=0), "num_unrolled_steps=0"),
        (lambda: Autoregressive(("a",), noise_scale=-1.0), "noise_scale=-1.0"),
        (lambda: Autoregressive(("a",), backpropagate="some"), "backpropagate='some'"),
    ],
)
def test_options_that_make_no_sense_are_refused(make: Any, message: str):
    with pytest.raises(ValueError, match=message):
        make()
