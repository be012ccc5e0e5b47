"""Whether a tile that is not there is open sea: the product's list says so, or the mirror."""

from pathlib import Path

import numpy as np
import pytest

from bharateo.errors import SourceError, UnreachableError
from bharateo.landcover import IGNORE
from bharateo.pixels.http import Web
from bharateo.regions import Roi, worldcover_region
from bharateo.sources.worldcover import WorldCover, reachable
from range_server import Faults, RangeServer
from worldcover_tiles import GRIDS, key, write_grid, write_tile

COAST = worldcover_region(Roi("coast", 78.0, 28.61, 400)).geobox
"""Half in N27E075, half in N27E078."""
INLAND = worldcover_region(Roi("inland", 77.23, 28.61, 256)).geobox
ABSENT = "N27E078"
S3 = {"missing_status": 403, "missing_headers": {"x-amz-request-id": "4442587FB7D0A2F9"}}


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.delenv("BHARATEO_WORLDCOVER_ROOT", raising=False)
    monkeypatch.setenv("BHARATEO_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def mirror(tmp_path):
    """One tile, and no list of tiles."""
    codes = np.full((400, 9000), 40, np.uint8)
    write_tile(tmp_path / "mirror", "N27E075", {(16480, 27000): codes})
    (tmp_path / "mirror" / GRIDS[2021]).unlink()
    return tmp_path / "mirror"


def source_at(url: str, **options) -> WorldCover:
    return WorldCover(url, web=Web(timeout_s=2.0, num_retries=1, backoff_s=0.01), **options)


def lists_asked_for(server: RangeServer) -> list[str]:
    return [get.path for get in server.gets if "/map/" not in get.path]


def check_is_half_sea(source: WorldCover) -> None:
    raster = source.read(COAST)
    assert not raster.valid[:, 200:].any()
    assert raster.valid[:, :200].all()
    assert raster.provenance["tiles"][ABSENT] is None


def test_a_403_of_s3_is_no_sea(mirror):
    write_grid(mirror, ["N27E075", ABSENT])
    with RangeServer(mirror, **S3) as server, pytest.raises(SourceError, match=ABSENT):
        source_at(server.url).read(COAST)


def test_a_403_of_s3_is_sea_where_the_products_list_has_no_such_tile(mirror):
    write_grid(mirror, ["N27E075"])
    with RangeServer(mirror, **S3) as server:
        check_is_half_sea(source_at(server.url))


def test_a_403_of_s3_for_the_list_too_tells_nothing(mirror):
    with (
        RangeServer(mirror, **S3) as server,
        pytest.raises(SourceError, match=f"{ABSENT} is not at .*missing or open sea"),
    ):
        source_at(server.url).read(COAST)


def test_a_tile_that_an_incomplete_mirror_lacks_is_refused_with_the_remedy(mirror):
    write_grid(mirror, ["N27E075", ABSENT])
    told = rf"tile {ABSENT} is not at .*though the product has it.*put {key(ABSENT)} there"
    with pytest.raises(SourceError, match=told):
        WorldCover(str(mirror)).read(COAST)
    with RangeServer(mirror) as server, pytest.raises(SourceError, match=told):
        source_at(server.url).read(COAST)


@pytest.mark.parametrize("year", [2020, 2021])
def test_a_tile_that_the_products_list_lacks_is_sea(tmp_path, year):
    codes = np.full((400, 9000), 40, np.uint8)
    write_tile(tmp_path, "N27E075", {(16480, 27000): codes}, year)
    check_is_half_sea(WorldCover(str(tmp_path), year))
    with RangeServer(tmp_path) as server:
        check_is_half_sea(source_at(server.url, year=year))


def test_the_list_may_lie_where_the_bucket_has_its_older_ones(mirror):
    listed = write_grid(mirror, ["N27E075"])
    listed.rename(mirror / "esa_worldcover_grid.geojson")
    check_is_half_sea(WorldCover(str(mirror)))


def test_a_mirror_without_a_list_refuses_and_says_how_to_state_the_sea(mirror):
    told = rf"{ABSENT} is not at {mirror}, and nothing there tells whether it is missing or open"
    with pytest.raises(SourceError, match=told) as refused:
        WorldCover(str(mirror)).read(COAST)
    for remedy in (key(ABSENT), GRIDS[2021], "v200/2021/sea.txt"):
        assert remedy in str(refused.value)
    (mirror / "v200/2021/sea.txt").write_text(f"N00E003\n{ABSENT}\n")
    check_is_half_sea(WorldCover(str(mirror)))
    with RangeServer(mirror) as server:
        check_is_half_sea(source_at(server.url))


def test_a_glance_refuses_a_tile_that_is_missing(mirror):
    write_grid(mirror, ["N27E075", ABSENT])
    place = np.array([78.5]), np.array([28.6])
    with pytest.raises(SourceError, match=ABSENT):
        WorldCover(str(mirror)).overview(*place)
    write_grid(mirror, ["N27E075"])
    assert WorldCover(str(mirror)).overview(*place).tolist() == [IGNORE]


# What it costs.


def test_the_list_is_asked_for_once_and_only_where_a_tile_is_absent(mirror):
    write_grid(mirror, ["N27E075"])
    with RangeServer(mirror) as server:
        source = source_at(server.url)
        source.read(INLAND)
        assert lists_asked_for(server) == []
        check_is_half_sea(source)
        source.overview(np.array([60.0, 78.5, 90.0]), np.array([10.0, 28.6, 10.0]))
        assert lists_asked_for(server) == [f"/{GRIDS[2021]}"]
        server.forget()
        check_is_half_sea(source_at(server.url))
        assert lists_asked_for(server) == [], "it is kept in the cache"


def test_a_kept_list_that_is_damaged_is_fetched_again(mirror, tmp_path):
    write_grid(mirror, ["N27E075"])
    with RangeServer(mirror) as server:
        check_is_half_sea(source_at(server.url))
        (kept,) = (tmp_path / "cache").rglob("tiles-*.json")
        kept.write_text('["N27E0')
        check_is_half_sea(source_at(server.url))
        assert len(lists_asked_for(server)) == 2


@pytest.mark.parametrize(
    "content", ["<html>", "[]", '{"features": []}', '{"features": [{"properties": {}}]}',
                '{"features": [{"properties": {"ll_tile": 3}}]}', "[" * 100_000]
)  # fmt: skip
def test_a_list_that_is_none_is_named(mirror, content):
    (mirror / GRIDS[2021]).write_text(content)
    with pytest.raises(SourceError, match=rf"{GRIDS[2021]} is (damaged|not the product's list)"):
        WorldCover(str(mirror)).read(COAST)


def test_a_list_that_does_not_answer_is_unreachable(mirror):
    with RangeServer(mirror) as server:
        source = source_at(server.url)
        source.read(INLAND)
        server.faults = Faults(spare=1, busy=100)
        with pytest.raises(UnreachableError, match="503"):
            source.read(COAST)
        server.faults = Faults()
        write_grid(mirror, ["N27E075"])
        check_is_half_sea(source)


def test_a_root_that_answers_for_a_tile_in_vain_is_reachable_without_any_list(mirror):
    with RangeServer(mirror, **S3) as server:
        assert reachable(server.url, [Roi("sea", 0.0, 0.0)]) is None
        assert len(server.gets) == 1
    assert reachable(str(mirror), [Roi("sea", 0.0, 0.0)]) is None
    assert isinstance(reachable(str(Path("/nowhere"))), str)
