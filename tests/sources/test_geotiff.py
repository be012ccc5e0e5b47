import pickle
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox

from bharateo.chips.build import build
from bharateo.chips.layouts import lay_out
from bharateo.chips.workers import Workers
from bharateo.config import (
    DataConfig,
    GeotiffBand,
    GeotiffConfig,
    PlanConfig,
    SplitConfig,
    load_config,
    preset_path,
)
from bharateo.errors import (
    ConfigError,
    CorruptRasterError,
    DatasetError,
    SourceError,
    UnknownCodeError,
)
from bharateo.landcover import IGNORE, WORLDCOVER
from bharateo.pixels.raster import RasterFile
from bharateo.regions import PIXELS_PER_DEGREE
from bharateo.sources.geotiff import LabelRaster, geotiff_recipe
from worldcover_tiles import patchy_codes, real_mirror, write_tile

CRS = "EPSG:32643"
WEST, NORTH = 520_000, 3_160_000
"""Near 75.2 E, 28.6 N, in WorldCover tile N27E075."""
SIZE = 32
BUFFER = 8
CLASSES = {1: 0, 2: 1, 3: 3}
RGB = {name: GeotiffBand(band=band) for band, name in enumerate(("red", "green", "blue"), 1)}
FILES = PlanConfig("files", SIZE, split=SplitConfig(200, BUFFER, 0.2, 0.2))
BLOCKS = PlanConfig("blocks", SIZE, split=SplitConfig(100, BUFFER, 0.2, 0.2))
GRID = replace(BLOCKS, strategy="grid")
RANDOM = replace(BLOCKS, strategy="random", chips_per_roi=20)


