"""What a run will take, before it starts: FLOPs, bytes, hours, energy and its CO2.

A FLOP is one multiplication or addition inside a matrix product, as the models run it for one chip;
norms, activations and losses are not counted, and nothing is counted twice that a kernel recomputes
(fused attention repeats query x key in its backward pass). MFU, the share of a machine's peak that
training reaches, is defined with these FLOPs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

from bharateo.accounting import Accounting, Row
from bharateo.config import SIZES, Config, HeadConfig, ModelConfig, TrainingConfig
from bharateo.errors import ConfigError
from bharateo.models.cost import HeadCost, head_costs

INDIA_KG_PER_KWH = 0.727
"""CO2 of India's grid. Source: Central Electricity Authority, CO2 Baseline Database v20 (December
2024): weighted average of FY 2023-24, renewables included."""
WATTS_PER_CORE = 15.0
"""Assumed for a processor whose power nobody has given."""
THIS = "this"
"""The name of the machine that is measured, not looked up."""
_FP32 = 4
"""Bytes of a weight and of a number an optimiser keeps."""


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
    chips_per_s: float, peak: float, precision: str, num_cores: int, gpu: str | None, flops: Flops
) -> Machine:
    """This machine, from its training speed and the ``peak`` (FLOP/s) of a large product."""
    return Machine(
        THIS,
        f"this machine ({gpu or f'{num_cores} cores'})",
        {precision: peak},
        None if gpu else WATTS_PER_CORE * num_cores,
        f"assumed, {WATTS_PER_CORE:g} W a core",
        chips_per_s * flops.training / peak,
        "measured",
    )


class Flops(NamedTuple):
    """Of one chip: a forward pass; forward and backward together."""

    forward: int
    training: int


class StateBytes(NamedTuple):
    """Of a training's state, in memory and in a checkpoint."""

    weights: int
    optimiser: int


class Linear(NamedTuple):
    """A linear layer as one chip meets it: ``rows`` tokens of ``inputs`` values to ``outputs``."""

    rows: int
    inputs: int
    outputs: int
    in_block: bool = False

    @property
    def flops(self) -> int:
        """Of a forward pass; a gradient for the weights or for the input costs the same."""
        return 2 * self.rows * self.inputs * self.outputs

    @property
    def muon_flops(self) -> int:
        """Of Muon's five Newton-Schulz steps on the weights, once an optimiser step, in bf16."""
        short, long = sorted((self.inputs, self.outputs))
        return 5 * (4 * short**2 * long + 2 * short**3)


class BlockStack(NamedTuple):
    """Transformer blocks in a row."""

    depth: int
    width: int
    rows: int


@dataclass(frozen=True)
class ModelLayers:
    """A model with its heads as ``models/`` builds them, down to what FLOPs and bytes need.

    The first of ``linears`` takes pixels, which need no gradient. ``attention`` is the forward
    FLOPs of scores and mixing, ``vectors`` are the lengths of the model's parameters outside
    ``linears``; ``heads`` are counted while they work, since anybody may add one.

    Raises:
        ConfigError: sizes make no tokens, or a head is unknown.
    """

    linears: tuple[Linear, ...]
    attention: int
    vectors: tuple[int, ...]
    heads: tuple[HeadCost, ...]

    @classmethod
    def of(cls, model: ModelConfig, num_bands: int, heads: Mapping[str, HeadConfig]) -> ModelLayers:
        """The layers of a configured model for chips of so many bands."""
        chip = Accounting(1, 1, model.chip_px, model.patch_px, num_bands, model.mask_ratio)
        stacks = _stacks(model, chip)
        outside = [Linear(chip.visible_per_chip, chip.values_per_token, model.width)]
        if model.name == "v0":
            outside.append(Linear(chip.visible_per_chip, model.width, stacks[-1].width))
        return cls(
            (*outside, *(one for stack in stacks for one in _block_linears(stack, model))),
            sum(stack.depth * 4 * stack.rows**2 * stack.width for stack in stacks),
            (
                *_own_vectors(model, chip),
                *(stack.width for stack in stacks for _ in range(4 * stack.depth)),
            ),
            head_costs(model, num_bands, heads),
        )

    @property
    def flops(self) -> Flops:
        """Every product of the model has two gradients, but the first only one."""
        forward = sum(linear.flops for linear in self.linears) + self.attention
        return Flops(
            forward + sum(head.forward for head in self.heads),
            3 * forward - self.linears[0].flops + sum(head.training for head in self.heads),
        )

    @property
    def num_parameters(self) -> int:
        """Trained values."""
        in_linears = sum(one.inputs * one.outputs + one.outputs for one in self.linears)
        in_heads = sum(length for head in self.heads for length in head.parameters)
        return in_linears + sum(self.vectors) + in_heads

    @property
    def block_matrices(self) -> tuple[Linear, ...]:
        """The linear layers whose weights Muon trains."""
        return tuple(linear for linear in self.linears if linear.in_block)


