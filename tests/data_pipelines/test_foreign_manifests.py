"""A manifest that somebody else wrote is data: it names no path, and no loop or array by a claim."""

import contextlib
import hashlib
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pelagos.data_pipelines.management import copy
from pelagos.data_pipelines.store import DatasetError, open_dataset
from pelagos.data_pipelines.store.manifest import MANIFEST_KEY
from pelagos.data_pipelines.store.object_store import LocalStore


def sign(values: dict[str, Any]) -> bytes:
    """A manifest with the fingerprint that its content has, which anybody can compute."""
    content = {key: value for key, value in values.items() if key != "fingerprint"}
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    fingerprint = hashlib.sha256(canonical.encode()).hexdigest()
    return json.dumps({**content, "fingerprint": fingerprint}).encode()


@pytest.fixture
def forged(make_dataset: Any, tmp_path: Path) -> Callable[..., str]:
    """A dataset whose manifest somebody changed, at `path` of keys and numbers."""
    dataset, _ = make_dataset()
    original = (Path(dataset.uri) / MANIFEST_KEY).read_bytes()

    def change(path: str, value: Any) -> str:
        values = json.loads(original)
        *parents, last = [int(k) if k.isdigit() else k for k in path.split("/")]
        at: Any = values
        for key in parents:
            at = at[key]
        at[last] = value
        (Path(dataset.uri) / MANIFEST_KEY).write_bytes(sign(values))
        return str(dataset.uri)

    return change


def test_the_signature_is_that_of_the_format(make_dataset: Any) -> None:
    dataset, _ = make_dataset()
    content = json.loads((Path(dataset.uri) / MANIFEST_KEY).read_bytes())
    assert json.loads(sign(content))["fingerprint"] == dataset.fingerprint


@pytest.mark.parametrize("kind", ["absolute", "parent", "other"])
def test_a_shard_is_where_the_layout_says(
    forged: Callable[..., str], tmp_path: Path, kind: str
) -> None:
    """`data copy` wrote the bytes of a shard to the path that its key was."""
    outside = tmp_path / "outside"
    key = {
        "absolute": str(outside),
        "parent": "../outside",
        "other": "data/c/0/0/0/0/1",
    }[kind]
    uri = forged("shards/0/key", key)
    shard = Path(uri) / "data/c/0/0/0/0/0"
    place = Path(key) if kind == "absolute" else Path(uri) / key
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(shard, place)
    before = outside.read_bytes() if outside.exists() else b""
    with pytest.raises(DatasetError, match=r"shards\.0\.key: .* the layout gives"):
        copy(open_dataset(uri), str(tmp_path / "copied"))
    assert (outside.read_bytes() if outside.exists() else b"") == before
    assert not (tmp_path / "copied").exists()


@pytest.mark.parametrize("key", ["../x", "/x", "a/../../x", "a\0b"])
def test_no_key_leads_out_of_a_local_store(tmp_path: Path, key: str) -> None:
    (tmp_path / "x").write_bytes(b"secret")
    store = LocalStore(tmp_path / "store", error=DatasetError)
    (tmp_path / "store").mkdir()
    key = key.replace("/x", f"{tmp_path}/x") if key == "/x" else key
    actions: list[Callable[[], Any]] = [
        lambda: store.read(key),
        lambda: store.read_ranges(key, [(0, 1)]),
        lambda: store.write(key, b"mine"),
        lambda: store.create(key, b"mine"),
        lambda: store.sizes(key),
        lambda: store.delete([key]),
    ]
    for action in actions:
        with pytest.raises(DatasetError, match="leads out of"):
            action()
    assert (tmp_path / "x").read_bytes() == b"secret"


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        ("spec/num_trajectories", 10**12, r"spec\.num_trajectories: .*less than or equal"),
        ("spec/num_trajectories", 10**9, "shards: .* the spec makes"),
        ("spec/num_trajectories", "7", r"spec\.num_trajectories"),
        ("spec/trajectories_per_shard", 10**9, r"shards: |its index alone takes"),
        ("spec/num_frames", 10**7, r"its index alone takes"),
        ("spec/grid_shape", [10**8, 1], r"spec\.grid_shape"),
        ("spec/frame_interval", [1], r"spec\.frame_interval"),
        ("spec/parameter_names", ["../x"], r"spec\.parameter_names"),
        ("spec/fields", {}, r"spec\.fields"),
        ("spec/splits", {"train": ["a", 1]}, r"spec\.splits"),
        ("statistics", {"train": 3}, r"statistics\.train"),
        ("shards/0/size", -1, r"shards\.0\.size"),
        ("shards/0/more", 1, r"shards\.0\.more"),
        ("parameters_crc32c", [], "parameters_crc32c"),
        ("format_version", "x", "format_version"),
    ],
)
def test_numbers_are_bounded_and_types_checked(
    forged: Callable[..., str], path: str, value: Any, told: str
) -> None:
    uri = forged(path, value)
    begin = time.process_time()
    with pytest.raises(DatasetError, match=told):
        open_dataset(uri)
    assert time.process_time() - begin < 20  # a loop over 1e12 would never end


ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_manifest_opens_or_is_refused(forged: Callable[..., str], data: Any) -> None:
    top = ("format", "format_version", "spec", "shards", "statistics", "parameters_crc32c")
    spec = (
        *("name", "fields", "num_trajectories", "num_frames", "grid_shape", "frame_interval"),
        *("domain_extent", "boundary_conditions", "splits", "parameter_names", "dtype"),
        *("constant_fields", "generator", "compression", "trajectories_per_shard", "masks"),
        *("grid_location", "physics", "given_fields", "chunk_shape", "published_normalization"),
    )
    path = data.draw(st.sampled_from([*top, *(f"spec/{key}" for key in spec)]))
    uri = forged(path, data.draw(ODD))
    with contextlib.suppress(DatasetError):
        dataset = open_dataset(uri)
        dataset.spec.coordinates()
        dataset.window(0, 0, 1)


def test_a_manifest_that_is_nested_or_no_json(forged: Callable[..., str]) -> None:
    uri = forged("statistics", {})
    for content in (b"[" * 100_000, b"\xff\xfe", b"", b"null", b'{"format": "pelagos-dataset"}'):
        (Path(uri) / MANIFEST_KEY).write_bytes(content)
        with pytest.raises(DatasetError, match="is damaged"):
            open_dataset(uri)
