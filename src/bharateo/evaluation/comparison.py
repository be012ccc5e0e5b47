"""Scores of several trainings of a cell, beside those of the base cell, with intervals.

An interval covers both the ground (blocks are resampled) and the repeats: trainings with other
seeds, or draws of the labels. Cells are paired: they share their resamples, and a difference is
taken repeat by repeat.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64

from bharateo.evaluation.intervals import interval, resampled_blocks
from bharateo.evaluation.scores import CLASS_MEANS, class_metrics, one_block_classes
from bharateo.landcover import BHARATEO_CLASSES
from bharateo.results import METRICS, Compared, ComparedScore, MeanScore

Confusions = Int64[np.ndarray, "repeat block true predicted"]
"""Counts of (true, predicted) classes of a cell, for every repeat and every block of ground."""

CLASS_NAMES = tuple(each.name for each in BHARATEO_CLASSES)


@dataclass(frozen=True)
class ResampledScores:
    """Every metric for every repeat, and the same on resampled ground.

    ``num_blocks`` are those with examples; ``one_block`` the classes that lie in one of them only.
    """

    whole: Mapping[str, Float[np.ndarray, " repeat"]]
    resampled: Mapping[str, Float[np.ndarray, "resample repeat"]]
    num_blocks: int
    one_block: tuple[str, ...]
    unit: str = "block"

    @classmethod
    def of(
        cls,
        cells: Confusions,
        times: Int64[np.ndarray, "resample block"],
        classes: Sequence[str] = CLASS_NAMES,
        unit: str = "block",
    ) -> ResampledScores:
        """The scores of confusion matrices; ``times`` says how often resamples take each block."""
        whole = cells.sum(1)
        # As floats, which are exact up to 2**53, the product takes a tenth of the time.
        resampled = np.tensordot(times.astype(float), cells.astype(float), (1, 1))
        return cls(
            class_metrics(whole),
            class_metrics(resampled, whole),
            int(cells[0].any((1, 2)).sum()),
            one_block_classes(cells[0], classes),
            unit,
        )

    def minus(self, other: ResampledScores) -> ResampledScores:
        """Differences; a row of one repeat stands against every repeat of the other."""
        return ResampledScores(
            {name: self.whole[name] - other.whole[name] for name in METRICS},
            {name: self.resampled[name] - other.resampled[name] for name in METRICS},
            min(self.num_blocks, other.num_blocks),
            tuple(sorted({*self.one_block, *other.one_block})),
            self.unit,
        )

    def mean(self, metric: str) -> MeanScore:
        """A metric's mean over the repeats with its interval over ground and repeats."""
        one_block = self.one_block if metric in CLASS_MEANS else ()
        whole, resampled = self.whole[metric], self.resampled[metric]
        ci95, why = interval(whole, resampled, self.num_blocks, one_block, self.unit)
        return MeanScore(mean=float(whole.mean()), ci95=ci95, no_interval=why)


def compared(
    cells: Mapping[str, Confusions],
    base: str,
    seed: int = 0,
    classes: Sequence[str] = CLASS_NAMES,
    unit: str = "block",
) -> dict[str, Compared]:
    """Every cell's scores and their differences to the base cell's, by cell.

    All cells hold the same seeds and the same blocks, in the same order. ``classes`` are the
    names of the matrices' classes, ``unit`` what a block is called.
    """
    times = resampled_blocks(cells[base].shape[1], seed)
    scores = {
        name: ResampledScores.of(counts, times, classes, unit) for name, counts in cells.items()
    }

    def score(own: ResampledScores, metric: str) -> ComparedScore:
        alone, against = own.mean(metric), own.minus(scores[base]).mean(metric)
        return ComparedScore(
            mean=alone.mean,
            ci95=alone.ci95,
            per_seed=own.whole[metric].tolist(),
            against_base=against.mean,
            against_base_ci95=against.ci95,
            no_interval=against.no_interval,
        )

    return {
        name: Compared(**{metric: score(own, metric) for metric in METRICS})
        for name, own in scores.items()
    }


def shown(value: float, ci95: Sequence[float] | None, sign: str = "") -> str:
    """A number with its interval, where it has one."""
    return f"{value:{sign}.3f}" + (f" [{ci95[0]:{sign}.3f}, {ci95[1]:{sign}.3f}]" if ci95 else "")
