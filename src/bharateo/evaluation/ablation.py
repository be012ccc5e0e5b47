"""Ablation: the same training with something changed, scored by probes of the frozen features.

::

    DIR/shared.json             what all trainings have in common, written first; another ablation
                                is refused the folder
    DIR/CELL/seed-N/            a run, as ``pretrain`` makes it
    DIR/CELL/seed-N/probe.json  its probe's confusion matrices by block; written last
    DIR/ablation.json, .md      the table, when every cell is there

A cell is one combination of settings. Weights of 0 take a head out of the training.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bharateo.artefacts import checked, read_json
from bharateo.chips.store import SPLITS, Dataset
from bharateo.config import Config, setting, to_record, to_yaml, with_settings
from bharateo.errors import ConfigError, ContractError, RunError
from bharateo.evaluation.comparison import Confusions, compared, shown
from bharateo.evaluation.features import Features, encoder, extract
from bharateo.evaluation.probes import fit_linear
from bharateo.evaluation.scores import confusion
from bharateo.files import write_json, write_text
from bharateo.handover.card import markdown_text
from bharateo.landcover import NUM_CLASSES
from bharateo.plain_yaml import parse_yaml
from bharateo.results import (
    ABLATION_FILE,
    METRICS,
    AblatedDataset,
    Ablation,
    AblationCell,
    AblationProbe,
    Confusion,
    Number,
    Part,
)
from bharateo.sensor import BAND_SETS, named_bands
from bharateo.training.loop import Progress, pretrain
from bharateo.training.run import Run, dataset_fingerprint
from bharateo.version import __version__

SCHEMA_VERSION = 1
SHARED_FILE = "shared.json"
PROBE_FILE = "probe.json"
BANDS = "training.bands"
WEIGHT, TARGET = "heads.landcover.weight", "heads.landcover.options.target"
WEIGHTS = (0, 0.2, 0.5)
MOST_EXAMPLES = 10_000
"""Patches of the train split that the probe is fitted to; the same ones in every cell."""

OnProgress = Callable[[float, float, str], None]
"""Told (trainings done, trainings in all, what is going on)."""


@dataclass(frozen=True)
class Factor:
    """A dotted key of the configuration and the values it takes."""

    key: str
    values: tuple[Any, ...]

    @classmethod
    def parse(cls, text: str) -> Factor:
        """The factor in ``KEY=VALUE,VALUE``; ``bands`` is short for ``training.bands``, and takes
        sets of bands and names joined by +, e.g. ``bands=rgb,B08+B11``.

        Raises:
            ConfigError: there is no key or no value.
        """
        key, equals, values = text.partition("=")
        if not (key and equals and all(values.split(","))):
            raise ConfigError(
                f"--vary {text!r} is not KEY=VALUE,VALUE,..., e.g. training.lr=0.001,0.002"
            )
        key = BANDS if key == "bands" else key
        each = values.split(",")
        if key == BANDS:
            return cls(key, tuple(each))
        return cls(key, tuple(parse_yaml(value, f"--vary {text!r} is no YAML") for value in each))


@dataclass(frozen=True)
class Cell:
    """One combination: its folder's name, the value of every factor, what is trained with it."""

    name: str
    settings: Mapping[str, Any]
    config: Config


def default_factors(dataset: Dataset) -> list[Factor]:
    """Does WorldCover help, as shares or as the most frequent class, and which bands: those of
    the usual sets that the dataset holds.
    """
    there = {*dataset.sensor.band_names}
    sets = tuple(name for name in ("rgb", "rgbn", "10band") if {*BAND_SETS[name]} <= there)
    factors = [Factor(WEIGHT, WEIGHTS), Factor(TARGET, ("mode", "fraction"))]
    return [*factors, Factor(BANDS, sets)] if len(sets) > 1 else factors


