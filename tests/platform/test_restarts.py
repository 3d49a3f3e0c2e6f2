"""What follows a worker's failure, from its exception to the decision (with Ray: tests/jobs)."""

import errno
import os
import random
from typing import Any

import pytest
import torch

from pelagos.data_pipelines.store import DatasetError
from pelagos.infra.permanent_error import PermanentError
from pelagos.infra.ray_recovery import Lost
from pelagos.infra.storage.remote import StorageError
from pelagos.platform.checkpoint import CheckpointError
from pelagos.platform.config import ConfigError
from pelagos.platform.records.runs import RunError
from pelagos.platform.recovery.failures import (
    OutOfMemory,
    WorkerFailure,
    as_details,
    failure_of,
    is_of_a_peer,
    is_permanent,
    mark,
    with_known_causes,
)
from pelagos.platform.recovery.restarts import Decision, decide
from pelagos.platform.trainer import TrainingDiverged
from pelagos.plugins import PluginError
from pelagos.registry import UnknownNameError

TORN_DOWN = (
    "Default process group has not been initialized, please make sure to call init_process_group."
)


@pytest.mark.parametrize(
    "kind",
    [
        DatasetError,
        StorageError,
        CheckpointError,
        RunError,
        TrainingDiverged,
        PluginError,
        UnknownNameError,
    ],
)
def test_errors_of_pelagos_are_permanent(kind: type[Exception]) -> None:
    error = kind("the loss is nan")
    assert isinstance(error, PermanentError)
    assert is_permanent(error)
    assert not is_of_a_peer(error)
    assert issubclass(ConfigError, PermanentError)


@pytest.mark.parametrize(
    "error",
    [
        ValueError(TORN_DOWN),
        ValueError("loss needs two fields"),
        FloatingPointError("overflow encountered"),
        KeyError("pressure"),
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        OSError(errno.EIO, os.strerror(errno.EIO)),
        FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)),
        ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET)),
        TimeoutError("no answer"),
        RuntimeError("something nobody has seen"),
    ],
)
def test_errors_of_libraries_and_the_system_are_not(error: Exception) -> None:
    assert not is_permanent(error)


def test_nothing_is_permanent_that_is_raised_while_the_group_is_torn_down() -> None:
    error = DatasetError("a.zarr: shard 3 cannot be read")
    mark(error, 7, group_is_gone=True)
    assert not is_permanent(error)
    assert is_of_a_peer(error)
    there = DatasetError("a.zarr: shard 3 cannot be read")
    mark(there, 7, group_is_gone=False)
    assert is_permanent(there)
    assert failure_of(there, rank=1).step == 7


@pytest.mark.parametrize(
    "error",
    [
        ValueError(TORN_DOWN),
        ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET)),
        RuntimeError(
            "[../gloo/transport/tcp/pair.cc:547] Connection closed by peer [10.0.0.2]:4711"
        ),
        RuntimeError("NCCL communicator was aborted on rank 1."),
        torch.distributed.DistBackendError("remote process exited"),
        torch.distributed.DistNetworkError("The client socket has timed out"),
    ],
)
def test_a_lost_peer_is_told_from_an_error_of_this_rank(error: Exception) -> None:
    assert is_of_a_peer(error)
    assert not is_of_a_peer(RuntimeError("mat1 and mat2 shapes cannot be multiplied (4x3 and 2x5)"))


def test_what_torch_distributed_raises_by_itself_is_of_a_peer() -> None:
    assert not torch.distributed.is_initialized()
    with pytest.raises(ValueError, match="process group") as found:
        torch.distributed.all_reduce(torch.zeros(1))
    assert is_of_a_peer(found.value)
    assert not is_permanent(found.value)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:119] DefaultCPUAllocator: can't allocate memory"
        ),
    ],
)
def test_too_little_memory_is_a_known_cause(error: Exception) -> None:
    mark(error, 3, group_is_gone=False)
    with pytest.raises(OutOfMemory) as found, with_known_causes():
        raise error
    assert is_permanent(found.value)
    assert failure_of(found.value, rank=0).step == 3
    with pytest.raises(RuntimeError, match="nobody"), with_known_causes():
        raise RuntimeError("something nobody has seen")


def test_memory_that_torch_itself_refuses_is_out_of_memory() -> None:
    with pytest.raises(OutOfMemory, match="micro_batch_size"), with_known_causes():
        torch.empty(2**60)


# -- decisions --------------------------------------------------------------------------------------


def failure(step: int | None = 7, rank: int = 1, **details: Any) -> WorkerFailure:
    known = {
        "host": "h",
        "node": "n1",
        "error": "RuntimeError",
        "text": "port 4711",
        "place": "net.py:3 in f",
    }
    return WorkerFailure(rank=rank, step=step, **{**known, **details})


