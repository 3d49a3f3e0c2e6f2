"""The report of a trained run, read in a real browser: widths, dark mode, keyboard, curves, facts."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from selenium.webdriver import Chrome
from selenium.webdriver.common.keys import Keys
from tests import browser as browsing

from pelagos.jobs import evaluate, pretrain
from pelagos.platform.config import EvaluateJob, PretrainJob
from pelagos.platform.config.load import parse_job
from pelagos.platform.records.runs import RunDirectory

QUIET = Console(quiet=True)
WIDTHS = (1400, 768, 390)
MOST_BYTES = 10 * 2**20
LEAST_CONTRAST = 4.5  # WCAG 2.2, 1.4.3, level AA
READABLE = 300  # CSS pixels


@pytest.fixture(scope="module")
def report(
    datasets: tuple[str, str],
    tiny_job_text: Callable[[tuple[str, str], Path, str], str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The report of a short run, on two trajectories of each of its datasets."""
    directory = tmp_path_factory.mktemp("report")
    job = parse_job(tiny_job_text(datasets, directory, "r"), "r", ["tracking.uri=null"])
    assert isinstance(job, PretrainJob)
    pretrain.run(job, QUIET)
    wanted = EvaluateJob(run="r", runs_dir=job.runs_dir, tracking=False)
    return evaluate.run(wanted).report


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_reads_well(report: Path, browser: Chrome, width: int, dark: bool) -> None:
    browsing.show(browser, report.as_uri(), width, dark=dark)
    assert browsing.unread_pictures(browser, READABLE) == []
    assert browsing.sideways(browser) == []
    ratio, text = browsing.worst_contrast(browser)
    assert ratio >= LEAST_CONTRAST, text
    assert browsing.complaints(browser) == []
    page = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", page)[:3])) < 200) == dark
    assert report.stat().st_size < MOST_BYTES


def test_the_page_is_for_keyboards_and_screen_readers(report: Path, browser: Chrome) -> None:
    browsing.show(browser, report.as_uri(), 390)
    browser.switch_to.active_element.send_keys(Keys.TAB)
    first = browser.switch_to.active_element
    assert first.text.startswith("Skip to")
    assert first.rect["x"] >= 0  # seen once it has the focus
    # whatever scrolls by itself can be reached and is named
    script = """return [...document.querySelectorAll('body *')].filter(e =>
      e.scrollWidth > e.clientWidth + 1 && ['auto', 'scroll'].includes(getComputedStyle(e).overflowX)
      && (e.tabIndex < 0 || !e.getAttribute('aria-label'))).map(e => e.outerHTML.slice(0, 80))"""
    assert browser.execute_script(script) == []
    levels = browser.execute_script(
        "return [...document.querySelectorAll('h1, h2, h3, h4')].map(h => +h.tagName[1])"
    )
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert max(np.diff(levels)) <= 1
    assert browser.execute_script("return document.querySelectorAll('th:not([scope])').length") == 0
    anchors = browser.execute_script(
        "return [...document.querySelectorAll('a[href^=\"#\"]')].map(a => a.hash.slice(1))"
    )
    assert all(
        browser.execute_script("return document.getElementById(arguments[0])", a) for a in anchors
    )
    assert browser.execute_script("return document.documentElement.lang") == "en"


def test_the_page_tells_how_the_model_was_trained_and_on_what(
    report: Path, browser: Chrome
) -> None:
    browsing.show(browser, report.as_uri(), 1400)
    text = browser.find_element("tag name", "main").text
    for stated in (
        "steps 8 of 8, 4 samples each",
        "optimizer adamw, peak rate 0.003, cosine schedule, 2 steps of warm-up",
        "weights at the start random",
        "grid 16 x 16 points, domain 1 x 1",
        "trajectories train 8, validation 2, test 2",
        "licence not stated",
        "for 4 trajectories",
        "Learning curves",
    ):
        assert stated in text, text
    assert len(browser.find_elements("css selector", ".card")) == 2


@pytest.mark.curves
def test_every_run_has_its_curves(make_job: Callable[..., PretrainJob]) -> None:
    job = make_job(tracking__uri="null")
    pretrain.run(job, QUIET)
    run = RunDirectory.open(job.runs_dir, job.name)
    with Image.open(run.path / "curves.png") as picture:
        assert picture.width > 800
        colours = np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)
    assert len(colours) > 20  # axes, text and lines, not an empty page


@pytest.mark.curves
def test_a_picture_that_cannot_be_drawn_undoes_no_training(
    make_job: Callable[..., PretrainJob], caplog: pytest.LogCaptureFixture
) -> None:
    job = make_job(tracking__uri="null")
    pretrain.run(job, QUIET, until_step=2)
    picture = Path(job.runs_dir) / job.name / "curves.png"
    picture.unlink()
    picture.mkdir()  # what others may put there
    assert pretrain.resume(job.runs_dir, job.name, QUIET).outcome.kind == "finished"
    assert "could not draw the learning curves of run" in caplog.text
