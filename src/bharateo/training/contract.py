"""A run's folder: its layout, its contract (what the weights may be fed), its history.

::

    config.yaml                   the configuration as resolved, written first
    history.jsonl                 one line an epoch
    events.jsonl                  spikes of loss and gradient, with the chips of their steps
    diverged.json                 left by a run that ended in numbers that are none
    tensorboard/                  the same numbers for TensorBoard, where asked for
    checkpoints/last.safetensors  weights, optimiser state and progress, replaced as a whole
    checkpoints/best.safetensors  weights of the best epoch so far, where it is to be kept; gone at
                                  the end
    model.safetensors             the trained weights
    contract.json                 what the weights may be fed; written last: the run is complete

A contract may come from anybody, as every file of a run may: nothing is believed before its form
has been checked.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, FiniteFloat, NonNegativeInt, PositiveInt, StringConstraints

from bharateo.accounting import Accounting
from bharateo.artefacts import (
    Number,
    OpenRecord,
    Record,
    checked,
    parse_json,
    read_json,
    shortened,
)
from bharateo.chips.statistics import Statistics, StatisticsRecord
from bharateo.chips.store import Dataset
from bharateo.config import SetName
from bharateo.errors import ContractError, RunError
from bharateo.files import read_bytes, target_outside, write_text
from bharateo.landcover import NUM_CLASSES
from bharateo.sensor import Sensor
from bharateo.version import __version__

CONFIG_FILE = "config.yaml"
HISTORY_FILE = "history.jsonl"
EVENTS_FILE = "events.jsonl"
DIVERGED_FILE = "diverged.json"
TENSORBOARD_FOLDER = "tensorboard"
CHECKPOINT_FILE = "checkpoints/last.safetensors"
BEST_FILE = "checkpoints/best.safetensors"
MODEL_FILE = "model.safetensors"
CONTRACT_FILE = "contract.json"

SCHEMA_VERSION = 1

FAR = 4.0
"""``Statistics.distance`` from which on pixels are not those of the training. Other land lies up to
2 from a training set of several landscapes, about 4 from one of a single place; snow lies 5 to 8
from one without snow."""

_MOST_PX = 2**12
"""Of sizes that a model's weights do not bound: beyond, building it takes for ever."""

Text = Annotated[str, StringConstraints(max_length=10_000)]
PathText = Annotated[str, StringConstraints(max_length=4096, pattern=r"^[^\x00-\x1f]+$")]
Px = Annotated[int, Field(ge=1, le=_MOST_PX)]
Count = Annotated[int, Field(ge=1, le=2**53)]
Whole = Annotated[int, Field(ge=0, le=2**53)]


class TrainStatistics(StatisticsRecord):
    """Of the train split, with the hash that tells whether two runs normalise alike."""

    hash: Text


class LandClass(OpenRecord):
    """A class as the labels name it."""

    id: NonNegativeInt
    name: Text


class SchemeRecord(OpenRecord):
    """The labels' classes."""

    name: Text
    classes: tuple[LandClass, ...]


class ModelShape(OpenRecord):
    """The model's part of the configuration; see ``config.ModelConfig``."""

    name: Literal["v0", "seed"]
    chip_px: Px
    patch_px: Px
    mask_ratio: Annotated[float, Field(ge=0, lt=1)]
    width: PositiveInt
    depth: Annotated[int, Field(ge=0, le=1000)]
    num_heads: PositiveInt
    decoder_width: Annotated[int, Field(ge=1, le=2**14)]
    decoder_depth: Annotated[int, Field(ge=0, le=1000)]
    decoder_num_heads: PositiveInt
    mlp_ratio: PositiveInt
    embedding: Literal["linear", "energies", "stem"] = "linear"
    """Missing in runs from before there was a choice."""
    num_filters: Annotated[int, Field(ge=1, le=4096)] = 64
    band_sets: dict[SetName, Annotated[tuple[Text, ...], Field(min_length=1)]] = Field(
        default_factory=dict
    )
    """The bands of each set that the model takes instead of all."""


