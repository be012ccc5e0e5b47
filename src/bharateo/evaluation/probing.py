"""The probe table: what a run's frozen features are worth, beside everything that is simpler.

Patches and chips of a dataset are classified by probes on the run's features and on those it has to
beat. All are shown the same labelled examples: those of the train split, or a few of every class
(a budget), drawn several times over, from different blocks of ground where there are as many.
Settings are chosen on the val split, also for small budgets, and scores are of the test split.

The *humble bar* of a level and budget is what an encoder has to be better than: of the features
that nothing is trained for those whose linear probe has the least log-loss on the val split.

::

    probes.json        the table, written last
    probes.parts/KEY/  while under way: one file for every finished row and budget
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
from jaxtyping import Float, Float32, Int64, Shaped
from safetensors import SafetensorError
from safetensors.numpy import load, save
from torch import Tensor

from bharateo.chips.store import SPLITS, Dataset
from bharateo.errors import ConfigError, ContractError
from bharateo.evaluation.comparison import Confusions, LogLosses, ResampledScores
from bharateo.evaluation.features import (
    HUMBLE,
    LEVELS,
    MAKERS,
    MEANINGS,
    MOST_CHIPS,
    Extractor,
    Features,
    extract,
    probed_px,
)
from bharateo.evaluation.intervals import LEAST_BLOCKS, LEVEL, NUM_RESAMPLES, resampled_blocks
from bharateo.evaluation.probe_table import MAJORITY, SUBJECT
from bharateo.evaluation.probes import (
    LEAVES,
    MOST_ITERATIONS,
    NEIGHBOURS,
    NUM_TREES,
    STRENGTHS,
    Likelihoods,
    Probe,
    fit_forest,
    fit_linear,
    fit_nearest,
    log_losses,
)
from bharateo.evaluation.scores import common_classes
from bharateo.evaluation.zones import Zoning
from bharateo.files import read_bytes, write_bytes, write_json
from bharateo.inference.encoder import Readout
from bharateo.landcover import BHARATEO_CLASSES, NUM_CLASSES
from bharateo.models.patches import patchify
from bharateo.results import (
    Budget,
    ClassScores,
    Difference,
    DrawnScore,
    Examples,
    HumbleBar,
    Level,
    Most,
    ProbeConditions,
    ProbedDataset,
    ProbeIntervals,
    ProbeRow,
    Probes,
    SplitExamples,
    TableRow,
    ZoneRow,
    Zones,
    ZoneScores,
)
from bharateo.training.data import fixed_windows
from bharateo.training.run import Run, dataset_fingerprint
from bharateo.version import __version__

BUDGETS: tuple[Budget, ...] = (5, 20, 100, "all")
NUM_DRAWS = 5
MOST_EXAMPLES = 60_000
"""Training examples of the budget ``all``: of more, that many are drawn."""

MOST_NEAREST = 20_000
"""The same for nearest neighbours and forests, whose time grows faster."""

MOST_VALIDATION = 10_000
FEWEST_IN_ZONE = {"patch": 200, "chip": 10}
"""Test examples below which a zone is not called the worst."""

PROBES: dict[str, dict[str, str | list[int | float]]] = {
    "linear": {
        "what": "multinomial logistic regression, no class weights; its C chosen by log-loss on "
        f"val; at most {MOST_ITERATIONS} iterations of L-BFGS",
        "choices": list(STRENGTHS),
    },
    "nearest": {
        "what": "vote of the nearest by cosine of standardised features; how many chosen by "
        "macro-F1 on val",
        "choices": list(NEIGHBOURS),
    },
    "forest": {
        "what": f"random forest of {NUM_TREES} trees; fewest examples of a leaf chosen by "
        "macro-F1 on val",
        "choices": list(LEAVES),
    },
    MAJORITY: {"what": "the commonest class of the train split, whatever the budget"},
}

OnStep = Callable[[float, float, str], None]
"""Told (work done, work in all, what is being done)."""

_EXTRACTION = 20
"""Work of extracting features, in fits."""


def table_rows(features: Sequence[str]) -> list[ProbeRow]:
    """Every row for these features; forests stand on band statistics."""
    rows = [ProbeRow(name, probe) for name in features for probe in ("linear", "nearest")]
    rows += [ProbeRow(name, "forest") for name in features if name.startswith("band_statistics")]
    return [*rows, ProbeRow(MAJORITY, MAJORITY)]


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
    readout: Readout = "token",
    on_step: OnStep = lambda done, total, note: None,
) -> Probes:
    """The table of a run on a dataset, also written to ``output``; goes on where it stopped.

    ``readout`` is how the encoder's vectors are read out, the untrained one's too.

    A level whose labels are of one class is skipped, and the record says so.

    Raises:
        ConfigError: a level or a kind of features does not exist.
        ContractError: the dataset breaks the run's contract, has no train or no test chips, or a
            block of ground in two splits.
        StorageError: ``output`` cannot be written.
    """
    for given, known in ((levels, LEVELS), (features, tuple(MAKERS))):
        if wrong := [name for name in given if name not in known]:
            raise ConfigError(f"{wrong[0]!r} is none of {', '.join(known)}: choose among these")
    run.check(dataset)
    for split in ("train", "test"):
        if not len(dataset.indices(split)):
            raise ContractError(
                f"{dataset.path} has no chip in its {split} split: a probe is fitted on train and "
                f"scored on test ground; build the dataset with data.plan.split.{split}"
            )
    blocks = [{*dataset.column("block")[dataset.indices(split)]} for split in SPLITS]
    if twice := set.union(*(a & b for a, b in itertools.combinations(blocks, 2))):
        raise ContractError(
            f"{dataset.path}: block {min(map(str, twice))!r} lies in two splits, so that a probe "
            "would be scored beside its own examples; build the dataset again"
        )
    zoning = zoning or Zoning.of(dataset)
    told = conditions(run, dataset, seed, readout)
    folder = parts_folder(output, told)
    truth = examples_of(run, dataset, MAJORITY, seed)
    skipped = {}
    for level in levels:
        num_classes = len(np.unique(truth["train"][level].labels))
        if num_classes < 2:
            skipped[level] = f"the labels of its train examples are of {num_classes} classes"
        elif not len(truth["test"][level].labels):
            skipped[level] = "no test example has a label"
    features = [name for name in MAKERS if name in features]
    asked = [
        (level, row, budget)
        for row in table_rows(features)
        for level in levels if level not in skipped
        for budget in budgets
    ]  # fmt: skip

    # every part by level, row and budget: read where it is there, made where it is not
    paths = {
        part: folder / f"{part[0]}-{part[1].features}-{part[1].probe}-{part[2]}.safetensors"
        for part in asked
    }
    made = {part: found for part, path in paths.items() if (found := Predictions.read(path))}
    names = [*features, MAJORITY]
    total = len(asked) + _EXTRACTION * len(names)
    for number, name in enumerate(names):

        def on_chips(share: float, number: int = number, name: str = name) -> None:
            on_step(len(made) + _EXTRACTION * (number + share), total, f"features: {name}")

        missing = [part for part in asked if part[1].features == name and part not in made]
        examples = examples_of(run, dataset, name, seed, readout, on_chips) if missing else {}
        for part in missing:
            level, row, budget = part
            by_split = {split: found[level] for split, found in examples.items()}
            made[part] = predictions(by_split, row, budget, seed)
            made[part].write(paths[part])
            on_step(
                len(made) + _EXTRACTION * (number + 1),
                total,
                f"{level}: {row.probe} probe of {name}, {budget} labels",
            )

    chip_px = run.model.config.chip_px
    num_chips = {
        split: len(fixed_windows(dataset.indices(split).tolist(), dataset.size_px, chip_px))
        for split in SPLITS
    }
    record = Probes(
        **dict(told),
        features={name: MEANINGS[name] for name in features},
        budgets=list(budgets),
        zones=zoning.kind,
        skipped=skipped,
        levels={
            level: level_record(
                {split: found[level] for split, found in truth.items()},
                {(row, budget): made[at, row, budget] for at, row, budget in asked if at == level},
                zoning.of_chip[truth["test"][level].chip],
                FEWEST_IN_ZONE[level],
                seed,
                {split: min(MOST_CHIPS / max(num, 1), 1) for split, num in num_chips.items()},
            )
            for level in levels
            if level not in skipped
        },
    )
    write_json(output, record.model_dump())
    shutil.rmtree(folder.parent, ignore_errors=True)
    return record


def conditions(
    run: Run, dataset: Dataset, seed: int, readout: Readout = "token"
) -> ProbeConditions:
    """Everything that decides the predictions of a run's probes on a dataset."""
    contract, fingerprint = run.contract, dataset_fingerprint(dataset)
    return ProbeConditions(
        code_version=__version__,
        weights_sha256=run.weights_sha256,
        pretraining_heads={name: head.weight for name, head in contract.heads.items()},
        dataset=ProbedDataset(
            name=dataset.info["name"],
            path=str(dataset.path),
            fingerprint=fingerprint,
            bands=list(dataset.sensor.band_names),
            labels=dataset.info["class_scheme"]["name"],
        ),
        own_dataset=fingerprint == contract.dataset.fingerprint,
        chip_px=probed_px(run, dataset),
        patch_px=contract.patch_px,
        readout=readout,
        seed=seed,
        most=Most(
            chips_per_split=MOST_CHIPS,
            train_examples=MOST_EXAMPLES,
            nearest_examples=MOST_NEAREST,
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


def parts_folder(output: Path, made_under: ProbeConditions) -> Path:
    """Where finished parts lie while under way, told apart by their conditions."""
    key = hashlib.sha256(json.dumps(made_under.model_dump()).encode()).hexdigest()[:16]
    return output.with_name(f"{output.stem}.parts") / key


def examples_of(
    run: Run,
    dataset: Dataset,
    features: str,
    seed: int,
    readout: Readout = "token",
    on_chips: Callable[[float], None] = lambda share: None,
) -> dict[str, dict[str, Features]]:
    """Every split's examples at every level with these features, none for the majority class;
    ``readout`` is that of an encoder's, ``on_chips`` is told the share that is done.
    """
    size_px, patch_px = probed_px(run, dataset), run.model.config.patch_px
    if features == MAJORITY:

        def nothing(image: Tensor, valid: Tensor) -> Tensor:
            return patchify(valid[:, None], patch_px)[..., :0].float()

        extractor = Extractor(features, nothing)
    else:
        extractor = MAKERS[features](run, dataset, seed, readout)
    found = {}
    for number, split in enumerate(SPLITS):

        def told(done: int, total: int, number: int = number) -> None:
            on_chips((number + done / total) / len(SPLITS))

        found[split] = extract(dataset, split, extractor, size_px, patch_px, seed, on_chips=told)
    return found


# Fits


@dataclass(frozen=True)
class Predictions:
    """What a row with one budget says of every test example, one line a draw of the labels.

    ``log_loss`` is that of each, in nats, ``val_log_loss`` the mean on validation; both NaN without
    probabilities, the latter without validation examples. ``chosen`` is what validation chose in
    every draw; ``num_labels`` how many were shown.
    """

    classes: Int64[np.ndarray, "draw example"]
    log_loss: Float32[np.ndarray, "draw example"]
    val_log_loss: Float[np.ndarray, " draw"]
    chosen: Float[np.ndarray, " draw"]
    num_labels: Int64[np.ndarray, " draw"]

    def write(self, path: Path) -> None:
        """Keep them in a file."""
        content = save(vars(self) | {"classes": self.classes.astype(np.uint8)})
        write_bytes(path, content)

    @classmethod
    def read(cls, path: Path) -> Predictions | None:
        """Those of a file; None where there is none, or one that is damaged."""
        try:
            arrays = load(read_bytes(path))
            names = ("log_loss", "val_log_loss", "chosen", "num_labels")
            return cls(arrays["classes"].astype(np.int64), *(arrays[name] for name in names))
        except (OSError, SafetensorError, KeyError):
            return None


def predictions(
    examples: Mapping[str, Features], row: ProbeRow, budget: Budget, seed: int
) -> Predictions:
    """A row fitted to every draw of a budget from ``train``, and its classes of ``test``."""
    train, test = examples["train"], examples["test"]
    val = examples["val"].take(some_of(len(examples["val"].labels), MOST_VALIDATION, seed))
    if budget == "all" or row.probe == MAJORITY:
        most = MOST_NEAREST if row.probe in ("nearest", "forest") else MOST_EXAMPLES
        draws = [some_of(len(train.labels), most, seed)]
    else:
        draws = [
            few_labels(train.labels, train.block, budget, np.random.default_rng([seed, draw]))
            for draw in range(NUM_DRAWS)
        ]
    probes = [fit_row(row, train.take(index), val, seed) for index in draws]

    def losses(probe: Probe, of: Features) -> np.ndarray:
        if not isinstance(probe, Likelihoods):
            return np.full(len(of.labels), np.nan, np.float32)
        return log_losses(probe, of.values, of.labels).astype(np.float32)

    return Predictions(
        np.stack([probe.predict(test.values) for probe in probes]),
        np.stack([losses(probe, test) for probe in probes]),
        np.array([losses(probe, val).mean() if len(val.labels) else np.nan for probe in probes]),
        np.array([probe.chosen for probe in probes], float),
        np.array([len(index) for index in draws]),
    )


@dataclass(frozen=True)
class MajorityProbe:
    """The commonest class everywhere, and everywhere the same shares of all."""

    classes: Int64[np.ndarray, " cls"]
    shares: Float[np.ndarray, " cls"]
    chosen = float("nan")

    def predict(self, features: Float[np.ndarray, "example dim"]) -> Int64[np.ndarray, " example"]:
        """The commonest class, for every example."""
        return np.full(len(features), self.classes[self.shares.argmax()])

    def probabilities(
        self, features: Float[np.ndarray, "example dim"]
    ) -> Float[np.ndarray, "example cls"]:
        """The shares, for every example."""
        return np.tile(self.shares, (len(features), 1))


def fit_row(row: ProbeRow, train: Features, val: Features, seed: int) -> Probe:
    """The probe of a row, its settings chosen on ``val`` where there are such examples."""
    if row.probe == MAJORITY:
        classes, counts = np.unique(train.labels, return_counts=True)
        return MajorityProbe(classes, counts / counts.sum())
    values, labels = (val.values, val.labels) if len(val.labels) else (None, None)
    if row.probe == "forest":
        return fit_forest(train.values, train.labels, values, labels, seed)
    fit = fit_linear if row.probe == "linear" else fit_nearest
    return fit(train.values, train.labels, values, labels)


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


# Scores of a level


def by_block(
    true: Int64[np.ndarray, " example"],
    predicted: Int64[np.ndarray, "draw example"],
    block: Int64[np.ndarray, " example"],
    num_blocks: int,
) -> Confusions:
    """Confusion matrices of every draw and block, for blocks numbered from 0."""
    pair = (block * NUM_CLASSES + true) * NUM_CLASSES
    shape = (len(predicted), num_blocks, NUM_CLASSES, NUM_CLASSES)
    every = [np.bincount(pair + guess, minlength=math.prod(shape[1:])) for guess in predicted]
    return np.concatenate(every).reshape(shape)


Results = Mapping[tuple[ProbeRow, Budget], Predictions]


def level_record(
    examples: Mapping[str, Features],
    results: Results,
    zone: Shaped[np.ndarray, " example"],
    fewest: int,
    seed: int,
    of_chips: Mapping[str, float] = MappingProxyType({}),
) -> Level:
    """Scores of predictions of the test examples: of every row, of how far rows differ from the
    encoder's, and zone by zone.

    Every row is a set of confusion matrices, one for each draw of the labels and each block of test
    ground, so that scores, intervals and differences are sums of them. Blocks are resampled alike
    for all rows, so differences are paired. ``examples`` are those of every split, ``of_chips`` the
    share of its chips that they come from; ``zone`` is that of every test example, and zones of
    less than ``fewest`` are not called the worst. Means over classes are over those that lie in
    enough blocks (``common_classes``), in zones over all that occur there.
    """
    test = examples["test"]

    def counts(
        where: Int64[np.ndarray, " some"], some: Results
    ) -> dict[tuple[ProbeRow, Budget], tuple[Confusions, LogLosses | None]]:
        names, block = np.unique(test.block[where].astype(str), return_inverse=True)
        found = {}
        for key, made in some.items():
            cells = by_block(test.labels[where], made.classes[:, where], block, len(names))
            losses = made.log_loss[:, where]
            sums = [np.bincount(block, each, len(names)) for each in losses]
            found[key] = cells, None if np.isnan(losses).any() else np.stack(sums)
        return found

    def drawn(scores: ResampledScores) -> dict[str, DrawnScore]:
        return {
            metric: DrawnScore(**dict(scores.mean(metric)), per_draw=whole.tolist())
            for metric, whole in scores.whole.items()
        }

    sums = counts(np.arange(len(test.labels)), results)
    cells = {key: each for key, (each, _) in sums.items()}
    every = next(iter(cells.values()))[0]
    counted_classes = common_classes(every)
    times = resampled_blocks(len(every), seed)
    scores = {
        key: ResampledScores.of(each, times, counted=counted_classes, log_loss=losses)
        for key, (each, losses) in sums.items()
    }
    rows = [
        TableRow(
            features=row.features,
            probe=row.probe,
            budget=budget,
            num_labels=made.num_labels.tolist(),
            chosen=made.chosen.tolist() if row.probe != MAJORITY else None,
            val_log_loss=None
            if np.isnan(made.val_log_loss).any()
            else float(made.val_log_loss.mean()),
            **drawn(scores[row, budget]),
            per_class=per_class(cells[row, budget]),
            confusion=cells[row, budget].sum((0, 1)).tolist(),
        )
        for (row, budget), made in results.items()
    ]
    bars: dict[Budget, HumbleBar] = {}
    for each in rows:
        loss = each.val_log_loss
        if each.features in HUMBLE and each.probe == "linear" and loss is not None:
            bar = bars.get(each.budget)
            if bar is None or loss < bar.val_log_loss:
                bars[each.budget] = HumbleBar(
                    budget=each.budget, features=each.features, val_log_loss=loss
                )
    # the encoder beside every row of its own probe, beside rows whose probe it has not, and always
    # beside the humble bar
    own = {row.probe for row, _ in results if row.features == SUBJECT}
    differences = [
        Difference(
            features=subject.features,
            probe=subject.probe,
            budget=budget,
            baseline=row,
            **drawn(scores[subject, budget].minus(scores[row, budget])),
        )
        for subject, budget in results if subject.features == SUBJECT
        for row, other in results
        if other == budget and row.features != SUBJECT
        and (
            row.probe == subject.probe
            or row.probe not in own
            or (budget in bars and row == bars[budget].row)
        )
    ]  # fmt: skip

    last = [budget for _, budget in results][-1]
    largest = {key: made for key, made in results.items() if key[1] == last}
    zones: dict[str, ZoneScores] = {}
    reached: dict[str, float] = {}
    for name in np.unique(zone.astype(str)).tolist():
        there = np.flatnonzero(zone.astype(str) == name)
        of_zone = counts(there, largest)
        num_blocks = next(iter(of_zone.values()))[0].shape[1]
        times = resampled_blocks(num_blocks, seed)
        scored = {
            key: ResampledScores.of(each, times, log_loss=losses)
            for key, (each, losses) in of_zone.items()
        }
        zones[name] = ZoneScores(
            num_examples=len(there),
            num_blocks=num_blocks,
            results=[
                ZoneRow(
                    features=row.features,
                    probe=row.probe,
                    budget=budget,
                    **{metric: own_scores.mean(metric) for metric in own_scores.whole},
                )
                for (row, budget), own_scores in scored.items()
            ],
        )
        subjects = [each for each in zones[name].results if each.features == SUBJECT]
        if subjects and len(there) >= fewest:
            reached[name] = subjects[0].macro_f1.mean
    num_blocks_of = (every.sum(2) > 0).sum(0)
    return Level(
        examples=Examples(
            **{split: counted(some, of_chips.get(split, 1.0)) for split, some in examples.items()}
        ),
        classes=[each.name for each in BHARATEO_CLASSES if counted_classes[each.id]],
        rare_classes={
            each.name: int(num_blocks_of[each.id])
            for each in BHARATEO_CLASSES
            if num_blocks_of[each.id] and not counted_classes[each.id]
        },
        bars=list(bars.values()),
        results=rows,
        differences=differences,
        zones=Zones(
            budget=last,
            fewest_examples=fewest,
            per_zone=zones,
            worst=min(reached, key=lambda name: reached[name]) if reached else None,
        ),
    )


def counted(examples: Features, of_chips: float) -> SplitExamples:
    """How many examples there are, of which share of the chips, and of which class."""
    counts = np.bincount(examples.labels, minlength=len(BHARATEO_CLASSES))
    return SplitExamples(
        num_examples=len(examples.labels),
        of_chips=of_chips,
        num_chips=len(np.unique(examples.chip)),
        num_blocks=len(np.unique(examples.block.astype(str))),
        per_class={each.name: int(counts[each.id]) for each in BHARATEO_CLASSES if counts[each.id]},
    )


def per_class(by_block: Confusions) -> dict[str, ClassScores]:
    """Scores of every class that occurs, means over draws, with the blocks it lies in."""
    num_blocks = (by_block[0].sum(-1) > 0).sum(0)
    cells = by_block.sum(1)
    support, taken = cells.sum(2), cells.sum(1)
    right = np.diagonal(cells, axis1=1, axis2=2)
    return {
        BHARATEO_CLASSES[i].name: ClassScores(
            f1=float((2 * right[:, i] / (support[:, i] + taken[:, i])).mean()),
            recall=float((right[:, i] / support[:, i]).mean()),
            precision=float((right[:, i] / np.maximum(taken[:, i], 1)).mean()),
            support=int(support[0, i]),
            num_blocks=int(num_blocks[i]),
        )
        for i in np.flatnonzero(support[0])
    }
