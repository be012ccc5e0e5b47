"""An embedded area: the vectors of its places in chunks, and where the places lie.

Both files that ``embed`` writes are areas: a GeoParquet table, whose rows are the places, and a
COG, whose cells are. Nothing but two numbers a place is kept in memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import geopandas as gpd
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely
from jaxtyping import Float, Float32, Int64
from pyproj import CRS
from pyproj.exceptions import CRSError, ProjError
from shapely.geometry import box

from bharateo.artefacts import shortened
from bharateo.errors import SourceError
from bharateo.files import open_file
from bharateo.geography import to_lonlat
from bharateo.pixels.product import provenance_of
from bharateo.pixels.raster import RasterFile, open_raster
from bharateo.training.contract import CONTRACT_FILE

_CHUNK_BYTES = 64 << 20

_NO_TABLE = (OSError, pa.ArrowException, KeyError, TypeError, ValueError, AttributeError,
             IndexError, RecursionError, CRSError)  # fmt: skip
"""What reading a file raises that is no GeoParquet, or a damaged one."""

Chunk = tuple[Int64[np.ndarray, " some"], Float[np.ndarray, "some dim"]]
"""Numbers of some places, and their vectors (float32)."""


@runtime_checkable
class Area(Protocol):
    """Places, most of them with a vector."""

    @property
    def path(self) -> Path:
        """The file."""
        ...

    @property
    def provenance(self) -> Mapping[str, Any]:
        """What the file was made of, as ``embed`` wrote it; empty where it does not say."""
        ...

    @property
    def lonlat(self) -> Float[np.ndarray, "2 place"]:
        """Longitude and latitude of every place's centre (degrees, WGS 84)."""
        ...

    def chunks(self) -> Iterator[Chunk]:
        """The vectors of all places that have one."""
        ...

    def vectors(self, places: Int64[np.ndarray, " some"]) -> Float[np.ndarray, "some dim"]:
        """The vectors of a few places."""
        ...

    def rows(self, places: Int64[np.ndarray, " some"]) -> gpd.GeoDataFrame:
        """Outlines (longitude and latitude) of some places, with what else is known of each."""
        ...


def open_area(path: Path) -> Area:
    """The area in a file that ``embed`` wrote.

    Raises:
        SourceError: there is no such file, or it is none of those.
    """
    if path.suffix == ".parquet":
        return Table(path)
    return CellArea(path)


def holds_pixels(location: str) -> bool:
    """Whether there are pixels at a path or URL, and neither vectors nor a run nor a map."""
    path = Path(location)
    if "://" in location:
        return path.suffix != ".parquet"
    if path.suffix == ".parquet" or not path.exists() or (path / CONTRACT_FILE).exists():
        return False
    return provenance_of(path).get("product") in (None, "composite")


