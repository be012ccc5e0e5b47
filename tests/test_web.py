"""What is asked of servers: with patience, through proxies, by whom one is let in, how far led."""

import base64
import subprocess
import threading
from email.utils import formatdate
from time import monotonic, time

import pytest

from bharateo.errors import ConfigError, CorruptRasterError, UnreachableError
from bharateo.pixels import http as web_module
from bharateo.pixels.http import Web
from bharateo.pixels.raster import open_raster
from bharateo.sources.worldcover import reachable
from range_server import Faults, RangeServer
from scripted_server import Reply, answering

CONTENT = bytes(range(256)) * 40
SURROUNDINGS = (
    "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE",
    "CURL_CA_BUNDLE", "BHARATEO_TOKENS", "BHARATEO_ALLOW_REDIRECTS",
)  # fmt: skip


@pytest.fixture(autouse=True)
def plain_surroundings(monkeypatch):
    for name in SURROUNDINGS:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


def file(_) -> Reply:
    return Reply(content=CONTENT)


def eager_web(**options) -> Web:
    return Web(**{"timeout_s": 5.0, "backoff_s": 0.001, **options})


class PatientWeb(Web):
    """Waits on a clock of its own, and keeps how long."""

    def __init__(self, monkeypatch, **options):
        super().__init__(**options)
        self.waits, self._now = [], 0.0
        monkeypatch.setattr(web_module, "monotonic", lambda: self._now)

    def _pause(self, wait_s, interrupted):
        self.waits.append(wait_s)
        self._now += wait_s
        return True


# Patience.


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "file").write_bytes(CONTENT)
    return tmp_path


def test_a_pause_of_minutes_is_survived(folder, monkeypatch):
    with RangeServer(folder) as server:
        web = PatientWeb(monkeypatch)
        web.get(f"{server.url}/file", 0, 9)
        server.faults = Faults(busy=18)
        assert web.get(f"{server.url}/file", 0, 9).body == CONTENT[:9]
    assert sum(web.waits) > 180
    assert max(web.waits) <= 20.2


def test_a_server_that_is_busy_a_dozen_times_is_asked_again(folder):
    with RangeServer(folder) as server:
        server.faults = Faults(busy=12)
        assert eager_web().get(f"{server.url}/file", 0, 9).body == CONTENT[:9]


def test_patience_ends_after_minutes_and_says_how_often_it_asked(folder, monkeypatch):
    with RangeServer(folder) as server:
        web = PatientWeb(monkeypatch)
        server.faults = Faults(busy=1000)
        with pytest.raises(UnreachableError, match=r"too many 503.*\(\d+ tries in 2\d\d s\)"):
            web.get(f"{server.url}/file", 0, 9)
    assert 240 < sum(web.waits) <= 300
    assert len(server.gets) < 25


def test_a_server_that_never_answered_is_given_up_soon(monkeypatch):
    web = PatientWeb(monkeypatch)
    with pytest.raises(UnreachableError, match="its name could not be resolved"):
        web.get("http://worldcover.invalid/file", 0, 9)
    assert len(web.waits) == 5
    assert sum(web.waits) < 15


def test_a_server_that_has_answered_is_waited_for_when_it_is_gone(folder, monkeypatch):
    web = PatientWeb(monkeypatch)
    with RangeServer(folder) as server:
        web.get(f"{server.url}/file", 0, 9)
    web._managers.clear()  # else the connection that was kept still answers
    with pytest.raises(UnreachableError, match="Connection refused"):
        web.get(f"{server.url}/file", 0, 9)
    assert sum(web.waits) > 240


@pytest.mark.parametrize("said", ["7", "date"])
def test_a_busy_server_is_left_alone_for_as_long_as_it_asks(monkeypatch, said):
    said = formatdate(time() + 8, usegmt=True) if said == "date" else said
    replies = iter([Reply(503, {"Retry-After": said}), Reply(429, {"Retry-After": "90"})])
    with answering(lambda asked: next(replies, file(asked))) as server:
        web = PatientWeb(monkeypatch)
        assert web.get(f"{server.url}/file", 0, 9).body == CONTENT[:9]
    assert [round(wait_s) for wait_s in web.waits] in ([7, 90], [8, 90])


