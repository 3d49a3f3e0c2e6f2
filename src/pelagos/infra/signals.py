"""Signals that ask a process to end: Ctrl-C, SIGTERM, and SIGHUP of a terminal that closes.

All three are treated alike. Where SIGHUP is ignored when the process starts, as by `nohup`, it stays so.
"""

import contextlib
import os
import signal
import stat
import threading
from collections.abc import Callable, Iterator
from types import FrameType

ASK_TO_END = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(KeyboardInterrupt):
    """A signal asked this process to end; its text is the signal's name.

    Attributes:
        note: what that means for the user's work, if there is something to say.
    """

    def __init__(self, number: int, note: str = "") -> None:
        super().__init__(signal.Signals(number).name)
        self.number, self.note = number, note


def interrupt(number: int, _frame: FrameType | None = None) -> None:
    """Raise `Interrupted` in the main thread; a handler."""
    if number == signal.SIGHUP:
        leave_closed_terminal()
    raise Interrupted(number)


def interrupt_on_signals() -> None:
    """Raise `Interrupted` on every signal that asks to end, from now on."""
    for number in _handled():
        signal.signal(number, interrupt)


@contextlib.contextmanager
def handling(handle: Callable[[int], None]) -> Iterator[None]:
    """Call `handle(number)` on every signal that asks to end; only the main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def called(number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            leave_closed_terminal()
        handle(number)

    before = {number: signal.signal(number, called) for number in _handled()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def kept_by_children_and_libraries() -> Iterator[None]:
    """Keep this process's handlers while a library starts processes and sets handlers of its own.

    Children ignore SIGHUP: their parent, whom the terminal's end reaches too, ends them. If the
    terminal closed within the context, this process gets its SIGHUP at the end.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in ASK_TO_END}
    terminals = _terminals()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if len(_terminals()) < len(terminals) and before[signal.SIGHUP] is not signal.SIG_IGN:
            signal.raise_signal(signal.SIGHUP)


def leave_closed_terminal() -> None:
    """Send the output that a closed terminal no longer takes to nowhere."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        with contextlib.suppress(OSError):  # closed
            if stat.S_ISCHR(os.fstat(descriptor).st_mode):
                os.dup2(nowhere, descriptor)
    os.close(nowhere)


def _handled() -> list[signal.Signals]:
    # shells start background jobs with SIGINT ignored; whoever sends it to one means it
    keeps_running = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [number for number in ASK_TO_END if not (keeps_running and number == signal.SIGHUP)]


def _terminals() -> list[int]:
    return [descriptor for descriptor in (0, 1, 2) if os.isatty(descriptor)]
