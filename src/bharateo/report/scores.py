"""What ``evaluation.json`` and ``history.jsonl`` say: in sentences, rows of tables, and charts.

A metric is always shown with the baselines beside it, and accuracy on masked patches is never
mixed with accuracy on visible ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from matplotlib.ticker import MaxNLocator

from bharateo.landcover import BHARATEO_CLASSES, NUM_CLASSES
from bharateo.report import charts, panels
from bharateo.report.charts import MUTED, SERIES, Chart, Line
from bharateo.results import Evaluation, GroundScores, Metric, Scores

if TYPE_CHECKING:
    from bharateo.training.contract import Kept

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


# What was measured


def splits(evaluation: Evaluation) -> list[str]:
    """The evaluated splits, the most telling first."""
    there = evaluation.splits
    return [s for s in SPLIT_ORDER if s in there] + [s for s in there if s not in SPLIT_ORDER]


def metrics_of(evaluation: Evaluation) -> list[Metric]:
    """The metrics that tables have: ranked ones, then those that baselines are told."""
    shown = [metric for metric in evaluation.metrics if metric.shown]
    return sorted(shown, key=lambda metric: metric.baselines != "ranked")


def minimised(evaluation: Evaluation) -> list[Metric]:
    """The parts of the loss."""
    return [metric for metric in evaluation.metrics if metric.weight is not None]


def set_against(metrics: Sequence[Metric]) -> list[Metric]:
    """Those in which the model is set against the copy, gains before ratios of errors."""
    return sorted((m for m in metrics if m.against), key=lambda metric: metric.against != "gain")


def methods(scores: GroundScores) -> dict[str, Scores]:
    """The model and its baselines, in the order tables have them."""
    every = {MODEL: scores.model, **scores.baselines}
    order = [*(m for m in METHOD_NAMES if m in every), *(m for m in every if m not in METHOD_NAMES)]
    return {method: every[method] for method in order}


def measured(scores: GroundScores, metric: Metric) -> dict[str, float]:
    """A metric of every method that it was measured of."""
    values = {method: own.value(metric.name) for method, own in methods(scores).items()}
    return {method: value for method, value in values.items() if value is not None}


def method_name(method: str) -> str:
    """A method's name for readers."""
    return METHOD_NAMES.get(method, method.replace("_", " "))


def no_intervals(scores: GroundScores, metrics: Sequence[Metric]) -> list[str]:
    """Which metrics of the model have no interval, and why, a phrase a reason."""
    model = scores.model
    names: dict[str, list[str]] = {}
    for metric in metrics:
        if reason := model.no_interval.get(metric.name):
            names.setdefault(reason, []).append(metric.title)
    num_measured = sum(model.value(metric.name) is not None for metric in metrics)
    return [
        f"no interval ({why})" if len(some) == num_measured
        else f"no interval of {', '.join(some)} ({why})"
        for why, some in names.items()
    ]  # fmt: skip


def size(scores: GroundScores) -> str:
    """How much was measured, e.g. ``96 chips in 9 blocks, 4,608 labelled masked patches``."""
    ground = f"{plural(scores.num_chips, 'chip')} in {plural(scores.num_blocks, 'block')}"
    counts = scores.model.confusion_masked
    return f"{ground}, {np.sum(counts):,} labelled masked patches" if counts else ground


