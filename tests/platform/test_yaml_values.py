"""Values of YAML files: YAML 1.2's core schema (yaml.org/spec/1.2.2, section 10.3.2), strict types,
finite numbers, one encoding, and nothing that repeats, refers to itself or multiplies."""

import time
from pathlib import Path

import pytest
import yaml

from pelagos.infra.yaml_text import YamlTextError, parse_yaml_text, parse_yaml_value, yaml_text
from pelagos.platform.config import ConfigError, load_job, resolve_yaml
from pelagos.platform.config.clusters import parse_clusters
from pelagos.platform.config.load import parse_job
from pelagos.platform.records.runs import RunDirectory

JOB = """\
job: pretrain
name: ns
data: {mixture: [{uri: a.zarr, weight: {0: 1.0, 100: 0.5}}], global_batch_size: 8}
model: {name: poseidon-nano}
schedule: {total_steps: 10}
"""


@pytest.mark.parametrize(
    ("text", "value"),
    [  # the tables of section 10.3.2, and what YAML 1.1 reads otherwise
        ("true", True),
        ("False", False),
        ("yes", "yes"),
        ("on", "on"),
        ("~", None),
        ("null", None),
        ("", None),
        ("1:30", "1:30"),
        ("0o14", 12),
        ("0xC", 12),
        ("-19", -19),
        ("1e3", 1000),
        ("1e-3", 0.001),
        ("+12.3", 12.3),
        (".5", 0.5),
        ("2026-11-30", "2026-11-30"),
        ("1_000", "1_000"),
        ("=", "="),
        ("'010'", "010"),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text: str, value: object) -> None:
    found = parse_yaml_value(text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    "text", ["yes", "1e-3", "010", "0o7", "null", "1:30", "1e5", "<<", ".inf", ""]
)
def test_text_that_looks_like_a_value_is_written_so_that_it_reads_back(text: str) -> None:
    assert parse_yaml_value(yaml_text({"key": text, text: 1})) == {"key": text, text: 1}


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a: 1\nb: 010\n", 2, "leading zeros"),
        ("a: 1\nb: -.inf\n", 2, "finite"),
        ("a: .nan\n", 1, "finite"),
        ("a: 1e999\n", 1, "finite"),
        ("a: 1\nb: 2\na: 3\n", 3, "given twice, first in line 1"),
        ("a: &x {b: *x}\n", 1, "contains itself"),
        ("a: &x [1, [*x]]\n", 1, "contains itself"),
        ("a: !!python/object:os.system x\n", 1, "tag"),
        ("a: !secret x\n", 1, "tag"),
        ("a: 1\n? [b, c]\n: 2\n", 2, "single word"),
        ("a: [1\n", 2, "not valid YAML"),
        ("a: " + "9" * 5000, 1, "digits"),
        ("[" * 150 + "]" * 150, 1, "nested"),
        ("[" * 5000, None, "nested"),
    ],
)
def test_what_has_no_one_meaning_is_rejected_with_its_line(
    text: str, line: int | None, words: str
) -> None:
    with pytest.raises(YamlTextError, match=words) as caught:
        parse_yaml_text(text)
    assert caught.value.problems[0][2] == line


def test_aliases_that_multiply_are_rejected_without_writing_them_out() -> None:
    """Ten levels of ten aliases stand for 10^10 values."""
    text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 11)
    )
    begin = time.process_time()
    with pytest.raises(YamlTextError, match="aliases expand to more than"):
        parse_yaml_text(text)
    assert time.process_time() - begin < 60  # 10^10 would take hours


