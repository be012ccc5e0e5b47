import pytest
from hypothesis import given
from hypothesis import strategies as st

from bharateo.accounting import Accounting, Row, published
from bharateo.errors import ConfigError


def test_the_small_published_run_is_counted_as_published():
    run = published()["BharatEO-v0"]
    assert (run.tokens_per_chip, run.masked_per_chip, run.visible_per_chip) == (64, 48, 16)
    assert run.values_per_token == 768
    assert run.chip_presentations == 7_680
    assert run.token_presentations == 491_520
    assert run.visible_inputs == 122_880
    assert run.masked_targets == 368_640
    assert run.masked_pixels == 94_371_840
    assert run.scalar_targets == 283_115_520


def test_the_large_published_run_is_counted_as_published():
    run = published()["1 M Sentinel-2 chips"]
    assert run.values_per_token == 2_560
    assert run.token_presentations == 6_400_000_000
    assert run.visible_inputs == 1_600_000_000
    assert run.masked_targets == 4_800_000_000
    assert run.masked_pixels == 1_228_800_000_000
    assert run.scalar_targets == 12_288_000_000_000


@given(
    grid=st.integers(2, 40),
    patch_px=st.integers(1, 32),
    num_bands=st.integers(1, 13),
    mask_ratio=st.floats(0.25, 0.99),
)
def test_visible_and_masked_tokens_make_up_all_tokens(grid, patch_px, num_bands, mask_ratio):
    run = Accounting(7, 3, grid * patch_px, patch_px, num_bands, mask_ratio)
    assert run.masked_per_chip == int(grid**2 * mask_ratio)
    assert run.visible_inputs + run.masked_targets == run.token_presentations
    assert run.visible_per_chip > 0
    assert run.scalar_targets == run.masked_targets * run.values_per_token


def test_rows_name_pixels_and_scalars_apart_and_hold_the_properties():
    run = published()["BharatEO-v0"]
    rows = {row.name: row for row in run.rows()}
    assert rows["masked pixels"].unit == "pixels"
    assert rows["scalar targets"].unit == "scalars"
    assert all(row.value == getattr(run, row.name.replace(" ", "_")) for row in rows.values())
    assert all(row.meaning for row in rows.values())


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (1_365_717_811_200_000_000, "1,365,717,811,200,000,000"),
        (0.0, "0"),
        (0.000123456, "0.000123"),
        (1.2781, "1.28"),
        (999.4, "999"),
        (999.6, "1,000"),
        (21733.6, "21,734"),
    ],
)
def test_a_rows_value_is_shown_whole_or_with_three_digits(value, shown):
    assert Row("time", value, "hours", "").shown == shown


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"patch_px": 24}, "patch_px 24 does not divide chip_px 128.*such as 16"),
        ({"chips": 0}, "chips 0"),
        ({"num_bands": -1}, "num_bands -1"),
        ({"mask_ratio": 1.0}, "mask_ratio 1.0"),
        ({"mask_ratio": -0.1}, "mask_ratio -0.1"),
        ({"mask_ratio": 0.001}, "hides none"),
    ],
)
def test_a_run_that_cannot_be_counted_is_refused_by_name(change, named):
    plain = {"chips": 1, "epochs": 1, "chip_px": 128, "patch_px": 16, "num_bands": 3}
    with pytest.raises(ConfigError, match=named):
        Accounting(**{**plain, "mask_ratio": 0.75, **change})
