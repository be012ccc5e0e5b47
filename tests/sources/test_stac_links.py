"""Links and addresses in what a catalogue answers: never a file of this machine, nor elsewhere."""

import json

import numpy as np
import pytest

from bharateo.errors import ItemError, UnreachableError
from bharateo.sources import catalogue
from bharateo.sources.catalogue import Client, catalogue_of
from bharateo.sources.stac import scene_of
from scripted_server import Reply, answering

HERE = np.array([77.05, 28.90, 77.06, 28.92])
CORE, SEARCH = (f"https://api.stacspec.org/v1.0.0/{name}" for name in ("core", "item-search"))


def item(href, **links):
    return {
        "type": "Feature", "stac_version": "1.0.0", "id": "a", "bbox": [77, 28, 78, 29],
        "geometry": {"type": "Polygon", "coordinates": [[[77, 28], [78, 28], [78, 29], [77, 28]]]},
        "collection": "c",
        "properties": {"datetime": "2021-01-01T00:00:00Z", "eo:cloud_cover": 1.0},
        "links": [{"rel": rel, "href": to} for rel, to in links.items()],
        "assets": {"red": {"href": href}, "blue": {"href": "https://example.org/blue.tif"}},
    }  # fmt: skip


class Api:
    """A STAC API of one or two pages."""

    first_page = "/search"

    def __init__(self, *items, to_next=None, to_search="{root}/search"):
        self.items, self.to_next, self.to_search = items, to_next, to_search

    def __call__(self, asked):
        root = f"http://{asked.headers['Host']}"
        if asked.target == "/":
            record = {"type": "Catalog", "stac_version": "1.0.0", "id": "c", "description": "",
                      "conformsTo": [CORE, SEARCH],
                      "links": [{"rel": "search", "href": self.to_search.format(root=root),
                                 "type": "application/geo+json", "method": "POST"}]}  # fmt: skip
        else:
            last = asked.target != self.first_page or self.to_next is None
            to_next = {} if last else {"rel": "next", "href": self.to_next.format(root=root)}
            record = {"type": "FeatureCollection", "features": list(self.items),
                      "links": [to_next] if to_next else []}  # fmt: skip
        return Reply(200, {"Content-Type": "application/json"}, json.dumps(record).encode())


def asked_of(server):
    client = Client(catalogue_of(f"earth-search={server.url}/"), "c", timeout_s=5.0, retries=1)
    return client.items(HERE, "2021-01-01", "2021-12-31", 20.0)


def test_the_next_page_is_fetched_from_the_same_server():
    with answering(Api(item("https://x.org/a.tif"), to_next="{root}/page2")) as server:
        assert len(asked_of(server)) == 2
    with answering(Api(item("https://x.org/a.tif"), to_next="/page2")) as server:
        assert len(asked_of(server)) == 2


def test_pages_that_never_end_are_told(monkeypatch):
    monkeypatch.setattr(catalogue, "_MOST_PAGES", 5)
    with answering(Api(item("https://x.org/a.tif"), to_next="{root}/search")) as server:
        with pytest.raises(UnreachableError, match="more than 5 pages"):
            asked_of(server)
        assert len(server.asked) < 10


@pytest.mark.parametrize("what", ["to_next", "to_search"])
@pytest.mark.parametrize("scheme", ["file", "path", "server"])
def test_a_link_elsewhere_is_not_followed_unasked(tmp_path, monkeypatch, what, scheme):
    page = {"type": "FeatureCollection", "features": [item("https://x.org/private.tif")]}
    (tmp_path / "page.json").write_text(json.dumps(page))
    with answering(Api(item("https://x.org/b.tif"))) as other:
        to = {"file": f"file://{tmp_path}/page.json", "path": f"{tmp_path}/page.json",
              "server": f"{other.url}/page2"}[scheme]  # fmt: skip
        with answering(Api(item("https://x.org/a.tif"), **{what: to})) as server:
            if scheme == "path":  # is one on the server
                assert all("private" not in str(found) for found in asked_of(server))
                return
            with pytest.raises(UnreachableError, match="which is another place and not gone to"):
                asked_of(server)
            assert other.asked == []
            if scheme == "server":
                monkeypatch.setenv("BHARATEO_ALLOW_REDIRECTS", other.address)
                assert asked_of(server)
                assert other.asked


