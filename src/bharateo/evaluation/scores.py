"""Scores as sums over blocks of ground, so that every metric and its interval come from one table.

A metric is a ratio of sums. Keeping the sums of each geographic block, the metric of any set of
chips is a sum away, and so is its block bootstrap: neighbouring chips resemble each other, and
resampling them one by one would give intervals that are too narrow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, Int64, Shaped

from bharateo.evaluation.intervals import interval, resampled_blocks
from bharateo.landcover import BHARATEO_CLASSES, NUM_CLASSES
from bharateo.results import Against, Scores

CLASS_MEANS = ("balanced_accuracy", "macro_f1", "esa_balanced_acc_masked", "esa_macro_f1_masked")
"""Metrics that are means over classes."""

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
    whole: Shaped[np.ndarray, "*tail true predicted"] | None = None,
) -> dict[str, Float[np.ndarray, "*lead"]]:
    """Accuracy, balanced accuracy and macro-F1 of confusion matrices of any number of classes.

    Means are over the classes that occur as true ones; what is taken for another class counts as
    missed. Of resampled ground ``whole`` is the matrix of all of it (its axes are the last of
    ``cells``): its classes are those of the mean, and a class that a resample lacks keeps the value
    it has there, so that every resample measures the same thing.
    """
    whole = cells if whole is None else whole
    present = whole.sum(-1) > 0
    here = cells.sum(-1) > 0
    recall = np.where(here, _recall(cells), _recall(whole))
    f1 = np.where(here, _f1(cells), _f1(whole))
    return {
        "accuracy": _accuracy(cells),
        "balanced_accuracy": _ratio(np.where(present, recall, 0).sum(-1), present.sum(-1)),
        "macro_f1": _ratio(np.where(present, f1, 0).sum(-1), present.sum(-1)),
    }


def macro_f1(
    true: Int64[np.ndarray, " example"], predicted: Int64[np.ndarray, " example"]
) -> float:
    """F1 averaged over the classes that occur in ``true``; class ids from 0, without a limit."""
    num_classes = int(max(true.max(), predicted.max())) + 1
    pairs = np.bincount(true * num_classes + predicted, minlength=num_classes**2)
    return float(class_metrics(pairs.reshape(num_classes, num_classes))["macro_f1"])


def one_block_classes(
    cells: Shaped[np.ndarray, "block true predicted"], classes: Sequence[str]
) -> tuple[str, ...]:
    """Names of the true classes that lie in a single block."""
    num_blocks = (cells.sum(-1) > 0).sum(0)
    return tuple(name for name, num in zip(classes, num_blocks, strict=True) if num == 1)


def metrics(
    sums: Float[np.ndarray, "*lead sum"],
    weights: Mapping[str, float],
    whole: Float[np.ndarray, " sum"] | None = None,
) -> dict[str, Float[np.ndarray, "*lead"]]:
    """Every metric of one row of sums, or of many at once; NaN where there is nothing to measure.

    ``weights`` are the heads' weights in ``loss``; ``whole`` is the row of all ground, for means
    over classes of resampled ground (see ``class_metrics``).
    """
    named = {name: sums[..., i] for i, name in enumerate(_FIELDS)}
    masked, visible = _cells(sums)
    smooth_l1 = _ratio(named["smooth_l1"], named["scalars"])
    cross_entropy = _ratio(named["cross_entropy"], named["labelled"])
    loss = np.zeros_like(smooth_l1)
    for head, value in (("pixels", smooth_l1), ("landcover", cross_entropy)):
        loss += weights[head] * value if head in weights else 0.0
    by_class = class_metrics(masked, None if whole is None else _cells(whole)[0])
    return {
        "loss": loss,
        "rec_smooth_l1": smooth_l1,
        "esa_ce": cross_entropy,
        "masked_mae": _ratio(named["absolute"], named["scalars"]),
        "esa_acc": _accuracy(masked + visible),
        "esa_acc_masked": by_class["accuracy"],
        "esa_acc_visible": _accuracy(visible),
        "esa_balanced_acc_masked": by_class["balanced_accuracy"],
        "esa_macro_f1_masked": by_class["macro_f1"],
    }


def report(table: Table, weights: Mapping[str, float], key: str) -> Scores:
    """Metrics of a set of blocks with 95 % intervals over the blocks.

    ``key`` seeds the resampling, so that the same blocks give the same intervals and all
    predictors are resampled alike. ``no_interval`` says which measured metrics have none, and why.
    """
    whole = table.sum(0)
    measured = _with_intervals(
        metrics(whole, weights),
        metrics(resample(table, key), weights, whole),
        metrics(table, weights),
        one_block_classes(_cells(table)[0], [each.name for each in BHARATEO_CLASSES]),
    )
    return Scores(**measured, confusion_masked=_cells(whole)[0].astype(int).tolist())


def against(model: Table, baseline: Table, key: str) -> Against:
    """The model beside a baseline on the same blocks: ratio of masked MAE, gain in accuracy."""

    def compare(ours: np.ndarray, theirs: np.ndarray) -> dict[str, np.ndarray]:
        mine, other = metrics(ours, {}), metrics(theirs, {})
        return {
            "masked_mae_ratio": _ratio(mine["masked_mae"], other["masked_mae"]),
            "esa_acc_masked_gain": mine["esa_acc_masked"] - other["esa_acc_masked"],
        }

    measured = metrics(model, {})
    return Against(**_with_intervals(
        compare(model.sum(0), baseline.sum(0)),
        compare(resample(model, key), resample(baseline, key)),
        {"masked_mae_ratio": measured["masked_mae"],
         "esa_acc_masked_gain": measured["esa_acc_masked"]},
    ))  # fmt: skip


def resample(table: Table, key: str) -> Float[np.ndarray, "resample sum"]:
    """Sums of as many blocks drawn with replacement, once a resample."""
    return resampled_blocks(len(table), key) @ table


def _with_intervals(
    values: Mapping[str, np.ndarray],
    resampled: Mapping[str, Float[np.ndarray, " resample"]],
    by_block: Mapping[str, Float[np.ndarray, " block"]],
    one_block: Sequence[str] = (),
) -> dict[str, Any]:
    record: dict[str, Any] = {}
    reasons = {}
    for name, value in values.items():
        num_blocks = int((~np.isnan(by_block[name])).sum())
        measured = not np.isnan(value)
        alone = one_block if name in CLASS_MEANS else ()
        bounds, reason = interval(value, resampled[name], num_blocks, alone)
        record[name] = float(value) if measured else None
        record[f"{name}_ci95"] = bounds
        if measured and reason:
            reasons[name] = reason
    return record | {"no_interval": reasons}


def _cells(sums: Float[np.ndarray, "*lead sum"]) -> tuple[np.ndarray, np.ndarray]:
    """The confusion matrices of masked and of visible tokens."""
    shape = (*sums.shape[:-1], 2, NUM_CLASSES, NUM_CLASSES)
    cells = sums[..., len(_FIELDS) :].reshape(shape)
    return cells[..., 0, :, :], cells[..., 1, :, :]


def _ratio(total: Numbers, count: Numbers) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(count > 0, total / count, np.nan)


def _accuracy(cells: np.ndarray) -> np.ndarray:
    return _ratio(np.trace(cells, axis1=-2, axis2=-1), cells.sum((-2, -1)))


def _recall(cells: np.ndarray) -> np.ndarray:
    return _ratio(np.diagonal(cells, axis1=-2, axis2=-1), cells.sum(-1))


def _f1(cells: np.ndarray) -> np.ndarray:
    return _ratio(2 * np.diagonal(cells, axis1=-2, axis2=-1), cells.sum(-1) + cells.sum(-2))
