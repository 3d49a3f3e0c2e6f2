"""A pipe in place of an HDF5 file, or of one that it names, is an error and not waited for."""

import os
from collections.abc import Iterator
from pathlib import Path

import h5py
import pytest

from pelagos.data_pipelines.convert import SourceError
from pelagos.data_pipelines.convert.hdf5 import Hdf5File, first_look, open_hdf5
from pelagos.data_pipelines.convert.hdf5.first_look import VARIABLE, DamagedFileError, Looker

SECONDS = 0.1

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(autouse=True)
def own_looker(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv(VARIABLE, str(SECONDS))
    found = Looker()
    monkeypatch.setattr(first_look, "_LOOKERS", [found])
    yield
    found.end()


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    path = tmp_path / "pipe.h5"
    os.mkfifo(path)
    return path


def write_growing(path: Path, source: str) -> Path:
    """A virtual array that is as long as its source, which is opened to know its shape."""
    with h5py.File(path, "w", libver="latest") as file:
        layout = h5py.VirtualLayout((10, 4), "f4", maxshape=(None, 4))
        found = h5py.VirtualSource(source, "u", (10, 4), maxshape=(None, 4))
        layout[0 : h5py.h5s.UNLIMITED : 1] = found[0 : h5py.h5s.UNLIMITED : 1]
        file.create_virtual_dataset("u", layout)
    return path


def test_a_pipe_is_no_file(pipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seconds in (SECONDS, 0):
        monkeypatch.setenv(VARIABLE, str(seconds))
        with pytest.raises(SourceError, match=r"pipe\.h5 is not a regular file"):
            open_hdf5(str(pipe))


def test_a_link_to_a_pipe_is_not_followed(pipe: Path) -> None:
    with h5py.File(pipe.with_name("a.h5"), "w") as file:
        file["u"] = h5py.ExternalLink(pipe.name, "u")
    opened = Hdf5File(str(pipe.with_name("a.h5")))
    with pytest.raises(SourceError, match=r"pipe\.h5 is not a regular file"):
        opened.array("u")


def test_a_virtual_array_of_a_pipe_is_named(pipe: Path) -> None:
    file = write_growing(pipe.with_name("a.h5"), pipe.name)
    with pytest.raises(
        DamagedFileError, match=r"names pipe\.h5, which is not a regular file, as a s"
    ):
        open_hdf5(str(file))


def test_what_waits_for_long_is_named(
    pipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an array does whose sources the look does not know to be pipes."""
    program = tmp_path / "look.py"
    text = first_look.PROGRAM.read_text()
    assert "self.require_files(node)" in text
    program.write_text(text.replace("self.require_files(node)", "pass"))
    monkeypatch.setattr(first_look, "PROGRAM", program)
    file = write_growing(pipe.with_name("a.h5"), pipe.name)
    with pytest.raises(DamagedFileError, match=r"library waiting \(in 'u', for 2 s\)"):
        open_hdf5(str(file))
