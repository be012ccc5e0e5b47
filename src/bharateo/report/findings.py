"""What ``evaluation.json`` says, in words and table rows: no drawing, no HTML.

A metric is always shown with the baselines beside it, and accuracy on masked patches is never
mixed with accuracy on visible ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from bharateo.landcover import NUM_CLASSES

SPLIT_ORDER = ("test", "val", "train")
"""From the most to the least telling."""

MODEL = "model"
BAR = "nearest_visible"
"""The baseline a model must beat: every masked patch copied from the nearest visible one."""

METHOD_NAMES = {
    MODEL: "this model",
    BAR: "nearest-visible copy",
    "bilinear": "bilinear fill",
    "mean_colour": "mean colour",
    "majority": "majority class",
}


@dataclass(frozen=True)
class Metric:
    """A quantity of the evaluation: its key, heading, whether more is better, and its meaning.

    ``ranked`` is False where baselines are told what the model has to find out: visible classes.
    """

    key: str
    title: str
    higher_is_better: bool
    percent: bool
    meaning: str
    ranked: bool = True

    def show(self, value: float) -> str:
        """A value as printed."""
        return f"{100 * value:.1f} %" if self.percent else f"{value:.4f}"


MASKED_MAE = Metric(
    "masked_mae", "Masked MAE", False, False,
    "mean absolute error over pixels and bands of masked patches, in the unit of the input",
)  # fmt: skip
MASKED_ACCURACY = Metric(
    "esa_acc_masked", "Accuracy, masked", True, True,
    "masked patches whose most frequent class is named right",
)  # fmt: skip
BALANCED_ACCURACY = Metric(
    "esa_balanced_acc_masked", "Balanced accuracy, masked", True, True,
    "the same for each class by itself, then averaged over the classes that occur",
)  # fmt: skip
METRICS = (
    MASKED_MAE,
    MASKED_ACCURACY,
    BALANCED_ACCURACY,
    Metric(
        "esa_macro_f1_masked", "Macro F1, masked", True, True,
        "harmonic mean of precision and recall of each class, averaged over the classes that occur",
    ),
    Metric(
        "esa_acc_visible", "Accuracy, visible", True, True,
        "the same for patches the model was shown: reading, not inference", ranked=False,
    ),
    Metric(
        "esa_acc", "Accuracy, all", True, True,
        "masked and visible together, the number usually quoted; it flatters", ranked=False,
    ),
)  # fmt: skip

Scores = Mapping[str, Any]


@dataclass(frozen=True)
class Cell:
    """A value of a table with its interval; ``best`` marks the column's best as printed."""

    value: str
    interval: str
    best: bool


@dataclass(frozen=True)
class MethodRow:
    """One method's line of a metrics table; a cell is None where nothing was measured."""

    method: str
    name: str
    cells: tuple[Cell | None, ...]


@dataclass(frozen=True)
class Comparison:
    """The model against the nearest-visible copy on one metric, measured on the same chips.

    ``difference`` says how far apart they are, with the interval of that difference;
    ``certain`` whether the interval excludes "no difference", None without an interval.
    """

    metric: Metric
    model: float
    bar: float
    difference: str
    certain: bool | None

    @property
    def outcome(self) -> Literal["better", "worse", "equal"]:
        """Judged on the values as printed, so that words and table agree."""
        if self.metric.show(self.model) == self.metric.show(self.bar):
            return "equal"
        return "better" if (self.model > self.bar) == self.metric.higher_is_better else "worse"


def splits(evaluation: Mapping[str, Any]) -> list[str]:
    """The evaluated splits, the most telling first."""
    there = evaluation["splits"]
    return [s for s in SPLIT_ORDER if s in there] + [s for s in there if s not in SPLIT_ORDER]


def methods(scores: Scores) -> dict[str, Scores]:
    """The model and its baselines, in the order tables have them."""
    every = {MODEL: scores["model"], **scores["baselines"]}
    order = [*(m for m in METHOD_NAMES if m in every), *(m for m in every if m not in METHOD_NAMES)]
    return {method: every[method] for method in order}


def method_name(method: str) -> str:
    """A method's name for readers."""
    return METHOD_NAMES.get(method, method.replace("_", " "))


def interval(scores: Scores, metric: Metric) -> tuple[float, float] | None:
    """The 95 % interval of a metric, if there is one."""
    bounds = scores.get(f"{metric.key}_ci95")
    if not bounds or None in bounds:
        return None
    return float(bounds[0]), float(bounds[1])


