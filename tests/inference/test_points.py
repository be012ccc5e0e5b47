"""A person's points: read, placed, mapped, and what to label next."""

import json

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import rasterio
from ground import AFFINE, class_codes, grid_of, write_raster
from rasterio.transform import xy
from shapely.geometry import MultiPolygon, box

from bharateo.display import Display
from bharateo.errors import ConfigError, SourceError
from bharateo.evaluation import choice
from bharateo.evaluation.probes import load_probe
from bharateo.inference import points as points_module
from bharateo.inference.inputs import open_alone
from bharateo.inference.pixel_features import band_features, energy_features
from bharateo.inference.points import (
    cells_lonlat,
    features_at,
    next_places,
    place,
    read_all_points,
    read_points,
)
from bharateo.inference.tiles import CellGrid, Tile
from bharateo.landcover import IGNORE
from bharateo.survey.areas import trained_points
from bharateo.survey.ground import ClassMap, Probabilities
from bharateo.training.run import Run
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


def polygons_on(squares, names):
    """Squares (row, col, height, width) of pixels."""
    shapes = []
    for row, col, height, width in squares:
        left, top = AFFINE @ (col, row)
        right, bottom = AFFINE @ (col + width, row + height)
        shapes.append(box(left, bottom, right, top))
    return gpd.GeoDataFrame({"class": names}, geometry=shapes, crs="EPSG:32643")


def grid(stride=1, shape=(151, 190)):
    return CellGrid(shape, stride, stride, stride)


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
    points.set_geometry(points.buffer(3).boundary).to_file(tmp_path / "rings.gpkg")
    with pytest.raises(ConfigError, match="holds LineString"):
        read_points(tmp_path / "rings.gpkg", "crop")


# On the raster


def placed(shapes, raster, stride=1, said=None):
    shapes = shapes.assign(where=[f"p {n}" for n in range(1, len(shapes) + 1)])
    source = open_alone(str(raster))
    return place(shapes, source, grid(stride), ([] if said is None else said).append), source


def test_a_point_belongs_to_the_cell_it_lies_in(raster):
    points = points_on([(0, 0), (7, 8), (150, 189)], ["a", "b", "a"])
    found, _ = placed(points, raster)
    assert found.cells.tolist() == [[0, 0], [7, 8], [150, 189]]
    np.testing.assert_allclose(found.places, found.cells + 0.5, atol=1e-6)
    coarse, _ = placed(points, raster, stride=4)
    assert coarse.cells.tolist() == [[0, 0], [1, 2], [37, 47]]


def test_points_outside_are_named_and_left_out(raster):
    said = []
    found, near = placed(points_on([(3, 3), (-5, 0), (90, 90), (0, 500)], ["a", "a", "b", "c"]),
                         raster, said=said)  # fmt: skip
    assert found.classes == ("a", "b")
    assert found.where == ("p 1", "p 3")
    assert "p 2, p 4 lie outside" in said[0]
    far = gpd.GeoDataFrame(
        {"class": ["b"], "where": ["p 3"]}, geometry=gpd.points_from_xy([0], [91]), crs="EPSG:4326"
    )
    with pytest.raises(ConfigError, match="lies inside"):
        place(far, near, grid(), silent)  # beyond the pole
    with pytest.raises(ConfigError, match="none of the 2 points and polygons lies inside"):
        placed(points_on([(-5, 0), (0, 500)], ["a", "b"]), raster)


def test_one_class_is_not_enough(raster):
    with pytest.raises(ConfigError, match=r"1 class \(a\)"):
        placed(points_on([(3, 3), (90, 90)], ["a", "a"]), raster)


def test_a_cell_counts_once_and_cannot_be_of_two_classes(raster):
    said = []
    pixels = [(0, 0), (1, 1), (90, 90)]
    found, _ = placed(points_on(pixels, ["a", "a", "b"]), raster, 2, said)
    assert len(found.labels) == 2
    assert "counted once" in said[0]
    with pytest.raises(ConfigError, match="p 1 and p 2 lie in the same cell"):
        placed(points_on(pixels, ["a", "b", "b"]), raster, 2)


