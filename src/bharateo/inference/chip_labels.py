"""Labels for the pixels of a dataset: its own, a raster of classes, or polygons and points.

Whatever they are, they are brought to every square's own grid: rasters by nearest neighbour,
polygons to the pixels whose middle they hold. A pixel in polygons (or under points) of two classes
has no label; points count before polygons.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import rasterio.features
import shapely
from geopandas import GeoDataFrame
from jaxtyping import Bool, Int64, UInt8
from odc.geo.geobox import GeoBox

from bharateo.artefacts import shortened
from bharateo.chips.store import SPLITS, Dataset
from bharateo.errors import ConfigError, SourceError
from bharateo.inference.class_raster import ClassRaster, read_classes
from bharateo.inference.legend import own_classes
from bharateo.inference.points import read_points
from bharateo.landcover import BHARATEO_CLASSES, IGNORE, LandCoverClass
from bharateo.pixels.raster import pixels_under, to_grid
from bharateo.progress import Progress
from bharateo.training.dense import PixelLabels

OWN_LABELS = "worldcover"
"""Those that the dataset holds."""

VECTORS = (".gpkg", ".geojson", ".json", ".shp", ".fgb", ".csv")

Ids = Callable[[int], UInt8[np.ndarray, "row col"]]
"""A square's ids of classes, 255 where there is no label."""


@dataclass(frozen=True)
class ChipLabels:
    """Labels of a dataset's pixels, and what the numbers in them mean: number k is ``classes[k]``,
    whose id is the label source's own.
    """

    pixels: PixelLabels
    classes: tuple[LandCoverClass, ...]
    name: str
    attribution: tuple[str, ...]


def identity_of(where: str) -> dict[str, Any]:
    """What tells a version of a source of labels from another.

    Raises:
        SourceError: it is neither ``worldcover`` nor a file.
    """
    if where == OWN_LABELS:
        return {"labels": where}
    path = Path(where)
    if not path.is_file():
        raise SourceError(
            f"--labels {where} does not exist: give a raster of classes, polygons or points, or "
            f"`{OWN_LABELS}` for the labels that the dataset holds"
        )
    status = path.stat()
    return {"labels": str(path.resolve()), "size": status.st_size, "mtime_ns": status.st_mtime_ns}


def chip_labels(
    dataset: Dataset,
    where: str,
    chosen: Sequence[str],
    class_field: str | None,
    kept_in: Path,
    progress: Progress,
) -> ChipLabels:
    """The labels of all pixels of a dataset, of the ``chosen`` classes: names, or CODE=NAME of a
    raster's codes; all that there are where none is named.

    What is brought to other grids is kept in the file ``kept_in``, and not in memory.

    Raises:
        ConfigError: none lies on the dataset's ground, or there is no such class.
        SourceError: the labels cannot be read.
    """
    path, attribution = Path(where), dataset.attribution
    ids_of: Ids
    classes_of: Callable[[Sequence[int]], Sequence[LandCoverClass]]
    if where == OWN_LABELS:
        name, ids_of = str(dataset.info["source"]["landcover"]), dataset.landcover
        classes_of = partial(_among, BHARATEO_CLASSES)
    elif path.suffix.lower() in VECTORS:
        shapes, name = read_points(path, class_field), path.name
        own = own_classes(sorted({*shapes["class"]}))
        ids_of, classes_of = _of_shapes(dataset, shapes, own), partial(_among, own)
    else:
        raster, name = ClassRaster.open(path), path.name
        attribution = (*attribution, *raster.attribution)
        ids_of, classes_of = _of_raster(dataset, raster), raster.classes
    kept = np.full(dataset.num_chips, -1, np.int64)
    counts = np.zeros((dataset.num_chips, 256), np.int32)
    chips = np.sort(np.concatenate([dataset.indices(split) for split in SPLITS]))
    kept_in.parent.mkdir(parents=True, exist_ok=True)
    with kept_in.open("wb") as file:
        for done, chip in enumerate(chips.tolist()):
            progress(done, len(chips), "labels on the ground of the dataset")
            ids = np.where(dataset.valid(chip), ids_of(chip), np.uint8(IGNORE))
            counts[chip] = np.bincount(ids.ravel(), minlength=256)
            if where != OWN_LABELS and counts[chip, :IGNORE].any():
                kept[chip] = file.tell() // ids.size
                file.write(ids.tobytes())
    counts[:, IGNORE] = 0
    if not counts.any():
        raise ConfigError(
            f"none of the labels of {where} lies on the ground of {dataset.path}: give labels of "
            "that ground (its chips.parquet opens in QGIS), or check their reference system"
        )
    found = np.flatnonzero(counts.any(0)).tolist()
    classes = _chosen(chosen, classes_of(found), where)
    table = np.full(256, IGNORE, np.uint8)
    table[[each.id for each in classes]] = np.arange(len(classes))
    if where != OWN_LABELS:
        squares = np.memmap(
            kept_in, np.uint8, "r", shape=(int(kept.max()) + 1, dataset.size_px, dataset.size_px)
        )

    def of(chip: int) -> UInt8[np.ndarray, "row col"]:
        if where == OWN_LABELS:
            return np.where(dataset.valid(chip), table[dataset.landcover(chip)], np.uint8(IGNORE))
        if kept[chip] < 0:
            return np.full((dataset.size_px,) * 2, IGNORE, np.uint8)
        return table[squares[kept[chip]]]

    of_class = counts[:, [each.id for each in classes]].astype(np.int64)
    return ChipLabels(PixelLabels(of, of_class), classes, name, tuple(dict.fromkeys(attribution)))


