"""Chips to paint masks on: held-out ground first, of as many different classes as there are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32, Shaped, UInt8

from bharateo.chips.store import Dataset
from bharateo.explorer.area import AreaView
from bharateo.inference.inputs import RasterInput
from bharateo.landcover import IGNORE, NUM_CLASSES, patch_class_counts, patch_mode
from bharateo.training.data import Window, fixed_windows, stack, window_ids
from bharateo.training.run import Run

MOST_CHIPS = 16
_LEAST_VALID = 0.9
_MOST_WHITE = 0.3
_MOST_WINDOWS = 500


@dataclass(frozen=True)
class StoredChip:
    """A chip as stored: physical value = stored value x ``scale`` + ``offset``, one a band.

    ``labels`` are the patches' classes, 255 without one.
    """

    name: str
    split: str
    stored: Shaped[np.ndarray, "band row col"]
    scale: Float[np.ndarray, " band"]
    offset: Float[np.ndarray, " band"]
    valid: Bool[np.ndarray, "row col"]
    labels: UInt8[np.ndarray, " token"]

    @property
    def image(self) -> Float32[np.ndarray, "band row col"]:
        """The pixels in physical units."""
        values = self.stored * self.scale[:, None, None] + self.offset[:, None, None]
        image: np.ndarray = values.astype(np.float32)
        return image


def chips_of_dataset(run: Run, dataset: Dataset, count: int = MOST_CHIPS) -> list[StoredChip]:
    """Chips of the test split, else of val, else of train."""
    chip_px = run.model.config.chip_px
    split = next(each for each in ("test", "val", "train") if len(dataset.indices(each)))
    squares = dataset.indices(split)
    windows = fixed_windows(squares.tolist(), dataset.size_px, chip_px)
    windows = windows[:: -(-len(windows) // _MOST_WINDOWS)]
    class_ids = stack(dataset.landcover, windows, chip_px)
    clear = np.array([_is_clear(dataset, window, chip_px) for window in windows])
    chosen = varied(class_ids, clear, count)
    labels = patch_mode(patch_class_counts(class_ids[chosen], run.model.config.patch_px))
    some = [windows[i] for i in chosen]
    images, valid = (stack(layer, some, chip_px) for layer in (dataset.image, dataset.valid))
    sensor = dataset.sensor
    scale = np.full(sensor.num_bands, sensor.scale)
    offset = np.full(sensor.num_bands, sensor.offset)
    return [
        StoredChip(name, split, image, scale, offset, known, classes)
        for name, image, known, classes in zip(
            window_ids(dataset, some), images, valid, labels, strict=True
        )
    ]


def chips_of_raster(
    run: Run, source: RasterInput, area: AreaView, count: int = MOST_CHIPS
) -> list[StoredChip]:
    """Chips side by side in the area, told apart by the classes that the run sees in them."""
    chip_px, patch_px = run.model.config.chip_px, run.model.config.patch_px
    height, width = area.geobox.shape
    shift = ~source.geobox.affine @ area.geobox.affine
    top, left = round(shift.f), round(shift.c)
    starts = [
        (row, col)
        for row in range(0, height - chip_px + 1, chip_px)
        for col in range(0, width - chip_px + 1, chip_px)
    ]
    if not starts:
        return []
    mapped = np.full((-(-height // patch_px), -(-width // patch_px)), IGNORE, np.uint8)
    patches = area.patches
    if patches.probabilities is not None:
        best = patches.probabilities.argmax(1)
        mapped[patches.row // patch_px, patches.col // patch_px] = best
    side = chip_px // patch_px
    seen = [
        mapped[row // patch_px : row // patch_px + side, col // patch_px : col // patch_px + side]
        for row, col in starts
    ]
    chosen = varied(np.stack(seen), np.ones(len(starts), bool), count)
    chips = []
    for row, col in (starts[i] for i in chosen):
        stored, valid = source.pixels.read(top + row, left + col, chip_px, chip_px)
        labels = np.full(side**2, IGNORE, np.uint8)
        name = f"{area.name}/{top + row}/{left + col}"
        chips.append(StoredChip(name, "", stored, source.scale, source.offset, valid, labels))
    return chips


def varied(
    class_ids: UInt8[np.ndarray, "chip row col"], clear: Bool[np.ndarray, " chip"], count: int
) -> list[int]:
    """Some chips: the commonest classes take turns, chips with many classes come first.

    Chips that are not ``clear`` come last.
    """
    counts = np.stack([np.bincount(each.ravel(), minlength=256) for each in class_ids])
    shares = counts[:, :NUM_CLASSES] / class_ids[0].size
    commonest = np.where(shares.any(1), shares.argmax(1), IGNORE)
    ranked = np.lexsort((-(shares > 0.02).sum(1), commonest == IGNORE, ~clear))
    taken: dict[int, int] = {}
    turns = []
    for place, chip in enumerate(ranked.tolist()):
        turn = taken.get(int(commonest[chip]), 0)
        taken[int(commonest[chip])] = turn + 1
        turns.append((not clear[chip], commonest[chip] == IGNORE, turn, place, chip))
    return [chip for *_, chip in sorted(turns)[:count]]


def _is_clear(dataset: Dataset, window: Window, chip_px: int) -> bool:
    """Whether there is something to see: few pixels are missing, few are drawn white."""
    sensor = dataset.sensor
    (image,), (valid,) = (
        stack(layer, [window], chip_px) for layer in (dataset.image, dataset.valid)
    )
    shown = image[list(sensor.composite_indices())]
    high = sensor.composites[sensor.default_composite].high
    white = (shown * sensor.scale + sensor.offset >= high).all(0)
    return bool(valid.mean() >= _LEAST_VALID and white.mean() <= _MOST_WHITE)
