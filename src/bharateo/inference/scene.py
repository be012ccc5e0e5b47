"""The Sentinel-2 scene of a STAC item or a .SAFE product, on its 10 m grid, as input of a run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from affine import Affine
from jaxtyping import Bool, UInt16
from odc.geo.geobox import GeoBox

from bharateo.config import Sentinel2Config
from bharateo.errors import (
    ConfigError,
    ContractError,
    ItemError,
    SourceError,
)
from bharateo.inference.contract import canonical
from bharateo.pixels.http import Web
from bharateo.sensor import SENTINEL2_L1C, SENTINEL2_L2A, Sensor
from bharateo.sources.catalogue import EARTH_SEARCH, KNOWN, PLANETARY_COMPUTER, Catalogue
from bharateo.sources.safe import SENSORS, metadata_of, product_scene
from bharateo.sources.sentinel2 import (
    OFFSET_DN,
    DarkGround,
    SceneSource,
    Sentinel2,
    contradiction,
)
from bharateo.sources.stac import Scene, scene_of
from bharateo.training.contract import Differences

_UNCLASSIFIED = 7
"""The scene class of ground of which nothing else is known."""


class ScenePixels:
    """Reflectance x 10000 of a scene, harmonised; valid where it shows land, water or snow, or
    wherever there are pixels if it is not ``masked``.

    20 m bands come to 10 m by bilinear.
    """

    scale = SENTINEL2_L2A.scale

    def __init__(self, location: str, source: SceneSource, masked: bool = True) -> None:
        self.location, self._source, self._masked = location, source, masked
        self._bands = source.source.sensor.band_names
        self._ground = DarkGround()
        self.geobox = _grid_10m(source)

    @property
    def provenance(self) -> Mapping[str, Any]:
        """The scene, the version of each of its files, and what the offset was known from."""
        scene, source = self._source.scene, self._source.source
        names = (*self._bands, "SCL") if self._masked else self._bands
        files = {n: {"file": scene.assets[n], **source.open(scene, n).identity} for n in names}
        return {
            "item": scene.id,
            "datetime": scene.datetime,
            "harmonised": asdict(self._source.offset),
            "mask": "scl" if self._masked else "none",
            "files": files,
        }

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know of how it is read."""
        offset = self._source.offset
        mask = "SCL, which leaves land, water and snow" if self._masked else "none"
        return (f"offset: {offset.dn} ({offset.evidence}, baseline {offset.baseline})",
                f"mask: {mask}")  # fmt: skip

    def read(
        self, row: int, col: int, height: int, width: int
    ) -> tuple[UInt16[np.ndarray, "band row col"], Bool[np.ndarray, "row col"]]:
        """Stored values of a window inside the scene, and where they are valid.

        Raises:
            CorruptRasterError, UnreachableError: a file cannot be read.
        """
        grid = self.geobox[row : row + height, col : col + width]
        classes = None if self._masked else np.full(grid.shape, _UNCLASSIFIED, np.uint8)
        raster = self._source.read(grid, classes)
        self._ground += DarkGround(**raster.provenance["dark_ground"])
        return raster.values, raster.valid

    def check_offset(self, differences: Differences) -> None:
        """Refuse an offset that the pixels read so far contradict.

        One that was stated is contradicted only where it is subtracted.

        Raises:
            ContractError: they do, and ``unit`` is not allowed to differ.
        """
        offset, stated = self._source.offset, self._source.source.config.offset != "auto"
        wrong = contradiction(self._ground, offset)
        if wrong and (offset.dn or not stated):
            remedy = "add --offset 0" if offset.dn else f"add --offset {-OFFSET_DN * self.scale:g}"
            differences.add("unit", f"{wrong.partition(';')[0]} ({self.location})", remedy)


def _grid_10m(source: SceneSource) -> GeoBox:
    """The grid of the scene's 10 m files, or of others with each pixel in four."""
    band = min(source.source.sensor.bands, key=lambda band: band.resolution_m)
    grid = source.source.open(source.scene, band.name).geobox
    split = round(band.resolution_m / 10)
    height, width = grid.shape
    shape = (height * split, width * split)
    return GeoBox(shape, grid.affine @ Affine.scale(1 / split), grid.crs)


def is_item(location: str) -> bool:
    """Whether a location is that of a STAC item: a JSON file, or an address of a STAC API."""
    path = urlsplit(location).path if "://" in location else location
    return path.endswith((".json", ".geojson")) or ("://" in location and "/items/" in path)


