"""Job files: one error per fault, each with file, line, key, what was got and what is allowed."""

import contextlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pelagos.platform.config import ConfigError, PretrainJob, load_job, resolve_yaml
from pelagos.platform.config.load import parse_job

GOOD = """\
job: pretrain
name: ns
data:
  mixture:
    - {uri: a.zarr, weight: 2}
    - {uri: b.zarr}
  global_batch_size: 8
model: {name: poseidon-nano}
schedule: {total_steps: 10}
"""


def problems(text: str, overrides: tuple[str, ...] = ()) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_job(text, "job.yaml", overrides)
    assert str(caught.value).startswith("job.yaml: ")
    return [str(p) for p in caught.value.problems]


def test_defaults_are_filled_in_and_the_job_is_frozen() -> None:
    job = parse_job(GOOD, "job.yaml")
    assert isinstance(job, PretrainJob)
    assert job.optimizer.lr == 1e-3
    assert job.data.mixture[0].weight == 2.0
    with pytest.raises(ValueError, match="frozen"):
        job.name = "other"  # type: ignore[misc]


def test_resolved_yaml_reads_back_as_the_same_job() -> None:
    job = parse_job(GOOD, "job.yaml", ["parallel.precision=bf16"])
    assert parse_job(resolve_yaml(job), "again") == job


def test_every_fault_of_a_file_is_listed_with_its_line() -> None:
    text = (
        GOOD.replace("weight: 2", "wieght: 2")
        .replace("global_batch_size: 8", "global_batch_size: eight")
        .replace("total_steps: 10", "total_steps: 10, name: cosin")
    )
    found = problems(text)
    assert len(found) == 3
    assert found[0].startswith("line 5: data.mixture.0.wieght: unknown key; did you mean 'weight'")
    assert "known keys here: uri, weight, repeat, offset" in found[0]
    assert found[1].startswith(
        "line 7: data.global_batch_size: got 'eight' (str), allowed: a valid"
    )
    expected = (
        "line 9: schedule.name: unknown schedule 'cosin'; closest: cosine; all: cosine, constant, "
        "range_test"
    )
    assert found[2] == expected


def test_moment_decay_of_one_is_rejected_before_a_run_is_made() -> None:
    (found,) = problems(GOOD, ("optimizer.betas=[0.9, 1.0]",))
    assert "optimizer.betas.1" in found
    assert "less than 1" in found


def test_missing_keys_say_what_they_are_for() -> None:
    (found,) = problems(GOOD.replace("  global_batch_size: 8\n", ""))
    assert found.startswith("line 3: data.global_batch_size: missing")
    assert "Samples per optimizer step" in found


@pytest.mark.parametrize("name", ["../escape", "a/b", "", "-rf", "a b", "a" * 101])
def test_run_names_are_one_path_component(name: str) -> None:
    (found,) = problems(GOOD.replace("name: ns", f"name: '{name}'"))
    assert "name" in found


def test_batch_and_workers_that_do_not_divide_show_the_arithmetic() -> None:
    (found,) = problems(GOOD, ("resources.num_workers=3",))
    assert "8 = 2 x 3 + 2" in found
    assert "Use 6 or 9" in found


def test_micro_batch_that_does_not_divide_lists_those_that_do() -> None:
    (found,) = problems(GOOD, ("parallel.micro_batch_size=3", "resources.num_workers=2"))
    assert "does not divide the 4 samples per worker" in found
    assert "[1, 2, 4]" in found


def test_a_key_given_twice_is_refused_not_overwritten() -> None:
    (found,) = problems(GOOD + "name: other\n")
    assert found.startswith("line 10: name: given twice, first in line 2")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("job: [", "not valid YAML"),
        ("- 1", "expected a mapping"),
        ("name: x", "missing; add `job: pretrain`"),
        ("job: pretrian", "did you mean 'pretrain'"),
    ],
)
def test_files_that_are_no_jobs(text: str, expected: str) -> None:
    (found,) = problems(text)
    assert expected in found


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.yaml: 1 problem[\s\S]*cannot be read"):
        load_job(tmp_path / "absent.yaml")


def test_overrides_take_the_type_of_their_field() -> None:
    job = parse_job(
        GOOD,
        "job.yaml",
        [
            "name=123",
            "optimizer.lr=1e-4",
            "parallel.compile=true",
            "data.mixture.1.weight=0.5",
            "data.fields=[density, pressure]",
            "optimizer.clip_norm=none",
            "model.config.depths=[2, 2]",
            "tracking.register_as=null",
        ],
    )
    assert isinstance(job, PretrainJob)
    assert job.name == "123"
    assert job.optimizer.lr == 1e-4
    assert job.parallel.compile is True
    assert job.data.mixture[1].weight == 0.5
    assert job.data.fields == ("density", "pressure")
    assert job.optimizer.clip_norm is None
    assert job.model.config == {"depths": [2, 2]}
    assert job.tracking.register_as is None


def test_an_override_that_leads_nowhere_is_an_error() -> None:
    found = problems(GOOD, ("optimizer.learning_rate=1", "nonsense"))
    assert any("optimizer.learning_rate: unknown key" in f for f in found)
    assert any("expected dotted.key=value" in f for f in found)


@settings(max_examples=60)
@given(st.text(max_size=40), st.text(max_size=20))
def test_no_override_crashes(key: str, value: str) -> None:
    with contextlib.suppress(ConfigError):
        parse_job(GOOD, "job.yaml", [f"{key}={value}"])


@settings(max_examples=60)
@given(st.text(max_size=200))
def test_no_file_crashes(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_job(text, "job.yaml")


def test_a_mistake_in_an_override_is_not_cited_as_a_line_of_the_file() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_job(GOOD, "job.yaml", ["parallel.strategy=fsdpp", "checkpoint={evry: 2}"])
    problems = str(caught.value).splitlines()[1:]
    assert [line.partition(": got")[0].partition(": unknown")[0] for line in problems] == [
        "  override: parallel.strategy",
        "  override: checkpoint.evry",
    ]


def test_run_at_checkpoint_names_both_in_a_job_file() -> None:
    source = parse_job(
        GOOD.replace("job: pretrain", "job: finetune") + "source: {run: big@500}\n", "t"
    ).source
    assert (source.run, source.checkpoint) == ("big", "500")
    job = parse_job("{job: evaluate, run: big@best}", "t")
    assert (job.run, job.checkpoint) == ("big", "best")
    assert parse_job("{job: evaluate, run: big@best, checkpoint: best}", "t") == job
    for text, expected in {
        "{job: evaluate, run: big@}": "expected last, best or a step after the @",
        "{job: evaluate, run: big@best, checkpoint: 5}": "name two checkpoints",
    }.items():
        with pytest.raises(ConfigError, match=expected):
            parse_job(text, "t")


@pytest.mark.parametrize("seed", [2**62, 2**63 - 1, 2**63, 2**64, -1])
def test_a_seed_that_no_generator_takes_is_refused(seed: int) -> None:
    (problem,) = problems(GOOD, (f"seed={seed}",))
    assert problem.startswith(f"override: seed: got {seed} (int), allowed: ")
    assert parse_job(GOOD, "t", [f"seed={2**62 - 1}"]).seed == 2**62 - 1
