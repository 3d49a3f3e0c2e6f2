"""What tests of the command line share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pelagos.cli.main import app


@pytest.fixture(scope="session")
def finished(
    tmp_path_factory: pytest.TempPathFactory, datasets: tuple[str, str], tiny_job_text: Any
) -> Path:
    """The directory of runs with one finished run, `done`. Tests must leave it as it is."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "done.yaml").write_text(tiny_job_text(datasets, folder, "done"))
    arguments = ["pretrain", str(folder / "done.yaml"), "tracking.uri=null"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return folder / "runs"
