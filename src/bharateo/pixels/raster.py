"""Pixels on a grid.

A local file is read by GDAL; what is let in, and as what, says ``formats``. A file on a web server
is read by HTTP range requests that GDAL calls for: the header once when it is opened, then all
blocks of a window in one parallel round.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import rasterio
from affine import Affine
from jaxtyping import Bool, Shaped
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from rasterio._err import CPLE_BaseError  # what some calls let through
from rasterio.abc import MultiByteRangeResourceContainer
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import CRSError, RasterioError
from rasterio.session import DummySession
from rasterio.windows import Window

from bharateo.errors import BharatEOError, CorruptRasterError
from bharateo.pixels.formats import OPTIONS, Opened, driver_of, open_dataset, open_local
from bharateo.pixels.http import Answer, Damaged, Missing, Web, web_address
from bharateo.pixels.network import shown
from bharateo.pixels.resample import Method, pixels_under, to_grid


@dataclass(frozen=True)
class Raster:
    """Stored values on a GeoBox, bands first, with the validity of every pixel.

    ``provenance`` says where the pixels come from (URLs, ETags, dates), as plain JSON.
    """

    values: Shaped[np.ndarray, "band row col"]
    valid: Bool[np.ndarray, "row col"]
    geobox: GeoBox
    provenance: Mapping[str, Any] = field(default_factory=dict)


_PAGE_BYTES = 32 * 1024
"""Holds the whole header of a WorldCover tile (23 KiB)."""


class _WebFile(MultiByteRangeResourceContainer):
    """A file on a web server as GDAL opens it: a folder with this one file in it.

    GDAL calls from C, where an exception would be lost: the first one is kept in ``failure``, and
    from then on every read comes back empty at once.
    """

    def __init__(self, web: Web, url: str):
        header = web.get(url, 0, _PAGE_BYTES)
        self.name = "raster"  # what a server calls it means nothing
        self.num_bytes, self.identity = header.file_bytes, header.identity
        self.failure: BaseException | None = None
        self.max_requests = 1
        self._web, self._url, self._header = web, url, header.body
        self._page = lru_cache(maxsize=64)(self._fetch_page)

    def read_at(self, offset: int, num_bytes: int) -> bytes:
        """Bytes from anywhere, fewer at the end of the file; small pieces from pages kept."""
        end = min(offset + num_bytes, self.num_bytes)
        if end <= offset:
            return b""
        if end - offset > _PAGE_BYTES:
            return self._body(self._web.get(self._url, offset, end - offset))
        first = offset // _PAGE_BYTES
        pages = b"".join(self._page(page) for page in range(first, -(-end // _PAGE_BYTES)))
        return pages[offset - first * _PAGE_BYTES : end - first * _PAGE_BYTES]

    def read_ranges(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """The bytes of runs of blocks, all fetched at once, long runs in several parts."""
        end = max(offset + size for offset, size in ranges)
        if end > self.num_bytes:
            raise Damaged(f"it ends after {self.num_bytes} of at least {end} bytes")
        parts = [_parts(run, ranges, self.max_requests, self._web.part_bytes) for run in ranges]
        answers = iter(self._web.get_all(self._url, [part for run in parts for part in run]))
        return [b"".join(self._body(next(answers)) for _ in run) for run in parts]

    def _fetch_page(self, page: int) -> bytes:
        if page == 0:
            return self._header
        return self._body(self._web.get(self._url, page * _PAGE_BYTES, _PAGE_BYTES))

    def _body(self, answer: Answer) -> bytes:
        if answer.identity != self.identity:
            raise Damaged("it changed on the server while it was being read")
        return answer.body

    def open(self, path: str, mode: str = "r", **options: Any) -> _WebCursor:
        if not self.isfile(path):
            raise FileNotFoundError(path)
        return _WebCursor(self)

    def isfile(self, path: str) -> bool:
        return Path(path).name == self.name

    def isdir(self, path: str) -> bool:
        return False

    def ls(self, path: str) -> list[str]:
        return []

    def mtime(self, path: str) -> int:
        return 0

    def rm(self, path: str) -> None:
        raise PermissionError(path)

    def size(self, path: str) -> int:
        return self.num_bytes


def _parts(
    run: tuple[int, int],
    runs: Sequence[tuple[int, int]],
    max_requests: int,
    least_bytes: int = 64 * 1024,
) -> list[tuple[int, int]]:
    """A run ``(offset, size)`` cut so that all runs together take ``max_requests`` parts at most.

    GDAL merges neighbouring blocks into one run; apart they arrive sooner. Every run is one part,
    and the parts to spare are shared in proportion to the runs' sizes; below ``least_bytes`` a
    request costs more in latency than its bytes take to arrive.
    """
    offset, size = run
    to_spare = max(max_requests - len(runs), 0) * size // sum(other for _, other in runs)
    part_bytes = math.ceil(size / (1 + min(to_spare, size // least_bytes)))
    return [
        (start, min(part_bytes, offset + size - start))
        for start in range(offset, offset + size, part_bytes)
    ]


class _WebCursor:
    """GDAL's position in a ``_WebFile``."""

    def __init__(self, file: _WebFile):
        self._file, self._position = file, 0

    def __enter__(self) -> _WebCursor:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def read(self, num_bytes: int = -1) -> bytes:
        if self._file.failure:
            return b""
        if num_bytes < 0:
            num_bytes = self._file.num_bytes - self._position
        try:
            data = self._file.read_at(self._position, num_bytes)
        except BaseException as error:
            self._file.failure = error
            return b""
        self._position += len(data)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._file.num_bytes}
        self._position = start[whence] + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def get_byte_ranges(self, offsets: Sequence[int], sizes: Sequence[int]) -> list[bytes]:
        try:
            if not self._file.failure:
                return self._file.read_ranges(list(zip(offsets, sizes, strict=True)))
        except BaseException as error:
            self._file.failure = error
        # GDAL takes whatever is in its buffers for the file's bytes: fill them.
        return [bytes(size) for size in sizes]

    def close(self) -> None:
        pass


