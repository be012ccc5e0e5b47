"""Scores of several trainings of a cell, beside those of the base cell, with intervals.

An interval covers both the ground (blocks are resampled) and the repeats: trainings with other
seeds, or draws of the labels. Cells are paired: they share their resamples, and a difference is
taken repeat by repeat.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int64

from bharateo.evaluation.intervals import interval, resampled_blocks
from bharateo.evaluation.scores import CLASS_MEANS, class_metrics, mean_iou, one_block_classes
from bharateo.landcover import BHARATEO_CLASSES
from bharateo.results import METRICS, Compared, ComparedScore, MeanScore

Confusions = Int64[np.ndarray, "repeat block true predicted"]
"""Counts of (true, predicted) classes of a cell, for every repeat and every block of ground."""

LogLosses = Float[np.ndarray, "repeat block"]
"""Summed over the examples of every repeat and block."""

CLASS_NAMES = tuple(each.name for each in BHARATEO_CLASSES)


@dataclass(frozen=True)
class ResampledScores:
    """Every metric for every repeat, and the same on resampled ground.

    ``num_blocks`` are those with examples; ``one_block`` the classes of the means over classes that
    lie in one of them only.
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
        counted: Bool[np.ndarray, " true"] | None = None,
        log_loss: LogLosses | None = None,
        iou: bool = False,
    ) -> ResampledScores:
        """The scores of confusion matrices; ``times`` says how often resamples take each block.

        ``counted`` are the classes of means over classes, None: all that occur. With the sums of
        ``log_loss`` its mean is a score as well, and with ``iou`` the mean intersection over union.
        """
        whole = cells.sum(1)
        # As floats, which are exact up to 2**53, the product takes a tenth of the time.
        drawn = times.astype(float)
        resampled = np.tensordot(drawn, cells.astype(float), (1, 1))
        found = class_metrics(whole, counted=counted)
        again = class_metrics(resampled, whole, counted)
        if log_loss is not None:
            found["log_loss"] = log_loss.sum(1) / whole.sum((1, 2))
            again["log_loss"] = drawn @ log_loss.T / resampled.sum((2, 3))
        if iou:
            found["mean_iou"] = mean_iou(whole, counted=counted)
            again["mean_iou"] = mean_iou(resampled, whole, counted)
        of_means = cells[0] if counted is None else cells[0] * counted[:, None]
        alone = one_block_classes(of_means, classes)
        return cls(found, again, int(cells[0].any((1, 2)).sum()), alone, unit)

    def minus(self, other: ResampledScores) -> ResampledScores:
        """Differences of what both have; one of one repeat stands against every repeat of the
        other.
        """
        both = [name for name in self.whole if name in other.whole]
        return ResampledScores(
            {name: self.whole[name] - other.whole[name] for name in both},
            {name: self.resampled[name] - other.resampled[name] for name in both},
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
