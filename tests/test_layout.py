"""The repository's layout and its rules of dependency, read from the files themselves."""

from __future__ import annotations

import ast
import graphlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "pelagos"
LINKED = ("data_pipelines", "infra", "jobs", "models", "platform")
ROOMS = (*LINKED, "cli", "evaluation")
MAX_LINES = 450

# What each room may import of the others. `registry.py` and `plugins.py` stand beside them.
ROOM_IMPORTS: dict[str, set[str]] = {
    "models": set(),
    "infra": set(),
    "data_pipelines": {"infra"},
    "evaluation": {"infra"},
    "platform": {"infra"},
    "jobs": {"platform", "evaluation", "models", "data_pipelines", "infra"},
    "cli": {"jobs", "platform", "evaluation", "models", "data_pipelines", "infra"},
}

# A model is single-device code: these it must be usable without.
NOT_IN_MODELS = {"ray", "mlflow", "zarr", "deepspeed", "accelerate", "torch.distributed"}

BACKEND_NAMES = re.compile(r"DistributedDataParallel|fully_shard|\bdeepspeed\b")
# `pelagos doctor` reports which version of each package is installed.
BACKEND_NAMES_ALLOWED = {(PACKAGE / "infra" / "doctor.py", "deepspeed")}

# Paths of somebody's machine, hosts of a package index, and notes to oneself do not belong here.
UNWANTED = re.compile(
    r"(?<![\w.$}])/(?:work|tmp)\b"
    r"|pypi[.](?:org|python)|python[h]osted|download[.]pytorch"
    r"|\b(?:TO" + r"DO|FIX" + r"ME|XX" + r"X)\b"
)
TEXT_SUFFIXES = {
    *(".py", ".md", ".toml", ".txt", ".yaml", ".yml", ".sh", ".j2", ".html", ".cfg", ".json"),
    "",
}
SKIPPED_DIRECTORIES = re.compile(r"^(\.(?!ci$|github$).*|__pycache__|build|dist|.*\.egg-info)$")
# Written by jobs that run from the checkout, and by `make docs`.
SKIPPED_AT_ROOT = {"runs", "data", "quickstart", "shared", "site", "mlruns", "mlartifacts"}


def python_files(directory: Path) -> list[Path]:
    files = sorted(directory.rglob("*.py"))
    assert files, directory
    return files