def test_a_polygon_stands_for_some_of_its_own_pixels(raster):
    squares = polygons_on(
        [(10, 20, 30, 40), (100, 100, 0.2, 0.2), (145, 180, 50, 50)], ["a", "b", "b"]
    )
    found, source = placed(squares, raster)
    rows, cols = found.cells[found.labels == 0].T
    assert len(rows) == points_module._MOST_OF_ONE
    assert (rows.min() >= 10, rows.max() < 40, cols.min() >= 20, cols.max() < 60) == (True,) * 4
    assert len(np.unique(found.cells, axis=0)) == len(found.cells)
    assert found.places[found.labels == 0].std(0).tolist() == [0, 0]  # one place, however large
    others = found.cells[found.labels == 1]
    assert [100, 100] in others.tolist()  # smaller than a pixel
    assert (others < source.shape).all()  # what sticks out of the raster is cut off
    again, _ = placed(squares, raster)
    assert np.array_equal(again.cells, found.cells)
    many = polygons_on([(row, 5, 1, 60) for row in range(150)], ["a", "b"] * 75)
    assert len(placed(many, raster)[0].labels) <= points_module.MOST_OF_POLYGONS


def test_pixels_under_two_classes_are_of_neither(raster):
    said = []
    squares = polygons_on([(10, 10, 6, 6), (13, 10, 6, 6)], ["a", "b"])
    both = pd.concat([squares, points_on([(11, 11)], ["b"])], ignore_index=True)
    found, _ = placed(both, raster, said=said)
    rows = {name: found.cells[np.array(found.where) == name, 0] for name in ("p 1", "p 2")}
    assert rows["p 1"].max() < 13
    assert rows["p 2"].min() >= 16
    assert found.cells[found.where.index("p 3")].tolist() == [11, 11]  # a point outweighs them
    assert "in polygons of other classes" in said[0]


def test_parts_of_one_polygon_and_points_go_together(tmp_path, raster):
    squares = polygons_on([(10, 20, 5, 5), (60, 20, 5, 5)], ["a", "b"])
    whole = gpd.GeoDataFrame({"class": ["a"]}, geometry=[MultiPolygon(list(squares.geometry))],
                             crs=squares.crs)  # fmt: skip
    pd.concat([whole, points_on([(100, 100)], ["b"])]).to_file(tmp_path / "p.gpkg")
    found = place(read_all_points([tmp_path / "p.gpkg"]), open_alone(str(raster)), grid(), silent)
    assert len(found.labels) == 51
    assert {*found.cells[:50, 0].tolist()} == {*range(10, 15), *range(60, 65)}


@pytest.mark.parametrize("stride", [1, 4])
def test_labels_are_seen_as_the_map_sees_them(raster, stride):
    labelled, source = placed(
        points_on([(1, 1), (20, 99), (150, 189)], ["a", "b", "a"]), raster, stride
    )
    kinds = [band_features(source), energy_features(source)]
    found = features_at(labelled, grid(stride), kinds, silent)
    whole = Tile(slice(0, 151), slice(0, 190))
    for kind in kinds:
        every = points_module.in_cells(kind.of(whole), stride)
        at = every[tuple(labelled.cells.T)]
        np.testing.assert_allclose(found[kind.name], at, rtol=1e-3, atol=1e-4)


def test_a_label_without_pixels_is_not_known(tmp_path):
    def cleared(values):
        values[:, :16, :16] = 0
        return values

    raster = write_raster(tmp_path / "holes.tif", change=cleared)
    labelled, source = placed(points_on([(3, 3), (90, 90)], ["a", "b"]), raster)
    found = features_at(labelled, grid(), [band_features(source)], silent)["bands"]
    assert np.isnan(found).any(1).tolist() == [True, False]


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


def test_places_are_given_in_degrees(raster):
    lon, lat = cells_lonlat(np.array([[3, 5]]), grid(8), open_alone(str(raster)))
    (there,) = gpd.GeoSeries(gpd.points_from_xy(lon, lat), crs=4326).to_crs(32643)
    assert (there.x, there.y) == pytest.approx(AFFINE @ (44, 28), abs=1e-3)


