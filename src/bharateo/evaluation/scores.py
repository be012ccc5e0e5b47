"""Scores as sums over blocks of ground, so that every metric and its interval come from one table.

A metric is a ratio of sums. Keeping the sums of each geographic block, the metric of any set of
chips is a sum away, and so is its block bootstrap: neighbouring chips resemble each other, and
resampling them one by one would give intervals that are too narrow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Int64, Shaped

from bharateo.evaluation.intervals import LEAST_BLOCKS, interval, resampled_blocks
from bharateo.landcover import NUM_CLASSES
from bharateo.results import Against, Scores

if TYPE_CHECKING:
    from bharateo.models.heads import Head

CLASS_MEANS = ("balanced_accuracy", "macro_f1", "mean_iou")
"""Metrics that are means over classes."""

Sums = dict[str, np.ndarray]
"""Of some ground, or of much at once: metric -> (sum, count), and the key of a confusion matrix ->
counts of (true class, predicted class)."""
Numbers = np.ndarray | np.number


@dataclass(frozen=True)
class Scoring:
    """What a head's predictions are scored by, and its weight in the loss."""

    weight: float
    head: type[Head]


@dataclass
class BlockSums:
    """The sums of one predictor, by block."""

    rows: dict[str, Sums] = field(default_factory=dict)

    def add(self, block: str, sums: Mapping[str, Shaped[np.ndarray, "*shape"]]) -> None:
        """Add one chip's sums to its block."""
        row = self.rows.setdefault(block, {})
        for name, values in sums.items():
            row[name] = row.get(name, 0.0) + values.astype(np.float64)

    def table(self, blocks: Sequence[str]) -> Sums:
        """The sums of these blocks, (block, ...)."""
        first = self.rows[blocks[0]]
        return {name: np.stack([self.rows[block][name] for block in blocks]) for name in first}


def confusion(
    true: Int64[np.ndarray, " token"], predicted: Int64[np.ndarray, " token"]
) -> Int64[np.ndarray, "true predicted"]:
    """Counts of (true, predicted) class pairs, tokens without a label left out."""
    labelled = true < NUM_CLASSES
    pairs = true[labelled] * NUM_CLASSES + predicted[labelled]
    return np.bincount(pairs, minlength=NUM_CLASSES**2).reshape(NUM_CLASSES, NUM_CLASSES)


def class_metrics(
    cells: Shaped[np.ndarray, "*lead true predicted"],
    whole: Shaped[np.ndarray, "*tail true predicted"] | None = None,
    counted: Bool[np.ndarray, " true"] | None = None,
) -> dict[str, Float[np.ndarray, "*lead"]]:
    """Accuracy, balanced accuracy and macro-F1 of confusion matrices of any number of classes.

    Means are over the classes that occur as true ones; what is taken for another class counts as
    missed. Of resampled ground ``whole`` is the matrix of all of it (its axes are the last of
    ``cells``): its classes are those of the mean, and a class that a resample lacks keeps the value
    it has there, so that every resample measures the same thing. ``counted`` are the classes that
    means are over, where not all that occur are.
    """
    whole = cells if whole is None else whole
    here = cells.sum(-1) > 0
    recall = np.where(here, _recall(cells), _recall(whole))
    f1 = np.where(here, _f1(cells), _f1(whole))
    return {
        "accuracy": _accuracy(cells),
        "balanced_accuracy": _class_mean(recall, whole, counted),
        "macro_f1": _class_mean(f1, whole, counted),
    }


def mean_iou(
    cells: Shaped[np.ndarray, "*lead true predicted"],
    whole: Shaped[np.ndarray, "*tail true predicted"] | None = None,
    counted: Bool[np.ndarray, " true"] | None = None,
) -> Float[np.ndarray, "*lead"]:
    """Intersection over union, the mean over classes as in ``class_metrics``."""
    whole = cells if whole is None else whole
    f1 = np.where(cells.sum(-1) > 0, _f1(cells), _f1(whole))
    return _class_mean(f1 / (2 - f1), whole, counted)


def _class_mean(
    values: Float[np.ndarray, "*lead true"], whole: np.ndarray, counted: np.ndarray | None
) -> Float[np.ndarray, "*lead"]:
    present = whole.sum(-1) > 0
    if counted is not None:
        present = present & counted
    return _divided(np.where(present, values, 0).sum(-1), present.sum(-1))


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


def common_classes(
    cells: Shaped[np.ndarray, "block true predicted"],
) -> Bool[np.ndarray, " true"]:
    """The true classes that lie in ``LEAST_BLOCKS`` blocks or more: how much their part of a mean
    varies between blocks can be told. All that occur, where fewer than two lie in as many.
    """
    num_blocks = (cells.sum(-1) > 0).sum(0)
    common: np.ndarray = num_blocks >= LEAST_BLOCKS
    return common if common.sum() >= 2 else num_blocks > 0


