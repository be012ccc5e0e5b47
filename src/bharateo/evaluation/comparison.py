"""Scores of several trainings of a cell, beside those of the base cell, with intervals.

An interval covers both the ground (blocks are drawn with replacement) and the training (so are
seeds). Few seeds drawn with replacement vary too little, by (n - 1) / n in variance, so a draw's
deviation from the mean over all seeds is widened by the root of n / (n - 1). Source: Efron and
Tibshirani 1993, "An Introduction to the Bootstrap", section 5.3 (the plug-in variance).
Cells are paired: a draw takes the same blocks and the same seeds of both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int64

from bharateo.evaluation.scores import LEVEL, NUM_RESAMPLES, class_metrics

METRICS = ("accuracy", "balanced_accuracy", "macro_f1")

Confusions = Int64[np.ndarray, "seed block true predicted"]
"""Counts of (true, predicted) classes of a cell, for every seed and every block of ground."""


def compared(cells: Mapping[str, Confusions], base: str, seed: int = 0) -> dict[str, Any]:
    """Every cell's scores and their differences to the base cell's, as plain JSON by cell.

    All cells hold the same seeds and the same blocks, in the same order.
    """
    num_seeds, num_blocks = cells[base].shape[:2]
    rng = np.random.default_rng(seed)
    blocks = rng.multinomial(num_blocks, np.full(num_blocks, 1 / num_blocks), NUM_RESAMPLES)
    seeds = rng.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), NUM_RESAMPLES)
    whole = {name: class_metrics(counts.sum(1)) for name, counts in cells.items()}
    times = blocks.astype(np.float64)  # products of integers are slow
    drawn = {
        name: class_metrics(np.tensordot(times, counts.astype(np.float64), (1, 1)))
        for name, counts in cells.items()
    }
    return {
        name: {
            metric: _scores(whole[name][metric], drawn[name][metric], seeds)
            | _difference(
                whole[name][metric] - whole[base][metric],
                drawn[name][metric] - drawn[base][metric],
                seeds,
            )
            for metric in METRICS
        }
        for name in cells
    }


def _scores(
    whole: Float[np.ndarray, " seed"],
    drawn: Float[np.ndarray, "draw seed"],
    seeds: Int64[np.ndarray, "draw seed"],
) -> dict[str, Any]:
    return {
        "mean": float(whole.mean()),
        "ci95": interval(drawn, seeds),
        "per_seed": whole.tolist(),
    }


def _difference(whole: np.ndarray, drawn: np.ndarray, seeds: np.ndarray) -> dict[str, Any]:
    return {"against_base": float(whole.mean()), "against_base_ci95": interval(drawn, seeds)}


def interval(
    drawn: Float[np.ndarray, "draw seed"], seeds: Int64[np.ndarray, "draw seed"]
) -> list[float]:
    """The 95 % interval of the mean over seeds, of ``drawn`` values of resampled ground.

    ``seeds`` says how often each draw took each seed.
    """
    num_seeds = drawn.shape[1]
    mean = drawn.mean(1)
    deviation = (seeds * drawn).sum(1) / num_seeds - mean
    widened = mean + deviation * (num_seeds / max(num_seeds - 1, 1)) ** 0.5
    low, high = np.quantile(widened, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return [float(low), float(high)]


def header(factors: Sequence[str]) -> list[str]:
    """The columns of ``rows``."""
    names = [metric.replace("_", " ").replace("f1", "F1") for metric in METRICS]
    columns = [factor.rpartition(".")[2] for factor in factors]
    return [*columns, *names, f"{names[-1]} against base"]


def rows(record: Mapping[str, Any]) -> list[list[str]]:
    """The table of a finished ablation, a row a cell, the base first."""
    table = []
    for cell in record["cells"]:
        scores = cell["scores"]
        last = scores[METRICS[-1]]
        table.append(
            [
                *(str(value) for value in cell["settings"].values()),
                *(shown(scores[name]["mean"], scores[name]["ci95"]) for name in METRICS),
                "base"
                if cell["name"] == record["base"]
                else shown(last["against_base"], last["against_base_ci95"], "+"),
            ]
        )
    return table


def shown(value: float, ci95: Sequence[float], sign: str = "") -> str:
    """A number with its interval."""
    return f"{value:{sign}.3f} [{ci95[0]:{sign}.3f}, {ci95[1]:{sign}.3f}]"


def markdown(record: Mapping[str, Any]) -> str:
    """The table of a finished ablation with what is needed to read it."""
    columns = header(record["factors"])
    lines = [columns, ["---"] * len(columns), *rows(record)]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"# Ablation on {record['dataset']['name']}\n\n{explained(record)}\n\n{table}\n"


def explained(record: Mapping[str, Any]) -> str:
    """What the numbers of the table are, in a few sentences."""
    seeds, probe = record["seeds"], record["probe"]
    one = "one seed, so the intervals cover the ground alone" if len(seeds) == 1 else ""
    return (
        f"Frozen features of {len(record['cells'])} trainings "
        f"({one or f'each with {len(seeds)} seeds'}), probed patch by patch: a linear probe on "
        f"{probe['num_train']:,} labelled patches of the train split, its regularisation chosen on "
        f"val, scored on {probe['num_test']:,} patches in {probe['num_blocks']} blocks of test "
        "ground. In brackets: 95 % intervals over blocks and seeds, drawn with replacement. "
        "Differences to the base are paired by seed and block."
    )
