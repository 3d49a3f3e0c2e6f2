"""Fields without values at some points: losses against numpy's masked arrays, gradients, networks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pelagos.models.family import FrameOutput
from pelagos.models.layers.reversible_norm import ReversibleNorm
from pelagos.models.losses import SMALLEST_LABEL, find_loss
from pelagos.models.objectives import Autoregressive, Masked, create_objective, ratio_loss
from pelagos.models.registry import create_model

FIELDS = ("t", "u-x", "u-y", "mask-t", "mask-u")
MASKS = {"t": "mask-t", "u-x": "mask-u", "u-y": "mask-u"}
GROUPS = ((0,), (1, 2))
SIDE = 6


@dataclass
class Batch:
    frames: Tensor
    times: Tensor
    present: Tensor
    sample_seed: Tensor
    label: Tensor = field(default_factory=lambda: torch.zeros(0))

    def rows(self, at: slice) -> Batch:
        parts = (self.frames, self.times, self.present, self.sample_seed)
        return Batch(*(part[at] for part in parts))


def batch_of(count: int = 3, num_frames: int = 2, fill: float = 0.0, seed: int = 0) -> Batch:
    """Values of size one around 2; about a third is masked, by another mask in each frame."""
    rng = np.random.default_rng(seed)
    values = rng.normal(2, 1, (count, num_frames, 3, SIDE, SIDE))
    masks = rng.random((count, num_frames, 2, SIDE, SIDE)) > 0.35
    values[~masks[:, :, [0, 1, 1]]] = fill
    frames = torch.tensor(np.concatenate([values, masks], axis=2), dtype=torch.float32)
    return Batch(
        frames,
        torch.arange(num_frames).expand(count, -1).float(),
        torch.ones(count, 5, dtype=torch.bool),
        torch.arange(count),
    )


def masked_array(values: Tensor, valid: Tensor) -> np.ma.MaskedArray[Any, Any]:
    return np.ma.masked_array(values.detach().double().numpy(), mask=~valid.numpy())


@pytest.mark.parametrize("name", ["ratio", "relative_l1", "relative_l2", "nrmse", "vrmse"])
@pytest.mark.parametrize("p", [1, 2])
def test_losses_are_those_of_numpys_masked_arrays(name: str, p: int) -> None:
    rng = torch.Generator().manual_seed(1)
    label = 2 + torch.randn(4, 3, SIDE, SIDE, generator=rng)
    prediction = torch.randn(4, 3, SIDE, SIDE, generator=rng)
    valid = torch.rand(4, 3, SIDE, SIDE, generator=rng) > 0.4
    present = torch.ones(4, 3, dtype=torch.bool)
    loss = find_loss(name, p)
    errors = loss.errors(prediction - label, label, present, GROUPS, valid)
    magnitudes = loss.magnitudes(label, present, GROUPS, valid)
    truth = masked_array(label, valid)
    off = masked_array(prediction, valid) - truth
    for index, channels in enumerate(GROUPS):
        at = list(channels)
        y, d = truth[:, at], off[:, at]
        axes = (1, 2, 3)
        if name == "ratio":
            count = y.count(axis=axes)
            wanted = (abs(d) ** p).sum(axes)
            wanted_magnitude = (abs(y) ** p).sum(axes) + 1e-10 * count
        else:
            deviations = y - y.mean(axis=(2, 3), keepdims=True)
            wanted = {
                "relative_l1": abs(d).sum(axes) / abs(y).sum(axes),
                "relative_l2": np.sqrt((d**2).sum(axes) / (y**2).sum(axes)),
                "nrmse": np.sqrt((d**2).mean(axes) / (y**2).mean(axes)),
                "vrmse": np.sqrt((d**2).mean(axes) / (deviations**2).mean(axes)),
            }[name]
            wanted_magnitude = np.ones(4)
        np.testing.assert_allclose(errors[:, index].numpy(), np.asarray(wanted), rtol=1e-5)
        np.testing.assert_allclose(
            magnitudes[:, index].numpy(), np.asarray(wanted_magnitude), rtol=1e-5
        )


def test_thresholds_and_floors_count_valid_points_alone() -> None:
    """One valid point of a hundred, of twice the smallest size: over all points it would vanish."""
    label = torch.full((1, 1, 10, 10), 7.0)
    label[0, 0, 0, 0] = 2 * SMALLEST_LABEL
    valid = torch.zeros(1, 1, 10, 10, dtype=torch.bool)
    valid[0, 0, 0, 0] = True
    present = torch.ones(1, 1, dtype=torch.bool)
    ratio = find_loss("ratio")
    found = ratio.magnitudes(label, present, ((0,),), valid)
    assert found.item() == pytest.approx(2 * SMALLEST_LABEL + 1e-10, rel=1e-6)
    assert find_loss("relative_l2").magnitudes(label, present, ((0,),), valid).item() == 1
    # one point has no variance, whatever the others hold
    assert find_loss("vrmse").magnitudes(label, present, ((0,),), valid).item() == 0
    nothing = torch.zeros_like(valid)
    for name in ("ratio", "relative_l1", "relative_l2", "vrmse"):
        loss = find_loss(name)
        for found in (
            loss.magnitudes(label, present, ((0,),), nothing),
            loss.errors(label, label, present, ((0,),), nothing),
        ):
            assert found.item() == 0


class Mix(nn.Module):
    """A convolution over all channels: each output depends on its neighbours' every input."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Conv2d(5, 5, 3, padding=1)
        self.seen: list[Tensor] = []

    def forward(self, frame: Tensor, time: Tensor) -> FrameOutput:
        self.seen.append(frame.detach())
        return FrameOutput(self.net(frame))


