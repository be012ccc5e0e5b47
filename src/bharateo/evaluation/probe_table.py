"""Scores of predictions of test examples: a row of the probe table each, and how far rows differ.

Every row is a set of confusion matrices, one for each draw of the labels and each block of test
ground, so that scores, intervals and differences are sums of them. Intervals cover the blocks and
the draws, blocks being resampled alike for all rows: differences are paired.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int64, Shaped

from bharateo.evaluation.comparison import METRICS, Confusions, Scores
from bharateo.evaluation.features import Features
from bharateo.evaluation.intervals import resampled_blocks
from bharateo.landcover import BHARATEO_CLASSES, NUM_CLASSES

Budget = int | Literal["all"]
"""Labels of every class that a probe is shown."""

SUBJECT = "encoder"
"""The features that all others are compared with."""

MAJORITY = "majority"


@dataclass(frozen=True)
class Row:
    """A row of the table: a probe on features. The majority class looks at no features."""

    features: str
    probe: str


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
) -> dict[str, Any]:
    """Results, differences to the subject, and zones of one level, as plain JSON.

    ``zone`` is that of every test example; zones of less than ``fewest`` are not called the worst.
    """
    block, num_blocks = _numbered(test.block)
    cells = {
        key: by_block(test.labels, made.classes, block, num_blocks) for key, made in results.items()
    }
    times = resampled_blocks(num_blocks, seed)
    scores = {key: Scores.of(counts, times) for key, counts in cells.items()}
    return {
        "results": [
            {
                **_named(row, budget),
                "num_labels": made.num_labels.tolist(),
                "chosen": made.chosen.tolist() if row.probe != MAJORITY else None,
                **_record(scores[row, budget]),
                **_per_class(cells[row, budget]),
            }
            for (row, budget), made in results.items()
        ],
        "differences": [
            {
                **_named(subject, budget),
                "baseline": {"features": row.features, "probe": row.probe},
                **_record(scores[subject, budget].minus(scores[row, budget])),
            }
            for subject, budget, row in _pairs(results)
        ],
        "zones": _zones(test, results, zone, fewest, seed),
    }


def _record(scores: Scores, *, per_draw: bool = True) -> dict[str, Any]:
    """Mean over draws, its interval or why it has none, and every draw, by metric."""
    return {
        metric: {
            "mean": scores.mean(metric),
            "ci95": scores.ci95(metric),
            "no_interval": scores.no_interval(metric),
            **({"per_draw": scores.whole[metric].tolist()} if per_draw else {}),
        }
        for metric in METRICS
    }


def _numbered(names: Shaped[np.ndarray, " example"]) -> tuple[Int64[np.ndarray, " example"], int]:
    """Every example's block as a number from 0, in the order of their names, and how many."""
    found, number = np.unique(names.astype(str), return_inverse=True)
    return number, len(found)


def _named(row: Row, budget: Budget) -> dict[str, Any]:
    return {"features": row.features, "probe": row.probe, "budget": budget}


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


def _per_class(by_block: Confusions) -> dict[str, Any]:
    """Scores of every class that occurs, means over draws, with the blocks it lies in; the
    confusion summed over draws.
    """
    num_blocks = (by_block[0].sum(-1) > 0).sum(0)
    cells = by_block.sum(1)
    support, taken = cells.sum(2), cells.sum(1)
    right = np.diagonal(cells, axis1=1, axis2=2)
    present = np.flatnonzero(support[0])
    return {
        "per_class": {
            BHARATEO_CLASSES[i].name: {
                "f1": float((2 * right[:, i] / (support[:, i] + taken[:, i])).mean()),
                "recall": float((right[:, i] / support[:, i]).mean()),
                "precision": float((right[:, i] / np.maximum(taken[:, i], 1)).mean()),
                "support": int(support[0, i]),
                "num_blocks": int(num_blocks[i]),
            }
            for i in present
        },
        "confusion": cells.sum(0).tolist(),
    }


