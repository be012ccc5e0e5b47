"""Which scene every unit is read from: asked for once, kept, and chosen by cover and cloud, then by
what the pixels turn out to be.

A catalogue promises; pixels decide. A scene whose pixels contradict the offset that its item tells
of is dropped, and where a read yields next to nothing the next best scene is read as well. All
that is known lies in the units' records, so a build that goes on decides alike.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import shapely

from bharateo.artefacts import Record, checked, read_json
from bharateo.chips import geography
from bharateo.chips.cut import read_windows
from bharateo.chips.geography import Rectangle
from bharateo.chips.plan import Unit
from bharateo.errors import BuildError, EmptyRegionError, ItemError, SourceError
from bharateo.files import write_json
from bharateo.regions import Region
from bharateo.sources.sentinel2 import (
    DarkGround,
    Sentinel2,
    contradiction,
    leaves_nothing,
    offset_of,
)
from bharateo.sources.stac import Occasion, Scene, ranked, scene_of

_QUESTIONS_AT_ONCE = 4

_MOST_SCENES = 4
"""Scenes that a unit may be read from, one after the other."""

_POOR = 0.1
"""Where fewer of a unit's squares than this share are valid enough, another scene may do better."""

_MOST_DROPPED = 3
_MOST_DROPPED_SHARE = 0.1
"""Scenes dropped for their offset, and share of those read, that a catalogue may have."""


class LeftOut(Record):
    """An item that is not used: ``what`` is common to several, ``reason`` says it all."""

    id: str
    what: str
    reason: str


