"""The generate job: the same bytes however it is run, killed or continued."""

from __future__ import annotations

import hashlib
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from pelagos.data_pipelines.generate import GenerationError, generate_trajectories, tasks
from pelagos.data_pipelines.generate.tasks import GenerationRequest, checked_splits, dataset_spec
from pelagos.data_pipelines.store import create_dataset, open_dataset
from pelagos.infra.ray_cluster import ray_cluster
from pelagos.jobs import generate
from pelagos.platform.config.schema import GenerateJob

SMALL = {"resolution": 16, "num_frames": 4, "final_time": 0.1}


def job(
    folder: Path, *, launcher: str = "none", overwrite: bool = False, **change: Any
) -> GenerateJob:
    entry = {"family": "ns-gauss", "num_trajectories": 7, **SMALL, **change}
    entry.setdefault("uri", str(folder / "flow.zarr"))
    return GenerateJob.model_validate(
        {
            "name": "test",
            "seed": 11,
            "datasets": [entry],
            "resources": {"launcher": launcher, "num_workers": 2},
            "overwrite": overwrite,
        }
    )


def quiet() -> Console:
    return Console(file=io.StringIO())


def digest(folder: Path) -> dict[str, str]:
    """Every file of a dataset, hidden ones too, and the hash of its bytes."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def shards_written(folder: Path) -> int:
    return len(list(folder.rglob("data/c/*")))


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run in this process."""
    folder = tmp_path_factory.mktemp("reference")
    generate.run(job(folder), quiet())
    return folder / "flow.zarr"


def test_the_dataset_holds_the_family_s_trajectories(reference: Path) -> None:
    dataset = open_dataset(str(reference))
    data, parameters = generate_trajectories("NS-Gauss", range(7), seed=11, **SMALL)
    assert dataset.data[:].tobytes() == data.tobytes()
    assert dataset.parameters["cfl"].tolist() == parameters["cfl"].tolist()
    spec = dataset.spec
    assert (spec.name, spec.field_names) == ("NS-Gauss", ("velocity-x", "velocity-y"))
    assert spec.frame_interval == pytest.approx(0.1 / 3)
    assert spec.constant_fields == {"density": 1.0}
    assert spec.grid_location == "node"
    assert spec.splits == {"train": (0, 5), "validation": (5, 6), "test": (6, 7)}
    assert spec.generator["seed"] == 11
    assert spec.published_normalization["std"]["velocity-x"] == 0.391
    train = data[:5, :, 0].astype(np.float64)
    assert dataset.statistics["velocity-x"]["std"] == pytest.approx(train.std(), rel=1e-6)
    assert (reference / generate.CONTACT_SHEET).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_a_complete_dataset_is_refused_and_replaced_only_when_asked(tmp_path: Path) -> None:
    first = generate.run(job(tmp_path), quiet())
    assert first.metrics["trajectories_computed"] == 7
    before = digest(tmp_path / "flow.zarr")
    assert generate.run(job(tmp_path), quiet()).metrics["trajectories_computed"] == 0
    assert digest(tmp_path / "flow.zarr") == before
    with pytest.raises(FileExistsError, match="num_frames: 5 here, 4 there"):
        generate.run(job(tmp_path, num_frames=5), quiet())
    assert digest(tmp_path / "flow.zarr") == before
    again = generate.run(job(tmp_path, overwrite=True), quiet())
    assert again.metrics["trajectories_computed"] == 7
    assert digest(tmp_path / "flow.zarr") == before
    generate.run(job(tmp_path, overwrite=True, num_frames=5), quiet())
    assert open_dataset(str(tmp_path / "flow.zarr")).num_frames == 5
    assert [p.name for p in tmp_path.iterdir()] == ["flow.zarr"]


def test_a_job_of_several_datasets_goes_on_at_the_unfinished_one(tmp_path: Path) -> None:
    entries = [
        {"family": family, "uri": str(tmp_path / family), "num_trajectories": 3, **SMALL}
        for family in ("ns-sines", "ns-pwc")
    ]
    both = job(tmp_path).model_copy(
        update={"datasets": tuple(type(job(tmp_path).datasets[0])(**e) for e in entries)}
    )
    only_first = both.model_copy(update={"datasets": both.datasets[:1]})
    generate.run(only_first, quiet())
    request = GenerationRequest("ns-pwc", 11, 3, *SMALL.values())
    writer = create_dataset(entries[1]["uri"], dataset_spec(request))
    tasks.make_shard(writer, request, 1)
    screen = io.StringIO()
    result = generate.run(both, Console(file=screen, width=200))
    assert result.metrics["trajectories"] == 6
    assert result.metrics["trajectories_computed"] == 2
    assert "1 of 3 trajectories already exist" in screen.getvalue()
    assert "already complete" in screen.getvalue()


def test_a_missing_picture_is_drawn_without_computing(tmp_path: Path) -> None:
    generate.run(job(tmp_path), quiet())
    picture = tmp_path / "flow.zarr" / generate.CONTACT_SHEET
    content = picture.read_bytes()
    picture.unlink()
    assert generate.run(job(tmp_path), quiet()).metrics["trajectories_computed"] == 0
    assert picture.read_bytes() == content


@pytest.fixture(scope="module")
def two_workers() -> Iterator[None]:
    """One cluster for the tests that do not kill it; a job joins the cluster it finds."""
    with ray_cluster(None, num_cpus=2):
        yield


