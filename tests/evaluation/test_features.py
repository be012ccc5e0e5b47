import numpy as np
import pytest
import torch

from bharateo.chips.store import Dataset
from bharateo.evaluation import features
from bharateo.evaluation.features import (
    MAKERS,
    MEANINGS,
    QUANTILES,
    Extractor,
    extract,
    random_convolutions,
    random_encoder,
    statistics_of_patches,
    with_context,
)
from bharateo.inference import encoder
from bharateo.landcover import IGNORE, patch_mode
from bharateo.models.embedding import whitened_filters
from bharateo.training.data import cut, fixed_windows
from models.tiny_models import random_batch, tiny_model
from small_datasets import PLAN, many_bands, small_config, small_dataset

CHIP_PX, PATCH_PX = 32, 8


@pytest.fixture(scope="module")
def run(reflectance_dataset, tmp_path_factory):
    from bharateo.training.loop import pretrain

    folder = tmp_path_factory.mktemp("run") / "run"
    return pretrain(reflectance_dataset, small_config(epochs=1), folder)


@pytest.fixture(scope="module")
def extractors(run, reflectance_dataset):
    return {name: make(run, reflectance_dataset, 0, "token") for name, make in MAKERS.items()}


@pytest.fixture(scope="module")
def batch(run):
    return random_batch(run.model, chips=5, all_valid=False)[0]


# Every kind of features.


def test_every_kind_of_features_has_a_meaning(extractors):
    assert MAKERS.keys() == MEANINGS.keys()
    assert all(extractor.name == name for name, extractor in extractors.items())


@pytest.mark.parametrize("name", MAKERS)
def test_every_patch_gets_finite_numbers_that_do_not_depend_on_the_other_chips(
    extractors, batch, name
):
    ask = extractors[name].features
    found = ask(batch.image, batch.valid)
    assert found.shape[:2] == (5, 16)
    assert found.isfinite().all()
    assert torch.allclose(ask(batch.image[2:3], batch.valid[2:3])[0], found[2], atol=1e-5)


@pytest.mark.parametrize("garbage", [1e6, float("nan")])
@pytest.mark.parametrize("name", MAKERS)
def test_what_an_invalid_pixel_holds_changes_no_feature(extractors, batch, name, garbage):
    ask = extractors[name].features
    spoilt = batch.image.masked_fill(~batch.valid[:, None], garbage)
    assert torch.equal(ask(spoilt, batch.valid), ask(batch.image, batch.valid))


@pytest.mark.parametrize("name", MAKERS)
def test_the_same_seed_gives_the_same_features(run, reflectance_dataset, extractors, batch, name):
    torch.manual_seed(5)
    again = MAKERS[name](run, reflectance_dataset, 0, "token")
    assert torch.equal(
        again.features(batch.image, batch.valid),
        extractors[name].features(batch.image, batch.valid),
    )


@pytest.mark.parametrize("name", ["random_encoder", "random_convolutions"])
def test_random_features_follow_the_seed_and_leave_the_global_generator_alone(
    run, reflectance_dataset, extractors, batch, name
):
    torch.manual_seed(5)
    other = MAKERS[name](run, reflectance_dataset, 1, "token").features(batch.image, batch.valid)
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(1))
    assert not torch.allclose(other, extractors[name].features(batch.image, batch.valid))


def test_the_random_encoder_differs_in_its_weights_alone():
    model = tiny_model()
    fresh = random_encoder(model, 0).features.__self__.model
    assert fresh.config == model.config
    assert torch.equal(fresh.normalise.mean, model.normalise.mean)
    assert torch.equal(fresh.normalise.std, model.normalise.std)
    assert not torch.equal(fresh.embed.weight, model.embed.weight)


@pytest.mark.parametrize("name", [*MAKERS])
def test_numbers_are_made_on_the_runs_device_and_come_back(
    run, reflectance_dataset, extractors, batch, name, monkeypatch
):
    """What lies elsewhere, mixed with what does not, would be refused."""
    for room in (features, encoder):
        monkeypatch.setattr(room, "device_of", lambda _: torch.device("meta"))
    made = MAKERS[name](run, reflectance_dataset, 0, "token").features
    found = made(batch.image.to("meta"), batch.valid.to("meta"))
    assert found.device.type == "meta"
    assert found.shape == extractors[name].features(batch.image, batch.valid).shape
    if torch.cuda.is_available():
        monkeypatch.setattr(features, "device_of", lambda _: torch.device("cuda"))
        monkeypatch.setattr(encoder, "device_of", lambda _: torch.device("cuda"))
        there = MAKERS[name](run, reflectance_dataset, 0, "token").features(
            batch.image, batch.valid
        )
        assert there.device.type == "cpu"
        expected = extractors[name].features(batch.image, batch.valid)
        assert torch.allclose(there, expected, atol=1e-3)


