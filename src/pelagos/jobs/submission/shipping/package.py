"""The code that a run is started with: a wheel of this Pelagos and the user's own files, by content.

STORAGE/code/DIGEST/pelagos.whl    importable as it is (a wheel is a zip)
STORAGE/code/DIGEST/files.zip      the user's additions, unpacked into the working directory

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
from pelagos.infra.storage.local import DirectoryStore, ObjectStore
from pelagos.infra.storage.remote import StorageMissingError
from pelagos.jobs.submission.shipping.included_files import included_files, is_skipped

CODE = "code"
WHEEL, FILES = "pelagos.whl", "files.zip"
FIXED_TIME = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class CodeArchive:
    """Code in storage: the wheel, the user's files, and the digests of both."""

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
        ValueError: one does not exist, lies outside the current directory, looks like a secret, or
            all are too large.
    """
    own = included_files(include)
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


def names_in(contents: Mapping[str, bytes]) -> tuple[str, ...]:
    """Return the names of the user's files among archives."""
    (files,) = (content for key, content in contents.items() if key.endswith(f"/{FILES}"))
    return tuple(zipfile.ZipFile(io.BytesIO(files)).namelist())


def upload(store: ObjectStore, contents: Mapping[str, bytes]) -> int:
    """Bring archives to storage unless they are there; return the bytes that were sent.

    In a directory nobody else can read them. Files that somebody else put in their place are replaced.
    """
    sent = 0
    for key, content in contents.items():
        if _is_there(store, key, content):
            continue
        if isinstance(store, DirectoryStore):
            store.write(key, content, mode=0o600)
        else:
            store.write(key, content)
        sent += len(content)
    return sent


def _is_there(store: ObjectStore, key: str, content: bytes) -> bool:
    if store.sizes(key.rpartition("/")[0]).get(key) != len(content):
        return False
    try:
        return store.read(key) == content
    except StorageMissingError:
        return False


def _package_files() -> dict[str, bytes]:
    root = Path(pelagos.__file__).parent
    files = {
        f"pelagos/{path.relative_to(root)}": path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and not is_skipped(path.relative_to(root))
    }
    info = f"pelagos-{pelagos.__version__}.dist-info"
    files[f"{info}/METADATA"] = (
        f"Metadata-Version: 2.1\nName: pelagos\nVersion: {pelagos.__version__}\n".encode()
    )
    files[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    return files


def _zipped(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(files):
            archive.writestr(zipfile.ZipInfo(name, FIXED_TIME), files[name], zipfile.ZIP_DEFLATED)
    return buffer.getvalue()
