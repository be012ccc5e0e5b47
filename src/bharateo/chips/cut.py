"""From a unit to its chips: read once, cut, measured. What every worker runs, wherever it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int64, Shaped, UInt8

from bharateo import geography
from bharateo.chips.ground import Site
from bharateo.chips.layouts import ByPixels, Unit
from bharateo.chips.statistics import Sums
from bharateo.config import PlanConfig
from bharateo.errors import EmptyRegionError, SourceError
from bharateo.landcover import IGNORE, NUM_CLASSES
from bharateo.pixels.http import Traffic
from bharateo.pixels.raster import Raster
from bharateo.regions import Region
from bharateo.sources import ImageSource, LabelSource, Source

Window = tuple[slice, slice]
"""Rows and columns of a region."""


@dataclass(frozen=True)
class Layers:
    """A read window as it is cut into chips."""

    image: Shaped[np.ndarray, "band row col"]
    landcover: UInt8[np.ndarray, "row col"]
    valid: Bool[np.ndarray, "row col"]

    def cut(self, rows: slice, cols: slice) -> Layers:
        """A part of it, as views."""
        return Layers(self.image[:, rows, cols], self.landcover[rows, cols], self.valid[rows, cols])


@dataclass
class Piece:
    """A unit's chips, with what is written about them; ``chips`` are its columns, a row each.

    ``valid`` is packed along columns. ``overviews`` are the read windows thinned, each with its
    first row and column in the region's overview.
    """

    image: Shaped[np.ndarray, "chip band row col"]
    landcover: UInt8[np.ndarray, "chip row col"]
    valid: UInt8[np.ndarray, "chip row byte"]
    chips: dict[str, list[Any]]
    reads: list[dict[str, Any]]
    """Provenance of every window read; a chip's ``read`` counts into it."""
    sums: Sums
    native_counts: dict[int, int]
    num_pixels: int
    num_valid_pixels: int
    num_sites: int = 0
    """Squares looked at that have labels enough, whatever the image is like."""
    num_valid_sites: int = 0
    """Of these, those with enough valid ground: the chips."""
    overviews: list[tuple[int, int, Layers]] = field(default_factory=list)
    traffic: Traffic = field(default_factory=Traffic)


