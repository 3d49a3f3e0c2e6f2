"""Write the locks that `make venv` installs from: every file that pip may take, by its sha256.

    uv pip compile pyproject.toml --extra dev --constraint constraints.txt --universal \\
        --python-version 3.11 --generate-hashes --no-header --no-annotate | python requirements/lock.py

`uv` is on PyPI, and takes versions and digests from there. What it says is split by how it is installed:

    wheels.lock      all but the following, never built here
    sources.lock     packages that have no wheels: built with the setuptools of wheels.lock
    torch.lock       PyPI's torch, with the CUDA libraries that it needs on Linux
    torch-cpu.lock   PyTorch's builds for the CPU, for machines whose index has them: kept by hand,
                     because PyPI does not have them
"""

import re
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
SOURCES = ("deepspeed",)
TORCH = re.compile(r"(torch|triton|nvidia-.*|cuda-.*)")


def main() -> None:
    """Read uv's answer from standard input and write the three locks."""
    entries = split(sys.stdin.read())
    parts: dict[str, list[str]] = {"wheels": [], "sources": [], "torch": []}
    for name, text in entries.items():
        part = "sources" if name in SOURCES else "torch" if TORCH.fullmatch(name) else "wheels"
        parts[part].append(text)
    for part, texts in parts.items():
        (FOLDER / f"{part}.lock").write_text("".join(texts), encoding="utf-8")


def split(lock: str) -> dict[str, str]:
    """Return the text of each requirement of a lock, by its name.

    Raises:
        ValueError: one has no hash, or what was read is no lock.
    """
    entries = {}
    for text in re.findall(r"^\S.*\n(?:[ \t]+.*\n)*", lock, re.MULTILINE):
        name = re.match(r"[A-Za-z0-9._-]+(?===)", text)
        if name is None or "--hash=sha256:" not in text:
            raise ValueError(f"{text.splitlines()[0]} is no requirement with a version and a hash")
        entries[re.sub(r"[._-]+", "-", name[0]).lower()] = text
    if not entries:
        raise ValueError("nothing was read: give the answer of `uv pip compile --generate-hashes`")
    return entries


if __name__ == "__main__":
    main()
