"""Training of a class for every pixel: windows with labels, the loop, its best weights.

What a step shows is a function of the seed and the step, so that a training which was killed ends
with the same weights as one that was not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor
from torch.nn import functional as F

from bharateo.chips.store import Dataset
from bharateo.errors import DivergedError
from bharateo.landcover import IGNORE
from bharateo.models.dense import DenseModel
from bharateo.progress import Progress
from bharateo.training.data import Window, draw, epoch_order, physical_units, stack
from bharateo.training.optimisers import warm_cosine
from bharateo.training.run import (
    BestEpoch,
    Checkpoint,
    load_best,
    load_checkpoint,
    restore_training_state,
    save_best,
    save_checkpoint,
    training_state,
)

BATCH_CHIPS = 16
LEARNING_RATE = 3e-3
TUNED_SHARE = 0.1
"""Of the learning rate: what an encoder that is tuned as well gets."""

_WEIGHT_DECAY = 0.05
_WARMUP_SHARE = 0.1
_ROUNDS = 10
"""How often validation looks at the weights."""

_MOST_VAL_WINDOWS = 256
_CHECKPOINT_S = 20.0


@dataclass(frozen=True)
class PixelLabels:
    """Labels of a dataset's pixels: ``of`` a square, numbers of classes, 255 where there is none or
    the image is invalid; and how many pixels of each class every square has.
    """

    of: Callable[[int], UInt8[np.ndarray, "row col"]]
    counts: Int64[np.ndarray, "square cls"]

    def squares(self, chips: Int64[np.ndarray, " some"]) -> Int64[np.ndarray, " labelled"]:
        """Those of the squares that have a labelled pixel."""
        return chips[self.counts[chips].any(1)]


class Shown(NamedTuple):
    """Chips in physical units with the labels of their pixels, 255 where there is none."""

    image: Float[Tensor, "batch band row col"]
    valid: Bool[Tensor, "batch row col"]
    labels: Int64[Tensor, "batch row col"]

    def to(self, device: torch.device) -> Shown:
        """The same on a device."""
        return Shown(*(each.to(device) for each in self))


def show(dataset: Dataset, labels: PixelLabels, windows: list[Window], chip_px: int) -> Shown:
    """Windows with their labels."""
    image, valid, wanted = (
        torch.from_numpy(stack(layer, windows, chip_px))
        for layer in (dataset.image, dataset.valid, labels.of)
    )
    return Shown(physical_units(image, dataset.sensor), valid, wanted.long())


def labelled_windows(
    labels: PixelLabels,
    squares: Int64[np.ndarray, " shown"],
    size_px: int,
    chip_px: int,
    seed: int,
    first: int = 0,
    turned: bool = True,
) -> list[Window]:
    """A window for every square, the ``first``-th presentation and those after it: one that holds a
    labelled pixel drawn from all of the square, wherever that lies in it.
    """
    positions = np.arange(first, first + len(squares))
    drawn = draw(positions, squares, size_px, 1, turned, seed, 0)
    windows = []
    for chip, row, col, way, which in zip(
        squares.tolist(), drawn.row, drawn.col, drawn.symmetry, drawn.noise[:, 0], strict=True
    ):
        rows, cols = np.nonzero(labels.of(chip) != IGNORE)
        pixel = int(which * len(rows))
        # From -chip_px + 1 to 0 before the pixel.
        begin = (
            int(place[pixel]) - int(part * chip_px // (size_px + 1))
            for place, part in ((rows, row), (cols, col))
        )
        top, left = (min(max(each, 0), size_px - chip_px) for each in begin)
        windows.append(Window(chip, top, left, int(way)))
    return windows


@dataclass(frozen=True)
class DenseTraining:
    """A model to train on the labelled squares ``train`` of a dataset, its best weights by those of
    ``val``, for a number of ``steps``.
    """

    dataset: Dataset
    labels: PixelLabels
    train: Int64[np.ndarray, " square"]
    val: Int64[np.ndarray, " square"]
    chip_px: int
    steps: int
    seed: int

    @cached_property
    def _order(self) -> Int64[np.ndarray, " shown"]:
        """The squares of all presentations, each as often as any other."""
        return epoch_order(self.train, self.steps * BATCH_CHIPS, self.seed, 0)

    def windows_of(self, step: int) -> list[Window]:
        """What a step shows."""
        first = step * BATCH_CHIPS
        some = self._order[first : first + BATCH_CHIPS]
        size = self.dataset.size_px
        return labelled_windows(self.labels, some, size, self.chip_px, self.seed, first)

    def val_batches(self) -> Iterator[Shown]:
        """What validation looks at, always the same."""
        some = np.random.default_rng(self.seed).permutation(self.val)[:_MOST_VAL_WINDOWS]
        size = self.dataset.size_px
        windows = labelled_windows(self.labels, some, size, self.chip_px, self.seed, 0, False)
        for start in range(0, len(windows), BATCH_CHIPS):
            batch = windows[start : start + BATCH_CHIPS]
            yield show(self.dataset, self.labels, batch, self.chip_px)


@dataclass(frozen=True)
class DenseTrained:
    """The best weights of a training: after which step, their cross-entropy on validation ground,
    and the processor seconds that all steps took.
    """

    best_step: int
    val_loss: float
    seconds: float


def train_dense(
    model: DenseModel, training: DenseTraining, folder: Path, progress: Progress
) -> DenseTrained:
    """Train a model, and leave it with its best weights. ``folder`` keeps checkpoints, from which
    the same training goes on.

    Raises:
        DivergedError: a loss is no number.
        RunError: a checkpoint is damaged, or of another model.
        StorageError: the disk is full.
    """
    tuned = {id(each) for each in model.encoder.parameters()} if model.tuned else set()
    groups = [
        {"params": [p for p in model.parameters() if (id(p) in tuned) == inside], "share": share}
        for inside, share in ((False, 1.0), (True, TUNED_SHARE))
    ]
    optimiser = torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=LEARNING_RATE, weight_decay=_WEIGHT_DECAY, fused=True,
    )  # fmt: skip
    step, seconds = 0, 0.0
    if (found := load_checkpoint(folder)) is not None:
        restore_training_state(found.state, model, [optimiser])
        step, seconds = found.step, found.sums["seconds"][0]
    every, saved = max(training.steps // _ROUNDS, 1), time.monotonic()
    best = load_best(folder, model)[0] if step >= every else None
    device = next(model.parameters()).device
    weights = class_weights(training.labels.counts[training.train].sum(0)).to(device)
    began, before = time.monotonic(), step
    while step < training.steps:
        started = time.process_time()
        model.train()
        shown = show(training.dataset, training.labels, training.windows_of(step), training.chip_px)
        loss = dense_loss(model, shown.to(device), weights)
        if not loss.isfinite():
            raise DivergedError(
                f"the loss of step {step + 1} is {float(loss.detach())}: lower the rate"
            )
        rate = warm_cosine(LEARNING_RATE, step, training.steps, _WARMUP_SHARE * training.steps)
        for group in optimiser.param_groups:
            group["lr"] = group["share"] * rate
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        step += 1
        seconds += time.process_time() - started
        left = (time.monotonic() - began) / (step - before) * (training.steps - step)
        progress(
            step, training.steps,
            f"step {step}/{training.steps}  loss {float(loss.detach()):.3f}  {left:.0f} s left",
        )  # fmt: skip
        at_round = step % every == 0 or step == training.steps
        if at_round:
            val_loss = _val_loss(model, training, device)
            if best is None or val_loss < best.val_loss:
                best = BestEpoch(epoch=step, val_loss=val_loss)
                save_best(folder, best, model.state_dict())
        if at_round or time.monotonic() - saved > _CHECKPOINT_S:
            state = training_state(model, [optimiser])
            save_checkpoint(folder, Checkpoint(step, {"seconds": [seconds, 1.0]}, state))
            saved = time.monotonic()
    best, state = load_best(folder, model)
    model.load_state_dict(state)
    return DenseTrained(best.epoch, best.val_loss, seconds)


def class_weights(counts: Int64[np.ndarray, " cls"]) -> Float[Tensor, " cls"]:
    """What a labelled pixel of each class counts in training: the rarer, the more."""
    share = torch.from_numpy(counts).float().clamp(min=1) / counts.sum()
    return share.rsqrt()


def dense_loss(
    model: DenseModel, shown: Shown, weights: Float[Tensor, " cls"] | None = None
) -> Float[Tensor, ""]:
    """Mean cross-entropy of the pixels that have a label.

    With ``weights`` classes count by these, and the logits are held to what that asks of them less
    the weights' logarithms: they stay those of the classes as often as they are, and rare classes
    are learnt sooner. Source: Menon et al. 2021, "Long-tail learning via logit adjustment",
    section 5.
    """
    logits = model(shown.image, shown.valid)
    if weights is not None:
        logits = logits + weights.log()[:, None, None]
    return F.cross_entropy(logits, shown.labels, weights, ignore_index=IGNORE)


@torch.no_grad()
def _val_loss(model: DenseModel, training: DenseTraining, device: torch.device) -> float:
    """Mean over all labelled pixels that validation looks at."""
    model.eval()
    total, num = 0.0, 0
    for shown in training.val_batches():
        known = int((shown.labels != IGNORE).sum())
        total += float(dense_loss(model, shown.to(device))) * known
        num += known
    return total / num