def no_intervals(scores: Scores) -> list[str]:
    """Which metrics of the model have no interval, and why, a phrase a reason."""
    model = scores["model"]
    names: dict[str, list[str]] = {}
    for metric in METRICS:
        if reason := (model.get("no_interval") or {}).get(metric.key):
            names.setdefault(reason, []).append(metric.title)
    measured = sum(_has(model, metric) for metric in METRICS)
    return [
        f"no interval ({why})" if len(some) == measured
        else f"no interval of {', '.join(some)} ({why})"
        for why, some in names.items()
    ]  # fmt: skip


def metric_rows(scores: Scores, metrics: Sequence[Metric] = METRICS) -> list[MethodRow]:
    """A table of one split, or one region of it: a row for every method, best values marked."""
    best = [_best(scores, metric) for metric in metrics]
    return [
        MethodRow(
            method,
            method_name(method),
            tuple(_cell(own, metric, top) for metric, top in zip(metrics, best, strict=True)),
        )
        for method, own in methods(scores).items()
    ]


def _best(scores: Scores, metric: Metric) -> str | None:
    values = [own[metric.key] for own in methods(scores).values() if _has(own, metric)]
    if len(values) < 2 or not metric.ranked:
        return None
    return metric.show(max(values) if metric.higher_is_better else min(values))


def _cell(scores: Scores, metric: Metric, best: str | None) -> Cell | None:
    if not _has(scores, metric):
        return None
    value, bounds = metric.show(scores[metric.key]), interval(scores, metric)
    text = "" if bounds is None else span(metric, bounds)
    return Cell(value, text, value == best)


def span(metric: Metric, bounds: tuple[float, float]) -> str:
    """An interval as printed, e.g. ``71.0 to 78.2 %``."""
    low, high = (metric.show(bound) for bound in bounds)
    return f"{low.removesuffix(' %')} to {high}"


def _has(scores: Scores, metric: Metric) -> bool:
    return scores.get(metric.key) is not None


def comparisons(scores: Scores) -> list[Comparison]:
    """The model against the copy, on masked accuracy and masked MAE where both were measured."""
    model, bar = scores["model"], scores["baselines"].get(BAR, {})
    paired = scores.get(f"{MODEL}_against_{BAR}", {})
    found = []
    for metric, key, neutral, show in (
        (MASKED_ACCURACY, "esa_acc_masked_gain", 0.0, _points),
        (MASKED_MAE, "masked_mae_ratio", 1.0, _times),
    ):
        if not (_has(model, metric) and _has(bar, metric)):
            continue
        value, bounds = paired.get(key), paired.get(f"{key}_ci95")
        certain = None if not bounds else not bounds[0] <= neutral <= bounds[1]
        difference = "" if value is None else show(value, bounds)
        found.append(Comparison(metric, model[metric.key], bar[metric.key], difference, certain))
    return found


def _points(gain: float, bounds: Sequence[float] | None) -> str:
    text = f"{100 * gain:+.1f} percentage points"
    if bounds:
        text += f" (95 % interval {100 * bounds[0]:+.1f} to {100 * bounds[1]:+.1f})"
    return text.replace("-", "−")


def _times(ratio: float, bounds: Sequence[float] | None) -> str:
    text = f"{ratio:.3f} times the copy's error"
    return text + (f" (95 % interval {bounds[0]:.3f} to {bounds[1]:.3f})" if bounds else "")


def verdict(scores: Scores) -> str:
    """The outcome against the nearest-visible copy in a few plain sentences."""
    found = comparisons(scores)
    if not found:
        return "It cannot be compared with the nearest-visible copy: nothing was measured for both."
    sentences = (
        _judge(found),
        _certainty(found, scores),
        _class_by_class(scores, found),
        _better_rule(scores),
    )
    return " ".join(sentence for sentence in sentences if sentence)


def _judge(found: Sequence[Comparison]) -> str:
    outcomes = {comparison.outcome for comparison in found}
    if outcomes == {"better"}:
        return "The model beats the copy" + (" on both." if len(found) == 2 else ".")
    if outcomes == {"worse"}:
        return (
            "The model loses to the copy"
            + (" on both" if len(found) == 2 else "")
            + ": what it learnt is not yet worth more than looking next door."
        )
    if outcomes == {"equal"}:
        return "The model and the copy come out equal."
    parts = ", ".join(f"{c.outcome} on {_short(c.metric)}" for c in found)
    return f"Against the copy the model is {parts}."


