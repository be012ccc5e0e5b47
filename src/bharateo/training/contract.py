"""The contract of a run: the form it must have on disk, and what input may be allowed to differ.

A contract may come from anybody, as every file of a run may: nothing is believed before its form
has been checked.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, FiniteFloat, NonNegativeInt, PositiveInt, StringConstraints

from bharateo.artefacts import Record, checked
from bharateo.chips.statistics import Statistics
from bharateo.chips.store import Dataset
from bharateo.errors import ContractError, RunError
from bharateo.landcover import NUM_CLASSES
from bharateo.sensor import Sensor, SensorRecord

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


class _Open(Record):
    """A part that a later version may add to."""

    model_config = ConfigDict(extra="allow")


class _Statistics(_Open):
    mean: tuple[FiniteFloat, ...]
    std: tuple[Annotated[FiniteFloat, Field(ge=0)], ...]
    num_pixels: NonNegativeInt
    hash: Text


class _Class(_Open):
    id: NonNegativeInt
    name: Text


class _ClassScheme(_Open):
    name: Text
    classes: tuple[_Class, ...]


class _Model(_Open):
    name: Literal["v0", "seed"]
    chip_px: Px
    patch_px: Px
    mask_ratio: Annotated[float, Field(gt=0, lt=1)]
    width: PositiveInt
    depth: Annotated[int, Field(ge=0, le=1000)]
    num_heads: PositiveInt
    decoder_width: Annotated[int, Field(ge=1, le=2**14)]
    decoder_depth: Annotated[int, Field(ge=0, le=1000)]
    decoder_num_heads: PositiveInt
    mlp_ratio: PositiveInt


class _Head(Record):
    weight: Annotated[FiniteFloat, Field(ge=0)]
    options: dict[Text, Text | bool | int | FiniteFloat | None]


class _Presented(_Open):
    chips_per_epoch: Count
    epochs: Count


class _Dataset(_Open):
    path: PathText
    fingerprint: Text


class _Weights(_Open):
    bytes: NonNegativeInt
    sha256: Text


class Contract(_Open):
    """The contents of ``contract.json``."""

    schema_version: Literal[1]
    code_version: Text
    sensor: SensorRecord
    nodata: Text
    statistics: _Statistics
    majority_class: Annotated[int, Field(ge=0, lt=NUM_CLASSES)]
    chip_px: Px
    patch_px: Px
    mask_ratio: float
    class_scheme: _ClassScheme
    model: _Model
    heads: Annotated[dict[Text, _Head], Field(min_length=1)]
    num_parameters: Annotated[int, Field(ge=0, le=2**53)]
    presented: _Presented
    dataset: _Dataset
    attribution: tuple[Text, ...]
    weights: _Weights | None = None
    """Missing in runs from before it was written."""


_REMEDY = "restore the file, or pretrain again into another folder"


def check_form(contract: Any, file: Path) -> None:
    """Refuse what is no contract, or one that contradicts itself.

    Raises:
        RunError: a key is missing, of another type or size, or does not fit another one.
    """
    said = checked(Contract, contract, str(file), RunError, _REMEDY)
    if wrong := next(_contradictions(said), None):
        raise RunError(f"{file}: {wrong}; {_REMEDY}")


def _contradictions(said: Contract) -> Iterator[str]:
    """What in a contract of the right form cannot be."""
    num_bands, model = len(said.sensor.bands), said.model
    for name in ("mean", "std"):
        num = len(getattr(said.statistics, name))
        if num != num_bands:
            yield f"statistics.{name} has {num} values for {num_bands} bands"
    for name in ("chip_px", "patch_px", "mask_ratio"):
        ours, models = getattr(said, name), getattr(model, name)
        if ours != models:
            yield f"{name} is {ours}, model.{name} {models}"
    if said.chip_px % said.patch_px:
        yield f"patch_px {said.patch_px} does not divide chip_px {said.chip_px}"
    if int((said.chip_px // said.patch_px) ** 2 * said.mask_ratio) < 1:
        yield f"mask_ratio {said.mask_ratio} hides no patch of a chip"
    heads = [("", model.width, model.num_heads)]
    if model.name != "seed":  # which has no decoder
        heads.append(("decoder_", model.decoder_width, model.decoder_num_heads))
    for part, width, num_heads in heads:
        if width % num_heads:
            yield f"model.{part}num_heads {num_heads} does not divide {part}width {width}"
    if said.sensor.scale <= 0:
        yield f"sensor.scale is {said.sensor.scale:g}, not above 0"


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
    contract: Mapping[str, Any], dataset: Dataset, run: Path, allow: Collection[str] = ()
) -> dict[str, str]:
    """How a dataset differs from a contract in the fields allowed to; see ``Run.check``."""
    trained, given = Sensor.from_json(contract["sensor"]), dataset.sensor
    differences = Differences(allow if trained.num_bands == given.num_bands else ())
    fields = {
        "bands": (list(trained.band_names), list(given.band_names)),
        "unit": (trained.unit, given.unit),
        "standardised": (trained.standardised, given.standardised),
        "classes": (contract["class_scheme"]["classes"], dataset.info["class_scheme"]["classes"]),
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
    if dataset.size_px < contract["chip_px"]:
        raise ContractError(
            f"size_px: the run {run} needs chips of {contract['chip_px']} px, the dataset "
            f"{dataset.path} stores {dataset.size_px}; build it with a larger data.plan.size_px"
        )
    if trained.standardised and not differences.found and dataset.statistics.num_pixels:
        check_statistics(contract, dataset.statistics, f"the dataset {dataset.path}", differences)
    return differences.found


def check_statistics(
    contract: Mapping[str, Any], found: Statistics, where: str, differences: Differences
) -> None:
    """Refuse pixels that are far from those of the training.

    Raises:
        ContractError: they are, and ``statistics`` is not allowed to differ.
    """
    trained = Statistics.from_json(contract["statistics"])
    distance = found.distance(trained)
    if distance < FAR:
        return
    names = Sensor.from_json(contract["sensor"]).band_names
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
