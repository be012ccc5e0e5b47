"""A contact sheet: the place asked for and the places found, side by side, each with its ground."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from bharateo.chips.store import Dataset
from bharateo.errors import CorruptRasterError, SourceError, UnreachableError
from bharateo.files import write_bytes
from bharateo.inference.area import Area
from bharateo.inference.inputs import opened
from bharateo.inference.search import bounds_in_chips, dataset_of, pixel_bounds
from bharateo.pixels.picture import bands_shown, hatch, stretched
from bharateo.pixels.raster import Reader
from bharateo.reading import Reading
from bharateo.report.render import as_shown, composite_rgb, physical

SHEET_MARK = "bharateo search"
"""The software that a sheet says it is of."""

CONTEXT = 3
"""Side of what is shown, in sides of the place."""

_TILE_PX, _GAP_PX, _TEXT_PX, _COLUMNS = 192, 12, 34, 7
_PAPER, _INK, _MARK, _ASKED = (255, 255, 255), (40, 42, 44), (255, 255, 255), (214, 64, 39)

Look = tuple[Float[np.ndarray, "band row col"], Bool[np.ndarray, "row col"]]
Tile = tuple[UInt8[np.ndarray, "row col rgb"], tuple[float, float, float, float]]
"""A picture, and the place in it: left, top, right, bottom in its pixels."""


def write_contact_sheet(path: Path, found: gpd.GeoDataFrame, area: Area) -> bool:
    """Write the sheet as a PNG; False, and no sheet, where the area's pixels cannot be had.

    ``found`` is what ``inference.search`` found.
    """
    source = area.provenance.get("source", {})
    if dataset := dataset_of(area):
        tiles = _dataset_tiles(found, dataset)
    elif "bands_in_file" in source and (file := _raster(source["input"])):
        tiles = _raster_tiles(found, file, source)
    else:
        return False
    columns = min(_COLUMNS, len(tiles))
    rows = -(-len(tiles) // columns)
    across, down = _TILE_PX + _GAP_PX, _TILE_PX + _TEXT_PX + _GAP_PX
    sheet = Image.new("RGB", (columns * across + _GAP_PX, rows * down + _GAP_PX), _PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for number, ((rgb, place), row) in enumerate(zip(tiles, found.to_dict("records"), strict=True)):
        x, y = number % columns * across + _GAP_PX, number // columns * down + _GAP_PX
        picture = Image.fromarray(np.ascontiguousarray(rgb))
        sheet.paste(picture.resize((_TILE_PX, _TILE_PX), Image.Resampling.NEAREST), (x, y))
        left, top, right, bottom = (each * _TILE_PX / len(rgb) for each in place)
        colour = _ASKED if row["rank"] == 0 else _MARK
        draw.rectangle((x + left, y + top, x + right, y + bottom), outline=colour, width=2)
        rank = "like this" if row["rank"] == 0 else f"{row['rank']}   {row['similarity']:.2f}"
        caption = f"{rank}   {row.get('class') or ''}\n{row['lon']:.4f}, {row['lat']:.4f}"
        draw.multiline_text((x, y + _TILE_PX + 3), caption, _INK, font, spacing=2)
    content, made_by = io.BytesIO(), PngInfo()
    made_by.add_text("Software", SHEET_MARK)
    sheet.save(content, "png", pnginfo=made_by)
    write_bytes(path, content.getbuffer())
    return True


def _raster(location: str) -> Reader | None:
    """The raster as it lies there, whatever was masked in it; None where it is no more."""
    try:
        return opened(location, Reading(mask="none"))[0]
    except (CorruptRasterError, UnreachableError):
        raise
    except SourceError:
        return None


def _dataset_tiles(found: gpd.GeoDataFrame, dataset: Dataset) -> list[Tile]:
    """The sensor's own composite; what lies outside a place's chip is hatched."""
    tiles, sensor = [], as_shown(dataset)
    for chip, bounds in zip(found["chip"], bounds_in_chips(found, dataset), strict=True):
        image, valid = physical(dataset.image(chip), sensor), dataset.valid(chip)

        def read(rows: slice, cols: slice, image: Any = image, valid: Any = valid) -> Look:
            return image[:, rows, cols], valid[rows, cols]

        (pixels, known), place = _around(bounds, valid.shape, read)
        tiles.append((composite_rgb(pixels, sensor, known), place))
    return tiles


def _raster_tiles(found: gpd.GeoDataFrame, file: Reader, source: Mapping[str, Any]) -> list[Tile]:
    """True colour where its bands are there, else the first three, each stretched over all tiles:
    haze makes no sheet blue.
    """
    places = [source["bands_in_file"][i] - 1 for i in bands_shown(source["bands"])]
    nodata = None if isinstance(source["nodata"], list | str) else source["nodata"]

    def read(rows: slice, cols: slice) -> Look:
        shape = (rows.stop - rows.start, cols.stop - cols.start)
        stored, known = file.read_known(rows.start, cols.start, *shape, places, nodata)
        return stored.astype(np.float32), np.all(known, axis=0)

    (height, width), bounds = file.geobox.shape, pixel_bounds(found.geometry, file.geobox)
    looks = [_around(each, (height, width), read) for each in bounds]
    seen = np.concatenate([pixels[:, known] for (pixels, known), _ in looks], axis=1)
    low, high = np.zeros((2, len(places)))
    if seen.size:
        low, high = np.percentile(seen, [2, 98], axis=1)
    low, high = low[:, None, None], high[:, None, None]
    return [
        (hatch(stretched(pixels, low, high), ~known), place) for (pixels, known), place in looks
    ]


def _around(
    bounds: Float[np.ndarray, " 4"],
    shape: tuple[int, ...],
    read: Callable[[slice, slice], Look],
) -> tuple[Look, tuple[float, float, float, float]]:
    """Pixels around a place, invalid outside ``shape``, and the place in them."""
    left, top, right, bottom = bounds.tolist()
    side = max(right - left, bottom - top)
    size = max(round(CONTEXT * side), 1)
    row, col = round((top + bottom - size) / 2), round((left + right - size) / 2)
    rows = slice(max(row, 0), max(min(row + size, shape[0]), max(row, 0)))
    cols = slice(max(col, 0), max(min(col + size, shape[1]), max(col, 0)))
    pixels, known = read(rows, cols)
    image = np.zeros((len(pixels), size, size), np.float32)
    valid = np.zeros((size, size), bool)
    inside = (slice(rows.start - row, rows.stop - row), slice(cols.start - col, cols.stop - col))
    image[:, *inside], valid[inside] = pixels, known
    return (image, valid), (left - col, top - row, right - col, bottom - row)