def write(
    path: Path,
    values: np.ndarray,
    row: float = 0,
    col: float = 0,
    px: float = 10,
    crs: str | None = CRS,
    nodata: float | None = None,
    transform: Affine | None = None,
    **options: object,
) -> Path:
    """A GeoTIFF whose corner lies ``row``, ``col`` pixels from (``WEST``, ``NORTH``)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = transform or Affine(px, 0, WEST + px * col, 0, -px, NORTH - px * row)
    num_bands, height, width = values.shape
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        width=width,
        height=height,
        count=num_bands,
        dtype=values.dtype,
        crs=crs,
        transform=affine,
        nodata=nodata,
        **options,
    ) as dataset:
        dataset.write(values)
    return path


def pixels(seed: int, height: int = SIZE, width: int = SIZE, bands: int = 3, dtype: str = "uint8"):
    top = 200 if dtype == "uint8" else 3000
    return np.random.default_rng(seed).integers(1, top, (bands, height, width)).astype(dtype)


def places() -> list[tuple[float, float]]:
    """Corners of 36 chips, each with a phase of its own; four have a neighbour 4 px away."""
    phase = np.random.default_rng(5).uniform(-0.45, 0.45, (2, 6, 6))
    corners = [(90 * r + phase[0, r, c], 90 * c + phase[1, r, c])
               for r in range(6) for c in range(6)]  # fmt: skip
    corners[0] = (0.0, 0.0)
    return [*corners, *((row, col + SIZE + 4) for row, col in corners[:4])]


@pytest.fixture(scope="module")
def chips(tmp_path_factory):
    """A folder of 40 chips, some in a subfolder."""
    folder = tmp_path_factory.mktemp("rasters") / "my chips"
    for index, (row, col) in enumerate(places()):
        name = f"{index:02d}.tif" if index < 30 else f"more/{index:02d}.TIF"
        write(folder / name, pixels(index), row, col)
    return folder


CODES = patchy_codes(600, 600, 3, (1, 2, 3))


@pytest.fixture(scope="module")
def label_raster(tmp_path_factory):
    """Codes 1 to 3 on 10 m pixels under all chips, and under nothing north of row 20."""
    codes = CODES.copy()
    codes[:20] = 0
    return write(tmp_path_factory.mktemp("labels") / "codes.tif", codes[None], -10, -10)


def config(path: Path, labels: Path | str, **options: object) -> GeotiffConfig:
    settings = {"bands": RGB, "nodata": None, "label_classes": CLASSES, **options}
    return GeotiffConfig(str(path), labels=str(labels), **settings)


def recipe(path: Path, labels: Path | str, plan: PlanConfig = FILES, **options: object):
    return geotiff_recipe(DataConfig("geotiff", geotiff=config(path, labels, **options), plan=plan))


def stored(path: Path) -> np.ndarray:
    with rasterio.open(path) as dataset:
        return dataset.read()


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def least_gap(chips, size_px: int, px: float) -> float:
    """Least distance in pixels between chips of different splits, by their exact corners."""
    corners = np.stack([chips.x / px, -chips.y / px], axis=1)
    gap = np.abs(corners[:, None] - corners[None]).max(axis=-1) - size_px
    split = chips.split.to_numpy()
    return gap[split[:, None] != split[None]].min()


# Ready-made chips


@pytest.fixture(scope="module")
def chip_dataset(chips, label_raster, tmp_path_factory):
    return build(recipe(chips, label_raster), FILES, tmp_path_factory.mktemp("built") / "d", 0)


def test_every_file_becomes_a_chip_with_its_pixels(chips, chip_dataset):
    table = chip_dataset.chips
    assert chip_dataset.num_chips == 40
    assert set(table.scene) == {f.relative_to(chips).as_posix() for f in chips.rglob("*.[tT]*")}
    for chip in table.itertuples():
        np.testing.assert_array_equal(chip_dataset.image(chip.chip), stored(chips / chip.scene))
        assert chip_dataset.valid(chip.chip).all()


def test_a_chip_lies_exactly_where_its_file_does(chips, chip_dataset):
    for chip in chip_dataset.chips.itertuples():
        with rasterio.open(chips / chip.scene) as file:
            assert (chip.x, chip.y) == (file.transform.c, file.transform.f)


def test_a_region_is_the_bounding_grid_in_step_with_the_first_file(chips, label_raster):
    (region,) = recipe(chips, label_raster).regions
    assert region.name == "my-chips"
    assert region.geobox.shape == (450 + SIZE, 450 + SIZE)
    assert region.geobox.affine == Affine(10, 0, WEST, 0, -10, NORTH)
    assert len(region.squares) == 40
    for (row, col), place in zip(region.squares, places(), strict=True):
        assert max(abs(row - place[0]), abs(col - place[1])) < 0.5


def test_labels_are_read_on_the_files_own_grid(chip_dataset):
    table = np.array([IGNORE, 0, 1, 3], np.uint8)
    for chip in chip_dataset.chips.itertuples():
        row, col = (NORTH - chip.y) / 10 + 10, (chip.x - WEST) / 10 + 10
        rows, cols = (np.floor(first + np.arange(SIZE) + 0.5).astype(int) for first in (row, col))
        expected = table[CODES[np.ix_(rows, cols)]]
        expected[rows < 20] = IGNORE
        np.testing.assert_array_equal(chip_dataset.landcover(chip.chip), expected)


def test_splits_of_chips_lie_apart_and_near_ones_stay_together(chip_dataset):
    table = chip_dataset.chips
    assert set(table.split) == {"train", "val", "test"}
    assert least_gap(table, SIZE, 10) >= BUFFER
    split_of = dict(zip(table.scene, table.split, strict=True))
    assert all(
        split_of[f"{index:02d}.tif"] == split_of[f"more/{36 + index}.TIF"] for index in range(4)
    )


def test_worldcover_comes_on_the_files_own_grid(chips, tmp_path):
    first_row, first_col = (np.array([90 - 28.6, 180 + 75.18]) * PIXELS_PER_DEGREE).astype(int)
    codes = patchy_codes(1200, 1200)
    corner = int(first_row % 36000), int(first_col % 36000)
    write_tile(tmp_path / "wc", "N27E075", {corner: codes})
    data = DataConfig(
        "geotiff",
        geotiff=config(chips, "worldcover", label_classes={}),
        worldcover_root=str(tmp_path / "wc"),
        plan=FILES,
    )
    dataset = build(geotiff_recipe(data), FILES, tmp_path / "d", 0)
    assert dataset.num_chips == 40
    from rasterio.warp import transform

    agreed = 0
    for chip in dataset.chips.itertuples():
        steps = 10 * (np.arange(SIZE) + 0.5)
        x, y = np.meshgrid(chip.x + steps, chip.y - steps)
        lon, lat = map(np.array, transform(CRS, "EPSG:4326", x.reshape(-1), y.reshape(-1)))
        rows = np.floor((90 - lat) * PIXELS_PER_DEGREE).astype(int) - first_row
        cols = np.floor((lon + 180) * PIXELS_PER_DEGREE).astype(int) - first_col
        expected = WORLDCOVER.collapse(codes[rows, cols])
        agreed += (expected == dataset.landcover(chip.chip).reshape(-1)).mean() / 40
    assert agreed > 0.99  # GDAL's reprojection is exact to a hundredth of a pixel


def test_every_grid_is_a_region_of_its_own(chips, label_raster, tmp_path):
    folder = tmp_path / "chips"
    for index in range(3):
        write(folder / f"a{index}.tif", pixels(index), 0, 100 * index)
        write(folder / f"b{index}.tif", pixels(10 + index), 100, 100 * index, px=20)
        write(folder / f"c{index}.tif", pixels(20 + index), 0, 100 * index, crs="EPSG:32644")
        write(folder / f"d{index}.tif", pixels(30 + index), 300.25, 100 * index, px=10 * (1 + 1e-8))
    made = recipe(folder, label_raster)
    assert [(r.name, len(r.squares)) for r in made.regions] == [
        ("chips", 6), ("chips-2", 3), ("chips-3", 3),
    ]  # fmt: skip
    for region in made.regions:
        for row, col in region.squares:
            raster = made.image.read(region.geobox[row : row + SIZE, col : col + SIZE])
            file = stored(folder / raster.provenance["item"])
            np.testing.assert_array_equal(raster.values, file)


def test_ground_between_the_files_is_not_read(chips, label_raster):
    made = recipe(chips, label_raster)
    (region,) = made.regions
    with pytest.raises(SourceError, match="every file is one chip"):
        made.image.read(region.geobox[50 : 50 + SIZE, 50 : 50 + SIZE])


def test_two_processes_give_the_same_bytes_as_one(chips, label_raster, tmp_path, monkeypatch):
    from bharateo.chips import layouts

    monkeypatch.setattr(layouts, "FILES_PER_UNIT", 7)
    folders = tmp_path / "one", tmp_path / "two"
    for folder, processes in zip(folders, (1, 2), strict=True):
        made = recipe(chips, label_raster)
        build(made, FILES, folder, 0, workers=Workers(processes))
    assert contents(folders[0]) == contents(folders[1])


def test_other_files_are_another_build(chips, label_raster, tmp_path):
    folder = tmp_path / "chips"
    for index in range(12):
        write(folder / f"{index}.tif", pixels(index), 0, 100 * index)
    plan = replace(FILES, split=None, min_classes=0)
    build(recipe(folder, label_raster, plan), plan, tmp_path / "d", 0)
    (folder / "11.tif").rename(folder / "12.tif")
    with pytest.raises(DatasetError, match="sha256 of names and sizes"):
        build(recipe(folder, label_raster, plan), plan, tmp_path / "d", 0)


# What is valid


@pytest.mark.parametrize(
    ("configured", "in_file", "expected"),
    [(0, None, 0), (None, None, None), (None, 9, 9), (5, 9, 5), (None, -1, None)],
)
def test_a_pixel_without_data_in_one_band_is_not_valid(
    label_raster, tmp_path, configured, in_file, expected
):
    values = pixels(1)
    values[0, 3, 4], values[1, 5, 6], values[2, 7, 8] = 0, 9, 5
    values[:, 10:] = np.maximum(values[:, 10:], 10)
    values[:, :10][(values[:, :10] != 0) & (values[:, :10] < 10)] += 10
    values[1, 5, 6], values[2, 7, 8] = 9, 5
    path = write(tmp_path / "chip.tif", values, nodata=None if in_file == -1 else in_file)
    plan = replace(FILES, split=None)
    made = recipe(path, label_raster, plan, nodata=configured)
    raster = made.image.read(made.regions[0].geobox)
    empty = {tuple(map(int, place)) for place in np.argwhere(~raster.valid)}
    assert empty == {0: {(3, 4)}, 9: {(5, 6)}, 5: {(7, 8)}, None: set()}[expected]


def test_signed_files_are_stored_unsigned(label_raster, tmp_path):
    values = pixels(1, dtype="int16")
    values[1, 2, 3] = -9999
    path = write(tmp_path / "chip.tif", values, nodata=-9999)
    made = recipe(path, label_raster, replace(FILES, split=None))
    raster = made.image.read(made.regions[0].geobox)
    assert made.image.sensor.dtype == raster.values.dtype == "uint16"
    assert not raster.valid[2, 3]
    assert raster.valid.sum() == SIZE**2 - 1
    np.testing.assert_array_equal(raster.values[:, raster.valid], values[:, raster.valid])


# Large rasters


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A raster of 640 x 700 px with four bands, and one of 300 x 310 px on another phase."""
    folder = tmp_path_factory.mktemp("large")
    options = {"tiled": True, "blockxsize": 64, "blockysize": 64}
    ground = pixels(1, 640, 700, 4, "uint16")
    ground[:, 100:130, 50:300] = 0
    write(folder / "drone 1.tif", ground, -10, -10, **options)
    write(folder / "drone_2.tif", pixels(2, 300, 310, 4, "uint16"), 100.3, 800.4, **options)
    return folder


