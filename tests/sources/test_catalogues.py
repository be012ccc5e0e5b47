"""Items as catalogues have them, and as they ought not to be: what a scene makes of each.

The items are made up after the public documentation of each catalogue, with its own names, versions
and habits; ids, places and numbers are nobody's.
"""

import copy
import json
import random
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import shapely

from bharateo.artefacts import parse_json
from bharateo.config import Sentinel2Config
from bharateo.errors import ItemError, SourceError, UnreachableError
from bharateo.sources.catalogue import catalogue_of
from bharateo.sources.sentinel2 import Sentinel2, offset_of
from bharateo.sources.stac import Scene, in_range, ranked, scene_of
from damage import damaged_json

RING = [[75.0, 28.0], [76.1, 28.0], [76.1, 28.99], [75.0, 28.99], [75.0, 28.0]]
TILE = {"type": "Polygon", "coordinates": [RING]}
SWATH = {"type": "Polygon", "coordinates": [[*RING[:2], RING[3], RING[0]]]}
"""The half of a tile that an orbit saw."""

TEN = ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12")
ELEMENT84_KEYS = (
    *("blue", "green", "red", "rededge1", "rededge2", "rededge3", "nir", "nir08"),
    *("swir16", "swir22", "scl"),
)
PIXELS = {"nodata": 0, "data_type": "uint16", "scale": 0.0001, "offset": -0.1}


def stac_item(version, properties, assets, **more):
    """A feature with what STAC asks of every item."""
    when = {"datetime": "2023-11-05T05:31:09.024Z"}
    return {
        "type": "Feature", "stac_version": version, "stac_extensions": [],
        "bbox": [75.0, 28.0, 76.1, 28.99], "geometry": TILE, "links": [],
        "properties": {**when, **properties}, "assets": assets, **more,
    }  # fmt: skip


def earth_search_item(collection, flag):
    """Element 84, STAC 1.0: common names, ``raster:bands``, also where the offset is gone."""
    assets = {
        key: {
            "href": f"https://files.example.org/43/R/FM/{band}.tif",
            "type": "image/tiff; application=geotiff; profile=cloud-optimized",
            "eo:bands": [{"name": key, "common_name": key}],
            "raster:bands": [PIXELS if band != "SCL" else {"nodata": 0, "data_type": "uint8"}],
            "proj:shape": [10980, 10980], "proj:transform": [10, 0, 6e5, 0, -10, 3.3e6],
        }
        for band, key in zip((*TEN, "SCL"), ELEMENT84_KEYS, strict=True)
    }  # fmt: skip
    assets |= {"thumbnail": {"href": "https://files.example.org/preview.jpg"}}
    properties = {
        "platform": "sentinel-2b", "constellation": "sentinel-2", "eo:cloud_cover": 1.25,
        "proj:epsg": 32643, "mgrs:utm_zone": 43, "grid:code": "MGRS-43RFM",
        "s2:processing_baseline": "05.09", "s2:nodata_pixel_percentage": 48.5,
        **({} if flag is None else {"earthsearch:boa_offset_applied": flag}),
    }  # fmt: skip
    return stac_item("1.0.0", properties, assets, id="S2B_43RFM_X", collection=collection,
                     geometry=SWATH)  # fmt: skip


def planetary_computer_item():
    """Microsoft, STAC 1.0: ESA's names, ESA's numbers, addresses that need a signature."""
    assets = {
        band: {
            "href": f"https://account.blob.example.org/s2/{band}_{n}0m.tif",
            "eo:bands": [{"name": band}], "gsd": 10.0,
        }
        for n, band in enumerate((*TEN, "SCL"))
    }  # fmt: skip
    properties = {
        "platform": "Sentinel-2A", "constellation": "Sentinel 2", "eo:cloud_cover": 3.0,
        "proj:epsg": 32643, "s2:mgrs_tile": "43RFM", "s2:processing_baseline": "05.10",
        "s2:nodata_pixel_percentage": 0.000013, "s2:product_type": "S2MSI2A",
    }  # fmt: skip
    return stac_item("1.0.0", properties, assets, id="S2A_PC_X", collection="sentinel-2-l2a")


