"""Pixels on a grid; the only module that opens rasters.

A local file is read by GDAL. A file on a web server is read by HTTP range requests that GDAL
calls for: the header once when it is opened, then all blocks of a window in one parallel round.
"""

from __future__ import annotations

import math
import os
import ssl
import threading
import uuid
import weakref
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import Context
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import certifi
import numpy as np
import rasterio
import urllib3
from jaxtyping import Bool, Shaped
from odc.geo.geobox import GeoBox
from rasterio.abc import MultiByteRangeResourceContainer
from rasterio.errors import RasterioError
from rasterio.session import DummySession
from rasterio.windows import Window
from urllib3 import exceptions as web_errors

from bharateo.errors import BharatEOError, ConfigError, CorruptRasterError, UnreachableError


@dataclass(frozen=True)
class Raster:
    """Stored values on a GeoBox, bands first, with the validity of every pixel.

    ``provenance`` says where the pixels come from (URLs, ETags, dates), as plain JSON.
    """

    values: Shaped[np.ndarray, "band row col"]
    valid: Bool[np.ndarray, "row col"]
    geobox: GeoBox
    provenance: Mapping[str, Any] = field(default_factory=dict)


_S3_REGIONS = {"esa-worldcover": "eu-central-1"}


def web_address(location: str) -> str | None:
    """The http(s) URL of a location, or None for a local path.

    ``s3://bucket/key`` becomes the bucket's public endpoint, read without signing.

    Raises:
        ConfigError: the location is a URL of another kind.
    """
    scheme, separator, rest = location.partition("://")
    if not separator:
        return None
    if scheme in ("http", "https"):
        return location
    if scheme != "s3":
        raise ConfigError(f"{location!r} is not a local path, http(s):// or s3:// URL")
    bucket, _, key = rest.partition("/")
    region = f".{_S3_REGIONS[bucket]}" if bucket in _S3_REGIONS else ""
    return f"https://{bucket}.s3{region}.amazonaws.com/{key}"


# Ranges over HTTP.

_PAGE_BYTES = 32 * 1024
"""Holds the whole header of a WorldCover tile (23 KiB)."""

_LEAST_PART_BYTES = 64 * 1024
"""Below this a request costs more in latency than its bytes take to arrive."""

_BUSY = (429, 500, 502, 503, 504)


class _Missing(Exception):
    """The server says that there is no such file."""


class _Damaged(Exception):
    """The file is not what it was, or not whole."""


@dataclass
class Traffic:
    """Requests answered and bytes received so far."""

    requests: int = 0
    bytes: int = 0


@dataclass(frozen=True)
class _Answer:
    body: bytes
    file_bytes: int
    identity: Mapping[str, Any]


