"""A land-cover map of a raster: classes, probabilities, how sure, how familiar, and whose area.

::

    MAP.tif                 class ids (255: no data), with colours and names
    MAP.qml                 the style that QGIS takes for MAP.tif by itself
    MAP-probabilities.tif   per cent, one band a class
    MAP-uncertainty.tif     entropy (per cent of the most possible), out of domain (0 or 1), and the
                            distance from the training features (per cent of the limit, 250 at most)
    MAP-suspect.tif         with reference labels: suspect (0 or 1), the label's class, the per cent
                            that the map gives to it, and its share of the patch (per cent)
    MAP.tif.stac.json       a STAC Item of all these
    MAP.json                areas, agreement and provenance; written last

All are uint8 with 255 for no data. Axes: row col cls; row and col count cells
(``inference.pieces.CellGrid``).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from odc.geo.geobox import GeoBox
from pyproj import Geod
from torch import Tensor

from bharateo.errors import ConfigError
from bharateo.files import read_bytes, write_json
from bharateo.geography import to_lonlat
from bharateo.inference.classifier import Classifier
from bharateo.inference.domain import QUANTILE, Domain, Views, pixel_statistics
from bharateo.inference.embed import COG_TAG, holding
from bharateo.inference.encoder import PerToken
from bharateo.inference.inputs import RasterInput
from bharateo.inference.labels import (
    DOUBTED,
    PURE,
    Comparison,
    Labels,
    agreement,
    compare,
    label_counts,
)
from bharateo.inference.pieces import (
    Answers,
    CellGrid,
    Progress,
    answer_all,
    clear_scratch,
    fingerprint,
    in_precision,
    scratch,
)
from bharateo.inference.product_item import item_path, write_item
from bharateo.inference.style import STYLE_MARK, write_class_style
from bharateo.inference.windows import Piece
from bharateo.landcover import BHARATEO_CLASSES, IGNORE, NUM_CLASSES, LandCoverClass
from bharateo.models.mae import MaskedAutoencoder
from bharateo.outputs import Own, beginning_with, check_outputs, json_of, record_in
from bharateo.pixels.cog import Bands, Block, write_cog
from bharateo.sources import LabelSource
from bharateo.training.run import Run
from bharateo.version import __version__

NODATA = IGNORE
_MOST_DISTANCE = 2.5
_FARTHEST = 1000.0
"""Distances are kept as half floats, which end at 65,504."""

_ELLIPSOID = Geod(ellps="WGS84")


@dataclass(frozen=True)
class Request:
    """What map to make. Without a ``domain`` familiarity stays unknown; ``labels`` are compared."""

    classifier: Classifier
    domain: Domain | None = None
    labels: Labels | None = None
    stride_px: int | None = None
    precision: str = "fp32"


@dataclass(frozen=True)
class Cells:
    """The answers of a piece of a map; NaN where a cell has no data (and where unknown).

    ``share`` of a cell's ground has data: a class is mapped from the whole patch around it.
    """

    probabilities: Float[np.ndarray, "row col cls"]
    distance: Float[np.ndarray, "row col"]
    share: Float[np.ndarray, "row col"]

    @classmethod
    def of(cls, answers: Float[np.ndarray, "row col dim"]) -> Cells:
        """From logits, the distance after them, and the share of data at the end."""
        logits = answers[..., :-2].astype(np.float32)
        odds = np.exp(logits - logits.max(2, keepdims=True))
        distance, share = np.moveaxis(answers[..., -2:].astype(np.float32), 2, 0)
        return cls(odds / odds.sum(2, keepdims=True), distance, share)

    @property
    def valid(self) -> Bool[np.ndarray, "row col"]:
        """Where there is data."""
        return ~np.isnan(self.probabilities[..., 0])

    @property
    def entropy(self) -> Float[np.ndarray, "row col"]:
        """0 for a sure answer, 1 for no idea."""
        each = self.probabilities * np.log(np.maximum(self.probabilities, 1e-12))
        entropy: np.ndarray = -each.sum(2) / np.log(self.probabilities.shape[2])
        return entropy

    def classes(self, ids: Sequence[int]) -> UInt8[np.ndarray, "row col"]:
        """Ids of the most probable classes."""
        best = np.array(ids, np.uint8)[np.nan_to_num(self.probabilities).argmax(2)]
        return np.where(self.valid, best, np.uint8(NODATA))


def products(output: Path) -> dict[str, Path]:
    """The files of a map by what they hold; the record is written last."""
    sides = ("probabilities", "uncertainty", "suspect")
    return {
        "classes": output,
        "style": output.with_suffix(".qml"),
        **{name: output.with_name(f"{output.stem}-{name}.tif") for name in sides},
        "item": item_path(output),
        "record": output.with_suffix(".json"),
    }


def own_products(output: Path) -> dict[Path, Own]:
    """The files of a map that go when it is made anew, and how each is known to be one.

    Not the style: one that a person has changed stops only a map that must be written anew.
    """
    files = products(output)
    record, item = files.pop("record"), files.pop("item")
    del files["style"]
    notes = files["classes"].with_name(f"{files['classes'].name}.aux.xml")
    return {
        **dict.fromkeys(files.values(), holding("map")),
        notes: beginning_with("<PAMDataset>"),
        item: json_of("item of map"),
        record: json_of("map"),
    }


def write_map(
    run: Run,
    source: RasterInput,
    output: Path,
    request: Request,
    progress: Progress,
    say: Callable[[str], object],
) -> dict[str, Any]:
    """Write the files of a map; its record. A map that is there, made of the same, is left alone.

    Raises:
        ConfigError: a name or stride that cannot be, labels of other classes than the map's, or a
            style that somebody has changed.
        SourceError, StorageError: pixels or labels cannot be read, files cannot be written.
    """
    _check(output, request)
    plan, files = _plan(run, source, request), products(output)
    if (there := _finished(files, request, plan)) is not None:
        say(f"{output} is there already, made of the same")
        clear_scratch(output, plan, say)
        return there
    check_outputs("map", {files["style"]: beginning_with(STYLE_MARK)}, ())
    config = run.model.config
    stride = request.stride_px or config.patch_px
    grid = CellGrid(source.shape, config.chip_px, config.patch_px, stride)
    ask = in_precision(asking(request, run.model), request.precision)
    with scratch(output, plan, say) as folder:
        answers = answer_all(grid, source.read, ask, folder, progress, "float16")
        files["record"].unlink(missing_ok=True)  # of an older map, whose files go now
        record = {
            **plan,
            "attribution": _attribution(run, request),
            **_summary(answers, source.geobox, request),
            **_write_all(files, answers, source.geobox, request, plan),
        }
        described = {name: path for name, path in files.items() if name != "item" and path.exists()}
        described["record"] = files["record"]
        geobox = grid.geobox(source.geobox)
        write_item(output, plan, [geobox], described, record["attribution"])
        write_json(files["record"], record)
    return record


def asking(request: Request, model: MaskedAutoencoder) -> PerToken:
    """What is asked of every token: logits, then the distance from the training features, then
    the share of its cell that has data.
    """
    patch_px = model.config.patch_px
    stride_px = request.stride_px or patch_px

    def ask(image: Tensor, valid: Tensor) -> Tensor:
        features, logits = request.classifier.look(image, valid)
        if request.domain is None:
            distance = torch.full(features.shape[:2], torch.nan)
        else:
            views = Views(features, *pixel_statistics(model, image, valid))
            distance = request.domain.distance(views).clamp(max=_FARTHEST)
        share = shares_of_cells(valid, patch_px, stride_px)
        return torch.cat([logits.float(), distance[..., None], share[..., None]], 2)

    return ask


def shares_of_cells(
    valid: Bool[Tensor, "batch row col"], patch_px: int, stride_px: int
) -> Float[Tensor, "batch token"]:
    """Of every token's cell, the ``stride_px`` squared amid its patch, the share that is valid."""
    begin = (patch_px - stride_px) / 2  # may lie amid a pixel
    edges = torch.arange(patch_px + 1, dtype=torch.float32).clamp(begin, begin + stride_px)
    along = edges.diff() / stride_px
    squares = valid.unflatten(2, (-1, patch_px)).unflatten(1, (-1, patch_px))
    shares = (squares * (along[:, None, None] * along)).sum((2, 4))
    return shares.flatten(1)