HREFS = {
    "https://x.org/red.tif": "https://x.org/red.tif",
    "s3://bucket/red.tif": "s3://bucket/red.tif",
    "red.tif": "{root}/collections/c/items/red.tif",
    "../../red.tif": "{root}/collections/red.tif",
    "/etc/passwd": "{root}/etc/passwd",
    "/vsicurl/http://x.org/red.tif": "{root}/vsicurl/http://x.org/red.tif",
    "//x.org/red.tif": "http://x.org/red.tif",
    "file:///etc/passwd": None,
    "file:/etc/passwd": None,
    "C:\\private.tif": None,
    "GTI:/private.tif": None,
    "http://me:secret@x.org/red.tif": None,
    "http://[::1/red.tif": None,
    "https:///private.tif": None,
    3: None,
    None: None,
}


def red_of(found, root, base=None):
    """Where the red file of an item lies, None where it is not gone to."""
    keys = {band: "red" if band == "B04" else "blue" for band in ("B04", "SCL")}
    try:
        return scene_of(found, catalogue_of(root, keys), ("B04",), base).assets["B04"]
    except ItemError as error:
        assert "red" in str(error)
        return None


@pytest.mark.parametrize(("href", "expected"), HREFS.items(), ids=map(str, HREFS))
def test_an_address_in_an_item_is_never_a_file_of_this_machine(href, expected):
    with answering(Api(item(href, self="/collections/c/items/a"))) as server:
        (found,) = asked_of(server)
    expected = expected and expected.format(root=server.url)
    assert red_of(found, server.url) == expected


@pytest.mark.parametrize("own", [None, "file:///etc/items/a", 3, "http://[::1/a", "/home/me/a"])
def test_an_item_that_says_it_lies_in_a_file_lies_at_its_catalogue(own):
    odd = item("private.tif", self=own)
    if own is None:
        del odd["links"]
    with answering(Api(odd)) as server:
        (found,) = asked_of(server)
    assert red_of(found, server.url).startswith(f"{server.url}/")


@pytest.mark.parametrize(
    ("alternate", "expected"),
    [
        ({"https": {"href": "red.tif"}, "odd": 3}, "{root}/red.tif"),
        ({"https": {"href": "file:///red.tif"}}, "s3://bucket/red.tif"),
        ({"https": {"href": 3}}, "s3://bucket/red.tif"),
        ({"local": {"href": "file:///red.tif"}}, "s3://bucket/red.tif"),
        (3, "s3://bucket/red.tif"),
    ],
)
def test_other_addresses_of_an_asset_are_held_to_the_same(alternate, expected):
    wild = item("s3://bucket/red.tif")
    wild["assets"]["red"]["alternate"] = alternate
    with answering(Api(wild)) as server:
        (found,) = asked_of(server)
    assert red_of(found, server.url) == expected.format(root=server.url)


def test_an_item_at_an_address_names_no_file_and_one_in_a_file_does(tmp_path):
    far, near = "https://x.org/items/a", str(tmp_path / "a.json")

    def lies(href, base):
        return red_of(item(href), "https://x.org", base)

    assert lies("red.tif", far) == "https://x.org/items/red.tif"
    assert lies("/private.tif", far) == "https://x.org/private.tif"
    assert lies("file:/private.tif", far) is None
    assert lies("GTI:/private.tif", far) is None
    assert lies("red.tif", near) == str(tmp_path / "red.tif")
    assert lies("/private.tif", near) == "/private.tif"
