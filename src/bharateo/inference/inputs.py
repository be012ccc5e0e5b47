"""What people have as a run's input: its bands in the run's order, its numbers in the run's unit.

``opened`` is the one door for rasters: a file, tiles of one grid, a mask, another pixel. Scenes,
which know their own bands, unit and mask, come through ``scene``.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Shaped
from odc.geo.geobox import GeoBox

from bharateo.errors import ConfigError, SourceError
from bharateo.files import read_bytes
from bharateo.inference.contract import (
    band_places,
    check_grid,
    check_pixels,
    fitting_set,
    grid_resolution,
    ground_resolution,
    sample_of,
)
from bharateo.inference.products import MadeOf
from bharateo.inference.scene import ScenePixels, is_scene, open_scene
from bharateo.outputs import record_in
from bharateo.pixels.raster import RasterFile, Reader, open_raster
from bharateo.pixels.reader import WITHIN, Mask, Masked, Resampled, Tiles, tile_paths, zoomed
from bharateo.reading import ContractField, Reading
from bharateo.sensor import Band, Composite, Sensor
from bharateo.sources.sentinel2 import VALID_SCL
from bharateo.training.contract import Contract, Differences

RESAMPLED_TO = 10.0
"""Side of a pixel in metres, where no run has one."""


@runtime_checkable
class Pixels(Protocol):
    """Where stored values in a run's bands come from: a file, or a scene of several."""

    location: str
    geobox: GeoBox

    @property
    def provenance(self) -> Mapping[str, Any]:
        """What tells this version of the pixels from another, as plain JSON."""
        ...

    def read(
        self, row: int, col: int, height: int, width: int
    ) -> tuple[Shaped[np.ndarray, "band row col"], Bool[np.ndarray, "row col"]]:
        """Stored values of a window inside the raster, and where every band holds one."""
        ...


_FILLS = (-9999, -99_999, -32_767, -32_768, -(2**31))
"""Numbers that stand for no data in many a file that does not say so."""

_BEYOND = 1e19
"""No physical quantity of a raster; fills of floats are (-3.4e38, 9.97e36, 1e20)."""


class FilePixels:
    """Some bands of a raster."""

    def __init__(self, file: Reader, places: tuple[int, ...], nodata: float | None) -> None:
        """``nodata``: what the user says in place of the file."""
        self.file, self.location, self.geobox = file, file.location, file.geobox
        self._places, self._nodata = places, nodata

    @property
    def provenance(self) -> Mapping[str, Any]:
        """The version of the file, where the bands lie in it, counted from 1, and its nodata: a
        list where the bands have different ones.
        """
        places = [place + 1 for place in self._places]
        said = [self.file.nodata[place] for place in self._places]
        said = [said[0]] if self._nodata is None and len({*said}) == 1 else said
        said = said if self._nodata is None else [self._nodata]
        # JSON has no NaN.
        plain = ["nan" if each is not None and math.isnan(each) else each for each in said]
        nodata = plain if len({*plain}) > 1 else plain[0]
        return {**self.file.identity, "bands_in_file": places, "nodata": nodata}

    def read(
        self, row: int, col: int, height: int, width: int
    ) -> tuple[Shaped[np.ndarray, "band row col"], Bool[np.ndarray, "row col"]]:
        """See ``Pixels``.

        Raises:
            SourceError: it holds what stands for no data, and nobody says that it does.
        """
        window = row, col, height, width
        stored, known = self.file.read_known(*window, self._places, self._nodata)
        if self._nodata is None and stored.dtype.kind in "if":
            for layer, there in zip(stored, known, strict=True):
                low = float(layer.min(where=there, initial=0))
                high = float(layer.max(where=there, initial=0))
                if low in _FILLS or low < -_BEYOND or high > _BEYOND:
                    fill = high if high > _BEYOND else low
                    raise SourceError(
                        f"nodata: {self.location} holds {fill:.9g}, and does not say that it "
                        f"stands for no data: add --nodata {fill:.9g} if it does, or --nodata nan "
                        "if it is a value"
                    )
        return stored, np.all(known, axis=0)


