from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from synthetic import region

from bharateo.chips.ground import Site, split_counts
from bharateo.chips.layouts import CELL_PX, check_splits, lay_out
from bharateo.config import PlanConfig, SplitConfig
from bharateo.errors import ConfigError
from bharateo.regions import NAMED_ROIS, Region, Roi, worldcover_region

THREE = [worldcover_region(roi) for roi in NAMED_ROIS.values()]


@st.composite
def layouts(draw: st.DrawFn) -> tuple[list[Region], PlanConfig, int]:
    """Up to three regions of one grid, which may overlap, and a plan that fits them."""
    size_px = draw(st.integers(6, 24))
    buffer_px = draw(st.integers(0, 9))
    block_px = draw(st.integers(size_px + buffer_px + 1, 60))
    regions = [
        region(
            f"r{index}",
            draw(st.integers(size_px, 120)),
            draw(st.integers(size_px, 120)),
            draw(st.integers(-100, 100)),
            draw(st.integers(-100, 100)),
        )
        for index in range(draw(st.integers(1, 3)))
    ]
    split = SplitConfig(
        block_px, buffer_px, draw(st.sampled_from([0, 0.1, 0.3])), draw(st.sampled_from([0, 0.4]))
    )
    strategy = draw(st.sampled_from(["grid", "random"]))
    chips = 12 if strategy == "random" else None
    return regions, PlanConfig(strategy, size_px, chips, split=split), draw(st.integers(0, 99))


def drawn_sites(regions: list[Region], plan: PlanConfig, seed: int) -> list[Site]:
    """Like ``plan_sites`` where an empty split is no matter."""
    layout = lay_out(regions, plan, seed)
    sites: list[Site] = []
    for index in range(len(regions)):
        candidates = layout.candidates(index)
        first = candidates if plan.strategy == "grid" else (next(candidates) for _ in range(60))
        sites += [site for site in first if layout.is_clear(site)]
    return sites


def plan_sites(regions: list[Region], plan: PlanConfig, seed: int) -> list[Site]:
    """All sites of a plan, taking every pixel for usable."""
    layout = lay_out(regions, plan, seed)
    indices = range(len(regions))
    sites = [site for index in indices for site in layout.select(index, lambda site: site)]
    check_splits(Counter(site.split for site in sites), plan)
    return sites


def first_pixels(sites: list[Site], regions: list[Region]) -> np.ndarray:
    """First row and column of every site in pixels of the grid that all regions share."""
    origins = [
        ((3_000_000 - r.geobox.affine.f) / 10, (r.geobox.affine.c - 500_000) / 10) for r in regions
    ]
    return np.array(
        [np.add(origins[s.region_index], (s.row, s.col)) for s in sites], dtype=int
    ).reshape(-1, 2)


@settings(deadline=None)
@given(layouts())
def test_sites_of_different_splits_are_a_buffer_apart(case):
    regions, plan, seed = case
    sites = drawn_sites(regions, plan, seed)
    first = first_pixels(sites, regions)
    gap = (np.abs(first[:, None] - first[None]) - plan.size_px).max(axis=-1)
    splits = np.array([site.split for site in sites])
    differs = splits[:, None] != splits[None]
    assert (gap[differs] >= max(plan.split.buffer_px, 0)).all()


@settings(deadline=None)
@given(layouts())
def test_all_sites_lie_inside_their_region(case):
    regions, plan, seed = case
    for site in drawn_sites(regions, plan, seed):
        height, width = regions[site.region_index].geobox.shape
        assert site.region == regions[site.region_index].name
        assert 0 <= site.row <= height - plan.size_px
        assert 0 <= site.col <= width - plan.size_px


@settings(deadline=None)
@given(layouts())
def test_sites_of_a_grid_never_overlap_in_a_region(case):
    regions, plan, seed = case
    sites = drawn_sites(regions[:1], replace(plan, strategy="grid", chips_per_roi=None), seed)
    first = np.array([(site.row, site.col) for site in sites]).reshape(-1, 2)
    gap = (np.abs(first[:, None] - first[None]) - plan.size_px).max(axis=-1)
    np.fill_diagonal(gap, 0)
    assert (gap >= 0).all()


@settings(deadline=None)
@given(layouts())
def test_the_same_seed_gives_the_same_sites(case):
    assert drawn_sites(*case) == drawn_sites(*case)


@settings(deadline=None)
@given(layouts())
def test_a_block_belongs_to_one_split_and_test_ground_is_never_given_up(case):
    regions, plan, seed = case
    splits = {}
    for site in drawn_sites(regions, plan, seed):
        assert splits.setdefault(site.block, site.split) == site.split
    layout = lay_out(regions, plan, seed)
    for index, grounds in enumerate(layout.grounds):
        for ground in grounds:
            if ground.split == "test":
                site = Site("", index, ground.row, ground.col, plan.size_px, "test", "")
                assert layout.is_clear(site)


@given(st.integers(0, 400), st.floats(0, 0.6), st.floats(0, 0.39))
def test_split_fractions_are_respected(num_blocks, test, val):
    num_test, num_val = split_counts(num_blocks, SplitConfig(test=test, val=val))
    for num, fraction in ((num_test, test), (num_val, val)):
        assert abs(num - fraction * num_blocks) <= 1
        if fraction == 0 or num_blocks >= 3:
            assert (num > 0) == (fraction > 0)
    assert num_blocks - num_test - num_val >= min(num_blocks, 1)


def test_three_regions_of_the_v0_experiment_give_48_squares_split_11_2_3():
    sites = plan_sites(THREE, PlanConfig(), 42)
    assert Counter((site.region, site.split) for site in sites) == {
        (region.name, split): num
        for region in THREE
        for split, num in (("train", 11), ("val", 2), ("test", 3))
    }
    assert {(site.row, site.col) for site in sites if site.block == "delhi_ncr/0-1"} == {(8, 528)}


