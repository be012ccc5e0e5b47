"""What ``probes.json`` says, for the page: tables, a chart, and sentences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bharateo.evaluation import probe_table
from bharateo.evaluation.probe_table import METRIC_NAMES, SUBJECT, budget_name, row_name
from bharateo.report import panels
from bharateo.report.findings import Cell, MethodRow
from bharateo.report.panels import Estimate


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
                "name": level,
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
    columns = [
        (metric, number) for metric in METRIC_NAMES for number in range(len(record["budgets"]))
    ]
    best = {
        (metric, number): max(f"{found[number][metric]['mean']:.3f}" for found in rows.values())
        for metric, number in columns
    }
    return [
        MethodRow(
            "model" if features == SUBJECT else features,
            row_name(features, kind),
            tuple(_cell(found[number][metric], best[metric, number]) for metric, number in columns),
        )
        for (features, kind), found in rows.items()
    ]


def _cell(score: Mapping[str, Any], best: str) -> Cell:
    value, ci95 = f"{score['mean']:.3f}", score["ci95"]
    return Cell(value, f"{ci95[0]:.3f} to {ci95[1]:.3f}" if ci95 else "", value == best)


def budget_chart(record: Mapping[str, Any], level: str, probe: str) -> dict[str, Any]:
    """Macro-F1 against labels a class, the encoder and the best of the others in colour."""
    rows = probe_table.table(record, level, probe)
    last = {key: found[-1]["macro_f1"]["mean"] for key, found in rows.items()}
    others = [key for key in rows if key[0] != SUBJECT]
    rival = max(others, key=lambda key: last[key], default=None)
    lines = [
        [
            Estimate(
                row_name(*key),
                result["macro_f1"]["mean"],
                result["macro_f1"]["ci95"] and tuple(result["macro_f1"]["ci95"]),
                panels.SERIES[0] if key[0] == SUBJECT
                else panels.SERIES[1] if key == rival else panels.MUTED,
            )
            for result in found
        ]
        for key, found in rows.items()
    ]  # fmt: skip
    title = (
        f"Macro-F1 of {'patches' if level == 'patch' else 'chips'}, "
        + (probe_table.PROBE_NAMES[probe])
    )
    budgets = [str(budget) for budget in record["budgets"]]
    ends = ", ".join(f"{line[-1].label} {line[-1].value:.3f}" for line in lines)
    alt = f"{title}, from {budgets[0]} to {budgets[-1]} labels a class; at the end {ends}"
    return {"title": title, "svg": panels.budget_chart(budgets, lines, "{:.3f}".format, alt)}
