"""Regions of interest and the WorldCover tile grid: where, in pixels of a product's own grid."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

import shapely
from affine import Affine
from odc.geo.geobox import GeoBox

from bharateo.artefacts import shortened
from bharateo.errors import RegionError

DEFAULT_SIZE_PX = 2048

MOST_KM2 = 50_000_000
"""Of an area to sample from: more than Asia has."""

_EARTH_RADIUS_KM = 6371.0
_SMALLEST_PIXEL_KM = 0.009


@dataclass(frozen=True)
class Roi:
    """A named place to sample from: a square around a point, or a bounding box.

    ``lon``/``lat`` are degrees (WGS 84) of the centre and ``size_px`` the side in native pixels;
    ``bbox`` is (west, south, east, north) in degrees, with west > east where it crosses the
    antimeridian, and then the centre and size are not used.
    """

    name: str
    lon: float = 0.0
    lat: float = 0.0
    size_px: int = DEFAULT_SIZE_PX
    bbox: tuple[float, float, float, float] | None = None


@dataclass(frozen=True)
class Zone:
    """A named part of the ground: chips are shared evenly by zones, and a zone can be held out.

    ``outline`` is in degrees (WGS 84) or, inside a region, in the region's pixels (x counts
    columns, y rows).
    """

    name: str
    outline: shapely.Geometry


@dataclass(frozen=True)
class Region:
    """A region of interest placed on a source's pixel grid.

    ``zones``: the only ground to sample, in pixels; none: all of it. ``squares``: where
    the chips begin (row, column) that a source has ready made, to fractions of a pixel; none:
    chips may be cut anywhere.
    """

    name: str
    geobox: GeoBox
    zones: tuple[Zone, ...] = ()
    squares: tuple[tuple[float, float], ...] = ()

    def bare(self) -> Region:
        """The region without what only planning needs."""
        return Region(self.name, self.geobox, squares=self.squares[:1])


NAMED_ROIS = {
    roi.name: roi
    for roi in (
        Roi("delhi_ncr", 77.23, 28.61),
        Roi("shekhawati", 75.80, 28.50),
        Roi("mathura_belt", 77.50, 27.30),
    )
}
"""The three regions of BharatEO-v0, all in WorldCover tile N27E075."""


def parse_roi(text: str) -> Roi:
    """The ROI written as a known name, ``NAME=LON,LAT[,SIZE]`` or ``NAME=WEST,SOUTH,EAST,NORTH``.

    Raises:
        RegionError: the name is not known or the numbers make no place on Earth.
    """
    name, _, numbers = text.strip().partition("=")
    if not numbers:
        return _named_roi(name)
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,99}", name):
        raise RegionError(
            f"ROI name {shortened(repr(name))}: use at most 100 letters, digits, '_', '-' and '.', "
            "since it names files and table rows"
        )
    try:
        values = [float(part) for part in numbers.split(",")]
    except ValueError:
        values = []
    if len(values) == 4:
        return _check(Roi(name, bbox=(values[0], values[1], values[2], values[3])))
    if len(values) == 3 and values[2].is_integer():
        return _check(Roi(name, values[0], values[1], int(values[2])))
    if len(values) == 2:
        return _check(Roi(name, values[0], values[1]))
    raise RegionError(
        f"ROI {shortened(repr(text))} is not NAME=LON,LAT or NAME=LON,LAT,SIZE (SIZE in pixels) or "
        "NAME=WEST,SOUTH,EAST,NORTH (degrees)"
    )


def _named_roi(name: str) -> Roi:
    if name in NAMED_ROIS:
        return NAMED_ROIS[name]
    near = difflib.get_close_matches(name, NAMED_ROIS, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise RegionError(
        f"ROI {shortened(repr(name))} is not known: {hint}known are {', '.join(NAMED_ROIS)}; "
        "any other place is given as NAME=LON,LAT[,SIZE]"
    )


def _check(roi: Roi) -> Roi:
    west, south, east, north = roi.bbox or (roi.lon, roi.lat, roi.lon, roi.lat)
    numbers = (west, south, east, north)
    if not all(map(math.isfinite, numbers)) or max(abs(west), abs(east)) > 180:
        raise RegionError(f"ROI {roi.name!r}: longitude must lie in -180..180, got {west}, {east}")
    if max(abs(south), abs(north)) > 90 or south > north:
        swapped = swapped_option(roi) if not roi.bbox and abs(west) <= 90 else ""
        hint = f"; is it LAT,LON instead of LON,LAT? Then give {swapped}" if swapped else ""
        raise RegionError(
            f"ROI {roi.name!r}: latitude must lie in -90..90, south first, got {south}, {north}"
            + hint
        )
    if roi.bbox and (west == east or south == north):
        raise RegionError(f"ROI {roi.name!r}: the bounding box {roi.bbox} is empty")
    if roi.size_px < 1:
        raise RegionError(f"ROI {roi.name!r}: size must be at least 1 pixel, got {roi.size_px}")
    if roi.bbox:
        turn = math.radians((east - west) % 360 or 360)
        height = math.sin(math.radians(north)) - math.sin(math.radians(south))
        check_size(_EARTH_RADIUS_KM**2 * turn * height, f"ROI {roi.name!r}")
    else:
        check_size((roi.size_px * _SMALLEST_PIXEL_KM) ** 2, f"ROI {roi.name!r}")
    return roi


def swapped_option(roi: Roi) -> str:
    """A square with longitude and latitude changed about, as an option of the command line."""
    size = "" if roi.size_px == DEFAULT_SIZE_PX else f",{roi.size_px}"
    return f"--roi {roi.name}={roi.lat:.10g},{roi.lon:.10g}{size}"


def check_size(km2: float, name: str = "the area") -> None:
    """Refuse what nobody samples chips from at once.

    Raises:
        RegionError: it is larger than ``MOST_KM2``.
    """
    if km2 > MOST_KM2:
        raise RegionError(
            f"{name} has {km2:.3g} km2, more than {MOST_KM2:,}: give the parts of it that you need"
        )


# The WorldCover grid: EPSG:4326, 1/12000 degree, tiles of 3 x 3 degrees named by their
# south-west corner. Source: ESA WorldCover Product User Manual v2.0, section 3.

PIXELS_PER_DEGREE = 12000
TILE_DEGREES = 3
TILE_PX = TILE_DEGREES * PIXELS_PER_DEGREE
GLOBE_WIDTH_PX = 360 * PIXELS_PER_DEGREE
GLOBE_HEIGHT_PX = 180 * PIXELS_PER_DEGREE


@dataclass(frozen=True)
class PixelWindow:
    """A rectangle of the global WorldCover pixel grid, whose pixel (0, 0) is at 90 N, 180 W.

    ``col`` may run past the antimeridian (``GLOBE_WIDTH_PX``); it wraps when tiles are looked up.
    """

    row: int
    col: int
    height: int
    width: int

    @property
    def geobox(self) -> GeoBox:
        """The window as an EPSG:4326 GeoBox (longitudes past 180 where it crosses there)."""
        step = 1 / PIXELS_PER_DEGREE
        origin = Affine(
            step, 0, -180 + self.col / PIXELS_PER_DEGREE,
            0, -step, 90 - self.row / PIXELS_PER_DEGREE,
        )  # fmt: skip
        return GeoBox((self.height, self.width), origin, "EPSG:4326")


@dataclass(frozen=True)
class TileWindow:
    """The part of one tile that a window covers, and where it goes in the window.

    ``row``, ``col`` are pixels inside the tile; ``to_row``, ``to_col`` inside the window.
    """

    tile: str
    row: int
    col: int
    height: int
    width: int
    to_row: int
    to_col: int


def _pixel(degrees: float) -> int:
    """Index of the pixel that contains a coordinate counted from the grid's edge.

    A coordinate on a pixel's edge belongs to the pixel after it, also when binary fractions put
    it a hair before (77.23 degrees east is such a number).
    """
    return math.floor(degrees * PIXELS_PER_DEGREE + 1e-6)


def worldcover_window(roi: Roi) -> PixelWindow:
    """The ROI in pixels of the global WorldCover grid, cut at the poles.

    A square is centred on the pixel that contains (lon, lat): it starts ``size_px // 2`` before.
    """
    if roi.bbox:
        west, south, east, north = roi.bbox
        col, row = _pixel(west + 180), _pixel(90 - north)
        to_col = math.ceil((east + (360 if east < west else 0) + 180) * PIXELS_PER_DEGREE - 1e-6)
        to_row = math.ceil((90 - south) * PIXELS_PER_DEGREE - 1e-6)
    else:
        col = _pixel(roi.lon + 180) - roi.size_px // 2
        row = min(_pixel(90 - roi.lat), GLOBE_HEIGHT_PX - 1) - roi.size_px // 2
        to_col, to_row = col + roi.size_px, row + roi.size_px
    row, to_row = max(row, 0), min(to_row, GLOBE_HEIGHT_PX)
    return PixelWindow(row, col % GLOBE_WIDTH_PX, to_row - row, to_col - col)


def worldcover_region(roi: Roi) -> Region:
    """The ROI on the WorldCover grid."""
    return Region(roi.name, worldcover_window(roi).geobox)


WORLDCOVER_GRID = PixelWindow(0, 0, GLOBE_HEIGHT_PX, GLOBE_WIDTH_PX).geobox
"""The product's pixel grid over the whole globe."""


