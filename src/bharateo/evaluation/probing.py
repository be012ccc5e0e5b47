"""The probe table: what a run's frozen features are worth, beside everything that is simpler.

Patches and chips of a dataset are classified by probes on the run's features and on those it has to
beat. All are shown the same labelled examples: those of the train split, or a few of every class
(a budget), drawn several times over, from different blocks of ground where there are as many.
Settings are chosen on the val split, also for small budgets, and scores are of the test split.

::

    probes.json        the table, written last
    probes.parts/KEY/  while under way: one file for every finished row and budget
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int64, Shaped
from safetensors import SafetensorError
from safetensors.numpy import load, save

from bharateo.chips.store import SPLITS, Dataset
from bharateo.errors import ConfigError, ContractError
from bharateo.evaluation.features import (
    LEVELS,
    MAKERS,
    MEANINGS,
    MOST_CHIPS,
    Extractor,
    Features,
    extract,
)
from bharateo.evaluation.intervals import LEAST_BLOCKS, LEVEL, NUM_RESAMPLES
from bharateo.evaluation.probe_table import (
    MAJORITY,
    Predictions,
    level_record,
)
from bharateo.evaluation.probes import (
    LEAVES,
    MOST_ITERATIONS,
    NEIGHBOURS,
    NUM_TREES,
    STRENGTHS,
    Probe,
    fit_forest,
    fit_linear,
    fit_nearest,
)
from bharateo.evaluation.zones import Zoning
from bharateo.files import read_bytes, write_atomically, write_json
from bharateo.landcover import BHARATEO_CLASSES
from bharateo.results import (
    Budget,
    Examples,
    Level,
    Most,
    ProbeConditions,
    ProbedDataset,
    ProbeIntervals,
    Probes,
    Row,
    SplitExamples,
)
from bharateo.training.run import Run, dataset_fingerprint
from bharateo.version import __version__

BUDGETS: tuple[Budget, ...] = (5, 20, 100, "all")
NUM_DRAWS = 5
MOST_EXAMPLES = 20_000
"""Training examples of the budget ``all``: of more, that many are drawn."""

MOST_VALIDATION = 10_000
FEWEST_IN_ZONE = {"patch": 200, "chip": 10}
"""Test examples below which a zone is not called the worst."""

PROBES: dict[str, dict[str, str | list[int | float]]] = {
    "linear": {
        "what": "multinomial logistic regression, no class weights; its C chosen on val; at most "
        f"{MOST_ITERATIONS} iterations of L-BFGS",
        "choices": list(STRENGTHS),
    },
    "nearest": {
        "what": "vote of the nearest by cosine of standardised features; how many chosen on val",
        "choices": list(NEIGHBOURS),
    },
    "forest": {
        "what": f"random forest of {NUM_TREES} trees; fewest examples of a leaf chosen on val",
        "choices": list(LEAVES),
    },
    MAJORITY: {"what": "the commonest class of the train split, whatever the budget"},
}

OnStep = Callable[[float, float, str], None]
"""Told (work done, work in all, what is being done)."""

_EXTRACTION = 20
"""Work of extracting features, in fits."""


def table_rows(features: Sequence[str]) -> list[Row]:
    """Every row for these features; forests stand on band statistics."""
    rows = [Row(name, probe) for name in features for probe in ("linear", "nearest")]
    rows += [Row(name, "forest") for name in features if name.startswith("band_statistics")]
    return [*rows, Row(MAJORITY, MAJORITY)]


def parse_budget(text: str) -> Budget:
    """A budget as written: a number of labels a class, or ``all``.

    Raises:
        ConfigError: it is neither.
    """
    if text == "all":
        return "all"
    if text.isdecimal() and int(text):
        return int(text)
    raise ConfigError(f"budget {text!r}: give a number of labels a class, or all")


def probe_run(
    run: Run,
    dataset: Dataset,
    output: Path,
    *,
    levels: Sequence[str] = LEVELS,
    budgets: Sequence[Budget] = BUDGETS,
    features: Sequence[str] = tuple(MAKERS),
    zoning: Zoning | None = None,
    seed: int = 0,
    on_step: OnStep = lambda done, total, note: None,
) -> Probes:
    """The table of a run on a dataset, also written to ``output``; goes on where it stopped.

    A level whose labels are of one class is skipped, and the record says so.

    Raises:
        ConfigError: a level or a kind of features does not exist.
        ContractError: the dataset breaks the run's contract, or has no train or no test chips.
        StorageError: ``output`` cannot be written.
    """
    _check_choices(levels, features)
    run.check(dataset)
    _check_splits(dataset)
    zoning = zoning or Zoning.of(dataset)
    job = _Job(run, dataset, output, seed)
    truth = job.examples(_labels_alone(run))
    skipped = {level: why for level in levels if (why := _why_not(truth, level))}
    rows = table_rows([name for name in MAKERS if name in features])
    asked = [
        (level, row, budget)
        for row in rows for level in levels if level not in skipped for budget in budgets
    ]  # fmt: skip
    made = job.predictions(asked, on_step)
    found = {}
    for level in (level for level in levels if level not in skipped):
        test = truth["test"][level]
        of_level = {(row, budget): made[part] for part in asked
                    for at, row, budget in [part] if at == level}  # fmt: skip
        results, differences, zones = level_record(
            test, of_level, zoning.of_chip[test.chip], FEWEST_IN_ZONE[level], seed
        )
        found[level] = Level(
            examples=Examples(**{
                split: _counted(examples[level]) for split, examples in truth.items()
            }),
            results=results,
            differences=differences,
            zones=zones,
        )  # fmt: skip
    record = Probes(
        **dict(job.conditions),
        features={name: MEANINGS[name] for name in MAKERS if name in features},
        budgets=list(budgets),
        zones=zoning.kind,
        skipped=skipped,
        levels=found,
    )
    write_json(output, record.model_dump())
    shutil.rmtree(job.folder.parent, ignore_errors=True)
    return record


def _check_choices(levels: Sequence[str], features: Sequence[str]) -> None:
    choices: tuple[tuple[Sequence[str], Sequence[str]], ...]
    choices = (levels, LEVELS), (features, tuple(MAKERS))
    for given, known in choices:
        if wrong := [name for name in given if name not in known]:
            raise ConfigError(f"{wrong[0]!r} is none of {', '.join(known)}: choose among these")


def _check_splits(dataset: Dataset) -> None:
    for split in ("train", "test"):
        if not len(dataset.indices(split)):
            raise ContractError(
                f"{dataset.path} has no chip in its {split} split: a probe is fitted on train and "
                f"scored on test ground; build the dataset with data.plan.split.{split}"
            )


def _why_not(truth: Mapping[str, Mapping[str, Features]], level: str) -> str | None:
    """Why a level cannot be probed, None where it can."""
    num_classes = len(np.unique(truth["train"][level].labels))
    if num_classes < 2:
        return f"the labels of its train examples are of {num_classes} classes"
    return None if len(truth["test"][level].labels) else "no test example has a label"


def _counted(examples: Features) -> SplitExamples:
    """How many examples there are, and of which class."""
    counts = np.bincount(examples.labels, minlength=len(BHARATEO_CLASSES))
    return SplitExamples(
        num_examples=len(examples.labels),
        num_chips=len(np.unique(examples.chip)),
        num_blocks=len(np.unique(examples.block.astype(str))),
        per_class={each.name: int(counts[each.id]) for each in BHARATEO_CLASSES if counts[each.id]},
    )


def _labels_alone(run: Run) -> Extractor:
    num_tokens = run.model.num_tokens
    return Extractor(MAJORITY, lambda image, valid: image.new_zeros(len(image), num_tokens, 0))


@dataclass(frozen=True)
class _Job:
    """What is probed: a run on a dataset, with a seed. Its finished parts lie in ``folder``."""

    run: Run
    dataset: Dataset
    output: Path
    seed: int

    @cached_property
    def folder(self) -> Path:
        """Told apart by everything that decides the predictions."""
        key = hashlib.sha256(json.dumps(self.conditions.model_dump()).encode()).hexdigest()[:16]
        return self.output.with_name(f"{self.output.stem}.parts") / key

    @cached_property
    def conditions(self) -> ProbeConditions:
        """Under which conditions predictions are made."""
        contract = self.run.contract
        fingerprint = dataset_fingerprint(self.dataset)
        return ProbeConditions(
            code_version=__version__,
            weights_sha256=self.run.weights_sha256,
            pretraining_heads={name: head.weight for name, head in contract.heads.items()},
            dataset=ProbedDataset(
                name=self.dataset.info["name"],
                path=str(self.dataset.path),
                fingerprint=fingerprint,
                bands=list(self.dataset.sensor.band_names),
                labels=self.dataset.info["class_scheme"]["name"],
            ),
            own_dataset=fingerprint == contract.dataset.fingerprint,
            chip_px=contract.chip_px,
            patch_px=contract.patch_px,
            seed=self.seed,
            most=Most(
                chips_per_split=MOST_CHIPS,
                train_examples=MOST_EXAMPLES,
                val_examples=MOST_VALIDATION,
            ),
            draws_per_budget=NUM_DRAWS,
            probes=PROBES,
            intervals=ProbeIntervals(
                level=LEVEL,
                resamples=NUM_RESAMPLES,
                least_blocks=LEAST_BLOCKS,
                over="blocks of test ground, and draws of the labels",
            ),
        )

    def examples(
        self, extractor: Extractor, on_chips: Callable[[float], None] = lambda share: None
    ) -> dict[str, dict[str, Features]]:
        """Every split's examples at every level; ``on_chips`` is told the share that is done."""
        config = self.run.model.config
        found = {}
        for number, split in enumerate(SPLITS):

            def told(done: int, total: int, number: int = number) -> None:
                on_chips((number + done / total) / len(SPLITS))

            found[split] = extract(
                self.dataset, split, extractor, config.chip_px, config.patch_px, self.seed,
                on_chips=told,
            )  # fmt: skip
        return found

    def predictions(
        self, asked: Sequence[tuple[str, Row, Budget]], on_step: OnStep
    ) -> dict[tuple[str, Row, Budget], Predictions]:
        """Every part by level, row and budget: read where it is there, made where it is not."""
        made = {part: found for part in asked if (found := _read(self._path(part)))}
        names = list(dict.fromkeys(row.features for _, row, _ in asked))
        total = len(asked) + _EXTRACTION * len(names)
        for number, name in enumerate(names):

            def told(share: float, number: int = number, name: str = name) -> None:
                on_step(len(made) + _EXTRACTION * (number + share), total, f"features: {name}")

            missing = [part for part in asked if part[1].features == name and part not in made]
            examples = self.examples(self._extractor(name), told) if missing else {}
            for part in missing:
                level, row, budget = part
                by_split = {split: found[level] for split, found in examples.items()}
                made[part] = predictions(by_split, row, budget, self.seed)
                _write(self._path(part), made[part])
                on_step(
                    len(made) + _EXTRACTION * (number + 1),
                    total,
                    f"{level}: {row.probe} probe of {name}, {budget} labels",
                )
        return made

    def _path(self, part: tuple[str, Row, Budget]) -> Path:
        level, row, budget = part
        return self.folder / f"{level}-{row.features}-{row.probe}-{budget}.safetensors"

    def _extractor(self, name: str) -> Extractor:
        if name == MAJORITY:
            return _labels_alone(self.run)
        return MAKERS[name](self.run, self.dataset, self.seed)


