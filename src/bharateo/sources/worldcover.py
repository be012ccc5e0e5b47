"""ESA WorldCover: land-cover labels at 10 m, and their palette rendering as an input layer.

Read from the public bucket, a web server or a folder laid out with the bucket's keys. What was
read from afar is kept on disk and serves as long as its tiles stay the same, and offline.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import threading
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, UInt8
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from odc.geo.overlap import compute_reproject_roi

from bharateo.artefacts import checked, parse_json, read_json
from bharateo.config import DataConfig
from bharateo.errors import (
    ConfigError,
    CorruptRasterError,
    RegionError,
    SourceError,
    StorageError,
    UnreachableError,
)
from bharateo.files import cache_folder, read_bytes, write_atomically, write_json
from bharateo.landcover import IGNORE, WORLDCOVER, palette
from bharateo.pixels import network
from bharateo.pixels.http import Missing, Traffic, Web, web_address
from bharateo.pixels.raster import OpenRasters, Raster, RasterFile, open_raster, to_grid
from bharateo.regions import (
    GLOBE_WIDTH_PX,
    NAMED_ROIS,
    PIXELS_PER_DEGREE,
    TILE_DEGREES,
    TILE_PX,
    WORLDCOVER_GRID,
    PixelWindow,
    Roi,
    is_worldcover_grid,
    parse_roi,
    tile_of,
    tile_windows,
    window_of_geobox,
    worldcover_region,
    worldcover_window,
)
from bharateo.sensor import WORLDCOVER_PALETTE
from bharateo.sources import ImageSource, LabelSource, Recipe

PUBLIC_ROOT = "https://esa-worldcover.s3.eu-central-1.amazonaws.com"
"""The product's own bucket (AWS Open Data, no sign-in)."""

_LIST_BYTES = 128 * 2**20
"""More than the list of all tiles has, with their outlines."""

_TILE_NAME = re.compile(r"[NS]\d{2}[EW]\d{3}")

_REMEDY = (
    "point data.worldcover_root or BHARATEO_WORLDCOVER_ROOT at a local copy laid out like the "
    "bucket, or build from the packaged sample (data.source: sample)"
)
_OVERVIEW_STEP = 32
_TILES_AT_ONCE = 8
_TILES_AROUND = 360 // TILE_DEGREES
_BLOCK_PX = 1024
_COMPRESSED = 0.12
"""Bytes of a compressed block for each pixel; cities have more, forest and sea much less."""


@dataclass(frozen=True)
class Edition:
    """One year of the product: its version, and how it wants to be cited."""

    year: int
    version: str
    grid: str
    citation: str

    @property
    def folder(self) -> str:
        """Where the bucket keeps its tiles."""
        return f"{self.version}/{self.year}/map"

    def key(self, tile: str) -> str:
        """The bucket's key of a tile, e.g. of ``N27E075``."""
        return f"{self.folder}/ESA_WorldCover_10m_{self.year}_{self.version}_{tile}_Map.tif"

    @property
    def grids(self) -> tuple[str, ...]:
        """The bucket's keys of the list of all tiles, a GeoJSON; both years have the same tiles."""
        return (self.grid, "v100/2020/esa_worldcover_2020_grid.geojson",
                "esa_worldcover_grid.geojson")  # fmt: skip

    @property
    def sea(self) -> str:
        """Where a mirror may say which tiles are open sea: a text file, one name a line."""
        return f"{self.version}/{self.year}/sea.txt"

    @property
    def attribution(self) -> tuple[str, ...]:
        """The lines that the licence asks for."""
        credit = (
            f"© ESA WorldCover project {self.year} / Contains modified Copernicus Sentinel data "
            f"({self.year}) processed by ESA WorldCover consortium"
        )
        return credit, "Licence: CC BY 4.0", self.citation


