"""A composite written: window by window from the scenes of a catalogue, and what it says of itself.

A window's days are read one after the other into files beside the output and reduced row by row, so
memory grows neither with the area nor with the days. A finished window is kept; what to do next
follows from what is on disk alone, so a program killed at any moment ends in the same bytes.
"""

from __future__ import annotations

import datetime
import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from jaxtyping import Bool, UInt16
from pydantic import Field

from bharateo.accounting import Row
from bharateo.artefacts import Number, Record, checked, read_json
from bharateo.composite.ground import Ground, Window
from bharateo.composite.reduce import OBSERVATION_BANDS, Method, reduced
from bharateo.errors import (
    BuildError,
    ConfigError,
    CorruptRasterError,
    EmptyRegionError,
    StorageError,
)
from bharateo.files import clear_scratch, read_bytes, scratch, write_atomically, write_json
from bharateo.outputs import Own, json_of, record_in
from bharateo.pixels.cog import Bands, cog_writer
from bharateo.pixels.http import Traffic
from bharateo.pixels.product import Plan, holding, item_path, write_item
from bharateo.progress import Progress
from bharateo.regions import Region
from bharateo.sources import Place
from bharateo.sources.scenes import CatalogueScenes, LeftOut
from bharateo.sources.sentinel2 import VALID_SCL, DarkGround, Sentinel2, offset_of
from bharateo.sources.stac import Scene
from bharateo.version import __version__

_STACK_BYTES = 64 << 20
"""Of observations that are reduced at once."""

_MOST_UNREADABLE = 3
_MOST_UNREADABLE_SHARE = 0.1
"""Scenes with a missing or damaged file, and share of those asked for, that are done without."""

_EPOCH = datetime.date(1970, 1, 1)


# What is asked for, and what a composite says of itself


@dataclass(frozen=True)
class Request:
    """What composite to make: of which ground, from which source (bands, catalogue, dates).

    ``margin_px`` around clouds is cloud too; a window takes at most ``max_dates`` days.
    """

    ground: Ground
    source: Sentinel2
    method: Method = "median"
    margin_px: int = 10
    max_dates: int = 12

    def __post_init__(self) -> None:
        if self.margin_px < 0 or self.max_dates < 1:
            raise ConfigError(
                f"--margin {self.margin_px} --max-dates {self.max_dates}: a margin is 0 pixels or "
                "more, and a composite has at least 1 date"
            )
        if len(self.source.occasions) != 1:
            raise ConfigError("a composite is of one season: run it once for each")

    @cached_property
    def plan(self) -> CompositePlan:
        """What decides every byte of it, but for the catalogue's answers."""
        config, geobox = self.source.config, self.ground.geobox
        outline = shapely.to_wkb(self.ground.outline)
        return CompositePlan(
            schema_version=1,
            product="composite",
            code_version=__version__,
            area=self.ground.area.name,
            outline_sha256=hashlib.sha256(outline).hexdigest(),
            crs=str(geobox.crs),
            shape=list(geobox.shape),
            transform=list(geobox.affine)[:6],
            window_px=self.ground.window_px,
            bands=list(self.source.sensor.band_names),
            catalogue=self.source.catalogue.url,
            collection=config.collection,
            assets=dict(self.source.catalogue.assets),
            items_sha256=_sha256(Path(config.items)) if config.items else None,
            days=[list(span) for span in self.source.occasions[0].spans],
            max_cloud=config.max_cloud,
            offset=config.offset,
            method=self.method,
            margin_px=self.margin_px,
            max_dates=self.max_dates,
        ).sealed()


def _sha256(path: Path) -> str:
    try:
        return hashlib.sha256(read_bytes(path)).hexdigest()
    except OSError as error:
        raise ConfigError(
            f"data.sentinel2.items {path} cannot be read ({error.strerror}): give the items.json "
            "of a dataset, or leave it out"
        ) from error


