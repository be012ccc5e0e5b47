import json
from dataclasses import replace

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.enums import ColorInterp

from bharateo.chips.statistics import Statistics
from bharateo.errors import (
    ConfigError,
    ContractError,
    CorruptRasterError,
    SourceError,
    UnreachableError,
)
from bharateo.inference.inputs import open_input
from bharateo.reading import Reading
from bharateo.sensor import SENTINEL2_L1C, SENTINEL2_L2A
from bharateo.verbs.cli import app
from l2a_scenes import BANDS
from range_server import RangeServer
from sentinel2_rig import acquire, ground_with_holes
from small_datasets import small_contract
from stac_server import StacServer

SHAPE = (128, 160)
CHOSEN = ("B04", "B11", "B8A")


def contract_for(values, bands=CHOSEN, sensor=SENTINEL2_L2A, patch_px=16):
    """The contract of a run trained on just these reflectances (band, ...)."""
    flat = values.reshape(len(values), -1)
    statistics = Statistics(flat.mean(1), flat.std(1), flat.shape[1])
    return small_contract(sensor.with_bands(bands), statistics, patch_px)


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """A scene with the offset in its files, and its item beside them, with addresses from there."""
    folder = tmp_path_factory.mktemp("scene")
    one = acquire(folder, "S2A_1", ground_with_holes(1, shape=SHAPE), baseline="05.00",
                  dn_offset=1000, flag=False)  # fmt: skip
    (folder / "s2" / "item.json").write_text(json.dumps(one.files.item(".")))
    return one


@pytest.fixture
def truth(scene):
    """Reflectance of the chosen bands, and where it is valid."""
    values, valid = scene.expected(CHOSEN)
    return values * 1e-4, valid


def item_of(scene):
    return str(scene.files.folder / "item.json")


def write(path, values, names=None, units=None, nodata=None, crs="EPSG:32643", **options):
    """A GeoTIFF of 10 m near 78 E."""
    with rasterio.open(
        path, "w", driver="GTiff", count=len(values), height=values.shape[1],
        width=values.shape[2], dtype=values.dtype, crs=crs, nodata=nodata,
        transform=Affine(10, 0, 787000, 0, -10, 3169320), **options,
    ) as dataset:  # fmt: skip
        dataset.write(values)
        if names:
            dataset.descriptions = names
        if units:
            dataset.scales, dataset.offsets = zip(*units, strict=True)
    return str(path)


@pytest.fixture
def stored(scene):
    """Reflectance x 10000 of all ten bands, 0 where there is none."""
    return scene.reflectance


@pytest.fixture
def contract(truth):
    values, valid = truth
    return contract_for(values[:, valid])


# Raster files


def test_a_window_holds_reflectance_in_the_runs_bands_wherever_all_of_them_are(
    stored, contract, tmp_path
):
    source = open_input(write(tmp_path / "a.tif", stored, BANDS, nodata=0.0), contract)
    chosen = stored[[BANDS.index(name) for name in CHOSEN]]
    values, valid = source.read(95, 130, 30, 25)
    part = chosen[:, 95:125, 130:155]
    np.testing.assert_array_equal(valid, (part != 0).all(0))
    assert 0 < valid.mean() < 1
    np.testing.assert_allclose(values, part * 1e-4, atol=1e-6)
    assert values.dtype == np.float32
    assert (source.shape, source.overridden) == (SHAPE, {})
    assert source.geobox.shape == SHAPE


def test_without_nodata_every_finite_number_is_valid(stored, contract, tmp_path):
    floats = stored.astype(np.float32) * np.float32(1e-4)
    floats[:, :3, :5] = np.nan
    path = write(tmp_path / "a.tif", floats, BANDS)
    values, valid = open_input(path, contract, Reading(scale=1.0)).read(0, 0, *SHAPE)
    assert not valid[:3, :5].any()
    assert valid.sum() == valid.size - 15
    np.testing.assert_array_equal(values[0][valid], floats[2][valid])


