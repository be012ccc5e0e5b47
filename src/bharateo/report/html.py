"""The report of a run: one HTML file that needs nothing but a browser.

``read_run`` reads the run's files, ``article`` turns them into the page's text, ``write_report``
does both and writes the file. The page holds no time and no machine's name, so the same run and
dataset give the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from bharateo.chips.store import RECIPE_FILE, Dataset
from bharateo.errors import ConfigError, RunError
from bharateo.files import read_bytes, write_text
from bharateo.landcover import BHARATEO_CLASSES, IGNORE
from bharateo.outputs import beginning_with, check_outputs
from bharateo.plain_yaml import parse_yaml, write_yaml
from bharateo.report import findings, panels, probes, render
from bharateo.report.findings import MASKED_ACCURACY, MASKED_MAE, Metric, Scores
from bharateo.report.panels import Estimate, Outline, Series
from bharateo.results import (
    EVALUATION_FILE,
    PROBES_FILE,
    PROVENANCE_FILE,
    Evaluation,
    Probes,
    Provenance,
    read_result,
)
from bharateo.sensor import Sensor
from bharateo.training.contract import (
    CONFIG_FILE,
    CONTRACT_FILE,
    HISTORY_FILE,
    Contract,
    read_contract,
)

if TYPE_CHECKING:
    import pandas as pd

    from bharateo.evaluation.reconstruction import Chip, Example

REPORT_FILE = "report.html"
REPORT_MARK = "BharatEO pretraining report</title>"
NUM_EXAMPLES = 6
MOST_REGIONS_DRAWN = 6
_MOST_SQUARES_DRAWN = 300
_MOST_NAMES_IN_SIGHT = 20
_MACROS = ("plate", "scroll", "metric_cells", "metric_head", "no_label")


@dataclass(frozen=True)
class RunFiles:
    """What a run folder says about itself: its JSON files as plain values, its YAML as text."""

    contract: Contract
    history: Sequence[Mapping[str, Any]]
    evaluation: Mapping[str, Any]
    config: str
    provenance: Mapping[str, str]
    probes: Mapping[str, Any] | None = None


def write_report(run: Path, dataset: Path | None = None, why: str | None = None) -> Path:
    """Write ``run/report.html`` and return its path.

    ``dataset`` is the folder that was evaluated, by default where the evaluation found it; ``why``
    says why these pixels and no others, by default what the run's ``provenance.json`` says.

    Raises:
        ConfigError: there is a ``report.html`` of somebody else's.
        RunError: the run is unfinished or not evaluated, or its evaluation is of other pixels.
        DatasetError: the dataset is not where it was.
        StorageError: the file cannot be written.
    """
    from bharateo.evaluation.reconstruction import examples
    from bharateo.training.checkpoint import Run, dataset_fingerprint

    run = Path(run)
    check_outputs("report", {run / REPORT_FILE: beginning_with(REPORT_MARK)}, ())
    files = read_run(run)
    opened = Dataset.open(dataset or _evaluated_dataset(run, files))
    if dataset_fingerprint(opened) != files.evaluation["dataset"]["fingerprint"]:
        raise RunError(
            f"{run / 'evaluation.json'} is of another dataset than {opened.path}: evaluate the "
            "run on this one again, or name the evaluated dataset's folder"
        )
    split = findings.splits(files.evaluation)[0]
    shown = examples(Run.open(run), opened, split, NUM_EXAMPLES)
    write_text(run / REPORT_FILE, article(files, opened, shown, why))
    return run / REPORT_FILE


def read_run(run: Path) -> RunFiles:
    """The files of a finished and evaluated run.

    Raises:
        RunError: one is missing or unreadable; the message says what makes it.
    """
    from bharateo.training.watch import Epoch, read_rows

    for name, verb in (
        (CONTRACT_FILE, "pretrain"),
        (HISTORY_FILE, "pretrain"),
        (EVALUATION_FILE, "evaluate"),
        (CONFIG_FILE, "pretrain"),
    ):
        if not (run / name).exists():
            raise RunError(f"{run / name} is missing: run `bharateo {verb}` first")
    provenance, probed = run / PROVENANCE_FILE, run / PROBES_FILE
    return RunFiles(
        read_contract(run),
        read_rows(run / HISTORY_FILE, Epoch),
        read_result(Evaluation, run / EVALUATION_FILE, "bharateo evaluate"),
        _text(run / CONFIG_FILE),
        read_result(Provenance, provenance, "bharateo demo") if provenance.exists() else {},
        read_result(Probes, probed, "bharateo evaluate --probe") if probed.exists() else None,
    )


def _text(file: Path) -> str:
    try:
        return read_bytes(file).decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise RunError(
            f"{file} cannot be read ({reason}): restore it, or run `bharateo pretrain` again"
        ) from error


def _evaluated_dataset(run: Path, files: RunFiles) -> Path:
    """Where the evaluation found its dataset, else where the run did."""
    evaluated = Path(files.evaluation["dataset"]["path"])
    candidates = (evaluated, run / evaluated, run / files.contract.dataset.path)
    return next((path for path in candidates if path.exists()), evaluated)


def article(
    files: RunFiles, dataset: Dataset, examples: Sequence[Example], why: str | None = None
) -> str:
    """The whole page as HTML, made from what a run says, its dataset and a few of its chips."""
    return article_template().render(
        **_opening(files, dataset, why),
        **result(files.evaluation),
        **shown(dataset),
        **regions(dataset),
        **chips(dataset, examples),
        **reconstructions(dataset, examples),
        curves=curves(files),
        probes=probes.section(files.probes) if files.probes else None,
        **all_numbers(files.evaluation),
        accounting=list(files.contract.accounting.rows()),
        contract=_contract_rows(files.contract),
        **_reproduction(files, dataset),
    )


def article_template() -> Template:
    """The page's template; its blocks are figures that can be rendered by themselves."""
    environment = templates("report")
    macros = environment.get_template("macros.html.j2").module
    environment.globals |= {name: getattr(macros, name) for name in _MACROS}
    return environment.get_template("article.html.j2")


