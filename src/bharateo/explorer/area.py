"""An area to look at: its pictures, and what a run says of every patch of it.

Axes: band row col (pixels of the area) | patch (row by row where the area is a raster, square by
square where it is a dataset's) | dim cls. Of large ground a window is taken; ``left_out`` says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from affine import Affine
from jaxtyping import Bool, Float, Float32, Int64, UInt8
from odc.geo.geobox import GeoBox

from bharateo.chips.store import SPLITS, Dataset
from bharateo.explorer.answers import Answers, Asked, asked_of
from bharateo.geography import to_lonlat
from bharateo.inference.encoder import CHIPS_AT_ONCE
from bharateo.inference.inputs import RasterInput
from bharateo.inference.pieces import CellGrid
from bharateo.inference.windows import TokenGrid, blended_squares
from bharateo.landcover import NUM_CLASSES, patch_class_counts
from bharateo.report.ground import Outline, outlines
from bharateo.report.render import composite_rgb, physical, upscale
from bharateo.sensor import Sensor
from bharateo.training.batches import physical_units
from bharateo.training.checkpoint import Run

Progress = Callable[[float, float, str], None]
"""(done, total, note)."""

Keep = Callable[[str, Callable[[], np.ndarray]], np.ndarray]
"""A named array: as a killed program left it, or else made, and kept."""

MOST_PIXELS = 2048**2
"""Pixels of all areas of a page together: as pictures some four megabytes."""

MOST_NUMBERS = 3_000_000
"""Numbers of all vectors of a page together, a byte each."""

MOST_AREAS = 3
_PIECE_TOKENS = 32
_NO_SPLIT = 255
_SHOWN = (2, 98)
"""Percentiles of a raster's pixels that are drawn black and full."""


@dataclass(frozen=True)
class Patches:
    """Where the patches lie (upper left pixel), what is known of them, and what the run says.

    ``split`` is the place in ``SPLITS``, 255 where there is none; ``counts`` are labelled pixels.
    """

    row: Int64[np.ndarray, " patch"]
    col: Int64[np.ndarray, " patch"]
    split: UInt8[np.ndarray, " patch"]
    counts: Int64[np.ndarray, "patch cls"]
    answers: Answers


@dataclass(frozen=True)
class Area:
    """A rectangle of ground; ``pictures`` are RGB by the name of the composite, under the
    stretches of ``sensor``.
    """

    name: str
    geobox: GeoBox
    sensor: Sensor
    pictures: Mapping[str, UInt8[np.ndarray, "row col rgb"]]
    labels: UInt8[np.ndarray, "row col"] | None
    outlines: list[Outline]
    patches: Patches
    left_out: str = ""

    @property
    def corners(self) -> Float[np.ndarray, "2 corner"]:
        """Longitude and latitude of the upper left, upper right, lower left and lower right."""
        height, width = self.geobox.shape
        return to_lonlat(self.geobox, np.array([[0, width, 0, width], [0, 0, height, height]]))


