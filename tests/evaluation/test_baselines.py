from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bharateo.evaluation.baselines import BASELINES, Seen
from bharateo.models.heads import Batch
from bharateo.models.patches import Mask, mask_from_noise, patchify, pull_push

GRID, PATCH, BANDS = 4, 2, 2
TRAIN_MEAN = torch.tensor([0.25, -0.5])
MAJORITY = 6
every_baseline = pytest.mark.parametrize("name", BASELINES)


def case(seed, chips=3, share_valid=0.6, share_labelled=0.6):
    """A batch with missing pixels and labels, and whole tokens without; and a mask."""
    rng = np.random.default_rng(seed)
    side, tokens = GRID * PATCH, GRID**2
    image = torch.from_numpy(rng.random((chips, BANDS, side, side)).astype(np.float32))
    valid = rng.random((chips, side, side)) < share_valid
    empty = rng.random((chips, GRID, GRID)) < 0.3
    valid &= ~empty.repeat(PATCH, 1).repeat(PATCH, 2)
    counts = rng.integers(0, 3, (chips, tokens, 8)) * (rng.random((chips, tokens, 8)) < 0.5)
    counts *= rng.random((chips, tokens, 1)) < share_labelled
    mask = mask_from_noise(torch.from_numpy(rng.random((chips, tokens))), 11)
    batch = Batch(image, torch.from_numpy(valid), torch.from_numpy(counts), torch.arange(chips))
    return batch, mask


def filled(name, batch, mask):
    """What a baseline makes of a batch: its patches ``[chip, token, band, pixel]``, the largest of
    every token's class counts, row-major.
    """
    made = BASELINES[name](Seen.of(batch, mask, TRAIN_MEAN, MAJORITY))
    assert made.valid.all()
    assert (made.class_counts.sum(2) > 0).all()
    assert torch.equal(made.chip, batch.chip)
    return patchify(made.image, PATCH).unflatten(2, (BANDS, -1)), made.class_counts.argmax(2)


def by_hand(batch):
    """Values and validity per token: ``patches[chip][token][band][pixel]``, ``known[...]``."""
    known = patchify(batch.valid[:, None], PATCH)
    return patchify(batch.image, PATCH).unflatten(2, (BANDS, -1)), known


def mode(counts):
    """The most frequent class of one token, None without a label."""
    pixels = Counter(dict(enumerate(counts.tolist())))
    most = max(pixels.values())
    return None if most == 0 else min(cls for cls, number in pixels.items() if number == most)


def mean_of(units, known):
    """Mean per band over all known pixels of some tokens, None where there is none."""
    if not known.any():
        return None
    return torch.stack([units[:, band][known].mean() for band in range(BANDS)])


@given(st.integers(0, 2**32))
def test_majority_is_the_train_splits_mean_and_class(seed):
    batch, mask = case(seed)
    patches, classes = filled("majority", batch, mask)
    assert (classes == MAJORITY).all()
    assert (patches == TRAIN_MEAN[:, None]).all()


@given(st.integers(0, 2**32))
def test_mean_colour_is_that_of_the_visible_pixels(seed):
    batch, mask = case(seed)
    patches, classes = filled("mean_colour", batch, mask)
    units, known = by_hand(batch)
    for chip in range(3):
        visible = mask.visible[chip]
        mean = mean_of(units[chip, visible], known[chip, visible])
        expected = (TRAIN_MEAN if mean is None else mean)[:, None].expand(BANDS, PATCH**2)
        torch.testing.assert_close(patches[chip], expected.expand_as(patches[chip]))
        cls = mode(batch.class_counts[chip, visible].sum(0))
        assert (classes[chip] == (MAJORITY if cls is None else cls)).all()


