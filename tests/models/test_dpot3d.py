"""DPOT in three dimensions: blocks lifted from two, any grid, and mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from pelagos.models.adaptation import adapt
from pelagos.models.dpot import DPOT, DPOTConfig
from pelagos.models.dpot3d import DPOT3D, DPOT3DConfig, lift_from_2d
from pelagos.models.layers.dpot_layers import FourierMixer
from pelagos.models.objectives import create_objective

FIXTURE = Path(__file__).parents[1] / "fixtures" / "dpot3d_tiny.safetensors"
SMALL = {"img_size": 16, "embed_dim": 16, "depth": 2, "n_blocks": 2, "in_timesteps": 3}


def perturbed(model: nn.Module, seed: int = 0) -> nn.Module:
    """With every parameter large enough to matter, the biases of the mixers too."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def flat_and_lifted(**options: object) -> tuple[DPOT, DPOT3D]:
    flat = perturbed(DPOT(DPOTConfig(**{**SMALL, **options})))
    lifted = DPOT3D(DPOT3DConfig(**{**SMALL, **options}))
    result = lifted.load_state_dict(lift_from_2d(flat.state_dict()), strict=False)
    assert not result.unexpected_keys
    assert {name.split(".")[0] for name in result.missing_keys} == {
        "pos_embed",
        "patch_embed",
        "cls_head",
        "out_layer",
    }
    return flat, lifted


def random_mixer() -> FourierMixer:
    torch.manual_seed(0)
    mixer = FourierMixer(16, 2)
    for parameter in mixer.parameters():
        nn.init.normal_(parameter)
    return mixer


def gap(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).norm() / expected.norm())


def test_official_weights_give_the_official_numbers_with_the_published_mixer():
    with safe_open(FIXTURE, "pt") as file:
        options = json.loads(file.metadata()["config"])
        reference = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    state = {k.removeprefix("state."): v for k, v in reference.items() if k.startswith("state.")}
    forecasts = {}
    for mixer in ("published", "lifted"):
        model = DPOT3D(DPOT3DConfig.from_official({**options, "mixer": mixer}))
        model.load_state_dict(state, strict=True)
        with torch.no_grad():
            forecasts[mixer] = model(reference["input"])[0]
    assert forecasts["published"].shape == reference["output"].shape
    # fp32 in another order of operations: a few times 6e-8, and 1e-5 is what is promised
    assert gap(forecasts["published"], reference["output"]) <= 1e-5
    assert gap(forecasts["lifted"], reference["output"]) > 1e-2


@pytest.mark.parametrize("grid", [(6, 8, 5), (4, 7, 6), (5, 6, 1)])
@pytest.mark.parametrize("mlp_ratio", [1.0, 2.0])
def test_along_a_constant_axis_lifted_blocks_are_the_two_dimensional_ones(
    grid: tuple[int, int, int], mlp_ratio: float
):
    flat, lifted = flat_and_lifted(mlp_ratio=mlp_ratio)
    x = torch.randn(2, 16, *grid[:2])
    x3 = x[..., None].expand(2, 16, *grid)
    with torch.no_grad():
        for block, block3 in zip(flat.blocks(), lifted.blocks(), strict=True):
            x, x3 = block(x), block3(x3)
    # fp32 in another order of operations, two blocks in a row
    assert gap(x3, x[..., None].expand_as(x3)) < 1e-5


def test_time_aggregation_is_the_two_dimensional_one():
    flat, lifted = flat_and_lifted()
    narrow = torch.randn(2, 3, flat.patch_embed.widening.in_channels, 4, 6)
    position = torch.randn(1, 16, 4, 6)
    with torch.no_grad():
        expected = flat.time_agg_layer(narrow, position, flat.patch_embed.widening)
        got = lifted.time_agg_layer(
            narrow[..., None].expand(*narrow.shape, 5),
            position[..., None].expand(*position.shape, 5),
            flat.patch_embed.widening,
        )
    assert gap(got, expected[..., None].expand_as(got)) < 1e-5


