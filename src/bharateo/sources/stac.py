"""Scenes: which there are of a place and a season in a catalogue, and which one to take.

A ``Scene`` is what is left of a STAC item: plain values that are stored with the dataset, so that
a build repeats itself without asking again.
"""

from __future__ import annotations

import calendar
import datetime
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import shapely
import shapely.affinity
import shapely.geometry
from jaxtyping import Float64
from numpy import ndarray
from pydantic import ConfigDict, Field

from bharateo.artefacts import Record, checked, shortened
from bharateo.errors import ConfigError, ItemError, SourceError
from bharateo.sources.catalogue import KNOWN, Catalogue

SEASONS = {"rabi": (11, 3), "summer": (4, 6), "kharif": (7, 10)}
"""First and last month of India's cropping seasons; ``summer`` is zaid."""

_FULL = 0.98
"""A scene that covers this much of a place covers it."""

_LEAST = 0.05
"""A scene that covers less of a place is not worth its bytes."""

_TILE_KM2 = 109.8**2
"""Ground of a whole tile. Source: Sentinel-2 Products Specification Document, tiling grid."""

_TRUSTED = 0.95
"""An outline that promises no more ground than this share of what the item says it holds is
believed: outlines are drawn with few corners."""

_KM_PER_DEGREE = 111.2

_SHOWN = 300
"""Characters of what an item has that an error lists."""


_KEEPS_OFFSET = "sentinel-2-c1-l2a"
"""Earth Search's collection of files as ESA made them; the others are harmonised."""


# Occasions


@dataclass(frozen=True)
class Occasion:
    """A season, or the whole time asked for: every place is taken once in it."""

    name: str
    spans: tuple[tuple[str, str], ...]
    """First and last days."""


def occasions(dates: str, seasons: Sequence[str]) -> tuple[Occasion, ...]:
    """The occasions of a configuration, in order; a season over several years is one.

    Raises:
        ConfigError: a date or season cannot be understood, or a season lies outside the dates.
    """
    try:
        first, last = (datetime.date.fromisoformat(day.strip()) for day in dates.split("/"))
    except ValueError as error:
        raise ConfigError(
            f"data.sentinel2.dates {dates!r} is not FIRST/LAST, e.g. 2021-01-01/2021-12-31 "
            f"({error})"
        ) from error
    if first > last:
        raise ConfigError(f"data.sentinel2.dates {dates!r}: the first day comes after the last")
    if not seasons:
        return (Occasion("all", ((str(first), str(last)),)),)
    found: dict[str, Occasion] = {}
    for text in seasons:
        match = re.fullmatch(r"([\w-]+)=(\d{1,2})-(\d{1,2})", text)
        if text in SEASONS:
            name, (first_month, last_month) = text, SEASONS[text]
        elif match and all(1 <= int(match[i]) <= 12 for i in (2, 3)):
            name, first_month, last_month = match[1], int(match[2]), int(match[3])
        else:
            raise ConfigError(
                f"data.sentinel2.seasons {text!r} is not known: give {', '.join(SEASONS)} or "
                "NAME=FIRST-LAST in months, e.g. monsoon=6-9"
            )
        if name in found:
            raise ConfigError(f"data.sentinel2.seasons {list(seasons)}: a name is given twice")
        spans = []
        for year in range(first.year - 1, last.year + 1):
            end_year = year + (last_month < first_month)  # it may run over New Year
            last_day = calendar.monthrange(end_year, last_month)[1]
            start = datetime.date(year, first_month, 1)
            end = datetime.date(end_year, last_month, last_day)
            if start <= last and end >= first:
                spans.append((str(max(start, first)), str(min(end, last))))
        if not spans:
            raise ConfigError(
                f"data.sentinel2.seasons {text!r} has no day in data.sentinel2.dates {dates}: "
                "choose other dates or leave the season out"
            )
        found[name] = Occasion(name, tuple(spans))
    return tuple(found.values())


# Scenes