def _short(metric: Metric) -> str:
    return "patch classes" if metric is MASKED_ACCURACY else "pixels"


def _certainty(found: Sequence[Comparison], scores: Scores) -> str:
    judged = [comparison for comparison in found if comparison.outcome != "equal"]
    if any(comparison.certain is None for comparison in judged):
        return (
            f"Too few blocks for an interval ({scores['num_blocks']} of test ground), so chance is "
            "not excluded."
        )
    close = [_short(comparison.metric) for comparison in judged if not comparison.certain]
    if close:
        names = " and for ".join(close)
        return f"For {names} the 95 % interval of the difference spans zero: it may be chance."
    if len(judged) == 2:
        return "Both differences are beyond chance: their 95 % intervals leave out zero."
    return "The 95 % interval of the difference leaves out zero." if judged else ""


def _class_by_class(scores: Scores, found: Sequence[Comparison]) -> str:
    """A word of caution where accuracy is won on common classes and lost on rare ones."""
    model, bar = scores["model"], scores["baselines"][BAR]
    won = any(c.metric is MASKED_ACCURACY and c.outcome == "better" for c in found)
    if not (won and _has(model, BALANCED_ACCURACY) and _has(bar, BALANCED_ACCURACY)):
        return ""
    ours, theirs = model[BALANCED_ACCURACY.key], bar[BALANCED_ACCURACY.key]
    if ours >= theirs:
        return ""
    show = BALANCED_ACCURACY.show
    return (
        "It wins on common classes only: with every class counted alike, the copy is ahead "
        f"({show(theirs)} against {show(ours)})."
    )


def _better_rule(scores: Scores) -> str:
    """The baselines, other than the copy, that do better than both the model and the copy."""
    reached: dict[str, list[str]] = {}
    for metric in (MASKED_ACCURACY, MASKED_MAE):
        best = _best(scores, metric)
        shown = {
            method: metric.show(own[metric.key])
            for method, own in methods(scores).items()
            if _has(own, metric)
        }
        if best is None or best in (shown.get(MODEL), shown.get(BAR)):
            continue
        method = next(method for method in shown if shown[method] == best)
        reached.setdefault(method_name(method), []).append(f"{best} on {_short(metric)}")
    if not reached:
        return ""
    rules = "; ".join(f"{name}, {' and '.join(parts)}" for name, parts in reached.items())
    return f"A rule without learning does better than both: {rules}."


def headline(scores: Scores) -> str:
    """The model's and the copy's masked accuracy and error in one sentence."""
    by_key = {comparison.metric.key: comparison for comparison in comparisons(scores)}
    parts = []
    if accuracy := by_key.get(MASKED_ACCURACY.key):
        parts.append(
            f"names the land cover of {accuracy.metric.show(accuracy.model)} of the hidden "
            f"patches, against {accuracy.metric.show(accuracy.bar)} for copying the nearest "
            "visible patch"
        )
    if mae := by_key.get(MASKED_MAE.key):
        parts.append(
            f"rebuilds hidden pixels with a mean absolute error of {mae.metric.show(mae.model)}, "
            f"against {mae.metric.show(mae.bar)} for the copy"
        )
    return f"it {'; it '.join(parts)}" if parts else "no masked patch could be scored"


@dataclass(frozen=True)
class ConfusionRow:
    """One true class: how many masked patches it has, and where the model put them."""

    class_id: int
    num: int
    cells: tuple[tuple[int, float], ...]
    """Count and share of the row for every shown predicted class."""


def confusion(scores: Scores) -> tuple[list[int], list[ConfusionRow]]:
    """The classes that occur, true or predicted, and their confusion rows (masked patches)."""
    counts: Sequence[Sequence[int]] = scores["model"].get("confusion_masked") or []
    if not counts:
        return [], []
    shown = [
        class_id
        for class_id in range(NUM_CLASSES)
        if sum(counts[class_id]) or sum(row[class_id] for row in counts)
    ]
    rows = []
    for class_id in shown:
        num = sum(counts[class_id])
        cells = tuple((counts[class_id][p], counts[class_id][p] / max(num, 1)) for p in shown)
        rows.append(ConfusionRow(class_id, num, cells))
    return shown, rows