def plural(count: int, noun: str) -> str:
    """A count with its noun."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


# Sentences


@dataclass(frozen=True)
class Comparison:
    """The model against the nearest-visible copy on one metric, measured on the same chips.

    ``subject`` is what the metric is of, ``sentence`` says both values, and ``difference`` how far
    apart they are, with the interval of that difference; ``certain`` whether the interval excludes
    "no difference", None without an interval. ``better_rule`` is another baseline that does better
    than both, if one does, and ``equal_rule`` one that does as well as the model.
    """

    metric: Metric
    subject: str
    sentence: str
    model: float
    bar: float
    difference: str
    certain: bool | None
    better_rule: str = ""
    equal_rule: str = ""

    @property
    def outcome(self) -> Literal["better", "worse", "equal"]:
        """Judged on the values as printed, so that words and table agree."""
        if self.metric.show(self.model) == self.metric.show(self.bar):
            return "equal"
        return "better" if (self.model > self.bar) == (self.metric.better == "higher") else "worse"


def comparisons(scores: GroundScores, metrics: Sequence[Metric]) -> list[Comparison]:
    """The model against the copy, on what is set against it and was measured of both."""
    paired = scores.model_against_nearest_visible
    found = []
    for metric in set_against(metrics):
        values = measured(scores, metric)
        if not {MODEL, BAR} <= values.keys():
            continue
        name = f"{metric.name}_{metric.against}"
        value, bounds = paired.value(name), paired.interval(name) or ()
        neutral = 1.0 if metric.against == "ratio" else 0.0
        if value is None:
            difference = ""
        elif metric.against == "ratio":
            difference = f"{value:.3f} times the copy's error"
            difference += " (95 % interval {:.3f} to {:.3f})".format(*bounds) if bounds else ""
        else:
            scale, digits = (100, 1) if metric.unit == "%" else (1, 4)
            signed = [f"{scale * each:+.{digits}f}".replace("-", "−") for each in (value, *bounds)]
            difference = signed[0] + (" percentage points" if metric.unit == "%" else "")
            difference += " (95 % interval {} to {})".format(*signed[1:]) if bounds else ""
        certain = not bounds[0] <= neutral <= bounds[1] if bounds else None
        said = (
            metric.sentence
            or f"has a {metric.phrase or metric.title} of {{}}, against {{}} for the copy"
        )
        for method in (MODEL, BAR):
            said = said.replace("{}", metric.show(values[method]), 1)
        subject = metric.subject or metric.title
        shown = {method: metric.show(value) for method, value in values.items()}
        best = metric.show(metric.best(values.values()))
        ahead = [] if best in (shown[MODEL], shown[BAR]) else [m for m in shown if shown[m] == best]
        level = [m for m in shown if shown[m] == shown[MODEL] and m not in (MODEL, BAR)]
        rules = (ahead[0] if ahead else "", level[0] if level else "")
        both = values[MODEL], values[BAR]
        found.append(Comparison(metric, subject, said, *both, difference, certain, *rules))
    return found


def verdict(scores: GroundScores, metrics: Sequence[Metric]) -> str:
    """The outcome against the nearest-visible copy in a few plain sentences."""
    found = comparisons(scores, metrics)
    if not found:
        return "It cannot be compared with the nearest-visible copy: nothing was measured for both."
    outcomes = {comparison.outcome for comparison in found}
    each = ", ".join(f"{one.outcome} on {one.subject}" for one in found)
    on_both = {1: "", 2: " on both"}.get(len(found), " on all")
    apart = [comparison for comparison in found if comparison.outcome != "equal"]
    close = " and for ".join(one.subject for one in apart if not one.certain)

    common_only = ""  # where accuracy is won on common classes and lost on rare ones
    for metric in metrics:
        heads_own = (one for one in found if one.metric.head == metric.head)
        won = any(one.metric.unit == "%" and one.outcome == "better" for one in heads_own)
        if metric.mean_over_classes == "balanced_accuracy" and won:
            balanced = measured(scores, metric)
            ours, theirs = balanced.get(MODEL, 0), balanced.get(BAR, 0)
            if MODEL in balanced and ours < theirs:
                common_only = (
                    "It wins on common classes only: with every class counted alike, the copy is "
                    f"ahead ({metric.show(theirs)} against {metric.show(ours)})."
                )

    rules: dict[str, list[str]] = {}
    for one in found:
        if one.better_rule:
            best = one.metric.show(measured(scores, one.metric)[one.better_rule])
            rules.setdefault(method_name(one.better_rule), []).append(f"{best} on {one.subject}")
    better = "; ".join(f"{name}, {' and '.join(reached)}" for name, reached in rules.items())

    said = (
        _first(
            (outcomes == {"better"}, f"The model beats the copy{on_both}."),
            (
                outcomes == {"worse"},
                (f"The model loses to the copy{on_both}: what it learnt is not yet worth more than "
                "looking next door."),
            ),
            (outcomes == {"equal"}, "The model and the copy come out equal."),
            (True, f"Against the copy the model is {each}."),
        ),
        _first(
            (
                any(one.certain is None for one in apart),
                (f"Too few blocks for an interval ({scores.num_blocks} of test ground), so "
                "chance is not excluded."),
            ),
            (
                bool(close),
                f"For {close} the 95 % interval of the difference spans zero: it may be chance.",
            ),
            (
                len(apart) > 1,
                (f"{'Both' if len(apart) == 2 else 'All'} differences are beyond chance: their "
                "95 % intervals leave out zero."),
            ),
            (bool(apart), "The 95 % interval of the difference leaves out zero."),
        ),
        common_only,
        _first((bool(better), f"A rule without learning does better than both: {better}.")),
    )  # fmt: skip
    return " ".join(filter(None, said))


def _first(*cases: tuple[bool, str]) -> str:
    """What is said in the first case that holds."""
    return next((words for holds, words in cases if holds), "")


# Tables


@dataclass(frozen=True)
class TableCell:
    """A value of a table with its interval; ``best`` marks the column's best as printed."""

    value: str
    interval: str
    best: bool


