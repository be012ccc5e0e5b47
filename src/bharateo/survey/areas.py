"""Areas by class and the accuracy of a map, from the answers to a sample, with 95 % intervals.

::

    AREAS.csv    a row a zone and class
    AREAS.json   the same with what it was made of; written last
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float, Int64
from pydantic import Field

from bharateo.artefacts import Record, shortened
from bharateo.errors import ConfigError, ContractError, SourceError
from bharateo.files import read_bytes, write_json, write_text
from bharateo.geography import to_lonlat
from bharateo.outputs import Own, json_of, record_in
from bharateo.pixels.vectors import read_features
from bharateo.progress import Progress
from bharateo.survey.estimators import Estimate, Sample, ratio, share
from bharateo.survey.ground import (
    ALL,
    NUM_CODES,
    ClassMap,
    Fingerprint,
    Probabilities,
    Zoning,
    keys,
)
from bharateo.survey.sample import SampleRecord, read_sample
from bharateo.version import __version__

Estimator = Literal["auto", "design-based", "model-assisted"]

UNSURE = ("unsure", "not sure", "unknown", "?")
"""Labels that are no answer, like an empty one."""

MOST_MISSING = 0.05
"""The share of points without an answer above which bounds stand beside the estimates."""

LEAST_ANSWERS = 2
"""Of a survey; what is known from so few is little, which the intervals say."""

_SAME_PLACE_DEGREES = 1e-6
"""A tenth of a metre: two places as near are one that was written twice."""

_MOVED_CELLS = 0.51
"""A point farther from the centre of its cell was moved."""


class Figure(Record):
    """An estimate with the limits of its 95 % interval; None where no answer says anything."""

    value: float | None
    low: float | None
    high: float | None

    @classmethod
    def of(cls, estimate: Estimate, scale: float = 1.0) -> Figure:
        """From one survey's estimate."""
        if np.isnan(estimate.value):
            return cls(value=None, low=None, high=None)
        value, low, high = (
            float(each) * scale for each in (estimate.value, estimate.low, estimate.high)
        )
        return cls(value=value, low=low, high=high)


class ClassRow(Record):
    """A class in a zone."""

    zone: str
    class_name: str
    mapped_hectares: float = Field(description="cells of the map, without its errors")
    hectares: Figure
    users_accuracy: Figure = Field(description="of ground mapped so, the share that is so")
    producers_accuracy: Figure = Field(description="of ground that is so, the share mapped so")
    points: int = Field(description="with this answer")
    hectares_if_missing: tuple[float, float] | None = Field(
        None, description="if no point without an answer were of this class, and if all were"
    )


class ZoneRow(Record):
    """A zone as a whole."""

    zone: str
    hectares: float
    points: int = Field(description="with an answer")
    missing: int = Field(description="without one, or unsure")
    unseen: float = Field(description="share of the ground in strata without an answer")
    overall_accuracy: Figure


class AreasRecord(Record):
    """``AREAS.json``."""

    schema_version: Literal[1] = 1
    product: Literal["areas"] = "areas"
    code_version: str
    map: str
    cells_sha256: str
    sample_sha256: str = Field(description="the fingerprint of the sample's plan")
    labels: str
    labels_sha256: str
    estimator: str
    intervals: str = "95 %, mid-p limits of a matched beta distribution"
    notes: list[str]
    zones: list[ZoneRow]
    classes: list[ClassRow]

    def rows(self, zone: str = ALL) -> Iterator[tuple[str, ...]]:
        """For a terminal: a line a class."""
        for each in self.classes:
            if each.zone == zone:
                yield (
                    each.class_name,
                    f"{each.mapped_hectares:,.1f}",
                    shown(each.hectares, ",.1f"),
                    shown(each.users_accuracy, ".2f"),
                    shown(each.producers_accuracy, ".2f"),
                    str(each.points),
                )


HEADER = ("class", "mapped ha", "hectares", "user's accuracy", "producer's accuracy", "points")


def shown(figure: Figure, form: str) -> str:
    """An estimate and its interval in a few characters."""
    if figure.value is None:
        return "not known"
    return f"{figure.value:{form}} ({figure.low:{form}} to {figure.high:{form}})"


