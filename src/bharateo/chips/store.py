"""The dataset folder: its layout, and ``Dataset``, which opens it.

::

    dataset.json            what everything is; written last, so a folder with it is complete
    chips.parquet           GeoParquet 1.1, one row a chip: footprint (EPSG:4326) with its bbox, and
                            the columns below
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
source has nothing to say: occasion (season), scene (STAC item or file), datetime (UTC), baseline,
offset_dn (what was added to the stored numbers) with offset_evidence and offset_pixels (whether the
pixels agree), dark_dn (the darkest stored number of what was read with it); then shard, shard_row.

No file holds the time of the build, so the same build gives the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Int64, Shaped, UInt8

from bharateo.artefacts import read_json, shortened
from bharateo.chips.description import (
    DATASET_FILE,
    LAYERS,
    SCHEMA_VERSION,
    SPLITS,
    StoredFile,
    check_description,
    shard_file,
)
from bharateo.chips.statistics import Statistics
from bharateo.chips.table import ChipTable
from bharateo.errors import ConfigError, DatasetError
from bharateo.files import open_file, target_outside, write_atomically
from bharateo.plain_yaml import read_yaml
from bharateo.sensor import Sensor

if TYPE_CHECKING:
    import pandas as pd
    from odc.geo.geobox import GeoBox

__all__ = ["DATASET_FILE", "LAYERS", "SCHEMA_VERSION", "SPLITS", "Dataset", "shard_file"]

CHIPS_FILE = "chips.parquet"
ITEMS_FILE = "items.json"
RECIPE_FILE = "recipe.yaml"
BUILD_FOLDER = ".build"

_KEPT_COLUMNS = 4
"""Columns of the table kept in memory, 8 bytes a chip each."""

_OPEN_FILES = 96
"""Shards kept mapped at once; each holds a file descriptor, and some systems allow only 256, of
which ``records`` takes its share."""


def read_recipe(folder: Path) -> Mapping[str, Any] | None:
    """The ``data`` section that the dataset in a folder was built from, None where it has none.

    Raises:
        DatasetError: the file is damaged.
    """
    if not (folder / RECIPE_FILE).exists():
        return None
    remedy = "restore the file, or delete it: how the dataset was built is not known then"
    try:
        section = read_yaml(folder / RECIPE_FILE).get("data")
    except ConfigError as error:
        raise DatasetError(f"{error}; {remedy}") from error
    if not isinstance(section, Mapping):
        raise DatasetError(f"{folder / RECIPE_FILE} holds no section data; {remedy}")
    return section


def overview_file(layer: str, region: str) -> str:
    """The path, inside the dataset, of one layer of a region's overview."""
    return f"overviews/{region}-{layer}.npy"


def write_array(path: Path, array: np.ndarray) -> StoredFile:
    """Write an ``.npy`` file atomically; its entry in ``dataset.json``.

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
    num_bytes = sum(part.nbytes for part in parts)
    return StoredFile(file=path.name, bytes=num_bytes, sha256=digest.hexdigest())


@dataclass(frozen=True)
class StoredLayer:
    """How a layer lies on disk: in every shard's file one record a chip, one after the other.

    ``shape`` is that of a record as it is read, ``first_byte`` where the records of a shard begin
    in its file. Of a record's ``num_planes`` stored planes, ``planes`` are read, in that order;
    None: all of them.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    files: tuple[str, ...]
    first_byte: Int64[np.ndarray, " shard"]
    num_planes: int = 1
    planes: tuple[int, ...] | None = None

    @property
    def record_bytes(self) -> int:
        """Bytes of one record as it is stored."""
        return self.num_planes * math.prod(self.shape[-2:]) * self.dtype.itemsize

    @property
    def read_bytes(self) -> int:
        """Bytes of one record as it is read."""
        return math.prod(self.shape) * self.dtype.itemsize


