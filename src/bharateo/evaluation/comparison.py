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

from bharateo.evaluation.intervals import interval, resampled_blocks, why_none
from bharateo.evaluation.scores import CLASS_MEANS, class_metrics, one_block_classes
from bharateo.handover.card import markdown_text
from bharateo.landcover import BHARATEO_CLASSES
from bharateo.results import METRICS, Ablation, Compared, ComparedScore

Confusions = Int64[np.ndarray, "repeat block true predicted"]
"""Counts of (true, predicted) classes of a cell, for every repeat and every block of ground."""

CLASS_NAMES = tuple(each.name for each in BHARATEO_CLASSES)


@dataclass(frozen=True)
class Scores:
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
    ) -> Scores:
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

    def minus(self, other: Scores) -> Scores:
        """Differences; a row of one repeat stands against every repeat of the other."""
        return Scores(
            {name: self.whole[name] - other.whole[name] for name in METRICS},
            {name: self.resampled[name] - other.resampled[name] for name in METRICS},
            min(self.num_blocks, other.num_blocks),
            tuple(sorted({*self.one_block, *other.one_block})),
            self.unit,
        )

    def mean(self, metric: str) -> float:
        """A metric's mean over the repeats."""
        return float(self.whole[metric].mean())

    def ci95(self, metric: str) -> tuple[float, float] | None:
        """Its interval over ground and repeats, None where none can hold."""
        if self.no_interval(metric):
            return None
        return interval(self.whole[metric], self.resampled[metric], self.num_blocks)

    def no_interval(self, metric: str) -> str | None:
        """Why it has no interval, None where it has one."""
        one_block = self.one_block if metric in CLASS_MEANS else ()
        return why_none(self.num_blocks, one_block, self.unit)


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
    scores = {name: Scores.of(counts, times, classes, unit) for name, counts in cells.items()}
    found = {}
    for name, own in scores.items():
        difference = own.minus(scores[base])
        found[name] = Compared(**{
            metric: ComparedScore(
                mean=own.mean(metric),
                ci95=own.ci95(metric),
                per_seed=own.whole[metric].tolist(),
                against_base=difference.mean(metric),
                against_base_ci95=difference.ci95(metric),
                no_interval=difference.no_interval(metric),
            )
            for metric in METRICS
        })  # fmt: skip
    return found


def header(factors: Sequence[str]) -> list[str]:
    """The columns of ``rows``."""
    names = [metric.replace("_", " ").replace("f1", "F1") for metric in METRICS]
    columns = [factor.rpartition(".")[2] for factor in factors]
    return [*columns, *names, f"{names[-1]} against base"]


def rows(record: Ablation) -> list[list[str]]:
    """The table of a finished ablation, a row a cell, the base first."""
    table = []
    for cell in record.cells:
        scores = [cell.scores.score(metric) for metric in METRICS]
        table.append(
            [
                *(str(value) for value in cell.settings.values()),
                *(shown(score.mean, score.ci95) for score in scores),
                "base"
                if cell.name == record.base
                else shown(scores[-1].against_base, scores[-1].against_base_ci95, "+"),
            ]
        )
    return table


def shown(value: float, ci95: Sequence[float] | None, sign: str = "") -> str:
    """A number with its interval, where it has one."""
    return f"{value:{sign}.3f}" + (f" [{ci95[0]:{sign}.3f}, {ci95[1]:{sign}.3f}]" if ci95 else "")


def markdown(record: Ablation) -> str:
    """The table of a finished ablation with what is needed to read it."""
    columns = header(record.factors)
    escaped = [[markdown_text(cell) for cell in line] for line in (columns, *rows(record))]
    lines = [escaped[0], ["---"] * len(columns), *escaped[1:]]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    title = f"# Ablation on {markdown_text(record.dataset.name)}"
    return f"{title}\n\n{markdown_text(explained(record))}\n\n{table}\n"


def explained(record: Ablation) -> str:
    """What the numbers of the table are, in a few sentences."""
    seeds, probe = record.seeds, record.probe
    one = "one seed, so the intervals cover the ground alone" if len(seeds) == 1 else ""
    reasons = {
        cell.scores.score(metric).no_interval: None for cell in record.cells for metric in METRICS
    }
    without = "; ".join(filter(None, reasons))
    return (
        f"Frozen features of {len(record.cells)} trainings "
        f"({one or f'each with {len(seeds)} seeds'}), probed patch by patch: a linear probe on "
        f"{probe.num_train:,} labelled patches of the train split, its regularisation chosen on "
        f"val, scored on {probe.num_test:,} patches in {probe.num_blocks} blocks of test "
        "ground. In brackets: 95 % intervals over resampled blocks, and over seeds by Student's "
        "t. Differences to the base are paired by seed and block."
        + (f" Where there is no interval: {without}." if without else "")
    )
