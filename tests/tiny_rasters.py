"""Small GeoTIFFs of given values."""

import rasterio
from affine import Affine


def write_raster(path, values, **options):
    """A file of ``values`` (band, row, col) on 10 m pixels of UTM zone 43."""
    count, height, width = values.shape
    profile = {
        "driver": "GTiff", "count": count, "height": height, "width": width,
        "dtype": values.dtype.name, "crs": "EPSG:32643",
        "transform": Affine(10, 0, 500_000, 0, -10, 3_000_000),
    }  # fmt: skip
    with rasterio.open(path, "w", **{**profile, **options}) as file:
        file.write(values)
    return path
