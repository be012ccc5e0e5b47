"""QGIS styles of rasters: one beside each, which QGIS takes by itself, and all bands as layers.

``MAP.qlr`` is a layer definition: dragged into QGIS it is a group with a styled layer for every
band of every file, where a ``.qml`` can style one band of its file alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from odc.geo.crs import CRS

from bharateo.files import write_text
from bharateo.landcover import Colour, LandCoverClass
from bharateo.pixels.cog import xml_characters

STYLE_MARK = "written by bharateo"
"""In a comment at the beginning: a style without it is a person's own."""

_QGIS = "3.22"

_SURE_TO_UNSURE: tuple[Colour, ...] = (
    (0, 0, 4), (66, 10, 104), (147, 38, 103), (221, 81, 58), (252, 165, 10), (252, 255, 164),
)  # fmt: skip
"""Matplotlib's inferno at six places, as the reports have it: dark for sure, bright for no idea."""

_WHITE: Colour = (255, 255, 255)
_NO, _YES = (235, 235, 235), (200, 30, 30)


@dataclass(frozen=True)
class BandStyle:
    """How a band is shown: its values as classes, or on a ramp from ``low`` to ``high``."""

    title: str
    band: int
    classes: tuple[LandCoverClass, ...] = ()
    ramp: tuple[Colour, ...] = ()
    low: float = 0.0
    high: float = 100.0


@dataclass(frozen=True)
class ColourStyle:
    """Three bands as red, green and blue, each from its own black to its own white.

    These are values with scale and offset applied, as QGIS does by itself.
    """

    bands: Sequence[int]
    limits: Sequence[Sequence[float]]


def _ids(*named: tuple[str, Colour]) -> tuple[LandCoverClass, ...]:
    return tuple(LandCoverClass(number, *each) for number, each in enumerate(named))


def class_style(classes: Sequence[LandCoverClass]) -> list[BandStyle]:
    """Of ``MAP.tif``."""
    return [BandStyle("class", 1, tuple(classes))]


def probability_styles(classes: Sequence[LandCoverClass]) -> list[BandStyle]:
    """Of ``MAP-probabilities.tif``: white to the class's colour."""
    return [
        BandStyle(f"{each.name}, per cent", band, ramp=(_WHITE, each.colour))
        for band, each in enumerate(classes, 1)
    ]


def uncertainty_styles() -> list[BandStyle]:
    """Of ``MAP-uncertainty.tif``."""
    outside = _ids(("inside the domain", _NO), ("out of the domain", _YES))
    return [
        BandStyle("entropy, per cent of the most possible", 1, ramp=_SURE_TO_UNSURE),
        BandStyle("out of the domain", 2, outside),
        BandStyle("distance, per cent of the limit", 3, ramp=_SURE_TO_UNSURE, high=250),
    ]


def suspect_styles(labels: Sequence[LandCoverClass]) -> list[BandStyle]:
    """Of ``MAP-suspect.tif``."""
    return [
        BandStyle("suspect label", 1, _ids(("believed", _NO), ("suspect", _YES))),
        BandStyle("label", 2, tuple(labels)),
        BandStyle("given to the label, per cent", 3, ramp=_SURE_TO_UNSURE[::-1]),
        BandStyle("purity of the label, per cent", 4, ramp=_SURE_TO_UNSURE[::-1]),
    ]


def measured_style(title: str, band: int, tags: Mapping[str, str]) -> BandStyle:
    """Of numbers in whatever unit: from the least to the most that GDAL's statistics say."""
    low, high = (float(tags.get(f"STATISTICS_{end}", 0)) for end in ("MINIMUM", "MAXIMUM"))
    return BandStyle(title, band, ramp=_SURE_TO_UNSURE, low=low, high=max(high, low + 1e-6))


def write_style(file: Path, style: BandStyle | ColourStyle) -> None:
    """Write a raster's style beside it."""
    qgis = ElementTree.Element("qgis", version=_QGIS, styleCategories="Symbology")
    qgis.append(_pipe(style))
    _write(file.with_suffix(".qml"), qgis, "qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'")


