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

from bharateo.chips import claim
from bharateo.chips.cut import Piece
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


def unit_record(
    index: int, piece: Piece, region: str, occasion: str | None, scene: str | None = None
) -> dict[str, Any]:
    """What is kept of a unit beside its pixels, as plain JSON."""
    return {
        "unit": index,
        "region": region,
        "occasion": occasion,
        "scene": scene,
        "num_chips": len(piece.image),
        "splits": dict(Counter(piece.chips["split"])),
        "chips": piece.chips,
        "reads": piece.reads,
        "sums": piece.sums.to_json(),
        "native_counts": piece.native_counts,
        "num_pixels": piece.num_pixels,
        "num_valid_pixels": piece.num_valid_pixels,
        "overviews": [[row, col] for row, col, _ in piece.overviews],
    }


# The table


def write_table(
    file: IO[bytes],
    records: Iterable[Mapping[str, Any]],
    regions: Mapping[str, Region],
    size_px: int,
    shard_sizes: Sequence[int],
) -> None:
    """Write the GeoParquet file of the chips of whole unit records; ``store`` lists its columns.

    Written in groups of rows, so that memory does not grow with the number of chips. ``bbox`` lets
    readers pass over groups of rows that lie elsewhere.
    Source: GeoParquet specification 1.1.0, bounding box covering.
    """
    import pyarrow as pa  # here, since opening a finished dataset has no need of it
    import pyarrow.parquet as pq

    ends = np.cumsum(shard_sizes)
    writer, num_rows = None, 0
    for group in _groups(records):
        columns = _columns(group, regions, size_px)
        chip = num_rows + np.arange(len(columns["row"]))
        shard = np.searchsorted(ends, chip, side="right")
        first = ends[shard] - np.asarray(shard_sizes)[shard]
        outlines = columns.pop("geometry")
        bounds = dict(zip(_SIDES, shapely.bounds(outlines).T, strict=True))
        rows = pa.table({
            "chip": chip, **columns, "shard": shard, "shard_row": chip - first,
            "geometry": pa.array(shapely.to_wkb(outlines), pa.binary()),
            "bbox": pa.StructArray.from_arrays([*map(pa.array, bounds.values())], [*bounds]),
        })  # fmt: skip
        if writer is None:
            writer = pq.ParquetWriter(file, rows.schema.with_metadata({"geo": _geo_metadata()}))
        writer.write_table(rows)
        num_rows += len(chip)
    if writer is not None:
        writer.close()


