"""A raster as a picture: colours or classes, with legend, scale bar and attribution."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyproj
from jaxtyping import Bool, Float, UInt8
from odc.geo.geobox import GeoBox
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from bharateo.files import write_bytes
from bharateo.geography import to_lonlat
from bharateo.landcover import LandCoverClass

PICTURE_MARK = "BharatEO map picture"
"""In the text of every one: a picture without it is a person's own."""

MOST_PX, LEAST_PX = 1400, 700
"""Of the longer side of the ground shown: a large map is thinned, a small one enlarged."""

SHOWN = (0.02, 0.98)
"""Quantiles of a band that are drawn black and white."""

_TRUE_COLOUR = (("B04", "B03", "B02"), ("red", "green", "blue"))
_HATCH, _HATCH_PX = ((176, 176, 172), (146, 146, 143)), 4
_PAPER, _INK, _MUTED, _RULE = (255, 255, 255), (28, 30, 32), (92, 97, 102), (160, 160, 156)
_EDGE, _KEY_PX, _LINE_PX, _LEGEND_PX = 24, 18, 28, 300
_OTHER_FONTS = (
    "NotoSansDevanagari-Regular.ttf", "Lohit-Devanagari.ttf", "FreeSans.ttf", "Nirmala.ttf",
    "Mangal.ttf", "Kohinoor.ttc", "DejaVuSans.ttf",
)  # fmt: skip
"""Where letters other than Latin ones may be found, on Linux, Windows and macOS."""

_GLOBE = pyproj.Geod(ellps="WGS84")
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def hatch(
    rgb: UInt8[np.ndarray, "row col rgb"], where: Bool[np.ndarray, "row col"]
) -> UInt8[np.ndarray, "row col rgb"]:
    """A copy of the picture, hatched diagonally in two greys where told."""
    row, col = np.indices(where.shape)
    stripe = (row + col) // _HATCH_PX % 2
    return np.where(where[..., None], np.array(_HATCH, np.uint8)[stripe], rgb)


def stretched(
    values: Float[np.ndarray, "band row col"],
    low: float | Float[np.ndarray, "band 1 1"],
    high: float | Float[np.ndarray, "band 1 1"],
) -> UInt8[np.ndarray, "row col rgb"]:
    """One band or three, ``low`` black and ``high`` white."""
    share = np.clip((values - low) / np.maximum(high - low, 1e-9), 0, 1)
    rgb = np.broadcast_to(np.rint(255 * share).astype(np.uint8), (3, *values.shape[1:]))
    return np.moveaxis(rgb, 0, -1)


def bands_shown(names: Sequence[str]) -> list[int]:
    """Places of the bands to show a raster in: true colour, else the first three or the first."""
    chosen = next(
        (each for each in _TRUE_COLOUR if {*each} <= {*names}),
        names[:3] if len(names) > 2 else names[:1],
    )
    return [names.index(name) for name in chosen]


@dataclass(frozen=True)
class Picture:
    """The ground of a raster as pixels, hatched where it has no data; the pixels of a cell, along
    and down, and its width in metres; the classes shown, of a map.
    """

    rgb: UInt8[np.ndarray, "row col rgb"]
    scale: tuple[float, float]
    cell_m: float
    has_gaps: bool
    classes: tuple[LandCoverClass, ...] = ()


def thinning(geobox: GeoBox, most_px: int = MOST_PX) -> float:
    """One cell in how many, along and down, a picture of a grid shows."""
    (height, width), (across, down) = geobox.shape, _cell_metres(geobox)
    return max(max(height * down, width * across) / most_px / min(across, down), 1.0)


def picture_of(
    rgb: UInt8[np.ndarray, "row col rgb"],
    known: Bool[np.ndarray, "row col"],
    geobox: GeoBox,
    most_px: int = MOST_PX,
    classes: tuple[LandCoverClass, ...] = (),
) -> Picture:
    """The cells of a grid, or one in ``thinning``, as pixels that are as wide as they are high on
    the ground.
    """
    (height, width), (across, down) = geobox.shape, _cell_metres(geobox)
    longest = max(height * down, width * across)
    shown = min(most_px, max(LEAST_PX, round(longest / min(across, down))))
    size = (
        max(round(shown * width * across / longest), 1),
        max(round(shown * height * down / longest), 1),
    )
    gaps = Image.fromarray(~known).resize(size, Image.Resampling.NEAREST)
    picture = Image.fromarray(rgb).resize(size, Image.Resampling.NEAREST)
    hatched = hatch(np.asarray(picture), np.asarray(gaps))
    scale = (size[0] / width, size[1] / height)
    return Picture(hatched, scale, across, not known.all(), classes)


