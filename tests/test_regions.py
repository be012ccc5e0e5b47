import re

import numpy as np
import pytest
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox

from bharateo.errors import RegionError
from bharateo.regions import (
    GLOBE_HEIGHT_PX,
    GLOBE_WIDTH_PX,
    NAMED_ROIS,
    PIXELS_PER_DEGREE,
    TILE_PX,
    PixelWindow,
    Roi,
    parse_roi,
    tile_name,
    tile_windows,
    window_of_geobox,
    worldcover_region,
    worldcover_window,
)

windows = st.builds(
    PixelWindow,
    row=st.integers(0, GLOBE_HEIGHT_PX - 1),
    col=st.integers(0, GLOBE_WIDTH_PX - 1),
    height=st.integers(1, 3 * TILE_PX),
    width=st.integers(1, 3 * TILE_PX),
)
places = st.tuples(st.floats(-180, 180), st.floats(-90, 90))


def corner(tile):
    """(west, south) of a tile's name, read back."""
    hemisphere, south, side, west = re.fullmatch(r"([NS])(\d\d)([EW])(\d{3})", tile).groups()
    return int(west) * (1 if side == "E" else -1), int(south) * (1 if hemisphere == "N" else -1)


def square(lon, lat, size_px=1):
    return worldcover_window(Roi("here", lon, lat, size_px))


@pytest.mark.parametrize(
    ("lon", "lat", "tile"),
    [
        (77.23, 28.61, "N27E075"),
        (-58.5, -1.5, "S03W060"),
        (-0.5, 51.5, "N51W003"),
        (151.2, -33.9, "S36E150"),
        (0.0, 0.0, "S03E000"),
        (0.0, 1e-4, "N00E000"),
        (-1e-4, -1e-4, "S03W003"),
        (180.0, 66.0, "N63W180"),
        (179.9999, 66.5, "N66E177"),
        (-180.0, -17.0, "S18W180"),
    ],
)
def test_the_tile_of_a_point_is_named_by_its_south_west_corner(lon, lat, tile):
    (part,) = tile_windows(square(lon, lat))
    assert part.tile == tile


@given(places)
def test_the_tile_of_a_point_contains_it(place):
    lon, lat = place
    (part,) = tile_windows(square(lon, lat))
    west, south = corner(part.tile)
    hair = 1e-9
    assert west - hair <= (lon if lon < 180 - hair else -180) <= west + 3 + hair
    assert south - hair <= lat <= south + 3 + hair
    assert west % 3 == 0 and south % 3 == 0


@given(st.integers(-60, 59), st.integers(-30, 29))
def test_tile_names_read_back(west, south):
    assert corner(tile_name(3 * west, 3 * south)) == (3 * west, 3 * south)


@given(windows)
def test_tiles_cover_a_window_exactly_once(window):
    parts = list(tile_windows(window))
    assert sum(part.height * part.width for part in parts) == window.height * window.width
    assert len({part.tile for part in parts}) == len(parts)
    for part in parts:
        assert part.row >= 0 and part.row + part.height <= TILE_PX
        assert part.col >= 0 and part.col + part.width <= TILE_PX
        assert part.to_row >= 0 and part.to_row + part.height <= window.height
        assert part.to_col >= 0 and part.to_col + part.width <= window.width
    for one in parts:
        for other in parts:
            assert one is other or not (
                one.to_row < other.to_row + other.height
                and other.to_row < one.to_row + one.height
                and one.to_col < other.to_col + other.width
                and other.to_col < one.to_col + one.width
            )


@given(windows)
def test_every_part_lies_where_its_tile_says(window):
    for part in tile_windows(window):
        west, south = corner(part.tile)
        col = (west + 180) * PIXELS_PER_DEGREE + part.col
        row = (90 - south - 3) * PIXELS_PER_DEGREE + part.row
        assert col == (window.col + part.to_col) % GLOBE_WIDTH_PX
        assert row == window.row + part.to_row


