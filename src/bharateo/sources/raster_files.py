"""Rasters on disk: their bands on a grid, and how one grid lies in another."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Shaped
from odc.geo.geobox import GeoBox

from bharateo.errors import CorruptRasterError
from bharateo.pixels.raster import RasterFile, open_raster
from bharateo.pixels.resample import pixels_under, to_grid

_SAME_SIZE = 1e-6
"""Pixel sizes that differ by less, relative to their size, are one."""

SAME_PLACE_PX = 1e-3
_OPEN_FILES = 26
_NOTHING = np.iinfo(np.int32).min
"""Stands for what is not there while pixels are resampled."""


# Reading


@dataclass(frozen=True)
class Part:
    """Bands of one file: their indices in it, from 0, and among all bands asked for."""

    file: str
    indices: tuple[int, ...]
    places: tuple[int, ...]


class Files:
    """The rasters below a folder, all of one type; those used last stay open.

    ``nodata`` is the stored value of pixels without data; ``declared``: what each file says, and 0
    in those that say nothing; None: what each file says, or none. Masks and alpha always hold.
    Open files stay behind when it travels to another process. Thread-safe, one read at a time.
    """

    def __init__(
        self, folder: Path, dtype: str, nodata: float | Literal["declared"] | None
    ) -> None:
        self.folder, self.dtype, self.nodata = folder, dtype, nodata
        self._open: OrderedDict[str, RasterFile] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return Files, (self.folder, self.dtype, self.nodata)

    def read_whole(
        self, part: Part
    ) -> tuple[Shaped[np.ndarray, "band row col"], Bool[np.ndarray, "row col"], GeoBox]:
        """The stored values of a whole file, where all its bands hold one, and its own grid.

        Raises:
            CorruptRasterError: the file is gone, damaged, of another type or negative.
        """
        with self._opened(part.file) as file:
            values, valid = self._read(file, part, file.geobox)
            return values, valid, file.geobox

    def read_on(
        self, part: Part, geobox: GeoBox
    ) -> tuple[Shaped[np.ndarray, "band row col"], Bool[np.ndarray, "row col"]]:
        """The stored values on a grid, and where all bands hold one.

        Pixels of the file's own grid come as they are, others by bilinear.

        Raises:
            CorruptRasterError: see ``read_whole``.
        """
        with self._opened(part.file) as file:
            return self._read(file, part, geobox)

    def _read(
        self, file: RasterFile, part: Part, geobox: GeoBox
    ) -> tuple[Shaped[np.ndarray, "band row col"], Bool[np.ndarray, "row col"]]:
        nodata = self.nodata
        if nodata == "declared":
            nodata = None if file.says_what_is_there else 0
        stored, there = _on_grid(file, geobox, part.indices, nodata)
        return _unsigned(stored, np.all(there, axis=0), file)

    @contextmanager
    def _opened(self, name: str) -> Iterator[RasterFile]:
        with self._lock:
            file = self._open.pop(name, None) or existing(self.folder / name)
            if file.dtype != self.dtype:
                raise CorruptRasterError(
                    f"{file.location} holds {file.dtype} where {self.dtype} was planned for: it "
                    "changed meanwhile; build again into another folder"
                )
            yield file
            self._open[name] = file  # not reached after an error, which closes it
            while len(self._open) > _OPEN_FILES:
                self._open.popitem(last=False)[1].close()


def existing(path: Path) -> RasterFile:
    """The raster at a path that was there before.

    Raises:
        CorruptRasterError: it is gone, or no raster.
    """
    file = open_raster(str(path), vrt=True)
    if file is None:
        raise CorruptRasterError(
            f"{path} does not exist any more: put it back, or build again into another folder"
        )
    return file


def _on_grid(
    file: RasterFile, geobox: GeoBox, bands: Sequence[int], nodata: float | None
) -> tuple[Shaped[np.ndarray, "band row col"], Bool[np.ndarray, "band row col"]]:
    """Bands of a file on a grid, and where each holds a value; ``nodata``: see ``read_known``."""
    corner, (height, width) = corner_in(file.geobox, geobox), geobox.shape
    if corner is not None:
        return file.read_known(*corner, height, width, bands, nodata)
    rows, cols = pixels_under(file.geobox, geobox)
    height, width = rows.stop - rows.start, cols.stop - cols.start
    if min(height, width) <= 0:
        shape = (len(bands), *geobox.shape)
        return np.zeros(shape, file.dtype), np.zeros(shape, bool)
    stored, there = file.read_known(rows.start, cols.start, height, width, bands, nodata)
    said = {file.nodata[band] for band in bands} if nodata is None else {nodata}
    nothing = as_integer(said.pop(), file.dtype) if len(said) == 1 else None
    if nothing is None:  # no value of the type is free to say so
        stored, nothing = stored.astype(np.int32), _NOTHING
    stored[~there] = nothing
    on_grid = to_grid(stored, file.geobox[rows, cols], geobox, "bilinear", nothing)
    there = on_grid != nothing
    return np.where(there, on_grid, 0).astype(file.dtype), there


def _unsigned(
    stored: Shaped[np.ndarray, "band row col"], valid: Bool[np.ndarray, "row col"], file: RasterFile
) -> tuple[Shaped[np.ndarray, "band row col"], Bool[np.ndarray, "row col"]]:
    """Signed values as unsigned ones, 0 where there is nothing."""
    if stored.dtype != np.int16:
        return stored, valid
    lowest = stored.min(where=valid, initial=0)
    if lowest < 0:
        raise CorruptRasterError(
            f"{file.location} holds values down to {lowest}, chips hold 0 to 65535: if that stands "
            "for no data, give it in data.geotiff.nodata (the file's own is "
            f"{file.nodata[0]}); else shift the values with gdal_translate -ot UInt16 -scale and "
            "set data.geotiff.offset"
        )
    return np.where(valid, stored, 0).astype(np.uint16), valid


def as_integer(nodata: float | None, dtype: np.dtype) -> int | None:
    """Nodata as a value of the type, None where the type cannot hold it."""
    if nodata is None or not float(nodata).is_integer():
        return None
    limits = np.iinfo(dtype)
    return int(nodata) if limits.min <= nodata <= limits.max else None


# Grids


def same_pixels(there: GeoBox, here: GeoBox) -> bool:
    """Whether two grids have one reference system and pixel size, wherever they begin."""
    return there.crs == here.crs and all(
        math.isclose(a, b, rel_tol=_SAME_SIZE)
        for a, b in ((there.affine.a, here.affine.a), (there.affine.e, here.affine.e))
    )


def begins_at(there: GeoBox, here: GeoBox) -> tuple[float, float]:
    """The row and column of one grid where another begins."""
    col, row = ~there.affine @ (here.affine.c, here.affine.f)
    return row, col


def corner_in(there: GeoBox, here: GeoBox) -> tuple[int, int] | None:
    """The first row and column of a grid's window; None if ``here`` is no window of it."""
    if not same_pixels(there, here):
        return None
    place = begins_at(there, here)
    row, col = (round(number) for number in place)
    inside = (
        min(row, col) >= 0
        and row + here.shape[0] <= there.shape[0]
        and col + here.shape[1] <= there.shape[1]
    )
    exact = max(abs(place[0] - row), abs(place[1] - col)) < SAME_PLACE_PX
    return (row, col) if inside and exact else None


def nearest_square(there: GeoBox, here: GeoBox) -> tuple[int, int]:
    """The row and column of a grid nearest to where another begins."""
    row, col = begins_at(there, here)
    return math.floor(row + 0.5), math.floor(col + 0.5)
