"""A user's raster as a run's input: its bands in the run's order, its numbers in the run's unit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Shaped
from odc.geo.geobox import GeoBox

from bharateo.errors import ConfigError, SourceError
from bharateo.inference.contract import (
    band_places,
    check_grid,
    check_pixels,
    fitting_set,
    sample_of,
)
from bharateo.inference.products import MadeOf
from bharateo.inference.stac_item import ScenePixels, is_item, open_scene
from bharateo.pixels.raster import RasterFile, open_raster
from bharateo.reading import ContractField, Reading
from bharateo.sensor import SENTINEL2_L2A, Band, Composite, Sensor
from bharateo.training.contract import Contract, Differences


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


class FilePixels:
    """Some bands of one raster file."""

    def __init__(self, file: RasterFile, places: tuple[int, ...], nodata: float | None) -> None:
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
        nodata = said if len({*said}) > 1 else said[0]
        if self._nodata is not None:
            nodata = self._nodata
        return {**self.file.identity, "bands_in_file": places, "nodata": nodata}

    def read(
        self, row: int, col: int, height: int, width: int
    ) -> tuple[Shaped[np.ndarray, "band row col"], Bool[np.ndarray, "row col"]]:
        """See ``Pixels``."""
        window = row, col, height, width
        stored, known = self.file.read_known(*window, self._places, self._nodata)
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
        return MadeOf(identity=hashlib.sha256(text.encode()).hexdigest(), **plain)

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
    if is_item(location):
        pixels, unit = _scene(location, contract.sensor, reading, differences)
    else:
        file = _opened(location)
        band_set = fitting_set(location, file.band_names, contract, reading.bands)
        if band_set is not None:
            contract = contract.of_bands(contract.model.band_sets[band_set])
        pixels, unit = _file(file, contract.sensor, reading, differences)
    check_grid(location, pixels.geobox, contract, differences)
    height, width = pixels.geobox.shape
    sample = sample_of(pixels.read, (height, width))
    if isinstance(pixels, ScenePixels):
        pixels.check_offset(differences)
    if sample:
        check_pixels(location, sample, *unit, contract, differences)
    return RasterInput(pixels, contract.sensor, *unit, differences.found, band_set, reading.allow)


def open_alone(location: str, reading: Reading | None = None) -> RasterInput:
    """The raster at a path or URL, or the scene of a STAC item, with all its bands and of no run.

    Bands have the names that the file or the user gives them, else their numbers. Numbers are
    scaled as either says, and else as they are stored.

    Raises:
        SourceError: there is no such raster, or it cannot be read.
        ConfigError: the reading makes no sense for it, or a band is named twice.
    """
    reading = reading or Reading()
    if is_item(location):
        pixels, unit = _scene(location, SENTINEL2_L2A, reading, Differences(reading.allow))
        return RasterInput(pixels, SENTINEL2_L2A, *unit)
    file = _opened(location)
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
    return RasterInput(FilePixels(file, chosen, reading.nodata), sensor, *unit)


def _opened(location: str) -> RasterFile:
    file = open_raster(location, vrt=True)
    if file is None:
        raise SourceError(
            f"{location} does not exist: give the path or URL of a raster, or of a STAC item"
        )
    return file


Unit = tuple[Float[np.ndarray, " band"], Float[np.ndarray, " band"]]
"""Scale and offset, one a band."""


def _file(
    file: RasterFile, sensor: Sensor, reading: Reading, differences: Differences
) -> tuple[FilePixels, Unit]:
    places = band_places(file.location, file.band_names, sensor, reading.bands, differences)
    return FilePixels(file, places, reading.nodata), _unit(file, places, sensor, reading)


def _unit(file: RasterFile, places: tuple[int, ...], sensor: Sensor, reading: Reading) -> Unit:
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
    location: str, sensor: Sensor, reading: Reading, differences: Differences
) -> tuple[ScenePixels, Unit]:
    for name in ("bands", "scale", "nodata"):
        if getattr(reading, name) is not None:
            raise ConfigError(
                f"--{name} is for raster files; {location} is a STAC item, which says so itself: "
                "leave it out"
            )
    pixels = open_scene(location, sensor, reading.offset, differences)
    num = sensor.num_bands
    return pixels, (np.full(num, pixels.scale), np.zeros(num))
