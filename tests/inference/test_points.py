"""A person's points: read, placed, mapped, and what to label next."""

import json

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import rasterio
from ground import AFFINE, class_codes, grid_of, write_raster
from rasterio.transform import xy

from bharateo.display import Display
from bharateo.errors import ConfigError, SourceError
from bharateo.evaluation import cross_validation
from bharateo.evaluation.features import encoder
from bharateo.evaluation.probes import load_probe
from bharateo.inference.inputs import open_input
from bharateo.inference.points import (
    cells_lonlat,
    next_places,
    place,
    read_all_points,
    read_points,
    vectors_at,
)
from bharateo.inference.tiles import CellGrid
from bharateo.landcover import IGNORE
from bharateo.survey.areas import trained_points
from bharateo.survey.ground import ClassMap, Probabilities
from bharateo.verbs.cli import main
from bharateo.verbs.survey import sample
from small_datasets import contents

NAMES = {10: "forest", 40: "fields", 80: "river"}


def silent(*_):
    pass


def points_on(pixels, names, crs="EPSG:32643"):
    """Points in the middle of pixels (row, col)."""
    x, y = xy(AFFINE, *zip(*pixels, strict=True))
    frame = gpd.GeoDataFrame({"class": names}, geometry=gpd.points_from_xy(x, y), crs="EPSG:32643")
    return frame.to_crs(crs)


def five_a_class(height, width, seed=0):
    """Five points of three classes, inside fields of one class."""
    codes = class_codes(grid_of(height, width))
    rng, pixels, names = np.random.default_rng(seed), [], []
    for code, name in NAMES.items():
        rows, cols = np.nonzero(codes == code)
        for chosen in rng.choice(len(rows), 5, replace=False):
            pixels.append((rows[chosen], cols[chosen]))
            names.append(name)
    return points_on(pixels, names)


def grid(stride=8, shape=(151, 190)):
    return CellGrid(shape, 32, 8, stride)


# Reading


@pytest.mark.parametrize("name", ["p.gpkg", "p.geojson", "p.csv"])
def test_points_of_any_file_and_reference_system_are_the_same(tmp_path, name):
    points = points_on([(3, 4), (50, 60)], ["forest", "river"])
    path = tmp_path / name
    if name.endswith("csv"):
        there = points.to_crs("EPSG:4326").geometry
        pd.DataFrame({"Label": points["class"], "LON": there.x, "lat": there.y}).to_csv(path)
    else:
        points.to_crs("EPSG:32643" if name.endswith("gpkg") else "EPSG:4326").to_file(path)
    found = read_points(path).to_crs("EPSG:32643")
    assert found["class"].tolist() == ["forest", "river"]
    assert found["where"].tolist() == [f"{name} 1", f"{name} 2"]
    np.testing.assert_allclose(found.geometry.x, points.geometry.x, atol=1e-3)
    np.testing.assert_allclose(found.geometry.y, points.geometry.y, atol=1e-3)


def test_points_without_a_class_are_left_out_and_numbers_are_names(tmp_path):
    points = points_on([(3, 4), (5, 6), (7, 8)], [1.0, None, 2.0])
    points.to_file(tmp_path / "p.gpkg")
    assert read_points(tmp_path / "p.gpkg")["class"].tolist() == ["1", "2"]
    points.assign(**{"class": None}).to_file(tmp_path / "none.geojson")
    with pytest.raises(ConfigError, match=r"no point of .*none.geojson has a class"):
        read_all_points([tmp_path / "none.geojson"])


def test_a_file_that_will_not_do_is_refused_with_its_remedy(tmp_path):
    with pytest.raises(SourceError, match="does not exist"):
        read_points(tmp_path / "p.gpkg")
    (tmp_path / "p.gpkg").write_text("no GeoPackage")
    with pytest.raises(SourceError, match="cannot be read"):
        read_points(tmp_path / "p.gpkg")
    (tmp_path / "p.csv").write_text("east,class\n1,a\n")
    with pytest.raises(ConfigError, match="needs lon and lat"):
        read_points(tmp_path / "p.csv")
    (tmp_path / "p.csv").write_text("lon,lat,class\n1,2,a\n1,x,b\n")
    with pytest.raises(ConfigError, match="row 2"):
        read_points(tmp_path / "p.csv")
    points = points_on([(3, 4)], ["a"]).rename(columns={"class": "crop"})
    points.to_file(tmp_path / "crop.gpkg")
    with pytest.raises(ConfigError, match="--class-field"):
        read_points(tmp_path / "crop.gpkg")
    with pytest.raises(ConfigError, match="its fields are crop"):
        read_points(tmp_path / "crop.gpkg", "kind")
    assert read_points(tmp_path / "crop.gpkg", "crop")["class"].tolist() == ["a"]
    points.set_geometry(points.buffer(3)).to_file(tmp_path / "discs.gpkg")
    with pytest.raises(ConfigError, match="holds Polygon"):
        read_points(tmp_path / "discs.gpkg", "crop")


