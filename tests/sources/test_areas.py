import json
import warnings
from itertools import combinations

import geopandas
import mgrs
import numpy as np
import pyproj
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from bharateo.config import DataConfig
from bharateo.errors import ConfigError, RegionError
from bharateo.regions import Region, Zone
from bharateo.sources.areas import sentinel2_regions, square_name, tile_bounds, zones_of

GLOBE = pyproj.Geod(ellps="WGS84")

TILE_CORNERS = {
    "43RGM": (32643, 699960, 3200040),
    "31TFJ": (32631, 600000, 4900020),
    "31TDJ": (32631, 399960, 4900020),
    "29TNG": (32629, 499980, 4700040),
}
"""Upper left corners of published tiles. Sources: items of Earth Search, and of its forerunner."""

SOUTHERN_TILE_CORNERS = {
    "20HNH": (32720, 499980, 6300040),
    "55HGA": (32755, 699960, 6100000),
}
"""Sources: Earth Engine's asset COPERNICUS/S2/20170127T140051_20170127T140834_T20HNH, and Digital
Earth Australia's dataset ga_s2am_ard_3-2-1_55HGA_2019-11-21_final."""


def zones(**data) -> tuple[Zone, ...]:
    return zones_of(DataConfig(**{"rois": (), **data}))


def box(name: str, west: float, south: float, east: float, north: float) -> Zone:
    return Zone(name, shapely.box(west, south, east, north))


def square_metres(outline: shapely.Geometry) -> float:
    """The area of an outline in degrees on the ellipsoid, its sides bent as in the plane."""
    bent = shapely.segmentize(shapely.orient_polygons(outline), 0.01)
    return abs(GLOBE.geometry_area_perimeter(bent)[0])


def in_metres(region: Region, outline: shapely.Geometry) -> shapely.Geometry:
    a, b, c, d, e, f = region.geobox.affine[:6]
    return shapely.affinity.affine_transform(outline, [a, b, d, e, c, f])


def in_degrees(region: Region, outline: shapely.Geometry) -> shapely.Geometry:
    crs = f"EPSG:{region.geobox.crs.epsg}"
    transform = pyproj.Transformer.from_crs(crs, "EPSG:4326", always_xy=True).transform
    bent = shapely.segmentize(in_metres(region, outline), 1000)
    return shapely.transform(bent, transform, interleaved=False)


def rectangle(region: Region) -> shapely.Geometry:
    """All of a region, in its pixels."""
    height, width = region.geobox.shape
    return shapely.box(0, 0, width, height)


# Zones.


def test_a_point_is_a_square_of_so_many_pixels_of_10_m_around_it():
    (zone,) = zones(rois=("here=77.23,28.61,512",))
    assert zone.name == "here"
    assert zone.outline.centroid.distance(shapely.Point(77.23, 28.61)) < 1e-5
    assert square_metres(zone.outline) == pytest.approx(5120**2, rel=2e-3)
    (region,) = sentinel2_regions([zone], (1, 1))
    assert max(np.abs(np.array(region.geobox.shape) - 512)) <= 1


def test_a_bounding_box_is_itself_and_known_names_are_known():
    west, south, east, north = 76.5, 27.5, 77.5, 28.0
    box_zone, delhi = zones(rois=(f"box={west},{south},{east},{north}", "delhi_ncr"))
    assert box_zone.outline.equals(shapely.box(west, south, east, north))
    assert delhi.name == "delhi_ncr"
    assert delhi.outline.contains(shapely.Point(77.23, 28.61))


def test_a_worldcover_tile_is_its_three_degrees():
    north, south = zones(worldcover_tiles=("N27E075", "S03W060"))
    assert north.outline.bounds == (75, 27, 78, 30)
    assert south.outline.bounds == (-60, -3, -57, 0)