class HeadOptions(Record):
    """A head's part of the configuration; see ``config.HeadConfig``."""

    weight: Annotated[Number, Field(ge=0)]
    options: dict[Text, Text | bool | int | FiniteFloat | None]


class Presented(OpenRecord):
    """How much was shown."""

    chips_per_epoch: Count
    epochs: Count


class Kept(OpenRecord):
    """Which weights of the training are the run's; see ``config.TrainingConfig``."""

    rule: Literal["last", "best"]
    epoch: Count
    val_loss: FiniteFloat | None = None
    average: Annotated[float, Field(ge=0, le=0.5)]

    @property
    def shown(self) -> str:
        """In words, to go on after "weights"."""
        words = f"after epoch {self.epoch:,}"
        if self.average:
            words += f", as a moving average (training.average {self.average:g})"
        if self.rule == "best" and self.val_loss is not None:
            words += f", with the lowest validation loss ({self.val_loss:.4g})"
        return words


class TrainedOn(OpenRecord):
    """The dataset: where it lay, seen from the run, the SHA-256 of its ``dataset.json``, its
    regions in words, and whose pixels and labels it holds; earlier runs do not say the last two.
    """

    path: PathText
    fingerprint: Text
    places: Text = ""
    origin: Text = ""


class WeightsFile(OpenRecord):
    """The file the contract was written with."""

    bytes: NonNegativeInt
    sha256: Text


class Contract(OpenRecord):
    """The contents of ``contract.json``: what a model may be fed, and what made it."""

    schema_version: Literal[1]
    code_version: Text
    sensor: Sensor
    nodata: Text
    statistics: TrainStatistics
    majority_class: Annotated[int, Field(ge=0, lt=NUM_CLASSES)]
    chip_px: Px
    patch_px: Px
    mask_ratio: float
    class_scheme: SchemeRecord
    model: ModelShape
    heads: Annotated[dict[Text, HeadOptions], Field(min_length=1)]
    num_parameters: Whole
    presented: Presented
    dataset: TrainedOn
    kept: Kept | None = None
    """Missing in runs that kept their last weights as they were."""
    attribution: tuple[Text, ...]
    weights: WeightsFile | None = None
    """Missing in runs from before it was written."""

    def to_json(self) -> dict[str, Any]:
        """Plain values, as they stand in the file: what was not there is left out."""
        return self.model_dump(exclude_unset=True)

    def of_bands(self, names: Sequence[str]) -> Contract:
        """What input of some of the bands has to keep: the same, for these alone, in this order."""
        places = [self.sensor.band_names.index(name) for name in names]
        of_all, few = self.statistics, self.statistics.as_arrays().of_bands(places)
        changed = {"mean": tuple(few.mean.tolist()), "std": tuple(few.std.tolist())}
        kept = of_all.model_copy(update={**changed, "hash": few.hash})
        return self.model_copy(update={"sensor": self.sensor.with_bands(names), "statistics": kept})

    @property
    def bands_taken(self) -> str:
        """The bands that input must hold, for people: all, or those of a set."""
        sets = [f"{name} ({', '.join(bands)})" for name, bands in self.model.band_sets.items()]
        every = ", ".join(self.sensor.band_names)
        return f"{every}, or of these alone {' or '.join(sets)}" if sets else every

    def fitting_set(self, held: Collection[str]) -> str | None:
        """The set with the most bands (of as many, the first by name) whose bands are all held."""
        sets = sorted(self.model.band_sets.items(), key=lambda each: (-len(each[1]), each[0]))
        return next((name for name, bands in sets if {*bands} <= {*held}), None)

    @property
    def accounting(self) -> Accounting:
        """What was really presented, counted."""
        return Accounting(
            self.presented.chips_per_epoch,
            self.presented.epochs,
            self.chip_px,
            self.patch_px,
            self.sensor.num_bands,
            self.mask_ratio,
        )


