"""What a server answers to a small question, read whole: within a size and a time, whatever it
sends."""

from __future__ import annotations

import asyncio
from typing import Any, TypeVar

import httpx
import msgspec

from core.files import NOT_JSON

MAX_BYTES = 1 << 24
T = TypeVar("T")


async def whole(
    client: httpx.AsyncClient,
    method: str,
    url: str,
    *,
    within_s: float,
    max_bytes: int = MAX_BYTES,
    **request: Any,
) -> httpx.Response:
    """The answer with its body. httpx.HTTPError, also where it is over `max_bytes`, compressed or
    late."""
    try:
        async with (
            asyncio.timeout(within_s),
            client.stream(method, url, **_plain(request)) as answer,
        ):
            if (encoding := answer.headers.get("content-encoding", "identity")) != "identity":
                raise httpx.RemoteProtocolError(
                    f"content-encoding {encoding[:40]} was not asked for"
                )
            body = bytearray()
            async for piece in answer.aiter_raw():
                body += piece
                if len(body) > max_bytes:
                    raise httpx.RemoteProtocolError(f"an answer of over {max_bytes} bytes")
    except TimeoutError:
        raise httpx.ReadTimeout(f"no whole answer within {within_s:g} s") from None
    place = [("Location", at) for at in answer.headers.get_list("location")]
    return httpx.Response(
        answer.status_code, headers=place, content=bytes(body), request=answer.request
    )


def decoded(answer: httpx.Response, kind: type[T]) -> T:
    """The answer's JSON as a `kind`. httpx.HTTPError where it is none, or an error status."""
    if answer.has_redirect_location:
        place = answer.headers["location"][:200]
        raise httpx.RemoteProtocolError(f"HTTP {answer.status_code}: redirected to {place}")
    if not answer.is_success:
        raise httpx.RemoteProtocolError(f"HTTP {answer.status_code}: {answer.text[:200]}")
    try:
        return msgspec.json.decode(answer.content, type=kind)
    except NOT_JSON as error:
        raise httpx.RemoteProtocolError(f"not the expected JSON: {error}") from None


def _plain(request: dict[str, Any]) -> dict[str, Any]:
    """Without compression: a kilobyte may unpack to a gigabyte."""
    return {**request, "headers": [*request.get("headers", ()), ("Accept-Encoding", "identity")]}
