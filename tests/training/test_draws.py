"""A presentation is a function of seed, epoch and position, whoever draws it and with what else."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bharateo.errors import ConfigError
from bharateo.training.data import Draws, draw, epoch_order, share

FIELDS = tuple(Draws.__dataclass_fields__)


def drawn(positions, masks_per_chip=1, seed=3, epoch=1, spare_px=9, num_tokens=16, augment=True):
    """Draws in which every loaded chip's square is 1000 and its place."""
    positions = np.asarray(positions, np.int64)
    chips = 1000 + positions // masks_per_chip
    return draw(
        positions, chips, spare_px, num_tokens, augment, seed, epoch, masks_per_chip, num_light=5
    )


def assert_same(draws, other):
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(draws, name), getattr(other, name))


# Which chips an epoch loads.


@given(st.integers(1, 30), st.integers(0, 200), st.integers(0, 2**40), st.integers(0, 9))
def test_by_default_an_epoch_is_one_shuffle_after_the_other(num_squares, num_chips, seed, epoch):
    squares = np.arange(num_squares) * 3
    order = epoch_order(squares, num_chips, seed, epoch)
    rng = np.random.default_rng([seed, epoch])
    shuffles = [rng.permutation(squares) for _ in range(-(-num_chips // num_squares) + 1)]
    np.testing.assert_array_equal(order, np.concatenate(shuffles)[:num_chips])


@given(
    st.integers(1, 60),
    st.integers(0, 300),
    st.one_of(st.none(), st.integers(1, 400)),
    st.integers(1, 9),
    st.integers(0, 99),
)
def test_squares_are_shown_equally_often_in_their_lanes(
    num_squares, num_chips, window, lanes, seed
):
    lanes = min(lanes, num_squares)
    squares = np.arange(num_squares) * 3
    order = epoch_order(squares, num_chips, seed, 2, window, lanes)
    assert len(order) == num_chips
    for lane in range(lanes):
        own, shown = squares[lane::lanes], order[lane::lanes]
        assert set(shown) <= set(own)
        counts = np.bincount(shown, minlength=squares[-1] + 1)[own]
        assert counts.max() - counts.min() <= 1


def test_windows_hold_whole_runs_of_neighbours():
    order = epoch_order(np.arange(10_000), 10_000, 1, 0, shuffle_window=1024)
    assert sorted(order) == list(range(10_000))
    for start in range(0, 9_000, 1024):
        window = np.sort(order[start : start + 1024])
        assert (np.diff(window) > 1).sum() <= 1024 // 64 + 1
        assert np.ptp(window) > 5_000  # runs from everywhere
        assert (np.diff(order[start : start + 1024]) == 1).mean() < 0.01  # well mixed


def test_small_windows_make_small_runs():
    order = epoch_order(np.arange(4_000), 4_000, 1, 0, shuffle_window=80)
    window = np.sort(order[:80])
    assert (np.diff(window) > 1).sum() >= 5  # runs of 10
    assert sorted(epoch_order(np.arange(50), 50, 1, 0, shuffle_window=1)) == list(range(50))


@pytest.mark.parametrize("options", [{}, {"shuffle_window": 64}, {"lanes": 4}])
def test_seed_and_epoch_make_another_order(options):
    orders = {
        tuple(epoch_order(np.arange(200), 200, seed, epoch, **options))
        for seed in range(3)
        for epoch in range(3)
    }
    assert len(orders) == 9


def test_lanes_have_orders_of_their_own():
    order = epoch_order(np.arange(400), 400, 1, 0, lanes=4)
    ranks = [(order[lane::4] - lane) // 4 for lane in range(4)]
    assert len({tuple(rank) for rank in ranks}) == 4


def test_more_lanes_than_squares_are_refused():
    with pytest.raises(ConfigError, match=r"training.lanes 8 is more than the 7 squares"):
        epoch_order(np.arange(7), 7, 1, 0, lanes=8)


# Which rank shows what.


@given(
    st.integers(0, 1000),
    st.integers(1, 200),
    st.integers(1, 7),
    st.sampled_from([0, 1, 2, 3]),
    st.integers(1, 5),
)
def test_shares_are_disjoint_and_complete(start, size, num_ranks, multiple, masks):
    lanes = multiple * num_ranks or 1
    shares = [
        share(start, start + size, rank, num_ranks, lanes, masks) for rank in range(num_ranks)
    ]
    assert sorted(np.concatenate(shares)) == list(range(start, start + size))
    assert all((np.diff(own) > 0).all() for own in shares)
    chips = [set(own // masks) for own in shares]
    assert len(set().union(*chips)) == sum(len(own) for own in chips)  # chips stay whole
    sizes = [len(own) for own in chips]
    assert max(sizes) - min(sizes) <= 1
    for rank, own in enumerate(shares):
        if lanes > 1:
            assert {int(chip) % lanes % num_ranks for chip in own // masks} <= {rank}
        elif len(own):
            assert own[-1] - own[0] + 1 == len(own)


def test_a_tiny_batch_leaves_ranks_with_nothing():
    shares = [share(64, 66, rank, 4) for rank in range(4)]
    assert sorted(map(len, shares)) == [0, 0, 1, 1]
    draws = drawn(shares[[len(own) for own in shares].index(0)])
    assert len(draws) == 0
    assert draws.noise.shape == (0, 16)


def test_lanes_that_cannot_be_shared_are_refused():
    with pytest.raises(ConfigError, match=r"lanes 6 cannot be shared by 4 ranks: set it to a mult"):
        share(0, 64, 0, 4, lanes=6)


# What a presentation shows.


@given(
    st.integers(0, 300),
    st.integers(0, 80),
    st.integers(1, 70),
    st.integers(1, 5),
    st.integers(0, 9),
)
def test_a_part_of_an_epoch_is_drawn_as_it_is_in_the_whole(start, size, num_tokens, masks, seed):
    whole = drawn(range(400), masks, seed, num_tokens=num_tokens)
    part = drawn(range(start, start + size), masks, seed, num_tokens=num_tokens)
    assert_same(part, whole[start : start + size])


@given(st.sets(st.integers(0, 199)), st.integers(1, 4))
def test_scattered_positions_are_drawn_as_they_are_in_the_whole(chosen, masks):
    positions = sorted(chosen)
    part, whole = drawn(positions, masks), drawn(range(200), masks)
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[positions])


@given(
    st.integers(1, 64),
    st.integers(1, 6),
    st.booleans(),
    st.integers(1, 4),
    st.integers(1, 60),
)
def test_batch_size_and_ranks_change_no_presentation(batch, num_ranks, laned, masks, num_shown):
    lanes = 2 * num_ranks if laned else 1
    whole = drawn(range(num_shown), masks)
    seen = np.zeros(num_shown, int)
    for start in range(0, num_shown, batch):
        for rank in range(num_ranks):
            stop = min(start + batch, num_shown)
            positions = share(start, stop, rank, num_ranks, lanes, masks)
            draws = drawn(positions, masks)
            seen[positions] += 1
            for name in FIELDS:
                expected = getattr(whole, name)[positions]
                np.testing.assert_array_equal(getattr(draws, name), expected)
    assert (seen == 1).all()


def test_masks_of_a_chip_share_its_window_and_nothing_else():
    draws = drawn(range(400), masks_per_chip=4)
    for name in ("chip", "row", "col"):
        by_chip = getattr(draws, name).reshape(100, 4)
        assert (by_chip == by_chip[:, :1]).all()
        assert len(set(by_chip[:, 0])) > 5
    assert len({tuple(noise) for noise in draws.noise}) == 400
    assert (np.ptp(draws.symmetry.reshape(100, 4), axis=1) > 0).mean() > 0.9


def test_windows_and_symmetries_are_uniform_over_all_there_are():
    draws = drawn(range(18_000), spare_px=2)
    corners = np.bincount(draws.row * 3 + draws.col, minlength=9)
    symmetries = np.bincount(draws.symmetry, minlength=8)
    assert corners.shape == (9,)
    assert symmetries.shape == (8,)
    assert abs(corners / 2_000 - 1).max() < 0.1
    assert abs(symmetries / 2_250 - 1).max() < 0.1
    assert abs(draws.noise.mean() - 0.5) < 0.01
    assert draws.noise.min() >= 0
    assert draws.noise.max() < 1
    assert abs(np.corrcoef(draws.noise[:, :4].T) - np.eye(4)).max() < 0.05


def test_the_light_is_uniform_and_changes_nothing_else():
    light = drawn(range(4000)).light
    assert light.shape == (4000, 5)
    assert -1 <= light.min() < -0.99
    assert 0.99 < light.max() < 1
    assert np.abs(light.mean(0)).max() < 0.05
    whole = drawn(range(50))
    chips = whole.chip
    without = draw(np.arange(50), chips, 9, 16, True, 3, 1)
    assert without.light.shape == (50, 0)
    for name in ("row", "col", "symmetry", "noise"):
        np.testing.assert_array_equal(getattr(without, name), getattr(whole, name))


def test_a_square_of_the_chips_own_size_has_one_window():
    draws = drawn(range(50), spare_px=0)
    assert not draws.row.any()
    assert not draws.col.any()


def test_without_augmentation_chips_are_as_they_lie():
    plain, turned = drawn(range(50), augment=False), drawn(range(50))
    assert not plain.symmetry.any()
    assert turned.symmetry.any()
    np.testing.assert_array_equal(plain.noise, turned.noise)


def test_seed_and_epoch_make_other_draws():
    noises = {
        drawn(range(3), seed=seed, epoch=epoch).noise.tobytes()
        for seed in range(3)
        for epoch in range(3)
    }
    assert len(noises) == 9
    assert_same(drawn(range(3)), drawn(range(3)))


def test_what_is_drawn_is_the_same_on_every_machine():
    draws = drawn([0, 7])
    assert draws.row.tolist() == [8, 3]
    assert draws.col.tolist() == [9, 9]
    assert draws.symmetry.tolist() == [7, 4]
    np.testing.assert_allclose(draws.noise[:, 0], [0.6910312447882302, 0.6221581375570058])
