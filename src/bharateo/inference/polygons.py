"""The areas of one class of a map as polygons, none smaller than a minimum mapping unit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyproj
import rasterio.features
import shapely
import shapely.geometry
from jaxtyping import Bool, UInt8
from odc.geo.crs import CRS

from bharateo.errors import ConfigError
from bharateo.geography import cell_areas
from bharateo.inference.class_raster import WINDOW_CELLS, ClassRaster
from bharateo.inference.hectares import ESTIMATE
from bharateo.pixels.cog import xml_characters
from bharateo.pixels.vectors import write_geopackage
from bharateo.progress import Progress

if TYPE_CHECKING:
    import geopandas as gpd

POLYGONS_MARK = "written by bharateo polygons"

MOST_CELLS = 150_000_000
"""Of a map: neighbours are looked for over all of it at once, at about 10 bytes a cell."""

MOST_POLYGONS = 500_000

_ROWS_AT_ONCE, _MOST_PASSES, _LONG_CELLS = 10_000, 10, 64
_M2_PER_HECTARE = 10_000
_GLOBE = pyproj.Geod(ellps="WGS84")


def write_polygons(
    path: Path,
    raster: ClassRaster,
    min_area_ha: float,
    progress: Progress,
    say: Callable[[str], object],
) -> int:
    """Write the polygons of a map, with class and hectares, as GeoPackage; how many there are.

    Cells that share a side are one polygon. One smaller than the unit becomes part of its largest
    neighbour; where it has none that is large enough, amid no data, it is kept, which is said.

    Raises:
        ConfigError: the unit is no size, or the map has more than ``MOST_CELLS`` cells or
            ``MOST_POLYGONS`` polygons.
        SourceError, StorageError: the map cannot be read, the file cannot be written.
    """
    if not 0 <= min_area_ha < math.inf:
        raise ConfigError(f"--min-area-ha {min_area_ha:g}: give hectares, 0 for every cell")
    height, width = raster.file.shape
    if height * width > MOST_CELLS:
        side = math.isqrt(MOST_CELLS)
        raise ConfigError(
            f"{raster.path} has {height * width:,} cells, more than {MOST_CELLS:,}: make polygons "
            f"of parts of it, e.g. gdal_translate -srcwin 0 0 {side} {side} {raster.path} part.tif"
        )
    ids, known = _read(raster, progress)
    smallest = min(
        cell_areas(raster.file.geobox[row : row + 1, :]).min() for row in (0, height - 1)
    )
    least = math.ceil(min_area_ha * _M2_PER_HECTARE / smallest)
    for _ in range(_MOST_PASSES if least > 1 else 0):  # what has grown takes in what is left
        sieved = rasterio.features.sieve(ids, size=least, mask=known, connectivity=4)
        if np.array_equal(sieved, ids):
            break
        ids = sieved
    names = {each.id: each.name for each in raster.classes(np.unique(ids[known]).tolist())}
    count = small = 0

    def frames() -> Iterator[gpd.GeoDataFrame]:
        nonlocal count, small
        for part in _parts(ids, known, raster, names):
            count += len(part)
            small += int((part["hectares"] < min_area_ha * (1 - 1e-6)).sum())
            if count > MOST_POLYGONS:
                raise ConfigError(
                    f"{raster.path} has more than {MOST_POLYGONS:,} polygons of "
                    f"{min_area_ha:g} ha: raise --min-area-ha"
                )
            progress(count, MOST_POLYGONS, "polygons")
            yield part

    write_geopackage(path, "polygons", frames(), POLYGONS_MARK)
    if small:
        say(
            f"{small} polygons are smaller than {min_area_ha:g} ha: nothing larger lies beside them"
        )
    return count


def _read(
    raster: ClassRaster, progress: Progress
) -> tuple[UInt8[np.ndarray, "row col"], Bool[np.ndarray, "row col"]]:
    height, width = raster.file.shape
    ids, known = np.zeros((height, width), np.uint8), np.zeros((height, width), bool)
    for row in range(0, height, WINDOW_CELLS):
        progress(row, height, "rows read")
        for col in range(0, width, WINDOW_CELLS):
            rows, cols = slice(row, row + WINDOW_CELLS), slice(col, col + WINDOW_CELLS)
            here = ids[rows, cols].shape
            ids[rows, cols], known[rows, cols] = raster.read(row, col, *here)
    return ids, known


def _parts(
    ids: UInt8[np.ndarray, "row col"],
    known: Bool[np.ndarray, "row col"],
    raster: ClassRaster,
    names: dict[int, str],
) -> Iterator[gpd.GeoDataFrame]:
    """Polygons in parts of a bounded number; one part at least, so that an empty file has its
    columns.
    """
    grid = raster.file.geobox
    assert grid.crs is not None
    shapes = rasterio.features.shapes(ids, mask=known, connectivity=4, transform=grid.affine)
    some: list[tuple[Any, int]] = []
    first = True
    for geometry, number in shapes:
        some.append((shapely.geometry.shape(geometry), int(number)))
        if len(some) == _ROWS_AT_ONCE:
            yield _frame(some, grid.crs, names, abs(grid.affine.a))
            some, first = [], False
    if some or first:
        yield _frame(some, grid.crs, names, abs(grid.affine.a))


def _frame(
    found: list[tuple[Any, int]], crs: CRS, names: dict[int, str], cell: float
) -> gpd.GeoDataFrame:
    import geopandas as gpd

    shapes = np.array([shape for shape, _ in found], object)
    bent = shapely.segmentize(shapes, _LONG_CELLS * cell)
    to_degrees = crs.transformer_to_crs(CRS("EPSG:4326"))
    in_degrees = shapely.transform(bent, to_degrees, interleaved=False)
    m2 = [abs(_GLOBE.geometry_area_perimeter(each)[0]) for each in in_degrees]
    ids = [number for _, number in found]
    return gpd.GeoDataFrame(
        {
            "class_id": np.array(ids, np.int32),
            "class": [xml_characters(names[number]) for number in ids],
            "hectares": np.array(m2, float) / _M2_PER_HECTARE,
            "estimate": [ESTIMATE] * len(found),
        },
        geometry=shapes,
        crs=str(crs),
    )
