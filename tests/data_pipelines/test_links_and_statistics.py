"""Datasets that others changed: links out of them, pipes in them, statistics of another kind."""

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from pelagos.cli.main import app
from pelagos.data_pipelines.foreign.statistics_cache import cached_statistics
from pelagos.data_pipelines.management.spectra import energy_spectrum
from pelagos.data_pipelines.store import DatasetError, create_dataset, open_dataset
from pelagos.data_pipelines.store.layout import MANIFEST_KEY, SHARD_PREFIX
from pelagos.data_pipelines.store.object_store import LocalStore


@pytest.fixture
def dataset(tmp_path: Path, write_waves: Callable[..., None]) -> Path:
    path = tmp_path / "of-another.zarr"
    write_waves(str(path), ("u", "v"), 0)
    return path


@pytest.fixture
def good(tmp_path: Path, write_waves: Callable[..., None]) -> Path:
    path = tmp_path / "good.zarr"
    write_waves(str(path), ("u", "v"), 1)
    return path


def pelagos(*arguments: object) -> str:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), repr(done.exception)
    return f"{done.exit_code} " + " ".join(done.output.split())


def shard_of(dataset: Path) -> Path:
    return next(path for path in (dataset / SHARD_PREFIX).rglob("*") if path.is_file())


@pytest.mark.parametrize("what", ["shard", "manifest", "parents"])
def test_a_link_out_of_a_dataset_is_not_read(dataset: Path, tmp_path: Path, what: str) -> None:
    place = {"shard": shard_of(dataset), "manifest": dataset / MANIFEST_KEY}.get(what)
    place = place or shard_of(dataset).parent
    elsewhere = tmp_path / "elsewhere"
    place.rename(elsewhere)
    place.symlink_to(elsewhere)
    for verb in (["inspect", dataset], ["verify", dataset], ["copy", dataset, tmp_path / "copy"]):
        said = pelagos("data", *verb)
        if not said.startswith("0 "):
            assert " over a link, to " in said or "is missing" in said
            continue
        assert verb[0] == "inspect"  # which reads no shard
        assert what == "shard"


def test_links_within_a_dataset_and_to_it_as_a_whole_are_followed(
    dataset: Path, tmp_path: Path
) -> None:
    shard = shard_of(dataset)
    shard.rename(dataset / "kept")
    shard.symlink_to(dataset / "kept")
    whole = tmp_path / "by-another-name.zarr"
    whole.symlink_to(dataset)
    with contextlib.closing(open_dataset(whole)) as opened:
        assert opened.read_frames(0, range(2)).shape[0] == 2


