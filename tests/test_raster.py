import gc
import os
import pickle
import time
import weakref
from itertools import pairwise
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox

from bharateo.errors import ConfigError, CorruptRasterError, UnreachableError
from bharateo.pixels.formats import _parts
from bharateo.pixels.http import Web, web_address
from bharateo.pixels.raster import MOST_OPEN, OpenRasters, open_raster, to_grid
from bharateo.regions import parse_roi, tile_windows, worldcover_window
from range_server import Faults, RangeServer
from worldcover_tiles import block_bytes, key, patchy_codes, real_mirror, write_tile

(DELHI,) = tile_windows(worldcover_window(parse_roi("delhi_ncr")))
WINDOW = DELHI.row, DELHI.col, DELHI.height, DELHI.width
KEY = key(DELHI.tile)


def eager_web(**options):
    return Web(**{"timeout_s": 5.0, "backoff_s": 0.01, **options})


def run_in_thread(task):
    thread = Thread(target=task)
    thread.start()
    thread.join()


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory):
    """A tile whose pixels around Delhi are patchy."""
    root = tmp_path_factory.mktemp("worldcover")
    top, left = DELHI.row // 1024 * 1024, DELHI.col // 1024 * 1024
    write_tile(root, DELHI.tile, {(top, left): patchy_codes(3072, 3072)})
    return root


@pytest.fixture(params=["synthetic", "real"])
def mirror(request):
    return request.getfixturevalue("synthetic") if request.param == "synthetic" else real_mirror()


@pytest.fixture
def server(synthetic):
    with RangeServer(synthetic) as server:
        yield server


@pytest.fixture(scope="module")
def expected(synthetic):
    return open_raster(str(synthetic / KEY)).read_window(*WINDOW)


def small_tiff(path: Path, values: np.ndarray, **options) -> Path:
    profile = {"driver": "GTiff", "dtype": "uint8", "count": 1, "crs": "EPSG:4326",
               "height": values.shape[0], "width": values.shape[1],
               "transform": Affine(1e-4, 0, 0, 0, -1e-4, 1)}  # fmt: skip
    with rasterio.open(path, "w", **profile, **options) as dataset:
        dataset.write(values, 1)
    return path


# I/O cost: at most one GET a block plus four, at most 1.1 x the blocks' bytes plus 128 KiB.


def test_a_region_costs_few_requests_and_few_bytes(mirror):
    blocks = block_bytes(mirror / KEY, *WINDOW)
    with RangeServer(mirror) as server:
        web = eager_web()
        remote = open_raster(f"{server.url}/{KEY}", web).read_window(*WINDOW)
        gets, fetched = len(server.gets), server.num_bytes
        print(f"{gets} GETs, {fetched:,} bytes for {len(blocks)} blocks of {sum(blocks):,} bytes")
        assert len(blocks) == 9
        assert gets <= len(blocks) + 4
        assert fetched <= 1.1 * sum(blocks) + 128 * 1024
        assert server.heads == 0
        assert (web.traffic.requests, web.traffic.bytes) == (gets, fetched)
    np.testing.assert_array_equal(remote, open_raster(str(mirror / KEY)).read_window(*WINDOW))


def test_no_byte_of_a_block_is_fetched_twice(server):
    open_raster(f"{server.url}/{KEY}", eager_web()).read_window(*WINDOW)
    spans = sorted((get.first, get.last) for get in server.gets[1:])
    assert all(before[1] < after[0] for before, after in pairwise(spans))


def test_slow_round_trips_are_paid_twice_not_once_a_block(mirror):
    with RangeServer(mirror, latency_s=0.02) as server:
        start = time.perf_counter()
        open_raster(f"{server.url}/{KEY}", eager_web()).read_window(*WINDOW)
        print(f"2048 px at 20 ms latency: {time.perf_counter() - start:.3f} s")
        assert server.max_in_flight >= 4
        assert server.num_rounds <= 4