# On the raster


def placed(pixels, names, raster, run, stride=8, said=None):
    points = points_on(pixels, names).assign(where=[f"p {n}" for n in range(1, len(names) + 1)])
    source = open_input(str(raster), run.contract)
    return place(points, source, grid(stride), ([] if said is None else said).append), source


def test_a_point_belongs_to_the_cell_it_lies_in(map_run, raster):
    found, _ = placed([(0, 0), (7, 8), (150, 189)], ["a", "b", "a"], raster, map_run)
    assert found.cells.tolist() == [[0, 0], [0, 1], [18, 23]]
    fine, _ = placed([(0, 0), (7, 8), (150, 189)], ["a", "b", "a"], raster, map_run, stride=4)
    assert fine.cells.tolist() == [[0, 0], [1, 1], [37, 46]]


def test_points_outside_are_named_and_left_out(map_run, raster):
    said = []
    found, _ = placed([(3, 3), (-5, 0), (90, 90), (0, 500)], ["a", "a", "b", "c"], raster,
                      map_run, said=said)  # fmt: skip
    assert found.classes == ("a", "b")
    assert len(found.labels) == 2
    assert "points p 2, p 4 lie outside" in said[0]
    far = gpd.GeoDataFrame(
        {"class": ["a", "b", "b"], "where": ["p 1", "p 2", "p 3"]},
        geometry=gpd.points_from_xy([74.01, 74.002, 0], [27.11, 27.11, 91]),
        crs="EPSG:4326",
    )
    near = placed([(3, 3), (90, 90)], ["a", "b"], raster, map_run)[1]
    with pytest.raises(ConfigError, match="lies inside"):
        place(far.iloc[2:], near, grid(), silent)  # beyond the pole
    with pytest.raises(ConfigError, match="none of the 2 points lies inside"):
        placed([(-5, 0), (0, 500)], ["a", "b"], raster, map_run)


def test_one_class_is_not_enough(map_run, raster):
    with pytest.raises(ConfigError, match=r"1 class \(a\)"):
        placed([(3, 3), (90, 90)], ["a", "a"], raster, map_run)


def test_a_cell_counts_once_and_cannot_be_of_two_classes(map_run, raster):
    said = []
    found, _ = placed([(0, 0), (1, 1), (90, 90)], ["a", "a", "b"], raster, map_run, said=said)
    assert len(found.labels) == 2
    assert "counted once" in said[0]
    with pytest.raises(ConfigError, match="p 1 and p 2 lie in the same cell"):
        placed([(0, 0), (1, 1), (90, 90)], ["a", "b", "b"], raster, map_run)


@pytest.mark.parametrize("stride", [8, 4])
def test_the_vectors_are_those_of_the_map(map_run, raster, stride):
    points, source = placed(
        [(0, 0), (20, 99), (150, 189)], ["a", "b", "a"], raster, map_run, stride
    )
    own = encoder(map_run)
    found, valid = vectors_at(points, source, grid(stride), {own.name: own.features}, silent)
    (tile,) = grid(stride).tiles()
    every = grid(stride).predict(source.read, own.features, tile)
    rows, cols = points.cells.T
    assert valid.all()
    np.testing.assert_allclose(found["encoder"], every[rows, cols], rtol=1e-4, atol=1e-5)


def test_a_point_without_pixels_is_not_valid(map_run, tmp_path):
    def cleared(values):
        values[:, :16, :16] = 0
        return values

    raster = write_raster(tmp_path / "holes.tif", change=cleared)
    points, source = placed([(3, 3), (90, 90)], ["a", "b"], raster, map_run)
    own = encoder(map_run)
    _, valid = vectors_at(points, source, grid(), {own.name: own.features}, silent)
    assert valid.tolist() == [False, True]


# What to label next


def test_next_places_are_uncertain_and_far_from_each_other_and_the_known():
    rng = np.random.default_rng(0)
    entropy = rng.integers(0, 60, (60, 80)).astype(np.uint8)
    entropy[:, :20] = 90
    usable = np.ones((60, 80), bool)
    usable[:, :3] = False
    known = np.array([[30, 10]])
    found = next_places(entropy, usable, known, 6)
    assert len(np.unique(found, axis=0)) == 6
    assert (entropy[tuple(found.T)] >= np.quantile(entropy[usable], 0.9)).all()
    assert usable[tuple(found.T)].all()
    gaps = np.linalg.norm(found[:, None] - np.vstack([found, known]), axis=2)
    assert gaps[gaps > 0].min() > 8


