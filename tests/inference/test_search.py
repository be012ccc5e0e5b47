import numpy as np
import pytest
from pyproj import Geod
from shapely.geometry import Point
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.preprocessing import StandardScaler

from bharateo.chips.store import Dataset
from bharateo.errors import ConfigError, EmptyRegionError, SourceError
from bharateo.inference import area as areas_module
from bharateo.inference.area import open_area
from bharateo.inference.embed import Embedding, embed_dataset
from bharateo.inference.search import (
    Standard,
    dataset_of,
    distances_m,
    search,
    similarities,
    with_classes,
)
from bharateo.landcover import BHARATEO_CLASSES
from handover.tiny_run import tiny_run
from inference.areas import GRID, centres, cog, plan_of, table, vectors

HERE = (11, 17)


def lonlat(row, col):
    return tuple(centres([row], [col])[:, 0])


def expected_order(values, *asked):
    """Cells (row, col) by similarity with scikit-learn's words for it, those asked for left out."""
    flat = values.reshape(-1, values.shape[2]).astype(np.float64)
    known = ~np.isnan(flat[:, 0])
    scaled = np.full_like(flat, np.nan)
    scaled[known] = StandardScaler().fit_transform(flat[known])
    unit = scaled / np.linalg.norm(scaled, axis=1, keepdims=True)
    numbers = [row * GRID.shape[1] + col for row, col in asked]
    similarity = np.full(len(flat), -np.inf)
    similarity[known] = cosine_similarity(unit[known], unit[numbers].mean(0)[None])[:, 0]
    similarity[numbers] = -np.inf
    order = np.argsort(-similarity, kind="stable")
    return [divmod(int(each), GRID.shape[1]) for each in order], similarity[order]


def cells(found):
    inner = found[found["rank"] > 0]
    return list(zip(inner["row"], inner["col"], strict=True))


# What is found


def test_the_nearest_are_those_of_the_largest_cosine_of_standardised_vectors(tmp_path):
    values = vectors()
    found = search(open_area(table(tmp_path / "v.parquet", values)), [lonlat(*HERE)], 15, away_m=0)
    order, similarity = expected_order(values, HERE)
    assert cells(found) == order[:15]
    np.testing.assert_allclose(found["similarity"][1:], similarity[:15], atol=1e-5)
    assert found["rank"].tolist() == list(range(16))
    assert (found["row"][0], found["col"][0]) == HERE
    assert found["similarity"][0] == pytest.approx(1)


@pytest.mark.parametrize("chunk_bytes", [500, 5000])
def test_small_chunks_find_the_same(chunk_bytes, tmp_path, monkeypatch):
    values = vectors()
    files = [table(tmp_path / "v.parquet", values), cog(tmp_path / "v.tif", values)]
    whole = [search(open_area(file), [lonlat(*HERE)], 9) for file in files]
    monkeypatch.setattr(areas_module, "_CHUNK_BYTES", chunk_bytes)
    for file, before in zip(files, whole, strict=True):
        found = search(open_area(file), [lonlat(*HERE)], 9)
        assert cells(found) == cells(before)
        np.testing.assert_allclose(found["similarity"], before["similarity"], atol=1e-6)


def test_a_table_and_a_cog_of_the_same_vectors_find_the_same_places(tmp_path):
    values = vectors()
    values[3:6, 10:20] = np.nan
    found, other = (
        search(open_area(file), [lonlat(*HERE)], 12)
        for file in (table(tmp_path / "v.parquet", values), cog(tmp_path / "v.tif", values))
    )
    assert cells(found) == cells(other)
    for name in ("lon", "lat"):
        np.testing.assert_allclose(found[name], other[name], atol=1e-9)
    assert all(a.equals_exact(b, 1e-9) for a, b in zip(
        found.geometry.normalize(), other.geometry.normalize(), strict=True))  # fmt: skip


def test_scaled_integers_are_compared_by_what_they_stand_for(tmp_path):
    stored = np.random.default_rng(3).integers(-127, 128, (*GRID.shape, 5)).astype(np.int8)
    stored[0] = -128
    scales, offsets = (0.5, 2.0, 0.01, 1.0, 3.0), (10.0, 0.0, -2.0, 0.0, 7.0)
    file = cog(tmp_path / "v.tif", stored, "int8", -128, scales, offsets)
    values = np.where(stored == -128, np.nan, stored * np.array(scales) + np.array(offsets))
    found = search(open_area(file), [lonlat(*HERE)], 10, away_m=0)
    assert cells(found) == expected_order(values, HERE)[0][:10]


def test_several_places_are_asked_for_by_their_mean_direction(tmp_path):
    values, other = vectors(), (2, 3)
    area = open_area(table(tmp_path / "v.parquet", values))
    found = search(area, [lonlat(*HERE), lonlat(*other)], 10, away_m=0)
    assert found["rank"].tolist() == [0, 0, *range(1, 11)]
    assert cells(found) == expected_order(values, HERE, other)[0][:10]


def test_cells_without_a_vector_are_never_found(tmp_path):
    values = vectors()
    values[5:9] = np.nan
    area = open_area(cog(tmp_path / "v.tif", values))
    similarity = similarities(area, Standard.of(area), np.array([0]))
    assert (similarity.reshape(GRID.shape)[5:9] == -np.inf).all()
    assert np.isfinite(similarity.reshape(GRID.shape)[9:]).all()


