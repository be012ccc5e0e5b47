"""A dataset of a million chips is opened and trained on without holding it."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bharateo.chips.records import RecordReader
from bharateo.chips.store import SPLITS, Dataset
from bharateo.training.data import epoch_order, share
from sparse_million import sparse_dataset

pytestmark = pytest.mark.slow

NUM_CHIPS = 1_000_000

TRAIN = """
import sys
import torch
from bharateo.chips.store import Dataset
from bharateo.config import Config, MachineConfig, TrainingConfig
from bharateo.training.loader import Loader

dataset = Dataset.open(sys.argv[1])
num_chips = len(dataset.indices("train"))
config = Config(training=TrainingConfig(batch_size=64), machine=MachineConfig(resident="off"))
loader = Loader(dataset, config, num_chips, torch.device("cpu"))
shown = sum(len(raw) for _, raw in loader.steps(0, 50))
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(shown, int(peak.split()[1]))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = sparse_dataset(tmp_path_factory.mktemp("million") / "d", NUM_CHIPS)
    yield made
    shutil.rmtree(made)


@pytest.fixture(scope="module")
def dataset(folder):
    return Dataset.open(folder)


def test_a_million_chips_are_all_there(dataset):
    assert dataset.num_chips == NUM_CHIPS
    assert len(dataset.info["shards"]) == 5129
    parts = [dataset.indices(split) for split in SPLITS]
    assert all(len(part) > 50_000 for part in parts)
    assert sum(map(len, parts)) == NUM_CHIPS
    shards, rows = dataset.locate(np.arange(NUM_CHIPS))
    np.testing.assert_array_equal(shards, dataset.column("shard"))
    np.testing.assert_array_equal(rows, dataset.column("shard_row"))


def test_chips_are_read_from_the_first_shard_to_the_last(dataset):
    reader, chips = RecordReader(dataset), np.array([NUM_CHIPS - 1, 0, 195, 194, 500_000])
    reader.readahead(chips)
    for name, lies in dataset.layers.items():
        out = np.ones((len(chips), *lies.shape), lies.dtype)
        reader.read(name, chips, 0 * chips, 0 * chips, out)
        assert not out.any()


def test_an_epoch_of_a_million_is_shared_by_ranks_with_lanes(dataset):
    chips = dataset.indices("train")
    order = epoch_order(chips, len(chips), 42, 3, shuffle_window=4096, lanes=8)
    np.testing.assert_array_equal(np.sort(order), chips)
    positions = share(0, len(chips), 3, 8, lanes=8)
    np.testing.assert_array_equal(np.sort(order[positions]), chips[3::8])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads peak memory from /proc")
def test_training_on_a_million_chips_takes_less_than_a_gigabyte(folder):
    code = [sys.executable, "-c", TRAIN, str(folder)]
    run = subprocess.run(code, capture_output=True, text=True, check=True)
    shown, peak_kib = map(int, run.stdout.split())
    assert shown == 50 * 64
    assert peak_kib * 1024 < 1e9
