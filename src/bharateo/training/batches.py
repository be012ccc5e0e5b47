"""Windows of stored squares as batches; evaluation's windows and masks, which are fixed.

What training shows is drawn in ``draws`` and read in ``loader``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from bharateo.chips.store import Dataset
from bharateo.config import ModelConfig
from bharateo.landcover import IGNORE, patch_class_counts
from bharateo.models.heads import Batch
from bharateo.models.patches import Mask, mask_from_noise, num_masked
from bharateo.sensor import Sensor


@dataclass(frozen=True)
class Window:
    """A chip cut from a stored square: the square's row in the dataset, the upper left pixel in
    it, and one of the eight symmetries (0: as it is).
    """

    chip: int
    row: int
    col: int
    symmetry: int = 0


def fixed_windows(chips: Sequence[int], size_px: int, chip_px: int) -> list[Window]:
    """Evaluation's windows: as many as fit side by side in a square (rounded), evenly spread."""
    per_side = max(1, round(size_px / chip_px))
    spare = size_px - chip_px
    starts = np.linspace(0, spare, per_side).round() if per_side > 1 else np.array([spare // 2])
    return [
        Window(int(chip), int(row), int(col)) for chip in chips for row in starts for col in starts
    ]


def symmetric(array: Shaped[np.ndarray, "*lead row col"], way: int) -> np.ndarray:
    """One of the eight flips and quarter turns of a square (the dihedral group D4), as a view."""
    if way & 1:
        array = array[..., ::-1]
    if way & 2:
        array = array[..., ::-1, :]
    return array.swapaxes(-1, -2) if way & 4 else array


def cut(dataset: Dataset, windows: Sequence[Window], chip_px: int, patch_px: int) -> Batch:
    """The batch of these windows, in physical units."""
    image = stack(dataset.image, windows, chip_px)
    valid = stack(dataset.valid, windows, chip_px)
    landcover = stack(dataset.landcover, windows, chip_px)
    landcover[~valid] = IGNORE  # no image shows it
    return Batch(
        physical_units(torch.from_numpy(image), dataset.sensor),
        torch.from_numpy(valid),
        torch.from_numpy(patch_class_counts(landcover, patch_px)),
        torch.tensor([window.chip for window in windows]),
    )


def physical_units(stored: Shaped[Tensor, "*shape"], sensor: Sensor) -> Float[Tensor, "*shape"]:
    """Stored values x scale + offset, in the sensor's unit."""
    physical = stored.float().mul_(sensor.scale)
    return physical.add_(sensor.offset) if sensor.offset else physical


def stack(
    layer: Callable[[int], np.ndarray], windows: Sequence[Window], chip_px: int
) -> Shaped[np.ndarray, "window *shape"]:
    """A layer of a dataset (``dataset.image`` and the like) as stored, in one window or more."""
    first = layer(windows[0].chip)
    stacked = np.empty((len(windows), *first.shape[:-2], chip_px, chip_px), first.dtype)
    for out, window in zip(stacked, windows, strict=True):
        rows = slice(window.row, window.row + chip_px)
        cols = slice(window.col, window.col + chip_px)
        out[:] = symmetric(layer(window.chip)[..., rows, cols], window.symmetry)
    return stacked


def evaluation_mask(keys: Sequence[str], num_tokens: int, masked: int) -> Mask:
    """Masks that depend on the windows' ids alone: the same in every run, on every machine."""
    seeds = [hashlib.sha256(key.encode()).digest()[:8] for key in keys]
    noise = [
        np.random.default_rng(int.from_bytes(seed, "little")).random(num_tokens) for seed in seeds
    ]
    return mask_from_noise(torch.from_numpy(np.stack(noise)), masked)


def window_ids(dataset: Dataset, windows: Sequence[Window]) -> list[str]:
    """Ids that name windows by place: ``region/row/col`` of the upper left pixel."""
    region, row, col = (dataset.column(name) for name in ("region", "row", "col"))
    return [
        f"{region[w.chip]}/{int(row[w.chip]) + w.row}/{int(col[w.chip]) + w.col}" for w in windows
    ]


def fixed_batch(
    dataset: Dataset, windows: Sequence[Window], model: ModelConfig
) -> tuple[Batch, Mask]:
    """Fixed windows with the masks that belong to their places."""
    num_tokens = (model.chip_px // model.patch_px) ** 2
    masked = num_masked(num_tokens, model.mask_ratio)
    mask = evaluation_mask(window_ids(dataset, windows), num_tokens, masked)
    return cut(dataset, windows, model.chip_px, model.patch_px), mask


def fixed_batches(
    dataset: Dataset, split: str, model: ModelConfig, batch_size: int
) -> Iterator[tuple[list[Window], Batch, Mask]]:
    """A split's fixed windows with their fixed masks, batch by batch."""
    windows = fixed_windows(dataset.indices(split).tolist(), dataset.size_px, model.chip_px)
    for start in range(0, len(windows), batch_size):
        some = windows[start : start + batch_size]
        yield some, *fixed_batch(dataset, some, model)
