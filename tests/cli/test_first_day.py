"""`pelagos` alone, its version, and verbs that need no torch: what they import is counted."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import nibabel
import numpy as np
import pytest
import yaml
from typer.main import get_command
from typer.testing import CliRunner

from pelagos.cli import shipped_tables
from pelagos.cli.first_day import VERBS
from pelagos.cli.main import app
from pelagos.data_pipelines.generate.families import FAMILIES as PROBLEMS
from pelagos.models.registry import create_model, list_models, model_info
from pelagos.platform.config import PretrainJob, resolve_yaml

MakeJob = Callable[..., PretrainJob]

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
        ("wait nothing", 2),
        ("watch nothing", 2),
        ("diff nothing none", 2),
        ("clone nothing new", 2),
        ("evaluate nothing", 2),
        ("export nothing model", 2),
        ("plot nothing", 2),
        ("compare nothing none", 2),
        ("models", 0),
        ("models --json", 0),
        ("generate --list", 0),
        ("checkpoint verify nothing", 2),
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
        env={
            "PELAGOS_CLUSTERS": str(tmp_path / "clusters.yaml"),
            "HOME": str(tmp_path),
            "PYTHONPATH": str(Path(__file__).parents[2] / "src"),  # the code beside this test
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_the_tables_that_need_no_torch_are_those_of_the_registries() -> None:
    for name, registered in shipped_tables.TABLES.items():
        path = Path(shipped_tables.__file__).parent / "tables" / f"{name}.json"
        told = json.loads(path.read_text())
        # `python -m pelagos.cli.shipped_tables` writes them anew
        assert told == json.loads(json.dumps(registered())), name


PLOT = """
import sys
from pelagos.jobs.plot_runs import draw_run
assert "torch" not in sys.modules
"""


def test_learning_curves_are_drawn_without_torch() -> None:
    subprocess.run([sys.executable, "-c", PLOT], check=True)


def test_models_are_a_row_per_family_in_eighty_columns() -> None:
    shown = CliRunner().invoke(app, ["models"], env={"COLUMNS": "80"}).stdout
    assert max(map(len, shown.splitlines())) <= 80
    said = " ".join(shown.split())
    for name, info in ((n, model_info(n)) for n in list_models()):
        size = name.removeprefix(f"{info.family}-")
        assert f"{size}: " in said, name
        if info.weights_license:
            assert name in said.partition(f"published under {info.weights_license}")[2]
    assert re.search(r"^ +poseidon +frame +nano: 0\.82M, t: 20\.8M\*", shown, re.MULTILINE)
    rows = [
        line.split()[0] for line in shown.splitlines() if re.match(r"  \w+ +\w+ +\S+: \d", line)
    ]
    assert rows == list(dict.fromkeys(model_info(name).family for name in list_models()))


def test_families_of_problems_are_listed_with_equation_fields_and_parameters() -> None:
    shown = CliRunner().invoke(app, ["generate", "--list"], env={"COLUMNS": "80"})
    assert shown.exit_code == 0
    assert max(map(len, shown.stdout.splitlines())) <= 80
    said = " ".join(shown.stdout.split())
    for family in PROBLEMS.values():
        after_equation = said.partition(" ".join(family.equation.split()))[2]
        assert f"fields {', '.join(family.fields)}" in after_equation, family.name
        assert ", ".join(family.parameter_names) in after_equation
        assert f" {family.name.lower()} {family.description}" in said
    told = json.loads(CliRunner().invoke(app, ["generate", "--list", "--json"]).stdout)
    assert [row["name"] for row in told] == list(PROBLEMS)
    assert CliRunner().invoke(app, ["generate"]).exit_code == 2


def test_files_that_are_no_dataset_yet_are_sent_to_convert(tmp_path: Path) -> None:
    nibabel.save(
        nibabel.Nifti1Image(np.zeros((4, 4, 4), np.float32), np.eye(4)), tmp_path / "v.nii"
    )
    said = inspected(tmp_path / "v.nii")
    assert "v.nii is not a dataset yet. Its format is nifti: `pelagos convert" in said
    assert "v.zarr` makes one" in said
    np.save(tmp_path / "plain.npy", np.zeros((4, 3, 8, 8)))
    assert "--draft-mapping` proposes one" in inspected(tmp_path / "plain.npy")
    assert "no dataset at" in inspected(tmp_path / "absent.zarr")


def inspected(path: Path) -> str:
    shown = CliRunner().invoke(app, ["data", "inspect", str(path)])
    assert shown.exit_code == 2
    return " ".join(shown.output.split())


def test_a_training_says_what_it_is_about_to_do_and_json_stays_json(
    make_job: MakeJob, tmp_path: Path
) -> None:
    job = make_job("told", schedule__total_steps=3, schedule__warmup_steps=0)
    path = tmp_path / "told-job.yaml"
    path.write_text(resolve_yaml(job))
    shown = CliRunner().invoke(app, ["pretrain", str(path)], env={"COLUMNS": "200"})
    assert shown.exit_code == 0, shown.output
    lines = [line for line in shown.output.splitlines() if line.strip()]
    assert lines[0] == f"told: {path} is read; opening data and building the model"
    found = {line.split()[0]: line for line in lines[1:7]}
    assert list(found) == ["run", "data", "model", "memory", "tracking", "workers"]
    assert found["run"].split()[1] == str(tmp_path / "runs" / "told")
    network = create_model("poseidon-nano", in_channels=4, out_channels=4, **job.model.config)
    count = sum(p.numel() for p in network.parameters())
    assert f"poseidon-nano, {count:,} parameters" in found["model"]
    # fp32 weights, gradients and AdamW's two moments
    assert f"{count * 16 / 2**20:.1f} MiB" in found["memory"]
    assert "experiment pelagos" in found["tracking"]
    assert found["workers"].endswith("this process, without Ray")

    told = subprocess.run(
        [sys.executable, "-m", "pelagos.cli.main", "pretrain", str(path), "name=other", "--json"],
        capture_output=True,
        text=True,
    )
    assert json.loads(told.stdout)["outcome"]["kind"] == "finished"
    assert "model    poseidon-nano" in told.stderr