EDITIONS = {
    edition.year: edition
    for edition in (
        Edition(
            2020,
            "v100",
            "v100/2020/esa_worldcover_2020_grid.geojson",
            "Zanaga et al. 2021, ESA WorldCover 10 m 2020 v100, doi:10.5281/zenodo.5571936",
        ),
        Edition(
            2021,
            "v200",
            "v200/2021/esa_worldcover_grid.geojson",
            "Zanaga et al. 2022, ESA WorldCover 10 m 2021 v200, doi:10.5281/zenodo.7254221",
        ),
    )
}


class WorldCover(LabelSource):
    """Native WorldCover codes on the product's own grid.

    ``root`` is a folder, http(s) or s3 URL; None means ``$BHARATEO_WORLDCOVER_ROOT``, else the
    public bucket. ``cache`` is a folder; None means ``$BHARATEO_CACHE``, else the user's cache
    folder. Only what comes over the network is kept there. ``part_bytes`` is the least that a
    request is split for: small for few, quick reads, large for many. Tiles are seen as they were
    when they were first opened. Thread-safe, one read at a time.

    Raises:
        ConfigError: there is no such year, or the root is a URL of another kind.
    """

    scheme = WORLDCOVER

    def __init__(
        self,
        root: str | None = None,
        year: int = 2021,
        cache: Path | None = None,
        web: Web | None = None,
        part_bytes: int = 64 * 1024,
    ):
        root = root or os.environ.get("BHARATEO_WORLDCOVER_ROOT") or PUBLIC_ROOT
        address = web_address(root)
        if address is None:
            address = str(Path(root).expanduser())
        elif address.startswith("s3://") and (place := network.place_of(address)).is_open:
            address = place.url
        self.root = address.rstrip("/")
        if year not in EDITIONS:
            known = ", ".join(map(str, EDITIONS))
            raise ConfigError(f"worldcover_year {year} does not exist: the product has {known}")
        self.edition = EDITIONS[year]
        self.name = f"ESA WorldCover {year} {self.edition.version}"
        self.attribution = self.edition.attribution
        self._web = web or Web(part_bytes=part_bytes)
        self._cache_path, self._part_bytes = cache, part_bytes
        kept_in = Path(cache or cache_folder()) / "worldcover"
        self._cache = _Cache(kept_in) if web_address(self.root) else None
        self._list = _TileList(self.root, self.edition, self._web, self._cache)
        self._tiles = OpenRasters()
        self._last: Raster | None = None
        self._lock = threading.Lock()
        self.cache_note = ""
        """What the last read did with the cache; not provenance, which repeats itself."""

    def __reduce__(self) -> tuple[Any, ...]:
        return WorldCover, (
            self.root, self.edition.year, self._cache_path, None, self._part_bytes
        )  # fmt: skip

    @property
    def traffic(self) -> Traffic:
        """What was fetched over the network so far."""
        return self._web.traffic

    def places(self, scene: Any = None) -> Sequence[str]:
        """Where the tiles lie."""
        return (self.root,)

    def cost(self, geobox: GeoBox) -> Traffic:
        """About what a read of a grid fetches: blocks under it, a row of neighbours a request.

        The mean over how the grid may lie on the blocks, one row and column more than it is long.
        """
        height, width = geobox.shape
        x, y = np.array([geobox.affine @ (c, r) for r in (0, height) for c in (0, width)]).T
        lon, lat = CRS(geobox.crs).transformer_to_crs(CRS("EPSG:4326"))(x, y)
        rows, cols = (np.ptp(degrees) * PIXELS_PER_DEGREE / _BLOCK_PX + 1 for degrees in (lat, lon))
        return Traffic(round(rows), round(rows * cols * _BLOCK_PX**2 * _COMPRESSED))

    def overview(
        self, lon: Float64[np.ndarray, " point"], lat: Float64[np.ndarray, " point"]
    ) -> UInt8[np.ndarray, " point"]:
        """Class ids near places, from overviews of one pixel in 32 x 32 (about 300 m).

        Costs one small read a tile. Good for balancing, not for labels.

        Raises:
            SourceError, UnreachableError, CorruptRasterError, UnknownCodeError: see ``read``.
        """
        col = np.floor((lon + 180) * PIXELS_PER_DEGREE).astype(np.int64) % GLOBE_WIDTH_PX
        row = np.floor((90 - lat) * PIXELS_PER_DEGREE).astype(np.int64)
        classes = np.full(len(lon), IGNORE, np.uint8)
        tile_of_point = row // TILE_PX * _TILES_AROUND + col // TILE_PX
        numbers = np.unique(tile_of_point)
        names = [tile_of(*divmod(int(number), _TILES_AROUND)) for number in numbers]
        with ThreadPoolExecutor(_TILES_AT_ONCE) as threads, self._web.interruptible():
            for number, thin in zip(numbers, threads.map(self._thinned, names), strict=True):
                if thin is not None:
                    here = np.flatnonzero(tile_of_point == number)
                    step = TILE_PX / len(thin)
                    at = (row[here] % TILE_PX / step, col[here] % TILE_PX / step)
                    classes[here] = thin[at[0].astype(int), at[1].astype(int)]
        return classes

    def _thinned(self, tile: str) -> UInt8[np.ndarray, "row col"] | None:
        """A tile's classes from its overview, by a file of its own: tiles are read in parallel."""
        try:
            file = self._open(tile)
            if file is None:
                return None
            with file:
                native = file.read_thinned(_OVERVIEW_STEP)[0]
        except UnreachableError as error:
            raise UnreachableError(f"{error}; or {_REMEDY}") from error
        return WORLDCOVER.collapse(native, f"tile {tile}, overview")

    def read(self, geobox: GeoBox) -> Raster:
        """Native codes, uint8 (1, row, col), on any grid by nearest neighbour; read-only.

        Nodata (0) is not valid, and so is everything in tiles that the product does not have (open
        ocean): where a tile is absent the root's list of tiles is asked, see ``_TileList``.
        Windows of the product's own grid are kept in the cache. The provenance names root, version,
        window and the identity of every tile, null for those that do not exist; ``offline`` says
        that the server was out of reach and the pixels are the ones kept from an earlier read.

        Raises:
            RegionError: the grid crosses the antimeridian.
            SourceError: a tile is absent that is no sea, or of which nothing tells.
            UnreachableError: the root did not answer and nothing was kept.
            CorruptRasterError: a tile is damaged or of another product.
            UnknownCodeError: a tile holds a code that the product does not have.
        """
        with self._lock:
            if self._last is None or self._last.geobox != geobox:
                if is_worldcover_grid(geobox):
                    native, provenance = self._read(window_of_geobox(geobox))
                else:
                    native, provenance = self._read_warped(geobox)
                native.flags.writeable = False
                self._last = Raster(native[None], native != WORLDCOVER.nodata, geobox, provenance)
            return self._last

    def _read_warped(self, geobox: GeoBox) -> tuple[UInt8[np.ndarray, "row col"], dict[str, Any]]:
        """Codes on another grid, straight from the tiles: the cache is for whole regions."""
        # With one pixel more on every side.
        rows, cols = compute_reproject_roi(WORLDCOVER_GRID, geobox).roi_src
        if cols.stop - cols.start > GLOBE_WIDTH_PX // 2:
            raise RegionError(
                f"{geobox} crosses the antimeridian, where labels cannot be brought to a UTM grid: "
                "choose ground on one side of it"
            )
        window = PixelWindow(rows.start, cols.start, rows.stop - rows.start, cols.stop - cols.start)
        try:
            tiles = self._identities(window)
            native = self._assemble(window)
        except UnreachableError as error:
            raise UnreachableError(f"{error}; or {_REMEDY}") from error
        warped = to_grid(native[None], window.geobox, geobox, "nearest", WORLDCOVER.nodata)
        return warped[0], {
            "product": "ESA WorldCover",
            "root": self.root,
            "version": f"{self.edition.version}/{self.edition.year}",
            "resampling": "nearest neighbour",
            "tiles": tiles,
            "offline": False,
        }

    def _read(self, window: PixelWindow) -> tuple[UInt8[np.ndarray, "row col"], dict[str, Any]]:
        place = {
            "root": self.root,
            "version": f"{self.edition.version}/{self.edition.year}",
            "window": asdict(window),
        }
        about: dict[str, Any] = {"product": "ESA WorldCover", **place}
        try:
            about |= {"tiles": self._identities(window), "offline": False}
        except UnreachableError as error:
            kept = self._cache.newest(place) if self._cache else None
            if kept is None:
                raise UnreachableError(f"{error}; or {_REMEDY}") from error
            self.cache_note = f"read, since {error}"
            return kept[0], {**about, "tiles": kept[1], "offline": True}
        if self._cache is None:
            return self._assemble(window), about
        entry = self._cache.entry(place, about["tiles"])
        if (kept := self._cache.load(entry)) is not None:
            self.cache_note = "read"
            return kept[0], about
        note = "damaged, fetched again" if entry.exists() else "written"
        native = self._assemble(window)
        self.cache_note = self._cache.save(entry, native, about["tiles"]) or note
        return native, about

    def _identities(self, window: PixelWindow) -> dict[str, dict[str, Any] | None]:
        identities: dict[str, dict[str, Any] | None] = {}
        for part in tile_windows(window):
            file = self._tile(part.tile)
            identities[part.tile] = file.identity if file else None
        return identities

    def _assemble(self, window: PixelWindow) -> UInt8[np.ndarray, "row col"]:
        native = np.zeros((window.height, window.width), np.uint8)
        for part in tile_windows(window):
            if file := self._tile(part.tile):
                codes = file.read_window(part.row, part.col, part.height, part.width)[0]
                where = f"{file.location}, window row {part.row} col {part.col} of {codes.shape}"
                WORLDCOVER.collapse(codes, where)  # refuses codes that the product does not have
                rows = slice(part.to_row, part.to_row + part.height)
                native[rows, part.to_col : part.to_col + part.width] = codes
        return native

    def _tile(self, tile: str) -> RasterFile | None:
        """The tile's open file, or None where the product has no such tile."""
        return self._tiles.get(tile, lambda: self._open(tile))

    def _open(self, tile: str) -> RasterFile | None:
        file = self._file(tile)
        if file is None:
            self._list.check_sea(tile)
        return file

    def _file(self, tile: str) -> RasterFile | None:
        """The tile's file; None where the root has none, for whatever reason."""
        if web_address(self.root) is None and not Path(self.root, self.edition.folder).is_dir():
            there = Path(self.root).is_dir()
            problem = f"holds no {self.edition.folder}" if there else "is not a folder"
            raise UnreachableError(f"WorldCover root {self.root} {problem}: {_REMEDY}")
        try:
            file = open_raster(f"{self.root}/{self.edition.key(tile)}", self._web)
        except UnreachableError as error:
            if not error.withheld:
                raise
            return None
        expected = (1, (TILE_PX, TILE_PX), np.uint8)
        if file and (file.num_bands, file.shape, file.dtype) != expected:
            file.close()
            raise CorruptRasterError(
                f"{file.location} has {file.num_bands} band(s) of {file.shape} {file.dtype} where "
                f"a WorldCover tile has one of {(TILE_PX, TILE_PX)} uint8: fetch it again"
            )
        return file


