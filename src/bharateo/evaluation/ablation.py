"""Ablation: the same training with something changed, scored by probes of the frozen features.

::

    DIR/shared.json             what all trainings have in common, written first; another ablation
                                is refused the folder
    DIR/CELL/seed-N/            a run, as ``pretrain`` makes it
    DIR/CELL/seed-N/probe.json  its probe's confusion matrices by block; written last
    DIR/humble-KEY.json         the humble bar on the same patches, for cells of the same chips,
                                patches and bands
    DIR/ablation.json, .md      the table, when every cell is there

A cell is one combination of settings. Weights of 0 take a head out of the training.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bharateo.artefacts import OpenRecord, checked, read_json
from bharateo.chips.store import SPLITS, Dataset
from bharateo.config import Config, setting, to_record, to_yaml, with_settings
from bharateo.errors import ConfigError, ContractError, RunError
from bharateo.evaluation.comparison import (
    Confusions,
    LogLosses,
    ResampledScores,
    compared,
    shown,
)
from bharateo.evaluation.features import HUMBLE, MAKERS, Extractor, encoder, extract, probed_px
from bharateo.evaluation.intervals import resampled_blocks
from bharateo.evaluation.probe_table import features_name
from bharateo.evaluation.probes import fit_linear, log_losses
from bharateo.evaluation.probing import MOST_EXAMPLES, by_block, some_of
from bharateo.files import write_json, write_text
from bharateo.handover.card import markdown_text
from bharateo.inference.encoder import Readout
from bharateo.landcover import NUM_CLASSES
from bharateo.models.heads import HEADS
from bharateo.models.targets import TARGETS
from bharateo.outputs import free_name
from bharateo.plain_yaml import parse_yaml
from bharateo.results import (
    ABLATION_FILE,
    METRICS,
    AblatedDataset,
    Ablation,
    AblationCell,
    AblationProbe,
    AgainstBar,
    Confusion,
    Number,
)
from bharateo.sensor import BAND_SETS, named_bands
from bharateo.training.loop import pretrain
from bharateo.training.planning import Cost
from bharateo.training.run import Run, dataset_fingerprint
from bharateo.version import __version__

SCHEMA_VERSION = 1
SHARED_FILE = "shared.json"
PROBE_FILE = "probe.json"
BANDS = "training.bands"
WEIGHT, TARGET = "heads.landcover.weight", "heads.landcover.options.target"
WEIGHTS = (0, 0.2, 0.5)
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


def controls(config: Config, num_bands: int) -> list[dict[str, Any]]:
    """What is changed where the same network learns from labels alone, nothing hidden, and where
    it learns without labels, each ``at_equal_cost``.

    Raises:
        ConfigError: not both kinds of heads are configured.
    """
    of_labels = [name for name in config.heads if name in HEADS and HEADS[name].classes]
    others = [name for name in config.heads if name not in of_labels]
    if not (of_labels and others):
        raise ConfigError(
            "--controls needs a head that learns from labels and one that does not, e.g. "
            f"landcover and pixels; heads are {', '.join(config.heads)}"
        )
    changes = [
        {f"heads.{name}.weight": 0 for name in others} | {"model.mask_ratio": 0},
        {f"heads.{name}.weight": 0 for name in of_labels},
    ]
    return at_equal_cost(config, changes, num_bands)


def targets(config: Config, num_bands: int) -> list[dict[str, Any]]:
    """What is changed where the same network learns without labels what hidden patches are: their
    pixels, what these differ by from a smooth fill, their colours where the configuration asks for
    a palette's, or each kind of features; ``at_equal_cost``.
    """
    weights = {f"heads.{name}.weight": 0 for name in config.heads}
    kinds = ["pixels", "correction"]
    if any(head.options.get("target") == "palette" for head in config.heads.values()):
        kinds.append("palette")
    rebuilt: list[dict[str, Any]] = [
        {"heads.pixels.weight": 1.0, "heads.pixels.options.target": each} for each in kinds
    ]
    predicted: list[dict[str, Any]] = [
        {"heads.features.weight": 1.0, "heads.features.options.target": each} for each in TARGETS
    ]
    return at_equal_cost(config, [weights | each for each in (*rebuilt, *predicted)], num_bands)


def at_equal_cost(
    config: Config, changes: Sequence[dict[str, Any]], num_bands: int
) -> list[dict[str, Any]]:
    """Each change with as many epochs as take the arithmetic of the configuration."""

    def cost(changed: Config) -> float:
        heads = {name: head for name, head in changed.heads.items() if head.weight}
        return Cost.of(replace(changed, heads=heads), num_bands).training

    def epochs(change: dict[str, Any]) -> int:
        share = cost(config) / cost(with_settings(config, change))
        return max(round(config.training.epochs * share), 1)

    return [change | {"training.epochs": epochs(change)} for change in changes]


def grid(
    config: Config,
    dataset: Dataset,
    factors: Sequence[Factor],
    full: bool = False,
    also: Sequence[dict[str, Any]] = (),
) -> list[Cell]:
    """The base cell, which is the configuration as it is, and the others: with one factor changed,
    or (``full``) every combination; and ``also`` those with these settings changed together. What
    is trained alike is one cell.

    Raises:
        ConfigError: a key or value does not exist.
    """
    for key in (factor.key for factor in factors):
        # others change nothing in a training, and the seed is what every cell has several of
        if key.partition(".")[0] not in ("model", "heads", "training") or key == "training.seed":
            raise ConfigError(
                f"--vary {key}: vary keys of model, heads and training; seeds are what --seeds is "
                "for"
            )
    keys = dict.fromkeys([*(factor.key for factor in factors), *itertools.chain(*also)])
    base = {key: setting(config, key) for key in keys}
    if BANDS in base:
        base[BANDS] = "+".join(base[BANDS]) or "all"
    changes: Iterator[dict[str, Any]]
    if full:
        products = itertools.product(*(factor.values for factor in factors))
        varied = [factor.key for factor in factors]
        changes = (dict(zip(varied, values, strict=True)) for values in products)
    else:
        changes = ({factor.key: value} for factor in factors for value in factor.values)
    cells: dict[str, Cell] = {}
    for change in ({}, *changes, *also):
        values = dict(change)
        if BANDS in values:
            names = named_bands(str(values[BANDS]).split("+"))
            dataset.with_bands(names)  # refuses bands that are not there
            values[BANDS] = [] if names == dataset.sensor.band_names else list(names)
        trained = with_settings(config, values)
        heads = {name: head for name, head in trained.heads.items() if head.weight}
        if not heads:
            raise ConfigError(f"{change}: no head has a weight, so there is nothing to learn")
        trained = replace(trained, heads=heads)
        settings = base | change
        if BANDS in settings and not trained.training.bands:
            settings[BANDS] = "all"

        # a cell is called by what differs in its training, the same in every grid
        differs = []
        for key, value in settings.items():
            section, name, *what = key.split(".")
            of_no_head = section == "heads" and what[:1] == ["options"] and name not in heads
            if value != base[key] and not of_no_head:
                differs.append(f"{key}={value}")
        cell = Cell(",".join(differs) or "base", settings, trained)
        cells.setdefault(to_yaml(trained), cell)
    return list(cells.values())


def ablate(
    cells: Sequence[Cell],
    dataset: Dataset,
    output: Path,
    seeds: int,
    on_progress: OnProgress = lambda done, total, note: None,
    readout: Readout = "token",
) -> Ablation:
    """Train and score every cell with so many seeds, and write the table; the first is the base.
    ``readout`` is that of the runs' vectors.

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
    lock(output, base, dataset, readout)
    numbers = [base.training.seed + number for number in range(seeds)]
    total = len(cells) * seeds
    probes: dict[str, list[ProbeRecord]] = {}
    bars: dict[str, ProbeRecord | None] = {}
    for done, (cell, seed) in enumerate(itertools.product(cells, numbers)):
        folder = output / cell.name / f"seed-{seed}"

        def told(share: float, what: str, done: int = done, folder: Path = folder) -> None:
            on_progress(done + share, total, f"{folder.relative_to(output)}: {what}")

        def training(
            done: float, total: float, note: str, told: Callable[[float, str], None] = told
        ) -> None:
            told(0.9 * done / total, note)

        config = replace(cell.config, training=replace(cell.config.training, seed=seed))
        run = pretrain(dataset, config, folder, training)  # checks that the folder holds this run
        told(0.9, "probe")
        found = kept(folder / PROBE_FILE, partial(probe, run, readout=readout))
        probes.setdefault(cell.name, []).append(found)
        if cell.name not in bars:
            told(0.95, "humble bar")
            shape = [run.model.config.chip_px, run.model.config.patch_px, *run.sensor.band_names]
            key = hashlib.sha256(json.dumps(shape).encode()).hexdigest()[:12]
            path = output / f"humble-{key}.json"
            has_val = found.val_log_loss is not None
            bars[cell.name] = kept(path, partial(humble_bar, run)) if has_val else None
    on_progress(total, total, "done")

    blocks = sorted(
        {block for some in probes.values() for each in some for block in each.confusion}
    )
    nothing = np.zeros((NUM_CLASSES, NUM_CLASSES), np.int64)  # windows of another size miss some

    def by_seed(some: Sequence[ProbeRecord]) -> Confusions:
        return np.array([
            [each.confusion.get(block, nothing) for block in blocks] for each in some
        ])  # fmt: skip

    def losses(some: Sequence[ProbeRecord]) -> LogLosses:
        return np.array([[each.log_loss.get(block, 0.0) for block in blocks] for each in some])

    scores = compared({name: by_seed(some) for name, some in probes.items()}, cells[0].name)
    times = resampled_blocks(len(blocks), 0)

    def against_bar(name: str) -> AgainstBar | None:
        bar = bars[name]
        if bar is None:
            return None
        ours, theirs = (
            ResampledScores.of(by_seed(some), times, log_loss=losses(some))
            for some in (probes[name], [bar])
        )
        gains = ours.minus(theirs)
        return AgainstBar(
            features=bar.features,
            **{metric: gains.mean(metric) for metric in ("log_loss", *METRICS)},
        )

    first = probes[cells[0].name][0]
    record = Ablation(
        code_version=__version__,
        dataset=AblatedDataset(name=dataset.info["name"], fingerprint=dataset_fingerprint(dataset)),
        base=cells[0].name,
        factors=list(cells[0].settings),
        seeds=numbers,
        probe=AblationProbe(
            num_train=first.num_train, num_test=first.num_test, num_blocks=len(blocks)
        ),
        cells=[
            AblationCell(
                name=cell.name,
                settings=dict(cell.settings),
                runs=[f"{cell.name}/seed-{seed}" for seed in numbers],
                config=hashlib.sha256(to_yaml(cell.config).encode()).hexdigest(),
                scores=scores[cell.name],
                against_bar=against_bar(cell.name),
            )
            for cell in cells
        ],
    )
    write_json(output / ABLATION_FILE, record.model_dump())
    write_text(output / "ablation.md", markdown(record))
    return record


