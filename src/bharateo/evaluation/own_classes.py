"""From a person's labels to a map of their classes: what tells them apart, how well, where next.

::

    DIR/map.tif                  the map, a cell a pixel, with its other files (``inference.map``)
    DIR/label-next.geojson       20 places to label next, with an empty field ``class`` to fill
    DIR/probe.safetensors        with a run: a linear probe on its vectors, for ``bharateo map``
    DIR/probe.json               what was chosen, all scores, counts and provenance; written last
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import geopandas as gpd
import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from bharateo.artefacts import Record
from bharateo.errors import ConfigError, ContractError, DatasetError
from bharateo.evaluation.choice import NUM_FOLDS, NUM_REPEATS, Choice, Fitted, choose
from bharateo.evaluation.cross_validation import (
    LEAST_GROUPS,
    Score,
    fit_few,
    spatial_groups,
    tempered,
)
from bharateo.evaluation.features import random_encoder
from bharateo.evaluation.probes import LinearProbe, load_probe, save_probe
from bharateo.files import read_bytes, write_json, write_text
from bharateo.inference.domain import QUANTILE, Domain
from bharateo.inference.encoder import FrozenEncoder, device_of
from bharateo.inference.inputs import RasterInput
from bharateo.inference.legend import own_classes, recoloured
from bharateo.inference.map import (
    AREAS_OF,
    NODATA,
    Classifier,
    DomainQuantile,
    Drawn,
    Look,
    MapClass,
    MapOptions,
    MapPlan,
    MapRecord,
    map_classes,
    own_products,
    products,
    write_drawn,
)
from bharateo.inference.pixel_features import (
    PixelFeatures,
    band_features,
    energy_features,
    in_cells,
    token_features,
)
from bharateo.inference.points import (
    Labelled,
    cells_lonlat,
    features_at,
    next_places,
    place,
)
from bharateo.inference.products import MadeBy
from bharateo.inference.tiles import (
    CellGrid,
    Progress,
    Tile,
    TilePredictions,
    keep_all,
    pixels_under,
)
from bharateo.landcover import BHARATEO_CLASSES, Colour, LandCoverClass
from bharateo.outputs import Own, json_of, record_in
from bharateo.pixels.raster import existing
from bharateo.training.run import Run
from bharateo.version import __version__

PROBE_FILE, MAP_FILE = "probe.safetensors", "map.tif"
NEXT_FILE, RECORD_FILE = "label-next.geojson", "probe.json"
NUM_NEXT = 20
APART_PX = 128
"""Labels nearer than this are taken for one place, where there is no run to say how far it sees."""

_TILE_PX = 256
_ROWS_AT_ONCE = 32
"""Of a tile that are classified together: their features stay in the processor's cache."""

_PLACE_PX = 5
"""Side of a place to label: what a person can tell on a picture."""

_NEXT_PRODUCT = "places to label"
_SEED = 0
_TWIN = "untrained"
_SIMPLEST = "logistic regression"
_NAMED = 5


class ContenderScore(Record):
    """A score with its interval; ``recall`` is None of a class that was never scored."""

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


class CandidateScore(Record):
    """Some kinds of features and a classifier, with their cross-validated balanced accuracy."""

    features: list[str]
    classifier: str
    balanced_accuracy: float


class OwnScore(Record):
    """What is expected on other ground of what was ``chosen``, and every candidate's own score.

    ``reached`` holds what is expected: that the best of many candidates was lucky, too, is taken
    out of it (``evaluation.choice``).
    """

    metric: str
    by: str
    places: int
    places_apart_px: int | float
    one_class: float
    chosen: CandidateScore
    reached: ContenderScore
    candidates: list[CandidateScore]


class Missed(Record):
    """Labels that the map does not repeat."""

    where: str
    label: str
    mapped: str
    probability: float


