"""Servers that fail, files that are missing: the build ends by itself and says what it lacks."""

from collections import Counter
from contextlib import contextmanager

import pytest

from bharateo.chips.store import Dataset
from range_server import FAULT_KINDS, Faults, RandomFaults
from sentinel2_rig import check_chips, done, served, two_zone_world
from small_datasets import contents


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return two_zone_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def small_units(world):
    """The world read block by block, labels over the network, by a client of little patience."""
    impatient = {"data__sentinel2__timeout_s": 0.4, "data__plan__unit_blocks": "[1,1]"}
    with served(world, labels_over_http=True, **impatient) as rig:
        yield rig


# Servers.


@pytest.mark.slow
def test_one_fault_in_ten_requests_changes_nothing(small_units, tmp_path):
    assert done(small_units.build(tmp_path / "whole"))
    injected = Counter()
    for seed in (1, 2, 3):
        faults = RandomFaults(0.1, seed, latency_s=(0.002, 0.02), hang_s=1.0)
        small_units.files.faults = faults
        assert done(small_units.build(tmp_path / f"disturbed-{seed}"))
        injected += faults.injected
        assert contents(tmp_path / f"disturbed-{seed}") == contents(tmp_path / "whole")
    assert set(injected) == set(FAULT_KINDS)
    assert injected.total() >= 20


@pytest.mark.slow
def test_a_unit_that_could_not_be_reached_is_tried_again_at_the_end(small_units, tmp_path):
    once = {"data__sentinel2__retries": 0, "data__plan__max_failed": 0}
    assert done(small_units.build(tmp_path / "whole", **once))
    small_units.files.faults = Faults(spare=60, busy=1)
    small_units.files.forget()
    assert done(small_units.build(tmp_path / "disturbed", **once))
    assert [get.status for get in small_units.files.gets].count(503) == 1
    assert contents(tmp_path / "disturbed") == contents(tmp_path / "whole")


# Files.


@contextmanager
def spoilt(path, left):
    """A file that is gone (None) or cut to a share of its bytes for a while."""
    aside = path.rename(path.with_suffix(".aside"))
    try:
        if left is not None:
            path.write_bytes(aside.read_bytes()[: int(left * aside.stat().st_size)])
        yield
    finally:
        aside.replace(path)


EAST_B05 = "S2A_44RKS_20210203/B05.tif"


def test_units_without_a_file_are_named_with_the_reason_and_the_rest_is_built(
    world, tmp_path, capsys
):
    no_split = {"data__plan__split": "{block_px: 256, buffer_px: 32, val: 0, test: 0}"}
    with served(world, data__plan__max_failed=0.5, **no_split) as rig:
        with spoilt(world.folder / "s2" / EAST_B05, None):
            assert done(rig.build(tmp_path / "dataset"))
        dataset = Dataset.open(tmp_path / "dataset")
        failed = dataset.info["failed"]
        assert [(each["region"], each["occasion"], each["scene"]) for each in failed] == 2 * [
            ("44RKS", "all", "S2A_44RKS_20210203")
        ]
        assert [each["block"] for each in failed] == ["44RKS/0-0", "44RKS/0-2"]
        for each in failed:
            where = f"{rig.files.url}/s2/{EAST_B05} (item S2A_44RKS_20210203, band B05)"
            assert each["reason"].startswith(f"{where} does not exist")
        assert f"2 reads failed for good and are left out (see 'failed' in {tmp_path}" in (
            capsys.readouterr().out
        )
        assert set(dataset.chips.region) == {"43RGM"}
        check_chips(dataset, world)
        first = contents(dataset.path)
        rig.files.forget()
        assert done(rig.build(tmp_path / "dataset")), "the same command opens what there is"
        assert rig.files.gets == []
        assert contents(dataset.path) == first


@pytest.mark.parametrize("left", [None, 0.0, 0.7], ids=["gone", "empty", "cut"])
@pytest.mark.slow
def test_without_failures_allowed_the_build_stops_and_goes_on_when_the_file_is_back(
    world, tmp_path, capsys, left
):
    with served(world, data__plan__max_failed=0) as rig:
        assert done(rig.build(tmp_path / "whole"))
        capsys.readouterr()
        with spoilt(world.folder / "s2" / EAST_B05, left):
            assert not done(rig.build(tmp_path / "dataset"))
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert said.startswith("bharateo: BuildError: 1 of 4 units could not be read")
        assert f"plan.max_failed 0 allows; the last reason: {rig.files.url}/s2/{EAST_B05}" in said
        assert "run the same command again" in said
        kept = list((tmp_path / "dataset").rglob("units/*/*.npz"))
        assert len(kept) >= 2
        rig.files.forget()
        assert done(rig.build(tmp_path / "dataset"))
        assert not any("43RGM" in get.path for get in rig.files.gets), "what was read is kept"
        assert contents(tmp_path / "dataset") == contents(tmp_path / "whole")


def test_failures_that_leave_a_split_empty_lose_nothing_of_what_was_read(world, tmp_path, capsys):
    with served(world, data__plan__max_failed=0.5) as rig:
        assert done(rig.build(tmp_path / "whole"))
        capsys.readouterr()
        with spoilt(world.folder / "s2" / EAST_B05, None):
            assert not done(rig.build(tmp_path / "dataset"))
        said = capsys.readouterr().err
        assert said.startswith("bharateo: BuildError: split 'test' ends with no chip")
        assert "but 2 reads failed" in said
        rig.files.forget()
        assert done(rig.build(tmp_path / "dataset"))
        assert not any("43RGM" in get.path for get in rig.files.gets), "what was read is kept"
        assert contents(tmp_path / "dataset") == contents(tmp_path / "whole")
