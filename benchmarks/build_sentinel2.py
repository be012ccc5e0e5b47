"""How fast Sentinel-2 scenes on a web server become stored chips, and how many bytes a chip costs.

Three ways take turns on the chips of one scene, read over HTTP without and with 20 ms of latency:

- window by window, the usual way: for every chip and band the file is opened, one window is read
  (20 m bands warped to 10 m), and the chip is stacked; on the same sites;
- the same with all files kept open and eight threads;
- ``bharateo``: neighbouring blocks in one request, every block once, cut, labelled, checked for
  cloud and stored with checksums, statistics and evidence, by as many processes as it chooses.

Pixels are checked to be equal. The scene is made up, compresses about like a real one, and lies on
a server of its own process. WorldCover lies on disk for all.

Run: ``python benchmarks/build_sentinel2.py > benchmarks/build_sentinel2.md`` (some minutes).
"""

from __future__ import annotations

import argparse
import datetime
import multiprocessing
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from bharateo.chips.build import build
from bharateo.chips.store import Dataset
from bharateo.chips.workers import Workers
from bharateo.config import DataConfig, PlanConfig, Sentinel2Config, SplitConfig
from bharateo.files import write_json
from bharateo.sources.catalogue import EARTH_SEARCH
from bharateo.sources.sentinel2 import sentinel2_recipe
from bharateo.sources.stac import scene_of
from l2a_scenes import BANDS, SceneFiles, codes_under, made_up_scene, made_up_scl, write_scene
from range_server import RangeServer

CORNER = (699960, 3179560)
"""On the grid of Sentinel-2's tile 43RGM."""

GDAL_OPTIONS = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_HTTP_MERGE_CONSECUTIVE_RANGES": "YES",
    "GDAL_HTTP_MULTIRANGE": "YES",
}


