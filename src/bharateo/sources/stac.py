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
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import urljoin, urlsplit

import numpy as np
import shapely
import shapely.affinity
import shapely.geometry
from pydantic import (
    AliasChoices,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)

from bharateo.artefacts import Record, checked, shortened
from bharateo.errors import ConfigError, ItemError
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


class Scene(Record):
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
            ItemError: the geometry is none.
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


# Items, of any catalogue and version of STAC


class _ItemPart(Record):
    """What is used of a STAC item; the rest may be whatever it is, and null is as good as none."""

    model_config = ConfigDict(extra="ignore")

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, said: Any) -> Any:
        if not isinstance(said, Mapping):
            return said
        return {key: value for key, value in said.items() if value not in (None, "")}


def _either(*names: str, **bounds: Any) -> Any:
    """A value under the first of several names, as catalogues and versions of STAC have it."""
    return Field(None, validation_alias=AliasChoices(*names), **bounds)


def _fitting(value: Any, check: ValidatorFunctionWrapHandler) -> Any:
    try:
        return check(value)
    except ValidationError:
        return None


Odd = TypeVar("Odd")
_IfItFits = Annotated[Odd | None, WrapValidator(_fitting)]
"""A part that may as well be anything else, and then is none."""


class _Units(_ItemPart):
    """How stored numbers become physical ones, of STAC 1.0 and 1.1."""

    scale: float | None = _either("raster:scale", "scale")
    offset: float | None = _either("raster:offset", "offset")


class _Grid(_ItemPart):
    """A grid's reference system, of the projection extension 1 and 2."""

    code: str | int | None = _either("proj:code", "proj:epsg")

    @property
    def epsg(self) -> int | None:
        digits = str(self.code).upper().removeprefix("EPSG:")
        return int(digits) if digits.isdecimal() else None


class _Link(_ItemPart):
    rel: str
    href: str


class _Href(_ItemPart):
    href: str


class _Alternates(_ItemPart):
    https: _IfItFits[_Href] = None


class _Asset(_Grid, _Units):
    href: str
    alternate: _IfItFits[_Alternates] = None
    bands: list[_Units] | None = None
    raster_bands: list[_Units] | None = _either("raster:bands")

    def units(self) -> dict[str, float]:
        """Scale and offset of its first band: what is said of the band beats the asset's."""
        found: dict[str, float] = {}
        for each in (self, *(self.bands or ())[:1], *(self.raster_bands or ())[:1]):
            said = {"scale": each.scale, "offset": each.offset}
            found |= {name: value for name, value in said.items() if value is not None}
        return found

    def address(self, base: str) -> str | None:
        """Where the file is fetched: over https where the first address is of another kind.

        None where nobody may give its address, see ``whole_address``.
        """
        first = whole_address(self.href, base)
        if first is None or "://" not in first or first.startswith(("http", "file")):
            return first
        https = self.alternate and self.alternate.https
        return (https and whole_address(https.href, base)) or first


class _Properties(_Grid):
    when: str | None = _either("datetime", "start_datetime")
    platform: str | None = None
    constellation: str | None = None
    cloud_cover: float | None = _either("eo:cloud_cover", ge=0, le=100)
    grid: str | None = _either("grid:code")
    baseline: str | None = _either(
        "s2:processing_baseline", "sentinel:processing_baseline", "processing:version"
    )
    flag: bool | None = _either("earthsearch:boa_offset_applied", "sentinel:boa_offset_applied")
    nodata: float | None = _either("s2:nodata_pixel_percentage", ge=0, le=100)
    coverage: float | None = _either("sentinel:data_coverage", ge=0, le=100)

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


class _Item(_ItemPart):
    id: str = Field(max_length=_SHOWN)
    collection: str | None = None
    geometry: Mapping[str, Any] | None = None
    properties: _Properties
    assets: Mapping[str, Any]
    links: _IfItFits[list[_Link]] = None


def whole_address(href: str, base: str) -> str | None:
    """An address as an item gives it, completed by ``base``, where the item lies, as STAC has it.

    An item on a server never names a file of this machine: None where no server may give such an
    address (``file://``, another driver's, one with a user). An item in a file may name others.
    """
    if "://" not in base:
        return href if "://" in href else str(Path(base).parent / href)
    try:
        whole = urljoin(base, href)
        parts = urlsplit(whole)
    except ValueError:
        return None
    known = parts.scheme in ("http", "https", "s3")
    return whole if known and parts.hostname and not parts.username else None