def areas_products(output: Path) -> dict[Path, Own]:
    """The files, and how each is known to be ours: by the record beside."""
    record = output.with_suffix(".json")
    return {
        output: lambda path: json_of("areas")(record) and path.suffix == ".csv",
        record: json_of("areas"),
    }


# Answers


@dataclass(frozen=True)
class Answers:
    """What a person said of the points: a code for every id of the plan, -1 where nothing."""

    codes: Int64[np.ndarray, " point"]
    names: dict[int, str]
    file: Path
    sha256: str


def read_answers(
    path: Path, plan: SampleRecord, ground: ClassMap, more_classes: Sequence[str] = ()
) -> Answers:
    """The labels of a sample's points, by their id.

    A label is a class's name, in any case, or its code; ``more_classes`` are those the map lacks.

    Raises:
        SourceError: the file cannot be read.
        ConfigError: it is not of this sample, a point is there twice or was moved, or a label is
            none of the classes.
    """
    table = read_features(path, "points", SourceError)
    if not {"id", "label"} <= {*table.columns} or table.crs is None:
        raise ConfigError(
            f"{path} has no fields id and label, or no reference system: give the points that "
            "`bharateo sample` wrote, with their labels filled in"
        )
    names = {each.code: each.name for each in plan.classes}
    names |= {-2 - number: name for number, name in enumerate(more_classes)}
    code_of = {name.casefold(): code for code, name in names.items()}
    code_of |= {str(code): code for code in names if code >= 0 and str(code) not in code_of}
    codes, seen = np.full(len(plan.points), -1), np.zeros(len(plan.points), bool)
    row, col, _ = np.array(plan.points).T
    placed = table.to_crs(plan.crs).geometry
    a, b, c, d, e, f = (~ground.geobox.affine)[:6]
    for number, label, point in zip(table["id"], table["label"], placed, strict=True):
        if number is None or not 1 <= number <= len(codes):
            raise ConfigError(
                f"{path} has a point {number}, the sample beside it has 1 to {len(codes)}: give "
                "the points of one sample, with its own .json beside them"
            )
        place = int(number) - 1
        if seen[place]:
            raise ConfigError(f"{path} has point {number} twice: delete one of the two")
        seen[place] = True
        away = (a * point.x + b * point.y + c - col[place] - 0.5,
                d * point.x + e * point.y + f - row[place] - 0.5)  # fmt: skip
        if not np.max(np.abs(away)) <= _MOVED_CELLS:
            raise ConfigError(
                f"{path}: point {number} was moved from its cell, so that it stands for nothing "
                "known: put it back (its row and col are in the table `design`)"
            )
        text = "" if label is None or label is pd.NA or label != label else str(label).strip()
        if text == "" or text.casefold() in UNSURE:
            continue
        if text.casefold() not in code_of:
            raise ConfigError(
                f"{path}: point {number} is labelled {shortened(text)!r}, the classes are "
                f"{shortened(', '.join(names.values()))}: correct it, leave it empty if nobody "
                f"can tell, or add --more-classes {shortened(text)!r} if the map lacks that class"
            )
        codes[place] = code_of[text.casefold()]
    if (codes != -1).sum() < LEAST_ANSWERS:
        raise ConfigError(f"{path} has no labels yet: open it in QGIS and fill in `label`")
    return Answers(codes, names, path, hashlib.sha256(read_bytes(path)).hexdigest())


def trained_points(ground: ClassMap) -> Float[np.ndarray, "point 2"] | None:
    """Longitude and latitude of the points that a map learned its classes from, as it or the
    ``probe.json`` beside it says; None where neither does though it learned from some.
    """
    probe = ground.path.with_name("probe.json")
    for said in (ground.provenance, record_in(read_bytes(probe)) if probe.exists() else {}):
        if "trained_at" in said:
            return np.array(said["trained_at"], float).reshape(-1, 2)
    learned = "probe" in str(ground.provenance.get("classifier", "")) or probe.exists()
    return None if learned else np.empty((0, 2))


