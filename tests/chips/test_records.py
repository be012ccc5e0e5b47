"""Positioned reads give what the mapped files show, and name the file when they cannot."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import two_regions

from bharateo.chips import build as building
from bharateo.chips import records
from bharateo.chips.build import build
from bharateo.chips.records import RecordReader
from bharateo.chips.store import LAYERS, Dataset
from bharateo.config import PlanConfig, SplitConfig
from bharateo.errors import DatasetError
from bharateo.sensor import WORLDCOVER_PALETTE
from small_datasets import PLAN, many_bands, small_dataset

SIZE_PX = 52


@pytest.fixture(scope="module", params=["uint8", "uint16"])
def dataset(request, tmp_path_factory):
    """Squares of 52 px, whose packed rows end inside a byte, in shards of a few chips."""
    plan = PlanConfig(size_px=SIZE_PX, min_valid_fraction=0.2, split=SplitConfig(60, 8, 0.2, 0.3))
    sensor = WORLDCOVER_PALETTE if request.param == "uint8" else many_bands(3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(building, "SHARD_BYTES", 50_000)
        made = small_dataset(tmp_path_factory.mktemp("d") / "d", sensor, plan)
    assert len(made.info["shards"]) > 5
    return made


def places(dataset, chip_px, seed=0):
    """Some chips more than once, in no order, with windows at all edges among them."""
    rng, spare = np.random.default_rng(seed), dataset.size_px - chip_px
    chips = rng.integers(0, dataset.num_chips, 40)
    rows, cols = rng.integers(0, spare + 1, (2, 40))
    rows[:4], cols[:4] = (0, 0, spare, spare), (0, spare, 0, spare)
    return chips, rows, cols


def read(dataset, layer, chip_px, chips, rows, cols, reader=None):
    lies = dataset.layers[layer]
    width = lies.shape[-1] if layer == "valid" else chip_px
    out = np.full((len(chips), *lies.shape[:-2], chip_px, width), 77, lies.dtype)
    (reader or RecordReader(dataset)).read(layer, chips, rows, cols, out)
    return out


@pytest.mark.parametrize("chip_px", [SIZE_PX, 32, 1])
def test_windows_are_those_of_the_mapped_files(dataset, chip_px):
    chips, rows, cols = places(dataset, chip_px)
    image, landcover, valid = (read(dataset, layer, chip_px, chips, rows, cols) for layer in LAYERS)
    for i, (chip, row, col) in enumerate(zip(chips.tolist(), rows, cols, strict=True)):
        part = np.s_[..., row : row + chip_px, col : col + chip_px]
        np.testing.assert_array_equal(image[i], dataset.image(chip)[part])
        np.testing.assert_array_equal(landcover[i], dataset.landcover(chip)[part])
        np.testing.assert_array_equal(valid[i], dataset.valid_packed(chip)[row : row + chip_px])


def test_no_chips_are_read_without_complaint(dataset):
    none = np.empty(0, np.int64)
    for layer in LAYERS:
        assert read(dataset, layer, 32, none, none, none).shape[0] == 0
    RecordReader(dataset).readahead(none)


def test_a_chip_that_does_not_exist_is_an_index_error(dataset):
    for chip in (-1, dataset.num_chips):
        with pytest.raises(IndexError, match=f"chip {chip} of {dataset.num_chips}"):
            read(dataset, "image", SIZE_PX, *np.array([[chip], [0], [0]]))


def test_chips_are_located_in_their_shards(dataset):
    shards, rows = dataset.locate(np.arange(dataset.num_chips))
    np.testing.assert_array_equal(shards, dataset.column("shard"))
    np.testing.assert_array_equal(rows, dataset.column("shard_row"))


@pytest.fixture
def own_dataset(tmp_path, monkeypatch) -> Dataset:
    """A dataset to be damaged."""
    monkeypatch.setattr(building, "SHARD_BYTES", 40_000)
    return build(two_regions(), PlanConfig("grid", 37, split=None), tmp_path / "d", 0)


def test_a_file_cut_short_after_opening_is_named(own_dataset):
    reader, everything = RecordReader(own_dataset), np.arange(own_dataset.num_chips)
    zero = np.zeros_like(everything)
    read(own_dataset, "image", 37, everything, zero, zero, reader)  # all files are open
    file = own_dataset.path / "image-00001.npy"
    os.truncate(file, file.stat().st_size - 1)
    with pytest.raises(
        DatasetError, match=r"image-00001.npy ends at byte \d+, inside a chip: copy"
    ):
        read(own_dataset, "image", 37, everything, zero, zero, reader)


def test_a_file_that_has_gone_is_named(own_dataset):
    (own_dataset.path / "valid-00000.npy").unlink()
    with pytest.raises(DatasetError, match=r"valid-00000.npy is missing: copy the file again"):
        read(own_dataset, "valid", 37, *np.zeros((3, 1), int))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts descriptors by /proc")
def test_few_files_are_open_and_none_when_the_reader_goes(tmp_path, monkeypatch):
    monkeypatch.setattr(building, "SHARD_BYTES", 1)
    many = build(two_regions(), PlanConfig("random", 4, 200, split=None), tmp_path / "d", 0)
    before = len(list(Path("/proc/self/fd").iterdir()))
    reader, everything = RecordReader(many), np.arange(many.num_chips)
    for layer in LAYERS:
        read(many, layer, 4, everything, 0 * everything, 0 * everything, reader)
    reader.readahead(everything)
    assert many.num_chips == 400
    assert len(list(Path("/proc/self/fd").iterdir())) == before + records._OPEN_FILES
    del reader
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_threads_may_share_a_reader_with_few_files(dataset, monkeypatch):
    monkeypatch.setattr(records, "_OPEN_FILES", 2)
    reader, seeds = RecordReader(dataset), range(24)

    def landcover(seed):
        return read(dataset, "landcover", 32, *places(dataset, 32, seed), reader)

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(landcover, seeds))
    for seed, windows in zip(seeds, found, strict=True):
        np.testing.assert_array_equal(windows, landcover(seed))


@given(st.sets(st.integers(0, 29), max_size=20))
def test_readahead_asks_once_for_every_run_of_neighbours(palette_dataset, chosen):
    asked = []

    class Deaf:
        def __init__(self, name):
            self.name = name

        def advise(self, byte, length):
            asked.append((self.name, byte, length))

    reader = RecordReader(palette_dataset)
    reader._open = Deaf
    reader.readahead(np.array(sorted(chosen, reverse=True), np.int64))
    runs = [chip for chip in chosen if chip - 1 not in chosen]
    assert len(asked) == len(LAYERS) * len(runs)  # all chips of this dataset are in one shard
    for layer in LAYERS:
        lies = palette_dataset.layers[layer]
        records_asked = sorted(
            (byte - int(lies.first_byte[0])) // lies.record_bytes + number
            for name, byte, length in asked
            for number in range(length // lies.record_bytes)
            if name == lies.files[0]
        )
        assert records_asked == sorted(chosen)


def test_runs_end_where_shards_do(dataset):
    reader, asked = RecordReader(dataset), []
    opened = reader._open
    monitor = type("Monitor", (), {"advise": lambda self, *where: asked.append(where)})
    reader._open = lambda name: (opened(name), monitor())[1]
    reader.readahead(np.arange(dataset.num_chips))
    assert len(asked) == len(LAYERS) * len(dataset.info["shards"])
    assert sum(length for _, length in asked) == dataset.num_chips * sum(
        lies.record_bytes for lies in dataset.layers.values()
    )


def test_a_system_that_takes_no_advice_is_given_none(dataset, monkeypatch):
    monkeypatch.delattr(os, "posix_fadvise", raising=False)
    RecordReader(dataset).readahead(np.arange(dataset.num_chips))


# The table, a column at a time.


def test_a_column_is_that_of_the_table(tmp_path):
    made = small_dataset(tmp_path / "d", plan=PLAN)
    chips = made.chips
    for name in chips.columns:
        ours, theirs = made.column(name), chips[name]
        known = theirs.notna().to_numpy()
        assert len(ours) == len(chips)
        assert (ours[known] == theirs.to_numpy()[known]).all()
        assert all(each is None or each != each for each in ours[~known])
    assert len({id(each) for each in made.column("split")}) == len(set(made.column("split")))


def test_a_column_that_does_not_exist_is_an_error(dataset):
    with pytest.raises(DatasetError, match=r"column 'colour' is not in .*chips.parquet: it holds"):
        dataset.column("colour")
