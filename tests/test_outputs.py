"""No verb replaces what it reads, or what it has not made."""

import json
import os
import shutil

import geopandas as gpd
import pytest
import rasterio

from bharateo.errors import ConfigError
from bharateo.outputs import beginning_with, check_outputs, free_name, json_of
from bharateo.verbs.cli import main
from handover.tiny_run import tiny_run
from inference.areas import centres, table, vectors
from inference.ground import AFFINE, write_raster
from small_datasets import contents
from tiny_mirror import write_config, write_mirror

LIKE = "{:.6f},{:.6f}".format(*centres([11], [17])[:, 0])


@pytest.fixture(scope="module")
def run(tmp_path_factory, reflectance_dataset):
    return tiny_run(tmp_path_factory.mktemp("tiny") / "run", reflectance_dataset, depth=1).path


@pytest.fixture
def raster(tmp_path):
    return write_raster(tmp_path / "district.tif")


def alike(path, how, original):
    """A second name of a file: the same path said otherwise, or a link."""
    if how == "path":
        return original.parent / "." / original.name
    if how == "symlink":
        path.symlink_to(original)
    else:
        os.link(original, path)
    return path


def refused(capsys, *arguments):
    """What is said of it, in one line."""
    assert main([str(each) for each in arguments]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert len(error) < 500
    return error


@pytest.mark.parametrize("how", ["path", "symlink", "hard link"])
@pytest.mark.parametrize("verb", ["map", "embed"])
def test_a_raster_is_never_replaced_by_what_is_made_of_it(verb, how, run, raster, tmp_path, capsys):
    output = alike(tmp_path / "out.tif", how, raster)
    before = raster.read_bytes()
    assert "which `bharateo" in refused(capsys, verb, run, raster, "--output", output)
    assert raster.read_bytes() == before


def test_a_raster_that_is_a_link_to_the_output_is_not_replaced(run, raster, tmp_path, capsys):
    link = tmp_path / "link.tif"
    link.symlink_to(raster)
    refused(capsys, "map", run, link, "--output", raster)
    with rasterio.open(raster) as file:
        assert file.count == 2


@pytest.mark.parametrize("name", ["map.json", "map-uncertainty.qml", "map.png", "map.tif"])
def test_a_map_leaves_files_of_others_beside_it_alone(name, run, raster, tmp_path, capsys):
    other = tmp_path / name
    other.write_text('{"mine": true}')
    error = refused(capsys, "map", run, raster, "--output", tmp_path / "map.tif")
    assert name in error
    assert "another --output" in error
    assert other.read_text() == '{"mine": true}'


@pytest.mark.parametrize("verb", ["evaluate", "probe"])
def test_figures_replace_figures_and_nothing_else(verb, run, tmp_path, capsys):
    own = run / "contract.json"
    before = own.read_bytes()
    assert "which `bharateo" in refused(capsys, verb, run, "--output", own)
    assert own.read_bytes() == before
    other = tmp_path / "notes.json"
    other.write_text('{"mine": true}')
    assert "another --output" in refused(capsys, verb, run, "--output", other)
    assert other.read_text() == '{"mine": true}'


@pytest.mark.parametrize("name", ["v.tif", "v.parquet"])
def test_vectors_leave_files_of_others_alone(name, run, raster, tmp_path, capsys):
    if name.endswith("tif"):
        shutil.copy(raster, tmp_path / name)
    else:
        shape = gpd.GeoDataFrame({"a": [1]}, geometry=gpd.points_from_xy([1], [2]), crs=4326)
        shape.to_parquet(tmp_path / name)
    before = (tmp_path / name).read_bytes()
    assert name in refused(capsys, "embed", run, raster, "--output", tmp_path / name)
    assert (tmp_path / name).read_bytes() == before


def test_what_a_verb_has_made_it_makes_again(run, raster, tmp_path):
    arguments = ["map", str(run), str(raster), "--output", str(tmp_path / "map.tif")]
    assert main(arguments) == 0
    assert main([*arguments, "--stride", "4"]) == 0
    with rasterio.open(tmp_path / "map.tif") as file:
        assert file.shape == (38, 48)
    vectors_file = tmp_path / "v.tif"
    assert main(["embed", str(run), str(raster), "--output", str(vectors_file)]) == 0
    arguments = ["embed", str(run), str(raster), "--output", str(vectors_file), "--dtype", "int8"]
    assert main(arguments) == 0


def test_a_map_is_no_embedding_and_the_other_way_round(run, raster, tmp_path, capsys):
    assert main(["map", str(run), str(raster), "--output", str(tmp_path / "m.tif")]) == 0
    refused(capsys, "embed", run, raster, "--output", tmp_path / "m.tif")


def test_a_style_that_somebody_changed_stops_only_a_map_made_anew(run, raster, tmp_path, capsys):
    arguments = ["map", str(run), str(raster), "--output", str(tmp_path / "map.tif")]
    assert main(arguments) == 0
    (tmp_path / "map.qml").write_text("<qgis/>")
    assert main(arguments) == 0
    assert "is there already" in capsys.readouterr().out
    assert "map.qml" in refused(capsys, *arguments, "--stride", "4")
    assert (tmp_path / "map.qml").read_text() == "<qgis/>"


def points(path):
    x = [AFFINE.c + 10 * each for each in (5, 45, 85, 125, 165, 15, 55, 95, 135, 175)]
    y = [AFFINE.f - 10 * each for each in (5, 45, 85, 125, 15, 35, 75, 115, 125, 15)]
    frame = gpd.GeoDataFrame(
        {"class": ["a", "b"] * 5}, geometry=gpd.points_from_xy(x, y), crs="EPSG:32643"
    )
    frame.to_crs(4326).to_file(path)
    return path


@pytest.mark.slow
def test_labels_that_a_person_has_set_outlive_a_rerun(run, raster, tmp_path, capsys):
    own = points(tmp_path / "own.geojson")
    arguments = ["teach", run, raster, "--points", own, "--output", tmp_path / "out"]
    assert main([str(each) for each in arguments]) == 0
    assert main([str(each) for each in arguments]) == 0
    path = tmp_path / "out" / "label-next.geojson"
    record = json.loads(path.read_text())
    record["features"][0]["properties"]["class"] = "a"
    path.write_text(json.dumps(record))
    assert "label-next.geojson" in refused(capsys, *arguments)
    assert "reads" in refused(capsys, *arguments, "--points", path)
    assert json.loads(path.read_text()) == record


def test_a_probe_leaves_a_folder_of_others_alone(run, raster, tmp_path, capsys):
    own = points(tmp_path / "probe.json")  # a GeoJSON, and called like a product
    before = own.read_bytes()
    error = refused(capsys, "teach", run, raster, "--points", own, "--output", tmp_path)
    assert "probe.json" in error
    assert own.read_bytes() == before


@pytest.mark.parametrize("name", ["found.geojson", "sheet.png"])
def test_search_leaves_files_of_others_alone(name, tmp_path, capsys):
    file = table(tmp_path / "v.parquet", vectors())
    arguments = ["search", file, "--like", LIKE, "--count", "3", "--output", tmp_path]
    assert main([str(each) for each in arguments]) == 0
    assert main([str(each) for each in arguments]) == 0
    (tmp_path / name).write_text('{"mine": true}')
    assert name in refused(capsys, *arguments)
    assert (tmp_path / name).read_text() == '{"mine": true}'


def test_a_page_leaves_a_web_site_of_others_alone(run, tmp_path, capsys):
    site = tmp_path / "site"
    (site / "data").mkdir(parents=True)
    (site / "data" / "thesis.csv").write_text("mine")
    (site / "index.html").write_text("<title>Mine</title>")
    before = contents(site)
    assert "is no explorer" in refused(capsys, "explore", run, "--output", site)
    assert contents(site) == before


def test_a_report_leaves_a_page_of_others_alone(run, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    (folder / "evaluation.json").write_text("{}")
    (folder / "report.html").write_text("<title>Mine</title>")
    assert "report.html" in refused(capsys, "report", folder)
    assert (folder / "report.html").read_text() == "<title>Mine</title>"


@pytest.mark.parametrize(
    ("form", "name"), [("hub", "README.md"), ("hub", "model.safetensors"), ("timm", "config.json"),
                       ("timm", "model.safetensors")]
)  # fmt: skip
def test_an_export_leaves_a_folder_of_others_alone(form, name, run, tmp_path, capsys):
    (tmp_path / name).write_text("# Mine")
    assert name in refused(capsys, "export", run, "--to", form, "--output", tmp_path)
    assert contents(tmp_path) == {name: b"# Mine"}


def test_an_export_replaces_an_export_but_not_the_run_it_is_of(run, tmp_path, capsys):
    for form in ("hub", "timm"):
        for _ in range(2):
            arguments = ["export", run, "--to", form, "--output", tmp_path / form]
            assert main([str(each) for each in arguments]) == 0
    before = contents(tmp_path / "hub")
    refused(capsys, "export", tmp_path / "hub", "--to", "timm", "--output", tmp_path / "hub")
    onnx = tmp_path / "hub" / "model.safetensors"
    refused(capsys, "export", tmp_path / "hub", "--to", "onnx", "--output", onnx)
    assert contents(tmp_path / "hub") == before


@pytest.mark.parametrize("name", ["dataset.json", ".build/Package.swift"])
def test_a_build_leaves_a_folder_of_others_alone(name, tmp_path, capsys):
    write_mirror(tmp_path / "mirror")
    config = write_config(tmp_path)
    file = tmp_path / "out" / name
    file.parent.mkdir(parents=True)
    file.write_text('{"mine": true}')
    refused(capsys, "build", config, "--worldcover-root", tmp_path / "mirror",
            "--output", tmp_path / "out")  # fmt: skip
    assert contents(tmp_path / "out") == {name: b'{"mine": true}'}


# The mechanism


def test_two_outputs_that_are_one_file_are_refused(tmp_path):
    (tmp_path / "a.json").write_text('{"product": "map"}')
    (tmp_path / "b.json").symlink_to(tmp_path / "a.json")
    own = json_of("map")
    with pytest.raises(ConfigError, match="twice"):
        check_outputs("map", {tmp_path / "a.json": own, tmp_path / "b.json": own}, ())


def test_a_pipe_or_folder_is_nobodys_product(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    for name in ("pipe", "folder", "nowhere"):
        for own in (json_of("map"), beginning_with("mark")):
            assert not own(tmp_path / name)
            with pytest.raises(ConfigError, match="is there"):
                check_outputs("map", {tmp_path / name: own}, ())


@pytest.mark.parametrize(
    ("words", "command"),
    [
        ("map RUN RASTER -o map.png", "map RUN RASTER --output map.tif"),
        ("embed RUN RASTER -o v.png -o w.parquet",
         "embed RUN RASTER -o w.parquet --output v.tif"),
        ("areas map.tif p.gpkg --output a", "areas map.tif p.gpkg --output a.csv"),
        ("change a.tif b.tif --output a.html", "change a.tif b.tif --output a.csv"),
        ("sample map.tif --output p.csv --total 9", "sample map.tif --total 9 --output p.gpkg"),
        ("polygons map.tif --output p.shp", "polygons map.tif --output p.gpkg"),
        ("export RUN --to onnx --output v0", "export RUN --to onnx --output v0.onnx"),
        ("composite --roi a=77,28 --dates 2024-01-01/2024-02-01 -o a.jpg",
         "composite --roi a=77,28 --dates 2024-01-01/2024-02-01 --output a.tif"),
    ],
)  # fmt: skip
def test_a_wrong_ending_is_refused_before_anything_is_opened(words, command, capsys):
    """None of the files that are named is there: no other refusal comes first."""
    said = refused(capsys, *words.split()).rstrip()
    assert "must end in" in said
    assert said.endswith(f"give bharateo {command}")


def test_a_free_name_is_one_that_nothing_has(tmp_path):
    for name in ("v0", "v0-2"):
        (tmp_path / name).mkdir()
    (tmp_path / "a-2.tif").symlink_to(tmp_path / "gone")
    assert free_name(tmp_path / "v0") == tmp_path / "v0-3"
    assert free_name(tmp_path / "a.tif") == tmp_path / "a-3.tif"
