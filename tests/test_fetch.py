"""Small requests to a server: whatever it answers, we read a bounded part in a bounded time, and
report an error."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import httpx
import msgspec
import pytest
from support.hostile import ATTACKS, Hostile

from core import fetch
from core.backends import prometheus
from core.load.transport import Transport

READ_AT_MOST = 8 << 20


class Tokens(msgspec.Struct):
    tokens: list[int]


@pytest.fixture(scope="module")
def hostile() -> Iterator[Hostile]:
    server = Hostile()
    yield server
    server.stop()


@pytest.mark.parametrize(
    "transport",
    [lambda: Transport(max_answer_bytes=2 << 20), httpx.AsyncHTTPTransport],
    ids=["ours", "httpx"],
)
def test_every_attack_is_refused_within_size_and_time(
    transport: Callable[[], httpx.AsyncBaseTransport], hostile: Hostile
) -> None:
    async def asked(client: httpx.AsyncClient, attack: str, turn: asyncio.Semaphore) -> str:
        try:
            async with turn:
                answer = await fetch.whole(
                    client, "POST", "/", within_s=1.0, max_bytes=1 << 20, json={"prompt": attack}
                )
            return f"taken: {fetch.decoded(answer, Tokens)}"
        except httpx.HTTPError as error:
            return str(error)

    async def scenario() -> list[str]:
        turn = asyncio.Semaphore(6)
        async with httpx.AsyncClient(transport=transport(), base_url=hostile.url) as client:
            return await asyncio.gather(*(asked(client, attack, turn) for attack in ATTACKS))

    said = dict(zip(ATTACKS, asyncio.run(asyncio.wait_for(scenario(), 60)), strict=True))
    assert not [attack for attack, text in said.items() if text.startswith("taken")]
    assert said["gzip bomb"] == "content-encoding gzip was not asked for"
    assert said["endless tokens"] == said["HTML"] == "an answer of over 1048576 bytes"
    assert said["dribbled head"] == said["dribbled end"] == "no whole answer within 1 s"
    assert max(len(text) for text in said.values()) < 400
    # httpx alone reads interim answers for as long as it is given: only the second bounds it.
    ours = transport is not httpx.AsyncHTTPTransport
    bounded = {attack: n for attack, n in hostile.sent.items() if ours or "1xx" not in attack}
    assert max(bounded.values()) < READ_AT_MOST


METRICS = """# HELP vllm:num_requests_running of one engine
vllm:num_requests_running{engine="0"} 2.0
vllm:num_requests_running{engine="1"} 1e1
vllm:num_requests_waiting{engine="0"} -e+.
vllm:kv_cache_usage_perc{engine="0"} 1e999
vllm:num_preemptions_total 1.2.3
vllm:prefix_cache_hits_total{engine="0",model_name="m"} 32.0
vllm:prefix_cache_hits_total{engine="1",model_name="m"} 16.0
"""


def test_metrics_that_are_no_numbers_are_left_out() -> None:
    load = prometheus.read_metrics(METRICS)
    assert (load.running, load.waiting, load.kv_cache, load.preemptions) == (12, 0, 0.0, 0)
    assert load.prefix_cache_hits == 48
