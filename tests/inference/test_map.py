"""A map and its files, as other programs see them."""

import json
import os
import shutil
import subprocess
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import geopandas
import numpy as np
import pyproj
import pytest
import rasterio
import shapely
import torch
from affine import Affine
from ground import AFFINE, class_codes, grid_of, write_labels, write_raster
from odc.geo.geobox import GeoBox
from rio_cogeo.cogeo import cog_validate

from bharateo.errors import ConfigError, ContractError
from bharateo.evaluation.own_classes import probe_classifier
from bharateo.evaluation.probes import LinearProbe, save_probe
from bharateo.inference import map as map_module
from bharateo.inference.domain import domain_of
from bharateo.inference.inputs import open_input
from bharateo.inference.labels import LabelAgreement, compare, label_counts, open_labels
from bharateo.inference.map import MapRequest, cell_areas, head_classifier, products, write_map
from bharateo.inference.tiles import CellGrid
from bharateo.landcover import BHARATEO_CLASSES, IGNORE, WORLDCOVER, LandCoverClass
from bharateo.models.heads import Head, Layer
from bharateo.reading import Reading
from bharateo.verbs.cli import main
from small_datasets import contents


def silent(*_):
    pass


@pytest.fixture(scope="module")
def domain(map_run):
    return domain_of(map_run, silent)


def mapped(run, raster, output, **options):
    request = MapRequest(head_classifier(run), **options)
    return write_map(run, open_input(str(raster), run.contract), output, request, silent, silent)


@pytest.fixture(scope="module")
def the_map(map_run, raster, domain, tmp_path_factory):
    folder = tmp_path_factory.mktemp("map")
    labels = open_labels(str(write_labels(folder / "labels.tif")))
    record = mapped(map_run, raster, folder / "map.tif", domain=domain, labels=labels)
    return record, products(folder / "map.tif")


def bands(path):
    with rasterio.open(path) as file:
        return file.read()


def test_every_file_is_a_valid_cog_on_the_grid_of_the_patches(the_map):
    _, files = the_map
    for name in ("classes", "probabilities", "uncertainty", "suspect"):
        assert cog_validate(files[name], quiet=True)[:2] == (True, [])
        with rasterio.open(files[name]) as file:
            assert file.crs.to_epsg() == 32643
            assert file.transform == grid_of(151, 190).affine @ Affine.scale(8)
            assert file.shape == (19, 24)
            assert file.nodata == IGNORE


def test_classes_have_colours_and_names_that_gdal_and_qgis_know(the_map):
    _, files = the_map
    with rasterio.open(files["classes"]) as file:
        colours = file.colormap(1)
    root = ElementTree.parse(f"{files['classes']}.aux.xml").getroot()
    names = [each.text for each in root.iter("Category")]
    for each in BHARATEO_CLASSES:
        assert colours[each.id][:3] == each.colour
        assert names[each.id] == each.name
    assert 'type="paletted"' in files["style"].read_text()


@pytest.fixture
def in_qgis():
    """A call that says what QGIS makes of files, by their names."""
    python = "/usr/bin/python3"  # QGIS has its bindings there, and nothing of ours
    alone = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}

    def run(*words, **options):
        options = {"env": alone | {"QT_QPA_PLATFORM": "offscreen"}, "check": True} | options
        return subprocess.run([python, *words], capture_output=True, text=True, **options).stdout

    try:
        run("-c", "import qgis")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip(f"no QGIS: {python} -c 'import qgis' fails")
    program = Path(__file__).with_name("in_qgis.py")
    return lambda paths: {
        Path(path).name: told for path, told in json.loads(run(program, *paths)).items()
    }


