"""Where checkpoints stand, which one a name means, and what a manifest and a rank's part hold."""

import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import google_crc32c
import pytest
import torch
from torch import Tensor

from pelagos.platform.checkpoint import CheckpointError, CheckpointStore
from pelagos.platform.checkpoint.manifest import (
    FORMAT,
    MANIFEST,
    READ_BYTES,
    FileRecord,
    Manifest,
    PieceRecord,
    TensorRecord,
    damaged_files,
    directory_name,
    manifest_text,
    parse_manifest,
    record_file,
    step_of,
    tensor_crc32c,
)
from pelagos.platform.checkpoint.naming import named_step
from pelagos.platform.checkpoint.pieces import (
    HostCopy,
    StoredTensors,
    damaged_pieces,
    piece_records,
    tensor_records,
    write_pieces,
)
from pelagos.platform.checkpoint.places import LocalPlace, RemotePlace
from pelagos.platform.tensor_layout import (
    FlatShard,
    local_part,
    share,
    with_local_part,
    written_part,
)


def tensors(seed: int = 0) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {
        "model.a": torch.randn(5, 4, 3, generator=draw),
        "model.b": torch.randn(7, generator=draw).to(torch.bfloat16),
        "optimizer.step": torch.tensor(5.0),
    }


# -- names -------------------------------------------------------------------------------------------


def test_last_best_and_numbers(tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path))
    with pytest.raises(CheckpointError, match="holds no complete checkpoint yet"):
        named_step(store, "last")
    for step in (3, 12, 20):
        store.save(step, tensors(), {"step": step, "best": None})
    assert [named_step(store, which) for which in ("last", "3", "12", "020")] == [20, 3, 12, 20]
    with pytest.raises(CheckpointError, match="no best checkpoint: no saved step.* 3, 12, 20$"):
        named_step(store, "best")
    for which in ("4", "first", "-3", "3.0", ""):
        with pytest.raises(CheckpointError, match=f"checkpoint '{which}': expected last, best or"):
            named_step(store, which)
    store.save(30, tensors(), {"step": 30, "best": {"step": 12, "value": 0.5}})
    assert (named_step(store, "best"), named_step(store, "last")) == (12, 30)
    cut = [text.split("@")[1] for text in ("run@best", "run@last")]  # equal words, other objects
    assert [named_step(store, which) for which in cut] == [12, 30]
    # told by the last one alone: what an earlier one thought best may have been beaten
    store.save(40, tensors(), {"step": 40, "best": {"step": 40, "value": 0.4}})
    assert named_step(store, "best") == 40
    store.save(50, tensors(), {"step": 50, "best": {"step": 45, "value": 0.4}})
    with pytest.raises(CheckpointError, match="best checkpoint, at step 45, was not kept"):
        named_step(store, "best")


def test_names_of_directories() -> None:
    assert (directory_name(5), directory_name(10**9)) == ("step-00000005", "step-1000000000")
    assert [step_of(name) for name in ("step-00000005", "step-7")] == [5, 7]
    for name in ("step-", "step-x", "pets-5", "step5", "restep-5", "step--5", "stem-5", ".step-5"):
        assert step_of(name) is None, name


# -- places ------------------------------------------------------------------------------------------