def most_side_px(run: Run, num_areas: int) -> int:
    """Side of the largest square area that leaves room for the others."""
    config = run.model.config
    patches = math.isqrt(MOST_NUMBERS // config.width // num_areas)
    return max(min(math.isqrt(MOST_PIXELS // num_areas) // config.patch_px, patches), 8) * (
        config.patch_px
    )


def made(name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
    """The array made, and not kept: a ``Keep``."""
    return make()


# Datasets


def areas_of_dataset(
    run: Run, dataset: Dataset, progress: Progress, keep: Keep = made
) -> tuple[list[Area], str]:
    """The areas with the most squares of a dataset, and a sentence on what is left out."""
    drawn = [each["name"] for each in dataset.info["regions"] if "overview" in each]
    counts = dataset.chips["region"].value_counts()
    names = sorted(drawn, key=lambda name: -counts.get(name, 0))[:MOST_AREAS]
    side = max(most_side_px(run, len(names)), dataset.size_px)
    areas = [
        _region(run, dataset, name, side, progress, partial(_kept_of, keep, number))
        for number, name in enumerate(names)
    ]
    num_missing = len(dataset.regions) - len(names)
    note = f"{num_missing} smaller regions of the dataset are left out." if num_missing else ""
    return areas, note


def _kept_of(keep: Keep, area: int, name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
    """An array of one area of several."""
    return keep(f"{area}-{name}", make)


def _region(
    run: Run, dataset: Dataset, name: str, side_px: int, progress: Progress, keep: Keep
) -> Area:
    record = next(each for each in dataset.info["regions"] if each["name"] == name)
    whole = dataset.geobox(name)
    chips = dataset.chips[dataset.chips["region"] == name]
    starts, shape = chips[["row", "col"]].to_numpy(np.int64), np.array(whole.shape)
    size = np.minimum(shape, _extent(shape, side_px))
    first = _densest(starts, size, dataset.size_px, shape)
    inside = ((starts >= first) & (starts + dataset.size_px <= first + size)).all(1)
    chips = chips[inside].assign(row=starts[inside, 0] - first[0], col=starts[inside, 1] - first[1])
    row, col = first.tolist()
    affine = whole.affine @ Affine.translation(col, row)
    pictures, labels = _pictures(dataset, record, chips, (row, col), tuple(size.tolist()))
    left_out = "" if (size == shape).all() else (
        f"{size[1]:,} by {size[0]:,} px of the region's {shape[1]:,} by {shape[0]:,}, where its "
        "squares lie closest"
    )  # fmt: skip
    frames = outlines(chips, by_block=True)
    patches = _patches_of_squares(run, dataset, chips, progress, keep)
    geobox = GeoBox(tuple(size.tolist()), affine, whole.crs)
    return Area(name, geobox, dataset.sensor, pictures, labels, frames, patches, left_out)


def _extent(shape: np.ndarray, side_px: int) -> np.ndarray:
    """Height and width of at most ``side_px`` squared pixels, longer where the other is short."""
    short = shape.min()
    if short >= side_px:
        return np.array([side_px, side_px])
    return np.minimum(shape, side_px**2 // short)


def _densest(starts: np.ndarray, size: np.ndarray, square_px: int, shape: np.ndarray) -> np.ndarray:
    """Upper left pixel of the window of a size that holds the most squares."""
    corners = np.minimum(starts[:: max(len(starts) // 500, 1)], shape - size)
    ahead = starts[None] - corners[:, None]
    held = ((ahead >= 0) & (ahead + square_px <= size)).all(2).sum(1)
    best: np.ndarray = corners[held.argmax()]
    return best


def _pictures(
    dataset: Dataset,
    record: Mapping[str, Any],
    chips: Any,
    first: tuple[int, int],
    shape: tuple[int, int],
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The squares at full resolution on the region's overview; class ids likewise."""
    sensor, size = dataset.sensor, dataset.size_px
    stored, class_ids, valid = dataset.overview(record["name"])
    step = int(record["overview"]["step_px"])

    def grown(small: np.ndarray) -> np.ndarray:
        large = upscale(small, step)
        edge = [(0, max(first[axis] + shape[axis] - large.shape[axis], 0)) for axis in (0, 1)]
        large = np.pad(large, edge + [(0, 0)] * (small.ndim - 2), "edge")
        return large[first[0] : first[0] + shape[0], first[1] : first[1] + shape[1]].copy()

    labels = grown(class_ids)
    pictures = {
        name: grown(composite_rgb(physical(stored, sensor), sensor, valid, name))
        for name in sensor.composites
    }
    for chip, row, col in zip(chips["chip"], chips["row"], chips["col"], strict=True):
        here = (slice(row, row + size), slice(col, col + size))
        image, known = physical(dataset.image(chip), sensor), dataset.valid(chip)
        for name, picture in pictures.items():
            picture[here] = composite_rgb(image, sensor, known, name)
        labels[here] = dataset.landcover(chip)
    return pictures, labels


def _patches_of_squares(
    run: Run, dataset: Dataset, chips: Any, progress: Progress, keep: Keep
) -> Patches:
    patch = run.model.config.patch_px
    tokens = dataset.size_px // patch
    side = tokens * patch
    asked, every = asked_of(run), chips["chip"].to_numpy()
    found, counts = [], []
    for start in range(0, len(every), CHIPS_AT_ONCE // 4):
        some = every[start : start + CHIPS_AT_ONCE // 4]
        progress(start, len(every), f"{len(every)} squares of {chips['region'].iloc[0]}")
        found.append(keep(str(start), partial(_squares, asked, dataset, some, side)))
        landcover = np.stack([dataset.landcover(chip)[:side, :side] for chip in some])
        counts.append(patch_class_counts(landcover, patch).reshape(-1, NUM_CLASSES))
    row, col = np.indices((tokens, tokens)).reshape(2, 1, -1) * patch
    rows = (chips["row"].to_numpy()[:, None] + row).ravel()
    cols = (chips["col"].to_numpy()[:, None] + col).ravel()
    split = np.array([SPLITS.index(each) for each in chips["split"]], np.uint8)
    values = np.concatenate(found)
    known = ~np.isnan(values[:, 0])
    return Patches(
        rows[known], cols[known], split.repeat(tokens**2)[known], np.concatenate(counts)[known],
        asked.answers(values[known]),
    )  # fmt: skip


def _squares(
    asked: Asked, dataset: Dataset, chips: Int64[np.ndarray, " chip"], side: int
) -> Float32[np.ndarray, "patch number"]:
    """All numbers of all patches of some squares; NaN where there is no valid pixel."""
    stored = np.stack([dataset.image(chip)[:, :side, :side] for chip in chips])
    image = physical_units(torch.from_numpy(stored), dataset.sensor)
    valid = torch.from_numpy(np.stack([dataset.valid(chip)[:side, :side] for chip in chips]))
    shape = (side, side)
    parts = []
    for ask, step in ((asked.seen, None), (asked.hidden, asked.tokens_per_chip)):
        grid = TokenGrid(shape, asked.chip_px, asked.patch_px, step)
        parts.append(blended_squares(image, valid, ask, grid))
    values: np.ndarray = np.concatenate(parts, 3)
    return values.reshape(-1, values.shape[3])


# Rasters


def area_of_raster(
    run: Run, source: RasterInput, name: str, progress: Progress, keep: Keep = made
) -> Area:
    """The middle of a raster, or all of it where it is small enough."""
    shape = np.array(source.shape)
    size = np.minimum(shape, _extent(shape, most_side_px(run, 1)))
    row, col = ((shape - size) // 2).tolist()
    height, width = size.tolist()
    image, valid = source.read(row, col, height, width)
    sensor = stretched(source.sensor, image, valid)
    pictures = {each: composite_rgb(image, sensor, valid, each) for each in sensor.composites}
    left_out = "" if (size == shape).all() else (
        f"the middle {width:,} by {height:,} px of the raster's {shape[1]:,} by {shape[0]:,}"
    )  # fmt: skip
    affine = source.geobox.affine @ Affine.translation(col, row)
    geobox = GeoBox((height, width), affine, source.geobox.crs)
    patches = _patches_of_pixels(run, image, valid, progress, keep)
    return Area(name, geobox, sensor, pictures, None, [], patches, left_out)


def stretched(
    sensor: Sensor, image: Float32[np.ndarray, "band row col"], valid: Bool[np.ndarray, "row col"]
) -> Sensor:
    """The sensor with composites that show all but the darkest and brightest of these pixels."""
    composites = {}
    for name, one in sensor.composites.items():
        seen = image[list(sensor.composite_indices(name))][:, valid]
        low, high = np.percentile(seen, _SHOWN).round(3).tolist() if seen.size else (0.0, 1.0)
        composites[name] = replace(one, low=low, high=max(high, low + 1e-3))
    return replace(sensor, composites=composites)


def _patches_of_pixels(
    run: Run, image: np.ndarray, valid: np.ndarray, progress: Progress, keep: Keep
) -> Patches:
    asked = asked_of(run)
    shape = (valid.shape[0], valid.shape[1])

    def read(row: int, col: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        here = (slice(row, row + height), slice(col, col + width))
        return image[:, *here], valid[here]

    parts: list[np.ndarray] = []
    for ask, step in ((asked.seen, None), (asked.hidden, asked.tokens_per_chip)):
        grid = CellGrid(shape, asked.chip_px, asked.patch_px, asked.patch_px, step)
        pieces = grid.pieces(_PIECE_TOKENS)
        values: np.ndarray | None = None
        for done, piece in enumerate(pieces):
            progress(done, len(pieces), f"pass {len(parts) + 1} of 2 over the raster")
            name = f"{len(parts)}-{piece.rows.start}-{piece.cols.start}"
            answer = keep(name, partial(grid.answer, read, ask, piece))
            if values is None:
                values = np.full((*grid.shape, answer.shape[2]), np.nan, np.float32)
            values[piece.rows, piece.cols] = answer
        assert values is not None
        parts.append(values)
    both = np.concatenate(parts, 2)
    row, col = np.nonzero(~np.isnan(both[..., 0]))
    num = len(row)
    return Patches(
        row * asked.patch_px, col * asked.patch_px, np.full(num, _NO_SPLIT, np.uint8),
        np.zeros((num, NUM_CLASSES), np.int64), asked.answers(both[row, col]),
    )  # fmt: skip
