import warnings
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pyproj
import pytest
import rasterio.warp
from affine import Affine
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from odc.geo.geobox import GeoBox
from rasterio.enums import Resampling
from rasterio.errors import NotGeoreferencedWarning

import bharateo.pixels.raster
from bharateo.pixels.raster import doubled, to_grid

SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 12), st.integers(1, 12))
OFFSETS = st.tuples(st.integers(-15, 30), st.integers(-15, 30))
SIZES = st.tuples(st.integers(1, 30), st.integers(1, 30))
INTEGERS = st.sampled_from([np.uint8, np.uint16])


def grid(shape, resolution_m=10.0, row=0.0, col=0.0, crs="EPSG:32643") -> GeoBox:
    """A grid whose corner lies (row, col) places of 10 m from a corner common to all."""
    corner = 500_000 + 10 * col, 3_000_000 - 10 * row
    affine = Affine(resolution_m, 0, corner[0], 0, -resolution_m, corner[1])
    return GeoBox(tuple(shape), affine, crs)


def gdal(values, there, here, method, nodata=0):
    """What GDAL makes of it."""
    out = np.full((len(values), *here.shape), nodata, values.dtype)
    rasterio.warp.reproject(
        values, out, src_transform=there.affine, src_crs=str(there.crs), src_nodata=nodata,
        dst_transform=here.affine, dst_crs=str(here.crs), dst_nodata=nodata,
        resampling=Resampling[method],
    )  # fmt: skip
    return out


@st.composite
def stored(draw: st.DrawFn, dtype=None, least=1) -> np.ndarray:
    """Values (band, row, col), none of them below ``least``."""
    dtype = np.dtype(dtype or draw(INTEGERS))
    elements = st.integers(least, np.iinfo(dtype).max)
    return draw(arrays.arrays(dtype, draw(SHAPES), elements=elements))


@pytest.fixture
def no_gdal(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("GDAL was asked")

    # The module alone: the tests ask GDAL themselves.
    warp = SimpleNamespace(reproject=refuse)
    monkeypatch.setattr(bharateo.pixels.raster, "rasterio", SimpleNamespace(warp=warp))


def random_values(shape, dtype=np.uint16, least=1, seed=0) -> np.ndarray:
    top = np.iinfo(dtype).max
    return np.random.default_rng(seed).integers(least, top, shape, dtype, endpoint=True)


# 20 m to 10 m.


@given(stored(), OFFSETS, SIZES)
def test_doubling_is_gdals_bilinear_bit_for_bit(values, offset, size):
    assume(min(values.shape[1:]) > 1)  # GDAL takes the nearest of a single row or column
    there, here = grid(values.shape[1:], 20), grid(size, 10, *offset)
    found = to_grid(values, there, here, "bilinear")
    assert found.dtype == values.dtype
    np.testing.assert_array_equal(found, gdal(values, there, here, "bilinear"))


def test_doubling_shows_no_seams_in_a_large_array():
    values = random_values((2, 333, 65))
    there, here = grid((333, 65), 20), grid((666, 130))
    np.testing.assert_array_equal(
        to_grid(values, there, here, "bilinear"), gdal(values, there, here, "bilinear")
    )


def test_doubling_takes_the_short_way(no_gdal):
    values = random_values((2, 5, 6))
    found = to_grid(values, grid((5, 6), 20), grid((10, 12)), "bilinear")
    np.testing.assert_array_equal(found, doubled(values))


def test_doubling_rounds_half_up_and_does_not_overflow():
    np.testing.assert_array_equal(
        doubled(np.array([[[1, 3]]], np.uint8)), [[[1, 2, 3, 3], [1, 2, 3, 3]]]
    )  # 1, 1.5, 2.5, 3
    assert (doubled(np.full((1, 3, 3), 65535, np.uint16)) == 65535).all()


@pytest.mark.parametrize("dtype", [np.int16, np.uint32, np.float32])
def test_other_kinds_of_numbers_are_left_to_gdal(dtype):
    values = np.random.default_rng(1).integers(1, 3000, (2, 9, 8)).astype(dtype)
    there, here = grid((9, 8), 20), grid((15, 14), 10, 1, 3)
    found = to_grid(values, there, here, "bilinear")
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, gdal(values, there, here, "bilinear"))


