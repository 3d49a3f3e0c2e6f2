"""The package as others get it: source archive, wheel from it, installation, every import."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOT_SOURCE = shutil.ignore_patterns(
    *(".git", ".venv", "__pycache__", "*.egg-info", ".*_cache", ".hypothesis", "build", "dist"),
    *("runs", "data", "quickstart", "mlruns", "mlartifacts", "*.db"),
)
BUILD_TIMEOUT_SECONDS = 120
IMPORT_TIMEOUT_SECONDS = 200

# Imports every module of the installed package and prints where each was found.
IMPORT_EVERYTHING = """
import importlib, pathlib, pelagos
root = pathlib.Path(pelagos.__file__).parent
for path in sorted(root.rglob("*.py")):
    parts = path.relative_to(root).with_suffix("").parts
    name = ".".join(["pelagos", *(parts[:-1] if parts[-1] == "__init__" else parts)])
    print(name, importlib.import_module(name).__file__)
"""


def run(*command: str | Path, cwd: Path, seconds: float = BUILD_TIMEOUT_SECONDS) -> str:
    """Standard output of a program that knows nothing of the checkout."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    result = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-4000:] + result.stdout[-2000:]
    return result.stdout


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The source archive, and the wheel built from it; the checkout is left alone."""
    folder = tmp_path_factory.mktemp("package")
    shutil.copytree(ROOT, folder / "checkout", symlinks=True, ignore=NOT_SOURCE)
    # without isolation: setuptools is in the `dev` extra, so that no network is needed
    output = folder / "dist"
    run(
        *(sys.executable, "-m", "build", "--no-isolation", "--outdir", output),
        cwd=folder / "checkout",
    )
    (source,) = output.glob("*.tar.gz")
    (wheel,) = output.glob("*.whl")
    return source, wheel


@pytest.fixture(scope="module")
def clean_python(archives: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter with the wheel installed, and this environment's other packages behind it.

    The path file adds the directory of the dependencies without reading the path files in it, so
    an editable installation of the checkout stays out of sight.
    """
    folder = tmp_path_factory.mktemp("clean")
    run(sys.executable, "-m", "venv", "--without-pip", "venv", cwd=folder)
    python = folder / "venv" / "bin" / "python"
    install = ("-m", "pip", "--python", python, "install", "--no-deps", "--no-index", archives[1])
    run(sys.executable, *install, cwd=folder)
    packages = run(
        python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder
    )
    dependencies = sysconfig.get_path("purelib")
    (Path(packages.strip()) / "dependencies.pth").write_text(f"{dependencies}\n")
    return python


def modules_of(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*.py")}


@pytest.mark.slow
def test_archives_hold_every_module_and_every_data_file(archives: tuple[Path, Path]) -> None:
    source, wheel = archives
    expected = modules_of(ROOT / "src")
    expected |= {str(p.relative_to(ROOT / "src")) for p in (ROOT / "src").rglob("*.j2")}
    expected |= {"pelagos/py.typed", "pelagos/platform/README.md"}
    with zipfile.ZipFile(wheel) as archive:
        in_wheel = {name for name in archive.namelist() if ".dist-info/" not in name}
        entry_points = archive.read(
            next(n for n in archive.namelist() if n.endswith("entry_points.txt"))
        ).decode()
    with tarfile.open(source) as archive:
        in_source = {name.partition("/src/")[2] for name in archive.getnames()}
    assert any(name.endswith("report.html.j2") for name in expected)
    assert expected - in_wheel == set()
    assert expected - in_source == set()
    assert {name for name in in_wheel if not name.startswith("pelagos/")} == set()
    assert "pelagos = pelagos.cli.main:main" in entry_points


@pytest.mark.slow
def test_every_module_imports_from_the_wheel(clean_python: Path, tmp_path: Path) -> None:
    output = run(
        clean_python, "-c", IMPORT_EVERYTHING, cwd=tmp_path, seconds=IMPORT_TIMEOUT_SECONDS
    )
    found = [line.split(" ", 1) for line in output.splitlines() if line.startswith("pelagos")]
    assert len(found) == len(modules_of(ROOT / "src"))
    environment = clean_python.parent.parent
    assert [name for name, path in found if not Path(path).is_relative_to(environment)] == []


@pytest.mark.slow
def test_the_command_is_installed(clean_python: Path, tmp_path: Path) -> None:
    command = clean_python.with_name("pelagos")
    help_text = run(command, "--help", cwd=tmp_path)
    for verb in ("generate", "pretrain", "resume", "evaluate", "status", "doctor"):
        assert verb in help_text
    version = "import importlib.metadata as m, pelagos; print(pelagos.__version__)"
    assert run(clean_python, "-c", version, cwd=tmp_path).strip() in archives_version()


def archives_version() -> str:
    """The line of pyproject.toml that states the version."""
    lines = (ROOT / "pyproject.toml").read_text(encoding="utf-8").splitlines()
    return next(line for line in lines if line.startswith("version"))