def failed(step: int | None = 7, **details: Any) -> dict[str, Any]:
    return {"kind": "worker_failed", "time": 0.0, **as_details(failure(step, **details))}


LAUNCHED = {"kind": "launched", "launch": "now"}
RESTARTED = {"kind": "restarting"}
SAVED = {"kind": "checkpoint", "step": 4}


def after(*events: dict[str, Any], lost: tuple[Lost, ...] = ()) -> Decision:
    return decide([LAUNCHED, *events], "now", lost, random.Random(0))


def test_a_permanent_failure_ends_the_launch_at_once() -> None:
    told = after(failed(error="DatasetError", text="shard 3", is_permanent=True))
    assert told.ends == "DatasetError: shard 3 (rank 1 on h, in step 7, at net.py:3 in f)"


@pytest.mark.parametrize(
    ("again", "ends"),
    [
        (failed(), True),
        (failed(text="port 815", rank=0, host="k"), True),  # numbers and ranks may differ
        (failed(step=8), False),
        (failed(step=None), False),
        (failed(error="ValueError"), False),
        (failed(place="net.py:4 in f"), False),
        (failed(text="another"), False),
        (failed(is_of_a_peer=True), False),  # its peer was killed twice in the same step
    ],
)
def test_two_attempts_that_fail_alike_end_the_launch(again: dict[str, Any], ends: bool) -> None:
    first = failed(is_of_a_peer=again["is_of_a_peer"])
    assert after(first).ends == ""
    told = after(first, RESTARTED, again)
    assert told.ends.startswith("twice the same") == ends
    assert told.restart == 2


def test_a_failure_before_the_first_step_may_be_the_same_too() -> None:
    assert after(failed(None), RESTARTED, failed(None)).ends.startswith("twice the same")
    assert "before the first step" in after(failed(None)).cause


def test_failures_of_an_earlier_launch_do_not_count() -> None:
    assert after(failed(), {"kind": "launched", "launch": "now"}, failed()).ends == ""
    assert after(failed(), RESTARTED, failed(2), RESTARTED, failed()).ends == ""  # not in a row


def test_pauses_grow_until_the_run_gets_on() -> None:
    def pause(*events: dict[str, Any]) -> float:
        return after(*events, failed(99)).pause_seconds

    def others(count: int) -> list[dict[str, Any]]:
        return [event for n in range(count) for event in (failed(n), RESTARTED)]

    assert pause() == 0.0
    for count, base in ((1, 5.0), (2, 10.0), (3, 20.0), (4, 40.0), (5, 60.0), (9, 60.0)):
        assert base <= pause(*others(count)) <= 1.5 * base
    assert pause(*others(5), SAVED) == 0.0
    assert 5.0 <= pause(*others(5), SAVED, failed(3), RESTARTED) <= 7.5
    assert len({decide([LAUNCHED, *others(2), failed(9)], "now", (), random.Random(s)).pause_seconds
                for s in range(5)}) == 5  # fmt: skip


def test_a_node_that_failed_twice_is_avoided() -> None:
    lost = (Lost(0, "h", "n2", "ActorDiedError: gone"),)
    gone = {"kind": "restarting", "lost_nodes": ["n2"]}
    assert after(failed()).avoided == ()
    assert after(failed(1), RESTARTED, failed(2)).avoided == ("n1",)
    assert after(failed(1), failed(1, rank=2), lost=()).avoided == ()  # one failure of two ranks
    assert after(gone, failed(1), RESTARTED, lost=lost).avoided == ("n2",)
    peers = failed(1, is_of_a_peer=True), RESTARTED, failed(2, is_of_a_peer=True)
    assert after(*peers).avoided == ()


def test_a_lost_worker_is_named() -> None:
    told = after(failed(is_of_a_peer=True), lost=(Lost(1, "h", "n2", "ActorDiedError: gone"),))
    assert told.cause == "rank 1 on h was lost: ActorDiedError: gone"


@pytest.mark.parametrize(
    "strange",
    [
        {"kind": "worker_failed", "rank": "x"},
        {"kind": "restarting", "lost_nodes": 3},
        {"kind": 4},
        {},
    ],
)
def test_records_that_others_wrote_decide_nothing(strange: dict[str, Any]) -> None:
    assert after(strange, failed()).ends == ""


def test_the_place_of_an_exception_tells_that_torch_distributed_raised_it() -> None:
    def raised_in(file: str) -> Exception:
        space: dict[str, Any] = {}
        exec(compile("def fail():\n    raise RuntimeError('odd')\n", file, "exec"), space)
        try:
            space["fail"]()
        except RuntimeError as error:
            return error
        raise AssertionError

    assert is_of_a_peer(raised_in("/site-packages/torch/distributed/distributed_c10d.py"))
    assert not is_of_a_peer(raised_in("/site-packages/torch/nn/functional.py"))
