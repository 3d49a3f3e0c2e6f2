"""The manifest: the files of a checkpoint with sizes and checksums, written last.

A directory `step-00000500` holds `torch.distributed.checkpoint` files, `trainer.json` and
`manifest.json`. Without a manifest there is no checkpoint.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import google_crc32c

FORMAT = "pelagos-checkpoint"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
TRAINER_STATE = "trainer.json"
READ_BYTES = 16 * 2**20


class CheckpointError(ValueError):
    """A checkpoint that cannot be written, or must not be loaded; says why and what to do."""


@dataclass(frozen=True)
class FileRecord:
    """One file of a checkpoint."""

    name: str
    num_bytes: int
    crc32c: str


@dataclass(frozen=True)
class CheckpointInfo:
    """A complete checkpoint: its step and where it stands."""

    step: int
    uri: str


def directory_name(step: int) -> str:
    """Return the directory name of a step; it sorts by step."""
    return f"step-{step:08d}"


def step_of(name: str) -> int | None:
    """Return the step that a directory name stands for, or None."""
    prefix, _, digits = name.partition("-")
    return int(digits) if prefix == "step" and digits.isdigit() else None


def record_file(path: Path) -> FileRecord:
    """Return name, size and checksum of a file, read in pieces."""
    checksum = google_crc32c.Checksum()
    with path.open("rb") as file:
        while piece := file.read(READ_BYTES):
            checksum.update(piece)
    return FileRecord(path.name, path.stat().st_size, checksum.hexdigest().decode())


def manifest_text(step: int, files: list[FileRecord]) -> str:
    """Return the manifest of a checkpoint as JSON."""
    content = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "step": step,
        "files": [asdict(f) for f in sorted(files, key=lambda f: f.name)],
    }
    return json.dumps(content, indent=1)


def parse_manifest(text: str, uri: str) -> list[FileRecord]:
    """Return the files that a manifest lists.

    Raises:
        CheckpointError: it is not a manifest, or of a newer format than this version reads.
    """
    try:
        content = json.loads(text)
        version = int(content["version"])
        if content["format"] != FORMAT:
            raise KeyError("format")
        files = [FileRecord(**f) for f in content["files"]]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{uri}/{MANIFEST}: not a checkpoint manifest ({error})") from error
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"{uri}: format version {version}, this Pelagos reads up to {FORMAT_VERSION}; upgrade it"
        )
    return files


def verify_files(directory: Path, files: list[FileRecord], uri: str) -> None:
    """Re-read every file of a checkpoint.

    Raises:
        CheckpointError: names each file that is missing, short or changed.
    """
    damage = []
    for expected in files:
        path = directory / expected.name
        if not path.exists():
            damage.append(f"{expected.name}: missing")
            continue
        actual = record_file(path)
        if actual.num_bytes != expected.num_bytes:
            damage.append(f"{expected.name}: {actual.num_bytes} bytes, not {expected.num_bytes}")
        elif actual.crc32c != expected.crc32c:
            damage.append(f"{expected.name}: crc32c {actual.crc32c}, not {expected.crc32c}")
    if damage:
        raise CheckpointError(
            f"{uri} is damaged: {'; '.join(damage)}. Nothing was loaded; move this directory away "
            "to go on from the checkpoint before it."
        )
