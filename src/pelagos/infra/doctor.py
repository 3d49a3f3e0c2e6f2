"""`pelagos doctor`: the parts that this machine has, the missing ones, and the remedies."""

import contextlib
import importlib
import importlib.util
import logging
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("torch", "deepspeed", "ray", "accelerate", "mlflow", "s3fs", "zarr")
MINIMUM_FREE_BYTES = 2 * 10**9


@dataclass(frozen=True)
class Check:
    """One finding: fine or not, the observation, and the remedy."""

    name: str
    ok: bool
    seen: str
    remedy: str = ""


def examine(runs_dir: str = "runs", *, imports: bool = True) -> list[Check]:
    """Return every finding about this machine; nothing is changed.

    Args:
        imports: also import every package and ask torch for devices, which takes seconds.
    """
    package = _package if imports else _installed
    checks: list[Callable[[], Check]] = [
        _python,
        *[lambda name=name: package(name) for name in PACKAGES],
        _devices if imports else _cores,
        _compiler,
        lambda: _writable(runs_dir),
        _shared_memory,
        _object_store,
    ]
    with contextlib.redirect_stdout(sys.stderr):  # deepspeed logs its import to standard output
        return [check() for check in checks]


def _python() -> Check:
    seen = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    return Check("python", sys.version_info >= (3, 11), seen, "install Python 3.11 or newer")


def _package(name: str) -> Check:
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)  # it warns where there is no GPU
    try:
        importlib.import_module(name)
        return Check(name, True, version(name))
    except (ImportError, PackageNotFoundError, OSError, RuntimeError) as error:
        return Check(name, False, f"{type(error).__name__}: {error}", "pip install pelagos again")


def _installed(name: str) -> Check:
    if importlib.util.find_spec(name) is None:
        return Check(name, False, "is not installed", "pip install pelagos again")
    return Check(name, True, version(name))


def _cores() -> Check:
    return Check("devices", True, f"{len(os.sched_getaffinity(0))} CPU cores")


def _devices() -> Check:
    import torch

    cores = len(os.sched_getaffinity(0))
    if not torch.cuda.is_available():
        return Check("devices", True, f"{cores} CPU cores, no CUDA device: jobs run on the CPU")
    count = torch.cuda.device_count()
    memory = torch.cuda.get_device_properties(0).total_memory / 2**30
    seen = f"{count} x {torch.cuda.get_device_name(0)}, {memory:.0f} GiB each, {cores} CPU cores"
    return Check("devices", True, seen)


def _compiler() -> Check:
    found = {tool: shutil.which(tool) for tool in ("g++", "ninja")}
    missing = [tool for tool, path in found.items() if path is None]
    seen = "g++ and ninja" if not missing else f"no {' and no '.join(missing)}"
    return Check(
        "compiler", not missing, seen, "apt-get install g++ ninja-build (torch.compile, DeepSpeed)"
    )


def _writable(directory: str) -> Check:
    target = Path(directory).absolute()
    while not target.exists():
        target = target.parent
    try:
        with tempfile.TemporaryFile(dir=target):
            free = shutil.disk_usage(target).free
    except OSError as error:
        return Check("runs", False, f"{target}: {error.strerror}", "choose another runs_dir")
    enough = free >= MINIMUM_FREE_BYTES
    return Check("runs", enough, f"{target}: writable, {free / 1e9:.0f} GB free", "free some space")


def _shared_memory() -> Check:
    try:
        free = shutil.disk_usage("/dev/shm").free
    except OSError:
        return Check(
            "shared memory", False, "/dev/shm does not exist", "mount a tmpfs there for Ray"
        )
    return Check(
        "shared memory",
        free >= MINIMUM_FREE_BYTES // 4,
        f"/dev/shm: {free / 1e9:.1f} GB free",
        "start the container with a larger --shm-size",
    )


def _object_store() -> Check:
    from pelagos.infra.storage.remote import credential_source

    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return Check(
        "object store", True, f"{endpoint or 'Amazon S3'}, credentials from {credential_source()}"
    )