def lock(output: Path, base: Config, dataset: Dataset, readout: Readout) -> None:
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
        "readout": readout,
        "config": config,
    }
    path, remedy = output / SHARED_FILE, "restore the file, or delete the folder to start over"
    if not path.exists():
        write_json(path, shared)
        return
    plain = read_json(path, RunError, remedy)
    there = checked(dict[str, Any], plain, str(path), RunError, remedy)
    differ = [key for key in shared if there.get(key) != shared[key]]
    if differ:
        raise RunError(
            f"{path} is of another ablation: {', '.join(differ)} differ. Delete the folder to "
            f"start over, or choose another: --output {free_name(output)}"
        )


class ProbeRecord(OpenRecord):
    """The contents of ``probe.json``; ``confusion`` and ``log_loss``, a sum, are those of every
    block of test ground.
    """

    features: str = "encoder"
    strength: Number | None = None
    val_log_loss: Number | None = None
    num_train: int
    num_test: int
    confusion: dict[str, Confusion]
    log_loss: dict[str, Number]


def kept(path: Path, make: Callable[[], ProbeRecord]) -> ProbeRecord:
    """The record of a file, which is made first where there is none.

    Raises:
        RunError: the file is damaged.
    """
    remedy = "delete it, and it is probed again"
    if not path.exists():
        write_json(path, make().model_dump())
    return checked(ProbeRecord, read_json(path, RunError, remedy), str(path), RunError, remedy)