def _stacks(model: ModelConfig, chip: Accounting) -> tuple[BlockStack, ...]:
    if model.name == "seed":
        return (BlockStack(model.depth, model.width, chip.tokens_per_chip),)
    return (
        BlockStack(model.depth, model.width, chip.visible_per_chip),
        BlockStack(model.decoder_depth, model.decoder_width, chip.tokens_per_chip),
    )


def _block_linears(stack: BlockStack, model: ModelConfig) -> list[Linear]:
    width, hidden = stack.width, model.mlp_ratio * stack.width
    sizes = ((width, 3 * width), (width, width), (width, hidden), (hidden, width))
    return stack.depth * [Linear(stack.rows, *size, in_block=True) for size in sizes]


def _own_vectors(model: ModelConfig, chip: Accounting) -> tuple[int, ...]:
    """Mask token and positions; or mask token, missing share, and the encoder's last norm."""
    if model.name == "seed":
        return (model.width, chip.tokens_per_chip * model.width)
    return (model.decoder_width, model.width, model.width, model.width)


def flops_per_chip(model: ModelConfig, num_bands: int, heads: Mapping[str, HeadConfig]) -> Flops:
    """FLOPs of the matrix products for one chip."""
    return ModelLayers.of(model, num_bands, heads).flops


def state_bytes(config: Config, num_bands: int) -> StateBytes:
    """Bytes of weights (statistics included) and of what the optimisers keep for them.

    Muon keeps one number a weight, AdamW two, and a step count a tensor.
    """
    layers = ModelLayers.of(config.model, num_bands, config.heads)
    muon = layers.block_matrices if config.training.optimiser == "muon" else ()
    by_muon = sum(linear.inputs * linear.outputs for linear in muon)
    by_adamw = layers.num_parameters - by_muon
    num_adamw = 2 * len(layers.linears) - len(muon) + len(layers.vectors)
    num_adamw += sum(len(head.parameters) for head in layers.heads)
    return StateBytes(
        _FP32 * (layers.num_parameters + 2 * num_bands),
        _FP32 * (by_muon + 2 * by_adamw + num_adamw),
    )


def record_bytes(chip_px: int, num_bands: int, bytes_per_value: int) -> int:
    """Bytes of a chip with all its layers: image, land cover, and a bit of validity a pixel."""
    return chip_px**2 * (num_bands * bytes_per_value + 1) + chip_px * math.ceil(chip_px / 8)


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
        _ = self.account, self.layers  # refuse sizes that make no tokens, and unknown heads

    @cached_property
    def account(self) -> Accounting:
        """What the model is shown and asked."""
        model = self.config.model
        sizes = (model.chip_px, model.patch_px, self.num_bands, model.mask_ratio)
        return Accounting(self.chips, self.config.training.epochs, *sizes)

    @cached_property
    def layers(self) -> ModelLayers:
        """What the model is made of."""
        return ModelLayers.of(self.config.model, self.num_bands, self.config.heads)

    @property
    def training_flops(self) -> int:
        """FLOPs of the whole run, forward and backward."""
        return self.layers.flops.training * self.account.chip_presentations

    @property
    def steps(self) -> int:
        """Optimiser steps."""
        training = self.config.training
        return training.epochs * math.ceil(self.chips / training.batch_size)

    @property
    def record_bytes(self) -> int:
        """Bytes of a chip with all its layers."""
        return record_bytes(self.config.model.chip_px, self.num_bands, self.bytes_per_value)

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
        rows = (*self.account.rows(), *_model_rows(self), *_bytes_rows(self))
        if self.machine is None:
            return rows
        timing = Timing(self, self.machine)
        return (*rows, *_time_rows(timing), *_energy_rows(timing))


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
        return self.plan.num_machines * flops_per_s / self.plan.layers.flops.training

    @property
    def hours(self) -> float:
        """Time of forward and backward passes; of whole steps where the share is measured."""
        return self.plan.account.chip_presentations / self.chips_per_s / 3600

    @property
    def reads_per_s(self) -> float:
        """Chips that must arrive a second."""
        return self.chips_per_s / self.plan.config.training.masks_per_chip

    @property
    def watts(self) -> float | None:
        """Power of one machine, None if not known."""
        return self.machine.watts if self.plan.watts is None else self.plan.watts

    @property
    def kwh(self) -> float | None:
        """Energy of all machines."""
        return self.watts and self.watts * self.plan.num_machines * self.hours / 1000

    @property
    def kg_co2(self) -> float | None:
        """CO2 of that energy."""
        return self.kwh and self.kwh * self.plan.grid