def test_each_of_the_mixers_three_rules_is_needed():
    """Of ortho modes, biases everywhere, or z as the halved axis, none keeps the slice's values."""
    mixer = random_mixer()
    with torch.no_grad():
        x = torch.randn(1, 16, 6, 8)
        expected = mixer(x)[..., None].expand(1, 16, 6, 8, 5)
        x3 = x[..., None].expand_as(expected)
        assert gap(mixer(x3), expected) < 1e-5

        def variant(axes: tuple[int, ...], scale: float, biases_everywhere: bool) -> Tensor:
            series = torch.fft.rfftn(x3, dim=axes, norm="ortho").movedim(1, -1) * scale
            parts = series.unflatten(-1, (2, 8))
            mixed = mixer._mix(parts, lifted=not biases_everywhere)
            series = mixed.flatten(-2).movedim(-1, 1) / scale
            grid = [x3.shape[axis] for axis in axes]
            return torch.fft.irfftn(series, s=grid, dim=axes, norm="ortho") + x3

        along_z = 5**-0.5
        assert gap(variant((2, 4, 3), along_z, biases_everywhere=False), expected) < 1e-5
        assert gap(variant((2, 4, 3), 1.0, biases_everywhere=False), expected) > 0.05
        assert gap(variant((2, 4, 3), along_z, biases_everywhere=True), expected) > 0.05
        assert gap(variant((2, 3, 4), along_z, biases_everywhere=False), expected) > 0.05


def test_adapting_a_two_dimensional_checkpoint_matches_blocks_and_time():
    flat, lifted = flat_and_lifted()
    # of so small a network, the blocks are less than the quarter that is asked for of all of it
    fresh = ["cls_head", "patch_embed", "pos_embed", "out_layer"]
    adaptation = adapt(lifted, lift_from_2d(flat.state_dict()), "2-D", reinitialize=fresh)
    matched = set(adaptation.names("matched"))
    assert matched == {n for n in lifted.state_dict() if n.startswith(("blocks.", "time_agg"))}


@pytest.mark.parametrize("grid", [(16, 16, 16), (8, 24, 16)])
def test_any_grid_and_every_parameter_has_a_gradient(grid: tuple[int, int, int]):
    model = DPOT3D(DPOT3DConfig(**SMALL))
    prediction, logits = model(torch.randn(1, *grid, 3, 4))
    assert prediction.shape == (1, *grid, 1, 4)
    assert logits.shape == (1, 12)
    (prediction.square().sum() + logits.sum()).backward()
    gradients = [p.grad for p in model.parameters()]
    assert all(g is not None and g.isfinite().all() for g in gradients)


def test_the_mixer_depends_on_z():
    mixer, x = random_mixer(), torch.randn(1, 16, 4, 4, 6)
    with torch.no_grad():
        sliced = mixer(x.mean(-1))
        mixed = mixer(x)
    assert gap(mixed.mean(-1), sliced) < 1e-5  # the mean along z is mixed as a slice
    assert gap(mixed - x, (mixed - x).mean(-1, keepdim=True).expand_as(x)) > 0.1


def test_compiled_blocks_and_the_objective():
    model = DPOT3D(DPOT3DConfig(**SMALL, in_channels=2, out_channels=2))
    objective = create_objective("autoregressive", ["a", "b"], num_input_frames=3)
    frames = torch.randn(1, 3, 2, 8, 8, 16)  # z, y, x
    with torch.no_grad():
        expected = objective.predict(model, frames, torch.zeros(1))
        assert expected.shape == (1, 2, 8, 8, 16)
        for block in model.blocks():
            block.compile(fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(objective.predict(model, frames, torch.zeros(1)), expected)


def test_a_checkpoint_of_another_size_carries_over():
    source = DPOT3D(DPOT3DConfig(**SMALL))
    model = DPOT3D(DPOT3DConfig(**{**SMALL, "img_size": 24}))
    assert adapt(model, source.state_dict(), "source").names("interpolated") == ("pos_embed",)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match=r"DPOT3D got .* nearest is \[batch, 16, 8, 8, 3, 4\]"):
        DPOT3D(DPOT3DConfig(**SMALL))(torch.zeros(1, 18, 9, 8, 3, 4))
    with pytest.raises(ValueError, match=r"with kernels \[16, 16, 1, 1, 1\]"):
        lift_from_2d(DPOT3D(DPOT3DConfig(**SMALL)).state_dict())
    with pytest.raises(ValueError, match="no blocks"):
        lift_from_2d({"pos_embed": torch.zeros(1)})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mixer": "official"}, "'official' must be one of 'lifted', 'published'"),
        ({"mixer": "published", "img_size": 120}, r"img_size\(120\) .* = 15 up to 14 tokens"),
    ],
)
def test_mixers_that_do_not_fit_are_named(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        DPOT3DConfig(**options)
