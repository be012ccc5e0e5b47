import json
import multiprocessing
import os
import pickle
from pathlib import Path

import numpy as np
import pyproj
import pytest
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox

from bharateo.config import DataConfig
from bharateo.errors import (
    ConfigError,
    CorruptRasterError,
    RegionError,
    UnknownCodeError,
    UnreachableError,
)
from bharateo.landcover import IGNORE, WORLDCOVER, class_colours
from bharateo.pixels.http import Web
from bharateo.regions import (
    NAMED_ROIS,
    PixelWindow,
    Roi,
    parse_roi,
    tile_windows,
    worldcover_region,
    worldcover_window,
)
from bharateo.sources.worldcover import (
    PUBLIC_ROOT,
    WorldCover,
    WorldCoverPalette,
    reachable,
    worldcover_recipe,
)
from range_server import Faults, RangeServer
from worldcover_tiles import block_bytes, key, patchy_codes, real_mirror, write_tile

DELHI = worldcover_region(NAMED_ROIS["delhi_ncr"]).geobox
SMALL = worldcover_region(Roi("small", 77.23, 28.61, 256)).geobox
DELHI_COUNTS = {0: 130064, 10: 1379090, 20: 29519, 30: 93893, 40: 199317, 50: 2242793, 60: 29023,
                80: 88219, 90: 2386}  # fmt: skip


def impatient():
    return Web(timeout_s=2.0, num_retries=1, backoff_s=0.01)