def scene_of(
    item: Mapping[str, Any], catalogue: Catalogue, bands: Sequence[str], base: str | None = None
) -> Scene:
    """The scene that a STAC item describes, of STAC 0.9, 1.0 or 1.1.

    ``base`` is the address or path that the item was read from; without one, what it says of
    itself where that is on a server, else its catalogue.

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
    if base is None:
        own = next((link.href for link in known.links or () if link.rel == "self"), "")
        whole = whole_address(own, catalogue.url) or ""
        base = whole if whole.startswith(("http://", "https://")) else catalogue.url
    addresses, units, grids = {}, {}, []
    for band in (*bands, "SCL"):
        key = _key(band, known.assets, catalogue)
        address = None
        if key in known.assets:
            asset = checked(_Asset, known.assets[key], f"{where}, asset {key!r}", ItemError, remedy)
            address = asset.address(base)
        if address is None:
            missing = (
                "an address that no catalogue may give in its" if key in known.assets else "no"
            )
            raise ItemError(
                f"{where} has {missing} asset {key!r} for band {band} (it has "
                f"{', '.join(sorted(known.assets))[:_SHOWN]}): name the right key in "
                "data.sentinel2.assets, or leave the band out of data.bands",
                "lack a band",
            )
        addresses[band] = address
        grids.append(asset.epsg)
        if band != "SCL":
            units[key] = asset.units()
    if len({tuple(sorted(each.items())) for each in units.values()}) > 1:
        told = "; ".join(f"{key}: {value}" for key, value in units.items())
        raise ItemError(
            f"{where} gives its bands different scales and offsets ({told[:_SHOWN]}): set "
            "data.sentinel2.offset to applied or subtract, or choose other dates",
            "give their bands different units",
        )
    if known.geometry is None:
        raise ItemError(f"{where} has no geometry; {remedy}", "have no geometry")
    _outline(known.geometry, where)
    keeps_offset = catalogue.rule == "earth-search" and known.collection == _KEEPS_OFFSET
    return Scene(
        id=known.id,
        catalogue=catalogue.url,
        rule="by-baseline" if keeps_offset else catalogue.rule,
        signed=catalogue.signed,
        datetime=_moment(properties.when, where),
        cloud_cover=100.0 if properties.cloud_cover is None else properties.cloud_cover,
        epsg=properties.epsg or grids[0] or properties.tile_epsg,
        geometry=dict(known.geometry),
        assets=addresses,
        baseline=properties.baseline,
        flag=properties.flag,
        raster=next(iter(units.values())),
        nodata_percent=properties.nodata_percent,
    )


def _key(band: str, assets: Mapping[str, Any], catalogue: Catalogue) -> str:
    """The key of a band's asset; a catalogue that nobody knows may name them in any known way."""
    key = catalogue.assets.get(band, band)
    if catalogue.rule != "by-item" or key != band or key in assets:
        return key
    return next((k for each in KNOWN.values() if (k := each.assets[band]) in assets), key)


def _moment(text: str | None, where: str) -> str:
    """When the scene was taken, in UTC."""
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
        parts = []
        for part in getattr(shape, "geoms", [shape]):
            west, _, east, _ = part.bounds
            if east - west > 180 and west >= -180 and east <= 180:
                # Its longitudes jump from 180 to -180: let them run on.
                part = shapely.transform(part, lambda x, y: (x % 360, y), interleaved=False)
            parts.append(part if part.is_valid else shapely.make_valid(part))
        unwound = shapely.union_all(parts)
    except (shapely.errors.ShapelyError, ValueError, TypeError, KeyError, LookupError,
            AttributeError) as error:  # fmt: skip
        raise ItemError(
            f"{problem} ({shortened(str(error))})", "have a geometry that is no outline"
        ) from error
    west, south, east, north = unwound.bounds
    if not unwound.area > 0 or west < -540 or east > 540 or south < -90 or north > 90:
        raise ItemError(problem, "have a geometry that is no outline")
    return shape if shape.is_valid and west >= -180 and east <= 180 else in_range(unwound)


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
