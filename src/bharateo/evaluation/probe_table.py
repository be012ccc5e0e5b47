"""The probe table as readers see it: names, tables of text, and what they say in sentences."""

from __future__ import annotations

from bharateo.evaluation.comparison import shown
from bharateo.results import (
    Budget,
    Difference,
    Level,
    MeanScore,
    ProbeRow,
    Probes,
    TableRow,
)

SUBJECT = "encoder"
"""The features that all others are compared with."""

MAJORITY = "majority"
METRIC_NAMES = {
    "macro_f1": "macro-F1",
    "balanced_accuracy": "balanced accuracy",
    "accuracy": "accuracy",
    "log_loss": "log-loss",
}
LOWER_IS_BETTER = ("log_loss",)
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


def metrics_of(level: Level, probe: str) -> dict[str, str]:
    """Metrics that a probe's table shows, with their names: the log-loss where the probe gives
    probabilities.
    """
    results = [each for each in level.results if each.probe == probe]
    return {
        metric: name
        for metric, name in METRIC_NAMES.items()
        if any(each.score(metric) for each in results)
    }


def text_tables(record: Probes) -> list[tuple[str, list[str], list[list[str]]]]:
    """Title, header and rows of every table, one for each metric with a budget a column; the last
    row names the humble bar.
    """

    def cell(score: MeanScore | None) -> str:
        if score is None:
            return "none"
        value = f"{score.mean:.3f}"
        return f"{value}\n{score.ci95[0]:.3f}-{score.ci95[1]:.3f}" if score.ci95 else value

    tables = []
    for name, level in record.levels.items():
        bars = [level.bar(budget) for budget in record.budgets]
        for probe in probes_of(level):
            header = ["", *(budget_heading(level, probe, each) for each in record.budgets)]
            for metric, metric_name in metrics_of(level, probe).items():
                rows = [
                    [row_name(row), *(cell(result.score(metric)) for result in results)]
                    for row, results in table(level, probe).items()
                ]
                if any(bars):
                    names = [features_name(bar.features) if bar else "none" for bar in bars]
                    rows.append(["the humble bar is", *names])
                tables.append((f"{name}, {PROBE_NAMES[probe]}: {metric_name}", header, rows))
    return tables


def budget_name(budget: Budget) -> str:
    """A budget for readers."""
    return "all labels" if budget == "all" else f"{budget} a class"


def budget_heading(level: Level, probe: str, budget: Budget) -> str:
    """A budget at the head of a probe's column: where all labels are not all, of how many."""
    train = level.examples.train
    shown = [
        num
        for each in level.results
        if (each.probe, each.budget) == (probe, budget)
        for num in each.num_labels
    ]
    there = round(train.num_examples / train.of_chips) if train.of_chips else 0
    if budget != "all" or not shown or max(shown) >= there:
        return budget_name(budget)
    about = "" if train.of_chips == 1 else "about "
    return f"{max(shown):,} of {about}{there:,} labels"


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
    """What the encoder beats beyond the interval of the difference, and what it does not, the
    humble bar first; empty where there is nothing to compare.
    """
    bar = record.levels[level].bar(budget)
    found: dict[str, list[str]] = {}
    of_bar = ""
    reasons: dict[str, None] = {}
    for difference in record.levels[level].differences:
        if (difference.probe, difference.budget) == (probe, budget):
            every = {name: difference.score(metric) for metric, name in METRIC_NAMES.items()}
            scores = {name: each for name, each in every.items() if each}
            by = {
                name: f"{shown(each.mean, each.ci95, '+')} {name}" for name, each in scores.items()
            }
            reasons |= {each.no_interval: None for each in scores.values() if each.no_interval}
            outcome = _outcome(difference)
            if bar and difference.baseline == bar.row:
                named = f"the humble bar, a linear probe of {row_name(bar.row)}"
                of_bar = f"{outcome} {named} ({', '.join(by.values())})"
            else:
                one = f"{row_name(difference.baseline)} ({by[METRIC_NAMES['macro_f1']]})"
                found.setdefault(outcome, []).append(one)
    others = [f"{outcome} {', '.join(some)}" for outcome, some in found.items()]
    if not (of_bar or others):
        return ""
    said = "; ".join(filter(None, (of_bar, *others)))
    why = "; ".join(reasons)
    return f"{level}, {PROBE_NAMES[probe]}, {budget_name(budget)}: the encoder {said}." + (
        f" No interval: {why}." if why else ""
    )


def _outcome(difference: Difference) -> str:
    """Won or lost is what is won or lost by every metric."""
    better = []
    for metric in METRIC_NAMES:
        if score := difference.score(metric):
            if score.ci95 is None:
                return "cannot be judged against"
            low, high = score.ci95
            better.append((-high, -low) if metric in LOWER_IS_BETTER else (low, high))
    if all(low > 0 for low, _ in better):
        return "beats"
    if all(high < 0 for _, high in better):
        return "loses to"
    return "neither beats nor loses to, by every measure,"


def bar_sentence(level: Level) -> str:
    """The humble bar with every budget, in words; empty without one."""
    names = [f"{features_name(each.features)} ({budget_name(each.budget)})" for each in level.bars]
    what = "the best linear probe of features that nothing was trained for, by log-loss on val"
    return f"The humble bar, {what}: {', '.join(names)}." if names else ""


def classes_sentence(level: Level) -> str:
    """Which classes means over classes leave out, in words; empty where none."""
    rare = ", ".join(
        f"{name} ({num} block{'s' if num > 1 else ''})" for name, num in level.rare_classes.items()
    )
    return (
        f"Means over classes are over {', '.join(level.classes)}; too rare to be counted: {rare}."
        if rare
        else ""
    )


def sentences(record: Probes) -> list[str]:
    """Every verdict with the largest budget, the worst zones, and what the numbers are."""
    said = []
    for level, found in record.levels.items():
        said += [verdict(record, level, probe, record.budgets[-1]) for probe in probes_of(found)]
        classes = classes_sentence(found)
        said += [f"{level}: {classes}" if classes else "", worst_zone(record, level)]
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
        f"{record.draws_per_budget} times; settings are chosen on the val split. In brackets: 95 % "
        "intervals over blocks of ground and draws; differences are paired."
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
