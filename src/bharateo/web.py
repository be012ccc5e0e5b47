"""Files on web servers: byte ranges over kept connections, in parallel, with retries."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import certifi
import urllib3
from urllib3 import exceptions as web_errors

from bharateo.errors import ConfigError, UnreachableError

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


_BUSY = (429, 500, 502, 503, 504)


class Missing(Exception):
    """The server says that there is no such file."""


class Damaged(Exception):
    """The file is not what it was, or not whole."""


@dataclass
class Traffic:
    """Requests answered and bytes received so far."""

    requests: int = 0
    bytes: int = 0


@dataclass(frozen=True)
class Answer:
    """A range of a file, the whole file's size, and what tells its version from another."""

    body: bytes
    file_bytes: int
    identity: Mapping[str, Any]


class Web:
    """Connections to web servers: kept open, used in parallel, tried again when they fail.

    Busy servers (429, 5xx), timeouts, broken connections and short answers are tried again
    ``num_retries`` times: the first time at once, then after 2, 4, 8, ... times ``backoff_s``, and
    each time up to one ``backoff_s`` more, so that clients do not come back in step. Long ranges
    may be fetched in parts of ``part_bytes`` or more at once. Proxies come from the environment.
    ``traffic`` counts what arrived whole. Thread-safe.
    """

    def __init__(
        self,
        timeout_s: float = 20.0,
        num_retries: int = 5,
        backoff_s: float = 0.2,
        num_parallel: int = 16,
        part_bytes: int = 64 * 1024,
    ):
        self.traffic = Traffic()
        self.part_bytes = part_bytes
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

    def get(self, url: str, first: int, num_bytes: int) -> Answer:
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

    def refusal(self, url: str) -> str | None:
        """Why an address is not answered, in a few words; None where it is."""
        manager, timeout = self._manager(url), self._timeout
        try:
            answer = manager.request(
                "GET", url, timeout=timeout, retries=False, preload_content=False
            )
        except web_errors.HTTPError as error:
            return self._reason(error)
        answer.close()
        return None if answer.status < 400 else f"it answered {answer.status}"

    def get_all(self, url: str, ranges: Sequence[tuple[int, int]]) -> list[Answer]:
        """Several ranges ``(first, num_bytes)`` of a file, fetched in parallel."""
        return list(self._executor.map(lambda part: self.get(url, *part), ranges))

    def _get_persistently(self, url: str, first: int, num_bytes: int) -> Answer:
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
    ) -> Answer:
        file_bytes = _file_bytes(url, response, first, num_bytes)
        body = response.read()
        response.release_conn()
        if len(body) != min(num_bytes, file_bytes - first):
            raise web_errors.ProtocolError(f"short answer of {len(body)} bytes")
        with self._lock:
            self.traffic.requests += 1
            self.traffic.bytes += len(body)
        return Answer(body, file_bytes, _identity(response, file_bytes))

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
        raise Missing(url)
    if status == 416:
        raise Damaged(f"it ends before byte {first}")
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