class Dataset:
    """A complete dataset folder, opened for reading; pixels stay on disk until asked for.

    ``info`` is ``dataset.json``; ``statistics`` are those of the train split in physical units.
    With ``bands``, images hold these alone; see ``with_bands``. For a ``DataLoader`` there is
    ``ChipDataset``.
    """

    def __init__(
        self, path: Path, info: Mapping[str, Any], bands: Sequence[str] | None = None
    ) -> None:
        self.path = path
        self.info = info
        self.sensor = Sensor.from_json(info["sensor"])
        self.statistics = Statistics.from_json(info["statistics"])
        self._bands: tuple[int, ...] | None = None
        if bands is not None:
            self._bands = tuple(self.sensor.band_names.index(name) for name in bands)
            self.sensor = self.sensor.with_bands(bands)
            self.statistics = self.statistics.of_bands(self._bands)
        self.size_px = int(info["chip"]["size_px"])
        self.regions = tuple(region["name"] for region in info["regions"])
        self.attribution = tuple(info["attribution"])
        self._ends = tuple(accumulate(shard["num_chips"] for shard in info["shards"]))
        self._starts = np.array((0, *self._ends[:-1]))
        self.num_chips = self._ends[-1]
        self.layers: Mapping[str, StoredLayer] = {
            name: _layout(name, info, self._bands if name == "image" else None) for name in LAYERS
        }
        """How every layer lies on disk, for those who read it by themselves (``records``)."""
        # Not a method of the dataset: a circle would keep its files open until the collector runs.
        self._shard = lru_cache(_OPEN_FILES)(partial(_map_shard, path, info, self.layers))
        self._table = ChipTable(path / CHIPS_FILE, info)
        self._column = lru_cache(_KEPT_COLUMNS)(self._table.column)

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

    def with_bands(self, names: Sequence[str]) -> Dataset:
        """The same dataset with these bands of its images alone, in this order; nothing is copied.

        Raises:
            ConfigError: no band is named, or one is unknown or named twice.
        """
        chosen = self.sensor.with_bands(names).band_names
        return self if chosen == self.sensor.band_names else Dataset(self.path, self.info, chosen)

    def __reduce__(self) -> tuple[Any, ...]:
        """For workers that are not forked: the folder is opened again."""
        return Dataset, (self.path, self.info, self._bands and self.sensor.band_names)

    def __repr__(self) -> str:
        return f"Dataset({str(self.path)!r}, {self.num_chips} chips of {self.size_px} px)"

    @property
    def places(self) -> str:
        """The regions in a few words: the names of up to three, else how many there are."""
        if len(self.regions) > 3:
            return f"{len(self.regions):,} regions"
        *others, last = self.regions
        return f"{', '.join(others)} and {last}" if others else last

    @property
    def origin(self) -> str:
        """Whose pixels and labels these are, e.g. ``Sentinel-2 L2A; labels: ESA WorldCover``."""
        source = self.info.get("source", {})
        pixels, labels = source.get("image") or self.sensor.title, source.get("landcover")
        return f"{pixels}; labels: {labels}" if labels and labels != pixels else pixels

    @cached_property
    def recipe(self) -> Mapping[str, Any] | None:
        """The ``data`` section that the dataset was built from, None where its folder has none.

        Raises:
            DatasetError: the file is damaged.
        """
        return read_recipe(self.path)

    @cached_property
    def chips(self) -> pd.DataFrame:
        """The table of chips without the footprints, one row a chip, in chip order.

        Raises:
            DatasetError: the table is damaged, or not that of these chips.
        """
        import pandas as pd

        return pd.DataFrame(self._table.columns())

    def column(self, name: str) -> Shaped[np.ndarray, " chip"]:
        """One column of the table of chips, without reading the others; text is str or None.

        Raises:
            DatasetError: the table has no such column, or is damaged.
        """
        return self._column(name)

    def footprints(self) -> Shaped[np.ndarray, " chip"]:
        """The outline of every chip in degrees, as shapely geometries.

        Raises:
            DatasetError: the table is damaged.
        """
        return self._table.footprints()

    def geobox(self, region: str) -> GeoBox:
        """The pixel grid of a region.

        Raises:
            DatasetError: the dataset has no such region, or its reference system is unknown.
        """
        from affine import Affine
        from odc.geo.geobox import GeoBox
        from pyproj.exceptions import CRSError

        record = self._region(region)
        try:
            return GeoBox(record["shape"], Affine(*record["transform"]), record["crs"])
        except (CRSError, ValueError) as error:
            raise DatasetError(
                f"{self.path / DATASET_FILE}: crs {shortened(repr(record['crs']))} of {region!r} "
                "is no reference system; restore the file, or build the dataset again"
            ) from error

    def _region(self, name: str) -> Mapping[str, Any]:
        if name not in self._regions:
            held = shortened(", ".join(self.regions))
            raise DatasetError(f"region {name!r} is not in {self.path}: it holds {held}")
        return self._regions[name]

    @cached_property
    def _regions(self) -> Mapping[str, Mapping[str, Any]]:
        return {record["name"]: record for record in self.info["regions"]}

    @cached_property
    def _split_of_chip(self) -> np.ndarray:
        return self.column("split")

    def indices(self, split: str) -> Int64[np.ndarray, " chip"]:
        """The chips of a split (``train``, ``val`` or ``test``), ascending; may be empty."""
        return np.flatnonzero(self._split_of_chip == split)

    def locate(
        self, chips: Int64[np.ndarray, " chip"]
    ) -> tuple[Int64[np.ndarray, " chip"], Int64[np.ndarray, " chip"]]:
        """The shard of every chip, and its record there.

        Raises:
            IndexError: a chip does not exist.
        """
        missing = chips[(chips < 0) | (chips >= self.num_chips)]
        if len(missing):
            raise IndexError(f"chip {missing[0]} of {self.num_chips} in {self.path}")
        shards = np.searchsorted(self._starts, chips, side="right") - 1
        return shards, chips - self._starts[shards]

    def image(self, chip: int) -> Shaped[np.ndarray, "band row col"]:
        """Stored values of a chip, 0 where invalid: a read-only view of the file, or a copy where
        bands were chosen.
        """
        stored = self._layer("image", chip)
        return stored if self._bands is None else stored[list(self._bands)]

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
            DatasetError: the dataset has no such region, or the region no overview, or a file of
                it is damaged.
        """
        record = self._region(region)
        if "overview" not in record:
            raise DatasetError(f"region {region!r} of {self.path} has no overview: it is too small")
        step = record["overview"]["step_px"]
        height, width = (len(range(step // 2, size, step)) for size in record["shape"])
        stored = np.dtype(self.info["layers"]["image"]["dtype"])
        image, landcover, valid = (
            _read_array(self.path, overview_file(layer, region), dtype, shape)
            for layer, dtype, shape in (
                ("image", stored, (len(self.info["sensor"]["bands"]), height, width)),
                ("landcover", np.dtype(np.uint8), (height, width)),
                ("valid", np.dtype(np.bool_), (height, width)),
            )
        )
        return image if self._bands is None else image[list(self._bands)], landcover, valid

    def _layer(self, layer: str, chip: int) -> np.ndarray:
        if not 0 <= chip < self.num_chips:
            raise IndexError(f"chip {chip} of {self.num_chips} in {self.path}")
        shard = bisect_right(self._ends, chip)
        start = self._ends[shard - 1] if shard else 0
        view: np.ndarray = self._shard(layer, shard)[chip - start]
        return view


def _map_shard(
    folder: Path, info: Mapping[str, Any], layers: Mapping[str, StoredLayer], layer: str, shard: int
) -> np.ndarray:
    """A whole shard, mapped without reading its header: ``dataset.json`` says all of it."""
    lies = layers[layer]
    stored = (lies.num_planes, *lies.shape[1:]) if layer == "image" else lies.shape
    shape = (info["shards"][shard]["num_chips"], *stored)
    path, first = folder / lies.files[shard], int(lies.first_byte[shard])
    try:
        with open_file(path) as file:
            mapped = np.memmap(file, lies.dtype, "r", offset=first, shape=shape)
    except (OSError, ValueError) as error:  # it was whole when the dataset was opened
        raise _damaged_file(path, f"cannot be mapped any more ({error})") from error
    return mapped.view(np.ndarray)  # indexing the memmap subclass is slower than the disk


def _layout(name: str, info: Mapping[str, Any], planes: tuple[int, ...] | None) -> StoredLayer:
    dtype = np.dtype(info["layers"][name]["dtype"])
    shape = tuple(info["layers"][name]["shape_per_chip"])
    num_planes = math.prod(shape[:-2])
    chip_bytes = math.prod(shape) * dtype.itemsize
    shards = info["shards"]
    header_bytes = [shard[name]["bytes"] - shard["num_chips"] * chip_bytes for shard in shards]
    files = tuple(shard[name]["file"] for shard in shards)
    if planes is not None:
        shape = (len(planes), *shape[-2:])
    return StoredLayer(dtype, shape, files, np.array(header_bytes, np.int64), num_planes, planes)


def _read_array(
    folder: Path, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]
) -> np.ndarray:
    """An array that must have this type and shape; the header's text is compared, not evaluated."""
    path, num_bytes = folder / name, math.prod(shape) * dtype.itemsize
    header = f"{{'descr': {dtype.str!r}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    try:
        if target := target_outside(folder, name):
            raise _damaged_file(path, f"is a link out of the dataset, to {target}")
        with open_file(path) as file:
            start = file.read(10)
            found = file.read(int.from_bytes(start[8:], "little"))
            if start[:8] != b"\x93NUMPY\x01\0" or found.rstrip() != header:
                raise _damaged_file(path, f"is no array of {dtype} {list(shape)}")
            content = file.read(num_bytes + 1)
    except OSError as error:
        raise _damaged_file(path, f"cannot be read ({error.strerror})") from error
    if len(content) != num_bytes:
        raise _damaged_file(path, f"is cut short or too long: {num_bytes} bytes of values expected")
    return np.frombuffer(content, dtype).reshape(shape)


