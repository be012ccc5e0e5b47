"""A small dataset, run files and example chips, for any sensor, without a model."""

import json
from dataclasses import asdict, dataclass, field, replace

import numpy as np
import pytest
from affine import Affine
from made_up_run import DECLARED, fingerprint, history_row, split_scores
from odc.geo.geobox import GeoBox

from bharateo.chips.build import build
from bharateo.config import Config, PlanConfig, SplitConfig, to_yaml
from bharateo.evaluation.reconstruction import Example, Made
from bharateo.landcover import BHARATEO_CLASSES, WORLDCOVER, palette
from bharateo.models.heads import Layer
from bharateo.pixels.raster import Raster
from bharateo.regions import Region
from bharateo.report.html import RunFiles
from bharateo.results import Evaluation, Provenance
from bharateo.sensor import SENTINEL2_L1C, WORLDCOVER_PALETTE
from bharateo.sources import ImageSource, LabelSource, Recipe
from bharateo.training.contract import Contract

CHIP_PX, PATCH_PX, GRID = 64, 16, 4
NATIVE = np.array([10, 20, 40, 50, 80, 0], np.uint8)
SENTINEL2 = replace(SENTINEL2_L1C, notes="Level 1C, compressed with loss.")


def native_codes(geobox):
    """Blobs of classes with a strip of nodata, the same for the same place."""
    row, col = np.indices(geobox.shape)
    shift = int(abs(geobox.affine.c) * 7)
    return NATIVE[(row // 23 + (col + shift) // 31) % len(NATIVE)]


@dataclass
class Labels(LabelSource):
    name: str = "made-up labels"
    attribution: tuple = ("Labels made up for a test, CC0",)
    scheme: object = WORLDCOVER

    def read(self, geobox):
        codes = native_codes(geobox)
        return Raster(codes[None], codes > 0, geobox, {"file": "labels.tif"})


@dataclass
class Pixels(ImageSource):
    sensor: object
    name: str = "made-up pixels"
    attribution: tuple = ("Pixels made up for a test, CC0",)
    scheme: object = field(default=WORLDCOVER)

    def read(self, geobox):
        codes = native_codes(geobox)
        if self.sensor.name == "worldcover-palette":
            values = palette(WORLDCOVER.collapse(codes))
        else:
            noise = np.random.default_rng(3).integers(0, 400, (self.sensor.num_bands, *codes.shape))
            values = (codes.astype(int) * 20 + 300 + noise).astype(np.uint16)
        return Raster(values, codes > 0, geobox, {"file": "pixels.tif"})


@pytest.fixture(params=["palette", "ten bands"])
def sensor(request):
    return WORLDCOVER_PALETTE if request.param == "palette" else SENTINEL2


@pytest.fixture
def make_dataset(tmp_path):
    """``make_dataset(sensor, held_out=True)``: two regions of 256 x 192 pixels."""

    def make(sensor, held_out=True):
        regions = [
            Region(name, GeoBox((256, 192), Affine(1e-4, 0, lon, 0, -1e-4, 28), "EPSG:4326"))
            for name, lon in (("first", 77.0), ("second", 78.0))
        ]
        split = SplitConfig(block_px=96, buffer_px=16, val=0.2, test=0.3) if held_out else None
        plan = PlanConfig(size_px=CHIP_PX, split=split, min_valid_fraction=0.2)
        recipe = Recipe("made-up", regions, Pixels(sensor), Labels())
        return build(recipe, plan, tmp_path / f"{sensor.name}-{held_out}", 42)

    return make


@pytest.fixture
def dataset(make_dataset, sensor):
    return make_dataset(sensor)


@pytest.fixture
def make_run():
    """``make_run(dataset, **of_evaluation)``: the files of a run on it; splits may be replaced."""

    def make(dataset, splits=None, own_dataset=True, provenance=None, epochs=3):
        sensor = dataset.sensor
        there = [split for split, num in dataset.info["splits"].items() if num]
        own = fingerprint(dataset)
        config = Config()
        contract = {
            "schema_version": 1,
            "code_version": "0.1.0",
            "sensor": sensor.to_json(),
            "statistics": dataset.statistics.to_json(),
            "chip_px": CHIP_PX,
            "patch_px": PATCH_PX,
            "mask_ratio": 0.75,
            "nodata": "validity is stored apart",
            "majority_class": 0,
            "class_scheme": dataset.info["class_scheme"],
            "model": {**asdict(config.model), "chip_px": CHIP_PX, "patch_px": PATCH_PX},
            "heads": {
                "pixels": {"weight": 1.0, "options": {"beta": 0.1}},
                "landcover": {"weight": 0.2, "options": {"target": "fraction"}},
            },
            "num_parameters": 803_456,
            "presented": {"chips_per_epoch": 96, "epochs": epochs},
            "dataset": {
                "path": str(dataset.path),
                "fingerprint": own if own_dataset else "0" * 64,
            },
            "attribution": list(dataset.attribution),
        }
        default = {s: {**split_scores(), "per_roi": {"first": split_scores()}} for s in there}
        evaluation = {
            "schema_version": 1,
            "dataset": {"path": str(dataset.path), "fingerprint": own, "name": "made-up"},
            "mask_ratio": 0.75,
            "chip_px": CHIP_PX,
            "patch_px": PATCH_PX,
            "metrics": [metric.model_dump() for metric in DECLARED],
            "bootstrap": {"unit": "block", "resamples": 1000, "level": 0.95},
            "splits": splits or default,
        }
        history = [history_row(epoch, "val" in there) for epoch in range(1, epochs + 1)]
        return RunFiles(
            Contract.model_validate_json(json.dumps(contract)),
            history,
            Evaluation.model_validate_json(json.dumps(evaluation)),
            to_yaml(config),
            Provenance(**provenance or {}),
        )

    return make


@pytest.fixture
def make_example():
    """``make_example(dataset, chip)``: a chip with a mask, a poor reconstruction and a copy."""

    def make(dataset, chip=0):
        row = dataset.chips.iloc[chip]
        sensor = dataset.sensor
        rng = np.random.default_rng(chip)
        image = dataset.image(chip).astype(np.float32) * np.float32(sensor.scale)
        image = image + np.float32(sensor.offset)
        hidden = np.ones(GRID * GRID, bool)
        hidden[rng.permutation(GRID * GRID)[: GRID * GRID // 4]] = False
        hidden = hidden.reshape(GRID, GRID)
        true = rng.integers(0, 6, (GRID, GRID)).astype(np.uint8)
        true[0, 0] = 255
        predicted = np.where(rng.random((GRID, GRID)) < 0.7, np.minimum(true, 7), 2)
        return Example(
            f"{row['region']}/{row['row']}/{row['col']}",
            str(row["region"]),
            str(row["split"]),
            image,
            dataset.valid(chip),
            dataset.landcover(chip),
            hidden,
            true,
            image * np.float32(0.9),
            image[:, ::-1],
            (
                Made(
                    Layer("land cover", 8, classes=BHARATEO_CLASSES),
                    true,
                    predicted.astype(np.uint8),
                    np.full((GRID, GRID), 3, np.uint8),
                ),
            ),
        )

    return make
