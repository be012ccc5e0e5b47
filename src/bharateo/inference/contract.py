"""Whether a raster keeps a run's contract: its bands, its unit, its statistics, its resolution.

The unit is read off the pixels: each convention in use turns the stored numbers into other physical
values, and only one of them makes land of the kind that land is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyproj
from jaxtyping import Bool, Float, Shaped
from odc.geo.geobox import GeoBox

from bharateo.chips.statistics import Statistics
from bharateo.errors import ContractError
from bharateo.pixels.reader import WITHIN
from bharateo.sensor import SENTINEL2_L1C, SENTINEL2_L2A, Sensor
from bharateo.sources.catalogue import EARTH_SEARCH
from bharateo.sources.sentinel2 import DARK_BELOW_OFFSET, DARK_QUANTILE, OFFSET_DN
from bharateo.training.contract import FAR, Contract, Differences, check_statistics

# Bands

_COMMON_NAMES = {key: band for band, key in EARTH_SEARCH.assets.items()}
"""Common names of Sentinel-2's bands. Source: STAC extension eo, as Earth Search uses it."""


def canonical(name: str) -> str:
    """A band's name as Sentinel-2 has it, whatever it is called: B4, b04, ``B4, central
    wavelength 665 nm`` and red are B04. Another name comes back as it is, in lower case.
    """
    first = name.strip().lower().split(",")[0].split(" ")[0].replace("-", "").replace("_", "")
    number = first.removeprefix("b")
    if first != number and number.rstrip("a").isdecimal():
        return f"B{number.upper().zfill(2)}"
    return _COMMON_NAMES.get(first, name.strip().lower())


def fitting_set(
    location: str,
    in_file: Sequence[str | None],
    contract: Contract,
    given: Sequence[str] | Mapping[str, int] | None,
) -> str | None:
    """Which of a run's sets of bands a file is read in: None where it holds all bands, or the run
    has no sets; else the one with the most bands of those it holds whole.

    Names are as for ``band_places``, which says what is wrong with them.

    Raises:
        ContractError: it holds some of the run's bands, but no set of them.
    """
    wanted = contract.sensor.band_names
    there = {canonical(name) for name in given or in_file if name is not None}
    held = [name for name in wanted if canonical(name) in there]
    if not contract.model.band_sets or len(held) == len(wanted):
        return None
    fitting = contract.fitting_set(held)
    if fitting is None and (there or len(in_file) != len(wanted)):
        known = ", ".join(name or "?" for name in given or in_file)
        what = f"of the run's bands {', '.join(held) or 'none'} ({known})"
        if not there:
            what = f"{len(in_file)} bands and does not say which is which"
        raise ContractError(
            f"bands: {location} holds {what}, and the run takes {contract.bands_taken}: give a "
            "raster that holds one of these whole, name its bands with --bands, or pretrain a run "
            "with model.band_sets of those that are there"
        )
    return fitting


def band_places(
    location: str,
    in_file: Sequence[str | None],
    sensor: Sensor,
    given: Sequence[str] | Mapping[str, int] | None,
    differences: Differences,
) -> tuple[int, ...]:
    """Where in a file the run's bands lie, from 0, in the run's order.

    ``in_file`` is what the file calls its bands, ``given`` what the user says (see ``Reading``).
    The order is never guessed, unless the user allowed just that for as many bands as needed.

    Raises:
        ContractError: a band is missing, named twice, or nobody says which is which.
    """
    num, wanted = len(in_file), sensor.band_names
    remedy = (
        f"name its bands with --bands: {','.join(wanted)} are the run's (all {num} names in the "
        f"file's order, or {wanted[0]}=NUMBER,... counted from 1)"
    )
    if isinstance(given, Mapping):
        names: list[str | None] = [None] * num
        for name, place in given.items():
            if not 1 <= place <= num:
                raise ContractError(
                    f"bands: {location} has {num} bands, no number {place}; {remedy}"
                )
            names[place - 1] = name
    else:
        names = list(given or in_file)
    if len(names) != num:
        raise ContractError(
            f"bands: {location} has {num} bands, and {len(names)} are named; {remedy}"
        )
    known = [None if name is None else canonical(name) for name in names]
    counts = {name: known.count(canonical(name)) for name in wanted}
    if not any(counts.values()) and given is None:
        unnamed = f"{location} does not say which band of its {num} is which"
        if num != len(wanted):
            raise ContractError(f"bands: {unnamed}; {remedy}")
        differences.add("bands", f"{unnamed}; taken in the run's order", remedy)
        return tuple(range(num))
    for name, count in counts.items():
        if count != 1:
            wrong = "is missing" if count == 0 else "is named twice"
            there = ", ".join(name or "?" for name in names)
            raise ContractError(f"bands: {name} {wrong} in {location} ({there}); {remedy}")
    return tuple(known.index(canonical(name)) for name in wanted)


