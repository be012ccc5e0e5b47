"""JPEG 2000 from a server: the same pixels as from disk."""

import os

import numpy as np
import pytest

from bharateo.errors import BharatEOError, CorruptRasterError
from bharateo.pixels.http import Web
from bharateo.pixels.raster import open_raster
from bharateo.sources.sample import find_sample
from range_server import Faults, RangeServer

SCENE = "T33UUU_20170216T102101"


@pytest.fixture(scope="module")
def folder():
    return next(find_sample().rglob(f"{SCENE}_B04.jp2")).parent


@pytest.mark.parametrize("threads", [None, "8"])
@pytest.mark.parametrize("band", ["B01", "B04", "B05"])
def test_windows_of_many_blocks_hold_the_pixels_on_disk(folder, band, threads, monkeypatch):
    if threads:
        monkeypatch.setenv("GDAL_NUM_THREADS", threads)
    name = f"{SCENE}_{band}.jp2"
    on_disk = open_raster(str(folder / name))
    height, width = on_disk.shape
    with RangeServer(folder) as server:
        for window in [(0, 0, height, width), (30, 60, 70, 150), (64, 64, 64, 64), (5, 7, 1, 1)]:
            remote = open_raster(f"{server.url}/{name}").read_window(*window)
            assert remote.any()
            np.testing.assert_array_equal(remote, on_disk.read_window(*window))


def test_a_whole_file_costs_no_more_than_its_bytes_and_few_requests(folder):
    name = f"{SCENE}_B04.jp2"
    size = (folder / name).stat().st_size
    with RangeServer(folder) as server:
        file = open_raster(f"{server.url}/{name}")
        file.read_window(0, 0, *file.shape)
        assert server.num_bytes == size
        assert len(server.gets) <= -(-size // 32768) + 1


@pytest.mark.slow
def test_a_server_that_fails_midway_is_an_error_and_never_pixels(folder):
    name = f"{SCENE}_B04.jp2"
    on_disk = open_raster(str(folder / name))
    window = (0, 0, *on_disk.shape)
    failed = 0
    for spare in range(18):
        with RangeServer(folder, faults=Faults(spare=spare, busy=99)) as server:
            try:
                web = Web(timeout_s=2, num_retries=0, backoff_s=0.01)
                remote = open_raster(f"{server.url}/{name}", web).read_window(*window)
            except BharatEOError:
                failed += 1
            else:
                np.testing.assert_array_equal(remote, on_disk.read_window(*window))
    assert 0 < failed < 18


def test_a_window_is_read_where_threads_of_gdal_would_lose_it(folder, monkeypatch):
    """The option that keeps GDAL to one thread is a word to it; block by block needs no word."""
    import bharateo.pixels.formats

    honest = bharateo.pixels.formats.open_dataset

    def threaded(*args, **options):
        opened = honest(*args, **options)
        opened.options = {**opened.options, "GDAL_NUM_THREADS": str(os.cpu_count() or 4)}
        return opened

    monkeypatch.setattr("bharateo.pixels.raster.open_dataset", threaded)
    name = f"{SCENE}_B04.jp2"
    on_disk = open_raster(str(folder / name))
    with RangeServer(folder) as server:
        file = open_raster(f"{server.url}/{name}")
        window = (0, 0, *file.shape)
        np.testing.assert_array_equal(file.read_window(*window), on_disk.read_window(*window))


def test_a_damaged_block_on_disk_is_an_error_and_never_pixels(folder, tmp_path):
    """Of several blocks too, which GDAL would decode in threads that tell nobody."""
    name = f"{SCENE}_B04.jp2"
    content = bytearray((folder / name).read_bytes())
    content[200_000:202_000] = bytes(2000)
    (tmp_path / name).write_bytes(content)
    file = open_raster(str(tmp_path / name))
    with pytest.raises(CorruptRasterError, match="cannot be read"):
        file.read_window(0, 0, *file.shape)
