"""Sentinel-2 L2A surface reflectance: one scene's bands on a 10 m grid, harmonised, with validity.

``offset_of`` and ``harmonised`` own the conversion from stored numbers to reflectance; nothing
else in the package knows of the -1000 offset. What they decided, and from what, goes with every
chip.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from jaxtyping import Bool, UInt8, UInt16
from odc.geo.geobox import GeoBox

from bharateo.config import DataConfig, Sentinel2Config
from bharateo.errors import CorruptRasterError, SourceError
from bharateo.pixels.http import Traffic, Web
from bharateo.pixels.network import shown
from bharateo.pixels.raster import Method, OpenRasters, Raster, RasterFile, open_raster
from bharateo.regions import Zone
from bharateo.sensor import SENTINEL2_L2A, named_bands
from bharateo.sources import ImageSource, Recipe, Scenes, Source
from bharateo.sources.areas import SQUARE_M, sentinel2_regions, tile_bounds, zones_of
from bharateo.sources.catalogue import Client, catalogue_of, unlock
from bharateo.sources.stac import Scene, occasions
from bharateo.sources.worldcover import WorldCover

NODATA = 0
OFFSET_DN = 1000
"""Added to the stored numbers since baseline 04.00, so that dark noise can be below zero.
Source: Sentinel-2 Products Specification Document 14.9, RADIO_ADD_OFFSET / BOA_ADD_OFFSET."""

FIRST_BASELINE_WITH_OFFSET = (4, 0)

VALID_SCL = (2, 4, 5, 6, 7, 11)
"""Scene classes to learn land from: dark area, vegetation, bare, water, unclassified, snow.
Left out: 0 nodata, 1 saturated, 3 cloud shadow, 8 and 9 cloud, 10 cirrus.
Source: Sentinel-2 L2A Algorithm Theoretical Basis Document, table 3."""

CLOUD_SCL = (3, 8, 9, 10)
"""Scene classes of cloud and its shadow. Of the others left out, 0 and 1, nothing spreads."""

DARK_QUANTILE = 0.001
DARK_BELOW_OFFSET = 900
"""A stored number that hardly any ground has while the offset is in: a reflectance below -0.01."""

VISIBLE = ("B02", "B03", "B04")

_SHADOW, _VEGETATION, _WATER, _CLOUD = 2, 4, 6, 9
"""Scene classes that say how dark ground must be, or that it need not be ground one sees; and
cloud of high probability."""

_ENOUGH = 500
"""Pixels looked at before anything is said of a scene: of one in sixteen, 0.8 km2."""

_DARK_ANYWHERE = 0.05
_DARK_GREEN = 0.1
_NO_DARK_GREEN = 0.02
"""Shares of pixels below ``DARK_BELOW_OFFSET`` in their darkest visible band. Twenty real scenes
without the offset have 0.9 and more among plants and water, one with it none; see
``DarkGround.offset_dn``."""

_NOTHING_LEFT = 0.5
"""Share of the ground that must not fall below zero, whoever says that 1000 is to be subtracted."""

_THINNED = 4
_PART_BYTES = 8 * 2**20
_FILES_AT_ONCE = 4
_BLOCK_PX = 1024
_HEADER_BYTES = 32 * 1024
_COMPRESSED = 0.7
"""Bytes of a compressed block for each of its stored bytes."""
_SCL_COMPRESSED = 0.1

_CREDIT = (
    "Contains modified Copernicus Sentinel data, processed by ESA (Sentinel-2 L2A); "
    "catalogue: {catalogue}"
)


# Units, once


@dataclass(frozen=True)
class Offset:
    """What must be added to a scene's stored numbers, and why."""

    dn: int
    """0 or -1000."""
    baseline: str | None
    evidence: str


