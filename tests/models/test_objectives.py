"""Objectives: windows, and losses that do or do not depend on how a batch was split."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from pelagos.models.objectives import (
    OBJECTIVES,
    AllToAll,
    NextStep,
    Objective,
    create_objective,
    default_field_groups,
    ratio_loss,
)
from pelagos.models.poseidon import ScOT, ScOTConfig

FIELDS = ("density", "velocity-x", "velocity-y", "pressure")


@dataclass
class WindowSlice:
    """Two frames of each of a few samples."""

    frames: Tensor
    times: Tensor
    present: Tensor

    def rows(self, index: slice) -> WindowSlice:
        return WindowSlice(self.frames[index], self.times[index], self.present[index])


@pytest.fixture(scope="module")
def model() -> ScOT:
    torch.manual_seed(0)
    config = ScOTConfig(
        image_size=16,
        patch_size=2,
        embed_dim=8,
        depths=(2, 1),
        num_heads=(2, 2),
        skip_connections=(1, 0),
        window_size=4,
    )
    network = ScOT(config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return network


@pytest.fixture
def batch() -> WindowSlice:
    """Four samples whose norms differ by up to ten."""
    generator = torch.Generator().manual_seed(3)
    frames = torch.randn(4, 2, 4, 16, 16, generator=generator)
    frames = frames * torch.tensor([1.0, 0.1, 3.0, 0.3]).reshape(4, 1, 1, 1, 1)
    times = torch.tensor([[0.0, 0.5], [0.2, 0.2], [0.1, 1.0], [0.3, 0.6]])
    return WindowSlice(frames, times, torch.ones(4, 4, dtype=torch.bool))


def gradient(model: ScOT, objective: Objective, batch: WindowSlice, micro: int) -> Tensor:
    """The gradient a trainer accumulates over micro-batches of ``micro`` samples."""
    model.zero_grad()
    total = objective.magnitudes(batch).sum(0)
    size = batch.frames.shape[0]
    for start in range(0, size, micro):
        part = batch.rows(slice(start, start + micro))
        errors = objective.errors(model, part)
        if objective.loss_scope == "global":
            loss = (errors.sum(0) / total).mean()
        else:
            loss = ratio_loss(errors, objective.magnitudes(part)) * micro / size
        loss.backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    return torch.cat([grad.flatten() for grad in grads])


def difference(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).norm() / expected.norm())


@pytest.mark.parametrize("micro", [1, 2])
def test_global_scope_does_not_see_the_split(model: ScOT, batch: WindowSlice, micro: int):
    objective = AllToAll(FIELDS)
    whole = gradient(model, objective, batch, 4)
    # Only the order of fp32 sums over samples changes: a few roundings of 6e-8.
    assert difference(gradient(model, objective, batch, micro), whole) < 1e-6


@pytest.mark.parametrize("micro", [1, 2])
def test_micro_batch_scope_does(model: ScOT, batch: WindowSlice, micro: int):
    objective = AllToAll(FIELDS, loss_scope="micro_batch")
    whole = gradient(model, objective, batch, 4)
    assert difference(gradient(model, objective, batch, micro), whole) > 0.1


@pytest.mark.parametrize("mask", [False, True])
def test_one_micro_batch_is_the_models_own_loss(model: ScOT, batch: WindowSlice, mask: bool):
    objective = AllToAll(FIELDS, loss_scope="micro_batch", time_scale=2.0)
    if mask:
        batch.present[1, 3] = batch.present[2, 0] = False
    frames, times = batch.frames, batch.times
    lead = (times[:, 1] - times[:, 0]) / 2.0
    expected = model(frames[:, 0], lead, frames[:, 1], pixel_mask=~batch.present).loss
    got = ratio_loss(objective.errors(model, batch), objective.magnitudes(batch))
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=0)  # sums against means, fp32


def test_absent_field_gives_zero_gradient_and_zero_error(model: ScOT, batch: WindowSlice):
    batch.present[:, 3] = False
    batch.frames[:, :, 3] = 0.0
    objective = AllToAll(FIELDS)
    seen: list[Tensor] = []
    handle = model.patch_recovery.register_forward_hook(lambda m, i, out: seen.append(out))
    errors = objective.errors(model, batch)
    handle.remove()
    seen[0].retain_grad()
    ratio_loss(errors, objective.magnitudes(batch)).backward()
    assert torch.equal(errors[:, 2], torch.zeros(4))
    assert float(seen[0].grad[:, 3].abs().max()) == 0.0
    assert float(seen[0].grad[:, :3].abs().max()) > 0.0


def test_errors_and_magnitudes_are_the_sums_they_say(model: ScOT, batch: WindowSlice):
    groups = {"first": ["density"], "rest": [1, "velocity-y", 3]}
    objective = AllToAll(FIELDS, field_groups=groups, p=2)
    label = batch.frames[:, 1].double()
    with torch.no_grad():
        output = objective.predict(
            model, batch.frames[:, :1], batch.times[:, 1] - batch.times[:, 0]
        )
        errors = objective.errors(model, batch)
    expected = (output.double() - label)[:, 1:].square().sum((1, 2, 3))
    # 768 fp32 squares summed pairwise: well under sqrt(768) * 6e-8 = 2e-6.
    torch.testing.assert_close(errors[:, 1].double(), expected, rtol=2e-6, atol=0)
    magnitudes = label[:, :1].square().sum((1, 2, 3)) + 1e-10 * 256
    got = objective.magnitudes(batch)
    torch.testing.assert_close(got[:, 0].double(), magnitudes, rtol=2e-6, atol=0)
    assert objective.group_names == ("first", "rest")
    assert not got.requires_grad


@pytest.mark.parametrize("normalize", [False, True])
def test_fields_in_no_group_are_handed_on(model: ScOT, batch: WindowSlice, normalize: bool):
    groups = {"density": ["density"], "velocity-y": ["velocity-y"]}
    objective = AllToAll(FIELDS, field_groups=groups, normalize_samples=normalize)
    everything = AllToAll(FIELDS, normalize_samples=normalize)
    lead = batch.times[:, 1] - batch.times[:, 0]
    with torch.no_grad():
        frame = objective.predict(model, batch.frames[:, :1], lead)
        forecast = everything.predict(model, batch.frames[:, :1], lead)
    assert torch.equal(frame[:, [0, 2]], forecast[:, [0, 2]])
    assert torch.equal(frame[:, [1, 3]], batch.frames[:, 0, [1, 3]])
    assert not torch.equal(forecast[:, [1, 3]], batch.frames[:, 0, [1, 3]])


def test_all2all_windows_count_as_in_the_paper():
    assert len(AllToAll(FIELDS).frame_windows(11)) == 66
    strided = AllToAll(FIELDS, frame_stride=2, max_lead_steps=10).frame_windows(21)
    assert len(strided) == 66
    assert {k for pair in strided for k in pair} == set(range(0, 21, 2))


def test_max_lead_steps_limits_the_pairs():
    pairs = AllToAll(FIELDS, max_lead_steps=2).frame_windows(5)
    assert pairs == tuple((a, b) for a in range(5) for b in range(a, min(a + 3, 5)))


def test_next_step_windows():
    assert NextStep(FIELDS, frame_stride=2).frame_windows(5) == ((0, 2), (1, 3), (2, 4))
    with pytest.raises(ValueError, match=r"num_frames\(2\) must exceed frame_stride\(2\)"):
        NextStep(FIELDS, frame_stride=2).frame_windows(2)


def test_velocity_components_form_one_group():
    assert list(default_field_groups([*FIELDS, "tracer"])) == [
        "density",
        "velocity",
        "pressure",
        "tracer",
    ]


def test_objectives_are_created_by_name_with_checked_options():
    created = create_objective("all2all", FIELDS, max_lead_steps=3, p=2)
    assert created == AllToAll(FIELDS, max_lead_steps=3, p=2)
    assert {"all2all", "next_step", "steady", "autoregressive", "masked"} < set(OBJECTIVES)
    with pytest.raises(ValueError, match="closest: all2all"):
        create_objective("alltoall", FIELDS)
    with pytest.raises(ValueError, match="no option lead; it has .*max_lead_steps"):
        create_objective("all2all", FIELDS, lead=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss_scope": "rank"}, "loss_scope='rank'"),
        ({"p": 3}, "p=3 must be 1 or 2"),
        ({"frame_stride": 0}, "frame_stride=0"),
        ({"time_scale": 0.0}, "time_scale=0.0"),
        ({"max_lead_steps": -1}, "max_lead_steps=-1"),
        ({"field_groups": {"a": ["vorticity"]}}, "names 'vorticity'; the model's fields are"),
        ({"field_groups": {"a": [4]}}, "channels 0 to 3"),
    ],
)
def test_bad_options_are_refused(options: dict[str, object], message: str):
    with pytest.raises(ValueError, match=message):
        AllToAll(FIELDS, **options)  # type: ignore[arg-type]


def test_all2all_of_one_used_frame_is_refused():
    """Pairs of a frame with itself alone teach nothing."""
    with pytest.raises(
        ValueError, match=r"num_frames\(5\) must exceed frame_stride\(5\).* 4 or less"
    ):
        AllToAll(FIELDS, frame_stride=5).frame_windows(5)
    assert (0, 4) in AllToAll(FIELDS, frame_stride=4).frame_windows(5)
    with pytest.raises(ValueError, match="max_lead_steps=0 must be at least 1"):
        AllToAll(FIELDS, max_lead_steps=0)
