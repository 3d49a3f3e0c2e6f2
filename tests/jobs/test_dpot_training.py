"""DPOT from one job file: it trains, validates, resumes from its checkpoint, and is not misjudged."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pelagos.jobs import evaluate, export
from pelagos.jobs.training.blueprint import Blueprint, build_parts
from pelagos.jobs.training.checking import checked
from pelagos.jobs.weights.forecaster import Forecaster
from pelagos.platform.config import ConfigError, EvaluateJob, PretrainJob
from pelagos.platform.records.runs import Outcome, RunDirectory
from pelagos.platform.trainer import train

MakeJob = Callable[..., PretrainJob]
DPOT = {
    "model": "{name: dpot-nano, config: {img_size: 16, embed_dim: 16, in_timesteps: 3}}",
    "objective": "{name: autoregressive, config: {num_input_frames: 3}}",
    "validation__every_steps": 10,
}


def test_dpot_learns_validates_and_forecasts(make_job: MakeJob) -> None:
    job = make_job(**DPOT, schedule__total_steps=80, optimizer__lr=0.01)
    run = RunDirectory.create(job)
    assert train(job, run, build_parts, {}) == Outcome("finished", 80)
    losses = [m["loss"] for m in run.metrics()]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    assert sum(event["kind"] == "validation" for event in run.events()) == 8
    forecaster, step = Forecaster.from_run(run)
    assert step == 80
    frames = torch.ones(2, 3, 4, 16, 16)
    forecast = forecaster.predict(frames, torch.full((2,), 0.05))
    assert forecast.shape == (2, 4, 16, 16)
    assert forecast.isfinite().all()
    result = evaluate.run(EvaluateJob(run=job.name, runs_dir=job.runs_dir))
    # five frames: three go in, leads 1 and 2 are left; no lead time can be chosen
    for dataset in result.metrics["datasets"]:
        assert dataset["lead_steps"] == [1, 2]
        assert "direct" not in dataset["scores"]
        assert dataset["summary"][0]["direct"] is None
        assert dataset["scores"]["autoregressive"]["relative_l1"]["median"][0][0] > 0
    assert "autoregressive" in result.report.read_text()


def test_micro_batches_and_recomputation_do_not_change_the_curve(make_job: MakeJob) -> None:
    # the same sums in another order: fp32 rounding (6e-8) grows over 8 steps of Adam
    curves = []
    for micro, recompute in ((1, "full"), (4, "none")):
        options = {
            "parallel__micro_batch_size": micro,
            "parallel__activation_checkpointing": recompute,
        }
        job = make_job(f"micro{micro}", **DPOT, **options)
        run = RunDirectory.create(job)
        train(job, run, build_parts, {})
        curves.append([m["loss"] for m in run.metrics()])
    assert curves[0] == pytest.approx(curves[1], rel=1e-5)


def test_frames_that_do_not_fit_the_model_are_refused_before_a_worker_starts(
    make_job: MakeJob,
) -> None:
    job = make_job(**{**DPOT, "objective": "{name: autoregressive, config: {num_input_frames: 2}}"})
    with pytest.raises(ConfigError, match="in_timesteps=3") as refused:
        checked(job)
    advice = "set objective.config.num_input_frames to 3, or the model's in_timesteps to 2"
    assert advice in str(refused.value)


def test_more_frames_than_the_data_hold_are_refused_with_the_most(make_job: MakeJob) -> None:
    job = make_job(
        **{**DPOT, "objective": "{name: autoregressive, config: {num_input_frames: 99}}"}
    )
    with pytest.raises(
        ConfigError, match=r"set objective.config.num_input_frames to \d+ or less"
    ) as refused:
        checked(job)
    most = re.search(r"num_input_frames to (\d+)", str(refused.value))
    assert most is not None
    fitting = {
        name: str(text).replace("3", most[1]) for name, text in DPOT.items() if "3" in str(text)
    }
    checked(make_job(**{**DPOT, **fitting}))


ONES = {
    "data__fields": "[density, velocity-x, velocity-y, pressure, tracer]",
    "data__absent_fields": "ones",
    "data__normalization": "none",
}


def test_absent_fields_may_be_ones_that_are_learnt(make_job: MakeJob, tmp_path: Path) -> None:
    job = make_job(**DPOT, **ONES, schedule__total_steps=2, schedule__warmup_steps=1)
    run = RunDirectory.create(job)
    assert train(job, run, build_parts, {}) == Outcome("finished", 2)
    streams = build_parts(job).streams
    with streams.open(0, 0, 1) as stream:
        batch = next(iter(stream))
    assert batch.present.all()
    assert (batch.frames[:, :, 4] == 1).all()
    # validation measures what the data have
    held_out, _ = next(streams.validation(0, 1))
    assert held_out.present[:, 1:3].all()
    assert not held_out.present[:, 4].any()
    assert (held_out.frames[:, :, 4] == 1).all()

    forecaster, _ = Forecaster.from_run(run)
    data = forecaster.view(streams.mixture.entries[0].dataset, {})
    states = data.read(0, range(3))[None]
    assert not states[:, :, 3:].any()  # neither pressure nor tracer
    ones, time = states.clone(), torch.full((1,), 0.05)
    ones[:, :, 3:] = 1
    forecast = forecaster.predict_on(data)(states, time)
    assert torch.equal(forecast, forecaster.predict_normalized(ones, time))
    assert not torch.equal(forecast, forecaster.predict_normalized(states, time))

    # in physical units too, and from an exported directory
    export.run(job.name, tmp_path / "exported", runs_dir=job.runs_dir)
    loaded = Forecaster.load(tmp_path / "exported")
    absent = ["pressure", "tracer"]
    physical = loaded.predict(states, time, absent)
    assert torch.equal(physical[:, :3], loaded.normalization.invert(forecast)[:, :3])
    assert physical[:, 3:].isnan().all()
    with pytest.raises(ValueError, match="absent names presure, which the model does not have"):
        loaded.predict(states, time, ["presure"])
    measured, _ = evaluate.measure(EvaluateJob(run=job.name, runs_dir=job.runs_dir))
    assert measured[0].group_names == ("velocity",)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"data__fields": "[velocity-x, velocity-y]"},
            r"every dataset has all of .*: remove the key",
        ),
        (
            {
                "objective": "{name: autoregressive, "
                "config: {num_input_frames: 3, normalize_samples: true}}"
            },
            "normalize_samples would turn them into zeros again",
        ),
    ],
)
def test_ones_are_refused_where_they_fill_nothing(
    overrides: dict[str, str], message: str, make_job: MakeJob
) -> None:
    with pytest.raises(ConfigError, match=message):
        checked(make_job(**{**DPOT, **ONES, **overrides}))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"model": "{name: dpot-nano, config: {in_channels: 3}}"},
            "config gives in_channels, but the numbers of channels follow from data.fields",
        ),
        (
            {"data__fields": "[densty, velocity-x, velocity-y]", "data__normalization": "none"},
            "no dataset has field 'densty'; did you mean 'density'",
        ),
    ],
)
def test_channels_and_fields_that_no_data_have_are_refused(
    overrides: dict[str, str], message: str, make_job: MakeJob
) -> None:
    with pytest.raises(ConfigError, match=message):
        checked(make_job(**{**DPOT, **overrides}))


def test_operations_are_counted_anew_for_another_network(make_job: MakeJob) -> None:
    job = make_job(**DPOT)
    once = Blueprint(job).flops_per_sample
    assert checked(job).flops_per_sample == once
    wider = make_job(
        **{**DPOT, "model": str(DPOT["model"]).replace("embed_dim: 16", "embed_dim: 32")}
    )
    assert Blueprint(wider).flops_per_sample > once
