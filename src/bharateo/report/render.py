"""Layers as pictures: stored or physical values to RGB, classes to colours, arrays to data URIs.

Axes: band row col | row col rgb. RGB is uint8. A pixel without a value is never black, which is
a colour the data may hold: it is hatched grey.
"""

from __future__ import annotations

import base64
import io
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Shaped, UInt8
from matplotlib import colormaps
from PIL import Image

from bharateo.landcover import IGNORE, class_colours
from bharateo.pixels.picture import SHOWN, hatch, stretched
from bharateo.sensor import BandwiseComposite, Composite, Sensor

if TYPE_CHECKING:
    from bharateo.chips.store import Dataset

HIDDEN_GREY = (134, 136, 138)
"""Shown in place of a masked patch: mid grey, distinct on light and dark pages alike."""

_LOOKED_AT, _THINNED_BY = 32, 4
"""Chips that a dataset's stretch is taken from, and every how many of their rows and columns."""


def physical(stored: Shaped[np.ndarray, "*shape"], sensor: Sensor) -> Float[np.ndarray, "*shape"]:
    """Stored values in the sensor's unit, float32."""
    values: np.ndarray = stored.astype(np.float32) * np.float32(sensor.scale)
    return values + np.float32(sensor.offset)


def composite_rgb(
    image: Float[np.ndarray, "band row col"],
    sensor: Sensor,
    valid: Bool[np.ndarray, "row col"] | None = None,
    composite: str | None = None,
) -> UInt8[np.ndarray, "row col rgb"]:
    """Three bands of an image in physical units under the composite's own linear stretch.

    Values outside the stretch saturate; pixels that are not ``valid`` are hatched.
    """
    name = composite or sensor.default_composite
    low, high = np.array(sensor.composites[name].limits, np.float32).T[..., None, None]
    shown = image[list(sensor.composite_indices(name))]
    rgb = stretched(np.clip(np.where(np.isnan(shown), low, shown), low, high), low, high)
    return rgb if valid is None else hatch(rgb, ~valid)


def as_shown(dataset: Dataset) -> Sensor:
    """The dataset's sensor with the stretch that all pictures of it have: every band of a composite
    from 2 % to 98 % of what a few chips hold, to two digits.

    As declared stay palette colours, a grey band, and a range that the configuration gives.
    """
    sensor, recipe = dataset.sensor, dataset.recipe or {}
    given = (recipe.get("geotiff") or {}).get("display_range")
    if not sensor.standardised or (given and recipe.get("source") == "geotiff"):
        return sensor
    chips = np.unique(np.linspace(0, dataset.num_chips - 1, _LOOKED_AT).astype(int)).tolist()
    thin = slice(None, None, _THINNED_BY)
    seen = [
        dataset.image(chip)[:, thin, thin][:, dataset.valid(chip)[thin, thin]] for chip in chips
    ]
    values = physical(np.concatenate(seen, axis=1), sensor)
    composites: dict[str, Composite] = {}
    for name, one in sensor.composites.items():
        shown = values[list(sensor.composite_indices(name))]
        low, high = np.quantile(shown, SHOWN, axis=1) if shown.size else (np.zeros(3), np.zeros(3))
        limits = tuple(
            (float(f"{start:.2g}"), float(f"{end:.2g}"))
            for start, end in zip(low.tolist(), high.tolist(), strict=True)
        )
        bandwise = len({*one.bands}) == 3 and all(start < end for start, end in limits)
        composites[name] = (
            BandwiseComposite(one.bands, one.low, one.high, limits) if bandwise else one
        )
    return replace(sensor, composites=composites)


def stretch_note(sensor: Sensor, composite: str | None = None, brief: bool = False) -> str:
    """What the colours of a composite are, for its caption; ``brief``: without ranges."""
    name = composite or sensor.default_composite
    one, unit = sensor.composites[name], sensor.unit.split(",")[0]
    if (one.low, one.high) == (0.0, 1.0) and not sensor.standardised:
        return f"{name}, shown as it is"
    if isinstance(one, BandwiseComposite):
        words = f"{name}, each band stretched linearly by itself from 2 % to 98 % of the dataset's"
        ranges = ", ".join(
            f"{band} {low:g} to {high:g}"
            for band, (low, high) in zip(one.bands, one.limits, strict=True)
        )
        return f"{words} values{'' if brief else f' ({ranges} {unit})'}, alike in all pictures"
    return f"{name}, {one.low:g} to {one.high:g} {unit} stretched linearly from black to white"


def class_rgb(class_ids: UInt8[np.ndarray, "row col"]) -> UInt8[np.ndarray, "row col rgb"]:
    """A class map in the classes' colours; pixels without a label are hatched."""
    return hatch(class_colours()[class_ids], class_ids == IGNORE)


def paint(
    rgb: UInt8[np.ndarray, "row col rgb"],
    where: Bool[np.ndarray, "row col"],
    colour: tuple[int, int, int] = HIDDEN_GREY,
) -> UInt8[np.ndarray, "row col rgb"]:
    """A copy of the picture with one flat colour where told."""
    return np.where(where[..., None], np.array(colour, np.uint8), rgb)


def ramp_rgb(values: Float[np.ndarray, "row col"], top: float) -> UInt8[np.ndarray, "row col rgb"]:
    """Values from 0 to ``top`` on a perceptually even dark-to-bright ramp."""
    share = np.clip(np.nan_to_num(values) / top if top > 0 else np.zeros_like(values), 0, 1)
    rgb: np.ndarray = colormaps["inferno"](share, bytes=True)[..., :3]
    return rgb


def ramp_css() -> str:
    """The same ramp as a CSS gradient, for legends."""
    stops = colormaps["inferno"](np.linspace(0, 1, 9), bytes=True)[:, :3]
    return "linear-gradient(90deg," + ",".join(f"rgb({r},{g},{b})" for r, g, b in stops) + ")"


def upscale(
    tokens: Shaped[np.ndarray, "token_row token_col *rest"], factor: int
) -> Shaped[np.ndarray, "row col *rest"]:
    """Every token's value repeated over the pixels of its patch."""
    return tokens.repeat(factor, axis=0).repeat(factor, axis=1)


def png_uri(rgb: UInt8[np.ndarray, "row col rgb"]) -> str:
    """A picture as a lossless PNG data URI, with a palette where 256 colours are enough."""
    packed = rgb.astype(np.uint32) @ np.array([65536, 256, 1], np.uint32)
    colours, index = np.unique(packed, return_inverse=True)
    picture = Image.fromarray(np.ascontiguousarray(rgb))
    if len(colours) <= 256:
        picture = Image.fromarray(index.reshape(packed.shape).astype(np.uint8), "P")
        channels = [colours >> 16, colours >> 8 & 255, colours & 255]
        picture.putpalette(np.stack(channels, -1).astype(np.uint8).tobytes())
    return _encoded(picture, "png", optimize=True)


def photo_uri(rgb: UInt8[np.ndarray, "row col rgb"]) -> str:
    """A large picture as a data URI: JPEG if it has many colours, which is a tenth of the size."""
    if few_colours(rgb):
        return png_uri(rgb)
    return _encoded(Image.fromarray(np.ascontiguousarray(rgb)), "jpeg", quality=80, subsampling=0)


def few_colours(rgb: UInt8[np.ndarray, "row col rgb"]) -> bool:
    """Whether a picture has at most 256 colours, as a class map and no photograph has."""
    return len(np.unique(rgb.astype(np.uint32) @ np.array([65536, 256, 1], np.uint32))) <= 256


def _encoded(picture: Image.Image, kind: str, **options: object) -> str:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