def test_where_little_is_usable_fewer_places_are_named():
    entropy = np.zeros((5, 5), np.uint8)
    usable = np.zeros((5, 5), bool)
    assert next_places(entropy, usable, np.empty((0, 2), int)).shape == (0, 2)
    usable[2, 2:4] = True
    assert len(next_places(entropy, usable, np.array([[2, 2]]))) == 1


def test_places_are_given_in_degrees(map_run, raster):
    source = open_input(str(raster), map_run.contract)
    lon, lat = cells_lonlat(np.array([[3, 5]]), grid(), source)
    (there,) = gpd.GeoSeries(gpd.points_from_xy(lon, lat), crs=4326).to_crs(32643)
    assert (there.x, there.y) == pytest.approx(AFFINE @ (44, 28), abs=1e-3)


# The verb


@pytest.fixture(scope="module", autouse=True)
def few_splits():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cross_validation, "NUM_SPLITS", 10)
        yield


@pytest.fixture(scope="module")
def probed(map_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("probe")
    raster = write_raster(folder / "raster.tif", 300, 380)
    five_a_class(300, 380).to_file(folder / "points.gpkg")
    arguments = ["teach", str(map_run.path), str(raster), "--points", str(folder / "points.gpkg")]
    assert main([*arguments, "--output", str(folder / "own")]) == 0
    return folder, arguments


def test_five_points_a_class_become_a_map_of_them(probed):
    folder, _ = probed
    probe, about = load_probe(folder / "own" / "probe.safetensors")
    assert about.class_names == ("fields", "forest", "river")
    assert about.model_extra["points"] == {"fields": 5, "forest": 5, "river": 5}
    with rasterio.open(folder / "own" / "map.tif") as file:
        mapped = file.read(1)
    codes = class_codes(grid_of(300, 380))[4::8, 4::8]
    inverse = {name: code for code, name in NAMES.items()}
    ours = np.isin(codes, list(NAMES)) & (mapped[: codes.shape[0], : codes.shape[1]] != IGNORE)
    truth = np.array([inverse[name] for name in about.class_names])
    right = truth[np.minimum(mapped[: codes.shape[0], : codes.shape[1]], 2)] == codes
    score = json.loads((folder / "own" / "probe.json").read_text())["score"]["encoder"]
    low, high = score["balanced_accuracy_ci95"]
    recalls = [right[ours & (codes == code)].mean() for code in NAMES]
    assert low <= np.mean(recalls) <= high
    assert np.mean(recalls) > 0.5
    assert len(probe.classes) == 3


def test_every_score_stands_beside_its_baselines(probed, capsys):
    folder, _ = probed
    score = json.loads((folder / "own" / "probe.json").read_text())["score"]
    assert {"encoder", "random_encoder", "band_statistics", "one_class"} <= {*score}
    assert score["one_class"]["balanced_accuracy"] == pytest.approx(1 / 3)


def test_places_to_label_next_come_with_a_class_to_fill_in(probed, map_run):
    folder, _ = probed
    found = gpd.read_file(folder / "own" / "label-next.geojson")
    assert found.crs.to_epsg() == 4326
    assert found["rank"].tolist() == list(range(1, 21))
    assert found["class"].isna().all()
    assert {*found["guess"]} <= {"fields", "forest", "river"}
    np.testing.assert_allclose(found["lon"], found.geometry.x)
    filled = found.assign(**{"class": found["guess"]})
    filled.to_file(folder / "filled.geojson")
    again = read_all_points([folder / "points.gpkg", folder / "filled.geojson"])
    source = open_input(str(folder / "raster.tif"), map_run.contract)
    assert len(place(again, source, grid(shape=(300, 380)), pytest.fail).labels) == 35


def test_the_same_points_give_the_same_bytes(probed):
    folder, arguments = probed
    assert main([*arguments, "--output", str(folder / "again")]) == 0
    first, again = contents(folder / "own"), contents(folder / "again")
    assert first == again


def test_a_survey_of_the_map_knows_where_it_learned(probed):
    folder, _ = probed
    mapped = ClassMap(folder / "own" / "map.tif")
    points = gpd.read_file(folder / "points.gpkg").to_crs(4326).geometry
    expected = sorted(zip(points.x, points.y, strict=True))
    np.testing.assert_allclose(sorted(map(tuple, trained_points(mapped))), expected, atol=1e-8)
    record = sample(mapped.path, folder / "sample.gpkg", total=60, display=Display(quiet=True))
    assert {each.name for each in record.classes} == {"fields", "forest", "river"}
    probabilities = Probabilities.beside(mapped)
    assert probabilities.classes == ("fields", "forest", "river")
    row, col, _ = record.points[0]
    shares = probabilities.read(row, col, 1, 1)[:, 0, 0]
    assert shares.sum() == pytest.approx(1, abs=0.02)
    assert shares.argmax() == mapped.codes_at(np.array([row]), np.array([col]))[0]
