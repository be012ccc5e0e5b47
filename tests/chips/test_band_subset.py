"""A dataset seen through some of its bands is the dataset that was built with these bands."""

import numpy as np
import pytest

from bharateo.chips.records import RecordReader
from bharateo.chips.store import Dataset
from bharateo.errors import ConfigError
from small_datasets import many_bands, small_dataset

CHOSEN = ("B03", "B01")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return small_dataset(tmp_path_factory.mktemp("four") / "d", many_bands(4))


@pytest.fixture(scope="module")
def view(whole):
    return whole.with_bands(CHOSEN)


def test_sensor_and_statistics_are_those_of_the_bands(whole, view):
    assert view.sensor.band_names == CHOSEN
    assert view.statistics.mean.tolist() == whole.statistics.mean[[2, 0]].tolist()
    assert view.statistics.std.tolist() == whole.statistics.std[[2, 0]].tolist()


def test_images_and_overviews_hold_the_bands_alone(whole, view):
    assert np.array_equal(view.image(3), whole.image(3)[[2, 0]])
    assert np.array_equal(view.valid(3), whole.valid(3))
    assert np.array_equal(view.overview("east")[0], whole.overview("east")[0][[2, 0]])


@pytest.mark.parametrize("chip_px", [48, 32])
def test_records_are_read_in_the_bands_order(whole, view, chip_px):
    chips = np.array([5, 0, 9])
    spare = np.full(3, 48 - chip_px)
    out = np.empty((3, 2, chip_px, chip_px), np.uint16)
    RecordReader(view).read("image", chips, spare, spare, out)
    part = np.s_[..., 48 - chip_px :, 48 - chip_px :]
    assert np.array_equal(out, [whole.image(chip)[[2, 0]][part] for chip in chips])


def test_no_chip_is_read_without_trouble(view):
    none = np.array([], np.int64)
    RecordReader(view).read("image", none, none, none, np.empty((0, 2, 32, 32), np.uint16))


def test_memory_is_counted_for_what_is_read(whole, view):
    assert view.layers["image"].record_bytes == whole.layers["image"].record_bytes
    assert view.layers["image"].read_bytes * 2 == whole.layers["image"].read_bytes


def test_a_view_may_be_narrowed_again(whole, view):
    again = view.with_bands(["B01"])
    assert np.array_equal(again.image(3), whole.image(3)[:1])
    assert view.with_bands(CHOSEN) is view


def test_bands_that_are_not_there_are_refused(view):
    with pytest.raises(ConfigError, match=r"'B02' is unknown.*B03, B01"):
        view.with_bands(["B02"])


def test_the_folder_is_left_as_it_was(whole, view):
    assert Dataset.open(view.path).sensor == whole.sensor
