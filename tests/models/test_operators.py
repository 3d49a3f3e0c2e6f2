"""Operators between frames: what grids, translations, boundaries and points mean to them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pelagos.models.deeponet import DeepONet, DeepONetConfig, grid_points
from pelagos.models.fno import FNO, TFNO, FNOConfig, TFNOConfig
from pelagos.models.layers.frame_layers import BoundaryConv2d, Edges, pad_edges
from pelagos.models.mgno import MgNO, MgNOConfig, VCycle, spread
from pelagos.models.pretrained import Pretrained
from pelagos.models.registry import create_model, load_pretrained
from pelagos.models.sinenet import SineNet, SineNetConfig, double_grid
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
        ("sinenet-nano", {"lead_time": "no"}, "lead_time='no' must be true or false"),
        ("mgno-nano", {"boundary": "zeros"}, "must be one of 'periodic', 'dirichlet', 'neumann'"),
        ("unet-nano", {"multipliers": (1, 0.5)}, r"multipliers=\(1, 0.5\) must be whole"),
        ("deeponet-nano", {"image_size": 32.5}, "image_size=32.5 must be one whole number, or two"),
        (
            "deeponet-nano",
            {"image_size": 3},
            r"2 \*\* num_stages\(2\) = 4; .* at most num_stages=1",
        ),
    ],
)
def test_options_that_do_not_fit_show_the_arithmetic(name: str, overrides: dict, message: str):
    with pytest.raises(ValueError, match=message):
        create_model(name, **overrides)


# Fourier neural operators -----------------------------------------------------------------------


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


def test_a_sinenet_without_lead_times_has_the_published_count_and_ignores_the_time():
    # SineNet-8-dual, from four frames of a scalar and a vector to the next one
    with torch.device("meta"):
        model = create_model("sinenet-8", in_channels=12, out_channels=3, lead_time=False)
    assert sum(parameter.numel() for parameter in model.parameters()) == 35_490_219
    small = SineNet(SineNetConfig(**SMALL_SINENET, **CHANNELS, lead_time=False))
    frame, time = inputs()
    with torch.no_grad():
        assert torch.equal(small(frame, time).output, small(frame, 2 * time).output)


def test_a_wave_sees_the_averages_of_its_input_at_every_resolution():
    torch.manual_seed(0)
    model, (frame, time) = SineNet(SineNetConfig(**SMALL_SINENET, **CHANNELS)), inputs()
    coarse = model.waves[0].down[1]
    with torch.no_grad():
        model.waves[0].down[0].norm2.weight.zero_()  # nothing processed gets beyond the first
        model.waves[0].down[0].shortcut.weight.zero_()
        seen: list[Tensor] = []
        coarse.register_forward_hook(lambda _module, given, _made: seen.append(given[1]))
        model(frame, time)
    averages = F.avg_pool2d(model.lift(frame), 4)
    torch.testing.assert_close(seen[0], averages)


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
