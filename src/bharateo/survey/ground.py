"""A map of classes as ground to sample: its classes, its zones and its cells, window by window.

Axes: row col count the map's cells.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import rasterio.features
import shapely
import shapely.affinity
from affine import Affine
from jaxtyping import Bool, Float, Int32, Int64, UInt8
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox

from bharateo.errors import CorruptRasterError, RegionError
from bharateo.files import read_bytes
from bharateo.geography import cell_areas
from bharateo.inference.class_raster import WINDOW_CELLS, open_classes, read_classes
from bharateo.inference.map import products
from bharateo.landcover import WORLDCOVER
from bharateo.pixels.product import provenance_of
from bharateo.pixels.raster import RasterFile, open_raster
from bharateo.progress import Progress
from bharateo.sources.areas import file_zones

NUM_CODES = 256
"""A class of a map is a whole number below this."""

ALL = "all"
"""The zone that is all of the ground."""

_STEP_DEGREES = 0.01
"""Longest straight piece of a zone's outline, so that it bends with the grid."""


@dataclass(frozen=True)
class Window:
    """A piece of a map: its class codes, where it has any, and the area of its cells in m2."""

    row: int
    col: int
    codes: UInt8[np.ndarray, "row col"]
    known: Bool[np.ndarray, "row col"]
    m2: Float[np.ndarray, "row col"]