def copernicus_item():
    """Copernicus Data Space, STAC 1.1: a key for every resolution, S3 first and https beside it,
    scale and offset on the asset.
    """
    assets = {}
    for band in (*TEN, "SCL"):
        for metres in (10, 20, 60):
            key = f"{band}_{metres}m"
            path = f"Sentinel-2/MSI/L2A/2023/11/05/{key}.jp2"
            assets[key] = {
                "href": f"s3://eodata/{path}", "type": "image/jp2", "gsd": metres,
                "alternate": {"https": {"href": f"https://download.example.org/odata/{path}",
                                        "auth:refs": ["oidc"]}},
                "bands": [{"name": band, "eo:center_wavelength": 0.665}],
                "proj:code": "EPSG:32643", "nodata": 0, "data_type": "uint16",
                **({} if band == "SCL" else {"raster:scale": 0.0001, "raster:offset": -0.1}),
            }  # fmt: skip
    properties = {
        "platform": "sentinel-2b", "constellation": "sentinel-2", "eo:cloud_cover": 0.0,
        "processing:version": "05.11", "grid:code": "MGRS-43RFM", "product:type": "S2MSI2A",
    }  # fmt: skip
    return stac_item("1.1.0", properties, assets, id="S2B_CDSE_X", collection="sentinel-2-l2a")


def digital_earth_africa_item():
    """Digital Earth Africa: Element 84's first files and names of properties, ESA's keys."""
    assets = {
        band: {"href": f"s3://deafrica-sentinel-2/Sentinel-2/36/J/TT/{band}.tif",
               "eo:bands": [{"name": band}], "proj:epsg": 32643}
        for band in (*TEN, "SCL")
    }  # fmt: skip
    properties = {
        "platform": "sentinel-2a", "constellation": "sentinel-2", "eo:cloud_cover": 12,
        "proj:epsg": 32643, "sentinel:data_coverage": 51.5, "sentinel:boa_offset_applied": True,
        "sentinel:processing_baseline": "04.00", "odc:product": "s2_l2a",
    }  # fmt: skip
    return stac_item("1.0.0", properties, assets, id="2d6c0fa2", collection="s2_l2a")


def old_item():
    """STAC 0.9, before every name had a prefix of its extension's."""
    item = earth_search_item("sentinel-2-l2a", True)
    for name in ("platform", "constellation", "grid:code", "s2:nodata_pixel_percentage"):
        del item["properties"][name]
    for asset in item["assets"].values():
        asset.pop("raster:bands", None)
    return item | {"stac_version": "0.9.0", "stac_extensions": ["eo", "projection"]}


EARTH_SEARCH, PLANETARY = (
    "https://earth-search.aws.element84.com/v1",
    ("https://planetarycomputer.microsoft.com/api/stac/v1"),
)
CATALOGUES = {
    "Earth Search, harmonised": (
        earth_search_item("sentinel-2-l2a", True), "earth-search", 0, "applied is true", 48.5),
    "Earth Search, by its address": (
        earth_search_item("sentinel-2-l2a", True), EARTH_SEARCH, 0, "applied is true", 48.5),
    "Earth Search, by its address with a slash": (
        earth_search_item("sentinel-2-l2a", None), f"{EARTH_SEARCH}/", 0, "is silent", 48.5),
    "Earth Search, not harmonised": (
        earth_search_item("sentinel-2-l2a", False), "earth-search", -1000, "baseline 05.09", 48.5),
    "Earth Search, collection 1": (
        earth_search_item("sentinel-2-c1-l2a", None), "earth-search", -1000, "as ESA made", 48.5),
    "Earth Search, collection 1 by its address": (
        earth_search_item("sentinel-2-c1-l2a", None), EARTH_SEARCH, -1000, "as ESA made", 48.5),
    "a mirror of Earth Search": (
        earth_search_item("sentinel-2-l2a", True), "https://stac.example.org", 0, "is true", 48.5),
    "Planetary Computer": (
        planetary_computer_item(), "planetary-computer", -1000, "baseline 05.10", 0.000013),
    "Planetary Computer, by its address": (
        planetary_computer_item(), PLANETARY, -1000, "baseline 05.10", 0.000013),
    "Copernicus Data Space": (copernicus_item(), "copernicus", -1000, "offset -0.1", None),
    "Copernicus Data Space, by an address of another": (
        copernicus_item(), "https://stac.example.org", -1000, "offset -0.1", None),
    "Digital Earth Africa": (
        digital_earth_africa_item(), "digital-earth-africa", 0, "applied is true", 48.5),
    "Digital Earth Africa, by an address of another": (
        digital_earth_africa_item(), "https://stac.example.org", 0, "applied is true", 48.5),
    "STAC 0.9": (old_item(), "earth-search", 0, "applied is true", None),
}  # fmt: skip


