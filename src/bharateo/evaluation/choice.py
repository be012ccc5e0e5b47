"""Which features and which classifier a person's labels are best told apart by, and how well.

Every kind of features, and every sum of kinds, is tried with every classifier, all on the same
splits by location. What is best on some splits was lucky there, too, so its own score flatters. The
score that is told is that of the *choice*: places are drawn anew, the best is chosen on those
drawn, and scored on those that were not.

Source: Tsamardinos, Greasidou and Borboudakis 2018, "Bootstrapping the out-of-sample predictions
for efficient and accurate cross-validation", section 3 (BBC-CV), with places in place of examples.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64

from bharateo.evaluation.cross_validation import (
    Score,
    Trial,
    best_temperature,
    fit_few,
    scorable,
)
from bharateo.evaluation.intervals import interval_of_splits

LINEAR_STRENGTH = 0.1
"""Inverse regularisation of logistic regression on pixels (``benchmarks/points_map.md``)."""

NUM_TREES, NUM_STAGES = 50, 30
_LEARNING_RATE = 0.2
_DEPTH = 2
"""Of a boosted tree: a handful of labels bears no more."""

LEAST_PROBABILITY = 1e-3
"""What a forest that has never seen a class thereabouts gives it."""

NUM_FOLDS, NUM_REPEATS = 5, 2
NUM_RESAMPLES = 500

Features = Float[np.ndarray, "example dim"]
ByKind = Mapping[str, Float[np.ndarray, "example _"]]
Labels = Int64[np.ndarray, " example"]


Fitted = Callable[[Features], Float[np.ndarray, "example cls"]]
"""A fitted classifier: features -> logarithms of the probabilities of the classes 0, 1, ..., up to
a constant."""


def _logistic_regression(features: Features, labels: Labels, num_classes: int) -> Fitted:
    probe = fit_few(features, labels, LINEAR_STRENGTH)
    return lambda values: _among(probe.probabilities(values), probe.classes, num_classes)


def _random_forest(features: Features, labels: Labels, num_classes: int) -> Fitted:
    from sklearn.ensemble import RandomForestClassifier

    # One thread: in several, scikit-learn changes warning filters that all of them share.
    forest = RandomForestClassifier(NUM_TREES, class_weight="balanced", random_state=0)
    forest.fit(features, labels)
    return lambda values: _among(forest.predict_proba(values), forest.classes_, num_classes)


def _gradient_boosting(features: Features, labels: Labels, num_classes: int) -> Fitted:
    from sklearn.ensemble import GradientBoostingClassifier

    trees = GradientBoostingClassifier(
        n_estimators=NUM_STAGES, learning_rate=_LEARNING_RATE, max_depth=_DEPTH,
        max_features="sqrt", random_state=0,
    )  # fmt: skip
    trees.fit(features, labels, 1 / np.bincount(labels)[labels])
    return lambda values: _among(trees.predict_proba(values), trees.classes_, num_classes)


CLASSIFIERS: Mapping[str, Callable[[Features, Labels, int], Fitted]] = {
    "logistic regression": _logistic_regression,
    "random forest": _random_forest,
    "gradient boosting": _gradient_boosting,
}
"""What may tell classes apart, the simplest first; classes count alike in each."""


def _among(
    probabilities: Float[np.ndarray, "example some"],
    classes: Int64[np.ndarray, " some"],
    num_classes: int,
) -> Float[np.ndarray, "example cls"]:
    """Logarithms of probabilities among all classes, also of those that were not there to fit."""
    every = np.zeros((len(probabilities), num_classes))
    every[:, classes] = probabilities
    logarithms: np.ndarray = np.log(every.clip(LEAST_PROBABILITY))
    return logarithms


@dataclass(frozen=True)
class Candidate:
    """Some kinds of features, side by side, and a classifier, with their balanced accuracy."""

    kinds: tuple[str, ...]
    classifier: str
    value: float = np.nan

    def columns(self, features: ByKind) -> Float[np.ndarray, "example _"]:
        """Its features out of all kinds."""
        return np.concatenate([features[kind] for kind in self.kinds], 1)


@dataclass(frozen=True)
class Choice:
    """The best of all ``candidates``, the first of equals; what it reaches, with the luck of having
    been chosen taken out; and the temperature that makes its probabilities as sure as held-out
    examples allow.
    """

    chosen: Candidate
    score: Score
    temperature: float
    candidates: tuple[Candidate, ...]

    def fit(self, features: ByKind, labels: Labels) -> Fitted:
        """The chosen classifier of all examples; of any others it takes the columns side by side,
        in the order of ``chosen.kinds``.
        """
        fit = CLASSIFIERS[self.chosen.classifier]
        fitted = fit(self.chosen.columns(features), labels, int(labels.max()) + 1)
        return lambda values: fitted(values) / self.temperature


def folds(labels: Labels, groups: Labels, seed: int = 0) -> list[Trial]:
    """Every group held out once in each of ``NUM_REPEATS`` rounds; an example is scored only where
    its class could be learnt.

    Raises:
        DatasetError: no split leaves two classes to fit and something to score.
    """
    from sklearn.model_selection import GroupKFold

    num = min(NUM_FOLDS, len(np.unique(groups)))
    rounds = [
        GroupKFold(num, shuffle=True, random_state=seed + repeat).split(labels, labels, groups)
        for repeat in range(NUM_REPEATS)
    ]
    return scorable(itertools.chain(*rounds), labels)


def choose(
    features: ByKind,
    labels: Labels,
    groups: Labels,
    seed: int = 0,
    on_candidate: Callable[[int, int], None] = lambda done, total: None,
    classifiers: Sequence[str] = tuple(CLASSIFIERS),
) -> Choice:
    """The best of all kinds of features, their sums, and the classifiers.

    ``labels`` are 0, 1, ... without gaps; kinds are given the simplest first, and of candidates of
    the same score the one of fewer and simpler kinds is chosen. ``on_candidate`` is told (done,
    total).

    Raises:
        DatasetError: see ``folds``.
    """
    trials, num_classes = folds(labels, groups, seed), int(labels.max()) + 1
    sums = [
        kinds
        for size in range(1, len(features) + 1)
        for kinds in itertools.combinations(features, size)
    ]
    tried = [Candidate(kinds, classifier) for kinds in sums for classifier in classifiers]
    every = []
    for number, candidate in enumerate(tried):
        on_candidate(number, len(tried))
        every.append(_held_out(candidate, features, labels, trials, num_classes))
    asked = np.bincount(np.concatenate([each.scored for each in trials]), minlength=len(labels))
    hits = np.stack([_hits(each, labels, trials) for each in every]) / np.maximum(asked, 1)
    known = asked > 0
    values = _balanced(hits, known.astype(float), labels, num_classes)
    best = int(values.argmax())
    candidates = tuple(
        Candidate(each.kinds, each.classifier, float(value))
        for each, value in zip(tried, values, strict=True)
    )
    score = _honest(hits, known, best, values[best], labels, groups, trials, every[best], seed)
    scored = np.concatenate([each.scored for each in trials])
    temperature = best_temperature(np.concatenate(every[best]), labels[scored])
    return Choice(candidates[best], score, temperature, candidates)


def _held_out(
    candidate: Candidate,
    features: ByKind,
    labels: Labels,
    trials: Sequence[Trial],
    num_classes: int,
) -> list[Float[np.ndarray, "_ cls"]]:
    """What the candidate says of the examples held out of every split."""
    from sklearn import config_context

    values, fit = candidate.columns(features), CLASSIFIERS[candidate.classifier]
    # Thousands of small trees: looking at the same numbers again takes longer than growing them.
    with config_context(assume_finite=True, skip_parameter_validation=True):
        return [
            fit(values[each.fitted], labels[each.fitted], num_classes)(values[each.scored])
            for each in trials
        ]


def _hits(
    said: Sequence[np.ndarray], labels: Labels, trials: Sequence[Trial]
) -> Float[np.ndarray, " example"]:
    """How often each example was told right."""
    right = np.zeros(len(labels))
    for each, trial in zip(said, trials, strict=True):
        right[trial.scored] += each.argmax(1) == labels[trial.scored]
    return right


def _balanced(
    hits: Float[np.ndarray, "candidate example"],
    weight: Float[np.ndarray, " example"],
    labels: Labels,
    num_classes: int,
) -> Float[np.ndarray, " candidate"]:
    """Recall of weighted examples, the mean over the classes that there are."""
    by_class = np.eye(num_classes)[labels] * weight[:, None]
    held = by_class.sum(0)
    recall = hits @ by_class[:, held > 0] / held[held > 0]
    mean: np.ndarray = recall.mean(1)
    return mean


def _honest(
    hits: Float[np.ndarray, "candidate example"],
    known: np.ndarray,
    best: int,
    value: float,
    labels: Labels,
    groups: Labels,
    trials: Sequence[Trial],
    said: Sequence[np.ndarray],
    seed: int,
) -> Score:
    """The score of the choice: chosen on places drawn, scored on the others; its interval."""
    rng, num_groups = np.random.default_rng(seed), int(groups.max()) + 1
    num_classes = int(labels.max()) + 1
    reached = []
    for _ in range(NUM_RESAMPLES):
        times = np.bincount(rng.integers(0, num_groups, num_groups), minlength=num_groups)[groups]
        drawn, left = times * known, (times == 0) & known
        if drawn.any() and left.any():
            chosen = int(_balanced(hits, drawn.astype(float), labels, num_classes).argmax())
            one = hits[chosen : chosen + 1]
            reached.append(_balanced(one, left.astype(float), labels, num_classes)[0])
    value = min(float(np.mean(reached)), float(value)) if reached else float(value)
    weight = 1 / np.bincount(labels)[labels]
    by_split = [
        np.average(each.argmax(1) == labels[t.scored], weights=weight[t.scored])
        for each, t in zip(said, trials, strict=True)
    ]
    num_fitted, num_scored = (
        float(np.mean([len(getattr(each, part)) for each in trials]))
        for part in ("fitted", "scored")
    )
    reach = interval_of_splits(np.array(by_split), num_fitted, num_scored, num_groups, len(labels))
    recall = np.array([
        hits[best, known & (labels == cls)].mean() if (known & (labels == cls)).any() else np.nan
        for cls in range(num_classes)
    ])  # fmt: skip
    return Score(value, max(value - reach, 0.0), min(value + reach, 1.0), recall)
