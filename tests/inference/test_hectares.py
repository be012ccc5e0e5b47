"""Hectares by district against areas of the same ground as polygons on the ellipsoid."""

import geopandas
import numpy as np
import pyproj
import pytest
import rasterio
import shapely
from affine import Affine

from bharateo.errors import CorruptRasterError, RegionError, SourceError
from bharateo.inference.class_raster import ClassRaster
from bharateo.inference.hectares import zonal_hectares
from bharateo.progress import unseen
from bharateo.regions import Zone
from bharateo.sources.areas import file_zones
from worldcover_tiles import real_mirror

GLOBE = pyproj.Geod(ellps="WGS84")
WITHIN = 1e-5
"""The aim is 0.1 %."""

UTM43 = ("EPSG:32643", Affine(14, 0, 784_000, 0, -14, 3_165_000))  # across 78 E into zone 44
DEGREES = ("EPSG:4326", Affine(1 / 6000, 0, 77.9, 0, -1 / 6000, 28.6))
SIDE = (1100, 1300)


def write_classes(path, crs, corner, values=None, **more):
    """A raster of classes in four columns of ground: 1, 2, 3, 4."""
    if values is None:
        values = np.broadcast_to(1 + np.arange(SIDE[1]) * 4 // SIDE[1], SIDE).astype(np.uint8)
    profile = {"driver": "GTiff", "count": 1, "dtype": values.dtype, "nodata": 0,
               "height": values.shape[0], "width": values.shape[1], **more}  # fmt: skip
    with rasterio.open(path, "w", crs=crs, transform=corner, **profile) as file:
        file.write(values[None])
    return path


def column(crs, corner, number, row=0):
    """The ground of a class of ``write_classes``, as a polygon in degrees with many corners."""
    left, right = (SIDE[1] * each // 4 for each in (number, number + 1))
    box = shapely.segmentize(shapely.box(left, row, right, SIDE[0]), 4)
    on_map = shapely.transform(box, lambda x, y: corner @ (x, y), interleaved=False)
    return in_degrees(on_map, crs)


def in_degrees(shape, crs):
    to_degrees = pyproj.Transformer.from_crs(crs, "EPSG:4326", always_xy=True).transform
    return shapely.transform(shape, to_degrees, interleaved=False)


def hectares(shape):
    """As polygons on the ellipsoid, sides straight in degrees."""
    parts = shapely.orient_polygons(shapely.segmentize(shape, 0.0005))
    return abs(GLOBE.geometry_area_perimeter(parts)[0]) / 10_000


def circle(lon, lat, metres):
    bearings = np.linspace(0, 360, 721)
    ones = np.ones(721)
    return shapely.Polygon(
        np.stack(GLOBE.fwd(lon * ones, lat * ones, bearings, metres * ones)[:2], 1)
    )


SHAPES = {
    "circle": circle(77.96, 28.5, 2500),
    "small circle": circle(77.9301, 28.5003, 40),
    "sliver": shapely.Polygon(
        [(77.91, 28.46), (77.99, 28.56), (77.99005, 28.56), (77.91003, 28.46)]
    ),
    "district across two UTM zones": shapely.Polygon(
        [(77.92, 28.47), (78.07, 28.46), (78.08, 28.55), (78.0, 28.5), (77.94, 28.56)],
        [[(77.97, 28.48), (78.03, 28.48), (78.01, 28.49)]],
    ),
    "two parts": shapely.MultiPolygon([circle(77.95, 28.48, 600), circle(78.02, 28.53, 900)]),
}


@pytest.mark.parametrize(("crs", "corner"), [UTM43, DEGREES], ids=["utm", "degrees"])
def test_hectares_are_those_of_the_ground_on_the_ellipsoid(tmp_path, crs, corner):
    raster = ClassRaster.open(write_classes(tmp_path / "map.tif", crs, corner))
    zones = [Zone(name, shape) for name, shape in SHAPES.items()]
    classes, found = zonal_hectares(raster, zones, unseen)
    assert [each.name for each in classes] == ["class 1", "class 2", "class 3", "class 4"]
    columns = [column(crs, corner, number) for number in range(4)]
    for zone in found:
        shape = SHAPES[zone.zone]
        assert zone.hectares == pytest.approx(hectares(shape), rel=WITHIN)
        assert zone.valid_share == 1
        for each, ground in zip(zone.classes, columns, strict=True):
            expected = hectares(shape & ground)
            assert each.hectares == pytest.approx(expected, rel=WITHIN, abs=WITHIN * zone.hectares)
        assert sum(each.share for each in zone.classes) == pytest.approx(1)


def test_what_lies_outside_the_map_or_has_no_data_is_no_area(tmp_path):
    crs, corner = DEGREES
    values = np.full(SIDE, 7, np.uint8)
    values[:, 650:] = 0
    raster = ClassRaster.open(write_classes(tmp_path / "map.tif", crs, corner, values))
    half = shapely.box(77.85, 28.5, 77.95, 28.55)  # half of it west of the map
    zones = [Zone("half", half), Zone("empty", shapely.box(78.05, 28.5, 78.06, 28.52)),
             Zone("elsewhere", shapely.box(10, 50, 11, 51))]  # fmt: skip
    classes, (west, empty, elsewhere) = zonal_hectares(raster, zones, unseen)
    assert [each.id for each in classes] == [7]
    assert west.hectares == pytest.approx(hectares(half), rel=WITHIN)
    assert west.valid_share == pytest.approx(0.5, rel=1e-3)
    assert west.classes[0].hectares == pytest.approx(
        hectares(half & shapely.box(77.9, 0, 79, 90)), rel=WITHIN
    )
    for nothing in (empty, elsewhere):
        assert nothing.valid_share == 0
        assert nothing.hectares > 0
        assert [each.hectares for each in nothing.classes] == [None]
    with pytest.raises(
        RegionError, match=r"no zone reaches into .*map\.tif, which lies from 77\.9"
    ):
        zonal_hectares(raster, zones[2:], unseen)


def test_sides_are_straight_in_the_files_own_reference_system(tmp_path):
    """A triangle in UTM whose long side leaves the straight line in degrees by a hundred metres."""
    crs, corner = "EPSG:32643", Affine(200, 0, 700_000, 0, -200, 3_200_000)
    map_path = write_classes(tmp_path / "map.tif", crs, corner, np.ones((700, 700), np.uint8))
    triangle = shapely.Polygon([(705_000, 3_190_000), (835_000, 3_190_000), (770_000, 3_185_000)])
    table = geopandas.GeoDataFrame({"name": ["t"]}, geometry=[triangle], crs=crs)
    table.to_file(tmp_path / "zones.gpkg")
    zones = file_zones(tmp_path / "zones.gpkg", "name")
    _, (zone,) = zonal_hectares(ClassRaster.open(map_path), zones, unseen)
    truth = hectares(in_degrees(shapely.segmentize(triangle, 50), crs))
    assert zone.hectares == pytest.approx(truth, rel=1e-4)
    straight = hectares(in_degrees(triangle, crs))
    assert abs(straight / truth - 1) > 1e-3  # which is what the corners alone would give


@pytest.mark.parametrize("left", [179.9, -180.1])
def test_a_map_across_the_antimeridian_meets_zones_on_both_sides(tmp_path, left):
    corner = Affine(1 / 2000, 0, left, 0, -1 / 2000, -16.4)
    path = write_classes(tmp_path / "map.tif", "EPSG:4326", corner, np.ones((400, 400), np.uint8))
    shape = shapely.MultiPolygon(
        [shapely.box(179.95, -16.5, 180, -16.45), shapely.box(-180, -16.5, -179.96, -16.45)]
    )
    _, (zone,) = zonal_hectares(ClassRaster.open(path), [Zone("island", shape)], unseen)
    (only,) = zone.classes
    assert only.hectares == pytest.approx(hectares(shape), rel=WITHIN)
    assert zone.valid_share == pytest.approx(1)


def test_names_and_colours_come_from_the_product_the_file_or_what_lies_beside_it(tmp_path):
    crs, corner = DEGREES
    codes = np.full((20, 20), 10, np.uint8)
    codes[:10] = 80
    cover = write_classes(tmp_path / "cover.tif", crs, corner, codes)
    with rasterio.open(cover, "r+") as file:
        file.update_tags(title="ESA WorldCover product at 10m resolution for year 2021")
    found = ClassRaster.open(cover).classes([80, 10])
    assert [each.name for each in found] == ["Tree cover", "Permanent water bodies"]
    assert found[1].colour[2] > 150  # blue
    with pytest.raises(CorruptRasterError, match="holds 11, which is none of its classes"):
        ClassRaster.open(cover).classes([11])
    other = write_classes(tmp_path / "other.tif", crs, corner, codes % 7)
    with rasterio.open(other, "r+") as file:
        file.write_colormap(1, {3: (1, 2, 3, 255)})
    (tmp_path / "other.tif.aux.xml").write_text(
        "<PAMDataset><PAMRasterBand band='1'><CategoryNames><Category></Category><Category/>"
        "<Category/><Category>fields</Category></CategoryNames></PAMRasterBand></PAMDataset>"
    )
    fields, other = ClassRaster.open(other).classes([3, 5])
    assert (fields.name, fields.colour, other.name) == ("fields", (1, 2, 3), "class 5")


def test_rasters_that_are_no_maps_of_classes_are_refused(tmp_path):
    crs, corner = DEGREES
    real = write_classes(tmp_path / "f.tif", crs, corner, np.ones((9, 9), np.float32))
    with pytest.raises(SourceError, match=r"has 1 band of float32, a map of classes has one"):
        ClassRaster.open(real)
    far = ClassRaster.open(
        write_classes(tmp_path / "i.tif", crs, corner, np.full((9, 9), -9999, np.int16))
    )
    with pytest.raises(SourceError, match=r"holds -9999, .* gdal_edit\.py -a_nodata"):
        far.read(0, 0, 9, 9)
    with pytest.raises(SourceError, match="does not exist"):
        ClassRaster.open(tmp_path / "nowhere.tif")


def test_districts_of_real_ground_have_what_a_plain_count_of_its_pixels_has():
    """Of Delhi: pixels whose middle lies inside, each with its area between parallels."""
    tile = real_mirror() / "v200/2021/map/ESA_WorldCover_10m_2021_v200_N27E075_Map.tif"
    shape = circle(77.1, 28.6, 6000)
    classes, (zone,) = zonal_hectares(ClassRaster.open(tile), [Zone("Delhi", shape)], unseen)
    assert zone.hectares == pytest.approx(hectares(shape), rel=WITHIN)
    with rasterio.open(tile) as file:
        window = file.window(*shape.bounds).round_offsets().round_lengths()
        codes, corner = file.read(1, window=window), file.window_transform(window)
    row, col = np.indices(codes.shape) + 0.5
    lon, lat = corner @ (col, row)
    inside = shapely.contains_xy(shape, lon, lat)
    a, e2 = GLOBE.a, GLOBE.es
    sine = np.sin(np.radians(lat))
    m2 = a**2 * (1 - e2) * np.cos(np.radians(lat)) / (1 - e2 * sine**2) ** 2
    m2 *= np.radians(corner.a) * np.radians(-corner.e)
    assert len(classes) > 4
    for each, found in zip(classes, zone.classes, strict=True):
        counted = m2[inside & (codes == each.id)].sum() / 10_000
        assert found.hectares == pytest.approx(counted, rel=2e-3, abs=0.5)
    valid = m2[inside & (codes != 0)].sum() / m2[inside].sum()
    assert zone.valid_share == pytest.approx(valid, abs=1e-4)