FOUR = {"nir": GeotiffBand(band=4), **RGB}


@pytest.mark.parametrize("plan", [BLOCKS, GRID, RANDOM], ids=["blocks", "grid", "random"])
def test_chips_are_cut_from_large_rasters(large, label_raster, tmp_path, plan):
    plan = replace(plan, min_classes=0, min_valid_fraction=0.9)
    made = recipe(large, label_raster, plan, bands=FOUR, nodata=0)
    assert [region.name for region in made.regions] == ["drone-1", "drone_2"]
    dataset = build(made, plan, tmp_path / "d", 0)
    table = dataset.chips
    assert set(table.region) == {"drone-1", "drone_2"}
    assert set(table.split) == {"train", "val", "test"}
    assert dataset.sensor.band_names == ("nir", "red", "green", "blue")
    for chip in table.itertuples():
        whole = stored(large / chip.scene)[[3, 0, 1, 2]]
        here = whole[:, chip.row : chip.row + SIZE, chip.col : chip.col + SIZE]
        np.testing.assert_array_equal(dataset.image(chip.chip), here)
        np.testing.assert_array_equal(dataset.valid(chip.chip), (here != 0).all(axis=0))


def test_blocks_reads_windows_alone(large, label_raster, tmp_path, monkeypatch):
    sizes = []
    read_window = RasterFile.read_window

    def watched(self, row, col, height, width, *bands):
        sizes.append(height * width)
        return read_window(self, row, col, height, width, *bands)

    monkeypatch.setattr(RasterFile, "read_window", watched)
    plan = replace(BLOCKS, unit_blocks=(1, 2), min_classes=0)
    made = recipe(large, label_raster, plan, bands=FOUR, nodata=0)
    build(made, plan, tmp_path / "d", 0, workers=Workers(1))
    assert len(sizes) > 30
    assert max(sizes) <= max(256**2, 100 * 200)


