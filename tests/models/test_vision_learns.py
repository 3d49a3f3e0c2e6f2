"""The vision families learn: 1,797 handwritten digits of 8 by 8 pixels, seconds on one core."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor

from pelagos.models.registry import create_model

NUM_TRAINING = 1400
DIGITS = {"image_size": (8, 8), "patch_size": (2, 2), "in_channels": 1}


@pytest.fixture(name="digits", scope="module")
def load() -> tuple[Tensor, Tensor]:
    """Images ``[1797, 1, 8, 8]`` from 0 to 1 and their labels; the data set is already shuffled."""
    images, labels = load_digits(return_X_y=True)
    pixels = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    return pixels, torch.tensor(labels)


def train(
    model: torch.nn.Module, loss_of: Callable[[Tensor], Tensor], steps: int, lr: float
) -> None:
    """AdamW on batches of 64 from a seed of their own; the rate rises briefly, then falls to 0."""
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, steps, pct_start=0.15)
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(torch.randint(NUM_TRAINING, (64,), generator=generator)).backward()
        optimizer.step()
        schedule.step()


def test_a_vit_reads_digits(digits: tuple[Tensor, Tensor]):
    images, labels = digits
    torch.manual_seed(0)
    model = create_model("vit-nano", **DIGITS, out_channels=10)
    train(model, lambda rows: F.cross_entropy(model(images[rows]), labels[rows]), 150, 3e-3)
    with torch.no_grad():
        right = (model(images[NUM_TRAINING:]).argmax(dim=1) == labels[NUM_TRAINING:]).float().mean()
    majority = labels[NUM_TRAINING:].bincount().max() / len(labels[NUM_TRAINING:])
    assert majority < 0.15
    assert right > majority + 0.6


def test_a_masked_autoencoder_knows_more_than_the_mean_patch(digits: tuple[Tensor, Tensor]):
    images, _ = digits
    torch.manual_seed(0)
    rows_of_pixels = {**DIGITS, "patch_size": (1, 8), "depth": 2, "positions": "learned"}
    model = create_model("mae-nano", **rows_of_pixels, out_channels=1, mask_ratio=0.5)
    generator = torch.Generator().manual_seed(1)

    def masks(count: int) -> Tensor:
        return torch.rand(count, 8, generator=generator).argsort(dim=1) < model.config.num_kept

    def masked_error(batch: Tensor) -> Tensor:
        output = model(batch, masks(len(batch)))
        return (output.prediction - model.patchify(batch)).square()[output.masked].mean()

    train(model, lambda rows: masked_error(images[rows]), 450, 6e-3)
    held_out = images[NUM_TRAINING:]
    with torch.no_grad():
        error = masked_error(held_out)
    # the strongest constant answer: the mean at each place, not one for all
    mean_patch = model.patchify(images[:NUM_TRAINING].mean(dim=0, keepdim=True))
    mean_error = (mean_patch - model.patchify(held_out)).square().mean()
    assert error < 0.75 * mean_error


@pytest.mark.parametrize(
    "name",
    [
        "nnunet-nano",
        pytest.param("stunet-nano", marks=pytest.mark.matrix),
        pytest.param("mednext-nano", marks=pytest.mark.matrix),
    ],
)
def test_a_unet_segments_digits_that_a_threshold_cannot(name: str, digits: tuple[Tensor, Tensor]):
    images, _ = digits
    generator = torch.Generator().manual_seed(1)
    masks = torch.zeros(len(images), 16, 16, dtype=torch.long)
    corners = torch.randint(9, (len(images), 2), generator=generator).tolist()
    for mask, image, (y, x) in zip(masks, images, corners, strict=True):
        mask[y : y + 8, x : x + 8] = image[0] > 0.5
    noisy = masks[:, None] + 0.7 * torch.randn(len(images), 1, 16, 16, generator=generator)
    torch.manual_seed(0)
    model = create_model(name, num_dimensions=2)
    train(model, lambda rows: F.cross_entropy(model(noisy[rows]), masks[rows]), 100, 1e-2)
    truth = masks[NUM_TRAINING:].bool()
    with torch.no_grad():
        found = model(noisy[NUM_TRAINING:]).argmax(dim=1).bool()
    thresholds = torch.linspace(0.0, 1.5, 31)
    best = max(dice(noisy[NUM_TRAINING:, 0] > threshold, truth) for threshold in thresholds)
    assert dice(found, truth) > best + 0.2


def dice(found: Tensor, truth: Tensor) -> float:
    """``2 |A ∩ B| / (|A| + |B|)``."""
    return float(2 * (found & truth).sum() / (found.sum() + truth.sum()))
