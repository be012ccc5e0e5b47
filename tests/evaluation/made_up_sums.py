"""Sums of predictors by block, made up: as the two heads of the presets measure them."""

import numpy as np

from bharateo.evaluation.scores import BlockSums, Scoring
from bharateo.models.heads import HEADS

NOTHING = np.zeros((8, 8), np.int64)
SUMS = {"rec_smooth_l1": (3.0, 8.0), "masked_mae": (4.0, 8.0), "esa_ce": (5.0, 10.0)}
WEIGHTS = {"pixels": 1.0, "landcover": 0.2}


def tasks(weights=WEIGHTS):
    return {name: Scoring(weight, HEADS[name]) for name, weight in weights.items()}


def chip_sums(masked=NOTHING, visible=NOTHING, **sums):
    """One chip's, with these confusion matrices of masked and visible tokens."""

    def accuracy(cells):
        return np.trace(cells), cells.sum()

    pairs = {
        **SUMS,
        "esa_acc": accuracy(masked + visible),
        "esa_acc_masked": accuracy(masked),
        "esa_acc_visible": accuracy(visible),
        **sums,
    }
    return {
        **{name: np.array(pair, float) for name, pair in pairs.items()},
        "confusion_masked": masked,
    }


def table_of(masked, **sums):
    """A block for every confusion matrix of masked tokens."""
    table = BlockSums()
    for number, cells in enumerate(masked):
        table.add(str(number), chip_sums(cells, **sums))
    return table.table([str(number) for number in range(len(masked))])
