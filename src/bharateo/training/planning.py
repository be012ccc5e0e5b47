"""What a run takes: FLOPs, bytes, hours, energy and its CO2; planned, and measured beside the plan.

A FLOP is one multiplication or addition inside a matrix product, as the model runs it for one chip;
norms, activations and losses are not counted, and nothing is counted twice that a kernel recomputes
(fused attention repeats query x key in its backward pass). MFU, the share of a machine's peak that
training reaches, is defined with these FLOPs.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bharateo.accounting import Accounting, Row
from bharateo.config import SIZES, Config, ModelConfig, TrainingConfig
from bharateo.errors import ConfigError
from bharateo.landcover import NUM_CLASSES
from bharateo.machine import num_cores
from bharateo.models.heads import Batch, build_heads
from bharateo.models.mae import build_model, num_parameters
from bharateo.models.objective import Objective
from bharateo.models.patches import Mask, num_masked
from bharateo.sensor import SENTINEL2_L2A, Band, named_bands
from bharateo.training.data import Draws, RawBatch, num_light
from bharateo.training.optimisers import build_optimisers

if TYPE_CHECKING:
    from bharateo.training.engine import Engine

# What a model costs, counted on the model itself.


@dataclass(frozen=True)
class Cost:
    """FLOPs of one chip, ``forward`` and with the backward pass (``training``), in the mean over
    the sets of bands that steps show, and of the optimisers' products in a step (Muon's); trained
    values; bytes of weights, statistics included, and of what the optimisers keep for them.
    """

    forward: int
    training: int
    optimiser: int
    num_parameters: int
    weight_bytes: int
    optimiser_bytes: int

    @classmethod
    def of(cls, config: Config, num_bands: int) -> Cost:
        """The cost of a configured model with its heads, for chips of so many bands.

        Raises:
            ConfigError: sizes make no tokens, or a head or one of its options does not exist.
        """
        try:
            return cls.counted_on("meta", config, num_bands)  # shapes alone: no memory, no work
        except RuntimeError:  # a head may need the numbers themselves, to pick tokens by them
            return cls.counted_on("cpu", config, num_bands)

    @classmethod
    def counted_on(cls, device: str, config: Config, num_bands: int) -> Cost:
        """A training step on one chip, all of it valid and labelled, watched by PyTorch's counter.

        Attention runs as two products, which is what a fused kernel does in one.
        """
        shape, px = config.model, config.model.chip_px
        beside, flops = FlopCounterMode(display=False), np.zeros(2)
        with torch.random.fork_rng(devices=()), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            with torch.device(device):
                names = made_up_names(config, num_bands)
                model = build_model(shape, [0.5] * num_bands, [0.25] * num_bands, names)
                objective = Objective(model, build_heads(config.heads, model), config.heads)
                counts = torch.zeros(1, model.num_tokens, NUM_CLASSES, dtype=torch.int64)
                counts[..., 0] = shape.patch_px**2
                image, valid = torch.rand(1, num_bands, px, px), torch.ones(1, px, px).bool()
                batch = Batch(image, valid, counts, torch.zeros(1).long())
                visible = model.num_tokens - num_masked(model.num_tokens, shape.mask_ratio)
                mask = Mask(torch.arange(model.num_tokens)[None], visible)
                # As ``drawn_band_set`` draws: all bands in half of the steps, else one of the sets.
                shown = {None: 1.0} | {name: 1 / len(model.band_sets) for name in model.band_sets}
                for band_set, weight in shown.items():
                    with FlopCounterMode(display=False) as watch:
                        counted = objective.counts(batch, mask)
                        loss, _ = objective(batch, mask, counted, band_set)
                        forward = watch.get_total_flops()
                        loss.backward()
                        training = watch.get_total_flops()
                    share = weight / 2 if model.band_sets else weight
                    flops += share * np.array([forward, training])
            optimisers = build_optimisers(objective, config)
            with beside:
                for optimiser in optimisers:
                    for group in optimiser.param_groups:
                        group["fused"] = False  # a fused kernel needs more than shapes
                    optimiser.step()
        kept = [state for optimiser in optimisers for state in optimiser.state.values()]
        return cls(
            round(flops[0]),
            round(flops[1]),
            beside.get_total_flops(),
            num_parameters(objective),
            sum(tensor.nbytes for tensor in objective.state_dict().values()),
            sum(tensor.nbytes for state in kept for tensor in state.values()),
        )


def made_up_names(config: Config, num_bands: int) -> tuple[str, ...]:
    """Names for so many bands of which nobody knows the names, those of the model's sets among
    them.

    Raises:
        ConfigError: the sets have more bands in all.
    """
    sets = config.model.band_sets.values()
    named = list(dict.fromkeys(band for each in sets for band in named_bands(each)))
    if len(named) > num_bands:
        raise ConfigError(
            f"model.band_sets names {', '.join(named)}, more than {num_bands} bands: plan for as "
            "many, or leave sets out"
        )
    return (*named, *(f"band {number}" for number in range(len(named), num_bands)))


# Machines: looked up, or measured.

INDIA_KG_PER_KWH = 0.727
"""CO2 of India's grid. Source: Central Electricity Authority, CO2 Baseline Database v20 (December
2024): weighted average of FY 2023-24, renewables included."""
WATTS_PER_CORE = 15.0
"""Assumed for a processor whose power nobody has given."""
THIS = "this"
"""The name of the machine that is measured, not looked up."""


@dataclass(frozen=True)
class Machine:
    """What a machine can do and draws: dense ``peak`` in FLOP/s by precision, power in watts.

    ``share`` of the peak is what training is taken to reach; ``watts`` is None if not known.
    """

    name: str
    title: str
    peak: Mapping[str, float]
    watts: float | None
    watts_from: str = "data sheet"
    share: float = 0.3
    share_from: str = "assumed"

    def precision(self, wanted: str) -> str:
        """The precision used: the fastest where ``auto`` is wanted."""
        return max(self.peak, key=lambda name: self.peak[name]) if wanted == "auto" else wanted


MACHINES: Mapping[str, Machine] = {
    machine.name: machine
    for machine in (
        Machine("h100", "NVIDIA H100 SXM", {"bf16": 989.4e12, "fp32": 66.9e12}, 700),
        Machine("h200", "NVIDIA H200 SXM", {"bf16": 989.4e12, "fp32": 66.9e12}, 700),
        Machine("a100", "NVIDIA A100 SXM", {"bf16": 312e12, "fp32": 19.5e12}, 400),
        Machine("l4", "NVIDIA L4", {"bf16": 121e12, "fp32": 30.3e12}, 72),
        Machine("rtx4090", "GeForce RTX 4090", {"bf16": 165.2e12, "fp32": 82.6e12}, 450),
    )
}
"""Peaks without sparsity, sums in fp32; fp32 without TF32, as PyTorch multiplies by default.
Sources: NVIDIA's data sheets of H100, H200, A100 and L4, and its Ada GPU architecture paper."""


