"""Two UTM zones over several days behind a catalogue, and the composite that must come of them."""

from contextlib import contextmanager
from datetime import date
from pathlib import Path

import numpy as np
import rasterio
import rasterio.warp
from rasterio.enums import Resampling

from bharateo.sources.sentinel2 import CLOUD_SCL, VALID_SCL
from bharateo.verbs.cli import main
from sentinel2_rig import World, acquire, ground_with_holes, served

MARGIN_PX = 3
DATES = "2021-11-01/2022-03-31"
BOX = (77.9452, 28.6032, 78.0287, 28.6131)
"""West, south, east, north; the middle is in zone 43."""
WEST_BOX = (77.9452, 28.6032, 77.9811, 28.6131)
"""Zone 43 alone."""
SHAPE = (160, 512)
BANDS = ("B02", "B08", "B12")
"""Two of 10 m, one of 20 m."""

HOW = {
    # Before baseline 04.00; since then with the offset taken out by the catalogue, or still in.
    "2021-12-05": {"baseline": "03.01", "dn_offset": 0, "flag": False, "cloud_cover": 3.0},
    "2022-01-14": {"baseline": "04.00", "dn_offset": 0, "flag": True, "cloud_cover": 7.0},
    "2022-02-03": {"baseline": "05.09", "dn_offset": 1000, "flag": False, "cloud_cover": 5.0},
    "2022-03-05": {"baseline": "05.09", "dn_offset": 1000, "flag": False, "cloud_cover": 55.0},
}
"""What the scenes of a day are; those of the last are cloudy."""


def two_zone_days(folder: Path) -> World:
    """A scene in each zone on each of the days, with holes, little clouds and one large cloud."""
    world = World(folder, [])
    for number, (day, how) in enumerate(HOW.items()):
        cloudy = how["cloud_cover"] > 50
        cloud_cols = slice(0, 512) if cloudy else slice(100 * number, 100 * number + 150)
        for epsg, mgrs in ((32643, "43RGM"), (32644, "44RKS")):
            world.acquisitions.append(acquire(
                folder, f"{mgrs}-{day}", ground_with_holes(number + 10 * epsg, shape=SHAPE),
                epsg=epsg, mgrs=mgrs, when=f"{day}T05:30:00Z",
                cloud_over=(slice(0, 110), cloud_cols), **how,
            ))  # fmt: skip
    return world


@contextmanager
def catalogue(world):
    """What composites the place from a world behind its servers: output, more words -> status."""
    with served(world) as rig:
        url = rig.settings["data.sentinel2.catalogue"]

        def composite(output, *more, box=BOX, dates=DATES):
            return main(command(url, output, *more, box=box, dates=dates))

        composite.rig, composite.url = rig, url
        yield composite


def command(url, output, *more, box=BOX, dates=DATES):
    """The command line of a composite; ``box`` is None where ``more`` has a place."""
    place = () if box is None else ("--roi", f"border={','.join(map(str, box))}")
    words = [*place, "--dates", dates, "--margin", MARGIN_PX, "--bands", *BANDS,
             "--set", f"data.sentinel2.catalogue={url}", *more]  # fmt: skip
    return ["composite", *map(str, words), *(("--output", str(output)) if output else ())]


# A plain reference: whole images, one scene after the other


def on_grid(path, like, method):
    """A file on the grid of another, as GDAL warps the whole of it."""
    with rasterio.open(path) as file, rasterio.open(like) as grid:
        out = np.zeros(grid.shape, file.dtypes[0])
        rasterio.warp.reproject(
            file.read(1), out, src_transform=file.transform, src_crs=file.crs, src_nodata=0,
            dst_transform=grid.transform, dst_crs=grid.crs, dst_nodata=0, resampling=method,
            tolerance=0.01,
        )  # fmt: skip
        return out


def observed(scene, dn_offset, like):
    """Reflectance of a scene, 0 where it is not clear, and where the scene holds data."""
    scl = on_grid(scene.path("SCL"), like, Resampling.nearest)
    cloud = np.pad(np.isin(scl, CLOUD_SCL), MARGIN_PX)
    near = np.zeros(scl.shape, bool)
    for row in range(2 * MARGIN_PX + 1):
        for col in range(2 * MARGIN_PX + 1):
            near |= cloud[row : row + scl.shape[0], col : col + scl.shape[1]]
    stored = np.stack([on_grid(scene.path(band), like, Resampling.bilinear) for band in BANDS])
    clear = np.isin(scl, VALID_SCL) & ~near & (stored > 0).all(0)
    return np.where(clear, np.maximum(stored.astype(int) - dn_offset, 1), 0), scl > 0


def in_box(like, box):
    """The pixels whose centre lies in a box of degrees."""
    with rasterio.open(like) as file:
        rows, cols = np.indices(file.shape)
        x, y = file.transform @ (cols + 0.5, rows + 0.5)
        lon, lat = rasterio.warp.transform(file.crs, "EPSG:4326", x.ravel(), y.ravel())
    west, south, east, north = box
    lon, lat = (np.reshape(each, rows.shape) for each in (lon, lat))
    return (west < lon) & (lon < east) & (south < lat) & (lat < north)


def expected(world, like, box=BOX):
    """Median and observations by the definition of each, NaN for what is not seen.

    Of a day, a pixel is of the scene on the composite's own grid, zone 43, where that holds data.
    """
    days, stack, within = [], [], in_box(like, box)
    for day, how in HOW.items():
        values, free = np.zeros((len(BANDS), *within.shape), int), within
        for acquisition in world.acquisitions:  # zone 43 comes first
            if acquisition.files.name.endswith(day):
                reflectance, held = observed(acquisition.files, how["dn_offset"], like)
                values += np.where(free, reflectance, 0)
                free = free & ~held
        days.append((date.fromisoformat(day) - date(1970, 1, 1)).days)
        stack.append(values)
    stack = np.where(np.array(stack) == 0, np.nan, stack)
    day = np.where(np.isnan(stack[:, 0]), np.nan, np.array(days)[:, None, None])
    number = (~np.isnan(day)).sum(0)
    middle = np.maximum((number - 1) // 2, 0)
    median_day = np.take_along_axis(np.sort(day, 0), middle[None], 0)[0]
    about = np.stack([number, np.nanmin(day, 0), np.nanmax(day, 0), median_day])
    return np.floor(np.nanmedian(stack, 0) + 0.5), about


def read(path):
    """All bands of a file."""
    with rasterio.open(path) as file:
        return file.read()
