"""Wrong input to Sentinel-2 and GeoTIFF builds: told in one line, nothing lost."""

import json
import shutil

import distributed
import numpy as np
import pytest
import rasterio
from affine import Affine

from bharateo.verbs.cli import main
from sentinel2_rig import PRESET, done, served, two_zone_world
from small_datasets import contents, small_dataset
from stac_server import StacServer
from tiny_mirror import CONFIG, write_config


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return two_zone_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def rig(world):
    with served(world) as rig:
        yield rig


@pytest.fixture(scope="module")
def good(rig, tmp_path_factory):
    """A dataset that is there already."""
    output = tmp_path_factory.mktemp("good") / "dataset"
    assert done(rig.build(output))
    return output


@pytest.fixture
def refused(capsys, good):
    """``refused(command)``: the one line that a refused call prints; the good dataset stays."""

    def call(command):
        before = contents(good)
        assert main([str(argument) for argument in command]) == 1
        text = capsys.readouterr().err
        assert text.count("\n") == 1, text
        assert text.startswith("bharateo: ")
        assert "Traceback" not in text
        assert contents(good) == before
        return text

    return call


def polygons(path, *geometries):
    """A GeoJSON file of some geometries."""
    features = [{"type": "Feature", "properties": {}, "geometry": each} for each in geometries]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


def square(west, south, side=0.1):
    ring = [[west, south], [west + side, south], [west + side, south + side], [west, south + side]]
    return {"type": "Polygon", "coordinates": [[*ring, ring[0]]]}


# The area.


def test_an_area_at_sea_is_told(rig, refused, tmp_path):
    area = polygons(tmp_path / "sea.geojson", square(-140.1, 0.3))
    said = refused(rig.build(tmp_path / "dataset", "--aoi", str(area)))
    assert "ConfigError: no square of plan.size_px 64 fits the area" in said
    assert "open sea, without labels" in said
    assert not (tmp_path / "dataset" / "dataset.json").exists()
    assert done(rig.build(tmp_path / "dataset")), "the folder is free for a mended call"


def test_an_area_that_no_scene_covers_is_told(rig, refused, tmp_path):
    everywhere = {"data__plan__min_classes": 0}
    area = polygons(tmp_path / "far.geojson", square(81.0, 25.0))
    said = refused(rig.build(tmp_path / "dataset", "--aoi", str(area), **everywhere))
    assert f"EmptyRegionError: no scene in {rig.catalogue.url} covers the area (44R" in said
    for remedy in ("LON,LAT", "data.sentinel2.dates", "data.sentinel2.max_cloud"):
        assert remedy in said
    assert done(rig.build(tmp_path / "dataset")), "the folder is free for a mended call"


@pytest.mark.parametrize("kind", ["points", "text", "missing"])
def test_an_area_file_without_polygons_is_told(rig, refused, tmp_path, kind):
    area = tmp_path / "area.geojson"
    if kind == "points":
        polygons(area, {"type": "Point", "coordinates": [78.0, 28.6]})
    elif kind == "text":
        area.write_text("north of the river")
    said = refused(rig.build(tmp_path / "dataset", "--aoi", str(area)))
    assert f"RegionError: data.aoi {area} " in said
    told = {
        "points": "holds no polygon: draw the area as polygons",
        "text": "cannot be read as polygons",
        "missing": "is no file: give a GeoJSON or GeoPackage of polygons",
    }
    assert told[kind] in said
    assert not (tmp_path / "dataset").exists()


# The catalogue and its items.


def test_a_catalogue_that_answers_with_a_web_page_is_told(rig, refused, tmp_path):
    page = rig.world.folder / "index.html"
    page.write_text("<!DOCTYPE html><html><body>Sign in first</body></html>")
    url = f"{rig.files.url}/index.html"
    said = refused(rig.build(tmp_path / "dataset", data__sentinel2__catalogue=url))
    assert f"UnreachableError: the catalogue {url} could not be asked" in said
    assert "it answers with a web page (HTML), not with STAC" in said
    assert "check data.sentinel2.catalogue" in said
    assert done(rig.build(tmp_path / "dataset")), "the folder is free for a mended call"


def test_items_without_a_band_are_told(rig, refused, tmp_path):
    items = rig.world.items(f"{rig.files.url}/s2")
    for item in items:
        del item["assets"]["nir08"]
    with StacServer(items) as catalogue:
        url = f"earth-search={catalogue.url}"
        said = refused(rig.build(tmp_path / "dataset", data__sentinel2__catalogue=url))
        assert "SourceError: item S2A_4" in said
        assert f"of {catalogue.url} has no asset 'nir08' for band B8A (it has blue, " in said
        assert "data.sentinel2.assets, or leave the band out of data.bands" in said
        narrow = {"data__sentinel2__catalogue": url, "data__bands": "[rgbn]"}
        assert done(rig.build(tmp_path / "rgbn", **narrow))


