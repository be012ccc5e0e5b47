"""STAC catalogues: which scenes there are of a place and a season, and which one to take.

A ``Scene`` is what is left of a STAC item: plain values that are stored with the dataset, so that
a build repeats itself without asking again.
"""

from __future__ import annotations

import calendar
import datetime
import json
import math
import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any
from urllib.parse import urlencode, urljoin, urlsplit

import numpy as np
import shapely
import shapely.affinity
import shapely.geometry
from jaxtyping import Float64
from numpy import ndarray
from pydantic import ConfigDict, Field

from bharateo.artefacts import Record, checked, shortened
from bharateo.errors import ConfigError, ItemError, SourceError, UnreachableError
from bharateo.pixels.http import Web
from bharateo.pixels.network import harmless_headers, led_to

SEASONS = {"rabi": (11, 3), "summer": (4, 6), "kharif": (7, 10)}
"""First and last month of India's cropping seasons; ``summer`` is zaid."""

_FULL = 0.98
"""A scene that covers this much of a place covers it."""

_MOST_PAGES = 1000
"""Pages of 100 items that a question may have; more are a circle."""

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


@dataclass(frozen=True)
class Catalogue:
    """A STAC API with a collection of Sentinel-2 L2A: where, and how it names things.

    ``assets`` maps a band (and ``SCL``) to its asset key; ``rule`` names how its stored numbers
    relate to reflectance (see ``sentinel2.offset_of``); ``signed`` says that addresses must be
    signed before they are read.
    """

    name: str
    url: str
    assets: Mapping[str, str]
    rule: str
    signed: bool = False


EARTH_SEARCH = Catalogue(
    "earth-search",
    "https://earth-search.aws.element84.com/v1",
    {
        "B02": "blue", "B03": "green", "B04": "red", "B05": "rededge1", "B06": "rededge2",
        "B07": "rededge3", "B08": "nir", "B8A": "nir08", "B11": "swir16", "B12": "swir22",
        "SCL": "scl",
    },
    "earth-search",
)  # fmt: skip

_OWN_KEYS = {
    band: band
    for band in ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12", "SCL")
}

PLANETARY_COMPUTER = Catalogue(
    "planetary-computer",
    "https://planetarycomputer.microsoft.com/api/stac/v1",
    _OWN_KEYS,
    "by-baseline",
    signed=True,
)

COPERNICUS = Catalogue(
    "copernicus",
    "https://stac.dataspace.copernicus.eu/v1",
    {
        band: f"{band}_{'10m' if band in ('B02', 'B03', 'B04', 'B08') else '20m'}"
        for band in _OWN_KEYS
    },
    "by-item",
)

DIGITAL_EARTH_AFRICA = Catalogue(
    "digital-earth-africa",
    "https://explorer.digitalearth.africa/stac",
    _OWN_KEYS,
    "earth-search",
)
"""Its collection ``s2_l2a`` holds Element 84's files."""

KNOWN = {
    each.name: each for each in (EARTH_SEARCH, PLANETARY_COMPUTER, COPERNICUS, DIGITAL_EARTH_AFRICA)
}

_KEEPS_OFFSET = "sentinel-2-c1-l2a"
"""Earth Search's collection of files as ESA made them; the others are harmonised."""


def catalogue_of(name: str, assets: Mapping[str, str] | None = None) -> Catalogue:
    """A known catalogue by its name or its URL, or any other by its URL, with its own asset keys
    if given.

    Any other follows what its items say of themselves: whether the offset has been removed, else
    their scale and offset, else their processing baseline. Where one answers with the items of a
    known catalogue but is silent on these, it is read under that name with ``url`` in its place:
    ``earth-search=https://...``.

    Raises:
        ConfigError: it is neither.
    """
    name, _, url = name.partition("=") if name.partition("=")[0] in KNOWN else (name, "", "")
    if name in KNOWN:
        known = KNOWN[name]
        keys = {**known.assets, **(assets or {})}
        return Catalogue(name, url or known.url, keys, known.rule, known.signed and not url)
    if not name.startswith(("http://", "https://")):
        raise ConfigError(
            f"data.sentinel2.catalogue {name!r} is not known: give {', '.join(KNOWN)}, or the URL "
            "of a STAC API with a band map in data.sentinel2.assets"
        )
    for known in KNOWN.values():
        if urlsplit(name).hostname == urlsplit(known.url).hostname:
            keys = {**known.assets, **(assets or {})}
            return Catalogue(known.name, name, keys, known.rule, known.signed)
    return Catalogue(name, name, {**_OWN_KEYS, **(assets or {})}, "by-item")


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
    first, last = _days(dates)
    if not seasons:
        return (Occasion("all", ((str(first), str(last)),)),)
    found = []
    for text in seasons:
        name, months = _season(text)
        spans = tuple(_spans(first, last, months))
        if not spans:
            raise ConfigError(
                f"data.sentinel2.seasons {text!r} has no day in data.sentinel2.dates {dates}: "
                "choose other dates or leave the season out"
            )
        found.append(Occasion(name, spans))
    names = [occasion.name for occasion in found]
    if len({*names}) < len(names):
        raise ConfigError(f"data.sentinel2.seasons {list(seasons)}: a name is given twice")
    return tuple(found)