class CompositePlan(Plan):
    """What decides a composite's contents, but for the catalogue's answers."""

    area: str
    outline_sha256: str
    crs: str
    shape: list[int]
    transform: list[Number]
    window_px: int
    bands: list[str]
    catalogue: str
    collection: str
    assets: dict[str, str]
    items_sha256: str | None
    days: list[list[str]]
    """First and last day of every span."""
    max_cloud: Number
    offset: str
    method: str
    margin_px: int
    max_dates: int
    fingerprint: str = ""

    @property
    def when(self) -> dict[str, Any]:
        """The days asked for, from the first to the last."""
        return {
            "datetime": None,
            "start_datetime": f"{self.days[0][0]}T00:00:00Z",
            "end_datetime": f"{self.days[-1][1]}T23:59:59Z",
        }


class UsedScene(Record):
    """A scene with pixels in a composite; ``pixels`` say of its offset ``agree`` or ``undecided``.

    ``offset_dn`` was added to its stored numbers, because of ``evidence``.
    """

    id: str
    datetime: str
    cloud_cover: Number
    baseline: str | None
    offset_dn: int
    evidence: str
    pixels: str
    windows: int


class CompositeRecord(CompositePlan):
    """A composite's ``NAME.json``: its plan, the scenes it is made of, and those left out.

    ``pixels`` lie in the area; ``unseen`` of them no day shows clear.
    """

    attribution: list[str]
    scenes: list[UsedScene]
    left_out: list[LeftOut]
    pixels: int
    unseen: int
    mean_observations: Number

    def lines(self) -> Iterator[str]:
        """For a terminal."""
        days = sorted({scene.datetime[:10] for scene in self.scenes})
        yield (
            f"{len(self.scenes)} scenes of {len(days)} days from {days[0]} to {days[-1]}; "
            f"{self.mean_observations:.1f} clear days a pixel"
        )
        if self.unseen:
            yield (
                f"warning: {100 * self.unseen / self.pixels:.2f} % of the area is nodata: no day "
                "shows it clear; give more days in --dates, a higher --max-cloud or --max-dates"
            )


class _Made(Record):
    """What is kept of a finished window.

    ``days`` are those used, each with the scenes that gave pixels; ``evidence`` is the dark ground
    of every scene read, ``unreadable`` has the scenes that could not be. ``num_clear`` are clear
    days, summed over the pixels.
    """

    days: dict[str, list[str]]
    evidence: dict[str, dict[str, int]]
    unreadable: dict[str, str] = Field(default_factory=dict)
    num_pixels: int
    num_unseen: int
    num_clear: int

    @property
    def scenes(self) -> set[str]:
        return {name for names in self.days.values() for name in names}


def products(output: Path) -> dict[str, Path]:
    """The files of a composite by what they hold; the record is written last."""
    return {
        "composite": output,
        "observations": output.with_name(f"{output.stem}-observations.tif"),
        "item": item_path(output),
        "record": output.with_suffix(".json"),
    }


def own_products(output: Path) -> dict[Path, Own]:
    """The files of a composite, and how each is known to be one.

    Raises:
        ConfigError: the name is not that of a GeoTIFF.
    """
    if output.suffix != ".tif":
        raise ConfigError(
            f"--output {output}: a composite is a .tif, its other files get their names"
        )
    marks = (holding("composite"), holding("composite"), json_of("item of composite"),
             json_of("composite"))  # fmt: skip
    return dict(zip(products(output).values(), marks, strict=True))


# The scenes of every window


@dataclass(frozen=True)
class Day:
    """A day (by the sun) with the scenes that show a window then, those on its own grid first."""

    date: datetime.date
    scenes: tuple[Scene, ...]

    @property
    def cloud(self) -> float:
        """Percent of the first scene."""
        return self.scenes[0].cloud_cover


