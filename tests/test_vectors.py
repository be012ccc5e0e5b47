"""Files of points and polygons: read as data, in the formats that are named, and in seconds."""

import json
import os
import sqlite3
import threading
import time

import geopandas as gpd
import numpy as np
import pytest
import shapely
from pyproj import Geod

from bharateo.config import DataConfig
from bharateo.errors import BharatEOError, ConfigError, RegionError, SourceError
from bharateo.inference.points import read_points
from bharateo.pixels.vectors import read_features
from bharateo.regions import Zone, parse_roi
from bharateo.sources.areas import file_zones, sentinel2_regions, zones_of

SQUARE = [[77, 28], [77.1, 28], [77.1, 28.1], [77, 28.1], [77, 28]]
SECRET = "lon,lat,class,secret\n77,28,a,of-this-machine\n"


def geojson(path, *geometries, **members):
    features = [{"type": "Feature", "properties": {"n": n}, "geometry": geometry}
                for n, geometry in enumerate(geometries)]  # fmt: skip
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features, **members}))
    return path


def polygon(*corners):
    return {"type": "Polygon", "coordinates": [list(corners)]}


def within(seconds, call, *arguments):
    """What a call returns or raises, given so many seconds."""
    results = []

    def run():
        try:
            results.append(call(*arguments))
        except BharatEOError as error:
            results.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert results, f"no answer within {seconds} s, or a traceback"
    return results[0]


def refused(result, kind=BharatEOError):
    assert isinstance(result, kind), result
    assert "\n" not in str(result)
    assert len(str(result)) < 500
    return str(result)


# What is opened


@pytest.mark.parametrize("ending", ["gpkg", "geojson", "json", "shp", "fgb"])
def test_the_named_formats_give_the_same_features(ending, tmp_path):
    points = gpd.points_from_xy([400_000, 400_100], [3e6, 3e6])
    frame = gpd.GeoDataFrame({"class": ["a", "b"], "n": [1, 2]}, geometry=points, crs=32643)
    driver = "GeoJSON" if ending == "json" else None
    frame.to_file(tmp_path / f"p.{ending}", driver=driver)
    found = read_features(tmp_path / f"p.{ending}", "points", SourceError)
    found = found.sort_values("n").reset_index(drop=True)
    assert found["class"].tolist() == ["a", "b"]
    assert found.crs.to_epsg() == 32643
    assert found.geometry.geom_equals_exact(frame.geometry, 0.01).all()


def vrt(target, sql="SELECT * FROM secret"):
    """A description that makes GDAL read another file."""
    return (
        f'<OGRVRTDataSource><OGRVRTLayer name="l"><SrcDataSource>{target}</SrcDataSource>'
        f'<SrcSQL dialect="sqlite">{sql}</SrcSQL><GeometryField encoding="PointFromColumns" '
        'x="lon" y="lat"/></OGRVRTLayer></OGRVRTDataSource>'
    )


@pytest.mark.parametrize("name", ["p.vrt", "p.gpkg", "p.geojson", "p.shp", "p.fgb", "p.json"])
@pytest.mark.parametrize(
    "read", [lambda p: read_points(p, "secret"), lambda p: file_zones(p, None)]
)
def test_a_description_of_another_file_is_never_followed(name, read, tmp_path):
    (tmp_path / "secret.csv").write_text(SECRET)
    (tmp_path / name).write_text(vrt(tmp_path / "secret.csv"))
    assert "of-this-machine" not in refused(within(10, read, tmp_path / name))


def test_a_geojson_that_is_such_a_description_as_well_is_read_as_geojson(tmp_path):
    (tmp_path / "secret.csv").write_text(SECRET)
    path = geojson(tmp_path / "p.geojson", {"type": "Point", "coordinates": [1, 2]})
    record = {"about": vrt(tmp_path / "secret.csv"), **json.loads(path.read_text())}
    path.write_text(json.dumps(record, ensure_ascii=False))
    assert read_features(path, "points", SourceError)["n"].tolist() == [0]


def test_a_query_that_never_ends_is_not_asked(tmp_path):
    (tmp_path / "secret.csv").write_text(SECRET)
    forever = "WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t) SELECT * FROM t"
    (tmp_path / "p.vrt").write_text(vrt(tmp_path / "secret.csv", forever))
    refused(within(5, read_points, tmp_path / "p.vrt"), SourceError)


