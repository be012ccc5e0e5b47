"""The way out to servers: proxies, certificates, tokens, buckets, and how far an answer may lead.

All of it is told by the environment, and all of this package's requests heed the same. Addresses
that carry secrets are shown without them.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
import os
import re
import ssl
import threading
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlencode, urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

import certifi

from bharateo.errors import ConfigError, UnreachableError

BUNDLE_VARIABLES = ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "CURL_CA_BUNDLE")
TOKENS_VARIABLE = "BHARATEO_TOKENS"
REDIRECTS_VARIABLE = "BHARATEO_ALLOW_REDIRECTS"

_PORTS = {"http": 80, "https": 443}
_SECRET = re.compile(
    r"x-(amz|goog)-.*|sig|signature|se|sp|sv|st|sr|sk\w+|policy|key-pair-id|expires|awsaccesskeyid"
    r"|googleaccessid|.*token|(.*[-_])?(api)?key|password|.*secret|auth.*",
    re.IGNORECASE,
)


def shown(address: str) -> str:
    """An address without its secrets: no user, password, signature or token."""
    try:
        parts = urlsplit(address)
        host = parts.netloc.rpartition("@")[2]
        query = parts.query
        if any(_SECRET.fullmatch(name) for name, _ in parse_qsl(query, keep_blank_values=True)):
            kept = [(n, v) for n, v in parse_qsl(query, True) if not _SECRET.fullmatch(n)]
            query = urlencode(kept)
    except ValueError:
        return "an address that cannot be read"
    if (host, query) == (parts.netloc, parts.query):
        return address
    return parts._replace(netloc=host, query=query).geturl()


# Proxies


class Proxy(NamedTuple):
    """A proxy's address, without user and password, and the header that carries those."""

    address: str
    authorization: str | None


def proxy_of(url: str) -> Proxy | None:
    """The proxy that the environment names for a URL; None to go straight.

    ``HTTP_PROXY``, ``HTTPS_PROXY``, else ``ALL_PROXY``: ``[scheme://][user:password@]host[:port]``.
    This machine itself and what ``NO_PROXY`` names (hosts, domains, networks such as 10.0.0.0/8,
    or ``*``) are gone to straight.

    Raises:
        ConfigError: the proxy is no HTTP proxy, or its address cannot be read.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    straight = proxy_bypass(parts.netloc.rpartition("@")[2]) or proxy_bypass(host)
    if is_loopback(parts) or straight or _in_networks(host, getproxies().get("no", "")):
        return None
    proxies = getproxies()
    named = proxies.get(parts.scheme) or proxies.get("all")
    if not named:
        return None
    address = named if "://" in named else f"http://{named}"
    try:
        proxy = urlsplit(address)
        valid = proxy.scheme in _PORTS and proxy.hostname and (proxy.port or True)
    except ValueError:
        valid = False
    if not valid:
        raise ConfigError(
            f"the proxy {shown(address)} that the environment names for {parts.scheme}:// is no "
            "http://HOST:PORT: correct HTTPS_PROXY, HTTP_PROXY or ALL_PROXY"
        )
    user, at, there = proxy.netloc.rpartition("@")
    secret = base64.b64encode(unquote(user).encode()).decode()
    return Proxy(f"{proxy.scheme}://{there}", f"Basic {secret}" if at else None)


def is_loopback(parts: SplitResult) -> bool:
    """Whether a URL is of this machine itself."""
    return parts.hostname in ("localhost", "127.0.0.1", "::1")


def _in_networks(host: str, named: str) -> bool:
    """Whether a host is an address in one of the networks of ``NO_PROXY``."""
    for part in named.split(","):
        if "/" in part:
            with suppress(ValueError):  # it is a name, or the host is
                if ipaddress.ip_address(host) in ipaddress.ip_network(part.strip(), strict=False):
                    return True
    return False


# Certificates


def certificates() -> ssl.SSLContext:
    """What servers must prove themselves by: the bundle that the environment names, and only that;
    else the system's and certifi's.

    Raises:
        ConfigError: there is no such bundle.
    """
    variable = next((name for name in BUNDLE_VARIABLES if os.environ.get(name)), None)
    if variable is None:
        context = ssl.create_default_context()
        # Python as installed on some systems finds no certificates of its own.
        context.load_verify_locations(certifi.where())
        return context
    bundle = Path(os.environ[variable]).expanduser()
    try:
        if bundle.is_dir():
            return ssl.create_default_context(capath=str(bundle))
        return ssl.create_default_context(cafile=str(bundle))
    except OSError as error:
        raise ConfigError(
            f"{variable} {bundle} cannot be read as certificates ({error.strerror or error}): name "
            "a file of PEM certificates, or unset it"
        ) from error


# Tokens


def token_for(url: str) -> str | None:
    """The bearer token that ``$BHARATEO_TOKENS`` holds for a URL's host, if any.

    ``HOST=TOKEN``, several with spaces between them; a domain stands for its subdomains too, and
    ``HOST=@FILE`` is read anew each time. Sent only over https, or to this machine itself.

    Raises:
        ConfigError: the variable cannot be understood, or a file not be read.
    """
    entries = os.environ.get(TOKENS_VARIABLE, "").split()
    if not entries:
        return None
    parts = urlsplit(url)
    if parts.scheme != "https" and not is_loopback(parts):
        return None
    for number, entry in enumerate(entries, 1):
        name, equals, token = entry.partition("=")
        if not (name and equals and token):
            raise ConfigError(
                f"entry {number} of {TOKENS_VARIABLE} is no HOST=TOKEN or HOST=@FILE: correct it"
            )
        if not _names(name, parts):
            continue
        if token[0] != "@":
            return token
        file = Path(token[1:]).expanduser()
        try:
            return file.read_text("ascii").strip()
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{TOKENS_VARIABLE} names {file} for {name}, which cannot be read as a token "
                f"({type(error).__name__}): write the token alone into it"
            ) from error
    return None


def _names(name: str, parts: SplitResult) -> bool:
    """Whether ``HOST`` or ``HOST:PORT``, or a domain above it, names a URL's host."""
    host, _, port = name.lower().partition(":")
    there = (parts.hostname or "").lower()
    if port and port != str(_port(parts)):
        return False
    return bool(host) and (there == host or there.endswith(f".{host.lstrip('.')}"))


