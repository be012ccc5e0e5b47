"""Vectors of a raster of any size, or a run's of a dataset, as files that other programs open."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Shaped
from odc.geo.geobox import GeoBox
from pyproj import CRS

from bharateo.chips.store import Dataset
from bharateo.errors import ConfigError
from bharateo.files import clear_scratch, scratch
from bharateo.geography import to_lonlat
from bharateo.inference.encoder import (
    CHIPS_AT_ONCE,
    FrozenEncoder,
    PerToken,
    Readout,
)
from bharateo.inference.inputs import RasterInput
from bharateo.inference.pixel_features import band_features, energy_features, in_cells
from bharateo.inference.products import MadeBy, MadeOf, ProductPlan
from bharateo.inference.table import Rows, corners, write_table
from bharateo.inference.tiles import (
    CellGrid,
    Progress,
    Tile,
    TilePredictions,
    TokenGrid,
    blended_squares,
    keep_all,
    pixels_under,
    predict_tiles,
)
from bharateo.outputs import Own, json_of
from bharateo.pixels.cog import Bands, Block, write_cog
from bharateo.pixels.product import holding, item_path, provenance_of, write_item
from bharateo.training.data import physical_units
from bharateo.training.run import Run, dataset_fingerprint
from bharateo.version import __version__

CELL_PX = 16
"""Side of the cells of vectors that need no run: that of most runs' patches."""

_INT8_NODATA, _INT8_MOST = -128, 127

_COLUMNS = ("region", "split", "block", "row", "col", "scene", "datetime")
"""Of the table of chips, in the table of a dataset."""


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
    tokens (None: half a chip); ``level``: one row a patch or a chip, of datasets; ``readout``: of
    the chip as it is, or the mean over its views.
    """

    dtype: str = "float16"
    stride_px: int | None = None
    step: int | None = None
    precision: str = "fp32"
    level: str = "patch"
    readout: Readout = "token"

    def predicting(self, encoder: FrozenEncoder) -> PerToken:
        """The vectors of chips in this precision, read out in this way."""
        return encoder.in_precision(encoder.read_out(self.readout), self.precision)

    @property
    def kept_as(self) -> str:
        """How vectors are kept until all are there."""
        return "float16" if self.dtype == "float16" else "float32"


class EmbeddingRecord(ProductPlan):
    """What an embedding was made of and how, as it stands in its files."""

    options: Embedding


class FeatureRecord(ProductPlan):
    """What vectors that nothing was trained for were made of, and of what they consist."""

    features: dict[str, str]
    cell_px: int


def embed_features(
    source: RasterInput, output: Path, progress: Progress, say: Callable[[str], object]
) -> None:
    """Write vectors of a raster that need no run, as a COG: a pixel for each cell of ``CELL_PX``
    pixels, and in it the means of bands, indices and log-energies of whitened filters
    (``inference.pixel_features``).

    Raises:
        SourceError, StorageError: pixels cannot be read, the file cannot be written.
    """
    kinds = [each for each in (band_features(source), energy_features(source)) if each is not None]
    grid = CellGrid(source.shape, CELL_PX, CELL_PX, CELL_PX)
    plan = FeatureRecord(
        schema_version=1,
        product="embedding",
        code_version=__version__,
        run=None,
        source=source.made_of,
        features={each.name: each.meaning for each in kinds},
        cell_px=CELL_PX,
    ).sealed()

    def means(tile: Tile) -> Float[np.ndarray, "row col dim"]:
        box = pixels_under(tile, grid)
        return np.concatenate([in_cells(each.of(box), CELL_PX) for each in kinds], 2)

    def make(folder: Path, missing: Sequence[Path]) -> None:
        tiles = grid.tiles()
        makers = {tile.name: partial(means, tile) for tile in tiles}
        keep_all(folder, makers, "float32", progress)
        vectors = TilePredictions(grid, tiles, folder)
        for each in missing:
            _write_cog(each, vectors, source.geobox, "float32", plan)

    _write([output], plan, (), [grid.geobox(source.geobox)], make, say)


def embed_raster(
    run: Run,
    source: RasterInput,
    outputs: Sequence[Path],
    how: Embedding,
    progress: Progress,
    say: Callable[[str], object],
) -> None:
    """Write the vectors of a raster as a COG (.tif), a GeoParquet file (.parquet), or both; by a
    run as it takes the raster's bands.

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

    plan = _plan(run, how, source.made_of)

    def make(folder: Path, missing: Sequence[Path]) -> None:
        predict = how.predicting(encoder)
        vectors = predict_tiles(grid, source.read, predict, folder, progress, how.kept_as)
        for output in missing:
            if output.suffix == ".parquet":
                rows = _rows_of_raster(vectors, source.geobox)
                write_table(output, rows, CRS(str(source.geobox.crs)), plan)
            else:
                _write_cog(output, vectors, source.geobox, how.dtype, plan)

    where = [grid.geobox(source.geobox)]
    _write(outputs, plan, run.contract.attribution, where, make, say)


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
    if how.stride_px not in (None, run.model.config.patch_px):
        raise ConfigError(f"--stride {how.stride_px} is for rasters: leave it out for a dataset")
    run, dataset = run.meeting(dataset)
    run.check(dataset)
    source = MadeOf(
        identity=dataset_fingerprint(dataset),
        dataset=str(dataset.path),
        attribution=list(dataset.attribution),
    )
    if run.band_set is not None:
        say(f"bands: {dataset.path} is read in {run.bands_read}")
        source = source.model_copy(update={"bands": list(run.sensor.band_names)})

    plan = _plan(run, how, source)

    def make(folder: Path, missing: Sequence[Path]) -> None:
        encoder = FrozenEncoder.of_run(run)
        patch_px = encoder.patch_px
        side_px = dataset.size_px // patch_px * patch_px
        grid = TokenGrid((side_px, side_px), encoder.chip_px, patch_px, how.step)
        predict = how.predicting(encoder)

        def vectors(chips: range) -> Float[np.ndarray, "chip row col dim"]:
            stored = np.stack([dataset.image(chip)[:, :side_px, :side_px] for chip in chips])
            valid = np.stack([dataset.valid(chip)[:side_px, :side_px] for chip in chips])
            image = physical_units(torch.from_numpy(stored), dataset.sensor)
            return blended_squares(image, torch.from_numpy(valid), predict, grid)

        groups = [
            range(first, min(first + CHIPS_AT_ONCE, dataset.num_chips))
            for first in range(0, dataset.num_chips, CHIPS_AT_ONCE)
        ]
        makers = {str(group.start): partial(vectors, group) for group in groups}
        files = keep_all(folder, makers, how.kept_as, progress)
        rows = _rows_of_dataset(dataset, groups, files, patch_px, how.level)
        write_table(outputs[0], rows, CRS("EPSG:4326"), plan)

    regions = [dataset.geobox(name) for name in dataset.regions]
    _write(outputs, plan, run.contract.attribution, regions, make, say)


