"""A run's vectors of a raster of any size, or of a dataset, as files that other programs open."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Shaped
from odc.geo.geobox import GeoBox
from pyproj import CRS

from bharateo.chips.store import Dataset
from bharateo.errors import ConfigError
from bharateo.geography import to_lonlat
from bharateo.inference.encoder import CHIPS_AT_ONCE, FrozenEncoder, PerToken
from bharateo.inference.inputs import RasterInput
from bharateo.inference.pieces import (
    Answers,
    CellGrid,
    Progress,
    answer_all,
    clear_scratch,
    fingerprint,
    in_precision,
    keep_all,
    scratch,
)
from bharateo.inference.product_item import item_path, write_item
from bharateo.inference.table import Rows, corners, table_provenance, write_table
from bharateo.inference.windows import TokenGrid, blended_squares
from bharateo.outputs import Own, json_of, record_in
from bharateo.pixels.cog import Bands, Block, cog_tags, write_cog
from bharateo.training.data import physical_units
from bharateo.training.run import Run, dataset_fingerprint
from bharateo.version import __version__

COG_TAG = "BHARATEO"
"""The tag of a GeoTIFF that holds its provenance, as JSON."""

_INT8_NODATA, _INT8_MOST = -128, 127

_COLUMNS = ("region", "split", "block", "row", "col", "scene", "datetime")
"""Of the table of chips, in the table of a dataset."""


def provenance_of(path: Path) -> dict[str, Any]:
    """What a product of ours was written with, table or GeoTIFF; empty where it is none."""
    if path.suffix == ".parquet":
        return table_provenance(path)
    return record_in(cog_tags(path).get(COG_TAG, "{}"))


def holding(product: str) -> Own:
    """The mark of a table or GeoTIFF: the ``product`` of its provenance."""
    return lambda path: bool(provenance_of(path).get("product") == product)


def embedding_products(outputs: Sequence[Path]) -> dict[Path, Own]:
    """The files of an embedding, and how each is known to be one.

    Raises:
        ConfigError: two outputs are called the same.
    """
    if len({*outputs}) < len(outputs):
        raise ConfigError(f"--output {outputs[0]}: give each --output its own name")
    items = {item_path(output): json_of("item of embedding") for output in outputs}
    return {**{output: holding("embedding") for output in outputs}, **items}


@dataclass(frozen=True)
class Embedding:
    """How vectors are made and kept.

    ``stride_px``: distance of patches (None: the patch size); ``step``: distance of windows in
    tokens (None: half a chip); ``level``: one row a patch or a chip, of datasets.
    """

    dtype: str = "float16"
    stride_px: int | None = None
    step: int | None = None
    precision: str = "fp32"
    level: str = "patch"

    @property
    def kept_as(self) -> str:
        """How vectors are kept until all are there."""
        return "float16" if self.dtype == "float16" else "float32"


def embed_raster(
    run: Run,
    source: RasterInput,
    outputs: Sequence[Path],
    how: Embedding,
    progress: Progress,
    say: Callable[[str], object],
) -> None:
    """Write the vectors of a raster as a COG (.tif), a GeoParquet file (.parquet), or both.

    The COG has one band a dimension and one pixel a cell; the table one row for each cell with a
    valid pixel. Files that are already there, made of the same, are left alone.

    Raises:
        ConfigError: an ending, type or stride that cannot be.
        SourceError, StorageError: pixels cannot be read, files cannot be written.
    """
    _check(outputs, how)
    if how.level != "patch":
        raise ConfigError(f"--level {how.level}: a raster has no chips, so its level is patch")
    encoder = FrozenEncoder.of_run(run)
    stride = how.stride_px or encoder.patch_px
    grid = CellGrid(source.shape, encoder.chip_px, encoder.patch_px, stride, how.step)
    plan = _plan(run, how, source.provenance, source.identity)
    missing = _missing(outputs, plan, say)
    if not missing:
        _write_items(run, outputs, plan, [grid.geobox(source.geobox)])
        clear_scratch(outputs[0], plan, say)
        return
    ask = in_precision(encoder.features, how.precision)
    with scratch(outputs[0], plan, say) as folder:
        answers = answer_all(grid, source.read, ask, folder, progress, how.kept_as)
        for output in missing:
            if output.suffix == ".parquet":
                rows = _rows_of_raster(answers, source.geobox)
                write_table(output, rows, CRS(str(source.geobox.crs)), plan)
            else:
                _write_cog(output, answers, source.geobox, how.dtype, plan)
            item_path(output).unlink(missing_ok=True)  # of an older one
        _write_items(run, outputs, plan, [grid.geobox(source.geobox)])


def embed_dataset(
    run: Run,
    dataset: Dataset,
    outputs: Sequence[Path],
    how: Embedding,
    progress: Progress,
    say: Callable[[str], object],
) -> None:
    """Write the vectors of a dataset as GeoParquet (EPSG:4326): one row a patch, or a chip (the
    mean of its patches), of those with a valid pixel.

    Raises:
        ConfigError: the output is no table, or a finer stride was asked for.
        ContractError: the run must not be fed this dataset.
    """
    _check(outputs, how)
    if len(outputs) > 1 or outputs[0].suffix != ".parquet":
        raise ConfigError(
            f"--output {outputs[0]}: chips lie apart, so a dataset becomes one .parquet"
        )
    (output,) = outputs
    if how.stride_px not in (None, run.model.config.patch_px):
        raise ConfigError(f"--stride {how.stride_px} is for rasters: leave it out for a dataset")
    if {*run.sensor.band_names} <= {*dataset.sensor.band_names}:
        dataset = dataset.with_bands(run.sensor.band_names)
    run.check(dataset)
    about = {"dataset": str(dataset.path), "attribution": list(dataset.attribution)}
    plan = _plan(run, how, about, dataset_fingerprint(dataset))
    regions = [dataset.geobox(name) for name in dataset.regions]
    if not _missing([output], plan, say):
        _write_items(run, [output], plan, regions)
        clear_scratch(output, plan, say)
        return
    encoder = FrozenEncoder.of_run(run)
    tokens = dataset.size_px // encoder.patch_px
    side = (tokens * encoder.patch_px,) * 2
    grid = TokenGrid(side, encoder.chip_px, encoder.patch_px, how.step)
    ask = in_precision(encoder.features, how.precision)
    groups = [
        range(first, min(first + CHIPS_AT_ONCE, dataset.num_chips))
        for first in range(0, dataset.num_chips, CHIPS_AT_ONCE)
    ]
    with scratch(output, plan, say) as folder:
        makers = {str(group.start): partial(_squares, ask, dataset, grid, group)
                  for group in groups}  # fmt: skip
        files = keep_all(folder, makers, how.kept_as, progress)
        rows = _rows_of_dataset(dataset, groups, files, encoder.patch_px, how.level)
        write_table(output, rows, CRS("EPSG:4326"), plan)
        item_path(output).unlink(missing_ok=True)  # of an older one
        _write_items(run, [output], plan, regions)


def _write_items(
    run: Run, outputs: Sequence[Path], plan: Mapping[str, Any], geoboxes: Sequence[GeoBox]
) -> None:
    """Write the STAC Items that are not there yet."""
    own = plan["source"].get("attribution", [])
    attribution = list(dict.fromkeys([*run.contract.attribution, *own]))
    for output in outputs:
        if not item_path(output).exists():
            write_item(output, plan, geoboxes, {"vectors": output}, attribution)


def _check(outputs: Sequence[Path], how: Embedding) -> None:
    for output in outputs:
        if output.suffix not in (".tif", ".parquet"):
            raise ConfigError(f"--output {output}: the name must end in .tif or .parquet")
        if output.suffix == ".parquet" and how.dtype == "int8":
            raise ConfigError(
                f"--dtype int8 cannot be kept in {output}, which has no scale for each dimension: "
                "use float16, or write a .tif"
            )


def _plan(run: Run, how: Embedding, source: Mapping[str, Any], identity: str) -> dict[str, Any]:
    """What decides a product's contents, and its provenance."""
    plan = {
        "product": "embedding",
        "code_version": __version__,
        "run": {"name": run.path.resolve().name, "weights_sha256": run.weights_sha256},
        "source": {**source, "identity": identity},
        "options": asdict(how),
    }
    return {**plan, "fingerprint": fingerprint(plan)}


