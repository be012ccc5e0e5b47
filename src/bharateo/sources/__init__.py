"""Sources: "this layer on that grid". One module a product; a ``Recipe`` pairs two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from odc.geo.geobox import GeoBox

from bharateo.landcover import ClassScheme
from bharateo.pixels.raster import Raster
from bharateo.regions import Region
from bharateo.sensor import Sensor


@runtime_checkable
class Source(Protocol):
    """A product that can be read on any grid it supports.

    A source can be pickled: it is opened anew where it arrives. It may count its ``traffic``.
    """

    name: str
    attribution: tuple[str, ...]
    """Lines to print with every product made from it."""

    def read(self, geobox: GeoBox) -> Raster:
        """The stored values on a grid, or on the very near grid that a file has."""
        ...


@runtime_checkable
class ImageSource(Source, Protocol):
    """A source of input pixels. One of several scenes of a place is read through ``at(scene)``."""

    sensor: Sensor


@runtime_checkable
class LabelSource(Source, Protocol):
    """A source of native land-cover codes (one uint8 band)."""

    scheme: ClassScheme


@dataclass(frozen=True)
class Recipe:
    """What a dataset is built from: regions, input pixels, labels, all on one grid per region.

    ``settings`` are what else decides the pixels, as plain JSON: kept to tell builds apart.
    """

    name: str
    regions: Sequence[Region]
    image: ImageSource
    landcover: LabelSource
    settings: Mapping[str, Any] = field(default_factory=dict)