def test_another_region_changes_nothing_in_the_first():
    alone = plan_sites(THREE[:1], PlanConfig(), 42)
    together = plan_sites(THREE, PlanConfig(), 42)
    assert [site for site in together if site.region_index == 0] == alone


def test_random_windows_are_uniform_over_all_positions():
    plan = PlanConfig("random", 10, 1, split=None)
    candidates = lay_out([region("r", 20, 13)], plan, 0).candidates(0)
    counts = Counter((site.row, site.col) for site, _ in zip(candidates, range(8800), strict=False))
    assert len(counts) == 11 * 4
    assert all(abs(num - 200) < 70 for num in counts.values())  # 5 standard deviations


def test_random_sites_are_as_many_as_asked_in_every_region():
    plan = PlanConfig("random", 128, 40)
    sites = plan_sites(THREE, plan, 1)
    assert Counter(site.region for site in sites) == {region.name: 40 for region in THREE}
    assert {site.split for site in sites} == {"train", "val", "test"}


def test_without_a_split_all_is_train_and_blocks_are_cells():
    plan = PlanConfig("random", 128, 200, split=None)
    sites = plan_sites(THREE[:1], plan, 1)
    assert {site.split for site in sites} == {"train"}
    assert all(
        site.block == f"delhi_ncr/{(site.row + 64) // CELL_PX}-{(site.col + 64) // CELL_PX}"
        for site in sites
    )


def test_a_grid_without_a_split_covers_the_region_evenly():
    sites = plan_sites([region("r", 100, 70)], PlanConfig("grid", 30, split=None), 0)
    assert [(s.row, s.col) for s in sites] == [(row, col) for row in (1, 35, 68) for col in (2, 37)]


def test_regions_too_small_to_cut_share_one_permutation():
    small = [region(f"r{i}", 30, 30, col=100 * i) for i in range(20)]
    sites = plan_sites(small, PlanConfig("grid", 30, split=SplitConfig(40, 4)), 0)
    assert Counter(site.split for site in sites) == {"train": 14, "val": 2, "test": 4}


def test_one_place_under_two_names_leaks_nothing():
    delhi = NAMED_ROIS["delhi_ncr"]
    twins = [worldcover_region(delhi), worldcover_region(replace(delhi, name="again"))]
    place = {"train": set(), "val": set(), "test": set()}
    for site in plan_sites(twins, PlanConfig(), 42):
        place[site.split].add((site.row, site.col))
    assert not place["train"] & place["test"]
    assert not place["train"] & place["val"]
    assert not place["val"] & place["test"]


def test_overlap_is_found_across_the_antimeridian_and_reference_systems():
    beyond = worldcover_region(Roi("beyond", 179.999, 66.0, 512))
    before = worldcover_region(Roi("before", -179.975, 66.0, 512))
    utm = Region("utm", GeoBox((400, 400), Affine(10, 0, 636000, 0, -10, 7325000), "EPSG:32660"))
    plan = PlanConfig("grid", 64, split=SplitConfig(80, 10, 0.2, 0.3))
    for pair in ([beyond, before], [utm, before], [before, utm], [beyond, utm]):
        layout = lay_out(pair, plan, 3)
        kept = [site for index in (0, 1) for site in layout.select(index, lambda site: site)]
        everything = sum(len(list(layout.candidates(index))) for index in (0, 1))
        assert 0 < len(kept) < everything


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        (PlanConfig(size_px=481), "size_px <= 480 or block_px >= 513"),
        (PlanConfig(size_px=0), r"plan: size_px: input should be greater.* 0; correct"),
        (PlanConfig(split=SplitConfig(val=0.5, test=0.5)), "val 0.5 and plan.split.test 0.5"),
        (PlanConfig(split=SplitConfig(val=-0.1)), r"split\.val: .* not -0.1"),
        (PlanConfig(split=SplitConfig(buffer_px=-1)), r"split\.buffer_px: .* not -1"),
        (PlanConfig("random", 128), "chips_per_roi None"),
        (PlanConfig("grid", 128, 12), "chips_per_roi 12"),
        (PlanConfig("spiral"), r"strategy: .* 'blocks' or 'files', not 'spiral'"),  # type: ignore[arg-type]
        (PlanConfig(min_valid_fraction=50), r"min_valid_fraction: .* not 50"),
        (PlanConfig("grid", 4096, split=None), "'delhi_ncr' is 2048 x 2048 px, smaller than"),
    ],
)
def test_a_value_out_of_range_is_named_with_its_remedy(plan, said):
    with pytest.raises(ConfigError, match=said):
        plan_sites(THREE, plan, 0)


def test_a_region_given_twice_is_refused():
    with pytest.raises(ConfigError, match="'delhi_ncr' is given twice"):
        plan_sites([THREE[0], THREE[0]], PlanConfig(), 0)


def test_no_region_is_refused():
    with pytest.raises(ConfigError, match="at least one ROI"):
        plan_sites([], PlanConfig(), 0)


def test_an_empty_split_is_an_error_that_says_how_to_mend_it():
    with pytest.raises(ConfigError, match=r"'test' ends with no chip \(train 1, val 0, test 0\)"):
        plan_sites([region("r", 500, 500)], PlanConfig(), 0)


def test_random_windows_that_never_fit_give_up():
    layout = lay_out([region("r", 100, 100)], PlanConfig("random", 16, 3, split=None), 0)
    with pytest.raises(ConfigError, match="only 0 of 600 random windows in region 'r'"):
        layout.select(0, lambda site: None)