def measured_machine(
    chips_per_s: float, peak: float, precision: str, flops: int, gpu: str | None = None
) -> Machine:
    """This machine, from its training speed at ``flops`` a chip and the ``peak`` (FLOP/s) of a
    large product; ``gpu`` is its name, None where the processor does the work.
    """
    return Machine(
        THIS,
        f"this machine ({gpu or f'{num_cores()} cores'})",
        {precision: peak},
        None if gpu else WATTS_PER_CORE * num_cores(),
        f"assumed, {WATTS_PER_CORE:g} W a core",
        chips_per_s * flops / peak,
        "measured",
    )


# Plans.


@dataclass(frozen=True)
class Plan:
    """A training of ``chips`` an epoch, by ``num_machines`` like ``machine`` if one is named.

    ``watts`` takes the place of the machine's own; ``grid`` is kg CO2 a kWh. Energy is that of
    the machines alone: no host, no cooling.

    Raises:
        ConfigError: a number is out of range, or the machine lacks the precision.
    """

    config: Config
    chips: int
    num_bands: int
    bytes_per_value: int = 2
    machine: Machine | None = None
    num_machines: int = 1
    watts: float | None = None
    grid: float = INDIA_KG_PER_KWH

    def __post_init__(self) -> None:
        training = self.config.training
        for name, value in (
            ("num_machines", self.num_machines),
            ("masks_per_chip", training.masks_per_chip),
            ("batch_size", training.batch_size),
        ):
            if value < 1:
                raise ConfigError(f"{name} {value} cannot be planned with: give at least 1")
        if training.batch_size % training.masks_per_chip:
            raise ConfigError(
                f"batch_size {training.batch_size} is not a multiple of masks_per_chip "
                f"{training.masks_per_chip}: choose one, a batch holds all masks of a chip"
            )
        if self.watts is not None and not 0 < self.watts < math.inf:
            raise ConfigError(f"watts {self.watts}: give the power a machine draws, more than 0")
        if not 0 <= self.grid < math.inf:
            raise ConfigError(f"grid {self.grid}: give the kg CO2 of a kWh, 0 or more")
        if self.machine and training.precision not in ("auto", *self.machine.peak):
            raise ConfigError(
                f"precision {training.precision}: nothing is known of it on "
                f"{self.machine.title}; choose {' or '.join(self.machine.peak)}"
            )
        _ = self.account, self.cost  # refuse sizes that make no tokens, and unknown heads

    @cached_property
    def account(self) -> Accounting:
        """What the model is shown and asked."""
        model = self.config.model
        sizes = (model.chip_px, model.patch_px, self.num_bands, model.mask_ratio)
        return Accounting(self.chips, self.config.training.epochs, *sizes)

    @cached_property
    def cost(self) -> Cost:
        """FLOPs and bytes of the model."""
        return Cost.of(self.config, self.num_bands)

    @property
    def training_flops(self) -> int:
        """FLOPs of the whole run, forward and backward."""
        return self.cost.training * self.account.chip_presentations

    @property
    def steps(self) -> int:
        """Optimiser steps."""
        training = self.config.training
        return training.epochs * math.ceil(self.chips / training.batch_size)

    @property
    def record_bytes(self) -> int:
        """Bytes of a chip with all its layers: image, land cover, and a bit of validity a pixel."""
        px = self.config.model.chip_px
        return px**2 * (self.num_bands * self.bytes_per_value + 1) + px * math.ceil(px / 8)

    @property
    def bytes_read(self) -> int:
        """Bytes of all chips read; a chip with several masks is read once for all of them."""
        training = self.config.training
        reads = training.epochs * math.ceil(self.chips / training.masks_per_chip)
        return reads * self.record_bytes

    @property
    def dataset_bytes(self) -> int:
        """Bytes of the chips on disk, which are stored as they are."""
        return self.chips * self.record_bytes

    def rows(self) -> tuple[Row, ...]:
        """The plan as table rows: what is shown, computed and read, and how long it takes."""
        cost, training, px = self.cost, self.config.training, self.config.model.chip_px
        average = 4 * cost.num_parameters if training.average else 0  # fp32
        checkpoint = cost.weight_bytes + average + cost.optimiser_bytes
        masks = training.masks_per_chip
        rows = [
            *self.account.rows(),
            Row("parameters", cost.num_parameters, "weights", "model and heads"),
            Row("forward per chip", cost.forward, "FLOPs", "matrix products alone"),
            Row("training per chip", cost.training, "FLOPs", "forward and backward"),
            Row(
                "training FLOPs", self.training_flops, "FLOPs",
                f"chip presentations × training per chip: {_si(self.training_flops, 'FLOP')}",
            ),
            Row("steps", self.steps, "steps", f"batches of {training.batch_size:,} chips"),
            Row(
                "optimiser per step", cost.optimiser, "FLOPs",
                f"Muon's products, on top: as much as {cost.optimiser / cost.training:,.3g} more "
                "chips in every batch",
            ),
            Row(
                "bytes per chip", self.record_bytes, "bytes",
                f"{self.num_bands} bands × {self.bytes_per_value} bytes, land cover 1 byte, "
                f"validity 1 bit × {px} × {px} pixels",
            ),
            Row(
                "dataset on disk", self.dataset_bytes, "bytes",
                f"{self.chips:,} chips as stored: {_si(self.dataset_bytes, 'B')}",
            ),
            Row(
                "bytes read", self.bytes_read, "bytes",
                f"{_si(self.bytes_read, 'B')}: every chip"
                f"{f' with {masks} masks' if masks > 1 else ''} once an epoch; more where chips "
                "are cut from larger squares",
            ),
            Row(
                "weights", cost.weight_bytes, "bytes",
                f"fp32, with the statistics: {_si(cost.weight_bytes, 'B')}",
            ),
            Row(
                "checkpoint", checkpoint, "bytes",
                f"weights{', their average' if average else ''} and optimiser state: "
                f"{_si(checkpoint, 'B')} and a short header",
            ),
        ]  # fmt: skip
        if not cost.optimiser:
            rows = [row for row in rows if row.name != "optimiser per step"]
        return (*rows, *(Timing(self, self.machine).rows() if self.machine else ()))


