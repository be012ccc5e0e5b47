"""Sensors: band order, stored unit, scale and offset, nodata, composites and display range."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from bharateo.errors import ConfigError


@dataclass(frozen=True)
class Band:
    """One band: its name in the product, native resolution, and centre wavelength where known."""

    name: str
    resolution_m: float
    wavelength_nm: float | None = None


@dataclass(frozen=True)
class Sensor:
    """What the numbers of an image layer mean.

    Physical value = stored value x ``scale`` + ``offset``, in ``unit``. ``composites`` name the
    three bands shown as red, green and blue, the first one by default; ``display_range`` is the
    range of physical values stretched to black..white. ``standardised`` says whether a model
    subtracts the mean and divides by the standard deviation of the train split (reflectances) or
    takes the values as they are (colours in [0, 1]).
    """

    name: str
    title: str
    bands: tuple[Band, ...]
    dtype: Literal["uint8", "uint16"]
    scale: float
    offset: float
    unit: str
    composites: Mapping[str, tuple[str, str, str]]
    display_range: tuple[float, float]
    standardised: bool
    notes: str = ""
    attribution: tuple[str, ...] = field(default=())

    @property
    def num_bands(self) -> int:
        """Number of bands, the channels of a model's input."""
        return len(self.bands)

    @property
    def band_names(self) -> tuple[str, ...]:
        """Band names in stored order."""
        return tuple(band.name for band in self.bands)

    def composite_indices(self, composite: str | None = None) -> tuple[int, int, int]:
        """Indices of the bands shown as red, green, blue (the first composite by default)."""
        names = self.composites[composite or next(iter(self.composites))]
        red, green, blue = (self.band_names.index(name) for name in names)
        return red, green, blue

    def to_json(self) -> dict[str, Any]:
        """The sensor as plain JSON, as stored in datasets and contracts."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Sensor:
        """The sensor that ``to_json`` wrote.

        Raises:
            ConfigError: a field is missing or unknown.
        """
        try:
            return cls(
                **{
                    **record,
                    "bands": tuple(Band(**band) for band in record["bands"]),
                    "composites": {k: tuple(v) for k, v in record["composites"].items()},
                    "display_range": tuple(record["display_range"]),
                    "attribution": tuple(record["attribution"]),
                }
            )
        except (TypeError, KeyError) as error:
            raise ConfigError(f"sensor record is incomplete or unknown: {error}") from error


WORLDCOVER_PALETTE = Sensor(
    name="worldcover-palette",
    title="ESA WorldCover, palette colours",
    bands=(Band("red", 10), Band("green", 10), Band("blue", 10)),
    dtype="uint8",
    scale=1 / 255,
    offset=0.0,
    unit="palette colour, 0 to 1",
    composites={"palette colour": ("red", "green", "blue")},
    display_range=(0.0, 1.0),
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

SENTINEL2_L1C = Sensor(
    name="sentinel2-l1c",
    title="Sentinel-2 L1C, ten bands at 10 m",
    bands=_S2_TEN_BANDS,
    dtype="uint16",
    scale=1e-4,
    offset=0.0,
    unit="top-of-atmosphere reflectance",
    composites={"true colour B4-B3-B2": ("B04", "B03", "B02"),
                "false colour B8-B4-B3": ("B08", "B04", "B03")},
    display_range=(0.08, 0.20),
    standardised=True,
    notes="Level 1C: top of atmosphere, not corrected for the air, and compressed with loss.",
)  # fmt: skip
