"""From a unit to its chips: read once, cut, measured, kept. What every worker runs, wherever."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from affine import Affine
from jaxtyping import Bool, Int64, UInt8
from odc.geo.geobox import GeoBox

from bharateo import geography
from bharateo.chips.ground import Site
from bharateo.chips.layouts import ByPixels, Unit
from bharateo.chips.scratch import Chips, Kept, Layers, Piece, Read, SceneLook, Scratch, UnitRecord
from bharateo.chips.statistics import Sums
from bharateo.config import PlanConfig
from bharateo.errors import EmptyRegionError, SourceError
from bharateo.landcover import IGNORE, NUM_CLASSES
from bharateo.pixels.http import Traffic
from bharateo.pixels.raster import Raster
from bharateo.regions import Region, Roi, swapped_option
from bharateo.sources import ImageSource, LabelSource, Source

Window = tuple[slice, slice]
"""Rows and columns of a region."""


class Job(NamedTuple):
    """A unit and what it takes to cut it."""

    number: int
    unit: Unit
    region: Region
    scene: Any = None
    """What the image is read from, where the source has scenes."""
    thin_px: int | None = None
    """Step of the region's overview, if that is wanted."""
    instead: bool = False
    """Whether what was cut of the unit before must go."""


class CutChip(NamedTuple):
    """A site that is good enough, its valid pixels, and its labelled pixels of every class."""

    site: Site
    num_valid: int
    class_counts: list[int]