@pytest.fixture(params=["disk", "objects"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> LocalPlace | RemotePlace:
    if request.param == "disk":
        return LocalPlace(str(tmp_path / "checkpoints"))
    return RemotePlace(f"memory://{tmp_path.name}", {})


CONTENT = {"data": b"12345", "trainer.json": b"{}"}


def save(place: LocalPlace | RemotePlace, step: int) -> str:
    """Two files and the manifest that lists them."""
    staging = place.staging(step)
    for name, content in CONTENT.items():
        (staging / name).write_bytes(content)
    records = tuple(record_file(staging / name) for name in CONTENT)
    manifest = manifest_text(Manifest(step, records, {}))
    place.upload(step, staging, list(CONTENT))
    assert step not in [info.step for info in place.complete()]
    place.commit(step, staging, manifest)
    assert not staging.exists()
    return manifest


def test_a_checkpoint_is_there_after_its_manifest_and_gone_with_it(
    place: LocalPlace | RemotePlace,
) -> None:
    assert place.complete() == []
    manifests = {step: save(place, step) for step in (20, 3, 100)}
    assert [info.step for info in place.complete()] == [3, 20, 100]
    assert all(info.uri.endswith(directory_name(info.step)) for info in place.complete())
    lengths = {**{name: len(content) for name, content in CONTENT.items()}}
    assert place.sizes(20) == {**lengths, MANIFEST: len(manifests[20])}
    local, is_copy = place.fetch(20)
    assert is_copy == isinstance(place, RemotePlace)
    assert {path.name: path.read_bytes() for path in local.iterdir()} == {
        **CONTENT,
        MANIFEST: manifests[20].encode(),
    }
    if is_copy:
        some, _ = place.fetch(20, {"data"})
        assert {path.name for path in some.iterdir()} == {"data", MANIFEST}
        shutil.rmtree(local)
        shutil.rmtree(some)
    place.delete(20)
    assert [info.step for info in place.complete()] == [3, 100]
    if isinstance(place, LocalPlace):
        assert not (place.root / directory_name(20)).exists()
    else:
        assert place.sizes(20) == {}


def test_an_abandoned_save_leaves_nothing_and_takes_nothing(
    place: LocalPlace | RemotePlace,
) -> None:
    save(place, 3)
    staging = place.staging(7)
    if isinstance(place, LocalPlace):
        assert place.staging(7) == staging  # as every rank asks, and as after a kill
    (staging / "data").write_bytes(b"1")
    place.upload(7, staging, ["data"])
    place.discard(7, staging)
    assert not staging.exists()
    place.discard(7, staging)  # twice, as several ranks do
    if isinstance(place, RemotePlace):
        assert place.sizes(7) == {}
        place.discard(3, place.staging(3))  # a complete one stays
    assert [info.step for info in place.complete()] == [3]


def test_a_temporary_copy_that_is_gone_already_stops_nothing(tmp_path: Path) -> None:
    """As where something cleans the directory of temporary files."""
    place = RemotePlace(f"memory://{tmp_path.name}-gone", {})
    staging = place.staging(5)
    shutil.rmtree(staging)
    place.commit(5, staging, manifest_text(Manifest(5, (), {})))
    assert [info.step for info in place.complete()] == [5]


def test_what_is_no_checkpoint_is_not_listed(tmp_path: Path) -> None:
    for name in ("step-00000001", "step-x", "step-00000002.old", "other-00000004"):
        (tmp_path / name).mkdir()
        (tmp_path / name / MANIFEST).write_text("{}")
    (tmp_path / "step-00000009").mkdir()
    assert [info.step for info in LocalPlace(str(tmp_path)).complete()] == [1]
    remote = RemotePlace(f"memory://{tmp_path.name}-odd", {})
    for key in ("step-00000001/manifest.json", "step-x/manifest.json", "step-00000002/data"):
        remote.store.write(key, b"{}")
    assert [info.step for info in remote.complete()] == [1]


# -- manifests ---------------------------------------------------------------------------------------


def test_a_manifest_says_what_it_was_told() -> None:
    piece = PieceRecord("w", (0, 2), (1, 3), "0000abcd")
    told = Manifest(
        2**40,
        (FileRecord("b", 2**61, "11111111"), FileRecord("a", 0, "22222222")),
        {"w": TensorRecord((1, 5), "float32", (piece,))},
    )
    found = parse_manifest(manifest_text(told), "here")
    assert found == Manifest(told.step, told.files[::-1], told.tensors)  # files by name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "another"}, "format: got 'another', expected 'pelagos-checkpoint'"),
        ({"version": 3}, "format version 3; this Pelagos reads versions up to 2. Upgrade Pelagos"),
        ({"version": 0}, "version"),
        ({"step": -1}, "step"),
        ({"step": 2**62}, "step"),
        ({"step": "3"}, "step"),
        ({"step": 3.0}, "step"),
        ({"files": [{"name": "a", "num_bytes": "5", "crc32c": "00000000"}]}, "num_bytes"),
        ({"files": [{"name": "a", "num_bytes": 5, "crc32c": "0000000G"}]}, "crc32c"),
        ({"tensors": {"w": {"shape": [1], "dtype": "float32"}}}, "pieces"),
    ],
)
def test_what_a_manifest_may_not_say(change: dict[str, Any], message: str) -> None:
    content = {"format": FORMAT, "version": 2, "step": 3, "files": [], "tensors": {}, **change}
    with pytest.raises(CheckpointError, match=message) as caught:
        parse_manifest(json.dumps(content), "there")
    assert str(caught.value).startswith("there")


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, "null"])
def test_what_is_no_manifest(text: str) -> None:
    with pytest.raises(CheckpointError, match="there/manifest.json: not a checkpoint manifest"):
        parse_manifest(text, "there")


