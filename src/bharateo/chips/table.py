"""Reading ``chips.parquet``: a column at a time, checked as a whole against the description.

Columns are what ``store`` lists; each is of its type and within its bounds, or refused. A column
that is not asked for costs nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Shaped

from bharateo.artefacts import shortened
from bharateo.chips.description import SPLITS
from bharateo.errors import DatasetError
from bharateo.files import open_file

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

FOOTPRINT = "geometry"
_OUTLINES = (FOOTPRINT, "bbox")

_NEEDED = ("chip", "region", "split", "block", "row", "col", "size_px", "valid_fraction")
"""Columns that whoever asks for all of them counts on."""

_MOST_CHARACTERS = 1000


@dataclass(frozen=True)
class _Rule:
    """What a column may hold. ``known`` are the texts it may hold, ``equal`` its very values."""

    kind: Literal["number", "whole", "text", "moment"] = "number"
    low: float = -1e12
    high: float = 1e12
    known: Collection[str] | None = None
    equal: np.ndarray | int | None = None
    nullable: bool = False


class ChipTable:
    """The table of chips of a dataset whose description is ``info``.

    Raises:
        DatasetError: (whenever something is read) the file is missing, damaged or no such table, a
            column is missing, of another type, or holds what cannot be.
    """

    def __init__(self, file: Path, info: Mapping[str, Any]) -> None:
        self.file = file
        self._info = info

    def column(self, name: str) -> Shaped[np.ndarray, " chip"]:
        """One column; text is str or None, a moment ``datetime64`` in UTC."""
        return self._checked(name, self._open())

    def columns(self) -> dict[str, Shaped[np.ndarray, " chip"]]:
        """All columns without the footprints, in the file's order."""
        opened = self._open()
        names = [name for name in opened.schema_arrow.names if name not in _OUTLINES]
        names += [name for name in _NEEDED if name not in names]  # which is refused by name
        return {name: self._checked(name, opened) for name in names}

    def footprints(self) -> Shaped[np.ndarray, " chip"]:
        """The outline of every chip in degrees, as shapely geometries."""
        import shapely

        stored = self._read(FOOTPRINT, self._open()).to_pylist()
        try:
            outlines: np.ndarray = shapely.from_wkb(stored)
            sound = shapely.is_valid(outlines) & (shapely.area(outlines) > 0)
            sound &= (abs(np.nan_to_num(shapely.bounds(outlines), nan=1e9)) <= 720).all(1)
        except (shapely.errors.ShapelyError, TypeError, ValueError) as error:
            raise self._damaged(FOOTPRINT, f"is no geometry ({shortened(str(error))})") from error
        if not sound.all():
            raise self._damaged(FOOTPRINT, f"of chip {int((~sound).argmax())} is no outline")
        return outlines

    def _open(self) -> pq.ParquetFile:
        import pyarrow as pa  # here, since opening a dataset has no need of it
        import pyarrow.parquet as pq

        try:
            open_file(self.file).close()  # no pipe is waited for
            opened = pq.ParquetFile(self.file)
            names, num_rows = opened.schema_arrow.names, opened.metadata.num_rows
        except (OSError, pa.ArrowException) as error:
            raise self._unreadable(error) from error
        if len({*names}) < len(names):
            raise self._unreadable("a column is there twice")
        if num_rows != self._info["chip"]["num_chips"]:
            raise self._unreadable(f"it has {num_rows} rows for {self._num_chips} chips")
        return opened

    @property
    def _num_chips(self) -> int:
        num_chips: int = self._info["chip"]["num_chips"]
        return num_chips

    def _read(self, name: str, opened: pq.ParquetFile) -> pa.ChunkedArray:
        import pyarrow as pa

        names = opened.schema_arrow.names
        if name not in names:
            held = shortened(", ".join(names))
            raise DatasetError(
                f"column {name!r} is not in {self.file}: it holds {held}; restore the file, or "
                "build the dataset again"
            )
        try:
            column = opened.read([name]).column(0)
            column.validate(full=True)
        except (OSError, pa.ArrowException, IndexError) as error:
            raise self._unreadable(error) from error
        if len(column) != self._num_chips:
            raise self._unreadable(f"{name} has {len(column)} rows for {self._num_chips} chips")
        return column

    def _checked(self, name: str, opened: pq.ParquetFile) -> np.ndarray:
        """A column as an array, if it is what its rule says; others may hold any plain value."""
        import pyarrow as pa

        rule, column = self._rule(name), self._read(name, opened)
        kind = column.type
        fits = {
            "number": pa.types.is_integer(kind) or pa.types.is_floating(kind),
            "whole": pa.types.is_integer(kind),
            "text": pa.types.is_string(kind) or pa.types.is_large_string(kind),
            "moment": pa.types.is_timestamp(kind),
        }
        fits["moment"] |= fits["text"]  # in tables of older versions
        if rule is None:
            return _texts(column)[0] if fits["text"] else column.to_numpy()
        if not fits[rule.kind]:
            raise self._damaged(name, f"is {shortened(str(kind))}, no {rule.kind}")
        if column.null_count and not rule.nullable:
            raise self._damaged(name, "has rows without a value")
        if rule.kind == "moment" and not fits["text"]:
            return column.to_numpy()
        if rule.kind in ("text", "moment"):
            values, texts = _texts(column)
            for text in texts:
                if len(text) > _MOST_CHARACTERS or (
                    rule.known is not None and text not in rule.known
                ):
                    raise self._damaged(name, f"holds {shortened(repr(text))}")
            return values
        values = column.to_numpy()
        wrong = ~((values >= rule.low) & (values <= rule.high))
        if rule.equal is not None:
            wrong |= values != rule.equal
        elif rule.kind == "number":
            wrong &= ~np.isnan(values)  # unknown
        if wrong.any():
            raise self._damaged(name, f"is {values[wrong][0]} for chip {int(wrong.argmax())}")
        return values

    def _rule(self, name: str) -> _Rule | None:
        """What a column may hold; None for one that only later versions know."""
        info = self._info
        if name in ("chip", "shard", "shard_row"):
            sizes = np.array([shard["num_chips"] for shard in info["shards"]])
            shard = np.repeat(np.arange(len(sizes)), sizes)
            chip = np.arange(len(shard))
            equal = {
                "chip": chip,
                "shard": shard,
                "shard_row": chip - (sizes.cumsum() - sizes)[shard],
            }
            return _Rule("whole", 0, equal=equal[name])
        if name.endswith("_fraction") or name.startswith("fraction_"):
            return _Rule(low=0, high=1)
        class_names = {each["name"] for each in info["class_scheme"]["classes"]}
        optional = ("zone", "occasion", "scene", "baseline", "offset_evidence", "offset_pixels")
        rules = {
            "region": _Rule("text", known={region["name"] for region in info["regions"]}),
            "split": _Rule("text", known=SPLITS),
            "block": _Rule("text"),
            "majority_class": _Rule("text", known=class_names, nullable=True),
            "row": _Rule("whole", -(2**31), 2**31),
            "col": _Rule("whole", -(2**31), 2**31),
            "x": _Rule(),
            "y": _Rule(),
            "size_px": _Rule("whole", equal=info["chip"]["size_px"]),
            "offset_dn": _Rule(nullable=True),
            "dark_dn": _Rule(nullable=True),
            "datetime": _Rule("moment", nullable=True),
            **{each: _Rule("text", nullable=True) for each in optional},
        }
        return rules.get(name)

    def _damaged(self, name: str, what: str) -> DatasetError:
        return self._unreadable(f"column {name} {what}")

    def _unreadable(self, reason: object) -> DatasetError:
        return DatasetError(
            f"{self.file} is no table of this dataset's chips ({shortened(str(reason))}): copy the "
            "file again, or delete the folder and run the same build again"
        )


def _texts(column: pa.ChunkedArray) -> tuple[np.ndarray, list[str]]:
    """A column of text, and the different ones in it; equal ones are one object, since few come a
    million times.
    """
    coded = column.dictionary_encode().combine_chunks()
    different = coded.dictionary.to_pylist()
    texts = np.array([*different, None], object)
    return texts[coded.indices.fill_null(len(texts) - 1).to_numpy()], different
