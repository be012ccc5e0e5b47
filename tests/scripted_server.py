"""A web server on loopback that answers as a test says, and keeps what it was asked."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ssl import SSLContext


@dataclass
class Asked:
    """One request."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes = b""


@dataclass
class Reply:
    """What is answered; ``content`` is a file of which a range may have been asked."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    content: bytes | None = None


class ScriptedServer(ThreadingHTTPServer):
    """Answers by ``script`` and keeps all requests in ``asked``."""

    daemon_threads = True

    def __init__(self, script: Callable[[Asked], Reply], tls: SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script, self.asked = script, list[Asked]()
        self.address = f"127.0.0.1:{self.server_address[1]}"
        self.url = f"http{'s' if tls else ''}://{self.address}"
        if tls:
            self.socket = tls.wrap_socket(self.socket, server_side=True)

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    server: ScriptedServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        asked = Asked(self.command, self.path, dict(self.headers.items()), body)
        self.server.asked.append(asked)
        reply = self.server.script(asked)
        status, headers, body = reply.status, dict(reply.headers), reply.body
        if reply.content is not None:
            status, body = 200, reply.content
            span = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            if span:
                first, last = int(span[1]), min(int(span[2]), len(reply.content) - 1)
                status, body = 206, reply.content[first : last + 1]
                headers["Content-Range"] = f"bytes {first}-{last}/{len(reply.content)}"
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def answering(
    script: Callable[[Asked], Reply], tls: SSLContext | None = None
) -> Iterator[ScriptedServer]:
    """A server while it is used."""
    server = ScriptedServer(script, tls)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
