"""A tiny recipe made of numbers: blobs of classes, a two-band image, a stripe without data."""

from __future__ import annotations

import numpy as np
from affine import Affine
from odc.geo.geobox import GeoBox

from bharateo.landcover import WORLDCOVER
from bharateo.pixels.raster import Raster
from bharateo.regions import Region
from bharateo.sensor import Band, Composite, Sensor
from bharateo.sources import ImageSource, LabelSource, Recipe

SENSOR = Sensor(
    name="two-bands",
    title="Two synthetic bands",
    bands=(Band("A", 10), Band("B", 10)),
    dtype="uint16",
    scale=1e-4,
    offset=-0.1,
    unit="reflectance",
    composites={"all": Composite(("A", "B", "A"), 0.0, 1.0)},
    standardised=True,
)


def region(name: str, height: int, width: int, row: int = 0, col: int = 0) -> Region:
    """A region of one UTM grid of 10 m, ``row`` and ``col`` pixels from its origin."""
    origin = Affine(10, 0, 500_000 + 10 * col, 0, -10, 3_000_000 - 10 * row)
    return Region(name, GeoBox((height, width), origin, "EPSG:32643"))


def native_codes(grid: GeoBox) -> np.ndarray:
    """Blobs of WorldCover codes; the same ground has the same codes in every region."""
    rows, cols = _places(grid)
    codes = np.array(sorted(WORLDCOVER.native), np.uint8)
    blob = (rows[:, None] // 11 * 7 + cols[None] // 13 * 3) % len(codes)
    native = codes[blob]
    native[:, cols % 40 < 2] = 0
    return native


def _places(grid: GeoBox) -> tuple[np.ndarray, np.ndarray]:
    rows = round((3_000_000 - grid.affine.f) / 10) + np.arange(grid.shape[0])
    return rows, round((grid.affine.c - 500_000) / 10) + np.arange(grid.shape[1])


class Image(ImageSource):
    name = "synthetic image"
    attribution: tuple[str, ...] = ("Image by nobody",)
    sensor = SENSOR

    def __init__(self) -> None:
        self.num_reads = 0

    def read(self, geobox: GeoBox) -> Raster:
        self.num_reads += 1
        rows, cols = _places(geobox)
        noise = (rows[:, None] * 7919 + cols[None] * 104729) % 5000
        values = np.stack([1000 + noise, 60000 - noise]).astype(np.uint16)
        valid = np.broadcast_to(rows[:, None] % 50 > 1, noise.shape).copy()
        return Raster(values, valid, geobox, {"from": "numbers"})


class Labels(LabelSource):
    name = "synthetic labels"
    attribution: tuple[str, ...] = ("Labels by nobody",)
    scheme = WORLDCOVER

    def read(self, geobox: GeoBox) -> Raster:
        native = native_codes(geobox)
        return Raster(native[None], native != 0, geobox, {"from": "blobs"})


def recipe(*regions: Region) -> Recipe:
    return Recipe("synthetic", regions, Image(), Labels())


def two_regions() -> Recipe:
    return recipe(region("west", 200, 260), region("east", 190, 200, col=1000))
