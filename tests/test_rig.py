"""The servers and scenes that other tests lean on do what they say."""

import http.client
import time
from datetime import UTC, datetime
from urllib.parse import urlsplit

import numpy as np
import pystac
import pytest
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox
from pystac_client import Client
from rasterio.warp import reproject

from bharateo.pixels.http import Web
from l2a_scenes import (
    BANDS,
    BANDS_20M,
    at_20m,
    codes_under,
    made_up_scene,
    made_up_scl,
    real_reflectance,
    write_scene,
)
from range_server import FAULT_KINDS, RandomFaults, RangeServer
from stac_server import StacServer
from worldcover_tiles import key

CORNER = (700000.0, 3200040.0)


def small_scene(folder, name="S2A_43RGM_20230401_0_L2A", shape=(300, 260), **changes):
    """A scene with a nodata corner, and the reflectance in it."""
    reflectance, codes = made_up_scene(shape, nodata_corner_px=31)
    options = {
        "epsg": 32643, "corner": CORNER, "reflectance": reflectance,
        "scl": made_up_scl(reflectance, codes), "when": "2023-04-01T05:36:41.024Z",
        "baseline": "05.09", "dn_offset": 0, "cloud_cover": 3.5, "block_px": 128, **changes,
    }  # fmt: skip
    return write_scene(folder, name, **options), reflectance


