import errno
import os
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import geopandas
import numpy as np
import pytest
from synthetic import Image, Labels, native_codes, recipe, region, two_regions

from bharateo.chips import build as building
from bharateo.chips.build import build
from bharateo.chips.store import Dataset
from bharateo.config import PlanConfig, SplitConfig
from bharateo.errors import (
    ConfigError,
    DatasetError,
    EmptyRegionError,
    SourceError,
    StorageError,
    UnknownCodeError,
)
from bharateo.landcover import BHARATEO_CLASSES, WORLDCOVER
from bharateo.pixels.raster import Raster

PLAN = PlanConfig("grid", 40, split=SplitConfig(50, 8, 0.2, 0.2))
RANDOM = PlanConfig("random", 24, 15, min_classes=2, split=SplitConfig(60, 8, 0.2, 0.2))


@pytest.fixture(autouse=True)
def _several_shards(monkeypatch):
    monkeypatch.setattr(building, "SHARD_BYTES", 40_000)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("plan", [PLAN, RANDOM], ids=["grid", "random"])
def test_every_chip_holds_the_pixels_of_its_place(tmp_path, plan):
    source = two_regions()
    dataset = build(source, plan, tmp_path / "d", 0)
    rasters = [
        (source.image.read(region.geobox), source.landcover.read(region.geobox))
        for region in source.regions
    ]
    names = [region.name for region in source.regions]
    assert dataset.num_chips == len(dataset.chips) > 5
    for chip in dataset.chips.itertuples():
        image, labels = rasters[names.index(chip.region)]
        rows = slice(chip.row, chip.row + plan.size_px)
        cols = slice(chip.col, chip.col + plan.size_px)
        valid = image.valid[rows, cols]
        np.testing.assert_array_equal(dataset.valid(chip.chip), valid)
        np.testing.assert_array_equal(
            dataset.image(chip.chip), np.where(valid, image.values[:, rows, cols], 0)
        )
        class_ids = WORLDCOVER.collapse(labels.values[0, rows, cols])
        np.testing.assert_array_equal(dataset.landcover(chip.chip), class_ids)


def test_the_table_says_what_the_pixels_say(tmp_path):
    dataset = build(two_regions(), RANDOM, tmp_path / "d", 0)
    for chip in dataset.chips.itertuples():
        class_ids = dataset.landcover(chip.chip)
        labelled = class_ids != 255
        shares = [(class_ids == c.id).sum() / labelled.sum() for c in BHARATEO_CLASSES]
        told = [getattr(chip, f"fraction_{c.name}") for c in BHARATEO_CLASSES]
        np.testing.assert_allclose(told, shares)
        assert chip.majority_class == BHARATEO_CLASSES[int(np.argmax(shares))].name
        assert chip.labelled_fraction == pytest.approx(labelled.mean())
        assert chip.valid_fraction == pytest.approx(dataset.valid(chip.chip).mean())
        assert np.count_nonzero(shares) >= RANDOM.min_classes


def test_footprints_are_where_the_pixels_are(tmp_path):
    source = two_regions()
    dataset = build(source, PLAN, tmp_path / "d", 0)
    table = geopandas.read_parquet(dataset.path / "chips.parquet")
    assert table.crs == "EPSG:4326"
    corner = table[table.region == "east"].to_crs("EPSG:32643").iloc[0]
    affine = source.regions[1].geobox.affine
    west, _, _, north = corner.geometry.bounds
    assert west == pytest.approx(affine.c + 10 * corner.col, abs=0.01)
    assert north == pytest.approx(affine.f - 10 * corner.row, abs=0.01)
    assert corner.geometry.area == pytest.approx(400**2, rel=1e-6)


