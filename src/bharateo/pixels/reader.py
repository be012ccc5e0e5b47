"""What windows of known pixels are read from: a raster file, or something made of such files.

A file, a file less the pixels that a mask takes away, tiles that lie side by side, and any of them
on another grid are read in one way, a ``Reader``'s, so that what reads pixels need not know which
of them it has. Each is made of the one before: a mask belongs to a tile, and bilinear means are
taken of what the mask has left.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine
from jaxtyping import Bool, Shaped
from odc.geo.geobox import GeoBox

from bharateo.errors import SourceError
from bharateo.files import read_bytes
from bharateo.pixels.raster import (
    Known,
    Method,
    OpenRasters,
    RasterFile,
    Reader,
    begins_at,
    known_on,
    open_raster,
    same_pixels,
)

WITHIN = 1.25
"""Pixels that differ in size by less are one: those of degrees are not square on the ground, and
"10 m" is nominal."""

ENDINGS = (".tif", ".tiff", ".jp2")
"""Of the files in a folder that are its tiles."""

_SNAP_PX = 0.01
"""Tiles whose pixels are off by less than this lie on one grid."""


class _Made:
    """A reader made of another, whose bands are the same."""

    def __init__(self, of: Reader, more: Mapping[str, Any]) -> None:
        """``more`` is what its identity says beside that of the other."""
        self.of, self.location = of, of.location
        self.identity = {**of.identity, **more}
        self.num_bands, self.dtype = of.num_bands, of.dtype
        self.band_names, self.nodata, self.units = of.band_names, of.nodata, of.units


# Masks


@dataclass(frozen=True)
class Mask:
    """Which pixels a layer of quality says are of no use.

    ``layer`` is a band of the raster itself (from 0), or a file of one band on any grid, whose
    nearest pixel counts; what lies outside of that file is masked. ``kept`` says of the layer's
    values which pixels stay, and ``rule`` says the same in words.
    """

    layer: int | RasterFile
    kept: Callable[[Shaped[np.ndarray, "row col"]], Bool[np.ndarray, "row col"]]
    rule: str

    @property
    def identity(self) -> dict[str, Any]:
        """What tells this mask from another."""
        if isinstance(self.layer, int):
            return {"rule": self.rule, "band": self.layer + 1}
        return {"rule": self.rule, "file": self.layer.location, **self.layer.identity}


class Masked(_Made):
    """A raster file less the pixels that a mask takes away."""

    of: RasterFile

    def __init__(self, of: RasterFile, mask: Mask) -> None:
        super().__init__(of, {"mask": mask.identity})
        self._mask = mask

    @property
    def geobox(self) -> GeoBox:
        """That of the file."""
        return self.of.geobox

    def read_known(
        self,
        row: int,
        col: int,
        height: int,
        width: int,
        bands: Sequence[int] | None = None,
        nodata: float | None = None,
    ) -> Known:
        """See ``Reader``."""
        window = row, col, height, width
        values, known = self.of.read_known(*window, bands, nodata)
        layer = self._mask.layer
        # The layer's zeros say that pixels are clear, though its file may call them nodata.
        if isinstance(layer, int):
            quality = self.of.read_window(*window, [layer])[0]
            return values, known & self._mask.kept(quality)
        grid = self.geobox[row : row + height, col : col + width]
        (quality,), (there,) = known_on(layer, grid, [0], float("nan"), "nearest")
        return values, known & there & self._mask.kept(quality)


# Tiles


class Tiles:
    """Raster files of one grid as one raster, missing where none of them holds a pixel.

    Where tiles overlap a pixel is that of the first one that holds all its bands, in the order
    they are named in, so that it is never of two tiles. Zeros in all bands of a tile that does not
    say which pixels it holds may be its black edge: where another tile holds other numbers, reading
    them is refused.

    Raises:
        SourceError: there is no tile, or one differs from the first in grid, bands, type or unit.
    """

    def __init__(
        self, location: str, paths: Sequence[str], mask_of: Callable[[RasterFile], Mask | None]
    ) -> None:
        self.location = location
        self._mask_of, self._files = mask_of, OpenRasters()
        first = self._open(paths[0])
        self.num_bands, self.dtype = first.num_bands, first.dtype
        self.band_names, self.nodata, self.units = first.band_names, first.nodata, first.units
        places, versions, changed = [], [], []
        for path in paths:
            tile = self._open(path)
            _check_same(first, tile)
            places.append((*_corner(first, tile), *tile.geobox.shape))
            versions.append([path, dict(tile.identity)])
            changed.append(tile.identity.get("mtime_ns", -1))
        self._silent = {path for path in paths if not self._file(path).says_what_is_there}
        # Rows and columns of each tile, from the corner that holds them all.
        self._tiles = list(zip(paths, np.array(places), strict=True))
        corners = np.array([[r, c, r + h, c + w] for r, c, h, w in places])
        top, left = corners[:, :2].min(0).tolist()
        bottom, right = corners[:, 2:].max(0).tolist()
        for _, place in self._tiles:
            place[:2] -= [top, left]
        affine = first.geobox.affine @ Affine.translation(left, top)
        self.geobox = GeoBox((bottom - top, right - left), affine, first.geobox.crs)
        text = json.dumps(versions, sort_keys=True, default=str)
        self.identity = {
            "tiles": len(paths),
            "sha256 of their names and versions": hashlib.sha256(text.encode()).hexdigest(),
            "mtime_ns": None if min(changed) < 0 else max(changed),
        }

    def _file(self, path: str) -> RasterFile:
        def open_one() -> RasterFile:
            file = open_raster(path)
            if file is None:
                raise SourceError(
                    f"{path}, a tile of {self.location}, does not exist: put it there, or leave "
                    "it out of the list"
                )
            return file

        return self._files.get(path, open_one)

    def _open(self, path: str) -> Reader:
        file = self._file(path)
        mask = self._mask_of(file)
        return file if mask is None else Masked(file, mask)

    def read_known(
        self,
        row: int,
        col: int,
        height: int,
        width: int,
        bands: Sequence[int] | None = None,
        nodata: float | None = None,
    ) -> Known:
        """See ``Reader``; what is missing is 0."""
        bands = range(self.num_bands) if bands is None else bands
        values = np.zeros((len(bands), height, width), self.dtype)
        filled = np.zeros((height, width), bool)
        edge = np.zeros((height, width), bool)
        for path, (top, left, tile_height, tile_width) in self._tiles:
            rows = slice(max(top - row, 0), min(top + tile_height - row, height))
            cols = slice(max(left - col, 0), min(left + tile_width - col, width))
            if rows.start >= rows.stop or cols.start >= cols.stop:
                continue
            here = rows, cols
            if (filled & ~edge)[here].all():
                continue
            stored, known = self._open(path).read_known(
                int(row + rows.start - top), int(col + cols.start - left),
                int(rows.stop - rows.start), int(cols.stop - cols.start), bands, nodata,
            )  # fmt: skip
            zero = (stored == 0).all(0)
            if (edge[here] & known.all(0) & ~zero).any():
                raise SourceError(
                    f"{self.location} has tiles that overlap, of which one holds 0 in all bands "
                    f"where {path} holds pixels: add --nodata 0 if it is an edge, or --nodata nan "
                    "if it is a value"
                )
            taken = known.all(0) & ~filled[here]
            values[:, *here][:, taken] = stored[:, taken]
            filled[here] |= taken
            if nodata is None and len(bands) > 1 and path in self._silent:
                edge[here] |= taken & zero
        return values, np.repeat(filled[None], len(bands), 0)


def tile_paths(location: Path) -> list[str] | None:
    """The tiles of a folder, by name, or of a list (.txt, a path or URL a line), in its order; None
    of what is neither.

    Raises:
        SourceError: there are none.
    """
    if location.is_dir():
        files = sorted(each for each in location.iterdir() if each.suffix.lower() in ENDINGS)
        found = [str(each) for each in files]
        remedy = f"a folder of tiles holds them side by side, as {', '.join(ENDINGS)}"
    elif location.suffix.lower() == ".txt" and location.is_file():
        try:
            lines = [line.strip() for line in read_bytes(location).decode().splitlines()]
        except (OSError, ValueError) as error:
            raise SourceError(
                f"{location} is no list of tiles ({error}): write the path of one a line"
            ) from error
        folder = location.parent
        found = [line if "://" in line else str(folder / line) for line in lines if line]
        remedy = "a list of tiles has the path of one a line, from its own folder"
    else:
        return None
    if not found:
        raise SourceError(f"{location} holds no raster: {remedy}")
    return found


def _corner(first: Reader, tile: Reader) -> tuple[int, int]:
    """Row and column of a tile's first pixel on the grid of the first one."""
    row, col = (round(number) for number in begins_at(first.geobox, tile.geobox))
    return row, col


