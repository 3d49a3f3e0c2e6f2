"""The first thing that runs on a cluster: fetch the shipped code, check it, and become it.

Needs only Python and fsspec, because Pelagos is not installed yet. Exit status 3: this machine lacks
something that Pelagos needs; the message names it.
"""

import argparse
import hashlib
import importlib.util
import json
import os
import stat
import sys
import tempfile
import zipfile
from pathlib import Path

NEEDED = (
    *("torch", "ray", "zarr", "s3fs", "mlflow", "pydantic", "yaml", "accelerate"),
    *("einops", "safetensors", "obstore", "rich"),
)
EXIT_UNFIT = 3


def main() -> None:
    """Fetch, verify, unpack, then replace this process by the run."""
    parser = argparse.ArgumentParser()
    for option in ("--wheel", "--wheel-sha256", "--files", "--files-sha256"):
        parser.add_argument(option, required=True)
    parser.add_argument("--module", default="pelagos.jobs.submission.driver")
    parser.add_argument("run", nargs="+")
    words = sys.argv[1:]
    if words[:1] == ["--arguments"]:  # a file, where a command line is read more than once
        words = json.loads(Path(words[1]).read_text())
    arguments = parser.parse_args(words)
    read_secrets(os.environ.get("PELAGOS_SECRETS_FILE"))
    if sys.version_info < (3, 11):  # noqa: UP036 - this file runs before Pelagos is there
        leave(f"Python {sys.version.split()[0]} here; Pelagos needs 3.11 or newer")
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        leave(
            f"{sys.executable} on {os.uname().nodename} lacks {', '.join(missing)}: use an image or "
            "environment with Pelagos installed"
        )
    code = unpacked(arguments.wheel, arguments.wheel_sha256)
    files = unpacked(arguments.files, arguments.files_sha256)
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(code), str(files), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    os.environ["PELAGOS_CODE_PATHS"] = os.pathsep.join([str(code), str(files)])
    os.chdir(files)
    program = [sys.executable, "-m", arguments.module, *arguments.run]
    os.execv(sys.executable, program)


def unpacked(uri: str, sha256: str) -> Path:
    """Return the directory of an archive's content, which several processes may ask for at once."""
    target = cache_directory() / "code" / sha256
    if target.is_dir():
        return target
    content = fetched(uri)
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        leave(f"{uri} has sha256 {found}, expected {sha256}: somebody changed it; submit again")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=target.parent))
    archive = temporary / "archive"
    archive.write_bytes(content)
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(temporary / "content")
    try:
        (temporary / "content").mkdir(exist_ok=True)  # an archive of nothing makes none
        (temporary / "content").rename(target)
    except OSError:
        if not target.is_dir():  # else: another process was first, with the same content
            raise
    archive.unlink()
    return target


def cache_directory() -> Path:
    """Return a directory for code that only this user can write (as infra.private_directory does)."""
    cache = Path(os.environ.get("PELAGOS_CACHE") or Path.home() / ".cache" / "pelagos")
    cache.mkdir(parents=True, exist_ok=True)
    if is_own(cache.stat(), 0o022):
        return cache
    own = cache / f"pelagos-{os.geteuid()}"
    own.mkdir(mode=0o700, exist_ok=True)
    if not is_own(os.lstat(own), 0o077):
        leave(f"{own} does not belong to this user alone, so nothing is run from it. Remove it")
    return own


def is_own(found: os.stat_result, others: int) -> bool:
    """Return whether a directory is this user's, and these bits of its mode are not set."""
    is_directory = stat.S_ISDIR(found.st_mode)
    return is_directory and found.st_uid == os.geteuid() and not found.st_mode & others


def fetched(uri: str) -> bytes:
    """Return an object's content; credentials come from the environment."""
    if "://" not in uri:
        return Path(uri).read_bytes()
    import fsspec

    options = {}
    endpoint = os.environ.get("PELAGOS_STORAGE_ENDPOINT")
    if endpoint and uri.startswith("s3"):
        options["endpoint_url"] = endpoint
    filesystem, path = fsspec.core.url_to_fs(uri, **options)
    return bytes(filesystem.cat_file(path))


def read_secrets(path: str | None) -> None:
    """Take NAME=value lines into the environment, from a file that only this user can read."""
    if not path:
        return
    mode = stat.S_IMODE(os.stat(path).st_mode)
    if mode & 0o077:
        leave(f"{path} has mode {mode:04o}: others can read it. chmod 600 {path}")
    for line in Path(path).read_text().splitlines():
        name, separator, value = line.strip().removeprefix("export ").partition("=")
        if separator and not name.startswith("#"):
            os.environ[name] = value.strip("'\"")


def leave(message: str) -> None:
    """Report the problem and exit."""
    sys.stderr.write(f"pelagos: {message}\n")
    sys.exit(EXIT_UNFIT)


if __name__ == "__main__":
    main()
