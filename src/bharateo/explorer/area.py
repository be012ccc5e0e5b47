"""An area as the page shows it: its pictures, and what a run says of every patch of it.

Axes: band row col (pixels of the area) | patch (row by row where the area is a raster, square by
square where it is a dataset's) | dim cls. Of large ground a window is taken; ``left_out`` says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pandas as pd
import torch
from affine import Affine
from jaxtyping import Bool, Float, Float32, Int64, UInt8
from odc.geo.geobox import GeoBox
from torch import Tensor

from bharateo.chips.store import SPLITS, Dataset
from bharateo.evaluation.evaluate import MODEL, predictions
from bharateo.geography import to_lonlat
from bharateo.inference.domain import Domain, Views, pixel_statistics
from bharateo.inference.encoder import CHIPS_AT_ONCE, FrozenEncoder
from bharateo.inference.inputs import RasterInput
from bharateo.inference.tiles import CellGrid, TokenGrid, blended_squares
from bharateo.landcover import NUM_CLASSES, patch_class_counts
from bharateo.models.heads import Batch
from bharateo.models.patches import Mask, num_masked
from bharateo.report.ground import outlines
from bharateo.report.panels import Outline
from bharateo.report.render import composite_rgb, physical, upscale
from bharateo.sensor import Sensor
from bharateo.training.data import physical_units
from bharateo.training.run import Run

Progress = Callable[[float, float, str], None]
"""(done, total, note)."""

Keep = Callable[[str, Callable[[], np.ndarray]], np.ndarray]
"""A named array: as a killed program left it, or else made, and kept."""

MOST_PIXELS = 2048**2
"""Pixels of all areas of a page together: as pictures some four megabytes."""

MOST_NUMBERS = 3_000_000
"""Numbers of all vectors of a page together, a byte each."""

MOST_AREAS = 3
KNOTS = 17
"""Places along each side of an area whose longitude and latitude a page knows: what it makes of
those in between is off by centimetres, where the corners alone would be off by a pixel."""

NUM_MASKS = 4
"""At the usual ratio of 75 % a patch is hidden by three of them."""

SQUARES_AT_ONCE = CHIPS_AT_ONCE // 4
_TILE_TOKENS = 32
_NO_SPLIT = 255
_SHOWN = (2, 98)
"""Percentiles of a raster's pixels that are drawn black and full."""


@dataclass(frozen=True)
class Patches:
    """Where the patches lie (upper left pixel), what is known of them, and what the run says.

    ``split`` is the place in ``SPLITS``, 255 where there is none; ``counts`` are labelled pixels.
    ``vectors`` and ``probabilities`` (None without a land-cover head) are the run's with every
    patch visible. ``distance`` (None where the run's domain is not known) is how far the patch lies
    from what the run was trained on, beyond 1 out of its domain. ``error`` and ``copy_error`` (None
    without a pixel head) are mean absolute errors in physical units once the patch is hidden: the
    model's, and those of a copy of the nearest visible patch.
    """

    row: Int64[np.ndarray, " patch"]
    col: Int64[np.ndarray, " patch"]
    split: UInt8[np.ndarray, " patch"]
    counts: Int64[np.ndarray, "patch cls"]
    vectors: Float32[np.ndarray, "patch dim"]
    probabilities: Float32[np.ndarray, "patch cls"] | None
    distance: Float32[np.ndarray, " patch"] | None
    error: Float32[np.ndarray, " patch"] | None
    copy_error: Float32[np.ndarray, " patch"] | None


@dataclass(frozen=True)
class AreaView:
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
    def knots(self) -> Float[np.ndarray, "row col 2"]:
        """Longitude and latitude of ``KNOTS`` by ``KNOTS`` places spread evenly over the area, its
        corners among them.
        """
        height, width = self.geobox.shape
        y, x = np.meshgrid(
            np.linspace(0, height, KNOTS), np.linspace(0, width, KNOTS), indexing="ij"
        )
        return to_lonlat(self.geobox, np.stack([x.ravel(), y.ravel()])).T.reshape(KNOTS, KNOTS, 2)


# What a run says of patches