def test_aliases_and_merges_mean_what_yaml_says() -> None:
    text = "base: &b {lr: 1, eps: 2}\nother:\n  <<: *b\n  lr: 3\nlist: [*b, *b]\n"
    assert parse_yaml_value(text) == yaml.safe_load(text)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("optimizer.lr=yes", "got 'yes'"),
        ("schedule.total_steps=on", "got 'on'"),
        ("schedule.total_steps=1:30", "got '1:30'"),
        ("schedule.total_steps='100'", "got '100'"),
        ("schedule.total_steps=true", "got True"),
        ("schedule.total_steps=10.5", "got 10.5"),
        ("schedule.total_steps=010", "leading zeros"),
        ("optimizer.lr=.inf", "finite"),
        ("checkpoint.asynchronous=yes", "write true or false"),
        ("checkpoint.asynchronous=1", "got 1"),
    ],
)
def test_types_are_strict_in_files_and_overrides(change: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_job(JOB, "job.yaml", [change])
    key, _, value = change.partition("=")
    section, name = key.split(".")
    text = JOB.replace("schedule: {total_steps: 10}\n", "")
    steps = {} if key == "schedule.total_steps" else {"schedule": "{total_steps: 10}"}
    sections = {**steps, section: f"{{{name}: {value}}}"}
    text += "".join(f"{k}: {v}\n" for k, v in sections.items())
    with pytest.raises(ConfigError, match=f"(?s)line .*{words}"):
        parse_job(text, "job.yaml")


def test_a_whole_number_may_be_written_as_a_power_of_ten() -> None:
    job = parse_job(JOB, "job.yaml", ["schedule.total_steps=2e4", "optimizer.lr=1"])
    assert (job.schedule.total_steps, job.optimizer.lr) == (20000, 1.0)  # type: ignore[union-attr]
    assert parse_job(resolve_yaml(job), "again") == job


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "latin-1"])
def test_another_encoding_than_utf_8_is_named(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "job.yaml"
    path.write_bytes(("# café\n" + JOB).encode(encoding))
    with pytest.raises(ConfigError, match="UTF-8|NUL|special characters"):
        load_job(path)
    path.write_bytes(("# café\n" + JOB).encode("utf-8-sig"))
    assert load_job(path).name == "ns"  # type: ignore[union-attr]


def test_home_and_variables_are_filled_in_every_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SCRATCH", "/scratch/me")
    job = parse_job(
        JOB,
        "job.yaml",
        [
            "runs_dir=~/runs",
            "checkpoint.uri=s3://bucket/${SCRATCH}/x",
            "data.cache={directory: '${SCRATCH}/cache', max_bytes: 1}",
            "data.mixture.0.uri=~/a.zarr",
            "tracking.uri=sqlite:///~/mlflow.db",
        ],
    )
    assert job.runs_dir == f"{tmp_path}/runs"  # type: ignore[union-attr]
    assert job.checkpoint.uri == "s3://bucket//scratch/me/x"  # type: ignore[union-attr]
    assert job.data.cache.directory == "/scratch/me/cache"  # type: ignore[union-attr]
    assert job.data.mixture[0].uri == f"{tmp_path}/a.zarr"  # type: ignore[union-attr]
    assert job.tracking.uri == f"sqlite:///{tmp_path}/mlflow.db"  # type: ignore[union-attr]
    assert "~" not in resolve_yaml(job)
    run = RunDirectory.create(job)  # type: ignore[arg-type]
    assert run.path == tmp_path / "runs/ns"
    cluster = parse_clusters(
        "clusters: {here: {kind: local, storage: '~/store', shared_paths: ['${SCRATCH}']}}", "c"
    )["here"]
    assert (cluster.storage, cluster.shared_paths) == (f"{tmp_path}/store", ("/scratch/me",))


@pytest.mark.parametrize("path", ["${PELAGOS_NOT_SET}/runs", "~no-such-user-of-any-kind/runs"])
def test_a_variable_or_user_that_is_absent_is_named(path: str) -> None:
    with pytest.raises(ConfigError, match="PELAGOS_NOT_SET is not set|user 'no-such-user"):
        parse_job(JOB, "job.yaml", [f"runs_dir={path}"])


@pytest.mark.parametrize(
    "text", ["!!bool yes", "!!int abc", "!!float abc", "!!null x", "!!int 1.5"]
)
def test_a_tag_does_not_make_its_text_a_value(text: str) -> None:
    with pytest.raises(
        YamlTextError, match="line 1: .* is not valid as (bool|int|float|null) in YAML 1.2"
    ):
        parse_yaml_value(text)


def test_tags_that_say_what_a_value_is_are_taken() -> None:
    assert parse_yaml_value("[!!str 3, !!int 0x10, !!float 3, !!bool true]") == ["3", 16, 3.0, True]


@pytest.mark.parametrize("text", ["1: a\n'1': b", "'true': a\ntrue: b", "1.5: a\n'1.5': b"])
def test_keys_that_are_one_once_they_are_json_are_given_twice(text: str) -> None:
    with pytest.raises(YamlTextError, match="line 2: given twice, first in line 1"):
        parse_yaml_text(text)
