"""Macro-F1 is one thing everywhere, and no interval stands where none can hold."""

import numpy as np
import pytest
from made_up_sums import NOTHING, table_of, tasks
from sklearn.metrics import f1_score

from bharateo.evaluation import scores
from bharateo.evaluation.comparison import compared
from bharateo.evaluation.scores import metrics, report, resample
from bharateo.inference.labels import LabelAgreement

TASKS = tasks()


def ground(num_blocks, seed=0):
    """Two classes everywhere, recognised better in some blocks than in others."""
    rng = np.random.default_rng(seed)
    cells = np.zeros((num_blocks, 8, 8), np.int64)
    for of_block in cells:
        right = rng.binomial(100, rng.beta(7, 3, 2))
        of_block[0, :2] = right[0], 100 - right[0]
        of_block[1, :2] = 100 - right[1], right[1]
    return cells


def with_a_rare_class(num_blocks, blocks, recognised=0):
    """Three patches of water in each of these blocks, so many of them recognised."""
    cells = ground(num_blocks)
    cells[list(blocks), 5, 0] = 3 - recognised
    cells[list(blocks), 5, 5] = recognised
    return cells


def test_macro_f1_is_over_the_classes_of_the_reference_wherever_it_is_computed():
    cells = ground(1)[0]
    cells[0, 6] = 30  # taken for a class that does not occur
    true, predicted = (each.repeat(cells.reshape(-1)) for each in np.indices((8, 8)).reshape(2, -1))
    expected = f1_score(true, predicted, labels=[0, 1], average="macro")
    assert report(table_of([cells]), TASKS, "key").esa_macro_f1_masked == pytest.approx(expected)
    assert compared({"a": cells[None, None]}, "a")["a"].macro_f1.mean == pytest.approx(expected)
    assert LabelAgreement.of("labels", cells, NOTHING[0]).macro_f1 == pytest.approx(expected)
    assert scores.macro_f1(true, predicted) == pytest.approx(expected)


@pytest.mark.parametrize("recognised", [0, 3])
def test_resamples_that_lack_a_class_still_measure_the_same_mean(recognised):
    """A third of them lack the one block with water; the other classes are easier, or harder."""
    table = table_of(with_a_rare_class(9, [4], recognised))
    whole = {name: sums.sum(0) for name, sums in table.items()}
    drawn = metrics(resample(table, "key"), TASKS, whole)
    for name in ("esa_macro_f1_masked", "esa_balanced_acc_masked"):
        assert drawn[name].mean() == pytest.approx(metrics(whole, TASKS)[name], abs=0.005), name


def test_a_mean_over_classes_of_which_one_lies_in_one_block_has_no_interval():
    record = report(table_of(with_a_rare_class(9, [4])), TASKS, "key")
    for name in ("esa_macro_f1_masked", "esa_balanced_acc_masked"):
        assert record.value(name) is not None
        assert record.interval(name) is None
        assert record.no_interval[name] == "water lies in one block only"
    assert record.esa_acc_masked_ci95
    assert report(table_of(with_a_rare_class(9, [4, 6])), TASKS, "key").esa_macro_f1_masked_ci95


@pytest.mark.parametrize("num_blocks", [1, 2, 4])
def test_too_few_blocks_have_no_interval_and_the_record_says_why(num_blocks):
    record = report(table_of(ground(num_blocks)), TASKS, "key")
    assert all(value is None for name, value in record if name.endswith("_ci95"))
    assert f"too few blocks: {num_blocks} of them" in record.no_interval["masked_mae"]
    assert "needs 5" in record.no_interval["esa_acc_masked"]


def test_blocks_without_a_label_are_no_evidence_of_classes():
    cells = ground(7)
    cells[2:] = 0
    record = report(table_of(cells), TASKS, "key")
    assert record.esa_acc_masked_ci95 is None
    assert record.no_interval["esa_acc_masked"].startswith("too few blocks: 2")
    assert record.masked_mae_ci95


@pytest.mark.slow
@pytest.mark.parametrize("num_blocks", [5, 9])
def test_intervals_of_few_blocks_hold_the_truth_about_as_often_as_they_say(num_blocks):
    """A plain percentile bootstrap covers 0.83 from five blocks and 0.87 from nine."""
    covered = 0
    for seed in range(300):
        record = report(table_of(ground(num_blocks, seed)), TASKS, str(seed))
        low, high = record.esa_acc_masked_ci95
        covered += low <= 0.7 <= high
    assert covered / 300 >= 0.90