def is_worldcover_grid(geobox: GeoBox) -> bool:
    """Whether the pixels of a GeoBox are pixels of the global WorldCover grid."""
    affine = geobox.affine
    col = (affine.c + 180) * PIXELS_PER_DEGREE
    row = (90 - affine.f) * PIXELS_PER_DEGREE
    return (
        geobox.crs is not None
        and geobox.crs.epsg == 4326
        and abs(affine.a * PIXELS_PER_DEGREE - 1) < 1e-9
        and abs(affine.e * PIXELS_PER_DEGREE + 1) < 1e-9
        and max(abs(col - round(col)), abs(row - round(row))) < 1e-3
    )


def window_of_geobox(geobox: GeoBox) -> PixelWindow:
    """The pixels of the global WorldCover grid that a GeoBox made from it covers.

    Raises:
        RegionError: the GeoBox is not on that grid.
    """
    if not is_worldcover_grid(geobox):
        raise RegionError(f"{geobox} is not on the WorldCover pixel grid (EPSG:4326, 1/12000 deg)")
    col = (geobox.affine.c + 180) * PIXELS_PER_DEGREE
    row = (90 - geobox.affine.f) * PIXELS_PER_DEGREE
    return PixelWindow(round(row), round(col), geobox.shape[0], geobox.shape[1])