class OwnProbe(Record):
    """What a person's classes are told apart by, and what it reached."""

    product: Literal["probe"] = "probe"
    class_names: list[str]
    weights_sha256: str | None
    points: dict[str, int]
    temperature: float
    features: dict[str, str]
    left_out: dict[str, str]
    score: OwnScore
    missed: list[Missed] = Field(default_factory=list)
    trained_at: list[tuple[float, float]] = Field(
        default_factory=list, description="longitude and latitude of the labelled pixels"
    )

    def lines(self) -> Iterator[str]:
        """For a terminal: every score, the chosen one's with its interval, recall by class, and
        which labels the map does not repeat.
        """
        score, reached = self.score, self.score.reached
        counts = ", ".join(f"{name} {count}" for name, count in self.points.items())
        yield f"labelled pixels: {counts}, in {score.places} places"
        yield f"balanced accuracy, {score.by}:"
        kinds = list(dict.fromkeys(tuple(each.features) for each in score.candidates))
        names = list(dict.fromkeys(each.classifier for each in score.candidates))
        width = max(len(" + ".join(kind)) for kind in kinds)
        yield f"  {'':{width}}  {'  '.join(names)}"
        for kind in kinds:
            values = [each for each in score.candidates if tuple(each.features) == kind]
            row = "  ".join(
                f"{each.balanced_accuracy:.3f}{'*' if each == score.chosen else ' '}".ljust(
                    len(each.classifier)
                )
                for each in values
            )
            yield f"  {' + '.join(kind):{width}}  {row}".rstrip()
        yield f"  {'one class for all':{width}}  {score.one_class:.3f}"
        for name, why in self.left_out.items():
            yield f"  {name}: left out, {why}"
        low, high = reached.balanced_accuracy_ci95
        yield f"chosen (*): {score.chosen.classifier} of {' + '.join(score.chosen.features)}"
        yield (
            f"expected on other ground: {reached.balanced_accuracy:.2f} (95 %: {low:.2f} to "
            f"{high:.2f}), its luck of being the best taken out"
        )
        recall = ", ".join(
            f"{name} {'not known' if value is None else f'{value:.2f}'}"
            for name, value in reached.recall.items()
        )
        yield f"recognised of each class: {recall}"
        num = sum(self.points.values())
        if not self.missed:
            yield f"the map repeats all {num} labels"
            return
        named = "; ".join(
            f"{each.where} ({each.label}, mapped {each.mapped} at {each.probability:.0%})"
            for each in self.missed[:_NAMED]
        )
        more = f"; and {len(self.missed) - _NAMED} more" if len(self.missed) > _NAMED else ""
        yield (
            f"the map repeats {num - len(self.missed)} of {num} labels. Not {named}{more}: what is "
            "chosen sees these as more like another class's labels than their own's. Look at them "
            "in QGIS: a label beside its place, or a kind of ground that needs labels of its own"
        )


class OwnClasses(OwnProbe):
    """The contents of ``probe.json``: what was chosen, and the map it made."""

    map: MapRecord