def test_files_are_recorded_and_their_damage_named(tmp_path: Path) -> None:
    contents = {
        "empty": b"",
        "short": b"abc",
        "long": bytes(range(256)) * (READ_BYTES // 256) + b"end",
    }
    records = []
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        records.append(record_file(tmp_path / name))
        checksum = f"{google_crc32c.value(content):08x}"
        assert records[-1] == FileRecord(name, len(content), checksum)
    assert damaged_files(tmp_path, records) == []
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "short").rename(tmp_path / "elsewhere" / "short")
    (tmp_path / "short").symlink_to(tmp_path / "elsewhere" / "short")  # another disk is fine
    assert damaged_files(tmp_path, records) == []
    (tmp_path / "elsewhere" / "short").write_bytes(b"abd")
    (tmp_path / "long").write_bytes(contents["long"][:-1])
    (tmp_path / "empty").unlink()
    got, expected = google_crc32c.value(b"abd"), google_crc32c.value(b"abc")
    assert damaged_files(tmp_path, records) == [
        "empty: missing",
        f"short: got crc32c {got:08x}, expected {expected:08x}",
        f"long: got {READ_BYTES + 2} bytes, expected {READ_BYTES + 3}",
    ]
    (tmp_path / "empty").mkdir()
    one, *others = damaged_files(tmp_path, records)
    assert one == "empty: is not a regular file"
    assert [text.split(":")[0] for text in others] == ["short", "long"]


