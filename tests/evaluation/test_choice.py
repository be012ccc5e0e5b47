"""What a person's labels are told apart by: the best of many, and a score that does not flatter."""

import numpy as np
import pytest

from bharateo.errors import DatasetError
from bharateo.evaluation import choice
from bharateo.evaluation.choice import CLASSIFIERS, choose, folds

LINEAR = ("logistic regression",)


@pytest.fixture(autouse=True)
def few_trees(monkeypatch):
    monkeypatch.setattr(choice, "NUM_TREES", 3)
    monkeypatch.setattr(choice, "NUM_STAGES", 2)
    monkeypatch.setattr(choice, "NUM_RESAMPLES", 100)


def labelled(per_class=8, num_classes=3):
    labels = np.repeat(np.arange(num_classes), per_class)
    return labels, np.arange(len(labels)) // 2


def noise(labels, dims, seed):
    return np.random.default_rng(seed).normal(size=(len(labels), dims)).astype(np.float32)


def telling(labels, seed, apart=1.5):
    return (np.eye(3)[labels] * apart + noise(labels, 3, seed)).astype(np.float32)


def test_the_chosen_one_is_the_best_of_all_kinds_sums_and_classifiers():
    labels, groups = labelled()
    features = {"a": telling(labels, 0), "b": noise(labels, 4, 1), "c": telling(labels, 2)}
    found = choose(features, labels, groups)
    assert len(found.candidates) == 7 * len(CLASSIFIERS)
    assert found.chosen.value == max(each.value for each in found.candidates)
    assert found.score.value <= found.chosen.value
    assert found.chosen.kinds != ("b",)


def test_of_equals_the_simplest_is_chosen():
    labels, groups = labelled()
    clear = telling(labels, 0, apart=30.0)
    found = choose({"simple": clear, "other": clear + 1}, labels, groups)
    assert [each.value for each in found.candidates if each.classifier == LINEAR[0]] == [1, 1, 1]
    assert (found.chosen.kinds, found.chosen.classifier) == (("simple",), LINEAR[0])


@pytest.mark.slow
def test_labels_that_nothing_tells_are_not_said_to_be_told():
    """The best of many is right by luck; the score told is not."""
    labels, groups = labelled(8)
    own, told = [], []
    for seed in range(4):
        features = {str(kind): noise(labels, 3, 10 * seed + kind) for kind in range(4)}
        found = choose(features, labels, groups, seed, classifiers=LINEAR)
        own.append(found.chosen.value)
        told.append(found.score.value)
    assert np.mean(own) > 0.45
    assert np.mean(told) == pytest.approx(1 / 3, abs=0.1)


@pytest.mark.slow
def test_other_ground_gives_a_score_inside_the_interval_of_the_choice():
    labels, groups = labelled(6)
    there = np.repeat(np.arange(3), 300)
    inside = []
    for seed in range(6):
        kinds = range(10 * seed, 10 * seed + 3)
        features = {str(k): telling(labels, k) if k % 10 else noise(labels, 3, k) for k in kinds}
        beyond = {
            str(k): telling(there, 1000 + k) if k % 10 else noise(there, 3, 1000 + k) for k in kinds
        }
        found = choose(features, labels, groups, seed, classifiers=LINEAR)
        said = found.fit(features, labels)(found.chosen.columns(beyond)).argmax(1)
        reached = np.mean([(said[there == cls] == cls).mean() for cls in range(3)])
        inside.append(found.score.low <= reached <= found.score.high)
    assert np.mean(inside) >= 0.8


@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_every_classifier_repeats_clear_labels_and_knows_classes_it_never_saw(classifier):
    labels, _ = labelled()
    features = telling(labels, 0, apart=30.0)
    some = labels != 1
    for keep in (labels >= 0, some):
        fitted = CLASSIFIERS[classifier](features[keep], labels[keep], 3)
        said = fitted(features)
        assert said.shape == (len(labels), 3)
        assert (said.argmax(1)[keep] == labels[keep]).all()
    assert (said[:, 1] <= said.max(1)).all()


def test_every_group_is_held_out_as_often_and_none_is_split():
    labels, groups = labelled()
    times = np.zeros(len(labels))
    for trial in folds(labels, groups):
        assert not {*groups[trial.fitted]} & {*groups[trial.scored]}
        times[trial.scored] += 1
    assert (times == choice.NUM_REPEATS).all()


def test_classes_of_one_place_each_cannot_be_chosen_by():
    labels = np.repeat([0, 1], 3)
    with pytest.raises(DatasetError, match="one place only"):
        folds(labels, labels)


def test_probabilities_are_as_sure_as_held_out_labels_allow():
    labels, groups = labelled(30)
    features = {"a": telling(labels, 0)}
    found = choose(features, labels, groups, classifiers=LINEAR)
    there = np.repeat(np.arange(3), 400)
    logits = found.fit(features, labels)(telling(there, 99))

    def loss(logits):
        shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        return -np.log(shares[np.arange(len(there)), there]).mean()

    assert loss(logits) <= loss(logits * found.temperature) + 0.01
