"""The probe table as readers see it: names, tables of text, and what they say in sentences."""

from __future__ import annotations

from bharateo.evaluation.comparison import shown
from bharateo.results import Budget, Level, MeanScore, ProbeRow, Probes, TableRow

SUBJECT = "encoder"
"""The features that all others are compared with."""

MAJORITY = "majority"
METRIC_NAMES = {"macro_f1": "macro-F1", "balanced_accuracy": "balanced accuracy"}
PROBE_NAMES = {"linear": "linear probe", "nearest": "nearest neighbours"}


def probes_of(level: Level) -> list[str]:
    """The probes of a level that stand on every kind of features, and so have a table each."""
    there = {result.probe for result in level.results}
    return [name for name in PROBE_NAMES if name in there]


def table(level: Level, probe: str) -> dict[ProbeRow, list[TableRow]]:
    """Results by budget of every row of one probe's table.

    Forests and the majority class are in the table of every probe.
    """
    rows: dict[ProbeRow, list[TableRow]] = {}
    for result in level.results:
        if result.probe in (probe, "forest", MAJORITY):
            rows.setdefault(result.row, []).append(result)
    return rows


def text_tables(record: Probes) -> list[tuple[str, list[str], list[list[str]]]]:
    """Title, header and rows of every table: macro-F1 and balanced accuracy, a budget a column."""

    def cell(score: MeanScore) -> str:
        value = f"{score.mean:.3f}"
        return f"{value}\n{score.ci95[0]:.3f}-{score.ci95[1]:.3f}" if score.ci95 else value

    tables = []
    header = ["", *(budget_name(budget) for budget in record.budgets)]
    for name, level in record.levels.items():
        for probe in probes_of(level):
            for metric, metric_name in METRIC_NAMES.items():
                rows = [
                    [row_name(row), *(cell(result.score(metric)) for result in results)]
                    for row, results in table(level, probe).items()
                ]
                tables.append((f"{name}, {PROBE_NAMES[probe]}: {metric_name}", header, rows))
    return tables


def budget_name(budget: Budget) -> str:
    """A budget for readers."""
    return "all labels" if budget == "all" else f"{budget} a class"


def features_name(features: str) -> str:
    """A kind of features for readers."""
    return features.replace("_", " ")


def row_name(row: ProbeRow) -> str:
    """A row's name for readers."""
    if row.features == MAJORITY:
        return "majority class"
    name = features_name(row.features)
    return f"forest on {name}" if row.probe == "forest" else name


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
            # won or lost is what is won or lost by every metric
            intervals = [each.ci95 for each in scores.values()]
            known = [ci95 for ci95 in intervals if ci95 is not None]
            if len(known) < len(intervals):
                outcome = "cannot be judged against"
            elif all(low > 0 for low, _ in known):
                outcome = "beats"
            elif all(high < 0 for _, high in known):
                outcome = "loses to"
            else:
                outcome = "neither beats nor loses to, by both measures,"
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
