"""Estimates as published, and intervals that hold."""

import numpy as np
import pytest
from scipy.stats import binom

from bharateo.survey.estimators import Sample, ratio, share

# Olofsson et al. 2014, tables 8 and 9: counts of (map, reference), and the map's pixels.
COUNTS = np.array([[66, 0, 5, 4], [0, 55, 8, 12], [1, 0, 153, 11], [2, 1, 9, 313]])
PIXELS = np.array([200_000, 150_000, 3_200_000, 6_450_000])


def published():
    mapped, truth = (np.repeat(each.ravel(), COUNTS.ravel()) for each in np.indices(COUNTS.shape))
    return Sample(mapped, PIXELS.astype(float), PIXELS), mapped, truth


def test_areas_and_accuracies_are_those_of_the_published_example():
    sample, mapped, truth = published()
    area = share(sample, truth == 0)
    hectares = PIXELS.sum() * 0.09
    assert area.value * hectares == pytest.approx(21_158, abs=1)
    assert 1.96 * area.error * hectares == pytest.approx(6_158, abs=2)
    overall = share(sample, truth == mapped)
    assert (overall.value, 1.96 * overall.error) == pytest.approx((0.947, 0.018), abs=6e-4)
    own = np.arange(4) == 0
    users = share(sample.within(own), (truth == 0)[sample.inside(own)])
    assert (users.value, 1.96 * users.error) == pytest.approx((0.88, 0.074), abs=6e-4)
    producers = ratio(sample, (truth == 0) & (mapped == 0), truth == 0, own, ~own)
    assert (producers.value, 1.96 * producers.error) == pytest.approx((0.749, 0.213), abs=2e-3)


def test_users_accuracy_is_the_same_as_a_ratio_of_totals():
    sample, mapped, truth = published()
    own = np.arange(4) == 1
    direct = share(sample.within(own), (truth == 1)[sample.inside(own)])
    stehman = ratio(sample, (truth == 1) & (mapped == 1), mapped == 1, own, own)
    assert stehman.value == pytest.approx(direct.value)
    assert stehman.error == pytest.approx(direct.error)


@pytest.mark.parametrize(("yes", "num"), [(0, 30), (1, 30), (17, 40), (199, 200), (50, 50)])
def test_of_one_stratum_the_limits_are_nearly_the_mid_p_limits_of_a_binomial(yes, num):
    values = np.arange(num) < yes
    found = share(Sample(np.zeros(num, int), np.ones(1), np.array([10**12])), values)

    def p_value(p):  # of as many or fewer, half of as many
        return binom.cdf(yes - 1, num, p) + binom.pmf(yes, num, p) / 2

    if yes < num:
        assert p_value(found.high) == pytest.approx(0.025, abs=0.006)
    if yes > 0:
        assert p_value(found.low) == pytest.approx(0.975, abs=0.006)
    assert found.low <= found.value <= found.high


def test_a_rare_class_that_was_never_seen_may_be_where_a_point_counts_most():
    stratum = np.repeat([0, 1], [300, 20])
    sample = Sample(stratum, np.array([50.0, 50.0]), np.array([10**9] * 2))
    found = share(sample, np.zeros(320))
    of_small = share(Sample(np.zeros(20, int), np.ones(1), np.array([10**9])), np.zeros(20))
    assert found.low == 0
    assert found.high == pytest.approx(of_small.high / 2, rel=0.05)


def test_where_every_cell_was_asked_nothing_is_open():
    values = np.arange(40) % 4 == 0
    found = share(Sample(np.arange(40) % 2, np.array([20.0, 20.0]), np.array([20, 20])), values)
    assert found.value == pytest.approx(0.25)
    assert (found.low, found.high) == pytest.approx((0.25, 0.25), abs=1e-9)


def test_a_stratum_without_a_point_may_be_anything():
    stratum = np.repeat([0, 2], 50)
    sample = Sample(stratum, np.array([40.0, 20.0, 40.0]), np.array([1000] * 3))
    found = share(sample, np.ones(100))
    assert sample.unseen == pytest.approx(0.2)
    assert found.low < 0.8
    assert found.high == 1


def test_cells_count_by_their_area():
    sample = Sample(np.zeros(4, int), np.ones(1), np.array([10**6]), np.array([1.0, 1.0, 1.0, 3.0]))
    assert share(sample, np.array([0, 0, 0, 1.0])).value == pytest.approx(0.5)


def simulated(num=400, surveys=1000, seed=3):
    """Surveys of three strata with a class that the map guesses in part."""
    rng = np.random.default_rng(seed)
    area = np.array([0.6, 0.3, 0.1])
    true = np.array([0.03, 0.4, 0.85])
    stratum = np.repeat([0, 1, 2], [num // 2, num // 4, num // 4])
    # Guesses are calibrated: answers are drawn with them as probabilities.
    size = np.array([8, 3, 6])[stratum]
    guess = rng.beta(true[stratum] * size, (1 - true[stratum]) * size, (surveys, num))
    values = rng.random((surveys, num)) < guess
    return Sample(stratum, area, np.array([10**9] * 3)), values, guess, float(area @ true)


def test_intervals_hold_as_often_as_they_say_and_guesses_narrow_them():
    sample, values, guess, truth = simulated()
    plain, helped = share(sample, values), share(sample, values, guess, truth)
    for found in (plain, helped):
        held = ((found.low <= truth) & (truth <= found.high)).mean()
        assert 0.94 <= held <= 0.97
    width = (helped.high - helped.low).mean() / (plain.high - plain.low).mean()
    assert width < 0.95
    assert abs(helped.value.mean() - truth) < 2e-3


def test_a_guess_that_knows_nothing_does_no_harm():
    sample, values, guess, truth = simulated()
    shuffled = np.random.default_rng(0).permuted(guess, axis=1)
    plain, misled = share(sample, values), share(sample, values, shuffled, float(guess.mean()))
    assert (misled.high - misled.low).mean() < 1.03 * (plain.high - plain.low).mean()
    assert abs(misled.value.mean() - truth) < 5e-3


def test_of_a_class_that_no_point_has_no_ratio_is_known():
    sample, _, truth = published()
    found = ratio(sample, truth == 9, truth == 9, np.ones(4, bool), np.ones(4, bool))
    assert np.isnan([found.value, found.low, found.high]).all()
