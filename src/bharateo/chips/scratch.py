"""What a build keeps of its units until the dataset is whole: ``units`` in its working folder.

Of every unit: ``NNN.pixels``, its layers one after the other as plain numbers, until they are in a
shard; ``NNN.overview.npz``, its part of the region's overview, if that is wanted; ``NNN.json``, its
record, written last: it says that the others are there. Whoever cuts a unit writes it, here or
elsewhere: pixels do not travel.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bharateo.chips import describe
from bharateo.chips.cut import Piece
from bharateo.chips.layouts import Unit
from bharateo.chips.store import LAYERS
from bharateo.errors import BuildError
from bharateo.files import write_atomically, write_json
from bharateo.pixels.http import Traffic


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

    def is_cut(self, unit: int) -> bool:
        """Whether a unit has its record, and so had its pixels."""
        return self._file(unit, "json").exists()

    def record(self, unit: int) -> dict[str, Any]:
        """A unit's record, chips and all."""
        record: dict[str, Any] = json.loads(self._file(unit, "json").read_text(encoding="utf-8"))
        return record

    def summaries(self, num_units: int) -> list[dict[str, Any]]:
        """The records of all units that were cut, without their chips: those are many."""
        whole = (self.record(unit) for unit in range(num_units) if self.is_cut(unit))
        return [{k: v for k, v in record.items() if k != "chips"} for record in whole]

    def keep(
        self,
        unit: int,
        piece: Piece,
        region: str,
        of: Unit,
        look: Mapping[str, Any] | None = None,
        instead: bool = False,
    ) -> Kept:
        """Write what came of a unit; ``look`` is what its scene turned out to be.

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
        kept = Kept(len(piece.image), piece.traffic)
        before = self.record(unit) if self.is_cut(unit) else None
        looks = dict(before["looks"]) if before else {}
        if look is not None:
            looks[str(of.scene)] = look
        if before and not instead and before["num_chips"] >= len(piece.image):
            write_json(self._file(unit, "json"), before | {"looks": looks})
            return kept
        if before:  # a record without its own pixels must never be seen
            self.forget(unit)
        arrays = [np.ascontiguousarray(getattr(piece, layer)) for layer in LAYERS]
        parts = [array.reshape(-1).view(np.uint8).data for array in arrays]
        write_atomically(
            self._file(unit, "pixels"), lambda file: [file.write(part) for part in parts]
        )
        thin = {
            f"{place}-{layer}": getattr(layers, layer)
            for place, (_, _, layers) in enumerate(piece.overviews)
            for layer in LAYERS
        }
        if thin:
            write_atomically(
                self._file(unit, "overview.npz"),
                lambda file: np.savez(file, **thin),
            )
        record = describe.unit_record(unit, piece, region, of.occasion, of.scene)
        write_json(self._file(unit, "json"), record | {"looks": looks})
        return kept

    def note_failure(self, unit: int, scene: str) -> None:
        """Note that a unit, cut from another scene, could not be read from this one."""
        record = self.record(unit)
        record["looks"][scene] = {"num_sites": 0, "num_valid_sites": 0, "evidence": {}}
        write_json(self._file(unit, "json"), record)

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

    def overviews(
        self, records: Sequence[Mapping[str, Any]]
    ) -> Iterator[tuple[str, int, int, np.ndarray]]:
        """The parts of an overview in some units: layer, first row and column, and values."""
        for record in records:
            if not record["overviews"]:
                continue
            with np.load(self._file(record["unit"], "overview.npz")) as kept:
                for place, (row, col) in enumerate(record["overviews"]):
                    for layer in LAYERS:
                        yield layer, row, col, kept[f"{place}-{layer}"]

    def _file(self, unit: int, ending: str) -> Path:
        return self.folder / "units" / f"{unit // 1000:04d}" / f"{unit % 1000:03d}.{ending}"