@dataclass
class Result:
    """What one way did in one round."""

    chips: int
    seconds: float
    requests: int
    bytes: int

    @property
    def chips_per_s(self) -> float:
        """Chips a second."""
        return self.chips / self.seconds


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--cols", type=int, default=8192)
    parser.add_argument("--window-chips", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scene, worldcover = write_pixels(Path(folder), (options.rows, options.cols))
        results = {
            latency: race(scene, worldcover, Path(folder), latency, options)
            for latency in (0.0, 0.02)
        }
        print(report(results, options))


def write_pixels(folder: Path, shape: tuple[int, int]) -> tuple[SceneFiles, Path]:
    """One scene and the labels under it."""
    reflectance, codes = made_up_scene(shape, seed=1)
    grid = GeoBox(shape, Affine(10, 0, CORNER[0], 0, -10, CORNER[1]), "EPSG:32643")
    for tile in codes_under(folder / "worldcover", [grid], [codes]):
        with rasterio.open(tile, "r+") as file:  # as the product's own tiles have them
            file.build_overviews([2, 4, 8, 16, 32, 64], Resampling.nearest)
    scene = write_scene(
        folder / "scenes", "S2A_43RGM", epsg=32643, corner=CORNER, reflectance=reflectance,
        scl=made_up_scl(reflectance, codes), when="2021-02-03T05:00:00Z", baseline="03.01",
        dn_offset=0, cloud_cover=3.0, flag=True, mgrs="43RGM",
    )  # fmt: skip
    return scene, folder / "worldcover"


@contextmanager
def server(folder: Path, latency_s: float) -> Iterator[tuple[str, Callable[[], tuple[int, int]]]]:
    """A server in a process of its own: its URL, and what it has sent since it was last asked."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=_serve, args=(folder, latency_s, theirs), daemon=True
    )
    process.start()
    url = ours.recv()

    def sent() -> tuple[int, int]:
        ours.send("count")
        counted: tuple[int, int] = ours.recv()
        return counted

    try:
        yield url, sent
    finally:
        ours.send("stop")
        process.join()


def _serve(folder: Path, latency_s: float, pipe: Connection) -> None:
    with RangeServer(folder, latency_s=latency_s) as running:
        pipe.send(running.url)
        while pipe.recv() == "count":
            pipe.send((len(running.gets), running.num_bytes))
            running.forget()


def race(
    scene: SceneFiles, worldcover: Path, folder: Path, latency_s: float, options: Any
) -> dict[str, list[Result]]:
    """All ways in turns, their chips compared."""
    results: dict[str, list[Result]] = {}
    with server(scene.folder, latency_s) as (url, sent):
        for _ in range(options.rounds):
            started = time.perf_counter()
            dataset = our_way(scene, url, worldcover, folder)
            seconds = time.perf_counter() - started
            note(results, "bharateo", dataset.num_chips, seconds, sent())
            chips = spread(dataset, options.window_chips)
            for name, way in (("one by one", one_by_one), ("eight threads", eight_threads)):
                started = time.perf_counter()
                images = way(scene, url, dataset, chips)
                note(results, name, len(chips), time.perf_counter() - started, sent())
                for chip, image in zip(chips, images, strict=True):
                    valid = dataset.valid(chip)
                    off = np.abs(image.astype(int) - dataset.image(chip))[:, valid]
                    assert off.max() <= 1, "the ways give different pixels"
    return results


def note(
    results: dict[str, list[Result]], name: str, chips: int, seconds: float, sent: tuple[int, int]
) -> None:
    """Add a round's result."""
    results.setdefault(name, []).append(Result(chips, seconds, *sent))


def spread(dataset: Dataset, num: int) -> list[int]:
    """Chips from all over the dataset."""
    return np.linspace(0, dataset.num_chips - 1, num).astype(int).tolist()


def our_way(scene: SceneFiles, url: str, worldcover: Path, folder: Path) -> Dataset:
    """The product's own build, from a kept list of scenes."""
    items = folder / "items.json"
    known = scene_of(scene.item(url), EARTH_SEARCH, BANDS)
    write_json(items, {"scenes": [known.model_dump()]})
    plan = PlanConfig("blocks", 128, min_valid_fraction=0.9, split=SplitConfig(1024, 32))
    data = DataConfig(
        source="sentinel2",
        rois=(f"area={area_of(scene.geobox)}",),
        sentinel2=Sentinel2Config(items=str(items)),
        worldcover_root=str(worldcover),
        plan=plan,
    )
    shutil.rmtree(folder / "dataset", ignore_errors=True)
    return build(sentinel2_recipe(data), plan, folder / "dataset", 42, workers=Workers())


def area_of(grid: GeoBox) -> str:
    """A bounding box in degrees just inside a grid."""
    bounds = grid.geographic_extent.boundingbox
    return f"{bounds.left + 0.01},{bounds.bottom + 0.01},{bounds.right - 0.01},{bounds.top - 0.01}"


def one_by_one(scene: SceneFiles, url: str, dataset: Dataset, chips: list[int]) -> list[np.ndarray]:
    """Every chip and band: open, read a window, close."""
    images = []
    for x, y in places(dataset, chips):
        with rasterio.Env(**GDAL_OPTIONS):
            bands = []
            for band in (*BANDS, "SCL"):
                with rasterio.open(f"/vsicurl/{url}/{scene.name}/{band}.tif") as file:
                    bands.append(read_window(file, scene.geobox, x, y, band))
        images.append(np.stack(bands[:-1]))
    return images


def eight_threads(
    scene: SceneFiles, url: str, dataset: Dataset, chips: list[int]
) -> list[np.ndarray]:
    """The same with files kept open by each of eight threads."""

    def some(own: list[tuple[float, float]]) -> list[np.ndarray]:
        with rasterio.Env(**GDAL_OPTIONS), ExitStack() as stack:
            files = {
                band: stack.enter_context(rasterio.open(f"/vsicurl/{url}/{scene.name}/{band}.tif"))
                for band in (*BANDS, "SCL")
            }
            read = [
                [read_window(files[band], scene.geobox, x, y, band) for band in files]
                for x, y in own
            ]
        return [np.stack(bands[:-1]) for bands in read]

    every = places(dataset, chips)
    parts = [every[start::8] for start in range(8)]
    with ThreadPoolExecutor(8) as threads:
        done = list(threads.map(some, parts))
    images: list[Any] = [None] * len(chips)
    for start, part in enumerate(done):
        images[start::8] = part
    return images


def places(dataset: Dataset, chips: list[int]) -> list[tuple[float, float]]:
    """The corners of chips in metres."""
    table = dataset.chips.iloc[chips]
    return list(zip(table.x, table.y, strict=True))


def read_window(
    file: rasterio.DatasetReader, grid: GeoBox, x: float, y: float, band: str
) -> np.ndarray:
    """One band of one chip at 10 m."""
    col, row = (round(value) for value in ~grid.affine @ (x, y))
    window = Window(col, row, 128, 128)
    if file.res[0] == 10:
        return file.read(1, window=window)
    method = Resampling.nearest if band == "SCL" else Resampling.bilinear
    size = {"height": grid.shape[0], "width": grid.shape[1], "transform": grid.affine}
    with WarpedVRT(file, crs=file.crs, resampling=method, **size) as at_10m:
        return at_10m.read(1, window=window)


def report(results: dict[float, dict[str, list[Result]]], options: Any) -> str:
    """The measured table as markdown, with its date and conditions."""
    head = (
        f"{datetime.date.today()}, a made-up scene of {options.cols} x {options.rows} px, ten "
        "bands and scene classes, 8 chips of 128 px for every block of 1024 px, "
        f"{os.cpu_count()} cores ({platform.machine()}), median of {options.rounds} rounds in "
        f"turns; the window ways are timed on {options.window_chips} of the same chips, and "
        "neither labels, checks nor stores them. Server and client share the cores.\n"
    )
    lines = [
        "# From Sentinel-2 scenes on a server to stored chips\n",
        head,
        "| latency | way | chips/s | MB a chip | requests a chip | bharateo is faster by |",
        "|---|---|---|---|---|---|",
    ]
    for latency, ways in results.items():
        ours = statistics.median(one.chips_per_s for one in ways["bharateo"])
        for name, rounds in ways.items():
            speed = statistics.median(one.chips_per_s for one in rounds)
            last = rounds[-1]
            lines.append(
                f"| {latency * 1000:.0f} ms | {name} | {speed:,.1f} | "
                f"{last.bytes / last.chips / 1e6:.2f} | {last.requests / last.chips:.2f} | "
                f"{ours / speed:.1f}x |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
