"""Hectares of a map's classes by district: every cell by the share of it that lies in the district.

These are counts of cells, weighed by ground: what a map shows, with all its errors. An area with an
interval takes a sample of the ground and an estimator, not a finer count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

import numpy as np
import pyproj
import shapely
import shapely.affinity
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from pydantic import Field

from bharateo.artefacts import Record
from bharateo.errors import RegionError
from bharateo.geography import bounds_lonlat, cell_areas
from bharateo.inference.class_raster import WINDOW_CELLS, ClassRaster
from bharateo.landcover import LandCoverClass
from bharateo.pixels.coverage import coverage
from bharateo.progress import Progress
from bharateo.regions import Zone

ESTIMATE = "count of map cells, without an interval"
"""How these hectares were come by, in every table of them."""

SIGNED = "for areas with intervals: bharateo areas"
"""What makes areas that one can sign."""

_M2_PER_HECTARE = 10_000
_GLOBE = pyproj.Geod(ellps="WGS84")

_STEP_DEGREES = 0.01
"""Longest straight piece of an outline: over a kilometre a line that is straight in degrees and one
that is straight on the map are a centimetre apart."""

MOST_OUTLINE_DEGREES = 20_000
"""Of all zones: the districts of a continent, coast and all."""

_MARGIN = 0.02
"""Of a map's extent in degrees, by which its curved sides may reach beyond the points looked at."""


class ClassHectares(Record):
    """A class in a zone; None where no cell of the zone has data."""

    name: str = Field(serialization_alias="class")
    hectares: float | None
    share: float | None = Field(description="of the ground with data")


class ZoneHectares(Record):
    """A zone: its own hectares, the share of them where the map has data, and its classes."""

    zone: str
    hectares: float
    valid_share: float
    classes: list[ClassHectares]


class HectaresRecord(Record):
    """``hectares.json``: the table, and what it was made of."""

    schema_version: Literal[1] = 1
    product: Literal["hectares"] = "hectares"
    code_version: str
    map: str
    map_version: dict[str, Any]
    zones_file: str
    zones_sha256: str
    zone_field: str | None
    estimate: str = ESTIMATE
    signed: str = SIGNED
    attribution: list[str]
    zones: list[ZoneHectares]


@dataclass(frozen=True)
class _Placed:
    """A part of a zone on the map: its number, and its outline in the map's cells."""

    zone: int
    outline: shapely.Geometry
    whole: bool
    """Whether it is the zone itself, with nothing outside the map."""


