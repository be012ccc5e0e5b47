"""A web server on loopback for one folder: byte ranges, counted, slow or failing on demand."""

from __future__ import annotations

import re
import socket
import sys
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType


@dataclass
class Request:
    """One GET: its path, the bytes asked for and sent, its status and when it was served."""

    path: str
    first: int
    last: int
    status: int = 0
    num_bytes: int = 0
    start: float = 0.0
    end: float = 0.0


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


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are part of the tests; anything else is printed."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


@dataclass
class RangeServer:
    """Serves ``folder`` at ``url`` while used as a context manager."""

    folder: Path
    latency_s: float = 0.0
    faults: Faults = field(default_factory=Faults)
    etags: dict[str, str] = field(default_factory=dict)
    send_etag: bool = True
    honour_range: bool = True
    missing_status: int = 404
    missing_headers: dict[str, str] = field(default_factory=dict)
    gets: list[Request] = field(default_factory=list)
    heads: int = 0
    num_connections: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

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

    def etag(self, path: Path) -> str:
        status = path.stat()
        return self.etags.get(path.name, f'"{status.st_mtime_ns:x}-{status.st_size:x}"')


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
                fault = server.faults.next()
            time.sleep(server.latency_s + (server.faults.hang_s if fault == "hang" else 0))
            try:
                self._serve(request, fault)
            except OSError:
                self.close_connection = True
            request.end = time.perf_counter()

        def _range(self) -> tuple[int, int]:
            asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            return (int(asked[1]), int(asked[2])) if asked and server.honour_range else (-1, -1)

        def _serve(self, request: Request, fault: str) -> None:
            path = server.folder / self.path.lstrip("/")
            if fault == "reset":
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
            elif fault == "busy":
                self._answer(server.faults.busy_status, b"busy", request)
            elif not path.is_file():
                self._answer(server.missing_status, b"none", request, server.missing_headers)
            else:
                self._send_file(path, request, short=fault == "short")

        def _send_file(self, path: Path, request: Request, short: bool) -> None:
            size = path.stat().st_size
            whole = request.first < 0
            first = 0 if whole else request.first
            last = size - 1 if whole else min(request.last, size - 1)
            if first >= size:
                self._answer(416, b"", request)
                return
            with path.open("rb") as file:
                file.seek(first)
                body = file.read(last - first + 1)
            headers = {"ETag": server.etag(path)} if server.send_etag else {}
            if not whole:
                headers["Content-Range"] = f"bytes {first}-{last}/{size}"
            self._answer(200 if whole else 206, body, request, headers, short)

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
