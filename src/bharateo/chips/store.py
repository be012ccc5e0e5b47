"""The dataset folder: its layout, and ``Dataset``, which opens it.

::

    dataset.json            what everything is; written last, so a folder with it is complete
    chips.parquet           GeoParquet, one row a chip: footprint (EPSG:4326) and the columns below
    image-00000.npy         (chip, band, row, col), the sensor's stored values, 0 where invalid
    landcover-00000.npy     (chip, row, col) uint8 class ids, 255 where there is no label
    valid-00000.npy         (chip, row, ceil(col / 8)) uint8, np.packbits along columns
    items.json              the scenes the pixels were read from, where a source has scenes
    overviews/NAME-image.npy, NAME-landcover.npy, NAME-valid.npy
                            the largest regions thinned to 768 px, for maps: (band, row, col),
                            (row, col) uint8 and (row, col) bool
    .build/                 only while a build is under way

Columns of ``chips.parquet``: chip (0, 1, ...), region, zone (of the area, if it has any), split,
block, row, col (pixels in the region), x, y (north-west corner in the region's reference system),
size_px, valid_fraction and labelled_fraction (of all pixels), fraction_<class name> (of labelled
pixels), majority_class (a name, null without labels); and where the pixels come from, null where a
source has nothing to say: occasion (season), scene (STAC item or file), datetime, baseline,
offset_dn (what was added to the stored numbers) with offset_evidence, dark_dn (the darkest stored
number of what was read with it); then shard, shard_row.

No file holds the time of the build, so the same build gives the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from bisect import bisect_right
from collections.abc import Mapping
from functools import cached_property, lru_cache
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Int64, Shaped, UInt8

from bharateo.chips.statistics import Statistics
from bharateo.errors import DatasetError
from bharateo.files import write_atomically
from bharateo.sensor import Sensor

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

SCHEMA_VERSION = 2
DATASET_FILE = "dataset.json"
CHIPS_FILE = "chips.parquet"
ITEMS_FILE = "items.json"
BUILD_FOLDER = ".build"
LAYERS = ("image", "landcover", "valid")
SPLITS = ("train", "val", "test")

_OPEN_FILES = 192
"""Shards kept mapped at once; each holds a file descriptor, and some systems allow only 256."""


def shard_file(layer: str, shard: int) -> str:
    """The name of one layer's shard, e.g. ``image-00000.npy``."""
    return f"{layer}-{shard:05d}.npy"


def overview_file(layer: str, region: str) -> str:
    """The path, inside the dataset, of one layer of a region's overview."""
    return f"overviews/{region}-{layer}.npy"


def write_array(path: Path, array: np.ndarray) -> dict[str, Any]:
    """Write an ``.npy`` file atomically; its record in ``dataset.json`` (file, bytes, sha256).

    Raises:
        StorageError: the disk is full or refuses.
    """
    array = np.ascontiguousarray(array)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
    # Not np.save: it writes past Python's file, and forgets why the disk refused.
    parts = (header.getbuffer(), array.reshape(-1).view(np.uint8).data)
    write_atomically(path, lambda file: [file.write(part) for part in parts])
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return {
        "file": path.name,
        "bytes": sum(part.nbytes for part in parts),
        "sha256": digest.hexdigest(),
    }


