"""Cloud-optimised GeoTIFFs: written block by block with bounded memory, opened by anything.

Blocks go into a plain tiled GeoTIFF in a folder aside; GDAL's COG driver makes overviews and the
compressed file of it, which is then renamed into place. The same blocks give the same bytes.

Axes: band, row, col.
"""

from __future__ import annotations

import math
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

import numpy as np
import rasterio
import rasterio.shutil
from jaxtyping import Shaped
from odc.geo.geobox import GeoBox
from rasterio._err import CPLE_BaseError  # what copying lets through
from rasterio.errors import RasterioError
from rasterio.windows import Window

from bharateo.errors import CorruptRasterError, StorageError
from bharateo.files import write_text
from bharateo.pixels.formats import open_dataset, open_local

Block = tuple[int, int, Shaped[np.ndarray, "band row col"]]
"""First row, first column, and the stored values from there on."""

_CACHE_BYTES = 128 << 20
"""GDAL's own default is a twentieth of the machine's memory."""

_TILE_BYTES = 4 << 20
"""Of a tile with all its bands, before compression: what a reader of one pixel must take."""


@dataclass(frozen=True)
class Bands:
    """What a file's bands are.

    ``dtype`` is a NumPy name. ``float16`` values are kept as Float32: GDAL knows half floats from
    3.11 on only, and what it writes of them before (NBITS=16) is not the same bytes every time.
    Compressed they take no more room. Physical value = stored value x scale + offset. ``colours``
    (value -> red, green, blue) and ``categories`` (names of 0, 1, ...) are of a single ``uint8``
    band; the names lie beside the file in ``.aux.xml``, where GDAL looks.
    """

    dtype: str
    names: tuple[str, ...]
    nodata: float | None = None
    scales: tuple[float, ...] = ()
    offsets: tuple[float, ...] = ()
    colours: Mapping[int, tuple[int, int, int]] = field(default_factory=dict)
    categories: tuple[str, ...] = ()
    overviews: Literal["average", "nearest", "mode"] = "average"

    @property
    def stored_dtype(self) -> str:
        """The type of the file's values."""
        return "float32" if self.dtype == "float16" else self.dtype

    @property
    def tile_px(self) -> int:
        """Side of a tile: 512, less for many bands."""
        most = _TILE_BYTES / self._bytes_per_pixel
        return next((px for px in (512, 256) if px**2 <= most), 128)

    @property
    def tile_bytes(self) -> int:
        """Of a tile, before compression."""
        return self.tile_px**2 * self._bytes_per_pixel

    @property
    def _bytes_per_pixel(self) -> int:
        return len(self.names) * np.dtype(self.stored_dtype).itemsize


def write_cog(
    path: Path,
    geobox: GeoBox,
    bands: Bands,
    blocks: Iterable[Block],
    tags: Mapping[str, str] | None = None,
) -> None:
    """Write blocks that together cover the grid, in any order, as one COG; memory is bounded.

    Raises:
        StorageError: the disk is full or refuses; an old file is untouched.
    """
    with cog_writer(path, geobox, bands, tags) as write:
        for block in blocks:
            write(*block)