@pytest.mark.parametrize("name", CATALOGUES)
def test_a_scene_is_made_of_every_catalogues_items(name):
    item, catalogue, dn, evidence, nodata = CATALOGUES[name]
    scene = scene_of(json.loads(json.dumps(item)), catalogue_of(catalogue), TEN)
    assert set(scene.assets) == {*TEN, "SCL"}
    for band, address in scene.assets.items():
        assert address.rpartition("/")[2].startswith(f"{band}") or f"/{band}_" in address
    offset = offset_of(scene)
    assert offset.dn == dn, offset.evidence
    assert evidence in offset.evidence
    assert (scene.cloud_cover, scene.epsg) == (item["properties"]["eo:cloud_cover"], 32643)
    assert scene.nodata_percent == nodata
    assert scene.datetime == "2023-11-05T05:31:09.024Z"
    assert scene.signed == ("lanetary" in catalogue)
    assert scene.outline.equals(shapely.geometry.shape(item["geometry"]))
    assert Scene.model_validate_json(json.dumps(scene.model_dump())) == scene


def test_an_address_that_is_not_on_the_web_gives_way_to_one_over_https():
    scene = scene_of(copernicus_item(), catalogue_of("copernicus"), TEN)
    assert scene.assets["B04"].startswith("https://download.example.org/odata/")
    assert scene.assets["B8A"].endswith("B8A_20m.jp2")
    africa = scene_of(digital_earth_africa_item(), catalogue_of("digital-earth-africa"), TEN)
    assert africa.assets["B04"].startswith("s3://deafrica-sentinel-2/"), "there is no other"


@pytest.mark.parametrize(
    "where",
    [
        {"raster:scale": 0.0001, "raster:offset": "HERE"},
        {"raster:scale": 1e-4, "raster:offset": "HERE", "bands": [{"name": "B04"}]},
        {"bands": [{"name": "B04", "raster:scale": 1e-4, "raster:offset": "HERE"}]},
        {"raster:bands": [{"scale": 1e-4, "offset": "HERE"}]},
        {"raster:scale": 1e-4, "raster:offset": -0.3, "bands": [{"raster:offset": "HERE"}]},
    ],
    ids=["asset", "asset and bands", "bands", "raster:bands", "the band beats the asset"],
)
@pytest.mark.parametrize("offset", [0, -0.1])
def test_scale_and_offset_are_heeded_wherever_a_version_of_stac_has_them(where, offset):
    """A harmonised item of a new baseline must not get -1000 for want of its own words."""
    where = json.loads(json.dumps(where).replace('"HERE"', str(offset)))
    item = planetary_computer_item()
    for band in TEN:
        item["assets"][band] = {"href": f"https://a.example.org/{band}.tif", **where}
    scene = scene_of(item, catalogue_of("https://stac.example.org"), TEN)
    assert offset_of(scene).dn == round(offset * 10_000)


def test_bands_of_different_units_are_refused():
    item = copernicus_item()
    item["assets"]["B08_10m"]["raster:offset"] = 0
    with pytest.raises(ItemError, match=r"different scales and offsets.*B08_10m: \{'scale': 0\.0"):
        scene_of(item, catalogue_of("copernicus"), TEN)


def landsat_item():
    """USGS Landsat Collection 2 Level 2: common names, another unit, no scene classification."""
    keys = ("blue", "green", "red", "nir08", "swir16", "swir22", "qa_pixel")
    assets = {key: {"href": f"https://landsatlook.example.org/{key}.TIF",
                    "alternate": {"s3": {"href": f"s3://usgs-landsat/{key}.TIF"}}}
              for key in keys}  # fmt: skip
    properties = {"platform": "LANDSAT_8", "eo:cloud_cover": 2.0, "proj:epsg": 32643}
    return stac_item("1.0.0", properties, assets, id="LC08_X", collection="landsat-c2l2-sr")


