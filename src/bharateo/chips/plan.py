"""Where chips lie: blocks, splits and sites, in pixels of each region. No I/O, no pixels.

A region is cut into square *blocks*; each belongs whole to one split. What may be sampled of a
block is its *ground*: the block less half the buffer on every side that faces another block, so
ground of different splits is at least the buffer apart. Regions that overlap on Earth are kept
apart as well: ``SitePlan.is_clear`` refuses a site near another region's ground of a split with
precedence (test before val before train).

What is read together is a *unit*: a whole region, or, for the strategies ``blocks`` and ``files``,
a rectangle of neighbouring blocks or a handful of files.
"""

from __future__ import annotations

import zlib
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, islice
from typing import Literal, NamedTuple, TypeVar, get_args

import numpy as np
import shapely
from odc.geo.geobox import GeoBox

from bharateo import geography
from bharateo.config import PlanConfig, SplitConfig
from bharateo.errors import ConfigError
from bharateo.geography import Rectangle
from bharateo.regions import Region

Split = Literal["train", "val", "test"]

Measured = TypeVar("Measured")

CELL_PX = 512
"""Side of the cells that name a site's block where there is no split."""

MAX_CANDIDATES_PER_CHIP = 200
"""Random windows looked at for every chip wanted, before the region is given up."""

_BEFORE: dict[Split, tuple[Split, ...]] = {"test": (), "val": ("test",), "train": ("test", "val")}


@dataclass(frozen=True, slots=True)
class Site:
    """A chip's planned place: a square of ``size_px`` whose first pixel is (``row``, ``col``).

    ``block`` (e.g. ``delhi_ncr/2-3``) is the unit of the bootstrap: sites of different blocks
    are taken as independent. ``zone`` names the part of the area that it lies in, if that has any.
    """

    region: str
    region_index: int
    row: int
    col: int
    size_px: int
    split: Split
    block: str
    zone: str | None = None

    @property
    def window(self) -> tuple[slice, slice]:
        """The rows and columns of the region that the site covers."""
        return (
            slice(self.row, self.row + self.size_px),
            slice(self.col, self.col + self.size_px),
        )


@dataclass(frozen=True)
class Ground:
    """The rectangle of a region, in its pixels, that sites of one split may be taken from."""

    row: int
    col: int
    height: int
    width: int
    split: Split
    block: str | None = None
    """``None``: the whole region; its sites are named by the cell under their centre."""
    zone: str | None = None

    @property
    def rectangle(self) -> Rectangle:
        """The ground without its split."""
        return Rectangle(self.row, self.col, self.height, self.width)

    def num_positions(self, size_px: int) -> tuple[int, int]:
        """How many first rows and first columns a square can have; 0 where it does not fit."""
        return max(self.height - size_px + 1, 0), max(self.width - size_px + 1, 0)


class Unit(NamedTuple):
    """What is read and cut together: sites of one region, on one occasion (a season).

    ``sites`` is None where they are chosen by looking at the pixels of the whole region. ``scene``
    names what the pixels are read from, where a source has several for a place.
    """

    region_index: int
    sites: tuple[Site, ...] | None = None
    occasion: str | None = None
    scene: str | None = None


