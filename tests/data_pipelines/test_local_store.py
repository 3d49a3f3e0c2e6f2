"""Files under one folder: whole when they are there, read where they should be, and nowhere else."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from pelagos.data_pipelines.store import DatasetError
from pelagos.data_pipelines.store.errors import ObjectMissingError
from pelagos.data_pipelines.store.object_store import open_store
from pelagos.infra.storage import local as module
from pelagos.infra.storage.files import below


@pytest.fixture
def store(tmp_path: Path) -> module.LocalStore:
    found = open_store(str(tmp_path / "store"))
    assert isinstance(found, module.LocalStore)
    return found


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_path_is_a_folder(tmp_path: Path, scheme: str) -> None:
    store = open_store(f"{scheme}{tmp_path}/store")
    store.write("a/b", b"content")
    assert (tmp_path / "store/a/b").read_bytes() == b"content"
    assert store.address("a/b") == f"{tmp_path}/store/a/b"
    assert store.uri == f"{tmp_path}/store"


def test_objects_are_written_whole_read_listed_and_deleted(
    store: module.LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write("a/b", b"first")
    store.write("a/b", b"second")
    store.write("c", b"")
    assert (store.read("a/b"), store.read("c")) == (b"second", b"")
    assert store.sizes() == {"a/b": 6, "c": 0}
    assert store.sizes("a") == {"a/b": 6}
    assert store.create("new", b"mine")
    assert not store.create("new", b"another's")
    assert store.read("new") == b"mine"
    (store.root / "nowhere").symlink_to(store.root / "missing")
    assert "nowhere" not in store.sizes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        for act in (store.write, store.create):
            with pytest.raises(OSError, match="No space left"):
                act("c", b"half")
    assert store.read("c") == b""
    assert sorted(store.sizes()) == ["a/b", "c", "new"]  # no half file is left
    store.delete(["a/b", "missing", "new"])
    assert store.sizes() == {"c": 0}
    for key in ("a/b", "c/below"):
        with pytest.raises(ObjectMissingError, match=f"{store.root}/{key} does not exist"):
            store.read(key)
        with pytest.raises(ObjectMissingError, match=f"{store.root}/{key} does not exist"):
            store.read_ranges(key, [(0, 1)])


@pytest.mark.parametrize("key", ["../outside", "a/../../outside", "/etc/passwd", "a\0b"])
def test_a_key_that_leads_out_is_refused(store: module.LocalStore, key: str) -> None:
    (store.root.parent / "outside").write_bytes(b"secret")
    store.write("a/b", b"")
    for act in (store.read, store.path, lambda k: store.write(k, b""), lambda k: store.delete([k])):
        with pytest.raises(
            DatasetError, match="leads out of .*; Pelagos neither reads nor writes there"
        ):
            act(key)
    assert (store.root.parent / "outside").read_bytes() == b"secret"
    assert store.path("a/../c") == store.root / "c"  # stays inside
    assert store.path("") == store.root


@pytest.mark.parametrize("place", ["../store", "{}/there/../store", "../{}/../store"])
def test_a_folder_may_be_named_by_a_path_that_goes_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    here = tmp_path / "here"
    for folder in (here, tmp_path / "there", tmp_path / "store"):
        folder.mkdir()
    monkeypatch.chdir(here)
    named = place.format("there" if place.startswith("..") else tmp_path)
    store = open_store(named)
    store.write("a/b", b"content")
    assert (tmp_path / "store/a/b").read_bytes() == b"content"
    assert store.read("a/b") == b"content"
    assert below(Path(named), "a/b").read_bytes() == b"content"
    for outside in ("../here/x", "..", "/etc/passwd"):
        with pytest.raises(DatasetError, match="leads out of"):
            store.read(outside)
        with pytest.raises(ValueError, match="leads out of"):
            below(Path(named), outside)


def test_links_inside_are_followed_and_links_out_are_not(store: module.LocalStore) -> None:
    outside = store.root.parent / "outside"
    outside.mkdir()
    (outside / "file").write_bytes(b"secret")
    store.write("a/b", b"own")
    (store.root / "link").symlink_to(store.root / "a/b")
    assert store.read("link") == b"own"
    assert bytes(store.read_ranges("link", [(1, 2)])[0]) == b"wn"
    (store.root / "out").symlink_to(outside / "file")
    (store.root / "folder").symlink_to(outside)
    beside = store.root.parent / "store-beside"  # begins like the folder's name
    beside.mkdir()
    (beside / "file").write_bytes(b"secret")
    (store.root / "near").symlink_to(beside / "file")
    for key in ("out", "folder/file", "near"):
        with pytest.raises(DatasetError, match="leads out of .* over a link, to "):
            store.read(key)
    with pytest.raises(DatasetError, match="leads out of .* over a link"):
        store.write("folder/new", b"")
    whole = store.root.parent / "whole"
    whole.symlink_to(store.root)  # is the choice of whoever names it
    assert open_store(str(whole)).read("a/b") == b"own"


@pytest.mark.parametrize("key", ["plain", "link"])
def test_no_pipe_is_opened(store: module.LocalStore, key: str) -> None:
    store.write("file", b"")
    os.mkfifo(store.root / "plain")
    (store.root / "link").symlink_to(store.root / "plain")
    with pytest.raises(OSError, match="is not a regular file"):
        store.read(key)


def test_ranges_are_read_into_the_memory_that_is_given(store: module.LocalStore) -> None:
    content = bytes(range(200))
    store.write("a", content)
    ranges = [(0, 3), (150, 50), (7, 0), (5, 10)]
    for scratch in (None, np.zeros(70, np.uint8)):
        found = store.read_ranges("a", ranges, scratch)
        assert [bytes(part) for part in found] == [content[at : at + n] for at, n in ranges]
        if scratch is not None:
            assert all(np.shares_memory(part, scratch) for part in found if len(part))
    told = r"a ends at byte 200, but bytes up to 210 are needed: the file is cut short"
    with pytest.raises(DatasetError, match=told):
        store.read_ranges("a", [(190, 20)])


def test_files_are_kept_open_up_to_a_number(
    store: module.LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_OPEN_FILES", 2)
    for key in "abc":
        store.write(key, key.encode())
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        for key in "abc":
            assert bytes(store.read_ranges(key, [(0, 1)])[0]) == key.encode()
    assert len(os.listdir("/proc/self/fd")) == before + 2
    (store.root / "a").unlink()
    assert bytes(store.read_ranges("a", [(0, 1)])[0]) == b"a"  # of the file that is open
    store.close()
    assert len(os.listdir("/proc/self/fd")) == before
    store.close()
    with pytest.raises(ObjectMissingError):
        store.read_ranges("a", [(0, 1)])
