"""Many observations of a pixel into one, compared with the definitions pixel by pixel."""

import numpy as np
import pytest

from bharateo.composite.reduce import reduced

DAYS, CLOUDS = [19000, 19005, 19010, 19015, 19020], [3.0, 1.0, 1.0, 40.0, 0.5]


def stack_of_days(seed=0):
    """(day, band, row, col): every number of clear days, and equal spectra here and there."""
    rng = np.random.default_rng(seed)
    stack = rng.integers(1, 2**16, (5, 3, 24, 24), dtype=np.uint16)
    stack[3, :, :6] = stack[1, :, :6]
    stack[2, :, 6:9] = 65535
    return stack * (rng.random((5, 1, 24, 24)) < rng.random((24, 24)))


def one_pixel(spectra, days, clouds, method):
    """Values and day of the clear days of a pixel."""
    exact = spectra.astype(float)
    chosen = {
        "median": (len(exact) - 1) // 2,
        "medoid": np.sqrt(((exact[:, None] - exact) ** 2).sum(2)).sum(1).argmin(),
        "best": np.argmin(clouds),
    }[method]
    values = np.floor(np.median(exact, 0) + 0.5) if method == "median" else exact[chosen]
    return values, [len(days), min(days), max(days), days[chosen]]


@pytest.mark.parametrize("method", ["median", "medoid", "best"])
def test_every_pixel_is_what_the_method_is_defined_as(method):
    stack = stack_of_days()
    found = reduced(stack, DAYS, CLOUDS, method)
    numbers = set()
    for row, col in np.ndindex(stack.shape[2:]):
        seen = np.flatnonzero(stack[:, 0, row, col])
        values, about = [0, 0, 0], [0, 0, 0, 0]
        if seen.size:
            days, clouds = np.array(DAYS)[seen], np.array(CLOUDS)[seen]
            values, about = one_pixel(stack[seen, :, row, col], days, clouds, method)
        assert found.values[:, row, col].tolist() == [*values]
        assert found.observations[:, row, col].tolist() == [*about]
        numbers.add(seen.size)
    assert numbers == {0, 1, 2, 3, 4, 5}


@pytest.mark.parametrize("method", ["median", "medoid", "best"])
def test_one_day_is_what_it_is(method):
    stack = stack_of_days()[:1]
    found = reduced(stack, DAYS[:1], CLOUDS[:1], method)
    np.testing.assert_array_equal(found.values, stack[0])
