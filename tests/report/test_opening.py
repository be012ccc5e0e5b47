"""The first screen: what is won with its baseline, and where it loses, why and what next."""

import re

import numpy as np
import pandas as pd
import pytest
from made_up_run import METRICS, split_scores, typed

from bharateo.chips.store import Dataset
from bharateo.landcover import BHARATEO_CLASSES
from bharateo.report import html, opening, scores
from bharateo.sensor import SENTINEL2_L1C, WORLDCOVER_PALETTE


@pytest.fixture
def dataset(make_dataset):
    return make_dataset(WORLDCOVER_PALETTE)


def headline(model, **change):
    own = split_scores(model)
    own["baselines"]["bilinear"].update(change)
    return opening.headline(scores.comparisons(typed(own), METRICS))


def test_the_headline_is_what_is_won_beyond_chance():
    assert (
        headline((0.048, 0.70))
        == "20 % less error on hidden pixels than a copy of the nearest patch"
    )
    assert (
        headline((0.071, 0.81))
        == "6.0 points more of the hidden patch classes right than a copy of the nearest patch"
    )
    assert headline((0.059, 0.81), masked_mae=0.1).startswith("6.0 points")  # pixels: by chance
    assert headline((0.059, 0.70), masked_mae=0.1).endswith(", perhaps by chance")


def test_a_win_over_the_copy_alone_is_not_sold_as_one():
    said = headline((0.057, 0.70))  # a bilinear fill reaches 0.055
    assert said == "Hidden pixels: better than a copy of the nearest patch, not than bilinear fill"


def test_a_rule_that_does_as_well_is_named_beside_the_win():
    own = split_scores((0.055, 0.70))
    pixels = scores.comparisons(typed(own), METRICS)[1]
    assert opening.result(pixels).endswith("; bilinear fill, which learns nothing, does as well")
    assert "bilinear" not in opening.result(scores.comparisons(typed(split_scores()), METRICS)[1])


def test_nothing_won_is_said_as_plainly():
    assert headline((0.071, 0.70)) == "Not yet better than a copy of the nearest visible patch"
    assert headline((0.06, 0.75), masked_mae=0.07).startswith("No better and no worse")
    assert opening.headline([]) == "No hidden patch could be scored"


def losses(dataset, make_run, test, train=(0.071, 0.70), history=None):
    """What is lost by a run that reaches so much on test and on train ground."""
    splits = {"test": split_scores(test), "train": split_scores(train)}
    files = make_run(dataset, splits=splits)
    flat = [{"epoch": i, "rec_smooth_l1": 0.1, "esa_ce": 0.7} for i in range(1, 11)]
    return opening.losses(
        files.contract, dataset, files.evaluation, flat if history is None else history
    )


def relabelled(dataset, share):
    """The dataset with another share of labelled pixels."""
    other = Dataset(dataset.path, dataset.info)
    other.chips["labelled_fraction"] = share
    return other


def test_where_nothing_is_lost_nothing_is_explained(dataset, make_run):
    assert losses(dataset, make_run, (0.041, 0.81)) == []


def test_each_loss_has_two_sentences(dataset, make_run):
    lost = losses(dataset, make_run, (0.071, 0.70))
    assert [one.what.split(":")[0] for one in lost] == ["Patch classes", "Pixels"]
    assert "70.0 %, against 75.0 % for nearest-visible copy" in lost[0].what
    for one in lost:
        for said in (one.why, one.what_next):
            assert len(re.findall(r"[.](?= [A-Z]|$)", said)) == 1


def test_a_rule_that_is_better_than_the_model_is_a_loss(dataset, make_run):
    (lost,) = losses(dataset, make_run, (0.057, 0.81))
    assert lost.what == "Pixels: 0.0570, against 0.0550 for bilinear fill"


def why(lost, subject):
    return next(one for one in lost if one.what.startswith(subject))


def test_ground_learnt_by_heart_is_told_by_the_training_ground(dataset, make_run):
    lost = why(losses(dataset, make_run, (0.071, 0.81), (0.03, 0.9)), "Pixels")
    assert "it has learnt its" in lost.why and "0.0300 against 0.0600" in lost.why
    assert "more places" in lost.what_next


def test_a_loss_that_still_falls_asks_for_more_epochs(dataset, make_run):
    falling = [{"epoch": i, "rec_smooth_l1": 1 / i, "esa_ce": 0.7} for i in range(1, 11)]
    lost = losses(dataset, make_run, (0.071, 0.70), history=falling)
    assert (
        "stopped early, after 3 epochs: its training loss still fell by 20 %"
        in why(lost, "Pix").why
    )
    assert "--epochs 12" in why(lost, "Pixels").what_next
    assert "stopped early" not in why(lost, "Patch").why
    once = losses(dataset, make_run, (0.071, 0.70), history=falling[:1])
    assert all(one.why == "It stopped early, after 3 epochs." for one in once)