def offset_of(scene: Scene, policy: str = "auto") -> Offset:
    """What a catalogue's rule says must be added to a scene's stored numbers.

    - ``earth-search`` (also Digital Earth Africa): files of collection sentinel-2-l2a have the
      offset removed; the item says so in ``earthsearch:boa_offset_applied``. The offset that it
      gives its bands is not heeded. Those of sentinel-2-c1-l2a follow ``by-baseline``.
    - ``by-baseline`` (Planetary Computer): files as ESA made them, offset from baseline 04.00 on.
      Never by date: old scenes have been processed anew with new baselines.
    - ``by-item`` (any other): as ``earth-search`` where the item says whether it was removed, else
      the offset the item gives its bands, else by baseline.
    - ``product`` (a .SAFE folder): what its metadata says.

    ``policy`` "applied" or "subtract" overrules it, for files that are known better. What the
    pixels say is another matter: see ``contradiction``.

    Raises:
        SourceError: the item does not say enough.
    """
    if policy != "auto":
        dn = -OFFSET_DN if policy == "subtract" else 0
        return Offset(dn, scene.baseline, f"data.sentinel2.offset: {policy}")
    if scene.rule == "product":
        dn = round(scene.raster["offset"] / scene.raster["scale"])
        return Offset(dn, scene.baseline, "the product's metadata")
    if scene.rule == "earth-search" or (scene.rule == "by-item" and scene.flag is not None):
        if scene.flag is None:
            return Offset(0, scene.baseline, "Earth Search harmonises; the item is silent")
        if scene.flag:
            return Offset(0, scene.baseline, "earthsearch:boa_offset_applied is true")
        return _by_baseline(scene, "earthsearch:boa_offset_applied is false")
    if scene.rule == "by-item" and scene.raster:
        scale, offset = scene.raster.get("scale", 1e-4), scene.raster.get("offset", 0.0)
        dn = round(offset / 1e-4) if np.isfinite(offset) else 1
        if dn not in (0, -OFFSET_DN) or not np.isclose(scale, 1e-4):
            raise SourceError(
                f"item {scene.id} gives its bands scale {scale} and offset {offset}, Sentinel-2 "
                "L2A has 0.0001 and 0 or -0.1: it is another product, or set data.sentinel2.offset"
            )
        return Offset(dn, scene.baseline, f"raster:bands offset {offset:g}")
    return _by_baseline(scene, "stored as ESA made it")


def _by_baseline(scene: Scene, why: str) -> Offset:
    try:
        numbers = tuple(int(part) for part in str(scene.baseline).split("."))
    except ValueError:
        raise SourceError(
            f"item {scene.id} of {scene.catalogue} does not say its processing baseline "
            f"({scene.baseline!r}), so its unit is not known: set data.sentinel2.offset to "
            "applied or subtract"
        ) from None
    dn = -OFFSET_DN if numbers >= FIRST_BASELINE_WITH_OFFSET else 0
    return Offset(dn, scene.baseline, f"{why}, baseline {scene.baseline}")


def harmonised(
    stored: UInt16[np.ndarray, "*shape"], offset: Offset
) -> UInt16[np.ndarray, "*shape"]:
    """Reflectance x 10000 of stored numbers, 0 where there is no data.

    What is darker than black after the offset (noise over water) becomes 1.
    """
    if offset.dn == 0:
        return stored
    lifted = np.maximum(stored, 1 - offset.dn)  # before the subtraction, since it is unsigned
    lifted -= np.uint16(-offset.dn)
    lifted[stored == NODATA] = NODATA
    return lifted


@dataclass(frozen=True)
class DarkGround:
    """Pixels counted to tell whether the offset is in: counts of parts of a scene add up.

    Clear ground is valid and no shadow; green ground is the plants and water in it. Each is
    counted whole, and where its darkest visible band is below ``DARK_BELOW_OFFSET``. Without a
    visible band the darkest of all bands counts, and green ground is water alone.
    """

    num_clear: int = 0
    num_clear_dark: int = 0
    num_green: int = 0
    num_green_dark: int = 0

    def __add__(self, other: DarkGround) -> DarkGround:
        return DarkGround(
            self.num_clear + other.num_clear,
            self.num_clear_dark + other.num_clear_dark,
            self.num_green + other.num_green,
            self.num_green_dark + other.num_green_dark,
        )

    @property
    def dark_share(self) -> float:
        """Share of clear ground that is dark."""
        return self.num_clear_dark / max(self.num_clear, 1)

    @property
    def dark_green_share(self) -> float:
        """Share of green ground that is dark."""
        return self.num_green_dark / max(self.num_green, 1)

    @property
    def offset_dn(self) -> int | None:
        """What must be added by the pixels alone: 0 or -1000; None where they do not tell.

        While the offset is in, a number below 900 is a reflectance below -0.01: noise over a few
        pixels. Without it plants and water are there, nearly all. Sand, snow and rock tell nothing
        either way.
        """
        seen, green_seen = self.num_clear >= _ENOUGH, self.num_green >= _ENOUGH
        if (seen and self.dark_share >= _DARK_ANYWHERE) or (
            green_seen and self.dark_green_share >= _DARK_GREEN
        ):
            return 0
        return -OFFSET_DN if green_seen and self.dark_green_share < _NO_DARK_GREEN else None