# Band statistics.


def test_band_statistics_are_numpys_over_the_valid_pixels(batch):
    found = statistics_of_patches(batch.image, batch.valid, PATCH_PX).numpy()
    for chip, token in ((1, 0), (2, 7), (4, 15)):
        rows = slice(token // 4 * 8, token // 4 * 8 + 8)
        cols = slice(token % 4 * 8, token % 4 * 8 + 8)
        known = batch.valid[chip, rows, cols].numpy()
        pixels = batch.image[chip, :, rows, cols].numpy()[:, known]
        expected = np.vstack(
            [pixels.mean(1), pixels.std(1), np.quantile(pixels, QUANTILES, axis=1)]
        )
        assert found[chip, token] == pytest.approx(expected.T.reshape(-1), abs=1e-5)


def test_a_patch_without_a_valid_pixel_has_statistics_of_zero(batch):
    valid = batch.valid.clone()
    valid[0, :8, :8] = False
    assert not statistics_of_patches(batch.image, valid, PATCH_PX)[0, 0].any()


def test_context_is_the_mean_around_a_patch_and_over_the_chip_of_patches_with_pixels():
    """Nine patches of one pixel each with the numbers 0 to 8; the one with 8 has no valid pixel."""
    image = torch.arange(9.0).view(1, 1, 3, 3)
    valid = image[:, 0] < 8
    own = Extractor("own", lambda image, valid: image.flatten(2).transpose(1, 2))
    made = with_context(own, 1)
    found = made.features(image, valid)[0]
    assert made.name == "own_context"
    assert found[0].tolist() == [0.0, (0 + 1 + 3 + 4) / 4, 28 / 8]
    assert found[4].tolist() == [4.0, 28 / 8, 28 / 8]
    assert found[5].tolist() == pytest.approx([5, (1 + 2 + 4 + 5 + 7) / 5, 28 / 8])


@pytest.mark.parametrize("name", ["band_statistics", "random_convolutions", "log_energies"])
def test_features_with_context_begin_with_those_of_the_patch(extractors, batch, name):
    own = extractors[name].features(batch.image, batch.valid)
    found = extractors[f"{name}_context"].features(batch.image, batch.valid)
    assert found.shape == (*own.shape[:2], 3 * own.shape[2])
    assert torch.equal(found[..., : own.shape[2]], own)


def test_log_energies_are_logarithms_of_the_convolutions(extractors, batch):
    pooled = extractors["random_convolutions"].features(batch.image, batch.valid)
    found = extractors["log_energies"].features(batch.image, batch.valid)
    assert pooled.min() == 0
    assert torch.allclose(found, torch.log(1 + 10 * pooled), atol=1e-6)


# Random convolutions.


def test_filters_of_pixels_that_are_all_alike_give_finite_features(run, batch):
    flat, every = torch.full_like(batch.image, 0.25), torch.ones_like(batch.valid)
    made = random_convolutions(flat, every, run.model.normalise, PATCH_PX, 0)
    assert made.features(flat, every).isfinite().all()
    assert made.features(batch.image, batch.valid).isfinite().all()


def test_filters_are_whitened_so_responses_to_training_squares_are_of_one_size(run, monkeypatch):
    generator = torch.Generator().manual_seed(3)
    smooth = torch.rand(20, 2, 8, 8, generator=generator)
    image = torch.nn.functional.interpolate(smooth, size=32, mode="bilinear")
    valid = torch.ones(20, 32, 32, dtype=torch.bool)
    filters, bias = whitened_filters(image, valid, features.NUM_FILTERS, 4000, 0)
    response = torch.nn.functional.conv2d(image, filters, bias)
    assert len(filters) == features.NUM_FILTERS
    assert response.mean().item() == pytest.approx(0, abs=0.05)
    deviation = response.std((0, 2, 3))
    assert deviation.median().item() == pytest.approx(1, abs=0.4)
    raw = torch.nn.functional.conv2d(image, torch.randn(filters.shape, generator=generator))
    assert deviation.std() / deviation.mean() < raw.std((0, 2, 3)).std() / raw.std((0, 2, 3)).mean()


def test_without_valid_squares_filters_are_gaussian(run, batch):
    nothing = torch.zeros_like(batch.valid)
    made = random_convolutions(batch.image, nothing, run.model.normalise, PATCH_PX, 0)
    found = made.features(batch.image, batch.valid)
    assert found.isfinite().all()
    assert found.std() > 0


# Examples of a dataset.


@pytest.fixture(scope="module")
def dataset(reflectance_dataset):
    """With a strip without labels and one without valid pixels, in every square."""
    opened = Dataset.open(reflectance_dataset.path)
    own_landcover, own_valid = opened.landcover, opened.valid

    def landcover(chip):
        return np.vstack([np.full((16, 48), IGNORE, np.uint8), own_landcover(chip)[16:]])

    def valid(chip):
        return np.vstack([own_valid(chip)[:32], np.zeros((16, 48), bool)])

    opened.landcover, opened.valid = landcover, valid
    return opened


@pytest.fixture(scope="module")
def examples(extractors, dataset):
    return extract(dataset, "test", extractors["band_statistics"], CHIP_PX, PATCH_PX)


def whole_split(dataset, split):
    """Its windows in one batch, and which of their patches have a valid pixel."""
    windows = fixed_windows(dataset.indices(split).tolist(), dataset.size_px, CHIP_PX)
    batch = cut(dataset, windows, CHIP_PX, PATCH_PX)
    return batch, batch.valid.unfold(1, 8, 8).unfold(2, 8, 8).flatten(3).any(3).flatten(1).numpy()


def test_examples_are_the_labelled_patches_with_pixels_of_evaluations_windows(examples, dataset):
    found = examples["patch"]
    batch, some = whole_split(dataset, "test")
    labels = patch_mode(batch.class_counts.numpy())
    keep = (labels != IGNORE) & some
    assert (labels == IGNORE).any()
    assert not some.all()
    assert np.array_equal(found.labels, labels[keep])
    assert np.array_equal(found.chip, np.repeat(batch.chip.numpy(), 16).reshape(-1, 16)[keep])
    expected = statistics_of_patches(batch.image, batch.valid, PATCH_PX).numpy()[keep]
    assert np.array_equal(found.values, expected)


def test_blocks_are_those_of_the_chips(examples, dataset):
    for found in examples.values():
        assert np.array_equal(found.block, dataset.column("block")[found.chip])


def test_a_chip_has_the_class_of_most_of_its_pixels_and_the_mean_of_its_patches(dataset):
    counting = Extractor(
        "counting", lambda image, valid: torch.arange(16.0)[None, :, None].expand(len(image), -1, 2)
    )
    found = extract(dataset, "train", counting, CHIP_PX, PATCH_PX)["chip"]
    batch, some = whole_split(dataset, "train")
    assert np.array_equal(found.labels, patch_mode(batch.class_counts.sum(1).numpy()))
    mean = (np.arange(16) * some).sum(1) / some.sum(1)
    assert found.values == pytest.approx(np.stack([mean, mean], 1), rel=1e-6)


def test_of_many_chips_some_are_drawn_by_the_seed(extractors, reflectance_dataset):
    def drawn(seed):
        ask = extractors["band_statistics"]
        return extract(reflectance_dataset, "train", ask, CHIP_PX, PATCH_PX, seed, most_chips=9)

    few = drawn(0)["chip"]
    assert len(few.labels) <= 9
    assert np.array_equal(few.chip, drawn(0)["chip"].chip)
    assert not np.array_equal(drawn(1)["patch"].chip, drawn(0)["patch"].chip)


def test_progress_ends_with_all_chips_done(extractors, reflectance_dataset, monkeypatch):
    monkeypatch.setattr(features, "CHIPS_AT_ONCE", 10)
    told = []
    ask = extractors["band_statistics"]
    extract(
        reflectance_dataset, "train", ask, CHIP_PX, PATCH_PX, on_chips=lambda *now: told.append(now)
    )
    total = 4 * len(reflectance_dataset.indices("train"))
    assert told[-1] == (total, total)
    assert len(told) > 1


def test_a_split_without_chips_has_no_examples(extractors, tmp_path):
    from dataclasses import replace

    plan = replace(PLAN, split=replace(PLAN.split, val=0.0))
    dataset = small_dataset(tmp_path / "dataset", many_bands(2), plan, regions=("west",))
    found = extract(dataset, "val", extractors["band_statistics"], CHIP_PX, PATCH_PX)
    assert [len(level.labels) for level in found.values()] == [0, 0]