@dataclass(frozen=True)
class MethodRow:
    """One method's line of a metrics table; a cell is None where nothing was measured."""

    method: str
    name: str
    cells: tuple[TableCell | None, ...]


def metric_rows(scores: GroundScores, metrics: Sequence[Metric]) -> list[MethodRow]:
    """A table of one split, or one region of it: a row for every method, best values marked."""
    cells: dict[str, list[TableCell | None]] = {method: [] for method in methods(scores)}
    for metric in metrics:
        values = measured(scores, metric)
        ranked = len(values) > 1 and metric.baselines == "ranked"
        best = metric.show(metric.best(values.values())) if ranked else None
        for method, own in methods(scores).items():
            cell = None
            if method in values:
                bounds, shown = own.interval(metric.name), metric.show(values[method])
                cell = TableCell(shown, metric.span(bounds) if bounds else "", shown == best)
            cells[method].append(cell)
    return [MethodRow(method, method_name(method), tuple(own)) for method, own in cells.items()]


def all_numbers(
    evaluation: Evaluation, classes: panels.Classes = BHARATEO_CLASSES
) -> dict[str, Any]:
    """The tables of every split, and where the masked patches of each class went."""
    order, metrics = splits(evaluation), metrics_of(evaluation)
    parts = [("total", "loss")]
    parts += [(each.title, each.name) for each in evaluation.metrics if not each.shown]
    return {
        "tables": [
            {
                "split": split,
                "size": size(own),
                "no_intervals": no_intervals(own, metrics),
                "rows": metric_rows(own, metrics),
                "losses": [
                    (name, f"{value:.4f}")
                    for name, key in parts
                    if (value := own.model.value(key)) is not None
                ],
                "per_roi": [
                    {"name": name, "size": size(ground), "rows": metric_rows(ground, metrics)}
                    for name, ground in own.per_roi.items()
                ],
            }
            for split, own in ((split, evaluation.splits[split]) for split in order)
        ],
        "confusion": confusion(evaluation.splits[order[0]], classes),
    }


def confusion(scores: GroundScores, classes: panels.Classes = BHARATEO_CLASSES) -> dict[str, Any]:
    """The classes that occur, true or predicted, and a row for each true one: counts, shares."""
    counts = scores.model.confusion_masked or []
    shown = [
        class_id
        for class_id in range(NUM_CLASSES if counts else 0)
        if sum(counts[class_id]) or sum(row[class_id] for row in counts)
    ]
    return {
        "columns": panels.class_legend([classes[each] for each in shown]),
        "rows": [
            {
                "name": panels.class_name(true, classes),
                "css": panels.css(classes[true]),
                "num": sum(counts[true]),
                "cells": [
                    {
                        "num": counts[true][predicted],
                        "share": counts[true][predicted] / max(sum(counts[true]), 1),
                        "right": true == predicted,
                    }
                    for predicted in shown
                ],
            }
            for true in shown
        ],
    }


# Charts


def result(evaluation: Evaluation) -> dict[str, Any]:
    """The charts of the most telling split, and what they say."""
    split = splits(evaluation)[0]
    scores, metrics = evaluation.splits[split], metrics_of(evaluation)
    drawn = [m for m in set_against(metrics) if MODEL in measured(scores, m)]
    return {
        "split": split,
        "result_charts": [interval_chart(scores, metric) for metric in drawn],
        "bars_drawn": any(scores.model.interval(metric.name) for metric in drawn),
        "asked": ", ".join(
            dict.fromkeys(m.subject or m.title for m in evaluation.metrics if m.against)
        ),
        "comparisons": comparisons(scores, metrics),
        "result_size": size(scores),
        "no_intervals": no_intervals(scores, metrics),
        "bootstrap": evaluation.bootstrap,
        "metrics": metrics,
    }


