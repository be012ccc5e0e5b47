"""Places like this one: the nearest neighbours of a place among an area's vectors.

Vectors are standardised over the area, dimension by dimension, and compared by the cosine of their
angle. The search is exact: every vector is looked at, twice, some at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int64
from odc.geo.geobox import GeoBox
from pyproj import Geod

from bharateo.chips.store import DATASET_FILE, Dataset
from bharateo.errors import ConfigError, DatasetError, EmptyRegionError
from bharateo.inference.area import Area
from bharateo.landcover import BHARATEO_CLASSES, NUM_CLASSES

Progress = Callable[[float, float, str], None]
LonLat = tuple[float, float]

SIDES_AWAY = 2
"""Sides of a patch by which places are at least apart, unless told otherwise."""

_EARTH_RADIUS_M = 6_371_008.8
"""Mean radius of the WGS 84 ellipsoid, (2a + b) / 3."""

_SMALL = 1e-6


def search(
    area: Area,
    like: Sequence[LonLat],
    count: int,
    away_m: float | None = None,
    progress: Progress = lambda *told: None,
) -> gpd.GeoDataFrame:
    """The ``count`` places most like those given (longitude, latitude), best first.

    Columns: ``rank`` (0 the places given, then 1, 2, ...), ``similarity`` (cosine, -1 to 1, with
    the mean direction of those given), ``lon``, ``lat``, the place's outline, and what the area
    says of it. Every place found is more than ``away_m`` metres from those given and from better
    ones (two sides of a patch by default), so that one lake does not fill the list.

    Raises:
        ConfigError: a place lies outside the area; the nearest one inside is told.
    """
    standard = Standard.of(area, progress)
    asked = np.array([_place_at(area, standard, *each) for each in like])
    if away_m is None:
        away_m = SIDES_AWAY * _side_m(area, asked[0])
    similarity = similarities(area, standard, asked, progress)
    found = _best_apart(similarity, area.lonlat, asked, count, away_m)
    places = np.concatenate([asked, found])
    lon, lat = area.lonlat[:, places]
    return area.rows(places).assign(
        rank=[0] * len(asked) + list(range(1, len(found) + 1)),
        similarity=similarity[places].astype(float),
        lon=lon,
        lat=lat,
    )


def _best_apart(
    similarity: Float32[np.ndarray, " place"],
    lonlat: Float[np.ndarray, "2 place"],
    asked: Int64[np.ndarray, " asked"],
    count: int,
    away_m: float,
) -> Int64[np.ndarray, " found"]:
    """The most similar places that keep their distance; fewer where there are no more."""
    left = similarity.copy()
    found: list[int] = []

    def take(place: int | np.integer) -> None:
        left[distances_m(lonlat, lonlat[:, place]) <= away_m] = -np.inf

    for place in asked:
        take(place)
    while len(found) < count and left.max() > -np.inf:
        found.append(int(left.argmax()))
        take(found[-1])
    return np.array(found, np.int64)


@dataclass(frozen=True)
class Standard:
    """Mean and deviation of every dimension over an area, and which of its places have a vector."""

    mean: Float64[np.ndarray, " dim"]
    std: Float64[np.ndarray, " dim"]
    known: Bool[np.ndarray, " place"]

    @classmethod
    def of(cls, area: Area, progress: Progress = lambda *told: None) -> Standard:
        """Those of an area.

        Raises:
            EmptyRegionError: no place has a vector.
        """
        known = np.zeros(area.lonlat.shape[1], bool)
        total: Any = 0.0
        square: Any = 0.0
        count = 0
        for places, vectors in area.chunks():
            exact = vectors.astype(np.float64)
            total, square = total + exact.sum(0), square + (exact**2).sum(0)
            count += len(exact)
            known[places] = True
            progress(count, 2 * len(known), "statistics")
        if not count:
            raise EmptyRegionError(f"{area.path} holds no vector: embed a raster with valid pixels")
        mean = total / count
        variance = np.maximum(square / count - mean**2, 0)
        return cls(mean, np.maximum(np.sqrt(variance), _SMALL), known)

    def directions(self, vectors: Float[np.ndarray, "some dim"]) -> Float[np.ndarray, "some dim"]:
        """Standardised vectors of length 1."""
        return _directions((vectors - self.mean) / self.std)


def similarities(
    area: Area,
    standard: Standard,
    asked: Int64[np.ndarray, " asked"],
    progress: Progress = lambda *told: None,
) -> Float32[np.ndarray, " place"]:
    """Cosine of every place's standardised vector with the mean direction of those asked for.

    -inf where a place has no vector.
    """
    wanted = _directions(standard.directions(area.vectors(asked)).mean(0))
    num_places = len(standard.known)
    similarity = np.full(num_places, -np.inf, np.float32)
    done = num_places
    for places, vectors in area.chunks():
        similarity[places] = standard.directions(vectors) @ wanted
        done += len(places)
        progress(done, 2 * num_places, "searching")
    return similarity


def _directions(vectors: Float[np.ndarray, "*lead dim"]) -> Float[np.ndarray, "*lead dim"]:
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    unit: np.ndarray = vectors / np.maximum(length, _SMALL)
    return unit


def distances_m(
    lonlat: Float[np.ndarray, "2 place"], here: Float[np.ndarray, " 2"]
) -> Float[np.ndarray, " place"]:
    """Metres on the ground from one place to all, good for short distances: on a sphere, flat."""
    north = np.radians(lonlat[1] - here[1])
    east = (lonlat[0] - here[0] + 180) % 360 - 180
    metres: np.ndarray = _EARTH_RADIUS_M * np.hypot(
        north, np.radians(east) * np.cos(np.radians(here[1]))
    )
    return metres


def _place_at(area: Area, standard: Standard, lon: float, lat: float) -> int:
    """The place that holds a point."""
    known = np.flatnonzero(standard.known)
    metres = distances_m(area.lonlat[:, known], np.array([lon, lat]))
    nearest = int(known[metres.argmin()])
    reach_m = _side_m(area, nearest) / np.sqrt(2)
    if metres.min() > reach_m:
        near_lon, near_lat = area.lonlat[:, nearest]
        other_way = distances_m(area.lonlat[:, known], np.array([lat, lon])).min()
        swapped = f"; the other way round it lies inside: --like {lat:.10g},{lon:.10g}"
        raise ConfigError(
            f"--like {lon:.10g},{lat:.10g} (longitude, latitude) lies outside {area.path}; the "
            f"nearest place inside is {near_lon:.5f},{near_lat:.5f}, {metres.min() / 1000:,.1f} km "
            f"away{swapped if other_way <= reach_m and abs(lon) <= 90 else ''}"
        )
    return nearest


def _side_m(area: Area, place: int | np.integer) -> float:
    """Side of a place's outline on the ground, in metres."""
    outline = area.rows(np.array([place])).geometry.iloc[0]
    square_m, _ = Geod(ellps="WGS84").geometry_area_perimeter(outline)
    return float(abs(square_m) ** 0.5)


