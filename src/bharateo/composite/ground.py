"""The ground of a composite: an area's grid, its outline on it, and the windows it is made in."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import shapely
from affine import Affine
from jaxtyping import Bool
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from rasterio.features import geometry_mask

from bharateo.errors import RegionError
from bharateo.pixels.vectors import mended
from bharateo.regions import Zone
from bharateo.sources.areas import PIXEL_M, SQUARE_M, tile_bounds, unprojected, utm

WINDOW_PX = 2048
"""Side of a window: four blocks of a 10 m band and one of a 20 m band, each fetched once."""

_MOST_DEGREES = 9
"""How far from the middle of its UTM zone ground may lie: lengths are 1 % off there."""

_STEP_DEGREES = 0.01
"""Longest straight piece of an outline: between parallels and lines of the grid are centimetres."""


@dataclass(frozen=True)
class Window:
    """Some rows and columns of a composite."""

    row: int
    col: int
    height: int
    width: int

    @property
    def name(self) -> str:
        """First row and column: what its files are called."""
        return f"{self.row}-{self.col}"

    @property
    def slices(self) -> tuple[slice, slice]:
        """Its rows and columns."""
        return slice(self.row, self.row + self.height), slice(self.col, self.col + self.width)


class Ground:
    """An area on pixels of 10 m in the UTM zone of its middle; corners at multiples of 10 m.

    Raises:
        RegionError: it reaches farther from the middle of that zone than ``_MOST_DEGREES``.
    """

    def __init__(self, area: Zone) -> None:
        self.area, self.window_px = area, WINDOW_PX
        outline = area.outline
        west, _, east, _ = outline.bounds
        if east - west > 180:  # both sides of the antimeridian: let longitudes run on
            outline = shapely.transform(outline, lambda x, y: (x % 360, y), interleaved=False)
            west, _, east, _ = outline.bounds
        self.lon, lat = (west + east) / 2, (outline.bounds[1] + outline.bounds[3]) / 2
        self.utm_zone, self.north = int((self.lon + 180) % 360 // 6) + 1, lat >= 0
        middle = -183 + 6 * self.utm_zone
        turn = 360 if self.lon > 180 else 0
        if max(east - turn - middle, middle - west + turn) > _MOST_DEGREES:
            raise RegionError(
                f"{area.name} reaches from {west:g} to {east:g} degrees, more than "
                f"{_MOST_DEGREES} from the middle of UTM zone {self.utm_zone} ({middle}): "
                "composite the parts of it one by one, e.g. with --zone"
            )
        crs = utm(self.utm_zone, self.north)
        self.outline = mended(
            area.name,
            shapely.transform(
                shapely.segmentize(outline, _STEP_DEGREES),
                CRS("EPSG:4326").transformer_to_crs(CRS(crs)),
                interleaved=False,
            ),
            RegionError,
        )
        """In metres of the grid."""
        edges = np.array(self.outline.bounds) / PIXEL_M
        left, bottom = np.floor(edges[:2] + 1e-6).astype(int) * PIXEL_M
        right, top = np.ceil(edges[2:] - 1e-6).astype(int) * PIXEL_M
        shape = (int(top - bottom) // PIXEL_M, int(right - left) // PIXEL_M)
        affine = Affine(PIXEL_M, 0, int(left), 0, -PIXEL_M, int(top))
        self.geobox = GeoBox(shape, affine, crs)

    @cached_property
    def windows(self) -> tuple[Window, ...]:
        """The windows that together are the grid, row by row.

        They begin and end where Sentinel-2's tiles keep their blocks in the squares of 100 km.
        """
        (height, width), affine = self.geobox.shape, self.geobox.affine
        left, top = int(affine.c), int(affine.f)
        right, bottom = left + PIXEL_M * width, top - PIXEL_M * height
        step = PIXEL_M * self.window_px
        cols, rows = {0, width}, {0, height}
        for west in range(left // SQUARE_M * SQUARE_M - SQUARE_M, right, SQUARE_M):
            first, _, last, _ = tile_bounds((west, 0), self.north)
            cols |= {(x - left) // PIXEL_M for x in range(first, last, step) if left < x < right}
        for south in range(bottom // SQUARE_M * SQUARE_M - SQUARE_M, top + SQUARE_M, SQUARE_M):
            _, last, _, first = tile_bounds((0, south), self.north)
            rows |= {(top - y) // PIXEL_M for y in range(first, last, -step) if bottom < y < top}
        return tuple(
            Window(row, col, end_row - row, end_col - col)
            for row, end_row in pairwise(sorted(rows))
            for col, end_col in pairwise(sorted(cols))
        )

    @cached_property
    def touched(self) -> tuple[Window, ...]:
        """The windows with pixels of the area.

        Raises:
            RegionError: there is none.
        """
        shapely.prepare(self.outline)
        near = (each for each in self.windows if self.outline.intersects(self._box(each)))
        if not (found := tuple(each for each in near if self.inside(each).any())):
            raise RegionError(f"{self.area.name} holds no pixel's centre: draw a larger area")
        return found

    def grid(self, window: Window) -> GeoBox:
        """The grid of a window."""
        return self.geobox[window.slices]

    def inside(self, window: Window) -> Bool[np.ndarray, "row col"]:
        """The pixels of a window whose centre lies in the area."""
        shape, affine = (window.height, window.width), self.grid(window).affine
        found: np.ndarray = geometry_mask([self.outline], shape, affine, invert=True)
        return found

    def footprint(self, window: Window) -> shapely.Geometry:
        """The area's ground in a window, in degrees."""
        parts = shapely.get_parts(self.outline.intersection(self._box(window)))
        whole = shapely.union_all([part for part in parts if part.area > 0])  # no edges in common
        return unprojected(whole, self.utm_zone, self.north)

    def _box(self, window: Window) -> shapely.Polygon:
        affine = self.geobox.affine
        west, north = affine @ (window.col, window.row)
        east, south = affine @ (window.col + window.width, window.row + window.height)
        return shapely.box(west, south, east, north)