@dataclass(frozen=True)
class Timing:
    """How fast ``machine`` carries out a plan, and what that costs."""

    plan: Plan
    machine: Machine

    @property
    def precision(self) -> str:
        """Precision of the matrix products."""
        return self.machine.precision(self.plan.config.training.precision)

    @property
    def chips_per_s(self) -> float:
        """Chips presented a second, by all machines."""
        flops_per_s = self.machine.peak[self.precision] * self.machine.share
        return self.plan.num_machines * flops_per_s / self.plan.cost.training

    @property
    def hours(self) -> float:
        """Time of forward and backward passes; of whole steps where the share is measured."""
        return self.plan.account.chip_presentations / self.chips_per_s / 3600

    @property
    def reads_per_s(self) -> float:
        """Chips that must arrive a second."""
        return self.chips_per_s / self.plan.config.training.masks_per_chip

    def rows(self) -> tuple[Row, ...]:
        """Speed, time, and energy where the power is known, as table rows."""
        plan, machine, peak = self.plan, self.machine, self.machine.peak[self.precision]
        times = f"{plan.num_machines} × " if plan.num_machines > 1 else ""
        counted = "whole steps" if machine.name == THIS else "forward and backward alone"
        rows = (
            Row(
                "training speed", self.chips_per_s, "chips/s",
                f"{times}{machine.title} at {100 * machine.share:.3g} % ({machine.share_from}) "
                f"of its {self.precision} peak of {_si(peak, 'FLOP/s')}",
            ),
            Row(
                "chips to deliver", self.reads_per_s, "chips/s", "what the disks must keep up with"
            ),
            Row(
                "data to deliver", self.reads_per_s * plan.record_bytes / 1e6, "MB/s",
                "chips to deliver × bytes per chip",
            ),
            Row("time", self.hours, "hours", f"{counted}, if the disks keep up"),
        )  # fmt: skip
        watts = machine.watts if plan.watts is None else plan.watts
        if watts is None:
            return rows
        watts_from = machine.watts_from if plan.watts is None else "as given"
        source = "India, FY 2023-24 (CEA v20)" if plan.grid == INDIA_KG_PER_KWH else "as given"
        kwh = watts * plan.num_machines * self.hours / 1000
        return (
            *rows,
            Row(
                "energy", kwh, "kWh",
                f"{times}{watts:,.4g} W ({watts_from}) × time; no host, no cooling",
            ),
            Row("CO2", kwh * plan.grid, "kg", f"{plan.grid:g} kg a kWh: {source}"),
        )  # fmt: skip


