"""The scenes of a STAC catalogue for a build: asked for once, kept, and chosen by cover and cloud,
then by what the pixels turn out to be.

A catalogue promises; pixels decide. A scene whose pixels contradict the offset that its item tells
of is dropped. All that is known lies in the build's own folder, so a build that goes on decides
alike.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from odc.geo.geobox import GeoBox

from bharateo import geography
from bharateo.artefacts import Record, checked, read_json
from bharateo.errors import BuildError, EmptyRegionError, ItemError, SourceError
from bharateo.files import write_json
from bharateo.regions import Roi, swapped_option
from bharateo.sources import Place
from bharateo.sources.catalogue import Client
from bharateo.sources.sentinel2 import DarkGround, contradiction, leaves_nothing, offset_of
from bharateo.sources.stac import Occasion, Scene, ranked, scene_of

if TYPE_CHECKING:
    from bharateo.sources.sentinel2 import Sentinel2

_POLAR = 60.0
"""Degrees of latitude: beyond, a place that no scene covers may be a nearer one with its longitude
first."""

_QUESTIONS_AT_ONCE = 4

_MOST_SCENES = 4
"""Scenes that a place of a build may be read from, one after the other."""

_MOST_DROPPED = 3
_MOST_DROPPED_SHARE = 0.1
"""Scenes dropped for their offset, and share of those read, that a catalogue may have."""


class LeftOut(Record):
    """An item that is not used: ``what`` is common to several, ``reason`` says it all."""

    id: str
    what: str
    reason: str


class _KeptAnswer(Record):
    """What is kept of a catalogue's answer for one region and occasion."""

    scenes: tuple[Scene, ...]
    left_out: tuple[LeftOut, ...] = ()


class _Items(_KeptAnswer):
    """An ``items.json``."""

    catalogue: str
    collection: str


