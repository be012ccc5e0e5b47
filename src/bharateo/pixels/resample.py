"""Pixels from one grid to another: by nearest neighbour for codes, bilinear for reflectances."""

from __future__ import annotations

import math
import threading
from typing import Literal

import numpy as np
import rasterio.warp
from affine import Affine
from jaxtyping import Shaped
from odc.geo.geobox import GeoBox
from odc.geo.overlap import compute_reproject_roi
from rasterio.enums import Resampling

_WARPING = threading.Lock()
"""``rasterio.warp.reproject`` sets the process's warning filters aside, which threads share."""

Method = Literal["nearest", "bilinear"]

_SNAP_PX = 1e-3
"""Grids whose pixels coincide to this are taken for one grid."""

_ROWS_AT_ONCE = 64
"""Rows that are doubled together: the sums stay in the processor's cache."""

_WARP_PX = 0.01
"""How far GDAL's fast reprojection may miss the exact place, in pixels."""


def pixels_under(there: GeoBox, here: GeoBox) -> tuple[slice, slice]:
    """Rows and columns of the grid ``there`` that it takes to fill the grid ``here``.

    With a margin for what a bilinear mean takes of the neighbours, unless pixels coincide.
    """
    found = compute_reproject_roi(there, here, ttol=_SNAP_PX)
    if not (found.paste_ok and found.read_shrink == 1):
        margin = 1 if found.scale <= 1 else math.ceil(found.scale) + 1
        found = compute_reproject_roi(there, here, ttol=_SNAP_PX, padding=margin)
    rows, cols = found.roi_src
    return slice(rows.start, rows.stop), slice(cols.start, cols.stop)


def to_grid(
    values: Shaped[np.ndarray, "band row col"],
    there: GeoBox,
    here: GeoBox,
    method: Method,
    nodata: float = 0,
) -> Shaped[np.ndarray, "band rows cols"]:
    """``values``, which lie on the grid ``there``, on the grid ``here``; nodata outside of them.

    Pixels of one grid are copied as they are. Nodata has no part in a bilinear mean: the weights
    of the other pixels are scaled up. Pixels twice as large (20 m to 10 m) take a short way with
    the very same result as GDAL's.
    """
    step, (height, width) = _integer_steps(there, here), here.shape
    if step is not None and step[0] == 1:
        return _pasted(values, step[1:], (height, width), nodata)
    if step is not None and method == "nearest":
        larger = values.repeat(step[0], axis=-2).repeat(step[0], axis=-1)
        return _pasted(larger, step[1:], (height, width), nodata)
    integers = np.issubdtype(values.dtype, np.unsignedinteger) and values.dtype.itemsize <= 2
    if step is not None and step[0] == 2 and integers and not (values == nodata).any():
        return _pasted(doubled(values), step[1:], (height, width), nodata)
    return _warped(values, there, here, method, nodata)


def doubled(values: Shaped[np.ndarray, "band row col"]) -> Shaped[np.ndarray, "band rows cols"]:
    """Pixels of twice the resolution by bilinear, rounded half up; exact integer arithmetic.

    Every new pixel lies a quarter pixel from an old one's centre, so the weights are 9, 3, 3 and
    1 sixteenths. At the edge the missing neighbour is the pixel itself, as in GDAL.
    """
    padded = np.pad(values, ((0, 0), (1, 1), (1, 1)), mode="edge")
    num_bands, rows, cols = values.shape
    out = np.empty((num_bands, 2 * rows, 2 * cols), values.dtype)
    for start in range(0, rows, _ROWS_AT_ONCE):
        some = padded[:, start : start + _ROWS_AT_ONCE + 2].astype(np.uint32)
        both = _between(_between(some).swapaxes(1, 2)).swapaxes(1, 2)
        both += 8
        both >>= 4
        out[:, 2 * start : 2 * start + both.shape[1]] = both
    return out


def _between(values: Shaped[np.ndarray, "band row col"]) -> Shaped[np.ndarray, "band rows col"]:
    """Four times the values a quarter pixel above and below every row but the outermost."""
    num_bands, rows, cols = values.shape
    middle = 3 * values[:, 1:-1]
    out = np.empty((num_bands, 2 * (rows - 2), cols), np.uint32)
    out[:, 0::2] = middle + values[:, :-2]
    out[:, 1::2] = middle + values[:, 2:]
    return out


def _integer_steps(there: GeoBox, here: GeoBox) -> tuple[int, int, int] | None:
    """How many pixels of ``here`` a pixel of ``there`` is wide, and where it begins (row, col).

    None where the grids have other reference systems, or pixels that do not nest.
    """
    if there.crs != here.crs:
        return None
    step: Affine = ~here.affine @ there.affine
    num = round(step.a)
    row, col = round(step.f), round(step.c)
    extent = max(*there.shape, 1)
    off = max(abs(step.a - num), abs(step.e - num), abs(step.b), abs(step.d)) * extent
    if num < 1 or max(off, abs(step.f - row), abs(step.c - col)) > _SNAP_PX:
        return None
    return num, row, col


def _pasted(
    values: Shaped[np.ndarray, "band row col"],
    first: tuple[int, int],
    shape: tuple[int, int],
    nodata: float,
) -> Shaped[np.ndarray, "band rows cols"]:
    """``values`` put at their place in an array of ``shape``, cut where they reach beyond it."""
    (row, col), (height, width) = first, values.shape[1:]
    if (row, col) == (0, 0) and (height, width) == shape:
        return values
    out = np.full((len(values), *shape), nodata, values.dtype)
    top, left = max(row, 0), max(col, 0)
    bottom, right = min(row + height, shape[0]), min(col + width, shape[1])
    if bottom > top and right > left:
        part = values[:, top - row : bottom - row, left - col : right - col]
        out[:, top:bottom, left:right] = part
    return out


def _warped(
    values: Shaped[np.ndarray, "band row col"],
    there: GeoBox,
    here: GeoBox,
    method: Method,
    nodata: float,
) -> Shaped[np.ndarray, "band rows cols"]:
    out = np.full((len(values), *here.shape), nodata, values.dtype)
    for band, warped in zip(
        values, out, strict=True
    ):  # together, one band's nodata marks another's
        with _WARPING:
            rasterio.warp.reproject(
                band,
                warped,
                src_transform=there.affine,
                src_crs=str(there.crs),
                src_nodata=nodata,
                dst_transform=here.affine,
                dst_crs=str(here.crs),
                dst_nodata=nodata,
                resampling=Resampling[method],
                tolerance=_WARP_PX,
            )
    return out
