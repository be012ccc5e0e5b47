import gc
import hashlib
import json
import subprocess
import sys
import weakref
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from synthetic import SENSOR, two_regions

from bharateo.chips import build as building
from bharateo.chips.build import build
from bharateo.chips.store import Dataset, write_array
from bharateo.config import PlanConfig, SplitConfig
from bharateo.errors import DatasetError

PLAN = PlanConfig("grid", 37, split=SplitConfig(50, 8, 0.2, 0.2))


@pytest.fixture
def dataset(tmp_path, monkeypatch) -> Dataset:
    monkeypatch.setattr(building, "SHARD_BYTES", 40_000)
    return build(two_regions(), PLAN, tmp_path / "d", 0)


def test_an_opened_dataset_knows_what_it_holds(dataset):
    again = Dataset.open(str(dataset.path))
    assert again.sensor == SENSOR
    assert again.size_px == 37
    assert again.regions == ("west", "east")
    assert again.info["plan"] == json.loads(json.dumps(asdict(PLAN)))
    assert again.num_chips == sum(again.info["splits"].values())
    assert repr(again).endswith(f"{again.num_chips} chips of 37 px)")


def test_the_splits_part_all_chips(dataset):
    parts = [dataset.indices(split) for split in ("train", "val", "test")]
    assert all(part.dtype == np.int64 and len(part) for part in parts)
    assert sorted(np.concatenate(parts)) == list(range(dataset.num_chips))
    assert (dataset.chips.split[dataset.indices("val")] == "val").all()


def test_files_are_plain_arrays_and_chips_are_views_of_them(dataset):
    for chip in dataset.chips.itertuples():
        for layer, read in (
            ("image", dataset.image),
            ("landcover", dataset.landcover),
            ("valid", dataset.valid_packed),
        ):
            shard = np.load(dataset.path / f"{layer}-{chip.shard:05d}.npy")
            view = read(chip.chip)
            np.testing.assert_array_equal(view, shard[chip.shard_row])
            assert not view.flags.writeable
            assert not view.flags.owndata
            assert type(view) is np.ndarray


def test_validity_unpacks_to_what_was_packed(dataset):
    for chip in range(dataset.num_chips):
        packed, valid = dataset.valid_packed(chip), dataset.valid(chip)
        assert packed.shape == (37, 5)
        assert valid.shape == (37, 37)
        np.testing.assert_array_equal(np.packbits(valid, axis=-1), packed)
        assert (dataset.image(chip)[:, ~valid] == 0).all()


def test_a_chip_that_does_not_exist_is_an_index_error(dataset):
    for chip in (-1, dataset.num_chips):
        with pytest.raises(IndexError, match=f"chip {chip} of {dataset.num_chips}"):
            dataset.image(chip)


def test_an_unknown_overview_is_an_error(dataset):
    with pytest.raises(DatasetError, match=r"'north' is not in .* it holds west, east"):
        dataset.overview("north")


def test_checksums_in_the_description_are_those_of_the_files(dataset):
    for shard in dataset.info["shards"]:
        for layer in ("image", "landcover", "valid"):
            content = (dataset.path / shard[layer]["file"]).read_bytes()
            assert hashlib.sha256(content).hexdigest() == shard[layer]["sha256"]
            assert len(content) == shard[layer]["bytes"]


def test_a_folder_may_be_moved(dataset, tmp_path):
    before = dataset.image(0).copy()
    moved = dataset.path.rename(tmp_path / "elsewhere")
    np.testing.assert_array_equal(Dataset.open(moved).image(0), before)


def test_more_shards_than_file_handles_can_be_read(tmp_path, monkeypatch):
    monkeypatch.setattr(building, "SHARD_BYTES", 1)
    many = PlanConfig("random", 4, 300, split=None)
    dataset = build(two_regions(), many, tmp_path / "d", 0)
    for chip in range(dataset.num_chips):
        dataset.image(chip)
    assert len(dataset.info["shards"]) == 600
    if Path("/proc/self/fd").exists():
        assert len(list(Path("/proc/self/fd").iterdir())) < 256


def test_a_dataset_nobody_holds_closes_its_files_at_once(dataset):
    opened = Dataset.open(dataset.path)
    opened.image(0)
    gone = weakref.ref(opened)
    gc.disable()
    try:
        del opened
        assert gone() is None
    finally:
        gc.enable()


def test_a_missing_dataset_says_how_to_build_one(tmp_path):
    with pytest.raises(DatasetError, match="build it first: bharateo build CONFIG --output"):
        Dataset.open(tmp_path / "nowhere")
    with pytest.raises(DatasetError, match="so it is no dataset"):
        Dataset.open(tmp_path)


def test_an_unfinished_build_says_to_run_it_again(tmp_path):
    (tmp_path / ".build").mkdir()
    with pytest.raises(DatasetError, match="run the same build again"):
        Dataset.open(tmp_path)


def test_another_schema_version_is_refused(dataset):
    file = dataset.path / "dataset.json"
    file.write_text(json.dumps({**dataset.info, "schema_version": 99}))
    with pytest.raises(DatasetError, match=r"has schema_version 99, .* reads 2: build the dataset"):
        Dataset.open(dataset.path)


@pytest.mark.parametrize("text", ["", "{}", "[]", "not json"])
def test_a_description_that_is_none_is_refused(dataset, text):
    (dataset.path / "dataset.json").write_text(text)
    with pytest.raises(DatasetError, match="is not a BharatEO dataset's description"):
        Dataset.open(dataset.path)


def test_a_missing_or_short_shard_is_refused_by_name(dataset):
    file = dataset.path / "landcover-00001.npy"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    with pytest.raises(DatasetError, match=r"landcover-00001.npy has \d+ bytes, dataset.json prom"):
        Dataset.open(dataset.path)
    file.unlink()
    with pytest.raises(DatasetError, match=r"landcover-00001.npy is missing"):
        Dataset.open(dataset.path)


def test_opening_and_reading_a_chip_loads_no_table_library(dataset):
    code = (
        "import sys; from bharateo.chips.store import Dataset; "
        f"Dataset.open({str(dataset.path)!r}).image(0); "
        "print([m for m in ('pandas', 'pyarrow', 'geopandas', 'rasterio', 'torch') "
        "if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.bool_])
def test_an_array_is_written_as_numpy_writes_it(tmp_path, dtype):
    array = np.arange(60).reshape(3, 4, 5).astype(dtype)[:, ::2]
    record = write_array(tmp_path / "ours.npy", array)
    np.save(tmp_path / "theirs.npy", np.ascontiguousarray(array))
    assert (tmp_path / "ours.npy").read_bytes() == (tmp_path / "theirs.npy").read_bytes()
    assert record.bytes == (tmp_path / "ours.npy").stat().st_size