def _among(classes: Sequence[LandCoverClass], ids: Sequence[int]) -> tuple[LandCoverClass, ...]:
    """Some of the classes, by their ids."""
    return tuple(each for each in classes if each.id in ids)


def _chosen(
    chosen: Sequence[str], there: Sequence[LandCoverClass], where: str
) -> tuple[LandCoverClass, ...]:
    """The classes that are asked for, in the order of their ids; all that are there, if none is."""
    by_name = {each.name: each for each in there}
    by_code = {str(each.id): each for each in there}
    found: dict[int, LandCoverClass] = {}
    for word in chosen:
        code, equals, name = word.partition("=")
        each = by_code.get(code) if equals else by_name.get(word)
        if each is None or (equals and not name):
            held = ", ".join(f"{each.id}={each.name}" for each in there)
            raise ConfigError(
                f"--classes {shortened(word)}: no label of {where} on this ground is of that "
                f"class; there are {held}: name some of these, or rename them as CODE=NAME"
            )
        found[each.id] = replace(each, name=name) if equals else each
    if not chosen:
        found = {each.id: each for each in there}
    if len({each.name for each in found.values()}) < len(found):
        raise ConfigError("--classes gives two codes the same name: give each its own")
    return tuple(found[number] for number in sorted(found))


def _square(dataset: Dataset, chip: int) -> GeoBox:
    """The grid of a square."""
    row, col = (int(dataset.column(name)[chip]) for name in ("row", "col"))
    size = dataset.size_px
    whole = dataset.geobox(dataset.column("region")[chip])
    return whole[row : row + size, col : col + size]


def _of_raster(dataset: Dataset, raster: ClassRaster) -> Ids:
    def ids(chip: int) -> UInt8[np.ndarray, "row col"]:
        here = _square(dataset, chip)
        rows, cols = pixels_under(raster.file.geobox, here)
        height, width = rows.stop - rows.start, cols.stop - cols.start
        if min(height, width) <= 0:
            return np.full(here.shape, IGNORE, np.uint8)
        window = rows.start, cols.start, height, width
        values, known = read_classes(raster.path, raster.file, *window)
        values = np.where(known, values, np.uint8(IGNORE))[None]
        return to_grid(values, raster.file.geobox[rows, cols], here, "nearest", IGNORE)[0]

    return ids


def _of_shapes(dataset: Dataset, shapes: GeoDataFrame, classes: Sequence[LandCoverClass]) -> Ids:
    """Polygons and points burnt into squares; they are brought to each reference system once."""
    ids = {each.name: each.id for each in classes}
    on_grid: dict[str, tuple[shapely.STRtree, Int64[np.ndarray, " shape"]]] = {}

    def burn(some: np.ndarray, numbers: np.ndarray, here: GeoBox) -> tuple[np.ndarray, np.ndarray]:
        """Ids, and how many classes lie at every pixel."""
        found, times = np.full(here.shape, IGNORE, np.uint8), np.zeros(here.shape, np.uint8)
        for number in np.unique(numbers):
            of_class = [shape for shape, own in zip(some, numbers, strict=True) if own == number]
            inside: Bool[np.ndarray, "row col"] = rasterio.features.rasterize(
                of_class, here.shape, transform=here.affine, dtype="uint8"
            ).astype(bool)
            found[inside] = number
            times += inside
        found[times > 1] = IGNORE
        return found, times

    def of(chip: int) -> UInt8[np.ndarray, "row col"]:
        here = _square(dataset, chip)
        crs = str(here.crs)
        if crs not in on_grid:
            there = shapes.to_crs(crs)
            numbers = np.array([ids[name] for name in there["class"]], np.int64)
            on_grid[crs] = shapely.STRtree(there.geometry.to_numpy()), numbers
        tree, numbers = on_grid[crs]
        near = np.sort(tree.query(here.extent.geom, predicate="intersects"))
        is_point = shapely.get_type_id(tree.geometries[near]) == shapely.GeometryType.POINT
        found = np.full(here.shape, IGNORE, np.uint8)
        for some in (near[~is_point], near[is_point]):
            burnt, times = burn(tree.geometries[some], numbers[some], here)
            found[times > 0] = burnt[times > 0]
        return found

    return of