def text_files() -> Iterator[Path]:
    """Every text file of the repository once, however it is linked."""
    for directory, names, files in os.walk(ROOT):  # does not follow links
        here = Path(directory)
        skipped = SKIPPED_AT_ROOT if here == ROOT else set()
        names[:] = [n for n in names if not SKIPPED_DIRECTORIES.match(n) and n not in skipped]
        yield from (
            here / name
            for name in files
            if Path(name).suffix in TEXT_SUFFIXES and not name.startswith(".git")
        )


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imported_modules(path: Path) -> Iterator[str]:
    """Dotted names that a file imports anywhere, `from a import b` as both `a` and `a.b`."""
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import; write pelagos.x.y"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def names_in_code(path: Path) -> Iterator[str]:
    """Identifiers and strings of a file, without docstrings and comments."""
    prose = {
        id(node.value)
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if id(node) not in prose:
                yield node.value
        elif isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
    yield from imported_modules(path)


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


# -- links and folders ----------------------------------------------------------------------------


@pytest.mark.parametrize("room", LINKED)
def test_room_at_the_root_is_a_relative_link_into_the_package(room: str) -> None:
    link = ROOT / room
    assert link.is_symlink(), f"{room} at the root must be a link (git: core.symlinks=true)"
    assert os.readlink(link) == f"src/pelagos/{room}"
    assert link.resolve() == PACKAGE / room


@pytest.mark.parametrize("room", ROOMS)
def test_room_has_a_readme_and_no_init(room: str) -> None:
    assert (PACKAGE / room / "README.md").stat().st_size > 0
    if room not in LINKED:
        return
    # platform/__init__.py would shadow the standard library's module in every process whose path
    # holds the checkout
    assert not (PACKAGE / room / "__init__.py").exists()


def test_no_init_under_tests() -> None:
    assert list((ROOT / "tests").rglob("__init__.py")) == []


def test_platform_is_the_standard_librarys_from_the_checkout() -> None:
    program = "import platform; print(platform.__file__); platform.system()"
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert not Path(result.stdout.strip()).is_relative_to(ROOT / "src")
    assert Path(result.stdout.strip()).name == "platform.py"


def test_no_module_is_named_after_one_of_the_standard_library() -> None:
    names = {p.stem: p for p in python_files(PACKAGE)} | {
        p.parent.name: p for p in PACKAGE.rglob("__init__.py")
    }
    clashes = {relative(names[n]) for n in names.keys() & sys.stdlib_module_names}
    assert clashes == set()


def test_every_file_can_be_read_in_one_sitting() -> None:
    lengths = {
        relative(path): len(path.read_text(encoding="utf-8").splitlines())
        for folder in ("src", "tests", "benchmarks", "examples")
        for path in python_files(ROOT / folder)
    }
    assert {path: n for path, n in lengths.items() if n > MAX_LINES} == {}


# -- dependencies ---------------------------------------------------------------------------------


@pytest.mark.parametrize("room", ROOMS)
def test_dependencies_point_one_way(room: str) -> None:
    wrong = []
    for path in python_files(PACKAGE / room):
        for name in imported_modules(path):
            parts = name.split(".")
            if parts[0] in ROOMS and parts[0] != "platform":
                wrong.append(f"{relative(path)}: imports {name}, not pelagos.{name}")
            above = {*ROOMS} - {room} - ROOM_IMPORTS[room]
            if parts[0] == "pelagos" and len(parts) > 1 and parts[1] in above:
                wrong.append(f"{relative(path)}: {room} must not import {name}")
    assert wrong == []


def test_no_room_is_in_a_circle_of_imports() -> None:
    """In every folder: what lies in it, files and folders, can be put in an order of imports."""
    paths = python_files(PACKAGE)
    modules = {".".join(("pelagos", *p.relative_to(PACKAGE).with_suffix("").parts)) for p in paths}
    arrows: dict[tuple[str, ...], dict[str, set[str]]] = {}
    for path in paths:
        here = ("pelagos", *path.relative_to(PACKAGE).with_suffix("").parts)
        if path.name == "__init__.py":
            continue  # it speaks for its folder
        for name in imported_modules(path):
            there = tuple(name.split("."))
            if name not in modules or there == here:
                continue
            common = next(i for i, (a, b) in enumerate(zip(here, there, strict=False)) if a != b)
            folder = arrows.setdefault(here[:common], {})
            folder.setdefault(here[common], set()).add(there[common])
    circles = []
    for folder, graph in arrows.items():
        try:
            graphlib.TopologicalSorter(graph).prepare()
        except graphlib.CycleError as error:
            circles.append(f"{'.'.join(folder)}: {' -> '.join(error.args[1])}")
    assert circles == []


def test_models_are_single_device_code() -> None:
    wrong = [
        f"{relative(path)}: {name}"
        for path in python_files(PACKAGE / "models")
        for name in imported_modules(path)
        if any(name == n or name.startswith(f"{n}.") for n in NOT_IN_MODELS)
    ]
    assert wrong == []


def test_backends_are_named_by_strategies_alone() -> None:
    strategies = PACKAGE / "platform" / "strategies"
    found = {
        (path, match.group())
        for path in python_files(PACKAGE)
        if strategies not in path.parents
        for name in names_in_code(path)
        if (match := BACKEND_NAMES.search(name))
    }
    assert {(relative(p), n) for p, n in found - BACKEND_NAMES_ALLOWED} == set()


def test_the_search_for_backends_sees_code_and_not_prose(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text('"""About deepspeed."""\n# fully_shard\nfrom deepspeed import x\n')
    assert [n for n in names_in_code(path) if BACKEND_NAMES.search(n)] == [
        "deepspeed",
        "deepspeed.x",
    ]


# -- text -----------------------------------------------------------------------------------------


def test_nothing_of_a_machine_or_of_unfinished_work_is_left_in_the_text() -> None:
    files = list(text_files())
    assert ROOT / "pyproject.toml" in files
    assert PACKAGE / "platform" / "trainer.py" in files
    found = [
        f"{relative(path)}:{number}: {line.strip()[:80]}"
        for path in files
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if UNWANTED.search(line)
    ]
    assert found == []
