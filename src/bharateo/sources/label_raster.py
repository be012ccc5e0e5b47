"""Labels from a raster of land-cover codes that a user has."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from odc.geo.geobox import GeoBox

from bharateo.errors import ConfigError, CorruptRasterError, UnknownCodeError
from bharateo.landcover import BHARATEO_CLASSES, WORLDCOVER, ClassScheme
from bharateo.pixels.raster import Raster, RasterFile, open_raster
from bharateo.sources.raster_files import as_integer


class LabelRaster:
    """Land-cover codes from a raster of one band, brought to a grid by nearest neighbour.

    ``classes``: code -> class id 0..7; WorldCover's codes if empty. Nodata is what the file says,
    else 0, unless that is a class; ground that the raster does not reach, or that its mask or alpha
    band leaves out, has no label.

    Raises:
        ConfigError: the file does not exist, or a class contradicts its nodata.
        CorruptRasterError: it is no raster of one band of integers.
    """

    attribution: tuple[str, ...] = ()

    def __init__(self, path: Path, classes: Mapping[int, int]) -> None:
        self.path, self.classes = path, dict(classes)
        self.name = f"label raster {path.name}"
        self._file: RasterFile | None = None
        self._lock = threading.Lock()
        with self._lock:
            file = self._opened()
            self._nodata = as_integer(file.nodata[0], file.dtype)
            highest = int(min(np.iinfo(file.dtype).max, 255))
        self.scheme = self._scheme_up_to(highest)

    def __reduce__(self) -> tuple[Any, ...]:
        return LabelRaster, (self.path, self.classes)

    def read(self, geobox: GeoBox) -> Raster:
        """Native codes on any grid, uint8 (1, row, col), the scheme's nodata where there is none.

        Raises:
            CorruptRasterError: the file is damaged.
            UnknownCodeError: a code is no number from 0 to 255.
        """
        fill = self.scheme.nodata if self._nodata is None else self._nodata
        with self._lock:
            file = self._opened()
            try:
                codes = file.read_on(geobox, "nearest", fill, masked=True)[0]
            except BaseException:
                self._file = None  # an error closes it
                raise
        valid = codes != fill
        wrong = valid & ((codes < 0) | (codes > 255))
        if wrong.any():
            raise UnknownCodeError(
                f"code {codes[wrong].min()} in {self.path} is not one from 0 to 255: name it as "
                "the file's nodata (gdal_edit.py -a_nodata) or give the classes other codes"
            )
        native = np.where(valid, codes, self.scheme.nodata).astype(np.uint8)
        provenance = {"file": str(self.path), **file.identity, "resampling": "nearest neighbour"}
        return Raster(native[None], valid, geobox, provenance)

    def _opened(self) -> RasterFile:
        if self._file is None:
            self._file = self._checked(open_raster(str(self.path), vrt=True))
        return self._file

    def _checked(self, file: RasterFile | None) -> RasterFile:
        if file is None:
            raise ConfigError(
                f"data.geotiff.labels {str(self.path)!r} does not exist: give 'worldcover' or a "
                "raster with one band of land-cover codes"
            )
        if file.num_bands != 1 or file.dtype.kind not in "ui":
            raise CorruptRasterError(
                f"{self.path} has {file.num_bands} band(s) of {file.dtype}, labels are one band "
                "of integers: take the band with gdal_translate -b N -ot Byte"
            )
        _ = file.geobox  # it must say where it lies
        return file

    def _scheme_up_to(self, highest: int) -> ClassScheme:
        native = {
            code: (BHARATEO_CLASSES[class_id].name, class_id)
            for code, class_id in self.classes.items()
        } or WORLDCOVER.native
        if self._nodata in native:
            raise ConfigError(
                f"data.geotiff.label_classes makes code {self._nodata} a class, which is nodata in "
                f"{self.path}: leave it out, or run gdal_edit.py -unsetnodata on the file"
            )
        nodata = 0 if self._nodata is None else self._nodata
        if nodata in native or not 0 <= nodata <= 255:
            nodata = max({*range(highest + 1)} - {*native})
        name = self.name if self.classes else WORLDCOVER.name
        return ClassScheme(name, native, nodata)
