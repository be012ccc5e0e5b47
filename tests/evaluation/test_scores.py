import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from made_up_sums import NOTHING, SUMS, chip_sums, table_of, tasks
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, f1_score

from bharateo.evaluation.intervals import NUM_RESAMPLES
from bharateo.evaluation.scores import BlockSums, against, confusion, metrics, report, resample
from bharateo.landcover import IGNORE, NUM_CLASSES

TASKS = tasks()

confusions = arrays(np.int64, (8, 8), elements=st.sampled_from([0, 0, 0, 1, 2, 7])).filter(
    lambda cells: cells.any()
)


def pairs_of(cells):
    """True and predicted classes with this confusion matrix."""
    true, predicted = np.indices(cells.shape).reshape(2, -1)
    return true.repeat(cells.reshape(-1)), predicted.repeat(cells.reshape(-1))


def row_of(masked=NOTHING, visible=NOTHING, **sums):
    return chip_sums(masked, visible, **sums)


@given(confusions)
def test_scores_of_classes_are_scikit_learns(cells):
    true, predicted = pairs_of(cells)
    got = metrics(row_of(cells), TASKS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it grumbles at classes nobody has
        balanced = balanced_accuracy_score(true, predicted)
    macro_f1 = f1_score(true, predicted, labels=np.unique(true), average="macro", zero_division=0)
    assert got["esa_balanced_acc_masked"] == pytest.approx(balanced)
    assert got["esa_macro_f1_masked"] == pytest.approx(macro_f1)
    assert got["esa_acc_masked"] == pytest.approx((true == predicted).mean())


@given(confusions)
def test_the_confusion_is_scikit_learns(cells):
    true, predicted = pairs_of(cells)
    order = np.random.default_rng(0).permutation(len(true))
    got = confusion(true[order], predicted[order])
    assert np.array_equal(got, confusion_matrix(true, predicted, labels=range(NUM_CLASSES)))


def test_tokens_without_a_label_are_not_counted():
    true = np.array([0, IGNORE, 3, IGNORE])
    assert confusion(true, np.array([0, 0, 4, 7])).sum() == 2
    assert not confusion(np.full(3, IGNORE), np.arange(3)).any()


def test_masked_and_visible_tokens_are_scored_apart():
    masked, visible = NOTHING.copy(), NOTHING.copy()
    masked[0, 0], masked[1, 0] = 3, 1
    visible[2, 2], visible[2, 5] = 1, 1
    got = metrics(row_of(masked, visible), TASKS)
    assert (got["esa_acc_masked"], got["esa_acc_visible"]) == (0.75, 0.5)
    assert got["esa_acc"] == pytest.approx(4 / 6)
    assert got["esa_balanced_acc_masked"] == 0.5


def test_metrics_are_ratios_of_sums():
    got = metrics(row_of(), TASKS)
    assert (got["rec_smooth_l1"], got["esa_ce"], got["masked_mae"]) == (0.375, 0.5, 0.5)
    assert got["loss"] == pytest.approx(0.375 + 0.2 * 0.5)


def test_the_loss_of_a_run_with_one_head_is_that_heads():
    assert metrics(row_of(), tasks({"pixels": 2.0}))["loss"] == pytest.approx(0.75)
    assert metrics(row_of(), tasks({"landcover": 0.2}))["loss"] == pytest.approx(0.1)


def test_a_run_is_scored_by_the_metrics_of_its_own_heads_alone():
    found = metrics(row_of(), tasks({"pixels": 1.0}))
    assert [*found] == ["loss", "rec_smooth_l1", "masked_mae"]


def test_where_there_is_nothing_to_measure_there_is_no_number():
    nothing = dict.fromkeys(SUMS, (0.0, 0.0))
    record = report(table_of([NOTHING], **nothing), TASKS, "key")
    assert record.no_interval == {}
    values = record.model_dump(exclude={"no_interval", "confusion_masked"})
    assert set(values.values()) == {None}


def test_chips_of_a_block_add_up():
    table = BlockSums()
    for block in ("a", "b", "a"):
        table.add(block, chip_sums(np.eye(8, dtype=np.int64)))
    for both in table.table(["a", "b"]).values():
        assert np.array_equal(both[0], 2 * both[1])
    assert list(table.rows) == ["a", "b"]


# Intervals.


def accuracy_table(right):
    """Ten masked tokens a block, so many of them right."""
    masked = np.zeros((len(right), 8, 8), np.int64)
    masked[:, 0, 0], masked[:, 0, 1] = right, 10 - np.asarray(right)
    return table_of(masked)


def test_blocks_are_drawn_whole_with_replacement():
    table = accuracy_table([0, 10, 3, 7])
    draws = resample(table, "key")
    assert draws["masked_mae"].shape == (NUM_RESAMPLES, 2)
    assert draws["confusion_masked"].shape == (NUM_RESAMPLES, 8, 8)
    assert (draws["masked_mae"][:, 1] == 4 * 8).all()  # always as many blocks as there are
    rights = {0 * a + 10 * b + 3 * c + 7 * (4 - a - b - c)
              for a in range(5) for b in range(5 - a) for c in range(5 - a - b)}  # fmt: skip
    assert set(draws["confusion_masked"][:, 0, 0].astype(int)) <= rights
    assert len(set(draws["confusion_masked"][:, 0, 0])) > 10


def test_resamples_of_a_known_case():
    """Two blocks, all right and all wrong: 0, 1/2, 1 in shares of 1/4, 1/2, 1/4."""
    table = accuracy_table([0, 10])
    assert report(table, TASKS, "key").esa_acc_masked == 0.5
    draws = metrics(resample(table, "key"), TASKS)["esa_acc_masked"]
    shares = [(draws == value).mean() for value in (0, 0.5, 1)]
    assert shares == pytest.approx([0.25, 0.5, 0.25], abs=0.05)


def test_the_interval_is_about_as_wide_as_theory_has_it():
    right = np.random.default_rng(1).integers(2, 10, 100)
    low, high = report(accuracy_table(right), TASKS, "key").esa_acc_masked_ci95
    error = (right / 10).std() / 10
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.1)
    assert low < right.mean() / 10 < high


