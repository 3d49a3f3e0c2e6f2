"""A dataset that somebody else made, or spoiled, is read or rejected: it neither hangs nor raises what
no reader of an error understands."""

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pelagos.platform.cli.main import app

MakeDataset = Callable[..., Any]


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    def give_up(*_: Any) -> None:
        pytest.fail("it hangs")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _endless(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def _deep(path: Path) -> None:
    path.write_text("[" * 100_000 + "]" * 100_000)


def _list(path: Path) -> None:
    path.write_text("[1]")


def _lists(path: Path) -> None:
    path.write_text('{"consolidated_metadata": [], "attributes": [], "sums": {"u": [1]}}')


def _dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to("/absent")


@pytest.mark.parametrize("spoil", [_pipe, _endless, _deep, _list, _lists, _dangling])
def test_no_file_of_a_dataset_hangs_or_confuses_a_verb(
    make_dataset: MakeDataset, tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    dataset, _ = make_dataset()
    whole = Path(dataset.uri)
    files = ("manifest.json", "zarr.json", "data/zarr.json", ".pelagos/shards/0.json", "time/c/0")
    for file in files:
        spoiled = tmp_path / "spoiled.zarr"
        shutil.rmtree(spoiled, ignore_errors=True)
        shutil.copytree(whole, spoiled)
        spoil(spoiled / file)
        for arguments in (
            ["data", "inspect", str(spoiled)],
            ["data", "verify", str(spoiled)],
            ["data", "statistics", str(spoiled)],
            ["data", "copy", str(spoiled), str(tmp_path / f"copy-{file.replace('/', '-')}")],
        ):
            shown = CliRunner().invoke(app, arguments)
            assert shown.exception is None or isinstance(shown.exception, SystemExit), (
                file,
                arguments,
                shown.exception,
            )