def test_qgis_draws_every_product_and_what_is_labelled_in_it_is_read(
    map_run, raster, the_map, in_qgis, tmp_path
):
    folder = tmp_path / "with spaces, जिला"
    shutil.copytree(the_map[1]["classes"].parent, folder)
    with rasterio.open(raster) as file:
        ground = geopandas.GeoDataFrame({"name": ["all"]}, geometry=[shapely.box(*file.bounds)],
                                        crs=file.crs)  # fmt: skip
    ground.to_file(folder / "ground.gpkg")
    lon, lat = ground.to_crs(4326).geometry[0].centroid.coords[0]
    map_, vectors, points = (folder / name for name in ("map.tif", "vectors.tif", "points.gpkg"))
    for words in (
        ["embed", map_run.path, raster, "-o", vectors],
        ["search", vectors, "--like", f"{lon},{lat}", "--count", 3, "-o", folder],
        ["sample", map_, "--total", 20, "-o", points],
        ["hectares", map_, "--zones", folder / "ground.gpkg", "--zone-field", "name", "-o", folder],
        ["polygons", map_, "--min-area-ha", 1, "-o", folder / "polygons.gpkg"],
    ):
        assert main([*map(str, words)]) == 0, words
    (folder / "labels.tif").unlink()
    told = in_qgis(each for kind in ("tif", "gpkg", "geojson", "qlr")
                   for each in folder.glob(f"*.{kind}"))  # fmt: skip
    group = told.pop("map.qlr")["layers"]
    assert len(group) == 1 + len(BHARATEO_CLASSES) + 3 + 4
    for layer in (*told.values(), *group):
        assert layer["valid"]
        assert layer["crs"] in ("EPSG:32643", "EPSG:4326")
        assert layer["colours"] > 1, told
    styles = {name: layer["style"] for name, layer in told.items() if "style" in layer}
    assert styles == {
        "map.tif": "paletted", "map-probabilities.tif": "singlebandpseudocolor",
        "map-uncertainty.tif": "singlebandpseudocolor", "map-suspect.tif": "paletted",
        "vectors.tif": "multibandcolor",
    }  # fmt: skip
    assert told["map.tif"]["classes"] == [each.name for each in BHARATEO_CLASSES]
    assert told["found.geojson"]["rows"] == 1 + 3
    assert told["points.gpkg"]["saved"]
    areas = ["areas", map_, points, "-o", folder / "areas.csv"]
    assert main([*map(str, areas)]) == 0


def test_the_class_is_the_most_probable_and_probabilities_add_up(the_map):
    _, files = the_map
    (classes,), probabilities = bands(files["classes"]), bands(files["probabilities"])
    with rasterio.open(files["probabilities"]) as file:
        assert file.descriptions == tuple(each.name for each in BHARATEO_CLASSES)
    known = classes != IGNORE
    best = np.take_along_axis(probabilities, np.where(known, classes, 0)[None], 0)[0]
    assert (best == probabilities.max(0))[known].all()
    assert np.abs(probabilities.sum(0, dtype=int)[known] - 100).max() <= 4  # rounded one by one
    assert (probabilities[:, ~known] == IGNORE).all()


def test_the_map_of_known_ground_is_mostly_right(the_map):
    record, _ = the_map
    against = record.against
    assert against.agreement > against.commonest_label_everywhere.agreement + 0.2


def test_cells_without_a_pixel_have_no_data(map_run, domain, tmp_path):
    def cleared(values):
        values[:, 40:80, 40:120] = 0
        return values

    raster = write_raster(tmp_path / "holes.tif", change=cleared)
    mapped(map_run, raster, tmp_path / "map.tif", domain=domain)
    files = products(tmp_path / "map.tif")
    for name in ("classes", "probabilities", "uncertainty"):
        values = bands(files[name])
        assert (values[:, 5:10, 5:15] == IGNORE).all()
        assert (values[:, :5, :5] != IGNORE).all()


def test_what_a_mask_takes_away_has_no_class_and_no_hectares(map_run, domain, tmp_path):
    hole = (slice(40, 85), slice(40, 125))

    def cleared(values):
        values[:, *hole] = 0
        return values

    def clouds(codes):
        codes[:], codes[hole] = 0, 2 | 1
        return codes

    mask = write_labels(tmp_path / "clouds.tif", change=clouds)
    raster = write_raster(tmp_path / "whole.tif")
    source = open_input(str(raster), map_run.contract, Reading(mask=f"{mask}:bits=1"))
    request = MapRequest(head_classifier(map_run), domain)
    record = write_map(map_run, source, tmp_path / "masked.tif", request, silent, silent)
    by_hand = write_raster(tmp_path / "holes.tif", change=cleared)
    expected = mapped(map_run, by_hand, tmp_path / "map.tif", domain=domain)
    assert record.areas == expected.areas
    assert record.no_data_cells == expected.no_data_cells > 0
    found, wanted = products(tmp_path / "masked.tif"), products(tmp_path / "map.tif")
    for name in ("classes", "probabilities", "uncertainty"):
        np.testing.assert_array_equal(bands(found[name]), bands(wanted[name]))