@pytest.fixture(scope="module")
def scene_and_pixels(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    return small_scene(folder, flag=True, mgrs="43RGM")


def stored(scene, band):
    with rasterio.open(scene.path(band)) as dataset:
        return dataset.read(1)


# Scenes.


@pytest.mark.parametrize("band", [*BANDS, "SCL"])
def test_a_band_is_read_back_as_it_was_written(scene_and_pixels, band):
    scene, reflectance = scene_and_pixels
    with rasterio.open(scene.path(band)) as dataset:
        grid = scene.geobox_20m if band in (*BANDS_20M, "SCL") else scene.geobox
        assert (dataset.shape, dataset.transform) == (grid.shape, grid.affine)
        assert (dataset.crs.to_epsg(), dataset.nodata) == (32643, 0)
        assert dataset.block_shapes == [(128, 128)]
        assert dataset.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert dataset.tags(ns="IMAGE_STRUCTURE")["PREDICTOR"] == "2"
        assert dataset.overviews(1)
    if band != "SCL":
        values = reflectance[BANDS.index(band)]
        expected = at_20m(values) if band in BANDS_20M else values
        np.testing.assert_array_equal(stored(scene, band), expected)


def test_a_20_m_pixel_is_the_mean_of_what_is_there():
    values = np.array([[0, 0, 10, 11], [0, 0, 12, 12], [0, 7, 1, 1], [0, 0, 1, 2]], np.uint16)
    np.testing.assert_array_equal(at_20m(values), [[0, 11], [7, 1]])


def test_the_offset_is_in_the_file_and_nodata_stays_nodata(tmp_path):
    scene, reflectance = small_scene(tmp_path, dn_offset=1000)
    for band, values in (("B04", reflectance[2]), ("B12", at_20m(reflectance[9]))):
        dn = stored(scene, band)
        np.testing.assert_array_equal(dn == 0, values == 0)
        np.testing.assert_array_equal(dn[values > 0], values[values > 0] + 1000)


def test_an_item_says_what_its_files_are(scene_and_pixels):
    scene, _ = scene_and_pixels
    record = scene.item("http://127.0.0.1:1/s2/")
    item = pystac.Item.from_dict(record)
    assert item.datetime == datetime(2023, 4, 1, 5, 36, 41, 24000, UTC)
    assert record["properties"]["earthsearch:boa_offset_applied"] is True
    assert record["properties"]["grid:code"] == "MGRS-43RGM"
    assert record["properties"]["proj:epsg"] == 32643
    red, scl = record["assets"]["red"], record["assets"]["scl"]
    assert red["href"] == f"http://127.0.0.1:1/s2/{scene.name}/B04.tif"
    assert (red["proj:shape"], scl["proj:shape"]) == ([300, 260], [150, 130])
    assert scl["proj:transform"] == [20.0, 0.0, CORNER[0], 0.0, -20.0, CORNER[1]]
    west, south, east, north = record["bbox"]
    assert 77.0 < west < east < 77.1 and 28.8 < south < north < 29.0
    assert (east - west) * 97_700 == pytest.approx(2600, rel=0.03)


def test_planetary_computer_names_its_assets_after_the_bands(tmp_path):
    scene, _ = small_scene(tmp_path, style="planetary-computer", mgrs="43RGM")
    record = scene.item(str(tmp_path))
    assert list(record["assets"]) == [*BANDS, "SCL"]
    assert record["assets"]["B8A"]["href"] == str(scene.path("B8A"))
    assert record["properties"]["s2:mgrs_tile"] == "43RGM"
    assert "earthsearch:boa_offset_applied" not in record["properties"]


def test_made_up_water_is_dark_and_vegetation_is_not():
    reflectance, codes = made_up_scene((240, 240))
    water = reflectance[:, codes == 80]
    assert water.size and water.min() >= 100 and water.max() <= 300
    red, near_infrared = reflectance[2, codes == 40], reflectance[6, codes == 40]
    assert (near_infrared > 3 * red).all()


def test_real_pixels_fill_any_shape_and_are_zero_in_the_corner_alone():
    reflectance = real_reflectance((1300, 2000))
    assert (reflectance.shape, reflectance.dtype) == ((10, 1300, 2000), np.uint16)
    assert not reflectance[:, :32, :32].any()
    reflectance[:, :32, :32] = 1
    assert reflectance.min() == 1
    assert 200 < np.median(reflectance[2]) < 1500 < np.median(reflectance[6]) < 6000


# WorldCover under a scene.


def test_codes_lie_where_the_scene_is_on_both_sides_of_a_tile_border(tmp_path):
    """78 E is also where two UTM zones meet."""
    areas = [
        GeoBox((512, 512), Affine(10, 0, 792520, 0, -10, 3102560), 32643),
        GeoBox((512, 512), Affine(10, 0, 202400, 0, -10, 3122560), 32644),
    ]
    codes = [made_up_scene(area.shape, seed)[1] for seed, area in enumerate(areas)]
    paths = codes_under(tmp_path, areas, codes)
    assert paths == [tmp_path / key("N27E075"), tmp_path / key("N27E078")]
    for area, expected in zip(areas, codes, strict=True):
        parts = [labels_on(area, path) for path in paths]
        assert all(part.any() for part in parts)
        labels = np.maximum(*parts)
        assert labels.all()
        assert (labels == expected).mean() > 0.9


def labels_on(geobox, path):
    labels = np.zeros(geobox.shape, np.uint8)
    with rasterio.open(path) as dataset:
        reproject(
            rasterio.band(dataset, 1), labels, dst_transform=geobox.affine, dst_crs=str(geobox.crs)
        )
    return labels


# The catalogue.


@pytest.fixture(scope="module")
def catalogue(scene_and_pixels):
    """Twenty-five days of the scene, and its neighbour to the north on the first day."""
    scene, _ = scene_and_pixels
    items = [dated(scene.item("http://127.0.0.1:1"), day) for day in range(1, 26)]
    north = dated(scene.item("http://127.0.0.1:1"), 1) | {"id": "north"}
    lat = [[[lon, lat + 1] for lon, lat in north["geometry"]["coordinates"][0]]]
    north |= {"geometry": {"type": "Polygon", "coordinates": lat}}
    with StacServer([*items, north]) as server:
        yield server


def dated(item, day):
    item["properties"]["datetime"] = f"2023-04-{day:02d}T05:36:41.024Z"
    return item | {"id": f"day{day:02d}"}


def found(catalogue, **search):
    client = Client.open(catalogue.url)
    return [item.id for item in client.search(collections=["sentinel-2-l2a"], **search).items()]


def test_items_are_found_by_place(catalogue):
    assert found(catalogue, bbox=[77.0, 29.8, 77.1, 29.9]) == ["north"]
    assert found(catalogue, bbox=[70.0, 20.0, 70.1, 20.1]) == []


def test_items_are_found_by_date(catalogue):
    bbox = [77.06, 28.9, 77.07, 28.91]
    dates = "2023-04-03/2023-04-05"
    assert found(catalogue, bbox=bbox, datetime=dates) == ["day03", "day04", "day05"]


def test_many_items_come_in_pages(catalogue):
    search = Client.open(catalogue.url).search(collections=["sentinel-2-l2a"], limit=10)
    assert [len(page.items) for page in search.pages()] == [10, 10, 6]
    assert len(set(found(catalogue))) == 26


def test_a_catalogue_that_ended_answers_no_more(scene_and_pixels):
    with StacServer([scene_and_pixels[0].item("http://127.0.0.1:1")]) as server:
        Client.open(server.url)
    with pytest.raises(Exception, match="Connection refused"):
        Client.open(server.url)


# What goes wrong by chance.


def get_range(server, first=100, last=299, timeout_s=5.0):
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=timeout_s)
    try:
        connection.request("GET", "/file", headers={"Range": f"bytes={first}-{last}"})
        response = connection.getresponse()
        return response.status, response.headers.get("Content-Range"), response.read()
    finally:
        connection.close()


