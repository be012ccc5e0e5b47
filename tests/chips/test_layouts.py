import math
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pyproj
import pytest
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from synthetic import region

from bharateo.chips.ground import Site
from bharateo.chips.layouts import ByPixels, Layout, lay_out, share_evenly
from bharateo.config import PlanConfig, SplitConfig
from bharateo.errors import ConfigError
from bharateo.geography import to_lonlat
from bharateo.landcover import IGNORE
from bharateo.regions import Region, Zone
from bharateo.sources.areas import sentinel2_regions

BLOCKS = PlanConfig("blocks", 24, split=SplitConfig(64, 8, 0.1, 0.2), chips_per_block=None)


def sites_of(plan: Layout) -> list[Site]:
    return [site for unit in plan.units for site in unit.sites or ()]


def block_place(site: Site) -> tuple[int, int]:
    row, col = site.block.rpartition("/")[2].split("-")
    return int(row), int(col)


def zoned(place: Region, *zones: tuple[str, shapely.Geometry]) -> Region:
    return replace(place, zones=tuple(Zone(name, outline) for name, outline in zones))


def halves(place: Region) -> Region:
    """The region cut into a zone ``west`` and a zone ``east``."""
    height, width = place.geobox.shape
    middle = width // 2
    west, east = shapely.box(0, 0, middle, height), shapely.box(middle, 0, width, height)
    return zoned(place, ("west", west), ("east", east))


# The promise: 10,000 random plans.

NUM_PLANS = 10_000

PLACE = 78.0, 28.0
"""Degrees: here two UTM zones meet, and two WorldCover tiles."""


def to_crs(epsg: int) -> pyproj.Transformer:
    return pyproj.Transformer.from_crs("EPSG:4326", f"EPSG:{epsg}", always_xy=True)


@dataclass(frozen=True)
class Ground:
    """A reference system with pixels of 10 m (or WorldCover's) whose corner lies at the place."""

    crs: CRS
    x: float
    y: float
    pixel: float
    to_metres: pyproj.Transformer | None


