"""A node fetches a checkpoint from object storage once, whatever its number of ranks; bytes are counted
on their way from a real S3 server."""

import ctypes
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from fault_proxy import Fault, FaultProxy
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from pelagos.infra.storage.remote import StorageError
from pelagos.jobs.training.blueprint import build_parts
from pelagos.platform.checkpoint import CheckpointError, CheckpointStore
from pelagos.platform.checkpoint.group import CheckpointGroup
from pelagos.platform.checkpoint.node_copy import _portable, shared_copy
from pelagos.platform.config import PretrainJob, resolve_yaml
from pelagos.platform.config.load import load_job
from pelagos.platform.records.runs import RunDirectory
from pelagos.platform.tensor_layout import local_part
from pelagos.platform.trainer import train

STATE = {"step": 1, "best": None, "fresh": ["head"]}
CLONE_NEWNS, MS_REC, MS_PRIVATE = 0x00020000, 0x4000, 0x40000  # <linux/sched.h>, <sys/mount.h>


def tensors() -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    found = {f"model.{i}": torch.randn(600, 100, generator=draw) for i in range(8)}
    return {**found, "model.few": torch.randn(3, generator=draw)}


def laid_out(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Half of them whole on every rank, as under ddp, half in shards, as under fsdp."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    return {
        name: distribute_tensor(tensor, mesh, [Shard(0)]) if i % 2 else tensor.clone()
        for i, (name, tensor) in enumerate(tensors.items())
    }


def have_a_disk_of_ones_own(path: str) -> None:
    """Mount an empty disk that other processes do not see, as on another node."""
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.unshare(CLONE_NEWNS) == 0
    assert libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None) == 0
    assert libc.mount(b"tmpfs", path.encode(), b"tmpfs", 0, None) == 0


def load_here(
    uri: str,
    options: dict[str, Any],
    local: str,
    alone_from: int = 99,
    timeout_seconds: int = 60,
) -> str:
    """Load with the ranks of the group; return "" or what was raised, and what is left on disk."""
    dist.init_process_group("gloo")
    if dist.get_rank() >= alone_from:
        have_a_disk_of_ones_own(local)
    before, tempfile.tempdir = tempfile.tempdir, local
    loaded = laid_out({n: torch.zeros_like(t) for n, t in tensors().items()})
    try:
        report = CheckpointStore(uri, options, timeout_seconds).load(1, loaded)
    except (CheckpointError, StorageError) as error:
        assert not any(bool(local_part(t).any()) for t in loaded.values())
        return f"{type(error).__name__}: {error}"
    finally:
        tempfile.tempdir = before
        dist.barrier()
        assert not [name for name in os.listdir(local) if name.startswith("pelagos")]
    assert report.trainer_state == STATE
    whole = {n: t.full_tensor() if isinstance(t, DTensor) else t for n, t in loaded.items()}
    assert all(torch.equal(whole[n], t) for n, t in tensors().items())
    return ""


def share_here(
    local: str, dies: bool = False, alone_from: int = 99, without_room: int = 99
) -> tuple[str, int, int]:
    """Share a file with the ranks of the group, the last of which reads late.

    Ranks from `alone_from` on have each a disk of their own; one has no room for a copy.
    """
    dist.init_process_group("gloo")
    rank, before = dist.get_rank(), tempfile.tempdir
    if rank >= alone_from:
        have_a_disk_of_ones_own(local)

    def fetch(directory: Path) -> None:
        if dies:
            os.kill(os.getpid(), signal.SIGKILL)
        (directory / "file").write_text(f"by rank {rank}")

    tempfile.tempdir = local if rank != without_room else f"{local}/missing"
    try:
        with shared_copy(fetch, CheckpointGroup(60)) as copy:
            if rank == dist.get_world_size() - 1:
                time.sleep(1.0)
            return (copy.directory / "file").read_text(), copy.reader, copy.num_readers
    finally:
        tempfile.tempdir = before


class OddError(Exception):
    """Cannot be made again from its arguments, so it stays on the rank that met it."""

    def __init__(self, rank: int, told: str) -> None:
        super().__init__(f"{told} of rank {rank}")


def fail_here(local: str) -> str:
    """Fetch in vain on every rank, each for its own reason; return what was raised."""
    dist.init_process_group("gloo")
    rank, before = dist.get_rank(), tempfile.tempdir
    have_a_disk_of_ones_own(local)

    def fetch(directory: Path) -> None:
        raise OddError(rank, "the trouble") if rank else ValueError("the trouble of rank 0")

    tempfile.tempdir = local
    try:
        with shared_copy(fetch, CheckpointGroup(60)):
            return "nothing"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    finally:
        tempfile.tempdir = before


