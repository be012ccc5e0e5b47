import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from bharateo.chips.store import Dataset
from bharateo.config import HeadConfig, ModelConfig
from bharateo.errors import ContractError
from bharateo.evaluation import evaluate as evaluating
from bharateo.evaluation.evaluate import evaluate, predictions
from bharateo.models.heads import HEADS, patch_mode
from bharateo.training.data import fixed_batches, fixed_windows
from bharateo.training.loop import pretrain
from bharateo.training.run import Run
from small_datasets import PLAN, contents, many_bands, small_config, small_dataset

METRICS = [
    "loss",
    "rec_smooth_l1",
    "esa_ce",
    "masked_mae",
    "esa_acc",
    "esa_acc_masked",
    "esa_acc_visible",
    "esa_balanced_acc_masked",
    "esa_macro_f1_masked",
]
SCORES = {*METRICS, *(f"{name}_ci95" for name in METRICS), "confusion_masked", "no_interval"}
PREDICTORS = ["majority", "nearest_visible", "mean_colour", "bilinear"]


@pytest.fixture(scope="module")
def run(reflectance_dataset, tmp_path_factory):
    return pretrain(reflectance_dataset, small_config(), tmp_path_factory.mktemp("run") / "run")


@pytest.fixture(scope="module")
def record(run, reflectance_dataset, tmp_path_factory):
    return scored(run, reflectance_dataset, tmp_path_factory.mktemp("e") / "evaluation.json")


def scored(*where):
    """The record as plain values."""
    return evaluate(*where).model_dump(mode="json")


def every_scores(record):
    """The scores of every split and of every region in it."""
    for split in record["splits"].values():
        yield split
        yield from split["per_roi"].values()


# What is written.


def test_the_file_is_laid_out_as_documented(run, reflectance_dataset, tmp_path):
    returned = scored(run, reflectance_dataset, tmp_path / "evaluation.json")
    record = json.loads((tmp_path / "evaluation.json").read_text())
    assert returned == record
    assert list(record["splits"]) == ["train", "val", "test"]
    assert record["schema_version"] == 1
    for split in record["splits"].values():
        assert list(split["per_roi"]) == ["east", "west"]
    for scores in every_scores(record):
        assert set(scores) - {"per_roi"} == {
            "num_chips",
            "num_blocks",
            "model",
            "baselines",
            "model_against_nearest_visible",
        }
        assert list(scores["baselines"]) == PREDICTORS
        for predictor in (scores["model"], *scores["baselines"].values()):
            assert set(predictor) == SCORES
            assert np.array(predictor["confusion_masked"]).shape == (8, 8)


def test_the_conditions_of_the_evaluation_are_written(run, reflectance_dataset, record):
    assert record["own_dataset"] is True
    assert record["dataset"]["name"] == reflectance_dataset.info["name"]
    assert record["dataset"]["fingerprint"] == run.contract.dataset.fingerprint
    assert (record["chip_px"], record["patch_px"], record["mask_ratio"]) == (32, 8, 0.75)
    assert record["bootstrap"] == {
        "unit": "block", "resamples": 2000, "level": 0.95, "least_blocks": 5
    }  # fmt: skip


def test_evaluating_twice_gives_the_same_bytes(run, reflectance_dataset, tmp_path, monkeypatch):
    evaluate(run, reflectance_dataset, tmp_path / "first.json")
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002  (no global generator has a say)
    evaluate(Run.open(run.path), Dataset.open(reflectance_dataset.path), tmp_path / "again.json")
    assert (tmp_path / "first.json").read_bytes() == (tmp_path / "again.json").read_bytes()


def test_the_batch_size_of_the_evaluation_changes_no_score(
    run, reflectance_dataset, record, tmp_path, monkeypatch
):
    monkeypatch.setattr(evaluating, "BATCH_SIZE", 5)
    other = scored(run, reflectance_dataset, tmp_path / "e.json")
    for expected, got in zip(every_scores(record), every_scores(other), strict=True):
        for name in METRICS:
            assert got["model"][name] == pytest.approx(expected["model"][name], rel=1e-5)
        assert got["model"]["confusion_masked"] == expected["model"]["confusion_masked"]


def test_progress_ends_with_all_chips_done(run, reflectance_dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluating, "BATCH_SIZE", 10)
    told = []
    evaluate(run, reflectance_dataset, tmp_path / "e.json", lambda *now: told.append(now))
    ends = [4 * len(reflectance_dataset.indices(split)) for split in ("train", "val", "test")]
    assert [now for now in told if now[0] == now[1]] == [(end, end) for end in ends]
    assert all(done <= total for done, total in told)
    assert len(told) > 3


# What the numbers are.