def check_inside(folder: Path, name: str) -> None:
    """Refuse a file of a folder that is a link to somewhere else; see ``target_outside``.

    Raises:
        RunError: the link leads out of the folder.
    """
    if target := target_outside(folder, name):
        raise RunError(
            f"{folder / name} is a link out of the folder, to {target}; put the file itself there"
        )


def read_contract(run: Path) -> Contract:
    """The contract of a finished run.

    Raises:
        RunError: there is none, it is damaged, another version of the package wrote it, a key is
            missing, of another type or size, or contradicts another one.
    """
    check_inside(run, CONTRACT_FILE)
    file = run / CONTRACT_FILE
    if not file.exists():
        state = "its training has not finished: run the same pretrain command again to go on: "
        state += f"bharateo pretrain {run / CONFIG_FILE}"
        if not (run / CONFIG_FILE).exists():
            state = "there is no run; make one: bharateo pretrain CONFIG"
        state += f" --dataset DATASET --output {run}"
        raise RunError(f"{run} holds no {CONTRACT_FILE}: {state}")
    plain = read_json(file, RunError, "restore the file")
    version = plain.get("schema_version") if isinstance(plain, dict) else None
    if version != SCHEMA_VERSION:  # said first: of another version only that can be said
        raise RunError(
            f"{file} has schema version {shortened(repr(version))}, this "
            f"bharateo {__version__} reads {SCHEMA_VERSION}; restore the file, or open it "
            "with the bharateo that wrote it"
        )
    remedy = "restore the file, or pretrain again into another folder"
    contract = checked(Contract, plain, str(file), RunError, remedy)
    if wrong := _contradiction(contract):
        raise RunError(f"{file}: {wrong}; {remedy}")
    return contract