@pytest.mark.parametrize("count", [0, 1, READ_BYTES // 4, READ_BYTES // 4 + 1])
def test_a_tensors_checksum_is_that_of_its_bytes(count: int) -> None:
    tensor = torch.arange(2 * count, dtype=torch.float32)[::2]  # not contiguous
    assert tensor_crc32c(tensor) == f"{google_crc32c.value(tensor.numpy().tobytes()):08x}"


# -- a rank's part -----------------------------------------------------------------------------------


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_ranks_share_a_tensor_that_all_hold(world_size: int) -> None:
    for tensor in tensors().values():
        parts = [share(tensor, rank, world_size) for rank in range(world_size)]
        assert torch.equal(torch.cat([p.local for p in parts]).reshape(tensor.shape), tensor)
        lengths = [len(p.local) for p in parts]
        assert max(lengths) - min(lengths) <= 1
        assert [p.start for p in parts] == [sum(lengths[:n]) for n in range(world_size)]
        for rank, part in enumerate(parts):
            assert written_part(part, rank, world_size) is part
            assert torch.equal(written_part(tensor, rank, world_size).local, part.local)
            for offsets, sizes in part.boxes():
                box = tuple(slice(o, o + n) for o, n in zip(offsets, sizes, strict=True))
                assert torch.equal(part.box(offsets), tensor[box])
        with pytest.raises(ValueError, match=r"FlatShard\(.* has no box at \(99,\)"):
            parts[0].box((99,))
    assert repr(share(torch.zeros(5, 2), 1, 2)) == "FlatShard((5, 2), elements 5 to 10)"


def test_a_part_keeps_its_place() -> None:
    whole = torch.arange(10.0)
    part = share(whole, 1, 2)
    other = with_local_part(part, part.local * 2)
    assert isinstance(other, FlatShard)
    assert (other.start, tuple(other.shape)) == (5, (10,))
    assert torch.equal(local_part(other), whole[5:] * 2)
    assert local_part(whole) is whole
    assert with_local_part(whole, part.local) is part.local
    assert part.detach() is part  # what torch.distributed.checkpoint does to every tensor
    with pytest.raises(TypeError, match=r"aten\.add.*a FlatShard holds one rank's elements"):
        torch.add(part, 1)


def test_a_copy_in_host_memory_uses_its_buffers_again() -> None:
    copy, state = HostCopy(), tensors()
    first = copy.take(state, 1, 2)
    places = {name: local_part(t).data_ptr() for name, t in first.items()}
    for name, tensor in state.items():
        expected = share(tensor, 1, 2)
        assert torch.equal(local_part(first[name]), expected.local)
        assert (
            local_part(first[name]).data_ptr() != expected.local.data_ptr()
            or not expected.local.numel()
        )
        tensor.mul_(2)
    again = copy.take(state, 1, 2)
    assert {name: local_part(t).data_ptr() for name, t in again.items()} == places
    for name, tensor in state.items():
        assert torch.equal(local_part(again[name]), share(tensor, 1, 2).local)
    state["model.a"] = torch.randn(6, 4, 3)
    state["model.b"] = state["model.b"].float()  # other bytes of the same shape
    changed = copy.take(state, 1, 2)
    for name, tensor in state.items():
        assert changed[name].dtype == tensor.dtype
        assert torch.equal(local_part(changed[name]), share(tensor, 1, 2).local)


def test_pieces_are_written_recorded_and_read_again(tmp_path: Path) -> None:
    state = tensors()
    parts: dict[str, Tensor] = {name: share(t, 0, 1) for name, t in state.items()}
    written = write_pieces(parts, tmp_path, None)
    pieces = piece_records(parts)
    assert [p.name for p in pieces] == list(state)
    assert [math.prod(p.sizes) for p in pieces] == [t.numel() for t in state.values()]
    assert damaged_pieces(tmp_path, written, pieces) == []
    records = tensor_records(state, pieces[::-1])
    assert {n: (r.shape, r.dtype) for n, r in records.items()} == {
        **{"model.a": ((5, 4, 3), "float32"), "model.b": ((7,), "bfloat16")},
        "optimizer.step": ((), "float32"),
    }
    stored = StoredTensors(tmp_path, Manifest(0, (), records))
    assert stored.names() == sorted(state)
    assert stored.shapes() == {n: tuple(t.shape) for n, t in state.items()}
    assert stored.ranks() == 1
    for name, tensor in state.items():
        assert stored.dtype(name) == tensor.dtype
        assert torch.equal(stored.read(name), tensor)
        assert stored.damaged(name) == []
    assert stored.damaged("not recorded") == []
    (damage,) = damaged_pieces(tmp_path, written, [p for p in pieces if p.name != "model.b"])
    assert damage == "model.b at [0]: the bytes differ from those in memory"
    other = TensorRecord((7,), "bfloat16", (PieceRecord("model.b", (0,), (7,), "00000001"),))
    missing = TensorRecord((7,), "bfloat16", (PieceRecord("model.b", (3,), (4,), "00000001"),))
    for record, complaint in (
        (other, "model.b at [0]: the bytes do not match crc32c 00000001"),
        (
            missing,
            "model.b at [3]: cannot read it ('the checkpoint has no piece of model.b at (3,)')",
        ),
    ):
        wrong = StoredTensors(tmp_path, Manifest(0, (), {"model.b": record}))
        assert wrong.damaged("model.b") == [complaint]


def test_pieces_of_a_tensor_stand_in_order() -> None:
    """Whatever rank told first; by offsets, which are numbers and not text."""
    pieces = [PieceRecord("w", (n,), (1,), "00000000") for n in (10, 2, 0)]
    found = tensor_records({"w": torch.zeros(11)}, pieces)["w"].pieces
    assert [p.offsets for p in found] == [(0,), (2,), (10,)]


def test_a_rank_writes_one_file_and_over_an_earlier_one(tmp_path: Path) -> None:
    """However many tensors there are; what an attempt before left there is in nobody's way."""
    for seed in (1, 2):
        parts: dict[str, Tensor] = {name: share(t, 0, 1) for name, t in tensors(seed).items()}
        written = write_pieces(parts, tmp_path, None)
        assert {result.storage_data.relative_path for result in written} == {"__0_0.distcp"}
        assert [path.name for path in tmp_path.glob("*.distcp")] == ["__0_0.distcp"]
        assert damaged_pieces(tmp_path, written, piece_records(parts)) == []


class Touch:
    """Makes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (os.mkdir, (str(self.path),))


def test_a_piece_that_would_run_code_is_refused(tmp_path: Path) -> None:
    """Whoever wrote it may have written the checksums too."""
    parts: dict[str, Tensor] = {"w": share(torch.zeros(3), 0, 1)}
    (result,) = write_pieces(parts, tmp_path, None)
    piece = PieceRecord("w", (0,), (3,), "00000000")
    record = TensorRecord((3,), "float32", (piece,))
    stored = StoredTensors(tmp_path, Manifest(0, (), {"w": record}))
    file = tmp_path / result.storage_data.relative_path
    torch.save(Touch(tmp_path / "ran"), file)
    # as long as the piece was, whatever stands behind the end of an archive
    ((_, info),) = stored._pieces["w"]
    info.offset, info.length = 0, file.stat().st_size
    with pytest.raises(CheckpointError, match=f"{file}: .* would run code, so nothing was run"):
        stored.read("w")
    (sentence,) = stored.damaged("w")  # `checkpoint verify` says so, as of any damage
    assert "would run code" in sentence
    assert not (tmp_path / "ran").exists()
