"""How fast chips come from disk into batches, against what the machine can do at best.

Chips of ten bands in uint16, 128 px, with land cover and validity: 346 kB in three files. All
ways bring the same chips in the same random order, warm (from the page cache), in turns:

1. bare preadv into three batches' buffers in turn: the yardstick;
2. bare preadv into a single chip's buffer, which stays in the processor's cache;
3. memcpy from memory into the same buffers;
4. RecordReader.read into them;
5. Loader with its thread, two batches ahead, and a consumer that does nothing else;
6. the same, and every batch made ready for a model on this CPU (turned, converted, counted);
7. copies of the mapped files, which all stay mapped here;
8. Loader with machine.resident=ram.

Then the same from a dataset of a million chips (files with holes), where nearly every read opens
a file; what it costs to open that dataset; and the memory of 50 batches of it.

    python benchmarks/loader.py --write
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from bharateo.chips.records import RecordReader
from bharateo.chips.store import LAYERS, Dataset
from bharateo.config import Config, MachineConfig, TrainingConfig
from bharateo.memory import keep_freed_memory
from bharateo.training.data import prepare
from bharateo.training.loader import Loader

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from sparse_million import sparse_dataset

NUM_CHIPS, BATCH, BATCHES, ROUNDS, BUFFERS = 6000, 64, 16, 9, 3
TABLE = Path(__file__).with_suffix(".md")
CHIP_BYTES = (10 * 2 + 1) * 128 * 128 + 128 * 16
CPU = torch.device("cpu")
CONFIG = Config(training=TrainingConfig(batch_size=BATCH))

MILLION = """
import sys, time
import torch
from bharateo.chips.store import Dataset
from bharateo.config import Config, TrainingConfig
from bharateo.training.loader import Loader

def peak_mb():
    line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024

before, began = peak_mb(), time.perf_counter()
dataset = Dataset.open(sys.argv[1])
opened = time.perf_counter()
chips = dataset.indices("train")
listed = time.perf_counter()
loader = Loader(dataset, Config(training=TrainingConfig(batch_size=64)), len(chips),
                torch.device("cpu"))
for _ in loader.steps(0, 50):
    pass
print(opened - began, listed - opened, before, peak_mb())
"""


def filled_dataset(folder: Path) -> Dataset:
    """Chips of noise, all valid."""
    dataset = Dataset.open(sparse_dataset(folder, NUM_CHIPS))
    rng = np.random.default_rng(0)
    for name, lies in dataset.layers.items():
        for file, first, shard in zip(
            lies.files, lies.first_byte.tolist(), dataset.info["shards"], strict=True
        ):
            with (dataset.path / file).open("r+b") as out:
                out.seek(first)
                out.write(_noise(rng, name, (shard["num_chips"], *lies.shape), lies.dtype))
    return dataset


def _noise(
    rng: np.random.Generator, name: str, shape: tuple[int, ...], dtype: np.dtype
) -> np.ndarray:
    if name == "valid":
        return np.full(shape, 255, np.uint8)
    return rng.integers(0, 8 if name == "landcover" else 10_000, shape, dtype)


Way = Callable[[range], None]


class Ways:
    """Ways to bring the chips of some steps."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset, self.reader = dataset, RecordReader(dataset)
        self.chips = dataset.indices("train")
        self.loader = self._loader("off")
        self.buffers = [self._room(BATCH) for _ in range(BUFFERS)]

    @cached_property
    def resident(self) -> Loader:
        """All chips in memory."""
        return self._loader("ram")

    @cached_property
    def memory(self) -> dict[str, np.ndarray]:
        """All chips in memory, without a loader."""
        memory = self._room(len(self.chips))
        for name, out in memory.items():
            self.reader.read(name, self.chips, 0 * self.chips, 0 * self.chips, out)
        return memory

    @cached_property
    def files(self) -> dict[str, list[int]]:
        """All files, open."""
        return {
            name: [os.open(path, os.O_RDONLY) for path in paths]
            for name, paths in self.paths.items()
        }

    @cached_property
    def paths(self) -> dict[str, list[str]]:
        """All files."""
        folder = self.dataset.path
        return {
            name: [str(folder / file) for file in lies.files]
            for name, lies in self.dataset.layers.items()
        }

    def _room(self, num_chips: int) -> dict[str, np.ndarray]:
        layers = self.dataset.layers.items()
        return {name: np.ones((num_chips, *lies.shape), lies.dtype) for name, lies in layers}

    def _loader(self, resident: str) -> Loader:
        config = replace(CONFIG, machine=MachineConfig(resident=resident))
        return Loader(self.dataset, config, len(self.chips), CPU)

    def preadv(self, one_chip: bool) -> Way:
        """Nothing but the system calls."""

        def bring(steps: range) -> None:
            for name, shard, byte, out, one in self._places(steps):
                os.preadv(self.files[name][shard], (one if one_chip else out,), byte)

        return bring

    def open_and_preadv(self, steps: range) -> None:
        """Nothing but the system calls, on files that are not open."""
        for name, shard, byte, out, _ in self._places(steps):
            file = os.open(self.paths[name][shard], os.O_RDONLY)
            os.preadv(file, (out,), byte)
            os.close(file)

    def _places(self, steps: range) -> Iterator[tuple[str, int, int, np.ndarray, np.ndarray]]:
        """Layer, shard, place in the file and in a batch's buffer, and one chip's buffer."""
        for step in steps:
            shards, records = self.dataset.locate(self.loader.chips(step))
            for name, lies in self.dataset.layers.items():
                first = lies.first_byte[shards] + records * lies.record_bytes
                buffer = self.buffers[step % BUFFERS][name]
                for i, place in enumerate(zip(shards.tolist(), first.tolist(), strict=True)):
                    yield name, *place, buffer[i], buffer[0]

    def memcpy(self, steps: range) -> None:
        """From memory."""
        for step in steps:
            places = np.searchsorted(self.chips, self.loader.chips(step)).tolist()
            for name in LAYERS:
                out, stored = self.buffers[step % BUFFERS][name], self.memory[name]
                for i, place in enumerate(places):
                    out[i] = stored[place]

    def read(self, steps: range) -> None:
        """By ``RecordReader``."""
        for step in steps:
            chips = self.loader.chips(step)
            for name in LAYERS:
                out = self.buffers[step % BUFFERS][name]
                self.reader.read(name, chips, 0 * chips, 0 * chips, out)

    def mapped(self, steps: range) -> None:
        """From the mapped files."""
        dataset = self.dataset
        for step in steps:
            out = self.buffers[step % BUFFERS]
            for i, chip in enumerate(self.loader.chips(step).tolist()):
                out["image"][i] = dataset.image(chip)
                out["landcover"][i] = dataset.landcover(chip)
                out["valid"][i] = dataset.valid_packed(chip)

    def load(self, steps: range) -> None:
        """By ``Loader``."""
        for _ in self.loader.steps(steps.start, steps.stop):
            pass

    def load_and_prepare(self, steps: range) -> None:
        """By ``Loader``, and made ready."""
        for _, raw in self.loader.steps(steps.start, steps.stop):
            prepare(raw, self.dataset.sensor, 16, 48)

    def from_memory(self, steps: range) -> None:
        """By ``Loader`` from memory."""
        for _ in self.resident.steps(steps.start, steps.stop):
            pass


