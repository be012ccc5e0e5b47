"""What a build keeps of its units until the dataset is whole: ``units`` in its working folder.

Of every unit: ``NNN.pixels``, its layers one after the other as plain numbers, until they are in a
shard; ``NNN.overview.npz``, its part of the region's overview, if that is wanted; ``NNN.json``, its
record, written last: it says that the others are there. Whoever cuts a unit writes it, here or
elsewhere: pixels do not travel.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Shaped, UInt8
from pydantic import ConfigDict

from bharateo.artefacts import Record
from bharateo.chips.ground import Split
from bharateo.chips.statistics import Sums
from bharateo.chips.store import LAYERS
from bharateo.errors import BuildError
from bharateo.files import write_atomically, write_json
from bharateo.pixels.http import Traffic


class SceneLook(Record):
    """What a scene turned out to be in one unit."""

    num_sites: int
    """Squares looked at that have labels enough, whatever the image is like."""
    num_valid_sites: int
    """Of these, those with enough valid ground: the chips."""
    evidence: dict[str, Any]
    """For or against what its item says: ``ImageSource.evidence``."""


class Read(Record):
    """The provenance of a window that was read, as its sources tell it."""

    image: dict[str, Any]
    landcover: dict[str, Any]


class UnitSummary(Record):
    """What was read and cut of a unit, without its chips, which are many."""

    model_config = ConfigDict(extra="ignore")

    unit: int
    region: str
    occasion: str | None
    scene: str | None
    num_chips: int
    splits: dict[Split, int]
    reads: list[Read]
    sums: Sums
    """Of the train split."""
    native_counts: dict[int, int]
    num_pixels: int
    num_valid_pixels: int
    overviews: list[tuple[int, int]]
    """First row and column, in the region's overview, of every window read."""
    looks: dict[str, SceneLook]
    """At every scene that the unit was cut from, by its name."""


class Chips(Record):
    """What is noted of a unit's chips: a column each, in the order of their pixels."""

    row: list[int]
    col: list[int]
    split: list[Split]
    block: list[str]
    zone: list[str | None]
    x: list[float]
    """``x``, ``y``: north-west corner in the region's reference system, as the source has it."""
    y: list[float]
    num_valid: list[int]
    class_counts: list[list[int]]
    """Labelled pixels of every class."""
    read: list[int]
    """Which of the unit's reads it was cut from."""


class UnitRecord(UnitSummary):
    """A unit's record as it is written."""

    chips: Chips


@dataclass(frozen=True)
class Layers:
    """A window of the three layers."""

    image: Shaped[np.ndarray, "band row col"]
    landcover: UInt8[np.ndarray, "row col"]
    valid: Bool[np.ndarray, "row col"]

    def cut(self, rows: slice, cols: slice) -> Layers:
        """A part of it, as views."""
        return Layers(self.image[:, rows, cols], self.landcover[rows, cols], self.valid[rows, cols])


@dataclass(frozen=True)
class Piece:
    """A unit's chips with their record; ``overviews`` are the windows read, thinned."""

    record: UnitRecord
    image: Shaped[np.ndarray, "chip band row col"]
    landcover: UInt8[np.ndarray, "chip row col"]
    valid: UInt8[np.ndarray, "chip row byte"]
    """Packed along columns."""
    overviews: list[Layers]
    traffic: Traffic = field(default_factory=Traffic)


class Kept(NamedTuple):
    """What became of a unit, in a few words: the rest is on disk."""

    num_chips: int
    traffic: Traffic


