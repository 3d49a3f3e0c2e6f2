"""A real browser, headless Chromium, and what tests ask of a page that it shows."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from tests import debian

PROGRAMS = ("chromium", "chromedriver")
PACKAGES = ("chromium", "chromium-driver")
OPTIONS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    # without these it asks hosts of its maker
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--disable-dev-shm-usage",
)

# WCAG 2.2, "relative luminance" and "contrast ratio", of every element with text of its own.
CONTRASTS = """
const channel = v => { v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4 };
const parse = text => text.match(/[\\d.]+/g).map(Number);
const light = c => 0.2126 * channel(c[0]) + 0.7152 * channel(c[1]) + 0.0722 * channel(c[2]);
const below = e => {
  for (; e; e = e.parentElement) {
    const c = parse(getComputedStyle(e).backgroundColor);
    if (c.length < 4 || c[3] > 0) return c;
  }
  return [255, 255, 255];
};
const found = [];
for (const e of document.querySelectorAll('body *')) {
  const own = [...e.childNodes].filter(n => n.nodeType === 3 && n.textContent.trim());
  if (!own.length || !e.checkVisibility()) continue;
  const [a, b] = [light(parse(getComputedStyle(e).color)), light(below(e))];
  found.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), own[0].textContent.trim()]);
}
return found;
"""


@contextlib.contextmanager
def open_browser(folder: Path) -> Iterator[Chrome]:
    """Start Chromium with a profile in a folder; `debian.install(PROGRAMS, PACKAGES)` first."""
    options = ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for option in (*OPTIONS, f"--user-data-dir={folder}"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = Chrome(options=options, service=Service("/usr/bin/chromedriver"))
    try:
        yield driver
    finally:
        driver.quit()


def install() -> str:
    """Install the browser if it is not there; return why that failed, or nothing."""
    return debian.install(PROGRAMS, PACKAGES)


def show(driver: Chrome, address: str, width: int, *, dark: bool = False) -> None:
    """Open a page in a window of that many CSS pixels; `driver.get_log` is empty before."""
    driver.get_log("browser")
    metrics = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": width < 600}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    driver.get(address)


def complaints(driver: Chrome) -> list[str]:
    """Return what the browser's console says of the page."""
    return [entry["message"] for entry in driver.get_log("browser")]


def sideways(driver: Chrome) -> list[str]:
    """Return what makes the page as a whole scroll sideways; empty if it does not."""
    if driver.execute_script("return document.documentElement.scrollWidth <= innerWidth"):
        return []
    script = """return [...document.querySelectorAll('body *')]
      .filter(e => e.getBoundingClientRect().right > innerWidth + 1)
      .filter(e => !e.closest('.wide, .picture, pre'))
      .map(e => e.tagName + ' ' + e.textContent.slice(0, 40))"""
    return ["the page is wider than the window", *driver.execute_script(script)]


def worst_contrast(driver: Chrome) -> tuple[float, str]:
    """Return the lowest contrast ratio between text and what is below it, and that text."""
    found: Any = driver.execute_script(CONTRASTS)
    ratio, text = min(found)
    return float(ratio), str(text)


def unread_pictures(driver: Chrome, least: int) -> list[str]:
    """Return the pictures that are broken, narrower than `least` CSS pixels, or without words."""
    script = """return [...document.images].filter(i => !i.alt || !i.naturalWidth
      || i.getBoundingClientRect().width < Math.min(arguments[0], i.naturalWidth)).map(i => i.alt)"""
    driver.execute_script("[...document.images].forEach(i => i.loading = 'eager')")
    driver.execute_async_script(
        "const done = arguments[0]; Promise.all([...document.images].map(i => i.decode()))"
        ".then(() => done(), () => done())"
    )
    found: list[str] = driver.execute_script(script, least)
    return found