@pytest.fixture(autouse=True)
def no_settings(monkeypatch, tmp_path):
    monkeypatch.delenv("BHARATEO_WORLDCOVER_ROOT", raising=False)
    monkeypatch.setenv("BHARATEO_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def codes():
    return patchy_codes(2048, 2048, codes=(0, 10, 30, 50, 95))


@pytest.fixture(scope="module")
def mirror(tmp_path_factory, codes):
    """One tile with known codes under ``delhi_ncr``."""
    root = tmp_path_factory.mktemp("mirror")
    (part,) = tile_windows(worldcover_window(NAMED_ROIS["delhi_ncr"]))
    write_tile(root, part.tile, {(part.row, part.col): codes})
    return root


@pytest.fixture
def server(mirror):
    with RangeServer(mirror) as server:
        yield server


def web_source(server, **options):
    return WorldCover(server.url, web=impatient(), **options)


def entries(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.npz"))


# Pixels.


def test_codes_come_as_they_are_stored(mirror, codes):
    raster = WorldCover(str(mirror)).read(DELHI)
    assert raster.values.dtype == np.uint8
    np.testing.assert_array_equal(raster.values, codes[None])
    np.testing.assert_array_equal(raster.valid, codes != 0)
    assert raster.geobox == DELHI


def test_folder_and_server_give_the_same_pixels(mirror, server, codes):
    np.testing.assert_array_equal(web_source(server).read(DELHI).values[0], codes)


def test_colours_follow_the_labels_and_are_black_without(mirror, codes):
    worldcover = WorldCover(str(mirror))
    raster = WorldCoverPalette(worldcover).read(DELHI)
    assert (raster.values.shape, raster.values.dtype) == ((3, 2048, 2048), np.uint8)
    expected = class_colours()[WORLDCOVER.collapse(codes)]
    np.testing.assert_array_equal(np.moveaxis(raster.values, 0, -1), expected)
    assert not raster.values[:, codes == 0].any()
    assert raster.provenance == worldcover.read(DELHI).provenance


@pytest.mark.parametrize(
    "roi",
    [
        Roi("four_tiles", 78.0, 27.0, 400),
        Roi("antimeridian", 180.0, 66.0, 400),
        Roi("four_hemispheres", 0.0, 0.0, 400),
        parse_roi("strip=-0.05,-0.01,0.02,0.03"),
    ],
    ids=lambda roi: roi.name,
)
def test_a_region_over_several_tiles_is_put_together(tmp_path, roi):
    window = worldcover_window(roi)
    codes = patchy_codes(window.height, window.width, seed=1)
    for part in tile_windows(window):
        mine = codes[
            part.to_row : part.to_row + part.height, part.to_col : part.to_col + part.width
        ]
        write_tile(tmp_path, part.tile, {(part.row, part.col): mine})
    raster = WorldCover(str(tmp_path)).read(window.geobox)
    np.testing.assert_array_equal(raster.values[0], codes)
    assert len(raster.provenance["tiles"]) >= 2


def test_a_tile_that_does_not_exist_is_nodata(mirror, server):
    coast = worldcover_region(Roi("coast", 78.0, 28.61, 400)).geobox
    for source in (WorldCover(str(mirror)), web_source(server)):
        raster = source.read(coast)
        assert not raster.valid[:, 200:].any()
        assert raster.provenance["tiles"]["N27E078"] is None
        assert raster.provenance["tiles"]["N27E075"] is not None


def test_a_region_without_any_tile_reads_as_nodata(mirror):
    raster = WorldCover(str(mirror)).read(worldcover_region(Roi("sea", 0.0, 0.0, 64)).geobox)
    assert not raster.valid.any() and not raster.values.any()
    assert (WORLDCOVER.collapse(raster.values) == IGNORE).all()


def test_the_2020_edition_has_its_own_keys_and_citation(tmp_path):
    write_tile(tmp_path, "N27E075", {(16600, 26700): np.full((200, 200), 40, np.uint8)}, year=2020)
    source = WorldCover(str(tmp_path), year=2020)
    assert (source.read(SMALL).values == 40).any()
    assert "2020" in source.attribution[0]
    with pytest.raises(UnreachableError, match="holds no v200/2021/map"):
        WorldCover(str(tmp_path)).read(SMALL)
    with pytest.raises(ConfigError, match="2019 does not exist"):
        WorldCover(str(tmp_path), year=2019)


def test_attribution_names_project_licence_and_paper(mirror):
    text = "\n".join(WorldCover(str(mirror)).attribution)
    for part in ("ESA WorldCover project 2021", "modified Copernicus Sentinel data (2021)",
                 "CC BY 4.0", "Zanaga et al. 2022", "10.5281/zenodo.7254221"):  # fmt: skip
        assert part in text


def test_provenance_is_json_and_names_root_version_window_and_tiles(mirror):
    provenance = WorldCover(str(mirror)).read(DELHI).provenance
    assert json.loads(json.dumps(provenance)) == provenance
    assert provenance["root"] == str(mirror)
    assert provenance["version"] == "v200/2021"
    assert provenance["window"] == {"row": 735656, "col": 3085736, "height": 2048, "width": 2048}
    size = (mirror / key("N27E075")).stat().st_size
    assert provenance["tiles"]["N27E075"]["size"] == size
    assert provenance["offline"] is False


def test_a_recipe_pairs_colours_and_codes_on_one_grid(mirror):
    recipe = worldcover_recipe(
        DataConfig(rois=("delhi_ncr", "x=77.2,28.6,64"), worldcover_root=str(mirror))
    )
    assert [region.name for region in recipe.regions] == ["delhi_ncr", "x"]
    geobox = recipe.regions[1].geobox
    assert recipe.image.read(geobox).values.shape == (3, 64, 64)
    assert recipe.landcover.read(geobox).values.shape == (1, 64, 64)
    assert recipe.image.sensor.num_bands == 3


# On other grids.


def utm_at(lon: float, lat: float, shape=(150, 180), zone: int = 43) -> GeoBox:
    """A grid of 10 m in a UTM zone, about centred on a place."""
    crs = f"EPSG:{(32600 if lat >= 0 else 32700) + zone}"
    x, y = pyproj.Transformer.from_crs("EPSG:4326", crs, always_xy=True).transform(lon, lat)
    left, top = x // 10 * 10 - 5 * shape[1], y // 10 * 10 + 5 * shape[0]
    return GeoBox(shape, Affine(10, 0, left, 0, -10, top), crs)


def places_in_pixels(grid: GeoBox) -> tuple[np.ndarray, np.ndarray]:
    """Row and column, with fractions, of every pixel's centre in the product's global grid."""
    row, col = np.indices(grid.shape) + 0.5
    crs = f"EPSG:{grid.crs.epsg}"
    to_lonlat = pyproj.Transformer.from_crs(crs, "EPSG:4326", always_xy=True).transform
    lon, lat = to_lonlat(*(grid.affine @ (col, row)))
    return (90 - lat) * 12000, (lon + 180) * 12000


CROSSINGS = {
    "two tiles": (78.0, 28.5, 43),
    "four tiles": (78.0, 27.0, 44),
    "four hemispheres": (0.0, 0.0, 31),
    "far south": (-60.0, -33.0, 20),
}


@pytest.mark.parametrize(("lon", "lat", "zone"), CROSSINGS.values(), ids=CROSSINGS)
def test_on_a_utm_grid_every_pixel_is_the_one_under_its_centre(tmp_path, lon, lat, zone):
    """But at the edge between two, where a fiftieth of a pixel makes no matter."""
    grid = utm_at(lon, lat, zone=zone)
    row, col = places_in_pixels(grid)
    first = int(row.min()) - 40, int(col.min()) - 40
    shape = int(row.max()) + 40 - first[0], int(col.max()) + 40 - first[1]
    noise = np.random.default_rng(5).choice([10, 30, 50, 80, 95], shape).astype(np.uint8)
    window = PixelWindow(*first, *shape)
    for part in tile_windows(window):
        mine = noise[
            part.to_row : part.to_row + part.height, part.to_col : part.to_col + part.width
        ]
        write_tile(tmp_path, part.tile, {(part.row, part.col): mine})
    raster = WorldCover(str(tmp_path)).read(grid)
    assert (raster.values.shape, raster.values.dtype) == ((1, *grid.shape), np.uint8)
    assert raster.geobox == grid
    assert raster.valid.all()
    assert len(raster.provenance["tiles"]) >= 2
    at_edge = np.minimum(np.abs(row - np.round(row)), np.abs(col - np.round(col))) < 0.02
    expected = noise[np.floor(row).astype(int) - first[0], np.floor(col).astype(int) - first[1]]
    assert at_edge.mean() < 0.2
    np.testing.assert_array_equal(raster.values[0][~at_edge], expected[~at_edge])


def test_on_a_utm_grid_a_tile_that_does_not_exist_is_nodata(tmp_path):
    write_tile(tmp_path, "N27E075", {(17700, 35700): np.full((600, 300), 40, np.uint8)})
    grid = utm_at(78.0, 28.5)
    raster = WorldCover(str(tmp_path)).read(grid)
    west = places_in_pixels(grid)[1] < (78 + 180) * 12000
    np.testing.assert_array_equal(raster.valid, west)
    np.testing.assert_array_equal(raster.values[0], np.where(west, 40, 0))
    provenance = json.loads(json.dumps(raster.provenance))
    assert provenance["tiles"]["N27E078"] is None
    assert provenance["resampling"] == "nearest neighbour"
    assert provenance["version"] == "v200/2021"


def test_on_a_utm_grid_a_server_gives_the_same_pixels_and_keeps_nothing(mirror, server, tmp_path):
    grid = utm_at(77.23, 28.61)
    source = web_source(server)
    expected = WorldCover(str(mirror)).read(grid).values
    assert expected.any()
    np.testing.assert_array_equal(source.read(grid).values, expected)
    assert entries(tmp_path) == []
    server.faults = Faults(busy=1000)
    with pytest.raises(UnreachableError, match="BHARATEO_WORLDCOVER_ROOT"):
        web_source(server).read(grid)


def test_a_utm_grid_across_the_antimeridian_is_refused(mirror):
    for zone in (60, 1):
        with pytest.raises(RegionError, match="crosses the antimeridian"):
            WorldCover(str(mirror)).read(utm_at(180.0, -17.0, zone=zone))
    beside = WorldCover(str(mirror)).read(utm_at(179.98, -17.0, zone=60))
    assert not beside.valid.any()


def test_a_source_travels_to_other_processes(mirror, server, tmp_path):
    grid = utm_at(77.23, 28.61)
    for source in (
        WorldCover(str(mirror)),
        WorldCover(server.url, cache=tmp_path / "mine", web=impatient()),
    ):
        expected = source.read(grid)
        travelled = pickle.loads(pickle.dumps(source))
        assert (travelled.root, travelled.edition) == (source.root, source.edition)
        found = travelled.read(grid)
        np.testing.assert_array_equal(found.values, expected.values)
        assert found.provenance == expected.provenance
    travelled.read(SMALL)
    assert len(entries(tmp_path / "mine")) == 1
    assert entries(tmp_path / "cache") == []


# An overview.


@pytest.fixture(scope="module")
def thinned(tmp_path_factory):
    """A tile with the one overview that matters here, and what that holds."""
    root = tmp_path_factory.mktemp("thinned")
    codes = patchy_codes(2048, 2048, seed=2)
    path = write_tile(root, "N27E075", {(16384, 26624): codes})
    with rasterio.open(path, "r+") as dataset:
        dataset.build_overviews([32], rasterio.enums.Resampling.nearest)
    with rasterio.open(path, overview_level=0) as dataset:
        return root, dataset.read(1)


def test_a_glance_shows_the_class_about_a_place(thinned):
    root, overview = thinned
    random = np.random.default_rng(6)
    row, col = random.integers([[16384], [26624]], [[18432], [28672]], (2, 500))
    lon, lat = 75 + (col + 0.5) / 12000, 30 - (row + 0.5) / 12000
    with RangeServer(root) as server:
        source = web_source(server)
        classes = source.overview(lon, lat)
        assert len(server.gets) <= 4
        assert server.num_bytes < 200_000
        assert source.traffic.requests == len(server.gets)
    assert classes.dtype == np.uint8
    assert len(np.unique(classes)) == 8
    np.testing.assert_array_equal(classes, WORLDCOVER.collapse(overview[row // 32, col // 32]))
    np.testing.assert_array_equal(WorldCover(str(root)).overview(lon, lat), classes)


def test_a_glance_at_the_sea_or_beyond_the_antimeridian_sees_nothing(thinned):
    root, _ = thinned
    lon = np.array([76.0, 60.0, 180.0, 181.5, -180.0])
    lat = np.array([29.9, 10.0, -17.0, 66.0, -17.0])
    assert WorldCover(str(root)).overview(lon, lat).tolist() == [IGNORE] * 5


def test_a_glance_at_nothing_is_nothing(thinned):
    assert WorldCover(str(thinned[0])).overview(np.zeros(0), np.zeros(0)).shape == (0,)


def test_a_glance_that_gets_no_answer_names_the_remedies(server):
    server.faults = Faults(busy=1000)
    with pytest.raises(UnreachableError, match="BHARATEO_WORLDCOVER_ROOT"):
        web_source(server).overview(np.array([77.0]), np.array([28.0]))


def test_after_a_glance_that_failed_the_tile_is_opened_anew(thinned):
    root, overview = thinned
    place = np.array([75 + (26700 + 0.5) / 12000]), np.array([30 - (16400 + 0.5) / 12000])
    with RangeServer(root) as server:
        source = web_source(server)
        server.faults = Faults(spare=1, busy=100)
        with pytest.raises(UnreachableError):
            source.overview(*place)
        server.faults = Faults()
        expected = WORLDCOVER.collapse(overview[16400 // 32, 26700 // 32, None])
        assert source.overview(*place) == expected


# The root.


def test_the_root_is_the_argument_else_the_environment_else_the_bucket(monkeypatch):
    assert WorldCover().root == PUBLIC_ROOT
    assert WorldCover("s3://esa-worldcover").root == PUBLIC_ROOT
    monkeypatch.setenv("BHARATEO_WORLDCOVER_ROOT", "/data/mirror/")
    assert WorldCover().root == "/data/mirror"
    assert WorldCover("/other").root == "/other"


def test_a_folder_that_is_not_there_is_not_the_sea(tmp_path):
    with pytest.raises(
        UnreachableError, match=r"none is not a folder: point data\.worldcover_root"
    ):
        WorldCover(str(tmp_path / "none")).read(SMALL)


def test_a_code_that_does_not_exist_names_tile_window_and_code(tmp_path):
    write_tile(tmp_path, "N27E075", {(16600, 26700): np.full((200, 200), 37, np.uint8)})
    with pytest.raises(
        UnknownCodeError, match=r"code 37 in .*N27E075_Map\.tif, window row 16552 col 26632"
    ):
        WorldCover(str(tmp_path)).read(SMALL)


def test_another_products_file_is_refused(mirror, tmp_path):
    path = tmp_path / key("N27E075")
    path.parent.mkdir(parents=True)
    grid = Affine(1e-3, 0, 75, 0, -1e-3, 30)
    with rasterio.open(
        path, "w", driver="GTiff", width=64, height=64, count=1, dtype="uint16",
        crs="EPSG:4326", transform=grid,
    ):  # fmt: skip
        pass
    with pytest.raises(CorruptRasterError, match=r"N27E075_Map\.tif has 1 band"):
        WorldCover(str(tmp_path)).read(SMALL)


def test_a_root_that_answers_is_reachable(mirror, server):
    assert reachable(str(mirror)) is None
    assert reachable(server.url, [NAMED_ROIS["delhi_ncr"]]) is None
    assert reachable(server.url, [Roi("sea", 0.0, 0.0)]) is None
    assert len(server.gets) == 2
    assert server.heads == 0


def test_a_root_that_does_not_answer_says_why_in_one_sentence(server, tmp_path):
    assert "is not a folder" in reachable(str(tmp_path / "none"))
    assert reachable("http://worldcover.invalid").endswith("its name could not be resolved.")
    server.faults = Faults(hang=9, hang_s=0.6)
    assert "within 0.2 s" in reachable(server.url, timeout_s=0.2)


# The cache.


def test_image_and_labels_of_a_region_are_fetched_once(mirror, server):
    (part,) = tile_windows(worldcover_window(NAMED_ROIS["delhi_ncr"]))
    blocks = block_bytes(mirror / key(part.tile), part.row, part.col, part.height, part.width)
    source = web_source(server)
    WorldCoverPalette(source).read(DELHI)
    source.read(DELHI)
    assert len(server.gets) <= len(blocks) + 4
    assert server.num_bytes <= 1.1 * sum(blocks) + 128 * 1024
    assert source.traffic.requests == len(server.gets)


def test_a_region_read_before_costs_the_header_alone(server, codes):
    web_source(server).read(DELHI)
    server.forget()
    source = web_source(server)
    np.testing.assert_array_equal(source.read(DELHI).values[0], codes)
    assert len(server.gets) == 1
    assert source.cache_note == "read"


def test_a_local_root_is_not_cached(mirror, tmp_path):
    WorldCover(str(mirror), cache=tmp_path / "mine").read(DELHI)
    assert entries(tmp_path) == []


def test_the_cache_folder_is_the_argument_else_the_environment(server, tmp_path):
    web_source(server).read(SMALL)
    web_source(server, cache=tmp_path / "mine").read(SMALL)
    assert len(entries(tmp_path / "cache" / "worldcover")) == 1
    assert len(entries(tmp_path / "mine" / "worldcover")) == 1


def test_a_changed_tile_is_fetched_again(server, tmp_path):
    name = Path(key("N27E075")).name
    server.etags[name] = '"one"'
    web_source(server).read(DELHI)
    server.etags[name] = '"two"'
    server.forget()
    raster = web_source(server).read(DELHI)
    assert len(server.gets) > 1
    assert raster.provenance["tiles"]["N27E075"] == {"etag": "two"}
    assert len(entries(tmp_path)) == 2


def damage_by_truncation(content: bytes) -> bytes:
    return content[: len(content) // 2]


def damage_by_a_flipped_byte(content: bytes) -> bytes:
    middle = len(content) // 3
    return content[:middle] + bytes([content[middle] ^ 0xFF]) + content[middle + 1 :]


def damage_by_emptying(content: bytes) -> bytes:
    return b""


@pytest.mark.parametrize(
    "damage", [damage_by_truncation, damage_by_a_flipped_byte, damage_by_emptying]
)
def test_a_damaged_entry_is_fetched_again_and_mended(server, tmp_path, codes, damage):
    web_source(server).read(DELHI)
    (entry,) = entries(tmp_path)
    good = entry.read_bytes()
    entry.write_bytes(damage(good))
    source = web_source(server)
    np.testing.assert_array_equal(source.read(DELHI).values[0], codes)
    assert source.cache_note == "damaged, fetched again"
    again = web_source(server)
    again.read(DELHI)
    assert again.cache_note == "read"


def test_without_a_network_what_was_kept_serves_and_says_so(server, codes):
    web_source(server).read(DELHI)
    server.faults = Faults(busy=1000)
    source = web_source(server)
    raster = source.read(DELHI)
    np.testing.assert_array_equal(raster.values[0], codes)
    assert raster.provenance["offline"] is True
    assert "503" in source.cache_note
    assert raster.provenance["tiles"]["N27E075"]["etag"]


def test_offline_the_last_kept_whole_entry_serves(server, tmp_path):
    name = Path(key("N27E075")).name
    for version in ("one", "two"):
        server.etags[name] = f'"{version}"'
        web_source(server).read(DELHI)
    newest = max(entries(tmp_path), key=lambda entry: entry.stat().st_mtime_ns)
    server.faults = Faults(busy=1000)
    assert web_source(server).read(DELHI).provenance["tiles"]["N27E075"] == {"etag": "two"}
    newest.write_bytes(b"PK")
    assert web_source(server).read(DELHI).provenance["tiles"]["N27E075"] == {"etag": "one"}


def test_without_a_network_or_anything_kept_the_remedies_are_named(server):
    server.faults = Faults(busy=1000)
    with pytest.raises(UnreachableError, match=r"BHARATEO_WORLDCOVER_ROOT.*packaged sample"):
        web_source(server).read(DELHI)


def test_another_window_or_root_is_not_served_from_the_cache(mirror, server):
    web_source(server).read(DELHI)
    with RangeServer(mirror) as other:
        other.faults = Faults(busy=1000)
        with pytest.raises(UnreachableError):
            web_source(other).read(DELHI)
    server.faults = Faults(busy=1000)
    with pytest.raises(UnreachableError):
        web_source(server).read(SMALL)


def test_a_cache_that_cannot_be_written_stops_nothing(server, tmp_path, codes):
    (tmp_path / "file").write_text("in the way")
    source = web_source(server, cache=tmp_path / "file")
    np.testing.assert_array_equal(source.read(DELHI).values[0], codes)
    assert source.cache_note.startswith("not written")


def read_in_a_process(url: str, cache: str) -> int:
    os.environ["BHARATEO_CACHE"] = cache
    return int(WorldCover(url, web=impatient()).read(DELHI).values.sum(dtype=np.int64))


def test_several_builders_may_keep_the_same_region_at_once(server, tmp_path, codes):
    context = multiprocessing.get_context("spawn")
    with context.Pool(2) as pool:
        jobs = [pool.apply_async(read_in_a_process, (server.url, str(tmp_path))) for _ in range(4)]
        sums = [job.get(timeout=60) for job in jobs]
    assert set(sums) == {codes.sum(dtype=np.int64)}
    assert len(entries(tmp_path)) == 1
    assert list(tmp_path.rglob("*.partial")) == []


# Real pixels.


def test_delhi_has_its_known_counts_from_disk_and_over_http():
    mirror = real_mirror()
    (part,) = tile_windows(worldcover_window(NAMED_ROIS["delhi_ncr"]))
    blocks = block_bytes(mirror / key(part.tile), part.row, part.col, part.height, part.width)
    with RangeServer(mirror) as server:
        for source in (WorldCover(str(mirror)), web_source(server)):
            raster = source.read(DELHI)
            assert WORLDCOVER.native_counts(raster.values) == DELHI_COUNTS
            assert raster.valid.sum() == raster.valid.size - DELHI_COUNTS[0]
        assert len(server.gets) <= len(blocks) + 4
        assert server.num_bytes <= 1.1 * sum(blocks) + 128 * 1024


def test_a_region_outside_the_partial_tile_is_all_nodata():
    shekhawati = worldcover_region(NAMED_ROIS["shekhawati"]).geobox
    raster = WorldCover(str(real_mirror())).read(shekhawati)
    assert not raster.valid.any()


@pytest.mark.parametrize("year", [2020, 2021])
def test_official_tiles_hold_only_known_codes(year):
    sao_tome = worldcover_region(Roi("sao_tome", 6.6, 0.25, 4096)).geobox
    raster = WorldCover(str(real_mirror()), year=year).read(sao_tome)
    counts = WORLDCOVER.native_counts(raster.values)
    land = sum(count for code, count in counts.items() if code not in (0, 80))
    assert counts[10] > 0.8 * land > 100_000
