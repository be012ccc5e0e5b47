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
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import mgrs
import numpy as np
import pyproj
import shapely
import shapely.affinity
from affine import Affine
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from pyproj.exceptions import CRSError, ProjError

from bharateo.artefacts import shortened
from bharateo.config import DataConfig
from bharateo.errors import ConfigError, RegionError
from bharateo.pixels.vectors import MOST_VERTICES, mended, read_features
from bharateo.regions import Region, Roi, Zone, check_size, parse_roi

if TYPE_CHECKING:
    pass

PIXEL_M = 10
SQUARE_M = 100_000
_SNAP_M = 60
"""Corners of tiles lie on multiples of this, the pixel of the coarsest bands."""

_FALSE_NORTHING_M = 10_000_000
"""Northing of the equator in the southern zones."""

MOST_SQUARES = 8_000
"""Of 100 km, with ground of an area: a continent scattered over its neighbours."""

MOST_OUTLINE_DEGREES = 3_000
"""Eight times around the Earth: no coast drawn at 1:1,000,000 is as long."""

_GLOBE = pyproj.Geod(ellps="WGS84")

_STEP_DEGREES, _STEP_M = 0.1, 1000
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

    Raises:
        RegionError: the area is larger than ``MOST_KM2``, its outline longer than
            ``MOST_OUTLINE_DEGREES``, or it lies in more than ``MOST_SQUARES``.
    """
    areas = (_GLOBE.geometry_area_perimeter(zone.outline)[0] for zone in zones)
    check_size(sum(map(abs, areas)) / 1e6)
    if (around := sum(zone.outline.length for zone in zones)) > MOST_OUTLINE_DEGREES:
        raise RegionError(
            f"the area's outline is {around:,.0f} degrees long, more than "
            f"{MOST_OUTLINE_DEGREES:,}: simplify it, or give a part of it"
        )
    regions: list[Region] = []
    for zone_number, north in product(range(1, 61), (True, False)):
        for region in _strip_regions(zones, zone_number, north, align_px):
            regions.append(region)
            if len(regions) > MOST_SQUARES:
                raise RegionError(
                    f"the area reaches into more than {MOST_SQUARES:,} squares of 100 km: give "
                    "the parts of it that you need"
                )
    return tuple(regions)


def _strip_regions(
    zones: Sequence[Zone], zone_number: int, north: bool, align_px: tuple[int, int]
) -> Iterator[Region]:
    strip, crs = _strip(zone_number, north), utm(zone_number, north)
    outlines = {}
    for zone in zones:
        part = zone.outline.intersection(strip)
        if part.area > 0:
            bent = shapely.segmentize(part, _STEP_DEGREES)
            to_metres = CRS("EPSG:4326").transformer_to_crs(CRS(crs))
            projected = shapely.transform(bent, to_metres, interleaved=False)
            projected = mended("the area", projected, RegionError)
            if not projected.is_empty:
                outlines[zone.name] = projected
    if not outlines:
        return
    # South-west corners of the squares under the outlines, north first.
    whole = shapely.union_all(list(outlines.values()))
    west, south, east, upper = (math.floor(edge / SQUARE_M) for edge in whole.bounds)
    whole = whole.simplify(0)
    shapely.prepare(whole)
    corners = [
        (col * SQUARE_M, row * SQUARE_M)
        for row in range(upper, south - 1, -1)
        for col in range(west, east + 1)
        if whole.intersects(
            shapely.box(*(SQUARE_M * each for each in (col, row, col + 1, row + 1)))
        )
    ]
    parts = {name: dict(_cut(each, corners, north)) for name, each in outlines.items()}
    for corner in corners:
        inside = {
            name: squares[corner]
            for name, squares in parts.items()
            if corner in squares and not _is_sliver(squares[corner])
        }
        if not inside:
            continue
        left, bottom, right, top = tile_bounds(corner, north)
        west, south, east, upper = shapely.union_all(list(inside.values())).bounds
        row, rows = _span((top - upper, top - south), align_px[0], (top - bottom) // PIXEL_M)
        col, cols = _span((west - left, east - left), align_px[1], (right - left) // PIXEL_M)
        affine = Affine(PIXEL_M, 0, left + col * PIXEL_M, 0, -PIXEL_M, top - row * PIXEL_M)
        a, b, c, d, e, f = (~affine)[:6]
        in_pixels = (
            Zone(name, shapely.affinity.affine_transform(part, [a, b, d, e, c, f]))
            for name, part in inside.items()
        )
        name = square_name(zone_number, north, corner)
        yield Region(name, GeoBox((rows, cols), affine, crs), tuple(in_pixels))


def _cut(
    outline: shapely.Geometry, corners: Sequence[tuple[int, int]], north: bool
) -> Iterator[tuple[tuple[int, int], shapely.Geometry]]:
    """The part of an outline in each square, by halves, so that none is looked at as a whole in
    every square.
    """
    bounds = np.array([tile_bounds(corner, north) for corner in corners])
    block = shapely.box(*bounds[:, :2].min(0), *bounds[:, 2:].max(0))
    part = outline.intersection(block)
    if part.is_empty:
        return
    if len(corners) == 1:
        yield corners[0], part
        return
    axis = int(np.ptp(bounds[:, 1]) > np.ptp(bounds[:, 0]))
    order = sorted(corners, key=lambda corner: corner[axis])
    middle = len(order) // 2
    for half in (order[:middle], order[middle:]):
        yield from _cut(part, half, north)


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
    to_degrees = CRS(utm(zone_number, north)).transformer_to_crs(CRS("EPSG:4326"))
    _, lat = to_degrees(500_000, corner[1] + SQUARE_M / 2)
    band = _BANDS[int((lat + 80) // 8)]
    columns = _COLUMNS[zone_number % 3]
    row_letter = _ROWS[(row + (0 if zone_number % 2 else 5)) % 20]
    return f"{zone_number:02d}{band}{columns[(col - 1) % 8]}{row_letter}"


def _is_sliver(outline: shapely.Geometry) -> bool:
    """Whether an outline is nowhere as wide as a pixel, as roundings leave it along edges."""
    if outline.area > PIXEL_M / 2 * outline.length:  # then some circle of this radius fits in
        return False
    return bool(outline.buffer(-PIXEL_M / 2).is_empty)


def _span(metres: tuple[float, float], align_px: int, size_px: int) -> tuple[int, int]:
    """First pixel and number of pixels, aligned, that cover a stretch counted from the edge."""
    first = math.floor(metres[0] / PIXEL_M / align_px + 1e-9) * align_px
    last = math.ceil(metres[1] / PIXEL_M / align_px - 1e-9) * align_px
    return first, min(last, size_px) - first


def unprojected(outline: shapely.Geometry, zone_number: int, north: bool) -> shapely.Geometry:
    """An outline in metres of a UTM zone in degrees, cut in two where it crosses 180."""
    middle = -183 + 6 * zone_number
    to_degrees = CRS(utm(zone_number, north)).transformer_to_crs(CRS("EPSG:4326"))

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


def utm(zone_number: int, north: bool) -> str:
    """The EPSG code of a UTM zone on WGS 84."""
    return f"EPSG:{(32600 if north else 32700) + zone_number}"


def _roi_zone(roi: Roi) -> Zone:
    if roi.bbox:
        west, south, east, north = roi.bbox
        if west < east:
            return Zone(roi.name, shapely.box(west, south, east, north))
        halves = shapely.box(west, south, 180, north), shapely.box(-180, south, east, north)
        return Zone(roi.name, shapely.union_all(halves))
    if not -80 <= roi.lat <= 84:
        raise RegionError(
            f"ROI {roi.name!r} lies at {roi.lat:g} degrees north: Sentinel-2's grids end at 84 N "
            "and 80 S"
        )
    number, north = min(int((roi.lon + 180) // 6) + 1, 60), roi.lat >= 0
    x, y = CRS("EPSG:4326").transformer_to_crs(CRS(utm(number, north)))(roi.lon, roi.lat)
    half = roi.size_px * PIXEL_M / 2
    square = shapely.box(x - half, y - half, x + half, y + half)
    try:
        return Zone(roi.name, unprojected(square, number, north))
    except shapely.GEOSException as error:  # it wraps around a pole, or leaves the plane
        raise RegionError(
            f"ROI {roi.name!r}: a square of {roi.size_px} px is too large there: give "
            f"{roi.name}=WEST,SOUTH,EAST,NORTH"
        ) from error


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
    square = unprojected(shapely.box(*tile_bounds(corner, north)), number, north)
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
        RegionError: the file holds no polygon on Earth, or has no such column, or lies where its
            reference system does not reach.
    """
    import geopandas  # here, since it takes a second to load

    if not path.exists():
        raise RegionError(f"{option} {path} is no file: give a GeoJSON or GeoPackage of polygons")
    frame = read_features(path, "polygons", RegionError, f"{option} {path}")
    kinds = shapely.get_type_id(frame.geometry.to_numpy())  # -1 of none
    polygons = np.isin(kinds, [shapely.GeometryType.POLYGON, shapely.GeometryType.MULTIPOLYGON])
    frame = frame[polygons & ~shapely.is_empty(frame.geometry.to_numpy())]
    if frame.empty:
        raise RegionError(f"{option} {path} holds no polygon: draw the area as polygons")
    if frame.crs is None:
        raise RegionError(f"{option} {path} has no coordinate reference system: assign one")
    if field is not None and field not in frame:
        columns = shortened(", ".join(str(name) for name in frame.columns.drop("geometry")))
        raise RegionError(f"{field_option} {field!r} is no column of {path}: it has {columns}")
    names = frame[field].astype(str) if field else [f"zone-{i}" for i in range(len(frame))]
    try:
        if frame.crs.is_projected:  # what is straight there is bent in degrees
            with np.errstate(over="ignore"):  # of coordinates that are refused below
                around = shapely.length(frame.geometry.to_numpy()).sum()
            step = _STEP_M / frame.crs.axis_info[0].unit_conversion_factor
            if np.isfinite(around):
                step = max(step, around / MOST_VERTICES)
                frame = frame.set_geometry(frame.geometry.segmentize(step))
        frame = frame.to_crs("EPSG:4326")
    except (ProjError, CRSError) as error:
        raise RegionError(
            f"{option} {path} cannot be brought to longitude and latitude "
            f"({shortened(str(error))}): its reference system is of no use on Earth"
        ) from error
    corners = shapely.get_coordinates(frame.geometry.to_numpy())
    (west, south), (east, north) = corners.min(0), corners.max(0)
    if not (-180.001 <= west <= east <= 180.001 and -90.001 <= south <= north <= 90.001):
        raise RegionError(
            f"{option} {path} reaches from {west:g}, {south:g} to {east:g}, {north:g} degrees: "
            "its reference system is not the one its coordinates are in"
        )
    outlines = [
        mended(f"{option} {path}: zone {name}", outline, RegionError)
        for name, outline in zip(names, frame.geometry, strict=True)
    ]
    series = geopandas.GeoSeries(outlines).groupby(np.array(list(names)))
    zones = [Zone(str(name), outline) for name, outline in series.agg(shapely.union_all).items()]
    if flat := [zone.name for zone in zones if zone.outline.area == 0]:
        raise RegionError(
            f"{option} {path}: zone {shortened(flat[0])} has no area: draw it as a polygon"
        )
    return zones
