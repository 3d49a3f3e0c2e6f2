"""The consoles: text from others - names, causes, addresses - is shown and commands nothing.

Text is text: no markup is read in it (`[link=…]`, `[bold]`, `:name:`), and characters that command a
terminal, or turn the direction of writing, are replaced. Colours of one's own are `rich.text.Text`:
`console.print(Text("error:", style="red"), cause)`.
"""

import logging
import os
import re
from collections.abc import Iterator
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.logging import RichHandler
from rich.segment import Segment

# Characters that change how a line is displayed: directions, line ends of Unicode, and halves of
# characters, which no terminal can be sent.
_UNREADABLE = "\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff"
# Sequences that move the cursor, set a title or query the terminal; colours stay.
_COMMANDS = re.compile(
    r"\x1b\[(?![0-9;]*m)[0-?]*[ -/]*[@-~]|\x1b[\]P_^X][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b(?!\[)."
    rf"|[\x00-\x08\x0b\x0c\x0e-\x1a\x1c-\x1f\x7f-\x9f{_UNREADABLE}]"
)
# Text is shown without colours of its own: rich adds them.
_CONTROL = re.compile(rf"[\x00-\x08\x0b-\x1f\x7f-\x9f{_UNREADABLE}]")

# Jupyter sets this for its kernels, whose children get a pseudo-terminal and FORCE_COLOR.
KERNELS_MARK = "JPY_PARENT_PID"


class HarmlessConsole(Console):
    """A console for untrusted text. rich's own control sequences stay."""

    def __init__(self, **options: Any) -> None:
        # in a notebook rich would display every line there, whatever file it was given
        plain = {"markup": False, "emoji": False, "highlight": False, "force_jupyter": False}
        if KERNELS_MARK in os.environ:  # of a command in a cell, which shows no moving bar
            plain["force_terminal"] = False
        super().__init__(**{**plain, **options})

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterator[Segment]:
        for segment in super().render(renderable, options):
            if segment.control is None and _CONTROL.search(segment.text):
                segment = segment._replace(
                    text=_CONTROL.sub("\N{REPLACEMENT CHARACTER}", segment.text)
                )
            yield segment


console = HarmlessConsole()
error_console = HarmlessConsole(stderr=True)


def set_up_logging(verbose: bool) -> None:
    """Send log records to standard error: warnings, or everything of Pelagos if verbose."""
    handler = RichHandler(console=error_console, show_path=verbose, show_time=verbose)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler], force=True)
    logging.captureWarnings(True)  # of libraries, which quote names that others chose
    logging.getLogger("pelagos").setLevel(logging.DEBUG if verbose else logging.INFO)
    for chatty in (
        "alembic",
        "mlflow.store.db",
        "mlflow.tracking",
        "ray.train",
        "ray.dashboard",
        "ray._private",
    ):
        logging.getLogger(chatty).setLevel(logging.ERROR)


def harmless(text: str) -> str:
    r"""Return a program's output without commands to the terminal: the output is untrusted.

    >>> harmless("\x1b[31mred\x1b[0m \x1b]0;title\x07\x1b[2Jhere")
    '\x1b[31mred\x1b[0m here'
    """
    return _COMMANDS.sub("", text)
