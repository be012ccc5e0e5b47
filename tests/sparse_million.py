"""Datasets of any number of chips that take no disk: a real index over shards that are holes.

Ten bands of 128 px in uint16, as Sentinel-2 has them: a million chips are 5,129 shards a layer.
"""

from __future__ import annotations

import json
import tempfile
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bharateo.chips.build import SHARD_BYTES
from bharateo.chips.store import CHIPS_FILE, DATASET_FILE, LAYERS, StoredLayer, shard_file
from bharateo.config import PlanConfig, SplitConfig
from small_datasets import many_bands, small_dataset

_PLAN = PlanConfig(
    size_px=128, min_valid_fraction=0.2, split=SplitConfig(block_px=140, buffer_px=8)
)
_ROWS_AT_ONCE = 20_000


def sparse_dataset(folder: Path, num_chips: int = 1_000_000) -> Path:
    """A folder that opens as a dataset; its chips are zeros, its table a small one's again and
    again.
    """
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as small:
        pattern = small_dataset(Path(small) / "d", many_bands(10), _PLAN, 1400)
        table, layers = pq.read_table(pattern.path / CHIPS_FILE), pattern.layers
    most = SHARD_BYTES // layers["image"].record_bytes
    sizes = [min(most, num_chips - start) for start in range(0, num_chips, most)]
    shards = [
        {"num_chips": size, **{name: _hole(folder, name, shard, size, layers[name])
                               for name in LAYERS}}
        for shard, size in enumerate(sizes)
    ]  # fmt: skip
    _write_table(folder / CHIPS_FILE, table, sizes)
    chip = {**pattern.info["chip"], "num_chips": num_chips}
    info = {**pattern.info, "chip": chip, "shards": shards}
    (folder / DATASET_FILE).write_text(json.dumps(info))
    return folder


def _hole(folder: Path, name: str, shard: int, size: int, layer: StoredLayer) -> dict[str, Any]:
    """A shard with a header and no data, and its entry."""
    file = folder / shard_file(name, shard)
    with file.open("wb") as out:
        np.lib.format.write_array_header_1_0(
            out,
            {"descr": layer.dtype.str, "fortran_order": False, "shape": (size, *layer.shape)},
        )
        num_bytes = out.tell() + size * layer.record_bytes
        out.truncate(num_bytes)
    return {"file": file.name, "bytes": num_bytes, "sha256": "0" * 64}


def _write_table(file: Path, table: pa.Table, sizes: list[int]) -> None:
    ends = np.array([*accumulate(sizes)])
    with pq.ParquetWriter(file, table.schema) as writer:
        for start in range(0, ends[-1], _ROWS_AT_ONCE):
            chip = np.arange(start, min(start + _ROWS_AT_ONCE, ends[-1]))
            shard = np.searchsorted(ends, chip, side="right")
            own = {
                "chip": chip,
                "shard": shard,
                "shard_row": chip - (ends - sizes)[shard],
            }
            rows = table.take(chip % len(table))
            for name, values in own.items():
                rows = rows.set_column(rows.schema.get_field_index(name), name, pa.array(values))
            writer.write_table(rows)
