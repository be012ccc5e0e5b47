"""Two sets of labels of one Sentinel-2 crop (Aberystwyth, 2021-05-27, 947 x 930 px at 10 m).

Each is (row, col) of pixels by class, set by eye on true and false colours; the second was set in a
look of its own at other places, to score maps by. The pixels are not part of the project.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import geopandas as gpd
import rasterio

Points = Mapping[str, Sequence[tuple[int, int]]]

FIRST: Points = {
    "water": ((50, 60), (150, 100), (250, 40), (330, 90), (420, 30), (540, 40), (620, 20),
              (200, 130)),
    "town": ((385, 130), (400, 350), (375, 325), (545, 410), (520, 235), (110, 490), (160, 740),
             (555, 225)),
    "woods": ((262, 640), (245, 600), (722, 445), (755, 408), (690, 545), (158, 562), (225, 532),
              (588, 655)),
    "fields": ((535, 265), (120, 650), (515, 145), (665, 495), (735, 480), (660, 790), (655, 530),
               (525, 668)),
}  # fmt: skip

SECOND: Points = {
    "water": ((30, 140), (100, 30), (300, 60), (360, 60), (480, 40), (590, 40), (650, 10),
              (474, 767), (440, 118), (160, 60), (220, 20), (280, 100)),
    "town": ((380, 150), (398, 258), (368, 350), (430, 155), (555, 425), (505, 225), (212, 568),
             (80, 525), (155, 705), (482, 290), (565, 200), (25, 565)),
    "woods": ((270, 622), (255, 660), (762, 440), (755, 520), (800, 517), (688, 565), (172, 558),
              (215, 475), (705, 592), (688, 395), (612, 727), (450, 276)),
    "fields": ((205, 650), (130, 590), (560, 680), (740, 540), (350, 700), (850, 560), (600, 600),
               (800, 410), (78, 355), (325, 225), (545, 725), (480, 640)),
}  # fmt: skip

_BESIDE = Path(__file__).parents[2] / "shared" / "data"
RASTER = (
    Path(os.environ.get("BHARATEO_TEST_DATA", _BESIDE))
    / "s2-multiband"
    / "aberystwyth_20210527_10band.tif"
)


def write_points(points: Points, path: Path) -> Path:
    """The middles of the pixels as GeoJSON in degrees, with a field ``class``."""
    with rasterio.open(RASTER) as file:
        rows = [(name, *file.xy(*pixel)) for name, pixels in points.items() for pixel in pixels]
        names, x, y = zip(*rows, strict=True)
        frame = gpd.GeoDataFrame({"class": names}, geometry=gpd.points_from_xy(x, y), crs=file.crs)
    frame.to_crs("EPSG:4326").to_file(path)
    return path