def find_scenes(
    request: Request, folder: Path, progress: Progress
) -> tuple[CatalogueScenes, dict[Window, tuple[str, ...]]]:
    """The catalogue's scenes, and the ids of those of every window with ground, best first.

    Raises:
        UnreachableError: the catalogue did not answer.
        EmptyRegionError: it has no scene of the area.
    """
    ground, source = request.ground, request.source
    region, occasion = Region("area", ground.geobox), source.occasions[0].name
    places = [Place(region, occasion, ground.footprint(each)) for each in ground.touched]
    scenes = CatalogueScenes(source, folder, most_scenes=None)
    try:
        found = scenes.find(places, lambda done, total: progress(done, total, "asking"))
    except EmptyRegionError as error:
        raise EmptyRegionError(
            f"no scene in {source.catalogue.url} shows {ground.area.name} between "
            f"{source.config.dates} with at most {source.config.max_cloud:g} % cloud: check the "
            "place, give more days in --dates or a higher --max-cloud"
        ) from error
    return scenes, dict(zip(ground.touched, found, strict=True))


def days_of(candidates: Sequence[Scene], ground: Ground, most: int) -> list[Day]:
    """The days of a window's scenes, best first, at most so many of them.

    Scenes of one day are one observation, whatever their tile: satellites pass once a day, about
    half past ten by the sun.
    """
    by_sun, crs = datetime.timedelta(hours=ground.lon / 15), ground.geobox.crs
    by_day: dict[datetime.date, list[Scene]] = defaultdict(list)
    for scene in candidates:
        moment = datetime.datetime.fromisoformat(scene.datetime)
        by_day[(moment + by_sun).date()].append(scene)
    own = crs and crs.epsg
    return [
        Day(date, tuple(sorted(scenes, key=lambda scene: scene.epsg not in (None, own))))
        for date, scenes in by_day.items()
    ][:most]


@dataclass(frozen=True)
class Budget:
    """What a composite will take, counted from its plan and the catalogue's answers."""

    num_windows: int
    num_pixels: int
    dates: list[datetime.date]
    num_scenes: int
    traffic: Traffic
    disk_bytes: int

    def line(self) -> str:
        """The budget in one line, to be read before the work starts."""
        return (
            f"planned: {self.num_pixels / 1e6:,.1f} million pixels in {self.num_windows:,} windows "
            f"from {len(self.dates)} days, about {self.traffic.bytes / 1e9:,.2f} GB in "
            f"{self.traffic.requests:,} requests, {self.disk_bytes / 1e9:,.2f} GB on disk meanwhile"
        )

    def rows(self, mbit: float) -> list[Row]:
        """The budget as table rows."""
        seconds = round(self.traffic.bytes * 8 / (mbit * 1e6))
        return [
            Row("pixels", self.num_pixels, "pixels", "of the grid of 10 m around the area"),
            Row("windows", self.num_windows, "windows", "with ground of the area; one at a time"),
            Row("days", len(self.dates), "days", f"{self.dates[0]} to {self.dates[-1]}, some of "
                "them in each window (--max-dates)"),
            Row("scenes", self.num_scenes, "scenes", "to read from, the best of each day"),
            Row("requests", self.traffic.requests, "requests", "about"),
            Row("download", self.traffic.bytes, "bytes", f"{self.traffic.bytes / 1e9:,.2f} GB, "
                "less where a day is all cloud: only its scene classes are read"),
            Row("disk", self.disk_bytes, "bytes", f"{self.disk_bytes / 1e9:,.2f} GB meanwhile; a "
                "quarter or so stays"),
            Row("time", seconds, "seconds", f"{seconds / 3600:,.1f} h with {mbit:g} Mbit/s"),
        ]  # fmt: skip


def budget(
    request: Request, scenes: CatalogueScenes, found: Mapping[Window, Sequence[str]]
) -> Budget:
    """The budget of a composite whose scenes have been found."""
    source, total = request.source, Traffic()
    dates, names = set(), set()
    num_bands, most_days = source.sensor.num_bands, 0
    for window, candidates in found.items():
        picked = [scenes.by_id[name] for name in candidates]
        days = days_of(picked, request.ground, request.max_dates)
        most_days = max(most_days, len(days))
        for part in (source.cost(request.ground.grid(window)), source.opening_cost()):
            total.requests += part.requests * len(days)
            total.bytes += part.bytes * len(days)
        dates |= {day.date for day in days}
        names |= {day.scenes[0].id for day in days}
    height, width = request.ground.geobox.shape
    largest = max(window.height * window.width for window in found)
    pixel_bytes = 2 * (num_bands + len(OBSERVATION_BANDS))
    # Windows, the plain file that they are put together in, and the compressed one with overviews.
    kept = sum(each.height * each.width for each in found) + round(2.4 * height * width)
    return Budget(
        len(found), height * width, sorted(dates), len(names), total,
        kept * pixel_bytes + largest * most_days * 2 * num_bands,
    )  # fmt: skip


