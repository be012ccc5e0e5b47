"""Files on web servers: byte ranges over kept connections, in parallel, with patience.

One client for all that this package asks of servers, so that proxies, certificates, tokens,
signatures, retries and the rules for redirects are the same everywhere.
"""

from __future__ import annotations

import random
import re
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from time import monotonic, time
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

import urllib3
from urllib3 import exceptions as web_errors

from bharateo.errors import ConfigError, UnreachableError
from bharateo.pixels import network
from bharateo.pixels.network import Proxy, shown

Found = TypeVar("Found")


def web_address(location: str) -> str | None:
    """The http(s) or s3 address of a location, or None for a local path.

    Raises:
        ConfigError: the location is a URL of another kind, or holds a user and password.
    """
    scheme, separator, _ = location.partition("://")
    if not separator:
        return None
    if scheme not in ("http", "https", "s3"):
        raise ConfigError(f"{location!r} is not a local path, http(s):// or s3:// URL")
    if scheme != "s3" and "@" in location.split("/")[2]:
        raise ConfigError(
            f"{shown(location)} was given with a user or password, which would end up in records: "
            f"leave them out, and name a token in {network.TOKENS_VARIABLE} if one is needed"
        )
    return location


_BUSY = (429, 500, 502, 503, 504)
_REDIRECTS = (301, 302, 303, 307, 308)
_MOST_REDIRECTS = 5

_LONGEST_WAIT_S = 20.0
_STRANGERS_RETRIES = 5
"""How often a server that has never answered is tried again: most likely its name is wrong, or
nothing goes out from here."""


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


class Key(Protocol):
    """What opens the addresses of a storage that signs for a while."""

    def query(self) -> str:
        """What is added to an address now, without its question mark."""
        ...

    def forget(self, query: str) -> None:
        """This one has been refused: the next will be another."""
        ...