def test_another_satellite_is_refused_by_name_whatever_its_keys():
    catalogue = catalogue_of("https://landsatlook.example.org", {"B04": "red", "SCL": "qa_pixel"})
    with pytest.raises(ItemError, match="is of LANDSAT_8, not of Sentinel-2: choose a collection"):
        scene_of(landsat_item(), catalogue, ("B04",))


def test_level_1_has_no_scene_classification():
    item = planetary_computer_item()
    del item["assets"]["SCL"]
    with pytest.raises(ItemError, match="has no asset 'SCL' for band SCL"):
        scene_of(item, catalogue_of("planetary-computer"), TEN)


# Odd items.


def bow_tie():
    return {"type": "Polygon", "coordinates": [[[75, 28], [76, 29], [76, 28], [75, 29], [75, 28]]]}


def without(*path):
    def change(item):
        for name in path[:-1]:
            item = item[name]
        del item[path[-1]]

    return change


def with_value(value, *path):
    def change(item):
        for name in path[:-1]:
            item = item[name]
        item[path[-1]] = value

    return change


ODD = {
    "null geometry": (with_value(None, "geometry"), "have no geometry"),
    "a point": (with_value({"type": "Point", "coordinates": [75, 28]}, "geometry"), "no outline"),
    "an empty polygon": (with_value({"type": "Polygon", "coordinates": []}, "geometry"), "outline"),
    "an unknown type": (with_value({"type": "Torus", "coordinates": [1]}, "geometry"), "outline"),
    "words as coordinates": (
        with_value({"type": "Polygon", "coordinates": [["a", "b"]]}, "geometry"), "no outline"),
    "infinite coordinates": (
        with_value({"type": "Polygon", "coordinates": [[[75, 28], [76, 28], [76, float("inf")],
                                                        [75, 28]]]}, "geometry"), "no outline"),
    "beyond the pole": (
        with_value({"type": "Polygon", "coordinates": [[[0, 80], [1, 80], [1, 99], [0, 80]]]},
                   "geometry"), "no outline"),
    "no properties": (without("properties"), "not as STAC has"),
    "null properties": (with_value(None, "properties"), "not as STAC has"),
    "no id": (without("id"), "not as STAC has"),
    "a number as id": (with_value(7, "id"), "not as STAC has"),
    "no assets": (without("assets"), "not as STAC has"),
    "assets as a list": (with_value([], "assets"), "not as STAC has"),
    "no asset of a band": (without("assets", "B04"), "lack a band"),
    "a null asset": (with_value(None, "assets", "B04"), "not as STAC has"),
    "no href": (without("assets", "B04", "href"), "not as STAC has"),
    "a number as href": (with_value(3, "assets", "B04", "href"), "not as STAC has"),
    "month 13": (with_value("2023-13-05T00:00:00Z", "properties", "datetime"), "when they were"),
    "null datetime": (with_value(None, "properties", "datetime"), "when they were"),
    "no datetime": (without("properties", "datetime"), "when they were"),
    "a number as datetime": (with_value(2023, "properties", "datetime"), "not as STAC has"),
    "cloud in words": (with_value("few", "properties", "eo:cloud_cover"), "not as STAC has"),
    "cloud below nothing": (with_value(-3, "properties", "eo:cloud_cover"), "not as STAC has"),
    "no cloud": (without("properties", "eo:cloud_cover"), "do not say their cloud"),
    "null cloud": (with_value(None, "properties", "eo:cloud_cover"), "do not say their cloud"),
    "no baseline": (without("properties", "s2:processing_baseline"), "do not say their unit"),
    "scale in words": (
        with_value([{"scale": "small"}], "assets", "B04", "raster:bands"), "not as STAC has"),
    "another satellite": (with_value("landsat-9", "properties", "platform"), "another satellite"),
}  # fmt: skip


@pytest.fixture
def scenes(tmp_path):
    from bharateo.sources.scenes import CatalogueScenes

    config = Sentinel2Config("planetary-computer")
    return CatalogueScenes(Sentinel2(TEN, config), tmp_path)


@pytest.mark.parametrize("name", ODD)
def test_an_odd_item_is_left_out_and_named_and_the_others_are_used(scenes, name):
    change, what = ODD[name]
    odd, good = planetary_computer_item(), planetary_computer_item() | {"id": "GOOD"}
    change(odd)
    found, left_out = scenes.usable([odd, good])
    assert [scene.id for scene in found] == ["GOOD"]
    (each,) = left_out
    assert what in each.what and each.reason
    with pytest.raises(SourceError):
        scenes.usable([odd])