def interval_chart(scores: GroundScores, metric: Metric) -> Chart:
    """Every method's value with its interval, the best on top."""
    colours = {MODEL: SERIES[0], BAR: SERIES[1]}
    own = methods(scores)
    estimates = [
        Line(
            method_name(method), [value], colours.get(method, MUTED),
            intervals=[own[method].interval(metric.name)],
        )
        for method, value in measured(scores, metric).items()
    ]  # fmt: skip
    estimates.sort(key=lambda one: one.measured[0], reverse=metric.better == "higher")
    alt = ", ".join(
        f"{one.label} {metric.show(one.measured[0])}"
        + (f" (95 % interval {metric.span(bounds)})" if (bounds := one.intervals[0]) else "")
        for one in estimates
    )
    better = f"further {'right' if metric.better == 'higher' else 'left'} is better"
    return charts.interval_chart(
        f"{metric.title}: {better}", f"{metric.title}: {alt}", estimates, metric.show
    )


def curves(
    history: Sequence[Mapping[str, Any]], evaluation: Evaluation, choice: Kept | None = None
) -> list[Chart]:
    """The charts of a run's history, by the metrics of its heads; the epoch that was chosen to be
    kept is marked.
    """
    if not history:
        return []
    val = any(key.startswith("val_") for key in history[0])
    epochs = [int(row["epoch"]) for row in history]
    ends = MaxNLocator(6, integer=True).tick_values(epochs[0], max(epochs[-1], epochs[0] + 1))
    ticks = {f"{end:g}": end for end in ends if epochs[0] <= end <= max(epochs[-1], epochs[0] + 1)}

    def line(label: str, key: str, colour: str, weight: float = 1.0, style: str = "") -> Line:
        values = [None if row.get(key) is None else weight * row[key] for row in history]
        return Line(label, values, colour, style)

    def level(metric: Metric) -> list[Line]:
        """The copy's value on the val split, to compare the val curve with."""
        scores = evaluation.splits.get("val")
        value = measured(scores, metric).get(BAR) if scores else None
        return [] if value is None else [Line("copy", [value], style="level")]

    metrics = [m for m in evaluation.metrics if any(m.name in row for row in history)]
    parts = [("total", "loss", 1.0)] + [
        (m.title if m.weight == 1 else f"{m.weight:g} × {m.title}", m.name, m.weight)
        for m in metrics
        if m.weight is not None
    ]
    totals = [row.get(key) for row in history for key in ("loss", "val_loss")]
    most = max((value for value in totals if value is not None), default=0.0)
    splits_drawn = [("", "training"), ("val_", "validation")][: 1 + val]
    colours = [*SERIES, *[MUTED] * len(metrics)]
    drawn: list[tuple[str, list[Line], Callable[[float], str], float | None]] = [
        (
            f"Loss, {split}",
            [
                line(label, prefix + key, colour, weight)
                for (label, key, weight), colour in zip(parts, colours, strict=False)
            ],
            "{:.3f}".format,
            most,
        )
        for prefix, split in splits_drawn
    ]
    groups: dict[str, list[Metric]] = {}  # e.g. Accuracy, of its parts all, masked and visible
    for metric in (each for each in metrics if each.shown):
        groups.setdefault(metric.title.partition(", ")[0], []).append(metric)
    for title, group in sorted(groups.items(), key=lambda each: len(each[1]) == 1):
        if len(group) == 1:
            errors = [line("train", group[0].name, SERIES[0])]
            if val:
                errors.append(line("val", f"val_{group[0].name}", SERIES[1], style="dashed"))
                errors += level(group[0])
            top = 1.0 if group[0].unit == "%" else None
            drawn.append((group[0].title, errors, group[0].show, top))
            continue
        for prefix, split in splits_drawn:
            lines = [
                line(each.title.partition(", ")[2], prefix + each.name, colour)
                for each, colour in zip(group, colours, strict=False)
            ]
            levels = [level(each) for each in group if prefix and each.against]
            top = 1.0 if group[0].unit == "%" else None
            drawn.append((f"{title}, {split}", sum(levels, lines), group[0].show, top))
    drawn.append(("Learning rate", [line("", "lr", MUTED)], "{:.2g}".format, None))

    marks = {"kept": choice.epoch} if choice and choice.rule == "best" else {}
    found = []
    for title, lines, show, top in drawn:
        kept = [line for line in lines if line.measured]
        if not kept:
            continue
        words = [
            f"{one.label} {show(one.measured[0])}"
            + ("" if one.style == "level" else f" to {show(one.measured[-1])}")
            for one in kept
        ]
        words += [f"epoch {epoch} {label}" for label, epoch in marks.items()]
        alt = f"{title} from epoch {epochs[0]} to {epochs[-1]}: {', '.join(words)}"
        end = 1.04 * (top or max(max(one.measured) for one in kept)) or 1.0
        found.append(
            charts.line_chart(title, alt, kept, ticks, "epoch", epochs, show, end, marks=marks)
        )
    return found
