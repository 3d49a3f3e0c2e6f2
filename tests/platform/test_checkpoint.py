"""A checkpoint is complete or absent, verified when read, and refused for another architecture."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pelagos.platform.checkpoint import CheckpointError, CheckpointStore, SaveReport
from pelagos.platform.checkpoint.inspection import compare, describe, locate, verify
from pelagos.platform.checkpoint.manifest import record_file

TRAINER_STATE = {"step": 3, "best": None}


def tensors(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "model.a.weight": torch.randn(64, 33, generator=generator),
        "model.b": torch.randn(7, generator=generator),
        "optimizer.b.step": torch.tensor(5.0),
    }


def zeros_like(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.zeros_like(t) for name, t in state.items()}


def assert_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert all(torch.equal(a[n], b[n]) for n in a)


def test_what_is_saved_is_loaded_bit_for_bit(tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path))
    reports: list[SaveReport] = []
    store.save(3, tensors(), TRAINER_STATE, on_complete=reports.append)
    loaded = zeros_like(tensors())
    assert store.load(3, loaded).trainer_state == TRAINER_STATE
    assert_equal(loaded, tensors())
    files = list((tmp_path / "step-00000003").iterdir())
    manifest = json.loads((tmp_path / "step-00000003/manifest.json").read_text())
    assert {f["name"] for f in manifest["files"]} == {f.name for f in files} - {"manifest.json"}
    assert reports[0].num_bytes == sum(f["num_bytes"] for f in manifest["files"])


def test_only_complete_checkpoints_are_listed(tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path))
    assert store.latest_step() is None
    for step in (3, 20):
        store.save(step, tensors(), TRAINER_STATE)
    (tmp_path / "step-00000020/manifest.json").unlink()
    (tmp_path / ".unfinished-step-00000030").mkdir()
    assert [info.step for info in store.complete()] == [3]


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_damage_is_named_and_nothing_is_loaded(tmp_path: Path, damage: str) -> None:
    store = CheckpointStore(str(tmp_path))
    store.save(3, tensors(), TRAINER_STATE)
    path = next((tmp_path / "step-00000003").glob("__0_*"))
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif damage == "truncate":
        path.write_bytes(content[:-10])
    else:
        path.unlink()
    loaded = zeros_like(tensors())
    with pytest.raises(CheckpointError, match=rf"step 3 is damaged: {path.name}: "):
        store.load(3, loaded)
    assert_equal(loaded, zeros_like(tensors()))


def test_another_architecture_is_refused_with_the_differences(tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path))
    store.save(3, tensors(), TRAINER_STATE)
    other = zeros_like(tensors())
    other["model.b"] = torch.zeros(8)
    other["model.c"] = other.pop("model.a.weight")
    with pytest.raises(CheckpointError) as caught:
        store.load(3, other)
    message = str(caught.value)
    assert "another architecture: 3 differences" in message
    assert "model.b: [7] in the checkpoint, [8] in the model" in message
    assert "model.c: absent from the checkpoint" in message
    assert "model.a.weight: absent from the model" in message


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path))
    store.save(3, tensors(), TRAINER_STATE)
    path = tmp_path / "step-00000003/manifest.json"
    path.write_text(path.read_text().replace('"version":2', '"version":99'))
    with pytest.raises(
        CheckpointError, match="format version 99; this Pelagos reads versions up to 2"
    ):
        store.load(3, zeros_like(tensors()))


def test_a_step_that_is_not_there_lists_those_that_are(tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path))
    store.save(3, tensors(), TRAINER_STATE)
    with pytest.raises(CheckpointError, match="no complete checkpoint; found: 3"):
        store.load(4, zeros_like(tensors()))


def test_pruning_keeps_the_newest_and_the_named(tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path))
    for step in (1, 2, 3, 4, 5):
        store.save(step, tensors(), TRAINER_STATE)
    assert store.prune(keep_last=2, keep={2}) == [1, 3]
    assert [info.step for info in store.complete()] == [2, 4, 5]


def test_named_tensors_are_read_without_the_model(tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path))
    store.save(3, tensors(), TRAINER_STATE)
    read = store.load_named(3, "model.")
    assert_equal(read, {k: v for k, v in tensors().items() if k.startswith("model.")})


SAVE_TWICE = """
import resource, signal, sys, torch
from pelagos.platform.checkpoint import CheckpointStore
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write fails with an error instead
store = CheckpointStore(sys.argv[1])
store.save(1, {"model.w": torch.ones(1000)}, {"step": 1})
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
try:
    store.save(2, {"model.w": torch.ones(1_000_000)}, {"step": 2})
except ValueError as error:
    print(error)