# Nodata.


def mean_of_data(values, row, col):
    """Bilinear at the centre of a pixel of half the size, from those of (row, col) that hold data.

    None where the pixel around the centre holds none.
    """
    total = weights = 0.0
    if values[row // 2, col // 2] == 0:
        return None
    next_row, next_col = row // 2 + (1 if row % 2 else -1), col // 2 + (1 if col % 2 else -1)
    for down, height in ((row // 2, 0.75), (next_row, 0.25)):
        for along, width in ((col // 2, 0.75), (next_col, 0.25)):
            inside = 0 <= down < values.shape[0] and 0 <= along < values.shape[1]
            if inside and values[down, along]:
                total += height * width * float(values[down, along])
                weights += height * width
    return total / weights


@given(stored(least=0))
def test_nodata_has_no_part_in_a_mean(values):
    assume(min(values.shape[1:]) > 1)
    values = values[:1]
    values[:, ::3, ::2] = 0
    _, height, width = values.shape
    found = to_grid(values, grid((height, width), 20), grid((2 * height, 2 * width)), "bilinear")
    for row in range(2 * height):
        for col in range(2 * width):
            mean = mean_of_data(values[0], row, col)
            if mean is None:
                assert found[0, row, col] == 0
            else:
                assert abs(found[0, row, col] - mean) <= 0.51


def test_even_ground_with_holes_stays_even():
    values = np.full((1, 20, 20), 700, np.uint16)
    values[np.random.default_rng(2).random(values.shape) < 0.3] = 0
    for resolution_m in (20, 30, 13):
        found = to_grid(values, grid((20, 20), resolution_m), grid((40, 40)), "bilinear")
        assert set(np.unique(found)) == {0, 700}


def test_another_nodata_value_is_heeded():
    values = np.full((1, 4, 4), 100, np.uint8)
    values[0, 1, 2] = 255
    found = to_grid(values, grid((4, 4), 20), grid((10, 8)), "bilinear", nodata=255)
    assert set(np.unique(found)) == {100, 255}
    assert (found[0, 2:4, 4:6] == 255).all() and (found[0, 8:] == 255).all()
    pasted = to_grid(values, grid((4, 4)), grid((5, 4)), "nearest", nodata=255)
    np.testing.assert_array_equal(pasted[0, :4], values[0])
    assert (pasted[0, 4] == 255).all()


def test_a_band_comes_out_the_same_alone_and_in_a_stack():
    values = random_values((2, 8, 8))
    values[0, 3:5, 3:5] = 0
    there, here = grid((8, 8), 20), grid((16, 16))
    alone = [to_grid(band[None], there, here, "bilinear")[0] for band in values]
    np.testing.assert_array_equal(to_grid(values, there, here, "bilinear"), alone)


def test_warps_in_several_threads_leave_warnings_as_they_were():
    values = random_values((1, 20, 20))
    values[0, :3, :3] = 0
    there, here = grid((20, 20), 20), grid((40, 40))

    def warp(_):
        return to_grid(values, there, here, "bilinear")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        before = list(warnings.filters)
        with ThreadPoolExecutor(4) as threads:
            for _ in range(5):
                list(threads.map(warp, range(200)))
                assert list(warnings.filters) == before


# Pixels that nest.


@given(stored(), OFFSETS, SIZES, st.sampled_from(["nearest", "bilinear"]))
def test_pixels_of_one_grid_are_pasted_also_across_its_edges(values, offset, size, method):
    there, here = grid(values.shape[1:], 10), grid(size, 10, *offset)
    found = to_grid(values, there, here, method, nodata=0)
    for row in range(size[0]):
        for col in range(size[1]):
            at = row + offset[0], col + offset[1]
            inside = 0 <= at[0] < values.shape[1] and 0 <= at[1] < values.shape[2]
            expected = values[:, at[0], at[1]] if inside else 0
            np.testing.assert_array_equal(found[:, row, col], expected)


@given(stored(least=0), st.sampled_from([2, 3, 6]), OFFSETS, SIZES)
def test_nearest_at_a_whole_ratio_is_gdals(values, ratio, offset, size):
    there, here = grid(values.shape[1:], 10 * ratio), grid(size, 10, *offset)
    np.testing.assert_array_equal(
        to_grid(values, there, here, "nearest"), gdal(values, there, here, "nearest")
    )


def test_nothing_that_nests_needs_gdal(no_gdal):
    codes = random_values((1, 6, 6), np.uint8)
    for resolution_m in (10, 20, 60):
        to_grid(codes, grid((6, 6), resolution_m), grid((9, 9), 10, -2, 5), "nearest")


def test_grids_that_differ_by_the_rounding_of_their_corners_are_one(no_gdal):
    values = random_values((1, 6, 6))
    found = to_grid(values, grid((6, 6)), grid((6, 6), 10, 1e-5, -1e-5), "bilinear")
    np.testing.assert_array_equal(found, values)


def test_where_there_is_no_overlap_all_is_nodata():
    values = random_values((1, 6, 6))
    for resolution_m in (10, 20, 13):
        there, here = grid((6, 6), resolution_m), grid((4, 4), 10, 500, 0)
        assert not to_grid(values, there, here, "bilinear").any()


# Everything else.


@given(
    stored(),
    st.tuples(st.floats(-3, 9), st.floats(-3, 9)),
    st.sampled_from([10, 14.5, 20, 30, 60]),
    st.sampled_from(["nearest", "bilinear"]),
)
def test_grids_that_do_not_nest_go_through_gdal(values, offset, resolution_m, method):
    shift = tuple(round(part) + 0.37 for part in offset)
    there, here = grid(values.shape[1:], resolution_m), grid((7, 9), 10, *shift)
    np.testing.assert_array_equal(
        to_grid(values, there, here, method), gdal(values, there, here, method)
    )


def test_larger_pixels_than_the_stored_ones_go_through_gdal():
    values = random_values((1, 12, 12))
    there, here = grid((12, 12)), grid((6, 6), 20)
    np.testing.assert_array_equal(
        to_grid(values, there, here, "bilinear"), gdal(values, there, here, "bilinear")
    )


def test_codes_stay_codes_in_another_reference_system():
    """Every pixel holds the code that lies under its centre; at edges of pixels one beside it."""
    codes = np.random.default_rng(3).choice([10, 30, 50, 95], (1, 80, 80)).astype(np.uint8)
    there = grid((80, 80), 10)
    here = GeoBox((60, 60), Affine(1e-4, 0, 75.0005, 0, -1e-4, 27.1215), "EPSG:4326")
    found = to_grid(codes, there, here, "nearest")[0]
    assert set(np.unique(found)) <= {0, 10, 30, 50, 95}
    row, col = np.indices(here.shape) + 0.5
    lonlat = here.affine @ (col, row)
    transform = pyproj.Transformer.from_crs("EPSG:4326", "EPSG:32643", always_xy=True).transform
    x, y = ~there.affine @ transform(*lonlat)
    edge = np.minimum(np.abs(x - np.round(x)), np.abs(y - np.round(y))) < 0.02
    inside = (x > 0) & (x < 80) & (y > 0) & (y < 80) & ~edge
    assert inside.sum() > 2500
    expected = codes[0, y[inside].astype(int), x[inside].astype(int)]
    np.testing.assert_array_equal(found[inside], expected)
