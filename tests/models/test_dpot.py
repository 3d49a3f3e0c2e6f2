"""DPOT: parity with the official network's numbers, sizes, and its training objective."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from pelagos.models.adaptation import adapt
from pelagos.models.dpot import DPOT, DPOTConfig, FourierMixer
from pelagos.models.layers.dpot_layers import resize_linear
from pelagos.models.objectives import Autoregressive, create_objective, ratio_loss
from pelagos.models.registry import create_model

FIXTURE = Path(__file__).parents[1] / "fixtures" / "dpot_tiny.safetensors"
SMALL = {"img_size": 16, "embed_dim": 16, "depth": 1, "n_blocks": 2, "in_timesteps": 3}
TENSORS = {"dpot-ti": 67, "dpot-s": 91, "dpot-m": 163, "dpot-l": 307, "dpot-h": 343}


@pytest.fixture(scope="module")
def reference() -> dict[str, Tensor]:
    with safe_open(FIXTURE, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


@pytest.fixture(scope="module")
def official(reference: dict[str, Tensor]) -> DPOT:
    with safe_open(FIXTURE, "pt") as file:
        config = DPOTConfig.from_official(json.loads(file.metadata()["config"]))
    model = DPOT(config)
    state = {k.removeprefix("state."): v for k, v in reference.items() if k.startswith("state.")}
    model.load_state_dict(state, strict=True)
    return model


def test_official_weights_give_the_official_numbers(official: DPOT, reference: dict[str, Tensor]):
    # fp32 in another order of operations: a few times 6e-8, and 1e-5 is what is promised
    with torch.no_grad():
        prediction, logits = official(reference["input"])
    for got, expected in ((prediction, reference["output"]), (logits, reference["cls"])):
        assert got.shape == expected.shape
        assert (got - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize("name", TENSORS)
def test_state_dicts_have_the_official_number_of_tensors(name: str):
    with torch.device("meta"):
        assert len(create_model(name).state_dict()) == TENSORS[name]


def test_blocks_are_listed_and_reachable_by_their_official_names():
    model = create_model("dpot-nano")
    assert model.blocks() == [model.get_submodule("blocks.0"), model.get_submodule("blocks.1")]


def test_weight_decay_spares_norms_biases_and_positions():
    model = DPOT(DPOTConfig(**SMALL))
    decayed = {n for n, _ in model.named_parameters()} - model.no_weight_decay()
    assert decayed == {
        "patch_embed.proj.0.weight",
        "patch_embed.proj.2.weight",
        "blocks.0.filter.w1",
        "blocks.0.filter.w2",
        "blocks.0.mlp.0.weight",
        "blocks.0.mlp.2.weight",
        "time_agg_layer.w",
        "out_layer.0.weight",
        "out_layer.2.weight",
        "out_layer.4.weight",
    }


def test_the_mixer_is_a_complex_network_on_the_spectrum():
    mixer = FourierMixer(width=16, heads=2)
    for parameter in mixer.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(2, 16, 8, 6)
    w1, b1, w2, b2 = (torch.complex(p[0], p[1]) for p in mixer.parameters())
    spectrum = torch.fft.fft2(x, norm="ortho")[..., :4].permute(0, 2, 3, 1).unflatten(-1, (2, 8))
    hidden = torch.einsum("...hi,hio->...ho", spectrum, w1) + b1
    hidden = torch.complex(nn.functional.gelu(hidden.real), nn.functional.gelu(hidden.imag))
    series = (torch.einsum("...hi,hio->...ho", hidden, w2) + b2).flatten(-2).permute(0, 3, 1, 2)
    expected = x + torch.fft.irfft2(series, s=(8, 6), norm="ortho")
    with torch.no_grad():  # sums of 16 products: a few times 16 * 6e-8 of values around 30
        torch.testing.assert_close(mixer(x), expected, rtol=1e-4, atol=1e-4)


def test_merged_with_the_aggregation_widening_makes_what_tokens_would():
    torch.manual_seed(0)
    model = DPOT(DPOTConfig(**SMALL))
    aggregate, widening = model.time_agg_layer, model.patch_embed.widening
    narrow, position = torch.randn(2, 3, widening.in_channels, 4, 6), torch.randn(1, 16, 4, 6)
    with torch.no_grad():
        tokens = nn.functional.conv2d(narrow.flatten(0, 1), widening.weight, widening.bias)
        tokens = (tokens + position).unflatten(0, (2, 3))
        waves = torch.cos(torch.linspace(0, 1, 3)[:, None] * aggregate.gamma)
        expected = torch.einsum("btdij,td,tde->beij", tokens, waves, aggregate.w)
        got = aggregate(narrow, position, widening)
    assert (got - expected).norm() <= 1e-6 * expected.norm()


def test_compiled_and_half_precision_blocks_stay_close():
    torch.manual_seed(0)
    model = DPOT(DPOTConfig(**SMALL))
    x = torch.randn(2, 16, 16, 3, 4)
    with torch.no_grad():
        eager = model(x)[0]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = model(x)[0]
        for block in model.blocks():
            block.compile(fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(model(x)[0], eager)
    # bf16 rounds each product by 2^-9; a handful of layers in a row
    assert half.dtype == torch.float32
    assert 0 < (half - eager).norm() < 0.03 * eager.norm()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"img_size": 20}, "img_size=20 must be a multiple of patch_size=8"),
        ({"embed_dim": 20}, r"embed_dim=20 must be a multiple of 8 norm groups \(8\)"),
        ({"img_size": 512}, r"modes=32 must be at least img_size\(512\)"),
        ({"normalize": True}, "normalize=True is not supported"),
        ({"depth": 0}, "depth=0 must be a whole number"),
    ],
)
def test_sizes_that_do_not_fit_show_the_arithmetic(overrides: dict, message: str):
    with pytest.raises(ValueError, match=message):
        DPOTConfig(**overrides)


def test_a_wrong_shape_names_what_is_needed():
    with pytest.raises(ValueError, match=r"\[batch, 16, 16, 3, 4\]"):
        DPOT(DPOTConfig(**SMALL))(torch.zeros(1, 16, 16, 4, 4))


def native_model() -> DPOT:
    torch.manual_seed(0)
    return DPOT(DPOTConfig(**SMALL))


@pytest.mark.parametrize("grid", [(8, 8), (16, 24), (40, 8)])
def test_any_grid_of_whole_patches_and_every_parameter_has_a_gradient(grid: tuple[int, int]):
    model = native_model()
    prediction, logits = model(torch.randn(2, *grid, 3, 4))
    assert prediction.shape == (2, *grid, 1, 4)
    (prediction.square().sum() + logits.sum()).backward()
    gradients = [p.grad for p in model.parameters()]
    assert all(g is not None and g.isfinite().all() for g in gradients)


def test_positions_are_interpolated_as_torch_does_and_kept_at_the_native_size():
    table = torch.randn(1, 3, 4, 6)
    assert resize_linear(table, (4, 6)) is table
    for grid in ((8, 6), (2, 3), (7, 11)):
        expected = nn.functional.interpolate(table, grid, mode="bilinear", align_corners=False)
        # two products of weights in [0, 1], each rounded by 6e-8
        torch.testing.assert_close(resize_linear(table, grid), expected, rtol=1e-5, atol=1e-6)


def test_a_checkpoint_of_another_size_carries_over():
    source = native_model()
    model = DPOT(DPOTConfig(**{**SMALL, "img_size": 32}))
    adaptation = adapt(model, source.state_dict(), "source")
    assert adaptation.counts() == {"matched": len(source.state_dict()) - 1, "interpolated": 1}
    model.load_state_dict(adaptation.tensors, strict=True)
    x = torch.randn(1, 32, 32, 3, 4)
    with torch.no_grad():
        assert torch.equal(model(x)[0], source(x)[0])


@pytest.mark.parametrize(
    ("shape", "nearest"),
    [((1, 20, 27, 3, 4), "16, 24, 3, 4"), ((1, 3, 16, 3, 4), "8, 16, 3, 4"), ((1, 16), "16, 16")],
)
def test_a_grid_of_broken_patches_names_the_nearest(shape: tuple[int, ...], nearest: str):
    with pytest.raises(ValueError, match=rf"patch_size=8, .* nearest is \[batch, {nearest}"):
        native_model()(torch.zeros(shape))


@dataclass
class Windows:
    frames: Tensor
    times: Tensor
    present: Tensor


class LastFrame(nn.Module):
    """Persistence in the protocol of autoregressive models; writes down what it was given."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.seen = x
        return x[..., -1:, :], x.new_ones(x.shape[0], 2)


