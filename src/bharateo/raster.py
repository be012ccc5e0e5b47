"""Pixels on a grid; the only module that opens rasters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Shaped
from odc.geo.geobox import GeoBox


@dataclass(frozen=True)
class Raster:
    """Stored values on a GeoBox, bands first, with the validity of every pixel.

    ``provenance`` says where the pixels come from (URLs, ETags, dates), as plain JSON.
    """

    values: Shaped[np.ndarray, "band row col"]
    valid: Bool[np.ndarray, "row col"]
    geobox: GeoBox
    provenance: Mapping[str, Any] = field(default_factory=dict)
