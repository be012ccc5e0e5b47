import numpy as np
import pytest
import torch

from bharateo.config import ModelConfig
from bharateo.evaluation.evaluate import predictions
from bharateo.evaluation.reconstruction import reconstruct
from bharateo.landcover import BHARATEO_CLASSES, IGNORE, patch_class_counts, patch_mode
from bharateo.training.data import cut, evaluation_mask, fixed_windows, window_ids
from bharateo.training.loop import pretrain
from small_datasets import small_config


@pytest.fixture(scope="module", params=["palette", "reflectance"])
def case(request, palette_dataset, reflectance_dataset, tmp_path_factory):
    dataset = palette_dataset if request.param == "palette" else reflectance_dataset
    run = pretrain(dataset, small_config(epochs=1), tmp_path_factory.mktemp("run") / "run")
    return run, dataset, reconstruct(run, dataset, "test", 4)


def patches_of(image):
    """(token row, token col, band, row, col) of an image."""
    bands = image.shape[0]
    return image.reshape(bands, 4, 8, 4, 8).transpose(1, 3, 0, 2, 4)


def test_examples_are_chips_of_the_split_taking_turns_between_regions(case):
    _, dataset, made = case
    assert len(made) == 4
    assert [example.region for example in made] == ["east", "west", "east", "west"]
    assert {example.split for example in made} == {"test"}
    assert len({example.chip for example in made}) == 4
    windows = fixed_windows(dataset.indices("test").tolist(), 48, 32)
    assert {example.chip for example in made} <= set(window_ids(dataset, windows))


def test_pixels_and_labels_are_the_datasets(case):
    _, dataset, made = case
    windows = fixed_windows(dataset.indices("test").tolist(), 48, 32)
    by_id = dict(zip(window_ids(dataset, windows), windows, strict=True))
    for example in made:
        window = by_id[example.chip]
        batch = cut(dataset, [window], 32, 8)
        assert np.array_equal(example.image, batch.image[0])
        assert np.array_equal(example.valid, batch.valid[0])
        part = np.s_[window.row : window.row + 32, window.col : window.col + 32]
        assert np.array_equal(example.landcover, dataset.landcover(window.chip)[part])
        expected = patch_mode(patch_class_counts(example.landcover[None].copy(), 8))[0]
        assert np.array_equal(example.true_class, expected.reshape(4, 4))


def test_the_mask_is_the_one_of_the_evaluation(case):
    _, _, made = case
    for example in made:
        mask = evaluation_mask([example.chip], 16, 12)
        assert np.array_equal(example.hidden, mask.hidden[0].view(4, 4))


def test_visible_patches_are_as_given_in_every_picture(case):
    _, _, made = case
    for example in made:
        given = patches_of(np.where(example.valid, example.image, np.nan))[~example.hidden]
        known = ~np.isnan(given)
        assert known.any()
        for picture in (example.reconstruction, example.nearest):
            shown = patches_of(picture)[~example.hidden]
            np.testing.assert_allclose(shown[known], given[known], rtol=1e-4, atol=1e-5)


def test_masked_patches_are_the_models_prediction_in_physical_units(case):
    run, dataset, made = case
    windows = fixed_windows(dataset.indices("test").tolist(), 48, 32)
    by_id = dict(zip(window_ids(dataset, windows), windows, strict=True))
    config = ModelConfig(**run.contract.model.model_dump())
    normalise = run.model.normalise
    for example in made:
        batch = cut(dataset, [by_id[example.chip]], config.chip_px, config.patch_px)
        mask = evaluation_mask([example.chip], 16, 12)
        made_of = predictions(run, batch, mask)["model"]
        bands = batch.image.shape[1]
        for token in mask.masked[0].tolist():
            patch = made_of["pixels"][0, token].view(bands, 8, 8)
            physical = patch * normalise.std[:, None, None] + normalise.mean[:, None, None]
            shown = patches_of(example.reconstruction)[token // 4, token % 4]
            np.testing.assert_allclose(shown, physical, rtol=1e-4, atol=1e-5)
        (classes,) = example.layers
        assert classes.layer.classes == BHARATEO_CLASSES
        expected = made_of["landcover"][0].argmax(1).view(4, 4)
        assert np.array_equal(classes.predicted, expected)
        assert np.array_equal(classes.true, example.true_class)


def test_the_copy_is_made_of_visible_patches(case):
    _, _, made = case
    for example in made:
        if not example.valid.all():
            continue
        shown = patches_of(example.nearest)
        visible = shown[~example.hidden].reshape((~example.hidden).sum(), -1)
        for patch in shown[example.hidden].reshape(example.hidden.sum(), -1):
            assert np.abs(visible - patch).max(1).min() < 1e-5
    assert any(example.valid.all() for example in made)


def test_classes_of_the_copy_are_visible_ones(case):
    _, _, made = case
    for example in made:
        labelled = ~example.hidden & (example.true_class != IGNORE)
        (classes,) = example.layers
        assert np.array_equal(classes.nearest[labelled], example.true_class[labelled])
        assert set(classes.nearest.flat) <= set(example.true_class[labelled])


def test_examples_repeat_themselves(case):
    run, dataset, made = case
    torch.manual_seed(1)
    for expected, got in zip(made, reconstruct(run, dataset, "test", 4), strict=True):
        for name in expected.__dataclass_fields__.keys() - {"layers"}:
            assert np.array_equal(getattr(expected, name), getattr(got, name))
        for one, other in zip(expected.layers, got.layers, strict=True):
            assert one.layer == other.layer
            assert np.array_equal(one.predicted, other.predicted)


def test_a_split_gives_no_more_examples_than_it_has_squares(case):
    run, dataset, _ = case
    assert len(reconstruct(run, dataset, "val", 99)) == len(dataset.indices("val"))


def test_an_empty_split_gives_no_examples(case, monkeypatch):
    run, dataset, _ = case
    assert reconstruct(run, dataset, "none such", 4) == []
