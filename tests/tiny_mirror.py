"""A WorldCover root of one tile with made-up codes under two small places, and a configuration."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bharateo.regions import parse_roi, tile_windows, worldcover_window
from worldcover_tiles import patchy_codes, write_tile

HOME = "home=77.23,28.61,240"
AWAY = "away=76.10,27.90,240"
CODES = (10, 20, 40, 50, 80)

CONFIG = f"""
data:
  rois: ["{HOME}"]
  plan:
    size_px: 48
    split: {{block_px: 60, buffer_px: 8, val: 0.2, test: 0.3}}
model: {{name: v0, chip_px: 32, patch_px: 8, width: 16, depth: 1, num_heads: 2,
  decoder_width: 16, decoder_depth: 1, decoder_num_heads: 2}}
training: {{epochs: 1, batch_size: 16, precision: fp32, warmup_epochs: 0.5}}
"""


def write_mirror(root: Path, codes: tuple[int, ...] = CODES, roi: str = HOME) -> Path:
    """Write the tile; ``codes`` lie under ``roi``, the usual ones under the other place."""
    parts: dict[tuple[int, int], np.ndarray] = {}
    for place in (HOME, AWAY):
        (part,) = tile_windows(worldcover_window(parse_roi(place)))
        of_place = codes if place == roi else CODES
        parts[part.row, part.col] = patchy_codes(part.height, part.width, codes=of_place)
    return write_tile(root, part.tile, parts)


def write_config(folder: Path, text: str = CONFIG) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "tiny.yaml"
    file.write_text(text)
    return file
