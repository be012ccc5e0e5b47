import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bharateo.models.kernels import take_patches
from bharateo.models.patches import (
    Mask,
    mask_from_noise,
    num_masked,
    patchify,
    take_tokens,
    unpatchify,
)

shapes = st.tuples(
    st.integers(1, 3),  # chips
    st.sampled_from([1, 2, 3, 10, 13]),  # bands
    st.integers(1, 9),  # patch_px
    st.integers(1, 5),  # patch rows
    st.integers(1, 5),  # patch cols
)
noises = st.tuples(st.integers(1, 4), st.integers(2, 80), st.floats(0, 1), st.integers(0, 2**32))


def numbered(shape):
    chips, bands, patch_px, rows, cols = shape
    return torch.arange(chips * bands * rows * cols * patch_px**2).reshape(
        chips, bands, rows * patch_px, cols * patch_px
    )


def drawn(noise):
    chips, tokens, ratio, seed = noise
    rng = np.random.default_rng(seed)
    return mask_from_noise(torch.from_numpy(rng.random((chips, tokens))), num_masked(tokens, ratio))


@given(shapes)
def test_unpatchify_undoes_patchify(shape):
    _, _, patch_px, _, cols = shape
    image = numbered(shape)
    assert torch.equal(unpatchify(patchify(image, patch_px), patch_px, cols), image)


@given(shapes)
def test_a_patch_is_band_row_col_of_its_square_and_tokens_are_row_major(shape):
    chips, _, patch_px, rows, cols = shape
    image = numbered(shape)
    patches = patchify(image, patch_px)
    for chip in range(chips):
        for token in range(rows * cols):
            row, col = token // cols * patch_px, token % cols * patch_px
            square = image[chip, :, row : row + patch_px, col : col + patch_px]
            assert torch.equal(patches[chip, token], square.flatten())


@given(shapes, st.integers(0, 2**32))
def test_taking_patches_is_gathering_from_all_of_them(shape, seed):
    chips, _, patch_px, rows, cols = shape
    image = numbered(shape)
    index = torch.from_numpy(np.random.default_rng(seed).integers(0, rows * cols, (chips, 7)))
    gathered = take_tokens(patchify(image, patch_px), index)
    assert torch.equal(take_patches(image, patch_px, index), gathered)


def test_taking_tokens_follows_each_chips_own_index():
    tokens = torch.arange(2 * 3 * 2).reshape(2, 3, 2)
    taken = take_tokens(tokens, torch.tensor([[2, 0], [1, 1]]))
    assert taken.tolist() == [[[4, 5], [0, 1]], [[8, 9], [8, 9]]]


@given(noises)
def test_a_mask_hides_exactly_the_truncated_share(noise):
    _, tokens, ratio, _ = noise
    mask = drawn(noise)
    assert (mask.hidden.sum(1) == int(tokens * ratio)).all()
    assert mask.masked.shape[1] == int(tokens * ratio)
    assert mask.visible.shape[1] == mask.num_visible == tokens - int(tokens * ratio)


def test_three_quarters_of_64_tokens_are_48():
    assert num_masked(64, 0.75) == 48


@given(noises)
def test_the_order_holds_every_token_once_visible_ones_first(noise):
    chips, tokens, _, _ = noise
    mask = drawn(noise)
    assert torch.equal(mask.order.sort(1).values, torch.arange(tokens).expand(chips, -1))
    for chip in range(chips):
        assert not mask.hidden[chip, mask.visible[chip]].any()
        assert mask.hidden[chip, mask.masked[chip]].all()
    for part in (mask.visible, mask.masked):
        assert torch.equal(part, part.sort(1).values)


def test_the_tokens_with_the_largest_noise_are_hidden():
    mask = mask_from_noise(torch.tensor([[0.3, 0.9, 0.1, 0.7]]), 2)
    assert mask.visible.tolist() == [[0, 2]]
    assert mask.masked.tolist() == [[1, 3]]
    assert mask.hidden.tolist() == [[False, True, False, True]]


@given(noises)
def test_restoring_undoes_the_order(noise):
    chips, tokens, _, _ = noise
    mask = drawn(noise)
    values = torch.arange(chips * tokens * 2).reshape(chips, tokens, 2)
    assert torch.equal(mask.restore(take_tokens(values, mask.order)), values)


def test_restoring_works_for_tokens_with_and_without_further_axes():
    mask = Mask(torch.tensor([[2, 0, 1]]), 1)
    assert mask.restore(torch.tensor([[20, 0, 10]])).tolist() == [[0, 10, 20]]
    assert mask.restore(torch.tensor([[[[2]], [[0]], [[1]]]])).flatten().tolist() == [0, 1, 2]


@pytest.mark.parametrize("chips", [200])
def test_every_token_is_hidden_equally_often(chips):
    noise = torch.from_numpy(np.random.default_rng(0).random((20 * chips, 16)))
    share = mask_from_noise(noise, 12).hidden.double().mean(0)
    assert (share - 0.75).abs().max() < 0.03


def test_the_tests_run_with_checked_shapes():
    with pytest.raises(jaxtyping.TypeCheckError):
        patchify(torch.zeros(3, 8, 8), 4)
