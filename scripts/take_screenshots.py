#!/usr/bin/env python3
"""Takes the pictures of the page in docs/images: light, dark, and as wide as a phone.

    pmpd-edge serve &
    python scripts/take_screenshots.py http://127.0.0.1:8080

Of the default model, by the Chromium that is installed.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from playwright.sync_api import Browser, Page, expect, sync_playwright

IMAGES = Path(__file__).parent.parent / "docs" / "images"
FIRST = "Ein Mann mit einem roten Hut steht vor einem Laden und spricht mit zwei Kindern, die auf dem Boden sitzen."
SECOND = "Mehrere Menschen warten im Regen an einer Haltestelle, während ein Hund über die nasse Straße läuft."
POINTED_AT = 8  # the token that is shown with its precision and probability
WIDE, NARROW = (1280, 800), (360, 740)


def send(page: Page, text: str) -> None:
    """Send a message and wait for its answers."""
    page.fill("#message", text)
    page.press("#message", "Enter")
    expect(page.locator("#stop")).to_be_disabled()
    expect(page.locator("[aria-busy=true]")).to_have_count(0)


def take_wide(browser: Browser, url: str, theme: str, path: Path) -> None:
    """An answer by pmpd, then all three side by side."""
    width, height = WIDE
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=theme)
    page.goto(url)
    send(page, FIRST)
    page.get_by_role("radio", name="side by side", exact=True).check()
    send(page, SECOND)
    page.locator(".turn").last.locator(".answer").first.locator(".token").nth(POINTED_AT).hover()
    page.screenshot(path=path)
    page.close()


def take_narrow(browser: Browser, url: str, path: Path) -> None:
    """An answer on a phone, whose pixels are finer."""
    width, height = NARROW
    page = browser.new_page(viewport={"width": width, "height": height}, device_scale_factor=2)
    page.goto(url)
    send(page, FIRST)
    page.screenshot(path=path)
    page.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="where the server is")
    parser.add_argument("--out", type=Path, default=IMAGES, help="directory of the pictures")
    args = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        for theme in ("light", "dark"):
            take_wide(browser, args.url, theme, args.out / f"page-{theme}.png")
        take_narrow(browser, args.url, args.out / "page-narrow.png")
        browser.close()


if __name__ == "__main__":
    main()