# Making it


def write_composite(
    request: Request, output: Path, progress: Progress, say: Callable[[str], object]
) -> CompositeRecord:
    """Write the files of a composite; its record. One that is there, made of the same, is left
    alone.

    Raises:
        EmptyRegionError: the catalogue has no scene of the area.
        BuildError: the pixels of too many scenes, or of all, contradict what is said of their
            offset.
        SourceError, StorageError: pixels cannot be read, files cannot be written.
    """
    plan, files = request.plan, products(output)
    if all(path.exists() for path in files.values()):
        there = record_in(read_bytes(files["record"]))
        if there.get("fingerprint") == plan.fingerprint:
            say(f"{output} is there already, made of the same")
            clear_scratch(output, plan.fingerprint, say)
            remedy = "delete it, and make the composite again"
            return checked(CompositeRecord, there, str(files["record"]), ConfigError, remedy)
    with scratch(output, plan.fingerprint, say) as folder:
        scenes, found = find_scenes(request, folder, progress)
        for complaint in scenes.complaints():
            say(f"warning: {complaint}")
        say(budget(request, scenes, found).line())
        work = _Work(request, folder, scenes, found, progress, say)
        made = work.make_all()
        if not any(each.days for each in made.values()):
            raise EmptyRegionError(
                f"no day shows a clear pixel of {request.ground.area.name} between "
                f"{request.source.config.dates}: give more days in --dates or a higher --max-cloud"
            )
        files["record"].unlink(missing_ok=True)  # of an older composite, whose files go now
        _write_files(request, folder, files, made, progress)
        record = CompositeRecord(
            **plan.to_json(),
            attribution=list(request.source.attribution),
            scenes=work.used_scenes(made.values()),
            left_out=[scenes.left_out[name] for name in sorted(scenes.left_out)],
            pixels=sum(each.num_pixels for each in made.values()),
            unseen=sum(each.num_unseen for each in made.values()),
            mean_observations=sum(each.num_clear for each in made.values())
            / sum(each.num_pixels for each in made.values()),
        )
        described = {name: path for name, path in files.items() if name != "item"}
        write_item(output, plan, [request.ground.geobox], described, record.attribution)
        write_json(files["record"], record.to_json())
    return record


