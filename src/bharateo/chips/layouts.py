"""Layouts: where chips lie, for every ``plan.strategy``, before an image's pixel is fetched.

``grid`` and ``random`` read whole regions and choose their sites by looking at the pixels.
``blocks`` and ``files`` name their sites beforehand, and read rectangles of neighbouring blocks or
handfuls of files. What is read together is a *unit*.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from itertools import accumulate, islice, pairwise
from typing import ClassVar, NamedTuple, TypeVar, get_args

import numpy as np
import shapely
from jaxtyping import Float64, Int64, UInt8

from bharateo import geography
from bharateo.artefacts import checked
from bharateo.chips.ground import (
    BEFORE,
    Fences,
    Ground,
    Site,
    Split,
    block_name,
    blocks_of,
    deal,
    deal_by_zone,
    fences_between,
    generator,
    half_buffer,
    side_by_side,
)
from bharateo.config import PlanConfig
from bharateo.errors import ConfigError
from bharateo.geography import Rectangle
from bharateo.landcover import NUM_CLASSES
from bharateo.regions import Region

Measured = TypeVar("Measured")

Look = Callable[
    [Float64[np.ndarray, " point"], Float64[np.ndarray, " point"]],
    UInt8[np.ndarray, " point"] | None,
]
"""Class ids near places given by longitude and latitude: ``LabelSource.overview``."""

CELL_PX = 512
"""Side of the cells that name a site's block where ``grid`` and ``random`` have no split."""

MAX_CANDIDATES_PER_CHIP = 200
"""Random windows looked at for every chip wanted, before the region is given up."""

FILES_PER_UNIT = 64

_WHOLE_BLOCK_PX = 1024
"""Side of a block where ``blocks`` and ``files`` have no split."""

_POINTS_PER_SIDE = 8
"""Places looked at in every block: 64, about one in 1.3 km."""

_SAME_PX = 1e-4


class Unit(NamedTuple):
    """What is read and cut together: sites of one region, on one occasion (a season).

    ``sites`` is None where they are chosen by looking at the pixels of the whole region. ``scene``
    names what the pixels are read from, where a source has several for a place.
    """

    region_index: int
    sites: tuple[Site, ...] | None = None
    occasion: str | None = None
    scene: str | None = None


class Layout:
    """Where the chips of some regions lie: grounds with their splits, and units to be read."""

    by_pixels: ClassVar[bool] = False
    """Whether whole regions are read, and their sites chosen by looking at the pixels."""
    fetched: ClassVar[bool] = False
    """Whether units are many and come from far away: what they cost is told first, each is tried
    twice, and ``plan.max_failed`` of them may fail."""
    balanced: ClassVar[bool] = False
    """Whether a look at the labels beforehand decides which ground is taken."""
    in_regions: ClassVar[bool] = True
    """Whether every region must have room for a chip."""
    in_blocks: ClassVar[bool] = True
    """Whether a block of ``plan.split`` must have room for a chip."""
    own_keys: ClassVar[tuple[str, ...]] = ()
    """Keys of the plan that mean nothing to others, whose default is null."""

    grounds: tuple[tuple[Ground, ...], ...]
    """Of every region, those that a site fits in."""
    units: tuple[Unit, ...]
    """What is read together, in the order of the dataset."""
    num_left_out: int = 0
    """Ready-made chips that are no sites, for they lie too near to another split."""

    def __init__(self, regions: Sequence[Region], plan: PlanConfig, seed: int) -> None:
        self.regions, self.plan, self.seed = tuple(regions), plan, seed

    def _set_grounds(self, grounds: Iterable[Iterable[Ground]]) -> None:
        self.grounds = tuple(tuple(own) for own in grounds)
        split = self.plan.split
        # Without a split all is train, and nothing keeps away from itself.
        self._fences: tuple[Fences, ...] = ((),) * len(self.regions)
        if split is not None:
            self._fences = fences_between(self.regions, self.grounds, split.buffer_px)

    def is_clear(self, site: Site) -> bool:
        """Whether no other region has ground of a split with precedence within the buffer."""
        square = Rectangle(site.row, site.col, site.size_px, site.size_px)
        return self.is_free(square, site.region_index, site.split)

    def is_free(self, rectangle: Rectangle, region_index: int, split: Split) -> bool:
        """The same for any rectangle of a region."""
        fences = [tree for name, tree in self._fences[region_index] if name in BEFORE[split]]
        if not fences:
            return True
        box = rectangle.box()
        return not any(len(tree.query(box, "intersects")) for tree in fences)


