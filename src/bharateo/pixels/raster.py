"""Pixels on a grid: files read with the validity of every pixel, kept open, brought to other grids.

A local file is read by GDAL, and so is one on a web server, by HTTP range requests that GDAL calls
for: the header once when it is opened, then all blocks of a window in one parallel round. What is
let in, and as what, says ``formats``.
"""

from __future__ import annotations

import math
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

import numpy as np
import rasterio
import rasterio.warp
from affine import Affine
from jaxtyping import Bool, Shaped
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from odc.geo.overlap import compute_reproject_roi
from rasterio._err import CPLE_BaseError  # what some calls let through
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.errors import CRSError, RasterioError
from rasterio.session import DummySession
from rasterio.windows import Window

from bharateo.errors import BharatEOError, CorruptRasterError
from bharateo.pixels.formats import OPTIONS, Opened, WebFile, driver_of, open_dataset, open_local
from bharateo.pixels.http import Damaged, Missing, Web, web_address
from bharateo.pixels.network import shown

Found = TypeVar("Found", bound="RasterFile | None")
Method = Literal["nearest", "bilinear"]
Known = tuple[Shaped[np.ndarray, "band row col"], Bool[np.ndarray, "band row col"]]
"""Stored values, and where there are any."""


@dataclass(frozen=True)
class Raster:
    """Stored values on a GeoBox, bands first, with the validity of every pixel.

    ``provenance`` says where the pixels come from (URLs, ETags, dates), as plain JSON.
    """

    values: Shaped[np.ndarray, "band row col"]
    valid: Bool[np.ndarray, "row col"]
    geobox: GeoBox
    provenance: Mapping[str, Any] = field(default_factory=dict)


_CACHE_BYTES = 16 * 2**20
"""Decoded blocks that GDAL keeps: no more than a window's, since each block is read once. Its own
default is a twentieth of the machine's memory, for every process."""

MOST_OPEN = 26
"""Files that stay open between reads: of two scenes with all their bands."""

SNAP_PX = 1e-3
"""Grids whose pixels coincide to this are taken for one grid."""

_SAME_SIZE = 1e-6
"""Pixel sizes that differ by less, relative to their size, are one."""

_ROWS_AT_ONCE = 64
"""Rows that are doubled together: the sums stay in the processor's cache."""

_WARP_PX = 0.01
"""How far GDAL's fast reprojection may miss the exact place, in pixels."""

_WARPING = threading.Lock()
"""``rasterio.warp.reproject`` sets the process's warning filters aside, which threads share."""

_WEB_OPTIONS = {
    **OPTIONS,
    # All compressed blocks of a window come in one round, however many they are.
    "GDAL_MAX_RAW_BLOCK_CACHE_SIZE": str(2**31 - 1),
}


