"""Buckets: where they lie, how they are signed for, and what is told of a refusal."""

from datetime import UTC, datetime

import pytest

from bharateo.errors import UnreachableError
from bharateo.pixels import network
from bharateo.pixels.http import Web
from bharateo.pixels.network import place_of, request_of, signed
from bharateo.pixels.raster import open_raster
from bharateo.sources.worldcover import PUBLIC_ROOT, WorldCover
from scripted_server import Reply, answering

CONTENT = bytes(range(256)) * 40
KEY, SECRET = "AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
VARIABLES = (
    "ENDPOINT_URL_S3", "ENDPOINT_URL", "S3_ENDPOINT", "HTTPS", "REGION", "DEFAULT_REGION",
    "ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SESSION_TOKEN", "REQUEST_PAYER", "NO_SIGN_REQUEST",
)  # fmt: skip


@pytest.fixture(autouse=True)
def no_settings(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(f"AWS_{name}", raising=False)
    monkeypatch.setattr(network, "_learnt", {})


@pytest.fixture
def keys(monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)


def eager_web() -> Web:
    return Web(timeout_s=5.0, num_retries=1, backoff_s=0.001)


def test_a_signature_is_that_of_amazons_own_example():
    """S3 API reference, "Example: GET Object"."""
    headers = signed(
        "https://examplebucket.s3.amazonaws.com/test.txt", {"Range": "bytes=0-9"}, "us-east-1",
        KEY, SECRET, datetime(2013, 5, 24, tzinfo=UTC),
    )  # fmt: skip
    assert headers["Authorization"] == (
        "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request, "
        "SignedHeaders=host;range;x-amz-content-sha256;x-amz-date, "
        "Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"
    )
    assert headers["x-amz-date"] == "20130524T000000Z"


def test_open_buckets_are_read_unsigned_from_the_public_endpoint(keys):
    public = "https://esa-worldcover.s3.eu-central-1.amazonaws.com/v200"
    assert request_of("s3://esa-worldcover/v200", {"Range": "x"}) == (public, {"Range": "x"})
    assert WorldCover("s3://esa-worldcover/").root == PUBLIC_ROOT
    assert WorldCover("s3://mine/mirror/").root == "s3://mine/mirror"


def test_where_a_bucket_lies(monkeypatch):
    assert place_of("s3://other/a/b c.tif").url == "https://other.s3.amazonaws.com/a/b%20c.tif"
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-3")
    assert place_of("s3://other/a").url == "https://other.s3.eu-west-3.amazonaws.com/a"
    monkeypatch.setenv("AWS_REGION", "ap-south-1")
    assert place_of("s3://a.b/c").url == "https://s3.ap-south-1.amazonaws.com/a.b/c"
    monkeypatch.setenv("AWS_S3_ENDPOINT", "minio.example:9000")
    assert place_of("s3://other/a").url == "https://minio.example:9000/other/a"
    monkeypatch.setenv("AWS_HTTPS", "NO")
    assert place_of("s3://esa-worldcover/a").url == "http://minio.example:9000/esa-worldcover/a"
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://eodata.example/")
    assert place_of("s3://eodata/a").url == "https://eodata.example/eodata/a"
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "https://s3.example")
    assert place_of("s3://eodata/a").url == "https://s3.example/eodata/a"
    assert place_of("s3://eodata/a").region == "ap-south-1"


@pytest.mark.parametrize(
    "address", ["s3://", "s3:///key", "s3://a@b/c", "s3://x.com:80/c", "s3://a#b/c"]
)
def test_what_is_no_bucket_is_refused(address):
    with pytest.raises(UnreachableError, match="names no bucket"):
        place_of(address)


def test_a_bucket_of_ones_own_server_is_signed_for(monkeypatch, keys):
    with answering(lambda _: Reply(content=CONTENT)) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        monkeypatch.setenv("AWS_SESSION_TOKEN", "temporary")
        monkeypatch.setenv("AWS_REQUEST_PAYER", "requester")
        web = eager_web()
        answers = web.get_all("s3://mine/a/b.tif", [(0, 9), (100, 9)])
        assert [answer.body for answer in answers] == [CONTENT[:9], CONTENT[100:109]]
        assert web.traffic.requests == len(server.asked) == 2
        asked = min(server.asked, key=lambda each: each.headers["Range"])
        assert asked.target == "/mine/a/b.tif"
        assert asked.headers["x-amz-request-payer"] == "requester"
        assert asked.headers["x-amz-security-token"] == "temporary"
        moment = datetime.strptime(asked.headers["x-amz-date"], "%Y%m%dT%H%M%SZ")
        names = ("Range", "x-amz-request-payer", "x-amz-security-token")
        expected = signed(f"{server.url}/mine/a/b.tif", {n: asked.headers[n] for n in names},
                          "us-east-1", KEY, SECRET, moment)  # fmt: skip
        assert asked.headers["Authorization"] == expected["Authorization"]
        monkeypatch.setenv("AWS_NO_SIGN_REQUEST", "YES")
        web.get("s3://mine/a/b.tif", 0, 9)
        assert "Authorization" not in server.asked[-1].headers


def test_keys_go_to_no_address_that_is_not_s3(keys):
    with answering(lambda _: Reply(content=CONTENT)) as server:
        eager_web().get(f"{server.url}/x", 0, 9)
        assert not any("amz" in name or name == "Authorization" for name in server.asked[0].headers)


def test_a_signature_does_not_go_where_a_redirect_leads(monkeypatch, keys):
    with (
        answering(lambda _: Reply(content=CONTENT)) as other,
        answering(lambda _: Reply(307, {"Location": f"{other.url}/x"})) as server,
    ):
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        with pytest.raises(UnreachableError, match="another place"):
            eager_web().get("s3://mine/x", 0, 9)
        monkeypatch.setenv("BHARATEO_ALLOW_REDIRECTS", other.address)
        assert eager_web().get("s3://mine/x", 0, 9).body == CONTENT[:9]
        assert not any("amz" in name or name == "Authorization" for name in other.asked[0].headers)


def test_a_bucket_in_another_region_is_asked_there_and_remembered(monkeypatch, keys):
    """Where S3 says so, without following what else it says."""
    with answering(
        lambda asked: Reply(content=CONTENT) if "eu-west-3" in asked.headers["Authorization"] else
        Reply(301, {"x-amz-bucket-region": "eu-west-3", "Location": "https://evil.invalid"})
    ) as server:  # fmt: skip
        monkeypatch.setattr(network, "place_of", lambda address: network.ObjectPlace(
            f"{server.url}/{network._learnt.get('mine')}/x", "mine",
            network._learnt.get("mine", "us-east-1"), False,
        ))  # fmt: skip
        web = eager_web()
        for _ in range(2):
            assert web.get("s3://mine/x", 0, 9).body == CONTENT[:9]
        assert len(server.asked) == 3


def test_a_refusal_names_the_variables_and_no_secret(monkeypatch, keys):
    with answering(lambda _: Reply(403, {"x-amz-request-id": "1"}, b"AccessDenied")) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        with pytest.raises(UnreachableError, match=r"s3://mine/x.*403.*AWS_REQUEST_P") as refused:
            open_raster("s3://mine/x.tif", eager_web())
    assert SECRET not in str(refused.value) and KEY not in str(refused.value)
