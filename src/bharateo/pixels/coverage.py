"""How much of every cell of a grid a polygon covers: exactly, also of slivers within a cell."""

from __future__ import annotations

import numpy as np
import shapely
from jaxtyping import Float64


def coverage(outline: shapely.Geometry, height: int, width: int) -> Float64[np.ndarray, "row col"]:
    """The share, 0 to 1, of each cell of a window that lies in a valid polygon or multipolygon.

    The outline is in cells of the window: x counts columns and y rows from its first corner; it
    may reach beyond. Exact but for rounding: every side of the outline is cut where it leaves a
    cell, and adds the ground between itself and the window's right edge with its sign (Green's
    theorem), as font rasterisers do with signed areas.
    """
    parts = shapely.orient_polygons(shapely.get_parts(outline), exterior_cw=True)
    corners, ring = shapely.get_coordinates(shapely.get_rings(parts), return_index=True)
    begin = corners[:-1][ring[:-1] == ring[1:]]
    end = corners[1:][ring[:-1] == ring[1:]]
    low, high = np.minimum(begin, end), np.maximum(begin, end)
    near = (low[:, 1] < height) & (high[:, 1] > 0) & (low[:, 0] < width)
    begin, end, low, high = (each[near] for each in (begin, end, low, high))

    # Shares of each side's length at which it crosses a line between columns (0) or rows (1).
    sides, places = [np.arange(len(begin))] * 2, [np.zeros(len(begin)), np.ones(len(begin))]
    for axis, most in ((0, width), (1, height)):
        first = np.maximum(np.ceil(low[:, axis]), 0).astype(int)
        last = np.minimum(np.floor(high[:, axis]), most).astype(int)
        num = np.maximum(last - first + 1, 0)
        side = np.repeat(np.arange(len(begin)), num)
        line = np.repeat(first, num) + np.arange(num.sum()) - np.repeat(num.cumsum() - num, num)
        length = end[side, axis] - begin[side, axis]
        crossed = length != 0
        side, line, length = side[crossed], line[crossed], length[crossed]
        sides.append(side)
        places.append(np.clip((line - begin[side, axis]) / length, 0, 1))
    side, place = np.concatenate(sides), np.concatenate(places)
    order = np.lexsort((place, side))
    side, place = side[order], place[order]

    # Pieces between crossings: each lies in one cell.
    x, y = (begin[side] + place[:, None] * (end - begin)[side]).T
    follows = side[1:] == side[:-1]
    x, y, down = (
        ((x[1:] + x[:-1]) / 2)[follows],
        ((y[1:] + y[:-1]) / 2)[follows],
        np.diff(y)[follows],
    )
    row, col = np.floor(y).astype(int), np.clip(np.floor(x), 0, width).astype(int)
    inside = (row >= 0) & (row < height) & (col < width)
    x, down, row, col = x[inside], down[inside], row[inside], col[inside]
    right = np.clip(col + 1 - x, 0, 1)  # of a piece left of the window everything
    # What a piece adds to its own cell, and what more to all cells on its right.
    cell = row * (width + 1) + col
    added = np.bincount(
        np.concatenate([cell, cell + 1]),
        np.concatenate([down * right, down * (1 - right)]),
        height * (width + 1),
    )
    # Of no piece at all NumPy counts in whole numbers.
    shares: np.ndarray = added.reshape(height, width + 1)[:, :width].cumsum(1, dtype=float)
    return np.clip(shares, 0, 1)