def zonal_hectares(
    raster: ClassRaster, zones: Sequence[Zone], progress: Progress
) -> tuple[tuple[LandCoverClass, ...], list[ZoneHectares]]:
    """The classes found in any zone, and what each zone (outlines in degrees) has of them.

    Ground is measured on the ellipsoid and cells count by the share of them that lies in the zone,
    exactly; sides of zones are straight in degrees. Memory does not grow with the map: windows are
    read one by one, those alone that a zone reaches into.

    Raises:
        RegionError: no zone reaches into the map, or the outlines are longer than
            ``MOST_OUTLINE_DEGREES``.
        SourceError: the map cannot be read.
    """
    grid = raster.file.geobox
    if (around := sum(zone.outline.length for zone in zones)) > MOST_OUTLINE_DEGREES:
        raise RegionError(
            f"the zones' outlines are {around:,.0f} degrees long, more than "
            f"{MOST_OUTLINE_DEGREES:,}: simplify them, or give some of them at a time"
        )
    placed = [part for number, zone in enumerate(zones) for part in _place(number, zone, grid)]
    if not placed:
        west, south, east, north = bounds_lonlat(grid)
        raise RegionError(
            f"no zone reaches into {raster.path}, which lies from {west:.4f}, {south:.4f} to "
            f"{east:.4f}, {north:.4f} degrees: give the districts of that ground"
        )
    bounds = np.array([part.outline.bounds for part in placed])
    without = 256  # where m2 without data are counted
    m2 = np.zeros((len(zones), without + 1))
    height, width = grid.shape
    corners = list(product(range(0, height, WINDOW_CELLS), range(0, width, WINDOW_CELLS)))
    for done, (row, col) in enumerate(corners):
        progress(done, len(corners), "windows")
        rows, cols = min(WINDOW_CELLS, height - row), min(WINDOW_CELLS, width - col)
        west, north, east, south = bounds.T
        here = (west < col + cols) & (east > col) & (north < row + rows) & (south > row)
        if not here.any():
            continue
        ids, known = raster.read(row, col, rows, cols)
        codes = np.where(known, ids.astype(np.int16), without)  # 256 is no uint8
        areas = cell_areas(grid[row : row + rows, col : col + cols])
        for number in np.flatnonzero(here):
            # The zone's own rectangle of the window.
            left, top = (max(int(bounds[number, i]) - (col, row)[i], 0) for i in (0, 1))
            right = min(int(np.ceil(bounds[number, 2])) - col, cols)
            bottom = min(int(np.ceil(bounds[number, 3])) - row, rows)
            outline = shapely.affinity.translate(placed[number].outline, -col - left, -row - top)
            ground = coverage(outline, bottom - top, right - left)
            ground *= areas[top:bottom, left:right]
            m2[placed[number].zone] += np.bincount(
                codes[top:bottom, left:right].ravel(), ground.ravel(), without + 1
            )
    progress(len(corners), len(corners), "windows")
    classes = raster.classes(np.flatnonzero(m2[:, :without].any(0)).tolist())
    whole = {part.zone for part in placed if part.whole}
    found = []
    for zone_number, zone in enumerate(zones):
        counted, valid = m2[zone_number], float(m2[zone_number, :without].sum())
        # A zone inside the map has the ground that was counted; of others the outline says it.
        inside = float(counted.sum()) if zone_number in whole else _outline_m2(zone.outline)
        found.append(
            ZoneHectares(
                zone=zone.name,
                hectares=inside / _M2_PER_HECTARE,
                valid_share=min(valid / inside, 1.0),
                classes=[
                    ClassHectares(
                        name=each.name,
                        hectares=float(counted[each.id]) / _M2_PER_HECTARE if valid else None,
                        share=float(counted[each.id]) / valid if valid else None,
                    )
                    for each in classes
                ],
            )
        )
    return classes, found


def _place(number: int, zone: Zone, grid: GeoBox) -> list[_Placed]:
    """The parts of a zone in the cells of a grid, none where it does not reach into it."""
    assert grid.crs is not None
    west, south, east, north = bounds_lonlat(grid)
    more = _MARGIN * max(east - west, north - south) + _STEP_DEGREES
    extent = shapely.box(west - more, south - more, east + more, north + more)
    to_map = CRS("EPSG:4326").transformer_to_crs(grid.crs)
    a, b, c, d, e, f = (~grid.affine)[:6]
    found = []
    for turn in (-360, 0, 360):  # the map may lie on both sides of the antimeridian
        outline = shapely.affinity.translate(zone.outline, turn)
        if not outline.intersects(extent):
            continue
        part = outline if extent.contains(outline) else outline.intersection(extent)
        bent = shapely.segmentize(part, _STEP_DEGREES)
        on_map = shapely.transform(bent, to_map, interleaved=False)
        if grid.crs.geographic:  # where a raster may count its degrees from another turn
            middle = grid.extent.centroid.coords[0][0]
            turns = round((middle - (west + east) / 2) / 360)
            on_map = shapely.affinity.translate(on_map, 360 * turns)
        on_map = shapely.affinity.affine_transform(on_map, [a, b, d, e, c, f])
        polygons = [each for each in shapely.get_parts(on_map) if each.geom_type == "Polygon"]
        cells = shapely.MultiPolygon(polygons)
        left, top, right, bottom = cells.bounds if polygons else (0.0, 0.0, 0.0, 0.0)
        height, width = grid.shape
        if min(right, width) > max(left, 0) and min(bottom, height) > max(top, 0):
            whole = part is outline and min(left, top) >= 0 and right <= width and bottom <= height
            found.append(_Placed(number, cells, whole))
    return found


def _outline_m2(outline: shapely.Geometry) -> float:
    bent = shapely.segmentize(outline, _STEP_DEGREES)
    oriented = shapely.orient_polygons(bent)
    return abs(float(_GLOBE.geometry_area_perimeter(oriented)[0]))
