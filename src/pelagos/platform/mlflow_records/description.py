"""What the page of an MLflow run says of it: user, source, a description, the settings that are set."""

import getpass
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pelagos import __version__
from pelagos.platform.config.schema import TrainingJob
from pelagos.platform.config.sweep import SweepJob

NOTE_TAG = "mlflow.note.content"
_REPORT = "Report of the evaluation: "


def origin_tags(job: TrainingJob | SweepJob, directory: Path) -> dict[str, str]:
    """Return who started the run, by which command and code, and what it is, as MLflow's own tags."""
    return {
        "mlflow.user": _user(),
        "mlflow.source.name": f"pelagos {job.job}",
        "mlflow.source.type": "LOCAL" if sys.stdin is not None and sys.stdin.isatty() else "JOB",
        NOTE_TAG: _note(job, directory),
        "pelagos.version": __version__,
        "pelagos.code": code_version(),
    }


def description_with_report(tags: Mapping[str, str], place: str) -> str:
    """Return a run's description, with a line that says where among its artifacts a report is."""
    line = f"{_REPORT}`{place}/report.html`, under Artifacts"
    lines = [old for old in tags.get(NOTE_TAG, "").split("\n\n") if old and old != line]
    return "\n\n".join([*lines, line])


def given_parameters(tree: Any, prefix: str = "") -> dict[str, str]:
    """Return the settings of a job that have a value, by dotted name.

    >>> given_parameters({"a": {"b": 1, "c": None}, "d": [], "e": [1, 2], "f": ""})
    {'a.b': '1', 'e': '[1, 2]'}
    """
    if isinstance(tree, dict):
        items = [(str(k), v) for k, v in tree.items()]
    elif isinstance(tree, list) and any(isinstance(v, dict | list) for v in tree):
        items = [(str(i), v) for i, v in enumerate(tree)]
    elif tree is None or tree in ("", []):
        return {}
    else:
        return {prefix.rstrip("."): str(tree)}
    found: dict[str, str] = {}
    for key, value in items:
        found |= given_parameters(value, f"{prefix}{key}.")
    return found


def code_version() -> str:
    """Return the git commit of the code that runs, with `+changes` if edited; else the version."""
    try:
        changed = _git("status", "--porcelain", "--untracked-files=no", ".")
        commit = _git("rev-parse", "HEAD")
    except (OSError, subprocess.SubprocessError):
        return __version__
    return f"{commit}+changes" if changed else commit


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=10,
        check=True,
    ).stdout.strip()


def _note(job: TrainingJob | SweepJob, directory: Path) -> str:
    if isinstance(job, SweepJob):
        return f"Sweep **{job.name}**. Its files: `{directory.absolute()}`"
    source = job.starts_from
    begins = "" if source is None else f", from `{source.run or source.uri}`"
    data = ", ".join(f"`{entry.uri}`" for entry in job.data.mixture)
    return "\n\n".join(
        [
            f"**{job.model.name}**, {job.objective.name}, {job.schedule.total_steps:,} steps of "
            f"{job.data.global_batch_size} samples{begins}",
            f"Data: {data} (with fingerprints under Datasets)",
            f"Its files: `{directory.absolute()}`",
            f"Its settings: {json.dumps('run/job.yaml')} under Artifacts",
        ]
    )


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as in some containers
        return "unknown"
