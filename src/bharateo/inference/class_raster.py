"""A raster of classes, of ours or of anybody: its grid, its values, and what they mean."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from jaxtyping import Bool, UInt8
from pydantic import Field

from bharateo.artefacts import OpenRecord, checked
from bharateo.errors import CorruptRasterError, SourceError
from bharateo.files import read_bytes
from bharateo.inference.legend import palette_for
from bharateo.landcover import WORLDCOVER, Colour, LandCoverClass
from bharateo.outputs import record_in
from bharateo.pixels.formats import open_local
from bharateo.pixels.picture import MOST_PX, Picture, picture_of, thinning
from bharateo.pixels.product import COG_TAG
from bharateo.pixels.raster import RasterFile, open_raster

WINDOW_CELLS = 1024
"""Side of what is read at once."""


_WORLDCOVER_ATTRIBUTION = (
    "ESA WorldCover project / Contains modified Copernicus Sentinel data processed by ESA "
    "WorldCover consortium"
)


class _Class(OpenRecord):
    id: int = Field(ge=0, le=255)
    name: str
    colour: tuple[int, int, int]


class _Source(OpenRecord):
    attribution: list[str] = Field(default_factory=list)


class _Map(OpenRecord):
    """What is read of the provenance of a map of ours."""

    classes: list[_Class]
    source: _Source
    fingerprint: str


@dataclass(frozen=True)
class ClassRaster:
    """An open raster whose one band holds the ids of classes, 0 to 255.

    ``named`` are the classes that the file itself, or its product, has a name or a colour for.
    """

    path: Path
    file: RasterFile
    named: Mapping[int, LandCoverClass]
    attribution: tuple[str, ...]
    complete: bool
    """Whether ids that are not ``named`` are damage."""

    @classmethod
    def open(cls, path: Path) -> ClassRaster:
        """The raster of a map that ``bharateo map`` or ``teach`` wrote, a WorldCover tile or a part
        of one, or any other whose values are classes.

        Raises:
            SourceError: there is none, it has several bands or values that are no ids, or does
                not say where on Earth it lies.
        """
        file = open_classes(path)
        _ = file.geobox  # it lies somewhere
        tags, colours = _said_by(path)
        if provenance := record_in(tags.get(COG_TAG, "{}")):
            remedy = "make the map again"
            made = checked(_Map, provenance, f"{path}, its provenance", SourceError, remedy)
            classes = [LandCoverClass(e.id, e.name, e.colour) for e in made.classes]
            return cls(path, file, _by_id(classes), tuple(made.source.attribution), True)
        if tags.get("title", path.name).startswith(("ESA WorldCover", "ESA_WorldCover_10m")):
            shown = palette_for([name for name, _ in WORLDCOVER.native.values()])
            classes = [
                LandCoverClass(code, name, colours.get(code, shown[number]))
                for number, (code, (name, _)) in enumerate(WORLDCOVER.native.items())
            ]
            whose = tags.get("copyright", _WORLDCOVER_ATTRIBUTION)
            return cls(path, file, _by_id(classes), (whose,), True)
        names = _categories(path)
        known = sorted({*names, *colours})
        titles = [names.get(number, unnamed(number)) for number in known]
        shown = palette_for(titles)
        classes = [
            LandCoverClass(number, title, colours.get(number, colour))
            for number, title, colour in zip(known, titles, shown, strict=True)
        ]
        return cls(path, file, _by_id(classes), (), False)

    def classes(self, ids: Iterable[int]) -> tuple[LandCoverClass, ...]:
        """The classes of ids that were found in the raster, by id."""
        found = sorted({*ids})
        without = [number for number in found if number not in self.named]
        if without and self.complete:
            raise CorruptRasterError(
                f"{self.path} holds {without[0]}, which is none of its classes "
                f"({', '.join(map(str, sorted(self.named)))}): the file is damaged; make it again"
            )
        titles = [unnamed(number) for number in without]
        made = [
            LandCoverClass(number, title, colour)
            for number, title, colour in zip(without, titles, palette_for(titles), strict=True)
        ]
        return tuple({**self.named, **_by_id(made)}[number] for number in found)

    def read(
        self, row: int, col: int, height: int, width: int
    ) -> tuple[UInt8[np.ndarray, "row col"], Bool[np.ndarray, "row col"]]:
        """The ids of a window, and which cells have one.

        Raises:
            SourceError: a value is no id, or the file cannot be read.
        """
        return read_classes(self.path, self.file, row, col, height, width)

    def picture(
        self, most_px: int = MOST_PX, part: tuple[int, int, int, int] | None = None
    ) -> Picture:
        """The map or a part of it (row, column, height, width in cells), from its overviews."""
        row, col, height, width = part or (0, 0, *self.file.shape)
        grid = self.file.geobox[row : row + height, col : col + width]
        ids = self.file.read_thinned(thinning(grid, most_px), [0], part)[0]
        nodata = self.file.nodata[0]
        known = np.ones(ids.shape, bool) if nodata is None else ids != nodata
        classes = self.classes(np.unique(ids[known]).tolist())
        table = np.zeros((256, 3), np.uint8)
        for each in classes:
            table[each.id] = each.colour
        rgb = np.where(known[..., None], table[np.where(known, ids, 0)], np.uint8(0))
        return picture_of(rgb, known, grid, most_px, classes)


def unnamed(number: int) -> str:
    """What a class is called of which only the id is known."""
    return f"class {number}"


def open_classes(path: Path) -> RasterFile:
    """A raster whose one band may hold classes.

    Raises:
        SourceError: there is none, or it has several bands or fractions.
    """
    file = open_raster(str(path), vrt=True)
    if file is None:
        raise SourceError(f"{path} does not exist: give the map.tif of `bharateo map`")
    if file.num_bands != 1 or file.dtype.kind not in "iu":
        bands = "band" if file.num_bands == 1 else "bands"
        raise SourceError(
            f"{path} has {file.num_bands} {bands} of {file.dtype}, a map of classes has one of "
            "whole numbers from 0 to 255: give MAP.tif itself, or one band of it with "
            f"gdal_translate -b 1 -ot Byte {path} OUT.tif"
        )
    return file


def read_classes(
    path: Path, file: RasterFile, row: int, col: int, height: int, width: int
) -> tuple[UInt8[np.ndarray, "row col"], Bool[np.ndarray, "row col"]]:
    """The ids of a window, 0 where there is none, and which cells have one.

    Raises:
        SourceError: a value is no id, or the file cannot be read.
    """
    values, known = file.read_known(row, col, height, width)
    wrong = known & ((values < 0) | (values > 255))
    if wrong.any():
        raise SourceError(
            f"{path} holds {values[wrong][0]}, a map of classes has whole numbers from 0 "
            f"to 255: say what is no data with gdal_edit.py -a_nodata VALUE {path}"
        )
    return np.where(known, values, 0)[0].astype(np.uint8), known[0]


def _by_id(classes: Iterable[LandCoverClass]) -> dict[int, LandCoverClass]:
    return {each.id: each for each in classes}


def _said_by(path: Path) -> tuple[dict[str, str], dict[int, Colour]]:
    """A file's tags, and its colours of values: those that are opaque, and not all black."""
    opened = open_local(path, vrt=True)
    assert opened is not None
    dataset: Any = opened.dataset
    tags: dict[str, str] = dataset.tags()
    try:
        table = dataset.colormap(1)
    except ValueError:  # it has none
        table = {}
    opened.close()
    return tags, {value: rgba[:3] for value, rgba in table.items() if rgba[3] and any(rgba[:3])}


def _categories(path: Path) -> dict[int, str]:
    """Names of values, as GDAL keeps them beside a file (PAM); empty where there are none."""
    try:
        root = ElementTree.fromstring(read_bytes(path.with_name(f"{path.name}.aux.xml"), 2**20))
    except (OSError, ElementTree.ParseError):
        return {}
    names = [each.text or "" for each in root.iterfind("PAMRasterBand/CategoryNames/Category")]
    return {number: name for number, name in enumerate(names[:256]) if name.strip()}
