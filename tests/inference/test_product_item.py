"""STAC Items beside products, as pystac reads them."""

import json

import pystac
import pytest
import rasterio
import shapely
from pystac.validation import validate_dict

from bharateo.verbs.cli import main
from handover.tiny_run import tiny_run
from inference.ground import write_raster
from small_datasets import contents


@pytest.fixture(scope="module")
def products(tmp_path_factory, reflectance_dataset):
    """The folder of a map, an embedding of a raster, and one of a dataset."""
    folder = tmp_path_factory.mktemp("products")
    run = str(tiny_run(folder / "run", reflectance_dataset, depth=1).path)
    raster = str(write_raster(folder / "district.tif"))
    out = folder / "out"
    assert main(["map", run, raster, "--output", str(out / "map.tif")]) == 0
    for name in ("v.tif", "v.parquet"):
        arguments = ["embed", run, raster, "--output", str(out / name)]
        assert main([*arguments, *(["--dtype", "int8"] if name == "v.tif" else [])]) == 0
    dataset = str(reflectance_dataset.path)
    assert main(["embed", run, dataset, "--output", str(out / "d.parquet")]) == 0
    before = contents(out)
    assert main(["embed", run, raster, "--output", str(out / "v.parquet")]) == 0
    (out / "map.tif.stac.json").unlink()
    assert main(["map", run, raster, "--output", str(out / "map.tif")]) == 0
    assert contents(out) == before
    return out


@pytest.mark.parametrize("name", ["map.tif", "v.tif", "v.parquet", "d.parquet"])
def test_an_item_is_complete_and_every_file_of_it_is_there(products, name):
    item = pystac.Item.from_file(str(products / f"{name}.stac.json"))
    record = json.loads((products / f"{name}.stac.json").read_text())
    assert record["stac_version"] == "1.1.0"
    assert validate_dict(record, extensions=[])  # by STAC's own schemas, which pystac brings
    assert item.datetime is not None or record["properties"]["start_datetime"]
    assert record["properties"]["license"]
    assert record["properties"]["attribution"]
    footprint = shapely.geometry.shape(item.geometry)
    assert footprint.is_valid
    assert list(footprint.bounds) == pytest.approx(item.bbox)
    for asset in item.assets.values():
        assert (products / asset.href).is_file()
        assert asset.roles
        assert asset.media_type


def test_an_item_places_and_describes_the_bands_of_a_geotiff(products):
    item = pystac.Item.from_file(str(products / "v.tif.stac.json"))
    with rasterio.open(products / "v.tif") as file:
        assert item.properties["proj:code"] == f"EPSG:{file.crs.to_epsg()}"
        assert item.properties["proj:shape"] == [*file.shape]
        assert item.properties["proj:transform"] == [*file.transform][:6]
        bands = item.assets["vectors"].extra_fields["bands"]
        assert [band["name"] for band in bands] == [*file.descriptions]
        assert [band["raster:scale"] for band in bands] == [*file.scales]
        first = file.read(1)
        known = first[first != file.nodata]
    assert bands[0]["data_type"] == "int8"
    assert bands[0]["statistics"]["mean"] == pytest.approx(known.mean())


def test_an_item_of_a_map_names_all_its_files(products):
    item = pystac.Item.from_file(str(products / "map.tif.stac.json"))
    assert {*item.assets} == {
        "classes", "style", "probabilities", "probabilities-style", "uncertainty",
        "uncertainty-style", "layer-definition", "picture", "record",
    }  # fmt: skip
    assert item.assets["picture"].roles == ["overview"]
    assert item.assets["picture"].media_type == "image/png"
