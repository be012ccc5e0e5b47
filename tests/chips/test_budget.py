from dataclasses import replace

import numpy as np
import pytest
from synthetic import Labels, recipe, region

from bharateo.chips.budget import Budget, budget
from bharateo.chips.layouts import lay_out
from bharateo.config import DataConfig, PlanConfig, Sentinel2Config, SplitConfig
from bharateo.pixels.http import Traffic
from bharateo.regions import PixelWindow
from bharateo.sources import Recipe
from bharateo.sources.areas import sentinel2_regions, zones_of
from bharateo.sources.sentinel2 import Sentinel2
from bharateo.sources.worldcover import WorldCover

SQUARE = "43RFM"
"""Wholly in its UTM zone: 9996 columns and 10002 rows of 10 m, so 10 x 10 blocks of 1024 px, the
last of them 780 columns wide and 786 rows high."""

PLAN = PlanConfig(
    "blocks", 480, chips_per_block=None, unit_blocks=(2, 4), split=SplitConfig(1024, 32, 0.1, 0.2)
)


def square_recipe(landcover=None, **config) -> Recipe:
    """A band of 10 m, one of 20 m, and the scene classes."""
    image = Sentinel2(("B04", "B11"), Sentinel2Config(**config))
    regions = sentinel2_regions(zones_of(DataConfig(rois=(), mgrs_tiles=(SQUARE,))), (2048, 4096))
    return Recipe("sentinel2", regions, image, landcover or Labels())


def square_budget(plan: PlanConfig = PLAN, landcover=None, seasons=("rabi", "kharif")) -> Budget:
    made = square_recipe(landcover, seasons=seasons)
    return budget(made, lay_out(made.regions, plan, 0, seasons))


def test_of_a_whole_square_the_totals_are_those_worked_out_by_hand():
    found = square_budget()
    # Less 16 px of buffer on either side a block is 992 px long, which is 2 squares of 480. The
    # last row of blocks is 786 - 32 = 754 px high and the last column 748 px wide: 1 square.
    squares_along = 9 * 2 + 1
    assert found.num_chips == 2 * squares_along**2 == 722  # on 2 occasions
    assert found.num_blocks == 2 * 10 * 10
    # Rows of blocks go in twos, columns in fours: 4, 4 and 2 blocks wide.
    assert found.num_units == 2 * 5 * 3
    assert found.num_scenes == 2
    assert found.by_zone == {SQUARE: 722}
    assert sum(found.by_split.values()) == 722

    # A unit of 10 m is 2 rows of blocks; of 20 m, where a block is twice as long, 1 row. That is
    # as many requests, for B04, and for B11 and the scene classes.
    headers = 2 * 3
    requests = 2 * 15 * (2 + 1 + 1) + headers
    # Blocks: 100 of 10 m; of 20 m a unit is 2, 2 and 1 blocks wide, so 5 x 5 in all. They are
    # 1 MiPx of 2 bytes, compressed to 0.7; of the scene classes to 0.1 of 1 byte.
    block = 1024**2
    num_bytes = 2 * (100 * 1.4 * block + 25 * 1.4 * block + 25 * 0.1 * block) + headers * 32 * 1024
    assert found.traffic is not None
    assert found.traffic.requests == requests == 126
    assert found.traffic.bytes == pytest.approx(num_bytes, abs=100)
    assert round(num_bytes / 1e6) == 372

    # Two bands of 2 bytes, labels of 1 byte, validity of 1 bit.
    assert found.disk_bytes == 722 * 480 * 480 * (2 * 2 + 1 + 1 / 8)


def test_fewer_chips_of_a_block_cost_as_much_to_fetch_and_less_to_keep():
    every, one = square_budget(), square_budget(replace(PLAN, chips_per_block=1))
    assert (one.num_blocks, one.num_units) == (every.num_blocks, every.num_units)
    assert one.num_chips == 200
    assert one.traffic is not None and every.traffic is not None
    assert 0.9 * every.traffic.bytes < one.traffic.bytes <= every.traffic.bytes
    assert one.disk_bytes * 722 == every.disk_bytes * 200