def _check_same(first: Reader, tile: Reader) -> None:
    here, there = first.geobox, tile.geobox
    differences = {
        "reference system": (str(here.crs), str(there.crs)),
        "pixel": ([here.affine.a, here.affine.e], [there.affine.a, there.affine.e]),
        "bands": (list(first.band_names), list(tile.band_names)),
        "type": (str(first.dtype), str(tile.dtype)),
        "scale and offset": (first.units, tile.units),
    }
    # -tap lays pixels on multiples of their size: also those of the first tile, if they are not.
    steps = abs(here.affine.a), abs(here.affine.e)
    off_tap = any(
        abs(place / step - round(place / step)) > _SNAP_PX
        for place, step in zip((here.affine.c, here.affine.f), steps, strict=True)
    )
    warp = f"gdalwarp -t_srs {shlex.quote(str(here.crs))} -tr {steps[0]:.10g} {steps[1]:.10g} -tap"
    name = shlex.quote(tile.location)
    warped = (
        f"every tile there: {warp} IN.tif OUT.tif"
        if off_tap
        else f"it there: {warp} {name} NEW.tif"
    )
    if same_pixels(here, there):
        differences.pop("pixel")
    for what, (one, other) in differences.items():
        if one == other:
            continue
        remedy = "give tiles of one kind, or list those to take in a .txt"
        if what in ("reference system", "pixel"):
            remedy = f"bring {warped}"
        raise SourceError(
            f"{tile.location} has {what} {other}, and {first.location}, the first tile, {one}: "
            f"{remedy}"
        )
    off = max(abs(place - round(place)) for place in begins_at(here, there))
    if off > _SNAP_PX:
        raise SourceError(
            f"the pixels of {tile.location} lie {off:.2g} of a pixel aside of those of "
            f"{first.location}, the first tile: bring {warped}"
        )


