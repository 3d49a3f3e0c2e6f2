"""Tables in narrow terminals: every number and name is whole, and everything is there."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from rich.console import Console
from rich.text import Text

from pelagos.evaluation.pages.terminal_tables import Column, print_table

LEADS = ["0.05", "0.1", "0.15"]


def errors(seed: int, style: str = "") -> list[str | Text]:
    draw = np.random.default_rng(seed).uniform(1, 200, (len(LEADS), 2))
    texts = [f"{share:.2f}% / {vrmse:.2f}" for share, vrmse in draw]
    return [Text(text, style=style) if style else text for text in texts]


def numbers(texts: Sequence[str | Text]) -> Counter[str]:
    return Counter(n for text in texts for n in re.findall(r"\d+\.\d+%?", str(text)))


def printed(columns: list[Column], width: int, index: Column | None = None) -> list[str]:
    console = Console(record=True, width=width, file=io.StringIO())
    print_table(
        console, "a [b]: relative L1 / VRMSE, of 9", index or Column("lead time", LEADS), columns
    )
    return console.export_text().splitlines()


def lines_of(lines: list[str]) -> list[str]:
    """Return the rows of all tables, without headings."""
    return [line for line in lines if line.startswith("│")]


COLUMNS = [
    Column("direct", errors(0)),
    Column("autoregressive", errors(1, "green")),
    Column("ensemble", errors(2)),
    Column("persistence", errors(3)),
    Column("mean", errors(4)),
    Column(
        "beats",
        [Text("persistence only", style="yellow"), Text("neither", style="red"), "both"],
        is_text=True,
    ),
]


@pytest.mark.parametrize("width", [140, 100, 80, 60, 40, 28])
def test_every_number_is_on_one_line_and_none_is_lost(width: int) -> None:
    lines = printed(COLUMNS, width)
    assert max(map(len, lines)) <= width
    num_tables = sum(line.startswith("┏") for line in lines)
    expected = numbers([cell for column in COLUMNS for cell in column.cells])
    expected += Counter(dict.fromkeys(LEADS, num_tables))
    assert numbers(lines_of(lines)) == expected
    assert "…" not in "".join(lines)
    assert num_tables == {140: 1, 100: 1, 80: 1}.get(width, num_tables)
    headings = "".join(re.sub(r"[^a-z]", "", line) for line in lines if line.startswith("┃"))
    for name in ("direct", "ensemble", "mean", "beats"):
        assert name in headings
    words = " ".join(re.findall(r"[a-z]+", " ".join(lines_of(lines))))
    assert Counter(words.split()) == Counter(["persistence", "only", "neither", "both"])
    title = " ".join(lines[: next(i for i, line in enumerate(lines) if line.startswith("┏"))])
    assert " ".join(title.split()) == (
        f"a [b]: relative L1 {'/' if width == 140 else 'above'} VRMSE, of 9"
    )


def test_a_wide_terminal_has_both_errors_in_one_line() -> None:
    lines = lines_of(printed(COLUMNS, 140))
    assert len(lines) == len(LEADS)
    assert str(COLUMNS[0].cells[0]) in lines[0]
    stacked = lines_of(printed(COLUMNS, 80))
    assert len(stacked) == 2 * len(LEADS)
    share, vrmse = str(COLUMNS[0].cells[0]).split(" / ")
    assert stacked[0].index(share) == stacked[1].index(vrmse)  # one below the other


def test_long_names_are_folded_and_never_cut() -> None:
    names = [f"a-run-with-a-long-name-{number}" for number in range(12)]
    columns = [Column(f"{name}\ndirect", errors(n)) for n, name in enumerate(names)]
    lines = printed(columns, 80)
    assert max(map(len, lines)) <= 80
    expected = numbers([cell for column in columns for cell in column.cells])
    num_tables = sum(line.startswith("┏") for line in lines)
    assert num_tables > 1
    assert numbers(lines_of(lines)) == expected + Counter(dict.fromkeys(LEADS, num_tables))
    parts = "".join(re.findall(r"[a-z-]+\d*", " ".join(x for x in lines if x.startswith("┃"))))
    assert parts.count("name-") == len(names)
    index = Column("run", [f"{i} {name}" for i, name in enumerate(names[:3], 1)], is_text=True)
    shown = lines_of(printed([Column("AG", ["1.30 (1.27 to 1.33)"] * 3)] * 6, 80, index))
    assert numbers(shown) == Counter({"1.30": 18, "1.27": 18, "1.33": 18})
