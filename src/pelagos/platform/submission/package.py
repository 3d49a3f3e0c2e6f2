"""The code that a run is started with: a wheel of this Pelagos and the user's own files, by content.

STORAGE/code/DIGEST/pelagos.whl    importable as it is (a wheel is a zip)
STORAGE/code/DIGEST/files.zip      what the user added, unpacked into the working directory

Archives are reproducible (sorted names, fixed times), so the same code has the same digest and is
uploaded once.
"""

import hashlib
import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pelagos
from pelagos.infra.directory_store import ObjectStore

CODE = "code"
WHEEL, FILES = "pelagos.whl", "files.zip"
FIXED_TIME = (1980, 1, 1, 0, 0, 0)
SKIPPED_PARTS = ("__pycache__", ".git", ".venv", ".mypy_cache", ".ruff_cache", ".pytest_cache")
MAX_FILES_BYTES = 64 * 2**20


@dataclass(frozen=True)
class CodeArchive:
    """Code as it stands in storage: the wheel, the user's files, and the digests of both."""

    digest: str
    wheel_sha256: str
    files_sha256: str
    num_bytes: int
    names: tuple[str, ...]

    def key(self, name: str) -> str:
        """Return the storage key of one of the two archives."""
        return f"{CODE}/{self.digest}/{name}"


def build_archives(include: Sequence[str]) -> tuple[CodeArchive, dict[str, bytes]]:
    """Return the code as archives, and their content by key.

    Args:
        include: files and directories of the user, kept under their names relative to the current
            directory.

    Raises:
        ValueError: one does not exist, lies outside the current directory, or all are too large.
    """
    own = _user_files(include)
    wheel, files = _zipped(_package_files()), _zipped(own)
    digest = hashlib.sha256(wheel + files).hexdigest()[:32]
    archive = CodeArchive(
        digest,
        hashlib.sha256(wheel).hexdigest(),
        hashlib.sha256(files).hexdigest(),
        len(wheel) + len(files),
        tuple(sorted(own)),
    )
    return archive, {archive.key(WHEEL): wheel, archive.key(FILES): files}


def upload(store: ObjectStore, contents: Mapping[str, bytes]) -> int:
    """Bring archives to storage unless they are there; return the bytes that were sent."""
    sent = 0
    for key, content in contents.items():
        folder = key.rpartition("/")[0]
        if store.sizes(folder).get(key) != len(content):
            store.write(key, content)
            sent += len(content)
    return sent


def _package_files() -> dict[str, bytes]:
    root = Path(pelagos.__file__).parent
    files = {
        f"pelagos/{path.relative_to(root)}": path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and not _is_skipped(path.relative_to(root))
    }
    info = f"pelagos-{pelagos.__version__}.dist-info"
    files[f"{info}/METADATA"] = (
        f"Metadata-Version: 2.1\nName: pelagos\nVersion: {pelagos.__version__}\n".encode()
    )
    files[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    return files


def _user_files(include: Sequence[str]) -> dict[str, bytes]:
    here = Path.cwd()
    found: dict[str, bytes] = {}
    total = 0
    for given in include:
        path = Path(given).absolute()
        if not path.exists():
            raise ValueError(f"--include {given}: does not exist")
        if not path.resolve().is_relative_to(here.resolve()):
            raise ValueError(
                f"--include {given}: lies outside {here}; files are shipped under their names "
                "relative to the current directory"
            )
        for file in [path] if path.is_file() else sorted(path.rglob("*")):
            name = file.relative_to(here)
            if not file.is_file() or _is_skipped(name):
                continue
            total += file.stat().st_size
            if total > MAX_FILES_BYTES:
                raise ValueError(
                    f"--include: more than {MAX_FILES_BYTES >> 20} MiB (at {name}); data belongs in "
                    "storage, named by the job"
                )
            found[str(name)] = file.read_bytes()
    return found


def _is_skipped(path: Path) -> bool:
    return any(part in SKIPPED_PARTS for part in path.parts) or path.suffix == ".pyc"


def _zipped(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(files):
            archive.writestr(zipfile.ZipInfo(name, FIXED_TIME), files[name], zipfile.ZIP_DEFLATED)
    return buffer.getvalue()
