"""Many observations of a pixel into one: the median, the medoid or the best.

An observation is all bands of one day, uint16 reflectance x 10000, and 0 in all of them where the
day shows no clear ground. Axes: day band row col.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Int64, UInt16

Method = Literal["median", "medoid", "best"]

OBSERVATION_BANDS = ("observations", "first_day", "last_day", "day")
"""Of every pixel: how many days show it clear, the first and the last of them, and the day of its
values (of a median: the median day, the earlier of two). Days since 1970-01-01; 0: none."""

_MOST = np.uint16(65535)


class Reduced(NamedTuple):
    """What became of a stack: values, and ``OBSERVATION_BANDS``; 0 where no day shows ground."""

    values: UInt16[np.ndarray, "band row col"]
    observations: UInt16[np.ndarray, "layer row col"]


def reduced(
    stack: UInt16[np.ndarray, "day band row col"],
    days: Sequence[int],
    clouds: Sequence[float],
    method: Method,
) -> Reduced:
    """The composite of a stack; ``days`` since 1970-01-01 ascend, ``clouds`` are in percent.

    - ``median``: of every band by itself, rounded half up: no cloud that was missed, and a spectrum
      that no day need have had.
    - ``medoid``: the day whose spectrum is nearest to those of all other days, by the sum of
      Euclidean distances, the earliest of equals. Source: Flood 2013, "Seasonal Composite Landsat
      TM/ETM+ Images Using the Medoid", Remote Sensing 5(12).
    - ``best``: the day with the least cloud, the earliest of equals.
    """
    seen = stack[:, 0] > 0
    number = seen.sum(0)
    rank = seen.cumsum(0)
    middle = (seen & (rank == (number + 1) // 2)).argmax(0)  # of two the earlier
    if method == "median":
        values, chosen = _median(stack, number), middle
    else:
        chosen = _CHOICES[method](stack, seen, clouds)
        values = np.take_along_axis(stack, chosen[None, None], 0)[0]
    day = np.array(days, np.uint16)
    last = len(days) - 1 - seen[::-1].argmax(0)
    layers = [number.astype(np.uint16), day[seen.argmax(0)], day[last], day[chosen]]
    return Reduced(values, np.where(number > 0, np.stack(layers), np.uint16(0)))


def _median(
    stack: UInt16[np.ndarray, "day band row col"], number: Int64[np.ndarray, "row col"]
) -> UInt16[np.ndarray, "band row col"]:
    ordered = np.where(stack == 0, _MOST, stack)  # what is not there comes last
    # Neighbours change places, whole images at a time: half the time that np.sort takes of days.
    for turn in range(len(stack)):
        for one in range(turn % 2, len(stack) - 1, 2):
            less = np.minimum(ordered[one], ordered[one + 1])
            np.maximum(ordered[one], ordered[one + 1], out=ordered[one + 1])
            ordered[one] = less
    low, high = (
        np.take_along_axis(ordered, place.clip(0, len(stack) - 1)[None, None], 0)[0]
        for place in ((number - 1) // 2, number // 2)
    )
    middle = (low.astype(np.uint32) + high + 1) // 2
    return np.where(number > 0, middle, 0).astype(np.uint16)


def _medoid(
    stack: UInt16[np.ndarray, "day band row col"],
    seen: Bool[np.ndarray, "day row col"],
    clouds: Sequence[float],
) -> Int64[np.ndarray, "row col"]:
    total = np.zeros(seen.shape)
    spectra = stack.astype(np.float32)  # in which differences are exact
    for one in range(len(stack)):
        for other in range(one):
            square = np.square(spectra[one] - spectra[other], dtype=np.float64).sum(0)
            apart = np.sqrt(square) * (seen[one] & seen[other])
            total[one] += apart
            total[other] += apart
    total[~seen] = np.inf
    return total.argmin(0)


def _best(
    stack: UInt16[np.ndarray, "day band row col"],
    seen: Bool[np.ndarray, "day row col"],
    clouds: Sequence[float],
) -> Int64[np.ndarray, "row col"]:
    cloud = np.array(clouds)[:, None, None]
    chosen: np.ndarray = np.where(seen, cloud, np.inf).argmin(0)
    return chosen


_CHOICES: dict[str, Callable[..., Int64[np.ndarray, "row col"]]] = {
    "medoid": _medoid,
    "best": _best,
}
