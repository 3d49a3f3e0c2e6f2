"""Change the code in one place at a time, and count the changes that the tests notice.

    make mutants                            # every module of benchmarks/mutants.toml
    make mutants MUTANTS_OF=models/losses   # the modules whose path or group holds these letters
    make mutants MUTANTS_SEED=1 MUTANTS_SAMPLE=6   # other changes, six of each module

Cosmic Ray makes the changes ("mutants"): another operator, another number, a condition turned around,
a loop that never runs, a decorator gone. Of each module a random sample is tried: one change at each of
`sample` places, chosen by a seed. Left out are annotations and the decorators of dataclasses, which
mypy checks, and changes that are no Python.

Whoever mends tests looks at the sample that they missed, so its share says little afterwards. Another
seed gives changes that no lower seed has, for a share that nobody has worked on yet.

Each mutant is written into a copy of the package, and the tests of its module run in a fork of a process
that has imported torch and the like already. A change is noticed if a test fails, an import fails, or
the tests take `patience` times as long as without it. Changes that nothing can notice are listed in
the configuration with their reason.
"""

from __future__ import annotations

import argparse
import ast
import compileall
import contextlib
import difflib
import importlib
import importlib.util
import json
import os
import py_compile
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "pelagos"
NOT_RUN = ("ray", "slow", "s3", "gpu", "matrix", "targets")  # unless the module asks for them
MOST_SECONDS = 600.0  # of a module's tests without any change
GRACE_SECONDS = 10.0  # added to every time-out: a machine may be busy
POLL_SECONDS = 0.02
TIMED_OUT = -1
# Bits of numbers that are no integers: no test would be too weak for these.
FAILS_AT_ONCE = re.compile(
    "_(Add|Sub|Mul|Div|FloorDiv|Mod|Pow)_(BitOr|BitAnd|BitXor|RShift|LShift)$"
)
# Programs of their own that start threads or servers, which no fork survives.
NOT_BEFORE_A_FORK = {"ray", "grpc", "mlflow", "deepspeed", "matplotlib", "pyarrow", "obstore"}


@dataclass(frozen=True)
class Mutant:
    """A module's text with one change, and the line that changed, before and after."""

    text: str
    number: int
    line: str
    becomes: str


