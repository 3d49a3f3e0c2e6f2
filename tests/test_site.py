"""The documentation as a site: it builds without a warning, and a mistake on a page fails the build."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml

from pelagos.cli.reference import reference_markdown

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("docs", "src/pelagos", *(p.name for p in ROOT.glob("*.md")), "mkdocs.yml", "benchmarks")
PROMISED = (  # DESIGN's imports that stay put; each must be in the reference
    "pelagos.platform.config.load.load_job",
    *(f"pelagos.jobs.{job}.run" for job in ("pretrain", "finetune", "evaluate", "generate")),
    "pelagos.models.registry.create_model",
    "pelagos.models.registry.list_models",
    "pelagos.models.poseidon.ScOT.forward",
    "pelagos.models.dpot.DPOT.forward",
    "pelagos.data_pipelines.store.reader.open_dataset",
    "pelagos.data_pipelines.store.reader.Dataset.window",
    "pelagos.platform.callbacks.Callback.on_step",
    "pelagos.platform.strategies.base.Strategy.micro_step",
    "pelagos.models.objectives.base.Objective.errors",
)


class _Links(HTMLParser):
    """The addresses that a page names, and the places in it that can be named."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.hrefs: list[str] = []
        self.loaded: list[str] = []
        self.ids: set[str] = set()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.ids.add(values.get("id", ""))
        if tag == "a" and "href" in values:
            self.hrefs.append(values["href"])
        elif tag == "link" and values.get("rel") not in ("canonical", "prev", "next"):
            self.loaded.append(values.get("href", ""))
        elif tag in ("script", "img") and "src" in values:
            self.loaded.append(values["src"])


def build(checkout: Path, site: Path) -> subprocess.CompletedProcess[str]:
    """Build the site of a checkout as `make docs` does."""
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)],
        cwd=checkout,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("site")
    done = build(ROOT, directory)
    assert done.returncode == 0, done.stdout + done.stderr
    return directory


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The part of the checkout that the site is made from, to be spoilt."""
    copy = tmp_path / "checkout"
    for source in SOURCES:
        if (ROOT / source).is_dir():
            shutil.copytree(
                ROOT / source, copy / source, ignore=shutil.ignore_patterns("__pycache__")
            )
        else:
            shutil.copy(ROOT / source, copy / source)
    return copy


def test_the_reference_of_the_command_line_is_up_to_date() -> None:
    committed = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert committed == reference_markdown(), "a verb has changed: run `make docs`"


def test_every_page_is_on_the_site_and_every_link_leads_somewhere(site: Path) -> None:
    """Held against the HTML itself: what MkDocs checks is its own Markdown."""
    pages = {path: _Links(path) for path in site.rglob("*.html") if path.name != "404.html"}
    written = {p.relative_to(ROOT / "docs").as_posix() for p in (ROOT / "docs").rglob("*.md")}
    built = {p.relative_to(site).as_posix() for p in pages}
    assert {w.replace("README.md", "index.md").replace(".md", ".html") for w in written} <= built
    broken = []
    for page, links in pages.items():
        for href in links.hrefs:
            if re.match(r"[a-z]+:", href):
                continue
            file, _, anchor = href.partition("#")
            target = (page.parent / unquote(file)).resolve() if file else page
            leads = target in pages or target.is_file()
            if anchor and target in pages:
                leads = unquote(anchor) in pages[target].ids
            if not leads:
                broken.append(f"{page.name}: {href}")
    assert broken == []


def test_the_site_loads_nothing_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        outside = [a for a in _Links(page).loaded if re.match(r"([a-z]+:)?//", a)]
        assert outside == [], page.name


def test_the_reference_has_every_promised_name_with_its_docstring(site: Path) -> None:
    page = (site / "api.html").read_text(encoding="utf-8")
    for name in PROMISED:
        _, found, rest = page.partition(f'id="{name}"')
        assert found, name
        assert '<div class="doc doc-contents' in rest[:20_000], name


def test_every_page_is_in_the_navigation() -> None:
    text = re.sub(r"!!python\S+", "", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    nav = yaml.safe_dump(yaml.safe_load(text)["nav"])
    for page in (ROOT / "docs").rglob("*.md"):
        assert page.relative_to(ROOT / "docs").as_posix() in nav


def test_each_mistake_on_a_page_is_reported_and_fails_the_build(
    checkout: Path, tmp_path: Path
) -> None:
    mistakes = [
        ("docs/sweeps.md", "[gone](no-such-page.md)", "no-such-page.md"),
        ("docs/sweeps.md", "[gone](evaluation.md#no-such-heading)", "no-such-heading"),
        ("SECURITY.md", "[gone](docs/nor-this-page.md)", "docs/nor-this-page.md"),
        ("docs/api.md", "[it][pelagos.jobs.pretrain.no_such_name]", "no_such_name"),
        ("docs/unlisted.md", "# A page that nobody finds", "unlisted.md"),
    ]
    for page, text, _ in mistakes:
        with (checkout / page).open("a", encoding="utf-8") as file:
            file.write(f"\n{text}\n")
    plugins = checkout / "src/pelagos/plugins.py"
    text = plugins.read_text(encoding="utf-8")
    summary = '"""Add a loss that `objective.config.loss` can name.'
    assert summary in text
    invented = f"{summary}\n\n    Args:\n        colour: no such argument.\n    "
    plugins.write_text(text.replace(summary, invented), encoding="utf-8")
    done = build(checkout, tmp_path / "site")
    assert done.returncode != 0
    messages = re.split(r"^(?=[A-Z]+ +- )", done.stderr, flags=re.MULTILINE)
    warnings = "".join(message for message in messages if message.startswith("WARNING"))
    for said in (*(said for _, _, said in mistakes), "'colour'"):
        assert said in warnings, done.stderr


def test_a_name_that_is_not_in_the_code_fails_the_build(checkout: Path, tmp_path: Path) -> None:
    with (checkout / "docs/api.md").open("a", encoding="utf-8") as file:
        file.write("\n::: pelagos.plugins.no_such_name\n")
    done = build(checkout, tmp_path / "site")
    assert done.returncode != 0
    assert "pelagos.plugins.no_such_name" in done.stderr