class _TileList:
    """Which tiles the product has: tells a tile that is sea from one that is missing.

    By the product's own list, the GeoJSON of its grid that the bucket holds and a mirror may hold,
    else by what a mirror says is sea (``sea.txt``). Asked for when a tile is absent, once; what
    came over the network is kept in the cache. Thread-safe.
    """

    def __init__(self, root: str, edition: Edition, web: Web, cache: _Cache | None) -> None:
        self._root, self._edition, self._web, self._cache = root, edition, web, cache
        self._found: tuple[frozenset[str] | None, frozenset[str], str] | None = None
        self._lock = threading.Lock()

    def check_sea(self, tile: str) -> None:
        """Refuse an absent tile that is not known to be open sea.

        Raises:
            SourceError: the product has it, or nothing tells.
            UnreachableError: the list could not be asked for.
        """
        with self._lock:
            if self._found is None:
                self._found = self._find()
            land, sea, where = self._found
        if tile in sea or (land is not None and tile not in land):
            return
        key = self._edition.key(tile)
        if land is not None:
            raise SourceError(
                f"WorldCover tile {tile} is not at {self._root}, or may not be read, though the "
                f"product has it ({where}): put {key} there, or leave out what touches it"
            )
        raise SourceError(
            f"WorldCover tile {tile} is not at {self._root}, and nothing there tells whether it is "
            f"missing or open sea: put {key} there, or the list of all tiles "
            f"({PUBLIC_ROOT}/{self._edition.grid}) as {self._edition.grid}, or, if it is sea, its "
            f"name into {self._edition.sea}"
        )

    def _find(self) -> tuple[frozenset[str] | None, frozenset[str], str]:
        """Tiles on land, None where there is no list; tiles that are sea; where that stands."""
        kept = self._cache.tiles(self._root, self._edition) if self._cache else None
        if kept:
            return kept, frozenset(), self._edition.grid
        for grid in dict.fromkeys(self._edition.grids):
            if (content := self._content(grid)) is not None:
                where, remedy = f"{self._root}/{grid}", f"fetch it again, e.g. from {PUBLIC_ROOT}"
                record = parse_json(content, where, SourceError, remedy)
                try:
                    land = frozenset(each["properties"]["ll_tile"] for each in record["features"])
                    good = land and all(_TILE_NAME.fullmatch(name) for name in land)
                except (KeyError, TypeError):
                    good = False
                if not good:
                    raise SourceError(
                        f"{where} is not the product's list of tiles (GeoJSON with ll_tile, e.g. "
                        f"N27E075): {remedy}"
                    )
                if self._cache:
                    self._cache.keep_tiles(self._root, self._edition, land)
                return land, frozenset(), grid
        text = (self._content(self._edition.sea) or b"").decode("utf-8", "replace")
        return None, frozenset(text.split()), self._edition.sea

    def _content(self, key: str) -> bytes | None:
        location = f"{self._root}/{key}"
        if web_address(location) is None:
            try:
                return read_bytes(Path(location), _LIST_BYTES)
            except FileNotFoundError:
                return None
            except OSError as error:
                raise SourceError(
                    f"{location} cannot be read ({error.strerror}): put the list of tiles there"
                ) from error
        try:
            return self._web.get(location, 0, _LIST_BYTES).body
        except Missing:
            return None
        except UnreachableError as error:
            if not error.withheld:
                raise
            return None