def bands_by_file(folder: Path, nodata: float | None = None) -> dict[str, GeotiffBand]:
    """One raster a band: two of 10 m, one of 20 m; zeros here and there in all."""
    coarse = pixels(3, 150, 155, 2, "uint16")
    coarse[:, 40:44, 40:44] = 0
    fine = pixels(1, 300, 310, 1, "uint16")
    fine[:, 0, 0] = 0
    write(folder / "S_B4.TIF", fine, nodata=nodata)
    write(folder / "S_B3.TIF", pixels(2, 300, 310, 1, "uint16"), nodata=nodata)
    write(folder / "S_B6.TIF", coarse, px=20, nodata=nodata)
    return {
        "swir": GeotiffBand("*_B6.TIF", 2, 20, 1600),
        "red": GeotiffBand("*_B4.TIF"),
        "green": GeotiffBand("S_B3.TIF"),
        "cirrus": GeotiffBand("*_B6.TIF", 1, 20),
    }


@pytest.mark.parametrize("nodata", [0, None])
def test_one_raster_a_band_comes_to_the_finest_grid(label_raster, tmp_path, nodata):
    folder = tmp_path / "LC08_scene"
    made = recipe(folder, label_raster, BLOCKS, bands=bands_by_file(folder), nodata=nodata)
    (region,) = made.regions
    assert (region.name, region.geobox.shape) == ("LC08_scene", (300, 310))
    whole = made.image.read(region.geobox)
    np.testing.assert_array_equal(whole.values[1], stored(folder / "S_B4.TIF")[0])
    np.testing.assert_array_equal(whole.values[2], stored(folder / "S_B3.TIF")[0])
    coarse = stored(folder / "S_B6.TIF").astype(float)
    for place, band in ((0, 1), (3, 0)):
        old = coarse[band]
        expected = (9 * old + 3 * np.roll(old, 1, 0) + 3 * np.roll(old, 1, 1)
                    + np.roll(old, (1, 1), (0, 1))) / 16  # fmt: skip
        new = whole.values[place, ::2, ::2]
        inner = np.zeros_like(old, bool)
        inner[1:, 1:] = True
        if nodata == 0:
            inner[38:46, 38:46] = False
        assert np.abs(new - expected)[inner].max() <= 0.5
    if nodata == 0:
        assert not whole.valid[0, 0]
        assert not whole.valid[80:88, 80:88].any()
        assert whole.valid[76:80, 76:92].all()
        assert (whole.values[0, 79, 78:90] > 0).all()  # zeros have no part in means
    else:
        assert whole.valid.all()
        assert (whole.values[0, 81:87, 81:87] == 0).all()


def test_a_window_of_many_files_holds_the_pixels_of_the_whole(label_raster, tmp_path):
    made = recipe(tmp_path, label_raster, BLOCKS, bands=bands_by_file(tmp_path), nodata=0)
    (region,) = made.regions
    whole = made.image.read(region.geobox)
    for rows, cols in ((slice(41, 120), slice(60, 133)), (slice(0, 300), slice(209, 310))):
        part = made.image.read(region.geobox[rows, cols])
        np.testing.assert_array_equal(part.values, whole.values[:, rows, cols])
        np.testing.assert_array_equal(part.valid, whole.valid[rows, cols])
    dataset = build(made, BLOCKS, tmp_path / "d", 0)
    for chip in dataset.chips.itertuples():
        here = np.s_[chip.row : chip.row + SIZE, chip.col : chip.col + SIZE]
        expected = np.where(whole.valid[here], whole.values[:, *here], 0)
        np.testing.assert_array_equal(dataset.image(chip.chip), expected)
        assert chip.scene == tmp_path.name


