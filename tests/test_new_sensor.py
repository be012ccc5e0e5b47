"""A named sensor is one file, one line in ``config.SOURCES`` and one YAML; here they are in one."""

import json
from pathlib import Path

import numpy as np
import pytest

import bharateo
from bharateo import config
from bharateo.errors import ConfigError
from bharateo.landcover import WORLDCOVER
from bharateo.pixels.raster import Raster
from bharateo.regions import parse_roi, worldcover_region
from bharateo.sensor import Band, Composite, Sensor
from bharateo.sources import ImageSource, LabelSource, Recipe

NAME = "moonlight"

YAML = f"""
data:
  source: {NAME}
  rois: ["pond=77.2,28.6,96"]
  options: {{darkest: 40}}
  plan: {{size_px: 24, split: {{block_px: 24, buffer_px: 0, val: 0.2, test: 0.2}}}}
"""


class Moonlight(ImageSource):
    """One band of made-up light, at least as bright as its options say."""

    name = "Moonlight"
    attribution = ("By the light of the moon",)
    sensor = Sensor(
        name=NAME,
        title="Moonlight, one band",
        bands=(Band("lux", 10),),
        dtype="uint16",
        scale=0.01,
        offset=0.0,
        unit="lux",
        composites={"light": Composite(("lux", "lux", "lux"), 0.0, 1.0)},
        standardised=True,
    )

    def __init__(self, darkest):
        self.darkest = darkest

    def read(self, geobox):
        height, width = geobox.shape
        values = self.darkest + np.arange(height * width, dtype=np.uint16).reshape(height, width)
        return Raster(values[None], np.ones((height, width), bool), geobox, {})


class Shores(LabelSource):
    """Water on the left, trees on the right."""

    name = "Shores"
    attribution = ()
    scheme = WORLDCOVER

    def read(self, geobox):
        codes = np.full((1, *geobox.shape), 10, np.uint8)
        codes[:, :, : geobox.shape[1] // 2] = 80
        return Raster(codes, codes[0] != 0, geobox, {})


def recipe(data, say):
    """What the line in the registry names."""
    say(f"the moon is up over {', '.join(data.rois)}")
    regions = [worldcover_region(parse_roi(text)) for text in data.rois]
    return Recipe(NAME, regions, Moonlight(**data.options), Shores())


@pytest.fixture
def yaml(tmp_path):
    file = tmp_path / "moonlight.yaml"
    file.write_text(YAML)
    return file


def test_a_class_a_line_in_the_registry_and_a_yaml_make_a_dataset(
    yaml, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(config.SOURCES, NAME, f"{__name__}:recipe")
    dataset = bharateo.build(config.load_config(yaml), tmp_path / "dataset")
    assert "the moon is up over pond" in capsys.readouterr().out
    assert dataset.sensor == Moonlight.sensor
    assert dataset.num_chips == 16
    assert min(dataset.image(chip).min() for chip in range(16)) == 40
    classes = {int(code) for chip in range(16) for code in dataset.landcover(chip).ravel()}
    assert classes == {WORLDCOVER.native[10][1], WORLDCOVER.native[80][1]}
    written = json.loads((dataset.path / "dataset.json").read_text())
    assert written["source"] == {"image": "Moonlight", "landcover": "Shores"}
    assert written["attribution"] == ["By the light of the moon"]


def test_without_its_line_the_name_is_refused_with_those_that_are_known(yaml):
    with pytest.raises(ConfigError, match=rf"data\.source.*'geotiff', not '{NAME}'"):
        config.load_config(yaml)


def test_nothing_in_the_package_knows_of_the_sensor():
    """So what was built above came from this file and its line alone."""
    texts = [
        file.read_text(encoding="utf-8")
        for file in Path(bharateo.__file__).parent.rglob("*")
        if file.suffix in (".py", ".yaml", ".js", ".html")
    ]
    assert len(texts) > 100
    assert not [text for text in texts if NAME in text.lower()]


def test_chips_name_no_product():
    """Whatever a build asks of a source is in the protocol, so chips/ imports no single one."""
    for file in (Path(bharateo.__file__).parent / "chips").glob("*.py"):
        text = file.read_text(encoding="utf-8")
        assert "bharateo.sources." not in text, file.name
        assert "getattr(source" not in text, file.name
