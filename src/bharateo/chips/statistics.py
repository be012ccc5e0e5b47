"""Band statistics of a train split: streamed, exact, in physical units, with a hash to compare."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from jaxtyping import Float64, Integer
from pydantic import Field, FiniteFloat, NonNegativeInt

from bharateo.artefacts import OpenRecord

_EXACT_PX = 2**20
"""Pixels whose squared 16-bit values add up exactly in float64 (below 2**53)."""


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation of every band over valid pixels, in the sensor's unit."""

    mean: Float64[np.ndarray, " band"]
    std: Float64[np.ndarray, " band"]
    num_pixels: int

    def of_bands(self, places: Sequence[int]) -> Statistics:
        """The statistics of some of the bands, in the order given."""
        return Statistics(self.mean[list(places)], self.std[list(places)], self.num_pixels)

    def distance(self, trained: Statistics) -> float:
        """How far these lie from others, in standard deviations of those others.

        Root mean square over bands of the Frechet distance of two normal distributions,
        sqrt((mean - mean')^2 + (std - std')^2), by std'. A band that is constant there is left out.
        Source: Dowson and Landau 1982, doi 10.1016/0047-259X(82)90077-X.
        """
        varied = trained.std > 0
        apart = (self.mean - trained.mean) ** 2 + (self.std - trained.std) ** 2
        by_band = apart[varied] / trained.std[varied] ** 2
        return float(np.sqrt(by_band.mean())) if by_band.size else 0.0

    @property
    def scale(self) -> Float64[np.ndarray, " band"]:
        """What a model divides by: the deviation, 1 for a band that is constant, which has no
        other scale and comes out as 0.
        """
        return np.where(self.std > 0, self.std, 1.0)

    @property
    def hash(self) -> str:
        """SHA-256 of the numbers to ten digits, to tell whether two runs normalise alike."""
        record = {
            "mean": [f"{value:.9e}" for value in self.mean],
            "std": [f"{value:.9e}" for value in self.std],
            "num_pixels": self.num_pixels,
        }
        canonical = json.dumps(record, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """The statistics as plain JSON, as stored in ``dataset.json``."""
        return {
            "split": "train",
            "mean": self.mean.tolist(),
            "std": self.std.tolist(),
            "num_pixels": self.num_pixels,
            "hash": self.hash,
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Statistics:
        """The statistics that ``to_json`` wrote."""
        return cls(
            np.asarray(record["mean"], np.float64),
            np.asarray(record["std"], np.float64),
            int(record["num_pixels"]),
        )


class StatisticsRecord(OpenRecord):
    """``Statistics`` as files hold them."""

    split: str = "train"
    mean: tuple[FiniteFloat, ...]
    std: tuple[Annotated[FiniteFloat, Field(ge=0)], ...]
    num_pixels: NonNegativeInt

    def as_arrays(self) -> Statistics:
        """The same numbers to compute with."""
        return Statistics(np.asarray(self.mean), np.asarray(self.std), self.num_pixels)


@dataclass(frozen=True)
class Sums:
    """Count, sum and sum of squares of every band's valid pixels, in stored units, as integers.

    Stored values are integers of at most 16 bits, so nothing is rounded before the very last
    division: the result does not depend on the order of the pixels, on how they are cut into
    chips and shards, or on how large the values are beside their spread.
    """

    num_pixels: int
    total: tuple[int, ...]
    squares: tuple[int, ...]

    @classmethod
    def zero(cls, num_bands: int) -> Sums:
        """The sums of no pixel at all."""
        return cls(0, (0,) * num_bands, (0,) * num_bands)

    @classmethod
    def of(cls, image: Integer[np.ndarray, "band row col"], num_valid: int) -> Sums:
        """The sums of a chip, whose invalid pixels are stored as 0 and so add nothing."""
        total = np.zeros(len(image), np.int64)
        squares = np.zeros(len(image), np.int64)
        rows = max(_EXACT_PX // image.shape[2], 1)
        for start in range(0, image.shape[1], rows):
            values = image[:, start : start + rows].reshape(len(image), -1).astype(np.float64)
            total += values.sum(axis=1).astype(np.int64)
            squares += np.einsum("bp,bp->b", values, values).astype(np.int64)
        return cls(num_valid, tuple(total.tolist()), tuple(squares.tolist()))

    def __add__(self, other: Sums) -> Sums:
        return Sums(
            self.num_pixels + other.num_pixels,
            tuple(a + b for a, b in zip(self.total, other.total, strict=True)),
            tuple(a + b for a, b in zip(self.squares, other.squares, strict=True)),
        )

    def statistics(self, scale: float, offset: float) -> Statistics:
        """Mean and (population) standard deviation of stored x ``scale`` + ``offset``."""
        num = max(self.num_pixels, 1)
        mean = np.array([total / num for total in self.total])
        variance = np.array(
            [
                (num * squares - total**2) / num**2
                for total, squares in zip(self.total, self.squares, strict=True)
            ]
        )
        return Statistics(mean * scale + offset, np.sqrt(variance) * abs(scale), self.num_pixels)