def _check(output: Path, request: Request) -> None:
    if output.suffix != ".tif":
        raise ConfigError(f"--output {output}: a map is a .tif, its other files get their names")
    if request.labels is not None and not {*request.classifier.classes} <= {*BHARATEO_CLASSES}:
        names = ", ".join(each.name for each in request.classifier.classes)
        raise ConfigError(
            f"--against: the labels are of land-cover classes, the map is of {names}: leave it out"
        )


def _plan(run: Run, source: RasterInput, request: Request) -> dict[str, Any]:
    """What decides a map's contents, and its provenance."""
    plan = {
        "product": "map",
        "code_version": __version__,
        "run": {"name": run.path.resolve().name, "weights_sha256": run.weights_sha256},
        "source": {**source.provenance, "identity": source.identity},
        **request.classifier.about,
        "classes": [
            {"id": each.id, "name": each.name, "colour": list(each.colour)}
            for each in request.classifier.classes
        ],
        "options": {"stride_px": request.stride_px, "precision": request.precision},
        "areas_of": "valid pixels, on the ellipsoid",
        "domain": None if request.domain is None else {"quantile": QUANTILE},
        "labels": None if request.labels is None else dict(request.labels.identity),
    }
    return {**plan, "fingerprint": fingerprint(plan)}


