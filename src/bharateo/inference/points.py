"""A person's own labelled points: read, placed on a raster, and given the vectors found there."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from bharateo.artefacts import shortened
from bharateo.errors import ConfigError, SourceError
from bharateo.files import read_bytes
from bharateo.geography import to_lonlat
from bharateo.inference.encoder import PerToken
from bharateo.inference.inputs import RasterInput
from bharateo.inference.tiles import CellGrid, Progress, Tile, blended
from bharateo.pixels.vectors import MOST_BYTES, read_features

CLASS_FIELDS = ("class", "label", "landcover", "land_cover", "class_name", "name", "type")
"""What a field with classes is called, in the order they are looked for, whatever their case."""

_LON, _LAT = ("lon", "longitude", "lng", "x"), ("lat", "latitude", "y")
_NAMED = 5
"""Points named in a message, of many."""


@dataclass(frozen=True)
class Labelled:
    """Points on a raster: their class (a number of ``classes``), pixel (row, col) and cell."""

    classes: tuple[str, ...]
    labels: Int64[np.ndarray, " point"]
    pixels: Float[np.ndarray, "point 2"]
    cells: Int64[np.ndarray, "point 2"]

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
        return Labelled(classes, numbers, self.pixels[keep], self.cells[keep])


# Reading


def read_points(path: Path, class_field: str | None = None) -> gpd.GeoDataFrame:
    """The points of a file with their ``class`` (text) and ``where`` (file and number, from 1).

    GeoPackage, GeoJSON, Shapefile or FlatGeobuf (``vectors.read_features``), in any reference
    system; or a table (.csv) with columns lon and lat in degrees. Points without a class are left
    out.

    Raises:
        SourceError: the file does not exist, or cannot be read.
        ConfigError: it holds no points, or has no such field.
    """
    table = _read(path)
    field = _class_field(table, path, class_field)
    wrong = ~table.geometry.geom_type.isin(["Point"])
    if wrong.any() or table.empty:
        kinds = ", ".join(sorted({str(kind) for kind in table.geometry.geom_type[wrong]})) or "none"
        raise ConfigError(f"{path} must hold points, and holds {kinds}: give a layer of points")
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
    points: gpd.GeoDataFrame, source: RasterInput, grid: CellGrid, say: Callable[[str], object]
) -> Labelled:
    """The points inside a raster, one a cell and class.

    Raises:
        ConfigError: none is inside, they are of one class, or a cell is of several.
    """
    there = points.to_crs(str(source.geobox.crs)).geometry
    a, b, c, d, e, f = (~source.geobox.affine)[:6]
    x, y = np.stack([there.x, there.y])
    placed = np.isfinite(x) & np.isfinite(y)  # not beyond the reach of the reference system
    x, y = np.where(placed, (x, y), 0.0)
    pixels = np.stack([d * x + e * y + f, a * x + b * y + c], 1)
    inside = placed & np.all((pixels >= 0) & (pixels < np.array(grid.shape_px)), 1)
    where = points["where"].to_numpy()
    if not inside.all():
        say(f"warning: {_named(list(where[~inside]))} outside {source.location}: left out")
    if not inside.any():
        raise ConfigError(
            f"none of the {len(points)} points lies inside {source.location}: give the raster of "
            "their ground, or check their reference system"
        )
    begin = (grid.patch_px - grid.stride_px) / 2
    cells = np.floor((pixels - begin) / grid.stride_px).astype(np.int64)
    cells = cells.clip(0, np.array(grid.shape) - 1)
    classes, labels = np.unique(points["class"].to_numpy(str), return_inverse=True)
    names = tuple(str(name) for name in classes)
    keep = inside & _first_of_each(cells, labels, inside, where, say)
    return Labelled(names, labels.astype(np.int64), pixels, cells).take(keep)


def _first_of_each(
    cells: Int64[np.ndarray, "point 2"],
    labels: Int64[np.ndarray, " point"],
    inside: Bool[np.ndarray, " point"],
    where: np.ndarray,
    say: Callable[[str], object],
) -> Bool[np.ndarray, " point"]:
    """The first point of every cell; a cell cannot be of two classes."""
    first: dict[tuple[int, int], int] = {}
    keep = np.zeros(len(labels), bool)
    for point in np.flatnonzero(inside):
        other = first.setdefault((int(cells[point, 0]), int(cells[point, 1])), int(point))
        keep[point] = other == point
        if labels[other] != labels[point]:
            raise ConfigError(
                f"{where[other]} and {where[point]} lie in the same cell of the map and are of "
                "different classes: move or delete one of them, or map with a smaller --stride"
            )
    if again := int(inside.sum() - keep.sum()):
        say(f"warning: {again} points share their cell of the map with another: counted once")
    return keep


def _named(where: Sequence[str]) -> str:
    more = f" and {len(where) - _NAMED} more" if len(where) > _NAMED else ""
    points = "point" if len(where) == 1 else "points"
    return f"{points} {', '.join(where[:_NAMED])}{more} {'lies' if len(where) == 1 else 'lie'}"


def vectors_at(
    points: Labelled,
    source: RasterInput,
    grid: CellGrid,
    extractors: Mapping[str, PerToken],
    progress: Progress,
) -> tuple[dict[str, Float[np.ndarray, "point _"]], Bool[np.ndarray, " point"]]:
    """Every extractor's numbers for the cells of the points, and which have a valid pixel.

    Only the windows around the points are read; they are blended as those of a map.
    """
    widths: list[int] = []

    def predict(image: Tensor, valid: Tensor) -> Tensor:
        values = [extract(image, valid).float() for extract in extractors.values()]
        widths[:] = [each.shape[2] for each in values]
        return torch.cat(values, 2)

    found, valid = [], []
    for number, (row, col) in enumerate(points.cells.tolist()):
        progress(number, len(points.cells), "vectors of the points")
        tokens = grid.token_grids[row % grid.shifts * grid.shifts + col % grid.shifts][2]
        token = (row // grid.shifts, col // grid.shifts)
        tile = Tile(*(slice(index, index + 1) for index in token))
        values, some = blended(source.read, predict, tokens, tile)
        found.append(values[0, 0])
        valid.append(bool(some[0, 0]))
    parts = np.split(np.stack(found), np.cumsum(widths)[:-1], 1)
    return dict(zip(extractors, parts, strict=True)), np.array(valid)


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


def centres_inside(grid: CellGrid) -> Bool[np.ndarray, "row col"]:
    """Which cells have their centre in the raster, where a point can be set."""
    rows, cols = (
        (np.arange(cells) * grid.stride_px + grid.patch_px / 2) < size_px
        for cells, size_px in zip(grid.shape, grid.shape_px, strict=True)
    )
    inside: np.ndarray = rows[:, None] & cols
    return inside


def cells_lonlat(
    cells: Int64[np.ndarray, "place 2"], grid: CellGrid, source: RasterInput
) -> Float[np.ndarray, "2 place"]:
    """Longitude and latitude of cells' centres."""
    row, col = cells.T + 0.5
    return to_lonlat(grid.geobox(source.geobox), np.stack([col, row]))
