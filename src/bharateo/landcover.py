"""Class schemes: from a product's native codes to the eight BharatEO classes, names and colours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8

from bharateo.errors import UnknownCodeError

IGNORE = 255
"""Class id of a pixel or patch without a label: never a target, never counted."""

_UNKNOWN = 254

Colour = tuple[int, int, int]
"""Red, green and blue, 0 to 255."""


@dataclass(frozen=True)
class LandCoverClass:
    """One of the classes a model predicts: its id (0, 1, ...), name and display colour."""

    id: int
    name: str
    colour: Colour


BHARATEO_CLASSES = (
    LandCoverClass(0, "tree", (35, 132, 67)),
    LandCoverClass(1, "cropland", (188, 189, 34)),
    LandCoverClass(2, "grass_shrub", (127, 191, 123)),
    LandCoverClass(3, "built_up", (215, 48, 39)),
    LandCoverClass(4, "bare_sparse", (217, 164, 65)),
    LandCoverClass(5, "water", (49, 130, 189)),
    LandCoverClass(6, "wetland_mangrove", (44, 162, 95)),
    LandCoverClass(7, "rare_other", (189, 189, 189)),
)
NUM_CLASSES = len(BHARATEO_CLASSES)


_BY_ONE_NATIVE_CLASS = {
    "Shrubland": "shrub",
    "Grassland": "grass",
    "Herbaceous wetland": "wetland",
    "wetland": "wetland",
    "Mangroves": "mangrove",
    "Snow and ice": "snow and ice",
    "Moss and lichen": "moss and lichen",
}
"""What a class is called where a single native class of it occurs."""


def classes_of(
    native_counts: Mapping[str, int], native: Mapping[str, Sequence[Any]]
) -> tuple[LandCoverClass, ...]:
    """The eight classes as they are called on some ground: a class of two kinds, such as
    ``wetland_mangrove``, by the one that occurs where only one does.

    ``native_counts`` are the ground's pixels by native code; ``native`` is the name and class
    id of every code, as ``dataset.json`` has them.
    """
    there: dict[int, list[str]] = {}
    for code, (name, class_id) in native.items():
        if native_counts.get(code):
            there.setdefault(class_id, []).append(name)
    return tuple(
        replace(each, name=_BY_ONE_NATIVE_CLASS.get(there[each.id][0], each.name))
        if len(there.get(each.id, ())) == 1
        else each
        for each in BHARATEO_CLASSES
    )


@dataclass(frozen=True)
class ClassScheme:
    """How the native codes of one label product map to BharatEO class ids.

    ``native`` maps each native code (0..255) to ``(name, class id)``; ``nodata`` is the code of
    pixels without a label. Any other code is corrupt input.
    """

    name: str
    native: Mapping[int, tuple[str, int]]
    nodata: int = 0

    @cached_property
    def table(self) -> UInt8[np.ndarray, "256"]:
        """Native code -> class id, ``IGNORE`` for nodata and 254 for codes that do not exist."""
        table = np.full(256, _UNKNOWN, np.uint8)
        for code, (_, class_id) in self.native.items():
            table[code] = class_id
        table[self.nodata] = IGNORE
        return table

    def collapse(
        self, native: UInt8[np.ndarray, "*shape"], where: str = ""
    ) -> UInt8[np.ndarray, "*shape"]:
        """Class ids of an array of native codes, ``IGNORE`` where there is no label.

        ``where`` names the file or window in the error.

        Raises:
            UnknownCodeError: a code is neither in the scheme nor nodata.
        """
        class_ids: np.ndarray = self.table[native]
        if (class_ids == _UNKNOWN).any():
            codes = ", ".join(str(code) for code in np.unique(native[class_ids == _UNKNOWN]))
            known = ", ".join(str(code) for code in sorted({*self.native, self.nodata}))
            raise UnknownCodeError(
                f"code {codes} in {where or 'the label raster'} is not a {self.name} code "
                f"(those are {known}): the file is corrupt or another product; "
                "fetch it again or point the root at a clean copy"
            )
        return class_ids

    def native_counts(self, native: UInt8[np.ndarray, "*shape"]) -> dict[int, int]:
        """Number of pixels of every native code that occurs."""
        counts = np.bincount(native.reshape(-1), minlength=256)
        return {int(code): int(counts[code]) for code in np.flatnonzero(counts)}

    def describe(self, code: int) -> str:
        """The native class's own name."""
        return "no data" if code == self.nodata else self.native[code][0]


WORLDCOVER = ClassScheme(
    "ESA WorldCover",
    {
        10: ("Tree cover", 0),
        20: ("Shrubland", 2),
        30: ("Grassland", 2),
        40: ("Cropland", 1),
        50: ("Built-up", 3),
        60: ("Bare / sparse vegetation", 4),
        70: ("Snow and ice", 7),
        80: ("Permanent water bodies", 5),
        90: ("Herbaceous wetland", 6),
        95: ("Mangroves", 6),
        100: ("Moss and lichen", 7),
    },
)
"""Source: ESA WorldCover Product User Manual v2.0, table 3."""

OSM_LAND_USE = ClassScheme(
    "OpenStreetMap land use",
    {
        1: ("forest", 0),
        2: ("farm", 1),
        3: ("meadow", 2),
        4: ("grass", 2),
        5: ("scrub", 2),
        6: ("residential", 3),
        7: ("water", 5),
        8: ("wetland", 6),
    },
)
"""Polygons of OpenStreetMap's ``fclass`` (Geofabrik layout), burnt in with these codes."""


def class_colours() -> UInt8[np.ndarray, "256 3"]:
    """Display colour of every class id; black for ``IGNORE`` and ids that do not exist."""
    colours = np.zeros((256, 3), np.uint8)
    for land_class in BHARATEO_CLASSES:
        colours[land_class.id] = land_class.colour
    return colours


def palette(
    class_ids: UInt8[np.ndarray, "*shape"],
) -> UInt8[np.ndarray, " 3 *shape"]:
    """The palette rendering of a class map, channels first; black where there is no label.

    This is the input layer of the WorldCover experiment; divided by 255 it lies in [0, 1].
    """
    return np.moveaxis(class_colours()[class_ids], -1, 0)


def patch_class_counts(
    class_ids: UInt8[np.ndarray, "batch height width"], patch_px: int
) -> Int64[np.ndarray, "batch token cls"]:
    """Labelled pixels of every class in every patch; tokens in row-major order."""
    batch, height, width = class_ids.shape
    rows, cols = height // patch_px, width // patch_px
    patch_of_pixel = (
        np.arange(height)[:, None] // patch_px * cols + np.arange(width)[None, :] // patch_px
    )
    stride = NUM_CLASSES + 1
    base = (np.arange(batch)[:, None, None] * (rows * cols) + patch_of_pixel) * stride
    cell = base + np.minimum(class_ids, NUM_CLASSES)
    counts = np.bincount(cell.reshape(-1), minlength=batch * rows * cols * stride)
    return counts.reshape(batch, rows * cols, stride)[..., :NUM_CLASSES]


def patch_mode(
    counts: Int64[np.ndarray, "*shape cls"],
) -> UInt8[np.ndarray, "*shape"]:
    """The most frequent class of every patch; ties go to the lowest id, no label is ``IGNORE``."""
    mode = counts.argmax(-1).astype(np.uint8)
    mode[counts.sum(-1) == 0] = IGNORE
    return mode
