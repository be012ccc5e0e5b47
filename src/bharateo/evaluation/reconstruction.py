"""Reconstructions to look at: what was there, what the model made of it, what a copy gives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from bharateo.chips.store import Dataset
from bharateo.config import ModelConfig
from bharateo.evaluation.baselines import Prediction, nearest_visible
from bharateo.evaluation.evaluate import predict, seen_by_baselines
from bharateo.models.heads import Batch, patch_mode
from bharateo.models.patches import Mask, unpatchify
from bharateo.training.data import Window, fixed_batch, fixed_windows, window_ids
from bharateo.training.run import Run


@dataclass(frozen=True)
class Chip:
    """One chip with its fixed mask, in physical units.

    Token grids have one element a patch; ``hidden`` is True where a patch is masked; classes are
    255 without a label.
    """

    chip: str
    region: str
    split: str
    image: Float[np.ndarray, "band row col"]
    valid: Bool[np.ndarray, "row col"]
    landcover: UInt8[np.ndarray, "row col"]
    hidden: Bool[np.ndarray, "token_row token_col"]
    true_class: UInt8[np.ndarray, "token_row token_col"]


@dataclass(frozen=True)
class Example(Chip):
    """A chip beside what a run and a copy make of its masked patches.

    ``reconstruction`` and ``nearest`` hold the visible patches as given.
    """

    reconstruction: Float[np.ndarray, "band row col"]
    nearest: Float[np.ndarray, "band row col"]
    predicted_class: UInt8[np.ndarray, "token_row token_col"]
    nearest_class: UInt8[np.ndarray, "token_row token_col"]


def examples(run: Run, dataset: Dataset, split: str, count: int) -> list[Example]:
    """Up to ``count`` chips of a split, spread over its regions, those with most classes first."""
    config = run.model.config
    windows = _varied(dataset, split, config.chip_px, count)
    if not windows:
        return []
    batch, mask = fixed_batch(dataset, windows, config)
    prediction, _ = predict(run, batch, mask)
    copied = nearest_visible(seen_by_baselines(run, batch, mask))
    rebuilt, copy = (_picture(run, batch, mask, made) for made in (prediction, copied))
    grid = run.model.grid
    return [
        Example(
            **vars(chip),
            reconstruction=rebuilt[i],
            nearest=copy[i],
            predicted_class=_grid(mask.restore(prediction.classes)[i], grid),
            nearest_class=_grid(mask.restore(copied.classes)[i], grid),
        )
        for i, chip in enumerate(_chips(dataset, split, windows, batch, mask))
    ]


def chips(dataset: Dataset, split: str, model: ModelConfig, count: int) -> list[Chip]:
    """The chips of ``examples``, as they are before there is a run."""
    windows = _varied(dataset, split, model.chip_px, count)
    if not windows:
        return []
    return _chips(dataset, split, windows, *fixed_batch(dataset, windows, model))


def _chips(
    dataset: Dataset, split: str, windows: Sequence[Window], batch: Batch, mask: Mask
) -> list[Chip]:
    ids, chip_px = window_ids(dataset, windows), batch.image.shape[-1]
    grid = math.isqrt(mask.order.shape[1])
    true = patch_mode(batch.class_counts)
    return [
        Chip(
            ids[i],
            ids[i].rsplit("/", 2)[0],
            split,
            batch.image[i].numpy(),
            batch.valid[i].numpy(),
            _landcover(dataset, window, chip_px),
            mask.hidden[i].view(grid, grid).numpy(),
            _grid(true[i], grid),
        )
        for i, window in enumerate(windows)
    ]


def _varied(dataset: Dataset, split: str, chip_px: int, count: int) -> list[Window]:
    """Windows of different stored squares, taking turns between regions."""
    squares = dataset.chips.loc[dataset.indices(split)]
    shares = squares.filter(like="fraction_").to_numpy()
    ranked = squares.assign(num_classes=(shares > 0.02).sum(1))
    ranked = ranked.sort_values(["num_classes", "chip"], ascending=[False, True])
    turn = ranked.groupby("region").cumcount()
    chosen = ranked.assign(turn=turn).sort_values(["turn", "region"]).chip.tolist()[:count]
    per_chip = fixed_windows([0], dataset.size_px, chip_px)
    middle = per_chip[len(per_chip) // 2]
    return [Window(int(chip), middle.row, middle.col) for chip in chosen]


def _picture(
    run: Run, batch: Batch, mask: Mask, prediction: Prediction
) -> Float[np.ndarray, "batch band row col"]:
    """The chips with predicted pixels in the masked patches, in physical units."""
    model = run.model
    given, _ = model.patches(batch.image, batch.valid, mask.visible)
    patches = mask.restore(torch.cat([given, prediction.pixels], 1))
    image = unpatchify(patches, model.config.patch_px, model.grid)
    picture: np.ndarray = model.normalise.physical_units(image).numpy()
    return picture


def _landcover(dataset: Dataset, window: Window, chip_px: int) -> UInt8[np.ndarray, "row col"]:
    rows = slice(window.row, window.row + chip_px)
    return dataset.landcover(window.chip)[rows, window.col : window.col + chip_px]


def _grid(classes: Tensor, grid: int) -> UInt8[np.ndarray, "token_row token_col"]:
    return classes.view(grid, grid).to(torch.uint8).numpy()
