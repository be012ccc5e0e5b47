"""Sentinel-2 L2A scenes as files and STAC items: made-up or real pixels, on a UTM grid."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox
from pyproj import Transformer

from bharateo.regions import (
    PIXELS_PER_DEGREE,
    PixelWindow,
    parse_roi,
    tile_windows,
    worldcover_window,
)
from worldcover_tiles import NATIVE_CODES, write_tile

BANDS = ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12")
BANDS_20M = ("B05", "B06", "B07", "B8A", "B11", "B12")

EARTH_SEARCH_KEYS = (
    *("blue", "green", "red", "rededge1", "rededge2", "rededge3", "nir", "nir08"),
    *("swir16", "swir22", "scl"),
)
ASSET_KEYS = {
    "earth-search": dict(zip((*BANDS, "SCL"), EARTH_SEARCH_KEYS, strict=True)),
    "planetary-computer": {name: name for name in (*BANDS, "SCL")},
}
"""Asset key of every file, for the two catalogues' ways of naming."""

_EXTENSIONS = [
    "https://stac-extensions.github.io/eo/v1.1.0/schema.json",
    "https://stac-extensions.github.io/projection/v1.1.0/schema.json",
    "https://stac-extensions.github.io/raster/v1.1.0/schema.json",
]

_COG_TYPE = "image/tiff; application=geotiff; profile=cloud-optimized"


# Files and items.


