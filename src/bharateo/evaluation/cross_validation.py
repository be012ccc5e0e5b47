"""What a probe on a handful of labelled places will reach on other ground, told beforehand.

Places near each other look alike, so they are grouped by location and a group is never split
between fitting and scoring. The score is balanced accuracy: classes count alike, as they do among
a person's points, however much of the map each will cover.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int64

from bharateo.errors import DatasetError
from bharateo.evaluation.intervals import interval_of_splits
from bharateo.evaluation.probes import LinearProbe, fit_linear

STRENGTH = 1e-3
"""Inverse regularisation: with five labels a class, as good on held-out ground as any weaker one,
and the least biased under cross-validation (``benchmarks/points.md``)."""

NUM_SPLITS = 50
HELD_OUT = 0.2
"""Share of the groups that is scored in every split."""

LEAST_GROUPS = 5
_TEMPERATURES = np.geomspace(0.02, 5, 60)


def fit_few(
    features: Float[np.ndarray, "example dim"],
    labels: Int64[np.ndarray, " example"],
    strength: float = STRENGTH,
) -> LinearProbe:
    """A strongly regularised linear probe for which all classes are equally likely beforehand.

    How many points a person has set of a class says nothing about how common it is: its share is
    taken out of the probe's constant term (King and Zeng 2001, "Logistic Regression in Rare Events
    Data", section 4.1).

    Raises:
        DatasetError: the labels are of fewer than two classes.
    """
    probe = fit_linear(features, labels, strengths=(strength,))
    share = (labels[:, None] == probe.classes).mean(0)
    return replace(probe, bias=probe.bias - np.log(share))


def spatial_groups(
    places: Float[np.ndarray, "example 2"], reach: float
) -> tuple[Int64[np.ndarray, " example"], float]:
    """The group of every place, and the reach used: places closer than it share their group, also
    through others between them.

    Where that leaves fewer than ``LEAST_GROUPS`` groups the reach is halved until it does not.

    Raises:
        DatasetError: the places are all the same.
    """
    from sklearn.cluster import AgglomerativeClustering

    num_places = len(np.unique(places, axis=0))
    if num_places < 2:
        raise DatasetError("the points lie all in one place: cross-validation needs several")
    while True:
        cluster = AgglomerativeClustering(
            n_clusters=None, distance_threshold=reach, linkage="single", metric="chebyshev"
        )
        groups = cluster.fit_predict(places).astype(np.int64)
        if groups.max() + 1 >= min(LEAST_GROUPS, num_places):
            return groups, reach
        reach /= 2


@dataclass(frozen=True)
class Score:
    """Balanced accuracy with its interval, and the recall of every class (NaN: not scored)."""

    value: float
    low: float
    high: float
    recall: Float[np.ndarray, " cls"]


@dataclass(frozen=True)
class Trial:
    """One split: which examples a probe is fitted to, and which it is scored on."""

    fitted: Int64[np.ndarray, " some"]
    scored: Int64[np.ndarray, " others"]


def trials(labels: Int64[np.ndarray, " example"], groups: Int64[np.ndarray, " example"],
           seed: int = 0) -> list[Trial]:  # fmt: skip
    """Random splits by group; an example is scored only where its class could be learnt.

    Raises:
        DatasetError: no split leaves two classes to fit and something to score.
    """
    from sklearn.model_selection import GroupShuffleSplit

    splits = GroupShuffleSplit(NUM_SPLITS, test_size=HELD_OUT, random_state=seed)
    return scorable(splits.split(labels, labels, groups), labels)


def scorable(
    splits: Iterable[tuple[Int64[np.ndarray, " some"], Int64[np.ndarray, " others"]]],
    labels: Int64[np.ndarray, " example"],
) -> list[Trial]:
    """Of splits into what is fitted and what is held out those that tell something.

    Raises:
        DatasetError: no split leaves two classes to fit and something to score.
    """
    found = []
    for fitted, held in splits:
        scored = held[np.isin(labels[held], labels[fitted])]
        if len(scored) and len(np.unique(labels[fitted])) > 1:
            found.append(Trial(fitted, scored))
    if len(found) < 2:
        raise DatasetError(
            "no score by location is possible: every class lies in one place only; add points of "
            "each class at least a chip away from the others"
        )
    return found


def cross_validate(
    features: Mapping[str, Float[np.ndarray, "example _"]],
    labels: Int64[np.ndarray, " example"],
    groups: Int64[np.ndarray, " example"],
    seed: int = 0,
) -> dict[str, Score]:
    """Scores of probes on every kind of features, fitted and scored on the same splits.

    ``labels`` are 0, 1, ... without gaps.

    Raises:
        DatasetError: see ``trials``.
    """
    splits = trials(labels, groups, seed)
    weight = 1 / np.bincount(labels)[labels]
    num_groups, num_classes = len(np.unique(groups)), labels.max() + 1
    num_fitted, num_scored = (
        float(np.mean([len(each) for each in some]))
        for some in zip(*((split.fitted, split.scored) for split in splits), strict=True)
    )
    scores = {}
    for name, values in features.items():
        right, asked, by_split = np.zeros(len(labels)), np.zeros(len(labels)), []
        for split in splits:
            probe = fit_few(values[split.fitted], labels[split.fitted])
            hits = probe.predict(values[split.scored]) == labels[split.scored]
            right[split.scored] += hits
            asked[split.scored] += 1
            by_split.append(np.average(hits, weights=weight[split.scored]))
        hit, held = (np.bincount(labels, each, num_classes) for each in (right, asked))
        recall = np.where(held > 0, hit / np.maximum(held, 1), np.nan)
        value = float(np.nanmean(recall))
        reach = interval_of_splits(
            np.array(by_split), num_fitted, num_scored, num_groups, len(labels)
        )
        scores[name] = Score(value, max(value - reach, 0.0), min(value + reach, 1.0), recall)
    return scores


def tempered(
    probe: LinearProbe,
    features: Float[np.ndarray, "example dim"],
    labels: Int64[np.ndarray, " example"],
    groups: Int64[np.ndarray, " example"],
    seed: int = 0,
) -> tuple[LinearProbe, float]:
    """The probe with probabilities as sure as held-out points allow, and the temperature.

    Its logits are divided by the temperature that gives held-out points, classes counting alike,
    the least cross-entropy (Guo et al. 2017, "On Calibration of Modern Neural Networks").
    """
    logits, truth = [], []
    for split in trials(labels, groups, seed):
        held_out = fit_few(features[split.fitted], labels[split.fitted])
        if len(held_out.classes) == labels.max() + 1:  # every class could be learnt
            logits.append(held_out.logits(features[split.scored]))
            truth.append(labels[split.scored])
    if not logits:
        return probe, 1.0
    best = best_temperature(np.concatenate(logits), np.concatenate(truth))
    return replace(probe, weight=probe.weight / best, bias=probe.bias / best), best


def best_temperature(
    logits: Float[np.ndarray, "example cls"], labels: Int64[np.ndarray, " example"]
) -> float:
    """What held-out logits are to be divided by for the least cross-entropy, classes alike."""
    from scipy.special import log_softmax

    weight = 1 / np.bincount(labels)[labels]
    losses = [
        np.average(-log_softmax(logits / each, 1)[np.arange(len(labels)), labels], weights=weight)
        for each in _TEMPERATURES
    ]
    return float(_TEMPERATURES[int(np.argmin(losses))])