def main() -> int:
    """Try every module that the arguments name; return 1 if a change went by unnoticed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("chosen", nargs="?", default="", help="letters of a path or of a group")
    parser.add_argument("--sample", type=int, help="changes per module, instead of the configured")
    parser.add_argument("--seed", type=int, help="of the sample, instead of the configured")
    parser.add_argument("--again", action="store_true", help="only those unnoticed the last time")
    options = parser.parse_args()
    config = tomllib.loads(Path(__file__).with_suffix(".toml").read_text())
    seed = config["seed"] if options.seed is None else options.seed
    found_path = ROOT / "build" / f"mutants-{seed}.json"
    found: dict[str, Any] = json.loads(found_path.read_text()) if found_path.exists() else {}
    rows = [r for r in config["module"] if options.chosen in f"{r['group']} {r['path']}"]
    with tempfile.TemporaryDirectory() as place:
        source = _copy_package(Path(place))
        for row in rows:
            earlier = frozenset[str]()
            for lower in range(seed):
                known = sample(PACKAGE / row["path"], config["sample"], lower, earlier)
                earlier |= {mutant.text for mutant in known}
            count = options.sample or config["sample"]
            mutants = sample(PACKAGE / row["path"], count, seed, earlier)
            if options.again:
                before = {
                    (m["line"], m["becomes"]) for m in found.get(row["path"], {}).get("missed", [])
                }
                mutants = [m for m in mutants if (m.line, m.becomes) in before]
                if not mutants:
                    continue
            result = _try(row, mutants, source, config)
            if options.again and row["path"] in found:
                result = _together(found[row["path"]], result)
            found[row["path"]] = {"group": row["group"], **result}
            found_path.parent.mkdir(exist_ok=True)
            found_path.write_text(json.dumps(found, indent=1))
    tried = [(row["path"], found[row["path"]]) for row in rows if row["path"] in found]
    print(table(tried))
    return int(any(f["missed"] for _, f in tried))


def sample(path: Path, count: int, seed: int, without: frozenset[str]) -> list[Mutant]:
    """One change at each of `count` random places of a file, in the order of its lines.

    Changes that give a text of `without` are passed over.
    """
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator, operator_names

    text = path.read_text()
    tree = get_ast(text)
    places: dict[tuple[tuple[int, int], str], list[tuple[Any, int]]] = {}
    for name in operator_names():
        operator_class = get_operator(name)
        if operator_class.arguments() or FAILS_AT_ONCE.search(name):
            continue  # arguments would be names of variables to act on
        operator = operator_class()
        occurrence = 0
        for node in ast_nodes(tree):
            for start, _ in operator.mutation_positions(node):
                family = name.split("_")[0]  # ReplaceBinaryOperator_Add_Sub
                places.setdefault((start, family), []).append((operator, occurrence))
                occurrence += 1
    excluded = list(_left_out(ast.parse(text)))
    open_places = [p for p in sorted(places) if not any(a <= p[0] < b for a, b in excluded)]
    generator = random.Random(f"{seed} {path.name}")
    generator.shuffle(open_places)
    chosen: list[Mutant] = []
    for place in open_places:
        if len(chosen) == count:
            break
        operator, occurrence = generator.choice(places[place])
        changed = mutate_code(text, operator, occurrence)
        if changed is None or changed in without:
            continue
        if mutant := _mutant(text, changed):
            chosen.append(mutant)
    return sorted(chosen, key=lambda m: m.number)


def _left_out(tree: ast.Module) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Begin and end of what mypy checks and running does not."""
    for node in ast.walk(tree):
        parts: list[ast.expr | None] = []
        if isinstance(node, ast.arg | ast.AnnAssign):
            parts = [node.annotation]
        elif isinstance(node, ast.FunctionDef):
            parts = [node.returns]
        elif isinstance(node, ast.ClassDef):
            parts = [d for d in node.decorator_list if "dataclass" in ast.unparse(d)]
        for part in parts:
            if part is not None and part.end_lineno is not None and part.end_col_offset is not None:
                # with the @ of a decorator
                yield (
                    (part.lineno, max(0, part.col_offset - 1)),
                    (part.end_lineno, part.end_col_offset),
                )


def _mutant(text: str, changed: str) -> Mutant | None:
    """What was changed; None if it is no Python, or the same program."""
    try:
        if ast.dump(ast.parse(changed)) == ast.dump(ast.parse(text)):
            return None
    except SyntaxError:
        return None
    before, after = ([*map(str.rstrip, t.splitlines())] for t in (text, changed))
    steps = difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes()
    _, first, last, low, high = next(step for step in steps if step[0] != "equal")
    line, becomes = (" ".join(" ".join(p).split()) for p in (before[first:last], after[low:high]))
    return Mutant(changed, first + 1, line, becomes)


def _copy_package(place: Path) -> Path:
    """A copy of the package, compiled so that no file's date is looked at."""
    source = place / "src"
    shutil.copytree(
        ROOT / "src", source, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info")
    )
    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    compileall.compile_dir(source, quiet=2, invalidation_mode=mode)
    return source


def _try(
    row: dict[str, Any], mutants: list[Mutant], source: Path, config: dict[str, Any]
) -> dict[str, Any]:
    """Run a module's tests under each of its mutants."""
    path = source / "pelagos" / row["path"]
    compiled = Path(importlib.util.cache_from_source(str(path)))
    original = path.read_text()
    compiled.unlink(missing_ok=True)
    markers = [f"not {name}" for name in NOT_RUN if name not in row.get("marks", [])]
    arguments = ["-m", " and ".join(markers), *row["tests"]]
    arguments += (f"--deselect={name}" for name in row.get("without", []))
    begin = time.monotonic()
    status, imported = _run(source, arguments, MOST_SECONDS, names=True)
    seconds = time.monotonic() - begin
    _import_all(imported)
    if status != 0:
        raise SystemExit(
            f"the tests of {row['path']} fail without any change: {' '.join(arguments)}"
        )
    result: dict[str, Any] = {"tried": 0, "noticed": 0, "timed_out": 0, "listed": [], "missed": []}
    try:
        for mutant in mutants:
            path.write_text(mutant.text)
            status, _ = _run(source, arguments, config["patience"] * seconds + GRACE_SECONDS)
            change = {"number": mutant.number, "line": mutant.line, "becomes": mutant.becomes}
            result["tried"] += 1
            result["noticed"] += status != 0
            result["timed_out"] += status == TIMED_OUT
            if status == 0:
                kind = "listed" if _reason(config, row["path"], mutant) else "missed"
                result[kind].append(change)
                print(
                    f"{kind}: {row['path']}:{mutant.number}\n  - {mutant.line}\n  + {mutant.becomes}"
                )
    finally:
        path.write_text(original)
    counts = f"{result['noticed']} of {result['tried']} noticed, {len(result['listed'])} listed"
    print(f"{row['path']}: {counts}; the tests take {seconds:.1f} s", flush=True)
    return result


