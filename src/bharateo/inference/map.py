"""A map of a raster: classes, probabilities, how sure, how familiar, and whose area.

::

    MAP.tif                 class ids (255: no data), with colours and names
    MAP.qml                 the style that QGIS takes for MAP.tif by itself; one beside each .tif
    MAP.qlr                 every band of every file as a styled layer, to drag into QGIS
    MAP.png                 a picture with legend, scale bar and attribution
    MAP-probabilities.tif   per cent, one band a class
    MAP-uncertainty.tif     entropy (per cent of the most possible), out of domain (0 or 1), and the
                            distance from the training features (per cent of the limit, 250 at most)
    MAP-suspect.tif         with reference labels: suspect (0 or 1), the label's class, the per cent
                            that the map gives to it, and its share of the patch (per cent)
    MAP-layers.tif          of a run whose heads offer more layers: one band each (float32)
    MAP.tif.stac.json       a STAC Item of all these
    MAP.json                areas, agreement and provenance; written last

The others are uint8 with 255 for no data. The model predicts every tile once, and one sweep over
the tiles writes all files. Axes: row col cls; row and col count cells (``tiles.CellGrid``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from odc.geo.geobox import GeoBox
from pydantic import Field
from torch import Tensor

from bharateo.artefacts import Record, checked
from bharateo.errors import ConfigError
from bharateo.files import clear_scratch, read_bytes, scratch, write_json
from bharateo.geography import cell_areas as ground_areas
from bharateo.inference.class_raster import ClassRaster
from bharateo.inference.domain import QUANTILE, Domain, Views, pixel_statistics
from bharateo.inference.encoder import FrozenEncoder, PerToken, RunLayer
from bharateo.inference.inputs import RasterInput
from bharateo.inference.labels import LabelAgreement, Labels, compare, label_counts
from bharateo.inference.products import MadeBy, ProductPlan
from bharateo.inference.tiles import (
    TILE_TOKENS,
    CellGrid,
    Progress,
    Tile,
    TilePredictions,
    predict_tiles,
)
from bharateo.landcover import BHARATEO_CLASSES, IGNORE, NUM_CLASSES, LandCoverClass
from bharateo.models.heads import Layer
from bharateo.outputs import Own, beginning_with, check_outputs, json_of, record_in
from bharateo.pixels.cog import Bands, cog_writer
from bharateo.pixels.formats import open_local
from bharateo.pixels.picture import PICTURE_MARK, write_picture
from bharateo.pixels.product import holding, item_path, write_item
from bharateo.pixels.styles import (
    STYLE_MARK,
    BandStyle,
    class_style,
    measured_style,
    probability_styles,
    suspect_styles,
    uncertainty_styles,
    write_styles,
)
from bharateo.training.contract import Differences
from bharateo.training.run import Run
from bharateo.version import __version__

NODATA = IGNORE
_MOST_DISTANCE = 2.5
_TILE_PX = 512
"""Side of a tile of a map that has a cell a pixel."""

_FARTHEST = 1000.0
"""Distances are kept as half floats, which end at 65,504."""


# What predicts


Look = Callable[[Tensor, Tensor], tuple[Float[Tensor, "batch token _"], ...]]
"""(image, valid) -> of every token the encoder's features, the logits of the classes, and the
values of other layers."""


@dataclass(frozen=True)
class Classifier:
    """What tells classes apart: ``look`` gives features, logits, and values of ``others``.

    Logits, not probabilities, are averaged over windows: those of a probe are linear in its
    features, so the map says of a place what the probe says of its blended vector. ``about`` are
    the fields of ``MapPlan`` that say which classifier it is. With ``pixels`` logits are not of
    every token but of every pixel, row-major.
    """

    encoder: FrozenEncoder
    classes: tuple[LandCoverClass, ...]
    look: Look
    about: Mapping[str, str]
    others: tuple[RunLayer, ...] = ()
    pixels: bool = False


def head_classifier(run: Run) -> Classifier:
    """The first of the run's layers that tells classes apart, and beside it all others.

    Raises:
        RunError: none does.
    """
    encoder = FrozenEncoder.of_run(run)
    own = encoder.class_layer
    others = tuple(each for each in encoder.layers if each != own)
    kind = f"{own.layer.name.replace(' ', '-')} head"
    about = {"classifier": kind, "trained on": run.contract.class_scheme.name}

    def look(image: Tensor, valid: Tensor) -> tuple[Tensor, ...]:
        return encoder.predict(image, valid, (own, *others))

    return Classifier(encoder, own.layer.classes, look, about, others)


@dataclass(frozen=True)
class MapRequest:
    """What map to make. Without a ``domain`` familiarity stays unknown; ``labels`` are compared."""

    classifier: Classifier
    domain: Domain | None = None
    labels: Labels | None = None
    stride_px: int | None = None
    precision: str = "fp32"


def predicting(request: MapRequest) -> PerToken:
    """What is predicted of every token (or pixel, where the classifier says so): logits, those or a
    number of each other layer, the distance from the training features, and the share of its cell
    that has data.
    """
    classifier, encoder = request.classifier, request.classifier.encoder
    patch_px = 1 if classifier.pixels else encoder.patch_px
    stride_px = request.stride_px or patch_px
    # The share of a cell that each pixel of its patch has: the stride squared amid it.
    begin = (patch_px - stride_px) / 2  # may lie amid a pixel
    edges = torch.arange(patch_px + 1, dtype=torch.float32).clamp(begin, begin + stride_px)
    along = edges.diff() / stride_px
    inside = along[:, None] * along

    def predict(image: Tensor, valid: Tensor) -> Tensor:
        features, logits, *others = classifier.look(image, valid)
        if request.domain is None:
            distance = torch.full(features.shape[:2], torch.nan)
        else:
            pixels = pixel_statistics(encoder.model, image, valid, encoder.band_set)
            views = Views(features, *pixels)
            distance = request.domain.distance(views).clamp(max=_FARTHEST)
        if classifier.pixels:
            grid = distance.unflatten(1, (encoder.grid, encoder.grid))
            for dim in (1, 2):
                grid = grid.repeat_interleave(encoder.patch_px, dim)
            distance = grid.flatten(1)
        squares = valid.unflatten(2, (-1, patch_px)).unflatten(1, (-1, patch_px))
        share = (squares * inside[:, None]).sum((2, 4)).flatten(1)
        # Logits of classes as they are; of a value for each pixel the mean over the cell.
        layers = [
            values.float() @ inside.flatten()[:, None]
            if values.shape[2] == inside.numel() and not each.layer.classes
            else values
            for each, values in zip(classifier.others, others, strict=True)
        ]
        every = [logits, *layers, distance[..., None], share[..., None]]
        return torch.cat([each.float() for each in every], 2)

    return predict


@dataclass(frozen=True)
class TileCells:
    """What is known of the cells of a tile; NaN where a cell has no data (and where unknown).

    ``share`` of a cell's ground has data: a class is mapped from the whole patch around it.
    """

    probabilities: Float[np.ndarray, "row col cls"]
    others: Float[np.ndarray, "row col layer"]
    distance: Float[np.ndarray, "row col"]
    share: Float[np.ndarray, "row col"]

    @classmethod
    def of(cls, predicted: Float[np.ndarray, "row col dim"], num_classes: int) -> TileCells:
        """From the numbers of ``predicting``."""
        logits = predicted[..., :num_classes].astype(np.float32)
        odds = np.exp(logits - logits.max(2, keepdims=True))
        distance, share = np.moveaxis(predicted[..., -2:].astype(np.float32), 2, 0)
        others = predicted[..., num_classes:-2]
        return cls(odds / odds.sum(2, keepdims=True), others, distance, share)

    @property
    def entropy(self) -> Float[np.ndarray, "row col"]:
        """0 for a sure prediction, 1 for no idea."""
        each = self.probabilities * np.log(np.maximum(self.probabilities, 1e-12))
        entropy: np.ndarray = -each.sum(2) / np.log(self.probabilities.shape[2])
        return entropy

    def classes(self, ids: Sequence[int]) -> UInt8[np.ndarray, "row col"]:
        """Ids of the most probable classes."""
        best = np.array(ids, np.uint8)[np.nan_to_num(self.probabilities).argmax(2)]
        return np.where(np.isnan(self.probabilities[..., 0]), np.uint8(NODATA), best)


# What a map says of itself


class MapClass(Record):
    """A class of a map."""

    id: int
    name: str
    colour: list[int]


class MapOptions(Record):
    """How a map was made."""

    stride_px: int | None
    precision: str


class DomainQuantile(Record):
    """The share of validation ground that counts as inside the domain."""

    quantile: float


class MapPlan(ProductPlan):
    """What decides a map's contents; ``sha256`` is of a probe's file, or of labels and what was
    chosen by them.
    """

    classifier: str
    trained_on: str = Field("", alias="trained on")
    sha256: str = ""
    classes: list[MapClass]
    options: MapOptions
    areas_of: str
    domain: DomainQuantile | None
    labels: dict[str, Any] | None


class ClassArea(Record):
    """What a class covers."""

    name: str = Field(alias="class")
    km2: float
    cells: int
    share: float


class OutOfDomain(Record):
    """The cells out of the run's domain, and their share of those with data."""

    cells: int
    share: float