@pytest.mark.parametrize("table", ["points", "gpkg_geometry_columns"])
def test_a_geopackage_with_a_view_for_a_table_is_refused(table, tmp_path):
    path = tmp_path / "p.gpkg"
    frame = gpd.GeoDataFrame({"class": ["a"]}, geometry=gpd.points_from_xy([1], [2]), crs=4326)
    frame.to_file(path, layer="points")
    with sqlite3.connect(path) as base:
        base.execute("PRAGMA writable_schema=ON")
        base.execute(f"ALTER TABLE {table} RENAME TO other") if table == "points" else None
        base.execute("DELETE FROM sqlite_master WHERE name = ?", [table])
        forever = "WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t)"
        base.execute(
            "INSERT INTO sqlite_master VALUES ('view', ?, ?, 0, ?)",
            [table, table, f"CREATE VIEW {table} AS {forever} SELECT n AS table_name FROM t"],
        )
        if table == "points":
            base.execute("UPDATE gpkg_geometry_columns SET table_name = 'points'")
    refused(within(10, read_points, path), SourceError)


def test_changes_that_lie_beside_a_geopackage_are_not_lost_in_silence(tmp_path):
    path = tmp_path / "p.gpkg"
    frame = gpd.GeoDataFrame({"class": ["a"]}, geometry=gpd.points_from_xy([1], [2]), crs=4326)
    frame.to_file(path, layer="points")
    base = sqlite3.connect(path)
    base.execute("PRAGMA journal_mode=WAL")
    base.execute("CREATE TABLE note (text)")
    base.commit()
    assert "p.gpkg-wal" in refused(within(10, read_points, path))
    base.close()
    assert len(read_points(path)) == 1


@pytest.mark.parametrize("name", ["p.gpkg", "p.geojson", "p.csv", "p.shp", "p.fgb"])
@pytest.mark.parametrize("read", [read_points, lambda path: file_zones(path, None)])
def test_a_pipe_or_folder_in_place_of_a_file_is_refused_at_once(name, read, tmp_path):
    os.mkfifo(tmp_path / name)
    refused(within(5, read, tmp_path / name))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / name).mkdir()
    refused(within(5, read, tmp_path / "folder" / name))


@pytest.mark.parametrize(
    "name", ["GeoJSON:{}", "/vsicurl/http://127.0.0.1:9/a.geojson", "/vsizip/a.zip/a.geojson",
             "http://127.0.0.1:9/a.geojson", "PG:dbname=x", "WFS:http://127.0.0.1:9/a.geojson"]
)  # fmt: skip
def test_a_connection_is_no_file(name, tmp_path):
    path = geojson(tmp_path / "p.geojson", polygon(*SQUARE))
    name = name.format(path)
    refused(within(5, read_points, type(path)(name)))
    refused(within(5, file_zones, type(path)(name), None))


# What is in it


def zones(path):
    return file_zones(path, None)


def regions(path):
    return sentinel2_regions(zones(path), (1, 1))


BAD_AREAS = {
    "infinite": '{"type": "Polygon", "coordinates": [[[77, 28], [1e999, 28], [77, 29], [77, 28]]]}',
    "NaN": '{"type": "Polygon", "coordinates": [[[77, 28], [NaN, 28], [77, 29], [77, 28]]]}',
    "open ring": '{"type": "Polygon", "coordinates": [[[77, 28], [78, 28], [78, 29], [77, 29]]]}',
    "two corners": '{"type": "Polygon", "coordinates": [[[77, 28], [78, 28], [77, 28]]]}',
    "null": '{"type": "Feature", "properties": {}, "geometry": null}',
    "no coordinates": '{"type": "Polygon"}',
    "empty": '{"type": "Polygon", "coordinates": []}',
    "line": '{"type": "LineString", "coordinates": [[77, 28], [78, 28]]}',
    "flat": '{"type": "Polygon", "coordinates": [[[77, 28], [78, 28], [79, 28], [77, 28]]]}',
    "far": '{"type": "Polygon", "coordinates": [[[700, 28], [710, 28], [710, 29], [700, 28]]]}',
    "nested": "[" * 100_000,
    "digits": '{"type": "Point", "coordinates": [' + "9" * 5000 + ", 1]}",
    "text": "no GeoJSON",
}