@dataclass(frozen=True)
class SceneFiles:
    """One scene on disk: ``folder/name/B02.tif`` ... ``B12.tif`` and ``SCL.tif``, and its record.

    ``geobox`` is the 10 m grid; the files of ``BANDS_20M`` and SCL lie on ``geobox_20m``.
    """

    folder: Path
    name: str
    geobox: GeoBox
    when: datetime
    baseline: str
    cloud_cover: float
    flag: bool | None
    style: str
    mgrs: str | None

    @property
    def geobox_20m(self) -> GeoBox:
        """The grid of half as many rows and columns."""
        height, width = self.geobox.shape
        return GeoBox((height // 2, width // 2), _grid(20, self.geobox.affine), self.geobox.crs)

    def path(self, band: str) -> Path:
        """The file of a band, or of ``SCL``."""
        return self.folder / self.name / f"{band}.tif"

    def item(self, base_url: str) -> dict[str, Any]:
        """The STAC item whose assets lie at ``base_url``, which serves (or is) ``folder``."""
        border = _border_lonlat(self.geobox)
        return {
            "type": "Feature",
            "stac_version": "1.0.0",
            "stac_extensions": _EXTENSIONS,
            "id": self.name,
            "collection": "sentinel-2-l2a",
            "bbox": _bbox(border),
            "geometry": {"type": "Polygon", "coordinates": [[*border, border[0]]]},
            "properties": self._properties(),
            "links": [],
            "assets": {
                key: self._asset(band, base_url) for band, key in ASSET_KEYS[self.style].items()
            },
        }

    def _properties(self) -> dict[str, Any]:
        epsg = self.geobox.crs.epsg
        properties = {
            "datetime": self.when.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "platform": "sentinel-2a" if self.style == "earth-search" else "Sentinel-2A",
            "instruments": ["msi"],
            "eo:cloud_cover": self.cloud_cover,
            "s2:processing_baseline": self.baseline,
            "proj:epsg": epsg,
            "proj:code": f"EPSG:{epsg}",
        }
        if self.mgrs:
            properties["grid:code"] = f"MGRS-{self.mgrs}"
        if self.mgrs and self.style == "planetary-computer":
            properties["s2:mgrs_tile"] = self.mgrs
        if self.flag is not None:
            properties["earthsearch:boa_offset_applied"] = self.flag
        return properties

    def _asset(self, band: str, base_url: str) -> dict[str, Any]:
        at_20m = band in (*BANDS_20M, "SCL")
        grid = self.geobox_20m if at_20m else self.geobox
        asset: dict[str, Any] = {
            "href": f"{base_url.rstrip('/')}/{self.name}/{band}.tif",
            "type": _COG_TYPE,
            "roles": ["data"],
            "gsd": 20 if at_20m else 10,
            "proj:shape": list(grid.shape),
            "proj:transform": list(grid.affine)[:6],
        }
        if band != "SCL" and self.style == "earth-search":
            # Earth Search says so also where the offset is no longer in the pixels.
            offset = -0.1 if self.baseline >= "04.00" else 0
            asset["raster:bands"] = [{"nodata": 0, "scale": 0.0001, "offset": offset}]
        return asset


def _border_lonlat(geobox: GeoBox, points_per_side: int = 8) -> list[list[float]]:
    """(lon, lat) around a grid in UTM, counter-clockwise from the upper left, not closed."""
    height, width = geobox.shape
    part = np.arange(points_per_side) / points_per_side
    row = height * np.concatenate([part, 1 + 0 * part, 1 - part, 0 * part])
    col = width * np.concatenate([0 * part, part, 1 + 0 * part, 1 - part])
    utm = geobox.affine
    x, y = utm.c + utm.a * col, utm.f + utm.e * row
    lon, lat = _transformer(geobox).transform(x, y, direction="INVERSE")
    return [[round(float(x), 7), round(float(y), 7)] for x, y in zip(lon, lat, strict=True)]


def _transformer(geobox: GeoBox) -> Transformer:
    """From (lon, lat) to the coordinates of a grid."""
    return Transformer.from_crs("EPSG:4326", f"EPSG:{geobox.crs.epsg}", always_xy=True)


def _bbox(points: list[list[float]]) -> list[float]:
    lon, lat = zip(*points, strict=True)
    return [min(lon), min(lat), max(lon), max(lat)]


def _grid(resolution_m: int, corner: Affine) -> Affine:
    return Affine(resolution_m, 0, corner.c, 0, -resolution_m, corner.f)


def write_scene(
    folder: Path,
    name: str,
    *,
    epsg: int,
    corner: tuple[float, float],
    reflectance: np.ndarray,
    scl: np.ndarray,
    when: datetime | str,
    baseline: str,
    dn_offset: int,
    cloud_cover: float,
    flag: bool | None = None,
    style: str = "earth-search",
    block_px: int = 1024,
    mgrs: str | None = None,
) -> SceneFiles:
    """Write a scene's eleven COGs.

    ``reflectance`` is uint16 (band, row, col) x 10000 at 10 m in the order of ``BANDS``, 0 where
    there is none; rows and columns are even. ``scl`` is uint8 at 20 m. ``corner`` is the upper
    left (x, y) in metres. ``dn_offset`` is added to every DN that is not 0. ``flag`` is the value
    of ``earthsearch:boa_offset_applied``, None to leave it out.
    """
    _check(reflectance, scl, dn_offset)
    grid = GeoBox(reflectance.shape[1:], Affine(10, 0, corner[0], 0, -10, corner[1]), epsg)
    time = datetime.fromisoformat(when) if isinstance(when, str) else when
    time = time.astimezone(UTC) if time.tzinfo else time.replace(tzinfo=UTC)
    scene = SceneFiles(folder, name, grid, time, baseline, cloud_cover, flag, style, mgrs)
    (folder / name).mkdir(parents=True)
    for band, values in zip(BANDS, reflectance, strict=True):
        values, geobox = (at_20m(values), scene.geobox_20m) if band in BANDS_20M else (values, grid)
        _write_cog(scene.path(band), with_dn_offset(values, dn_offset), geobox, block_px, "average")
    _write_cog(scene.path("SCL"), scl, scene.geobox_20m, block_px, "nearest")
    return scene


def _check(reflectance: np.ndarray, scl: np.ndarray, dn_offset: int) -> None:
    _, height, width = reflectance.shape
    assert height % 2 == 0 and width % 2 == 0, "rows and columns are even"
    assert (reflectance.dtype, scl.dtype) == (np.uint16, np.uint8)
    assert scl.shape == (height // 2, width // 2)
    assert int(reflectance.max()) + dn_offset < 2**16


def at_20m(values: np.ndarray) -> np.ndarray:
    """Means of 2 x 2 pixels that are not 0, rounded; 0 where all four are."""
    height, width = values.shape
    squares = values.reshape(height // 2, 2, width // 2, 2)
    total = squares.sum(axis=(1, 3), dtype=np.uint32)
    number = (squares != 0).sum(axis=(1, 3), dtype=np.uint32)
    return ((total + number // 2) // np.maximum(number, 1)).astype(np.uint16)


def with_dn_offset(values: np.ndarray, dn_offset: int) -> np.ndarray:
    """DNs as a file holds them: the offset added, but 0 stays 0."""
    return np.where(values, values + np.uint16(dn_offset), 0).astype(np.uint16)


def _write_cog(
    path: Path, values: np.ndarray, geobox: GeoBox, block_px: int, overviews: str
) -> None:
    with rasterio.open(
        path,
        "w",
        driver="COG",
        height=values.shape[0],
        width=values.shape[1],
        count=1,
        dtype=values.dtype,
        nodata=0,
        crs=f"EPSG:{geobox.crs.epsg}",
        transform=geobox.affine,
        blocksize=block_px,
        compress="deflate",
        predictor="standard",
        overview_resampling=overviews,
        num_threads=2,
    ) as dataset:
        dataset.write(values, 1)


# Pixels that are made up.

_SPECTRA = {
    10: (300, 500, 350, 800, 2000, 2500, 2700, 2800, 1500, 700),
    20: (500, 750, 700, 1150, 1900, 2200, 2350, 2500, 2200, 1350),
    30: (500, 800, 700, 1200, 2300, 2700, 2900, 3000, 2300, 1300),
    40: (450, 800, 550, 1150, 2800, 3400, 3600, 3700, 2000, 1000),
    50: (1200, 1400, 1550, 1700, 1850, 1950, 2050, 2100, 2250, 1950),
    60: (1300, 1800, 2300, 2600, 2800, 2950, 3100, 3250, 4000, 3500),
    70: (8500, 8600, 8500, 8400, 8200, 8000, 7800, 7500, 900, 700),
    80: (250, 240, 220, 200, 180, 170, 160, 150, 130, 120),
    90: (400, 650, 500, 850, 1500, 1750, 1850, 1900, 1100, 550),
    95: (300, 480, 330, 750, 1900, 2300, 2450, 2550, 1050, 480),
    100: (600, 800, 850, 1200, 1700, 1900, 2000, 2100, 2400, 1700),
}
"""Reflectance x 10000 that is typical of a WorldCover class, in the order of ``BANDS``."""

_SCL = {50: 5, 60: 5, 70: 11, 80: 6}
"""Scene class of a WorldCover class; vegetation (4) for all others."""


FIELD_PX = 24


def field_codes(
    height: int, width: int, seed: int = 0, classes: tuple[int, ...] = NATIVE_CODES
) -> np.ndarray:
    """Native codes in square fields of ``FIELD_PX`` with ragged edges, uint8 (row, col)."""
    rng = np.random.default_rng(seed)
    fields = rng.choice(classes, size=(height // FIELD_PX + 2, width // FIELD_PX + 2))
    rows, cols = np.ogrid[:height, :width]
    rows = (rows + rng.integers(0, 4, (height, width), np.uint8)) // FIELD_PX
    cols = (cols + rng.integers(0, 4, (height, width), np.uint8)) // FIELD_PX
    return fields[rows, cols].astype(np.uint8)


def made_up_scene(
    shape: tuple[int, int],
    seed: int = 0,
    *,
    codes: np.ndarray | None = None,
    classes: tuple[int, ...] = NATIVE_CODES,
    nodata_corner_px: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Reflectance x 10000, uint16 (band, row, col), and the WorldCover codes it belongs to.

    The codes lie in fields, each class has its spectrum, and noise makes the bands compress about
    like real ones (10 to 12 bits a pixel). Water (80) is dark: 100 to 300 in all bands. Give the
    ``codes`` of one scene to another seed for the same ground at another time. An upper left
    square of ``nodata_corner_px`` is 0.
    """
    codes = field_codes(*shape, seed, classes) if codes is None else codes
    rng = np.random.default_rng((seed, 1))
    light = 1 + 0.04 * _smooth_noise(shape, rng)
    low, high = np.where(codes == 80, [[[100]], [[300]]], [[[1]], [[15000]]])
    reflectance = np.zeros((len(BANDS), *shape), np.uint16)
    for band, values in enumerate(reflectance):
        clean = _spectrum_table(band)[codes] * light
        noise = (6 + 0.01 * clean) * rng.standard_normal(shape, np.float32)
        values[:] = np.clip(clean + noise, low, high)
    reflectance[:, :nodata_corner_px, :nodata_corner_px] = 0
    return reflectance, codes


def _spectrum_table(band: int) -> np.ndarray:
    table = np.zeros(256, np.float32)
    for code, spectrum in _SPECTRA.items():
        table[code] = spectrum[band]
    return table


def _smooth_noise(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Noise of standard deviation 1 with a grain of four pixels."""
    coarse = rng.standard_normal((shape[0] // 4 + 1, shape[1] // 4 + 1), np.float32)
    return coarse.repeat(4, axis=0).repeat(4, axis=1)[: shape[0], : shape[1]]


def made_up_scl(reflectance: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Scene classes at 20 m of a scene without a cloud, uint8: 4, 5, 6, 11, and 0 for nodata."""
    table = np.full(256, 4, np.uint8)
    for code, scene_class in _SCL.items():
        table[code] = scene_class
    return np.where(at_20m(reflectance[0]) > 0, table[codes[::2, ::2]], 0).astype(np.uint8)


# WorldCover under a scene.


def codes_under(
    root: Path,
    geoboxes: Sequence[GeoBox],
    codes: Sequence[np.ndarray] | None = None,
    *,
    seed: int = 0,
    margin_px: int = 32,
    year: int = 2021,
) -> list[Path]:
    """Write the WorldCover tiles under areas in UTM, and ``margin_px`` around them.

    ``codes`` on the areas' own grids (as ``made_up_scene`` returns them) go where they belong, by
    nearest neighbour; without them the codes are made up. One call writes whole tiles: name all
    areas at once, also those on both sides of 78 E. Where areas overlap the last one counts.
    """
    parts: dict[str, dict[tuple[int, int], np.ndarray]] = {}
    for index, geobox in enumerate(geoboxes):
        window = _window_around(geobox, margin_px)
        native = (
            _brought_to(window, geobox, codes[index])
            if codes is not None
            else field_codes(window.height, window.width, seed + index)
        )
        for part in tile_windows(window):
            rows = slice(part.to_row, part.to_row + part.height)
            cols = slice(part.to_col, part.to_col + part.width)
            parts.setdefault(part.tile, {})[part.row, part.col] = native[rows, cols]
    return [write_tile(root, tile, of_tile, year) for tile, of_tile in sorted(parts.items())]


def _window_around(geobox: GeoBox, margin_px: int) -> PixelWindow:
    west, south, east, north = _bbox(_border_lonlat(geobox))
    margin = margin_px / PIXELS_PER_DEGREE
    around = west - margin, south - margin, east + margin, north + margin
    return worldcover_window(parse_roi(f"under={','.join(map(str, around))}"))


def _brought_to(window: PixelWindow, geobox: GeoBox, codes: np.ndarray) -> np.ndarray:
    """The codes on the WorldCover grid, those at the edge repeated outside."""
    grid = window.geobox.affine
    lon = grid.c + grid.a * (np.arange(window.width) + 0.5)
    lat = grid.f + grid.e * (np.arange(window.height) + 0.5)
    x, y = _transformer(geobox).transform(*np.meshgrid(lon, lat))
    utm = geobox.affine
    rows = np.clip((y - utm.f) // utm.e, 0, codes.shape[0] - 1).astype(np.int64)
    cols = np.clip((x - utm.c) // utm.a, 0, codes.shape[1] - 1).astype(np.int64)
    return codes[rows, cols]


# Real pixels.


def real_reflectance(shape: tuple[int, int], nodata_corner_px: int = 32) -> np.ndarray:
    """Real reflectance x 10000, uint16 (band, row, col); skips the test where there is none.

    Five sites of 224 x 224 px in a row above a larger crop, mirrored to fill ``shape``. Values
    are 1 or more but for an upper left square of 0. The crop is stored in thousandths: its last
    digit is made up, for else it would take half the bits of the others.
    """
    sites, crop = _real_pixels()
    block = np.concatenate([sites, _mirrored(crop, (crop.shape[1] // 2 * 2, sites.shape[2]))], 1)
    reflectance = _mirrored(block, shape)
    reflectance[:, :nodata_corner_px, :nodata_corner_px] = 0
    return reflectance


def _real_pixels() -> tuple[np.ndarray, np.ndarray]:
    """The five sites side by side, and the crop."""
    beside = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("BHARATEO_TEST_DATA", beside)) / "s2-multiband"
    if not folder.is_dir():
        pytest.skip(f"no real pixels: {folder} does not exist (set BHARATEO_TEST_DATA)")
    sites = [_site(path) for path in sorted((folder / "global-12band" / "S2L2A").glob("*.tif"))]
    with rasterio.open(folder / "aberystwyth_20210527_10band.tif") as dataset:
        crop = dataset.read().astype(np.int32) * 10
    crop += np.random.default_rng(0).integers(-5, 5, crop.shape)
    return np.concatenate(sites, axis=2), np.maximum(crop, 1).astype(np.uint16)


def _site(path: Path) -> np.ndarray:
    """Our ten of a site's twelve bands (B01 ... B12 without B10), the offset taken off."""
    with rasterio.open(path) as dataset:
        dn = dataset.read([2, 3, 4, 5, 6, 7, 8, 9, 11, 12]).astype(np.int32)
    # Without the offset the darkest band of each site has pixels far below 1000.
    offset = 1000 if np.percentile(dn, 1, axis=(1, 2)).min() > 1000 else 0
    return np.maximum(dn - offset, 1).astype(np.uint16)


def _mirrored(values: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Values cut, or mirrored at the lower and right edges, to another number of pixels."""
    height, width = shape
    cut = values[:, :height, :width]
    more = (0, 0), (0, height - cut.shape[1]), (0, width - cut.shape[2])
    return np.pad(cut, more, mode="symmetric")
