"""The way out to servers: proxies, certificates, tokens, and how far an answer may lead.

All of it is told by the environment, and all of this package's requests heed the same. Addresses
that carry secrets are shown without them.
"""

from __future__ import annotations

import base64
import ipaddress
import os
import re
import ssl
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import SplitResult, parse_qsl, unquote, urlencode, urljoin, urlsplit
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
    if is_loopback(parts) or _is_direct(parts):
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
    user, at, host = proxy.netloc.rpartition("@")
    secret = base64.b64encode(unquote(user).encode()).decode()
    return Proxy(f"{proxy.scheme}://{host}", f"Basic {secret}" if at else None)


def is_loopback(parts: SplitResult) -> bool:
    """Whether a URL is of this machine itself."""
    return parts.hostname in ("localhost", "127.0.0.1", "::1")


def _is_direct(parts: SplitResult) -> bool:
    host = parts.hostname or ""
    if proxy_bypass(parts.netloc.rpartition("@")[2]) or proxy_bypass(host):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return any(address in network for network in _networks(getproxies().get("no", "")))


def _networks(text: str) -> Iterator[ipaddress.IPv4Network | ipaddress.IPv6Network]:
    for part in text.split(","):
        if "/" in part:
            try:
                yield ipaddress.ip_network(part.strip(), strict=False)
            except ValueError:
                continue  # a name


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
        if _names(name, parts):
            return _token_in(Path(token[1:]).expanduser(), name) if token[0] == "@" else token
    return None


def _token_in(file: Path, name: str) -> str:
    try:
        return file.read_text("ascii").strip()
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{TOKENS_VARIABLE} names {file} for {name}, which cannot be read as a token "
            f"({type(error).__name__}): write the token alone into it"
        ) from error


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
