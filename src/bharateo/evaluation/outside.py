"""Outside tasks: a run's frozen features on labelled chips that others made.

The chips of a folder (``layouts``) are read in the run's bands and unit, checked against its
contract, brought to its size, and probed beside the features it has to beat.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor
from torch.nn import functional as F

from bharateo.chips.store import SPLITS
from bharateo.errors import ContractError, DatasetError
from bharateo.evaluation.comparison import Confusions, compared, shown
from bharateo.evaluation.features import (
    Extractor,
    Features,
    band_statistics,
    chip_means,
    encoder,
    random_convolutions,
    random_encoder,
)
from bharateo.evaluation.layouts import LAYOUTS, SCALES, Chip, Found, divided, layout_of
from bharateo.evaluation.probe_table import MAJORITY
from bharateo.evaluation.probes import Probe, fit_linear, fit_nearest
from bharateo.evaluation.probing import BUDGETS, NUM_DRAWS, few_labels
from bharateo.files import write_json
from bharateo.inference.contract import Sample as PixelSample
from bharateo.inference.contract import band_places, check_pixels
from bharateo.inference.encoder import CHIPS_AT_ONCE
from bharateo.inference.inputs import Reading
from bharateo.models.patches import patchify
from bharateo.results import Budget, Compared, TaskChips, TaskEvaluation, TaskRun
from bharateo.sensor import Sensor
from bharateo.training.contract import Differences
from bharateo.training.run import Run

Resize = Literal["bilinear", "pad"]
"""A chip of another size than the run's: stretched to it (what GEO-Bench does), or put in the
middle of pixels that are marked invalid (cropped where it is larger)."""

_WHOLE = 1 - 1e-5
"""Share of valid pixels in one that was made of valid ones alone, but for rounding."""

_LOOKED_AT = 32
"""Chips of the train split whose pixels are compared with the run's contract."""


@dataclass(frozen=True)
class Task:
    """A labelled folder, with how its numbers become a run's bands.

    ``bands`` is what a file calls its bands, ``places`` are the run's among them, from 0.
    """

    folder: Path
    layout: str
    found: Found
    bands: tuple[str, ...]
    places: tuple[int, ...]
    scale: float
    offset: float
    nodata: float | None

    def read(
        self, chip: Chip
    ) -> tuple[Float[np.ndarray, "band row col"], Bool[np.ndarray, "row col"]]:
        """A chip's physical values in the run's bands, and where all of them hold one.

        Raises:
            CorruptRasterError: the file is damaged, or has not the bands of the others.
        """
        stored = self.stored(chip)
        valid = np.isfinite(stored).all(0)
        if self.nodata is not None:
            valid &= (stored != self.nodata).all(0)
        return stored.astype(np.float32) * np.float32(self.scale) + np.float32(self.offset), valid

    def stored(self, chip: Chip) -> Shaped[np.ndarray, "band row col"]:
        """A chip's stored values in the run's bands."""
        return LAYOUTS[self.layout].read(chip.path, self.bands, self.places)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the chips' labels."""
        return self.found.classes

    @property
    def chips(self) -> Mapping[str, Sequence[Chip]]:
        """The chips of every split."""
        return self.found.chips

    @cached_property
    def counts(self) -> dict[str, int]:
        """Chips of every split."""
        return {split: len(self.chips[split]) for split in SPLITS}

    @property
    def described(self) -> TaskChips:
        """What the chips are and how they were read."""
        return TaskChips(
            folder=str(self.folder),
            layout=self.layout,
            classes=list(self.classes),
            chips=self.counts,
            split=self.found.split,
            bands_in_file=[self.bands[place] for place in self.places],
            scale=self.scale,
            offset=self.offset,
            nodata=self.nodata,
            notes=list(self.found.notes),
        )


def open_task(
    folder: Path,
    run: Run,
    reading: Reading | None = None,
    layout: str | None = None,
    split_file: Path | None = None,
) -> tuple[Task, dict[str, str]]:
    """The task in a folder as input of a run, and how it differs from the run's contract in the
    fields that ``reading`` allows to.

    ``split_file`` is JSON of train, val (or valid) and test: lists of file names, with or without
    their folder and ending.

    Raises:
        DatasetError: the folder is no such task, or the split does not fit it.
        ContractError: bands are missing, or the numbers are of another unit.
    """
    reading = reading or Reading()
    differences = Differences(reading.allow)
    layout = layout or layout_of(folder)
    found = LAYOUTS[layout].look(folder)
    if split_file:
        found = divided(found, folder, split_file)
    for name in SPLITS:
        if not found.chips[name]:
            raise DatasetError(
                f"{folder} has no chip in its {name} split ({found.split}): give --split-file"
            )
    bands, known = LAYOUTS[layout].bands(found.chips["train"][0].path)
    notes = (*found.notes, *_other_light(folder, layout, run.sensor))
    task = Task(
        folder,
        layout,
        replace(found, notes=notes),
        bands,
        band_places(str(folder), known, run.sensor, reading.bands, differences),
        SCALES.get(folder.name, 1e-4) if reading.scale is None else reading.scale,
        reading.offset or 0.0,
        reading.nodata,
    )
    _check_pixels(task, run, differences)
    return task, differences.found


