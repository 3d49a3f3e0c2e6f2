"""The data package by itself: everything of it imports, and streams, where there is no Ray, MLflow or
DeepSpeed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import importlib, pkgutil, runpy, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"ray", "mlflow", "deepspeed", "accelerate", "typer"}:
            raise ImportError(f"{name} is not installed here")

sys.meta_path.insert(0, Blocked())
import pelagos.data_pipelines as package

for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
    importlib.import_module(module.name)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_the_example_runs_without_the_platform(datasets: tuple[str, str], tmp_path: Path) -> None:
    example = str(ROOT / "examples" / "plain_pytorch.py")
    program = f"import sys; sys.argv = [{example!r}, {datasets[1]!r}, '60']\n{PROGRAM}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    losses = [float(line.split()[-1]) for line in result.stdout.splitlines() if "loss" in line]
    assert len(losses) == 60
    # a step of these travelling waves is a fixed linear map of the state, which a convolution
    # learns; the bound leaves room for the draw of its weights
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    assert Image.open(tmp_path / "trajectory.png").size[0] > 300
