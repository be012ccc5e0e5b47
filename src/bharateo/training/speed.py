"""How fast this machine is: at matrix products, and at whole training steps."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from bharateo.config import Config
from bharateo.landcover import NUM_CLASSES
from bharateo.machine import num_cores
from bharateo.sensor import SENTINEL2_L2A
from bharateo.training.data import Draws, RawBatch
from bharateo.training.engine import Engine, Learner

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
LARGEST = 8192
"""Side of the largest product tried."""


@dataclass(frozen=True)
class Speed:
    """Chips trained on a second, and the FLOP/s of a large product in the same precision.

    ``gpu`` is its name, None where the processor did the work.
    """

    chips_per_s: float
    peak: float
    precision: str
    num_cores: int
    gpu: str | None


def measure(config: Config, num_bands: int, engine: Engine, seconds: float = 4.0) -> Speed:
    """This machine at the training of a configuration: a few seconds, or at least five steps."""
    return Speed(
        measure_step(config, num_bands, config.training.batch_size, seconds, engine),
        gemm_peak(engine.device, DTYPES[engine.precision], seconds / 4),
        engine.precision,
        num_cores(),
        torch.cuda.get_device_name(engine.device) if engine.device.type == "cuda" else None,
    )


def gemm_peak(device: torch.device, dtype: torch.dtype, seconds: float = 1.0) -> float:
    """FLOP/s of the fastest of several large square products, found in about ``seconds``.

    The side doubles from 256 until a product takes a thirtieth of the time.
    """
    size = 256
    while True:
        product = square_product(size, device, dtype)
        fastest = min(durations(product, 0.0, warm_up=1))
        if size == LARGEST or fastest > seconds / 30:
            return 2 * size**3 / min(fastest, *durations(product, seconds))
        size *= 2


def square_product(size: int, device: torch.device, dtype: torch.dtype) -> Callable[[], None]:
    """A job: one product of square matrices, laid out as a linear layer's are, to its end."""
    left, right = torch.randn(2, size, size, device=device).to(dtype)

    def job() -> None:
        torch.mm(left, right.T)
        wait_for(device)

    return job


def measure_step(
    config: Config,
    num_bands: int,
    batch_size: int,
    seconds: float = 4.0,
    engine: Engine | None = None,
) -> float:
    """Chips a second of whole training steps, all but reading, on generated stored numbers.

    The median of the steps done in ``seconds``, three at least, after two to warm up.
    """
    engine = engine or Engine()
    learner = Learner(config, SENTINEL2_L2A, [0.5] * num_bands, [0.25] * num_bands, engine)
    raw = generated(config, num_bands, batch_size, engine.device)

    def step() -> None:
        learner.differentiate(0, config.training.lr, raw)
        learner.update()
        wait_for(engine.device)

    return batch_size / statistics.median(durations(step, seconds, 2, engine))


def generated(config: Config, num_bands: int, batch_size: int, device: torch.device) -> RawBatch:
    """A batch as it is loaded: noise in uint16, all of it valid, and random labels."""
    rng, side = np.random.default_rng(0), config.model.chip_px
    shows = np.arange(batch_size) // config.training.masks_per_chip
    num_chips, zero = int(shows[-1]) + 1, np.zeros_like(shows)
    image = rng.integers(0, 10_000, (num_chips, num_bands, side, side), np.uint16)
    landcover = rng.integers(0, NUM_CLASSES, (num_chips, side, side), np.uint8)
    valid = np.full((num_chips, side, -(-side // 8)), 255, np.uint8)
    symmetry = rng.integers(0, 8, batch_size) * (config.training.augment == "d4")
    noise = rng.random((batch_size, (side // config.model.patch_px) ** 2))
    return RawBatch(
        torch.from_numpy(image).to(device),
        torch.from_numpy(landcover).to(device),
        torch.from_numpy(valid).to(device),
        Draws(shows, zero, zero, symmetry, noise),
        shows,
    )


def durations(
    job: Callable[[], None], seconds: float, warm_up: int = 0, engine: Engine | None = None
) -> list[float]:
    """Seconds that each repetition of a job takes, three at least.

    An ``engine``'s ranks repeat it together, as often as the slowest needs for ``seconds``: by
    clocks of their own, some would wait for others that have ended.
    """
    for _ in range(warm_up):
        job()
    taken: list[float] = []
    spent = 0.0
    while len(taken) < 3 or spent < seconds:
        start = time.perf_counter()
        job()
        taken.append(time.perf_counter() - start)
        spent = engine.largest(sum(taken)) if engine else sum(taken)
    return taken


def wait_for(device: torch.device) -> None:
    """Until a device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