def _check_pixels(task: Task, run: Run, differences: Differences) -> None:
    """Compare some chips' numbers with those of the training."""
    some = task.chips["train"][:: max(len(task.chips["train"]) // _LOOKED_AT, 1)]
    pixels = np.concatenate([task.stored(chip).reshape(len(task.places), -1) for chip in some], 1)
    pixels = pixels[:, np.isfinite(pixels).all(0) & (pixels != 0).any(0)]
    if not pixels.shape[1]:
        raise ContractError(f"{task.folder}: all pixels of its first {len(some)} chips are 0")
    check_pixels(
        str(task.folder), PixelSample.of(pixels), task.scale, task.offset, run.contract, differences
    )


def _other_light(folder: Path, layout: str, sensor: Sensor) -> tuple[str, ...]:
    """A note where the chips are known to be Level 1C and the run's are not."""
    top = "top-of-atmosphere reflectance"
    if sensor.unit == top or not (layout == "eurosat" or folder.name == "m-eurosat"):
        return ()
    return (f"the chips are {top}, the run was trained on {sensor.unit}",)


# Chips of the run's size


def fitted(
    image: Float[np.ndarray, "band row col"],
    valid: Bool[np.ndarray, "row col"],
    chip_px: int,
    how: Resize,
) -> tuple[Float[Tensor, "band px px"], Bool[Tensor, "px px"]]:
    """A chip brought to the run's size; see ``Resize``. Shrinking averages.

    What was made of an invalid pixel in any part is invalid.
    """
    pixels, known = torch.from_numpy(image), torch.from_numpy(valid)
    if known.shape == (chip_px, chip_px):
        return pixels, known
    if how == "pad":
        top, left = ((chip_px - size) // 2 for size in known.shape)
        below, right = chip_px - known.shape[0] - top, chip_px - known.shape[1] - left
        sides = (left, right, top, below)
        return F.pad(pixels, sides), F.pad(known, sides)
    size = (chip_px, chip_px)
    both = torch.cat([pixels.where(known, 0.0), known[None].float()])[None]
    stretched = F.interpolate(both, size, mode="bilinear", antialias=True)[0]
    return stretched[:-1], stretched[-1] > _WHOLE


def batches(
    task: Task, split: str, chip_px: int, how: Resize, size: int
) -> Iterator[
    tuple[Sequence[Chip], Float[Tensor, "batch band row col"], Bool[Tensor, "batch row col"]]
]:
    """The chips of a split with their images and validity, so many at a time."""
    for start in range(0, len(task.chips[split]), size):
        some = task.chips[split][start : start + size]
        images, known = zip(*(fitted(*task.read(chip), chip_px, how) for chip in some), strict=True)
        yield some, torch.stack(images), torch.stack(known)


# Features


def extract_task(
    task: Task,
    extractors: Sequence[Extractor],
    chip_px: int,
    patch_px: int,
    how: Resize = "bilinear",
    on_chips: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, dict[str, Features]]:
    """Every extractor's features of the chips of every split: extractor -> split -> examples.

    A chip's features are the mean over its patches with a valid pixel; it is its own block of
    ground, since nobody says where it lies. ``on_chips`` is told (chips done, chips in all).
    """
    found: dict[str, dict[str, Features]] = {each.name: {} for each in extractors}
    done, total = 0, sum(task.counts.values())
    for split in SPLITS:
        parts: dict[str, list[np.ndarray]] = {each.name: [] for each in extractors}
        for some, image, valid in batches(task, split, chip_px, how, CHIPS_AT_ONCE):
            known = patchify(valid[:, None], patch_px).any(2)
            for each in extractors:
                parts[each.name].append(chip_means(each.features(image, valid), known).numpy())
            done += len(some)
            on_chips(done, total)
        labels = np.array([chip.label for chip in task.chips[split]])
        place = np.arange(len(labels))
        for name, values in parts.items():
            found[name][split] = Features(np.concatenate(values), labels, place, place)
    return found


def extractors_of(task: Task, run: Run, how: Resize, seed: int = 0) -> list[Extractor]:
    """The run's encoder and what it has to beat, the filters cut from some of the train chips."""
    config = run.model.config
    order = np.random.default_rng(seed).permutation(task.counts["train"])[:CHIPS_AT_ONCE]
    some = [fitted(*task.read(task.chips["train"][i]), config.chip_px, how) for i in order]
    images, known = (torch.stack(each) for each in zip(*some, strict=True))
    return [
        encoder(run),
        random_encoder(run.model, seed),
        band_statistics(config.patch_px),
        random_convolutions(images, known, run.model.normalise, config.patch_px, seed),
    ]


# Scores

PROBES: Mapping[str, Callable[[Features, Features], Probe]] = {
    "linear": lambda train, val: fit_linear(train.values, train.labels, val.values, val.labels),
    "nearest_5": lambda train, val: fit_nearest(train.values, train.labels),
}
"""The linear probe, its regularisation chosen on val, and five nearest neighbours."""


def evaluate_task(
    run: Run,
    task: Task,
    output: Path,
    how: Resize = "bilinear",
    overridden: Mapping[str, str] | None = None,
    on_progress: Callable[[float, float, str], None] = lambda done, total, note: None,
) -> TaskEvaluation:
    """Scores of the run's features on a task's test chips beside those it has to beat, also
    written to ``output``.

    Intervals are over chips, and over draws of labels where few are given. ``on_progress`` is told
    (part done, 1, what is going on).

    Raises:
        StorageError: ``output`` cannot be written.
    """
    config = run.model.config
    features = extract_task(
        task,
        extractors_of(task, run, how),
        config.chip_px,
        config.patch_px,
        how,
        lambda done, total: on_progress(0.5 * done / total, 1, f"{done} of {total} chips"),
    )
    most = task.counts["train"] / len(task.classes)
    budgets = [budget for budget in BUDGETS if budget == "all" or budget < most]
    fits = list(itertools.product(PROBES, budgets))
    scores: dict[str, dict[str, dict[str, Compared]]] = {name: {} for name in PROBES}
    for done, (probe, budget) in enumerate(fits):
        on_progress(0.5 + 0.5 * done / len(fits), 1, f"{probe}, {budget} labels a class")
        cells = {
            name: _confusions(splits, PROBES[probe], budget, len(task.classes))
            for name, splits in features.items()
        }
        cells[MAJORITY] = np.repeat(
            _majority(features["encoder"], len(task.classes)), len(cells["encoder"]), 0
        )
        scores[probe][str(budget)] = compared(cells, "encoder", classes=task.classes, unit="chip")
    record = TaskEvaluation(
        run=TaskRun(path=str(run.path), dataset=run.contract.dataset.fingerprint),
        task=task.described,
        resize=how,
        chip_px=config.chip_px,
        overridden=dict(overridden or {}),
        base="encoder",
        scores=scores,
    )
    write_json(output, record.model_dump())
    return record


def _confusions(
    splits: Mapping[str, Features],
    fit: Callable[[Features, Features], Probe],
    budget: Budget,
    num_classes: int,
) -> Confusions:
    """Counts of (draw, test chip, true, predicted)."""
    train, val, test = (splits[name] for name in SPLITS)
    draws = [train] if budget == "all" else [_few(train, budget, n) for n in range(NUM_DRAWS)]
    predicted = [fit(some, val).predict(test.values) for some in draws]
    return np.stack([_counted(test.labels, each, num_classes) for each in predicted])


def _few(train: Features, budget: int, seed: int) -> Features:
    """So many examples of every class, or all of a class that has fewer."""
    rng = np.random.default_rng(seed)
    return train.take(few_labels(train.labels, train.block, budget, rng))


def _majority(splits: Mapping[str, Features], num_classes: int) -> Confusions:
    common = np.bincount(splits["train"].labels).argmax()
    test = splits["test"].labels
    return _counted(test, np.full_like(test, common), num_classes)[None]


def _counted(
    true: Int64[np.ndarray, " chip"], predicted: Int64[np.ndarray, " chip"], num_classes: int
) -> Int64[np.ndarray, "chip true predicted"]:
    counts = np.zeros((len(true), num_classes, num_classes), np.int64)
    counts[np.arange(len(true)), true, predicted] = 1
    return counts


HEADER = ("probe", "labels a class", "features", "accuracy", "macro F1", "macro F1 - encoder's")


def rows(record: TaskEvaluation) -> list[list[str]]:
    """The table of an evaluated task, under ``HEADER``; the majority class comes last, once."""
    table, constant = [], []
    for probe, budgets in record.scores.items():
        for budget, features in budgets.items():
            for name, scores in features.items():
                f1 = scores.macro_f1
                numbers = [shown(each.mean, each.ci95) for each in (scores.accuracy, f1)]
                if name == MAJORITY:
                    constant = ["", "", name, *numbers, ""]
                    continue
                against = shown(f1.against_base, f1.against_base_ci95, "+")
                if name == record.base:
                    against = ""
                table.append([probe, budget, name, *numbers, against])
    return [*table, constant]