def _missing(
    outputs: Sequence[Path], plan: Mapping[str, Any], say: Callable[[str], object]
) -> list[Path]:
    """The outputs that are not there yet."""
    missing = []
    for output in outputs:
        if provenance_of(output).get("fingerprint") == plan["fingerprint"]:
            say(f"{output} is there already, made of the same")
        else:
            missing.append(output)
    return missing


# Rasters


def _write_cog(
    output: Path, answers: Answers, raster: GeoBox, dtype: str, plan: Mapping[str, Any]
) -> None:
    names = tuple(f"dim_{dim}" for dim in range(answers.num_dims))
    if dtype == "int8":
        scales, offsets = _scales(answers)
        bands = Bands(dtype, names, _INT8_NODATA, tuple(scales.tolist()), tuple(offsets.tolist()))
        blocks = _blocks(answers, partial(_quantised, scales=scales, offsets=offsets))
    else:
        bands, blocks = Bands(dtype, names, float("nan")), _blocks(answers, lambda values: values)
    tags = {COG_TAG: json.dumps(plan, ensure_ascii=False)}
    write_cog(output, answers.grid.geobox(raster), bands, blocks, tags)


def _blocks(answers: Answers, stored: Callable[[np.ndarray], np.ndarray]) -> Iterator[Block]:
    for piece, values in answers:
        yield piece.rows.start, piece.cols.start, np.moveaxis(stored(values), 2, 0)