def test_an_mgrs_square_is_the_ground_of_its_tile_without_the_overlap():
    (zone,) = zones(mgrs_tiles=("44rkv",))
    assert zone.name == "44RKV"
    (region,) = sentinel2_regions([zone], (1024, 1024))
    assert region.name == "44RKV"
    (part,) = region.zones
    corner = 200_000, 3_400_000
    square = shapely.box(*tile_bounds(corner))
    assert in_metres(region, part.outline).difference(square.buffer(5)).area == 0
    # A part of the square lies west of its UTM zone.
    west = in_degrees(region, part.outline).bounds[0]
    assert west == pytest.approx(78, abs=1e-4)


def polygons(path, crs="EPSG:4326", **columns) -> str:
    """A file with two squares and a point."""
    shapes = [
        shapely.box(77, 28, 77.1, 28.1),
        shapely.box(78, 27, 78.2, 27.1),
        shapely.Point(77, 28),
    ]
    frame = geopandas.GeoDataFrame(columns, geometry=shapes, crs="EPSG:4326").to_crs(crs)
    frame.to_file(path)
    return str(path)


@pytest.mark.parametrize("ending", ["geojson", "gpkg"])
def test_polygons_of_a_file_are_zones_by_number_or_by_a_column(tmp_path, ending):
    path = polygons(tmp_path / f"area.{ending}", state=["Delhi", "Agra", "none"])
    numbered = zones(aoi=path)
    assert [zone.name for zone in numbered] == ["zone-0", "zone-1"]
    named = {zone.name: zone.outline for zone in zones(aoi=path, zone_field="state")}
    assert sorted(named) == ["Agra", "Delhi"]
    np.testing.assert_allclose(named["Delhi"].bounds, (77, 28, 77.1, 28.1), atol=1e-9)
    np.testing.assert_allclose(named["Agra"].bounds, (78, 27, 78.2, 27.1), atol=1e-9)


def test_polygons_in_another_reference_system_come_to_their_place(tmp_path):
    path = polygons(tmp_path / "area.gpkg", "EPSG:32643", name=["a", "b", "c"])
    delhi, _ = zones(aoi=path, zone_field="name")
    # Its straight sides lie up to a metre beside the parallel between their ends.
    np.testing.assert_allclose(delhi.outline.bounds, (77, 28, 77.1, 28.1), atol=1.2e-5)


def test_polygons_of_one_name_are_one_zone_and_crossed_ones_are_mended(tmp_path):
    path = polygons(tmp_path / "area.gpkg", state=["one", "one", "point"])
    (zone,) = zones(aoi=path, zone_field="state")
    assert zone.outline.geom_type == "MultiPolygon"
    assert zone.outline.area == pytest.approx(0.01 + 0.02)
    crossed = {"type": "Polygon", "coordinates": [[[0, 0], [1, 1], [1, 0], [0, 1], [0, 0]]]}
    (tmp_path / "crossed.json").write_text(json.dumps(crossed))
    (zone,) = zones(aoi=str(tmp_path / "crossed.json"))
    assert zone.outline.is_valid
    assert zone.outline.area == pytest.approx(0.5)


# What is wrong with an area.


def test_a_file_that_is_missing_or_no_polygons_is_named(tmp_path):
    with pytest.raises(RegionError, match=r"none\.gpkg is no file"):
        zones(aoi=str(tmp_path / "none.gpkg"))
    (tmp_path / "text.geojson").write_text("here be dragons")
    with pytest.raises(RegionError, match=r"text\.geojson cannot be read as polygons"):
        zones(aoi=str(tmp_path / "text.geojson"))
    points = geopandas.GeoDataFrame(geometry=[shapely.Point(77, 28)], crs="EPSG:4326")
    points.to_file(tmp_path / "points.gpkg")
    with pytest.raises(RegionError, match=r"points\.gpkg holds no polygon"):
        zones(aoi=str(tmp_path / "points.gpkg"))
    (tmp_path / "empty.geojson").write_text('{"type": "FeatureCollection", "features": []}')
    with pytest.raises(RegionError, match=r"empty\.geojson"):
        zones(aoi=str(tmp_path / "empty.geojson"))


