"""Rasters in overlapping windows: no seams, exact places, every pixel where it belongs."""

from itertools import product

import numpy as np
import pytest
import torch
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox

from bharateo.errors import ConfigError
from bharateo.inference.encoder import FrozenEncoder
from bharateo.inference.tiles import CellGrid, Tile, TokenGrid, blended, blended_squares
from models.tiny_models import tiny_model

CHIP, PATCH = 32, 8
SHAPE = (150, 133)
RASTER = GeoBox(SHAPE, Affine(10, 0.5, 400_007.3, 0.25, -10, 3_000_001.9), "EPSG:27700")


@pytest.fixture(scope="module")
def encoder():
    return FrozenEncoder(tiny_model())


def pixels(shape=SHAPE, seed=0):
    """Three bands that change slowly, with noise; and validity with a hole."""
    rng = np.random.default_rng(seed)
    row, col = np.indices(shape) / 25
    waves = np.stack([np.sin(row + band) * np.cos(col * 1.3 - band) for band in range(3)])
    valid = rng.random(shape) < 0.9
    valid[40:80, 40:90] = False
    return (waves + 0.3 * rng.normal(size=waves.shape)).astype(np.float32), valid


def reading(image, valid):
    """Windows inside the arrays; outside is an error."""

    def read(row, col, height, width):
        assert min(row, col, height, width) >= 0
        assert row + height <= valid.shape[0]
        assert col + width <= valid.shape[1]
        window = (slice(row, row + height), slice(col, col + width))
        return image[:, *window].copy(), valid[window].copy()

    return read


def whole(grid):
    return Tile(slice(0, grid.shape[0]), slice(0, grid.shape[1]))


def grid_over(shape=SHAPE, **options):
    return TokenGrid(shape, CHIP, PATCH, **options)


# Which windows.


