"""Every command and snippet of the README runs here, in its order, on generated tiles.

Training is cut to a few steps of a small model; paths, options and what follows from what are the
README's own.
"""

import re
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
from affine import Affine
from pyproj import Transformer

from bharateo import cli, config
from bharateo.chips.store import Dataset
from bharateo.regions import NAMED_ROIS, Roi, tile_windows, worldcover_window
from bharateo.sensor import SENTINEL2_L2A
from l2a_scenes import made_up_scene, made_up_scl, write_scene
from range_server import RangeServer
from stac_server import StacServer
from worldcover_tiles import patchy_codes, write_tile

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PLACES = (*NAMED_ROIS.values(), Roi("pune", 73.86, 18.52), Roi("jaipur", 75.80, 26.92))


def blocks(language: str) -> list[str]:
    """The fenced blocks of one language."""
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def commands(program: str) -> list[list[str]]:
    """The lines of all bash blocks that call a program, as words."""
    lines = [shlex.split(line) for block in blocks("bash") for line in block.splitlines()]
    return [words for words in lines if words and words[0] == program]


@pytest.fixture(scope="module")
def tiles(tmp_path_factory):
    """A WorldCover root with generated codes under every place the README names."""
    root = tmp_path_factory.mktemp("worldcover")
    parts: dict[str, dict[tuple[int, int], object]] = {}
    codes = patchy_codes(2048, 2048, codes=(10, 40, 50, 80))
    for place in PLACES:
        for part in tile_windows(worldcover_window(place)):
            under = codes[: part.height, : part.width]
            parts.setdefault(part.tile, {})[part.row, part.col] = under
    for tile, windows in parts.items():
        write_tile(root, tile, windows)
    return root


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory):
    """The address of a catalogue with one scene over Pune, in Earth Search's manner."""
    folder, side = tmp_path_factory.mktemp("scenes"), 2400
    x, y = Transformer.from_crs("EPSG:4326", "EPSG:32643", always_xy=True).transform(73.86, 18.52)
    corner = round(x - side * 5, -2), round(y + side * 5, -2)
    reflectance, codes = made_up_scene((side, side))
    scene = write_scene(
        folder, "S2A_pune", epsg=32643, corner=corner, reflectance=reflectance,
        scl=made_up_scl(reflectance, codes), when="2021-02-03T05:40:00Z", baseline="05.00",
        dn_offset=0, cloud_cover=1.0, flag=True,
    )  # fmt: skip
    with RangeServer(folder) as files, StacServer([scene.item(files.url)]) as stac:
        yield f"earth-search={stac.url}"


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


def write_district(folder: Path) -> None:
    """A raster of ten bands of reflectance around Pune, and a person's points on it."""
    side, names = 288, SENTINEL2_L2A.band_names
    x, y = Transformer.from_crs("EPSG:4326", "EPSG:32643", always_xy=True).transform(73.86, 18.52)
    corner = Affine(10, 0, round(x - side * 5, -2), 0, -10, round(y + side * 5, -2))
    reflectance, _ = made_up_scene((side, side))
    with rasterio.open(
        folder / "district.tif", "w", driver="GTiff", crs="EPSG:32643", transform=corner,
        width=side, height=side, count=len(names), dtype="uint16",
    ) as raster:  # fmt: skip
        raster.write(reflectance)
        raster.descriptions = names
    rows, cols = np.mgrid[24:side:48, 24:side:48].reshape(2, -1)
    points = geopandas.points_from_xy(*(corner @ (cols, rows)), crs="EPSG:32643")
    classes = np.where(cols + rows < side, "fields", "town")
    geopandas.GeoDataFrame({"class": classes}, geometry=points).to_file(folder / "my_points.gpkg")


@pytest.fixture
def readme_folder(tmp_path, monkeypatch, tiles, catalogue):
    """A working folder with configs/ and chips/, tiles and scenes at hand, and little training."""
    load = config.load_config
    write_chips(tmp_path / "chips")
    write_district(tmp_path)

    def load_small(path, overrides=()):
        full = load(path, overrides)
        scenes = replace(full.data.sentinel2, catalogue=catalogue, seasons=())
        return replace(
            full,
            data=replace(full.data, sentinel2=scenes),
            model=replace(
                full.model, width=16, depth=1, num_heads=4,
                decoder_width=16, decoder_depth=1, decoder_num_heads=4,
            ),
            training=replace(full.training, epochs=1, chips_per_epoch=32, batch_size=16),
        )  # fmt: skip

    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BHARATEO_WORLDCOVER_ROOT", str(tiles))
    monkeypatch.setattr("bharateo.config.load_config", load_small)
    monkeypatch.setattr("bharateo.demo.load_config", load_small)
    for few in ("MOST_EXAMPLES", "MOST_VALIDATION"):
        monkeypatch.setattr(f"bharateo.evaluation.probing.{few}", 300)
    monkeypatch.setattr("bharateo.evaluation.ablation.MOST_EXAMPLES", 300)
    monkeypatch.setattr("bharateo.evaluation.probing.NUM_DRAWS", 1)
    return tmp_path


def test_every_command_and_snippet_of_the_readme_runs(readme_folder, capsys):
    for words in commands("bharateo"):
        assert cli.main(words[1:]) == 0, f"{shlex.join(words)}\n{capsys.readouterr().err}"
    for snippet in blocks("python"):
        exec(compile(snippet, "README.md", "exec"), {})
    assert (readme_folder / "runs/pune/run/report.html").exists()
    for made in (
        "runs/v0/jaipur.json", "runs/v0/probes.json", "runs/ablation/ablation.md",
        "district-map.qml", "district-vectors.tif", "alike/found.geojson", "my-map/map.tif",
        "hub/pune-s2/README.md", "timm/pune-s2/config.json", "pune-s2.onnx",
    ):  # fmt: skip
        assert (readme_folder / made).exists(), made
    assert Dataset.open("datasets/pune").sensor.name == "sentinel2-l2a"
    assert Dataset.open("datasets/chips").num_chips == 36
    assert "torch.Size([4, 64, 16])" in capsys.readouterr().out


def test_the_make_targets_the_readme_names_call_what_it_says():
    called = {
        words[1]: subprocess.run(
            ["make", "--dry-run", "--no-print-directory", *words[1:]],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for words in commands("make")
    }
    assert called["demo"].rstrip().endswith("bharateo demo")
    assert "-m pytest" in called["test"]


def test_files_and_targets_the_readme_points_to_exist():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`make (\w+)`", README):
        assert f"\n{target}:" in makefile, target


def test_the_readme_prints_the_attribution_of_its_data():
    for line in ("ESA WorldCover project 2021", "10.5281/zenodo.7254221", "OpenStreetMap", "ODbL"):
        assert line in README