def test_a_server_that_wants_hours_is_given_up_at_once(monkeypatch):
    with answering(lambda _: Reply(503, {"Retry-After": "7200"})) as server:
        web = PatientWeb(monkeypatch)
        with pytest.raises(UnreachableError, match="wants to be left alone for 7200 s"):
            web.get(f"{server.url}/file", 0, 9)
        assert len(server.asked) == 1


@pytest.mark.parametrize("said", ["soon", "-3", "1e9", "9" * 400, "Sat, 99 Foo"])
def test_nonsense_is_no_time_to_wait(monkeypatch, said):
    replies = iter([Reply(503, {"Retry-After": said})])
    with answering(lambda asked: next(replies, file(asked))) as server:
        web = PatientWeb(monkeypatch)
        if said.isdigit():
            with pytest.raises(UnreachableError, match="left alone"):
                web.get(f"{server.url}/file", 0, 9)
        else:
            web.get(f"{server.url}/file", 0, 9)
            assert web.waits == [0.0]


def test_an_interrupt_ends_the_waiting_of_all_threads(folder):
    with RangeServer(folder) as server:
        web = Web(backoff_s=30.0)
        web.get(f"{server.url}/file", 0, 9)
        server.faults = Faults(busy=1000)
        failures: list[Exception] = []

        def wait():
            try:
                web.get(f"{server.url}/file", 0, 9)
            except UnreachableError as error:
                failures.append(error)

        threads = [threading.Thread(target=wait) for _ in range(3)]
        for thread in threads:
            thread.start()
        deadline = monotonic() + 5
        while len(server.gets) < 7 and monotonic() < deadline:
            threading.Event().wait(0.01)
        with pytest.raises(KeyboardInterrupt), web.interruptible():
            raise KeyboardInterrupt
        for thread in threads:
            thread.join(5.0)
        assert len(failures) == 3
        server.faults = Faults()
        assert web.get(f"{server.url}/file", 0, 9).body == CONTENT[:9]


def test_more_than_was_asked_for_is_not_kept():
    span = {"Content-Range": f"bytes 0-8/{len(CONTENT)}"}
    with (
        answering(lambda _: Reply(206, span, CONTENT)) as server,
        pytest.raises(UnreachableError, match="long answer of 10 bytes"),
    ):
        eager_web(num_retries=1).get(f"{server.url}/file", 0, 9)


# Where an answer leads.


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_to_another_place_is_not_followed_unasked(status, monkeypatch):
    with (
        answering(file) as other,
        answering(lambda _: Reply(status, {"Location": f"{other.url}/private.tif"})) as server,
    ):
        with pytest.raises(UnreachableError, match=r"redirects to .*BHARATEO_ALLOW_REDIRECTS"):
            eager_web().get(f"{server.url}/file", 0, 9)
        assert other.asked == []
        monkeypatch.setenv("BHARATEO_ALLOW_REDIRECTS", f"example.org, {other.address}")
        assert eager_web().get(f"{server.url}/file", 0, 9).body == CONTENT[:9]


@pytest.mark.parametrize(
    "target",
    ["file:///etc/passwd", "ftp://127.0.0.1/x", "//127.0.0.2/x", "http://localhost/x",
     "http://user:secret@{address}/x", "http://[::1", "gopher://127.0.0.1", "https://{address}/x"],
)  # fmt: skip
def test_a_redirect_is_never_a_file_another_scheme_or_a_login(target):
    with answering(
        lambda asked: Reply(302, {"Location": target.format(address=asked.headers["Host"])})
    ) as server:
        with pytest.raises(UnreachableError, match="another place") as refused:
            open_raster(f"{server.url}/x.tif", eager_web())
        assert "secret" not in str(refused.value)
        assert len(server.asked) == 1