@dataclass(frozen=True)
class RasterInput:
    """A raster opened for a run: windows of physical values, in the bands of ``sensor``: those of
    the run, or of its ``band_set``, in which the run is to be asked (``Run.of_set``).

    ``overridden`` names the fields of the contract that were allowed to differ, each with what
    differs: products must carry it. ``scale`` and ``offset`` are one a band.
    """

    pixels: Pixels
    sensor: Sensor
    scale: Float[np.ndarray, " band"]
    offset: Float[np.ndarray, " band"]
    overridden: Mapping[str, str] = field(default_factory=dict)
    band_set: str | None = None
    allow: frozenset[ContractField] = frozenset()
    """Fields that the user lets differ, also of what shows later than at opening."""
    notes: tuple[str, ...] = ()
    """What a person should know of how it is read: tiles, mask, another pixel."""

    @property
    def location(self) -> str:
        """Path or address."""
        return self.pixels.location

    @property
    def geobox(self) -> GeoBox:
        """The grid of the pixels."""
        return self.pixels.geobox

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        height, width = self.pixels.geobox.shape
        return height, width

    @property
    def made_of(self) -> MadeOf:
        """Where the pixels come from and how they were read: all that decides what ``read`` gives,
        by which inputs are told apart.
        """
        plain = {
            "input": self.location,
            **self.pixels.provenance,
            "bands": list(self.sensor.band_names),
            "scale": self.scale.tolist(),
            "offset": self.offset.tolist(),
            "overridden": dict(self.overridden),
        }
        text = json.dumps(plain, sort_keys=True)
        identity = hashlib.sha256(text.encode()).hexdigest()
        return MadeOf(identity=identity, attribution=self._attribution(), **plain)

    def _attribution(self) -> list[str]:
        """What a composite of ours says beside its raster; empty of other rasters."""
        beside = Path(f"{self.location.removesuffix('.tif')}.json")
        found = record_in(read_bytes(beside)) if beside.is_file() else {}
        return list(found["attribution"]) if found.get("product") == "composite" else []

    def read(
        self, row: int, col: int, height: int, width: int
    ) -> tuple[Float[np.ndarray, "band row col"], Bool[np.ndarray, "row col"]]:
        """Physical values of a window inside the raster, and where every band holds one.

        Raises:
            CorruptRasterError, UnreachableError: the pixels cannot be had.
        """
        stored, valid = self.pixels.read(row, col, height, width)
        values = stored.astype(np.float32)
        values *= self.scale.astype(np.float32)[:, None, None]
        values += self.offset.astype(np.float32)[:, None, None]
        return values, valid


def open_input(location: str, contract: Contract, reading: Reading | None = None) -> RasterInput:
    """The raster at a path or URL, or the scene of a STAC item, as input of the run with this
    contract.

    A raster that lacks bands of the run is read in the largest set of bands that the run takes as
    well and the raster holds. Nine windows are looked at, to tell whether the numbers are what they
    are taken for.

    Raises:
        ContractError: its bands, unit, statistics or resolution are not those of the run, or it is
            smaller than a patch; the field is named.
        SourceError: there is no such raster, or it cannot be read.
        ConfigError: the reading makes no sense for it.
    """
    reading = reading or Reading()
    differences = Differences(reading.allow)
    pixels: Pixels
    band_set = None
    if is_scene(location):
        pixels, _, unit, notes = _scene(location, contract.sensor, reading, differences)
    else:
        file, notes = opened(location, reading, grid_resolution(contract.sensor))
        band_set = fitting_set(location, file.band_names, contract, reading.bands)
        if band_set is not None:
            contract = contract.of_bands(contract.model.band_sets[band_set])
        sensor = contract.sensor
        places = band_places(location, file.band_names, sensor, reading.bands, differences)
        pixels, unit = (
            FilePixels(file, places, reading.nodata),
            _unit(file, places, sensor, reading),
        )
    check_grid(location, pixels.geobox, contract, differences)
    height, width = pixels.geobox.shape
    sample = sample_of(pixels.read, (height, width))
    if isinstance(pixels, ScenePixels):
        pixels.check_offset(differences)
    if sample:
        check_pixels(location, sample, *unit, contract, differences)
    return RasterInput(
        pixels, contract.sensor, *unit, differences.found, band_set, reading.allow, notes
    )


