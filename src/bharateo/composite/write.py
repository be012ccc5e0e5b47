"""A composite written: window by window from the scenes of a catalogue, and what it says of itself.

A window's days are read one after the other into files beside the output and reduced row by row, so
memory grows neither with the area nor with the days. A finished window is kept; what to do next
follows from what is on disk alone, so a program killed at any moment ends in the same bytes.
"""

from __future__ import annotations

import datetime
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt16
from pydantic import Field

from bharateo.artefacts import Record, checked, read_json
from bharateo.composite.ground import Window
from bharateo.composite.plan import (
    CompositeRecord,
    Day,
    Request,
    UsedScene,
    budget,
    days_of,
    find_scenes,
)
from bharateo.composite.reduce import OBSERVATION_BANDS, reduced
from bharateo.errors import (
    BuildError,
    ConfigError,
    CorruptRasterError,
    EmptyRegionError,
    StorageError,
)
from bharateo.files import clear_scratch, read_bytes, scratch, write_atomically, write_json
from bharateo.outputs import Own, beginning_with, check_ending, check_outputs, json_of, record_in
from bharateo.pixels.cog import Bands, cog_writer
from bharateo.pixels.picture import (
    PICTURE_MARK,
    SHOWN,
    bands_shown,
    picture_of,
    stretched,
    thinning,
    write_picture,
)
from bharateo.pixels.product import holding, item_path, write_item
from bharateo.pixels.raster import open_raster
from bharateo.pixels.styles import STYLE_MARK, ColourStyle, write_style
from bharateo.progress import Progress
from bharateo.sources.scenes import CatalogueScenes, LeftOut
from bharateo.sources.sentinel2 import VALID_SCL, DarkGround, offset_of

_STACK_BYTES = 64 << 20
"""Of observations that are reduced at once."""

_MOST_UNREADABLE = 3
_MOST_UNREADABLE_SHARE = 0.1
"""Scenes with a missing or damaged file, and share of those asked for, that are done without."""

_EPOCH = datetime.date(1970, 1, 1)


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
        "style": output.with_suffix(".qml"),
        "picture": output.with_suffix(".png"),
        "item": item_path(output),
        "record": output.with_suffix(".json"),
    }


def own_products(output: Path) -> dict[Path, Own]:
    """The files of a composite, and how each is known to be one; not its style, which a person may
    have changed.

    Raises:
        ConfigError: the name is not that of a GeoTIFF.
    """
    check_ending(output, "a composite is a GeoTIFF", ".tif")
    files = products(output)
    return {
        files["composite"]: holding("composite"),
        files["observations"]: holding("composite"),
        files["picture"]: beginning_with(PICTURE_MARK),
        files["item"]: json_of("item of composite"),
        files["record"]: json_of("composite"),
    }


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
    if all(path.exists() for name, path in files.items() if name not in ("style", "picture")):
        there = record_in(read_bytes(files["record"]))
        if there.get("fingerprint") == plan.fingerprint:
            say(f"{output} is there already, made of the same")
            clear_scratch(output, plan.fingerprint, say)
            remedy = "delete it, and make the composite again"
            record = checked(CompositeRecord, there, str(files["record"]), ConfigError, remedy)
            _draw(request, files, record.attribution)
            return record
    check_outputs("composite", {files["style"]: beginning_with(STYLE_MARK)}, ())
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
        for name in ("record", "style", "picture"):  # of an older composite, whose files go now
            files[name].unlink(missing_ok=True)
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
        _draw(request, files, record.attribution)
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
            try:
                wrong = self._wrong(len(made) == len(self.found))
            except CorruptRasterError:
                for each in (each for each in made if made[each].unreadable):
                    self._record_file(each).unlink()  # so that the next run tries anew
                raise
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

    def _record_file(self, window: Window) -> Path:
        return self.folder / f"{window.name}.json"

    def _kept(self, window: Window) -> _Made | None:
        path = self._record_file(window)
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
        write_json(self._record_file(window), kept.model_dump())
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


def _draw(request: Request, files: Mapping[str, Path], attribution: Sequence[str]) -> None:
    """The composite as people look at it, true colour if it has that: the picture and the style for
    QGIS, each unless it is there.
    """
    lacking = {name for name in ("style", "picture") if not files[name].exists()}
    if not lacking:
        return
    file, grid = open_raster(str(files["composite"])), request.ground.geobox
    assert file is not None
    sensor = request.source.sensor
    bands = bands_shown(sensor.band_names)
    bands *= 3 // len(bands)  # one band is shown as grey
    with file:
        stored = file.read_thinned(thinning(grid), bands)
    known = (stored != 0).all(0)
    if not known.any():  # a few pixels of a large area, which thinning has lost
        known = ~known
    values = stored * sensor.scale + sensor.offset
    limits = np.quantile(values[:, known], SHOWN, axis=1).T
    if "picture" in lacking:
        rgb = stretched(values, *limits.T[..., None, None])
        write_picture(files["picture"], picture_of(rgb, known, grid), attribution)
    if "style" in lacking:
        style = ColourStyle([band + 1 for band in bands], limits.tolist())
        write_style(files["composite"], style)