def _write(path: Path, made: Predictions) -> None:
    content = save({
        "classes": made.classes.astype(np.uint8),
        "chosen": made.chosen,
        "num_labels": made.num_labels,
    })  # fmt: skip
    write_atomically(path, lambda file: file.write(content))


def _read(path: Path) -> Predictions | None:
    """A finished part; None where there is none, or one that is damaged."""
    try:
        arrays = load(read_bytes(path))
        classes = arrays["classes"].astype(np.int64)
        return Predictions(classes, arrays["chosen"], arrays["num_labels"])
    except (OSError, SafetensorError, KeyError):
        return None


# Fits


def predictions(
    examples: Mapping[str, Features], row: Row, budget: Budget, seed: int
) -> Predictions:
    """A row fitted to every draw of a budget from ``train``, and its classes of ``test``."""
    train, test = examples["train"], examples["test"]
    val = examples["val"].take(some_of(len(examples["val"].labels), MOST_VALIDATION, seed))
    if budget == "all" or row.probe == MAJORITY:
        draws = [some_of(len(train.labels), MOST_EXAMPLES, seed)]
    else:
        draws = [
            few_labels(train.labels, train.block, budget, np.random.default_rng([seed, draw]))
            for draw in range(NUM_DRAWS)
        ]
    probes = [_fit(row.probe, train.take(index), val, seed) for index in draws]
    return Predictions(
        np.stack([probe.predict(test.values) for probe in probes]),
        np.array([probe.chosen for probe in probes], float),
        np.array([len(index) for index in draws]),
    )


