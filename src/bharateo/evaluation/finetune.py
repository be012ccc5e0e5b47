"""A dense head on a run: trained on many labels, scored beside humble things given the same labels.

::

    OUT/model.safetensors, contract.json, config.yaml, history.jsonl
                             the run: OUT is one, for every other verb
    OUT/dense.safetensors    the dense head's weights
    OUT/finetune.json        classes, scores, counts and provenance; written last
    OUT/.finetune/           only while it is under way: labels, checkpoints, what was asked for
"""

from __future__ import annotations

import copy
import hashlib
import os
import shlex
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from safetensors.torch import save
from torch import Tensor, nn

from bharateo.artefacts import read_json
from bharateo.chips.store import SPLITS, Dataset
from bharateo.errors import ConfigError, RunError
from bharateo.evaluation.comparison import ResampledScores, shown
from bharateo.evaluation.intervals import LEAST_BLOCKS, resampled_blocks
from bharateo.evaluation.scores import common_classes
from bharateo.files import read_bytes, take_lock, write_bytes, write_json
from bharateo.inference.chip_labels import ChipLabels, chip_labels, identity_of
from bharateo.inference.class_raster import unnamed
from bharateo.inference.dense import (
    HEAD,
    RECORD_FILE,
    WEIGHTS_FILE,
    DenseClass,
    DenseScore,
    FineTuned,
    LabelledSplit,
    ScoredDense,
    Training,
    read_finetuned,
)
from bharateo.inference.encoder import device_of
from bharateo.inference.pixel_features import surroundings, with_indices
from bharateo.inference.tiles import TokenGrid, blended_squares
from bharateo.landcover import IGNORE
from bharateo.models.dense import DenseModel
from bharateo.progress import Progress
from bharateo.training.contract import CONFIG_FILE, HISTORY_FILE, WeightsFile
from bharateo.training.data import Window
from bharateo.training.dense import (
    DenseTrained,
    DenseTraining,
    Shown,
    dense_loss,
    show,
    train_dense,
)
from bharateo.training.run import Run, save_run
from bharateo.version import __version__

FOREST, UNET, MAJORITY, LABELS = "random forest", "u-net from scratch", "majority class", "labels"
"""What a dense head must beat: each is given the same labels; ``labels`` are those themselves,
where the ground is scored by a truth."""

FOREST_PIXELS, NUM_TREES, LEAST_LEAF = 40_000, 50, 3
METRICS = ("accuracy", "macro_f1", "mean_iou")

_UNDER_WAY, _REQUEST = ".finetune", "request.json"
_SQUARES_AT_ONCE = 4
_TIMED_STEPS = 3

Predict = Callable[[Shown], UInt8[np.ndarray, "square row col"]]
"""Numbers of the classes of every pixel of whole squares."""


@dataclass(frozen=True)
class Asked:
    """What to train on, and how; ``squares`` labelled squares of the train split, None: all.

    ``labels`` and ``truth`` (None: the labels) are sources of ``chip_labels``. Without
    ``baselines`` nothing is set beside the head but the majority class.
    """

    labels: str
    classes: tuple[str, ...] = ()
    class_field: str | None = None
    truth: str | None = None
    steps: int = 600
    squares: int | None = None
    unfreeze: bool = False
    baselines: bool = True
    seed: int = 0


def finetune_run(
    run: Run, asked: Asked, output: Path, progress: Progress, say: Callable[[str], object]
) -> FineTuned:
    """Train a dense head on the dataset of a run, score it, and write both; its record.

    Killed and called again, it goes on where it stopped, with the same result.

    Raises:
        ConfigError: the labels do not do, with the reason, or ``output`` holds something else.
        DatasetError: the run's dataset has gone, or is another.
        RunError, SourceError, StorageError: files are damaged, cannot be read or written.
    """
    if asked.steps < 1 or (asked.squares is not None and asked.squares < 1):
        raise ConfigError("--steps and --squares: give 1 or more")
    request = {
        **{name: list(v) if isinstance(v, tuple) else v for name, v in asdict(asked).items()},
        "labels": identity_of(asked.labels),
        "truth": None if asked.truth is None else identity_of(asked.truth),
        "run": run.weights_sha256,
        "code_version": __version__,
    }
    if found := _taken(output, request):
        shutil.rmtree(output / _UNDER_WAY, ignore_errors=True)  # of who was killed at the very end
        say(f"{output} is there already, made of the same")
        return found
    dataset = run.unchanged_dataset()  # of whose test split the run has seen nothing
    under_way = output / _UNDER_WAY
    under_way.mkdir(parents=True, exist_ok=True)
    with (under_way / "lock").open("wb") as lock:
        take_lock(lock, ConfigError(f"another program is writing {output}: wait for it to end"))
        work = _Work(run, dataset, asked, output, progress)
        write_json(under_way / _REQUEST, request)  # labels that do not do leave nothing behind
        record = work.record(request)
        write_json(output / RECORD_FILE, record.model_dump(mode="json"))
    shutil.rmtree(under_way)
    return record