def _contradiction(said: Contract) -> str | None:
    """What in a contract of the right form cannot be, None where all of it can."""
    num_bands, model = said.sensor.num_bands, said.model
    for name in ("mean", "std"):
        num = len(getattr(said.statistics, name))
        if num != num_bands:
            return f"statistics.{name} has {num} values for {num_bands} bands"
    for name in ("chip_px", "patch_px", "mask_ratio"):
        ours, models = getattr(said, name), getattr(model, name)
        if ours != models:
            return f"{name} is {ours}, model.{name} {models}"
    if said.chip_px % said.patch_px:
        return f"patch_px {said.patch_px} does not divide chip_px {said.chip_px}"
    if said.mask_ratio and int((said.chip_px // said.patch_px) ** 2 * said.mask_ratio) < 1:
        return f"mask_ratio {said.mask_ratio} hides no patch of a chip"
    parts = [("", model.width, model.num_heads)]
    if model.name != "seed":  # which has no decoder
        parts.append(("decoder_", model.decoder_width, model.decoder_num_heads))
    for part, width, num_heads in parts:
        if width % num_heads:
            return f"model.{part}num_heads {num_heads} does not divide {part}width {width}"
    if said.kept and said.kept.epoch > said.presented.epochs:
        return f"kept.epoch is {said.kept.epoch} of presented.epochs {said.presented.epochs}"
    for name, bands in model.band_sets.items():
        if not {*bands} < {*said.sensor.band_names}:
            return f"model.band_sets.{name} holds {', '.join(bands)}, not some of sensor.bands"
    if said.sensor.scale <= 0:
        return f"sensor.scale is {said.sensor.scale:g}, not above 0"
    return None


# Input that differs


class Differences:
    """How some input differs from a contract: refused, unless the user allowed that field.

    ``found`` is what was allowed: field -> how it differs.
    """

    def __init__(self, allow: Collection[str] = ()) -> None:
        self.found: dict[str, str] = {}
        self._allow = frozenset(allow)

    def add(self, field: str, what: str, remedy: str) -> None:
        """Refuse or note one difference.

        Raises:
            ContractError: the field is not allowed to differ.
        """
        if field not in self._allow:
            raise ContractError(f"{field}: {what}; {remedy}, or go on with --allow {field}")
        self.found[field] = what


def check_dataset(
    contract: Contract, dataset: Dataset, run: Path, allow: Collection[str] = ()
) -> dict[str, str]:
    """How a dataset differs from a contract in the fields allowed to; see ``Run.check``."""
    trained, given = contract.sensor, dataset.sensor
    differences = Differences(allow if trained.num_bands == given.num_bands else ())
    fields = {
        "bands": (list(trained.band_names), list(given.band_names)),
        "unit": (trained.unit, given.unit),
        "standardised": (trained.standardised, given.standardised),
        "classes": (
            [each.model_dump(mode="json") for each in contract.class_scheme.classes],
            dataset.info["class_scheme"]["classes"],
        ),
    }
    for name, (expected, found) in fields.items():
        if expected != found:
            what = (
                f"the run {run} was trained on {_brief(expected)}, the dataset {dataset.path} "
                f"holds {_brief(found)}"
            )
            remedy = f"use a dataset of the same {name} or pretrain a run on this one"
            if name not in ("bands", "unit"):
                raise ContractError(f"{name}: {what}; {remedy}")
            differences.add(name, what, remedy)
    if dataset.size_px < contract.chip_px:
        raise ContractError(
            f"size_px: the run {run} needs chips of {contract.chip_px} px, the dataset "
            f"{dataset.path} stores {dataset.size_px}; build it with a larger data.plan.size_px"
        )
    if trained.standardised and not differences.found and dataset.statistics.num_pixels:
        check_statistics(contract, dataset.statistics, f"the dataset {dataset.path}", differences)
    return differences.found


def check_statistics(
    contract: Contract, found: Statistics, where: str, differences: Differences
) -> None:
    """Refuse pixels that are far from those of the training.

    Raises:
        ContractError: they are, and ``statistics`` is not allowed to differ.
    """
    trained = contract.statistics.as_arrays()
    distance = found.distance(trained)
    if distance < FAR:
        return
    names = contract.sensor.band_names
    worst = int((abs(found.mean - trained.mean) / trained.scale).argmax())
    differences.add(
        "statistics",
        f"{where} lies {distance:.1f} standard deviations from what the run was trained on, beyond "
        f"{FAR:g}; {names[worst]} has mean {found.mean[worst]:.3g} and std {found.std[worst]:.3g}, "
        f"in the training {trained.mean[worst]:.3g} and {trained.std[worst]:.3g}",
        "check its unit and the order of its bands",
    )


def _brief(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else repr(value)


# What a run tells while it trains.


class Epoch(OpenRecord):
    """A line of ``history.jsonl``: the epoch, from 1, and numbers by name."""

    __pydantic_extra__: dict[str, Annotated[float, Field(gt=-1e30, lt=1e30)] | None]

    epoch: Whole


class Event(OpenRecord):
    """A line of ``events.jsonl``: the step, and what happened there."""

    step: Whole


def read_rows(path: Path, kind: type[Epoch | Event]) -> list[dict[str, Any]]:
    """The lines of a ``.jsonl`` file, plain; none where there is no file.

    Raises:
        RunError: the file cannot be read, or a line is not of this kind.
    """
    remedy = "restore the file, or delete it: training goes on without it"
    try:
        content = read_bytes(path)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error.strerror}); {remedy}") from error
    rows = []
    for number, line in enumerate(content.splitlines(), 1):
        if line.strip():
            where = f"{path}, line {number}"
            row = parse_json(line, where, RunError, remedy)
            checked(kind, row, where, RunError, remedy)
            rows.append(row)
    return rows


class Log:
    """The lines of a run's file, replaced as a whole whenever one is added."""

    def __init__(self, path: Path, keep: Iterable[Mapping[str, Any]] = ()) -> None:
        self.path, self.rows = path, [dict(row) for row in keep]

    def add(self, row: Mapping[str, Any]) -> None:
        """One more line."""
        self.rows.append(dict(row))
        write_text(self.path, "".join(json.dumps(each) + "\n" for each in self.rows))
