"""Sensors: band order, stored unit, scale and offset, nodata, composites and their stretches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, StringConstraints, model_validator

from bharateo.artefacts import Number, checked
from bharateo.errors import ConfigError

_Line = Annotated[str, StringConstraints(min_length=1, max_length=500)]
_Positive = Annotated[Number, Field(gt=0, lt=1e12)]
_Bounded = Annotated[Number, Field(gt=-1e12, lt=1e12)]
_STRICT = ConfigDict(strict=True, extra="forbid")
"""Of what is read from a file, which may come from anybody; who makes one in Python is trusted."""


@dataclass(frozen=True)
class Band:
    """One band: its name in the product, native resolution, and centre wavelength where known."""

    __pydantic_config__ = _STRICT

    name: _Line
    resolution_m: _Positive
    wavelength_nm: _Positive | None = None


@dataclass(frozen=True)
class Composite:
    """Three bands shown as red, green and blue, with the linear stretch they are shown under.

    ``low`` and ``high`` are the physical values drawn black and full, alike for the three bands,
    so that the hue says how the bands compare.
    """

    __pydantic_config__ = _STRICT

    bands: tuple[_Line, _Line, _Line]
    low: Number
    high: Number

    @model_validator(mode="after")
    def _stretches(self) -> Composite:
        if not self.low < self.high:
            raise ValueError(f"low {self.low:g} is not below high {self.high:g}")
        return self

    @property
    def limits(self) -> tuple[tuple[float, float], ...]:
        """What is drawn black and full of red, green and blue."""
        return ((self.low, self.high),) * 3


@dataclass(frozen=True)
class BandwiseComposite(Composite):
    """Three bands that are each stretched by themselves: haze, which lightens blue the most, is
    taken off, and the hue no longer says how the bands compare. For showing alone, never stored.
    """

    of_bands: tuple[tuple[float, float], ...]

    @property
    def limits(self) -> tuple[tuple[float, float], ...]:
        """What is drawn black and full of red, green and blue."""
        return self.of_bands


@dataclass(frozen=True)
class Sensor:
    """What the numbers of an image layer mean.

    Physical value = stored value x ``scale`` + ``offset``, in ``unit``. ``composites`` are the
    ways to show it, by the name captions use; the first one is the default. ``standardised`` says
    whether a model subtracts the mean and divides by the standard deviation of the train split
    (reflectances) or takes the values as they are (colours in [0, 1]).
    """

    __pydantic_config__ = _STRICT

    name: _Line
    title: _Line
    bands: Annotated[tuple[Band, ...], Field(min_length=1, max_length=10_000)]
    dtype: Literal["uint8", "uint16"]
    scale: _Bounded
    offset: _Bounded
    unit: _Line
    composites: Annotated[Mapping[_Line, Composite], Field(min_length=1)]
    standardised: bool
    notes: Annotated[str, StringConstraints(max_length=10_000)] = ""
    attribution: tuple[Annotated[str, StringConstraints(max_length=10_000)], ...] = ()

    @model_validator(mode="after")
    def _fits_together(self) -> Sensor:
        if self.scale == 0:
            raise ValueError("scale is 0")
        names = self.band_names
        if len({*names}) < len(names):
            raise ValueError("bands holds a name twice")
        for name, composite in self.composites.items():
            if not {*composite.bands} <= {*names}:
                raise ValueError(f"composite {name!r} shows a band that is none of bands")
        return self

    @property
    def num_bands(self) -> int:
        """Number of bands, the channels of a model's input."""
        return len(self.bands)

    @property
    def band_names(self) -> tuple[str, ...]:
        """Band names in stored order."""
        return tuple(band.name for band in self.bands)

    @property
    def default_composite(self) -> str:
        """The name of the composite shown where there is room for one."""
        return next(iter(self.composites))

    def composite_indices(self, composite: str | None = None) -> tuple[int, int, int]:
        """Indices of the bands shown as red, green, blue (the first composite by default)."""
        bands = self.composites[composite or self.default_composite].bands
        red, green, blue = (self.band_names.index(name) for name in bands)
        return red, green, blue

    def with_bands(self, names: Sequence[str]) -> Sensor:
        """The same sensor with these bands alone, in this order.

        Composites that lack a band go. Where none is left, the first three bands (or the first
        one, as grey) are shown under the stretch of the default composite.

        Raises:
            ConfigError: no band is named, or one is unknown or named twice.
        """
        _check_bands(names, self)
        by_name = {band.name: band for band in self.bands}
        kept = {n: one for n, one in self.composites.items() if set(one.bands) <= set(names)}
        subset = len(names) < self.num_bands
        return replace(
            self,
            title=_subset_title(self.title, names) if subset else self.title,
            bands=tuple(by_name[name] for name in names),
            composites=kept or _first_bands(names, self.composites[self.default_composite]),
        )

    def to_json(self) -> dict[str, Any]:
        """The sensor as plain JSON, as stored in datasets and contracts."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Sensor:
        """The sensor that ``to_json`` wrote.

        Raises:
            ConfigError: a field is missing, unknown, of another type or out of bounds.
        """
        remedy = "build the dataset, and train the run, again with this version of bharateo"
        return checked(cls, record, "sensor record is incomplete or unknown", ConfigError, remedy)


def _check_bands(names: Sequence[str], sensor: Sensor) -> None:
    unknown = [name for name in names if name not in sensor.band_names]
    repeated = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    wrong = [f"{name!r} is unknown" for name in unknown]
    wrong += [f"{name!r} is named twice" for name in repeated]
    if not names:
        wrong = ["none is named"]
    if wrong:
        raise ConfigError(
            f"bands of {sensor.name}: {', '.join(wrong)}; choose some of "
            f"{', '.join(sensor.band_names)}, each once"
        )


def _subset_title(title: str, names: Sequence[str]) -> str:
    """A title with the bands named, e.g. ``Sentinel-2 L2A, B04 B03 B02 at 10 m``."""
    product, _, rest = title.partition(", ")
    _, at, grid = rest.partition(" at ")
    return f"{product}, {' '.join(names)}{at}{grid}"


def _first_bands(names: Sequence[str], stretch: Composite) -> dict[str, Composite]:
    """A composite for bands that no composite of the sensor fits."""
    if len(names) < 3:
        grey = (names[0], names[0], names[0])
        return {"first band, grey": replace(stretch, bands=grey)}
    first = (names[0], names[1], names[2])
    return {f"bands {'-'.join(first)}": replace(stretch, bands=first)}


WORLDCOVER_PALETTE = Sensor(
    name="worldcover-palette",
    title="ESA WorldCover, palette colours",
    bands=(Band("red", 10), Band("green", 10), Band("blue", 10)),
    dtype="uint8",
    scale=1 / 255,
    offset=0.0,
    unit="palette colour, 0 to 1",
    composites={"palette colour": Composite(("red", "green", "blue"), 0.0, 1.0)},
    standardised=False,
    notes="A rendering of the label map itself: the class of a visible patch can be read off.",
)

_S2_TEN_BANDS = (
    Band("B02", 10, 492.4),
    Band("B03", 10, 559.8),
    Band("B04", 10, 664.6),
    Band("B05", 20, 704.1),
    Band("B06", 20, 740.5),
    Band("B07", 20, 782.8),
    Band("B08", 10, 832.8),
    Band("B8A", 20, 864.7),
    Band("B11", 20, 1613.7),
    Band("B12", 20, 2202.4),
)
"""Source: Sentinel-2 MSI spectral response, S2A centre wavelengths."""

BAND_SETS: Mapping[str, tuple[str, ...]] = {
    "10band": tuple(band.name for band in _S2_TEN_BANDS),
    "rgbn": ("B02", "B03", "B04", "B08"),
    "rgb": ("B04", "B03", "B02"),
    "liss": ("B03", "B04", "B08", "B11"),
}
"""Bands of a Sentinel-2 sensor that are asked for by one name, for ``Sensor.with_bands``; ``liss``
are those nearest to the four of LISS-III on Resourcesat (green, red, NIR, SWIR at 1.6 um)."""


def named_bands(names: Sequence[str]) -> tuple[str, ...]:
    """Band names with the sets among them spelt out."""
    return tuple(band for name in names for band in BAND_SETS.get(name, (name,)))


_TRUE_COLOUR, _FALSE_COLOUR = ("B04", "B03", "B02"), ("B08", "B04", "B03")

SENTINEL2_L1C = Sensor(
    name="sentinel2-l1c",
    title="Sentinel-2 L1C, ten bands at 10 m",
    bands=_S2_TEN_BANDS,
    dtype="uint16",
    scale=1e-4,
    offset=0.0,
    unit="top-of-atmosphere reflectance",
    composites={
        "true colour B4-B3-B2": Composite(_TRUE_COLOUR, 0.08, 0.20),
        "false colour B8-B4-B3": Composite(_FALSE_COLOUR, 0.05, 0.28),
    },
    standardised=True,
    notes="Level 1C: top of atmosphere, not corrected for the air, and compressed with loss.",
)

SENTINEL2_L2A = Sensor(
    name="sentinel2-l2a",
    title="Sentinel-2 L2A, ten bands at 10 m",
    bands=_S2_TEN_BANDS,
    dtype="uint16",
    scale=1e-4,
    offset=0.0,
    unit="surface reflectance",
    composites={
        "true colour B4-B3-B2": Composite(_TRUE_COLOUR, 0.0, 0.30),
        "false colour B8-B4-B3": Composite(_FALSE_COLOUR, 0.0, 0.45),
    },
    standardised=True,
    notes=(
        "Level 2A: surface reflectance, harmonised: the offset of -1000 that newer processing "
        "baselines add is already removed. A stored 0 is nodata."
    ),
)