@given(st.integers(1, 40), st.integers(1, 6), st.integers(1, 9), st.data())
def test_every_token_is_in_a_window_that_is_asked_for_its_tile(num, step, side, data):
    grid = grid_over((num * PATCH, PATCH), step=min(step, CHIP // PATCH))
    token = data.draw(st.integers(0, num - 1))
    tile = slice(token // side * side, min(token // side * side + side, num))
    starts = grid.starts(tile, num)
    holding = [start for start in grid.starts(slice(0, num), num)
               if start <= token < start + grid.tokens_per_chip]  # fmt: skip
    assert holding
    assert {*holding} <= {*starts}


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 9), st.sampled_from([8, 4, 2, 1]))
def test_tiles_cover_every_cell_once(height, width, side, stride):
    grid = CellGrid((height, width), CHIP, PATCH, stride)
    count = np.zeros(grid.shape, int)
    for tile in grid.tiles(side):
        count[tile.rows, tile.cols] += 1
    assert (count == 1).all()


def test_windows_without_a_valid_pixel_are_not_asked_for(encoder):
    image, valid = pixels((160, 160))
    valid[:], valid[:, 60:] = True, False
    asked = []

    def ask(image, valid):
        asked.extend(valid.flatten(1).any(1).tolist())
        return encoder.features(image, valid)

    grid = grid_over((160, 160))
    _, known = blended(reading(image, valid), ask, grid, whole(grid))
    assert len(asked) == 9 * 4
    assert all(asked)
    assert not known[:, 8:].any()


def test_a_raster_without_a_valid_pixel_is_answered_with_nothing(encoder):
    image, valid = pixels()
    grid = grid_over()
    values, known = blended(reading(image, valid & False), encoder.features, grid, whole(grid))
    assert not known.any()
    assert not values.any()


# What is answered.


@pytest.mark.parametrize("side", [4, 11])
def test_the_size_of_tiles_changes_nothing(encoder, side):
    read, grid = reading(*pixels()), grid_over()
    expected, expected_known = blended(read, encoder.features, grid, whole(grid))
    values, known = np.full_like(expected, np.nan), np.zeros_like(expected_known)
    for tile in CellGrid(SHAPE, CHIP, PATCH, PATCH).tiles(side):
        where = (tile.rows, tile.cols)
        values[where], known[where] = blended(read, encoder.features, grid, tile)
    np.testing.assert_array_equal(known, expected_known)
    np.testing.assert_allclose(values, expected, atol=1e-5)


def test_one_window_is_answered_as_the_encoder_does(encoder):
    image, valid = pixels((CHIP, CHIP), seed=1)
    grid = grid_over((CHIP, CHIP))
    values, _ = blended(reading(image, valid), encoder.features, grid, whole(grid))
    expected = encoder.features(torch.from_numpy(image[None]), torch.from_numpy(valid[None]))[0]
    np.testing.assert_allclose(values.reshape(expected.shape), expected, atol=1e-5)


def test_a_token_is_the_weighted_mean_of_its_windows():
    """Asked for its place in the window, a token predicted what its weights say of it."""
    size = CHIP // PATCH

    def place(image, valid):
        return torch.arange(size * size).float().expand(len(image), -1)[..., None]

    grid = grid_over((64, 64))
    image = np.ones((1, 64, 64), np.float32)
    read = reading(image, np.ones((64, 64), bool))
    values, _ = blended(read, place, grid, whole(grid))
    # Token (3, 3) of 8 x 8, windows from 0, 2 and 4: places 3 and 1 in rows and in columns.
    weight = {3: 0.5, 1: 1.5}
    pairs = list(product((3, 1), repeat=2))
    mean = sum(weight[r] * weight[c] * (r * size + c) for r, c in pairs)
    assert values[3, 3, 0] == pytest.approx(mean / sum(weight[r] * weight[c] for r, c in pairs))
    assert values[0, 0, 0] == 0


def test_what_an_invalid_pixel_holds_changes_nothing(encoder):
    image, valid = pixels()
    grid = grid_over()
    before, known = blended(reading(image, valid), encoder.features, grid, whole(grid))
    for value in (np.nan, np.inf, -7e9):
        spoilt = np.where(valid, image, np.float32(value))
        after, _ = blended(reading(spoilt, valid), encoder.features, grid, whole(grid))
        np.testing.assert_array_equal(after, before)
    assert not known[5:10, 5:11].any()
    assert known[:4].all()


@pytest.mark.parametrize("shape", [(1, 1), (5, 70), (31, 32), (33, 47)])
def test_small_rasters_are_answered_up_to_their_last_pixel(encoder, shape):
    image, valid = pixels(shape)
    grid = grid_over(shape)
    values, known = blended(reading(image, valid | True), encoder.features, grid, whole(grid))
    assert known.all()
    assert values.shape[:2] == tuple(-(-side // PATCH) for side in shape)
    assert np.isfinite(values).all()


def test_squares_together_are_answered_as_each_alone(encoder):
    images, valids = zip(*(pixels((56, 56), seed) for seed in range(3)), strict=True)
    grid = grid_over((56, 56))
    together = blended_squares(
        torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(valids)),
        encoder.features, grid,
    )  # fmt: skip
    for image, valid, values in zip(images, valids, together, strict=True):
        alone, known = blended(reading(image, valid), encoder.features, grid, whole(grid))
        np.testing.assert_array_equal(
            np.isnan(values), np.broadcast_to(~known[..., None], values.shape)
        )
        np.testing.assert_allclose(values[known], alone[known], atol=1e-5)


# Seams.


def relative_difference(encoder, step):
    """Of a raster's tokens and those of the same raster without its first patches, away from the
    borders: the median distance, of the tokens' median distance from their mean.
    """
    image, valid = pixels((24 * PATCH, 24 * PATCH))
    valid[:] = True

    def tokens(first):
        cut = image[:, first * PATCH :, first * PATCH :]
        grid = grid_over(cut.shape[1:], step=step)
        values, _ = blended(reading(cut, valid[first * PATCH :, first * PATCH :]),
                            encoder.features, grid, whole(grid))  # fmt: skip
        return values

    reference, border = tokens(0), CHIP // PATCH
    spread = reference - reference.mean((0, 1))
    apart = []
    for first in range(1, border):
        ours, theirs = reference[first:, first:], tokens(first)
        difference = (ours - theirs)[border:-border, border:-border]
        apart.append(np.median(np.linalg.norm(difference, axis=2)))
    return np.mean(apart) / np.median(np.linalg.norm(spread, axis=2))


def test_windows_that_begin_elsewhere_say_the_same_of_a_place(encoder):
    """And better so the more windows overlap; without overlap, every window has its own mind."""
    apart, half, quarter = (relative_difference(encoder, step) for step in (4, 2, 1))
    assert half < 0.5 * apart
    assert quarter < 0.2 * apart
    assert half < 0.15


# Places.


@pytest.mark.parametrize("stride", [8, 4, 2, 1])
def test_a_cell_lies_on_the_middle_of_its_patch(stride):
    grid = CellGrid(SHAPE, CHIP, PATCH, stride)
    cells = grid.geobox(RASTER)
    assert cells.crs == RASTER.crs
    assert cells.shape == tuple(-(-side // stride) for side in SHAPE)
    for row, col in ((0, 0), (3, 7), (cells.shape[0] - 1, cells.shape[1] - 1)):
        x, y = cells.affine @ (col + 0.5, row + 0.5)
        there = ~RASTER.affine @ (x, y)
        np.testing.assert_allclose(there, (col * stride + 4, row * stride + 4), atol=1e-6)
        size = np.subtract(~RASTER.affine @ (cells.affine @ (col + 1, row + 1)),
                           ~RASTER.affine @ (cells.affine @ (col, row)))  # fmt: skip
        np.testing.assert_allclose(size, stride, atol=1e-6)


def test_finer_cells_are_what_shifted_rasters_say(encoder):
    image, valid = pixels()
    fine = CellGrid(SHAPE, CHIP, PATCH, 4)
    predicted = fine.predict(reading(image, valid), encoder.features, whole(fine))
    for row, col in product((0, 1), repeat=2):
        cut, known = image[:, 4 * row :, 4 * col :], valid[4 * row :, 4 * col :]
        grid = CellGrid(known.shape, CHIP, PATCH, 8)
        alone = grid.predict(reading(cut, known), encoder.features, whole(grid))
        np.testing.assert_allclose(predicted[row::2, col::2], alone, atol=1e-5)


@settings(max_examples=20)
@given(st.integers(1, 90), st.integers(1, 90), st.sampled_from([8, 4, 2]))
def test_every_finer_cell_is_answered(height, width, stride):
    def ask(image, valid):
        return torch.zeros(len(image), (CHIP // PATCH) ** 2, 1)

    grid = CellGrid((height, width), CHIP, PATCH, stride)
    read = reading(np.ones((1, height, width), np.float32), np.ones((height, width), bool))
    for tile in grid.tiles(3):
        assert (grid.predict(read, ask, tile) == 0).all()


def test_a_stride_that_does_not_divide_the_patch_is_refused_with_those_that_do():
    for stride in (0, 3, 16):
        with pytest.raises(ConfigError, match=rf"stride {stride} does not divide .* 1, 2, 4, 8"):
            CellGrid(SHAPE, CHIP, PATCH, stride)