class ClassMap:
    """An open map of classes, of ours or of anybody.

    ``classes`` are the names that the map has for its codes; codes without one are named by their
    number. ``provenance`` is what ``bharateo map`` wrote into it, empty for maps of others.
    """

    def __init__(self, path: Path) -> None:
        file = open_classes(path)
        self.path, self.file, self.geobox = path, file, file.geobox
        self.shape = file.shape
        self.provenance: Mapping[str, Any] = provenance_of(path)
        self.classes: dict[int, str] = {}
        if self.provenance.get("product") == "map":
            self.classes = {each["id"]: each["name"] for each in self.provenance["classes"]}
        elif path.name.startswith("ESA_WorldCover"):  # the product's own way to name its files
            self.classes = {code: name for code, (name, _) in WORLDCOVER.native.items()}

    def name(self, code: int) -> str:
        """What a class is called."""
        return self.classes.get(code, str(code))

    def codes_at(
        self, rows: Int64[np.ndarray, " point"], cols: Int64[np.ndarray, " point"]
    ) -> Int64[np.ndarray, " point"]:
        """The class codes of some cells; -1 where there is none."""
        found = np.full(len(rows), -1)
        blocks = np.array(self.file.block_shape)
        cells = np.stack([rows, cols], 1)
        for block in np.unique(cells // blocks, axis=0):  # each is read once
            row, col = block * blocks
            height, width = np.minimum(blocks, np.array(self.shape) - (row, col))
            here = (cells // blocks == block).all(1)
            values, known = self.file.read_known(int(row), int(col), int(height), int(width))
            at = tuple((cells[here] - (row, col)).T)
            found[here] = np.where(known[0][at], values[0][at], -1)
        return found

    def windows(self, progress: Progress, note: str) -> Iterator[Window]:
        """The whole map, piece by piece.

        Raises:
            SourceError: a value is no class, or the file cannot be read.
        """
        rows, cols = self.shape
        corners = list(product(range(0, rows, WINDOW_CELLS), range(0, cols, WINDOW_CELLS)))
        for done, (row, col) in enumerate(corners):
            progress(done, len(corners), note)
            height, width = min(WINDOW_CELLS, rows - row), min(WINDOW_CELLS, cols - col)
            codes, known = read_classes(self.path, self.file, row, col, height, width)
            m2 = cell_areas(self.geobox[row : row + height, col : col + width])
            yield Window(row, col, codes, known, m2)
        progress(len(corners), len(corners), note)


class Fingerprint:
    """What tells a map's cells apart from those of other maps: ``cells`` with their classes,
    ``known`` only where there are any. SHA-256, of the windows in order.
    """

    def __init__(self) -> None:
        self._cells, self._known = hashlib.sha256(), hashlib.sha256()

    def add(self, window: Window) -> None:
        """Take in the next window."""
        known = np.packbits(window.known).tobytes()
        self._known.update(known)
        self._cells.update(known + window.codes.tobytes())

    @property
    def cells(self) -> str:
        """That of the classes."""
        return self._cells.hexdigest()

    @property
    def known(self) -> str:
        """That of where there are any."""
        return self._known.hexdigest()


class Probabilities:
    """The probabilities of a map's classes that ``bharateo map`` wrote beside it, 0 to 1."""

    def __init__(self, file: RasterFile) -> None:
        self._file = file
        self.classes = tuple(name or "" for name in file.band_names)

    @classmethod
    def beside(cls, of: ClassMap) -> Probabilities | None:
        """Those of a map; None where there are none, or those of another version of it."""
        path = products(of.path)["probabilities"]
        if not of.provenance or not path.exists():
            return None
        if provenance_of(path).get("fingerprint") != of.provenance.get("fingerprint"):
            return None
        file = open_raster(str(path))
        return None if file is None or file.shape != of.shape else cls(file)

    def read(self, row: int, col: int, height: int, width: int) -> np.ndarray:
        """Of a window (cls row col); 0 where the map has no data."""
        stored, known = self._file.read_known(row, col, height, width)
        probabilities: np.ndarray = np.where(known, stored, 0) / 100
        return probabilities


# Zones


@dataclass(frozen=True)
class Zoning:
    """Polygons on a map's grid. ``names`` is of one zone, the whole, where there is no file."""

    names: tuple[str, ...]
    outlines: tuple[shapely.Geometry, ...] = ()
    file: str | None = None
    field: str | None = None
    sha256: str | None = None

    @classmethod
    def of(cls, grid: GeoBox, file: Path | None, field: str | None) -> Zoning:
        """The zones of a file that reach into a grid, as outlines in its cells.

        Raises:
            RegionError: the file holds no polygons, none of them reaches into the grid, or two of
                them overlap.
        """
        if file is None:
            return cls((ALL,))
        assert grid.crs is not None
        to_grid = CRS("EPSG:4326").transformer_to_crs(grid.crs)
        a, b, c, d, e, f = (~grid.affine)[:6]
        whole, names, outlines = shapely.box(0, 0, grid.shape[1], grid.shape[0]), [], []
        for zone in file_zones(file, field, "--zones", "--zone-field"):
            if zone.name == ALL:
                raise RegionError(
                    f"--zones {file}: a zone is named {ALL!r}, as the whole is: rename it"
                )
            bent = shapely.segmentize(zone.outline, _STEP_DEGREES)
            on_map = shapely.transform(bent, to_grid, interleaved=False)
            outline = shapely.affinity.affine_transform(on_map, [a, b, d, e, c, f])
            if np.isfinite(outline.bounds).all() and outline.intersects(whole):
                names.append(zone.name)
                outlines.append(outline)
        if not names:
            raise RegionError(f"--zones {file}: no zone reaches into the map: give its districts")
        for first, second in shapely.STRtree(outlines).query(outlines, "intersects").T:
            if first < second:
                both = outlines[first].intersection(outlines[second]).area
                if both > max(1.0, 1e-3 * min(outlines[first].area, outlines[second].area)):
                    raise RegionError(
                        f"--zones {file}: {names[first]} and {names[second]} share ground, which "
                        "would be counted twice: give zones that do not overlap"
                    )
        sha256 = hashlib.sha256(read_bytes(file)).hexdigest()
        return cls(tuple(names), tuple(outlines), str(file), field, sha256)

    def numbers(self, row: int, col: int, height: int, width: int) -> Int32[np.ndarray, "row col"]:
        """The number of the zone in which each cell of a window has its centre, -1 of none."""
        if not self.outlines:
            return np.zeros((height, width), np.int32)
        window = shapely.box(col, row, col + width, row + height)
        here = [
            (each, number) for number, each in enumerate(self.outlines) if each.intersects(window)
        ]
        if not here:
            return np.full((height, width), -1, np.int32)
        numbers: np.ndarray = rasterio.features.rasterize(
            here[::-1],  # of cells on a border the first zone's
            (height, width),
            fill=-1,
            transform=Affine.translation(col, row),
            dtype=np.int32,
        )
        return numbers


@dataclass(frozen=True)
class Strata:
    """Cells and m2 by zone and class code, of a map whose cells are ``fingerprint``."""

    cells: Int64[np.ndarray, "zone code"]
    m2: Float[np.ndarray, "zone code"]
    cells_sha256: str
    known_sha256: str

    @classmethod
    def of(cls, ground: ClassMap, zoning: Zoning, progress: Progress) -> Strata:
        """Counted in one sweep.

        Raises:
            SourceError: the map cannot be read, or has no cell with a class in any zone.
        """
        num = len(zoning.names)
        cells, m2 = np.zeros(num * NUM_CODES, np.int64), np.zeros(num * NUM_CODES)
        fingerprint = Fingerprint()
        for window in ground.windows(progress, "cells of the strata"):
            fingerprint.add(window)
            key, inside = keys(window, zoning)
            cells += np.bincount(key[inside], minlength=cells.size)
            m2 += np.bincount(key[inside], window.m2[inside], cells.size)
        if not cells.any():
            where = f"in the zones of {zoning.file}" if zoning.file else "anywhere"
            raise CorruptRasterError(f"{ground.path} has no class {where}: give a map with data")
        shape = (num, NUM_CODES)
        return cls(cells.reshape(shape), m2.reshape(shape), fingerprint.cells, fingerprint.known)


def keys(
    window: Window, zoning: Zoning
) -> tuple[Int64[np.ndarray, "row col"], Bool[np.ndarray, "row col"]]:
    """The stratum of every cell, 256 x zone + code, and which cells have one."""
    zone = zoning.numbers(window.row, window.col, *window.codes.shape)
    return zone.astype(np.int64) * NUM_CODES + window.codes, window.known & (zone >= 0)