def test_chips_and_blocks_are_counted(reflectance_dataset, record):
    for split, scores in record["splits"].items():
        chips = reflectance_dataset.chips[reflectance_dataset.chips.split == split]
        assert scores["num_chips"] == 4 * len(chips)
        assert scores["num_blocks"] == chips.block.nunique()


def test_regions_add_up_to_their_split(record):
    for split in record["splits"].values():
        regions = list(split["per_roi"].values())
        for name in ("num_chips", "num_blocks"):
            assert sum(region[name] for region in regions) == split[name]
        for kind in ("model", *PREDICTORS):
            whole, *parts = (
                np.array(s["model" if kind == "model" else "baselines"]["confusion_masked"])
                if kind == "model"
                else np.array(s["baselines"][kind]["confusion_masked"])
                for s in (split, *regions)
            )
            assert np.array_equal(whole, sum(parts))


def test_the_scores_are_those_of_a_slow_count(run, reflectance_dataset, record):
    """Every test chip, one at a time and token by token."""
    model = run.model
    std = model.normalise.std
    config = ModelConfig(**run.contract.model.model_dump())
    errors = {name: [] for name in ("model", *PREDICTORS)}
    right = {name: {True: [], False: []} for name in ("model", *PREDICTORS)}
    for _, batch, mask in fixed_batches(reflectance_dataset, "test", config, 1):
        true = patch_mode(batch.class_counts)[0]
        for name, made in predictions(run, batch, mask).items():
            for token in mask.masked[0].tolist():
                row, col = token // 4 * 8, token % 4 * 8
                part = np.s_[0, :, row : row + 8, col : col + 8]
                guess = made["pixels"][0, token].view(2, 8, 8) * std[:, None, None]
                guess = guess + model.normalise.mean[:, None, None]
                valid = batch.valid[0, row : row + 8, col : col + 8]
                errors[name] += (guess - batch.image[part]).abs()[:, valid].flatten().tolist()
            for token in range(16):
                if true[token] < 8:
                    hit = bool(made["landcover"][0, token].argmax() == true[token])
                    right[name][not mask.hidden[0, token]].append(hit)
    scores = record["splits"]["test"]
    for name in errors:
        got = scores["model"] if name == "model" else scores["baselines"][name]
        assert got["masked_mae"] == pytest.approx(np.mean(errors[name]), rel=1e-4)
        assert got["esa_acc_masked"] == pytest.approx(np.mean(right[name][False]))
        assert got["esa_acc_visible"] == pytest.approx(np.mean(right[name][True]))
        assert got["esa_acc"] == pytest.approx(np.mean(right[name][True] + right[name][False]))


def test_the_models_scores_are_those_that_training_validates_with(run, record):
    last = json.loads((run.path / "history.jsonl").read_text().splitlines()[-1])
    val = record["splits"]["val"]["model"]
    for name in METRICS[:7]:
        assert val[name] == pytest.approx(last[f"val_{name}"], rel=1e-4)


def test_baselines_told_the_visible_classes_have_them_right(record):
    for split in record["splits"].values():
        assert split["baselines"]["nearest_visible"]["esa_acc_visible"] == 1


def test_only_a_model_with_class_scores_has_a_cross_entropy(record):
    for scores in every_scores(record):
        assert scores["model"]["esa_ce"] > 0
        for baseline in scores["baselines"].values():
            assert baseline["esa_ce"] is None
            assert baseline["loss"] is None


def test_intervals_hold_their_value(record):
    for split in record["splits"].values():
        for name in METRICS[:7]:
            low, high = split["model"][f"{name}_ci95"]
            assert low <= split["model"][name] <= high
            assert low < high


def test_a_region_of_one_block_has_no_interval(tmp_path):
    dataset = small_dataset(
        tmp_path / "d", plan=replace(PLAN, split=None), size_px=60, regions=("only",)
    )
    run = pretrain(dataset, small_config(epochs=1), tmp_path / "run")
    record = scored(run, dataset, tmp_path / "e.json")
    assert list(record["splits"]) == ["train"]
    scores = record["splits"]["train"]
    assert scores["num_blocks"] == 1
    assert scores["model"]["masked_mae"] > 0
    assert scores["model"]["masked_mae_ci95"] is None
    assert scores["model_against_nearest_visible"]["esa_acc_masked_gain_ci95"] is None


def test_the_gain_over_the_copy_is_the_difference_of_the_scores(record):
    for scores in every_scores(record):
        model, copy = scores["model"], scores["baselines"]["nearest_visible"]
        beside = scores["model_against_nearest_visible"]
        assert beside["esa_acc_masked_gain"] == pytest.approx(
            model["esa_acc_masked"] - copy["esa_acc_masked"]
        )
        assert beside["masked_mae_ratio"] == pytest.approx(model["masked_mae"] / copy["masked_mae"])


