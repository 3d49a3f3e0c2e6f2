"""The text of drafts: YAML with a comment where a reader decides something."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pelagos.infra.yaml_text import yaml_text
from pelagos.jobs.drafting.choosing import Choice, workers
from pelagos.jobs.drafting.looking import SeenData, SeenMachine

SCHEMA = ".pelagos/schemas/job.json"


def flow(value: Any) -> str:
    """Return a value as YAML in one line."""
    text = yaml_text(value, default_flow_style=True, width=math.inf, sort_keys=False)
    return text.removesuffix("...\n").strip()


def pretrain_text(
    name: str, data: Sequence[SeenData], choice: Choice, machine: SeenMachine, batch: int
) -> str:
    """Return a commented `pretrain` job."""
    return "\n".join(
        [
            *_head(f"Train {choice.model} from random weights", "pretrain", name),
            *_data(data, choice.fields, batch),
            "",
            "# Another network: `pelagos models` lists them.",
            f"model: {_part(choice.model, choice.model_config)}",
            "",
            f"# {_sentence(choice.why)}.",
            f"objective: {_part(choice.objective, choice.objective_config)}",
            "",
            f"optimizer: {{lr: {_rate(choice.lr)}, weight_decay: 0.01}}",
            *_schedule(choice.steps, warmup=max(1, choice.steps // 25), batch=batch),
            *_rest(name, choice.steps, machine),
        ]
    )


def finetune_text(
    name: str,
    source: Mapping[str, Any],
    data: Sequence[SeenData],
    choice: Choice,
    machine: SeenMachine,
    batch: int,
) -> str:
    """Return a commented `finetune` job; `source` is its section of that name."""
    return "\n".join(
        [
            *_head("Train existing weights further on a downstream task", "finetune", name),
            f"source: {flow(dict(source))}",
            "",
            *_data(data, choice.fields, batch),
            "  # The statistics that the source was trained with; `auto` takes those of these data.",
            "  normalization: source",
            "  # Fewer trajectories than there are, to see how few suffice:",
            "  # max_trajectories: 16",
            "",
            f"# {_sentence(choice.why)}.",
            f"objective: {_part(choice.objective, choice.objective_config)}",
            "",
            "# Low-rank updates instead of all weights (LoRA):",
            "# adapter: {rank: 8, targets: ['query', 'value']}",
            f"optimizer: {{lr: {_rate(choice.lr)}, weight_decay: 1.0e-6}}",
            *_schedule(choice.steps, warmup=0, batch=batch),
            *_rest(name, choice.steps, machine),
        ]
    )


def sweep_text(name: str, jobs: Mapping[str, str], grid: Mapping[str, Sequence[Any]]) -> str:
    """Return a commented `sweep` of the job files in `jobs` (label to path) over `grid`."""
    trials = len(jobs) * math.prod(len(values) for values in grid.values()) * 2
    return "\n".join(
        [
            *_head(f"{trials} short trainings to compare", "sweep", name),
            "# Every job is run with every combination of the keys in `grid`, and with every seed.",
            "jobs:",
            *(
                f"  {label}: {{file: {flow(path)}, set: {{resources.num_workers: 1}}}}"
                for label, path in jobs.items()
            ),
            "grid:",
            *(f"  {key}: {flow(list(values))}" for key, values in grid.items()),
            "seeds: [0, 1]",
            "",
            "# Numbers of training trajectories, to see how few suffice:",
            "# trajectories: [4, 16, 64]",
            "max_concurrent: 2",
            "",
        ]
    )


def submission_text(files: Sequence[str], runs: Sequence[str]) -> str:
    """Return a file of runs, each after the one before; `runs` are their names."""
    lines = [
        f"# yaml-language-server: $schema={SCHEMA}",
        "# Runs for one submission: `pelagos submit THIS_FILE --cluster NAME`.",
        "# Each starts when those in `after` have finished.",
        "runs:",
    ]
    for index, file in enumerate(files):
        after = f", after: [{flow(runs[index - 1])}]" if index else ""
        lines.append(f"  - {{job: {flow(file)}{after}}}")
    return "\n".join([*lines, ""])


def _head(purpose: str, kind: str, name: str) -> list[str]:
    return [
        f"# yaml-language-server: $schema={SCHEMA}",
        f"# {purpose}: `pelagos {kind} THIS_FILE`; with --dry-run it shows the cost first.",
        "# Every key with its default: docs/job-file.md.",
        f"job: {kind}",
        f"name: {flow(name)}",
        "runs_dir: runs",
        "",
    ]


def _data(data: Sequence[SeenData], fields: Sequence[str], batch: int) -> list[str]:
    lines = ["data:", "  mixture:"]
    for seen in data:
        lines += [f"    # {seen.summary}", f"    - {{uri: {flow(seen.uri)}}}"]
    return [
        *lines,
        f"  fields: {flow(list(fields))}",
        f"  global_batch_size: {batch}  # samples of a step, over all workers",
    ]


def _schedule(steps: int, warmup: int, batch: int) -> list[str]:
    told = f", warmup_steps: {warmup}" if warmup else ""
    return [f"schedule: {{total_steps: {steps}{told}}}  # {steps * batch:,} samples"]


def _rest(name: str, steps: int, machine: SeenMachine) -> list[str]:
    every = max(1, steps // 6)
    gpus = f"{machine.gpus} GPUs" if machine.gpus else "no GPU"
    tracking = {"uri": "sqlite:///mlflow.db", "experiment": name}
    return [
        "",
        f"# This machine has {machine.cores} CPU cores and {gpus}.",
        f"resources: {flow(workers(machine))}",
        f"checkpoint: {{every_steps: {every}}}",
        f"validation: {{every_steps: {every}, num_samples: 128}}",
        "# Look at the curves: mlflow ui --backend-store-uri sqlite:///mlflow.db",
        f"tracking: {flow(tracking)}",
        "",
    ]


def _part(name: str, config: Mapping[str, Any]) -> str:
    return flow({"name": name, "config": dict(config)} if config else {"name": name})


def _rate(lr: float) -> str:
    """Return a learning rate as people write it: 2.0e-3."""
    digits, _, power = f"{lr:.1e}".partition("e")
    return f"{digits}e{int(power)}"


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]
