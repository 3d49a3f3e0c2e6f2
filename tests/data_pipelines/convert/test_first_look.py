"""An HDF5 file in which the library hangs or crashes is named in bounded time, and costs one process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import yaml

from pelagos.data_pipelines.convert import ConvertOptions, SourceError, open_source
from pelagos.data_pipelines.convert.hdf5 import Hdf5File, first_look, look_process, open_hdf5
from pelagos.data_pipelines.convert.hdf5.first_look import (
    VARIABLE,
    DamagedFileError,
    Looker,
    looker,
    require_answering,
)
from pelagos.data_pipelines.convert.verification.second_files import open_second
from pelagos.jobs import convert

SHAPE = (2, 3, 4, 5)
SECONDS = 1.0
MOST_SECONDS = 30.0  # with the start of a process, on a machine that does other things too

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(autouse=True)
def own_looker(monkeypatch: pytest.MonkeyPatch) -> Iterator[Looker]:
    monkeypatch.setenv(VARIABLE, str(SECONDS))
    monkeypatch.setattr(first_look, "_LOOKERS", [Looker()])
    yield looker()
    looker().end()


def write(path: Path, name: str = "u") -> Path:
    with h5py.File(path, "w") as file:
        file[name] = np.random.default_rng(3).normal(size=SHAPE).astype("f4")
        file[name].attrs["units"] = "a text of its own length, which stands in the file's heap"
    return path


def write_endless(path: Path, name: str = "u") -> Path:
    """The heap's free space gets the length 0, so that the library never comes to what follows."""
    content = bytearray(write(path, name).read_bytes())
    at = content.index(b"GCOL") + 16
    while (number := int.from_bytes(content[at : at + 2], "little")) != 0:
        assert number == 1  # the text: its number, count, size, and bytes up to a multiple of 8
        at += 16 + -(-int.from_bytes(content[at + 8 : at + 16], "little") // 8) * 8
    content[at + 8 : at + 16] = bytes(8)
    path.write_bytes(content)
    return path


def options(folder: Path, **more: Any) -> ConvertOptions:
    mapping = folder / "mapping.yaml"
    fields = [{"key": "u", "axes": ["n", "t", "y", "x"], "names": ["u"], **more}]
    mapping.write_text(yaml.safe_dump({"fields": fields}))
    return ConvertOptions(mapping=str(mapping))


def test_what_hangs_is_named_in_bounded_time(tmp_path: Path, own_looker: Looker) -> None:
    file, sound = write_endless(tmp_path / "a.h5"), write(tmp_path / "b.h5")
    start = time.monotonic()
    with pytest.raises(
        DamagedFileError, match=r"a\.h5 is damaged.*'u'.*download it again.*h5repack"
    ):
        convert.run(str(file), str(tmp_path / "out"), options(tmp_path))
    with pytest.raises(DamagedFileError, match=r"a\.h5 is damaged"):
        open_source(str(file), ConvertOptions())
    with pytest.raises(SourceError, match=r"a\.h5 is damaged"):
        open_second("hdf5", str(file))
    assert time.monotonic() - start < MOST_SECONDS
    assert own_looker.num_started == 1  # what is known of it is not tried again
    open_hdf5(str(sound)).close()
    assert own_looker.num_started == 2
    write(file)
    convert.run(str(file), str(tmp_path / "out"), options(tmp_path))
    assert own_looker.num_started == 2


def crash(place: Path, signal_name: str) -> Path:
    """A program that ends itself when it is told of a file."""
    program = place / "crash.py"
    program.write_text(
        f"""import os, signal, sys
print('{{"ready": true}}', flush=True)
sys.stdin.readline()
print('{{"at": "u"}}', flush=True)
os.kill(os.getpid(), signal.{signal_name})
"""
    )
    return program


def test_what_crashes_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_look, "PROGRAM", crash(tmp_path, "SIGSEGV"))
    for _ in range(2):
        with pytest.raises(DamagedFileError, match=r"a\.h5 is damaged.*crash \(in 'u': SIGSEGV\)"):
            open_hdf5(str(write(tmp_path / "a.h5")))


def test_a_process_that_somebody_ended_says_nothing_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_looker: Looker
) -> None:
    file, other = write(tmp_path / "a.h5"), write(tmp_path / "b.h5")
    open_hdf5(str(file)).close()
    assert own_looker.process is not None
    own_looker.process.kill()
    open_hdf5(str(other)).close()
    assert own_looker.num_started == 2
    own_looker.end()
    write(file, "v")
    with monkeypatch.context() as patched:
        patched.setattr(first_look, "PROGRAM", crash(tmp_path, "SIGKILL"))
        with pytest.raises(
            SourceError,
            match=r"the process that checks .*a\.h5 before reading was killed twice, in 'u' \(SIGKILL\)",
        ):
            open_hdf5(str(file))
    open_hdf5(str(file)).close()