def _groups(records: Iterable[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    """Records in groups of some ten thousand chips."""
    group: list[Mapping[str, Any]] = []
    num_chips = 0
    for record in records:
        if record["num_chips"]:
            group.append(record)
            num_chips += record["num_chips"]
        if num_chips >= _ROWS_AT_ONCE:
            yield group
            group, num_chips = [], 0
    if group:
        yield group


def _columns(
    records: Sequence[Mapping[str, Any]], regions: Mapping[str, Region], size_px: int
) -> dict[str, Any]:
    import pyarrow as pa

    def every(name: str) -> list[Any]:
        return [value for record in records for value in record["chips"][name]]

    def of_record(name: str) -> list[Any]:
        return [record[name] for record in records for _ in range(record["num_chips"])]

    def text(values: Sequence[str | None]) -> pa.Array:
        return pa.array(values, pa.string())

    reads = [r["reads"][place]["image"] for r in records for place in r["chips"]["read"]]
    offsets = [read.get("offset", {}) for read in reads]
    num = len(reads)
    return {
        "region": text(of_record("region")),
        "zone": text(every("zone")),
        "split": text(every("split")),
        "block": text(every("block")),
        "row": pa.array(every("row"), pa.int64()),
        "col": pa.array(every("col"), pa.int64()),
        "x": pa.array(every("x"), pa.float64()),
        "y": pa.array(every("y"), pa.float64()),
        "size_px": np.full(num, size_px),
        **_shares(np.array(every("class_counts")), np.array(every("num_valid")), size_px**2),
        "occasion": text(of_record("occasion")),
        "scene": text([read.get("item") for read in reads]),
        "datetime": pa.array(
            [_moment(read.get("datetime")) for read in reads], pa.timestamp("us", "UTC")
        ),
        "baseline": text([offset.get("baseline") for offset in offsets]),
        "offset_dn": pa.array([offset.get("dn") for offset in offsets], pa.int32()),
        "offset_evidence": text([offset.get("evidence") for offset in offsets]),
        "offset_pixels": text([offset.get("pixels") for offset in offsets]),
        "dark_dn": pa.array([read.get("dark_dn") for read in reads], pa.float64()),
        "geometry": np.concatenate(
            [_footprints(record["chips"], regions[record["region"]], size_px) for record in records]
        ),
    }


def _moment(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


def _shares(counts: np.ndarray, num_valid: np.ndarray, area: int) -> dict[str, Any]:
    """Shares of valid and labelled pixels, and of every class among the labelled."""
    import pyarrow as pa

    labelled = counts.sum(axis=1)
    names = [land_class.name for land_class in BHARATEO_CLASSES]
    shares = counts / np.maximum(labelled, 1)[:, None]
    majority = [
        names[most] if num else None
        for most, num in zip(counts.argmax(axis=1), labelled, strict=True)
    ]
    return {
        "valid_fraction": num_valid / area,
        "labelled_fraction": labelled / area,
        **{f"fraction_{name}": shares[:, place] for place, name in enumerate(names)},
        "majority_class": pa.array(majority, pa.string()),
    }


def _footprints(chips: Mapping[str, Any], region: Region, size_px: int) -> np.ndarray:
    """The outline of every chip in degrees, its north-west corner in -180..180."""
    a, b, c, d, e, f = (~region.geobox.affine)[:6]
    x, y = np.array(chips["x"]), np.array(chips["y"])
    first = np.stack([a * x + b * y + c, d * x + e * y + f], axis=1)
    square = np.array([[0, 0], [0, 1], [1, 1], [1, 0]])  # (col, row), down the west side first
    corners = first[:, None] + size_px * square
    lonlat = to_lonlat(region.geobox, corners.reshape(-1, 2).T)
    corners = lonlat.T.reshape(-1, 4, 2)
    corners[..., 0] -= 360 * np.floor((corners[:, :1, 0] + 180) / 360)
    return np.asarray(shapely.polygons(corners), dtype=object)


def _geo_metadata() -> str:
    geometry = {
        "encoding": "WKB",
        "geometry_types": ["Polygon"],
        "crs": pyproj.CRS("EPSG:4326").to_json_dict(),
        "covering": {"bbox": {side: ["bbox", side] for side in _SIDES}},
    }
    return json.dumps(
        {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": geometry}}
    )


# dataset.json


def region(region: Region, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A region's entry: where it is, what was read of it, and from what."""
    counts: Counter[str] = Counter()
    for record in records:
        counts.update({str(code): num for code, num in record["native_counts"].items()})
    num_pixels = sum(record["num_pixels"] for record in records)
    reads = [read for record in records for read in record["reads"]]
    return {
        **claim.grid(region),
        "bounds_lonlat": bounds_lonlat(region.geobox),
        "valid_fraction": sum(r["num_valid_pixels"] for r in records) / max(num_pixels, 1),
        "native_counts": {code: counts[code] for code in sorted(counts, key=int)},
        "provenance": {
            layer: _merged([read[layer] for read in reads]) for layer in ("image", "landcover")
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
    head: Mapping[str, Any],
    records: Sequence[Mapping[str, Any]],
    regions: Sequence[Mapping[str, Any]],
    shards: Sequence[Mapping[str, Any]],
    size_px: int,
) -> dict[str, Any]:
    """The contents of ``dataset.json``: ``head`` (the build's identity), and what came of it.

    ``records`` may be without their chips.
    """
    sensor = recipe.image.sensor
    num: Counter[str] = sum((Counter(record["splits"]) for record in records), Counter())
    total = sum((Sums.from_json(r["sums"]) for r in records), start=Sums.zero(sensor.num_bands))
    lines = (*recipe.image.attribution, *recipe.landcover.attribution, *sensor.attribution)
    reads = [read["image"] for record in records for read in record["reads"]]
    said: dict[str, str] = {}
    for read in reads:
        if "warning" in read:  # a scene is read in many pieces: the first speaks for it
            said.setdefault(read["item"], read["warning"])
    return {
        "schema_version": SCHEMA_VERSION,
        "code_version": __version__,
        **head,
        "chip": {"size_px": size_px, "num_chips": num.total()},
        "splits": {split: num[split] for split in SPLITS},
        "layers": _layers(sensor.dtype, sensor.num_bands, size_px),
        "statistics": total.statistics(sensor.scale, sensor.offset).to_json(),
        "attribution": list(dict.fromkeys(lines)),
        "warnings": list(said.values()),
        "regions": list(regions),
        # Where nothing was read of a region (sea, no scene, all failed), what was asked for.
        **({"planned_regions": head["regions"]} if len(regions) < len(head["regions"]) else {}),
        "shards": list(shards),
    }


def _layers(dtype: str, num_bands: int, size_px: int) -> dict[str, Any]:
    def layer(dtype: str, **shape: int) -> dict[str, Any]:
        return {"dtype": dtype, "axes": list(shape), "shape_per_chip": list(shape.values())}

    return {
        "image": layer(dtype, band=num_bands, row=size_px, col=size_px),
        "landcover": layer("uint8", row=size_px, col=size_px),
        "valid": {
            **layer("uint8", row=size_px, col=-(-size_px // 8)),
            "packing": "bits along columns, first column in the highest bit",
        },
    }