@dataclass(frozen=True)
class OfRun:
    """A run that may be chosen: the raster in its bands, and its domain where known."""

    run: Run
    source: RasterInput
    domain: Domain | None = None
    precision: str = "fp32"


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
    source: RasterInput,
    labels: gpd.GeoDataFrame,
    output: Path,
    progress: Progress,
    say: Callable[[str], object],
    of_run: OfRun | None = None,
    stride_px: int = 1,
    colours: Mapping[str, Colour] | None = None,
) -> OwnClasses:
    """Write everything about a person's classes, and say what was found. ``source`` is the raster
    with all its bands, ``stride_px`` the side of a cell of the map; ``colours`` are by class.

    Raises:
        ConfigError: the labels do not do, with the reason and which; a colour is of no class.
        ContractError: the run is chosen, and most of the raster is out of its domain.
        DatasetError: no score by location is possible.
        SourceError, StorageError: pixels cannot be read, files cannot be written.
    """
    if stride_px < 1:
        raise ConfigError(f"--stride {stride_px}: the side of a cell is a pixel or more")
    grid = CellGrid(source.shape, stride_px, stride_px, stride_px)
    placed = place(labels, source, grid, say)
    classes = recoloured(own_classes(placed.classes), colours or {})
    kinds = {"bands": band_features(source)}
    if energies := energy_features(source):
        kinds["energies"] = energies
    seen = [*kinds.values()]
    if of_run is not None:
        kinds["tokens"], twin = _tokens(of_run)
        seen += [kinds["tokens"], twin]
    features = features_at(placed, grid, seen, progress)
    valid = np.all([~np.isnan(values).any(1) for values in features.values()], axis=0)
    if not valid.all():
        say(f"warning: {int((~valid).sum())} labels lie where the raster has no data: left out")
        placed = placed.take(valid)
        features = {name: values[valid] for name, values in features.items()}
    apart = APART_PX if of_run is None else of_run.run.model.config.chip_px
    groups, reach = spatial_groups(placed.places, apart)
    counts = np.bincount(placed.labels)
    for name, count in zip(placed.classes, counts, strict=True):
        if count == 1:
            say(f"warning: {name} has one point, so nobody can tell how well it is recognised")
    if reach < apart:
        say(
            f"warning: the points lie in fewer than {LEAST_GROUPS} places at least {apart} px "
            f"apart, so places {reach:g} px apart were taken for different ones: scores are too "
            "good for ground elsewhere"
        )
    left_out = {}
    if of_run is not None:
        if why := _no_better_than_untrained(features, placed, groups):
            left_out["tokens"] = why
        features.pop(_TWIN)
        tokens = features.pop("tokens") if left_out else features["tokens"]
    choice = choose(
        features, placed.labels, groups, _SEED,
        lambda done, total: progress(done, total, "what tells the classes apart"),
    )  # fmt: skip
    weights = None
    output.mkdir(parents=True, exist_ok=True)
    (output / RECORD_FILE).unlink(missing_ok=True)
    if of_run is not None:
        weights = of_run.run.weights_sha256
        _write_probe(of_run.run, placed, tokens, groups, output)
    else:
        (output / PROBE_FILE).unlink(missing_ok=True)
    chosen = [kinds[name] for name in choice.chosen.kinds]
    fitted = choice.fit(features, placed.labels)
    drawn, plan = _map(source, grid, classes, chosen, fitted, choice, placed, features, of_run)
    mapped = write_drawn(drawn, plan, output / MAP_FILE, progress, say)
    _write_next(output, grid, source, placed, mapped.classes)
    record = OwnProbe(
        class_names=list(placed.classes),
        weights_sha256=weights,
        points=dict(zip(placed.classes, counts.tolist(), strict=True)),
        temperature=choice.temperature,
        features={name: kind.meaning for name, kind in kinds.items()},
        left_out=left_out,
        score=_scores(choice, placed.classes, groups, reach),
        missed=_missed(output, placed, mapped.classes),
        trained_at=[(x, y) for x, y in cells_lonlat(placed.cells, grid, source).T.tolist()],
    )
    write_json(output / RECORD_FILE, record.model_dump() | {"map": mapped.to_json()})
    return OwnClasses(**dict(record), map=mapped)


def _tokens(of_run: OfRun) -> tuple[PixelFeatures, PixelFeatures]:
    """A run's vectors, and those of the same encoder untrained."""
    run = of_run.run
    encoder = FrozenEncoder.of_run(run)
    own = token_features(encoder, encoder.features, of_run.source, of_run.domain, of_run.precision)
    fresh = random_encoder(run.model, _SEED, device_of(run), run.band_set)
    twin = token_features(encoder, fresh.features, of_run.source, None, of_run.precision)
    return own, PixelFeatures(_TWIN, "the same encoder, untrained", twin.num_features, twin.of)


def _no_better_than_untrained(
    features: dict[str, np.ndarray], labelled: Labelled, groups: np.ndarray
) -> str | None:
    """Why a run's vectors are no candidate: training has not made them better."""
    scores = {
        name: choose(
            {name: features[name]}, labelled.labels, groups, classifiers=(_SIMPLEST,)
        ).chosen.value
        for name in ("tokens", _TWIN)
    }
    if scores["tokens"] > scores[_TWIN]:
        return None
    return (
        f"by {_SIMPLEST} the run's vectors reach {scores['tokens']:.3f}, those of the same encoder "
        f"untrained {scores[_TWIN]:.3f}"
    )