def _check_not_trained_on(plan: SampleRecord, ground: ClassMap, answers: Answers) -> list[str]:
    """Refuse answers the map was made from; what cannot be told is a note."""
    learned = trained_points(ground)
    if learned is None:
        note = "does not say which points it learned from: figures hold if none was of the sample"
        return [f"{ground.path.name} {note}"]
    row, col, _ = np.array(plan.points).T
    own = to_lonlat(ground.geobox, np.stack([col + 0.5, row + 0.5])).T
    near = [bool((np.abs(learned - each) < _SAME_PLACE_DEGREES).all(1).any()) for each in own]
    used = np.flatnonzero(np.array(near) & (answers.codes != -1)) + 1
    if used.size:
        ids = ", ".join(map(str, used[:5])) + (
            f" and {used.size - 5} more" if used.size > 5 else ""
        )
        raise ContractError(
            f"points: {ids} of {answers.file} were used to make {ground.path}, which knows their "
            f"answers: draw others with `bharateo sample {ground.path} --total {len(own)} --seed "
            f"{plan.seed + 1} --output fresh.gpkg`"
        )
    return []


# Estimates


@dataclass(frozen=True)
class _Sweep:
    """What one pass over the map finds: by zone the m2 of every code, and those that its
    probabilities give to each class (none without them); of every point code, m2 of its cell and
    probabilities.
    """

    m2: Float[np.ndarray, "zone code"]
    guessed: Float[np.ndarray, "zone cls"]
    fingerprint: Fingerprint
    code_at: Int64[np.ndarray, " point"]
    m2_at: Float[np.ndarray, " point"]
    probability_at: Float[np.ndarray, "cls point"]


def _sweep(
    ground: ClassMap,
    zoning: Zoning,
    probabilities: Probabilities | None,
    row: Int64[np.ndarray, " point"],
    col: Int64[np.ndarray, " point"],
    progress: Progress,
) -> _Sweep:
    num, fingerprint = len(zoning.names), Fingerprint()
    num_classes = 0 if probabilities is None else len(probabilities.classes)
    m2, guessed = np.zeros(num * NUM_CODES), np.zeros((num, num_classes))
    code_at, m2_at = np.full(len(row), -1), np.ones(len(row))
    probability_at = np.zeros((num_classes, len(row)))
    for window in ground.windows(progress, "cells of the map"):
        fingerprint.add(window)
        key, inside = keys(window, zoning)
        m2 += np.bincount(key[inside], window.m2[inside], m2.size)
        height, width = window.codes.shape
        down, along = row - window.row, col - window.col
        here = (down >= 0) & (down < height) & (along >= 0) & (along < width)
        at = (down[here], along[here])
        code_at[here] = np.where(window.known[at], window.codes[at], -1)
        m2_at[here] = window.m2[at]
        if probabilities is not None:
            values = probabilities.read(window.row, window.col, height, width)
            probability_at[:, here] = values[:, *at]
            zone = key[inside] // NUM_CODES
            for cls, layer in enumerate(values):
                guessed[:, cls] += np.bincount(zone, (layer * window.m2)[inside], num)
    by_zone = m2.reshape(num, NUM_CODES)
    return _Sweep(by_zone, guessed, fingerprint, code_at, m2_at, probability_at)


