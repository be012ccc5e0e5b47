"""The verbs `hectares` and `polygons`, as other programs see what they write."""

import csv
import json
import re
from html.parser import HTMLParser

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from PIL import Image

from bharateo.inference.class_raster import ClassRaster
from bharateo.pixels.picture import PICTURE_MARK, write_picture
from bharateo.verbs.cli import main
from small_datasets import contents

NAMES = ["", "पानी", "<b>town</b> & field", "Tree", "tree"]
SHAPE = (300, 400)


def write_map(path, values=None, names=NAMES, crs="EPSG:32643"):
    if values is None:
        values = np.full(SHAPE, 2, np.uint8)
        values[:, :120] = 1
        values[200:, 250:] = 3
        values[200:, 330:] = 4
        values[:60, 300:] = 0
        values[100:104, 200:204] = 1
    with rasterio.open(
        path, "w", driver="GTiff", height=values.shape[0], width=values.shape[1], count=1,
        dtype=values.dtype, nodata=0, crs=crs, transform=Affine(10, 0, 500_000, 0, -10, 3_160_000),
    ) as file:  # fmt: skip
        file.write(values[None])
    categories = "".join(
        f"<Category>{each.replace('&', '&amp;').replace('<', '&lt;')}</Category>" for each in names
    )
    path.with_name(f"{path.name}.aux.xml").write_text(
        "<PAMDataset><PAMRasterBand band='1'><CategoryNames>"
        f"{categories}</CategoryNames></PAMRasterBand></PAMDataset>"
    )
    return path


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A map, three districts (one off the map), and what the verb makes of them."""
    folder = tmp_path_factory.mktemp("world")
    write_map(folder / "map.tif")
    boxes = [(500_000, 3_157_000, 502_000, 3_160_000), (502_000, 3_157_000, 504_500, 3_160_000),
             (600_000, 3_157_000, 601_000, 3_158_000)]  # fmt: skip
    names = ["west", "<i>east</i>", "far"]
    table = geopandas.GeoDataFrame(
        {"name": names}, geometry=[shapely.box(*each) for each in boxes], crs="EPSG:32643"
    )
    table.to_file(folder / "districts.gpkg")
    command = ["hectares", str(folder / "map.tif"), "--zones", str(folder / "districts.gpkg"),
               "--zone-field", "name", "--output", str(folder / "out")]  # fmt: skip
    assert main(command) == 0
    return folder, command


def test_table_layer_and_record_say_the_same(world):
    folder, _ = world
    record = json.loads((folder / "out" / "hectares.json").read_text())
    zones = {each["zone"]: each for each in record["zones"]}
    layer = geopandas.read_file(folder / "out" / "hectares.gpkg").set_index("zone")
    rows = [*csv.DictReader((folder / "out" / "hectares.csv").read_text().splitlines())]
    assert len(rows) == 3 * 4
    assert layer.crs.to_epsg() == 4326
    columns = [name for name in layer.columns if "_ha" in name]
    for row in rows:
        zone = zones[row["zone"]]
        (known,) = [each for each in zone["classes"] if each["class"] == row["class"]]
        assert "bharateo areas" in row["estimate"]
        if zone["zone"] == "far":
            assert row["hectares"] == ""
            assert known["hectares"] is None
            continue
        assert float(row["hectares"]) == pytest.approx(known["hectares"], rel=1e-5)
    for name, zone in zones.items():
        found = layer.loc[name, columns].to_numpy(float)
        expected = [np.nan if e["hectares"] is None else e["hectares"] for e in zone["classes"]]
        np.testing.assert_allclose(found, expected)
    west, east = zones["west"], zones["<i>east</i>"]
    assert west["hectares"] == pytest.approx(600, rel=2e-3)  # UTM is not true to area
    assert [each["share"] for each in west["classes"]] == pytest.approx([0.6, 0.4, 0, 0], abs=1e-6)
    assert 0.6 < east["valid_share"] < 0.8
    assert zones["far"]["valid_share"] == 0
    assert "count of map cells" in record["estimate"]


class _Texts(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.texts, self.tags = [], set()
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        for name, value in attrs:
            assert not (name in ("src", "href") and re.match("https?:", value or "")), value

    def handle_data(self, data):
        self.texts.append(data)


def test_the_page_holds_the_table_needs_nothing_else_and_takes_no_name_for_markup(world):
    folder, _ = world
    page = _Texts((folder / "out" / "hectares.html").read_text())
    text = " ".join(page.texts)
    for words in ("<i>east</i>", "<b>town</b> & field", "पानी", "bharateo areas", "no data",
                  "counts of map cells", "95 % of their ground: <i>east</i>, far"):  # fmt: skip
        assert words in text
    assert not {"script", "b"} & page.tags


def test_districts_that_overlap_have_no_sum(world):
    folder, command = world
    assert "all districts" in (folder / "out" / "hectares.html").read_text()
    boxes = [shapely.box(75, 28.5, 75.02, 28.56), shapely.box(75.01, 28.5, 75.03, 28.56)]
    geopandas.GeoDataFrame(geometry=boxes, crs=4326).to_file(folder / "two.geojson")
    zones = ["--zones", str(folder / "two.geojson"), "--output", str(folder / "two")]
    assert main(["hectares", command[1], *zones]) == 0
    page = (folder / "two" / "hectares.html").read_text()
    assert "all districts" not in page
    assert "some of which overlap" in page


def test_the_same_command_gives_the_same_bytes_and_writes_over_nothing_else(world, capsys):
    folder, command = world
    before = contents(folder / "out")
    assert main(command) == 0
    assert contents(folder / "out") == before
    layer = folder / "out" / "hectares.gpkg"
    table = geopandas.read_file(layer)
    table.to_file(layer)  # as somebody would edit it
    assert main(command) == 1
    assert "is not what `bharateo hectares` makes (or was changed" in capsys.readouterr().err
    layer.write_bytes(before["hectares.gpkg"])
    assert main([*command[:-1], str(folder)]) == 0  # beside its inputs, under other names
    assert main(["hectares", command[1], "--zones", command[3], "--zone-field", "x",
                 "--output", command[-1]]) == 1  # fmt: skip
    assert "--zone-field 'x' is no column" in capsys.readouterr().err


# Polygons


def test_polygons_hold_every_hectare_and_none_is_below_the_unit(tmp_path, capsys):
    path = write_map(tmp_path / "map.tif")
    found = {}
    for least in (0, 1):
        output = tmp_path / f"{least}.gpkg"
        command = ["polygons", str(path), "--min-area-ha", str(least), "--output", str(output)]
        assert main(command) == 0
        found[least] = geopandas.read_file(output)
        before = output.read_bytes()
        assert main(command) == 0
        assert output.read_bytes() == before
    every, some = found[0], found[1]
    assert len(every) == 5
    assert len(some) == 4  # the pond of 0.16 ha has gone to the town around it
    assert some["hectares"].min() >= 1
    assert every["hectares"].sum() == pytest.approx(some["hectares"].sum())
    assert every["hectares"].sum() == pytest.approx((300 * 400 - 60 * 100) / 100, rel=2e-3)
    assert {*every["class"]} == {*NAMES[1:]}
    assert every.crs.to_epsg() == 32643
    assert every.geometry.is_valid.all()


def test_polygons_of_noise_say_what_has_no_larger_neighbour(tmp_path, capsys):
    row, col = np.indices((40, 40))
    path = write_map(tmp_path / "map.tif", (1 + (row + col) % 2).astype(np.uint8))
    assert main(["polygons", str(path), "--output", str(tmp_path / "p.gpkg")]) == 0
    assert "1600 polygons are smaller than 0.5 ha" in capsys.readouterr().out
    assert len(geopandas.read_file(tmp_path / "p.gpkg")) == 1600


def test_maps_too_large_for_polygons_are_refused_with_a_command(tmp_path, monkeypatch, capsys):
    path = write_map(tmp_path / "map.tif")
    output = tmp_path / "p.gpkg"
    command = ["polygons", str(path), "--output", str(output)]
    with monkeypatch.context() as patch:
        patch.setattr("bharateo.inference.polygons.MOST_CELLS", 1000)
        assert main(command) == 1
        assert "gdal_translate -srcwin 0 0 31 31" in capsys.readouterr().err
    monkeypatch.setattr("bharateo.inference.polygons.MOST_POLYGONS", 3)
    assert main(command) == 1
    assert "raise --min-area-ha" in capsys.readouterr().err
    assert [each.name for each in tmp_path.iterdir() if "p.gpkg" in each.name] == []
    assert main([*command, "--min-area-ha", "-1"]) == 1
    assert main(["polygons", str(path), "--output", str(tmp_path / "p.shp")]) == 1


# The picture


def test_the_picture_shows_the_ground_in_its_colours_and_gaps_hatched(world):
    raster = ClassRaster.open(world[0] / "map.tif")
    shown = raster.picture(800)
    assert shown.has_gaps
    assert [each.id for each in shown.classes] == [1, 2, 3, 4]
    height, width = shown.rgb.shape[:2]
    assert width / height == pytest.approx(4 / 3, rel=0.01)
    colours = {each.id: each.colour for each in shown.classes}
    for share_down, share_along, number in ((0.5, 0.1, 1), (0.9, 0.4, 2), (0.9, 0.7, 3)):
        at = shown.rgb[int(height * share_down), int(width * share_along)]
        assert tuple(at) == colours[number]
    gap = shown.rgb[: height // 6, int(width * 0.8) :].reshape(-1, 3)
    assert len(np.unique(gap, axis=0)) == 2


@pytest.mark.parametrize("shape", [(1, 1), (3, 900), (900, 3), (90, 100)])
def test_rasters_of_any_shape_have_a_picture_that_says_whose_pixels_they_are(tmp_path, shape):
    path = write_map(tmp_path / "map.tif", np.ones(shape, np.uint8), ["", "पानी " * 30])
    write_picture(
        tmp_path / "map.png", ClassRaster.open(path).picture(), ["somebody's pixels"] * 40
    )
    with Image.open(tmp_path / "map.png") as picture:
        assert picture.text["Software"] == PICTURE_MARK
        assert max(picture.size) < 2600
    before = (tmp_path / "map.png").read_bytes()
    write_picture(
        tmp_path / "map.png", ClassRaster.open(path).picture(), ["somebody's pixels"] * 40
    )
    assert (tmp_path / "map.png").read_bytes() == before


def test_a_district_is_told_without_the_classes_it_does_not_hold(world, tmp_path, capsys):
    _, command = world
    assert main([*command[:-1], str(tmp_path / "out")]) == 0
    told = [line for line in capsys.readouterr().out.splitlines() if "% with data: " in line]
    assert len(told) == 3
    assert not any(re.search(r" 0(,|$)", line) for line in told)