def dark_ground(
    stored: UInt16[np.ndarray, "band row col"],
    bands: Sequence[str],
    valid: Bool[np.ndarray, "row col"],
    classes: UInt8[np.ndarray, "row col"],
) -> DarkGround:
    """The dark ground of a read, of one pixel in sixteen; ``bands`` are the names of ``stored``."""
    thin = slice(None, None, _THINNED)
    clear = valid[thin, thin] & (classes[thin, thin] != _SHADOW)
    seen = [place for place, name in enumerate(bands) if name in VISIBLE]
    green_classes = (_VEGETATION, _WATER) if seen else (_WATER,)
    dark = stored[seen or slice(None), thin, thin].min(axis=0) < DARK_BELOW_OFFSET
    green = clear & np.isin(classes[thin, thin], green_classes)
    return DarkGround(*(int(np.count_nonzero(each)) for each in (
        clear, clear & dark, green, green & dark,
    )))  # fmt: skip


def contradiction(ground: DarkGround, offset: Offset) -> str | None:
    """What speaks against an offset in a scene's pixels, None if nothing does."""
    shown = ground.offset_dn
    if shown is None or shown == offset.dn:
        return None
    if shown:
        return (
            f"taken as harmonised ({offset.evidence}), but {1 - ground.dark_green_share:.1%} of "
            f"its plants and water are at {DARK_BELOW_OFFSET} or more in every visible band: the "
            "offset of 1000 is still in; set data.sentinel2.offset to subtract"
        )
    return (
        f"1000 is subtracted ({offset.evidence}), but {ground.dark_share:.1%} of its clear ground "
        f"is below {DARK_BELOW_OFFSET} in a visible band: the offset has been removed already; "
        "set data.sentinel2.offset to applied"
    )


def leaves_nothing(ground: DarkGround, offset: Offset) -> bool:
    """Whether most ground would fall below zero: no knowledge of the files can mean that."""
    enough = ground.num_clear >= _ENOUGH
    return offset.dn != 0 and enough and ground.dark_share >= _NOTHING_LEFT


def darkest(
    stored: UInt16[np.ndarray, "band row col"], valid: Bool[np.ndarray, "row col"]
) -> float | None:
    """The darkest thousandth of valid pixels in the darkest band; None if none is valid."""
    thin = stored[:, ::_THINNED, ::_THINNED][:, valid[::_THINNED, ::_THINNED]]
    if thin.shape[1] == 0:
        return None
    return float(np.quantile(thin, DARK_QUANTILE, axis=1, method="lower").min())


# Pixels