def test_statistics_are_those_of_the_train_split_alone(tmp_path):
    dataset = build(two_regions(), PLAN, tmp_path / "d", 0)
    train = dataset.indices("train")
    pixels = np.concatenate([dataset.image(i)[:, dataset.valid(i)] for i in train], axis=1)
    reflectance = pixels.astype(np.float64) * 1e-4 - 0.1
    np.testing.assert_allclose(dataset.statistics.mean, reflectance.mean(axis=1), rtol=1e-12)
    np.testing.assert_allclose(dataset.statistics.std, reflectance.std(axis=1), rtol=1e-9)
    assert dataset.statistics.num_pixels == pixels.shape[1]
    assert dataset.info["statistics"]["hash"] == dataset.statistics.hash


def test_the_description_counts_native_codes_and_splits(tmp_path):
    source = two_regions()
    dataset = build(source, PLAN, tmp_path / "d", 7)
    for record, place in zip(dataset.info["regions"], source.regions, strict=True):
        codes, counts = np.unique(native_codes(place.geobox), return_counts=True)
        assert record["native_counts"] == {
            str(code): num for code, num in zip(codes, counts, strict=True)
        }
        assert record["provenance"] == {
            "image": {"from": "numbers"},
            "landcover": {"from": "blobs"},
        }
    assert sum(dataset.info["splits"].values()) == dataset.num_chips
    assert dataset.info["splits"]["test"] == len(dataset.indices("test"))
    assert dataset.attribution == ("Image by nobody", "Labels by nobody")
    assert dataset.info["seed"] == 7


def test_chips_with_too_little_valid_or_too_few_classes_are_left_out(tmp_path):
    strict = replace(RANDOM, strategy="grid", chips_per_roi=None, min_valid_fraction=0.93)
    dataset = build(two_regions(), strict, tmp_path / "d", 0)
    assert (dataset.chips.valid_fraction >= 0.93).all()
    everything = build(two_regions(), replace(strict, min_valid_fraction=0.0), tmp_path / "e", 0)
    assert everything.num_chips > dataset.num_chips


def test_overviews_show_every_region_thinned(tmp_path, monkeypatch):
    monkeypatch.setattr(building, "OVERVIEW_PX", 100)
    source = two_regions()
    dataset = build(source, PLAN, tmp_path / "d", 0)
    image, landcover, valid = dataset.overview("west")
    codes = native_codes(source.regions[0].geobox)[1::3, 1::3]
    np.testing.assert_array_equal(landcover, WORLDCOVER.collapse(codes))
    assert image.shape == (2, *landcover.shape) == (2, *valid.shape)
    assert max(valid.shape) <= 100
    assert valid.dtype == np.bool_


def test_two_builds_give_the_same_bytes(tmp_path):
    build(two_regions(), RANDOM, tmp_path / "a", 0)
    build(two_regions(), RANDOM, tmp_path / "b", 0)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    build(two_regions(), RANDOM, tmp_path / "c", 1)
    assert contents(tmp_path / "a") != contents(tmp_path / "c")


def test_a_finished_build_is_opened_without_reading_pixels(tmp_path):
    build(two_regions(), PLAN, tmp_path / "d", 0)
    again = two_regions()
    assert build(again, PLAN, tmp_path / "d", 0).num_chips > 0
    assert again.image.num_reads == 0


def test_every_region_is_read_once(tmp_path):
    source = two_regions()
    build(source, PLAN, tmp_path / "d", 0)
    assert source.image.num_reads == 2


def test_progress_tells_how_far_each_pass_is(tmp_path):
    told: list[tuple[int, int, str]] = []
    dataset = build(two_regions(), PLAN, tmp_path / "d", 0, lambda *step: told.append(step))
    ends = {message.split(",")[0]: (done, total) for done, total, message in told}
    assert ends == {
        "reading": (2, 2),
        "writing chips": (dataset.num_chips, dataset.num_chips),
    }


def test_another_plan_in_the_folder_is_refused_and_named(tmp_path):
    build(two_regions(), PLAN, tmp_path / "d", 0)
    other = replace(PLAN, min_classes=2)
    with pytest.raises(DatasetError, match=r"plan.min_classes is 1 there and 2 here\): delete"):
        build(two_regions(), other, tmp_path / "d", 0)
    with pytest.raises(DatasetError, match="seed is 0 there and 1 here"):
        build(two_regions(), PLAN, tmp_path / "d", 1)


