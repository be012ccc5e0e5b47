"""Small datasets made of numbers, for any number of bands, and configurations that fit them."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

import numpy as np
from affine import Affine
from odc.geo.geobox import GeoBox

from bharateo.chips.build import build
from bharateo.chips.store import Dataset
from bharateo.config import Config, HeadConfig, ModelConfig, PlanConfig, SplitConfig, TrainingConfig
from bharateo.landcover import IGNORE, WORLDCOVER, class_colours
from bharateo.pixels.raster import Raster
from bharateo.regions import Region
from bharateo.sensor import WORLDCOVER_PALETTE, Band, Composite, Sensor
from bharateo.sources import ImageSource, LabelSource, Recipe
from bharateo.training.contract import Contract, ModelShape, TrainStatistics

CODES = np.array([10, 40, 20, 50, 80], np.uint8)
PLAN = PlanConfig(
    size_px=48,
    min_valid_fraction=0.2,
    split=SplitConfig(block_px=60, buffer_px=8, val=0.2, test=0.3),
)


def many_bands(num_bands: int, unit: str = "reflectance") -> Sensor:
    bands = tuple(Band(f"B{number:02d}", 10) for number in range(1, num_bands + 1))
    return Sensor(
        name=f"{num_bands}-bands",
        title=f"{num_bands} synthetic bands",
        bands=bands,
        dtype="uint16",
        scale=1e-4,
        offset=-0.1,
        unit=unit,
        composites={"all": Composite((bands[0].name, bands[-1].name, bands[0].name), 0.0, 1.0)},
        standardised=True,
    )


def class_codes(grid: GeoBox) -> np.ndarray:
    """Fields of some twenty pixels, with a strip of no label; the same place has the same code."""
    row, col = np.indices(grid.shape)
    col = col + round(abs(grid.affine.c) / 10) % 977
    codes = CODES[(row // 19 + col // 23 * 2) % len(CODES)]
    codes[:, 70:76] = 0
    return codes


class Labels(LabelSource):
    name = "made-up labels"
    attribution: tuple[str, ...] = ("Labels by nobody",)
    scheme = WORLDCOVER

    def read(self, geobox: GeoBox) -> Raster:
        codes = class_codes(geobox)
        return Raster(codes[None], codes != 0, geobox, {"from": "numbers"})


class Pixels(ImageSource):
    """The class's colour (three palette bands), or a level for every class and band with noise."""

    name = "made-up pixels"
    attribution: tuple[str, ...] = ("Pixels by nobody",)

    def __init__(self, sensor: Sensor) -> None:
        self.sensor = sensor

    def read(self, geobox: GeoBox) -> Raster:
        codes = class_codes(geobox)
        class_ids = WORLDCOVER.collapse(codes)
        valid = class_ids != IGNORE
        valid[30:34] = False
        if self.sensor.dtype == "uint8":
            return Raster(np.moveaxis(class_colours()[class_ids], -1, 0), valid, geobox)
        rng = np.random.default_rng(7)
        level = rng.integers(1000, 6000, (self.sensor.num_bands, 256))
        noise = rng.integers(0, 200, (self.sensor.num_bands, *codes.shape))
        return Raster((level[:, class_ids] + noise).astype(np.uint16), valid, geobox)


def small_dataset(
    folder: Path,
    sensor: Sensor = WORLDCOVER_PALETTE,
    plan: PlanConfig = PLAN,
    size_px: int = 240,
    regions: tuple[str, ...] = ("west", "east"),
) -> Dataset:
    """Square regions side by side: some thirty squares of 48 px, split by blocks of 60 px."""
    return build(made_up(sensor, size_px, regions), plan, folder, 42)


def made_up(
    sensor: Sensor = WORLDCOVER_PALETTE,
    size_px: int = 240,
    regions: tuple[str, ...] = ("west", "east"),
) -> Recipe:
    """Regions side by side, with pixels and labels from numbers."""
    places = [
        Region(
            name,
            GeoBox(
                (size_px, size_px),
                Affine(10, 0, 400_000 + 50_000 * number, 0, -10, 3_000_000),
                "EPSG:32643",
            ),
        )
        for number, name in enumerate(regions)
    ]
    return Recipe("made-up", places, Pixels(sensor), Labels())


def small_config(model: str = "v0", target: str = "fraction", **training: object) -> Config:
    """Chips of 32 px in patches of 8: 16 tokens, 12 hidden; ``seed`` by AdamW, ``v0`` by Muon."""
    options = {
        "epochs": 2,
        "batch_size": 16,
        "optimiser": "adamw" if model == "seed" else "muon",
        "lr": 2e-3,
        "precision": "fp32",
        "warmup_epochs": 0.5,
        "checkpoint_seconds": 1000.0,
        **training,
    }
    return Config(
        model=ModelConfig(
            model, 32, 8, width=16, depth=1, num_heads=2,
            decoder_width=16, decoder_depth=1, decoder_num_heads=2,
        ),
        heads={
            "pixels": HeadConfig(1.0, {"beta": 0.1}),
            "landcover": HeadConfig(0.2, {"target": target}),
        },
        training=TrainingConfig(**options),
    )  # fmt: skip


def contents(folder: Path, but: Collection[str] = ()) -> dict[str, bytes]:
    """Every file of a folder; ``but`` are names to leave out."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files
            if path.name not in but}  # fmt: skip


def small_contract(sensor, statistics, patch_px):
    """As much of a contract as is read of it where a raster is opened."""
    record = TrainStatistics.model_validate_json(json.dumps(statistics.to_json()))
    model = ModelShape.model_construct()
    return Contract.model_construct(
        sensor=sensor, statistics=record, patch_px=patch_px, model=model
    )