class Web:
    """Connections to web servers: kept open, used in parallel, tried again when they fail.

    Busy servers (429, 5xx), timeouts, broken connections and short answers are tried again
    ``num_retries`` times: the first time at once, then after 2, 4, 8, ... times ``backoff_s``, and
    each time up to one ``backoff_s`` more, so that clients do not come back in step. Proxies come
    from the environment. ``traffic`` counts what arrived whole. Thread-safe.
    """

    def __init__(
        self,
        timeout_s: float = 20.0,
        num_retries: int = 5,
        backoff_s: float = 0.2,
        num_parallel: int = 16,
    ):
        self.traffic = Traffic()
        self._timeout = urllib3.Timeout(connect=min(timeout_s, 10.0), read=timeout_s)
        self._retry = urllib3.Retry(
            num_retries,
            backoff_factor=backoff_s,
            backoff_jitter=backoff_s,
            status_forcelist=_BUSY,
            respect_retry_after_header=False,
        )
        self._num_parallel = num_parallel
        self._executor = ThreadPoolExecutor(num_parallel, "bharateo-web")
        self._managers: dict[tuple[str, str | None], urllib3.PoolManager] = {}
        self._lock = threading.Lock()

    def get(self, url: str, first: int, num_bytes: int) -> _Answer:
        """A range of a file; shorter only where the file ends.

        Raises:
            UnreachableError: no whole answer, also after retries, or one that refuses.
        """
        try:
            return self._get_persistently(url, first, num_bytes)
        except web_errors.HTTPError as error:
            raise UnreachableError(
                f"{url} could not be reached: {self._reason(error)}; check the address and the "
                "network connection, then run the same command again"
            ) from error

    def get_all(self, url: str, ranges: Sequence[tuple[int, int]]) -> list[_Answer]:
        """Several ranges ``(first, num_bytes)`` of a file, fetched in parallel."""
        return list(self._executor.map(lambda part: self.get(url, *part), ranges))

    def _get_persistently(self, url: str, first: int, num_bytes: int) -> _Answer:
        retry = self._retry
        while True:
            response = self._manager(url).request(
                "GET",
                url,
                headers={"Range": f"bytes={first}-{first + num_bytes - 1}"},
                timeout=self._timeout,
                retries=retry,
                preload_content=False,
            )
            try:
                return self._answer(url, response, first, num_bytes)
            except web_errors.HTTPError as error:
                response.close()
                retry = (response.retries or retry).increment("GET", url, error=error)
                retry.sleep()

    def _answer(
        self, url: str, response: urllib3.BaseHTTPResponse, first: int, num_bytes: int
    ) -> _Answer:
        file_bytes = _file_bytes(url, response, first, num_bytes)
        body = response.read()
        response.release_conn()
        if len(body) != min(num_bytes, file_bytes - first):
            raise web_errors.ProtocolError(f"short answer of {len(body)} bytes")
        with self._lock:
            self.traffic.requests += 1
            self.traffic.bytes += len(body)
        return _Answer(body, file_bytes, _identity(response, file_bytes))

    def _manager(self, url: str) -> urllib3.PoolManager:
        parts = urlsplit(url)
        host = parts.hostname or ""
        direct = host in ("localhost", "127.0.0.1", "::1") or proxy_bypass(host)
        key = parts.scheme, None if direct else getproxies().get(parts.scheme)
        with self._lock:
            if key not in self._managers:
                self._managers[key] = self._new_manager(*key)
            return self._managers[key]

    def _new_manager(self, scheme: str, proxy: str | None) -> urllib3.PoolManager:
        options: dict[str, Any] = {"maxsize": self._num_parallel}
        if scheme == "https":
            options["ssl_context"] = ssl.create_default_context()
            # Python as installed on some systems finds no certificates of its own.
            options["ssl_context"].load_verify_locations(certifi.where())
        return urllib3.ProxyManager(proxy, **options) if proxy else urllib3.PoolManager(**options)

    def _reason(self, error: BaseException) -> str:
        cause = error.reason if isinstance(error, web_errors.MaxRetryError) else error
        if isinstance(cause, web_errors.NameResolutionError):
            return "its name could not be resolved"
        if isinstance(cause, web_errors.NewConnectionError):
            return str(cause).rpartition(": ")[2]
        if isinstance(cause, web_errors.ConnectTimeoutError):
            return f"no connection within {self._timeout.connect_timeout:g} s"
        if isinstance(cause, web_errors.ReadTimeoutError):
            return f"no answer within {self._timeout.read_timeout:g} s"
        return str(cause)


def _file_bytes(url: str, response: urllib3.BaseHTTPResponse, first: int, num_bytes: int) -> int:
    """The size of the whole file, from the headers of a range of it."""
    status = response.status
    if status == 206:
        content_range = response.headers.get("Content-Range", "")
        span, _, total = content_range.removeprefix("bytes ").partition("/")
        if span.partition("-")[0] == str(first) and total.isdigit():
            return int(total)
        raise web_errors.ProtocolError(f"answer to another range: {content_range!r}")
    length = response.headers.get("Content-Length", "")
    if status == 200 and first == 0 and length.isdigit() and int(length) <= num_bytes:
        return int(length)
    response.close()
    if status in (404, 410) or (status == 403 and _is_s3(response)):
        raise _Missing(url)
    if status == 416:
        raise _Damaged(f"it ends before byte {first}")
    refusal = "it sends whole files only (no HTTP range requests)" if status == 200 else (
        f"it answered {status} {response.reason or ''}".rstrip()
    )  # fmt: skip
    raise UnreachableError(
        f"{url} could not be read: {refusal}; check the address and your access to it, "
        "or read from a local copy"
    )


def _is_s3(response: urllib3.BaseHTTPResponse) -> bool:
    """Whether S3 itself answered: its 403 is what a missing key gets without the right to list."""
    return "x-amz-request-id" in response.headers


def _identity(response: urllib3.BaseHTTPResponse, file_bytes: int) -> dict[str, Any]:
    """What tells one version of the file from the next."""
    if etag := response.headers.get("ETag"):
        return {"etag": etag.strip('"')}
    return {"size": file_bytes, "last_modified": response.headers.get("Last-Modified")}


