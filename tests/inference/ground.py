"""A raster of made-up ground (classes as levels of two bands), its labels, and a run for it."""

import numpy as np
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox

from bharateo.training.loop import pretrain
from small_datasets import Pixels, class_codes, many_bands, small_config

AFFINE = Affine(10, 0, 400_007, 0, -10, 3_000_003)


def grid_of(height, width, crs="EPSG:32643"):
    return GeoBox((height, width), AFFINE, crs)


def write_raster(path, height=151, width=190, change=lambda values: values):
    """Two bands of reflectance with stripes of nodata (0)."""
    made = Pixels(many_bands(2)).read(grid_of(height, width))
    values = change(np.where(made.valid, made.values, 0).astype(np.uint16))
    profile = {"driver": "GTiff", "height": height, "width": width, "count": 2, "nodata": 0,
               "dtype": "uint16", "crs": "EPSG:32643", "transform": AFFINE}  # fmt: skip
    with rasterio.open(path, "w", **profile) as file:
        file.descriptions = many_bands(2).band_names
        file.write(values)
    return path


def write_labels(path, height=151, width=190, change=lambda codes: codes):
    """The codes the raster was made of."""
    codes = change(class_codes(grid_of(height, width)))
    profile = {"driver": "GTiff", "height": height, "width": width, "count": 1, "nodata": 0,
               "dtype": "uint8", "crs": "EPSG:32643", "transform": AFFINE}  # fmt: skip
    with rasterio.open(path, "w", **profile) as file:
        file.write(codes[None])
    return path


def trained_run(dataset, folder, epochs=12):
    """A run that knows the classes of the dataset."""
    return pretrain(dataset, small_config(target="mode", epochs=epochs), folder)
