"""STAC catalogues: the four that are known, what they are asked, and the keys to what they list."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from typing import Any
from urllib.parse import urlencode, urlsplit

from jaxtyping import Float64
from numpy import ndarray
from pydantic import ConfigDict, Field

from bharateo.artefacts import Record, checked, parse_json
from bharateo.errors import ConfigError, UnreachableError
from bharateo.pixels.http import Web
from bharateo.pixels.network import harmless_headers, led_to

_MOST_PAGES = 1000
"""Pages of 100 items that a question may have; more are a circle."""

CONTAINER = re.compile(r"https://(?P<account>[a-z0-9]+)\.blob\.core\.windows\.net/(?P<name>[^/]+)/")
"""What the addresses of a container begin with."""

_OPEN_ACCOUNT = "ai4edatasetspublicassets"
_MARGIN_S = 120.0
"""Life that a token must have left to be used: requests that have it wait for their turn."""

_REMEDY = (
    "check the network connection (PC_SDK_SAS_URL names another place for tokens, "
    "PC_SDK_SUBSCRIPTION_KEY one's own limits), then run the same command again"
)


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
    first, _, url = name.partition("=")
    on_web = ("http://", "https://")
    if first in KNOWN and (not url or url.startswith(on_web)):
        known = KNOWN[first]
        keys = {**known.assets, **(assets or {})}
        return Catalogue(first, url or known.url, keys, known.rule, known.signed and not url)
    if not name.startswith(on_web):
        raise ConfigError(
            f"data.sentinel2.catalogue {name!r} is not known: give {', '.join(KNOWN)}, or the URL "
            "of a STAC API with a band map in data.sentinel2.assets"
        )
    for known in KNOWN.values():
        if urlsplit(name).hostname == urlsplit(known.url).hostname:
            keys = {**known.assets, **(assets or {})}
            return Catalogue(known.name, name, keys, known.rule, known.signed)
    return Catalogue(name, name, {**_OWN_KEYS, **(assets or {})}, "by-item")


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
        west, south, east, north = (float(value) for value in bounds)
        try:
            search = self._opened().search(
                collections=[self.collection],
                # Across the antimeridian east is less than west.
                bbox=[west, south, east - 360 if east > 180 else east, north],
                datetime=f"{first}T00:00:00Z/{last}T23:59:59Z",
                query={"eo:cloud_cover": {"lte": cloud}} if self._queries else None,
                limit=100,
            )
            found = []
            for number, page in enumerate(search.pages_as_dicts(), 1):
                found += page["features"]
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
            if self._client is not None:
                return self._client
            import pystac_client  # here, since it takes a second to load
            from pystac.link import Link
            from pystac_client.stac_api_io import StacApiIO

            root, web = self.catalogue.url, self._web

            class Asking(StacApiIO):
                """Asks as everything here does; what it is led to is never a file."""

                def request(
                    self,
                    href: str,
                    method: str | None = None,
                    headers: dict[str, str] | None = None,
                    parameters: dict[str, Any] | None = None,
                ) -> str:
                    # Links may lead to the API's own server, not to others unasked.
                    address = led_to(root, href, "leads")
                    method, body = (method or "GET").upper(), None
                    sent = harmless_headers(headers or {})
                    if method == "GET":
                        given = {
                            n: value for n, value in (parameters or {}).items() if value is not None
                        }
                        if given:
                            query = urlencode(given, doseq=True)
                            address += ("&" if urlsplit(address).query else "?") + query
                    else:
                        sent["Content-Type"] = "application/json"
                        body = json.dumps(parameters or {}).encode()
                    return web.fetch(address, sent, method, body).decode("utf-8")

                def read_text(self, source: Any, *args: Any, **kwargs: Any) -> str:
                    if isinstance(source, Link):
                        return super().read_text(source, *args, **kwargs)
                    return self.request(str(source), *args, **kwargs)

            self._client = pystac_client.Client.open(root, stac_io=Asking(max_retries=None))
            self._queries = self._client.conforms_to("QUERY")
        return self._client

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


def _is_cloudier(item: Any, most: float) -> bool:
    """Whether an item says that it has more cloud; of odd ones ``stac.scene_of`` says more."""
    properties = item.get("properties") if isinstance(item, Mapping) else None
    cloud = properties.get("eo:cloud_cover") if isinstance(properties, Mapping) else None
    return isinstance(cloud, int | float) and cloud > most


# Planetary Computer's tokens: one a storage container, shared, and another before it expires


def unlock(web: Web, address: str, timeout_s: float = 20.0, num_retries: int = 24) -> None:
    """Let ``web`` read the container that an address lies in; addresses elsewhere need no token."""
    container = CONTAINER.match(address)
    if container and container["account"] != _OPEN_ACCOUNT and "sig=" not in address:
        token = _token_of(container["account"], container["name"], timeout_s, num_retries)
        web.unlock(container[0], token)


@cache
def _token_of(account: str, name: str, timeout_s: float, num_retries: int) -> ContainerToken:
    return ContainerToken(account, name, Web(timeout_s, num_retries, num_parallel=1))


class _TokenAnswer(Record):
    """What the service of tokens answers."""

    model_config = ConfigDict(extra="ignore")

    token: str = Field(pattern=r"^[\x21-\x7e]+$")
    expiry: datetime = Field(alias="msft:expiry")


class ContainerToken:
    """The token of a container, asked for when it is needed: a ``Key``. Thread-safe."""

    def __init__(self, account: str, name: str, web: Web) -> None:
        self._account, self._name, self._web = account, name, web
        self._token, self._expiry = "", datetime.now(UTC)
        self._lock = threading.Lock()

    def query(self) -> str:
        """The token, with some life left.

        Raises:
            UnreachableError: the service did not give one, also after retries.
        """
        with self._lock:
            left_s = (self._expiry - datetime.now(UTC)).total_seconds()
            if self._token and left_s >= _MARGIN_S:
                return self._token
            from planetary_computer.settings import Settings  # here: it takes a second to load

            settings = Settings()
            address = f"{settings.sas_url}/{self._account}/{self._name}"
            key = settings.subscription_key
            headers = {"Ocp-Apim-Subscription-Key": key} if key else {}
            what = f"Planetary Computer gave no token for {self._account}/{self._name}"
            try:
                content = self._web.fetch(address, headers)
            except UnreachableError as error:
                raise UnreachableError(f"{what}: {error.reason or error}; {_REMEDY}") from error
            plain = parse_json(content, f"{what}: its answer", UnreachableError, _REMEDY)
            answer = checked(
                _TokenAnswer, plain, f"{what}: in its answer", UnreachableError, _REMEDY
            )
            expiry = answer.expiry
            self._expiry = expiry if expiry.tzinfo else expiry.replace(tzinfo=UTC)
            self._token = answer.token
            return self._token

    def forget(self, query: str) -> None:
        """The storage has refused this token."""
        with self._lock:
            if self._token == query:  # else another thread has had a new one since
                self._token = ""
