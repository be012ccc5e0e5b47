"""A raster of any size through a model: in windows, blended without seams, tile by tile.

Axes: row, col of the raster in pixels; token row, col: one a patch; cell row, col. Every window
begins on the patch grid, so a token covers the same pixels in every window that holds it, and the
predictions of those windows are averaged. A window counts for a token the less the nearer the token
lies to the window's edge (a triangle in rows times one in columns), so nothing jumps where a window
begins.

A cell is one token; with a stride below the patch size the tokens of several shifted grids lie
between each other, and a cell is ``stride_px`` wide. Cells are predicted tile by tile. A tile takes
all windows that touch it, also those it shares with its neighbours, so each can be made alone, in
any order, and together they have no seams. Finished tiles survive the program that made them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from affine import Affine
from jaxtyping import Bool, Float
from odc.geo.geobox import GeoBox
from torch import Tensor

from bharateo.errors import ConfigError
from bharateo.files import write_atomically
from bharateo.inference.encoder import CHIPS_AT_ONCE, PerToken

TILE_TOKENS = 128
"""Side of a tile in tokens: 2,048 pixels with patches of 16."""

Progress = Callable[[float, float, str], None]
"""(done, total, note)."""

Read = Callable[
    [int, int, int, int],
    tuple[Float[np.ndarray, "band row col"], Bool[np.ndarray, "row col"]],
]
"""(row, col, height, width), inside the raster -> physical values and which of them are valid."""


@dataclass(frozen=True)
class Tile:
    """Some tokens or cells of a grid: a slice of its rows and one of its columns."""

    rows: slice
    cols: slice

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.rows.stop - self.rows.start, self.cols.stop - self.cols.start

    @property
    def name(self) -> str:
        """First row and column: what a file of the tile is called."""
        return f"{self.rows.start}-{self.cols.start}"


# Windows over tokens


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
    def shape(self) -> tuple[int, int]:
        """Token rows and columns."""
        height, width = self.shape_px
        return (
            math.ceil((height - self.row) / self.patch_px),
            math.ceil((width - self.col) / self.patch_px),
        )

    def starts(self, wanted: slice, num: int) -> list[int]:
        """First tokens, along one axis of ``num`` tokens, of the windows that touch ``wanted``.

        Windows begin every ``step`` tokens; one more ends with the axis.
        """
        size = self.tokens_per_chip
        last = max(num - size, 0)
        regular = range(0, last, self.step or max(size // 2, 1))
        return [s for s in (*regular, last) if s < wanted.stop and s + size > wanted.start]

    @cached_property
    def weights(self) -> Float[np.ndarray, "row col"]:
        """How much a window counts for each of its tokens: a triangle, highest in the middle."""
        size = self.tokens_per_chip
        triangle = np.minimum(np.arange(size), np.arange(size)[::-1]) + 0.5
        return np.outer(triangle, triangle).astype(np.float32)


class _Mean:
    """The weighted mean, token by token, of what windows say of the tokens of a tile."""

    def __init__(self, grid: TokenGrid, tile: Tile) -> None:
        self._grid, self._tile = grid, tile
        self._total: np.ndarray | None = None
        self._weight = np.zeros((*tile.shape, 1), np.float32)

    def add(self, row: int, col: int, predicted: Float[np.ndarray, "row col dim"]) -> None:
        """Take in what the window that begins at this token says."""
        if self._total is None:
            self._total = np.zeros((*self._tile.shape, predicted.shape[2]), np.float32)
        own, here = [], []  # where window and tile meet: in the window, in the tile
        for start, wanted in ((row, self._tile.rows), (col, self._tile.cols)):
            first = max(start, wanted.start)
            last = min(start + self._grid.tokens_per_chip, wanted.stop)
            own.append(slice(first - start, last - start))
            here.append(slice(first - wanted.start, last - wanted.start))
        weights = self._grid.weights[*own, None]
        self._total[*here] += predicted[*own] * weights
        self._weight[*here] += weights

    def value(self) -> Float[np.ndarray, "row col dim"]:
        """The mean; 0 of tokens that no window has held."""
        assert self._total is not None  # some window is always taken
        mean: np.ndarray = self._total / np.where(self._weight > 0, self._weight, 1)
        return mean


def blended(
    read: Read, predict: PerToken, grid: TokenGrid, tile: Tile
) -> tuple[Float[np.ndarray, "row col dim"], Bool[np.ndarray, "row col"]]:
    """Predictions of every token of a tile, averaged over the windows that hold it; and which
    tokens have a valid pixel (the others are 0).

    Pixels are read once, those under the tile's windows alone; windows without a valid pixel are
    passed over.
    """
    size, patch, chip = grid.tokens_per_chip, grid.patch_px, grid.chip_px
    rows = grid.starts(tile.rows, grid.shape[0])
    cols = grid.starts(tile.cols, grid.shape[1])
    # Pixels under the windows; invalid where the raster has ended or not begun.
    top, left = grid.row + rows[0] * patch, grid.col + cols[0] * patch
    shape = (rows[-1] - rows[0]) * patch + chip, (cols[-1] - cols[0]) * patch + chip
    first = max(top, 0), max(left, 0)
    last = min(top + shape[0], grid.shape_px[0]), min(left + shape[1], grid.shape_px[1])
    image, valid = read(*first, last[0] - first[0], last[1] - first[1])
    if valid.shape != shape:
        inside = tuple(
            slice(a - b, c - b) for a, b, c in zip(first, (top, left), last, strict=True)
        )
        values, known = image, valid
        image, valid = np.zeros((len(values), *shape), np.float32), np.zeros(shape, bool)
        image[:, *inside], valid[inside] = values, known

    def under(row: int, col: int) -> tuple[slice, slice]:
        down, along = (row - rows[0]) * patch, (col - cols[0]) * patch
        return slice(down, down + chip), slice(along, along + chip)

    windows = [(row, col) for row in rows for col in cols]
    windows = [each for each in windows if valid[under(*each)].any()] or windows[:1]
    mean = _Mean(grid, tile)
    for start in range(0, len(windows), CHIPS_AT_ONCE):
        some = windows[start : start + CHIPS_AT_ONCE]
        chips = np.stack([image[:, *under(*each)] for each in some])
        known = np.stack([valid[under(*each)] for each in some])
        predicted = predict(torch.from_numpy(chips), torch.from_numpy(known)).float().numpy()
        for window, values in zip(some, predicted, strict=True):
            mean.add(*window, values.reshape(size, size, -1))
    begin = under(tile.rows.start, tile.cols.start)
    height, width = tile.shape
    own = valid[
        begin[0].start : begin[0].start + height * patch,
        begin[1].start : begin[1].start + width * patch,
    ]
    some_valid = np.any(own.reshape(height, patch, width, patch), (1, 3))
    return np.where(some_valid[..., None], mean.value(), np.float32(0)), some_valid


def blended_squares(
    image: Float[Tensor, "square band row col"],
    valid: Bool[Tensor, "square row col"],
    predict: PerToken,
    grid: TokenGrid,
) -> Float[np.ndarray, "square token_row token_col dim"]:
    """The same of squares that are as large as the grid each; NaN where a token has no valid pixel.

    Every window is taken of all squares at once.
    """
    (rows, cols), patch, chip = grid.shape, grid.patch_px, grid.chip_px
    num, size = len(image), grid.tokens_per_chip
    mean = _Mean(grid, Tile(slice(0, rows), slice(0, cols)))
    for row in grid.starts(slice(0, rows), rows):
        for col in grid.starts(slice(0, cols), cols):
            down = slice(row * patch, row * patch + chip)
            along = slice(col * patch, col * patch + chip)
            predicted = predict(image[..., down, along], valid[..., down, along]).float()
            by_token = predicted.transpose(0, 1).reshape(size, size, -1)  # squares in dim
            mean.add(row, col, by_token.numpy())
    values = mean.value().reshape(rows, cols, num, -1).transpose(2, 0, 1, 3)
    some_valid = np.any(valid.numpy().reshape(num, rows, patch, cols, patch), (2, 4))
    return np.where(some_valid[..., None], values, np.float32(np.nan))


# Cells in tiles


@dataclass(frozen=True)
class CellGrid:
    """Cells of ``stride_px`` pixels over a raster, each predicted from the patch around its centre.

    Cell (i, j) is centred on the patch that begins at pixel (i, j) x stride_px. With the patch
    size as stride, cells are the patches. With a finer one the grid begins (patch_px - stride_px)
    / 2 pixels inside the raster, and patches overlap. ``step`` is the distance of windows in
    tokens; half a chip by default.

    Raises:
        ConfigError: the stride does not divide the patch, or the step leaves gaps.
    """

    shape_px: tuple[int, int]
    chip_px: int
    patch_px: int
    stride_px: int
    step: int | None = None

    def __post_init__(self) -> None:
        if self.stride_px < 1 or self.patch_px % self.stride_px:
            strides = [s for s in range(1, self.patch_px + 1) if self.patch_px % s == 0]
            raise ConfigError(
                f"stride {self.stride_px} does not divide the run's patches of {self.patch_px} px: "
                f"choose one of {', '.join(map(str, strides))}"
            )
        _ = self.token_grids  # which check the step

    @property
    def shifts(self) -> int:
        """Token grids along each axis."""
        return self.patch_px // self.stride_px

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of cells: as many as there are patches that begin in the raster."""
        height, width = self.shape_px
        return math.ceil(height / self.stride_px), math.ceil(width / self.stride_px)

    def geobox(self, raster: GeoBox) -> GeoBox:
        """Where the cells lie: exact, in the raster's own reference system."""
        inside = (self.patch_px - self.stride_px) / 2
        affine = raster.affine @ Affine.translation(inside, inside)
        return GeoBox(self.shape, affine @ Affine.scale(self.stride_px), raster.crs)

    def tiles(self, side: int = TILE_TOKENS) -> list[Tile]:
        """The cells cut into tiles of at most ``side`` tokens of each shift, row by row."""
        rows, cols = self.shape
        side *= self.shifts
        return [
            Tile(slice(row, min(row + side, rows)), slice(col, min(col + side, cols)))
            for row in range(0, rows, side)
            for col in range(0, cols, side)
        ]

    @cached_property
    def token_grids(self) -> list[tuple[int, int, TokenGrid]]:
        """Every shifted grid, with the row and column of its first cell."""
        return [
            (row, col, TokenGrid(self.shape_px, self.chip_px, self.patch_px, self.step,
                                 row * self.stride_px, col * self.stride_px))
            for row in range(self.shifts)
            for col in range(self.shifts)
        ]  # fmt: skip

    def predict(
        self, read: Read, predict: PerToken, tile: Tile
    ) -> Float[np.ndarray, "row col dim"]:
        """Predictions of every cell of a tile, NaN where it has no valid pixel."""
        predicted: np.ndarray | None = None
        for row, col, grid in self.token_grids:
            # Token t of this grid is cell `row` + t x shifts along the rows, and so along columns.
            tokens = Tile(*(
                slice(
                    math.ceil((each.start - first) / self.shifts),
                    math.ceil((each.stop - first) / self.shifts),
                )
                for each, first in ((tile.rows, row), (tile.cols, col))
            ))  # fmt: skip
            if min(tokens.shape) < 1:
                continue
            values, valid = blended(read, predict, grid, tokens)
            values[~valid] = np.nan
            if predicted is None:
                predicted = np.empty((*tile.shape, values.shape[2]), np.float32)
            begin = (
                row + tokens.rows.start * self.shifts - tile.rows.start,
                col + tokens.cols.start * self.shifts - tile.cols.start,
            )
            predicted[begin[0] :: self.shifts, begin[1] :: self.shifts] = values
        assert predicted is not None  # some grid has a token in every tile
        return predicted