def windows(batch: int = 3, frames: int = 4) -> Windows:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(batch, frames, 2, 4, 6, generator=generator)  # y: 4, x: 6
    return Windows(values, torch.zeros(batch, frames), torch.ones(batch, 2, dtype=torch.bool))


def test_the_loss_is_the_mean_relative_l2_error_of_samples_and_channels():
    batch, model = windows(), LastFrame()
    objective = Autoregressive(("a", "b"), num_input_frames=3)
    loss = ratio_loss(objective.errors(model, batch), objective.magnitudes(batch))
    assert torch.equal(model.seen, batch.frames[:, :3].permute(0, 4, 3, 1, 2))
    error = (batch.frames[:, 2] - batch.frames[:, 3]).flatten(2).norm(dim=-1)
    expected = (error / batch.frames[:, 3].flatten(2).norm(dim=-1)).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    forecast = objective.predict(model, batch.frames[:, :3], torch.zeros(3))
    assert torch.equal(forecast, batch.frames[:, 2])


def test_unrolled_steps_see_fields_in_no_group_as_they_were_given():
    batch = windows()
    model = DPOT(
        DPOTConfig(**{**SMALL, "img_size": 8, "in_timesteps": 2}, in_channels=2, out_channels=2)
    )
    batch.frames = nn.functional.interpolate(batch.frames.flatten(0, 1), size=(8, 8)).unflatten(
        0, (3, 4)
    )
    seen = []
    model.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    objective = Autoregressive(
        ("a", "b"), field_groups={"a": ["a"]}, num_input_frames=2, num_unrolled_steps=2
    )
    objective.errors(model, batch)
    frame = seen[1].permute(0, 3, 4, 2, 1)[:, -1]  # the model's own, fed back
    assert torch.equal(frame[:, 1], batch.frames[:, 1, 1])
    assert not torch.equal(frame[:, 0], batch.frames[:, 1, 0])


