"""Windows of many chips read straight from the files into arrays that the caller keeps.

Training reads chips from thousands of files in random order. A positioned read into memory that is
used again costs one copy; a file mapped for a few chips costs a page fault for every few pages as
well, and what is mapped counts as the process's memory.
"""

from __future__ import annotations

import os
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from jaxtyping import Int64, Shaped

from bharateo.chips.store import LAYERS, Dataset
from bharateo.errors import DatasetError

_OPEN_FILES = 128
"""Shards kept open at once; beside those that ``store`` keeps mapped."""


class RecordReader:
    """Reads windows of a dataset's chips; may be used by several threads at once."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self._open = lru_cache(_OPEN_FILES)(partial(_OpenFile, str(dataset.path)))

    def read(
        self,
        layer: str,
        chips: Int64[np.ndarray, " chip"],
        rows: Int64[np.ndarray, " chip"],
        cols: Int64[np.ndarray, " chip"],
        out: Shaped[np.ndarray, "chip *band row col"],
    ) -> None:
        """Fill ``out`` with the windows of ``chips`` whose upper left pixels are given.

        ``out`` is C-contiguous, of the stored type, and as large as the windows are. Of ``valid``
        whole rows are read, packed as they are stored, whatever the column.

        Raises:
            DatasetError: a file is missing, cannot be read, or has become shorter.
        """
        lies = self.dataset.layers[layer]
        (height, width), (out_height, out_width) = lies.shape[-2:], out.shape[-2:]
        shards, records = self.dataset.locate(chips)
        first = lies.first_byte[shards] + records * lies.record_bytes
        first += rows * (width * lies.dtype.itemsize)
        whole = out_height == height and lies.planes is None
        planes = (0,) if whole else lies.planes or tuple(range(lies.num_planes))
        plane_bytes = lies.record_bytes // lies.num_planes
        rows_each = out_height * (lies.num_planes if whole else 1)
        parts = out.reshape(len(out), len(planes), rows_each, out_width)
        strip = np.empty((rows_each, width), lies.dtype)
        in_file_order = np.argsort(chips)
        each = (in_file_order, shards[in_file_order], first[in_file_order], cols[in_file_order])
        for place, shard, begin, col in zip(*(numbers.tolist() for numbers in each), strict=True):
            file, own = self._open(lies.files[shard]), parts[place]
            for target, plane in zip(own, planes, strict=True):
                if out_width == width:
                    file.read(target, begin + plane * plane_bytes)
                else:
                    file.read(strip, begin + plane * plane_bytes)
                    target[:] = strip[:, col : col + out_width]

    def readahead(self, chips: Int64[np.ndarray, " chip"]) -> None:
        """Tell the system that these chips are read soon, neighbours in one request.

        Does nothing where the system cannot be told.

        Raises:
            DatasetError: a file is missing.
        """
        if not hasattr(os, "posix_fadvise"):
            return
        chips = np.unique(chips)
        shards, records = self.dataset.locate(chips)
        follows = (np.diff(chips) == 1) & (np.diff(shards) == 0)
        begins = np.flatnonzero(np.concatenate([[True] * bool(len(chips)), ~follows]))
        lengths = np.diff(begins, append=len(chips))
        for layer in LAYERS:
            lies = self.dataset.layers[layer]
            first = lies.first_byte[shards] + records * lies.record_bytes
            for begin, length in zip(begins.tolist(), lengths.tolist(), strict=True):
                file = self._open(lies.files[shards[begin]])
                file.advise(int(first[begin]), length * lies.record_bytes)


class _OpenFile:
    """A shard's descriptor, closed when the last one who holds it lets go."""

    __slots__ = ("_close", "descriptor", "path")

    def __init__(self, folder: str, name: str) -> None:
        self.path = f"{folder}{os.sep}{name}"  # a Path costs more than opening the file
        self._close = os.close
        try:
            # It was a file when the dataset was opened; should it be a pipe now, none waits for it.
            self.descriptor = os.open(self.path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        except FileNotFoundError as error:
            raise self._damaged("is missing") from error
        except OSError as error:
            raise self._damaged(f"cannot be opened ({error.strerror})") from error

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            self._close(self.descriptor)

    def read(self, target: np.ndarray, byte: int) -> None:
        """Fill the array from a place in the file."""
        try:
            length = os.preadv(self.descriptor, (target.data,), byte)
        except OSError as error:
            raise self._damaged(f"cannot be read at byte {byte} ({error.strerror})") from error
        if length != target.nbytes:
            raise self._damaged(f"ends at byte {byte + length}, inside a chip")

    def advise(self, byte: int, length: int) -> None:
        """Say that a part of the file is read soon."""
        try:
            os.posix_fadvise(self.descriptor, byte, length, os.POSIX_FADV_WILLNEED)
        except OSError as error:
            raise self._damaged(f"cannot be read at byte {byte} ({error.strerror})") from error

    def _damaged(self, what: str) -> DatasetError:
        return DatasetError(
            f"shard {self.path} {what}: copy the file again, or delete {Path(self.path).parent} "
            "and run the same build again"
        )
