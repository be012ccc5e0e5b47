import copy
import datetime
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pystac_client
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st

from bharateo.errors import ConfigError, SourceError, UnreachableError
from bharateo.sources.catalogue import EARTH_SEARCH, PLANETARY_COMPUTER, Client, catalogue_of
from bharateo.sources.stac import Scene, occasions, ranked, scene_of
from l2a_scenes import BANDS, made_up_scene, made_up_scl, write_scene
from stac_server import StacServer

YEAR = "2021-01-01/2021-12-31"

# Occasions.


def spans(dates: str, *seasons: str) -> dict[str, tuple[tuple[str, str], ...]]:
    return {occasion.name: occasion.spans for occasion in occasions(dates, seasons)}


def test_without_seasons_the_whole_time_is_one_occasion():
    assert spans("2021-03-05/2021-04-06") == {"all": (("2021-03-05", "2021-04-06"),)}


def test_rabi_runs_over_new_year_and_is_cut_to_the_dates():
    assert spans(YEAR, "rabi")["rabi"] == (
        ("2021-01-01", "2021-03-31"),
        ("2021-11-01", "2021-12-31"),
    )
    assert spans("2020-12-10/2021-02-03", "rabi")["rabi"] == (("2020-12-10", "2021-02-03"),)


def test_a_season_of_several_years_is_one_occasion():
    found = spans("2020-06-15/2023-05-01", "kharif", "rabi", "summer")
    assert list(found) == ["kharif", "rabi", "summer"]
    assert found["kharif"] == (
        ("2020-07-01", "2020-10-31"),
        ("2021-07-01", "2021-10-31"),
        ("2022-07-01", "2022-10-31"),
    )
    assert found["rabi"][1:] == (("2021-11-01", "2022-03-31"), ("2022-11-01", "2023-03-31"))
    assert found["summer"][0] == ("2020-06-15", "2020-06-30")
    assert found["summer"][-1] == ("2023-04-01", "2023-05-01")


def test_a_season_of_ones_own_ends_with_its_month_also_in_a_leap_year():
    found = spans("2023-01-01/2024-12-31", "early=1-2", "may=5-5", "cold-time=12-1")
    assert found["early"] == (("2023-01-01", "2023-02-28"), ("2024-01-01", "2024-02-29"))
    assert found["may"] == (("2023-05-01", "2023-05-31"), ("2024-05-01", "2024-05-31"))
    assert found["cold-time"] == (
        ("2023-01-01", "2023-01-31"),
        ("2023-12-01", "2024-01-31"),
        ("2024-12-01", "2024-12-31"),
    )


@given(st.dates(datetime.date(2016, 1, 1), datetime.date(2025, 1, 1)), st.integers(365, 1500))
def test_the_three_seasons_hold_every_day_once(first, num_days):
    days = [first + datetime.timedelta(days) for days in range(num_days)]
    found = spans(f"{days[0]}/{days[-1]}", "rabi", "summer", "kharif")
    held = []
    for start, end in (span for season in found.values() for span in season):
        day = datetime.date.fromisoformat(start)
        while day <= datetime.date.fromisoformat(end):
            held.append(day)
            day += datetime.timedelta(1)
    assert sorted(held) == days


@pytest.mark.parametrize(
    ("dates", "seasons", "said"),
    [
        ("2021", (), r"dates '2021' is not FIRST/LAST"),
        ("2021-01-01/2021-13-01", (), r"is not FIRST/LAST.*month"),
        ("2021-01-01/2021-02-01/2021-03-01", (), r"is not FIRST/LAST"),
        ("2021-05-01/2021-04-01", (), r"the first day comes after the last"),
        ("2021-04-01/2021-10-31", ("rabi",), r"'rabi' has no day in data.sentinel2.dates 2021-04"),
        (YEAR, ("monsoon",), r"'monsoon' is not known: give rabi, summer, kharif"),
        (YEAR, ("x=0-3",), r"'x=0-3' is not known"),
        (YEAR, ("x=1-13",), r"'x=1-13' is not known"),
        (YEAR, ("x=6",), r"'x=6' is not known"),
        (YEAR, ("a b=6-7",), r"'a b=6-7' is not known"),
        (YEAR, ("x=1-2", "x=3-4"), r"a name is given twice"),
    ],
)
def test_dates_and_seasons_that_make_no_sense_are_named(dates, seasons, said):
    with pytest.raises(ConfigError, match=said):
        occasions(dates, seasons)


# Catalogues.


def test_known_catalogues_are_known_by_name():
    assert catalogue_of("earth-search") == EARTH_SEARCH
    assert catalogue_of("planetary-computer") == PLANETARY_COMPUTER
    assert EARTH_SEARCH.assets["B8A"] == "nir08"
    assert PLANETARY_COMPUTER.assets["B8A"] == "B8A"
    assert PLANETARY_COMPUTER.signed and not EARTH_SEARCH.signed