def test_header_and_connection_stay_open_between_reads(server):
    file = open_raster(f"{server.url}/{KEY}", eager_web())
    for block in range(3):
        row = DELHI.row // 1024 * 1024 + 1024 * block
        file.read_window(row, DELHI.col // 1024 * 1024, 128, 128)
    assert len(server.gets) == 4
    assert server.num_connections == 1


def test_blocks_read_before_are_not_fetched_again(server):
    file = open_raster(f"{server.url}/{KEY}", eager_web())
    file.read_window(*WINDOW)
    server.forget()
    file.read_window(DELHI.row + 500, DELHI.col + 500, 128, 128)
    assert server.gets == []


def test_a_large_window_comes_in_one_round_too(tmp_path):
    """More compressed bytes than GDAL fetches at once by default (10 MB)."""
    noise = np.random.default_rng(0).integers(0, 256, (4096, 4096), np.uint8)
    path = small_tiff(tmp_path / "noise.tif", noise, tiled=True, blockxsize=512, blockysize=512)
    with RangeServer(tmp_path, latency_s=0.02) as server:
        file = open_raster(f"{server.url}/{path.name}", eager_web())
        np.testing.assert_array_equal(file.read_window(0, 0, 4096, 4096)[0], noise)
        assert len(server.gets) <= 64 + 4
        assert server.num_bytes <= path.stat().st_size * 1.1 + 128 * 1024


def test_a_file_whose_directory_is_at_its_end_is_read(tmp_path):
    codes = patchy_codes(1024, 1024)
    path = small_tiff(tmp_path / "late.tif", codes, tiled=True, blockxsize=256, blockysize=256)
    with rasterio.open(path, "r+") as dataset:
        dataset.update_tags(note="x" * 5000)
    with RangeServer(tmp_path) as server:
        file = open_raster(f"{server.url}/{path.name}", eager_web())
        np.testing.assert_array_equal(file.read_window(0, 0, 1024, 1024)[0], codes)
        assert len(server.gets) <= 16 + 4


@given(
    sizes=st.lists(st.integers(1, 10**7), min_size=1, max_size=20),
    spare=st.integers(0, 100),
)
def test_parts_cover_their_runs_and_keep_to_the_number_of_requests(sizes, spare):
    runs = [(10**8 * index, size) for index, size in enumerate(sizes)]
    parts = [_parts(run, runs, len(runs) + spare) for run in runs]
    for (offset, size), run_parts in zip(runs, parts, strict=True):
        assert [first for first, _ in run_parts] == [
            offset + sum(length for _, length in run_parts[:index])
            for index in range(len(run_parts))
        ]
        assert sum(length for _, length in run_parts) == size
    assert sum(map(len, parts)) <= len(runs) + spare


def test_threads_share_one_handle(server, expected):
    file = open_raster(f"{server.url}/{KEY}", eager_web())
    results = {}

    def read(offset):
        results[offset] = file.read_window(DELHI.row + offset, DELHI.col, 256, 2048)

    threads = [Thread(target=read, args=(offset,)) for offset in range(0, 2048, 256)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for offset, values in results.items():
        np.testing.assert_array_equal(values, expected[:, offset : offset + 256])
    assert len(results) == 8


def test_a_handle_may_be_closed_in_another_thread(server):
    file = open_raster(f"{server.url}/{KEY}", eager_web())
    run_in_thread(file.close)
    with pytest.raises(CorruptRasterError, match="closed"):
        file.read_window(*WINDOW)


def test_a_handle_may_be_forgotten_and_collected_in_another_thread(server):
    file = open_raster(f"{server.url}/{KEY}", eager_web())
    file.itself = file
    handle = weakref.ref(file)
    del file
    run_in_thread(gc.collect)
    assert handle() is None


# On any grid.

NOISE_PX, NOISE_BLOCK_PX = 512, 64
CORNER = 600_000, 3_100_020


def utm(shape, resolution_m, down_m=0.0, along_m=0.0) -> GeoBox:
    """A grid whose corner lies so many metres down and along from the noise's own."""
    affine = Affine(resolution_m, 0, CORNER[0] + along_m, 0, -resolution_m, CORNER[1] - down_m)
    return GeoBox(shape, affine, "EPSG:32643")


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    """A file of 20 m pixels, and what it holds; noise, so that every block is 8 kB or so."""
    rng = np.random.default_rng(4)
    values = rng.integers(1, 65536, (1, NOISE_PX, NOISE_PX)).astype(np.uint16)
    values[0, 100:110, 100:140] = 0
    path = tmp_path_factory.mktemp("noise") / "noise.tif"
    write_noise(path, values, "EPSG:32643")
    return path, values


def write_noise(path: Path, values: np.ndarray, crs: str | None, **options) -> None:
    with rasterio.open(
        path, "w", driver="GTiff", dtype=values.dtype, count=1, nodata=0, crs=crs,
        height=values.shape[1], width=values.shape[2], transform=utm((1, 1), 20).affine,
        tiled=True, blockxsize=NOISE_BLOCK_PX, blockysize=NOISE_BLOCK_PX, compress="deflate",
        **options,
    ) as dataset:  # fmt: skip
        dataset.write(values)


@pytest.fixture
def noise_server(noise):
    with RangeServer(noise[0].parent) as server:
        yield server


def ranges_of_blocks(path: Path, rows: range, cols: range) -> list[tuple[int, int]]:
    """First and last byte of stored blocks, neighbours in the file merged."""
    with rasterio.open(path) as dataset:
        found = []
        for row in rows:
            for col in cols:
                first, size = (
                    int(dataset.get_tag_item(f"BLOCK_{what}_{col}_{row}", "TIFF", bidx=1))
                    for what in ("OFFSET", "SIZE")
                )
                found.append((first, first + size - 1))
    return found


OTHER_GRIDS = {
    "the same grid": utm((90, 70), 20, 1000, 1980),
    "half the pixel": utm((121, 90), 10, 1950, 2010),
    "a third of the pixel": utm((50, 50), 20 / 3, 2000, 1900),
    "another corner": utm((60, 90), 10, 1996.5, 2003),
    "across the edge": utm((200, 200), 10, -500, -700),
    "another zone": GeoBox((90, 80), Affine(10, 0, 13_203, 0, -10, 3_105_901), "EPSG:32644"),
    "degrees": GeoBox((80, 90), Affine(1e-4, 0, 76.04, 0, -1e-4, 27.99), "EPSG:4326"),
}


@pytest.mark.parametrize("method", ["nearest", "bilinear"])
@pytest.mark.parametrize("here", OTHER_GRIDS.values(), ids=OTHER_GRIDS)
def test_a_part_read_on_a_grid_is_as_if_the_whole_file_had_been(noise, noise_server, here, method):
    path, values = noise
    for location in (str(path), f"{noise_server.url}/noise.tif"):
        file = open_raster(location, eager_web())
        expected = to_grid(values, file.geobox, here, method)
        assert expected.any()
        np.testing.assert_array_equal(file.read_on(here, method), expected)


@given(st.tuples(*[st.integers(-300, 1100)] * 2), st.tuples(*[st.integers(1, 150)] * 2))
def test_windows_of_20_m_pixels_show_no_seams_at_10_m(noise, corner, shape):
    path, values = noise
    here = utm(shape, 10, *(10 * place for place in corner))
    with open_raster(str(path)) as file:
        expected = to_grid(values, file.geobox, here, "bilinear")
        np.testing.assert_array_equal(file.read_on(here, "bilinear"), expected)


@pytest.mark.parametrize(
    "here",
    [
        utm((60, 60), 40, 2000, 1600),
        utm((60, 60), 100, 2000, 1600),
        utm((60, 60), 20, 2000.6, 1600),
    ],
    ids=["pixels twice as large", "pixels five times as large", "a shift of 0.03 pixels"],
)
def test_bilinear_to_larger_or_slightly_shifted_pixels_shows_no_seams(noise, here):
    path, values = noise
    file = open_raster(str(path))
    expected = to_grid(values, file.geobox, here, "bilinear")
    np.testing.assert_array_equal(file.read_on(here, "bilinear"), expected)


def test_a_grid_elsewhere_is_nodata_and_costs_nothing(noise_server):
    file = open_raster(f"{noise_server.url}/noise.tif", eager_web())
    noise_server.forget()
    for here in (
        utm((30, 40), 10, 20_000, 0),
        utm((30, 40), 10, 0, -500),
        GeoBox((30, 40), Affine(10, 0, 600_000, 0, -10, 3_100_020), "EPSG:32648"),
        GeoBox((30, 40), Affine(1e-4, 0, -70, 0, -1e-4, -10), "EPSG:4326"),
    ):
        values = file.read_on(here, "bilinear", nodata=9)
        assert (values.shape, values.dtype) == ((1, 30, 40), np.uint16)
        assert (values == 9).all()
    assert noise_server.gets == []


def test_only_the_blocks_under_the_grid_are_fetched(noise, noise_server):
    path, _ = noise
    file = open_raster(f"{noise_server.url}/noise.tif", eager_web())
    noise_server.forget()
    file.read_on(utm((100, 100), 10, 20 * 64 * 2 + 100, 20 * 64 * 3 + 100), "bilinear")
    ((first, last),) = ranges_of_blocks(path, range(2, 3), range(3, 4))
    assert [(get.first, get.last) for get in noise_server.gets] == [(first, last)]
    noise_server.forget()
    file.read_on(utm((140, 100), 10, 20 * 64 * 4 - 100, 20 * 64 * 5 + 20), "bilinear")
    blocks = ranges_of_blocks(path, range(3, 6), range(5, 6))
    assert sorted((get.first, get.last) for get in noise_server.gets) == sorted(blocks)


def test_a_row_of_neighbouring_blocks_is_one_request_if_parts_may_be_long(noise, noise_server):
    path, values = noise
    here = utm((2 * 120, 2 * 250), 10, 20 * 64 + 40, 20 * 64 + 40)
    rows = [ranges_of_blocks(path, range(row, row + 1), range(1, 5)) for row in (1, 2)]
    expected = [(row[0][0], row[-1][1]) for row in rows]
    requests = {}
    for part_bytes in (8 * 2**20, 1):
        web = eager_web(part_bytes=part_bytes)
        file = open_raster(f"{noise_server.url}/noise.tif", web)
        noise_server.forget()
        found = file.read_on(here, "bilinear")
        np.testing.assert_array_equal(found, to_grid(values, file.geobox, here, "bilinear"))
        requests[part_bytes] = sorted((get.first, get.last) for get in noise_server.gets)
        assert noise_server.num_bytes == sum(last - first + 1 for first, last in expected)
    assert requests[8 * 2**20] == expected
    assert 4 < len(requests[1]) <= 8


def test_a_file_without_reference_system_is_named_when_its_place_is_asked(noise, tmp_path):
    write_noise(tmp_path / "nowhere.tif", noise[1], None)
    with open_raster(str(tmp_path / "nowhere.tif")) as file:
        for ask in (lambda: file.geobox, lambda: file.read_on(utm((9, 9), 10))):
            with pytest.raises(CorruptRasterError, match=r"nowhere\.tif has no coord.*-a_srs"):
                ask()
        np.testing.assert_array_equal(file.read_window(0, 0, 512, 512), noise[1])


def test_the_geobox_is_the_files_grid(noise):
    assert open_raster(str(noise[0])).geobox == utm((NOISE_PX, NOISE_PX), 20)


# Thinned.


def test_thinned_without_overviews_is_every_so_manieth_pixel(noise):
    path, values = noise
    thin = open_raster(str(path)).read_thinned(8)
    assert thin.shape == (1, 64, 64)
    np.testing.assert_array_equal(thin, values[:, 4::8, 4::8])


def test_thinned_a_last_odd_pixel_counts_for_a_whole_step(noise):
    file = open_raster(str(noise[0]))
    assert file.read_thinned(100).shape == (1, 6, 6)
    assert file.read_thinned(1000).shape == (1, 1, 1)
    np.testing.assert_array_equal(file.read_thinned(1), noise[1])


def test_thinned_comes_from_the_overview_and_costs_little(noise, tmp_path):
    path, values = tmp_path / "noise.tif", noise[1]
    write_noise(path, values, "EPSG:32643")
    with rasterio.open(path, "r+") as dataset:
        dataset.build_overviews([2, 4, 8, 16], rasterio.enums.Resampling.nearest)
    with rasterio.open(path, overview_level=2) as dataset:
        overview = dataset.read()
    with RangeServer(tmp_path) as server:
        file = open_raster(f"{server.url}/noise.tif", eager_web())
        np.testing.assert_array_equal(file.read_thinned(8), overview)
        assert len(server.gets) <= 4
        assert server.num_bytes < path.stat().st_size / 4


# What goes wrong.


def test_an_interrupt_during_a_fetch_comes_through(server):
    class InterruptedWeb(Web):
        def get_all(self, url, ranges):
            raise KeyboardInterrupt

    file = open_raster(f"{server.url}/{KEY}", InterruptedWeb())
    with pytest.raises(KeyboardInterrupt):
        file.read_window(*WINDOW)


@pytest.mark.parametrize(
    "faults",
    [
        {"busy": 3},
        {"busy": 3, "busy_status": 429},
        {"busy": 2, "busy_status": 500},
        {"short": 3},
        {"reset": 3},
        {"hang": 1, "hang_s": 1.0},
    ],
    ids=["503", "429", "500", "short body", "reset", "hanging"],
)
@pytest.mark.parametrize("spare", [0, 1], ids=["header", "blocks"])
def test_passing_trouble_is_survived(server, expected, faults, spare):
    server.faults = Faults(spare, **faults)
    file = open_raster(f"{server.url}/{KEY}", eager_web(timeout_s=0.4))
    np.testing.assert_array_equal(file.read_window(*WINDOW), expected)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("busy", "too many 503 error responses"),
        ("short", "short|IncompleteRead"),
        ("reset", "aborted"),
        ("hang", "no answer within 0.2 s"),
    ],
)
@pytest.mark.parametrize("spare", [0, 1], ids=["header", "blocks"])
def test_lasting_trouble_names_address_reason_and_remedy(server, fault, reason, spare):
    server.faults = Faults(spare, hang_s=0.5, **{fault: 1000})
    with pytest.raises(UnreachableError, match=f"{server.url}.*({reason}).*check the address"):
        open_raster(
            f"{server.url}/{KEY}", eager_web(timeout_s=0.2, num_retries=2)
        ).read_window(*WINDOW)  # fmt: skip


