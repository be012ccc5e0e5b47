import base64
import io

import numpy as np
import pytest
from PIL import Image

from bharateo.landcover import BHARATEO_CLASSES, palette
from bharateo.report import render
from bharateo.sensor import SENTINEL2_L1C, SENTINEL2_L2A, WORLDCOVER_PALETTE

HATCH_GREYS = {(176, 176, 172), (146, 146, 143)}


def decoded(uri):
    head, _, body = uri.partition(",")
    assert head.endswith(";base64")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(body))).convert("RGB"))


def test_a_palette_chip_is_shown_in_exactly_its_own_colours():
    class_ids = np.arange(8, dtype=np.uint8).reshape(2, 4)
    image = render.physical(palette(class_ids), WORLDCOVER_PALETTE)
    rgb = render.composite_rgb(image, WORLDCOVER_PALETTE)
    assert np.array_equal(rgb, render.class_rgb(class_ids))
    assert tuple(rgb[0, 3]) == BHARATEO_CLASSES[3].colour


def test_a_composite_takes_the_named_bands_under_its_own_stretch():
    image = np.zeros((10, 1, 2), np.float32)
    true, false = SENTINEL2_L1C.composites.values()
    low, high = true.low, true.high
    image[2] = [[low, high]]  # B04, red
    image[1] = [[(low + high) / 2, 9.0]]  # B03, green
    image[0] = [[-1.0, low]]  # B02, blue
    rgb = render.composite_rgb(image, SENTINEL2_L1C)
    assert rgb.tolist() == [[[0, 128, 0], [255, 255, 0]]]
    image[6] = [[false.low, false.high]]  # B08, red
    image[2] = [[(false.low + false.high) / 2, high]]  # B04, green
    rgb = render.composite_rgb(image, SENTINEL2_L1C, composite="false colour B8-B4-B3")
    assert rgb[0, :, 0].tolist() == [0, 255]
    assert rgb[0, 0, 1] == 128
    assert rgb[0, 1].tolist() == [
        255,
        round(255 * (high - false.low) / (false.high - false.low)),
        255,
    ]


def test_pictures_of_a_dataset_share_one_stretch_that_takes_haze_off_every_band(make_dataset):
    dataset = make_dataset(SENTINEL2_L1C)
    sensor = render.as_shown(dataset)
    for name, one in sensor.composites.items():
        seen = np.concatenate(
            [dataset.image(i)[:, dataset.valid(i)] for i in range(dataset.num_chips)], 1
        )
        values = render.physical(seen, sensor)
        rgb = render.composite_rgb(values[:, None], sensor, composite=name)
        for band, limits in zip(np.moveaxis(rgb, -1, 0), one.limits, strict=True):
            assert (band == 0).mean() < 0.05 and (band == 255).mean() < 0.05
            assert limits != (one.low, one.high)
        for (low, high), band in zip(one.limits, one.bands, strict=True):
            assert f"{band} {low:g} to {high:g}" in render.stretch_note(sensor, name)
    assert len({limits for one in sensor.composites.values() for limits in one.limits}) > 1


def test_palette_colours_and_a_range_of_ones_own_are_shown_as_declared(make_dataset):
    palette_dataset = make_dataset(WORLDCOVER_PALETTE)
    assert render.as_shown(palette_dataset) == palette_dataset.sensor
    dataset = make_dataset(SENTINEL2_L1C)
    recipe = "data: {source: geotiff, geotiff: {display_range: [0, 0.3]}}"
    (dataset.path / "recipe.yaml").write_text(recipe)
    assert render.as_shown(dataset) == dataset.sensor


@pytest.mark.parametrize("held", [0.0, 0.3, np.nan, np.inf])
def test_what_an_invalid_pixel_holds_never_shows(held):
    image = np.full((10, 8, 8), 0.1, np.float32)
    valid = np.ones((8, 8), bool)
    valid[2, 3] = False
    image[:, 2, 3] = held
    rgb = render.composite_rgb(image, SENTINEL2_L1C, valid)
    assert tuple(rgb[2, 3]) in HATCH_GREYS
    assert tuple(rgb[2, 4]) not in HATCH_GREYS


def test_a_pixel_without_a_label_is_hatched_not_black():
    rgb = render.class_rgb(np.full((8, 8), 255, np.uint8))
    assert {tuple(pixel) for pixel in rgb.reshape(-1, 3)} == HATCH_GREYS


@pytest.mark.parametrize("colours", [2, 256, 4000])
def test_png_is_lossless_whatever_the_number_of_colours(colours):
    rng = np.random.default_rng(colours)
    table = rng.integers(0, 256, (colours, 3), dtype=np.uint8)
    rgb = table[rng.integers(0, colours, (64, 64))]
    assert np.array_equal(decoded(render.png_uri(rgb)), rgb)
    assert render.png_uri(rgb) == render.png_uri(rgb.copy())


def test_a_map_of_few_colours_stays_exact_and_a_photograph_becomes_a_jpeg():
    classes = render.class_rgb(np.arange(64, dtype=np.uint8).reshape(8, 8) % 8)
    assert render.photo_uri(classes).startswith("data:image/png")
    photo = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert render.photo_uri(photo).startswith("data:image/jpeg")
    assert decoded(render.photo_uri(photo)).shape == photo.shape


def test_the_stretch_is_stated_in_the_sensors_unit():
    note = render.stretch_note(SENTINEL2_L1C)
    assert "0.08 to 0.2 top-of-atmosphere reflectance" in note
    assert "B4-B3-B2" in note
    assert "0 to 1" not in render.stretch_note(WORLDCOVER_PALETTE)


def test_every_composite_states_its_own_stretch():
    true, false = (render.stretch_note(SENTINEL2_L2A, name) for name in SENTINEL2_L2A.composites)
    assert true.startswith("true colour B4-B3-B2, 0 to 0.3 surface reflectance stretched linearly")
    assert false.startswith("false colour B8-B4-B3, 0 to 0.45 surface reflectance stretched")


def test_the_ramp_runs_from_dark_to_bright_and_survives_a_flat_field():
    rgb = render.ramp_rgb(np.array([[0.0, 1.0, 7.0]]), 1.0).astype(int)
    assert rgb[0, 0].sum() < 30 < 600 < rgb[0, 1].sum()
    assert np.array_equal(rgb[0, 1], rgb[0, 2])
    assert render.ramp_rgb(np.zeros((2, 2)), 0.0).max() < 10
