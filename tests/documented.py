"""The commands and snippets that pages show, and a small world in which they can be run.

A page's fenced blocks of ``bash`` and ``python`` run in the page's order, in one folder for all
pages; a command that an earlier page gave is not given again. A block that cannot run has a mark in
the line above it that says why::

    <!-- not run: needs several GPUs -->

A block under ``<!-- file: NAME -->`` is written to that file.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from pyproj import Transformer

from bharateo import config, regions
from bharateo.evaluation.features import extract
from bharateo.evaluation.probes import fit_linear
from bharateo.regions import NAMED_ROIS, Roi, tile_windows, worldcover_window
from bharateo.sensor import SENTINEL2_L2A
from bharateo.verbs.cli import main
from l2a_scenes import made_up_scene, made_up_scl, write_scene
from range_server import RangeServer
from stac_server import StacServer
from worldcover_tiles import patchy_codes, write_tile

ROOT = Path(__file__).parents[1]
RUN = ("bash", "python")
PLACES = (*NAMED_ROIS.values(), Roi("pune", 73.86, 18.52), Roi("jaipur", 75.80, 26.92))
SIDE_PX = 1024
"""Of a place in WorldCover: four blocks of ground, instead of sixteen."""

# Pages


@dataclass(frozen=True)
class Block:
    """A fenced block of a page: its language, its text, and the mark in the line above it."""

    place: str
    language: str
    text: str
    mark: str = ""

    @property
    def not_run(self) -> str:
        """Why the block does not run; empty where it does."""
        return self.mark.removeprefix("not run:").strip() if "not run:" in self.mark else ""

    @property
    def file(self) -> str:
        """The file that the block is written to, if any."""
        return self.mark.removeprefix("file:").strip() if "file:" in self.mark else ""


_BLOCK = re.compile(
    r"^(?:<!-- (?P<mark>[^\n]*?) -->\n)?```(?P<language>[^\n]*)\n(?P<text>.*?)^```$", re.M | re.S
)


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    text, name = page.read_text(), str(page.relative_to(ROOT))
    return [
        Block(f"{name}:{text.count(chr(10), 0, found.start('text'))}", found["language"],
              found["text"], found["mark"] or "")
        for found in _BLOCK.finditer(text)
    ]  # fmt: skip


def commands(block: Block) -> list[list[str]]:
    """The lines of a bash block as words, without comments; continued lines are one."""
    lines = block.text.replace("\\\n", " ").splitlines()
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


def split_at(words: list[str], sign: str) -> tuple[list[str], list[str], list[str]]:
    """What stands before a word, the word, and what stands after it; like ``str.partition``."""
    place = words.index(sign) if sign in words else len(words)
    return words[:place], words[place : place + 1], words[place + 1 :]


def pages() -> list[Path]:
    """README, CONTRIBUTING and the documentation's pages, those first that others go on from."""
    docs = ROOT / "docs"
    found = [p for p in docs.rglob("*.md") if not {"_build", "notebooks", "api"} & {*p.parts}]
    first = [ROOT / "README.md", docs / "tutorial.md", docs / "how-to" / "my-district.md"]
    return [*first, *sorted({*found} - {*first}), ROOT / "CONTRIBUTING.md"]