def test_single_blocks_cost_more_requests_and_fetch_blocks_of_20_m_anew():
    found = square_budget(replace(PLAN, unit_blocks=(1, 1)), seasons=("rabi",))
    assert found.num_units == found.num_blocks == 100
    block = 1024**2
    num_bytes = 100 * (1.4 + 1.4 + 0.1) * block + 3 * 32 * 1024
    assert found.traffic == Traffic(100 * 3 + 3, pytest.approx(num_bytes, abs=100))


def test_labels_are_counted_by_their_own_blocks():
    """A window of 2 x 4 blocks lies on 3 x 5 of them, on the average."""
    worldcover = WorldCover("/nowhere")
    cost = worldcover.cost(PixelWindow(700_000, 3_000_000, 2048, 4096).geobox)
    assert cost == Traffic(3, pytest.approx(15 * 1024**2 * 0.12, rel=1e-6))
    without, with_labels = square_budget(), square_budget(landcover=worldcover)
    assert without.traffic is not None and with_labels.traffic is not None
    more = with_labels.traffic.bytes - without.traffic.bytes
    # A unit is at most 20 x 41 km: 2.2 x 4.7 blocks of 1024 px of 9.26 x 8.2 m, so 3.2 x 5.7.
    assert 30 * 5 * 1024**2 * 0.12 < more < 30 * 19 * 1024**2 * 0.12
    assert 30 * 2 < with_labels.traffic.requests - without.traffic.requests < 30 * 5


def test_the_time_is_the_longer_of_network_and_cores():
    found = Budget(1, 1, 1, 36_000, {"train": 36_000}, {"all": 36_000}, Traffic(9, 9 * 10**9), 1)
    assert found.hours(mbit=20, num_cores=100) == pytest.approx(1.0)  # 9 GB at 2.5 MB/s
    assert found.hours(mbit=1000, num_cores=1) == pytest.approx(0.2)  # 36,000 chips at 50 a second
    assert replace(found, traffic=None).hours(mbit=1, num_cores=2) == pytest.approx(0.1)


def test_the_line_and_the_table_say_it_in_units():
    found = Budget(
        30, 2, 200, 722, {"test": 144, "train": 578}, {"a": 22, "b": 700},
        Traffic(126, 372_000_000), 852_537_600,
    )  # fmt: skip
    assert found.line() == (
        "planned: 722 chips in 30 reads, about 372 MB in 126 requests from 2 scenes or more, "
        "853 MB on disk"
    )
    table = {row.name: row for row in found.rows(200, 8)}
    assert list(table) == [
        "sites", "zones", "blocks", "units", "scenes", "requests", "download", "disk", "time",
    ]  # fmt: skip
    assert "144 test, 578 train" in table["sites"].meaning
    assert "22 chips in a to 700 in b" in table["zones"].meaning
    assert "0.17 a chip" in table["requests"].meaning
    assert "515 kB a chip" in table["download"].meaning
    assert "200 Mbit/s and 8 cores" in table["time"].meaning


def test_files_of_ones_own_cost_no_network():
    place = replace(region("r", 500, 500), squares=tuple((0, col) for col in range(0, 500, 100)))
    made = recipe(place)
    layout = lay_out(made.regions, PlanConfig("files", 64, split=None), 0)
    found = budget(made, layout)
    assert found.traffic is None
    assert (found.num_chips, found.num_units, found.by_zone) == (5, 1, {"all": 5})
    assert found.disk_bytes == 5 * 64 * 64 * (2 * np.dtype(np.uint16).itemsize + 1 + 1 / 8)
    assert "requests" not in {row.name for row in found.rows(100, 1)}
    assert found.line() == "planned: 5 chips in 1 reads, 105 kB on disk"