def test_few_labels_explain_classes_and_no_pixels(dataset, make_run):
    lost = losses(relabelled(dataset, 0.25), make_run, (0.071, 0.70))
    assert "Only 25 % of the pixels" in why(lost, "Patch").why
    assert "--set heads.landcover.weight=0.8" in why(lost, "Patch").what_next
    assert "label" not in why(lost, "Pixels").why


def test_ground_of_one_kind_leaves_nothing_to_win(dataset, make_run):
    test = split_scores((0.041, 0.9))
    test["baselines"]["nearest_visible"]["esa_acc_masked"] = 0.95
    files = make_run(dataset, splits={"test": test})
    (lost,) = opening.losses(files.contract, relabelled(dataset, 1.0), files.evaluation, [])
    assert "a copy is right for 95.0 %" in lost.why


def test_little_ground_is_the_last_reason_known(dataset, make_run, monkeypatch):
    lost = why(losses(dataset, make_run, (0.071, 0.81)), "Pixels")
    assert re.search(r"trained on \d+ training squares of 64 px, 0\.\d million pixels", lost.why)
    monkeypatch.setattr(opening, "LITTLE_GROUND", 0)
    lost = why(losses(dataset, make_run, (0.071, 0.81)), "Pixels")
    assert "do not say" in lost.why and "bharateo ablate" in lost.what_next


def test_on_other_ground_it_is_the_ground(dataset, make_run):
    files = make_run(dataset, splits={"test": split_scores((0.071, 0.70))}, own_dataset=False)
    trained = files.contract.dataset.model_copy(update={"places": "delhi_ncr"})
    contract = files.contract.model_copy(update={"dataset": trained})
    lost = opening.losses(contract, dataset, files.evaluation, files.history)
    assert len(lost) == 2
    assert all("trained on other ground (delhi_ncr)" in one.why for one in lost)


def test_the_first_screen_has_the_picture_the_result_and_the_ground(
    make_dataset, make_run, make_example
):
    dataset = make_dataset(SENTINEL2_L1C)
    page = html.article(make_run(dataset), dataset, [make_example(dataset)])
    first = page.split('<aside class="note"')[0]
    assert "<h1>32 % less error on hidden pixels" in first or "<h1>5.1 points more" in first
    for label in ("what it was shown", "what it made of it", "what is there", "held out"):
        assert f'<span class="label">{label}' in first or label in first
    assert re.search(r"first, 2[78]\.\d\d° N 77\.\d\d° E|second, 2[78]\.\d\d° N 78", first)
    assert f"{dataset.sensor.title} over first and second." in first
    assert "95 % interval" in first


def test_a_page_without_a_picture_has_its_headline_all_the_same(dataset, make_run):
    page = html.article(make_run(dataset), dataset, [])
    assert "<h1>" in page and 'class="hero"' not in page


def test_classes_are_called_by_what_the_dataset_holds(make_dataset, make_run, make_example):
    dataset = make_dataset(WORLDCOVER_PALETTE)  # it has shrub, and neither grass nor wetland
    page = html.article(make_run(dataset), dataset, [make_example(dataset)])
    assert "grass shrub" not in page and "mangrove" not in page
    legend = page.split('aria-label="Land-cover classes"')[1].split("</ul>")[0]
    names = re.findall(r"</span>([a-z ]+)</li>", legend)
    assert names == ["tree", "cropland", "shrub", "built up", "water", "no data or no label"]
    assert len(names) < len(BHARATEO_CLASSES)


class Ground:
    """Chips of two blocks, as a table says that they are."""

    sensor = SENTINEL2_L1C

    def __init__(self, valid, scene, **provenance):
        self.info = {"regions": [{"provenance": {"image": provenance}}]}
        split = ["test", "test", "train"]
        columns = {"split": split, "block": ["a/0-0", "a/0-1", "a/0-2"], "scene": scene}
        self.chips = pd.DataFrame({**columns, "valid_fraction": valid})


def test_held_out_ground_under_cloud_is_told_where_a_mask_knows_it():
    said = opening.cloud_note(Ground([0.9, 0.5, 0.0], ["s"] * 3), "test")
    assert said.startswith("30 % of the test ground lies under cloud")
    assert "block a/0-1 (50 %)" in said
    assert opening.cloud_note(Ground([1.0, 0.99, 0.0], ["s"] * 3), "test") == ""
    source = Ground([0.9, 0.5, 0.0], [None] * 3, cloud="B01 above 0.19")
    assert opening.cloud_note(source, "test") == said


def test_without_a_mask_of_clouds_none_is_claimed_or_denied():
    said = opening.cloud_note(Ground([1.0, 1.0, 1.0], [None] * 3), "test")
    assert "without a mask of clouds" in said and "%" not in said
    palette = Ground(np.ones(3), [None] * 3)
    palette.sensor = WORLDCOVER_PALETTE
    assert opening.cloud_note(palette, "test") == ""
    assert opening.cloud_note(Ground([0.1, 0.1, 0.1], ["s"] * 3), "train") == ""
