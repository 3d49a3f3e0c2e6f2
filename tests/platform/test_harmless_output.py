"""Nothing that others chose - names, causes, addresses - commands the terminal of whoever reads it."""

import io
import logging
import re
import warnings
from pathlib import Path

import pytest
from rich.table import Table
from rich.text import Text
from typer.testing import CliRunner

from pelagos.cli import common
from pelagos.cli.main import app
from pelagos.platform.console import HarmlessConsole, harmless

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


MARKUP = "run [/x] of [red]a[/red] [link=https://evil.example]b[/link] :warning: [blink]c"


def test_markup_in_a_name_is_shown_as_it_is() -> None:
    assert shown(MARKUP) == f"{MARKUP}\n"
    table = Table(MARKUP, title=MARKUP)
    table.add_row(MARKUP)
    text = shown(table)
    assert re.sub(r"\x1b\[[0-9;]*m", "", text).count(MARKUP) == 3
    assert "\x1b]8" not in text  # a link of terminals


def test_what_turns_the_direction_of_writing_is_replaced() -> None:
    text = shown("a\u202eb\u2066c\u2028d\ud800e")
    assert text == "a\ufffdb\ufffdc\ufffdd\ufffde\n"
    assert harmless("a\u202eb\ud800c") == "abc"


def test_colours_of_ones_own_stay() -> None:
    assert "\x1b[31mred\x1b[0m [red]name" in shown(Text("red", style="red"), "[red]name")


def test_no_text_of_the_source_asks_for_markup() -> None:
    """Colours are `Text`: a string with markup would be shown with its brackets."""
    root = Path(__file__).parents[2] / "src/pelagos"
    markup = re.compile(
        r"\[/?(red|green|yellow|cyan|blue|bold|link)\b[^\]]*\]|from_markup|markup=True"
        r"|(?<!Harmless)(?<!\w)Console\(\)|TextColumn\((?!.*markup=False)(?!\"left\")"
    )
    found = [
        f"{path.relative_to(root)}:{number}: {line.strip()}"
        for path in root.rglob("*.py")
        if path.name != "console.py"
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if markup.search(line)
    ]
    assert found == []


def test_halves_of_characters_in_a_record_stop_nobodys_list(tmp_path: Path) -> None:
    """A terminal cannot be sent them: one such record was a traceback instead of everyone's runs."""
    run = tmp_path / "runs" / "other"
    run.mkdir(parents=True)
    training = Path(__file__).parents[2] / "configs/quickstart/pretrain.yaml"
    (run / "job.yaml").write_text(training.read_text())
    (run / "status.json").write_text('{"state": "\\ud800", "cause": "[/red]\\udfff"}')
    for verb in (["list"], ["status", "other"]):
        done = CliRunner().invoke(app, [*verb, "--runs-dir", str(run.parent)])
        assert (done.exit_code, done.exception) == (0, None), done.output
        assert "other" in done.output


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