class Sentinel2(ImageSource):
    """Sentinel-2 L2A from a STAC catalogue: bands in a chosen order, at 10 m, harmonised.

    ``bands`` are names in order. What is read is bound to a scene with ``at``. Files stay open
    between reads of one scene. Thread-safe, one read at a time.

    Raises:
        ConfigError: a band, catalogue, date or season is not known.
    """

    def __init__(self, bands: Sequence[str], config: Sentinel2Config) -> None:
        self.config = config
        self.catalogue = catalogue_of(config.catalogue, config.assets)
        self.sensor = SENTINEL2_L2A.with_bands(bands)
        self.name = f"Sentinel-2 L2A ({self.catalogue.name})"
        self.attribution: tuple[str, ...] = (_CREDIT.format(catalogue=self.catalogue.url),)
        self.occasions = occasions(config.dates, config.seasons)
        self.occasion_names = tuple(occasion.name for occasion in self.occasions)
        self._web = Web(config.timeout_s, config.retries, num_parallel=8, part_bytes=_PART_BYTES)
        self._files = OpenRasters()

    def __reduce__(self) -> tuple[Any, ...]:
        return Sentinel2, (self.sensor.band_names, self.config)

    @property
    def traffic(self) -> Traffic:
        """What was fetched over the network so far."""
        return self._web.traffic

    def client(self) -> Client:
        """A new connection to the catalogue."""
        config = self.config
        return Client(self.catalogue, config.collection, config.timeout_s, config.retries)

    def read(self, geobox: GeoBox) -> Raster:
        """A place has many scenes: see ``at``."""
        raise TypeError("Sentinel2.read: bind the source to a scene first, with at(scene)")

    def scenes(self, folder: Path) -> Scenes:
        """Who knows which scenes there are of a place."""
        from bharateo.sources.scenes import CatalogueScenes  # which asks this module of offsets

        return CatalogueScenes(self, folder)

    def at(self, scene: Scene) -> SceneSource:
        """This source bound to one scene."""
        offset = offset_of(scene, self.config.offset)
        return SceneSource(scene.id, self.attribution, self, scene, offset)

    def places(self, scene: Scene | None = None) -> Sequence[str]:
        """The addresses of a scene's files."""
        return tuple(scene.assets.values()) if scene else ()

    def evidence(self, provenances: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The dark ground in some reads of a scene, added up."""
        ground = (DarkGround(**each["dark_ground"]) for each in provenances)
        return asdict(sum(ground, start=DarkGround()))

    def opening_cost(self) -> Traffic:
        """The headers of a scene's files."""
        num_files = self.sensor.num_bands + 1
        return Traffic(num_files, num_files * _HEADER_BYTES)

    def cost(self, geobox: GeoBox) -> Traffic:
        """About what a read of a grid fetches of the scenes' blocks of 1024 px.

        Blocks are counted from the corner of the scene's tile. A row of neighbouring blocks is one
        request. Headers come on top, once a file.
        """
        left, _, _, top = tile_bounds(*_square_under(geobox))
        row, col = round((top - geobox.affine.f) / 10), round((geobox.affine.c - left) / 10)
        height, width = geobox.shape
        total = Traffic()
        for band in (*self.sensor.bands, None):
            block_px = _BLOCK_PX * round((band.resolution_m if band else 20) / 10)
            rows = (row + height - 1) // block_px - row // block_px + 1
            cols = (col + width - 1) // block_px - col // block_px + 1
            total.requests += rows
            block_bytes = _BLOCK_PX**2 * (2 * _COMPRESSED if band else _SCL_COMPRESSED)
            total.bytes += round(rows * cols * block_bytes)
        return total

    def read_band(
        self, scene: Scene, band: str, geobox: GeoBox, method: Method
    ) -> UInt16[np.ndarray, "row col"] | UInt8[np.ndarray, "row col"]:
        """The stored numbers of one band (or ``SCL``) of a scene on a grid.

        Raises:
            CorruptRasterError: the file is missing, damaged, without reference system or no
                integers.
            UnreachableError: the server did not answer, also after retries.
        """
        address = scene.assets[band]
        file = self.open(scene, band)
        if file.dtype not in (np.dtype("uint16"), np.dtype("int16"), np.dtype("uint8")):
            raise CorruptRasterError(
                f"{shown(address)} (item {scene.id}, band {band}) holds {file.dtype}, Sentinel-2 "
                "L2A has unsigned integers: it is another product"
            )
        signed = file.dtype == np.int16
        values: np.ndarray = file.read_on(geobox, method, NODATA, masked=signed)[0]
        if signed and values.min() < 0:
            raise CorruptRasterError(
                f"{address} (item {scene.id}, band {band}) holds {values.min()}, and stored "
                "numbers are 0 to 65535: if that stands for no data, the file must say so (it says "
                f"{file.nodata[0]}; gdal_edit.py -a_nodata), else choose another catalogue"
            )
        return values.astype(np.uint16) if signed else values

    def open(self, scene: Scene, band: str) -> RasterFile:
        """The file of one band (or ``SCL``) of a scene, kept open among those used last.

        Raises:
            CorruptRasterError: it is missing, or no raster.
            UnreachableError: the server did not answer, also after retries.
        """
        address = scene.assets[band]

        def open_one() -> RasterFile:
            if scene.signed:
                unlock(self._web, address, self.config.timeout_s, self.config.retries)
            file = open_raster(address, self._web)
            if file is None:
                raise CorruptRasterError(
                    f"{shown(address)} (item {scene.id}, band {band}) does not exist, though the "
                    "catalogue lists it: choose other dates or another catalogue"
                )
            return file

        return self._files.get(address, open_one)

    def interruptible(self) -> AbstractContextManager[None]:
        """A block in which Ctrl-C ends the waiting of all threads for servers."""
        return self._web.interruptible()


def _square_under(geobox: GeoBox) -> tuple[tuple[int, int], bool]:
    """The south-west corner of the 100 km square under a grid's middle; whether it is northern."""
    x, y = geobox.affine @ (geobox.shape[1] / 2, geobox.shape[0] / 2)
    north = str(geobox.crs).upper().startswith("EPSG:326")
    return (int(x // SQUARE_M * SQUARE_M), int(y // SQUARE_M * SQUARE_M)), north


@dataclass
class SceneSource(Source):
    """One scene as a source; its id is the name.

    ``margin_px``: ground as near as this to cloud or shadow, in rows and in columns, is cloud too.
    """

    name: str
    attribution: tuple[str, ...]
    source: Sentinel2
    scene: Scene
    offset: Offset
    margin_px: int = 0

    def classes(self, geobox: GeoBox) -> UInt8[np.ndarray, "row col"]:
        """The scene classification (SCL) by nearest neighbour, with the margin around clouds as
        cloud (9); 0 where the scene holds nothing.

        Raises:
            CorruptRasterError, UnreachableError: see ``Sentinel2.read_band``.
        """
        margin = self.margin_px
        found: np.ndarray = self.source.read_band(
            self.scene, "SCL", geobox.pad(margin) if margin else geobox, "nearest"
        )
        if not margin:
            return found
        from scipy.ndimage import maximum_filter  # here, since it takes a while to load

        near = maximum_filter(np.isin(found, CLOUD_SCL), 2 * margin + 1)
        grown: np.ndarray = np.where(near & (found != NODATA), np.uint8(_CLOUD), found)
        return grown[margin:-margin, margin:-margin]

    def read(self, geobox: GeoBox, classes: UInt8[np.ndarray, "row col"] | None = None) -> Raster:
        """Reflectance x 10000, uint16 (band, row, col), 0 where there is no data.

        20 m bands come to 10 m by bilinear, the scene classification by nearest neighbour. A pixel
        is valid where every band holds data and the classification says land, water or snow. The
        provenance holds the offset with its evidence, what the pixels say to it (``agree``,
        ``disagree``, or ``undecided`` where nothing is green), the counts of dark ground, the
        darkest stored number and, where pixels disagree, a ``warning``.

        ``classes`` are those of ``classes`` on the grid, where they have been read already.

        Raises:
            CorruptRasterError, UnreachableError: see ``Sentinel2.read_band``.
        """
        bands = self.source.sensor.bands
        values = np.empty((len(bands), *geobox.shape), np.uint16)

        def fill(place: int) -> None:
            band = bands[place].name
            values[place] = self.source.read_band(self.scene, band, geobox, "bilinear")

        with ThreadPoolExecutor(_FILES_AT_ONCE) as threads, self.source.interruptible():
            reading = threads.submit(lambda: self.classes(geobox) if classes is None else classes)
            list(threads.map(fill, range(len(bands))))
        known = reading.result()
        valid = np.isin(known, VALID_SCL)
        for band_values in values:
            valid &= band_values != NODATA
        dark = darkest(values, valid)
        names = self.source.sensor.band_names
        ground = dark_ground(values, names, valid, known)
        for band in values:
            band[:] = harmonised(band, self.offset)
        return Raster(values, valid, geobox, self._provenance(dark, ground))

    def _provenance(self, dark: float | None, ground: DarkGround) -> dict[str, Any]:
        shown = ground.offset_dn
        agreement = "agree" if shown == self.offset.dn else "disagree"
        found: Mapping[str, Any] = {
            "item": self.scene.id,
            "datetime": self.scene.datetime,
            "cloud_cover": self.scene.cloud_cover,
            "offset": {
                **asdict(self.offset),
                "pixels": "undecided" if shown is None else agreement,
            },
            "dark_dn": dark,
            "dark_ground": asdict(ground),
        }
        warning = contradiction(ground, self.offset)
        return {**found, "warning": f"scene {self.scene.id}: {warning}"} if warning else {**found}


def sentinel2_recipe(data: DataConfig, say: Callable[[str], object] = lambda text: None) -> Recipe:
    """Scenes over a configuration's zones, with WorldCover's codes as labels on their grids.

    Raises:
        ConfigError, RegionError: a value cannot be understood.
    """
    image = Sentinel2(named_bands(data.bands), data.sentinel2)
    split = data.plan.split
    block_px = split.block_px if split else _BLOCK_PX
    rows, cols = data.plan.unit_blocks
    zones = zones_of(data)
    regions = sentinel2_regions(zones, (block_px * rows, block_px * cols))
    settings = {
        "sentinel2": {
            "catalogue": image.catalogue.url,
            "collection": data.sentinel2.collection,
            "dates": data.sentinel2.dates,
            "seasons": list(data.sentinel2.seasons),
            "max_cloud": data.sentinel2.max_cloud,
            "offset": data.sentinel2.offset,
            "assets": dict(data.sentinel2.assets) if data.sentinel2.assets else None,
        },
        "zones": {zone.name: _digest(zone) for zone in zones},
    }
    landcover = WorldCover(data.worldcover_root, data.worldcover_year, part_bytes=_PART_BYTES)
    return Recipe("sentinel2", regions, image, landcover, settings)


def _digest(zone: Zone) -> str:
    """What tells an outline from another, to about a centimetre."""
    return hashlib.sha256(shapely.to_wkt(zone.outline, rounding_precision=7).encode()).hexdigest()
