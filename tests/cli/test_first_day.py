"""`pelagos` alone, its version, and verbs that need no torch: what they import is counted."""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from typer.main import get_command
from typer.testing import CliRunner

from pelagos.cli.first_day import VERBS
from pelagos.cli.main import app

HEAVY = ("torch", "ray", "mlflow", "matplotlib", "deepspeed", "pandas", "sympy")


def test_the_version_is_that_of_the_package() -> None:
    shown = CliRunner().invoke(app, ["--version"])
    assert shown.exit_code == 0
    assert shown.stdout.strip() == f"pelagos {version('pelagos')}"


def test_alone_it_shows_six_verbs_that_exist_in_eighty_columns() -> None:
    shown = CliRunner().invoke(app, [], env={"COLUMNS": "80"})
    assert shown.exit_code == 0
    verbs = [line.split()[1] for line in shown.stdout.splitlines() if line.startswith("  pelagos ")]
    assert verbs == [name.split()[0] for name in VERBS]
    assert len(verbs) == 6
    assert set(verbs) <= set(get_command(app).commands)  # type: ignore[attr-defined]
    assert "pelagos --help" in shown.stdout
    assert max(map(len, shown.stdout.splitlines())) <= 80


PROGRAM = f"""
import sys
from typer.testing import CliRunner
from pelagos.cli.main import app
result = CliRunner().invoke(app, sys.argv[2:])
heavy = [name for name in {HEAVY!r} if name in sys.modules]
assert result.exit_code == int(sys.argv[1]), result.output
print(*heavy)
"""


@pytest.mark.parametrize(
    ("verb", "status"),
    [
        ("--help", 0),
        ("", 0),
        ("list", 0),
        ("status nothing", 2),
        ("logs nothing", 2),
        ("stop nothing", 2),
        ("resume nothing", 2),
        ("clusters", 0),
        ("convert --list", 0),
        ("pretrain wrong.yaml", 2),
        ("finetune wrong.yaml", 2),
        ("generate wrong.yaml", 2),
        ("sweep wrong.yaml", 2),
        ("submit wrong.yaml --cluster here", 2),
    ],
)
def test_verbs_and_mistakes_that_need_no_torch_import_none(
    tmp_path: Path, verb: str, status: int
) -> None:
    job = verb.split()[0] if "wrong" in verb else "pretrain"
    kind = "pretrain" if job == "submit" else job
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump({"job": kind, "nam": "x"}))
    config = {"clusters": {"here": {"kind": "local", "storage": str(tmp_path / "storage")}}}
    (tmp_path / "clusters.yaml").write_text(yaml.safe_dump(config))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(status), *verb.split()],
        cwd=tmp_path,
        env={"PELAGOS_CLUSTERS": str(tmp_path / "clusters.yaml"), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
