import os
import re
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox

from bharateo.chips.statistics import Statistics
from bharateo.errors import ContractError
from bharateo.inference.contract import (
    COLOURS,
    REFLECTANCES,
    Sample,
    band_places,
    canonical,
    check_grid,
    check_pixels,
    ground_resolution,
    level_of,
    other_unit,
    sample_windows,
)
from bharateo.inference.inputs import open_input
from bharateo.reading import ContractField, Reading
from bharateo.sensor import BAND_SETS, SENTINEL2_L1C, SENTINEL2_L2A, WORLDCOVER_PALETTE
from bharateo.training.contract import Differences
from l2a_scenes import BANDS, made_up_scene
from small_datasets import small_contract

RGB = SENTINEL2_L2A.with_bands(("B04", "B03", "B02"))
LAND = np.array((10, 20, 30, 40, 50, 60, 80))
UNITS = dict(zip(("x 1", "x 1000", "x 10000", "offset"), REFLECTANCES, strict=True))
PLAIN = UNITS["x 10000"]


def reflectance(classes=LAND, seed=0):
    """Pixels of made-up land and water, float (band, pixel)."""
    values, _ = made_up_scene((96, 96), seed, classes=tuple(classes))
    return values.reshape(len(BANDS), -1) * 1e-4


def statistics(values):
    return Statistics(values.mean(1), values.std(1), values.shape[1])


TRAINED = statistics(reflectance())


def contract(sensor=SENTINEL2_L2A, trained=TRAINED, patch_px=16):
    return small_contract(sensor, trained, patch_px)


def stored_as(values, unit, dtype="uint16"):
    return ((values - unit.offset) / unit.scale).round(0 if dtype != "float32" else 6).astype(dtype)


# Bands


@pytest.mark.parametrize(
    ("name", "band"),
    [("B4", "B04"), ("b04", "B04"), ("B04", "B04"), ("Red", "B04"), ("B8A", "B8A"), ("b8a", "B8A"),
     ("nir", "B08"), ("nir08", "B8A"), ("SWIR16", "B11"), ("B12 ", "B12"), ("rededge_1", "B05"),
     ("B4, central wavelength 665 nm", "B04"), ("VV", "vv"), ("bands", "bands")],
)  # fmt: skip
def test_a_band_is_known_by_its_common_names(name, band):
    assert canonical(name) == band


def places(in_file, given=None, allow=(), sensor=RGB):
    differences = Differences(allow)
    return band_places("a.tif", in_file, sensor, given, differences), differences.found


def test_bands_are_found_by_what_the_file_calls_them():
    assert places(["B1", "blue", "B03", "red"]) == ((3, 2, 1), {})


def test_what_the_user_says_wins_over_the_file():
    assert places(["red", "green", "blue"], ("B02", "B03", "B04")) == ((2, 1, 0), {})
    assert places([None] * 5, {"B04": 5, "B02": 1, "green": 2}) == ((4, 1, 0), {})


@pytest.mark.parametrize(
    ("in_file", "given", "said"),
    [
        ([None] * 3, None, r"does not say which band of its 3 is which"),
        ([None] * 4, None, r"does not say which band of its 4 is which"),
        (["B04", "B03", None], None, r"B02 is missing in a\.tif \(B04, B03, \?\)"),
        (["B04", "B03", "B02", "red"], None, r"B04 is named twice"),
        ([None] * 4, ("B04", "B03", "B02"), r"has 4 bands, and 3 are named"),
        ([None] * 3, {"B04": 1, "B03": 2}, r"B02 is missing"),
        ([None] * 3, {"B04": 1, "B03": 2, "B02": 4}, r"has 3 bands, no number 4"),
    ],
)
def test_an_order_that_nobody_said_is_refused_with_the_option_that_says_it(in_file, given, said):
    with pytest.raises(ContractError, match=rf"^bands: .*{said}.*--bands: B04,B03,B02"):
        places(in_file, given)


def test_the_runs_own_order_is_taken_for_unnamed_bands_only_if_allowed_and_said_so():
    found, overridden = places([None] * 3, allow=["bands"])
    assert found == (0, 1, 2)
    assert "taken in the run's order" in overridden["bands"]
    for in_file in ([None] * 4, ["B04", "B03", None]):
        with pytest.raises(ContractError, match=r"^bands: "):
            places(in_file, allow=["bands"])


