"""What the loader brings is what the draws say, wherever chips are kept and however it reads."""

import os
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from bharateo.chips import build as building
from bharateo.chips.records import RecordReader
from bharateo.config import MachineConfig, SplitConfig
from bharateo.errors import ConfigError, DatasetError
from bharateo.models.patches import mask_from_noise
from bharateo.sensor import WORLDCOVER_PALETTE
from bharateo.training import data
from bharateo.training import loader as loading
from bharateo.training.data import Window, cut, prepare
from bharateo.training.loader import LAYERS, Loader, resident
from small_datasets import PLAN, many_bands, small_config, small_dataset

CPU = torch.device("cpu")
SIZE_PX, CHIP_PX, PATCH_PX = 52, 32, 8


@pytest.fixture(scope="module", params=["uint8", "uint16"])
def dataset(request, tmp_path_factory):
    """Squares of 52 px, whose packed rows end inside a byte, in shards of a few chips."""
    plan = replace(PLAN, size_px=SIZE_PX, split=SplitConfig(60, 8, 0.1, 0.1))
    sensor = WORLDCOVER_PALETTE if request.param == "uint8" else many_bands(3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(building, "SHARD_BYTES", 50_000)
        return small_dataset(tmp_path_factory.mktemp("d") / "d", sensor, plan, 320)


def make(
    dataset, chips_per_epoch=37, chip_px=CHIP_PX, rank=0, num_ranks=1, machine=None, **training
):
    config = small_config(**training)
    config = replace(
        config,
        model=replace(config.model, chip_px=chip_px, patch_px=chip_px // 4),
        machine=MachineConfig(**machine or {}),
    )
    return Loader(dataset, config, chips_per_epoch, CPU, rank, num_ranks)


def copies(loader, first=0, last=None):
    """Raw batches of steps (two epochs), with memory of their own."""
    last = 2 * loader.steps_per_epoch if last is None else last
    return [(step, copy(raw)) for step, raw in loader.steps(first, last)]


def copy(raw):
    return replace(raw, **{layer: getattr(raw, layer).clone() for layer in LAYERS})


def assert_same_raw(raw, other):
    for layer in LAYERS:
        assert torch.equal(getattr(raw, layer), getattr(other, layer)), layer
    np.testing.assert_array_equal(raw.shows, other.shows)
    for name in raw.draws.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(raw.draws, name), getattr(other.draws, name))


def assert_same_steps(steps, others):
    assert [step for step, _ in steps] == [step for step, _ in others]
    for (_, raw), (_, other) in zip(steps, others, strict=True):
        assert_same_raw(raw, other)


def assert_same_batch(batch, expected):
    for name in expected.__dataclass_fields__:
        ours, theirs = getattr(batch, name), getattr(expected, name)
        assert ours.dtype == theirs.dtype, name
        assert torch.equal(ours, theirs), name


def shown(dataset, raw, chip_px=CHIP_PX):
    """The batch that the draws speak of, cut from the mapped files chip by chip."""
    places = zip(raw.draws.chip, raw.draws.row, raw.draws.col, raw.draws.symmetry, strict=True)
    windows = [Window(*(int(number) for number in place)) for place in places]
    return cut(dataset, windows, chip_px, chip_px // 4)


# A batch made ready.


@pytest.mark.parametrize("chip_px", [CHIP_PX, SIZE_PX])
@pytest.mark.parametrize("augment", ["none", "d4"])
@pytest.mark.parametrize("masks", [1, 3])
def test_a_prepared_batch_is_to_the_bit_what_is_cut_by_itself(dataset, chip_px, augment, masks):
    options = {"augment": augment, "masks_per_chip": masks, "batch_size": 12}
    loader = make(dataset, 60, chip_px, **options)
    ways = set()
    for _, raw in loader.steps(0, 5):
        batch, mask = prepare(raw, dataset.sensor, chip_px // 4, 12)
        assert_same_batch(batch, shown(dataset, raw, chip_px))
        expected = mask_from_noise(torch.from_numpy(raw.draws.noise.copy()), 12)
        assert torch.equal(mask.order, expected.order)
        assert mask.num_visible == expected.num_visible == 4
        assert len(raw.image) == len(batch.image) // masks
        ways |= set(raw.draws.symmetry.tolist())
    assert ways == ({0} if augment == "none" else set(range(8)))


@pytest.mark.parametrize("chip_px", [CHIP_PX, SIZE_PX])
@pytest.mark.parametrize("masks", [1, 3])
def test_a_gpus_way_gives_what_a_cpus_gives(dataset, chip_px, masks):
    loader = make(dataset, 60, chip_px, masks_per_chip=masks)
    for _, raw in loader.steps(0, loader.steps_per_epoch):
        one_by_one = data.turned_one_by_one(raw, dataset.sensor, chip_px // 4)
        at_once = data.turned_at_once(raw, dataset.sensor, chip_px // 4)
        for ours, theirs in zip(one_by_one, at_once, strict=True):
            assert ours.dtype == theirs.dtype
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("corner", [(0, 0), (0, 20), (20, 0), (20, 20)])
def test_windows_at_the_edges_are_whole(dataset, corner):
    loader = make(dataset)
    raw = copy(loader.load(0))
    draws = replace(raw.draws, row=np.full(len(raw), corner[0]), col=np.full(len(raw), corner[1]))
    windows = (draws.chip, draws.row, draws.col)
    for layer in LAYERS:
        RecordReader(dataset).read(layer, *windows, getattr(raw, layer).numpy())
    raw = replace(raw, draws=draws)
    assert_same_batch(prepare(raw, dataset.sensor, PATCH_PX, 12)[0], shown(dataset, raw))


@pytest.mark.parametrize("masks", [1, 3])
@pytest.mark.parametrize("size", [1, 5, 16, 99, None])
def test_parts_of_a_batch_are_what_they_are_in_the_whole(dataset, masks, size):
    raw = make(dataset, masks_per_chip=masks).load(1)
    whole, mask = prepare(raw, dataset.sensor, PATCH_PX, 12)
    parts = raw.parts(size)
    assert [len(part) for part in parts[:-1]] == [size] * (len(parts) - 1)
    ready = [prepare(part, dataset.sensor, PATCH_PX, 12) for part in parts]
    for name in whole.__dataclass_fields__:
        joined = torch.cat([getattr(batch, name) for batch, _ in ready])
        assert torch.equal(joined, getattr(whole, name)), name
    assert torch.equal(torch.cat([each.order for _, each in ready]), mask.order)
    assert all(len(part.image) <= len(part) for part in parts)


# Order, epochs and ranks.


def test_steps_come_in_order_and_an_epoch_shows_its_chips_and_no_more(dataset):
    loader = make(dataset, 37, batch_size=16)
    steps = copies(loader)
    assert [step for step, _ in steps] == list(range(6))
    assert [len(raw) for _, raw in steps] == [16, 16, 5] * 2
    assert loader.wait_s > 0
    for step, raw in steps:
        np.testing.assert_array_equal(raw.draws.chip, loader.chips(step))


def test_a_step_is_the_same_wherever_one_begins(dataset):
    whole = copies(make(dataset))
    assert_same_steps(copies(make(dataset), 4, 6), whole[4:])
    assert_same_steps([(step, make(dataset).load(step)) for step in (5, 0)], [whole[5], whole[0]])
    assert copies(make(dataset), 3, 3) == []


def test_a_step_loaded_out_of_turn_leaves_the_others_alone(dataset):
    loader, found = make(dataset), []
    for step, raw in loader.steps(0, 6):
        assert_same_raw(loader.load(step), raw)
        loader.load((step + 3) % 6)
        found.append((step, copy(raw)))
    assert_same_steps(found, copies(make(dataset)))


@pytest.mark.parametrize("masks", [1, 3])
@pytest.mark.parametrize("lanes", [1, 4, 8])
@pytest.mark.parametrize("num_ranks", [2, 4])
def test_ranks_together_show_what_one_shows(dataset, masks, lanes, num_ranks):
    options = {"masks_per_chip": masks, "lanes": lanes}
    alone = copies(make(dataset, **options))
    ranks = [make(dataset, rank=rank, num_ranks=num_ranks, **options) for rank in range(num_ranks)]
    shares = [copies(loader) for loader in ranks]
    for step, raw in alone:
        everything = sorted(map(tuple, raw.draws.noise))
        together = [noise for own in shares for noise in map(tuple, own[step][1].draws.noise)]
        assert sorted(together) == everything
        for loader in ranks:
            np.testing.assert_array_equal(loader.chips(step), raw.draws.chip)
    if lanes > 1:
        own = [{chip for _, raw in steps for chip in raw.draws.chip.tolist()} for steps in shares]
        assert sum(map(len, own)) == len(set().union(*own))


def test_a_rank_without_chips_gets_an_empty_batch(dataset):
    loaders = [make(dataset, 17, rank=rank, num_ranks=4) for rank in range(4)]
    sizes = []
    for loader in loaders:
        ((_, raw),) = copies(loader, 1, 2)
        batch, mask = prepare(raw, dataset.sensor, PATCH_PX, 12)
        sizes.append(len(raw))
        assert len(batch.image) == len(mask.order) == len(raw)
        assert [len(part) for part in raw.parts(4)] == [len(raw)]
        at_once, *_ = data.turned_at_once(raw, dataset.sensor, PATCH_PX)
        assert at_once.shape == batch.image.shape
    assert sorted(sizes) == [0, 0, 0, 1]


def test_masks_that_straddle_two_batches_find_room(dataset):
    loader = make(dataset, 35, batch_size=10, masks_per_chip=4)
    for _, raw in loader.steps(0, loader.steps_per_epoch):
        assert_same_batch(prepare(raw, dataset.sensor, PATCH_PX, 12)[0], shown(dataset, raw))


def test_lanes_that_cannot_be_shared_are_refused_at_once(dataset):
    with pytest.raises(ConfigError, match="lanes 6 cannot be shared by 4 ranks"):
        make(dataset, rank=1, num_ranks=4, lanes=6)


# Reading ahead.


@pytest.mark.parametrize("prefetch", [0, 1, 5])
def test_reading_ahead_changes_nothing(dataset, prefetch):
    assert_same_steps(copies(make(dataset, machine={"prefetch": prefetch})), copies(make(dataset)))


@pytest.mark.parametrize("prefetch", [0, 1, 3])
def test_a_batch_in_use_is_not_overwritten_and_memory_is_used_again(dataset, prefetch):
    loader = make(dataset, machine={"prefetch": prefetch})
    addresses = set()
    for _, raw in loader.steps(0, 12):
        before = copy(raw)
        time.sleep(0.02)  # the thread reads as far ahead as it may
        assert_same_raw(raw, before)
        addresses.add(raw.image.data_ptr())
    assert len(addresses) == prefetch + 1


@pytest.mark.parametrize("prefetch", [1, 3])
def test_no_more_is_read_ahead_than_asked_for(dataset, prefetch, monkeypatch):
    loader, filled = make(dataset, machine={"prefetch": prefetch}), []
    fill = loader._store.fill

    def watched(step, request):
        buffer = fill(step, request)
        filled.append(step)
        return buffer

    monkeypatch.setattr(loader._store, "fill", watched)
    for step, _ in loader.steps(0, 6):
        time.sleep(0.05)
        assert filled == list(range(min(step + prefetch + 1, 6)))


def threads():
    return [each for each in threading.enumerate() if each.name.startswith("loader")]


@pytest.mark.parametrize("how", ["used up", "closed", "dropped", "consumer raises"])
def test_the_thread_ends_with_its_consumer(dataset, how):
    steps = make(dataset).steps(0, 4)
    next(steps)
    assert len(threads()) == 1
    if how == "used up":
        list(steps)
    elif how == "closed":
        steps.close()
    elif how == "dropped":
        del steps
    else:
        with pytest.raises(ZeroDivisionError):
            for _ in make(dataset).steps(0, 4):
                1 / 0  # noqa: B018
        steps.close()
    assert not threads()


@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_file_cut_short_under_way_is_an_error_where_batches_are_used(tmp_path, prefetch):
    dataset = small_dataset(tmp_path / "d")
    loader = make(dataset, machine={"prefetch": prefetch})
    seen = []
    with pytest.raises(DatasetError, match=r"image-00000.npy ends at byte \d+, inside a chip"):
        for step, _ in loader.steps(0, 6):
            seen.append(step)
            os.truncate(dataset.path / "image-00000.npy", 1000)
    assert seen == list(range(len(seen)))
    assert len(seen) <= prefetch + 1
    assert not threads()


# Where chips are kept.


@pytest.mark.parametrize("where", ["ram", "device"])
@pytest.mark.parametrize("chip_px", [CHIP_PX, SIZE_PX])
@pytest.mark.parametrize("lanes", [1, 2])
def test_resident_chips_make_the_same_batches(dataset, where, chip_px, lanes):
    for rank in range(2):
        options = {"chip_px": chip_px, "rank": rank, "num_ranks": 2, "lanes": lanes}
        kept = make(dataset, machine={"resident": where}, **options)
        assert_same_steps(copies(kept), copies(make(dataset, **options)))
        num_train = len(dataset.indices("train"))
        own = kept._store if where == "device" else kept._store.source
        assert len(own.chips) == (
            num_train if lanes == 1 else num_train // 2 + (num_train % 2 > rank)
        )


@pytest.mark.parametrize("where", ["ram", "device"])
def test_resident_chips_need_no_files(tmp_path, where):
    dataset = small_dataset(tmp_path / "d", many_bands(2))
    expected = copies(make(dataset))
    loader = make(dataset, machine={"resident": where})
    for file in dataset.path.glob("*.npy"):
        os.truncate(file, 0)
    assert_same_steps(copies(loader), expected)


def test_more_chips_than_are_brought_at_once_become_resident(dataset, monkeypatch):
    monkeypatch.setattr(loading, "_CHIPS_AT_ONCE", 7)
    kept = make(dataset, machine={"resident": "device"})
    assert_same_steps(copies(kept), copies(make(dataset)))


@pytest.mark.parametrize("where", ["ram", "device"])
def test_chips_that_do_not_fit_are_an_error_with_a_remedy(dataset, monkeypatch, where):
    def full(*_, **__):
        raise MemoryError

    monkeypatch.setattr(loading, "_InMemory", full)
    monkeypatch.setattr(loading, "_OnDevice", full)
    with pytest.raises(
        ConfigError,
        match=rf"resident {where}: the \d+ chips .* take 0.0 GB, .*: set machine.resident=off",
    ):
        make(dataset, machine={"resident": where})


def test_by_itself_a_gpu_keeps_what_takes_less_than_half_its_free_memory(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1000, 5000))
    gpu = torch.device("cuda")
    assert resident("auto", gpu, 499) == "device"
    assert resident("auto", gpu, 500) == "off"
    assert resident("auto", CPU, 1) == "off"
    for choice in ("off", "ram", "device"):
        assert resident(choice, gpu, 10**12) == resident(choice, CPU, 1) == choice


# Shuffling in windows.


@pytest.mark.parametrize("options", [{}, {"lanes": 2, "masks_per_chip": 2}])
@pytest.mark.parametrize("first", [0, 1, 5])
def test_every_chip_is_asked_for_before_it_is_read(dataset, monkeypatch, options, first):
    asked, read = [], []
    readahead, records = RecordReader.readahead, RecordReader.read

    def spy_ahead(self, chips):
        asked.extend(chips.tolist())
        readahead(self, chips)

    def spy_read(self, layer, chips, *rest):
        read.extend(chips.tolist() if layer == "image" else ())
        assert not set(chips.tolist()) - {*asked}
        records(self, layer, chips, *rest)

    monkeypatch.setattr(RecordReader, "readahead", spy_ahead)
    monkeypatch.setattr(RecordReader, "read", spy_read)
    loader = make(dataset, 64, batch_size=8, shuffle_window=16, **options)
    steps = list(loader.steps(first, 15))
    assert len(steps) == 15 - first
    assert {*asked} == {*read}


def test_without_windows_nothing_is_asked_for(dataset, monkeypatch):
    monkeypatch.setattr(RecordReader, "readahead", None)
    copies(make(dataset))
