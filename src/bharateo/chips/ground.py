"""Ground: blocks of a region with their splits, and what keeps splits apart. No I/O, no pixels.

A region is cut into square *blocks*; each belongs whole to one split. What may be sampled of a
block is its *ground*: the block less half the buffer on every side that faces another block, so
ground of different splits is at least the buffer apart. Regions that overlap on Earth are kept
apart by *fences*: no site comes near another region's ground of a split with precedence (test
before val before train).
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import shapely

from bharateo import geography
from bharateo.config import SplitConfig
from bharateo.errors import ConfigError
from bharateo.geography import Rectangle
from bharateo.regions import Region

Split = Literal["train", "val", "test"]

BEFORE: dict[Split, tuple[Split, ...]] = {"test": (), "val": ("test",), "train": ("test", "val")}
"""The splits whose ground each one keeps away from."""


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
    split: Split = "train"
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


def generator(seed: int, purpose: str, name: str) -> np.random.Generator:
    """Own random numbers for every region, by its name: other regions do not change them."""
    return np.random.default_rng([seed, zlib.crc32(purpose.encode()), zlib.crc32(name.encode())])


# Blocks


def block_name(region: Region, row: int, col: int) -> str:
    """The name of a block by its place in the region."""
    return f"{region.name}/{row}-{col}"


def half_buffer(split: SplitConfig) -> int:
    """What a block gives up along an edge that it shares, in pixels."""
    return -(-split.buffer_px // 2)


def blocks_of(
    region: Region, block_px: int, inset: int, size_px: int, outer_too: bool
) -> Iterator[tuple[int, int, Ground]]:
    """Row and column of a region's blocks that hold a square, with their ground, row by row.

    ``outer_too``: the region's outer edges give way as well, for other regions that go on there.
    """

    def spans(length: int) -> Iterator[tuple[int, int, int]]:
        for number, start in enumerate(range(0, length, block_px)):
            first = start + (inset if outer_too or start > 0 else 0)
            end = min(start + block_px, length)
            last = end - (inset if outer_too or end < length else 0)
            if last - first >= size_px:
                yield number, first, last - first

    height, width = region.geobox.shape
    cols = list(spans(width))
    for row, top, rows in spans(height):
        for col, left, columns in cols:
            yield row, col, Ground(top, left, rows, columns, block=block_name(region, row, col))


def side_by_side(start: int, length: int, size_px: int) -> list[int]:
    """First pixels of as many squares as fit, what is left over spread evenly around them."""
    num = length // size_px
    spare = length - num * size_px
    return [start + i * size_px + spare * (2 * i + 1) // (2 * num) for i in range(num)]


# Splits


def deal(
    blocks: Sequence[str | None], split: SplitConfig, random: np.random.Generator
) -> dict[str | None, Split]:
    """A split for every block, by a random permutation."""
    num_test, num_val = split_counts(len(blocks), split)
    splits: dict[str | None, Split] = {}
    for place, index in enumerate(random.permutation(len(blocks))):
        held_out: Split = "test" if place < num_test else "val"
        splits[blocks[index]] = held_out if place < num_test + num_val else "train"
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


def deal_by_zone(
    zone_of: Sequence[tuple[str | None, str | None]], split: SplitConfig | None, seed: int
) -> dict[str | None, Split]:
    """The split of every block: zones held out whole, the blocks of each other zone dealt out.

    ``zone_of`` are blocks, each with its zone.

    Raises:
        ConfigError: a zone that is to be held out has no block.
    """
    if split is None:
        return dict.fromkeys((block for block, _ in zone_of), "train")
    by_zone: dict[str | None, list[str | None]] = defaultdict(list)
    for block, zone in zone_of:
        by_zone[zone].append(block)
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
    for zone, blocks in by_zone.items():
        if zone in split.test_zones:
            splits |= dict.fromkeys(blocks, "test")
        elif zone in split.val_zones:
            splits |= dict.fromkeys(blocks, "val")
        else:
            splits |= deal(blocks, rest, generator(seed, "splits", str(zone)))
    return splits


# Fences

Fences = tuple[tuple[Split, shapely.STRtree], ...]
"""Of a region, its neighbours' val and test ground with the buffer around it, in its pixels."""


def fences_between(
    regions: Sequence[Region], grounds: Sequence[Sequence[Ground]], buffer_px: int
) -> tuple[Fences, ...]:
    """The fences of every region; ``grounds`` are the regions' own."""
    geoboxes = [region.geobox for region in regions]
    splits: tuple[Split, ...] = ("test", "val")
    fences = []
    for here, others in enumerate(geography.neighbours(geoboxes, buffer_px)):
        own: list[tuple[Split, shapely.STRtree]] = []
        reach = _around(grounds[here]).box() if grounds[here] else shapely.Polygon()
        for split in splits:
            boxes: list[shapely.Polygon] = []
            for other in others:
                there = geoboxes[other], geoboxes[here], buffer_px
                held_out = [ground for ground in grounds[other] if ground.split == split]
                # One look at all of it together: few neighbours reach each other's ground.
                if held_out and geography.surroundings(_around(held_out), *there).intersects(reach):
                    boxes += [geography.surroundings(each.rectangle, *there) for each in held_out]
            if boxes:
                own.append((split, shapely.STRtree(boxes)))
        fences.append(tuple(own))
    return tuple(fences)


def _around(grounds: Sequence[Ground]) -> Rectangle:
    """The rectangle around some grounds."""
    row, col = min(g.row for g in grounds), min(g.col for g in grounds)
    height = max(g.row + g.height for g in grounds) - row
    return Rectangle(row, col, height, max(g.col + g.width for g in grounds) - col)