class WorldCoverPalette(ImageSource):
    """The label map in its display colours, uint8 (3, row, col), black where there is no label."""

    sensor = WORLDCOVER_PALETTE

    def __init__(self, worldcover: WorldCover):
        self.name = f"{worldcover.name} palette"
        self.attribution = worldcover.attribution
        self._worldcover = worldcover

    def read(self, geobox: GeoBox) -> Raster:
        """The colours on a grid; fetches nothing if the labels were just read there."""
        labels = self._worldcover.read(geobox)
        colours = palette(WORLDCOVER.collapse(labels.values[0]))
        return replace(labels, values=np.ascontiguousarray(colours))


def worldcover_recipe(data: DataConfig, say: Callable[[str], object] = lambda text: None) -> Recipe:
    """Palette colours as input and the codes behind them as labels, over a configuration's ROIs.

    Raises:
        ConfigError, RegionError: no place is given, one twice, or one that cannot be understood.
    """
    rois = [parse_roi(text) for text in data.rois]
    names = [roi.name for roi in rois]
    if not rois or len({*names}) < len(names):
        raise ConfigError(f"data.rois needs places with different names, got {names}")
    worldcover = WorldCover(data.worldcover_root, data.worldcover_year)
    regions = tuple(worldcover_region(roi) for roi in rois)
    return Recipe("worldcover", regions, WorldCoverPalette(worldcover), worldcover)


