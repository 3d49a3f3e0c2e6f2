"""Operators between frames: what grids, translations, boundaries and points mean to them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pelagos.models.deeponet import DeepONet, DeepONetConfig, grid_points
from pelagos.models.fno import FNO, TFNO, FNOConfig, TFNOConfig
from pelagos.models.frame_layers import BoundaryConv2d, Edges, pad_edges
from pelagos.models.mgno import MgNO, MgNOConfig, VCycle, spread
from pelagos.models.pretrained import Pretrained
from pelagos.models.registry import create_model, load_pretrained
from pelagos.models.sinenet import SineNet, SineNetConfig, double_grid
from pelagos.models.spectral_layers import SpectralConvolution, field_of_modes, lowest_modes
from pelagos.models.unet import UNet, UNetConfig

SMALL_FNO = {"in_channels": 2, "out_channels": 1, "modes": 4, "width": 8, "num_layers": 2}
SMALL_UNET = {"width": 8, "multipliers": (1, 2, 2), "num_blocks": 1, "num_heads": 2}
SMALL_SINENET = {"width": 8, "num_waves": 2, "num_levels": 2}
SMALL_MGNO = {"width": 8, "num_layers": 2, "num_levels": 3}
SMALL_DEEPONET = {
    "image_size": (8, 12),
    "branch_width": 4,
    "num_stages": 2,
    "trunk_width": 16,
    "num_layers": 1,
    "num_basis": 8,
    "num_waves": 2,
}
CHANNELS = {"in_channels": 2, "out_channels": 3}
STRIDE = 4  # of the small U-Net, SineNet and MgNO


def small_models() -> dict[str, Pretrained]:
    torch.manual_seed(0)
    return {
        "fno": FNO(FNOConfig(**{**SMALL_FNO, **CHANNELS})),
        "tfno": TFNO(TFNOConfig(**{**SMALL_FNO, **CHANNELS}, rank=0.6)),
        "unet": UNet(UNetConfig(**SMALL_UNET, **CHANNELS)),
        "sinenet": SineNet(SineNetConfig(**SMALL_SINENET, **CHANNELS)),
        "mgno": MgNO(MgNOConfig(**SMALL_MGNO, **CHANNELS)),
        "deeponet": DeepONet(DeepONetConfig(**SMALL_DEEPONET, **CHANNELS)),
    }


MODELS = small_models()


def inputs(batch: int = 2, rows: int = 8, columns: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    frame = torch.randn(batch, CHANNELS["in_channels"], rows, columns, generator=generator)
    return frame, torch.linspace(0.2, 0.9, batch)


def waves(rows: int, columns: int, highest: int = 3) -> Tensor:
    """One random field ``[1, 2, rows, columns]`` of wave numbers up to ``highest``, any grid."""
    generator = torch.Generator().manual_seed(2)
    y = torch.arange(rows, dtype=torch.float64)[:, None] / rows
    x = torch.arange(columns, dtype=torch.float64) / columns
    field = torch.zeros(2, rows, columns, dtype=torch.float64)
    for channel in range(2):
        for k in range(-highest, highest + 1):
            for m in range(highest + 1):
                amplitude, shift = torch.rand(2, generator=generator, dtype=torch.float64)
                phase = k * y + m * x + shift
                field[channel] += amplitude / 10 * torch.cos(2 * math.pi * phase)
    return field[None].float()


# every family ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_a_rectangular_frame_gives_a_frame_and_every_parameter_a_gradient(name: str):
    model, (frame, time) = MODELS[name], inputs()
    output = model(frame, time).output
    assert output.shape == (2, 3, 8, 12)
    output.square().sum().backward()
    gradients = {key: parameter.grad for key, parameter in model.named_parameters()}
    assert all(g is not None and g.isfinite().all() and g.any() for g in gradients.values())
    assert all(p.dtype == torch.float32 for p in model.parameters())  # complex ones as pairs
    model.zero_grad()


@pytest.mark.parametrize("name", MODELS)
def test_the_lead_time_counts_and_samples_do_not_mix(name: str):
    model, (frame, time) = MODELS[name], inputs()
    with torch.no_grad():
        both = model(frame, time).output
        alone = model(frame[1:], time[1:]).output
        later = model(frame, time + 0.05).output
    # other batch sizes take other orders of summation
    torch.testing.assert_close(both[1:], alone, rtol=1e-4, atol=1e-5)
    assert (both - later).norm() > 1e-3 * both.norm()


@pytest.mark.parametrize("name", MODELS)
def test_half_precision_and_a_compiled_block_stay_close(name: str):
    model, (frame, time) = small_models()[name], inputs()
    with torch.no_grad():
        eager = model(frame, time).output
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = model(frame, time).output
        pure = small_models()[name].bfloat16()(frame.bfloat16(), time.bfloat16()).output
        model.blocks()[0].compile(fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(model(frame, time).output, eager, rtol=1e-4, atol=1e-5)
    assert (half.dtype, pure.dtype) == (torch.float32, torch.bfloat16)
    # bf16 rounds each product by 2^-9; a dozen layers in a row
    assert 0 < (half - eager).norm() < 0.05 * eager.norm()
    assert 0 < (pure - eager).norm() < 0.05 * eager.norm()


@pytest.mark.parametrize("name", MODELS)
def test_a_model_directory_gives_the_same_network_again(name: str, tmp_path: Path):
    model, (frame, time) = MODELS[name], inputs()
    model.save_pretrained(tmp_path / name)
    again = load_pretrained(tmp_path / name)
    assert type(again) is type(model)
    assert again.config == model.config
    with torch.no_grad():
        assert torch.equal(again(frame, time).output, model(frame, time).output)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("fno", (1, 2, 8, 7), r"at least 8 .*2 \* modes\(4\) = 8\); the nearest grid is 8x8"),
        ("tfno", (1, 3, 8, 8), r"^TFNO got .* needs \[batch, 2, H, W\]: in_channels=2"),
        ("unet", (1, 2, 8, 10), r"len\(multipliers\)\(3\) - 1\) = 4\); the nearest grid is 8x8"),
        ("sinenet", (1, 2, 4, 8), r"num_levels\(2\) = 4; two points .* = 8\); .* grid is 8x8"),
        ("mgno", (1, 2, 8, 13), r"num_levels\(3\) - 1\) = 4\); the nearest grid is 8x12"),
        ("deeponet", (1, 2, 12, 8), r"needs \[batch, 2, 8, 12\].*image_size=\(8, 12\)"),
    ],
)
def test_a_wrong_shape_shows_what_is_needed(name: str, shape: tuple[int, ...], message: str):
    with pytest.raises(ValueError, match=message):
        MODELS[name](torch.zeros(shape), torch.zeros(1))
    frame, _ = inputs()
    with pytest.raises(ValueError, match=r"time of shape \(3,\), needs \(2,\)"):
        MODELS[name](frame, torch.zeros(3))


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("fno-nano", {"num_dimensions": 4, "modes": 0}, "modes=0 must .*; num_dimensions=4 must"),
        ("tfno-nano", {"rank": 1.5}, "rank=1.5 must be above 0 and at most 1"),
        ("unet-nano", {"width": 20}, r"width=20 .* norm_groups\(8\); the nearest is 16"),
        ("unet-nano", {"num_heads": 5}, r"width 64 = width\(16\) \* 4 must .* num_heads\(5\)"),
        ("sinenet-nano", {"multiplier": 0.5, "boundary": "open"}, "multiplier=0.5 must"),
        ("mgno-nano", {"boundary": "zeros"}, "must be one of 'periodic', 'dirichlet', 'neumann'"),
        ("unet-nano", {"multipliers": (1, 0.5)}, r"multipliers=\(1, 0.5\) must be whole"),
        ("deeponet-nano", {"image_size": 32.5}, "image_size=32.5 must be one whole number, or two"),
        ("deeponet-nano", {"image_size": 3}, r"2 \*\* num_stages\(2\) = 4; .* num_stages=1 at"),
    ],
)
def test_options_that_do_not_fit_show_the_arithmetic(name: str, overrides: dict, message: str):
    with pytest.raises(ValueError, match=message):
        create_model(name, **overrides)


# Fourier neural operators -----------------------------------------------------------------------


def across_resolutions(model: FNO, highest: int) -> float:
    """How much the predictions from 32² and 64² samples differ at the points they share."""
    with torch.no_grad():
        coarse, fine = (
            model(waves(side, side, highest), torch.tensor([0.5])).output for side in (32, 64)
        )
    return ((coarse - fine[..., ::2, ::2]).abs().max() / fine.abs().max()).item()


def test_fno_means_the_same_on_every_grid_that_resolves_the_field():
    torch.manual_seed(0)
    functional = FNO(FNOConfig(**SMALL_FNO, use_coordinates=False))
    # fp32, and harmonics that GELU makes above wave number 28, which 32 points alias into the modes
    assert across_resolutions(functional, highest=3) < 1e-5
    assert across_resolutions(functional, highest=20) > 1e-2  # 32 points do not resolve this
    # a coordinate jumps from 1 to 0 at the edge: a function that no grid resolves
    assert across_resolutions(FNO(FNOConfig(**SMALL_FNO)), highest=3) > 1e-3


def test_fno_commutes_with_translations_unless_it_sees_coordinates():
    frame, time, shift = waves(16, 20), torch.tensor([0.5]), (3, 7)
    torch.manual_seed(0)
    for use_coordinates in (False, True):
        model = FNO(FNOConfig(**SMALL_FNO, use_coordinates=use_coordinates))
        with torch.no_grad():
            moved = model(frame.roll(shift, (2, 3)), time).output
            difference = (moved - model(frame, time).output.roll(shift, (2, 3))).norm()
        assert (difference > 1e-2 * moved.norm()) == use_coordinates
        assert use_coordinates or difference < 1e-5 * moved.norm()


@pytest.mark.parametrize("grid", [(9,), (8, 11), (7, 6, 9)])
def test_each_mode_is_multiplied_by_its_own_matrix(grid: tuple[int, ...]):
    # cos(2π k·x) in channel i becomes Re(W[k, i, o] exp(2πi k·x)) in channel o
    modes, dimensions = 3, len(grid)
    convolution = SpectralConvolution(4, modes, dimensions).double()
    convolution.reset_parameters()
    numbers = (-2, 1, 2)[-dimensions:]
    axes = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) / n for n in grid), indexing="ij")
    phase = 2 * math.pi * sum(k * axis for k, axis in zip(numbers, axes, strict=True))
    field = torch.zeros(1, 4, *grid, dtype=torch.float64)
    field[0, 1] = torch.cos(phase)
    matrix = torch.view_as_complex(convolution.weight.detach())[numbers][1]
    expected = torch.stack([(w * torch.exp(1j * phase)).real for w in matrix])
    with torch.no_grad():
        torch.testing.assert_close(convolution(field)[0], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("grid", [(9,), (8, 11), (7, 6, 9)])
def test_a_field_of_the_kept_modes_alone_survives_them(grid: tuple[int, ...]):
    noise = torch.randn(2, 3, *grid, dtype=torch.float64)
    once = field_of_modes(lowest_modes(noise, 3, len(grid)), 3, noise.shape[2:])
    again = field_of_modes(lowest_modes(once, 2, len(grid)), 2, noise.shape[2:])
    assert (once - noise).norm() > 0.1 * noise.norm()
    series = torch.fft.fftn(again, dim=tuple(range(2, noise.ndim)))
    kept = torch.fft.fftfreq(grid[0], 1 / grid[0]).abs() <= 2
    assert series[:, :, ~kept].abs().max() < 1e-10
    twice = field_of_modes(lowest_modes(again, 3, len(grid)), 3, noise.shape[2:])
    torch.testing.assert_close(twice, again, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_full_rank_tfno_is_the_fno_of_its_contracted_weights(dimensions: int):
    options = {**SMALL_FNO, "modes": 2, "num_dimensions": dimensions}
    torch.manual_seed(0)
    factorised = TFNO(TFNOConfig(**options, rank=1.0))
    dense = FNO(FNOConfig(**options))
    state, weights = factorised.state_dict(), dense.state_dict()
    for key in weights:
        weights[key] = state[key] if key in state else contracted(state, key, dimensions)
    dense.load_state_dict(weights)
    frame, time = torch.randn(2, 2, *(5, 6, 4)[:dimensions]), torch.tensor([0.1, 0.8])
    with torch.no_grad():
        expected, got = dense(frame, time).output, factorised(frame, time).output
    # the same sums in another order, a few hundred terms
    assert (got - expected).norm() < 1e-5 * expected.norm()
    assert contracted(state, "layers.0.spectral.weight", dimensions).shape[0] == 2 * 2 ** (
        dimensions > 1
    )


def contracted(state: dict[str, Tensor], key: str, dimensions: int) -> Tensor:
    """The dense weight that core and factors of a TFNO stand for."""
    stem = key.removesuffix("weight")
    core, left, right, *modes = (
        torch.view_as_complex(state[stem + name])
        for name in (
            "core",
            "input_factor",
            "output_factor",
            *(f"mode_factor_{axis}" for axis in range(dimensions)),
        )
    )
    small, large = "abc"[:dimensions], "ABC"[:dimensions]
    factors = ",".join(f"{k}{r}" for k, r in zip(large, small, strict=True))
    weight = torch.einsum(f"{small}pq,ip,oq,{factors}->{large}io", core, left, right, *modes)
    return torch.view_as_real(weight)


def test_a_low_rank_saves_parameters_and_starts_with_the_same_energy():
    torch.manual_seed(0)
    low = TFNO(TFNOConfig(modes=8, width=32, num_layers=1, rank=0.5)).layers[0].spectral
    full = SpectralConvolution(32, 8, 2)
    sizes = [sum(p.numel() for p in module.parameters()) for module in (low, full)]
    factors = 16 * 8 + 8 * 4 + 2 * 32 * 16  # of two axes of modes, of channels in and out
    assert sizes == [0.5**4 * 2 * 16 * 8 * 32 * 32 + 2 * factors, 2 * 16 * 8 * 32 * 32]
    weight = contracted({f"x.{k}": v for k, v in low.state_dict().items()}, "x.weight", 2)
    full.reset_parameters()
    # one draw of a random tensor's energy; 16 factors' columns make it vary by some 20 percent
    assert 0.5 < (weight.square().mean() / full.weight.square().mean()).item() < 2


# periodic grids ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["unet", "sinenet", "mgno"])
def test_periodic_networks_commute_with_translations_by_their_stride(name: str):
    frame, time = inputs(rows=16, columns=12)

    def difference(model: nn.Module, shift: tuple[int, int]) -> float:
        with torch.no_grad():
            output = model(frame, time).output
            moved = model(frame.roll(shift, (2, 3)), time).output
        return ((moved - output.roll(shift, (2, 3))).norm() / output.norm()).item()

    bounded = {"unet": "zeros", "sinenet": "zeros", "mgno": "dirichlet"}[name]
    small = {"unet": SMALL_UNET, "sinenet": SMALL_SINENET, "mgno": SMALL_MGNO}[name]
    walls = create_model(f"{name}-nano", **{**small, **CHANNELS, "boundary": bounded})
    assert MODELS[name].config.stride == STRIDE
    assert difference(MODELS[name], (STRIDE, -2 * STRIDE)) < 1e-5
    assert difference(MODELS[name], (1, 0)) > 1e-3  # the coarser grids do not move along
    assert difference(walls, (STRIDE, -2 * STRIDE)) > 1e-3


@pytest.mark.parametrize(
    ("edges", "mode"),
    [
        ("periodic", "circular"),
        ("zeros", "constant"),
        ("reflect", "reflect"),
        ("nearest", "replicate"),
    ],
)
def test_edges_are_those_of_torch(edges: Edges, mode: str):
    field = torch.randn(2, 3, 5, 6)
    assert torch.equal(pad_edges(field, 2, edges), F.pad(field, (2, 2, 2, 2), mode=mode))
    convolution = BoundaryConv2d(3, 4, edges, kernel_size=5)
    with torch.no_grad():
        expected = F.conv2d(
            F.pad(field, (2, 2, 2, 2), mode=mode), convolution.weight, convolution.bias
        )
        torch.testing.assert_close(convolution(field), expected)


def test_doubling_the_grid_is_bicubic_and_knows_periodic_edges():
    field = torch.randn(2, 3, 6, 9)
    expected = F.interpolate(field, scale_factor=2, mode="bicubic", align_corners=False)
    torch.testing.assert_close(double_grid(field, "zeros"), expected)
    tiled = F.interpolate(field.repeat(1, 1, 3, 3), scale_factor=2, mode="bicubic")
    torch.testing.assert_close(double_grid(field, "periodic"), tiled[..., 12:24, 18:36])


# multigrid --------------------------------------------------------------------------------------


def symmetric_mgno(boundary: str) -> MgNO:
    """An MgNO whose stencils are mirror images of themselves, the same for every boundary."""
    torch.manual_seed(3)
    model = MgNO(MgNOConfig(**SMALL_MGNO, **CHANNELS, boundary=boundary))
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, BoundaryConv2d):
                weight = module.weight
                weight += weight.flip(-1)
                weight += weight.flip(-2)
    return model


def even_extension(field: Tensor) -> Tensor:
    """n points to one period of 2 (n - 1), mirrored about the first and the last."""
    for axis in (-2, -1):
        inner = field.narrow(axis, 1, field.shape[axis] - 2).flip(axis)
        field = torch.cat((field, inner), axis)
    return field


def test_reflecting_padding_is_the_method_of_images_for_neumann_boundaries():
    # ∂u/∂n = 0 on a box is the periodic problem of the mirrored field on twice the box, on every
    # level, where stencils have no preferred side: 9x13 points have a period of 16x24.
    frame, time = inputs(rows=9, columns=13)
    with torch.no_grad():
        box = symmetric_mgno("neumann")(frame, time).output
        images = symmetric_mgno("periodic")(even_extension(frame), time).output
        walls = symmetric_mgno("dirichlet")(frame, time).output
    expected = images[..., :9, :13]
    torch.testing.assert_close(box, expected, rtol=1e-4, atol=1e-4)
    assert (walls - expected).norm() > 1e-2 * expected.norm()


def odd_extension(field: Tensor) -> Tensor:
    """n points to one period of 2 (n + 1): a zero, the field, a zero, the negative mirror image."""
    for axis in (-2, -1):
        zero = torch.zeros_like(field.narrow(axis, 0, 1))
        field = torch.cat((zero, field, zero, -field.flip(axis)), axis)
    return field


def test_zero_padding_is_the_method_of_images_for_dirichlet_boundaries():
    # u = 0 one spacing outside is the periodic problem of the odd field; linear maps alone keep
    # it odd, and coarser grids have no point on that wall: the smoothers of one level.
    torch.manual_seed(0)
    cycles = {}
    for boundary in ("dirichlet", "periodic", "neumann"):
        config = MgNOConfig(num_levels=1, num_coarsest_steps=3, boundary=boundary)
        cycles[boundary] = VCycle(config, 2, 3)
        cycles[boundary].load_state_dict(cycles["dirichlet"].state_dict())
    with torch.no_grad():
        for weight in cycles["dirichlet"].parameters():
            weight += weight.flip(-1)
            weight += weight.flip(-2)
        for cycle in cycles.values():
            cycle.load_state_dict(cycles["dirichlet"].state_dict())
        field = torch.randn(1, 2, 7, 5)
        images = cycles["periodic"](odd_extension(field))[..., 1:8, 1:6]
        torch.testing.assert_close(cycles["dirichlet"](field), images, rtol=1e-4, atol=1e-5)
        assert (cycles["neumann"](field) - images).norm() > 1e-2 * images.norm()


def test_prolongation_is_the_transposed_convolution():
    coarse, weight = torch.randn(2, 3, 4, 5), torch.randn(4, 3, 3, 3)
    fine = F.conv2d(spread(coarse, 7, 10), weight, padding=1)
    expected = F.conv_transpose2d(
        coarse, weight.flip(-1, -2).transpose(0, 1), stride=2, padding=1, output_padding=(0, 1)
    )
    torch.testing.assert_close(fine, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("boundary", "side"), [("periodic", 64), ("neumann", 65)])
def test_with_the_textbooks_stencils_a_cycle_solves_poissons_equation(boundary: str, side: int):
    config = MgNOConfig(num_levels=6, num_coarsest_steps=8, boundary=boundary)
    cycle = VCycle(config, 1, 1).double()
    laplacian = torch.tensor([[0.0, -1.0, 0.0], [-1.0, 4.0, -1.0], [0.0, -1.0, 0.0]])
    point = torch.tensor([[0.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    hat = torch.tensor([[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]])
    with torch.no_grad():
        for level, stencils in enumerate(cycle.levels):
            stencils.operator.weight.copy_(laplacian / 4**level)  # 1 / h², h = 2^level
            for smoother in (*stencils.before, *stencils.after):
                smoother.weight.copy_(0.8 * point * 4**level / 4)  # damped Jacobi
        for restrict, prolong in zip(cycle.restrict, cycle.prolong, strict=True):
            restrict.weight.copy_(hat / 16)
            prolong.weight.copy_(hat / 4)
        operator = cycle.levels[0].operator
        # in the operator's range, so that there is a solution
        right = operator(torch.randn(1, 1, side, side, dtype=torch.float64))

        def reduction(cycles: int = 10) -> float:
            residual = right
            for _ in range(cycles):
                residual = residual - operator(cycle(residual))
            return (residual.norm() / right.norm()).item()

        multigrid = reduction()
        for prolong in cycle.prolong:
            prolong.weight.zero_()
        jacobi = reduction()
    # Damped Jacobi reduces what coarser grids do not see by 3/5 a step, so that a cycle of two
    # steps reduces everything by 0.36 (Trottenberg et al., Multigrid, 2001, sec. 2.1), and Jacobi
    # alone hardly reduces smooth errors.
    assert multigrid < 0.4**10 < jacobi / 10


# DeepONet ---------------------------------------------------------------------------------------


def test_the_grids_prediction_is_the_query_of_its_points():
    model, (frame, time) = MODELS["deeponet"], inputs()
    assert isinstance(model, DeepONet)
    points = torch.tensor([[i / 8, j / 12] for i in range(8) for j in range(12)])
    assert torch.equal(grid_points((8, 12), frame.device)[0], points)
    with torch.no_grad():
        output = model(frame, time).output
        for index in (0, 5, 50, 95):
            single = model.query(frame, points[index].expand(2, 1, 2), time)[..., 0]
            row, column = divmod(index, 12)
            torch.testing.assert_close(output[..., row, column], single, rtol=1e-4, atol=1e-6)
    assert output.flatten(2).std(dim=2).min() > 1e-4  # the points do differ


def test_the_order_of_the_points_does_not_matter_and_each_stands_alone():
    model, (frame, time) = MODELS["deeponet"], inputs()
    assert isinstance(model, DeepONet)
    points, order = torch.rand(2, 30, 2), torch.randperm(30)
    with torch.no_grad():
        values = model.query(frame, points, time)
        shuffled = model.query(frame, points[:, order], time)
        torch.testing.assert_close(shuffled, values[..., order], rtol=1e-4, atol=1e-6)
        few = model.query(frame, points[:, :3], time)
        torch.testing.assert_close(few, values[..., :3], rtol=1e-4, atol=1e-6)
    assert (shuffled - values).norm() > 1e-3 * values.norm()
    with pytest.raises(ValueError, match=r"points of shape \(2, 30\), needs \[2, N, 2\]"):
        model.query(frame, points[..., 0], time)
