"""How soon an explorer answers a click and a stroke, and how near its model is to PyTorch's.

The page measures by itself, from the event to the frame that shows what came of it, in headless
Chromium ($CHROMIUM, else `chromium` on the path) with the model on one thread, opened from disk.

Run: ``bharateo explore RUN --output EXPLORER``, then
``python benchmarks/explorer.py RUN EXPLORER > benchmarks/explorer.md`` (minutes).
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import shutil
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch
from playwright.sync_api import Page, sync_playwright

from bharateo.handover.onnx_file import AutoencoderGraph
from bharateo.training.run import Run

TIMES = 25
STATE = """() => {
  const { chip, made } = paintView.state;
  const list = (each) => Array.from(each);
  return { image: list(chip.image), valid: list(chip.valid), hidden: list(made.hidden),
           made: list(made.reconstruction) };
}"""


def main() -> None:
    """Measure, and print the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("explorer", type=Path)
    options = parser.parse_args()
    run = Run.open(options.run)
    with sync_playwright() as playwright:
        path = os.environ.get("CHROMIUM") or shutil.which("chromium")
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.set_default_timeout(0)
        page.goto((options.explorer / "index.html").resolve().as_uri())
        clicks, strokes, differences = measured(run, page)
        num_patches, version = page.evaluate("areaView.state.area.count"), browser.version
        browser.close()
    size = sum(path.stat().st_size for path in options.explorer.rglob("*") if path.is_file())
    config = run.model.config
    print(
        f"# Explorer\n\n{datetime.date.today()}, {os.cpu_count()} cores ({platform.machine()}), "
        f"Chromium {version}; load {os.getloadavg()[0]:.1f} by other work. A folder of "
        f"{size / 1e6:.1f} MB: {num_patches:,} patches with vectors of {config.width} numbers, and "
        f"a model of {run.contract.num_parameters / 1e6:.2f} million parameters for "
        f"{run.model.num_bands} bands.\n\n"
        f"| from | to | ms, median of {TIMES} | fastest | slowest | aim |\n"
        "|---|---|---|---|---|---|\n"
        + row("click on a patch", "the 20 most like it are lit", clicks, 150)
        + row("stroke of the brush", "the chip is rebuilt", strokes, 300)
        + f"\nLargest difference from PyTorch over {TIMES} masks: {max(differences):.1e} "
        f"{run.sensor.unit}."
    )


def measured(run: Run, page: Page) -> tuple[list[float], list[float], list[float]]:
    """Milliseconds of clicks and of strokes, and differences from PyTorch after each stroke."""
    until(page, "areaView.state.area !== null")
    num_patches = page.evaluate("areaView.state.area.count")
    clicks = [click(page, i * num_patches // TIMES) for i in range(TIMES)]
    page.locator("nav a[href='#paint']").click()
    until(page, "paintView.settled()")
    strokes, differences = [], []
    for i in range(TIMES):
        strokes.append(stroke(page, i * 7 % run.model.num_tokens))
        differences.append(difference(run, page.evaluate(STATE)))
    return clicks, strokes, differences


def until(page: Page, condition: str) -> None:
    """Wait for an expression, without eval, which the page's policy forbids."""
    while not page.evaluate(condition):
        page.wait_for_timeout(20)


def row(start: str, end: str, ms: list[float], aim: int) -> str:
    """A row of the table."""
    shown = f"{statistics.median(ms):.0f} | {min(ms):.0f} | {max(ms):.0f} | {aim}"
    return f"| {start} | {end} | {shown} |\n"


def click(page: Page, patch: int) -> float:
    """Milliseconds until the patches most like one are lit."""
    x, y = page.evaluate(
        "(patch) => areaView.state.view.toCanvas(...areaView.state.area.centre(patch))", patch
    )
    page.evaluate("delete explorer.timings.nearest")
    page.locator("#map").click(position={"x": x, "y": y})
    until(page, "explorer.timings.nearest !== undefined")
    return float(page.evaluate("explorer.timings.nearest"))


def stroke(page: Page, patch: int) -> float:
    """Milliseconds until a chip is rebuilt after one more patch was hidden or shown."""
    page.evaluate("delete explorer.timings.rebuild")
    page.locator(f"[data-patch='{patch}']").click(force=True)
    until(page, "paintView.settled() && explorer.timings.rebuild !== undefined")
    return float(page.evaluate("explorer.timings.rebuild"))


@torch.no_grad()
def difference(run: Run, state: dict[str, Any]) -> float:
    """How far the page's rebuild is from PyTorch's, in physical units, where pixels are valid."""
    side, hidden = run.model.config.chip_px, np.array(state["hidden"])
    image = torch.tensor(state["image"]).view(1, -1, side, side)
    valid = torch.tensor(state["valid"], dtype=torch.bool).view(1, side, side)
    visible, masked = (torch.from_numpy(np.flatnonzero(hidden == some))[None] for some in (0, 1))
    expected = AutoencoderGraph(run).eval()(image, valid, visible, masked)[0]
    found = torch.tensor(state["made"]).view_as(expected)
    return float(((found - expected).abs() * valid[:, None]).max())


if __name__ == "__main__":
    main()
