"""`convert` as a job file: the same values as the source, refused early, submitted, nobody else's."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import yaml
import zarr
from tests.submission.conftest import clusters as clusters  # a fixture
from tests.submission.conftest import finish, send
from tests.submission.test_others_jobs import CLONE, submitted_by_another
from tests.submission.test_others_jobs import started as started  # a fixture
from typer.testing import CliRunner

from pelagos.cli.main import app
from pelagos.jobs import submit
from pelagos.platform.config.load import ConfigError

Clusters = Callable[..., None]
Numbers = npt.NDArray[np.float32]


@pytest.fixture
def values() -> Numbers:
    """Four trajectories, `[trajectory, t, y, x]`."""
    return np.random.default_rng(3).standard_normal((4, 5, 8, 8)).astype(np.float32)


@pytest.fixture
def job_file(tmp_path: Path, values: Numbers) -> Path:
    np.save(tmp_path / "u.npy", values)
    mapping = {"fields": [{"axes": ["n", "t", "y", "x"], "names": ["u"]}]}
    (tmp_path / "mapping.yaml").write_text(yaml.safe_dump(mapping))
    tree = {
        "job": "convert",
        "name": "mine",
        "source": str(tmp_path / "u.npy"),
        "uri": str(tmp_path / "out.zarr"),
        "options": {
            "mapping": str(tmp_path / "mapping.yaml"),
            "splits": {"train": 2, "validation": 1, "test": 1},
        },
        "verify": True,
        "resources": {"launcher": "none", "num_workers": 2},
    }
    (tmp_path / "convert.yaml").write_text(yaml.safe_dump(tree))
    return tmp_path / "convert.yaml"


def stored(tmp_path: Path) -> Numbers:
    """The dataset's numbers as zarr itself reads them, `[trajectory, t, channel, y, x]`."""
    (path,) = (tmp_path / "out.zarr").rglob("data/zarr.json")
    array = zarr.open_array(path.parent, mode="r")
    return np.asarray(array)


def shown(*arguments: str) -> str:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return result.output


def test_a_job_file_converts_as_it_says(job_file: Path, tmp_path: Path, values: Numbers) -> None:
    assert "trajectory 4, time 5, channel 1" in shown("convert", str(job_file), "--dry-run")
    assert not (tmp_path / "out.zarr").exists()
    assert "the same as the source" in " ".join(shown("convert", str(job_file)).split())
    np.testing.assert_array_equal(stored(tmp_path)[:, :, 0], values)
    assert "is already complete" in " ".join(shown("convert", str(job_file)).split())
    # an override of a nested option makes another dataset, which needs another place
    refused = CliRunner().invoke(app, ["convert", str(job_file), "options.num_frames=3"])
    assert refused.exit_code == 2
    assert "holds another complete dataset" in refused.output
    shown("convert", str(job_file), "options.num_frames=3", "overwrite=true")
    np.testing.assert_array_equal(stored(tmp_path)[:, :, 0], values[:, :3])


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("options.num_frame=3", "options.num_frame: no such option; did you mean 'num_fr"),
        ("options.num_frames=three", "options.num_frames: got 'three'"),
        ("options.missing=drop", "options.missing: got 'drop'"),
        ("options.splits={trian: 4}", "options.splits: "),
        ("uri=s3://bucket//out.zarr", "uri: "),
    ],
)
def test_what_cannot_be_converted_is_refused_before_anything_starts(
    job_file: Path, tmp_path: Path, override: str, told: str, clusters: Clusters
) -> None:
    clusters(here={"kind": "local", "storage": str(tmp_path / "storage")})
    for verb in (("convert",), ("submit", "--cluster", "here", "--dry-run")):
        result = CliRunner().invoke(app, [*verb, str(job_file), override])
        assert result.exit_code == 2, result.output
        assert told in result.output
    assert not (tmp_path / "out.zarr").exists()


def test_a_wrong_option_is_cited_with_its_line(job_file: Path) -> None:
    text = job_file.read_text().replace("  mapping:", "  num_framez: 3\n  mapping:")
    job_file.write_text(text)
    line = text.splitlines().index("  num_framez: 3") + 1
    for verb in (["convert"], ["convert", "--dry-run"]):
        refused = CliRunner().invoke(app, [*verb, str(job_file)])
        said = " ".join(refused.output.split())
        assert f"convert.yaml: 1 problem line {line}: options.num_framez" in said, said
        assert "num_frames" in said


