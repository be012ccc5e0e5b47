"""How a person says that the numbers of a raster are to be read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from bharateo.errors import ConfigError

ContractField = Literal["bands", "unit", "level", "statistics", "resolution", "domain"]
"""A field of a run's contract that a person may take on themselves."""


def _bands(_: Any, words: Sequence[Any]) -> tuple[str, ...] | dict[str, int]:
    """``B02,B03`` on the command line as names in order, ``B04=3,B03=2`` as places from 1."""
    text = words[0].value
    parts = [part.strip() for part in text.split(",")]
    pairs = [part.partition("=") for part in parts]
    if all(name and not equals for name, equals, _ in pairs):
        return tuple(parts)
    places = {name.strip(): int(place) for name, _, place in pairs if place.isdecimal()}
    if len(places) != len(pairs) or not all(places) or not all(places.values()):
        raise ConfigError(
            f"--bands {text!r} is neither names in the file's order (B02,B03,B04) nor each name "
            "with its number in the file, counted from 1 (B04=3,B03=2)"
        )
    return places


@dataclass(frozen=True)
class Reading:
    """How the numbers of a raster are to be read, where the file does not say or says it wrong.

    Args:
        bands: names of the file's bands, in its order, separated by commas; or NAME=NUMBER for
            some of them, counted from 1 (default: what the file calls them)
        scale: physical value = stored value x SCALE + OFFSET (default: the file's own scale, else
            that of the run's sensor, 0.0001 for Sentinel-2)
        offset: see --scale, e.g. -0.1 (default: 0 with --scale, else as there)
        nodata: stored value of a pixel without data (default: the file's own); nan: no value is
        mask: pixels to leave out: scl (by Sentinel-2's scene classes), none, or where a layer, a
            band of the raster or a file, is 0; or by a rule: QA_PIXEL:bits=1,3,4 or
            clouds.tif:drop=2,3 or scl.tif:scl (default: scl where there is one; masks and alpha in
            the file always count)
        resample: bring the raster to the run's pixel (10 m without a run) by this method
        allow: go on although this field of the run's contract differs; what is made says so;
            repeat for several
    """

    bands: Annotated[
        tuple[str, ...] | Mapping[str, int] | None,
        Parameter(converter=_bands, n_tokens=1, accepts_keys=False, metavar="NAMES"),
    ] = None
    scale: float | None = None
    offset: float | None = None
    nodata: float | None = None
    mask: Annotated[str | None, Parameter(metavar="LAYER")] = None
    resample: Literal["bilinear", "nearest"] | None = None
    allow: frozenset[ContractField] = frozenset()
