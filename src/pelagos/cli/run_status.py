"""The text of `pelagos status`: what one wants to know of a run, in the order one asks."""

from rich.table import Table
from rich.text import Text

from pelagos.cli.common import console
from pelagos.cli.words import ago, coloured, span
from pelagos.platform.records.description import (
    SMOOTHED_STEPS,
    RunDescription,
    ValidationAt,
)
from pelagos.platform.records.states import UNDER_WAY

# shown with a unit under a name of their own
_NAMED = {
    *("loss", "epoch", "lr", "gradient_norm", "samples_per_second", "step_seconds"),
    *("step_seconds_p50", "step_seconds_p90", "step_seconds_p99", "memory_bytes"),
    *("data_stall_fraction", "flops_per_second_per_worker"),
}


def show_run(found: RunDescription) -> None:
    """Print a run, a line for each thing."""
    console.print(status_table(found))


def status_table(found: RunDescription) -> Table:
    """Return a run as a table, a line for each thing."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    rows = {**_state(found), **_learning(found), **_pace(found), **_places(found)}
    for key, value in rows.items():
        if value:
            table.add_row(key, coloured(value) if key == "state" else Text(value))
    return table


def _state(found: RunDescription) -> dict[str, str | None]:
    done = None if found.total_steps is None else f"{found.step} of {found.total_steps}"
    if done and found.total_steps and found.step is not None:
        done += f" ({found.step / found.total_steps:.0%})"
    submitted = None if found.submitted_at is None else ago(found.submitted_at)
    return {
        "run": found.run,
        "job": found.job,
        "state": found.state,
        "reason": found.reason,
        "cause": found.cause,
        "step": done,
        "cluster": found.cluster,
        "scheduler": found.scheduler,
        "where": found.where,
        "attempt": str(found.attempt),
        "restarts": str(found.restarts),
        "after": ", ".join(found.after),
        "priority": None if found.priority is None else str(found.priority),
        "submitted": submitted and f"by {found.submitted_by}, {submitted}",
    }


def _learning(found: RunDescription) -> dict[str, str | None]:
    values = found.metrics
    loss = None
    if "loss" in values:
        loss = f"{values['loss']:.4g}"
        if found.smoothed_loss is not None:
            loss += f"; mean of the last {SMOOTHED_STEPS} steps {found.smoothed_loss:.4g}"
    last, best = found.last_validation, found.best_validation
    validation = None if last is None else _at(last)
    if validation and best is not None and best != last:
        validation += f"; best {_at(best)}"
    others = {
        key.replace("_", " "): f"{number:.6g}"
        for key, number in values.items()
        if key not in _NAMED
    }
    return {
        "loss": loss,
        "validation": validation,
        "learning rate": f"{values['lr']:.3g}" if "lr" in values else None,
        "gradient norm": f"{values['gradient_norm']:.4g}" if "gradient_norm" in values else None,
        "epoch": f"{values['epoch']:.3g}" if "epoch" in values else None,
        **others,
    }


def _pace(found: RunDescription) -> dict[str, str | None]:
    values = found.metrics
    rate = None
    if "samples_per_second" in values:
        rate = f"{values['samples_per_second']:.1f} samples/s"
        if "step_seconds_p50" in values:
            p50, p90, p99 = (values[f"step_seconds_p{n}"] for n in (50, 90, 99))
            rate += f"; a step takes {p50:.3g} s (p50), {p90:.3g} s (p90), {p99:.3g} s (p99)"
    left = found.seconds_left if found.state in UNDER_WAY else None
    flops = values.get("flops_per_second_per_worker")
    memory, stall = values.get("memory_bytes"), values.get("data_stall_fraction")
    return {
        "rate": rate,
        "compute": None if flops is None else f"{flops / 1e9:,.1f} GFLOP/s for each worker",
        "waiting for data": None if stall is None else f"{stall:.1%} of the time",
        "time left": None if left is None else span(left),
        "memory": None if memory is None else f"{memory / 2**30:.2f} GiB",
        "goodput": None if found.goodput is None else f"{found.goodput:.1%}",
        "last step": None if found.last_step_at is None else ago(found.last_step_at),
        "last sign": None if found.updated is None else ago(found.updated),
    }


def _places(found: RunDescription) -> dict[str, str | None]:
    saved = None if found.last_checkpoint is None else f"step {found.last_checkpoint}"
    return {
        "last checkpoint": saved,
        "checkpoints": found.checkpoints,
        "directory": found.directory,
        "storage": found.storage,
        "tracking": found.tracking,
    }


def _at(found: ValidationAt) -> str:
    return f"{found.loss:.4g} at step {found.step}"