# Rasters.

_CACHE_BYTES = 16 * 2**20
"""Decoded blocks that GDAL keeps: no more than a window's, since each block is read once. Its own
default is a twentieth of the machine's memory, for every process."""

_WEB_OPTIONS = {
    **OPTIONS,
    # All compressed blocks of a window come in one round, however many they are.
    "GDAL_MAX_RAW_BLOCK_CACHE_SIZE": str(2**31 - 1),
}


@contextmanager
def _gdal(
    where: str, options: Mapping[str, str], web_file: _WebFile | None = None
) -> Iterator[None]:
    """GDAL set up for reading; what goes wrong in it comes out as this package's errors."""
    trouble: BaseException | None = None
    try:
        with rasterio.Env(session=DummySession(), GDAL_CACHEMAX=_CACHE_BYTES, **options):
            yield
    except (RasterioError, CRSError, CPLE_BaseError) as error:
        trouble = error
    if web_file and web_file.failure:
        trouble = web_file.failure
    if isinstance(trouble, BharatEOError) or (trouble and not isinstance(trouble, Exception)):
        raise trouble
    if trouble:
        raise CorruptRasterError(
            f"{where} cannot be read ({trouble.__cause__ or trouble}): the file is truncated, "
            "changed or no raster; fetch it again"
        ) from trouble