def quick(config: Config) -> tuple[Config, list[Factor]]:
    """The smallest grid: with the labels and without, for at most ten epochs."""
    weight = setting(config, WEIGHT) or WEIGHTS[1]
    training = replace(config.training, epochs=min(config.training.epochs, 10))
    return replace(config, training=training), [Factor(WEIGHT, (0, weight))]


def grid(
    config: Config, dataset: Dataset, factors: Sequence[Factor], full: bool = False
) -> list[Cell]:
    """The base cell, which is the configuration as it is, and the others: with one factor changed,
    or (``full``) every combination. What is trained alike is one cell.

    Raises:
        ConfigError: a key or value does not exist.
    """
    for factor in factors:
        _check_key(factor.key)
    base = {factor.key: _base_value(config, factor.key) for factor in factors}
    changes: Iterator[dict[str, Any]]
    if full:
        keys = [factor.key for factor in factors]
        products = itertools.product(*(factor.values for factor in factors))
        changes = (dict(zip(keys, values, strict=True)) for values in products)
    else:
        changes = ({factor.key: value} for factor in factors for value in factor.values)
    cells: dict[str, Cell] = {}
    for change in ({}, *changes):
        trained = _trained_with(config, dataset, change)
        settings = base | change
        if BANDS in settings:
            settings[BANDS] = settings[BANDS] if trained.training.bands else "all"
        cells.setdefault(to_yaml(trained), Cell(_name(settings, base, trained), settings, trained))
    return list(cells.values())


def _check_key(key: str) -> None:
    """Refuse keys that change nothing in a training, and the seed, which every cell has several of.

    Raises:
        ConfigError: it is one of them.
    """
    if key.partition(".")[0] not in ("model", "heads", "training") or key == "training.seed":
        raise ConfigError(
            f"--vary {key}: vary keys of model, heads and training; seeds are what --seeds is for"
        )


def _base_value(config: Config, key: str) -> Any:
    value = setting(config, key)
    return ("+".join(value) or "all") if key == BANDS else value


def _trained_with(config: Config, dataset: Dataset, change: Mapping[str, Any]) -> Config:
    """The configuration with the change made, without heads of no weight."""
    values = dict(change)
    if BANDS in values:
        names = named_bands(str(values[BANDS]).split("+"))
        dataset.with_bands(names)  # refuses bands that are not there
        values[BANDS] = [] if names == dataset.sensor.band_names else list(names)
    changed = with_settings(config, values)
    heads = {name: head for name, head in changed.heads.items() if head.weight}
    if not heads:
        raise ConfigError(f"{change}: no head has a weight, so there is nothing to learn")
    return replace(changed, heads=heads)


def _name(settings: Mapping[str, Any], base: Mapping[str, Any], trained: Config) -> str:
    """What differs from the base in what is trained: the same name in every grid."""
    differs = [
        f"{key}={value}"
        for key, value in settings.items()
        if value != base[key] and not _of_no_head(key, trained)
    ]
    return ",".join(differs) or "base"


def _of_no_head(key: str, trained: Config) -> bool:
    section, _, rest = key.partition(".")
    name, _, what = rest.partition(".")
    return section == "heads" and what.startswith("options") and name not in trained.heads


def ablate(
    cells: Sequence[Cell],
    dataset: Dataset,
    output: Path,
    seeds: int,
    on_progress: OnProgress = lambda done, total, note: None,
) -> Ablation:
    """Train and score every cell with so many seeds, and write the table; the first is the base.

    Goes on where it stopped. More cells and seeds may be asked for later: what is there is kept.

    Raises:
        RunError: the folder holds another ablation.
        ContractError: the dataset has no test ground.
        ConfigError, DivergedError, Stopped, StorageError: as ``pretrain``.
    """
    if not len(dataset.indices("test")):
        raise ContractError(
            f"{dataset.path} has no chip in its test split: build it with data.plan.split.test"
        )
    base = cells[0].config
    claim(output, base, dataset)
    numbers = [base.training.seed + number for number in range(seeds)]
    total = len(cells) * seeds
    probes: dict[str, list[ProbeRecord]] = {}
    for done, (cell, seed) in enumerate(itertools.product(cells, numbers)):
        folder = output / cell.name / f"seed-{seed}"

        def told(share: float, what: str, done: int = done, folder: Path = folder) -> None:
            on_progress(done + share, total, f"{folder.relative_to(output)}: {what}")

        config = replace(cell.config, training=replace(cell.config.training, seed=seed))
        probes.setdefault(cell.name, []).append(probed(config, dataset, folder, told))
    on_progress(total, total, "done")
    return write_table(cells, dataset, output, numbers, probes)


