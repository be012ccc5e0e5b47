"""The model card of a run: what it takes, how it was trained, how well it does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import yaml

from bharateo.accounting import Accounting
from bharateo.results import EVALUATION_FILE, PROBES_FILE, Probed, Scored, read_result
from bharateo.training.checkpoint import Run

_CREATIVE_COMMONS = "CC BY 4.0"

_PREDICTORS = {
    "model": "**this run**",
    "nearest_visible": "nearest visible token",
    "bilinear": "bilinear from visible tokens",
    "mean_colour": "mean of the visible tokens",
    "majority": "majority class, mean colour",
}
_METRICS = {
    "masked_mae": "mean absolute error (input's unit)",
    "esa_acc_masked": "class accuracy",
    "esa_macro_f1_masked": "class macro-F1",
}

_PROBE_METRICS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro-F1",
}


def model_card(run: Run, licence: str | None = None) -> str:
    """The card as Markdown with the Hub's YAML header.

    Scores are those in the run's folder, ``evaluation.json`` and ``probes.json``, each beside its
    baselines. Without a ``licence`` that of the labels is named where they ask for the same.
    """
    header = _header(run, licence)
    template = jinja2.Environment(
        loader=jinja2.PackageLoader("bharateo", "handover"),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    ).get_template("card.md.j2")
    account = Accounting.of_run(run.contract)
    body = template.render(
        title=f"BharatEO: {run.path.resolve().name}",
        contract=run.contract,
        sensor=run.sensor,
        bands=_bands(run),
        dataset=Path(run.contract["dataset"]["path"]).name,
        tokens_per_chip=account.tokens_per_chip,
        account=account.rows(),
        scores=[*_reconstruction_tables(run.path), *_probe_tables(run.path)],
    )
    return f"---\n{yaml.safe_dump(header, sort_keys=False)}---\n{body}"


def _header(run: Run, licence: str | None) -> Mapping[str, Any]:
    if licence is None:
        shared = any(_CREATIVE_COMMONS in line for line in run.contract["attribution"])
        licence = "cc-by-4.0" if shared else "other"
    return {
        "license": licence,
        "library_name": "bharateo",
        "pipeline_tag": "image-feature-extraction",
        "tags": ["earth-observation", "remote-sensing", "masked-autoencoder", "land-cover",
                 run.sensor.name],
    }  # fmt: skip


def _bands(run: Run) -> list[Mapping[str, Any]]:
    statistics = run.contract["statistics"]
    return [
        {**vars(band), "mean": mean, "std": std}
        for band, mean, std in zip(
            run.sensor.bands, statistics["mean"], statistics["std"], strict=True
        )
    ]


def _reconstruction_tables(folder: Path) -> list[str]:
    """Masked patches rebuilt and classified, the model beside its baselines."""
    tables = []
    evaluation = _record(Scored, folder / EVALUATION_FILE, "bharateo evaluate")
    for split, scores in evaluation.get("splits", {}).items():
        rows = {"model": scores["model"], **scores["baselines"]}
        table = _table(
            ["masked patches", *_METRICS.values()],
            [
                [shown, *(_with_interval(rows[name], metric) for metric in _METRICS)]
                for name, shown in _PREDICTORS.items()
                if name in rows
            ],
        )
        tables.append(
            f"Masked patches of the {split} split ({scores['num_chips']} chips on "
            f"{scores['num_blocks']} blocks of ground), with 95 % intervals by block bootstrap:"
            f"\n\n{table}"
        )
    return tables


def _probe_tables(folder: Path) -> list[str]:
    """Probes on the frozen features with all labels, beside those on everything simpler."""
    tables = []
    probes = _record(Probed, folder / PROBES_FILE, "bharateo evaluate --probe")
    for level, scored in probes.get("levels", {}).items():
        rows = [
            [f"**{each['features']}**" if each["features"] == "encoder" else each["features"],
             each["probe"], *(_mean_with_interval(each[metric]) for metric in _PROBE_METRICS)]
            for each in scored["results"]
            if each["budget"] == "all"
        ]  # fmt: skip
        if rows:
            head = ["features", "probe", *_PROBE_METRICS.values()]
            tables.append(
                f"Classes of test {level}s, by probes on frozen features with all labels of the "
                f"train split (encoder: this run), with 95 % intervals:\n\n{_table(head, rows)}"
            )
    return tables


def _mean_with_interval(score: Mapping[str, Any]) -> str:
    return _with_interval({"mean": score["mean"], "mean_ci95": score["ci95"]}, "mean")


def _with_interval(scores: Mapping[str, Any], metric: str) -> str:
    value = scores.get(metric)
    if value is None:
        return "-"
    low_high = scores.get(f"{metric}_ci95")
    interval = "" if not low_high or None in low_high else f" ({low_high[0]:.3f}-{low_high[1]:.3f})"
    return f"{value:.3f}{interval}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _record(kind: type[Scored | Probed], file: Path, verb: str) -> Mapping[str, Any]:
    """What a file of scores says, nothing where there is none."""
    return read_result(kind, file, verb) if file.exists() else {}
