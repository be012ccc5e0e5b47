import json

import pytest

from bharateo.errors import ConfigError
from bharateo.sensor import SENTINEL2_L1C, WORLDCOVER_PALETTE, Sensor

every_sensor = pytest.mark.parametrize(
    "sensor", [WORLDCOVER_PALETTE, SENTINEL2_L1C], ids=lambda sensor: sensor.name
)


@every_sensor
def test_a_sensor_survives_json(sensor):
    assert Sensor.from_json(json.loads(json.dumps(sensor.to_json()))) == sensor


@every_sensor
def test_every_composite_names_bands_of_the_sensor(sensor):
    for name, bands in sensor.composites.items():
        indices = sensor.composite_indices(name)
        assert tuple(sensor.band_names[index] for index in indices) == bands
    assert sensor.composite_indices() == sensor.composite_indices(next(iter(sensor.composites)))
    assert sensor.num_bands == len(set(sensor.band_names))


def test_true_colour_of_sentinel2_is_b4_b3_b2():
    red, green, blue = SENTINEL2_L1C.composite_indices()
    names = SENTINEL2_L1C.band_names
    assert (names[red], names[green], names[blue]) == ("B04", "B03", "B02")
    assert SENTINEL2_L1C.num_bands == 10


def test_palette_colours_are_taken_as_they_are_and_reflectances_standardised():
    assert not WORLDCOVER_PALETTE.standardised
    assert SENTINEL2_L1C.standardised
    assert 255 * WORLDCOVER_PALETTE.scale + WORLDCOVER_PALETTE.offset == 1


@pytest.mark.parametrize(
    "spoil", [lambda r: r.pop("unit"), lambda r: r.pop("bands"), lambda r: r.update(colour="blue")]
)
def test_an_incomplete_or_unknown_record_is_refused(spoil):
    record = WORLDCOVER_PALETTE.to_json()
    spoil(record)
    with pytest.raises(ConfigError, match="sensor record is incomplete or unknown"):
        Sensor.from_json(record)