@pytest.mark.parametrize("odd", [None, 7, "item", [], {}])
def test_what_is_no_item_at_all_is_left_out(scenes, odd):
    found, left_out = scenes.usable([odd, planetary_computer_item()])
    assert len(found) == len(left_out) == 1


def test_complaints_count_odd_items_by_kind_and_name_the_first(scenes):
    items = [planetary_computer_item() | {"id": f"GOOD-{number}"} for number in range(3)]
    for number in range(4):
        items.append(planetary_computer_item() | {"id": f"NOWHERE-{number}", "geometry": None})
    items.append(planetary_computer_item() | {"id": "BARE", "assets": {}})
    _, left_out = scenes.usable(items)
    scenes.left_out = {each.id: each for each in left_out}
    assert sorted(scenes.complaints()) == [
        "1 items lack a band, e.g. BARE: left out",
        "4 items have no geometry, e.g. NOWHERE-0: left out",
    ]


def test_an_outline_that_crosses_itself_is_mended():
    item = planetary_computer_item() | {"geometry": bow_tie()}
    scene = scene_of(item, catalogue_of("planetary-computer"), TEN)
    assert scene.outline.is_valid
    assert scene.outline.area == pytest.approx(0.5)
    assert ranked([scene], shapely.box(75.1, 28.4, 75.2, 28.6), 32643) == [scene]


ANTIMERIDIAN = {
    "jumps": [[[179.5, -17], [-179.4, -17], [-179.4, -16], [179.5, -16], [179.5, -17]]],
    "runs on": [[[179.5, -17], [180.6, -17], [180.6, -16], [179.5, -16], [179.5, -17]]],
    "runs on to the west": [
        [[-180.5, -17], [-179.4, -17], [-179.4, -16], [-180.5, -16], [-180.5, -17]]
    ],
}


@pytest.mark.parametrize("ring", ANTIMERIDIAN.values(), ids=ANTIMERIDIAN)
def test_a_scene_across_the_antimeridian_covers_both_of_its_sides_and_nothing_else(ring):
    item = planetary_computer_item()
    item["geometry"] = {"type": "Polygon", "coordinates": ring}
    scene = scene_of(item, catalogue_of("planetary-computer"), TEN)
    assert scene.outline.area == pytest.approx(1.1)
    for place in ((179.7, -16.6, 179.8, -16.5), (-179.8, -16.6, -179.7, -16.5),
                  (179.95, -16.6, 180.05, -16.5)):  # fmt: skip
        assert ranked([scene], shapely.box(*place), None) == [scene], place
    for place in ((0, -16.6, 0.1, -16.5), (179.2, -16.6, 179.3, -16.5)):
        assert not ranked([scene], shapely.box(*place), None), place


def test_a_place_across_the_antimeridian_is_asked_for_as_stac_has_it(monkeypatch):
    from bharateo.sources.catalogue import Client

    asked = {}

    class Api:
        def search(self, **question):
            asked.update(question)
            return self

        def pages_as_dicts(self):
            return [{"features": []}]

    client = Client(catalogue_of("earth-search"), "sentinel-2-l2a")
    monkeypatch.setattr(client, "_opened", Api)
    assert client.items([179.5, -17, 180.5, -16], "2023-01-01", "2023-12-31", 20) == []
    assert asked["bbox"] == [179.5, -17, -179.5, -16]
    assert in_range(shapely.box(179.5, -17, 180.5, -16)).area == pytest.approx(1)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2023-11-05T05:31:09Z", "2023-11-05T05:31:09Z"),
        ("2023-11-05T05:31:09.024000+00:00", "2023-11-05T05:31:09.024000Z"),
        ("2023-11-05T02:00:00+05:30", "2023-11-04T20:30:00Z"),
        ("2023-11-05T05:31:09", "2023-11-05T05:31:09Z"),
        ("2023-11-05", "2023-11-05T00:00:00Z"),
    ],
)
def test_times_of_any_zone_are_told_in_utc(text, moment):
    item = planetary_computer_item()
    item["properties"]["datetime"] = text
    assert scene_of(item, catalogue_of("planetary-computer"), TEN).datetime == moment
    item["properties"] |= {"datetime": None, "start_datetime": text}
    assert scene_of(item, catalogue_of("planetary-computer"), TEN).datetime == moment


