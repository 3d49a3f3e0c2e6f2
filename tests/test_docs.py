"""The prose: pages written from the code are up to date, links lead somewhere, commands exist."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest
import typer

from pelagos.cli.main import app
from pelagos.data_pipelines.convert.mapping import load_mapping
from pelagos.platform.config.clusters import parse_clusters
from pelagos.platform.config.load import parse_job
from pelagos.platform.config.reference import reference_markdown

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
COMMAND = re.compile(r"(?<![\w/.-])pelagos ([a-z]+(?:-[a-z]+)*)(?: ([a-z]+)\b)?")


def page_id(path: Path) -> str:
    return str(path.relative_to(ROOT))


def anchors(path: Path) -> set[str]:
    """The links that headings of a page can be reached by."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


def test_the_job_file_reference_is_up_to_date() -> None:
    committed = (ROOT / "docs" / "job-file.md").read_text(encoding="utf-8")
    assert committed == reference_markdown(), "the schema has changed: run `make docs`"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", link):
            continue  # another site
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_commands_exist(page: Path) -> None:
    """`pelagos verb` in code is a verb that there is."""
    root = typer.main.get_command(app)
    verbs = getattr(root, "commands", {})
    text = page.read_text(encoding="utf-8")
    code = [*re.findall(r"`([^`\n]+)`", text), *re.findall(r"^ {4}(\S.*)$", text, re.MULTILINE)]
    code += re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    unknown = {
        verb for snippet in code for verb, _ in COMMAND.findall(snippet) if verb not in verbs
    }
    assert unknown == set()


def blocks(language: str) -> list[object]:
    """The code blocks of one language on all pages, as test parameters named by page and line."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in re.finditer(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            line = text.count("\n", 0, match.start()) + 1
            found.append(pytest.param(match.group(1), id=f"{page_id(page)}:{line}"))
    return found


@pytest.mark.parametrize("text", blocks("yaml"))
def test_job_files_on_the_pages_are_valid(text: str) -> None:
    if text.startswith("job:"):
        parse_job(text, "the page")
    if text.startswith("clusters:"):
        assert parse_clusters(text, "the page")


def test_mappings_on_the_pages_are_valid(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "converting.md").read_text(encoding="utf-8")
    mappings = [t for t in re.findall(r"^```yaml\n(.*?)^```", page, re.M | re.S) if "axes: [" in t]
    assert len(mappings) >= 3
    for text in mappings:
        (tmp_path / "mapping.yaml").write_text(text, encoding="utf-8")
        assert load_mapping(str(tmp_path / "mapping.yaml")).fields


@pytest.mark.parametrize("text", blocks("python"))
def test_python_on_the_pages_imports_what_there_is(text: str) -> None:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pelagos"):
            module = importlib.import_module(node.module or "")
            for alias in node.names:
                if not hasattr(module, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")


NAMES_IN = re.compile(r"((?:`\w+`(?:,\s+|\s+and\s+)?)+)\s+in\s+`(pelagos(?:\.\w+)+)`")


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_names_that_pages_place_in_modules_are_there(page: Path) -> None:
    """Sentences like: `append` and `copy` in `pelagos.data_pipelines.management`."""
    for names, module in NAMES_IN.findall(page.read_text(encoding="utf-8")):
        found = importlib.import_module(module)
        missing = [n for n in re.findall(r"\w+", names) if n != "and" and not hasattr(found, n)]
        assert missing == [], f"{page.name} places {missing} in {module}"