def pixels_under(cells: Tile, grid: CellGrid) -> Tile:
    """The pixels of the raster under some cells."""
    return Tile(*(
        slice(int(each.start) * grid.stride_px, min(int(each.stop) * grid.stride_px, size))
        for each, size in zip((cells.rows, cells.cols), grid.shape_px, strict=True)
    ))  # fmt: skip


@dataclass(frozen=True)
class TilePredictions:
    """Those of all tiles of a grid, on disk: float, NaN where a cell has no valid pixel."""

    grid: CellGrid
    tiles: list[Tile]
    folder: Path

    def __iter__(self) -> Iterator[tuple[Tile, Float[np.ndarray, "row col dim"]]]:
        return ((tile, np.load(self.folder / f"{tile.name}.npy")) for tile in self.tiles)

    @property
    def num_dims(self) -> int:
        """Numbers of a cell."""
        first: np.ndarray = np.load(self.folder / f"{self.tiles[0].name}.npy", mmap_mode="r")
        return first.shape[2]


def predict_tiles(
    grid: CellGrid,
    read: Read,
    predict: PerToken,
    folder: Path,
    progress: Progress,
    dtype: str = "float32",
    side: int = TILE_TOKENS,
) -> TilePredictions:
    """Predict every tile that ``folder`` does not hold yet, and keep it there.

    ``folder`` is that of ``scratch``; ``dtype`` float32 or float16 is what tiles are kept as.

    Raises:
        StorageError: the disk is full or refuses; tiles so far are kept.
    """
    tiles = grid.tiles(side)
    makers = {tile.name: partial(grid.predict, read, predict, tile) for tile in tiles}
    keep_all(folder, makers, dtype, progress)
    return TilePredictions(grid, tiles, folder)


def keep_all(
    folder: Path,
    makers: Mapping[str, Callable[[], Float[np.ndarray, "*shape"]]],
    dtype: str,
    progress: Progress,
) -> list[Path]:
    """Make every named array that ``folder`` does not hold yet; the file of each.

    Raises:
        StorageError: the disk is full or refuses; arrays so far are kept.
    """
    files = [folder / f"{name}.npy" for name in makers]
    for done, (file, make) in enumerate(zip(files, makers.values(), strict=True)):
        progress(done, len(files), f"tile {done + 1} of {len(files)}")
        if not file.exists():
            write_atomically(file, partial(np.save, arr=make().astype(dtype)))
    progress(len(files), len(files), "writing")
    return files