def _finished(
    files: dict[str, Path], request: Request, plan: dict[str, Any]
) -> dict[str, Any] | None:
    """The record of a map that is there whole and made of the same."""
    needed = [path for name, path in files.items() if name != "suspect" or request.labels]
    if not all(path.exists() for path in needed):
        return None
    record = record_in(read_bytes(files["record"]))
    return record if record.get("fingerprint") == plan["fingerprint"] else None


def _attribution(run: Run, request: Request) -> list[str]:
    own = run.contract.attribution
    labels = () if request.labels is None else request.labels.source.attribution
    return list(dict.fromkeys((*own, *labels)))


# Files


def _write_all(
    files: dict[str, Path], answers: Answers, raster: GeoBox, request: Request, plan: dict[str, Any]
) -> dict[str, Any]:
    """Write all but the record; what the labels say, for it."""
    classes = request.classifier.classes
    ids, names = [each.id for each in classes], tuple(each.name for each in classes)
    tags = {COG_TAG: json.dumps(plan, ensure_ascii=False)}
    write = partial(write_cog, geobox=answers.grid.geobox(raster), tags=tags)
    write(
        files["classes"],
        bands=_class_band(classes),
        blocks=_blocks(answers, lambda cells: cells.classes(ids)[None]),
    )
    write_class_style(files["style"], classes)
    write(
        files["probabilities"],
        bands=Bands("uint8", names, NODATA),
        blocks=_blocks(answers, _probability_bands),
    )
    write(files["uncertainty"], bands=_UNCERTAINTY, blocks=_blocks(answers, _uncertainty_bands))
    if request.labels is None:
        files["suspect"].unlink(missing_ok=True)  # of an older map
        return {"against": None}
    found = Disagreement(request.labels.source, ids)
    write(files["suspect"], bands=_SUSPECT, blocks=found.blocks(answers, raster))
    return {"against": found.record()}


def _class_band(classes: Sequence[LandCoverClass]) -> Bands:
    names = {each.id: each.name for each in classes}
    return Bands(
        "uint8",
        ("class",),
        NODATA,
        colours={each.id: each.colour for each in classes},
        categories=tuple(names.get(number, "") for number in range(max(names) + 1)),
        overviews="mode",
    )


_UNCERTAINTY = Bands("uint8", ("entropy", "out of domain", "distance"), NODATA, overviews="nearest")
_SUSPECT = Bands(
    "uint8",
    ("suspect", "label", "given to the label", "purity of the label"),
    NODATA,
    overviews="nearest",
)


def _blocks(
    answers: Answers, bands: Callable[[Cells], UInt8[np.ndarray, "band row col"]]
) -> Iterator[Block]:
    for piece, values in answers:
        yield piece.rows.start, piece.cols.start, bands(Cells.of(values))


def _probability_bands(cells: Cells) -> UInt8[np.ndarray, "band row col"]:
    return np.moveaxis(per_cent(cells.probabilities), 2, 0)