def test_a_window_over_the_antimeridian_wraps_to_the_western_tiles():
    window = square(180.0, 66.5, 1000)
    assert [part.tile for part in tile_windows(window)] == ["N66E177", "N66W180"]
    assert [part.col for part in tile_windows(window)] == [TILE_PX - 500, 0]
    box = worldcover_window(parse_roi("fiji=179.9,-17.0,-179.9,-16.9"))
    assert (box.height, box.width) == (1200, 2400)
    assert [part.tile for part in tile_windows(box)] == ["S18E177", "S18W180"]


@pytest.mark.parametrize("name", NAMED_ROIS)
def test_the_three_known_regions_lie_in_one_tile(name):
    (part,) = tile_windows(worldcover_window(NAMED_ROIS[name]))
    assert (part.tile, part.height, part.width) == ("N27E075", 2048, 2048)


def test_a_square_is_centred_on_the_pixel_that_contains_the_point():
    window = worldcover_window(NAMED_ROIS["delhi_ncr"])
    # 77.23 E is the western edge of column 26760 of the tile, 28.61 N the top of row 16680.
    assert window.col - (75 + 180) * PIXELS_PER_DEGREE == 26760 - 1024
    assert window.row - (90 - 30) * PIXELS_PER_DEGREE == 16680 - 1024


@given(windows)
def test_windows_survive_the_way_through_a_geobox(window):
    assert window_of_geobox(window.geobox) == window


def test_a_region_covers_its_point():
    region = worldcover_region(NAMED_ROIS["delhi_ncr"])
    west, south, east, north = region.geobox.boundingbox.bbox
    assert region.geobox.shape == (2048, 2048)
    assert west < 77.23 < east and south < 28.61 < north
    np.testing.assert_allclose((east - west, north - south), 2048 / 12000)


@pytest.mark.parametrize(("lat", "height"), [(90.0, 50), (-90.0, 51)])
def test_squares_are_cut_at_the_poles(lat, height):
    window = square(0.0, lat, 100)
    assert (window.height, window.width) == (height, 100)
    assert window.row >= 0 and window.row + window.height <= GLOBE_HEIGHT_PX


@pytest.mark.parametrize(
    "geobox",
    [
        GeoBox((10, 10), Affine(10, 0, 500000, 0, -10, 3000000), "EPSG:32643"),
        GeoBox((10, 10), Affine(1e-4, 0, 77, 0, -1e-4, 28), "EPSG:4326"),
        GeoBox((10, 10), Affine(1 / 12000, 0, 77.00004, 0, -1 / 12000, 28), "EPSG:4326"),
    ],
    ids=["metres", "other step", "between pixels"],
)
def test_a_geobox_off_the_grid_is_refused(geobox):
    with pytest.raises(RegionError, match="not on the WorldCover pixel grid"):
        window_of_geobox(geobox)


def test_regions_are_written_by_name_point_size_or_box():
    assert parse_roi(" delhi_ncr ") == NAMED_ROIS["delhi_ncr"]
    assert parse_roi("leh=77.58,34.16") == Roi("leh", 77.58, 34.16, 2048)
    assert parse_roi("leh=77.58,34.16,512") == Roi("leh", 77.58, 34.16, 512)
    assert parse_roi("box=77,28,78,29").bbox == (77, 28, 78, 29)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("delhi_ncp", "did you mean 'delhi_ncr'"),
        ("atlantis", "known are delhi_ncr, shekhawati, mathura_belt"),
        ("../x=77,28", "names files"),
        ("x=77", "is not NAME=LON,LAT"),
        ("x=seventy,28", "is not NAME=LON,LAT"),
        ("x=77,28,100.5", "is not NAME=LON,LAT"),
        ("x=77,28,inf", "is not NAME=LON,LAT"),
        ("x=77,28,nan", "is not NAME=LON,LAT"),
        ("x=77,28,0", "size must be at least 1"),
        ("x=190,28", "longitude must lie"),
        ("x=nan,28", "longitude must lie"),
        ("x=28.61,177.23", "LAT,LON instead of LON,LAT"),
        ("x=77,29,78,28", "south first"),
        ("x=77,28,77,29", "is empty"),
    ],
)
def test_a_wrong_region_says_what_is_wrong(text, message):
    with pytest.raises(RegionError, match=re.escape(message)):
        parse_roi(text)
