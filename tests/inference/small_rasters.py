"""Rasters of numbers as large as one likes, like the pixels of ``small_datasets``."""

import numpy as np
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox

from small_datasets import Pixels, many_bands


def small_grid(height, width, crs="EPSG:32643"):
    return GeoBox((height, width), Affine(10, 0, 400_007.3, 0, -10, 3_000_001.9), crs)


def write_raster(path, height, width, num_bands=2, tile=None):
    """Two standardised bands with stripes and a square of nodata (0); ``tile`` repeats the first
    so many pixels.
    """
    sensor = many_bands(num_bands)
    made = Pixels(sensor).read(small_grid(*(tile or (height, width))))
    values = np.where(made.valid, made.values, 0).astype(np.uint16)
    if tile:
        values = np.tile(values, (1, -(-height // tile[0]), -(-width // tile[1])))
    values = values[:, :height, :width]
    values[:, 90:130, 50:80] = 0
    profile = {
        "driver": "GTiff", "height": values.shape[1], "width": values.shape[2],
        "count": num_bands, "dtype": "uint16", "nodata": 0, "crs": "EPSG:32643",
        "transform": small_grid(height, width).affine,
        "tiled": True, "blockxsize": 256, "blockysize": 256,
    }  # fmt: skip
    with rasterio.open(path, "w", **profile) as file:
        file.descriptions = sensor.band_names
        file.write(values)
    return path
