"""Images and volumes: what all families share, transformers, masked autoencoders, SimVP."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pelagos.models.layers.vit_layers import patchify, sin_cos_positions, unpatchify
from pelagos.models.mae import MAE, MAEConfig
from pelagos.models.mednext import MedNeXt, MedNeXtBlock, MedNeXtConfig
from pelagos.models.nnunet import NnUNetConfig
from pelagos.models.registry import FAMILIES, create_model, model_info
from pelagos.models.simvp import SimVP, SimVPConfig
from pelagos.models.vit import ViT, ViTConfig

NANO_MODELS = [
    "vit-nano",
    "mae-nano",
    "nnunet-nano",
    "stunet-nano",
    "mednext-nano",
    "simvp-nano",
    "gnot-nano",
]
UNETS = ["nnunet-nano", "stunet-nano", "mednext-nano"]
SMALL = {"embed_dim": 24, "depth": 3, "num_heads": 2, "in_channels": 1}
PLANE = {"image_size": (8, 12), "patch_size": (2, 3), **SMALL}
VOLUME = {"image_size": (4, 8, 4), "patch_size": (2, 2, 2), **SMALL}
LIGHT = {"out_channels": 1, "decoder_dim": 12, "decoder_depth": 1, "decoder_heads": 2}
# Published counts in millions. The papers' heads have other numbers of classes, and MedNeXt's one
# more at the bottleneck: less than 2 % of the smallest network.
PUBLISHED_MILLIONS = {
    "nnunet-plain": 31.2,
    "nnunet-resenc": 102.4,
    "stunet-s": 14.6,
    "stunet-b": 58.3,
    "stunet-l": 440.3,
    "stunet-h": 1457.3,
    "mednext-s": 5.6,
    "mednext-b": 10.5,
    "mednext-m": 17.6,
    "mednext-l": 61.8,
}


def random_masks(batch: int, tokens: int, kept: int) -> Tensor:
    return torch.rand(batch, tokens).argsort(dim=1) < kept


def random_inputs(name: str, model: nn.Module) -> tuple[Tensor, ...]:
    """The family's example with noise for zeros; booleans are masks and stay."""
    example = FAMILIES[model_info(name).family].example(model.config, 2)
    return tuple(x if x.dtype == torch.bool else torch.randn(x.shape) for x in example)


def tensors_in(answer: object) -> list[Tensor]:
    """What the network says; not the image's own values beside it."""
    if isinstance(answer, Tensor):
        return [answer] if answer.is_floating_point() else []
    parts = answer
    if not isinstance(answer, tuple):
        parts = tuple(value for key, value in vars(answer).items() if key != "target")
    return [tensor for part in parts for tensor in tensors_in(part)]


# -- every family ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {}) for name in NANO_MODELS),
        ("vit-nano", {"head": "segmentation"}),
        ("vit-nano", {"head": "segmentation", "segmentation_decoder": "convolution"}),
        ("mae-nano", {"local_reconstruction": True, "positions": "learned"}),
        *((name, {"deep_supervision": True}) for name in UNETS),
    ],
)
def test_every_parameter_has_a_gradient_and_half_precision_stays_close(name: str, options: dict):
    torch.manual_seed(0)
    model = create_model(name, **options)
    inputs = random_inputs(name, model)
    outputs = tensors_in(model(*inputs))
    sum(output.square().sum() for output in outputs).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        halves = tensors_in(model(*inputs))
    for half, output in zip(halves, outputs, strict=True):
        assert half.dtype == torch.float32
        # bf16 rounds each product by 2^-9; norms over few voxels enlarge that
        assert 0 < (half - output).norm() < 0.1 * output.norm()


@pytest.mark.parametrize("name", [n for n in NANO_MODELS if n != "mae-nano"])  # its blocks: vit's
def test_compiled_blocks_give_the_same_answer(name: str):
    torch.manual_seed(0)
    model = create_model(name).eval()
    inputs = random_inputs(name, model)
    with torch.no_grad():
        eager = tensors_in(model(*inputs))
        for block in model.blocks():
            block.compile(fullgraph=True, backend="aot_eager")
        for got, expected in zip(tensors_in(model(*inputs)), eager, strict=True):
            torch.testing.assert_close(got, expected)


def test_published_counts_are_met():
    for name, millions in PUBLISHED_MILLIONS.items():
        assert model_info(name).parameters == pytest.approx(millions * 1e6, rel=0.02), name


