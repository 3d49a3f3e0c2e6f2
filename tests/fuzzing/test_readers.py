"""Whatever is wrong with the bytes of a source, reading ends: by success, or by an error for people.

PELAGOS_FUZZ_EXAMPLES sets how many damaged inputs of each format are tried, PELAGOS_FUZZ_SEED which.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.fuzzing.sources import SOURCES

ROOT = Path(__file__).parents[2]
EXAMPLES = os.environ.get("PELAGOS_FUZZ_EXAMPLES", "12")
SEED = os.environ.get("PELAGOS_FUZZ_SEED", "0")
GROUPS = (
    ("netcdf-4", "hdf5", "well", "pdebench", "poseidon"),
    ("netcdf-3", "npz", "npy", "zarr-2", "zarr-3", "cfdbench"),
    ("nifti", "pictures", "ome-zarr", "dpot", "weights"),
)


def test_every_source_is_damaged() -> None:
    assert sorted(name for group in GROUPS for name in group) == sorted(SOURCES)


@pytest.mark.parametrize("group", GROUPS, ids="-".join)
def test_damaged_sources(tmp_path: Path, group: tuple[str, ...]) -> None:
    program = Path(__file__).with_name("damage.py")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    done = subprocess.run(
        [sys.executable, str(program), EXAMPLES, SEED, str(tmp_path), *group],
        env=environment,
        capture_output=True,
        text=True,
    )
    last = done.stderr.splitlines()[-1:]
    assert done.returncode == 0, f"the process ended by {done.returncode} at {last}"
    assert done.stdout.splitlines() == [f"{name}: {EXAMPLES} inputs" for name in group]
