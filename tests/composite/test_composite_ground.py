"""The grid of a place, its pixels, and the windows it is made in."""

import numpy as np
import pytest
import shapely

from bharateo.composite.ground import WINDOW_PX, Ground
from bharateo.errors import RegionError
from bharateo.regions import Zone
from bharateo.sources.areas import sentinel2_regions


def ground(west, south, east, north):
    return Ground(Zone("place", shapely.box(west, south, east, north)))


@pytest.mark.parametrize(
    ("box", "crs"),
    [
        ((73.5, 18.3, 74.2, 18.9), "EPSG:32643"),
        ((77.9, 28.5, 78.2, 28.6), "EPSG:32644"),
        ((-52.1, -0.4, -51.9, -0.2), "EPSG:32722"),
    ],
)
def test_the_grid_is_that_of_the_middles_zone_and_windows_cover_it_once(box, crs):
    place = ground(*box)
    assert str(place.geobox.crs) == crs
    covered = np.zeros(place.geobox.shape, np.uint8)
    for window in place.windows:
        covered[window.slices] += 1
        assert max(window.height, window.width) <= WINDOW_PX
    assert (covered == 1).all()


def test_windows_are_blocks_of_sentinel2s_tiles():
    """So that each compressed block is fetched once: compared with the regions of builds."""
    box = (73.5, 18.3, 74.2, 18.9)
    place = ground(*box)
    edges = {
        round(x) % 10240
        for region in sentinel2_regions([place.area], (WINDOW_PX, WINDOW_PX))
        for x in (region.geobox.affine.c,)
    }
    left = place.geobox.affine.c
    inner = [left + 10 * window.col for window in place.windows if window.col]
    assert inner
    assert {round(x) % 10240 for x in inner} <= edges


def test_pixels_are_inside_where_their_centre_is():
    place = Ground(Zone("triangle", shapely.Polygon([(77.2, 28.6), (77.25, 28.6), (77.2, 28.65)])))
    (window,) = place.windows
    inside = place.inside(window)
    rows, cols = np.indices(inside.shape)
    x, y = place.geobox.affine @ (cols + 0.5, rows + 0.5)
    expected = shapely.contains_xy(place.outline, x.ravel(), y.ravel()).reshape(inside.shape)
    np.testing.assert_array_equal(inside, expected)
    assert 0.4 < inside.mean() < 0.6


def test_a_place_on_both_sides_of_the_antimeridian_is_one():
    halves = shapely.box(179.9, -16.6, 180, -16.5), shapely.box(-180, -16.6, -179.95, -16.5)
    place = Ground(Zone("fiji", shapely.union_all(halves)))
    assert str(place.geobox.crs) in ("EPSG:32760", "EPSG:32701")
    assert place.geobox.shape[1] == pytest.approx(1600, rel=0.02)
    west, _, east, _ = shapely.union_all([place.footprint(w) for w in place.touched]).bounds
    assert (west, east) == (-180, 180)


def test_windows_without_ground_are_not_touched():
    ring = shapely.box(73.0, 18.0, 73.8, 18.8).difference(shapely.box(73.05, 18.05, 73.75, 18.75))
    place = Ground(Zone("ring", ring))
    assert 0 < len(place.touched) < len(place.windows)
    assert all(place.inside(window).any() for window in place.touched)


def test_what_is_too_wide_or_too_small_is_refused():
    with pytest.raises(RegionError, match="more than 9 from the middle of UTM zone 43"):
        ground(64, 8, 90, 35)
    with pytest.raises(RegionError, match="holds no pixel's centre"):
        _ = ground(77.2000001, 28.6, 77.2000002, 28.6000001).touched