def _days(dates: str) -> tuple[datetime.date, datetime.date]:
    try:
        first, last = (datetime.date.fromisoformat(day.strip()) for day in dates.split("/"))
    except ValueError as error:
        raise ConfigError(
            f"data.sentinel2.dates {dates!r} is not FIRST/LAST, e.g. 2021-01-01/2021-12-31 "
            f"({error})"
        ) from error
    if first > last:
        raise ConfigError(f"data.sentinel2.dates {dates!r}: the first day comes after the last")
    return first, last


def _season(text: str) -> tuple[str, tuple[int, int]]:
    if text in SEASONS:
        return text, SEASONS[text]
    match = re.fullmatch(r"([\w-]+)=(\d{1,2})-(\d{1,2})", text)
    if not match or not all(1 <= int(match[i]) <= 12 for i in (2, 3)):
        raise ConfigError(
            f"data.sentinel2.seasons {text!r} is not known: give {', '.join(SEASONS)} or "
            "NAME=FIRST-LAST in months, e.g. monsoon=6-9"
        )
    return match[1], (int(match[2]), int(match[3]))


def _spans(
    first: datetime.date, last: datetime.date, months: tuple[int, int]
) -> Iterable[tuple[str, str]]:
    """The season in every year that it touches, cut to the dates; it may run over New Year."""
    for year in range(first.year - 1, last.year + 1):
        end_year = year + (months[1] < months[0])
        start = datetime.date(year, months[0], 1)
        end = datetime.date(end_year, months[1], calendar.monthrange(end_year, months[1])[1])
        if start <= last and end >= first:
            yield str(max(start, first)), str(min(end, last))


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
    _check_product(properties, where)
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
        properties.epsg or first.epsg or _epsg_of_tile(properties.grid),
        dict(known.geometry),
        addresses,
        properties.baseline or properties.first_baseline or properties.version,
        flag,
        next(iter(numbers.values())),
        properties.nodata_percent,
    )


