"""A STAC API server (rustac) on loopback for a few items."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

_NUM_TRIES = 3
_START_S = 30.0


@dataclass
class StacServer:
    """Serves ``items`` at ``url`` (the API's root) while used as a context manager.

    It answers collections, ids, bbox, intersects and datetime, ten items a page unless ``limit``
    says otherwise. It knows no query, filter, sort or field extension and says so in its
    conformance classes: pystac-client warns, and a search with ``query`` finds nothing at all.
    """

    items: list[dict[str, Any]]
    collection_id: str = "sentinel-2-l2a"

    def __enter__(self) -> StacServer:
        self._folder = tempfile.TemporaryDirectory(prefix="stac-")
        try:
            self._write(Path(self._folder.name))
            self._start()
        except BaseException:
            self._folder.cleanup()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
        self._folder.cleanup()

    def stop(self) -> None:
        """End the server; its address answers no more."""
        _end(self._process)

    def _write(self, folder: Path) -> None:
        collection = {
            "type": "Collection",
            "stac_version": "1.0.0",
            "id": self.collection_id,
            "description": "Items of a test",
            "license": "proprietary",
            "extent": {
                "spatial": {"bbox": [[-180, -90, 180, 90]]},
                "temporal": {"interval": [["2015-06-27T00:00:00Z", None]]},
            },
            "links": [],
        }
        (folder / "collection.json").write_text(json.dumps(collection))
        items = {"type": "FeatureCollection", "features": self.items}
        (folder / "items.json").write_text(json.dumps(items))

    def _start(self) -> None:
        """Start on a free port; on another one where somebody was faster."""
        for _ in range(_NUM_TRIES):
            port = _free_port()
            self.url = f"http://127.0.0.1:{port}/"
            self._process = self._run(port)
            if self._answers():
                return
            _end(self._process)
        log = (Path(self._folder.name) / "log.txt").read_text()
        raise RuntimeError(f"rustac did not serve {self.url}: {log}")

    def _run(self, port: int) -> subprocess.Popen[bytes]:
        folder = Path(self._folder.name)
        # rustac reads the arguments of the process itself: `python -c` would confuse it.
        script = str(Path(sysconfig.get_path("scripts")) / "rustac")
        command = [sys.executable, script, "serve", "--addr", f"127.0.0.1:{port}",
                   "--create-collections",
                   str(folder / "collection.json"), str(folder / "items.json")]  # fmt: skip
        with (folder / "log.txt").open("wb") as log:
            return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)

    def _answers(self) -> bool:
        """Whether the API answers before its process ends."""
        give_up_at = time.monotonic() + _START_S
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        while self._process.poll() is None and time.monotonic() < give_up_at:
            try:
                with direct.open(self.url, timeout=1.0):
                    return self._process.poll() is None
            except OSError:
                time.sleep(0.02)
        return False


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10.0)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
