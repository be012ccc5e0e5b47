"""Areas: ROIs, polygon files, MGRS squares and WorldCover tiles as zones on Sentinel-2's grids.

Sentinel-2 comes in tiles of 10980 x 10980 px of 10 m, one for every 100 km square of MGRS, on the
square's UTM zone, and neighbouring tiles overlap by 10 km. A region here is the part of one square
that an area reaches into, without the overlap, so no ground is taken twice; its pixels are the
tile's own and its first pixel lies on the tile's grid of compressed blocks.
Source: Sentinel-2 Products Specification Document, section 2.1 (tiles) and 4.9 (grids).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import mgrs
import numpy as np
import pyproj
import shapely
import shapely.affinity
from affine import Affine
from odc.geo.geobox import GeoBox

from bharateo.config import DataConfig
from bharateo.errors import ConfigError, RegionError
from bharateo.regions import Region, Roi, Zone, parse_roi

PIXEL_M = 10
SQUARE_M = 100_000
_SNAP_M = 60
"""Corners of tiles lie on multiples of this, the pixel of the coarsest bands."""

_FALSE_NORTHING_M = 10_000_000
"""Northing of the equator in the southern zones."""

_STEP_DEGREES = 0.1
"""Longest straight piece of an outline, so that it bends with the grid."""


def zones_of(data: DataConfig) -> tuple[Zone, ...]:
    """The zones a configuration names, in degrees: ROIs, polygons, MGRS squares or tiles.

    Raises:
        ConfigError: none is given, or more than one kind, or two zones share a name.
        RegionError: a place is misspelt, or the file holds no polygon on Earth.
    """
    kinds = {
        "rois": [_roi_zone(parse_roi(text)) for text in data.rois],
        "aoi": file_zones(Path(data.aoi), data.zone_field) if data.aoi else [],
        "mgrs_tiles": [_mgrs_zone(name) for name in data.mgrs_tiles],
        "worldcover_tiles": [_tile_zone(name) for name in data.worldcover_tiles],
    }
    given = {kind: zones for kind, zones in kinds.items() if zones}
    if len(given) != 1:
        raise ConfigError(
            f"data.{' and data.'.join(given) or 'rois'}: give places in just one of "
            f"{', '.join(kinds)} (and set the others to [] or null)"
        )
    zones = next(iter(given.values()))
    names = [zone.name for zone in zones]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"zone {twice[0]!r} is given twice: rename one of them")
    return tuple(zones)


def sentinel2_regions(zones: Sequence[Zone], align_px: tuple[int, int]) -> tuple[Region, ...]:
    """The part of every MGRS square that the zones reach into, on Sentinel-2's own pixels.

    ``align_px`` (rows, columns): a region begins at multiples of this from its tile's corner, so
    that what is fetched together does not depend on the area's shape.
    """
    return tuple(
        region
        for zone_number in range(1, 61)
        for north in (True, False)
        for region in _strip_regions(zones, zone_number, north, align_px)
    )


def _strip_regions(
    zones: Sequence[Zone], zone_number: int, north: bool, align_px: tuple[int, int]
) -> Iterator[Region]:
    strip, crs = _strip(zone_number, north), _utm(zone_number, north)
    outlines = {}
    for zone in zones:
        part = zone.outline.intersection(strip)
        if part.area > 0:
            outlines[zone.name] = _projected(part, crs)
    if not outlines:
        return
    whole = shapely.union_all(list(outlines.values()))
    for east, northing in _squares(whole):
        yield from _square_region(zone_number, north, (east, northing), outlines, align_px)


def _squares(outline: shapely.Geometry) -> Iterator[tuple[int, int]]:
    """South-west corners of the 100 km squares under an outline in metres, north first."""
    west, south, east, north = outline.bounds
    prepared = outline.simplify(0)
    shapely.prepare(prepared)
    for row in range(math.floor(north / SQUARE_M), math.floor(south / SQUARE_M) - 1, -1):
        for col in range(math.floor(west / SQUARE_M), math.floor(east / SQUARE_M) + 1):
            corner = col * SQUARE_M, row * SQUARE_M
            if prepared.intersects(shapely.box(*corner, *(m + SQUARE_M for m in corner))):
                yield corner


def tile_bounds(corner: tuple[int, int], north: bool = True) -> tuple[int, int, int, int]:
    """West, south, east, north (metres) of a square as cut from its own Sentinel-2 tile.

    The tile's corner is the square's north-west corner moved out to a multiple of 60 m, counted
    from the equator in both hemispheres; the square ends where its neighbours' tiles begin.
    """
    west, south = corner
    equator = 0 if north else _FALSE_NORTHING_M

    def snapped(northing: int) -> int:
        return equator - (equator - northing) // _SNAP_M * _SNAP_M

    return (
        west // _SNAP_M * _SNAP_M,
        snapped(south),
        (west + SQUARE_M) // _SNAP_M * _SNAP_M,
        snapped(south + SQUARE_M),
    )


_COLUMNS = ("STUVWXYZ", "ABCDEFGH", "JKLMNPQR")
_ROWS = "ABCDEFGHJKLMNPQRSTUV"
_BANDS = "CDEFGHJKLMNPQRSTUVWXX"


def square_name(zone_number: int, north: bool, corner: tuple[int, int]) -> str:
    """The MGRS name of a 100 km square, e.g. ``43RGM``, also where it lies past its zone's edge.

    Source: NGA.STND.0037, "The Universal Grids and the Transverse Mercator Projections", B.
    """
    col, row = corner[0] // SQUARE_M, corner[1] // SQUARE_M
    _, lat = _transformer(_utm(zone_number, north), "EPSG:4326").transform(
        500_000, corner[1] + SQUARE_M / 2
    )
    band = _BANDS[int((lat + 80) // 8)]
    columns = _COLUMNS[zone_number % 3]
    row_letter = _ROWS[(row + (0 if zone_number % 2 else 5)) % 20]
    return f"{zone_number:02d}{band}{columns[(col - 1) % 8]}{row_letter}"


def _square_region(
    zone_number: int,
    north: bool,
    corner: tuple[int, int],
    outlines: dict[str, shapely.Geometry],
    align_px: tuple[int, int],
) -> Iterator[Region]:
    left, bottom, right, top = tile_bounds(corner, north)
    square = shapely.box(left, bottom, right, top)
    parts = {name: outline.intersection(square) for name, outline in outlines.items()}
    parts = {name: part for name, part in parts.items() if not _is_sliver(part)}
    if not parts:
        return
    west, south, east, upper = shapely.union_all(list(parts.values())).bounds
    first_row, rows = _span((top - upper, top - south), align_px[0], (top - bottom) // PIXEL_M)
    first_col, cols = _span((west - left, east - left), align_px[1], (right - left) // PIXEL_M)
    affine = Affine(PIXEL_M, 0, left + first_col * PIXEL_M, 0, -PIXEL_M, top - first_row * PIXEL_M)
    crs = _utm(zone_number, north)
    zones = tuple(Zone(name, _in_pixels(part, affine)) for name, part in parts.items())
    name = square_name(zone_number, north, corner)
    yield Region(name, GeoBox((rows, cols), affine, crs), zones)


def _is_sliver(outline: shapely.Geometry) -> bool:
    """Whether an outline is nowhere as wide as a pixel, as roundings leave it along edges."""
    return bool(outline.buffer(-PIXEL_M / 2).is_empty)


def _span(metres: tuple[float, float], align_px: int, size_px: int) -> tuple[int, int]:
    """First pixel and number of pixels, aligned, that cover a stretch counted from the edge."""
    first = math.floor(metres[0] / PIXEL_M / align_px + 1e-9) * align_px
    last = math.ceil(metres[1] / PIXEL_M / align_px - 1e-9) * align_px
    return first, min(last, size_px) - first


def _in_pixels(outline: shapely.Geometry, affine: Affine) -> shapely.Geometry:
    a, b, c, d, e, f = (~affine)[:6]
    return shapely.affinity.affine_transform(outline, [a, b, d, e, c, f])


def _projected(outline: shapely.Geometry, crs: str) -> shapely.Geometry:
    """An outline in degrees in metres of a UTM zone."""
    bent = shapely.segmentize(outline, _STEP_DEGREES)
    projected = shapely.transform(bent, _transformer("EPSG:4326", crs).transform, interleaved=False)
    return projected if projected.is_valid else shapely.make_valid(projected)


def _unprojected(outline: shapely.Geometry, zone_number: int, north: bool) -> shapely.Geometry:
    """An outline in metres of a UTM zone in degrees, cut in two where it crosses 180."""
    middle = -183 + 6 * zone_number
    to_degrees = _transformer(_utm(zone_number, north), "EPSG:4326").transform

    def near_the_middle(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        lon, lat = to_degrees(x, y)
        return middle + (lon - middle + 180) % 360 - 180, lat

    bent = shapely.segmentize(outline, SQUARE_M / 16)
    whole = shapely.transform(bent, near_the_middle, interleaved=False)
    turns = [
        shapely.affinity.translate(
            whole.intersection(shapely.box(turn - 180, -90, turn + 180, 90)), -turn
        )
        for turn in (-360, 0, 360)
    ]
    return shapely.union_all([part for part in turns if part.area > 0])


def _utm(zone_number: int, north: bool) -> str:
    return f"EPSG:{(32600 if north else 32700) + zone_number}"


@lru_cache(maxsize=64)
def _transformer(there: str, here: str) -> pyproj.Transformer:
    return pyproj.Transformer.from_crs(there, here, always_xy=True)


def _roi_zone(roi: Roi) -> Zone:
    if roi.bbox:
        west, south, east, north = roi.bbox
        if west < east:
            return Zone(roi.name, shapely.box(west, south, east, north))
        halves = shapely.box(west, south, 180, north), shapely.box(-180, south, east, north)
        return Zone(roi.name, shapely.union_all(halves))
    number, north = min(int((roi.lon + 180) // 6) + 1, 60), roi.lat >= 0
    x, y = _transformer("EPSG:4326", _utm(number, north)).transform(roi.lon, roi.lat)
    half = roi.size_px * PIXEL_M / 2
    square = shapely.box(x - half, y - half, x + half, y + half)
    return Zone(roi.name, _unprojected(square, number, north))


def _mgrs_zone(name: str) -> Zone:
    try:
        if not re.fullmatch(r"\d{1,2}[A-Za-z]{3}", name):
            raise ValueError(name)
        number, hemisphere, east, northing = mgrs.MGRS().MGRSToUTM(name.upper())
    except (ValueError, mgrs._native.MGRSError) as error:
        raise RegionError(
            f"data.mgrs_tiles {name!r} is no MGRS square: give zone, band and two letters, "
            "e.g. 43RGM"
        ) from error
    north = hemisphere == "N"
    corner = int(east // SQUARE_M * SQUARE_M), int(northing // SQUARE_M * SQUARE_M)
    square = _unprojected(shapely.box(*tile_bounds(corner, north)), number, north)
    own = square.intersection(_strip(number, north))
    if own.area == 0:
        raise RegionError(
            f"data.mgrs_tiles {name!r} lies outside the six degrees of its zone (MGRS widens some "
            "at sea and in the north): name the square of the neighbouring zone, or give an ROI"
        )
    return Zone(name.upper(), own)


def _strip(zone_number: int, north: bool) -> shapely.Geometry:
    """A UTM zone's own six degrees, on one side of the equator."""
    west = -186 + 6 * zone_number
    return shapely.box(west, 0 if north else -80, west + 6, 84 if north else 0)


