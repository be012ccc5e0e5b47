"""From a recipe and a plan to a dataset folder; killed at any moment, a rerun goes on.

What is done already is kept in ``.build/`` inside the output folder, in a folder of its plan's own:

1. sites are laid out, from the plan and a look at the labels' overviews, which is kept;
2. every unit's scene is chosen, from lists that are kept (sources with scenes);
3. units are read and cut, by this process or many, each into a file with a record beside it;
4. overviews and shards are put together from those files, which then go.

``dataset.json`` comes last, and then ``.build/`` goes. Nothing depends on the order in which units
end, so one process, many and a cluster give the same bytes.
"""

from __future__ import annotations

import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from jaxtyping import Float64, UInt8

from bharateo.artefacts import Record
from bharateo.chips import describe, lock
from bharateo.chips.budget import budget
from bharateo.chips.cut import Cutter, Job, read_windows
from bharateo.chips.description import StoredFile
from bharateo.chips.layouts import (
    LAYOUTS,
    ByPixels,
    Layout,
    Look,
    Unit,
    check,
    check_splits,
    lay_out,
)
from bharateo.chips.scratch import Layers, Scratch, UnitSummary
from bharateo.chips.store import (
    BUILD_FOLDER,
    CHIPS_FILE,
    DATASET_FILE,
    ITEMS_FILE,
    LAYERS,
    RECIPE_FILE,
    Dataset,
    overview_file,
    read_info,
    shard_file,
    write_array,
)
from bharateo.chips.workers import Progress, Tally, Workers, run_all
from bharateo.config import PlanConfig
from bharateo.errors import BuildError, ConfigError, EmptyRegionError, SourceError
from bharateo.files import write_atomically, write_json, write_text
from bharateo.geography import Rectangle, to_lonlat
from bharateo.landcover import IGNORE
from bharateo.sources import Place, Recipe, Scenes

SHARD_BYTES = 64_000_000
"""Most bytes of image in a shard."""

OVERVIEW_PX = 768
"""Longest side of an overview."""

_POOR = 0.1
"""Where fewer of a unit's squares than this share are valid enough, another scene may do better."""

MOST_OVERVIEWS = 12
"""Regions that get an overview, those with the most ground first."""


def build(
    recipe: Recipe,
    plan: PlanConfig,
    output: Path,
    seed: int,
    progress: Progress = lambda done, total, message: None,
    workers: Workers | None = None,
    say: Callable[[str], None] = lambda _: None,
    recipe_text: str | None = None,
) -> Dataset:
    """The dataset of a recipe and a plan, in the folder ``output``.

    A folder that holds it already is opened and nothing is read; an unfinished build of the same
    plan goes on where it stopped, and ends in the same bytes; one of another plan is set aside.
    ``workers`` says who reads, by default this process alone; ``say`` is told in a line what will
    be read, before it is. ``recipe_text``, what the build was asked for, is kept in the folder.

    Raises:
        ConfigError: a value of the plan is out of range, or a split ends with no chip.
        EmptyRegionError: a region holds no valid or no labelled pixel, or nothing at all is left.
        SourceError: pixels could not be had.
        BuildError: more units failed than the plan allows.
        DatasetError: the folder holds something else, or another build is writing there.
        StorageError: the disk is full; a rerun goes on.
    """
    output = Path(output)
    check(recipe.regions, plan, seed)
    wanted = lock.identity(recipe, plan, seed)
    if not (output / DATASET_FILE).exists():
        with lock.locked(output, wanted, say) as scratch:
            under_way = _Build(recipe, plan, output, scratch, seed, progress, say)
            under_way.run(wanted, workers, recipe_text)
    lock.check_same(output, lock.identity_of(read_info(output)), wanted)
    shutil.rmtree(output / BUILD_FOLDER, ignore_errors=True)
    return Dataset.open(output)


def coarse_look(recipe: Recipe, plan: PlanConfig) -> Look | None:
    """The label source's coarse view, where the plan has a use for it."""
    balanced = LAYOUTS[plan.strategy].balanced and plan.min_classes
    return recipe.landcover.overview if balanced else None


