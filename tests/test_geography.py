import numpy as np
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox

from bharateo.geography import Rectangle, neighbours, surroundings, to_lonlat
from bharateo.regions import Roi, worldcover_region

UTM = GeoBox((100, 100), Affine(10, 0, 500_000, 0, -10, 3_000_000), "EPSG:32643")


def moved(rows: int, cols: int, size_m: float = 10) -> GeoBox:
    origin = (500_000 + 10 * cols, 3_000_000 - 10 * rows)
    return GeoBox((100, 100), Affine(size_m, 0, origin[0], 0, -size_m, origin[1]), "EPSG:32643")


@settings(deadline=None)
@given(st.integers(-300, 300), st.integers(-300, 300), st.integers(0, 40))
def test_on_one_grid_the_surroundings_are_exact(rows, cols, buffer_px):
    box = surroundings(Rectangle(5, 6, 7, 8), moved(rows, cols), UTM, buffer_px)
    west, north, east, south = box.bounds
    found = np.array([north, west, south, east])
    buffer = np.array([-1, -1, 1, 1]) * buffer_px
    expected = np.array([5 + rows, 6 + cols, 12 + rows, 14 + cols]) + buffer
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_the_buffer_counts_the_larger_pixels():
    box = surroundings(Rectangle(0, 0, 10, 10), moved(0, 0, size_m=20), UTM, 8)
    np.testing.assert_allclose(box.bounds, (-16, -16, 36, 36), atol=2e-3)
    box = surroundings(Rectangle(0, 0, 10, 10), moved(0, 0, size_m=5), UTM, 8)
    np.testing.assert_allclose(box.bounds, (-8, -8, 13, 13), atol=2e-3)


def test_across_reference_systems_the_surroundings_hold_the_place():
    degrees = worldcover_region(Roi("there", 75.0, 27.12, 300)).geobox
    lon, lat = to_lonlat(UTM, np.array([[50.0], [50.0]]))
    col = (lon[0] - degrees.affine.c) * 12000
    row = (degrees.affine.f - lat[0]) * 12000
    box = surroundings(Rectangle(row - 1, col - 1, 2, 2), degrees, UTM, 0)
    west, north, east, south = box.bounds
    assert west < 50 < east
    assert north < 50 < south
    assert (south - north) * (east - west) < 25


def test_neighbours_are_those_within_reach_also_across_the_antimeridian():
    places = [(77.0, 28.0), (77.01, 28.0), (77.0, 29.0), (179.999, 0.0), (-179.999, 0.0)]
    grids = [
        worldcover_region(Roi(f"r{i}", lon, lat, 256)).geobox for i, (lon, lat) in enumerate(places)
    ]
    assert neighbours(grids, 16) == [[1], [0], [], [4], [3]]


def test_outlines_across_the_antimeridian_stay_whole():
    grid = worldcover_region(Roi("fiji", 180.0, -17.0, 256)).geobox
    lon, lat = to_lonlat(grid, Rectangle(0, 0, 256, 256).outline())
    assert np.ptp(lon) < 0.03
    assert -180 <= lon[0] < 180
    np.testing.assert_allclose(lat.mean(), -17, atol=0.01)
