"""Small files that look like WorldCover tiles: full size and blocks, few of them written."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.windows import Window

TILE_PX = 36000
BLOCK_PX = 1024
NATIVE_CODES = (10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 100)


def patchy_codes(
    height: int, width: int, seed: int = 0, codes: tuple[int, ...] = NATIVE_CODES
) -> np.ndarray:
    """Native codes in irregular fields of some ten pixels, uint8 (row, col)."""
    rng = np.random.default_rng(seed)
    coarse = rng.choice(codes, size=(height // 12 + 3, width // 12 + 3))
    rows, cols = np.mgrid[:height, :width]
    rows = rows // 12 + rng.integers(0, 2, (height, width), dtype=np.int8)
    cols = cols // 12 + rng.integers(0, 2, (height, width), dtype=np.int8)
    return coarse[rows, cols].astype(np.uint8)


def key(tile: str, year: int = 2021) -> str:
    """The bucket's own key of a tile."""
    version = {2020: "v100", 2021: "v200"}[year]
    return f"{version}/{year}/map/ESA_WorldCover_10m_{year}_{version}_{tile}_Map.tif"


def corner(tile: str) -> tuple[int, int]:
    """(west, south) in degrees of a tile name."""
    south = int(tile[1:3]) * (1 if tile[0] == "N" else -1)
    return int(tile[4:7]) * (1 if tile[3] == "E" else -1), south


def write_tile(
    root: Path, tile: str, parts: dict[tuple[int, int], np.ndarray], year: int = 2021
) -> Path:
    """Write a 36000 x 36000 tile with ``parts``: (row, col) in the tile -> native codes there.

    Blocks that nothing is written to take no space and read as nodata. The tiles of a mirror are
    all that there are: its list of tiles is written anew, and the rest of the world is sea.
    """
    path = root / key(tile, year)
    path.parent.mkdir(parents=True, exist_ok=True)
    west, south = corner(tile)
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        width=TILE_PX,
        height=TILE_PX,
        count=1,
        dtype="uint8",
        nodata=0,
        crs="EPSG:4326",
        transform=Affine(1 / 12000, 0, west, 0, -1 / 12000, south + 3),
        tiled=True,
        blockxsize=BLOCK_PX,
        blockysize=BLOCK_PX,
        compress="deflate",
        SPARSE_OK="TRUE",
    ) as dataset:
        for (row, col), codes in parts.items():
            dataset.write(codes, 1, window=Window(col, row, codes.shape[1], codes.shape[0]))
    write_grid(root, tiles_at(root, year), year)
    return path


GRIDS = {2020: "v100/2020/esa_worldcover_2020_grid.geojson",
         2021: "v200/2021/esa_worldcover_grid.geojson"}  # fmt: skip


def write_grid(root: Path, tiles: Iterable[str], year: int = 2021) -> Path:
    """Write the product's list of tiles, as the bucket holds it: all others are sea."""
    features = []
    for tile in sorted(tiles):
        west, south = corner(tile)
        ring = [[west + x, south + y] for x, y in ((0, 0), (3, 0), (3, 3), (0, 3), (0, 0))]
        features.append({"type": "Feature", "properties": {"ll_tile": tile},
                         "geometry": {"type": "Polygon", "coordinates": [ring]}})  # fmt: skip
    path = root / GRIDS[year]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


def tiles_at(root: Path, year: int = 2021) -> list[str]:
    """The tiles that a mirror holds."""
    return [path.stem.split("_")[-2] for path in (root / key("*", year)).parent.glob("*_Map.tif")]


def block_bytes(path: Path, row: int, col: int, height: int, width: int) -> list[int]:
    """Compressed sizes of the stored blocks under a window."""
    with rasterio.open(path) as dataset:
        sizes = [
            dataset.get_tag_item(f"BLOCK_SIZE_{x}_{y}", "TIFF", bidx=1)
            for y in range(row // BLOCK_PX, (row + height - 1) // BLOCK_PX + 1)
            for x in range(col // BLOCK_PX, (col + width - 1) // BLOCK_PX + 1)
        ]
    return [int(size) for size in sizes if size]


def real_mirror() -> Path:
    """The folder of real WorldCover tiles; skips the test where there is none."""
    beside = Path(__file__).parents[2] / "shared" / "data"
    mirror = Path(os.environ.get("BHARATEO_TEST_DATA", beside)) / "worldcover-mirror"
    if not mirror.is_dir():
        pytest.skip(f"no real pixels: {mirror} does not exist (set BHARATEO_TEST_DATA)")
    return mirror