def test_entropy_is_that_of_the_probabilities(the_map):
    _, files = the_map
    probabilities, (entropy, *_) = bands(files["probabilities"]) / 100, bands(files["uncertainty"])
    known = entropy != IGNORE
    expected = -(probabilities * np.log(np.maximum(probabilities, 1e-9))).sum(0) / np.log(8)
    np.testing.assert_allclose(entropy[known], 100 * expected[known], atol=6)


def test_noise_is_out_of_the_domain_and_known_ground_is_not(map_run, domain, the_map, tmp_path):
    def noise(values):
        shuffled = values.reshape(2, -1)  # pixels of the same statistics, in no order
        return np.random.default_rng(0).permuted(shuffled, axis=1).reshape(values.shape)

    known, _ = the_map
    raster = write_raster(tmp_path / "noise.tif", change=noise)
    with pytest.raises(ContractError, match=r"^domain: .* of .*noise.tif .*--allow domain$"):
        mapped(map_run, raster, tmp_path / "map.tif", domain=domain)
    source = open_input(str(raster), map_run.contract, Reading(allow=frozenset({"domain"})))
    request = MapRequest(head_classifier(map_run), domain=domain)
    other = write_map(map_run, source, tmp_path / "map.tif", request, silent, silent)
    assert known.out_of_domain.share < 0.1
    assert other.out_of_domain.share > 0.9
    outside, distance = bands(products(tmp_path / "map.tif")["uncertainty"])[1:]
    assert ((outside == 1) == (distance > 100)).mean() > 0.99


def test_without_a_domain_familiarity_is_not_claimed(map_run, raster, tmp_path):
    record = mapped(map_run, raster, tmp_path / "map.tif")
    assert record.out_of_domain is None
    assert (bands(products(tmp_path / "map.tif")["uncertainty"])[1:] == IGNORE).all()
    assert not any("domain" in line for line in record.lines())
    shown = [line.split()[0] for line in record.lines() if " km2 " in line]
    assert shown == [each.name for each in record.areas if each.km2]


def test_a_finer_stride_has_a_cell_for_every_so_many_pixels(map_run, raster, the_map, tmp_path):
    mapped(map_run, raster, tmp_path / "map.tif", stride_px=4)
    with rasterio.open(tmp_path / "map.tif") as file:
        fine = file.read(1)
        assert file.transform == grid_of(151, 190).affine @ Affine.translation(2, 2) @ Affine.scale(
            4
        )
    assert (fine[::2, ::2] == bands(the_map[1]["classes"])[0]).all()


def test_the_products_say_what_they_were_made_of(map_run, the_map):
    record, files = the_map
    with rasterio.open(files["classes"]) as file:
        told = json.loads(file.tags()["BHARATEO"])
    assert told["run"]["weights_sha256"] == map_run.weights_sha256
    assert told["source"]["input"].endswith("raster.tif")
    assert json.loads(files["record"].read_text()) == record.to_json()
    assert {*map_run.contract.attribution} <= {*record.attribution}


# Areas


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:32643"])
def test_areas_are_those_of_the_ellipsoid(crs):
    degree = crs == "EPSG:4326"
    size = 1e-4 if degree else 10
    affine = Affine(size, 0, 77.1 if degree else 700_000, 0, -size, 28.6 if degree else 3_160_000)
    raster = GeoBox((800, 1000), affine, crs)
    grid = CellGrid((800, 1000), 32, 8, 8)
    found = sum(cell_areas(grid, raster, tile).sum() for tile in grid.tiles(16))
    along = np.linspace(0, 1, 200)
    cols = np.concatenate([along, along * 0 + 1, along[::-1], along * 0]) * 1000
    rows = np.concatenate([along * 0, along, along * 0 + 1, along[::-1]]) * 800
    x, y = affine @ (cols, rows)
    lon, lat = pyproj.Transformer.from_crs(crs, "EPSG:4326", always_xy=True).transform(x, y)
    expected = abs(pyproj.Geod(ellps="WGS84").polygon_area_perimeter(lon, lat)[0]) / 1e6
    assert found == pytest.approx(expected, rel=2e-6)


@pytest.mark.parametrize("stride", [8, 4, 2, 1])
def test_cells_count_with_the_part_inside_the_raster(stride, map_run, tmp_path):
    raster = write_raster(tmp_path / "whole.tif", 37, 50, lambda values: np.maximum(values, 900))
    record = mapped(map_run, raster, tmp_path / "map.tif", stride_px=stride)
    begin = (8 - stride) / 2
    expected = (37 - begin) * (50 - begin) * 1e-4 / scale_of_utm()
    assert record.km2 == pytest.approx(expected, rel=1e-4)


