"""What every product says of itself: its provenance inside, and a STAC Item beside it.

The Item says where a product lies, of what time, what its files and bands are. Source: STAC Item
and Common Metadata 1.1.0; extensions projection 2.0.0 and raster 2.0.0.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely
from odc.geo.geobox import GeoBox

from bharateo.artefacts import Record
from bharateo.files import write_json
from bharateo.geography import to_lonlat
from bharateo.outputs import Own, record_in
from bharateo.pixels.cog import cog_tags
from bharateo.pixels.formats import open_local

COG_TAG = "BHARATEO"
"""The tag of a GeoTIFF that holds its provenance, as JSON."""

TABLE_KEY = b"bharateo"
"""The key of a table's metadata that holds its provenance, as JSON."""

COG_TYPE = "image/tiff; application=geotiff; profile=cloud-optimized"
PARQUET_TYPE = "application/vnd.apache.parquet"
_EXTENSIONS = (
    "https://stac-extensions.github.io/projection/v2.0.0/schema.json",
    "https://stac-extensions.github.io/raster/v2.0.0/schema.json",
)
_ROLES = {".tif": "data", ".parquet": "data", ".png": "overview"}
_SIDES = 16
"""Straight pieces of each side of a footprint, so that it bends with the grid."""


AnyPlan = TypeVar("AnyPlan", bound="Plan")


class Plan(Record):
    """What decides a product's contents: its provenance. Products of one fingerprint are the same
    in every byte. Every kind has a ``fingerprint`` of its own.
    """

    schema_version: Literal[1]
    product: str
    code_version: str

    @property
    def seal(self) -> str:
        """The fingerprint: the SHA-256 of everything else in it."""
        text = json.dumps({**self.to_json(), "fingerprint": None}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def sealed(self: AnyPlan) -> AnyPlan:
        """The plan with its fingerprint."""
        return self.model_copy(update={"fingerprint": self.seal})

    def to_json(self) -> dict[str, Any]:
        """Plain values, as they stand in products; what was not said is left out."""
        return self.model_dump(by_alias=True, exclude_unset=True)

    @property
    def tags(self) -> dict[str, str]:
        """Those of a GeoTIFF made by this plan."""
        return {COG_TAG: json.dumps(self.to_json(), ensure_ascii=False)}

    @property
    def when(self) -> dict[str, Any]:
        """The properties of an Item that say of what time the product is."""
        raise NotImplementedError(f"{type(self).__name__} knows no time")


def provenance_of(path: Path) -> dict[str, Any]:
    """What a product of ours was written with, table or GeoTIFF; empty where it is none."""
    if path.suffix != ".parquet":
        return record_in(cog_tags(path).get(COG_TAG, "{}"))
    try:
        metadata = pq.read_schema(path).metadata or {}
    except (OSError, pa.ArrowInvalid):
        return {}
    return record_in(metadata.get(TABLE_KEY, b"{}"))


def holding(product: str) -> Own:
    """The mark of a table or GeoTIFF: the ``product`` of its provenance."""
    return lambda path: bool(provenance_of(path).get("product") == product)


def item_path(output: Path) -> Path:
    """Where the Item of a product lies."""
    return output.with_name(f"{output.name}.stac.json")


def write_item(
    output: Path,
    plan: Plan,
    geoboxes: Sequence[GeoBox],
    files: Mapping[str, Path],
    attribution: Sequence[str],
) -> None:
    """Write the Item of a product made by ``plan``; ``files`` are by role, the first is the data.

    The same product gives the same bytes.

    Raises:
        StorageError: the disk is full or refuses.
    """
    footprint = _footprint(geoboxes)
    one = geoboxes[0] if len(geoboxes) == 1 else None
    write_json(
        item_path(output),
        {
            "type": "Feature",
            "stac_version": "1.1.0",
            "stac_extensions": list(_EXTENSIONS),
            "id": f"{output.stem}-{plan.seal[:12]}",
            "product": f"item of {plan.product}",
            "geometry": shapely.geometry.mapping(footprint),
            "bbox": list(footprint.bounds),
            "properties": {
                **plan.when,
                "title": f"{plan.product} {output.stem}",
                "license": "other",
                "attribution": list(attribution),
                "bharateo:version": plan.code_version,
                **({} if one is None else _projection(one)),
            },
            "links": [],
            "assets": {role: _asset(role, file) for role, file in files.items()},
        },
    )


def _footprint(geoboxes: Sequence[GeoBox]) -> shapely.Geometry:
    """Outlines in longitude and latitude, to 1e-7 degrees."""
    along = np.linspace(0, 1, _SIDES, endpoint=False)
    ones = np.ones(_SIDES)
    cols = np.concatenate([0 * ones, along, ones, 1 - along])
    rows = np.concatenate([along, ones, 1 - along, 0 * ones])
    outlines = []
    for geobox in geoboxes:
        height, width = geobox.shape
        lonlat = to_lonlat(geobox, np.stack([cols * width, rows * height]))
        outlines.append(shapely.Polygon(lonlat.T.round(7)))
    return outlines[0] if len(outlines) == 1 else shapely.MultiPolygon(outlines)


def _projection(geobox: GeoBox) -> dict[str, Any]:
    crs = geobox.crs
    code = None if crs is None or crs.epsg is None else f"EPSG:{crs.epsg}"
    shown = {
        "proj:code": code,
        "proj:shape": list(geobox.shape),
        "proj:transform": list(geobox.affine)[:6],
    }
    return shown if code else {**shown, "proj:wkt2": str(crs)}


def _asset(role: str, file: Path) -> dict[str, Any]:
    asset: dict[str, Any] = {
        "href": f"./{file.name}",
        "title": role,
        "roles": [_ROLES.get(file.suffix, "metadata")],
    }
    if file.suffix == ".parquet":
        return {**asset, "type": PARQUET_TYPE}
    if file.suffix != ".tif":
        kinds = {".json": "application/json", ".png": "image/png"}
        return {**asset, "type": kinds.get(file.suffix, "text/xml")}
    opened = open_local(file)
    assert opened is not None
    names = enumerate(opened.dataset.descriptions, 1)
    bands = [_band(opened.dataset, number, name or f"band {number}") for number, name in names]
    opened.close()
    return {**asset, "type": COG_TYPE, "bands": bands}


def _band(opened: Any, number: int, name: str) -> dict[str, Any]:
    nodata = opened.nodatavals[number - 1]
    band: dict[str, Any] = {"name": name, "data_type": opened.dtypes[number - 1]}
    if nodata is not None:
        band["nodata"] = "nan" if np.isnan(nodata) else nodata
    scale, offset = opened.scales[number - 1], opened.offsets[number - 1]
    if (scale, offset) != (1.0, 0.0):
        band |= {"raster:scale": scale, "raster:offset": offset}
    noted = opened.tags(number)
    if "STATISTICS_MEAN" in noted:
        names = {"minimum": "MINIMUM", "maximum": "MAXIMUM", "mean": "MEAN", "stddev": "STDDEV",
                 "valid_percent": "VALID_PERCENT"}  # fmt: skip
        band["statistics"] = {key: float(noted[f"STATISTICS_{tag}"]) for key, tag in names.items()}
    return band
