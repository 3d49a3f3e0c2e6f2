"""What pip may install: every file by its digest, the versions tested together, nothing left out."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
LOCKS = sorted((ROOT / "requirements").glob("*.lock"))


def versions(path: Path) -> dict[str, str]:
    """Name and version of each `name==version` at the beginning of a line."""
    found = re.findall(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", path.read_text(), re.MULTILINE)
    return {canonicalize_name(name): version for name, version in found}


@pytest.fixture(scope="module")
def locked() -> dict[str, str]:
    return {
        name: v for path in LOCKS if "cpu" not in path.name for name, v in versions(path).items()
    }


def test_every_requirement_of_every_lock_has_a_digest() -> None:
    assert len(LOCKS) == 4
    for path in LOCKS:
        lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
        text = "\n".join(lines).replace("\\\n", " ")
        for requirement in text.splitlines():
            assert re.match(r"[A-Za-z0-9._-]+==\S+", requirement), requirement
            digests = re.findall(r"--hash=(\S+)", requirement)
            assert digests, requirement
            assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", digest) for digest in digests)
        # no index: which one is asked is the machine's matter
        assert "://" not in text
        assert not re.search(r"^\s*-", text, re.MULTILINE)


def test_the_locks_are_the_constraints(locked: dict[str, str]) -> None:
    constraints = versions(ROOT / "constraints.txt")
    assert {name: locked.get(name) for name in constraints} == constraints
    cpu = versions(ROOT / "requirements" / "torch-cpu.lock")
    assert cpu == {"torch": constraints["torch"] + "+cpu"}


def test_the_locks_hold_all_that_pyproject_asks_for(locked: dict[str, str]) -> None:
    """And what that asks for in turn, by what the installed packages say of themselves."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    waiting = [Requirement(text) for text in asked]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if (name, frozenset(requirement.extras)) in seen:
            continue
        seen.add((name, frozenset(requirement.extras)))
        assert name in locked, f"{requirement} is in no lock: make lock"
        assert requirement.specifier.contains(locked[name], prereleases=True), requirement
        try:
            needed = distribution(name).requires or []
        except PackageNotFoundError:
            pytest.skip(f"{name} is not installed: another environment than that of make venv")
        for text in needed:
            inner = Requirement(text)
            extras = ("", *requirement.extras)
            if inner.marker is None or any(inner.marker.evaluate({"extra": e}) for e in extras):
                waiting.append(inner)
    assert len(seen) > 100


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_venv_installs_by_digest_alone() -> None:
    """Every command of `make venv`, also the build of what has no wheel."""
    done = subprocess.run(
        ["make", "--dry-run", "--always-make", "venv"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    text = done.stdout.replace("\\\n", " ")
    installs = [part for part in re.split(r"\n|;|\{", text) if "pip install" in part]
    assert len(installs) == 5
    locks = set()
    for command in installs:
        assert "--no-deps" in command, command  # a dependency is never what an index says it is
        assert ("--only-binary :all:" in command) != ("--no-build-isolation" in command), command
        if "--editable ." in command:
            continue
        assert "--require-hashes" in command, command
        locks.add(command.split("--requirement ")[1].split()[0])
    assert locks == {path.relative_to(ROOT).as_posix() for path in LOCKS}


def test_a_file_of_another_digest_is_rejected(tmp_path: Path) -> None:
    """The mechanism itself, with a wheel of the same name and version that somebody else made."""
    wheel = tmp_path / "einops-0.8.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        metadata = "Metadata-Version: 2.1\nName: einops\nVersion: 0.8.2\n"
        archive.writestr("einops-0.8.2.dist-info/METADATA", metadata)
        archive.writestr("einops-0.8.2.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("einops-0.8.2.dist-info/RECORD", "")
    lock = (ROOT / "requirements" / "wheels.lock").read_text()
    (entry,) = re.findall(r"^einops==.*\n(?:[ \t]+.*\n)*", lock, re.MULTILINE)
    (tmp_path / "lock").write_text(entry)
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--find-links"]
    target = ["--target", str(tmp_path / "installed"), "--requirement", str(tmp_path / "lock")]
    done = subprocess.run(
        [*install, str(tmp_path), "--require-hashes", *target], capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "DO NOT MATCH THE HASHES" in done.stderr
    assert not (tmp_path / "installed").exists()


@pytest.fixture(scope="module")
def writer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("lock", ROOT / "requirements" / "lock.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_writer_of_locks_splits_and_loses_nothing(
    writer: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = {path.name: path.read_text() for path in LOCKS if "cpu" not in path.name}
    monkeypatch.setattr(writer, "FOLDER", tmp_path)
    with (tmp_path / "answer").open("w+") as answer:
        answer.write("".join(texts.values()))
        answer.seek(0)
        monkeypatch.setattr(sys, "stdin", answer)
        writer.main()
    assert {path.name: path.read_text() for path in tmp_path.glob("*.lock")} == texts
    for wrong in ("", "einops==0.8.2\n", "einops>=0.8 \\\n    --hash=sha256:00\n"):
        with pytest.raises(ValueError, match="no requirement with a version|nothing was read"):
            writer.split(wrong)