@pytest.mark.ray
@pytest.mark.usefixtures("two_workers")
def test_two_ray_workers_write_the_same_bytes(tmp_path: Path, reference: Path) -> None:
    generate.run(job(tmp_path, launcher="ray"), quiet())
    assert digest(tmp_path / "flow.zarr") == digest(reference)


@pytest.mark.ray
@pytest.mark.usefixtures("two_workers")
def test_an_error_in_a_ray_task_is_raised_as_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray import cloudpickle

    monkeypatch.setattr(generate, "make_shard", _always_fails)
    here = sys.modules[__name__]  # which workers cannot import
    cloudpickle.register_pickle_by_value(here)
    try:
        with pytest.raises(GenerationError, match="NS-Gauss, seed 11: trajectories"):
            generate.run(job(tmp_path, launcher="ray"), quiet())
    finally:
        cloudpickle.unregister_pickle_by_value(here)


def _always_fails(_writer: object, request: GenerationRequest, shard: int) -> None:
    raise GenerationError(f"NS-Gauss, seed {request.seed}: trajectories [{shard}]")


SCRIPT = """
import sys
from rich.console import Console
from pelagos.jobs import generate
from pelagos.platform.config.schema import GenerateJob
generate.run(GenerateJob.model_validate_json(sys.argv[1]), Console())
"""


def start(what: GenerateJob) -> subprocess.Popen[bytes]:
    arguments = [sys.executable, "-c", SCRIPT, what.model_dump_json()]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        arguments, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def kill_after_shards(process: subprocess.Popen[bytes], folder: Path, count: int) -> None:
    while shards_written(folder) < count:
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()


# Slow enough that the kill strikes in the middle: some 0.1 s per trajectory, one per shard.
SLOWER = {"family": "ce-rp", "resolution": 32, "final_time": 0.1, "num_trajectories": 9}


@pytest.fixture(scope="module")
def slower_reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slower")
    generate.run(job(folder, **SLOWER), quiet())
    return folder / "flow.zarr"


@pytest.mark.slow
def test_killed_twice_and_continued_it_is_the_uninterrupted_dataset(
    tmp_path: Path, slower_reference: Path
) -> None:
    folder = tmp_path / "flow.zarr"
    task = job(tmp_path, **SLOWER)
    for count in (1, 3):
        kill_after_shards(start(task), folder, count)
        assert not (folder / "manifest.json").exists()
    there = shards_written(folder)
    result = generate.run(task, quiet())
    assert 0 < result.metrics["trajectories_computed"] <= 9 - there + 1
    assert digest(folder) == digest(slower_reference)


@pytest.mark.ray
@pytest.mark.slow
def test_a_ray_job_killed_while_replacing_a_dataset_keeps_the_old_one_and_goes_on(
    tmp_path: Path, slower_reference: Path
) -> None:
    generate.run(job(tmp_path), quiet())
    old = digest(tmp_path / "flow.zarr")
    task = job(tmp_path, launcher="ray", overwrite=True, **SLOWER)
    kill_after_shards(start(task), tmp_path / "flow.zarr.pelagos-new", 2)
    assert digest(tmp_path / "flow.zarr") == old
    here = job(tmp_path, overwrite=True, **SLOWER)
    assert generate.run(here, quiet()).metrics["trajectories_computed"] <= 7
    assert digest(tmp_path / "flow.zarr") == digest(slower_reference)
    assert [p.name for p in tmp_path.iterdir()] == ["flow.zarr"]


def test_all_problems_of_a_job_are_listed_at_once(tmp_path: Path) -> None:
    good = job(tmp_path).datasets[0]
    wrong = [
        good.model_copy(update={"family": "ns-sine"}),
        good.model_copy(update={"splits": {"train": 3, "test": 3}}),
        good,
        good,
    ]
    bad = job(tmp_path).model_copy(update={"datasets": tuple(wrong)})
    with pytest.raises(ValueError, match="cannot run") as caught:
        generate.run(bad, quiet())
    message = str(caught.value)
    assert 'did you mean "ns-sines"?' in message
    assert "train 3 + test 3 = 6, but num_trajectories is 7" in message
    assert "several datasets have the uri" in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("total", "expected"),
    [
        (1, {"train": (0, 1)}),
        (3, {"train": (0, 1), "validation": (1, 2), "test": (2, 3)}),
        (40, {"train": (0, 32), "validation": (32, 36), "test": (36, 40)}),
    ],
)
def test_default_splits(total: int, expected: dict[str, tuple[int, int]]) -> None:
    assert checked_splits(total, None) == expected


def test_default_shards_are_small_but_not_tiny() -> None:
    few = dataset_spec(GenerationRequest("ns-sines", 0, 64))
    assert few.shard_trajectories == 2
    many = dataset_spec(GenerationRequest("ce-rp", 0, 10_000))
    # 21 frames of 4 x 128 x 128 float32 are 5.5 MB; three of them fit 16 MiB.
    assert many.shard_trajectories == 3


@pytest.mark.s3
def test_an_object_store_gets_the_same_dataset(
    reference: Path, tmp_path: Path, s3_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    uri = s3_server.new_uri("/flow.zarr")
    first = generate.run(job(tmp_path, uri=uri), quiet())
    assert first.metrics["trajectories_computed"] == 7
    found, local = open_dataset(uri), open_dataset(str(reference))
    assert found.fingerprint == local.fingerprint
    assert found.window(6, 0, 4).tobytes() == local.window(6, 0, 4).tobytes()
    assert generate.run(job(tmp_path, uri=uri), quiet()).metrics["trajectories_computed"] == 0