def test_nothing_is_written_over_a_link(dataset: Path, good: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    folder = shard_of(dataset).parent
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    victim.mkdir()
    folder.symlink_to(victim)
    store = LocalStore(dataset, error=DatasetError)
    key = folder.relative_to(dataset)
    for attempt in (store.write, store.create):
        with pytest.raises(DatasetError, match="nothing is read or written"):
            attempt(f"{key}/new", b"planted")
    assert not pelagos("data", "append", dataset, good).startswith("0 ")
    assert list(victim.iterdir()) == []


def test_a_new_dataset_is_not_written_through_links(dataset: Path, tmp_path: Path) -> None:
    """Somebody else prepared the place, with a link where shards will be."""
    with contextlib.closing(open_dataset(dataset)) as opened:
        spec = opened.spec
    place, victim = tmp_path / "new.zarr", tmp_path / "victim"
    writer = create_dataset(place, spec)
    victim.mkdir()
    (place / SHARD_PREFIX).parent.mkdir(exist_ok=True)
    (place / SHARD_PREFIX).symlink_to(victim)
    with contextlib.closing(open_dataset(dataset)) as opened:
        frames = range(spec.num_frames)
        data = (opened.read_frames(i, frames) for i in writer.shard_trajectories(0))
        with pytest.raises(DatasetError, match="nothing is read"):
            writer.write_shard_frames(0, data, {})
    assert list(victim.iterdir()) == []


def test_pipes_anywhere_in_a_dataset_are_named(dataset: Path) -> None:
    for path in sorted(path for path in dataset.rglob("*") if path.is_file()):
        content = path.read_bytes()
        path.unlink()
        os.mkfifo(path)
        for verb in ("inspect", "verify", "stats"):
            pelagos("data", verb, dataset)  # ends, and not in a traceback
        path.unlink()
        path.write_bytes(content)
    assert pelagos("data", "verify", dataset).startswith("0 ")


def changed(values: Any) -> Iterator[tuple[str, Any]]:
    """Manifests with statistics that no writer makes, in words and as they are."""

    def other(change: Callable[[Any], object]) -> Any:
        copied = json.loads(json.dumps(values))
        change(copied["statistics"])
        return copied

    yield "none", {**values, "statistics": {}}
    yield "no split", other(lambda s: s.pop("train"))
    yield "another split", other(lambda s: s.update(more=s["all"]))
    yield "no field", other(lambda s: s["all"].pop("u"))
    yield "another field", other(lambda s: s["train"].update(w=s["train"]["u"]))
    for key in ("mean", "std", "min", "max", "count"):
        yield f"no {key}", other(lambda s, k=key: s["all"]["u"].pop(k))  # type: ignore[misc]
    yield "an empty row", other(lambda s: s["train"].update(u={}))
    yield "another number", other(lambda s: s["all"]["u"].update(median=1.0))
    yield "a text", other(lambda s: s["all"]["u"].update(mean="1"))
    yield "a list", other(lambda s: s["all"]["u"].update(mean=[1.0] * 1000))
    yield "endless", other(lambda s: s["all"]["u"].update(mean=math.inf))


def signed(values: dict[str, Any]) -> str:
    """The manifest with the fingerprint of what it says: who writes one writes both."""
    content = {key: value for key, value in values.items() if key != "fingerprint"}
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    return json.dumps({**content, "fingerprint": digest})


def test_statistics_of_another_kind_are_named_by_every_verb(
    dataset: Path, good: Path, tmp_path: Path
) -> None:
    manifest = dataset / MANIFEST_KEY
    original = json.loads(manifest.read_text())
    manifest.write_text(signed(original))
    assert pelagos("data", "inspect", dataset).startswith("0 ")
    for what, values in changed(original):
        manifest.write_text(signed(values))
        for verb in (
            ["inspect", dataset],
            ["verify", dataset],
            ["stats", dataset],
            ["merge", tmp_path / "merged.zarr", good, dataset],
            ["append", good, dataset],
            ["copy", dataset, tmp_path / "copy.zarr"],
            ["split", dataset, "train=0:6"],
        ):
            said = pelagos("data", *verb)
            assert said.startswith("2 "), (what, verb, said)
            assert "is damaged" in said, (what, verb, said)
    assert not (tmp_path / "merged.zarr").exists()
    assert not (tmp_path / "copy.zarr").exists()
    assert pelagos("data", "verify", good).startswith("0 ")


def test_kept_statistics_of_another_kind_are_named(dataset: Path, tmp_path: Path) -> None:
    place = tmp_path / "statistics.json"
    with contextlib.closing(open_dataset(dataset)) as opened:
        head = {"format": "pelagos-statistics", "fingerprint": opened.fingerprint}
        whole = opened.manifest.statistics
        place.write_text(json.dumps({**head, "statistics": whole}))
        assert cached_statistics(opened, str(place)) == whole
        for bad in (None, [], {}, {"all": {}}, {"all": {"u": {"mean": "x"}}}):
            place.write_text(json.dumps({**head, "statistics": bad}))
            with pytest.raises(DatasetError, match="is damaged"):
                cached_statistics(opened, str(place))
        for bad in (5, [], "x"):
            place.write_text(json.dumps(bad))
            with pytest.raises(DatasetError, match="is not a file of statistics"):
                cached_statistics(opened, str(place))


def test_a_domain_of_two_very_different_sides_takes_no_memory_for_its_spectrum(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PELAGOS_MEMORY_BUDGET", str(10**6))
    with pytest.raises(ValueError, match="more than the 1,000,000"):
        energy_spectrum(np.ones((2, 8, 8)), (1e6, 1.0))
