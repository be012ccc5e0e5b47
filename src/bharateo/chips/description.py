"""What ``dataset.json`` may say: everything that is read of it, typed and bounded.

A dataset may come from anybody. Pixels are taken from its files as the description says they lie
there, so nothing in it is believed before it has been checked: layers are of three names, of known
types and of the shape that sensor and size of the chips ask for, and shards have no names but their
own.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, FiniteFloat, NonNegativeInt, PositiveInt, StringConstraints

from bharateo.artefacts import OpenRecord, Record, checked
from bharateo.chips.statistics import StatisticsRecord
from bharateo.errors import DatasetError
from bharateo.sensor import Sensor

SCHEMA_VERSION = 2
DATASET_FILE = "dataset.json"
LAYERS = ("image", "landcover", "valid")
SPLITS = ("train", "val", "test")

MOST_PX = 2**14
"""Longest side of a chip."""

_MOST_HEADER_BYTES = 2**16
_REMEDY = "restore the file, or delete the folder and build it again"

Text = Annotated[str, StringConstraints(max_length=10_000)]
Name = Annotated[
    str, StringConstraints(min_length=1, max_length=250, pattern=r"^[^\x00-\x1f\x7f/\\]+$")
]
"""Of a region; it names files."""

Code = Annotated[str, StringConstraints(pattern=r"^\d{1,3}$")]
Side = Annotated[int, Field(ge=1, le=2**31)]
ClassId = Annotated[int, Field(ge=0, lt=255)]
Colour = Annotated[int, Field(ge=0, le=255)]


class _Chip(OpenRecord):
    size_px: Annotated[int, Field(ge=1, le=MOST_PX)]
    num_chips: PositiveInt


class _Layer(OpenRecord):
    dtype: Literal["uint8", "uint16"]
    shape_per_chip: tuple[PositiveInt, ...]


class _Layers(Record):
    image: _Layer
    landcover: _Layer
    valid: _Layer


class StoredFile(OpenRecord):
    """A file of an array, and what tells whether it is still the same."""

    file: str
    bytes: PositiveInt
    sha256: Text = ""


class _Shard(OpenRecord):
    num_chips: PositiveInt
    image: StoredFile
    landcover: StoredFile
    valid: StoredFile


class _Overview(OpenRecord):
    step_px: Side


class _Region(OpenRecord):
    name: Name
    crs: Text
    transform: tuple[FiniteFloat, FiniteFloat, FiniteFloat, FiniteFloat, FiniteFloat, FiniteFloat]
    shape: tuple[Side, Side]
    native_counts: Annotated[dict[Code, PositiveInt], Field(min_length=1)]
    # May be missing, but null they are not.
    bounds_lonlat: tuple[FiniteFloat, FiniteFloat, FiniteFloat, FiniteFloat] = (0, 0, 0, 0)
    provenance: dict[str, Any] = Field(default_factory=dict)
    overview: _Overview = _Overview(step_px=1)


class _Class(OpenRecord):
    id: ClassId
    name: Text
    colour: tuple[Colour, Colour, Colour]


class _ClassScheme(OpenRecord):
    name: Text
    classes: Annotated[tuple[_Class, ...], Field(min_length=1)]
    native: dict[Code, tuple[Text, ClassId]]
    nodata: Colour


class _Source(OpenRecord):
    image: Text
    landcover: Text


class _Failure(OpenRecord):
    reason: Text


class Description(OpenRecord):
    """The contents of ``dataset.json``."""

    schema_version: Literal[2]
    code_version: Text
    name: Text
    source: _Source = _Source(image="", landcover="")
    sensor: Sensor
    class_scheme: _ClassScheme
    chip: _Chip
    splits: dict[Literal["train", "val", "test"], NonNegativeInt]
    layers: _Layers
    statistics: StatisticsRecord
    attribution: tuple[Text, ...]
    notes: Text | tuple[Text, ...] | None = None
    warnings: tuple[Text, ...] = ()
    failed: tuple[_Failure, ...] = ()
    regions: Annotated[tuple[_Region, ...], Field(min_length=1)]
    shards: Annotated[tuple[_Shard, ...], Field(min_length=1)]


def shard_file(layer: str, shard: int) -> str:
    """The name of one layer's shard, e.g. ``image-00000.npy``."""
    return f"{layer}-{shard:05d}.npy"


def check_description(plain: dict[str, Any], file: Path) -> dict[str, Any]:
    """The same plain values, of ``file``, if they are a description.

    Raises:
        DatasetError: something is missing, of another type or size, or contradicts another thing.
    """
    description = checked(Description, plain, str(file), DatasetError, _REMEDY)
    if wrong := next(_contradictions(description), None):
        raise DatasetError(f"{file}: {wrong}; {_REMEDY}")
    return plain


def _contradictions(said: Description) -> Iterator[str]:
    """What in a description of the right form cannot be."""
    num_bands, size_px = len(said.sensor.bands), said.chip.size_px
    shapes = {
        "image": (num_bands, size_px, size_px),
        "landcover": (size_px, size_px),
        "valid": (size_px, -(-size_px // 8)),
    }
    record_bytes = {}
    for name, shape in shapes.items():
        layer: _Layer = getattr(said.layers, name)
        dtype = said.sensor.dtype if name == "image" else "uint8"
        if (layer.dtype, layer.shape_per_chip) != (dtype, shape):
            yield (
                f"layers.{name} is {layer.dtype} {list(layer.shape_per_chip)[:9]}, and "
                f"{dtype} {list(shape)} for {num_bands} bands of {said.sensor.dtype} in chips of "
                f"{size_px} px"
            )
        record_bytes[name] = math.prod(shape) * (2 if dtype == "uint16" else 1)
    for number, shard in enumerate(said.shards):
        for name, num_bytes in record_bytes.items():
            stored: StoredFile = getattr(shard, name)
            if stored.file != shard_file(name, number):
                yield f"shards.{number}.{name}.file is not {shard_file(name, number)}"
            if not 10 < stored.bytes - shard.num_chips * num_bytes < _MOST_HEADER_BYTES:
                yield (
                    f"shards.{number}.{name}.bytes is {stored.bytes}, which is no header and "
                    f"{shard.num_chips} chips of {num_bytes} bytes"
                )
    num_chips = sum(shard.num_chips for shard in said.shards)
    if num_chips != said.chip.num_chips:
        yield f"chip.num_chips is {said.chip.num_chips}, the shards hold {num_chips}"
    for name in ("mean", "std"):
        if len(getattr(said.statistics, name)) != num_bands:
            yield f"statistics.{name} has not a value for each of {num_bands} bands"
    if twice := [name for name, num in Counter(r.name for r in said.regions).items() if num > 1]:
        yield f"regions holds {twice[0]!r} twice"
    for number, region in enumerate(said.regions):
        a, b, _, d, e, _ = region.transform
        if not 0 < abs(a * e - b * d) < math.inf:
            yield f"regions.{number}.transform makes pixels of no area"