def _uncertainty_bands(cells: Cells) -> UInt8[np.ndarray, "band row col"]:
    distance = np.minimum(cells.distance, _MOST_DISTANCE)
    outside = np.where(np.isnan(distance), np.uint8(NODATA), (distance > 1).astype(np.uint8))
    return np.stack([per_cent(cells.entropy), outside, per_cent(distance)])


def per_cent(values: Float[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    """Shares in whole per cent, nodata for NaN."""
    return np.where(np.isnan(values), NODATA, np.rint(100 * values)).astype(np.uint8)


class Disagreement:
    """A map beside reference labels: the suspect ones, and counts of (label, mapped)."""

    def __init__(self, labels: LabelSource, ids: Sequence[int]) -> None:
        self.labels, self.ids = labels, list(ids)
        self.confusion = np.zeros((NUM_CLASSES, NUM_CLASSES), np.int64)
        self.suspect = np.zeros(NUM_CLASSES, np.int64)

    def blocks(self, answers: Answers, raster: GeoBox) -> Iterator[Block]:
        """The bands of the map of suspect labels; counts as it goes."""
        for piece, values in answers:
            cells = Cells.of(values)
            counts = label_counts(self.labels, raster, answers.grid, piece)
            found = compare(cells.probabilities, self.ids, counts)
            self._count(found, cells.classes(self.ids))
            yield piece.rows.start, piece.cols.start, _suspect_bands(found)

    def _count(self, found: Comparison, mapped: UInt8[np.ndarray, "row col"]) -> None:
        known = found.label != IGNORE
        np.add.at(self.confusion, (found.label[known], mapped[known]), 1)
        self.suspect += np.bincount(found.label[found.suspect], minlength=NUM_CLASSES)

    def record(self) -> dict[str, Any]:
        """Agreement and suspects, as plain JSON."""
        names = [each.name for each in BHARATEO_CLASSES]
        return {
            "labels": self.labels.name,
            **agreement(self.confusion),
            "suspect_if": {"purity_at_least": PURE, "probability_below": DOUBTED},
            "suspect": int(self.suspect.sum()),
            "suspect_by_label": dict(zip(names, self.suspect.tolist(), strict=True)),
        }


def _suspect_bands(found: Comparison) -> UInt8[np.ndarray, "band row col"]:
    known = found.label != IGNORE
    bands = [found.suspect, found.label, per_cent(np.nan_to_num(found.given)),
             per_cent(found.purity)]  # fmt: skip
    return np.stack([np.where(known, band, NODATA) for band in bands]).astype(np.uint8)


# Areas


def _summary(answers: Answers, raster: GeoBox, request: Request) -> dict[str, Any]:
    classes = request.classifier.classes
    ids = [each.id for each in classes]
    km2, cells = np.zeros(256), np.zeros(256, np.int64)
    outside = known = 0
    for piece, values in answers:
        here = Cells.of(values)
        mapped = here.classes(ids)
        area = cell_areas(answers.grid, raster, piece) * np.nan_to_num(here.share)
        km2 += np.bincount(mapped.ravel(), area.ravel(), 256)
        cells += np.bincount(mapped.ravel(), minlength=256)
        outside += int((here.distance > 1).sum())
        known += int((~np.isnan(here.distance)).sum())
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
    }  # fmt: skip


def cell_areas(grid: CellGrid, raster: GeoBox, piece: Piece) -> Float[np.ndarray, "row 1"]:
    """km2 of the cells of a piece by row, also of what sticks out of the raster.

    On the ellipsoid, whatever the reference system: of each row the cell in the piece's middle
    stands for all, within which areas differ by less than a millionth.
    """
    geobox = grid.geobox(raster)
    rows = np.arange(piece.rows.start, piece.rows.stop + 1)
    middle = (piece.cols.start + piece.cols.stop) // 2
    left, right = (
        to_lonlat(geobox, np.stack([np.full(len(rows), float(col)), rows.astype(float)]))
        for col in (middle, middle + 1)
    )
    outlines = np.stack([left[:, :-1], right[:, :-1], right[:, 1:], left[:, 1:]])  # corner, lonlat
    m2 = [_ELLIPSOID.polygon_area_perimeter(*each.T)[0] for each in np.moveaxis(outlines, 2, 0)]
    km2: np.ndarray = np.abs(m2)[:, None] / 1e6
    return km2