@contextmanager
def _gdal(
    where: str, options: Mapping[str, str], web_file: WebFile | None = None
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

    def __init__(self, location: str, opened: Opened, web_file: WebFile | None = None):
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
        colours = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
        self.band_names = tuple(
            said or (colour.name if colour in colours else None)
            for said, colour in zip(dataset.descriptions, dataset.colorinterp, strict=True)
        )[of_bands]
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
        return self._read(row, col, height, width, self._dataset.read, self._indexes(bands))

    def read_known(
        self,
        row: int,
        col: int,
        height: int,
        width: int,
        bands: Sequence[int] | None = None,
        nodata: float | None = None,
    ) -> Known:
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
            if values.dtype.kind in "iu":
                said = as_integer(said, values.dtype)
            if said is not None:
                there &= layer != said
        if self.has_alpha:
            known &= self._read(*window, self._dataset.read, [self.num_bands + 1]) > 0
        if self._masked:
            chosen = indexes if self._masked == "band by band" else indexes[:1]
            known &= self._read(*window, self._dataset.read_masks, chosen) > 0
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

    def _read(
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
        # Where blocks end within the window.
        rows, cols = (
            [start, *range((start // block + 1) * block, start + length, block), start + length]
            for start, length, block in zip(
                (row, col), (height, width), self.block_shape, strict=True
            )
        )
        if not self._block_by_block:
            window, num = Window(col, row, width, height), (len(rows) - 1) * (len(cols) - 1)
            return np.asarray(self._call(where, num, read, indexes=indexes, window=window))

        def blocks() -> Shaped[np.ndarray, "band row col"]:
            return np.concatenate([
                np.concatenate([
                    read(indexes=indexes, window=Window.from_slices(some_rows, some_cols))
                    for some_cols in pairwise(cols)
                ], axis=2)
                for some_rows in pairwise(rows)
            ], axis=1)  # fmt: skip

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
        name = " ".join(self._crs.split())[:80]
        try:
            whole = CRS(self._crs)
            if not (whole.geographic or whole.projected):
                raise CRSError("it is neither geographic nor projected")
            to_degrees = whole.transformer_to_crs(CRS("EPSG:4326"), always_xy=True)
        except (ValueError, RuntimeError) as error:  # of pyproj and of odc-geo
            raise CorruptRasterError(
                f"{self.location} has a reference system that is none of Earth's surface ({name}): "
                "assign the right one (gdal_edit.py -a_srs EPSG:... FILE) or leave the file out"
            ) from error
        height, width = self.shape
        corners = [self._affine @ (c, r) for r in (0, height / 2, height) for c in (0, width)]
        lon, lat = to_degrees(*np.array(corners).T)
        if not ((np.abs(lon) <= 540) & (np.abs(lat) <= 91)).any():
            raise CorruptRasterError(
                f"{self.location} lies off the Earth (its first pixel at {self._affine.c:g}, "
                f"{self._affine.f:g} of {name}): give it the right place (gdal_edit.py -a_ullr "
                "LEFT TOP RIGHT BOTTOM FILE) or leave the file out"
            )
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
        self,
        step: float,
        bands: Sequence[int] | None = None,
        part: tuple[int, int, int, int] | None = None,
    ) -> Shaped[np.ndarray, "band row col"]:
        """The raster, or a part of it (row, column, height, width), with about one pixel in
        ``step`` x ``step``, from its overviews.

        Raises:
            CorruptRasterError, UnreachableError: see ``read_window``.
        """
        indexes = self._indexes(bands)
        row, col, *size = part or (0, 0, *self.shape)
        shape = (len(indexes), *(math.ceil(length / step) for length in size))
        window = Window(col, row, size[1], size[0]) if part else None
        where = f"{self.location}, thinned {step:g} times,"
        values: np.ndarray = self._call(
            where, 1, self._dataset.read, indexes=indexes, out_shape=shape, window=window
        )
        return values

    @property
    def closed(self) -> bool:
        """Whether it is: somebody has let go of it, or a read has failed."""
        return not self._close.alive

    def close(self) -> None:
        """Let go of the handle."""
        with self._lock:
            self._close()

    def __enter__(self) -> RasterFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


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
    if url is None:
        with _gdal(location, OPTIONS):
            opened = open_local(Path(location), vrt)
            return None if opened is None else RasterFile(location, opened)
    location = shown(location)
    try:
        web_file = WebFile(web or Web(), url)
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


class OpenRasters:
    """The rasters used last, kept open between reads. Threads may share it.

    A file that is dropped for others is closed once nobody reads it any more. A process that was
    forked, or got this pickled, begins with none.
    """

    def __init__(self) -> None:
        self._files: OrderedDict[str, RasterFile | None] = OrderedDict()
        self._lock, self._process = threading.Lock(), os.getpid()

    def __reduce__(self) -> tuple[type[OpenRasters], tuple[()]]:
        return OpenRasters, ()

    def __len__(self) -> int:
        return len(self._files)

    def get(self, name: str, open_one: Callable[[], Found]) -> Found:
        """The open file of this name, opened by ``open_one`` if it is not, or has been closed.

        That there is none is remembered as well.
        """
        if self._process != os.getpid():  # handles of before the fork share their places in files
            self._files, self._lock, self._process = OrderedDict(), threading.Lock(), os.getpid()
        with self._lock:
            if name in self._files and not ((kept := self._files[name]) and kept.closed):
                self._files.move_to_end(name)
                return kept  # type: ignore[return-value]  # what open_one gave
        file = open_one()  # several threads may wait for servers at once
        with self._lock:
            self._files[name] = file
            self._files.move_to_end(name)
            while len(self._files) > MOST_OPEN:
                self._files.popitem(last=False)
        return file


def existing(path: Path) -> RasterFile:
    """The raster at a path that was there before.

    Raises:
        CorruptRasterError: it is gone, or no raster.
    """
    file = open_raster(str(path), vrt=True)
    if file is None:
        raise CorruptRasterError(
            f"{path} does not exist any more: put it back, or build again into another folder"
        )
    return file


# Grids


def as_integer(nodata: float | None, dtype: np.dtype) -> int | None:
    """Nodata as a value of the type, None where the type cannot hold it."""
    if nodata is None or not float(nodata).is_integer():
        return None
    limits = np.iinfo(dtype)
    return int(nodata) if limits.min <= nodata <= limits.max else None


@runtime_checkable
class Reader(Protocol):
    """Bands on a grid, read window by window, with what they are called and how they are stored.

    ``RasterFile`` is one; ``reader`` has others.
    """

    location: str
    num_bands: int
    dtype: np.dtype
    band_names: tuple[str | None, ...]
    nodata: tuple[float | None, ...]
    units: tuple[tuple[float, float], ...]

    @property
    def identity(self) -> Mapping[str, Any]:
        """What tells this version from another, as plain JSON."""
        ...

    @property
    def geobox(self) -> GeoBox:
        """The grid."""
        ...

    def read_known(
        self,
        row: int,
        col: int,
        height: int,
        width: int,
        bands: Sequence[int] | None = None,
        nodata: float | None = None,
    ) -> Known:
        """Stored values of a window inside the raster, and where there are any."""
        ...


def known_on(
    raster: Reader,
    geobox: GeoBox,
    bands: Sequence[int],
    nodata: float | None,
    method: Method,
) -> Known:
    """Stored values of a raster's bands on any grid, and where each holds one.

    A window of its own grid comes as it is, others by ``method``; 0 where nothing is.
    """
    corner = corner_in(raster.geobox, geobox)
    if corner is not None:
        height, width = geobox.shape
        return raster.read_known(*corner, height, width, bands, nodata)
    rows, cols = pixels_under(raster.geobox, geobox)
    height, width = rows.stop - rows.start, cols.stop - cols.start
    if min(height, width) <= 0:
        shape = (len(bands), *geobox.shape)
        return np.zeros(shape, raster.dtype), np.zeros(shape, bool)
    stored, there = raster.read_known(rows.start, cols.start, height, width, bands, nodata)
    said = {raster.nodata[band] for band in bands} if nodata is None else {nodata}
    nothing: float | None = None
    if raster.dtype.kind in "iu":
        nothing = as_integer(said.pop(), raster.dtype) if len(said) == 1 else None
    if nothing is None:  # no value of the type is free to say so
        small = raster.dtype.kind in "iu" and raster.dtype.itemsize <= 2
        nothing = np.iinfo(np.int32).min if small else float("nan")
        stored = stored.astype(np.int32 if small else np.promote_types(stored.dtype, np.float32))
    stored[~there] = nothing
    on_grid = to_grid(stored, raster.geobox[rows, cols], geobox, method, nothing)
    there = ~np.isnan(on_grid) if math.isnan(nothing) else on_grid != nothing
    on_grid = np.where(there, on_grid, 0)
    if raster.dtype.kind in "iu" and on_grid.dtype.kind == "f":
        on_grid = np.rint(on_grid)
    return on_grid.astype(raster.dtype), there


def same_pixels(there: GeoBox, here: GeoBox) -> bool:
    """Whether two grids have one reference system and pixel size, wherever they begin."""
    return there.crs == here.crs and all(
        math.isclose(a, b, rel_tol=_SAME_SIZE)
        for a, b in ((there.affine.a, here.affine.a), (there.affine.e, here.affine.e))
    )


def begins_at(there: GeoBox, here: GeoBox) -> tuple[float, float]:
    """The row and column of one grid where another begins."""
    col, row = ~there.affine @ (here.affine.c, here.affine.f)
    return row, col


def corner_in(there: GeoBox, here: GeoBox) -> tuple[int, int] | None:
    """The first row and column of a grid's window; None if ``here`` is no window of it."""
    if not same_pixels(there, here):
        return None
    place = begins_at(there, here)
    row, col = (round(number) for number in place)
    inside = (
        min(row, col) >= 0
        and row + here.shape[0] <= there.shape[0]
        and col + here.shape[1] <= there.shape[1]
    )
    exact = max(abs(place[0] - row), abs(place[1] - col)) < SNAP_PX
    return (row, col) if inside and exact else None


def pixels_under(there: GeoBox, here: GeoBox) -> tuple[slice, slice]:
    """Rows and columns of the grid ``there`` that it takes to fill the grid ``here``.

    With a margin for what a bilinear mean takes of the neighbours, unless pixels coincide.
    """
    found = compute_reproject_roi(there, here, ttol=SNAP_PX)
    if not (found.paste_ok and found.read_shrink == 1):
        margin = 1 if found.scale <= 1 else math.ceil(found.scale) + 1
        found = compute_reproject_roi(there, here, ttol=SNAP_PX, padding=margin)
    rows, cols = found.roi_src
    return slice(rows.start, rows.stop), slice(cols.start, cols.stop)


def to_grid(
    values: Shaped[np.ndarray, "band row col"],
    there: GeoBox,
    here: GeoBox,
    method: Method,
    nodata: float = 0,
) -> Shaped[np.ndarray, "band rows cols"]:
    """``values``, which lie on the grid ``there``, on the grid ``here``; nodata outside of them.

    Pixels of one grid are copied as they are. Nodata has no part in a bilinear mean: the weights
    of the other pixels are scaled up. Pixels twice as large (20 m to 10 m) take a short way with
    the very same result as GDAL's.
    """
    step, (height, width) = _integer_steps(there, here), here.shape
    if step is not None and step[0] == 1:
        return _pasted(values, step[1:], (height, width), nodata)
    if step is not None and method == "nearest":
        larger = values.repeat(step[0], axis=-2).repeat(step[0], axis=-1)
        return _pasted(larger, step[1:], (height, width), nodata)
    integers = np.issubdtype(values.dtype, np.unsignedinteger) and values.dtype.itemsize <= 2
    if step is not None and step[0] == 2 and integers and not (values == nodata).any():
        return _pasted(doubled(values), step[1:], (height, width), nodata)
    out = np.full((len(values), *here.shape), nodata, values.dtype)
    for band, warped in zip(values, out, strict=True):  # together, one's nodata marks another's
        with _WARPING:
            rasterio.warp.reproject(
                band,
                warped,
                src_transform=there.affine,
                src_crs=str(there.crs),
                src_nodata=nodata,
                dst_transform=here.affine,
                dst_crs=str(here.crs),
                dst_nodata=nodata,
                resampling=Resampling[method],
                tolerance=_WARP_PX,
            )
    return out


def doubled(values: Shaped[np.ndarray, "band row col"]) -> Shaped[np.ndarray, "band rows cols"]:
    """Pixels of twice the resolution by bilinear, rounded half up; exact integer arithmetic.

    Every new pixel lies a quarter pixel from an old one's centre, so the weights are 9, 3, 3 and
    1 sixteenths. At the edge the missing neighbour is the pixel itself, as in GDAL.
    """
    padded = np.pad(values, ((0, 0), (1, 1), (1, 1)), mode="edge")
    num_bands, rows, cols = values.shape
    out = np.empty((num_bands, 2 * rows, 2 * cols), values.dtype)
    for start in range(0, rows, _ROWS_AT_ONCE):
        some = padded[:, start : start + _ROWS_AT_ONCE + 2].astype(np.uint32)
        both = _between(_between(some).swapaxes(1, 2)).swapaxes(1, 2)
        both += 8
        both >>= 4
        out[:, 2 * start : 2 * start + both.shape[1]] = both
    return out


def _between(values: Shaped[np.ndarray, "band row col"]) -> Shaped[np.ndarray, "band rows col"]:
    """Four times the values a quarter pixel above and below every row but the outermost."""
    num_bands, rows, cols = values.shape
    middle = 3 * values[:, 1:-1]
    out = np.empty((num_bands, 2 * (rows - 2), cols), np.uint32)
    out[:, 0::2] = middle + values[:, :-2]
    out[:, 1::2] = middle + values[:, 2:]
    return out


def _integer_steps(there: GeoBox, here: GeoBox) -> tuple[int, int, int] | None:
    """How many pixels of ``here`` a pixel of ``there`` is wide, and where it begins (row, col).

    None where the grids have other reference systems, or pixels that do not nest.
    """
    if there.crs != here.crs:
        return None
    step: Affine = ~here.affine @ there.affine
    num = round(step.a)
    row, col = round(step.f), round(step.c)
    extent = max(*there.shape, 1)
    off = max(abs(step.a - num), abs(step.e - num), abs(step.b), abs(step.d)) * extent
    if num < 1 or max(off, abs(step.f - row), abs(step.c - col)) > SNAP_PX:
        return None
    return num, row, col


def _pasted(
    values: Shaped[np.ndarray, "band row col"],
    first: tuple[int, int],
    shape: tuple[int, int],
    nodata: float,
) -> Shaped[np.ndarray, "band rows cols"]:
    """``values`` put at their place in an array of ``shape``, cut where they reach beyond it."""
    (row, col), (height, width) = first, values.shape[1:]
    if (row, col) == (0, 0) and (height, width) == shape:
        return values
    out = np.full((len(values), *shape), nodata, values.dtype)
    top, left = max(row, 0), max(col, 0)
    bottom, right = min(row + height, shape[0]), min(col + width, shape[1])
    if bottom > top and right > left:
        part = values[:, top - row : bottom - row, left - col : right - col]
        out[:, top:bottom, left:right] = part
    return out
