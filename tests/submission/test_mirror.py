"""A run's directory in storage: what arrives, what is left out, and folders that vanish meanwhile."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pelagos.infra.storage.local import DirectoryStore
from pelagos.jobs.submission.shipping.mirror import PART_BYTES, Mirror


@contextmanager
def folders_that_come_and_go(*parents: Path) -> Iterator[None]:
    """In each parent, folders of folders are written, renamed and removed all the time."""
    has_ended = threading.Event()

    def churn() -> None:
        number = 0
        while not has_ended.is_set():
            for parent in parents:
                begun, complete = parent / f".begun-{number}", parent / f"done-{number}"
                (begun / "part" / "of").mkdir(parents=True)
                (begun / "part" / "of" / "it").write_bytes(b"0")
                begun.rename(complete)
                shutil.rmtree(complete)
                number += 1

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        yield
    finally:
        has_ended.set()
        thread.join()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    run = tmp_path / "run"
    for name in ("job.yaml", "plots/a.png", "checkpoints/step-1/weights", "ray/x", ".lock"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(name)
    return run


def test_what_changed_is_sent_and_comes_back(run: Path, tmp_path: Path) -> None:
    store = DirectoryStore(str(tmp_path / "storage"))
    mirror = Mirror(store, "runs/a", run)
    log = run / "log.log"
    log.write_bytes(b"a" * (PART_BYTES + 10))
    first = mirror.push()
    assert mirror.push() == 0
    with log.open("ab") as file:
        file.write(b"b" * 5)
    assert mirror.push() == 15 < first  # the last part alone
    back = tmp_path / "back"
    assert Mirror(store, "runs/a", back).pull()
    files = {str(p.relative_to(back)) for p in back.rglob("*") if p.is_file()}
    assert files == {"job.yaml", "plots/a.png", "log.log"}
    assert (back / "log.log").read_bytes() == log.read_bytes()


def test_folders_that_vanish_while_it_looks_are_no_error(run: Path, tmp_path: Path) -> None:
    storage = tmp_path / "storage"
    mirror = Mirror(DirectoryStore(str(storage)), "runs/a", run)
    (storage / "other").mkdir(parents=True)
    with folders_that_come_and_go(run / "checkpoints", run / "plots", storage / "other"):
        for number in range(100):
            (run / "job.yaml").write_text(str(number))
            mirror.push()
            mirror.store.sizes()
    back = tmp_path / "back"
    assert Mirror(mirror.store, "runs/a", back).pull()
    assert (back / "job.yaml").read_text() == "99"


class CountingStore(DirectoryStore):
    """Notes the keys that are read."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self.keys: list[str] = []

    def read(self, key: str) -> bytes:
        self.keys.append(key)
        return super().read(key)


def test_a_second_look_fetches_what_is_new(tmp_path: Path) -> None:
    source, copy = tmp_path / "source", tmp_path / "copy"
    source.mkdir()
    store = CountingStore(str(tmp_path / "storage"))
    sender, receiver = Mirror(store, "r", source), Mirror(store, "r", copy)
    content = bytes(range(251)) * (2 * PART_BYTES // 251) + b"x" * 1000  # two parts and a bit
    (source / "metrics.jsonl").write_bytes(content)
    sender.push()
    receiver.pull()
    assert (copy / "metrics.jsonl").read_bytes() == content
    assert len(store.keys) == 3
    with (source / "metrics.jsonl").open("ab") as file:
        file.write(b"more")
    sender.push()
    store.keys.clear()
    receiver.pull()
    assert (copy / "metrics.jsonl").read_bytes() == content + b"more"
    assert store.keys == ["r/parts/metrics.jsonl/00002"]
    # a resume puts a shorter file in its place, which grows beyond the old one
    (source / "metrics.jsonl").unlink()
    (source / "metrics.jsonl").write_bytes(b"anew")
    sender.push()
    receiver.pull()
    assert (copy / "metrics.jsonl").read_bytes() == b"anew"
    with (source / "metrics.jsonl").open("ab") as file:
        file.write(content)
    sender.push()
    receiver.pull()
    assert (copy / "metrics.jsonl").read_bytes() == b"anew" + content
    # without the copy everything is fetched again
    (copy / "metrics.jsonl").unlink()
    receiver.pull()
    assert (copy / "metrics.jsonl").read_bytes() == b"anew" + content


def test_a_part_of_a_directory_is_sent_alone(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for name in ("evaluation/test/report.html", "evaluations.txt", "metrics.jsonl"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(name)
    store = DirectoryStore(str(tmp_path / "storage"))
    Mirror(store, "r", source).push("evaluation")
    assert list(store.sizes()) == ["r/files/evaluation/test/report.html"]


def test_files_that_are_never_sent_are_not_brought(tmp_path: Path) -> None:
    store = DirectoryStore(str(tmp_path / "storage"))
    store.write("r/files/.copy.json", b"{}")
    store.write("r/files/a/.hidden", b"{}")
    store.write("r/files/job.yaml", b"job")
    Mirror(store, "r", tmp_path / "copy").pull()
    assert [path.name for path in (tmp_path / "copy").rglob("*") if path.is_file()] == ["job.yaml"]