def _model_rows(plan: Plan) -> tuple[Row, ...]:
    layers, training = plan.layers, plan.config.training
    chip = layers.flops.training
    rows = (
        Row("parameters", layers.num_parameters, "weights", "model and heads"),
        Row("forward per chip", layers.flops.forward, "FLOPs", "matrix products alone"),
        Row("training per chip", chip, "FLOPs", "forward and backward"),
        Row(
            "training FLOPs", plan.training_flops, "FLOPs",
            f"chip presentations × training per chip: {_si(plan.training_flops, 'FLOP')}",
        ),
        Row("steps", plan.steps, "steps", f"batches of {training.batch_size:,} chips"),
    )  # fmt: skip
    if training.optimiser != "muon":
        return rows
    muon = sum(linear.muon_flops for linear in layers.block_matrices)
    meaning = f"Muon's products, on top: as much as {muon / chip:,.3g} more chips in every batch"
    return (*rows, Row("optimiser per step", muon, "FLOPs", meaning))


def _bytes_rows(plan: Plan) -> tuple[Row, ...]:
    px, masks = plan.config.model.chip_px, plan.config.training.masks_per_chip
    weights, optimiser = state_bytes(plan.config, plan.num_bands)
    return (
        Row(
            "bytes per chip", plan.record_bytes, "bytes",
            f"{plan.num_bands} bands × {plan.bytes_per_value} bytes, land cover 1 byte, validity "
            f"1 bit × {px} × {px} pixels",
        ),
        Row(
            "dataset on disk", plan.dataset_bytes, "bytes",
            f"{plan.chips:,} chips as stored: {_si(plan.dataset_bytes, 'B')}",
        ),
        Row(
            "bytes read", plan.bytes_read, "bytes",
            f"{_si(plan.bytes_read, 'B')}: every chip{f' with {masks} masks' if masks > 1 else ''} "
            "once an epoch; more where chips are cut from larger squares",
        ),
        Row("weights", weights, "bytes", f"fp32, with the statistics: {_si(weights, 'B')}"),
        Row(
            "checkpoint", weights + optimiser, "bytes",
            f"weights and optimiser state: {_si(weights + optimiser, 'B')} and a short header",
        ),
    )  # fmt: skip


def _time_rows(timing: Timing) -> tuple[Row, ...]:
    plan, machine = timing.plan, timing.machine
    peak = _si(machine.peak[timing.precision], "FLOP/s")
    counted = "whole steps" if machine.name == THIS else "forward and backward alone"
    return (
        Row(
            "training speed", timing.chips_per_s, "chips/s",
            f"{_times(plan)}{machine.title} at {100 * machine.share:.3g} % ({machine.share_from}) "
            f"of its {timing.precision} peak of {peak}",
        ),
        Row("chips to deliver", timing.reads_per_s, "chips/s", "what the disks must keep up with"),
        Row(
            "data to deliver", timing.reads_per_s * plan.record_bytes / 1e6, "MB/s",
            "chips to deliver × bytes per chip",
        ),
        Row("time", timing.hours, "hours", f"{counted}, if the disks keep up"),
    )  # fmt: skip


def _energy_rows(timing: Timing) -> tuple[Row, ...]:
    plan = timing.plan
    if timing.watts is None or timing.kwh is None or timing.kg_co2 is None:
        return ()
    watts_from = timing.machine.watts_from if plan.watts is None else "as given"
    source = "India, FY 2023-24 (CEA v20)" if plan.grid == INDIA_KG_PER_KWH else "as given"
    return (
        Row(
            "energy", timing.kwh, "kWh",
            f"{_times(plan)}{timing.watts:,.4g} W ({watts_from}) × time; no host, no cooling",
        ),
        Row("CO2", timing.kg_co2, "kg", f"{plan.grid:g} kg a kWh: {source}"),
    )  # fmt: skip


def _times(plan: Plan) -> str:
    return f"{plan.num_machines} × " if plan.num_machines > 1 else ""


def _si(value: float, unit: str) -> str:
    """Three digits and a prefix, e.g. ``1.41 EFLOP``."""
    prefixes = ("", "k", "M", "G", "T", "P", "E")
    power = 0
    while value >= 999.5 and power < len(prefixes) - 1:
        value, power = value / 1000, power + 1
    return f"{value:.3g} {prefixes[power]}{unit}"


@dataclass(frozen=True)
class Request:
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
