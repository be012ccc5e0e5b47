"""HLS chips with WorldCover labels as GeoTIFFs, a label raster and a configuration for them.

The chips are an .npz: ``x`` (chip, band, row, col) int16, surface reflectance x 10000 of
harmonised Landsat and Sentinel-2 in ``bands`` (by their common names), ``worldcover`` codes and the
``fmask`` of HLS on the same grid, and ``group``: chips of one group overlap on the ground.

They come without a georeference. **The places written here are made up**: every group lies in a
block of its own, its chips side by side, far from the next group, so that no split shares ground
with another. Nothing that is told of places means anything. Clouds and their shadows become nodata
by the mask; coastal blue, which the ten bands of Sentinel-2 do not have, is left out.

    python benchmarks/hls.py CHIPS.npz FOLDER
    bharateo build FOLDER/hls.yaml --output FOLDER/dataset
    bharateo pretrain FOLDER/hls.yaml --dataset FOLDER/dataset --output FOLDER/run
    bharateo probe FOLDER/run
    bharateo probe FOLDER/run --bands rgb --output FOLDER/rgb.json
"""

from __future__ import annotations

import argparse
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine

BANDS = {"blue": "B02", "green": "B03", "red": "B04", "nir": "B08", "swir1": "B11", "swir2": "B12"}
"""Common names, and those of the Sentinel-2 bands nearest to them."""

PIXEL_M, GAP_PX = 30, 128
CRS, WEST, NORTH = "EPSG:32643", 300_000, 3_300_000
"""Somewhere in India; see above."""

HIDDEN = 0b1010
"""Bits of HLS's Fmask: cloud, cloud shadow. Source: HLS v2.0 user guide, table 9."""

CONFIG = """\
# Written by benchmarks/hls.py: chips of 30 m in six bands; their places are made up.
data:
  source: geotiff
  rois: []
  geotiff:
    path: {folder}/chips
    title: HLS surface reflectance
    bands:
      B02: {{band: 1, resolution_m: 30, wavelength_nm: 482}}
      B03: {{band: 2, resolution_m: 30, wavelength_nm: 561.5}}
      B04: {{band: 3, resolution_m: 30, wavelength_nm: 654.5}}
      B08: {{band: 4, resolution_m: 30, wavelength_nm: 865}}
      B11: {{band: 5, resolution_m: 30, wavelength_nm: 1608.5}}
      B12: {{band: 6, resolution_m: 30, wavelength_nm: 2200.5}}
    scale: 0.0001
    offset: 0
    unit: surface reflectance
    composites: {{true colour: [B04, B03, B02], false colour: [B08, B04, B03]}}
    display_range: [0, 0.3]
    labels: {folder}/labels.tif
  plan:
    strategy: files
    size_px: 128
    split: {{block_px: {block_px}, buffer_px: 32, val: 0.15, test: 0.3}}
model:
  name: v0
  chip_px: 112
  embedding: energies
  mask_ratio: 0.5
  width: 128
  depth: 4
  num_heads: 4
  decoder_width: 96
  decoder_depth: 1
  decoder_num_heads: 4
  band_sets: {{rgb: [rgb], rgbn: [rgbn], liss: [liss]}}
heads:
  pixels: {{weight: 1.0, options: {{beta: 0.03}}}}
  landcover: {{weight: 1.0, options: {{target: fraction, encoder: 1.0}}}}
training:
  epochs: 60
  batch_size: 32
  lr: 0.002
  warmup_epochs: 3
  weight_decay: 0.3
  jitter: 0.1
"""


def write_folder(chips: Path, folder: Path) -> int:
    """Write chips, labels and ``hls.yaml`` into a folder; how many chips."""
    with np.load(chips) as stored:
        names = stored["bands"].tolist()
        image = stored["x"][:, [names.index(name) for name in BANDS]]
        codes, fmask, group = stored["worldcover"], stored["fmask"], stored["group"]
    side = image.shape[-1]
    members: dict[Any, list[int]] = defaultdict(list)
    for chip, each in enumerate(group.tolist()):
        members[each].append(chip)
    per_row = math.ceil(math.sqrt(max(map(len, members.values()))))
    block_px = per_row * side + GAP_PX
    blocks = math.ceil(math.sqrt(len(members)))
    labels = np.zeros((blocks * block_px, blocks * block_px), np.uint8)
    grid = Affine(PIXEL_M, 0, WEST, 0, -PIXEL_M, NORTH)
    profile = {"driver": "GTiff", "crs": CRS, "nodata": 0, "compress": "deflate"}
    (folder / "chips").mkdir(parents=True, exist_ok=True)
    for number, (name, some) in enumerate(sorted(members.items())):
        for place, chip in enumerate(some):
            row, col = (
                block_px * block + GAP_PX // 2 + side * within
                for block, within in zip(
                    divmod(number, blocks), divmod(place, per_row), strict=True
                )
            )
            labels[row : row + side, col : col + side] = codes[chip]
            # 0 is nodata; reflectance at or below 0, which noise over water makes, is least of all
            pixels = np.clip(image[chip], 1, None).astype(np.uint16)
            pixels[:, (fmask[chip] & HIDDEN) > 0] = 0
            with rasterio.open(
                folder / "chips" / f"{name}-{place}.tif", "w", count=len(BANDS), height=side,
                width=side, dtype="uint16", transform=grid @ Affine.translation(col, row),
                **profile,
            ) as file:  # fmt: skip
                file.write(pixels)
                file.descriptions = list(BANDS.values())
    with rasterio.open(
        folder / "labels.tif", "w", count=1, height=labels.shape[0], width=labels.shape[1],
        dtype="uint8", transform=grid, tiled=True, **profile,
    ) as file:  # fmt: skip
        file.write(labels[None])
    (folder / "hls.yaml").write_text(CONFIG.format(folder=folder.absolute(), block_px=block_px))
    return len(image)


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("chips", type=Path)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    num = write_folder(options.chips, options.folder)
    print(f"{num} chips in {options.folder}; next: bharateo build {options.folder}/hls.yaml "
          f"--output {options.folder}/dataset")  # fmt: skip


if __name__ == "__main__":
    main()