def open_scene(
    location: str,
    sensor: Sensor | None,
    offset: float | None,
    mask: str | None,
    differences: Differences,
) -> tuple[ScenePixels, Sensor]:
    """The scene of the item or product at a path or URL, in the sensor's bands (all, and its own
    sensor, where none is given), and the sensor it is of.

    ``offset`` overrules what the catalogue says of it: 0 (none, or removed) or -0.1; ``mask`` is
    "none", or "scl", which is also what None means where there is one.

    Raises:
        ContractError: the run takes other bands, or another level.
        SourceError: it is no item or product of Sentinel-2, or cannot be read.
        ConfigError: the offset is none that Sentinel-2 has, or there is no such mask.
    """
    metadata = None if is_item(location) else metadata_of(location)
    own = SENTINEL2_L2A if metadata is None else SENSORS[metadata.name]
    if mask not in (None, "scl", "none") or (mask == "scl" and own is SENTINEL2_L1C):
        there = "scl or none" if own is SENTINEL2_L2A else "none, it has no scene classes"
        raise ConfigError(
            f"--mask {mask}: {location} is a {own.title.split(',')[0]} scene; {there}"
        )
    names = (sensor or own).band_names
    names = tuple(canonical(name) for name in names)
    foreign = [name for name in names if name not in own.band_names]
    if foreign:
        raise ContractError(
            f"bands: {', '.join(foreign)} of the run are not in a Sentinel-2 scene: give a raster "
            "that holds them"
        )
    if sensor is not None and sensor.unit != own.unit:
        field = "level" if sensor.name in (SENTINEL2_L1C.name, SENTINEL2_L2A.name) else "unit"
        what = f"{location} holds {own.unit}, the run was trained on {sensor.unit}"
        differences.add(field, what, "give a raster of that, or pretrain a run on this one")
    if metadata is not None:
        scene = product_scene(metadata, own.with_bands(names))
    else:
        scene = _scene_of_item(location, names)
    source = Sentinel2(names, Sentinel2Config(offset=_policy(offset)))
    masked = own is SENTINEL2_L2A and mask != "none"
    return ScenePixels(location, source.at(scene), masked), own.with_bands(names)


def is_scene(location: str) -> bool:
    """Whether a location is that of a STAC item or of a Sentinel-2 product.

    Raises:
        SourceError: it is a .zip that holds no product.
    """
    return is_item(location) or ("://" not in location and metadata_of(location) is not None)


def _scene_of_item(location: str, names: tuple[str, ...]) -> Scene:
    item = _read_item(location)
    try:
        return scene_of(item, catalogue_of_item(item, location), names, location)
    except (ItemError, KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, ItemError) and error.what != ItemError.MALFORMED:
            raise
        raise SourceError(
            f"{location} is no STAC item of Sentinel-2 L2A ({error!r}): give the address of one, "
            "e.g. .../collections/sentinel-2-l2a/items/ID"
        ) from error


def _policy(offset: float | None) -> Any:
    """``Sentinel2Config.offset`` of what the user says."""
    policies = {None: "auto", 0.0: "applied", -OFFSET_DN * SENTINEL2_L2A.scale: "subtract"}
    if offset not in policies:
        raise ConfigError(
            f"--offset {offset:g}: Sentinel-2 L2A has -0.1, or 0 where it has been removed"
        )
    return policies[offset]


def catalogue_of_item(item: Mapping[str, Any], location: str) -> Catalogue:
    """The catalogue whose rules an item follows, by where it lies or says it lies."""
    addresses = [location, *(link.get("href", "") for link in item.get("links", ()))]
    for known in KNOWN.values():
        if any(address.startswith(known.url) for address in addresses):
            return known
    if any(name.startswith("earthsearch:") for name in item["properties"]):
        return EARTH_SEARCH
    like = EARTH_SEARCH if EARTH_SEARCH.assets["SCL"] in item["assets"] else PLANETARY_COMPUTER
    return Catalogue("item", location, like.assets, "by-item")


def _read_item(location: str) -> Mapping[str, Any]:
    try:
        text = _text_of(location)
        item = json.loads(text)
    except FileNotFoundError:
        raise SourceError(
            f"{location} does not exist: give the path or address of a STAC item"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise SourceError(f"{location} is no STAC item: {error}") from error
    if not isinstance(item, dict) or item.get("type") != "Feature":
        raise SourceError(
            f"{location} is no STAC item (a GeoJSON feature): give the address of one, "
            "e.g. .../collections/sentinel-2-l2a/items/ID"
        )
    return item


def _text_of(location: str) -> str:
    if "://" not in location:
        return Path(location).read_text("utf-8")
    return Web().fetch(location).decode("utf-8")
