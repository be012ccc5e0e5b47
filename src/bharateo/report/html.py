"""The report of a run: one HTML file that needs nothing but a browser.

``read_run`` reads the run's files, ``article`` turns them into the page's text, ``write_report``
does both and writes the file. The page holds no time and no machine's name, so the same run and
dataset give the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from bharateo.chips.store import Dataset, read_recipe
from bharateo.errors import ConfigError, RunError
from bharateo.files import read_bytes, write_text
from bharateo.landcover import BHARATEO_CLASSES
from bharateo.outputs import beginning_with, check_outputs
from bharateo.plain_yaml import parse_yaml, write_yaml
from bharateo.report import ground, opening, panels, probes, render, scores
from bharateo.results import (
    EVALUATION_FILE,
    PROBES_FILE,
    PROVENANCE_FILE,
    Evaluation,
    Probes,
    Provenance,
    read_result,
)
from bharateo.training.contract import (
    CONFIG_FILE,
    CONTRACT_FILE,
    HISTORY_FILE,
    Contract,
    read_contract,
)

if TYPE_CHECKING:
    from bharateo.evaluation.reconstruction import Example, MaskedChip

REPORT_FILE = "report.html"
REPORT_MARK = "BharatEO pretraining report</title>"
NUM_EXAMPLES = 6


@dataclass(frozen=True)
class RunFiles:
    """What a run folder says about itself: its JSON files as records, its YAML as text."""

    contract: Contract
    history: Sequence[Mapping[str, Any]]
    evaluation: Evaluation
    config: str
    provenance: Provenance
    probes: Probes | None = None

    @property
    def on_own_dataset(self) -> bool:
        """Whether the run was evaluated on the dataset it was trained on."""
        return self.evaluation.dataset.fingerprint == self.contract.dataset.fingerprint


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
    from bharateo.evaluation.reconstruction import reconstruct
    from bharateo.training.run import Run, dataset_fingerprint

    run = Path(run)
    check_outputs("report", {run / REPORT_FILE: beginning_with(REPORT_MARK)}, ())
    files = read_run(run)
    opened = Dataset.open(dataset or evaluated_dataset(run, files))
    if dataset_fingerprint(opened) != files.evaluation.dataset.fingerprint:
        raise RunError(
            f"{run / 'evaluation.json'} is of another dataset than {opened.path}: evaluate the "
            "run on this one again, or name the evaluated dataset's folder"
        )
    split = scores.splits(files.evaluation)[0]
    shown = reconstruct(Run.open(run), opened, split, NUM_EXAMPLES)
    write_text(run / REPORT_FILE, article(files, opened, shown, why))
    return run / REPORT_FILE


def evaluated_dataset(run: Path, files: RunFiles) -> Path:
    """Where the evaluation found its dataset, else where the run did."""
    evaluated = Path(files.evaluation.dataset.path)
    places = (evaluated, run / evaluated, run / files.contract.dataset.path)
    return next((each for each in places if each.exists()), evaluated)


def read_run(run: Path) -> RunFiles:
    """The files of a finished and evaluated run.

    Raises:
        RunError: one is missing or unreadable; the message says what makes it.
    """
    from bharateo.models.heads import declared_metrics
    from bharateo.training.contract import Epoch, read_rows

    for name, verb in (
        (CONTRACT_FILE, "pretrain"),
        (HISTORY_FILE, "pretrain"),
        (EVALUATION_FILE, "evaluate"),
        (CONFIG_FILE, "pretrain"),
    ):
        if not (run / name).exists():
            command = f"bharateo {verb} {run}"
            if verb == "pretrain":
                command = f"bharateo pretrain CONFIG --dataset DATASET --output {run}"
            raise RunError(f"{run / name} is missing; make it: {command}")
    provenance, probed = run / PROVENANCE_FILE, run / PROBES_FILE
    contract = read_contract(run)
    evaluation = read_result(Evaluation, run / EVALUATION_FILE, "bharateo evaluate")
    return RunFiles(
        contract,
        read_rows(run / HISTORY_FILE, Epoch),
        evaluation.with_metrics(declared_metrics(contract.heads)),
        _text(run / CONFIG_FILE),
        read_result(Provenance, provenance, "bharateo demo")
        if provenance.exists()
        else Provenance(),
        read_result(Probes, probed, "bharateo probe") if probed.exists() else None,
    )


def _text(file: Path) -> str:
    try:
        return read_bytes(file).decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise RunError(
            f"{file} cannot be read ({reason}): restore it, or run `bharateo pretrain` again"
        ) from error


def article(
    files: RunFiles, dataset: Dataset, examples: Sequence[Example], why: str | None = None
) -> str:
    """The whole page as HTML, made from what a run says, its dataset and a few of its chips."""
    return article_template().render(
        **_opening(files, dataset, why),
        **opening.first_screen(dataset, files.evaluation, examples),
        losses=opening.losses(files.contract, dataset, files.evaluation, files.history),
        **scores.result(files.evaluation),
        **ground.shown(dataset),
        **ground.regions(dataset),
        **chips(dataset, examples),
        **reconstructions(dataset, examples),
        whole_colours=any(
            head.options.get("target") == "palette" for head in files.contract.heads.values()
        ),
        curves=scores.curves(files.history, files.evaluation, files.contract.kept),
        minimised=scores.minimised(files.evaluation),
        probes=probes.section(files.probes) if files.probes else None,
        **scores.all_numbers(files.evaluation, ground.classes(dataset)),
        accounting=list(files.contract.accounting.rows()),
        contract=_contract_rows(files.contract),
        **_reproduction(files, dataset),
    )


def article_template() -> Template:
    """The page's template; its blocks are figures that can be rendered by themselves."""
    environment = templates("report")
    macros = vars(environment.get_template("macros.html.j2").module)
    environment.globals |= {name: macro for name, macro in macros.items() if name[0] != "_"}
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