def claim(output: Path, base: Config, dataset: Dataset) -> None:
    """Write what all trainings have in common, or check that what is there agrees.

    Raises:
        RunError: the folder holds an ablation of another dataset, configuration or version.
    """
    config = to_record(base)
    del config["machine"], config["data"]
    shared = {
        "schema_version": SCHEMA_VERSION,
        "code_version": __version__,
        "dataset": dataset_fingerprint(dataset),
        "probe_examples": MOST_EXAMPLES,
        "config": config,
    }
    path = output / SHARED_FILE
    if not path.exists():
        write_json(path, shared)
        return
    there = checked(
        dict[str, Any],
        read_json(path, RunError, "restore the file, or delete the folder to start over"),
        str(path), RunError, "restore the file, or delete the folder to start over",
    )  # fmt: skip
    differ = [key for key in shared if there.get(key) != shared[key]]
    if differ:
        raise RunError(
            f"{path} is of another ablation: {', '.join(differ)} differ. Choose another --output, "
            "or delete the folder to start over"
        )


def probed(
    config: Config, dataset: Dataset, folder: Path, told: Callable[[float, str], None]
) -> ProbeRecord:
    """Train one run of the grid and probe it, or read what was found before."""
    path = folder / PROBE_FILE

    def show(now: Progress) -> None:
        told(0.9 * now.step / now.num_steps, f"epoch {now.epoch} of {now.num_epochs}")

    run = pretrain(dataset, config, folder, show)  # also checks that the folder holds this run
    told(0.9, "probe")
    if not path.exists():
        write_json(path, probe(run).model_dump())
    remedy = "delete it, and the run is probed again"
    return checked(ProbeRecord, read_json(path, RunError, remedy), str(path), RunError, remedy)


class ProbeRecord(Part):
    """The contents of ``probe.json``; ``confusion`` is that of every block of test ground."""

    strength: Number | None = None
    num_train: int
    num_test: int
    confusion: dict[str, Confusion]


def probe(run: Run) -> ProbeRecord:
    """A linear probe of the run's patches, as confusion matrices by block of test ground."""
    dataset, config = run.own_dataset(), run.model.config
    examples = {
        split: extract(dataset, split, encoder(run), config.chip_px, config.patch_px)["patch"]
        for split in SPLITS
        if len(dataset.indices(split))
    }
    train, test, val = _some(examples["train"]), examples["test"], examples.get("val")
    held_out = (val.values, val.labels) if val else (None, None)
    fitted = fit_linear(train.values, train.labels, *held_out)
    predicted = fitted.predict(test.values)
    names, block = np.unique(test.block.astype(str), return_inverse=True)
    return ProbeRecord(
        strength=fitted.chosen,
        num_train=len(train.labels),
        num_test=len(test.labels),
        confusion={
            name: confusion(test.labels[block == number], predicted[block == number]).tolist()
            for number, name in enumerate(names.tolist())
        },
    )


def _some(examples: Features) -> Features:
    """``MOST_EXAMPLES`` of the examples, drawn alike in every cell."""
    order = np.random.default_rng(0).permutation(len(examples.labels))
    return examples.take(np.sort(order[:MOST_EXAMPLES]))


