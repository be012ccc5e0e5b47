"""Should a dataset keep 20 m bands at 20 m? Batches read and made ready, both ways in turns.

Chips of ten bands, 128 px: all stored at 10 m (328 kB), or the six 20 m bands at 20 m (180 kB) and
brought to 10 m by bilinear when a batch is made (PyTorch, the whole batch at once). Both read the
same random chips of memory-mapped shards, warm, and end as one float tensor.

Run: ``python benchmarks/store_20m.py > benchmarks/store_20m.md`` (half a minute).
"""

from __future__ import annotations

import datetime
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

NUM_CHIPS, BATCH, ROUNDS, BATCHES = 1500, 128, 5, 12


def main() -> None:
    """Print the table."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        at_10m = stored(Path(folder) / "all.npy", (10, 128, 128), rng)
        fine = stored(Path(folder) / "fine.npy", (4, 128, 128), rng)
        coarse = stored(Path(folder) / "coarse.npy", (6, 64, 64), rng)

        def as_stored(chips: np.ndarray) -> torch.Tensor:
            return batch(at_10m, chips)

        def upsampled(chips: np.ndarray) -> torch.Tensor:
            doubled = F.interpolate(batch(coarse, chips), scale_factor=2, mode="bilinear")
            return torch.cat([batch(fine, chips), doubled], 1)

        speeds: dict[str, list[float]] = {"stored at 10 m": [], "20 m bands upsampled": []}
        for _ in range(ROUNDS):
            order = [rng.permutation(NUM_CHIPS)[:BATCH] for _ in range(BATCHES)]
            for name, way in zip(speeds, (as_stored, upsampled), strict=True):
                speeds[name].append(speed(way, order))
    print(report({name: statistics.median(own) for name, own in speeds.items()}))


def stored(path: Path, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """A shard of made-up chips, mapped."""
    shard = np.lib.format.open_memmap(path, "w+", np.uint16, (NUM_CHIPS, *shape))
    for chip in shard:
        chip[:] = rng.integers(1, 10_000, shape, np.uint16)
    return np.load(path, mmap_mode="r").view(np.ndarray)


def batch(shard: np.ndarray, chips: np.ndarray) -> torch.Tensor:
    """Some chips as reflectances."""
    return torch.from_numpy(np.stack([shard[chip] for chip in chips])).float().mul_(1e-4)


def speed(way: Callable[[np.ndarray], torch.Tensor], order: list[np.ndarray]) -> float:
    """Chips a second."""
    started = time.perf_counter()
    for chips in order:
        way(chips)
    return len(order) * BATCH / (time.perf_counter() - started)


def report(speeds: dict[str, float]) -> str:
    """The table as markdown."""
    first = next(iter(speeds.values()))
    rows = [
        f"| {name} | {kilobytes} | {own:,.0f} | {own / first:.2f} |"
        for (name, own), kilobytes in zip(speeds.items(), (328, 180), strict=True)
    ]
    conditions = (
        f"{datetime.date.today()}, {os.cpu_count()} cores ({platform.machine()}), warm, batches of "
        f"{BATCH}, median of {ROUNDS} rounds in turns.\n"
    )
    head = ["| way | kB a chip | chips/s | ratio |", "|---|---|---|---|"]
    return "\n".join(["# 20 m bands at 20 m or at 10 m?\n", conditions, *head, *rows])


if __name__ == "__main__":
    main()
