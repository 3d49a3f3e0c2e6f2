"""Training in one process: it learns, it does not depend on how it is cut up, it resumes to the bit."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pelagos.jobs import pretrain
from pelagos.jobs.training.blueprint import build_parts
from pelagos.jobs.training.checking import checked
from pelagos.platform.checkpoint import CheckpointError, CheckpointStore
from pelagos.platform.config import ConfigError, PretrainJob
from pelagos.platform.records.runs import Outcome, RunDirectory, RunError
from pelagos.platform.trainer import train

MakeJob = Callable[..., PretrainJob]


def run_training(job: PretrainJob) -> tuple[RunDirectory, Outcome]:
    run = RunDirectory(f"{job.runs_dir}/{job.name}")
    if not run.path.exists():
        run = RunDirectory.create(job)
    return run, train(job, run, build_parts, {})


def weights(run: RunDirectory, step: int) -> dict[str, Tensor]:
    return CheckpointStore(run.checkpoint_uri).load_named(step, "")


def losses(run: RunDirectory) -> list[float]:
    return [m["loss"] for m in run.metrics()]


def deterministic(run: RunDirectory) -> list[dict[str, Any]]:
    """What of the step records must not depend on the clock."""
    keys = ("step", "loss", "gradient_norm", "lr", "loss/ns", "loss/ce", "epoch")
    return [{k: m.get(k) for k in keys} for m in run.metrics()]


def assert_same_bits(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def test_a_run_ends_with_logs_checkpoints_and_less_loss(make_job: MakeJob) -> None:
    job = make_job(schedule__total_steps=40, optimizer__lr=0.02)
    run, outcome = run_training(job)
    assert outcome == Outcome("finished", 40)
    assert [m["step"] for m in run.metrics()] == list(range(1, 41))
    assert sum(losses(run)[-5:]) < 0.8 * sum(losses(run)[:5])
    record = run.metrics()[-1]
    assert record["flops_per_second_per_worker"] > 0
    assert 0 <= record["data_stall_fraction"] <= 1
    steps = [info.step for info in CheckpointStore(run.checkpoint_uri).complete()]
    assert steps[-3:] == [36, 39, 40]


@pytest.mark.parametrize(
    "stop",
    [pytest.param(1, marks=pytest.mark.matrix), 3, pytest.param(5, marks=pytest.mark.matrix)],
)
def test_stopping_and_resuming_is_bit_identical(make_job: MakeJob, stop: int) -> None:
    whole, _ = run_training(make_job("whole", ema_decay=0.9))
    job = make_job("parts", ema_decay=0.9)
    run = RunDirectory.create(job)
    # the stop request is seen in the step that follows it; ask as soon as step `stop` is logged
    original = run.append_metrics

    def append_and_stop(record: dict[str, Any]) -> None:
        original(record)
        if record["step"] == stop:
            run.request_stop()

    run.append_metrics = append_and_stop  # type: ignore[method-assign]
    stopped = train(job, run, build_parts, {})
    assert stopped == Outcome("stopped", stop + 1, "stop requested")
    run.clear_stop()
    run, outcome = run_training(job)
    assert outcome.kind == "finished"
    assert deterministic(run) == deterministic(whole)
    assert_same_bits(weights(run, 8), weights(whole, 8))


def test_micro_batches_do_not_change_the_curve(make_job: MakeJob) -> None:
    # the same sums in another order: fp32 rounding (6e-8) grows over 8 steps of Adam
    whole, _ = run_training(make_job("whole"))
    for micro in (1, 2):
        run, _ = run_training(make_job(f"micro{micro}", parallel__micro_batch_size=micro))
        assert losses(run) == pytest.approx(losses(whole), rel=1e-5)


def test_the_papers_scope_does_depend_on_micro_batches(make_job: MakeJob) -> None:
    whole, _ = run_training(make_job("whole", objective__config__loss_scope="micro_batch"))
    run, _ = run_training(
        make_job("micro", objective__config__loss_scope="micro_batch", parallel__micro_batch_size=1)
    )
    difference = [abs(a / b - 1) for a, b in zip(losses(run), losses(whole), strict=True)]
    assert max(difference) > 1e-4


def test_checkpoint_recompute_and_precision_options_train_alike(make_job: MakeJob) -> None:
    plain, _ = run_training(make_job("plain"))
    recomputed, _ = run_training(make_job("recomputed", parallel__activation_checkpointing="full"))
    assert losses(recomputed) == losses(plain)
    half, _ = run_training(make_job("half", parallel__precision="bf16"))
    # bf16 keeps 8 bits: 2^-9 relative rounding in each product
    assert losses(half) == pytest.approx(losses(plain), rel=0.02)
    assert losses(half) != losses(plain)
    assert all(t.dtype == torch.float32 for t in weights(half, 8).values())


def test_the_seed_decides_everything(make_job: MakeJob) -> None:
    one, _ = run_training(make_job("one"))
    again, _ = run_training(make_job("again", data__num_threads=1, data__prefetch_steps=1))
    other, _ = run_training(make_job("other", seed=1))
    assert deterministic(one) == deterministic(again)
    assert losses(one) != losses(other)


def test_only_the_newest_and_the_best_checkpoints_stay(make_job: MakeJob) -> None:
    job = make_job(
        schedule__total_steps=12,
        checkpoint__every_steps=2,
        checkpoint__keep_last=2,
        validation__every_steps=2,
    )
    run, _ = run_training(job)
    store = CheckpointStore(run.checkpoint_uri)
    validations = {
        e["step"]: e["validation_loss"] for e in run.events() if e["kind"] == "validation"
    }
    best = min(validations, key=lambda step: validations[step])
    assert [i.step for i in store.complete()] == sorted({best, 10, 12})
    assert store.trainer_state(12)["best"] == {"step": best, "loss": validations[best]}


def test_a_worse_checkpoint_after_a_resume_does_not_become_the_best(make_job: MakeJob) -> None:
    """With a rate far too high the first validation stays the best, also of a run that is resumed."""
    settings = {
        "schedule__total_steps": 6,
        "checkpoint__every_steps": 1,
        "validation__every_steps": 1,
        "optimizer__lr": 3.0,
        "optimizer__clip_norm": 100.0,
    }
    job = make_job(**settings)
    run = RunDirectory.create(job)
    train(job, run, build_parts, {}, until_step=3)
    before = CheckpointStore(run.checkpoint_uri).trainer_state(3)["best"]
    run_training(job)
    validations = {
        e["step"]: e["validation_loss"] for e in run.events() if e["kind"] == "validation"
    }
    assert min(validations[step] for step in (4, 5, 6)) > before["loss"], "the case that is meant"
    assert CheckpointStore(run.checkpoint_uri).trainer_state(6)["best"] == before


def test_a_run_name_is_taken_once(make_job: MakeJob) -> None:
    run, _ = run_training(make_job())
    before = run.metrics_path.read_bytes()
    with pytest.raises(RunError, match="already exists .* `pelagos resume run` continues it"):
        RunDirectory.create(make_job())
    assert run.metrics_path.read_bytes() == before


def test_a_checkpoint_of_another_architecture_stops_the_resume(make_job: MakeJob) -> None:
    run, _ = run_training(make_job())
    wider = make_job(model__config__embed_dim=16, schedule__total_steps=12)
    with pytest.raises(CheckpointError, match="holds another architecture: [0-9]+ differences"):
        train(wider, run, build_parts, {})
    assert CheckpointStore(run.checkpoint_uri).latest_step() == 8
    assert len(run.metrics()) == 8


def test_other_data_stops_the_resume(make_job: MakeJob, datasets: tuple[str, str]) -> None:
    run, _ = run_training(make_job())
    other = make_job(schedule__total_steps=12, data__mixture=f"[{{uri: {datasets[1]}}}]")
    with pytest.raises(ValueError, match="the data changed since the checkpoint was written"):
        train(other, run, build_parts, {})


def test_a_diverging_run_fails_by_name_and_keeps_its_checkpoints(make_job: MakeJob) -> None:
    job = make_job(optimizer__lr=1e30, optimizer__clip_norm="null", schedule__warmup_steps=0)
    run = RunDirectory.create(job)
    with pytest.raises(FloatingPointError, match=r"step [0-9]+: the (loss|gradient norm) is"):
        train(job, run, build_parts, {})


def test_everything_wrong_with_data_and_model_is_listed_at_once(make_job: MakeJob) -> None:
    job = make_job(
        model__name="poseidon-nanno",
        objective__name="all3all",
        data__mixture="[{uri: /nowhere/a.zarr}]",
    )
    with pytest.raises(ConfigError) as caught:
        checked(job)
    text = str(caught.value)
    assert "3 problems" in text
    assert "poseidon-nano" in text
    assert "all2all" in text
    assert "/nowhere/a.zarr" in text


def test_fields_that_no_dataset_has_are_refused(make_job: MakeJob) -> None:
    job = make_job(data__fields="[temperature]")
    with pytest.raises(ConfigError, match="temperature"):
        checked(job)


def test_a_grid_that_does_not_fit_the_model_is_refused_before_training(make_job: MakeJob) -> None:
    job = make_job(model__config__image_size=20, model__config__patch_size=8)
    with pytest.raises(ConfigError, match="patch"):
        checked(job)


def test_fewer_processes_than_workers_are_refused(make_job: MakeJob) -> None:
    job = make_job(resources__num_workers=2)
    with pytest.raises(ValueError, match=r"num_workers is 2, but 1 process\(es\) run"):
        run_training(job)


def test_a_ray_that_does_not_start_is_one_sentence_and_the_run_is_not_running(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    def busy(**_: object) -> None:
        raise Exception("The current node timed out during startup.\nMore of Ray's own words.")

    monkeypatch.setattr(ray, "init", busy)
    job = make_job(resources__launcher="ray", tracking__uri="null")
    with pytest.raises(ConnectionError, match=r"Ray did not start .*timed out.*launcher=none"):
        pretrain.run(job)
    run = RunDirectory.open(job.runs_dir, job.name)
    assert run.status()["state"] == "failed"
    assert run.events()[-1]["kind"] == "failed"
    monkeypatch.undo()
    resumed = pretrain.resume(job.runs_dir, job.name, overrides=["resources.launcher=none"])
    assert resumed.outcome.kind == "finished"
