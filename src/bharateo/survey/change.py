"""Change between two maps of the same ground, told from the flips that no change makes.

Two maps of unchanged ground differ in some share of their cells: that is the floor. It is measured
first, on points that a person knows to be stable or on maps of the same ground and time, and what
two dates differ by beyond it is change. With D the share that differs and F the floor, ground that
changed shows it and other ground flips as often as the floor, so the changed share C is
D = C + (1 - C) F. Change that a map misses is not in it.

::

    CHANGE.csv    a row a zone
    CHANGE.json   the same with what it was made of; written last
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from jaxtyping import Float, Int64
from pydantic import Field
from scipy.stats import t

from bharateo.artefacts import Record
from bharateo.errors import ConfigError, ContractError, SourceError
from bharateo.files import write_json, write_text
from bharateo.inference.class_raster import WINDOW_CELLS
from bharateo.outputs import Own, json_of
from bharateo.pixels.vectors import read_features
from bharateo.progress import Progress, unseen
from bharateo.survey.estimators import LEVEL, Sample, share
from bharateo.survey.ground import ALL, NUM_CODES, ClassMap, Zoning, keys
from bharateo.version import __version__

STABLE = ("stable", "unchanged", "no change")
"""Labels of ground that has not changed."""

LEAST_POINTS = 30
"""Stable points of a survey, below which no floor is given."""

LEAST_BLOCKS = 20
"""Blocks of ground in a zone, below which nobody can tell how flips vary from place to place."""

_BLOCKS = 200
"""About how many a zone is cut into."""

_SIGMA_OF_MAD = 1.4826
_MAD_WORTH = 0.37
"""Of a normal sample a median absolute deviation tells as much as a standard deviation does of this
share of it. Source: Rousseeuw and Croux 1993, "Alternatives to the median absolute deviation"."""

_TAIL = (1 + LEVEL) / 2


class Share(Record):
    """A share of the ground with the limits of its 95 % interval."""

    value: float
    low: float
    high: float


class ChangeRow(Record):
    """A zone: what differs, what would differ without change, and what is left."""

    zone: str
    hectares: float = Field(description="where all maps have a class")
    differs: float = Field(description="share of it in which the two maps differ")
    floor: Share | None = Field(description="share that flips where nothing changes")
    found: bool = Field(description="whether change can be told from such flips")
    hectares_changed: Share | None = Field(description="in hectares; None where none can be told")
    least_hectares: float | None = Field(description="change that would just have been told")
    why_not: str | None = None

    def line(self) -> str:
        """For a terminal."""
        if self.floor is None:
            return f"{self.zone}: no change can be told: {self.why_not}"
        flips = (
            f"{self.differs:.2%} differ, {self.floor.value:.2%} ({self.floor.low:.2%} to "
            f"{self.floor.high:.2%}) flip without change"
        )
        if self.hectares_changed is None:
            return (
                f"{self.zone}: no change can be told: {flips}; {self.least_hectares:,.1f} ha of "
                "change could have been"
            )
        changed = self.hectares_changed
        return (
            f"{self.zone}: {changed.value:,.1f} ha changed ({changed.low:,.1f} to "
            f"{changed.high:,.1f}): {flips}"
        )


class ChangeRecord(Record):
    """``CHANGE.json``."""

    schema_version: Literal[1] = 1
    product: Literal["change"] = "change"
    code_version: str
    maps: tuple[str, str]
    floor_from: str
    intervals: str = "95 %"
    notes: list[str]
    zones: list[ChangeRow]

    def lines(self) -> Iterator[str]:
        """For a terminal."""
        yield f"flips without change: from {self.floor_from}"
        for each in self.zones:
            yield each.line()
        yield from (f"note: {each}" for each in self.notes)


def change_products(output: Path) -> dict[Path, Own]:
    """The files, and how each is known to be ours: by the record beside."""
    record = output.with_suffix(".json")
    return {
        output: lambda path: json_of("change")(record) and path.suffix == ".csv",
        record: json_of("change"),
    }


def check_comparable(maps: Sequence[ClassMap]) -> None:
    """Make sure that maps are of one grid and one legend.

    Raises:
        ContractError: they are not; the first difference.
    """
    for first, other in pairwise(maps):
        same_place = np.allclose(tuple(first.geobox.affine)[:6], tuple(other.geobox.affine)[:6],
                                 rtol=1e-9)  # fmt: skip
        if first.shape != other.shape or first.geobox.crs != other.geobox.crs or not same_place:
            raise ContractError(
                f"grid: {other.path} ({other.shape[0]} x {other.shape[1]} cells) lies on another "
                f"grid than {first.path} ({first.shape[0]} x {first.shape[1]}): make both maps of "
                "rasters of one grid, with one --stride"
            )
        if first.classes != other.classes:
            odd = sorted({*first.classes.items()} ^ {*other.classes.items()})
            raise ContractError(
                f"classes: {other.path} and {first.path} have other classes (one of them alone "
                f"has {odd[0][0]} = {odd[0][1]}): make both maps with one run or probe"
            )


@dataclass(frozen=True)
class _Blocks:
    """Blocks of ground within zones: their zone, m2, and the m2 in which pairs of maps differ; by
    zone the m2 of every class of the first map.
    """

    zone: Int64[np.ndarray, " block"]
    m2: Float[np.ndarray, " block"]
    differs: Float[np.ndarray, "block pair"]
    of_class: Float[np.ndarray, "zone code"]
    cell_m2: float


def _compare(
    first: ClassMap, others: Sequence[ClassMap], zoning: Zoning, progress: Progress
) -> _Blocks:
    """One sweep over all maps at once."""
    num_zones = len(zoning.names)
    side = np.sqrt(first.shape[0] * first.shape[1] / num_zones / _BLOCKS)
    side = 2 ** int(np.clip(np.log2(max(side, 1)), 2, np.log2(WINDOW_CELLS)))
    of_class = np.zeros(num_zones * NUM_CODES)
    zones, areas, pairs, cells = [], [], [], 0
    sweeps = [first.windows(progress, "cells of the maps")]
    sweeps += [each.windows(unseen, "") for each in others]
    for windows in zip(*sweeps, strict=True):
        one = windows[0]
        key, inside = keys(one, zoning)
        inside &= np.logical_and.reduce([each.known for each in windows])
        of_class += np.bincount(key[inside], one.m2[inside], of_class.size)
        row, col = np.indices(one.codes.shape) // side
        across = -(-WINDOW_CELLS // side)
        block = (key // NUM_CODES * across + row) * across + col
        present, number = np.unique(block[inside], return_inverse=True)
        zones.append(present // across**2)
        areas.append(np.bincount(number, one.m2[inside], present.size))
        differ = [np.bincount(number, (one.m2 * (one.codes != each.codes))[inside], present.size)
                  for each in windows[1:]]  # fmt: skip
        pairs.append(np.stack(differ, 1))
        cells += int(inside.sum())
    m2 = np.concatenate(areas)
    if not cells:
        raise SourceError(
            f"{first.path} and the others have no cell with a class in common: give maps of the "
            "same ground"
        )
    return _Blocks(
        np.concatenate(zones), m2, np.concatenate(pairs),
        of_class.reshape(num_zones, NUM_CODES), float(m2.sum()) / cells,
    )  # fmt: skip


def measure_change(
    before: ClassMap,
    after: ClassMap,
    repeats: Sequence[ClassMap],
    stable: Path | None,
    zoning: Zoning,
    progress: Progress,
) -> ChangeRecord:
    """Change between two maps by zone, above the floor of either ``repeats`` (maps of the first
    one's ground and time) or ``stable`` points.

    Raises:
        ConfigError: neither or both are given, or there are too few stable points.
        ContractError: the maps are of different grids or classes.
        SourceError: a file cannot be read.
    """
    if bool(repeats) == (stable is not None):
        raise ConfigError(
            "change has a floor: say what flips without change, either with --stable POINTS on "
            "ground that has not changed, or with --repeat MAP of the first date's ground"
        )
    check_comparable([before, after, *repeats])
    blocks = _compare(before, [after, *repeats], zoning, progress)
    names = [ALL, *zoning.names] if zoning.outlines else [ALL]
    numbers = [np.arange(len(zoning.names)), *([n] for n in range(len(zoning.names)))]
    notes = ["change that the maps miss is not counted; draw a sample for an area one can sign"]
    if stable is not None:
        classes, flipped = _stable_points(stable, before, after)
        source = f"{len(flipped)} stable points of {stable.name}"
        rows = [
            _above_points(name, blocks, np.array(zones), classes, flipped)
            for name, zones in zip(names, numbers, strict=False)
        ]
    else:
        source = f"repeated maps: {', '.join(each.path.name for each in repeats)}"
        if len(repeats) == 1:
            notes.append("how flips differ from one repeat to the next, one repeat cannot say")
        rows = [
            _above_repeats(name, blocks, np.array(zones))
            for name, zones in zip(names, numbers, strict=False)
        ]
    return ChangeRecord(
        code_version=__version__,
        maps=(before.path.name, after.path.name),
        floor_from=source,
        notes=notes,
        zones=rows,
    )


def _above_repeats(zone: str, blocks: _Blocks, zones: np.ndarray) -> ChangeRow:
    """The floor is what repeated maps differ by in the same zone.

    Noise is that of the differences of blocks, D - F, by their median absolute deviation: blocks
    that changed, as long as they are fewer than half, do not pass for noise.
    """
    here = np.isin(blocks.zone, zones)
    m2 = blocks.m2[here]
    if here.sum() < LEAST_BLOCKS:
        why = f"it has {here.sum()} blocks of ground with data, {LEAST_BLOCKS} are needed"
        return _untold(zone, blocks, here, why)
    weight = m2 / m2.sum()
    by_block = blocks.differs[here] / m2[:, None]
    differs, floors = float(weight @ by_block[:, 0]), weight @ by_block[:, 1:]
    floor = float(floors.mean())
    off = by_block[:, 0] - by_block[:, 1:].mean(1)
    sigma = _SIGMA_OF_MAD * np.median(np.abs(off - np.median(off)))
    by_cells = (floor * (1 - floor) * 2 * blocks.cell_m2 / m2.sum()) ** 0.5
    error = max(float(sigma) * float((weight**2).sum()) ** 0.5, by_cells)
    reach = t.ppf(_TAIL, _MAD_WORTH * (here.sum() - 1)) * error
    if (num := floors.size) > 1:  # dates differ too
        dates = float(floors.std(ddof=1)) * (1 + 1 / num) ** 0.5
        reach = float(np.hypot(reach, t.ppf(_TAIL, num - 1) * dates))
    limits = (max(floor - reach, 0.0), min(floor + reach, 1.0))
    return _row(zone, blocks, here, differs, Share(value=floor, low=limits[0], high=limits[1]))


def _above_points(
    zone: str,
    blocks: _Blocks,
    zones: np.ndarray,
    classes: Int64[np.ndarray, " point"],
    flipped: np.ndarray,
) -> ChangeRow:
    """The floor is how often stable points flip, by class of the first map, in the zone's mix of
    classes; a class without a stable point may flip always or never.
    """
    here = np.isin(blocks.zone, zones)
    m2 = blocks.of_class[zones].sum(0)
    present = np.flatnonzero(m2)
    of_present = np.isin(classes, present)
    if not of_present.any():
        return _untold(zone, blocks, here, "no stable point is of a class that it has")
    place = np.searchsorted(present, classes[of_present])
    plenty = np.full(present.size, np.iinfo(np.int64).max)  # the points are none of its cells
    floor = share(Sample(place, m2[present], plenty), flipped[of_present])
    differs = float(blocks.differs[here, 0].sum() / blocks.m2[here].sum())
    limits = Share(value=float(floor.value), low=float(floor.low), high=float(floor.high))
    return _row(zone, blocks, here, differs, limits)


def _row(zone: str, blocks: _Blocks, here: np.ndarray, differs: float, floor: Share) -> ChangeRow:
    hectares = float(blocks.m2[here].sum()) / 1e4

    def changed(flips: float) -> float:
        return hectares * (differs - flips) / max(1 - flips, 1e-12)

    found = differs > floor.high
    told = Share(value=changed(floor.value), low=changed(floor.high), high=changed(floor.low))
    least = hectares * (floor.high - floor.value) / max(1 - floor.value, 1e-12)
    return ChangeRow(
        zone=zone, hectares=hectares, differs=differs, floor=floor, found=found,
        hectares_changed=told if found else None, least_hectares=least,
    )  # fmt: skip


def _untold(zone: str, blocks: _Blocks, here: np.ndarray, why: str) -> ChangeRow:
    m2 = float(blocks.m2[here].sum())
    differs = float(blocks.differs[here, 0].sum()) / m2 if m2 else 0.0
    return ChangeRow(
        zone=zone, hectares=m2 / 1e4, differs=differs, floor=None, found=False,
        hectares_changed=None, least_hectares=None, why_not=why,
    )  # fmt: skip


def _stable_points(
    path: Path, before: ClassMap, after: ClassMap
) -> tuple[Int64[np.ndarray, " point"], np.ndarray]:
    """Of stable points inside both maps the class in the first, and whether the second differs.

    Of a file with a field ``label`` those that are labelled stable, of others all points.
    """
    if not path.exists():
        raise SourceError(f"--stable {path} does not exist: give points on unchanged ground")
    table = read_features(path, "points", SourceError)
    if table.crs is None or not (table.geometry.geom_type == "Point").all():
        raise ConfigError(f"--stable {path} must hold points with a reference system")
    if "label" in table:
        kept = table["label"].fillna("").astype(str).str.strip().str.casefold().isin(STABLE)
        table = table[kept]
    points = table.to_crs(str(before.geobox.crs)).geometry
    a, b, c, d, e, f = (~before.geobox.affine)[:6]
    x, y = points.x.to_numpy(), points.y.to_numpy()
    col, row = np.floor(a * x + b * y + c), np.floor(d * x + e * y + f)
    height, width = before.shape
    inside = (row >= 0) & (row < height) & (col >= 0) & (col < width)
    rows, cols = (each[inside].astype(np.int64) for each in (row, col))
    one, other = before.codes_at(rows, cols), after.codes_at(rows, cols)
    known = (one >= 0) & (other >= 0)
    if known.sum() < LEAST_POINTS:
        raise ConfigError(
            f"--stable {path} has {known.sum()} points on ground of both maps"
            + (f" that are labelled {STABLE[0]}" if "label" in table else "")
            + f": give {LEAST_POINTS} at least"
        )
    return one[known], (one != other)[known]


def write_change(output: Path, record: ChangeRecord) -> None:
    """Write table and record.

    Raises:
        StorageError: the disk is full or refuses.
    """
    rows = []
    for each in record.zones:
        floor, changed = each.floor, each.hectares_changed
        rows.append({
            "zone": each.zone, "hectares": each.hectares, "differs": each.differs,
            **{f"floor{end}": floor and getattr(floor, name)
               for end, name in (("", "value"), ("_low", "low"), ("_high", "high"))},
            "change": "found" if each.found else "no change can be told",
            **{f"hectares_changed{end}": changed and getattr(changed, name)
               for end, name in (("", "value"), ("_low", "low"), ("_high", "high"))},
            "least_hectares": each.least_hectares,
        })  # fmt: skip
    text = io.StringIO()
    pd.DataFrame(rows).to_csv(text, index=False, float_format="%.6g")
    write_text(output, text.getvalue())
    write_json(output.with_suffix(".json"), record.model_dump())
