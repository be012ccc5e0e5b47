"""Reconstructions to look at: what was there, what the model made of it, what a copy gives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Real, Shaped, UInt8
from torch import Tensor

from bharateo.chips.store import Dataset
from bharateo.config import ModelConfig
from bharateo.evaluation.evaluate import MODEL, predictions
from bharateo.landcover import IGNORE
from bharateo.models.heads import Batch, Layer, patch_mode
from bharateo.models.patches import Mask, unpatchify
from bharateo.training.data import Window, fixed_batch, fixed_windows, window_ids
from bharateo.training.run import Run


@dataclass(frozen=True)
class MaskedChip:
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
class Made:
    """A layer of a head on one chip: class ids of the patches (255 without a label), or values of
    patches or pixels (NaN where nothing is known). The model's and the copy's are whole, and
    only hidden patches of them are judged.
    """

    layer: Layer
    true: Real[np.ndarray, "row col"]
    predicted: Real[np.ndarray, "row col"]
    nearest: Real[np.ndarray, "row col"]


@dataclass(frozen=True)
class Example(MaskedChip):
    """A chip beside what a run and a copy make of its masked patches.

    ``reconstruction`` and ``nearest`` hold the visible patches as given; None of a run that does
    not rebuild the image. ``layers`` are what its heads say besides.
    """

    reconstruction: Float[np.ndarray, "band row col"] | None
    nearest: Float[np.ndarray, "band row col"] | None
    layers: tuple[Made, ...] = ()


def reconstruct(run: Run, dataset: Dataset, split: str, count: int) -> list[Example]:
    """Up to ``count`` chips of a split, spread over its regions, those with most classes first."""
    config = run.model.config
    windows = _varied(dataset, split, config.chip_px, count)
    if not windows:
        return []
    batch, mask = fixed_batch(dataset, windows, config)
    made = predictions(run, batch, mask, ("nearest_visible",))
    pictures: dict[str, np.ndarray] = {}
    layers: list[list[Made]] = [[] for _ in windows]
    for name, head in run.heads.by_name().items():
        three = (head.target(batch, run.model), made[MODEL][name], made["nearest_visible"][name])
        if head.rebuilds_image:
            pictures = {
                "reconstruction": _picture(run, batch, mask, three[1]),
                "nearest": _picture(run, batch, mask, three[2]),
            }
        first = 0
        for layer in head.layers():
            values = slice(first, first + layer.num_values)
            first = values.stop
            drawn = [_drawn(layer, each[..., values], run.model.grid) for each in three]
            for own, *some in zip(layers, *drawn, strict=True):
                own.append(Made(layer, *some))
    return [
        Example(
            **vars(chip),
            reconstruction=pictures["reconstruction"][i] if pictures else None,
            nearest=pictures["nearest"][i] if pictures else None,
            layers=tuple(layers[i]),
        )
        for i, chip in enumerate(_chips(dataset, split, windows, batch, mask))
    ]


def _drawn(
    layer: Layer, values: Shaped[Tensor, "batch token value"], grid: int
) -> Real[np.ndarray, "batch row col"]:
    """A layer's values as rows and columns of patches or of pixels; classes by their ids."""
    if layer.classes:
        unknown = values.nan_to_num().eq(0).all(2)  # a target without a label
        ids = torch.tensor([each.id for each in layer.classes], dtype=torch.uint8)
        values = ids[values.argmax(2)].masked_fill(unknown, IGNORE)[..., None]
    drawn: np.ndarray = unpatchify(values, math.isqrt(values.shape[2]), grid)[:, 0].numpy()
    return drawn


def chips(dataset: Dataset, split: str, model: ModelConfig, count: int) -> list[MaskedChip]:
    """The chips of ``reconstruct``, as they are before there is a run."""
    windows = _varied(dataset, split, model.chip_px, count)
    if not windows:
        return []
    return _chips(dataset, split, windows, *fixed_batch(dataset, windows, model))


def _chips(
    dataset: Dataset, split: str, windows: Sequence[Window], batch: Batch, mask: Mask
) -> list[MaskedChip]:
    ids, chip_px = window_ids(dataset, windows), batch.image.shape[-1]
    grid = math.isqrt(mask.order.shape[1])
    true = patch_mode(batch.class_counts)
    return [
        MaskedChip(
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
    run: Run, batch: Batch, mask: Mask, predicted: Float[Tensor, "batch token value"]
) -> Float[np.ndarray, "batch band row col"]:
    """The chips with predicted pixels (model units) in the masked patches, in physical units."""
    model = run.model
    every = torch.arange(model.num_tokens).expand_as(mask.order)
    given, _ = model.patches(batch.image, batch.valid, every)
    patches = torch.where(mask.hidden[..., None], predicted, given)
    image = unpatchify(patches, model.config.patch_px, model.grid)
    picture: np.ndarray = model.normalise.physical_units(image).numpy()
    return picture


def _landcover(dataset: Dataset, window: Window, chip_px: int) -> UInt8[np.ndarray, "row col"]:
    rows = slice(window.row, window.row + chip_px)
    return dataset.landcover(window.chip)[rows, window.col : window.col + chip_px]


def _grid(classes: Tensor, grid: int) -> UInt8[np.ndarray, "token_row token_col"]:
    return classes.view(grid, grid).to(torch.uint8).numpy()