@given(st.permutations(BANDS))
def test_any_order_of_named_bands_is_put_in_the_runs_order(order):
    found, _ = places(order, sensor=SENTINEL2_L2A)
    assert tuple(order[place] for place in found) == BANDS


# Resolution and size


def grid(px, shape=(64, 64), crs="EPSG:32643", corner=(500_000, 3_000_000)):
    return GeoBox(shape, Affine(px, 0, corner[0], 0, -px, corner[1]), crs)


def test_the_resolution_is_that_on_the_ground():
    assert ground_resolution(grid(10)) == pytest.approx(10, rel=1e-3)
    degrees = grid(1 / 12000, crs="EPSG:4326", corner=(77, 28.6))
    on_ground = 40_007_863 / 360 / 12000, 40_075_017 / 360 / 12000 * np.cos(np.radians(28.6))
    assert ground_resolution(degrees) == pytest.approx(np.prod(on_ground) ** 0.5, rel=3e-3)
    mercator = grid(10, crs="EPSG:3857", corner=(0, 8_399_738))  # 60 degrees north
    assert ground_resolution(mercator) == pytest.approx(5, rel=0.01)


@pytest.mark.parametrize(
    "geobox", [grid(20), grid(3), grid(10, crs="EPSG:3857", corner=(0, 8_399_738))]
)
def test_another_resolution_is_refused_unless_allowed(geobox):
    with pytest.raises(ContractError, match=r"^resolution: .* m on the ground.* trained on 10 m"):
        check_grid("a.tif", geobox, contract(), Differences())
    differences = Differences(["resolution"])
    check_grid("a.tif", geobox, contract(), differences)
    assert [*differences.found] == ["resolution"]


def test_pixels_of_degrees_pass_for_10_m():
    check_grid(
        "a.tif", grid(8.983e-5, crs="EPSG:4326", corner=(77, 28.6)), contract(), Differences()
    )


@pytest.mark.parametrize("shape", [(15, 200), (200, 15)])
def test_a_raster_smaller_than_a_patch_is_refused_whatever_is_allowed(shape):
    with pytest.raises(ContractError, match=r"^patch_px: .*give a larger raster"):
        check_grid("a.tif", grid(10, shape), contract(), Differences(get_args(ContractField)))


# Unit


def named(values, unit, read_as, sensor=SENTINEL2_L2A, trained=TRAINED, dtype="uint16"):
    stored = Sample.of(stored_as(values, unit, dtype))
    return other_unit(stored, read_as.scale, read_as.offset, sensor, trained)


@pytest.mark.parametrize("read_as", REFLECTANCES, ids=lambda unit: unit.name)
@pytest.mark.parametrize("unit", REFLECTANCES, ids=lambda unit: unit.name)
def test_numbers_of_one_unit_read_as_another_are_named_and_read_right_are_not(unit, read_as):
    dtype = "float32" if unit.scale == 1 else "uint16"
    found = named(reflectance(seed=1), unit, read_as, dtype=dtype)
    assert found == (None if unit == read_as else unit)


LANDSCAPES = {
    "forest and water": (10, 80),
    "desert": (60,),
    "town with trees": (50, 10),
    "cropland": (40,),
    "sea": (80,),
    "snow": (70,),
}


@pytest.mark.parametrize("bands", BAND_SETS)
@pytest.mark.parametrize("classes", LANDSCAPES.values(), ids=LANDSCAPES)
def test_other_land_is_not_taken_for_another_unit(classes, bands):
    sensor = SENTINEL2_L2A.with_bands(BAND_SETS[bands])
    chosen = [BANDS.index(name) for name in sensor.band_names]
    trained = statistics(reflectance()[chosen])
    assert named(reflectance(classes)[chosen], PLAIN, PLAIN, sensor, trained) is None


def test_the_offset_taken_away_twice_is_named():
    assert named(reflectance(), PLAIN, UNITS["offset"]) == PLAIN


def test_eight_bits_are_no_reflectance():
    colours = np.random.default_rng(0).integers(0, 256, (10, 500)).astype("uint8")
    assert other_unit(Sample.of(colours), 1e-4, 0, SENTINEL2_L2A, TRAINED) == COLOURS