def _scales(answers: Answers) -> tuple[Float[np.ndarray, " dim"], Float[np.ndarray, " dim"]]:
    """Scale and offset of every dimension that spread its own range over -127..127, so that no
    value is off by more than half a scale.
    """
    low = np.full(answers.num_dims, np.inf)
    high = -low
    for _, values in answers:
        valid = values[~np.isnan(values[..., 0])].astype(np.float64)
        if len(valid):
            low, high = np.minimum(low, valid.min(0)), np.maximum(high, valid.max(0))
    low, high = (np.where(np.isfinite(each), each, 0) for each in (low, high))
    scales = np.where(high > low, (high - low) / (2 * _INT8_MOST), 1)
    return scales, (low + high) / 2


def _quantised(
    values: Float[np.ndarray, "row col dim"],
    scales: Float[np.ndarray, " dim"],
    offsets: Float[np.ndarray, " dim"],
) -> Shaped[np.ndarray, "row col dim"]:
    levels = np.clip(np.rint((values - offsets) / scales), -_INT8_MOST, _INT8_MOST)
    return np.where(np.isnan(values), _INT8_NODATA, levels).astype(np.int8)


def _rows_of_raster(answers: Answers, raster: GeoBox) -> Iterator[Rows]:
    grid, (a, b, c, d, e, f) = answers.grid, raster.affine[:6]
    for piece, values in answers:
        row, col = np.nonzero(~np.isnan(values[..., 0]))
        if not len(row):
            continue
        vectors = values[row, col]
        row, col = row + piece.rows.start, col + piece.cols.start
        cols, rows = corners(row * grid.stride_px, col * grid.stride_px, grid.patch_px)
        outlines = np.stack([a * cols + b * rows + c, d * cols + e * rows + f])
        centres = to_lonlat(raster, np.stack([cols, rows]).mean(2))
        yield Rows({"row": row, "col": col}, centres, vectors, outlines)


# Datasets


def _squares(
    ask: PerToken, dataset: Dataset, grid: TokenGrid, chips: Sequence[int]
) -> Float[np.ndarray, "chip row col dim"]:
    """The vectors of all patches of some stored squares, NaN where there is no valid pixel."""
    height, width = grid.shape_px
    stored = np.stack([dataset.image(chip)[:, :height, :width] for chip in chips])
    valid = np.stack([dataset.valid(chip)[:height, :width] for chip in chips])
    image = physical_units(torch.from_numpy(stored), dataset.sensor)
    return blended_squares(image, torch.from_numpy(valid), ask, grid)


def _rows_of_dataset(
    dataset: Dataset, groups: Sequence[range], files: Sequence[Path], patch_px: int, level: str
) -> Iterator[Rows]:
    columns = {name: dataset.column(name) for name in (*_COLUMNS, "x", "y")}
    regions = {name: dataset.geobox(name) for name in dataset.regions}
    for group, file in zip(groups, files, strict=True):
        values, chips = np.load(file), np.arange(group.start, group.stop)
        for region in dict.fromkeys(columns["region"][chips]):
            inside = columns["region"][chips] == region
            own = {"chip": chips, **{name: each[chips] for name, each in columns.items()}}
            own = {name: each[inside] for name, each in own.items()}
            of_region, size_px = values[inside], patch_px
            if level == "chip":
                of_region, size_px = _means(of_region), dataset.size_px
            if not np.isnan(of_region[..., 0]).all():
                yield _rows_of_region(regions[region], own, of_region, size_px)


def _means(values: Float[np.ndarray, "chip row col dim"]) -> Float[np.ndarray, "chip 1 1 dim"]:
    """Means over valid patches; NaN where there is none."""
    known = ~np.isnan(values)
    count = known.sum((1, 2), keepdims=True)
    total = np.where(known, values, 0).sum((1, 2), keepdims=True, dtype=np.float32)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(values.dtype)


def _rows_of_region(
    region: GeoBox,
    columns: Mapping[str, Shaped[np.ndarray, " chip"]],
    values: Float[np.ndarray, "chip row col dim"],
    size_px: int,
) -> Rows:
    """One row for every square of ``size_px`` pixels, side by side in chips of one region."""
    chip, row, col = np.nonzero(~np.isnan(values[..., 0]))
    places = {name: each[chip] for name, each in columns.items()}
    a, b, c, d, e, f = (~region.affine)[:6]
    x, y = places.pop("x"), places.pop("y")  # chips may begin between pixels
    outlines = corners(
        d * x + e * y + f + row * size_px, a * x + b * y + c + col * size_px, size_px
    )
    places["row"] = places["row"] + row * size_px
    places["col"] = places["col"] + col * size_px
    lonlat = to_lonlat(region, outlines.reshape(2, -1)).reshape(outlines.shape)
    lonlat[0] -= 360 * np.floor((lonlat[0, :, :1] + 180) / 360)
    centres = to_lonlat(region, outlines.mean(2))
    return Rows(places, centres, values[chip, row, col], lonlat)
