"""95 % intervals of scores: one way for ground, one for repeats, and none where none can hold.

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


def ground_interval(values: Float[np.ndarray, " resample"], num_blocks: int) -> Interval:
    """The interval of a score from its ``values`` on resampled ground of so many blocks.

    None below ``LEAST_BLOCKS``. Resamples in which there is nothing to measure (NaN) are left out.
    """
    from scipy.stats import norm, t

    if num_blocks < LEAST_BLOCKS or np.isnan(values).all():
        return None
    outwards = (num_blocks / (num_blocks - 1)) ** 0.5 * t.ppf((1 + LEVEL) / 2, num_blocks - 1)
    tail = norm.cdf(-outwards)
    low, high = np.nanquantile(values, [tail, 1 - tail])
    return float(low), float(high)


def interval(
    whole: Float[np.ndarray, " repeat"],
    resampled: Float[np.ndarray, "resample repeat"],
    num_blocks: int,
) -> Interval:
    """The interval of a mean over repeats, for other ground and other repeats alike.

    ``whole`` are the repeats' scores on all ground, ``resampled`` on resampled ground. The two
    parts are joined as limits of a sum (Zou and Donner 2008, "Construction of confidence limits
    about effect measures: A general approach", equation 1). One repeat says nothing of others: the
    interval is then of the ground alone. None as ``ground_interval``.
    """
    from scipy.stats import t

    ground = ground_interval(resampled.mean(1), num_blocks)
    if ground is None or len(whole) == 1:
        return ground
    mean, num = float(whole.mean()), len(whole)
    reach = float(t.ppf((1 + LEVEL) / 2, num - 1) * whole.std(ddof=1) / num**0.5)
    return mean - np.hypot(mean - ground[0], reach), mean + np.hypot(ground[1] - mean, reach)


def why_none(
    num_blocks: int, one_block_classes: Sequence[str] = (), unit: str = "block"
) -> str | None:
    """Why a score has no interval, None where it has one.

    ``one_block_classes`` are the classes of a mean over classes that lie in a single block: how
    much their part of the mean varies between blocks cannot be known.
    """
    if num_blocks < LEAST_BLOCKS:
        return f"too few {unit}s: {num_blocks} of them, an interval needs {LEAST_BLOCKS}"
    if one_block_classes:
        verb = "lies" if len(one_block_classes) == 1 else "lie"
        return f"{', '.join(one_block_classes)} {verb} in one {unit} only"
    return None