def test_many_files_start_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_looker: Looker
) -> None:
    asked: list[str] = []
    ask = Looker._ask

    def counted(self: Looker, file: str, *rest: Any) -> Any:
        asked.append(Path(file).name)
        return ask(self, file, *rest)

    monkeypatch.setattr(Looker, "_ask", counted)
    folder = tmp_path / "source"
    folder.mkdir()
    files = [write(folder / f"{i}.h5") for i in range(20)]
    convert.run(str(folder), str(tmp_path / "out"), options(tmp_path, file="*.h5"), verify=True)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(require_answering, files * 3))
    assert own_looker.num_started == 1
    assert sorted(asked) == sorted(file.name for file in files)
    os.utime(files[3], ns=(1, 1))
    open_hdf5(str(files[3])).close()
    assert asked[-1] == "3.h5"
    assert len(asked) == len(files) + 1


@pytest.mark.parametrize("kind", ["link", "virtual"])
def test_files_that_are_led_to_are_looked_at(tmp_path: Path, kind: str) -> None:
    write_endless(tmp_path / "b.h5")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        if kind == "link":
            file["u"] = h5py.ExternalLink("b.h5", "u")
        else:
            layout = h5py.VirtualLayout(SHAPE, "f4")
            layout[:] = h5py.VirtualSource("b.h5", "u", SHAPE)
            file.create_virtual_dataset("u", layout)
    with pytest.raises(DamagedFileError, match=r"b\.h5 is damaged"):
        convert.run(str(tmp_path / "a.h5"), str(tmp_path / "out"), options(tmp_path))


def test_of_very_many_parts_those_that_are_read_are_looked_at(tmp_path: Path) -> None:
    endless = write_endless(tmp_path / "a.h5", "z")
    with h5py.File(endless, "r+") as file:
        for i in range(look_process.MOST_OBJECTS + 1):
            file.create_group(f"{i}")
        file["last"] = file["zz"] = np.zeros(3)
    opened = Hdf5File(str(endless))
    assert opened.array("zz").shape == (3,)
    with pytest.raises(DamagedFileError, match=r"a\.h5 is damaged.*'z'"):
        opened.array("z")
    opened.close()


def test_lists_without_end_are_faults(tmp_path: Path) -> None:
    class Chunks:
        """An array whose index of chunks leads form a circle."""

        name, shape, chunks = "/u", (4, 4), (2, 2)

        @property
        def id(self) -> Chunks:
            return self

        def chunk_iter(self, note: Any) -> None:
            while True:
                note(None)

    file = write(tmp_path / "a.h5")
    with open(os.devnull, "w") as out:
        look = look_process.Look({"file": str(file), "key": "", "seconds": 30}, out)
        try:
            with pytest.raises(look_process.Stop):
                look.see_chunks(Chunks())
            assert "no end" in look.fault
            with pytest.raises(look_process.Stop):
                look.see("a/" * (look_process.MOST_LEVELS + 1), None)
            assert "form a circle" in look.fault
        finally:  # else their signals end the process that runs the tests
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)


def test_what_asks_for_all_memory_is_a_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PELAGOS_MEMORY_BUDGET", "0")
    monkeypatch.setattr(first_look, "SPARE_BYTES", 2**26)
    with h5py.File(tmp_path / "a.h5", "w", libver="latest") as file:
        file.attrs["large"] = np.zeros(2**24)
    with pytest.raises(
        DamagedFileError, match=r"a\.h5 is damaged.*more memory than this machine has"
    ):
        open_hdf5(str(tmp_path / "a.h5"))


def test_only_hdf5_is_looked_at_and_only_if_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_looker: Looker
) -> None:
    other = tmp_path / "b.h5"
    other.write_bytes(b"no HDF5")
    for file in (other, tmp_path / "absent.h5", "s3://bucket/a.h5"):
        require_answering(file)
    monkeypatch.setenv(VARIABLE, "0")
    open_hdf5(str(write(tmp_path / "a.h5"))).close()
    assert own_looker.num_started == 0
    for given in ("soon", "-1", "nan", "1e-9", "1e30"):
        monkeypatch.setenv(VARIABLE, given)
        with pytest.raises(SourceError, match=f"{VARIABLE} is '{given}'; expected a number of"):
            open_hdf5(str(tmp_path / "a.h5"))


def test_a_look_that_is_interrupted_answers_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_looker: Looker
) -> None:
    file, other = write(tmp_path / "a.h5"), write(tmp_path / "b.h5")
    open_hdf5(str(file)).close()

    def interrupted(_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(first_look, "_heard", interrupted)
        with pytest.raises(KeyboardInterrupt):
            open_hdf5(str(other))
    assert own_looker.process is None
    open_hdf5(str(other)).close()
    assert own_looker.num_started == 2


def test_a_process_that_cannot_start_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(first_look, "PROGRAM", tmp_path / "absent.py")
    with pytest.raises(SourceError, match=f"cannot start the process .*{VARIABLE}=0"):
        open_hdf5(str(write(tmp_path / "a.h5")))


def test_the_process_imports_nothing_of_this_package() -> None:
    code = (
        "import runpy, sys; runpy.run_path(sys.argv[1], run_name='__main__'); "
        "sys.exit(', '.join(n for n in sys.modules if n.partition('.')[0] in ('pelagos', 'torch')) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, str(first_look.PROGRAM)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == '{"ready": true}\n'
