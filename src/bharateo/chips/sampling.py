"""Which blocks or files to take: balanced over zones and classes, before a pixel is fetched.

Blocks that are fetched together, ``plan.unit_blocks`` of them, form a *cell*. Cells are drawn
without replacement, each zone its even share of the chips, and within a zone with odds that favour
cells where rare classes lie. What classes lie where comes from a *look* at the label product's
overviews, a few hundred kilobytes for a tile of three degrees.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise

import numpy as np
import shapely
from jaxtyping import Float64, Int64, UInt8

from bharateo import geography
from bharateo.chips.plan import (
    Ground,
    Site,
    SitePlan,
    Split,
    Unit,
    block_name,
    check,
    deal,
    fences_between,
    generator,
    half_buffer,
    side_by_side,
)
from bharateo.config import PlanConfig, SplitConfig
from bharateo.errors import ConfigError
from bharateo.landcover import NUM_CLASSES
from bharateo.regions import Region

Look = Callable[
    [Float64[np.ndarray, " point"], Float64[np.ndarray, " point"]],
    UInt8[np.ndarray, " point"] | None,
]
"""Class ids near places given by longitude and latitude: ``LabelSource.overview``."""

FILES_PER_UNIT = 64
_POINTS_PER_SIDE = 8
"""Places looked at in every block: 64, about one in 1.3 km."""

_WHOLE_BLOCK_PX = 1024
"""Side of a block where there is no split."""

_SAME_PX = 1e-4

_PRECEDENCE: dict[Split, int] = {"train": 0, "val": 1, "test": 2}


@dataclass(frozen=True)
class Block:
    """A ground with its place among the blocks, and the first pixels of the squares it offers."""

    region_index: int
    row: int
    col: int
    ground: Ground
    corners: Int64[np.ndarray, "site 2"]
    """All that fit the ground and lie in its zone."""


@dataclass(frozen=True)
class Cell:
    """Blocks of one region and zone that are chosen together."""

    name: str
    zone: str | None
    blocks: tuple[Block, ...]
    num_sites: int


def lay_out_blocks(
    regions: Sequence[Region],
    config: PlanConfig,
    seed: int,
    occasions: Sequence[str | None] = (None,),
    look: Look | None = None,
) -> SitePlan:
    """The plan of strategy ``blocks``, with its units.

    Without a ``look`` all ground is taken for land, and classes are not balanced.

    Raises:
        ConfigError: a value is out of range, no square fits anywhere, or a zone is not known.
    """
    check(regions, config, seed)
    blocks = [block for index in range(len(regions)) for block in _blocks(regions, index, config)]
    shares = _class_shares(regions, blocks, look) if look else None
    if shares is None:
        shares = np.ones((len(blocks), 1))
    labelled = shares.sum(axis=1) > 0
    cells = _cells(regions, [b for b, ok in zip(blocks, labelled, strict=True) if ok], config)
    if not cells:
        raise ConfigError(
            f"no square of plan.size_px {config.size_px} fits the area: enlarge it, or lower "
            "plan.size_px or plan.split.buffer_px"
            + (" (or it lies over open sea, without labels)" if blocks else "")
        )
    wanted = None if config.num_chips is None else -(-config.num_chips // len(occasions))
    weights = _weights(cells, blocks, shares, config.class_balance)
    chosen = _choose(cells, weights, wanted, config, seed)
    grounds, picked = _with_splits(regions, chosen, config, seed)
    return _plan(regions, config, seed, grounds, picked, occasions)


# Blocks


def _blocks(regions: Sequence[Region], index: int, config: PlanConfig) -> Iterator[Block]:
    """The blocks of a region that hold a square, row by row."""
    region, size_px = regions[index], config.size_px
    block_px = config.split.block_px if config.split else _WHOLE_BLOCK_PX
    inset = half_buffer(config.split) if config.split else 0
    places = [
        (row, col, Ground(top, left, height, width, "train", block_name(region, row, col)))
        for row, (top, height) in enumerate(_inset_spans(region.geobox.shape[0], block_px, inset))
        for col, (left, width) in enumerate(_inset_spans(region.geobox.shape[1], block_px, inset))
        if min(height, width) >= size_px
    ]
    grounds = [ground for _, _, ground in places]
    for (row, col, ground), zone in zip(places, _zones_of(region, grounds), strict=True):
        corners = _corners(ground, size_px)
        if zone is not None:
            if not zone.whole:
                boxes = shapely.box(
                    corners[:, 1], corners[:, 0], corners[:, 1] + size_px, corners[:, 0] + size_px
                )
                corners = corners[shapely.covers(zone.outline, boxes)]
            ground = replace(ground, zone=zone.name)
        elif region.zones:
            continue
        if len(corners):
            yield Block(index, row, col, ground, corners)


@dataclass(frozen=True)
class _ZoneOfGround:
    name: str
    outline: shapely.Geometry
    whole: bool


def _zones_of(region: Region, grounds: Sequence[Ground]) -> list[_ZoneOfGround | None]:
    """The zone that covers most of each ground, None where none reaches."""
    if not region.zones or not grounds:
        return [None] * len(grounds)
    boxes = np.array([ground.rectangle.box() for ground in grounds])
    outlines = [zone.outline for zone in region.zones]
    for outline in outlines:
        shapely.prepare(outline)
    areas = np.stack([shapely.area(shapely.intersection(boxes, each)) for each in outlines])
    whole = np.stack([shapely.covers(each, boxes) for each in outlines])
    best = areas.argmax(axis=0)
    return [
        _ZoneOfGround(region.zones[zone].name, outlines[zone], bool(whole[zone, place]))
        if areas[zone, place] > 0
        else None
        for place, zone in enumerate(best)
    ]


def _inset_spans(length: int, block_px: int, inset: int) -> Iterator[tuple[int, int]]:
    """First pixel and length of every block's ground along one axis; both its ends give way.

    Other regions go on where this one ends, so its outer edges are shared as well.
    """
    for start in range(0, length, block_px):
        last = min(start + block_px, length) - inset
        yield start + inset, max(last - start - inset, 0)


def _corners(ground: Ground, size_px: int) -> Int64[np.ndarray, "site 2"]:
    first = np.array([ground.row, ground.col])
    return first + _corners_from_first(ground.height, ground.width, size_px)


@lru_cache(maxsize=64)
def _corners_from_first(height: int, width: int, size_px: int) -> Int64[np.ndarray, "site 2"]:
    rows, cols = side_by_side(0, height, size_px), side_by_side(0, width, size_px)
    return np.stack(np.meshgrid(rows, cols, indexing="ij"), -1).reshape(-1, 2)


# What lies where


def _class_shares(
    regions: Sequence[Region], blocks: Sequence[Block], look: Look
) -> Float64[np.ndarray, "block cls"] | None:
    """Labelled places of every class in every block, as shares of all places looked at."""
    steps = (np.arange(_POINTS_PER_SIDE) + 0.5) / _POINTS_PER_SIDE
    lonlat = []
    for index, own in _by_region(blocks):
        ground = np.array([block.ground.rectangle for block in own])
        rows = ground[:, 0, None] + ground[:, 2, None] * steps
        cols = ground[:, 1, None] + ground[:, 3, None] * steps
        x, y = np.broadcast_arrays(cols[:, None, :], rows[:, :, None])
        points = np.stack([x.reshape(-1), y.reshape(-1)]).astype(np.float64)
        lonlat.append(geography.to_lonlat(regions[index].geobox, points))
    lon, lat = np.concatenate(lonlat, axis=1) if lonlat else np.zeros((2, 0))
    seen = look(lon, lat)
    if seen is None:
        return None
    classes = seen.reshape(len(blocks), -1)
    counts = (classes[:, :, None] == np.arange(NUM_CLASSES)).sum(axis=1)
    return counts / _POINTS_PER_SIDE**2


def _by_region(blocks: Sequence[Block]) -> Iterator[tuple[int, list[Block]]]:
    """Blocks of one region after the other, in their order."""
    groups: dict[int, list[Block]] = defaultdict(list)
    for block in blocks:
        groups[block.region_index].append(block)
    yield from groups.items()


def _weights(
    cells: Sequence[Cell],
    blocks: Sequence[Block],
    shares: Float64[np.ndarray, "block cls"],
    balance: float,
) -> Float64[np.ndarray, " cell"]:
    """Odds of every cell: the mean over its ground of each class's rarity, to a power.

    A class's rarity is one over its share of all the ground looked at.
    """
    share_of = {b.ground.block: share for b, share in zip(blocks, shares, strict=True)}
    overall = shares.mean(axis=0)
    rarity = np.where(overall > 0, np.maximum(overall, 1e-9) ** -balance, 0.0)
    return np.array([
        np.mean([share_of[block.ground.block] @ rarity for block in cell.blocks]) for cell in cells
    ])  # fmt: skip


# Cells, and the draw


def _cells(regions: Sequence[Region], blocks: Sequence[Block], config: PlanConfig) -> list[Cell]:
    rows, cols = config.unit_blocks
    groups: dict[tuple[int, str | None, int, int], list[Block]] = defaultdict(list)
    for block in blocks:
        key = block.region_index, block.ground.zone, block.row // rows, block.col // cols
        groups[key].append(block)
    return [
        Cell(
            f"{regions[index].name}/{zone}/{row}-{col}",
            zone,
            tuple(own),
            sum(_offered(block, config) for block in own),
        )
        for (index, zone, row, col), own in groups.items()
    ]


def _offered(block: Block, config: PlanConfig) -> int:
    return min(config.chips_per_block or len(block.corners), len(block.corners))


def _choose(
    cells: Sequence[Cell],
    weights: Float64[np.ndarray, " cell"],
    wanted: int | None,
    config: PlanConfig,
    seed: int,
) -> list[tuple[Block, int]]:
    """Chosen blocks with how many sites each gives, in the order of the cells.

    Every cell draws its own random number, so an area that grows keeps the choices it had as far
    as shares and quotas allow. Source of the draw: Efraimidis and Spirakis 2006.
    """
    if wanted is None:
        return [(block, _offered(block, config)) for cell in cells for block in cell.blocks]
    draws = [generator(seed, "cells", cell.name).exponential() for cell in cells]
    order = np.argsort(np.array(draws) / np.maximum(weights, 1e-12), kind="stable")
    capacity: dict[str | None, int] = defaultdict(int)
    for cell in cells:
        capacity[cell.zone] += cell.num_sites
    left = share_evenly(capacity, wanted)
    taken: dict[int, list[tuple[Block, int]]] = {}
    for index in order:
        cell = cells[index]
        for block in cell.blocks if left[cell.zone] > 0 else ():
            num = min(_offered(block, config), left[cell.zone])
            if num:
                taken.setdefault(int(index), []).append((block, num))
                left[cell.zone] -= num
    return [pair for index in sorted(taken) for pair in taken[index]]


def share_evenly(capacity: dict[str | None, int], wanted: int) -> dict[str | None, int]:
    """How many each zone gives of ``wanted``: equal shares, the small ones all they have."""
    given = dict.fromkeys(capacity, 0)
    for place, (zone, most) in enumerate(sorted(capacity.items(), key=lambda item: item[1])):
        given[zone] = min(most, -(-wanted // (len(capacity) - place)))
        wanted -= given[zone]
    return given


# Splits and units


def _with_splits(
    regions: Sequence[Region],
    chosen: Sequence[tuple[Block, int]],
    config: PlanConfig,
    seed: int,
) -> tuple[tuple[tuple[Ground, ...], ...], list[tuple[Block, int]]]:
    """The grounds of every region with their splits, and the blocks with them."""
    split_of = _splits([block.ground for block, _ in chosen], config.split, seed)
    picked = [
        (replace(block, ground=replace(block.ground, split=split_of[block.ground.block])), num)
        for block, num in chosen
    ]
    own: dict[int, list[Ground]] = defaultdict(list)
    for block, _ in picked:
        own[block.region_index].append(block.ground)
    return tuple(tuple(own[index]) for index in range(len(regions))), picked


def _splits(
    grounds: Sequence[Ground], split: SplitConfig | None, seed: int
) -> dict[str | None, Split]:
    """The split of every block: zones held out whole, the blocks of each other zone dealt out."""
    if split is None:
        return {ground.block: "train" for ground in grounds}
    by_zone: dict[str | None, list[Ground]] = defaultdict(list)
    for ground in grounds:
        by_zone[ground.zone].append(ground)
    for name in (*split.test_zones, *split.val_zones):
        if name not in by_zone:
            known = ", ".join(str(zone) for zone in list(by_zone)[:20])
            raise ConfigError(
                f"zone {name!r} of plan.split has no block among the chosen, which lie in {known}: "
                "correct the name, or raise plan.num_chips"
            )
    rest = replace(
        split,
        test=0.0 if split.test_zones else split.test,
        val=0.0 if split.val_zones else split.val,
    )
    splits: dict[str | None, Split] = {}
    for zone, own in by_zone.items():
        if zone in split.test_zones or zone in split.val_zones:
            whole: Split = "test" if zone in split.test_zones else "val"
            splits |= {ground.block: whole for ground in own}
        else:
            splits |= deal(own, rest, generator(seed, "splits", str(zone)))
    return splits


def _plan(
    regions: Sequence[Region],
    config: PlanConfig,
    seed: int,
    grounds: tuple[tuple[Ground, ...], ...],
    picked: Sequence[tuple[Block, int]],
    occasions: Sequence[str | None],
) -> SitePlan:
    buffer_px = config.split.buffer_px if config.split else 0
    fences = fences_between(regions, grounds, buffer_px)
    plan = SitePlan(tuple(regions), config, seed, grounds, fences, ())
    together: dict[tuple[int, str | None], list[tuple[Block, tuple[Site, ...]]]] = defaultdict(list)
    for block, num in picked:
        sites = tuple(_sites(plan, block, num))
        if not plan.is_free(block.ground.rectangle, block.region_index, block.ground.split):
            sites = tuple(filter(plan.is_clear, sites))
        if sites:
            together[block.region_index, block.ground.zone].append((block, sites))
    units = tuple(
        Unit(index, sites, occasion)
        for (index, _), own in together.items()
        for occasion in occasions
        for sites in _rectangles(own, config.unit_blocks)
    )
    return replace(plan, units=units)


def _sites(plan: SitePlan, block: Block, num: int) -> list[Site]:
    """Some of a block's squares, drawn at random, in their order on the ground."""
    region, ground = plan.regions[block.region_index], block.ground
    random = generator(plan.seed, "sites", str(ground.block))
    places = np.sort(random.permutation(len(block.corners))[:num])
    return [
        Site(
            region.name, block.region_index, int(row), int(col), plan.config.size_px,
            ground.split, str(ground.block), ground.zone,
        )
        for row, col in block.corners[places]
    ]  # fmt: skip


