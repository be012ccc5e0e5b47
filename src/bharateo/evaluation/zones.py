"""Zones: parts of the ground to look at one by one, so that a mean cannot hide the worst."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import shapely
from jaxtyping import Shaped

from bharateo.chips.store import Dataset

OUTSIDE = "outside"
"""The zone of chips that lie in none."""


@dataclass(frozen=True)
class Zoning:
    """The zone of every chip of a dataset; ``kind`` says what the zones are."""

    kind: str
    of_chip: Shaped[np.ndarray, " chip"]

    @classmethod
    def of(cls, dataset: Dataset, polygons: Path | None = None, field: str | None = None) -> Zoning:
        """By polygons that hold the chips' centres, ``field`` being the column with their names.

        Without polygons by what tells the test ground apart: the area's zones, or else the
        regions, or else the blocks.

        Raises:
            RegionError: the file holds no polygons, or no such column.
        """
        if polygons:
            return cls(f"polygons of {polygons.name}", _inside(dataset, polygons, field))
        test = dataset.indices("test")
        for kind in ("zone", "region"):
            names = dataset.column(kind)
            if len({name for name in names[test] if name is not None}) > 1:
                return cls(kind, np.array([name or OUTSIDE for name in names], object))
        return cls("block", dataset.column("block"))


def _inside(dataset: Dataset, polygons: Path, field: str | None) -> np.ndarray:
    from bharateo.sources.areas import file_zones

    centre = shapely.centroid(dataset.footprints())
    found = np.full(len(centre), OUTSIDE, object)
    for zone in file_zones(polygons, field, "--zones", "--zone-field"):
        found[shapely.contains_xy(zone.outline, shapely.get_x(centre), shapely.get_y(centre))] = (
            zone.name
        )
    return found