def open_alone(
    location: str, reading: Reading | None = None, resolution_m: float = RESAMPLED_TO
) -> RasterInput:
    """The raster or scene at a path or URL, with all its bands and of no run; one that is to be
    resampled has pixels of ``resolution_m``.

    Bands have the names that the file or the user gives them, else their numbers. Numbers are
    scaled as either says, and else as they are stored.

    Raises:
        SourceError: there is no such raster, or it cannot be read.
        ConfigError: the reading makes no sense for it, or a band is named twice.
    """
    reading = reading or Reading()
    if is_scene(location):
        pixels, own, unit, notes = _scene(location, None, reading, Differences(reading.allow))
        return RasterInput(pixels, own, *unit, notes=notes)
    file, notes = opened(location, reading, resolution_m)
    names = list(file.band_names)
    if isinstance(reading.bands, Mapping):
        wrong = [name for name, place in reading.bands.items() if place > file.num_bands]
        if wrong:
            raise ConfigError(
                f"--bands: {location} has {file.num_bands} bands, no number "
                f"{reading.bands[wrong[0]]}: name some of those"
            )
        places = [place - 1 for place in reading.bands.values()]
        names = list(reading.bands)
    elif reading.bands is not None:
        names, places = list(reading.bands), list(range(file.num_bands))
        if len(names) != file.num_bands:
            raise ConfigError(
                f"--bands: {location} has {file.num_bands} bands, and {len(names)} are named: name "
                "all, or each with its number (B04=3,B03=2)"
            )
    else:
        places = list(range(file.num_bands))
    if (quality := _quality_band(_called(file.band_names, reading), reading)) in places:
        del names[places.index(quality)]
        places.remove(quality)
        if not places:
            raise ConfigError(
                f"{location} holds {file.band_names[quality]} alone, which masks pixels: give a "
                "raster with bands beside it, or add --mask none"
            )
    called = [name or f"band {place + 1}" for name, place in zip(names, places, strict=True)]
    if twice := next((name for name in called if called.count(name) > 1), None):
        raise ConfigError(
            f"bands: {location} has two bands called {twice}: name its bands with --bands"
        )
    grey = Composite((called[0],) * 3, 0.0, 1.0)
    sensor = Sensor(
        name="raster", title=location, bands=tuple(Band(name, 1) for name in called),
        dtype="uint16", scale=1.0, offset=0.0, unit="as stored", composites={"grey": grey},
        standardised=True,
    )  # fmt: skip
    chosen = tuple(places)
    unit = _unit(file, chosen, sensor, reading)
    return RasterInput(FilePixels(file, chosen, reading.nodata), sensor, *unit, notes=notes)


def opened(
    location: str, reading: Reading, resolution_m: float = RESAMPLED_TO
) -> tuple[Reader, tuple[str, ...]]:
    """What a person calls a raster, with its mask and on the grid that is wanted; and what they
    should know of it.

    That is a file or URL, a folder of tiles or a list of them (.txt).

    Raises:
        SourceError: there is none, it cannot be read, or tiles do not fit together.
        ConfigError: there is no such mask.
    """
    notes: list[str] = []
    mask_of = partial(_mask, reading=reading, open_file=cache(_file))
    paths = None if "://" in location else tile_paths(Path(location))
    first = _file(paths[0] if paths else location)
    raster: Reader = first
    if paths:
        raster = Tiles(location, paths, mask_of)
        order = "by name" if Path(location).is_dir() else "in the list"
        notes.append(f"tiles: {len(paths)} as one; where they overlap, the first {order} counts")
    if mask := mask_of(first):
        notes.append(f"mask: {mask.rule}")
        raster = raster if paths else Masked(first, mask)
    _ = raster.geobox  # what does not say where it lies is refused before its bands are looked at
    if reading.resample:
        found = ground_resolution(raster.geobox)
        if 1 / WITHIN <= found / resolution_m <= WITHIN:
            notes.append(f"resample: pixels of {found:.3g} m are taken for {resolution_m:g} m")
        else:
            grid = zoomed(raster.geobox, found / resolution_m)
            raster = Resampled(raster, grid, reading.resample)
            notes.append(f"resample: {found:.3g} m to {resolution_m:g} m by {reading.resample}")
    return raster, tuple(notes)


def _file(location: str) -> RasterFile:
    file = open_raster(location, vrt=True)
    if file is None:
        raise SourceError(
            f"{location} does not exist: give the path or URL of a raster or a STAC item, a folder "
            "of tiles, or a Sentinel-2 product (.SAFE, .zip)"
        )
    return file


def _called(in_file: Sequence[str | None], reading: Reading) -> list[str | None]:
    """What bands are called, by the user or else the file."""
    names = list(in_file)
    if isinstance(reading.bands, Mapping):
        for name, place in reading.bands.items():
            if place <= len(names):
                names[place - 1] = name
    elif reading.bands is not None and len(reading.bands) == len(names):
        names = list(reading.bands)
    return names


_SCL = "scl"
_RULE = re.compile(r"(.+):(?:(bits|drop)=(\d+(?:,\d+)*)|(scl))")