class Reader:
    """Somebody who types what the pages say, in one folder, and nothing twice."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.given: set[str] = set()
        self.capsys = capsys

    def read(self, page: Path) -> None:
        """Run a page's blocks.

        Raises:
            AssertionError: a command fails; the message holds its place and its last words.
        """
        names: dict[str, object] = {}
        for block in blocks(page):
            if block.file:
                Path(block.file).write_text(block.text)
            elif block.language == "python" and not block.not_run:
                exec(compile(block.text, block.place, "exec"), names)
            elif block.language == "bash" and not block.not_run:
                for words in commands(block):
                    self.type(words, block.place)

    def type(self, words: list[str], place: str) -> None:
        """Give one command, in this process where it is ours."""
        if words == ["make", "demo"]:  # ``test_readme`` checks that it calls this
            words = ["bharateo", "demo"]
        command = shlex.join(words)
        if command in self.given:
            return
        self.given.add(command)
        words, _, into = split_at(words, ">")
        self.capsys.readouterr()
        if words[:2] in (["bharateo", "map"], ["bharateo", "teach"]):
            words = [*words, "--allow", "domain"]  # a few steps of training make nothing familiar
        if words[:2] == ["bharateo", "sample"]:  # a picture takes 50 ms
            words = ["60" if word == "600" else word for word in words]
        if words[0] == "bharateo":
            status = main(words[1:])
        elif words[0] == "source":  # an environment, which this process is in
            status = 0
        elif words[0] == "make":
            status = subprocess.run(["make", "--dry-run", *words[1:]], cwd=ROOT).returncode
        else:
            expanded = [str(Path(word).expanduser()) if word[0] == "~" else word for word in words]
            status = subprocess.run(expanded).returncode
        if words[:2] == ["bharateo", "sample"]:
            label_points(Path(words[words.index("--output") + 1]))
        said = self.capsys.readouterr()
        if into:
            Path(*into).expanduser().write_text(said.out)
        assert status == 0, f"{place}: {command}\n{said.out[-500:]}{said.err}"


# A small world


def write_tiles(root: Path) -> Path:
    """A WorldCover root with generated codes under every place the pages name."""
    parts: dict[str, dict[tuple[int, int], object]] = {}
    codes = patchy_codes(2048, 2048, codes=(10, 40, 50, 80))
    for place in PLACES:
        for part in tile_windows(worldcover_window(place)):
            under = codes[: part.height, : part.width]
            parts.setdefault(part.tile, {})[part.row, part.col] = under
    for tile, windows in parts.items():
        write_tile(root, tile, windows)
    return root


def label_points(points: Path) -> None:
    """Say of nearly all points what the map says, in QGIS's file and in that of the page."""
    labelled = geopandas.read_file(points, layer="points")
    design = geopandas.read_file(points, layer="design").set_index("id")
    says = design["class"].reindex(labelled["id"])
    labelled["label"] = np.where(labelled["id"] % 9, says, says.shift())
    labelled["label"] = labelled["label"].fillna("unsure")
    labelled.to_file(points, layer="points")
    labelled.to_file(points.with_suffix(".geojson"))


@contextmanager
def catalogue(folder: Path):
    """The address of a catalogue with a scene over Pune in 2021 and the same twice in the winter
    of 2024, in Earth Search's manner.
    """
    side = 2400
    x, y = _pune()
    corner = round(x - side * 5, -2), round(y + side * 5, -2)
    reflectance, codes = made_up_scene((side, side))
    scene = write_scene(
        folder, "S2A_pune", epsg=32643, corner=corner, reflectance=reflectance,
        scl=made_up_scl(reflectance, codes), when="2021-02-03T05:40:00Z", baseline="05.00",
        dn_offset=0, cloud_cover=1.0, flag=True,
    )  # fmt: skip
    scenes = [scene]
    for day in (datetime(2024, 12, 5, 5, 40, tzinfo=UTC), datetime(2025, 1, 14, 5, 40, tzinfo=UTC)):
        scenes.append(replace(scene, name=f"S2A_{day:%Y%m%d}", when=day))
        (folder / scenes[-1].name).symlink_to(scene.name)
    with (
        RangeServer(folder) as files,
        StacServer([each.item(files.url) for each in scenes]) as stac,
    ):
        yield f"earth-search={stac.url}"


def _pune() -> tuple[float, float]:
    return Transformer.from_crs("EPSG:4326", "EPSG:32643", always_xy=True).transform(73.86, 18.52)


