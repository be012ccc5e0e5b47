"""Shares, ratios and their 95 % intervals from a stratified random sample of a map's cells.

The estimators are those of Olofsson et al. 2014 ("Good practices for estimating area and assessing
accuracy of land change", Remote Sensing of Environment 148, equations 2 to 13); as ratios of
stratified totals they also hold where strata are not the map's classes (Stehman 2014, "Estimating
area and map accuracy for stratified random sampling when the strata are different from the map
classes", International Journal of Remote Sensing 35, equations 1 to 29). A share helped by what a
map guesses is the difference estimator (Särndal, Swensson and Wretman 1992, "Model Assisted Survey
Sampling", section 6.3), the guesses weighed as much as the sample says they are worth, 0 to 1
(section 6.4; Angelopoulos, Duchi and Zrnic 2023, "PPI++: Efficient prediction-powered inference").

The intervals are not the estimate and so many standard errors: of a stratum whose thirty answers
are all alike the standard error is 0, and a rare class has many such strata. They are the mid-p
limits of a beta distribution with the estimate's mean and variance (Korn and Graubard 1998,
"Confidence intervals for proportions with small expected number of positive counts estimated from
survey data"; Dean and Pagano 2015, "Evaluating confidence interval methods for binomial proportions
in clustered surveys"). As in the limits of Clopper and Pearson one more answer, which was not
given, stands on the side of each limit; of all strata it is the one where a single answer counts
most, as for rates in Fay and Feuer 1997, "Confidence intervals for directly standardized rates".
Of one stratum they come close to the mid-p limits of a binomial. ``benchmarks/survey.md``
has how often they hold.

Axes: point stratum; any axes before them are surveys, computed side by side.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int64, Shaped
from scipy.special import betainc

Numbers = np.ndarray | np.float64
"""One number a survey."""

LEVEL = 0.95
_TAIL = (1 - LEVEL) / 2
_HALVINGS = 40
"""Of 0 to 1, until a limit is found: to 1e-12."""


class Estimate(NamedTuple):
    """A share or ratio (0 to 1), its standard error, and the limits of its interval; NaN where the
    sample says nothing of it.
    """

    value: Numbers
    error: Numbers
    low: Numbers
    high: Numbers


@dataclass(frozen=True)
class Sample:
    """Where the answered points lie: their stratum, and what of the ground a stratum is.

    ``area`` and ``cells`` are of the whole strata, in any unit; ``cell_area`` is that of each
    point's cell, in any unit, and equal for all where it is None. A stratum without points adds to
    the intervals what it could.
    """

    stratum: Int64[np.ndarray, " point"]
    area: Float[np.ndarray, " stratum"]
    cells: Int64[np.ndarray, " stratum"]
    cell_area: Float[np.ndarray, " point"] | None = None

    def within(self, strata: Bool[np.ndarray, " stratum"]) -> Sample:
        """The part of the sample that lies in some of the strata; points are ``inside(strata)``."""
        number, kept = np.cumsum(strata) - 1, self.inside(strata)
        cell_area = None if self.cell_area is None else self.cell_area[kept]
        return Sample(number[self.stratum[kept]], self.area[strata], self.cells[strata], cell_area)

    def inside(self, strata: Bool[np.ndarray, " stratum"]) -> Bool[np.ndarray, " point"]:
        """Which points lie in some of the strata."""
        inside: np.ndarray = strata[self.stratum]
        return inside

    @cached_property
    def points(self) -> Int64[np.ndarray, " stratum"]:
        """How many points lie in each stratum."""
        return np.bincount(self.stratum, minlength=len(self.area))

    @cached_property
    def share(self) -> Float[np.ndarray, " stratum"]:
        """Of the ground of all strata with points, that of each."""
        area = np.where(self.points > 0, self.area, 0.0)
        return area / area.sum()

    @cached_property
    def unseen(self) -> float:
        """The share of the ground that lies in strata without a point."""
        return float(self.area[self.points == 0].sum() / self.area.sum())

    @cached_property
    def _unsampled(self) -> Float[np.ndarray, " stratum"]:
        """Of each stratum, the share of cells without a point: where all are known, none varies."""
        return 1 - np.minimum(self.points / self.cells, 1)

    @cached_property
    def _weight(self) -> Float[np.ndarray, "point stratum"]:
        """What turns values of points into means of strata."""
        one_of = np.eye(len(self.area))[self.stratum]
        if self.cell_area is not None:
            one_of *= self.cell_area[:, None]
        weight: np.ndarray = one_of / np.maximum(one_of.sum(0), 1e-300)
        return weight

    def means(self, values: Shaped[np.ndarray, "*survey point"]) -> np.ndarray:
        """The mean of each stratum."""
        means: np.ndarray = values @ self._weight
        return means

    def variances(self, values: Shaped[np.ndarray, "*survey point"]) -> np.ndarray:
        """Of each stratum the variance of its mean, and of one point a quarter of that of all."""
        num, relative = self.points, self._weight.sum(1) * self.points[self.stratum]
        off = (values - self.means(values)[..., self.stratum]) * relative
        squares = off**2 @ np.eye(len(self.area))[self.stratum]
        one = np.where(num == 1, 0.25, squares / np.maximum(num - 1, 1))
        variance: np.ndarray = one / np.maximum(num, 1) * self._unsampled
        return variance

    def extra(self) -> Float[np.ndarray, " stratum"]:
        """What one more answer of each stratum would count."""
        extra: np.ndarray = self.share / np.maximum(self.points, 1) * self._unsampled
        return extra


def share(
    sample: Sample,
    values: Shaped[np.ndarray, "*survey point"],
    guess: Float[np.ndarray, "*survey point"] | None = None,
    guessed_share: float = 0.0,
) -> Estimate:
    """The share of the ground on which ``values`` (0 or 1, or between) are 1.

    ``guess`` is what a map said of the same points (0 to 1), ``guessed_share`` its mean over all
    the ground: the closer it comes, the narrower the interval, and a bad one is left out of it.
    """
    values = np.asarray(values, float)
    guess = np.zeros(values.shape) if guess is None else guess
    worth = np.asarray(_worth(sample, values, guess))
    guess = guess * worth[..., None]
    means = sample.means(values - guess)
    value = means @ sample.share + guessed_share * worth
    parts = sample.share**2 * sample.variances(values - guess)
    # The most and the least that an answer may differ from a guess, in each stratum.
    of_stratum = [guess[..., sample.stratum == each] for each in range(len(sample.area))]
    most = 1 - np.stack([each.min(-1, initial=1.0) for each in of_stratum], -1)
    least = -np.stack([each.max(-1, initial=0.0) for each in of_stratum], -1)
    limits = []
    for sign, off in ((-1, means - least), (1, most - means)):
        where = (sample.extra() * off).argmax(-1)[..., None]
        off, part = (np.take_along_axis(each, where, -1)[..., 0] for each in (off, parts))
        one, num = sample.extra()[where[..., 0]], sample.points[where[..., 0]]
        after = (num / (num + 1)) ** 2
        variance = parts.sum(-1) - part + (part + one**2 * off) * after
        limits.append((value + sign * one * off * num / (num + 1), variance))
    return _estimate(value, parts.sum(-1), sample, *limits)


def _worth(
    sample: Sample, values: Float[np.ndarray, "*survey point"], guess: np.ndarray
) -> Numbers:
    """The weight of a guess with which what is left of the values varies least, 0 to 1."""
    off, of_guess = (each - sample.means(each)[..., sample.stratum] for each in (values, guess))
    num = sample.points
    counts = (sample.share**2 / np.maximum(num * (num - 1), 1))[sample.stratum]
    together, alone = (off * of_guess * counts).sum(-1), (of_guess**2 * counts).sum(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        worth: Numbers = np.clip(np.nan_to_num(together / alone), 0, 1)
    return worth


def ratio(
    sample: Sample,
    part: Shaped[np.ndarray, "*survey point"],
    whole: Shaped[np.ndarray, "*survey point"],
    may_be_part: Bool[np.ndarray, " stratum"],
    may_be_rest: Bool[np.ndarray, " stratum"],
) -> Estimate:
    """The ground of ``part`` as a share of that of ``whole``, both known from the answers alone.

    Strata in which a cell may be part of it, and those in which it may be of the rest of the
    whole, say where an answer that was not given would count. NaN where no point is of the whole.
    """
    part, whole = np.asarray(part, float), np.asarray(whole, float)
    num, den = (sample.means(each) @ sample.share for each in (part, whole))
    with np.errstate(divide="ignore", invalid="ignore"):
        value = num / den
        parts = sample.share**2 * sample.variances(part - value[..., None] * whole)
        parts = parts / den[..., None] ** 2
        more, rest = sample.means(part), sample.means(whole - part)
        extra = sample.extra()
        one, other = (
            (extra * may_be * (1 - seen)).max(-1) / den
            for may_be, seen in ((may_be_part, more), (may_be_rest, rest))
        )
        variance = parts.sum(-1)
        low = value / (1 + other), (variance + other**2 * value) / (1 + other) ** 2
        high = (value + one) / (1 + one), (variance + one**2 * (1 - value)) / (1 + one) ** 2
    return _estimate(value, parts.sum(-1), sample, low, high)


def _estimate(
    value: Numbers,
    variance: Numbers,
    sample: Sample,
    below: tuple[Numbers, Numbers],
    above: tuple[Numbers, Numbers],
) -> Estimate:
    """The interval from mean and variance with one answer more on either side."""
    below, above = ((np.clip(mean, 0, 1), spread) for mean, spread in (below, above))
    low, high = (_mid_p_limit(below, above, tail) for tail in (_TAIL, 1 - _TAIL))
    low = low * (1 - sample.unseen)
    high = high * (1 - sample.unseen) + sample.unseen
    nothing, shown = np.isnan(value), np.clip(value, 0, 1)
    low = np.where(nothing, np.nan, np.minimum(low, shown))
    high = np.where(nothing, np.nan, np.maximum(high, shown))
    return Estimate(shown, np.sqrt(variance), low, high)


def _mid_p_limit(
    below: tuple[Numbers, Numbers], above: tuple[Numbers, Numbers], tail: float
) -> Numbers:
    """Where the mean of two distributions, given by mean and variance, reaches a tail."""
    low, high = np.zeros(np.shape(below[0])), np.ones(np.shape(below[0]))
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        reached = (_beta(middle, *below) + _beta(middle, *above)) / 2 >= tail
        low, high = np.where(reached, low, middle), np.where(reached, middle, high)
    limit: Numbers = (low + high) / 2
    return limit


def _beta(at: Numbers, mean: Numbers, variance: Numbers) -> Numbers:
    """The distribution function of a beta variable; all at its mean where it does not vary."""
    with np.errstate(divide="ignore", invalid="ignore"):
        size = mean * (1 - mean) / variance - 1
        varies = (size > 0) & np.isfinite(size)
        size = np.where(varies, size, 1.0)
        inside = betainc(np.maximum(mean * size, 1e-12), np.maximum((1 - mean) * size, 1e-12), at)
    found: Numbers = np.where(varies & (mean > 0) & (mean < 1), inside, at >= mean)
    return found
