"""Which pixels of a file are there: nodata of every band, masks inside and beside, alpha bands."""

from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.enums import ColorInterp
from rasterio.shutil import copy

from bharateo.chips.statistics import Statistics
from bharateo.config import DataConfig, GeotiffBand, GeotiffConfig, PlanConfig, SplitConfig
from bharateo.errors import ConfigError, CorruptRasterError, SourceError
from bharateo.evaluation.outside import LAYOUTS
from bharateo.inference.inputs import open_input
from bharateo.pixels.raster import open_raster
from bharateo.reading import Reading
from bharateo.sensor import Band, Sensor
from bharateo.sources.geotiff import LabelRaster, geotiff_recipe
from range_server import RangeServer
from small_datasets import small_contract
from tiny_rasters import write_raster

SIDE = 96
NAMES = ("red", "green", "blue")
PLAN = PlanConfig("grid", 32, split=SplitConfig(64, 0, 0.2, 0.2))


def pixels(dtype="uint16", bands=3):
    return np.random.default_rng(0).integers(1, 200, (bands, SIDE, SIDE)).astype(dtype)


THERE = np.ones((SIDE, SIDE), bool)
THERE[:, SIDE // 2 :] = False
"""The half that a mask leaves."""


def masked_inside(path):
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        write_raster(path, pixels())
        with rasterio.open(path, "r+") as file:
            file.write_mask(THERE)
    return path


def masked_beside(path):
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False):
        write_raster(path, pixels())
        with rasterio.open(path, "r+") as file:
            file.write_mask(THERE)
    assert Path(f"{path}.msk").exists()
    return path


def with_alpha(path, **options):
    write_raster(path, np.concatenate([pixels(), THERE[None] * np.uint16(65535)]), **options)
    with rasterio.open(path, "r+") as file:
        rgb = ColorInterp.red, ColorInterp.green, ColorInterp.blue
        file.colorinterp = (*rgb, ColorInterp.alpha)
    return path


def nodata_of_band_2(path):
    """65535 in the second band alone, which only a file beside can say."""
    values = pixels()
    values[1][~THERE] = 65535
    write_raster(path, values)
    Path(f"{path}.aux.xml").write_text(
        '<PAMDataset><PAMRasterBand band="1"><NoDataValue>7777</NoDataValue></PAMRasterBand>'
        '<PAMRasterBand band="2"><NoDataValue>65535</NoDataValue></PAMRasterBand></PAMDataset>'
    )
    return path


def vrt_of_masked(path):
    inside = masked_inside(path.with_name("inside.tif"))
    bands = "".join(
        f'<VRTRasterBand dataType="UInt16" band="{band}"><SimpleSource><SourceFilename '
        f'relativeToVRT="1">{inside.name}</SourceFilename><SourceBand>{band}</SourceBand>'
        "</SimpleSource></VRTRasterBand>"
        for band in (1, 2, 3)
    )
    mask = (
        '<MaskBand><VRTRasterBand dataType="Byte"><SimpleSource><SourceFilename relativeToVRT="1">'
        f"{inside.name}</SourceFilename><SourceBand>mask,1</SourceBand></SimpleSource>"
        "</VRTRasterBand></MaskBand>"
    )
    path = path.with_suffix(".vrt")
    path.write_text(
        f'<VRTDataset rasterXSize="{SIDE}" rasterYSize="{SIDE}"><SRS>EPSG:32643</SRS><GeoTransform>'
        f"500000,10,0,3000000,0,-10</GeoTransform>{bands}{mask}</VRTDataset>"
    )
    return path


def a_number(path):
    values = pixels()
    values[2][~THERE] = 65535
    return write_raster(path, values, nodata=65535)


KINDS = [masked_inside, masked_beside, with_alpha, nodata_of_band_2, vrt_of_masked, a_number]


def data(path, **options):
    bands = {name: GeotiffBand(band=band) for band, name in enumerate(NAMES, 1)}
    geotiff = GeotiffConfig(str(path), **{"bands": bands, **options})
    return DataConfig("geotiff", geotiff=geotiff, plan=PLAN)


def recipe(path, **options):
    return geotiff_recipe(data(path, **options))