def _check(outputs: Sequence[Path], how: Embedding) -> None:
    for output in outputs:
        if output.suffix not in (".tif", ".parquet"):
            raise ConfigError(f"--output {output}: the name must end in .tif or .parquet")
        if output.suffix == ".parquet" and how.dtype == "int8":
            raise ConfigError(
                f"--dtype int8 cannot be kept in {output}, which has no scale for each dimension: "
                "use float16, or write a .tif"
            )


def _plan(run: Run, how: Embedding, source: MadeOf) -> EmbeddingRecord:
    return EmbeddingRecord(
        schema_version=1,
        product="embedding",
        code_version=__version__,
        run=MadeBy.of(run),
        source=source,
        options=how,
    ).sealed()


def _write(
    outputs: Sequence[Path],
    plan: ProductPlan,
    attribution: Sequence[str],
    geoboxes: Sequence[GeoBox],
    make: Callable[[Path, Sequence[Path]], None],
    say: Callable[[str], object],
) -> None:
    """Make the outputs that are not there yet, of the same, and the STAC Item beside each."""

    def write_items() -> None:
        lines = list(dict.fromkeys([*attribution, *plan.source.attribution]))
        for output in outputs:
            if not item_path(output).exists():
                write_item(output, plan, geoboxes, {"vectors": output}, lines)

    missing = []
    for output in outputs:
        if provenance_of(output).get("fingerprint") == plan.fingerprint:
            say(f"{output} is there already, made of the same")
        else:
            missing.append(output)
    if not missing:
        write_items()
        clear_scratch(outputs[0], plan.fingerprint, say)
        return
    with scratch(outputs[0], plan.fingerprint, say) as folder:
        for output in missing:
            item_path(output).unlink(missing_ok=True)  # of an older one
        make(folder, missing)
        write_items()


# Rasters


def _write_cog(
    output: Path, vectors: TilePredictions, raster: GeoBox, dtype: str, plan: ProductPlan
) -> None:
    names = tuple(f"dim_{dim}" for dim in range(vectors.num_dims))
    bands = Bands(dtype, names, float("nan"))
    scales, offsets = np.ones(0), np.zeros(0)
    if dtype == "int8":
        # Every dimension spreads its own range over -127..127: no value is off by more than half
        # a scale.
        low, high = np.full(len(names), np.inf), np.full(len(names), -np.inf)
        for _, values in vectors:
            valid = values[~np.isnan(values[..., 0])].astype(np.float64)
            if len(valid):
                low, high = np.minimum(low, valid.min(0)), np.maximum(high, valid.max(0))
        low, high = (np.where(np.isfinite(each), each, 0) for each in (low, high))
        scales = np.where(high > low, (high - low) / (2 * _INT8_MOST), 1)
        offsets = (low + high) / 2
        bands = Bands(dtype, names, _INT8_NODATA, tuple(scales.tolist()), tuple(offsets.tolist()))

    def blocks() -> Iterator[Block]:
        for tile, values in vectors:
            stored: np.ndarray = values
            if dtype == "int8":
                levels = np.clip(np.rint((values - offsets) / scales), -_INT8_MOST, _INT8_MOST)
                stored = np.where(np.isnan(values), _INT8_NODATA, levels).astype(np.int8)
            yield tile.rows.start, tile.cols.start, np.moveaxis(stored, 2, 0)

    write_cog(output, vectors.grid.geobox(raster), bands, blocks(), plan.tags)


def _rows_of_raster(vectors: TilePredictions, raster: GeoBox) -> Iterator[Rows]:
    grid, (a, b, c, d, e, f) = vectors.grid, raster.affine[:6]
    for tile, values in vectors:
        row, col = np.nonzero(~np.isnan(values[..., 0]))
        if not len(row):
            continue
        valid = values[row, col]
        row, col = row + tile.rows.start, col + tile.cols.start
        cols, rows = corners(row * grid.stride_px, col * grid.stride_px, grid.patch_px)
        outlines = np.stack([a * cols + b * rows + c, d * cols + e * rows + f])
        centres = to_lonlat(raster, np.stack([cols, rows]).mean(2))
        yield Rows({"row": row, "col": col}, centres, valid, outlines)


# Datasets


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
