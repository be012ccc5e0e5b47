"""Sources: "this layer on that grid". One module a product; a ``Recipe`` pairs two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from odc.geo.geobox import GeoBox

from bharateo.landcover import ClassScheme
from bharateo.raster import Raster
from bharateo.regions import Region
from bharateo.sensor import Sensor


class Source(Protocol):
    """A product that can be read on any grid it supports."""

    name: str
    attribution: tuple[str, ...]
    """Lines to print with every product made from it."""

    def read(self, geobox: GeoBox) -> Raster:
        """The stored values on a grid."""
        ...


class ImageSource(Source, Protocol):
    """A source of input pixels."""

    sensor: Sensor


class LabelSource(Source, Protocol):
    """A source of native land-cover codes (one uint8 band)."""

    scheme: ClassScheme


@dataclass(frozen=True)
class Recipe:
    """What a dataset is built from: regions, input pixels, labels, all on one grid per region."""

    name: str
    regions: Sequence[Region]
    image: ImageSource
    landcover: LabelSource