class Dataset:
    """A complete dataset folder, opened for reading; pixels stay on disk until asked for.

    ``info`` is ``dataset.json``; ``statistics`` are those of the train split in physical units.
    """

    def __init__(self, path: Path, info: Mapping[str, Any]) -> None:
        self.path = path
        self.info = info
        self.sensor = Sensor.from_json(info["sensor"])
        self.statistics = Statistics.from_json(info["statistics"])
        self.size_px = int(info["chip"]["size_px"])
        self.regions = tuple(region["name"] for region in info["regions"])
        self.attribution = tuple(info["attribution"])
        self._ends = tuple(accumulate(shard["num_chips"] for shard in info["shards"]))
        self.num_chips = self._ends[-1]
        self._shard = lru_cache(_OPEN_FILES)(self._map_shard)

    @classmethod
    def open(cls, path: str | Path) -> Dataset:
        """The dataset in a folder. Sizes of all shards are checked; contents are not read.

        Raises:
            DatasetError: no dataset is there, its build has not finished, another version of
                this package wrote it, or a shard is missing or cut short.
        """
        path = Path(path)
        info = read_info(path)
        _check_shards(path, info)
        return cls(path, info)

    def __repr__(self) -> str:
        return f"Dataset({str(self.path)!r}, {self.num_chips} chips of {self.size_px} px)"

    @cached_property
    def chips(self) -> pd.DataFrame:
        """The table of chips without the footprints, one row a chip, in chip order."""
        import pyarrow.parquet as pq

        names = pq.read_schema(self.path / CHIPS_FILE).names
        return self._table([name for name in names if name != "geometry"]).to_pandas()

    @cached_property
    def _split_of_chip(self) -> np.ndarray:
        return self._table(["split"]).column("split").to_numpy(zero_copy_only=False)

    def indices(self, split: str) -> Int64[np.ndarray, " chip"]:
        """The chips of a split (``train``, ``val`` or ``test``), ascending; may be empty."""
        return np.flatnonzero(self._split_of_chip == split)

    def image(self, chip: int) -> Shaped[np.ndarray, "band row col"]:
        """Stored values of a chip, a read-only view of the file; 0 where invalid."""
        return self._layer("image", chip)

    def landcover(self, chip: int) -> UInt8[np.ndarray, "row col"]:
        """Class ids of a chip, a read-only view of the file; 255 where there is no label."""
        return self._layer("landcover", chip)

    def valid(self, chip: int) -> Bool[np.ndarray, "row col"]:
        """Which pixels of a chip's image are valid."""
        packed = self.valid_packed(chip)
        return np.unpackbits(packed, axis=-1, count=self.size_px).view(np.bool_)

    def valid_packed(self, chip: int) -> UInt8[np.ndarray, "row byte"]:
        """Validity as stored, eight columns a byte, first column in the highest bit."""
        return self._layer("valid", chip)

    def overview(
        self, region: str
    ) -> tuple[
        Shaped[np.ndarray, "band row col"],
        UInt8[np.ndarray, "row col"],
        Bool[np.ndarray, "row col"],
    ]:
        """Image, class ids and validity of a whole region, thinned to at most 768 px a side.

        Raises:
            DatasetError: the dataset has no such region.
        """
        if region not in self.regions:
            raise DatasetError(
                f"region {region!r} is not in {self.path}: it holds {', '.join(self.regions)}"
            )
        image, landcover, valid = (
            np.load(self.path / overview_file(layer, region)) for layer in LAYERS
        )
        return image, landcover, valid

    def _table(self, columns: list[str]) -> pa.Table:
        import pyarrow.parquet as pq  # here, since opening a dataset has no need of it

        return pq.read_table(self.path / CHIPS_FILE, columns=columns)

    def _layer(self, layer: str, chip: int) -> np.ndarray:
        if not 0 <= chip < self.num_chips:
            raise IndexError(f"chip {chip} of {self.num_chips} in {self.path}")
        shard = bisect_right(self._ends, chip)
        start = self._ends[shard - 1] if shard else 0
        view: np.ndarray = self._shard(layer, shard)[chip - start]
        return view

    def _map_shard(self, layer: str, shard: int) -> np.ndarray:
        """A whole shard, mapped without reading its header: ``dataset.json`` says all of it."""
        record, dtype = self.info["shards"][shard], self.info["layers"][layer]["dtype"]
        shape = (record["num_chips"], *self.info["layers"][layer]["shape_per_chip"])
        header_bytes = record[layer]["bytes"] - math.prod(shape) * np.dtype(dtype).itemsize
        file = self.path / record[layer]["file"]
        mapped = np.memmap(file, dtype, "r", offset=header_bytes, shape=shape)
        return mapped.view(np.ndarray)  # indexing the memmap subclass is slower than the disk


def read_info(path: Path) -> dict[str, Any]:
    """The ``dataset.json`` of a complete dataset.

    Raises:
        DatasetError: it is missing, unfinished, unreadable or of another version.
    """
    file = path / DATASET_FILE
    if not file.exists():
        raise DatasetError(_why_missing(path))
    try:
        info: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        version = info["schema_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise DatasetError(
            f"{file} is not a BharatEO dataset's description ({error}): "
            f"delete {path} and build it again"
        ) from error
    if version != SCHEMA_VERSION:
        raise DatasetError(
            f"{file} has schema_version {version}, this version of bharateo reads "
            f"{SCHEMA_VERSION}: build the dataset again, or use the version that wrote it "
            f"(bharateo {info.get('code_version', 'unknown')})"
        )
    return info


def _why_missing(path: Path) -> str:
    if (path / BUILD_FOLDER).is_dir():
        return (
            f"the build of {path} has not finished: run the same build again, "
            "it goes on where it stopped"
        )
    if path.is_dir():
        return (
            f"{path} holds no {DATASET_FILE}, so it is no dataset: give the folder that "
            "`bharateo build` was told as --output"
        )
    return f"there is no dataset at {path}: build it first with `bharateo build --output {path}`"


def _check_shards(path: Path, info: Mapping[str, Any]) -> None:
    for shard in info["shards"]:
        for layer in LAYERS:
            record = shard[layer]
            file = path / record["file"]
            size = file.stat().st_size if file.exists() else None
            if size != record["bytes"]:
                found = "is missing" if size is None else f"has {size} bytes"
                raise DatasetError(
                    f"shard {file} {found}, {DATASET_FILE} promises {record['bytes']} bytes: "
                    f"copy the file again, or delete {path} and run the same build again"
                )