def test_the_users_nodata_wins_over_the_files(stored, contract, tmp_path):
    path = write(tmp_path / "a.tif", stored, BANDS, nodata=9)
    _, valid = open_input(path, contract, Reading(nodata=0.0)).read(0, 0, *SHAPE)
    np.testing.assert_array_equal(valid, (stored[[2, 8, 7]] != 0).all(0))


def test_the_files_own_scale_and_offset_are_used_band_by_band(stored, contract, tmp_path):
    units = [(1e-4 * (1 + n), -0.1) for n in range(10)]
    scale = np.array([unit[0] for unit in units])[:, None, None]
    numbers = ((stored * 1e-4 + 0.1) / scale).round().astype(np.uint16)
    path = write(tmp_path / "a.tif", numbers, BANDS, units)
    values, _ = open_input(path, contract).read(0, 0, *SHAPE)
    np.testing.assert_allclose(values, stored[[2, 8, 7]] * 1e-4, atol=6e-4)


def test_scale_and_offset_come_as_a_pair_from_user_file_or_run(stored, contract, tmp_path):
    lifted = np.where(stored, stored + 1000, 0).astype(np.uint16)
    path = write(tmp_path / "a.tif", lifted, BANDS, nodata=0.0)
    with pytest.raises(ContractError, match=r"^unit: .*offset of \+1000.*add --offset -0\.1"):
        open_input(path, contract)
    source = open_input(path, contract, Reading(offset=-0.1))
    assert (source.scale.tolist(), source.offset.tolist()) == ([1e-4] * 3, [-0.1] * 3)
    said = write(tmp_path / "b.tif", stored, BANDS, [(1e-4, -0.1)] * 10, nodata=0.0)
    assert open_input(said, contract, Reading(scale=1e-4)).offset.tolist() == [0] * 3


def test_a_scale_that_is_none_is_refused(stored, contract, tmp_path):
    with pytest.raises(ConfigError, match=r"scale of .*a\.tif is 0, and must be above 0"):
        open_input(write(tmp_path / "a.tif", stored, BANDS), contract, Reading(scale=0.0))