@pytest.mark.slow
def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(5)
    covered = 0
    for trial in range(200):
        record = report(accuracy_table(rng.binomial(10, 0.7, 30)), TASKS, str(trial))
        low, high = record.esa_acc_masked_ci95
        covered += low <= 0.7 <= high
    assert 0.88 < covered / 200 < 0.99


def test_the_same_blocks_have_the_same_interval():
    table = accuracy_table([1, 5, 9, 4, 3])
    assert report(table, TASKS, "key") == report(table, TASKS, "key")
    one, two = (resample(table, key)["masked_mae"] for key in ("key", "other"))
    assert not np.array_equal(*(resample(table, key)["esa_acc"] for key in ("key", "other")))
    assert np.array_equal(one, two)  # as all blocks are alike in it


def test_one_block_has_no_interval():
    record = report(accuracy_table([7]), TASKS, "key")
    assert record.esa_acc_masked == 0.7
    assert all(value is None for name, value in record if name.endswith("_ci95"))


def test_every_metric_has_an_interval_beside_it():
    record = report(accuracy_table([1, 5]), TASKS, "key")
    there = {name for name, _ in record}
    names = {name for name in there if not name.endswith("_ci95")}
    names -= {"confusion_masked", "no_interval"}
    assert {f"{name}_ci95" for name in names} == {name for name in there if "ci95" in name}
    assert record.confusion_masked[0][:2] == [6, 14]


# The model beside a baseline.


def test_gain_and_ratio_are_of_the_same_blocks():
    ours, theirs = accuracy_table([8, 9, 6] * 2), accuracy_table([4, 8, 6] * 2)
    theirs["masked_mae"] = theirs["masked_mae"] * [2, 1]  # twice the absolute error
    record = against(ours, theirs, TASKS, "key")
    assert record.esa_acc_masked_gain == pytest.approx(5 / 30)
    assert record.masked_mae_ratio == 0.5
    assert record.masked_mae_ratio_ci95 == pytest.approx((0.5, 0.5))
    low, high = record.esa_acc_masked_gain_ci95
    assert 0 <= low < 5 / 30 < high <= 0.4


def test_a_model_is_as_good_as_itself():
    table = accuracy_table([8, 3, 6, 7, 2])
    record = against(table, table, TASKS, "key")
    assert record.esa_acc_masked_gain_ci95 == (0.0, 0.0)
    assert record.masked_mae_ratio_ci95 == (1.0, 1.0)