@pytest.fixture(scope="module")
def file_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    (folder / "file").write_bytes(np.random.default_rng(0).bytes(100_000))
    return folder


def failing_server(folder, kind):
    return RangeServer(folder, faults=RandomFaults(1.0, 0, kinds=(kind,), hang_s=0.6))


def test_a_busy_server_says_so(file_folder):
    with failing_server(file_folder, "busy") as server:
        assert get_range(server)[0] == 503
        assert server.faults.injected == {"busy": 1}


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("hang", TimeoutError),
        ("reset", ConnectionResetError),
        ("short", http.client.IncompleteRead),
    ],
)
def test_a_connection_fails_in_its_own_way(file_folder, kind, error):
    with failing_server(file_folder, kind) as server:
        with pytest.raises(error):
            get_range(server, timeout_s=0.2 if kind == "hang" else 5.0)
        assert server.faults.injected == {kind: 1}


@pytest.mark.parametrize(
    ("asked", "named"), [((100, 299), "99-298"), ((0, 299), "1-300"), ((0, 99_999), "1-99999")]
)
def test_a_wrong_range_is_another_one_than_asked_for(file_folder, asked, named):
    with failing_server(file_folder, "wrong_range") as server:
        status, content_range, body = get_range(server, *asked)
    assert (status, content_range) == (206, f"bytes {named}/100000")
    first, last = map(int, named.split("-"))
    assert body == (file_folder / "file").read_bytes()[first : last + 1]


def test_chance_repeats_itself_for_a_seed():
    one, again, other = (RandomFaults(0.3, seed) for seed in (1, 1, 2))
    drawn = [[faults.next() for _ in range(1000)] for faults in (one, again, other)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert set(one.injected) == set(FAULT_KINDS)
    assert one.injected.total() == sum(map(bool, drawn[0])) == pytest.approx(300, abs=60)


def test_every_get_waits_its_latency(file_folder):
    with RangeServer(file_folder, faults=RandomFaults(0.0, 0, latency_s=(0.02, 0.05))) as server:
        waits = []
        for _ in range(5):
            start = time.perf_counter()
            get_range(server)
            waits.append(time.perf_counter() - start)
    assert min(waits) >= 0.02
    assert max(waits) - min(waits) > 0.001


def test_the_web_reader_recovers_from_every_fault(file_folder):
    content = (file_folder / "file").read_bytes()
    ranges = [(first, 400) for first in range(0, 100_000, 400)]
    with RangeServer(file_folder, faults=RandomFaults(0.1, 5, hang_s=1.0)) as server:
        web = Web(timeout_s=0.4, num_retries=8, backoff_s=0.01)
        answers = web.get_all(f"{server.url}/file", ranges)
        assert set(server.faults.injected) == set(FAULT_KINDS)
        assert len(server.gets) >= len(ranges) + server.faults.injected.total()
    assert b"".join(answer.body for answer in answers) == content


def test_several_folders_share_a_server(file_folder, scene_and_pixels):
    scene, _ = scene_and_pixels
    with RangeServer(file_folder, mounts={"s2": scene.folder}) as server:
        assert get_range(server)[0] == 206
        href = scene.item(f"{server.url}/s2")["assets"]["red"]["href"]
        answer = Web().get(f"{href}?sig=a%2Fb", 0, 4)
    assert answer.body == b"II*\0"
    assert answer.file_bytes == scene.path("B04").stat().st_size
