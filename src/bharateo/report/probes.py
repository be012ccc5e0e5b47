"""What ``probes.json`` says, for the page: tables, a chart, and sentences."""

from __future__ import annotations

from typing import Any

from bharateo.evaluation import probe_table
from bharateo.evaluation.probe_table import LOWER_IS_BETTER, SUBJECT, row_name
from bharateo.report import charts
from bharateo.report.charts import MUTED, SERIES, Chart, Line
from bharateo.report.scores import MethodRow, TableCell
from bharateo.results import Level, MeanScore, Probes


def section(record: Probes) -> dict[str, Any]:
    """Everything the page's section shows of a record."""
    return {
        "explained": probe_table.explained(record),
        "charts": [
            budget_chart(record, name, probe)
            for name, level in record.levels.items()
            for probe in probe_table.probes_of(level)[:1]
        ],
        "levels": [
            {
                "worst": probe_table.worst_zone(record, name),
                "bar": probe_table.bar_sentence(level),
                "classes": probe_table.classes_sentence(level),
                "tables": [
                    {
                        "title": f"{name}, {probe_table.PROBE_NAMES[probe]}",
                        "columns": [
                            f"{metric}, {probe_table.budget_heading(level, probe, budget)}"
                            for metric in probe_table.metrics_of(level, probe).values()
                            for budget in record.budgets
                        ],
                        "rows": table_rows(level, probe),
                        "verdict": probe_table.verdict(record, name, probe, record.budgets[-1]),
                    }
                    for probe in probe_table.probes_of(level)
                ],
            }
            for name, level in record.levels.items()
        ],
        "features": [
            (probe_table.features_name(name), meaning) for name, meaning in record.features.items()
        ],
        "skipped": record.skipped,
    }


def table_rows(level: Level, probe: str) -> list[MethodRow]:
    """A row a kind of features, a cell a metric and budget; the best of each column is marked."""
    metrics = probe_table.metrics_of(level, probe)
    found = probe_table.table(level, probe)
    columns = {
        row: [result.score(metric) for metric in metrics for result in results]
        for row, results in found.items()
    }
    num_budgets = len(next(iter(found.values())))
    best = []
    for place, column in enumerate(zip(*columns.values(), strict=True)):
        lower = [*metrics][place // num_budgets] in LOWER_IS_BETTER
        means = [score.mean for score in column if score]
        best.append(f"{min(means) if lower else max(means):.3f}")

    def cell(score: MeanScore | None, best: str) -> TableCell | None:
        if score is None:
            return None
        shown, ci95 = f"{score.mean:.3f}", score.ci95
        return TableCell(shown, f"{ci95[0]:.3f} to {ci95[1]:.3f}" if ci95 else "", shown == best)

    return [
        MethodRow(
            "model" if row.features == SUBJECT else row.features,
            row_name(row),
            tuple(cell(score, top) for score, top in zip(scores, best, strict=True)),
        )
        for row, scores in columns.items()
    ]


def budget_chart(record: Probes, level: str, probe: str) -> Chart:
    """Macro-F1 against labels a class, the encoder and the best of the others in colour."""
    scores = {
        row: [result.macro_f1 for result in found]
        for row, found in probe_table.table(record.levels[level], probe).items()
    }
    others = [row for row in scores if row.features != SUBJECT]
    rival = max(others, key=lambda row: scores[row][-1].mean, default=None)
    lines = [
        Line(
            row_name(row),
            [score.mean for score in found],
            SERIES[0] if row.features == SUBJECT else SERIES[1] if row == rival else MUTED,
            intervals=[score.ci95 for score in found],
        )
        for row, found in scores.items()
    ]
    title = (
        f"Macro-F1 of {'patches' if level == 'patch' else 'chips'}, "
        f"{probe_table.PROBE_NAMES[probe]}"
    )
    budgets = [str(budget) for budget in record.budgets]
    ends = ", ".join(f"{line.label} {line.measured[-1]:.3f}" for line in lines)
    alt = f"{title}, from {budgets[0]} to {budgets[-1]} labels a class; at the end {ends}"
    drawn = [max(line.measured) for line in lines]
    drawn += [bounds[1] for line in lines for bounds in line.intervals if bounds]
    return charts.line_chart(
        title, alt, lines, {each: n for n, each in enumerate(budgets)}, "labels a class",
        range(len(budgets)), "{:.3f}".format, 1.04 * max(drawn) or 1.0, width=403,
    )  # fmt: skip