class PatchModel:
    """A run asked for numbers of every patch, in two passes over the ground.

    ``visible`` sees every patch: the vector, of a run with a land-cover head the logits, and the
    distance from its domain, NaN where that is not known. ``hidden`` are the two errors of a patch
    that is masked.
    """

    def __init__(self, run: Run, domain: Domain | None) -> None:
        self.run, self._domain, self._encoder = run, domain, FrozenEncoder.of_run(run)
        self._has_classes = run.heads.land_cover is not None
        self._has_pixels = run.heads.rebuilding is not None
        self.chip_px, self.patch_px = run.model.config.chip_px, run.model.config.patch_px
        # A pass, and the distance of its windows in tokens: half a chip, or a whole one.
        self.passes = ((self.visible, None), (self.hidden, self.chip_px // self.patch_px))

    def visible(self, image: Tensor, valid: Tensor) -> Tensor:
        """Vector, logits and distance of every token of chips (batch token number)."""
        layers = [self._encoder.class_layer] if self._has_classes else []
        said = self._encoder.predict(image, valid, layers)
        distance = torch.full(said[0].shape[:2], torch.nan)
        if self._domain is not None:
            views = Views(said[0], *pixel_statistics(self.run.model, image, valid))
            distance = self._domain.distance(views)
        return torch.cat([*said, distance[..., None]], 2)

    def hidden(self, image: Tensor, valid: Tensor) -> Tensor:
        """Errors of every token of chips (batch token 2)."""
        return masked_errors(self.run, image, valid)

    def patches(
        self,
        row: Int64[np.ndarray, " patch"],
        col: Int64[np.ndarray, " patch"],
        split: UInt8[np.ndarray, " patch"],
        counts: Int64[np.ndarray, "patch cls"],
        values: Float32[np.ndarray, "patch number"],
    ) -> Patches:
        """Those patches that have a valid pixel; ``values`` are of both passes, NaN without one."""
        known = ~np.isnan(values[:, 0])
        width = self._encoder.width
        vectors, logits, distance, errors = np.split(
            values[known], [width, values.shape[1] - 3, values.shape[1] - 2], 1
        )
        probabilities = None
        if self._has_classes:
            odds = np.exp(logits - logits.max(1, keepdims=True))
            probabilities = odds / odds.sum(1, keepdims=True)
        error, copy_error = errors.T if self._has_pixels else (None, None)
        away = None if self._domain is None else distance[:, 0]
        return Patches(row[known], col[known], split[known], counts[known], vectors,
                       probabilities, away, error, copy_error)  # fmt: skip


def covering_masks(num_tokens: int, mask_ratio: float) -> list[Mask]:
    """Fixed masks of one chip that together hide every token; none where a mask hides nothing."""
    masked = num_masked(num_tokens, mask_ratio)
    if not masked:
        return []
    drawn = torch.from_numpy(np.random.default_rng(0).permutation(num_tokens))
    num = max(NUM_MASKS, -(-num_tokens // masked))
    masks = []
    for start in range(0, num * num_tokens, num_tokens):
        rolled = drawn.roll(-(start // num))
        order = torch.cat([rolled[masked:].sort().values, rolled[:masked].sort().values])
        masks.append(Mask(order[None], num_tokens - masked))
    return masks


def masked_errors(
    run: Run, image: Float[Tensor, "batch band row col"], valid: Bool[Tensor, "batch row col"]
) -> Float[Tensor, "batch token 2"]:
    """Mean absolute error of every patch, once hidden: the model's and the copy's.

    Physical units, over valid pixels, mean over the masks of ``covering_masks`` that hide the
    patch; 0 for a patch without valid pixels.
    """
    model, num_chips = run.model, len(image)
    total = torch.zeros(num_chips, model.num_tokens, 2)
    times = torch.zeros(model.num_tokens)
    counts = torch.zeros(num_chips, model.num_tokens, NUM_CLASSES, dtype=torch.int64)
    batch = Batch(image, valid, counts, torch.arange(num_chips))
    found = [(name, head) for name, head in run.heads.by_name().items() if head.rebuilds_image]
    if not found:
        return total
    name, head = found[0]
    target = head.target(batch, model)  # in model units, NaN where a pixel is invalid
    for one in covering_masks(model.num_tokens, model.config.mask_ratio):
        mask, hidden = Mask(one.order.expand(num_chips, -1), one.num_visible), one.masked[0]
        made = predictions(run, batch, mask, ("nearest_visible",))
        for column, predicted in enumerate((made[MODEL][name], made["nearest_visible"][name])):
            off = (predicted - target)[:, hidden].abs().unflatten(2, (model.num_bands, -1))
            off = (off * model.normalise.std[:, None]).mean(2)
            total[:, hidden, column] += off.nansum(2) / off.isfinite().sum(2).clamp(min=1)
        times[hidden] += 1
    return total / times[:, None]


# Datasets


def most_side_px(run: Run, num_areas: int) -> int:
    """Side of the largest square area that leaves room for the others."""
    config = run.model.config
    by_numbers = math.isqrt(MOST_NUMBERS // config.width // num_areas)
    by_pixels = math.isqrt(MOST_PIXELS // num_areas) // config.patch_px
    return max(min(by_pixels, by_numbers), 8) * config.patch_px


def made(name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
    """The array made, and not kept: a ``Keep``."""
    return make()


def areas_of_dataset(
    run: Run,
    dataset: Dataset,
    progress: Progress,
    keep: Keep = made,
    domain: Domain | None = None,
) -> tuple[list[AreaView], str]:
    """The areas with the most squares of a dataset, and a sentence on what is left out."""
    drawn = [each["name"] for each in dataset.info["regions"] if "overview" in each]
    counts = dataset.chips["region"].value_counts()
    names = sorted(drawn, key=lambda name: -counts.get(name, 0))[:MOST_AREAS]
    side = max(most_side_px(run, len(names)), dataset.size_px)
    areas, model = [], PatchModel(run, domain)
    for number, name in enumerate(names):

        def kept(part: str, make: Callable[[], np.ndarray], number: int = number) -> np.ndarray:
            return keep(f"{number}-{part}", make)

        areas.append(_region(model, dataset, name, side, progress, kept))
    num_missing = len(dataset.regions) - len(names)
    note = f"{num_missing} smaller regions of the dataset are left out." if num_missing else ""
    return areas, note


def _region(
    model: PatchModel, dataset: Dataset, name: str, side_px: int, progress: Progress, keep: Keep
) -> AreaView:
    """The window of a region in which most of its squares lie."""
    square_px, whole = dataset.size_px, dataset.geobox(name)
    chips = dataset.chips[dataset.chips["region"] == name]
    starts, shape = chips[["row", "col"]].to_numpy(np.int64), np.array(whole.shape)
    size = np.minimum(shape, _extent(shape, side_px))
    corners = np.minimum(starts[:: max(len(starts) // 500, 1)], shape - size)
    ahead = starts[None] - corners[:, None]
    held = ((ahead >= 0) & (ahead + square_px <= size)).all(2).sum(1)
    first = corners[held.argmax()]
    inside = ((starts >= first) & (starts + square_px <= first + size)).all(1)
    chips = chips[inside].assign(row=starts[inside, 0] - first[0], col=starts[inside, 1] - first[1])
    (row, col), (height, width) = first.tolist(), size.tolist()
    pictures, labels = _pictures(dataset, name, chips, (row, col), (height, width))
    left_out = "" if (size == shape).all() else (
        f"{width:,} by {height:,} px of the region's {shape[1]:,} by {shape[0]:,}, where its "
        "squares lie closest"
    )  # fmt: skip
    patches = _patches_of_squares(model, dataset, chips, progress, keep)
    geobox = GeoBox((height, width), whole.affine @ Affine.translation(col, row), whole.crs)
    frames = outlines(chips, by_block=True)
    return AreaView(name, geobox, dataset.sensor, pictures, labels, frames, patches, left_out)


def _extent(shape: np.ndarray, side_px: int) -> np.ndarray:
    """Height and width of at most ``side_px`` squared pixels, longer where the other is short."""
    short = shape.min()
    if short >= side_px:
        return np.array([side_px, side_px])
    return np.minimum(shape, side_px**2 // short)


def _pictures(
    dataset: Dataset,
    region: str,
    chips: pd.DataFrame,
    first: tuple[int, int],
    shape: tuple[int, int],
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The squares at full resolution on the region's overview; class ids likewise."""
    sensor, size = dataset.sensor, dataset.size_px
    stored, class_ids, valid = dataset.overview(region)
    record = next(each for each in dataset.info["regions"] if each["name"] == region)
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
    model: PatchModel, dataset: Dataset, chips: pd.DataFrame, progress: Progress, keep: Keep
) -> Patches:
    """What the run says of the squares, each in windows that blend into one another."""
    patch_px, every = model.patch_px, chips["chip"].to_numpy()
    tokens = dataset.size_px // patch_px
    side = tokens * patch_px

    def values(some: Int64[np.ndarray, " chip"]) -> Float32[np.ndarray, "patch number"]:
        stored = np.stack([dataset.image(chip)[:, :side, :side] for chip in some])
        image = physical_units(torch.from_numpy(stored), dataset.sensor)
        valid = torch.from_numpy(np.stack([dataset.valid(chip)[:side, :side] for chip in some]))
        parts = [
            blended_squares(
                image, valid, ask, TokenGrid((side, side), model.chip_px, patch_px, step)
            )
            for ask, step in model.passes
        ]
        both: np.ndarray = np.concatenate(parts, 3)
        return both.reshape(-1, both.shape[3])

    found, counts = [], []
    for start in range(0, len(every), SQUARES_AT_ONCE):
        some = every[start : start + SQUARES_AT_ONCE]
        progress(start, len(every), f"{len(every)} squares of {chips['region'].iloc[0]}")
        found.append(keep(str(start), partial(values, some)))
        landcover = np.stack([dataset.landcover(chip)[:side, :side] for chip in some])
        counts.append(patch_class_counts(landcover, patch_px).reshape(-1, NUM_CLASSES))
    row, col = np.indices((tokens, tokens)).reshape(2, 1, -1) * patch_px
    rows = (chips["row"].to_numpy()[:, None] + row).ravel()
    cols = (chips["col"].to_numpy()[:, None] + col).ravel()
    split = np.array([SPLITS.index(each) for each in chips["split"]], np.uint8).repeat(tokens**2)
    return model.patches(rows, cols, split, np.concatenate(counts), np.concatenate(found))


# Rasters


def area_of_raster(
    run: Run,
    source: RasterInput,
    name: str,
    progress: Progress,
    keep: Keep = made,
    domain: Domain | None = None,
) -> AreaView:
    """The middle of a raster, or all of it where it is small enough."""
    shape = np.array(source.shape)
    size = np.minimum(shape, _extent(shape, most_side_px(run, 1)))
    row, col = ((shape - size) // 2).tolist()
    height, width = size.tolist()
    image, valid = source.read(row, col, height, width)
    sensor = _stretched(source.sensor, image, valid)
    pictures = {each: composite_rgb(image, sensor, valid, each) for each in sensor.composites}
    left_out = "" if (size == shape).all() else (
        f"the middle {width:,} by {height:,} px of the raster's {shape[1]:,} by {shape[0]:,}"
    )  # fmt: skip
    affine = source.geobox.affine @ Affine.translation(col, row)
    geobox = GeoBox((height, width), affine, source.geobox.crs)
    patches = _patches_of_pixels(PatchModel(run, domain), image, valid, progress, keep)
    return AreaView(name, geobox, sensor, pictures, None, [], patches, left_out)


def _stretched(
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
    model: PatchModel, image: np.ndarray, valid: np.ndarray, progress: Progress, keep: Keep
) -> Patches:
    """What the run says of the raster, tile by tile."""
    patch_px = model.patch_px
    shape = (valid.shape[0], valid.shape[1])

    def read(row: int, col: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        here = (slice(row, row + height), slice(col, col + width))
        return image[:, *here], valid[here]

    parts: list[np.ndarray] = []
    for ask, step in model.passes:
        grid = CellGrid(shape, model.chip_px, patch_px, patch_px, step)
        tiles = grid.tiles(_TILE_TOKENS)
        values: np.ndarray | None = None
        for done, tile in enumerate(tiles):
            progress(done, len(tiles), f"pass {len(parts) + 1} of 2 over the raster")
            name = f"{len(parts)}-{tile.name}"
            predicted = keep(name, partial(grid.predict, read, ask, tile))
            if values is None:
                values = np.full((*grid.shape, predicted.shape[2]), np.nan, np.float32)
            values[tile.rows, tile.cols] = predicted
        assert values is not None
        parts.append(values)
    row, col = np.indices(grid.shape).reshape(2, -1) * patch_px
    both = np.concatenate(parts, 2).reshape(len(row), -1)
    no_split, no_counts = (
        np.full(len(row), _NO_SPLIT, np.uint8),
        np.zeros((len(row), NUM_CLASSES), np.int64),
    )
    return model.patches(row, col, no_split, no_counts, both)
