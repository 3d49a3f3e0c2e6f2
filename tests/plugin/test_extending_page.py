"""docs/extending.md, followed to the letter in an empty directory."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"
BLOCK = re.compile(r"^```(python|yaml|bash)\n(.*?)^```", re.MULTILINE | re.DOTALL)
NAMED = re.compile(r"# ([\w/]+\.(?:py|yaml))\n")


def run(place: Path, *arguments: str) -> str:
    environment = {k: v for k, v in os.environ.items() if k != "PELAGOS_PLUGINS"}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=place,
        env=environment | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.mark.slow
def test_each_file_and_each_command_of_the_page_works_as_printed(tmp_path: Path) -> None:
    blocks = BLOCK.findall(PAGE.read_text(encoding="utf-8"))
    files = {}
    for kind, text in blocks:
        if kind != "bash":
            named = NAMED.match(text)
            assert named, f"a block without a file name: {text}"
            files[named[1]] = text
    assert {"my_lab/networks.py", "my_lab/parts.py", "my_lab/watch.py", "own.yaml"} <= files.keys()
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    commands = [line for kind, text in blocks if kind == "bash" for line in text.splitlines()]
    assert len(commands) >= 7
    for command in commands:
        verb, *arguments = shlex.split(command)
        assert verb == "pelagos"
        run(tmp_path, "-m", "pelagos.cli.main", *arguments)
    run(tmp_path, "load.py")
    lines = (tmp_path / "runs/own/metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line) for line in lines]
    assert [s["step"] for s in steps if "weight_norm" in s] == [10, 20]
    assert steps[10]["lr"] == pytest.approx(1e-3 * 0.5**2)  # halfway
    report = json.loads((tmp_path / "runs/own/evaluation/test/metrics.json").read_text())
    assert "mean_bias" in json.dumps(report)
