"""95 % intervals of scores, over ground and repeats or random splits; none where none can hold.

Ground is sampled in blocks, because neighbouring chips resemble each other, and its intervals come
from resampled blocks. A plain percentile bootstrap is too narrow where blocks are few; its tails
are moved outwards as far as Student's t lies outside the normal distribution (Hesterberg 2015,
"What Teachers Should Know About the Bootstrap", section 4.2, the expanded percentile interval).
Repeats (trainings, or draws of labels) are few, and their part of an interval is Student's t.
``docs/explanation/evaluation.md`` has the simulation behind ``LEAST_BLOCKS`` and one-block classes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int64

NUM_RESAMPLES = 2000
LEVEL = 0.95

LEAST_BLOCKS = 5
"""Blocks below which no interval is given: of four, 0.87 of the intervals held the truth, of two
0.49."""

Interval = tuple[float, float] | None


def resampled_blocks(num_blocks: int, key: object) -> Int64[np.ndarray, "resample block"]:
    """How often each resample takes each block; ``key`` seeds, so that equal keys draw alike."""
    seed = int.from_bytes(hashlib.sha256(str(key).encode()).digest()[:8], "little")
    shares = np.full(num_blocks, 1 / num_blocks)
    return np.random.default_rng(seed).multinomial(num_blocks, shares, NUM_RESAMPLES)


def interval(
    scores: Float[np.ndarray, "*repeat"] | np.float64,
    resampled: Float[np.ndarray, " resample *repeat"],
    num_blocks: int,
    one_block_classes: Sequence[str] = (),
    unit: str = "block",
) -> tuple[Interval, str | None]:
    """The interval of a score, or of its mean over repeats, or None and why there is none.

    ``scores`` are those on all ground of ``num_blocks`` blocks, ``resampled`` those on resampled
    ground; resamples in which there is nothing to measure (NaN) are left out. With repeats it is
    for other ground and other repeats alike: the two parts are joined as limits of a sum (Zou and
    Donner 2008, "Construction of confidence limits about effect measures: A general approach",
    equation 1). One repeat says nothing of others: the interval is then of the ground alone.
    ``one_block_classes`` are the classes of a mean over classes that lie in a single block: how
    much their part of the mean varies between blocks cannot be known. ``unit`` is a block's name.
    """
    from scipy.stats import norm, t

    if num_blocks < LEAST_BLOCKS:
        return None, f"too few {unit}s: {num_blocks} of them, an interval needs {LEAST_BLOCKS}"
    if one_block_classes:
        verb = "lies" if len(one_block_classes) == 1 else "lie"
        return None, f"{', '.join(one_block_classes)} {verb} in one {unit} only"
    ground = resampled.mean(1) if resampled.ndim > 1 else resampled
    if np.isnan(ground).all():
        return None, None
    outwards = (num_blocks / (num_blocks - 1)) ** 0.5 * t.ppf((1 + LEVEL) / 2, num_blocks - 1)
    tail = norm.cdf(-outwards)
    low, high = (float(bound) for bound in np.nanquantile(ground, [tail, 1 - tail]))
    if scores.size == 1:
        return (low, high), None
    mean, num = float(scores.mean()), scores.size
    reach = float(t.ppf((1 + LEVEL) / 2, num - 1) * scores.std(ddof=1) / num**0.5)
    return (mean - np.hypot(mean - low, reach), mean + np.hypot(high - mean, reach)), None


def interval_of_splits(
    by_split: Float[np.ndarray, " split"],
    num_fitted: float,
    num_scored: float,
    num_groups: int,
    num_examples: int,
) -> float:
    """Half of the interval of a mean over random splits of examples into fitted and scored ones.

    Splits share their examples, so their variance does not fall with their number: it is
    (1 / splits + scored / fitted) times that of one (Nadeau and Bengio 2003, "Inference for the
    Generalization Error", equation 9). Degrees of freedom are those of the groups. A variance of 0,
    where a handful of points is all right or all wrong, is not believed: that of a binomial with
    one success and one failure more is the least.
    """
    from scipy.stats import t

    mean, num = float(by_split.mean()), len(by_split)
    doubtful = (mean * num_examples + 1) / (num_examples + 2)
    least = doubtful * (1 - doubtful) / num_scored
    variance = max(float(by_split.var(ddof=1)), least)
    reach = float(t.ppf((1 + LEVEL) / 2, min(num, num_groups) - 1))
    return reach * ((1 / num + num_scored / num_fitted) * variance) ** 0.5