class _ShardPart(Record):
    """Some chips of a unit, from the first to before the last, as part of a shard."""

    unit: int
    first: int
    last: int


class _WrittenShard(Record):
    """A shard that was written, and of what; beside the units, so that a rerun knows."""

    num_chips: int
    image: StoredFile
    landcover: StoredFile
    valid: StoredFile
    parts: list[_ShardPart]


class _Build:
    """One build under way; see the top of this file for its steps."""

    def __init__(
        self,
        recipe: Recipe,
        plan: PlanConfig,
        output: Path,
        scratch: Path,
        seed: int,
        progress: Progress,
        say: Callable[[str], None],
    ) -> None:
        self.recipe, self.plan, self.seed = recipe, plan, seed
        self.output, self.scratch = output, scratch
        self.progress, self.say = progress, say
        sensor = recipe.image.sensor
        self.kept = Scratch(scratch, sensor.dtype, sensor.num_bands, plan.size_px)
        self.scenes = recipe.image.scenes(scratch / "items")
        self.candidates: list[tuple[str, ...]] = []
        """Of every unit, the scenes it may be read from, best first."""
        self.failures: dict[int, SourceError] = {}
        """Of units that could not be read, the last reason."""
        self.thin_px: dict[int, int] = {}
        """The thinning step of every region that gets an overview."""

    def run(
        self, identity: Mapping[str, Any], workers: Workers | None, recipe_text: str | None
    ) -> None:
        """Make the dataset of this identity."""
        recipe, plan = self.recipe, self.plan
        layout = lay_out(
            recipe.regions, plan, self.seed, recipe.image.occasion_names, self._kept_look()
        )
        if layout.fetched:
            self.say(budget(recipe, layout).line())
        if layout.num_left_out:
            num_files = sum(len(region.squares) for region in recipe.regions)
            self.say(
                f"{layout.num_left_out} of {num_files} chips are left out: they lie nearer "
                "than plan.split.buffer_px to chips of another split"
            )
        units = self._with_scenes(layout.units)
        ground = Counter(unit.region_index for unit in units)
        for index in sorted(ground, key=lambda index: (-ground[index], index))[:MOST_OVERVIEWS]:
            self.thin_px[index] = -(-max(recipe.regions[index].geobox.shape) // OVERVIEW_PX)
        self._cut_all(layout, units, workers)
        failed = [self._failed(units[index], why) for index, why in sorted(self.failures.items())]
        kept = self.kept.summaries(len(units))
        try:
            self._check(layout, kept)
        except (ConfigError, EmptyRegionError) as error:
            if failed:  # the plan may be good all the same: keep what was read
                raise BuildError(
                    f"{error}; but {len(failed)} reads failed, the first for this reason: "
                    f"{failed[0]['reason']}: run the same command again to try them anew"
                ) from error
            raise
        regions = self._regions(kept)
        shards = self._write_shards(kept)
        by_name = {region.name: region for region in recipe.regions}
        sizes = [shard["num_chips"] for shard in shards]
        records = (self.kept.record(each.unit) for each in kept)
        write_atomically(
            self.output / CHIPS_FILE,
            lambda file: describe.write_table(file, records, by_name, plan.size_px, sizes),
        )
        if self.scenes:
            used = {str(each.scene) for each in kept}
            write_json(self.output / ITEMS_FILE, self.scenes.to_json(used))
        if recipe_text is not None:
            write_text(self.output / RECIPE_FILE, recipe_text)
        description = describe.dataset(recipe, identity, kept, regions, shards, plan.size_px)
        write_json(self.output / DATASET_FILE, description | {"failed": failed})

    # Step 1: a look at the labels

    def _kept_look(self) -> Look | None:
        look = coarse_look(self.recipe, self.plan)
        if look is None:
            return None
        file = self.scratch / "look.npy"

        def kept(
            lon: Float64[np.ndarray, " point"], lat: Float64[np.ndarray, " point"]
        ) -> UInt8[np.ndarray, " point"] | None:
            if file.exists():
                classes: UInt8[np.ndarray, " point"] = np.load(file)
                return classes
            self.progress(0, 1, "looking at the labels' overviews")
            seen = look(lon, lat)
            if seen is not None:
                write_array(file, seen)
            return seen

        return kept

    # Step 2: scenes

    def _with_scenes(self, units: Sequence[Unit]) -> list[Unit]:
        """The units with the scene each is read from first; those without any are left out."""
        if not self.scenes:
            return list(units)
        places = []
        for unit in units:
            region = self.recipe.regions[unit.region_index]
            (rows, cols), _ = next(read_windows(unit, region))
            height, width = rows.stop - rows.start, cols.stop - cols.start
            outline = Rectangle(rows.start, cols.start, height, width).outline()
            lon, lat = to_lonlat(region.geobox, outline)
            hull = shapely.MultiPoint(list(zip(lon, lat, strict=True))).convex_hull
            places.append(Place(region, str(unit.occasion), hull))
        found = self.scenes.find(
            places, lambda done, all_: self.progress(done, all_, "finding scenes")
        )
        for line in self.scenes.complaints():
            self.say(line)
        self.candidates = [names for names in found if names]
        if num_without := len(units) - len(self.candidates):
            self.say(f"no scene covers {num_without} of {len(units)} reads: left out")
        return [
            unit._replace(scene=names[0]) for unit, names in zip(units, found, strict=True) if names
        ]

    # Step 3: units

    def _cut_all(self, layout: Layout, units: Sequence[Unit], workers: Workers | None) -> None:
        """Cut every unit that has not been, or whose pixels have gone, until its scene will do."""
        cutter = Cutter(
            self.recipe.image,
            self.recipe.landcover,
            self.plan,
            self.kept,
            layout if isinstance(layout, ByPixels) else None,
        )
        everything = range(len(units))
        while True:
            wrong: dict[str, str] = {}
            todo = {
                index: units[index].scene
                for index in everything
                if index not in self.failures and not self.kept.is_cut(index)
            }
            if not todo and self.scenes:
                todo, wrong = self._other_scenes(self.scenes, self.kept.summaries(len(units)))
            if not todo:
                kept = self.kept.summaries(len(units))
                todo = {index: units[index].scene for index in self._lost_units(kept)}
                for index in todo:
                    self.kept.forget(index)
            if not todo:
                return
            self._cut_some(layout, cutter, units, todo, wrong, workers)

    def _other_scenes(
        self, scenes: Scenes, kept: Sequence[UnitSummary]
    ) -> tuple[dict[int, str | None], dict[str, str]]:
        """Units to read from another scene as well, and the scenes whose offset is wrong."""
        wrong = scenes.contradicted(_evidence(kept))
        scenes.check(wrong, len({name for each in kept for name in each.looks}))
        for line in scenes.drop(wrong):
            self.say(line)
        found = {each.unit: self._next_scene(each, wrong) for each in kept}
        return {index: scene for index, scene in found.items() if scene}, wrong

    def _next_scene(self, kept: UnitSummary, wrong: Mapping[str, str]) -> str | None:
        """The scene that a unit must be read from as well; None if what it has will do.

        Raises:
            BuildError: what it has is wrong, and there is no other scene.
        """
        candidates, scene = self.candidates[kept.unit], str(kept.scene)
        left = [name for name in candidates if name not in kept.looks and name not in wrong]
        if scene in wrong:
            if left:
                return left[0]
            raise BuildError(
                f"scene {scene}: {wrong[scene]} (no other scene of the place is left; this setting "
                "is for all scenes, other dates or another catalogue are the alternative)"
            )
        best = kept.looks[scene]
        poor = best.num_valid_sites < _POOR * best.num_sites
        return left[0] if poor and left else None

    def _cut_some(
        self,
        layout: Layout,
        cutter: Cutter,
        units: Sequence[Unit],
        todo: Mapping[int, str | None],
        wrong: Mapping[str, str],
        workers: Workers | None,
    ) -> None:
        """Cut some units, each from its scene; what was cut of those ``wrong`` before goes."""
        first = self.recipe.image.occasion_names[0]
        of_scene: dict[str, set[int]] = defaultdict(set)
        read_now: dict[str, list[int]] = defaultdict(list)
        seen_wrong, num_seen = dict(wrong), len(wrong)
        jobs = {}
        for index, scene in todo.items():
            unit = units[index]
            of_scene[scene or ""].add(index)
            jobs[index] = Job(
                index,
                unit._replace(scene=scene),
                self.recipe.regions[unit.region_index].bare(),
                self.scenes.by_id[scene] if self.scenes and scene else None,
                self.thin_px.get(unit.region_index) if unit.occasion == first else None,
                instead=self.kept.is_cut(index) and self.kept.summary(index).scene in wrong,
            )
        tally = Tally(len(units), len(units) - len(jobs), self.progress)
        for index, outcome in run_all(cutter, jobs, workers, 2 if layout.fetched else 1):
            scene = todo[index] or ""
            if not isinstance(outcome, SourceError):
                tally.add(outcome)
            elif self.kept.is_cut(index) and not jobs[index].instead:
                self.kept.note_failure(index, scene)  # what was read before stays
            else:
                self.failures[index] = outcome
                if jobs[index].instead:
                    self.kept.forget(index)
                self._check_failures(layout, len(units), outcome)
            tally.failed = len(self.failures)
            tally.say("reading")
            of_scene[scene].discard(index)
            read_now[scene].append(index)
            # A scene that was read whole may turn out to be wrong, and nothing to take its place:
            # then there is no use in going on.
            if self.scenes and not of_scene[scene]:
                num_seen += 1
                kept = [self.kept.summary(i) for i in read_now.pop(scene) if self.kept.is_cut(i)]
                wrong_now = self.scenes.contradicted(_evidence(kept))
                for each in kept:
                    self._next_scene(each, wrong_now)
                seen_wrong |= wrong_now
                self.scenes.check(seen_wrong, num_seen)

    def _check_failures(self, layout: Layout, num_units: int, last: SourceError) -> None:
        """Go on where some failures are allowed, and these are not more."""
        allowed = int(self.plan.max_failed * num_units) if layout.fetched else 0
        if len(self.failures) <= allowed:
            return
        if num_units == 1 or not layout.fetched:
            raise last
        raise BuildError(
            f"{len(self.failures)} of {num_units} units could not be read, more than the "
            f"{allowed} that plan.max_failed {self.plan.max_failed:g} allows; the last reason: "
            f"{last}. What was read is kept: run the same command again to try the others anew"
        ) from last

    def _failed(self, unit: Unit, error: SourceError) -> dict[str, str]:
        """What ``dataset.json`` says of a unit that is left out."""
        return {
            "region": self.recipe.regions[unit.region_index].name,
            "block": unit.sites[0].block if unit.sites else "",
            "occasion": unit.occasion or "",
            "scene": unit.scene or "",
            "reason": " ".join(str(error).split()),
        }

    def _lost_units(self, kept: Sequence[UnitSummary]) -> list[int]:
        """Units whose pixels are wanted for a shard that is not whole, but have gone."""
        return sorted({
            part.unit
            for number, parts in enumerate(self._shard_parts(kept))
            if self._whole_shard(number, parts) is None
            for part in parts
            if not self.kept.has_pixels(part.unit)
        })  # fmt: skip

    def _check(self, layout: Layout, kept: Sequence[UnitSummary]) -> None:
        splits = Counter[str]()
        for each in kept:
            splits.update(each.splits)
        if not splits and not layout.by_pixels:
            raise EmptyRegionError(
                f"no chip is left: none of {sum(each.num_pixels for each in kept):,} pixels read "
                f"from {self.recipe.image.name} makes a square with "
                f"{self.plan.min_valid_fraction:g} of its ground valid (plan.min_valid_fraction) "
                f"and {self.plan.min_classes} classes (plan.min_classes): choose clearer dates, "
                "other ground or lower these"
            )
        check_splits(splits, self.plan)

    # Step 4: what is left in the end

    def _regions(self, kept: Sequence[UnitSummary]) -> list[dict[str, Any]]:
        """The entries in ``dataset.json`` of the regions that something was read of."""
        own: dict[str, list[UnitSummary]] = defaultdict(list)
        for each in kept:
            own[each.region].append(each)
        entries = []
        for index, region in enumerate(self.recipe.regions):
            if region.name in own:
                entry = describe.region(region, own[region.name])
                if index in self.thin_px:
                    entry["overview"] = self._write_overview(index, own[region.name])
                entries.append(entry)
        return entries

    def _write_overview(self, index: int, kept: Sequence[UnitSummary]) -> dict[str, Any]:
        """The region thinned by taking every n-th pixel, so that class ids stay class ids."""
        region, step = self.recipe.regions[index], self.thin_px[index]
        height, width = (len(range(step // 2, size, step)) for size in region.geobox.shape)
        sensor = self.recipe.image.sensor
        whole = Layers(
            np.zeros((sensor.num_bands, height, width), sensor.dtype),
            np.full((height, width), IGNORE, np.uint8),
            np.zeros((height, width), np.bool_),
        )
        for layer, row, col, part in self.kept.overviews(kept):
            rows, cols = part.shape[-2:]
            getattr(whole, layer)[..., row : row + rows, col : col + cols] = part
        files = {layer: overview_file(layer, region.name) for layer in LAYERS}
        for layer, file in files.items():
            write_array(self.output / file, getattr(whole, layer))
        return {"step_px": step, **files}

    def _shard_parts(self, kept: Sequence[UnitSummary]) -> list[list[_ShardPart]]:
        """Which chips make up every shard, in the order of the units."""
        sensor, size_px = self.recipe.image.sensor, self.plan.size_px
        chip_bytes = sensor.num_bands * size_px**2 * np.dtype(sensor.dtype).itemsize
        most = max(SHARD_BYTES // chip_bytes, 1)
        shards: list[list[_ShardPart]] = []
        space = 0
        for each in kept:
            first = 0
            while first < each.num_chips:
                if space == 0:
                    shards.append([])
                    space = most
                last = min(first + space, each.num_chips)
                shards[-1].append(_ShardPart(unit=each.unit, first=first, last=last))
                space -= last - first
                first = last
        return shards

    def _shard_record(self, number: int) -> Path:
        return self.scratch / f"shard-{number:05d}.json"

    def _whole_shard(self, number: int, parts: Sequence[_ShardPart]) -> _WrittenShard | None:
        """A shard that was made of these parts, if its files are as long as they were."""
        if not self._shard_record(number).exists():
            return None
        shard = _WrittenShard.model_validate_json(self._shard_record(number).read_bytes())
        files = [(self.output / each.file, each.bytes) for each in
                 (shard.image, shard.landcover, shard.valid)]  # fmt: skip
        there = all(file.exists() and file.stat().st_size == size for file, size in files)
        return shard if there and shard.parts == parts else None

    def _write_shards(self, kept: Sequence[UnitSummary]) -> list[dict[str, Any]]:
        """The shards' entries in ``dataset.json``; a unit's own file goes when its chips are in."""
        num_of = {each.unit: each.num_chips for each in kept}
        done, entries = 0, []
        for number, parts in enumerate(self._shard_parts(kept)):
            shard = self._whole_shard(number, parts)
            if shard is None:
                files = {}
                for layer in LAYERS:
                    chips = []
                    for part in parts:
                        every = self.kept.pixels(part.unit, layer, num_of[part.unit])
                        chips.append(every[part.first : part.last])
                    path = self.output / shard_file(layer, number)
                    files[layer] = write_array(path, np.concatenate(chips))
                num_chips = sum(part.last - part.first for part in parts)
                shard = _WrittenShard(num_chips=num_chips, parts=list(parts), **files)
                write_json(self._shard_record(number), shard.model_dump())
            entries.append(shard.model_dump(exclude={"parts"}))
            for part in parts:
                if part.last == num_of[part.unit]:
                    self.kept.drop_pixels(part.unit)
            done += shard.num_chips
            self.progress(done, sum(num_of.values()), "writing chips")
        return entries


def _evidence(kept: Iterable[UnitSummary]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every scene that units were cut from, with what its pixels said."""
    for each in kept:
        for scene, look in each.looks.items():
            yield scene, look.evidence