def templates(folder: str) -> Environment:
    """The templates of pages that lie in a folder of the package; a missing name is an error."""
    return Environment(
        loader=PackageLoader("bharateo", folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


# The opening: what this is, from where, and how it went


def _opening(files: RunFiles, dataset: Dataset, why: str | None) -> dict[str, Any]:
    contract, evaluation = files.contract, files.evaluation
    split = findings.splits(evaluation)[0]
    scores = evaluation["splits"][split]
    own = _own_dataset(files)
    ground = _ground(split, own)
    trained = (
        f"A masked autoencoder of {contract.num_parameters / 1e6:.2f} million parameters was "
        f"trained for {_plural(len(files.history), 'epoch')} on "
        f"{contract.sensor.title}{_among(dataset) if own else ''}."
    )
    return {
        "title": contract.sensor.title,
        "dataset_name": evaluation["dataset"]["name"],
        "trained": trained,
        "headline": f"On {ground} {findings.headline(scores)}.",
        "verdict": findings.verdict(scores),
        "only_train": list(evaluation["splits"]) == ["train"] and own,
        "other_dataset": not own,
        "source": _source(dataset),
        "why": why or (own and files.provenance.get("why")) or "",
        "notes": _notes(dataset),
        "attribution": list(dict.fromkeys([*contract.attribution, *dataset.attribution])),
        "patch_px": contract.patch_px,
        "mask_ratio": contract.mask_ratio,
        "chip_px": contract.chip_px,
    }


def _own_dataset(files: RunFiles) -> bool:
    """Whether the run was evaluated on the dataset it was trained on."""
    theirs: str = files.evaluation["dataset"]["fingerprint"]
    return theirs == files.contract.dataset.fingerprint


def _ground(split: str, own_dataset: bool) -> str:
    if not own_dataset:
        return f"the {split} split of another dataset than it was trained on,"
    if split == "train":
        return "its own training chips"
    return f"ground held out for {'testing' if split == 'test' else 'validation'},"


def _among(dataset: Dataset) -> str:
    names = dataset.regions
    if len(names) > 3:
        return f", over {len(names)} regions"
    return f", over {_list(names)}"


def _list(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _source(dataset: Dataset) -> str:
    source = dataset.info.get("source", {})
    image, labels = source.get("image"), source.get("landcover")
    if not image:
        return dataset.sensor.title
    return image if image == labels or not labels else f"{image}; labels: {labels}"


def _notes(dataset: Dataset) -> list[str]:
    """Caveats of the sensor and of the dataset, each once."""
    notes = dataset.info.get("notes") or []
    every = [dataset.sensor.notes, *([notes] if isinstance(notes, str) else notes)]
    return list(dict.fromkeys(str(note) for note in every if note))


# The result on the most telling split


def result(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """The charts of the most telling split, and what they say."""
    split = findings.splits(evaluation)[0]
    scores = evaluation["splits"][split]
    drawn = [m for m in (MASKED_ACCURACY, MASKED_MAE) if scores["model"].get(m.key) is not None]
    return {
        "split": split,
        "result_charts": [_interval_chart(scores, metric) for metric in drawn],
        "bars_drawn": any(findings.interval(scores["model"], metric) for metric in drawn),
        "comparisons": findings.comparisons(scores),
        "result_size": _size(scores),
        "no_intervals": findings.no_intervals(scores),
        "bootstrap": evaluation.get("bootstrap", {}),
        "metrics": findings.METRICS,
    }


def _size(scores: Scores) -> str:
    """How much was measured, e.g. ``96 chips in 9 blocks, 4,608 labelled masked patches``."""
    num_patches = int(np.sum(scores["model"].get("confusion_masked") or 0))
    return (
        f"{_plural(scores['num_chips'], 'chip')} in {_plural(scores['num_blocks'], 'block')}, "
        f"{num_patches:,} labelled masked patches"
    )


def _interval_chart(scores: Scores, metric: Metric) -> dict[str, Any]:
    colours = {findings.MODEL: panels.SERIES[0], findings.BAR: panels.SERIES[1]}
    estimates = [
        Estimate(
            findings.method_name(method),
            own[metric.key],
            findings.interval(own, metric),
            colours.get(method, panels.MUTED),
        )
        for method, own in findings.methods(scores).items()
        if own.get(metric.key) is not None
    ]
    estimates.sort(key=lambda one: one.value, reverse=metric.higher_is_better)
    alt = f"{metric.title}: " + ", ".join(
        f"{one.label} {metric.show(one.value)}"
        + (f" (95 % interval {findings.span(metric, one.interval)})" if one.interval else "")
        for one in estimates
    )
    better = "further right is better" if metric.higher_is_better else "further left is better"
    return {
        "title": f"{metric.title}: {better}",
        "svg": panels.interval_chart(estimates, metric.show, alt),
    }


# Regions


def shown(dataset: Dataset) -> dict[str, Any]:
    """What every picture needs to be understood: composites, stretches, classes and colours."""
    sensor = dataset.sensor
    return {
        "sensor": sensor,
        "composites": list(sensor.composites),
        "several": len(sensor.composites) > 1,
        "stretches": "; ".join(render.stretch_note(sensor, name) for name in sensor.composites),
        "scheme": dataset.info["class_scheme"],
        "legend": [
            {"name": panels.class_name(c.id), "css": panels.class_css(c.id)}
            for c in BHARATEO_CLASSES
        ],
    }


def regions(dataset: Dataset) -> dict[str, Any]:
    """The largest regions as maps, each with its histogram, and the names of the others."""
    records = dataset.info["regions"]
    # a dataset of very many regions keeps overviews of some only
    drawn = [record for record in records if "overview" in record][:MOST_REGIONS_DRAWN]
    names_drawn = {record["name"] for record in drawn}
    not_drawn = [r["name"] for r in records if r["name"] not in names_drawn]
    return {
        "regions": [_region(dataset, record) for record in drawn],
        "regions_not_drawn": not_drawn,
        "fold_not_drawn": len(not_drawn) > _MOST_NAMES_IN_SIGHT,
        "splits_drawn": has_splits(dataset),
    }


def _region(dataset: Dataset, record: Mapping[str, Any]) -> dict[str, Any]:
    name = record["name"]
    chips = dataset.chips[dataset.chips["region"] == name]
    stored, classes, valid = dataset.overview(name)
    step_px = int(record["overview"]["step_px"])
    image = render.physical(stored, dataset.sensor)
    by_block = has_splits(dataset) or len(chips) > _MOST_SQUARES_DRAWN
    frames = outlines(chips, by_block)
    size = f"{record['shape'][1]:,} by {record['shape'][0]:,} pixels"
    plates = [
        *(
            panels.map_plate(
                render.composite_rgb(image, dataset.sensor, valid, composite),
                step_px,
                frames,
                composite,
                f"{name}, {size}, {composite}",
            )
            for composite in dataset.sensor.composites
        ),
        panels.map_plate(
            render.class_rgb(classes),
            step_px,
            frames if by_block else [],
            f"{dataset.info['class_scheme']['name']} classes",
            f"Land cover of {name}: {panels.shares(classes, most=4)}",
        ),
    ]
    return {
        "name": name,
        "where": _where(record),
        "size": size,
        "squares": _squares(chips, dataset.size_px),
        "plates": plates,
        "histogram": histogram(record["native_counts"], dataset.info["class_scheme"]),
        "provenance": _provenance(record.get("provenance", {})),
    }


def has_splits(dataset: Dataset) -> bool:
    """Whether any ground of a dataset is held out of training."""
    return set(dataset.chips["split"]) != {"train"}


def outlines(chips: pd.DataFrame, by_block: bool) -> list[Outline]:
    """What to draw on a region's map: where its blocks' squares lie, or each square by itself."""
    groups = chips.groupby(["split", "block"] if by_block else ["split", "chip"], sort=True)
    found = []
    for (split, _), own in groups:
        row, col = int(own["row"].min()), int(own["col"].min())
        end_row = int((own["row"] + own["size_px"]).max())
        end_col = int((own["col"] + own["size_px"]).max())
        found.append(Outline(row, col, end_row - row, end_col - col, str(split)))
    # train first, so that what is held out is drawn over it
    return sorted(found, key=lambda outline: outline.split != "train")


def _where(record: Mapping[str, Any]) -> str:
    """The corners in degrees, hemispheres by letter, and the grid's reference system."""
    if "bounds_lonlat" not in record:
        return str(record.get("crs", ""))
    west, south, east, north = record["bounds_lonlat"]
    lon = f"{_degrees(west, 'E', 'W')} to {_degrees(east, 'E', 'W')}"
    lat = f"{_degrees(south, 'N', 'S')} to {_degrees(north, 'N', 'S')}"
    return f"{lon}, {lat} ({record['crs']})"


def _degrees(value: float, positive: str, negative: str) -> str:
    wrapped = value - 360 if value > 180 else value
    return f"{abs(wrapped):.3f}° {positive if wrapped >= 0 else negative}"


def _squares(chips: pd.DataFrame, size_px: int) -> str:
    counts = chips["split"].value_counts()
    named = [f"{counts[s]} {s}" for s in ("train", "val", "test") if s in counts]
    return f"{', '.join(named) or 'no'} squares of {size_px} px"


def histogram(native_counts: Mapping[str, int], scheme: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for every native code that occurs: name, class, pixels and share, nodata last."""
    total = sum(native_counts.values())
    most = max(native_counts.values())
    nodata = str(scheme["nodata"])
    codes = sorted(native_counts, key=lambda code: (code == nodata, int(code)))
    rows = []
    for code in codes:
        name, class_id = scheme["native"].get(code, ("no data", IGNORE))
        labelled = code != nodata
        rows.append({
            "code": int(code),
            "name": name if labelled else "no data",
            "class_name": panels.class_name(class_id) if labelled else "ignored",
            "css": panels.class_css(class_id) if labelled else None,
            "num": native_counts[code],
            "share": native_counts[code] / total,
            "bar": native_counts[code] / most,
        })  # fmt: skip
    return rows


def _provenance(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was read, layer by layer, flattened to names and text."""
    rows = []
    for layer, facts in record.items():
        for name, value in facts.items() if isinstance(facts, Mapping) else [("", facts)]:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            rows.append((f"{layer} {name}".strip().replace("_", " "), text))
    return rows


# Chips


def chips(dataset: Dataset, examples: Sequence[Chip]) -> dict[str, Any]:
    """Chips with their labels, and the first of them as tokens."""
    sensor = dataset.sensor
    std = dataset.statistics.std if sensor.standardised else np.ones(sensor.num_bands)
    return {
        "chips": [
            {"chip": example.chip, "labels": panels.label_plates(example, sensor)}
            for example in examples
        ],
        "tokens": panels.token_plates(examples[0], sensor, std) if examples else [],
        "token_chip": examples[0].chip if examples else "",
        "token_grid": " by ".join(map(str, examples[0].hidden.shape)) if examples else "",
        "example_split": examples[0].split if examples else "",
    }


def reconstructions(dataset: Dataset, examples: Sequence[Example]) -> dict[str, Any]:
    """What a run makes of chips: pixels, errors and classes."""
    sensor = dataset.sensor
    errors = [
        panels.absolute_error(e, made) for e in examples for made in (e.reconstruction, e.nearest)
    ]
    top = panels.error_top(errors)
    return {
        "examples": [
            {
                "chip": example.chip,
                "reconstructions": [
                    panels.reconstruction_plates(example, sensor, composite)
                    for composite in sensor.composites
                ],
                "errors": panels.error_plates(example, top),
                "classes": panels.class_plates(example),
            }
            for example in examples
        ],
        "ramp": Markup(render.ramp_css()),
        "error_top": f"{top:g}",
    }


# Learning curves


def curves(files: RunFiles) -> list[dict[str, Any]]:
    """The charts of a run's history."""
    history = files.history
    if not history:
        return []
    has_val = any(key.startswith("val_") for key in history[0])
    prefixes = ("", "val_") if has_val else ("",)
    charts = [
        *(_loss_chart(files, prefix) for prefix in prefixes),
        *(_accuracy_chart(files, prefix) for prefix in prefixes),
        _mae_chart(files, has_val),
        _rate_chart(history),
    ]
    return [chart for chart in charts if chart]


def _loss_chart(files: RunFiles, prefix: str) -> dict[str, Any]:
    weights = {name: head.weight for name, head in files.contract.heads.items()}
    pixels, classes = weights.get("pixels", 0.0), weights.get("landcover", 0.0)
    parts = [
        ("total", "loss", 1.0),
        (_weighted("SmoothL1", pixels), "rec_smooth_l1", pixels),
        (_weighted("CE", classes), "esa_ce", classes),
    ]
    series = [
        Series(label, _values(files.history, prefix + key, weight), colour)
        for (label, key, weight), colour in zip(parts, panels.SERIES, strict=True)
    ]
    both = _values(files.history, "loss") + _values(files.history, "val_loss")
    top = max((value for value in both if value is not None), default=0.0)
    show = "{:.3f}".format
    return _chart(f"Loss, {_split_of(prefix)}", files.history, series, show, top)


def _weighted(name: str, weight: float) -> str:
    return name if weight == 1 else f"{weight:g} × {name}"


def _accuracy_chart(files: RunFiles, prefix: str) -> dict[str, Any]:
    parts = [("masked", "esa_acc_masked"), ("visible", "esa_acc_visible"), ("all", "esa_acc")]
    series = [
        Series(label, _values(files.history, prefix + key), colour)
        for (label, key), colour in zip(parts, panels.SERIES, strict=True)
    ]
    if prefix:
        series += _level(files.evaluation, MASKED_ACCURACY)
    title = f"Patch-class accuracy, {_split_of(prefix)}"
    return _chart(title, files.history, series, MASKED_ACCURACY.show, 1.0)


def _mae_chart(files: RunFiles, has_val: bool) -> dict[str, Any]:
    series = [Series("train", _values(files.history, "masked_mae"), panels.SERIES[0])]
    if has_val:
        val = _values(files.history, "val_masked_mae")
        series.append(Series("val", val, panels.SERIES[1], dashed=True))
        series += _level(files.evaluation, MASKED_MAE)
    return _chart("Masked MAE", files.history, series, MASKED_MAE.show)


def _rate_chart(history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    series = [Series("", _values(history, "lr"), panels.MUTED)]
    return _chart("Learning rate", history, series, "{:.2g}".format)


def _level(evaluation: Mapping[str, Any], metric: Metric) -> list[Series]:
    """The copy's value on the val split as a line to compare the val curve with."""
    scores = evaluation["splits"].get("val")
    value = scores["baselines"].get(findings.BAR, {}).get(metric.key) if scores else None
    if value is None:
        return []
    return [Series("copy", [value], panels.MUTED, level=True)]


def _split_of(prefix: str) -> str:
    return "validation" if prefix else "training"


def _values(
    history: Sequence[Mapping[str, Any]], key: str, weight: float = 1.0
) -> list[float | None]:
    return [None if row.get(key) is None else weight * row[key] for row in history]


def _chart(
    title: str,
    history: Sequence[Mapping[str, Any]],
    series: Sequence[Series],
    show: Callable[[float], str],
    top: float | None = None,
) -> dict[str, Any]:
    """A chart with its title and words, empty when nothing in it was measured.

    Its axis ends a little above ``top``, by default its largest value.
    """
    measured = [(line, [v for v in line.values if v is not None]) for line in series]
    words = [
        f"{line.label} {show(values[0])}" + ("" if line.level else f" to {show(values[-1])}")
        for line, values in measured
        if values
    ]
    if not words:
        return {}
    epochs = [int(row["epoch"]) for row in history]
    alt = f"{title} from epoch {epochs[0]} to {epochs[-1]}: {', '.join(words)}"
    kept = [line for line, values in measured if values]
    end = 1.04 * (top or max(max(values) for _, values in measured if values)) or 1.0
    return {"title": title, "svg": panels.curve_chart(epochs, kept, show, alt, end)}


# All the numbers


def all_numbers(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """The tables of every split, and where the masked patches of each class went."""
    return {
        "tables": [
            _split_table(split, evaluation["splits"][split])
            for split in findings.splits(evaluation)
        ],
        "confusion": _confusion(evaluation["splits"][findings.splits(evaluation)[0]]),
    }


def _split_table(split: str, scores: Scores) -> dict[str, Any]:
    model = scores["model"]
    parts = [("total", "loss"), ("SmoothL1", "rec_smooth_l1"), ("cross-entropy", "esa_ce")]
    return {
        "split": split,
        "size": _size(scores),
        "no_intervals": findings.no_intervals(scores),
        "rows": findings.metric_rows(scores),
        "losses": [
            (name, f"{model[key]:.4f}") for name, key in parts if model.get(key) is not None
        ],
        "per_roi": [
            {"name": name, "size": _size(own), "rows": findings.metric_rows(own)}
            for name, own in scores.get("per_roi", {}).items()
        ],
    }


def _confusion(scores: Scores) -> dict[str, Any]:
    shown, rows = findings.confusion(scores)
    return {
        "columns": [panels.class_name(class_id) for class_id in shown],
        "colours": [panels.class_css(class_id) for class_id in shown],
        "rows": [
            {
                "name": panels.class_name(row.class_id),
                "css": panels.class_css(row.class_id),
                "class_id": row.class_id,
                "num": row.num,
                "cells": [
                    {"num": num, "share": share, "right": class_id == row.class_id}
                    for class_id, (num, share) in zip(shown, row.cells, strict=True)
                ],
            }
            for row in rows
        ],
    }


# The run


def _contract_rows(contract: Contract) -> list[tuple[str, str]]:
    sensor, statistics = contract.sensor, contract.statistics
    means = ", ".join(
        f"{band} {mean:.4f} ± {std:.4f}"
        for band, mean, std in zip(sensor.band_names, statistics.mean, statistics.std, strict=True)
    )
    heads = ", ".join(
        f"{name} × {head.weight:g}"
        + "".join(f", {key} {value}" for key, value in head.options.items())
        for name, head in contract.heads.items()
    )
    model = contract.model.model_dump()
    shape = ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in model.items() if k != "name")
    return [
        ("bands, in this order", ", ".join(sensor.band_names)),
        ("unit", sensor.unit),
        ("stored values", f"{sensor.dtype} × {sensor.scale:g} + {sensor.offset:g}"),
        ("normalisation", _normalisation(sensor)),
        ("train statistics, mean ± std", means),
        ("statistics over", f"{statistics.num_pixels:,} valid pixels of the train split"),
        ("statistics hash", statistics.hash),
        ("model", f"{model['name']}: {shape}"),
        ("heads", heads),
        ("parameters", f"{contract.num_parameters:,}"),
        ("dataset fingerprint", contract.dataset.fingerprint),
        ("code", f"bharateo {contract.code_version}"),
    ]


def _normalisation(sensor: Sensor) -> str:
    if sensor.standardised:
        return "inside the model: minus the mean, divided by the standard deviation, band by band"
    return "none: values are taken as they are"


def _reproduction(files: RunFiles, dataset: Dataset) -> dict[str, Any]:
    """The training's configuration with the ``data`` section its dataset was built from.

    The run's own ``data`` section is not read by a training and may be of any other dataset. Where
    the dataset's is not known there is none, and the build command is left out.
    """
    theirs = dataset.path if _own_dataset(files) else Path(files.contract.dataset.path)
    recipe = theirs / RECIPE_FILE
    config = {key: value for key, value in _yaml(files.config, "config.yaml").items()
              if key != "data"}  # fmt: skip
    if recipe.exists():
        config = _yaml(_text(recipe), str(recipe)) | config
    return {
        "config": write_yaml(config),
        "dataset_recipe_known": recipe.exists(),
        "trained_dataset": theirs.name,
    }


def _yaml(text: str, where: str) -> dict[str, Any]:
    try:
        record = parse_yaml(text, f"{where} is no YAML")
    except ConfigError as error:
        raise RunError(f"{error}: restore the file, or make its folder again") from error
    if not isinstance(record, dict):
        raise RunError(f"{where} holds no configuration: restore it, or make its folder again")
    return record