def test_places_keep_their_distance_from_the_one_asked_for_and_from_each_other(tmp_path):
    values = np.broadcast_to(
        np.stack(np.indices(GRID.shape), 2).astype(np.float32), (*GRID.shape, 2)
    )  # neighbours are the most alike
    area = open_area(table(tmp_path / "v.parquet", values))
    for away_m, found in (
        (1000, search(area, [lonlat(*HERE)], 12, away_m=1000)),
        (320, search(area, [lonlat(*HERE)], 12)),  # two sides of 160 m
    ):
        places = found[["lon", "lat"]].to_numpy()
        for number, (lon, lat) in enumerate(places):
            for other in places[:number]:
                assert Geod(ellps="WGS84").inv(lon, lat, *other)[2] > 0.99 * away_m


def test_fewer_places_than_asked_for_are_all_there_are(tmp_path):
    area = open_area(table(tmp_path / "v.parquet", vectors()))
    assert len(search(area, [lonlat(*HERE)], 1000, away_m=0)) == 600
    assert len(search(area, [lonlat(*HERE)], 5, away_m=1e6)) == 1


def test_outlines_are_the_cells_in_degrees(tmp_path):
    found = search(open_area(table(tmp_path / "v.parquet", vectors())), [lonlat(*HERE)], 5)
    assert found.crs.to_epsg() == 4326
    for outline, lon, lat in zip(found.geometry, found["lon"], found["lat"], strict=True):
        assert outline.contains(Point(lon, lat))
        square_m, _ = Geod(ellps="WGS84").geometry_area_perimeter(outline)
        assert abs(square_m) == pytest.approx(160**2, rel=2e-3)  # UTM's own scale


def test_short_distances_are_those_of_the_ellipsoid():
    here, there = np.array([77.2, 28.6]), np.array([[77.21, 77.2, 77.19], [28.6, 28.62, 28.59]])
    for metres, lon, lat in zip(distances_m(there, here), *there, strict=True):
        assert metres == pytest.approx(Geod(ellps="WGS84").inv(*here, lon, lat)[2], rel=5e-3)


def test_distances_cross_the_antimeridian():
    near = distances_m(np.array([[-179.999], [0.0]]), np.array([179.999, 0.0]))
    assert near[0] == pytest.approx(222, rel=0.01)


# What is refused


def test_a_point_outside_is_refused_with_the_nearest_place(tmp_path):
    area = open_area(table(tmp_path / "v.parquet", vectors()))
    lon, lat = lonlat(0, 29)
    with pytest.raises(
        ConfigError, match=rf"outside .*nearest place inside is {lon:.5f},{lat:.5f}"
    ):
        search(area, [(lon + 0.5, lat + 0.2)], 5)


def test_a_point_with_its_latitude_first_is_told(tmp_path):
    area = open_area(table(tmp_path / "v.parquet", vectors()))
    lon, lat = (round(each, 5) for each in lonlat(*HERE))
    with pytest.raises(ConfigError, match=rf"other way round it lies inside: --like {lon},{lat}$"):
        search(area, [(lat, lon)], 5)


def test_a_hole_is_outside(tmp_path):
    values = vectors()
    values[9:14, 14:20] = np.nan
    for file in (table(tmp_path / "v.parquet", values), cog(tmp_path / "v.tif", values)):
        with pytest.raises(ConfigError, match="lies outside"):
            search(open_area(file), [lonlat(*HERE)], 5)


def test_what_is_no_embedding_is_refused(tmp_path):
    (tmp_path / "text.parquet").write_text("no table")
    for name, match in (("text.parquet", "no table of vectors"), ("no.parquet", "no table"),
                        ("no.tif", "does not exist")):  # fmt: skip
        with pytest.raises(SourceError, match=match):
            open_area(tmp_path / name)


def test_an_area_without_a_vector_is_refused(tmp_path):
    with pytest.raises(EmptyRegionError, match="holds no vector"):
        search(open_area(cog(tmp_path / "v.tif", vectors() * np.nan)), [lonlat(*HERE)], 5)


# Areas of datasets


@pytest.fixture(scope="module")
def embedded(reflectance_dataset, tmp_path_factory):
    """The patches of a dataset (8 px, in squares of 48 px) as ``embed`` writes them."""
    folder = tmp_path_factory.mktemp("embedded")
    run = tiny_run(folder / "run", reflectance_dataset)
    output = folder / "v.parquet"
    embed_dataset(run, reflectance_dataset, [output], Embedding(), lambda *told: None, print)
    return open_area(output)


def test_classes_are_counted_under_each_place(embedded, reflectance_dataset):
    found = search(embedded, [tuple(embedded.lonlat[:, 40])], 20)
    found = with_classes(found, reflectance_dataset)
    names = [each.name for each in BHARATEO_CLASSES]
    rows = reflectance_dataset.column("row")[found["chip"]]
    cols = reflectance_dataset.column("col")[found["chip"]]
    for row, col, place in zip(found["row"] - rows, found["col"] - cols,
                               found.to_dict("records"), strict=True):  # fmt: skip
        labels = reflectance_dataset.landcover(place["chip"])[row : row + 8, col : col + 8]
        counts = np.bincount(labels[labels < 8], minlength=8)
        shares = [place[name] for name in names]
        np.testing.assert_allclose(shares, counts / max(counts.sum(), 1))
        assert place["class"] == (names[counts.argmax()] if counts.any() else None)


def test_the_dataset_is_known_while_it_is_there(embedded, reflectance_dataset, tmp_path):
    found = dataset_of(embedded)
    assert isinstance(found, Dataset)
    assert found.path == reflectance_dataset.path
    gone = plan_of(dataset=str(tmp_path / "gone"))
    assert dataset_of(open_area(table(tmp_path / "v.parquet", vectors(), gone))) is None