@dataclass(frozen=True)
class Cutter:
    """Cuts units: sources and plan. It travels to other processes, where it opens its own files.

    ``layout`` chooses the sites of units that do not name them.
    """

    image: ImageSource
    landcover: LabelSource
    plan: PlanConfig
    layout: ByPixels | None = None

    def cut(
        self, unit: Unit, region: Region, scene: Any = None, thin_px: int | None = None
    ) -> Piece:
        """The chips of a unit, less those with too little valid ground or too few classes.

        ``scene`` is what the image is read from, where the source has scenes; ``thin_px`` the step
        of the region's overview, if that is wanted.

        Raises:
            EmptyRegionError: a whole region holds no valid or no labelled pixel.
            SourceError: pixels could not be had.
        """
        image = self.image.at(scene)
        before = _traffic(self.image), _traffic(self.landcover)
        stacks: list[Layers] = []
        columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
        piece = _empty(self.image.sensor.num_bands)
        for window, sites in read_windows(unit, region):
            layers, raster, labels, native = self._read(image, region, window)
            self._require_ground(unit, region, layers, raster, labels)
            _count(piece, layers, native, self.landcover)
            piece.reads.append(
                {"image": dict(raster.provenance), "landcover": dict(labels.provenance)}
            )
            for chip in self._usable(unit, sites, layers, window, piece):
                stacks.append(layers.cut(*_inside(chip.site, window)))
                _describe(columns, chip, raster, window, len(piece.reads) - 1)
            if thin_px:
                piece.overviews.append(_thinned(layers, window, thin_px))
        piece.chips = columns
        _stack(piece, stacks, self.image.sensor.dtype, self.plan.size_px)
        piece.sums = _train_sums(piece)
        after = _traffic(self.image), _traffic(self.landcover)
        piece.traffic = Traffic(*(
            sum(a[i] - b[i] for a, b in zip(after, before, strict=True)) for i in (0, 1)
        ))  # fmt: skip
        return piece

    def _read(
        self, image: Source, region: Region, window: Window
    ) -> tuple[Layers, Raster, Raster, UInt8[np.ndarray, "row col"]]:
        sensor, scheme = self.image.sensor, self.landcover.scheme
        grid = region.geobox[window]
        raster = _read_checked(image, region, grid, sensor.num_bands, sensor.dtype)
        labels = _read_checked(self.landcover, region, raster.geobox, 1, "uint8")
        native = np.where(labels.valid, labels.values[0], np.uint8(scheme.nodata))
        class_ids = scheme.collapse(native, f"{self.landcover.name}, region {region.name}")
        return Layers(raster.values, class_ids, raster.valid), raster, labels, native

    def _require_ground(
        self, unit: Unit, region: Region, layers: Layers, image: Raster, labels: Raster
    ) -> None:
        """A region that was asked for by itself must hold something; a scene may be all cloud."""
        if unit.sites is not None:
            return
        _require(layers.valid, "valid", region, self.image, image)
        if self.plan.min_classes:
            _require(layers.landcover != IGNORE, "labelled", region, self.landcover, labels)

    def _usable(
        self,
        unit: Unit,
        sites: tuple[Site, ...] | None,
        layers: Layers,
        window: Window,
        piece: Piece,
    ) -> list[Chip]:
        """The chips of a window; what was looked at is counted in ``piece``."""

        def measured(site: Site) -> Chip | None:
            part = layers.cut(*_inside(site, window))
            counts = class_counts(part.landcover)
            if np.count_nonzero(counts) < self.plan.min_classes:
                return None
            piece.num_sites += 1
            num_valid = int(np.count_nonzero(part.valid))
            if num_valid == 0 or num_valid < self.plan.min_valid_fraction * site.size_px**2:
                return None
            piece.num_valid_sites += 1
            return Chip(site, num_valid, counts.tolist())

        if sites is not None:
            return [chip for site in sites if (chip := measured(site)) is not None]
        if self.layout is None:
            raise ValueError("a unit without sites needs a layout to choose them")
        return self.layout.select(unit.region_index, measured)


class Chip(NamedTuple):
    """A site that is good enough, its valid pixels, and its labelled pixels of every class."""

    site: Site
    num_valid: int
    class_counts: list[int]


COLUMNS = (
    "row", "col", "split", "block", "zone", "x", "y", "num_valid", "class_counts", "read",
)  # fmt: skip
"""What is noted of every chip: ``x``, ``y`` are its north-west corner in the region's reference
system, as the source has it."""


def class_counts(class_ids: UInt8[np.ndarray, "row col"]) -> Int64[np.ndarray, " cls"]:
    """Labelled pixels of every class."""
    return np.bincount(class_ids.reshape(-1), minlength=NUM_CLASSES)[:NUM_CLASSES]


