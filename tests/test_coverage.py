"""Shares of cells against the areas of intersections that GEOS finds."""

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from shapely.affinity import translate

from bharateo.pixels.coverage import coverage

HEIGHT, WIDTH = 7, 9
rows, cols = np.indices((HEIGHT, WIDTH))
CELLS = shapely.box(cols, rows, cols + 1, rows + 1)
corner = st.tuples(
    st.one_of(st.integers(-3, 12), st.floats(-3, 12)),
    st.one_of(st.integers(-3, 10), st.floats(-3, 10)),
)


def expected(shape):
    return shapely.area(shapely.intersection(CELLS, shape))


@given(st.lists(corner, min_size=3, max_size=9))
def test_any_polygon_covers_what_its_intersections_have(corners):
    shape = shapely.make_valid(shapely.Polygon(corners), method="structure", keep_collapsed=False)
    found = coverage(shape, HEIGHT, WIDTH)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected(shape), atol=1e-9)


@pytest.mark.parametrize(
    "shape",
    [
        shapely.Point(4.2, 3.1).buffer(3).difference(shapely.Point(4, 3).buffer(1.7)),
        shapely.MultiPolygon([shapely.box(0, 0, 2, 2), shapely.box(2, 2, 2.001, 6.5)]),
        shapely.box(-5, -5, 20, 20),
        shapely.box(3, 2, 4, 3),
        shapely.box(-5, -5, -1, 20),
        shapely.box(2, 9, 3, 12),
        shapely.Polygon([(0.5, 0.5), (8.5, 6.5), (8.5, 6.5001)]),
    ],
    ids=["ring", "two", "around", "one cell", "left", "below", "sliver"],
)
def test_rings_slivers_and_what_lies_outside(shape):
    np.testing.assert_allclose(coverage(shape, HEIGHT, WIDTH), expected(shape), atol=1e-12)


def test_windows_side_by_side_are_the_whole():
    shape = shapely.Point(8, 7).buffer(6.3)
    whole = coverage(shape, 14, 18)
    for row in (0, HEIGHT):
        for col in (0, WIDTH):
            part = coverage(translate(shape, -col, -row), HEIGHT, WIDTH)
            np.testing.assert_allclose(
                part, whole[row : row + HEIGHT, col : col + WIDTH], atol=1e-12
            )