# The verb


@pytest.fixture(scope="module", autouse=True)
def few_trees():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choice, "NUM_REPEATS", 1)
        patch.setattr(choice, "NUM_TREES", 10)
        patch.setattr(choice, "NUM_STAGES", 5)
        yield


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teach")
    raster = write_raster(folder / "raster.tif", 300, 380)
    composite = {"product": "composite", "attribution": ["© whoever took it"]}
    raster.with_suffix(".json").write_text(json.dumps(composite))
    five_a_class(300, 380).to_file(folder / "points.gpkg")
    arguments = ["teach", str(raster), "--points", str(folder / "points.gpkg")]
    assert main([*arguments, "--output", str(folder / "own")]) == 0
    return folder, arguments


def test_five_points_a_class_become_a_map_of_every_pixel(taught):
    folder, _ = taught
    record = json.loads((folder / "own" / "probe.json").read_text())
    assert record["points"] == {"fields": 5, "forest": 5, "river": 5}
    with rasterio.open(folder / "own" / "map.tif") as file:
        mapped = file.read(1)
        assert file.res == (10, 10)
    with rasterio.open(folder / "raster.tif") as file:
        assert np.array_equal(mapped == IGNORE, (file.read() == 0).any(0))
    codes = class_codes(grid_of(300, 380))
    inverse = {name: code for code, name in NAMES.items()}
    ours = np.isin(codes, list(NAMES)) & (mapped != IGNORE)
    truth = np.array([inverse[name] for name in record["class_names"]])
    right = truth[np.minimum(mapped, 2)] == codes
    low, high = record["score"]["reached"]["balanced_accuracy_ci95"]
    recalls = [right[ours & (codes == code)].mean() for code in NAMES]
    assert low <= np.mean(recalls) <= high
    assert np.mean(recalls) > 0.8


def test_a_map_of_a_composite_says_whose_pixels_it_is_made_of(taught):
    folder, _ = taught
    for name in ("map.json", "map.tif.stac.json"):
        assert "© whoever took it" in (folder / "own" / name).read_text(), name


def test_the_chosen_one_is_the_best_and_repeats_its_labels(taught):
    folder, _ = taught
    record = json.loads((folder / "own" / "probe.json").read_text())
    score = record["score"]
    tried = {(*each["features"], each["classifier"]) for each in score["candidates"]}
    assert len(tried) == 9
    best = max(each["balanced_accuracy"] for each in score["candidates"])
    assert score["chosen"]["balanced_accuracy"] == best
    assert score["reached"]["balanced_accuracy"] <= best
    assert score["one_class"] == pytest.approx(1 / 3)
    assert record["missed"] == []
    assert record["map"]["run"] is None
    assert record["map"]["out_of_domain"] is None


def test_a_label_that_cannot_be_repeated_is_named(taught, capsys):
    folder, arguments = taught
    odd = gpd.read_file(folder / "points.gpkg")
    odd.loc[0, "class"] = "river"  # amid points of the forest
    odd = pd.concat([odd, five_a_class(300, 380, seed=1), five_a_class(300, 380, seed=2)])
    odd.to_file(folder / "odd.geojson")
    words = [*arguments[:3], str(folder / "odd.geojson"), "--output", str(folder / "odd")]
    assert main(words) == 0
    missed = json.loads((folder / "odd" / "probe.json").read_text())["missed"]
    said = " ".join(capsys.readouterr().out.split())
    if missed:
        assert f"{missed[0]['where']} ({missed[0]['label']}, mapped" in said
    else:
        assert "repeats all" in said


def test_places_to_label_next_come_with_a_class_to_fill_in(taught):
    folder, _ = taught
    found = gpd.read_file(folder / "own" / "label-next.geojson")
    assert found.crs.to_epsg() == 4326
    assert found["rank"].tolist() == list(range(1, 21))
    assert found["class"].isna().all()
    assert {*found["guess"]} <= {"fields", "forest", "river"}
    np.testing.assert_allclose(found["lon"], found.geometry.x)
    filled = found.assign(**{"class": found["guess"]})
    filled.to_file(folder / "filled.geojson")
    again = read_all_points([folder / "points.gpkg", folder / "filled.geojson"])
    source = open_alone(str(folder / "raster.tif"))
    assert len(place(again, source, grid(shape=(300, 380)), pytest.fail).labels) == 35