@dataclass
class _Work:
    """A composite under way: finished windows in ``folder``, and what they say of the scenes."""

    request: Request
    folder: Path
    scenes: CatalogueScenes
    found: Mapping[Window, Sequence[str]]
    progress: Progress
    say: Callable[[str], object]

    def __post_init__(self) -> None:
        self.ground: dict[str, DarkGround] = defaultdict(DarkGround)
        self.unreadable: dict[str, str] = {}

    def make_all(self) -> dict[Window, _Made]:
        """Every window, without the scenes that are wrong or cannot be read.

        What comes next follows from what is kept: the first window that is not there, or holds
        pixels of a scene that another window has shown to be wrong.
        """
        made = {window: kept for window in self.found if (kept := self._kept(window))}
        for kept in made.values():
            self._take_in(kept, None)
        while True:
            wrong = self._wrong(len(made) == len(self.found))
            lacking = (
                window
                for window in self.found
                if window not in made or (wrong and made[window].scenes & wrong)
            )
            if (window := next(lacking, None)) is None:
                return made
            before = made.get(window)
            done = len(made) - (before is not None)
            made[window] = self._make(window, wrong, before, done)
            self._take_in(made[window], before)

    def _kept(self, window: Window) -> _Made | None:
        path = self.folder / f"{window.name}.json"
        if not path.exists():
            return None
        remedy = f"delete {self.folder} and run the same command again"
        return checked(
            _Made, read_json(path, StorageError, remedy), str(path), StorageError, remedy
        )

    def _take_in(self, kept: _Made, before: _Made | None) -> None:
        """What a window says of its scenes; what it said ``before`` counts already."""
        for name, counts in kept.evidence.items():
            if before is None or name not in before.evidence:
                self.ground[name] += DarkGround(**counts)
        self.unreadable |= kept.unreadable

    def _wrong(self, all_made: bool) -> set[str]:
        """The scenes that are not used: their pixels contradict their offset, or cannot be read.

        Raises:
            BuildError: there are so many that the catalogue is wrong.
            CorruptRasterError: so many cannot be read.
        """
        read, unreadable = self.ground.keys(), self.unreadable
        wrong = self.scenes.contradicted((name, asdict(seen)) for name, seen in self.ground.items())
        self.scenes.check(wrong, len(read))
        if wrong and read == wrong.keys() and all_made:
            name, reason = min(wrong.items())
            raise BuildError(f"scene {name}: {reason} (no other scene of the place is left)")
        for line in self.scenes.drop(wrong):
            self.say(line)
        most = max(_MOST_UNREADABLE, _MOST_UNREADABLE_SHARE * len(read | unreadable.keys()))
        if len(unreadable) > most or (unreadable and not read and all_made):
            raise CorruptRasterError(min(unreadable.items())[1])
        for name, why in unreadable.items():
            if name not in self.scenes.left_out:
                self.say(f"scene {name} is left out: {why}")
            self.scenes.left_out[name] = LeftOut(id=name, what="cannot be read", reason=why)
        return {*wrong, *unreadable}

    def _make(self, window: Window, wrong: set[str], before: _Made | None, done: int) -> _Made:
        """Read and reduce a window, and keep it; ``before`` is what it was made of, ``done`` how
        many others are there.
        """
        request, total = self.request, len(self.found)
        inside = request.ground.inside(window)
        candidates = [self.scenes.by_id[n] for n in self.found[window] if n not in wrong]
        days = days_of(candidates, request.ground, request.max_dates)
        evidence = dict(before.evidence) if before else {}
        unreadable = dict(before.unreadable) if before else {}
        used: list[tuple[Day, list[str], Path]] = []
        for num_read, day in enumerate(sorted(days, key=lambda day: day.date)):
            self.progress(done + num_read / len(days), total, f"{window.name}, {day.date}")
            observed = self._observe(window, day, inside, evidence, unreadable)
            if observed is not None:
                values, names = observed
                file = self.folder / f"day-{len(used)}.npy"
                write_atomically(file, partial(np.save, arr=values))
                used.append((day, names, file))
        num_clear, num_unseen = self._reduce(window, used, int(inside.sum()))
        kept = _Made(
            days={str(day.date): names for day, names, _ in used},
            evidence=evidence,
            unreadable=unreadable,
            num_pixels=int(inside.sum()),
            num_unseen=num_unseen,
            num_clear=num_clear,
        )
        write_json(self.folder / f"{window.name}.json", kept.model_dump())
        return kept

    def _observe(
        self,
        window: Window,
        day: Day,
        inside: Bool[np.ndarray, "row col"],
        evidence: dict[str, dict[str, int]],
        unreadable: dict[str, str],
    ) -> tuple[UInt16[np.ndarray, "band row col"], list[str]] | None:
        """The clear ground that a day shows, 0 elsewhere, and the scenes it comes from; None where
        it shows none.

        A pixel is of the first scene that holds it, cloud or not. Bands are read where the scene
        classes say that they show something new.
        """
        source, grid = self.request.source, self.request.ground.grid(window)
        values: np.ndarray | None = None
        missing, names = inside.copy(), []
        for scene in day.scenes:
            if not missing.any():
                break
            one = replace(source.at(scene), margin_px=self.request.margin_px)
            try:
                with source.interruptible():
                    classes = one.classes(grid)
                wanted = missing & np.isin(classes, VALID_SCL)
                raster = one.read(grid, classes) if wanted.any() else None
            except CorruptRasterError as error:
                unreadable[scene.id] = " ".join(str(error).split())
                continue
            missing &= classes == 0
            if raster is None:
                continue
            evidence[scene.id] = source.evidence([raster.provenance])
            wanted &= raster.valid
            if wanted.any():
                names.append(scene.id)
                if values is None:
                    values = np.zeros_like(raster.values)
                np.copyto(values, raster.values, where=wanted)
        return None if values is None else (values, names)

    def _reduce(
        self, window: Window, used: Sequence[tuple[Day, list[str], Path]], num_pixels: int
    ) -> tuple[int, int]:
        """Write the window's composite with its observations, from the days' files, which go.

        Returns the clear days, summed over the pixels, and the pixels without any.
        """
        num_bands = self.request.source.sensor.num_bands
        shape = (num_bands + len(OBSERVATION_BANDS), window.height, window.width)
        out = np.zeros(shape, np.uint16)
        days = [(day.date - _EPOCH).days for day, _, _ in used]
        clouds = [day.cloud for day, _, _ in used]
        rows = max(_STACK_BYTES // (max(len(used), 1) * num_bands * 2 * window.width), 1)
        for first in range(0, window.height if used else 0, rows):
            part = slice(first, first + rows)
            # Opened anew for every part: pages that stay mapped would count as this process's.
            stack = np.stack([np.load(file, mmap_mode="r")[:, part] for _, _, file in used])
            values, observations = reduced(stack, days, clouds, self.request.method)
            out[:num_bands, part], out[num_bands:, part] = values, observations
        write_atomically(self.folder / f"{window.name}.npy", partial(np.save, arr=out))
        for _, _, file in used:
            file.unlink()
        num_seen = out[num_bands]
        return int(num_seen.sum()), num_pixels - int(np.count_nonzero(num_seen))

    def used_scenes(self, made: Iterable[_Made]) -> list[UsedScene]:
        """The scenes that windows were made of, by time, each with what all windows say of it."""
        windows = Counter(name for each in made for name in each.scenes)
        used = []
        for scene in sorted(
            (self.scenes.by_id[name] for name in windows), key=lambda s: (s.datetime, s.id)
        ):
            offset = offset_of(scene, self.request.source.config.offset)
            shown = self.ground[scene.id].offset_dn
            agreement = "agree" if shown == offset.dn else "disagree"
            used.append(
                UsedScene(
                    id=scene.id,
                    datetime=scene.datetime,
                    cloud_cover=scene.cloud_cover,
                    baseline=scene.baseline,
                    offset_dn=offset.dn,
                    evidence=offset.evidence,
                    pixels="undecided" if shown is None else agreement,
                    windows=windows[scene.id],
                )
            )
        return used


def _write_files(
    request: Request,
    folder: Path,
    files: Mapping[str, Path],
    made: Mapping[Window, _Made],
    progress: Progress,
) -> None:
    """Put the windows together as two COGs."""
    ground, sensor, tags = request.ground, request.source.sensor, request.plan.tags
    num_bands = sensor.num_bands
    pixels = Bands(
        "uint16", sensor.band_names, 0, (sensor.scale,) * num_bands, (sensor.offset,) * num_bands
    )
    about = Bands("uint16", OBSERVATION_BANDS, 0, overviews="nearest")
    total = len(ground.windows)
    with (
        cog_writer(files["composite"], ground.geobox, pixels, tags) as write_pixels,
        cog_writer(files["observations"], ground.geobox, about, tags) as write_about,
    ):
        for done, window in enumerate(ground.windows):
            progress(done, total, "writing")
            layers = num_bands + len(OBSERVATION_BANDS)
            stored = (
                np.load(folder / f"{window.name}.npy")
                if window in made
                else np.zeros((layers, window.height, window.width), np.uint16)
            )
            write_pixels(window.row, window.col, stored[:num_bands])
            write_about(window.row, window.col, stored[num_bands:])
    progress(total, total, "written")
