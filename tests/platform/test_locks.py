"""Nobody who may only read a place can hold its locks, nor do programs that a holder starts."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pelagos.data_pipelines.management.exclusive import LOCK_KEY, _hold_file
from pelagos.data_pipelines.store.node_cache import CacheSettings, NodeCache
from pelagos.data_pipelines.store.object_store import LocalStore
from pelagos.infra.storage.files import open_lock_file
from pelagos.infra.storage.read_policy import ReadCounters
from pelagos.platform.records.runs import RunDirectory, RunError

NOBODY = 65534
# What the other user tries: to open the file for reading, which is enough for flock, and to lock it.
TAKE = """\
import fcntl, os, sys
os.setgroups([])
os.setgid({user})
os.setuid({user})
try:
    descriptor = os.open(sys.argv[1], os.O_RDONLY)
except PermissionError:
    print("refused", flush=True)
else:
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    print("locked", flush=True)
sys.stdin.read()
"""
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user takes root")


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that everyone may read, as usual for results; pytest's own are private."""
    path = Path(tempfile.mkdtemp(prefix="pelagos-test-"))
    path.chmod(0o755)
    old = os.umask(0o022)
    yield path
    os.umask(old)
    shutil.rmtree(path)


def lock_of_a_run(place: Path) -> Path:
    with RunDirectory(place).lock():
        return place / ".driver.lock"


def lock_of_a_dataset(place: Path) -> Path:
    with _hold_file(LocalStore(place)):
        kept = place / "kept"
        os.link(place / LOCK_KEY, kept)  # its holder removes it at the end
    return kept


def lock_of_a_cache(place: Path) -> Path:
    cache = NodeCache(CacheSettings(str(place), 2**20), "a" * 64, 1, ReadCounters())
    cache.close()
    return next(place.rglob("usage.lock"))


LOCKS = [lock_of_a_run, lock_of_a_dataset, lock_of_a_cache]


@needs_root
@pytest.mark.parametrize("make", LOCKS)
def test_another_user_who_can_read_cannot_lock(make: Callable[[Path], Path], place: Path) -> None:
    lock = make(place)
    readable = place / "readable"  # the attack works where a file lets it
    readable.write_text("")
    for path, expected in ((readable, "locked"), (lock, "refused")):
        with subprocess.Popen(
            [sys.executable, "-c", TAKE.format(user=NOBODY), str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as other:
            assert other.stdout is not None
            assert other.stdout.readline().strip() == expected
            descriptor = os.open(path, os.O_RDWR)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                is_free = True
            except BlockingIOError:
                is_free = False
            finally:
                os.close(descriptor)
            assert is_free is (expected == "refused")
            other.kill()


@pytest.mark.parametrize("make", LOCKS)
def test_every_lock_is_its_owners(make: Callable[[Path], Path], place: Path) -> None:
    assert stat.S_IMODE(make(place).stat().st_mode) == 0o600
    for path in place.rglob("*.lock"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_a_lock_of_an_earlier_version_is_closed_and_a_groups_stays_open(place: Path) -> None:
    lock = place / ".driver.lock"
    lock.touch(mode=0o644)
    with RunDirectory(place).lock():
        assert stat.S_IMODE(lock.stat().st_mode) == 0o600
    place.chmod(0o775)  # a group that works in one directory
    with RunDirectory(place).lock():
        assert stat.S_IMODE(lock.stat().st_mode) == 0o660
        with pytest.raises(RunError, match="in use by another process"), RunDirectory(place).lock():
            pass


def test_a_lock_is_no_link_and_no_pipe(place: Path) -> None:
    target = place / "target"
    target.write_text("content")
    (place / "link").symlink_to(target)
    os.mkfifo(place / "pipe")
    for name in ("link", "pipe"):
        with pytest.raises(OSError, match=rf"{name}"):
            os.close(open_lock_file(place / name))
    assert target.read_text() == "content"


HOLD = """\
import subprocess, sys
from pathlib import Path
from pelagos.platform.records.runs import RunDirectory
with RunDirectory(Path(sys.argv[1])).lock():
    child = subprocess.Popen(["sleep", "60"], close_fds=False)
    print(child.pid, flush=True)
    sys.stdin.read()
"""


def test_a_killed_holder_leaves_no_lock_with_what_it_started(place: Path) -> None:
    run = RunDirectory(place)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(place)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    child = int(holder.stdout.readline())
    try:
        assert run.is_locked()
        holder.kill()
        holder.wait()
        os.kill(child, 0)  # it is alive
        assert not run.is_locked()
    finally:
        os.kill(child, signal.SIGKILL)


@needs_root
def test_a_run_of_another_user_is_named_so(place: Path) -> None:
    lock_of_a_run(place)
    script = f"""\
import os
from pathlib import Path
from pelagos.platform.records.runs import RunDirectory, RunError
os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})
try:
    with RunDirectory(Path({str(place)!r})).lock():
        print("locked")
except RunError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "belongs to another user" in done.stdout, done.stderr