# -- patches and positions ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("grid", "patch"), [((8, 12), (2, 3)), ((4, 6, 10), (2, 3, 5))], ids=["plane", "volume"]
)
def test_unpatchify_is_the_inverse_of_patchify(grid: tuple, patch: tuple):
    image = torch.randn(2, 3, *grid)
    patches = patchify(image, patch)
    tokens = tuple(n // p for n, p in zip(grid, patch, strict=True))
    assert patches.shape == (2, math.prod(tokens), math.prod(patch) * 3)
    assert torch.equal(unpatchify(patches, patch, tokens), image)
    # the second token lies next along the last axis; channels are fastest within it
    last = (..., *(slice(0, p) for p in patch[:-1]), slice(patch[-1], 2 * patch[-1]))
    assert torch.equal(patches[:, 1], image[last].movedim(1, -1).flatten(1))


def test_fixed_positions_tell_all_tokens_apart():
    for grid in ((4, 6), (3, 4, 5)):
        table = sin_cos_positions(26, grid).flatten(2)[0]
        distances = torch.cdist(table.T, table.T) + 10 * torch.eye(table.shape[1])
        assert distances.min() > 0.5
    first, second = sin_cos_positions(24, (4, 6))[0].split(12)
    assert torch.equal(first, first[:, :1].expand_as(first))  # along x alone
    assert torch.equal(second, second[:, :, :1].expand_as(second))


def test_fixed_positions_are_those_of_the_masked_autoencoders_paper():
    """Facebook's `get_2d_sincos_pos_embed`, from its formula: for each token, half of the channels
    for the column, then half for the row; of each the sines, then the cosines."""
    width, rows, columns = 16, 3, 5
    omega = 1.0 / 10000 ** (np.arange(width // 4) / (width / 4))

    def one_axis(position: int) -> list[float]:
        return [*np.sin(position * omega), *np.cos(position * omega)]

    expected = [[one_axis(x) + one_axis(y) for x in range(columns)] for y in range(rows)]
    found = sin_cos_positions(width, (rows, columns))[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(found, np.array(expected), atol=1e-6)


@pytest.mark.parametrize(("options", "wider"), [(PLANE, (16, 24)), (VOLUME, (8, 16, 8))])
def test_positions_are_interpolated_to_another_grid(options: dict, wider: tuple):
    model, large = ViT(ViTConfig(**options)), ViT(ViTConfig(**{**options, "image_size": wider}))
    source = model.encoder.position.detach()
    assert torch.equal(model.resized_parameter("encoder.position", source), source)
    resized = large.resized_parameter("encoder.position", source)
    assert resized.shape == large.encoder.position.shape
    constant = large.resized_parameter("encoder.position", torch.ones_like(source))
    torch.testing.assert_close(constant, torch.ones_like(resized))
    # twice as many tokens: the two in the middle lie a quarter of an old step from the centre
    old = source.shape[-1]
    ramp = torch.arange(old, dtype=torch.float32).expand_as(source)
    middle = large.resized_parameter("encoder.position", ramp)[..., old - 1 : old + 1]
    expected = torch.tensor([old / 2 - 0.75, old / 2 - 0.25]).expand_as(middle)
    # torch's cubic (a = -3/4) misses a straight line by 3/64 there; a shift by half a token, by 1/4
    torch.testing.assert_close(middle, expected, rtol=0, atol=0.05)
    assert model.resized_parameter("head.logits.weight", source) is None
    assert model.resized_parameter("encoder.position", source[:, 1:]) is None


def test_fixed_positions_of_another_grid_are_drawn_up_anew():
    fixed = {**PLANE, "positions": "sin-cos"}
    small, large = ViT(ViTConfig(**fixed)), ViT(ViTConfig(**{**fixed, "image_size": (16, 24)}))
    resized = large.resized_parameter("encoder.position", small.encoder.position)
    assert torch.equal(resized, large.encoder.position)


# -- transformers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [PLANE, VOLUME], ids=["plane", "volume"])
def test_heads_answer_with_logits_or_a_map(options: dict):
    grid = options["image_size"]
    image = torch.randn(2, 1, *grid)
    assert ViT(ViTConfig(**options, out_channels=5))(image).shape == (2, 5)
    for decoder in ("linear", "convolution"):
        config = ViTConfig(
            **options, out_channels=5, head="segmentation", segmentation_decoder=decoder
        )
        assert ViT(config)(image).shape == (2, 5, *grid)


def test_the_linear_map_of_a_patch_is_made_of_its_own_token():
    model = ViT(ViTConfig(**PLANE, out_channels=2, head="segmentation"))
    tokens = torch.randn(1, 16, 24)
    changed = tokens.clone()
    changed[0, 5] += 1.0  # row 1, column 1 of the 4 by 4 tokens of 2 by 3 pixels
    difference = (model.head(changed) - model.head(tokens)).abs().sum(dim=(0, 1)) > 1e-6
    expected = torch.zeros(8, 12, dtype=torch.bool)
    expected[2:4, 3:6] = True
    assert torch.equal(difference, expected)


def test_weight_decay_spares_norms_biases_positions_and_mask_tokens():
    model = MAE(MAEConfig(**PLANE, **LIGHT, positions="learned"))
    spared = model.no_weight_decay()
    assert {"encoder.position", "decoder.position", "decoder.mask_token"} < spared
    assert "encoder.blocks.0.norm1.weight" in spared
    assert "encoder.blocks.0.mlp.0.weight" not in spared


# -- masked autoencoders --------------------------------------------------------------------------


@pytest.mark.parametrize("options", [PLANE, VOLUME], ids=["plane", "volume"])
def test_hidden_patches_change_nothing_and_kept_ones_do(options: dict):
    torch.manual_seed(0)
    model = MAE(MAEConfig(**options, **LIGHT, local_reconstruction=options is VOLUME))
    image, other = torch.randn(2, 2, 1, *options["image_size"])
    keep = random_masks(2, 16, 5)
    mixed = model.unpatchify(
        torch.where(keep[..., None], model.patchify(image), model.patchify(other))
    )
    assert not torch.equal(mixed, image)
    got, expected = model(mixed, keep), model(image, keep)
    assert torch.equal(got.masked, ~keep)
    for one, two in zip(tensors_in(got), tensors_in(expected), strict=True):
        assert torch.equal(one, two)
    assert not torch.allclose(model(other, keep).prediction, expected.prediction)


def test_predictions_stand_at_their_own_tokens():
    # without blocks every prediction comes from its own token: it moves only if that was kept
    model = MAE(MAEConfig(**PLANE, **LIGHT))
    model.encoder.blocks, model.decoder.blocks = nn.ModuleList(), nn.ModuleList()
    image, keep = torch.randn(2, 1, 8, 12), random_masks(2, 16, 6)
    moved = (model(image + 1.0, keep).prediction - model(image, keep).prediction).abs().amax(-1)
    assert torch.equal(moved > 1e-6, keep)


def test_the_encoder_hands_over_to_the_classifier_bit_for_bit():
    for positions in ("learned", "sin-cos"):
        source = MAE(MAEConfig(**PLANE, **LIGHT))
        target = ViT(ViTConfig(**PLANE, positions=positions))
        target.encoder.load_state_dict(source.encoder.state_dict(), strict=True)
        image = torch.randn(2, 1, 8, 12)
        everything = torch.ones(2, 16, dtype=torch.bool)
        kept = everything.int().argsort(dim=1, stable=True)
        patches = source.patchify(image)
        assert torch.equal(source.encoder(patches, kept)[0], target.encoder(patches)[0])
        names = {n for n in source.state_dict() if n.startswith("encoder.")}
        assert names == {n for n in target.state_dict() if n.startswith("encoder.")}


@pytest.mark.parametrize(("grid", "patch"), [((8, 12), (2, 2)), ((8, 4, 12), (2, 2, 2))])
def test_local_predictions_have_the_shapes_and_masks_of_their_targets(grid: tuple, patch: tuple):
    sizes = {**SMALL, **LIGHT, "image_size": grid, "patch_size": patch}
    model = MAE(MAEConfig(**sizes, local_reconstruction=True))
    tokens, children = model.config.num_tokens, 2 ** len(grid)
    image = torch.randn(2, 1, *grid)
    keep = random_masks(2, tokens, tokens * 3 // 4)
    output = model(image, keep)
    shapes = [(2, tokens * children, 1), (2, tokens // children, children)]
    assert [tuple(o.prediction.shape) for o in output.local] == shapes
    assert [tuple(t.shape) for t in model.local_targets(image)] == shapes
    # the mask as an image, cut into regions of both scales
    pixels = model.unpatchify((~keep)[..., None].expand(-1, -1, children).float())
    for local, side in zip(output.local, (1, 4), strict=True):
        regions = patchify(pixels, (side,) * len(grid))
        assert torch.equal(local.masked, regions.amax(-1).bool())
    finer, coarser = model.local_targets(image)
    assert torch.equal(finer, patchify(image, (1,) * len(grid)))
    torch.testing.assert_close(coarser.mean(), image.mean())


def test_kept_tokens_bring_their_own_positions():
    encoder = ViT(ViTConfig(**PLANE)).encoder
    patches, order = torch.randn(1, 16, 6), torch.randperm(16)
    # attention sums in another order: a few times 6e-8 of values around 1
    torch.testing.assert_close(
        encoder(patches, order[None])[0], encoder(patches)[0][:, order], rtol=1e-4, atol=1e-5
    )


def test_local_predictions_train_the_lower_blocks_alone():
    model = MAE(
        MAEConfig(
            **PLANE | {"image_size": (8, 8), "patch_size": (2, 2)},
            **LIGHT,
            local_reconstruction=True,
        )
    )
    output = model(torch.randn(1, 1, 8, 8), random_masks(1, 16, 4))
    output.local[0].prediction.sum().backward()
    trained = [any(p.grad is not None for p in b.parameters()) for b in model.encoder.blocks]
    assert trained == [True, False, False]


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (torch.ones(2, 15, dtype=torch.bool), r"keep of shape \(2, 15\).* needs \(2, 16\)"),
        (torch.ones(2, 16), "needs .* torch.bool"),
        (torch.arange(16) < torch.tensor([[3], [4]]), "keep 3 to 4 of 16 tokens"),
        (torch.zeros(2, 16, dtype=torch.bool), "keep 0 to 0 of 16 tokens"),
    ],
)
def test_masks_that_do_not_fit_are_refused(keep: Tensor, message: str):
    with pytest.raises(ValueError, match=message):
        MAE(MAEConfig(**PLANE, **LIGHT))(torch.zeros(2, 1, 8, 12), keep)


# -- SimVP ----------------------------------------------------------------------------------------


def test_simvp_predicts_as_many_frames_as_it_is_told_on_any_grid():
    sizes = {"spatial_dim": 4, "translator_dim": 8, "translator_depth": 1, "kernel_size": 5}
    for frames in (1, 2, 5):
        model = SimVP(
            SimVPConfig(**sizes, in_timesteps=3, out_timesteps=frames, in_channels=2, img_size=8)
        )
        (prediction,) = model(torch.randn(2, 8, 12, 3, 2))
        assert prediction.shape == (2, 8, 12, frames, 4)
    with pytest.raises(ValueError, match=r"2\*\*\(spatial_depth\(4\) // 2\) = 4: Y=10 .*: 8 or 12"):
        model(torch.zeros(1, 8, 10, 3, 2))
    with pytest.raises(ValueError, match=r"\[batch, X, Y, 3, 2\]"):
        model(torch.zeros(1, 8, 8, 2, 2))


def test_simvp_sees_every_frame_and_keeps_x_and_y_apart():
    torch.manual_seed(0)
    model = SimVP(
        SimVPConfig(spatial_dim=4, translator_dim=8, translator_depth=1, in_timesteps=3, img_size=8)
    )
    x = torch.randn(1, 8, 16, 3, 4, requires_grad=True)
    (prediction,) = model(x)
    prediction.square().sum().backward()
    assert (x.grad.abs().amax(dim=(0, 1, 2, 4)) > 0).all()
    with torch.no_grad():  # away from the grid's middle only the skip's neighbourhood is exact
        changed = x.detach().clone()
        changed[0, 7, 2, -1] += 10.0
        difference = (model(changed)[0] - prediction).abs().sum(dim=(0, 3, 4))
        assert divmod(int(difference.argmax()), 16) in [(i, j) for i in (5, 6, 7) for j in range(5)]


# -- mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "overrides", "message"),
    [
        (ViTConfig, {"image_size": (30, 32), "patch_size": (4, 4)}, r"axis 0 .* of 4 .*: 28 or 32"),
        (ViTConfig, {"image_size": (32,)}, "has 1 axes and patch_size=.* has 2; both need 2 or 3"),
        (ViTConfig, {"embed_dim": 50, "num_heads": 4}, "multiple of num_heads=4: 48 or 52"),
        (ViTConfig, {"head": "detection"}, "head='detection' must be one of classification, seg"),
        (ViTConfig, {"depth": 0, "image_size": 3}, "image_size=3 must list .*; depth=0 must be"),
        (MAEConfig, {"in_channels": 1}, "out_channels=3 must equal in_channels=1"),
        (MAEConfig, {"mask_ratio": 1.0}, "mask_ratio=1.0 must lie between 0 and 1"),
        (
            MAEConfig,
            {"image_size": (48, 32), "local_reconstruction": True},
            r"\(3, 2\) must be even along every axis; axis 0 has 3: 2 or 4",
        ),
        (NnUNetConfig, {"decoder_blocks": (1,)}, "has 1 entries, len.widths.=6 needs 5"),
        (NnUNetConfig, {"num_dimensions": 4, "encoder": "x"}, "must be 2 or 3; encoder='x' must"),
        (MedNeXtConfig, {"kernel_size": 4}, "kernel_size=4 must be odd: 3 or 5"),
        (SimVPConfig, {"img_size": 30}, r"img_size=30 must be a multiple of 4 .*: 28 or 32"),
    ],
)
def test_sizes_that_do_not_fit_show_the_arithmetic(config: type, overrides: dict, message: str):
    with pytest.raises(ValueError, match=message):
        config(**overrides)


def test_images_of_another_size_name_what_is_needed():
    for model in (ViT(ViTConfig(**PLANE)), MAE(MAEConfig(**PLANE, **LIGHT))):
        keep = (torch.ones(1, 16, dtype=torch.bool),) if isinstance(model, MAE) else ()
        with pytest.raises(ValueError, match=r"\[batch, 1, 8, 12\]: in_channels=1, image_size="):
            model(torch.zeros(1, 1, 8, 8), *keep)


def test_lists_from_files_make_the_same_configuration():
    assert ViTConfig(image_size=[32, 32]) == ViTConfig(image_size=(32, 32))  # type: ignore[arg-type]


# -- the published function of MedNeXt's up block ---------------------------------------------------


def test_mednexts_up_block_pads_in_front_as_published():
    """Its code transposes by stride 2 without output padding, and pads the block's output and the
    residual in front of every axis (MIC-DKFZ/MedNeXt, MedNeXtUpBlock.forward)."""
    torch.manual_seed(0)
    config = MedNeXtConfig(
        num_dimensions=2,
        widths=(4, 8),
        encoder_blocks=(1, 1),
        decoder_blocks=(1,),
        encoder_expansions=(2, 2),
        decoder_expansions=(2,),
    )
    block = MedNeXtBlock(config, 8, 4, 2, "up")
    x = torch.randn(2, 8, 5, 6)
    deep, short = block.depthwise, block.shortcut
    y = F.conv_transpose2d(x, deep.weight, deep.bias, stride=2, padding=1, groups=8)
    y = F.group_norm(y, 8, block.norm.weight, block.norm.bias)  # a group per channel: instance norm
    first, _, _, second = block.channels
    y = F.conv2d(F.gelu(F.conv2d(y, first.weight, first.bias)), second.weight, second.bias)
    residual = F.conv_transpose2d(x, short.weight, short.bias, stride=2)
    expected = F.pad(y, (1, 0, 1, 0)) + F.pad(residual, (1, 0, 1, 0))
    torch.testing.assert_close(block(x), expected, rtol=1e-6, atol=1e-6)
    assert block(x).shape == (2, 4, 10, 12)


def test_stored_models_of_before_keep_their_padding(tmp_path: Path):
    config = MedNeXtConfig(
        num_dimensions=2,
        widths=(4, 8, 8),
        up_padding="end",
        **{
            "encoder_blocks": (1, 1, 1),
            "decoder_blocks": (1, 1),
            "encoder_expansions": (2, 2, 2),
            "decoder_expansions": (2, 2),
        },
    )
    torch.manual_seed(0)
    model = MedNeXt(config)
    model.reset_parameters()
    model.save_pretrained(tmp_path / "now")
    stored = json.loads((tmp_path / "now/config.json").read_text())
    assert stored.pop("up_padding") == "end"
    (tmp_path / "now/config.json").write_text(json.dumps(stored))  # as it was written before
    loaded = MedNeXt.from_pretrained(tmp_path / "now")
    assert loaded.config.up_padding == "end"
    assert MedNeXtConfig().up_padding == "front"
    x = torch.randn(1, config.in_channels, 8, 8)
    assert torch.equal(loaded(x)[0], model(x)[0])
