"""Scores of predictions of test examples: a row of the probe table each, and how far rows differ.

Every row is a set of confusion matrices, one for each draw of the labels and each block of test
ground, so that scores, intervals and differences are sums of them. Intervals cover the blocks and
the draws, blocks being resampled alike for all rows: differences are paired.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64, Shaped

from bharateo.evaluation.comparison import Confusions, Scores, shown
from bharateo.evaluation.features import Features
from bharateo.evaluation.intervals import resampled_blocks
from bharateo.landcover import BHARATEO_CLASSES, NUM_CLASSES
from bharateo.results import (
    METRICS,
    Budget,
    ClassScores,
    Difference,
    DrawnScore,
    Level,
    MeanScore,
    Probes,
    Row,
    TableRow,
    ZoneRow,
    Zones,
    ZoneScores,
)

SUBJECT = "encoder"
"""The features that all others are compared with."""

MAJORITY = "majority"


@dataclass(frozen=True)
class Predictions:
    """What a row with one budget says of every test example, one line a draw of the labels.

    ``chosen`` is what validation chose in every draw; ``num_labels`` how many were shown.
    """

    classes: Int64[np.ndarray, "draw example"]
    chosen: Float[np.ndarray, " draw"]
    num_labels: Int64[np.ndarray, " draw"]


Results = Mapping[tuple[Row, Budget], Predictions]


def by_block(
    true: Int64[np.ndarray, " example"],
    predicted: Int64[np.ndarray, "draw example"],
    block: Int64[np.ndarray, " example"],
    num_blocks: int,
) -> Confusions:
    """Confusion matrices of every draw and block, for blocks numbered from 0."""
    pair = (block * NUM_CLASSES + true) * NUM_CLASSES
    shape = (len(predicted), num_blocks, NUM_CLASSES, NUM_CLASSES)
    every = [np.bincount(pair + guess, minlength=math.prod(shape[1:])) for guess in predicted]
    return np.concatenate(every).reshape(shape)


def level_record(
    test: Features, results: Results, zone: Shaped[np.ndarray, " example"], fewest: int, seed: int
) -> tuple[list[TableRow], list[Difference], Zones]:
    """Results, differences to the subject, and zones of one level.

    ``zone`` is that of every test example; zones of less than ``fewest`` are not called the worst.
    """
    block, num_blocks = _numbered(test.block)
    cells = {
        key: by_block(test.labels, made.classes, block, num_blocks) for key, made in results.items()
    }
    times = resampled_blocks(num_blocks, seed)
    scores = {key: Scores.of(counts, times) for key, counts in cells.items()}
    return (
        [
            TableRow(
                features=row.features,
                probe=row.probe,
                budget=budget,
                num_labels=made.num_labels.tolist(),
                chosen=made.chosen.tolist() if row.probe != MAJORITY else None,
                **_drawn(scores[row, budget]),
                per_class=_per_class(cells[row, budget]),
                confusion=cells[row, budget].sum((0, 1)).tolist(),
            )
            for (row, budget), made in results.items()
        ],
        [
            Difference(
                features=subject.features,
                probe=subject.probe,
                budget=budget,
                baseline=row,
                **_drawn(scores[subject, budget].minus(scores[row, budget])),
            )
            for subject, budget, row in _pairs(results)
        ],
        _zones(test, results, zone, fewest, seed),
    )


def _drawn(scores: Scores) -> dict[str, DrawnScore]:
    """Mean over draws, its interval or why it has none, and every draw, by metric."""
    return {
        metric: DrawnScore(**dict(scores.mean(metric)), per_draw=scores.whole[metric].tolist())
        for metric in METRICS
    }


def _numbered(names: Shaped[np.ndarray, " example"]) -> tuple[Int64[np.ndarray, " example"], int]:
    """Every example's block as a number from 0, in the order of their names, and how many."""
    found, number = np.unique(names.astype(str), return_inverse=True)
    return number, len(found)


def _pairs(results: Results) -> list[tuple[Row, Budget, Row]]:
    """The subject beside every row of its own probe, and beside rows whose probe it has not."""
    own = {row.probe for row, _ in results if row.features == SUBJECT}
    return [
        (subject, budget, row)
        for subject, budget in results
        if subject.features == SUBJECT
        for row, other in results
        if other == budget
        and row.features != SUBJECT
        and (row.probe == subject.probe or row.probe not in own)
    ]