@pytest.mark.parametrize("kind", BAD_AREAS)
def test_an_area_that_is_none_is_refused_in_one_line(kind, tmp_path):
    path = tmp_path / "a.geojson"
    path.write_text(BAD_AREAS[kind])
    refused(within(5, regions, path), RegionError)


@pytest.mark.parametrize("crs", [32643, 3031, 3857, 3995])
@pytest.mark.slow
def test_shapes_near_a_pole_are_placed_or_refused(crs, tmp_path):
    for size in (1e3, 1e7, 1e300):
        frame = gpd.GeoDataFrame(geometry=[shapely.box(-size, -size, size, size)], crs=crs)
        frame.to_file(tmp_path / f"{size}.gpkg")
        result = within(10, regions, tmp_path / f"{size}.gpkg")
        assert isinstance(result, tuple) or refused(result, RegionError)


@pytest.mark.parametrize("name", ["moon", "local"])
def test_an_area_that_is_not_on_earth_is_refused(name, tmp_path):
    crs = {
        "moon": "+proj=longlat +R=1737400 +no_defs",
        "local": 'LOCAL_CS["plan",UNIT["metre",1]]',
    }[name]
    frame = gpd.GeoDataFrame(geometry=[shapely.box(0, 0, 1, 1)], crs=crs)
    frame.to_file(tmp_path / "a.gpkg")
    result = within(10, zones, tmp_path / "a.gpkg")
    assert isinstance(result, list) or refused(result, RegionError)


def test_a_bow_tie_is_mended(tmp_path):
    tie = polygon([77, 28], [77.2, 28.2], [77.2, 28], [77, 28.2], [77, 28])
    (zone,) = zones(geojson(tmp_path / "a.geojson", tie))
    assert zone.outline.is_valid
    assert zone.outline.area == pytest.approx(0.02)


def test_the_whole_earth_is_refused_within_seconds(tmp_path):
    earth = polygon([-180, -90], [180, -90], [180, 90], [-180, 90], [-180, -90])
    refused(within(20, regions, geojson(tmp_path / "a.geojson", earth)), RegionError)
    for text in ("earth=-180,-90,180,90", "earth=0,0,100000000", "earth=10,-90,9.9,90"):
        refused(within(5, parse_roi, text), RegionError)
    assert parse_roi("asia=60,0,120,50").bbox


def star(num, crossing):
    angle = np.linspace(0, 2 * np.pi, num, endpoint=False)
    if crossing:
        angle = np.random.default_rng(0).uniform(0, 2 * np.pi, num)
    radius = np.where(np.arange(num) % 2, 4, 4 if crossing else 0.3)
    corners = np.stack([77 + radius * np.cos(angle), 22 + radius * np.sin(angle)], 1).tolist()
    return polygon(*corners, corners[0])


@pytest.mark.parametrize("num", [200, 20_000])
@pytest.mark.parametrize("crossing", [False, True])
def test_spiky_shapes_are_answered_within_seconds(num, crossing, tmp_path):
    path = geojson(tmp_path / "a.geojson", star(num, crossing))
    started = time.process_time()
    result = within(60, regions, path)
    assert time.process_time() - started < 4
    assert isinstance(result, tuple) == (num == 200)


def test_the_parts_of_an_area_in_its_squares_are_the_whole_of_it():
    offsets = np.random.default_rng(3).uniform(-1.5, 1.5, (12, 2))
    outline = shapely.convex_hull(shapely.MultiPoint(offsets + np.array([76.0, 27.0])))
    found = sentinel2_regions([Zone("a", outline)], (1, 1))
    assert len(found) > 4
    m2 = 100 * sum(part.outline.area for region in found for part in region.zones)
    bent = shapely.segmentize(shapely.orient_polygons(outline), 0.01)
    assert m2 == pytest.approx(abs(Geod(ellps="WGS84").geometry_area_perimeter(bent)[0]), rel=2e-3)


def test_points_far_from_any_place_are_refused(tmp_path):
    (tmp_path / "p.csv").write_text("lon,lat,class\n1e999,2,a\n1,3,b\n")
    refused(within(5, read_points, tmp_path / "p.csv"), ConfigError)


def test_zones_of_a_configuration_are_checked_like_files():
    with pytest.raises(RegionError):
        zones_of(DataConfig(rois=("earth=-180,-90,180,90",)))