def _taken(output: Path, request: Mapping[str, object]) -> FineTuned | None:
    """What is there already, if it was made of the same; None where there is work to do.

    Raises:
        ConfigError: the folder holds something else.
    """
    elsewhere = "choose another --output"
    if (record := read_finetuned(output)) is not None:
        if record.request != request:
            raise ConfigError(
                f"{output} holds a dense head of other labels or options: {elsewhere}"
            )
        return record
    file = output / _UNDER_WAY / _REQUEST
    if file.exists():
        if read_json(file, RunError, f"delete {output}") != request:
            raise ConfigError(
                f"{output} holds a training of other labels or options under way: {elsewhere}"
            )
    elif output.exists() and not (
        output.is_dir() and {each.name for each in output.iterdir()} <= {_UNDER_WAY}
    ):
        raise ConfigError(f"{output} is there, and is not what finetune makes: {elsewhere}")
    return None


def check_labels(labels: ChipLabels, dataset: Dataset, asked: Asked) -> None:
    """Refuse labels that leave a split without any, or a class without ground to learn it from.

    Raises:
        ConfigError: see above; the message says what to give.
    """
    where = asked.labels
    if len(labels.classes) < 2:
        raise ConfigError(
            f"the labels of {where} are of one class ({labels.classes[0].name}): classes are told "
            "from each other, so give labels of two at least"
        )
    pixels = {split: labels.pixels.counts[dataset.indices(split)].sum(0) for split in SPLITS}
    for split, counts in pixels.items():
        if not counts.any():
            raise ConfigError(
                f"no label of {where} lies on the {split} split of {dataset.path}: give labels "
                "there too (the column `split` of its chips.parquet, which opens in QGIS)"
            )
    learnable = [each for each, num in zip(labels.classes, pixels["train"], strict=True) if num]
    if without := [each.name for each in labels.classes if each not in learnable]:
        by_code = any("=" in word for word in asked.classes)
        words = shlex.join(f"{each.id}={each.name}" if by_code else each.name for each in learnable)
        raise ConfigError(
            f"{without[0]} has no labelled pixel on the train split of {dataset.path}, so nothing "
            f"can learn it: add some, or leave the class out with --classes {words}"
        )


