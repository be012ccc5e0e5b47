"""Tables of vectors as geopandas and DuckDB open them."""

import duckdb
import geopandas
import numpy as np
import pytest
import shapely
from pyproj import CRS

from bharateo.errors import EmptyRegionError
from bharateo.inference.table import Rows, corners, write_table
from bharateo.pixels.product import provenance_of
from inference.areas import PLAN


def rows(first, num, dtype="float16"):
    rng = np.random.default_rng(first)
    place = np.arange(first, first + num)
    outlines = corners(place * 16.0, place * 32.0, 16)
    return Rows(
        {"row": place, "split": np.array(["train"] * num, object)},
        outlines.mean(2) / 1000,
        rng.normal(size=(num, 6)).astype(dtype),
        outlines,
    )


@pytest.fixture(params=["float16", "float32"])
def table(request, tmp_path):
    groups = [rows(0, 3, request.param), rows(3, 4, request.param)]
    write_table(tmp_path / "v.parquet", iter(groups), CRS("EPSG:27700"), PLAN)
    return tmp_path / "v.parquet", np.concatenate([group.vectors for group in groups])


def test_geopandas_opens_it(table):
    path, vectors = table
    frame = geopandas.read_parquet(path)
    assert list(frame) == ["row", "split", "lon", "lat", "vector", "geometry"]
    assert frame.crs.to_epsg() == 27700
    assert frame["row"].tolist() == list(range(7))
    np.testing.assert_array_equal(np.stack(frame["vector"]), vectors)
    assert frame["vector"][0].dtype == vectors.dtype
    assert shapely.equals(frame.geometry[2], shapely.box(64, 32, 80, 48))
    np.testing.assert_allclose(frame["lon"], frame.geometry.centroid.x / 1000)


def test_duckdb_opens_it(table):
    path, vectors = table
    found = duckdb.sql(f"select row, split, vector from '{path}' order by row desc").fetchall()
    assert [row for row, _, _ in found] == list(range(6, -1, -1))
    np.testing.assert_array_equal(np.array([vector for _, _, vector in found]), vectors[::-1])
    nearest = duckdb.sql(
        f"select row from '{path}' order by array_distance(vector::float[6], (select vector::"
        f"float[6] from '{path}' where row = 5)) limit 1"
    )
    assert nearest.fetchall() == [(5,)]


def test_it_says_what_it_was_made_of(table):
    assert provenance_of(table[0]) == PLAN.to_json()


def test_no_table_says_nothing(tmp_path):
    (tmp_path / "text.parquet").write_text("no table")
    assert provenance_of(tmp_path / "text.parquet") == {}
    assert provenance_of(tmp_path / "none.parquet") == {}


def test_a_table_without_rows_is_not_written(tmp_path):
    path = tmp_path / "v.parquet"
    with pytest.raises(EmptyRegionError, match=r"no patch has a valid pixel, so .*v\.parquet"):
        write_table(path, iter([]), CRS("EPSG:27700"), PLAN)
    assert list(tmp_path.iterdir()) == []


def test_the_same_rows_give_the_same_bytes(tmp_path):
    for name in "ab":
        write_table(tmp_path / name, iter([rows(0, 9)]), CRS("EPSG:4326"), PLAN)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