def write_chips(folder: Path) -> None:
    """Six by six GeoTIFF chips of three bands around Pune."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for row, col in np.ndindex(6, 6):
        corner = Affine(1 / 12000, 0, 73.82 + col * 0.014, 0, -1 / 12000, 18.56 - row * 0.014)
        size = {"width": 128, "height": 128, "count": 3, "dtype": "uint8"}
        with rasterio.open(
            folder / f"{row}-{col}.tif", "w", driver="GTiff", crs="EPSG:4326", transform=corner,
            **size,
        ) as chip:  # fmt: skip
            chip.write(rng.integers(0, 256, (3, 128, 128), np.uint8))


def write_rasters(folder: Path) -> None:
    """A raster of reflectance around Pune, one of radar, a person's points and blocks on them, and
    districts in a file.
    """
    side = 288
    x, y = _pune()
    corner = Affine(10, 0, round(x - side * 5, -2), 0, -10, round(y + side * 5, -2))
    reflectance, _ = made_up_scene((side, side))
    for name, bands, values in (
        ("district.tif", SENTINEL2_L2A.band_names, reflectance),
        ("radar.tif", ("VV", "VH"), reflectance[:2] + 2000),
    ):
        with rasterio.open(
            folder / name, "w", driver="GTiff", crs="EPSG:32643", transform=corner, width=side,
            height=side, count=len(bands), dtype="uint16",
        ) as raster:  # fmt: skip
            raster.write(values)
            raster.descriptions = bands
    rows, cols = np.mgrid[24:side:48, 24:side:48].reshape(2, -1)
    points = geopandas.points_from_xy(*(corner @ (cols, rows)), crs="EPSG:32643")
    classes = np.where(cols + rows < side, "fields", "town")
    geopandas.GeoDataFrame({"class": classes}, geometry=points).to_file(folder / "my_points.gpkg")
    halves = [
        shapely.box(*(corner @ (left, 0)), *(corner @ (left + side // 2, side)))
        for left in (0, side // 2)
    ]
    geopandas.GeoDataFrame({"name": ["west", "east"]}, geometry=halves, crs="EPSG:32643").to_file(
        folder / "blocks.gpkg"
    )
    places = shapely.box(73.84, 18.50, 73.88, 18.54), shapely.box(73.88, 18.50, 73.92, 18.54)
    districts = geopandas.GeoDataFrame({"name": ["Pune", "Satara"]}, geometry=[*places], crs=4326)
    districts.to_file(folder / "districts.gpkg")


def make_small(patch: pytest.MonkeyPatch, scenes: str) -> None:
    """Training of a few steps of a small model, on smaller places, with fewer probes."""
    load, parse, set_keys = config.load_config, regions.parse_roi, config.with_settings

    def load_small(path, overrides=()):
        full = load(path, overrides)
        sentinel2 = replace(full.data.sentinel2, catalogue=scenes, seasons=())
        return replace(
            full,
            data=replace(full.data, sentinel2=sentinel2),
            model=replace(
                full.model, width=16, depth=1, num_heads=4,
                decoder_width=16, decoder_depth=1, decoder_num_heads=4,
            ),
            training=replace(
                full.training, epochs=1, warmup_epochs=0.5, chips_per_epoch=32, batch_size=16
            ),
        )  # fmt: skip

    def with_scenes(full, settings):
        full = set_keys(full, settings)
        sentinel2 = replace(full.data.sentinel2, catalogue=scenes)
        return replace(full, data=replace(full.data, sentinel2=sentinel2))

    def parse_small(text):
        roi = parse(text)
        return replace(roi, size_px=min(roi.size_px, SIDE_PX))

    # The package first: its names are looked up in the modules, and come back as they were.
    for where in ("bharateo", "bharateo.config"):
        patch.setattr(f"{where}.load_config", load_small)
        patch.setattr(f"{where}.with_settings", with_scenes)
    for where in ("bharateo", "bharateo.regions"):
        patch.setattr(f"{where}.parse_roi", parse_small)
    for few in ("MOST_EXAMPLES", "MOST_VALIDATION"):
        patch.setattr(f"bharateo.evaluation.probing.{few}", 150)
    patch.setattr("bharateo.evaluation.ablation.MOST_EXAMPLES", 150)
    patch.setattr("bharateo.evaluation.probing.NUM_DRAWS", 1)
    patch.setattr("bharateo.evaluation.probes.NUM_TREES", 10)
    few_strengths = partial(fit_linear, strengths=(0.1, 1.0))
    patch.setattr("bharateo.evaluation.probing.fit_linear", few_strengths)
    for where in ("ablation", "probing"):
        patch.setattr(f"bharateo.evaluation.{where}.extract", partial(extract, most_chips=16))


@contextmanager
def small_world(folder: Path, patch: pytest.MonkeyPatch):
    """A working folder with configs/ and chips/, rasters and points, tiles and scenes at hand."""
    work = folder / "work"
    for name in ("work", "tiles", "scenes"):
        (folder / name).mkdir()
    write_chips(work / "chips")
    write_rasters(work)
    (work / "configs").symlink_to(ROOT / "configs")
    patch.chdir(work)
    patch.setenv("HOME", str(folder))
    patch.setenv("BHARATEO_WORLDCOVER_ROOT", str(write_tiles(folder / "tiles")))
    with catalogue(folder / "scenes") as scenes:
        make_small(patch, scenes)
        yield work