def _zones(
    test: Features, results: Results, zone: Shaped[np.ndarray, " example"], fewest: int, seed: int
) -> dict[str, Any]:
    """Every row's scores zone by zone with the largest budget, and where the subject is worst."""
    last = list(dict.fromkeys(budget for _, budget in results))[-1]
    zones = {}
    for name in np.unique(zone.astype(str)):
        there = np.flatnonzero(zone.astype(str) == name)
        own = test.take(there)
        block, num_blocks = _numbered(own.block)
        times = resampled_blocks(num_blocks, seed)
        zones[str(name)] = {
            "num_examples": len(there),
            "num_blocks": num_blocks,
            "results": [
                {
                    **_named(row, budget),
                    **_record(
                        Scores.of(
                            by_block(own.labels, made.classes[:, there], block, num_blocks), times
                        ),
                        per_draw=False,
                    ),
                }
                for (row, budget), made in results.items()
                if budget == last
            ],
        }
    return {"budget": last, "fewest_examples": fewest, "per_zone": zones} | _worst(zones, fewest)


def _worst(zones: Mapping[str, Any], fewest: int) -> dict[str, Any]:
    """The zone with the lowest macro-F1 of the subject's first probe, None where all are small."""
    found = {
        name: next(r for r in zone["results"] if r["features"] == SUBJECT)["macro_f1"]["mean"]
        for name, zone in zones.items()
        if zone["num_examples"] >= fewest and any(r["features"] == SUBJECT for r in zone["results"])
    }
    return {"worst": min(found, key=lambda name: found[name]) if found else None}


# Reading the record


def probes_of(record: Mapping[str, Any], level: str) -> list[str]:
    """The probes of a level that stand on every kind of features, and so have a table each."""
    results = record["levels"][level]["results"]
    return [name for name in ("linear", "nearest") if any(r["probe"] == name for r in results)]


def table(
    record: Mapping[str, Any], level: str, probe: str
) -> dict[tuple[str, str], list[Mapping[str, Any]]]:
    """Results by budget of every row of one probe's table, the rows by features and probe.

    Forests and the majority class are in the table of every probe.
    """
    rows: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for result in record["levels"][level]["results"]:
        if result["probe"] in (probe, "forest", MAJORITY):
            rows.setdefault((result["features"], result["probe"]), []).append(result)
    return rows


