"""A dataset folder of noise for timing: the real format, no raster package, nothing to download."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np

from bharateo import __version__
from bharateo.chips.statistics import Statistics
from bharateo.chips.store import (
    CHIPS_FILE,
    DATASET_FILE,
    LAYERS,
    SCHEMA_VERSION,
    Dataset,
    shard_file,
    write_array,
)
from bharateo.landcover import BHARATEO_CLASSES, NUM_CLASSES, WORLDCOVER
from bharateo.sensor import SENTINEL2_L2A, Sensor

SHARD_CHIPS = 190
"""Of ten bands and 128 px: 64 MB, as the builder makes them."""


def generated_dataset(
    folder: Path, num_chips: int, size_px: int = 128, sensor: Sensor = SENTINEL2_L2A
) -> Dataset:
    """Chips of noise, all valid, all in the train split."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(0)
    shapes = {
        "image": (sensor.num_bands, size_px, size_px),
        "landcover": (size_px, size_px),
        "valid": (size_px, -(-size_px // 8)),
    }
    dtypes = {"image": sensor.dtype, "landcover": "uint8", "valid": "uint8"}
    shards = []
    for shard, start in enumerate(range(0, num_chips, SHARD_CHIPS)):
        num = min(SHARD_CHIPS, num_chips - start)
        arrays = {
            "image": rng.integers(0, 255, (num, *shapes["image"]), sensor.dtype),
            "landcover": rng.integers(0, NUM_CLASSES, (num, *shapes["landcover"]), np.uint8),
            "valid": np.full((num, *shapes["valid"]), 255, np.uint8),
        }
        files = {name: write_array(folder / shard_file(name, shard), arrays[name]).model_dump()
                 for name in LAYERS}  # fmt: skip
        shards.append({"num_chips": num, **files})
    bands = np.ones(sensor.num_bands)
    info = {
        "schema_version": SCHEMA_VERSION,
        "code_version": __version__,
        "name": "noise",
        "sensor": sensor.to_json(),
        "class_scheme": {
            "name": WORLDCOVER.name,
            "classes": [asdict(land_class) for land_class in BHARATEO_CLASSES],
            "native": {str(code): list(meaning) for code, meaning in WORLDCOVER.native.items()},
            "nodata": WORLDCOVER.nodata,
        },
        "statistics": Statistics(0.01 * bands, 0.01 * bands, num_chips * size_px**2).to_json(),
        "chip": {"size_px": size_px, "num_chips": num_chips},
        "layers": {
            name: {"dtype": dtypes[name], "shape_per_chip": list(shapes[name])} for name in LAYERS
        },
        "splits": {"train": num_chips, "val": 0, "test": 0},
        "regions": [
            {
                "name": "nowhere",
                "crs": "EPSG:32643",
                "transform": [10, 0, 400_000, 0, -10, 3_000_000],
                "shape": [size_px, size_px],
                "native_counts": {"10": 1},
            }
        ],
        "attribution": [],
        "shards": shards,
    }
    pq.write_table(pa.table({"split": ["train"] * num_chips}), folder / CHIPS_FILE)
    (folder / DATASET_FILE).write_text(json.dumps(info))
    return Dataset.open(folder)
