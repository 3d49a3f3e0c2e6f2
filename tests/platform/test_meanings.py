"""What each key of a training job means, in full: who adds a key decides it here as well, and what a
resume, a branch, a population and a sweep may do follows from it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from pelagos.jobs.sweeping.trials import trials_of
from pelagos.models.objectives import OBJECTIVES, WITHIN_A_RUN, options_of
from pelagos.platform.config import PretrainJob, SweepJob
from pelagos.platform.config.differences import is_among
from pelagos.platform.config.load import ConfigError, parse_job
from pelagos.platform.config.marks import Trait
from pelagos.platform.config.meanings import (
    has,
    names_of,
    training_keys,
    values_of,
)
from pelagos.platform.config.sweep import CHANGEABLE_WITHIN_A_RUN
from pelagos.platform.records.runs import CHANGEABLE, CHANGEABLE_IN_A_BRANCH

MakeJob = Callable[..., PretrainJob]
# Keys with their meaning and traits; those of `PLAIN` decide steps, and nothing else is known of them.
KEYS = """
name place home
runs_dir place home inputs
data.mixture steps inputs
data.mixture.*.uri steps inputs resumable
data.mixture.*.weight steps inputs
data.mixture.*.repeat steps inputs
data.mixture.*.offset steps inputs
data.mixture.*.description steps inputs
data.mixture.*.description.name steps inputs
data.mixture.*.description.equation steps inputs
data.mixture.*.description.array steps inputs
data.mixture.*.description.dimensions steps inputs
data.mixture.*.description.fields steps inputs
data.mixture.*.description.fields.*.name steps inputs
data.mixture.*.description.fields.*.kind steps inputs
data.mixture.*.description.fields.*.unit steps inputs
data.mixture.*.description.fields.*.array steps inputs
data.mixture.*.description.frame_interval steps inputs
data.mixture.*.description.domain_extent steps inputs
data.mixture.*.description.boundary_conditions steps inputs
data.mixture.*.description.splits steps inputs
data.mixture.*.description.constant_fields steps inputs
data.mixture.*.description.grid_location steps inputs
data.mixture.*.description.statistics steps inputs
data.mixture.*.crop steps inputs
data.fields steps network
data.order_version steps resumable
data.cache how
data.cache.directory place
data.cache.max_bytes how
data.num_threads how
data.prefetch_steps how
model.name steps inputs network
model.config steps inputs network resumable
objective.name steps network
objective.config steps network
optimizer.name steps updates
optimizer.config steps updates
optimizer.lr steps population updates
optimizer.weight_decay steps population updates
optimizer.betas steps population updates
optimizer.eps steps population updates
optimizer.clip_norm steps population updates
optimizer.groups steps population updates
optimizer.groups.*.pattern steps population updates
optimizer.groups.*.lr steps population updates
optimizer.groups.*.weight_decay steps population updates
optimizer.groups.*.frozen_until_step steps population updates
optimizer.layer_decay steps population updates
optimizer.frozen steps resumable updates
schedule.name steps population updates
schedule.total_steps steps updates
schedule.warmup_steps steps population updates
schedule.final_lr_fraction steps population updates
schedule.stop_when steps resumable updates
schedule.stop_when.target steps resumable updates
schedule.stop_when.patience steps resumable updates
schedule.stop_when.min_delta steps resumable updates
schedule.stop_when.dataset steps resumable updates
parallel.strategy how
parallel.precision how accuracy
parallel.micro_batch_size how accuracy
parallel.activation_checkpointing how
parallel.activation_checkpointing.every_n how
parallel.activation_checkpointing.memory_budget_bytes how
parallel.compile how
parallel.fsdp.shard_group_size how
parallel.fsdp.reshard_after_forward how
parallel.fsdp.cpu_offload how
parallel.fsdp.param_dtype how accuracy
parallel.fsdp.reduce_dtype how accuracy
parallel.zero.offload_optimizer how
parallel.zero.offload_parameters how
parallel.zero.nvme_path place
parallel.zero.hpz_partition_size how
parallel.zero.quantized_weights how accuracy
parallel.zero.quantized_gradients how accuracy
parallel.zero.config how accuracy
resources.launcher how
resources.num_workers how
resources.cpus_per_worker how
resources.gpus_per_worker how
resources.ray_address place
checkpoint.every_steps record
checkpoint.keep_last record
checkpoint.keep_best record
checkpoint.uri place home
checkpoint.asynchronous how
checkpoint.new_parameters how
checkpoint.give_up_after_steps how
checkpoint.give_up_after_minutes how
validation.every_steps record
tracking.uri record
tracking.experiment record
tracking.log_every_steps record
tracking.max_points record
tracking.register_as record
tracking.tags record
health.max_failures how
health.collective_timeout_seconds how
health.shrink_micro_batch how
storage.endpoint_url place inputs
storage.region place inputs
storage.anonymous place inputs
storage.backend place inputs
plugins place
callbacks record
callbacks.*.name record
callbacks.*.config record
callbacks.*.on_error record
source.run steps inputs
source.runs_dir steps inputs
source.cluster steps inputs
source.checkpoint steps inputs
source.weights steps inputs
source.uri steps inputs
source.prefix steps inputs
lora steps network
lora.rank steps network
lora.alpha steps network
lora.targets steps network
lora.also_train steps network
"""
PLAIN = """
job seed data.global_batch_size data.normalization data.normalization.mean data.normalization.std
data.absent_fields data.max_trajectories data.run_length data.crop validation.num_samples
validation.split ema_decay reinitialize
"""


def test_every_key_has_the_meaning_that_was_decided_for_it() -> None:
    found = {
        key.name: " ".join([key.meaning.value, *sorted(trait.value for trait in key.traits)])
        for key in training_keys().values()
    }
    lines = (line.partition(" ") for line in KEYS.split("\n")[1:-1])
    decided = {name: words for name, _, words in lines} | dict.fromkeys(PLAIN.split(), "steps")
    assert found == decided


def test_what_resumes_branches_and_populations_may_change_follows() -> None:
    # what is found in a submitted run's directory may differ in the first two from what was submitted
    assert set(CHANGEABLE) == {
        *("data.cache", "data.num_threads", "data.prefetch_steps", "data.order_version"),
        *("data.mixture.*.uri", "model.config", "optimizer.frozen", "parallel", "resources"),
        "schedule.stop_when",
        *("checkpoint.every_steps", "checkpoint.keep_last", "checkpoint.keep_best"),
        *("checkpoint.asynchronous", "checkpoint.new_parameters", "validation.every_steps"),
        *("checkpoint.give_up_after_steps", "checkpoint.give_up_after_minutes"),
        *("tracking", "health", "storage", "plugins", "callbacks"),
    }
    assert CHANGEABLE_IN_A_BRANCH == ("optimizer", "schedule")
    weights = {f"optimizer.{key}" for key in ("lr", "weight_decay", "betas", "eps", "clip_norm")}
    weights |= {"optimizer.layer_decay", "optimizer.groups", "schedule.name"}
    weights |= {"schedule.warmup_steps", "schedule.final_lr_fraction"}
    assert set(CHANGEABLE_WITHIN_A_RUN) == weights
    options = {
        f"{name}.{key}"
        for name in OBJECTIVES
        for key, option in options_of(name).items()
        if option.metadata.get(WITHIN_A_RUN)
    }
    of_fields = ("all2all", "next_step", "steady", "autoregressive")
    assert options == {*(f"{n}.field_weights" for n in of_fields), "autoregressive.noise_scale"}


def test_parts_of_a_job_are_those_of_their_keys(make_job: MakeJob) -> None:
    network = values_of(make_job(), has(Trait.NETWORK))
    assert network.keys() == {"data", "model", "objective"}
    assert network["data"].keys() == {"fields"}
    inputs = values_of(make_job(), has(Trait.INPUTS))
    assert inputs.keys() == {"data", "model", "runs_dir", "storage"}
    assert [entry.keys() >= {"uri", "crop"} for entry in inputs["data"]["mixture"]] == [True, True]
    assert names_of(has(Trait.HOME)) == ("name", "runs_dir", "checkpoint.uri")


@pytest.fixture
def name_of_trial(make_job: MakeJob, tmp_path: Path) -> Callable[..., str]:
    """The name of the one trial of a sweep over a job with other values of its keys."""

    def named(search: dict[str, Any] | None = None, **values: Any) -> str:
        make_job("tiny")
        keys = {key.replace("__", "."): value for key, value in values.items()}
        entry = {"file": str(tmp_path / "tiny.yaml"), "set": keys}
        tree: dict[str, Any] = {"job": "sweep", "name": "s", "jobs": {"a": entry}}
        if search is not None:
            tree |= {"search": search, "random": {"optimizer.lr": {"low": 1e-4, "high": 1e-3}}}
        sweep = parse_job(yaml.safe_dump(tree), "sweep")
        assert isinstance(sweep, SweepJob)
        return trials_of(sweep)[0].name

    return named


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data.num_threads", 1),
        ("data.prefetch_steps", 7),
        ("data.cache", {"directory": "cache", "max_bytes": 10**9}),
        ("validation.every_steps", 1),
        ("checkpoint.every_steps", 1),
        ("storage.endpoint_url", "https://elsewhere.example"),
        ("storage.backend", "fsspec"),
        ("parallel.strategy", "single"),
        ("parallel.compile", True),
        ("resources.gpus_per_worker", 1),
        ("callbacks", [{"name": "a.b:C"}]),
    ],
)
def test_a_trial_is_the_same_with_another_value(
    name_of_trial: Callable[..., str], key: str, value: Any
) -> None:
    assert name_of_trial(**{key: value}) == name_of_trial()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("optimizer.lr", 1e-5),
        ("parallel.precision", "bf16"),
        ("parallel.micro_batch_size", 2),
        ("data.mixture.0.uri", "other.zarr"),
        ("data.order_version", 1),
        ("validation.num_samples", 16),
        ("objective.config.frame_stride", 2),
        ("model.config.embed_dim", 16),
    ],
)
def test_a_trial_is_another_with_another_value(
    name_of_trial: Callable[..., str], key: str, value: Any
) -> None:
    assert name_of_trial(**{key: value}) != name_of_trial()


def test_members_of_a_population_are_others_where_they_validate_at_other_steps(
    name_of_trial: Callable[..., str],
) -> None:
    search = {"name": "population", "num_samples": 2}
    names = {name_of_trial(search, **{"validation.every_steps": n}) for n in (1, 2)}
    assert len(names) == 2


def test_what_a_sweep_sets_itself_is_known_from_its_own_keys() -> None:
    places = [*SweepJob.keys_set()]
    known = [key.name for key in training_keys().values()]
    assert all(any(is_among(name, [place]) for name in known) for place in places)
    for place, own in (("resources.launcher", "max_concurrent"), ("tracking.uri", "tracking")):
        tree = {"job": "sweep", "name": "s", "jobs": {"a": {"file": "a"}}, "grid": {place: ["x"]}}
        with pytest.raises(ConfigError, match=f"the sweep sets this itself: use its key `{own}`"):
            parse_job(yaml.safe_dump(tree), "sweep")