class MapRecord(MapPlan):
    """A map's ``MAP.json``: its plan, and what was measured."""

    attribution: list[str]
    areas: list[ClassArea]
    km2: float
    no_data_cells: int
    out_of_domain: OutOfDomain | None
    against: LabelAgreement | None

    def lines(self) -> Iterator[str]:
        """For a terminal: areas of the classes that occur, what is out of the domain, and agreement
        with labels.
        """
        width = max(len(each.name) for each in self.areas)
        for each in (each for each in self.areas if each.km2):
            yield f"  {each.name:{width}}  {each.km2:12,.2f} km2  {100 * each.share:5.1f} %"
        yield f"  {'in all':{width}}  {self.km2:12,.2f} km2"
        if self.out_of_domain is not None and self.domain is not None:
            beyond = 100 * (1 - self.domain.quantile)
            yield (
                f"out of the run's domain: {100 * self.out_of_domain.share:.1f} % of the map "
                f"({beyond:.0f} % of the validation ground is)"
            )
        if self.against is not None:
            yield from self.against.lines()


# Files

_SIDES = ("probabilities", "uncertainty", "suspect", "layers")
_STYLES = (".qml", ".qlr")


def products(output: Path) -> dict[str, Path]:
    """The files of a map by what they hold; the record is written last."""
    sides = {name: output.with_name(f"{output.stem}-{name}.tif") for name in _SIDES}
    return {
        "classes": output,
        "style": output.with_suffix(".qml"),
        **sides,
        **{f"{name}-style": side.with_suffix(".qml") for name, side in sides.items()},
        "layer-definition": output.with_suffix(".qlr"),
        "picture": output.with_suffix(".png"),
        "item": item_path(output),
        "record": output.with_suffix(".json"),
    }


