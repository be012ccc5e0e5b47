"""A stratified random sample of a map's cells, for a person to label.

::

    POINTS.gpkg   layer ``points``: id, label (empty), note, and the place; what a person opens.
                  Table ``design``: what each point stands for
    POINTS.json   the plan; written last

Who labels a point must not be led by what the map says there, so the layer says nothing of it: ids
are in random order, and class, stratum and inclusion probability, which would betray each other,
stand in a table of the same file that a GIS does not show by itself.

A stratum is a class of the map, in every zone. Which cells are drawn is a function of seed, row and
column alone: those of a stratum with the smallest random keys, a simple random sample without
replacement.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import geopandas as gpd
import numpy as np
import pandas as pd
from jaxtyping import Float, Int64, UInt64
from pydantic import Field

from bharateo.artefacts import Record, checked
from bharateo.errors import BharatEOError, ConfigError, SourceError
from bharateo.files import read_bytes, write_bytes, write_json
from bharateo.geography import to_lonlat
from bharateo.outputs import Own, check_outputs, record_in
from bharateo.pixels.vectors import read_features
from bharateo.progress import Progress
from bharateo.survey.ground import NUM_CODES, ClassMap, Probabilities, Strata, Zoning, keys
from bharateo.version import __version__

Allocation = Literal["proportional", "equal", "neyman"]

LEAST = 50
"""Points of a stratum where the total allows it: what the accuracy of a rare class takes. Source:
Olofsson et al. 2014, section 5.1.2, "50 to 100"."""

MOST_POINTS = 100_000
POINTS_LAYER, DESIGN_TABLE = "points", "design"
_PRODUCT = "sample"


class SampleClass(Record):
    """A class of the map."""

    code: int
    name: str


class Stratum(Record):
    """A class of the map in a zone: how large it is, and how many points it got."""

    code: int
    zone: str
    cells: int
    m2: float
    points: int


class SampleRecord(Record):
    """A sample's ``POINTS.json``: what it was drawn from, and how."""

    schema_version: Literal[1] = 1
    product: Literal["sample"] = "sample"
    code_version: str
    map: str
    cells_sha256: str = Field(description="of the classes of all cells")
    known_sha256: str = Field(description="of where the map has a class")
    crs: str
    transform: tuple[float, float, float, float, float, float]
    shape: tuple[int, int]
    classes: list[SampleClass]
    zones_file: str | None
    zones_sha256: str | None
    zone_field: str | None
    allocation: str
    seed: int
    strata: list[Stratum]
    points: list[tuple[int, int, int]] = Field(
        description="row, column and place in strata of every point, by id from 1"
    )
    fingerprint: str = ""

    def sealed(self) -> SampleRecord:
        """The record with the SHA-256 of everything else in it."""
        text = json.dumps({**self.model_dump(), "fingerprint": ""}, sort_keys=True)
        return self.model_copy(update={"fingerprint": hashlib.sha256(text.encode()).hexdigest()})