def nearest_by_loops(token, usable):
    """The nearest usable token, the first in row-major order of equally near ones."""
    best = None
    for other in range(GRID**2):
        if other in usable:
            distance = (token // GRID - other // GRID) ** 2 + (token % GRID - other % GRID) ** 2
            if best is None or distance < best[0]:
                best = distance, other
    return None if best is None else best[1]


@given(st.integers(0, 2**32), st.sampled_from([0.0, 0.2, 0.6, 1.0]))
def test_nearest_visible_copies_the_nearest_token_that_has_something(seed, share):
    batch, mask = case(seed, share_valid=share, share_labelled=share)
    patches, classes = filled("nearest_visible", batch, mask)
    units, known = by_hand(batch)
    for chip in range(3):
        visible = mask.visible[chip].tolist()
        with_pixels = [token for token in visible if known[chip, token].any()]
        labelled = [token for token in visible if batch.class_counts[chip, token].any()]
        for token in range(GRID**2):
            source = nearest_by_loops(token, labelled)
            cls = MAJORITY if source is None else mode(batch.class_counts[chip, source])
            assert classes[chip, token] == cls
            source = nearest_by_loops(token, with_pixels)
            if source is None:
                expected = TRAIN_MEAN[:, None].expand(BANDS, PATCH**2)
            else:
                mean = mean_of(units[chip, [source]], known[chip, [source]])
                expected = torch.where(known[chip, source], units[chip, source], mean[:, None])
            torch.testing.assert_close(patches[chip, token], expected)


def test_of_equally_near_tokens_the_first_is_copied():
    batch, _ = case(0, chips=1, share_valid=1.1, share_labelled=1.1)
    batch = replace(batch, valid=torch.ones_like(batch.valid))
    counts = torch.zeros_like(batch.class_counts)
    counts[0, [1, 4, 6, 9], [3, 4, 5, 7]] = 1  # around token 5
    visible, hidden = [1, 4, 6, 9], [t for t in range(16) if t not in (1, 4, 6, 9)]
    mask = Mask(torch.tensor([visible + hidden]), 4)
    patches, classes = filled("nearest_visible", replace(batch, class_counts=counts), mask)
    units, _ = by_hand(batch)
    assert classes[0, 5] == 3
    assert torch.equal(patches[0, 5], units[0, 1])


def test_visible_tokens_are_their_own_nearest():
    batch, mask = case(3, share_labelled=1.1)
    counts = batch.class_counts.clone()
    counts[..., 2] += 1
    _, classes = filled("nearest_visible", replace(batch, class_counts=counts), mask)
    for chip in range(3):
        for token in mask.visible[chip].tolist():
            assert classes[chip, token] == mode(counts[chip, token])


# Inpainting.


def ramp(side):
    row, col = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    return torch.stack([0.3 + row / side, 1 - (row + col) / side])[None].float()


@given(st.integers(0, 2**32), st.sampled_from([8, 12, 7, 1]), st.floats(0.05, 1.0))
def test_inpainting_leaves_visible_pixels_alone(seed, side, share):
    rng = np.random.default_rng(seed)
    image = torch.from_numpy(rng.random((2, BANDS, side, side)).astype(np.float32))
    weight = torch.from_numpy((rng.random((2, 1, side, side)) < share).astype(np.float32))
    filled = pull_push(image * weight, weight, TRAIN_MEAN)
    assert torch.equal(filled * weight, image * weight)
    assert filled.isfinite().all()
    for chip in range(2):
        for band in range(BANDS):
            known = image[chip, band][weight[chip, 0] > 0]
            if len(known):
                assert filled[chip, band].min() >= known.min() - 1e-5
                assert filled[chip, band].max() <= known.max() + 1e-5


@given(st.integers(0, 2**32), st.sampled_from([8, 12, 7, 16]))
def test_inpainting_gives_a_constant_back_exactly(seed, side):
    weight = torch.from_numpy(
        (np.random.default_rng(seed).random((1, 1, side, side)) < 0.3).astype(np.float32)
    )
    weight[0, 0, 0, 0] = 1
    filled = pull_push(0.75 * weight.expand(-1, 2, -1, -1), weight, TRAIN_MEAN)
    torch.testing.assert_close(filled, torch.full((1, 2, side, side), 0.75), rtol=1e-6, atol=0)


def test_inpainting_follows_a_ramp_roughly():
    image = ramp(32)
    grid = torch.zeros(1, 1, 4, 4)
    grid[0, 0, ::2, ::2] = grid[0, 0, 1::2, 1::2] = 1  # every second patch of 8 px
    weight = grid.repeat_interleave(8, 2).repeat_interleave(8, 3)
    error = (pull_push(image * weight, weight, TRAIN_MEAN) - image).abs()
    constant = (image - (image * weight).sum((2, 3), keepdim=True) / weight.sum()).abs()
    hidden = weight.expand_as(image) == 0
    assert error[hidden].mean() < 0.4 * constant[hidden].mean()
    assert error.max() < 0.35


@pytest.mark.parametrize("side", [7, 14, 112])
def test_inpainting_asks_the_neighbours_whatever_the_size(side):
    """Of seven patches a side, those far away have no say."""
    image = torch.zeros(1, 1, side, side)
    image[..., side // 2 :] = 1
    weight = torch.ones(1, 1, 7, 7)
    weight[0, 0, 3, 0] = 0
    weight = weight.repeat_interleave(side // 7, 2).repeat_interleave(side // 7, 3)
    assert pull_push(image * weight, weight, torch.zeros(1))[..., 0].max() < 0.2


def test_one_hidden_pixel_takes_what_its_surroundings_say():
    image = torch.tensor([[[[1.0, 3.0], [5.0, 0.0]]]])
    weight = torch.tensor([[[[1.0, 1.0], [1.0, 0.0]]]])
    assert pull_push(image, weight, torch.zeros(1))[0, 0, 1, 1] == 3


def test_where_nothing_is_visible_the_train_mean_stands():
    weight = torch.zeros(1, 1, 8, 8)
    filled = pull_push(torch.zeros(1, BANDS, 8, 8), weight, TRAIN_MEAN)
    assert (filled == TRAIN_MEAN[:, None, None]).all()


@given(st.integers(0, 2**32))
def test_bilinear_fills_pixels_and_class_shares_by_inpainting(seed):
    batch, mask = case(seed)
    patches, classes = filled("bilinear", batch, mask)
    units, known = by_hand(batch)
    side = GRID * PATCH
    for chip in range(3):
        image, weight = torch.zeros(1, BANDS, side, side), torch.zeros(1, 1, side, side)
        shares, labelled = torch.zeros(1, 8, GRID, GRID), torch.zeros(1, 1, GRID, GRID)
        for token in mask.visible[chip].tolist():
            row, col = token // GRID, token % GRID
            square = np.s_[0, :, row * PATCH : (row + 1) * PATCH, col * PATCH : (col + 1) * PATCH]
            image[square] = (units[chip, token] * known[chip, token]).view(BANDS, PATCH, PATCH)
            weight[square] = known[chip, token].view(1, PATCH, PATCH).float()
            counts = batch.class_counts[chip, token].float()
            if counts.any():
                shares[0, :, row, col] = counts / counts.sum()
                labelled[0, 0, row, col] = 1
        whole = patchify(pull_push(image, weight, TRAIN_MEAN), PATCH)[0]
        torch.testing.assert_close(patches[chip].flatten(1), whole)
        most = pull_push(shares, labelled, torch.zeros(8))[0].argmax(0).flatten()
        expected = most if labelled.any() else torch.full_like(most, MAJORITY)
        assert torch.equal(classes[chip], expected)


# All of them.


@every_baseline
@given(seed=st.integers(0, 2**32))
def test_a_baseline_leaves_nothing_unknown(name, seed):
    batch, mask = case(seed, share_valid=0.2, share_labelled=0.2)
    patches, classes = filled(name, batch, mask)
    assert patches.shape == (3, 16, BANDS, PATCH**2)
    assert patches.isfinite().all()
    assert classes.shape == (3, 16)


@every_baseline
@given(seed=st.integers(0, 2**32))
def test_a_baseline_never_reads_a_masked_token_or_an_invalid_pixel(name, seed):
    batch, mask = case(seed)
    hidden = mask.hidden.view(-1, GRID, GRID).repeat_interleave(PATCH, 1)
    hidden = hidden.repeat_interleave(PATCH, 2)
    unseen = hidden | ~batch.valid
    other = replace(
        batch,
        image=batch.image.masked_fill(unseen[:, None], float("nan")),
        valid=torch.where(hidden, ~batch.valid, batch.valid),
        class_counts=torch.where(mask.hidden[..., None], 3, batch.class_counts),
    )
    expected, got = (filled(name, each, mask) for each in (batch, other))
    for one, two in zip(expected, got, strict=True):
        assert torch.equal(one, two)


def test_what_is_hidden_is_blanked_out():
    batch, mask = case(0)
    seen = Seen.of(batch, mask, TRAIN_MEAN, MAJORITY)
    assert not seen.valid[mask.hidden].any()
    assert not seen.patches[mask.hidden].any()
    assert not seen.counts[mask.hidden].any()
    values, known = by_hand(batch)
    every_band = known[:, :, None].expand(-1, -1, BANDS, -1)
    visible = ~mask.hidden[..., None, None] & every_band
    torch.testing.assert_close(seen.patches[visible], values[visible])
    assert not seen.patches[~visible].any()
