"""Which scene every unit is read from: asked for once, kept, and chosen by cover and cloud."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import shapely

from bharateo.chips import geography
from bharateo.chips.cut import read_windows
from bharateo.chips.geography import Rectangle
from bharateo.chips.plan import Unit
from bharateo.errors import EmptyRegionError, SourceError
from bharateo.files import write_json
from bharateo.regions import Region
from bharateo.sources.sentinel2 import Sentinel2
from bharateo.sources.stac import Occasion, Scene, choose, scene_of

_QUESTIONS_AT_ONCE = 4


class Scenes:
    """The scenes of every region and occasion, from the catalogue or a kept list.

    ``folder`` keeps the answers, so that a build that goes on takes the same scenes.
    """

    def __init__(self, source: Sentinel2, regions: Sequence[Region], folder: Path) -> None:
        self.source = source
        self.regions = regions
        self.folder = folder
        self.found: dict[tuple[int, str], list[Scene]] = {}
        self.left_out: list[str] = []

    def find(self, wanted: Sequence[tuple[int, str]], told: Callable[[int, int], None]) -> None:
        """Ask for the scenes of some regions (by index) and occasions (by name).

        Raises:
            UnreachableError: the catalogue did not answer.
            SourceError: every item found lacks a band.
        """
        if self.source.config.items:
            listed = read_items(Path(self.source.config.items), self.source.sensor.band_names)
            for index, name in wanted:
                self.found[index, name] = [s for s in listed if _within(s, self._occasion(name))]
            return
        client = self.source.client()
        with ThreadPoolExecutor(_QUESTIONS_AT_ONCE) as threads, client.interruptible():
            answers = threads.map(lambda key: self._kept_or_asked(client, *key), wanted)
            for done, (key, records) in enumerate(zip(wanted, answers, strict=True), 1):
                self.found[key] = self._scenes(records)
                told(done, len(wanted))

    def assign(self, units: Sequence[Unit]) -> list[Unit]:
        """The units with the scene each is read from; those without any are left out.

        Raises:
            EmptyRegionError: no unit has a scene.
        """
        assigned = [replaced for unit in units if (replaced := self._assigned(unit))]
        if not assigned:
            raise EmptyRegionError(
                f"no scene in {self.source.catalogue.url} covers the area "
                f"({', '.join(region.name for region in self.regions[:6])}) between "
                f"{self.source.config.dates} with at most {self.source.config.max_cloud:g} % "
                "cloud: check the place (LON,LAT), widen data.sentinel2.dates or raise "
                "data.sentinel2.max_cloud"
            )
        return assigned

    def _assigned(self, unit: Unit) -> Unit | None:
        region, occasion = self.regions[unit.region_index], str(unit.occasion)
        crs = region.geobox.crs
        scenes = self.found[unit.region_index, occasion]
        scene = choose(scenes, footprint(unit, region), crs.epsg if crs else None)
        return unit._replace(scene=scene.id) if scene else None

    def _kept_or_asked(self, client: Any, index: int, name: str) -> list[dict[str, Any]]:
        """The items of a region on an occasion, as the catalogue gave them."""
        file = self.folder / f"{self.regions[index].name}-{name}.json"
        if not file.exists():
            bounds = geography.bounds_lonlat(self.regions[index].geobox)
            cloud = self.source.config.max_cloud
            spans = self._occasion(name).spans
            items = [i for first, last in spans for i in client.items(bounds, first, last, cloud)]
            write_json(file, [_slim(item) for item in items])
        kept: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))
        return kept

    def _scenes(self, items: Sequence[Mapping[str, Any]]) -> list[Scene]:
        scenes, trouble = [], None
        for item in items:
            try:
                scenes.append(scene_of(item, self.source.catalogue, self.source.sensor.band_names))
            except SourceError as error:
                trouble = error
                self.left_out.append(item["id"])
        if trouble and not scenes:
            raise trouble
        return scenes

    def _occasion(self, name: str) -> Occasion:
        return next(one for one in self.source.occasions if one.name == name)


_KEPT_PROPERTIES = (
    "datetime", "eo:cloud_cover", "proj:code", "proj:epsg", "s2:processing_baseline",
    "processing:version", "earthsearch:boa_offset_applied",
)  # fmt: skip


def _slim(item: Mapping[str, Any]) -> dict[str, Any]:
    """What of an item is used; the whole is a hundred times as long."""
    keep = ("href", "raster:bands", "bands")
    return {
        "id": item["id"],
        "geometry": item["geometry"],
        "properties": {k: v for k, v in item["properties"].items() if k in _KEPT_PROPERTIES},
        "assets": {
            key: {name: value for name, value in asset.items() if name in keep}
            for key, asset in item["assets"].items()
        },
    }


def footprint(unit: Unit, region: Region) -> shapely.Polygon:
    """The outline, in degrees, of all that a unit reads."""
    (rows, cols), _ = next(read_windows(unit, region))
    height, width = rows.stop - rows.start, cols.stop - cols.start
    outline = Rectangle(rows.start, cols.start, height, width).outline()
    lon, lat = geography.to_lonlat(region.geobox, outline)
    return shapely.MultiPoint(list(zip(lon, lat, strict=True))).convex_hull


def items_record(source: Sentinel2, scenes: Mapping[str, Scene]) -> dict[str, Any]:
    """The contents of ``items.json``: the scenes a dataset was read from."""
    return {
        "catalogue": source.catalogue.url,
        "collection": source.config.collection,
        "scenes": [scenes[name].to_json() for name in sorted(scenes)],
    }


def read_items(path: Path, bands: Sequence[str]) -> list[Scene]:
    """The scenes in an ``items.json``.

    Raises:
        SourceError: the file is missing, no such list, or a scene lacks one of ``bands``.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        scenes = [Scene.from_json(scene) for scene in record["scenes"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SourceError(
            f"data.sentinel2.items {path} cannot be read as the items.json of a dataset "
            f"({error}): give that file, or null to ask the catalogue"
        ) from error
    for scene in scenes:
        if missing := [band for band in (*bands, "SCL") if band not in scene.assets]:
            raise SourceError(
                f"scene {scene.id} in {path} has no {', '.join(missing)}: leave data.bands as they "
                "were for that dataset, or set data.sentinel2.items to null"
            )
    return scenes


def _within(scene: Scene, occasion: Occasion) -> bool:
    day = scene.datetime[:10]
    return any(first <= day <= last for first, last in occasion.spans)
