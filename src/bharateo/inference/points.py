"""A person's own labelled points and polygons: read, placed on a raster, seen as it is mapped."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
from jaxtyping import Bool, Float, Int64, UInt8

from bharateo.artefacts import shortened
from bharateo.errors import ConfigError, SourceError
from bharateo.files import read_bytes
from bharateo.geography import to_lonlat
from bharateo.inference.inputs import RasterInput
from bharateo.inference.pixel_features import PixelFeatures, in_cells
from bharateo.inference.tiles import CellGrid, Progress, Tile, pixels_under
from bharateo.pixels.vectors import MOST_BYTES, mended, read_features

CLASS_FIELDS = ("class", "label", "landcover", "land_cover", "class_name", "name", "type")
"""What a field with classes is called, in the order they are looked for, whatever their case."""

_LON, _LAT = ("lon", "longitude", "lng", "x"), ("lat", "latitude", "y")
_NAMED = 5
"""Points named in a message, of many."""

MOST_OF_POLYGONS = 500
"""Pixels that stand for all polygons together: neighbours say little that is new, and every one of
them is fitted to again and again."""

_MOST_OF_ONE = 50
_MOST_TRIED = 1 << 20
"""Pixels of a polygon's frame that are asked whether they lie inside."""

_BLOCK_PX = 32
"""Labelled pixels in one square of this side are looked at together."""


@dataclass(frozen=True)
class Labelled:
    """Labelled cells of a raster: their class (a number of ``classes``), cell (row, col), where
    they were labelled, and the ``place`` in pixels (row, col) that tells which of them are near
    each other: the point, or the middle of the polygon.
    """

    classes: tuple[str, ...]
    labels: Int64[np.ndarray, " point"]
    places: Float[np.ndarray, "point 2"]
    cells: Int64[np.ndarray, "point 2"]
    where: tuple[str, ...]

    def take(self, keep: Bool[np.ndarray, " point"]) -> Labelled:
        """Some of the points; classes that are left without any are gone.

        Raises:
            ConfigError: fewer than two classes are left.
        """
        left = np.unique(self.labels[keep])
        classes = tuple(self.classes[number] for number in left)
        if len(classes) < 2:
            raise ConfigError(
                f"the points on the raster are of {len(classes)} class ({', '.join(classes)}): a "
                "probe tells classes apart, so set points of two at least"
            )
        numbers = np.searchsorted(left, self.labels[keep]).astype(np.int64)
        where = tuple(name for name, kept in zip(self.where, keep, strict=True) if kept)
        return Labelled(classes, numbers, self.places[keep], self.cells[keep], where)


# Reading


def read_points(path: Path, class_field: str | None = None) -> gpd.GeoDataFrame:
    """The points and polygons of a file with their ``class`` (text) and ``where`` (file and number,
    from 1).

    GeoPackage, GeoJSON, Shapefile or FlatGeobuf (``vectors.read_features``), in any reference
    system; or a table (.csv) with columns lon and lat in degrees. What has no class is left out.

    Raises:
        SourceError: the file does not exist, or cannot be read.
        ConfigError: it holds anything but points and polygons, or has no such field.
    """
    table = _read(path)
    field = _class_field(table, path, class_field)
    wrong = ~table.geometry.geom_type.isin(["Point", "Polygon", "MultiPolygon"])
    if wrong.any() or table.empty:
        kinds = ", ".join(sorted({str(kind) for kind in table.geometry.geom_type[wrong]})) or "none"
        raise ConfigError(
            f"{path} must hold points or polygons, and holds {kinds}: give a layer of these"
        )
    table.geometry = [
        shape
        if shape.geom_type == "Point"
        else mended(f"{path}, feature {number}", shape, ConfigError)
        for number, shape in enumerate(table.geometry, 1)
    ]
    where = [f"{path.name} {number}" for number in range(1, len(table) + 1)]
    classes = [_text(value) for value in table[field]]
    points = gpd.GeoDataFrame(
        {"class": classes, "where": where}, geometry=table.geometry.values, crs=table.crs
    )
    return points[points["class"] != ""]


