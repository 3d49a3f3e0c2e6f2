"""The live view of `pelagos watch`: a renewed table in a terminal, a line for each change elsewhere."""

import time
from typing import TYPE_CHECKING

from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar

from pelagos.cli.common import console
from pelagos.cli.run_status import status_table
from pelagos.cli.words import span
from pelagos.platform.records.description import RunDescription
from pelagos.platform.records.states import UNDER_WAY

if TYPE_CHECKING:
    from pelagos.jobs.run_access.any_run import AnyRun, Standing

_BAR_WIDTH = 60


def watch(run: "AnyRun", every_seconds: float) -> "Standing":
    """Show the run until it is over; return how it is then."""
    return (_in_terminal if console.is_terminal else _as_lines)(run, every_seconds)


def _in_terminal(run: "AnyRun", every_seconds: float) -> "Standing":
    with Live(console=console, auto_refresh=False) as live:
        while True:
            # first: an end that comes in between shows in the next look
            standing = run.standing()
            live.update(_view(run.describe()), refresh=True)
            if standing.is_over:
                return standing
            time.sleep(every_seconds)


def _as_lines(run: "AnyRun", every_seconds: float) -> "Standing":
    last = ""
    while True:
        standing = run.standing()
        found = run.describe()
        line = describe_progress(found)
        if line != last:
            console.print(f"{time.strftime('%H:%M:%S')}  {line}", soft_wrap=True)
            last = line
        if standing.is_over:
            return standing
        time.sleep(every_seconds)


def _view(found: RunDescription) -> Group:
    table = status_table(found)
    if not found.total_steps:
        return Group(table)
    width = min(_BAR_WIDTH, console.width)
    return Group(table, ProgressBar(found.total_steps, found.step or 0, width=width))


def describe_progress(found: RunDescription) -> str:
    """Return a run's progress in one line, which changes when the run does and not with the clock."""
    values = found.metrics
    step = None if not found.total_steps else f"step {found.step or 0}/{found.total_steps}"
    loss = None if found.smoothed_loss is None else f"loss {found.smoothed_loss:.4g} (mean)"
    last, rate = found.last_validation, values.get("samples_per_second")
    left = found.seconds_left if found.state in UNDER_WAY else None
    memory = values.get("memory_bytes")
    parts = [
        found.state,
        step,
        loss,
        None if last is None else f"validation {last.loss:.4g} at step {last.step}",
        None if rate is None else f"{rate:.1f} samples/s",
        None if memory is None else f"{memory / 2**30:.2f} GiB",
        None if left is None else f"{span(left)} left",
        found.cause or found.reason,
    ]
    return "  ".join(str(part) for part in parts if part)
