"""From a person's points to a map of their classes: a probe, an honest score, what to label next.

::

    DIR/probe.safetensors        the probe, with the names of its classes
    DIR/map.tif                  the map, with its other files (``inference.map``)
    DIR/label-next.geojson       20 places to label next, with an empty field ``class`` to fill
    DIR/probe.json               scores, counts and provenance; written last
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import geopandas as gpd
import numpy as np
import torch
from jaxtyping import UInt8
from pydantic import Field
from torch import Tensor

from bharateo.artefacts import Record
from bharateo.errors import ContractError, DatasetError
from bharateo.evaluation.cross_validation import (
    HELD_OUT,
    LEAST_GROUPS,
    NUM_SPLITS,
    Score,
    cross_validate,
    fit_few,
    spatial_groups,
    tempered,
)
from bharateo.evaluation.features import band_statistics, encoder, random_encoder
from bharateo.evaluation.probes import LinearProbe, load_probe, save_probe
from bharateo.files import read_bytes, write_json, write_text
from bharateo.geography import to_lonlat
from bharateo.inference.domain import Domain
from bharateo.inference.encoder import FrozenEncoder
from bharateo.inference.inputs import RasterInput
from bharateo.inference.legend import Colour, own_classes, recoloured
from bharateo.inference.map import (
    NODATA,
    Classifier,
    Look,
    MapClass,
    MapRecord,
    MapRequest,
    own_products,
    products,
    write_map,
)
from bharateo.inference.points import (
    Labelled,
    cells_lonlat,
    centres_inside,
    next_places,
    place,
    vectors_at,
)
from bharateo.inference.tiles import CellGrid, Progress
from bharateo.landcover import BHARATEO_CLASSES
from bharateo.outputs import Own, json_of, record_in
from bharateo.pixels.raster import existing
from bharateo.training.run import Run

PROBE_FILE, MAP_FILE = "probe.safetensors", "map.tif"
NEXT_FILE, RECORD_FILE = "label-next.geojson", "probe.json"
NUM_NEXT = 20
_NEXT_PRODUCT = "places to label"
_SEED = 0


class ContenderScore(Record):
    """Scores of one kind of features; ``recall`` is None of a class that was never scored."""

    balanced_accuracy: float
    balanced_accuracy_ci95: tuple[float, float]
    recall: dict[str, float | None]

    @classmethod
    def of(cls, score: Score, classes: Sequence[str]) -> ContenderScore:
        """A score with its classes by name."""
        recall = [None if np.isnan(value) else float(value) for value in score.recall]
        return cls(
            balanced_accuracy=score.value,
            balanced_accuracy_ci95=(score.low, score.high),
            recall=dict(zip(classes, recall, strict=True)),
        )


class OneClass(Record):
    """The score of one class for all, which needs no points to know."""

    balanced_accuracy: float


class OwnScore(Record):
    """What is expected on other ground, of the run's features and of simpler ones."""

    metric: str
    by: str
    places: int
    places_apart_px: int | float
    one_class: OneClass
    encoder: ContenderScore
    random_encoder: ContenderScore
    band_statistics: ContenderScore


class OwnProbe(Record):
    """A probe on a person's points, and what it reached."""

    product: Literal["probe"] = "probe"
    class_names: list[str]
    weights_sha256: str
    points: dict[str, int]
    temperature: float
    score: OwnScore
    trained_at: list[tuple[float, float]] = Field(
        default_factory=list, description="longitude and latitude of the points"
    )

    def lines(self) -> Iterator[str]:
        """For a terminal: scores with their intervals, and recall by class."""
        score = self.score
        counts = ", ".join(f"{name} {count}" for name, count in self.points.items())
        yield f"points: {counts}, in {score.places} places"
        yield f"balanced accuracy expected on other ground ({score.by}):"
        for title, each in (
            ("this run", score.encoder),
            ("band statistics", score.band_statistics),
            ("the same encoder, untrained", score.random_encoder),
        ):
            low, high = each.balanced_accuracy_ci95
            yield f"  {title:28} {each.balanced_accuracy:.2f}  (95 %: {low:.2f} to {high:.2f})"
        yield f"  {'one class for all':28} {score.one_class.balanced_accuracy:.2f}"
        recall = ", ".join(
            f"{name} {'not known' if value is None else f'{value:.2f}'}"
            for name, value in score.encoder.recall.items()
        )
        yield f"recognised of each class: {recall}"