class RasterFile:
    """An open raster file. The handle, its header and its connections stay open between reads.

    ``shape`` is (rows, columns), ``identity`` what tells this version of the file from another:
    ``{"etag": ...}`` on a web server, ``{"size": ..., "mtime_ns": ...}`` on disk. Thread-safe: one
    read at a time, each with several requests in flight. After an error it is closed.

    What the file says of its bands, one a band: ``band_names`` (their descriptions, else their
    colours, None where it says neither), ``nodata`` (None where it says nothing) and ``units``,
    (scale, offset) of stored values, (1, 0) where it says nothing. An alpha band says which pixels
    there are, and is none of the bands.
    """

    def __init__(
        self,
        location: str,
        opened: Opened,
        web_file: _WebFile | None = None,
    ):
        dataset, context = opened.dataset, opened.context
        self.location = location
        self.identity = dict(opened.identity)
        self.shape: tuple[int, int] = dataset.shape
        self.has_alpha = ColorInterp.alpha in dataset.colorinterp
        self.num_bands: int = dataset.count - self.has_alpha
        self.dtype = np.dtype(dataset.dtypes[0])
        self.block_shape: tuple[int, int] = dataset.block_shapes[0]
        of_bands = slice(self.num_bands)
        self.nodata: tuple[float | None, ...] = dataset.nodatavals[of_bands]
        names = map(_band_name, dataset.descriptions, dataset.colorinterp)
        self.band_names = tuple(names)[of_bands]
        self.units = tuple(zip(dataset.scales, dataset.offsets, strict=True))[of_bands]
        self._crs = dataset.crs.to_string() if dataset.crs else None
        self._affine = opened.affine
        self._dataset, self._context, self._web_file = dataset, context, web_file
        self._opened, self._options, self._close = opened, opened.options, opened.close
        # Several blocks of JPEG 2000 are decoded in threads of GDAL's own. What goes wrong in them
        # nobody hears of, and openers are not found there.
        self._block_by_block = dataset.driver == "JP2OpenJPEG"
        self._lock = threading.Lock()

    def read_window(
        self, row: int, col: int, height: int, width: int, bands: Sequence[int] | None = None
    ) -> Shaped[np.ndarray, "band row col"]:
        """The stored values of a window inside the raster, at full resolution.

        ``bands`` are places in the file, from 0; all bands by default.

        Every block under the window is fetched at most once, all of them in parallel.

        Raises:
            CorruptRasterError: the file is truncated or damaged there, or changed meanwhile.
            UnreachableError: the server did not answer, also after retries.
        """
        return self._read_pieces(row, col, height, width, self._dataset.read, self._indexes(bands))

    def read_known(
        self,
        row: int,
        col: int,
        height: int,
        width: int,
        bands: Sequence[int] | None = None,
        nodata: float | None = None,
    ) -> tuple[Shaped[np.ndarray, "band row col"], Bool[np.ndarray, "band row col"]]:
        """The stored values of a window as ``read_window`` gives them, and where there are any.

        A pixel of a band is there if it is a finite number other than the band's nodata, and
        neither a mask (inside the file or beside it) nor an alpha band says that it is not.
        ``nodata`` stands for what the file says, of all bands.

        Raises:
            CorruptRasterError, UnreachableError: see ``read_window``.
        """
        window, indexes = (row, col, height, width), self._indexes(bands)
        values = self.read_window(*window, bands)
        known = np.isfinite(values) if values.dtype.kind == "f" else np.ones(values.shape, bool)
        for layer, index, there in zip(values, indexes, known, strict=True):
            said = self.nodata[index - 1] if nodata is None else nodata
            if said is not None:
                there &= ~_equal(layer, said)
        if self.has_alpha:
            known &= self._read_pieces(*window, self._dataset.read, [self.num_bands + 1]) > 0
        if self._masked:
            chosen = indexes if self._masked == "band by band" else indexes[:1]
            known &= self._read_pieces(*window, self._dataset.read_masks, chosen) > 0
        return values, known

    @cached_property
    def says_what_is_there(self) -> bool:
        """Whether the file has nodata, a mask or an alpha band."""
        return bool(any(each is not None for each in self.nodata) or self.has_alpha or self._masked)

    @cached_property
    def _masked(self) -> Literal["", "as a whole", "band by band"]:
        """Whether there are masks beside nodata and alpha.

        To know this, GDAL looks at all directories of a file: of a COG they are in its header.
        """

        def look() -> list[list[MaskFlags]]:
            pages = self._dataset.subdatasets
            if len(pages) > 1:
                raise CorruptRasterError(
                    f"{self.location} holds {len(pages)} images, and which is meant nobody says: "
                    f"write one to a file of its own with gdal_translate {pages[0]} OUT.tif"
                )
            return list(self._dataset.mask_flag_enums[: self.num_bands])

        flags = self._call(f"{self.location}, its masks,", 1, look)
        if any(each == [] for each in flags):
            return "band by band"
        whole = any(MaskFlags.per_dataset in e and MaskFlags.alpha not in e for e in flags)
        return "as a whole" if whole else ""

    def _indexes(self, bands: Sequence[int] | None) -> list[int]:
        return [band + 1 for band in (range(self.num_bands) if bands is None else bands)]

    def _read_pieces(
        self,
        row: int,
        col: int,
        height: int,
        width: int,
        read: Callable[..., Any],
        indexes: Sequence[int],
    ) -> Shaped[np.ndarray, "band row col"]:
        """A window, whole where GDAL can be trusted to read it so, else block by block."""
        where = f"{self.location}, window row {row} col {col} of {height} x {width} px,"
        if not self._block_by_block:
            window, num = Window(col, row, width, height), self._num_blocks(row, col, height, width)
            return np.asarray(self._call(where, num, read, indexes=indexes, window=window))

        def blocks() -> Shaped[np.ndarray, "band row col"]:
            pieces = [
                [
                    read(indexes=indexes, window=Window.from_slices(rows, cols))
                    for cols in _cut(col, width, self.block_shape[1])
                ]
                for rows in _cut(row, height, self.block_shape[0])
            ]
            return np.concatenate([np.concatenate(parts, axis=2) for parts in pieces], axis=1)

        return np.asarray(self._call(where, 1, blocks))

    def _call(self, where: str, max_requests: int, read: Callable[..., Any], **options: Any) -> Any:
        with self._lock:
            try:
                with _gdal(where, self._options, self._web_file):
                    if self._web_file:
                        self._web_file.max_requests = max_requests
                    return self._context.run(read, **options)
            except BaseException:
                # GDAL may have kept blocks that never arrived.
                self._close()
                raise

    @cached_property
    def geobox(self) -> GeoBox:
        """The grid of the file.

        Raises:
            CorruptRasterError: the file does not say where on Earth it lies, or says elsewhere.
        """
        if self._crs is None:
            raise CorruptRasterError(
                f"{self.location} has no coordinate reference system, so nobody can tell where it "
                "lies: assign one (gdal_edit.py -a_srs EPSG:... FILE) or leave the file out"
            )
        numbers = np.array(self._affine[:6])
        if not np.isfinite(numbers).all() or self._affine.is_degenerate or self._affine.is_identity:
            raise CorruptRasterError(
                f"{self.location} does not say where its pixels lie (its transform is "
                f"{', '.join(f'{number:g}' for number in numbers)}): give it one (gdal_edit.py "
                "-a_ullr LEFT TOP RIGHT BOTTOM FILE) or leave the file out"
            )
        _check_place(self.location, self._crs, self._affine, self.shape)
        return GeoBox(self.shape, self._affine, self._crs)

    def read_on(
        self,
        geobox: GeoBox,
        method: Method = "nearest",
        nodata: float = 0,
        masked: bool = False,
    ) -> Shaped[np.ndarray, "band row col"]:
        """The stored values on any grid, by nearest neighbour or bilinear.

        With ``masked`` pixels that the file itself says hold nothing become ``nodata`` first.
        ``nodata`` where the file does not reach, and it has no part in bilinear means. Only the
        blocks under the grid are fetched; nothing at all where the file lies elsewhere.

        Raises:
            CorruptRasterError: also where the file has no reference system.
            UnreachableError: see ``read_window``.
        """
        rows, cols = pixels_under(self.geobox, geobox)
        height, width = rows.stop - rows.start, cols.stop - cols.start
        if min(height, width) <= 0:
            return np.full((self.num_bands, *geobox.shape), nodata, self.dtype)
        if masked:
            values, known = self.read_known(rows.start, cols.start, height, width)
            values[~known] = nodata
        else:
            values = self.read_window(rows.start, cols.start, height, width)
        return to_grid(values, self.geobox[rows, cols], geobox, method, nodata)

    def read_thinned(
        self, step: float, bands: Sequence[int] | None = None
    ) -> Shaped[np.ndarray, "band row col"]:
        """The whole raster with about one pixel in ``step`` x ``step``, from its overviews.

        Raises:
            CorruptRasterError, UnreachableError: see ``read_window``.
        """
        indexes = self._indexes(bands)
        shape = (len(indexes), *(math.ceil(size / step) for size in self.shape))
        where = f"{self.location}, thinned {step:g} times,"
        values: np.ndarray = self._call(
            where, 1, self._dataset.read, indexes=indexes, out_shape=shape
        )
        return values

    def _num_blocks(self, row: int, col: int, height: int, width: int) -> int:
        block_height, block_width = self.block_shape
        rows = (row + height - 1) // block_height - row // block_height + 1
        return rows * ((col + width - 1) // block_width - col // block_width + 1)

    def close(self) -> None:
        """Let go of the handle."""
        with self._lock:
            self._close()

    def __enter__(self) -> RasterFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _check_place(location: str, crs: str, affine: Affine, shape: tuple[int, int]) -> None:
    """Refuse a reference system that is none of Earth's surface, and a place far off it."""
    height, width = shape
    try:
        whole = CRS(crs)
        if not (whole.geographic or whole.projected):
            raise CRSError("it is neither geographic nor projected")
        to_degrees = whole.transformer_to_crs(CRS("EPSG:4326"), always_xy=True)
    except (ValueError, RuntimeError) as error:  # of pyproj and of odc-geo
        name = " ".join(crs.split())[:80]
        raise CorruptRasterError(
            f"{location} has a reference system that is none of Earth's surface ({name}): assign "
            "the right one (gdal_edit.py -a_srs EPSG:... FILE) or leave the file out"
        ) from error
    corners = [affine @ (col, row) for row in (0, height / 2, height) for col in (0, width)]
    lon, lat = to_degrees(*np.array(corners).T)
    if not ((np.abs(lon) <= 540) & (np.abs(lat) <= 91)).any():
        raise CorruptRasterError(
            f"{location} lies off the Earth (its first pixel at {affine.c:g}, {affine.f:g} of "
            f"{' '.join(crs.split())[:80]}): give it the right place (gdal_edit.py -a_ullr LEFT "
            "TOP RIGHT BOTTOM FILE) or leave the file out"
        )


def _cut(start: int, length: int, block: int) -> Iterator[slice]:
    """A span cut where blocks end."""
    end = start + length
    edges = [start, *range((start // block + 1) * block, end, block), end]
    return (slice(*each) for each in pairwise(edges))


def _equal(values: Shaped[np.ndarray, "row col"], number: float) -> Bool[np.ndarray, "row col"]:
    """Where stored values are a number; nowhere if their type cannot hold it."""
    if values.dtype.kind in "iu":
        limits = np.iinfo(values.dtype)
        if not (float(number).is_integer() and limits.min <= number <= limits.max):
            return np.zeros(values.shape, bool)
        number = int(number)
    where: np.ndarray = values == number
    return where


def _band_name(description: str | None, colour: ColorInterp) -> str | None:
    """What a file calls a band."""
    named = colour in (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
    return description or (colour.name if named else None)


def open_raster(location: str, web: Web | None = None, vrt: bool = False) -> RasterFile | None:
    """The raster at a local path, http(s) or s3 URL, or None where no such file exists.

    It is a GeoTIFF or JPEG 2000 file, whatever its name says. ``vrt``: a person named the location,
    so that a local ``.vrt`` may be one (see ``formats``).

    A server's 404 is such an answer, and no 403 is, though S3 says it of a missing key to those
    who may not list the bucket. ``web`` shares connections and the count of traffic between files.

    Raises:
        CorruptRasterError: there is a file, but it is no raster.
        UnreachableError: the server did not answer, also after retries, or refused.
        ConfigError: the location is a URL of another kind.
    """
    url = web_address(location)
    if url is not None:
        return _open_web(shown(location), url, web or Web())
    with _gdal(location, OPTIONS):
        opened = open_local(Path(location), vrt)
        return None if opened is None else RasterFile(location, opened)


def _open_web(location: str, url: str, web: Web) -> RasterFile | None:
    try:
        web_file = _WebFile(web, url)
    except Missing:
        return None
    except Damaged as error:
        raise CorruptRasterError(f"{location} is no raster: {error}; fetch it again") from error
    driver = driver_of(web_file.read_at(0, 16), location)
    with _gdal(location, _WEB_OPTIONS, web_file):
        opened = open_dataset(
            web_file.name, driver, location, web_file.identity, web_file, _WEB_OPTIONS
        )
        return RasterFile(location, opened, web_file)