def humble_bar(run: Run) -> ProbeRecord:
    """Of the features that nothing is trained for, the probe with the least log-loss on the val
    ground of the run's dataset: what the run's own features have to be better than.
    """
    found = [probe(run, MAKERS[name](run, run.own_dataset(), 0, "token")) for name in HUMBLE]
    return min(found, key=lambda each: each.val_log_loss or 0.0)


def probe(run: Run, extractor: Extractor | None = None, readout: Readout = "token") -> ProbeRecord:
    """A linear probe of the patches of a run's dataset, by its own features, read out as asked
    for, or by others, as confusion matrices and log-losses by block of test ground.
    """
    dataset = run.own_dataset()
    size_px, patch_px = probed_px(run, dataset), run.model.config.patch_px
    extractor = extractor or encoder(run, readout)
    examples = {
        split: extract(dataset, split, extractor, size_px, patch_px)["patch"]
        for split in SPLITS
        if len(dataset.indices(split))
    }
    train, test, val = examples["train"], examples["test"], examples.get("val")
    train = train.take(some_of(len(train.labels), MOST_EXAMPLES, 0))  # alike in every cell
    held_out = (val.values, val.labels) if val else (None, None)
    fitted = fit_linear(train.values, train.labels, *held_out)
    names, block = np.unique(test.block.astype(str), return_inverse=True)
    (cells,) = by_block(test.labels, fitted.predict(test.values)[None], block, len(names))
    each = log_losses(fitted, test.values, test.labels)
    loss = np.bincount(block, each, len(names))
    return ProbeRecord(
        features=extractor.name,
        strength=fitted.chosen,
        val_log_loss=float(log_losses(fitted, val.values, val.labels).mean())
        if val and len(val.labels)
        else None,
        num_train=len(train.labels),
        num_test=len(test.labels),
        confusion=dict(zip(names.tolist(), cells.tolist(), strict=True)),
        log_loss=dict(zip(names.tolist(), loss.tolist(), strict=True)),
    )


