"""On a machine that others use too: nobody joins the embedded Ray, nobody prepares our directories."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pelagos.infra.clusters import bootstrap
from pelagos.infra.private_directory import (
    cache_directory,
    private_directory,
    temporary_directory,
)
from pelagos.infra.ray_cluster import LONGEST_DIRECTORY

LISTENING = """
import json, os, psutil, ray, subprocess, sys
from pelagos.infra.ray_cluster import ray_cluster
with ray_cluster(None, num_cpus=1):
    @ray.remote
    def token():
        return os.environ["RAY_AUTH_TOKEN"]
    inside = ray.get(token.remote())
    me = psutil.Process()
    hosts = sorted({
        c.laddr.ip
        for p in [me, *me.children(recursive=True)]
        for c in p.net_connections("tcp")
        if c.status == psutil.CONN_LISTEN
    })
    context = ray.get_runtime_context()
    bare = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    bare["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # else it would look on another interface
    join = f"import ray; ray.init(address={context.gcs_address!r}, log_to_driver=False)"
    def joins(**extra):
        environment = bare | extra
        try:
            return subprocess.run(
                [sys.executable, "-c", join], env=environment, capture_output=True, timeout=20
            ).returncode == 0
        except subprocess.TimeoutExpired:  # it tries again and again
            return False
    joined = [
        joins(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=inside),
        joins(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="0" * 64),
        joins(RAY_AUTH_MODE="disabled"),
    ]
    place = ray._private.worker._global_node.get_temp_dir_path()
    print("told", json.dumps([inside, hosts, joined, place]))
print("after", json.dumps({k: v for k, v in os.environ.items() if "TOKEN" in k}))
"""


@pytest.mark.ray
def test_the_embedded_ray_is_of_this_machine_and_this_process_alone(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment |= {"HOME": str(home), "RAY_AUTH_TOKEN": "of-another-cluster"}
    done = subprocess.run(
        [sys.executable, "-c", LISTENING],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = dict(
        line.split(" ", 1) for line in done.stdout.splitlines() if line[:4] in ("told", "afte")
    )
    token, hosts, joined, place = json.loads(lines["told"])
    assert len(token) == 64
    assert token != "of-another-cluster"
    assert hosts
    assert {host.removeprefix("::ffff:") for host in hosts} <= {"127.0.0.1", "::1"}
    assert joined == [True, False, False]
    assert Path(place) == temporary_directory() / "ray"
    assert Path(place).parent.stat().st_mode & 0o777 == 0o700
    # the token of the user's other cluster is theirs again, and none was written to the home
    assert json.loads(lines["after"]) == {"RAY_AUTH_TOKEN": "of-another-cluster"}
    assert [p for p in home.rglob("*") if "token" in p.name] == []


def test_a_directory_that_somebody_prepared_is_refused(tmp_path: Path) -> None:
    made = private_directory(tmp_path / "mine")
    assert made.stat().st_mode & 0o777 == 0o700
    assert private_directory(made) == made
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(elsewhere)
    (tmp_path / "file").touch()
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o770)
    for name, reason in (("link", "is a link"), ("file", "not a directory"), ("open", "mode 0770")):
        with pytest.raises(PermissionError, match=reason):
            private_directory(tmp_path / name)


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives a directory to somebody else")
def test_a_directory_of_another_user_is_refused(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir(mode=0o700)
    os.chown(tmp_path / "theirs", 12345, -1)
    with pytest.raises(PermissionError, match="belongs to user 12345"):
        private_directory(tmp_path / "theirs")


def test_runs_of_a_submission_keep_their_files_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tempfile

    from pelagos.infra.storage.remote import RemoteStore
    from pelagos.jobs.submission.driver import scratch_directory

    monkeypatch.delenv("PELAGOS_SCRATCH", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    store = RemoteStore("s3://bucket/place", {})
    assert scratch_directory(store).parent == tmp_path / f"pelagos-{os.getuid()}"
    (tmp_path / f"pelagos-{os.getuid()}").chmod(0o777)
    with pytest.raises(PermissionError, match="others can enter"):
        scratch_directory(store)


def test_sockets_fit_where_temporary_files_are_far_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on clusters whose scheduler gives each job a directory: a socket's path would be too long."""
    import tempfile

    far = tmp_path / ("deep" * 12)
    far.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(far))
    assert temporary_directory() == far / f"pelagos-{os.getuid()}"
    near = temporary_directory(LONGEST_DIRECTORY)
    session = "ray/session_2026-11-30_09-50-49_431504_1073188/sockets/plasma_store"
    assert len(str(near / session)) <= 107
    assert near.stat().st_mode & 0o777 == 0o700


def test_code_and_logs_lie_where_nobody_else_can_put_any(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a shared PELAGOS_CACHE, somebody else's directory under the digest of one's code was run."""
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    monkeypatch.setenv("PELAGOS_CACHE", str(shared))
    digest = "0" * 64
    planted = shared / "code" / digest
    planted.mkdir(parents=True)
    asked: list[str] = []

    def fetched(uri: str) -> bytes:
        asked.append(uri)
        return b"not what was shipped"

    monkeypatch.setattr(bootstrap, "fetched", fetched)
    with pytest.raises(SystemExit):
        bootstrap.unpacked("s3://bucket/code", digest)
    assert asked == ["s3://bucket/code"]
    own = shared / f"pelagos-{os.geteuid()}"
    assert (cache_directory(), bootstrap.cache_directory()) == (own, own)
    assert own.stat().st_mode & 0o777 == 0o700
    own.chmod(0o777)
    with pytest.raises(PermissionError):
        cache_directory()
    with pytest.raises(SystemExit):
        bootstrap.cache_directory()


def test_a_cache_of_ones_own_is_used_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PELAGOS_CACHE", str(tmp_path / "mine"))
    assert cache_directory() == bootstrap.cache_directory() == tmp_path / "mine"
