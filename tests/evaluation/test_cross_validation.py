"""Scores told from a few points, and whether they are reached."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bharateo.errors import DatasetError
from bharateo.evaluation import cross_validation
from bharateo.evaluation.cross_validation import (
    LEAST_GROUPS,
    cross_validate,
    fit_few,
    spatial_groups,
    tempered,
    trials,
)
from bharateo.evaluation.own_classes import ContenderScore


def ground(rng, per_class, spread=1.6, places=40, num_classes=3, dims=8):
    """Examples of classes whose features also depend on the place they lie in."""
    centres = np.random.default_rng(5).normal(size=(num_classes, dims))
    labels = np.repeat(np.arange(num_classes), per_class)
    groups = rng.integers(0, places, len(labels))
    of_place = rng.normal(size=(places, dims)) * 0.7
    noise = rng.normal(size=(len(labels), dims)) * spread
    return (centres[labels] + of_place[groups] + noise).astype(np.float32), labels, groups


@pytest.fixture(autouse=True)
def few_splits(monkeypatch):
    monkeypatch.setattr(cross_validation, "NUM_SPLITS", 12)


def balanced(labels, predicted):
    return np.mean([(predicted[labels == cls] == cls).mean() for cls in np.unique(labels)])


def test_other_ground_gives_a_score_inside_the_interval():
    inside = []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        features, labels, groups = ground(rng, 5)
        told = cross_validate({"some": features}, labels, groups)["some"]
        there, truth, _ = ground(rng, 400, places=300)
        reached = balanced(truth, fit_few(features, labels).predict(there))
        inside.append(told.low <= reached <= told.high)
    assert np.mean(inside) >= 0.8


def test_more_points_give_a_narrower_interval():
    rng = np.random.default_rng(0)
    few, many = (cross_validate({"some": f}, y, g)["some"]
                 for f, y, g in (ground(rng, 5), ground(rng, 60)))  # fmt: skip
    assert many.high - many.low < (few.high - few.low) / 2


def test_a_handful_of_right_answers_is_no_certainty():
    features = np.repeat(np.eye(2, dtype=np.float32), 4, axis=0) * 9
    told = cross_validate({"some": features}, np.repeat([0, 1], 4), np.arange(8))["some"]
    assert told.value == 1
    assert told.low < 0.9


def test_features_that_know_only_their_place_are_found_out():
    """Split by example they would look perfect: every place holds one class."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(12), 5)
    labels = groups % 2
    features = rng.normal(size=(12, 90))[groups].astype(np.float32)
    by_place = cross_validate({"some": features}, labels, groups)["some"]
    by_example = cross_validate({"some": features}, labels, np.arange(60))["some"]
    assert by_example.value > 0.95
    assert by_place.value < 0.75


def test_a_class_of_one_place_is_not_scored():
    features, labels, groups = ground(np.random.default_rng(0), 6)
    groups[labels == 2] = 99
    told = cross_validate({"some": features}, labels, groups)["some"]
    assert np.isnan(told.recall[2])
    assert told.value == pytest.approx(told.recall[:2].mean())
    assert ContenderScore.of(told, ("a", "b", "c")).recall["c"] is None


def test_classes_of_one_place_each_cannot_be_scored():
    labels = np.repeat([0, 1], 3)
    with pytest.raises(DatasetError, match="one place only"):
        trials(labels, labels)


def test_no_group_is_split():
    _, labels, groups = ground(np.random.default_rng(1), 20)
    for trial in trials(labels, groups):
        assert not {*groups[trial.fitted]} & {*groups[trial.scored]}


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), min_size=2, max_size=25))
def test_places_nearer_than_the_reach_share_their_group(places):
    places = np.array(places, float)
    if len(np.unique(places, axis=0)) < 2:
        with pytest.raises(DatasetError):
            spatial_groups(places, 10)
        return
    groups, reach = spatial_groups(places, 10)
    distance = np.abs(places[:, None] - places).max(2)
    assert (groups[:, None] == groups)[distance < reach].all()
    assert len(np.unique(groups)) >= min(LEAST_GROUPS, len(np.unique(places, axis=0)))
    assert reach <= 10


def test_how_many_points_a_class_has_does_not_make_it_likelier():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], [40, 5])
    features = rng.normal(size=(45, 3)).astype(np.float32) + 0.0 * labels[:, None]
    probe = fit_few(features, labels)
    nowhere = probe.probabilities(np.zeros((1, 3)) + probe.mean)[0]
    assert nowhere[1] == pytest.approx(0.5, abs=0.1)


def test_tempered_probabilities_are_as_sure_as_held_out_points_allow():
    rng = np.random.default_rng(0)
    features, labels, groups = ground(rng, 40)
    probe = fit_few(features, labels)
    calm, temperature = tempered(probe, features, labels, groups)
    there, truth, _ = ground(rng, 400, places=300)

    def loss(each):
        return -np.log(each.probabilities(there)[np.arange(len(truth)), truth]).mean()

    assert temperature < 1  # so strong a regularisation makes it too timid
    assert loss(calm) < loss(probe)
    assert (calm.predict(there) == probe.predict(there)).all()
    np.testing.assert_allclose(
        calm.logits(there) * temperature, probe.logits(there), rtol=1e-4, atol=1e-4
    )
