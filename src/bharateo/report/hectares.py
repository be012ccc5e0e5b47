"""Hectares by district for people and programs: a page, a CSV file, a GeoPackage and a record."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import shapely
from odc.geo.crs import CRS
from shapely.affinity import affine_transform

from bharateo.files import write_json, write_text
from bharateo.inference.class_raster import ClassRaster
from bharateo.inference.hectares import ESTIMATE, SIGNED, HectaresRecord
from bharateo.landcover import LandCoverClass
from bharateo.outputs import Own, beginning_with, json_of
from bharateo.pixels.cog import xml_characters
from bharateo.pixels.vectors import unedited, write_geopackage
from bharateo.regions import Zone
from bharateo.report.html import templates
from bharateo.report.panels import css
from bharateo.report.render import png_uri

CSV_FILE, LAYER_FILE = "hectares.csv", "hectares.gpkg"
PAGE_FILE, RECORD_FILE = "hectares.html", "hectares.json"

_COLUMNS = ("zone", "zone_hectares", "valid_share", "class", "hectares", "share", "estimate")
_MARK = "written by bharateo hectares"
_PAGE_PX, _MARGIN = 1200, 0.03
_SLIVERS = 1e-3
"""Share of all districts that may lie in two of them, as roundings along borders do."""

_MOST_LABELS = 40
"""Zones whose names stand on the map; of more they would hide it."""


def hectares_products(output: Path) -> dict[Path, Own]:
    """The files of ``write_hectares`` in a folder, and how each is known to be one."""
    return {
        output / CSV_FILE: beginning_with(",".join(_COLUMNS)),
        output / LAYER_FILE: unedited(_MARK),
        output / PAGE_FILE: beginning_with(_MARK),
        output / RECORD_FILE: json_of("hectares"),
    }


def write_hectares(
    output: Path,
    record: HectaresRecord,
    zones: Sequence[Zone],
    classes: Sequence[LandCoverClass],
    raster: ClassRaster,
) -> None:
    """Write all files about a map's hectares into a folder; the record last.

    Raises:
        StorageError: the disk is full or refuses.
    """
    (output / RECORD_FILE).unlink(missing_ok=True)
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(_COLUMNS)
    for zone in record.zones:
        for each in zone.classes:
            numbers = ("" if n is None else f"{n:.6g}" for n in (each.hectares, each.share))
            rows.writerow([
                zone.zone, f"{zone.hectares:.6g}", f"{zone.valid_share:.6f}", each.name, *numbers,
                f"{ESTIMATE}; {SIGNED}",
            ])  # fmt: skip
    write_text(output / CSV_FILE, table.getvalue())
    write_geopackage(output / LAYER_FILE, "hectares", [_layer(record, zones)], _MARK)
    page = templates("report").get_template("hectares.html.j2")
    write_text(output / PAGE_FILE, page.render(**_page(record, zones, classes, raster), mark=_MARK))
    write_json(output / RECORD_FILE, record.model_dump(by_alias=True))


def _layer(record: HectaresRecord, zones: Sequence[Zone]) -> gpd.GeoDataFrame:
    """A row a zone; a column a class, with names that SQLite tells apart."""
    columns: dict[str, Any] = {
        "zone": [xml_characters(each.zone) for each in record.zones],
        "hectares": [each.hectares for each in record.zones],
        "valid_share": [each.valid_share for each in record.zones],
    }
    for number, each in enumerate(record.zones[0].classes):
        name = f"{xml_characters(each.name)}_ha"
        if name.casefold() in {taken.casefold() for taken in columns}:
            name = f"{name}_{number}"
        values = [zone.classes[number].hectares for zone in record.zones]
        columns[name] = np.array(values, float)
    columns["estimate"] = [f"{ESTIMATE}; {SIGNED}"] * len(zones)
    outlines = [zone.outline for zone in zones]
    return gpd.GeoDataFrame(columns, geometry=outlines, crs="EPSG:4326")


def _page(
    record: HectaresRecord,
    zones: Sequence[Zone],
    classes: Sequence[LandCoverClass],
    raster: ClassRaster,
) -> dict[str, Any]:
    """What the template shows."""
    grid = raster.file.geobox
    assert grid.crs is not None
    to_map = CRS("EPSG:4326").transformer_to_crs(grid.crs)
    a, b, c, d, e, f = (~grid.affine)[:6]
    extent = shapely.box(0, 0, grid.shape[1], grid.shape[0])
    on_map = {}
    for zone, found in zip(zones, record.zones, strict=True):
        bent = shapely.transform(shapely.segmentize(zone.outline, 0.05), to_map, interleaved=False)
        cells = affine_transform(bent, [a, b, d, e, c, f])
        if found.valid_share and np.isfinite(cells.bounds).all():
            on_map[zone.name] = shapely.make_valid(cells)
    # The part of the map that the districts lie in, with a margin.
    around = shapely.union_all([shapely.box(*each.bounds) for each in on_map.values()]) & extent
    left, top, right, bottom = (around if on_map else extent).bounds
    margin = _MARGIN * max(right - left, bottom - top)
    row, col = max(int(top - margin), 0), max(int(left - margin), 0)
    rows = min(int(np.ceil(bottom + margin)), grid.shape[0]) - row
    cols = min(int(np.ceil(right + margin)), grid.shape[1]) - col
    shown = raster.picture(_PAGE_PX, (row, col, rows, cols))
    height, width = shown.rgb.shape[:2]
    frame = shapely.box(-5, -5, width + 5, height + 5)
    across, down = shown.scale
    outlines = []
    for name, cells in on_map.items():
        pixels = affine_transform(cells, [across, 0, 0, down, -col * across, -row * down]).simplify(
            0.5
        )
        seen = shapely.make_valid(pixels) & frame
        if not seen.is_empty:
            place = seen.representative_point()
            outlines.append({"path": _path(seen), "name": name, "x": place.x, "y": place.y})
    colours = {each.name: css(each) for each in classes}
    alone = shapely.area([zone.outline for zone in zones]).sum()
    overlap = shapely.union_all([zone.outline for zone in zones]).area < (1 - _SLIVERS) * alone
    whole = sum(each.hectares for each in record.zones)
    valid = sum(each.hectares * each.valid_share for each in record.zones)
    totals = [
        sum(each.classes[number].hectares or 0.0 for each in record.zones)
        for number in range(len(classes))
    ]
    return {
        "record": record,
        "classes": [(each.name.replace("_", " "), css(each)) for each in classes],
        "colours": colours,
        "picture": png_uri(shown.rgb),
        "width": width,
        "height": height,
        "has_gaps": shown.has_gaps,
        "legend": [(each.name.replace("_", " "), css(each)) for each in shown.classes],
        "outlines": outlines,
        "labelled": len(outlines) <= _MOST_LABELS,
        "overlap": overlap,
        "whole": whole,
        "valid": valid,
        "totals": totals,
        "ha": hectares_shown,
        "partly": [each.zone for each in record.zones if each.valid_share < 0.95],
    }


def hectares_shown(hectares: float | None) -> str:
    """Hectares with as many digits as a count of cells is worth reading with."""
    if hectares is None:
        return "–"
    return f"{hectares:,.0f}" if hectares >= 100 else f"{hectares:,.2f}"


def _path(shape: shapely.Geometry) -> str:
    """A polygon as the data of an SVG path."""
    rings = shapely.get_rings([e for e in shapely.get_parts(shape) if e.geom_type == "Polygon"])
    return "".join(
        "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in shapely.get_coordinates(ring)) + "Z"
        for ring in rings
    )