def _cell_metres(geobox: GeoBox) -> tuple[float, float]:
    """Width and height on the ground of the cell amid a grid."""
    height, width = geobox.shape
    col, row = width / 2, height / 2
    points = np.array([[col, col + 1, col], [row, row, row + 1]])
    (lon, east, south), (lat, east_lat, south_lat) = to_lonlat(geobox, points)
    return (
        _GLOBE.inv(lon, lat, east, east_lat)[2],
        _GLOBE.inv(lon, lat, south, south_lat)[2],
    )


def write_picture(path: Path, shown: Picture, attribution: Sequence[str]) -> None:
    """Write a picture with legend, scale bar and attribution as PNG; the same gives the same bytes.

    Raises:
        StorageError: the disk is full or refuses.
    """
    height, width = shown.rgb.shape[:2]
    beside = height > width and bool(shown.classes)  # else what is to be read stands below
    font, small = ImageFont.load_default(16), ImageFont.load_default(13)
    keys = [(*_written(each, font), each.colour) for each in shown.classes]
    columns = 1 if beside else max(min(len(keys) + 1, width // _LEGEND_PX), 1)
    rows = -(-(len(keys) + shown.has_gaps) // columns)
    legend_px = rows * _LINE_PX
    notes = _wrapped("; ".join(attribution), small, (width + beside * _LEGEND_PX))
    body = max(height, legend_px + 3 * _LINE_PX) if beside else height + _EDGE + legend_px + 60
    size = (
        2 * _EDGE + width + beside * (_LEGEND_PX + _EDGE),
        2 * _EDGE + body + (len(notes) + 1) * 18,
    )
    page = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(page)
    page.paste(Image.fromarray(shown.rgb), (_EDGE, _EDGE))
    draw.rectangle((_EDGE - 1, _EDGE - 1, _EDGE + width, _EDGE + height), outline=_RULE)
    left, top = (2 * _EDGE + width, _EDGE) if beside else (_EDGE, 2 * _EDGE + height)
    for number in range(len(keys) + shown.has_gaps):
        x = left + number // rows * _LEGEND_PX
        y = top + number % rows * _LINE_PX
        box = (x, y, x + _KEY_PX, y + _KEY_PX)
        if number < len(keys):
            name, face, colour = keys[number]
            draw.rectangle(box, fill=colour, outline=_RULE)
        else:
            name, face, square = "no data", font, np.zeros((_KEY_PX, _KEY_PX, 3), np.uint8)
            page.paste(Image.fromarray(hatch(square, square[..., 0] == 0)), (x, y))
        text = _cut(name.replace("_", " "), face, _LEGEND_PX - _KEY_PX - 24)
        draw.text((x + _KEY_PX + 8, y + _KEY_PX // 2), text, _INK, face, "lm")
    metres_per_px = shown.cell_m / shown.scale[0]
    bar_top = top + legend_px + 14
    _scale_bar(draw, (left, bar_top), metres_per_px, min(width, _LEGEND_PX), small)
    for number, line in enumerate(notes):
        draw.text((_EDGE, size[1] - _EDGE - 18 * (len(notes) - number)), line, _MUTED, small)
    content, made_by = io.BytesIO(), PngInfo()
    made_by.add_text("Software", PICTURE_MARK)
    page.save(content, "png", pnginfo=made_by, optimize=True)
    write_bytes(path, content.getbuffer())


def _scale_bar(
    draw: ImageDraw.ImageDraw,
    at: tuple[int, int],
    metres_per_px: float,
    most_px: int,
    font: Font,
) -> None:
    """A bar of 1, 2 or 5 x 10^n metres, which holds at the map's middle."""
    most = metres_per_px * most_px * 0.8
    lengths = (factor * 10.0**power for power in range(8, -4, -1) for factor in (5, 2, 1))
    metres = next(each for each in lengths if each <= most)
    px, (x, y) = round(metres / metres_per_px), at
    draw.rectangle((x, y, x + px, y + 6), fill=_PAPER, outline=_INK)
    draw.rectangle((x, y, x + px // 2, y + 6), fill=_INK)
    shown = f"{metres / 1000:g} km" if metres >= 1000 else f"{metres:g} m"
    draw.text((x, y + 10), shown, _INK, font)


def _written(each: LandCoverClass, font: Font) -> tuple[str, Font]:
    """A class's name with a font that has all its letters; its number where there is none here."""
    name = "".join(letter for letter in each.name if letter.isprintable())
    fonts = [font]
    for other in _OTHER_FONTS:
        with contextlib.suppress(OSError):
            fonts.append(ImageFont.truetype(other, 16))
    for face in fonts:
        missing = bytes(face.getmask("\U0010fffd"))
        if name.strip() and all(bytes(face.getmask(e)) != missing for e in name if e.strip()):
            return name, face
    return f"class {each.id}", font


def _cut(text: str, font: Font, most_px: float) -> str:
    while len(text) > 1 and font.getlength(text) > most_px:
        text = f"{text[:-2]}…"
    return text


def _wrapped(text: str, font: Font, most_px: float) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > most_px:
            lines.append(word)
        else:
            lines[-1] = longer
    return [line for line in lines if line]