def own_products(output: Path) -> dict[Path, Own]:
    """The files of a map that go when it is made anew, and how each is known to be one.

    Not the styles: one that a person has changed stops only a map that must be written anew.
    """
    files = products(output)
    record, item, picture = (files.pop(name) for name in ("record", "item", "picture"))
    rasters = [path for path in files.values() if path.suffix not in _STYLES]
    notes = files["classes"].with_name(f"{files['classes'].name}.aux.xml")
    return {
        **dict.fromkeys(rasters, holding("map")),
        notes: beginning_with("<PAMDataset>"),
        picture: beginning_with(PICTURE_MARK),
        item: json_of("item of map"),
        record: json_of("map"),
    }


def write_map(
    run: Run,
    source: RasterInput,
    output: Path,
    request: MapRequest,
    progress: Progress,
    say: Callable[[str], object],
) -> MapRecord:
    """Write the files of a map; its record. A map that is there, made of the same, is left alone.

    Raises:
        ConfigError: a name or stride that cannot be, labels of other classes than the map's, or a
            style that somebody has changed.
        SourceError, StorageError: pixels or labels cannot be read, files cannot be written.
    """
    classifier, encoder, labels = request.classifier, request.classifier.encoder, request.labels
    if labels is not None and not {*classifier.classes} <= {*BHARATEO_CLASSES}:
        names = ", ".join(each.name for each in classifier.classes)
        raise ConfigError(
            f"--against: the labels are of land-cover classes, the map is of {names}: leave it out"
        )
    if classifier.pixels:
        if request.stride_px not in (None, 1):
            raise ConfigError(
                f"--stride {request.stride_px}: a dense head's map has a cell a pixel; leave it out"
            )
        grid = CellGrid(source.shape, encoder.chip_px, 1, 1, encoder.chip_px // 2)
    else:
        stride_px = request.stride_px or encoder.patch_px
        grid = CellGrid(source.shape, encoder.chip_px, encoder.patch_px, stride_px)
    side = _TILE_PX if classifier.pixels else TILE_TOKENS
    predict = encoder.in_precision(predicting(request), request.precision)
    # Half floats do for logits; what a layer's numbers are nobody knows.
    kept_as = "float32" if classifier.others else "float16"

    def predictions(folder: Path, progress: Progress) -> TilePredictions:
        return predict_tiles(grid, source.read, predict, folder, progress, kept_as, side)

    plan = MapPlan(
        schema_version=1,
        product="map",
        code_version=__version__,
        run=MadeBy.of(run),
        source=source.made_of,
        **classifier.about,
        classes=map_classes(classifier.classes),
        options=MapOptions(
            stride_px=1 if classifier.pixels else request.stride_px, precision=request.precision
        ),
        areas_of=AREAS_OF,
        domain=None if request.domain is None else DomainQuantile(quantile=QUANTILE),
        labels=None if labels is None else dict(labels.identity),
    ).sealed()
    attribution = [*run.contract.attribution, *(labels.source.attribution if labels else ())]
    drawn = Drawn(source, grid, classifier.classes, predictions, attribution, labels,
                  tuple(each.layer for each in classifier.others))  # fmt: skip
    return write_drawn(drawn, plan, output, progress, say)


AREAS_OF = "valid pixels, on the ellipsoid"


def map_classes(classes: Sequence[LandCoverClass]) -> list[MapClass]:
    """Classes as a map's record has them."""
    return [MapClass(id=each.id, name=each.name, colour=list(each.colour)) for each in classes]


@dataclass(frozen=True)
class Drawn:
    """What a map shows: of every cell of ``grid`` the logits of ``classes``, the values of
    ``layers``, the distance from the training features (NaN where unknown) and the share of it that
    has data, NaN where it has none. ``predictions`` makes them in a folder.
    """

    source: RasterInput
    grid: CellGrid
    classes: tuple[LandCoverClass, ...]
    predictions: Callable[[Path, Progress], TilePredictions]
    attribution: Sequence[str]
    labels: Labels | None = None
    layers: tuple[Layer, ...] = ()


def write_drawn(
    drawn: Drawn, plan: MapPlan, output: Path, progress: Progress, say: Callable[[str], object]
) -> MapRecord:
    """Write the files of a map; its record. A map that is there, made by the same plan, is left
    alone.

    Raises:
        ConfigError: a name that cannot be, or a style that somebody has changed.
        ContractError: most of the map is out of the run's domain, and that is not allowed.
        SourceError, StorageError: pixels or labels cannot be read, files cannot be written.
    """
    files, labels = products(output), drawn.labels
    unwanted = {
        *(() if labels is not None else ("suspect", "suspect-style")),
        *(() if drawn.layers else ("layers", "layers-style")),
    }
    there = {name for name, path in files.items() if path.exists()}
    if there >= files.keys() - unwanted:
        found = record_in(read_bytes(files["record"]))
        if found.get("fingerprint") == plan.fingerprint:
            say(f"{output} is there already, made of the same")
            clear_scratch(output, plan.fingerprint, say)
            remedy = "delete it, and make the map again"
            return checked(MapRecord, found, str(files["record"]), ConfigError, remedy)
    styles = [path for path in files.values() if path.suffix in _STYLES]
    check_outputs("map", dict.fromkeys(styles, beginning_with(STYLE_MARK)), ())
    with scratch(output, plan.fingerprint, say) as folder:
        predictions = drawn.predictions(folder, progress)
        if plan.domain is not None and plan.run is not None:
            _check_domain(predictions, drawn.source, plan.run.name)
        for name in ("record", *unwanted):  # of an older map, whose files go now
            files[name].unlink(missing_ok=True)
        measured = _write_tiles(predictions, drawn, plan, files)
        shown = _styles(drawn, files)
        crs = drawn.source.geobox.crs
        assert crs is not None
        layered = {files[name]: each for name, each in shown.items()}
        write_styles(layered, crs, files["layer-definition"])
        attribution = list(dict.fromkeys([*drawn.attribution, *plan.source.attribution]))
        write_picture(files["picture"], ClassRaster.open(output).picture(), attribution)
        record = MapRecord(**plan.to_json(), attribution=attribution, **measured)
        described = {name: path for name, path in files.items() if name != "item" and path.exists()}
        described["record"] = files["record"]
        where = drawn.grid.geobox(drawn.source.geobox)
        write_item(output, plan, [where], described, attribution)
        write_json(files["record"], record.to_json())
    return record


MOST_OUTSIDE = 0.5
"""Share of a map that may be out of the run's domain before it is refused."""


def _check_domain(predictions: TilePredictions, source: RasterInput, run: str) -> None:
    """Refuse a map that says of most of its ground what the run has never learned of.

    Raises:
        ContractError: most is out of the domain, and the user has not allowed that.
    """
    outside = known = 0
    for _, values in predictions:
        distance = values[..., -2]
        outside += int((distance > 1).sum())
        known += int((~np.isnan(distance)).sum())
    if outside > MOST_OUTSIDE * known:
        Differences(source.allow).add(
            "domain",
            f"{outside / known:.0%} of {source.location} is ground unlike all that the run {run} "
            "was trained on",
            "map it with a run trained on such ground",
        )


def _write_tiles(
    predictions: TilePredictions, drawn: Drawn, plan: MapPlan, files: Mapping[str, Path]
) -> dict[str, Any]:
    """Write all files of pixels in one sweep over the tiles; the measured fields of the record."""
    classes, labels, layers = drawn.classes, drawn.labels, drawn.layers
    raster = drawn.source.geobox
    grid, ids = predictions.grid, [each.id for each in classes]
    names = {each.id: each.name for each in classes}
    bands = {
        "classes": Bands(
            "uint8", ("class",), NODATA,
            colours={each.id: each.colour for each in classes},
            categories=tuple(names.get(number, "") for number in range(max(ids) + 1)),
            overviews="mode",
        ),
        "probabilities": Bands("uint8", tuple(names.values()), NODATA),
        "uncertainty": Bands(
            "uint8", ("entropy", "out of domain", "distance"), NODATA, overviews="nearest"
        ),
    }  # fmt: skip
    if labels is not None:
        bands["suspect"] = Bands(
            "uint8", ("suspect", "label", "given to the label", "purity of the label"), NODATA,
            overviews="nearest",
        )  # fmt: skip
    if layers:
        bands["layers"] = Bands(
            "float32",
            tuple(f"{each.name} ({each.unit})" if each.unit else each.name for each in layers),
            float("nan"),
            overviews="nearest" if any(each.classes for each in layers) else "average",
        )
    km2, cells = np.zeros(256), np.zeros(256, np.int64)
    confusion = np.zeros((NUM_CLASSES, NUM_CLASSES), np.int64)
    suspect = np.zeros(NUM_CLASSES, np.int64)
    outside = known = 0
    with ExitStack() as stack:
        write = {
            name: stack.enter_context(cog_writer(files[name], grid.geobox(raster), each, plan.tags))
            for name, each in bands.items()
        }
        for tile, values in predictions:
            row, col = tile.rows.start, tile.cols.start
            here = TileCells.of(values, len(ids))
            mapped, distance = here.classes(ids), here.distance
            beyond = np.where(np.isnan(distance), NODATA, distance > 1).astype(np.uint8)
            write["classes"](row, col, mapped[None])
            write["probabilities"](row, col, np.moveaxis(per_cent(here.probabilities), 2, 0))
            shown_distance = per_cent(np.minimum(distance, _MOST_DISTANCE))
            write["uncertainty"](
                row, col, np.stack([per_cent(here.entropy), beyond, shown_distance])
            )
            if labels is not None:
                counts = label_counts(labels.source, raster, grid, tile)
                beside = compare(here.probabilities, ids, counts)
                labelled = beside.label != IGNORE
                np.add.at(confusion, (beside.label[labelled], mapped[labelled]), 1)
                suspect += np.bincount(beside.label[beside.suspect], minlength=NUM_CLASSES)
                given, purity = per_cent(np.nan_to_num(beside.given)), per_cent(beside.purity)
                shown_bands = np.stack([beside.suspect, beside.label, given, purity])
                write["suspect"](row, col, np.where(labelled, shown_bands, NODATA).astype(np.uint8))
            if layers:
                write["layers"](row, col, _bands_of_layers(here, layers))
            area = cell_areas(grid, raster, tile) * np.nan_to_num(here.share)
            km2 += np.bincount(mapped.ravel(), area.ravel(), 256)
            cells += np.bincount(mapped.ravel(), minlength=256)
            outside += int((distance > 1).sum())
            known += int((~np.isnan(distance)).sum())
    total = km2[ids].sum()
    return {
        "areas": [
            {"class": each.name, "km2": float(km2[each.id]), "cells": int(cells[each.id]),
             "share": float(km2[each.id] / total) if total else 0.0}
            for each in classes
        ],
        "km2": float(total),
        "no_data_cells": int(cells[NODATA]),
        "out_of_domain": {"cells": outside, "share": outside / known} if known else None,
        "against": labels and LabelAgreement.of(labels.source.name, confusion, suspect),
    }  # fmt: skip


def _styles(drawn: Drawn, files: Mapping[str, Path]) -> dict[str, list[BandStyle]]:
    """How every band is shown, by the file it is in."""
    found = {
        "classes": class_style(drawn.classes),
        "probabilities": probability_styles(drawn.classes),
        "uncertainty": uncertainty_styles(),
    }
    if drawn.labels is not None:
        found["suspect"] = suspect_styles(BHARATEO_CLASSES)
    if drawn.layers:
        opened = open_local(files["layers"])
        assert opened is not None
        noted = [opened.dataset.tags(number) for number in opened.dataset.indexes]
        opened.close()
        found["layers"] = [
            BandStyle(layer.name, band, layer.classes)
            if layer.classes
            else measured_style(layer.name, band, tags)
            for band, (layer, tags) in enumerate(zip(drawn.layers, noted, strict=True), 1)
        ]
    return found


def _bands_of_layers(
    cells: TileCells, layers: Sequence[Layer]
) -> Float[np.ndarray, "layer row col"]:
    """The values of layers; of classes the id of the likeliest."""
    found, first = [], 0
    for layer in layers:
        num = max(len(layer.classes), 1)
        values = cells.others[..., first : first + num]
        first += num
        best = np.array([each.id for each in layer.classes] or [0])[values.argmax(2)]
        known = ~np.isnan(values[..., 0])
        found.append(np.where(known, best if layer.classes else values[..., 0], np.nan))
    return np.stack(found).astype(np.float32)


def per_cent(values: Float[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    """Shares in whole per cent, nodata for NaN."""
    return np.where(np.isnan(values), NODATA, np.rint(100 * values)).astype(np.uint8)


def cell_areas(grid: CellGrid, raster: GeoBox, tile: Tile) -> Float[np.ndarray, "row col"]:
    """km2 of the cells of a tile on the ellipsoid, also of what sticks out of the raster."""
    km2: np.ndarray = ground_areas(grid.geobox(raster)[tile.rows, tile.cols]) / 1e6
    return km2
