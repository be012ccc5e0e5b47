"""From a recipe and a plan to a dataset folder; killed at any moment, a rerun goes on.

Three passes, with what is done already kept in ``.build/`` inside the output folder:

1. every region is read once, its codes collapsed to class ids, and kept as plain arrays;
2. sites are chosen, from the plan and those arrays alone, so a rerun chooses the same;
3. shards are cut one by one, each with a record of its checksums and sums.

``dataset.json`` comes last, and then ``.build/`` goes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Shaped, UInt8

from bharateo.chips import claim, describe
from bharateo.chips.describe import Chip
from bharateo.chips.plan import Site, SitePlan, check_splits, lay_out
from bharateo.chips.statistics import Sums
from bharateo.chips.store import (
    BUILD_FOLDER,
    CHIPS_FILE,
    DATASET_FILE,
    LAYERS,
    Dataset,
    overview_file,
    read_info,
    shard_file,
    write_array,
)
from bharateo.config import PlanConfig
from bharateo.errors import EmptyRegionError, SourceError
from bharateo.files import write_atomically, write_json
from bharateo.landcover import IGNORE, NUM_CLASSES
from bharateo.raster import Raster
from bharateo.regions import Region
from bharateo.sources import Recipe, Source

SHARD_BYTES = 64_000_000
"""Most bytes of image in a shard."""

OVERVIEW_PX = 768
"""Longest side of an overview."""

Progress = Callable[[int, int, str], None]
"""Told ``(done, total, message)``; ``done`` starts again with every message."""


def build(
    recipe: Recipe,
    plan: PlanConfig,
    output: Path,
    seed: int,
    progress: Progress | None = None,
) -> Dataset:
    """The dataset of a recipe and a plan, in the folder ``output``.

    A folder that holds it already is opened and nothing is read; an unfinished build of the same
    plan goes on where it stopped, and ends in the same bytes.

    Raises:
        ConfigError: a value of the plan is out of range, or a split ends with no chip.
        EmptyRegionError: a region holds no valid or no labelled pixel.
        SourceError: pixels could not be had.
        DatasetError: the folder holds something else, or another build is writing there.
        StorageError: the disk is full; a rerun goes on.
    """
    output = Path(output)
    layout = lay_out(recipe.regions, plan, seed)
    wanted = claim.identity(recipe, plan, seed)
    if not (output / DATASET_FILE).exists():
        with claim.claimed(output, wanted):
            work = _Work(recipe, layout, output, progress or _say_nothing)
            _write_dataset(work, wanted)
    claim.check_same(output, claim.identity_of(read_info(output)), wanted)
    shutil.rmtree(output / BUILD_FOLDER, ignore_errors=True)
    return Dataset.open(output)


def _say_nothing(done: int, total: int, message: str) -> None:
    """The progress of a build that nobody watches."""


class _Layers(NamedTuple):
    """A whole region as it is cut into chips."""

    image: Shaped[np.ndarray, "band row col"]
    landcover: UInt8[np.ndarray, "row col"]
    valid: Bool[np.ndarray, "row col"]


class _Work:
    """One build under way."""

    def __init__(self, recipe: Recipe, layout: SitePlan, output: Path, progress: Progress) -> None:
        self.recipe = recipe
        self.layout = layout
        self.output = output
        self.progress = progress
        self.scratch = output / BUILD_FOLDER
        self.layers = lru_cache(2)(self._map_layers)

    def layer_file(self, region: Region, layer: str) -> Path:
        """Where a region's layer is kept during the build."""
        return self.scratch / f"{region.name}-{layer}.npy"

    def _map_layers(self, region_index: int) -> _Layers:
        files = (self.layer_file(self.recipe.regions[region_index], layer) for layer in LAYERS)
        return _Layers(*(np.load(file, mmap_mode="r").view(np.ndarray) for file in files))


def _write_dataset(work: _Work, head: Mapping[str, Any]) -> None:
    indices = range(len(work.recipe.regions))
    regions = [_read_region(work, index) for index in indices]
    chips = _choose(work)
    shards = _write_shards(work, chips)
    overviews = [_write_overview(work, index) for index in indices]
    regions = [region | overview for region, overview in zip(regions, overviews, strict=True)]
    table = describe.table(chips, work.recipe.regions, [shard["num_chips"] for shard in shards])
    write_atomically(work.output / CHIPS_FILE, lambda file: file.write(table))
    description = describe.dataset(work.recipe, head, regions, chips, shards)
    write_json(work.output / DATASET_FILE, description)