def _together(before: dict[str, Any], again: dict[str, Any]) -> dict[str, Any]:
    """What was found, after the changes that had been missed were tried again."""
    return {
        **again,
        "tried": before["tried"],
        "noticed": before["noticed"] + again["noticed"],
        "timed_out": before["timed_out"] + again["timed_out"],
        "listed": [*before["listed"], *again["listed"]],
    }


def _reason(config: dict[str, Any], path: str, mutant: Mutant) -> str | None:
    """Why nothing can notice the change, where the configuration says so."""
    for entry in config.get("unnoticed", []):
        same_line = entry["path"] == path and entry["line"] == mutant.line
        if same_line and mutant.becomes in entry.get("becomes", [mutant.becomes]):
            return str(entry["reason"])
    return None


def _run(
    source: Path, arguments: list[str], seconds: float, names: bool = False
) -> tuple[int, list[str]]:
    """Run pytest in a fork; its exit status, and the modules that it imported if `names`."""
    reading, writing = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        os.close(reading)
        os.setsid()
        _test(source, arguments, writing if names else None)
    os.close(writing)
    deadline = time.monotonic() + seconds
    status = None
    with os.fdopen(reading) as answer:
        imported = answer.read().split() if names else []
    while status is None and time.monotonic() < deadline:
        done, ended = os.waitpid(child, os.WNOHANG)
        if done:
            status = os.waitstatus_to_exitcode(ended)
        else:
            time.sleep(POLL_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # and whatever its tests have left running
    if status is None:
        os.waitpid(child, 0)
        status = TIMED_OUT
    return status, imported


def _test(source: Path, arguments: list[str], answer: int | None) -> None:
    """What a fork does: pytest on the copy of the package."""
    os.chdir(ROOT)
    quiet = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(quiet, stream)
    sys.path.insert(0, str(source))
    os.environ["PYTHONPATH"] = str(source)  # for processes that tests start
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # looking for plugins takes as long as tests
    sys.dont_write_bytecode = True
    status = 3
    try:
        import pytest

        plugins = ("no:cacheprovider", "pytest_timeout", "_hypothesis_pytestplugin")
        fixed = ["-x", "-q", "--hypothesis-seed=0", *(f"-p{p}" for p in plugins)]
        status = int(pytest.main([*fixed, *arguments]))
        if answer is not None:
            os.write(answer, "\n".join(sys.modules).encode())
    finally:
        os._exit(status)


def _import_all(names: list[str]) -> None:
    """Import what is not of this repository, so that no fork has to."""
    for name in names:
        top = name.split(".")[0]
        if top in NOT_BEFORE_A_FORK or top in {"pelagos", "tests", "conftest", "__main__"}:
            continue
        with contextlib.suppress(Exception):  # not every entry of sys.modules is a file
            importlib.import_module(name)


def table(found: list[tuple[str, dict[str, Any]]]) -> str:
    """Markdown: a row per module, and a sum per group."""
    lines = ["| module | tried | noticed | cannot be noticed | missed |", "|---|---|---|---|---|"]
    groups = dict.fromkeys(f["group"] for _, f in found)
    for group in groups:
        members = [(path, f) for path, f in found if f["group"] == group]
        for path, f in members:
            counts = (f["tried"], f["noticed"], len(f["listed"]), len(f["missed"]))
            lines.append(f"| {path} | " + " | ".join(map(str, counts)) + " |")
        tried, noticed = (sum(f[k] for _, f in members) for k in ("tried", "noticed"))
        listed, missed = (sum(len(f[k]) for _, f in members) for k in ("listed", "missed"))
        share = noticed / max(1, tried)
        lines.append(f"| **{group}** | {tried} | {noticed} ({share:.0%}) | {listed} | {missed} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
