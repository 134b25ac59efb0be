"""aiohttp as load clients use it. "upstream": one session per request, lines, a timestamp after the
parse; "raw": one session, chunks, a timestamp before it.

peers.py runs it with an interpreter that has aiohttp; it imports nothing of gatescope.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import aiohttp

now = time.perf_counter


async def upstream(url: str, body: dict[str, Any]) -> dict[str, Any]:
    async with aiohttp.ClientSession(
        trust_env=True, timeout=aiohttp.ClientTimeout(total=6 * 60 * 60)
    ) as session:
        start, last, ttft, itl = now(), 0.0, 0.0, []
        async with session.post(
            url, json=body, headers={"Authorization": "Bearer None"}
        ) as response:
            async for line in response.content:
                line = line.strip()
                if not line:
                    continue
                payload = line.decode().removeprefix("data: ")
                if payload == "[DONE]":
                    continue
                event = json.loads(payload)
                if event["choices"] and event["choices"][0]["text"]:
                    at = now()
                    if not ttft:
                        ttft = at - start
                    else:
                        itl.append(at - last)
                    last = at
    return {"prompt": body["prompt"], "ttft": ttft, "itl": itl}


async def raw(url: str, body: dict[str, Any], session: aiohttp.ClientSession) -> dict[str, Any]:
    start, stamps, rest = now(), [], b""
    async with session.post(url, json=body) as response:
        async for chunk in response.content.iter_any():
            at = now()
            *events, rest = (rest + chunk).split(b"\n\n")
            for event in events:
                if event == b"data: [DONE]":
                    continue
                fields = json.loads(event[6:])
                if fields["choices"] and fields["choices"][0]["text"]:
                    stamps.append(at)
    gaps = [later - earlier for earlier, later in pairwise(stamps)]
    return {"prompt": body["prompt"], "ttft": stamps[0] - start, "itl": gaps}


async def run(a: argparse.Namespace) -> list[dict[str, Any]]:
    lines = Path(a.prompts).read_text().splitlines()[: a.count]
    prompts = [json.loads(line)["prompt"] for line in lines]
    gate = asyncio.Semaphore(a.concurrency)
    url = a.url + "/v1/completions"
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=None)
    ) as session:

        async def one(prompt: str) -> dict[str, Any]:
            body = {"model": "truth", "prompt": prompt, "max_tokens": a.tokens, "stream": True}
            async with gate:
                if a.way == "upstream":
                    return await upstream(url, body)
                return await raw(url, body, session)

        return list(await asyncio.gather(*(one(p) for p in prompts)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("way", choices=("upstream", "raw"))
    parser.add_argument("url")
    parser.add_argument("prompts")
    parser.add_argument("count", type=int)
    parser.add_argument("concurrency", type=int)
    parser.add_argument("tokens", type=int)
    parser.add_argument("out")
    arguments = parser.parse_args()
    Path(arguments.out).write_text(json.dumps(asyncio.run(run(arguments))))
