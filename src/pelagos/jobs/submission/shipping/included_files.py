"""Which of a user's files `--include` ships: as git would, nothing secret, nothing from elsewhere.

Archives lie in a storage that others may read. So a folder means the files in it that git tracks or
would track (`.gitignore` holds), outside a repository for those whose names are not hidden. A file whose
name says that it is a secret is refused, wherever it was named, and so is a link that leads out of the
current directory.
"""

from __future__ import annotations

import fnmatch
import os
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

SKIPPED_PARTS = ("__pycache__", ".git", ".venv", ".mypy_cache", ".ruff_cache", ".pytest_cache")
MAX_FILES_BYTES = 64 * 2**20
# Names of files that hold keys, tokens or passwords, as the tools that write them choose them.
SECRET_NAMES = (
    *(".env", ".env.*", "*.env", ".netrc", "_netrc", ".pgpass", ".my.cnf", ".npmrc", ".pypirc"),
    *(
        "id_rsa*",
        "id_dsa*",
        "id_ecdsa*",
        "id_ed25519*",
        "*.pem",
        "*.key",
        "*.p12",
        "*.pfx",
        "*.jks",
    ),
    *("*.ppk", "*.kdbx", "*.ovpn", "*.gpg", "*.age", "kubeconfig", "*.kubeconfig", ".htpasswd"),
    *("credentials", "credentials.*", "*credentials.json", "service-account*.json"),
    *("*.token", "token", "token.*", "*_token", "auth_token", "*secret*", "*password*"),
    *(".git-credentials", ".dockercfg", ".boto", ".s3cfg", "rclone.conf", "*.tfstate", "*.tfvars"),
)
SECRET_FOLDERS = (".ssh", ".aws", ".kube", ".gnupg", ".docker", ".azure", ".gcloud", ".ray")
# Names of files about secrets and tokens that contain none.
PROGRAM_SUFFIXES = (".py", ".pyx", ".ipynb", ".md", ".rst", ".c", ".h", ".cpp", ".cu", ".jl", ".sh")


def included_files(include: Sequence[str]) -> dict[str, bytes]:
    """Return the files that are shipped, by their names relative to the current directory.

    Raises:
        ValueError: one does not exist, lies or leads outside the current directory, looks like a
            secret, or all are too large.
    """
    here = Path.cwd()
    found: dict[str, bytes] = {}
    total = 0
    for given in include:
        path = Path(os.path.normpath(Path(given).absolute()))
        if not path.exists():
            raise ValueError(f"--include {given}: does not exist")
        _require_inside(path, here, given)
        for file in [path] if path.is_file() else _files_of(path):
            name = file.relative_to(here)
            if not file.is_file() or is_skipped(name):
                continue
            _require_inside(file, here, given)
            _require_no_secret(name, given)
            total += file.stat().st_size
            if total > MAX_FILES_BYTES:
                raise ValueError(
                    f"--include: more than {MAX_FILES_BYTES >> 20} MiB (at {name}). Put data into "
                    "storage and name it in the job"
                )
            found[str(name)] = file.read_bytes()
    return found


def is_skipped(path: Path) -> bool:
    """Whether a file is of a cache or of a tool."""
    return any(part in SKIPPED_PARTS for part in path.parts) or path.suffix == ".pyc"


def looks_secret(name: Path) -> bool:
    """Whether a file's name says that it holds keys, tokens or passwords.

    >>> looks_secret(Path("a/.env")), looks_secret(Path(".aws/config")), looks_secret(Path("b.yaml"))
    (True, True, False)
    """
    if any(part in SECRET_FOLDERS for part in name.parts[:-1]):
        return True
    last = name.name.lower()
    if name.suffix in PROGRAM_SUFFIXES:
        return False
    return any(fnmatch.fnmatchcase(last, pattern) for pattern in SECRET_NAMES)


def _require_inside(path: Path, here: Path, given: str) -> None:
    if not path.is_relative_to(here) or not path.resolve().is_relative_to(here.resolve()):
        led = f" ({path.name} is a link to {path.resolve()})" if path.is_symlink() else ""
        raise ValueError(
            f"--include {given}: {path} lies outside {here}{led}; files are shipped under their names "
            "relative to the current directory"
        )


def _require_no_secret(name: Path, given: str) -> None:
    if looks_secret(name):
        raise ValueError(
            f"--include {given}: {name} has the name of a secret, and others may read what you "
            "ship. Put secrets into the cluster's secrets_file. Then let git ignore the file "
            "(.gitignore), or include fewer files. If it is not a secret, rename it"
        )


def _files_of(folder: Path) -> Iterator[Path]:
    tracked = _known_to_git(folder)
    if tracked is None:
        return iter(sorted(_not_hidden(folder)))
    return iter(sorted(tracked))


def _known_to_git(folder: Path) -> Iterable[Path] | None:
    """Files that git tracks or would track; None: no git, or no repository."""
    command = [
        "git",
        "-C",
        str(folder),
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    ]
    try:
        done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode:
        return None
    return [folder / os.fsdecode(name) for name in done.stdout.split(b"\0") if name]


def _not_hidden(folder: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(place) / name for name in names if not name.startswith("."))