def _json(file: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return record


# Pass 1: regions


def _read_region(work: _Work, index: int) -> dict[str, Any]:
    """A region's entry in ``dataset.json``; its layers lie in the scratch folder afterwards."""
    region = work.recipe.regions[index]
    record_file = work.scratch / f"{region.name}.json"
    work.progress(index, len(work.recipe.regions), "reading regions")
    if not record_file.exists():
        write_json(record_file, _fetch_region(work, region))
    work.progress(index + 1, len(work.recipe.regions), "reading regions")
    return _json(record_file)


def _fetch_region(work: _Work, region: Region) -> dict[str, Any]:
    recipe, scheme = work.recipe, work.recipe.landcover.scheme
    sensor = recipe.image.sensor
    image = _read(recipe.image, region, sensor.num_bands, sensor.dtype)
    labels = _read(recipe.landcover, region, 1, "uint8")
    native = np.where(labels.valid, labels.values[0], np.uint8(scheme.nodata))
    class_ids = scheme.collapse(native, f"{recipe.landcover.name}, region {region.name}")
    _require(image.valid, "valid", region, recipe.image, image)
    if work.layout.config.min_classes:
        _require(class_ids != IGNORE, "labelled", region, recipe.landcover, labels)
    layers = _Layers(image.values * image.valid, class_ids, image.valid)
    for layer, values in zip(LAYERS, layers, strict=True):
        write_array(work.layer_file(region, layer), values)
    return {
        **claim.grid(region),
        "bounds_lonlat": describe.bounds_lonlat(region),
        "valid_fraction": float(image.valid.mean()),
        "native_counts": {str(k): n for k, n in scheme.native_counts(native).items()},
        "provenance": {"image": dict(image.provenance), "landcover": dict(labels.provenance)},
    }


def _read(source: Source, region: Region, num_bands: int, dtype: str) -> Raster:
    raster = source.read(region.geobox)
    shape = (num_bands, *region.geobox.shape)
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
    west, south, east, north = describe.bounds_lonlat(region)
    root = raster.provenance.get("root")
    raise EmptyRegionError(
        f"ROI {region.name!r} (centre LON,LAT {(west + east) / 2:.4f},{(south + north) / 2:.4f}) "
        f"holds no {what} pixel in {source.name}{f' under {root}' if root else ''}: it lies over "
        "open ocean or outside the data; check the order LON,LAT, choose another place or "
        "another --worldcover-root"
    )


# Pass 2: sites


def _choose(work: _Work) -> list[Chip]:
    num_regions = len(work.recipe.regions)
    chips: list[Chip] = []
    for index in range(num_regions):
        chips += work.layout.select(index, lambda site: _measure(work, site))
        work.progress(index + 1, num_regions, "choosing chips")
    check_splits([chip.site for chip in chips], work.layout.config)
    return chips


def _measure(work: _Work, site: Site) -> Chip | None:
    """The chip at a site, or ``None`` where too little is valid or too few classes occur."""
    layers, plan = work.layers(site.region_index), work.layout.config
    num_valid = int(np.count_nonzero(layers.valid[site.window]))
    if num_valid == 0 or num_valid < plan.min_valid_fraction * site.size_px**2:
        return None
    class_ids = layers.landcover[site.window]
    counts = np.bincount(class_ids.reshape(-1), minlength=NUM_CLASSES)[:NUM_CLASSES]
    if np.count_nonzero(counts) < plan.min_classes:
        return None
    return Chip(site, num_valid, tuple(counts.tolist()))


# Pass 3: shards


def _write_shards(work: _Work, chips: Sequence[Chip]) -> list[dict[str, Any]]:
    records, done = [], 0
    work.progress(0, len(chips), "writing chips")
    for index, part in enumerate(_parts(work, chips)):
        records.append(_write_shard(work, index, part))
        done += len(part)
        work.progress(done, len(chips), "writing chips")
    return records


def _parts(work: _Work, chips: Sequence[Chip]) -> Iterator[Sequence[Chip]]:
    """The chips of every shard."""
    sensor, size_px = work.recipe.image.sensor, work.layout.config.size_px
    chip_bytes = sensor.num_bands * size_px**2 * np.dtype(sensor.dtype).itemsize
    num = max(SHARD_BYTES // chip_bytes, 1)
    for start in range(0, len(chips), num):
        yield chips[start : start + num]


def _write_shard(work: _Work, index: int, chips: Sequence[Chip]) -> dict[str, Any]:
    """The shard's entry in ``dataset.json`` and the sums of its train chips."""
    record_file = work.scratch / f"shard-{index:05d}.json"
    if not (record_file.exists() and _is_whole(work, _json(record_file))):
        image, landcover, valid = _cut(work, chips)
        layers = (image, landcover, np.packbits(valid, axis=-1))
        files = {
            layer: write_array(work.output / shard_file(layer, index), values)
            for layer, values in zip(LAYERS, layers, strict=True)
        }
        sums = _sums(image, chips)
        write_json(record_file, {"num_chips": len(chips), **files, "sums": sums.to_json()})
    return _json(record_file)


def _is_whole(work: _Work, record: Mapping[str, Any]) -> bool:
    """Whether a shard's files are still as long as they were written."""
    files = [(work.output / record[layer]["file"], record[layer]["bytes"]) for layer in LAYERS]
    return all(file.exists() and file.stat().st_size == num_bytes for file, num_bytes in files)


def _cut(work: _Work, chips: Sequence[Chip]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image, class ids and validity of some chips, stacked."""
    sensor, size_px = work.recipe.image.sensor, work.layout.config.size_px
    image = np.empty((len(chips), sensor.num_bands, size_px, size_px), sensor.dtype)
    landcover = np.empty((len(chips), size_px, size_px), np.uint8)
    valid = np.empty((len(chips), size_px, size_px), np.bool_)
    for place, chip in enumerate(chips):
        layers = work.layers(chip.site.region_index)
        image[place] = layers.image[:, *chip.site.window]
        landcover[place] = layers.landcover[chip.site.window]
        valid[place] = layers.valid[chip.site.window]
    return image, landcover, valid


def _sums(image: Shaped[np.ndarray, "chip band row col"], chips: Sequence[Chip]) -> Sums:
    train = (
        Sums.of(pixels, chip.num_valid)
        for pixels, chip in zip(image, chips, strict=True)
        if chip.site.split == "train"
    )
    return sum(train, start=Sums.zero(image.shape[1]))


# Overviews


def _write_overview(work: _Work, index: int) -> dict[str, Any]:
    """The region thinned by taking every n-th pixel, so that class ids stay class ids."""
    region, layers = work.recipe.regions[index], work.layers(index)
    step = -(-max(region.geobox.shape) // OVERVIEW_PX)
    thin = slice(step // 2, None, step)
    record: dict[str, Any] = {"step_px": step}
    for layer, values in zip(LAYERS, layers, strict=True):
        record[layer] = overview_file(layer, region.name)
        write_array(work.output / record[layer], values[..., thin, thin])
    return {"overview": record}
