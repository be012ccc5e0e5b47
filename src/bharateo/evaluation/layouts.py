"""Folders of labelled chips that others made: which chips, which classes, which bands.

Two layouts are known, and told apart by what a folder holds:

``eurosat``
    ``FOLDER/CLASS/CLASS_1.tif``: a folder a class, GeoTIFFs of 13 bands, Sentinel-2 L1C as stored
    (reflectance x 10000), 64 x 64 px. The files come without a split: 60/20/20 of every class by
    the hash of the file's name. Band order: github.com/phelber/EuroSAT, issue 7: B8A comes last.
``geobench``
    ``FOLDER/SAMPLE.hdf5`` with a data set a band, ``default_partition.json`` (train, valid, test:
    lists of samples) and ``label_map.json`` (label: list of samples). Labels inside the HDF5 files
    and ``task_specs.pkl`` are pickles, which run code when they are opened: they are never read.
    Source: github.com/ServiceNow/geo-bench, geobench/dataset.py and label_map.py.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from jaxtyping import Shaped
from pydantic import StringConstraints
from torch.nn import functional as F

from bharateo.artefacts import checked, read_json, shortened
from bharateo.chips.store import SPLITS
from bharateo.errors import CorruptRasterError, DatasetError
from bharateo.files import open_file
from bharateo.pixels.raster import RasterFile, open_raster

SHARES = (0.6, 0.2, 0.2)
"""Of a task that comes without a split: train, val, test."""

EUROSAT_BANDS = (
    "B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B09", "B10", "B11", "B12", "B8A",
)  # fmt: skip
GEOBENCH_BANDS: Mapping[str, str] = {
    "01 - Coastal aerosol": "B01",
    "02 - Blue": "B02",
    "03 - Green": "B03",
    "04 - Red": "B04",
    "05 - Vegetation Red Edge": "B05",
    "06 - Vegetation Red Edge": "B06",
    "07 - Vegetation Red Edge": "B07",
    "08 - NIR": "B08",
    "08A - Vegetation Red Edge": "B8A",
    "09 - Water vapour": "B09",
    "10 - SWIR - Cirrus": "B10",
    "11 - SWIR": "B11",
    "12 - SWIR": "B12",
}
"""GEO-Bench's names of Sentinel-2's bands. Source: geobench/dataset.py, ``sentinel2_13_bands``."""

MISNAMED: Mapping[str, Mapping[str, str]] = {
    "m-eurosat": {
        "08A - Vegetation Red Edge": "B09",
        "09 - Water vapour": "B10",
        "10 - SWIR - Cirrus": "B11",
        "11 - SWIR": "B12",
        "12 - SWIR": "B8A",
    },
    "m-brick-kiln": {
        "06 - Vegetation Red Edge": "B07",
        "07 - Vegetation Red Edge": "B8A",
        "08A - Vegetation Red Edge": "B11",
        "09 - Water vapour": "B12",
        "10 - SWIR - Cirrus": "rendered red",
        "11 - SWIR": "rendered green",
        "12 - SWIR": "rendered blue",
    },
}
"""Tasks of GEO-Bench 1.0 whose names are not those of the bands they stand for, with what they
are. Source: github.com/ServiceNow/geo-bench, issues 28 and 29."""

SCALES: Mapping[str, float] = {"m-so2sat": 1.0}
"""Tasks that are not stored as reflectance x 10000."""


@dataclass(frozen=True)
class Chip:
    """One labelled chip: its name, its file, the place of its class among the task's."""

    name: str
    path: Path
    label: int


@dataclass(frozen=True)
class Found:
    """What a folder holds: classes, the chips of every split, how they were divided, and what
    else a reader of scores must know.
    """

    classes: tuple[str, ...]
    chips: Mapping[str, Sequence[Chip]]
    split: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Layout:
    """How chips lie in a folder.

    ``look`` finds them; ``bands`` says what a file's bands are called there, and what they are
    (None: nobody knows); ``read`` gives some of those called so, as (band, row, col).
    """

    look: Callable[[Path], Found]
    bands: Callable[[Path], tuple[tuple[str, ...], Sequence[str | None]]]
    read: Callable[[Path, Sequence[str], Sequence[int]], np.ndarray]


