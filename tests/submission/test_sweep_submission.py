"""A sweep on a cluster: its trials are handed over as one array, its report is the last run."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.submission.conftest import finish

from pelagos.infra.clusters import Submission
from pelagos.infra.clusters.slurm import SlurmCluster
from pelagos.infra.signatures import digest_of
from pelagos.jobs import submit
from pelagos.jobs.submission import following, start_again
from pelagos.jobs.submission.driver import Driver
from pelagos.jobs.submission.records.record import RunRecord
from pelagos.jobs.submission.shipping.package import upload
from pelagos.jobs.sweeping.mlflow_parent import open_parent
from pelagos.jobs.sweeping.trials import trials_of
from pelagos.platform.config import ConfigError
from pelagos.platform.config.load import load_job
from pelagos.platform.config.sweep import SweepJob
from pelagos.platform.records.runs import RunError

Clusters = Callable[..., None]
DPOT = {
    "model": {
        "name": "dpot-nano",
        "config": {"img_size": 16, "embed_dim": 16, "in_timesteps": 3},
    },
    "objective": {"name": "autoregressive", "config": {"num_input_frames": 3}},
}


@pytest.fixture
def sweep_file(
    datasets: tuple[str, str],
    tiny_job_text: Callable[[tuple[str, str], Path, str], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., Path]:
    """`sweep_file(key=value)`: a sweep over two labels, whose job files lie beside it."""
    tree = yaml.safe_load(tiny_job_text(datasets, tmp_path, "tiny"))
    tree |= {"schedule": {"total_steps": 2}, "validation": {"every_steps": 1, "num_samples": 4}}
    (tmp_path / "scot.yaml").write_text(yaml.safe_dump(tree))
    (tmp_path / "dpot.yaml").write_text(yaml.safe_dump({**tree, **DPOT}))
    monkeypatch.chdir(tmp_path)

    def write(**keys: Any) -> Path:
        sweep = {
            "job": "sweep",
            "name": "two",
            "jobs": {"scot": {"file": "scot.yaml"}, "dpot": {"file": "dpot.yaml"}},
            "seeds": [1, 2],
            "evaluate": {"max_trajectories": 2},
            "tracking": {"uri": f"sqlite:///{tmp_path}/mlflow.db"},
        }
        path = tmp_path / "sweep.yaml"
        path.write_text(yaml.safe_dump({**sweep, **keys}))
        return path

    return write


@pytest.fixture
def slurm_entry(clusters: Clusters, tmp_path: Path) -> dict[str, Any]:
    entry = {
        "kind": "slurm",
        "storage": str(tmp_path / "storage"),
        "shared_paths": ["/"],
        "node": {"cpus": 8, "gpus": 2},
        "defaults": {"resources.cpus_per_worker": 3},
    }
    clusters(hpc=entry, here={"kind": "local", "storage": str(tmp_path / "storage")})
    return entry


@pytest.mark.usefixtures("slurm_entry")
def test_the_trials_are_one_array_and_the_report_waits_for_its_end(
    sweep_file: Callable[..., Path], tmp_path: Path
) -> None:
    path = sweep_file(max_concurrent=3)
    planned = submit.plan([str(path)], "hpc", (), submit.Options())
    *trials, report = planned.runs
    job = load_job(path)
    assert isinstance(job, SweepJob)
    # a trial is the same run, whoever starts it
    names = [trial.name for trial in trials_of(job)]
    assert [run.name for run in trials] == names
    assert (report.name, report.submission.after_ended) == ("two", tuple(names))
    array, alone = planned.describe()["runs"][0], planned.describe()["runs"][-1]
    script = array["sent"]["array.sbatch"]
    # no Ray of one's own, so no nodes of one's own
    assert "symmetric-run" not in script
    assert "--exclusive" not in script
    assert "#SBATCH --cpus-per-task=3" in script
    assert "-%A_%a.log" in script
    assert list(alone["sent"]) == ["job.sbatch"]
    start = script.index('case "$SLURM_ARRAY_TASK_ID"')
    choose = script[start : script.index("esac") + len("esac")]
    for number, name in enumerate(names):
        environment = {"PATH": os.environ["PATH"], "SLURM_ARRAY_TASK_ID": str(number)}
        command = ["bash", "-c", f"{choose}\nprintf '%s\\n' \"$@\""]
        shown = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert shown.stdout.split()[-4:-1] == [str(tmp_path / "storage"), name, "1"]


def test_a_report_depends_on_the_end_of_the_array_whatever_it_is() -> None:
    from tests.submission.test_scripts_and_config import slurm, submission

    handles = tuple({"job_id": f"12_{n}", "array_id": "12"} for n in range(3))
    waits: Submission = submission()
    object.__setattr__(waits, "ended_handles", handles)
    object.__setattr__(waits, "after_handles", ({"job_id": "7"},))
    cluster: SlurmCluster = slurm()
    told = cluster._dependency(waits)
    assert told == ["--dependency=afterok:7,afterany:12", "--kill-on-invalid-dep=yes"]


def test_a_sweep_has_its_run_in_mlflow_though_artifacts_have_no_place(
    sweep_file: Callable[..., Path], tmp_path: Path
) -> None:
    from mlflow import MlflowClient

    (tmp_path / "mlartifacts").write_text("a file where the directory of artifacts would be")
    job = load_job(sweep_file())
    assert isinstance(job, SweepJob)
    parent = open_parent(job, tmp_path)
    assert parent is not None
    assert open_parent(job, tmp_path) == parent
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.search_experiments(filter_string="name != 'Default'")[0]
    found = client.search_runs([experiment.experiment_id])
    assert [run.info.run_id for run in found] == [parent]


# in one process all that three tasks of the array do: 40 seconds on a quiet machine
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("slurm_entry")
def test_trials_run_by_themselves_and_the_report_tells_of_all(
    sweep_file: Callable[..., Path], tmp_path: Path
) -> None:
    """The runs of the submission, one after the other, as the tasks of the array run them."""
    planned = submit.plan([str(sweep_file(seeds=[1]))], "hpc", (), submit.Options())
    records = [submit._claimed(planned, run)[0] for run in planned.runs]
    dpot, scot, _ = [record.run for record in records]
    for record in (records[1], records[0], records[2]):
        assert driver(record).drive() == 0
    told = json.loads((tmp_path / "storage" / "runs" / "two" / "sweep.json").read_text())
    by_name = {row["name"]: row for row in told["trials"]}
    assert {row["state"] for row in by_name.values()} == {"finished"}
    # a network of one frame forecasts any lead directly, one of several only step by step
    assert set(by_name[scot]["errors"]) >= {"direct", "autoregressive"}
    assert "autoregressive" in by_name[dpot]["errors"]
    assert "direct" not in by_name[dpot]["errors"]
    assert (tmp_path / "storage" / "runs" / "two" / "report.html").stat().st_size > 0
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.search_experiments(filter_string="name != 'Default'")[0]
    runs = {r.info.run_name: r for r in client.search_runs([experiment.experiment_id])}
    parent = runs["two"].info.run_id
    assert {runs[n].data.tags["mlflow.parentRunId"] for n in (scot, dpot)} == {parent}


DETAILS = ("cluster", "cluster_config", "priority", "retries", "after", "needs", "code")


def driver(record: RunRecord) -> Driver:
    """The process of a run, as its cluster starts it."""
    return Driver(record.store, record.run, 1, digest_of(record.submitting_event()))


@pytest.mark.usefixtures("slurm_entry")
def test_the_report_tells_of_trials_that_failed_or_never_began(
    sweep_file: Callable[..., Path], tmp_path: Path
) -> None:
    path = sweep_file(jobs={"scot": {"file": "scot.yaml"}}, tracking={"uri": None})
    planned = submit.plan([str(path)], "hpc", (), submit.Options())
    first, second, report = [submit._claimed(planned, run)[0] for run in planned.runs]
    first.append("failed", cause="ValueError: no such thing", cause_kind="user error")
    second.append("cancelled", reason="a person ended it")
    assert driver(report).drive() == 0
    told = json.loads((tmp_path / "storage" / "runs" / "two" / "sweep.json").read_text())
    causes = {row["name"]: (row["state"], row["cause"]) for row in told["trials"]}
    assert causes[first.run] == ("failed", "ValueError: no such thing")
    assert causes[second.run] == ("stopped", "a person ended it")


@pytest.mark.usefixtures("slurm_entry")
def test_a_resumed_sweep_reports_again_on_trials_that_were_resumed(
    sweep_file: Callable[..., Path], tmp_path: Path
) -> None:
    """A failed trial is resumed and finishes; the report is resumed as a process of this machine."""
    path = sweep_file(jobs={"scot": {"file": "scot.yaml"}})
    planned = submit.plan([str(path)], "hpc", (), submit.Options())
    upload(planned.store, planned.archives)
    first, second, report = [submit._claimed(planned, run)[0] for run in planned.runs]
    first.append("failed", cause="ValueError: no such thing", cause_kind="user error")
    second.append("cancelled", reason="a person ended it")
    assert driver(report).drive() == 0
    file = tmp_path / "storage" / "runs" / "two" / "sweep.json"
    before = {row["name"]: row["state"] for row in json.loads(file.read_text())["trials"]}
    assert before == {first.run: "failed", second.run: "stopped"}

    again = first.submitting_event()
    first.submit_again(again["job"], **{key: again[key] for key in DETAILS}, attempt=2, handle={})
    assert driver(first).drive() == 0
    with pytest.raises(RunError, match="takes no overrides"):
        start_again.resume(
            following.find("two"), "here", ["evaluate.split=train"], submit.Options()
        )
    start_again.resume(following.find("two"), "here", (), submit.Options())
    assert following.wait(following.find("two"), 240).state == "finished"
    told = {row["name"]: row for row in json.loads(file.read_text())["trials"]}
    assert (told[first.run]["state"], told[first.run]["cause"]) == ("finished", "")
    assert told[first.run]["errors"]["direct"] > 0
    assert told[second.run]["state"] == "stopped"
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.search_experiments(filter_string="name != 'Default'")[0]
    runs = client.search_runs([experiment.experiment_id])
    assert sorted(r.info.run_name for r in runs) == sorted(["two", first.run])  # one of the sweep


@pytest.mark.usefixtures("slurm_entry")
@pytest.mark.parametrize(
    ("cluster", "keys", "message"),
    [
        ("hpc", {"search": {"name": "asha"}}, "search.name: compares trials while they run"),
        (
            "hpc",
            {
                "random": {"optimizer.lr": {"low": 0.1, "high": 0.2}},
                "search": {"name": "population", "num_samples": 4},
            },
            "search.name: compares trials while they run",
        ),
        ("here", {}, "Run `pelagos sweep`, which obeys max_concurrent"),
        ("hpc", {"jobs": {"scot": {}}}, "give exactly one of `file` .* and `job`"),
        ("hpc", {"grid": {"optimizer.lr": ["fast"]}}, "grid.optimizer.lr"),
    ],
)
def test_what_cannot_be_submitted_is_refused_before_anything_is_claimed(
    sweep_file: Callable[..., Path],
    tmp_path: Path,
    cluster: str,
    keys: dict[str, Any],
    message: str,
) -> None:
    with pytest.raises(ConfigError, match=message):
        submit.plan([str(sweep_file(**keys))], cluster, (), submit.Options())
    assert not (tmp_path / "storage" / "records").exists()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.targets
@pytest.mark.timeout(600)
def test_a_sweep_runs_as_an_array_on_slurm(
    real_slurm: None, clusters: Clusters, tmp_path: Path, sweep_file: Callable[..., Path]
) -> None:
    import sys

    entry = {
        "kind": "slurm",
        "storage": str(tmp_path / "storage"),
        "venv": str(Path(sys.executable).parent.parent),
        "partition": "debug",
        "time_limit": "00:20:00",
        "node": {"cpus": 2},
        "shared_paths": ["/"],
        "environment": {"OMP_NUM_THREADS": "1"},
    }
    clusters(hpc=entry)
    path = sweep_file(jobs={"scot": {"file": "scot.yaml"}}, tracking={"uri": None})
    names = submit.submit(submit.plan([str(path)], "hpc", (), submit.Options()))
    handles = [RunRecord(following.find(n).store, n).state().handle for n in names[:2]]
    assert {handle["array_id"] for handle in handles} == {handles[0]["job_id"].split("_")[0]}
    assert [handle["job_id"].split("_")[1] for handle in handles] == ["0", "1"]
    finish(following.find("two"))
    told = json.loads((tmp_path / "storage" / "runs" / "two" / "sweep.json").read_text())
    assert [row["state"] for row in told["trials"]] == ["finished", "finished"]
    assert {row["seed"] for row in told["trials"]} == {1, 2}
    assert "validation loss" in "".join(following.follow_logs(following.find("two"), False))
