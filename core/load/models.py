"""The models that a server names at /v1/models."""

from __future__ import annotations

import asyncio
import ssl

import httpx
import msgspec

from core import fetch
from core.errors import BackendError

WITHIN_S = 10.0


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


def first(base_url: str, api_key: str, headers: tuple[tuple[str, str], ...]) -> str:
    """The name of the first model. BackendError if the server names none."""
    url = base_url + "/v1/models"
    key = [("Authorization", f"Bearer {api_key}")] if api_key else []
    try:
        return asyncio.run(_listed(url, [*key, *headers])).data[0].id
    except (httpx.HTTPError, httpx.InvalidURL, LookupError) as error:
        raise BackendError(
            f"{url}: no model named there ({type(error).__name__}: {error}); name one with --model"
        ) from None


async def _listed(url: str, headers: list[tuple[str, str]]) -> _Models:
    trusted = ssl.create_default_context()  # as for the load: the system's, and SSL_CERT_FILE's
    async with httpx.AsyncClient(trust_env=False, timeout=WITHIN_S, verify=trusted) as client:
        answer = await fetch.whole(client, "GET", url, within_s=WITHIN_S, headers=headers)
        return fetch.decoded(answer, _Models)