def test_an_items_own_nodata_counts_where_its_outline_promises_more():
    """Of a swath that is outlined as such nothing is taken off again."""
    place = shapely.box(75.2, 28.1, 75.3, 28.2)
    catalogue = catalogue_of("planetary-computer")

    def scene(name, geometry, nodata, cloud):
        item = planetary_computer_item() | {"id": name, "geometry": geometry}
        item["properties"] |= {"s2:nodata_pixel_percentage": nodata, "eo:cloud_cover": cloud}
        return scene_of(item, catalogue, TEN)

    empty, swath = scene("EMPTY", TILE, 97.0, 0.0), scene("SWATH", SWATH, 49.0, 9.0)
    cloudier = scene("CLOUDIER", TILE, 0.0, 12.0)
    assert [each.id for each in ranked([empty, cloudier, swath], place, 32643)] == [
        "SWATH", "CLOUDIER", "EMPTY",
    ]  # fmt: skip
    assert swath.believed == 1.0 and empty.believed == pytest.approx(0.03, abs=0.005)


@pytest.mark.parametrize("name", ["Earth Search, harmonised", "Copernicus Data Space", "STAC 0.9"])
def test_an_item_damaged_in_any_way_is_used_or_refused_in_a_line(name):
    item, catalogue, *_ = CATALOGUES[name]
    content, known = json.dumps(item).encode(), catalogue_of(catalogue)
    place, refused = shapely.box(75.1, 28.1, 75.2, 28.2), 0
    for seed in range(400):
        damaged = damaged_json(random.Random(seed), content)
        try:
            scene = scene_of(parse_json(damaged, "item", SourceError, "leave it"), known, TEN)
            offset_of(scene)
        except SourceError as error:
            assert len(str(error)) < 2_000 and "\n" not in str(error)
            refused += 1
        else:
            assert len(ranked([scene], place, 32643)) <= 1
            assert Scene.model_validate_json(json.dumps(scene.model_dump())) == scene
    assert 40 < refused < 390


# A catalogue that answers oddly.


@contextmanager
def api(pages):
    """A STAC API on loopback that gives these pages, one after the other."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            path, _, number = self.path.partition("?page=")
            record = {
                "type": "Catalog", "stac_version": "1.0.0", "id": "odd", "description": "",
                "conformsTo": ["https://api.stacspec.org/v1.0.0/core",
                               "https://api.stacspec.org/v1.0.0/item-search"],
                "links": [{"rel": "search", "href": f"{url}/search", "method": "POST",
                           "type": "application/geo+json"},
                          {"rel": "root", "href": url}],
            }  # fmt: skip
            if path.startswith("/search"):
                place = int(number or 0)
                record = copy.deepcopy(pages[place])
                if place + 1 < len(pages) and isinstance(record, dict):
                    href = f"{url}/search?page={place + 1}"
                    record["links"] = [{"rel": "next", "href": href, "method": "GET"}]
            body = json.dumps(record).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/geo+json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.do_GET()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield url
    finally:
        server.shutdown()
        server.server_close()


def asked(url):
    source = Sentinel2(TEN, Sentinel2Config(f"planetary-computer={url}", retries=0, timeout_s=5))
    return source.client().items([75, 28, 76, 29], "2023-01-01", "2023-12-31", 20)


def test_odd_items_in_an_answer_do_not_end_the_question():
    odd = planetary_computer_item() | {"id": "ODD", "properties": None}
    cloudy = planetary_computer_item()
    cloudy["properties"]["eo:cloud_cover"] = 99
    first = {"type": "FeatureCollection", "features": [odd, cloudy, None]}
    second = {"type": "FeatureCollection", "features": [planetary_computer_item()]}
    with api([first, second]) as url:
        found = asked(url)
    assert [each and each["id"] for each in found] == ["ODD", None, "S2A_PC_X"]


@pytest.mark.parametrize(
    "page",
    [{"features": 3}, {"features": {"id": "a"}, "links": 3}, [], "text", None],
    ids=["a number", "links that are none", "a list", "text", "nothing"],
)
def test_a_page_that_is_none_is_a_source_error(page):
    with api([page]) as url, pytest.raises(UnreachableError, match="could not be asked"):
        asked(url)