@pytest.fixture
def contract():
    sensor = Sensor("toy", "Toy", tuple(Band(n, 10, 500) for n in NAMES), "uint16", 1.0, 0.0,
                    "number", {}, True)  # fmt: skip
    flat = pixels().reshape(3, -1).astype(float)
    return small_contract(sensor, Statistics(flat.mean(1), flat.std(1), flat.shape[1]), 16)


@pytest.mark.parametrize("kind", KINDS)
def test_half_a_raster_is_half_to_map_and_embed(kind, tmp_path, contract):
    path = kind(tmp_path / "x.tif")
    values, valid = open_input(str(path), contract, Reading(bands=NAMES)).read(0, 0, SIDE, SIDE)
    np.testing.assert_array_equal(valid, THERE)
    np.testing.assert_array_equal(values[:, THERE], pixels()[:, THERE])


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind is not vrt_of_masked])
def test_half_a_labelled_chip_is_half_to_a_task(kind, tmp_path):
    stored = LAYOUTS["eurosat"].read(kind(tmp_path / "chip.tif"), NAMES, (0, 1, 2))
    np.testing.assert_array_equal(np.isfinite(stored).all(0), THERE)


@pytest.mark.parametrize("kind", KINDS)
def test_half_a_raster_is_half_to_a_build(kind, tmp_path):
    raster = (made := recipe(kind(tmp_path / "x.tif"))).image.read(made.regions[0].geobox)
    np.testing.assert_array_equal(raster.valid, THERE)
    np.testing.assert_array_equal(raster.values[:, THERE], pixels()[:, THERE])


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_there_has_no_part_in_what_is_resampled(kind, tmp_path):
    path = kind(tmp_path / "x.tif")
    made = recipe(path)
    grid = made.regions[0].geobox.zoom_to(resolution=5)[20:140, 20:180]
    part = made.image.stacks[0].parts[0]
    values, valid, _ = made.image.read_part(part, grid)
    assert valid[:, :70].all()
    assert not valid[:, 80:].any()
    assert values[:, valid].max() < 200
    assert values[:, valid].min() > 0


def labels(path, kind):
    values = np.full((1, SIDE, SIDE), 50, np.uint8)
    write_raster(path, values)
    inside = kind == "inside"
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=inside), rasterio.open(path, "r+") as file:
        file.write_mask(THERE)
    return path


@pytest.mark.parametrize("kind", ["inside", "beside"])
def test_labels_are_where_their_mask_lets_them_be(kind, tmp_path):
    source = LabelRaster(labels(tmp_path / "labels.tif", kind), {})
    raster = source.read(open_raster(str(source.path)).geobox)
    np.testing.assert_array_equal(raster.valid, THERE)
    assert (raster.values[0][THERE] == 50).all()


def cog(source, path):
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        copy(source, path, driver="COG", blocksize=128)
    return path


def test_the_mask_of_a_cog_comes_from_a_server_too(tmp_path, contract):
    cog(masked_inside(tmp_path / "a.tif"), tmp_path / "x.tif")
    with RangeServer(tmp_path) as server:
        raster = open_input(f"{server.url}/x.tif", contract, Reading(bands=NAMES))
        np.testing.assert_array_equal(raster.read(0, 0, SIDE, SIDE)[1], THERE)


@pytest.mark.parametrize("nodata", [None, 0])
def test_a_cog_without_a_mask_costs_no_request_for_one(tmp_path, nodata):
    values = np.random.default_rng(0).integers(1, 60_000, (2, 600, 600)).astype(np.uint16)
    cog(write_raster(tmp_path / "a.tif", values, nodata=nodata), tmp_path / "x.tif")
    requests = []
    for read in ("read_window", "read_known"):
        with RangeServer(tmp_path) as server:
            file = open_raster(f"{server.url}/x.tif")
            getattr(file, read)(0, 0, 600, 600)
            getattr(file, read)(0, 0, 300, 300)
            requests.append((len(server.gets), server.num_bytes))
    assert requests[0] == requests[1]


def test_the_users_nodata_stands_for_the_files_and_the_mask_stays(tmp_path):
    file = open_raster(str(masked_inside(tmp_path / "x.tif")))
    values, known = file.read_known(0, 0, SIDE, SIDE, nodata=7)
    np.testing.assert_array_equal(known, THERE & (values != 7))


