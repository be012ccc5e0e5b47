"""Embeddings as GeoParquet: one row a patch or chip, with its outline, its vector and where it is.

Columns: those of the place (``row``, ``col``, for datasets also ``chip``, ``region``, ``split``,
``block``), ``lon`` and ``lat`` of the centre (degrees, WGS 84), ``vector`` (a list of fixed length)
and ``geometry`` (a polygon in the file's reference system). The file's metadata hold the
provenance under ``bharateo``, as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely
from jaxtyping import Float, Shaped
from pyproj import CRS

from bharateo.errors import EmptyRegionError
from bharateo.files import remove_leftovers_of, write_atomically
from bharateo.inference.products import ProductPlan
from bharateo.pixels.product import TABLE_KEY


@dataclass(frozen=True)
class Rows:
    """Some rows of the table; ``outlines`` are the corners (x, y) of polygons, not closed."""

    places: Mapping[str, Any]
    lonlat: Float[np.ndarray, "2 row"]
    vectors: Float[np.ndarray, "row dim"]
    outlines: Float[np.ndarray, "2 row corner"]

    def table(self) -> pa.Table:
        """The rows as Arrow columns."""
        dims = self.vectors.shape[1]
        flat = pa.array(np.ascontiguousarray(self.vectors).reshape(-1))
        outlines = shapely.to_wkb(shapely.polygons(np.moveaxis(self.outlines, 0, 2)))
        return pa.table(
            {
                **{name: _column(values) for name, values in self.places.items()},
                "lon": self.lonlat[0],
                "lat": self.lonlat[1],
                "vector": pa.FixedSizeListArray.from_arrays(flat, dims),
                "geometry": pa.array(outlines, pa.binary()),
            }
        )


def _column(values: Any) -> pa.Array:
    """Moments are in UTC, which numpy cannot say."""
    moments = getattr(values, "dtype", np.dtype(object)).kind == "M"
    return pa.array(values, pa.timestamp("us", "UTC")) if moments else pa.array(values)


def corners(
    row: Shaped[np.ndarray, " square"], col: Shaped[np.ndarray, " square"], size_px: int
) -> Shaped[np.ndarray, "2 square corner"]:
    """The corners (col, row) of squares that begin at these pixels, down the first side first."""
    down, along = size_px * np.array([0, 1, 1, 0]), size_px * np.array([0, 0, 1, 1])
    return np.stack([col[:, None] + along, row[:, None] + down])


def write_table(path: Path, groups: Iterable[Rows], crs: CRS, plan: ProductPlan) -> None:
    """Write a GeoParquet file, a row group for each group, so that memory is bounded.

    Raises:
        EmptyRegionError: there is no row.
        StorageError: the disk is full or refuses; an old file is untouched.
    """
    tables = (rows.table() for rows in groups)
    first = next(tables, None)
    if first is None:
        raise EmptyRegionError(f"no patch has a valid pixel, so {path} would be empty")
    metadata = {b"geo": _geo(crs), TABLE_KEY: json.dumps(plan.to_json())}
    texts = [each.name for each in first.schema if each.type == pa.string()]

    def write(file: Any) -> None:
        schema = first.schema.with_metadata(metadata)
        with pq.ParquetWriter(file, schema, use_dictionary=texts, compression="zstd") as writer:
            writer.write_table(first)
            for table in tables:
                writer.write_table(table)

    remove_leftovers_of(path)
    write_atomically(path, write)


def _geo(crs: CRS) -> str:
    """Source: GeoParquet specification 1.0.0."""
    geometry = {"encoding": "WKB", "geometry_types": ["Polygon"], "crs": crs.to_json_dict()}
    return json.dumps(
        {"version": "1.0.0", "primary_column": "geometry", "columns": {"geometry": geometry}}
    )
