"""scOT against the official code's numbers, and under the transformations training applies."""

from __future__ import annotations

import functools
import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pelagos.models.layers.scot_layers import WindowAttention, _log_offsets
from pelagos.models.layers.tables import _KEPT
from pelagos.models.poseidon import ScOT, ScOTConfig

FIXTURE = Path(__file__).parents[1] / "fixtures" / "scot_tiny.safetensors"
# fp32 sums of a few hundred terms in another order differ by about sqrt(300) * 6e-8 = 1e-6 of the
# largest value, and about 20 blocks follow one another; 1e-5 is the gate the project set itself.
PARITY = 1e-5
SMALL = {
    "image_size": 16,
    "patch_size": 2,
    "embed_dim": 8,
    "depths": (2, 1),
    "num_heads": (2, 2),
    "skip_connections": (1, 0),
    "window_size": 4,
}


def relative(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).detach().abs().max() / expected.detach().abs().max())


def small_model(seed: int = 0, **options: object) -> ScOT:
    """A small network with every parameter away from its initialisation."""
    torch.manual_seed(seed)
    model = ScOT(ScOTConfig(**{**SMALL, **options}))  # type: ignore[arg-type]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "logit_scale" not in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def small_input(batch: int = 2, channels: int = 4, size: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    shape = (batch, channels, size, size)
    pixels, labels = (torch.randn(shape, generator=generator) for _ in range(2))
    return pixels, torch.linspace(0.1, 1.0, batch), labels


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.fixture(scope="module")
def reference() -> dict[str, Tensor]:
    with safe_open(FIXTURE, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


@pytest.fixture(scope="module")
def official(reference: dict[str, Tensor]) -> ScOT:
    with safe_open(FIXTURE, "pt") as file:
        config = ScOTConfig.from_official(json.loads(file.metadata()["config"]))
    model = ScOT(config)
    state = {key[6:]: value for key, value in reference.items() if key.startswith("state.")}
    model.load_state_dict(state, strict=True)
    return model


def test_output_and_loss_are_the_official_ones(official: ScOT, reference: dict[str, Tensor]):
    with torch.no_grad():
        result = official(reference["input"], reference["time"], reference["labels"])
    assert relative(result.output, reference["output"]) < PARITY
    assert relative(result.loss, reference["loss"][0]) < PARITY


def test_masked_output_and_loss_are_the_official_ones(official: ScOT, reference: dict[str, Tensor]):
    labels, mask = reference["labels"], reference["pixel_mask"].bool()
    with torch.no_grad():
        result = official(reference["input"], reference["time"], labels, pixel_mask=mask)
    assert relative(result.output, reference["output_masked"]) < PARITY
    assert relative(result.loss, reference["loss_masked"][0]) < PARITY
    assert torch.equal(result.output[mask], labels[mask])


@pytest.mark.parametrize("resolution", ["half", "double"])
def test_other_resolutions_give_the_official_output(
    official: ScOT, reference: dict[str, Tensor], resolution: str
):
    with torch.no_grad():
        got = official(reference[f"input_{resolution}"], reference["time_resized"]).output
    assert relative(got, reference[f"output_{resolution}"]) < PARITY


def test_parity_would_notice_an_unshifted_window(official: ScOT, reference: dict[str, Tensor]):
    shifted = [m for m in official.modules() if isinstance(m, WindowAttention) and m.shift]
    kept = shifted[0].shift
    shifted[0].shift = 0
    with torch.no_grad():
        got = official(reference["input"], reference["time"]).output
    shifted[0].shift = kept
    assert relative(got, reference["output"]) > 100 * PARITY


def test_decoder_stages_begin_with_the_shifted_block(official: ScOT):
    shifts = [
        [block.attention.get_submodule("self").shift for block in stage.blocks]
        for stage in (official.encoder.layers[0], official.decoder.layers[-1])
    ]
    assert shifts == [[0, 2], [2, 0]]


def test_meta_build_then_to_empty_equals_a_direct_build():
    torch.manual_seed(5)
    direct = ScOT(ScOTConfig(**SMALL))
    with torch.device("meta"):
        model = ScOT(ScOTConfig(**SMALL))
    assert all(p.is_meta for p in model.parameters())
    model.to_empty(device="cpu")
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor.data.fill_(float("nan"))
    torch.manual_seed(5)
    model.reset_parameters()
    got = dict([*model.named_parameters(), *model.named_buffers()])
    for name, expected in [*direct.named_parameters(), *direct.named_buffers()]:
        assert torch.equal(got[name], expected), name


def test_fresh_model_ignores_its_input_at_lead_time_zero():
    # Every conditional norm starts with scale 0.02 * N(0, 1) * t and no shift.
    model = ScOT(ScOTConfig(**SMALL))
    pixels, _, _ = small_input()
    zero = torch.zeros(2)
    with torch.no_grad():
        assert torch.equal(model(pixels, zero).output, model(-3 * pixels, zero).output)
        perturbed = small_model()
        assert not torch.equal(perturbed(pixels, zero).output, perturbed(-3 * pixels, zero).output)


def test_unit_norm_init_starts_branches_at_scale_one():
    norm = ScOT(ScOTConfig(**SMALL, unit_norm_init=True)).embeddings.norm
    tokens = torch.randn(1, 2, 2, 8)
    with torch.no_grad():
        assert torch.equal(norm(tokens, torch.zeros(1)), nn.functional.layer_norm(tokens, (8,)))


def test_compiled_fullgraph_equals_eager():
    model = small_model(depths=(2,), num_heads=(2,), skip_connections=(1,))
    pixels, time, labels = small_input()
    eager = model(pixels, time, labels)
    eager.loss.backward()
    expected = gradients(model)
    model.zero_grad()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")(pixels, time, labels)
    compiled.loss.backward()
    # The same kernels, once traced and decomposed: rounding of single operations, 1e-5 as above.
    assert relative(compiled.output, eager.output) < PARITY
    for name, gradient in gradients(model).items():
        scale = float(expected[name].abs().max()) + 1e-6
        assert float((gradient - expected[name]).abs().max()) < 1e-4 * scale, name


@pytest.mark.slow
def test_inductor_compiled_block_equals_eager():
    model = small_model()
    block, tokens = model.blocks()[1], torch.randn(2, 8, 8, 8)
    time = torch.tensor([0.2, 0.9])
    compiled = torch.compile(block, fullgraph=True)
    # Fused loops contract multiply-adds and sum in another order: one block, 1e-5 as above.
    assert relative(compiled(tokens, time), block(tokens, time)) < PARITY


def test_checkpointed_blocks_give_the_same_bits():
    model = small_model()
    pixels, time, labels = small_input()
    model(pixels, time, labels).loss.backward()
    expected = gradients(model)
    model.zero_grad()
    for block in model.blocks():
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
    model(pixels, time, labels).loss.backward()
    got = gradients(model)
    assert got.keys() == expected.keys()
    for name, gradient in got.items():
        assert torch.equal(gradient, expected[name]), name


def test_bf16_autocast_stays_near_fp32_and_keeps_fp32_gradients():
    model = small_model()
    pixels, time, labels = small_input()
    expected = model(pixels, time, labels)
    with torch.autocast("cpu", torch.bfloat16):
        got = model(pixels, time, labels)
    got.loss.backward()
    # bf16 rounds by 2^-9 = 0.2 %; about 30 matrix products in a row, adding like a random walk,
    # give sqrt(30) * 0.2 % = 1 %; the largest of 2048 values is about four times the typical one.
    assert relative(got.output, expected.output) < 0.05
    assert relative(got.loss, expected.loss) < 0.01
    assert got.output.dtype == torch.float32
    assert {p.grad.dtype for p in model.parameters() if p.grad is not None} == {torch.float32}


def test_norm_statistics_stay_fp32_under_autocast():
    norm = small_model().embeddings.norm
    tokens = 1000.0 + torch.randn(1, 4, 4, 8)  # bf16 would round all variation away (step 4 to 8)
    time = torch.ones(1)
    with torch.autocast("cpu", torch.bfloat16):
        got = norm(tokens, time)
    assert torch.equal(got, norm(tokens, time))


def test_shift_mask_separates_what_the_roll_brought_together():
    model = small_model()
    attention = next(m for m in model.modules() if isinstance(m, WindowAttention) and m.shift)
    tokens = torch.randn(1, 8, 8, 8, requires_grad=True)
    attention(tokens)[0, 0, 0].sum().backward()
    # Rolled by 2, the corner token shares a window with the opposite corner, masked by -100: its
    # weight is e^-100 = 4e-44 of the others, which are at least 1e-20 (logits within ±20).
    reached = tokens.grad.abs().sum(-1)[0] > 1e-30
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[:2, :2] = True
    assert torch.equal(reached, expected)


def test_position_bias_is_a_function_of_the_offset():
    attention = next(m for m in small_model().modules() if isinstance(m, WindowAttention))
    bias = attention.position_bias()[0].reshape(2, 4, 4, 4, 4)
    table = 16 * torch.sigmoid(attention.continuous_position_bias_mlp(_log_offsets(4))) - 8
    table = table.reshape(7, 7, 2)
    for qy, qx, ky, kx in [(0, 0, 0, 0), (3, 1, 0, 2), (0, 3, 3, 0), (2, 2, 1, 3)]:
        assert torch.equal(bias[:, qy, qx, ky, kx], table[qy - ky + 3, qx - kx + 3])


@pytest.mark.parametrize(("channels_in", "channels_out"), [(1, 1), (2, 5), (7, 3)])
def test_any_number_of_channels(channels_in: int, channels_out: int):
    model = small_model(
        num_channels=channels_in,
        num_out_channels=channels_out,
        channel_slice_list_normalized_loss=None,
    )
    pixels, time, _ = small_input(channels=channels_in)
    assert model(pixels, time).output.shape == (2, channels_out, 16, 16)


def test_learn_residual_adds_the_input():
    plain, residual = small_model(), small_model(learn_residual=True)
    pixels, time, _ = small_input()
    expected = plain(pixels, time).output + pixels
    assert torch.equal(residual(pixels, time).output, expected)


def test_without_conditioning_time_is_ignored():
    model = small_model(use_conditioning=False)
    pixels, time, _ = small_input()
    assert torch.equal(model(pixels, time).output, model(pixels, 2 * time).output)


def test_no_weight_decay_takes_norms_biases_and_position_bias_networks():
    names = {name for name, _ in small_model().named_parameters()}
    undecayed = small_model().no_weight_decay()
    assert undecayed < names
    block = "encoder.layers.0.blocks.0."
    assert {
        "embeddings.norm.weight.weight",
        "embeddings.patch_embeddings.projection.bias",
        block + "layernorm_before.bias.weight",
        block + "attention.self.continuous_position_bias_mlp.0.weight",
    } <= undecayed
    assert (
        not {
            "embeddings.patch_embeddings.projection.weight",
            block + "attention.self.query.weight",
            block + "attention.self.logit_scale",
            "patch_recovery.mixup.weight",
            "residual_blocks.0.0.weight",
        }
        & undecayed
    )


@pytest.mark.parametrize(
    ("shape", "message"),
    [((2, 4, 16, 8), "square"), ((2, 3, 16, 16), "num_channels=4"), ((2, 4, 15, 15), "even")],
)
def test_bad_grids_are_refused(shape: tuple[int, ...], message: str):
    with pytest.raises(ValueError, match=message):
        small_model()(torch.zeros(shape), torch.zeros(2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 18}, r"patch_size\(2\) \* 2\*\*\(stages\(2\) - 1\) = 4"),
        ({"num_heads": (3, 2)}, "width 8 is not a multiple of 3 heads"),
        ({"window_size": 3}, "8 tokens a side, not a multiple of window_size=3"),
        ({"num_heads": (2,)}, "needs len"),
        ({"drop_path_rate": 0.1}, "drop_path_rate=0.1 is not supported"),
        ({"channel_slice_list_normalized_loss": (0, 5)}, "must rise within"),
    ],
)
def test_bad_sizes_are_refused_with_the_arithmetic(options: dict[str, object], message: str):
    with pytest.raises(ValueError, match=message):
        ScOTConfig(**{**SMALL, **options})  # type: ignore[arg-type]