def reachable(
    root: str | None = None,
    rois: Sequence[Roi] = (),
    year: int = 2021,
    timeout_s: float = 3.0,
) -> str | None:
    """None if the root answers for the first ROI's tile in time, else one sentence why it does not.

    Any tile that is asked for in vain counts as an answer. Fetches the header of one tile at most.
    """
    source = WorldCover(root, year, web=Web(timeout_s, num_retries=0))
    roi = rois[0] if rois else next(iter(NAMED_ROIS.values()))
    tile = next(tile_windows(worldcover_window(roi))).tile
    answer = [f"{source.root} did not answer within {timeout_s:g} s."]

    def ask() -> None:
        try:
            if file := source._file(tile):
                file.close()
            answer.clear()
        except (SourceError, ConfigError) as error:
            answer[:] = [f"{str(error).split(';')[0]}."]

    # The system's own name look-up heeds no timeout: leave it behind.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout_s)
    return answer[0] if answer else None


# Kept windows: one file each, in a folder per root, version and window, named by what its tiles
# were. So changed tiles make a new file, and without a network any file of the folder will do.


def _digest(record: Any) -> str:
    canonical = json.dumps(record, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


class _Cache:
    """Windows on disk: ``.npz``, whose every member carries a CRC-32 that is checked on reading."""

    def __init__(self, folder: Path):
        self._folder = folder

    def entry(self, place: Mapping[str, Any], tiles: Mapping[str, Any]) -> Path:
        """Where a window of tiles of just these identities is kept."""
        return self._place_folder(place) / f"{_digest(tiles)}.npz"

    def load(self, entry: Path) -> tuple[UInt8[np.ndarray, "row col"], dict[str, Any]] | None:
        """The codes of an entry, and what their tiles were; None if it is not there or damaged."""
        try:
            with entry.open("rb") as file, np.load(file, allow_pickle=False) as members:
                return members["native"], json.loads(str(members["tiles"]))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
            return None

    def newest(
        self, place: Mapping[str, Any]
    ) -> tuple[UInt8[np.ndarray, "row col"], dict[str, Any]] | None:
        """The window as last kept, whatever its tiles were then."""
        entries = self._place_folder(place).glob("*.npz")
        for entry in sorted(entries, key=lambda path: path.stat().st_mtime_ns, reverse=True):
            if kept := self.load(entry):
                return kept
        return None

    def save(
        self, entry: Path, native: UInt8[np.ndarray, "row col"], tiles: Mapping[str, Any]
    ) -> str | None:
        """Keep a window; returns why it could not be kept, which is no reason to stop."""
        record = json.dumps(tiles)
        try:
            write_atomically(
                entry, lambda file: np.savez_compressed(file, native=native, tiles=record)
            )
        except (StorageError, OSError) as error:
            return f"not written: {error}"
        return None

    def tiles(self, root: str, edition: Edition) -> frozenset[str] | None:
        """The product's tiles as a root once listed them; None if that is not kept."""
        file = self._list_file(root, edition)
        try:
            kept = read_json(file, SourceError, "delete it")
            return frozenset(checked(list[str], kept, str(file), SourceError, "delete it"))
        except SourceError:
            return None  # it is fetched anew, as a damaged window is

    def keep_tiles(self, root: str, edition: Edition, tiles: frozenset[str]) -> None:
        """Keep the product's tiles; where that cannot be done they are asked for the next time."""
        with contextlib.suppress(StorageError, OSError):
            write_json(self._list_file(root, edition), sorted(tiles))

    def _list_file(self, root: str, edition: Edition) -> Path:
        name = _digest({"root": root, "version": f"{edition.version}/{edition.year}"})[:16]
        return self._folder / f"tiles-{name}.json"

    def _place_folder(self, place: Mapping[str, Any]) -> Path:
        window = place["window"]
        name = "{row}-{col}-{height}x{width}".format(**window)
        return self._folder / f"{name}-{_digest(place)[:16]}"
