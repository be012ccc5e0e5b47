"""Reference labels under the cells of a map, and what disagrees with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int64, UInt8
from odc.geo.geobox import GeoBox

from bharateo.inference.pieces import CellGrid
from bharateo.inference.windows import Piece
from bharateo.landcover import IGNORE, NUM_CLASSES, patch_class_counts, patch_mode
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
    source: LabelSource, raster: GeoBox, grid: CellGrid, piece: Piece
) -> Int64[np.ndarray, "row col cls"]:
    """Labelled pixels of every class in the patch of every cell of a piece."""
    stride, shifts = grid.stride_px, grid.shifts
    height, width = ((size + shifts - 1) * stride for size in piece.shape)
    top, left = piece.rows.start * stride, piece.cols.start * stride
    # Patches may stick out of the raster: its grid goes on there.
    affine = raster.affine @ type(raster.affine).translation(left, top)
    native = source.read(GeoBox((height, width), affine, raster.crs)).values[0]
    class_ids = source.scheme.collapse(native, source.name)
    rows, cols = grid.shape_px[0] - top, grid.shape_px[1] - left
    class_ids[rows:], class_ids[:, cols:] = IGNORE, IGNORE
    counts = patch_class_counts(class_ids[None], stride)
    squares = counts.reshape(height // stride, width // stride, NUM_CLASSES)
    return _sums(_sums(squares, shifts, 0), shifts, 1)


def _sums(values: np.ndarray, num: int, axis: int) -> np.ndarray:
    """Sums over ``num`` neighbours along an axis."""
    windows = np.lib.stride_tricks.sliding_window_view(values, num, axis)
    return windows.sum(-1)


@dataclass(frozen=True)
class Comparison:
    """A piece of a map beside its labels: ids, 255 where there is nothing to compare."""

    label: UInt8[np.ndarray, "row col"]
    purity: Float[np.ndarray, "row col"]
    given: Float[np.ndarray, "row col"]
    suspect: Bool[np.ndarray, "row col"]


def compare(
    probabilities: Float[np.ndarray, "row col mapped"],
    ids: Sequence[int],
    counts: Int64[np.ndarray, "row col cls"],
) -> Comparison:
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
    return Comparison(label, purity, given, suspect)


def agreement(confusion: Int64[np.ndarray, "label mapped"]) -> dict[str, Any]:
    """Agreement of a map with labels beside that of the commonest label everywhere."""
    total, per_label = confusion.sum(), confusion.sum(1)
    if not total:
        return {"cells": 0}
    present = per_label > 0
    right, per_mapped = np.diagonal(confusion), confusion.sum(0)
    recall = np.where(present, right / np.maximum(per_label, 1), 0)
    f1 = np.where(present, 2 * right / np.maximum(per_label + per_mapped, 1), 0)
    commonest = per_label.max() / total
    return {
        "cells": int(total),
        "agreement": float(right.sum() / total),
        "balanced_agreement": float(recall.sum() / present.sum()),
        "macro_f1": float(f1.sum() / present.sum()),
        "commonest_label_everywhere": {
            "agreement": float(commonest),
            "balanced_agreement": float(1 / present.sum()),
            "macro_f1": float(2 * commonest / (1 + commonest) / present.sum()),
        },
        "confusion": confusion.tolist(),
    }