# Other grids


class Resampled(_Made):
    """A raster on another grid, by nearest neighbour or bilinear, window by window.

    What is missing has no part in a bilinear mean. Pixels made larger are means over all those
    under them, weighted by distance (GDAL widens the bilinear kernel).
    """

    def __init__(self, of: Reader, geobox: GeoBox, method: Method) -> None:
        pixel = [geobox.affine.a, geobox.affine.e]
        super().__init__(of, {"resampled": {"method": method, "pixel": pixel}})
        self.geobox, self._method = geobox, method

    def read_known(
        self,
        row: int,
        col: int,
        height: int,
        width: int,
        bands: Sequence[int] | None = None,
        nodata: float | None = None,
    ) -> Known:
        """See ``Reader``."""
        grid = self.geobox[row : row + height, col : col + width]
        chosen = list(range(self.num_bands) if bands is None else bands)
        return known_on(self.of, grid, chosen, nodata, self._method)


def zoomed(geobox: GeoBox, times: float) -> GeoBox:
    """The same ground with pixels ``times`` smaller, whole ones alone.

    Of a ratio of small numbers, such as 2 for 20 m to 10 m, pixels nest exactly, though a metre of
    a map is none on the ground.
    """
    larger = Fraction(max(times, 1 / times)).limit_denominator(100)
    ratio = larger if times > 1 else 1 / larger
    height, width = (int(size * ratio) for size in geobox.shape)
    affine = geobox.affine @ Affine.scale(float(1 / ratio))
    return GeoBox((height, width), affine, geobox.crs)