# The table


def header(factors: Sequence[str]) -> list[str]:
    """The columns of ``rows``."""
    names = [metric.replace("_", " ").replace("f1", "F1") for metric in METRICS]
    columns = [
        factor.removeprefix("heads.").replace(".", " ") if factor.endswith(".weight")
        else factor.rpartition(".")[2]
        for factor in factors
    ]  # fmt: skip
    against = [f"{name} against humble bar" for name in ("log-loss", "accuracy", "macro F1")]
    return [*columns, *names, f"{names[-1]} against base", *against, "humble bar"]


def rows(record: Ablation) -> list[list[str]]:
    """The table of a finished ablation, a row a cell, the base first."""
    table = []
    for cell in record.cells:
        scores = [cell.scores.score(metric) for metric in METRICS]
        against, ci95 = scores[-1].against_base, scores[-1].against_base_ci95
        bar = cell.against_bar
        gains = (bar.log_loss, bar.accuracy, bar.macro_f1) if bar else (None,) * 3
        table.append([
            *(str(value) for value in cell.settings.values()),
            *(shown(score.mean, score.ci95) for score in scores),
            "base" if cell.name == record.base else shown(against, ci95, "+"),
            *(shown(each.mean, each.ci95, "+") if each else "none" for each in gains),
            features_name(bar.features) if bar else "none",
        ])  # fmt: skip
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
        "t. Differences to the base are paired by seed and block, to the humble bar by block. The "
        "bar is the best, on val, of the same probes of features that nothing was trained for."
        + (f" Where there is no interval: {without}." if without else "")
    )