def estimate_areas(
    ground: ClassMap,
    labels: Path,
    estimator: Estimator,
    more_classes: Sequence[str],
    zones: Path | None,
    progress: Progress,
) -> AreasRecord:
    """Areas and accuracies of a map from the labels of a sample of its ground.

    The sample may have been drawn from another map of the same cells: its strata are then not this
    map's classes, and all accuracies are ratios.

    Raises:
        SourceError: a file cannot be read.
        ConfigError: labels, zones or options do not do.
        ContractError: the map is of other ground than the sample, or learned from its answers.
    """
    plan = read_sample(labels.with_suffix(".json"))
    transform = tuple(ground.geobox.affine)[:6]
    same = np.allclose(transform, plan.transform, rtol=1e-9)
    if ground.shape != plan.shape or str(ground.geobox.crs) != plan.crs or not same:
        raise ContractError(
            f"grid: {ground.path} lies on another grid than {plan.map}, of which {labels} is a "
            "sample: give a map of the same cells, or draw a sample of this one"
        )
    answers = read_answers(labels, plan, ground, more_classes)
    notes = _check_not_trained_on(plan, ground, answers)
    probabilities = None if estimator == "design-based" else Probabilities.beside(ground)
    if probabilities is None and estimator == "model-assisted":
        raise ConfigError(
            f"--estimator model-assisted: there are no probabilities beside {ground.path}: leave "
            "the option out"
        )
    zoning = _zoning(plan, zones, ground)
    row, col, _ = np.array(plan.points).T
    swept = _sweep(ground, zoning, probabilities, row, col, progress)
    if swept.fingerprint.known != plan.known_sha256:
        raise ContractError(
            f"grid: {ground.path} has data in other cells than {plan.map} had when {labels} was "
            "drawn from it: give a map of the same cells, or draw a sample of this one"
        )
    survey = _Survey(ground, plan, answers, probabilities, zoning, swept)
    missing = float((answers.codes == -1).mean())
    if missing > 0:
        notes.append(
            f"{(answers.codes == -1).sum()} of {answers.codes.size} points have no answer: those "
            "of a stratum are taken to be like its others"
            + (", and bounds say what they could change" if missing > MOST_MISSING else "")
        )
    if swept.fingerprint.cells != plan.cells_sha256:
        notes.append(f"the sample was drawn from {plan.map}, whose classes are its strata")
    names = [ALL, *zoning.names] if plan.zones_file else [ALL]
    found = [survey.zone(name, missing > MOST_MISSING) for name in names]
    return AreasRecord(
        code_version=__version__,
        map=ground.path.name,
        cells_sha256=swept.fingerprint.cells,
        sample_sha256=plan.fingerprint,
        labels=labels.name,
        labels_sha256=answers.sha256,
        estimator="stratified" if probabilities is None else "stratified, areas model-assisted",
        notes=notes,
        zones=[zone for zone, _ in found],
        classes=[row for _, rows in found for row in rows],
    )


def _zoning(plan: SampleRecord, zones: Path | None, ground: ClassMap) -> Zoning:
    """The sample's zones, from their file, which is the same as it was."""
    if plan.zones_file is None:
        if zones is not None:
            raise ConfigError(
                f"--zones {zones}: the sample was drawn without zones, so that it is too thin for "
                "any: draw one with `bharateo sample --zones`"
            )
        return Zoning.of(ground.geobox, None, None)
    file = zones or Path(plan.zones_file)
    if not file.exists():
        raise ConfigError(f"{file}, the zones of the sample, is not there: say where with --zones")
    zoning = Zoning.of(ground.geobox, file, plan.zone_field)
    if zoning.sha256 != plan.zones_sha256:
        raise ConfigError(
            f"{file} is not the file of zones that the sample was drawn with: give that with "
            "--zones"
        )
    return zoning


