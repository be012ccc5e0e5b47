"""Colours of classes by what they are called, and the styles that QGIS takes."""

from xml.etree import ElementTree

import numpy as np
import pytest
import rasterio
from affine import Affine
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox

from bharateo.errors import ConfigError
from bharateo.inference.legend import (
    known_colour,
    own_classes,
    palette_for,
    parse_colours,
    recoloured,
)
from bharateo.landcover import BHARATEO_CLASSES
from bharateo.pixels.cog import Bands, write_cog
from bharateo.pixels.styles import (
    class_style,
    probability_styles,
    uncertainty_styles,
    write_styles,
)

UTM = CRS("EPSG:32643")
TREE, CROP, GRASS, BUILT, BARE, WATER, WETLAND = (e.colour for e in BHARATEO_CLASSES[:7])


def test_names_of_land_cover_keep_their_ids_and_colours():
    assert own_classes(["water", "tree"]) == (BHARATEO_CLASSES[5], BHARATEO_CLASSES[0])


def test_own_classes_get_ids_in_order_and_colours_that_differ():
    names = [f"crop {number}" for number in range(30)] + ["tree", *"abcdefgh"]
    classes = own_classes(names)
    assert [each.id for each in classes] == list(range(39))
    assert [each.name for each in classes] == names
    assert len({each.colour for each in classes}) == 39
    assert all(0 <= value <= 255 for each in classes for value in each.colour)


@pytest.mark.parametrize(
    ("name", "colour"),
    [
        ("Water", WATER), ("open_water", WATER), ("village pond", WATER), ("पानी", WATER),
        ("नदी", WATER), ("talab", WATER), ("Rivers", WATER), ("trees", TREE), ("forests", TREE),
        ("जंगल", TREE), ("पे\u0921\u093c", TREE), ("पे\u095c", TREE),
        ("jangal", TREE), ("built-up area", BUILT), ("towns", BUILT), ("शहर", BUILT),
        ("gaon", BUILT), ("fields", CROP), ("paddy", CROP), ("खेत", CROP), ("khet", CROP),
        ("grassland", GRASS), ("घास", GRASS), ("bare soil", BARE), ("बंजर भूमि", BARE),
        ("wetland", WETLAND),
    ],
)  # fmt: skip
def test_classes_have_the_colours_that_people_know(name, colour):
    assert known_colour(name) == colour
    assert own_classes([name, "zzz"])[0].colour == colour


@pytest.mark.parametrize("name", ["not water", "non-forest", "other", "zzz", "", "waterloo", "अन्य"])
def test_what_a_name_does_not_say_has_no_colour_of_its_own(name):
    assert known_colour(name) is None


def test_the_last_word_says_what_it_is():
    road, sand = known_colour("forest road"), known_colour("river sand")
    assert road == known_colour("road")
    assert sand == known_colour("sand")


def test_names_of_one_meaning_are_shades_and_no_other_colour_comes_near_them():
    names = ["shallow water", "deep water", "unknown", "town"]
    shallow, deep, unknown, town = (np.array(each) for each in palette_for(names))
    assert tuple(shallow) == WATER
    assert deep.argmax() == 2  # still blue
    assert tuple(town) == BUILT
    assert min(np.abs(unknown - each).sum() for each in (shallow, deep, town)) >= 60


def test_colours_of_a_persons_choice():
    classes = own_classes(["wells", "a=b"])
    chosen = recoloured(classes, parse_colours(["wells=#0064C8", "a=b=#010203"]))
    assert [each.colour for each in chosen] == [(0, 100, 200), (1, 2, 3)]
    assert [each.id for each in chosen] == [0, 1]
    for text in ("wells", "wells=blue", "=#000000", "wells=#12345", "wells=#12345g"):
        with pytest.raises(ConfigError, match="is not CLASS=#RRGGBB"):
            parse_colours([text])
    with pytest.raises(ConfigError, match="two colours"):
        parse_colours(["wells=#000000", "wells=#ffffff"])
    with pytest.raises(ConfigError, match="there is no such class; the map's are wells, a=b"):
        recoloured(classes, {"well": (0, 0, 0)})


def root_of(path):
    return ElementTree.fromstring(path.read_text().split("\n", 1)[1])


def test_the_style_names_every_class_with_its_value_and_colour(tmp_path):
    classes = own_classes(['wells & "ponds"', "<town>"])
    write_styles({tmp_path / "map.tif": class_style(classes)}, UTM, tmp_path / "map.qlr")
    root = root_of(tmp_path / "map.qml")
    renderer = root.find("pipe/rasterrenderer")
    assert renderer.get("type") == "paletted"
    assert renderer.get("band") == "1"
    found = [(e.get("value"), e.get("label"), e.get("color")) for e in root.iter("paletteEntry")]
    assert found == [(str(each.id), each.name, f"#{bytes(each.colour).hex()}") for each in classes]


def test_every_band_of_every_file_is_a_layer_with_a_style(tmp_path):
    classes = own_classes(["water", "fields", "x"])
    files = {
        tmp_path / "map.tif": class_style(classes),
        tmp_path / "map-probabilities.tif": probability_styles(classes),
        tmp_path / "map-uncertainty.tif": uncertainty_styles(),
    }
    write_styles(files, UTM, tmp_path / "map.qlr")
    root = root_of(tmp_path / "map.qlr")
    layers = [*root.iter("maplayer")]
    listed = {each.get("id"): each for each in root.iter("layer-tree-layer")}
    assert len(layers) == len(listed) == 1 + 3 + 3
    shown = []
    for layer in layers:
        entry = listed[layer.findtext("id")]
        assert entry.get("source") == layer.findtext("datasource")
        assert layer.findtext("srs/spatialrefsys/authid") == "EPSG:32643"
        assert layer.findtext("provider") == entry.get("providerKey") == "gdal"
        shown.append((layer.findtext("datasource"), layer.find("pipe/rasterrenderer").get("band")))
    assert shown == [(f"./{file.name}", str(style.band)) for file in files for style in files[file]]
    probability = layers[1].find("pipe/rasterrenderer")
    colours = [each.get("color") for each in probability.iter("item")]
    assert colours == ["#ffffff", f"#{bytes(WATER).hex()}"]
    assert root_of(tmp_path / "map-uncertainty.qml").find("pipe/rasterrenderer").get("type") == (
        "singlebandpseudocolor"
    )


ODD_NAMES = [
    "".join(map(chr, range(32))), "\x7f\x85\ufffe\uffff", "\ud800 half", "a\x00b",
    "]]><qgis>", "<!-- &amp; \"'>", "\u202etree", "😀",
]  # fmt: skip


@pytest.mark.parametrize("name", ODD_NAMES)
def test_class_names_of_any_characters_make_files_that_are_xml(name, tmp_path):
    classes = own_classes([name, "plain"])
    write_styles({tmp_path / "map.tif": class_style(classes)}, UTM, tmp_path / "map.qlr")
    ElementTree.parse(tmp_path / "map.qlr")
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