"""


def test_a_disk_that_is_full_leaves_earlier_checkpoints_whole(tmp_path: Path) -> None:
    # a limit on file size makes the kernel refuse the write, as a full disk does
    done = subprocess.run(
        [sys.executable, "-c", SAVE_TWICE, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "could not write the checkpoint of step 2" in done.stdout
    assert "Earlier checkpoints are intact" in done.stdout
    store = CheckpointStore(str(tmp_path))
    assert [info.step for info in store.complete()] == [1]
    loaded = {"model.w": torch.zeros(1000)}
    store.load(1, loaded)
    assert torch.equal(loaded["model.w"], torch.ones(1000))
    assert os.listdir(tmp_path) == ["step-00000001"]


@pytest.mark.s3
def test_object_store_checkpoints_follow_the_same_rules(
    s3_server: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3_server.environment.items():  # type: ignore[attr-defined]
        monkeypatch.setenv(name, value)
    uri = s3_server.new_uri("/run")  # type: ignore[attr-defined]
    store = CheckpointStore(uri)
    assert store.latest_step() is None
    for step in (1, 2, 3):
        store.save(step, tensors(step), {"step": step, "best": None})
    loaded = zeros_like(tensors())
    assert store.load(2, loaded).trainer_state["step"] == 2
    assert_equal(loaded, tensors(2))
    assert store.prune(keep_last=1, keep={1}) == [2]
    assert [info.step for info in store.complete()] == [1, 3]


@pytest.mark.s3
def test_wrong_credentials_are_named(s3_server: object, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3_server.environment.items():  # type: ignore[attr-defined]
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    store = CheckpointStore(s3_server.new_uri("/run"))  # type: ignore[attr-defined]
    with pytest.raises(CheckpointError, match="AWS_ACCESS_KEY_ID") as caught:
        store.save(1, tensors(), TRAINER_STATE)
    assert "wrong" not in str(caught.value)
    # a client made under the wrong credentials is not used again once they are mended
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_server.secret_key)  # type: ignore[attr-defined]
    mended = CheckpointStore(store.uri)
    mended.save(1, tensors(), TRAINER_STATE)
    assert mended.trainer_state(1) == TRAINER_STATE
    with pytest.raises(CheckpointError, match="no complete checkpoint; found: 1"):
        mended.trainer_state(2)


def test_an_unreachable_endpoint_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "y")
    options = {"pelagos": {"first_answer_deadline_seconds": 1.0}}
    with pytest.raises(ValueError, match="endpoint http://127.0.0.1:9"):
        CheckpointStore("s3://bucket/run", options).latest_step()


class Planted:
    """Unpickled, it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_metadata_that_would_run_code_is_refused_even_with_the_right_checksum(
    tmp_path: Path,
) -> None:
    store = CheckpointStore(str(tmp_path / "checkpoints"))
    tensors = {"model.a": torch.ones(3)}
    store.save(1, tensors, {"step": 1})
    (info,) = store.complete()
    directory = Path(info.uri)
    (directory / ".metadata").write_bytes(pickle.dumps(Planted(tmp_path / "made")))
    manifest = json.loads((directory / "manifest.json").read_text())
    record = record_file(directory / ".metadata")
    for entry in manifest["files"]:
        if entry["name"] == ".metadata":
            entry.update({"num_bytes": record.num_bytes, "crc32c": record.crc32c})
    (directory / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"asks to load \w+.mkdir"):
        store.load(1, {"model.a": torch.zeros(3)})
    assert not (tmp_path / "made").exists()


def test_a_tensor_without_elements_is_restored_and_compared_by_its_shape(tmp_path: Path) -> None:
    """No rank writes a piece of it: the manifest alone names it."""
    store = CheckpointStore(str(tmp_path))
    empty = {"model.c": torch.zeros(3, 0, dtype=torch.bfloat16), "optimizer.c.m": torch.zeros(0)}
    state = {**tensors(), **empty}
    store.save(3, state, TRAINER_STATE)
    loaded = zeros_like(state)
    store.load(3, loaded)
    assert_equal(loaded, state)
    named = store.load_named(3, "model.")
    assert_equal(named, {k: v for k, v in state.items() if k.startswith("model.")})
    assert named["model.c"].dtype == torch.bfloat16
    location = locate(f"{tmp_path}/step-00000003", ".")
    assert verify(location) == []
    assert list(compare(location, location)) == []
    (row,) = describe(location, r"model\.c")["tensors"]
    assert row == {"name": "model.c", "shape": [3, 0], "dtype": "bfloat16", "crc32c": []}
    with pytest.raises(CheckpointError, match=r"model\.c: \[3, 0\] in the checkpoint, \[0, 5\] in"):
        store.load(3, {**zeros_like(state), "model.c": torch.zeros(0, 5)})
    with pytest.raises(CheckpointError, match=r"1 differences, e\.g\. model\.d: absent from"):
        store.load(3, {**zeros_like(state), "model.d": torch.zeros(0)})
    with pytest.raises(
        CheckpointError, match=r"1 differences, e\.g\. model\.c: absent from the mod"
    ):
        store.load(3, {k: v for k, v in zeros_like(state).items() if k != "model.c"})


def test_only_a_type_of_torch_is_taken_from_a_manifest(tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path))
    store.save(3, {**tensors(), "model.c": torch.zeros(0)}, TRAINER_STATE)
    path = tmp_path / "step-00000003/manifest.json"
    whole = path.read_text()
    for dtype in ("load", "no_such_type"):
        path.write_text(
            whole.replace('"shape":[0],"dtype":"float32"', f'"shape":[0],"dtype":"{dtype}"')
        )
        assert path.read_text() != whole
        with pytest.raises(CheckpointError, match=r"model\.c: absent from the checkpoint"):
            store.load(3, zeros_like({**tensors(), "model.c": torch.zeros(0)}))