def test_a_redirect_at_the_same_place_is_followed_but_not_for_ever():
    def script(asked):
        return Reply(302, {"Location": "/there"}) if asked.target == "/here" else file(asked)

    with answering(script) as server:
        assert eager_web().get(f"{server.url}/here", 0, 9).body == CONTENT[:9]
    with answering(lambda _: Reply(302, {"Location": "/again"})) as server:
        with pytest.raises(UnreachableError, match="leads on and on"):
            eager_web().get(f"{server.url}/here", 0, 9)
        assert len(server.asked) == 6


# Tokens.


def test_a_token_goes_to_its_host_alone(monkeypatch):
    with answering(file) as other, answering(
        lambda asked: Reply(302, {"Location": f"{other.url}/x"}) if asked.target == "/on" else
        file(asked)
    ) as server:  # fmt: skip
        monkeypatch.setenv("BHARATEO_TOKENS", f"example.org=no {server.address}=hunter2")
        monkeypatch.setenv("BHARATEO_ALLOW_REDIRECTS", other.address)
        web = eager_web()
        web.get(f"{server.url}/x", 0, 9)
        web.get(f"{server.url}/on", 0, 9)
        web.get(f"{other.url}/x", 0, 9)
        sent = [asked.headers.get("Authorization") for asked in server.asked]
        assert sent == ["Bearer hunter2"] * 2
        assert [asked.headers.get("Authorization") for asked in other.asked] == [None, None]


def test_a_token_in_a_file_is_read_anew_each_time(monkeypatch, tmp_path):
    with answering(file) as server:
        monkeypatch.setenv("BHARATEO_TOKENS", f"127.0.0.1=@{tmp_path}/token")
        web = eager_web()
        for token in ("first", "second"):
            (tmp_path / "token").write_text(f"{token}\n")
            web.get(f"{server.url}/x", 0, 9)
        sent = [asked.headers["Authorization"] for asked in server.asked]
        assert sent == ["Bearer first", "Bearer second"]


def test_who_is_not_let_in_is_told_where_a_token_goes(monkeypatch):
    with answering(lambda _: Reply(401)) as server:
        monkeypatch.setenv("BHARATEO_TOKENS", f"{server.address}=hunter2")
        with pytest.raises(UnreachableError, match=r"answered 401.*BHARATEO_TOKENS") as refused:
            open_raster(f"{server.url}/x.tif?token=abc123&id=7", eager_web())
    assert "hunter2" not in str(refused.value)
    assert "abc123" not in str(refused.value)
    assert "x.tif?id=7" in str(refused.value)


# Proxies.


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"])
@pytest.mark.parametrize("scheme", ["", "http://"])
def test_a_proxy_with_credentials_is_gone_through(monkeypatch, variable, scheme):
    with answering(file) as proxy:
        if (
            variable == "HTTP_PROXY"
        ):  # urllib takes it from a CGI's client, but for no REQUEST_METHOD
            monkeypatch.delenv("REQUEST_METHOD", raising=False)
        monkeypatch.setenv(variable, f"{scheme}me:p%40ss@{proxy.address}")
        answer = eager_web().get("http://worldcover.invalid/file", 0, 9)
        assert answer.body == CONTENT[:9]
        (asked,) = proxy.asked
        assert asked.target == "http://worldcover.invalid/file"
        secret = base64.b64encode(b"me:p@ss").decode()
        assert asked.headers["Proxy-Authorization"] == f"Basic {secret}"


@pytest.mark.parametrize("direct", ["127.0.0.0/8,10.0.0.0/8", "example.org,.invalid", "*"])
def test_what_no_proxy_names_is_gone_to_straight(monkeypatch, direct):
    with answering(file) as proxy:
        monkeypatch.setenv("ALL_PROXY", proxy.address)
        monkeypatch.setenv("NO_PROXY", direct)
        host = "127.0.0.9" if "/8" in direct else "worldcover.invalid"
        with pytest.raises(UnreachableError):
            eager_web(num_retries=0).get(f"http://{host}:9/file", 0, 9)
        assert proxy.asked == []


def test_a_proxy_that_wants_to_know_one_is_told_without_the_password(monkeypatch):
    with answering(lambda _: Reply(407)) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"me:hunter2@{proxy.address}")
        proxy.script = lambda _: Reply(407)
        with pytest.raises(UnreachableError) as refused:
            eager_web().get("https://worldcover.invalid/file", 0, 9)
    assert "hunter2" not in str(refused.value)
    assert "proxy" in str(refused.value)