class CatalogueScenes:
    """The scenes of a build's places, from the catalogue or a kept list: ``sources.Scenes``.

    ``folder`` keeps the answers, so that a build that goes on takes the same scenes. A place has
    at most ``most_scenes``; all there are with None.
    """

    def __init__(
        self, source: Sentinel2, folder: Path, most_scenes: int | None = _MOST_SCENES
    ) -> None:
        self.source, self.folder, self.most_scenes = source, folder, most_scenes
        self.by_id: dict[str, Scene] = {}
        self.left_out: dict[str, LeftOut] = {}

    def find(
        self, places: Sequence[Place], progress: Callable[[int, int], None]
    ) -> list[tuple[str, ...]]:
        """Of every place the scenes it may be read from, best first.

        Raises:
            UnreachableError: the catalogue did not answer.
            SourceError: no item found can be used.
            EmptyRegionError: no place has a scene.
        """
        config = self.source.config
        occasions = {each.name: each for each in self.source.occasions}
        asked = list(dict.fromkeys((place.region.name, place.occasion) for place in places))
        found: dict[tuple[str, str], list[Scene]] = {}
        if config.items:
            listed = self._read_items(Path(config.items))
            for key in asked:
                found[key] = [
                    scene
                    for scene in listed
                    if any(a <= scene.datetime[:10] <= b for a, b in occasions[key[1]].spans)
                ]
        else:
            client, regions = self.source.client(), {p.region.name: p.region for p in places}
            with ThreadPoolExecutor(_QUESTIONS_AT_ONCE) as threads, client.interruptible():
                answers = threads.map(
                    lambda key: self._kept_or_asked(
                        client, key[0], regions[key[0]].geobox, occasions[key[1]]
                    ),
                    asked,
                )
                for done, (key, answer) in enumerate(zip(asked, answers, strict=True), 1):
                    self.left_out |= {each.id: each for each in answer.left_out}
                    found[key] = [*answer.scenes]
                    progress(done, len(asked))
        self.by_id = {scene.id: scene for scenes in found.values() for scene in scenes}
        candidates = []
        for region, occasion, outline in places:
            crs = region.geobox.crs
            best = ranked(found[region.name, occasion], outline, crs.epsg if crs else None)
            candidates.append(tuple(scene.id for scene in best[: self.most_scenes]))
        if not any(candidates):
            names = dict.fromkeys(place.region.name for place in places)
            geobox = places[0].region.geobox
            west, south, east, north = geography.bounds_lonlat(geobox)
            lon, lat = round((west + east) / 2, 4), round((south + north) / 2, 4)
            swapped = ""
            if len(names) == 1 and abs(lat) > _POLAR > abs(lon):
                roi = Roi(places[0].region.name, lon, lat, max(geobox.shape))
                swapped = f"; or is it LAT,LON instead of LON,LAT? Then give {swapped_option(roi)}"
            raise EmptyRegionError(
                f"no scene in {self.source.catalogue.url} covers the area "
                f"({', '.join([*names][:6])}) between "
                f"{config.dates} with at most {config.max_cloud:g} % "
                "cloud: check the place (LON,LAT), widen data.sentinel2.dates or raise "
                f"data.sentinel2.max_cloud{swapped}"
            )
        return candidates

    def complaints(self) -> list[str]:
        """What is wrong with the items left out, a line for every kind."""
        kinds = Counter(each.what for each in self.left_out.values())
        first = {each.what: each.id for each in reversed(self.left_out.values())}
        return [f"{num} items {what}, e.g. {first[what]}: left out" for what, num in kinds.items()]

    def _kept_or_asked(
        self, client: Client, region: str, geobox: GeoBox, occasion: Occasion
    ) -> _KeptAnswer:
        """The scenes of a region on an occasion, and the items that are none."""
        file = self.folder / f"{region}-{occasion.name}.json"
        if not file.exists():
            bounds, cloud = geography.bounds_lonlat(geobox), self.source.config.max_cloud
            spans = occasion.spans
            items = [i for first, last in spans for i in client.items(bounds, first, last, cloud)]
            scenes, left_out = self.usable(items)
            write_json(file, _KeptAnswer(scenes=scenes, left_out=left_out).model_dump())
        remedy = f"delete {self.folder} and run the same build again"
        return checked(
            _KeptAnswer, read_json(file, SourceError, remedy), str(file), SourceError, remedy
        )

    def _read_items(self, path: Path) -> tuple[Scene, ...]:
        """The scenes in an ``items.json``; those that it says were left out stay left out.

        Raises:
            SourceError: the file is missing, no such list, or a scene lacks one of the bands.
        """
        remedy = (
            "give the items.json of a dataset in data.sentinel2.items, or null to ask the catalogue"
        )
        record = checked(
            _Items, read_json(path, SourceError, remedy), str(path), SourceError, remedy
        )
        self.left_out = {each.id: each for each in record.left_out}
        for scene in record.scenes:
            wanted = (*self.source.sensor.band_names, "SCL")
            if missing := [band for band in wanted if band not in scene.assets]:
                raise SourceError(
                    f"scene {scene.id} in {path} has no {', '.join(missing)}: leave data.bands as "
                    "they were for that dataset, or set data.sentinel2.items to null"
                )
        return record.scenes

    def usable(self, items: Iterable[Any]) -> tuple[tuple[Scene, ...], tuple[LeftOut, ...]]:
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
        return tuple(scenes.values()), tuple(left_out.values())

    # What the pixels turned out to be

    def contradicted(self, evidence: Iterable[tuple[str, Mapping[str, Any]]]) -> dict[str, str]:
        """The scenes whose pixels contradict their items, with what speaks against each.

        An offset that the configuration states is only contradicted where it would leave nothing
        of the ground.
        """
        ground: dict[str, DarkGround] = defaultdict(DarkGround)
        for scene, counts in evidence:
            ground[scene] += DarkGround(**counts)
        policy, wrong = self.source.config.offset, {}
        for name, seen in ground.items():
            offset = offset_of(self.by_id[name], policy)
            reason = contradiction(seen, offset)
            if reason and (policy == "auto" or leaves_nothing(seen, offset)):
                wrong[name] = reason
        return wrong

    def drop(self, wrong: Mapping[str, str]) -> list[str]:
        """Count scenes among those left out; a line for each that was not before."""
        new = [name for name in wrong if name not in self.left_out]
        what = "have pixels that contradict their offset"
        for name, reason in wrong.items():
            self.left_out[name] = LeftOut(id=name, what=what, reason=reason)
        return [f"scene {name} is dropped: {wrong[name]}" for name in new]

    def check(self, wrong: Mapping[str, str], num_read: int) -> None:
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

    def to_json(self, used: Iterable[str]) -> dict[str, Any]:
        """The contents of ``items.json``: the scenes ``used``, and the items left out."""
        return {
            "catalogue": self.source.catalogue.url,
            "collection": self.source.config.collection,
            "scenes": [self.by_id[name].model_dump() for name in sorted({*used})],
            "left_out": [self.left_out[name].model_dump() for name in sorted(self.left_out)],
        }