def test_alpha_is_no_band_of_an_image(tmp_path):
    path = with_alpha(tmp_path / "x.tif")
    file = open_raster(str(path))
    assert (file.num_bands, file.band_names) == (3, NAMES)
    assert file.read_window(0, 0, 8, 8).shape == (3, 8, 8)
    bands = {"nir": GeotiffBand(band=4)}
    with pytest.raises(ConfigError, match=r"nir is band 4 of .*x\.tif, which is marked as alpha"):
        recipe(path, bands=bands)
    with rasterio.open(path, "r+") as opened:
        colours = list(opened.colorinterp)
        opened.colorinterp = [colours[3], *colours[1:3], ColorInterp.undefined]
    with pytest.raises(CorruptRasterError, match="its alpha as band 1 of 4"):
        open_raster(str(path))


def test_alpha_and_nodata_both_hold(tmp_path):
    file = open_raster(str(with_alpha(tmp_path / "x.tif", nodata=9)))
    values, known = file.read_known(0, 0, SIDE, SIDE)
    np.testing.assert_array_equal(known, THERE & (values != 9))


# What the files say, and what the configuration says


def read_all(made):
    return made.image.read(made.regions[0].geobox)


@pytest.mark.parametrize(
    ("in_file", "options", "missing"),
    [
        (65535, {}, 65535),
        (None, {}, 0),
        (None, {"nodata": None}, None),
        (65535, {"nodata": None}, 65535),
        (65535, {"nodata": 5}, 5),
        (65535, {"nodata": 0}, 0),
    ],
)
def test_nodata_is_the_configurations_else_the_files_else_0(tmp_path, in_file, options, missing):
    values = pixels()
    values[0, 0, :4] = 0, 5, 65535, 9
    made = recipe(write_raster(tmp_path / "x.tif", values, nodata=in_file), **options)
    expected = np.ones((SIDE, SIDE), bool) if missing is None else (values != missing).all(0)
    np.testing.assert_array_equal(read_all(made).valid, expected)


def scaled(path, units, values=None):
    write_raster(path, pixels() if values is None else values)
    with rasterio.open(path, "r+") as file:
        file.scales, file.offsets = zip(*units, strict=True)
    return path


def test_a_build_takes_scale_and_offset_from_the_files_as_map_does(tmp_path, contract):
    path = scaled(tmp_path / "x.tif", [(0.5, -3.0)] * 3)
    sensor = recipe(path).image.sensor
    assert (sensor.scale, sensor.offset) == (0.5, -3.0)
    mapped = open_input(
        str(path), contract, Reading(bands=NAMES, allow=frozenset({"statistics", "unit"}))
    )
    assert (mapped.scale[0], mapped.offset[0]) == (0.5, -3.0)


def test_scale_and_offset_of_the_configuration_win_and_the_files_are_told(tmp_path):
    made = recipe(scaled(tmp_path / "x.tif", [(0.5, -3.0)] * 3), scale=0.25)
    assert (made.image.sensor.scale, made.image.sensor.offset) == (0.25, 0.0)
    told = made.settings["geotiff"]["scale and offset in files, overridden"]
    assert told == "0.5 and -3"
    plain = recipe(scaled(tmp_path / "x.tif", [(0.5, -3.0)] * 3), scale=0.5, offset=-3)
    assert "scale and offset in files, overridden" not in plain.settings["geotiff"]


def test_files_that_say_different_scales_are_refused_until_one_is_given(tmp_path):
    path = scaled(tmp_path / "x.tif", [(0.5, 0.0), (0.5, 0.0), (0.1, 0.0)])
    with pytest.raises(SourceError, match=r"x\.tif says scale 0\.1 and offset 0 of band blue"):
        recipe(path)
    assert recipe(path, scale=0.5).image.sensor.scale == 0.5


@pytest.mark.parametrize("in_file", [None, -999])
@pytest.mark.parametrize("options", [{}, {"nodata": None}, {"nodata": -999}])
def test_negative_numbers_never_become_large_ones(tmp_path, in_file, options):
    values = pixels("int16")
    values[:, ~THERE] = -999
    path = write_raster(tmp_path / "x.tif", values, nodata=in_file)
    if in_file is None and options.get("nodata") is None:
        with pytest.raises(CorruptRasterError, match=r"x\.tif holds values down to -999.*nodata"):
            recipe(path, **options)
        return
    raster = read_all(recipe(path, **options))
    np.testing.assert_array_equal(raster.valid, THERE)
    assert raster.values.max() < 200
