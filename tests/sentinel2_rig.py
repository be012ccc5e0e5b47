"""Small Sentinel-2 worlds: scenes and labels on loopback servers, and what must come of them.

A world lies at 78 E, where UTM zones 43 and 44 and the WorldCover tiles N27E075 and N27E078 meet.
Blocks of 256 px stand for those of 1024.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyproj
import rasterio
from rasterio.enums import Resampling
from rasterio.warp import reproject
from rasterio.windows import Window

from bharateo.chips.store import Dataset
from bharateo.landcover import WORLDCOVER
from bharateo.sources.sentinel2 import VALID_SCL
from bharateo.verbs.cli import main
from l2a_scenes import (
    BANDS,
    BANDS_20M,
    SceneFiles,
    at_20m,
    codes_under,
    made_up_scene,
    made_up_scl,
    write_scene,
)
from range_server import RangeServer
from stac_server import StacServer
from worldcover_tiles import TILE_PX, key

PRESET = Path(__file__).parents[1] / "configs" / "sentinel2-10band.yaml"

PLAN = {
    "data.plan.size_px": 64,
    "data.plan.chips_per_block": 4,
    "data.plan.unit_blocks": "[2,2]",
    "data.plan.split": "{block_px: 256, buffer_px: 32, val: 0.1, test: 0.2}",
    "data.sentinel2.seasons": "[]",
}
"""Units of 512 px, each of four blocks."""

ROI = "border=77.9362,28.574,78.085,28.616"
"""Two units in zone 43 and two in zone 44, less the strip that the other zone has."""

WEST_ROI = "west=77.9362,28.574,77.999,28.616"
"""The part in zone 43."""

UNIT_PX = 512
SHAPE = (UNIT_PX, 2 * UNIT_PX)
ZONES = {32643: "43RGM", 32644: "44RKS"}
CORNERS = {32643: (787000, 3169320), 32644: (205100, 3169320)}
"""Upper left (x, y) of the two units in each zone: whole units from the tile's own corner."""

BAD_SCL = (0, 1, 3, 8, 9, 10)
_BAD_PX = 12
"""Side of the little clouds, in pixels of 20 m."""


# One acquisition, and its ground truth


