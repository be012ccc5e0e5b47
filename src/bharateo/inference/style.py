"""How a map is shown: colours of classes, and the style that QGIS applies by itself."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from bharateo.files import write_text
from bharateo.landcover import BHARATEO_CLASSES, LandCoverClass
from bharateo.pixels.cog import xml_characters

Colour = tuple[int, int, int]

OKABE_ITO: tuple[Colour, ...] = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66),
    (0, 114, 178), (213, 94, 0), (204, 121, 167), (90, 90, 90),
)  # fmt: skip
"""Eight colours that colour-blind people tell apart. Source: Okabe and Ito 2008, "Color Universal
Design", with a grey that shows on black in place of black."""

_GOLDEN = 0.618034
"""Hues this far apart on the circle never come near each other again."""


def own_classes(names: Sequence[str]) -> tuple[LandCoverClass, ...]:
    """A person's classes with ids 0, 1, ... and colours of their own.

    Where all are names of land-cover classes they are those, with their ids and colours.
    """
    known = {each.name: each for each in BHARATEO_CLASSES}
    if {*names} <= {*known}:
        return tuple(known[name] for name in names)
    extra = [_hue(number) for number in range(len(names) - len(OKABE_ITO))]
    colours = (*OKABE_ITO, *extra)[: len(names)]
    return tuple(
        LandCoverClass(number, name, colour)
        for number, (name, colour) in enumerate(zip(names, colours, strict=True))
    )


def _hue(number: int) -> Colour:
    red, green, blue = colorsys.hsv_to_rgb(number * _GOLDEN % 1, 0.65, 0.85 - number // 8 % 3 * 0.2)
    return round(255 * red), round(255 * green), round(255 * blue)


STYLE_MARK = "written by bharateo map"
"""In a comment at the beginning: a style without it is a person's own."""


def write_class_style(path: Path, classes: Sequence[LandCoverClass]) -> None:
    """Write the QGIS style of a class map: beside ``map.tif`` QGIS takes ``map.qml`` by itself."""
    root = ElementTree.Element("qgis", version="3.22", styleCategories="Symbology")
    renderer = ElementTree.SubElement(
        ElementTree.SubElement(root, "pipe"), "rasterrenderer", type="paletted", band="1",
        opacity="1", alphaBand="-1", nodataColor="",
    )  # fmt: skip
    palette = ElementTree.SubElement(renderer, "colorPalette")
    for each in classes:
        ElementTree.SubElement(
            palette, "paletteEntry", value=str(each.id), color=f"#{bytes(each.colour).hex()}",
            alpha="255", label=xml_characters(each.name),
        )  # fmt: skip
    ElementTree.indent(root)
    doctype = "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>"
    text = ElementTree.tostring(root, encoding="unicode")
    write_text(path, f"{doctype}\n<!-- {STYLE_MARK} -->\n{text}\n")