def test_a_survey_of_the_map_knows_where_it_learned(taught):
    folder, _ = taught
    mapped = ClassMap(folder / "own" / "map.tif")
    points = gpd.read_file(folder / "points.gpkg").to_crs(4326).geometry
    expected = sorted(zip(points.x, points.y, strict=True))
    half_a_pixel = 6e-5
    found = sorted(map(tuple, trained_points(mapped)))
    np.testing.assert_allclose(found, expected, atol=half_a_pixel)
    record = sample(mapped.path, folder / "sample.gpkg", total=60, display=Display(quiet=True))
    assert {each.name for each in record.classes} == {"fields", "forest", "river"}
    probabilities = Probabilities.beside(mapped)
    assert probabilities.classes == ("fields", "forest", "river")
    row, col, _ = record.points[0]
    shares = probabilities.read(row, col, 1, 1)[:, 0, 0]
    assert shares.sum() == pytest.approx(1, abs=0.02)
    assert shares.argmax() == mapped.codes_at(np.array([row]), np.array([col]))[0]


def test_ended_amid_the_tiles_and_run_again_it_gives_the_same_bytes(taught, monkeypatch):
    folder, arguments = taught
    words = [*arguments, "--output", str(folder / "again")]
    made = np.save
    left = iter(range(2))

    def die(file, arr):
        if next(left, None) is None:
            raise KeyboardInterrupt
        made(file, arr)

    monkeypatch.setattr(np, "save", die)
    assert main(words) == 130
    assert not (folder / "again" / "probe.json").exists()
    assert len([*(folder / "again").glob(".map.tif.parts/*.npy")]) == 2
    monkeypatch.setattr(np, "save", made)
    assert main(words) == 0
    assert contents(folder / "own") == contents(folder / "again")


def test_a_cell_may_be_larger_than_a_pixel(taught):
    folder, arguments = taught
    assert main([*arguments, "--stride", "4", "--output", str(folder / "coarse")]) == 0
    with rasterio.open(folder / "coarse" / "map.tif") as file:
        assert file.shape == (75, 95)
        assert file.res == (40, 40)
        assert file.transform.c == AFFINE.c


@pytest.fixture(scope="module")
def with_run(taught, map_run):
    folder, arguments = taught
    words = ["teach", str(map_run.path), *arguments[1:]]
    assert main([*words, "--output", str(folder / "with-run")]) == 0
    return folder / "with-run"


def test_a_run_takes_part_and_leaves_a_probe(with_run, map_run):
    record = json.loads((with_run / "probe.json").read_text())
    tried = {tuple(each["features"]) for each in record["score"]["candidates"]}
    assert ("tokens" in record["left_out"]) != (("tokens",) in tried)
    probe, about = load_probe(with_run / "probe.safetensors")
    assert about.class_names == ("fields", "forest", "river")
    assert about.weights_sha256 == map_run.weights_sha256
    assert len(probe.mean) == map_run.model.config.width


def test_an_untrained_encoder_is_not_chosen(taught, map_run, tmp_path, monkeypatch):
    _, arguments = taught
    untrained = map_run.model.state_dict()
    for name, values in untrained.items():
        if values.is_floating_point() and name.endswith("weight"):
            values.normal_(std=0.02)
    opened = Run.open(map_run.path)
    opened.model.load_state_dict(untrained)
    monkeypatch.setattr(Run, "open", classmethod(lambda cls, path: opened))
    words = ["teach", str(map_run.path), *arguments[1:], "--output", str(tmp_path / "own")]
    assert main(words) == 0
    record = json.loads((tmp_path / "own" / "probe.json").read_text())
    assert "tokens" not in record["score"]["chosen"]["features"]
    assert record["map"]["run"] is None