def _per_class(by_block: Confusions) -> dict[str, ClassScores]:
    """Scores of every class that occurs, means over draws, with the blocks it lies in."""
    num_blocks = (by_block[0].sum(-1) > 0).sum(0)
    cells = by_block.sum(1)
    support, taken = cells.sum(2), cells.sum(1)
    right = np.diagonal(cells, axis1=1, axis2=2)
    return {
        BHARATEO_CLASSES[i].name: ClassScores(
            f1=float((2 * right[:, i] / (support[:, i] + taken[:, i])).mean()),
            recall=float((right[:, i] / support[:, i]).mean()),
            precision=float((right[:, i] / np.maximum(taken[:, i], 1)).mean()),
            support=int(support[0, i]),
            num_blocks=int(num_blocks[i]),
        )
        for i in np.flatnonzero(support[0])
    }


def _zones(
    test: Features, results: Results, zone: Shaped[np.ndarray, " example"], fewest: int, seed: int
) -> Zones:
    """Every row's scores zone by zone with the largest budget, and where the subject is worst:
    by the macro-F1 of its first probe, None where all zones are small.
    """
    last = list(dict.fromkeys(budget for _, budget in results))[-1]
    zones: dict[str, ZoneScores] = {}
    reached: dict[str, float] = {}
    for name in np.unique(zone.astype(str)).tolist():
        there = np.flatnonzero(zone.astype(str) == name)
        own = test.take(there)
        block, num_blocks = _numbered(own.block)
        times = resampled_blocks(num_blocks, seed)
        rows = []
        for (row, budget), made in results.items():
            if budget == last:
                cells = by_block(own.labels, made.classes[:, there], block, num_blocks)
                scores = Scores.of(cells, times)
                rows.append(ZoneRow(
                    features=row.features,
                    probe=row.probe,
                    budget=budget,
                    **{metric: scores.mean(metric) for metric in METRICS},
                ))  # fmt: skip
        zones[name] = ZoneScores(num_examples=len(there), num_blocks=num_blocks, results=rows)
        subject = next((each for each in rows if each.features == SUBJECT), None)
        if subject and len(there) >= fewest:
            reached[name] = subject.macro_f1.mean
    worst = min(reached, key=lambda name: reached[name]) if reached else None
    return Zones(budget=last, fewest_examples=fewest, per_zone=zones, worst=worst)


# Reading the record


def probes_of(level: Level) -> list[str]:
    """The probes of a level that stand on every kind of features, and so have a table each."""
    there = {result.probe for result in level.results}
    return [name for name in PROBE_NAMES if name in there]


def table(level: Level, probe: str) -> dict[Row, list[TableRow]]:
    """Results by budget of every row of one probe's table.

    Forests and the majority class are in the table of every probe.
    """
    rows: dict[Row, list[TableRow]] = {}
    for result in level.results:
        if result.probe in (probe, "forest", MAJORITY):
            rows.setdefault(result.row, []).append(result)
    return rows


def text_tables(record: Probes) -> list[tuple[str, list[str], list[list[str]]]]:
    """Title, header and rows of every table: macro-F1 and balanced accuracy, a budget a column."""
    tables = []
    header = ["", *(budget_name(budget) for budget in record.budgets)]
    for name, level in record.levels.items():
        for probe in probes_of(level):
            for metric, metric_name in METRIC_NAMES.items():
                rows = [
                    [row_name(row), *(_in_cell(result.score(metric)) for result in results)]
                    for row, results in table(level, probe).items()
                ]
                tables.append((f"{name}, {PROBE_NAMES[probe]}: {metric_name}", header, rows))
    return tables


METRIC_NAMES = {"macro_f1": "macro-F1", "balanced_accuracy": "balanced accuracy"}
PROBE_NAMES = {"linear": "linear probe", "nearest": "nearest neighbours"}


def budget_name(budget: Budget) -> str:
    """A budget for readers."""
    return "all labels" if budget == "all" else f"{budget} a class"


def features_name(features: str) -> str:
    """A kind of features for readers."""
    return features.replace("_", " ")