def write_table(
    cells: Sequence[Cell],
    dataset: Dataset,
    output: Path,
    seeds: Sequence[int],
    probes: Mapping[str, Sequence[ProbeRecord]],
) -> Ablation:
    """Compare the cells and write ``ablation.json`` and ``ablation.md``."""
    every = (each.confusion for some in probes.values() for each in some)
    blocks = sorted({block for one in every for block in one})
    first = probes[cells[0].name][0]
    found = compared({name: _counts(each, blocks) for name, each in probes.items()}, cells[0].name)
    record = Ablation(
        code_version=__version__,
        dataset=AblatedDataset(name=dataset.info["name"], fingerprint=dataset_fingerprint(dataset)),
        base=cells[0].name,
        factors=list(cells[0].settings),
        seeds=list(seeds),
        probe=AblationProbe(
            num_train=first.num_train, num_test=first.num_test, num_blocks=len(blocks)
        ),
        cells=[
            AblationCell(
                name=cell.name,
                settings=dict(cell.settings),
                runs=[f"{cell.name}/seed-{seed}" for seed in seeds],
                config=hashlib.sha256(to_yaml(cell.config).encode()).hexdigest(),
                scores=found[cell.name],
            )
            for cell in cells
        ],
    )
    write_json(output / ABLATION_FILE, record.model_dump())
    write_text(output / "ablation.md", markdown(record))
    return record


def _counts(probes: Sequence[ProbeRecord], blocks: Sequence[str]) -> Confusions:
    nothing = np.zeros((NUM_CLASSES, NUM_CLASSES), np.int64)  # windows of another size miss some
    return np.array([[each.confusion.get(block, nothing) for block in blocks] for each in probes])


# The table


def header(factors: Sequence[str]) -> list[str]:
    """The columns of ``rows``."""
    names = [metric.replace("_", " ").replace("f1", "F1") for metric in METRICS]
    columns = [factor.rpartition(".")[2] for factor in factors]
    return [*columns, *names, f"{names[-1]} against base"]


def rows(record: Ablation) -> list[list[str]]:
    """The table of a finished ablation, a row a cell, the base first."""
    table = []
    for cell in record.cells:
        scores = [cell.scores.score(metric) for metric in METRICS]
        table.append(
            [
                *(str(value) for value in cell.settings.values()),
                *(shown(score.mean, score.ci95) for score in scores),
                "base"
                if cell.name == record.base
                else shown(scores[-1].against_base, scores[-1].against_base_ci95, "+"),
            ]
        )
    return table


def markdown(record: Ablation) -> str:
    """The table of a finished ablation with what is needed to read it."""
    columns = header(record.factors)
    escaped = [[markdown_text(cell) for cell in line] for line in (columns, *rows(record))]
    lines = [escaped[0], ["---"] * len(columns), *escaped[1:]]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    title = f"# Ablation on {markdown_text(record.dataset.name)}"
    return f"{title}\n\n{markdown_text(explained(record))}\n\n{table}\n"


def explained(record: Ablation) -> str:
    """What the numbers of the table are, in a few sentences."""
    seeds, probe = record.seeds, record.probe
    one = "one seed, so the intervals cover the ground alone" if len(seeds) == 1 else ""
    reasons = {
        cell.scores.score(metric).no_interval: None for cell in record.cells for metric in METRICS
    }
    without = "; ".join(filter(None, reasons))
    return (
        f"Frozen features of {len(record.cells)} trainings "
        f"({one or f'each with {len(seeds)} seeds'}), probed patch by patch: a linear probe on "
        f"{probe.num_train:,} labelled patches of the train split, its regularisation chosen on "
        f"val, scored on {probe.num_test:,} patches in {probe.num_blocks} blocks of test "
        "ground. In brackets: 95 % intervals over resampled blocks, and over seeds by Student's "
        "t. Differences to the base are paired by seed and block."
        + (f" Where there is no interval: {without}." if without else "")
    )