def test_a_mapping_that_cannot_be_read_is_cited_with_its_line(
    job_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "mapping.yaml").unlink()
    line = next(n for n, t in enumerate(job_file.read_text().splitlines(), 1) if "mapping:" in t)
    refused = CliRunner().invoke(app, ["convert", str(job_file)])
    assert refused.exit_code == 2
    said = " ".join(refused.output.split())
    assert f"convert.yaml: 1 problem line {line}: options.mapping: cannot read" in said


def test_overrides_belong_to_job_files(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["convert", "u.npy", "out.zarr", "verify=true"])
    assert result.exit_code == 2
    assert "overrides belong to job files" in result.output


def test_paths_that_the_nodes_do_not_see_are_named(
    job_file: Path, tmp_path: Path, clusters: Clusters
) -> None:
    clusters(lab={"kind": "slurm", "storage": str(tmp_path), "shared_paths": ["/elsewhere"]})
    with pytest.raises(ConfigError) as refused:
        submit.plan([str(job_file)], "lab", (), submit.Options())
    keys = {".".join(map(str, problem.key)) for problem in refused.value.problems}
    assert keys == {"source", "uri", "options.mapping"}


@pytest.mark.parametrize("verb", [CLONE[:5], ("resume", "theirs", "--take-over")])
def test_a_conversion_that_another_wrote_reads_and_replaces_nothing_of_ones_own(
    job_file: Path, tmp_path: Path, clusters: Clusters, started: list[Any], verb: tuple[str, ...]
) -> None:
    text = job_file.read_text().replace("name: mine", "name: theirs")
    submitted_by_another(tmp_path, clusters, text)
    result = CliRunner().invoke(app, verb)
    assert result.exit_code == 2
    assert started == []


def test_clone_names_what_has_to_be_said(
    job_file: Path, tmp_path: Path, clusters: Clusters, started: list[Any]
) -> None:
    text = job_file.read_text().replace("name: mine", "name: theirs")
    submitted_by_another(tmp_path, clusters, text)
    result = CliRunner().invoke(app, CLONE[:5])
    for key in ("source=", "uri=", "options.mapping="):
        assert f"{key}{tmp_path}" in result.output.replace("\n", "")
    own = [f"{key}={tmp_path / name}" for key, name in (("source", "u.npy"), ("uri", "b.zarr"))]
    own.append(f"options.mapping={tmp_path / 'mapping.yaml'}")
    result = CliRunner().invoke(app, [*CLONE[:5], *own])
    assert result.exit_code == 0, result.output
    assert [submission.run for submission in started] == ["mine"]


@pytest.mark.slow
def test_a_submitted_conversion_runs_where_it_is_sent(
    job_file: Path, tmp_path: Path, values: Numbers, clusters: Clusters
) -> None:
    clusters(here={"kind": "local", "storage": str(tmp_path / "storage")})
    finish(send(job_file, "here"))
    np.testing.assert_array_equal(stored(tmp_path)[:, :, 0], values)


def test_options_next_to_a_job_file_are_obeyed_or_refused(
    job_file: Path, tmp_path: Path, values: Numbers
) -> None:
    result = CliRunner().invoke(app, ["convert", str(job_file), "--max-trajectories", "2"])
    assert result.exit_code == 2
    assert "give options.max_trajectories=VALUE after the file" in " ".join(result.output.split())
    assert not (tmp_path / "out.zarr").exists()
    quiet = ("verify=false", "options.num_frames=2")
    assert "the same as the source" not in shown("convert", str(job_file), *quiet)
    text = shown("convert", str(job_file), "options.num_frames=2", "--verify", "--workers", "1")
    assert "the same as the source" in " ".join(text.split())
    shown("convert", str(job_file), "options.num_frames=4", "--overwrite")
    np.testing.assert_array_equal(stored(tmp_path)[:, :, 0], values[:, :4])


def test_a_job_file_that_is_absent_is_named(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["convert", str(tmp_path / "none.yaml")])
    assert result.exit_code == 2
    assert "the job file" in result.output
    assert "does not exist" in result.output