def train_here(path: str, overrides: list[str], until_step: int, options: dict[str, Any]) -> int:
    """Take part in a run as one rank, from its newest checkpoint on; return the last step."""
    job = load_job(path, overrides)
    assert isinstance(job, PretrainJob)
    run = RunDirectory(f"{job.runs_dir}/{job.name}")
    return train(job, run, build_parts, options, until_step=until_step).step


class Remote:
    """A checkpoint in object storage, seen through a proxy that counts."""

    def __init__(self, server: Any, pool: Any, proxy: FaultProxy, local: Path) -> None:
        self.pool = pool
        self.proxy = proxy
        self.uri = server.new_uri("/run")
        self.direct = CheckpointStore(self.uri, server.storage_options)
        self.direct.save(1, tensors(), STATE)
        self.num_bytes = sum(self.direct.place.sizes(1).values())
        self.options = {**server.storage_options, "endpoint_url": proxy.endpoint}
        self.local = local

    def load(self, world_size: int, **arguments: Any) -> list[str]:
        return self.pool.call(  # type: ignore[no-any-return]
            world_size,
            __file__,
            "load_here",
            timeout=60.0,
            uri=self.uri,
            options=self.options,
            local=str(self.local),
            **arguments,
        )


@pytest.fixture
def remote(s3_server: Any, rank_pool: Any, tmp_path: Path) -> Iterator[Remote]:
    proxy = FaultProxy(s3_server.endpoint)
    local = tmp_path / "node"
    local.mkdir()
    yield Remote(s3_server, rank_pool, proxy, local)
    proxy.close()


@pytest.mark.s3
@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_of_a_node_fetch_a_checkpoint_once(remote: Remote, world_size: int) -> None:
    assert remote.load(world_size) == [""] * world_size
    assert remote.num_bytes <= remote.proxy.num_bytes <= 1.1 * remote.num_bytes


@pytest.mark.s3
def test_ranks_that_share_no_disk_fetch_each_their_own(remote: Remote) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can mount a disk")
    try:
        assert remote.load(4, alone_from=2) == [""] * 4
        nodes = 3  # ranks 0 and 1 together, 2 and 3 each alone
        assert remote.proxy.num_bytes == pytest.approx(nodes * remote.num_bytes, rel=0.1)
    finally:
        remote.pool.close()  # their disks go with them


@pytest.mark.s3
def test_an_error_of_the_rank_that_fetches_is_every_ranks_error(remote: Remote) -> None:
    remote.proxy.faults = [Fault(403, count=99, path=r"__0_0\.distcp")]
    found = remote.load(3)
    assert len(set(found)) == 1
    assert found[0].startswith("StorageError")
    assert "__0_0.distcp" in found[0]
    assert "access refused" in found[0]