class _Work:
    """One fine-tuning under way."""

    def __init__(
        self, run: Run, dataset: Dataset, asked: Asked, output: Path, progress: Progress
    ) -> None:
        self.run, self.dataset, self.asked, self.output = run, dataset, asked, output
        self.folder, self.progress = output / _UNDER_WAY, progress
        self.device, self.chip_px = device_of(run), run.model.config.chip_px
        where = self.folder / "labels"
        self.labels = chip_labels(
            dataset, asked.labels, asked.classes, asked.class_field, where, self._note(0)
        )
        check_labels(self.labels, dataset, asked)
        self.names = [each.name for each in self.labels.classes]
        self.truth = self.labels
        if asked.truth is not None:
            self.truth = chip_labels(
                dataset, asked.truth, (), asked.class_field, self.folder / "truth", self._note(0)
            )
        self.to_class = self._classes_of_truth()
        self.train, self.val = (
            self.labels.pixels.squares(dataset.indices(split)) for split in ("train", "val")
        )
        if asked.squares is not None:
            drawn = np.random.default_rng(asked.seed).permutation(self.train)[: asked.squares]
            self.train = np.sort(drawn)
        test, scored = dataset.indices("test"), self.to_class[: len(self.truth.classes)] != IGNORE
        self.test = test[self.truth.pixels.counts[test][:, scored].any(1)]
        if not len(self.test):
            raise ConfigError(
                f"no label of {asked.truth} that is of one of the classes lies on the test split "
                f"of {dataset.path}: give a truth of that ground, or leave --truth out"
            )

    def _classes_of_truth(self) -> UInt8[np.ndarray, "256"]:
        """The number among the labels' classes of each number of the truth's: of the same name, or
        of a code that the truth has no name for.
        """
        table = np.full(256, IGNORE, np.uint8)
        codes = {each.id: number for number, each in enumerate(self.labels.classes)}
        for number, each in enumerate(self.truth.classes):
            if each.name in self.names:
                table[number] = self.names.index(each.name)
            elif each.name == unnamed(each.id) and each.id in codes:
                table[number] = codes[each.id]
            elif not self.asked.classes:
                raise ConfigError(
                    f"--truth {self.asked.truth} has a class {each.name}, which the labels have "
                    f"not ({', '.join(self.names)}): give both the same names, or say with "
                    "--classes which to learn and to score"
                )
        return table

    def _note(self, part: int) -> Progress:
        """Progress of one of the parts of the work, all taken for equally long."""
        num = 5 if self.asked.baselines else 3

        def note(done: float, total: float, text: str) -> None:
            self.progress(part + done / max(total, 1), num, text)

        return note

    def record(self, request: dict[str, object]) -> FineTuned:
        """Train, write the head and score everything."""
        head, trained = self._trained(HEAD, True, self.asked.steps, 1)
        training = {HEAD: Training(steps=self.asked.steps, **asdict(trained))}
        weights = self._write(head)
        predict = {HEAD: self._of_model(head), MAJORITY: self._majority()}
        if self.asked.baselines:
            steps = self._steps_as_long(head, trained)
            unet, taken = self._trained(UNET, False, steps, 2)
            training[UNET] = Training(steps=steps, **asdict(taken))
            predict |= {UNET: self._of_model(unet), FOREST: self._forest()}
        cells, blocks = self._cells(predict)
        times = resampled_blocks(len(blocks), self.asked.seed)
        first = next(iter(cells.values()))
        counted = common_classes(first)
        in_blocks = (first.sum(-1) > 0).sum(0)
        rare = {
            name: int(num)
            for name, num, kept in zip(self.names, in_blocks, counted, strict=True)
            if num and not kept
        }
        scores = {
            name: ResampledScores.of(each[None], times, self.names, counted=counted, iou=True)
            for name, each in cells.items()
        }
        counts = self.labels.pixels.counts
        of_split = {"train": self.train, "val": self.val, "test": self.test}
        return FineTuned(
            request=request,
            labels=self.labels.name,
            truth=None if self.asked.truth is None else self.truth.name,
            encoder="tuned" if self.asked.unfreeze else "frozen",
            classes=[DenseClass(**vars(each)) for each in self.labels.classes],
            splits={
                split: LabelledSplit(
                    squares=len(some),
                    pixels=dict(zip(self.names, counts[some].sum(0).tolist(), strict=True)),
                )
                for split, some in of_split.items()
            },
            blocks=len(blocks),
            rare=rare,
            training=training,
            scores={name: _scored(scores[name], each, self.names) for name, each in cells.items()},
            against={
                name: _figures(scores[HEAD].minus(each))
                for name, each in scores.items() if name != HEAD
            },
            attribution=list(
                dict.fromkeys([*self.run.contract.attribution, *self.labels.attribution])
            ),
            weights=weights,
        )  # fmt: skip

    # Training

    def _model(self, with_tokens: bool) -> DenseModel:
        """A model with fresh weights of its own."""
        shared = self.run.model
        if tuned := with_tokens and self.asked.unfreeze:
            shared = copy.deepcopy(shared)
        with torch.random.fork_rng():
            torch.manual_seed(self.asked.seed)
            model = DenseModel(shared, len(self.names), with_tokens, tuned)
        model.shared[0].to(self.device)
        return model.to(self.device)

    def _trained(
        self, name: str, with_tokens: bool, steps: int, part: int
    ) -> tuple[DenseModel, DenseTrained]:
        note = self._note(part)
        model = self._model(with_tokens)
        trained = train_dense(
            model, self._training(steps), self.folder / name,
            lambda done, total, text: note(done, total, f"{name}: {text}"),
        )  # fmt: skip
        return model.eval(), trained

    def _training(self, steps: int) -> DenseTraining:
        return DenseTraining(
            self.dataset, self.labels.pixels, self.train, self.val, self.chip_px, steps,
            self.asked.seed,
        )  # fmt: skip

    def _steps_as_long(self, head: DenseModel, trained: DenseTrained) -> int:
        """How many steps of a U-Net take the processor as long as the head's took; found once, and
        kept, so that who comes back goes on with as many.
        """
        kept = self.folder / "steps.json"
        if not kept.exists():
            training = self._training(_TIMED_STEPS)
            taken = []
            for model in (copy.deepcopy(head).train(), self._model(False)):
                began = time.process_time()
                for step in range(_TIMED_STEPS):
                    windows = training.windows_of(step)
                    batch = show(self.dataset, self.labels.pixels, windows, self.chip_px)
                    dense_loss(model, batch.to(self.device)).backward()
                taken.append(time.process_time() - began)
            steps = round(self.asked.steps * max(taken[0] / max(taken[1], 1e-9), 1))
            write_json(kept, steps)
        return int(read_json(kept, RunError, f"delete {self.output}"))

    def _write(self, head: DenseModel) -> WeightsFile:
        """Write the head, and the run beside it, whose encoder may have been tuned."""
        state = {k: v for k, v in head.state_dict().items() if k.startswith("net.")}
        content = save({name: value.cpu().contiguous() for name, value in state.items()})
        write_bytes(self.output / WEIGHTS_FILE, content)
        both = nn.ModuleDict({"model": head.shared[0], "heads": self.run.heads})
        dataset = self.run.contract.dataset
        path = os.path.relpath(self.run.path / dataset.path, self.output)
        contract = self.run.contract.model_copy(
            update={"dataset": dataset.model_copy(update={"path": path})}
        )
        # What machine it is for, and what the report draws.
        for name in (CONFIG_FILE, HISTORY_FILE):
            if (there := self.run.path / name).exists():
                write_bytes(self.output / name, read_bytes(there))
        weights = {name: value.cpu().contiguous() for name, value in both.state_dict().items()}
        save_run(self.output, weights, contract)
        return WeightsFile(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())

    # What says the classes of whole squares

    def _of_model(self, model: DenseModel) -> Predict:
        size = self.dataset.size_px
        grid = TokenGrid((size, size), self.chip_px, 1, self.chip_px // 2)

        @torch.no_grad()
        def by_pixel(image: Tensor, valid: Tensor) -> Tensor:
            return model(image.to(self.device), valid.to(self.device)).flatten(2).mT.cpu()

        def predict(squares: Shown) -> UInt8[np.ndarray, "square row col"]:
            logits = blended_squares(squares.image, squares.valid, by_pixel, grid)
            return np.nan_to_num(logits).argmax(-1).astype(np.uint8)

        return predict

    def _majority(self) -> Predict:
        commonest = self.labels.pixels.counts[self.train].sum(0).argmax()
        return lambda squares: np.full(squares.valid.shape, commonest, np.uint8)

    def _forest(self) -> Predict:
        """A random forest on bands, their indices, and their means and deviations around."""
        from sklearn.ensemble import RandomForestClassifier

        note, rng = self._note(3), np.random.default_rng(self.asked.seed)
        squares = rng.permutation(self.train)
        most = -(-FOREST_PIXELS // len(squares))
        features, labels = [], []
        for done, chip in enumerate(squares[:FOREST_PIXELS].tolist()):
            note(done, len(squares), f"{FOREST}: pixels of the labels")
            whole = self._squares(self.labels, [chip])
            known = np.flatnonzero(whole.labels[0].numpy() != IGNORE)
            some = rng.permutation(known)[:most]
            features.append(self._features(whole)[0].reshape(whole.valid[0].numel(), -1)[some])
            labels.append(whole.labels[0].numpy().ravel()[some])
        # One thread: in several, scikit-learn changes warning filters that all of them share.
        forest = RandomForestClassifier(
            NUM_TREES, min_samples_leaf=LEAST_LEAF, random_state=self.asked.seed
        )
        forest.fit(np.concatenate(features), np.concatenate(labels))

        def predict(squares: Shown) -> UInt8[np.ndarray, "square row col"]:
            values = self._features(squares)
            said = forest.predict(values.reshape(-1, values.shape[-1]))
            return said.reshape(values.shape[:-1]).astype(np.uint8)

        return predict

    def _features(self, squares: Shown) -> Float[np.ndarray, "square row col dim"]:
        names = self.dataset.sensor.band_names
        images = squares.image.numpy() * squares.valid.numpy()[:, None]
        layers = [
            np.concatenate([with_indices(image, names), surroundings(image, valid)])
            for image, valid in zip(images, squares.valid.numpy(), strict=True)
        ]
        return np.moveaxis(np.stack(layers), 1, 3)

    def _squares(self, labels: ChipLabels, chips: Sequence[int]) -> Shown:
        windows = [Window(chip, 0, 0) for chip in chips]
        return show(self.dataset, labels.pixels, windows, self.dataset.size_px)

    # Scores

    def _cells(
        self, predict: Mapping[str, Predict]
    ) -> tuple[dict[str, Int64[np.ndarray, "block true predicted"]], list[str]]:
        """Counts of (true, predicted) pixels on the test ground, by block; the blocks."""
        names, num = [*predict], len(self.names)
        if self.asked.truth is not None:
            names.append(LABELS)
        blocks, block = np.unique(
            self.dataset.column("block")[self.test].astype(str), return_inverse=True
        )
        cells = {name: np.zeros((len(blocks), num, num), np.int64) for name in names}
        note = self._note(4 if self.asked.baselines else 2)
        for start in range(0, len(self.test), _SQUARES_AT_ONCE):
            note(start, len(self.test), "scores on test ground")
            some = slice(start, start + _SQUARES_AT_ONCE)
            chips = self.test[some].tolist()
            squares = self._squares(self.truth, chips)
            true = self.to_class[squares.labels.numpy()]
            said = {name: each(squares) for name, each in predict.items()}
            if LABELS in names:
                said[LABELS] = self._squares(self.labels, chips).labels.numpy().astype(np.uint8)
            known = np.all([true != IGNORE, *(each != IGNORE for each in said.values())], axis=0)
            first = np.broadcast_to(block[some, None, None] * num, true.shape)[known] + true[known]
            for name, predicted in said.items():
                pairs = np.bincount(first * num + predicted[known], minlength=cells[name].size)
                cells[name] += pairs.reshape(cells[name].shape)
        return cells, blocks.tolist()


def _figures(scores: ResampledScores) -> DenseScore:
    return DenseScore(**{metric: scores.mean(metric) for metric in METRICS})


def _scored(
    scores: ResampledScores, cells: Int64[np.ndarray, "block true predicted"], names: Sequence[str]
) -> ScoredDense:
    whole = cells.sum(0)
    right, either = np.diagonal(whole), whole.sum(0) + whole.sum(1)
    true = whole.sum(1) > 0
    f1 = {
        name: 2 * int(r) / int(e) if t else None
        for name, r, e, t in zip(names, right, either, true, strict=True)
    }
    iou = {name: None if value is None else value / (2 - value) for name, value in f1.items()}
    return ScoredDense(**dict(_figures(scores)), f1=f1, iou=iou, confusion=whole.tolist())


def lines(record: FineTuned) -> Iterator[str]:
    """For a terminal: what was trained on, and the table of scores on test ground."""
    for split, labelled in record.splits.items():
        pixels = ", ".join(f"{name} {num:,}" for name, num in labelled.pixels.items() if num)
        yield f"{split}: {labelled.squares:,} labelled squares; pixels: {pixels}"
    for name, trained in record.training.items():
        yield (
            f"{name}: {trained.steps:,} steps, {trained.seconds / 60:.1f} processor minutes; best "
            f"after step {trained.best_step:,} (validation cross-entropy {trained.val_loss:.3f})"
        )
    by = f"by {record.truth}" if record.truth else f"by {record.labels}"
    yield f"test ground, {by}, every pixel; 95 % intervals over {record.blocks} blocks:"
    width = max(map(len, record.scores)) + len("less ")
    yield f"  {'':{width}}  {'pixel accuracy':24}  {'macro-F1':24}  mean IoU"
    rows: list[tuple[str, DenseScore, str]]
    rows = [(name, scores, "") for name, scores in record.scores.items()]
    rows += [(f"less {name}", scores, "+") for name, scores in record.against.items()]
    for name, scores, sign in rows:
        values = (getattr(scores, metric) for metric in METRICS)
        row = "  ".join(f"{shown(value.mean, value.ci95, sign):24}" for value in values)
        yield f"  {name:{width}}  {row}".rstrip()
    if record.rare:
        named = ", ".join(f"{name} ({num})" for name, num in record.rare.items())
        yield f"in fewer than {LEAST_BLOCKS} blocks, so not in the means over classes: {named}"