def test_reflectance_is_no_colour_of_eight_bits():
    trained = Statistics(np.full(3, 0.4), np.full(3, 0.2), 9)
    for unit in (PLAIN, UNITS["x 1000"]):
        assert named(reflectance()[[2, 1, 0]], unit, COLOURS, WORLDCOVER_PALETTE, trained) == unit
    colours = Sample.of(np.random.default_rng(0).integers(0, 256, (3, 500)).astype("uint8"))
    assert other_unit(colours, COLOURS.scale, 0, WORLDCOVER_PALETTE, trained) is None


def test_no_unit_is_named_where_the_runs_own_is_no_reflectance():
    decibels = Statistics(np.array([-12.0, -18.0]), np.array([4.0, 4.0]), 9)
    pixels = np.random.default_rng(0).normal(-15, 4, (2, 500)).astype("float32")
    assert other_unit(Sample.of(pixels), 1, 0, SENTINEL2_L2A, decibels) is None


def check(values, unit, read_as, allow=(), sensor=SENTINEL2_L2A, trained=TRAINED):
    differences = Differences(allow)
    stored, kept = Sample.of(stored_as(values, unit)), contract(sensor, trained)
    check_pixels("a.tif", stored, read_as.scale, read_as.offset, kept, differences)
    return differences.found


@pytest.mark.parametrize(
    ("unit", "read_as", "remedy"),
    [
        ("x 1000", "x 10000", r"add --scale 0\.001 if"),
        ("offset", "x 10000", r"add --offset -0\.1 if"),
        ("offset", "x 1000", r"add --scale 0\.0001 --offset -0\.1 if"),
        ("x 10000", "offset", r"add --offset 0 if"),
    ],
)
def test_the_refusal_names_the_unit_and_the_options_that_say_it(unit, read_as, remedy):
    name = re.escape(UNITS[unit].name)
    with pytest.raises(ContractError, match=rf"^unit: .*look like {name};.*{remedy}"):
        check(reflectance(), UNITS[unit], UNITS[read_as])


def test_ground_that_would_be_refused_in_its_right_unit_as_well_is_told_so_at_once():
    uniform = Statistics(TRAINED.mean, TRAINED.std / 8, TRAINED.num_pixels)
    with pytest.raises(ContractError, match=r"add --scale 0\.001 if .*--allow statistics takes"):
        check(reflectance(), UNITS["x 1000"], PLAIN, trained=uniform)
    with pytest.raises(ContractError, match=r"^unit: ") as refusal:
        check(reflectance(), UNITS["x 1000"], PLAIN)
    assert "statistics" not in str(refusal.value)


# Processing level


def through_air(values):
    """Surface reflectance as it looks from above the air: more is added, the shorter the wave."""
    return values + np.geomspace(0.09, 0.002, len(BANDS))[:, None]


def test_the_other_processing_level_is_refused_unless_allowed():
    dark = reflectance(LAND.tolist())
    dark[:, :50] = 0.01  # as shadow and deep water are
    with pytest.raises(ContractError, match=r"^level: .*looks like level L1C.*--allow level$"):
        check(through_air(dark), PLAIN, PLAIN)
    assert "level" in check(through_air(dark), PLAIN, PLAIN, ["level", "statistics"])
    assert check(dark, PLAIN, PLAIN) == {}
    read = Sample.of(dark)
    assert level_of(read, SENTINEL2_L1C) == SENTINEL2_L2A.name
    assert level_of(Sample.of(through_air(dark)), SENTINEL2_L2A) == SENTINEL2_L1C.name


def test_snow_haze_and_other_bands_do_not_tell_the_level():
    snow = np.full((len(BANDS), 100), 0.5)
    haze = np.full((len(BANDS), 100), 0.07)
    for values in (snow, haze):
        assert level_of(Sample.of(values), SENTINEL2_L2A) is None
    infrared = SENTINEL2_L2A.with_bands(("B08", "B04", "B03"))
    assert level_of(Sample.of(haze[:3] * 0), infrared) is None
    assert level_of(Sample.of(haze[:3] * 0), WORLDCOVER_PALETTE) is None


# Statistics