# EuroSAT


def _eurosat(folder: Path) -> Found:
    classes = tuple(sorted(path.name for path in folder.iterdir() if any(path.glob("*.tif"))))
    if len(classes) < 2:
        raise DatasetError(f"{folder} has {len(classes)} folders of .tif files, a task needs two")
    chips: dict[str, list[Chip]] = {split: [] for split in SPLITS}
    for label, name in enumerate(classes):
        files = sorted(
            (folder / name).glob("*.tif"),
            key=lambda path: hashlib.sha256(path.name.encode()).digest(),
        )
        ends = np.round(np.cumsum(SHARES) * len(files)).astype(int)
        for split, some in zip(SPLITS, np.split(np.array(files, object), ends[:2]), strict=True):
            chips[split] += [Chip(path.stem, path, label) for path in some]
    return Found(classes, chips, _BY_HASH, ())


_BY_HASH = (
    "60/20/20 of every class by the hash of the file's name: not geographic, so that neighbouring "
    "chips lie in different parts, which flatters every score"
)


def _bands_of_geotiff(path: Path) -> tuple[tuple[str, ...], Sequence[str | None]]:
    with _opened(path) as file:
        num = file.num_bands
    known = EUROSAT_BANDS if num == len(EUROSAT_BANDS) else (None,) * num
    return tuple(str(place + 1) for place in range(num)), known


def _opened(path: Path) -> RasterFile:
    file = open_raster(str(path))
    if file is None:
        raise CorruptRasterError(f"{path} has gone: restore it")
    return file


def _read_geotiff(path: Path, bands: Sequence[str], places: Sequence[int]) -> np.ndarray:
    with _opened(path) as file:
        if file.num_bands != len(bands):
            raise CorruptRasterError(
                f"{path} has {file.num_bands} bands, the first chip {len(bands)}: leave it out"
            )
        values, known = file.read_known(0, 0, *file.shape, list(places))
    # What a mask, an alpha band or nodata takes out is no number.
    return values if known.all() else np.where(known, values.astype(np.float32), np.nan)


# GEO-Bench


def _geobench(folder: Path) -> Found:
    partition, labels = _lists(folder / "default_partition.json"), folder / "label_map.json"
    if not labels.exists():
        raise DatasetError(
            f"{labels} is missing: without it labels lie in pickles, which are never opened. Write "
            'it as {"label": ["sample", ...]}; tasks of several labels a chip are not supported'
        )
    label_map = _lists(labels)
    classes = tuple(sorted(label_map, key=lambda name: (len(name), name)))  # "2" before "10"
    label_of = {name: label for label, key in enumerate(classes) for name in label_map[key]}
    chips: dict[str, list[Chip]] = {}
    for split in SPLITS:
        names = partition.get("valid" if split == "val" else split, [])
        missing = [name for name in names if name not in label_of]
        if missing:
            raise DatasetError(f"{labels} has no label for {missing[0]!r} of {split}")
        chips[split] = [Chip(name, _inside(folder, name), label_of[name]) for name in names]
    note = "labels were read from label_map.json; pickled labels and class names were not opened"
    wrong = MISNAMED.get(folder.name)
    misnamed = (f"bands named by what they hold, not as {folder.name} has it",) if wrong else ()
    return Found(classes, chips, _BY_MAKERS, (note, *misnamed))


_BY_MAKERS = "default_partition.json of the task's makers, who alone know whether it is geographic"


def _inside(folder: Path, name: str) -> Path:
    """A sample's file, which a partition file of strangers names."""
    path = folder / f"{name}.hdf5"
    if path.resolve().parent != folder.resolve():
        raise DatasetError(f"{folder / 'default_partition.json'} names {name!r}, outside {folder}")
    return path