def thin_step(region: Region, longest_px: int) -> int:
    """Every how many pixels a region's overview takes one."""
    return -(-max(region.geobox.shape) // longest_px)


def _traffic(source: Source) -> tuple[int, int]:
    return source.traffic.requests, source.traffic.bytes


def read_windows(unit: Unit, region: Region) -> Iterator[tuple[Window, tuple[Site, ...] | None]]:
    """What a unit reads at once, and the sites in it."""
    if unit.sites is None:
        height, width = region.geobox.shape
        yield (slice(0, height), slice(0, width)), None
    elif region.squares:  # ready-made chips: each is a file
        for site in unit.sites:
            yield site.window, (site,)
    else:
        rows = [site.row for site in unit.sites]
        cols = [site.col for site in unit.sites]
        size_px = unit.sites[0].size_px
        window = slice(min(rows), max(rows) + size_px), slice(min(cols), max(cols) + size_px)
        yield window, unit.sites


def _inside(site: Site, window: Window) -> Window:
    row, col = site.row - window[0].start, site.col - window[1].start
    return slice(row, row + site.size_px), slice(col, col + site.size_px)


def _read_checked(source: Source, region: Region, grid: Any, num_bands: int, dtype: str) -> Raster:
    raster = source.read(grid)
    shape = (num_bands, *grid.shape)
    if raster.values.shape != shape or raster.values.dtype != dtype:
        raise SourceError(
            f"{source.name} gave region {region.name!r} as {raster.values.dtype} of shape "
            f"{raster.values.shape}, expected {dtype} of shape {shape}: the source does not "
            "keep to its sensor's description"
        )
    return raster


def _require(
    wanted: Bool[np.ndarray, "row col"], what: str, region: Region, source: Source, raster: Raster
) -> None:
    if wanted.any():
        return
    west, south, east, north = geography.bounds_lonlat(region.geobox)
    root = raster.provenance.get("root")
    raise EmptyRegionError(
        f"ROI {region.name!r} (centre LON,LAT {(west + east) / 2:.4f},{(south + north) / 2:.4f}) "
        f"holds no {what} pixel in {source.name}{f' under {root}' if root else ''}: it lies over "
        "open ocean or outside the data; check the order LON,LAT, choose another place, or point "
        "to other data (--worldcover-root, data.geotiff.path)"
    )


def _empty(num_bands: int) -> Piece:
    nothing = np.zeros(0, np.uint8)
    return Piece(nothing, nothing, nothing, {}, [], Sums.zero(num_bands), {}, 0, 0)


def _count(
    piece: Piece, layers: Layers, native: UInt8[np.ndarray, "row col"], labels: LabelSource
) -> None:
    for code, num in labels.scheme.native_counts(native).items():
        piece.native_counts[code] = piece.native_counts.get(code, 0) + num
    piece.num_pixels += layers.valid.size
    piece.num_valid_pixels += int(np.count_nonzero(layers.valid))


def _describe(
    columns: dict[str, list[Any]], chip: Chip, raster: Raster, window: Window, read: int
) -> None:
    site = chip.site
    rows, cols = _inside(site, window)
    x, y = raster.geobox.affine @ (cols.start, rows.start)
    row: Mapping[str, Any] = {
        "row": site.row,
        "col": site.col,
        "split": site.split,
        "block": site.block,
        "zone": site.zone,
        "x": x,
        "y": y,
        "num_valid": chip.num_valid,
        "class_counts": chip.class_counts,
        "read": read,
    }
    for name, value in row.items():
        columns[name].append(value)


def _stack(piece: Piece, parts: list[Layers], dtype: str, size_px: int) -> None:
    num_bands = len(piece.sums.total)
    piece.image = np.empty((len(parts), num_bands, size_px, size_px), dtype)
    piece.landcover = np.empty((len(parts), size_px, size_px), np.uint8)
    valid = np.empty((len(parts), size_px, size_px), np.bool_)
    for place, part in enumerate(parts):
        np.multiply(part.image, part.valid, out=piece.image[place])
        piece.landcover[place], valid[place] = part.landcover, part.valid
    piece.valid = np.packbits(valid, axis=-1)


def _train_sums(piece: Piece) -> Sums:
    train = (
        Sums.of(image, num_valid)
        for image, num_valid, split in zip(
            piece.image, piece.chips["num_valid"], piece.chips["split"], strict=True
        )
        if split == "train"
    )
    return sum(train, start=piece.sums)


def _thinned(layers: Layers, window: Window, step: int) -> tuple[int, int, Layers]:
    """Every ``step``-th pixel of the region that lies in the window, and where it goes."""
    firsts = [-(-(part.start - step // 2) // step) for part in window]
    rows, cols = (
        slice(first * step + step // 2 - part.start, None, step)
        for first, part in zip(firsts, window, strict=True)
    )
    thin = layers.cut(rows, cols)
    image = thin.image * thin.valid
    return firsts[0], firsts[1], Layers(image, thin.landcover.copy(), thin.valid.copy())