def test_a_copy_of_a_known_catalogue_is_read_by_its_rules_and_unsigned():
    copied = catalogue_of("earth-search=http://localhost:8080/")
    assert copied == replace(EARTH_SEARCH, url="http://localhost:8080/")
    copied = catalogue_of("planetary-computer=https://example.org/?a=b")
    assert copied == replace(PLANETARY_COMPUTER, url="https://example.org/?a=b", signed=False)


def test_another_catalogue_is_given_by_its_url_with_its_own_asset_keys():
    url = "https://example.org/stac"
    catalogue = catalogue_of(url, {"B04": "red-10m", "SCL": "classes"})
    assert (catalogue.url, catalogue.rule, catalogue.signed) == (url, "by-item", False)
    assert catalogue.assets["B04"] == "red-10m"
    assert catalogue.assets["SCL"] == "classes"
    assert catalogue.assets["B02"] == "B02"
    assert catalogue_of("earth-search", {"B04": "visual"}).assets["B04"] == "visual"


@pytest.mark.parametrize("name", ["element84", "earth_search=http://a", "example.org/stac", ""])
def test_a_catalogue_that_is_neither_is_refused(name):
    with pytest.raises(ConfigError, match=f"'{name}' is not known: give earth-search, planetary-"):
        catalogue_of(name)


# Scenes of items.


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scene")
    reflectance, codes = made_up_scene((64, 64))
    return {
        style: write_scene(
            folder, style, epsg=32643, corner=(700_020, 3_200_040), reflectance=reflectance,
            scl=made_up_scl(reflectance, codes), when="2023-04-01T05:36:41.024Z",
            baseline="05.09", dn_offset=0, cloud_cover=3.5, flag=flag, style=style, block_px=128,
        )
        for style, flag in (("earth-search", True), ("planetary-computer", None))
    }  # fmt: skip


@pytest.mark.parametrize("style", ["earth-search", "planetary-computer"])
def test_a_scene_holds_what_an_item_says(files, style):
    catalogue = catalogue_of(f"{style}=http://localhost:1")
    item = files[style].item("http://localhost:2/s2")
    scene = scene_of(item, catalogue, ("B04", "B8A"))
    assert (scene.id, scene.catalogue, scene.rule) == (style, "http://localhost:1", catalogue.rule)
    assert scene.datetime == "2023-04-01T05:36:41.024Z"
    assert (scene.cloud_cover, scene.epsg, scene.baseline) == (3.5, 32643, "05.09")
    assert scene.flag is (True if style == "earth-search" else None)
    assert scene.assets == {
        band: f"http://localhost:2/s2/{style}/{band}.tif" for band in ("B04", "B8A", "SCL")
    }
    assert scene.outline.equals(shapely.geometry.shape(item["geometry"]))
    assert scene.raster == ({"scale": 1e-4, "offset": -0.1} if style == "earth-search" else {})


def test_a_scene_goes_through_json(files):
    scene = scene_of(files["earth-search"].item("http://a"), EARTH_SEARCH, BANDS)
    assert Scene.model_validate_json(json.dumps(scene.model_dump())) == scene


@pytest.mark.parametrize(
    ("properties", "expected"),
    [
        ({"proj:code": "EPSG:32644", "proj:epsg": None}, (32644, "05.09")),
        ({"proj:epsg": 32701, "proj:code": None}, (32701, "05.09")),
        ({"proj:epsg": None, "proj:code": None}, (None, "05.09")),
        ({"proj:epsg": None, "proj:code": "IAU:3000"}, (None, "05.09")),
        ({"s2:processing_baseline": None, "processing:version": "05.00"}, (32643, "05.00")),
        ({"s2:processing_baseline": None}, (32643, None)),
    ],
)
def test_grid_and_baseline_are_found_under_their_old_and_new_names(files, properties, expected):
    item = files["earth-search"].item("http://a")
    item["properties"] |= properties
    scene = scene_of(item, EARTH_SEARCH, ("B04",))
    assert (scene.epsg, scene.baseline) == expected


def test_scale_and_offset_are_found_under_their_new_names_too(files):
    item = files["earth-search"].item("http://a")
    bands = [{"raster:scale": 0.0001, "raster:offset": -0.1}]
    item["assets"]["red"] = {"href": "http://a/red.tif", "bands": bands}
    assert scene_of(item, EARTH_SEARCH, ("B04",)).raster == {"scale": 0.0001, "offset": -0.1}