@dataclass(frozen=True)
class SitePlan:
    """Regions with their grounds: everything needed to draw sites, also again."""

    regions: tuple[Region, ...]
    config: PlanConfig
    seed: int
    grounds: tuple[tuple[Ground, ...], ...]
    """Of every region, those that a site fits in."""
    fences: tuple[tuple[tuple[Split, shapely.STRtree], ...], ...]
    """Of every region, the neighbours' val and test ground with the buffer around it."""
    units: tuple[Unit, ...]
    """What is read together, in the order of the dataset."""

    def candidates(self, region_index: int) -> Iterator[Site]:
        """Places to look at in a region, in order: all of a grid, or endless random windows."""
        if self.config.strategy == "grid":
            return self._grid(region_index)
        return self._random(region_index)

    def is_clear(self, site: Site) -> bool:
        """Whether no other region has ground of a split with precedence within the buffer."""
        square = Rectangle(site.row, site.col, site.size_px, site.size_px)
        return self.is_free(square, site.region_index, site.split)

    def is_free(self, rectangle: Rectangle, region_index: int, split: Split) -> bool:
        """The same for any rectangle of a region."""
        fences = [tree for name, tree in self.fences[region_index] if name in _BEFORE[split]]
        if not fences:
            return True
        box = rectangle.box()
        return not any(len(tree.query(box, "intersects")) for tree in fences)

    def select(
        self, region_index: int, measure: Callable[[Site], Measured | None]
    ) -> list[Measured]:
        """What ``measure`` makes of a region's sites, less those it answers ``None`` for.

        All of a grid, or the first ``chips_per_roi`` random windows.

        Raises:
            ConfigError: too few of the random windows can be used.
        """
        clear = filter(self.is_clear, self.candidates(region_index))
        if self.config.strategy == "grid":
            return [found for site in clear if (found := measure(site)) is not None]
        return self._first_usable(region_index, measure)

    def _first_usable(
        self, region_index: int, measure: Callable[[Site], Measured | None]
    ) -> list[Measured]:
        wanted = self.config.chips_per_roi or 0
        usable: list[Measured] = []
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
            f"(plan.chips_per_roi): lower it, plan.min_classes ({self.config.min_classes}) or "
            f"plan.min_valid_fraction ({self.config.min_valid_fraction})"
        )

    def _grid(self, region_index: int) -> Iterator[Site]:
        size_px = self.config.size_px
        for ground in self.grounds[region_index]:
            for row in side_by_side(ground.row, ground.height, size_px):
                for col in side_by_side(ground.col, ground.width, size_px):
                    yield self._site(region_index, ground, row, col)

    def _random(self, region_index: int) -> Iterator[Site]:
        """Every position of every ground is equally likely: one number numbers them all."""
        grounds = self.grounds[region_index]
        positions = [ground.num_positions(self.config.size_px) for ground in grounds]
        ends = list(accumulate(rows * cols for rows, cols in positions))
        random = generator(self.seed, "windows", self.regions[region_index].name)
        while True:
            number = int(random.integers(ends[-1]))
            index = bisect_right(ends, number)
            rows, cols = positions[index]
            row, col = divmod(number - (ends[index] - rows * cols), cols)
            ground = grounds[index]
            yield self._site(region_index, ground, ground.row + row, ground.col + col)

    def _site(self, region_index: int, ground: Ground, row: int, col: int) -> Site:
        region, size_px = self.regions[region_index], self.config.size_px
        centre = ((row + size_px // 2) // CELL_PX, (col + size_px // 2) // CELL_PX)
        block = ground.block or block_name(region, *centre)
        return Site(region.name, region_index, row, col, size_px, ground.split, block, ground.zone)


def lay_out(regions: Sequence[Region], config: PlanConfig, seed: int) -> SitePlan:
    """The plan of strategies ``grid`` and ``random``: blocks, splits, and what keeps them apart.

    Raises:
        ConfigError: a value is out of range, or a chip fits nowhere.
    """
    check(regions, config, seed)
    grounds = tuple(_grounds(region, config) for region in regions)
    units = tuple(Unit(index) for index in range(len(regions)))
    if config.split is None:
        return SitePlan(tuple(regions), config, seed, grounds, ((),) * len(regions), units)
    grounds = _assign_splits(regions, grounds, config.split, seed)
    fences = fences_between(regions, grounds, config.split.buffer_px)
    return SitePlan(tuple(regions), config, seed, grounds, fences, units)


def plan_sites(regions: Sequence[Region], plan: PlanConfig, seed: int) -> list[Site]:
    """All sites of a plan, region by region, taking every pixel for usable.

    Raises:
        ConfigError: a value is out of range, a chip fits nowhere, or a split ends empty.
    """
    layout = lay_out(regions, plan, seed)
    indices = range(len(regions))
    sites = [site for index in indices for site in layout.select(index, lambda site: site)]
    check_splits(Counter(site.split for site in sites), plan)
    return sites


def check_splits(num: Mapping[str, int], plan: PlanConfig) -> None:
    """Make sure that every split asked for has a site; ``num`` are sites by split.

    Raises:
        ConfigError: one has none.
    """
    for split, fraction in _fractions(plan.split).items():
        if fraction and not num.get(split):
            counts = ", ".join(f"{name} {num.get(name, 0)}" for name in get_args(Split))
            remedy = (
                f"set plan.split.{split} to 0, "
                if split != "train"
                else "lower plan.split.test and plan.split.val, "
            )
            raise ConfigError(
                f"split {split!r} ends with no chip ({counts}): {remedy if plan.split else ''}"
                "use larger or more regions, a smaller plan.split.block_px, or lower "
                f"plan.min_valid_fraction ({plan.min_valid_fraction}) and plan.min_classes "
                f"({plan.min_classes})"
            )


def _fractions(split: SplitConfig | None) -> dict[Split, float]:
    if split is None:
        return {"train": 1.0}
    test = 1.0 if split.test_zones else split.test
    val = 1.0 if split.val_zones else split.val
    return {"test": test, "val": val, "train": 1 - split.test - split.val}


def generator(seed: int, purpose: str, name: str) -> np.random.Generator:
    """Own random numbers for every region, by its name: other regions do not change them."""
    return np.random.default_rng([seed, zlib.crc32(purpose.encode()), zlib.crc32(name.encode())])


def check(regions: Sequence[Region], config: PlanConfig, seed: int) -> None:
    """Refuse a plan that cannot be laid out, whatever the pixels.

    Raises:
        ConfigError: a value is out of range, or a chip fits nowhere.
    """
    _check_ranges(config, seed)
    if config.split:
        _check_split(config, config.split)
    if not regions:
        raise ConfigError("no region is given: name at least one ROI")
    names = Counter(region.name for region in regions)
    for region in regions:
        if names[region.name] > 1:
            raise ConfigError(f"ROI name {region.name!r} is given twice: rename one of them")
        height, width = region.geobox.shape
        if config.strategy != "blocks" and min(height, width) < config.size_px:
            raise ConfigError(
                f"region {region.name!r} is {height} x {width} px, smaller than a chip of "
                f"plan.size_px {config.size_px}: enlarge the region or lower plan.size_px"
            )


def _check_ranges(config: PlanConfig, seed: int) -> None:
    random = config.strategy == "random"
    if config.strategy not in ("grid", "random", "blocks", "files"):
        raise ConfigError(
            f"plan.strategy {config.strategy!r} is none of 'grid', 'random', 'blocks', 'files'"
        )
    if random and (config.chips_per_roi or 0) < 1:
        raise ConfigError(
            f"plan.chips_per_roi {config.chips_per_roi} with plan.strategy 'random': give how "
            "many chips to keep from each region, at least 1"
        )
    if not random and config.chips_per_roi is not None:
        raise ConfigError(
            f"plan.chips_per_roi {config.chips_per_roi} has no meaning for plan.strategy "
            f"{config.strategy!r}: leave it out, or use strategy 'random'"
        )
    for name in ("num_chips", "chips_per_block"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ConfigError(f"plan.{name} {value}: give at least 1, or null for all there are")
    if config.num_chips is not None and config.strategy != "blocks":
        raise ConfigError(
            f"plan.num_chips {config.num_chips} has no meaning for plan.strategy "
            f"{config.strategy!r}: leave it out, or use strategy 'blocks'"
        )
    if min(config.unit_blocks) < 1 or config.class_balance < 0 or not 0 <= config.max_failed <= 1:
        raise ConfigError(
            f"plan.unit_blocks {list(config.unit_blocks)} must be at least 1 each, "
            f"plan.class_balance {config.class_balance} at least 0 and plan.max_failed "
            f"{config.max_failed} a share from 0 to 1"
        )
    if config.size_px < 1 or config.min_classes < 0 or seed < 0:
        raise ConfigError(
            f"plan.size_px {config.size_px}, plan.min_classes {config.min_classes} and seed "
            f"{seed}: the first must be at least 1, the others at least 0"
        )
    if not 0 <= config.min_valid_fraction <= 1:
        raise ConfigError(
            f"plan.min_valid_fraction {config.min_valid_fraction} is a share: give 0 to 1"
        )


def _check_split(config: PlanConfig, split: SplitConfig) -> None:
    if min(split.val, split.test) < 0 or split.val + split.test >= 1:
        raise ConfigError(
            f"plan.split.val {split.val} and plan.split.test {split.test} are shares of the "
            "blocks: neither may be negative, and together they must leave some for training (< 1)"
        )
    if split.buffer_px < 0:
        raise ConfigError(f"plan.split.buffer_px {split.buffer_px} is negative: give 0 or more")
    inset = half_buffer(split)
    if config.strategy != "files" and config.size_px > split.block_px - 2 * inset:
        raise ConfigError(
            f"plan.size_px {config.size_px} does not fit a block of plan.split.block_px "
            f"{split.block_px} less the buffer of {split.buffer_px}: use size_px <= "
            f"{split.block_px - 2 * inset} or block_px >= {config.size_px + 2 * inset}"
        )


def half_buffer(split: SplitConfig) -> int:
    """What a block gives up along an edge that it shares, in pixels."""
    return -(-split.buffer_px // 2)


def block_name(region: Region, row: int, col: int) -> str:
    """The name of a block by its place in the region."""
    return f"{region.name}/{row}-{col}"


def _grounds(region: Region, config: PlanConfig) -> tuple[Ground, ...]:
    """Grounds of a region that a site fits in, all ``train`` for now, row by row."""
    height, width = region.geobox.shape
    if config.split is None:
        return (Ground(0, 0, height, width, "train"),)
    inset = half_buffer(config.split)
    grounds = (
        Ground(row, col, rows, cols, "train", block_name(region, block_row, block_col))
        for block_row, (row, rows) in enumerate(_spans(height, config.split.block_px, inset))
        for block_col, (col, cols) in enumerate(_spans(width, config.split.block_px, inset))
    )
    return tuple(ground for ground in grounds if min(ground.num_positions(config.size_px)) > 0)


def _spans(length: int, block_px: int, inset: int) -> Iterator[tuple[int, int]]:
    """First pixel and length of every block's ground along one axis."""
    for start in range(0, length, block_px):
        first = start + (inset if start > 0 else 0)
        last = length if start + block_px >= length else start + block_px - inset
        yield first, max(last - first, 0)


def side_by_side(start: int, length: int, size_px: int) -> list[int]:
    """First pixels of as many squares as fit, what is left over spread evenly around them."""
    num = length // size_px
    spare = length - num * size_px
    return [start + i * size_px + spare * (2 * i + 1) // (2 * num) for i in range(num)]


def _assign_splits(
    regions: Sequence[Region],
    grounds: tuple[tuple[Ground, ...], ...],
    split: SplitConfig,
    seed: int,
) -> tuple[tuple[Ground, ...], ...]:
    """Splits by a permutation of each region's blocks.

    Regions of fewer than three blocks cannot be cut by themselves: they share one permutation.
    """
    of_block: dict[str | None, Split] = {}
    small: list[Ground] = []
    for region, own in zip(regions, grounds, strict=True):
        if len(own) < 3:
            small += own
        else:
            of_block |= deal(own, split, generator(seed, "splits", region.name))
    of_block |= deal(small, split, generator(seed, "splits of small regions", ""))
    return tuple(
        tuple(replace(ground, split=of_block[ground.block]) for ground in own) for own in grounds
    )


def deal(
    grounds: Sequence[Ground], split: SplitConfig, random: np.random.Generator
) -> dict[str | None, Split]:
    """A split for every ground's block, by a random permutation."""
    num_test, num_val = split_counts(len(grounds), split)
    splits: dict[str | None, Split] = {}
    for place, index in enumerate(random.permutation(len(grounds))):
        name: Split = "train"
        if place < num_test:
            name = "test"
        elif place < num_test + num_val:
            name = "val"
        splits[grounds[index].block] = name
    return splits


def split_counts(num_blocks: int, split: SplitConfig) -> tuple[int, int]:
    """How many of ``num_blocks`` go to test and val: the rounded share, at least one of three.

    One block at least is left to train.
    """
    least = 1 if num_blocks >= 3 else 0
    num_test, num_val = (
        max(round(fraction * num_blocks), least) if fraction > 0 else 0
        for fraction in (split.test, split.val)
    )
    num_test = min(num_test, max(num_blocks - 1 - min(num_val, least), 0))
    return num_test, min(num_val, max(num_blocks - 1 - num_test, 0))


def fences_between(
    regions: Sequence[Region], grounds: tuple[tuple[Ground, ...], ...], buffer_px: int
) -> tuple[tuple[tuple[Split, shapely.STRtree], ...], ...]:
    """Of every region, the val and test ground of its neighbours with the buffer around it."""
    geoboxes = [region.geobox for region in regions]
    neighbours = geography.neighbours(geoboxes, buffer_px)
    splits: tuple[Split, ...] = ("test", "val")
    fences = []
    for here, others in enumerate(neighbours):
        own: list[tuple[Split, shapely.STRtree]] = []
        for split in splits:
            boxes = []
            for other in others:
                held_out = [ground for ground in grounds[other] if ground.split == split]
                boxes += _fence(held_out, geoboxes[other], grounds[here], geoboxes[here], buffer_px)
            if boxes:
                own.append((split, shapely.STRtree(boxes)))
        fences.append(tuple(own))
    return tuple(fences)


def _fence(
    held_out: Sequence[Ground], there: GeoBox, own: Sequence[Ground], here: GeoBox, buffer_px: int
) -> list[shapely.Polygon]:
    """Ground of a region next door with the buffer around it, if that reaches own ground at all."""
    if not held_out or not own:
        return []
    whole = geography.surroundings(_around(held_out), there, here, buffer_px)
    if not whole.intersects(_around(own).box()):
        return []
    return [geography.surroundings(g.rectangle, there, here, buffer_px) for g in held_out]


def _around(grounds: Sequence[Ground]) -> Rectangle:
    """The rectangle around some grounds."""
    row, col = min(g.row for g in grounds), min(g.col for g in grounds)
    height = max(g.row + g.height for g in grounds) - row
    return Rectangle(row, col, height, max(g.col + g.width for g in grounds) - col)
