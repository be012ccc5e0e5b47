"""Pictures of points to label: the ground near each one and around it, with a cross."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from odc.geo.crs import CRS
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo

from bharateo.errors import SourceError
from bharateo.files import write_bytes
from bharateo.inference.inputs import opened
from bharateo.outputs import beginning_with, check_outputs
from bharateo.pixels.picture import bands_shown, hatch, stretched
from bharateo.pixels.raster import Reader
from bharateo.progress import Progress
from bharateo.reading import Reading

PICTURE_MARK = "bharateo sample"
"""The software that a picture says it is of."""

SIDES = (32, 128)
"""Pixels of the raster that the two halves of a picture show: near, and around."""

_SHOWN_PX, _GAP_PX, _ARM_PX, _FREE_PX = 384, 8, 26, 7
_CROSS, _HALO = (255, 235, 59), (0, 0, 0)


def picture_files(points: Path, num: int) -> list[Path]:
    """Where the pictures of points 1 to ``num`` lie."""
    folder = points.with_name(f"{points.stem}-pictures")
    digits = max(4, len(str(num)))
    return [folder / f"{number:0{digits}}.png" for number in range(1, num + 1)]


def write_pictures(
    location: str,
    lonlat: Float[np.ndarray, "2 point"],
    files: Sequence[Path],
    progress: Progress,
) -> None:
    """Write a PNG a point, in true colour where a raster names its bands so, else its first three.

    Each half is stretched from its own second to its 98th percentile; ground without pixels is
    hatched. Pictures that are there are made again.

    Raises:
        ConfigError: one of the files is somebody else's.
        SourceError: the raster cannot be read, or no point lies on it.
    """
    check_outputs("sample", dict.fromkeys(files, beginning_with(PICTURE_MARK)), [location])
    file, _ = opened(location, Reading(mask="none"))
    names = [name or f"band {number}" for number, name in enumerate(file.band_names)]
    bands = bands_shown(names)
    x, y = _on_grid(file, lonlat)
    height, width = file.geobox.shape
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    if not inside.any():
        raise SourceError(f"--image {location} shows none of the points: give one of their ground")
    for number, (col, row, path) in enumerate(zip(x, y, files, strict=True)):
        progress(number, len(files), "pictures")
        picture = Image.new("RGB", (2 * _SHOWN_PX + _GAP_PX, _SHOWN_PX), (255, 255, 255))
        for place, side in enumerate(SIDES):
            rgb = _look(file, bands, int(np.floor(row)), int(np.floor(col)), side)
            half = Image.fromarray(rgb).resize((_SHOWN_PX, _SHOWN_PX), Image.Resampling.NEAREST)
            # The point is the middle of its pixel, which an even side has beside its own middle.
            at = (side // 2 + 0.5) / side * _SHOWN_PX
            _cross(ImageDraw.Draw(half), at)
            picture.paste(half, (place * (_SHOWN_PX + _GAP_PX), 0))
        content, made_by = io.BytesIO(), PngInfo()
        made_by.add_text("Software", PICTURE_MARK)
        picture.save(content, "png", pnginfo=made_by)
        write_bytes(path, content.getbuffer())


def _on_grid(file: Reader, lonlat: Float[np.ndarray, "2 point"]) -> Float[np.ndarray, "2 point"]:
    """Columns and rows of places."""
    crs = file.geobox.crs
    assert crs is not None
    x, y = CRS("EPSG:4326").transformer_to_crs(crs)(*lonlat)
    a, b, c, d, e, f = (~file.geobox.affine)[:6]
    return np.stack([a * x + b * y + c, d * x + e * y + f])


def _look(
    file: Reader, bands: Sequence[int], row: int, col: int, side: int
) -> UInt8[np.ndarray, "row col rgb"]:
    """A square of the raster around a pixel."""
    top, left = row - side // 2, col - side // 2
    rows = slice(*np.clip([top, top + side], 0, file.geobox.shape[0]).tolist())
    cols = slice(*np.clip([left, left + side], 0, file.geobox.shape[1]).tolist())
    shape = (rows.stop - rows.start, cols.stop - cols.start)
    image, known = np.zeros((len(bands), side, side), np.float32), np.zeros((side, side), bool)
    if min(shape) > 0:
        stored, there = file.read_known(rows.start, cols.start, *shape, bands)
        at = (slice(rows.start - top, rows.stop - top), slice(cols.start - left, cols.stop - left))
        image[:, *at], known[at] = stored, there.all(0)
    seen = image[:, known]
    low, high = np.percentile(seen, [2, 98]) if seen.size else (0.0, 1.0)
    return hatch(stretched(image, float(low), float(high)), ~known)


def _cross(draw: ImageDraw.ImageDraw, at: float) -> None:
    """Four arms around a place, which stays visible between them."""
    for colour, width in ((_HALO, 5), (_CROSS, 2)):
        for across, down in ((1, 0), (-1, 0), (0, 1), (0, -1)):
            start, end = (
                (at + across * far, at + down * far) for far in (_FREE_PX, _FREE_PX + _ARM_PX)
            )
            draw.line((*start, *end), fill=colour, width=width)
