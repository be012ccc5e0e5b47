"""A large raster's answers, piece by piece: finished pieces survive the program that made them.

Axes: row, col of cells. A cell is one token; with a stride below the patch size the tokens of
several shifted grids lie between each other, and a cell is ``stride_px`` wide.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine
from jaxtyping import Float
from odc.geo.geobox import GeoBox
from torch import Tensor

from bharateo.errors import ConfigError, StorageError
from bharateo.files import remove_leftovers, take_lock, write_atomically, write_text
from bharateo.inference.encoder import PerToken
from bharateo.inference.windows import PIECE_TOKENS, Piece, Read, TokenGrid, blended
from bharateo.training.engine import autocast, resolve_precision

Progress = Callable[[float, float, str], None]
"""(done, total, note)."""


@dataclass(frozen=True)
class CellGrid:
    """Cells of ``stride_px`` pixels over a raster, each answered by the patch around its centre.

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

    def pieces(self, side: int = PIECE_TOKENS) -> list[Piece]:
        """The cells cut into pieces of at most ``side`` tokens of each shift, row by row."""
        rows, cols = self.shape
        side *= self.shifts
        return [
            Piece(slice(row, min(row + side, rows)), slice(col, min(col + side, cols)))
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

    def answer(self, read: Read, ask: PerToken, piece: Piece) -> Float[np.ndarray, "row col dim"]:
        """What ``ask`` says of every cell of a piece, NaN where it has no valid pixel."""
        answers: np.ndarray | None = None
        for row, col, grid in self.token_grids:
            tokens = Piece(self._tokens(piece.rows, row), self._tokens(piece.cols, col))
            if min(tokens.shape) < 1:
                continue
            values, valid = blended(read, ask, grid, tokens)
            values[~valid] = np.nan
            if answers is None:
                answers = np.empty((*piece.shape, values.shape[2]), np.float32)
            answers[row :: self.shifts, col :: self.shifts] = values
        assert answers is not None  # the unshifted grid has a token in every piece
        return answers

    def _tokens(self, cells: slice, first: int) -> slice:
        """The tokens of the grid with this first cell among cells, which begin with a patch."""
        return slice(
            cells.start // self.shifts,
            cells.start // self.shifts
            + math.ceil((cells.stop - cells.start - first) / self.shifts),
        )


@dataclass(frozen=True)
class Answers:
    """The answers of all pieces of a grid, on disk: float, NaN where a cell has no valid pixel."""

    grid: CellGrid
    pieces: list[Piece]
    folder: Path

    def __iter__(self) -> Iterator[tuple[Piece, Float[np.ndarray, "row col dim"]]]:
        return ((piece, np.load(self.folder / f"{_name(piece)}.npy")) for piece in self.pieces)

    @property
    def num_dims(self) -> int:
        """Numbers of a cell."""
        first: np.ndarray = np.load(self.folder / f"{_name(self.pieces[0])}.npy", mmap_mode="r")
        return first.shape[2]


def answer_all(
    grid: CellGrid,
    read: Read,
    ask: PerToken,
    folder: Path,
    progress: Progress,
    dtype: str = "float32",
    side: int = PIECE_TOKENS,
) -> Answers:
    """Ask for every piece that ``folder`` does not hold yet, and keep it there.

    ``folder`` is that of ``scratch``; ``dtype`` float32 or float16 is what answers are kept as.

    Raises:
        StorageError: the disk is full or refuses; pieces so far are kept.
    """
    pieces = grid.pieces(side)
    makers = {_name(piece): partial(grid.answer, read, ask, piece) for piece in pieces}
    keep_all(folder, makers, dtype, progress)
    return Answers(grid, pieces, folder)


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
        progress(done, len(files), f"piece {done + 1} of {len(files)}")
        if not file.exists():
            write_atomically(file, partial(np.save, arr=make().astype(dtype)))
    progress(len(files), len(files), "writing")
    return files


def _name(piece: Piece) -> str:
    return f"{piece.rows.start}-{piece.cols.start}"


def fingerprint(plan: Mapping[str, Any]) -> str:
    """SHA-256 of what decides a product's contents, given as plain JSON."""
    return hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()


@contextmanager
def scratch(output: Path, plan: Mapping[str, Any], say: Callable[[str], object]) -> Iterator[Path]:
    """A folder beside ``output`` for finished pieces; it goes when the context ends well.

    What a killed program left there is used again if its plan was the same, else cleared.

    Raises:
        StorageError: another program is writing the same output, or the disk refuses.
    """
    folder = _scratch_folder(output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("wb")
    except OSError as error:
        raise StorageError(f"cannot write {output} ({error}): choose another --output") from error
    with lock:
        busy = (
            f"another program is writing {output}: wait for it to end, or choose another --output"
        )
        take_lock(lock, StorageError(busy))
        _clear_unless(folder, plan, say)
        yield folder
    shutil.rmtree(folder)


def clear_scratch(output: Path, plan: Mapping[str, Any], say: Callable[[str], object]) -> None:
    """Remove what a program left that was killed after it had finished ``output``.

    Raises:
        StorageError: it is still there, and removing it.
    """
    folder = _scratch_folder(output)
    mark = folder / _MARK_FILE
    if folder.is_dir() and (not mark.exists() or mark.read_text() == _as_text(plan)):
        with scratch(output, plan, say):
            pass


def _scratch_folder(output: Path) -> Path:
    return output.with_name(f".{output.name}.parts")


_MARK_FILE = "plan.json"


def _as_text(plan: Mapping[str, Any]) -> str:
    return json.dumps(plan, indent=2, sort_keys=True)


def _clear_unless(folder: Path, plan: Mapping[str, Any], say: Callable[[str], object]) -> None:
    """Delete what is in the folder unless it is of this plan, and mark it as this plan's."""
    mark, text = folder / _MARK_FILE, _as_text(plan)
    leftovers = [path for path in folder.iterdir() if path.name != "lock"]
    if leftovers and not (mark.exists() and mark.read_text() == text):
        say(f"{folder} held pieces of another input, run or options: deleted, and made anew")
        mark.unlink(missing_ok=True)  # first: what is left without it is cleared the next time
        for path in leftovers:
            path.unlink(missing_ok=True)
    remove_leftovers(folder)
    write_text(mark, text)


def in_precision(ask: PerToken, precision: str) -> PerToken:
    """``ask`` with matrix products in ``fp32``, ``bf16``, or what is fastest here (``auto``)."""
    context = autocast(resolve_precision(precision))

    def asked(image: Tensor, valid: Tensor) -> Tensor:
        with context():
            return ask(image, valid)

    return asked
