"""Reconstructions to look at: what was there, what the model made of it, what a copy gives."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from bharateo.chips.store import Dataset
from bharateo.evaluation.baselines import Prediction, nearest_visible
from bharateo.evaluation.evaluate import predict, seen_by_baselines
from bharateo.models.heads import Batch, patch_mode
from bharateo.models.patches import Mask, num_masked, unpatchify
from bharateo.training.batches import (
    Window,
    cut,
    evaluation_mask,
    fixed_windows,
    window_ids,
)
from bharateo.training.checkpoint import Run


@dataclass(frozen=True)
class Example:
    """One chip with its fixed mask, as given and as rebuilt, in physical units.

    ``reconstruction`` and ``nearest`` hold the visible patches as given. Token grids have one
    element a patch; ``hidden`` is True where a patch was masked; classes are 255 without a label.
    """

    chip: str
    region: str
    split: str
    image: Float[np.ndarray, "band row col"]
    valid: Bool[np.ndarray, "row col"]
    landcover: UInt8[np.ndarray, "row col"]
    hidden: Bool[np.ndarray, "token_row token_col"]
    reconstruction: Float[np.ndarray, "band row col"]
    nearest: Float[np.ndarray, "band row col"]
    true_class: UInt8[np.ndarray, "token_row token_col"]
    predicted_class: UInt8[np.ndarray, "token_row token_col"]
    nearest_class: UInt8[np.ndarray, "token_row token_col"]


def examples(run: Run, dataset: Dataset, split: str, count: int) -> list[Example]:
    """Up to ``count`` chips of a split, spread over its regions, those with most classes first."""
    windows = _varied(dataset, split, run, count)
    if not windows:
        return []
    config = run.model.config
    batch = cut(dataset, windows, config.chip_px, config.patch_px)
    ids = window_ids(dataset, windows)
    num_tokens = run.model.num_tokens
    mask = evaluation_mask(ids, num_tokens, num_masked(num_tokens, config.mask_ratio))
    prediction, _ = predict(run, batch, mask)
    copied = nearest_visible(seen_by_baselines(run, batch, mask))
    rebuilt, copy = (_picture(run, batch, mask, made) for made in (prediction, copied))
    grid = run.model.grid
    true = patch_mode(batch.class_counts)
    return [
        Example(
            ids[i],
            ids[i].rsplit("/", 2)[0],
            split,
            batch.image[i].numpy(),
            batch.valid[i].numpy(),
            _landcover(dataset, windows[i], config.chip_px),
            mask.hidden[i].view(grid, grid).numpy(),
            rebuilt[i],
            copy[i],
            _grid(true[i], grid),
            _grid(mask.restore(prediction.classes)[i], grid),
            _grid(mask.restore(copied.classes)[i], grid),
        )
        for i in range(len(windows))
    ]


def _varied(dataset: Dataset, split: str, run: Run, count: int) -> list[Window]:
    """Windows of different stored squares, taking turns between regions."""
    chips = dataset.chips.loc[dataset.indices(split)]
    shares = chips.filter(like="fraction_").to_numpy()
    ranked = chips.assign(num_classes=(shares > 0.02).sum(1))
    ranked = ranked.sort_values(["num_classes", "chip"], ascending=[False, True])
    turn = ranked.groupby("region").cumcount()
    chosen = ranked.assign(turn=turn).sort_values(["turn", "region"]).chip.tolist()[:count]
    per_chip = fixed_windows([0], dataset.size_px, run.contract["chip_px"])
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