def _scores(choice: Choice, classes: Sequence[str], groups: np.ndarray, reach: float) -> OwnScore:
    candidates = [
        CandidateScore(features=list(c.kinds), classifier=c.classifier, balanced_accuracy=c.value)
        for c in choice.candidates
    ]
    return OwnScore(
        metric="balanced accuracy",
        by=f"cross-validated by location ({NUM_FOLDS} folds, {NUM_REPEATS} times)",
        places=int(groups.max() + 1),
        places_apart_px=reach,
        one_class=1 / len(classes),
        chosen=candidates[choice.candidates.index(choice.chosen)],
        reached=ContenderScore.of(choice.score, classes),
        candidates=candidates,
    )


def _write_probe(
    run: Run, labelled: Labelled, tokens: np.ndarray, groups: np.ndarray, output: Path
) -> None:
    """Keep a linear probe on the run's vectors, with which ``bharateo map`` maps other rasters."""
    probe = fit_few(tokens, labelled.labels)
    probe, temperature = tempered(probe, tokens, labelled.labels, groups, _SEED)
    about = {
        "class_names": list(labelled.classes),
        "weights_sha256": run.weights_sha256,
        "points": dict(zip(labelled.classes, np.bincount(labelled.labels).tolist(), strict=True)),
        "temperature": temperature,
    }
    if run.band_set is not None:
        about["band_set"] = run.band_set
    save_probe(output / PROBE_FILE, probe, about)