def _opening(files: RunFiles, dataset: Dataset, why: str | None) -> dict[str, Any]:
    """What this is, from where, and how it went."""
    contract, evaluation, own = files.contract, files.evaluation, files.on_own_dataset
    split = scores.splits(evaluation)[0]
    of_split = evaluation.splits[split]
    on = {
        "train": "its own training chips",
        "test": "ground held out for testing,",
        "val": "ground held out for validation,",
    }.get(split, "ground held out for validation,")
    if not own:
        on = f"the {split} split of another dataset than it was trained on,"
    trained_over = dataset.places if own else contract.dataset.places
    over = f", over {trained_over}" if trained_over else ""
    chosen = f"; its weights are those {contract.kept.shown}" if contract.kept else ""
    notes = dataset.info.get("notes") or []
    caveats = [
        dataset.sensor.notes,
        *([notes] if isinstance(notes, str) else notes),
        opening.cloud_note(dataset, split),
    ]
    return {
        "title": f"{dataset.sensor.title} over {dataset.places}",
        "dataset_name": evaluation.dataset.name,
        "trained": (
            f"A masked autoencoder of {contract.num_parameters / 1e6:.2f} million parameters "
            f"was trained for {scores.plural(len(files.history), 'epoch')} on "
            f"{contract.sensor.title}{over}{chosen}."
        ),
        "on": f"On {on}",
        "verdict": scores.verdict(of_split, scores.metrics_of(evaluation)),
        "only_train": list(evaluation.splits) == ["train"] and own,
        "other_dataset": not own,
        "source": dataset.origin,
        "why": why or (own and files.provenance.why) or "",
        "notes": list(dict.fromkeys(str(note) for note in caveats if note)),
        "attribution": list(dict.fromkeys([*contract.attribution, *dataset.attribution])),
        "patch_px": contract.patch_px,
        "mask_ratio": contract.mask_ratio,
        "chip_px": contract.chip_px,
    }