@dataclass(frozen=True)
class Scene:
    """One acquisition: where its files are, what they show and how they were processed."""

    id: str
    catalogue: str
    rule: str
    signed: bool
    datetime: str
    cloud_cover: float
    epsg: int | None
    geometry: Mapping[str, Any]
    """GeoJSON, degrees: where the scene holds pixels."""
    assets: Mapping[str, str]
    """Band (and ``SCL``) -> address."""
    baseline: str | None
    flag: bool | None
    """``earthsearch:boa_offset_applied``."""
    raster: Mapping[str, float]
    """``scale`` and ``offset`` that the item gives its bands, if any."""
    nodata_percent: float | None = None
    """How much of the tile holds no pixel, where the item says so."""

    @cached_property
    def outline(self) -> shapely.Geometry:
        """Where the scene holds pixels, in degrees, -180 to 180.

        Raises:
            SourceError: the geometry is none.
        """
        return _outline(self.geometry, f"scene {self.id}")

    @cached_property
    def believed(self) -> float:
        """The share of its outline that the scene can fill with pixels, by what it says of nodata.

        Outlines are often those of the whole tile, whatever the tile holds.
        """
        if self.nodata_percent is None:
            return 1.0
        latitude = math.radians(self.outline.centroid.y)
        promised_km2 = self.outline.area * _KM_PER_DEGREE**2 * max(math.cos(latitude), 1e-3)
        held_km2 = _TILE_KM2 * (1 - self.nodata_percent / 100)
        share = min(held_km2 / promised_km2, 1.0)
        return 1.0 if share >= _TRUSTED else share

    def to_json(self) -> dict[str, Any]:
        """The scene as plain JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Scene:
        """The scene that ``to_json`` wrote.

        Raises:
            SourceError: a field is missing, unknown or of another type.
        """
        where = "stored scene is incomplete or unknown"
        remedy = "use the items.json of a dataset as it was written"
        scene = checked(cls, record, where, SourceError, remedy)
        if unknown := [name for name in record if name not in cls.__dataclass_fields__]:
            raise SourceError(f"{where}: {', '.join(unknown)}; {remedy}")
        _ = scene.outline
        return scene


# Items, of any catalogue and version of STAC


class _Part(Record):
    """What is used of a STAC item; the rest may be whatever it is."""

    model_config = ConfigDict(extra="ignore")


class _Numbers(_Part):
    """How stored numbers become physical ones, in the words of STAC 1.0 and 1.1."""

    scale: float | None = None
    offset: float | None = None
    raster_scale: float | None = Field(None, alias="raster:scale")
    raster_offset: float | None = Field(None, alias="raster:offset")

    def said(self) -> dict[str, float]:
        """Scale and offset, of those that are given."""
        scale = self.scale if self.raster_scale is None else self.raster_scale
        offset = self.offset if self.raster_offset is None else self.raster_offset
        given = {"scale": scale, "offset": offset}
        return {name: value for name, value in given.items() if value is not None}


class _Place(_Part):
    href: str


class _Alternates(_Part):
    https: _Place | None = None


class _Grid(_Part):
    """A grid's reference system, in the words of the projection extension 1 and 2."""

    code: str | None = Field(None, alias="proj:code")
    number: int | None = Field(None, alias="proj:epsg")

    @property
    def epsg(self) -> int | None:
        digits = str(self.code or self.number or "").upper().removeprefix("EPSG:")
        return int(digits) if digits.isdecimal() else None


class _Asset(_Grid, _Numbers):
    href: str
    alternate: _Alternates | None = None
    bands: tuple[_Numbers, ...] | None = None
    raster_bands: tuple[_Numbers, ...] | None = Field(None, alias="raster:bands")

    @property
    def address(self) -> str:
        """Where the file is fetched: over https where the first address is of another kind."""
        scheme = self.href.partition(":")[0] if "://" in self.href else ""
        if scheme in ("http", "https", "file", "") or not (self.alternate and self.alternate.https):
            return self.href
        return self.alternate.https.href

    def numbers(self) -> dict[str, float]:
        """Scale and offset of its first band: what is said of the band beats the asset's."""
        of_band: dict[str, float] = {}
        for bands in (self.bands, self.raster_bands):
            of_band |= bands[0].said() if bands else {}
        return {**self.said(), **of_band}