def _quality_band(names: Sequence[str | None], reading: Reading) -> int | None:
    """Which band the mask is, from 0: None where it is none of them."""
    text = reading.mask or _SCL
    match = _RULE.fullmatch(text)
    wanted = (match[1] if match else text).lower()
    if wanted == "none":
        return None
    places = [place for place, name in enumerate(names) if name and name.lower() == wanted]
    return places[0] if len(places) == 1 else None


def _mask(
    file: RasterFile, reading: Reading, open_file: Callable[[str], RasterFile]
) -> Mask | None:
    """The mask that the reading asks for, of this file.

    Raises:
        ConfigError: there is none of that name, or it cannot be understood.
        SourceError: its file cannot be read.
    """
    text = reading.mask or _SCL
    names = _called(file.band_names, reading)
    place = _quality_band(names, reading)
    if text == "none" or (reading.mask is None and place is None):
        return None
    match = _RULE.fullmatch(text)
    layer: int | RasterFile
    if place is not None:
        layer, dtype = place, file.dtype
    else:
        where = match[1] if match else text
        if "://" not in where and not Path(where).exists():
            raise ConfigError(
                f"--mask {text}: {where} is neither a file nor a band of {file.location} "
                f"({', '.join(name or '?' for name in names)}): give the one or the other, or none"
            )
        layer = open_file(where)
        dtype = layer.dtype
        if layer.num_bands != 1:
            raise ConfigError(
                f"--mask {text}: {where} has {layer.num_bands} bands, a mask has one: write it to "
                f"a file of its own with gdal_translate -b 1 {where} MASK.tif"
            )
    if text.lower() == _SCL or (match and match[4]):
        kept = partial(np.isin, test_elements=VALID_SCL)
        return Mask(layer, kept, f"{text}, which leaves land, water and snow")
    if match is None:
        return Mask(layer, lambda values: (values != 0) & np.isfinite(values), f"{text}, where 0")
    numbers = [int(number) for number in match[3].split(",")]
    if match[2] == "drop":
        return Mask(
            layer, lambda values: ~np.isin(values, numbers) & np.isfinite(values),
            f"{text}, where it is one of them",
        )  # fmt: skip
    # A float counts exactly as far as its mantissa goes.
    num_bits = 8 * dtype.itemsize if dtype.kind in "iu" else int(np.finfo(dtype).nmant) + 1
    if max(numbers) >= num_bits:
        raise ConfigError(
            f"--mask {text}: {dtype} has bits 0 to {num_bits - 1}, no {max(numbers)}: give others"
        )
    bits = sum(1 << number for number in {*numbers})

    def clear(values: Shaped[np.ndarray, "row col"]) -> Bool[np.ndarray, "row col"]:
        known = np.isfinite(values)
        return known & (np.where(known, values, 0).astype(np.int64) & bits == 0)

    return Mask(layer, clear, f"{text}, where one of them is set")


Unit = tuple[Float[np.ndarray, " band"], Float[np.ndarray, " band"]]
"""Scale and offset, one a band."""


def _unit(file: Reader, places: tuple[int, ...], sensor: Sensor, reading: Reading) -> Unit:
    """What the user says, else the file, else the run's own: scale and offset come as a pair."""
    own = [file.units[place] for place in places]
    said = any(unit != (1.0, 0.0) for unit in own)
    scales, offsets = zip(
        *(own if said else [(sensor.scale, sensor.offset)] * len(own)), strict=True
    )
    scale, offset = np.array(scales, np.float64), np.array(offsets, np.float64)
    if reading.scale is not None:
        scale, offset = np.full_like(scale, reading.scale), np.zeros_like(offset)
    if reading.offset is not None:
        offset = np.full_like(offset, reading.offset)
    if not (scale > 0).all():
        raise ConfigError(
            f"scale of {file.location} is {scale.min():g}, and must be above 0: give another with "
            "--scale"
        )
    return scale, offset


def _scene(
    location: str, sensor: Sensor | None, reading: Reading, differences: Differences
) -> tuple[ScenePixels, Sensor, Unit, tuple[str, ...]]:
    for name in ("bands", "scale", "nodata", "resample"):
        if getattr(reading, name) is not None:
            raise ConfigError(
                f"--{name} is for raster files; {location} is a Sentinel-2 scene, which says so "
                "itself, on its 10 m grid: leave it out"
            )
    pixels, own = open_scene(location, sensor, reading.offset, reading.mask, differences)
    num = own.num_bands
    return pixels, own, (np.full(num, pixels.scale), np.zeros(num)), pixels.notes
