"""Figures one can sign: points to label, areas with intervals, change above its floor."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from bharateo.verbs.arguments import (
    Location,
    MaybeDisplay,
    Output,
    PathLike,
    Paths,
    Words,
    list_of_paths,
)

if TYPE_CHECKING:
    from bharateo.survey.areas import AreasRecord
    from bharateo.survey.change import ChangeRecord
    from bharateo.survey.sample import SampleRecord


def sample(
    map_file: Annotated[PathLike, Parameter(name="MAP")],
    output: Output,
    *,
    total: Annotated[int | None, Parameter(metavar="N")] = None,
    per_class: Annotated[int | None, Parameter(metavar="N")] = None,
    allocation: Literal["proportional", "equal", "neyman"] = "proportional",
    zones: PathLike | None = None,
    zone_field: str | None = None,
    image: Annotated[Location | None, Parameter(metavar="RASTER")] = None,
    seed: int = 0,
    display: MaybeDisplay = None,
) -> SampleRecord:
    """Points of a map to label: a stratified random sample.

    Draws cells of a map of classes at random, so many in each of its classes (and zones), never
    where it has no data. Memory does not grow with the map. What `bharateo areas` needs to know of
    them is kept in POINTS.json, and in the table `design` of POINTS.gpkg.

      bharateo sample district-map.tif --total 600 --output points.gpkg
      bharateo sample district-map.tif --total 600 --image district.tif -o p.gpkg
      bharateo sample map.tif --per-class 50 --zones blocks.gpkg \\
          --zone-field name --output p.gpkg
      bharateo sample ESA_WorldCover_10m_2021_v200_N27E075_Map.tif --total 800 \\
          --output wc.gpkg

    Open POINTS.gpkg in QGIS and fill in `label` with the name of a class, or `unsure`; or, with
    --image, open POINTS-label.html in a browser and answer with keys: it saves POINTS.geojson,
    which areas takes as well. Neither says what the map says there, which would lead whoever
    labels. Run again, the verb leaves answers alone.

    Args:
        map_file: MAP.tif of map or teach, or any raster of one band whose values are classes
        output: POINTS.gpkg to write; POINTS.json lies beside it
        total: points in all, shared out over the strata
        per_class: points in every stratum (a class, in every zone)
        allocation: how a total is shared out: by area; equally; by area and the doubt of the
            map's own probabilities (Neyman). Each stratum gets 50 at least where the total allows
        zones: polygons; every class in every zone is then a stratum, and ground outside is left out
        zone_field: the field that holds the zones' names
        image: a raster to cut a picture of every point from, into POINTS-pictures/ID.png, shown by
            POINTS-label.html
        seed: of the random numbers; another one gives other points

    Returns:
        The plan, as POINTS.json holds it.

    Raises:
        ConfigError: an option does not fit, or there are answers in POINTS.gpkg.
        RegionError: the zones cannot be used.
        SourceError: the map or the image cannot be read.
    """
    from bharateo.display import Display
    from bharateo.outputs import check_ending
    from bharateo.survey.ground import ClassMap, Zoning
    from bharateo.survey.sample import SamplePlan, draw_sample, places

    output, display = Path(output), display or Display()
    check_ending(output, "a sample is a GeoPackage", ".gpkg")
    plan = SamplePlan(per_class, total, allocation, seed)
    ground = ClassMap(Path(map_file))
    zoning = Zoning.of(ground.geobox, None if zones is None else Path(zones), zone_field)
    with display.bar("sample") as bar:
        record = draw_sample(ground, zoning, plan, output, bar.update, display.say)
        if image is not None:
            from bharateo.explorer.points import write_points_page
            from bharateo.report.point_pictures import picture_files, write_pictures

            where, files = places(record, ground), picture_files(output, len(record.points))
            write_pictures(str(image), where, files, bar.update)
            page = write_points_page(output, record, where, [map_file, image])
            display.say(f"a page to answer the points on: {page}")
    names = {each.code: each.name for each in record.classes}
    display.say(f"points: {record.allocation}")
    display.columns(
        ("class", "zone", "cells", "hectares", "points"),
        [(names[each.code], each.zone, f"{each.cells:,}", f"{each.m2 / 1e4:,.1f}", str(each.points))
         for each in record.strata],
    )  # fmt: skip
    display.say(
        f"points: {output}: fill in `label`, then: bharateo areas {map_file} {output} --output "
        f"{output.with_name('areas.csv')}"
    )
    return record


def areas(
    map_file: Annotated[PathLike, Parameter(name="MAP")],
    labels: Annotated[PathLike, Parameter(name="LABELS")],
    output: Output,
    *,
    estimator: Literal["auto", "design-based", "model-assisted"] = "auto",
    more_classes: Words = (),
    zones: PathLike | None = None,
    display: MaybeDisplay = None,
) -> AreasRecord:
    """Areas by class, and how accurate a map is, with 95 % intervals.

    Takes the points that `bharateo sample` drew, with their labels filled in: hectares of every
    class, user's, producer's and overall accuracy, by zone if the sample was. A map's own count of
    cells stands beside, which has no interval and all of the map's errors. Writes AREAS.csv,
    AREAS.json and AREAS.html.

      bharateo areas district-map.tif points.gpkg --output areas.csv
      bharateo areas newer-map.tif points.gpkg --output newer.csv
      bharateo areas map.tif points.gpkg --output areas.csv --more-classes orchard

    Where the map carries probabilities, areas are helped by them, which makes intervals narrower
    and no estimate wrong. The map may be another one of the same cells than the sample was drawn
    from. Points that the map learned from are refused.

    Args:
        map_file: MAP.tif of map or teach, or any raster of one band whose values are classes
        labels: POINTS.gpkg of sample, labelled, or the POINTS.geojson that its page saves; with
            POINTS.json beside it
        output: AREAS.csv to write; AREAS.json and AREAS.html lie beside it
        estimator: auto: model-assisted where the map carries probabilities
        more_classes: classes that the map lacks and labels name
        zones: where the sample's file of zones is now, if it was moved

    Returns:
        The figures, as AREAS.json holds them.

    Raises:
        ConfigError: labels or options do not fit.
        ContractError: the map is of other cells than the sample, or learned from its points.
        SourceError: a file cannot be read.
    """
    from bharateo.display import Display
    from bharateo.outputs import check_ending, check_outputs
    from bharateo.report.areas import page_path, page_products, write_page
    from bharateo.survey.areas import (
        HEADER,
        areas_products,
        estimate_areas,
        shown,
        write_areas,
    )
    from bharateo.survey.ground import ClassMap

    output, labels, display = Path(output), Path(labels), display or Display()
    check_ending(output, "areas are a table", ".csv")
    inputs = [map_file, labels, labels.with_suffix(".json"), *([] if zones is None else [zones])]
    check_outputs("areas", {**areas_products(output), **page_products(output)}, inputs)
    place = None if zones is None else Path(zones)
    with display.bar("areas") as bar:
        record = estimate_areas(
            ClassMap(Path(map_file)), labels, estimator, tuple(more_classes), place, bar.update
        )
    write_page(output, record)
    write_areas(output, record)
    for zone in record.zones:
        title = (
            f"{zone.zone}: {zone.hectares:,.1f} ha, {zone.points} points; overall accuracy "
            f"{shown(zone.overall_accuracy, '.2f')}"
        )
        display.columns(HEADER, list(record.rows(zone.zone)), title)
    display.say(f"in brackets: {record.intervals}; areas: {record.estimator}")
    for note in record.notes:
        display.say(f"note: {note}")
    display.say(f"areas: {output}; page: {page_path(output)}")
    return record


def change(
    before: Annotated[PathLike, Parameter(name="MAP_A")],
    after: Annotated[PathLike, Parameter(name="MAP_B")],
    output: Output,
    *,
    stable: PathLike | None = None,
    repeats: Annotated[Paths, Parameter(name="--repeat")] = (),
    zones: PathLike | None = None,
    zone_field: str | None = None,
    display: MaybeDisplay = None,
) -> ChangeRecord:
    """Change between two maps, above what flips without any.

    Two maps of the same ground differ in many cells though nothing has changed. This measures how
    many first, and tells change only where more differ, by zone, with a 95 % interval; elsewhere it
    says that no change can be told. Writes CHANGE.csv and CHANGE.json.

      bharateo change 2021.tif 2024.tif --stable points.gpkg --output change.csv
      bharateo change 2021.tif 2024.tif --repeat 2021-later.tif -o change.csv \\
          --zones districts.gpkg --zone-field name

    Args:
        before: the map of the first date
        after: the map of the second date, on the same grid, of the same classes
        output: CHANGE.csv to write; CHANGE.json lies beside it
        stable: points on ground that has not changed: those labelled `stable` of a file with a
            field `label`, all of another
        repeats: a map of the first date's ground from another image of that time; repeat for
            several
        zones: polygons to tell change by
        zone_field: the field that holds the zones' names

    Returns:
        What was found, as CHANGE.json holds it.

    Raises:
        ConfigError: there is nothing to measure the floor by.
        ContractError: the maps are of different grids or classes.
        SourceError: a file cannot be read.
    """
    from bharateo.display import Display
    from bharateo.outputs import check_ending, check_outputs
    from bharateo.survey.change import change_products, measure_change, write_change
    from bharateo.survey.ground import ClassMap, Zoning

    output, display = Path(output), display or Display()
    check_ending(output, "change is a table", ".csv")
    others = list_of_paths(repeats)
    given = [before, after, *others, *(each for each in (stable, zones) if each is not None)]
    check_outputs("change", change_products(output), given)
    first, second, *more = (ClassMap(Path(each)) for each in (before, after, *others))
    zoning = Zoning.of(first.geobox, None if zones is None else Path(zones), zone_field)
    points = None if stable is None else Path(stable)
    with display.bar("change") as bar:
        record = measure_change(first, second, more, points, zoning, bar.update)
    write_change(output, record)
    for line in record.lines():
        display.say(line)
    display.say(f"change: {output}")
    return record