def test_a_failed_read_leaves_no_wrong_pixels_behind(server, expected):
    web = eager_web(num_retries=0)
    file = open_raster(f"{server.url}/{KEY}", web)
    server.faults = Faults(busy=100)
    with pytest.raises(UnreachableError):
        file.read_window(*WINDOW)
    server.faults = Faults()
    with pytest.raises(UnreachableError, match="503"):
        file.read_window(*WINDOW)
    again = open_raster(f"{server.url}/{KEY}", web)
    np.testing.assert_array_equal(again.read_window(*WINDOW), expected)


def test_nobody_at_the_address_is_an_error(tmp_path):
    with RangeServer(tmp_path) as server:
        url = server.url
    with pytest.raises(UnreachableError, match="Connection refused"):
        open_raster(f"{url}/{KEY}", eager_web(num_retries=1))


def test_an_unknown_host_is_an_error():
    with pytest.raises(UnreachableError, match="name could not be resolved"):
        open_raster(f"http://worldcover.invalid/{KEY}", eager_web(num_retries=1))


def test_a_file_that_does_not_exist_is_an_answer(server, tmp_path):
    assert open_raster(f"{server.url}/none.tif", eager_web()) is None
    assert open_raster(str(tmp_path / "none.tif")) is None
    assert len(server.gets) == 1