def test_ground_a_band_does_not_reach_is_not_valid(label_raster, tmp_path):
    write(tmp_path / "a.tif", pixels(1, 100, 100, 1))
    write(tmp_path / "b.tif", pixels(2, 30, 40, 1), 10, 0, px=20)
    bands = {"a": GeotiffBand("a.tif"), "b": GeotiffBand("b.tif", resolution_m=20)}
    made = recipe(tmp_path, label_raster, GRID, bands=bands)
    valid = made.image.read(made.regions[0].geobox).valid
    assert valid[20:80, :80].all()
    assert valid.sum() == 60 * 80


def test_only_windows_of_the_rasters_are_read(large, label_raster):
    made = recipe(large, label_raster, BLOCKS, bands=FOUR, nodata=0)
    shifted = GeoBox((8, 8), Affine(10, 0, WEST + 3, 0, -10, NORTH), CRS)
    with pytest.raises(SourceError, match="only pixels of the rasters' own grids"):
        made.image.read(shifted)


# Labels


def test_the_codes_of_a_label_raster_mean_what_the_configuration_says(label_raster):
    source = LabelRaster(label_raster, CLASSES)
    grid = GeoBox((600, 600), Affine(10, 0, WEST - 100, 0, -10, NORTH + 100), CRS)
    raster = source.read(grid)
    np.testing.assert_array_equal(raster.values[0, 20:], CODES[20:])
    np.testing.assert_array_equal(raster.valid, raster.values[0] != 0)
    assert source.overview(np.zeros(1), np.zeros(1)) is None
    assert source.scheme.native == {1: ("tree", 0), 2: ("cropland", 1), 3: ("built_up", 3)}
    away = GeoBox((4, 4), Affine(10, 0, WEST - 5000, 0, -10, NORTH), CRS)
    assert not source.read(away).valid.any()


@pytest.mark.parametrize(
    ("dtype", "nodata", "classes", "expected"),
    [
        ("uint8", 255, {0: 0, 1: 1, 2: 3}, 255),
        ("uint8", None, {0: 0, 1: 1, 2: 3}, 255),
        ("int16", -9999, {0: 0, 1: 1, 2: 3}, 255),
        ("uint8", None, {1: 1, 2: 3}, 0),
        ("int8", None, {0: 0, 1: 1, 2: 3}, 127),
    ],
)
def test_labels_have_the_files_nodata_or_zero(tmp_path, dtype, nodata, classes, expected):
    codes = np.ones((1, 8, 8), dtype)
    codes[0, 0, :3] = (0, 2, 0 if nodata is None else nodata)
    path = write(tmp_path / "codes.tif", codes, nodata=nodata)
    source = LabelRaster(path, classes)
    assert source.scheme.nodata == expected
    raster = source.read(GeoBox((8, 8), Affine(10, 0, WEST, 0, -10, NORTH), CRS))
    ids = source.scheme.collapse(np.where(raster.valid, raster.values[0], expected))
    zero = 0 if 0 in classes else IGNORE
    assert ids[0, :4].tolist() == [zero, 3, zero if nodata is None else IGNORE, 1]


def test_without_classes_a_label_raster_has_worldcovers_codes(tmp_path):
    path = write(tmp_path / "codes.tif", np.full((1, 8, 8), 40, np.uint8))
    source = LabelRaster(path, {})
    assert source.scheme == WORLDCOVER


def test_an_unknown_code_names_itself(chips, label_raster, tmp_path):
    with pytest.raises(UnknownCodeError, match=r"code 3 in label raster codes\.tif"):
        build(recipe(chips, label_raster, label_classes={1: 0, 2: 1}), FILES, tmp_path / "d", 0)
    path = write(tmp_path / "wide.tif", np.full((1, 40, 40), 300, np.uint16), -5, -5)
    source = LabelRaster(path, CLASSES)
    with pytest.raises(UnknownCodeError, match=r"code 300 in .*wide\.tif"):
        source.read(GeoBox((8, 8), Affine(10, 0, WEST, 0, -10, NORTH), CRS))


# The sensor