def row_name(row: Row) -> str:
    """A row's name for readers."""
    if row.features == MAJORITY:
        return "majority class"
    name = features_name(row.features)
    return f"forest on {name}" if row.probe == "forest" else name


def _in_cell(score: MeanScore) -> str:
    """A value with its interval below it."""
    ci95 = score.ci95
    return f"{score.mean:.3f}" + (f"\n{ci95[0]:.3f}-{ci95[1]:.3f}" if ci95 else "")


def verdict(record: Probes, level: str, probe: str, budget: Budget) -> str:
    """What the encoder beats beyond the interval of the difference, and what it does not; empty
    where there is nothing to compare.
    """
    found: dict[str, list[str]] = {}
    reasons: dict[str, None] = {}
    for difference in record.levels[level].differences:
        if (difference.probe, difference.budget) == (probe, budget):
            scores = {name: difference.score(metric) for metric, name in METRIC_NAMES.items()}
            by = [f"{shown(each.mean, each.ci95, '+')} {name}" for name, each in scores.items()]
            outcome = _outcome([each.ci95 for each in scores.values()])
            reasons |= {each.no_interval: None for each in scores.values() if each.no_interval}
            baseline = row_name(difference.baseline)
            found.setdefault(outcome, []).append(f"{baseline} ({', '.join(by)})")
    if not found:
        return ""
    said = "; ".join(f"{outcome} {', '.join(some)}" for outcome, some in found.items())
    why = "; ".join(reasons)
    return f"{level}, {PROBE_NAMES[probe]}, {budget_name(budget)}: the encoder {said}." + (
        f" No interval: {why}." if why else ""
    )


def sentences(record: Probes) -> list[str]:
    """Every verdict with the largest budget, the worst zones, and what the numbers are."""
    said = []
    for level, found in record.levels.items():
        said += [verdict(record, level, probe, record.budgets[-1]) for probe in probes_of(found)]
        said.append(worst_zone(record, level))
    return [sentence for sentence in (*said, explained(record)) if sentence]


def _outcome(intervals: Sequence[tuple[float, float] | None]) -> str:
    """Judged on all metrics together: won or lost is what is won or lost on every one."""
    known = [ci95 for ci95 in intervals if ci95 is not None]
    if len(known) < len(intervals):
        return "cannot be judged against"
    if all(low > 0 for low, _ in known):
        return "beats"
    return (
        "loses to"
        if all(high < 0 for _, high in known)
        else "neither beats nor loses to, by both measures,"
    )


def explained(record: Probes) -> str:
    """What the numbers of the tables are, in a few sentences."""
    sizes = "; ".join(
        f"{name}: {level.examples.train.num_examples:,} train and "
        f"{level.examples.test.num_examples:,} test examples in "
        f"{level.examples.test.num_blocks:,} blocks"
        for name, level in record.levels.items()
    )
    seen = "landcover" in record.pretraining_heads and record.own_dataset
    return (
        f"Probes of frozen features on held-out ground ({sizes}). Budgets are drawn "
        f"{record.draws_per_budget} times, all labels are at most "
        f"{record.most.train_examples:,} examples; settings are chosen on the val split. In "
        "brackets: 95 % intervals over blocks of ground and draws; differences are paired."
        + (" The encoder was pretrained with land-cover labels of the train split." if seen else "")
    )


def worst_zone(record: Probes, level: str) -> str:
    """The zone where the encoder does worst, in words; empty where every zone is too small."""
    zones = record.levels[level].zones
    if zones.worst is None:
        return ""
    zone = zones.per_zone[zones.worst]
    own = next(result for result in zone.results if result.features == SUBJECT)
    best = max(zone.results, key=lambda result: result.macro_f1.mean)
    leader = "which nothing beats there" if best == own else (
        f"where the best is {row_name(best.row)} by {best.probe} with {best.macro_f1.mean:.3f}"
    )  # fmt: skip
    return (
        f"{level}, worst {record.zones} of {len(zones.per_zone)}: {zones.worst} "
        f"({zone.num_examples:,} examples), macro-F1 "
        f"{shown(own.macro_f1.mean, own.macro_f1.ci95)}, {leader}."
    )
