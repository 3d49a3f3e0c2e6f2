"""`pelagos new`: a commented job file from a look at the data and the machine."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pelagos.infra.storage.files import replace_durably
from pelagos.jobs import finetune
from pelagos.jobs.drafting.choosing import choose
from pelagos.jobs.drafting.looking import SeenData, look_at, look_at_machine, require_alike
from pelagos.jobs.drafting.texts import (
    SCHEMA,
    finetune_text,
    pretrain_text,
    submission_text,
    sweep_text,
)
from pelagos.jobs.training.checking import checked
from pelagos.jobs.weights.model_directory import DESCRIPTION_FILE
from pelagos.jobs.weights.trained_description import read_trained_description
from pelagos.platform.config.finetune import FinetuneJob
from pelagos.platform.config.kinds import as_kind
from pelagos.platform.config.load import load_job, parse_job
from pelagos.platform.config.schema import PretrainJob, TrainingJob
from pelagos.platform.config.sweep import SweepJob
from pelagos.platform.records.known_runs import known_runs
from pelagos.platform.records.runs import RunDirectory, list_runs

BATCH = 16
FINETUNE_STEPS, FINETUNE_LR = 200, 5e-4
RATE_FACTORS = (0.3, 1.0, 3.0)
RUNS_DIR = "runs"  # of the draft


@dataclass(frozen=True)
class Draft:
    """A file that can be run as it is, and what was found out for it."""

    text: str
    findings: tuple[str, ...]


def pretrain(
    name: str, uris: Sequence[str], model: str | None = None, steps: int | None = None
) -> Draft:
    """Return a `pretrain` job on datasets; it is checked as `pelagos pretrain --dry-run` does.

    Raises:
        ValueError: no dataset is given, one does not open, or no one job takes them together.
    """
    data, machine = _look(uris), look_at_machine()
    text = pretrain_text(name, data, choose(data, model, steps), machine, _batch(data))
    checked(as_kind(PretrainJob, parse_job(text, "the draft")))
    return Draft(text, _findings(data))


def fine_tune(
    name: str, source: str, uris: Sequence[str], runs_dir: str = RUNS_DIR, steps: int | None = None
) -> Draft:
    """Return a `finetune` job from a run (RUN or RUN@WHICH) of `runs_dir`, or from a file or directory.

    Raises:
        ValueError: as `pretrain`, or there is no such source, or its weights do not fit the data.
    """
    data, machine = _look(uris), look_at_machine()
    section, trained = _source(source, runs_dir)
    choice = choose(data, steps=steps or FINETUNE_STEPS)
    if trained:
        told = {key: value for key, value in trained["objective"].items() if key != "name"}
        choice = dataclasses.replace(
            choice,
            objective=trained["objective"]["name"],
            objective_config=_without_defaults(told),
            fields=tuple(trained["fields"]),
            why="as the source was trained",
        )
    choice = dataclasses.replace(choice, lr=FINETUNE_LR)
    text = finetune_text(name, section, data, choice, machine, _batch(data))
    finetune.prepare(as_kind(FinetuneJob, parse_job(text, "the draft")))
    return Draft(text, _findings(data))


def sweep(
    name: str, files: Sequence[str], grid: Mapping[str, Sequence[Any]] | None = None
) -> Draft:
    """Return a `sweep` of training jobs over `grid`, by default over three learning rates.

    Raises:
        ValueError: no file is given, one cannot be read, or it is no training.
    """
    if not files:
        raise ValueError("a sweep needs job files: add --job FILE, once for each")
    jobs: dict[str, str] = {}
    rates: list[float] = []
    for file in files:
        job = as_kind(TrainingJob, load_job(file), ValueError(f"{file} is no training job"))
        label = re.sub(r"\W+", "_", Path(file).stem)[:30].strip("_") or "job"
        jobs[label if label not in jobs else f"{label}_{len(jobs)}"] = file
        rates.append(job.optimizer.lr)
    grid = grid or {"optimizer.lr": [float(f"{rates[0] * f:.2g}") for f in RATE_FACTORS]}
    text = sweep_text(name, jobs, grid)
    as_kind(SweepJob, parse_job(text, "the draft"))
    return Draft(text, ())


def submission(files: Sequence[str]) -> Draft:
    """Return a file of runs in which each job comes after the one before.

    Raises:
        ValueError: no file is given, or one cannot be read.
    """
    if not files:
        raise ValueError("a submission needs job files: add --job FILE, once for each, in order")
    from pelagos.jobs.submission.kinds import kind_of

    jobs = [load_job(file) for file in files]
    return Draft(submission_text(files, [kind_of(job).run_name(job) for job in jobs]), ())


def write(draft: Draft, path: Path, schema: Mapping[str, Any], *, overwrite: bool = False) -> None:
    """Write a draft, and next to it the schema that its first line names.

    Raises:
        FileExistsError: the file exists already.
    """
    if path.exists() and not overwrite:
        raise FileExistsError(
            f"{path} exists already: give another name with --output, or --overwrite"
        )
    beside = path.parent / SCHEMA
    beside.parent.mkdir(parents=True, exist_ok=True)
    replace_durably(beside, f"{json.dumps(schema, indent=1)}\n".encode())
    replace_durably(path, draft.text.encode())


def _look(uris: Sequence[str]) -> list[SeenData]:
    if not uris:
        raise ValueError("data are missing: add --data URI, once for each dataset")
    data = [look_at(uri) for uri in uris]
    require_alike(data)
    for seen in data:
        if not seen.num_train:
            raise ValueError(
                f"{seen.uri} has no split `train` (it has {', '.join(seen.splits) or 'none'}): "
                f"`pelagos data split` makes one"
            )
    return data


def _findings(data: Sequence[SeenData]) -> tuple[str, ...]:
    return tuple(f"{seen.uri}: {seen.summary}" for seen in data)


def _batch(data: Sequence[SeenData]) -> int:
    """Return a batch that two workers share, no larger than the training data."""
    pictures = sum(seen.num_train * max(1, seen.num_frames - 1) for seen in data)
    return max(2, min(BATCH, pictures // 2 * 2))


def _source(source: str, runs_dir: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the section `source`, and the description of what was trained; empty: not known."""
    run, at, which = source.partition("@")
    for place in (Path(runs_dir) / run, Path(run)):  # NAME, or DIR/NAME
        if (place / "job.yaml").exists():
            home = str(place.parent)
            job = RunDirectory.open(home, place.name).job()
            section = {"run": f"{place.name}{at}{which}"}
            if home != RUNS_DIR:
                section["runs_dir"] = home
            objective = {"name": job.objective.name, **job.objective.config}
            return section, {"objective": objective, "fields": list(job.data.fields)}
    description = Path(source) / DESCRIPTION_FILE
    if description.exists():
        return {"uri": source}, read_trained_description(description)
    if "://" not in source and not source.startswith("models:/") and not Path(source).exists():
        known = known_runs(source, (found.name for found in list_runs(runs_dir)))
        raise ValueError(
            f"--from {source}: there is no such run in {runs_dir} ({known}), and no file or directory "
            "of that name"
        )
    return {"uri": source}, {}


def _without_defaults(options: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if value not in (None, [], {})}
