"""MPP: published sizes, fields as columns of a vocabulary, scales, edges, and mistakes."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pelagos.models.layers.mpp_layers import bucket_shares
from pelagos.models.mpp import MPP, VOCABULARY, MPPConfig
from pelagos.models.objectives import create_objective
from pelagos.models.registry import create_model, model_info

FIXTURE = Path(__file__).parents[1] / "fixtures" / "mpp_tiny.safetensors"
TENSORS = {"mpp-ti": 439, "mpp-s": 439, "mpp-b": 439, "mpp-l": 859}
SMALL = {"embed_dim": 16, "num_heads": 2, "processor_blocks": 2, "drop_path": 0.0}
EXACT = {"rtol": 1e-9, "atol": 1e-9}  # fp64; deviations near 1 feel their eps of 1e-7 not at all


def small_model(channels: int = 3, seed: int = 0, **options: object) -> MPP:
    """A small network in fp64, every parameter away from its initialisation."""
    torch.manual_seed(seed)
    config = {**SMALL, "in_channels": channels, "out_channels": channels, **options}
    model = MPP(MPPConfig(**config)).double()  # type: ignore[arg-type]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # a layer scale of 1e-6 would hide whatever a block does
            parameter.add_(torch.rand_like(parameter) * (1.0 if "gamma" in name else 0.1))
    return model


def frames(*grid: int, steps: int = 3, channels: int = 3, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    shape = (batch, *grid, steps, channels)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@torch.no_grad()
def forecast(model: MPP, x: Tensor) -> Tensor:
    return model(x)[0]


@pytest.mark.parametrize("boundary", ["open", "published-periodic"])
def test_official_weights_give_the_official_numbers(boundary: str):
    # the official code (commit e751fc2) without stochastic depth, with perturbed random weights
    with safe_open(FIXTURE, "pt") as file:
        options = json.loads(file.metadata()["config"])
        reference = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    model = MPP(MPPConfig.from_official({**options, "boundary": boundary})).eval()
    state = {k.removeprefix("state."): v for k, v in reference.items() if k.startswith("state.")}
    model.load_state_dict(state, strict=True)
    got, expected = forecast(model, reference["input"]), reference[f"output_{boundary}"]
    # fp32 in another order of operations: a few times 6e-8, and 1e-5 is what is promised
    assert got.shape == expected.shape
    assert (got - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize("channels", [1, 4, 12])
@pytest.mark.parametrize("name", TENSORS)
def test_published_counts_whatever_the_number_of_fields(name: str, channels: int):
    with torch.device("meta"):
        model = create_model(name, in_channels=channels, out_channels=channels)
    state = model.state_dict()
    assert len(state) == TENSORS[name]
    assert sum(tensor.numel() for tensor in state.values()) == model_info(name).parameters


def test_state_dicts_have_the_published_names():
    state = {k: tuple(v.shape) for k, v in create_model("mpp-nano").state_dict().items()}
    expected = {
        "space_bag.weight": (16, 12),
        "embed.in_proj.0.weight": (16, 16, 4, 4),
        "embed.in_proj.6.weight": (64, 16, 2, 2),
        "blocks.0.temporal.gamma": (64,),
        "blocks.1.temporal.rel_pos_bias.relative_attention_bias.weight": (32, 4),
        "blocks.0.spatial.gamma_att": (64,),
        "blocks.0.spatial.gamma_mlp": (64,),
        "blocks.0.spatial.input_head.weight": (192, 64, 1, 1),
        "blocks.0.spatial.qnorm.weight": (16,),
        "blocks.0.spatial.mlp.fc1.weight": (256, 64),
        "blocks.0.spatial.mlp_norm.bias": (64,),
        "debed.out_kernel": (16, 12, 4, 4),
        "debed.out_proj.3.weight": (16, 16, 2, 2),
    }
    assert expected.items() <= state.items()


@pytest.mark.parametrize(("grid", "steps"), [((16, 32), 1), ((48, 32), 3), ((32, 32), 17)])
def test_any_grid_and_number_of_frames_and_every_parameter_has_a_gradient(grid, steps):
    model = small_model()
    (prediction,) = model(frames(*grid, steps=steps))
    assert prediction.shape == (2, *grid, 1, 3)
    prediction.square().sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    assert all(g is not None and g.isfinite().all() for g in gradients.values())


def test_fields_are_the_restriction_of_the_vocabulary():
    names = ("compressible/pressure", "shallow-water/height", "spare-1")
    model = small_model(fields=names)
    entries = [VOCABULARY.index(name) for name in names]
    alone = small_model(vocabulary=names)
    state = model.state_dict()
    state["space_bag.weight"] = state["space_bag.weight"][:, entries]
    state["debed.out_kernel"] = state["debed.out_kernel"][:, entries]
    state["debed.out_bias"] = state["debed.out_bias"][entries]
    for name in ("space_bag.weight", "space_bag.bias"):  # 3 of 3 entries: no factor sqrt(12 / 3)
        state[name] = 2.0 * state[name]
    alone.load_state_dict(state, strict=True)
    x = frames(32, 16)
    torch.testing.assert_close(forecast(model, x), forecast(alone, x), **EXACT)


def test_permuted_channels_with_their_names_permute_the_forecast():
    order = [2, 0, 1]
    first, x = small_model(fields=VOCABULARY[:3]), frames(32, 32)
    second = small_model(fields=tuple(VOCABULARY[i] for i in order))
    second.load_state_dict(first.state_dict(), strict=True)
    expected = forecast(first, x)[..., order]
    torch.testing.assert_close(forecast(second, x[..., order]), expected, **EXACT)
    assert not torch.allclose(forecast(first, x[..., order]), expected, rtol=0.1)
    default = small_model()
    assert torch.equal(forecast(default, x), forecast(first, x))


def test_forecasts_follow_each_samples_scale_and_offset():
    model, x = small_model(), frames(32, 32)
    scale, offset = torch.rand(2, 2, 1, 1, 1, 3, dtype=torch.float64) + 0.5
    # 1e-7 is added to the deviation, 1, and scaled there by 0.5 to 1.5
    torch.testing.assert_close(
        forecast(model, scale * x + offset),
        scale * forecast(model, x) + offset,
        rtol=1e-6,
        atol=1e-6,
    )


def test_fields_at_rest_keep_their_value_and_finite_gradients():
    model, x = small_model().float(), frames(32, 32).float()
    x[0], x[1, ..., 1] = 2.0, 3.0  # a sample without any motion; one field without
    (prediction,) = model(x)
    # the deviation, 1e-7, times outputs of at most a few 1e6, the norms' bound
    torch.testing.assert_close(prediction[0], torch.full_like(prediction[0], 2.0), rtol=0, atol=1)
    torch.testing.assert_close(prediction[1, ..., 1], torch.full((32, 32, 1), 3.0))
    prediction.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("grid", [(64, 48), (16, 80)])
def test_on_a_periodic_grid_rolls_by_patches_commute(grid: tuple[int, int]):
    model, x = small_model(boundary="periodic"), frames(*grid)
    shifts = (16, 32)
    expected = forecast(model, x).roll(shifts, (1, 2))
    torch.testing.assert_close(forecast(model, x.roll(shifts, (1, 2))), expected, **EXACT)
    unlike = small_model(boundary="open")
    expected = forecast(unlike, x).roll(shifts, (1, 2))
    assert not torch.allclose(forecast(unlike, x.roll(shifts, (1, 2))), expected, rtol=1e-3)


def test_offsets_fall_into_the_buckets_of_t5():
    # A bucket each for distances below 8; then four per octave, from 8, 9.5, 11.3, 13.5, 16, 19.03,
    # 22.6 and 26.9 on. Keys after the query have 16 more.
    first = [*range(8), 8, 10, 12, 14, 16, 20, 23, 27]
    expected = [max(k for k in range(16) if distance >= first[k]) for distance in range(41)]
    buckets = bucket_shares(41, "open", torch.device("cpu")).argmax(1)
    assert buckets[:41].flip(0).tolist() == expected
    assert torch.equal(buckets[:40].flip(0) + 16, buckets[41:])


def test_a_periodic_axis_knows_the_nearest_image():
    open_, wrapped, published = (
        bucket_shares(8, kind, torch.device("cpu"))
        for kind in ("open", "periodic", "published-periodic")
    )
    near = slice(4, 11)  # offsets -3 to 3
    assert torch.equal(wrapped[near], open_[near])
    assert torch.equal(wrapped[12:], open_[4:7])  # 5, 6, 7 are -3, -2, -1
    assert torch.equal(wrapped[11], (open_[3] + open_[11]) / 2)  # 4 and -4 are one place
    apart = [i for i in range(15) if not torch.equal(wrapped[i], published[i])]
    assert apart == [3, 11]


def test_only_the_bias_tables_and_kernels_of_a_blocks_attention_decay():
    model = small_model()
    decayed = {n for n, _ in model.named_parameters()} - model.no_weight_decay()
    block = {n.removeprefix("blocks.0.temporal.") for n in decayed if n.startswith("blocks.0.t")}
    assert block == {
        "input_head.weight",
        "output_head.weight",
        "rel_pos_bias.relative_attention_bias.weight",
    }


def test_compiled_and_half_precision_blocks_stay_close():
    model, x = small_model().float(), frames(32, 32).float()
    eager = forecast(model, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = forecast(model, x)
    for block in model.blocks():
        block.compile(fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(forecast(model, x), eager, rtol=1e-4, atol=1e-4)
    # bf16 rounds each product by 2^-9; some twenty products in a row
    assert half.dtype == torch.float32
    assert 0 < (half - eager).norm() < 0.05 * eager.norm()


def dropping_model(**options: object) -> MPP:
    """Whole branches left out of the second block as often as not."""
    return small_model(**{"drop_path": 0.5, **options}).train()


def test_stochastic_depth_follows_the_samples_seeds_alone():
    model, x = dropping_model(), frames(16, 32, batch=4)
    seeds = torch.tensor([5, 7, 5, 2**62 + 1])
    together = model(x, seeds)[0]
    alone = torch.cat([model(x[i : i + 1], seeds[i : i + 1])[0] for i in (0, 1, 2, 3)])
    torch.testing.assert_close(alone, together, **EXACT)
    order = [3, 1, 0, 2]
    torch.testing.assert_close(model(x[order], seeds[order])[0], together[order], **EXACT)
    other = model(x, seeds + 1)[0]
    assert not torch.allclose(other, together, rtol=0.1)
    # in use, everything counts, and seeds do not
    whole = small_model()
    with torch.no_grad():
        assert torch.equal(model.eval()(x, seeds)[0], forecast(whole, x))


def test_stochastic_depth_grows_with_depth_and_keeps_the_mean():
    model = dropping_model(processor_blocks=3)
    kept = torch.stack(model._kept(frames(32, 32, batch=2000, steps=2), torch.arange(2000)))
    for block, rate in zip(kept, (0.0, 0.25, 0.5), strict=True):
        expected = [*([0.0] if rate else []), 1 / (1 - rate)]
        assert block.unique().tolist() == pytest.approx(expected)
        # 12,000 draws: the mean's deviation is at most 0.009
        assert abs((block == 0).double().mean() - rate) < 0.04
    # branches, frames and samples are left out one by one
    last = (kept[-1] == 0).flatten(1).T.double()
    assert torch.corrcoef(last).triu(1).abs().max() < 0.1


def test_a_branch_left_out_leaves_tokens_as_they_are():
    block = small_model().blocks()[0]
    tokens = frames(2, 3, steps=4, channels=2)[..., :1].expand(2, 2, 3, 4, 16).movedim(3, 1)
    none = torch.zeros(2, 3, 4, dtype=torch.float64)
    assert torch.equal(block(tokens, none), tokens)
    assert torch.equal(block(tokens, none + 1), block(tokens))
    with torch.no_grad():
        one = none.clone()
        one[1, 2, 3] = 1  # the MLP of the second sample's last frame
        changed = (block(tokens, one) != tokens).flatten(2).any(2)
    assert changed.tolist() == [[False] * 4, [False, False, False, True]]


def test_the_objective_hands_over_the_seeds_and_recomputation_draws_the_same():
    model = dropping_model().float()
    objective = create_objective("autoregressive", ["a", "b", "c"], num_input_frames=3)
    window = frames(32, 32, steps=4).permute(0, 3, 4, 2, 1).float()

    class Batch:
        frames = window
        present = torch.ones(2, 3, dtype=torch.bool)
        sample_seed = torch.tensor([3, 4])

    def gradients() -> list[Tensor]:
        model.zero_grad()
        torch.manual_seed(torch.seed())  # nothing may depend on the global generator
        objective.errors(model, Batch).sum().backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    once = gradients()
    for block in model.blocks():
        forward = block.forward
        block.forward = partial(checkpoint, forward, use_reentrant=False)  # type: ignore[method-assign]
    assert all(map(torch.equal, gradients(), once))
    Batch.sample_seed = torch.tensor([3, 5])
    assert not all(map(torch.equal, gradients(), once))


def test_its_objective_is_dpots():
    objective = create_objective("autoregressive", ["a", "b", "c"], num_input_frames=3)
    x = frames(32, 16).permute(0, 3, 4, 2, 1)
    assert objective.predict(small_model(), x, torch.zeros(2)).shape == (2, 3, 16, 32)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"fields": ("a", "compressible/presure", "b")},
            "'compressible/presure' is not in the vocabulary; closest: compressible/pressure",
        ),
        ({"fields": ("spare-1",)}, "fields has 1 names for in_channels=3"),
        ({"fields": ("spare-1",) * 3}, "fields names spare-1 more than once"),
        ({"out_channels": 2}, "out_channels=2 must be in_channels=3"),
        ({"embed_dim": 20, "num_heads": 3}, r"multiple of num_heads \(3\), e.g. 21"),
        ({"in_channels": 13, "out_channels": 13}, "at least 13 names"),
        ({"boundary": "closed"}, "'closed' must be one of 'open', 'periodic'"),
        ({"drop_path": 1.0}, "drop_path=1.0 must be at least 0 and below 1"),
        ({"processor_blocks": 0, "num_heads": 0}, "num_heads=0 must .*; processor_blocks=0 must"),
    ],
)
def test_options_that_do_not_fit_are_named(overrides: dict, message: str):
    with pytest.raises(ValueError, match=message):
        MPPConfig(**{"in_channels": 3, "out_channels": 3, **overrides})


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 40, 50, 2, 3), "the nearest grid is 32x48"),
        ((1, 16, 16, 2, 3), "the nearest grid is 16x32"),
        ((1, 32, 32, 2, 4), r"needs \[batch, X, Y, T, 3\]"),
        ((1, 32, 32, 0, 3), "at least one frame"),
    ],
)
def test_a_wrong_shape_names_the_nearest(shape: tuple[int, ...], message: str):
    with pytest.raises(ValueError, match=message):
        small_model()(torch.zeros(shape, dtype=torch.float64))