@pytest.mark.parametrize("proxy", ["socks5://me:hunter2@host:1", "http://me:hunter2@host:port"])
def test_a_proxy_that_is_none_is_told_without_the_password(monkeypatch, proxy):
    monkeypatch.setenv("ALL_PROXY", proxy)
    with pytest.raises(ConfigError, match="ALL_PROXY") as refused:
        eager_web().get("http://worldcover.invalid/file", 0, 9)
    assert "hunter2" not in str(refused.value)


def test_who_asks_whether_a_server_answers_is_told_of_a_proxy_that_is_none(monkeypatch):
    monkeypatch.setenv("ALL_PROXY", "socks5://host:1")
    assert "ALL_PROXY" in eager_web().refusal("http://worldcover.invalid/file")
    assert "ALL_PROXY" in reachable("http://worldcover.invalid")


# Certificates.


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A key, and a certificate of this machine that nobody else signed."""
    import ssl

    folder = tmp_path_factory.mktemp("tls")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
               "-nodes", "-days", "2", "-subj", "/CN=localhost", "-addext",
               "subjectAltName=IP:127.0.0.1,DNS:localhost", "-keyout", folder / "key.pem",
               "-out", folder / "bundle.pem"]  # fmt: skip
    try:
        subprocess.run(command, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("no openssl to make a certificate with")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "bundle.pem", folder / "key.pem")
    return context, folder / "bundle.pem"


@pytest.mark.parametrize("variable", ["REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "CURL_CA_BUNDLE"])
def test_one_bundle_of_certificates_serves_all(monkeypatch, certificate, variable):
    context, bundle = certificate
    with answering(file, context) as server:
        monkeypatch.setenv(variable, str(bundle))
        assert eager_web().get(f"{server.url}/x", 0, 9).body == CONTENT[:9]
        assert eager_web().fetch(f"{server.url}/x") == CONTENT


def test_a_certificate_that_is_not_trusted_is_told_at_once(certificate):
    with answering(file, certificate[0]) as server:
        with pytest.raises(UnreachableError, match=r"certificate cannot be.*SSL_CERT_FILE"):
            eager_web().get(f"{server.url}/x", 0, 9)
        assert server.asked == []


def test_a_bundle_that_is_none_is_named(monkeypatch, tmp_path):
    (tmp_path / "empty.pem").write_text("")
    for name in ("none.pem", "empty.pem"):
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / name))
        with pytest.raises(ConfigError, match=rf"SSL_CERT_FILE .*{name} cannot be read"):
            eager_web().get("https://worldcover.invalid/x", 0, 9)


# Secrets.


def test_signatures_and_tokens_of_an_address_are_not_shown(tmp_path):
    from bharateo.pixels.network import shown

    signed = {
        "https://a.org/x.tif?id=7": "https://a.org/x.tif?id=7",
        "https://a.org/x.tif?X-Amz-Signature=f0&X-Amz-Date=1&id=7": "https://a.org/x.tif?id=7",
        "https://a.blob.core.windows.net/b/x.tif?st=1&se=2&sp=r&sv=3&sr=c&sig=s%2Fx": (
            "https://a.blob.core.windows.net/b/x.tif"
        ),
        "https://me:hunter2@a.org/x.tif": "https://a.org/x.tif",
        "https://a.org/x?access_token=t&subscription-key=k&b=1": "https://a.org/x?b=1",
        "/data/x.tif": "/data/x.tif",
        "http://[::1": "an address that cannot be read",
    }
    assert {address: shown(address) for address in signed} == signed
    (tmp_path / "x.tif").write_bytes(b"II*\0" + bytes(100))
    with RangeServer(tmp_path) as server:
        with pytest.raises(CorruptRasterError, match=r"x\.tif cannot be read") as refused:
            open_raster(f"{server.url}/x.tif?sig=hunter2", eager_web())
        assert "hunter2" not in str(refused.value)
