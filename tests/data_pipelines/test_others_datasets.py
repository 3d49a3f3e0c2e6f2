"""A dataset that somebody else made, or spoiled, is read or rejected: it neither hangs nor raises what
no reader of an error understands."""

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from pelagos.cli.main import app
from pelagos.data_pipelines.store.errors import DatasetError
from pelagos.data_pipelines.store.node_cache import CacheSettings, NodeCache
from pelagos.data_pipelines.store.object_store import ReadCounters

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


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.h5", "a.nc", "a.nii", "a.png", "a.json"])
def test_a_pipe_among_the_files_of_a_source_is_named_and_not_read(
    tmp_path: Path, name: str
) -> None:
    folder = tmp_path / "source" / "below"
    folder.mkdir(parents=True)
    os.mkfifo(folder / name)
    for arguments in (
        ["convert", str(folder / name), str(tmp_path / "out.zarr")],
        ["convert", str(folder), str(tmp_path / "out.zarr")],
        ["convert", str(folder.parent), str(tmp_path / "out.zarr")],
        ["convert", str(folder / name), "--draft-mapping"],
        ["convert", str(folder), "--draft-mapping"],
    ):
        shown = CliRunner().invoke(app, arguments)
        assert shown.exit_code == 2, (arguments, shown.output)
        assert "is a pipe" in shown.output.replace("\n", " ")


@pytest.mark.parametrize("file", ["../pipe.npy", "pipe*.npy"])
def test_a_pipe_that_a_mapping_names_is_not_read(tmp_path: Path, file: str) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    np.save(folder / "u.npy", np.zeros((4, 3, 4, 4), np.float32))
    os.mkfifo((folder if "*" in file else tmp_path) / "pipe.npy")
    mapping = tmp_path / "mapping.yaml"
    mapping.write_text(
        "fields: [{file: u.npy, axes: [n, t, y, x], names: [u]}]\n"
        f"parameters: {{nu: {{file: '{file}'}}}}\n"
    )
    arguments = ["convert", str(folder), str(tmp_path / "out.zarr"), "--mapping", str(mapping)]
    shown = CliRunner().invoke(app, arguments)
    assert shown.exit_code == 2
    assert "is a pipe" in shown.output.replace("\n", " ")


@pytest.mark.parametrize("name", ["pelagos-cache-1", "pelagos-cache-1/aaaa"])
def test_a_link_in_a_shared_cache_leads_nowhere(tmp_path: Path, name: str) -> None:
    elsewhere, shared = tmp_path / "elsewhere", tmp_path / "shared"
    for folder in (elsewhere, (shared / name).parent):
        folder.mkdir(parents=True, exist_ok=True)
    (shared / name).symlink_to(elsewhere)
    settings = CacheSettings(str(shared), 10**6)
    with pytest.raises(DatasetError, match="is a link"):
        NodeCache(settings, "aaaa", 100, ReadCounters())
    assert list(elsewhere.rglob("*.lock")) == []


def test_a_pipe_in_a_shared_cache_is_dropped(tmp_path: Path) -> None:
    cache = NodeCache(CacheSettings(str(tmp_path), 10**6), "aaaa", 100, ReadCounters())
    os.mkfifo(cache.folder / "x.block")
    assert cache.read("x", 10, [(0, 10)], [np.empty(10, np.uint8)], verify=True) is False
    cache.close()
