"""An HDF5 file of somebody else does not have other files of this machine read."""

from __future__ import annotations

import os
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml

from pelagos.data_pipelines.convert import ConvertOptions, SourceError, open_source
from pelagos.jobs import convert

SHAPE = (2, 3, 4, 5)
NUMBERS = np.random.default_rng(3).normal(size=SHAPE).astype("f4")


def write(path: Path, kind: str, target: str) -> None:
    """A file whose array `u` stands in the file `target`."""
    with h5py.File(path, "w") as file:
        if kind == "external storage":
            file.create_dataset("u", SHAPE, "f4", external=[(target, 0, NUMBERS.nbytes)])
        elif kind == "external link":
            file["u"] = h5py.ExternalLink(target, "u")
        elif kind == "link of a group":
            file["group"] = h5py.ExternalLink(target, "/")
            file["u"] = h5py.SoftLink("/group/u")
        else:
            layout = h5py.VirtualLayout(SHAPE, "f4")
            layout[:] = h5py.VirtualSource(target, "u", SHAPE)
            file.create_virtual_dataset("u", layout)


def options(folder: Path) -> ConvertOptions:
    mapping = folder / "mapping.yaml"
    mapping.write_text(
        yaml.safe_dump({"fields": [{"key": "u", "axes": ["n", "t", "y", "x"], "names": ["u"]}]})
    )
    return ConvertOptions(mapping=str(mapping))


def target_of(kind: str, place: Path) -> None:
    if kind == "external storage":
        place.write_bytes(NUMBERS.tobytes())
    else:
        with h5py.File(place, "w") as file:
            file["u"] = NUMBERS


KINDS = ("external storage", "external link", "link of a group", "virtual")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["absolute", "parent", "link"])
@pytest.mark.timeout(30)
def test_numbers_elsewhere_are_not_read(tmp_path: Path, kind: str, way: str) -> None:
    here, secret = tmp_path / "here", tmp_path / "secret"
    here.mkdir()
    target_of(kind, secret)
    target = {"absolute": str(secret), "parent": "../secret", "link": "link"}[way]
    if way == "link":
        (here / "link").symlink_to(secret)
    write(here / "a.h5", kind, target)
    with pytest.raises(SourceError, match="outside the folder of the file that names it"):
        convert.run(str(here / "a.h5"), str(tmp_path / "out"), options(tmp_path))
    assert not (tmp_path / "out" / "data").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_beside_are_read(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    (here / "parts").mkdir(parents=True)
    target_of(kind, here / "parts/p")
    write(here / "a.h5", kind, "parts/p")
    monkeypatch.chdir(here)  # HDF5 looks for external storage from the current directory
    result = convert.run(str(here / "a.h5"), str(tmp_path / "out"), options(tmp_path), verify=True)
    assert result.differences == ()
    from pelagos.data_pipelines.store import open_dataset

    dataset = open_dataset(tmp_path / "out")
    np.testing.assert_array_equal(dataset.window(1, 0, 3)[:, 0], NUMBERS[1])


@pytest.mark.timeout(30)
def test_a_pipe_behind_a_link_is_not_opened(tmp_path: Path) -> None:
    """Opening it would wait for ever."""
    here = tmp_path / "here"
    here.mkdir()
    os.mkfifo(tmp_path / "pipe")
    for kind in KINDS:
        write(here / "a.h5", kind, str(tmp_path / "pipe"))
        with pytest.raises(SourceError, match="outside the folder|which is not a regular file"):
            open_source(str(here / "a.h5"), options(tmp_path))


def test_a_virtual_source_of_a_source_is_looked_at_too(tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    target_of("virtual", tmp_path / "secret")
    write(here / "inner.h5", "virtual", str(tmp_path / "secret"))
    write(here / "a.h5", "virtual", "inner.h5")
    with pytest.raises(SourceError, match="outside the folder"):
        convert.run(str(here / "a.h5"), str(tmp_path / "out"), options(tmp_path))