def in_turns(ways: dict[str, Way], again: bool = False) -> dict[str, list[float]]:
    """Chips a second of every way, round by round; ``again``: always of the same chips."""
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(ROUNDS + 1):
        for name, bring in ways.items():
            start = 0 if again else turn * BATCHES
            began = time.perf_counter()
            bring(range(start, start + BATCHES))
            if turn:  # the first round warms up
                speeds[name].append(BATCH * BATCHES / (time.perf_counter() - began))
    return speeds


def few_shards(dataset: Dataset) -> dict[str, list[float]]:
    """Speeds where all files stay open."""
    ways = Ways(dataset)
    return in_turns({
        "bare preadv, batches' buffers": ways.preadv(one_chip=False),
        "bare preadv, one chip's buffer": ways.preadv(one_chip=True),
        "memcpy, batches' buffers": ways.memcpy,
        "`RecordReader.read`": ways.read,
        "`Loader`": ways.load,
        "`Loader` and `prepare`": ways.load_and_prepare,
        "mapped files": ways.mapped,
        "`Loader`, resident in memory": ways.from_memory,
    })  # fmt: skip


def many_shards(dataset: Dataset) -> dict[str, list[float]]:
    """Speeds where files are opened all the time."""
    ways = Ways(dataset)
    return in_turns(
        {
            "bare open, preadv and close": ways.open_and_preadv,
            "`RecordReader.read`": ways.read,
            "`Loader`": ways.load,
            "mapped files": ways.mapped,
        },
        again=True,
    )


def opened(folder: Path) -> list[str]:
    """What it takes to open a dataset and begin to train on it."""
    code = [sys.executable, "-c", MILLION, str(folder)]
    runs = [subprocess.run(code, capture_output=True, text=True, check=True) for _ in range(3)]
    numbers = [[float(each) for each in run.stdout.split()] for run in runs]
    opened, listed, before, peak = (
        statistics.median(column) for column in zip(*numbers, strict=True)
    )
    return [
        "| a million chips, 5,129 shards a layer | |",
        "|---|---|",
        f"| `Dataset.open` | {opened:.2f} s |",
        f"| the train split's chips, first time | {listed:.2f} s |",
        f"| peak memory after imports | {before:.0f} MB |",
        f"| peak memory after 50 batches of 64 | {peak:.0f} MB |",
    ]


def table(title: str, speeds: dict[str, list[float]]) -> list[str]:
    """Speeds and their ratios to the first way's."""
    first = next(iter(speeds.values()))
    return [
        f"| {title} | chips/s | best | GB/s | ratio |",
        "|---|---|---|---|---|",
        *(
            f"| {name} | {statistics.median(own):,.0f} | {max(own):,.0f} "
            f"| {statistics.median(own) * CHIP_BYTES / 1e9:.1f} | {_ratio(own, first):.2f} |"
            for name, own in speeds.items()
        ),
        "",
    ]


def main() -> None:
    """Measure all ways and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help=f"keep the table in {TABLE.name}")
    options = parser.parse_args()
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        few = few_shards(filled_dataset(Path(folder) / "dataset"))
        million = sparse_dataset(Path(folder) / "million")
        many, costs = many_shards(Dataset.open(million)), opened(million)
    conditions = (
        f"{datetime.date.today()}, {os.cpu_count()} cores ({platform.machine()}; "
        f"{os.getloadavg()[0]:.1f} processes running), torch {torch.__version__}, "
        f"{CHIP_BYTES / 1e3:.0f} kB a chip, batches of {BATCH}, warm, medians of {ROUNDS} rounds "
        "in turns."
    )
    lines = [
        conditions,
        "",
        *table(f"{NUM_CHIPS:,} chips, files stay open", few),
        *table("a million chips, files do not", many),
        *costs,
    ]
    print("\n".join(lines))
    if options.write:
        TABLE.write_text("# Chips from disk into batches\n\n" + "\n".join(lines) + "\n")


def _ratio(own: list[float], other: list[float]) -> float:
    """The median of the rounds' ratios: neighbours in time are compared."""
    return statistics.median(a / b for a, b in zip(own, other, strict=True))


if __name__ == "__main__":
    main()