class Table:
    """An area of rows: patches or chips, in GeoParquet."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            open_file(path).close()  # no pipe is waited for
            self._file = pq.ParquetFile(path)
            lon, lat = self._file.read(["lon", "lat"]).columns
            schema = self._file.schema_arrow
            self._dims = schema.field("vector").type.list_size
            outline = schema.field("geometry").type
            self._crs = CRS(json.loads(schema.metadata[b"geo"])["columns"]["geometry"]["crs"])
            self.lonlat = np.stack([lon.to_numpy(), lat.to_numpy()]).astype(np.float64)
        except _NO_TABLE as error:
            raise self._damaged(error) from error
        if self._dims < 1 or not pa.types.is_floating(schema.field("vector").type.value_type):
            raise self._damaged("vector holds no numbers")
        if not pa.types.is_binary(outline):
            raise self._damaged("geometry holds no outlines")
        if not (abs(self.lonlat) <= np.array([[540], [90]])).all():
            raise self._damaged("lon and lat are not all on Earth")
        self.provenance = provenance_of(path)

    def _damaged(self, reason: object) -> SourceError:
        return SourceError(
            f"{self.path} is no table of vectors ({shortened(str(reason))}): make one: "
            f"bharateo embed RUN RASTER --output {self.path}"
        )

    def chunks(self) -> Iterator[Chunk]:
        """See ``Area``."""
        start, rows = 0, max(_CHUNK_BYTES // (4 * self._dims), 1)
        batches = self._file.iter_batches(rows, columns=["vector"])
        while True:
            try:
                batch = next(batches, None)
            except _NO_TABLE as error:
                raise self._damaged(error) from error
            if batch is None:
                break
            yield np.arange(start, start + len(batch)), self._vectors(batch.column(0))
            start += len(batch)

    def vectors(self, places: Int64[np.ndarray, " some"]) -> Float[np.ndarray, "some dim"]:
        """See ``Area``."""
        return self._vectors(self._take(places, ["vector"]).column(0).combine_chunks())

    def _vectors(self, column: pa.FixedSizeListArray) -> Float[np.ndarray, "some dim"]:
        flat = column.flatten()
        if column.null_count or flat.null_count or len(flat) != len(column) * self._dims:
            raise self._damaged("a row has no vector")
        numbers = flat.to_numpy(zero_copy_only=False).astype(np.float32)
        return numbers.reshape(len(column), self._dims)

    def rows(self, places: Int64[np.ndarray, " some"]) -> gpd.GeoDataFrame:
        """See ``Area``."""
        names = [name for name in self._file.schema_arrow.names if name != "vector"]
        try:
            frame = self._take(places, names).to_pandas()
            outlines = gpd.GeoSeries.from_wkb(frame.pop("geometry"), crs=self._crs).to_crs(4326)
        except (*_NO_TABLE, shapely.errors.ShapelyError, ProjError) as error:
            raise self._damaged(error) from error
        if outlines.is_empty.any() or outlines.isna().any():
            raise self._damaged("a row has no outline")
        return gpd.GeoDataFrame(frame, geometry=outlines)

    def _take(self, places: Int64[np.ndarray, " some"], names: list[str]) -> pa.Table:
        """Some columns of some rows; of the file, only the row groups that hold them are read."""
        about = self._file.metadata
        ends = np.cumsum([about.row_group(each).num_rows for each in range(about.num_row_groups)])
        groups = np.searchsorted(ends, places, side="right")
        try:
            read = {int(group): self._file.read_row_group(int(group), names) for group in {*groups}}
        except _NO_TABLE as error:
            raise self._damaged(error) from error
        return pa.concat_tables(
            read[int(group)].slice(int(place - ends[group]) + len(read[int(group)]), 1)
            for place, group in zip(places, groups, strict=True)
        )


class CellArea:
    """An area of cells: a COG with a band for each dimension."""

    def __init__(self, path: Path) -> None:
        file = open_raster(str(path))
        command = f"bharateo embed RUN RASTER --output {path}"
        if file is None:
            raise SourceError(f"{path} does not exist; make it: {command}")
        self.path, self._file = path, file
        self.provenance: dict[str, Any] = provenance_of(path)
        if self.provenance.get("product") != "embedding":
            raise SourceError(f"{path} holds no vectors; make them: {command}")

    @cached_property
    def lonlat(self) -> Float[np.ndarray, "2 place"]:
        """See ``Area``; row by row."""
        rows, cols = np.indices(self._file.shape).reshape(2, -1) + 0.5
        return to_lonlat(self._file.geobox, np.stack([cols, rows]))

    def chunks(self) -> Iterator[Chunk]:
        """See ``Area``."""
        height, width = self._file.shape
        rows = _rows_at_once(self._file)
        for first in range(0, height, rows):
            num = min(rows, height - first)
            stored = self._file.read_window(first, 0, num, width)
            known = np.isfinite(stored[0]) & (stored[0] != self._file.nodata[0])
            yield np.flatnonzero(known) + first * width, self._physical(stored[:, known]).T

    def vectors(self, places: Int64[np.ndarray, " some"]) -> Float[np.ndarray, "some dim"]:
        """See ``Area``."""
        cells = (divmod(int(place), self._file.shape[1]) for place in places)
        stored = [self._file.read_window(row, col, 1, 1)[:, 0, 0] for row, col in cells]
        return self._physical(np.stack(stored, 1)).T

    def _physical(self, stored: np.ndarray) -> Float32[np.ndarray, " dim *rest"]:
        scale, offset = np.array(self._file.units, np.float32).T
        one_a_band = (-1,) + (1,) * (stored.ndim - 1)
        values: np.ndarray = stored * scale.reshape(one_a_band) + offset.reshape(one_a_band)
        return values

    def rows(self, places: Int64[np.ndarray, " some"]) -> gpd.GeoDataFrame:
        """See ``Area``."""
        row, col = np.divmod(places, self._file.shape[1])
        squares = [box(c, r, c + 1, r + 1) for r, c in zip(row, col, strict=True)]
        grid = self._file.geobox
        outlines = gpd.GeoSeries(squares).affine_transform(grid.affine.to_shapely())
        outlines = outlines.set_crs(str(grid.crs)).to_crs(4326)
        return gpd.GeoDataFrame({"row": row, "col": col}, geometry=outlines)


def _rows_at_once(file: RasterFile) -> int:
    """Rows of cells, a whole number of blocks unless those are too many."""
    row_bytes = file.shape[1] * file.num_bands * 4
    most = max(_CHUNK_BYTES // row_bytes, 1)
    return max(most // file.block_shape[0] * file.block_shape[0], min(most, file.block_shape[0]))
