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

import json
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from jaxtyping import Float64, UInt8

from bharateo.chips import claim, describe
from bharateo.chips.budget import budget
from bharateo.chips.cut import Cutter, Layers, read_windows, thin_step
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
from bharateo.chips.progress import Progress, Tally, say_nothing
from bharateo.chips.scratch import Scratch
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
from bharateo.chips.workers import Bench, Job, Workers, run_all
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
    progress: Progress | None = None,
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
    wanted = claim.identity(recipe, plan, seed)
    if not (output / DATASET_FILE).exists():
        with claim.claimed(output, wanted, say) as scratch:
            told = progress or say_nothing
            under_way = _Build(recipe, plan, output, scratch, seed, told, say)
            under_way.run(wanted, workers, recipe_text)
    claim.check_same(output, claim.identity_of(read_info(output)), wanted)
    shutil.rmtree(output / BUILD_FOLDER, ignore_errors=True)
    return Dataset.open(output)


def coarse_look(recipe: Recipe, plan: PlanConfig) -> Look | None:
    """The label source's coarse view, where the plan has a use for it."""
    balanced = LAYOUTS[plan.strategy].balanced and plan.min_classes
    return recipe.landcover.overview if balanced else None


class _Build:
    """One build under way."""

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
        self.recipe, self.plan, self.seed, self.say = recipe, plan, seed, say
        self.fetched = LAYOUTS[plan.strategy].fetched
        self.output, self.scratch = output, scratch
        sensor = recipe.image.sensor
        self.units = Scratch(self.scratch, sensor.dtype, sensor.num_bands, plan.size_px)
        self.progress = progress
        self.scenes = recipe.image.scenes(self.scratch / "items")
        self.candidates: list[tuple[str, ...]] = []
        """Of every unit, the scenes it may be read from, best first."""
        self.failed: list[dict[str, str]] = []

    def run(
        self, head: Mapping[str, Any], workers: Workers | None, recipe_text: str | None
    ) -> None:
        """Make the dataset; ``head`` is its identity."""
        recipe, look = self.recipe, self._kept_look()
        occasions = recipe.image.occasion_names
        layout = lay_out(recipe.regions, self.plan, self.seed, occasions, look)
        self._announce(layout)
        units = self._with_scenes(layout.units)
        self._thin = self._overview_steps(units)
        self._cut_all(layout, units, workers)
        records = self.units.summaries(len(units))
        try:
            self._check(records)
        except (ConfigError, EmptyRegionError) as error:
            if self.failed:  # the plan may be good all the same: keep what was read
                raise BuildError(
                    f"{error}; but {len(self.failed)} reads failed, the first for this reason: "
                    f"{self.failed[0]['reason']}: run the same command again to try them anew"
                ) from error
            raise
        regions = self._regions(records)
        shards = self._write_shards(records)
        by_name = {region.name: region for region in self.recipe.regions}
        sizes = [shard["num_chips"] for shard in shards]
        whole = (self.units.record(record["unit"]) for record in records)
        write_atomically(
            self.output / CHIPS_FILE,
            lambda file: describe.write_table(file, whole, by_name, self.plan.size_px, sizes),
        )
        if self.scenes:
            used = {record["scene"] for record in records}
            write_json(self.output / ITEMS_FILE, self.scenes.to_json(used))
        description = describe.dataset(
            self.recipe, head, records, regions, shards, self.plan.size_px
        )
        if recipe_text is not None:
            write_text(self.output / RECIPE_FILE, recipe_text)
        write_json(self.output / DATASET_FILE, description | {"failed": self.failed})

    def _announce(self, layout: Layout) -> None:
        """Say what will be read, and what ready-made chips will not."""
        if layout.fetched:
            self.say(budget(self.recipe, layout).line())
        if layout.num_left_out:
            num_files = sum(len(region.squares) for region in self.recipe.regions)
            self.say(
                f"{layout.num_left_out} of {num_files} chips are left out: they lie nearer "
                "than plan.split.buffer_px to chips of another split"
            )

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

    def _overview_steps(self, units: Sequence[Unit]) -> dict[int, int]:
        """The thinning step of every region that gets an overview."""
        ground = Counter(unit.region_index for unit in units)
        largest = sorted(ground, key=lambda index: (-ground[index], index))[:MOST_OVERVIEWS]
        regions = self.recipe.regions
        return {index: thin_step(regions[index], OVERVIEW_PX) for index in largest}

    def _cut_all(self, layout: Layout, units: Sequence[Unit], workers: Workers | None) -> None:
        """Cut every unit that has not been, or whose pixels have gone, until its scene will do."""
        by_pixels = layout if isinstance(layout, ByPixels) else None
        cutter = Cutter(self.recipe.image, self.recipe.landcover, self.plan, by_pixels)
        bench, failures = Bench(cutter, self.units), dict[int, SourceError]()
        num = len(units)
        while True:
            todo = {
                index: units[index].scene
                for index in range(num)
                if index not in failures and not self.units.is_cut(index)
            }
            wrong: dict[str, str] = {}
            if not todo and self.scenes:
                todo, wrong = self._other_scenes(self.scenes, num)
            if not todo:
                todo = {index: units[index].scene for index in self._lost_units(num)}
                for index in todo:
                    self.units.forget(index)
            if not todo:
                break
            self._cut_some(bench, units, todo, wrong, workers, failures)
        regions = self.recipe.regions
        self.failed = [
            _failure(units[index], regions[units[index].region_index], error)
            for index, error in sorted(failures.items())
        ]

    def _other_scenes(
        self, scenes: Scenes, num_units: int
    ) -> tuple[dict[int, str | None], dict[str, str]]:
        """Units to read from another scene as well, and the scenes whose offset is wrong."""
        records = self.units.summaries(num_units)
        wrong = scenes.contradicted(_evidence(records))
        scenes.check(wrong, len({name for r in records for name in r["looks"]}))
        for line in scenes.drop(wrong):
            self.say(line)
        found = {r["unit"]: self._next_scene(r, wrong) for r in records}
        return {index: scene for index, scene in found.items() if scene}, wrong

    def _next_scene(self, record: Mapping[str, Any], wrong: Mapping[str, str]) -> str | None:
        """The scene that a unit must be read from as well; None if what it has will do.

        Raises:
            BuildError: what it has is wrong, and there is no other scene.
        """
        looks, kept = record["looks"], record["scene"]
        candidates = self.candidates[record["unit"]]
        left = [name for name in candidates if name not in looks and name not in wrong]
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

    def _cut_some(
        self,
        bench: Bench,
        units: Sequence[Unit],
        todo: Mapping[int, str | None],
        wrong: Mapping[str, str],
        workers: Workers | None,
        failures: dict[int, SourceError],
    ) -> None:
        """Cut some units, each from its scene; what was cut of those ``wrong`` before goes."""
        regions, first = self.recipe.regions, self.recipe.image.occasion_names[0]
        of_scene: dict[str, set[int]] = defaultdict(set)
        read_now: dict[str, list[int]] = defaultdict(list)
        seen_wrong, num_seen = dict(wrong), len(wrong)
        jobs = {}
        for index, scene in todo.items():
            unit = units[index]
            of_scene[scene or ""].add(index)
            thin_px = self._thin.get(unit.region_index) if unit.occasion == first else None
            there = self.units.is_cut(index)
            jobs[index] = Job(
                index,
                unit._replace(scene=scene),
                regions[unit.region_index].bare(),
                self.scenes.by_id[scene] if self.scenes and scene else None,
                thin_px,
                instead=there and self.units.record(index)["scene"] in wrong,
            )
        tally = Tally(len(units), len(units) - len(jobs), self.progress)
        attempts = 2 if self.fetched else 1
        for index, outcome in run_all(bench, jobs, workers, attempts):
            if not isinstance(outcome, SourceError):
                tally.add(outcome)
            elif self.units.is_cut(index) and not jobs[index].instead:
                self.units.note_failure(index, str(todo[index]))  # what was read before stays
            else:
                failures[index] = outcome
                if jobs[index].instead:
                    self.units.forget(index)
                self._check_failures(failures, units)
            tally.failed = len(failures)
            tally.say("reading")
            of_scene[todo[index] or ""].discard(index)
            read_now[todo[index] or ""].append(index)
            if self.scenes and not of_scene[todo[index] or ""]:
                num_seen += 1
                seen_wrong |= self._wrong_now(self.scenes, read_now.pop(todo[index] or ""))
                self.scenes.check(seen_wrong, num_seen)

    def _wrong_now(self, scenes: Scenes, indices: Sequence[int]) -> dict[str, str]:
        """What is wrong with a scene that was just read whole, by the units read from it.

        Raises:
            BuildError: nothing can take its place, so that there is no use in going on.
        """
        records = [self.units.record(index) for index in indices if self.units.is_cut(index)]
        wrong = scenes.contradicted(_evidence(records))
        for record in records:
            self._next_scene(record, wrong)
        return wrong

    def _check_failures(self, failures: Mapping[int, SourceError], units: Sequence[Unit]) -> None:
        allowed = int(self.plan.max_failed * len(units)) if self.fetched else 0
        if len(failures) <= allowed:
            return
        last = list(failures.values())[-1]
        if len(units) == 1 or not self.fetched:
            raise last
        raise BuildError(
            f"{len(failures)} of {len(units)} units could not be read, more than the {allowed} "
            f"that plan.max_failed {self.plan.max_failed:g} allows; the last reason: {last}. "
            "What was read is kept: run the same command again to try the others anew"
        ) from last

    def _lost_units(self, num_units: int) -> list[int]:
        """Units whose pixels are wanted for a shard that is not whole, but have gone."""
        records = self.units.summaries(num_units)
        return sorted({
            part["unit"]
            for shard, parts in enumerate(self._shard_parts(records))
            if not self._is_whole(shard, parts)
            for part in parts
            if not self.units.has_pixels(part["unit"])
        })  # fmt: skip

    def _check(self, records: Sequence[Mapping[str, Any]]) -> None:
        splits: Counter[str] = sum((Counter(r["splits"]) for r in records), Counter())
        if not splits and not LAYOUTS[self.plan.strategy].by_pixels:
            raise EmptyRegionError(
                f"no chip is left: none of {sum(r['num_pixels'] for r in records):,} pixels read "
                f"from {self.recipe.image.name} makes a square with "
                f"{self.plan.min_valid_fraction:g} of its ground valid (plan.min_valid_fraction) "
                f"and {self.plan.min_classes} classes (plan.min_classes): choose clearer dates, "
                "other ground or lower these"
            )
        check_splits(splits, self.plan)

    # Step 4: what is left in the end

    def _regions(self, records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        own: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
        for record in records:
            own[record["region"]].append(record)
        entries = []
        for index, region in enumerate(self.recipe.regions):
            if region.name in own:
                entry = describe.region(region, own[region.name])
                if index in self._thin:
                    entry["overview"] = self._write_overview(index, own[region.name])
                entries.append(entry)
        return entries

    def _write_overview(self, index: int, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The region thinned by taking every n-th pixel, so that class ids stay class ids."""
        region, step = self.recipe.regions[index], self._thin[index]
        record: dict[str, Any] = {"step_px": step}
        record |= {layer: overview_file(layer, region.name) for layer in LAYERS}
        height, width = (len(range(step // 2, size, step)) for size in region.geobox.shape)
        sensor = self.recipe.image.sensor
        whole = Layers(
            np.zeros((sensor.num_bands, height, width), sensor.dtype),
            np.full((height, width), IGNORE, np.uint8),
            np.zeros((height, width), np.bool_),
        )
        for layer, row, col, part in self.units.overviews(records):
            rows, cols = part.shape[-2:]
            getattr(whole, layer)[..., row : row + rows, col : col + cols] = part
        for layer in LAYERS:
            write_array(self.output / record[layer], getattr(whole, layer))
        return record

    def _shard_parts(self, records: Sequence[Mapping[str, Any]]) -> list[list[dict[str, int]]]:
        """Which chips make up every shard: unit, first and one past the last of its chips."""
        sensor, size_px = self.recipe.image.sensor, self.plan.size_px
        chip_bytes = sensor.num_bands * size_px**2 * np.dtype(sensor.dtype).itemsize
        most = max(SHARD_BYTES // chip_bytes, 1)
        shards: list[list[dict[str, int]]] = []
        space = 0
        for record in records:
            first = 0
            while first < record["num_chips"]:
                if space == 0:
                    shards.append([])
                    space = most
                last = min(first + space, record["num_chips"])
                shards[-1].append({"unit": record["unit"], "first": first, "last": last})
                space -= last - first
                first = last
        return shards

    def _shard_record(self, shard: int) -> Path:
        return self.scratch / f"shard-{shard:05d}.json"

    def _is_whole(self, shard: int, parts: Sequence[Mapping[str, int]]) -> bool:
        """Whether a shard was made of these parts and its files are as long as they were."""
        if not self._shard_record(shard).exists():
            return False
        record = _json(self._shard_record(shard))
        files = [(self.output / record[layer]["file"], record[layer]["bytes"]) for layer in LAYERS]
        return record["parts"] == parts and all(
            file.exists() and file.stat().st_size == size for file, size in files
        )

    def _write_shards(self, records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The shards' entries in ``dataset.json``; a unit's own file goes when its chips are in."""
        total, done, shards = sum(record["num_chips"] for record in records), 0, []
        whole = {record["unit"]: record["num_chips"] for record in records}
        for shard, parts in enumerate(self._shard_parts(records)):
            if not self._is_whole(shard, parts):
                self._write_shard(shard, parts, whole)
            entry = _json(self._shard_record(shard))
            shards.append({key: value for key, value in entry.items() if key != "parts"})
            for part in parts:
                if part["last"] == whole[part["unit"]]:
                    self.units.drop_pixels(part["unit"])
            done += entry["num_chips"]
            self.progress(done, total, "writing chips")
        return shards

    def _write_shard(
        self, shard: int, parts: Sequence[Mapping[str, int]], num_of_unit: Mapping[int, int]
    ) -> None:
        files = {}
        for layer in LAYERS:
            chips = [
                self.units.pixels(part["unit"], layer, num_of_unit[part["unit"]])[
                    part["first"] : part["last"]
                ]
                for part in parts
            ]
            files[layer] = write_array(
                self.output / shard_file(layer, shard), np.concatenate(chips)
            )
        num_chips = sum(part["last"] - part["first"] for part in parts)
        write_json(self._shard_record(shard), {"num_chips": num_chips, **files, "parts": parts})


def _evidence(records: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for record in records:
        for scene, look in record["looks"].items():
            yield scene, look["evidence"]


def _failure(unit: Unit, region: Any, error: SourceError) -> dict[str, str]:
    sites = unit.sites or ()
    return {
        "region": region.name,
        "block": sites[0].block if sites else "",
        "occasion": unit.occasion or "",
        "scene": unit.scene or "",
        "reason": " ".join(str(error).split()),
    }


def _json(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))