class Fails(Image):
    def read(self, geobox):
        if self.num_reads:
            raise SourceError("the line is cut")
        return super().read(geobox)


def test_an_unfinished_build_is_no_dataset_and_belongs_to_its_plan(tmp_path):
    source = replace(two_regions(), image=Fails())
    with pytest.raises(SourceError, match="the line is cut"):
        build(source, PLAN, tmp_path / "d", 0)
    with pytest.raises(DatasetError, match="has not finished: run the same build again"):
        Dataset.open(tmp_path / "d")
    resumed = two_regions()
    build(resumed, PLAN, tmp_path / "d", 0)
    assert resumed.image.num_reads == 1


def test_a_failed_build_leaves_its_folder_to_the_mended_one(tmp_path):
    build(two_regions(), PLAN, tmp_path / "whole", 1)
    with pytest.raises(SourceError, match="the line is cut"):
        build(replace(two_regions(), image=Fails()), PLAN, tmp_path / "d", 0)
    said: list[str] = []
    build(two_regions(), PLAN, tmp_path / "d", 1, say=said.append)
    assert "unfinished build of another plan (seed is 0 there and 1 here): it is set" in said[0]
    assert contents(tmp_path / "d") == contents(tmp_path / "whole")
    with pytest.raises(DatasetError, match=r"holds the dataset of another plan .*seed is 1 there"):
        build(two_regions(), PLAN, tmp_path / "d", 0)


def test_a_build_set_aside_goes_on_when_its_command_is_given_again(tmp_path):
    for seed in (0, 1):
        with pytest.raises(SourceError, match="the line is cut"):
            build(replace(two_regions(), image=Fails()), PLAN, tmp_path / "d", seed)
        with pytest.raises(DatasetError, match="has not finished"):
            Dataset.open(tmp_path / "d")
    resumed = two_regions()
    build(resumed, PLAN, tmp_path / "d", 0)
    assert resumed.image.num_reads == 1, "one of two regions had been read"


def test_parts_of_a_dataset_never_come_from_two_plans(tmp_path, monkeypatch):
    """One build dies with its shards written, another among its own, and the first goes on."""
    few = PlanConfig("random", 40, 3, split=None)
    for seed in (0, 1):
        build(two_regions(), few, tmp_path / f"whole-{seed}", seed)
    write_table = building.describe.write_table

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    for seed in (0, 1, 0):
        monkeypatch.setattr(building.describe, "write_table", full)
        with pytest.raises(StorageError):
            build(two_regions(), few, tmp_path / "d", seed)
        assert list((tmp_path / "d").glob("image-*.npy"))
    monkeypatch.setattr(building.describe, "write_table", write_table)
    build(two_regions(), few, tmp_path / "d", 1)
    assert contents(tmp_path / "d") == contents(tmp_path / "whole-1")


def test_a_folder_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(DatasetError, match="holds other files"):
        build(two_regions(), PLAN, tmp_path, 0)
    assert contents(tmp_path) == {"thesis.txt": b"years of work"}


class Nothing(Labels):
    def read(self, geobox):
        raster = super().read(geobox)
        empty = geobox.shape == (190, 200)
        return Raster(
            raster.values * (not empty),
            raster.valid & (not empty),
            geobox,
            {"root": "/data/mirror"},
        )


def test_a_region_without_data_stops_the_build_before_any_chip(tmp_path):
    source = replace(two_regions(), landcover=Nothing())
    said = r"ROI 'east' \(centre LON,LAT 75.1\d+,27.1\d+\) holds no labelled pixel in synthetic"
    with pytest.raises(EmptyRegionError, match=said + " labels under /data/mirror: it lies over"):
        build(source, PLAN, tmp_path / "d", 0)
    assert not list((tmp_path / "d").glob("*.npy"))


