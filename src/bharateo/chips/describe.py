"""What is written about chips: the rows of ``chips.parquet``, the contents of ``dataset.json``."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import shapely

from bharateo import __version__
from bharateo.chips.geography import Rectangle, to_lonlat
from bharateo.chips.plan import Site
from bharateo.chips.statistics import Sums
from bharateo.chips.store import SCHEMA_VERSION, SPLITS
from bharateo.landcover import BHARATEO_CLASSES
from bharateo.regions import Region
from bharateo.sources import Recipe


@dataclass(frozen=True)
class Chip:
    """A chosen site, its valid pixels, and its labelled pixels of every class."""

    site: Site
    num_valid: int
    class_counts: tuple[int, ...]


def table(chips: Sequence[Chip], regions: Sequence[Region], shard_sizes: Sequence[int]) -> bytes:
    """The GeoParquet file of all chips; ``store`` lists its columns."""
    import geopandas  # here, since opening a finished dataset has no need of it

    columns = _places(chips, shard_sizes) | _shares(chips)
    footprints = _footprints(chips, regions)
    frame = geopandas.GeoDataFrame(columns, geometry=footprints, crs="EPSG:4326")
    parquet = io.BytesIO()
    frame.to_parquet(parquet, index=False)
    return parquet.getvalue()


def _places(chips: Sequence[Chip], shard_sizes: Sequence[int]) -> dict[str, Any]:
    fields = ("region", "split", "block", "row", "col", "size_px")
    return {
        "chip": np.arange(len(chips)),
        **{field: [getattr(chip.site, field) for chip in chips] for field in fields},
        "shard": np.repeat(np.arange(len(shard_sizes)), shard_sizes),
        "shard_row": np.concatenate([np.arange(size) for size in shard_sizes]),
    }


def _shares(chips: Sequence[Chip]) -> dict[str, Any]:
    """Shares of valid and labelled pixels, and of every class among the labelled."""
    area = np.array([chip.site.size_px**2 for chip in chips])
    counts = np.array([chip.class_counts for chip in chips])
    labelled = counts.sum(axis=1)
    names = np.array([land_class.name for land_class in BHARATEO_CLASSES], dtype=object)
    shares = counts / np.maximum(labelled, 1)[:, None]
    return {
        "valid_fraction": np.array([chip.num_valid for chip in chips]) / area,
        "labelled_fraction": labelled / area,
        **{f"fraction_{name}": shares[:, place] for place, name in enumerate(names)},
        "majority_class": np.where(labelled > 0, names[counts.argmax(axis=1)], None),
    }


def _footprints(chips: Sequence[Chip], regions: Sequence[Region]) -> np.ndarray:
    """The outline of every chip in degrees, its north-west corner in -180..180."""
    sites = [chip.site for chip in chips]
    first = np.array([(site.col, site.row) for site in sites])
    size_px = np.array([site.size_px for site in sites])
    region_of = np.array([site.region_index for site in sites])
    square = np.array([[0, 0], [0, 1], [1, 1], [1, 0]])  # (col, row), down the west side first
    corners = (first[:, None] + size_px[:, None, None] * square).astype(np.float64)
    for index in np.unique(region_of):
        points = corners[region_of == index].reshape(-1, 2).T
        lonlat = to_lonlat(regions[index].geobox, points)
        corners[region_of == index] = lonlat.T.reshape(-1, 4, 2)
    corners[..., 0] -= 360 * np.floor((corners[:, :1, 0] + 180) / 360)
    return np.asarray(shapely.polygons(corners))


def bounds_lonlat(region: Region) -> list[float]:
    """West, south, east, north in degrees; east is past 180 across the antimeridian."""
    lon, lat = to_lonlat(region.geobox, Rectangle(0, 0, *region.geobox.shape).outline())
    return [float(lon.min()), float(lat.min()), float(lon.max()), float(lat.max())]


def dataset(
    recipe: Recipe,
    head: Mapping[str, Any],
    regions: Sequence[Mapping[str, Any]],
    chips: Sequence[Chip],
    shards: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """The contents of ``dataset.json``: ``head`` (the build's identity), and what came of it."""
    sensor, size_px = recipe.image.sensor, chips[0].site.size_px
    num = Counter(str(chip.site.split) for chip in chips)
    sums = [Sums.from_json(shard["sums"]) for shard in shards]
    total = sum(sums, start=Sums.zero(sensor.num_bands))
    lines = (*recipe.image.attribution, *recipe.landcover.attribution, *sensor.attribution)
    return {
        "schema_version": SCHEMA_VERSION,
        "code_version": __version__,
        **head,
        "chip": {"size_px": size_px, "num_chips": len(chips)},
        "splits": {split: num[split] for split in SPLITS},
        "layers": _layers(sensor.dtype, sensor.num_bands, size_px),
        "statistics": total.statistics(sensor.scale, sensor.offset).to_json(),
        "attribution": list(dict.fromkeys(lines)),
        "regions": list(regions),
        "shards": [{k: v for k, v in shard.items() if k != "sums"} for shard in shards],
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