def tile_name(west: int, south: int) -> str:
    """The name of the tile whose south-west corner is there, e.g. ``N27E075`` or ``S03W060``."""
    return f"{'N' if south >= 0 else 'S'}{abs(south):02d}{'E' if west >= 0 else 'W'}{abs(west):03d}"


def tile_of(tile_row: int, tile_col: int) -> str:
    """The name of a tile counted from 90 N, 180 W; columns wrap around the globe."""
    west = (tile_col % (360 // TILE_DEGREES)) * TILE_DEGREES - 180
    return tile_name(west, 90 - (tile_row + 1) * TILE_DEGREES)


def tile_windows(window: PixelWindow) -> Iterator[TileWindow]:
    """The tiles under a window, row by row, each with its own part; wraps at the antimeridian."""
    for tile_row in range(window.row // TILE_PX, -(-(window.row + window.height) // TILE_PX)):
        for tile_col in range(window.col // TILE_PX, -(-(window.col + window.width) // TILE_PX)):
            top = max(window.row, tile_row * TILE_PX)
            left = max(window.col, tile_col * TILE_PX)
            bottom = min(window.row + window.height, (tile_row + 1) * TILE_PX)
            right = min(window.col + window.width, (tile_col + 1) * TILE_PX)
            yield TileWindow(
                tile_of(tile_row, tile_col),
                top - tile_row * TILE_PX,
                left - tile_col * TILE_PX,
                bottom - top,
                right - left,
                top - window.row,
                left - window.col,
            )