def some_of(num: int, most: int, seed: int) -> Int64[np.ndarray, " chosen"]:
    """Places of ``most`` of ``num`` examples, drawn without regard to their classes; or all."""
    if num <= most:
        return np.arange(num)
    return np.sort(np.random.default_rng(seed).permutation(num)[:most])


def few_labels(
    labels: Int64[np.ndarray, " example"],
    block: Shaped[np.ndarray, " example"],
    per_class: int,
    rng: np.random.Generator,
) -> Int64[np.ndarray, " chosen"]:
    """Places of ``per_class`` examples of every class, or of all it has.

    Those of one class come from as many blocks as possible: one of every block in random order,
    then a second one, and so on. A smaller budget of the same generator is part of a larger one.
    """
    chosen = []
    order = rng.permutation(len(labels))
    for class_id in np.unique(labels):
        own = order[labels[order] == class_id]
        turns: dict[str, int] = {}
        turn = []
        for name in block[own].astype(str):
            turn.append(turns.get(name, 0))
            turns[name] = turn[-1] + 1
        chosen.append(own[np.argsort(turn, kind="stable")[:per_class]])
    return np.sort(np.concatenate(chosen))


@dataclass(frozen=True)
class _Majority:
    class_id: int
    chosen = float("nan")

    def predict(self, features: Float[np.ndarray, "example dim"]) -> Int64[np.ndarray, " example"]:
        """The same class, everywhere."""
        return np.full(len(features), self.class_id)


def _fit(probe: str, train: Features, val: Features, seed: int) -> Probe:
    if probe == MAJORITY:
        return _Majority(int(np.bincount(train.labels).argmax()))
    known = (val.values, val.labels) if len(val.labels) else (None, None)
    if probe == "forest":
        return fit_forest(train.values, train.labels, known[0], known[1], seed)
    fit = fit_linear if probe == "linear" else fit_nearest
    return fit(train.values, train.labels, known[0], known[1])
