"""What is written about chips: the rows of ``chips.parquet``, the contents of ``dataset.json``."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import IO, Any

import numpy as np
import pyproj
import shapely

from bharateo.chips import lock
from bharateo.chips.scratch import Chips, UnitRecord, UnitSummary
from bharateo.chips.statistics import Sums
from bharateo.chips.store import SCHEMA_VERSION, SPLITS
from bharateo.geography import bounds_lonlat, to_lonlat
from bharateo.landcover import BHARATEO_CLASSES
from bharateo.regions import Region
from bharateo.sources import Recipe
from bharateo.version import __version__

_ROWS_AT_ONCE = 20_000

_SIDES = ("xmin", "ymin", "xmax", "ymax")

_MOST_VALUES = 12
"""Different values of one fact of a region's reads that are listed; more are counted."""


# The table


def write_table(
    file: IO[bytes],
    units: Iterable[UnitRecord],
    regions: Mapping[str, Region],
    size_px: int,
    shard_sizes: Sequence[int],
) -> None:
    """Write the GeoParquet file of the chips of whole units; ``store`` lists its columns.

    Written in groups of rows, so that memory does not grow with the number of chips. ``bbox`` lets
    readers pass over groups of rows that lie elsewhere.
    Source: GeoParquet specification 1.1.0, bounding box covering.
    """
    import pyarrow as pa  # here, since opening a finished dataset has no need of it
    import pyarrow.parquet as pq

    geometry = {
        "encoding": "WKB",
        "geometry_types": ["Polygon"],
        "crs": pyproj.CRS("EPSG:4326").to_json_dict(),
        "covering": {"bbox": {side: ["bbox", side] for side in _SIDES}},
    }
    geo = {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": geometry}}
    ends = np.cumsum(shard_sizes)
    writer, num_rows = None, 0
    for group in _groups(units):
        columns = _columns(group, size_px)
        chip = num_rows + np.arange(len(columns["row"]))
        shard = np.searchsorted(ends, chip, side="right")
        first = ends[shard] - np.asarray(shard_sizes)[shard]
        footprints = [_footprints(each.chips, regions[each.region], size_px) for each in group]
        outlines = np.concatenate(footprints)
        bounds = dict(zip(_SIDES, shapely.bounds(outlines).T, strict=True))
        rows = pa.table({
            "chip": chip, **columns, "shard": shard, "shard_row": chip - first,
            "geometry": pa.array(shapely.to_wkb(outlines), pa.binary()),
            "bbox": pa.StructArray.from_arrays([*map(pa.array, bounds.values())], [*bounds]),
        })  # fmt: skip
        if writer is None:
            writer = pq.ParquetWriter(file, rows.schema.with_metadata({"geo": json.dumps(geo)}))
        writer.write_table(rows)
        num_rows += len(chip)
    if writer is not None:
        writer.close()


def _groups(units: Iterable[UnitRecord]) -> Iterator[list[UnitRecord]]:
    """Units in groups of some ten thousand chips."""
    group: list[UnitRecord] = []
    num_chips = 0
    for unit in units:
        if unit.num_chips:
            group.append(unit)
            num_chips += unit.num_chips
        if num_chips >= _ROWS_AT_ONCE:
            yield group
            group, num_chips = [], 0
    if group:
        yield group


def _columns(units: Sequence[UnitRecord], size_px: int) -> dict[str, Any]:
    import pyarrow as pa

    def every(name: str, kind: pa.DataType | None = None) -> pa.Array:
        return pa.array([value for unit in units for value in getattr(unit.chips, name)], kind)

    text = pa.string()
    unit_of = [unit for unit in units for _ in range(unit.num_chips)]
    reads = [unit.reads[place].image for unit in units for place in unit.chips.read]
    moments = [read.get("datetime") for read in reads]
    offsets = [read.get("offset", {}) for read in reads]
    # Shares of valid and labelled pixels, and of every class among the labelled.
    counts = np.array([each for unit in units for each in unit.chips.class_counts])
    labelled, names = counts.sum(axis=1), [land_class.name for land_class in BHARATEO_CLASSES]
    shares = counts / np.maximum(labelled, 1)[:, None]
    majority = [
        names[most] if num else None
        for most, num in zip(counts.argmax(axis=1), labelled, strict=True)
    ]
    return {
        "region": pa.array([unit.region for unit in unit_of], text),
        "zone": every("zone", text),
        "split": every("split", text),
        "block": every("block", text),
        "row": every("row", pa.int64()),
        "col": every("col", pa.int64()),
        "x": every("x", pa.float64()),
        "y": every("y", pa.float64()),
        "size_px": np.full(len(reads), size_px),
        "valid_fraction": every("num_valid").to_numpy() / size_px**2,
        "labelled_fraction": labelled / size_px**2,
        **{f"fraction_{name}": shares[:, place] for place, name in enumerate(names)},
        "majority_class": pa.array(majority, text),
        "occasion": pa.array([unit.occasion for unit in unit_of], text),
        "scene": pa.array([read.get("item") for read in reads], text),
        "datetime": pa.array(
            [datetime.fromisoformat(each) if each else None for each in moments],
            pa.timestamp("us", "UTC"),
        ),
        "baseline": pa.array([offset.get("baseline") for offset in offsets], text),
        "offset_dn": pa.array([offset.get("dn") for offset in offsets], pa.int32()),
        "offset_evidence": pa.array([offset.get("evidence") for offset in offsets], text),
        "offset_pixels": pa.array([offset.get("pixels") for offset in offsets], text),
        "dark_dn": pa.array([read.get("dark_dn") for read in reads], pa.float64()),
    }


def _footprints(chips: Chips, region: Region, size_px: int) -> np.ndarray:
    """The outline of every chip in degrees, its north-west corner in -180..180."""
    a, b, c, d, e, f = (~region.geobox.affine)[:6]
    x, y = np.array(chips.x), np.array(chips.y)
    first = np.stack([a * x + b * y + c, d * x + e * y + f], axis=1)
    square = np.array([[0, 0], [0, 1], [1, 1], [1, 0]])  # (col, row), down the west side first
    corners = first[:, None] + size_px * square
    lonlat = to_lonlat(region.geobox, corners.reshape(-1, 2).T)
    corners = lonlat.T.reshape(-1, 4, 2)
    corners[..., 0] -= 360 * np.floor((corners[:, :1, 0] + 180) / 360)
    return np.asarray(shapely.polygons(corners), dtype=object)


# dataset.json


def region(region: Region, units: Sequence[UnitSummary]) -> dict[str, Any]:
    """A region's entry: where it is, what was read of it, and from what."""
    counts: Counter[int] = Counter()
    for unit in units:
        counts.update(unit.native_counts)
    num_valid_pixels = sum(unit.num_valid_pixels for unit in units)
    reads = [read for unit in units for read in unit.reads]
    return {
        **lock.grid(region),
        "bounds_lonlat": bounds_lonlat(region.geobox),
        "valid_fraction": num_valid_pixels / max(sum(unit.num_pixels for unit in units), 1),
        "native_counts": {str(code): counts[code] for code in sorted(counts)},
        "provenance": {
            "image": _merged([read.image for read in reads]),
            "landcover": _merged([read.landcover for read in reads]),
        },
    }


def _merged(facts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What several reads say of themselves: one value where they agree, else all of them."""
    merged: dict[str, Any] = {}
    for name in dict.fromkeys(name for each in facts for name in each):
        values = [each[name] for each in facts if name in each]
        different = list({json.dumps(v, sort_keys=True): v for v in values}.values())
        if name == "tiles":
            merged[name] = {tile: one for each in values for tile, one in sorted(each.items())}
        elif len(different) == 1:
            merged[name] = different[0]
        elif len(different) <= _MOST_VALUES:
            merged[name] = different
        else:
            merged[name] = f"{len(different)} different"
    return merged


def dataset(
    recipe: Recipe,
    identity: Mapping[str, Any],
    units: Sequence[UnitSummary],
    regions: Sequence[Mapping[str, Any]],
    shards: Sequence[Mapping[str, Any]],
    size_px: int,
) -> dict[str, Any]:
    """The contents of ``dataset.json``: the build's identity, and what came of it."""
    sensor = recipe.image.sensor
    num: Counter[str] = Counter()
    for unit in units:
        num.update(unit.splits)
    total = sum((unit.sums for unit in units), start=Sums.zero(sensor.num_bands))
    lines = (*recipe.image.attribution, *recipe.landcover.attribution, *sensor.attribution)
    said: dict[str, str] = {}
    for image in (read.image for unit in units for read in unit.reads):
        if "warning" in image:  # a scene is read in many pieces: the first speaks for it
            said.setdefault(image["item"], image["warning"])

    def layer(dtype: str, **shape: int) -> dict[str, Any]:
        return {"dtype": dtype, "axes": list(shape), "shape_per_chip": list(shape.values())}

    return {
        "schema_version": SCHEMA_VERSION,
        "code_version": __version__,
        **identity,
        "chip": {"size_px": size_px, "num_chips": num.total()},
        "splits": {split: num[split] for split in SPLITS},
        "layers": {
            "image": layer(sensor.dtype, band=sensor.num_bands, row=size_px, col=size_px),
            "landcover": layer("uint8", row=size_px, col=size_px),
            "valid": {
                **layer("uint8", row=size_px, col=-(-size_px // 8)),
                "packing": "bits along columns, first column in the highest bit",
            },
        },
        "statistics": total.statistics(sensor.scale, sensor.offset).to_json(),
        "attribution": list(dict.fromkeys(lines)),
        "warnings": list(said.values()),
        "regions": list(regions),
        # Where nothing was read of a region (sea, no scene, all failed), what was asked for.
        **(
            {"planned_regions": identity["regions"]}
            if len(regions) < len(identity["regions"])
            else {}
        ),
        "shards": list(shards),
    }