class Web:
    """Connections to web servers: kept open, used in parallel, tried again when they fail.

    Busy servers (429, 5xx), timeouts, broken connections and short answers are tried again, the
    first time at once, then after 2, 4, 8, ... times ``backoff_s``, 20 s at most, and each time up
    to one ``backoff_s`` more, so that clients do not come back in step; or when the server says
    (``Retry-After``). It is given up after ``num_retries``, or where the next try would come more
    than ``patience_s`` after the first: with the defaults a network may be away for five minutes.
    A server that has never answered is given up sooner, a certificate or proxy that is wrong at
    once. Long ranges may be fetched in parts of ``part_bytes`` or more at once.

    Proxies, certificates, tokens, what ``s3://`` addresses mean and where an answer may lead are
    the environment's (``network``). ``traffic`` counts what arrived whole. Thread-safe.
    """

    def __init__(
        self,
        timeout_s: float = 20.0,
        num_retries: int = 24,
        backoff_s: float = 0.2,
        num_parallel: int = 16,
        part_bytes: int = 64 * 1024,
        patience_s: float = 300.0,
    ):
        self.traffic = Traffic()
        self.part_bytes = part_bytes
        self.num_retries, self.backoff_s, self.patience_s = num_retries, backoff_s, patience_s
        self._timeout = urllib3.Timeout(connect=min(timeout_s, 10.0), read=timeout_s)
        self._num_parallel = num_parallel
        self._executor = ThreadPoolExecutor(num_parallel, "bharateo-web")
        self._managers: dict[tuple[str, Proxy | None], urllib3.PoolManager] = {}
        self._keys: dict[str, Key] = {}
        self._met: set[str] = set()
        self._interrupted = threading.Event()
        self._lock = threading.Lock()

    def unlock(self, prefix: str, key: Key) -> None:
        """Open all addresses that begin with ``prefix`` with a key."""
        with self._lock:
            self._keys[prefix] = key

    def get(self, address: str, first: int, num_bytes: int) -> Answer:
        """A range of a file; shorter only where the file ends.

        Raises:
            UnreachableError: no whole answer, also after retries, or one that refuses.
        """

        def answer(response: urllib3.BaseHTTPResponse) -> Answer:
            file_bytes = _file_bytes(address, response, first, num_bytes)
            wanted = min(num_bytes, file_bytes - first)
            body = response.read(wanted + 1)  # and not all that a server may send
            if len(body) != wanted:
                much = "short" if len(body) < wanted else "long"
                raise web_errors.ProtocolError(f"{much} answer of {len(body)} bytes")
            response.release_conn()
            self._count(len(body))
            identity: dict[str, Any]
            if etag := response.headers.get("ETag"):
                identity = {"etag": etag.strip('"')}
            else:
                modified = response.headers.get("Last-Modified")
                identity = {"size": file_bytes, "last_modified": modified}
            return Answer(body, file_bytes, identity)

        headers = {"Range": f"bytes={first}-{first + num_bytes - 1}"}
        return self._persistently(address, answer, headers)

    def get_all(self, address: str, ranges: Sequence[tuple[int, int]]) -> list[Answer]:
        """Several ranges ``(first, num_bytes)`` of a file, fetched in parallel."""
        with self.interruptible():
            return list(self._executor.map(lambda part: self.get(address, *part), ranges))

    def fetch(
        self,
        address: str,
        headers: Mapping[str, str] | None = None,
        method: str = "GET",
        body: bytes | None = None,
        most_bytes: int = 2**28,
    ) -> bytes:
        """What an API answers, whole.

        Raises:
            UnreachableError: no answer, also after retries, one that refuses or is too long.
        """

        def answer(response: urllib3.BaseHTTPResponse) -> bytes:
            content = response.read(most_bytes + 1)
            if len(content) > most_bytes:
                response.close()
                raise _no_answer(address, f"it sends more than {most_bytes:,} bytes")
            response.release_conn()
            self._count(len(content))
            if not 200 <= response.status < 300:
                said = content[:2000].decode("utf-8", "replace")
                reason = f"{_status(response)}: {said}".rstrip(": ")
                raise _no_answer(address, reason, what="read")
            return content

        return self._persistently(address, answer, headers or {}, method, body)

    def refusal(self, url: str) -> str | None:
        """Why an address is not answered, in a few words; None where it is."""
        try:
            response = self._send("GET", url, {}, None)
        except web_errors.HTTPError as error:
            return self._reason(error)
        except ConfigError as error:  # what the environment says of the way out
            return str(error)
        response.close()
        return None if response.status < 400 else f"it answered {response.status}"

    def interrupt(self) -> None:
        """End all waiting for servers that is going on in other threads: it is not wanted now."""
        with self._lock:
            waiting, self._interrupted = self._interrupted, threading.Event()
        waiting.set()

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Ctrl-C within the block ends the waiting of other threads too."""
        try:
            yield
        except Exception:
            raise
        except BaseException:
            self.interrupt()
            raise

    def _persistently(
        self,
        address: str,
        answer: Callable[[urllib3.BaseHTTPResponse], Found],
        headers: Mapping[str, str],
        method: str = "GET",
        body: bytes | None = None,
    ) -> Found:
        started, num_tries, interrupted = monotonic(), 0, self._interrupted
        while True:
            asked_for: float | None = None
            try:
                response = self._follow(method, address, headers, body)
                try:
                    if response.status in _BUSY:
                        asked_for = _retry_after(response)
                        raise web_errors.ResponseError(
                            f"too many {response.status} error responses"
                        )
                    found = answer(response)
                except web_errors.HTTPError:
                    response.close()
                    raise
            except web_errors.HTTPError as error:
                num_tries += 1
                wait_s = self._wait_s(address, error, num_tries, asked_for)
                late = wait_s is not None and monotonic() + wait_s - started > self.patience_s
                if wait_s is None or late or not self._pause(wait_s, interrupted):
                    reason = self._reason(error)
                    if late and asked_for:
                        reason += f", and wants to be left alone for {asked_for:.0f} s"
                    elif num_tries > 1:
                        reason += f" ({num_tries} tries in {monotonic() - started:.0f} s)"
                    raise _no_answer(address, reason) from error
            else:
                return found

    def _wait_s(
        self, address: str, error: web_errors.HTTPError, num_tries: int, asked_for: float | None
    ) -> float | None:
        """How long to wait before the next try; None where there is none."""
        if isinstance(error, web_errors.LocationValueError) or _is_for_good(error):
            return None
        most = self.num_retries
        if urlsplit(address).netloc not in self._met:
            most = min(most, _STRANGERS_RETRIES)
        if num_tries > most:
            return None
        wait_s = 0.0 if num_tries == 1 else self.backoff_s * 2 ** min(num_tries - 1, 30)
        wait_s = min(wait_s, _LONGEST_WAIT_S) + random.uniform(0, self.backoff_s)
        return max(wait_s if num_tries > 1 else 0.0, asked_for or 0.0)

    def _pause(self, wait_s: float, interrupted: threading.Event) -> bool:
        """Wait; False where that was interrupted."""
        return not interrupted.wait(wait_s)

    def _count(self, num_bytes: int) -> None:
        with self._lock:
            self.traffic.requests += 1
            self.traffic.bytes += num_bytes

    def _follow(
        self, method: str, address: str, headers: Mapping[str, str], body: bytes | None
    ) -> urllib3.BaseHTTPResponse:
        """The answer at the end of all redirects that may be followed, with a key that is good."""
        renewed = False
        for _ in range(_MOST_REDIRECTS + 1):
            with self._lock:
                fitting = (key for prefix, key in self._keys.items() if address.startswith(prefix))
                key = next(fitting, None)
            query = key.query() if key else ""
            in_bucket = address.startswith("s3://")
            if in_bucket:
                url, sent = network.request_of(address, headers)
            else:
                url, sent = address, {**headers}
                if query:
                    url += ("&" if urlsplit(address).query else "?") + query
                if token := network.token_for(address):
                    sent["Authorization"] = f"Bearer {token}"
            response = self._send(method, url, sent, body)
            self._met.add(urlsplit(address).netloc)
            if in_bucket and network.learns_region(address, url, response.headers):
                response.close()
            elif key and response.status in (401, 403) and not renewed:
                response.close()
                key.forget(query)
                renewed = True
            elif response.status in _REDIRECTS and (to := response.headers.get("Location")):
                response.close()
                if method != "GET" and response.status not in (307, 308):
                    raise _no_answer(address, f"{_status(response)} and leads to {shown(to)}")
                address = network.led_to(url if in_bucket else address, to)
            else:
                return response
        raise _no_answer(address, f"it leads on and on, {_MOST_REDIRECTS} times")

    def _send(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None
    ) -> urllib3.BaseHTTPResponse:
        scheme, proxy = urlsplit(url).scheme, network.proxy_of(url)
        with self._lock:
            manager = self._managers.get((scheme, proxy))
            if manager is None:
                options: dict[str, Any] = {"maxsize": self._num_parallel}
                if scheme == "https":
                    options["ssl_context"] = network.certificates()
                if proxy is None:
                    manager = urllib3.PoolManager(**options)
                else:
                    if proxy.authorization:
                        options["proxy_headers"] = {"Proxy-Authorization": proxy.authorization}
                    if proxy.address.startswith("https://"):
                        options["proxy_ssl_context"] = network.certificates()
                    manager = urllib3.ProxyManager(proxy.address, **options)
                self._managers[scheme, proxy] = manager
        return manager.request(
            method,
            url,
            headers=dict(headers),
            body=body,
            timeout=self._timeout,
            retries=False,
            redirect=False,
            preload_content=False,
        )

    def _reason(self, error: BaseException) -> str:
        cause = error.reason if isinstance(error, web_errors.MaxRetryError) else error
        if isinstance(cause, web_errors.ProxyError):
            return f"the proxy does not let it through ({cause.original_error})"
        if isinstance(cause, web_errors.NameResolutionError):
            return "its name could not be resolved"
        if isinstance(cause, web_errors.NewConnectionError):
            return str(cause).rpartition(": ")[2]
        if isinstance(cause, web_errors.ConnectTimeoutError):
            return f"no connection within {self._timeout.connect_timeout:g} s"
        if isinstance(cause, web_errors.ReadTimeoutError):
            return f"no answer within {self._timeout.read_timeout:g} s"
        if isinstance(cause, web_errors.SSLError) and _is_for_good(cause):
            variables = ", ".join(network.BUNDLE_VARIABLES)
            return (
                f"its certificate cannot be trusted ({cause}); where a firewall puts its own in "
                f"place, name a bundle that holds it in one of {variables}"
            )
        return str(cause)


def _is_for_good(error: BaseException) -> bool:
    """Whether asking again cannot help: a certificate that is not trusted, a proxy that refuses."""
    chain: list[BaseException] = []
    seen: BaseException | None = error
    while seen is not None and seen not in chain:
        chain.append(seen)
        seen = getattr(seen, "original_error", None) or seen.__cause__ or seen.__context__
    return any(
        isinstance(each, ssl.SSLCertVerificationError)
        or (isinstance(error, web_errors.ProxyError) and re.search(r"\b(403|407)\b", str(each)))
        for each in chain
    )


def _no_answer(
    address: str,
    reason: str,
    remedy: str = "check the address and the network connection, then run the same command again",
    what: str = "reached",
) -> UnreachableError:
    error = UnreachableError(f"{shown(address)} could not be {what}: {reason}; {remedy}")
    error.reason = reason
    return error


def _status(response: urllib3.BaseHTTPResponse) -> str:
    return f"it answered {response.status} {response.reason or ''}".rstrip()


def _retry_after(response: urllib3.BaseHTTPResponse) -> float | None:
    """Seconds after which a busy server wants to be asked again, if it says so."""
    said = response.headers.get("Retry-After", "").strip()
    if said.isdigit():
        return float(said[:9])
    try:
        return max(0.0, parsedate_to_datetime(said).timestamp() - time())
    except (ValueError, OverflowError):
        return None


def _file_bytes(
    address: str, response: urllib3.BaseHTTPResponse, first: int, num_bytes: int
) -> int:
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
    if status in (404, 410):
        raise Missing(address)
    if status == 416:
        raise Damaged(f"it ends before byte {first}")
    reason, withheld = _status(response), False
    remedy = "check the address and your access to it, or read from a local copy"
    if status == 200:
        reason = "it sends whole files only (no HTTP range requests)"
    elif status == 403 and "x-amz-request-id" in response.headers:
        withheld, reason = True, f"{reason}, as S3 does of a missing key too"
        if address.startswith("s3://"):
            remedy += "; AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION sign for it, "
            remedy += "AWS_REQUEST_PAYER=requester pays, AWS_NO_SIGN_REQUEST=YES reads open data"
    elif status in (401, 403):
        host = urlsplit(address).hostname
        remedy += f"; a token for it goes into {network.TOKENS_VARIABLE}={host}=TOKEN"
    error = _no_answer(address, reason, remedy, "read")
    error.withheld = withheld
    raise error