@contextmanager
def cog_writer(
    path: Path, geobox: GeoBox, bands: Bands, tags: Mapping[str, str] | None = None
) -> Iterator[Callable[[int, int, Shaped[np.ndarray, "band row col"]], None]]:
    """What takes the blocks of ``write_cog`` one by one; the file is there when the context ends
    well. Several may be open at once, fed by one pass over what they show.

    Raises:
        StorageError: the disk is full or refuses; an old file is untouched.
    """
    aside = path.with_name(f".{path.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)  # of a killed writer
    height, width = geobox.shape
    profile: dict[str, Any] = {
        "driver": "GTiff", "height": height, "width": width, "count": len(bands.names),
        "dtype": bands.stored_dtype, "nodata": bands.nodata, "crs": str(geobox.crs),
        "transform": geobox.affine, "tiled": True, "blockxsize": bands.tile_px,
        "blockysize": bands.tile_px, "bigtiff": "IF_SAFER",
    }  # fmt: skip
    if not bands.colours:  # else four bands of bytes pass for red, green, blue and opacity
        profile |= {"photometric": "MINISBLACK", "alpha": "NO"}
    statistics = _Statistics(len(bands.names), bands.nodata)
    try:
        with rasterio.Env(GDAL_CACHEMAX=_CACHE_BYTES):
            aside.mkdir(parents=True)
            with rasterio.open(aside / "tiles.tif", "w", **profile) as file:
                file.update_tags(**(tags or {}))
                file.descriptions = tuple(xml_characters(name) for name in bands.names)
                if bands.scales:
                    file.scales, file.offsets = bands.scales, bands.offsets
                if bands.colours:
                    file.write_colormap(1, dict(bands.colours))

                def write(row: int, col: int, values: Shaped[np.ndarray, "band row col"]) -> None:
                    stored = values.astype(bands.stored_dtype, copy=False)
                    window = Window(col, row, values.shape[2], values.shape[1])
                    try:
                        file.write(stored, window=window)
                    except (RasterioError, CPLE_BaseError, OSError) as error:
                        raise _cannot_write(path, error) from error
                    if not bands.colours:  # a mean of codes means nothing
                        statistics.add(stored)

                yield write
                for number, noted in enumerate(statistics.tags(height * width), 1):
                    file.update_tags(number, **noted)
            # GDAL writes the last tiles as a file closes, and says nothing of a full disk then.
            tiles = math.prod(-(-side // bands.tile_px) for side in geobox.shape)
            expected, found = tiles * bands.tile_bytes, (aside / "tiles.tif").stat().st_size
            if found < expected:
                raise OSError(f"{found} of {expected} bytes of its pixels could be written")
            options = {
                "COMPRESS": "DEFLATE",  # which every reader of GeoTIFFs has
                "PREDICTOR": "YES" if bands.overviews == "average" else "NO",  # codes have no slope
                "OVERVIEW_RESAMPLING": bands.overviews.upper(),
                "BLOCKSIZE": str(bands.tile_px),
                "BIGTIFF": "IF_SAFER",
            }
            rasterio.shutil.copy(aside / "tiles.tif", aside / "cog.tif", driver="COG", **options)
            # Pixels come last: a full disk shows there.
            finished = open_dataset(aside / "cog.tif", "GTiff", str(aside / "cog.tif"))
            finished.dataset.read(1, window=Window(width - 1, height - 1, 1, 1))
            finished.close()
            with (aside / "cog.tif").open("rb+") as content:
                os.fsync(content.fileno())
            sidecar = path.with_name(f"{path.name}.aux.xml")
            sidecar.unlink(missing_ok=True)  # what GDAL has noted of an older file
            if bands.categories:
                # As GDAL keeps them beside a file (PAM).
                root = ElementTree.Element("PAMDataset")
                band = ElementTree.SubElement(root, "PAMRasterBand", band="1")
                categories = ElementTree.SubElement(band, "CategoryNames")
                for name in bands.categories:
                    ElementTree.SubElement(categories, "Category").text = xml_characters(name)
                write_text(sidecar, ElementTree.tostring(root, encoding="unicode") + "\n")
            (aside / "cog.tif").replace(path)
            shutil.rmtree(aside)
    except (RasterioError, CPLE_BaseError, OSError) as error:
        raise _cannot_write(path, error) from error


def _cannot_write(path: Path, error: BaseException) -> StorageError:
    return StorageError(
        f"cannot write {path} ({error.__cause__ or error}): free some space or choose another "
        "--output, then run the same command again: it goes on where it stopped"
    )


def cog_tags(path: Path) -> dict[str, str]:
    """The tags a file was written with; none where there is no such raster."""
    try:
        opened = open_local(path)
        tags: dict[str, str] = opened.dataset.tags() if opened else {}
        if opened:
            opened.close()
    except (RasterioError, CorruptRasterError):
        return {}
    return tags


def xml_characters(text: str) -> str:
    """A text with U+FFFD for every character that XML 1.0 cannot hold, escaped or not: controls,
    halves of surrogate pairs. GDAL keeps names in XML inside its files, too.

    Source: Extensible Markup Language (XML) 1.0, production 2 (Char).
    """
    return re.sub("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", text)


class _Statistics:
    """What GDAL calls a band's statistics, of stored values, so that no viewer scans the file."""

    def __init__(self, num_bands: int, nodata: float | None) -> None:
        self._nodata = nodata
        self._count = np.zeros(num_bands, np.int64)
        self._total, self._square = np.zeros(num_bands), np.zeros(num_bands)
        self._least, self._most = np.full(num_bands, np.inf), np.full(num_bands, -np.inf)

    def add(self, values: Shaped[np.ndarray, "band row col"]) -> None:
        for band, stored in enumerate(values):
            known = stored[np.isfinite(stored) & (stored != self._nodata)].astype(np.float64)
            if known.size:
                self._count[band] += known.size
                self._total[band] += known.sum()
                self._square[band] += np.square(known).sum()
                self._least[band] = min(self._least[band], known.min())
                self._most[band] = max(self._most[band], known.max())

    def tags(self, num_pixels: int) -> Iterator[dict[str, str]]:
        """Of every band; none of a band without a value."""
        for band, count in enumerate(self._count.tolist()):
            if not count:
                yield {}
                continue
            mean = float(self._total[band]) / count
            variance = max(float(self._square[band]) / count - mean**2, 0.0)
            noted = {
                "MINIMUM": float(self._least[band]), "MAXIMUM": float(self._most[band]),
                "MEAN": mean, "STDDEV": math.sqrt(variance),
                "VALID_PERCENT": round(100 * count / num_pixels, 4),
            }  # fmt: skip
            yield {f"STATISTICS_{name}": repr(value) for name, value in noted.items()}