class OwnClasses(OwnProbe):
    """The contents of ``probe.json``: the probe, and the map it made."""

    map: MapRecord


@dataclass(frozen=True)
class Options:
    """How the map is made; see ``inference.map.MapRequest``. ``colours`` are by class."""

    domain: Domain | None = None
    stride_px: int | None = None
    precision: str = "fp32"
    colours: Mapping[str, Colour] = field(default_factory=dict)


def own_class_products(output: Path) -> dict[Path, Own]:
    """The files of ``map_own_classes`` in a folder, and how each is known to be one."""

    def is_probe(path: Path) -> bool:
        try:
            load_probe(path)
        except DatasetError:
            return False
        return True

    def is_unlabelled(path: Path) -> bool:
        """Whether these are places of ours, and nobody has labelled one of them yet."""
        record = record_in(read_bytes(path))
        if record.get("product") != _NEXT_PRODUCT:
            return False
        try:
            return all(each["properties"]["class"] is None for each in record["features"])
        except (KeyError, TypeError):
            return False

    return {
        output / PROBE_FILE: is_probe,
        **own_products(output / MAP_FILE),
        output / NEXT_FILE: is_unlabelled,
        output / RECORD_FILE: json_of("probe"),
    }


def map_own_classes(
    run: Run,
    source: RasterInput,
    points: gpd.GeoDataFrame,
    output: Path,
    options: Options,
    progress: Progress,
    say: Callable[[str], object],
) -> OwnClasses:
    """Write everything about a person's classes, and say what was found.

    Raises:
        ConfigError: the points do not do, with the reason and which.
        DatasetError: no score by location is possible.
        SourceError, StorageError: pixels cannot be read, files cannot be written.
    """
    config = run.model.config
    stride = options.stride_px or config.patch_px
    grid = CellGrid(source.shape, config.chip_px, config.patch_px, stride)
    placed = place(points, source, grid, say)
    kinds = (
        encoder(run),
        random_encoder(run.model, _SEED, band_set=run.band_set),
        band_statistics(config.patch_px),
    )
    extractors = {each.name: each.features for each in kinds}
    features, valid = vectors_at(placed, source, grid, extractors, progress)
    if not valid.all():
        say(f"warning: {int((~valid).sum())} points lie where the raster has no data: left out")
        placed = placed.take(valid)
        features = {name: values[valid] for name, values in features.items()}
    record = _fit(run, placed, features, config.chip_px, output, say)
    lonlat = to_lonlat(source.geobox, placed.pixels.T[::-1])
    record = record.model_copy(update={"trained_at": [(x, y) for x, y in lonlat.T.tolist()]})
    classifier = probe_classifier(run, output / PROBE_FILE)
    classifier = replace(classifier, classes=recoloured(classifier.classes, options.colours))
    request = MapRequest(classifier, options.domain, None, options.stride_px, options.precision)
    mapped = write_map(run, source, output / MAP_FILE, request, progress, say)
    _write_next(output, grid, source, placed, mapped.classes)
    write_json(output / RECORD_FILE, record.model_dump() | {"map": mapped.to_json()})
    return OwnClasses(**dict(record), map=mapped)


def _fit(
    run: Run,
    points: Labelled,
    features: Mapping[str, np.ndarray],
    chip_px: int,
    output: Path,
    say: Callable[[str], object],
) -> OwnProbe:
    """Score, fit and keep the probe; what there is to say of it."""
    counts = np.bincount(points.labels)
    for name, count in zip(points.classes, counts, strict=True):
        if count == 1:
            say(f"warning: {name} has one point, so nobody can tell how well it is recognised")
    groups, reach = spatial_groups(points.pixels, chip_px)
    if reach < chip_px:
        say(
            f"warning: the points lie in fewer than {LEAST_GROUPS} places at least a chip "
            f"({chip_px} px) apart, so places {reach:g} px apart were taken for different ones: "
            "scores are too good for ground elsewhere"
        )
    scores = cross_validate(features, points.labels, groups, _SEED)
    probe = fit_few(features["encoder"], points.labels)
    probe, temperature = tempered(probe, features["encoder"], points.labels, groups, _SEED)
    record = OwnProbe(
        class_names=list(points.classes),
        weights_sha256=run.weights_sha256,
        points=dict(zip(points.classes, counts.tolist(), strict=True)),
        temperature=temperature,
        score=OwnScore(
            metric="balanced accuracy",
            by=f"{NUM_SPLITS} random splits by location, {HELD_OUT:.0%} of the places held out",
            places=int(groups.max() + 1),
            places_apart_px=reach,
            one_class=OneClass(balanced_accuracy=1 / len(points.classes)),
            **{name: ContenderScore.of(each, points.classes) for name, each in scores.items()},
        ),
    )
    about = record.model_dump(exclude={"product", "score", "trained_at"})
    if run.band_set is not None:
        about["band_set"] = run.band_set
    save_probe(output / PROBE_FILE, probe, about)
    return record


