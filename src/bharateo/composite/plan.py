"""What composite is asked for, which scenes it takes, what it will take, what it says of itself."""

from __future__ import annotations

import datetime
import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import shapely

from bharateo.accounting import Row
from bharateo.artefacts import Number, Record
from bharateo.composite.ground import Ground, Window
from bharateo.composite.reduce import OBSERVATION_BANDS, Method
from bharateo.errors import ConfigError, EmptyRegionError
from bharateo.files import read_bytes
from bharateo.pixels.http import Traffic
from bharateo.pixels.product import Plan
from bharateo.progress import Progress
from bharateo.regions import Region
from bharateo.sources import Place
from bharateo.sources.scenes import CatalogueScenes, LeftOut
from bharateo.sources.sentinel2 import Sentinel2
from bharateo.sources.stac import Scene
from bharateo.version import __version__

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