@pytest.mark.s3
@pytest.mark.parametrize("name", ["__0_0.distcp", "trainer.json"])
def test_a_damaged_object_is_named_on_every_rank(remote: Remote, name: str) -> None:
    place: Any = remote.direct.place
    content = bytearray(place.store.read(f"step-00000001/{name}"))
    content[len(content) // 2] ^= 1
    place.store.write(f"step-00000001/{name}", bytes(content))
    found = remote.load(2)
    assert len(set(found)) == 1
    assert found[0].startswith("CheckpointError")
    assert f"step 1 is damaged: {name}: got crc32c" in found[0]


@pytest.mark.s3
def test_an_object_that_is_gone_is_named_on_every_rank(remote: Remote) -> None:
    place: Any = remote.direct.place
    place.store.delete(["step-00000001/__0_0.distcp"])
    found = remote.load(2)
    assert len(set(found)) == 1
    assert "step 1 is damaged: __0_0.distcp: missing" in found[0]


@pytest.mark.s3
def test_a_fetch_may_take_longer_than_a_collective(remote: Remote) -> None:
    remote.proxy.latency_seconds = 1.5  # of each of several requests, one after the other
    assert remote.load(3, timeout_seconds=2) == [""] * 3


def test_no_copy_is_removed_before_all_have_read_it(rank_pool: Any, tmp_path: Path) -> None:
    found = rank_pool.call(3, __file__, "share_here", local=str(tmp_path))
    assert found == [["by rank 0", reader, 3] for reader in range(3)]
    assert not list(tmp_path.glob("pelagos*"))


@pytest.mark.parametrize("without_room", [0, 1])
def test_a_rank_without_room_reads_anothers_copy(
    rank_pool: Any, tmp_path: Path, without_room: int
) -> None:
    options = {"local": str(tmp_path), "without_room": without_room}
    found = rank_pool.call(2, __file__, "share_here", **options)
    assert found == [[f"by rank {1 - without_room}", reader, 2] for reader in range(2)]


def test_room_for_no_copy_at_all_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    sharing = shared_copy(lambda directory: None, CheckpointGroup(60))
    with pytest.raises(FileNotFoundError, match="missing"):
        sharing.__enter__()


def test_a_rank_raises_its_own_error_as_it_is() -> None:
    def fetch(directory: Path) -> None:
        raise OddError(0, "the trouble")

    sharing = shared_copy(fetch, CheckpointGroup(60))
    with pytest.raises(OddError, match="the trouble of rank 0"):
        sharing.__enter__()


class WordyError(ValueError):
    """Adds its words again when it is made from its arguments."""

    def __init__(self, told: str) -> None:
        super().__init__(f"trouble: {told}")


class PlainError(ValueError):
    """Arrives as a ValueError of the same words."""

    def __reduce__(self) -> tuple[type[ValueError], tuple[str]]:
        return ValueError, (str(self),)


def test_an_error_that_would_change_on_the_way_is_told_in_its_words() -> None:
    for error, told in (
        (WordyError("a disk"), "WordyError: trouble: a disk"),
        (PlainError("a disk"), "PlainError: a disk"),
        (OddError(2, "the trouble"), "OddError: the trouble of rank 2"),
    ):
        found = _portable(error)
        assert type(found) is CheckpointError
        assert str(found) == told
    same = FileNotFoundError(2, "No such file", "here")
    assert _portable(same) is same
    assert _portable(None) is None


def test_readers_and_errors_are_those_of_one_disk(rank_pool: Any, tmp_path: Path) -> None:
    """Who counts one too many leaves files to it that nobody verifies."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a disk")
    try:
        found = rank_pool.call(4, __file__, "share_here", local=str(tmp_path), alone_from=2)
        alone = [[f"by rank {rank}", 0, 1] for rank in (2, 3)]
        assert found == [["by rank 0", 0, 2], ["by rank 0", 1, 2], *alone]
        # of several errors, every rank raises the first rank's
        found = rank_pool.call(2, __file__, "fail_here", local=str(tmp_path))
        assert found == ["ValueError: the trouble of rank 0"] * 2
    finally:
        rank_pool.close()  # their disks go with them


def test_the_death_of_the_rank_that_fetches_is_noticed(rank_pool: Any, tmp_path: Path) -> None:
    """The others hear of it by the closed connection; a collective that timed out says otherwise."""
    with pytest.raises(RuntimeError, match=r"rank 2:(?s:.*)Connection (closed|reset) by peer"):
        rank_pool.call(3, __file__, "share_here", local=str(tmp_path), dies=True)


@pytest.mark.s3
@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "zero2"])
def test_a_run_resumes_from_one_copy_per_node(
    remote: Remote, rank_pool: Any, make_job: Callable[..., PretrainJob], strategy: str
) -> None:
    uri = f"{remote.uri}-{strategy}"
    job = make_job(
        checkpoint__uri=uri,
        parallel__strategy=strategy,
        resources__num_workers=2,
        schedule__total_steps=4,
        tracking__uri="null",
    )
    path = Path(job.runs_dir).with_name("job.yaml")
    path.write_text(resolve_yaml(job))
    run = RunDirectory.create(job)
    call = {"path": str(path), "overrides": [], "options": remote.options}
    rank_pool.call(2, __file__, "train_here", timeout=60.0, until_step=2, **call)
    stored = CheckpointStore(run.checkpoint_uri, remote.direct.place.store.options)  # type: ignore[attr-defined]
    num_bytes = sum(stored.place.sizes(2).values())
    remote.proxy.num_bytes = 0
    assert rank_pool.call(2, __file__, "train_here", timeout=60.0, until_step=4, **call) == [4, 4]
    assert num_bytes <= remote.proxy.num_bytes <= 1.1 * num_bytes
    assert [m["step"] for m in run.metrics()] == [1, 2, 3, 4]
