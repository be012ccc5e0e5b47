"""A raster of any size in overlapping windows of a model's chip, blended into one seamless answer.

Axes: row, col of the raster in pixels; token row, col: one a patch. Every window begins on the
patch grid, so a token covers the same pixels in every window that holds it, and the answers of
those windows are averaged. A window counts for a token the less the nearer the token lies to the
window's edge (a triangle in rows times one in columns), so nothing jumps where a window begins.

The raster is answered piece by piece. A piece asks all windows that touch it, also those it shares
with its neighbours, so each can be made alone, in any order, and together they have no seams.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from affine import Affine
from jaxtyping import Bool, Float
from odc.geo.geobox import GeoBox
from torch import Tensor

from bharateo.errors import ConfigError
from bharateo.inference.encoder import CHIPS_AT_ONCE, PerToken

PIECE_TOKENS = 128
"""Side of a piece in tokens: 2,048 pixels with patches of 16."""

Read = Callable[
    [int, int, int, int],
    tuple[Float[np.ndarray, "band row col"], Bool[np.ndarray, "row col"]],
]
"""(row, col, height, width), inside the raster -> physical values and which of them are valid."""


@dataclass(frozen=True)
class Piece:
    """Some tokens of a token grid: a slice of its rows and one of its columns."""

    rows: slice
    cols: slice

    @property
    def shape(self) -> tuple[int, int]:
        """Token rows and columns."""
        return self.rows.stop - self.rows.start, self.cols.stop - self.cols.start


@dataclass(frozen=True)
class TokenGrid:
    """The patches of a raster, from pixel ``(row, col)`` of it on, and the windows over them.

    ``shape_px`` is the raster's. The last row and column of patches may stick out: what is outside
    is invalid. ``step`` is the distance of windows in tokens; half a chip by default.

    Raises:
        ConfigError: windows of that step would be no windows, or leave gaps.
    """

    shape_px: tuple[int, int]
    chip_px: int
    patch_px: int
    step: int | None = None
    row: int = 0
    col: int = 0

    def __post_init__(self) -> None:
        if self.step is not None and not 1 <= self.step <= self.tokens_per_chip:
            raise ConfigError(
                f"step {self.step} is not in 1..{self.tokens_per_chip}, the patches along a "
                "chip's side; leave it out for half of them"
            )

    @property
    def tokens_per_chip(self) -> int:
        """Tokens along a chip's side."""
        return self.chip_px // self.patch_px

    @property
    def step_tokens(self) -> int:
        """Distance of windows in tokens."""
        return self.step or max(self.tokens_per_chip // 2, 1)

    @property
    def shape(self) -> tuple[int, int]:
        """Token rows and columns."""
        height, width = self.shape_px
        return (
            math.ceil((height - self.row) / self.patch_px),
            math.ceil((width - self.col) / self.patch_px),
        )

    def geobox(self, raster: GeoBox) -> GeoBox:
        """Where the tokens lie, one a pixel: exact, in the raster's own reference system."""
        affine = raster.affine @ Affine.translation(self.col, self.row)
        return GeoBox(self.shape, affine @ Affine.scale(self.patch_px), raster.crs)

    def pieces(self, side: int = PIECE_TOKENS) -> list[Piece]:
        """The grid cut into pieces of at most ``side`` tokens a side, row by row."""
        rows, cols = self.shape
        return [
            Piece(slice(row, min(row + side, rows)), slice(col, min(col + side, cols)))
            for row in range(0, rows, side)
            for col in range(0, cols, side)
        ]

    def starts(self, wanted: slice, num: int) -> list[int]:
        """First tokens, along one axis of ``num`` tokens, of the windows that touch ``wanted``.

        Windows begin every ``step_tokens``; one more ends with the axis.
        """
        size = self.tokens_per_chip
        last = max(num - size, 0)
        regular = range(0, last, self.step_tokens)
        return [s for s in (*regular, last) if s < wanted.stop and s + size > wanted.start]

    @cached_property
    def weights(self) -> Float[np.ndarray, "row col"]:
        """How much a window counts for each of its tokens: a triangle, highest in the middle."""
        size = self.tokens_per_chip
        triangle = np.minimum(np.arange(size), np.arange(size)[::-1]) + 0.5
        return np.outer(triangle, triangle).astype(np.float32)


def blended(
    read: Read, ask: PerToken, grid: TokenGrid, piece: Piece
) -> tuple[Float[np.ndarray, "row col dim"], Bool[np.ndarray, "row col"]]:
    """What ``ask`` says of every token of a piece, averaged over the windows that hold it; and
    which tokens have a valid pixel (the others are 0).

    Pixels are read once, those under the piece's windows alone; windows without a valid pixel are
    not asked for.
    """
    size, patch, chip = grid.tokens_per_chip, grid.patch_px, grid.chip_px
    rows = grid.starts(piece.rows, grid.shape[0])
    cols = grid.starts(piece.cols, grid.shape[1])
    image, valid = _pixels(
        read, grid, rows[0], cols[0], rows[-1] + size - rows[0], cols[-1] + size - cols[0]
    )

    def under(row: int, col: int) -> tuple[slice, slice]:
        top, left = (row - rows[0]) * patch, (col - cols[0]) * patch
        return slice(top, top + chip), slice(left, left + chip)

    windows = [(row, col) for row in rows for col in cols]
    windows = [each for each in windows if valid[under(*each)].any()] or windows[:1]
    mean = _Mean(grid, piece)
    for first in range(0, len(windows), CHIPS_AT_ONCE):
        some = windows[first : first + CHIPS_AT_ONCE]
        chips = np.stack([image[:, *under(*each)] for each in some])
        known = np.stack([valid[under(*each)] for each in some])
        answers = ask(torch.from_numpy(chips), torch.from_numpy(known)).float().numpy()
        mean.add(some, answers.reshape(len(some), size, size, -1))
    top, left = (piece.rows.start - rows[0]) * patch, (piece.cols.start - cols[0]) * patch
    height, width = piece.shape
    inside = valid[top : top + height * patch, left : left + width * patch]
    some_valid = np.any(inside.reshape(height, patch, width, patch), (1, 3))
    return np.where(some_valid[..., None], mean.value(), np.float32(0)), some_valid


def blended_squares(
    image: Float[Tensor, "square band row col"],
    valid: Bool[Tensor, "square row col"],
    ask: PerToken,
    grid: TokenGrid,
) -> Float[np.ndarray, "square token_row token_col dim"]:
    """The same of squares that are as large as the grid each; NaN where a token has no valid pixel.

    Every window is asked of all squares at once.
    """
    (rows, cols), patch, chip = grid.shape, grid.patch_px, grid.chip_px
    num, size = len(image), grid.tokens_per_chip
    mean = _Mean(grid, Piece(slice(0, rows), slice(0, cols)))
    for row in grid.starts(slice(0, rows), rows):
        for col in grid.starts(slice(0, cols), cols):
            down = slice(row * patch, row * patch + chip)
            along = slice(col * patch, col * patch + chip)
            answers = ask(image[..., down, along], valid[..., down, along]).float()
            by_token = answers.transpose(0, 1).reshape(1, size, size, -1)  # squares in dim
            mean.add([(row, col)], by_token.numpy())
    values = mean.value().reshape(rows, cols, num, -1).transpose(2, 0, 1, 3)
    some_valid = np.any(valid.numpy().reshape(num, rows, patch, cols, patch), (2, 4))
    return np.where(some_valid[..., None], values, np.float32(np.nan))


class _Mean:
    """The weighted mean, token by token, of what windows say of the tokens of a piece."""

    def __init__(self, grid: TokenGrid, piece: Piece) -> None:
        self._grid, self._piece = grid, piece
        self._total: np.ndarray | None = None
        self._weight = np.zeros((*piece.shape, 1), np.float32)

    def add(
        self, windows: list[tuple[int, int]], answers: Float[np.ndarray, "window row col dim"]
    ) -> None:
        """Take in the answers of windows that begin at these tokens."""
        if self._total is None:
            self._total = np.zeros((*self._piece.shape, answers.shape[3]), np.float32)
        size, weights = self._grid.tokens_per_chip, self._grid.weights[..., None]
        for (row, col), answer in zip(windows, answers, strict=True):
            rows, rows_here = _overlap(row, self._piece.rows, size)
            cols, cols_here = _overlap(col, self._piece.cols, size)
            self._total[rows_here, cols_here] += answer[rows, cols] * weights[rows, cols]
            self._weight[rows_here, cols_here] += weights[rows, cols]

    def value(self) -> Float[np.ndarray, "row col dim"]:
        """The mean; 0 of tokens that no window has held."""
        assert self._total is not None  # some window is always asked
        mean: np.ndarray = self._total / np.where(self._weight > 0, self._weight, 1)
        return mean


def _pixels(
    read: Read, grid: TokenGrid, row: int, col: int, height: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Pixels under some tokens, invalid where the raster has ended or not begun."""
    top, left = grid.row + row * grid.patch_px, grid.col + col * grid.patch_px
    shape = (height * grid.patch_px, width * grid.patch_px)
    first = (max(top, 0), max(left, 0))
    last = (min(top + shape[0], grid.shape_px[0]), min(left + shape[1], grid.shape_px[1]))
    values, known = read(*first, last[0] - first[0], last[1] - first[1])
    if values.shape[1:] == shape:
        return values, known
    image = np.zeros((len(values), *shape), np.float32)
    valid = np.zeros(shape, bool)
    inside = tuple(slice(a - b, c - b) for a, b, c in zip(first, (top, left), last, strict=True))
    image[:, *inside], valid[inside] = values, known
    return image, valid


def _overlap(start: int, wanted: slice, size: int) -> tuple[slice, slice]:
    """Where a window from ``start`` on and the wanted tokens meet: in the window, in the wanted."""
    first, last = max(start, wanted.start), min(start + size, wanted.stop)
    return slice(first - start, last - start), slice(first - wanted.start, last - wanted.start)