def test_the_sensor_is_the_configurations(chips, label_raster):
    made = recipe(
        chips, label_raster, title="My drone", scale=0.5, offset=-1, unit="counts",
        standardised=False, composites={"a": ("blue", "red", "red"), "b": ("red", "green", "blue")},
        display_range=(3, 4), attribution=("me",),
        bands={**RGB, "red": GeotiffBand(band=1, resolution_m=0.5, wavelength_nm=650)},
    )  # fmt: skip
    sensor = made.image.sensor
    assert (sensor.name, sensor.title, made.image.name) == ("geotiff", "My drone", "My drone")
    assert (sensor.dtype, sensor.scale, sensor.offset, sensor.unit) == ("uint8", 0.5, -1, "counts")
    assert (sensor.bands[0].resolution_m, sensor.bands[0].wavelength_nm) == (0.5, 650)
    assert not sensor.standardised
    assert list(sensor.composites) == ["a", "b"]
    assert (sensor.composites["a"].low, sensor.composites["a"].high) == (3, 4)
    assert made.image.attribution == ("me",)


def test_the_display_range_is_what_most_pixels_hold(chips, large, label_raster):
    ((name, composite),) = recipe(chips, label_raster).image.sensor.composites.items()
    assert (name, composite.bands) == ("bands red-green-blue", ("red", "green", "blue"))
    assert (composite.low, composite.high) == (5.0, 200.0)  # 1 to 199 evenly, to two digits
    scaled = recipe(large, label_raster, BLOCKS, bands=FOUR, nodata=0, scale=1e-4, offset=-0.1)
    (composite,) = scaled.image.sensor.composites.values()
    assert (composite.low, composite.high) == (-0.094, 0.19)
    again = recipe(large, label_raster, BLOCKS, bands=FOUR, nodata=0, scale=1e-4, offset=-0.1)
    assert again.image.sensor == scaled.image.sensor


def test_two_bands_are_shown_as_grey(tmp_path, label_raster):
    write(tmp_path / "a.tif", np.full((2, SIZE, SIZE), 7, np.uint8))
    bands = {"vv": GeotiffBand(band=2), "vh": GeotiffBand(band=1)}
    (item,) = recipe(tmp_path, label_raster, bands=bands).image.sensor.composites.items()
    assert item[0] == "first band, grey"
    assert item[1].bands == ("vv", "vv", "vv")
    assert item[1].low < item[1].high


def test_a_path_may_be_a_folder_a_file_or_a_pattern(chips, label_raster):
    def found(path: Path) -> list[str]:
        made = recipe(path, label_raster)
        return sorted(made.image.squares.values())

    assert found(chips / "07.tif") == ["07.tif"]
    assert found(chips / "0[1-3].tif") == ["01.tif", "02.tif", "03.tif"]
    assert found(chips / "**" / "3*.TIF") == [f"more/3{n}.TIF" for n in range(10)]
    assert len(found(chips)) == 40


def test_sources_travel_without_their_open_files(chips, large, label_raster):
    first = recipe(chips, label_raster)
    second = recipe(large, label_raster, BLOCKS, bands=FOUR, nodata=0)
    for made in (first, second):
        region = made.regions[0]
        row, col = map(round, region.squares[0]) if region.squares else (40, 50)
        grid = region.geobox[row : row + SIZE, col : col + SIZE]
        for source in (made.image, made.landcover):
            here = source.read(grid)
            there = pickle.loads(pickle.dumps(source)).read(grid)
            np.testing.assert_array_equal(here.values, there.values)
            np.testing.assert_array_equal(here.valid, there.valid)
            assert (here.provenance, here.geobox) == (there.provenance, there.geobox)


def test_few_files_stay_open(chips, label_raster):
    made = recipe(chips, label_raster)
    (region,) = made.regions
    for place in region.squares:
        row, col = map(round, place)
        made.image.read(region.geobox[row : row + SIZE, col : col + SIZE])
    assert len(made.image.opened) < 30


def test_chips_may_have_no_labels(chips, tmp_path):
    plan = replace(FILES, min_classes=0)
    built = build(recipe(chips, "none", plan, label_classes={}), plan, tmp_path / "d", 0)
    assert built.num_chips == 40
    assert (built.chips["labelled_fraction"] == 0).all()
    assert all((built.landcover(chip) == IGNORE).all() for chip in range(3))