def _si(value: float, unit: str) -> str:
    """Three digits and a prefix, e.g. ``1.41 EFLOP``."""
    prefixes = ("", "k", "M", "G", "T", "P", "E")
    power = 0
    while value >= 999.5 and power < len(prefixes) - 1:
        value, power = value / 1000, power + 1
    return f"{value:.3g} {prefixes[power]}{unit}"


@dataclass(frozen=True)
class PlanRequest:
    """What is to be planned: a model ``size`` (see ``config.SIZES``), by name a ``machine``."""

    size: str
    machine: str | None = None
    num_machines: int = 1
    watts: float | None = None
    grid: float = INDIA_KG_PER_KWH
    training: TrainingConfig = field(default_factory=TrainingConfig)

    def plan(self, account: Accounting, bytes_per_value: int) -> Plan:
        """The plan of the requested model for an account; a machine to be measured is left out.

        Raises:
            ConfigError: see ``Plan``.
        """
        model = ModelConfig(
            chip_px=account.chip_px,
            patch_px=account.patch_px,
            mask_ratio=account.mask_ratio,
            **SIZES[self.size],  # type: ignore[arg-type]
        )
        return Plan(
            Config(model=model, training=replace(self.training, epochs=account.epochs)),
            account.chips,
            account.num_bands,
            bytes_per_value,
            MACHINES.get(self.machine or ""),
            self.num_machines,
            self.watts,
            self.grid,
        )