def _map(
    source: RasterInput,
    grid: CellGrid,
    classes: tuple[LandCoverClass, ...],
    kinds: Sequence[PixelFeatures],
    fitted: Fitted,
    choice: Choice,
    labelled: Labelled,
    features: dict[str, np.ndarray],
    of_run: OfRun | None,
) -> tuple[Drawn, MapPlan]:
    """The map of what was chosen, and what decides it."""
    using = of_run if any(kind.knows_domain for kind in kinds) else None

    def predict(tile: Tile) -> np.ndarray:
        box = pixels_under(tile, grid)
        seen = [in_cells(kind.of(box), grid.stride_px) for kind in kinds]
        values = np.concatenate(
            [each[..., : kind.num_features] for each, kind in zip(seen, kinds, strict=True)], 2
        )
        distance = np.full(tile.shape, np.nan, np.float32)
        for each, kind in zip(seen, kinds, strict=True):
            if kind.knows_domain:
                distance = each[..., kind.num_features]
        known = ~np.isnan(values).any(2)
        predicted = np.full((*tile.shape, len(classes) + 2), np.nan, np.float32)
        for row in range(0, len(known), _ROWS_AT_ONCE):
            rows = slice(row, row + _ROWS_AT_ONCE)
            if known[rows].any():
                logits = fitted(values[rows][known[rows]])
                part = predicted[rows]
                part[known[rows], :-2] = logits - logits.max(1, keepdims=True)
                part[..., -2], part[known[rows], -1] = distance[rows], 1
        if grid.stride_px > 1:
            predicted[..., -1] = _share(source, box, grid.stride_px)
            predicted[~known] = np.nan
        return predicted

    def predictions(folder: Path, progress: Progress) -> TilePredictions:
        tiles = grid.tiles(max(_TILE_PX // grid.stride_px, 1))
        makers = {tile.name: partial(predict, tile) for tile in tiles}
        keep_all(folder, makers, "float16", progress)
        return TilePredictions(grid, tiles, folder)

    decides = hashlib.sha256(json.dumps([choice.chosen.kinds, choice.chosen.classifier,
        choice.temperature, labelled.labels.tolist()]).encode())  # fmt: skip
    for name in choice.chosen.kinds:
        decides.update(np.ascontiguousarray(features[name]).tobytes())
    made_of = source.made_of
    if using is not None:
        made_of = made_of.model_copy(update={"overridden": dict(using.source.overridden)})
    about = {
        "classifier": f"{choice.chosen.classifier} of {' + '.join(choice.chosen.kinds)}",
        "sha256": decides.hexdigest(),
    }
    plan = MapPlan(
        schema_version=1,
        product="map",
        code_version=__version__,
        run=None if using is None else MadeBy.of(using.run),
        source=made_of,
        **about,
        classes=map_classes(classes),
        options=MapOptions(
            stride_px=grid.stride_px, precision="fp32" if using is None else using.precision
        ),
        areas_of=AREAS_OF,
        domain=None if using is None or using.domain is None else DomainQuantile(quantile=QUANTILE),
        labels=None,
    ).sealed()
    attribution = () if using is None else using.run.contract.attribution
    allowing = source if using is None else using.source
    return Drawn(allowing, grid, classes, predictions, attribution), plan


def _share(source: RasterInput, box: Tile, side: int) -> np.ndarray:
    """How much of every cell has data."""
    _, valid = source.read(box.rows.start, box.cols.start, *box.shape)
    rows, cols = (-(-size // side) for size in valid.shape)
    padded = np.zeros((rows * side, cols * side), np.float32)
    padded[: valid.shape[0], : valid.shape[1]] = valid
    share: np.ndarray = padded.reshape(rows, side, cols, side).mean((1, 3))
    return share


def _missed(output: Path, labelled: Labelled, classes: Sequence[MapClass]) -> list[Missed]:
    """The labels that the map does not repeat."""
    files = products(output / MAP_FILE)
    names = {each.id: each.name for each in classes}
    found = []
    with existing(files["classes"]) as mapped, existing(files["probabilities"]) as probabilities:
        for (row, col), label, where in zip(
            labelled.cells.tolist(), labelled.labels.tolist(), labelled.where, strict=True
        ):
            name = names.get(int(mapped.read_window(row, col, 1, 1)[0, 0, 0]), "no data")
            if name != labelled.classes[label]:
                most = float(probabilities.read_window(row, col, 1, 1).max()) / 100
                found.append(
                    Missed(
                        where=where, label=labelled.classes[label], mapped=name, probability=most
                    )
                )
    return found


def _write_next(
    output: Path,
    grid: CellGrid,
    source: RasterInput,
    labelled: Labelled,
    classes: Sequence[MapClass],
) -> None:
    """Write the places to label next, as points with an empty class.

    Places are squares of cells that are unsure as a whole: single ones are so along every edge.
    """
    files = products(output / MAP_FILE)
    side = max(_PLACE_PX // grid.stride_px, 1)
    parts = []
    with existing(files["uncertainty"]) as file:
        height, width = (size // side * side for size in file.shape)
        at_once = max(_TILE_PX // side, 1) * side
        for row in range(0, height, at_once):
            rows = min(at_once, height - row)
            entropy, outside, _ = file.read_window(row, 0, rows, width)
            squares = (rows // side, side, width // side, side)
            known = (entropy != NODATA).reshape(squares).all((1, 3))
            unsure = entropy.reshape(squares).mean((1, 3)).astype(np.uint8)
            odd = (outside == 1).reshape(squares).any((1, 3))
            parts.append(np.stack([unsure, known, odd]))
    every = np.concatenate(parts, 1) if parts else np.zeros((3, 0, 0), np.uint8)
    entropy, usable = every[0], every[1] > 0
    familiar = usable & (every[2] == 0)
    if familiar.sum() >= NUM_NEXT:  # a label of odd ground helps nowhere else
        usable = familiar
    cells = next_places(entropy, usable, labelled.cells // side, NUM_NEXT) * side + side // 2
    lon, lat = cells_lonlat(cells, grid, source)
    names = {each.id: each.name for each in classes}
    with existing(files["classes"]) as mapped, existing(files["probabilities"]) as probabilities:
        places = cells.tolist()
        guesses = [names[int(mapped.read_window(row, col, 1, 1)[0, 0, 0])] for row, col in places]
        most = [float(probabilities.read_window(row, col, 1, 1).max()) for row, col in places]
    table = gpd.GeoDataFrame(
        {
            "rank": np.arange(1, len(cells) + 1),
            "class": [None] * len(cells),
            "guess": guesses,
            "probability": np.array(most) / 100,
            "uncertainty": entropy[tuple((cells // side).T)] / 100,
            "lon": lon.round(7),
            "lat": lat.round(7),
        },
        geometry=gpd.points_from_xy(lon.round(7), lat.round(7)),
        crs="EPSG:4326",
    )
    content = table.to_geo_dict(drop_id=True) | {"product": _NEXT_PRODUCT}
    write_text(output / NEXT_FILE, json.dumps(content) + "\n")


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
