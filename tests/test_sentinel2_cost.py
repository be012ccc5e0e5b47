"""What a Sentinel-2 build costs at full block size, 8 chips a block: bytes, requests, memory."""

import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox

from bharateo.chips.store import Dataset
from l2a_scenes import BANDS, BANDS_20M, SceneFiles, made_up_scene, made_up_scl
from range_server import Request
from sentinel2_rig import World, add_overview, other, served
from worldcover_tiles import NATIVE_CODES, block_bytes, corner, key, patchy_codes, write_tile

pytestmark = pytest.mark.slow

BLOCK_PX = 1024
SHAPE = (4 * BLOCK_PX, 8 * BLOCK_PX)
CORNER = (699960, 3179560)
"""Two units below the corner of tile 43RGM."""

ROI = ("--roi", "plain=77.06,28.35,77.87,28.715")
TILE = "N27E075"
PLAN = {
    "data.plan.size_px": 128,
    "data.plan.chips_per_block": 8,
    "data.plan.unit_blocks": "[2,4]",
    "data.plan.split": f"{{block_px: {BLOCK_PX}, buffer_px: 32, val: 0.1, test: 0.2}}",
}
"""The preset's own, which the small worlds leave."""

PEAK = """
import resource, subprocess, sys
done = subprocess.run([sys.executable, "-m", "bharateo", *sys.argv[1:]], stdout=sys.stderr)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(done.returncode)
"""


@dataclass
class Build:
    """A finished build: what was asked of the server, and the most memory of one process."""

    dataset: Dataset
    gets: list[Request]
    peak_bytes: int


