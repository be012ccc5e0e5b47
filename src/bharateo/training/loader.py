"""From a dataset's files to the device: the chips that every step shows, read ahead by a thread.

``Loader`` brings stored numbers (``data.RawBatch``). What a step shows is drawn in ``data``;
nothing here changes it, wherever the chips are kept and however many batches are read ahead.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Int64, Shaped
from torch import Tensor

from bharateo.chips.records import RecordReader
from bharateo.chips.store import LAYERS, Dataset
from bharateo.config import Config
from bharateo.errors import ConfigError
from bharateo.training.data import (
    Draws,
    RawBatch,
    draw,
    epoch_order,
    num_light,
    sent,
    share,
    signed,
)

T = TypeVar("T")

# Where chips are kept.

_CHIPS_AT_ONCE = 256
"""Chips brought to the device together when it is to keep them all."""


@dataclass(frozen=True)
class _Request:
    """What a rank shows in a step, and the windows it loads for that, each once."""

    draws: Draws
    shows: Int64[np.ndarray, " shown"]
    chips: Int64[np.ndarray, " loaded"]
    rows: Int64[np.ndarray, " loaded"]
    cols: Int64[np.ndarray, " loaded"]


@dataclass
class _Buffer:
    """Memory for one batch, used again and again; ``copied``: when the device has its own copy."""

    layers: dict[str, Tensor]
    copied: torch.cuda.Event | None = None


class _InMemory:
    """Chips kept in memory, read as ``RecordReader`` reads them.

    Raises:
        MemoryError: there is not enough of it.
    """

    def __init__(self, dataset: Dataset, chips: Int64[np.ndarray, " own"]) -> None:
        self.chips, reader, zero = chips, RecordReader(dataset), np.zeros_like(chips)
        self.layers = {
            name: np.empty((len(chips), *lies.shape), lies.dtype)
            for name, lies in dataset.layers.items()
        }
        for name, stored in self.layers.items():
            reader.read(name, chips, zero, zero, stored)

    def read(
        self,
        layer: str,
        chips: Int64[np.ndarray, " loaded"],
        rows: Int64[np.ndarray, " loaded"],
        cols: Int64[np.ndarray, " loaded"],
        out: Shaped[np.ndarray, "loaded *band row col"],
    ) -> None:
        """As ``RecordReader.read``."""
        stored, places = self.layers[layer], np.searchsorted(self.chips, chips)
        height, width = out.shape[-2:]
        cols = cols * (width < stored.shape[-1])
        for window, place, row, col in zip(out, places, rows, cols, strict=True):
            window[:] = stored[place, ..., row : row + height, col : col + width]


class _Ring:
    """Batches read from a source into buffers that take turns, and from there to the device."""

    def __init__(
        self,
        source: RecordReader | _InMemory,
        dataset: Dataset,
        device: torch.device,
        chip_px: int,
        num_buffers: int,
        most_chips: int,
    ) -> None:
        self.source, self.device, self.layers = source, device, {}
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        for name, lies in dataset.layers.items():
            width = lies.shape[-1] if name == "valid" else chip_px
            self.layers[name] = ((*lies.shape[:-2], chip_px, width), lies.dtype)
        self.buffers = [self._buffer(most_chips) for _ in range(num_buffers)]

    def _buffer(self, num_chips: int) -> _Buffer:
        buffer = _Buffer({})
        for name, (shape, dtype) in self.layers.items():
            tensor = torch.from_numpy(np.empty((num_chips, *shape), dtype))  # on large pages
            buffer.layers[name] = tensor.pin_memory() if self.device.type == "cuda" else tensor
        return buffer

    def fill(self, step: int | None, request: _Request) -> _Buffer:
        """The buffer with a step's chips, read when what it held before has been copied; without
        a step, a new one.
        """
        if step is None:
            buffer = self._buffer(len(request.chips))
        else:
            buffer = self.buffers[step % len(self.buffers)]
        if buffer.copied:
            buffer.copied.synchronize()
        for name, tensor in buffer.layers.items():
            out = tensor.numpy()[: len(request.chips)]
            self.source.read(name, request.chips, request.rows, request.cols, out)
        return buffer

    def take(self, buffer: _Buffer, request: _Request) -> dict[str, Tensor]:
        """The layers on the device, views of the buffer if that is the CPU.

        On a GPU the copies run beside the step before, which is still being computed.
        """
        with torch.cuda.stream(self.stream) if self.stream else nullcontext():
            layers = {
                name: tensor[: len(request.chips)].to(self.device, non_blocking=True)
                for name, tensor in buffer.layers.items()
            }
        if self.stream:
            buffer.copied = self.stream.record_event()
            computing = torch.cuda.current_stream(self.device)
            computing.wait_event(buffer.copied)
            for layer in layers.values():
                layer.record_stream(computing)  # its memory is not the copies' to use again
        return layers


class _OnDevice:
    """Chips kept on the device.

    Raises:
        torch.OutOfMemoryError: there is not enough memory.
    """

    def __init__(
        self,
        dataset: Dataset,
        chips: Int64[np.ndarray, " own"],
        device: torch.device,
        chip_px: int,
    ) -> None:
        self.chips, self.device, self.chip_px, self.layers = chips, device, chip_px, {}
        for name, lies in dataset.layers.items():
            dtype = torch.from_numpy(np.empty(0, lies.dtype)).dtype
            shape = (len(chips), *lies.shape)
            self.layers[name] = torch.empty(shape, dtype=dtype, device=device)
        reader, zero = RecordReader(dataset), np.zeros(_CHIPS_AT_ONCE, np.int64)
        for name, lies in dataset.layers.items():
            read = np.empty((_CHIPS_AT_ONCE, *lies.shape), lies.dtype)
            for start in range(0, len(chips), _CHIPS_AT_ONCE):
                some = chips[start : start + _CHIPS_AT_ONCE]
                num = len(some)
                reader.read(name, some, zero[:num], zero[:num], read[:num])
                self.layers[name][start : start + num].copy_(torch.from_numpy(read[:num]))

    def fill(self, step: int | None, request: _Request) -> _Buffer:
        """Nothing: all is there."""
        return _Buffer({})

    def take(self, buffer: _Buffer, request: _Request) -> dict[str, Tensor]:
        """The layers, each gathered in one go."""
        stored_at = np.searchsorted(self.chips, request.chips)
        wanted = np.stack([stored_at, request.rows, request.cols])
        place, row, col = sent(wanted, self.device).unbind(0)
        layers, px = {}, self.chip_px
        for name in LAYERS:
            stored = self.layers[name]
            (*bands, height, width) = stored.shape[1:]
            if px == height:
                layers[name] = signed(stored).index_select(0, place).view(stored.dtype)
                continue
            planes = signed(stored).view(len(stored), -1, height, width)
            plane, pixel, byte = (
                torch.arange(num, device=self.device) for num in (planes.shape[1], px, width)
            )
            rows = row[:, None] + pixel
            cols = byte.expand(len(col), -1) if name == "valid" else col[:, None] + pixel
            windows = planes[
                place[:, None, None, None],
                plane[:, None, None],
                rows[:, None, :, None],
                cols[:, None, None],
            ]
            layers[name] = windows.view(stored.dtype).view(len(place), *bands, *windows.shape[2:])
        return layers


def resident(choice: str, device: torch.device, num_bytes: int) -> str:
    """What ``machine.resident`` comes to for chips of so many bytes: off, ram or device."""
    if choice != "auto":
        return choice
    if device.type != "cuda":
        return "off"
    free, _ = torch.cuda.mem_get_info(device)
    return "device" if num_bytes < free / 2 else "off"


# The loader.


def read_ahead(read: Callable[[int], T], numbers: range, prefetch: int) -> Generator[T]:
    """What ``read`` gives for every number, in order, by a thread that is ``prefetch`` of them
    ahead; 0: when asked. The thread ends with the generator; what it raises is raised here.
    """
    if not prefetch:
        yield from map(read, numbers)
        return
    pool = ThreadPoolExecutor(1, "loader")
    try:
        pending = deque(pool.submit(read, number) for number in numbers[:prefetch])
        for place in range(len(numbers)):
            if place + prefetch < len(numbers):  # into the buffer that has just become free
                pending.append(pool.submit(read, numbers[place + prefetch]))
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


class Loader:
    """The batches of one rank, in order, read ahead by a thread.

    Holds ``machine.prefetch`` + 1 batches and, unless chips are resident, nothing that grows with
    the dataset but the orders of two epochs (8 bytes a chip). ``wait_s`` counts the seconds that
    the consumer has waited for data. For one consumer at a time.
    """

    def __init__(
        self,
        dataset: Dataset,
        config: Config,
        chips_per_epoch: int,
        device: torch.device,
        rank: int = 0,
        num_ranks: int = 1,
    ) -> None:
        """``chips_per_epoch`` are presentations; so is ``training.batch_size``, of all ranks.

        Raises:
            ConfigError: the ranks cannot share the lanes, or chips do not fit where they are to
                be resident.
            DatasetError: a file has gone (where chips are resident).
        """
        training, model = config.training, config.model
        self.training, self.prefetch = training, config.machine.prefetch
        self.rank, self.num_ranks, self.chips_per_epoch = rank, num_ranks, chips_per_epoch
        self.steps_per_epoch = math.ceil(chips_per_epoch / training.batch_size)
        self.wait_s = 0.0
        self._positions(0)  # refuses lanes that cannot be shared, before anything is read
        chips, masks = dataset.indices("train"), training.masks_per_chip
        self._order = lru_cache(2)(
            partial(
                epoch_order,
                chips,
                -(-chips_per_epoch // masks),
                training.seed,
                shuffle_window=training.shuffle_window,
                lanes=training.lanes,
            )
        )
        self._draw = partial(
            draw,
            spare_px=dataset.size_px - model.chip_px,
            num_tokens=(model.chip_px // model.patch_px) ** 2,
            augment=training.augment == "d4",
            seed=training.seed,
            masks_per_chip=masks,
            num_light=num_light(dataset.sensor.num_bands, training.jitter),
        )
        own = chips[rank::num_ranks] if training.lanes > 1 else chips
        num_bytes = len(own) * sum(lies.read_bytes for lies in dataset.layers.values())
        where = resident(config.machine.resident, device, num_bytes)
        reader = RecordReader(dataset)
        self._reader = reader if where == "off" else None
        self._ahead: Iterator[np.ndarray] = iter(())
        kept: _OnDevice | _InMemory | RecordReader = reader
        try:
            if where == "device":
                kept = _OnDevice(dataset, own, device, model.chip_px)
            elif where == "ram":
                kept = _InMemory(dataset, own)
        except (MemoryError, torch.OutOfMemoryError) as error:
            raise ConfigError(
                f"machine.resident {where}: the {len(own)} chips of {dataset.path} that this rank "
                f"reads take {num_bytes / 1e9:.1f} GB, more than there is: set machine.resident=off"
            ) from error
        # A chip's masks may straddle two batches.
        batch = min(training.batch_size, chips_per_epoch)
        most_chips = -(-(-(-batch // masks) + (batch % masks > 0)) // num_ranks)
        self._store = (
            kept
            if isinstance(kept, _OnDevice)
            else _Ring(kept, dataset, device, model.chip_px, self.prefetch + 1, most_chips)
        )

    def steps(self, first: int, last: int) -> Iterator[tuple[int, RawBatch]]:
        """Steps ``first`` to ``last`` (exclusive) with what this rank loads for them.

        A batch on the CPU is good until the next is asked for: its memory is used again. One may
        be empty, where an epoch's last batch has fewer chips than there are ranks. The thread
        ends when the iterator is closed or used up; what it raises is raised here.

        Raises:
            DatasetError: a file has gone or has become shorter.
        """
        steps = range(first, last)

        def read(step: int) -> tuple[_Request, _Buffer]:
            """What a step wants, read as far as that can be done beside the consumer."""
            request = self._request(step)
            if self._reader and self.training.shuffle_window:
                self._read_ahead(self._reader, self.training.shuffle_window, step, steps)
            return request, self._store.fill(step, request)

        with closing(read_ahead(read, steps, self.prefetch)) as ready:
            for step in steps:
                asked = time.perf_counter()
                request, buffer = next(ready)
                self.wait_s += time.perf_counter() - asked
                layers = self._store.take(buffer, request)
                yield step, RawBatch(**layers, draws=request.draws, shows=request.shows)

    def load(self, step: int) -> RawBatch:
        """What this rank loads for one step, out of turn; it keeps its memory."""
        request = self._request(step)
        layers = self._store.take(self._store.fill(None, request), request)
        return RawBatch(**layers, draws=request.draws, shows=request.shows)

    def chips(self, step: int) -> Int64[np.ndarray, " shown"]:
        """The squares that all ranks together show in a step."""
        return self._squares(step, share(*self._span(step), 0, 1))

    def _request(self, step: int) -> _Request:
        positions = self._positions(step)
        epoch, squares = step // self.steps_per_epoch, self._squares(step, positions)
        draws = self._draw(positions, squares, epoch=epoch)
        loaded = positions // self.training.masks_per_chip
        _, first, shows = np.unique(loaded, return_index=True, return_inverse=True)
        return _Request(draws, shows, draws.chip[first], draws.row[first], draws.col[first])

    def _span(self, step: int) -> tuple[int, int]:
        """The positions of all ranks in a step: first, and one past the last."""
        start = step % self.steps_per_epoch * self.training.batch_size
        return start, min(start + self.training.batch_size, self.chips_per_epoch)

    def _positions(self, step: int) -> Int64[np.ndarray, " shown"]:
        """What this rank takes of a step."""
        lanes, masks = self.training.lanes, self.training.masks_per_chip
        return share(*self._span(step), self.rank, self.num_ranks, lanes, masks)

    def _squares(
        self, step: int, positions: Int64[np.ndarray, " shown"]
    ) -> Int64[np.ndarray, " shown"]:
        """The squares shown at some positions of a step's epoch."""
        return self._order(step // self.steps_per_epoch)[positions // self.training.masks_per_chip]

    def _read_ahead(self, reader: RecordReader, window: int, step: int, steps: range) -> None:
        """Ask for the chips of the next shuffle window's worth of steps in the order they lie on
        the disk, a part of them at each of the steps before.
        """

        def chips_of(some: range) -> Int64[np.ndarray, " square"]:
            """The squares that this rank loads in some steps, ascending."""
            squares = [self._squares(each, self._positions(each)) for each in some]
            return np.unique(np.concatenate([np.empty(0, np.int64), *squares]))

        shown = window * self.training.lanes * self.training.masks_per_chip
        num_steps = max(round(shown / self.training.batch_size), 1)
        end = (step // num_steps + 1) * num_steps
        if step == steps.start:
            reader.readahead(chips_of(range(step, min(end, steps.stop))))
        if step == steps.start or step % num_steps == 0:
            ahead = chips_of(range(end, min(end + num_steps, steps.stop)))
            self._ahead = iter(np.array_split(ahead, end - step))
        reader.readahead(next(self._ahead))
