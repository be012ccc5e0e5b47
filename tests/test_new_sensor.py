"""A named sensor is one file, one line in ``config.SOURCES`` and one YAML; here they are in one."""

import json
import os
import shutil
import subprocess
import sys
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


@pytest.mark.slow
def test_one_file_and_one_line_in_a_copy_of_the_package_train_and_embed(yaml, tmp_path):
    """What a newcomer does, on the command line: two files of the package are touched."""
    here, copy = Path(bharateo.__file__).parent, tmp_path / "src" / "bharateo"
    shutil.copytree(here, copy, ignore=shutil.ignore_patterns("__pycache__", "vendor"))
    (copy / "sources" / f"{NAME}.py").write_text(Path(__file__).read_text())
    line = f'    "{NAME}": "bharateo.sources.{NAME}:recipe",\n'
    first = '    "worldcover": "bharateo.sources.worldcover:worldcover_recipe",\n'
    text = (copy / "config.py").read_text()
    assert first in text
    (copy / "config.py").write_text(text.replace(first, first + line))
    yaml.write_text(
        YAML
        + """
model: {chip_px: 16, patch_px: 4, width: 16, depth: 1, num_heads: 2, decoder_width: 16,
        decoder_depth: 1, decoder_num_heads: 2}
training: {epochs: 2, batch_size: 4, warmup_epochs: 1}
machine: {threads: 1}
"""
    )

    def bharateo_says(*words):
        done = subprocess.run(
            [sys.executable, "-m", "bharateo", *words],
            cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(copy.parent)},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert not done.returncode, done.stderr
        return done.stdout

    bharateo_says("build", str(yaml), "--output", "dataset")
    bharateo_says("pretrain", str(yaml), "--dataset", "dataset", "--output", "run")
    assert len((tmp_path / "run" / "history.jsonl").read_text().splitlines()) == 2
    bharateo_says("embed", "run", "dataset", "--output", "vectors.parquet")
    assert (tmp_path / "vectors.parquet").exists()
    changed = {
        str(file.relative_to(copy))
        for file in copy.rglob("*.py")
        if not (here / file.relative_to(copy)).exists()
        or (here / file.relative_to(copy)).read_bytes() != file.read_bytes()
    }
    assert changed == {"config.py", f"sources/{NAME}.py"}