def read_all_points(paths: Sequence[Path], class_field: str | None = None) -> gpd.GeoDataFrame:
    """The points of several files (``read_points``), in longitude and latitude.

    Raises:
        ConfigError: none of them has a class.
    """
    tables = [read_points(path, class_field).to_crs("EPSG:4326") for path in paths]
    points = pd.concat(tables, ignore_index=True)
    if points.empty:
        raise ConfigError(f"no point of {', '.join(map(str, paths))} has a class: fill some in")
    return points


def _read(path: Path) -> gpd.GeoDataFrame:
    if not path.exists():
        raise SourceError(f"{path} does not exist: give a file of points with their classes")
    if path.suffix.lower() == ".csv":
        return _read_csv(path)
    table = read_features(path, "points", SourceError)
    if table.crs is None:
        raise ConfigError(
            f"{path} does not say its reference system, so nobody can tell where its points lie: "
            "assign one in QGIS"
        )
    return table


def _read_csv(path: Path) -> gpd.GeoDataFrame:
    try:
        table = pd.read_csv(io.BytesIO(read_bytes(path, MOST_BYTES)))
    except (ValueError, OverflowError, OSError) as error:
        reason = shortened(str(error))
        raise SourceError(f"{path} cannot be read ({reason}): give a table of points") from error
    lon, lat = (_first(table, names) for names in (_LON, _LAT))
    if lon is None or lat is None:
        raise ConfigError(
            f"{path} has the columns {shortened(', '.join(map(str, table.columns)))}: a table of "
            "points needs lon and lat, in degrees"
        )
    numbers = table[[lon, lat]].apply(pd.to_numeric, errors="coerce")
    wrong = ~np.isfinite(numbers.to_numpy(float)).all(1)
    if wrong.any():
        row = int(wrong.argmax())
        raise ConfigError(f"{path}, row {row + 1}: {lon} and {lat} must be numbers, in degrees")
    return gpd.GeoDataFrame(
        table, geometry=gpd.points_from_xy(numbers[lon], numbers[lat]), crs="EPSG:4326"
    )


def _class_field(table: pd.DataFrame, path: Path, wanted: str | None) -> str:
    fields = [str(name) for name in table.columns if name != "geometry"]
    if wanted is not None and wanted not in fields:
        raise ConfigError(
            f"--class-field {wanted!r} is not in {path}: its fields are "
            f"{shortened(', '.join(fields))}"
        )
    found = wanted or _first(table, CLASS_FIELDS)
    if found is None:
        raise ConfigError(
            f"{path} has the fields {shortened(', '.join(fields))}: name the one that holds the "
            "classes with --class-field"
        )
    return found


def _first(table: pd.DataFrame, names: Sequence[str]) -> str | None:
    """The first of some columns that a table has, whatever its case."""
    own = {str(column).lower(): str(column) for column in table.columns}
    return next((own[name] for name in names if name in own), None)


def _text(value: object) -> str:
    """A class as text; 3.0, which a column of integers with gaps becomes, is 3."""
    if value is None or value is pd.NA or (isinstance(value, float) and np.isnan(value)):
        return ""
    return str(int(value) if isinstance(value, float) and value.is_integer() else value).strip()


# On the raster