def scale_of_utm():
    """Square metres of the plane for one of the ground in the middle of a raster of ours."""
    lon, lat = pyproj.Transformer.from_crs(32643, 4326, always_xy=True).transform(
        400_007 + 250, 3_000_003 - 185
    )
    return pyproj.Proj("EPSG:32643").get_factors(lon, lat).areal_scale


@pytest.mark.parametrize("stride", [8, 4])
@pytest.mark.parametrize("degrees", [False, True])
def test_a_district_counts_with_its_valid_pixels(degrees, stride, map_run, tmp_path):
    row, col = np.indices((151, 190)) + 0.5
    district = np.hypot(row - 75, col - 95) < 55

    def clipped(values):
        return np.where(district, np.maximum(values, 900), 0).astype(np.uint16)

    raster = write_raster(tmp_path / "district.tif", change=clipped)
    affine, crs = AFFINE, "EPSG:32643"
    if degrees:
        affine, crs = Affine(1e-4, 0, 77.1, 0, -1e-4, 60.6), "EPSG:4326"
        with rasterio.open(raster, "r+") as file:
            file.crs, file.transform = crs, affine
    run_reading = Reading(allow=frozenset({"resolution"})) if degrees else Reading()
    request = MapRequest(head_classifier(map_run), stride_px=stride)
    source = open_input(str(raster), map_run.contract, run_reading)
    record = write_map(map_run, source, tmp_path / "map.tif", request, silent, silent)
    expected = 0.0
    for number in range(151):
        corners = [affine @ (x + 95, y + number) for x, y in ((0, 0), (1, 0), (1, 1), (0, 1))]
        lon, lat = pyproj.Transformer.from_crs(crs, "EPSG:4326", always_xy=True).transform(
            *np.array(corners).T
        )
        m2 = abs(pyproj.Geod(ellps="WGS84").polygon_area_perimeter(lon, lat)[0])
        expected += m2 * district[number].sum() / 1e6
    assert record.km2 == pytest.approx(expected, rel=1e-3)


def test_areas_add_up_to_the_ground_with_data(the_map, raster):
    record, _ = the_map
    share = (bands(raster) != 0).all(0).mean()  # of pixels, not of cells with one valid pixel
    assert record.km2 == pytest.approx(share * 151 * 190 * 1e-4, rel=0.01)
    assert sum(each.km2 for each in record.areas) == pytest.approx(record.km2)


# Labels


@pytest.mark.parametrize("stride", [8, 4])
def test_labels_are_counted_under_the_patch_of_every_cell(tmp_path, stride):
    labels = open_labels(str(write_labels(tmp_path / "labels.tif")))
    grid = CellGrid((151, 190), 32, 8, stride)
    ids = WORLDCOVER.collapse(class_codes(grid_of(151, 190)))
    for tile in grid.tiles(12):
        counts = label_counts(labels.source, grid_of(151, 190), grid, tile)
        for row, col in ((0, 0), (counts.shape[0] - 1, counts.shape[1] - 1), (3, 5)):
            top, left = (tile.rows.start + row) * stride, (tile.cols.start + col) * stride
            patch = ids[top : top + 8, left : left + 8]
            expected = np.bincount(patch[patch != IGNORE], minlength=8)
            assert counts[row, col].tolist() == expected.tolist()


def test_a_pure_label_that_the_map_hardly_believes_is_suspect():
    counts = np.zeros((1, 4, 8), np.int64)
    counts[0, 0, 1], counts[0, 1, 1] = 64, 64
    counts[0, 2, 1], counts[0, 2, 0] = 40, 24  # mixed
    probabilities = np.full((1, 4, 8), 0.05, np.float32)
    probabilities[0, 1, 1] = 0.6
    found = compare(probabilities, range(8), counts)
    assert found.suspect.tolist() == [[True, False, False, False]]
    assert found.label.tolist() == [[1, 1, 1, IGNORE]]
    nothing = compare(np.full((1, 4, 8), np.nan, np.float32), range(8), counts)
    assert not nothing.suspect.any()
    trees_and_water = compare(probabilities[..., :2], [0, 5], counts)
    assert (trees_and_water.label == IGNORE).all()  # the labels are of a class it does not have
    assert (nothing.label == IGNORE).all()


