import json
from dataclasses import asdict

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from bharateo.chips.statistics import Statistics, Sums


def chips_and_masks(seed: int, low: int, high: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    image = random.integers(low, high, (5, 3, 17, 23)).astype(np.uint16)
    valid = random.random((5, 17, 23)) > 0.3
    valid[2] = False
    return image * valid[:, None], valid


def summed(image: np.ndarray, valid: np.ndarray) -> Sums:
    parts = (Sums.of(chip, int(mask.sum())) for chip, mask in zip(image, valid, strict=True))
    return sum(parts, start=Sums.zero(image.shape[1]))


@settings(deadline=None)
@given(st.integers(0, 99), st.sampled_from([(0, 2), (1, 10_000), (65_000, 65_536)]))
def test_statistics_are_those_of_all_valid_pixels_together(seed, limits):
    image, valid = chips_and_masks(seed, *limits)
    pixels = np.moveaxis(image, 1, 0)[:, valid].astype(np.float64) * 1e-4 - 0.1
    statistics = summed(image, valid).statistics(1e-4, -0.1)
    np.testing.assert_allclose(statistics.mean, pixels.mean(axis=1), rtol=1e-12)
    np.testing.assert_allclose(statistics.std, pixels.std(axis=1), rtol=1e-9, atol=1e-15)
    assert statistics.num_pixels == valid.sum()


def test_a_spread_tiny_beside_the_values_is_not_lost():
    values = np.full((1, 1100, 1100), 65_535, np.uint16)
    values[0, 0, 0] = 65_534
    statistics = Sums.of(values, values.size).statistics(1.0, 0.0)
    exact = np.sqrt((values.size - 1) / values.size**2)
    np.testing.assert_allclose(statistics.std, exact, rtol=1e-12)


@settings(deadline=None)
@given(st.permutations(range(5)))
def test_the_order_of_chips_does_not_matter(order):
    image, valid = chips_and_masks(0, 1, 9000)
    assert summed(image[order], valid[order]) == summed(image, valid)


def test_sums_and_statistics_survive_json():
    sums = summed(*chips_and_masks(1, 1, 9000))
    assert TypeAdapter(Sums).validate_json(json.dumps(asdict(sums)), strict=True) == sums
    statistics = sums.statistics(1e-4, 0.0)
    back = Statistics.from_json(json.loads(json.dumps(statistics.to_json())))
    np.testing.assert_array_equal(back.mean, statistics.mean)
    np.testing.assert_array_equal(back.std, statistics.std)
    assert back.hash == statistics.hash


def test_the_hash_tells_other_numbers_apart_but_not_rounding():
    statistics = Statistics(np.array([0.1, 0.2]), np.array([0.01, 0.02]), 100)
    nearly = Statistics(statistics.mean * (1 + 1e-15), statistics.std, 100)
    other = Statistics(statistics.mean * (1 + 1e-6), statistics.std, 100)
    assert statistics.hash == nearly.hash != other.hash


def test_no_pixel_at_all_gives_zeros():
    statistics = Sums.zero(2).statistics(1.0, 0.0)
    assert statistics.num_pixels == 0
    assert statistics.mean.tolist() == statistics.std.tolist() == [0.0, 0.0]