def place(
    shapes: gpd.GeoDataFrame, source: RasterInput, grid: CellGrid, say: Callable[[str], object]
) -> Labelled:
    """The cells under points and polygons inside a raster, each once.

    A polygon stands for some of the pixels whose middle lies in it, drawn alike every time, or for
    the one in its middle where it is smaller than a pixel. Of these, pixels that lie in polygons or
    under points of other classes too are left out.

    Raises:
        ConfigError: none is inside, they are of one class, or two points of one cell are of
            different classes.
    """
    a, b, c, d, e, f = (~source.geobox.affine)[:6]
    on_grid = shapes.to_crs(str(source.geobox.crs)).geometry.to_numpy()
    # Infinite beyond the reach of the reference system.
    known = np.array([np.isfinite(shapely.get_coordinates(each)).all() for each in on_grid])
    there = shapely.transform(
        np.where(known, on_grid, shapely.Point(0, 0)),
        lambda x, y: (a * x + b * y + c, d * x + e * y + f),
        interleaved=False,
    )
    raster = shapely.box(0, 0, grid.shape_px[1], grid.shape_px[0])
    names, labels = np.unique(shapes["class"].to_numpy(str), return_inverse=True)
    where = shapes["where"].to_numpy()
    is_point = shapely.get_type_id(there) == shapely.GeometryType.POINT
    # A point on the last edge lies in no pixel.
    x, y = shapely.get_x(there), shapely.get_y(there)
    in_pixel = (x >= 0) & (y >= 0) & (x < grid.shape_px[1]) & (y < grid.shape_px[0])
    inside = known & np.where(is_point, in_pixel, shapely.intersects(there, raster))
    if not inside.all():
        say(f"warning: {_named(list(where[~inside]))} outside {source.location}: left out")
    if not inside.any():
        raise ConfigError(
            f"none of the {len(shapes)} points and polygons lies inside {source.location}: give "
            "the raster of their ground, or check their reference system"
        )
    polygons = np.flatnonzero(inside & ~is_point)
    most = min(max(MOST_OF_POLYGONS // max(len(polygons), 1), 1), _MOST_OF_ONE)
    parts = [
        np.floor(shapely.get_coordinates(there[number])[:, ::-1])
        if is_point[number]
        else _pixels_of(shapely.intersection(there[number], raster), most, int(number))
        for number in np.flatnonzero(inside)
    ]
    owner = np.repeat(np.flatnonzero(inside), [len(part) for part in parts])
    pixels = np.concatenate(parts)
    cells = (pixels // grid.stride_px).astype(np.int64)
    keep = _first_of_each(cells, labels[owner], is_point[owner], where[owner], say)
    keep &= _of_one_class(pixels, labels, owner, is_point, there, polygons, say)
    middles = shapely.get_coordinates(shapely.centroid(there[owner]))[:, ::-1]
    found = Labelled(
        tuple(map(str, names)), labels[owner].astype(np.int64), middles, cells, tuple(where[owner])
    )
    return found.take(keep)


def _pixels_of(polygon: shapely.Geometry, most: int, seed: int) -> Float[np.ndarray, "pixel 2"]:
    """At most so many pixels (row, col) with their middle in a polygon in pixel coordinates."""
    left, top, right, bottom = np.array(shapely.bounds(polygon))
    step = max(int(np.ceil(((right - left) * (bottom - top) / _MOST_TRIED) ** 0.5)), 1)
    rows, cols = np.mgrid[np.floor(top) : bottom : step, np.floor(left) : right : step]
    shapely.prepare(polygon)
    inside = shapely.contains_xy(polygon, cols + 0.5, rows + 0.5)
    pixels = np.stack([rows[inside], cols[inside]], 1)
    if not len(pixels):
        return np.floor(shapely.get_coordinates(shapely.point_on_surface(polygon))[:, ::-1])
    return np.random.default_rng(seed).permutation(pixels)[:most]


def _first_of_each(
    cells: Int64[np.ndarray, "pixel 2"],
    labels: Int64[np.ndarray, " pixel"],
    is_point: Bool[np.ndarray, " pixel"],
    where: np.ndarray,
    say: Callable[[str], object],
) -> Bool[np.ndarray, " pixel"]:
    """The first label of every cell, points before polygons; two points of a cell cannot be of two
    classes.
    """
    first: dict[tuple[int, int], int] = {}
    keep = np.zeros(len(labels), bool)
    for pixel in np.argsort(~is_point, kind="stable").tolist():
        other = first.setdefault((int(cells[pixel, 0]), int(cells[pixel, 1])), pixel)
        keep[pixel] = other == pixel
        if is_point[pixel] and labels[other] != labels[pixel]:
            raise ConfigError(
                f"{where[other]} and {where[pixel]} lie in the same cell of the map and are of "
                "different classes: move or delete one of them, or map with a smaller --stride"
            )
    if again := int((is_point & ~keep).sum()):
        say(f"warning: {again} points share their cell of the map with another: counted once")
    return keep


def _of_one_class(
    pixels: Float[np.ndarray, "pixel 2"],
    labels: Int64[np.ndarray, " shape"],
    owner: Int64[np.ndarray, " pixel"],
    is_point: Bool[np.ndarray, " shape"],
    there: np.ndarray,
    polygons: Int64[np.ndarray, " polygon"],
    say: Callable[[str], object],
) -> Bool[np.ndarray, " pixel"]:
    """Which labelled pixels are points, or lie in polygons of their own class alone."""
    middles = shapely.points(pixels[:, 1] + 0.5, pixels[:, 0] + 0.5)
    pixel, polygon = shapely.STRtree(there[polygons]).query(middles, predicate="within")
    other = labels[polygons[polygon]] != labels[owner[pixel]]
    disputed = np.zeros(len(pixels), bool)
    disputed[pixel[other]] = True
    disputed &= ~is_point[owner]
    if disputed.any():
        say(
            f"warning: {int(disputed.sum())} pixels drawn of polygons lie in polygons of other "
            "classes, too: left out"
        )
    return ~disputed


def _named(where: Sequence[str]) -> str:
    more = f" and {len(where) - _NAMED} more" if len(where) > _NAMED else ""
    return f"{', '.join(where[:_NAMED])}{more} {'lies' if len(where) == 1 else 'lie'}"


def features_at(
    labelled: Labelled,
    grid: CellGrid,
    kinds: Sequence[PixelFeatures],
    progress: Progress,
) -> dict[str, Float[np.ndarray, "point _"]]:
    """Every kind's numbers of the labelled cells, as a map has them; NaN where there is no valid
    pixel. Only the ground around them is read.
    """
    found = {
        kind.name: np.full((len(labelled.labels), kind.num_features), np.nan, np.float32)
        for kind in kinds
    }
    side = max(_BLOCK_PX // grid.stride_px, 1)
    blocks, block = np.unique(labelled.cells // side, axis=0, return_inverse=True)
    for number in range(len(blocks)):
        progress(number, len(blocks), "pixels of the labels")
        here = np.flatnonzero(block.ravel() == number)
        cells = labelled.cells[here]
        first, last = cells.min(0), cells.max(0) + 1
        box = pixels_under(Tile(slice(first[0], last[0]), slice(first[1], last[1])), grid)
        for kind in kinds:
            values = in_cells(kind.of(box), grid.stride_px)[..., : kind.num_features]
            found[kind.name][here] = values[tuple((cells - first).T)]
    return found


# Where to set the next ones


def next_places(
    entropy: UInt8[np.ndarray, "row col"],
    usable: Bool[np.ndarray, "row col"],
    labelled: Int64[np.ndarray, "point 2"],
    num: int = 20,
) -> Int64[np.ndarray, "place 2"]:
    """Cells to label next: among the most uncertain tenth, each the farthest from all labelled
    ones and from those before it.

    Fewer than ``num`` where fewer cells are usable.
    """
    rows, cols = np.nonzero(usable)
    if not len(rows):
        return np.empty((0, 2), np.int64)
    unsure = entropy[rows, cols]
    most = min(max(len(rows) // 10, num), len(rows))
    chosen = np.sort(np.argsort(-unsure.astype(np.int16), kind="stable")[:most])
    cells = np.stack([rows[chosen], cols[chosen]], 1).astype(np.int64)
    distance = np.full(len(cells), np.inf)
    for point in labelled:
        distance = np.minimum(distance, np.linalg.norm(cells - point, axis=1))
    found: list[int] = []
    while len(found) < num and distance.max() > 0:
        best = int(distance.argmax())
        found.append(best)
        distance = np.minimum(distance, np.linalg.norm(cells - cells[best], axis=1))
    return cells[found]


def cells_lonlat(
    cells: Int64[np.ndarray, "place 2"], grid: CellGrid, source: RasterInput
) -> Float[np.ndarray, "2 place"]:
    """Longitude and latitude of cells' centres."""
    row, col = cells.T + 0.5
    return to_lonlat(grid.geobox(source.geobox), np.stack([col, row]))