def test_invalid_pixels_do_not_matter(run, reflectance_dataset, record, tmp_path):
    folder = tmp_path / "rubbish"
    for name, content in contents(reflectance_dataset.path).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    dataset = Dataset.open(folder)
    image = np.load(folder / "image-00000.npy", mmap_mode="r+")
    valid = np.stack([dataset.valid(chip) for chip in range(dataset.num_chips)])
    assert not valid.all()
    rubbish = np.random.default_rng(0).integers(0, 65535, image.shape)
    image[:] = np.where(valid[:, None], image, rubbish)
    image.flush()
    other = scored(run, Dataset.open(folder), tmp_path / "e.json")
    assert other["splits"] == record["splits"]


# Other ground.


def test_a_run_can_be_scored_on_other_ground(run, tmp_path):
    other = small_dataset(
        tmp_path / "d", many_bands(2), replace(PLAN, size_px=40), regions=("north",)
    )
    before = contents(run.path)
    record = scored(run, other, tmp_path / "e.json")
    assert record["own_dataset"] is False
    assert list(record["splits"]["test"]["per_roi"]) == ["north"]
    windows = fixed_windows(other.indices("test").tolist(), 40, 32)
    assert record["splits"]["test"]["num_chips"] == len(windows)
    assert contents(run.path) == before


def test_a_place_of_two_datasets_has_the_same_scores_in_both(run, tmp_path):
    """East alone, and east beside another region."""
    alone, both = (
        small_dataset(tmp_path / str(len(names)), many_bands(2), replace(PLAN, split=None),
                      size_px=192, regions=names)
        for names in (("east",), ("east", "west"))
    )  # fmt: skip
    first, second = (scored(run, d, tmp_path / "e.json")["splits"]["train"] for d in (alone, both))
    for name in METRICS:
        expected = first["per_roi"]["east"]["model"][name]
        assert second["per_roi"]["east"]["model"][name] == pytest.approx(expected, rel=1e-6)


def test_a_breach_of_the_contract_is_refused_and_writes_nothing(run, palette_dataset, tmp_path):
    with pytest.raises(ContractError, match=r"^bands: "):
        evaluate(run, palette_dataset, tmp_path / "e.json")
    assert not list(tmp_path.iterdir())


# Runs of one head.


@pytest.mark.parametrize(
    ("head", "weight", "loss"), [("pixels", 2.0, "rec_smooth_l1"), ("landcover", 0.5, "esa_ce")]
)
def test_a_run_of_one_head_is_scored_by_that_head(
    reflectance_dataset, tmp_path, head, weight, loss
):
    config = replace(small_config(epochs=1), heads={head: HeadConfig(weight)})
    run = pretrain(reflectance_dataset, config, tmp_path / "run")
    record = evaluate(run, reflectance_dataset, tmp_path / "e.json")
    scores = record.splits["test"].model
    assert scores.value("loss") == pytest.approx(weight * scores.value(loss))
    assert {metric.head for metric in record.metrics} == {head}
    assert [metric.name for metric in record.metrics if metric.weight] == [loss]
    (other,) = {"pixels", "landcover"} - {head}
    others = {metric.name for metric in HEADS[other].metrics}
    assert not others & {*(scores.model_extra or {})}
    assert (scores.confusion_masked is None) == (head == "pixels")


def test_predictions_are_made_on_the_runs_device(run, reflectance_dataset, monkeypatch, tmp_path):
    """What lies elsewhere, mixed with what does not, would be refused."""
    _, *batch = next(fixed_batches(reflectance_dataset, "test", run.model.config, 4))
    there = torch.device("meta")
    away = run.on(there)
    assert run.on(torch.device("cpu")) is run
    with torch.no_grad():
        made = predictions(away, *(each.to(there) for each in batch))
    here = predictions(run, *batch)
    for predictor, by_head in here.items():
        for name, values in by_head.items():
            found = made[predictor][name]
            assert (found.device.type, found.shape) == ("meta", values.shape)
    if torch.cuda.is_available():
        expected = evaluate(run, reflectance_dataset, tmp_path / "cpu.json").model_dump()
        monkeypatch.setattr(evaluating, "device_of", lambda _: torch.device("cuda"))
        found = evaluate(run, reflectance_dataset, tmp_path / "gpu.json").model_dump()
        for split, scores in expected["splits"].items():
            error = scores["model"]["masked_mae"]
            assert found["splits"][split]["model"]["masked_mae"] == pytest.approx(error, rel=1e-3)