# What is refused


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"bands": {}}, r"data\.geotiff\.bands is empty: name every band"),
        ({"bands": {"nir": GeotiffBand(band=4)}}, r"bands\.nir is band 4 of .*00\.tif.* has 3:"),
        ({"bands": {"a": GeotiffBand(band=0)}}, r"bands\.a: band 0"),
        ({"bands": {"a": GeotiffBand(), "b": GeotiffBand("x.tif")}}, "b names its file and a does"),
        ({"bands": {"a": GeotiffBand("*_B4.TIF")}}, r"bands\.a\.file '\*_B4\.TIF' matches 0 files"),
        ({"bands": {"a": GeotiffBand("0*.tif")}}, "matches 10 files in .*, not one"),
        ({"bands": {"a": GeotiffBand("00.tif")}}, "strategy 'files' takes files that hold all"),
        ({"scale": 0.0}, r"data\.geotiff\.scale 0\.0"),
        ({"nodata": -1.0}, r"data\.geotiff\.nodata -1 is no value of uint8"),
        ({"display_range": (2.0, 1.0)}, r"display_range \[2\.0, 1\.0\]: give the lower"),
        ({"composites": {"a": ("red", "nir", "red")}}, "'a' shows band 'nir', which is none of"),
        ({"composites": dict.fromkeys("abc", ("red",) * 3)}, "has 3, reports show two"),
        ({"label_classes": {1: 9}}, "1: 9 is no code from 0 to 255 with the id of a class"),
        ({"labels": "no-such.tif"}, r"data\.geotiff\.labels 'no-such\.tif' does not exist"),
        ({"labels": "none"}, r"labels is 'none'.*min_classes to 0"),
        ({"labels": "worldcover"}, "label_classes says what the codes of a label raster mean"),
        ({"path": "no-such-folder"}, "'no-such-folder' is no file, folder or pattern"),
        ({"path": "no-such/*.tif"}, r"'no-such/\*\.tif' is no file, folder or pattern"),
        ({"path": ""}, "data.geotiff.path is empty: give a folder"),
    ],
)
def test_a_wrong_value_is_named_with_its_remedy(chips, label_raster, options, match):
    settings = replace(config(chips, label_raster), **options)
    with pytest.raises(ConfigError, match=match):
        geotiff_recipe(DataConfig("geotiff", geotiff=settings, plan=FILES))


def test_an_empty_folder_says_what_it_lacks(tmp_path, label_raster):
    with pytest.raises(ConfigError, match=r"holds no \*\.tif: give a folder of GeoTIFFs"):
        recipe(tmp_path, label_raster)


def test_a_file_of_another_size_is_named(tmp_path, label_raster):
    write(tmp_path / "a.tif", pixels(1))
    write(tmp_path / "b.tif", pixels(2, 40, 32), 0, 100)
    with pytest.raises(ConfigError, match=r"b\.tif is 40 x 32 px, .* plan\.size_px 32: set that"):
        recipe(tmp_path, label_raster)


def test_two_chips_at_one_place_are_both_named(tmp_path, label_raster):
    write(tmp_path / "a.tif", pixels(1))
    write(tmp_path / "b.tif", pixels(2), 0.3, -0.2)
    with pytest.raises(ConfigError, match=r"b\.tif and a\.tif lie at one place"):
        recipe(tmp_path, label_raster)


def test_rasters_over_each_other_on_one_grid_are_both_named(tmp_path, label_raster):
    write(tmp_path / "a.tif", pixels(1, 100, 100))
    write(tmp_path / "b.tif", pixels(2, 100, 100), 0, 100 - SIZE + 1)
    recipe(tmp_path, label_raster, BLOCKS)  # no chip fits into both
    write(tmp_path / "c.tif", pixels(3, 100, 100), 50, 40)
    with pytest.raises(ConfigError, match=r"a\.tif and c\.tif lie over each other .*gdalbuildvrt"):
        recipe(tmp_path, label_raster, BLOCKS)


def test_a_band_finer_than_the_finest_is_noticed(tmp_path, label_raster):
    bands = bands_by_file(tmp_path)
    bands |= {"swir": replace(bands["swir"], resolution_m=10)}
    with pytest.raises(ConfigError, match=r"S_B4\.TIF has finer pixels than band swir"):
        recipe(tmp_path, label_raster, BLOCKS, bands=bands)


def test_bands_that_name_files_need_a_folder(large, label_raster):
    bands = {"a": GeotiffBand("drone_2.tif")}
    with pytest.raises(ConfigError, match="is no folder, but the bands name their files"):
        recipe(large / "*.tif", label_raster, BLOCKS, bands=bands)


def test_float_pixels_say_how_to_scale_them(tmp_path, label_raster):
    write(tmp_path / "a.tif", np.ones((3, SIZE, SIZE), np.float32))
    with pytest.raises(SourceError, match=r"a\.tif holds float32.*gdal_translate -ot UInt16 -sc"):
        recipe(tmp_path, label_raster)


def test_files_of_mixed_types_are_both_named(tmp_path, label_raster):
    write(tmp_path / "a.tif", pixels(1))
    write(tmp_path / "b.tif", pixels(2, dtype="uint16"), 0, 100)
    with pytest.raises(SourceError, match=r"b\.tif holds uint16 and a\.tif uint8: convert"):
        recipe(tmp_path, label_raster)


def test_negative_values_are_refused(tmp_path, label_raster):
    values = pixels(1, dtype="int16")
    values[0, 0, 0] = -5
    write(tmp_path / "a.tif", values)
    with pytest.raises(CorruptRasterError, match=r"a\.tif holds values down to -5"):
        recipe(tmp_path, label_raster)