def text_tables(record: Mapping[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Title, header and rows of every table: macro-F1 and balanced accuracy, a budget a column."""
    tables = []
    for level in record["levels"]:
        for probe in probes_of(record, level):
            for metric, name in METRIC_NAMES.items():
                header = ["", *(budget_name(budget) for budget in record["budgets"])]
                rows = [
                    [row_name(*key), *(_in_cell(**result[metric]) for result in results)]
                    for key, results in table(record, level, probe).items()
                ]
                tables.append((f"{level}, {PROBE_NAMES[probe]}: {name}", header, rows))
    return tables


METRIC_NAMES = {"macro_f1": "macro-F1", "balanced_accuracy": "balanced accuracy"}
PROBE_NAMES = {"linear": "linear probe", "nearest": "nearest neighbours"}


def budget_name(budget: Budget) -> str:
    """A budget for readers."""
    return "all labels" if budget == "all" else f"{budget} a class"


def row_name(features: str, probe: str) -> str:
    """A row's name for readers."""
    name = features.replace("_", " ")
    if features == MAJORITY:
        return "majority class"
    return f"forest on {name}" if probe == "forest" else name


def shown(mean: float, ci95: Sequence[float] | None, sign: str = "", **_: object) -> str:
    """A value with its interval, e.g. ``0.392 [0.361, 0.424]``."""
    bounds = f" [{ci95[0]:{sign}.3f}, {ci95[1]:{sign}.3f}]" if ci95 else ""
    return f"{mean:{sign}.3f}{bounds}"


def _shown(score: Mapping[str, Any], sign: str = "") -> str:
    return shown(score["mean"], score["ci95"], sign)


def _in_cell(mean: float, ci95: Sequence[float] | None, **_: object) -> str:
    """A value with its interval below it."""
    return f"{mean:.3f}" + (f"\n{ci95[0]:.3f}-{ci95[1]:.3f}" if ci95 else "")


def verdict(record: Mapping[str, Any], level: str, probe: str, budget: Budget) -> str:
    """What the encoder beats beyond the interval of the difference, and what it does not; empty
    where there is nothing to compare.
    """
    found: dict[str, list[str]] = {}
    reasons: dict[str, None] = {}
    for difference in record["levels"][level]["differences"]:
        if (difference["probe"], difference["budget"]) == (probe, budget):
            by = [f"{_shown(difference[m], '+')} {name}" for m, name in METRIC_NAMES.items()]
            baseline = row_name(**difference["baseline"])
            outcome = _outcome(*(difference[metric]["ci95"] for metric in METRIC_NAMES))
            reasons |= {difference[m].get("no_interval"): None for m in METRIC_NAMES}
            found.setdefault(outcome, []).append(f"{baseline} ({', '.join(by)})")
    if not found:
        return ""
    said = "; ".join(f"{outcome} {', '.join(some)}" for outcome, some in found.items())
    why = "; ".join(filter(None, reasons))
    return f"{level}, {PROBE_NAMES[probe]}, {budget_name(budget)}: the encoder {said}." + (
        f" No interval: {why}." if why else ""
    )


def sentences(record: Mapping[str, Any]) -> list[str]:
    """Every verdict with the largest budget, the worst zones, and what the numbers are."""
    said = []
    for level in record["levels"]:
        for probe in probes_of(record, level):
            said.append(verdict(record, level, probe, record["budgets"][-1]))
        said.append(worst_zone(record, level))
    return [sentence for sentence in (*said, explained(record)) if sentence]


def _outcome(*intervals: Sequence[float] | None) -> str:
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


def explained(record: Mapping[str, Any]) -> str:
    """What the numbers of the tables are, in a few sentences."""
    sizes = "; ".join(
        f"{level}: {found['examples']['train']['num_examples']:,} train and "
        f"{found['examples']['test']['num_examples']:,} test examples in "
        f"{found['examples']['test']['num_blocks']:,} blocks"
        for level, found in record["levels"].items()
    )
    seen = "landcover" in record["pretraining_heads"] and record["own_dataset"]
    return (
        f"Probes of frozen features on held-out ground ({sizes}). Budgets are drawn "
        f"{record['draws_per_budget']} times, all labels are at most "
        f"{record['most']['train_examples']:,} examples; settings are chosen on the val split. In "
        "brackets: 95 % intervals over blocks of ground and draws; differences are paired."
        + (" The encoder was pretrained with land-cover labels of the train split." if seen else "")
    )


def worst_zone(record: Mapping[str, Any], level: str) -> str:
    """The zone where the encoder does worst, in words; empty where every zone is too small."""
    zones = record["levels"][level]["zones"]
    if zones["worst"] is None:
        return ""
    zone = zones["per_zone"][zones["worst"]]
    own = next(result for result in zone["results"] if result["features"] == SUBJECT)
    best = max(zone["results"], key=lambda result: result["macro_f1"]["mean"])
    leader = "which nothing beats there" if best == own else (
        f"where the best is {row_name(best['features'], best['probe'])} by {best['probe']} with "
        f"{best['macro_f1']['mean']:.3f}"
    )  # fmt: skip
    return (
        f"{level}, worst {record['zones']} of {len(zones['per_zone'])}: {zones['worst']} "
        f"({zone['num_examples']:,} examples), macro-F1 {_shown(own['macro_f1'])}, {leader}."
    )