def test_labels_are_not_needed_where_no_class_is_asked_for(tmp_path):
    source = replace(two_regions(), landcover=Nothing())
    dataset = build(source, replace(PLAN, min_classes=0), tmp_path / "d", 0)
    unlabelled = dataset.chips[dataset.chips.region == "east"]
    assert unlabelled.majority_class.isna().all()
    assert (unlabelled.labelled_fraction == 0).all()


class Corrupt(Labels):
    def read(self, geobox):
        raster = super().read(geobox)
        raster.values[0, 5, 5] = 77
        return raster


def test_a_code_that_does_not_exist_is_an_error_that_names_source_and_region(tmp_path):
    source = replace(two_regions(), landcover=Corrupt())
    with pytest.raises(UnknownCodeError, match="code 77 in synthetic labels, region west"):
        build(source, PLAN, tmp_path / "d", 0)


class WrongShape(Image):
    def read(self, geobox):
        raster = super().read(geobox)
        return replace(raster, values=raster.values[:1])


def test_a_source_that_breaks_its_word_is_refused(tmp_path):
    source = replace(two_regions(), image=WrongShape())
    with pytest.raises(SourceError, match=r"expected uint16 of shape \(2, 200, 260\)"):
        build(source, PLAN, tmp_path / "d", 0)


def test_a_split_emptied_by_its_pixels_is_an_error(tmp_path):
    tall = PlanConfig("grid", 60, min_valid_fraction=1.0, split=SplitConfig(70, 8))
    with pytest.raises(ConfigError, match="ends with no chip"):
        build(two_regions(), tall, tmp_path / "d", 0)


@pytest.mark.parametrize("when", range(1, 40, 6))
def test_a_full_disk_is_told_and_a_rerun_goes_on(tmp_path, monkeypatch, when):
    build(two_regions(), PLAN, tmp_path / "whole", 0)
    num_calls = 0
    sync = os.fsync

    def full(descriptor):
        nonlocal num_calls
        num_calls += 1
        if num_calls == when:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="run the same command again"):
        build(two_regions(), PLAN, tmp_path / "d", 0)
    assert not list((tmp_path / "d").rglob("*.partial"))
    build(two_regions(), PLAN, tmp_path / "d", 0)
    assert contents(tmp_path / "d") == contents(tmp_path / "whole")


def test_a_disk_that_takes_only_half_a_file_is_told(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, hard))
    try:
        with pytest.raises(StorageError, match=r"000\.pixels"):
            build(two_regions(), PLAN, tmp_path / "d", 0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert build(two_regions(), PLAN, tmp_path / "d", 0).num_chips > 0


def test_two_builds_at_once_do_not_share_a_folder(tmp_path):
    messages = []

    class Meddler(Image):
        def read(self, geobox):
            try:
                build(two_regions(), PLAN, tmp_path / "d", 0)
            except DatasetError as error:
                messages.append(str(error))
            return super().read(geobox)

    build(replace(two_regions(), image=Meddler()), PLAN, tmp_path / "d", 0)
    assert len(messages) == 2
    assert "another build is writing to" in messages[0]


def test_a_single_region_smaller_than_a_block_is_one_chip(tmp_path):
    plan = PlanConfig("grid", 40, split=None)
    dataset = build(recipe(region("r", 40, 40)), plan, tmp_path / "d", 0)
    assert dataset.num_chips == 1


KILLER = Path(__file__).parent / "kill_builds.py"


@pytest.mark.slow
@pytest.mark.parametrize("how", ["every-step", "chain", "any-moment"])
@pytest.mark.long
def test_killed_at_any_moment_a_rerun_ends_in_the_same_bytes(tmp_path, how):
    run = subprocess.run(
        [sys.executable, str(KILLER), how, str(tmp_path)], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout + run.stderr
    num_kills = int(run.stdout.split()[-1])
    assert num_kills >= 10
