"""Colours of classes and the style file that QGIS takes."""

from xml.etree import ElementTree

import numpy as np
import pytest
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox

from bharateo.inference.map import own_classes, write_class_style
from bharateo.landcover import BHARATEO_CLASSES
from bharateo.pixels.cog import Bands, write_cog


def test_names_of_land_cover_keep_their_ids_and_colours():
    assert own_classes(["water", "tree"]) == (BHARATEO_CLASSES[5], BHARATEO_CLASSES[0])


def test_own_classes_get_ids_in_order_and_colours_that_differ():
    names = [f"crop {number}" for number in range(30)] + ["tree"]
    classes = own_classes(names)
    assert [each.id for each in classes] == list(range(31))
    assert [each.name for each in classes] == names
    assert len({each.colour for each in classes}) == 31
    assert all(0 <= value <= 255 for each in classes for value in each.colour)


def test_the_style_names_every_class_with_its_value_and_colour(tmp_path):
    classes = own_classes(['wells & "ponds"', "<town>"])
    write_class_style(tmp_path / "map.qml", classes)
    root = ElementTree.fromstring((tmp_path / "map.qml").read_text().split("\n", 1)[1])
    renderer = root.find("pipe/rasterrenderer")
    assert renderer.get("type") == "paletted"
    assert renderer.get("band") == "1"
    found = [(e.get("value"), e.get("label"), e.get("color")) for e in root.iter("paletteEntry")]
    assert found == [(str(each.id), each.name, f"#{bytes(each.colour).hex()}") for each in classes]


ODD_NAMES = [
    "".join(map(chr, range(32))), "\x7f\x85\ufffe\uffff", "\ud800 half", "a\x00b",
    "]]><qgis>", "<!-- &amp; \"'>", "\u202etree", "😀",
]  # fmt: skip


@pytest.mark.parametrize("name", ODD_NAMES)
def test_class_names_of_any_characters_make_files_that_are_xml(name, tmp_path):
    classes = own_classes([name, "plain"])
    write_class_style(tmp_path / "map.qml", classes)
    root = ElementTree.parse(tmp_path / "map.qml").getroot()
    entries = [*root.iter("paletteEntry")]
    assert len(entries) == 2
    assert entries[1].get("label") == "plain"
    bands = Bands("uint8", (name,), 255, colours={0: (1, 2, 3)}, categories=(name, "plain"))
    grid = GeoBox((4, 4), Affine(10, 0, 0, 0, -10, 0), "EPSG:32643")
    write_cog(tmp_path / "map.tif", grid, bands, [(0, 0, np.zeros((1, 4, 4), np.uint8))])
    notes = ElementTree.parse(tmp_path / "map.tif.aux.xml")
    assert [each.text for each in notes.iter("Category")][1] == "plain"
    with rasterio.open(tmp_path / "map.tif") as file:
        assert len(file.descriptions[0]) >= 1