class Scenes:
    """The scenes of every region and occasion, from the catalogue or a kept list.

    ``folder`` keeps the answers, so that a build that goes on takes the same scenes.
    """

    def __init__(self, source: Sentinel2, regions: Sequence[Region], folder: Path) -> None:
        self.source = source
        self.regions = regions
        self.folder = folder
        self.by_id: dict[str, Scene] = {}
        self.left_out: dict[str, LeftOut] = {}
        self.candidates: list[tuple[str, ...]] = []
        """Of every assigned unit, the scenes it may be read from, best first."""
        self._found: dict[tuple[int, str], list[Scene]] = {}

    def find(self, wanted: Sequence[tuple[int, str]], told: Callable[[int, int], None]) -> None:
        """Ask for the scenes of some regions (by index) and occasions (by name).

        Raises:
            UnreachableError: the catalogue did not answer.
            SourceError: no item found can be used.
        """
        if self.source.config.items:
            file = Path(self.source.config.items)
            listed, left_out = read_items(file, self.source.sensor.band_names)
            self.left_out = {each.id: each for each in left_out}
            for index, name in wanted:
                found = [s for s in listed if _within(s, self._occasion(name))]
                self._keep(index, name, found)
            return
        client = self.source.client()
        with ThreadPoolExecutor(_QUESTIONS_AT_ONCE) as threads, client.interruptible():
            answers = threads.map(lambda key: self._kept_or_asked(client, *key), wanted)
            for done, (key, answer) in enumerate(zip(wanted, answers, strict=True), 1):
                self.left_out |= {each.id: each for each in answer.left_out}
                self._keep(*key, [Scene.from_json(scene) for scene in answer.scenes])
                told(done, len(wanted))

    def _keep(self, index: int, name: str, scenes: Sequence[Scene]) -> None:
        self._found[index, name] = [*scenes]
        self.by_id |= {scene.id: scene for scene in scenes}

    def assign(self, units: Sequence[Unit]) -> list[Unit]:
        """The units with the scene each is read from first; those without any are left out.

        Raises:
            EmptyRegionError: no unit has a scene.
        """
        assigned = []
        for unit in units:
            region = self.regions[unit.region_index]
            crs = region.geobox.crs
            scenes = self._found[unit.region_index, str(unit.occasion)]
            best = ranked(scenes, footprint(unit, region), crs.epsg if crs else None)
            if best:
                assigned.append(unit._replace(scene=best[0].id))
                self.candidates.append(tuple(scene.id for scene in best[:_MOST_SCENES]))
        if not assigned:
            raise EmptyRegionError(
                f"no scene in {self.source.catalogue.url} covers the area "
                f"({', '.join(region.name for region in self.regions[:6])}) between "
                f"{self.source.config.dates} with at most {self.source.config.max_cloud:g} % "
                "cloud: check the place (LON,LAT), widen data.sentinel2.dates or raise "
                "data.sentinel2.max_cloud"
            )
        return assigned

    def complaints(self) -> list[str]:
        """What is wrong with the items left out, a line for every kind."""
        kinds = Counter(each.what for each in self.left_out.values())
        first = {each.what: each.id for each in reversed(self.left_out.values())}
        return [f"{num} items {what}, e.g. {first[what]}: left out" for what, num in kinds.items()]

    def _kept_or_asked(self, client: Any, index: int, name: str) -> _Answer:
        """The scenes of a region on an occasion, and the items that are none."""
        file = self.folder / f"{self.regions[index].name}-{name}.json"
        if not file.exists():
            bounds = geography.bounds_lonlat(self.regions[index].geobox)
            cloud = self.source.config.max_cloud
            spans = self._occasion(name).spans
            items = [i for first, last in spans for i in client.items(bounds, first, last, cloud)]
            scenes, left_out = self._usable(items)
            write_json(file, {
                "scenes": [scene.to_json() for scene in scenes],
                "left_out": [each.model_dump() for each in left_out],
            })  # fmt: skip
        remedy = f"delete {self.folder} and run the same build again"
        return checked(
            _Answer, read_json(file, SourceError, remedy), str(file), SourceError, remedy
        )

    def _usable(self, items: Iterable[Any]) -> tuple[list[Scene], list[LeftOut]]:
        """Scenes of items, and the items that are none.

        Raises:
            SourceError: there are items, and none can be used.
        """
        scenes: dict[str, Scene] = {}
        left_out: dict[str, LeftOut] = {}
        trouble = None
        cloud, bands = self.source.config.max_cloud, self.source.sensor.band_names
        for item in items:
            try:
                scene = scene_of(item, self.source.catalogue, bands)
                if scene.cloud_cover > cloud:
                    raise ItemError(
                        f"item {scene.id} of {scene.catalogue} does not say its cloud cover, and "
                        f"may have more than {cloud:g} %: set data.sentinel2.max_cloud to 100 to "
                        "take such items, or choose another catalogue",
                        "do not say their cloud cover",
                    )
                offset_of(scene, self.source.config.offset)
            except SourceError as error:
                trouble = error
                what = error.what if isinstance(error, ItemError) else "do not say their unit"
                name = str(item.get("id")) if isinstance(item, Mapping) else repr(item)[:40]
                left_out[name] = LeftOut(id=name, what=what, reason=str(error))
            else:
                scenes[scene.id] = scene
        if trouble and not scenes:
            others = f" (and {len(left_out) - 1} more items cannot be used)"
            raise SourceError(f"{trouble}{others if len(left_out) > 1 else ''}") from trouble
        return [*scenes.values()], [*left_out.values()]

    def _occasion(self, name: str) -> Occasion:
        return next(one for one in self.source.occasions if one.name == name)

    # What the pixels turned out to be

    def contradicted(self, records: Iterable[Mapping[str, Any]]) -> dict[str, str]:
        """The scenes whose pixels contradict their items, with what speaks against each.

        ``records`` are those of units read so far. An offset that the configuration states is
        only contradicted where it would leave nothing of the ground.
        """
        ground: dict[str, DarkGround] = defaultdict(DarkGround)
        for record in records:
            for scene, look in record["looks"].items():
                ground[scene] += DarkGround(**look["dark_ground"])
        policy, wrong = self.source.config.offset, {}
        for name, seen in ground.items():
            offset = offset_of(self.by_id[name], policy)
            reason = contradiction(seen, offset)
            if reason and (policy == "auto" or leaves_nothing(seen, offset)):
                wrong[name] = reason
        return wrong

    def drop(self, wrong: Mapping[str, str]) -> list[str]:
        """Count scenes among those left out; a line for each that was not before."""
        lines = []
        for name, reason in wrong.items():
            if name not in self.left_out:
                lines.append(f"scene {name} is dropped: {reason}")
            what = "have pixels that contradict their offset"
            self.left_out[name] = LeftOut(id=name, what=what, reason=reason)
        return lines

    def check_catalogue(self, wrong: Mapping[str, str], num_read: int) -> None:
        """Make sure that so many of the scenes read are not wrong that it is the catalogue.

        Raises:
            BuildError: they are; with the setting that mends it.
        """
        if len(wrong) <= max(_MOST_DROPPED, _MOST_DROPPED_SHARE * num_read):
            return
        name, reason = min(wrong.items())
        raise BuildError(
            f"the pixels of {len(wrong)} of {num_read} scenes contradict what "
            f"{self.source.catalogue.url} says of their offset; the first, {name}: {reason}"
        )

    def next_scene(
        self, index: int, record: Mapping[str, Any], wrong: Mapping[str, str]
    ) -> str | None:
        """The scene that an assigned unit must be read from as well; None if what it has will do.

        Raises:
            BuildError: what it has is wrong, and there is no other scene.
        """
        looks, kept = record["looks"], record["scene"]
        left = [s for s in self.candidates[index] if s not in looks and s not in wrong]
        if kept in wrong:
            if left:
                return left[0]
            raise BuildError(
                f"scene {kept}: {wrong[kept]} (no other scene of the place is left; this setting "
                "is for all scenes, other dates or another catalogue are the alternative)"
            )
        best = looks[kept]
        poor = best["num_valid_sites"] < _POOR * best["num_sites"]
        return left[0] if poor and left else None