class _Properties(_Grid):
    when: str | None = Field(None, alias="datetime")
    start: str | None = Field(None, alias="start_datetime")
    platform: str | None = None
    constellation: str | None = None
    cloud_cover: float | None = Field(None, alias="eo:cloud_cover", ge=0, le=100)
    grid: str | None = Field(None, alias="grid:code")
    baseline: str | None = Field(None, alias="s2:processing_baseline")
    first_baseline: str | None = Field(None, alias="sentinel:processing_baseline")
    version: str | None = Field(None, alias="processing:version")
    flag: bool | None = Field(None, alias="earthsearch:boa_offset_applied")
    first_flag: bool | None = Field(None, alias="sentinel:boa_offset_applied")
    nodata: float | None = Field(None, alias="s2:nodata_pixel_percentage", ge=0, le=100)
    coverage: float | None = Field(None, alias="sentinel:data_coverage", ge=0, le=100)

    @property
    def nodata_percent(self) -> float | None:
        if self.nodata is not None or self.coverage is None:
            return self.nodata
        return 100 - self.coverage

    @property
    def tile_epsg(self) -> int | None:
        """The UTM zone of a tile such as ``MGRS-43RGM``."""
        tile = re.fullmatch(r"MGRS-(\d{1,2})([C-HJ-NP-X])[A-Z]{2}", self.grid or "")
        return int(tile[1]) + (32600 if tile[2] >= "N" else 32700) if tile else None


class _Item(_Part):
    id: str = Field(min_length=1, max_length=_SHOWN)
    collection: str | None = None
    geometry: Mapping[str, Any] | None
    properties: _Properties
    assets: Mapping[str, Any]


def scene_of(item: Mapping[str, Any], catalogue: Catalogue, bands: Sequence[str]) -> Scene:
    """The scene that a STAC item describes, of STAC 0.9, 1.0 or 1.1.

    Raises:
        ItemError: the item lacks the asset of a band, or cannot be used for another reason.
    """
    name = item.get("id") if isinstance(item, Mapping) else None
    where = f"item {shortened(str(name))} of {catalogue.url}"
    remedy = "it cannot be used: choose other dates or another catalogue"
    known = checked(_Item, item, where, ItemError, remedy)
    properties = known.properties
    for said in (properties.platform, properties.constellation):
        if said is not None and not re.match(r"s(entinel)?[ _-]?2", said, re.IGNORECASE):
            # Other satellites have bands of the same names.
            raise ItemError(
                f"{where} is of {shortened(said)}, not of Sentinel-2: choose a collection of "
                "Sentinel-2 L2A in data.sentinel2.collection",
                "are of another satellite",
            )
    addresses, numbers = {}, {}
    for band in (*bands, "SCL"):
        key = _key(band, known.assets, catalogue)
        if key not in known.assets:
            raise ItemError(
                f"{where} has no asset {key!r} for band {band} (it has "
                f"{', '.join(sorted(known.assets))[:_SHOWN]}): name the right key in "
                "data.sentinel2.assets, or leave the band out of data.bands",
                "lack a band",
            )
        asset = checked(_Asset, known.assets[key], f"{where}, asset {key!r}", ItemError, remedy)
        addresses[band] = asset.address
        if band != "SCL":
            numbers[key] = asset.numbers()
    if len({tuple(sorted(each.items())) for each in numbers.values()}) > 1:
        told = "; ".join(f"{key}: {value}" for key, value in numbers.items())
        raise ItemError(
            f"{where} gives its bands different scales and offsets ({told[:_SHOWN]}): set "
            "data.sentinel2.offset to applied or subtract, or choose other dates",
            "give their bands different units",
        )
    first = checked(_Grid, known.assets[_key(bands[0], known.assets, catalogue)], where,
                    ItemError, remedy)  # fmt: skip
    if known.geometry is None:
        raise ItemError(f"{where} has no geometry; {remedy}", "have no geometry")
    _outline(known.geometry, where)
    keeps_offset = catalogue.rule == "earth-search" and known.collection == _KEEPS_OFFSET
    flag = properties.first_flag if properties.flag is None else properties.flag
    return Scene(
        known.id,
        catalogue.url,
        "by-baseline" if keeps_offset else catalogue.rule,
        catalogue.signed,
        _moment(properties, where),
        100.0 if properties.cloud_cover is None else properties.cloud_cover,
        properties.epsg or first.epsg or properties.tile_epsg,
        dict(known.geometry),
        addresses,
        properties.baseline or properties.first_baseline or properties.version,
        flag,
        next(iter(numbers.values())),
        properties.nodata_percent,
    )


def _key(band: str, assets: Mapping[str, Any], catalogue: Catalogue) -> str:
    """The key of a band's asset; a catalogue that nobody knows may name them in any known way."""
    key = catalogue.assets.get(band, band)
    if catalogue.rule != "by-item" or key != band or key in assets:
        return key
    return next((k for each in KNOWN.values() if (k := each.assets[band]) in assets), key)


