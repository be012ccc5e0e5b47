"""Where pixels of a grid lie on Earth, and which grids come near each other."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pyproj
import shapely
from affine import Affine
from jaxtyping import Float64
from odc.geo.geobox import GeoBox

_ELLIPSOID = pyproj.Geod(ellps="WGS84")

_LATTICE_CELLS, _AREA_CELLS = 64, 8
"""Areas are measured this far apart, each as a mean over so many cells a side: one cell of 10 m is
too small for the 0.01 m2 to which areas on the ellipsoid are known."""

_ROUNDING_PX = 1e-3  # coordinates in degrees are exact to about 1e-9 of a pixel
_POINTS_PER_SIDE = 9


class Rectangle(NamedTuple):
    """A rectangle in pixels of a grid; first row and column, then size."""

    row: float
    col: float
    height: float
    width: float

    def grown(self, rows: float, cols: float) -> Rectangle:
        """The rectangle with a margin on every side."""
        return Rectangle(
            self.row - rows, self.col - cols, self.height + 2 * rows, self.width + 2 * cols
        )

    def box(self) -> shapely.Polygon:
        """The rectangle as a polygon, x counting columns and y rows."""
        return shapely.box(self.col, self.row, self.col + self.width, self.row + self.height)

    def outline(self) -> Float64[np.ndarray, "2 point"]:
        """Points along the four sides, (col, row)."""
        along = np.linspace(0, 1, _POINTS_PER_SIDE)
        first, last = np.zeros_like(along), np.ones_like(along)
        x = self.col + self.width * np.concatenate([along, last, along, first])
        y = self.row + self.height * np.concatenate([first, along, last, along])
        return np.stack([x, y])


def surroundings(there: Rectangle, grid: GeoBox, here: GeoBox, buffer_px: int) -> shapely.Polygon:
    """A rectangle of one grid with the buffer around it, in pixels of another grid nearby.

    The buffer counts the larger pixels of the two. Exact where both lie on one grid; across
    reference systems a pixel is added, since straight lines bend.
    """
    x, y = _to_pixels(grid, here, there.outline())
    image = Rectangle(float(y.min()), float(x.min()), float(np.ptp(y)), float(np.ptp(x)))
    margin = -_ROUNDING_PX if grid.crs == here.crs else 1.0
    rows = buffer_px * max(1.0, image.height / there.height) + margin
    cols = buffer_px * max(1.0, image.width / there.width) + margin
    return image.grown(rows, cols).box()


def _to_pixels(
    there: GeoBox, here: GeoBox, points: Float64[np.ndarray, "2 point"]
) -> Float64[np.ndarray, "2 point"]:
    x, y = _transform(there.affine, points)
    if there.crs != here.crs:
        x, y = _transformer(str(there.crs), str(here.crs)).transform(x, y)
    if here.crs is not None and here.crs.geographic:
        middle = here.extent.centroid.coords[0][0]  # 180.1 and -179.9 degrees are one place
        x = middle + (x - middle + 180) % 360 - 180
    return _transform(~here.affine, np.stack([x, y]))


@lru_cache(maxsize=64)
def _transformer(there: str, here: str) -> pyproj.Transformer:
    return pyproj.Transformer.from_crs(there, here, always_xy=True)


def _transform(
    affine: Affine, points: Float64[np.ndarray, "2 point"]
) -> Float64[np.ndarray, "2 point"]:
    a, b, c, d, e, f = affine[:6]
    x, y = points
    return np.stack([a * x + b * y + c, d * x + e * y + f])


def neighbours(grids: Sequence[GeoBox], buffer_px: int) -> list[list[int]]:
    """For every grid, the others that may come within the buffer.

    Compares the spheres around their places on the unit globe, which knows no antimeridian.
    """
    centres, radii = [], []
    for grid in grids:
        whole = Rectangle(0, 0, *grid.shape).grown(buffer_px, buffer_px)
        places = _on_globe(grid, whole.outline())
        centre = places.mean(axis=1)
        centres.append(centre)
        radii.append(1.1 * np.linalg.norm(places - centre[:, None], axis=0).max())
    middle, radius = np.array(centres), np.array(radii)
    distance = np.linalg.norm(middle[:, None] - middle[None], axis=-1)
    near = (distance <= radius[:, None] + radius) & ~np.eye(len(grids), dtype=bool)
    return [np.flatnonzero(row).tolist() for row in near]


def _on_globe(
    grid: GeoBox, points: Float64[np.ndarray, "2 point"]
) -> Float64[np.ndarray, "3 point"]:
    lon, lat = np.radians(to_lonlat(grid, points))
    return np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)])


def to_lonlat(
    grid: GeoBox, points: Float64[np.ndarray, "2 point"]
) -> Float64[np.ndarray, "2 point"]:
    """Longitude and latitude (degrees, WGS 84) of (col, row) points of a grid.

    Longitudes run on past 180 where the points cross the antimeridian, so that outlines of
    nearby points stay whole; the first point's lies in -180..180.
    """
    x, y = _transform(grid.affine, points)
    if grid.crs is not None and grid.crs.epsg != 4326:
        x, y = _transformer(str(grid.crs), "EPSG:4326").transform(x, y)
    first = x[0] - 360 * np.floor((x[0] + 180) / 360)
    turns = np.round((x - first) / 360)
    return np.stack([x - 360 * turns, y])


def bounds_lonlat(grid: GeoBox) -> list[float]:
    """West, south, east, north in degrees; east is past 180 across the antimeridian."""
    lon, lat = to_lonlat(grid, Rectangle(0, 0, *grid.shape).outline())
    return [float(lon.min()), float(lat.min()), float(lon.max()), float(lat.max())]


def cell_areas(grid: GeoBox) -> Float64[np.ndarray, "row col"]:
    """Square metres of every cell of a grid on the ellipsoid, whatever its reference system.

    Measured at a lattice of cells and interpolated between them: right to a millionth for cells of
    200 m, to 2e-5 for those of a kilometre.
    """
    lattice = [
        np.unique(np.linspace(0, size - 1, -(-size // _LATTICE_CELLS) + 1).round())
        for size in grid.shape
    ]
    half = _AREA_CELLS / 2
    corners = np.array([[-half, half, half, -half], [-half, -half, half, half]])  # col, row
    row, col = np.meshgrid(*lattice, indexing="ij")
    centres = np.stack([col.ravel(), row.ravel()]) + 0.5
    outlines = to_lonlat(grid, (centres[:, :, None] + corners[:, None]).reshape(2, -1))
    m2 = [
        abs(_ELLIPSOID.polygon_area_perimeter(*each)[0]) / _AREA_CELLS**2
        for each in np.moveaxis(outlines.reshape(2, -1, 4), 1, 0)
    ]
    # Weights of the lattice's lines for every row, and for every column.
    down, along = (
        np.stack([np.interp(np.arange(size), lines, one) for one in np.eye(len(lines))], 1)
        for size, lines in zip(grid.shape, lattice, strict=True)
    )
    areas: np.ndarray = down @ np.array(m2).reshape(row.shape) @ along.T
    return areas