def _tile_zone(name: str) -> Zone:
    try:
        south = int(name[1:3]) * {"N": 1, "S": -1}[name[0]]
        west = int(name[4:7]) * {"E": 1, "W": -1}[name[3]]
        good = len(name) == 7 and south % 3 == 0 and west % 3 == 0
    except (ValueError, KeyError, IndexError):
        good = False
    if not good:
        raise RegionError(
            f"data.worldcover_tiles {name!r} is no WorldCover tile: they are named by their "
            "south-west corner in steps of 3 degrees, e.g. N27E075 or S03W060"
        )
    return Zone(name, shapely.box(west, south, west + 3, south + 3))


def file_zones(
    path: Path, field: str | None, option: str = "data.aoi", field_option: str = "data.zone_field"
) -> list[Zone]:
    """The polygons of a file in degrees, those with the same name in column ``field`` as one.

    ``option`` and ``field_option`` are what the user gave them by.

    Raises:
        RegionError: the file holds no polygon on Earth, or has no such column.
    """
    import geopandas  # here, since it takes a second to load

    if not path.is_file():
        raise RegionError(f"{option} {path} is no file: give a GeoJSON or GeoPackage of polygons")
    try:
        frame = geopandas.read_file(path)
    except Exception as error:  # pyogrio has many, for every kind of file
        raise RegionError(f"{option} {path} cannot be read as polygons: {error}") from error
    frame = frame[frame.geometry.notna() & frame.geom_type.isin(["Polygon", "MultiPolygon"])]
    if frame.empty:
        raise RegionError(f"{option} {path} holds no polygon: draw the area as polygons")
    if frame.crs is None:
        raise RegionError(f"{option} {path} has no coordinate reference system: assign one")
    if field is not None and field not in frame:
        columns = ", ".join(str(name) for name in frame.columns.drop("geometry"))
        raise RegionError(f"{field_option} {field!r} is no column of {path}: it has {columns}")
    names = frame[field].astype(str) if field else [f"zone-{i}" for i in range(len(frame))]
    frame = frame.to_crs("EPSG:4326").assign(zone_name=list(names))
    outlines = frame.geometry.make_valid().groupby(frame["zone_name"]).agg(shapely.union_all)
    zones = [Zone(str(name), outline) for name, outline in outlines.items()]
    west, south, east, north = shapely.union_all([zone.outline for zone in zones]).bounds
    if not (-180.001 <= west <= east <= 180.001 and -90.001 <= south <= north <= 90.001):
        raise RegionError(
            f"{option} {path} reaches from {west:g}, {south:g} to {east:g}, {north:g} degrees: "
            "its reference system is not the one its coordinates are in"
        )
    return zones
