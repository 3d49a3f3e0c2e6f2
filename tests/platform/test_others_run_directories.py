"""A run in another user's directory is read; credentials go where the reader says, not where it does."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pelagos.jobs import pretrain
from pelagos.jobs.training import branching
from pelagos.platform.config.load import load_job, resolve_yaml
from pelagos.platform.config.schema import TrainingJob
from pelagos.platform.records.runs import TAKE_OVERS, RunDirectory, RunError

TRAINING = Path(__file__).parents[2] / "configs/quickstart/pretrain.yaml"
STRANGE = ("tracking.uri=https://evil.example", "storage.endpoint_url=https://evil.example")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDirectory:
    for name in ("MLFLOW_TRACKING_URI", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    job = load_job(TRAINING, [f"runs_dir={tmp_path / 'runs'}", *STRANGE])
    assert isinstance(job, TrainingJob)
    return RunDirectory.create(job)


@pytest.fixture
def of_another(run: RunDirectory, become_anothers: Callable[[], None]) -> RunDirectory:
    become_anothers()
    return run


def test_ones_own_run_keeps_its_addresses(run: RunDirectory) -> None:
    assert run.job().tracking.uri == "https://evil.example"
    assert run.job().storage.endpoint_url == "https://evil.example"


def test_anothers_addresses_are_shown_and_not_used(of_another: RunDirectory) -> None:
    for job in (of_another.job(), of_another.revised_job(["resources.num_workers=1"])):
        assert job.tracking.uri is None
        assert job.storage.endpoint_url is None
    assert of_another.job_as_written().tracking.uri == "https://evil.example"


def test_an_address_of_the_readers_own_is_used(
    of_another: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert of_another.revised_job(STRANGE).tracking.uri == "https://evil.example"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://evil.example")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://evil.example")
    assert of_another.job().tracking.uri == "https://evil.example"
    assert of_another.job().storage.endpoint_url == "https://evil.example"


def test_a_local_record_of_anothers_is_kept(
    of_another: RunDirectory, tmp_path: Path, resolved: Callable[[str], str]
) -> None:
    of_another.path.joinpath("job.yaml").write_text(resolved("sqlite:///mlflow.db"))
    assert of_another.job().tracking.uri == "sqlite:///mlflow.db"


def test_anothers_run_goes_on_once_the_user_has_said_where_its_records_go(
    of_another: RunDirectory,
) -> None:
    runs_dir, name = str(of_another.path.parent), of_another.name
    with pytest.raises(
        RunError, match=r"tracking.uri=https://evil.example and storage.endpoint_url="
    ):
        pretrain.resume(runs_dir, name)
    dropped = ["tracking.uri=null", "storage.endpoint_url=null"]
    with pytest.raises(RunError, match=r"set storage.endpoint_url=https://evil.example, and"):
        pretrain.resume(runs_dir, name, overrides=dropped[:1])
    of_another.require_believed(of_another.revised_job(dropped), dropped)
    of_another.require_believed(of_another.revised_job(STRANGE), STRANGE)


@pytest.mark.parametrize(
    "uri", ["sqlite:////home/victim/app.sqlite", "sqlite:///../app.sqlite", "file:///home/victim"]
)
def test_a_path_of_anothers_choice_is_no_place_for_records(
    of_another: RunDirectory,
    resolved: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
    uri: str,
) -> None:
    """MLflow would make its tables in whatever file of the reader's is there."""
    of_another.path.joinpath("job.yaml").write_text(resolved(uri))
    assert of_another.job().tracking.uri is None
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert of_another.job().tracking.uri == uri


@pytest.fixture
def resolved() -> Callable[[str], str]:
    def text(uri: str) -> str:
        return resolve_yaml(load_job(TRAINING, [f"tracking.uri={uri}"]))

    return text


@pytest.mark.parametrize("setting", ["optimizer.lr", "tracking.uri"])
def test_a_take_over_brings_no_address_of_anothers_into_a_file_of_ones_own(
    of_another: RunDirectory, setting: str
) -> None:
    """A branch that was cut off is completed: job.yaml is then this user's, who is believed."""
    settings = {
        setting: [None, {"optimizer.lr": 0.5, "tracking.uri": "https://evil.example"}[setting]]
    }
    if setting == "tracking.uri":
        path = of_another.path / "job.yaml"
        path.write_text(path.read_text().replace("uri: https://evil.example", "uri: null"))
    told = [{"step": 0, "source": of_another.name, "checkpoint": "c", "settings": settings}]
    of_another.replace(TAKE_OVERS, json.dumps(told))
    before = of_another.job_as_written()
    with pytest.raises(
        RunError, match=r"belongs to another user. Its files in .* set tracking.uri="
    ):
        branching.finish_last(of_another, ["storage.endpoint_url=null"])
    with pytest.raises(
        RunError, match=r"belongs to another user. Its files in .* set tracking.uri="
    ):
        branching.branch(of_another, "last", ["storage.endpoint_url=null"])
    assert of_another.job_as_written() == before
    branching.finish_last(of_another, ["storage.endpoint_url=null", "tracking.uri=null"])
    assert of_another.job_as_written().tracking.uri is None


def test_a_branch_of_anothers_run_keeps_no_address_that_only_it_names(
    of_another: RunDirectory,
) -> None:
    with pytest.raises(RunError, match=r"Its files in .* set tracking.uri=.* and storage.endp"):
        branching.branch(of_another, "last", ["optimizer.lr=0.5"])


def test_a_branch_of_ones_own_that_drops_an_address_is_completed(run: RunDirectory) -> None:
    settings = {"tracking.uri": ["https://evil.example", None]}
    run.replace(
        TAKE_OVERS,
        json.dumps([{"step": 0, "source": run.name, "checkpoint": "c", "settings": settings}]),
    )
    branching.finish_last(run)
    assert run.job().tracking.uri is None