def lay_out(
    regions: Sequence[Region],
    plan: PlanConfig,
    seed: int,
    occasions: Sequence[str | None] = (None,),
    look: Look | None = None,
) -> Layout:
    """The layout of a plan. ``look`` shows classes near places, for ``blocks``.

    Raises:
        ConfigError: a value is out of range, a chip fits nowhere, a zone is not known, or the
            regions lack what the strategy takes.
    """
    check(regions, plan, seed)
    if plan.strategy == "blocks":
        return Blocks(regions, plan, seed, occasions, look)
    return LAYOUTS[plan.strategy](regions, plan, seed)


def check(regions: Sequence[Region], plan: PlanConfig, seed: int) -> None:
    """Refuse a plan that cannot be laid out, whatever the pixels.

    Raises:
        ConfigError: a value is out of range, or a chip fits nowhere.
    """
    checked(PlanConfig, asdict(plan), "plan", ConfigError, "correct it")
    if seed < 0:
        raise ConfigError(f"seed {seed} is negative: give 0 or more")
    kind = LAYOUTS[plan.strategy]
    for strategy, other in LAYOUTS.items():
        for key in set(other.own_keys) - set(kind.own_keys):
            if (value := getattr(plan, key)) is not None:
                raise ConfigError(
                    f"plan.{key} {value} has no meaning for plan.strategy {plan.strategy!r}: "
                    f"leave it out, or use strategy {strategy!r}"
                )
    if kind is Random and plan.chips_per_roi is None:
        raise ConfigError(
            "plan.chips_per_roi None with plan.strategy 'random': give how many chips to keep "
            "from each region, at least 1"
        )
    if split := plan.split:
        if split.val + split.test >= 1:
            raise ConfigError(
                f"plan.split.val {split.val} and plan.split.test {split.test} are shares of the "
                "blocks: together they must leave some for training (< 1)"
            )
        inset = half_buffer(split)
        if kind.in_blocks and plan.size_px > split.block_px - 2 * inset:
            raise ConfigError(
                f"plan.size_px {plan.size_px} does not fit a block of plan.split.block_px "
                f"{split.block_px} less the buffer of {split.buffer_px}: use size_px <= "
                f"{split.block_px - 2 * inset} or block_px >= {plan.size_px + 2 * inset}"
            )
    if not regions:
        raise ConfigError("no region is given: name at least one ROI")
    names = Counter(region.name for region in regions)
    for region in regions:
        if names[region.name] > 1:
            raise ConfigError(f"ROI name {region.name!r} is given twice: rename one of them")
        height, width = region.geobox.shape
        if kind.in_regions and min(height, width) < plan.size_px:
            raise ConfigError(
                f"region {region.name!r} is {height} x {width} px, smaller than a chip of "
                f"plan.size_px {plan.size_px}: enlarge the region or lower plan.size_px"
            )


def check_splits(num: Mapping[str, int], plan: PlanConfig) -> None:
    """Make sure that every split asked for has a site; ``num`` are sites by split.

    Raises:
        ConfigError: one has none.
    """
    wanted: dict[Split, float] = {"train": 1.0}
    if split := plan.split:
        test, val = split.test or len(split.test_zones), split.val or len(split.val_zones)
        wanted = {"test": test, "val": val, "train": 1 - split.test - split.val}
    for name, share in wanted.items():
        if share and not num.get(name):
            counts = ", ".join(f"{each} {num.get(each, 0)}" for each in get_args(Split))
            remedy = "lower plan.split.test and plan.split.val, "
            if name != "train":
                remedy = f"set plan.split.{name} to 0, "
            raise ConfigError(
                f"split {name!r} ends with no chip ({counts}): {remedy if plan.split else ''}"
                "use larger or more regions, a smaller plan.split.block_px, or lower "
                f"plan.min_valid_fraction ({plan.min_valid_fraction}) and plan.min_classes "
                f"({plan.min_classes})"
            )


# Whole regions, and sites by what their pixels are


