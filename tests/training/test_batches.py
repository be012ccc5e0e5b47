import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bharateo.errors import ConfigError
from bharateo.landcover import IGNORE, patch_class_counts
from bharateo.models.patches import patchify
from bharateo.training.data import (
    Window,
    cut,
    evaluation_mask,
    fixed_batches,
    fixed_windows,
    symmetric,
    window_ids,
)
from bharateo.training.loop import Trainer, pretrain
from small_datasets import many_bands, small_config, small_dataset

MODEL = small_config().model


def same(first, second):
    """Whether two (batch, mask) pairs are equal to the bit."""
    (batch, mask), (other, other_mask) = first, second
    return torch.equal(mask.order, other_mask.order) and all(
        torch.equal(getattr(batch, name), getattr(other, name))
        for name in batch.__dataclass_fields__
    )


# What a step is shown.


def test_the_batch_of_a_step_depends_on_seed_and_step_alone(palette_dataset, tmp_path):
    trainer = Trainer(palette_dataset, small_config(), tmp_path)
    in_order = [trainer.batch(step) for step in range(trainer.num_steps)]
    again = Trainer(palette_dataset, small_config(), tmp_path / "elsewhere")
    np.random.seed(7)  # noqa: NPY002  (no global generator has a say)
    torch.manual_seed(7)
    for step in np.random.default_rng(0).permutation(trainer.num_steps):
        assert same(again.batch(int(step)), in_order[step])


def test_another_step_or_seed_is_another_batch(palette_dataset, tmp_path):
    first, other = (Trainer(palette_dataset, small_config(seed=seed), tmp_path) for seed in (1, 2))
    assert not same(first.batch(0), other.batch(0))
    batches = [first.batch(step) for step in range(first.num_steps)]
    assert len({tuple(mask.order.flatten().tolist()) for _, mask in batches}) == first.num_steps


def test_an_epoch_shows_its_chips_and_no_more(palette_dataset, tmp_path):
    trainer = Trainer(palette_dataset, small_config(chips_per_epoch=37), tmp_path)
    sizes = [len(trainer.batch(step)[0].chip) for step in range(trainer.num_steps)]
    assert sizes == [16, 16, 5] * 2


# Under another light.


def test_jitter_multiplies_and_shifts_every_band_of_a_chip_and_nothing_else(
    reflectance_dataset, tmp_path
):
    jitter = 0.2
    plain = Trainer(reflectance_dataset, small_config(), tmp_path / "plain")
    trainer = Trainer(reflectance_dataset, small_config(jitter=jitter), tmp_path / "jitter")
    (batch, mask), (relit, other) = plain.batch(3), trainer.batch(3)
    assert torch.equal(mask.order, other.order)
    for name in ("valid", "class_counts", "chip"):
        assert torch.equal(getattr(batch, name), getattr(relit, name))
    assert same(trainer.batch(3), (relit, other))
    std = trainer.objective.model.normalise.std
    gains = []
    for chip in range(len(batch.chip)):
        by_band = []
        for band, deviation in enumerate(std.tolist()):
            x, y = batch.image[chip, band].flatten(), relit.image[chip, band].flatten()
            low, high = x.argmin(), x.argmax()
            gain = float((y[high] - y[low]) / (x[high] - x[low]))
            shift = float(y[low] - gain * x[low])
            torch.testing.assert_close(y, gain * x + shift, atol=1e-4, rtol=1e-3)
            assert abs(gain - 1) <= 1.5 * jitter + 1e-3
            assert abs(shift) <= 3 * jitter * deviation + 1e-3
            by_band.append(gain)
        gains.append(by_band)
    assert np.std(gains, axis=1).min() > 0  # bands by themselves
    assert np.std(np.mean(gains, axis=1)) > 0.03  # and all of a chip together


def test_colours_that_stand_for_classes_have_no_light(palette_dataset, tmp_path):
    with pytest.raises(ConfigError, match=r"training\.jitter 0\.2: .* stand for classes"):
        pretrain(palette_dataset, small_config(jitter=0.2), tmp_path)


# Where chips are cut.


@pytest.mark.parametrize(
    ("size_px", "chip_px", "starts"),
    [
        (128, 128, [0]),
        (480, 128, [0, 117, 235, 352]),
        (240, 128, [0, 112]),
        (150, 128, [11]),
        (512, 128, [0, 128, 256, 384]),
    ],
)
def test_fixed_windows_are_spread_evenly_from_edge_to_edge(size_px, chip_px, starts):
    windows = fixed_windows([5, 2], size_px, chip_px)
    places = [(row, col) for row in starts for col in starts]
    assert [(w.chip, w.row, w.col, w.symmetry) for w in windows] == [
        (chip, row, col, 0) for chip in (5, 2) for row, col in places
    ]


@given(st.integers(3, 40), st.integers(0, 60))
def test_fixed_windows_are_as_many_as_fit_rounded_and_lie_inside(chip_px, spare):
    size_px = chip_px + spare
    windows = fixed_windows([0], size_px, chip_px)
    assert len(windows) == round(size_px / chip_px) ** 2
    assert len(set(windows)) == len(windows)
    rows = {w.row for w in windows}
    assert min(rows) >= 0
    assert max(rows) <= spare
    if len(rows) > 1:
        assert (min(rows), max(rows)) == (0, spare)