def with_labels(height: int, width: int, batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    pixels, labels = (torch.randn(batch, 4, height, width, generator=generator) for _ in range(2))
    return pixels, torch.linspace(0.1, 1.0, batch), labels


def test_without_resize_the_native_size_keeps_its_bits():
    results = []
    for resize in ("fourier", "none"):
        model = small_model(resize=resize)
        result = model(*small_input())
        result.loss.backward()
        results.append((result.output, gradients(model)))
    (first, first_gradients), (second, second_gradients) = results
    assert torch.equal(first, second)
    assert all(torch.equal(g, second_gradients[name]) for name, g in first_gradients.items())


@pytest.mark.parametrize("size", [4, 8, 32])
def test_without_resize_another_size_is_the_network_made_for_it(size: int):
    model = small_model(resize="none")
    made_for_it = ScOT(ScOTConfig(**{**SMALL, "image_size": size}))
    made_for_it.load_state_dict(model.state_dict(), strict=True)
    pixels, time, labels = small_input(size=size)
    got, expected = model(pixels, time, labels), made_for_it(pixels, time, labels)
    assert torch.equal(got.output, expected.output)
    got.loss.backward()
    expected.loss.backward()
    expected_gradients = gradients(made_for_it)
    assert all(torch.equal(g, expected_gradients[name]) for name, g in gradients(model).items())


@pytest.mark.parametrize("grid", [(8, 16), (32, 16), (4, 32)])
@pytest.mark.parametrize("learn_residual", [False, True])
def test_rectangles_run_and_every_parameter_has_a_gradient(
    grid: tuple[int, int], learn_residual: bool
):
    model = small_model(resize="none", learn_residual=learn_residual)
    result = model(*with_labels(*grid))
    assert result.output.shape == (2, 4, *grid)
    result.loss.backward()
    got = gradients(model)
    assert got.keys() == dict(model.named_parameters()).keys()
    assert all(gradient.isfinite().all() for gradient in got.values())


def log_step(step: int, window: int) -> float:
    """A step's place on the position bias's logarithmic axis, 1 at 8 (arXiv:2111.09883, eq. 4)."""
    return math.copysign(math.log2(8 * abs(step) / (window - 1) + 1) / 3, step)


def test_the_temperature_of_cosine_attention_is_bounded_at_100():
    """Swin v2: the logarithm of the scale is clamped at log(100), not a whit above."""
    attention = next(m for m in small_model().modules() if isinstance(m, WindowAttention))
    tokens = torch.randn(1, 8, 8, 8)

    def answer(log_scale):
        with torch.no_grad():
            attention.logit_scale.fill_(log_scale)
            return attention(tokens)

    bound = math.log(100.0)
    at_bound = answer(bound)
    for above in (bound + 0.005, bound + 0.02, 10.0):
        assert torch.equal(answer(above), at_bound)
    assert not torch.equal(answer(bound - 0.005), at_bound)


def test_a_rectangles_attention_is_that_of_its_definition():
    """Token by token: keys of the same shifted window and region, offsets scaled per axis."""
    attention = next(
        m for m in small_model().modules() if isinstance(m, WindowAttention) and m.shift
    )
    tokens = torch.randn(1, 2, 12, 8)  # one window of 2 down, unshifted; of 4 across, shifted by 2
    windows = [range(2), range(2, 6), range(6, 10), range(10, 12)]
    with torch.no_grad():
        got = attention(tokens)[0]
        parts = [part(tokens)[0] for part in (attention.query, attention.key, attention.value)]
        query, key, value = (part.unflatten(-1, (2, 4)) for part in parts)
        query, key = (nn.functional.normalize(part, dim=-1) for part in (query, key))
        temperature = attention.logit_scale[:, 0, 0].exp()
        for y, x in itertools.product(range(2), range(12)):
            keys = [(i, j) for i in range(2) for j in next(w for w in windows if x in w)]
            offsets = [[log_step(y - i, 2), log_step(x - j, 4)] for i, j in keys]
            bias = attention.continuous_position_bias_mlp(torch.tensor(offsets))
            products = torch.stack([(query[y, x] * key[at]).sum(-1) for at in keys])
            weights = torch.softmax(temperature * products + 16 * torch.sigmoid(bias), dim=0)
            expected = (weights[..., None] * torch.stack([value[at] for at in keys])).sum(0)
            assert relative(got[y, x], expected.flatten()) < PARITY


def test_tables_are_shared_between_blocks_and_usable_after_inference():
    _KEPT.clear()
    model = small_model(resize="none", depths=(2, 2))
    with torch.inference_mode():
        expected = model(*with_labels(16, 32)).output
    kept = dict(_KEPT)
    # first stage: with and without shift; second stage, 4 x 8 tokens: likewise
    assert len(kept) == 4
    result = model(*with_labels(16, 32))
    result.loss.backward()
    assert torch.equal(result.output, expected)
    assert all(_KEPT[key] is tables for key, tables in kept.items())
    with torch.device("meta"):
        abstract = ScOT(ScOTConfig(**SMALL, resize="none"))
        pixels, time = torch.zeros(2, 4, 16, 32), torch.ones(2)
        assert abstract(pixels, time).output.shape == pixels.shape
    assert len(_KEPT) == 4