def test_one_item_without_a_band_is_left_out_and_said(rig, tmp_path, capsys):
    items = rig.world.items(f"{rig.files.url}/s2")
    clearer = json.loads(json.dumps(items[0]))
    clearer["id"] = "CLEARER"
    clearer["properties"]["eo:cloud_cover"] = 0.0
    del clearer["assets"]["scl"]
    with StacServer([clearer, *items]) as catalogue:
        url = f"earth-search={catalogue.url}"
        assert done(rig.build(tmp_path / "dataset", data__sentinel2__catalogue=url))
    assert "items lack a band, e.g. CLEARER: left out" in capsys.readouterr().out


def test_a_scene_without_a_reference_system_is_told(rig, refused, tmp_path):
    file = rig.world.folder / "s2" / "S2A_43RGM_20210203" / "B04.tif"
    aside = file.rename(file.with_suffix(".aside"))
    try:
        with rasterio.open(aside) as dataset:
            profile, values = dataset.profile, dataset.read()
        with rasterio.open(file, "w", **{**profile, "driver": "GTiff", "crs": None}) as dataset:
            dataset.write(values)
        said = refused(rig.build(tmp_path / "dataset"))
    finally:
        aside.replace(file)
    assert "BuildError: 1 of 4 units could not be read" in said
    url = f"{rig.files.url}/s2/S2A_43RGM_20210203/B04.tif"
    assert f"{url} has no coordinate reference system" in said
    assert "assign one (gdal_edit.py" in said
    assert done(rig.build(tmp_path / "dataset"))


def test_an_unknown_band_is_told(rig, refused, tmp_path):
    said = refused(rig.build(tmp_path / "dataset", data__bands="[B04, B10]"))
    assert "ConfigError: bands of sentinel2-l2a: 'B10' is unknown; choose some of B02, " in said
    assert not (tmp_path / "dataset").exists()


# Files of one's own.


def test_a_band_map_that_names_a_missing_file_is_told(refused, tmp_path):
    with rasterio.open(
        tmp_path / "red.tif", "w", driver="GTiff", height=300, width=300, count=1, dtype="uint16",
        crs="EPSG:32643", transform=Affine(10, 0, 700000, 0, -10, 3160000),
    ) as dataset:  # fmt: skip
        dataset.write(np.full((1, 300, 300), 7, np.uint16))
    settings = {
        "data.source": "geotiff", "data.rois": "[]", "data.geotiff.path": tmp_path,
        "data.geotiff.bands": "{red: {file: red.tif}, nir: {file: nir.tif}}",
    }  # fmt: skip
    sets = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    said = refused(["build", PRESET, "--output", tmp_path / "dataset", *sets])
    assert "ConfigError: data.geotiff.bands.nir.file 'nir.tif' matches 0 files" in said
    assert f"in {tmp_path}" in said
    assert "correct it (there are red.tif)" in said
    assert not (tmp_path / "dataset" / "dataset.json").exists()


# Another version's dataset, and a cluster that is not there.


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A trained run, and its configuration."""
    folder = tmp_path_factory.mktemp("run")
    small_dataset(folder / "dataset")
    config = write_config(folder, CONFIG)
    call = ["pretrain", config, "--dataset", folder / "dataset", "--output", folder / "run"]
    assert main([str(argument) for argument in call]) == 0
    return folder / "run", config


def test_a_dataset_of_another_version_is_refused_by_every_verb(rig, run, good, refused, tmp_path):
    old = shutil.copytree(good, tmp_path / "old")
    record = json.loads((old / "dataset.json").read_text())
    (old / "dataset.json").write_text(json.dumps({**record, "schema_version": 1}))
    before, (trained, config) = contents(old), run
    for command in (
        rig.build(old),
        ["pretrain", config, "--dataset", old, "--output", tmp_path / "run"],
        ["evaluate", trained, "--dataset", old, "--output", tmp_path / "evaluation.json"],
    ):
        said = refused(command)
        assert f"DatasetError: {old / 'dataset.json'} has schema_version 1" in said
        assert "build the dataset again" in said
        assert contents(old) == before


def test_a_scheduler_that_is_not_there_is_told(rig, refused, tmp_path, monkeypatch):
    def impatient(address, timeout, **options):
        return client(address, timeout=0.3, **options)

    client = distributed.Client
    monkeypatch.setattr(distributed, "Client", impatient)
    said = refused(rig.build(tmp_path / "dataset", "--scheduler", "tcp://127.0.0.1:9"))
    assert "BuildError: the Dask scheduler tcp://127.0.0.1:9 does not answer" in said
    assert "check its address" in said
    assert done(rig.build(tmp_path / "dataset")), "without it the same build goes on"
