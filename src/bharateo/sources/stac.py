"""STAC catalogues: which scenes there are of a place and a season, and which one to take.

A ``Scene`` is what is left of a STAC item: plain values that are stored with the dataset, so that
a build repeats itself without asking again.
"""

from __future__ import annotations

import calendar
import datetime
import json
import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any
from urllib.parse import urlencode, urljoin, urlsplit

import shapely
import shapely.geometry
from jaxtyping import Float64
from numpy import ndarray

from bharateo.errors import ConfigError, SourceError, UnreachableError
from bharateo.network import harmless_headers, led_to
from bharateo.web import Web

SEASONS = {"rabi": (11, 3), "summer": (4, 6), "kharif": (7, 10)}
"""First and last month of India's cropping seasons; ``summer`` is zaid."""

_FULL = 0.98
"""A scene that covers this much of a place covers it."""

_MOST_PAGES = 1000
"""Pages of 100 items that a question may have; more are a circle."""

_LEAST = 0.05
"""A scene that covers less of a place is not worth its bytes."""


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

KNOWN = {each.name: each for each in (EARTH_SEARCH, PLANETARY_COMPUTER)}


def catalogue_of(name: str, assets: Mapping[str, str] | None = None) -> Catalogue:
    """A known catalogue by its name, or any other by its URL, with its own asset keys if given.

    A catalogue by URL follows its items' own scale and offset (``raster:bands``), else their
    processing baseline; one that answers with Earth Search's or Planetary Computer's items should
    be read under that name with ``url`` in its place: ``earth-search=https://...``.

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

    @cached_property
    def outline(self) -> shapely.Geometry:
        """Where the scene holds pixels, in degrees."""
        return shapely.geometry.shape(self.geometry)

    def to_json(self) -> dict[str, Any]:
        """The scene as plain JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Scene:
        """The scene that ``to_json`` wrote.

        Raises:
            SourceError: a field is missing or unknown.
        """
        try:
            return cls(**record)
        except TypeError as error:
            raise SourceError(f"stored scene is incomplete or unknown: {error}") from error


def scene_of(item: Mapping[str, Any], catalogue: Catalogue, bands: Sequence[str]) -> Scene:
    """The scene that a STAC item describes.

    Raises:
        SourceError: the item lacks the asset of a band.
    """
    assets, properties = item["assets"], item["properties"]
    addresses = {}
    for band in (*bands, "SCL"):
        key = catalogue.assets.get(band, band)
        if key not in assets:
            raise SourceError(
                f"item {item['id']} of {catalogue.url} has no asset {key!r} for band {band} (it "
                f"has {', '.join(sorted(assets))}): name the right key in data.sentinel2.assets, "
                "or leave the band out of data.bands"
            )
        addresses[band] = assets[key]["href"]
    first = assets[catalogue.assets.get(bands[0], bands[0])]
    raster = (first.get("raster:bands") or first.get("bands") or [{}])[0]
    return Scene(
        item["id"],
        catalogue.url,
        catalogue.rule,
        catalogue.signed,
        properties["datetime"],
        float(properties.get("eo:cloud_cover", 100.0)),
        _epsg(properties),
        item["geometry"],
        addresses,
        _baseline(properties),
        properties.get("earthsearch:boa_offset_applied"),
        {
            name: float(raster.get(name, raster.get(f"raster:{name}")))
            for name in ("scale", "offset")
            if raster.get(name, raster.get(f"raster:{name}")) is not None
        },
    )


def _epsg(properties: Mapping[str, Any]) -> int | None:
    code = str(properties.get("proj:code") or properties.get("proj:epsg") or "")
    digits = code.upper().removeprefix("EPSG:")
    return int(digits) if digits.isdigit() else None


def _baseline(properties: Mapping[str, Any]) -> str | None:
    for name in ("s2:processing_baseline", "processing:version"):
        if properties.get(name) is not None:
            return str(properties[name])
    return None


def choose(scenes: Sequence[Scene], footprint: shapely.Geometry, epsg: int | None) -> Scene | None:
    """The scene to take of a place: it covers the place, on the same grid, with the least cloud.

    ``footprint`` is in degrees. Of equals the newest processing, then the earliest date. None
    where no scene covers a twentieth of it.
    """

    def rank(scene: Scene) -> tuple[Any, ...]:
        share = scene.outline.intersection(footprint).area / footprint.area
        covered = 1.0 if share >= _FULL else round(share, 2)
        other_grid = epsg is not None and scene.epsg not in (None, epsg)
        numbers = re.findall(r"\d+", scene.baseline or "")
        baseline = tuple(-int(part) for part in numbers) or (1,)  # unknown comes last
        return (
            -covered, other_grid, scene.cloud_cover, baseline, scene.datetime, scene.id,
        )  # fmt: skip

    ranked = sorted((rank(scene), index) for index, scene in enumerate(scenes))
    if not ranked or -ranked[0][0][0] < _LEAST:
        return None
    return scenes[ranked[0][1]]


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
        """All items within bounds (west, south, east, north) and days, with at most that cloud.

        Raises:
            UnreachableError: the API did not answer, also after retries, or not as a STAC API.
        """
        try:
            search = self._opened().search(
                collections=[self.collection],
                bbox=[float(value) for value in bounds],
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
        return [item for item in found if item["properties"].get("eo:cloud_cover", 100.0) <= cloud]

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
