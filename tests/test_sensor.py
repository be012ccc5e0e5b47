import json

import pytest

from bharateo.errors import ConfigError
from bharateo.sensor import (
    BAND_SETS,
    SENTINEL2_L1C,
    SENTINEL2_L2A,
    WORLDCOVER_PALETTE,
    Composite,
    Sensor,
)

SENTINEL2 = [SENTINEL2_L1C, SENTINEL2_L2A]
SUBSETS = [SENTINEL2_L2A.with_bands(names) for names in (BAND_SETS["rgb"], ("B11",))]

every_sensor = pytest.mark.parametrize(
    "sensor", [WORLDCOVER_PALETTE, *SENTINEL2, *SUBSETS], ids=lambda sensor: sensor.title
)
every_sentinel2 = pytest.mark.parametrize("sensor", SENTINEL2, ids=lambda sensor: sensor.name)


@every_sensor
def test_a_sensor_survives_json(sensor):
    read = Sensor.from_json(json.loads(json.dumps(sensor.to_json())))
    assert read == sensor
    assert list(read.composites) == list(sensor.composites)


@every_sensor
def test_every_composite_names_bands_of_the_sensor(sensor):
    for name, composite in sensor.composites.items():
        indices = sensor.composite_indices(name)
        assert tuple(sensor.band_names[index] for index in indices) == composite.bands
        assert composite.low < composite.high
    assert sensor.composite_indices() == sensor.composite_indices(sensor.default_composite)
    assert sensor.num_bands == len(set(sensor.band_names))


@every_sentinel2
def test_true_colour_of_sentinel2_is_b4_b3_b2(sensor):
    red, green, blue = sensor.composite_indices()
    names = sensor.band_names
    assert (names[red], names[green], names[blue]) == ("B04", "B03", "B02")
    assert sensor.num_bands == 10


@every_sentinel2
def test_near_infrared_gets_a_wider_stretch_than_the_visible_bands(sensor):
    true, false = sensor.composites.values()
    assert false.bands == ("B08", "B04", "B03")
    assert false.low <= true.low
    assert false.high > true.high


def test_level_2a_is_harmonised_surface_reflectance():
    assert SENTINEL2_L2A.scale * 10_000 + SENTINEL2_L2A.offset == 1
    assert SENTINEL2_L2A.unit == "surface reflectance"
    assert SENTINEL2_L2A.standardised
    assert "-1000" in SENTINEL2_L2A.notes
    assert [(c.low, c.high) for c in SENTINEL2_L2A.composites.values()] == [(0, 0.30), (0, 0.45)]


def test_palette_colours_are_taken_as_they_are_and_reflectances_standardised():
    assert not WORLDCOVER_PALETTE.standardised
    assert SENTINEL2_L1C.standardised
    assert 255 * WORLDCOVER_PALETTE.scale + WORLDCOVER_PALETTE.offset == 1


@pytest.mark.parametrize(
    "spoil",
    [
        lambda r: r.pop("unit"),
        lambda r: r.pop("bands"),
        lambda r: r.update(colour="blue"),
        lambda r: r["composites"]["palette colour"].pop("high"),
        lambda r: r.update(composites={"all": ["red", "green", "blue"]}),
    ],
)
def test_an_incomplete_or_unknown_record_is_refused(spoil):
    record = WORLDCOVER_PALETTE.to_json()
    spoil(record)
    with pytest.raises(ConfigError, match="sensor record is incomplete or unknown"):
        Sensor.from_json(record)


@every_sentinel2
@pytest.mark.parametrize("names", BAND_SETS.values(), ids=BAND_SETS)
def test_a_sensor_with_some_bands_has_them_in_the_order_asked_for(sensor, names):
    some = sensor.with_bands(names)
    assert some.band_names == names
    assert set(some.bands) <= set(sensor.bands)
    assert (some.name, some.scale, some.unit) == (sensor.name, sensor.scale, sensor.unit)


def test_all_bands_in_their_order_are_the_sensor_itself():
    assert SENTINEL2_L2A.with_bands(BAND_SETS["10band"]) == SENTINEL2_L2A


def test_composites_that_lack_a_band_go_and_the_first_left_is_the_default():
    true, false = SENTINEL2_L2A.composites
    assert list(SENTINEL2_L2A.with_bands(BAND_SETS["rgbn"]).composites) == [true, false]
    assert list(SENTINEL2_L2A.with_bands(BAND_SETS["rgb"]).composites) == [true]
    infrared = SENTINEL2_L2A.with_bands(["B03", "B04", "B08"])
    assert infrared.default_composite == false
    assert infrared.composites[false] == SENTINEL2_L2A.composites[false]
    assert infrared.composite_indices() == (2, 1, 0)


@pytest.mark.parametrize(
    ("names", "title", "bands"),
    [
        (["B8A", "B12"], "first band, grey", ("B8A", "B8A", "B8A")),
        (["B12", "B11", "B8A", "B05"], "bands B12-B11-B8A", ("B12", "B11", "B8A")),
    ],
)
def test_bands_that_no_composite_fits_are_shown_under_the_first_stretch(names, title, bands):
    some = SENTINEL2_L2A.with_bands(names)
    assert some.composites == {title: Composite(bands, 0.0, 0.30)}


def test_the_title_of_a_subset_names_its_bands():
    rgb = SENTINEL2_L2A.with_bands(BAND_SETS["rgb"])
    assert rgb.title == "Sentinel-2 L2A, B04 B03 B02 at 10 m"
    assert WORLDCOVER_PALETTE.with_bands(["red"]).title == "ESA WorldCover, red"
    assert SENTINEL2_L2A.with_bands(SENTINEL2_L2A.band_names[::-1]).title == SENTINEL2_L2A.title


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["B04", "B99", "b02"], "'B99' is unknown, 'b02' is unknown"),
        (["B04", "B03", "B04"], "'B04' is named twice"),
        ([], "none is named"),
    ],
)
def test_unknown_and_repeated_bands_are_named_with_those_there_are(names, told):
    with pytest.raises(ConfigError, match=f"sentinel2-l2a: {told}; choose .* B02, .*, B12, each"):
        SENTINEL2_L2A.with_bands(names)
