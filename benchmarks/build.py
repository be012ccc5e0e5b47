"""How long it takes to cut one region of interest into 10,000 stored chips with patch labels.

Two ways take turns on the same windows of the same tile, and their chips are compared:

- the notebook's way: for every chip the file is opened, one window is read, its codes collapsed by
  a mapping, coloured in floats, and every 16 x 16 patch labelled by counting its pixels in a
  double loop; all chips end in one ``.npz``;
- ``bharateo``: the region is read once and cut from memory into checksummed, synced shards with
  footprints, class fractions and band statistics; patch labels come from one ``bincount`` for
  every 64 chips.

The tile is the WorldCover mirror's if there is one (``../shared/data/worldcover-mirror`` or
``BHARATEO_TEST_DATA``), else a synthetic one of the same size and layout.

Run: ``python benchmarks/build.py > benchmarks/build.md`` (under a minute on two cores).
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd
import rasterio
from rasterio.windows import Window
from scipy.ndimage import gaussian_filter

from bharateo.chips.build import build
from bharateo.chips.store import Dataset
from bharateo.config import DataConfig, PlanConfig
from bharateo.landcover import WORLDCOVER, patch_class_counts, patch_mode
from bharateo.regions import NAMED_ROIS, TILE_PX, tile_windows, worldcover_window
from bharateo.sources.worldcover import worldcover_recipe

ROI = NAMED_ROIS["delhi_ncr"]
CHIP_PX = 128
PATCH_PX = 16
KEY = "v200/2021/map/ESA_WorldCover_10m_2021_v200_N27E075_Map.tif"
COLOURS = {
    0: (35, 132, 67), 1: (188, 189, 34), 2: (127, 191, 123), 3: (215, 48, 39),
    4: (217, 164, 65), 5: (49, 130, 189), 6: (44, 162, 95), 7: (189, 189, 189),
}  # fmt: skip

Result = TypeVar("Result")
Rounds = dict[str, list[float]]
"""Seconds of every round, by name."""

Labelled = tuple[np.ndarray, np.ndarray]
"""Chips (chip, band, row, col) and their patch labels (chip, patch row, patch col)."""


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chips", type=int, default=10_000)
    parser.add_argument("--notebook-chips", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root, kind = find_root(Path(folder))
        seconds, details = race(root, Path(folder), options)
        print(report(seconds, details, kind, options))


def find_root(folder: Path) -> tuple[Path, str]:
    """A folder laid out like the WorldCover bucket, and what is in it."""
    shared = os.environ.get("BHARATEO_TEST_DATA", "../shared/data")
    mirror = Path(shared) / "worldcover-mirror"
    if (mirror / KEY).exists():
        return mirror, "real WorldCover 2021 pixels (Delhi)"
    write_tile(folder / "mirror" / KEY)
    return folder / "mirror", "synthetic WorldCover-like pixels"


def write_tile(path: Path) -> None:
    """A sparse tile that holds blobs of WorldCover classes under the ROI."""
    random = np.random.default_rng(0)
    codes = np.array([10, 20, 30, 40, 50, 60, 80, 90], np.uint8)
    part = next(tile_windows(worldcover_window(ROI)))
    noise = [gaussian_filter(random.normal(size=(part.height, part.width)), 6) for _ in codes]
    path.parent.mkdir(parents=True)
    layout = {"tiled": True, "blockxsize": 1024, "blockysize": 1024, "compress": "deflate"}
    size = {"width": TILE_PX, "height": TILE_PX, "count": 1, "dtype": "uint8", "nodata": 0}
    grid = {"crs": "EPSG:4326", "transform": rasterio.Affine(1 / 12000, 0, 75, 0, -1 / 12000, 30)}
    with rasterio.open(path, "w", driver="GTiff", SPARSE_OK=True, **layout, **size, **grid) as tile:
        values = codes[np.argmax(noise, axis=0)]
        tile.write(values, 1, window=Window(part.col, part.row, part.width, part.height))


def race(root: Path, folder: Path, options: argparse.Namespace) -> tuple[Rounds, Rounds]:
    """Seconds of every round of both ways, and of their parts."""
    seconds: Rounds = {"notebook": [], "bharateo": []}
    details: Rounds = {"loop": [], "bincount": []}
    for _ in range(options.rounds):
        shutil.rmtree(folder / "dataset", ignore_errors=True)
        dataset = clocked(seconds["bharateo"], partial(our_way, root, folder, options.chips))
        labels = clocked(details["bincount"], partial(patch_labels, dataset))
        seconds["bharateo"][-1] += details["bincount"][-1]
        table = dataset.chips.head(options.notebook_chips)
        theirs = clocked(seconds["notebook"], partial(notebook_way, root, folder, table))
        class_ids = [dataset.landcover(chip) for chip in table.chip]
        clocked(details["loop"], partial(list, map(loop_labels, class_ids)))
        compare(dataset, labels, theirs)
    return seconds, details


def clocked(seconds: list[float], work: Callable[[], Result]) -> Result:
    """What the work gives; its seconds are added to the list."""
    start = time.perf_counter()
    result = work()
    seconds.append(time.perf_counter() - start)
    return result


def our_way(root: Path, folder: Path, num_chips: int) -> Dataset:
    """Random windows with two classes at least, as the notebook draws them."""
    plan = PlanConfig("random", CHIP_PX, num_chips, min_classes=2, split=None)
    data = DataConfig(rois=("delhi_ncr",), worldcover_root=str(root))
    return build(worldcover_recipe(data), plan, folder / "dataset", seed=42)


def patch_labels(dataset: Dataset) -> np.ndarray:
    """Patch labels of all chips, as training makes them."""
    labels = []
    for start in range(0, dataset.num_chips, 64):
        chips = range(start, min(start + 64, dataset.num_chips))
        class_ids = np.stack([dataset.landcover(chip) for chip in chips])
        labels.append(patch_mode(patch_class_counts(class_ids, PATCH_PX)))
    return np.concatenate(labels)


def notebook_way(root: Path, folder: Path, table: pd.DataFrame) -> Labelled:
    """The chips of the same windows, cut as the notebook cuts them."""
    part = next(tile_windows(worldcover_window(ROI)))
    images, labels = [], []
    for row, col in zip(table.row, table.col, strict=True):
        window = Window(part.col + col, part.row + row, CHIP_PX, CHIP_PX)
        with rasterio.open(root / KEY) as tile:
            native = tile.read(1, window=window)
        collapsed = np.full(native.shape, 7, np.int64)
        for code, (_, class_id) in WORLDCOVER.native.items():
            collapsed[native == code] = class_id
        images.append(coloured(collapsed))
        labels.append(loop_labels(collapsed))
    arrays = np.stack(images), np.stack(labels)
    np.savez(folder / "notebook.npz", images=arrays[0], labels=arrays[1])
    return arrays


def coloured(class_ids: np.ndarray) -> np.ndarray:
    """The palette rendering, one class after the other, in floats."""
    rgb = np.zeros((*class_ids.shape, 3), np.float32)
    for class_id, colour in COLOURS.items():
        rgb[class_ids == class_id] = np.array(colour, np.float32) / 255.0
    return np.transpose(rgb, (2, 0, 1))


def loop_labels(class_ids: np.ndarray) -> np.ndarray:
    """The most frequent class of every patch; ties go to the lowest id."""
    rows, cols = (size // PATCH_PX for size in class_ids.shape)
    labels = np.zeros((rows, cols), np.int64)
    for row in range(rows):
        for col in range(cols):
            patch = class_ids[
                row * PATCH_PX : (row + 1) * PATCH_PX, col * PATCH_PX : (col + 1) * PATCH_PX
            ]
            counts = Counter(patch.reshape(-1).tolist())
            labels[row, col] = min(counts, key=lambda class_id: (-counts[class_id], class_id))
    return labels


def compare(dataset: Dataset, labels: np.ndarray, theirs: Labelled) -> None:
    """Make sure both ways cut the same chips; where there is no label the notebook says rare."""
    for chip, (image, patch) in enumerate(zip(*theirs, strict=True)):
        labelled = dataset.landcover(chip) != 255
        ours = dataset.image(chip) / np.float32(255)
        np.testing.assert_allclose(ours[:, labelled], image[:, labelled], atol=1e-6)
        if labelled.all():
            np.testing.assert_array_equal(labels[chip].reshape(patch.shape), patch)


def report(seconds: Rounds, details: Rounds, kind: str, options: argparse.Namespace) -> str:
    """The measured table as markdown, with its date and conditions."""
    rows = [
        line("region to stored chips with patch labels", seconds, "notebook", "bharateo", options),
        line("of which patch labels", details, "loop", "bincount", options),
    ]
    head = (
        f"# From a region to {options.chips:,} stored chips\n\n"
        f"{datetime.date.today()}, {kind}, one region of 2048 x 2048 px, chips of {CHIP_PX} px, "
        f"{os.cpu_count()} cores ({platform.machine()}), median of {options.rounds} rounds in "
        f"turns; the notebook's way is timed on {options.notebook_chips:,} of the same chips.\n"
    )
    table = [
        "| | notebook's way, chips/s | bharateo, chips/s | ratio |",
        "|---|---|---|---|",
        *rows,
    ]
    whole = statistics.median(seconds["bharateo"])
    tail = f"\nAll {options.chips:,} chips take bharateo {whole:.1f} s."
    return "\n".join([head, *table, tail])


def line(title: str, seconds: Rounds, slow: str, fast: str, options: argparse.Namespace) -> str:
    """A row of the table."""
    theirs = options.notebook_chips / statistics.median(seconds[slow])
    ours = options.chips / statistics.median(seconds[fast])
    return f"| {title} | {theirs:,.0f} | {ours:,.0f} | {ours / theirs:.1f}x |"


if __name__ == "__main__":
    main()