def _write_next(
    output: Path,
    grid: CellGrid,
    source: RasterInput,
    points: Labelled,
    classes: Sequence[MapClass],
) -> None:
    """Write the places to label next, as points with an empty class."""
    files = products(output / MAP_FILE)
    entropy, outside, _ = _bands(files["uncertainty"])
    (mapped,) = _bands(files["classes"])
    probabilities = _bands(files["probabilities"])
    usable = (entropy != NODATA) & centres_inside(grid)
    familiar = usable & (outside != 1)
    if familiar.sum() >= NUM_NEXT:  # a label of odd ground helps nowhere else
        usable = familiar
    cells = next_places(entropy, usable, points.cells, NUM_NEXT)
    lon, lat = cells_lonlat(cells, grid, source)
    row, col = cells.T
    names = {each.id: each.name for each in classes}
    table = gpd.GeoDataFrame(
        {
            "rank": np.arange(1, len(cells) + 1),
            "class": [None] * len(cells),
            "guess": [names[int(number)] for number in mapped[row, col]],
            "probability": probabilities[:, row, col].max(0, initial=0) / 100,
            "uncertainty": entropy[row, col] / 100,
            "lon": lon.round(7),
            "lat": lat.round(7),
        },
        geometry=gpd.points_from_xy(lon.round(7), lat.round(7)),
        crs="EPSG:4326",
    )
    places = table.to_geo_dict(drop_id=True) | {"product": _NEXT_PRODUCT}
    write_text(output / NEXT_FILE, json.dumps(places) + "\n")


def _bands(path: Path) -> UInt8[np.ndarray, "band row col"]:
    with existing(path) as file:
        return file.read_window(0, 0, *file.shape)


def probe_classifier(run: Run, path: Path) -> Classifier:
    """A probe in a file, which must have been fitted on this run's features.

    Raises:
        DatasetError: the file holds no probe.
        ContractError: it belongs to other weights or bands, or is of another width.
    """
    probe, about = load_probe(path)
    own = run.weights_sha256
    given = own if about.weights_sha256 is None else about.weights_sha256
    if given != own or len(probe.mean) != run.model.config.width:
        raise ContractError(
            f"probe: {path} was fitted on the features of another run than {run.path} (width "
            f"{len(probe.mean)}, weights {given[:12]}...): give the run it was fitted on, or "
            "fit a probe on this one"
        )
    if about.band_set != run.band_set:
        fitted, asked = (each or "all bands" for each in (about.band_set, run.band_set))
        raise ContractError(
            f"probe: {path} was fitted on the features of {fitted}, the raster is read in {asked}: "
            "give a raster of those bands, or fit a probe on this one"
        )
    names = about.class_names or [BHARATEO_CLASSES[cls].name for cls in probe.classes]
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    kept = {"classifier": f"linear probe {path.name}", "sha256": sha256}
    encoder = FrozenEncoder.of_run(run)
    return Classifier(encoder, own_classes(names), linear_look(encoder, probe), kept)


def linear_look(encoder: FrozenEncoder, probe: LinearProbe) -> Look:
    """Features, and the probe's logits of them."""
    arrays = (probe.mean, probe.std, probe.weight, probe.bias)
    mean, std, weight, bias = (torch.from_numpy(array).float() for array in arrays)

    def look(image: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        features = encoder.features(image, valid)
        return features, (features.float() - mean) / std @ weight + bias

    return look