class Scratch:
    """The units of one build on disk; ``dtype``, ``num_bands`` and ``size_px`` are the chips'."""

    def __init__(self, folder: Path, dtype: str, num_bands: int, size_px: int) -> None:
        self.folder = folder.absolute()  # workers may have started elsewhere
        self._layers = {
            "image": (np.dtype(dtype), (num_bands, size_px, size_px)),
            "landcover": (np.dtype(np.uint8), (size_px, size_px)),
            "valid": (np.dtype(np.uint8), (size_px, -(-size_px // 8))),
        }

    def _file(self, unit: int, ending: str) -> Path:
        return self.folder / "units" / f"{unit // 1000:04d}" / f"{unit % 1000:03d}.{ending}"

    def is_cut(self, unit: int) -> bool:
        """Whether a unit has its record, and so had its pixels."""
        return self._file(unit, "json").exists()

    def record(self, unit: int) -> UnitRecord:
        """A unit's record, chips and all."""
        return UnitRecord.model_validate_json(self._file(unit, "json").read_bytes())

    def summary(self, unit: int) -> UnitSummary:
        """A unit's record without its chips."""
        return UnitSummary.model_validate_json(self._file(unit, "json").read_bytes())

    def summaries(self, num_units: int) -> list[UnitSummary]:
        """Those of all units that were cut."""
        return [self.summary(unit) for unit in range(num_units) if self.is_cut(unit)]

    def keep(self, piece: Piece, instead: bool = False) -> Kept:
        """Write what came of a unit.

        Of what was cut from another scene before the better stays, which is what has more chips;
        ``instead`` says that what is there must go. The record has a look at every scene cut.

        Raises:
            StorageError: the disk is full or refuses.
            BuildError: the build's folder is not there.
        """
        if not self.folder.is_dir():
            raise BuildError(
                f"{self.folder} is not there for this worker: --output must be a folder that all "
                "workers share with the machine that builds, under the same path"
            )
        record = piece.record
        unit, kept = record.unit, Kept(record.num_chips, piece.traffic)
        if self.is_cut(unit):
            before = self.record(unit)
            looks = before.looks | record.looks
            if not instead and before.num_chips >= record.num_chips:
                self._write(before.model_copy(update={"looks": looks}))
                return kept
            record = record.model_copy(update={"looks": looks})
            self.forget(unit)  # a record without its own pixels must never be seen
        arrays = [np.ascontiguousarray(getattr(piece, layer)) for layer in LAYERS]
        parts = [array.reshape(-1).view(np.uint8).data for array in arrays]
        write_atomically(
            self._file(unit, "pixels"), lambda file: [file.write(part) for part in parts]
        )
        if piece.overviews:
            thin = {
                f"{place}-{layer}": getattr(layers, layer)
                for place, layers in enumerate(piece.overviews)
                for layer in LAYERS
            }
            write_atomically(self._file(unit, "overview.npz"), lambda file: np.savez(file, **thin))
        self._write(record)
        return kept

    def _write(self, record: UnitRecord) -> None:
        write_json(self._file(record.unit, "json"), record.model_dump())

    def note_failure(self, unit: int, scene: str) -> None:
        """Note that a unit, cut from another scene, could not be read from this one."""
        record = self.record(unit)
        nothing = SceneLook(num_sites=0, num_valid_sites=0, evidence={})
        self._write(record.model_copy(update={"looks": {**record.looks, scene: nothing}}))

    def forget(self, unit: int) -> None:
        """Take a unit for not cut."""
        self._file(unit, "json").unlink()

    def has_pixels(self, unit: int) -> bool:
        """Whether a unit's pixels are still there."""
        return self._file(unit, "pixels").exists()

    def pixels(self, unit: int, layer: str, num_chips: int) -> np.ndarray:
        """One layer of a unit's chips, mapped; ``num_chips`` as its record says."""
        offset = 0
        for name, (dtype, shape) in self._layers.items():
            if name == layer:
                break
            offset += num_chips * math.prod(shape) * dtype.itemsize
        mapped = np.memmap(
            self._file(unit, "pixels"), dtype, "r", offset=offset, shape=(num_chips, *shape)
        )
        return mapped.view(np.ndarray)

    def drop_pixels(self, unit: int) -> None:
        """Delete a unit's pixels, which are in a shard now."""
        self._file(unit, "pixels").unlink(missing_ok=True)

    def overviews(self, units: Sequence[UnitSummary]) -> Iterator[tuple[str, int, int, np.ndarray]]:
        """The parts of an overview in some units: layer, first row and column, and values."""
        for each in units:
            if each.overviews:
                with np.load(self._file(each.unit, "overview.npz")) as kept:
                    for place, (row, col) in enumerate(each.overviews):
                        for layer in LAYERS:
                            yield layer, row, col, kept[f"{place}-{layer}"]
