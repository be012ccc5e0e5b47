"""Scores as sums over blocks of ground, so that every metric and its interval come from one table.

A metric is a ratio of sums. Keeping the sums of each geographic block, the metric of any set of
chips is a sum away, and so is its block bootstrap: neighbouring chips resemble each other, and
resampling them one by one would give intervals that are too narrow.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, Int64, Shaped

from bharateo.landcover import NUM_CLASSES

NUM_RESAMPLES = 1000
LEVEL = 0.95

_FIELDS = ("smooth_l1", "absolute", "scalars", "cross_entropy", "labelled")
_CELLS = NUM_CLASSES**2
_WIDTH = len(_FIELDS) + 2 * _CELLS
Table = Float[np.ndarray, "block sum"]
Numbers = np.ndarray | np.number


@dataclass
class BlockSums:
    """The sums of one predictor, by block.

    A row holds: summed SmoothL1 and absolute error of masked scalars and their number, summed
    cross-entropy and number of labelled tokens, then the confusion matrices (true class, then
    predicted) of masked and of visible tokens.
    """

    rows: dict[str, Float[np.ndarray, " sum"]] = field(default_factory=dict)

    def add(
        self,
        block: str,
        sums: Mapping[str, float],
        masked: Int64[np.ndarray, "true predicted"],
        visible: Int64[np.ndarray, "true predicted"],
    ) -> None:
        """Add one chip's sums (named as in the class's docstring) to its block."""
        row = self.rows.setdefault(block, np.zeros(_WIDTH))
        row[: len(_FIELDS)] += [sums.get(name, np.nan) for name in _FIELDS]
        row[len(_FIELDS) :] += np.concatenate([masked.reshape(-1), visible.reshape(-1)])

    def table(self, blocks: list[str]) -> Table:
        """The rows of these blocks."""
        return np.stack([self.rows[block] for block in blocks])


def confusion(
    true: Int64[np.ndarray, " token"], predicted: Int64[np.ndarray, " token"]
) -> Int64[np.ndarray, "true predicted"]:
    """Counts of (true, predicted) class pairs, tokens without a label left out."""
    labelled = true < NUM_CLASSES
    pairs = true[labelled] * NUM_CLASSES + predicted[labelled]
    return np.bincount(pairs, minlength=_CELLS).reshape(NUM_CLASSES, NUM_CLASSES)


def class_metrics(
    cells: Shaped[np.ndarray, "*lead true predicted"],
) -> dict[str, Float[np.ndarray, "*lead"]]:
    """Accuracy, balanced accuracy and macro-F1 of confusion matrices of any number of classes.

    Means over classes are over those that occur; what is taken for another one counts as missed.
    """
    recall = _recall(cells)
    return {
        "accuracy": _accuracy(cells),
        "balanced_accuracy": _mean_of_defined(recall),
        "macro_f1": _mean_of_defined(np.where(np.isnan(recall), np.nan, _f1(cells))),
    }


def metrics(
    sums: Float[np.ndarray, "*lead sum"], weights: Mapping[str, float]
) -> dict[str, Float[np.ndarray, "*lead"]]:
    """Every metric of one row of sums, or of many at once; NaN where there is nothing to measure.

    ``weights`` are the heads' weights in ``loss``.
    """
    named = {name: sums[..., i] for i, name in enumerate(_FIELDS)}
    cells = sums[..., len(_FIELDS) :].reshape(*sums.shape[:-1], 2, NUM_CLASSES, NUM_CLASSES)
    masked, visible = cells[..., 0, :, :], cells[..., 1, :, :]
    smooth_l1 = _ratio(named["smooth_l1"], named["scalars"])
    cross_entropy = _ratio(named["cross_entropy"], named["labelled"])
    loss = np.zeros_like(smooth_l1)
    for head, value in (("pixels", smooth_l1), ("landcover", cross_entropy)):
        loss += weights[head] * value if head in weights else 0.0
    recall, f1 = _recall(masked), _f1(masked)
    return {
        "loss": loss,
        "rec_smooth_l1": smooth_l1,
        "esa_ce": cross_entropy,
        "masked_mae": _ratio(named["absolute"], named["scalars"]),
        "esa_acc": _accuracy(masked + visible),
        "esa_acc_masked": _accuracy(masked),
        "esa_acc_visible": _accuracy(visible),
        "esa_balanced_acc_masked": _mean_of_defined(recall),
        "esa_macro_f1_masked": _mean_of_defined(f1),
    }


def report(table: Table, weights: Mapping[str, float], key: str) -> dict[str, Any]:
    """Metrics of a set of blocks with 95 % block-bootstrap intervals, as plain JSON.

    ``key`` seeds the resampling, so that the same blocks give the same intervals and all
    predictors are resampled alike.
    """
    values = metrics(table.sum(0), weights)
    spread = metrics(resample(table, key), weights) if len(table) > 1 else {}
    record: dict[str, Any] = {}
    for name, value in values.items():
        record[name] = _number(value)
        record[f"{name}_ci95"] = _interval(spread.get(name))
    cells = table.sum(0)[len(_FIELDS) : len(_FIELDS) + _CELLS]
    record["confusion_masked"] = cells.astype(int).reshape(NUM_CLASSES, NUM_CLASSES).tolist()
    return record


def against(model: Table, baseline: Table, key: str) -> dict[str, Any]:
    """The model beside a baseline on the same blocks: ratio of masked MAE, gain in accuracy."""

    def compare(ours: np.ndarray, theirs: np.ndarray) -> dict[str, Numbers]:
        mine, other = metrics(ours, {}), metrics(theirs, {})
        return {
            "masked_mae_ratio": _ratio(mine["masked_mae"], other["masked_mae"]),
            "esa_acc_masked_gain": mine["esa_acc_masked"] - other["esa_acc_masked"],
        }

    values = compare(model.sum(0), baseline.sum(0))
    spread = compare(resample(model, key), resample(baseline, key)) if len(model) > 1 else {}
    record: dict[str, Any] = {}
    for name, value in values.items():
        record[name] = _number(value)
        record[f"{name}_ci95"] = _interval(spread.get(name))
    return record


def resample(table: Table, key: str) -> Float[np.ndarray, "resample sum"]:
    """Sums of as many blocks drawn with replacement, ``NUM_RESAMPLES`` times."""
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little")
    num_blocks = len(table)
    draws = np.random.default_rng(seed).multinomial(
        num_blocks, np.full(num_blocks, 1 / num_blocks), NUM_RESAMPLES
    )
    return draws @ table


def _ratio(total: Numbers, count: Numbers) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(count > 0, total / count, np.nan)


def _accuracy(cells: np.ndarray) -> np.ndarray:
    return _ratio(np.trace(cells, axis1=-2, axis2=-1), cells.sum((-2, -1)))


def _recall(cells: np.ndarray) -> np.ndarray:
    return _ratio(np.diagonal(cells, axis1=-2, axis2=-1), cells.sum(-1))


def _f1(cells: np.ndarray) -> np.ndarray:
    return _ratio(2 * np.diagonal(cells, axis1=-2, axis2=-1), cells.sum(-1) + cells.sum(-2))


def _mean_of_defined(values: np.ndarray) -> np.ndarray:
    defined = ~np.isnan(values)
    return _ratio(np.where(defined, values, 0).sum(-1), defined.sum(-1))


def _number(value: Numbers) -> float | None:
    return None if np.isnan(value) else float(value)


def _interval(values: Numbers | None) -> list[float] | None:
    if values is None or np.isnan(values).all():
        return None
    tail = (1 - LEVEL) / 2
    low, high = np.nanquantile(values, [tail, 1 - tail])
    return [float(low), float(high)]