def test_403_never_means_missing_also_when_s3_says_it(server):
    server.missing_status = 403
    with pytest.raises(UnreachableError, match="answered 403") as refused:
        open_raster(f"{server.url}/none.tif", eager_web())
    assert not refused.value.withheld
    server.missing_headers = {"x-amz-request-id": "4442587FB7D0A2F9"}
    with pytest.raises(UnreachableError, match=r"403.*as S3 does of a missing key too") as refused:
        open_raster(f"{server.url}/none.tif", eager_web())
    assert refused.value.withheld


def test_a_server_without_ranges_is_refused_before_the_whole_file_is_sent(server):
    server.honour_range = False
    with pytest.raises(UnreachableError, match="no HTTP range requests"):
        open_raster(f"{server.url}/{KEY}", eager_web())


def both_ways(folder, name, read):
    """Run ``read(location)`` on a file from disk and through the server."""
    with RangeServer(folder) as server:
        for location in (str(folder / name), f"{server.url}/{name}"):
            read(location)


def test_a_truncated_file_is_named_with_its_window(synthetic, tmp_path):
    whole = (synthetic / KEY).read_bytes()
    (tmp_path / "cut.tif").write_bytes(whole[: len(whole) // 2])

    def read(location):
        file = open_raster(location, eager_web())
        message = rf"cut\.tif, window row {DELHI.row} col {DELHI.col} of 2048 x 2048.*truncated"
        with pytest.raises(CorruptRasterError, match=message):
            file.read_window(*WINDOW)

    both_ways(tmp_path, "cut.tif", read)


def test_a_block_that_cannot_be_decoded_is_named_with_its_window(synthetic, tmp_path):
    damaged = bytearray((synthetic / KEY).read_bytes())
    with rasterio.open(synthetic / KEY) as dataset:
        block = f"BLOCK_OFFSET_{DELHI.col // 1024 + 1}_{DELHI.row // 1024 + 1}"
        start = int(dataset.get_tag_item(block, "TIFF", bidx=1))
    damaged[start : start + 1000] = bytes(1000)
    (tmp_path / "bad.tif").write_bytes(damaged)

    def read(location):
        with pytest.raises(CorruptRasterError, match=rf"bad\.tif, window row {DELHI.row}"):
            open_raster(location, eager_web()).read_window(*WINDOW)

    both_ways(tmp_path, "bad.tif", read)


@pytest.mark.parametrize("content", [b"", b"<html>not a raster</html>" * 100], ids=["empty", "web"])
def test_a_file_that_is_no_raster_is_named(tmp_path, content):
    (tmp_path / "page.tif").write_bytes(content)

    def read(location):
        with pytest.raises(CorruptRasterError, match=r"page\.tif"):
            open_raster(location, eager_web())

    both_ways(tmp_path, "page.tif", read)


def test_a_file_that_changes_between_reads_is_not_mixed(server):
    file = open_raster(f"{server.url}/{KEY}", eager_web())
    server.etags[Path(KEY).name] = '"new"'
    with pytest.raises(CorruptRasterError, match="changed on the server"):
        file.read_window(*WINDOW)


# Names.


def test_identity_is_the_etag_or_else_size_and_date(server, synthetic):
    server.etags[Path(KEY).name] = '"abc"'
    assert open_raster(f"{server.url}/{KEY}", eager_web()).identity == {"etag": "abc"}
    server.send_etag = False
    size = (synthetic / KEY).stat().st_size
    without = open_raster(f"{server.url}/{KEY}", eager_web()).identity
    assert without == {"size": size, "last_modified": None}
    assert set(open_raster(str(synthetic / KEY)).identity) == {"size", "mtime_ns"}


def test_a_location_is_a_path_or_an_address_of_a_server():
    for address in ("s3://other/a/b.tif", "http://localhost:1/a", "https://example.org/a?b=c"):
        assert web_address(address) == address
    assert web_address("/data/worldcover") is None
    with pytest.raises(ConfigError, match="gs://"):
        web_address("gs://bucket/key")
    with pytest.raises(ConfigError, match=r"https://host/a was given with a user") as refused:
        web_address("https://me:hunter2@host/a")
    assert "hunter2" not in str(refused.value)


# Files that stay open.


def test_files_stay_open_until_others_take_their_place(synthetic):
    files, opened = OpenRasters(), []

    def get(name):
        return files.get(name, lambda: opened.append(name) or open_raster(str(synthetic / KEY)))

    first = get("0")
    assert get("0") is first
    for number in range(1, MOST_OPEN + 4):
        get(str(number))
    assert len(files) == MOST_OPEN
    first.read_window(*WINDOW)  # who has it may go on reading
    assert get("0") is not first
    assert opened == [*map(str, range(MOST_OPEN + 4)), "0"]
    if Path("/proc/self/fd").exists():
        before = len(list(Path("/proc/self/fd").iterdir()))
        files.get("0", pytest.fail).close()
        del files
        assert len(list(Path("/proc/self/fd").iterdir())) <= before - MOST_OPEN


def test_a_file_that_is_closed_is_opened_anew_and_one_that_is_not_there_asked_for_once(synthetic):
    files = OpenRasters()
    first = files.get("here", lambda: open_raster(str(synthetic / KEY)))
    first.close()
    second = files.get("here", lambda: open_raster(str(synthetic / KEY)))
    assert second is not first
    second.read_window(*WINDOW)
    assert files.get("nowhere", lambda: None) is None
    assert files.get("nowhere", pytest.fail) is None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_open_files_do_not_travel_to_other_processes(synthetic, expected):
    files = OpenRasters()
    files.get("here", lambda: open_raster(str(synthetic / KEY)))
    assert len(pickle.loads(pickle.dumps(files))) == 0
    child = os.fork()
    if child == 0:
        opened = []
        files.get("here", lambda: opened.append(1))
        os._exit(0 if opened and len(files) == 1 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    np.testing.assert_array_equal(files.get("here", pytest.fail).read_window(*WINDOW), expected)
