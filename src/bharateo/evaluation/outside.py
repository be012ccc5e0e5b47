"""Outside tasks: a run's frozen features on labelled chips that others made.

The chips of a folder are read in the run's bands and unit, checked against its contract, brought to
its size, and probed beside the features it has to beat. Two layouts of folders are known, and told
apart by what a folder holds:

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
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, Shaped
from pydantic import StringConstraints
from torch import Tensor
from torch.nn import functional as F

from bharateo.artefacts import checked, read_json, shortened
from bharateo.chips.store import SPLITS
from bharateo.errors import ConfigError, ContractError, CorruptRasterError, DatasetError
from bharateo.evaluation.comparison import Confusions, compared, shown
from bharateo.evaluation.features import (
    Extractor,
    Features,
    band_statistics,
    chip_means,
    encoder,
    log_energies,
    random_convolutions,
    random_encoder,
)
from bharateo.evaluation.probe_table import MAJORITY
from bharateo.evaluation.probes import Probe, fit_linear, fit_nearest
from bharateo.evaluation.probing import BUDGETS, NUM_DRAWS, few_labels
from bharateo.files import open_file, write_json
from bharateo.inference.contract import Sample as PixelSample
from bharateo.inference.contract import band_places, check_pixels, fitting_set
from bharateo.inference.encoder import CHIPS_AT_ONCE, Readout, device_of
from bharateo.models.patches import patchify
from bharateo.pixels.raster import RasterFile, open_raster
from bharateo.reading import Reading
from bharateo.results import Budget, Compared, TaskChips, TaskEvaluation, TaskRun
from bharateo.training.contract import Differences
from bharateo.training.run import Run

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


_BY_HASH = (
    "60/20/20 of every class by the hash of the file's name: not geographic, so that neighbouring "
    "chips lie in different parts, which flatters every score"
)
_BY_MAKERS = "default_partition.json of the task's makers, who alone know whether it is geographic"


@dataclass(frozen=True)
class LabelledChip:
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
    chips: Mapping[str, Sequence[LabelledChip]]
    split: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class FolderLayout:
    """How chips lie in a folder.

    ``find`` finds them; ``bands`` says what a file's bands are called there, and what they are
    (None: nobody knows); ``read`` gives some of those called so, as (band, row, col).
    """

    find: Callable[[Path], Found]
    bands: Callable[[Path], tuple[tuple[str, ...], Sequence[str | None]]]
    read: Callable[[Path, Sequence[str], Sequence[int]], np.ndarray]


# EuroSAT


def find_eurosat(folder: Path) -> Found:
    """The chips of a folder of folders of GeoTIFFs."""
    classes = tuple(sorted(path.name for path in folder.iterdir() if any(path.glob("*.tif"))))
    if len(classes) < 2:
        raise DatasetError(f"{folder} has {len(classes)} folders of .tif files, a task needs two")
    chips: dict[str, list[LabelledChip]] = {split: [] for split in SPLITS}
    for label, name in enumerate(classes):
        files = sorted(
            (folder / name).glob("*.tif"),
            key=lambda path: hashlib.sha256(path.name.encode()).digest(),
        )
        ends = np.round(np.cumsum(SHARES) * len(files)).astype(int)
        for split, some in zip(SPLITS, np.split(np.array(files, object), ends[:2]), strict=True):
            chips[split] += [LabelledChip(path.stem, path, label) for path in some]
    return Found(classes, chips, _BY_HASH, ())


def _geotiff(path: Path) -> RasterFile:
    file = open_raster(str(path))
    if file is None:
        raise CorruptRasterError(f"{path} has gone: restore it")
    return file


def geotiff_bands(path: Path) -> tuple[tuple[str, ...], Sequence[str | None]]:
    """Numbers for names; of 13 bands it is known what they are."""
    with _geotiff(path) as file:
        num = file.num_bands
    known = EUROSAT_BANDS if num == len(EUROSAT_BANDS) else (None,) * num
    return tuple(str(place + 1) for place in range(num)), known


def read_geotiff(path: Path, bands: Sequence[str], places: Sequence[int]) -> np.ndarray:
    """Some bands; NaN where a mask, an alpha band or nodata takes a pixel out."""
    with _geotiff(path) as file:
        if file.num_bands != len(bands):
            raise CorruptRasterError(
                f"{path} has {file.num_bands} bands, the first chip {len(bands)}: leave it out"
            )
        values, known = file.read_known(0, 0, *file.shape, list(places))
    return values if known.all() else np.where(known, values.astype(np.float32), np.nan)


# GEO-Bench


def find_geobench(folder: Path) -> Found:
    """The chips of a folder of HDF5 files, as its two JSON files divide and label them."""
    partition_file, labels = folder / "default_partition.json", folder / "label_map.json"
    partition = _lists(partition_file)
    if not labels.exists():
        raise DatasetError(
            f"{labels} is missing: without it labels lie in pickles, which are never opened. Write "
            'it as {"label": ["sample", ...]}; tasks of several labels a chip are not supported'
        )
    label_map = _lists(labels)
    classes = tuple(sorted(label_map, key=lambda name: (len(name), name)))  # "2" before "10"
    label_of = {name: label for label, key in enumerate(classes) for name in label_map[key]}
    chips: dict[str, list[LabelledChip]] = {split: [] for split in SPLITS}
    for split in SPLITS:
        for name in partition.get("valid" if split == "val" else split, []):
            path = folder / f"{name}.hdf5"
            if name not in label_of:
                raise DatasetError(f"{labels} has no label for {name!r} of {split}")
            if path.resolve().parent != folder.resolve():  # the names are a stranger's
                raise DatasetError(f"{partition_file} names {name!r}, outside {folder}")
            chips[split].append(LabelledChip(name, path, label_of[name]))
    note = "labels were read from label_map.json; pickled labels and class names were not opened"
    wrong = MISNAMED.get(folder.name)
    misnamed = (f"bands named by what they hold, not as {folder.name} has it",) if wrong else ()
    return Found(classes, chips, _BY_MAKERS, (note, *misnamed))


def hdf5_bands(path: Path) -> tuple[tuple[str, ...], Sequence[str | None]]:
    """The names of its data sets; chips of known date have it at the end of them."""
    with _hdf5(path) as file:
        names = tuple(sorted(name for name in file if not name.startswith("label")))
    truth = {**GEOBENCH_BANDS, **MISNAMED.get(path.parent.name, {})}
    return names, [truth.get(re.sub(r"_\d{4}-\d{2}-\d{2}.*$", "", name), name) for name in names]


def read_hdf5(path: Path, bands: Sequence[str], places: Sequence[int]) -> np.ndarray:
    """Some data sets of a file, at the size of the largest, bilinearly."""
    import h5py

    layers: list[Shaped[np.ndarray, "row col"]] = []
    with _hdf5(path) as file:
        for name in (bands[place] for place in places):
            # HDF5 can name other files to be read in its place; a file from strangers must not.
            data = file[name] if isinstance(file.get(name, getlink=True), h5py.HardLink) else None
            plain = isinstance(data, h5py.Dataset) and not (data.external or data.is_virtual)
            if data is None or not plain or data.ndim != 2:
                raise CorruptRasterError(
                    f"{path}: {name!r} is no plain array of two dimensions: refused"
                )
            layers.append(data[...])
    side = max(layer.shape for layer in layers)
    for place, layer in enumerate(layers):
        if layer.shape != side:
            pixels = torch.from_numpy(layer.astype(np.float32))[None, None]
            layers[place] = F.interpolate(pixels, side, mode="bilinear")[0, 0].numpy()
    return np.stack(layers)


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


_FileName = Annotated[str, StringConstraints(max_length=1000, pattern=r"^[^\x00]+$")]


def _lists(file: Path) -> dict[str, list[str]]:
    """A JSON object of lists of names."""
    remedy = "it is no JSON object of lists of names: restore it"
    plain = read_json(file, DatasetError, remedy)
    lists: dict[str, list[str]] = checked(
        dict[str, list[_FileName]], plain, str(file), DatasetError, remedy
    )
    return lists


LAYOUTS: Mapping[str, FolderLayout] = {
    "eurosat": FolderLayout(find_eurosat, geotiff_bands, read_geotiff),
    "geobench": FolderLayout(find_geobench, hdf5_bands, read_hdf5),
}


# A task


@dataclass(frozen=True)
class Task(Found):
    """A labelled folder, with how its numbers become a run's bands.

    ``bands`` is what a file calls its bands, ``places`` are the run's among them, from 0, or those
    of its ``band_set``.
    """

    folder: Path
    layout: str
    bands: tuple[str, ...]
    places: tuple[int, ...]
    scale: float
    offset: float
    nodata: float | None
    band_set: str | None = None

    def read(
        self, chip: LabelledChip
    ) -> tuple[Float[np.ndarray, "band row col"], Bool[np.ndarray, "row col"]]:
        """A chip's physical values in the run's bands, and where all of them hold one.

        Raises:
            CorruptRasterError: the file is damaged, or has not the bands of the others.
        """
        stored = self.stored(chip)
        valid = np.isfinite(stored).all(0)
        if self.nodata is not None:
            valid &= (stored != self.nodata).all(0)
        return stored.astype(np.float32) * np.float32(self.scale) + np.float32(self.offset), valid

    def stored(self, chip: LabelledChip) -> Shaped[np.ndarray, "band row col"]:
        """A chip's stored values in the run's bands."""
        return LAYOUTS[self.layout].read(chip.path, self.bands, self.places)

    @property
    def counts(self) -> dict[str, int]:
        """Chips of every split."""
        return {split: len(self.chips[split]) for split in SPLITS}


def open_task(
    folder: Path,
    run: Run,
    reading: Reading | None = None,
    layout: str | None = None,
    split_file: Path | None = None,
) -> tuple[Task, dict[str, str]]:
    """The task in a folder as input of a run, and how it differs from the run's contract in the
    fields that ``reading`` allows to.

    ``split_file`` is JSON of train, val (or valid) and test: lists of file names, with or without
    their folder and ending.

    Raises:
        DatasetError: the folder is no such task, or the split does not fit it.
        ContractError: bands are missing, or the numbers are of another unit.
    """
    if layout is None:
        if (folder / "default_partition.json").exists():
            layout = "geobench"
        elif any(folder.glob("*/*.tif")):
            layout = "eurosat"
        else:
            raise DatasetError(
                f"{folder} is no known task: neither FOLDER/CLASS/*.tif (eurosat) nor "
                "FOLDER/*.hdf5 with default_partition.json and label_map.json (geobench)"
            )
    found = LAYOUTS[layout].find(folder)
    if split_file:
        lists = _lists(split_file)
        by_name = {chip.name: chip for some in found.chips.values() for chip in some}
        chips: dict[str, list[LabelledChip]] = {}
        for split in SPLITS:
            key = "valid" if split == "val" and "val" not in lists else split
            names = [Path(name).stem for name in lists.get(key, [])]
            if missing := [name for name in names if name not in by_name]:
                raise DatasetError(f"{split_file}: {missing[0]!r} of {key} is not in {folder}")
            chips[split] = [by_name[name] for name in names]
        found = replace(found, chips=chips, split=f"by {split_file.name}")
    for name in SPLITS:
        if not found.chips[name]:
            raise DatasetError(
                f"{folder} has no chip in its {name} split ({found.split}): give --split-file"
            )
    light = "top-of-atmosphere reflectance"  # the chips are known to be Level 1C
    if (layout == "eurosat" or folder.name == "m-eurosat") and run.sensor.unit != light:
        note = f"the chips are {light}, the run was trained on {run.sensor.unit}"
        found = replace(found, notes=(*found.notes, note))

    reading = reading or Reading()
    if reading.mask or reading.resample:
        raise ConfigError("--mask and --resample are for a raster, no task: leave them out")
    differences = Differences(reading.allow)
    bands, known = LAYOUTS[layout].bands(found.chips["train"][0].path)
    run = run.of_set(fitting_set(str(folder), known, run.contract, reading.bands))
    task = Task(
        **vars(found),
        folder=folder,
        layout=layout,
        bands=bands,
        places=band_places(str(folder), known, run.sensor, reading.bands, differences),
        scale=SCALES.get(folder.name, 1e-4) if reading.scale is None else reading.scale,
        offset=reading.offset or 0.0,
        nodata=reading.nodata,
        band_set=run.band_set,
    )
    train = task.chips["train"]
    some = train[:: max(len(train) // _COMPARED, 1)]
    pixels = np.concatenate([task.stored(chip).reshape(len(task.places), -1) for chip in some], 1)
    pixels = pixels[:, np.isfinite(pixels).all(0) & (pixels != 0).any(0)]
    if not pixels.shape[1]:
        raise ContractError(f"{folder}: all pixels of its first {len(some)} chips are 0")
    check_pixels(
        str(folder), PixelSample.of(pixels), task.scale, task.offset, run.contract, differences
    )
    return task, differences.found


_COMPARED = 32
"""Chips of the train split whose pixels are compared with the run's contract."""


