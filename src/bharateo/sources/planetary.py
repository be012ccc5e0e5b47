"""Planetary Computer's tokens: one a storage container, shared, and another before it expires."""

from __future__ import annotations

import re
import threading
from datetime import UTC, datetime
from functools import cache

from pydantic import ConfigDict, Field

from bharateo.artefacts import Record, checked, parse_json
from bharateo.errors import UnreachableError
from bharateo.pixels.http import Web

CONTAINER = re.compile(r"https://(?P<account>[a-z0-9]+)\.blob\.core\.windows\.net/(?P<name>[^/]+)/")
"""What the addresses of a container begin with."""

_OPEN_ACCOUNT = "ai4edatasetspublicassets"
_MARGIN_S = 120.0
"""Life that a token must have left to be used: requests that have it wait for their turn."""

_REMEDY = (
    "check the network connection (PC_SDK_SAS_URL names another place for tokens, "
    "PC_SDK_SUBSCRIPTION_KEY one's own limits), then run the same command again"
)


def unlock(web: Web, address: str, timeout_s: float = 20.0, num_retries: int = 24) -> None:
    """Let ``web`` read the container that an address lies in; addresses elsewhere need no token."""
    container = CONTAINER.match(address)
    if container and container["account"] != _OPEN_ACCOUNT and "sig=" not in address:
        token = _token_of(container["account"], container["name"], timeout_s, num_retries)
        web.unlock(container[0], token)


@cache
def _token_of(account: str, name: str, timeout_s: float, num_retries: int) -> ContainerToken:
    return ContainerToken(account, name, Web(timeout_s, num_retries, num_parallel=1))


class _Answer(Record):
    """What the service answers."""

    model_config = ConfigDict(extra="ignore")

    token: str = Field(pattern=r"^[\x21-\x7e]+$")
    expiry: datetime = Field(alias="msft:expiry")


class ContainerToken:
    """The token of a container, asked for when it is needed: a ``Key``. Thread-safe."""

    def __init__(self, account: str, name: str, web: Web) -> None:
        self._account, self._name, self._web = account, name, web
        self._token, self._expiry = "", datetime.now(UTC)
        self._lock = threading.Lock()

    def query(self) -> str:
        """The token, with some life left.

        Raises:
            UnreachableError: the service did not give one, also after retries.
        """
        with self._lock:
            left_s = (self._expiry - datetime.now(UTC)).total_seconds()
            if not self._token or left_s < _MARGIN_S:
                self._token, self._expiry = self._ask()
            return self._token

    def forget(self, query: str) -> None:
        """The storage has refused this token."""
        with self._lock:
            if self._token == query:  # else another thread has had a new one since
                self._token = ""

    def _ask(self) -> tuple[str, datetime]:
        from planetary_computer.settings import Settings  # here, since it takes a second to load

        settings = Settings()
        address = f"{settings.sas_url}/{self._account}/{self._name}"
        key = settings.subscription_key
        what = f"Planetary Computer gave no token for {self._account}/{self._name}"
        try:
            content = self._web.fetch(address, {"Ocp-Apim-Subscription-Key": key} if key else {})
        except UnreachableError as error:
            raise UnreachableError(f"{what}: {error.reason or error}; {_REMEDY}") from error
        plain = parse_json(content, f"{what}: its answer", UnreachableError, _REMEDY)
        answer = checked(_Answer, plain, f"{what}: in its answer", UnreachableError, _REMEDY)
        expiry = answer.expiry if answer.expiry.tzinfo else answer.expiry.replace(tzinfo=UTC)
        return answer.token, expiry