def test_bands_are_known_by_the_colours_a_file_gives_them(stored, tmp_path):
    bands = ("B02", "B03", "B04")
    path = write(tmp_path / "a.tif", stored[[2, 1, 0]], nodata=0, photometric="RGB")
    with rasterio.open(path) as dataset:
        assert dataset.colorinterp == (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
    contract = contract_for(stored[:3][:, (stored[:3] > 0).all(0)] * 1e-4, bands)
    values, _ = open_input(path, contract).read(0, 0, *SHAPE)
    np.testing.assert_allclose(values, stored[:3] * 1e-4, atol=1e-6)


def test_what_was_allowed_to_differ_is_told(stored, contract, tmp_path):
    path = write(tmp_path / "a.tif", stored[[2, 8, 7]], nodata=0.0)
    with pytest.raises(ContractError, match=r"^bands: .*--bands: B04,B11,B8A.*--allow bands"):
        open_input(path, contract)
    source = open_input(path, contract, Reading(allow=frozenset({"bands", "unit"})))
    assert [*source.overridden] == ["bands"]
    assert source.made_of.model_dump()["overridden"] == source.overridden


def test_an_input_is_told_from_another_by_whatever_changes_its_numbers(stored, contract, tmp_path):
    path = write(tmp_path / "a.tif", stored, BANDS, nodata=0.0)
    readings = [Reading(), Reading(nodata=7.0), Reading(scale=1.1e-4), Reading(offset=-0.001)]
    readings.append(Reading((*BANDS[:7], "B11", "B8A", "B12")))
    first = [open_input(path, contract, reading).made_of.identity for reading in readings]
    assert len({*first}) == len(readings)
    assert first == [open_input(path, contract, reading).made_of.identity for reading in readings]
    write(tmp_path / "a.tif", stored[:, ::-1], BANDS, nodata=0.0)
    assert open_input(path, contract).made_of.identity not in first


def test_zeros_that_fill_a_raster_do_not_hide_its_unit(stored, contract, tmp_path):
    filled = stored // 10
    filled[:, :, 40:] = 0
    with pytest.raises(ContractError, match=r"^unit: .*reflectance x 1000"):
        open_input(write(tmp_path / "a.tif", filled, BANDS), contract)


def test_a_raster_without_a_valid_pixel_is_opened(contract, tmp_path):
    path = write(tmp_path / "a.tif", np.zeros((10, 20, 20), np.uint16), BANDS, nodata=0.0)
    _, valid = open_input(path, contract).read(0, 0, 20, 20)
    assert not valid.any()


def test_there_being_no_raster_is_said(contract, tmp_path):
    with pytest.raises(SourceError, match=r"nowhere\.tif does not exist: give the path or URL"):
        open_input(str(tmp_path / "nowhere.tif"), contract)
    (tmp_path / "a.tif").write_text("no raster")
    with pytest.raises(CorruptRasterError, match=r"a\.tif cannot be read"):
        open_input(str(tmp_path / "a.tif"), contract)


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_a_raster_that_lies_nowhere_is_refused(stored, contract, tmp_path):
    path = write(tmp_path / "a.tif", stored, BANDS, crs=None)
    with pytest.raises(CorruptRasterError, match=r"no coordinate reference system"):
        open_input(path, contract)


def test_a_raster_on_a_server_is_read_like_one_on_disk(stored, contract, tmp_path):
    path = write(tmp_path / "a.tif", stored, BANDS, nodata=0.0)
    with RangeServer(tmp_path) as server:
        there = open_input(f"{server.url}/a.tif", contract).read(5, 6, 70, 80)
    for ours, theirs in zip(open_input(path, contract).read(5, 6, 70, 80), there, strict=True):
        np.testing.assert_array_equal(ours, theirs)


# STAC items


@pytest.mark.parametrize("window", [(0, 0, *SHAPE), (33, 57, 51, 77), (127, 159, 1, 1)])
def test_a_scene_is_harmonised_masked_and_on_its_10_m_grid(scene, truth, contract, window):
    source = open_input(item_of(scene), contract)
    assert source.shape == SHAPE
    assert source.geobox == scene.files.geobox
    rows, cols = (slice(window[n], window[n] + window[n + 2]) for n in (0, 1))
    values, valid = source.read(*window)
    np.testing.assert_array_equal(valid, truth[1][rows, cols])
    expected = truth[0][:, rows, cols]
    np.testing.assert_allclose(values[:, valid], expected[:, valid], atol=1e-6)
    made_of = source.made_of.model_dump()
    assert made_of["harmonised"]["dn"] == -1000
    assert {*made_of["files"]} == {*CHOSEN, "SCL"}


def test_a_scene_of_20_m_bands_alone_is_on_the_same_grid(scene):
    values, valid = scene.expected(("B11", "B12"))
    contract = contract_for(values[:, valid] * 1e-4, ("B11", "B12"))
    source = open_input(item_of(scene), contract)
    assert source.geobox == scene.files.geobox
    found, known = source.read(0, 0, *SHAPE)
    np.testing.assert_allclose(found[:, known], values[:, known] * 1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("offset", "said"),
    [
        (0.0, r"^unit: .*reflectance x 10000 with the offset of \+1000.*add --offset -0\.1"),
        (0.3, r"--offset 0\.3: Sentinel-2 L2A has -0\.1, or 0"),
    ],
)
def test_an_offset_that_the_pixels_contradict_is_refused(scene, contract, offset, said):
    with pytest.raises((ContractError, ConfigError), match=said):
        open_input(item_of(scene), contract, Reading(offset=offset))


def test_an_offset_taken_away_twice_is_refused(contract, tmp_path):
    one = acquire(
        tmp_path, "S2A_2", ground_with_holes(1, shape=SHAPE), baseline="05.00", flag=False
    )
    path = one.files.folder / "item.json"
    path.write_text(json.dumps(one.files.item(str(one.files.folder))))
    with pytest.raises(ContractError, match=r"^unit: 1000 is subtracted .*; add --offset 0, or go"):
        open_input(str(path), contract)
    assert open_input(str(path), contract, Reading(offset=0.0)).overridden == {}


def test_an_item_of_an_api_is_read(scene, contract, truth):
    with (
        RangeServer(scene.files.folder) as files,
        StacServer([scene.files.item(files.url)]) as api,
    ):
        items = f"{api.url}collections/sentinel-2-l2a/items"
        values, valid = open_input(f"{items}/{scene.files.name}", contract).read(0, 0, *SHAPE)
        np.testing.assert_array_equal(valid, truth[1])
        np.testing.assert_allclose(values[:, valid], truth[0][:, valid], atol=1e-6)
        with pytest.raises(UnreachableError, match=r"items/none could not be read: \w"):
            open_input(f"{items}/none", contract)


def test_a_run_of_another_level_or_other_bands_takes_no_item(scene, truth):
    values = truth[0][:, truth[1]]
    with pytest.raises(ContractError, match=r"^level: .*surface .* top-of-atmosphere"):
        open_input(item_of(scene), contract_for(values, sensor=SENTINEL2_L1C))
    radar = contract_for(values[:2], ("B04", "B11"))
    vv, b11 = radar.sensor.bands
    sensor = replace(radar.sensor, bands=(replace(vv, name="VV"), b11))
    radar = radar.model_copy(update={"sensor": sensor})
    with pytest.raises(ContractError, match=r"^bands: vv of the run"):
        open_input(item_of(scene), radar)


@pytest.mark.parametrize("reading", [Reading(BANDS), Reading(scale=1.0), Reading(nodata=0.0)])
def test_options_of_raster_files_are_refused_for_an_item(scene, contract, reading):
    with pytest.raises(ConfigError, match=r"--\w+ is for raster files.*leave it out"):
        open_input(item_of(scene), contract, reading)


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"type": "Feature"}', '{"type": "Feature", "assets": {}, "properties": {}}',
     '{"type": "Feature", "assets": 3, "properties": {}}', "[" * 100_000],
)  # fmt: skip
def test_what_is_no_item_is_said_to_be_none(contract, tmp_path, content):
    (tmp_path / "item.json").write_text(content)
    with pytest.raises(SourceError, match=r"item\.json is no STAC item|has no asset"):
        open_input(str(tmp_path / "item.json"), contract)
    with pytest.raises(SourceError, match=r"other\.json does not exist"):
        open_input(str(tmp_path / "other.json"), contract)


# Options


def reading(*arguments):
    words = ["embed", "run", "a.tif", "--output", "v.tif", *arguments]
    _, given, _ = app.parse_args(words, exit_on_error=False, print_error=False)
    return given.arguments.get("reading", Reading())


def test_options_say_how_to_read():
    assert reading() == Reading()
    assert reading("--bands", "B02, B03") == Reading(("B02", "B03"))
    assert reading("--bands", "B04=3,B03=2") == Reading({"B04": 3, "B03": 2})
    numbers = reading("--scale", "1e-3", "--offset", "-0.1", "--nodata", "0")
    assert numbers == Reading(None, 1e-3, -0.1, 0.0)
    assert reading("--allow", "unit", "--allow", "bands").allow == {"unit", "bands"}


@pytest.mark.parametrize("text", ["", "B04,", "B04=3,B03", "B04=0", "B04=x", "=3", "B04=1,B04=2"])
def test_bands_that_cannot_be_understood_are_refused(text):
    with pytest.raises(ConfigError, match=r"--bands '.*' is neither names in the file's order"):
        reading("--bands", text)
