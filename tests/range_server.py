"""A web server on loopback for folders: byte ranges, counted, slow or failing on demand."""

from __future__ import annotations

import math
import random
import re
import socket
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from urllib.parse import unquote, urlsplit

FAULT_KINDS = ("busy", "hang", "reset", "short", "wrong_range")


@dataclass
class Request:
    """One GET: its path, the bytes asked for and sent, its status and when it was served."""

    path: str
    first: int
    last: int
    status: int = 0
    num_bytes: int = 0
    start: float = 0.0
    end: float = math.inf


@dataclass
class Faults:
    """What goes wrong, each for the next so many GETs (after ``spare`` good ones)."""

    spare: int = 0
    busy: int = 0
    busy_status: int = 503
    short: int = 0
    reset: int = 0
    hang: int = 0
    hang_s: float = 5.0

    def next(self) -> str:
        if self.spare:
            self.spare -= 1
            return ""
        for fault in ("busy", "short", "reset", "hang"):
            if left := getattr(self, fault):
                setattr(self, fault, left - 1)
                return fault
        return ""

    def latency(self) -> float:
        return 0.0


@dataclass
class RandomFaults:
    """What goes wrong with a GET by chance, and how long each one waits; the same for a seed.

    Each GET fails with probability ``rate``, in one of ``kinds``: "busy" (``busy_status``), "hang"
    (an answer only after ``hang_s``), "reset" (the connection breaks), "short" (less body than
    Content-Length says), "wrong_range" (a 206 with another range's Content-Range and bytes). Each
    GET also waits for seconds drawn uniformly from ``latency_s``. ``injected`` counts what was
    drawn, also a "short" or "wrong_range" that a file that does not exist (404) could not show, or
    a "wrong_range" on a GET of a whole file. Thread-safe.
    """

    rate: float
    seed: int
    latency_s: tuple[float, float] = (0.0, 0.0)
    kinds: tuple[str, ...] = FAULT_KINDS
    hang_s: float = 5.0
    busy_status: int = 503
    injected: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._faults, self._waits = random.Random(self.seed), random.Random(self.seed + 1)
        self._lock = threading.Lock()

    def next(self) -> str:
        with self._lock:
            if self._faults.random() >= self.rate:
                return ""
            fault = self._faults.choice(self.kinds)
            self.injected[fault] += 1
            return fault

    def latency(self) -> float:
        with self._lock:
            return self._waits.uniform(*self.latency_s)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # Else many clients that come at once wait a second for the handshake to be tried again.
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are part of the tests; anything else is printed."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


@dataclass
class RangeServer:
    """Serves ``folder`` at ``url`` while used as a context manager.

    ``mounts`` are more folders: ``{"s2": folder}`` is served at ``url``/s2.
    """

    folder: Path
    latency_s: float = 0.0
    faults: Faults | RandomFaults = field(default_factory=Faults)
    etags: dict[str, str] = field(default_factory=dict)
    send_etag: bool = True
    honour_range: bool = True
    missing_status: int = 404
    missing_headers: dict[str, str] = field(default_factory=dict)
    gets: list[Request] = field(default_factory=list)
    heads: int = 0
    num_connections: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    mounts: dict[str, Path] = field(default_factory=dict)

    def __enter__(self) -> RangeServer:
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def num_bytes(self) -> int:
        """Body bytes sent."""
        return sum(request.num_bytes for request in self.gets)

    @property
    def max_in_flight(self) -> int:
        """The most GETs served at the same time."""
        edges = [(r.start, 1) for r in self.gets] + [(r.end, -1) for r in self.gets]
        in_flight = most = 0
        for _, step in sorted(edges):
            in_flight += step
            most = max(most, in_flight)
        return most

    @property
    def num_rounds(self) -> int:
        """The longest chain of GETs of which each began after the one before had ended."""
        rounds, free_at = 0, 0.0
        for request in sorted(self.gets, key=lambda r: r.end):
            if request.start >= free_at:
                rounds, free_at = rounds + 1, request.end
        return rounds

    def forget(self) -> None:
        """Count anew."""
        self.gets, self.heads, self.num_connections = [], 0, 0

    def path(self, target: str) -> Path:
        """The file that a request's target names; a query (a signature) means nothing."""
        name = unquote(urlsplit(target).path).lstrip("/")
        mount, _, rest = name.partition("/")
        return self.mounts[mount] / rest if mount in self.mounts else self.folder / name

    def etag(self, path: Path) -> str:
        status = path.stat()
        return self.etags.get(path.name, f'"{status.st_mtime_ns:x}-{status.st_size:x}"')


def _another_range(first: int, last: int, size: int) -> tuple[int, int]:
    """A range beside the one asked for."""
    step = -1 if first else 1
    return first + step, min(last + step, size - 1)


def _handler(server: RangeServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # Else the body waits for the acknowledgement of the headers, 40 ms a request.
        disable_nagle_algorithm = True

        def setup(self) -> None:
            super().setup()
            with server.lock:
                server.num_connections += 1

        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            with server.lock:
                server.heads += 1
            self._answer(405, b"")

        def do_GET(self) -> None:
            request = Request(self.path, *self._range(), start=time.perf_counter())
            with server.lock:
                server.gets.append(request)
                faults = server.faults
                fault = faults.next()
            hang_s = faults.hang_s if fault == "hang" else 0
            time.sleep(server.latency_s + faults.latency() + hang_s)
            try:
                self._serve(request, fault, faults.busy_status)
            except OSError:
                self.close_connection = True
            request.end = time.perf_counter()

        def _range(self) -> tuple[int, int]:
            asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            return (int(asked[1]), int(asked[2])) if asked and server.honour_range else (-1, -1)

        def _serve(self, request: Request, fault: str, busy_status: int) -> None:
            path = server.path(self.path)
            if fault == "reset":
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
            elif fault == "busy":
                self._answer(busy_status, b"busy", request)
            elif not path.is_file():
                self._answer(server.missing_status, b"none", request, server.missing_headers)
            else:
                self._send_file(path, request, fault)

        def _send_file(self, path: Path, request: Request, fault: str) -> None:
            size = path.stat().st_size
            whole = request.first < 0
            first = 0 if whole else request.first
            last = size - 1 if whole else min(request.last, size - 1)
            if first >= size:
                self._answer(416, b"", request)
                return
            if fault == "wrong_range" and not whole:
                first, last = _another_range(first, last, size)
            with path.open("rb") as file:
                file.seek(first)
                body = file.read(last - first + 1)
            headers = {"ETag": server.etag(path)} if server.send_etag else {}
            if not whole:
                headers["Content-Range"] = f"bytes {first}-{last}/{size}"
            self._answer(200 if whole else 206, body, request, headers, fault == "short")

        def _answer(
            self,
            status: int,
            body: bytes,
            request: Request | None = None,
            headers: dict[str, str] | None = None,
            short: bool = False,
        ) -> None:
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if short:
                body = body[: len(body) // 2]
                self.close_connection = True
            if request:
                request.status, request.num_bytes = status, len(body)
            self.wfile.write(body)

    return Handler
