"""Whatever stands in a file of settings, it is read or refused with a message: no traceback, no hang.

PELAGOS_FUZZ_EXAMPLES sets how many inputs each test tries.
"""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pelagos.data_pipelines.convert import SourceError
from pelagos.data_pipelines.convert.mapping import load_mapping
from pelagos.jobs.submission.planning import read_entries
from pelagos.platform.config.clusters import parse_clusters
from pelagos.platform.config.load import ConfigError, parse_job

EXAMPLES = int(os.environ.get("PELAGOS_FUZZ_EXAMPLES", "60"))
FUZZ = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
JOBS = [
    Path("configs") / name
    for name in (
        *("quickstart/generate.yaml", "quickstart/pretrain.yaml", "quickstart/finetune.yaml"),
        *("transfer/sweep.yaml", "vision/classify.yaml", "downstream/sweep.yaml"),
    )
]
MAPPING = {
    "name": "mine",
    "fields": [
        {
            "file": "a.npy",
            "axes": ["n", "t", "y", "x", "c"],
            "names": ["u", "v"],
            "units": ["1", "K"],
        }
    ],
    "parameters": {"nu": {"file": "b.h5", "key": "nu"}, "gamma": 1.4},
    "frame_interval": 0.5,
    "domain_extent": {"x": 1.0, "y": {"key": "y"}},
    "boundary_conditions": {"x": "periodic"},
    "splits": {"train": 0.8, "test": 0.2},
    "missing": "mask",
}
CLUSTERS = {
    "clusters": {
        "lab": {
            "kind": "ray",
            "address": "https://head:8265",
            "storage": "s3://a/b",
            "quotas": {"gpus_per_user": 2},
            "node": {"cpus": 4, "gpus": 1},
            "defaults": {"optimizer.lr": 1e-4},
        },
        "hpc": {"kind": "slurm", "storage": "/shared", "time_limit": "24:00:00", "modules": ["a"]},
        "k8s": {
            "kind": "kubernetes",
            "storage": "s3://a/b",
            "image": "i",
            "priority_classes": {1: "x"},
        },
    }
}
GRAPH = {"runs": [{"job": "a.yaml"}, {"job": "b.yaml", "after": ["a"], "set": {"seed": 1}}]}

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=10**18, max_value=10**30)
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from(
        [
            "",
            "..",
            "/",
            "~",
            "~nobody",
            "${NOT_SET}",
            "s3://",
            "s3://a//b",
            "1e9",
            "nan",
            "\0",
            "a=b",
        ]
    )
    | st.dates()
    | st.binary(max_size=4)
)
TREES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=6) | st.integers(), inner, max_size=3)
    ),
    max_leaves=6,
)


def paths(tree: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = (
        tree.items()
        if isinstance(tree, dict)
        else enumerate(tree)
        if isinstance(tree, list)
        else ()
    )
    found = [prefix] if prefix else []
    for key, value in items:
        found += paths(value, (*prefix, key))
    return found


def changed(tree: Any, data: Any) -> Any:
    """The tree with one to three parts replaced, removed or added."""
    tree = copy.deepcopy(tree)
    for _ in range(data.draw(st.integers(1, 3))):
        places = paths(tree)
        if not places:
            break
        *parents, last = data.draw(st.sampled_from(places))
        at = tree
        for key in parents:
            at = at[key]
        action = data.draw(st.sampled_from(["replace", "replace", "remove", "add"]))
        if action == "replace":
            at[last] = data.draw(TREES)
        elif action == "remove":
            del at[last]
        elif isinstance(at, dict):
            at[data.draw(st.text(max_size=6) | st.sampled_from([str(last), 7, None, True]))] = (
                data.draw(TREES)
            )
        else:
            at.append(data.draw(TREES))
    return tree


@contextlib.contextmanager
def refused_with(name: str, kind: type[ValueError]) -> Iterator[None]:
    """Whatever is done is done, or refused with an error of `kind` that names the file."""
    try:
        yield
    except kind as error:
        said = str(error)
    else:
        return
    assert name in said


def text_of(tree: Any) -> str:
    try:
        return yaml.safe_dump(tree)
    except yaml.YAMLError:
        return str(tree)


GARBAGE = st.text(max_size=200) | st.sampled_from(
    [
        "&a [*a]",
        "a: &a {b: *a}",
        "!!python/object:os.system x",
        "- " * 5000,
        "{" * 3000,
        "a: 1\na: 2",
    ]
)


@pytest.mark.parametrize("job", JOBS, ids=str)
@FUZZ
@given(data=st.data())
def test_job_files(job: Path, data: Any) -> None:
    original = yaml.safe_load(job.read_text())
    text = (
        data.draw(GARBAGE)
        if data.draw(st.integers(0, 9)) == 0
        else text_of(changed(original, data))
    )
    with refused_with("job.yaml", ConfigError):
        parse_job(text, "job.yaml")


@pytest.mark.parametrize("job", JOBS[1:4], ids=str)
@FUZZ
@given(data=st.data())
def test_overrides(job: Path, data: Any) -> None:
    places = [".".join(map(str, p)) for p in paths(yaml.safe_load(job.read_text()))]
    key = data.draw(st.sampled_from(places) | st.text(max_size=12) | st.just("a..b"))
    value = data.draw(SCALARS.map(str) | TREES.map(str) | GARBAGE)
    overrides = (f"{key}={value}", data.draw(st.text(max_size=8)))
    with refused_with("job.yaml", ConfigError):
        parse_job(job.read_text(), "job.yaml", overrides)


@FUZZ
@given(data=st.data())
def test_mapping_files(tmp_path: Path, data: Any) -> None:
    text = (
        data.draw(GARBAGE) if data.draw(st.integers(0, 9)) == 0 else text_of(changed(MAPPING, data))
    )
    file = tmp_path / "mapping.yaml"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    with refused_with("mapping.yaml", SourceError):
        load_mapping(str(file))


@FUZZ
@given(data=st.data())
def test_clusters_files(data: Any) -> None:
    text = (
        data.draw(GARBAGE)
        if data.draw(st.integers(0, 9)) == 0
        else text_of(changed(CLUSTERS, data))
    )
    with refused_with("clusters.yaml", ConfigError):
        parse_clusters(text, "clusters.yaml")


@FUZZ
@given(data=st.data())
def test_graph_files(tmp_path: Path, data: Any) -> None:
    text = (
        data.draw(GARBAGE) if data.draw(st.integers(0, 9)) == 0 else text_of(changed(GRAPH, data))
    )
    file = tmp_path / "graph.yaml"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    with refused_with("graph.yaml", ConfigError):
        entries = read_entries([str(file)], ())
        assert all(isinstance(e.path, str) and isinstance(e.after, tuple) for e in entries)


@FUZZ
@given(content=st.binary(max_size=300))
def test_files_that_are_no_text(tmp_path: Path, content: bytes) -> None:
    from pelagos.platform.config.load import load_job

    file = tmp_path / "job.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match="job.yaml"):
        load_job(str(file))
    with pytest.raises(SourceError, match="job.yaml"):
        load_mapping(str(file))
