"""Damages a source again and again and reads it: `python damage.py COUNT SEED FOLDER FORMAT …`.

A process of its own, as libraries below may end it. Prints a line per input that ended otherwise than
by success or by an error for people, and a last line with the number of inputs.
"""

from __future__ import annotations

import faulthandler
import os
import random
import shutil
import signal
import sys
import traceback
import tracemalloc
import warnings
from pathlib import Path
from typing import Any

SECONDS = 30
STUCK_SECONDS = 60  # in a library's own code, where no signal is heard
FIRST_LOOK_SECONDS = 3  # of computing: an HDF5 file in which the library hangs is an error sooner
MOST_BYTES = 2**29


class Hang(BaseException):
    """An input took too long."""


def damage(content: bytes, rng: random.Random) -> bytes:
    """One to four changes: bits, values that matter, lengths."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4))):
        if not data:
            return bytes(data)
        at = rng.randrange(len(data))
        # headers are in front, or at the end
        at = rng.choice(
            (at, rng.randrange(min(len(data), 600)), len(data) - 1 - at % min(len(data), 80))
        )
        kind = rng.randrange(7)
        if kind == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF))
        elif kind == 2:
            value = rng.choice((0, 1, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1, 2**40))
            width = rng.choice((2, 4, 8))
            data[at : at + width] = (value % 2 ** (8 * width)).to_bytes(width, "little")
        elif kind == 3:
            del data[at:]
        elif kind == 4:
            del data[at : at + rng.randrange(1, 16)]
        elif kind == 5:
            data[at:at] = bytes(rng.randrange(256) for _ in range(rng.randrange(1, 16)))
        else:
            stop = at + rng.randrange(1, 64)
            data[at:stop] = bytes(len(data[at:stop]))
    return bytes(data)


def read(name: str, folder: Path, mapping: str | None) -> None:
    from pelagos.data_pipelines.convert import ConvertOptions
    from pelagos.jobs import convert

    if name == "weights":
        from pelagos.jobs.weights.foreign_files import read_source

        for file in sorted(folder.iterdir()):
            read_source(file, None, ())
        return
    source = {"dpot": folder / "swe_pdb", "cfdbench": folder / "cavity"}.get(name, folder)
    if name in ("zarr-2", "zarr-3", "ome-zarr"):
        source = folder / "a.zarr"
    if name in ("zarr-2", "zarr-3"):
        from pelagos.data_pipelines.foreign import open_foreign

        dataset = open_foreign(str(source))  # in place
        for trajectory in range(dataset.spec.num_trajectories):
            dataset.read_frames(trajectory, range(dataset.spec.num_frames))
    convert.run(
        str(source),
        str(folder.parent / "out"),
        ConvertOptions(mapping=mapping, max_trajectories=6),
        verify=True,
    )


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def hang(*_: Any) -> None:
    raise Hang


def main(name: str, count: int, seed: int, place: Path) -> None:
    from tests.fuzzing.sources import SOURCES

    from pelagos.data_pipelines.convert.readers import close_files

    warnings.simplefilter("ignore")
    signal.signal(signal.SIGALRM, hang)
    os.environ.setdefault("PELAGOS_FIRST_LOOK_SECONDS", str(FIRST_LOOK_SECONDS))
    sound = place / "sound" / "source"
    sound.mkdir(parents=True)
    mapping = SOURCES[name](sound)
    read(name, sound, mapping)  # what is not damaged is read
    files = sorted(path for path in sound.rglob("*") if path.is_file())
    rng = random.Random(seed)
    tracemalloc.start()
    for number in range(count):
        folder = place / "damaged" / "source"
        shutil.rmtree(folder.parent, ignore_errors=True)
        shutil.copytree(sound, folder)
        if mapping is not None:
            shutil.copy(mapping, folder.parent)
        victim = rng.choice(files)
        target = folder / victim.relative_to(sound)
        target.write_bytes(damage(victim.read_bytes(), rng))
        sys.stderr.write(f"input {number}\n")
        tracemalloc.reset_peak()
        signal.alarm(SECONDS)
        faulthandler.dump_traceback_later(STUCK_SECONDS, exit=True)
        try:
            read(name, folder, None if mapping is None else str(folder.parent / "mapping.yaml"))
        except (ValueError, OSError) as error:
            if not str(error).strip():
                say(
                    f"{name} {number} {victim.name}: an error without words, {type(error).__name__}"
                )
        except Hang:
            say(f"{name} {number} {victim.name}: took more than {SECONDS} s")
        except BaseException as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            ours = [f for f in traceback.extract_tb(error.__traceback__) if "pelagos" in f.filename]
            where = f"{ours[-1].filename}:{ours[-1].lineno}" if ours else ""
            say(
                f"{name} {number} {victim.name}: {type(error).__name__}: {error} at {last.name}, {where}"
            )
        finally:
            signal.alarm(0)
            faulthandler.cancel_dump_traceback_later()
            close_files()
        peak = tracemalloc.get_traced_memory()[1]
        if peak > MOST_BYTES:
            say(f"{name} {number} {victim.name}: took {peak:,} bytes")
    tracemalloc.stop()
    say(f"{name}: {count} inputs")


if __name__ == "__main__":
    for chosen in sys.argv[4:]:
        main(chosen, int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]) / chosen)
