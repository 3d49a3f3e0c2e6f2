"""Populations of a sweep: what is refused, who the members are, how they compare, what is reported."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from pelagos.evaluation.pages.population_page import schedule, take_over_rows
from pelagos.evaluation.pages.sweep_page import SweepReport, SweepRow, write_sweep_report
from pelagos.jobs import sweep as sweep_job
from pelagos.jobs.sweeping.population import (
    comparable_loss,
    explored,
    populations_of,
    run_leg,
    settings_of,
)
from pelagos.jobs.sweeping.trials import read_result, trials_of
from pelagos.jobs.training.blueprint import build_parts
from pelagos.platform.checkpoint import CheckpointStore
from pelagos.platform.config import ConfigError, SweepJob
from pelagos.platform.config.load import load_job, parse_job
from pelagos.platform.config.schema import TrainingJob
from pelagos.platform.records.runs import IDENTITY, RunDirectory
from pelagos.platform.trainer import train

LR, TOTAL, WEIGHTS = (
    "optimizer.lr",
    "schedule.total_steps",
    "objective.config.field_weights.density",
)
LR_RANGE = {"low": 1e-9, "high": 0.1, "log": True}
SEARCH = {"name": "population", "num_samples": 3, "quantile": 0.34, "seed": 1}
MakeSweep = Callable[..., SweepJob]


@pytest.fixture
def make_sweep(
    datasets: tuple[str, str],
    tiny_job_text: Callable[[tuple[str, str], Path, str], str],
    tmp_path: Path,
) -> MakeSweep:
    """A population of a tiny job in three legs of two steps; keyword arguments are its keys."""
    file = tmp_path / "tiny.yaml"
    tree = yaml.safe_load(tiny_job_text(datasets, tmp_path, "tiny"))
    tree["data"] = {"mixture": [{"uri": datasets[1]}], "global_batch_size": 2}
    tree["schedule"] = {"total_steps": 6}
    tree["validation"] = {"every_steps": 2, "num_samples": 2}
    file.write_text(yaml.safe_dump(tree))

    def make(search: dict[str, Any] | None = None, **keys: Any) -> SweepJob:
        tree: dict[str, Any] = {
            "job": "sweep",
            "name": "tiny",
            "runs_dir": str(tmp_path / "runs"),
            "jobs": {"scratch": {"file": str(file)}},
            "evaluate": None,
            "tracking": {"uri": None},
            "random": {LR: LR_RANGE},
            "search": {**SEARCH, **(search or {})},
            **keys,
        }
        job = parse_job(yaml.safe_dump(tree), "sweep.yaml")
        assert isinstance(job, SweepJob)
        return job

    return make


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"random": {}}, "random: is empty, but a population changes these values"),
        ({"search": {"num_samples": 1}}, "a population needs at least 2 members"),
        ({"search": {"quantile": 0.6}}, r"search\.quantile: got 0\.6"),
        (
            {"random": {"model.config.embed_dim": [8, 16]}},
            r"random\.model\.config\.embed_dim: .* cannot change there.*use `grid`",
        ),
        (
            {"random": {"data.global_batch_size": [2, 4]}},
            r"random\.data\.global_batch_size: .* cannot change there",
        ),
        (
            {"random": {"schedule.total_steps": [2, 4]}},
            r"random\.schedule\.total_steps: .* cannot change there",
        ),
        (
            {"random": {"optimizer.frozen": [["head"]]}},
            r"random\.optimizer\.frozen: .* cannot change there",
        ),
        ({"random": {WEIGHTS: {"low": 0.0, "high": 1.0}}}, "must be a range above 0"),
        ({"random": {LR: {"low": -1e-9, "high": 1.0}}}, r"optimizer\.lr: -1e-09 is not valid"),
        (
            {"random": {"schedule.warmup_steps": [0, 9]}},
            r"random\.schedule\.warmup_steps: .*9.*less than total_steps 6",
        ),
        ({"search": {"perturb_validations": 3}}, "first be compared after 6 steps .* end after 6"),
        (
            {"grid": {"schedule.stop_when": [{"target": 0.1}]}},
            r"grid\.schedule\.stop_when: a population's members train to the same step",
        ),
        ({"ray_address": "auto", "max_concurrent": 2}, "max_concurrent: .* set it to num_samples"),
    ],
)
def test_what_a_population_cannot_change_is_refused_before_anything_starts(
    make_sweep: MakeSweep, tmp_path: Path, keys: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        sweep_job.run(make_sweep(**keys))
    assert not (tmp_path / "runs").exists()


def test_members_of_a_file_that_stops_early_are_refused(
    make_sweep: MakeSweep, tmp_path: Path
) -> None:
    file = tmp_path / "tiny.yaml"
    tree = yaml.safe_load(file.read_text())
    tree["schedule"]["stop_when"] = {"target": 0.1}
    file.write_text(yaml.safe_dump(tree))
    with pytest.raises(ConfigError, match="schedule.stop_when: a population's members train"):
        sweep_job.run(make_sweep())
    assert not (tmp_path / "runs").exists()


def test_members_differ_in_what_is_drawn_alone(make_sweep: MakeSweep) -> None:
    sweep = make_sweep(
        random={LR: LR_RANGE, "optimizer.weight_decay": [0.0, 0.1]},
        grid={"ema_decay": [None, 0.9]},
        seeds=[0, 1],
    )
    trials = trials_of(sweep)
    populations = populations_of(sweep, trials)
    assert [len(p.members) for p in populations] == [3] * 4
    assert len({p.name for p in populations}) == 4
    assert len({name for p in populations for name in p.members}) == len(trials) == 12
    by_name = {t.name: t for t in trials}
    for population in populations:
        members = [by_name[name] for name in population.members]
        fixed = {(m.seed, m.overrides["ema_decay"]) for m in members}
        assert len(fixed) == 1
        assert {m.overrides["optimizer.weight_decay"] for m in members} <= {0.0, 0.1}
        assert (population.num_legs, population.end_of(1), population.end_of(3)) == (3, 2, 6)
    # another schedule of comparisons makes other runs
    others = trials_of(make_sweep(search={"perturb_validations": 2}))
    assert {t.name for t in others}.isdisjoint(t.name for t in trials_of(make_sweep()))


def test_members_with_the_same_draw_are_runs_of_their_own(make_sweep: MakeSweep) -> None:
    decay = {"optimizer.weight_decay": [0.1]}
    assert len({t.name for t in trials_of(make_sweep(random=decay))}) == 3
    once = trials_of(make_sweep(random=decay, search={"name": "random"}))
    assert len(once) == 1  # elsewhere a draw that comes twice is one trial


def test_perturbed_values_stay_in_their_ranges(make_sweep: MakeSweep) -> None:
    sweep = make_sweep(random={LR: LR_RANGE, "schedule.name": ["cosine", "constant"]})
    assert explored(sweep, {LR: 0.2, "schedule.name": "cosine"})[LR] == 0.1
    assert explored(sweep, {LR: 1e-12, "schedule.name": "cosine"})[LR] == 1e-9
    kept = explored(sweep, {LR: 0.01234567, "schedule.name": "constant"})
    assert kept == {LR: 0.01235, "schedule.name": "constant"}


def test_a_leg_ends_at_its_step_and_is_not_done_twice(make_sweep: MakeSweep) -> None:
    sweep = make_sweep()
    trials = trials_of(sweep)
    (population,) = populations_of(sweep, trials)
    run = RunDirectory(trials[0].path)
    first = run_leg(sweep, population, trials[0], 1)
    assert (run.last_step(), CheckpointStore(run.checkpoint_uri).latest_step()) == (2, 2)
    events = run.events()
    assert run_leg(sweep, population, trials[0], 1) == first == events[-3]["validation_loss"]
    assert run.events() == events
    assert read_result(trials[0]).state == "stopped"
    assert settings_of(sweep, trials[0]) == {LR: trials[0].overrides[LR]}

    # one that fails compares as the worst, with its cause, and may be brought back
    run.replace("job.yaml", (run.path / "job.yaml").read_text().replace("num_heads", "num_head"))
    assert run_leg(sweep, population, trials[0], 2) == math.inf
    assert read_result(trials[0]).state == "failed"
    assert "num_head" in read_result(trials[0]).cause
    run.replace("job.yaml", (run.path / "job.yaml").read_text().replace("num_head", "num_heads"))
    assert math.isfinite(run_leg(sweep, population, trials[0], 2))
    assert read_result(trials[0]).state == "stopped"
    population.record(1, {"a": math.inf, "b": 1.0}, [{"member": "a"}])
    population.record(2, {"a": 0.5, "b": 1.0}, [])
    told = [(d["leg"], d["step"], d["losses"]["a"]) for d in population.decisions()]
    assert told == [(1, 2, None), (2, 4, 0.5)]


def test_members_are_compared_with_their_weights_of_fields_divided_out(
    make_sweep: MakeSweep,
) -> None:
    sweep = make_sweep(
        random={WEIGHTS: {"low": 0.1, "high": 10.0, "log": True}},
        jobs={"scratch": {**make_sweep().jobs["scratch"].model_dump(), "set": {LR: 1e-12}}},
        search={"num_samples": 2},
    )
    weighted, plain = [], []
    for trial in trials_of(sweep):
        run = RunDirectory.create(trial.job)
        train(trial.job, run, build_parts, {}, until_step=2)
        weighted.append(next(e for e in run.events() if e["kind"] == "validation"))
        plain.append(comparable_loss(sweep, run, 2))
    # the networks are the same, up to two steps of no size
    first, second = (event["validation_loss"] for event in weighted)
    assert abs(first - second) > 1e-3
    assert plain[0] == pytest.approx(plain[1], rel=1e-6)
    assert comparable_loss(sweep, run, 4) is None


def rows() -> list[SweepRow]:
    changed = [
        {"step": 2, "source": "b", "settings": {LR: [0.1, 0.02]}, "checkpoint": "b step 2"},
        {"step": 4, "source": "b", "settings": {}, "checkpoint": "b step 4"},
    ]
    first = SweepRow("a", "x", {LR: 0.1}, 0, None, "finished", 6, 0.4, take_overs=changed)
    return [first, SweepRow("b", "x", {LR: 0.01}, 0, None, "finished", 6, 0.5)]


def test_the_report_shows_the_settings_over_steps(tmp_path: Path) -> None:
    report = SweepReport("pop", rows(), None)
    assert schedule(report.rows[0], LR) == [(0, 0.1), (2, 0.02), (6, 0.02)]
    assert schedule(report.rows[1], LR) == [(0, 0.01), (6, 0.01)]
    table = take_over_rows(report.rows)
    assert [(c["step"], c["run"], c["source"], c["key"], c["after"]) for c in table] == [
        (2, "a", "b", LR, "0.02"),
        (4, "a", "b", "", ""),
    ]
    page = write_sweep_report(report, tmp_path).read_text()
    assert "<h2>Population</h2>" in page
    assert (tmp_path / "schedules.png").stat().st_size > 0
    told = json.loads((tmp_path / "sweep.json").read_text())["trials"][0]["take_overs"]
    assert told[0]["settings"] == {LR: [0.1, 0.02]}
    without = write_sweep_report(SweepReport("grid", rows()[1:], None), tmp_path / "grid")
    assert "<h2>Population</h2>" not in without.read_text()


@pytest.mark.ray
@pytest.mark.matrix
def test_the_member_that_lags_takes_over_the_best_with_another_setting(
    make_sweep: MakeSweep, tmp_path: Path
) -> None:
    # two legs; one member at a time, whose process the others use after it
    jobs = {"scratch": {**make_sweep().jobs["scratch"].model_dump(), "set": {TOTAL: 4}}}
    sweep = make_sweep(jobs=jobs, max_concurrent=1)
    result = sweep_job.run(sweep)
    assert result.ok, result.report.failures
    (population,) = populations_of(sweep, trials_of(sweep))
    decisions = population.decisions()
    assert [d["step"] for d in decisions] == [2]
    runs = {t.name: RunDirectory(t.path) for t in trials_of(sweep)}
    for decision in decisions:
        # of three members the worst takes over the best
        ((worst, told),) = [(t["member"], t) for t in decision["take_overs"]]
        losses = decision["losses"]
        assert (worst, told["source"]) == (max(losses, key=losses.get), min(losses, key=losses.get))
        assert set(told["settings"]) == {LR}
        before, after = told["settings"][LR]
        assert before != after
        (event,) = [
            e
            for e in runs[worst].events()
            if e["kind"] == "taken_over" and e["step"] == decision["step"]
        ]
        assert (event["source"], event["settings"]) == (told["source"], told["settings"])
    assert all(run.last_step() == 4 for run in runs.values())

    # the last leg of the member that took over last, from the other's checkpoint by hand
    last = decisions[-1]["take_overs"][0]
    member, source = runs[last["member"]], runs[last["source"]]
    reference = parse_reference(member, source, tmp_path / "reference")
    train(reference.job(), reference, build_parts, {})
    ours, expected = (
        {m["step"]: m["loss"] for m in run.metrics() if m["step"] > 2}
        for run in (member, reference)
    )
    assert ours == expected
    final = [CheckpointStore(run.checkpoint_uri).load_named(4, "") for run in (member, reference)]
    assert [n for n in final[0] if not torch.equal(final[0][n], final[1][n])] == []
    told_rows = {row.name: row.take_overs for row in result.report.rows}
    assert told_rows[last["member"]][-1]["source"] == last["source"]
    assert (result.path.parent / "schedules.png").exists()
    assert sweep_job.run(sweep).report.rows == result.report.rows  # nothing is begun again


def parse_reference(member: RunDirectory, source: RunDirectory, path: Path) -> RunDirectory:
    """A run with the source's checkpoint of step 2 and the member's settings since then."""
    reference = RunDirectory(path)
    checkpoint = Path(source.checkpoint_uri) / "step-00000002"
    target = Path(path) / "checkpoints" / checkpoint.name
    target.parent.mkdir(parents=True)
    target.symlink_to(checkpoint)
    job = load_job(member.path / "job.yaml", [f"name={path.name}", f"runs_dir={path.parent}"])
    assert isinstance(job, TrainingJob)
    reference.replace("job.yaml", yaml.safe_dump(job.model_dump(mode="json")))
    reference.replace(IDENTITY, (source.path / IDENTITY).read_text())  # that of the checkpoint
    return reference