@dataclass(frozen=True)
class Cutter:
    """Cuts units: sources and plan. It travels to other processes, where it opens its own files.

    ``layout`` chooses the sites of units that do not name them.
    """

    image: ImageSource
    landcover: LabelSource
    plan: PlanConfig
    scratch: Scratch
    layout: ByPixels | None = None

    def do(self, job: Job) -> Kept | SourceError:
        """Cut a unit and keep it; a source's own error is an outcome too."""
        try:
            piece = self.cut(job)
        except SourceError as error:
            return error
        return self.scratch.keep(piece, job.instead)

    def cut(self, job: Job) -> Piece:
        """The chips of a unit, less those with too little valid ground or too few classes.

        Raises:
            EmptyRegionError: a whole region holds no valid or no labelled pixel.
            SourceError: pixels could not be had.
        """
        unit, region, size_px = job.unit, job.region, self.plan.size_px
        image, sensor = self.image.at(job.scene), self.image.sensor
        before = self._traffic()
        chips: dict[str, list[Any]] = {name: [] for name in Chips.model_fields}
        stack: list[Layers] = []
        reads: list[Read] = []
        native_counts: Counter[int] = Counter()
        num_sites = num_pixels = num_valid_pixels = 0
        thinned: list[tuple[int, int, Layers]] = []
        for window, sites in read_windows(unit, region):
            layers, raster, labels, native = self._read(image, region, window)
            if unit.sites is None:
                self._require_ground(region, layers, raster, labels)
            native_counts.update(self.landcover.scheme.native_counts(native))
            num_pixels += layers.valid.size
            num_valid_pixels += int(np.count_nonzero(layers.valid))
            found, num_looked_at = self._usable(unit, sites, layers, window)
            num_sites += num_looked_at
            for site, num_valid, class_counts in found:
                rows, cols = _inside(site, window)
                x, y = raster.geobox.affine @ (cols.start, rows.start)
                noted = {
                    "row": site.row, "col": site.col, "split": site.split, "block": site.block,
                    "zone": site.zone, "x": x, "y": y, "num_valid": num_valid,
                    "class_counts": class_counts, "read": len(reads),
                }  # fmt: skip
                for name, value in noted.items():
                    chips[name].append(value)
                stack.append(layers.cut(rows, cols))
            reads.append(Read(image=dict(raster.provenance), landcover=dict(labels.provenance)))
            if job.thin_px:
                thinned.append(_thinned(layers, window, job.thin_px))

        num = len(stack)
        pixels = np.empty((num, sensor.num_bands, size_px, size_px), sensor.dtype)
        landcover = np.empty((num, size_px, size_px), np.uint8)
        valid = np.empty((num, size_px, size_px), np.bool_)
        for place, part in enumerate(stack):
            np.multiply(part.image, part.valid, out=pixels[place])
            landcover[place], valid[place] = part.landcover, part.valid
        train = [place for place, split in enumerate(chips["split"]) if split == "train"]
        sums = (Sums.of(pixels[place], chips["num_valid"][place]) for place in train)
        looks = {}
        if unit.scene is not None:
            evidence = self.image.evidence([read.image for read in reads])
            looks[unit.scene] = SceneLook(
                num_sites=num_sites, num_valid_sites=num, evidence=evidence
            )
        record = UnitRecord(
            unit=job.number,
            region=region.name,
            occasion=unit.occasion,
            scene=unit.scene,
            num_chips=num,
            splits=dict(Counter(chips["split"])),
            chips=Chips(**chips),
            reads=reads,
            sums=sum(sums, start=Sums.zero(sensor.num_bands)),
            native_counts=dict(native_counts),
            num_pixels=num_pixels,
            num_valid_pixels=num_valid_pixels,
            overviews=[(row, col) for row, col, _ in thinned],
            looks=looks,
        )
        after = self._traffic()
        return Piece(
            record,
            pixels,
            landcover,
            np.packbits(valid, axis=-1),
            [layers for _, _, layers in thinned],
            Traffic(after.requests - before.requests, after.bytes - before.bytes),
        )

    def _traffic(self) -> Traffic:
        both = self.image.traffic, self.landcover.traffic
        return Traffic(sum(each.requests for each in both), sum(each.bytes for each in both))

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
        self, region: Region, layers: Layers, image: Raster, labels: Raster
    ) -> None:
        """A region that was asked for by itself must hold something; a scene may be all cloud."""
        asked: list[tuple[str, Bool[np.ndarray, "row col"], Source, Raster]]
        asked = [("valid", layers.valid, self.image, image)]
        if self.plan.min_classes:
            asked.append(("labelled", layers.landcover != IGNORE, self.landcover, labels))
        for what, wanted, source, raster in asked:
            if wanted.any():
                continue
            west, south, east, north = geography.bounds_lonlat(region.geobox)
            lon, lat = round((west + east) / 2, 4), round((south + north) / 2, 4)
            root = raster.provenance.get("root")
            remedy = (
                "check the order LON,LAT, choose another place, or point to other data "
                "(--worldcover-root, data.geotiff.path)"
            )
            if self._labelled_at(lat, lon):
                size_px = max(region.geobox.shape)
                remedy = "the other way round there is ground: " + swapped_option(
                    Roi(region.name, lon, lat, size_px)
                )
            raise EmptyRegionError(
                f"ROI {region.name!r} (centre LON,LAT {lon:.4f},{lat:.4f}) holds no {what} pixel "
                f"in {source.name}{f' under {root}' if root else ''}: it lies over open ocean or "
                f"outside the data; {remedy}"
            )

    def _labelled_at(self, lon: float, lat: float) -> bool:
        """Whether there is a label at a place that nobody asked for."""
        if abs(lat) > 85:
            return False
        around = Affine(1e-4, 0, lon - 8e-4, 0, -1e-4, lat + 8e-4)
        try:
            return bool(self.landcover.read(GeoBox((16, 16), around, "EPSG:4326")).valid.any())
        except SourceError:
            return False

    def _usable(
        self, unit: Unit, sites: tuple[Site, ...] | None, layers: Layers, window: Window
    ) -> tuple[list[CutChip], int]:
        """The chips of a window, and how many squares with labels enough were looked at."""
        num_sites = 0

        def measured(site: Site) -> CutChip | None:
            nonlocal num_sites
            part = layers.cut(*_inside(site, window))
            counts = class_counts(part.landcover)
            if np.count_nonzero(counts) < self.plan.min_classes:
                return None
            num_sites += 1
            num_valid = int(np.count_nonzero(part.valid))
            if num_valid == 0 or num_valid < self.plan.min_valid_fraction * site.size_px**2:
                return None
            return CutChip(site, num_valid, counts.tolist())

        if sites is not None:
            found = [chip for site in sites if (chip := measured(site)) is not None]
        elif self.layout is not None:
            found = self.layout.select(unit.region_index, measured)
        else:
            raise ValueError("a unit without sites needs a layout to choose them")
        return found, num_sites


def class_counts(class_ids: UInt8[np.ndarray, "row col"]) -> Int64[np.ndarray, " cls"]:
    """Labelled pixels of every class."""
    return np.bincount(class_ids.reshape(-1), minlength=NUM_CLASSES)[:NUM_CLASSES]


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
