"""What a build will take, before it takes it: sites, requests, bytes, disk and hours.

Counted from the plan alone: every unit's blocks under its window, at the sizes that scenes and
WorldCover have on the average. Sentinel-2's pixels are not touched for it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from bharateo.accounting import Row
from bharateo.chips.cut import read_windows
from bharateo.chips.layouts import Layout
from bharateo.pixels.http import Traffic
from bharateo.sources import Recipe

CHIPS_PER_S = 50.0
"""Chips a core reads, brings to one grid and cuts in a second (benchmarks/build_sentinel2.md)."""


@dataclass(frozen=True)
class Budget:
    """What is planned, and what it will take; ``traffic`` is None where that cannot be said."""

    num_units: int
    num_scenes: int
    num_blocks: int
    num_chips: int
    by_split: dict[str, int]
    by_zone: dict[str, int]
    traffic: Traffic | None
    disk_bytes: int

    def hours(self, mbit: float, num_cores: int) -> float:
        """Time for the network or for the cores, whichever is longer."""
        on_the_way = self.traffic.bytes * 8 / (mbit * 1e6) if self.traffic else 0.0
        return max(on_the_way, self.num_chips / (CHIPS_PER_S * num_cores)) / 3600

    def line(self) -> str:
        """The budget in one line, to be read before a build starts."""
        text = f"planned: {self.num_chips:,} chips in {self.num_units:,} reads"
        if self.traffic:
            text += (
                f", about {_size(self.traffic.bytes)} in {self.traffic.requests:,} requests from "
                f"{self.num_scenes:,} scenes or more"
            )
        return f"{text}, {_size(self.disk_bytes)} on disk"

    def rows(self, mbit: float, num_cores: int) -> list[Row]:
        """The budget as table rows."""
        splits = ", ".join(f"{num:,} {split}" for split, num in self.by_split.items())
        rows = [
            Row("sites", self.num_chips, "chips", f"planned: {splits}; bad pixels take some away"),
            Row("zones", len(self.by_zone), "zones", _spread(self.by_zone)),
            Row("blocks", self.num_blocks, "blocks", "whole ground of one split; on each occasion"),
            Row("units", self.num_units, "reads", "blocks or files that are read together"),
        ]
        if self.traffic:
            per_chip = self.traffic.requests / max(self.num_chips, 1)
            rows += [
                Row("scenes", self.num_scenes, "scenes", "one for a square and season, or more"),
                Row("requests", self.traffic.requests, "requests", f"{per_chip:.2f} a chip"),
                Row(
                    "download", self.traffic.bytes, "bytes",
                    f"{_size(self.traffic.bytes)}, "
                    f"{_size(self.traffic.bytes / max(self.num_chips, 1))} a chip",
                ),
            ]  # fmt: skip
        hours = self.hours(mbit, num_cores)
        return [
            *rows,
            Row("disk", self.disk_bytes, "bytes", f"{_size(self.disk_bytes)}, all layers"),
            Row(
                "time", round(hours * 3600), "seconds",
                f"{hours:,.1f} h with {mbit:g} Mbit/s and {num_cores} cores",
            ),
        ]  # fmt: skip


def budget(recipe: Recipe, layout: Layout) -> Budget:
    """The budget of a plan whose sites are laid out (strategies ``blocks`` and ``files``)."""
    sites = [site for unit in layout.units for site in unit.sites or ()]
    plan, sensor = layout.plan, recipe.image.sensor
    chip_bytes = plan.size_px**2 * (sensor.num_bands * np.dtype(sensor.dtype).itemsize + 1)
    chip_bytes += plan.size_px * -(-plan.size_px // 8)
    scenes = {(unit.region_index, unit.occasion) for unit in layout.units}
    return Budget(
        len(layout.units),
        len(scenes),
        sum(len({site.block for site in unit.sites or ()}) for unit in layout.units),
        len(sites),
        dict(sorted(Counter(str(site.split) for site in sites).items())),
        dict(sorted(Counter(site.zone or "all" for site in sites).items())),
        _traffic(recipe, layout, len(scenes)),
        len(sites) * chip_bytes,
    )


def _traffic(recipe: Recipe, layout: Layout, num_scenes: int) -> Traffic | None:
    opened = recipe.image.opening_cost()
    total = Traffic(opened.requests * num_scenes, opened.bytes * num_scenes)
    for unit in layout.units:
        region = layout.regions[unit.region_index]
        for window, _ in read_windows(unit, region):
            image = recipe.image.cost(region.geobox[window])
            if image is None:
                return None
            for part in (image, recipe.landcover.cost(region.geobox[window]) or Traffic()):
                total.requests += part.requests
                total.bytes += part.bytes
    return total


def _spread(by_zone: dict[str, int]) -> str:
    least = min(by_zone, key=lambda zone: by_zone[zone])
    most = max(by_zone, key=lambda zone: by_zone[zone])
    return f"{by_zone[least]:,} chips in {least} to {by_zone[most]:,} in {most}"


def _size(num_bytes: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} TB"