@dataclass(frozen=True)
class SamplePlan:
    """How many points to draw: so many a stratum, or a total and how it is shared out."""

    per_class: int | None = None
    total: int | None = None
    allocation: Allocation = "proportional"
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.per_class is None) == (self.total is None):
            raise ConfigError("give either --total N or --per-class N points, e.g. --total 600")
        name, num = ("--total", self.total) if self.total else ("--per-class", self.per_class)
        if num is None or not 2 <= num <= MOST_POINTS:
            raise ConfigError(f"{name} {num}: give from 2 to {MOST_POINTS:,} points")
        if self.per_class is not None and self.allocation != "proportional":
            raise ConfigError(
                f"--allocation {self.allocation} shares out a total: give --total N with it"
            )

    def points(
        self,
        cells: Int64[np.ndarray, " stratum"],
        m2: Float[np.ndarray, " stratum"],
        accuracy: Float[np.ndarray, " stratum"] | None,
    ) -> tuple[Int64[np.ndarray, " stratum"], str]:
        """The points of every stratum, and in words how they were shared out.

        ``accuracy`` is what the map says of itself in each stratum, which only ``neyman`` needs.

        Raises:
            ConfigError: the total is too small for so many strata.
        """
        if self.per_class is not None:
            return np.minimum(self.per_class, cells), f"{self.per_class} a stratum"
        assert self.total is not None
        num = len(cells)
        least = min(LEAST, self.total // (2 * num))
        if least < 2:
            raise ConfigError(
                f"--total {self.total}: {num} strata (classes in zones) take {4 * num} points at "
                "least: give more, or fewer zones"
            )
        weights = {"proportional": m2, "equal": np.ones(num)}.get(self.allocation)
        if weights is None:
            assert accuracy is not None
            weights = m2 * np.sqrt(np.clip(accuracy * (1 - accuracy), 0.01, None))
        said = {
            "proportional": "by area",
            "equal": "equally",
            "neyman": "by area and the doubt of the map's own probabilities",
        }[self.allocation]
        shared = _shared_out(self.total, weights, np.minimum(least, cells), cells)
        return shared, f"{self.total} shared out {said}, at least {least} a stratum"


def _shared_out(
    total: int,
    weights: Float[np.ndarray, " stratum"],
    least: Int64[np.ndarray, " stratum"],
    most: Int64[np.ndarray, " stratum"],
) -> Int64[np.ndarray, " stratum"]:
    """A total in proportion to weights, within limits; what rounding leaves goes to the largest
    remainders.
    """
    total = min(total, int(most.sum()))
    low, high = 0.0, float(most.max() / weights.min())
    for _ in range(100):
        middle = (low + high) / 2
        enough = np.clip(middle * weights, least, most).sum() >= total
        low, high = (low, middle) if enough else (middle, high)
    exact = np.clip(high * weights, least, most)
    whole = np.floor(exact + 1e-6).astype(np.int64)
    left = np.where(whole < most, exact - whole, -1.0)
    whole[np.argsort(-left, kind="stable")[: max(total - int(whole.sum()), 0)]] += 1
    return whole


def sample_products(output: Path) -> dict[Path, Own]:
    """The files of a sample; one with an answer in it is nobody's to write over."""

    def is_record(path: Path) -> bool:
        return record_in(read_bytes(path)).get("product") == _PRODUCT

    def is_unanswered(path: Path) -> bool:
        try:
            points = read_features(path, "points", SourceError)
        except BharatEOError:
            return False
        own = {"id", "label", "note"} <= {*points.columns}
        return own and not points[["label", "note"]].fillna("").astype(bool).any(axis=None)

    return {output: is_unanswered, output.with_suffix(".json"): is_record}


def draw_sample(
    ground: ClassMap,
    zoning: Zoning,
    plan: SamplePlan,
    output: Path,
    progress: Progress,
    say: Callable[[str], object],
) -> SampleRecord:
    """Write the sample; its record. A sample that is there, drawn by the same plan, is left alone
    with its answers.

    Raises:
        ConfigError: the output's name or the plan does not do, or a file of another plan with
            answers in it, or somebody else's, is there.
        SourceError: the map cannot be read.
    """
    strata = Strata.of(ground, zoning, progress)
    zone, code = np.nonzero(strata.cells)
    cells, m2 = strata.cells[zone, code], strata.m2[zone, code]
    accuracy = None
    if plan.allocation == "neyman":
        accuracy = _expected_accuracy(ground, zoning, progress)[zone, code] / m2
    points, said = plan.points(cells, m2, accuracy)
    drawn = _draw(ground, zoning, plan.seed, strata.cells, (zone, code), points, progress)
    classes = sorted({*ground.classes, *code.tolist()})
    record = SampleRecord(
        code_version=__version__,
        map=ground.path.name,
        cells_sha256=strata.cells_sha256,
        known_sha256=strata.known_sha256,
        crs=str(ground.geobox.crs),
        transform=tuple(ground.geobox.affine)[:6],
        shape=ground.shape,
        classes=[SampleClass(code=each, name=ground.name(each)) for each in classes],
        zones_file=zoning.file,
        zones_sha256=zoning.sha256,
        zone_field=zoning.field,
        allocation=said,
        seed=plan.seed,
        strata=[
            Stratum(code=int(c), zone=zoning.names[z], cells=int(n), m2=float(a), points=int(p))
            for z, c, n, a, p in zip(zone, code, cells, m2, points, strict=True)
        ],
        points=[(int(row), int(col), int(stratum)) for row, col, stratum in drawn],
    ).sealed()
    beside = output.with_suffix(".json")
    if output.exists() and beside.exists():
        found = record_in(read_bytes(beside))
        if found.get("fingerprint") == record.fingerprint:
            say(f"{output} is there already, drawn by the same plan: its answers are kept")
            return record
    check_outputs("sample", sample_products(output), ())
    beside.unlink(missing_ok=True)
    write_bytes(output, _geopackage(record, ground))
    write_json(beside, record.model_dump())
    return record


def read_sample(path: Path) -> SampleRecord:
    """The plan of a sample.

    Raises:
        SourceError: there is none, or it is damaged.
    """
    remedy = "restore it from where `bharateo sample` wrote it"
    if not path.exists():
        raise SourceError(
            f"{path} does not exist: keep the .json of `bharateo sample` beside the points, which "
            "without it stand for nothing known"
        )
    record = checked(SampleRecord, record_in(read_bytes(path)), str(path), SourceError, remedy)
    if record.sealed().fingerprint != record.fingerprint:
        raise SourceError(f"{path} was changed since it was written: {remedy}")
    return record


# Drawing


def _expected_accuracy(
    ground: ClassMap, zoning: Zoning, progress: Progress
) -> Float[np.ndarray, "zone code"]:
    """The sum over cells of their m2 times the probability of their class."""
    probabilities = Probabilities.beside(ground)
    if probabilities is None:
        raise ConfigError(
            f"--allocation neyman: there are no probabilities beside {ground.path}: give "
            "--allocation proportional"
        )
    place = {name: number for number, name in enumerate(probabilities.classes)}
    of_code = np.array([place.get(ground.name(code), 0) for code in range(NUM_CODES)])
    total = np.zeros(len(zoning.names) * NUM_CODES)
    for window in ground.windows(progress, "probabilities"):
        key, inside = keys(window, zoning)
        values = probabilities.read(window.row, window.col, *window.codes.shape)
        own = np.take_along_axis(values, of_code[window.codes][None], 0)[0]
        total += np.bincount(key[inside], (own * window.m2)[inside], total.size)
    return total.reshape(-1, NUM_CODES)


_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


def random_keys(
    seed: int, row: Int64[np.ndarray, "*shape"], col: Int64[np.ndarray, "*shape"]
) -> UInt64[np.ndarray, "*shape"]:
    """Random numbers that are functions of seed, row and column.

    Source: Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators",
    SplitMix64.
    """
    state = _mixed(np.uint64(seed) + np.zeros(1, np.uint64))
    place = (row.astype(np.uint64) << np.uint64(32)) | col.astype(np.uint64)
    return _mixed(_mixed(state + place))


def _mixed(state: UInt64[np.ndarray, "*shape"]) -> UInt64[np.ndarray, "*shape"]:
    state = state + np.uint64(0x9E3779B97F4A7C15)  # arrays of uint64 wrap around
    state = (state ^ (state >> np.uint64(30))) * _MIX[0]
    state = (state ^ (state >> np.uint64(27))) * _MIX[1]
    mixed: np.ndarray = state ^ (state >> np.uint64(31))
    return mixed


def _draw(
    ground: ClassMap,
    zoning: Zoning,
    seed: int,
    cells: Int64[np.ndarray, "zone code"],
    strata: tuple[np.ndarray, np.ndarray],
    points: Int64[np.ndarray, " stratum"],
    progress: Progress,
) -> Int64[np.ndarray, "point 3"]:
    """Row, column and stratum of the cells with the smallest keys of every stratum, shuffled.

    One sweep keeps what lies below a bound that hardly ever is too low; then it is doubled.
    """
    zone, code = strata
    number = np.full(cells.shape, -1)
    number[zone, code] = np.arange(len(zone))
    share = (points + 8 * np.sqrt(points) + 16) / cells[zone, code]
    while True:
        bound = np.zeros(cells.size, np.uint64)
        bound[zone * NUM_CODES + code] = (np.minimum(share, 1) * (2.0**64 - 2**12)).astype(
            np.uint64
        )
        bound[(zone * NUM_CODES + code)[share >= 1]] = np.uint64(2**64 - 1)
        found = []
        for window in ground.windows(progress, "drawing points"):
            key, inside = keys(window, zoning)
            row, col = np.nonzero(inside)
            stratum = key[inside]
            random = random_keys(seed, row + window.row, col + window.col)
            low = random <= bound[stratum]
            place = (row[low] + window.row, col[low] + window.col)
            found.append((random[low], number.ravel()[stratum[low]], *place))
        random, stratum, row, col = (np.concatenate(each) for each in zip(*found, strict=True))
        enough = np.bincount(stratum, minlength=len(points)) >= points
        if enough.all():
            break
        share = np.where(enough, share, 2 * share)
    order = np.lexsort((col, row, random, stratum))
    first = np.searchsorted(stratum[order], np.arange(len(points)))
    chosen = np.concatenate([order[at : at + n] for at, n in zip(first, points, strict=True)])
    shuffled = chosen[np.argsort(_mixed(random[chosen]), kind="stable")]
    return np.stack([row[shuffled], col[shuffled], stratum[shuffled]], 1).astype(np.int64)


# Files


def places(record: SampleRecord, ground: ClassMap) -> Float[np.ndarray, "2 point"]:
    """Longitude and latitude of the points: the centres of their cells."""
    row, col, _ = np.array(record.points).T
    return to_lonlat(ground.geobox, np.stack([col + 0.5, row + 0.5]))


def _geopackage(record: SampleRecord, ground: ClassMap) -> bytes:
    """The file: the layer of points, and the table of what they stand for."""
    import pyogrio

    row, col, stratum = np.array(record.points).T
    ids = np.arange(1, len(row) + 1)
    empty = pd.array([None] * len(ids), dtype="string")
    shown = gpd.GeoDataFrame(
        {"id": ids, "label": empty, "note": empty},
        geometry=gpd.points_from_xy(*places(record, ground)),
        crs="EPSG:4326",
    )
    names: Mapping[int, str] = {each.code: each.name for each in record.classes}
    of_point = [record.strata[each] for each in stratum]
    design = pd.DataFrame({
        "id": ids,
        "stratum": stratum + 1,
        "class": [names[each.code] for each in of_point],
        "zone": [each.zone for each in of_point],
        "row": row,
        "col": col,
        "inclusion_probability": [each.points / each.cells for each in of_point],
        "stratum_cells": [each.cells for each in of_point],
        "stratum_hectares": [each.m2 / 1e4 for each in of_point],
    })  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder, "points.gpkg")
        pyogrio.write_dataframe(shown, made, layer=POINTS_LAYER)
        pyogrio.write_dataframe(design, made, layer=DESIGN_TABLE)
        return made.read_bytes()
