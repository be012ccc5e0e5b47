"""The model card of a run: what it takes, how it was trained, how well it does."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import yaml

from bharateo.models.heads import declared_metrics
from bharateo.results import EVALUATION_FILE, PROBES_FILE, Evaluation, Probes, read_result
from bharateo.training.run import Run

_CREATIVE_COMMONS = "CC BY 4.0"

_PREDICTORS = {
    "model": "**this run**",
    "nearest_visible": "nearest visible token",
    "bilinear": "bilinear from visible tokens",
    "mean_colour": "mean of the visible tokens",
    "majority": "majority class, mean colour",
}
_PROBE_METRICS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro-F1",
    "log_loss": "log-loss",
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
        finalize=_finished,
        keep_trailing_newline=True,
    ).get_template("card.md.j2")
    account = run.contract.accounting
    body = template.render(
        title=f"BharatEO: {run.path.resolve().name}",
        contract=run.contract,
        sensor=run.sensor,
        bands=_bands(run),
        dataset=Path(run.contract.dataset.path).name,
        tokens_per_chip=account.tokens_per_chip,
        account=account.rows(),
        scores=list(map(_Markdown, (*_reconstruction_tables(run), *_probe_tables(run.path)))),
    )
    return f"---\n{yaml.safe_dump(header, sort_keys=False)}---\n{body}"


class _Markdown(str):
    """Text that is Markdown already."""

    __slots__ = ()


def _finished(value: object) -> object:
    return (
        markdown_text(value) if isinstance(value, str) and type(value) is not _Markdown else value
    )


def markdown_text(text: str) -> str:
    """A text of others (a name, an attribution) as one line of Markdown without any markup.

    Line breaks and control characters become spaces; what would begin a tag, link, heading, cell,
    code or formula is escaped. Underscores within a word mark up nothing and stay.
    """
    line = " ".join("".join(" " if unicodedata.category(c) == "Cc" else c for c in text).split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    line = re.sub(r"[\\`*\[\]|~#$]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", line)
    return re.sub(r"^[-+=](?=[-+=\s]|$)", r"\\\g<0>", line)


def _header(run: Run, licence: str | None) -> Mapping[str, Any]:
    if licence is None:
        shared = any(_CREATIVE_COMMONS in line for line in run.contract.attribution)
        licence = "cc-by-4.0" if shared else "other"
    return {
        "license": licence,
        "library_name": "bharateo",
        "pipeline_tag": "image-feature-extraction",
        "tags": ["earth-observation", "remote-sensing", "masked-autoencoder", "land-cover",
                 " ".join(run.sensor.name.split())],
    }  # fmt: skip


def _bands(run: Run) -> list[Mapping[str, Any]]:
    statistics = run.contract.statistics
    return [
        {**vars(band), "mean": mean, "std": std}
        for band, mean, std in zip(run.sensor.bands, statistics.mean, statistics.std, strict=True)
    ]


def _reconstruction_tables(run: Run) -> list[str]:
    """Masked patches rebuilt and classified, the model beside its baselines."""
    if not (run.path / EVALUATION_FILE).exists():
        return []
    tables = []
    evaluation = read_result(Evaluation, run.path / EVALUATION_FILE, "bharateo evaluate")
    declared = evaluation.with_metrics(declared_metrics(run.contract.heads)).metrics
    metrics = [each for each in declared if each.shown and each.baselines == "ranked"]
    for split, scores in evaluation.splits.items():
        rows = {"model": scores.model, **scores.baselines}
        table = _table(
            ["masked patches", *(markdown_text(each.title) for each in metrics)],
            [
                [shown, *(_with_interval(rows[name].value(metric), rows[name].interval(metric))
                          for metric in (each.name for each in metrics))]
                for name, shown in _PREDICTORS.items()
                if name in rows
            ],
        )  # fmt: skip
        model = scores.model
        intervals = _said_of_intervals(
            any(model.interval(each.name) for each in metrics),
            [model.no_interval.get(each.name) for each in metrics],
        )
        tables.append(
            f"Masked patches of the {markdown_text(split)} split ({scores.num_chips} chips on "
            f"{scores.num_blocks} blocks of ground), {intervals}:\n\n{table}"
        )
    return tables


def _probe_tables(folder: Path) -> list[str]:
    """Probes on the frozen features with all labels, beside those on everything simpler."""
    if not (folder / PROBES_FILE).exists():
        return []
    tables = []
    probes = read_result(Probes, folder / PROBES_FILE, "bharateo probe")
    for name, level in probes.levels.items():
        rows = [
            ["**encoder**" if each.features == "encoder" else markdown_text(each.features),
             markdown_text(each.probe),
             *(_with_interval(score.mean, score.ci95) if score else "none"
               for score in map(each.score, _PROBE_METRICS))]
            for each in level.results
            if each.budget == "all"
        ]  # fmt: skip
        if rows:
            head = ["features", "probe", *_PROBE_METRICS.values()]
            every = (each.score(metric) for each in level.results for metric in _PROBE_METRICS)
            scores = [score for score in every if score]
            intervals = _said_of_intervals(
                any(score.ci95 for score in scores), [score.no_interval for score in scores]
            )
            tables.append(
                f"Classes of test {markdown_text(name)}s, by probes on frozen features with all "
                f"labels of the train split (encoder: this run), {intervals}:\n\n"
                f"{_table(head, rows)}"
            )
    return tables


def _said_of_intervals(shown: bool, reasons: Sequence[str | None]) -> str:
    """What a table says of its intervals: that there are some, and why others are missing."""
    why = "; ".join(markdown_text(reason) for reason in dict.fromkeys(reasons) if reason)
    some = "with 95 % intervals over blocks of ground" if shown else "without intervals"
    return f"{some} ({'none where ' if shown else ''}{why})" if why else some


def _with_interval(value: float | None, ci95: tuple[float, float] | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" + (f" ({ci95[0]:.3f}-{ci95[1]:.3f})" if ci95 else "")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