# Resolution


def grid_resolution(sensor: Sensor) -> float:
    """The pixel a run was trained on: of Sentinel-2 that of all its bands, whichever are chosen."""
    whole = {each.name: each for each in (SENTINEL2_L1C, SENTINEL2_L2A)}.get(sensor.name, sensor)
    return min(band.resolution_m for band in whole.bands)


def ground_resolution(geobox: GeoBox) -> float:
    """Side in metres, on the ground, of a square as large as the pixel in a grid's middle."""
    row, col = (size // 2 for size in geobox.shape)
    corners = [geobox.affine @ (col + x, row + y) for x, y in ((0, 0), (1, 0), (1, 1), (0, 1))]
    to_degrees = pyproj.Transformer.from_crs(str(geobox.crs), "EPSG:4326", always_xy=True)
    lon, lat = to_degrees.transform(*np.array(corners).T)
    return float(abs(pyproj.Geod(ellps="WGS84").polygon_area_perimeter(lon, lat)[0]) ** 0.5)


def check_grid(location: str, geobox: GeoBox, contract: Contract, differences: Differences) -> None:
    """Refuse pixels of another size on the ground, and a raster too small to hold a patch.

    Pixels of degrees are not square on the ground, and "10 m" is nominal: a quarter more or less
    is no difference.

    Raises:
        ContractError: it is one of the two.
    """
    patch_px, (height, width) = contract.patch_px, geobox.shape
    if min(height, width) < patch_px:
        raise ContractError(
            f"patch_px: {location} has {height} x {width} px, and a patch of the run {patch_px} x "
            f"{patch_px}; give a larger raster"
        )
    wanted = grid_resolution(contract.sensor)
    found = ground_resolution(geobox)
    if not 1 / WITHIN <= found / wanted <= WITHIN:
        differences.add(
            "resolution",
            f"{location} has pixels of {found:.3g} m on the ground, the run was trained on "
            f"{wanted:g} m",
            "bring it there with --resample bilinear (classes and codes: nearest)",
        )


# Unit


@dataclass(frozen=True)
class Convention:
    """A way in which physical values are stored: stored x ``scale`` + ``offset``."""

    name: str
    scale: float
    offset: float = 0.0


REFLECTANCES = (
    Convention("reflectance, 0 to 1", 1.0),
    Convention("reflectance x 1000", 1e-3),
    Convention("reflectance x 10000", 1e-4),
    Convention(f"reflectance x 10000 with the offset of +{OFFSET_DN}", 1e-4, -OFFSET_DN * 1e-4),
)
COLOURS = Convention("8-bit colours, 0 to 255", 1 / 255)

_BRIGHTEST = 2.0
"""No reflectance or colour is above it, snow and glints included."""

_DIM = 0.1
"""Land is brighter in some band; water alone is so dark in all."""

_HIDDEN = (DARK_BELOW_OFFSET * 1e-4, 0.125, 0.15)
"""The darkest thousandth while the offset is still in: from and to, and up to in the second darkest
band. Land holds something nearly black in water, shadow or the swir of leaves; bare sand, which
does not, is dark in one band alone."""

_BELOW_NOISE = -0.02
"""Noise over water makes no reflectance darker than this."""

_NO_WORSE = 1.3


PerBand = float | Float[np.ndarray, " band"]


@dataclass(frozen=True)
class Sample:
    """Some thousands of a raster's pixels, band by band.

    ``dark`` and ``bright`` are their darkest thousandth and brightest hundredth, ``largest`` the
    largest value of all.
    """

    statistics: Statistics
    dark: Float[np.ndarray, " band"]
    bright: Float[np.ndarray, " band"]
    largest: float
    dtype: str

    @classmethod
    def of(cls, pixels: Shaped[np.ndarray, "band pixel"]) -> Sample:
        """The sample of these pixels, of which there is at least one."""
        values = pixels.astype(np.float64)
        dark, bright = np.quantile(values, (DARK_QUANTILE, 0.99), axis=1)
        statistics = Statistics(values.mean(1), values.std(1), values.shape[1])
        return cls(statistics, dark, bright, float(values.max()), str(pixels.dtype))

    @property
    def darkest(self) -> float:
        """The darkest thousandth of the darkest band."""
        return float(self.dark.min())

    def distance(self, trained: Statistics) -> float:
        """See ``Statistics.distance``."""
        return self.statistics.distance(trained)

    def read_as(self, scale: PerBand, offset: PerBand) -> Sample:
        """The same pixels as stored x ``scale`` + ``offset``."""
        of_stored = self.statistics
        statistics = Statistics(
            of_stored.mean * scale + offset, of_stored.std * scale, of_stored.num_pixels
        )
        dark, bright = self.dark * scale + offset, self.bright * scale + offset
        return replace(self, statistics=statistics, dark=dark, bright=bright)


def other_unit(
    stored: Sample, scale: PerBand, offset: PerBand, sensor: Sensor, trained: Statistics
) -> Convention | None:
    """The convention that explains stored numbers better than the one they are read in.

    None where they may be what they are taken for, and where the run's unit is no reflectance or
    colour between 0 and 1. A factor shows where all bands are darker than land or brighter than
    anything, and the other unit is nearer to the training. The offset shows in the darkest pixels:
    they lie just where it puts them, or far below zero where it was taken away twice. Eight bits
    are too few steps for a reflectance, and more are no colours.
    """
    if not (trained.mean.min() > 0 and trained.mean.max() < 1.5):
        return None
    read = stored.read_as(scale, offset)
    misread = not _DIM <= read.bright.max() <= _BRIGHTEST
    if stored.dtype == "uint8":
        return COLOURS if misread else None
    no_colours = sensor.dtype == "uint8" and stored.largest > 255
    for there, each in sorted(
        ((stored.read_as(each.scale, each.offset), each) for each in REFLECTANCES),
        key=lambda one: one[0].distance(trained),
    ):
        shift = float((there.statistics.mean - read.statistics.mean).max())
        if not np.allclose(there.statistics.std, read.statistics.std, rtol=0.01):
            found = no_colours or (misread and _explains(there, read, trained))
        elif shift < 0:
            found = _hides_offset(read) and (
                there.distance(trained) <= min(_NO_WORSE * read.distance(trained), FAR)
            )
        else:
            found = no_colours or (shift > 0 and read.darkest < _BELOW_NOISE)
        if found and there.darkest >= _BELOW_NOISE:
            return each
    return None


def _explains(there: Sample, read: Sample, trained: Statistics) -> bool:
    """Whether pixels are nearer to the training as they would be there, and no dark sea.

    The bands of land rise and fall as those of the training; those of water only fall.
    """
    if there.distance(trained) >= read.distance(trained):
        return False
    if read.bright.max() > _BRIGHTEST or len(trained.mean) < 3:
        return True
    from_mean = there.statistics.mean - there.statistics.mean.mean()
    return bool(from_mean @ trained.mean >= 0)


def _hides_offset(read: Sample) -> bool:
    least, most, second = _HIDDEN
    darkest = np.sort(read.dark)[:2]
    return bool(least <= darkest[0] <= most and darkest[-1] <= second)


def check_pixels(
    location: str,
    stored: Sample,
    scale: PerBand,
    offset: PerBand,
    contract: Contract,
    differences: Differences,
) -> None:
    """Refuse numbers of another unit, naming it, pixels of another processing level, and those far
    from the training.

    Raises:
        ContractError: they are, and the field (``unit``, ``level``, ``statistics``) is not allowed
            to differ.
    """
    trained = contract.statistics.as_arrays()
    read = stored.read_as(scale, offset)
    sensor = contract.sensor
    unit = other_unit(stored, scale, offset, sensor, trained)
    if unit:
        values = _figures(read.statistics.mean), _figures(trained.mean)
        differences.add(
            "unit",
            f"the numbers of {location} look like {unit.name}; as they are read, the means of its "
            f"bands are {values[0]}, and {values[1]} in the training ({sensor.unit})",
            _remedy(unit, scale, sensor) + _still_far(stored, unit, sensor, trained),
        )
        return
    level = level_of(read, sensor)
    if level is not None and level != sensor.name:
        blue = read.dark[sensor.band_names.index("B02")]
        differences.add(
            "level",
            f"{location} looks like {_LEVELS[level]}: the darkest thousandth of B02 is {blue:.3f}, "
            f"and air alone reflects {_AIR:g} or more at the top of the atmosphere; the run was "
            f"trained on {_LEVELS[sensor.name]}",
            "give a raster of that level, or pretrain a run on this one",
        )
    if sensor.standardised:
        check_statistics(contract, read.statistics, location, differences)


_LEVELS = {
    SENTINEL2_L1C.name: "level L1C, top of atmosphere",
    SENTINEL2_L2A.name: "level L2A, the surface",
}

_AIR = 0.05
"""Reflectance of air without dust at 490 nm, seen from above under a high sun; more under a low
one. Below, the darkest thousandth is the surface's. Source: Bodhaine et al. 1999, "On Rayleigh
Optical Depth Calculations" (optical depth 0.155)."""

_TOP = 0.075
"""From here on it is seen through air, where blue is brighter than green, and green than red. Of 27
scenes and crops of either level none was taken for the other one (``docs/lab-notes.md``)."""

_SNOW = 0.3
"""Mean blue from which on nothing dark need be there, and nobody can tell."""


def level_of(read: Sample, sensor: Sensor) -> str | None:
    """The Sentinel-2 sensor whose processing level pixels are of by their darkest: L1C still holds
    the light of the air, the more the shorter the wave. None where it cannot be told.
    """
    names = sensor.band_names
    if sensor.name not in _LEVELS or not {"B02", "B03", "B04"} <= {*names}:
        return None
    places = [names.index(name) for name in ("B02", "B03", "B04")]
    blue, green, red = read.dark[places]
    if read.statistics.mean[places[0]] > _SNOW:
        return None
    if blue < _AIR:
        return SENTINEL2_L2A.name
    return SENTINEL2_L1C.name if blue >= _TOP and blue > green > red else None


def _remedy(unit: Convention, scale: PerBand, sensor: Sensor) -> str:
    if (unit == COLOURS) != (sensor.dtype == "uint8"):  # no factor makes one of the other
        return f"give a raster in the run's unit, {sensor.unit}"
    if np.allclose(unit.scale, scale):
        return f"add --offset {unit.offset:g} if that is so"
    offset = f" --offset {unit.offset:g}" if unit.offset else ""
    return f"add --scale {unit.scale:.6g}{offset} if that is so"


def _still_far(stored: Sample, unit: Convention, sensor: Sensor, trained: Statistics) -> str:
    """What would be refused next, so that it is answered in the same go."""
    distance = stored.read_as(unit.scale, unit.offset).distance(trained)
    if not sensor.standardised or distance <= FAR:
        return ""
    return (
        f" (it would then lie {distance:.1f} standard deviations from what the run was trained on, "
        f"beyond {FAR:g}, which --allow statistics takes)"
    )


def _figures(values: Float[np.ndarray, " band"]) -> str:
    return ", ".join(f"{value:.3g}" for value in values)


# Looking

_PLACES = 3
_WINDOW_PX = 256


def sample_windows(shape: tuple[int, int]) -> Iterator[tuple[int, int, int, int]]:
    """(row, col, height, width) of at most nine windows spread over a raster."""
    starts = [sorted({round(f * max(n - _WINDOW_PX, 0)) for f in np.linspace(0, 1, _PLACES)})
              for n in shape]  # fmt: skip
    height, width = (min(_WINDOW_PX, size) for size in shape)
    for row in starts[0]:
        for col in starts[1]:
            yield row, col, height, width


def sample_of(read_stored: ReadStored, shape: tuple[int, int]) -> Sample | None:
    """The valid pixels in a bounded number of windows of a raster; None if there are none.

    Zeros in all bands are left out: many a raster that does not say so is filled with them.
    """
    found = []
    for window in sample_windows(shape):
        stored, valid = read_stored(*window)
        found.append(stored[:, valid & (stored != 0).any(0)])
    pixels = np.concatenate(found, axis=1)
    return Sample.of(pixels) if pixels.shape[1] else None


ReadStored = Callable[
    [int, int, int, int],
    tuple[Shaped[np.ndarray, "band row col"], Bool[np.ndarray, "row col"]],
]
"""(row, col, height, width), inside the raster -> stored values in the run's bands, and which are
valid."""
