"""Parts that every verb shares: consoles, exit statuses, JSON, and errors a person can act on."""

import contextlib
import itertools
import json
import sys
from collections.abc import Iterator
from typing import Annotated, Any

import typer
from rich.text import Text
from typer.core import TyperGroup

from pelagos.infra.storage.addresses import reject_credentials
from pelagos.infra.storage.files import expanded_path
from pelagos.platform.console import console as console
from pelagos.platform.console import error_console as error_console
from pelagos.platform.console import set_up_logging as set_up_logging

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130
NOTHING_SAVED = "before the first step: there was nothing to save"


def expanded_option(path: str | None) -> str | None:
    """Fill in `~` and `${VAR}`, which shells leave alone in `--option=~/path`."""
    try:
        return None if path is None else expanded_path(path)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


class CheckedGroup(TyperGroup):
    """The verbs together. Addresses with a password or token are rejected.

    Other users of the machine could read them in its list of processes, and messages repeat them.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        for argument in args:
            key, _, value = argument.partition("=")
            with exit_on_error():
                reject_credentials(argument if "://" in key else value)
        return super().parse_args(ctx, _plugins_first(args) if ctx.parent is None else args)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:  # while a verb imports what it needs
            say_interrupted(error)
            raise typer.Exit(EXIT_INTERRUPTED) from None


def _plugins_first(arguments: list[str]) -> list[str]:
    """Put `--plugin MODULE`, which every verb takes, before the verb.

    >>> _plugins_first(["evaluate", "run", "--plugin", "my_lab", "--", "--plugin"])
    ['--plugin', 'my_lab', 'evaluate', 'run', '--', '--plugin']
    """
    first: list[str] = []
    rest: list[str] = []
    words = iter(arguments)
    for word in words:
        if word == "--":
            return [*first, *rest, word, *words]
        if word == "--plugin":
            first += [word, *itertools.islice(words, 1)]
        elif word.startswith("--plugin="):
            first.append(word)
        else:
            rest.append(word)
    return [*first, *rest]


RunsDir = Annotated[
    str,
    typer.Option("--runs-dir", help="Directory that holds the runs.", callback=expanded_option),
]


@contextlib.contextmanager
def exit_on_error(if_interrupted: str = "") -> Iterator[None]:
    """Print errors that a user can fix and exit with status 2; any other is our bug and shows.

    On a signal that asks to end, say so, with `if_interrupted` behind it, and exit with status 130.
    """
    try:
        yield
    except KeyboardInterrupt as error:
        say_interrupted(error, if_interrupted)
        raise typer.Exit(EXIT_INTERRUPTED) from None
    except (ValueError, OSError) as error:
        # one long line: addresses and keys can be searched for and copied
        error_console.print(Text("error:", style="red"), _message(error), soft_wrap=True)
        raise typer.Exit(EXIT_BAD_INPUT) from None


def say_interrupted(error: KeyboardInterrupt, more: str = "") -> None:
    """Print which signal ended the verb, and what that means: its own note, else `more`."""
    text = f"interrupted by {error}" if str(error) else "interrupted"
    note = getattr(error, "note", "") or more
    error_console.print(f"{text}: {note}" if note else text, soft_wrap=True)


def finish(ok: bool) -> None:
    """Leave with status 1 unless `ok`."""
    if not ok:
        raise typer.Exit(EXIT_FAILED)


def print_json(value: Any) -> None:
    """Print strict JSON for programs: no colour, no wrapping."""
    sys.stdout.write(json.dumps(value, indent=1, default=str) + "\n")


def _message(error: Exception) -> str:
    text = str(error) or type(error).__name__
    if isinstance(error, OSError) and error.strerror and error.filename:
        text = f"{error.filename}: {error.strerror}"
    return text
