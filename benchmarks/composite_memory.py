"""How much memory a composite takes as its ground grows.

``bharateo composite`` makes the median of three days of a made-up place of growing size, read over
HTTP, each time in a fresh process whose largest resident size is printed. Days and bands share a
few files, so that a large place takes little disk.

Run: ``python benchmarks/composite_memory.py > benchmarks/composite_memory.md`` (minutes).
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.windows import Window

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from bharateo.geography import bounds_lonlat
from l2a_scenes import BANDS, BANDS_20M, SceneFiles, made_up_scene, made_up_scl
from range_server import RangeServer
from stac_server import StacServer

CORNER = (699960, 3179560)
"""On the grid of Sentinel-2's tile 43RGM."""

DAYS = (datetime(2021, 12, 5, 5, 30, tzinfo=UTC), datetime(2022, 1, 14, 5, 30, tzinfo=UTC),
        datetime(2022, 2, 3, 5, 30, tzinfo=UTC))  # fmt: skip
_PATTERN_PX = 2048
_PROGRAM = """
import resource, sys
from bharateo.verbs.cli import main
status = main(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
sys.exit(status)
"""


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sides", type=int, nargs="+", default=[2048, 4096, 6144])
    parser.add_argument("--bands", nargs="+", default=["10band"])
    parser.add_argument("--folder", type=Path, help="where to write (default: a temporary folder)")
    options = parser.parse_args()
    print(f"# Composites\n\n{' '.join((__doc__ or '').split(chr(10) * 2)[1].split())}\n")
    print(f"{datetime.now(UTC):%Y-%m-%d}. Bands {' '.join(options.bands)}, {len(DAYS)} days; "
          f"{os.cpu_count()} cores ({platform.machine()}), "
          f"Python {platform.python_version()}.\n")  # fmt: skip
    print("| million pixels | peak memory, MB | seconds | requests | MB fetched |")
    print("|---|---|---|---|---|")
    for side in options.sides:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            pixels, peak_mb, seconds, requests, mb = measured(Path(folder), side, options.bands)
            print(f"| {pixels:,.1f} | {peak_mb:,.0f} | {seconds:,.0f} | {requests:,} | {mb:,.0f} |",
                  flush=True)  # fmt: skip


def measured(folder: Path, side: int, bands: list[str]) -> tuple[float, float, float, int, float]:
    """One composite in a process of its own: million pixels, largest resident size in MB, seconds,
    requests, and MB fetched.
    """
    scenes = write_scenes(folder / "s2", side)
    west, south, east, north = bounds_lonlat(scenes[0].geobox.pad(-side // 50))
    with (
        RangeServer(folder) as files,
        StacServer([scene.item(f"{files.url}/s2") for scene in scenes]) as stac,
    ):
        started = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", _PROGRAM, "composite", "--dates", "2021-11-01/2022-03-31",
             "--roi", f"p={west},{south},{east},{north}", "--bands", *bands,
             "--output", f"{folder}/c.tif",
             "--set", f"data.sentinel2.catalogue=earth-search={stac.url}"],
            stdout=subprocess.PIPE, text=True, check=True,
        )  # fmt: skip
        seconds, fetched, requests = time.monotonic() - started, files.num_bytes, len(files.gets)
    peak_mb = int(done.stdout.split()[-1]) / 1024
    with rasterio.open(folder / "c.tif") as file:
        pixels = file.width * file.height / 1e6
    return pixels, peak_mb, seconds, requests, fetched / 1e6


def write_scenes(folder: Path, side: int) -> list[SceneFiles]:
    """A scene a day, whose bands of one resolution are one file; each day has its own clouds."""
    reflectance, codes = made_up_scene((_PATTERN_PX, _PATTERN_PX), seed=1)
    grid = GeoBox((side, side), Affine(10, 0, CORNER[0], 0, -10, CORNER[1]), "EPSG:32643")
    files = {"10m": reflectance[0], "20m": reflectance[0, ::2, ::2]}
    scenes = []
    for number, day in enumerate(DAYS):
        scene = SceneFiles(
            folder, f"S2A_43RGM_{number}", grid, day, "03.01", 5.0, True, "earth-search", "43RGM"
        )
        (folder / scene.name).mkdir(parents=True)
        if not scenes:
            write_repeated(folder / "10m.tif", files["10m"], grid)
            write_repeated(folder / "20m.tif", files["20m"], scene.geobox_20m)
        for band in BANDS:
            scene.path(band).symlink_to(folder / ("20m.tif" if band in BANDS_20M else "10m.tif"))
        classes = made_up_scl(reflectance, codes)
        classes[300 * number : 300 * number + 300] = 9
        write_repeated(scene.path("SCL"), classes, scene.geobox_20m)
        scenes.append(scene)
    return scenes


def write_repeated(path: Path, pattern: np.ndarray, grid: GeoBox) -> None:
    """A tiled file that repeats a pattern all over a grid."""
    height, width = grid.shape
    with rasterio.open(
        path, "w", driver="GTiff", height=height, width=width, count=1, dtype=pattern.dtype,
        crs=str(grid.crs), transform=grid.affine, tiled=True, blockxsize=1024, blockysize=1024,
        compress="deflate", predictor=2, zlevel=1, nodata=0,
    ) as file:  # fmt: skip
        for row in range(0, height, pattern.shape[0]):
            for col in range(0, width, pattern.shape[1]):
                part = pattern[: height - row, : width - col]
                file.write(part, 1, window=Window(col, row, part.shape[1], part.shape[0]))


if __name__ == "__main__":
    main()