# The eight symmetries of a square.


def test_the_symmetries_are_the_eight_of_a_square():
    square = np.arange(9).reshape(3, 3)
    turned = [np.rot90(square, turns) for turns in range(4)]
    expected = {tuple(way.flatten()) for each in turned for way in (each, each.T)}
    assert {tuple(symmetric(square, way).flatten()) for way in range(8)} == expected
    assert len(expected) == 8
    assert np.array_equal(symmetric(square, 0), square)


@pytest.mark.parametrize("way", range(8))
def test_pixels_validity_and_labels_are_turned_together(reflectance_dataset, way):
    dataset = reflectance_dataset
    chip = int(dataset.indices("train")[0])
    (plain, turned) = (cut(dataset, [Window(chip, 3, 5, symmetry)], 32, 8) for symmetry in (0, way))
    assert np.array_equal(turned.image[0], symmetric(plain.image[0].numpy(), way))
    assert np.array_equal(turned.valid[0], symmetric(plain.valid[0].numpy(), way))
    shown = np.where(dataset.valid(chip), dataset.landcover(chip), IGNORE)
    labels = symmetric(shown[3:35, 5:37], way)
    assert np.array_equal(turned.class_counts[0], patch_class_counts(labels[None].copy(), 8)[0])


# What a batch holds.


def test_a_batch_holds_physical_values_of_its_windows(reflectance_dataset):
    dataset = reflectance_dataset
    windows = [Window(4, 0, 16), Window(1, 9, 2)]
    batch = cut(dataset, windows, 32, 8)
    assert batch.chip.tolist() == [4, 1]
    for place, window in enumerate(windows):
        part = np.s_[..., window.row : window.row + 32, window.col : window.col + 32]
        stored = dataset.image(window.chip)[part]
        np.testing.assert_allclose(batch.image[place], stored * 1e-4 - 0.1, rtol=1e-5, atol=1e-7)
        assert np.array_equal(batch.valid[place], dataset.valid(window.chip)[part])
        labels = dataset.landcover(window.chip)[part].copy()
        labels[~dataset.valid(window.chip)[part]] = IGNORE
        assert batch.class_counts[place].sum() == (labels != IGNORE).sum()
        assert np.array_equal(batch.class_counts[place], patch_class_counts(labels[None], 8)[0])


def test_palette_colours_lie_in_zero_to_one(palette_dataset):
    batch = cut(palette_dataset, fixed_windows([0], 48, 32), 32, 8)
    assert batch.image.min() >= 0
    assert 0.5 < batch.image.max() <= 1


def test_labels_lie_under_their_pixels(palette_dataset):
    """In palette chips a patch of one colour has one class."""
    batch = cut(palette_dataset, fixed_windows(range(8), 48, 32), 32, 8)
    flat = patchify(batch.image, 8).view(-1, 16, 3, 64)
    one_colour = (flat == flat[..., :1]).all(3).all(2)
    one_class = (batch.class_counts > 0).sum(2) <= 1
    assert one_colour.any()
    assert not one_colour.all()
    assert one_class[one_colour].all()


# Masks.


def test_evaluation_masks_are_the_same_on_every_machine():
    masks = evaluation_mask(["delhi_ncr/0/0", "delhi_ncr/0/128"], 16, 12)
    assert masks.visible.tolist() == [[7, 10, 11, 15], [5, 7, 10, 13]]


def test_evaluation_masks_depend_on_the_place_alone(palette_dataset):
    def by_place(batch_size):
        found = {}
        for windows, _, mask in fixed_batches(palette_dataset, "test", MODEL, batch_size):
            ids = window_ids(palette_dataset, windows)
            found |= dict(zip(ids, mask.order.tolist(), strict=True))
        return found

    masks = by_place(64)
    assert by_place(1) == by_place(7) == masks
    windows = fixed_windows(palette_dataset.indices("test").tolist(), 48, 32)
    backwards = window_ids(palette_dataset, windows[::-1])
    assert evaluation_mask(backwards, 16, 12).order.tolist() == [masks[i] for i in backwards]


def test_a_place_has_its_mask_in_whatever_dataset_it_lies(palette_dataset, tmp_path):
    other = small_dataset(tmp_path / "d", many_bands(1), regions=("north", "east"))

    def masks(dataset):
        return {
            key: order
            for split in ("train", "val", "test")
            for windows, _, mask in fixed_batches(dataset, split, MODEL, 16)
            for key, order in zip(window_ids(dataset, windows), mask.order.tolist(), strict=True)
        }

    here, there = masks(palette_dataset), masks(other)
    common = {*here} & {*there}
    assert {key.split("/")[0] for key in common} == {"east"}
    assert len(common) > 20
    assert all(here[key] == there[key] for key in common)


def test_a_split_is_shown_once_whole(palette_dataset):
    chips = palette_dataset.indices("val").tolist()
    seen = [w for windows, _, _ in fixed_batches(palette_dataset, "val", MODEL, 5) for w in windows]
    assert seen == fixed_windows(chips, 48, 32)
    assert len(seen) == 4 * len(chips)
