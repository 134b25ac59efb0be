"""The models that a server names at /v1/models."""

from __future__ import annotations

import asyncio
import ssl

import httpx
import msgspec

from core import fetch
from core.errors import BackendError
from core.load import address
from core.load.address import Address

WITHIN_S = 10.0


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


def first(server: Address, headers: list[tuple[str, str]]) -> str:
    """The name of the first model. BackendError if the server names none."""
    where = f"{server.root}/models"
    try:
        found = asyncio.run(_listed(server.url("models"), headers)).data
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        words = address.without_secrets(f"{type(error).__name__}: {error}", headers)
        raise BackendError(
            f"{where}: no model named there ({words}); name one with --model"
        ) from None
    if not found or not found[0].id.strip():
        raise BackendError(f"{where}: the server lists no model; name one with --model")
    return found[0].id


async def _listed(url: str, headers: list[tuple[str, str]]) -> _Models:
    trusted = ssl.create_default_context()  # as for the load: the system's, and SSL_CERT_FILE's
    async with httpx.AsyncClient(trust_env=False, timeout=WITHIN_S, verify=trusted) as client:
        answer = await fetch.whole(client, "GET", url, within_s=WITHIN_S, headers=headers)
        return fetch.decoded(answer, _Models)