def _moment(properties: _Properties, where: str) -> str:
    """When the scene was taken, in UTC."""
    text = properties.when or properties.start
    try:
        moment = datetime.datetime.fromisoformat(text or "")
    except ValueError:
        raise ItemError(
            f"{where} has datetime {shortened(repr(text))}, which is no time: choose other dates "
            "or another catalogue",
            "do not say when they were taken",
        ) from None
    if text and text.endswith("Z"):
        return text
    moment = moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)
    return moment.astimezone(datetime.UTC).isoformat().replace("+00:00", "Z")


def _outline(geometry: Mapping[str, Any], where: str) -> shapely.Geometry:
    """A GeoJSON geometry as the polygons it means, in -180 to 180.

    Outlines that cross themselves are mended, and those that cross the antimeridian cut there.
    """
    problem = f"{where} has a geometry that is no outline: choose other dates or another catalogue"
    try:
        shape = shapely.geometry.shape(geometry)
        if not np.isfinite(shapely.get_coordinates(shape)).all():
            raise ValueError("a coordinate is no number")
        unwound = shapely.union_all([_unwound(part) for part in getattr(shape, "geoms", [shape])])
    except (shapely.errors.ShapelyError, ValueError, TypeError, KeyError, LookupError,
            AttributeError) as error:  # fmt: skip
        raise ItemError(
            f"{problem} ({shortened(str(error))})", "have a geometry that is no outline"
        ) from error
    if not unwound.area > 0:
        raise ItemError(problem, "have a geometry that is no outline")
    west, south, east, north = unwound.bounds
    if west < -540 or east > 540 or south < -90 or north > 90:
        raise ItemError(problem, "have a geometry that is no outline")
    return shape if shape.is_valid and west >= -180 and east <= 180 else in_range(unwound)


def _unwound(polygon: shapely.Geometry) -> shapely.Geometry:
    """A valid polygon whose longitudes run on past 180 where they jump from 180 to -180."""
    west, _, east, _ = polygon.bounds
    if east - west > 180 and west >= -180 and east <= 180:
        polygon = shapely.transform(polygon, _positive)
    if not polygon.is_valid:
        polygon = shapely.make_valid(polygon)
    return polygon


def _positive(points: Float64[ndarray, "point 2"]) -> Float64[ndarray, "point 2"]:
    points = points.copy()
    points[:, 0] %= 360
    return points


def in_range(shape: shapely.Geometry) -> shapely.Geometry:
    """A shape whose longitudes may run past 180, cut at the antimeridian."""
    west, _, east, _ = shape.bounds
    if west >= -180 and east <= 180:
        return shape
    parts = [
        shapely.affinity.translate(shape.intersection(shapely.box(x - 180, -90, x + 180, 90)), -x)
        for x in (-360, 0, 360)
    ]
    return shapely.union_all(parts)


def choose(scenes: Sequence[Scene], footprint: shapely.Geometry, epsg: int | None) -> Scene | None:
    """The first of ``ranked``; None where no scene covers a twentieth of the place."""
    return next(iter(ranked(scenes, footprint, epsg)), None)


def ranked(scenes: Sequence[Scene], footprint: shapely.Geometry, epsg: int | None) -> list[Scene]:
    """The scenes of a place, best first: they cover it, on the same grid, with the least cloud.

    ``footprint`` is in degrees. Cover is what the outline promises, less what the item's own
    nodata takes from it. Of equals the newest processing, then the earliest date. Without those
    that cover less than a twentieth.
    """
    footprint = in_range(footprint)
    found = []
    for scene in scenes:
        share = scene.outline.intersection(footprint).area / footprint.area
        if round(share, 2) < _LEAST:
            continue
        share *= scene.believed
        covered = 1.0 if share >= _FULL else round(share, 2)
        other_grid = epsg is not None and scene.epsg not in (None, epsg)
        numbers = re.findall(r"\d+", scene.baseline or "")
        baseline = tuple(-int(part) for part in numbers) or (1,)  # unknown comes last
        found.append((
            (-covered, other_grid, scene.cloud_cover, baseline, scene.datetime, scene.id), scene,
        ))  # fmt: skip
    return [scene for _, scene in sorted(found, key=lambda each: each[0])]
