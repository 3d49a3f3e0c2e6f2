"""A damaged newest checkpoint: it is set aside, and the newest whole one is loaded instead."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from fault_proxy import Fault, FaultProxy
from torch import Tensor

from pelagos.infra.storage.remote import StorageError
from pelagos.platform.checkpoint import (
    CheckpointError,
    CheckpointStore,
    load_newest,
    manifest,
    newest_state,
    store,
)

DAMAGES = ["flip", "cut", "lost", "manifest-cut", "manifest-empty", "json"]
STATE = {"step": 1, "best": None}


def weights(step: int) -> dict[str, Tensor]:
    return {"model.w": torch.full((64,), float(step)), "model.b": torch.arange(3.0) + step}


def fill(target: CheckpointStore, steps: tuple[int, ...] = (1, 2, 3)) -> None:
    for step in steps:
        target.save(step, weights(step), {**STATE, "step": step})


def damaged(name: str, content: bytes, damage: str) -> bytes | None:
    """The bytes of a file after the damage; None: it is gone."""
    if damage == "manifest-empty":
        return b""
    if damage == "lost":
        return None
    if damage in ("cut", "manifest-cut"):
        return content[: len(content) // 2]
    return content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]


def file_of(damage: str) -> str:
    names = {"json": "trainer.json", "manifest-cut": "manifest.json"}
    return {**names, "manifest-empty": "manifest.json"}.get(damage, "__0_0.distcp")


def harm(directory: Path, damage: str) -> dict[str, bytes]:
    """Damage a checkpoint; return the bytes of what is left."""
    path = directory / file_of(damage)
    content = damaged(path.name, path.read_bytes(), damage)
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    return {p.name: p.read_bytes() for p in directory.iterdir()}


def empty() -> dict[str, Tensor]:
    return {name: torch.zeros_like(t) for name, t in weights(0).items()}


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_newest_whole_one_is_loaded_and_the_damaged_one_renamed(
    tmp_path: Path, damage: str
) -> None:
    target = CheckpointStore(str(tmp_path))
    fill(target)
    before = harm(tmp_path / "step-00000003", damage)
    (tmp_path / "damaged-step-00000003-1").mkdir()  # of an earlier time: never overwritten
    found = load_newest(target, empty)
    assert found is not None
    assert (found.step, found.steps) == (2, (1, 2))
    assert found.report.trainer_state["step"] == 2
    assert all(torch.equal(found.tensors[n], t) for n, t in weights(2).items())
    (aside,) = found.set_aside
    assert aside.step == 3
    assert file_of(damage) in aside.damage
    place = tmp_path / "damaged-step-00000003-2"
    assert aside.where == str(place)
    assert {p.name: p.read_bytes() for p in place.iterdir()} == before
    assert [info.step for info in target.complete()] == [1, 2]
    fill(target, (3,))  # the step is free again
    assert target.latest_step() == 3
    assert {p.name: p.read_bytes() for p in place.iterdir()} == before


@pytest.mark.s3
@pytest.mark.parametrize("damage", DAMAGES)
def test_so_it_is_in_an_object_store(
    s3_server: Any, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    target = CheckpointStore(s3_server.new_uri("/run"))
    fill(target)
    objects: Any = target.place.store  # type: ignore[union-attr]
    key = f"step-00000003/{file_of(damage)}"
    content = damaged(key, objects.read(key), damage)
    objects.delete([key])
    if content is not None:
        objects.write(key, content)
    before = {k.rpartition("/")[2]: objects.read(k) for k in objects.sizes("step-00000003")}
    found = load_newest(target, empty)
    assert found is not None
    assert found.step == 2
    assert all(torch.equal(found.tensors[n], t) for n, t in weights(2).items())
    (aside,) = found.set_aside
    assert aside.where == objects.address("damaged-step-00000003-1")
    moved = {
        k.rpartition("/")[2]: objects.read(k) for k in objects.sizes("damaged-step-00000003-1")
    }
    assert moved == before
    assert objects.sizes("step-00000003") == {}
    assert [info.step for info in target.complete()] == [1, 2]


def test_without_a_whole_one_all_are_named_and_nothing_is_moved(tmp_path: Path) -> None:
    target = CheckpointStore(str(tmp_path))
    fill(target, (1, 2))
    harm(tmp_path / "step-00000001", "lost")
    harm(tmp_path / "step-00000002", "manifest-empty")
    for _ in range(2):  # the next attempt must not take the run for a new one
        with pytest.raises(
            CheckpointError, match=r"every checkpoint is damaged \(step 2: .*step 1: "
        ):
            load_newest(target, empty)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000001", "step-00000002"]
    assert load_newest(CheckpointStore(str(tmp_path / "new")), empty) is None


def of_a_newer_format(path: Path) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "version": manifest.FORMAT_VERSION + 1}))


def test_what_is_not_damage_is_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = CheckpointStore(str(tmp_path))
    fill(target, (1, 2))
    with pytest.raises(CheckpointError, match="differences"):
        load_newest(target, lambda: {"model.other": torch.zeros(3)})
    open_regular = manifest.open_regular

    def refused(path: Path, **options: Any) -> int:
        if path.name == "__0_0.distcp":
            raise OSError(5, "Input/output error")
        return open_regular(path, **options)

    monkeypatch.setattr(manifest, "open_regular", refused)
    with pytest.raises(CheckpointError, match="Input/output error"):
        load_newest(target, empty)
    monkeypatch.undo()
    of_a_newer_format(tmp_path / "step-00000002/manifest.json")
    for read in (lambda: load_newest(target, empty), lambda: newest_state(target)):
        with pytest.raises(CheckpointError, match="Upgrade Pelagos"):
            read()
    assert [info.step for info in target.complete()] == [1, 2]


@pytest.mark.s3
def test_a_store_out_of_reach_is_not_damage(
    s3_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    uri = s3_server.new_uri("/run")
    fill(CheckpointStore(uri), (1, 2))
    proxy = FaultProxy(s3_server.endpoint)
    try:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        for path in (r"__0_0\.distcp", r"manifest\.json"):
            proxy.faults = [Fault(403, count=99, path=path)]
            with pytest.raises(StorageError, match="access refused"):
                load_newest(CheckpointStore(uri), empty)
        proxy.faults = []
        assert [info.step for info in CheckpointStore(uri).complete()] == [1, 2]
    finally:
        proxy.close()


@pytest.mark.parametrize("damage", ["manifest-cut", "manifest-empty", "json"])
def test_the_state_of_the_newest_that_can_be_read_moves_nothing(
    tmp_path: Path, damage: str
) -> None:
    target = CheckpointStore(str(tmp_path))
    fill(target, (1, 2))
    harm(tmp_path / "step-00000002", damage)
    assert newest_state(target) == (1, {**STATE, "step": 1})
    assert target.latest_step() == 2


def test_a_whole_newest_checkpoint_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = CheckpointStore(str(tmp_path))
    fill(target)
    verify, read = store.damaged_files, []

    def counted(directory: Path, files: Any) -> list[str]:
        read.extend(f"{directory.name}/{file.name}" for file in files)
        return verify(directory, files)

    monkeypatch.setattr(store, "damaged_files", counted)
    load_newest(target, empty)
    listed = json.loads((tmp_path / "step-00000003/manifest.json").read_text())["files"]
    assert sorted(read) == sorted(f"step-00000003/{file['name']}" for file in listed)


def load_here(path: str) -> list[Any]:
    dist.init_process_group("gloo")
    found = load_newest(CheckpointStore(path), empty)
    assert found is not None
    return [found.step, found.steps, [one.where for one in found.set_aside]]


def test_two_ranks_agree(rank_pool: Any, tmp_path: Path) -> None:
    fill(CheckpointStore(str(tmp_path)))
    harm(tmp_path / "step-00000003", "flip")
    harm(tmp_path / "step-00000002", "manifest-cut")
    one, two = rank_pool.call(2, __file__, "load_here", path=str(tmp_path))
    where = [str(tmp_path / f"damaged-step-0000000{step}-1") for step in (3, 2)]
    assert one == two == [1, [1], where]


def test_remnants_of_a_step_do_not_block_it(tmp_path: Path) -> None:
    target = CheckpointStore(str(tmp_path))
    left = tmp_path / "step-00000004"
    for _ in range(2):
        left.mkdir()
        (left / "__9_9.distcp").write_bytes(b"left")
        fill(target, (4,))
        assert all(torch.equal(t, weights(4)[n]) for n, t in target.load_named(4, "").items())
        assert not (left / "__9_9.distcp").exists()
        target.place.delete(4)
    for number in (1, 2):
        assert (tmp_path / f"remnant-step-00000004-{number}/__9_9.distcp").read_bytes() == b"left"


@pytest.mark.s3
def test_nor_do_objects_of_a_step_mix_with_the_next(
    s3_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    target = CheckpointStore(s3_server.new_uri("/run"))
    objects: Any = target.place.store  # type: ignore[union-attr]
    objects.write("step-00000004/__9_9.distcp", b"left")
    fill(target, (4,))
    assert "step-00000004/__9_9.distcp" not in objects.sizes("step-00000004")
    assert set(target.load_named(4, "")) == set(weights(4))
