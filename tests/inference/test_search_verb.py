"""``bharateo search`` and its files."""

import json

import geopandas as gpd
import pytest
import rasterio
from PIL import Image
from rasterio.warp import transform

from bharateo.inference.embed import CELL_PX
from bharateo.pixels.product import COG_TAG
from bharateo.verbs.cli import main
from handover.tiny_run import tiny_run
from inference.areas import centres, table, vectors
from inference.small_rasters import write_raster
from small_datasets import contents

LIKE = "{:.6f},{:.6f}".format(*centres([11], [17])[:, 0])


def verb(*arguments):
    return main(["search", *map(str, arguments)])


def test_a_table_is_searched_and_the_places_open_in_geopandas(tmp_path, capsys):
    file = table(tmp_path / "v.parquet", vectors())
    assert verb(file, "--like", LIKE, "--count", 6, "--output", tmp_path / "out") == 0
    found = gpd.read_file(tmp_path / "out" / "found.geojson")
    assert found["rank"].tolist() == list(range(7))
    assert {"similarity", "lon", "lat", "row", "col"} <= {*found.columns}
    assert found.geometry.is_valid.all()
    assert "no contact sheet" in capsys.readouterr().out


def test_a_dataset_is_embedded_once_then_searched(reflectance_dataset, tmp_path, capsys):
    run = tiny_run(tmp_path / "run", reflectance_dataset)
    middle = gpd.read_parquet(reflectance_dataset.path / "chips.parquet").geometry[3].centroid
    like = f"{middle.x - 1e-4},{middle.y - 1e-4}"
    arguments = (run.path, reflectance_dataset.path, "--like", like, "--output", tmp_path / "out")
    assert verb(*arguments) == 0
    before = contents(tmp_path / "out")
    products = {"embedding.parquet", "embedding.parquet.stac.json"}
    assert before.keys() == products | {"found.geojson", "sheet.png"}
    record = json.loads(before["found.geojson"])
    places = record["features"]
    assert record["embedding"]["source"]["dataset"] == str(reflectance_dataset.path)
    assert {"class", "water", "chip", "split"} <= {*places[0]["properties"]}
    with Image.open(tmp_path / "out" / "sheet.png") as sheet:
        assert sheet.mode == "RGB"
    assert verb(*arguments) == 0
    assert contents(tmp_path / "out") == before
    assert "is there already" in capsys.readouterr().out


def test_a_raster_is_searched_without_a_run(tmp_path, capsys):
    raster = write_raster(tmp_path / "r.tif", 384, 512, tile=(128, 128))  # all comes back
    with rasterio.open(raster) as file:
        lon, lat = transform(file.crs, "EPSG:4326", *map(list, zip(file.xy(200, 200))))
    composite = {"product": "composite", "attribution": ["© whoever took it"]}
    raster.with_suffix(".json").write_text(json.dumps(composite))
    arguments = (raster, "--like", f"{lon[0]},{lat[0]}", "--output", tmp_path / "out")
    assert verb(*arguments, "--count", 3) == 0
    assert "© whoever took it" in (tmp_path / "out" / "embedding.tif.stac.json").read_text()
    places = json.loads((tmp_path / "out" / "found.geojson").read_text())["features"]
    at = [(place["properties"]["row"], place["properties"]["col"]) for place in places]
    assert at[0] == (200 // CELL_PX, 200 // CELL_PX)
    assert {(row % 8, col % 8) for row, col in at} == {(at[0][0] % 8, at[0][1] % 8)}
    before = contents(tmp_path / "out")
    assert verb(*arguments, "--count", 3) == 0
    assert contents(tmp_path / "out") == before
    assert "is there already" in capsys.readouterr().out
    with rasterio.open(raster, "r+") as file:
        file.update_tags(**{COG_TAG: json.dumps({"product": "map"})})
    assert verb(raster, "--like", "77.2,28.6", "--output", tmp_path / "map") == 1
    assert not (tmp_path / "map").exists()


def test_search_is_scored_on_the_test_split(reflectance_dataset, tmp_path, capsys):
    run = tiny_run(tmp_path / "run", reflectance_dataset)
    words = ["score-search", run.path, reflectance_dataset.path, "--output", tmp_path / "out"]
    assert main([str(word) for word in words]) == 0
    record = json.loads((tmp_path / "out" / "precision.json").read_text())
    assert (record["split"], record["k"]) == ("test", 20)
    assert "band statistics" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["v.parquet", "--like", "-4.05,-92.41"], "'-4.05,-92.41' is no longitude"),
        (["v.parquet", "--like", "28.6"], "no longitude, latitude"),
        (["v.parquet", "--like", "28.6,177.2"], "no longitude, latitude"),
        (["v.parquet", "--like", LIKE, "--count", "0"], "--count 0"),
        (["v.parquet", "--like", LIKE], "no table of vectors"),
    ],
)
def test_what_cannot_be_searched_is_said_in_one_line(arguments, said, tmp_path, capsys):
    arguments = [str(tmp_path / each) if each.endswith("parquet") else each for each in arguments]
    assert verb(*arguments, "--output", tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert said in error
    assert not (tmp_path / "out").exists()
