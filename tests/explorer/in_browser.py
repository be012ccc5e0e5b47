"""Chromium, and what tests of pages do with it."""

import os
import shutil
import time

import pytest

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium")
NEEDS_CHROMIUM = pytest.mark.skipif(
    CHROMIUM is None, reason="no browser: install chromium, or set CHROMIUM to one"
)
PATIENCE_S = 120


def until(page, condition):
    """Wait for an expression. The page's policy forbids Playwright's own way, which is eval."""
    end = time.monotonic() + PATIENCE_S
    while not page.evaluate(condition):
        assert time.monotonic() < end, f"{condition} is still not so"
        page.wait_for_timeout(20)


def downloaded(page, button, folder):
    """The file that a button hands over."""
    with page.expect_download() as handed:
        page.locator(button).click()
    path = folder / handed.value.suggested_filename
    handed.value.save_as(path)
    return path


def serious(page):
    """What axe finds serious or critical on a page, each with the first element that has it."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    found = axe.run(page).response["violations"]
    return [(one["id"], one["nodes"][0]["html"], one["nodes"][0]["any"][:1])
            for one in found if one["impact"] in ("serious", "critical")]  # fmt: skip