class _WebFile(MultiByteRangeResourceContainer):
    """A file on a web server as GDAL opens it: a folder with this one file in it.

    GDAL calls from C, where an exception would be lost: the first one is kept in ``failure``, and
    from then on every read comes back empty at once.
    """

    def __init__(self, web: Web, url: str):
        header = web.get(url, 0, _PAGE_BYTES)
        self.name = Path(urlsplit(url).path).name
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
            raise _Damaged(f"it ends after {self.num_bytes} of at least {end} bytes")
        parts = [_parts(run, ranges, self.max_requests) for run in ranges]
        answers = iter(self._web.get_all(self._url, [part for run in parts for part in run]))
        return [b"".join(self._body(next(answers)) for _ in run) for run in parts]

    def _fetch_page(self, page: int) -> bytes:
        if page == 0:
            return self._header
        return self._body(self._web.get(self._url, page * _PAGE_BYTES, _PAGE_BYTES))

    def _body(self, answer: _Answer) -> bytes:
        if answer.identity != self.identity:
            raise _Damaged("it changed on the server while it was being read")
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
    run: tuple[int, int], runs: Sequence[tuple[int, int]], max_requests: int
) -> list[tuple[int, int]]:
    """A run ``(offset, size)`` cut so that all runs together take ``max_requests`` parts at most.

    GDAL merges neighbouring blocks into one run; apart they arrive sooner. Every run is one part,
    and the parts to spare are shared in proportion to the runs' sizes.
    """
    offset, size = run
    to_spare = max(max_requests - len(runs), 0) * size // sum(other for _, other in runs)
    part_bytes = math.ceil(size / (1 + min(to_spare, size // _LEAST_PART_BYTES)))
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

_WEB_OPTIONS = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    # All compressed blocks of a window come in one round, however many they are.
    "GDAL_MAX_RAW_BLOCK_CACHE_SIZE": str(2**31 - 1),
}


@contextmanager
def _gdal(where: str, web_file: _WebFile | None) -> Iterator[None]:
    """GDAL set up for reading; what goes wrong in it comes out as this package's errors."""
    trouble: BaseException | None = None
    options = _WEB_OPTIONS if web_file else {}
    try:
        with rasterio.Env(session=DummySession(), **options):
            yield
    except RasterioError as error:
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
    """

    def __init__(
        self,
        location: str,
        dataset: rasterio.DatasetReader,
        context: Context,
        identity: Mapping[str, Any],
        web_file: _WebFile | None = None,
    ):
        self.location = location
        self.identity = dict(identity)
        self.shape: tuple[int, int] = dataset.shape
        self.num_bands: int = dataset.count
        self.dtype = np.dtype(dataset.dtypes[0])
        self._dataset, self._context, self._web_file = dataset, context, web_file
        self._close = weakref.finalize(self, context.run, dataset.close)
        self._lock = threading.Lock()

    def read_window(
        self, row: int, col: int, height: int, width: int
    ) -> Shaped[np.ndarray, "band row col"]:
        """The stored values of a window inside the raster, at full resolution.

        Every block under the window is fetched at most once, all of them in parallel.

        Raises:
            CorruptRasterError: the file is truncated or damaged there, or changed meanwhile.
            UnreachableError: the server did not answer, also after retries.
        """
        where = f"{self.location}, window row {row} col {col} of {height} x {width} px,"
        with self._lock:
            try:
                with _gdal(where, self._web_file):
                    if self._web_file:
                        self._web_file.max_requests = self._num_blocks(row, col, height, width)
                    window = Window(col, row, width, height)
                    values: np.ndarray = self._context.run(self._dataset.read, window=window)
            except BaseException:
                # GDAL may have kept blocks that never arrived.
                self._close()
                raise
        return values

    def _num_blocks(self, row: int, col: int, height: int, width: int) -> int:
        block_height, block_width = self._dataset.block_shapes[0]
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


def open_raster(location: str, web: Web | None = None) -> RasterFile | None:
    """The raster at a local path, http(s) or s3 URL, or None where no such file exists.

    A server's 404 is such an answer, and so is S3's own 403, which is what it says of a missing
    key to those who may not list the bucket; any other 403 is a refusal. ``web`` shares
    connections and the count of traffic between files.

    Raises:
        CorruptRasterError: there is a file, but it is no raster.
        UnreachableError: the server did not answer, also after retries, or refused.
        ConfigError: the location is a URL of another kind.
    """
    url = web_address(location)
    return _open_local(Path(location)) if url is None else _open_web(location, url, web or Web())


def _open_local(path: Path) -> RasterFile | None:
    if not path.is_file():
        return None
    context = Context()
    with _gdal(str(path), None):
        dataset = context.run(rasterio.open, path)
    status = path.stat()
    identity = {"size": status.st_size, "mtime_ns": status.st_mtime_ns}
    return RasterFile(str(path), dataset, context, identity)


def _open_web(location: str, url: str, web: Web) -> RasterFile | None:
    try:
        web_file = _WebFile(web, url)
    except _Missing:
        return None
    except _Damaged as error:
        raise CorruptRasterError(f"{location} is no raster: {error}; fetch it again") from error
    # rasterio keeps one opener a folder, and keeps it in a context variable: with a folder and a
    # context of its own, a handle can be used and closed in any thread.
    path, context = f"{uuid.uuid4().hex}/{web_file.name}", Context()
    with _gdal(location, web_file):
        dataset = context.run(rasterio.open, path, opener=web_file)
    return RasterFile(location, dataset, context, web_file.identity, web_file)