@dataclass(frozen=True)
class _Survey:
    """Everything that estimates are made from."""

    ground: ClassMap
    plan: SampleRecord
    answers: Answers
    probabilities: Probabilities | None
    zoning: Zoning
    swept: _Sweep

    def zone(self, name: str, bounds: bool) -> tuple[ZoneRow, list[ClassRow]]:
        """The figures of one zone, or of all."""
        plan, names = self.plan, self.answers.names
        stratum = np.array(plan.points)[:, 2]
        strata = np.array([name in (ALL, each.zone) for each in plan.strata])
        whole = Sample(
            stratum,
            np.array([each.m2 for each in plan.strata]),
            np.array([each.cells for each in plan.strata]),
            self.swept.m2_at,
        )
        here = whole.inside(strata)
        answered = here & (self.answers.codes != -1)
        sample = self._answered(whole, answered).within(strata)
        truth = self.answers.codes[answered]
        mapped = self.swept.code_at[answered]
        hectares = float(sample.area.sum()) / 1e4
        zones = [number for number, each in enumerate(self.zoning.names) if name in (ALL, each)]
        if not truth.size:
            nothing = Figure(value=None, low=None, high=None)
            return ZoneRow(
                zone=name, hectares=hectares, points=0, missing=int(here.sum()), unseen=1.0,
                overall_accuracy=nothing,
            ), []  # fmt: skip
        guesses = self._guesses(answered, zones)
        # Strata that are classes of this very map, in which its own class is known without asking.
        mapped_in = [{*mapped[sample.stratum == each].tolist()} for each in range(len(sample.area))]
        own = self.swept.fingerprint.cells == plan.cells_sha256
        codes_in = [{each.code} for each, inside in zip(plan.strata, strata, strict=True) if inside]
        rows = []
        present = {*truth.tolist(), *mapped.tolist()} | {
            c for each in codes_in for c in each if own
        }
        for code in sorted(present, key=lambda each: (each < 0, abs(each))):
            is_class, is_mapped = truth == code, mapped == code
            guess = guesses.get(names.get(code, ""))
            area = share(sample, is_class, *(() if guess is None else guess))
            of_class = np.array([code in each for each in (codes_in if own else mapped_in)])
            users = Figure(value=None, low=None, high=None)
            if not own:
                users = Figure.of(
                    ratio(sample, is_class & is_mapped, is_mapped, of_class, of_class)
                )
            elif sample.points[of_class].any():
                part = sample.within(of_class)
                users = Figure.of(share(part, is_class[sample.inside(of_class)]))
            elsewhere = ~of_class if own else np.ones(len(of_class), bool)
            producers = ratio(sample, is_class & is_mapped, is_class, of_class, elsewhere)
            bounded = self._bounds(whole, here, strata, code, hectares) if bounds else None
            row_of_class = ClassRow(
                zone=name,
                class_name=names.get(code, self.ground.name(code)),
                mapped_hectares=float(self.swept.m2[zones, code].sum()) / 1e4 if code >= 0 else 0.0,
                hectares=Figure.of(area, hectares),
                users_accuracy=users,
                producers_accuracy=Figure.of(producers),
                points=int(is_class.sum()),
                hectares_if_missing=bounded,
            )
            rows.append(row_of_class)
        return ZoneRow(
            zone=name,
            hectares=hectares,
            points=int(answered.sum()),
            missing=int((here & ~answered).sum()),
            unseen=sample.unseen,
            overall_accuracy=Figure.of(share(sample, truth == mapped)),
        ), rows

    def _answered(self, whole: Sample, answered: np.ndarray) -> Sample:
        assert whole.cell_area is not None
        return Sample(whole.stratum[answered], whole.area, whole.cells, whole.cell_area[answered])

    def _bounds(
        self, whole: Sample, here: np.ndarray, strata: np.ndarray, code: int, hectares: float
    ) -> tuple[float, float]:
        """The estimate if no point without an answer were of a class, and if all were."""
        sample = self._answered(whole, here).within(strata)
        truth = self.answers.codes[here]
        fewest, most = (share(sample, (truth == code) | (also & (truth == -1))).value
                        for also in (False, True))  # fmt: skip
        return float(fewest) * hectares, float(most) * hectares

    def _guesses(
        self, answered: np.ndarray, zones: Sequence[int]
    ) -> dict[str, tuple[np.ndarray, float]]:
        """Of every class the probability at the points, and its mean over the zones."""
        if self.probabilities is None:
            return {}
        at = self.swept.probability_at[:, answered]
        total = self.swept.m2[zones].sum()
        means = self.swept.guessed[zones].sum(0) / total
        return {
            name: (at[cls], float(means[cls]))
            for cls, name in enumerate(self.probabilities.classes)
        }


# Files


def write_areas(output: Path, record: AreasRecord) -> None:
    """Write table and record.

    Raises:
        StorageError: the disk is full or refuses.
    """
    rows: list[dict[str, Any]] = []
    for each in record.classes:
        flat: dict[str, Any] = {
            "zone": each.zone, "class": each.class_name, "points": each.points,
            "mapped_hectares": each.mapped_hectares,
        }  # fmt: skip
        for name in ("hectares", "users_accuracy", "producers_accuracy"):
            figure: Figure = getattr(each, name)
            flat |= {name: figure.value, f"{name}_low": figure.low, f"{name}_high": figure.high}
        if each.hectares_if_missing is not None:
            fewest, most = each.hectares_if_missing
            flat |= {"hectares_if_none_missing": fewest, "hectares_if_all_missing": most}
        rows.append(flat | {"estimator": record.estimator})
    text = io.StringIO()
    pd.DataFrame(rows).to_csv(text, index=False, float_format="%.6g")
    write_text(output, text.getvalue())
    write_json(output.with_suffix(".json"), record.model_dump())
