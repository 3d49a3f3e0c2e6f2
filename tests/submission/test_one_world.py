"""Every verb finds a run by name, wherever it is, and says so where several places have the name."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import yaml
from tests.conftest import S3Server
from typer.testing import CliRunner

from pelagos.cli.main import app
from pelagos.infra.storage.local import DirectoryStore
from pelagos.jobs.run_access import finding
from pelagos.jobs.run_access.finding import find
from pelagos.jobs.submission.records.record import RunRecord
from pelagos.platform.config import PretrainJob
from pelagos.platform.config.load import resolve_yaml
from pelagos.platform.records.known_runs import MOST_NAMED
from pelagos.platform.records.runs import RunDirectory

Clusters = Callable[..., None]
MakeJob = Callable[..., PretrainJob]
DETAILS: dict[str, Any] = {"needs": {}, "priority": 0, "retries": 0, "after": []}


def call(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "200"})


def well(*arguments: object) -> str:
    shown = call(*arguments)
    assert shown.exit_code == 0, shown.output + shown.stderr
    return str(shown.stdout)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory that the verbs are called in; runs are in ./runs."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def storage(
    request: pytest.FixtureRequest, here: Path, clusters: Clusters, monkeypatch: pytest.MonkeyPatch
) -> str:
    """The storage of the cluster `lab`: a directory, or a bucket."""
    if request.param == "directory":
        clusters(lab={"kind": "local", "storage": str(here / "storage")})
        return str(here / "storage")
    server: S3Server = request.getfixturevalue("s3_server")
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PELAGOS_SCRATCH", str(here / "scratch"))
    uri = server.new_uri()
    clusters(lab={"kind": "local", "storage": uri, "endpoint_url": server.endpoint})
    return uri


def objects(storage: str, server: S3Server | None) -> list[str]:
    options = {} if server is None else server.storage_options
    filesystem, root = fsspec.core.url_to_fs(storage, **options)
    return [name.removeprefix(root) for name in filesystem.find(root)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "storage", ["directory", pytest.param("bucket", marks=pytest.mark.s3)], indirect=True
)
def test_every_verb_works_on_a_submitted_run(
    storage: str, here: Path, make_job: MakeJob, request: pytest.FixtureRequest
) -> None:
    in_bucket = storage.startswith("s3://")
    make_job("sent")
    well("submit", here / "sent.yaml", "--cluster", "lab", "tracking.uri=null")
    watched = well("watch", "sent", "--every", "0.5")
    assert watched.splitlines()[-1] == "sent: finished"
    assert "step 8/8" in watched, watched
    assert "checkpoint of step 8" in well("logs", "sent")
    assert json.loads(well("status", "lab/sent", "--json"))["step"] == 8
    assert well("stop", "sent") == "sent is finished\n"

    report = json.loads(well("evaluate", "sent@8", "max_trajectories=1", "--json"))["report"]
    assert Path(report).exists()
    server = request.getfixturevalue("s3_server") if in_bucket else None
    assert any(name.endswith("evaluation/test/report.html") for name in objects(storage, server))
    well("export", "sent@best", here / "exported")
    assert (here / "exported/model.safetensors").exists()
    assert "validation" in well("plot", "sent", "-o", here / "c.png")
    assert "whole" in well("checkpoint", "verify", "sent")

    # one that was trained here, from its weights
    job = yaml.safe_load((here / "sent.yaml").read_text())
    job |= {"job": "finetune", "name": "tuned", "source": {"run": "sent"}, "runs_dir": "runs"}
    job |= {"tracking": {"uri": None}, "schedule": {"total_steps": 2, "warmup_steps": 1}}
    (here / "tuned.yaml").write_text(yaml.safe_dump(job))
    assert "tuned from run sent step 8" in well("finetune", "tuned.yaml")
    told = json.loads(well("diff", "tuned", "lab/sent", "--json"))
    assert told["job"] == ["finetune", "pretrain"]
    compared = well("evaluate", "sent", "tuned", "--compare", "max_trajectories=1")
    assert "report: runs/comparisons/sent-vs-tuned/test/report.html" in compared

    well("clone", "./runs/tuned", "again", "--cluster", "lab", "source.run=sent")
    assert "again: finished" in well("wait", "again", "--timeout", 120)
    assert RunDirectory(here / "runs/tuned").metrics()[-1]["loss"] == pytest.approx(
        find("again").directory().metrics()[-1]["loss"], rel=1e-6
    )


@pytest.fixture
def twins(here: Path, clusters: Clusters, make_job: MakeJob) -> Path:
    """A run of one name in ./runs and on two clusters; `lab` and `near` share a storage."""
    job = make_job("twin")
    RunDirectory.create(job)
    stores = {name: here / name for name in ("storage", "other")}
    clusters(
        lab={"kind": "local", "storage": str(stores["storage"])},
        near={"kind": "local", "storage": str(stores["storage"])},
        far={"kind": "local", "storage": str(stores["other"])},
    )
    for cluster, store in (("lab", stores["storage"]), ("far", stores["other"])):
        record = RunRecord(DirectoryStore(str(store)), "twin")
        record.claim(resolve_yaml(job), cluster=cluster, **DETAILS)
        RunDirectory.create(job.model_copy(update={"runs_dir": str(store / "runs")}))
    return here


VERBS = (
    ("status",),
    ("logs",),
    ("stop",),
    ("wait", "--timeout", "0"),
    ("watch",),
    ("resume",),
    ("evaluate",),
    ("plot",),
    ("checkpoint", "inspect"),
    ("export", "model"),
    ("clone", "another"),
    ("diff", "lab/twin"),
)


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_a_name_that_several_places_have_is_said_by_every_verb(
    twins: Path, verb: tuple[str, ...]
) -> None:
    first, *more = verb
    words = (*verb, "twin") if first == "checkpoint" else (first, "twin", *more)
    shown = call(*words)
    assert shown.exit_code == 2, shown.output
    expected = (
        "run 'twin' exists in 3 places. Say which: ./runs/twin (started here), "
        f"far/twin ({twins}/other), lab/twin ({twins}/storage)"
    )
    assert expected in shown.output


def test_each_place_can_be_named_and_options_say_the_same(twins: Path) -> None:
    wanted = {
        ("./runs/twin",): None,
        ("runs/twin",): None,
        ("twin", "--runs-dir", "runs"): None,
        (f"{twins}/runs/twin",): None,
        ("lab/twin",): "lab (local)",
        ("near/twin",): "lab (local)",
        ("twin", "--cluster", "far"): "far (local)",
        # the directory of a cluster holds submitted runs
        ("storage/runs/twin",): "lab (local)",
        ("./other/runs/twin",): "far (local)",
    }
    for arguments, cluster in wanted.items():
        told = json.loads(well("status", *arguments, "--json"))
        assert (told["run"], told["cluster"]) == ("twin", cluster), arguments


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("lab/twin", "--cluster", "far"), "lab/twin and --cluster far both say where the run is"),
        (("lab/twin", "--runs-dir", "runs"), "lab/twin and --runs-dir runs both say"),
        (("twin", "--cluster", "far", "--runs-dir", "runs"), "name two places"),
        (("nowhere/twin",), "no run 'twin' in"),
        (("lab/twim",), "no submitted run 'twim' in"),
        (("twim",), "is neither in ./runs nor submitted to far ("),
        (("../secret",), "no run 'secret'"),
        (("tw in",), "'tw in' is not a valid run name"),
        (("[bold]x",), "'[bold]x' is not a valid run name"),
    ],
)
def test_places_that_there_are_not(twins: Path, arguments: tuple[str, ...], told: str) -> None:
    shown = call("status", *arguments)
    assert shown.exit_code == 2
    assert told in shown.output


def test_a_source_that_several_places_have_is_said_by_its_key(twins: Path) -> None:
    job = yaml.safe_load((twins / "twin.yaml").read_text())
    job |= {"job": "finetune", "name": "tuned", "source": {"run": "twin"}, "runs_dir": "runs"}
    (twins / "tuned.yaml").write_text(yaml.safe_dump(job))
    for more, told in {
        (): "source.run: run 'twin' exists in 3 places",
        ("source.cluster=nowhere",): "no such cluster",
        ("source.cluster=far", "source.runs_dir=runs"): "name two places",
        # found there, and without a checkpoint
        ("source.cluster=far",): f"{twins}/other/runs/twin/checkpoints",
        ("source.runs_dir=runs",): f"{twins}/runs/twin/checkpoints",
    }.items():
        shown = call("finetune", "tuned.yaml", *more)
        assert shown.exit_code == 2
        assert told in " ".join(shown.output.split()), shown.output


def test_errors_name_the_most_similar_runs_and_how_many_more_there_are(
    here: Path, clusters: Clusters, make_job: MakeJob
) -> None:
    clusters(lab={"kind": "local", "storage": str(here / "storage")})
    text = resolve_yaml(make_job("x"))
    for number in range(40):
        (here / f"runs/trial-{number:02d}").mkdir(parents=True)
        (here / f"runs/trial-{number:02d}/job.yaml").write_text(text)
    RunRecord(DirectoryStore(str(here / "storage")), "quickstart").claim(
        text, cluster="lab", **DETAILS
    )
    for arguments, count, nearest in (
        (("quickstrat",), 41, "quickstart"),
        (("trial-7", "--runs-dir", "runs"), 40, "trial-07"),
    ):
        shown = call("logs", *arguments)
        assert shown.exit_code == 2
        found = re.search(r"known runs: (.*), and (\d+) more \(pelagos list\)", shown.output)
        assert found is not None, shown.output
        named = found[1].split(", ")
        assert (len(named), int(found[2])) == (MOST_NAMED, count - MOST_NAMED)
        assert named[0] == nearest


@pytest.fixture
def silent_server() -> Iterator[str]:
    """An address that accepts connections and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(50)
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_a_storage_that_does_not_answer_holds_up_no_run_that_is_here(
    here: Path,
    clusters: Clusters,
    make_job: MakeJob,
    silent_server: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(finding, "ANSWER_SECONDS", 0.5)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    clusters(away={"kind": "local", "storage": "s3://bucket/x", "endpoint_url": silent_server})
    RunDirectory.create(make_job("mine"))
    begin = time.monotonic()
    found = find("mine")
    assert found.address == "./runs/mine"
    assert time.monotonic() - begin < 30  # a bound on hanging, not on speed
    assert "away has not answered within 0.5 s" in caplog.text


@pytest.mark.s3
@pytest.mark.parametrize("storage", ["bucket"], indirect=True)
def test_what_others_wrote_into_a_bucket_is_not_believed(
    storage: str, here: Path, make_job: MakeJob, s3_server: S3Server
) -> None:
    """Neither an address that credentials would go to, nor a module to import."""
    job = make_job("theirs", tracking__uri="http://127.0.0.1:9", plugins="[turtle]")
    filesystem = fsspec.filesystem("s3", **s3_server.storage_options)
    record = find_store(storage, s3_server)
    record.claim(resolve_yaml(job), cluster="lab", **DETAILS)
    prefix = f"{storage}/runs/theirs/files"
    filesystem.pipe_file(f"{prefix}/job.yaml", resolve_yaml(job).encode())
    mark = json.dumps({"of": "x", "own": ""}).encode()
    filesystem.pipe_file(f"{prefix}/.copy.json", mark)  # a mark of theirs is not brought here
    run = find("theirs").directory()
    assert run.job_as_written().tracking.uri == "http://127.0.0.1:9"
    assert run.job().tracking.uri is None
    refused = call("export", "theirs", here / "model")
    assert refused.exit_code == 2
    assert "turtle" in refused.output
    assert json.loads((run.path / ".copy.json").read_text())["of"] == storage


def find_store(storage: str, server: S3Server) -> RunRecord:
    from pelagos.infra.storage.local import open_store

    return RunRecord(open_store(storage, server.endpoint), "theirs")


def test_a_directory_that_a_cluster_keeps_its_runs_in_lists_each_once(
    here: Path, clusters: Clusters, make_job: MakeJob
) -> None:
    """And a run there is the submitted one: `stop` asks its record."""
    clusters(lab={"kind": "local", "storage": str(here)})
    job = make_job("sent")
    record = RunRecord(DirectoryStore(str(here)), "sent")
    record.claim(resolve_yaml(job), cluster="lab", **DETAILS)
    RunDirectory.create(job)
    RunDirectory.create(make_job("mine"))
    rows = json.loads(well("list", "--json"))
    assert {(row["run"], row["cluster"]) for row in rows} == {("mine", None), ("sent", "lab")}
    for arguments in (("sent",), ("sent", "--runs-dir", "runs"), ("./runs/sent",)):
        assert json.loads(well("status", *arguments, "--json"))["cluster"] == "lab (local)"
    assert json.loads(well("stop", "sent", "--json"))["state"] == "cancelled"


def test_a_broken_clusters_file_hides_no_run_that_is_here(
    here: Path, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (here / "broken.yaml").write_text("clusters: {lab: {kind: lokal, storage: x}}")
    monkeypatch.setenv("PELAGOS_CLUSTERS", str(here / "broken.yaml"))
    RunDirectory.create(make_job("mine"))
    assert find("mine").address == "./runs/mine"
    assert "'lokal'" in caplog.text
    assert find("mine", runs_dir="runs").address == "./runs/mine"
    assert "did you mean 'local'" in call("status", "nothing").output


def test_a_checkpoint_given_by_its_address_is_not_looked_for_as_a_run(twins: Path) -> None:
    run = RunDirectory(twins / "runs/twin")
    shown = call("checkpoint", "inspect", f"{run.checkpoint_uri}/step-00000008")
    assert shown.exit_code == 2
    assert "run 'twin'" not in shown.output
    shown = call("checkpoint", "inspect", "./runs/twin@8")
    assert shown.exit_code == 2
    assert run.checkpoint_uri in shown.output