# What lies there


def dataset_of(area: Area) -> Dataset | None:
    """The dataset whose vectors an area holds; None where it is of a raster, or has gone."""
    folder = Path(area.provenance.get("source", {}).get("dataset", ""))
    try:
        return Dataset.open(folder) if (folder / DATASET_FILE).exists() else None
    except DatasetError:
        return None


def pixel_bounds(outlines: gpd.GeoSeries, grid: GeoBox) -> Float[np.ndarray, "outline 4"]:
    """First column, first row, last column, last row of outlines on a grid, in pixels of it."""
    there = outlines.to_crs(str(grid.crs)).affine_transform((~grid.affine).to_shapely())
    bounds: np.ndarray = there.bounds.to_numpy()
    return bounds


def bounds_in_chips(found: gpd.GeoDataFrame, dataset: Dataset) -> Float[np.ndarray, "outline 4"]:
    """``pixel_bounds`` of places of a dataset, counted from the corner of each one's chip."""
    chips = found["chip"].to_numpy()
    bounds = np.empty((len(found), 4))
    for region in dataset.regions:
        inside = np.flatnonzero(found["region"].to_numpy() == region)
        if len(inside):
            grid = dataset.geobox(region)
            bounds[inside] = pixel_bounds(found.geometry.iloc[inside], grid)
    x, y = (dataset.column(name)[chips].astype(float) for name in ("col", "row"))
    return bounds - np.stack([x, y, x, y], 1)


def with_classes(found: gpd.GeoDataFrame, dataset: Dataset) -> gpd.GeoDataFrame:
    """The places with the share of every class among the labelled pixels of each, and the ``class``
    with the largest one (None without labels).
    """
    names = [each.name for each in BHARATEO_CLASSES]
    shares = np.full((len(found), NUM_CLASSES), np.nan)
    bounds = np.maximum(np.rint(bounds_in_chips(found, dataset)).astype(int), 0)
    for share, chip, (left, top, right, bottom) in zip(shares, found["chip"], bounds, strict=True):
        labels = dataset.landcover(chip)[top:bottom, left:right]
        counts = np.bincount(labels[labels < NUM_CLASSES], minlength=NUM_CLASSES)
        share[:] = counts / max(counts.sum(), 1)
    largest: list[Any] = [names[share.argmax()] if share.any() else None for share in shares]
    return found.assign(**dict(zip(names, shares.T, strict=True)), **{"class": largest})
