"""A place and some dates into a raster."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from bharateo.verbs.arguments import MaybeDisplay, MaybeOutput, PathLike, Settings, Words

if TYPE_CHECKING:
    from bharateo.composite.plan import CompositeRecord
    from bharateo.regions import Zone


def write_composite(
    dates: Annotated[str, Parameter(metavar="FIRST/LAST")],
    output: MaybeOutput = None,
    *,
    aoi: PathLike | None = None,
    zone_field: str | None = None,
    zone: str | None = None,
    roi: str | None = None,
    season: str | None = None,
    bands: Words = ("10band",),
    method: Literal["median", "medoid", "best"] = "median",
    max_cloud: Annotated[float, Parameter(metavar="PERCENT")] = 60.0,
    max_dates: int = 12,
    margin_px: Annotated[int, Parameter(name="--margin", metavar="PX")] = 10,
    dry_run: bool = False,
    mbit: float = 200.0,
    settings: Settings = (),
    display: MaybeDisplay = None,
) -> CompositeRecord:
    """A place and dates into a cloud-free raster.

    Reads the Sentinel-2 L2A scenes of a place from a catalogue, leaves out cloud and its shadow
    with a margin, and writes of every pixel the median of its clear days. Memory does not grow
    with the place. Killed and run again, it goes on where it stopped.

      bharateo composite --aoi districts.gpkg --zone-field name --zone Pune \\
          --dates 2024-11-01/2025-02-28 --output pune.tif
      bharateo composite --roi pune=73.86,18.52 --dates 2024-07-01/2025-06-30 \\
          --season rabi --output pune.tif --dry-run

    NAME.tif is a cloud-optimised GeoTIFF of 10 m in the UTM zone of the place's middle, clipped to
    it: reflectance x 10000, 0 where there is no data. NAME-observations.tif says of every pixel how
    many days were clear, the first, the last and the day of its values (days since 1970-01-01).
    Beside them lie NAME.png and a QGIS style (true colour), NAME.json (scenes, their offsets and
    why, attribution) and a STAC Item. Any verb that takes a raster takes NAME.tif.

    Args:
        dates: first and last day, e.g. 2024-11-01/2025-02-28
        output: the raster to write, NAME.tif; its other files get their names
        aoi: a file of polygons (GeoJSON, GeoPackage): the place is all of them, or those of --zone
        zone_field: the column that names the polygons
        zone: the name of the polygons to take, in the column --zone-field
        roi: the place as NAME=LON,LAT[,SIZE_PX] or NAME=WEST,SOUTH,EAST,NORTH or a known name
            (delhi_ncr, shekhawati, mathura_belt), instead of --aoi
        season: of all dates, those in rabi (November to March), summer (April to June), kharif
            (July to October) or NAME=FIRST-LAST in months
        bands: 10band, rgbn, rgb, liss, or names of bands in order
        method: median: of every band by itself; medoid: the day whose spectrum is most like those
            of all other days; best: the day with the least cloud
        max_cloud: cloud that a scene may have, in percent, and be looked at
        max_dates: days that a window of 2048 px is made of, at most: those whose scene covers most
            of it, then those with the least cloud
        margin_px: ground as near as this to cloud or shadow, in rows and columns, is left out too
        dry_run: print days, scenes, requests, bytes, disk and hours, and read no pixel
        mbit: --dry-run: the network's speed in Mbit/s
        settings: override one key of `data.sentinel2`, e.g.
            data.sentinel2.catalogue=planetary-computer; repeat for several

    Returns:
        The composite's record, as NAME.json holds it; None from a dry run.

    Raises:
        ConfigError, RegionError: the place, dates or an option cannot be.
        EmptyRegionError: no scene shows the place.
        BuildError: the pixels of too many scenes contradict what is said of their offset.
        SourceError: pixels cannot be had.
        StorageError: the disk is full.
    """
    import tempfile

    from bharateo.composite.ground import Ground
    from bharateo.composite.plan import Request, budget, find_scenes
    from bharateo.composite.write import own_products
    from bharateo.composite.write import write_composite as write
    from bharateo.config import Config, with_settings
    from bharateo.display import Display
    from bharateo.errors import ConfigError
    from bharateo.memory import return_freed_memory
    from bharateo.outputs import check_outputs
    from bharateo.sensor import named_bands
    from bharateo.sources.sentinel2 import Sentinel2

    display = display or Display()
    if output is None and not dry_run:
        raise ConfigError("--output is missing: name the raster to write, e.g. --output place.tif")
    if output is not None:
        check_outputs("composite", own_products(Path(output)), [aoi] if aoi else [])
    own = {
        "data.sentinel2.dates": dates,
        "data.sentinel2.seasons": [season] if season else [],
        "data.sentinel2.max_cloud": max_cloud,
    }
    config = with_settings(with_settings(Config(), own), settings).data.sentinel2
    source = Sentinel2(named_bands(bands), config)
    ground = Ground(_place(aoi, zone_field, zone, roi))
    request = Request(ground, source, method, margin_px, max_dates)
    return_freed_memory()
    with display.bar("composite") as bar:
        if dry_run:
            with tempfile.TemporaryDirectory() as folder:
                scenes, found = find_scenes(request, Path(folder), bar.update)
        else:
            record = write(request, Path(str(output)), bar.update, display.say)
    if dry_run:
        for complaint in scenes.complaints():
            display.say(f"warning: {complaint}")
        display.table("what the composite will take", budget(request, scenes, found).rows(mbit))
        return None  # type: ignore[return-value]  # only to those who ask for nothing
    for line in record.lines():
        display.say(line)
    display.say(f"composite: {output}")
    return record


def _place(aoi: PathLike | None, zone_field: str | None, zone: str | None, roi: str | None) -> Zone:
    """The place that is asked for, as one zone in degrees."""
    import shapely

    from bharateo.artefacts import shortened
    from bharateo.config import DataConfig
    from bharateo.errors import ConfigError, RegionError
    from bharateo.regions import Zone
    from bharateo.sources.areas import file_zones, zones_of

    if (aoi is None) == (roi is None):
        raise ConfigError(
            "give one place: --aoi FILE (with --zone-field COLUMN --zone NAME for some of its "
            "polygons) or --roi NAME=LON,LAT"
        )
    if roi is not None:
        if zone or zone_field:
            raise ConfigError("--zone and --zone-field are of --aoi: leave them out with --roi")
        (found,) = zones_of(DataConfig(rois=(roi,)))
        return found
    if zone and not zone_field:
        raise ConfigError(f"--zone {zone}: say in which column, with --zone-field COLUMN")
    path = Path(str(aoi))
    zones = file_zones(path, zone_field, "--aoi", "--zone-field")
    if zone is None:
        return Zone(path.stem, shapely.union_all([each.outline for each in zones]))
    named = next((each for each in zones if each.name == zone), None)
    if named is None:
        names = shortened(", ".join(each.name for each in zones))
        raise RegionError(f"--zone {zone!r} is not in column {zone_field!r} of {path}: {names}")
    return named