def test_a_missing_asset_is_named_with_item_key_and_those_there_are(files):
    item = files["earth-search"].item("http://a")
    item["assets"] = {key: item["assets"][key] for key in ("red", "blue", "scl")}
    with pytest.raises(
        SourceError,
        match=r"item earth-search of https://earth-search\S+ has no asset 'nir08' for band B8A "
        r"\(it has blue, red, scl\): name the right key in data\.sentinel2\.assets",
    ):
        scene_of(item, EARTH_SEARCH, ("B04", "B8A"))
    del item["assets"]["scl"]
    with pytest.raises(SourceError, match="no asset 'scl' for band SCL"):
        scene_of(item, EARTH_SEARCH, ("B04",))


# The scene to take.

PLACE = shapely.box(77.0, 28.0, 77.1, 28.1)


def choose(scenes, footprint, epsg):
    return next(iter(ranked(scenes, footprint, epsg)), None)


def scene(name: str, share: float = 1.0, epsg: int | None = 32643, cloud: float = 5.0, **more):
    """A scene that covers a share of the place, from the west."""
    outline = shapely.box(76.9, 27.9, 77.0 + 0.1 * share, 28.2)
    return Scene(
        id=name, catalogue="c", rule="by-baseline", signed=False, cloud_cover=cloud, epsg=epsg,
        datetime=more.pop("when", "2021-02-01T05:00:00Z"), assets={}, flag=None, raster={},
        geometry=shapely.geometry.mapping(outline), baseline=more.pop("baseline", "05.00"), **more,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        (scene("z", 0.99, 32644, 19.0), scene("a", 0.9, 32643, 0.0)),
        (scene("z", 1.0, 32643, 19.0), scene("a", 1.0, 32644, 0.0)),
        (scene("z", 0.985, 32643, 1.0), scene("a", 1.0, 32643, 2.0)),
        (scene("z", cloud=1.0, baseline="02.00"), scene("a", cloud=1.5)),
        (scene("z", baseline="05.10"), scene("a", baseline="05.09")),
        (scene("z", baseline="10.00"), scene("a", baseline="05.11")),
        (scene("z", when="2021-01-31T05:00:00Z"), scene("a")),
        (scene("a"), scene("z")),
    ],
    ids=["cover before grid", "grid before cloud", "nearly all is all", "cloud before baseline",
         "newer baseline", "much newer baseline", "earlier date", "name"],
)  # fmt: skip
def test_the_better_scene_is_taken_in_whatever_order_they_come(better, worse):
    assert choose([better, worse], PLACE, 32643) == better
    assert choose([worse, better], PLACE, 32643) == better


def test_a_scene_that_does_not_say_its_grid_may_be_on_the_right_one():
    silent, other = scene("a", epsg=None, cloud=6.0), scene("b", epsg=32644)
    assert choose([silent, other], PLACE, 32643) == silent
    assert choose([silent, other], PLACE, None) == other


def test_of_equals_one_with_a_baseline_is_taken_before_one_without():
    known, silent = scene("z"), scene("a", baseline=None)
    assert choose([silent, known], PLACE, 32643) == known


def test_a_place_that_no_scene_reaches_has_none():
    assert choose([], PLACE, 32643) is None
    assert choose([scene("a")], shapely.box(10, 10, 11, 11), 32643) is None
    part = scene("a", 0.3)
    assert choose([part, scene("b", -0.5)], PLACE, 32643) == part


# Asking.


@pytest.fixture(scope="module")
def catalogue(files):
    """A day a month of 2021 with ever more cloud, the neighbour to the north, and one silent."""
    item = files["earth-search"].item("http://127.0.0.1:1")
    items = [dated(item, f"2021-{month:02d}-15", 4.0 * month) for month in range(1, 13)]
    north = dated(item, "2021-01-15", 1.0) | {"id": "north"}
    lat = [[[lon, lat + 1] for lon, lat in north["geometry"]["coordinates"][0]]]
    north |= {"geometry": {"type": "Polygon", "coordinates": lat}}
    silent = dated(item, "2021-06-20", 0.0) | {"id": "silent"}
    del silent["properties"]["eo:cloud_cover"]
    with StacServer([*items, north, silent]) as server:
        yield server


def dated(item, day, cloud):
    item = copy.deepcopy(item)
    item["properties"] |= {"datetime": f"{day}T05:36:41Z", "eo:cloud_cover": cloud}
    return item | {"id": day}


HERE = np.array([77.05, 28.90, 77.06, 28.92])


def client_of(url: str) -> Client:
    return Client(catalogue_of(f"earth-search={url}"), "sentinel-2-l2a", timeout_s=5.0, retries=1)


def ids(items) -> list[str]:
    return sorted(item["id"] for item in items)


