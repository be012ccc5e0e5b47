"""Planetary Computer's tokens: had in time, renewed, shared; what is told where there is none."""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import pytest

from bharateo.errors import UnreachableError
from bharateo.pixels.http import Web
from bharateo.sources import catalogue
from bharateo.sources.catalogue import unlock
from scripted_server import Reply, answering

CONTENT = bytes(range(256)) * 40


class Account:
    """A storage account whose tokens are good for some requests, and who gives them out."""

    def __init__(self, uses=1000, life_s=2700.0):
        self.uses, self.life_s = uses, life_s
        self.given = 0
        self.left = 0
        self.trouble = None

    def token(self, asked):
        if self.trouble:
            return self.trouble
        self.given += 1
        self.left = self.uses
        expiry = datetime.now(UTC) + timedelta(seconds=self.life_s)
        answer = {"msft:expiry": expiry.isoformat(), "token": f"se=x&sig=s%2Fecret{self.given}"}
        return Reply(body=json.dumps(answer).encode())

    def blob(self, asked):
        good = asked.target.endswith(f"?se=x&sig=s%2Fecret{self.given}") and self.left
        self.left -= 1
        return Reply(content=CONTENT) if good else Reply(403, body=b"AuthenticationFailed")


@contextmanager
def serving(account, monkeypatch):
    """Its two servers; containers lie at the second."""
    with answering(account.token) as tokens, answering(account.blob) as blobs:
        monkeypatch.setenv("PC_SDK_SAS_URL", f"{tokens.url}/token")
        monkeypatch.delenv("PC_SDK_SUBSCRIPTION_KEY", raising=False)
        container = rf"{re.escape(blobs.url)}/(?P<name>(?P<account>[^/]+))/"
        monkeypatch.setattr(catalogue, "CONTAINER", re.compile(container))
        catalogue._token_of.cache_clear()
        yield tokens, blobs
    catalogue._token_of.cache_clear()


def eager_web():
    return Web(timeout_s=2.0, num_retries=2, backoff_s=0.001)


def test_one_token_serves_all_files_of_a_container(monkeypatch):
    with serving(Account(), monkeypatch) as (tokens, blobs):
        for name in ("a", "b"):
            web, address = eager_web(), f"{blobs.url}/box/{name}.tif"
            unlock(web, address, 2.0, 2)
            answers = web.get_all(address, [(0, 9), (100, 9), (200, 9)])
            assert answers[1].body == CONTENT[100:109]
        assert [asked.target for asked in tokens.asked] == ["/token/box/box"]
        assert len(blobs.asked) == 6


def test_a_token_that_expires_in_the_middle_of_a_read_is_renewed(monkeypatch):
    account = Account(uses=3)
    with serving(account, monkeypatch) as (tokens, blobs):
        web, address = eager_web(), f"{blobs.url}/box/a.tif"
        unlock(web, address, 2.0, 2)
        for first in range(0, 900, 100):
            assert web.get(address, first, 9).body == CONTENT[first : first + 9]
        assert account.given == len(tokens.asked) == 3


def test_a_token_about_to_expire_is_renewed_before_it_is_used(monkeypatch):
    account = Account(life_s=60.0)
    with serving(account, monkeypatch) as (_, blobs):
        web, address = eager_web(), f"{blobs.url}/box/a.tif"
        unlock(web, address, 2.0, 2)
        web.get(address, 0, 9)
        web.get(address, 0, 9)
        assert account.given == 2
        assert len(blobs.asked) == 2


def test_many_threads_that_are_refused_ask_for_one_token(monkeypatch):
    account = Account()
    with serving(account, monkeypatch) as (tokens, blobs):
        web, address = eager_web(), f"{blobs.url}/box/a.tif"
        unlock(web, address, 2.0, 2)
        web.get(address, 0, 9)
        catalogue._token_of("box", "box", 2.0, 2)._token = "se=x&sig=old"
        with ThreadPoolExecutor(6) as threads:
            answers = list(threads.map(lambda first: web.get(address, first, 9), range(6)))
        assert [answer.body[0] for answer in answers] == list(range(6))
        assert len(tokens.asked) == 2


def test_a_container_that_stays_shut_is_told_without_the_token(monkeypatch):
    with serving(Account(uses=0), monkeypatch) as (tokens, blobs):
        web, address = eager_web(), f"{blobs.url}/box/a.tif"
        unlock(web, address, 2.0, 2)
        with pytest.raises(UnreachableError, match=r"box/a\.tif could not be read.*403") as refused:
            web.get(address, 0, 9)
        assert len(tokens.asked) == 2
    assert "ecret" not in str(refused.value)


TROUBLES = {
    "busy": Reply(503), "limited": Reply(429, {"Retry-After": "0"}), "unknown": Reply(404),
    "a page": Reply(body=b"<html>"), "nothing": Reply(body=b"{}"), "null": Reply(body=b"null"),
    "an odd token": Reply(body=b'{"msft:expiry": "2030-01-01T00:00:00Z", "token": "a b\\n"}'),
    "no date": Reply(body=b'{"msft:expiry": "soon", "token": "a"}'),
}  # fmt: skip


@pytest.mark.parametrize("trouble", TROUBLES.values(), ids=TROUBLES)
def test_no_token_is_a_source_that_cannot_be_reached(monkeypatch, trouble):
    account = Account()
    account.trouble = trouble
    with serving(account, monkeypatch) as (_, blobs):
        web, address = eager_web(), f"{blobs.url}/box/a.tif"
        monkeypatch.setattr(catalogue, "Web", lambda *_, **__: eager_web())
        unlock(web, address, 2.0, 1)
        with pytest.raises(UnreachableError, match=r"no token for box/box: .*; check the network"):
            web.get(address, 0, 9)
        assert blobs.asked == []


def test_addresses_that_need_no_token_get_none(monkeypatch):
    monkeypatch.setattr(catalogue, "_token_of", lambda *_: pytest.fail("asked"))
    for address in (
        "https://example.org/box/a.tif",
        "/data/a.tif",
        "https://ai4edatasetspublicassets.blob.core.windows.net/assets/a.png",
        "https://account.blob.core.windows.net/box/a.tif?sv=1&sig=mine",
        "https://account.blob.core.windows.net.example.org/box/a.tif",
    ):
        unlock(eager_web(), address)