@dataclass(frozen=True)
class _Answer:
    """What is kept of a catalogue's answer."""

    scenes: tuple[Mapping[str, Any], ...]
    left_out: tuple[LeftOut, ...]


def footprint(unit: Unit, region: Region) -> shapely.Polygon:
    """The outline, in degrees, of all that a unit reads."""
    (rows, cols), _ = next(read_windows(unit, region))
    height, width = rows.stop - rows.start, cols.stop - cols.start
    outline = Rectangle(rows.start, cols.start, height, width).outline()
    lon, lat = geography.to_lonlat(region.geobox, outline)
    return shapely.MultiPoint(list(zip(lon, lat, strict=True))).convex_hull


def items_record(scenes: Scenes, used: Iterable[str]) -> dict[str, Any]:
    """The contents of ``items.json``: the scenes ``used``, and the items left out."""
    return {
        "catalogue": scenes.source.catalogue.url,
        "collection": scenes.source.config.collection,
        "scenes": [scenes.by_id[name].to_json() for name in sorted({*used})],
        "left_out": [scenes.left_out[name].model_dump() for name in sorted(scenes.left_out)],
    }


class _Items(Record):
    """An ``items.json``."""

    catalogue: str
    collection: str
    scenes: tuple[Mapping[str, Any], ...]
    left_out: tuple[LeftOut, ...] = ()


def read_items(path: Path, bands: Sequence[str]) -> tuple[list[Scene], tuple[LeftOut, ...]]:
    """The scenes in an ``items.json``, and the items that it says were left out.

    Raises:
        SourceError: the file is missing, no such list, or a scene lacks one of ``bands``.
    """
    remedy = (
        "give the items.json of a dataset in data.sentinel2.items, or null to ask the catalogue"
    )
    record = checked(_Items, read_json(path, SourceError, remedy), str(path), SourceError, remedy)
    scenes = [Scene.from_json(scene) for scene in record.scenes]
    for scene in scenes:
        if missing := [band for band in (*bands, "SCL") if band not in scene.assets]:
            raise SourceError(
                f"scene {scene.id} in {path} has no {', '.join(missing)}: leave data.bands as they "
                "were for that dataset, or set data.sentinel2.items to null"
            )
    return scenes, record.left_out


def _within(scene: Scene, occasion: Occasion) -> bool:
    day = scene.datetime[:10]
    return any(first <= day <= last for first, last in occasion.spans)
