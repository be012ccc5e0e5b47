"""What ``probes.json`` says, for the page: tables, a chart, and sentences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bharateo.evaluation import probe_table
from bharateo.evaluation.probe_table import METRIC_NAMES, SUBJECT, budget_name, row_name
from bharateo.report import charts
from bharateo.report.charts import MUTED, SERIES, Chart, Line
from bharateo.report.scores import Cell, MethodRow


def section(record: Mapping[str, Any]) -> dict[str, Any]:
    """Everything the page's section shows of a record."""
    return {
        "explained": probe_table.explained(record),
        "budgets": [budget_name(budget) for budget in record["budgets"]],
        "metrics": list(METRIC_NAMES.values()),
        "charts": [
            budget_chart(record, level, probe)
            for level in record["levels"]
            for probe in probe_table.probes_of(record, level)[:1]
        ],
        "levels": [
            {
                "worst": probe_table.worst_zone(record, level),
                "tables": [
                    {
                        "title": f"{level}, {probe_table.PROBE_NAMES[probe]}",
                        "rows": table_rows(record, level, probe),
                        "verdict": probe_table.verdict(record, level, probe, record["budgets"][-1]),
                    }
                    for probe in probe_table.probes_of(record, level)
                ],
            }
            for level in record["levels"]
        ],
        "features": [(row_name(name, ""), meaning) for name, meaning in record["features"].items()],
        "skipped": record["skipped"],
    }


def table_rows(record: Mapping[str, Any], level: str, probe: str) -> list[MethodRow]:
    """A row a kind of features, a cell a metric and budget; the best of each column is marked."""
    rows = probe_table.table(record, level, probe)
    columns = [(metric, n) for metric in METRIC_NAMES for n in range(len(record["budgets"]))]
    best = [
        max(f"{found[number][metric]['mean']:.3f}" for found in rows.values())
        for metric, number in columns
    ]

    def cell(score: Mapping[str, Any], best: str) -> Cell:
        shown, ci95 = f"{score['mean']:.3f}", score["ci95"]
        return Cell(shown, f"{ci95[0]:.3f} to {ci95[1]:.3f}" if ci95 else "", shown == best)

    return [
        MethodRow(
            "model" if features == SUBJECT else features,
            row_name(features, kind),
            tuple(
                cell(found[number][metric], top)
                for (metric, number), top in zip(columns, best, strict=True)
            ),
        )
        for (features, kind), found in rows.items()
    ]


def budget_chart(record: Mapping[str, Any], level: str, probe: str) -> Chart:
    """Macro-F1 against labels a class, the encoder and the best of the others in colour."""
    scores = {
        key: [result["macro_f1"] for result in found]
        for key, found in probe_table.table(record, level, probe).items()
    }
    others = [key for key in scores if key[0] != SUBJECT]
    rival = max(others, key=lambda key: scores[key][-1]["mean"], default=None)
    lines = [
        Line(
            row_name(*key),
            [score["mean"] for score in found],
            SERIES[0] if key[0] == SUBJECT else SERIES[1] if key == rival else MUTED,
            intervals=[score["ci95"] and tuple(score["ci95"]) for score in found],
        )
        for key, found in scores.items()
    ]
    title = (
        f"Macro-F1 of {'patches' if level == 'patch' else 'chips'}, "
        f"{probe_table.PROBE_NAMES[probe]}"
    )
    budgets = [str(budget) for budget in record["budgets"]]
    ends = ", ".join(f"{line.label} {line.measured[-1]:.3f}" for line in lines)
    alt = f"{title}, from {budgets[0]} to {budgets[-1]} labels a class; at the end {ends}"
    drawn = [max(line.measured) for line in lines]
    drawn += [bounds[1] for line in lines for bounds in line.intervals if bounds]
    return charts.line_chart(
        title, alt, lines, {each: n for n, each in enumerate(budgets)}, "labels a class",
        range(len(budgets)), "{:.3f}".format, 1.04 * max(drawn) or 1.0, width=403,
    )  # fmt: skip