def _check_product(properties: _Properties, where: str) -> None:
    """Other satellites have bands of the same names."""
    for said in (properties.platform, properties.constellation):
        if said is not None and not re.match(r"s(entinel)?[ _-]?2", said, re.IGNORECASE):
            raise ItemError(
                f"{where} is of {shortened(said)}, not of Sentinel-2: choose a collection of "
                "Sentinel-2 L2A in data.sentinel2.collection",
                "are of another satellite",
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


def _epsg_of_tile(grid: str | None) -> int | None:
    """The UTM zone of a tile such as ``MGRS-43RGM``."""
    tile = re.fullmatch(r"MGRS-(\d{1,2})([C-HJ-NP-X])[A-Z]{2}", grid or "")
    return int(tile[1]) + (32600 if tile[2] >= "N" else 32700) if tile else None


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


# Asking


class Client:
    """A connection to a catalogue's API, opened when it is first asked."""

    def __init__(
        self, catalogue: Catalogue, collection: str, timeout_s: float = 30.0, retries: int = 24
    ) -> None:
        self.catalogue = catalogue
        self.collection = collection
        self._web = Web(timeout_s, retries, num_parallel=4)
        self._client: Any = None
        self._queries = False
        self._lock = threading.Lock()

    def items(
        self, bounds: Sequence[float] | Float64[ndarray, "4"], first: str, last: str, cloud: float
    ) -> list[dict[str, Any]]:
        """All items within bounds (west, south, east, north) and days, less those that say they
        have more than that cloud.

        Raises:
            UnreachableError: the API did not answer, also after retries, or not as a STAC API.
        """
        try:
            search = self._opened().search(
                collections=[self.collection],
                bbox=_bbox(bounds),
                datetime=f"{first}T00:00:00Z/{last}T23:59:59Z",
                query={"eo:cloud_cover": {"lte": cloud}} if self._queries else None,
                limit=100,
            )
            found = []
            for number, page in enumerate(search.pages_as_dicts(), 1):
                found += [
                    with_whole_hrefs(item, _own_address(item, self.catalogue.url))
                    for item in page["features"]
                ]
                if number == _MOST_PAGES and any(
                    link["rel"] == "next" for link in page.get("links", [])
                ):
                    raise UnreachableError(
                        f"the catalogue {self.catalogue.url} answers with more than {_MOST_PAGES} "
                        "pages for one place and season: check data.sentinel2.catalogue, or ask "
                        "for fewer days in data.sentinel2.dates"
                    )
        except Exception as error:
            raise self._trouble(error) from error
        # Not every API heeds the query: look again.
        return [item for item in found if not _is_cloudier(item, cloud)]

    def interruptible(self) -> AbstractContextManager[None]:
        """A block in which Ctrl-C ends the waiting of all threads for the catalogue."""
        return self._web.interruptible()

    def _opened(self) -> Any:
        with self._lock:
            if self._client is None:
                self._client = self._open()
                self._queries = self._client.conforms_to("QUERY")
        return self._client

    def _open(self) -> Any:
        import pystac_client  # here, since it takes a second to load
        from pystac.link import Link
        from pystac_client.stac_api_io import StacApiIO

        asked = self._asked

        class Asking(StacApiIO):
            """Asks as everything here does; what it is led to is never a file."""

            def request(
                self,
                href: str,
                method: str | None = None,
                headers: dict[str, str] | None = None,
                parameters: dict[str, Any] | None = None,
            ) -> str:
                return asked(href, (method or "GET").upper(), headers or {}, parameters or {})

            def read_text(self, source: Any, *args: Any, **kwargs: Any) -> str:
                if isinstance(source, Link):
                    return super().read_text(source, *args, **kwargs)
                return self.request(str(source), *args, **kwargs)

        try:
            return pystac_client.Client.open(self.catalogue.url, stac_io=Asking(max_retries=None))
        except Exception as error:
            raise self._trouble(error) from error

    def _asked(
        self, href: str, method: str, headers: Mapping[str, str], parameters: Mapping[str, Any]
    ) -> str:
        """What the API answers; links may lead to its own server, not to others unasked."""
        address = led_to(self.catalogue.url, href, "leads")
        sent, body = harmless_headers(headers), None
        if method == "GET":
            given = {name: value for name, value in parameters.items() if value is not None}
            if given:
                query = urlencode(given, doseq=True)
                address += ("&" if urlsplit(address).query else "?") + query
        else:
            sent["Content-Type"], body = "application/json", json.dumps(parameters).encode()
        return self._web.fetch(address, sent, method, body).decode("utf-8")

    def _trouble(self, error: Exception) -> UnreachableError:
        if isinstance(error, UnreachableError) and not error.reason:
            return error
        said = " ".join(str(getattr(error, "reason", "") or error).split())
        looks_like_html = re.search(r"<(!doctype|html|head|body)", said, re.IGNORECASE)
        reason = (
            "it answers with a web page (HTML), not with STAC"
            if looks_like_html or isinstance(error, ValueError | KeyError | TypeError)
            else said[:300] or type(error).__name__
        )
        return UnreachableError(
            f"the catalogue {self.catalogue.url} could not be asked: {reason}; check "
            "data.sentinel2.catalogue (it is the address of a STAC API's root) and the network "
            "connection, then run the same command again"
        )


def with_whole_hrefs(item: Any, base: str) -> Any:
    """An item as a server gave it, with the addresses of its assets whole.

    Those that are not whole are completed by the item's own, ``base``, as STAC has it, so that they
    never name a file of this machine. Assets whose address no server may give (``file://``,
    another driver's) are taken out.
    """
    if not (isinstance(item, Mapping) and isinstance(item.get("assets"), Mapping)):
        return item  # of odd ones ``scene_of`` says more
    whole = {key: _with_whole_href(asset, base) for key, asset in item["assets"].items()}
    return {**item, "assets": {key: asset for key, asset in whole.items() if asset}}


def _own_address(item: Any, catalogue: str) -> str:
    """Where an item says it lies, on a web server; else the catalogue."""
    try:
        own = next(link["href"] for link in item["links"] if link["rel"] == "self")
        address = urljoin(catalogue, own)
        return address if urlsplit(address).scheme in ("http", "https") else catalogue
    except (StopIteration, KeyError, TypeError, AttributeError, ValueError):
        return catalogue


def _with_whole_href(asset: Any, base: str) -> dict[str, Any] | None:
    """An asset, or another address of one, if a server may give its address."""
    try:
        given = asset["href"]
        if not isinstance(given, str):
            return None
        href = urljoin(base, given)
        parts = urlsplit(href)
    except (KeyError, TypeError, AttributeError, ValueError):
        return None
    if parts.scheme not in ("http", "https", "s3") or not parts.hostname or parts.username:
        return None
    others = asset.get("alternate")
    if not isinstance(others, Mapping):
        return {**asset, "href": href, "alternate": None} if others else {**asset, "href": href}
    whole = {name: _with_whole_href(other, base) for name, other in others.items()}
    alternate = {name: other for name, other in whole.items() if other}
    return {**asset, "href": href, "alternate": alternate}


def _is_cloudier(item: Any, most: float) -> bool:
    """Whether an item says that it has more cloud; of odd ones ``scene_of`` says more."""
    properties = item.get("properties") if isinstance(item, Mapping) else None
    cloud = properties.get("eo:cloud_cover") if isinstance(properties, Mapping) else None
    return isinstance(cloud, int | float) and cloud > most


def _bbox(bounds: Sequence[float] | Float64[ndarray, "4"]) -> list[float]:
    """Bounds as STAC has them: east is less than west across the antimeridian."""
    west, south, east, north = (float(value) for value in bounds)
    return [west, south, east - 360 if east > 180 else east, north]