@dataclass(frozen=True)
class Acquisition:
    """A scene on disk with the reflectance and scene classes that were put into it."""

    files: SceneFiles
    reflectance: np.ndarray
    scl: np.ndarray

    @cached_property
    def truth(self) -> np.ndarray:
        """Reflectance x 10000 at 10 m as a dataset must hold it, uint16 (band, row, col)."""
        bands = zip(BANDS, self.reflectance, strict=True)
        return np.stack([self._at_10m(v) if band in BANDS_20M else v for band, v in bands])

    def expected(self, bands: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """What must come of some bands: reflectance, and where it is valid."""
        truth = self.truth[[BANDS.index(band) for band in bands]]
        land = np.isin(self.scl, VALID_SCL).repeat(2, axis=0).repeat(2, axis=1)
        return truth, land & (truth > 0).all(axis=0)

    def _at_10m(self, values: np.ndarray) -> np.ndarray:
        """GDAL's own bilinear interpolation of the whole band."""
        out = np.zeros_like(values)
        grids = self.files.geobox_20m, self.files.geobox
        reproject(
            at_20m(values), out, src_nodata=0, dst_nodata=0, resampling=Resampling.bilinear,
            **{f"{end}_transform": g.affine for end, g in zip(("src", "dst"), grids, strict=True)},
            **{f"{end}_crs": str(g.crs) for end, g in zip(("src", "dst"), grids, strict=True)},
        )  # fmt: skip
        return out

    def window(self, chip: Any) -> tuple[slice, slice]:
        """Rows and columns of the scene under a chip (a row of the table)."""
        affine = self.files.geobox.affine
        row, col = round((affine.f - chip.y) / 10), round((chip.x - affine.c) / 10)
        return slice(row, row + chip.size_px), slice(col, col + chip.size_px)


def acquire(
    folder: Path,
    name: str,
    ground: tuple[np.ndarray, np.ndarray],
    *,
    epsg: int = 32643,
    corner: tuple[float, float] | None = None,
    cloud_over: tuple[slice, slice] = (slice(0), slice(0)),
    **options: Any,
) -> Acquisition:
    """Write a scene of a ground (reflectance, codes); ``options`` are those of ``write_scene``.

    Little fields of bad scene classes lie all over it, and a cloud over some rows and columns.
    """
    scl = _with_bad_fields(made_up_scl(*ground))
    rows, cols = (slice(part.start // 2 if part.start else 0, part.stop // 2)
                  for part in cloud_over)  # fmt: skip
    scl[rows, cols] = 9
    options = {
        "when": "2021-02-03T05:30:00Z", "baseline": "03.01", "dn_offset": 0, "cloud_cover": 3.0,
        "flag": True, "block_px": 256, **options,
    }  # fmt: skip
    files = write_scene(
        folder / "s2", name, epsg=epsg, corner=corner or CORNERS[epsg], reflectance=ground[0],
        scl=scl, **options,
    )  # fmt: skip
    return Acquisition(files, ground[0], scl)


def _with_bad_fields(scl: np.ndarray, share: float = 0.04) -> np.ndarray:
    rng = np.random.default_rng(5)
    fields = rng.choice(BAD_SCL, [size // _BAD_PX + 1 for size in scl.shape]).astype(np.uint8)
    bad = rng.random(fields.shape) < share
    bad, fields = (np.kron(each, np.ones((_BAD_PX, _BAD_PX), each.dtype))[
        : scl.shape[0], : scl.shape[1]] for each in (bad, fields))  # fmt: skip
    return np.where(bad, fields, scl)


def other(scene: SceneFiles, name: str, **changes: Any) -> SceneFiles:
    """A scene that only the catalogue knows: fetching it would fail."""
    return replace(scene, name=name, **changes)


def ground_with_holes(
    seed: int, codes: np.ndarray | None = None, shape: tuple[int, int] = SHAPE
) -> tuple[np.ndarray, np.ndarray]:
    """A made-up ground with holes that hold no data, in all bands or just one."""
    reflectance, codes = made_up_scene(shape, seed, codes=codes)
    reflectance[:, 101:118, 140:157] = 0
    reflectance[7, 300:305, 60:90] = 0
    reflectance[2, 400:403, 333:340] = 0
    return reflectance, codes


# A world of them


@dataclass
class World:
    """Scenes under ``folder``/s2 and labels under ``folder``/wc."""

    folder: Path
    acquisitions: list[Acquisition]
    unread: list[SceneFiles] = field(default_factory=list)
    labels: Path = Path()
    """The WorldCover root; ``folder``/wc if not given."""

    def __post_init__(self) -> None:
        if self.labels == Path():
            self.labels = self.folder / "wc"

    def scene(self, name: str) -> Acquisition:
        """The acquisition of an item."""
        return next(each for each in self.acquisitions if each.files.name == name)

    def items(self, url: str) -> list[dict[str, Any]]:
        """All items, with the files at ``url``."""
        scenes = [*(each.files for each in self.acquisitions), *self.unread]
        return [scene.item(url) for scene in scenes]

    def write_labels(self, *codes: np.ndarray) -> None:
        """Write the WorldCover tiles under the first scenes."""
        geoboxes = [each.files.geobox for each in self.acquisitions[: len(codes)]]
        for tile in codes_under(self.labels, geoboxes, codes):
            add_overview(tile)


def add_overview(tile: Path) -> None:
    """Give a WorldCover tile the overview that a plan looks at, as all real tiles have."""
    options = {"SPARSE_OK_OVERVIEW": "YES", "GDAL_TIFF_OVR_BLOCKSIZE": "1024"}
    with rasterio.Env(GDAL_CACHEMAX=2**28, **options), rasterio.open(tile, "r+") as dataset:
        dataset.build_overviews([32], Resampling.nearest)


def two_zone_world(folder: Path) -> World:
    """One scene on each side of 78 E, with holes and little clouds."""
    grounds = [ground_with_holes(seed) for seed in (1, 2)]
    world = World(folder, [
        acquire(folder, f"S2A_{name}_20210203", ground, epsg=epsg, mgrs=name)
        for (epsg, name), ground in zip(ZONES.items(), grounds, strict=True)
    ])  # fmt: skip
    world.write_labels(*(codes for _, codes in grounds))
    return world


@dataclass
class Served:
    """A world behind its two servers."""

    world: World
    files: RangeServer
    catalogue: StacServer
    settings: dict[str, Any]

    def build(self, output: Path, *more: str, **settings: Any) -> list[str]:
        """The command line of a build; ``settings`` have ``__`` where the key has a dot."""
        keys = {name.replace("__", "."): value for name, value in settings.items()}
        return build_command(output, {**self.settings, **keys}, *more)


@contextmanager
def served(
    world: World, labels_over_http: bool = False, rule: str = "earth-search", **settings: Any
) -> Iterator[Served]:
    """Serve a world, and say how it is built from."""
    mounts = {"s2": world.folder / "s2", "wc": world.labels}
    with (
        RangeServer(world.folder, mounts=mounts) as files,
        StacServer(world.items(f"{files.url}/s2")) as catalogue,
    ):
        keys = {name.replace("__", "."): value for name, value in settings.items()}
        root = f"{files.url}/wc" if labels_over_http else world.labels
        yield Served(world, files, catalogue, {
            "data.sentinel2.catalogue": f"{rule}={catalogue.url}" if rule else catalogue.url,
            "data.worldcover_root": root,
            **PLAN,
            **keys,
        })  # fmt: skip


def build_command(output: Path, settings: Mapping[str, Any], *more: str) -> list[str]:
    """``bharateo build`` of the preset with some settings, by this process alone if not said."""
    sets = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    roi = () if "--roi" in more or "--aoi" in more else ("--roi", ROI)
    workers = () if "--workers" in more or "--scheduler" in more else ("--workers", "1")
    return ["build", str(PRESET), "--output", str(output), *roi, *workers, *sets, *more]


def done(command: list[str]) -> bool:
    """Whether a command succeeds."""
    return main(command) == 0


# What a dataset must hold


def check_chips(dataset: Dataset, world: World) -> None:
    """Every chip holds its scene's reflectance and validity, and zeros where it is not valid."""
    expected = {each.files.name: each.expected(dataset.sensor.band_names)
                for each in world.acquisitions}  # fmt: skip
    for chip in dataset.chips.itertuples():
        rows, cols = world.scene(chip.scene).window(chip)
        truth, valid = (part[..., rows, cols] for part in expected[chip.scene])
        np.testing.assert_array_equal(dataset.valid(chip.chip), valid)
        np.testing.assert_array_equal(dataset.image(chip.chip), np.where(valid, truth, 0))
        assert chip.valid_fraction == valid.mean() >= 0.9


def check_labels(dataset: Dataset, root: Path) -> None:
    """Every pixel holds the class of the WorldCover pixel that its centre lies in."""
    epsg = {region["name"]: region["crs"] for region in dataset.info["regions"]}
    for chip in dataset.chips.itertuples():
        native, clear = native_under(root, epsg[chip.region], chip)
        expected = WORLDCOVER.collapse(native)
        np.testing.assert_array_equal(dataset.landcover(chip.chip)[clear], expected[clear])


def native_under(root: Path, crs: str, chip: Any) -> tuple[np.ndarray, np.ndarray]:
    """The native code at every pixel's centre, and where that is far from another pixel.

    Nearest neighbour by pyproj and whole numbers: nothing of what the package uses.
    """
    inverse = pyproj.Transformer.from_crs(crs, "EPSG:4326", always_xy=True)
    steps = 10 * (np.arange(chip.size_px) + 0.5)
    lon, lat = inverse.transform(*np.meshgrid(chip.x + steps, chip.y - steps))
    col, row = (lon + 180) * 12000, (90 - lat) * 12000
    clear = np.minimum(col % 1, row % 1) > 0.02
    clear &= np.maximum(col % 1, row % 1) < 0.98
    return _codes_at(root, row.astype(np.int64), col.astype(np.int64)), clear


def _codes_at(root: Path, row: np.ndarray, col: np.ndarray) -> np.ndarray:
    """Codes at pixels of the globe, 0 where there is no tile."""
    codes = np.zeros(row.shape, np.uint8)
    tiles = np.unique(np.stack([row, col]).reshape(2, -1) // TILE_PX, axis=1).T * TILE_PX
    for top, left in tiles.tolist():
        south, west = 87 - top // 12000, left // 12000 - 180
        name = f"{'NS'[south < 0]}{abs(south):02d}{'EW'[west < 0]}{abs(west):03d}"
        here = (row // TILE_PX == top // TILE_PX) & (col // TILE_PX == left // TILE_PX)
        rows, cols = row[here] - top, col[here] - left
        with rasterio.open(root / key(name)) as tile:
            first = int(rows.min()), int(cols.min())
            size = int(rows.max()) + 1 - first[0], int(cols.max()) + 1 - first[1]
            part = tile.read(1, window=Window(first[1], first[0], size[1], size[0]))
        codes[here] = part[rows - first[0], cols - first[1]]
    return codes


def shards(contents: Mapping[str, bytes]) -> dict[str, bytes]:
    """The pixels among a dataset's files."""
    return {name: data for name, data in contents.items() if name.endswith(".npy")}