def _bands_of_hdf5(path: Path) -> tuple[tuple[str, ...], Sequence[str | None]]:
    with _hdf5(path) as file:
        names = tuple(sorted(name for name in file if not name.startswith("label")))
    truth = {**GEOBENCH_BANDS, **MISNAMED.get(path.parent.name, {})}
    return names, [truth.get(_without_date(name), name) for name in names]


def _read_hdf5(path: Path, bands: Sequence[str], places: Sequence[int]) -> np.ndarray:
    """Some data sets of a file, at the size of the largest, bilinearly."""
    with _hdf5(path) as file:
        layers = [_plain(file, bands[place], path)[...] for place in places]
    side = max(layer.shape for layer in layers)
    return np.stack([_stretched(layer, side) for layer in layers])


@contextmanager
def _hdf5(path: Path) -> Iterator[Any]:
    """An open HDF5 file, whose trouble is a raster's."""
    import h5py

    try:
        open_file(path).close()  # no pipe is waited for
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, KeyError, RuntimeError) as error:
        raise CorruptRasterError(
            f"{path} cannot be read ({shortened(str(error))}): fetch it again"
        ) from error


def _plain(file: Any, name: str, path: Path) -> Any:
    """A data set whose numbers lie in this very file.

    HDF5 can name other files to be read in its place; a file from strangers must not.
    """
    import h5py

    data = file[name] if isinstance(file.get(name, getlink=True), h5py.HardLink) else None
    if not isinstance(data, h5py.Dataset) or data.external or data.is_virtual or data.ndim != 2:
        raise CorruptRasterError(f"{path}: {name!r} is no plain array of two dimensions: refused")
    return data


def _stretched(layer: Shaped[np.ndarray, "row col"], shape: tuple[int, int]) -> np.ndarray:
    if layer.shape == shape:
        return layer
    pixels = torch.from_numpy(layer.astype(np.float32))[None, None]
    return F.interpolate(pixels, shape, mode="bilinear", align_corners=False)[0, 0].numpy()


def _without_date(name: str) -> str:
    """A data set's name as the band's: chips of known date have it at the end."""
    return re.sub(r"_\d{4}-\d{2}-\d{2}.*$", "", name)


_FileName = Annotated[str, StringConstraints(max_length=1000, pattern=r"^[^\x00]+$")]


def _lists(file: Path) -> dict[str, Any]:
    """A JSON object of lists of names."""
    remedy = "it is no JSON object of lists of names: restore it"
    plain = read_json(file, DatasetError, remedy)
    lists: dict[str, Any] = checked(
        dict[str, list[_FileName]], plain, str(file), DatasetError, remedy
    )
    return lists


LAYOUTS: Mapping[str, Layout] = {
    "eurosat": Layout(_eurosat, _bands_of_geotiff, _read_geotiff),
    "geobench": Layout(_geobench, _bands_of_hdf5, _read_hdf5),
}


def layout_of(folder: Path) -> str:
    """The layout that a folder has.

    Raises:
        DatasetError: it has none of them.
    """
    if (folder / "default_partition.json").exists():
        return "geobench"
    if any(folder.glob("*/*.tif")):
        return "eurosat"
    raise DatasetError(
        f"{folder} is no known task: neither FOLDER/CLASS/*.tif (eurosat) nor FOLDER/*.hdf5 with "
        "default_partition.json and label_map.json (geobench)"
    )


def divided(found: Found, folder: Path, file: Path) -> Found:
    """The chips divided by a split file: JSON of train, val (or valid) and test, each a list of
    file names, with or without their folder and ending.

    Raises:
        DatasetError: it names a chip that the folder has not.
    """
    lists = _lists(file)
    by_name = {chip.name: chip for some in found.chips.values() for chip in some}
    chips = {}
    for split in SPLITS:
        key = "valid" if split == "val" and "val" not in lists else split
        names = [Path(str(name)).stem for name in lists.get(key, [])]
        missing = [name for name in names if name not in by_name]
        if missing:
            raise DatasetError(f"{file}: {missing[0]!r} of {key} is not in {folder}")
        chips[split] = [by_name[name] for name in names]
    return Found(found.classes, chips, f"by {file.name}", found.notes)
