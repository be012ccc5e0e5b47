"""Buckets: where an ``s3://`` address lies, and the signature that opens it.

Told by the usual variables: ``AWS_ENDPOINT_URL_S3``, ``AWS_ENDPOINT_URL`` or ``AWS_S3_ENDPOINT``
(any server that speaks S3; its buckets are in the path), ``AWS_REGION`` or ``AWS_DEFAULT_REGION``,
``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY`` and ``AWS_SESSION_TOKEN``, ``AWS_REQUEST_PAYER``,
``AWS_NO_SIGN_REQUEST``. Without keys, buckets are read as the public ones are: unsigned.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import NamedTuple
from urllib.parse import quote, urlsplit

from bharateo.errors import UnreachableError

_PUBLIC = {"esa-worldcover": "eu-central-1"}
"""Open buckets, with their regions: never signed for, since keys of somebody else's may be
refused."""

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9]")
_HOST_LIKE = re.compile(r"[a-z0-9][a-z0-9-]*[a-z0-9]")
_REGION = re.compile(r"[a-z0-9-]{4,32}")
_EMPTY = hashlib.sha256(b"").hexdigest()

_learnt: dict[str, str] = {}
"""Bucket -> region, as S3 itself has said."""
_lock = threading.Lock()


class Place(NamedTuple):
    """Where an object lies."""

    url: str
    bucket: str
    region: str
    is_open: bool
    """Whether it is known to be readable by anybody."""


def place_of(address: str) -> Place:
    """Where ``s3://bucket/key`` lies.

    Raises:
        UnreachableError: the bucket's name is none.
    """
    bucket, _, key = address.removeprefix("s3://").partition("/")
    if not _BUCKET.fullmatch(bucket):
        raise UnreachableError(f"{address} names no bucket: it must be s3://BUCKET/KEY")
    path = quote(key, safe="/-_.~")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if endpoint := _endpoint():
        return Place(f"{endpoint}/{bucket}/{path}", bucket, region or "us-east-1", False)
    known = _learnt.get(bucket) or _PUBLIC.get(bucket) or region
    host = f"s3.{known}.amazonaws.com" if known else "s3.amazonaws.com"
    # A dot in the name would be one level more than S3's certificate covers.
    url = f"https://{bucket}.{host}" if _HOST_LIKE.fullmatch(bucket) else f"https://{host}/{bucket}"
    return Place(f"{url}/{path}", bucket, known or "us-east-1", bucket in _PUBLIC)


def _endpoint() -> str | None:
    named = next(
        (
            os.environ[name]
            for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_S3_ENDPOINT")
            if os.environ.get(name)
        ),
        None,
    )
    if named is None:
        return None
    plain = os.environ.get("AWS_HTTPS", "YES").upper() in ("NO", "FALSE", "0", "OFF")
    return (named if "://" in named else f"http{'' if plain else 's'}://{named}").rstrip("/")


def request_of(address: str, headers: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """URL and headers of a GET of ``s3://bucket/key``, signed where there are keys to sign with.

    Raises:
        UnreachableError: see ``place_of``.
    """
    place = place_of(address)
    key, secret = (os.environ.get(f"AWS_{name}") for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"))
    unsigned = os.environ.get("AWS_NO_SIGN_REQUEST", "").upper() in ("YES", "TRUE", "1", "ON")
    if not (key and secret) or unsigned or place.is_open:
        return place.url, dict(headers)
    more = dict(headers)
    if token := os.environ.get("AWS_SESSION_TOKEN"):
        more["x-amz-security-token"] = token
    if os.environ.get("AWS_REQUEST_PAYER"):
        more["x-amz-request-payer"] = os.environ["AWS_REQUEST_PAYER"].lower()
    return place.url, signed(place.url, more, place.region, key, secret, datetime.now(UTC))


def signed(
    url: str, headers: Mapping[str, str], region: str, key: str, secret: str, now: datetime
) -> dict[str, str]:
    """The headers of a GET with those that sign it.

    Source: AWS Signature Version 4, "Authenticating Requests: Using the Authorization Header" of
    the S3 API reference, whose example is a test.
    """
    parts, moment, day = urlsplit(url), f"{now:%Y%m%dT%H%M%SZ}", f"{now:%Y%m%d}"
    sent = {**headers, "x-amz-content-sha256": _EMPTY, "x-amz-date": moment}
    canonical = sorted({name.lower(): value for name, value in sent.items()}.items())
    canonical = sorted([*canonical, ("host", parts.netloc)])
    names = ";".join(name for name, _ in canonical)
    lines = "".join(f"{name}:{value.strip()}\n" for name, value in canonical)
    request = f"GET\n{parts.path or '/'}\n{parts.query}\n{lines}\n{names}\n{_EMPTY}"
    scope = f"{day}/{region}/s3/aws4_request"
    text = f"AWS4-HMAC-SHA256\n{moment}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
    secret_of = f"AWS4{secret}".encode()
    for part in scope.split("/"):
        secret_of = hmac.digest(secret_of, part.encode(), "sha256")
    signature = hmac.digest(secret_of, text.encode(), "sha256").hex()
    credential = f"Credential={key}/{scope}, SignedHeaders={names}, Signature={signature}"
    return {**sent, "Authorization": f"AWS4-HMAC-SHA256 {credential}"}


def learns_region(address: str, url: str, headers: Mapping[str, str]) -> bool:
    """Whether the answer to a request of ``url`` says that the bucket lies in another region.

    From then on it is asked there.
    """
    region = headers.get("x-amz-bucket-region", "")
    if not _REGION.fullmatch(region) or _endpoint():
        return False
    with _lock:
        _learnt[place_of(address).bucket] = region
    return place_of(address).url != url
