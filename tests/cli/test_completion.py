"""The shell completes runs, models, datasets and clusters, as bash asks for them."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from pelagos.platform.config import PretrainJob
from pelagos.platform.records.runs import RunDirectory

MakeJob = Callable[..., PretrainJob]


@pytest.fixture
def place(tmp_path: Path, make_job: MakeJob, datasets: tuple[str, str]) -> Path:
    """A directory with two runs, a dataset, a folder, and a cluster with a run of its own."""
    for name in ("first", "second"):
        RunDirectory.create(make_job(name))  # in tmp_path/runs
    storage = tmp_path / "storage"
    job = make_job("sent").model_copy(update={"runs_dir": str(storage / "runs")})
    RunDirectory.create(job)
    clusters = {"clusters": {"lab": {"kind": "local", "storage": str(storage)}}}
    (tmp_path / "clusters.yaml").write_text(yaml.safe_dump(clusters))
    (tmp_path / "waves.zarr").symlink_to(datasets[0])
    (tmp_path / "work" / "inner").mkdir(parents=True)
    return tmp_path


def completed(place: Path, line: str) -> set[str]:
    """What typer's completion for bash offers behind `line`."""
    environment = {
        **os.environ,
        "_PELAGOS_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(line.split(" ")) - 1),
        "PELAGOS_CLUSTERS": str(place / "clusters.yaml"),
    }
    program = Path(sys.executable).with_name("pelagos")
    done = subprocess.run([program], cwd=place, env=environment, capture_output=True, text=True)
    assert "Traceback" not in done.stderr, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("pelagos status ", {"first", "second", "sent"}),
        ("pelagos status se", {"second", "sent"}),
        ("pelagos evaluate fi", {"first"}),
        ("pelagos plot first se", {"second", "sent"}),
        ("pelagos list --cluster ", {"lab"}),
        ("pelagos data inspect w", {"waves.zarr", "work/"}),
        ("pelagos data inspect work/", {"work/inner/"}),
        ("pelagos new pretrain --data wav", {"waves.zarr"}),
        ("pelagos models poseidon-n", {"poseidon-nano"}),
        ("pelagos status nothing", set()),
    ],
)
def test_words_are_completed(place: Path, line: str, expected: set[str]) -> None:
    assert completed(place, line) == expected


def test_a_broken_clusters_file_completes_the_rest(place: Path) -> None:
    (place / "clusters.yaml").write_text("clusters: [")
    assert completed(place, "pelagos status f") == {"first"}
    assert completed(place, "pelagos list --cluster ") == set()
