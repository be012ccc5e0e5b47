import json
from dataclasses import replace

import geopandas
import numpy as np
import pytest
import shapely
from sklearn.metrics import balanced_accuracy_score, f1_score, log_loss

from bharateo.chips.store import Dataset
from bharateo.errors import ConfigError, ContractError, RegionError
from bharateo.evaluation import probe_table, probing
from bharateo.evaluation.comparison import ResampledScores
from bharateo.evaluation.features import Features
from bharateo.evaluation.intervals import resampled_blocks
from bharateo.evaluation.probe_table import MAJORITY, text_tables, verdict, worst_zone
from bharateo.evaluation.probes import LEAST_PROBABILITY, fit_linear
from bharateo.evaluation.probing import (
    Predictions,
    by_block,
    conditions,
    examples_of,
    few_labels,
    level_record,
    parse_budget,
    parts_folder,
    predictions,
    probe_run,
    some_of,
    table_rows,
)
from bharateo.evaluation.zones import OUTSIDE, Zoning
from bharateo.results import Most, ProbeRow, Probes, read_result
from bharateo.training.loop import pretrain
from bharateo.training.run import Run
from handover.tiny_run import tiny_run
from small_datasets import PLAN, many_bands, small_config, small_dataset

LINEAR, RIVAL = ProbeRow("encoder", "linear"), ProbeRow("band_statistics", "linear")
FEW = {"budgets": (2, "all"), "features": ("encoder", "band_statistics")}


@pytest.fixture(scope="module")
def run(reflectance_dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    return pretrain(reflectance_dataset, small_config(epochs=1), folder)


@pytest.fixture(scope="module", autouse=True)
def fewer_of_everything():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probing, "NUM_DRAWS", 2)
        patch.setattr("bharateo.evaluation.probes.NUM_TREES", 5)
        yield


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    return tmp_path_factory.mktemp("probes") / "probes.json"


@pytest.fixture(scope="module")
def record(run, reflectance_dataset, output):
    return probe_run(run, reflectance_dataset, output, **FEW)


def result(record, features, probe, budget, level="patch"):
    return next(
        found
        for found in record.levels[level].results
        if (found.features, found.probe, found.budget) == (features, probe, budget)
    )


# What is looked at.


