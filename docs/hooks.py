"""Fit the repository to MkDocs: pages outside of `docs/`, and a package without `__init__.py`.

MkDocs builds the pages in `docs/`. Some others lie where people look for them in a checkout, and all
link to each other by relative paths. Nothing here uses the network.
"""

import posixpath
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
OUTSIDE = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "benchmarks/LOG.md": "measurements.md",
}
"""Path in the repository -> path on the site."""
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s#:]+)(#[^)\s]*)?\)")
_copy = tempfile.TemporaryDirectory(prefix="pelagos-docs-")


@event_priority(100)  # before mkdocstrings reads its configuration
def on_config(config: Any) -> Any:
    """Let mkdocstrings read a copy of the package in which every folder has an `__init__.py`.

    Five folders must not have one (see CONTRIBUTING.md), and griffe takes no module of such a folder.
    """
    package = Path(_copy.name) / "pelagos"
    shutil.copytree(
        ROOT / "src" / "pelagos",
        package,
        ignore=shutil.ignore_patterns("__pycache__"),
        dirs_exist_ok=True,
    )
    for folder in package.rglob("*/"):
        (folder / "__init__.py").touch()
    config.plugins["mkdocstrings"].config.handlers["python"]["paths"] = [_copy.name]
    return config


def on_shutdown() -> None:
    """Remove that copy."""
    _copy.cleanup()


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that lie outside of `docs/`."""
    for source, place in OUTSIDE.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, place, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Point the links of a page to pages of the site."""
    place = page.file.src_uri
    sources = {there: source for source, there in OUTSIDE.items()}
    return links_on_the_site(markdown, sources.get(place, f"docs/{place}"), place)


def links_on_the_site(markdown: str, source: str, place: str) -> str:
    """Return a page's text with its links from the repository as links on the site.

    A link to a file that is in the repository and not on the site becomes its text. A link to no file
    at all stays, and MkDocs reports it.
    """

    def on_the_site(match: re.Match[str]) -> str:
        text, link, anchor = match[1], match[2], match[3] or ""
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link))
        if target in OUTSIDE:
            there = OUTSIDE[target]
        elif target.startswith("docs/") and (ROOT / target).is_file():
            there = target.removeprefix("docs/")
        elif (ROOT / target).exists() and not target.startswith(".."):
            index = f"{target}/README.md"
            if not target.startswith("docs/") or not (ROOT / index).is_file():
                return text
            there = index.removeprefix("docs/")
        else:
            return match[0]
        return f"[{text}]({posixpath.relpath(there, posixpath.dirname(place) or '.')}{anchor})"

    return LINK.sub(on_the_site, markdown)