def test_a_file_without_a_place_is_refused(tmp_path, label_raster):
    write(tmp_path / "a.tif", pixels(1), crs=None)
    with pytest.raises(CorruptRasterError, match=r"a\.tif has no coordinate reference system"):
        recipe(tmp_path, label_raster)


@pytest.mark.parametrize(
    ("transform", "how"),
    [
        (Affine(10, 0, WEST, 0, -10, NORTH) @ Affine.rotation(5), "rotated"),
        (Affine(10, 0, WEST, 0, 10, NORTH), "upside down"),
    ],
)
def test_a_grid_that_is_not_north_up_is_refused(tmp_path, label_raster, transform, how):
    write(tmp_path / "a.tif", pixels(1), transform=transform)
    with pytest.raises(SourceError, match=rf"the grid of .*a\.tif is {how}.* gdalwarp"):
        recipe(tmp_path, label_raster)


def test_what_is_no_raster_is_named(tmp_path, label_raster):
    (tmp_path / "a.tif").write_bytes(b"II*\0 and nothing else")
    with pytest.raises(CorruptRasterError, match=r"a\.tif cannot be read"):
        recipe(tmp_path, label_raster)


def test_files_that_change_after_planning_are_named(tmp_path, label_raster):
    path = write(tmp_path / "a.tif", pixels(1))
    made = recipe(path, label_raster, replace(FILES, split=None), display_range=(0, 1))
    (region,) = made.regions
    write(path, pixels(1, dtype="uint16"))
    with pytest.raises(CorruptRasterError, match=r"a\.tif holds uint16 where uint8 was planned"):
        made.image.read(region.geobox)
    path.unlink()
    with pytest.raises(CorruptRasterError, match=r"a\.tif does not exist any more"):
        made.image.read(region.geobox)
    write(path, pixels(1, 40, 40))
    with pytest.raises(CorruptRasterError, match=r"a\.tif is 40 x 40 px where 32 x 32 was"):
        made.image.read(region.geobox)


def test_label_files_of_the_wrong_kind_are_refused(tmp_path):
    two = write(tmp_path / "two.tif", np.ones((2, 8, 8), np.uint8))
    with pytest.raises(CorruptRasterError, match=r"two\.tif has 2 band\(s\) of uint8"):
        LabelRaster(two, CLASSES)
    real = write(tmp_path / "real.tif", np.ones((1, 8, 8), np.float32))
    with pytest.raises(CorruptRasterError, match=r"real\.tif has 1 band\(s\) of float32"):
        LabelRaster(real, CLASSES)
    nodata = write(tmp_path / "nodata.tif", np.ones((1, 8, 8), np.uint8), nodata=1)
    with pytest.raises(ConfigError, match=r"makes code 1 a class, which is nodata in .*nodata\.t"):
        LabelRaster(nodata, CLASSES)


# The example


@pytest.mark.slow
def test_the_example_builds_from_the_real_delhi_chips(tmp_path):
    mirror = real_mirror()
    folder = mirror.parent / "delhi-s2-rgb-chips"
    if not folder.is_dir():
        pytest.skip(f"no real chips: {folder} does not exist (set BHARATEO_TEST_DATA)")
    data = load_config(
        preset_path("geotiff-chips"),
        [f"data.geotiff.path={folder}", f"data.worldcover_root={mirror}"],
    ).data
    made = geotiff_recipe(data)
    (region,) = made.regions
    assert len(region.squares) == 1536
    planned = [site for unit in lay_out(made.regions, data.plan, 42).units for site in unit.sites]
    assert len(planned) == 1536  # none is lost to the buffer
    dataset = build(made, data.plan, tmp_path / "d", 42)
    assert dataset.num_chips == 1536
    table = dataset.chips
    assert table.scene.nunique() == 1536
    assert table.labelled_fraction.min() > 0.9
    assert least_gap(table, 128, region.geobox.affine.a) >= 32
    chip = table.iloc[700]
    np.testing.assert_array_equal(dataset.image(700), stored(folder / chip.scene))
    lat, lon = map(float, re.findall(r"\d+\.\d+", chip.scene))  # the file's name is its centre
    step = 64 * region.geobox.affine.a
    assert (chip.x + step, chip.y - step) == pytest.approx((lon, lat), abs=2e-4)
    shares = table[table.split == "test"][[f"fraction_{name}" for name in ("cropland", "built_up")]]
    assert (shares.mean() > 0.1).all()


def test_the_example_is_whole():
    config = load_config(preset_path("geotiff-chips"))
    assert list(config.data.geotiff.bands) == ["red", "green", "blue"]
    assert config.data.geotiff.nodata is None
    assert config.data.geotiff.scale * 255 == pytest.approx(1)
    assert (config.data.plan.size_px, config.model.chip_px) == (128, 112)
