"""Nothing that proves who asks is written into a job file, a record or a log."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from pelagos.cli.main import app
from pelagos.infra.storage.addresses import reject_credentials, without_credentials
from pelagos.platform.config.load import ConfigError, parse_job

SECRET = "hunter2hunter2"
HOLDING = (
    f"https://me:{SECRET}@mlflow.example.org",
    f"https://{SECRET}@mlflow.example.org/path",
    f"postgresql://{SECRET}@db/mlflow",
    f"https://host/data.zarr?token={SECRET}",
    f"https://host/data.zarr?part=1&X-Amz-Signature={SECRET}",
    f"https://acct.blob.core.windows.net/c/d?sv=2024&sig={SECRET}",
    f"s3://bucket/data?access_key={SECRET}",
    f"https://host/x?whatever={SECRET}{SECRET}",
)
PLAIN = (
    *("s3://bucket/data.zarr", "/home/me@lab/data", "runs", "file:///data/a@b"),
    *(
        "https://host:5000/path@2?part=1",
        "sqlite:///mlflow.db",
        "postgresql://db/mlflow?sslmode=require",
    ),
    "abfs://container@account.dfs.core.windows.net/data",
)
JOB = Path("configs/quickstart/pretrain.yaml")


@pytest.mark.parametrize("uri", HOLDING)
def test_they_are_refused_and_not_repeated(uri: str) -> None:
    with pytest.raises(ValueError, match="job files, records and logs keep addresses") as caught:
        reject_credentials(uri)
    assert SECRET not in str(caught.value)
    assert SECRET not in without_credentials(uri)


@pytest.mark.parametrize("uri", PLAIN)
def test_other_addresses_pass_as_they_are(uri: str) -> None:
    assert reject_credentials(uri) == uri
    assert without_credentials(uri) == uri


@pytest.mark.parametrize("uri", HOLDING)
@pytest.mark.parametrize(
    "key",
    ["tracking.uri", "data.mixture.0.uri", "checkpoint.uri", "storage.endpoint_url", "runs_dir"],
)
def test_no_key_of_a_job_takes_them(uri: str, key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_job(JOB.read_text(), str(JOB), (f"{key}={uri}",))
    assert "job files, records and logs keep addresses" in str(caught.value)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "arguments",
    [
        ("data", "copy", "{uri}", "out"),
        ("data", "copy", "there", "{uri}"),
        ("data", "verify", "{uri}"),
        ("data", "inspect", "{uri}"),
        ("data", "plot", "{uri}"),
        ("convert", "{uri}", "out"),
        ("data", "bench", "{uri}"),
        ("pretrain", "job.yaml", "tracking.uri={uri}"),
        ("checkpoint", "inspect", "{uri}"),
    ],
)
def test_no_verb_takes_them(arguments: tuple[str, ...], tmp_path: Path) -> None:
    """Refused before the first request: the hosts do not exist."""
    for uri in (HOLDING[0], HOLDING[3]):
        shown = CliRunner().invoke(app, [a.format(uri=uri) for a in arguments])
        assert "keep addresses" in shown.output
        assert shown.exit_code == 2, shown.output
        assert SECRET not in shown.output
