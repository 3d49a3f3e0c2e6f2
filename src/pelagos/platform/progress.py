"""Progress of a training run: a live bar on a terminal, an occasional line elsewhere."""

import math
import time
from itertools import chain
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from pelagos.platform.callbacks import FAILED
from pelagos.platform.records.runs import RunDirectory
from pelagos.platform.recovery.restarts import RESTARTING

LINE_EVERY_SECONDS = 10.0
SAVE_FAILED, SET_ASIDE = "checkpoint_failed", "checkpoint_set_aside"
EVENTS_SHOWN = (
    *("resumed", "validation", "checkpoint", SAVE_FAILED, SET_ASIDE),
    *(FAILED, RESTARTING),
)


class TrainingProgress:
    """Reads a run's records and shows step, loss, throughput, data stall and remaining time.

    Args:
        log: gets the same as lines, whether or not `console` is a terminal.
    """

    def __init__(
        self, run: RunDirectory, total_steps: int, console: Console, log: Console | None = None
    ) -> None:
        self.run = run
        self.total_steps = total_steps
        self.console = console
        self.all = [console] if log is None else [console, log]
        self.lines = [each for each in self.all if not each.is_terminal]
        self.events = run.tail_of_events()
        for _ in self.events.pieces():
            pass  # of earlier launches
        self.last_line = time.monotonic()
        self.last_step = -1
        self.live = console.is_terminal
        self.bar = Progress(
            TextColumn("{task.description}", style="bold", markup=False),
            BarColumn(),
            TextColumn("step {task.completed}/{task.total}  {task.fields[values]}", markup=False),
            TimeRemainingColumn(),
            console=console,
            disable=not self.live,
        )
        self.task = self.bar.add_task(run.name, total=total_steps, values="starting workers")

    def __enter__(self) -> "TrainingProgress":
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.poll(final=True)
        self.bar.stop()

    def poll(self, final: bool = False) -> None:
        """Show the news since the last call."""
        for event in chain.from_iterable(self.events.pieces()):
            if event["kind"] in EVENTS_SHOWN:
                for each in self.all:
                    each.print(describe_event(event), highlight=False, markup=False)
        records = self.run.last_metrics(20)
        if not records or records[-1]["step"] == self.last_step:
            return
        self.last_step = records[-1]["step"]
        values = describe_metrics(records)
        self.bar.update(self.task, completed=self.last_step, values=values)
        due = time.monotonic() - self.last_line >= LINE_EVERY_SECONDS
        if due or final:
            self.last_line = time.monotonic()
            remaining = self._remaining(records)
            for each in self.lines:
                each.print(
                    f"step {self.last_step}/{self.total_steps}  {values}  {remaining}",
                    highlight=False,
                )

    def _remaining(self, records: list[dict[str, Any]]) -> str:
        seconds = sum(r.get("step_seconds", 0.0) for r in records) / len(records)
        return f"{(self.total_steps - self.last_step) * seconds:.0f} s left"


def describe_metrics(records: list[dict[str, Any]]) -> str:
    """Return the last steps' loss, throughput and data stall in one line."""
    rates = [rate for r in records if (rate := r.get("samples_per_second", 0.0)) > 0]
    rate = len(rates) / sum(1 / r for r in rates) if rates else 0.0
    stall = sum(r.get("data_stall_fraction", 0.0) for r in records) / len(records)
    loss = _number(records[-1], "loss")
    return f"loss {loss:.4f}  {rate:.1f} samples/s  data stall {stall:.1%}"


def _number(record: dict[str, Any], key: str) -> float:
    """The number of a record; NaN where it has none: others may have written there."""
    value = record.get(key)
    return float(value) if isinstance(value, int | float) else math.nan


def _count(record: dict[str, Any], key: str) -> int:
    value = record.get(key)
    return len(value) if isinstance(value, list) else 0


def describe_event(event: dict[str, Any]) -> str:
    """Return one event as a line."""
    step = event.get("step")
    if event["kind"] == "validation":
        of_average = " (averaged weights)" if event.get("weights") == "ema" else ""
        return (
            f"  validation at step {step}: loss {_number(event, 'validation_loss'):.4f}{of_average}"
        )
    if event["kind"] == FAILED:
        return f"  {event['cause']}; the run continues (on_error: log)"
    if event["kind"] == RESTARTING:
        pause = _number(event, "pause_seconds")
        when = f" after {pause:.0f} s" if pause >= 1 else ""
        avoided = (
            f", without {n} nodes that failed" if (n := _count(event, "avoided_nodes")) else ""
        )
        return (
            f"  workers failed: {event.get('cause')}\n  starting them again{when}{avoided}, restart "
            f"{event.get('restart')} of {event.get('of')}"
        )
    if event["kind"] == "checkpoint":
        size, stall = _number(event, "num_bytes") / 1e6, _number(event, "stall_seconds")
        beside = _number(event, "background_seconds")
        return f"  checkpoint of step {step}: {size:.1f} MB, waited {stall:.2f} s, wrote {beside:.2f} s"
    if event["kind"] == SAVE_FAILED:
        return f"  warning: {event.get('cause')}"
    if event["kind"] == SET_ASIDE:
        return (
            f"  warning: the checkpoint of step {step} is damaged ({event.get('damage')}) and was set "
            f"aside: it is now {event.get('where')}"
        )
    return f"  resumed from the checkpoint of step {step}, {event.get('steps_redone')} steps redone"
