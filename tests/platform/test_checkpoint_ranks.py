"""Checkpoints of several ranks, of every layout of tensors, written beside the training."""

import json
import os
import signal
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from typer.testing import CliRunner

from pelagos.cli.main import app
from pelagos.platform.checkpoint import CheckpointError, CheckpointStore, SaveReport, pieces, store
from pelagos.platform.tensor_layout import local_part, share, with_local_part

STATE = {"step": 1, "samples": 4, "seed": 0, "best": None}


def whole_tensors() -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    return {
        "model.plain": torch.randn(13, 7, generator=draw),
        "model.sharded": torch.randn(5, 3, 2, generator=draw),
        "model.tiny": torch.randn(1, generator=draw),  # fewer elements than ranks
        "model.empty": torch.zeros(0, 3),
        "model.flat": torch.randn(9, 4, generator=draw),
        "optimizer.flat.step": torch.tensor(3.0),
    }


def laid_out(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors as this rank of the group holds them."""
    if not dist.is_initialized():
        return {n: t.clone() for n, t in tensors.items()}
    rank, world_size = dist.get_rank(), dist.get_world_size()
    mesh = init_device_mesh("cpu", (world_size,))
    result = {n: t.clone() for n, t in tensors.items()}
    for name in ("model.sharded", "model.tiny", "model.empty"):
        result[name] = distribute_tensor(tensors[name], mesh, [Shard(0)])
    if world_size == 4:
        grid = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
        result["model.sharded"] = distribute_tensor(
            tensors["model.sharded"], grid, [Replicate(), Shard(0)]
        )
    flat = share(tensors["model.flat"].clone(), rank, world_size)
    result["model.flat"] = with_local_part(flat, flat.local.clone())
    return result


def start_group() -> None:
    if "RANK" in os.environ:
        dist.init_process_group("gloo")


def save_here(path: str, asynchronous: bool) -> list[float]:
    start_group()
    reports: list[SaveReport] = []
    target = CheckpointStore(path)
    target.save(
        1, laid_out(whole_tensors()), STATE, asynchronous=asynchronous, on_complete=reports.append
    )
    target.wait()
    return [reports[0].num_bytes, reports[0].stall_seconds, reports[0].background_seconds]


def load_here(path: str) -> bool:
    start_group()
    expected = laid_out(whole_tensors())
    empty = laid_out({n: torch.zeros_like(t) for n, t in whole_tensors().items()})
    report = CheckpointStore(path).load(1, empty)
    assert report.trainer_state == STATE
    return all(torch.equal(local_part(empty[n]), local_part(t)) for n, t in expected.items())


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_what_some_ranks_wrote_any_number_reads(
    rank_pool: Any, tmp_path: Path, world_size: int
) -> None:
    path = str(tmp_path)
    reports = rank_pool.call(
        world_size, __file__, "save_here", path=path, asynchronous=world_size != 2
    )
    assert len({report[0] for report in reports}) == 1
    assert all(min(report[1:]) >= 0 for report in reports)
    for readers in {1, 3}:
        assert all(rank_pool.call(readers, __file__, "load_here", path=path))
    manifest = json.loads((tmp_path / "step-00000001/manifest.json").read_text())
    ranks = {f["name"].split("_")[2] for f in manifest["files"] if f["name"].startswith("__")}
    assert ranks == {str(r) for r in range(world_size)}
    for name, tensor in whole_tensors().items():
        stored = manifest["tensors"][name]
        assert stored["shape"] == list(tensor.shape)
        sizes = [torch.Size(p[1]).numel() for p in stored["pieces"]]
        assert sum(sizes) == tensor.numel()  # each element once: no rank wrote another's


def slow_down(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Hold every write until the event is set."""
    go = threading.Event()
    write = store.write_pieces

    def wait_and_write(*arguments: Any) -> Any:
        assert go.wait(30)
        return write(*arguments)

    monkeypatch.setattr(store, "write_pieces", wait_and_write)
    return go


def test_training_goes_on_while_a_checkpoint_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = slow_down(monkeypatch)
    weights = {"model.w": torch.ones(1000)}
    target = CheckpointStore(str(tmp_path))
    target.save(1, weights, {"step": 1}, asynchronous=True)
    weights["model.w"].fill_(2.0)  # the next step; the checkpoint is of the values before
    assert target.complete() == []
    go.set()
    target.wait()
    assert torch.equal(target.load_named(1, "")["model.w"], torch.ones(1000))


def test_a_save_that_failed_beside_the_training_is_raised_by_what_comes_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    target = CheckpointStore(str(tmp_path))
    target.save(1, {"model.w": torch.ones(10)}, {"step": 1})
    monkeypatch.setattr(store, "write_pieces", full)
    target.save(2, {"model.w": torch.ones(10)}, {"step": 2}, asynchronous=True)
    with pytest.raises(CheckpointError, match=r"could not write .* step 2 .*No space left"):
        target.save(3, {"model.w": torch.ones(10)}, {"step": 3}, asynchronous=True)
    target.wait()  # said once
    assert [info.step for info in target.complete()] == [1]


SAVE_AND_WAIT = """
import sys, time, torch
from pelagos.platform.checkpoint import CheckpointStore, store
target = CheckpointStore(sys.argv[1])
target.save(1, {"model.w": torch.ones(1000)}, {"step": 1})
write = store.damaged_pieces
def slow(*arguments):
    print("written", flush=True)
    time.sleep(60)
    return write(*arguments)
store.damaged_pieces = slow
target.save(2, {"model.w": torch.ones(1000)}, {"step": 2}, asynchronous=True)
target.wait()
"""


def test_a_kill_inside_a_background_save_leaves_the_one_before(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", SAVE_AND_WAIT, str(tmp_path)], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"written\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert any(tmp_path.glob(".unfinished-*/__0_*"))
    target = CheckpointStore(str(tmp_path))
    assert [info.step for info in target.complete()] == [1]
    assert torch.equal(target.load_named(1, "")["model.w"], torch.ones(1000))


def test_bytes_that_the_disk_changed_are_noticed_before_the_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = pieces.write_pieces

    def write_and_flip(tensors: Any, directory: Path, group: Any) -> Any:
        written = write(tensors, directory, group)
        path = next(directory.glob("__0_*"))
        content = path.read_bytes()
        place = content.index(torch.full((8,), 7.0).numpy().tobytes())
        path.write_bytes(content[:place] + b"\x01" + content[place + 1 :])
        return written

    monkeypatch.setattr(store, "write_pieces", write_and_flip)
    target = CheckpointStore(str(tmp_path))
    with pytest.raises(CheckpointError, match=r"differ from those in memory: model\.w at \[0\]"):
        target.save(1, {"model.w": torch.full((64,), 7.0)}, {"step": 1})
    assert target.complete() == []


def test_old_checkpoints_stay_while_the_newest_is_not_whole(tmp_path: Path) -> None:
    target = CheckpointStore(str(tmp_path))
    for step in (1, 2, 3):
        target.save(step, {"model.w": torch.ones(10)}, {"step": step})
    newest = tmp_path / "step-00000003"
    part, manifest = next(newest.glob("__0_*")), newest / "manifest.json"
    whole, told = part.read_bytes(), manifest.read_bytes()
    for path, content in ((part, b"short"), (part, None), (manifest, b"{"), (manifest, b"")):
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        assert target.prune(keep_last=1, keep=set()) == []
        assert [info.step for info in target.complete()] == [1, 2, 3]
        part.write_bytes(whole)
        manifest.write_bytes(told)
    part.write_bytes(b"short")
    target.save(4, {"model.w": torch.ones(10)}, {"step": 4})
    assert target.prune(keep_last=1, keep=set()) == [1, 2, 3]


def test_parameters_may_be_added_or_frozen_on_resume_if_named(tmp_path: Path) -> None:
    target = CheckpointStore(str(tmp_path))
    saved = {
        "model.a": torch.ones(2),
        "model.b": torch.ones(2),
        "optimizer.a.exp_avg": torch.ones(2),
    }
    target.save(1, saved, STATE)
    # `a` is frozen now; `b`, frozen then, is trained now; `head` is new
    wanted = {
        "model.a": torch.zeros(2),
        "model.b": torch.zeros(2),
        "model.head": torch.full((3,), 5.0),
        "optimizer.b.exp_avg": torch.zeros(2),
        "optimizer.head.exp_avg": torch.zeros(3),
    }
    with pytest.raises(CheckpointError, match=r"3 differences.*checkpoint\.new_parameters"):
        target.load(1, wanted)
    assert torch.equal(wanted["model.a"], torch.zeros(2))
    report = target.load(1, wanted, may_lack=("^head$", "^b$"))
    assert torch.equal(wanted["model.a"], torch.ones(2))
    assert torch.equal(wanted["model.b"], torch.ones(2))
    assert torch.equal(wanted["model.head"], torch.full((3,), 5.0))
    assert set(report.kept_initial) == {
        "model.head",
        "optimizer.b.exp_avg",
        "optimizer.head.exp_avg",
    }
    assert report.not_taken == ("optimizer.a.exp_avg",)


def invoke(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["checkpoint", *map(str, arguments)])
    return result.exit_code, " ".join(result.output.split())


@pytest.fixture
def two_checkpoints(tmp_path: Path) -> tuple[Path, Path]:
    target = CheckpointStore(str(tmp_path))
    state = {**STATE, "forecaster": {"model": {"name": "poseidon-nano", "config": {}}}}
    for step, value in ((1, 1.0), (2, 1.0 + 1e-3)):
        target.save(step, {"model.w": torch.full((50, 4), value), "ema.w": torch.ones(3)}, state)
    return tmp_path / "step-00000001", tmp_path / "step-00000002"


def test_inspect_lists_what_a_checkpoint_holds(two_checkpoints: tuple[Path, Path]) -> None:
    status, text = invoke("inspect", two_checkpoints[0], "--pattern", "model")
    assert status == 0
    assert "poseidon-nano" in text
    assert "1 tensors, 200 elements" in text
    status, text = invoke("inspect", two_checkpoints[0], "--json")
    content = json.loads(text)
    assert content["sections"]["model"] == {"tensors": 1, "elements": 200, "num_bytes": 800}
    assert [t["name"] for t in content["tensors"]] == ["ema.w", "model.w"]
    assert content["ranks"] == 1


def test_diff_measures_each_tensor(two_checkpoints: tuple[Path, Path]) -> None:
    a, b = two_checkpoints
    assert invoke("diff", a, a) == (0, "the same bits")
    status, text = invoke("diff", a, b, "--json")
    assert status == 1
    (difference,) = json.loads(text)["differences"]
    assert difference["name"] == "model.w"
    assert difference["max_relative"] == pytest.approx(1e-3, rel=1e-3)  # fp32 of 1.001
    assert invoke("diff", a, b, "--tolerance", "0.01")[0] == 0


def test_verify_names_the_damaged_tensor(two_checkpoints: tuple[Path, Path]) -> None:
    a, _ = two_checkpoints
    assert invoke("verify", a)[0] == 0
    path = next(a.glob("__0_*"))
    content = path.read_bytes()
    place = content.index(torch.ones(8).numpy().tobytes())
    path.write_bytes(content[:place] + b"\x01" + content[place + 1 :])
    status, text = invoke("verify", a)
    assert status == 1
    assert f"{path.name}: got crc32c" in text
    assert ".w at [0" in text


def test_verifying_and_comparing_hold_one_tensor_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = CheckpointStore(str(tmp_path))
    many = {f"model.{i}": torch.randn(1000) for i in range(20)}
    for step in (1, 2):
        target.save(step, {n: t + step for n, t in many.items()}, STATE)
    alive, peak = 0, 0
    read = pieces.StoredTensors.read

    def counted(self: Any, name: str) -> Tensor:
        nonlocal alive, peak
        tensor = read(self, name)
        alive += 1
        peak = max(peak, alive)

        def gone() -> None:
            nonlocal alive
            alive -= 1

        weakref.finalize(tensor, gone)
        return tensor

    monkeypatch.setattr(pieces.StoredTensors, "read", counted)
    status, text = invoke("diff", tmp_path / "step-00000001", tmp_path / "step-00000002", "--json")
    assert status == 1
    assert len(json.loads(text)["differences"]) == 20
    assert peak <= 2


@pytest.mark.parametrize(
    ("target", "complaint"),
    [
        ("nothing", "no run 'nothing'"),
        ("a/b", "both say where the run is"),
        ("run@x", "no run 'run'"),
    ],
)
def test_what_is_no_checkpoint_is_said(tmp_path: Path, target: str, complaint: str) -> None:
    status, text = invoke("verify", target, "--runs-dir", tmp_path)
    assert status == 2
    assert complaint in text


@pytest.mark.s3
def test_files_above_the_multipart_limit_reach_an_object_store(
    s3_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    target = CheckpointStore(s3_server.new_uri("/run"))
    tensor = torch.arange(15_000_000, dtype=torch.float32)  # 60 MB
    target.save(1, {"model.w": tensor}, STATE, asynchronous=True)
    target.wait()
    assert torch.equal(target.load_named(1, "")["model.w"], tensor)


@pytest.mark.s3
def test_a_failed_save_leaves_no_objects(s3_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    target = CheckpointStore(s3_server.new_uri("/run"))

    def fail(*_: Any) -> None:
        raise OSError("the store went away")

    monkeypatch.setattr(target.place, "commit", fail)
    with pytest.raises(CheckpointError, match="the store went away"):
        target.save(1, {"model.w": torch.ones(10)}, STATE)
    assert target.place.store.sizes("step-00000001") == {}  # type: ignore[attr-defined]