def chips(dataset: Dataset, examples: Sequence[MaskedChip]) -> dict[str, Any]:
    """Chips with their labels, and the first of them as tokens."""
    sensor, classes = render.as_shown(dataset), ground.classes(dataset)
    std = dataset.statistics.std if sensor.standardised else np.ones(sensor.num_bands)
    return {
        "chips": [
            (example.chip, panels.label_panels(example, sensor, classes)) for example in examples
        ],
        "tokens": panels.token_panels(examples[0], sensor, std) if examples else [],
        "token_chip": examples[0].chip if examples else "",
        "token_grid": " by ".join(map(str, examples[0].hidden.shape)) if examples else "",
        "example_split": examples[0].split if examples else "",
    }


def reconstructions(dataset: Dataset, examples: Sequence[Example]) -> dict[str, Any]:
    """What a run makes of chips: pixels and their errors, classes, and its heads' other layers."""
    sensor, classes = render.as_shown(dataset), ground.classes(dataset)
    errors = [
        panels.absolute_error(example, made)
        for example in examples
        for made in (example.reconstruction, example.nearest)
        if made is not None
    ]
    top = panels.error_top(errors)
    layers = [made.layer for made in examples[0].layers] if examples else []
    return {
        "examples": [
            {
                "chip": example.chip,
                "reconstructions": [
                    panels.reconstruction_panels(example, sensor, composite, classes)
                    for composite in sensor.composites
                ],
                "errors": panels.error_panels(example, top),
                "classes": panels.class_panels(example, classes),
            }
            for example in examples
        ],
        "layers": [
            {
                "name": layer.name,
                "legend": panels.class_legend(layer.classes),
                "unit": layer.unit,
                "low_high": layer.range,
                "chips": [
                    (example.chip, panels.layer_panels(example, example.layers[number]))
                    for example in examples
                ],
            }
            for number, layer in enumerate(layers)
            if layer.classes != BHARATEO_CLASSES  # which have their own place
        ],
        "ramp": Markup(render.ramp_css()),
        "error_top": f"{top:g}",
    }


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
    normalisation = (
        "inside the model: minus the mean, divided by the standard deviation, band by band"
        if sensor.standardised
        else "none: values are taken as they are"
    )
    return [
        ("bands, in this order", ", ".join(sensor.band_names)),
        ("unit", sensor.unit),
        ("stored values", f"{sensor.dtype} × {sensor.scale:g} + {sensor.offset:g}"),
        ("normalisation", normalisation),
        ("train statistics, mean ± std", means),
        ("statistics over", f"{statistics.num_pixels:,} valid pixels of the train split"),
        ("statistics hash", statistics.hash),
        ("model", f"{model['name']}: {shape}"),
        ("heads", heads),
        ("parameters", f"{contract.num_parameters:,}"),
        *([("weights", contract.kept.shown)] if contract.kept else []),
        ("dataset fingerprint", contract.dataset.fingerprint),
        ("code", f"bharateo {contract.code_version}"),
    ]


def _reproduction(files: RunFiles, dataset: Dataset) -> dict[str, Any]:
    """The training's configuration with the ``data`` section its dataset was built from.

    The run's own ``data`` section is not read by a training and may be of any other dataset. Where
    the dataset's is not known there is none, and the build command is left out.
    """
    theirs = dataset.path if files.on_own_dataset else Path(files.contract.dataset.path)
    recipe = read_recipe(theirs)
    try:
        config = parse_yaml(files.config, "config.yaml is no YAML")
    except ConfigError as error:
        raise RunError(f"{error}: restore the file, or train the run again") from error
    if not isinstance(config, dict):
        raise RunError("config.yaml holds no configuration: restore it, or train the run again")
    config.pop("data", None)
    return {
        "config": write_yaml(({} if recipe is None else {"data": recipe}) | config),
        "dataset_recipe_known": recipe is not None,
        "trained_dataset": theirs.name,
    }