def test_labels_made_wrong_are_found_suspect(map_run, raster, domain, tmp_path):
    def wrong(codes):
        codes[8:72, 8:64] = np.where(codes[8:72, 8:64] == 50, 80, 50)
        return codes

    labels = open_labels(str(write_labels(tmp_path / "labels.tif", change=wrong)))
    record = mapped(map_run, raster, tmp_path / "map.tif", domain=domain, labels=labels)
    (suspect, *_) = bands(products(tmp_path / "map.tif")["suspect"])
    inside = suspect[1:9, 1:8]
    assert (inside == 1).mean() > 5 * (suspect == 1).mean() / 2
    assert record.against.suspect == (suspect == 1).sum()


def test_agreement_is_told_beside_the_commonest_label():
    confusion = np.zeros((8, 8), np.int64)
    confusion[0, 0], confusion[0, 1], confusion[1, 1], confusion[1, 0] = 6, 2, 1, 1
    found = LabelAgreement.of("labels", confusion, np.zeros(8, np.int64))
    assert found.agreement == pytest.approx(0.7)
    assert found.balanced_agreement == pytest.approx((6 / 8 + 1 / 2) / 2)
    assert found.commonest_label_everywhere.agreement == pytest.approx(0.8)
    assert found.commonest_label_everywhere.macro_f1 == pytest.approx(16 / 18 / 2)
    nothing = LabelAgreement.of("labels", np.zeros((8, 8), np.int64), np.zeros(8, np.int64))
    assert nothing.cells == 0
    assert nothing.agreement is None
    assert [*nothing.lines()] == ["against labels: no labels here"]


# Probes


def probe_file(run, path, names, width=16, sha256=None):
    rng = np.random.default_rng(0)
    num = len(names)
    probe = LinearProbe(np.zeros(width), np.ones(width), rng.normal(size=(width, num)),
                        np.zeros(num), np.arange(num), 1.0)  # fmt: skip
    about = {"class_names": names, "weights_sha256": sha256 or run.weights_sha256}
    save_probe(path, probe, about)
    return path


def test_a_probe_maps_its_own_classes(map_run, raster, tmp_path):
    path = probe_file(map_run, tmp_path / "p.safetensors", ["wells", "fields"])
    assert main(["map", str(map_run.path), str(raster), "--output", str(tmp_path / "own.tif"),
                 "--probe", str(path)]) == 0  # fmt: skip
    assert {*np.unique(bands(tmp_path / "own.tif"))} <= {0, 1, IGNORE}
    record = json.loads((tmp_path / "own.json").read_text())
    assert [each["class"] for each in record["areas"]] == ["wells", "fields"]


def test_a_probe_of_another_run_is_refused(map_run, tmp_path):
    path = probe_file(map_run, tmp_path / "p.safetensors", ["a", "b"], sha256="0" * 64)
    with pytest.raises(ContractError, match="another run"):
        probe_classifier(map_run, path)
    path = probe_file(map_run, tmp_path / "p.safetensors", ["a", "b"], width=12)
    with pytest.raises(ContractError, match="width 12"):
        probe_classifier(map_run, path)


def test_labels_of_other_classes_are_refused(map_run, raster, tmp_path):
    classifier = probe_classifier(
        map_run, probe_file(map_run, tmp_path / "p.safetensors", ["wells", "fields"])
    )
    labels = open_labels(str(write_labels(tmp_path / "labels.tif")))
    with pytest.raises(ConfigError, match="wells, fields"):
        write_map(map_run, open_input(str(raster), map_run.contract), tmp_path / "map.tif",
                  MapRequest(classifier, labels=labels), silent, silent)  # fmt: skip


# Of any head


class ThreeLayers(Head):
    """A height, the numbers of a patch's pixels, and a class of its own."""

    def layers(self):
        kinds = (LandCoverClass(7, "roof", (9, 9, 9)), LandCoverClass(9, "road", (0, 0, 0)))
        return Layer("height", unit="m"), Layer("shade", 64), Layer("kind", 2, classes=kinds)

    def predict(self, decoded):
        said = [2.5, *range(64), 0.0, 1.0]
        return torch.tensor(said).expand(*decoded.shape[:2], -1)