def _damaged_file(path: Path, what: str) -> DatasetError:
    return DatasetError(
        f"{path} {what}: copy the file again, or delete the folder and run the same build again"
    )


def read_info(path: Path) -> dict[str, Any]:
    """The ``dataset.json`` of a complete dataset.

    Raises:
        DatasetError: it is missing, unfinished, unreadable or of another version.
    """
    file = path / DATASET_FILE
    if not file.exists():
        raise DatasetError(_why_missing(path))
    # The version first: of another one only that can be said.
    remedy = f"it is not a BharatEO dataset's description: delete {path} and build it again"
    plain = read_json(file, DatasetError, remedy)
    if not isinstance(plain, dict) or "schema_version" not in plain:
        raise DatasetError(f"{file} holds no schema_version; {remedy}")
    version = plain["schema_version"]
    if version != SCHEMA_VERSION:
        raise DatasetError(
            f"{file} has schema_version {shortened(repr(version))}, this version of bharateo reads "
            f"{SCHEMA_VERSION}: build the dataset again, or use the version that wrote it "
            f"(bharateo {shortened(str(plain.get('code_version', 'unknown')))})"
        )
    return check_description(plain, file)


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
    return f"there is no dataset at {path}: build it first: bharateo build CONFIG --output {path}"


def _check_shards(path: Path, info: Mapping[str, Any]) -> None:
    """Compare all sizes in one pass over the folder: a dataset may have ten thousand files."""
    with os.scandir(path) as entries:
        found = {entry.name: entry for entry in entries if entry.is_file()}
    for shard in info["shards"]:
        for layer in LAYERS:
            record = shard[layer]
            name = record["file"]
            entry = found.get(name)
            if entry and entry.is_symlink() and (target := target_outside(path, name)):
                raise _damaged_file(path / name, f"is a link out of the dataset, to {target}")
            size = entry.stat().st_size if entry else None
            if size != record["bytes"]:
                state = "is missing, or no file" if size is None else f"has {size} bytes"
                raise DatasetError(
                    f"shard {path / name} {state}, {DATASET_FILE} promises "
                    f"{record['bytes']} bytes: copy the file again, or delete {path} and run the "
                    "same build again"
                )