def _rectangles(
    blocks: Iterable[tuple[Block, tuple[Site, ...]]], unit_blocks: tuple[int, int]
) -> Iterator[tuple[Site, ...]]:
    """The sites of blocks that fill a rectangle within one cell, so that all between is wanted."""
    cells: dict[tuple[int, int], dict[int, dict[int, tuple[Site, ...]]]] = defaultdict(dict)
    for block, sites in blocks:
        cell = block.row // unit_blocks[0], block.col // unit_blocks[1]
        cells[cell].setdefault(block.row, {})[block.col] = sites
    for rows in cells.values():
        open_runs: dict[tuple[int, int], list[tuple[Site, ...]]] = {}
        for row in sorted(rows):
            runs = {run: _of_run(rows[row], run) for run in _runs(sorted(rows[row]))}
            for run in [run for run in open_runs if run not in runs or row - 1 not in rows]:
                yield sum(open_runs.pop(run), ())
            for run, sites in runs.items():
                open_runs.setdefault(run, []).append(sites)
        for parts in open_runs.values():
            yield sum(parts, ())


def _of_run(cols: dict[int, tuple[Site, ...]], run: tuple[int, int]) -> tuple[Site, ...]:
    return tuple(site for col in range(run[0], run[1] + 1) for site in cols[col])


