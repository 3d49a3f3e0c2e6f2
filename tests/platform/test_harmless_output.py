"""Nothing that others chose - names, causes, addresses - commands the terminal of whoever reads it."""

import io
import logging
import warnings

import pytest
from rich.table import Table

from pelagos.platform.cli import common
from pelagos.platform.cli.common import HarmlessConsole

# sets the title, clears the screen, writes to the clipboard, turns text red, rings, C1's own CSI
ATTACK = "a\x1b]0;title\x07b\x1b[2Jc\x1b]52;c;ZXZpbA==\x07d\x1b[31me\x9b2Jf\rg\x08h"


def shown(*renderables: object, **options: bool) -> str:
    file = io.StringIO()
    console = HarmlessConsole(file=file, force_terminal=True, color_system="standard", width=200)
    console.print(*renderables, **{"highlight": False, **options})  # type: ignore[arg-type]
    return file.getvalue()


def in_a_table() -> Table:
    table = Table(ATTACK, title=ATTACK)
    table.add_row(ATTACK)
    return table


@pytest.mark.parametrize("renderable", [ATTACK, in_a_table()], ids=["text", "table"])
def test_texts_hold_no_commands_to_the_terminal(renderable: object) -> None:
    text = shown(renderable)
    for command in ("\x1b]", "\x1b[2J", "\x1b[31m", "\x07", "\x08", "\x9b", "\r"):
        assert command not in text
    assert all(letter in text for letter in "abcdefgh")


def test_a_name_that_is_no_markup_is_shown_as_it_is() -> None:
    assert "run [/x] of [/red]" in shown("run [/x] of [/red]")
    table = Table(title="[/t]")
    table.add_row("[/cell]")
    assert "[/cell]" in shown(table)


def test_colours_of_ones_own_stay() -> None:
    assert "\x1b[31mred\x1b[0m" in shown("[red]red[/red]")


def test_errors_are_shown_by_such_a_console(capsys: pytest.CaptureFixture[str]) -> None:
    for console in (common.console, common.error_console):
        console.print(ATTACK, markup=False)
    captured = capsys.readouterr()
    assert "\x1b" not in captured.out + captured.err
    assert "title" in captured.out
    assert "title" in captured.err


def test_warnings_of_libraries_are_shown_by_it_too(capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("always")
        patch.setattr(logging, "_warnings_showwarning", None)
        root = logging.getLogger()
        before, level = root.handlers[:], root.level
        try:
            common.set_up_logging(verbose=False)
            warnings.warn(f"glyph {ATTACK} is absent", stacklevel=1)
        finally:
            root.handlers[:], root.level = before, level
            logging.captureWarnings(False)
    shown = capsys.readouterr().err
    assert "glyph" in shown
    assert "\x1b" not in shown
