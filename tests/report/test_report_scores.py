import pytest
from made_up_run import METRICS, split_scores, typed

from bharateo.report import scores as said


def test_a_model_that_beats_the_copy_beyond_chance_is_said_to():
    text = said.verdict(typed(split_scores((0.041, 0.801))), METRICS)
    assert text.startswith("The model beats the copy on both.")
    assert "beyond chance" in text


def test_a_model_that_loses_is_said_to_lose():
    text = said.verdict(typed(split_scores((0.071, 0.70))), METRICS)
    assert text.startswith("The model loses to the copy on both")


def test_better_on_one_and_worse_on_the_other_is_told_apart():
    text = said.verdict(typed(split_scores((0.041, 0.70))), METRICS)
    assert "worse on patch classes, better on pixels" in text


def test_a_difference_whose_interval_spans_zero_may_be_chance():
    text = said.verdict(typed(split_scores((0.041, 0.76))), METRICS)
    assert "For patch classes the 95 % interval of the difference spans zero" in text
    assert "beyond chance" not in text


def test_metrics_without_an_interval_are_named_with_the_reason():
    scores = split_scores()
    assert said.no_intervals(typed(scores), METRICS) == []
    scores["model"]["no_interval"] = {"esa_macro_f1_masked": "water lies in one block only"}
    assert said.no_intervals(typed(scores), METRICS) == [
        "no interval of Macro F1, masked (water lies in one block only)"
    ]
    reason = "too few blocks: 4 of them, an interval needs 5"
    scores["model"]["no_interval"] = {metric.name: reason for metric in METRICS}
    assert said.no_intervals(typed(scores), METRICS) == [f"no interval ({reason})"]


def test_without_intervals_chance_is_not_excluded():
    scores = split_scores()
    scores["model_against_nearest_visible"] = {"esa_acc_masked_gain": 0.05}
    assert "chance is not excluded" in said.verdict(typed(scores), METRICS)


def test_equal_as_printed_is_equal_whatever_the_last_digits():
    scores = split_scores((0.0600001, 0.7500001))
    assert said.verdict(typed(scores), METRICS).startswith("The model and the copy come out equal.")


def test_a_rule_that_beats_both_is_named():
    scores = split_scores((0.058, 0.801))
    text = said.verdict(typed(scores), METRICS)
    assert "bilinear fill, 0.0550 on pixels" in text
    assert "bilinear" not in said.verdict(typed(split_scores()), METRICS)


def test_nothing_measured_is_said_not_guessed():
    scores = split_scores()
    for one in (scores["model"], *scores["baselines"].values()):
        one.update(dict.fromkeys(one))
    assert "cannot be compared" in said.verdict(typed(scores), METRICS)
    assert all(
        cell is None for row in said.metric_rows(typed(scores), METRICS) for cell in row.cells
    )


def test_the_best_value_of_a_column_is_marked_and_ties_are_marked_together():
    scores = split_scores((0.041, 0.801))
    scores["baselines"]["bilinear"]["esa_acc_masked"] = 0.80101
    rows = {row.method: row for row in said.metric_rows(typed(scores), METRICS)}
    column = [metric.name for metric in METRICS].index("esa_acc_masked")
    marked = {method for method, row in rows.items() if row.cells[column].best}
    assert marked == {"model", "bilinear"}
    mae = [metric.name for metric in METRICS].index("masked_mae")
    assert {m for m, row in rows.items() if row.cells[mae].best} == {"model"}


def test_columns_with_visible_patches_are_not_ranked():
    rows = said.metric_rows(typed(split_scores()), METRICS)
    for place, metric in enumerate(METRICS):
        if metric.name in ("esa_acc", "esa_acc_visible"):
            assert not any(row.cells[place].best for row in rows)


def test_the_copy_comes_right_below_the_model_and_unknown_baselines_last():
    scores = split_scores()
    scores["baselines"]["brand_new"] = scores["baselines"]["majority"]
    order = list(said.methods(typed(scores)))
    assert order[:2] == ["model", "nearest_visible"]
    assert order[-1] == "brand_new"
    assert said.method_name("brand_new") == "brand new"


def test_confusion_shows_the_classes_that_occur_with_shares_of_their_row():
    shown = said.confusion(typed(split_scores()))
    assert [name for name, _ in shown["columns"]] == ["tree", "cropland", "built up"]
    cropland = shown["rows"][1]
    assert cropland["num"] == 48
    assert [cell["num"] for cell in cropland["cells"]] == [0, 41, 7]
    assert [cell["share"] for cell in cropland["cells"]] == pytest.approx([0, 41 / 48, 7 / 48])
    assert [cell["right"] for cell in cropland["cells"]] == [False, True, False]


def test_winning_on_common_classes_only_is_told():
    scores = split_scores()
    assert "common classes only" not in said.verdict(typed(scores), METRICS)
    scores["model"]["esa_balanced_acc_masked"] = 0.4
    text = said.verdict(typed(scores), METRICS)
    assert "the copy is ahead (55.0 % against 40.0 %)" in text