def metrics(
    sums: Sums, tasks: Mapping[str, Scoring], whole: Sums | None = None
) -> dict[str, Float[np.ndarray, "*lead"]]:
    """``loss`` and every metric of sums; NaN where there is nothing to measure.

    ``whole`` are the sums of all ground, for means over classes of resampled ground (see
    ``class_metrics``). The parts of the loss stand first.
    """
    losses = {task.head.loss_metric: ratio(sums[task.head.loss_metric]) for task in tasks.values()}
    total = sum(task.weight * losses[task.head.loss_metric] for task in tasks.values())
    found = {"loss": np.asarray(total), **losses}
    for task in tasks.values():
        key = task.head.confusion_key
        by_class = class_metrics(sums[key], None if whole is None else whole[key]) if key else {}
        for metric in task.head.metrics:
            mean = metric.mean_over_classes
            found[metric.name] = by_class[mean] if mean else ratio(sums[metric.name])
    return found


def report(table: Sums, tasks: Mapping[str, Scoring], key: str) -> Scores:
    """Metrics of a set of blocks with 95 % intervals over the blocks.

    ``key`` seeds the resampling, so that the same blocks give the same intervals and all
    predictors are resampled alike. ``no_interval`` says which measured metrics have none, and why.
    """
    whole = {name: sums.sum(0) for name, sums in table.items()}
    one_block: dict[str, Sequence[str]] = {}
    counts: dict[str, Any] = {}
    for task in tasks.values():
        if not task.head.confusion_key:
            continue
        cells = table[task.head.confusion_key]
        alone = one_block_classes(cells, [each.name for each in task.head.classes])
        one_block |= {each.name: alone for each in task.head.metrics if each.mean_over_classes}
        counts[task.head.confusion_key] = cells.sum(0).astype(int).tolist()
    figures = _with_intervals(
        metrics(whole, tasks),
        metrics(resample(table, key), tasks, whole),
        metrics(table, tasks),
        one_block,
    )
    return Scores(**figures, **counts)


def against(model: Sums, baseline: Sums, tasks: Mapping[str, Scoring], key: str) -> Against:
    """The model beside a baseline on the same blocks, by the metrics that are set against it."""
    compared = [each for task in tasks.values() for each in task.head.metrics if each.against]

    def compare(ours: Sums, theirs: Sums) -> dict[str, np.ndarray]:
        found = {}
        for metric in compared:
            mine, other = ratio(ours[metric.name]), ratio(theirs[metric.name])
            name = f"{metric.name}_{metric.against}"
            set_off = _divided(mine, other) if metric.against == "ratio" else mine - other
            found[name] = np.asarray(set_off)
        return found

    wholes = ({name: sums.sum(0) for name, sums in table.items()} for table in (model, baseline))
    return Against(**_with_intervals(
        compare(*wholes),
        compare(resample(model, key), resample(baseline, key)),
        {f"{each.name}_{each.against}": ratio(model[each.name]) for each in compared},
    ))  # fmt: skip


def resample(table: Sums, key: str) -> Sums:
    """Sums of as many blocks drawn with replacement, once a resample."""
    draws = resampled_blocks(len(next(iter(table.values()))), key)
    return {name: np.tensordot(draws, sums, 1) for name, sums in table.items()}


def _with_intervals(
    values: Mapping[str, np.ndarray],
    resampled: Mapping[str, Float[np.ndarray, " resample"]],
    by_block: Mapping[str, Float[np.ndarray, " block"]],
    one_block: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> dict[str, Any]:
    """Figures with their intervals, and why others have none; ``one_block`` are a metric's classes
    that lie in a single block.
    """
    figures: dict[str, Any] = {}
    reasons = {}
    for name, value in values.items():
        num_blocks = int((~np.isnan(by_block[name])).sum())
        measured = not np.isnan(value)
        bounds, reason = interval(value, resampled[name], num_blocks, one_block.get(name, ()))
        figures[name] = float(value) if measured else None
        figures[f"{name}_ci95"] = bounds
        if measured and reason:
            reasons[name] = reason
    return {"no_interval": reasons, **figures}


def ratio(sums: Float[np.ndarray, "*lead sum"]) -> Float[np.ndarray, "*lead"]:
    """A metric of its (sum, count), NaN where there is nothing to measure."""
    return _divided(sums[..., 0], sums[..., 1])


def _divided(total: Numbers, count: Numbers) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(count > 0, total / count, np.nan)


def _accuracy(cells: np.ndarray) -> np.ndarray:
    return _divided(np.trace(cells, axis1=-2, axis2=-1), cells.sum((-2, -1)))


def _recall(cells: np.ndarray) -> np.ndarray:
    return _divided(np.diagonal(cells, axis1=-2, axis2=-1), cells.sum(-1))


def _f1(cells: np.ndarray) -> np.ndarray:
    return _divided(2 * np.diagonal(cells, axis1=-2, axis2=-1), cells.sum(-1) + cells.sum(-2))