def _runs(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """First and last of every stretch of consecutive numbers."""
    breaks = [(a, b) for a, b in pairwise(numbers) if b != a + 1]
    firsts = [numbers[0], *(b for _, b in breaks)]
    return list(zip(firsts, [*(a for a, _ in breaks), numbers[-1]], strict=True))


# Files


def lay_out_files(regions: Sequence[Region], config: PlanConfig, seed: int) -> SitePlan:
    """The plan of strategy ``files``: every ready-made square is a site, splits go by block.

    Squares nearer to each other than the buffer go to one block together, unless their group is
    wider than a block; where two of different splits are still too near, test is kept before val
    before train.

    Raises:
        ConfigError: a value is out of range, or no region has ready-made squares.
    """
    check(regions, config, seed)
    if not any(region.squares for region in regions):
        raise ConfigError("plan.strategy 'files' needs a source of ready-made chips: see geotiff")
    squares = _split_squares(regions, config, seed)
    grounds = tuple(
        tuple(
            Ground(s.row, s.col, s.size_px, s.size_px, s.split, s.block)
            for own in squares
            for s in own
            if s.region_index == index
        )
        for index in range(len(regions))
    )
    fences = fences_between(regions, grounds, config.split.buffer_px if config.split else 0)
    plan = SitePlan(tuple(regions), config, seed, grounds, fences, ())
    clear = [[site for site in own if plan.is_clear(site)] for own in squares]
    units = tuple(
        Unit(own[0].region_index, tuple(own[start : start + FILES_PER_UNIT]))
        for own in clear
        for start in range(0, len(own), FILES_PER_UNIT)
    )
    return replace(plan, units=units)


def _split_squares(regions: Sequence[Region], config: PlanConfig, seed: int) -> list[list[Site]]:
    """The sites of every region's squares, less those too near to one of a split with precedence.

    The blocks of all regions are dealt out together: files may be spread over many grids.
    """
    block_px = config.split.block_px if config.split else _WHOLE_BLOCK_PX
    buffer_px = config.split.buffer_px if config.split else 0
    near_of, names_of = [], []
    for region in regions:
        corners = np.array(region.squares, np.float64).reshape(-1, 2)
        near_of.append(_near(corners, config.size_px, buffer_px))
        centres = _group_centres(corners, config.size_px, near_of[-1], block_px)
        names_of.append([block_name(region, *map(int, each)) for each in centres // block_px])
    every = sorted({name for names in names_of for name in names})
    split_of = _splits([Ground(0, 0, 0, 0, "train", name) for name in every], config.split, seed)
    squares = []
    for index, (region, near, names) in enumerate(zip(regions, near_of, names_of, strict=True)):
        splits = [split_of[name] for name in names]
        rank = np.array([_PRECEDENCE[split] for split in splits])
        kept = np.ones(len(names), bool)
        kept[near[0][rank[near[0]] < rank[near[1]]]] = False
        own = [
            Site(
                region.name, index, math.floor(row + 0.5), math.floor(col + 0.5), config.size_px,
                splits[place], names[place],
            )
            for place, (row, col) in enumerate(region.squares)
            if kept[place]
        ]  # fmt: skip
        squares.append(own)
    return squares


def _near(
    corners: Float64[np.ndarray, "site 2"], size_px: int, buffer_px: int
) -> Int64[np.ndarray, "2 pair"]:
    """Pairs of squares, both ways round, that lie less than the buffer apart."""
    half = buffer_px / 2 - _SAME_PX  # boxes that touch count as intersecting
    low, high = corners - half, corners + size_px + half
    boxes = shapely.box(low[:, 1], low[:, 0], high[:, 1], high[:, 0])
    pairs: Int64[np.ndarray, "2 pair"] = shapely.STRtree(boxes).query(boxes, "intersects")
    return pairs[:, pairs[0] != pairs[1]]


def _group_centres(
    corners: Float64[np.ndarray, "site 2"],
    size_px: int,
    near: Int64[np.ndarray, "2 pair"],
    block_px: int,
) -> Float64[np.ndarray, "site 2"]:
    """The centre of the group each square belongs to, or its own where the group is too wide."""
    label = np.arange(len(corners))
    while True:
        lower = label.copy()
        np.minimum.at(lower, near[0], label[near[1]])
        lower = lower[lower]
        if (lower == label).all():
            break
        label = lower
    first, last = corners.copy(), corners + size_px
    np.minimum.at(first, label, corners)
    np.maximum.at(last, label, corners + size_px)
    narrow = ((last - first).max(axis=1) <= block_px)[label]
    return np.where(narrow[:, None], (first + last)[label] / 2, corners + size_px / 2)