@pytest.mark.parametrize(("stride", "inside"), [(8, slice(0, 8)), (4, slice(2, 6))])
def test_a_map_has_the_layers_that_heads_offer(stride, inside, map_run, raster, tmp_path):
    heads = torch.nn.ModuleDict({"other": ThreeLayers(), **map_run.heads})
    run, output = replace(map_run, heads=heads), tmp_path / "map.tif"
    mapped(run, raster, output, stride_px=stride)
    files = products(output)
    with rasterio.open(files["layers"]) as file:
        assert file.descriptions == ("height (m)", "shade", "land cover")
        height, shade, cover = file.read()
    (classes,) = bands(output)
    known = classes != IGNORE  # of the first layer of classes, that of the first head
    assert {*np.unique(classes[known])} == {9}
    assert (height[known] == 2.5).all()
    mean = np.arange(64.0).reshape(8, 8)[inside, inside].mean()
    np.testing.assert_allclose(shade[known], mean, rtol=1e-6)
    mapped(map_run, raster, tmp_path / "alone.tif", stride_px=stride)
    assert (cover[known] == bands(tmp_path / "alone.tif")[0][known]).all()
    for band in (height, shade, cover):
        assert np.isnan(band[~known]).all()
    assert "layers" in json.loads(files["item"].read_text())["assets"]
    mapped(map_run, raster, output, stride_px=stride)
    assert not files["layers"].exists()  # it was of the older map


def test_all_files_are_written_in_one_pass_over_the_tiles(map_run, tmp_path, monkeypatch):
    raster = write_raster(tmp_path / "large.tif", 1100, 120)  # two tiles
    loaded, load = [], np.load

    def counted(path, **options):
        loaded.append(path.name)
        return load(path, **options)

    monkeypatch.setattr(np, "load", counted)
    labels = open_labels(str(write_labels(tmp_path / "labels.tif", 1100, 120)))
    mapped(map_run, raster, tmp_path / "map.tif", labels=labels)
    assert loaded == ["0-0.npy", "128-0.npy"]


# Killed and run again


def test_the_same_map_is_not_made_twice(map_run, raster, tmp_path):
    first = mapped(map_run, raster, tmp_path / "map.tif")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    said = []
    source = open_input(str(raster), map_run.contract)
    request = MapRequest(head_classifier(map_run))
    assert write_map(map_run, source, tmp_path / "map.tif", request, silent, said.append) == first
    assert "is there already" in said[0]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    labels = open_labels(str(write_labels(tmp_path / "labels.tif")))
    beside = write_map(map_run, source, tmp_path / "map.tif", replace(request, labels=labels),
                       silent, silent)  # fmt: skip
    assert beside.against is not None
    assert (tmp_path / "map-suspect.tif").exists()
    other = replace(request, stride_px=4)
    assert write_map(map_run, source, tmp_path / "map.tif", other, silent, silent) != first
    assert not (tmp_path / "map-suspect.tif").exists()  # it was of the older map


def test_a_map_killed_at_any_moment_and_rerun_is_the_same(map_run, tmp_path, monkeypatch):
    raster = write_raster(tmp_path / "large.tif", 1100, 120)  # two tiles
    source, request = (
        open_input(str(raster), map_run.contract),
        MapRequest(head_classifier(map_run)),
    )
    whole, killed = tmp_path / "whole" / "map.tif", tmp_path / "killed" / "map.tif"
    write_map(map_run, source, whole, request, silent, silent)
    written = map_module.cog_writer
    for moment in range(1, 10):  # before a tile, the end, and before and after each of the files
        calls = [0]

        def die(calls=calls, moment=moment):
            calls[0] += 1
            if calls[0] == moment:
                raise KeyboardInterrupt

        @contextmanager
        def write(*arguments, die=die):
            die()
            with written(*arguments) as block:
                yield block
            die()

        monkeypatch.setattr(map_module, "cog_writer", write)
        with pytest.raises(KeyboardInterrupt):
            write_map(map_run, source, killed, request, lambda *_, die=die: die(), silent)
        assert not killed.with_suffix(".json").exists()
    monkeypatch.undo()
    write_map(map_run, source, killed, request, silent, silent)
    assert contents(killed.parent) == contents(whole.parent)


def test_killed_after_the_last_file_it_leaves_nothing_behind_the_next_time(
    map_run, raster, tmp_path, monkeypatch
):
    def killed_while_clearing(folder, remove=shutil.rmtree, **options):
        if folder.suffix == ".parts":
            raise KeyboardInterrupt
        remove(folder, **options)

    with monkeypatch.context() as patch:
        patch.setattr("bharateo.files.shutil.rmtree", killed_while_clearing)
        with pytest.raises(KeyboardInterrupt):
            mapped(map_run, raster, tmp_path / "map.tif")
    assert (tmp_path / ".map.tif.parts").is_dir()
    mapped(map_run, raster, tmp_path / "map.tif")
    assert not (tmp_path / ".map.tif.parts").exists()