@pytest.mark.parametrize(
    ("name", "chip_px", "side"),
    [("v0", 40, 48), ("seed", 40, 40), ("v0", 32, 32), ("v0", 48, 48)],
)
def test_whole_squares_are_probed_where_they_hold_one_chip_and_some_ground_more(
    reflectance_dataset, tmp_path, name, chip_px, side
):
    run = tiny_run(tmp_path, reflectance_dataset, name, chip_px=chip_px)
    assert conditions(run, reflectance_dataset, 0).chip_px == side
    per_square = (side // 8) ** 2 * (4 if chip_px == 32 else 1)
    chips = len(reflectance_dataset.indices("test"))
    for features in ("encoder", "band_statistics_context", "random_convolutions", MAJORITY):
        found = examples_of(run, reflectance_dataset, features, 0)["test"]
        assert 0.5 * per_square * chips < len(found["patch"].labels) <= per_square * chips


def test_an_encoders_vectors_may_be_the_mean_over_views(run, reflectance_dataset):
    assert conditions(run, reflectance_dataset, 0, "views").readout == "views"
    for features, same in (("encoder", False), ("random_encoder", False), ("log_energies", True)):
        plain, mean = (
            examples_of(run, reflectance_dataset, features, 0, readout)["test"]["patch"]
            for readout in ("token", "views")
        )
        np.testing.assert_array_equal(plain.labels, mean.labels)
        assert np.array_equal(plain.values, mean.values) == same


# What is written.


def test_the_record_is_what_is_written_and_nothing_else_is_left(record, output):
    assert json.loads(output.read_text()) == record.model_dump(mode="json")
    assert read_result(Probes, output, "probe") == record
    assert [path.name for path in output.parent.iterdir()] == ["probes.json"]


def test_every_row_has_every_budget_at_every_level(record):
    rows = [
        ("encoder", "linear"), ("encoder", "nearest"),
        ("band_statistics", "linear"), ("band_statistics", "nearest"),
        ("band_statistics", "forest"), ("majority", "majority"),
    ]  # fmt: skip
    for level in ("patch", "chip"):
        found = record.levels[level].results
        keys = [(one.features, one.probe, one.budget) for one in found]
        assert sorted(keys, key=str) == sorted(
            ((*row, budget) for row in rows for budget in (2, "all")), key=str
        )


def test_the_conditions_are_written(run, record, reflectance_dataset):
    assert record.own_dataset is True
    assert record.dataset.labels == "ESA WorldCover"
    assert record.pretraining_heads == {"pixels": 1.0, "landcover": 0.2}
    assert record.weights_sha256 == run.contract.weights.sha256
    for split, counted in record.levels["chip"].examples:
        chips = reflectance_dataset.chips[reflectance_dataset.chips.split == split]
        assert counted.num_chips == len(chips)
        assert counted.num_blocks == chips.block.nunique()
        assert sum(counted.per_class.values()) == counted.num_examples


def test_budgets_are_drawn_several_times_and_all_labels_once(record):
    for level in ("patch", "chip"):
        classes = record.levels[level].examples.train.per_class
        few = result(record, "encoder", "linear", 2, level)
        every = result(record, "encoder", "linear", "all", level)
        assert few.num_labels == [sum(min(2, num) for num in classes.values())] * 2
        assert every.num_labels == [sum(classes.values())]
        assert len(few.macro_f1.per_draw) == 2
        assert few.macro_f1.mean == pytest.approx(np.mean(few.macro_f1.per_draw))
    assert len({*result(record, "encoder", "linear", 2).macro_f1.per_draw}) > 1


def test_classes_that_a_level_tells_apart_are_told_apart(record):
    assert result(record, "band_statistics", "forest", "all").accuracy.mean > 0.9
    majority = result(record, "majority", "majority", "all")
    assert majority.balanced_accuracy.mean == pytest.approx(1 / len(majority.per_class))


def test_the_scores_are_scikit_learns(run, reflectance_dataset, record):
    examples = examples_of(run, reflectance_dataset, "encoder", 0)
    by_split = {split: found["patch"] for split, found in examples.items()}
    made = predictions(by_split, LINEAR, "all", 0)
    true, guess = by_split["test"].labels, made.classes[0]
    found = result(record, "encoder", "linear", "all")
    assert record.levels["patch"].rare_classes == {}
    assert found.accuracy.mean == pytest.approx((true == guess).mean())
    assert found.balanced_accuracy.mean == pytest.approx(balanced_accuracy_score(true, guess))
    scores = f1_score(true, guess, labels=np.unique(true), average=None, zero_division=0)
    assert found.macro_f1.mean == pytest.approx(scores.mean())
    assert [each.f1 for each in found.per_class.values()] == pytest.approx(scores)
    train, val = by_split["train"], by_split["val"]
    probe = fit_linear(train.values, train.labels, val.values, val.labels)
    for split, reached in (("test", found.log_loss.mean), ("val", found.val_log_loss)):
        given = np.maximum(probe.probabilities(by_split[split].values), LEAST_PROBABILITY)
        expected = log_loss(by_split[split].labels, given, labels=probe.classes)
        assert reached == pytest.approx(expected, rel=1e-4)


def test_rows_without_probabilities_have_no_log_loss(record):
    for found in record.levels["patch"].results:
        there = found.probe in ("linear", "majority")
        assert (found.log_loss is not None) == (found.val_log_loss is not None) == there
    shares = np.array([*record.levels["patch"].examples.train.per_class.values()])
    shares = shares / shares.sum()
    majority = result(record, "majority", "majority", "all")
    assert majority.val_log_loss == pytest.approx(-(shares * np.log(shares)).sum(), rel=0.2)


def test_the_humble_bar_is_chosen_on_validation_and_the_encoder_is_set_against_it(
    run, reflectance_dataset, tmp_path
):
    humble = ("band_statistics", "band_statistics_context", "log_energies")
    found = probe_run(
        run, reflectance_dataset, tmp_path / "p.json", budgets=(2, "all"), levels=("patch",),
        features=("encoder", "random_encoder", *humble),
    )  # fmt: skip
    level = found.levels["patch"]
    for budget in (2, "all"):
        reached = {name: result(found, name, "linear", budget).val_log_loss for name in humble}
        bar = level.bar(budget)
        assert bar.features == min(reached, key=reached.get)
        assert bar.val_log_loss == reached[bar.features]
        for probe in ("linear", "nearest"):
            against = [
                each.baseline for each in level.differences
                if (each.probe, each.budget) == (probe, budget)
            ]  # fmt: skip
            assert bar.row in against
    name = level.bar("all").features.replace("_", " ")
    assert f" the humble bar, a linear probe of {name} (" in verdict(
        found, "patch", "nearest", "all"
    )
    assert verdict(found, "patch", "linear", "all").index("the humble bar") < 70
    assert f"{name} (all labels)" in probe_table.bar_sentence(level)
    assert all(rows[-1][-1] == name for _, _, rows in text_tables(found))


def test_settings_are_never_chosen_by_looking_at_the_test_split(run, reflectance_dataset):
    examples = examples_of(run, reflectance_dataset, "band_statistics", 0)
    by_split = {split: found["patch"] for split, found in examples.items()}
    test = by_split["test"]
    other = by_split | {"test": replace(test, labels=test.labels[::-1].copy())}
    for row in table_rows(["band_statistics"]):
        first, again = (predictions(each, row, 2, 0) for each in (by_split, other))
        assert np.array_equal(first.classes, again.classes)
        assert np.array_equal(first.val_log_loss, again.val_log_loss, equal_nan=True)


# Draws of labels.


def test_few_labels_are_as_many_of_every_class_from_as_many_blocks_as_can_be():
    rng = np.random.default_rng(0)
    labels = np.repeat([1, 4, 6], [300, 40, 2])
    block = rng.choice(list("abcdef"), len(labels)).astype(object)
    chosen = few_labels(labels, block, 6, np.random.default_rng(1))
    assert np.bincount(labels[chosen]).tolist() == [0, 6, 0, 0, 6, 0, 2]
    for class_id in (1, 4):
        assert {*block[chosen][labels[chosen] == class_id]} == {*"abcdef"}
    assert len({*chosen}) == len(chosen)


def test_a_small_budget_is_part_of_a_larger_one_and_draws_differ():
    labels, block = np.repeat([0, 3], 100), np.tile(list("abcd"), 50).astype(object)
    small, large, other = (
        few_labels(labels, block, num, np.random.default_rng(seed))
        for num, seed in ((3, 5), (9, 5), (3, 6))
    )
    assert {*small} < {*large}
    assert {*small} != {*other}


def test_of_too_many_examples_some_are_drawn_without_regard_to_their_class():
    assert some_of(5, 9, 0).tolist() == [0, 1, 2, 3, 4]
    drawn = some_of(10_000, 1000, 0)
    assert len({*drawn}) == 1000
    assert np.array_equal(drawn, some_of(10_000, 1000, 0))
    assert drawn.mean() == pytest.approx(5000, rel=0.1)


# Intervals and differences.


def features_of(labels, block):
    none = np.zeros((len(labels), 0), np.float32)
    return Features(none, labels, block, np.arange(len(labels)))


def made(classes):
    """Predictions without probabilities."""
    none = np.full((1, len(classes)), np.nan, np.float32)
    return Predictions(classes[None], none, none[:, 0].astype(float), np.zeros(1), np.full(1, 9))


def wrong_in(labels, where):
    return np.where(where, (labels + 1) % 2, labels)


@pytest.fixture
def ground():
    """Forty blocks of 25 patches of two classes; the rival is wrong in every third patch."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 1000)
    block = np.repeat([f"b{i:02d}" for i in range(40)], 25).astype(object)
    return labels, block, rng.random(1000) < 0.33


def scored(ground, ours):
    labels, block, missed = ground
    results = {(LINEAR, "all"): made(ours), (RIVAL, "all"): made(wrong_in(labels, missed))}
    test = features_of(labels, block)
    return probes_of_patches(test, results, block)


def probes_of_patches(test, results, zone, fewest=10):
    """A record of patches alone, with all labels."""
    level = level_record({"train": test, "test": test}, results, zone, fewest, 0)
    return Probes(
        pretraining_heads={}, own_dataset=True, most=Most(train_examples=1), draws_per_budget=1,
        features={}, budgets=["all"], zones="block", skipped={}, levels={"patch": level},
    )  # fmt: skip


def test_confusions_by_block_add_up(ground):
    labels, block, missed = ground
    number = np.unique(block.astype(str), return_inverse=True)[1]
    cells = by_block(labels, np.stack([labels, wrong_in(labels, missed)]), number, 40)
    assert cells.shape == (2, 40, 8, 8)
    assert (cells.sum((2, 3)) == 25).all()
    assert np.trace(cells[1].sum(0)) == (~missed).sum()
    assert cells[1, 3, 0, 1] == (missed & (number == 3) & (labels == 0)).sum()


def test_differences_are_paired_so_a_small_steady_gain_is_beyond_chance(ground):
    labels, _, missed = ground
    better = wrong_in(labels, missed & (np.arange(1000) % 10 > 0))
    record = scored(ground, better)
    ours, theirs = (r.macro_f1 for r in record.levels["patch"].results)
    assert ours.ci95[0] < theirs.ci95[1]  # the intervals themselves overlap
    difference = record.levels["patch"].differences[0].macro_f1
    assert difference.mean == pytest.approx(ours.mean - theirs.mean)
    assert difference.ci95[0] > 0
    assert ": the encoder beats band statistics (+0.0" in verdict(record, "patch", "linear", "all")


def test_losing_is_said(ground):
    labels, _, missed = ground
    record = scored(ground, wrong_in(labels, missed | (np.arange(1000) % 10 == 0)))
    assert "loses to band statistics (-0.0" in verdict(record, "patch", "linear", "all")


def test_what_may_be_chance_is_not_called_better(ground):
    labels, _, missed = ground
    swapped = missed.copy()
    swapped[:60] = missed[:60][::-1]
    record = scored(ground, wrong_in(labels, swapped))
    assert "neither beats nor loses to, by every measure, band" in verdict(
        record, "patch", "linear", "all"
    )


def test_one_block_has_no_interval(ground):
    labels, block, missed = ground
    record = scored((labels, np.full_like(block, "b"), missed), labels)
    assert record.levels["patch"].results[0].macro_f1.ci95 is None
    said = verdict(record, "patch", "linear", "all")
    assert "cannot be judged against band statistics" in said
    assert "No interval: too few blocks: 1" in said


def test_a_class_of_few_blocks_stands_beside_the_means_and_is_named(ground):
    labels, block, missed = ground
    labels[:25] = np.where(missed[:25], 5, labels[:25])
    record = scored((labels, block, missed), labels)
    level = record.levels["patch"]
    ours, theirs = level.results
    assert (level.classes, level.rare_classes) == (["tree", "cropland"], {"water": 1})
    assert ours.macro_f1.ci95 and ours.per_class["water"].num_blocks == 1
    means = [theirs.per_class[name].f1 for name in level.classes]
    assert theirs.macro_f1.mean == pytest.approx(np.mean(means))
    said = "over tree, cropland; too rare to be counted: water (1 block)"
    assert any(said in sentence for sentence in probe_table.sentences(record))


def test_where_every_class_is_rare_all_count_and_those_of_one_block_leave_no_interval(ground):
    _, block, missed = ground
    few = np.where(np.arange(1000) < 25, 5, 0)
    record = scored((few, block, missed), few)
    level = record.levels["patch"]
    assert level.classes == ["tree", "water"] and not level.rare_classes
    assert level.results[0].macro_f1.ci95 is None and level.results[0].accuracy.ci95
    assert "water lies in one block only" in verdict(record, "patch", "linear", "all")


def test_a_lower_log_loss_is_better_and_a_mixed_outcome_is_no_win(ground):
    labels, block, missed = ground
    test = features_of(labels, block)

    def surely(classes, loss):
        each = np.where(classes == labels, 0.1, loss).astype(np.float32)[None]
        return replace(made(classes), log_loss=each)

    rival = wrong_in(labels, missed)
    ours = wrong_in(labels, missed & (np.arange(1000) % 10 > 0))
    for loss, said in ((2.0, "encoder beats band"), (9.0, "neither beats nor loses to")):
        results = {(LINEAR, "all"): surely(ours, loss), (RIVAL, "all"): surely(rival, 2.0)}
        record = probes_of_patches(test, results, block)
        assert said in verdict(record, "patch", "linear", "all")
        found = record.levels["patch"].results[0].log_loss
        assert found.mean == pytest.approx(np.where(ours == labels, 0.1, loss).mean())
        assert found.ci95[0] < found.mean < found.ci95[1]


def test_intervals_cover_the_draws_of_the_labels_too(ground):
    labels, block, missed = ground
    number = np.unique(block.astype(str), return_inverse=True)[1]
    alike = by_block(labels, np.stack([wrong_in(labels, missed)] * 5), number, 40)
    spread = [missed & (np.arange(1000) % 6 < num) for num in (2, 4, 6, 5, 3)]
    unlike = by_block(labels, np.stack([wrong_in(labels, each) for each in spread]), number, 40)

    def width(cells):
        low, high = ResampledScores.of(cells, resampled_blocks(40, 0)).mean("accuracy").ci95
        return high - low

    assert width(unlike) > 1.5 * width(alike)


def test_a_class_that_nothing_is_does_not_count(ground):
    labels, _, _ = ground
    record = scored(ground, np.where(np.arange(1000) % 5 == 0, 7, labels))
    found = record.levels["patch"].results[0]
    assert [*found.per_class] == ["tree", "cropland"]
    expected = f1_score(
        labels, np.where(np.arange(1000) % 5 == 0, 7, labels), labels=[0, 1], average="macro"
    )
    assert found.macro_f1.mean == pytest.approx(expected)


# Zones.


def test_the_worst_zone_is_named_and_small_ones_are_not(ground):
    labels, block, _ = ground
    bad = wrong_in(labels, block == "b07")
    bad = wrong_in(bad, (block == "b09") & (np.arange(1000) % 25 < 3))
    record = scored(ground, bad)
    zones = record.levels["patch"].zones
    assert zones.worst == "b07"
    assert len(zones.per_zone) == 40
    text = worst_zone(record, "patch")
    assert text.startswith("patch, worst block of 40: b07 (25 examples), macro-F1 0.000, ")
    assert "where the best is band statistics by linear" in text
    few = probes_of_patches(features_of(labels, block), {(LINEAR, "all"): made(bad)}, block, 26)
    assert few.levels["patch"].zones.worst is None
    assert worst_zone(few, "patch") == ""


def test_zones_are_the_dataset_s_regions(reflectance_dataset, record):
    assert record.zones == "region"
    zones = record.levels["patch"].zones.per_zone
    assert [*zones] == ["east", "west"]
    num = record.levels["patch"].examples.test.num_examples
    assert sum(zone.num_examples for zone in zones.values()) == num


def test_one_region_is_told_apart_by_its_blocks(tmp_path):
    dataset = small_dataset(tmp_path / "d", many_bands(2), regions=("west",))
    zoning = Zoning.of(dataset)
    assert zoning.kind == "block"
    assert np.array_equal(zoning.of_chip, dataset.column("block"))


def test_polygons_tell_the_ground_apart_by_the_centres_of_chips(reflectance_dataset, tmp_path):
    frame = geopandas.read_parquet(reflectance_dataset.path / "chips.parquet")
    inside = frame[frame.region == "west"].iloc[[0]]
    shape = shapely.centroid(inside.geometry.iloc[0]).buffer(1e-5)
    polygons = geopandas.GeoDataFrame({"name": ["here"]}, geometry=[shape], crs="EPSG:4326")
    polygons.to_crs("EPSG:32643").to_file(tmp_path / "zones.gpkg")
    zoning = Zoning.of(reflectance_dataset, tmp_path / "zones.gpkg", "name")
    assert zoning.kind == "polygons of zones.gpkg"
    assert zoning.of_chip[inside.index[0]] == "here"
    assert (zoning.of_chip == OUTSIDE).sum() >= len(frame) - 2
    with pytest.raises(RegionError, match="--zone-field 'code' is no column"):
        Zoning.of(reflectance_dataset, tmp_path / "zones.gpkg", "code")
    with pytest.raises(RegionError, match=r"--zones .* is no file"):
        Zoning.of(reflectance_dataset, tmp_path / "none.gpkg")


# Going on, and what is refused.


def test_killed_and_run_again_it_goes_on_and_writes_the_same_bytes(
    run, reflectance_dataset, output, record, tmp_path, monkeypatch
):
    class Killed(BaseException):
        pass

    fits = []
    fit = probing.fit_row

    def mortal(*arguments):
        fits.append(arguments)
        if len(fits) == 20:
            raise Killed
        return fit(*arguments)

    monkeypatch.setattr(probing, "fit_row", mortal)
    path = tmp_path / "probes.json"
    with pytest.raises(Killed):
        probe_run(run, reflectance_dataset, path, **FEW)
    assert not path.exists()
    parts = sorted((tmp_path / "probes.parts").rglob("*.safetensors"))
    assert len(parts) > 3
    parts[0].write_bytes(b"cut short")
    probe_run(Run.open(run.path), Dataset.open(reflectance_dataset.path), path, **FEW)
    assert path.read_bytes() == output.read_bytes()
    assert not (tmp_path / "probes.parts").exists()
    in_one_go = 2 * (5 * (2 + 1) + 2)  # five rows with both budgets and the majority, two levels
    assert in_one_go < len(fits) < in_one_go + 20


def test_parts_of_other_weights_are_not_taken(run, reflectance_dataset, tmp_path):
    def folder(seed):
        return parts_folder(tmp_path / "p.json", conditions(run, reflectance_dataset, seed))

    assert folder(0) == folder(0)
    assert folder(0) != folder(1)


def test_progress_goes_up_to_all(run, reflectance_dataset, tmp_path):
    told = []
    probe_run(
        run, reflectance_dataset, tmp_path / "p.json", budgets=("all",), levels=("chip",),
        features=("encoder",), on_step=lambda *now: told.append(now),
    )  # fmt: skip
    done = [now[0] for now in told]
    assert done == sorted(done)
    assert told[-1][0] == told[-1][1]


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ({"levels": ("pixel",)}, "'pixel' is none of patch, chip"),
        ({"features": ("colour",)}, "'colour' is none of encoder"),
    ],
)
def test_choices_that_do_not_exist_are_refused(run, reflectance_dataset, tmp_path, choice, said):
    with pytest.raises(ConfigError, match=said):
        probe_run(run, reflectance_dataset, tmp_path / "p.json", **choice)


def test_budgets_are_numbers_or_all():
    assert [parse_budget(text) for text in ("5", "all")] == [5, "all"]
    for text in ("some", "0", "-3", "1.5"):
        with pytest.raises(ConfigError, match=f"budget '{text}': give a number"):
            parse_budget(text)


def test_a_block_that_lies_in_two_splits_is_refused(run, reflectance_dataset, tmp_path):
    dataset = Dataset.open(reflectance_dataset.path)
    column = dataset.column
    dataset.column = lambda name: np.full(32, "one") if name == "block" else column(name)
    with pytest.raises(ContractError, match="block 'one' lies in two splits"):
        probe_run(run, dataset, tmp_path / "p.json", **FEW)


def test_a_dataset_without_test_ground_is_refused(run, tmp_path):
    plan = replace(PLAN, split=replace(PLAN.split, test=0.0))
    dataset = small_dataset(tmp_path / "d", many_bands(2), plan)
    with pytest.raises(ContractError, match="no chip in its test split"):
        probe_run(run, dataset, tmp_path / "p.json")


def test_a_level_whose_labels_are_all_alike_is_skipped_and_said_to_be(
    run, reflectance_dataset, tmp_path, monkeypatch
):
    extract = probing.extract

    def alike(*arguments, **options):
        found = extract(*arguments, **options)
        chip = found["chip"]
        return found | {"chip": replace(chip, labels=np.zeros_like(chip.labels))}

    monkeypatch.setattr(probing, "extract", alike)
    record = probe_run(
        run, reflectance_dataset, tmp_path / "p.json", budgets=("all",), features=("encoder",)
    )
    assert [*record.levels] == ["patch"]
    assert record.skipped == {"chip": "the labels of its train examples are of 1 classes"}


def test_without_validation_ground_it_works(run, tmp_path):
    plan = replace(PLAN, split=replace(PLAN.split, val=0.0))
    dataset = small_dataset(tmp_path / "d", many_bands(2), plan)
    record = probe_run(run, dataset, tmp_path / "p.json", budgets=(2,), features=("encoder",))
    assert record.levels["patch"].examples.val.num_examples == 0
    assert record.levels["patch"].bars == []
    assert probe_table.bar_sentence(record.levels["patch"]) == ""
    assert result(record, "encoder", "linear", 2).chosen == [probing.STRENGTHS[3]] * 2


# For readers.


def test_tables_have_a_column_a_budget_and_forests_beside_every_probe(record):
    tables = {title: (header, rows) for title, header, rows in text_tables(record)}
    header, rows = tables["patch, nearest neighbours: macro-F1"]
    assert header == ["", "2 a class", "all labels"]
    assert [row[0] for row in rows] == [
        "encoder", "band statistics", "forest on band statistics", "majority class",
        "the humble bar is",
    ]  # fmt: skip
    assert "patch, linear probe: log-loss" in tables
    assert "patch, nearest neighbours: log-loss" not in tables
    shown = result(record, "encoder", "nearest", "all").macro_f1
    assert rows[0][2] == f"{shown.mean:.3f}\n{shown.ci95[0]:.3f}-{shown.ci95[1]:.3f}"


def test_where_not_all_labels_are_taken_the_heading_says_of_how_many(record):
    level = record.levels["patch"]
    train = level.examples.train

    def heading(**of_train):
        few = level.examples.model_copy(update={"train": train.model_copy(update=of_train)})
        other = level.model_copy(update={"examples": few})
        return [probe_table.budget_heading(other, "linear", each) for each in (2, "all")]

    shown = f"{train.num_examples:,}"
    assert heading() == ["2 a class", "all labels"]
    assert heading(num_examples=90_000) == ["2 a class", f"{shown} of 90,000 labels"]
    assert heading(of_chips=0.5)[1] == f"{shown} of about {2 * train.num_examples:,} labels"


def test_nearest_neighbours_and_forests_are_shown_fewer_of_many(
    run, reflectance_dataset, monkeypatch
):
    monkeypatch.setattr(probing, "MOST_EXAMPLES", 40)
    monkeypatch.setattr(probing, "MOST_NEAREST", 30)
    examples = examples_of(run, reflectance_dataset, "band_statistics", 0)
    by_split = {split: found["patch"] for split, found in examples.items()}
    num = {row.probe: predictions(by_split, row, "all", 0).num_labels.tolist()
           for row in table_rows(["band_statistics"])}  # fmt: skip
    assert num == {"linear": [40], "nearest": [30], "forest": [30], "majority": [40]}


def test_what_pretraining_saw_is_said(record):
    assert "pretrained with land-cover labels" in probe_table.explained(record)
    unseen = record.model_copy(update={"pretraining_heads": {"pixels": 1.0}})
    assert "pretrained with land-cover labels" not in probe_table.explained(unseen)
