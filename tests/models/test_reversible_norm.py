"""Per-sample normalisation: what it makes of scale and offset, and that nothing else changes."""

from __future__ import annotations

import pytest
import torch
from tests.models.test_image_objectives import windows
from torch import Tensor, nn

from pelagos.models.layers.reversible_norm import ReversibleNorm
from pelagos.models.objectives import create_objective
from pelagos.models.registry import create_model

FIELDS = ("a", "b", "absent")


def test_a_sample_has_mean_0_and_deviation_1_and_comes_back() -> None:
    frames = windows(3, 4, 2, 8).frames * 7 + 3
    norm = ReversibleNorm.of(frames)
    normal = norm.apply(frames)
    torch.testing.assert_close(normal.mean((1, 3, 4)), torch.zeros(3, 2), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        normal.std((1, 3, 4), correction=0), torch.ones(3, 2), rtol=1e-4, atol=0
    )
    torch.testing.assert_close(norm.undo(normal[:, 1]), frames[:, 1], rtol=1e-5, atol=1e-5)
    zeros = torch.zeros_like(frames)
    assert torch.equal(ReversibleNorm.of(zeros).apply(zeros), zeros)


@pytest.mark.parametrize(
    ("name", "options", "num_frames", "model", "config"),
    [
        (
            "next_step",
            {},
            1,
            "poseidon-nano",
            {"image_size": 16},
        ),
        (
            "autoregressive",
            {"num_input_frames": 2},
            2,
            "dpot-nano",
            {"img_size": 16, "in_timesteps": 2},
        ),
    ],
)
def test_a_forecast_follows_the_scale_and_offset_of_its_input(
    name: str, options: dict[str, int], num_frames: int, model: str, config: dict[str, int]
) -> None:
    torch.manual_seed(0)
    network: nn.Module = create_model(model, in_channels=3, out_channels=3, **config).eval()
    frames = windows(2, num_frames, 3, 16).frames
    frames[:, :, 2] = 0.0
    lead, scale, offset = torch.full((2,), 0.3), 40.0, torch.tensor([5.0, -2.0, 0.0])[:, None, None]
    moved = frames * scale + offset

    def forecast(frames: Tensor, normalize: bool) -> Tensor:
        objective = create_objective(name, FIELDS, normalize_samples=normalize, **options)
        with torch.no_grad():
            return objective.predict(network, frames, lead)

    expected = forecast(frames, True) * scale + offset
    # 1e-5 stands beside a variance of 1 in one, of 1600 in the other
    torch.testing.assert_close(forecast(moved, True)[:, :2], expected[:, :2], rtol=1e-4, atol=5e-3)
    plain = forecast(frames, False) * scale + offset
    assert not torch.allclose(forecast(moved, False)[:, :2], plain[:, :2], rtol=0.05, atol=0.5)


def test_errors_are_of_the_scaled_back_forecast() -> None:
    class Identity(nn.Module):
        def forward(self, frame: Tensor, time: Tensor) -> object:
            assert abs(float(frame.std()) - 1) < 0.01
            return type("Answer", (), {"output": frame})

    batch = windows(2, 2, 1, 16)
    batch.frames.mul_(9).add_(4)
    batch.times = torch.tensor([[0.0, 1.0]] * 2)
    objective = create_objective("next_step", ("a",), normalize_samples=True)
    expected = (batch.frames[:, 0] - batch.frames[:, 1]).abs().sum((1, 2, 3))
    found = objective.errors(Identity(), batch)  # type: ignore[arg-type]
    torch.testing.assert_close(found[:, 0], expected, rtol=1e-4, atol=0)
