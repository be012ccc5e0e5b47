"""Sources: "this layer on that grid". One module a product; a ``Recipe`` pairs two.

``Source`` is all that a build asks of a product. What a product has no word on has a default, so a
new one is a class with ``read``, a function that makes its recipe, and a line in
``config.SOURCES``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import shapely
from jaxtyping import Float64, UInt8
from odc.geo.geobox import GeoBox

from bharateo.config import SOURCES, DataConfig
from bharateo.landcover import ClassScheme
from bharateo.pixels.http import Traffic
from bharateo.pixels.raster import Raster
from bharateo.regions import Region
from bharateo.sensor import Sensor


class Source:
    """A product that can be read on any grid it supports.

    A source can be pickled: it is opened anew where it arrives.
    """

    name: str
    attribution: tuple[str, ...]
    """Lines to print with every product made from it."""

    def read(self, geobox: GeoBox) -> Raster:
        """The stored values on a grid, or on the very near grid that a file has.

        Of the provenance, what an image says under ``item``, ``datetime``, ``offset`` (``dn``,
        ``baseline``, ``evidence``, ``pixels``) and ``dark_dn`` is kept with every chip; a
        ``warning`` is shown.

        Raises:
            SourceError: pixels could not be had.
        """
        raise NotImplementedError(f"{type(self).__name__} reads nothing")

    @property
    def traffic(self) -> Traffic:
        """What was fetched over the network so far."""
        return Traffic()

    def cost(self, geobox: GeoBox) -> Traffic | None:
        """About what a read of a grid fetches over the network; None where that is not known."""
        return None

    def places(self, scene: Any = None) -> Sequence[str]:
        """The folders, files and addresses it reads, which every worker must reach."""
        return ()


class Place(NamedTuple):
    """What is read at once: ground of a region, as an outline in degrees, on an occasion."""

    region: Region
    occasion: str
    outline: shapely.Geometry


class Scenes(Protocol):
    """The scenes that a source has of some places, and what their pixels say of them."""

    @property
    def by_id(self) -> Mapping[str, Any]:
        """The scenes, which ``ImageSource.at`` takes."""
        ...

    def find(
        self, places: Sequence[Place], progress: Callable[[int, int], None]
    ) -> list[tuple[str, ...]]:
        """Of every place, the scenes it may be read from, best first; empty where there is none.

        Raises:
            SourceError: there are none at all, or nobody could be asked.
        """
        ...

    def complaints(self) -> list[str]:
        """What is wrong with scenes that were found and are not used, a line for every kind."""
        ...

    def contradicted(self, evidence: Iterable[tuple[str, Mapping[str, Any]]]) -> dict[str, str]:
        """The scenes that their own pixels speak against, with the reason.

        ``evidence`` are scenes with what ``ImageSource.evidence`` made of reads of them.
        """
        ...

    def drop(self, wrong: Mapping[str, str]) -> list[str]:
        """Count scenes among those left out; a line for each that was not before."""
        ...

    def check(self, wrong: Mapping[str, str], num_read: int) -> None:
        """Make sure that so many of the scenes read are not wrong that nothing can be believed.

        Raises:
            BuildError: they are; with what mends it.
        """
        ...

    def to_json(self, used: Iterable[str]) -> dict[str, Any]:
        """The contents of ``items.json``: the scenes ``used``, and those left out."""
        ...


class ImageSource(Source):
    """A source of input pixels, of all of a place or of one of several scenes of it."""

    sensor: Sensor
    occasion_names: tuple[str | None, ...] = (None,)
    """The occasions (seasons) on which every place is read."""

    def scenes(self, folder: Path) -> Scenes | None:
        """Where a place has several scenes, who knows which; answers are kept in ``folder``."""
        return None

    def at(self, scene: Any) -> Source:
        """This source bound to one of its scenes; itself where it has none."""
        return self

    def opening_cost(self) -> Traffic:
        """What is fetched once of every scene, before its pixels."""
        return Traffic()

    def evidence(self, provenances: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """What some reads of a scene, by their provenance, say for or against it; plain JSON."""
        return {}


class LabelSource(Source):
    """A source of native land-cover codes (one uint8 band)."""

    scheme: ClassScheme

    def overview(
        self, lon: Float64[np.ndarray, " point"], lat: Float64[np.ndarray, " point"]
    ) -> UInt8[np.ndarray, " point"] | None:
        """Class ids near places, good for balancing; None where there is no coarse view."""
        return None


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


def open_recipe(data: DataConfig, say: Callable[[str], object] = lambda _: None) -> Recipe:
    """The recipe of the source that a configuration names; ``say`` is told what takes time.

    Raises:
        ConfigError, RegionError: a value cannot be understood.
        SourceError: the pixels cannot be had.
    """
    module, _, function = SOURCES[data.source].partition(":")
    make: Callable[[DataConfig, Callable[[str], object]], Recipe]
    make = getattr(import_module(module), function)
    return make(data, say)
