"""How a build is getting on: units, chips a second, bytes and requests, and the time left."""

from __future__ import annotations

import time
from collections.abc import Callable

from bharateo.chips.scratch import Kept
from bharateo.pixels.http import Traffic

Progress = Callable[[int, int, str], None]
"""Told ``(done, total, message)``; ``done`` starts again with every message."""


def say_nothing(done: int, total: int, message: str) -> None:
    """The progress of a build that nobody watches."""


class Tally:
    """Counts what units bring in, and says so."""

    def __init__(self, num_units: int, num_done: int, progress: Progress) -> None:
        self.num_units, self.num_done = num_units, num_done
        self.failed = 0
        self._progress = progress
        self._start, self._first_done = time.monotonic(), num_done
        self._chips = 0
        self._traffic = Traffic()

    def add(self, kept: Kept) -> None:
        """Count a unit that is done."""
        self.num_done += 1
        self._chips += kept.num_chips
        self._traffic.requests += kept.traffic.requests
        self._traffic.bytes += kept.traffic.bytes

    def say(self, what: str) -> None:
        """Tell how far it has come."""
        seconds = max(time.monotonic() - self._start, 1e-6)
        parts = [what]
        if self._chips:
            parts = [f"{what}, {self._chips:,} chips, {self._chips / seconds:.0f} chips/s"]
        if self._traffic.requests:
            megabytes = self._traffic.bytes / 1e6
            parts.append(
                f"{megabytes:,.1f} MB in {self._traffic.requests:,} requests, "
                f"{megabytes / seconds:.1f} MB/s"
            )
        done = self.num_done - self._first_done
        if done and self.num_done < self.num_units:
            left = seconds / done * (self.num_units - self.num_done)
            parts.append(
                f"{int(left) // 3600}:{int(left) // 60 % 60:02d}:{int(left) % 60:02d} left"
            )
        if self.failed:
            parts.append(f"{self.failed} failed")
        self._progress(self.num_done, self.num_units, ", ".join(parts))
