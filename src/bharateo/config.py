"""The configuration of a build and a run: one YAML file, every key declared here with its default.

``bharateo build`` reads the ``data`` section, ``bharateo pretrain`` the other three.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml

from bharateo.errors import ConfigError


@dataclass(frozen=True)
class SplitConfig:
    """Geographic block splits. ``test`` and ``val`` are fractions of each region's blocks."""

    block_px: int = 512
    """Side of a block; every block belongs to one split whole."""
    buffer_px: int = 32
    """Least distance between pixels of different splits; cut from the blocks' edges."""
    val: float = 0.1
    test: float = 0.2


@dataclass(frozen=True)
class PlanConfig:
    """Where chips are taken."""

    strategy: Literal["grid", "random"] = "grid"
    """``grid``: stored squares side by side in every block; ``random``: uniform random windows."""
    size_px: int = 480
    """Side of a stored square; may be larger than the model's chip, which is then cut from it."""
    chips_per_roi: int | None = None
    """``random`` only: how many to keep from each region, drawn round-robin."""
    min_classes: int = 1
    """Least number of different classes among a chip's labelled pixels."""
    min_valid_fraction: float = 0.5
    """Least share of a chip's pixels that must be valid."""
    split: SplitConfig | None = field(default_factory=SplitConfig)
    """``null`` puts every chip in ``train``: no held-out ground, and the report says so."""


@dataclass(frozen=True)
class DataConfig:
    """What ``bharateo build`` reads."""

    source: Literal["worldcover", "sample"] = "worldcover"
    rois: tuple[str, ...] = ("delhi_ncr", "shekhawati", "mathura_belt")
    """Known names or ``NAME=LON,LAT[,SIZE]`` or ``NAME=WEST,SOUTH,EAST,NORTH``."""
    worldcover_root: str | None = None
    """Folder, http(s) or s3 URL; default ``$BHARATEO_WORLDCOVER_ROOT``, else the public bucket."""
    worldcover_year: Literal[2020, 2021] = 2021
    plan: PlanConfig = field(default_factory=PlanConfig)
    seed: int = 42


@dataclass(frozen=True)
class ModelConfig:
    """The masked autoencoder's shape. ``seed`` has no decoder and ignores its sizes."""

    name: Literal["v0", "seed"] = "v0"
    chip_px: int = 128
    patch_px: int = 16
    mask_ratio: float = 0.75
    width: int = 128
    depth: int = 4
    num_heads: int = 4
    decoder_width: int = 128
    decoder_depth: int = 2
    decoder_num_heads: int = 4
    mlp_ratio: int = 4


@dataclass(frozen=True)
class HeadConfig:
    """One pretext task: its weight in the loss and its own options."""

    weight: float = 1.0
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainingConfig:
    """The optimisation."""

    epochs: int = 20
    chips_per_epoch: int | None = None
    """Chips presented in an epoch; ``null``: as many as the stored squares hold side by side."""
    batch_size: int = 64
    lr: float = 1e-3
    weight_decay: float = 0.05
    beta2: float = 0.95
    warmup_epochs: float = 1.0
    schedule: Literal["cosine", "cosine_epoch"] = "cosine"
    """``cosine`` per step after a linear warm-up; ``cosine_epoch`` stepped each epoch, no warm-up."""
    grad_clip: float | None = 1.0
    augment: Literal["none", "d4"] = "d4"
    """``d4``: one of the eight flips and quarter turns of a square, drawn per chip."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """``auto``: bf16 where the processor multiplies it natively, else fp32."""
    checkpoint_seconds: float = 20.0
    seed: int = 42


@dataclass(frozen=True)
class Config:
    """A whole experiment."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    heads: Mapping[str, HeadConfig] = field(
        default_factory=lambda: {
            "pixels": HeadConfig(1.0, {"beta": 0.1}),
            "landcover": HeadConfig(0.2, {"target": "fraction"}),
        }
    )
    training: TrainingConfig = field(default_factory=TrainingConfig)