# Chips of the run's size, and their features

Resize = Literal["bilinear", "none", "pad"]
"""A chip of another size than the run's: stretched to it (what GEO-Bench does); left as it is, but
for what is beyond whole patches, cut off all around; or put in the middle of pixels that are marked
invalid (cropped where it is larger)."""

_WHOLE = 1 - 1e-5
"""Share of valid pixels in one that was made of valid ones alone, but for rounding."""


def fitted(
    image: Float[np.ndarray, "band row col"],
    valid: Bool[np.ndarray, "row col"],
    chip_px: int,
    patch_px: int,
    how: Resize,
) -> tuple[Float[Tensor, "band px px"], Bool[Tensor, "px px"]]:
    """A chip brought to a size the run takes; see ``Resize``. Shrinking averages.

    What was made of an invalid pixel in any part is invalid.
    """
    pixels, known = torch.from_numpy(image), torch.from_numpy(valid)
    if known.shape == (chip_px, chip_px):
        return pixels, known
    if how == "none":
        side = min(known.shape) // patch_px * patch_px
        rows, cols = (slice((size - side) // 2, (size + side) // 2) for size in known.shape)
        return pixels[:, rows, cols], known[rows, cols]
    if how == "pad":
        top, left = ((chip_px - size) // 2 for size in known.shape)
        below, right = chip_px - known.shape[0] - top, chip_px - known.shape[1] - left
        sides = (left, right, top, below)
        return F.pad(pixels, sides), F.pad(known, sides)
    size = (chip_px, chip_px)
    both = torch.cat([pixels.where(known, 0.0), known[None].float()])[None]
    stretched = F.interpolate(both, size, mode="bilinear", antialias=True)[0]
    return stretched[:-1], stretched[-1] > _WHOLE


def _stacked(
    task: Task, chips: Sequence[LabelledChip], chip_px: int, patch_px: int, how: Resize
) -> tuple[Float[Tensor, "batch band row col"], Bool[Tensor, "batch row col"]]:
    pairs = [fitted(*task.read(chip), chip_px, patch_px, how) for chip in chips]
    images, known = zip(*pairs, strict=True)
    return torch.stack(images), torch.stack(known)


def check_resize(task: Task, run: Run, how: Resize) -> None:
    """Refuse chips that cannot stay as they are.

    Raises:
        ContractError: they have several sizes, less than a patch a side, or a size at which the
            run's model has learned no places.
    """
    if how != "none":
        return
    model = run.model.config
    sizes = {task.stored(chip).shape[1:] for some in task.chips.values() for chip in some[:8]}
    names = " and ".join(f"{rows} x {cols} px" for rows, cols in sorted(sizes))
    why = ""
    if len(sizes) > 1:
        why = "are not all of one size"
    elif min(map(min, sizes)) < model.patch_px:
        why = f"have no whole patch of {model.patch_px} px"
    elif model.name == "seed" and sizes != {(model.chip_px, model.chip_px)}:
        why = f"are no chips of {model.chip_px} px, whose places alone a model 'seed' knows"
    if why:
        raise ContractError(
            f"{task.folder}: chips of {names} {why}: bring them to the run's size with "
            "--resize bilinear or --resize pad"
        )


def extract_task(
    task: Task,
    extractors: Sequence[Extractor],
    chip_px: int,
    patch_px: int,
    how: Resize = "bilinear",
    on_chips: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, dict[str, Features]]:
    """Every extractor's features of the chips of every split: extractor -> split -> examples.

    A chip's features are the mean over its patches with a valid pixel; it is its own block of
    ground, since nobody says where it lies. ``on_chips`` is told (chips done, chips in all).
    """
    found: dict[str, dict[str, Features]] = {each.name: {} for each in extractors}
    done, total = 0, sum(task.counts.values())
    for split in SPLITS:
        parts: dict[str, list[np.ndarray]] = {each.name: [] for each in extractors}
        for start in range(0, task.counts[split], CHIPS_AT_ONCE):
            some = task.chips[split][start : start + CHIPS_AT_ONCE]
            image, valid = _stacked(task, some, chip_px, patch_px, how)
            known = patchify(valid[:, None], patch_px).any(2)
            for each in extractors:
                parts[each.name].append(chip_means(each.features(image, valid), known).numpy())
            done += len(some)
            on_chips(done, total)
        labels = np.array([chip.label for chip in task.chips[split]])
        place = np.arange(len(labels))
        for name, values in parts.items():
            found[name][split] = Features(np.concatenate(values), labels, place, place)
    return found


def extractors_of(
    task: Task, run: Run, how: Resize, readout: Readout = "token", seed: int = 0
) -> list[Extractor]:
    """The run's encoder and what it has to beat, the filters cut from some of the train chips."""
    run, config = run.of_set(task.band_set), run.model.config
    order = np.random.default_rng(seed).permutation(task.counts["train"])[:CHIPS_AT_ONCE]
    some = [task.chips["train"][i] for i in order]
    images, known = _stacked(task, some, config.chip_px, config.patch_px, how)
    device = device_of(run)
    convolutions = random_convolutions(images, known, run.normalise, config.patch_px, seed, device)
    return [
        encoder(run, readout),
        random_encoder(run.model, seed, device, run.band_set, readout),
        band_statistics(config.patch_px, device),
        convolutions,
        log_energies(convolutions),
    ]


# Scores

PROBES: Mapping[str, Callable[[Features, Features], Probe]] = {
    "linear": lambda train, val: fit_linear(train.values, train.labels, val.values, val.labels),
    "nearest_5": lambda train, val: fit_nearest(train.values, train.labels),
}
"""The linear probe, its regularisation chosen on val, and five nearest neighbours."""


def evaluate_task(
    run: Run,
    task: Task,
    output: Path,
    how: Resize = "bilinear",
    readout: Readout = "token",
    overridden: Mapping[str, str] | None = None,
    on_progress: Callable[[float, float, str], None] = lambda done, total, note: None,
) -> TaskEvaluation:
    """Scores of the run's features on a task's test chips beside those it has to beat, also
    written to ``output``.

    Intervals are over chips, and over draws of labels where few are given. ``on_progress`` is told
    (part done, 1, what is going on).

    Raises:
        ContractError: the chips cannot stay as they are, see ``check_resize``.
        StorageError: ``output`` cannot be written.
    """
    check_resize(task, run, how)
    config = run.model.config
    features = extract_task(
        task,
        extractors_of(task, run, how, readout),
        config.chip_px,
        config.patch_px,
        how,
        lambda done, total: on_progress(0.5 * done / total, 1, f"{done} of {total} chips"),
    )
    most = task.counts["train"] / len(task.classes)
    budgets = [budget for budget in BUDGETS if budget == "all" or budget < most]
    fits = list(itertools.product(PROBES, budgets))
    scores: dict[str, dict[str, dict[str, Compared]]] = {name: {} for name in PROBES}
    for done, (probe, budget) in enumerate(fits):
        on_progress(0.5 + 0.5 * done / len(fits), 1, f"{probe}, {budget} labels a class")
        cells = {
            name: confusions(splits, PROBES[probe], budget, len(task.classes))
            for name, splits in features.items()
        }
        num_draws, test = len(cells["encoder"]), features["encoder"]["test"].labels
        common = np.full_like(test, np.bincount(features["encoder"]["train"].labels).argmax())
        cells[MAJORITY] = _counts(test, np.stack([common] * num_draws), len(task.classes))
        scores[probe][str(budget)] = compared(cells, "encoder", classes=task.classes, unit="chip")
    record = TaskEvaluation(
        run=TaskRun(path=str(run.path), dataset=run.contract.dataset.fingerprint),
        task=TaskChips(
            folder=str(task.folder),
            layout=task.layout,
            classes=list(task.classes),
            chips=task.counts,
            split=task.split,
            bands_in_file=[task.bands[place] for place in task.places],
            scale=task.scale,
            offset=task.offset,
            nodata=task.nodata,
            notes=list(task.notes),
        ),
        resize=how,
        readout=readout,
        chip_px=config.chip_px,
        overridden=dict(overridden or {}),
        base="encoder",
        scores=scores,
    )
    write_json(output, record.model_dump())
    return record


def confusions(
    splits: Mapping[str, Features],
    fit: Callable[[Features, Features], Probe],
    budget: Budget,
    num_classes: int,
) -> Confusions:
    """Counts of (draw, test chip, true, predicted) of probes fitted to so many chips of every
    class, or to all of a class that has fewer.
    """
    train, val, test = (splits[name] for name in SPLITS)
    draws = [train] if budget == "all" else [
        train.take(few_labels(train.labels, train.block, budget, np.random.default_rng(draw)))
        for draw in range(NUM_DRAWS)
    ]  # fmt: skip
    predicted = np.stack([fit(some, val).predict(test.values) for some in draws])
    return _counts(test.labels, predicted, num_classes)


def _counts(
    true: Int64[np.ndarray, " chip"], predicted: Int64[np.ndarray, "draw chip"], num_classes: int
) -> Confusions:
    counts = np.zeros((*predicted.shape, num_classes, num_classes), np.int64)
    draw, chip = np.indices(predicted.shape)
    counts[draw, chip, true, predicted] = 1
    return counts


HEADER = ("probe", "labels a class", "features", "accuracy", "macro F1", "macro F1 - encoder's")


def rows(record: TaskEvaluation) -> list[list[str]]:
    """The table of an evaluated task, under ``HEADER``; the majority class comes last, once."""
    table, constant = [], []
    for probe, budgets in record.scores.items():
        for budget, features in budgets.items():
            for name, scores in features.items():
                f1 = scores.macro_f1
                numbers = [shown(each.mean, each.ci95) for each in (scores.accuracy, f1)]
                if name == MAJORITY:
                    constant = ["", "", name, *numbers, ""]
                    continue
                against = shown(f1.against_base, f1.against_base_ci95, "+")
                if name == record.base:
                    against = ""
                table.append([probe, budget, name, *numbers, against])
    return [*table, constant]
