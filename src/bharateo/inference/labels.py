"""Reference labels under the cells of a map, and what disagrees with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int64, UInt8
from odc.geo.geobox import GeoBox
from pydantic import Field

from bharateo.artefacts import Record
from bharateo.inference.tiles import CellGrid, Tile
from bharateo.landcover import (
    BHARATEO_CLASSES,
    IGNORE,
    NUM_CLASSES,
    patch_class_counts,
    patch_mode,
)
from bharateo.sources import LabelSource
from bharateo.sources.geotiff import LabelRaster
from bharateo.sources.worldcover import WorldCover

PURE = 0.9
"""Share of a patch's labelled pixels in one class from which on the patch is of that class."""

DOUBTED = 0.1
"""Probability of the label's class below which a pure patch's label is suspect."""


@dataclass(frozen=True)
class Labels:
    """A source of reference labels, and what tells this version of it from another."""

    source: LabelSource
    identity: Mapping[str, Any]


def open_labels(where: str) -> Labels:
    """A raster of WorldCover codes (a file), or WorldCover below a folder or URL.

    ``worldcover`` is the product at its usual place.

    Raises:
        ConfigError: it is neither.
    """
    path = Path(where)
    if path.is_file():
        status = path.stat()
        version = {"file": where, "size": status.st_size, "mtime_ns": status.st_mtime_ns}
        return Labels(LabelRaster(path, {}), version)
    product = WorldCover(None if where == "worldcover" else where)
    return Labels(product, {"product": product.name, "root": product.root})


def label_counts(
    source: LabelSource, raster: GeoBox, grid: CellGrid, tile: Tile
) -> Int64[np.ndarray, "row col cls"]:
    """Labelled pixels of every class in the patch of every cell of a tile."""
    stride, shifts = grid.stride_px, grid.shifts
    height, width = ((size + shifts - 1) * stride for size in tile.shape)
    top, left = tile.rows.start * stride, tile.cols.start * stride
    # Patches may stick out of the raster: its grid goes on there.
    affine = raster.affine @ type(raster.affine).translation(left, top)
    native = source.read(GeoBox((height, width), affine, raster.crs)).values[0]
    class_ids = source.scheme.collapse(native, source.name)
    rows, cols = grid.shape_px[0] - top, grid.shape_px[1] - left
    class_ids[rows:], class_ids[:, cols:] = IGNORE, IGNORE
    counts = patch_class_counts(class_ids[None], stride)
    counts = counts.reshape(height // stride, width // stride, NUM_CLASSES)
    for axis in (0, 1):  # a patch is so many neighbouring squares of a stride
        counts = np.lib.stride_tricks.sliding_window_view(counts, shifts, axis).sum(-1)
    return counts


@dataclass(frozen=True)
class LabelledTile:
    """A tile of a map beside its labels: ids, 255 where there is nothing to compare."""

    label: UInt8[np.ndarray, "row col"]
    purity: Float[np.ndarray, "row col"]
    given: Float[np.ndarray, "row col"]
    suspect: Bool[np.ndarray, "row col"]


def compare(
    probabilities: Float[np.ndarray, "row col mapped"],
    ids: Sequence[int],
    counts: Int64[np.ndarray, "row col cls"],
) -> LabelledTile:
    """Labels, their purity, the probability ``given`` to them, and which are suspect.

    Probabilities are of the classes ``ids``, NaN where the map has no data. Nothing is said of
    labels of other classes.
    """
    place = np.full(IGNORE + 1, -1)
    place[ids] = np.arange(len(ids))
    label = patch_mode(counts)
    known = (place[label] >= 0) & ~np.isnan(probabilities[..., 0])
    label[~known] = IGNORE
    purity = counts.max(2) / np.maximum(counts.sum(2), 1)
    given = np.take_along_axis(probabilities, np.maximum(place[label], 0)[..., None], 2)[..., 0]
    suspect = known & (purity >= PURE) & (np.nan_to_num(given) < DOUBTED)
    return LabelledTile(label, purity, given, suspect)


class Commonest(Record):
    """How well the commonest label does for all."""

    agreement: float
    balanced_agreement: float
    macro_f1: float


class SuspectIf(Record):
    """From when on a label is suspect."""

    purity_at_least: float
    probability_below: float


class LabelAgreement(Record):
    """What labels say of a map: agreement, beside that of the commonest label everywhere, and how
    many labels are suspect, by class. ``confusion`` are counts by label, then by class mapped.
    Where there is no label, ``cells`` is 0 and there is no agreement.
    """

    labels: str
    cells: int
    agreement: float | None = None
    balanced_agreement: float | None = None
    macro_f1: float | None = None
    commonest_label_everywhere: Commonest | None = None
    confusion: list[list[int]] = Field(default_factory=list)
    suspect_if: SuspectIf
    suspect: int
    suspect_by_label: dict[str, int]

    @classmethod
    def of(
        cls,
        labels: str,
        confusion: Int64[np.ndarray, "label mapped"],
        suspect: Int64[np.ndarray, " label"],
    ) -> LabelAgreement:
        """From counts; means are over the labels that occur."""
        cells, scores = int(confusion.sum()), {}
        if cells:
            per_label, right = confusion.sum(1), np.diagonal(confusion)
            present = per_label > 0
            recall = np.where(present, right / np.maximum(per_label, 1), 0)
            either = np.maximum(per_label + confusion.sum(0), 1)
            f1 = np.where(present, 2 * right / either, 0)
            num, commonest = present.sum(), per_label.max() / cells
            scores = {
                "agreement": float(right.sum() / cells),
                "balanced_agreement": float(recall.sum() / num),
                "macro_f1": float(f1.sum() / num),
                "commonest_label_everywhere": Commonest(
                    agreement=float(commonest),
                    balanced_agreement=float(1 / num),
                    macro_f1=float(2 * commonest / (1 + commonest) / num),
                ),
                "confusion": confusion.tolist(),
            }
        names = [each.name for each in BHARATEO_CLASSES]
        return cls(
            labels=labels,
            cells=cells,
            **scores,
            suspect_if=SuspectIf(purity_at_least=PURE, probability_below=DOUBTED),
            suspect=int(suspect.sum()),
            suspect_by_label=dict(zip(names, suspect.tolist(), strict=True)),
        )

    def lines(self) -> Iterator[str]:
        """For a terminal."""
        other = self.commonest_label_everywhere
        if other is None:
            yield f"against {self.labels}: no labels here"
            return
        yield (
            f"against {self.labels}: agreement {self.agreement:.3f}, balanced "
            f"{self.balanced_agreement:.3f}, macro-F1 {self.macro_f1:.3f} (commonest label "
            f"everywhere: {other.agreement:.3f}, {other.balanced_agreement:.3f}, "
            f"{other.macro_f1:.3f})"
        )
        by_label = ", ".join(f"{name} {num}" for name, num in self.suspect_by_label.items() if num)
        rule = self.suspect_if
        yield (
            f"suspect labels: {self.suspect:,} of {self.cells:,} cells (a label on at "
            f"least {rule.purity_at_least:.0%} of its patch that the map gives less than "
            f"{rule.probability_below:.0%}){': ' + by_label if by_label else ''}"
        )
