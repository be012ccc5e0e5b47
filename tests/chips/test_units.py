"""Units that fail, are lost, or come in another order: the dataset is the same in the end."""

import pytest
from synthetic import Image, Labels, region

from bharateo.chips import build as building
from bharateo.chips.build import build
from bharateo.chips.workers import Workers
from bharateo.config import PlanConfig, SplitConfig
from bharateo.errors import BuildError, UnreachableError
from bharateo.sources import Recipe
from small_datasets import contents

PLAN = PlanConfig(
    "blocks", 20, chips_per_block=3, unit_blocks=(1, 2), max_failed=0.3,
    min_valid_fraction=0.2, split=SplitConfig(50, 8, 0.2, 0.2),
)  # fmt: skip


class Flaky(Image):
    """Pixels that cannot be had below one row of the grid, as long as ``down`` says so."""

    down = True

    def read(self, geobox):
        if self.down and geobox.affine.f < 3_000_000 - 10 * 150:
            raise UnreachableError("the server is down; try again")
        return super().read(geobox)


def recipe(image=None):
    return Recipe("synthetic", [region("west", 200, 260)], image or Image(), Labels())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "d"
    build(recipe(), PLAN, folder, 0)
    return contents(folder)


def test_units_are_read_one_by_one_and_again_at_the_end_of_the_line(tmp_path, whole):
    class Once(Image):
        failed = False

        def read(self, geobox):
            if not self.failed:
                self.failed = True
                raise UnreachableError("just this once")
            return super().read(geobox)

    dataset = build(recipe(Once()), PLAN, tmp_path / "d", 0)
    assert dataset.info["failed"] == []
    assert contents(tmp_path / "d") == whole


def test_what_fails_for_good_is_recorded_with_its_reason_and_left_out(tmp_path, whole):
    dataset = build(recipe(Flaky()), PLAN, tmp_path / "d", 0)
    failed = dataset.info["failed"]
    assert {record["block"].split("/")[1][0] for record in failed} == {"3"}
    assert all("the server is down" in record["reason"] for record in failed)
    assert 0 < dataset.num_chips < len(contents(tmp_path / "d")["image-00000.npy"])
    assert not dataset.chips["block"].str.startswith("west/3").any()


def test_above_the_limit_the_build_stops_and_the_same_command_goes_on(tmp_path, whole):
    from dataclasses import replace

    image = Flaky()
    strict = replace(PLAN, max_failed=0.0)
    with pytest.raises(BuildError, match=r"plan\.max_failed 0 allows.*run the same command again"):
        build(recipe(image), strict, tmp_path / "d", 0)
    image.down = False
    dataset = build(recipe(image), strict, tmp_path / "d", 0)
    assert dataset.info["failed"] == []
    arrays = {name: data for name, data in contents(tmp_path / "d").items() if ".npy" in name}
    assert arrays == {name: data for name, data in whole.items() if ".npy" in name}


def test_shards_made_without_a_unit_are_made_anew_when_it_is_there(tmp_path, monkeypatch, whole):
    """Killed with all shards written, but one unit failed: the next run gets that unit."""
    monkeypatch.setattr(building, "SHARD_BYTES", 20_000)
    build(recipe(), PLAN, tmp_path / "whole", 0)
    image = Flaky()
    with monkeypatch.context() as patch:
        patch.setattr(building.describe, "dataset", lambda *_: (_ for _ in ()).throw(SystemExit))
        with pytest.raises(SystemExit):
            build(recipe(image), PLAN, tmp_path / "d", 0)
    assert len(list((tmp_path / "d").glob("image-*.npy"))) > 2
    image.down = False
    build(recipe(image), PLAN, tmp_path / "d", 0)
    assert contents(tmp_path / "d") == contents(tmp_path / "whole")


def test_a_shard_that_went_missing_is_made_again_from_its_units(tmp_path, monkeypatch):
    monkeypatch.setattr(building, "SHARD_BYTES", 20_000)
    build(recipe(), PLAN, tmp_path / "whole", 0)
    with monkeypatch.context() as patch:
        patch.setattr(building.describe, "dataset", lambda *_: (_ for _ in ()).throw(SystemExit))
        with pytest.raises(SystemExit):
            build(recipe(), PLAN, tmp_path / "d", 0)
    (tmp_path / "d" / "landcover-00001.npy").unlink()
    image = Image()
    build(recipe(image), PLAN, tmp_path / "d", 0)
    assert 0 < image.num_reads < 5
    assert contents(tmp_path / "d") == contents(tmp_path / "whole")


def test_two_processes_make_the_same_bytes(tmp_path, whole):
    build(recipe(), PLAN, tmp_path / "d", 0, workers=Workers(processes=2))
    assert contents(tmp_path / "d") == whole
