"""Progress of a training where it was started from: lines in a terminal, a picture in a notebook."""

from __future__ import annotations

import base64
import contextlib
import html
import io
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from pelagos.jobs.plot_runs import curves_of, panels_of
from pelagos.platform.console import HarmlessConsole
from pelagos.platform.records.description import RunDescription, description_of
from pelagos.platform.records.runs import RunDirectory

Watch = Callable[[], None]
REFRESH_SECONDS = 3.0
_MOST_OF_THE_TIME = 0.05  # drawing a long run takes longer, and is then done less often
_SHOWN = ("training loss", "validation loss")


@contextlib.contextmanager
def progress_of(path: Path, total_steps: int) -> Iterator[tuple[Console, Watch]]:
    """Yield the console and the watcher of a training in a directory that may not exist yet."""
    if not _in_notebook():
        yield HarmlessConsole(), _nothing
        return
    # of tqdm, which others import: nothing here needs what it misses
    warnings.filterwarnings("ignore", message="IProgress not found")
    view = LiveView(path, total_steps)
    try:
        # the run's own output.log has every line
        yield HarmlessConsole(file=io.StringIO()), view.refresh
    finally:
        view.refresh(is_last=True)


class LiveView:
    """A table and curves of a run in a notebook's cell, drawn again every few seconds."""

    def __init__(self, path: Path, total_steps: int) -> None:
        self.path, self.total_steps = path, total_steps
        self._handle: Any = None
        self._next = 0.0

    def refresh(self, is_last: bool = False) -> None:
        """Show the news, if it is time to; a picture that cannot be drawn stops no training."""
        if (time.monotonic() < self._next and not is_last) or not self.path.is_dir():
            return
        begun = time.monotonic()
        with contextlib.suppress(Exception):
            self._show(self.page())
        now = time.monotonic()
        self._next = now + max(REFRESH_SECONDS, (now - begun) / _MOST_OF_THE_TIME)

    def page(self) -> str:
        """Return table and curves as HTML."""
        run = RunDirectory.open(str(self.path.parent), self.path.name)
        return f"{_table(description_of(run))}{_curves(run)}"

    def _show(self, page: str) -> None:
        from IPython.display import HTML, display

        if self._handle is None:
            self._handle = display(HTML(page), display_id=True)
        else:
            self._handle.update(HTML(page))


def _table(found: RunDescription) -> str:
    rows = {
        "run": found.run,
        "state": str(found.state),
        "step": f"{found.step or 0:,} of {found.total_steps:,}",
        "loss": _number(found.smoothed_loss),
        "validation": ""
        if found.last_validation is None
        else f"{found.last_validation.loss:.4g} at step {found.last_validation.step:,}",
        "best": ""
        if found.best_validation is None
        else f"{found.best_validation.loss:.4g} at step {found.best_validation.step:,}",
        "samples/s": _number(found.metrics.get("samples_per_second")),
        "seconds left": f"{found.seconds_left:,.0f}" if found.seconds_left else "",
        "cause": found.cause or "",
    }
    cells = "".join(
        f"<tr><th style='text-align:left'>{html.escape(key)}</th>"
        f"<td style='text-align:left'>{html.escape(value)}</td></tr>"
        for key, value in rows.items()
        if value
    )
    return f"<table>{cells}</table>"


def _curves(run: RunDirectory) -> str:
    from pelagos.evaluation.pages.figures.curves_figure import write_curves

    found = curves_of(run)
    panels = [panel for panel in panels_of({run.name: found}) if panel.title in _SHOWN]
    if not panels:
        return ""
    picture = io.BytesIO()
    write_curves(panels, picture)
    content = base64.b64encode(picture.getvalue()).decode("ascii")
    return (
        f"<img alt='learning curves' src='data:image/png;base64,{content}' "
        "style='width:100%;max-width:800px'>"
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _in_notebook() -> bool:
    """Whether this is a cell of a notebook; imports nothing."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__name__ == "ZMQInteractiveShell"


def _nothing() -> None:
    pass
