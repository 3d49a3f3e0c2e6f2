"""The table of `make mutants`: it names files that there are, and lines that are still in them."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TABLE = tomllib.loads((ROOT / "benchmarks" / "mutants.toml").read_text())


@pytest.mark.parametrize("row", TABLE["module"], ids=lambda row: row["path"])
def test_modules_and_their_tests_are_there(row: dict[str, str]) -> None:
    assert (ROOT / "src" / "pelagos" / row["path"]).is_file()
    for path in row["tests"]:
        assert (ROOT / path).is_file(), path
    for name in row.get("without", ()):
        path, _, function = name.partition("::")
        tree = ast.parse((ROOT / path).read_text())
        functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert function.partition("[")[0] in functions, name
        assert path in row["tests"], name


def test_what_nothing_can_notice_is_still_in_the_code() -> None:
    """Whoever changes such a line judges it again."""
    for entry in TABLE.get("unnoticed", ()):
        source = (ROOT / "src" / "pelagos" / entry["path"]).read_text()
        lines = {" ".join(line.split()) for line in source.splitlines()}
        assert entry["line"] in lines, entry
        assert len(entry["reason"]) > 20, entry