class MixWindow(Mix):
    def forward(self, x: Tensor) -> tuple[Tensor]:  # type: ignore[override]
        self.seen.append(x.detach())
        frame = x.mean(dim=-2).permute(0, 3, 2, 1)
        return (self.net(frame).permute(0, 3, 2, 1)[..., None, :],)


OBJECTIVES: list[tuple[str, dict[str, Any]]] = [
    ("next_step", {}),
    ("next_step", {"loss": "vrmse", "normalize_samples": True}),
    ("all2all", {"loss": "relative_l1"}),
    ("autoregressive", {"num_input_frames": 2, "num_unrolled_steps": 2}),
    (
        "autoregressive",
        {"num_input_frames": 2, "noise_scale": 0.1, "normalize_samples": True, "loss": "vrmse"},
    ),
]


def made(name: str, options: dict[str, Any]) -> tuple[Any, Mix, int]:
    objective = create_objective(name, FIELDS, masks=MASKS, **options)
    if name != "autoregressive":
        return objective, Mix(), 2
    return objective, MixWindow(), 2 + options.get("num_unrolled_steps", 1)


@pytest.mark.parametrize(("name", "options"), OBJECTIVES)
def test_what_masked_points_hold_changes_no_bit(name: str, options: dict[str, Any]) -> None:
    found = []
    for fill in (0.0, -9999.0, 3e4, float("nan")):
        objective, model, frames = made(name, options)
        batch = batch_of(num_frames=frames, fill=fill)
        errors, magnitudes = objective.errors(model, batch), objective.magnitudes(batch)
        ratio_loss(errors, magnitudes).backward()
        forecast = objective.predict(
            model, batch.frames[:, : objective.input_frames], torch.ones(3)
        )
        found.append([errors, magnitudes, model.net.weight.grad, forecast, *model.seen])
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))
    assert objective.group_names == (
        ("t", "u") if name != "autoregressive" else ("t", "u-x", "u-y")
    )


@pytest.mark.parametrize(("name", "options"), OBJECTIVES[:4])
def test_the_gradient_is_zero_at_masked_points_and_only_there(
    name: str, options: dict[str, Any]
) -> None:
    objective, _, frames = made(name, options)
    batch = batch_of(num_frames=frames, fill=5.0)
    prediction = torch.randn(3, 5, SIDE, SIDE, requires_grad=True)
    label = batch.frames[:, -1]
    objective._errors(prediction, label, batch).sum().backward()
    assert prediction.grad is not None
    valid = label[:, [3, 4, 4]] == 1
    assert bool((prediction.grad[:, :3][~valid] == 0).all())
    assert bool((prediction.grad[:, :3][valid] != 0).all())
    assert bool((prediction.grad[:, 3:] == 0).all())  # masks are given


@pytest.mark.parametrize(("name", "options"), OBJECTIVES)
def test_a_batch_may_be_split_anywhere(name: str, options: dict[str, Any]) -> None:
    objective, model, frames = made(name, options)
    batch = batch_of(count=4, num_frames=frames)
    batch.frames[1, :, 3:] = 0.0  # a sample without any value
    whole = objective.errors(model, batch), objective.magnitudes(batch)
    parts = [batch.rows(slice(i, i + 1)) for i in range(4)]
    split = (
        torch.cat([objective.errors(model, part) for part in parts]),
        torch.cat([objective.magnitudes(part) for part in parts]),
    )
    for a, b in zip(whole, split, strict=True):
        torch.testing.assert_close(a, b)
        assert bool((a[1] == 0).all())  # it does not count
    kept = [0, 2, 3]
    without = Batch(
        *(v[kept] for v in (batch.frames, batch.times, batch.present, batch.sample_seed))
    )
    torch.testing.assert_close(
        ratio_loss(*whole),
        ratio_loss(objective.errors(model, without), objective.magnitudes(without)),
    )