def write_band(path: Path, values: np.ndarray, geobox: GeoBox) -> None:
    """Write a COG quickly, its block repeated all over; deflate cannot see so far."""
    path.parent.mkdir(parents=True, exist_ok=True)
    times = [-(-size // part) for size, part in zip(geobox.shape, values.shape, strict=True)]
    with rasterio.open(
        path, "w", driver="COG", height=geobox.shape[0], width=geobox.shape[1], count=1,
        dtype=values.dtype, nodata=0, crs="EPSG:32643", transform=geobox.affine,
        blocksize=BLOCK_PX, compress="deflate", level=1, predictor="standard", overviews="NONE",
        num_threads=2,
    ) as dataset:  # fmt: skip
        dataset.write(np.tile(values, times), 1)


def write_scene(folder: Path) -> SceneFiles:
    """A scene of 32 blocks without a cloud."""
    grid = GeoBox(SHAPE, Affine(10, 0, CORNER[0], 0, -10, CORNER[1]), "EPSG:32643")
    when = datetime(2021, 2, 3, 5, 30, tzinfo=UTC)
    files = SceneFiles(folder, "PLAIN", grid, when, "03.01", 3.0, True, "earth-search", "43RGM")
    reflectance, codes = made_up_scene((BLOCK_PX, BLOCK_PX), seed=1)
    for band, values in zip(BANDS, reflectance, strict=True):
        write_band(files.path(band), values, files.geobox_20m if band in BANDS_20M else grid)
    write_band(files.path("SCL"), made_up_scl(reflectance, codes), files.geobox_20m)
    return files


def write_labels(root: Path) -> None:
    """The tile under the scene."""
    codes = patchy_codes(BLOCK_PX, BLOCK_PX, codes=NATIVE_CODES)
    first_row, first_col = 15 * BLOCK_PX, 24 * BLOCK_PX
    path = write_tile(root, TILE, {(first_row, first_col): np.tile(codes, (6, 11))})
    add_overview(path)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    files = write_scene(folder / "s2")
    write_labels(folder / "wc")
    return World(folder, [], [files])


def build(world: World, output: Path, seasons: str = "[]") -> Build:
    """Build in processes of its own: two that read, and theirs."""
    with served(world, labels_over_http=True) as rig:
        rig.settings.update(PLAN)
        command = rig.build(output, *ROI, "--workers", "2", data__sentinel2__seasons=seasons)
        ended = subprocess.run([sys.executable, "-c", PEAK, *command], capture_output=True)
        assert ended.returncode == 0, ended.stderr.decode()
        unit = 1 if sys.platform == "darwin" else 1024
        return Build(Dataset.open(output), rig.files.gets, unit * int(ended.stdout))


@pytest.fixture(scope="module")
def built(plain, tmp_path_factory):
    return build(plain, tmp_path_factory.mktemp("built") / "dataset")


def block_bytes_under(path: Path, windows: np.ndarray) -> int:
    """Compressed size of all blocks of a file under some windows (row, col, height, width)."""
    blocks = {
        (y, x)
        for row, col, height, width in windows.tolist()
        for y in range(row // BLOCK_PX, (row + height - 1) // BLOCK_PX + 1)
        for x in range(col // BLOCK_PX, (col + width - 1) // BLOCK_PX + 1)
    }
    return sum(sum(block_bytes(path, y * BLOCK_PX, x * BLOCK_PX, 1, 1)) for y, x in blocks)


def scene_bytes(dataset: Dataset, files: SceneFiles) -> int:
    """Compressed size of the blocks of all eleven files that the chips lie in."""
    chips = dataset.chips
    size = chips.size_px.to_numpy()
    row = ((CORNER[1] - chips.y.to_numpy()) / 10).astype(int)
    col = ((chips.x.to_numpy() - CORNER[0]) / 10).astype(int)
    windows = np.stack([row, col, size, size], axis=1)
    return sum(
        block_bytes_under(files.path(band), windows // (2 if band in (*BANDS_20M, "SCL") else 1))
        for band in (*BANDS, "SCL")
    )


def label_bytes(dataset: Dataset, root: Path) -> int:
    """Compressed size of the blocks of the WorldCover tile that the chips lie in."""
    bounds = geopandas.read_parquet(dataset.path / "chips.parquet").bounds
    west, south = corner(TILE)
    first = np.stack([(south + 3 - bounds.maxy), bounds.minx - west], axis=1) * 12000
    last = np.stack([(south + 3 - bounds.miny), bounds.maxx - west], axis=1) * 12000
    windows = np.concatenate([first, np.floor(last) + 1 - np.floor(first)], axis=1)
    return block_bytes_under(root / key(TILE), windows.astype(int))


@pytest.mark.long
def test_little_more_is_fetched_than_the_blocks_that_hold_chips(built, plain):
    needed = scene_bytes(built.dataset, plain.unread[0]) + label_bytes(built.dataset, plain.labels)
    fetched = sum(get.num_bytes for get in built.gets)
    print(f"{fetched / needed:.3f} of {needed / 1e6:.1f} MB needed")
    assert built.dataset.num_chips == 8 * 32
    assert fetched <= 1.15 * needed


def test_a_chip_takes_less_than_half_a_request(built):
    per_chip = len(built.gets) / built.dataset.num_chips
    print(f"{per_chip:.3f} requests a chip, headers and labels included")
    assert per_chip <= 0.4


def test_no_process_needs_more_than_a_gigabyte_and_a_half(built):
    print(f"peak {built.peak_bytes / 1e6:.0f} MB")
    assert built.peak_bytes < 1.5e9


@pytest.mark.long
def test_four_times_the_ground_takes_no_more_memory(built, plain, tmp_path):
    first = plain.unread[0]
    seasons = {f"s{number}": 3 * number - 1 for number in (1, 2, 3, 4)}
    for name in seasons:
        (first.folder / name).symlink_to(first.name)
    four = [other(first, name, when=first.when.replace(month=m)) for name, m in seasons.items()]
    text = ", ".join(f"{name}={m - 1}-{m + 1}" for name, m in seasons.items())
    larger = build(World(plain.folder, [], four), tmp_path / "dataset", f"[{text}]")
    assert larger.dataset.num_chips == 4 * built.dataset.num_chips
    print(f"peak {larger.peak_bytes / 1e6:.0f} MB after {built.peak_bytes / 1e6:.0f} MB")
    assert larger.peak_bytes < 1.25 * built.peak_bytes