def test_a_column_that_is_missing_is_named_with_those_there_are(tmp_path):
    path = polygons(tmp_path / "area.gpkg", state=["a", "b", "c"], size=[1, 2, 3])
    with pytest.raises(RegionError, match=r"'district' is no column of .*: it has state, size"):
        zones(aoi=path, zone_field="district")


def test_a_file_without_reference_system_or_with_the_wrong_one_is_refused(tmp_path):
    frame = geopandas.GeoDataFrame(geometry=[shapely.box(700_000, 3e6, 701_000, 3.1e6)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        frame.to_file(tmp_path / "bare.gpkg")
    with pytest.raises(RegionError, match=r"bare\.gpkg has no coordinate reference system"):
        zones(aoi=str(tmp_path / "bare.gpkg"))
    metres = {
        "type": "Polygon",
        "coordinates": [[[7e5, 3e6], [7.1e5, 3e6], [7e5, 3.1e6], [7e5, 3e6]]],
    }
    (tmp_path / "metres.geojson").write_text(json.dumps(metres))
    with pytest.raises(RegionError, match=r"metres\.geojson reaches from 700000, 3e\+06"):
        zones(aoi=str(tmp_path / "metres.geojson"))


@pytest.mark.parametrize("name", ["", "43R", "43RG", "99ABC", "43RGMx", "Delhi"])
def test_what_is_no_mgrs_square_is_named(name):
    with pytest.raises(RegionError, match=f"mgrs_tiles '{name}' is no MGRS square.*43RGM"):
        zones(mgrs_tiles=(name,))


@pytest.mark.parametrize(
    "name", ["", "N27", "N28E075", "N27E076", "n27e075", "N27E0750", "NxxE075"]
)
def test_what_is_no_worldcover_tile_is_named(name):
    with pytest.raises(RegionError, match=f"worldcover_tiles '{name}' is no WorldCover tile.*N27"):
        zones(worldcover_tiles=(name,))


def test_places_come_in_one_kind_only():
    with pytest.raises(
        ConfigError, match=r"data.rois and data.mgrs_tiles: give places in just one"
    ):
        zones(rois=("delhi_ncr",), mgrs_tiles=("43RGM",))
    with pytest.raises(ConfigError, match=r"data.rois: give places in just one of rois, aoi"):
        zones()


def test_two_zones_of_one_name_are_refused():
    with pytest.raises(ConfigError, match="zone 'a' is given twice"):
        zones(rois=("a=77,28", "a=78,28"))


# Squares and their tiles.


@pytest.mark.parametrize("tile", TILE_CORNERS)
def test_a_region_begins_at_the_corner_of_its_published_tile(tile):
    epsg, left, top = TILE_CORNERS[tile]
    first = sentinel2_regions(zones(mgrs_tiles=(tile,)), (1024, 1024))[0]
    assert first.name == tile
    assert first.geobox.crs.epsg == epsg
    assert (first.geobox.affine.c, first.geobox.affine.f) == (left, top)
    assert first.geobox.resolution.xy == (10, -10)


@pytest.mark.parametrize("tile", SOUTHERN_TILE_CORNERS)
def test_south_of_the_equator_too(tile):
    epsg, left, top = SOUTHERN_TILE_CORNERS[tile]
    regions = sentinel2_regions(zones(mgrs_tiles=(tile,)), (1024, 1024))
    (own,) = [region for region in regions if region.name == tile]
    assert own.geobox.crs.epsg == epsg
    assert (own.geobox.affine.c, own.geobox.affine.f) == (left, top)


@pytest.mark.parametrize("zone_number", [1, 2, 3, 4, 5, 6, 43, 44, 59, 60])
@pytest.mark.parametrize("north", [True, False], ids=["north", "south"])
def test_squares_are_named_as_the_mgrs_package_does(zone_number, north):
    """All squares whose corners lie in their zone and in one latitude band."""
    crs = f"EPSG:{(32600 if north else 32700) + zone_number}"
    to_lonlat = pyproj.Transformer.from_crs(crs, "EPSG:4326", always_xy=True).transform
    east, northing = np.meshgrid(np.arange(1, 9) * 100_000, np.arange(94) * 100_000)
    offsets = [(x, y) for x in (1000, 99_000) for y in (1000, 99_000)]
    corners = [to_lonlat(east + x, northing + y) for x, y in offsets]
    lon, lat = np.array([c[0] for c in corners]), np.array([c[1] for c in corners])
    west = -180 + 6 * (zone_number - 1)
    inside = ((lon > west) & (lon < west + 6)).all(axis=0) & (np.abs(lat) < 80).all(axis=0)
    inside &= (lat > 0).all(axis=0) if north else (lat < 0).all(axis=0)
    inside &= np.ptp(lat // 8, axis=0) == 0
    converter = mgrs.MGRS()
    named = 0
    for corner in zip(east[inside].tolist(), northing[inside].tolist(), strict=True):
        middle = corner[0] + 50_000, corner[1] + 50_000
        expected = converter.UTMToMGRS(zone_number, "N" if north else "S", *middle, 0)
        assert square_name(zone_number, north, corner) == expected.rjust(5, "0")
        named += 1
    assert named > 150


@given(st.integers(1, 8), st.integers(0, 99))
def test_neighbouring_squares_meet_without_gap_or_overlap(col, row):
    left, bottom, right, top = tile_bounds((col * 100_000, row * 100_000))
    assert tile_bounds((col * 100_000 + 100_000, row * 100_000))[0] == right
    assert tile_bounds((col * 100_000, row * 100_000 + 100_000))[1] == top
    assert (right - left) % 60 == (top - bottom) % 60 == 0
    assert 99_960 <= right - left <= 100_020


# Regions.


@st.composite
def areas(draw: st.DrawFn) -> list[Zone]:
    """One to three boxes of up to two degrees, on both sides of 78 E or of the equator."""
    middle = draw(st.sampled_from([(78.0, 28.0), (78.0, 0.0), (-60.0, -20.0), (0.0, 52.0)]))
    found = []
    for index in range(draw(st.integers(1, 3))):
        # In steps of 1 km: what is narrower than a pixel on the other side is left out.
        west = middle[0] + draw(st.integers(-200, 100)) / 100
        south = middle[1] + draw(st.integers(-200, 100)) / 100
        size = draw(st.integers(2, 200)) / 100, draw(st.integers(2, 200)) / 100
        found.append(box(f"z{index}", west, south, west + size[0], south + size[1]))
    return found


@settings(max_examples=25)
@given(areas(), st.sampled_from([(1, 1), (512, 1024), (2048, 2048)]))
def test_regions_cover_the_area_once(zones, align_px):
    regions = sentinel2_regions(zones, align_px)
    by_zone = {zone.name: 0.0 for zone in zones}
    for region in regions:
        for part in region.zones:
            assert part.outline.difference(rectangle(region).buffer(0.1)).area < 1
            by_zone[part.name] += square_metres(in_degrees(region, part.outline))
    for zone in zones:
        assert by_zone[zone.name] == pytest.approx(square_metres(zone.outline), rel=1e-6)
    for one, other in combinations(regions, 2):
        if one.geobox.crs == other.geobox.crs:
            shared = in_metres(one, rectangle(one)).intersection(in_metres(other, rectangle(other)))
            assert shared.area == 0


@settings(max_examples=25)
@given(areas(), st.sampled_from([(1, 1), (512, 1024), (2048, 2048)]))
def test_regions_begin_at_whole_units_from_the_corner_of_their_tile(zones, align_px):
    for region in sentinel2_regions(zones, align_px):
        if region.geobox.crs.epsg > 32700:
            continue
        (height, width), affine = region.geobox.shape, region.geobox.affine
        square = affine @ (width / 2, height / 2)
        left, bottom = (int(middle // 100_000 * 100_000) for middle in square)
        right, top = left + 100_000, bottom + 100_000
        left, right = left // 60 * 60, right // 60 * 60
        bottom, top = -(-bottom // 60) * 60, -(-top // 60) * 60
        assert (top - affine.f) % (10 * align_px[0]) == 0
        assert (affine.c - left) % (10 * align_px[1]) == 0
        for size_px, align, whole_px in (
            (height, align_px[0], (affine.f - bottom) / 10),
            (width, align_px[1], (right - affine.c) / 10),
        ):
            assert size_px % align == 0 or size_px == whole_px


@settings(max_examples=25)
@given(areas())
def test_regions_have_names_of_their_own(zones):
    names = [region.name for region in sentinel2_regions(zones, (1024, 1024))]
    assert len({*names}) == len(names)


def test_an_area_that_grows_does_not_move_the_regions_it_had():
    small = box("a", 77.3, 28.3, 77.5, 28.5)
    large = box("a", 76.8, 28.1, 77.9, 28.9)
    align_px = 1024, 2048
    (alone,) = sentinel2_regions([small], align_px)
    own = next(region for region in sentinel2_regions([large], align_px) if region.name == "43RGM")
    shift = ~own.geobox.affine @ (alone.geobox.affine.c, alone.geobox.affine.f)
    assert shift[0] % 2048 == shift[1] % 1024 == 0


def test_ground_on_both_sides_of_a_zone_border_or_the_equator_lies_in_regions_of_both():
    codes = {
        region.geobox.crs.epsg
        for region in sentinel2_regions([box("a", 77.9, -0.1, 78.1, 0.1)], (512, 512))
    }
    assert codes == {32643, 32644, 32743, 32744}


def test_southern_ground_has_northings_below_the_equators():
    (zone,) = zones(rois=("alice=133.88,-23.7,600",))
    (region,) = sentinel2_regions([zone], (512, 512))
    assert region.name == "53KLP"
    assert region.geobox.crs.epsg == 32753
    west, south, east, north = in_degrees(region, rectangle(region)).bounds
    assert west < 133.85 < 133.91 < east
    assert south < -23.73 < -23.67 < north


# The antimeridian.


def test_a_box_across_the_antimeridian_is_two_halves():
    (zone,) = zones(rois=("fiji=179.5,-17,-179.5,-16.5",))
    assert zone.outline.area == pytest.approx(0.5)
    regions = sentinel2_regions([zone], (1024, 1024))
    assert {region.geobox.crs.epsg for region in regions} == {32760, 32701}
    assert {region.name[:3] for region in regions} == {"60K", "01K"}
    total = sum(
        square_metres(in_degrees(region, part.outline))
        for region in regions
        for part in region.zones
    )
    assert total == pytest.approx(square_metres(zone.outline), rel=1e-6)


@pytest.mark.parametrize("roi", ["fiji=179.98,-17,1024", "edge=180,-17,64", "edge=-180,66,512"])
def test_a_point_beside_the_antimeridian_has_a_square_there_alone(roi):
    (zone,) = zones(rois=(roi,))
    regions = sentinel2_regions([zone], (1, 1))
    size_px = int(roi.rpartition(",")[2])
    total = sum(part.outline.area for region in regions for part in region.zones)
    assert total == pytest.approx(size_px**2, rel=0.01)


@pytest.mark.parametrize("tile", ["01KAB", "60XWP"])
def test_a_square_at_the_antimeridian_is_a_zone(tile):
    regions = sentinel2_regions(zones(mgrs_tiles=(tile,)), (1024, 1024))
    assert tile in [region.name for region in regions]


# Squares of odd shape.


def test_a_square_of_norways_wide_zone_is_refused_with_a_way_out():
    with pytest.raises(RegionError, match=r"'32VKM' lies outside the six degrees .* give an ROI"):
        zones(mgrs_tiles=("32VKM",))


def test_an_mgrs_square_needs_no_ground_of_its_neighbours():
    names = ("43RFM", "31TDJ", "43RGL", "44RKR", "55HGA")
    for name in names:
        regions = sentinel2_regions(zones(mgrs_tiles=(name,)), (1024, 1024))
        assert [region.name for region in regions] == [name]