def test_networks_see_zeros_and_whole_masks_and_noise_spares_them() -> None:
    objective = Autoregressive(
        FIELDS, num_input_frames=2, noise_scale=0.5, normalize_samples=True, masks=MASKS
    )
    batch, model = batch_of(num_frames=3, fill=4.0), MixWindow()
    objective.errors(model, batch)
    seen = model.seen[0].permute(0, 3, 4, 2, 1)  # [B, T, C, y, x]
    masks = batch.frames[:, :2, 3:]
    assert torch.equal(seen[:, :, 3:], masks)
    valid = masks[:, :, [0, 1, 1]] == 1
    assert bool((seen[:, :, :3][~valid] == 0).all())
    assert bool((seen[:, :, :3][valid] != 0).all())
    # RevIN's statistics are those of the points with values
    values = np.ma.masked_array(seen[:, :, :3].double().numpy(), mask=~valid.numpy())
    np.testing.assert_allclose(np.asarray(values.mean(axis=(1, 3, 4))), 0, atol=1e-6)
    np.testing.assert_allclose(np.asarray(values.std(axis=(1, 3, 4))), 1, rtol=1e-4)


def test_the_norm_of_all_points_is_the_norm_without_a_mask() -> None:
    frames = batch_of().frames
    everywhere = torch.ones_like(frames, dtype=torch.bool)
    plain, masked = ReversibleNorm.of(frames), ReversibleNorm.of(frames, everywhere)
    torch.testing.assert_close(plain.mean, masked.mean)
    torch.testing.assert_close(plain.scale, masked.scale)


def test_masks_are_handed_on_and_never_forecast() -> None:
    objective = create_objective("next_step", FIELDS, masks=MASKS)
    batch = batch_of()
    forecast = objective.predict(Mix(), batch.frames[:, :1], torch.ones(3))
    assert torch.equal(forecast[:, 3:], batch.frames[:, 0, 3:])
    with pytest.raises(ValueError, match="'all' forecasts mask-t, .* leave it out of field_groups"):
        create_objective("next_step", FIELDS, masks=MASKS, field_groups={"all": FIELDS[:4]})
    with pytest.raises(ValueError, match="loss 'spectral' takes modes of whole grids, but t, u-x"):
        create_objective("next_step", FIELDS, masks=MASKS, loss="spectral")
    with pytest.raises(ValueError, match="masks name land; the model's fields are t, u-x"):
        create_objective("next_step", FIELDS, masks={"t": "land"})
    with pytest.raises(ValueError, match="mask-t is a mask and has a mask itself"):
        create_objective("next_step", FIELDS, masks={"t": "mask-t", "mask-t": "mask-u"})


@pytest.mark.parametrize("normalize", [True, False])
def test_masked_autoencoding_leaves_out_points_without_values(normalize: bool) -> None:
    torch.manual_seed(0)
    model = create_model(
        "mae-nano", in_channels=5, out_channels=5, image_size=(8, 8), patch_size=(4, 4)
    )
    objective = Masked(
        FIELDS, mask_ratio=0.5, patch_size=4, normalize_patches=normalize, masks=MASKS
    )
    found = []
    for fill in (0.0, 1e6):
        rng = np.random.default_rng(5)
        values, masks = rng.normal(2, 1, (2, 3, 8, 8)), rng.random((2, 2, 8, 8)) > 0.4
        masks[1, :, :4] = masks[1, :, 4:] = False  # the second sample has no value at all
        values[~masks[:, [0, 1, 1]]] = fill
        frames = torch.tensor(np.concatenate([values, masks], axis=1), dtype=torch.float32)
        batch = Batch(frames[:, None], torch.zeros(2, 1), torch.ones(2, 5).bool(), torch.arange(2))
        found.append((objective.errors(model, batch), objective.magnitudes(batch)))
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][1].tolist() == [[1], [0]]
    assert found[0][0][1].item() == 0
    # by numpy, patch by patch
    keep = objective.draw_kept(batch)
    seen = torch.tensor(np.concatenate([np.where(masks[:, [0, 1, 1]], values, 0), masks], axis=1))
    prediction = model.unpatchify(model(seen.float(), keep).prediction).detach().double().numpy()
    squares = []
    for patch in range(4):
        if keep[0, patch]:
            continue
        rows = slice(4 * (patch // 2), 4 * (patch // 2) + 4)
        columns = slice(4 * (patch % 2), 4 * (patch % 2) + 4)
        there = masks[0, [0, 1, 1], rows, columns]
        target = values[0, :, rows, columns][there]
        if normalize:
            target = (target - target.mean()) / np.sqrt(target.var(ddof=1) + 1e-6)
        squares.append((prediction[0, :3, rows, columns][there] - target) ** 2)
    assert found[0][0][0].item() == pytest.approx(np.concatenate(squares).mean(), rel=1e-4)


def test_local_reconstruction_says_that_it_cannot() -> None:
    model = create_model(
        "mae-nano",
        in_channels=5,
        out_channels=5,
        image_size=(16, 16),
        patch_size=(4, 4),
        local_reconstruction=True,
        depth=3,
    )
    batch = batch_of(count=1, num_frames=1)
    batch.frames = torch.ones(1, 1, 5, 16, 16)
    with pytest.raises(ValueError, match="local_reconstruction has no targets for t, u-x"):
        Masked(FIELDS, patch_size=4, masks=MASKS).errors(model, batch)