def test_items_are_found_by_place_days_and_cloud(catalogue):
    client = client_of(catalogue.url)
    found = client.items(HERE, "2021-01-01", "2021-12-31", 20.0)
    assert ids(found) == [*(f"2021-{month:02d}-15" for month in (1, 2, 3, 4, 5)), "silent"]
    assert ids(client.items(HERE, "2021-02-15", "2021-04-15", 100.0)) == [
        f"2021-{month:02d}-15" for month in (2, 3, 4)
    ]
    assert ids(client.items(HERE, "2021-02-16", "2021-03-14", 100.0)) == []
    assert ids(client.items(HERE + np.array([0, 1, 0, 1]), "2021-01-01", "2021-12-31", 20.0)) == [
        "north"
    ]
    assert ids(client.items([-70, -10, -69, -9], "2021-01-01", "2021-12-31", 100.0)) == []


def test_cloud_is_heeded_though_the_server_knows_no_query(catalogue):
    client = client_of(catalogue.url)
    with_all = client.items(HERE, "2021-01-01", "2021-12-31", 100.0)
    assert len(with_all) == 13
    without = client.items(HERE, "2021-01-01", "2021-12-31", 47.0)
    assert len(without) == 12
    said = [item["properties"].get("eo:cloud_cover") for item in without]
    assert max(cloud for cloud in said if cloud is not None) == 44.0
    assert said.count(None) == 1, "one that is silent is left for who can say so"


def test_items_become_scenes(catalogue):
    (item,) = client_of(catalogue.url).items(HERE, "2021-03-01", "2021-03-31", 20.0)
    scene = scene_of(item, EARTH_SEARCH, BANDS)
    assert (scene.id, scene.cloud_cover, scene.flag) == ("2021-03-15", 12.0, True)
    assert choose([scene], shapely.box(*HERE), 32643) is scene


class FakeApi:
    """Answers as pystac-client does, but the first question waits for another one."""

    def __init__(self) -> None:
        self.opened, self.asked = threading.Event(), threading.Event()

    def conforms_to(self, _):
        self.opened.set()
        self.asked.wait(0.3)
        return False

    def search(self, **_):
        self.asked.set()
        return self

    def pages_as_dicts(self):
        return [{"features": []}]


def test_several_threads_may_ask_at_once(monkeypatch):
    api = FakeApi()
    monkeypatch.setattr(pystac_client.Client, "open", lambda *_, **__: api)
    client = client_of("http://localhost:1")
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(client.items, HERE, "2021-01-01", "2021-12-31", 20.0)
        api.opened.wait(5.0)
        second = threads.submit(client.items, HERE, "2021-01-01", "2021-12-31", 20.0)
        assert (first.result(), second.result()) == ([], [])


# Who does not answer as a catalogue.


@contextmanager
def answering(body: bytes, content_type: str, status: int = 200):
    """The URL of a server on loopback that answers everything alike."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def complaint(url: str) -> str:
    with pytest.raises(UnreachableError) as raised:
        client_of(url).items(HERE, "2021-01-01", "2021-12-31", 20.0)
    message = str(raised.value)
    assert message.startswith(f"the catalogue {url} could not be asked: ")
    assert "check data.sentinel2.catalogue" in message
    return message


@pytest.mark.parametrize("status", [200, 404])
def test_a_web_page_is_no_catalogue(status):
    page = b"<!DOCTYPE html>\n<html><head><title>STAC browser</title></head></html>"
    with answering(page, "text/html", status) as url:
        assert "a web page (HTML), not with STAC" in complaint(url)


CATALOG = {"type": "Catalog", "stac_version": "1.0.0", "id": "c", "description": "", "links": []}


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"hello": "world"}, "expected type=Catalog"),
        ([1, 2], "list"),
        ({"type": "FeatureCollection", "features": []}, "expected type=Catalog"),
        (CATALOG, "conformance"),
    ],
    ids=["an object", "a list", "features", "a catalogue of files"],
)
def test_json_that_is_no_stac_api_is_told_as_such(record, said):
    with answering(json.dumps(record).encode(), "application/json") as url:
        message = complaint(url)
    assert said in message
    assert "HTML" not in message


def test_an_empty_answer_and_a_broken_server_are_told_as_such():
    with answering(b"", "text/plain") as url:
        complaint(url)
    with answering(b"oops", "text/plain", 503) as url:
        assert "503" in complaint(url)


def test_nobody_there_is_told_as_such():
    with answering(b"", "text/plain") as url:
        pass
    assert "Connection refused" in complaint(url)


def test_a_catalogue_that_ends_between_two_questions_is_told_as_such(files):
    with StacServer([files["earth-search"].item("http://127.0.0.1:1")]) as server:
        client = client_of(server.url)
        assert len(client.items(HERE, "2023-01-01", "2023-12-31", 20.0)) == 1
    with pytest.raises(UnreachableError, match=f"{server.url} could not be asked.*refused"):
        client.items(HERE, "2023-01-01", "2023-12-31", 20.0)