# How fast this machine is: at matrix products, and at whole training steps.

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
LARGEST = 8192
"""Side of the largest product tried."""


def measure(plan: Plan, engine: Engine, seconds: float = 4.0) -> Machine:
    """This machine at a rank's share of a plan: a few seconds, or at least five steps."""
    share = max(plan.config.training.batch_size // engine.num_ranks, 1)
    chips_per_s = measure_step(plan.config, plan.num_bands, share, seconds, engine)
    peak = gemm_peak(engine.device, DTYPES[engine.precision], seconds / 4)
    gpu = torch.cuda.get_device_name(engine.device) if engine.device.type == "cuda" else None
    return measured_machine(chips_per_s, peak, engine.precision, plan.cost.training, gpu)


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
    """Chips a second of whole training steps, all but reading, on generated stored numbers; of
    steps that show all bands.

    The median of the steps done in ``seconds``, three at least, after two to warm up.
    """
    from bharateo.training.engine import Engine, Learner  # what shards a model loads slowly

    engine = engine or Engine()
    bands = tuple(Band(name, 10) for name in made_up_names(config, num_bands))
    sensor = replace(SENTINEL2_L2A, bands=bands)
    learner = Learner(config, sensor, [0.5] * num_bands, [0.25] * num_bands, engine)
    of_all_bands = next(each for each in itertools.count() if learner.band_set(each) is None)
    raw = generated(config, num_bands, batch_size, engine.device)

    def step() -> None:
        learner.differentiate(of_all_bands, config.training.lr, raw)
        learner.update(of_all_bands)
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
    light = rng.random((batch_size, num_light(num_bands, config.training.jitter)))
    layers = {"image": image, "landcover": landcover, "valid": valid}
    tensors = {name: torch.from_numpy(each).to(device) for name, each in layers.items()}
    return RawBatch(**tensors, draws=Draws(shows, zero, zero, symmetry, noise, light), shows=shows)


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


# A run beside its plan.

AFTER_STEPS = 200
"""Steps after which plan and measurement are compared."""


class Forecast:
    """The plan of a run, from a few seconds of measuring on generated numbers before its first
    step: by all ranks at once.
    """

    def __init__(
        self, config: Config, num_bands: int, chips_per_epoch: int, engine: Engine
    ) -> None:
        plan = Plan(config, chips_per_epoch, num_bands, num_machines=engine.num_ranks)
        self.timing = Timing(plan, measure(plan, engine, seconds=1.5))
        self.began = time.monotonic()

    def planned(self) -> str:
        """The plan in one line."""
        timing = self.timing
        return (
            f"planned: {timing.hours:.2f} h for all {timing.plan.steps:,} steps at "
            f"{timing.chips_per_s:,.0f} chips/s, {timing.machine.share:.0%} of the "
            f"{timing.machine.peak[timing.precision] / 1e9:,.0f} GFLOP/s of a large product "
            f"({timing.precision})"
        )

    def compared(self, steps: int, data_wait: float) -> str:
        """Plan and measurement after so many steps, in one line."""
        timing = self.timing
        seconds = time.monotonic() - self.began
        chips_per_s = steps * timing.plan.config.training.batch_size / seconds
        peak = timing.machine.peak[timing.precision] * timing.plan.num_machines
        mfu = chips_per_s * timing.plan.cost.training / peak
        of_planned = chips_per_s / timing.chips_per_s
        return (
            f"after {steps} steps: {chips_per_s:,.0f} chips/s, {of_planned:.2f} of what was "
            f"planned, so {timing.hours / of_planned:.2f} h in all; "
            f"model FLOPs utilisation {mfu:.0%}, {data_wait:.1%} of the time spent waiting for data"
        )