# Where answers lead


def led_to(address: str, location: str, what: str = "redirects") -> str:
    """Where an answer of ``address`` leads, if it may be gone to.

    The same host and port, from http to https also; else a host that
    ``$BHARATEO_ALLOW_REDIRECTS`` names (with spaces or commas between them; a domain stands for
    its subdomains too), and then not from https to http. Nothing but http and https ever, so never
    a file.

    Raises:
        UnreachableError: it may not.
    """
    here = urlsplit(address)
    try:
        target = urljoin(address, location.strip())
        there = urlsplit(target)
        ports = _port(here), _port(there)
    except ValueError:
        target, there, ports = "", urlsplit(""), (0, 0)
    if there.scheme in _PORTS and there.hostname and not (there.username or there.password):
        kept = (here.scheme, ports[0]) == (there.scheme, ports[1])
        safer = (here.scheme, there.scheme) == ("http", "https") and ports == (80, 443)
        if here.hostname == there.hostname and (kept or safer):
            return target
        named = re.split(r"[\s,]+", os.environ.get(REDIRECTS_VARIABLE, ""))
        weaker = (here.scheme, there.scheme) == ("https", "http")
        if not weaker and any(_names(name, there) for name in named if name):
            return target
    where = f"{there.scheme}://{there.netloc.rpartition('@')[2]}"
    raise UnreachableError(
        f"{shown(address)} {what} to {where}, which is another place and not gone to unasked: give "
        f"the address it leads to yourself, or name the host in {REDIRECTS_VARIABLE}"
    )


def _port(parts: SplitResult) -> int:
    return parts.port or _PORTS.get(parts.scheme, 0)


def harmless_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Headers that a server's own words may add to a request: none of those that let one in."""
    kept_out = ("authorization", "cookie", "host", "proxy-authorization")
    return {name: value for name, value in headers.items() if name.lower() not in kept_out}


# Buckets: where an ``s3://`` address lies, and the signature that opens it. Told by the usual
# variables: ``AWS_ENDPOINT_URL_S3``, ``AWS_ENDPOINT_URL`` or ``AWS_S3_ENDPOINT`` (any server that
# speaks S3; its buckets are in the path), ``AWS_REGION`` or ``AWS_DEFAULT_REGION``,
# ``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY`` and ``AWS_SESSION_TOKEN``,
# ``AWS_REQUEST_PAYER``, ``AWS_NO_SIGN_REQUEST``. Without keys, buckets are read as the public
# ones are: unsigned.

_PUBLIC = {"esa-worldcover": "eu-central-1"}
"""Open buckets, with their regions: never signed for, since keys of somebody else's may be
refused."""

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9]")
_HOST_LIKE = re.compile(r"[a-z0-9][a-z0-9-]*[a-z0-9]")
_REGION = re.compile(r"[a-z0-9-]{4,32}")
_NO_BODY = hashlib.sha256(b"").hexdigest()

_learnt: dict[str, str] = {}
"""Bucket -> region, as S3 itself has said."""
_learning = threading.Lock()


class ObjectPlace(NamedTuple):
    """Where an object lies."""

    url: str
    bucket: str
    region: str
    is_open: bool
    """Whether it is known to be readable by anybody."""


def place_of(address: str) -> ObjectPlace:
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
        return ObjectPlace(f"{endpoint}/{bucket}/{path}", bucket, region or "us-east-1", False)
    known = _learnt.get(bucket) or _PUBLIC.get(bucket) or region
    host = f"s3.{known}.amazonaws.com" if known else "s3.amazonaws.com"
    # A dot in the name would be one level more than S3's certificate covers.
    url = f"https://{bucket}.{host}" if _HOST_LIKE.fullmatch(bucket) else f"https://{host}/{bucket}"
    return ObjectPlace(f"{url}/{path}", bucket, known or "us-east-1", bucket in _PUBLIC)


def _endpoint() -> str | None:
    names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_S3_ENDPOINT")
    named = next((os.environ[name] for name in names if os.environ.get(name)), None)
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
    sent = {**headers, "x-amz-content-sha256": _NO_BODY, "x-amz-date": moment}
    canonical = sorted({name.lower(): value for name, value in sent.items()}.items())
    canonical = sorted([*canonical, ("host", parts.netloc)])
    names = ";".join(name for name, _ in canonical)
    lines = "".join(f"{name}:{value.strip()}\n" for name, value in canonical)
    request = f"GET\n{parts.path or '/'}\n{parts.query}\n{lines}\n{names}\n{_NO_BODY}"
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
    with _learning:
        _learnt[place_of(address).bucket] = region
    return place_of(address).url != url