def test_absent_fields_and_vanishing_labels_do_not_count():
    batch, objective = windows(), Autoregressive(("a", "b"), num_input_frames=3)
    batch.present[1, 0] = False
    batch.frames[1, :, 0] = 0.0
    batch.frames[2, 3, 1] = 0.0
    model = DPOT(DPOTConfig(**{**SMALL, "img_size": 8}, in_channels=2, out_channels=2))
    batch.frames = nn.functional.interpolate(batch.frames.flatten(0, 1), size=(8, 8)).unflatten(
        0, (3, 4)
    )
    loss = ratio_loss(objective.errors(model, batch), objective.magnitudes(batch))
    assert objective.magnitudes(batch).round().tolist() == [[1, 1], [0, 1], [1, 0]]
    loss.backward()
    assert loss.isfinite()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    assert all(g is not None and g.isfinite().all() for g in gradients.values())


def test_windows_are_runs_of_frames_and_their_label():
    objective = create_objective("autoregressive", ["a"], num_input_frames=2, frame_stride=2)
    assert objective.frame_windows(6) == ((0, 2, 4), (1, 3, 5))
    with pytest.raises(ValueError, match=r"num_frames\(4\) must exceed .* = 4"):
        objective.frame_windows(4)


def test_a_lead_time_scale_or_another_number_of_frames_is_refused():
    with pytest.raises(ValueError, match="the model sees no lead time"):
        create_objective("autoregressive", ["a"], time_scale=0.5)
    objective = create_objective("autoregressive", ["a", "b"], num_input_frames=3)
    with pytest.raises(ValueError, match=r"got 1 frame.* num_input_frames=3"):
        objective.predict(LastFrame(), windows().frames[:, :1], torch.zeros(3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"img_size": 100, "patch_size": 8}, r"multiple of patch_size=8: use 96 or 104"),
        ({"embed_dim": 100, "n_blocks": 12}, r"multiple of n_blocks \(12\): use 96 or 120"),
        ({"modes": 3, "img_size": 64, "patch_size": 8}, r"/ patch_size\(8\) = 8: use 8"),
        ({"embed_dim": 64, "mlp_ratio": 0.01}, r"1 / embed_dim\(64\) = 0.015625 or more"),
    ],
)
def test_a_misfit_names_the_nearest_value(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DPOTConfig(**options)