class ByPixels(Layout):
    """All of a region is a unit; its splits are those of its own blocks."""

    by_pixels = True

    def __init__(self, regions: Sequence[Region], plan: PlanConfig, seed: int) -> None:
        super().__init__(regions, plan, seed)
        self.units = tuple(Unit(index) for index in range(len(regions)))
        split = plan.split
        if split is None:
            self._set_grounds((Ground(0, 0, *region.geobox.shape),) for region in regions)
            return
        grounds, of_block = [], dict[str | None, Split]()
        small: list[str | None] = []  # regions that cannot be cut by themselves share a permutation
        for region in regions:
            found = blocks_of(region, split.block_px, half_buffer(split), plan.size_px, False)
            grounds.append([ground for _, _, ground in found])
            names = [ground.block for ground in grounds[-1]]
            if len(names) < 3:
                small += names
            else:
                of_block |= deal(names, split, generator(seed, "splits", region.name))
        of_block |= deal(small, split, generator(seed, "splits of small regions", ""))
        self._set_grounds(
            [replace(ground, split=of_block[ground.block]) for ground in own] for own in grounds
        )

    @abstractmethod
    def candidates(self, region_index: int) -> Iterator[Site]:
        """Places to look at in a region, in order."""

    def select(
        self, region_index: int, measure: Callable[[Site], Measured | None]
    ) -> list[Measured]:
        """What ``measure`` makes of a region's sites, less those it answers ``None`` for.

        Raises:
            ConfigError: there are too few.
        """
        clear = filter(self.is_clear, self.candidates(region_index))
        return [found for site in clear if (found := measure(site)) is not None]

    def _site(self, region_index: int, ground: Ground, row: int, col: int) -> Site:
        region, size_px = self.regions[region_index], self.plan.size_px
        centre = (row + size_px // 2) // CELL_PX, (col + size_px // 2) // CELL_PX
        block = ground.block or block_name(region, *centre)
        return Site(region.name, region_index, row, col, size_px, ground.split, block, ground.zone)


class Grid(ByPixels):
    """Squares side by side in every block: all that can be used."""

    def candidates(self, region_index: int) -> Iterator[Site]:
        """All squares of the region, ground by ground."""
        size_px = self.plan.size_px
        for ground in self.grounds[region_index]:
            for row in side_by_side(ground.row, ground.height, size_px):
                for col in side_by_side(ground.col, ground.width, size_px):
                    yield self._site(region_index, ground, row, col)


class Random(ByPixels):
    """Windows anywhere in the blocks: the first ``chips_per_roi`` of a region that can be used."""

    own_keys = ("chips_per_roi",)

    def candidates(self, region_index: int) -> Iterator[Site]:
        """Endless windows, every position of every ground equally likely."""
        grounds = self.grounds[region_index]
        positions = [ground.num_positions(self.plan.size_px) for ground in grounds]
        # One number numbers them all.
        ends = list(accumulate(rows * cols for rows, cols in positions))
        random = generator(self.seed, "windows", self.regions[region_index].name)
        while True:
            number = int(random.integers(ends[-1]))
            index = bisect_right(ends, number)
            rows, cols = positions[index]
            row, col = divmod(number - (ends[index] - rows * cols), cols)
            ground = grounds[index]
            yield self._site(region_index, ground, ground.row + row, ground.col + col)

    def select(
        self, region_index: int, measure: Callable[[Site], Measured | None]
    ) -> list[Measured]:
        """As many as the plan wants of a region, or an error after 200 windows for each."""
        plan, usable = self.plan, list[Measured]()
        wanted = plan.chips_per_roi or 0
        most = wanted * MAX_CANDIDATES_PER_CHIP
        for site in islice(self.candidates(region_index), most):
            found = measure(site) if self.is_clear(site) else None
            if found is not None:
                usable.append(found)
            if len(usable) == wanted:
                return usable
        raise ConfigError(
            f"only {len(usable)} of {most} random windows in region "
            f"{self.regions[region_index].name!r} can be used, {wanted} are wanted "
            f"(plan.chips_per_roi): lower it, plan.min_classes ({plan.min_classes}) or "
            f"plan.min_valid_fraction ({plan.min_valid_fraction})"
        )


# Blocks


@dataclass(frozen=True)
class Block:
    """A ground with its place among the blocks, and the first pixels of the squares it offers."""

    region_index: int
    row: int
    col: int
    ground: Ground
    corners: Int64[np.ndarray, "site 2"]
    """All that fit the ground and lie in its zone."""
    num_sites: int
    """How many may be taken."""


@dataclass(frozen=True)
class BlockGroup:
    """Blocks of one region and zone that are chosen, and read, together."""

    name: str
    zone: str | None
    blocks: tuple[Block, ...]


class Blocks(Layout):
    """Some squares of every block, balanced over zones and classes.

    Cells of ``plan.unit_blocks`` are drawn without replacement, each zone its even share of the
    chips, and within a zone with odds that favour cells where rare classes lie. What classes lie
    where comes from a *look* at the label product's overviews, a few hundred kilobytes for a tile
    of three degrees; without one all ground is taken for land, and classes are not balanced.
    """

    fetched = balanced = True
    in_regions = False
    own_keys = ("num_chips",)

    def __init__(
        self,
        regions: Sequence[Region],
        plan: PlanConfig,
        seed: int,
        occasions: Sequence[str | None] = (None,),
        look: Look | None = None,
    ) -> None:
        super().__init__(regions, plan, seed)
        blocks = [block for index in range(len(regions)) for block in _blocks(regions, index, plan)]
        shares = _class_shares(regions, blocks, look) if look and blocks else None
        if shares is None:
            shares = np.ones((len(blocks), 1))
        cells = self._cells([
            block for block, share in zip(blocks, shares, strict=True) if share.sum() > 0
        ])  # fmt: skip
        if not cells:
            raise ConfigError(
                f"no square of plan.size_px {plan.size_px} fits the area: enlarge it, or lower "
                "plan.size_px or plan.split.buffer_px"
                + (" (or it lies over open sea, without labels)" if blocks else "")
            )
        # A class's rarity is one over its share of all ground looked at; the odds of a cell are
        # the mean over its ground of each class's rarity, to a power.
        overall = shares.mean(axis=0)
        rarity = np.where(overall > 0, np.maximum(overall, 1e-9) ** -plan.class_balance, 0.0)
        share_of = {b.ground.block: share for b, share in zip(blocks, shares, strict=True)}
        weights = np.array([
            np.mean([share_of[block.ground.block] @ rarity for block in cell.blocks])
            for cell in cells
        ])  # fmt: skip
        chosen = [(block, block.num_sites) for cell in cells for block in cell.blocks]
        if plan.num_chips is not None:
            chosen = _drawn(cells, weights, -(-plan.num_chips // len(occasions)), seed)
        grounds = [block.ground for block, _ in chosen]
        split_of = deal_by_zone([(each.block, each.zone) for each in grounds], plan.split, seed)
        own: dict[int, list[Ground]] = defaultdict(list)
        picked = []
        for block, num in chosen:
            ground = replace(block.ground, split=split_of[block.ground.block])
            own[block.region_index].append(ground)
            picked.append((replace(block, ground=ground), num))
        self._set_grounds(own[index] for index in range(len(regions)))
        together: dict[tuple[int, str | None], list[tuple[Block, tuple[Site, ...]]]]
        together = defaultdict(list)
        for block, num in picked:
            if sites := self._sites(block, num):
                together[block.region_index, block.ground.zone].append((block, sites))
        self.units = tuple(
            Unit(index, sites, occasion)
            for (index, _), blocks_with_sites in together.items()
            for occasion in occasions
            for sites in _rectangles(blocks_with_sites, plan.unit_blocks)
        )

    def _cells(self, blocks: Sequence[Block]) -> list[BlockGroup]:
        rows, cols = self.plan.unit_blocks
        groups: dict[tuple[int, str | None, int, int], list[Block]] = defaultdict(list)
        for block in blocks:
            key = block.region_index, block.ground.zone, block.row // rows, block.col // cols
            groups[key].append(block)
        return [
            BlockGroup(f"{self.regions[index].name}/{zone}/{row}-{col}", zone, tuple(own))
            for (index, zone, row, col), own in groups.items()
        ]

    def _sites(self, block: Block, num: int) -> tuple[Site, ...]:
        """Some of a block's squares, drawn at random, in their order on the ground."""
        index, ground = block.region_index, block.ground
        name, zone = str(ground.block), ground.zone
        random = generator(self.seed, "sites", name)
        places = np.sort(random.permutation(len(block.corners))[:num])
        corners = block.corners[places].tolist()
        size_px, region = self.plan.size_px, self.regions[index].name
        sites = tuple(
            Site(region, index, row, col, size_px, ground.split, name, zone) for row, col in corners
        )
        if self.is_free(ground.rectangle, index, ground.split):
            return sites
        return tuple(filter(self.is_clear, sites))


def _blocks(regions: Sequence[Region], index: int, plan: PlanConfig) -> Iterator[Block]:
    """The blocks of a region that offer a square, row by row.

    A block belongs to the zone that covers most of its ground, and offers what the zone covers
    whole; where no zone reaches, there is nothing to offer.
    """
    region, size_px, split = regions[index], plan.size_px, plan.split
    block_px, inset = (split.block_px, half_buffer(split)) if split else (_WHOLE_BLOCK_PX, 0)
    # Other regions go on where this one ends, so its outer edges are shared as well.
    places = list(blocks_of(region, block_px, inset, size_px, outer_too=True))
    outlines = [zone.outline for zone in region.zones]
    if outlines and places:
        for outline in outlines:
            shapely.prepare(outline)
        boxes = np.array([ground.rectangle.box() for _, _, ground in places])
        areas = np.stack([shapely.area(shapely.intersection(boxes, each)) for each in outlines])
        covered = np.stack([shapely.covers(each, boxes) for each in outlines])
        best = areas.argmax(axis=0)
    for place, (row, col, ground) in enumerate(places):
        first = np.array([ground.row, ground.col])
        corners = first + _corners(ground.height, ground.width, size_px)
        if outlines:
            zone = best[place]
            if not areas[zone, place] > 0:
                continue
            ground = replace(ground, zone=region.zones[zone].name)
            if not covered[zone, place]:
                low, high = corners, corners + size_px
                squares = shapely.box(low[:, 1], low[:, 0], high[:, 1], high[:, 0])
                corners = corners[shapely.covers(outlines[zone], squares)]
        if num := len(corners):
            most = min(plan.chips_per_block or num, num)
            yield Block(index, row, col, ground, corners, most)


@lru_cache(maxsize=64)
def _corners(height: int, width: int, size_px: int) -> Int64[np.ndarray, "site 2"]:
    rows, cols = side_by_side(0, height, size_px), side_by_side(0, width, size_px)
    return np.stack(np.meshgrid(rows, cols, indexing="ij"), -1).reshape(-1, 2)


def _class_shares(
    regions: Sequence[Region], blocks: Sequence[Block], look: Look
) -> Float64[np.ndarray, "block cls"] | None:
    """Labelled places of every class in every block, as shares of all places looked at."""
    steps = (np.arange(_POINTS_PER_SIDE) + 0.5) / _POINTS_PER_SIDE
    of_region: dict[int, list[Rectangle]] = defaultdict(list)  # in their order in ``blocks``
    for block in blocks:
        of_region[block.region_index].append(block.ground.rectangle)
    lonlat = []
    for index, rectangles in of_region.items():
        ground = np.array(rectangles)
        rows = ground[:, 0, None] + ground[:, 2, None] * steps
        cols = ground[:, 1, None] + ground[:, 3, None] * steps
        x, y = np.broadcast_arrays(cols[:, None, :], rows[:, :, None])
        points = np.stack([x.reshape(-1), y.reshape(-1)]).astype(np.float64)
        lonlat.append(geography.to_lonlat(regions[index].geobox, points))
    seen = look(*np.concatenate(lonlat, axis=1))
    if seen is None:
        return None
    classes = seen.reshape(len(blocks), -1)
    counts = (classes[:, :, None] == np.arange(NUM_CLASSES)).sum(axis=1)
    return counts / _POINTS_PER_SIDE**2


def _drawn(
    cells: Sequence[BlockGroup], weights: Float64[np.ndarray, " cell"], wanted: int, seed: int
) -> list[tuple[Block, int]]:
    """Chosen blocks with how many sites each gives, in the order of the cells.

    Every cell draws its own random number, so an area that grows keeps the choices it had as far
    as shares and quotas allow. Source of the draw: Efraimidis and Spirakis 2006.
    """
    draws = [generator(seed, "cells", cell.name).exponential() for cell in cells]
    order = np.argsort(np.array(draws) / np.maximum(weights, 1e-12), kind="stable")
    capacity: dict[str | None, int] = defaultdict(int)
    for cell in cells:
        capacity[cell.zone] += sum(block.num_sites for block in cell.blocks)
    left = share_evenly(capacity, wanted)
    taken: dict[int, list[tuple[Block, int]]] = defaultdict(list)
    for index in order.tolist():
        cell = cells[index]
        for block in cell.blocks:
            if num := min(block.num_sites, left[cell.zone]):
                taken[index].append((block, num))
                left[cell.zone] -= num
    return [pair for index in sorted(taken) for pair in taken[index]]


def share_evenly(capacity: dict[str | None, int], wanted: int) -> dict[str | None, int]:
    """How many each zone gives of ``wanted``: equal shares, the small ones all they have."""
    given = dict.fromkeys(capacity, 0)
    for place, (zone, most) in enumerate(sorted(capacity.items(), key=lambda item: item[1])):
        given[zone] = min(most, -(-wanted // (len(capacity) - place)))
        wanted -= given[zone]
    return given


def _rectangles(
    blocks: Iterable[tuple[Block, tuple[Site, ...]]], unit_blocks: tuple[int, int]
) -> Iterator[tuple[Site, ...]]:
    """The sites of blocks that fill a rectangle within one cell, so that all between is wanted.

    Rows are walked downwards: a run of neighbouring columns goes on as long as the next row has
    the very same one.
    """
    cells: dict[tuple[int, int], dict[int, dict[int, tuple[Site, ...]]]] = defaultdict(dict)
    for block, sites in blocks:
        cell = block.row // unit_blocks[0], block.col // unit_blocks[1]
        cells[cell].setdefault(block.row, {})[block.col] = sites
    for rows in cells.values():
        open_runs: dict[tuple[int, ...], tuple[Site, ...]] = {}
        for row in sorted(rows):
            cols = sorted(rows[row])
            ends = [place for place, (a, b) in enumerate(pairwise(cols), 1) if b != a + 1]
            runs = [tuple(cols[a:b]) for a, b in pairwise([0, *ends, len(cols)])]
            for run in [run for run in open_runs if run not in runs or row - 1 not in rows]:
                yield open_runs.pop(run)
            for run in runs:
                own = tuple(site for col in run for site in rows[row][col])
                open_runs[run] = open_runs.get(run, ()) + own
        yield from open_runs.values()


# Files


class Files(Layout):
    """Every ready-made square of the regions; splits go by block.

    Squares nearer to each other than the buffer go to one block together, unless their group is
    wider than a block; where two of different splits are still too near, test is kept before val
    before train.
    """

    in_blocks = False

    def __init__(self, regions: Sequence[Region], plan: PlanConfig, seed: int) -> None:
        super().__init__(regions, plan, seed)
        if not any(region.squares for region in regions):
            raise ConfigError(
                "plan.strategy 'files' needs a source of ready-made chips: see geotiff"
            )
        size_px, split = plan.size_px, plan.split
        block_px, buffer_px = (split.block_px, split.buffer_px) if split else (_WHOLE_BLOCK_PX, 0)
        near_of, names_of = [], []
        for region in regions:
            corners = np.array(region.squares, np.float64).reshape(-1, 2)
            near_of.append(_near(corners, size_px, buffer_px))
            centres = _group_centres(corners, size_px, near_of[-1], block_px)
            names_of.append([block_name(region, *map(int, each)) for each in centres // block_px])
        # The blocks of all regions are dealt out together: files may be spread over many grids.
        every = sorted({name for names in names_of for name in names})
        split_of = deal_by_zone([(name, None) for name in every], split, seed)
        squares: list[list[Site]] = []
        for index, region in enumerate(regions):
            near, names = near_of[index], names_of[index]
            splits = [split_of[name] for name in names]
            rank = np.array([len(BEFORE["train"]) - len(BEFORE[each]) for each in splits])
            kept = np.ones(len(names), bool)
            kept[near[0][rank[near[0]] < rank[near[1]]]] = False
            squares.append([
                Site(
                    region.name, index, math.floor(row + 0.5), math.floor(col + 0.5), size_px,
                    splits[place], names[place],
                )
                for place, (row, col) in enumerate(region.squares)
                if kept[place]
            ])  # fmt: skip
        self._set_grounds(
            [Ground(s.row, s.col, size_px, size_px, s.split, s.block) for s in own]
            for own in squares
        )
        clear = [[site for site in own if self.is_clear(site)] for own in squares]
        self.units = tuple(
            Unit(own[0].region_index, tuple(own[start : start + FILES_PER_UNIT]))
            for own in clear
            for start in range(0, len(own), FILES_PER_UNIT)
        )
        self.num_left_out = sum(len(r.squares) for r in regions) - sum(map(len, clear))


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
    while True:  # every square takes the lowest number in its group, from neighbour to neighbour
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


LAYOUTS: Mapping[str, type[Layout]] = {
    "grid": Grid,
    "random": Random,
    "blocks": Blocks,
    "files": Files,
}
"""By ``plan.strategy``."""
