"""What a map says of ground that has a name or a size: hectares by district, areas as polygons."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from bharateo.verbs.arguments import MaybeDisplay, Output, PathLike

if TYPE_CHECKING:
    from bharateo.inference.hectares import HectaresRecord


def hectares(
    location: Annotated[PathLike, Parameter(name="MAP")],
    zones: PathLike,
    output: Output,
    *,
    zone_field: str | None = None,
    display: MaybeDisplay = None,
) -> HectaresRecord:
    """Hectares of a map's classes by district.

    Measures the ground of every class of a map in every polygon of a file, on the ellipsoid; a
    cell on an edge counts by the share of it that lies inside, exactly. Memory does not grow with
    the map.

      bharateo hectares map.tif --zones blocks.gpkg --zone-field name -o blocks
      bharateo hectares worldcover.tif --zones districts.geojson --output districts

    These are counts of map cells, with all the map's errors and without an interval. Areas that
    one can sign come from a sample of the ground: `bharateo areas`.

    Args:
        location: the map of `bharateo map` or `teach`, a WorldCover tile or a part of one, or any
            raster of classes with one band
        zones: polygons: GeoJSON, GeoPackage, Shapefile or FlatGeobuf in any reference system
        output: the folder that gets hectares.csv (a row a district and class), hectares.gpkg (a
            district with its outline), hectares.html (a page) and hectares.json
        zone_field: the column with the districts' names, those of one name being one district
            (default: every polygon is one, with a number)

    Returns:
        The record, as hectares.json holds it.

    Raises:
        RegionError: the file holds no polygons, or none of them reaches into the map.
        SourceError: the map cannot be read, or is no raster of classes.
    """
    import hashlib

    from bharateo.display import Display
    from bharateo.files import read_bytes
    from bharateo.inference.class_raster import ClassRaster
    from bharateo.inference.hectares import HectaresRecord, zonal_hectares
    from bharateo.outputs import check_outputs
    from bharateo.report.hectares import (
        PAGE_FILE,
        hectares_products,
        hectares_shown,
        write_hectares,
    )
    from bharateo.sources.areas import file_zones
    from bharateo.version import __version__

    output, location, zones = Path(output), Path(location), Path(zones)
    check_outputs("hectares", hectares_products(output), [location, zones])
    display = display or Display()
    raster = ClassRaster.open(location)
    districts = file_zones(zones, zone_field, "--zones", "--zone-field")
    with display.bar("hectares") as bar:
        classes, found = zonal_hectares(raster, districts, bar.update)
    record = HectaresRecord(
        code_version=__version__,
        map=location.name,
        map_version=raster.file.identity,
        zones_file=zones.name,
        zones_sha256=hashlib.sha256(read_bytes(zones)).hexdigest(),
        zone_field=zone_field,
        attribution=list(raster.attribution),
        zones=found,
    )
    write_hectares(output, record, districts, classes, raster)
    for zone in found:
        parts = (
            f"{each.name} {hectares_shown(each.hectares)}"
            for each in zone.classes
            if each.hectares != 0
        )
        display.say(
            f"  {zone.zone}: {hectares_shown(zone.hectares)} ha, {100 * zone.valid_share:.1f} % "
            f"with data: {', '.join(parts)}"
        )
    display.say(f"these are a {record.estimate}; {record.signed}")
    display.say(f"hectares: {output / PAGE_FILE}")
    return record


def polygons(
    location: Annotated[PathLike, Parameter(name="MAP")],
    output: Output,
    *,
    min_area_ha: float = 0.5,
    display: MaybeDisplay = None,
) -> Path:
    """The areas of one class of a map as polygons.

    Writes a GeoPackage with a polygon for every connected area of a class, with its hectares on
    the ellipsoid. Areas smaller than the minimum mapping unit become part of their largest
    neighbour.

      bharateo polygons district-map.tif --output fields.gpkg
      bharateo polygons district-map.tif --min-area-ha 2 --output fields.gpkg

    Args:
        location: the map of `bharateo map` or `teach`, a WorldCover tile or a part of one, or any
            raster of classes with one band, of 150 million cells at most
        output: the .gpkg to write
        min_area_ha: the minimum mapping unit in hectares; 0 keeps every area, however small

    Returns:
        The file.

    Raises:
        ConfigError: the map is too large, or has too many polygons.
        SourceError: the map cannot be read, or is no raster of classes.
    """
    from bharateo.display import Display
    from bharateo.inference.class_raster import ClassRaster
    from bharateo.inference.polygons import POLYGONS_MARK, write_polygons
    from bharateo.outputs import check_ending, check_outputs
    from bharateo.pixels.vectors import unedited

    output, location = Path(output), Path(location)
    check_ending(output, "polygons are a GeoPackage", ".gpkg")
    check_outputs("polygons", {output: unedited(POLYGONS_MARK)}, [location])
    display = display or Display()
    raster = ClassRaster.open(location)
    with display.bar("polygons") as bar:
        count = write_polygons(output, raster, min_area_ha, bar.update, display.say)
    display.say(f"polygons: {output} ({count:,})")
    return output
