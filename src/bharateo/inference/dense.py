"""A run with a dense head: opened, and as a map's classifier; what ``finetune`` found."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from bharateo.artefacts import OpenRecord, checked, read_json
from bharateo.errors import ContractError, RunError
from bharateo.inference.encoder import FrozenEncoder
from bharateo.inference.map import Classifier
from bharateo.landcover import IGNORE, LandCoverClass
from bharateo.models.dense import DenseModel
from bharateo.results import MeanScore, Name, Number, Text, Whole
from bharateo.training.contract import WeightsFile, check_inside
from bharateo.training.dense import BATCH_CHIPS
from bharateo.training.run import Run, load_weights

RECORD_FILE, WEIGHTS_FILE = "finetune.json", "dense.safetensors"

HEAD = "dense head"
"""Its row among the scores."""


class DenseClass(OpenRecord):
    """A class of the labels, with their own id of it."""

    id: int = Field(ge=0, lt=IGNORE)
    name: Name
    colour: tuple[int, int, int]


class DenseScore(OpenRecord):
    """How well something maps the test ground; means over classes leave out ``rare`` ones."""

    accuracy: MeanScore
    macro_f1: MeanScore
    mean_iou: MeanScore


class ScoredDense(DenseScore):
    """With every class, and counts of (true, predicted) pixels."""

    f1: dict[Name, Number | None]
    iou: dict[Name, Number | None]
    confusion: list[list[Whole]]


class Training(OpenRecord):
    """Which step's weights were best, their cross-entropy on validation ground, and processor
    seconds.
    """

    steps: Whole
    best_step: Whole
    val_loss: Number
    seconds: Number


class LabelledSplit(OpenRecord):
    """The labelled squares of a split, and pixels of every class."""

    squares: Whole
    pixels: dict[Name, Whole]


class FineTuned(OpenRecord):
    """The contents of ``finetune.json``: a dense head, what it was trained on and what it reaches.

    ``against`` are differences of the dense head to every other predictor, with 95 % intervals over
    the same blocks of ground.
    """

    product: Literal["finetune"] = "finetune"
    request: dict[str, Any]
    labels: Text
    truth: Text | None
    encoder: Literal["frozen", "tuned"]
    classes: list[DenseClass]
    splits: dict[Name, LabelledSplit]
    blocks: Whole
    rare: dict[Name, Whole] = Field(
        description="classes in too few blocks for a mean, and in how many"
    )
    training: dict[Name, Training]
    scores: dict[Name, ScoredDense]
    against: dict[Name, DenseScore]
    attribution: list[Text]
    weights: WeightsFile


def read_finetuned(folder: Path) -> FineTuned | None:
    """What ``finetune`` left in a folder; None where it has not finished anything there.

    Raises:
        RunError: the file is damaged.
    """
    file = folder / RECORD_FILE
    if not file.exists():
        return None
    check_inside(folder, RECORD_FILE)
    remedy = "finetune again into another folder"
    return checked(FineTuned, read_json(file, RunError, remedy), str(file), RunError, remedy)


def check_rebuilds(run: Run) -> None:
    """What the pretraining learnt to rebuild still fits the encoder.

    Raises:
        RunError: ``finetune --unfreeze`` has tuned the encoder since, and nothing else of the run.
    """
    record = read_finetuned(run.path)
    if record is not None and record.encoder == "tuned":
        raise RunError(
            f"the encoder of {run.path} was tuned for classes since its pretraining (finetune "
            "--unfreeze), and no longer fits what rebuilds hidden patches: give the run that it "
            f"came from, or ask what its features are worth: bharateo probe {run.path}"
        )


def dense_classifier(run: Run) -> Classifier | None:
    """What tells the class of every pixel, of a run that has a dense head; None of others.

    Raises:
        ContractError: the raster is read in some of the run's bands, of all of which the head is.
        RunError: the head's files are damaged, or others than they were.
    """
    record = read_finetuned(run.path)
    if record is None:
        return None
    if run.band_set is not None:
        raise ContractError(
            f"bands: the dense head of {run.path} was trained on all bands of the run, the raster "
            f"is read in {run.bands_read}: give a raster with all of them"
        )
    encoder = FrozenEncoder.of_run(run)
    check_inside(run.path, WEIGHTS_FILE)
    dense = load_weights(
        run.path / WEIGHTS_FILE,
        record.weights,
        lambda: DenseModel(encoder.model, len(record.classes), with_tokens=True),
        0,
    )
    dense.to(encoder.device).eval()
    classes = tuple(LandCoverClass(e.id, e.name, e.colour) for e in record.classes)

    @torch.no_grad()
    def look(image: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        tokens = encoder.features(image, valid)
        parts = (each.to(encoder.device).split(BATCH_CHIPS) for each in (image, valid, tokens))
        logits = torch.cat([dense(*some) for some in zip(*parts, strict=True)])
        return tokens, logits.flatten(2).transpose(1, 2).to(image.device)

    about = {"classifier": HEAD, "trained on": record.labels, "sha256": record.weights.sha256}
    return Classifier(encoder, classes, look, about, pixels=True)
