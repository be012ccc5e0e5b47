import json
import re

import numpy as np
import pytest
import rasterio
from odc.geo.geobox import GeoBox
from PIL import Image

from bharateo.accounting import Accounting
from bharateo.config import Config, ModelConfig
from bharateo.errors import SourceError
from bharateo.evaluation import reconstruction
from bharateo.inference.map import products
from bharateo.pixels.cog import Bands, write_cog
from bharateo.report import notebook
from bharateo.report.notebook import Figure

MODEL = ModelConfig(chip_px=64, patch_px=16)


def shown(figure: Figure) -> str:
    return figure._repr_html_()


def test_a_figure_brings_its_style_along_and_asks_for_nothing_outside(dataset):
    page = shown(notebook.show_regions(dataset))
    assert ".bharateo {" in page and ".panel {" in page
    assert all(
        link.startswith(("data:", "#")) for link in re.findall(r'(?:href|src)="(.*?)"', page)
    )


def test_the_account_of_a_plan_is_a_table():
    page = shown(notebook.show_account(Accounting(384, 20, 128, 16, 3, 0.75)))
    assert "94,371,840" in page and "283,115,520" in page


def test_every_region_is_shown_with_its_histogram(dataset):
    page = shown(notebook.show_regions(dataset))
    assert all(name in page for name in dataset.regions)
    assert page.count('class="counted histogram"') == len(dataset.regions)


def test_chips_and_tokens_are_shown_before_there_is_a_run(dataset):
    config = Config(model=MODEL)
    chips = shown(notebook.show_chips(dataset, config, count=2))
    tokens = shown(notebook.show_tokens(dataset, config))
    num_composites = len(dataset.sensor.composites)
    assert chips.count('<svg class="panel') == 2 * (num_composites + 2)
    assert tokens.count('<svg class="panel') == 4
    assert "12 of 16 patches hidden" in tokens


def test_a_figure_says_what_it_is_where_no_picture_can_be_shown():
    assert repr(notebook.show_account(Accounting(1, 1, 32, 16, 3, 0.5))) == "<token accounting>"


def test_a_picture_is_shown_with_its_words(tmp_path):
    Image.new("RGB", (3, 2), (9, 8, 7)).save(tmp_path / "sheet.png")
    page = shown(notebook.show_picture(tmp_path / "sheet.png", 'a "lake"'))
    assert 'alt="a &#34;lake&#34;"' in page and "data:image/png;base64," in page


def test_a_picture_that_is_not_there_is_named(tmp_path):
    with pytest.raises(SourceError, match=r"gone\.png cannot be read"):
        notebook.show_picture(tmp_path / "gone.png", "nothing")


@pytest.fixture
def write(tmp_path):
    """``write(name, array)``: a small raster of ``(band, row, col)``; its path."""

    def write(path, values):
        names = tuple(f"b{number}" for number in range(len(values)))
        geobox = GeoBox.from_bbox((0, 0, 80, 40), "EPSG:32643", shape=values.shape[1:])
        write_cog(path, geobox, Bands(str(values.dtype), names, 255), [(0, 0, values)])
        return path

    return write


@pytest.fixture
def made_up_map(tmp_path, write):
    """``made_up_map(against)``: the files of a map of 4 x 8 cells; its path."""

    def make(against):
        files = products(tmp_path / "map.tif")
        rng = np.random.default_rng(0)
        raster = write(tmp_path / "raster.tif", rng.integers(1, 90, (3, 8, 16)).astype(np.uint16))
        classes = rng.integers(0, 2, (1, 4, 8)).astype(np.uint8)
        write(files["classes"], classes)
        write(files["uncertainty"], np.concatenate([classes * 40, classes, classes]))
        write(files["suspect"], np.concatenate([classes, classes, classes, classes]))
        source = {"input": str(raster), "bands": ["B02", "B03", "B04"], "bands_in_file": [1, 2, 3]}
        record = {
            "source": source,
            "classes": [{"id": 0, "name": "bare_sparse", "colour": [217, 164, 65]}],
            "against": against,
        }
        files["record"].write_text(json.dumps(record))
        return files["classes"]

    return make


def test_a_map_is_shown_with_its_raster_and_its_doubts(made_up_map):
    page = shown(notebook.show_map(made_up_map({"cells": 3})))
    labels = re.findall(r'<span class="label">(.*?)</span>', page)
    assert labels == [
        "the raster", "land cover", "uncertainty", "out of the run&#39;s domain",
        "labels", "suspect labels",
    ]  # fmt: skip
    assert "bare sparse" in page and "#d9a441" in page


def test_a_map_made_against_nothing_shows_no_labels(made_up_map):
    assert "suspect" not in shown(notebook.show_map(made_up_map(None)))


def test_a_map_whose_raster_has_gone_says_which_file(made_up_map, tmp_path):
    path = made_up_map(None)
    (tmp_path / "raster.tif").unlink()
    with pytest.raises(SourceError, match=r"raster\.tif cannot be read"):
        notebook.show_map(path)


def test_a_large_raster_is_thinned_and_a_small_one_drawn_in_squares(tmp_path, write):
    large = write(tmp_path / "large.tif", np.zeros((1, 1000, 2000), np.uint8))
    small = write(tmp_path / "small.tif", np.arange(8, dtype=np.uint8).reshape(1, 2, 4))
    assert notebook._thin(large, 1).shape == (1, notebook.MOST_PX // 2, notebook.MOST_PX)
    squares = notebook._thin(small, 1)[0]
    side = squares.shape[1] // 4
    assert (squares[:side, :side] == 0).all() and (squares[-side:, -side:] == 7).all()
    with rasterio.open(small) as file:
        assert squares.shape == tuple(side * cells for cells in file.shape)


def test_classes_of_patches_are_shown_without_a_table_of_confusions(
    dataset, make_example, monkeypatch
):
    monkeypatch.setattr(reconstruction, "reconstruct", lambda *_: [make_example(dataset)])
    assert "Patch classes" in notebook.show_patch_classes(None, dataset)._repr_html_()