def ground(epsg: int) -> Ground:
    x, y = to_crs(epsg).transform(*PLACE)
    to_metres = None if epsg == 32643 else pyproj.Transformer.from_crs(epsg, 32643, always_xy=True)
    if epsg == 4326:
        return Ground(CRS("EPSG:4326"), x, y, 1 / 12000, to_metres)
    return Ground(CRS(f"EPSG:{epsg}"), x // 10 * 10.0, y // 10 * 10.0, 10.0, to_metres)


GROUNDS = {epsg: ground(epsg) for epsg in (32643, 32644, 4326)}


def random_region(random, name: str, epsg: int, size_px: int, shifted: bool) -> Region:
    """Some pixels at the place; ``shifted`` ones lie between the others or are twice as large."""
    on = GROUNDS[epsg]
    height, width, row, col = (int(n) for n in random.integers(0, 24, 4))
    pixel = on.pixel * (1 + (shifted and random.random() < 0.3))
    shift = random.uniform(0, pixel, 2) if shifted else (0, 0)
    x, y = on.x + (col - 12) * on.pixel + shift[0], on.y - (row - 12) * on.pixel - shift[1]
    shape = height + size_px, width + size_px
    return Region(name, GeoBox(shape, Affine(pixel, 0, x, 0, -pixel, y), on.crs))


def random_zones(random, place: Region) -> Region:
    height, width = place.geobox.shape
    cut = int(random.integers(1, width))
    west, east = shapely.box(0, 0, cut, height), shapely.box(cut, 0, width, height)
    if random.random() < 0.3:
        west = shapely.Polygon([(0, 0), (cut, 0), (0, height)])
    return zoned(place, ("a", west), ("b", east))


def random_squares(random, place: Region, size_px: int) -> Region:
    height, width = place.geobox.shape
    num = int(random.integers(1, 9))
    rows = random.integers(0, height - size_px + 1, num).tolist()
    cols = random.integers(0, width - size_px + 1, num).tolist()
    return replace(place, squares=tuple({*zip(rows, cols, strict=True)}))


STRATEGIES = ("blocks",) * 6 + ("grid",) * 2 + ("files",) * 2
KINDS = ("one grid",) * 5 + ("shifted",) * 3 + ("other systems",) * 2
NUM_REGIONS = (1,) * 4 + (2,) * 5 + (3,)
SHARES = ((0.0, 0.2), (0.1, 0.2), (0.1, 0.4), (0.3, 0.2), (0.3, 0.4))


def random_plan(random) -> tuple[list[Region], PlanConfig]:
    """One to three small regions that may lie on, beside or far enough from each other."""
    least = [3, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1]
    most = [9, 8, 9, 10, 10, 10, 5, 100, 4, 4, 6, 60]
    size_px, buffer_px, room, *picks = random.integers(least, most).tolist()
    strategy, kind = STRATEGIES[picks[0]], KINDS[picks[1]]
    regions = []
    for number in range(NUM_REGIONS[picks[2]]):
        epsg = (32644, 4326)[random.integers(2)] if kind == "other systems" and number else 32643
        regions.append(random_region(random, f"r{number}", epsg, size_px, kind == "shifted"))
    held_out: dict[str, tuple[str, ...]] = {}
    if strategy == "files":
        regions = [random_squares(random, each, size_px) for each in regions]
    elif strategy == "blocks" and picks[4] < 50:
        regions = [random_zones(random, each) for each in regions]
        if picks[4] < 25:
            held_out = {"test_zones": ("a",), "val_zones": ("b",) if picks[4] < 5 else ()}
    block_px = size_px + 2 * -(-buffer_px // 2) + room
    split = SplitConfig(block_px, buffer_px, *SHARES[picks[3]], **held_out)
    plan = PlanConfig(strategy, size_px, split=split)
    if strategy == "blocks":
        rows, cols, chips, num = picks[5:]
        plan = replace(
            plan,
            unit_blocks=(rows, cols),
            chips_per_block=chips if chips < 5 else None,
            num_chips=num if num < 30 else None,
        )
    return regions, plan


def planned(regions: list[Region], plan: PlanConfig, seed: int) -> list[Site]:
    layout = lay_out(regions, plan, seed)
    if isinstance(layout, ByPixels):
        return [s for i in range(len(regions)) for s in layout.select(i, lambda site: site)]
    return sites_of(layout)


def least_room(regions: list[Region], sites: list[Site], size_px: int, buffer_px: int) -> float:
    """By how many metres the nearest two sites of different splits keep more than the buffer.

    Measured between the squares' corners on the ground, along the axes where both have one
    reference system, else as the crow flies in the first one's; the larger pixels count.
    """
    number = {"train": 0, "val": 1, "test": 2}
    row, col, of_region, split = np.array(
        [(s.row, s.col, s.region_index, number[s.split]) for s in sites]
    ).T
    one, other = np.nonzero(np.triu(split[:, None] != split[None]))
    if not len(one):
        return np.inf
    affines = np.array([tuple(r.geobox.affine)[:6] for r in regions])[of_region]
    pixel, left, top = affines[:, 0], affines[:, 2], affines[:, 5]
    low = np.stack([left + col * pixel, top - (row + size_px) * pixel], axis=1)
    high = low + (size_px * pixel)[:, None]
    gap = np.maximum(low[one] - high[other], low[other] - high[one]).max(axis=1)
    room = gap - buffer_px * np.maximum(pixel[one], pixel[other])
    metres = np.array([1.0 if each.geobox.crs.projected else 111_120.0 for each in regions])
    room *= metres[of_region[one]]
    systems = np.array([each.geobox.crs.epsg for each in regions])[of_region]
    if (apart := systems[one] != systems[other]).any():
        squares = np.array([
            outline_in_metres(*ends, GROUNDS[epsg])
            for *ends, epsg in zip(low, high, systems, strict=True)
        ])  # fmt: skip
        distance = shapely.distance(squares[one[apart]], squares[other[apart]])
        room[apart] = distance - 10 * buffer_px
    return float(room.min())


def outline_in_metres(low, high, on: Ground) -> shapely.Polygon:
    (west, south), (east, north) = low, high
    x, y = np.array([west, east, east, west]), np.array([south, south, north, north])
    if on.to_metres:
        x, y = on.to_metres.transform(x, y)
    return shapely.Polygon(np.stack([x, y], axis=1))


@pytest.mark.slow
@pytest.mark.long
def test_no_chip_lies_within_the_buffer_of_another_splits_in_10_000_random_plans():
    """No room must be less than 0; grids are snapped to a thousandth of their pixels of 10 m."""
    random = np.random.default_rng(10_000)
    rooms: list[float] = []
    num_refused = 0
    while len(rooms) < NUM_PLANS:
        regions, plan = random_plan(random)
        try:
            sites = planned(regions, plan, len(rooms))
        except ConfigError:
            num_refused += 1
            continue
        if sites:
            rooms.append(least_room(regions, sites, plan.size_px, plan.split.buffer_px))
            assert rooms[-1] > -0.025, (regions, plan, len(rooms) - 1)
    assert num_refused < NUM_PLANS / 2
    assert np.isfinite(rooms).mean() > 0.4
    assert (np.array(rooms) < 10.5).mean() > 0.15  # as near as may be


# How many, and of what.


@given(
    st.dictionaries(st.sampled_from("abcdefgh"), st.integers(0, 30), min_size=1),
    st.integers(0, 150),
)
def test_shares_are_as_even_as_the_zones_allow(capacity, wanted):
    given = share_evenly(dict(capacity), wanted)
    assert given.keys() == capacity.keys()
    assert sum(given.values()) == min(wanted, sum(capacity.values()))
    most = max(given.values())
    for zone, num in given.items():
        assert 0 <= num <= capacity[zone]
        assert num >= most - 1 or num == capacity[zone]


def test_zones_share_evenly_whatever_their_size():
    place = region("r", 640, 1280)
    large, small = shapely.box(0, 0, 900, 640), shapely.box(900, 0, 1280, 500)
    tiny = shapely.box(900, 500, 1280, 640)
    place = zoned(place, ("large", large), ("small", small), ("tiny", tiny))
    capacity = Counter(site.zone for site in sites_of(lay_out([place], BLOCKS, 0)))
    assert capacity["large"] > 2 * capacity["small"] > 4 * capacity["tiny"] > 0
    for wanted in (10, 11, 90, 400, 5000):
        plan = replace(BLOCKS, num_chips=wanted)
        num = Counter(site.zone for site in sites_of(lay_out([place], plan, 1)))
        assert num == Counter(share_evenly(dict(capacity), wanted))


def test_so_many_chips_come_as_are_asked_for_and_no_more_of_a_block():
    place = region("r", 640, 1280)
    capacity = len(sites_of(lay_out([place], BLOCKS, 0)))
    assert capacity == 10 * 20 * 4
    for per_block in (1, 3, 4, 9):
        plan = replace(BLOCKS, chips_per_block=per_block)
        everything = sites_of(lay_out([place], plan, 0))
        of_block = Counter(site.block for site in everything)
        assert {*of_block.values()} == {min(per_block, 4)}
        assert len(of_block) == 200
        for wanted in (1, 50, 77, capacity):
            sites = sites_of(lay_out([place], replace(plan, num_chips=wanted), 0))
            assert len(sites) == min(wanted, len(everything))
            assert max(Counter(site.block for site in sites).values()) <= per_block


def test_every_occasion_takes_the_same_sites_and_a_share_of_the_chips():
    place = region("r", 640, 640)
    plan = replace(BLOCKS, num_chips=50)
    layout = lay_out([place], plan, 0, ("rabi", "kharif", "summer"))
    by_occasion = defaultdict(list)
    for unit in layout.units:
        by_occasion[unit.occasion] += unit.sites
    assert list(by_occasion) == ["rabi", "kharif", "summer"]
    assert by_occasion["rabi"] == by_occasion["kharif"] == by_occasion["summer"]
    assert len(by_occasion["rabi"]) == math.ceil(50 / 3)


def lon_of(place: Region, col: float) -> float:
    return float(to_lonlat(place.geobox, np.array([[col], [place.geobox.shape[0] / 2]]))[0, 0])


def share_of_the_west(balance: float, west_px: int) -> float:
    """The share of the chips that lie in a western strip of a rare class, over some seeds."""
    place = region("r", 1280, 1280)
    border = lon_of(place, west_px)
    plan = replace(BLOCKS, num_chips=200, class_balance=balance, unit_blocks=(2, 2))

    def look(lon, lat):
        return np.where(lon < border, 6, 1).astype(np.uint8)

    sites = [
        site for seed in range(6) for site in sites_of(lay_out([place], plan, seed, look=look))
    ]
    return sum(site.col < west_px for site in sites) / len(sites)


def test_rare_classes_are_favoured_the_more_the_higher_the_balance():
    shares = [share_of_the_west(balance, 128) for balance in (0.0, 0.5, 1.0)]
    assert shares[0] == pytest.approx(0.1, abs=0.06)
    assert shares[1] == pytest.approx(0.24, abs=0.09)
    assert shares[2] == pytest.approx(0.45, abs=0.12)


def test_sea_is_never_chosen_when_there_is_a_look():
    place = region("r", 640, 1280)
    coast = lon_of(place, 300)

    def look(lon, lat):
        assert lon.shape == lat.shape
        return np.where(lon < coast, 1, IGNORE).astype(np.uint8)

    blind = sites_of(lay_out([place], BLOCKS, 0))
    seeing = sites_of(lay_out([place], BLOCKS, 0, look=look))
    assert max(block_place(site)[1] for site in blind) == 19
    assert max(block_place(site)[1] for site in seeing) == 4  # 256 to 320
    assert len(seeing) == 10 * 5 * 4
    with pytest.raises(ConfigError, match=r"fits the area.*open sea, without labels"):
        lay_out([place], BLOCKS, 0, look=lambda lon, lat: np.full(len(lon), IGNORE, np.uint8))


def test_classes_are_looked_up_at_places_spread_over_every_block():
    place = region("r", 128, 128)
    asked = []

    def look(lon, lat):
        asked.append((lon, lat))
        return np.zeros(len(lon), np.uint8)

    lay_out([place], BLOCKS, 0, look=look)
    ((lon, lat),) = asked
    assert len(lon) == 4 * 64
    to_pixels = pyproj.Transformer.from_crs("EPSG:4326", "EPSG:32643", always_xy=True).transform
    col, row = ~place.geobox.affine @ to_pixels(lon, lat)
    in_first = (row < 64) & (col < 64)
    assert in_first.sum() == 64
    expected = 4 + 56 * (np.arange(8) + 0.5) / 8
    np.testing.assert_allclose(np.unique(row[in_first].round(2)), expected, atol=0.01)
    np.testing.assert_allclose(np.unique(col[in_first].round(2)), expected, atol=0.01)


# Where.


@st.composite
def zoned_plans(draw: st.DrawFn) -> tuple[Region, PlanConfig, int]:
    """A region under one or two polygons, and a plan."""
    place = region("r", draw(st.integers(60, 400)), draw(st.integers(60, 400)))
    corner = st.tuples(st.integers(-50, 450), st.integers(-50, 450))
    outlines = [
        shapely.MultiPoint(draw(st.lists(corner, min_size=3, max_size=6))).convex_hull.buffer(20)
        for _ in range(draw(st.integers(1, 2)))
    ]
    place = zoned(place, *((f"z{number}", outline) for number, outline in enumerate(outlines)))
    plan = replace(
        BLOCKS,
        size_px=draw(st.sampled_from([8, 24, 50])),
        unit_blocks=draw(st.tuples(st.integers(1, 4), st.integers(1, 4))),
        chips_per_block=draw(st.sampled_from([None, 1, 3])),
        num_chips=draw(st.one_of(st.none(), st.integers(1, 60))),
        split=SplitConfig(64, draw(st.integers(0, 14)), 0.1, 0.2),
    )
    return place, plan, draw(st.integers(0, 99))


def laid_out(place: Region, plan: PlanConfig, seed: int) -> Layout | None:
    try:
        return lay_out([place], plan, seed)
    except ConfigError as error:
        assert "no square of plan.size_px" in str(error)
        return None


@settings(max_examples=60)
@given(zoned_plans())
def test_sites_lie_side_by_side_in_their_zone_and_region(case):
    place, plan, seed = case
    layout = laid_out(place, plan, seed)
    if layout is None:
        return
    outlines = {zone.name: zone.outline for zone in place.zones}
    sites = sites_of(layout)
    height, width = place.geobox.shape
    boxes = [shapely.box(s.col, s.row, s.col + s.size_px, s.row + s.size_px) for s in sites]
    for site, box in zip(sites, boxes, strict=True):
        assert outlines[site.zone].covers(box)
        assert 0 <= site.row <= height - plan.size_px
        assert 0 <= site.col <= width - plan.size_px
        assert (site.row // 64, site.col // 64) == block_place(site)
    pairs = shapely.STRtree(boxes).query(boxes, "overlaps")
    assert pairs.shape[1] == 0
    assert len({(site.row, site.col) for site in sites}) == len(sites)


@settings(max_examples=60)
@given(zoned_plans())
def test_a_unit_is_a_rectangle_of_blocks_in_one_cell_each_with_sites(case):
    place, plan, seed = case
    layout = laid_out(place, plan, seed)
    if layout is None:
        return
    blocks_seen = []
    for unit in layout.units:
        places = {block_place(site) for site in unit.sites}
        rows, cols = ({place[axis] for place in places} for axis in (0, 1))
        assert places == {
            (row, col)
            for row in range(min(rows), max(rows) + 1)
            for col in range(min(cols), max(cols) + 1)
        }
        assert len({row // plan.unit_blocks[0] for row in rows}) == 1
        assert len({col // plan.unit_blocks[1] for col in cols}) == 1
        assert len({site.zone for site in unit.sites}) == 1
        blocks_seen += places
    assert len({*blocks_seen}) == len(blocks_seen)


@settings(max_examples=40)
@given(zoned_plans())
def test_the_same_seed_gives_the_same_plan(case):
    place, plan, seed = case
    first, second = laid_out(place, plan, seed), laid_out(place, plan, seed)
    assert (first is None) == (second is None)
    if first is not None:
        assert (first.units, first.grounds) == (second.units, second.grounds)


def test_another_seed_gives_another_plan():
    place = region("r", 640, 640)
    plan = replace(BLOCKS, chips_per_block=1, num_chips=30)
    plans = [sites_of(lay_out([place], plan, seed)) for seed in range(3)]
    assert plans[0] != plans[1] != plans[2] != plans[0]


def test_an_area_without_room_for_a_chip_is_refused():
    place = zoned(region("r", 200, 200), ("thin", shapely.box(0, 0, 200, 20)))
    with pytest.raises(ConfigError, match=r"no square of plan\.size_px 24 fits the area: enlarge"):
        lay_out([place], BLOCKS, 0)


def test_a_corner_of_the_area_too_small_for_a_chip_does_not_stop_the_rest():
    to_degrees = pyproj.Transformer.from_crs("EPSG:32643", "EPSG:4326", always_xy=True).transform
    outline = shapely.box(740_000, 3_075_000, 760_000, 3_101_000)  # 1 km of it in 43RGM
    zone = Zone("area", shapely.transform(outline, to_degrees, interleaved=False))
    regions = sentinel2_regions([zone], (512, 512))
    assert [(r.name, r.geobox.shape[0] < 480) for r in regions] == [
        ("43RGM", True),
        ("43RGL", False),
    ]
    layout = lay_out(regions, PlanConfig("blocks", unit_blocks=(1, 1)), 0)
    assert {site.region for site in sites_of(layout)} == {"43RGL"}


# Splits.


def test_blocks_of_every_zone_are_dealt_out_by_the_fractions():
    place = halves(region("r", 640, 1280))
    split = SplitConfig(64, 8, 0.1, 0.3)
    sites = sites_of(lay_out([place], replace(BLOCKS, split=split), 0))
    blocks = Counter({(site.block, site.zone, site.split) for site in sites})
    num = Counter((zone, split) for _, zone, split in blocks)
    assert num == {
        (zone, split): num
        for zone in ("west", "east")
        for split, num in (("train", 60), ("val", 10), ("test", 30))
    }


def test_leaving_one_zone_out_puts_all_of_it_in_test_and_nothing_else():
    place = halves(region("r", 640, 1280))
    split = SplitConfig(64, 8, 0.1, 0.3, test_zones=("east",))
    sites = sites_of(lay_out([place], replace(BLOCKS, split=split), 0))
    assert {site.split for site in sites if site.zone == "east"} == {"test"}
    assert {site.split for site in sites if site.zone == "west"} == {"train", "val"}
    blocks = Counter(split for split, _ in {(s.split, s.block) for s in sites if s.zone == "west"})
    assert blocks == {"train": 90, "val": 10}


def test_zones_can_be_held_out_for_validation_too_in_several_regions():
    regions = [halves(region(f"r{i}", 320, 640, row=1000 * i)) for i in range(2)]
    third = zoned(region("r2", 320, 320, row=3000), ("south", shapely.box(0, 0, 320, 320)))
    split = SplitConfig(64, 8, 0.1, 0.3, val_zones=("west",), test_zones=("east",))
    sites = sites_of(lay_out([*regions, third], replace(BLOCKS, split=split), 0))
    found = {(site.zone, site.split) for site in sites}
    assert found == {("west", "val"), ("east", "test"), ("south", "train")}


@pytest.mark.parametrize("key", ["test_zones", "val_zones"])
def test_a_zone_that_does_not_exist_is_named_with_those_that_do(key):
    place = halves(region("r", 320, 640))
    split = SplitConfig(64, 8, **{key: ("Delhi",)})
    with pytest.raises(ConfigError, match=r"zone 'Delhi' of plan.split has no block .*west, east"):
        lay_out([place], replace(BLOCKS, split=split), 0)


def test_without_a_split_all_is_train_and_blocks_are_of_1024_pixels():
    plan = replace(BLOCKS, size_px=500, split=None)
    sites = sites_of(lay_out([region("r", 2048, 1500)], plan, 0))
    assert {site.split for site in sites} == {"train"}
    assert Counter(site.block for site in sites) == {"r/0-0": 4, "r/1-0": 4}


def test_overlapping_regions_give_way_to_test_before_val_before_train():
    """What is lost lies near another region's ground of a split with precedence."""
    one, other = region("one", 320, 320), region("other", 320, 320, row=13, col=200)
    split = SplitConfig(64, 8, 0.2, 0.3)
    plan = replace(BLOCKS, split=split)
    layout = lay_out([one, other], plan, 3)
    lost = Counter({"train": 0, "val": 0, "test": 0})
    for index in (0, 1):
        kept = {(s.row, s.col) for s in sites_of(layout) if s.region_index == index}
        for ground in layout.grounds[index]:
            offered = 4
            lost[ground.split] += offered - sum(
                ground.row <= row < ground.row + ground.height
                and ground.col <= col < ground.col + ground.width
                for row, col in kept
            )
    assert lost["test"] == 0
    assert lost["val"] > 0 and lost["train"] > 0


# Files.

FILES = PlanConfig("files", 20, split=SplitConfig(64, 8, 0.2, 0.3))


def with_squares(place: Region, *squares: tuple[float, float]) -> Region:
    return replace(place, squares=squares)


def gap(one: Site, other: Site) -> int:
    return max(abs(one.row - other.row), abs(one.col - other.col)) - one.size_px


def test_every_square_is_a_site_where_all_are_far_apart():
    squares = [(row, col) for row in range(0, 900, 90) for col in range(0, 1800, 90)]
    place = with_squares(region("r", 1000, 1900), *squares)
    layout = lay_out([place], FILES, 0)
    sites = sites_of(layout)
    assert sorted((site.row, site.col) for site in sites) == sorted(squares)
    assert [len(unit.sites) for unit in layout.units] == [64, 64, 64, 8]
    num = Counter(split for _, split in {(site.block, site.split) for site in sites})
    assert num["test"] == pytest.approx(0.3 * 200, abs=8)
    assert num["val"] == pytest.approx(0.2 * 200, abs=8)


def test_squares_too_near_each_other_go_to_one_split_together():
    """Pairs with a gap of 4 px, less than the buffer of 8, that lie on two blocks."""
    pairs = [((row, col), (row, col + 24)) for row in range(0, 1800, 90) for col in (50, 242, 434)]
    squares = [square for pair in pairs for square in pair]
    place = with_squares(region("r", 1900, 600), *squares)
    sites = {(s.row, s.col): s for s in sites_of(lay_out([place], FILES, 0))}
    assert len(sites) == len(squares)
    assert {site.split for site in sites.values()} == {"train", "val", "test"}
    for one, other in pairs:
        assert sites[one].split == sites[other].split
        assert sites[one].block == sites[other].block


def test_in_a_group_wider_than_a_block_test_is_kept_before_val_before_train():
    """A chain of squares side by side: what is lost lies beside a split with precedence."""
    squares = [(0, 22 * number) for number in range(100)]
    place = with_squares(region("r", 20, 2300), *squares)
    rank = {"train": 0, "val": 1, "test": 2}
    for seed in range(5):
        sites = sorted(sites_of(lay_out([place], FILES, seed)), key=lambda site: site.col)
        for one, other in pairwise(sites):
            assert one.split == other.split or gap(one, other) >= 8
        kept = {site.col: site for site in sites}
        assert 60 <= len(kept) < 100
        for _, col in squares:
            if col not in kept:
                beside = [kept[c] for c in (col - 22, col + 22) if c in kept]
                assert any(rank[site.split] > 0 for site in beside)


def test_the_gap_of_the_buffer_itself_is_enough():
    for gap_px, num_blocks in ((7, 1), (8, 2)):
        place = with_squares(region("r", 20, 200), (0, 50), (0, 70 + gap_px))
        sites = sites_of(lay_out([place], FILES, 0))
        assert len({site.block for site in sites}) == num_blocks


def test_squares_between_the_pixels_keep_the_buffer_where_they_really_are():
    """Files whose corners are off the grid of their region by up to half a pixel."""
    random = np.random.default_rng(8)
    for seed in range(30):
        corners = np.stack(np.meshgrid(np.arange(0, 400, 24), np.arange(0, 400, 24)), -1)
        corners = corners.reshape(-1, 2)[random.permutation(17 * 17)[:60]]
        real = corners + random.uniform(-0.45, 0.45, corners.shape)
        place = with_squares(region("r", 430, 430), *map(tuple, np.maximum(real, 0).tolist()))
        sites = sites_of(lay_out([place], replace(FILES, split=SplitConfig(64, 4)), seed))
        at = np.array(place.squares)[
            [np.abs(np.array(place.squares) - (s.row, s.col)).max(axis=1).argmin() for s in sites]
        ]
        room = np.abs(at[:, None] - at[None]).max(axis=-1) - 20 - 4
        split = np.array([site.split for site in sites])
        differs = split[:, None] != split[None]
        assert differs.any()
        assert room[differs].min() > -0.01


def test_files_of_overlapping_regions_keep_apart_too():
    squares = [(row, col) for row in range(0, 300, 60) for col in range(0, 300, 60)]
    regions = [
        with_squares(region("a", 300, 300), *squares),
        with_squares(region("b", 300, 300, row=26, col=26), *squares),
    ]
    sites = sites_of(lay_out(regions, FILES, 1))
    assert 30 < len(sites) < 50
    places = [
        (site.row + 26 * site.region_index, site.col + 26 * site.region_index) for site in sites
    ]
    for one, first in zip(sites, places, strict=True):
        for other, second in zip(sites, places, strict=True):
            if one.split != other.split:
                assert np.abs(np.subtract(first, second)).max() - 20 >= 8


def test_a_source_without_files_has_no_plan_of_files():
    with pytest.raises(ConfigError, match="'files' needs a source of ready-made chips"):
        lay_out([region("r", 100, 100)], FILES, 0)


def test_where_no_block_has_room_there_is_nothing_to_look_at():
    with pytest.raises(ConfigError, match=r"no square of plan\.size_px 24 fits the area"):
        lay_out([region("r", 20, 20)], BLOCKS, 0, look=lambda lon, lat: np.zeros(0, np.uint8))
