"""Failures are told apart by what can be done about them; shipped code is found again by content."""

import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from pelagos.infra.clusters.base import BOOTSTRAP
from pelagos.infra.storage.local import DirectoryStore
from pelagos.jobs.submission.shipping.package import FILES, WHEEL, build_archives, upload
from pelagos.platform.records.causes import Retry, classify, decide_retry


@pytest.mark.parametrize(
    ("cause", "kind"),
    [
        ("ConfigError: job x: 1 problem", "user error"),
        ("TrainingDiverged: step 3: the loss is nan", "user error"),
        ("CallbackError: callback w:W, on_step at step 6: OverflowError: too large", "user error"),
        (
            "CallbackError: callback w:W, on_step at step 6: ConnectionError: refused",
            "infrastructure",
        ),
        ("PluginError: plugin lab cannot be imported: LookupError: none", "user error"),
        ("UnknownNameError: unknown loss 'x'; all: l1", "user error"),
        ("NameError: name 'torhc' is not defined", "user error"),
        ("DatasetError: /data/a.zarr: shard 3 is damaged (checksum)", "data"),
        ("StorageError: bucket 'b', key 'k': access refused (403)", "data"),
        ("StorageError: bucket 'b': no success in 9 attempts over 60.0 s", "infrastructure"),
        ("OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB", "out of memory"),
        ("RuntimeError: DefaultCPUAllocator: can't allocate memory", "out of memory"),
        (
            "OutOfMemoryError: Task was killed due to the node running low on memory",
            "out of memory",
        ),
        ("job 7: OUT_OF_MEMORY", "out of memory"),
        ("ActorDiedError: The actor died unexpectedly", "node lost"),
        ("WorkerGroupError: RuntimeError: Connection closed by peer [10.0.0.2]", "node lost"),
        ("job 7: NODE_FAIL", "node lost"),
        ("ValueError: Default process group has not been initialized, please", "node lost"),
        ("DistNetworkError: The client socket has failed to connect", "node lost"),
        ("DistBackendError: Watchdog caught collective operation timeout", "hang"),
        ("RuntimeError: Timed out waiting 60000ms for recv operation", "hang"),
        ("job 7: PREEMPTED", "preempted"),
        ("OSError: No space left on device", "infrastructure"),
        ("something nobody has seen", "infrastructure"),
    ],
)
def test_a_cause_is_classified(cause: str, kind: str) -> None:
    assert classify(cause) == kind


def test_only_what_another_try_can_help_is_tried_again() -> None:
    def again(kind: str, restarts: int = 0, may: bool = False, has: bool = False) -> bool:
        return decide_retry(kind, restarts, 2, may, has).again

    assert not again("user error")
    assert not again("data")
    assert all(again(kind) for kind in ("node lost", "hang", "preempted", "infrastructure"))
    assert not again("node lost", restarts=2)
    assert not again("out of memory")
    assert again("out of memory", may=True)
    assert not again("out of memory", may=True, has=True)
    assert decide_retry("out of memory", 5, 2, True, False).smaller_micro_batch


@pytest.mark.parametrize("restarts", [0, 1, 2, 3])
def test_a_retry_says_why_and_how_often(restarts: int) -> None:
    for kind in ("node lost", "hang", "preempted", "infrastructure"):
        left = restarts < 2
        why = f"retry {restarts + 1} of 2" if left else "all 2 retries are used"
        assert decide_retry(kind, restarts, 2, True, True) == Retry(left, why, False)
    for kind in ("user error", "data"):
        only = Retry(False, f"a failure of kind {kind!r} would only repeat", False)
        assert decide_retry(kind, restarts, 2, True, False) == only
    # memory has a try of its own, at half the micro-batch, however often other causes struck
    for shrunk in (False, True):
        off = decide_retry("out of memory", restarts, 2, False, shrunk)
        assert off == Retry(False, "out of memory; health.shrink_micro_batch is off", False)
    once = decide_retry("out of memory", restarts, 2, True, False)
    assert once == Retry(True, "once more at half the micro-batch", True)
    twice = decide_retry("out of memory", restarts, 2, True, True)
    assert twice == Retry(False, "out of memory again at half the micro-batch", False)


def test_the_same_code_has_the_same_digest_and_is_sent_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text("x = 1\n")
    first, contents = build_archives(["mine.py"])
    os.utime("mine.py", (1, 1))
    again, _ = build_archives(["mine.py"])
    assert first == again
    store = DirectoryStore(str(tmp_path / "storage"))
    assert upload(store, contents) == first.num_bytes
    assert upload(store, contents) == 0
    Path("mine.py").write_text("x = 2\n")
    changed, contents = build_archives(["mine.py"])
    assert changed.digest != first.digest
    assert upload(store, contents) > 0


def test_files_from_elsewhere_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "secret").write_text("x")
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(ValueError, match="lies outside"):
        build_archives(["../secret"])
    Path("link").symlink_to(tmp_path / "secret")
    with pytest.raises(ValueError, match="lies outside"):
        build_archives(["link"])
    with pytest.raises(ValueError, match="does not exist"):
        build_archives(["nothing"])


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Arguments of bootstrap.py for a wheel whose Pelagos only says hello."""
    module = "import os, sys; print('hello', sys.argv[1:], os.environ.get('PLANTED'))"
    arguments = []
    for name, files in (
        (WHEEL, {"pelagos/__init__.py": "", "pelagos/jobs/submission/driver.py": module}),
        (FILES, {"a.txt": "a"}),
    ):
        path = tmp_path / name
        with zipfile.ZipFile(path, "w") as archive:
            for file, text in files.items():
                archive.writestr(file, text)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        option = name.partition(".")[0].replace("pelagos", "wheel")
        arguments += [f"--{option}", str(path), f"--{option}-sha256", digest]
    monkeypatch.setenv("PELAGOS_CACHE", str(tmp_path / "cache"))
    return [*arguments, "--", "storage", "run", "1"]


def _bootstrap(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(BOOTSTRAP), *arguments], capture_output=True, text=True
    )


def test_bootstrap_becomes_the_shipped_code(shipped: list[str]) -> None:
    for _ in range(2):  # the second time from the cache
        done = _bootstrap(shipped)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("hello ['storage', 'run', '1']")


def test_an_image_without_what_pelagos_needs_is_named(shipped: list[str]) -> None:
    bare = [sys.executable, "-S", str(BOOTSTRAP), *shipped]  # without site-packages
    done = subprocess.run(bare, capture_output=True, text=True)
    assert done.returncode == 3
    assert "lacks torch, ray, zarr" in done.stderr
    assert "use an image or environment with Pelagos installed" in done.stderr


def test_bootstrap_refuses_code_that_was_changed(shipped: list[str]) -> None:
    shipped[3] = "0" * 64
    done = _bootstrap(shipped)
    assert done.returncode == 3
    assert "somebody changed it; submit again" in done.stderr


def test_secrets_come_only_from_a_private_file(
    shipped: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets = tmp_path / "secrets"
    secrets.write_text("# keys\nexport PLANTED='value-of-secret'\n")
    secrets.chmod(0o644)
    monkeypatch.setenv("PELAGOS_SECRETS_FILE", str(secrets))
    done = _bootstrap(shipped)
    assert done.returncode == 3
    assert "others can read it" in done.stderr
    assert "value-of-secret" not in done.stderr + done.stdout
    secrets.chmod(0o600)
    assert "value-of-secret" in _bootstrap(shipped).stdout