def test_land_far_from_the_training_is_refused_with_figures_unless_allowed():
    snow = reflectance((70,))
    with pytest.raises(ContractError, match=r"^statistics: .* standard deviations.*B0\d has mean"):
        check(snow, PLAIN, PLAIN)
    assert [*check(snow, PLAIN, PLAIN, ["statistics"])] == ["statistics"]


def test_a_unit_that_was_allowed_is_not_refused_for_its_statistics():
    assert [*check(reflectance(), PLAIN, UNITS["x 1000"], ["unit"])] == ["unit"]


def test_colours_that_are_not_standardised_may_have_any_statistics():
    sensor, unit = WORLDCOVER_PALETTE, COLOURS
    values = np.full((3, 100), 0.9)
    trained = Statistics(np.full(3, 0.3), np.full(3, 0.05), 9)
    stored = Sample.of(stored_as(values, unit, "uint8"))
    differences = Differences()
    check_pixels("a.tif", stored, unit.scale, 0, contract(sensor, trained), differences)
    assert differences.found == {}


# Looking


@given(st.integers(1, 100_000), st.integers(1, 100_000))
def test_a_bounded_number_of_windows_inside_the_raster_is_looked_at(height, width):
    windows = [*sample_windows((height, width))]
    assert len({*windows}) == len(windows) <= 9
    assert min(w[0] for w in windows) == min(w[1] for w in windows) == 0
    assert max(w[0] + w[2] for w in windows) == height
    assert max(w[1] + w[3] for w in windows) == width


def test_the_fields_of_the_command_line_are_those_that_are_checked():
    fields = {"bands", "unit", "level", "statistics", "resolution", "domain"}
    assert fields == {*get_args(ContractField)}


# Real files

_DATA = Path(os.environ.get("BHARATEO_TEST_DATA", Path(__file__).parents[3] / "shared/data"))
_S2 = _DATA / "s2-multiband"
_L2A = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
_L1C = (*_L2A[:10], "B10", *_L2A[10:])
_REAL = {
    "S2L2A/282D_485L_3_3": None,
    "S2L2A/38D_378R_2_3": None,
    "S2L2A/433D_629L_3_1": "--offset -0.1",
    "S2L2A/637U_59R_1_3": None,
    "S2L1C/282D_485L_3_3": "--offset -0.1",
    "S2L1C/38D_378R_2_3": None,
    "S2L1C/433D_629L_3_1": "--offset -0.1",
    "S2L1C/637U_59R_1_3": None,
}
"""Sites without snow, and what is to be added."""

real = pytest.mark.skipif(not _S2.is_dir(), reason=f"no real pixels at {_S2}")


@real
@pytest.mark.parametrize(("name", "remedy"), _REAL.items(), ids=_REAL)
def test_in_real_files_the_offset_is_found_where_it_is_and_not_where_it_is_not(name, remedy):
    path = str(_S2 / "global-12band" / f"{name}.tif")
    bands = _L1C if "L1C" in name else _L2A
    offset = None
    if remedy:
        with pytest.raises(ContractError, match=rf"^unit: .*offset of \+1000;.*add {remedy}"):
            open_input(path, contract(), Reading(bands))
        offset = -0.1
    if "L1C" in name:
        with pytest.raises(ContractError, match=r"^level: .*looks like level L1C.*--allow level"):
            open_input(path, contract(), Reading(bands, offset=offset))
    allowed = Reading(bands, offset=offset, allow=frozenset({"level"}))
    assert [*open_input(path, contract(), allowed).overridden] == ["level"] * ("L1C" in name)


@real
def test_in_a_real_file_reflectance_x_1000_is_found():
    path = str(next(_S2.glob("*10band.tif")))
    with pytest.raises(ContractError, match=r"^unit: .*reflectance x 1000;.*add --scale 0\.001 if"):
        open_input(path, contract())
    assert open_input(path, contract(), Reading(scale=0.001)).overridden == {}


@real
def test_real_snow_is_refused_by_its_statistics_not_by_its_unit():
    path = str(_S2 / "global-12band/S2L2A/609U_541L_3_0.tif")
    with pytest.raises(ContractError, match=r"^statistics: "):
        open_input(path, contract(), Reading(_L2A))