def write_styles(files: Mapping[Path, Sequence[BandStyle]], crs: CRS, group: Path) -> None:
    """Write the style of each file's first band beside it, and all as layers into ``group``.

    The files' reference system is said with each layer: QGIS takes a layer of a definition without
    one to have none, whatever its file says.
    """
    for file, styles in files.items():
        write_style(file, styles[0])
    layers = [(file, style) for file, styles in files.items() for style in styles]
    root = ElementTree.Element("qlr")
    tree = ElementTree.SubElement(root, "layer-tree-group")
    inner = ElementTree.SubElement(
        tree, "layer-tree-group", name=xml_characters(group.stem), expanded="1",
        checked="Qt::Checked",
    )  # fmt: skip
    maps = ElementTree.SubElement(root, "maplayers")
    for number, (file, style) in enumerate(layers):
        key, name = f"bharateo_{number}", xml_characters(style.title)
        where = xml_characters(f"./{file.name}")
        ElementTree.SubElement(
            inner, "layer-tree-layer", id=key, name=name, source=where, providerKey="gdal",
            expanded="0", checked="Qt::Checked" if number == 0 else "Qt::Unchecked",
        )  # fmt: skip
        layer = ElementTree.SubElement(maps, "maplayer", type="raster")
        for tag, text in (("id", key), ("datasource", where), ("layername", name)):
            ElementTree.SubElement(layer, tag).text = text
        ElementTree.SubElement(layer, "provider").text = "gdal"
        reference = ElementTree.SubElement(ElementTree.SubElement(layer, "srs"), "spatialrefsys")
        ElementTree.SubElement(reference, "wkt").text = crs.to_wkt()
        if crs.epsg is not None:
            ElementTree.SubElement(reference, "authid").text = f"EPSG:{crs.epsg}"
        layer.append(_pipe(style))
    _write(group, root, "qgis-layer-definition")


def _pipe(style: BandStyle | ColourStyle) -> ElementTree.Element:
    pipe = ElementTree.Element("pipe")
    common = {"opacity": "1", "alphaBand": "-1", "nodataColor": ""}
    if isinstance(style, ColourStyle):
        named = {"red": 0, "green": 1, "blue": 2}
        shown = {f"{name}Band": str(style.bands[at]) for name, at in named.items()}
        renderer = ElementTree.SubElement(
            pipe, "rasterrenderer", {"type": "multibandcolor", **common, **shown}
        )
        for name, at in named.items():
            stretch = ElementTree.SubElement(renderer, f"{name}ContrastEnhancement")
            for tag, value in zip(("minValue", "maxValue"), style.limits[at], strict=True):
                ElementTree.SubElement(stretch, tag).text = f"{value:g}"
            ElementTree.SubElement(stretch, "algorithm").text = "StretchToMinimumMaximum"
        return pipe
    common |= {"band": str(style.band)}
    if style.classes:
        renderer = ElementTree.SubElement(pipe, "rasterrenderer", {"type": "paletted", **common})
        palette = ElementTree.SubElement(renderer, "colorPalette")
        for each in style.classes:
            ElementTree.SubElement(
                palette, "paletteEntry", value=str(each.id), color=_css(each.colour), alpha="255",
                label=xml_characters(each.name),
            )  # fmt: skip
        return pipe
    ends = {"classificationMin": f"{style.low:g}", "classificationMax": f"{style.high:g}"}
    renderer = ElementTree.SubElement(
        pipe, "rasterrenderer", {"type": "singlebandpseudocolor", **common, **ends}
    )
    shader = ElementTree.SubElement(ElementTree.SubElement(renderer, "rastershader"),
        "colorrampshader", colorRampType="INTERPOLATED", classificationMode="1", clip="0",
        minimumValue=f"{style.low:g}", maximumValue=f"{style.high:g}",
    )  # fmt: skip
    for value, colour in _stops(style):
        ElementTree.SubElement(
            shader, "item", value=f"{value:g}", label=f"{value:g}", color=_css(colour), alpha="255"
        )
    return pipe


def _stops(style: BandStyle) -> Iterator[tuple[float, Colour]]:
    last = len(style.ramp) - 1
    for number, colour in enumerate(style.ramp):
        yield style.low + (style.high - style.low) * number / last, colour


def _css(colour: Colour) -> str:
    return f"#{bytes(colour).hex()}"


def _write(path: Path, root: ElementTree.Element, doctype: str) -> None:
    ElementTree.indent(root)
    text = ElementTree.tostring(root, encoding="unicode")
    write_text(path, f"<!DOCTYPE {doctype}>\n<!-- {STYLE_MARK} -->\n{text}\n")
